"""Recipes under every fault of the simulator: what they promise holds under each seed.

A test has a few seeds, and more of them under ``--soak``. Each program runs on a machine of its own, which is paused,
killed and cut off as the members are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import pytest

from pyraftkv import KV, MaybeApplied, NotApplied, PutKey, errors
from pyraftkv.recipes import DoubleBarrier, Election, Lock, LockingQueue, Queue, Registry
from pyraftkv.sim import Host, Plan, Trial
from pyraftkv.sim.check import FencedResource, StaleToken, check_fencing
from pyraftkv.sim.trial import ALL_KINDS, attempt

TTL = 2.0
FAULTS_SECONDS = 15.0
SECONDS = 30.0
"""Of a run: faults, and the time to get over them."""
SEEDS, SEEDS_SOAK = 2, 300
DEAD_SECONDS_MAX = 4.0
"""Beyond its ttl, a dead service is seen no longer than this by a cluster that works: an election and what it takes to
end a lease. While no member leads, nobody ends it."""

TROUBLE = (NotApplied, MaybeApplied, errors.LeaseLost, errors.LockNotAcquired, StaleToken, TimeoutError)
"""What a program of these tests begins anew after."""

Program = Callable[[str, KV], Awaitable[object]]


@pytest.fixture
def seeds(soak: bool) -> range:
    """The seeds of a test."""
    return range(1, 1 + (SEEDS_SOAK if soak else SEEDS))


def machines(sim: Trial, count: int, program: Program) -> None:
    """Run a program on so many machines, again and again: it has a name of its own in each life of its machine."""

    async def run(host: Host) -> None:
        async with host.client() as kv:
            while True:
                with suppress(TROUBLE):
                    await program(f"{host.name}/{host.boots}", kv)
                await asyncio.sleep(0.2)

    for number in range(count):
        sim.host(f"worker{number}", program=run)


def trial(seed: int, scenario: Callable[[Trial], object]) -> None:
    """Run a scenario under a seed with every kind of fault. Raises what broke, with the seed."""
    breakage = attempt(scenario, seed, Plan(faults=ALL_KINDS, seconds=FAULTS_SECONDS))
    if breakage is not None:
        raise AssertionError(breakage.report()) from breakage.error


async def pass_time(_: Trial) -> None:
    """Let the programs run."""
    await asyncio.sleep(SECONDS)


# --- Locks and elections -------------------------------------------------------------------------------------------


def locking(sim: Trial) -> None:
    """Whoever holds the lock writes to something outside of the store, with its token."""
    resource = FencedResource()

    async def program(name: str, kv: KV) -> None:
        async with Lock(kv, "job", ttl=TTL) as lock:
            token = lock.token
            for step in range(10):
                await asyncio.sleep(0.1)
                resource.write(name, token, step, at=sim.now())
                sim.expect(check_fencing(resource.writes[-2:]))

    machines(sim, 3, program)
    sim.run(pass_time)
    assert len({write.token for write in resource.writes}) > 2
    sim.expect(check_fencing(resource.writes))


def test_what_a_lock_guards_never_takes_a_stale_token(seeds: range) -> None:
    """And each token is one holder's alone."""
    for seed in seeds:
        trial(seed, locking)


def electing(sim: Trial) -> None:
    """A leader writes its name, guarded by its leadership; each term of office has its own token."""
    reigns: list[tuple[int, str, int]] = []

    async def program(name: str, kv: KV) -> None:
        async with Election(kv, "boss", ttl=TTL).campaign(name) as leadership:
            for step in range(10):
                done = await leadership.commit(_put(f"{name} {step}"))
                reigns.append((done.revision, name, leadership.token))
                await asyncio.sleep(0.1)

    machines(sim, 3, program)
    sim.run(pass_time)
    reigns.sort()
    assert [token for _, _, token in reigns] == sorted(token for _, _, token in reigns), "terms overlap"
    assert len({(name, token) for _, name, token in reigns}) == len({token for _, _, token in reigns}) > 2


def _put(value: str) -> PutKey:
    return PutKey(b"by", value.encode())


def test_terms_of_office_never_overlap(seeds: range) -> None:
    """In the store's own order, tokens only rise; and no two leaders have the same."""
    for seed in seeds:
        trial(seed, electing)


# --- Queues --------------------------------------------------------------------------------------------------------


