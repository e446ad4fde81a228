"""Snapshots: taken of this member's state, sent to followers that are too far behind, received from a leader.

Taking one pins a revision and walks it in slices while entries go on applying. Sending is a conversation on the bulk
lane, driven by the receiver:

.. code-block:: text

    leader                                   follower
      InstallSnapshot(meta)   ────────────►    opens a temporary file (or finds the one it had begun)
                              ◄────────────  SnapshotAck(next_number=0)
      SnapshotChunk(0) (1) .. ────────────►    writes each, in order
                              ◄────────────  SnapshotAck(next_number=n)     ... up to the window beyond it
      SnapshotChunk(last)     ────────────►    verifies, syncs, renames; then steps InstallSnapshot into its core
                              ◄────────────  SnapshotAck(next_number=end), and an AppendResponse from the core

A lost message stops the conversation; after `retry_seconds` without an acknowledgement the leader begins it again with
`InstallSnapshot`, and the follower answers with the first chunk that it does not have. Without progress for
`snapshot_stall_seconds` it is given up. All that a member streams, to whomever, is bounded by
`snapshot_bytes_per_second_max`; waiting for that is no lack of progress.

A conversation can only be continued with the member that began it, and no member writes two snapshots at one index.
Two snapshots at the same index say the same, but in other bytes (pages are filled and compacted by each member in its
own time): half of one and half of another is neither.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import cast

from pyraftkv import errors
from pyraftkv.codec import PeerMessage
from pyraftkv.core import Input, InstallSnapshot, SnapshotMeta, SnapshotSent, SnapshotTaken
from pyraftkv.log.base import SnapshotSink, Storage
from pyraftkv.log.snapshot import CHUNK_BYTES_MAX
from pyraftkv.node.config import NodeConfig
from pyraftkv.node.pace import TokenBucket
from pyraftkv.protocol import SnapshotAck, SnapshotChunk
from pyraftkv.replica import ReplicaSnapshot

logger = logging.getLogger("pyraftkv.node")

RECEIVED_MAX = 64
"""Messages of a snapshot conversation waiting to be written."""

ACKS_MAX = 64
"""Acknowledgements of one follower waiting to be looked at."""

SNAPSHOT_BURST_BYTES = CHUNK_BYTES_MAX
"""Where the rate of snapshots is bounded, what may leave at once after a silence."""

RETRY_SECONDS = 10.0
"""After a snapshot that could not be written none is due for this long: the disk is full, or what failed is our bug."""

GIVE_UP = -1
"""Instead of the next chunk's number: the follower wants no more of this snapshot."""


