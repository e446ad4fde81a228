"""From an asynchronous method to a blocking one of the same name, signature and docstring.

A face is a class whose attributes are made by the functions here, out of the methods of the class that it is the face
of. So a signature stands in one place, and type checkers see it in both.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from functools import wraps
from threading import TIMEOUT_MAX
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from pyraftkv.errors import Closed
from pyraftkv.given import seconds
from pyraftkv.sync.portal import Portal, refuse_in_loop

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
F = TypeVar("F", bound="Face")

AT_ONCE_MAX = 1000
"""Items of an iteration that are fetched from the loop's thread at once, where none of them can keep others waiting."""


class Face:
    """The blocking face of an object that lives on a portal's loop."""

    def __init__(self, target: Any, portal: Portal) -> None:
        self.target = target
        """What this is the face of: to be touched on its own loop alone."""
        self.portal = portal
        """The way to that loop: ``portal.run(coroutine_function)``."""

    def __repr__(self) -> str:
        return f"<sync {self.target!r}>"


class Entered(Face):
    """The face of what runs a block: a context manager."""

    def __enter__(self) -> Self:
        self.portal.run(self.target.__aenter__)
        return self

    def __exit__(self, *exc: object) -> None:
        self.portal.run(lambda: self.target.__aexit__(*exc))


def blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Face, P], R]:
    """Return the method as one that waits."""
    name = method.__name__

    @wraps(method, updated=())  # not whether it is abstract
    def call(self: Face, /, *args: P.args, **kwargs: P.kwargs) -> R:
        bound: Callable[P, Coroutine[Any, Any, R]] = getattr(self.target, name)
        return self.portal.run(lambda: bound(*args, **kwargs))

    return call


def making(
    method: Callable[Concatenate[Any, P], Any], kind: Callable[[Any, Portal], F]
) -> Callable[Concatenate[Face, P], F]:
    """Return a method that makes something, as one that returns the face of that."""
    name = method.__name__

    @wraps(method, updated=())  # not whether it is abstract
    def call(self: Face, /, *args: P.args, **kwargs: P.kwargs) -> F:
        made = self.portal.call(lambda: getattr(self.target, name)(*args, **kwargs))
        return kind(made, self.portal)

    return call


def iterating(
    method: Callable[Concatenate[Any, P], AsyncIterator[R]], *, at_once: int = 1
) -> Callable[Concatenate[Face, P], Iteration[R]]:
    """Return a method that yields, as one that returns an iterator; its items come ``at_once`` from the loop."""
    name = method.__name__

    @wraps(method, updated=())  # not whether it is abstract
    def call(self: Face, /, *args: P.args, **kwargs: P.kwargs) -> Iteration[R]:
        items = self.portal.call(lambda: aiter(getattr(self.target, name)(*args, **kwargs)))
        return Iteration(items, self.portal, at_once)

    return call


class Iteration(Iterator[R]):
    """An asynchronous iteration, as a plain one. It belongs to one thread at a time; `close` may come from any."""

    def __init__(self, items: AsyncIterator[R], portal: Portal, at_once: int = 1) -> None:
        self._items = items
        self._portal = portal
        self._at_once = at_once
        self._fetched: list[R] = []
        self._fetching: Future[list[R]] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._is_closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R:
        return self.next()

    def next(self, *, timeout: float | None = None) -> R:
        """Return the next item. Raises `StopIteration`, `TimeoutError` (it is not lost: ask again), `Closed`."""
        wait = seconds(timeout)
        if not self._fetched:
            refuse_in_loop()
            # A call that timed out is still under way: to cancel it would end the iteration.
            future = self._fetching = self._fetching or self._portal.submit(self._fetch)
            try:
                self._fetched = future.result(wait and min(wait, TIMEOUT_MAX))[::-1]
            except CancelledError:
                raise Closed("the thread that this ran in has ended") from None
            finally:
                if future.done():
                    self._fetching = None
        if not self._fetched:
            raise StopIteration
        return self._fetched.pop()

    def close(self) -> None:
        """End the iteration; whoever waits for its next item is told that there is none."""
        self._portal.run(self._close)

    async def _close(self) -> None:
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
        elif (aclose := getattr(self._items, "aclose", None)) is not None:
            await aclose()

    async def _fetch(self) -> list[R]:
        fetched: list[R] = []
        self._task = asyncio.current_task()
        try:
            await self._fill(fetched)
        except asyncio.CancelledError:
            if not self._is_closed:
                raise
        finally:
            self._task = None
        return fetched

    async def _fill(self, fetched: list[R]) -> None:
        while len(fetched) < self._at_once:
            try:
                fetched.append(await anext(self._items))
            except StopAsyncIteration:
                return
