"""`SimStream`: one end of a simulated TCP connection, as the asyncio transport that a protocol holds.

.. code-block:: text

    write ─► buffer ─► in flight ─► inbox ─► data_received
             (ours)    (the link)   (the other kernel's)

Bytes leave the buffer while those in flight and unread together fit the receiver's window, so a reader that does not
read fills the writer's buffer, as it does over a real network. A piece takes the link's latency and never overtakes
another. What arrives over a link that is cut is held and comes after it heals.

An end that is *gone* (closed, aborted, its process killed) answers what still arrives with a reset, if there is a
machine to answer. A path broken in either direction for `RETRANSMIT_SECONDS_MAX` is given up by both ends, each on its
own: TCP's user timeout and keep-alive, which the product sets, do the same.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from pyraftkv.sim.links import Link
from pyraftkv.sim.loop import Event, SimLoop
from pyraftkv.sim.process import SimProcess

RETRANSMIT_SECONDS_MAX = 15.0
"""How long a connection outlives its path."""

RETRANSMIT_SECONDS = 0.2
"""How late a lost piece arrives: doubled when it is lost again."""

WINDOW_BYTES_MAX = 256 << 10
"""Bytes of one direction in flight and unread."""

PIECE_BYTES_MAX = 64 << 10
"""Bytes that travel together."""

SPLIT_RATE = 0.05
"""How many writes are torn at a random place, though they would fit one piece."""

LINK_QUEUE_SECONDS_MAX = 0.25
"""How far ahead a link of limited bandwidth takes bytes from the buffers."""

HIGH_WATER_BYTES = 64 << 10
"""asyncio's mark above which a protocol is asked to pause."""

Address = tuple[str, int]

_FIN, _RST = object(), object()


def os_error(number: int) -> OSError:
    """Make the exception that the system raises with that number: the subclass Python gives it, with its words."""
    return OSError(number, os.strerror(number))


