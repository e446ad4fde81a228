"""Locks, semaphores, elections and sessions under every fault."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import count

from pyraftkv import KV, MaybeApplied, NotApplied
from pyraftkv.recipes import Election, Leadership, Lock, RWLock, Semaphore, Session, leader_only, singleton
from pyraftkv.sim import Trial
from pyraftkv.sim.check import FencedResource, check_fencing
from tests.recipes.faults.support import DEAD_SECONDS_MAX, TTL, Length, Page, faults_pass, programs, trial

SESSION_TTL = 4.0
"""Longer than most faults last: sessions go on after them."""


async def leases_end(sim: Trial) -> None:
    """Let the programs run until the leases of the dead are over: until then nobody else comes in."""
    await faults_pass(sim, seconds=TTL + DEAD_SECONDS_MAX)


def locking(sim: Trial) -> None:
    """Whoever holds the lock writes to something outside of the store, with its token."""
    resource = FencedResource()

    async def program(name: str, kv: KV) -> None:
        async with Lock(kv, "job", ttl=TTL) as lock:
            token = lock.token
            for step in range(5):
                await asyncio.sleep(0.1)
                resource.write(name, token, step, at=sim.now())
                sim.expect(check_fencing(resource.writes[-2:]))

    programs(sim, 3, program)
    sim.run(leases_end)
    assert len({write.token for write in resource.writes}) > 1
    sim.expect(check_fencing(resource.writes))


def test_what_a_lock_guards_never_takes_a_stale_token(length: Length) -> None:
    """And each token is one holder's alone."""
    trial(length.halved, locking)


def reading_and_writing(sim: Trial) -> None:
    """Readers and writers come in turns; all of them sign."""
    page = Page(sim)
    turns = count(1)

    async def program(name: str, kv: KV) -> None:
        lock = RWLock(kv, "map", ttl=TTL)
        turn = next(turns)
        if turn % 3:
            async with lock.read() as reader:
                await page.sign(reader, f"{name} reads {turn}")
        else:
            async with lock.write() as writer:
                await page.sign(writer, f"{name} writes {turn}")

    programs(sim, 3, program)
    sim.run(leases_end)
    page.check_tokens()
    page.check_alone(kind=" writes ")
    page.check_goes_on()
    assert page.holders_at_once() > 1, "readers do not share"


def test_nobody_reads_while_another_one_writes(length: Length) -> None:
    """What a writer does is before or after all that any other one does; readers share."""
    trial(length, reading_and_writing)


def limiting(sim: Trial) -> None:
    """Three want one of two places."""
    page = Page(sim)
    turns = count(1)

    async def program(name: str, kv: KV) -> None:
        async with Semaphore(kv, "gpu", limit=2, ttl=TTL) as semaphore:
            await page.sign(semaphore, f"{name} {next(turns)}")

    programs(sim, 3, program)
    sim.run(leases_end)
    page.check_tokens()
    page.check_goes_on()
    assert page.holders_at_once() == 2


def test_a_semaphore_has_never_more_holders_than_its_limit(length: Length) -> None:
    """But as many as that."""
    trial(length, limiting)


def electing(sim: Trial) -> None:
    """Whoever leads signs; each term of office has its own token."""
    page = Page(sim)
    turns = count(1)

    async def program(name: str, kv: KV) -> None:
        async with Election(kv, "boss", ttl=TTL).campaign(name) as leadership:
            await page.sign(leadership, f"{name} {next(turns)}", times=3)

    programs(sim, 3, program)
    sim.run(leases_end)
    page.check_tokens()
    page.check_alone()
    page.check_goes_on()


def test_terms_of_office_never_overlap(length: Length) -> None:
    """In the store's own order, tokens only rise; and no two leaders have the same."""
    trial(length.halved, electing)


def working_alone(sim: Trial) -> None:
    """Three programs want the work done once, again and again; one does it at a time."""
    page = Page(sim)
    turns = count(1)

    async def program(name: str, kv: KV) -> None:
        async def work(leadership: Leadership) -> str:
            await page.sign(leadership, f"{name} {next(turns)}")
            return name

        assert await singleton(kv, "job", work, ttl=TTL) == name

    programs(sim, 3, program)
    sim.run(leases_end)
    page.check_tokens()
    page.check_alone()
    page.check_goes_on()


def test_a_singleton_runs_in_one_program_at_a_time(length: Length) -> None:
    """As far as what it writes under its leadership goes; and somebody goes on when that one is lost."""
    trial(length, working_alone)


def working_by_the_clock(sim: Trial) -> None:
    """Three programs do work now and then, for ever: until the one that does it is lost, it is always the same one."""
    page = Page(sim)

    async def program(name: str, kv: KV) -> None:
        async def work(leadership: Leadership) -> None:
            with suppress(NotApplied, MaybeApplied):
                await page.sign(leadership, f"{name} {leadership.token}", times=2)

        await leader_only(kv, "report", work, every=0.5, ttl=TTL)
        raise AssertionError("it has an end")

    async def main(sim: Trial) -> None:
        await faults_pass(sim)
        sim.hosts[page.signatures[-1].name.partition("/")[0]].kill()
        await asyncio.sleep(TTL + DEAD_SECONDS_MAX)

    programs(sim, 3, program)
    sim.run(main)
    page.check_tokens()
    page.check_alone()
    page.check_goes_on(seconds=1.5)


def test_leader_only_works_in_one_program_and_goes_on_in_another(length: Length) -> None:
    """Whatever befalls the first."""
    trial(length.halved, working_by_the_clock)


def sharing_a_session(sim: Trial) -> None:
    """Each machine has one session, and under it takes two locks again and again; it gives up when that takes long."""
    both, other = Page(sim), Page(sim)

    async def program(name: str, kv: KV) -> None:
        async with Session(kv, ttl=SESSION_TTL) as session:
            for turn in count(1):
                with suppress(NotApplied, MaybeApplied, TimeoutError):
                    async with asyncio.timeout(3.0):
                        async with Lock(session, "a") as first, Lock(session, "b") as second:
                            await both.sign(first, f"{name} {session.lease.id} {turn}", times=1)
                            await other.sign(second, f"{name} {session.lease.id} {turn}", times=1)
                await asyncio.sleep(0.3)

    left: list[object] = []

    async def main(sim: Trial) -> None:
        await faults_pass(sim, seconds=SESSION_TTL + DEAD_SECONDS_MAX + 3.0)
        for page in (both, other):
            page.check_goes_on(workers, seconds=6.0)
        for host in workers:
            sim.hosts[host].kill()
        await asyncio.sleep(SESSION_TTL + DEAD_SECONDS_MAX)
        async with sim.client() as kv:
            left.extend([*await kv.leases.list(), *(each for each in (await kv.range(prefix="")).kvs if each.lease)])

    workers = [f"worker{number}" for number in range(3)]
    programs(sim, 3, program, ask_seconds=0.3)
    sim.run(main)
    for page in (both, other):
        page.check_tokens()
        page.check_alone()
    assert not left, "a session outlives its program"


def test_a_session_leaves_what_it_holds_while_it_goes_on_and_at_its_end(length: Length) -> None:
    """A place that was given up in bad times is free for others soon, and all of them when the program is dead."""
    trial(length.halved, sharing_a_session)
