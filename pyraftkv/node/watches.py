"""Watches on a node: the store decides what each one gets, this wakes those who wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pyraftkv import errors
from pyraftkv.protocol import WatchCall
from pyraftkv.store import Store, Watcher
from pyraftkv.store.values import WatchBatch
from pyraftkv.watching import EventStream

WATCHES_MAX = 10_000
"""Watches on one node; one more is refused as `Overloaded`."""

BATCH_EVENTS_MAX = 1000
"""Events taken from the store at a time (a revision is never split, so a larger one comes whole)."""


class NodeWatch(EventStream):
    """One watch; see `kv.Watch`. Made by `WatchHub.open`.

    Whoever serves it to somebody else takes from it without waiting: `on_ready`, `take`, `has_more`.
    """

    def __init__(self, hub: WatchHub, watcher: Watcher, call: WatchCall) -> None:
        super().__init__()
        self._hub = hub
        self._watcher = watcher
        self._call = call
        self._synced = None if watcher.synced else asyncio.Event()
        """None as soon as history was handed out."""
        self._was_more = False
        self._error: errors.PyraftkvError | None = None
        self.revision = watcher.revision
        self.on_ready: Callable[[], None] | None = None
        """Called when there may be something to take."""

    @property
    def watcher(self) -> Watcher:
        return self._watcher

    @property
    def progress(self) -> int:
        """Everything up to this revision was taken, or does not concern this watch; never below `revision`."""
        return self._watcher.revision

    @property
    def is_behind(self) -> bool:
        """Whether the next `take` reads history, and so takes longer."""
        return not self._watcher.synced

    @property
    def has_more(self) -> bool:
        """Whether there is something to take now, if only an error."""
        return self._watcher.ready or self._error is not None

    @property
    def call(self) -> WatchCall:
        return self._call

    def wake(self) -> None:
        """There may be something to take."""
        self._wake()
        if self.on_ready is not None:
            self.on_ready()

    def reattach(self, watcher: Watcher) -> None:
        """Go on with a watcher of a restored store."""
        self._watcher = watcher
        self.wake()

    def end(self, error: errors.PyraftkvError) -> None:
        """End the watch: whoever iterates gets ``error``."""
        self._error = error
        if self._synced is not None:
            self._synced.set()
        self.wake()

    async def synced(self, *, timeout: float | None = None) -> int:
        """Wait until history up to the present was handed to whoever iterates; return that revision.

        A watch that starts now is synced at once. Raises `TimeoutError`, and what ends the watch.
        """
        if self._synced is not None:
            async with asyncio.timeout(timeout):
                await self._synced.wait()
        if self._error is not None:
            raise self._error
        return self.revision

    async def next_batch(self) -> WatchBatch:
        """Wait for the next batch of whole revisions. Raises `WatchCancelled`, `Closed`."""
        if self._was_more:
            await asyncio.sleep(0)  # others have their turn
        while True:
            batch = self.take()
            self._was_more = self._watcher.ready
            if batch is not None:
                return batch
            if self._was_more:
                await asyncio.sleep(0)
            else:
                await self._woken()

    def take(self) -> WatchBatch | None:
        """Take from the store what there is; None: nothing now.

        Raises: `WatchCancelled`, `Closed`, and so it will whenever asked again.
        """
        if self._error is not None:
            raise self._error
        if self._synced is not None:
            self._history_taken()
        try:
            batch = self._watcher.take(BATCH_EVENTS_MAX)
        except errors.WatchCancelled as error:
            self._hub.forget(self)
            self.end(error)
            raise
        if batch is None:
            return None
        self.revision = batch.revision
        if batch.events:
            return batch
        if self._synced is not None:
            self._history_taken()
        return None

    def _history_taken(self) -> None:
        """What was taken last has been handed out: perhaps it was the last of the history."""
        if self._synced is not None and self._watcher.synced:
            self._synced.set()
            self._synced = None

    def stop(self) -> None:
        """Stop watching. Idempotent."""
        self._hub.forget(self)
        self.end(errors.Closed("the watch was closed"))

    async def close(self) -> None:
        """Stop watching. Idempotent."""
        self.stop()


class WatchHub:
    """Every watch on this node, by its watcher in the store."""

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._loop = loop
        self._is_behind = False
        self._watches: dict[int, NodeWatch] = {}

    def __len__(self) -> int:
        return len(self._watches)

    def open(self, call: WatchCall) -> NodeWatch:
        """Start a watch. Raises `WatchCancelled`, `Overloaded`."""
        if len(self._watches) >= WATCHES_MAX:
            raise errors.Overloaded(f"{WATCHES_MAX} watches are open already")
        watch = NodeWatch(self, self._attach(call, call.start_revision), call)
        self._watches[id(watch.watcher)] = watch
        return watch

    def forget(self, watch: NodeWatch) -> None:
        """Drop a watch. Idempotent."""
        if self._watches.pop(id(watch.watcher), None) is not None:
            watch.watcher.cancel()

    def advance(self) -> None:
        """The store published revisions: wake the watches that they concern. O(1) when there are none."""
        for watcher in self._store.advance():
            watch = self._watches.get(id(watcher))
            if watch is not None:
                watch.wake()
        if self._store.distributed_revision < self._store.published_revision and not self._is_behind:
            self._is_behind = True
            self._loop.call_soon(self._catch_up)

    def _catch_up(self) -> None:
        """Go on with what one `advance` did not get through."""
        self._is_behind = False
        self.advance()

    def replace_store(self, store: Store) -> None:
        """Carry every watch over to a restored store, from the revision that it had reached.

        1. A watch of a key that nobody writes stands at revision 5 since it began, while others come to 1000.
        2. The restored store is compacted at 900. From 6 on it could not go on; but it has missed nothing up to 1000.
        """
        self._store = store
        watches, self._watches = list(self._watches.values()), {}
        for watch in watches:
            try:
                watcher = self._attach(watch.call, watch.progress + 1)
            except errors.PyraftkvError as error:
                watch.end(error)
                continue
            watch.reattach(watcher)
            self._watches[id(watcher)] = watch

    def close(self, error: Callable[[], errors.PyraftkvError]) -> None:
        """End every watch with an ``error()`` of its own."""
        for watch in list(self._watches.values()):
            watch.watcher.cancel()
            watch.end(error())
        self._watches.clear()

    def _attach(self, call: WatchCall, start_revision: int) -> Watcher:
        try:
            return self._store.watch(
                call.key,
                call.end,
                start_revision=start_revision,
                prev_kv=call.prev_kv,
                no_put=call.no_put,
                no_delete=call.no_delete,
            )
        except errors.Compacted as error:
            raise errors.WatchCancelled(
                "the history to watch was compacted",
                resume_revision=start_revision,
                compact_revision=error.compact_revision,
            ) from None
