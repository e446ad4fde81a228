"""A peer over TCP: one outlet per lane, each a connection that we dial, keep and only send on.

Connections between members are one-way: who sends dials. A pair of members thus has six, three from each side. That
costs a few sockets and buys simplicity: nobody has to agree who dials, each end alone decides when to try again, and a
network that works in one direction only behaves as Raft's tests of it expect.

While an outlet has no connection its messages are dropped, not queued: Raft repeats what matters, and what would have
waited is stale when the peer comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from random import Random

from pyraftkv.codec import PeerMessage, decode_message
from pyraftkv.errors import FrameError, HandshakeRejected, TransportError
from pyraftkv.futures import fulfil
from pyraftkv.protocol import Hello
from pyraftkv.transport.base import Handler
from pyraftkv.transport.connection import Wire
from pyraftkv.transport.departures import is_refusal
from pyraftkv.transport.framing import HEADER_BYTES, Frame, frame_header
from pyraftkv.transport.lanes import Lane
from pyraftkv.transport.limits import Limits

_LOG = logging.getLogger("pyraftkv.transport")


class Outlet:
    """One lane to one peer: dials, dials again, and sends while connected.

    Invariant: `_wire` is set exactly while the HELLOs of a living connection were exchanged.

    Args:
        lane: Which lane; names it in logs and gives its bound.
        dial: Connects; returns the wire (held), our HELLO and theirs.
        stands: Told when messages can leave, before any does.
        lost: Told when the connection broke, and whether this end did it.
        unanswered: Told when nobody listens there.
        refused: Told when one end refused the other.
        limits: The bounds.
        rng: Jitter.
    """

    def __init__(
        self,
        lane: Lane,
        *,
        dial: Callable[[], Awaitable[tuple[Wire, Hello, Hello]]],
        stands: Callable[[], None],
        lost: Callable[[bool], None],
        unanswered: Callable[[], None],
        refused: Callable[[HandshakeRejected], None],
        limits: Limits,
        rng: Random,
    ) -> None:
        self._lane = lane
        self._dial = dial
        self._on_stands = stands
        self._on_lost = lost
        self._on_unanswered = unanswered
        self._on_refused = refused
        self._limits = limits
        self._rng = rng
        self._queue_bytes_max = limits.lane_queue_bytes_max[lane]
        self._wire: Wire | None = None
        self._sender_boot = 0
        self._receiver_boot = 0
        self._chunks: list[bytes] = []
        self._chunks_bytes = 0
        self._broken: asyncio.Future[None] | None = None
        self._hurry = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"pyraftkv {lane.name.lower()} lane")

    @property
    def is_open(self) -> bool:
        """Whether messages can leave now."""
        return self._wire is not None

    # --- Sending ---

    def put(self, kind: int, payload: bytes) -> bool:
        """Take a message for the next `flush`; False if it must be dropped. O(1) but for the CRC."""
        if self._wire is None:
            return False
        size = HEADER_BYTES + len(payload)
        if self._wire.queued_bytes + self._chunks_bytes + size > self._queue_bytes_max:
            return False
        if len(payload) > self._limits.peer_frame_bytes_max:
            _LOG.error("a message of %d bytes is over the bound of a frame, and was dropped", len(payload))
            return False
        header = frame_header(kind, payload, sender_boot=self._sender_boot, receiver_boot=self._receiver_boot)
        self._chunks += (header, payload)
        self._chunks_bytes += size
        return True

    def flush(self) -> None:
        """Send what was taken, as one write (and, as a role's: nothing arrives here that could be flushed)."""
        chunks, self._chunks, self._chunks_bytes = self._chunks, [], 0
        if chunks and self._wire is not None:
            self._wire.write(chunks)

    # --- Dialling ---

    def hurry(self) -> None:
        """The peer has just said HELLO, so it is there: dial it now, whatever wait is under way."""
        self._hurry.set()

    async def _run(self) -> None:
        delay_seconds = self._limits.backoff_seconds_min
        while True:
            self._hurry.clear()
            try:
                wire, own, other = await self._dial()
            except HandshakeRejected as rejection:
                self._on_refused(rejection)
            except (OSError, TimeoutError, TransportError) as error:
                _LOG.debug("%s lane: cannot connect: %s", self._lane.name, error)
                if isinstance(error, OSError) and is_refusal(error):
                    self._on_unanswered()
            else:
                delay_seconds = self._limits.backoff_seconds_min
                await self._use(wire, own, other)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_seconds * (0.5 + self._rng.random() / 2)):
                    await self._hurry.wait()
            delay_seconds = min(2 * delay_seconds, self._limits.backoff_seconds_max)

    async def _use(self, wire: Wire, own: Hello, other: Hello) -> None:
        """Send on this wire until it is lost."""
        if wire.is_lost:
            return
        self._broken = asyncio.get_running_loop().create_future()
        wire.role = self
        self._sender_boot, self._receiver_boot = own.boot_count, other.boot_count
        self._wire = wire
        self._on_stands()
        wire.release()
        try:
            await self._broken
        finally:
            wire.abort()

    def close(self) -> asyncio.Task[None]:
        """Drop the connection and stop dialling; the task that is returned ends when that is done."""
        self._task.cancel()
        return self._task

    # --- The wire's role ---

    def frame(self, frame: Frame) -> None:
        raise FrameError(f"a frame of kind {frame.kind:#x} against the direction of a lane")

    def lost(self, error: Exception | None) -> None:
        _LOG.debug("%s lane: the connection broke: %s", self._lane.name, error)
        assert self._wire is not None, "a wire is lost once"
        is_ours = self._wire.is_ours_to_end
        self._wire = None
        self._chunks, self._chunks_bytes = [], 0
        if self._broken is not None:
            fulfil(self._broken, None)
        self._on_lost(is_ours)


class PeerInbox:
    """The role of a wire on which a member sends to us.

    Args:
        own: Our HELLO on this connection.
        peer: The member's.
        handler: Who takes the messages.
        lost: Told when the wire is.
    """

    def __init__(self, own: Hello, peer: Hello, handler: Handler, *, lost: Callable[[], None] | None = None) -> None:
        self.peer = peer
        self._on_lost = lost
        self._own = own
        self._handler = handler
        self._messages: list[PeerMessage] = []

    def frame(self, frame: Frame) -> None:
        """Decode one message. Raises `FrameError`."""
        # What was sent to, or by, an earlier life may have been overtaken by a crash: it must not be acted on.
        if frame.receiver_boot != self._own.boot_count or frame.sender_boot != self.peer.boot_count:
            return
        message = decode_message(frame.kind, frame.payload)
        if message.sender != self.peer.member_id:
            raise FrameError(f"member {self.peer.member_id} speaks as member {message.sender}")
        if message.to == self._own.member_id:
            self._messages.append(message)

    def flush(self) -> None:
        """Hand over what arrived together, by swap: the handler may be called again before it returns."""
        if self._messages:
            messages, self._messages = self._messages, []
            self._handler.receive(messages)

    def lost(self, error: Exception | None) -> None:  # noqa: ARG002  (a `Role`'s)
        if self._on_lost is not None:
            self._on_lost()
