"""`ClientWatch`: a watch over the wire, put together from frames and resumed where it stopped."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from typing import Protocol

from pyraftkv import errors
from pyraftkv.protocol import WatchCall
from pyraftkv.store.values import Event, WatchBatch
from pyraftkv.watching import EventStream

WATCH_BATCHES_MAX = 256
"""Batches a slow reader of a watch may leave lying; then the watch is cancelled on the wire and resumed later."""

WATCH_BYTES_MAX = 8 * 1024 * 1024
"""The same in bytes as they came over the wire."""


class Subscriber(Protocol):
    """What a watch asks of its client."""

    def subscribe(self, watch: ClientWatch) -> None:
        """Ask for the watch from where it stands."""
        ...

    def unsubscribe(self, watch: ClientWatch) -> None:
        """Stop its updates, for good or until it subscribes again."""
        ...


class ClientWatch(EventStream):
    """A watch over the wire; see `kv.Watch`.

    A batch too large for a frame comes in parts: one that says that everything up to a revision below its last event
    is there, has more of that event's revision behind it. It is put together here, and a part that was lost with its
    connection comes again.
    """

    def __init__(self, client: Subscriber, call: WatchCall) -> None:
        super().__init__()
        self._client = client
        self._call = call
        self.revision = max(0, call.start_revision - 1)
        self._delivered = self.revision
        self._in_place = call.start_revision > 0
        self._partial: list[Event] = []
        """Events of a revision that is not complete yet."""
        self._partial_bytes = 0
        self._queue: deque[tuple[WatchBatch, int]] = deque()
        self._queue_bytes = 0
        self._is_paused = False
        self._is_handing_out = False
        self.is_due = False
        """Whether a member has no room for it: it is asked for again at the next housekeeping."""
        self._placed = asyncio.Event()
        self._error: errors.PyraftkvError | None = None

    @property
    def id(self) -> int:
        """What the present subscription is called on the wire."""
        return self._call.id

    def next_call(self, call_id: int) -> WatchCall:
        """Return the call that goes on after the last revision received."""
        call = self._call
        start = self._delivered + 1 if self._in_place else call.start_revision
        return WatchCall(call_id, call.key, call.end, start, call.prev_kv, call.no_put, call.no_delete)

    def is_called(self, call: WatchCall) -> None:
        """The watch goes on with this call; what was incomplete comes again."""
        self._call = call
        self.is_due = False
        self._partial, self._partial_bytes = [], 0

    def deliver(self, batch: WatchBatch, *, size_bytes: int) -> None:
        """Take a batch, or a part of one, from the wire.

        Past `WATCH_BATCHES_MAX` or `WATCH_BYTES_MAX` the server is told to wait for the reader.
        """
        self._in_place = True
        self._delivered = max(self._delivered, batch.revision)
        self._placed.set()
        events = self._partial + batch.events  # a list of its own: other watches are given the same batch
        if self._partial:
            self._partial = []
            size_bytes += self._partial_bytes
            self._partial_bytes = 0
        if events and events[-1].kv.mod_revision > batch.revision:
            complete = bisect_right(events, batch.revision, key=lambda event: event.kv.mod_revision)
            events, self._partial = events[:complete], events[complete:]
            if not events:
                self._partial_bytes = size_bytes
        if events:
            self._queue.append((WatchBatch(events, batch.revision), size_bytes))
            self._queue_bytes += size_bytes
            self._wake()
            if len(self._queue) >= WATCH_BATCHES_MAX or self._queue_bytes >= WATCH_BYTES_MAX:
                self._is_paused = True
                self._client.unsubscribe(self)
        elif not self._queue and not self._partial and not self._is_handing_out:
            self.revision = max(self.revision, batch.revision)

    def end(self, error: errors.PyraftkvError) -> None:
        """End the watch: whoever iterates gets ``error`` after what is queued."""
        self._error = error
        self._wake()
        self._placed.set()

    async def synced(self, *, timeout: float | None = None) -> int:
        """Wait until a member has the watch in place; return the revision that it stands at."""
        async with asyncio.timeout(timeout):
            await self._placed.wait()
        if self._error is not None:
            raise self._error
        return self._delivered

    async def next_batch(self) -> WatchBatch:
        """Wait for the next batch of whole revisions. Raises `WatchCancelled`, `Closed`."""
        self._is_handing_out = False
        while not self._queue:
            if self._error is not None:
                raise self._error
            if self._is_paused:
                self._is_paused = False
                self._client.subscribe(self)  # it may end the watch
            else:
                await self._woken()
        batch, size_bytes = self._queue.popleft()
        self._queue_bytes -= size_bytes
        self.revision = batch.revision
        self._is_handing_out = True
        return batch

    async def close(self) -> None:
        """Stop watching. Idempotent."""
        self._client.unsubscribe(self)
        self.end(errors.Closed("the watch was closed"))