def queueing(sim: Trial, *, locking: bool) -> None:
    """One machine pushes, others take; what was pushed comes to something."""
    pushed: set[bytes] = set()
    begun: set[bytes] = set()
    done: list[bytes] = []
    cut_off: list[int] = []

    async def push(name: str, kv: KV) -> None:
        queue = LockingQueue(kv, "q", ttl=TTL) if locking else Queue(kv, "q")
        for number in range(1000):
            if sim.now() > FAULTS_SECONDS:
                await asyncio.sleep(1000)
            item = f"{name} {sim.now():.6f} {number}".encode()
            begun.add(item)
            await queue.push(item)
            pushed.add(item)
            await asyncio.sleep(0.4)

    async def take(_: str, kv: KV) -> None:
        if locking:
            async with LockingQueue(kv, "q", ttl=TTL).take() as item:
                await asyncio.sleep(0.1)
                done.append(item.value)
            return
        queue = Queue(kv, "q")
        while True:
            cut_off.append(1)
            done.append(await queue.take())
            cut_off.pop()

    async def main(sim: Trial) -> None:
        await sim.healed()
        await asyncio.sleep(25)

    async def run(name: str, kv: KV) -> None:
        await (push if name.startswith("worker0") else take)(name, kv)

    machines(sim, 3, run)
    sim.run(main)
    assert len(pushed) > 3
    assert set(done) <= begun
    if locking:
        assert pushed <= set(done), "an item was lost"
    else:
        assert len(done) == len(set(done)), "an item was taken twice"
        assert len(pushed - set(done)) <= len(cut_off), "an item was lost that nobody was about to take"


def test_an_item_of_a_queue_is_taken_once(seeds: range) -> None:
    """It is lost only with whoever took it."""
    for seed in seeds:
        trial(seed, partial(queueing, locking=False))


def test_an_item_of_a_locking_queue_is_never_lost(seeds: range) -> None:
    """Whoever dies with it: it is done at least once."""
    for seed in seeds:
        trial(seed, partial(queueing, locking=True))


# --- Barriers and services -----------------------------------------------------------------------------------------


def dancing(sim: Trial) -> None:
    """Three begin together: nobody is inside while one of the round has not been seen to wait."""
    entered: dict[int, set[str]] = {}
    waits: dict[str, int] = {}

    async def program(name: str, kv: KV) -> None:
        waits[name] = waits.get(name, 0) + 1
        async with DoubleBarrier(kv, "dance", count=3, ttl=TTL, timeout=10):
            opened = await kv.get("dance//open")
            assert opened is not None
            entered.setdefault(opened.create_revision, set()).add(name)
            assert len(waits) >= 3
            await asyncio.sleep(0.2)

    machines(sim, 3, program)

    async def main(sim: Trial) -> None:
        await sim.healed()
        await asyncio.sleep(15)

    sim.run(main)
    assert entered, "it never opened"
    assert max(len(names) for names in entered.values()) <= 3
    assert max(len(names) for names in list(entered.values())[-3:]) == 3, "with no faults, it opens for all"


def test_a_double_barrier_opens_for_all_or_none(seeds: range) -> None:
    """A round has exactly as many as there must be, of which some may die inside."""
    for seed in seeds:
        trial(seed, dancing)


def serving(sim: Trial) -> None:
    """Instances come and die; an observer without faults of its own looks who is there."""
    alive: dict[str, float] = {}

    async def program(name: str, kv: KV) -> None:
        async with Registry(kv, ttl=TTL).register("web", name):
            while True:
                alive[name] = sim.now()
                await asyncio.sleep(0.05)

    machines(sim, 3, program)

    async def main(sim: Trial) -> None:
        await sim.healed()
        dead_at = sim.now() + 5
        async with sim.client() as kv:
            await asyncio.sleep(5)
            sim.hosts["worker0"].kill()
            while sim.now() < dead_at + 15:
                try:
                    found = await Registry(kv).resolve("web", timeout=1)
                except errors.Unavailable:
                    continue
                asked_at = sim.now()
                for instance in found:
                    stale = asked_at - alive[instance.address]
                    assert stale <= TTL + DEAD_SECONDS_MAX, f"{instance.address} is dead for {stale:.1f} s"
                await asyncio.sleep(0.1)

    sim.run(main)


def test_no_dead_service_is_shown_longer_than_its_ttl_and_a_bound(seeds: range) -> None:
    """By a cluster that works."""
    for seed in seeds:
        trial(seed, serving)
