"""`EventStream`: what the watches of every engine have in common: who reads them, and how the reader is woken.

A put to a key with a thousand watchers wakes a thousand tasks, so what is done for one of them is kept short: a bare
future to wait for, made only when there is nothing to read, and one generator between the reader and the batch.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from typing import Self

from pyraftkv.store.values import Event, WatchBatch


class EventStream(ABC):
    """A watch, read batch by batch or event by event. Several may read one; each batch goes to one of them."""

    revision: int
    """Everything up to this revision has been handed out."""

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at revision {self.revision}>"

    @abstractmethod
    async def next_batch(self) -> WatchBatch:
        """Wait for the next batch of whole revisions. Nothing is lost when it is cancelled.

        Raises: `WatchCancelled`, `Closed`.
        """

    @abstractmethod
    async def close(self) -> None:
        """Stop watching. Idempotent."""

    async def batches(self) -> AsyncGenerator[WatchBatch]:
        """Yield batches of whole revisions until the watch is closed. Raises `WatchCancelled`, `Closed`."""
        while True:
            yield await self.next_batch()

    async def __aiter__(self) -> AsyncGenerator[Event]:
        while True:
            batch = await self.next_batch()
            for event in batch.events:
                self.revision = event.kv.mod_revision - 1  # more of this revision may follow
                yield event
            self.revision = batch.revision

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _wake(self) -> None:
        """There may be something to read. O(1)."""
        if self._waiter is not None and not self._waiter.done():  # `fulfil` written out: once per revision
            self._waiter.set_result(None)

    async def _woken(self) -> None:
        """Wait for `_wake`; it may also come back for nothing.

        1. Two tasks read one watch. The second waits for the future of the first.
        2. The first is cancelled, and its future with it. The second must neither be cancelled nor wait for ever.
        """
        if self._waiter is not None:
            await asyncio.wait([self._waiter])
            return
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
