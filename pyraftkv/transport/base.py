"""How messages move: `Transport` between members, `Connection` between a client and a member.

A transport loses, delays and reorders messages as it pleases; it never blocks its caller and never raises for the
network's sake. What it promises: a message arrives whole and unaltered or not at all, and only from a peer whose
HELLO was accepted (right cluster, right member, right incarnation, a protocol version in common).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from pyraftkv.codec import PeerMessage
from pyraftkv.errors import HandshakeRejected
from pyraftkv.protocol import Hello


class Connection(Protocol):
    """A framed stream between a client and a member, after both HELLOs. Frames are opaque bytes here."""

    @property
    def peer(self) -> Hello: ...

    def send(self, frame: bytes) -> None:
        """Queue a frame. Never blocks; over `connection_queue_bytes_max` the connection is closed as too slow."""
        ...

    @property
    def queued_bytes(self) -> int:
        """What has not left yet, for back-pressure by the sender."""
        ...

    async def drain(self) -> None:
        """Wait until the queue has room again. Returns at once on a closed connection."""
        ...

    def open(self, *, received: Callable[[bytes], None], closed: Callable[[Exception | None], None]) -> None:
        """Start delivery: `received` for every frame in order, then `closed` exactly once."""
        ...

    def close(self) -> None: ...


class Handler(Protocol):
    """What a transport calls, on the event loop, from `start` until `close` returns."""

    def peer_hello(self, hello: Hello) -> None:
        """Judge a peer's HELLO, from either side. Raises `HandshakeRejected` to refuse the connection."""
        ...

    def receive(self, messages: Sequence[PeerMessage]) -> None:
        """Take messages that arrived together from one peer."""
        ...

    def peer_lost(self, member_id: int) -> None:
        """Messages to that member were dropped: its connection broke, or its queue was full."""
        ...

    def peer_gone(self, member_id: int) -> None:
        """The process of that member has ended: every connection with it did, and a new one is refused."""
        ...

    def peer_refused(self, member_id: int, rejection: HandshakeRejected) -> None:
        """That member refused our HELLO. It is dialled again."""
        ...

    def client_connected(self, connection: Connection) -> None:
        """Take a client that said HELLO; the handler must `open` or `close` the connection."""
        ...


class Transport(Protocol):
    """Moves messages between the members of one cluster."""

    @property
    def address(self) -> str:
        """The advertised address: where peers and clients reach this member."""
        ...

    async def start(self, hello: Hello, handler: Handler) -> None:
        """Listen, and answer HELLOs with `hello`, whose member id is 0 while it is to be given one by a cluster.

        Raises: `ConfigurationError` if the address cannot be bound.
        """
        ...

    def identify(self, hello: Hello) -> None:
        """Replace the HELLO for connections from now on (the cluster id became known)."""
        ...

    def set_peers(self, peers: Mapping[int, str]) -> None:
        """Keep connections to exactly these members, by id and address (re-resolved at every dial).

        What members that are none of them any more have dialled is closed: they have to say HELLO again.
        """
        ...

    def send(self, messages: Sequence[PeerMessage]) -> None:
        """Queue messages, each to its `to`. Never blocks, never raises for the network's sake; may lose any of them.

        Three lanes per peer (control, appends, bulk), each bounded, so that no heartbeat stands behind a snapshot.
        """
        ...

    def dialer(self) -> Dialer:
        """Return what opens client connections from here, by the same ways and with the same certificates."""
        ...

    async def close(self) -> None:
        """Stop listening, drop every connection. Idempotent."""
        ...


class Dialer(Protocol):
    """Opens client connections: to TCP addresses, or into an in-memory network."""

    async def __call__(self, address: str, hello: Hello) -> Connection:
        """Connect and exchange HELLOs.

        Raises: `HandshakeRejected`; `OSError` when nobody answers; `TimeoutError`.
        """
        ...
