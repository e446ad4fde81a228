"""Parties, registries and partitioners: who is there, and what is whose."""

from __future__ import annotations

import asyncio
import random
from collections import Counter as Tally
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from pyraftkv import KV, Cluster, errors
from pyraftkv.recipes import Lock, LockingQueue, NoInstance, Partitioner, PartitionState, Party, Registry, Session
from tests.recipes.support import TTL, cancel_everywhere, nothing_is_left, now, refused, soon, virtually


def test_a_party_knows_who_is_there() -> None:
    """In the order in which they came, and with what they say of themselves."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        party = Party(kv, "p", ttl=TTL)
        seen: list[list[str]] = []

        async def follow() -> None:
            async for members in party.watch():
                seen.append([member.text for member in members])  # noqa: PERF401 - it never ends

        following = asyncio.ensure_future(follow())
        async with party.join("ann") as ann:
            async with party.join("bob"):
                await ann.update("anna")
                assert [member.text for member in await party.members()] == ["anna", "bob"]
            await asyncio.sleep(0.5)
        await asyncio.sleep(0.5)
        assert seen[0] == []
        assert seen[-2:] == [["anna"], []]
        following.cancel()
        await nothing_is_left(kv, "p")
        with pytest.raises(errors.InvalidRequest):
            async with ann:
                pytest.fail("it was entered before")

    virtually(scenario)


def test_whoever_is_dead_is_not_there() -> None:
    """His block ends, too."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        party = Party(kv, "p", ttl=TTL)

        async def member() -> None:
            async with party.join("x"):
                await kv.leases.revoke((await kv.leases.list())[0])
                await asyncio.sleep(60)

        await refused(member(), errors.LeaseLost)
        assert await party.members() == []

    virtually(scenario)


def test_whatever_is_begun_under_a_lease_that_is_gone_is_lost() -> None:
    """Not "there is no such lease": who asked has named none, and waits for one error when a lease is lost."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.client()
        jobs = LockingQueue(kv, "jobs", ttl=TTL)
        await jobs.push("one")

        async def begin(make: Callable[[Session], AbstractAsyncContextManager[object]]) -> None:
            async with Session(kv, ttl=TTL) as session:
                await kv.leases.revoke(session.lease.id)
                async with make(session):
                    raise AssertionError("nothing is held")

        for make in (
            lambda session: Lock(session, "a"),
            lambda session: Party(session, "p").join("me"),
            lambda session: Registry(session).register("web", "10.0.0.1:80"),
            lambda session: jobs.take(session=session),
        ):
            await refused(begin(make), errors.LeaseLost)
        assert await jobs.held() == 0
        assert await jobs.count() == 1

    virtually(scenario)


def test_a_second_life_takes_the_place_of_the_first() -> None:
    """Which takes nothing away from it when it leaves."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        party = Party(kv, "p", ttl=TTL)
        async with Session(kv, ttl=TTL) as old_lease:
            old = Party(old_lease, "p").join("old", id="a")
            await old.__aenter__()
            async with party.join("new", id="a") as new:
                await refused(old.update("older"), errors.LeaseLost)
                await refused(old.check(), errors.LeaseLost)
                await old.__aexit__(None, None, None)
                await new.check()
                assert [member.text for member in await party.members()] == ["new"]
        assert await party.members() == []

    virtually(scenario)


def test_a_second_life_under_the_same_session_keeps_its_place() -> None:
    """The first one's end is that of another write, though both hang on one lease."""

    async def scenario(cluster: Cluster) -> None:
        async with Session(cluster.leader, ttl=TTL) as session:
            party = Party(session, "p")
            old = party.join("old", id="a")
            await old.__aenter__()
            await old.update("older")
            async with party.join("new", id="a") as new:
                await old.__aexit__(None, None, None)
                await new.check()
                assert [member.text for member in await party.members()] == ["new"]
            assert await party.members() == []

    virtually(scenario)


