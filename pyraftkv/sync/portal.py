"""`Portal`: an event loop in a thread of its own, and the way in from every other thread.

Hazards:

1. *A blocking call in a coroutine* stops the loop that it runs on, with every other task of the program; and one on the
   portal's own loop would wait for itself, for ever. Both are refused (`CalledInLoop`).
2. *A fork* copies the memory and none of the threads: the child's portal has a loop that nobody runs, and whatever the
   child asks of it would never be answered. Every call in a child is refused (`Forked`); the parent goes on.
3. *Ctrl-C* reaches the main thread while it waits. What it waited for is cancelled, which for a write means that it may
   have happened.
4. *The end of the program.* The thread must not keep a program alive that forgot to close, nor run on while the
   interpreter is taken apart: it is a daemon, and ended by `atexit`.
   Whoever waits in a thread of the program's own at that moment is told that nobody knows what became of it.
5. *A loop that cannot be made*, because the process has no file descriptor left: whoever waits for it to run is told.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from pyraftkv import errors

T = TypeVar("T")

CLOSE_SECONDS_MAX = 30.0
"""How long a program's end waits for a loop that does not end."""


class Portal:
    """A running event loop, for any thread to use. It runs from its construction until `close`.

    Args:
        name: What the thread is called.

    Raises:
        OSError: There can be no loop: the process has too many files open.
    """

    def __init__(self, name: str) -> None:
        refuse_in_loop()
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._lock = threading.Lock()
        self._is_open = True
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name=name, daemon=True)
        self._thread.start()
        started.result()
        atexit.register(self.close)

    def _run(self, started: Future[None]) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._until_stopped(started))
        except OSError as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _until_stopped(self, started: Future[None]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        started.set_result(None)
        await self._stop.wait()

    def submit(self, make: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Run a coroutine on the loop; return what comes of it. Raises `Forked`, `Closed`."""
        if os.getpid() != self._pid:
            raise errors.Forked("this was opened before a fork, and belongs to the parent process: open it anew")
        with self._lock:  # or the loop could be closed between the question and the call
            if not self._is_open:
                raise errors.Closed("the thread that this ran in has ended")
            assert self._loop is not None
            return asyncio.run_coroutine_threadsafe(_called(make), self._loop)

    def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on the loop, and wait for it.

        Raises: `CalledInLoop`, `Forked`, `Closed`; what it raises; `MaybeApplied` if the loop has ended meanwhile.
        """
        refuse_in_loop()
        future = self.submit(make)
        try:
            return future.result()
        except CancelledError:
            if self._is_open:
                raise
            raise errors.MaybeApplied("the thread that this ran in has ended; it may have been done") from None
        except BaseException:
            future.cancel()  # Ctrl-C: nobody waits for it any more
            raise

    def call(self, function: Callable[[], T]) -> T:
        """Call something on the loop that is no coroutine; otherwise as `run`."""

        async def call() -> T:
            return function()

        return self.run(call)

    def close(self) -> None:
        """End the loop and its thread; what still runs on it is cancelled. Idempotent; nothing happens in a child."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            was_open, self._is_open = self._is_open, False
        if was_open:
            atexit.unregister(self.close)
            assert self._loop is not None
            assert self._stop is not None
            self._loop.call_soon_threadsafe(self._stop.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_SECONDS_MAX)


async def _called(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return await make()


def refuse_in_loop() -> None:
    """Raise `CalledInLoop` if this thread runs an event loop at this moment."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise errors.CalledInLoop(
        "a blocking call would stop the event loop that this thread runs: await pyraftkv's own names, "
        "or call it in asyncio.to_thread"
    )
