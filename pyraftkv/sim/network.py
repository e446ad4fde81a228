"""`SimNetwork`: hosts that listen and connect, over simulated streams.

The host part of an address is the name of a simulated machine. A machine without a listener refuses; one that lost
its power, or that no packet reaches, says nothing, and the dialler repeats its SYN until it gives up.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from random import Random

from pyraftkv.futures import fulfil
from pyraftkv.sim.links import Link, Links
from pyraftkv.sim.loop import SimLoop
from pyraftkv.sim.process import SimProcess
from pyraftkv.sim.streams import RETRANSMIT_SECONDS_MAX, Address, SimStream, os_error

SYN_SECONDS = 1.0
"""How long a SYN is waited for before it is sent again; doubled every time."""

EPHEMERAL_PORT_MIN = 32_768
PORT_MAX = 65_535

Factory = Callable[[], asyncio.BaseProtocol]

_OWN_NAMES = frozenset({None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::"})  # noqa: S104 - nothing is bound


class SimSocket:
    """What a server shows of its socket: its address."""

    family = socket.AF_INET

    def __init__(self, address: Address) -> None:
        self._address = address

    def getsockname(self) -> Address:
        """Host and port."""
        return self._address


class SimServer(asyncio.AbstractServer):
    """A listener.

    Args:
        network: Where.
        process: Whose.
        factory: Makes the protocol of a connection.
        address: Host and port.
        backlog: Connections that may wait to be accepted.
    """

    def __init__(
        self, network: SimNetwork, process: SimProcess, factory: Factory, address: Address, *, backlog: int
    ) -> None:
        self.process = process
        self.address = address
        self._network = network
        self._factory = factory
        self._backlog_max = backlog
        self._waiting = 0
        self._streams: dict[SimStream, None] = {}
        self._closed = False
        self._waiters: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"<SimServer {self.address}, {len(self._streams)} connections{', closed' if self._closed else ''}>"

    @property
    def sockets(self) -> tuple[SimSocket, ...]:
        """One while it listens."""
        return () if self._closed else (SimSocket(self.address),)

    @property
    def has_room(self) -> bool:
        """Whether one more connection may wait to be accepted."""
        return self._waiting < self._backlog_max

    def take(self, stream: SimStream) -> None:
        """The kernel accepts a connection; the process hears of it in its next pass."""
        self._waiting += 1
        self._streams[stream] = None
        self.process.post(self._accept, stream)

    def _accept(self, stream: SimStream) -> None:
        self._waiting -= 1
        if self._closed:
            stream.lose(None)
        elif not stream.is_gone:
            stream.begin(self._factory())

    def drop(self, stream: SimStream) -> None:
        """A connection is gone."""
        self._streams.pop(stream, None)
        self._tell()

    def _tell(self) -> None:
        if self._closed and not self._streams:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                fulfil(waiter, None)

    def is_serving(self) -> bool:
        """Whether it listens."""
        return not self._closed

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop of its process."""
        return self._network.loop

    async def start_serving(self) -> None:
        """Do nothing: it listens from the start."""

    async def serve_forever(self) -> None:
        """Wait until cancelled, then close."""
        try:
            await self._network.loop.create_future()
        finally:
            self.close()

    def close(self) -> None:
        """Stop listening; connections live on. Idempotent."""
        if not self._closed:
            self._closed = True
            self._network.unlisten(self)
            self._tell()

    async def wait_closed(self) -> None:
        """Wait until it is closed and its connections are gone."""
        if not self._closed or self._streams:
            waiter: asyncio.Future[None] = self._network.loop.create_future()
            self._waiters.append(waiter)
            await waiter


class _Dial:
    """An attempt to connect."""

    def __init__(self, stream: SimStream, target: Address, answer: asyncio.Future[None], give_up_at: float) -> None:
        self.stream = stream
        self.target = target
        self.answer = answer
        self.give_up_at = give_up_at
        self.wait_seconds = SYN_SECONDS
        self.accepted = False

    @property
    def is_over(self) -> bool:
        return self.answer.done() or self.stream.is_gone


