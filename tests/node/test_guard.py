"""A member whose state is wrong answers nothing, is repaired from the others, and is one of them again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

from pyraftkv import Client, Cluster, Node, PutKey, errors
from pyraftkv.node import MemberQuarantined, MemberRepaired, NodeEvent
from pyraftkv.replica import CHECK_ENTRIES
from pyraftkv.settings import Alarm, AlarmKind
from pyraftkv.store.values import KvHash
from tests.node.support import asynchronous, caught_up, cluster_of, other_than, refused, until
from tests.store.test_hashing import flip

ROUND = 256

E = TypeVar("E", MemberQuarantined, MemberRepaired)


async def fill(kv: Node | Client, entries: int = CHECK_ENTRIES) -> None:
    """Write so many entries: a put that returns what was there stands alone."""
    for start in range(0, entries, ROUND):
        count = min(ROUND, entries - start)
        await asyncio.gather(*[kv.put(f"fill{i}", b"x", prev_kv=True, timeout=20) for i in range(count)])


def corrupt(node: Node) -> None:
    """Let the node's state be another one than its log says."""
    member = node._member
    assert member is not None
    member.replica.store.apply(PutKey(b"rogue", b"nobody wrote that"))


async def next_of(events: AsyncIterator[NodeEvent], kind: type[E]) -> E:
    """Return the next event of that kind."""
    async for event in events:
        if isinstance(event, kind):
            return event
    raise AssertionError("the node stopped")


def is_sound(node: Node) -> bool:
    """Whether the node answers."""
    assert node._member is not None
    return node._member.is_sound


async def hashes(cluster: Cluster) -> set[int]:
    """Return the hashes of the members' states, all as of the same entry."""
    await caught_up(*cluster)
    return {node._member.replica.state_hash for node in cluster if node._member is not None}


@asynchronous
async def test_a_follower_that_differs_is_found_within_1024_entries_and_comes_back():
    """It refuses reads, writes and watches with a typed error; the others go on; it is repaired by itself."""
    async with cluster_of(3) as cluster:
        await cluster.leader.put("k", "v")
        wrong = cluster.followers[0]
        told = wrong.events()
        first = asyncio.ensure_future(next_of(told, MemberQuarantined))
        await caught_up(*cluster)
        watch = wrong.watch("k")
        corrupt(wrong)
        await fill(cluster.leader)
        assert "2 of 3 members" in (await first).reason
        assert (await next_of(told, MemberRepaired)).index >= CHECK_ENTRIES
        await refused(anext(aiter(watch)), errors.Quarantined)
        assert (await wrong.get("rogue", consistency="local")) is None
        assert (await wrong.put("k", "again")).revision == (await cluster.leader.get("k")).mod_revision
        assert len(await hashes(cluster)) == 1
        await fill(cluster.leader)
        await caught_up(*cluster)
        assert all(map(is_sound, cluster))


@asynchronous
async def test_a_member_in_quarantine_answers_nothing_but_how_it_is():
    """Until somebody repairs it: nothing is repaired here."""
    async with cluster_of(3, repair=False) as cluster:
        wrong = cluster.followers[0]
        corrupt(wrong)
        await fill(cluster.leader)
        await until(lambda: not is_sound(wrong))
        for call in (wrong.get("k", consistency="local"), wrong.get("k"), wrong.put("k", "v"), wrong.range("a")):
            await refused(call, errors.Quarantined)
        await refused(wrong.delete("k"), errors.Quarantined)
        await refused(wrong.take_snapshot(), errors.Quarantined)
        status = await wrong.status()
        assert "2 of 3 members have another state" in status.alarms[0]
        assert (await cluster.leader.put("k", "v")).revision > 1
        async with Client([wrong.name, cluster.leader.name], dialer=cluster.network.dialer()) as client:
            assert (await client.get("k")).text == "v"  # it goes on to somebody who answers
            await client.put("k", "w")
        right = cluster.leader
        await cluster.kill(other_than(cluster, wrong, right))
        await right.put("k", "its log is right: it still acknowledges", timeout=20)


