"""Barriers, parties, services and shares under every fault."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from pyraftkv import KV, MaybeApplied, NotApplied, PutKey, errors
from pyraftkv.recipes import Barrier, DoubleBarrier, Partitioner, PartitionState, Party, Registry
from pyraftkv.sim import Trial
from pyraftkv.store.commands import Compare, CompareResult, CompareTarget, RangeQuery
from pyraftkv.store.values import RangeResult
from tests.recipes.faults.support import (
    DEAD_SECONDS_MAX,
    SETTLED_SECONDS,
    TTL,
    Length,
    faults_pass,
    programs,
    revision_of,
    trial,
)

WORKERS = ("worker0", "worker1", "worker2")

FOR_EVER = 1 << 62
"""A revision that nothing comes after."""

# --- Barriers ------------------------------------------------------------------------------------------------------


def waiting(sim: Trial) -> None:
    """One puts a barrier up, again while it is up, and takes it away; the others wait for that, time and again."""
    lifts: list[tuple[int, int]] = []
    """Between which revisions it may have been down: from the word to lift it to the word that it is up again."""
    passed: list[tuple[int, int]] = []
    """Between which revisions somebody came by."""
    through: dict[str, float] = {}

    async def keep(kv: KV) -> None:
        barrier = Barrier(kv, "gate")
        for _ in range(2):
            await barrier.hold()
            up_at = await revision_of(kv)
            if lifts and lifts[-1][1] == FOR_EVER:
                lifts[-1] = lifts[-1][0], up_at
            await asyncio.sleep(0.3)
        lifts.append((await revision_of(kv), FOR_EVER))
        await barrier.lift()
        await asyncio.sleep(0.2)

    async def wait(name: str, kv: KV) -> None:
        came_at = await revision_of(kv)
        await Barrier(kv, "gate").wait()
        passed.append((came_at, await revision_of(kv)))
        through[name.partition("/")[0]] = sim.now()
        await kv.put("through", name)  # so that revisions tell one time from another

    async def run(name: str, kv: KV) -> None:
        await (keep(kv) if name.startswith("worker0") else wait(name, kv))

    lifts.append((0, FOR_EVER))
    programs(sim, 3, run)
    sim.run(faults_pass)
    assert len(lifts) > 1, "it was never lifted"
    for came_at, went_at in passed:
        assert any(came_at <= up_at and lifted_at <= went_at for lifted_at, up_at in lifts), "through a barrier"
    assert min(through[name] for name in WORKERS[1:]) > sim.now() - SETTLED_SECONDS, "a barrier holds for ever"


def test_nobody_comes_through_a_barrier_that_is_up(length: Length) -> None:
    """All the time from before he came until after he went on; and everybody goes on once it was lifted."""
    trial(length, waiting)


def dancing(sim: Trial) -> None:
    """Three begin together, again and again."""
    entered: dict[int, set[str]] = {}
    began_at: dict[int, float] = {}

    async def program(name: str, kv: KV) -> None:
        async with DoubleBarrier(kv, "dance", count=3, ttl=TTL, timeout=10):
            opened = await kv.get("dance//open")
            assert opened is not None
            entered.setdefault(opened.create_revision, set()).add(name)
            began_at.setdefault(opened.create_revision, sim.now())
            await asyncio.sleep(0.9)

    programs(sim, 3, program)
    sim.run(lambda sim: faults_pass(sim, seconds=TTL + DEAD_SECONDS_MAX + SETTLED_SECONDS))
    assert max(len(names) for names in entered.values()) <= 3
    last = [names for at, names in entered.items() if SETTLED_SECONDS > sim.now() - began_at[at] > 1.0]
    assert last, "it opens no more"
    assert {len(names) for names in last} == {3}, f"with no faults, it opens for all: {last}"


def test_a_double_barrier_opens_for_all_or_none(length: Length) -> None:
    """A round has exactly as many as there must be, of which some may die inside."""
    trial(length.halved, dancing)


# --- Who is there --------------------------------------------------------------------------------------------------


async def look_on(sim: Trial, alive: dict[str, float], look: Callable[[KV], Awaitable[list[str]]]) -> None:
    """Look who is there, without faults of one's own: nobody who is dead for long, and in the end all who live."""
    await faults_pass(sim)
    await asyncio.sleep(DEAD_SECONDS_MAX)
    began_at = sim.now()
    found: list[str] = []
    async with sim.client() as kv:
        sim.hosts[WORKERS[0]].kill()
        while sim.now() < began_at + TTL + DEAD_SECONDS_MAX + 1.0:
            with suppress(errors.Unavailable):
                found = await look(kv)
                for name in found:
                    stale = sim.now() - alive[name]
                    assert stale <= TTL + DEAD_SECONDS_MAX, f"{name} is dead for {stale:.1f} s"
            await asyncio.sleep(0.2)
    missing = [host for host in WORKERS[1:] if not any(name.startswith(host) for name in found)]
    assert not missing, f"{missing} live, and are not there"