class SimNetwork:
    """Every host, listener and stream.

    Args:
        loop: Where time passes; its `network` becomes this one.
        random: Latencies, losses, sizes of pieces.
        links: The state of the network; perfect by default.
    """

    def __init__(self, loop: SimLoop, random: Random, links: Links | None = None) -> None:
        self.loop = loop
        self.links = links or Links()
        """Where faults are made."""
        self._random = random
        self._servers: dict[Address, SimServer] = {}
        self._streams: dict[SimStream, SimServer | None] = {}
        self._dials: dict[SimStream, _Dial] = {}
        self._processes: dict[SimProcess, None] = {}
        self._next_port: dict[str, int] = {}
        self.links.on_cut.append(self._cut)
        self.links.on_heal.append(self._healed)
        self.links.on_reset.append(self._reset)
        loop.network = self

    def __repr__(self) -> str:
        return f"<SimNetwork, {len(self._servers)} listeners, {len(self._streams)} ends of streams>"

    # --- Listening ---

    def listen(self, factory: Factory, host: str | None, port: int, *, backlog: int) -> SimServer:
        """Listen on the current process's machine. Raises `OSError`."""
        process = self.loop.current
        if host not in _OWN_NAMES and host != process.host_name:
            raise os_error(errno.EADDRNOTAVAIL)
        address = (process.host_name, port or self._ephemeral_port(process.host_name))
        if address in self._servers:
            raise os_error(errno.EADDRINUSE)
        server = self._servers[address] = SimServer(self, process, factory, address, backlog=backlog)
        self._watch(process)
        return server

    def unlisten(self, server: SimServer) -> None:
        """Free a listener's address."""
        if self._servers.get(server.address) is server:
            del self._servers[server.address]

    def _ephemeral_port(self, host: str) -> int:
        while True:
            port = self._next_port.get(host, EPHEMERAL_PORT_MIN)
            self._next_port[host] = port + 1 if port < PORT_MAX else EPHEMERAL_PORT_MIN
            if (host, port) not in self._servers:
                return port

    # --- Connecting ---

    async def connect(self, factory: Factory, host: str, port: int) -> tuple[SimStream, asyncio.BaseProtocol]:
        """Connect the current process to a host. Raises `OSError`."""
        process = self.loop.current
        target = process.host_name if host in _OWN_NAMES else host
        if target not in self.loop.machines:
            raise socket.gaierror(socket.EAI_NONAME, f"no host {host!r} in this simulation")
        own = (process.host_name, self._ephemeral_port(process.host_name))
        stream = self._stream(process, own, (target, port), server=None)
        answer: asyncio.Future[None] = self.loop.create_future()
        dial = self._dials[stream] = _Dial(stream, (target, port), answer, self.loop.now + RETRANSMIT_SECONDS_MAX)
        self._dial(dial)
        try:
            await answer
            if stream.is_gone:  # between the answer and now
                raise os_error(errno.ECONNRESET)
            protocol = factory()
            stream.begin(protocol)
        except BaseException:
            stream.abort()
            raise
        finally:
            self._dials.pop(stream, None)
        return stream, protocol

    def _dial(self, dial: _Dial) -> None:
        """Send a SYN, and another one when nobody answers."""
        if dial.is_over:
            return
        if self.loop.now >= dial.give_up_at:
            dial.answer.set_exception(os_error(errno.ETIMEDOUT))
            return
        self.loop.push(self._arrival(dial.stream.link), self._syn_arrives, dial)
        self.loop.push(min(self.loop.now + dial.wait_seconds, dial.give_up_at), self._dial, dial)
        dial.wait_seconds *= 2

    def _arrival(self, link: Link) -> float:
        return self.loop.now + link.latency(self._random)

    def _is_lost(self, link: Link) -> bool:
        rate = link.profile.drop_rate
        return link.is_cut or (rate > 0 and self._random.random() < rate)

    def _syn_arrives(self, dial: _Dial) -> None:
        machine = self.loop.machines[dial.target[0]]
        if dial.is_over or self._is_lost(dial.stream.link) or not (machine.alive or not machine.silent):
            return
        back = dial.stream.back
        if not dial.accepted:
            server = self._servers.get(dial.target)
            if server is None:
                self.loop.push(self._arrival(back), self._refused, dial)
                return
            if not server.has_room:
                return
            dial.accepted = True
            own, other = dial.target, dial.stream.get_extra_info("sockname")
            stream = self._stream(server.process, own, other, server=server)
            stream.join(dial.stream)
            server.take(stream)
        when = max(self._arrival(back), dial.stream.peer.arrived_last)
        dial.stream.peer.arrived_last = when  # nothing it sends overtakes the SYN-ACK
        self.loop.push(when, self._syn_ack_arrives, dial)

    def _syn_ack_arrives(self, dial: _Dial) -> None:
        if not dial.is_over and not self._is_lost(dial.stream.back):
            dial.answer.set_result(None)

    def _refused(self, dial: _Dial) -> None:
        if not dial.is_over and not self._is_lost(dial.stream.back):
            dial.answer.set_exception(os_error(errno.ECONNREFUSED))

    # --- Streams ---

    def _stream(self, process: SimProcess, own: Address, other: Address, *, server: SimServer | None) -> SimStream:
        stream = SimStream(
            self.loop,
            self._random,
            process=process,
            link=self.links.link(own[0], other[0]),
            back=self.links.link(other[0], own[0]),
            own=own,
            other=other,
            gone=self._forget,
        )
        self._streams[stream] = server
        self._watch(process)
        return stream

    def _forget(self, stream: SimStream) -> None:
        server = self._streams.pop(stream)
        if server is not None:
            server.drop(stream)
        dial = self._dials.pop(stream, None)
        if dial is not None and stream.process.alive and not dial.answer.done():
            dial.answer.set_exception(os_error(errno.ECONNRESET))

    def _watch(self, process: SimProcess) -> None:
        if process not in self._processes:
            self._processes[process] = None
            process.on_exit.append(self._ended)

    def _ended(self, process: SimProcess) -> None:
        """A process died: its kernel, if there still is one, resets its connections."""
        del self._processes[process]
        for server in [server for server in self._servers.values() if server.process is process]:
            self.unlisten(server)
        for stream in [stream for stream in self._streams if stream.process is process]:
            stream.vanish()

    def _on(self, link: Link) -> list[SimStream]:
        return [stream for stream in self._streams if stream.link is link or stream.back is link]

    def _cut(self, link: Link) -> None:
        for stream in self._on(link):
            stream.path_broken()

    def _healed(self, link: Link) -> None:
        for stream in self._on(link):
            stream.path_healed()

    def _reset(self, one: str, other: str) -> None:
        for stream in list(self._streams):
            if {stream.link.source, stream.link.target} == {one, other}:
                stream.break_off()