def test_several_under_one_session_are_several() -> None:
    """Each with an id of its own."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        async with Session(kv, ttl=TTL) as session:
            registry = Registry(session)
            async with registry.register("web", "h1"), registry.register("web", "h2"):
                assert [each.address for each in await registry.resolve("web")] == ["h1", "h2"]
            assert await registry.resolve("web") == []

    virtually(scenario)


# --- Registry ------------------------------------------------------------------------------------------------------


def test_services_are_found_by_name() -> None:
    """With their metadata; those that drain are left out, and what is no instance is passed over."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.client()
        registry = Registry(kv, ttl=TTL)
        async with registry.register("web", "10.0.0.1:80", metadata={"zone": "a"}, id="w1") as first:  # noqa: SIM117
            async with registry.register("web", "10.0.0.2:80", id="w2"), registry.register("db", "10.0.0.3:80"):
                await kv.put("services/web//instances/zz", "nonsense")
                await kv.put("services/web//instances/zy", "{}")
                await kv.put("services/web//instances/zx", '{"address": 1, "metadata": {}, "healthy": true}')
                found = await registry.resolve("web")
                assert [(each.id, each.address) for each in found] == [("w1", "10.0.0.1:80"), ("w2", "10.0.0.2:80")]
                assert found[0].metadata == {"zone": "a"}
                await first.drain()
                assert [each.id for each in await registry.resolve("web")] == ["w2"]
                assert [each.id for each in await registry.resolve("web", unhealthy=True)] == ["w1", "w2"]
                await first.recover()
                await first.describe({"zone": "b"})
                assert [each.metadata for each in await registry.resolve("web")] == [{"zone": "b"}, {}]
        assert await registry.resolve("web") == []
        assert await registry.resolve("db") == []
        with pytest.raises(errors.InvalidRequest):
            registry.register("web", "")
        with pytest.raises(errors.InvalidRequest):
            registry.register("web", "x", metadata={"n": 1})  # type: ignore[dict-item]
        with pytest.raises(errors.InvalidRequest):
            registry.register("web", "x", metadata={"n": "x" * 70_000})

    virtually(scenario, members=3)


def test_a_live_list_of_instances() -> None:
    """Picked in turns, or by a key; it follows who comes and goes."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        registry = Registry(kv, ttl=TTL)
        async with await registry.watch("web") as web:
            with pytest.raises(NoInstance, match=r"nobody serves 'services/web'$"):
                web.pick()
            changes = web.changes()
            assert await anext(changes) == []
            async with Session(kv, ttl=TTL) as session:
                several = Registry(session)
                for number in range(4):
                    await several.register("web", f"h{number}", id=f"{number}").__aenter__()
                await soon(lambda: len(web) == 4)
                assert [each.address for each in web] == ["h0", "h1", "h2", "h3"]
                assert Tally(web.pick().id for _ in range(8)) == {"0": 2, "1": 2, "2": 2, "3": 2}
                before = {key: web.pick(key).id for key in map(str, range(200))}
                assert before == {key: web.pick(key).id for key in before}
                assert min(Tally(before.values()).values()) > 20
                await kv.delete("services/web//instances/3")
                await soon(lambda: len(web) == 3)
                after = {key: web.pick(key).id for key in before}
                assert all(after[key] == before[key] for key in before if before[key] != "3")
                assert [each.id for each in await anext(changes)] != []
            await soon(lambda: len(web) == 0)
        assert list(web[:2]) == []

    virtually(scenario)


# --- Partitioner ---------------------------------------------------------------------------------------------------


def test_items_are_shared_out_and_no_item_has_two() -> None:
    """Though participants come, go and die at any time; in the end everything is somebody's."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.client()
        rng = random.Random(5)
        items = [f"shard{number}" for number in range(12)]
        owner: dict[str, int] = {}
        shares: dict[int, frozenset[str]] = {}

        async def participant(number: int, *, seconds: float) -> None:
            working: frozenset[str] = frozenset()
            await asyncio.sleep(rng.uniform(0, 5))
            try:
                async with asyncio.timeout(seconds), Partitioner(kv, "p", items, ttl=TTL) as partitioner:
                    async for mine in partitioner.shares():
                        for item in working - mine:
                            await asyncio.sleep(0.1)  # to end the work takes a moment
                            assert owner.pop(item) == number
                        for item in mine - working:
                            assert owner.setdefault(item, number) == number
                        working = shares[number] = mine
            except TimeoutError:
                pass
            finally:
                shares.pop(number, None)
                for item in working:
                    if owner.get(item) == number:
                        del owner[item]

        tasks = [asyncio.ensure_future(participant(number, seconds=5 + 5 * number)) for number in range(5)]
        await asyncio.sleep(4.9)
        assert set().union(*shares.values()) <= set(items)
        await asyncio.sleep(15)
        assert sorted(owner) == sorted(items)
        assert max(map(len, shares.values())) - min(map(len, shares.values())) <= 1
        await asyncio.gather(*tasks)
        await nothing_is_left(kv, "p")

    virtually(scenario, members=3)


