"""Semaphores, barriers and rates: what several programs do together."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from itertools import pairwise
from typing import Any, cast

import pytest

from pyraftkv import KV, Cluster, errors
from pyraftkv.engine import Engine, Namespace
from pyraftkv.recipes import Barrier, DoubleBarrier, Lock, RateLimiter, Semaphore
from pyraftkv.recipes.barrier import COUNT_MAX
from pyraftkv.store.commands import Command, LeaseQuery, LeaseVerb, RevokeLease, Transaction
from pyraftkv.store.values import LeaseAnswer, Result
from tests.recipes.support import TTL, cancel_everywhere, nothing_is_left, now, refused, virtually


def test_a_semaphore_has_so_many_holders_and_no_more() -> None:
    """In the order in which they came."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.client()
        inside: list[int] = []
        order: list[int] = []
        most = 0

        async def worker(number: int) -> None:
            nonlocal most
            await asyncio.sleep(number / 10)
            async with Semaphore(kv, "gpu", limit=3, ttl=TTL):
                inside.append(number)
                order.append(number)
                most = max(most, len(inside))
                assert len(await Semaphore(kv, "gpu", limit=3).contenders()) >= len(inside)
                await asyncio.sleep(random.Random(number).uniform(1, 5))
                inside.remove(number)

        async with asyncio.TaskGroup() as group:
            for number in range(9):
                group.create_task(worker(number))
        assert most == 3
        assert order == list(range(9))
        await nothing_is_left(kv, "gpu")

    virtually(scenario, members=3)


def test_a_semaphore_has_one_limit() -> None:
    """Whoever means another one is told."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        async with Semaphore(kv, "gpu", limit=1, ttl=TTL):
            with pytest.raises(errors.InvalidRequest, match="for 1 holders, not for 2"):
                async with Semaphore(kv, "gpu", limit=2, ttl=TTL):
                    pytest.fail("it holds")
            with pytest.raises(errors.LockNotAcquired):
                async with Semaphore(kv, "gpu", limit=1, ttl=TTL, timeout=0):
                    pytest.fail("it holds")
        with pytest.raises(errors.InvalidRequest):
            Semaphore(kv, "gpu", limit=0)
        await kv.put("gpu//limit", b"\xff")
        await refused(Semaphore(kv, "gpu", limit=1, ttl=TTL).__aenter__(), errors.InvalidRequest)

    virtually(scenario)


def test_a_barrier_holds_everybody_until_it_is_lifted() -> None:
    """Whoever comes afterwards does not wait."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        barrier = Barrier(kv, "gate")
        await barrier.wait()
        await barrier.hold()
        await barrier.hold()
        waiting = [asyncio.ensure_future(barrier.wait()) for _ in range(3)]
        await refused(barrier.wait(timeout=5), TimeoutError)
        assert not any(task.done() for task in waiting)
        await barrier.lift()
        await asyncio.gather(*waiting)
        await barrier.wait(timeout=1)

    virtually(scenario)


def test_a_double_barrier_begins_and_ends_together_round_after_round() -> None:
    """Nobody is in while somebody of the round is missing, nor out while somebody is in."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.client()
        rng = random.Random(7)
        log: list[tuple[str, int, float]] = []

        async def participant(number: int) -> None:
            await asyncio.sleep(rng.uniform(0, 3))
            async with DoubleBarrier(kv, "dance", count=3, ttl=TTL):
                log.append(("in", number, now()))
                await asyncio.sleep(rng.uniform(0.5, 5))
                log.append(("work", number, now()))
            log.append(("out", number, now()))

        async with asyncio.TaskGroup() as group:
            for number in range(9):
                group.create_task(participant(number))
        at = {(what, number): when for what, number, when in log}
        rounds: list[list[int]] = []
        for what, number, _ in log:
            if what == "in":
                if not rounds or len(rounds[-1]) == 3:
                    rounds.append([])
                rounds[-1].append(number)
        assert sorted(map(len, rounds)) == [3, 3, 3]
        for members in rounds:
            assert max(at["in", each] for each in members) <= min(at["work", each] for each in members)
            assert max(at["work", each] for each in members) <= min(at["out", each] for each in members)
        for earlier, later in pairwise(rounds):
            assert max(at["work", each] for each in earlier) <= min(at["in", each] for each in later)
        await nothing_is_left(kv, "dance")
        assert (await kv.range(prefix="dance//")).kvs == []

    virtually(scenario, members=3)


@pytest.mark.parametrize("seed", range(12))
def test_it_opens_for_all_or_for_none(seed: int) -> None:
    """Though one gives up at about the moment at which the last one comes."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.client()
        rng = random.Random(seed)
        entered: list[int] = []
        came = 2.0 if seed % 2 else rng.uniform(1.99, 2.01)

        async def participant(number: int, *, after: float, timeout: float | None) -> None:
            await asyncio.sleep(after)
            try:
                async with DoubleBarrier(kv, "dance", count=3, ttl=TTL, timeout=timeout):
                    entered.append(number)
            except errors.LockNotAcquired:
                pass

        tasks = [
            asyncio.ensure_future(participant(1, after=0, timeout=2.0)),
            asyncio.ensure_future(participant(2, after=0, timeout=None)),
            asyncio.ensure_future(participant(3, after=came, timeout=20)),
        ]
        await tasks[0]
        await tasks[2]
        assert sorted(entered) in ([], [1, 2, 3])
        tasks[1].cancel()

    virtually(scenario, members=3, seed=seed)