class SimStream(asyncio.Transport):
    """One end of a connection.

    Args:
        loop: Where time passes.
        random: Latencies, losses, sizes of pieces.
        process: Whose end it is.
        link: The way to the other end.
        back: The way from there.
        own: This end's address.
        other: The other end's.
        gone: Called once, when this end will not send or take anything any more.

    Invariants: bytes arrive in the order they were written; `connection_lost` is called once, last, in the process.
    """

    def __init__(  # pyright: ignore[reportMissingSuperCall] - it would copy the extra information
        self,
        loop: SimLoop,
        random: Random,
        *,
        process: SimProcess,
        link: Link,
        back: Link,
        own: Address,
        other: Address,
        gone: Callable[[SimStream], object],
    ) -> None:
        self.process = process
        self.link = link
        self.back = back
        self.peer: SimStream = self
        """The other end, from `join` on."""
        self.is_gone = False
        self.arrived_last = 0.0
        """When the latest piece from here reaches the other end."""
        self._loop = loop
        self._rng = random
        self._addresses = {"sockname": own, "peername": other}
        self._on_gone = gone
        self._protocol: asyncio.Protocol | asyncio.BufferedProtocol | None = None
        self._closing = False
        self._given_up: Event | None = None
        # Out
        self._buffer = bytearray()
        self._in_flight = 0
        self._eof_written = False
        self._fin_sent = False
        self._writing_paused = False
        self._high, self._low = HIGH_WATER_BYTES, HIGH_WATER_BYTES // 4
        self._pump_waits = False
        # In
        self._held: deque[Any] = deque()
        self._inbox: list[bytes] = []
        self._eof_arrived = False
        self._reading = True
        self._delivery_posted = False

    def __repr__(self) -> str:
        state = "gone" if self.is_gone else "closing" if self._closing else f"{self._in_flight} bytes in flight"
        return f"<SimStream {self.link.source} -> {self.link.target}, {state}>"

    def join(self, peer: SimStream) -> None:
        """Make two ends one connection."""
        self.peer, peer.peer = peer, self

    def begin(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand the connection to its protocol, in the process."""
        self.set_protocol(protocol)
        protocol.connection_made(self)
        self._post_delivery()

    # --- asyncio's transport: reading and the rest ---

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """``sockname`` and ``peername``, as (host, port); there is no socket."""
        return self._addresses.get(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Let another protocol go on."""
        assert isinstance(protocol, asyncio.Protocol | asyncio.BufferedProtocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who takes the bytes."""
        assert self._protocol is not None, "a stream is handed out with a protocol"
        return self._protocol

    def is_closing(self) -> bool:
        """Whether it was closed, by whom ever."""
        return self._closing

    def is_reading(self) -> bool:
        """Whether bytes are delivered."""
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        """Leave what arrives in the inbox. Idempotent."""
        self._reading = False

    def resume_reading(self) -> None:
        """Deliver again, from the next pass on. Idempotent."""
        if not self._reading:
            self._reading = True
            self._post_delivery()

    # --- asyncio's transport: writing ---

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes. Never blocks; nothing happens once it is closing."""
        assert not self._eof_written, "nothing is written after write_eof"
        size = len(data)
        if self._closing or not size:
            return
        fits = size <= PIECE_BYTES_MAX and self._in_flight + size <= WINDOW_BYTES_MAX
        if fits and not self._buffer and not self.link.profile.bandwidth_bytes:
            self._send(bytes(data))
            return
        self._buffer += data
        self._pump()
        if len(self._buffer) > self._high and not self._writing_paused:
            self._writing_paused = True
            self.get_protocol().pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        """Send chunks as one."""
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        """Whether one direction can be closed alone: yes."""
        return True

    def write_eof(self) -> None:
        """Close this direction once everything written was sent. Idempotent."""
        if not self._closing and not self._eof_written:
            self._eof_written = True
            self._pump()

    def get_write_buffer_size(self) -> int:
        """Bytes that the network has not taken yet."""
        return len(self._buffer)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The marks, low and high, in bytes."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks at which the protocol is asked to pause and to go on, in bytes; asyncio's defaults."""
        if high is None:
            high = HIGH_WATER_BYTES if low is None else 4 * low
        if low is None:
            low = high // 4
        if not 0 <= low <= high:
            raise ValueError(f"high ({high}) must be at least low ({low}), and low at least 0")
        self._high, self._low = high, low

    def close(self) -> None:
        """Close once everything written was sent. Idempotent."""
        if not self._closing:
            self._closing = True
            self._pump()

    def abort(self) -> None:
        """Close now, and reset the other end. Idempotent."""
        self.lose(None)

    # --- Sending ---

    def _pump(self, _: object = None) -> None:
        """Move bytes from the buffer to the network while there is room, then what comes after them."""
        self._pump_waits = False
        while self._buffer and not self.is_gone:
            room = min(WINDOW_BYTES_MAX - self._in_flight, PIECE_BYTES_MAX)
            if room <= 0:
                return  # the reader makes room: `_acknowledged`
            if bandwidth := self.link.profile.bandwidth_bytes:
                if self.link.busy_until > self._loop.now + LINK_QUEUE_SECONDS_MAX:
                    self._pump_later(LINK_QUEUE_SECONDS_MAX / 2)
                    return
                room = min(room, max(1, int(bandwidth * LINK_QUEUE_SECONDS_MAX)))
            piece = bytes(self._buffer[:room])
            del self._buffer[:room]
            self._send(piece)
        if self.is_gone:
            return
        if (self._eof_written or self._closing) and not self._fin_sent:
            self._fin_sent = True
            # A kernel that is told to close with bytes unread resets the connection.
            self._travel(_RST if self._closing and self._inbox else _FIN)
        if self._closing:
            self._end(None)

    def _pump_later(self, seconds: float) -> None:
        if not self._pump_waits:
            self._pump_waits = True
            self._loop.push(self._loop.now + seconds, self._pump_by_world, None)

    def _pump_by_world(self, _: object) -> None:
        """Pump when the network has room again, and tell the protocol."""
        self._pump()
        if self._writing_paused and not self.is_gone and len(self._buffer) <= self._low:
            self._writing_paused = False
            self.process.post(self.get_protocol().resume_writing)

    def _send(self, data: bytes) -> None:
        self._in_flight += len(data)
        if len(data) > 1 and self._rng.random() < SPLIT_RATE:
            place = 1 + int(self._rng.random() * (len(data) - 1))
            self._travel(data[:place])
            data = data[place:]
        self._travel(data)

    def _travel(self, piece: Any) -> None:
        """Let bytes, a FIN or a RST arrive at the other end, behind everything sent before."""
        loop, link, random = self._loop, self.link, self._rng.random
        profile = link.profile
        low, high = profile.latency_seconds
        when = loop.now + low + (high - low) * random()
        if profile.bandwidth_bytes and piece.__class__ is bytes:
            link.busy_until = max(loop.now, link.busy_until) + len(piece) / profile.bandwidth_bytes
            when += link.busy_until - loop.now
        if profile.drop_rate:
            wait = RETRANSMIT_SECONDS
            while wait < RETRANSMIT_SECONDS_MAX and random() < profile.drop_rate:
                when += wait
                wait *= 2
        if profile.corrupt_rate and piece.__class__ is bytes and random() < profile.corrupt_rate:
            piece = _corrupted(piece, self._rng)
        when = max(when, self.arrived_last)
        self.arrived_last = when
        loop.push(when, self.peer._arrive, piece)

    # --- Receiving ---

    def _arrive(self, piece: Any) -> None:
        """The link carried something to this end."""
        if self.is_gone:
            if piece.__class__ is bytes and not self.back.is_cut:
                self._answer_reset()
            return
        if self.back.is_cut or self._held:
            self._held.append(piece)  # it is sent again until it comes through; a RST, when its end is asked again
            return
        if piece is _RST:
            self._end(os_error(errno.ECONNRESET))
            return
        if piece is _FIN:
            self._eof_arrived = True
        else:
            self._inbox.append(piece)
        if not self._delivery_posted and self._protocol is not None:
            self._delivery_posted = True
            self.process.post(self._deliver)

    def _post_delivery(self) -> None:
        if self._protocol is None or self._delivery_posted or not (self._inbox or self._eof_arrived):
            return
        self._delivery_posted = True
        self.process.post(self._deliver)

    def _deliver(self) -> None:
        """Hand what arrived to the protocol, all in one piece, in the process."""
        self._delivery_posted = False
        protocol = self._protocol
        if not self._reading or self._closing or protocol is None:
            return
        inbox = self._inbox
        try:
            if inbox:
                data = inbox[0] if len(inbox) == 1 else b"".join(inbox)
                self._inbox = []
                self.peer._acknowledged(len(data))
                if isinstance(protocol, asyncio.Protocol):
                    protocol.data_received(data)
                else:
                    self._fill(protocol, memoryview(data))
            if self._eof_arrived and self._reading and not self._closing and not self._inbox:
                self._eof_arrived = False
                if not protocol.eof_received():
                    self.close()
        except Exception as error:  # noqa: BLE001 - asyncio's transports do the same with a protocol that fails
            self._loop.call_exception_handler(
                {"message": "a protocol failed", "exception": error, "transport": self, "protocol": protocol}
            )
            self.lose(error)

    def _fill(self, protocol: asyncio.BufferedProtocol, data: memoryview) -> None:
        """Write what arrived into the protocol's own buffer, as much at a time as it holds."""
        size = len(data)
        while size:
            if not self._reading or self._closing:
                self._inbox.insert(0, bytes(data))
                return
            buffer = memoryview(protocol.get_buffer(size))
            count = min(len(buffer), size)
            buffer[:count] = data[:count]
            protocol.buffer_updated(count)
            size -= count
            data = data[count:]

    def _acknowledged(self, size: int) -> None:
        """The other end's protocol took bytes: there is room in its window."""
        self._in_flight -= size
        if self._buffer:
            self._pump_later(self.back.latency(self._rng))

    # --- The end ---

    def lose(self, error: Exception | None) -> None:
        """End it at once for a reason of our own: the other end is reset, if the link carries it there."""
        if not self.is_gone:
            self._travel(_RST)
            self._end(error)

    def break_off(self) -> None:
        """The connection is reset from outside."""
        self._end(os_error(errno.ECONNRESET))

    def vanish(self) -> None:
        """The process is dead: nobody is told, except through the other end's kernel."""
        if not self.is_gone:
            if not self.process.silent:
                self._travel(_RST)
            self._forget()
            self.peer.path_broken()

    def _end(self, error: Exception | None) -> None:
        if not self.is_gone:
            self._forget()
            self.process.post(self._lost, error)

    def _forget(self) -> None:
        self.is_gone = self._closing = True
        self._buffer.clear()
        self._inbox.clear()
        self._held.clear()
        self._stop_giving_up()
        self._on_gone(self)

    def _lost(self, error: Exception | None) -> None:
        if self._protocol is not None:
            self._protocol.connection_lost(error)

    def _answer_reset(self) -> None:
        """A kernel that knows no such connection says so."""
        machine = self._loop.machines[self.link.source]
        if machine.alive or not machine.silent:
            self._travel(_RST)

    # --- The path ---

    def path_broken(self) -> None:
        """The way there or back is cut, or nobody is left there: give up after a while."""
        if self._given_up is None and not self.is_gone:
            patience = RETRANSMIT_SECONDS_MAX * (0.9 + 0.2 * self._rng.random())
            self._given_up = self._loop.at(self._loop.now + patience, self._give_up)

    def path_healed(self) -> None:
        """A cut on the way was healed; what was held comes with the next retransmission."""
        if self.is_gone or self.link.is_cut or self.back.is_cut:
            return
        when = self._loop.now + RETRANSMIT_SECONDS * self._rng.random()
        if not self.peer.is_gone:
            self._stop_giving_up()
        self._loop.push(when, self._release, None)

    def _release(self, _: object) -> None:
        if not self.back.is_cut:
            held, self._held = self._held, deque()
            for piece in held:
                self._arrive(piece)

    def _give_up(self) -> None:
        self._given_up = None
        self._travel(_RST)
        self._end(os_error(errno.ETIMEDOUT))

    def _stop_giving_up(self) -> None:
        if self._given_up is not None:
            self._given_up.cancel()
            self._given_up = None


def _corrupted(piece: bytes, random: Random) -> bytes:
    """Return the bytes with one bit flipped."""
    bit = int(random.random() * 8 * len(piece))
    damaged = bytearray(piece)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)
