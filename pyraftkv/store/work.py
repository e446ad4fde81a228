"""Work that may be too long for one go, done in slices that the owner chooses.

A delete of a million keys is one command, a range over the whole store is one query. Neither may hold the caller's
thread for seconds: heartbeats stand behind it, and so does every thread that waits for the interpreter. So whatever
may grow long is written as a generator of costs, `Steps`: it yields how many keys or versions it has touched since
it yielded last, and returns its result. `SlicedWork` drives one for as long as a budget lasts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import Generic, TypeVar

T = TypeVar("T")

Steps = Generator[int, None, T]
"""Yields the keys or versions touched since the last yield; returns the result."""


class Work(ABC, Generic[T]):
    """Something under way in the store; call `step` until it returns the result.

    A piece of work that is dropped unfinished costs nothing, except a write: a write that was begun must be finished.
    """

    @abstractmethod
    def step(self, budget: int) -> T | None:
        """Go on for about ``budget`` keys or versions.

        Args:
            budget: How many keys or versions may be touched, at least 1; one batch more may be.

        Returns:
            The result, or None while there is more to do. Not to be called again after the result.

        Raises:
            NotApplied: The request fails, and has changed nothing.
        """


class SlicedWork(Work[T]):
    """Drives `Steps`."""

    __slots__ = ("_done", "_steps")

    def __init__(self, steps: Steps[T]) -> None:
        self._steps = steps
        self._done = False

    def step(self, budget: int) -> T | None:
        assert budget > 0, budget
        assert not self._done, "work that has returned its result (or raised) is finished"
        steps = self._steps
        try:
            while budget > 0:
                budget -= next(steps)
        except StopIteration as stop:
            self._done = True
            result: T = stop.value
            return result
        except BaseException:
            self._done = True
            raise
        return None
