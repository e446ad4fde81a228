"""`MemoryNetwork`: the network inside one process, with faults on demand.

Nodes share no object: every message becomes a frame and is decoded from it, every HELLO is encoded, decoded and judged
by the same code as over TCP. What differs is only how bytes move: all frames that one sender queues for one receiver in
one pass of the loop arrive together, in the next.

Between members a fault loses messages, as a network does. A client's connection is a stream that loses nothing: where
a fault strikes it, it breaks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import TypeVarTuple

from pyraftkv.codec import (
    PeerMessage,
    decode_hello,
    decode_rejection,
    encode_hello,
    encode_message,
    encode_rejection,
)
from pyraftkv.errors import ConfigurationError, HandshakeRejected
from pyraftkv.futures import shared
from pyraftkv.protocol import Hello
from pyraftkv.transport.base import Connection, Dialer, Handler
from pyraftkv.transport.framing import (
    CLIENT_FRAME_BYTES_MAX,
    HEADER_BYTES,
    KIND_CLIENT,
    PEER_FRAME_BYTES_MAX,
    FrameDecoder,
    frame_header,
)
from pyraftkv.transport.handshake import PeerGate, judge_hello
from pyraftkv.transport.peer import PeerInbox
from pyraftkv.transport.reports import Losses, Refusals

Ts = TypeVarTuple("Ts")

LINK_QUEUE_BYTES_MAX = 32 * 1024 * 1024
"""What is under way from one member to another; a message that does not fit is dropped, and the peer is lost."""
CONNECTION_QUEUE_BYTES_MAX = 8 * 1024 * 1024
"""What is under way on one client connection; beyond it the connection is closed."""
CONNECTION_QUEUE_BYTES_LOW = 1024 * 1024
"""`drain` returns below this."""
CLIENTS_MAX = 1024
REDIAL_SECONDS = 0.05
"""How long after a failed dial the next one follows."""


class MemoryNetwork:
    """Addresses, who can reach whom, and how badly.

    Args:
        rng: Decides what is dropped and how late messages are; give one with a seed to repeat a run.
    """

    def __init__(self, *, rng: Random | None = None) -> None:
        self.drop_rate = 0.0
        """The share of messages between members that are lost, from 0 to 1."""
        self.latency_seconds = (0.0, 0.0)
        """The least and the most that a delivery takes; messages between members may overtake each other."""
        self.rng = rng or Random()
        self._transports: dict[str, MemoryTransport] = {}
        self._cuts: set[tuple[str, str]] = set()
        self._connections: list[tuple[str, str, MemoryConnection]] = []

    def transport(self, address: str) -> MemoryTransport:
        """Make the transport of a member at ``address`` (any string). It listens from `start` on."""
        return MemoryTransport(self, address)

    def dialer(self, address: str = "client") -> Dialer:
        """Make a dialer for clients at ``address``, a name for `cut`."""
        return _MemoryDialer(self, address)

    # --- Faults ---

    def cut(self, a: str, b: str, *, both: bool = True) -> None:
        """Lose everything from ``a`` to ``b``, and back unless ``both`` is false; clients' connections break."""
        self._cuts |= {(a, b), (b, a)} if both else {(a, b)}
        for source, target, connection in list(self._connections):
            if not self.reaches_both_ways(source, target):
                connection.fail(ConnectionResetError("the network was cut"))

    def heal(self, a: str | None = None, b: str | None = None) -> None:
        """Undo the cuts between ``a`` and ``b``, those of ``a`` with anyone, or all of them."""
        named = {name for name in (a, b) if name is not None}
        self._cuts = {cut for cut in self._cuts if not named <= set(cut)}

    def isolate(self, address: str) -> None:
        """Cut ``address`` off from every member there is."""
        for other in self._transports:
            if other != address:
                self.cut(address, other)

    def reaches(self, source: str, target: str) -> bool:
        """Whether anything sent from one address arrives at the other."""
        return (source, target) not in self._cuts

    def reaches_both_ways(self, source: str, target: str) -> bool:
        """Whether what is asked there is answered here."""
        return self.reaches(source, target) and self.reaches(target, source)

    # --- For transports and connections ---

    def travel(self, arrive: Callable[[*Ts], None], *args: *Ts) -> None:
        """Call ``arrive`` at once, or after the latency in force."""
        low, high = self.latency_seconds
        if high > 0:
            asyncio.get_running_loop().call_later(self.rng.uniform(low, high), arrive, *args)
        else:
            arrive(*args)

    def drops(self) -> bool:
        """Whether the next message is to be lost."""
        return self.drop_rate > 0 and self.rng.random() < self.drop_rate

    def listener(self, source: str, target: str) -> MemoryTransport | None:
        """Return who listens at ``target``, if ``source`` and it can reach each other."""
        return self._transports.get(target) if self.reaches_both_ways(source, target) else None

    def listen(self, transport: MemoryTransport) -> None:
        """Take a listener; whoever wants to reach it dials at once. Raises `ConfigurationError` if it is taken."""
        if transport.address in self._transports:
            raise ConfigurationError(f"address {transport.address} is already in use")
        self._transports[transport.address] = transport
        for other in list(self._transports.values()):
            other.dial_soon(transport.address)

    def leave(self, transport: MemoryTransport) -> None:
        """Forget a listener; links to it break."""
        if self._transports.get(transport.address) is transport:
            del self._transports[transport.address]
            for other in list(self._transports.values()):
                other.target_left(transport)

    def shut_out(self, transport: MemoryTransport, *, keep: Container[int]) -> None:
        """Break the links to ``transport`` of all members but of ``keep``."""
        for other in list(self._transports.values()):
            other.shut_out_by(transport, keep=keep)

    def track(self, source: str, target: str, connection: MemoryConnection) -> None:
        """Remember a client's connection, to break it when the network is cut."""
        self._connections = [entry for entry in self._connections if not entry[2].is_closed]
        self._connections.append((source, target, connection))


