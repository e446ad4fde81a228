"""The time limit of a test, which ends what spins as well.

1. A callback schedules itself again, for ever. The time is over, and pytest-timeout raises its failure in the middle of
   whatever runs: in that callback.
2. asyncio tells what a callback has raised, whatever it derives from, and the loop goes on. So does the test.
3. The timer rang once. Nobody ends the test any more, nor any of those behind it.

Two things are let through by asyncio and the simulator: Ctrl-C, and an exit, which in a simulation ends one process.
So what is raised here is a Ctrl-C of its own kind, and makes a failure of its test; and it is raised again until the
test has ended, because what tidies up behind it may spin or hang too.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
from collections.abc import Callable
from types import FrameType

AGAIN_SECONDS = 5.0
"""After so long without an end it is raised again."""


class TimedOut(KeyboardInterrupt):
    """A test takes longer than it may."""


class TimeLimit:
    """The time that one test may take, setup and teardown included. In the main thread.

    Args:
        seconds: How long.
        again_seconds: How long after that it is told again, and again.
        is_off: Whether nobody minds at present, because somebody debugs.
    """

    def __init__(
        self, seconds: float, *, again_seconds: float = AGAIN_SECONDS, is_off: Callable[[], bool] = lambda: False
    ) -> None:
        self.is_over = False
        self._seconds = seconds
        self._is_off = is_off
        self._signal_before = signal.signal(signal.SIGALRM, self._ring)
        self._timer_before = signal.setitimer(signal.ITIMER_REAL, seconds, again_seconds)
        self.is_set = True

    def __str__(self) -> str:
        return f"it took longer than {self._seconds:g} s"

    def end(self) -> None:
        """Raise nothing any more. Idempotent."""
        if self.is_set:
            signal.setitimer(signal.ITIMER_REAL, *self._timer_before)
            signal.signal(signal.SIGALRM, self._signal_before)
            self.is_set = False

    def _ring(self, _number: int, _frame: FrameType | None) -> None:
        if self._is_off():
            return
        if not self.is_over and sys.__stderr__ is not None:
            faulthandler.dump_traceback(sys.__stderr__)  # of every thread
        self.is_over = True
        raise TimedOut(str(self))