@pytest.mark.parametrize("items", ["abc", [], [1, 2], ["a", ""], None])
def test_items_are_a_list_of_names(items: Any) -> None:
    """Not a text that is taken to pieces, and not numbers, whose names others would not find again."""

    async def scenario(cluster: Cluster) -> None:
        with pytest.raises(errors.InvalidRequest, match="items="):
            Partitioner(cluster.leader, "shards", items)

    virtually(scenario)


def test_a_participant_says_what_it_is_at() -> None:
    """Allocating until others have given back what is its; released before it is theirs."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        async with Partitioner(kv, "p", list("abcd"), ttl=TTL) as first:
            assert first.state is PartitionState.ALLOCATING
            shares = first.shares()
            assert await anext(shares) == frozenset("abcd")
            async with Partitioner(kv, "p", list("abcd"), ttl=TTL) as second:
                others = asyncio.ensure_future(anext(second.shares()))
                assert await anext(shares) == frozenset("ac")
                assert first.state is PartitionState.RELEASE
                await asyncio.sleep(1)
                assert second.mine == frozenset()
                more = asyncio.ensure_future(anext(shares))
                await asyncio.sleep(1)
                assert [first.state, second.state] == [
                    PartitionState.ACQUIRED,
                    PartitionState.ALLOCATING,
                ] or second.mine
                assert await others <= frozenset("bd")
            assert second.state is PartitionState.FAILURE
            assert await more == frozenset("abcd")
            with pytest.raises(errors.InvalidRequest):
                await anext(first.shares())
        with pytest.raises(errors.InvalidRequest):
            Partitioner(kv, "p", ["a", ""])

    virtually(scenario)


def test_who_is_thrown_out_takes_no_part() -> None:
    """What was his is shared out among the others."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader

        async def alone() -> None:
            async with Partitioner(kv, "p", list("ab"), ttl=TTL) as partitioner:
                async for _ in partitioner.shares():
                    await kv.delete(prefix="p//members/")

        await refused(alone(), errors.LeaseLost)
        assert now() < 10

    virtually(scenario)


# --- Cancelled -----------------------------------------------------------------------------------------------------


async def take_part(kv: KV) -> None:
    """Be there for a moment."""
    async with Party(kv, "x", ttl=TTL).join("me") as me:
        await me.update("I")


async def register(kv: KV) -> None:
    """Be found for a moment."""
    async with Registry(kv, "x", ttl=TTL).register("x", "here") as instance:
        await instance.drain()


async def share(kv: KV) -> None:
    """Take everything there is to share."""
    async with Partitioner(kv, "x", list("ab"), ttl=TTL) as partitioner:
        async for mine in partitioner.shares():
            if len(mine) == 2:
                break


@pytest.mark.parametrize("operation", [take_part, register, share])
def test_cancelled_anywhere_nobody_is_left_behind(operation: object) -> None:
    """And the next one can do the same."""

    async def check(kv: KV, ended: bool) -> None:
        await nothing_is_left(kv, "x")
        await nothing_is_left(kv, "x/x")
        async with asyncio.timeout(30):
            await operation(kv)  # type: ignore[operator]

    assert cancel_everywhere(operation, check) > 3  # type: ignore[arg-type]