class SnapshotTaker:
    """Writes a snapshot of the replica when the log has grown enough; one at a time.

    Args:
        taken: Is told of each, and its size.
        last_size_bytes: Of the one that this member started from. If that counted for nothing, a start would write a
            big snapshot anew in the midst of everybody's starting.
    """

    def __init__(
        self,
        storage: Storage,
        config: NodeConfig,
        *,
        taken: Callable[[SnapshotTaken, int], None],
        last_size_bytes: int = 0,
    ) -> None:
        self._storage = storage
        self._config = config
        self._taken = taken
        self._last_size_bytes = last_size_bytes
        self._retry_at = 0.0
        self._task: asyncio.Task[Exception | None] | None = None

    def is_due(self, applied_index: int) -> bool:
        """Whether the log since the last snapshot is worth a new one, and none is being written or has just failed.

        Two snapshots are kept, and the log back to the older one: a follower that is behind no further needs none. So
        what bounds the log between two snapshots bounds, twice, what is kept for slow followers.

        Args:
            applied_index: How far the replica has come, which is what a snapshot would hold.
        """
        if self._task is not None or asyncio.get_running_loop().time() < self._retry_at:
            return False
        if applied_index - self._storage.snapshot_index > self._config.snapshot_entries_max:
            return True
        return self._storage.log_bytes > max(self._config.snapshot_log_bytes_min, self._last_size_bytes // 2)

    @property
    def is_running(self) -> bool:
        return self._task is not None

    def start(self, snapshot: ReplicaSnapshot) -> None:
        """Begin writing ``snapshot``, which is closed at the end; nothing if there is one at its index already.

        (Another one at the same index says the same in other bytes, and a follower may have half of the first.)
        """
        assert self._task is None
        if snapshot.index <= self._storage.snapshot_index:
            snapshot.close()
            return
        self._task = asyncio.get_running_loop().create_task(self._write(snapshot), name="pyraftkv-snapshot")

    async def wait(self) -> None:
        """Wait for the snapshot under way, if any. Raises what kept it from being written: `StorageError`, `Closed`."""
        task = self._task
        if task is None:
            return
        await asyncio.wait([task])
        if task.cancelled():
            raise errors.Closed("the node stopped before the snapshot was written")
        error = task.result()
        if error is not None:
            raise error

    async def close(self) -> None:
        """Give up the snapshot under way, if any."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _write(self, snapshot: ReplicaSnapshot) -> Exception | None:
        """Write a snapshot, or return why not: whatever it is, the member goes on without."""
        meta = SnapshotMeta(snapshot.index, snapshot.term, snapshot.membership)
        try:
            self._last_size_bytes = await self._stream(meta, snapshot)
        except Exception as error:
            self._retry_at = asyncio.get_running_loop().time() + RETRY_SECONDS
            logger.exception("the snapshot at index %d was given up", meta.index)
            return error
        else:
            self._taken(SnapshotTaken(meta, self._storage.first_index), self._last_size_bytes)
            return None
        finally:
            self._task = None
            snapshot.close()

    async def _stream(self, meta: SnapshotMeta, snapshot: ReplicaSnapshot) -> int:
        """Bring the snapshot to the storage, a chunk at a time; return its size in bytes."""
        sink = self._storage.create_snapshot(meta)
        size = 0
        try:
            for chunk in snapshot.chunks():
                size += len(chunk)
                await sink.write(chunk)
                await asyncio.sleep(0)
            await sink.commit()
        finally:
            await sink.abort()
        return size


class _Talk:
    """How far a conversation has come, over all its tries."""

    __slots__ = ("acked", "advanced_at")

    def __init__(self, *, acked: int, advanced_at: float) -> None:
        self.acked = acked
        self.advanced_at = advanced_at


class SnapshotSender:
    """Streams the newest snapshot to the followers that need it; one conversation per follower."""

    def __init__(
        self,
        storage: Storage,
        config: NodeConfig,
        *,
        send: Callable[[list[PeerMessage]], None],
        feed: Callable[[Input], None],
        is_sound: Callable[[], bool],
        is_witness: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self._storage = storage
        self._config = config
        self._send = send
        self._feed = feed
        self._is_sound = is_sound
        self._is_witness = is_witness
        self._pace = TokenBucket(
            bytes_per_second=config.snapshot_bytes_per_second_max, burst_bytes=SNAPSHOT_BURST_BYTES
        )
        self._acks: dict[int, asyncio.Queue[SnapshotAck]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        """Every conversation that has not ended, given up or not."""

    def start(self, message: InstallSnapshot) -> None:
        """Begin a conversation with ``message.to``; one under way with it is given up.

        A member whose state is wrong has nothing to send: its snapshots may be of the wrong state.
        """
        self.stop(message.to)
        if not self._is_sound():
            self._feed(SnapshotSent(message.to, ok=False))
            return
        acks = self._acks[message.to] = asyncio.Queue(ACKS_MAX)
        talk = self._converse(message, acks)
        task = asyncio.get_running_loop().create_task(talk, name=f"pyraftkv-send-{message.to}")
        self._tasks[message.to] = task
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def acknowledged(self, ack: SnapshotAck) -> None:
        """Take a follower's acknowledgement; over `ACKS_MAX` it is lost, like any message may be."""
        queue = self._acks.get(ack.sender)
        if queue is not None and not queue.full():
            queue.put_nowait(ack)

    def stop(self, peer: int) -> None:
        """Give up the conversation with ``peer``, if any."""
        task = self._tasks.pop(peer, None)
        if task is not None:
            task.cancel()
        self._acks.pop(peer, None)

    def stop_all(self) -> None:
        """Give up every conversation: this member no longer leads."""
        for peer in list(self._tasks):
            self.stop(peer)

    async def close(self) -> None:
        """Give up every conversation, and wait until all have ended."""
        self.stop_all()
        if self._ending:
            await asyncio.wait(self._ending)

    async def _converse(self, message: InstallSnapshot, acks: asyncio.Queue[SnapshotAck]) -> None:
        """Stream until the follower has everything, wants no more, or makes no progress for too long."""
        loop = asyncio.get_running_loop()
        peer = message.to
        talk = _Talk(acked=-1, advanced_at=loop.time())
        ok = False
        try:
            while True:
                try:
                    ok = await self._stream(message, acks, talk)
                    break
                except TimeoutError:
                    if loop.time() - talk.advanced_at >= self._config.snapshot_stall_seconds:
                        logger.warning("the snapshot for member %d was given up: no acknowledgement", peer)
                        break
        except errors.StorageError as error:
            logger.warning("the snapshot for member %d was given up: %s", peer, error)
        if self._tasks.get(peer) is asyncio.current_task():
            del self._tasks[peer], self._acks[peer]
            self._feed(SnapshotSent(peer, ok))

    async def _stream(self, message: InstallSnapshot, acks: asyncio.Queue[SnapshotAck], talk: _Talk) -> bool:
        """Send chunks as the follower acknowledges them; True when it has them all, False when it wants no more.

        Raises: `TimeoutError` when a message was lost, it seems; `StorageError`.
        """
        while not acks.empty():
            acks.get_nowait()
        self._send([message])
        acked = number = await self._wanted(message, acks, talk)
        if acked < 0:
            return False
        pending: bytes | None = None
        stored = cast(AsyncGenerator[bytes, None], self._storage.read_snapshot(message.snapshot, from_chunk=number))
        async with aclosing(stored) as chunks:
            async for chunk in chunks:
                if pending is not None:
                    await self._send_chunk(message, number, pending, talk, last=False)
                    number += 1
                while number - acked >= self._config.snapshot_chunks_in_flight_max:
                    acked = await self._wanted(message, acks, talk)
                    if acked < 0:
                        return False
                pending = chunk
                if self._is_witness(message.to):
                    break  # It keeps the members alone, and these stand in the first.
        if pending is not None:
            await self._send_chunk(message, number, pending, talk, last=True)
            number += 1
        while 0 <= acked < number:
            acked = await self._wanted(message, acks, talk)
        return acked >= 0

    async def _wanted(self, message: InstallSnapshot, acks: asyncio.Queue[SnapshotAck], talk: _Talk) -> int:
        """Return the next chunk that the follower wants. Raises `TimeoutError` if it does not say."""
        meta = message.snapshot
        async with asyncio.timeout(self._config.retry_seconds):
            while True:
                ack = await acks.get()
                if (ack.index, ack.snapshot_term) == (meta.index, meta.term):
                    break
        if ack.next_number > talk.acked:
            talk.acked = ack.next_number
            talk.advanced_at = asyncio.get_running_loop().time()
        return ack.next_number

    async def _send_chunk(self, message: InstallSnapshot, number: int, data: bytes, talk: _Talk, *, last: bool) -> None:
        """Send a chunk when it is its turn."""
        wait_seconds = self._pace.take(len(data), now=asyncio.get_running_loop().time())
        if wait_seconds > 0:
            await asyncio.sleep(wait_seconds)
            talk.advanced_at += wait_seconds
        meta = message.snapshot
        chunk = SnapshotChunk(message.to, message.sender, message.term, meta.index, meta.term, number, data, last)
        self._send([chunk])


class SnapshotReceiver:
    """Takes the leader's snapshot, chunk by chunk, into a temporary file; one at a time."""

    def __init__(
        self,
        storage: Storage,
        *,
        send: Callable[[list[PeerMessage]], None],
        feed: Callable[[Input], None],
        is_covered: Callable[[SnapshotMeta], bool],
        term: Callable[[], int],
    ) -> None:
        self._storage = storage
        self._send = send
        self._feed = feed
        self._is_covered = is_covered
        self._term = term
        self._message: InstallSnapshot | None = None
        self._sink: SnapshotSink | None = None
        self._next_number = 0
        self._queue: asyncio.Queue[InstallSnapshot | SnapshotChunk] = asyncio.Queue(RECEIVED_MAX)

    def received(self, message: InstallSnapshot | SnapshotChunk) -> None:
        """Queue a part of the conversation for `run`; over `RECEIVED_MAX` it is lost, like any message may be.

        What an earlier term's leader sends is dropped: it must not stand in the way of the present one's.
        """
        if message.term >= self._term() and not self._queue.full():
            self._queue.put_nowait(message)

    async def run(self) -> None:
        """Handle what was received, in order, until cancelled."""
        try:
            while True:
                message = await self._queue.get()
                if isinstance(message, InstallSnapshot):
                    await self._begin(message)
                else:
                    await self._write(message)
        finally:
            await self._drop()

    async def _begin(self, message: InstallSnapshot) -> None:
        """Begin a conversation, or go on where an earlier one about the same snapshot stopped."""
        if self._is_covered(message.snapshot):
            self._acknowledge(message, GIVE_UP)
            self._feed(message)
            return
        old = self._message
        if self._sink is None or old is None or (old.sender, old.snapshot) != (message.sender, message.snapshot):
            await self._drop()
            self._sink = self._storage.create_snapshot(message.snapshot, received=True)
            self._next_number = 0
        self._message = message
        self._acknowledge(message, self._next_number)

    async def _write(self, chunk: SnapshotChunk) -> None:
        message, sink = self._message, self._sink
        if message is None or sink is None or chunk.number != self._next_number:
            return
        meta = message.snapshot
        if (chunk.sender, chunk.index, chunk.snapshot_term) != (message.sender, meta.index, meta.term):
            return
        try:
            if not 0 < len(chunk.data) <= CHUNK_BYTES_MAX:
                raise errors.StorageError(f"a chunk of {len(chunk.data)} bytes")
            await sink.write(chunk.data)
            if chunk.last:
                await sink.commit()
        except errors.StorageError as error:
            logger.warning("the leader's snapshot at index %d could not be written: %s", chunk.index, error)
            await self._drop()
            self._acknowledge(message, GIVE_UP)
            return
        self._next_number += 1
        self._acknowledge(message, self._next_number)
        if chunk.last:
            self._sink = None
            self._feed(message)

    async def _drop(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            await sink.abort()

    def _acknowledge(self, message: InstallSnapshot, next_number: int) -> None:
        meta = message.snapshot
        self._send([SnapshotAck(message.sender, message.to, meta.index, meta.term, next_number)])
