"""One TCP connection: `Wire` turns asyncio's callbacks into frames and hands them to the role it plays.

.. code-block:: text

               accepted ──► Greeting ──► PeerInbox          messages of a member, in
    Wire ──┤                        └──► FramedConnection   a client's calls
               dialled ──► Introduction ─► PeerOutlet       messages to a member, out
                                        └► FramedConnection replies to our calls

A wire begins in a handshake role and is handed to its lasting one when the HELLOs were exchanged. Between the two it
is held: nothing is read or delivered, so that no frame can fall into the gap.

Everything is written at once (`transport.write`), so the queue of a wire is asyncio's write buffer, which the roles
bound by looking at it before they add to it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast

from pyraftkv.errors import FrameError
from pyraftkv.futures import shared
from pyraftkv.protocol import Hello
from pyraftkv.transport.framing import HELLO_BYTES_MAX, KIND_CLIENT, Frame, FrameDecoder, frame_header
from pyraftkv.transport.limits import Limits

_KEEPALIVE: tuple[tuple[str, int], ...] = (
    ("TCP_KEEPIDLE", 5),
    ("TCP_KEEPINTVL", 2),
    ("TCP_KEEPCNT", 3),
    ("TCP_USER_TIMEOUT", 10_000),
)
"""A peer that vanished without a word is noticed after about ten seconds: seconds, seconds, probes, milliseconds."""


class Role(Protocol):
    """What a wire is used for."""

    def frame(self, frame: Frame) -> None:
        """One frame arrived. Raises `FrameError` to close the connection."""
        ...

    def flush(self) -> None:
        """Every frame that arrived together was handed over."""
        ...

    def lost(self, error: Exception | None) -> None:
        """The connection is gone; called once, and last."""
        ...


RECEIVE_BYTES = 64 * 1024
"""Bytes taken from the socket at a time, into a buffer of the wire's own.

A plain `asyncio.Protocol` gets a new buffer of 256 KiB for every read, which the allocator takes from the system and
gives back: a lone put costs a sixth more CPU so.
"""


class Wire(asyncio.BufferedProtocol):
    """A connection that carries frames.

    Args:
        role: Who takes the frames, to begin with.
        connected: Called when the connection stands (under TLS: when its handshake is over).
        lost: Called when the connection is gone, after the role was told.
    """

    def __init__(
        self,
        role: Role,
        *,
        connected: Callable[[Wire], None],
        lost: Callable[[Wire], None] | None = None,
    ) -> None:
        self.role = role
        self.decoder = FrameDecoder(payload_bytes_max=HELLO_BYTES_MAX)
        self._received = memoryview(bytearray(RECEIVE_BYTES))
        self.is_lost = False
        self.is_ours_to_end = False
        """Whether it ends, or has ended, because this end closed it."""
        self.error: Exception | None = None
        self._on_connected = connected
        self._on_lost = lost
        self._transport: asyncio.Transport | None = None
        self._held = False
        self._swept_frames = 0
        self._frames = 0
        self._writable: asyncio.Future[None] | None = None

    # --- asyncio's callbacks ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        _tune(transport.get_extra_info("socket"))
        self._on_connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  (asyncio's name for what a loop would like)
        return self._received

    def buffer_updated(self, nbytes: int) -> None:
        self.decoder.feed(bytes(self._received[:nbytes]))
        self._deliver()

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.error = self.error or exc
        self.resume_writing()
        self.role.lost(self.error)
        if self._on_lost is not None:
            self._on_lost(self)

    # --- For the roles ---

    def _deliver(self) -> None:
        """Hand the frames that are complete to the role; garbage closes this connection and nothing else."""
        transport, next_frame = self._transport, self.decoder.next_frame
        assert transport is not None, "bytes come from a transport"
        try:
            while not self._held and not transport.is_closing() and (frame := next_frame()) is not None:
                self._frames += 1
                self.role.frame(frame)
            self.role.flush()
        except FrameError as error:
            self.abort(error)

    @property
    def _closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def hold(self) -> None:
        """Read and deliver nothing until `release`."""
        self._held = True
        if self._transport is not None and not self.is_lost:
            self._transport.pause_reading()

    def release(self) -> None:
        """Deliver what arrived meanwhile, and go on reading."""
        self._held = False
        if self.is_lost or self._closing:
            return
        self._deliver()
        if self._transport is not None and not self._closing:
            self._transport.resume_reading()

    def write(self, chunks: Iterable[bytes]) -> None:
        """Send chunks as one piece: one system call when the socket has room."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(chunks))

    def write_frame(self, kind: int, payload: bytes) -> None:
        self.write((frame_header(kind, payload), payload))

    @property
    def queued_bytes(self) -> int:
        return 0 if self._transport is None or self.is_lost else self._transport.get_write_buffer_size()

    async def drain(self) -> None:
        """Wait until the write buffer is below its low mark; at once when the connection is gone."""
        while self._writable is not None and not self.is_lost:
            await shared(self._writable)

    @property
    def ssl_object(self) -> Any:
        """The connection's `ssl.SSLObject`; None in plain text."""
        return None if self._transport is None else self._transport.get_extra_info("ssl_object")

    def is_stalled(self) -> bool:
        """Whether a frame has begun and none was completed since the last call: to be asked at long intervals."""
        stalled = self.decoder.pending_bytes > 0 and not self._held and self._frames == self._swept_frames
        # A frame that began since the last sweep gets until the next one.
        self._swept_frames = self._frames if self.decoder.pending_bytes else -1
        return stalled

    def close(self) -> None:
        """Close once everything queued was sent."""
        self.is_ours_to_end = self.is_ours_to_end or not self.is_lost
        if self._transport is not None:
            self._transport.close()

    def abort(self, error: Exception | None = None) -> None:
        """Close now; ``error`` is what the role hears of it."""
        self.error = self.error or error
        self.is_ours_to_end = self.is_ours_to_end or not self.is_lost
        if self._transport is not None:
            self._transport.abort()