def serving(sim: Trial) -> None:
    """Instances come and die; an observer looks who is there."""
    alive: dict[str, float] = {}

    async def program(name: str, kv: KV) -> None:
        async with Registry(kv, ttl=TTL).register("web", name):
            while True:
                alive[name] = sim.now()
                await asyncio.sleep(0.1)

    async def look(kv: KV) -> list[str]:
        return [instance.address for instance in await Registry(kv).resolve("web", timeout=1)]

    programs(sim, 3, program)
    sim.run(lambda sim: look_on(sim, alive, look))


def test_no_dead_service_is_shown_longer_than_its_ttl_and_a_bound(length: Length) -> None:
    """By a cluster that works; and every living one is."""
    trial(length.halved, serving)


def meeting(sim: Trial) -> None:
    """A member has the same id in all its lives: the end of an earlier one's lease takes nothing from the next."""
    alive: dict[str, float] = {}

    async def program(name: str, kv: KV) -> None:
        async with Party(kv, "party", ttl=TTL).join(name, id=name.partition("/")[0]) as me:
            while True:
                await asyncio.sleep(0.1)
                alive[name] = sim.now()
                if sim.now() > sim.plan.seconds + SETTLED_SECONDS:
                    await me.check()
                    await asyncio.sleep(0.4)

    async def look(kv: KV) -> list[str]:
        return [member.text for member in await Party(kv, "party").members(timeout=1)]

    async def main(sim: Trial) -> None:
        follower = asyncio.ensure_future(follow())
        await look_on(sim, alive, look)
        follower.cancel()
        async with sim.client() as kv:
            assert sorted(await look(kv)) == sorted(seen), "who follows sees others"

    async def follow() -> None:
        async with sim.client(name="follower") as kv:
            while True:
                with suppress(errors.Unavailable, errors.Compacted, errors.WatchCancelled):
                    async for members in Party(kv, "party").watch():
                        seen[:] = [member.text for member in members]

    seen: list[str] = []
    programs(sim, 3, program)
    sim.run(main)


def test_a_party_shows_who_is_there_and_nobody_else(length: Length) -> None:
    """Later than a ttl and a bound; who follows it sees the same."""
    trial(length, meeting)


# --- Shares --------------------------------------------------------------------------------------------------------

ITEMS = ("a", "b", "c", "d")


def sharing(sim: Trial) -> None:
    """Each marks his items, and nobody else's; and what he was told to have is his while he is there."""
    latest: dict[str, Partitioner] = {}
    """Of each machine's latest life."""

    async def mark(name: str, kv: KV, partitioner: Partitioner, items: frozenset[str], lease: int) -> None:
        """Raises `AssertionError` if he is there, and does not have what he was told to."""
        is_there = RangeQuery(f"shards//members/{lease:016x}".encode())
        for item in [*items] * 2:
            is_his = Compare(CompareTarget.LEASE, CompareResult.EQUAL, f"shards//held/{item}".encode(), lease)
            with suppress(NotApplied, MaybeApplied):
                asked = kv.txn().when(is_his).then(PutKey(b"mark/" + item.encode(), name.encode())).otherwise(is_there)
                result = await asked
                if not result.succeeded:
                    (found,) = result.responses
                    assert isinstance(found, RangeResult)
                    assert not found.kvs, f"{name} was told to have {item}: {partitioner}"
            await asyncio.sleep(0.1)

    async def program(name: str, kv: KV) -> None:
        async with Partitioner(kv, "shards", ITEMS, ttl=TTL) as partitioner:
            lease = partitioner._session.lease.id  # pyright: ignore[reportPrivateUsage]
            async for mine in partitioner.shares():
                latest[name.partition("/")[0]] = partitioner
                await mark(name, kv, partitioner, mine, lease)

    programs(sim, 3, program)
    sim.run(lambda sim: faults_pass(sim, seconds=TTL + DEAD_SECONDS_MAX + SETTLED_SECONDS))
    shares = list(latest.values())
    assert sorted(item for each in shares for item in each.mine) == list(ITEMS), f"{shares}: not each item is one's"
    assert {each.state for each in shares} == {PartitionState.ACQUIRED}


def test_what_is_shared_out_is_one_participants_at_a_time(length: Length) -> None:
    """As far as what he writes under it goes; and all of it is somebody's in the end."""
    trial(length, sharing)
