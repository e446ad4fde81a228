"""Elections, and work that one program of many does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pyraftkv import KV, Cluster, PutKey, errors
from pyraftkv.kv import KeyValue
from pyraftkv.recipes import Election, Leadership, Session, leader_only, singleton
from tests.recipes.support import TTL, cancel_everywhere, nothing_is_left, now, refused, soon, virtually


def test_one_candidate_leads_and_the_next_one_after_it() -> None:
    """Everybody can know who, and terms of office have tokens that rise."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.client()
        election = Election(kv, "boss", ttl=TTL)
        assert await election.leader() is None
        tokens: list[int] = []

        async def stand(name: str) -> None:
            async with election.campaign(name) as leadership:
                leader = await election.leader()
                assert leader is not None
                assert (leader.text, leader.create_revision) == (name, leadership.token)
                tokens.append(leadership.token)
                await asyncio.sleep(1)

        async with asyncio.TaskGroup() as group:
            for name in ("a", "b", "c"):
                group.create_task(stand(name))
        assert len(tokens) == 3
        assert tokens == sorted(tokens)
        assert await election.leader() is None
        await nothing_is_left(kv, "boss")

    virtually(scenario, members=3)


def test_who_follows_sees_leaders_come_proclaim_and_go() -> None:
    """Somebody who waits behind the leader is nobody's business."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        election = Election(kv, "boss", ttl=TTL)
        seen: list[str | None] = []

        async def follow() -> None:
            async for leader in election.observe():
                seen.append(leader and leader.text)  # noqa: PERF401 - it never ends

        following = asyncio.ensure_future(follow())
        await soon(lambda: seen == [None])
        with pytest.raises(errors.LeaseLost):  # noqa: PT012 - the block is what raises
            async with election.campaign("a") as leadership:
                await soon(lambda: seen == [None, "a"])
                waiting = asyncio.ensure_future(stand(election, "b"))
                await leadership.proclaim("a, again")
                await soon(lambda: seen == [None, "a", "a, again"])
                await kv.leases.revoke((await kv.leases.list())[0])
                await asyncio.sleep(1000)
        await waiting
        await soon(lambda: seen == [None, "a", "a, again", "b", None])
        following.cancel()

    virtually(scenario)


async def stand(election: Election, value: str) -> None:
    """Lead for a moment."""
    async with election.campaign(value):
        await asyncio.sleep(1)


def test_who_has_lost_the_leadership_can_proclaim_nothing() -> None:
    """Neither as a leader that was, nor as one that never was."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        election = Election(kv, "boss", ttl=TTL)
        with pytest.raises(errors.LockNotAcquired):
            async with election.campaign("a") as leadership, election.campaign("b", timeout=0):
                pytest.fail("two lead")
        await refused(leadership.proclaim("still me"), errors.LeaseLost)

    virtually(scenario)


def test_an_election_under_a_session_of_the_candidate() -> None:
    """One lease for all that a program stands for."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        async with Session(kv, ttl=TTL) as session:
            async with Election(session, "x").campaign("me"), Election(session, "y").campaign("me"):
                assert len(await kv.leases.list()) == 1
            assert await Election(kv, "x").leader() is None

    virtually(scenario)


def test_a_singleton_runs_in_one_program_and_goes_on_in_another() -> None:
    """It is cancelled where it is lost, and returns what the work returns."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        begun: list[str] = []

        async def program(name: str) -> str:
            async def work(leadership: Leadership) -> str:
                begun.append(name)
                await asyncio.sleep(10 if len(begun) == 3 else 1000)
                await leadership.commit(PutKey(b"done", name.encode()))
                return name

            return await singleton(kv, "job", work, ttl=TTL, value=name)

        programs = [asyncio.ensure_future(program(name)) for name in ("a", "b")]
        for times in (1, 2):
            await soon(lambda times=times: len(begun) == times)  # type: ignore[misc]
            leader = await Election(kv, "job").leader()
            assert leader is not None
            await kv.leases.revoke(leader.lease)
        done, pending = await asyncio.wait(programs, return_when=asyncio.FIRST_COMPLETED)
        assert begun[:3] == ["a", "b", "a"]
        assert [task.result() for task in done] == ["a"]
        for task in pending:
            task.cancel()

    virtually(scenario)


