"""Where blocking work runs: `Worker`, and the thread that is one.

The storage hands jobs over and is called back on the event loop. A simulator hands in workers of its own, which run
the same jobs in virtual time without threads.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Then = Callable[[T | None, BaseException | None], object]
"""Called on the loop with a job's result, or with None and what it raised."""


class Worker(Protocol):
    """Runs jobs one at a time, in the order they were submitted, off the event loop."""

    def submit(self, job: Callable[[], T], then: Then[T]) -> None:
        """Run ``job``, then call ``then`` on the loop. Never blocks."""
        ...

    def stop(self) -> None:
        """Finish what was submitted, then end. Does not wait. Idempotent."""
        ...


WorkerFactory = Callable[[str], Worker]
"""Makes the worker of that name, for the running event loop."""


async def run_on(worker: Worker, job: Callable[[], T]) -> T:
    """Run a job on a worker and wait for it. Who is cancelled meanwhile leaves the job to itself."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def done(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # no error: the job's own result

    worker.submit(job, done)
    return await future


class ThreadWorker:
    """A daemon thread with a queue.

    Args:
        name: The thread's name.

    Must be made on the event loop that completions go to.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Then[Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T], then: Then[T]) -> None:
        self._jobs.put((job, then))

    def stop(self) -> None:
        self._jobs.put(None)

    def _run(self) -> None:
        get, complete = self._jobs.get, self._loop.call_soon_threadsafe
        while (work := get()) is not None:
            job, then = work
            try:
                result = job()
            except BaseException as error:  # noqa: BLE001 - the loop decides what an error of any kind means
                outcome: tuple[Any, BaseException | None] = (None, error)
            else:
                outcome = (result, None)
            try:
                complete(then, *outcome)
            except RuntimeError:  # the loop is closed: nobody is left to tell, and nobody to work for
                return
            del job, then, work, outcome
