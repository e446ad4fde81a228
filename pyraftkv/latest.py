"""`LatestWatch`: a watch for readers that want the present, and may miss how it came about.

A watch hands out every change, and a reader slower than the writers falls ever farther behind. Many want to know what
a key is, not what it was in between: a dashboard, a cache, who applies a configuration. This one reads on while its
reader is busy, keeps for each key the last change, and says of each how many it has left out. Nothing is left out
silently, and nothing but what a later change of the same key has made old.

What is handed out at a time covers whole revisions: whoever applies a batch as a whole has, for these keys, a state
that the store was in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Self

from pyraftkv import errors
from pyraftkv._record import record
from pyraftkv.kv import Watch
from pyraftkv.store.values import Event, EventType, KeyValue, WatchBatch

LATEST_KEYS_MAX = 10_000
"""With more keys than this waiting, nothing is read ahead: the watch beneath waits, within bounds of its own."""

LATEST_BYTES_MAX = 8 * 1024 * 1024
"""So it does with more than this in keys and values."""


@record
class Latest:
    """What a key is by now."""

    key: bytes
    kv: KeyValue | None
    """None: it was deleted."""
    revision: int
    """Of the last change."""
    skipped: int
    """How many changes of this key before it were left out, since the last one that was handed out."""


@record
class LatestBatch:
    """The last changes of keys, in the order in which they were made."""

    changes: list[Latest]
    revision: int
    """Everything up to and including this revision is in this batch, in one before, or was left out."""


class LatestWatch:
    """Wraps a watch and hands out the last change of each key; an async context manager and iterator.

    Invariant: what waits holds each key once, and covers whole revisions.

    Args:
        watch: What to read; it is closed along with this.
        keys_max: With more keys than this waiting, nothing is read ahead.
    """

    def __init__(self, watch: Watch, *, keys_max: int = LATEST_KEYS_MAX) -> None:
        self._watch = watch
        self._keys_max = keys_max
        self._waiting: dict[bytes, Latest] = {}
        self._waiting_bytes = 0
        self._read_revision = self.revision = watch.revision
        """Everything up to this revision has been handed out (`revision`), or was read."""
        self._ready = asyncio.Event()
        self._taken = asyncio.Event()
        self._error: errors.PyraftkvError | None = None
        self._reading: asyncio.Task[None] | None = None

    async def batches(self) -> AsyncGenerator[LatestBatch]:
        """Yield what has changed, until the watch is closed. Raises `WatchCancelled`, `Closed`."""
        if self._reading is None:
            self._reading = asyncio.get_running_loop().create_task(self._read(), name="pyraftkv-latest")
        while True:
            self._ready.clear()
            changes, self._waiting, self._waiting_bytes = list(self._waiting.values()), {}, 0
            self._taken.set()
            if changes:
                self.revision = self._read_revision
                yield LatestBatch(changes, self.revision)
            elif self._error is not None:
                raise self._error
            else:
                await self._ready.wait()

    async def __aiter__(self) -> AsyncGenerator[Latest]:
        async for batch in self.batches():
            for change in batch.changes:
                yield change

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop watching. Idempotent."""
        self._end(errors.Closed("the watch was closed"))
        await self._watch.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    async def _read(self) -> None:
        """Read ahead, as far as there is room."""
        try:
            async for batch in self._watch.batches():
                self._note(batch)
                while len(self._waiting) > self._keys_max or self._waiting_bytes > LATEST_BYTES_MAX:
                    self._taken.clear()
                    await self._taken.wait()
        except errors.PyraftkvError as error:
            self._end(error)
        finally:
            self._end(errors.Closed("the watch has stopped"))

    def _note(self, batch: WatchBatch) -> None:
        for event in batch.events:
            key = event.kv.key
            earlier = self._waiting.pop(key, None)
            if earlier is not None:
                self._waiting_bytes -= _size_bytes(earlier)
            change = self._waiting[key] = _latest(event, skipped=0 if earlier is None else earlier.skipped + 1)
            self._waiting_bytes += _size_bytes(change)
        self._read_revision = batch.revision
        self._ready.set()

    def _end(self, error: errors.PyraftkvError) -> None:
        self._error = self._error or error
        self._ready.set()


def _latest(event: Event, *, skipped: int) -> Latest:
    kv = event.kv
    return Latest(kv.key, kv if event.type is EventType.PUT else None, kv.mod_revision, skipped)


def _size_bytes(change: Latest) -> int:
    return len(change.key) + (len(change.kv.value) if change.kv is not None else 0)
