"""`TcpTransport`: members and clients over TCP, with or without TLS, on one listening port.

A connection's HELLO says who calls: a member id makes it one lane of that member, 0 makes it a client. Nothing is read
before the HELLO but the HELLO, of at most 4 KiB, within 5 seconds, and at most `handshakes_max` connections may be at
that stage (`Doorway`). Everything a connection does wrong closes that connection and no other.

It is built on asyncio's protocols and on the loop's own clock, so a simulated loop can stand in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random

from pyraftkv.codec import PeerMessage, decode_hello, encode_hello, encode_message, encode_rejection
from pyraftkv.errors import ConfigurationError, FrameError, HandshakeRejected
from pyraftkv.futures import fulfil, shared
from pyraftkv.protocol import Hello
from pyraftkv.transport.address import format_address, is_loopback, is_unspecified, parse_address
from pyraftkv.transport.base import Dialer, Handler
from pyraftkv.transport.connection import FramedConnection, Wire
from pyraftkv.transport.departures import Departures
from pyraftkv.transport.dial import OVERLOADED, TcpDialer, dial
from pyraftkv.transport.doorway import Doorway
from pyraftkv.transport.framing import KIND_HELLO, KIND_HELLO_ACK, KIND_REJECTED, Frame
from pyraftkv.transport.handshake import BOOT_COUNT_MAX, PeerGate, judge_hello
from pyraftkv.transport.lanes import LANE_OF, Lane
from pyraftkv.transport.limits import Limits
from pyraftkv.transport.peer import Outlet, PeerInbox
from pyraftkv.transport.reports import Losses, Refusals
from pyraftkv.transport.tls import TLS

_LOG = logging.getLogger("pyraftkv.transport")

ACCEPTING_PASSES = 2
"""Passes of the event loop that asyncio takes from a socket that was accepted to a connection that was made."""


class Greeting:
    """The role of a wire that was accepted, until it has said HELLO."""

    def __init__(self, transport: TcpTransport) -> None:
        self._transport = transport
        self._wire: Wire | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connected(self, wire: Wire) -> None:
        self._wire = wire
        self._timer = self._transport.greet(wire)

    def frame(self, frame: Frame) -> None:
        """Take the HELLO. Raises `FrameError` on anything else."""
        if frame.kind != KIND_HELLO:
            raise FrameError(f"a frame of kind {frame.kind:#x} before a HELLO")
        hello = decode_hello(frame.payload)
        self._finish()
        assert self._wire is not None
        self._transport.welcome(self._wire, hello)

    def flush(self) -> None:
        pass

    def lost(self, error: Exception | None) -> None:
        self._finish()
        _LOG.debug("a connection ended before its HELLO: %s", error)

    def _finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._wire is not None:
            self._transport.greeted(self._wire)


class TcpTransport:
    """Moves messages between members over TCP, and serves clients on the same port: a `Transport`.

    Args:
        listen: Where to listen, ``host:port``; port 0 takes a free one.
        advertise: Where others reach us, if that differs; its port 0 stands for the port listened on.
        tls: Certificates, or None for plain text.
        insecure: Allow plain text on an address that other machines can reach.
        rng: Jitter of the back-off.
        limits: The bounds.

    Raises:
        ConfigurationError: The addresses cannot work, or plain text would be open to other machines.
    """

    def __init__(
        self,
        *,
        listen: str,
        advertise: str | None = None,
        tls: TLS | None = None,
        insecure: bool = False,
        rng: Random | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._host, self._port = parse_address(listen)
        self._advertise = parse_address(advertise if advertise is not None else listen)
        if tls is None and not is_loopback(self._host):
            if not insecure:
                raise ConfigurationError(
                    f"refusing to listen on {listen} without TLS: give certificates, or allow it: insecure=True"
                )
            _LOG.warning("listening on %s without TLS: everyone who reaches it can read and write", listen)
        if is_unspecified(self._advertise[0]):
            raise ConfigurationError(f"{self._advertise[0]} is no address that others can dial: set advertise=")
        self._tls = tls
        self._rng = rng or Random()
        self._limits = limits or Limits()
        self._server: asyncio.Server | None = None
        self._hello: Hello | None = None
        self._handler: Handler | None = None
        self._gate: PeerGate | None = None
        self._wires: dict[Wire, None] = {}
        """In the order in which they came, and are closed; that of a set depends on addresses."""
        self._context: ssl.SSLContext | None = None
        self._stamp: list[tuple[int, int, int]] = []
        """Of the files that it was made of."""
        self._clients: set[Wire] = set()
        self._doorway = Doorway(self._limits)
        self._addresses: dict[int, str] = {}
        self._peers: dict[int, dict[Lane, Outlet]] = {}
        self._losses = Losses(self._report_lost)
        self._departures = Departures(self._report_gone)
        self._refusals = Refusals()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._retired: set[asyncio.Task[None]] = set()
        self._emptied: asyncio.Future[None] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<TcpTransport {self.address}, {len(self._peers)} peers, {len(self._clients)} clients>"

    # --- What stands to be seen ---

    @property
    def address(self) -> str:
        """The advertised address; with an ephemeral port, the real one from `start` on."""
        host, port = self._advertise
        return format_address(host, port or self._port)

    @property
    def rejections(self) -> Mapping[int, HandshakeRejected]:
        """The members that were refused or that refused us, with the latest reason; cleared by success."""
        return self._refusals.latest

    @property
    def connected(self) -> frozenset[int]:
        """The members to whom every lane stands."""
        return frozenset(
            member for member, outlets in self._peers.items() if all(outlet.is_open for outlet in outlets.values())
        )

    @property
    def client_count(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    # --- Life ---

    async def start(self, hello: Hello, handler: Handler) -> None:
        """Listen, and answer HELLOs with ``hello``; an empty address in it becomes ours.

        Raises:
            ConfigurationError: The address cannot be bound, or the TLS files cannot be used.
        """
        assert self._server is None, "a transport is started once"
        assert not self._closed, "a transport is not started again"
        loop = asyncio.get_running_loop()
        self.reload_tls()
        self._handler, self._gate = handler, PeerGate(handler.peer_hello)
        try:
            self._server = await loop.create_server(self._accept, self._host, self._port)
        except (OSError, OverflowError) as error:
            address = format_address(self._host, self._port)
            raise ConfigurationError(f"cannot listen on {address}: {error}") from error
        self._port = self._server.sockets[0].getsockname()[1]
        self.identify(hello)
        self._sweep_timer = loop.call_later(self._limits.frame_seconds_max, self._sweep)
        self.set_peers(self._addresses)

    def reload_tls(self) -> None:
        """Read the TLS files again, for connections accepted from now on (dials read them anyway).

        Raises:
            ConfigurationError: They cannot be used; those in force stay in force.
        """
        if self._tls is not None:
            self._stamp = self._tls.stamp()
            # A new context, because a live one is left broken by files that do not fit each other.
            self._context = self._tls.for_server()

    def _current_context(self) -> ssl.SSLContext:
        """Return the context for a handshake, of the files as they are.

        1. A certificate is renewed: its file has another one. 2. The member runs on, with the one that it has read.
        3. That one expires, and nobody whom it loses can come back.
        """
        assert self._tls is not None
        if self._tls.stamp() != self._stamp:
            try:
                self.reload_tls()
            except ConfigurationError as error:  # half of them are new: those in force stay until the rest is there
                _LOG.warning("%s", error)
        assert self._context is not None, "files are read at the start"
        return self._context

    def identify(self, hello: Hello) -> None:
        """Replace the HELLO for connections from now on."""
        assert 0 <= hello.boot_count <= BOOT_COUNT_MAX, "a frame's header holds 32 bits of boot count"
        self._hello = hello if hello.address else replace(hello, address=self.address)

    def set_peers(self, peers: Mapping[int, str]) -> None:
        """Keep connections to exactly these members (ourselves left out), by id and address."""
        own = self._hello.member_id if self._hello is not None else 0
        wanted = {member: address for member, address in peers.items() if member != own}
        if self._server is None or self._closed:
            self._addresses = wanted  # dialled from `start` on
            return
        for member in [member for member in self._peers if wanted.get(member) != self._addresses.get(member)]:
            for outlet in self._peers.pop(member).values():
                self._retire(outlet)
            self._refusals.forget(member)
            self._departures.moved(member)
        for wire in list(self._wires):
            if isinstance(wire.role, PeerInbox) and wire.role.peer.member_id not in wanted:
                wire.abort()
        self._addresses = wanted
        for member, address in wanted.items():
            if member not in self._peers:
                self._peers[member] = {lane: self._outlet(member, address, lane) for lane in Lane}

    def dialer(self) -> Dialer:
        """Return what opens client connections from here, with the same certificates."""
        return TcpDialer(tls=self._tls, limits=self._limits)

    async def close(self) -> None:
        """Stop listening and drop every connection. Idempotent; nothing is called any more once it returned."""
        self._closed = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        if self._server is not None:
            await self._stop_accepting(self._server)
            self._server.close()
        for outlets in self._peers.values():
            for outlet in outlets.values():
                self._retire(outlet)
        self._peers.clear()
        await asyncio.gather(*self._retired, return_exceptions=True)
        await self._doorway.close()
        for wire in list(self._wires):
            wire.abort()
        if self._wires:
            self._emptied = self._emptied or asyncio.get_running_loop().create_future()
            await shared(self._emptied)

    @staticmethod
    async def _stop_accepting(server: asyncio.Server) -> None:
        """Accept nothing more, and let what was accepted become connections, which are seen and closed.

        1. A peer dials, and asyncio accepts its socket. A task is to make a connection of it in the next pass.
        2. The server is closed in this one. The task fails, and nobody ever closes the socket.
        """
        loop = asyncio.get_running_loop()
        for listener in server.sockets:
            with contextlib.suppress(NotImplementedError, RuntimeError):  # loops that do not work by readers
                loop.remove_reader(listener)
        for _ in range(ACCEPTING_PASSES):
            await asyncio.sleep(0)

    def _started(self) -> tuple[Hello, PeerGate]:
        assert self._hello is not None, "a transport says HELLO from `start` on"
        assert self._gate is not None, "a transport judges HELLOs from `start` on"
        return self._hello, self._gate

    def _retire(self, outlet: Outlet) -> None:
        task = outlet.close()
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    # --- Sending ---

    def send(self, messages: Sequence[PeerMessage]) -> None:
        """Queue messages, each to its `to`: one write per lane and call. Never blocks; may lose any of them."""
        touched: list[Outlet] = []
        for message in messages:
            outlets = self._peers.get(message.to)
            if outlets is None:
                continue  # not a member (any more)
            outlet = outlets[LANE_OF[type(message)]]
            if outlet.is_open and outlet.put(*encode_message(message)):
                touched.append(outlet)
            else:
                self._losses.add(message.to)
        for outlet in touched:
            outlet.flush()

    def _report_lost(self, member: int) -> None:
        if member in self._peers and self._handler is not None:
            self._handler.peer_lost(member)

    # --- Dialling ---

    def _outlet(self, member: int, address: str, lane: Lane) -> Outlet:
        """Begin to keep one lane to one member."""

        async def connect() -> tuple[Wire, Hello, Hello]:
            own, gate = self._started()
            wire, other = await dial(
                address,
                own,
                tls=self._tls,
                limits=self._limits,
                judge=lambda other: gate.admit(own, other, expected=member),
                connected=self._remember,
                lost=self._forget,
            )
            self._admitted(other)
            return wire, own, other

        return Outlet(
            lane,
            dial=connect,
            stands=lambda: self._departures.stands(member),
            lost=lambda by_us: self._lane_lost(member, by_us=by_us),
            unanswered=lambda: self._departures.refused(member),
            refused=lambda rejection: self._refused(member, rejection),
            limits=self._limits,
            rng=self._rng,
        )

    def _lane_lost(self, member: int, *, by_us: bool) -> None:
        self._losses.add(member)
        self._departures.ended(member, by_us=by_us)

    def _report_gone(self, member: int) -> None:
        if member in self._peers and self._handler is not None:
            self._handler.peer_gone(member)

    def _refused(self, member: int, rejection: HandshakeRejected) -> None:
        """We and the member that we dialled do not go together."""
        self._refusals.add(member, rejection)
        if rejection.is_theirs and self._handler is not None and not self._closed:
            self._handler.peer_refused(member, rejection)

    def _admitted(self, other: Hello) -> None:
        """A member's HELLO was accepted: forget its refusals, and drop the connections of its earlier lives."""
        self._refusals.forget(other.member_id)
        _, gate = self._started()
        for wire in list(self._wires):
            if isinstance(wire.role, PeerInbox) and not gate.is_current(wire.role.peer):
                wire.abort(ConnectionAbortedError("the member was restarted"))

    # --- Accepting ---

    def _accept(self) -> asyncio.BaseProtocol:
        return self._awaited() if self._tls is None else self._doorway.secured(self._awaited, self._current_context)

    def _awaited(self) -> Wire:
        greeting = Greeting(self)
        return Wire(greeting, connected=greeting.connected, lost=self._forget)

    def greet(self, wire: Wire) -> asyncio.TimerHandle | None:
        """Count a connection that has not said HELLO, and bound its patience; None if there are too many."""
        self._remember(wire)
        too_many = ConnectionAbortedError("too many connections without a HELLO")
        if self._closed or not self._doorway.enter(wire, lambda: wire.abort(too_many)):
            wire.abort(too_many)
            return None
        late = TimeoutError("no HELLO in time")
        return asyncio.get_running_loop().call_later(self._limits.handshake_seconds_max, wire.abort, late)

    def greeted(self, wire: Wire) -> None:
        """A connection has said HELLO, or is gone."""
        self._doorway.leave(wire)

    def welcome(self, wire: Wire, hello: Hello) -> None:
        """Judge the HELLO of an accepted connection, answer it, and give the wire its lasting role."""
        own, gate = self._started()
        assert self._handler is not None
        try:
            if hello.member_id:
                if self._tls is not None:
                    self._tls.check_identity(wire.ssl_object, hello)
                gate.admit(own, hello)
            else:
                judge_hello(own, hello)
                if len(self._clients) >= self._limits.clients_max:
                    raise HandshakeRejected("this member has as many clients as it takes", reason=OVERLOADED)
        except HandshakeRejected as rejection:
            if hello.member_id:
                self._refusals.add(hello.member_id, rejection)
            wire.write_frame(KIND_REJECTED, encode_rejection(rejection))
            wire.close()
            return
        wire.write_frame(KIND_HELLO_ACK, encode_hello(own))
        if hello.member_id:
            self._departures.stands(hello.member_id)
            wire.role = PeerInbox(
                own,
                hello,
                self._handler,
                lost=lambda: self._departures.ended(hello.member_id, by_us=wire.is_ours_to_end),
            )
            wire.decoder.payload_bytes_max = self._limits.peer_frame_bytes_max
            self._admitted(hello)
            # A member that comes back would else wait for its leader's next dial, up to the longest back-off.
            for outlet in self._peers.get(hello.member_id, {}).values():
                outlet.hurry()
        else:
            wire.hold()
            self._clients.add(wire)
            self._handler.client_connected(FramedConnection(wire, hello, self._limits))

    # --- Wires ---

    def _remember(self, wire: Wire) -> None:
        self._wires[wire] = None

    def _forget(self, wire: Wire) -> None:
        self._wires.pop(wire, None)
        self._clients.discard(wire)
        if self._emptied is not None and not self._wires:
            fulfil(self._emptied, None)

    def _sweep(self) -> None:
        """Close what has begun a frame and does not finish it."""
        for wire in list(self._wires):
            if wire.is_stalled():
                wire.abort(FrameError("a frame was begun and not finished in time"))
        self._sweep_timer = asyncio.get_running_loop().call_later(self._limits.frame_seconds_max, self._sweep)