class _Link:
    """One member's way to another: not connected until the HELLOs were exchanged."""

    def __init__(self, member: int, address: str) -> None:
        self.member = member
        self.address = address
        self.target: MemoryTransport | None = None
        self.inbox: PeerInbox | None = None
        self.has_stood = False
        """Whether the member was there, and nobody was told yet that it is gone."""
        self.boots: tuple[int, int] = (0, 0)
        self.chunks: list[bytes] = []
        self.queued_bytes = 0
        self.dialling: asyncio.Handle | None = None

    def disconnect(self) -> None:
        self.target = self.inbox = None
        self.chunks, self.queued_bytes = [], 0

    def stop(self) -> None:
        self.disconnect()
        if self.dialling is not None:
            self.dialling.cancel()


class MemoryTransport:
    """A member's transport on a `MemoryNetwork`: a `Transport`."""

    def __init__(self, network: MemoryNetwork, address: str) -> None:
        self._network = network
        self._address = address
        self._hello: Hello | None = None
        self._handler: Handler | None = None
        self._gate: PeerGate | None = None
        self._addresses: dict[int, str] = {}
        self._links: dict[int, _Link] = {}
        self._losses = Losses(self._report_lost)
        self._clients: list[MemoryConnection] = []
        self._refusals = Refusals()
        self._closed = False

    def __repr__(self) -> str:
        return f"<MemoryTransport {self._address}, {len(self.connected)} of {len(self._links)} peers connected>"

    @property
    def address(self) -> str:
        """The address that `MemoryNetwork.transport` was given."""
        return self._address

    @property
    def rejections(self) -> Mapping[int, HandshakeRejected]:
        """The members that were refused or that refused us, with the latest reason; cleared by success."""
        return self._refusals.latest

    @property
    def connected(self) -> frozenset[int]:
        """The members that messages can leave for."""
        return frozenset(member for member, link in self._links.items() if link.target is not None)

    # --- Life ---

    async def start(self, hello: Hello, handler: Handler) -> None:
        """Listen, and answer HELLOs with ``hello``. Raises `ConfigurationError` if the address is taken."""
        assert self._handler is None, "a transport is started once"
        self._handler, self._gate = handler, PeerGate(handler.peer_hello)
        self.identify(hello)
        self.set_peers(self._addresses)
        self._network.listen(self)

    def identify(self, hello: Hello) -> None:
        """Replace the HELLO for connections from now on."""
        self._hello = hello if hello.address else replace(hello, address=self._address)

    def set_peers(self, peers: Mapping[int, str]) -> None:
        """Keep links to exactly these members (ourselves left out), by id and address."""
        own = self._hello.member_id if self._hello is not None else 0
        self._addresses = {member: address for member, address in peers.items() if member != own}
        if self._handler is None or self._closed:
            return
        for member, link in list(self._links.items()):
            if self._addresses.get(member) != link.address:
                link.stop()
                del self._links[member]
                self._refusals.forget(member)
        self._network.shut_out(self, keep=self._addresses)
        for member, address in self._addresses.items():
            if member not in self._links:
                self._links[member] = _Link(member, address)
                self._dial_later(self._links[member], seconds=0.0)

    def dialer(self) -> Dialer:
        """Return what opens client connections from here."""
        return self._network.dialer(self._address)

    async def close(self) -> None:
        """Stop listening, drop every link and connection. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for link in self._links.values():
            link.stop()
        self._links.clear()
        self._network.leave(self)
        for connection in self._clients:
            connection.close()
        await asyncio.sleep(0)  # what was scheduled before runs out, and finds us closed

    # --- Dialling ---

    def dial_soon(self, address: str) -> None:
        """Somebody began to listen at ``address``: try again at once."""
        for link in self._links.values():
            if link.address == address and link.target is None:
                self._dial_later(link, seconds=0.0)

    def shut_out_by(self, target: MemoryTransport, *, keep: Container[int]) -> None:
        """``target`` wants to hear of nobody but of ``keep``: if we are not among them, we dial it again."""
        if self._hello is not None and self._hello.member_id not in keep:
            self.target_left(target)

    def target_left(self, target: MemoryTransport) -> None:
        """``target`` stopped listening: what is on its way there is lost."""
        for link in self._links.values():
            if link.target is target:
                link.disconnect()
                self._losses.add(link.member)
                self._dial_later(link, seconds=REDIAL_SECONDS)

    def _dial_later(self, link: _Link, *, seconds: float) -> None:
        if link.dialling is not None:
            link.dialling.cancel()
        link.dialling = asyncio.get_running_loop().call_later(seconds, self._dial, link)

    def _dial(self, link: _Link) -> None:
        own, gate = self._started()
        target = self._network.listener(self._address, link.address)
        try:
            if target is None:
                self._dial_later(link, seconds=REDIAL_SECONDS)
                if link.has_stood and self._network.reaches_both_ways(self._address, link.address):
                    link.has_stood = False
                    asyncio.get_running_loop().call_soon(self._report_gone, link.member)
                return
            inbox, answer = self._introduce(link, target, own)
            other = decode_hello(answer)
            gate.admit(own, other, expected=link.member)
        except HandshakeRejected as rejection:
            self._refusals.add(link.member, rejection)
            self._dial_later(link, seconds=REDIAL_SECONDS)
            return
        self._refusals.forget(link.member)
        link.has_stood = True
        link.target, link.inbox = target, inbox
        link.boots = (own.boot_count, other.boot_count)

    def _introduce(self, link: _Link, target: MemoryTransport, own: Hello) -> tuple[PeerInbox, bytes]:
        """Say HELLO to a member. Raises `HandshakeRejected`; our handler is told that it was they who refused."""
        try:
            return target.accept_peer(encode_hello(own))
        except HandshakeRejected as rejection:
            theirs = decode_rejection(encode_rejection(rejection))
            assert self._handler is not None
            asyncio.get_running_loop().call_soon(self._handler.peer_refused, link.member, theirs)
            raise theirs from None

    def accept_peer(self, data: bytes) -> tuple[PeerInbox, bytes]:
        """Judge the HELLO of a member that dials us; return where its messages go, and our HELLO.

        Raises:
            HandshakeRejected: It may not.
        """
        hello = decode_hello(data)
        own, gate = self._started()
        assert self._handler is not None
        try:
            gate.admit(own, hello)
        except HandshakeRejected as rejection:
            self._refusals.add(hello.member_id, rejection)
            raise
        return PeerInbox(own, hello, self._handler), encode_hello(own)

    def accept_client(self, connection: MemoryConnection, data: bytes) -> bytes:
        """Judge the HELLO of a client, take its connection, and return our HELLO. Raises `HandshakeRejected`."""
        hello = decode_hello(data)
        own, _ = self._started()
        assert self._handler is not None
        judge_hello(own, hello)
        self._clients = [client for client in self._clients if not client.is_closed]
        if len(self._clients) >= CLIENTS_MAX:
            raise ConnectionRefusedError("this member has as many clients as it takes")
        self._clients.append(connection)
        connection.peer_is(hello)
        asyncio.get_running_loop().call_soon(self._handler.client_connected, connection)
        return encode_hello(own)

    def _started(self) -> tuple[Hello, PeerGate]:
        assert self._hello is not None, "a transport says HELLO from `start` on"
        assert self._gate is not None, "a transport judges HELLOs from `start` on"
        return self._hello, self._gate

    # --- Sending ---

    def send(self, messages: Sequence[PeerMessage]) -> None:
        """Queue messages, each to its `to`. Never blocks; may lose any of them."""
        for message in messages:
            link = self._links.get(message.to)
            if link is None:
                continue  # not a member (any more)
            if link.target is None:
                self._losses.add(link.member)
                continue
            kind, payload = encode_message(message)
            size = HEADER_BYTES + len(payload)
            if size > PEER_FRAME_BYTES_MAX or link.queued_bytes + size > LINK_QUEUE_BYTES_MAX:
                self._losses.add(link.member)
            elif not self._network.drops():
                if not link.chunks:
                    asyncio.get_running_loop().call_soon(self._depart, link)
                sender_boot, receiver_boot = link.boots
                header = frame_header(kind, payload, sender_boot=sender_boot, receiver_boot=receiver_boot)
                link.chunks += (header, payload)
                link.queued_bytes += size

    def _depart(self, link: _Link) -> None:
        """Send on its way what one pass of the loop gathered."""
        data = b"".join(link.chunks)
        link.chunks = []
        if link.inbox is not None:
            self._network.travel(self._arrive, link, link.inbox, data)

    def _arrive(self, link: _Link, inbox: PeerInbox, data: bytes) -> None:
        """Hand over what is not lost: the way must stand, and the link be the one that it left on."""
        if link.inbox is inbox:
            link.queued_bytes -= len(data)
            if self._network.reaches(self._address, link.address):
                _receive(inbox, data)

    def _report_gone(self, member: int) -> None:
        if member in self._links and self._handler is not None:
            self._handler.peer_gone(member)

    def _report_lost(self, member: int) -> None:
        if member in self._links and self._handler is not None:
            self._handler.peer_lost(member)


def _receive(inbox: PeerInbox, data: bytes) -> None:
    """Decode frames that arrived together, and hand them over together."""
    decoder = FrameDecoder(payload_bytes_max=PEER_FRAME_BYTES_MAX)
    decoder.feed(data)
    while (frame := decoder.next_frame()) is not None:
        inbox.frame(frame)
    inbox.flush()


class MemoryConnection:
    """One end of a client's connection on a `MemoryNetwork`: a `Connection`.

    Invariant: `_queued` holds the frames that this end sent and the other end's `received` has not been given.
    """

    def __init__(self, network: MemoryNetwork) -> None:
        self.is_closed = False
        self._network = network
        self._other: MemoryConnection = self
        self._peer: Hello | None = None
        self._queued: deque[bytes] = deque()
        self._queued_bytes = 0
        self._delivering = False
        self._closing = False
        self._error: Exception | None = None
        self._received: Callable[[bytes], None] | None = None
        self._closed: Callable[[Exception | None], None] | None = None
        self._room: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        name = self._peer.name if self._peer is not None else ""
        return f"<MemoryConnection to {name or 'a client'}, {self._queued_bytes} bytes queued>"

    @staticmethod
    def pair(network: MemoryNetwork) -> tuple[MemoryConnection, MemoryConnection]:
        """Make the two ends of a connection."""
        one, other = MemoryConnection(network), MemoryConnection(network)
        one._other, other._other = other, one
        return one, other

    def peer_is(self, hello: Hello) -> None:
        """The other end has said HELLO."""
        self._peer = hello

    @property
    def peer(self) -> Hello:
        """The other end's HELLO."""
        assert self._peer is not None, "a connection begins after its HELLOs"
        return self._peer

    @property
    def queued_bytes(self) -> int:
        """Bytes sent and not delivered yet."""
        return self._queued_bytes

    def send(self, frame: bytes) -> None:
        """Queue a frame; a connection whose queue is full is closed as too slow. Never blocks."""
        if self.is_closed or self._closing:
            return
        assert len(frame) <= CLIENT_FRAME_BYTES_MAX, "a frame over the bound must not be made"
        data = frame_header(KIND_CLIENT, frame) + frame
        if self._queued_bytes + len(data) > CONNECTION_QUEUE_BYTES_MAX:
            self.fail(ConnectionAbortedError("the other end reads too slowly"))
            return
        self._queued.append(data)
        self._queued_bytes += len(data)
        self._deliver_soon()

    async def drain(self) -> None:
        """Wait until the queue has room again. Returns at once on a closed connection."""
        while self._queued_bytes > CONNECTION_QUEUE_BYTES_LOW and not self.is_closed:
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
            await shared(self._room)

    def open(self, *, received: Callable[[bytes], None], closed: Callable[[Exception | None], None]) -> None:
        """Start delivery, from the loop's next pass on: `received` per frame, then `closed` exactly once."""
        assert self._received is None, "a connection is opened once"
        self._received, self._closed = received, closed
        if self.is_closed:
            asyncio.get_running_loop().call_soon(closed, self._error)
        else:
            self._other._deliver_soon()

    def close(self) -> None:
        """Close once everything queued was delivered."""
        self._closing = True
        self._deliver_soon()

    def fail(self, error: Exception) -> None:
        """Break both ends at once."""
        self._finish(error)
        self._other._finish(error)

    def _deliver_soon(self) -> None:
        if not self._delivering and not self.is_closed:
            self._delivering = True
            asyncio.get_running_loop().call_soon(self._network.travel, self._deliver)

    def _deliver(self) -> None:
        """Give the other end what is queued, if it is open; then close, if that was asked for."""
        self._delivering = False
        decoder = FrameDecoder(payload_bytes_max=CLIENT_FRAME_BYTES_MAX)
        while self._queued and self._other._received is not None:
            data = self._queued.popleft()
            self._queued_bytes -= len(data)
            decoder.feed(data)
            frame = decoder.next_frame()
            assert frame is not None, "a frame was queued whole"
            self._other._received(frame.payload)
        if self._room is not None and self._queued_bytes <= CONNECTION_QUEUE_BYTES_LOW:
            self._room.set_result(None)
            self._room = None
        if self._closing and not self._queued:
            self._finish(None)
            self._other._finish(None)

    def _finish(self, error: Exception | None) -> None:
        if self.is_closed:
            return
        self.is_closed, self._error = True, error
        self._queued.clear()
        self._queued_bytes = 0
        if self._room is not None:
            self._room.set_result(None)
            self._room = None
        if self._closed is not None:
            asyncio.get_running_loop().call_soon(self._closed, error)


class _MemoryDialer:
    """Opens client connections into the network: a `Dialer`."""

    def __init__(self, network: MemoryNetwork, address: str) -> None:
        self._network = network
        self._address = address

    async def __call__(self, address: str, hello: Hello) -> Connection:
        """Connect and exchange HELLOs.

        Raises:
            HandshakeRejected: The member refused us.
            OSError: Nobody answers there.
        """
        await asyncio.sleep(self._network.rng.uniform(*self._network.latency_seconds))
        target = self._network.listener(self._address, address)
        if target is None:
            raise ConnectionRefusedError(f"nobody answers at {address}")
        ours, theirs = MemoryConnection.pair(self._network)
        ours.peer_is(decode_hello(target.accept_client(theirs, encode_hello(hello))))
        self._network.track(self._address, address, ours)
        return ours
