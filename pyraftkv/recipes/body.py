"""`Body`: what happens to the block of a program when that is lost under which it runs.

Whoever holds a lock and is cut off from the cluster does not hold it any more when its lease ends: somebody else may
have it. So its block is cancelled at its next ``await``, and ends with `LeaseLost`.

1. A task holds a lock, and waits in its block. The lease is lost: the task is cancelled, and `LeaseLost` is raised.
2. Somebody else cancels the task at the same time, for reasons of his own. That is his `CancelledError`, and must not
   be taken for ours: each cancellation is counted (`asyncio.Task.cancelling`), as `asyncio.timeout` does it.
3. The block catches `CancelledError`, and ends as if nothing had been: `LeaseLost` is raised all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from pyraftkv.errors import LeaseLost, LeaseNotFound
from pyraftkv.kv import Lease


@contextmanager
def under(lease: Lease) -> Generator[None]:
    """Write under a lease that is held. Raises `LeaseLost` if it is gone: here the store is the first to notice."""
    try:
        yield
    except LeaseNotFound as error:
        raise LeaseLost(str(error), lease=lease.id) from None


class Body:
    """The block that the current task is about to enter, under a lease."""

    def __init__(self, lease: Lease) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._lease = lease
        self._task = task
        self._cancelling = task.cancelling()
        self._is_interrupted = False
        self._waiting = asyncio.create_task(self._wait(), name="pyraftkv-body")

    @property
    def is_here(self) -> bool:
        """Whether the current task is the one whose block it is."""
        return asyncio.current_task() is self._task

    async def _wait(self) -> None:
        await self._lease.lost.wait()
        self._is_interrupted = True
        self._task.cancel()

    def leave(self, kind: type[BaseException] | None) -> None:
        """The block has ended, with an exception of that kind. Raises `LeaseLost` if that is why."""
        self._waiting.cancel()
        if self._is_interrupted:
            self._is_interrupted = False
            others = self._task.uncancel() - self._cancelling
            if kind is None or (issubclass(kind, asyncio.CancelledError) and others <= 0):
                raise LeaseLost(f"lease {self._lease.id:x} was lost", lease=self._lease.id)