def _tune(sock: Any) -> None:
    """Notice peers that vanished (loops set TCP_NODELAY by themselves). A loop without real sockets gives none."""
    if sock is None or not hasattr(sock, "setsockopt"):
        return
    if getattr(sock, "family", None) not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


class FramedConnection:
    """The `Connection` between a client and a member, over a wire whose HELLOs were exchanged.

    What is sent in one pass of the loop leaves in one piece, in the next: a client with 256 calls under way costs one
    system call per pass and direction, not 256.

    Args:
        wire: Held; `open` releases it.
        peer: The other end's HELLO.
        limits: The bounds.
    """

    def __init__(self, wire: Wire, peer: Hello, limits: Limits) -> None:
        self._wire = wire
        self._peer = peer
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._received: Callable[[bytes], None] | None = None
        self._closed: Callable[[Exception | None], None] | None = None
        wire.role = self
        wire.decoder.payload_bytes_max = limits.client_frame_bytes_max

    def __repr__(self) -> str:
        state = "lost" if self._wire.is_lost else f"{self.queued_bytes} bytes queued"
        return f"<FramedConnection to {self._peer.name or 'a client'}, {state}>"

    @property
    def peer(self) -> Hello:
        """The other end's HELLO."""
        return self._peer

    @property
    def queued_bytes(self) -> int:
        """Bytes that have not left yet."""
        return self._wire.queued_bytes + self._gathered_bytes

    def send(self, frame: bytes) -> None:
        """Queue a frame; a connection whose queue is full is closed as too slow. Never blocks."""
        if self.queued_bytes + len(frame) > self._limits.connection_queue_bytes_max:
            self._wire.abort(ConnectionAbortedError("the other end reads too slowly"))
            return
        assert len(frame) <= self._limits.client_frame_bytes_max, "a frame over the bound must not be made"
        if not self._gathered:
            self._loop.call_soon(self._flush)
        header = frame_header(KIND_CLIENT, frame)
        self._gathered += (header, frame)
        self._gathered_bytes += len(header) + len(frame)

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, []
        self._gathered_bytes = 0
        if gathered:
            self._wire.write(gathered)

    async def drain(self) -> None:
        """Wait until the queue has room again. Returns at once on a closed connection."""
        if self._gathered:
            self._flush()
        await self._wire.drain()

    def open(self, *, received: Callable[[bytes], None], closed: Callable[[Exception | None], None]) -> None:
        """Start delivery, from the loop's next pass on: `received` per frame, then `closed` exactly once."""
        assert self._received is None, "a connection is opened once"
        self._received, self._closed = received, closed
        if self._wire.is_lost:
            self._loop.call_soon(closed, self._wire.error)
        else:
            self._loop.call_soon(self._wire.release)

    def close(self) -> None:
        """Close once everything queued was sent."""
        self._flush()
        self._wire.close()

    # --- The wire's role ---

    def frame(self, frame: Frame) -> None:
        if frame.kind != KIND_CLIENT:
            raise FrameError(f"a frame of kind {frame.kind:#x} on a client connection")
        assert self._received is not None
        self._received(frame.payload)

    def flush(self) -> None:
        pass

    def lost(self, error: Exception | None) -> None:
        if self._closed is not None:
            self._closed(error)