def test_a_barrier_opens_though_history_is_compacted_before_it_is_watched() -> None:
    """Answers take their time: what happened since they were given may be forgotten when they come."""

    class Late(Namespace):
        answers = 0

        async def write(self, command: Command, timeout: float | None) -> Result:
            result = await super().write(command, timeout)
            if isinstance(command, Transaction) and not command.compares and self.answers < 3:
                self.answers += 1
                for _ in range(3):
                    put = await self._engine.put("other", "x")
                with suppress(errors.Compacted):
                    await self._engine.compact(put.revision)
            return result

    async def scenario(cluster: Cluster) -> None:
        kv = Late(cluster.leader, b"late/")

        async def dancer() -> None:
            async with DoubleBarrier(kv, "x", count=2, ttl=TTL):
                pass

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(dancer())
                await asyncio.sleep(1)

    virtually(scenario)


def test_who_dies_before_it_opens_is_none_of_the_round() -> None:
    """The others wait for somebody else."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        entered: list[str] = []

        async def participant(name: str) -> None:
            async with DoubleBarrier(kv, "dance", count=2, ttl=TTL):
                entered.append(name)

        dead = asyncio.ensure_future(participant("dead"))
        await asyncio.sleep(0.5)
        await kv.leases.revoke((await kv.leases.list())[0])
        await refused(dead, errors.LeaseLost)
        first = asyncio.ensure_future(participant("first"))
        await asyncio.sleep(5)
        assert entered == []
        await participant("second")
        await first
        assert sorted(entered) == ["first", "second"]

    virtually(scenario)


@pytest.mark.parametrize("count", [0, COUNT_MAX + 1, 1.5])
def test_a_barrier_for_a_count_that_cannot_be_is_refused(count: int) -> None:
    """One transaction compares them all."""

    async def scenario(cluster: Cluster) -> None:
        with pytest.raises(errors.InvalidRequest):
            DoubleBarrier(cluster.leader, "dance", count=count)

    virtually(scenario)


def test_the_largest_barrier_opens() -> None:
    """As many as one transaction can compare."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        entered: list[int] = []

        async def participant(number: int) -> None:
            async with DoubleBarrier(kv, "dance", count=COUNT_MAX, ttl=60):
                entered.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(COUNT_MAX):
                group.create_task(participant(number))
        assert len(entered) == COUNT_MAX

    virtually(scenario)


def test_times_that_are_none_are_refused_by_their_names() -> None:
    """When the recipe is made, not when somebody else happens to be before it."""

    async def scenario(cluster: Cluster) -> None:
        kv, wrong = cluster.leader, cast("Any", "5")
        for make in (
            lambda: Lock(kv, "a", timeout=wrong),
            lambda: Semaphore(kv, "a", limit=1, timeout=wrong),
            lambda: DoubleBarrier(kv, "a", count=2, timeout=wrong),
        ):
            with pytest.raises(errors.InvalidRequest, match="timeout="):
                make()
        await refused(Barrier(kv, "a").wait(timeout=wrong), errors.InvalidRequest)
        for seconds in (0.5, 0, wrong):
            with pytest.raises(errors.InvalidRequest, match="seconds="):
                RateLimiter(kv, "a", limit=1, seconds=cast("Any", seconds))

    virtually(scenario)