@asynchronous
async def test_a_leader_that_differs_hands_over():
    """It steps down first, and is repaired as a follower."""
    async with cluster_of(3) as cluster:
        wrong = cluster.leader
        corrupt(wrong)
        good = cluster.followers[0]
        await fill(good)
        await until(lambda: not wrong.is_leader, seconds=5)
        await until(lambda: is_sound(wrong))
        await cluster.wait_for_leader()
        await good.put("k", "v", timeout=20)
        assert len(await hashes(cluster)) == 1


@asynchronous
async def test_a_bit_that_flips_in_memory_is_found_and_repaired():
    """By the patrol, without a write."""
    async with cluster_of(3) as cluster:
        await cluster.leader.put("k", "value")
        await caught_up(*cluster)
        wrong = cluster.followers[0]
        member = wrong._member
        assert member is not None
        flip(member.replica.store, b"k")
        assert (await wrong.get("k", consistency="local")).value != b"value"
        before = member.replica
        await until(lambda: member.replica is not before and member.is_sound)
        assert (await wrong.get("k", consistency="local")).value == b"value"


@asynchronous
async def test_two_members_that_differ_let_nobody_write():
    """Nobody can say who is right: the alarm CORRUPT is raised, until people clear it."""
    async with cluster_of(2) as cluster:
        corrupt(cluster.followers[0])
        await fill(cluster.leader)
        error = await refused(_write_until_refused(cluster.leader), errors.Corrupt)
        assert "nobody can say" in str(error)
        assert cluster.leader._member is not None
        rules = cluster.leader._member.replica.rules
        await until(lambda: rules.alarms == [Alarm(AlarmKind.CORRUPT, 1), Alarm(AlarmKind.CORRUPT, 2)])
        assert all(map(is_sound, cluster))


async def _write_until_refused(node: Node) -> None:
    while True:
        await node.put("k", "v")


@asynchronous
async def test_what_is_repaired_stays_repaired_over_a_restart():
    """The state on the disk, made of the wrong one, is replaced at once."""
    async with cluster_of(3) as cluster:
        await fill(cluster.leader, 100)
        wrong = cluster.followers[0]
        await caught_up(*cluster)
        corrupt(wrong)
        await wrong.take_snapshot()
        await fill(cluster.leader)
        await until(lambda: not is_sound(wrong))
        await until(lambda: is_sound(wrong))
        member = wrong._member
        assert member is not None
        await member.taker.wait()
        await cluster.kill(wrong)
        again = await cluster.restart(wrong.name)
        await caught_up(*cluster)
        assert (await again.get("rogue", consistency="local")) is None
        assert len(await hashes(cluster)) == 1


@asynchronous
async def test_hashes_of_histories_are_compared_from_outside():
    """Equal revisions and compact revisions, equal hashes; through a client, too; a member that differs shows."""
    async with cluster_of(3) as cluster:
        for i in range(20):
            await cluster.leader.put(f"k{i % 5}", str(i))
        await cluster.leader.compact(10)
        await caught_up(*cluster)
        found = [await node.hash_kv() for node in cluster]
        assert found == [KvHash(21, 21, 10, found[0].hash)] * 3
        assert (await found_of(cluster, revision=15)).hash_revision == 15
        await refused(cluster.leader.hash_kv(9), errors.Compacted)
        await refused(cluster.leader.hash_kv(22), errors.FutureRevision)
        async with Client([cluster.leader.name], dialer=cluster.network.dialer()) as client:
            assert await client.hash_kv() == found[0]
            await refused(client.hash_kv(9), errors.Compacted)
        corrupt(cluster.followers[0])
        await cluster.followers[1].put("k", "v")
        assert len({(await node.hash_kv(21)).hash for node in cluster}) == 1
        await caught_up(*cluster)
        assert len({(await node.hash_kv(22)).hash for node in cluster}) == 2


async def found_of(cluster: Cluster, *, revision: int) -> KvHash:
    """Return the hash that all members have at a revision."""
    first, *others = [await node.hash_kv(revision) for node in cluster]
    assert all(other == first for other in others)
    return first