def test_what_the_work_of_a_singleton_raises_ends_it() -> None:
    """And the leadership is free."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader

        async def work(_: Leadership) -> None:
            raise LookupError("no")

        await refused(singleton(kv, "job", work, ttl=TTL), LookupError)
        assert await Election(kv, "job").leader() is None

    virtually(scenario)


def test_work_that_cannot_be_called_so_is_refused() -> None:
    """A plain function that takes its time would stop the loop; a time that is none would mean at once, for ever."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        plain: Any = lambda leadership: None  # noqa: E731
        assert "async function" in str(await refused(singleton(kv, "job", plain, ttl=TTL), errors.InvalidRequest))
        for every in (-1.0, "60", None):
            wrong: Any = every
            refusal = await refused(leader_only(kv, "job", plain, every=wrong, ttl=TTL), errors.InvalidRequest)
            assert "every=" in str(refusal)

    virtually(scenario)


def test_work_that_is_done_every_so_often_is_done_by_one() -> None:
    """By another one when that is gone, whatever happens to the cluster meanwhile."""

    async def scenario(cluster: Cluster) -> None:
        calls: list[tuple[str, float, int]] = []

        async def program(name: str, kv: KV) -> None:
            async def work(leadership: Leadership) -> None:
                calls.append((name, now(), leadership.token))

            await leader_only(kv, "report", work, every=60, ttl=TTL)

        a, b = cluster.followers
        programs = {node.name: asyncio.ensure_future(program(node.name, node)) for node in (a, b)}
        await soon(lambda: len(calls) == 3, seconds=300)
        first = calls[0][0]
        assert {name for name, _, _ in calls} == {first}
        assert [round(calls[at + 1][1] - calls[at][1]) for at in range(2)] == [60, 60]
        cluster.network.isolate(cluster.nodes[first].address)
        await soon(lambda: calls[-1][0] != first, seconds=300)
        assert calls[-1][2] > calls[2][2]
        cluster.network.heal()
        count = len(calls)
        await asyncio.sleep(130)
        assert len({name for name, _, _ in calls[count:]}) == 1
        for task in programs.values():
            assert not task.done()
            task.cancel()

    virtually(scenario, members=3)


def test_work_goes_on_after_a_write_of_which_nobody_knows_what_became() -> None:
    """A leader of the cluster is cut off while it asks for a lease: it may have been granted. It stands again."""

    async def scenario(cluster: Cluster) -> None:
        node = cluster.leader
        calls: list[float] = []

        async def work(_: Leadership) -> None:
            calls.append(now())

        await node.put("a", "1")
        cluster.network.isolate(node.address)
        maybe = asyncio.ensure_future(node.leases.grant(10))
        task = asyncio.ensure_future(leader_only(node, "report", work, every=60, ttl=TTL))
        await refused(maybe, errors.MaybeApplied)
        await asyncio.sleep(1)
        assert not calls
        assert not task.done()
        cluster.network.heal()
        await soon(lambda: calls)
        await node.close()
        await refused(task, errors.Closed)

    virtually(scenario, members=3)


async def lead(kv: KV) -> None:
    """Lead for a moment, and say so."""
    async with Election(kv, "boss", ttl=TTL).campaign("a") as leadership:
        await leadership.proclaim("b")


def test_cancelled_anywhere_a_candidate_leaves_nothing_behind() -> None:
    """Somebody else leads as soon as the ttl is over."""

    async def check(kv: KV, ended: bool) -> None:
        await nothing_is_left(kv, "boss")
        leader: KeyValue | None = await Election(kv, "boss").leader()
        assert leader is None

    assert cancel_everywhere(lead, check) > 5