class Slow(Namespace):
    """A store that takes its time: its caller may as well have been suspended."""

    def __init__(self, engine: Engine, *, late: type[Command], seconds: float = 2.5, renewals: int = 0) -> None:
        super().__init__(engine, b"p/")
        self._late = late
        self._seconds = seconds
        self._renewals = renewals
        """How many renewals are answered late, too."""

    async def write(self, command: Command, timeout: float | None) -> Result:
        is_permit = isinstance(command, Transaction) and len(command.success) == 1
        if isinstance(command, self._late) and (is_permit or not isinstance(command, Transaction)):
            await asyncio.sleep(self._seconds)
        return await super().write(command, timeout)

    async def ask_leases(self, query: LeaseQuery, timeout: float | None) -> LeaseAnswer:
        answer = await super().ask_leases(query, timeout)
        if self._renewals and query.verb is LeaseVerb.RENEW:
            self._renewals -= 1
            await asyncio.sleep(self._seconds)
        return answer


@pytest.mark.parametrize(("late", "renewals"), [(Transaction, 0), (RevokeLease, 0), (RevokeLease, 1)])
def test_a_permit_that_comes_late_counts_from_then_on(late: type[Command], renewals: int) -> None:
    """It is another one's turn when its time is over, and not when that of its lease would have been.

    Whether its key comes late, or the place in the row is given back late, or the permit renewed late.
    """

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.client()
        slow = Slow(kv, late=late, renewals=renewals)
        await RateLimiter(slow, "mail", limit=1, seconds=3, ttl=TTL).acquire()
        began = now()
        await RateLimiter(Namespace(kv, b"p/"), "mail", limit=1, seconds=3, ttl=TTL).acquire()
        assert now() - began > 2.5

    virtually(scenario)


def test_a_permit_that_comes_too_late_is_none() -> None:
    """It is over when it comes, or comes late however often it is renewed."""

    async def scenario(cluster: Cluster) -> None:
        over = Slow(cluster.leader, late=RevokeLease, seconds=8)
        assert "was over" in str(await refused(RateLimiter(over, "a", limit=1, seconds=3).acquire(), errors.LeaseLost))
        late = Slow(cluster.leader, late=RevokeLease, seconds=1, renewals=1000)
        assert "too late" in str(await refused(RateLimiter(late, "b", limit=1, seconds=3).acquire(), errors.LeaseLost))

    virtually(scenario)


def test_no_more_permits_than_the_rate_allows() -> None:
    """In any stretch of that length; nobody's clock but the cluster's counts."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.client()
        got: list[float] = []

        async def worker() -> None:
            limiter = RateLimiter(kv, "mail", limit=3, seconds=10, ttl=TTL)
            for _ in range(3):
                await limiter.acquire()
                got.append(now())

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(worker())
        assert len(got) == 12
        for at in range(len(got) - 3):
            assert got[at + 3] - got[at] > 9.5
        assert got[-1] - got[0] < 60
        with pytest.raises(errors.LockNotAcquired):
            await RateLimiter(kv, "mail", limit=3, seconds=10).acquire(timeout=0)
        assert await RateLimiter(kv, "mail", limit=3, seconds=10).count() == 3
        await asyncio.sleep(15)
        assert await RateLimiter(kv, "mail", limit=3, seconds=10).count() == 0

    virtually(scenario, members=3)


async def use(kv: KV) -> None:
    """Hold a semaphore for a moment."""
    async with Semaphore(kv, "x", limit=1, ttl=TTL):
        pass


async def dance(kv: KV) -> None:
    """Begin and end together with one other."""
    other = asyncio.ensure_future(dance_alone(kv))
    try:
        await dance_alone(kv)
    finally:
        other.cancel()


async def dance_alone(kv: KV) -> None:
    """Be one of two."""
    async with DoubleBarrier(kv, "x", count=2, ttl=TTL):
        await asyncio.sleep(0.1)


async def permit(kv: KV) -> None:
    """Take a permit."""
    await RateLimiter(kv, "x", limit=1, seconds=3, ttl=TTL).acquire()


@pytest.mark.parametrize("operation", [use, dance, permit])
def test_cancelled_anywhere_nothing_is_left_behind(operation: object) -> None:
    """And the next one can do the same."""

    async def check(kv: KV, ended: bool) -> None:
        await nothing_is_left(kv, "x")
        async with asyncio.timeout(30):
            await operation(kv)  # type: ignore[operator]

    assert cancel_everywhere(operation, check) > 5  # type: ignore[arg-type]
