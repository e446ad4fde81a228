"""Recipes in virtual time: a cluster in memory on a simulated loop, and a way to cancel at every await there is."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

from pyraftkv import KV, Cluster
from pyraftkv.sim import SimLoop

VIRTUAL_SECONDS_MAX = 1e5
TTL = 3.0
"""Of the leases of these tests: long against an election, short against a test."""

Scenario = Callable[[Cluster], Coroutine[Any, Any, None]]


def virtually(scenario: Scenario, *, members: int = 1, seed: int = 1) -> None:
    """Run a scenario with a cluster, in virtual time."""

    async def main() -> None:
        async with Cluster.in_memory(members, seed=seed) as cluster:
            await scenario(cluster)

    loop = SimLoop(random.Random(seed))
    try:
        loop.run(main(), until=VIRTUAL_SECONDS_MAX)
    finally:
        loop.close()


def now() -> float:
    """Return the time, in virtual seconds."""
    return asyncio.get_running_loop().time()


async def soon(condition: Callable[[], object], *, seconds: float = 60.0) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - virtual time costs nothing
            await asyncio.sleep(0.01)


class Cancelling:
    """Awaits a coroutine, and cancels the task that does at its nth await; counts them."""

    def __init__(self, coroutine: Coroutine[Any, Any, object], *, at: int) -> None:
        self._coroutine = coroutine
        self._at = at
        self.awaits = 0

    async def run(self) -> None:
        """Await it, as what a task is made of."""
        await self

    def __await__(self) -> Generator[Any, Any, object]:
        throw: BaseException | None = None
        while True:
            try:
                awaited = self._coroutine.send(None) if throw is None else self._coroutine.throw(throw)
            except StopIteration as stop:
                return stop.value
            self.awaits += 1
            if self.awaits == self._at:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            throw = None
            try:
                yield awaited
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is the coroutine's to deal with
                throw = error


def cancel_everywhere(
    operation: Callable[[KV], Coroutine[Any, Any, object]],
    check: Callable[[KV, bool], Awaitable[None]],
    *,
    setup: Callable[[KV], Awaitable[object]] | None = None,
) -> int:
    """Cancel an operation at each of its awaits in turn, each time in a new cluster; return how many there are.

    Args:
        operation: What a program does with a recipe.
        check: Is called when every lease has had the time to end; and told whether the operation came to its end.
        setup: What is done before.
    """
    at = 0
    while True:
        at += 1
        awaits = 0

        async def scenario(cluster: Cluster, at: int = at) -> None:
            nonlocal awaits
            kv = cluster.leader
            if setup is not None:
                await setup(kv)
            counted = Cancelling(operation(kv), at=at)
            task = asyncio.ensure_future(counted.run())
            try:
                await task
            except asyncio.CancelledError:
                assert task.cancelled()
            awaits = counted.awaits
            await asyncio.sleep(2 * TTL)
            await check(kv, not task.cancelled())

        virtually(scenario)
        if awaits < at:
            return at - 1


async def nothing_is_left(kv: KV, name: str) -> None:
    """Assert that a recipe left no lease, and no key of its own with a lease."""
    assert await kv.leases.list() == []
    assert [each.key for each in (await kv.range(prefix=f"{name}//")).kvs if each.lease] == []


async def refused(awaitable: Awaitable[object], error: type[BaseException]) -> BaseException:
    """Await something that must raise ``error``; return it."""
    try:
        result = await awaitable
    except error as raised:
        return raised
    raise AssertionError(f"{error.__name__} was not raised, the result is {result!r}")
