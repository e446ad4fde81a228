"""The watches of one client: one task hands out what they have, each batch encoded once for all that are due it.

A put to a key that a thousand watches of a connection wait for is one frame that names the thousand. So there is no
task per watch: watches say that they have something, and the connection's one task goes round among them, in turns.
What it takes in a turn is bounded, and it takes nothing more before the client has room for that: a slow client's
watches fall behind in the store, where that costs no memory, whatever their number.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import islice
from typing import Final, Protocol

from pyraftkv import codec, errors
from pyraftkv.kv import Watch
from pyraftkv.protocol import WatchCall, WatchUpdate
from pyraftkv.store.values import Event, WatchBatch
from pyraftkv.transport.framing import CLIENT_FRAME_BYTES_MAX

logger = logging.getLogger("pyraftkv.server")

PART_BYTES_MAX = 1024 * 1024
"""A batch of events larger than this is sent in parts."""

EVENT_OVERHEAD_BYTES = 64
"""What an event counts besides its keys and values."""

TURN_WATCHES_MAX = 1000
"""A turn takes from no more watches than this; then others use the loop."""

PROGRESS_SECONDS = 10.0
"""How often an idle watch is told how far history has come."""

TURN_HISTORY_MAX = 4
"""And from no more than this that read history, which takes a millisecond each."""

TURN_BYTES_MAX = 8 * 1024 * 1024
"""And from no other when it holds more than this in batches that differ: until they are sent they take memory."""

WATCH_ID_BYTES: Final = 8
"""What each watch that an update names adds to its frame."""


class ServedWatch(Watch, Protocol):
    """What the server needs of a watch besides `kv.Watch`."""

    on_ready: Callable[[], None] | None
    """Called when there may be something to take."""

    @property
    def progress(self) -> int:
        """Everything up to this revision was taken, or does not concern this watch."""
        ...

    @property
    def is_behind(self) -> bool:
        """Whether the next `take` reads history."""
        ...

    @property
    def has_more(self) -> bool:
        """Whether there is something to take now, if only an error."""
        ...

    def take(self) -> WatchBatch | None:
        """Take what there is; None: nothing now. Raises what ended the watch."""
        ...

    def stop(self) -> None:
        """Stop watching. Idempotent."""
        ...


class _Serving:
    """A watch of a client: how far it was told, and whether it is in the middle of a batch."""

    __slots__ = ("id", "is_open", "is_sending", "told", "watch")

    def __init__(self, call_id: int, watch: ServedWatch) -> None:
        self.id = call_id
        self.watch = watch
        self.told = watch.revision
        self.is_sending = False
        self.is_open = True


class _Due:
    """A batch, and the watches that it is due."""

    __slots__ = ("batch", "servings")

    def __init__(self, batch: WatchBatch) -> None:
        self.batch = batch
        self.servings: list[_Serving] = []


class ServedWatches:
    """Every watch of one connection, by the id that its client gave it.

    Invariant: what `_ready` names is served by the task, which runs as long as there is anything.

    Args:
        send: Send a frame.
        room: Wait until the client has taken what it was sent.
        ended: A watch has ended by itself, with this error.
        failed: This has a bug: the client is to look elsewhere.
    """

    def __init__(
        self,
        *,
        send: Callable[[bytes], None],
        room: Callable[[], Awaitable[None]],
        ended: Callable[[int, errors.PyraftkvError], None],
        failed: Callable[[], None],
    ) -> None:
        self._send = send
        self._room = room
        self._ended = ended
        self._failed = failed
        self._servings: dict[int, _Serving] = {}
        self._ready: dict[int, None] = {}
        """Who may have something, in the order in which they said so."""
        self._task: asyncio.Task[None] | None = None
        self._telling: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._servings)

    def __contains__(self, call_id: int) -> bool:
        return call_id in self._servings

    def add(self, call: WatchCall, watch: ServedWatch) -> None:
        """Serve a watch that was opened for a call."""
        assert call.id not in self._servings, call
        self._servings[call.id] = _Serving(call.id, watch)
        self._send(codec.encode_reply(WatchUpdate([call.id], WatchBatch([], watch.revision))))
        watch.on_ready = partial(self._is_ready, call.id)
        if watch.has_more:
            self._is_ready(call.id)
        if self._telling is None:
            self._tell_later()

    def discard(self, call_id: int) -> None:
        """Stop a watch that its client no longer wants, or that ended. Idempotent."""
        serving = self._servings.pop(call_id, None)
        if serving is not None:
            serving.is_open = False
            serving.watch.on_ready = None
            serving.watch.stop()
            self._ready.pop(call_id, None)

    def close(self) -> None:
        """Stop every watch. Idempotent."""
        if self._task is not None:
            self._task.cancel()
        if self._telling is not None:
            self._telling.cancel()
        for call_id in list(self._servings):
            self.discard(call_id)

    # --- In turns --------------------------------------------------------------------------------------------------

    def _is_ready(self, call_id: int) -> None:
        self._ready[call_id] = None
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._serve(), name="pyraftkv-watches")
            self._task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("a client's watches failed", exc_info=error)
            self._failed()

    async def _serve(self) -> None:
        """Hand out what there is, no faster than the client takes it."""
        while self._ready:
            for due in self._take_turn():
                await self._hand_out(due)
            await self._room()
            await asyncio.sleep(0)  # others have their turn
        self._task = None

    def _take_turn(self) -> list[_Due]:
        """Take from the watches that are ready; those that are due the same events share them. O(watches + events)."""
        turn: dict[tuple[int, ...], _Due] = {}
        history_count = size_bytes = 0
        for call_id in list(islice(self._ready, TURN_WATCHES_MAX)):
            serving = self._servings.get(call_id)
            if serving is None or size_bytes > TURN_BYTES_MAX or history_count >= TURN_HISTORY_MAX:
                break  # The connection was lost meanwhile, or this is enough.
            del self._ready[call_id]
            history_count += serving.watch.is_behind
            try:
                batch = serving.watch.take()
            except errors.PyraftkvError as error:
                self._end(serving, error)
                continue
            if serving.watch.has_more:
                self._ready[call_id] = None
            if batch is None:
                continue
            serving.is_sending = True
            which = (batch.revision, *map(id, batch.events))  # events that are in the table stay what they are
            due = turn.get(which)
            if due is None:
                due = turn[which] = _Due(batch)
                size_bytes += sum(map(_event_bytes, batch.events))
            due.servings.append(serving)
        return list(turn.values())

    async def _hand_out(self, due: _Due) -> None:
        for number, part in enumerate(parts_of(due.batch)):
            if number:
                await self._room()
            self._send_part(due.servings, part)
        for serving in due.servings:
            serving.told = due.batch.revision
            serving.is_sending = False

    def _send_part(self, servings: list[_Serving], part: WatchBatch) -> None:
        """Send a part to those of the watches that are still wanted, in as many frames as it takes to name them."""
        ids = [serving.id for serving in servings if serving.is_open]
        if not ids:
            return
        frame = codec.encode_reply(WatchUpdate(ids, part))
        if len(frame) <= CLIENT_FRAME_BYTES_MAX:
            self._send(frame)
            return
        size_bytes = len(frame) - WATCH_ID_BYTES * len(ids)
        ids_max = (CLIENT_FRAME_BYTES_MAX - size_bytes) // WATCH_ID_BYTES
        if ids_max > 0:
            for first in range(0, len(ids), ids_max):
                self._send(codec.encode_reply(WatchUpdate(ids[first : first + ids_max], part)))
            return
        for serving in servings:
            if serving.is_open:
                self._end(serving, _too_large(size_bytes, part.events[0].kv.mod_revision))

    def _end(self, serving: _Serving, error: errors.PyraftkvError) -> None:
        """A watch cannot go on."""
        self.discard(serving.id)
        self._ended(serving.id, error)

    # --- Progress --------------------------------------------------------------------------------------------------

    def _tell_later(self) -> None:
        self._telling = asyncio.get_running_loop().call_later(PROGRESS_SECONDS, self._tell_progress)

    def _tell_progress(self) -> None:
        """Tell idle watches how far they are.

        1. A watch of a key that nobody writes is at revision 5 since it began. Others write on, and compact at 900.
        2. The member dies. The client goes to another one and asks to go on from 6: that is compacted.
        3. It has missed nothing; but only the member that died knew.
        """
        self._telling = None
        ids_by_revision: dict[int, list[int]] = {}
        for call_id, serving in self._servings.items():
            revision = serving.watch.progress
            if not serving.is_sending and revision > serving.told:
                serving.told = revision
                ids_by_revision.setdefault(revision, []).append(call_id)
        for revision, ids in ids_by_revision.items():
            self._send(codec.encode_reply(WatchUpdate(ids, WatchBatch([], revision))))
        if self._servings:
            self._tell_later()


def _too_large(size_bytes: int, revision: int) -> errors.WatchCancelled:
    return errors.WatchCancelled(
        f"an event has {size_bytes} bytes with its previous value, over {CLIENT_FRAME_BYTES_MAX}: "
        "watch without prev_kv=",
        resume_revision=revision,
    )


def parts_of(batch: WatchBatch) -> Iterator[WatchBatch]:
    """Cut a batch so that its parts fit a frame, at `PART_BYTES_MAX` or after a single larger event. O(events).

    Every part says what it completes: before the last one, everything below the revision of its last event.
    """
    first = size_bytes = 0
    for position, event in enumerate(batch.events):
        size_bytes += _event_bytes(event)
        if size_bytes > PART_BYTES_MAX and position > first:
            yield WatchBatch(batch.events[first:position], batch.events[position - 1].kv.mod_revision - 1)
            first, size_bytes = position, _event_bytes(event)
    yield WatchBatch(batch.events[first:], batch.revision)


def _event_bytes(event: Event) -> int:
    kv, previous = event.kv, event.prev_kv
    size_bytes = len(kv.key) + len(kv.value) + EVENT_OVERHEAD_BYTES
    return size_bytes if previous is None else size_bytes + len(previous.key) + len(previous.value)
