"""Members come and go, on real nodes: joining, promotion, removal, replacement, and what is refused."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import pyraftkv
from pyraftkv import Cluster, Node, errors
from pyraftkv.codec import encode_logged
from pyraftkv.core.membership import EXPLICIT
from pyraftkv.core.messages import ForwardedMembership, ForwardedProposals
from pyraftkv.kv import KV, Member
from pyraftkv.log import MemoryStorage
from pyraftkv.node import NodeStopped, RoleChanged, joining
from pyraftkv.protocol import (
    AddMember,
    ChangeMembers,
    DemoteMember,
    Envelope,
    LeaveJoint,
    PromoteMember,
    UpdateMember,
)
from pyraftkv.store.commands import PutKey
from tests.node.support import FAST, asynchronous, caught_up, cluster_of, fast, other_than, refused, until


def joiner(cluster: Cluster, name: str, storage: MemoryStorage | None = None, **options: Any) -> Node:
    """Return a node that joins a cluster; not started."""
    return Node(
        name,
        storage=storage or MemoryStorage(random=random.Random(7)),
        transport=cluster.network.transport(name),
        join=options.pop("join", list(cluster.nodes)),
        config=fast(),
        rng=random.Random(3),
        **options,
    )


def roles(members: list[Member]) -> dict[str, str]:
    """Return roles by name."""
    return {member.name: member.role for member in members}


@asynccontextmanager
async def load(kv: KV) -> AsyncIterator[dict[str, str]]:
    """Write all the time; what is acknowledged is in the dictionary. The end waits for the write under way."""
    acknowledged: dict[str, str] = {}
    is_over = False

    async def write(lane: int) -> None:
        count = 0
        while not is_over:
            key, value = f"{lane}/{count % 7}", str(count)
            await kv.put(key, value, timeout=20)
            acknowledged[key] = value
            count += 1

    tasks = [asyncio.create_task(write(lane)) for lane in range(3)]
    try:
        yield acknowledged
    finally:
        is_over = True
        await asyncio.gather(*tasks)


async def holds(kv: KV, acknowledged: dict[str, str]) -> None:
    """Check that everything that was acknowledged is there."""
    found = {kv_.key.decode(): kv_.text async for kv_ in kv.scan()}
    assert {key: found.get(key) for key in acknowledged} == acknowledged


# --- Growing and shrinking -----------------------------------------------------------------------------------------


@asynchronous
async def test_one_grows_to_five_and_back_to_one_under_load_and_loses_nothing() -> None:
    """Members join as learners, vote when they have caught up, and are removed again, leaders among them."""
    async with cluster_of(1) as cluster:
        db = cluster.client()
        async with load(db) as acknowledged:
            for size in range(2, 6):
                node = await cluster.add()
                assert (await node.status()).role in {"follower", "leader"}
                assert len(await db.members.list()) == size
            assert roles(await db.members.list()) == dict.fromkeys(["n1", "n2", "n3", "n4", "n5"], "voter")
            for size in range(4, 0, -1):
                await cluster.remove(await cluster.wait_for_leader())
                assert len(await cluster.client().members.list()) == size
        survivor = next(iter(cluster))
        assert [member.name for member in await survivor.members.list()] == [survivor.name]
        assert len(acknowledged) == 21
        await holds(survivor, acknowledged)
        assert survivor.is_leader


@asynchronous
async def test_members_are_listed_alike_by_everybody() -> None:
    """Node and client, leader and follower: the same ids, names, addresses, roles, and who leads."""
    async with cluster_of(3) as cluster:
        await cluster.add("late", learner=True)
        await cluster.leader.members.update("n2", priority=7)
        lists = [await kv.members.list() for kv in [*cluster, cluster.client()]]
        assert all(listed == lists[0] for listed in lists)
        assert [(m.id, m.name, m.address, m.role, m.priority) for m in lists[0]] == [
            (1, "n1", "n1", "voter", 1),
            (2, "n2", "n2", "voter", 7),
            (3, "n3", "n3", "voter", 1),
            (4, "late", "late", "learner", 1),
        ]
        assert [m.name for m in lists[0] if m.is_leader] == [cluster.leader.name]
        assert (await cluster.nodes["late"].status()).role == "learner"


@asynchronous
async def test_a_learner_has_everything_and_counts_nothing() -> None:
    """It answers reads, passes writes on, and no quorum needs it."""
    async with cluster_of(1) as cluster:
        learner = await cluster.add(learner=True)
        await learner.put("k", "v")
        kept = await learner.get("k")
        assert kept is not None
        assert kept.text == "v"
        await cluster.kill(learner)
        await cluster.nodes["n1"].put("k", "without it")


@asynchronous
async def test_a_learner_stays_one_until_it_is_promoted_by_hand() -> None:
    """And is demoted again; each change may be asked for twice."""
    async with cluster_of(1) as cluster:
        learner = await cluster.add("l", learner=True)
        for verb, role in (("promote", "voter"), ("promote", "voter"), ("demote", "learner"), ("demote", "learner")):
            await until_done(lambda verb=verb: getattr(cluster.nodes["n1"].members, verb)("l"))
            assert roles(await learner.members.list()) == {"n1": "voter", "l": role}


async def until_done(call: Any) -> None:
    """Repeat a call until the learner is ready for it."""
    while True:
        try:
            await call()
        except errors.LearnerNotReady:
            await asyncio.sleep(0.02)
        else:
            return


# --- Joining -------------------------------------------------------------------------------------------------------


@asynchronous
async def test_whoever_is_stopped_while_it_joins_goes_on_from_there() -> None:
    """Before it was added, before its directory was bound, before its first entry, and as a learner."""
    async with cluster_of(1) as cluster:
        (first,) = cluster
        await first.put("k", "v")
        storage = MemoryStorage(random=random.Random(7))
        node = joiner(cluster, "n2", storage, join=["nobody"])
        starting = asyncio.create_task(node.start())
        await asyncio.sleep(0.05)
        await node.kill()
        await refused(starting, errors.Closed)
        # Its directory has an incarnation. It is added; the answer is lost.
        identity = (await storage.start(failed=pytest.fail)).identity
        await storage.close()
        added = await first.members.add("n2", "elsewhere", incarnation=identity.incarnation)
        assert added.id == 2
        cluster.network.cut("n1", "n2", both=False)  # members' messages are lost; and so is a client's way back
        node = joiner(cluster, "n2", storage, join=["nobody"])
        starting = asyncio.create_task(node.start())
        await asyncio.sleep(0.05)
        await node.kill()
        await refused(starting, errors.Closed)
        cluster.network.heal()
        # It asks again, is told the same id, and is bound to it. It stops before anything was sent to it.
        cluster.network.drop_rate = 1.0
        node = joiner(cluster, "n2", storage)
        await node.start()
        assert (await node.status()).member_id == 2
        assert (await node.status()).last_index == 0
        await node.kill()
        cluster.network.drop_rate = 0.0
        # Bound, with nothing in its log, it asks nobody: the leader finds it. Stopped as a learner, it asks for a vote.
        node = joiner(cluster, "n2", storage, join=["nobody"], learner=True)
        async with asyncio.timeout(6):
            await node.start()
        await until(lambda: node._member is not None and node._member.replica.applied_index)
        assert (await node.status()).role == "learner"
        await node.kill()
        async with joiner(cluster, "n2", storage, join=["nobody"]) as node:
            await until(lambda: node._member is not None and node._member.raft.membership.is_voter(2))
            assert [(member.id, member.address) for member in await node.members.list()] == [(1, "n1"), (2, "n2")]
            kept = await node.get("k")
            assert kept is not None


@asynchronous
async def test_who_was_demoted_while_it_was_away_asks_for_its_vote_again() -> None:
    """1. Its log says that it votes. 2. That was long ago: what it is now, the leader knows."""
    async with cluster_of(3) as cluster:
        own = await cluster.add("n4")
        await cluster.kill(own)
        await cluster.leader.members.demote("n4")
        cluster.network.isolate("n4")
        own = await cluster.restart("n4")
        await until(lambda: own._member is not None and own._member.raft.membership.is_voter(4))
        await asyncio.sleep(3 * joining.PAUSE_SECONDS)
        cluster.network.heal()
        leader = cluster.leader
        await until(lambda: leader._member is not None and leader._member.raft.membership.is_voter(4), seconds=8)


@asynchronous
async def test_a_wiped_directory_is_refused_and_replaced() -> None:
    """Under its old name it is another member: it waits in vain, is put in the place of the old one, and joins."""
    async with cluster_of(3) as cluster:
        gone = other_than(cluster, cluster.leader)
        await cluster.kill(gone)
        wiped = joiner(cluster, gone.name)
        error = await refused(wiped.start(), errors.MemberExists)
        assert "another data directory" in str(error)
        db = cluster.client()
        replaced = await db.members.replace(gone.name)
        assert (replaced.id, replaced.name, replaced.role) == (4, gone.name, "voter")
        async with joiner(cluster, gone.name, MemoryStorage(random=random.Random(8))) as again:
            await again.put("k", "v")
            listed = await again.members.list()
            assert [member.id for member in listed] == sorted({1, 2, 3, 4} - {(await member_id(cluster, gone.name))})
            await until(lambda: again._member is not None and again._member.raft.membership.is_voter(4))


async def member_id(cluster: Cluster, name: str) -> int:
    """Return the id that a first member had."""
    return [*sorted(["n1", "n2", "n3"])].index(name) + 1


@asynchronous
async def test_an_old_directory_under_an_id_that_was_replaced_stops() -> None:
    """It comes back with everything it had, and is told that it was removed."""
    async with cluster_of(3) as cluster:
        gone = other_than(cluster, cluster.leader)
        await cluster.kill(gone)
        await cluster.leader.members.remove(gone.name)

        returned = Node(
            gone.name,
            storage=cluster._storages[gone.name],
            transport=cluster.network.transport(gone.name),
            config=fast(),
        )
        await refused(stays(returned), errors.MemberRemoved)
        term = cluster.leader.term
        await cluster.leader.put("k", "undisturbed")
        assert cluster.leader.term == term


@asynchronous
async def test_who_cannot_be_added_is_told_why() -> None:
    """A name, an address or a directory of another member; a name that is none."""
    async with cluster_of(2) as cluster:
        db = cluster.client()
        await refused(db.members.add("n1", "elsewhere"), errors.MemberExists)
        await refused(db.members.add("n9", "n1"), errors.MemberExists)
        await refused(db.members.add("n 9", "n9"), errors.InvalidRequest)
        added = await db.members.add("n9", "n9")
        assert added == Member(3, "n9", "n9", "learner", is_leader=False, priority=1)
        assert (await db.members.add("n9", "n9")) == added, "twice is once"
        await refused(db.members.promote("n8"), errors.MemberNotFound)
        await refused(db.members.promote(8), errors.MemberNotFound)
        assert "0 entries" in str(await refused(db.members.promote("n9"), errors.LearnerNotReady))


# --- Removing ------------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_leader_that_is_removed_hands_over_first_and_stops() -> None:
    """There is a leader all the time but for the moment of the hand-over; the one that goes says why it stopped."""
    async with cluster_of(3) as cluster:
        old = cluster.leader
        heard = asyncio.create_task(collect(old))
        await asyncio.sleep(0)
        term = old.term
        await other_than(cluster, old).members.remove(old.name)
        assert old.failed is not None
        await refused(asyncio.shield(old.failed), errors.MemberRemoved)
        last = (await heard)[-1]
        assert isinstance(last, NodeStopped)
        assert isinstance(last.error, errors.MemberRemoved)
        roles_heard = [event for event in heard.result() if isinstance(event, RoleChanged)]
        assert roles_heard[-1].leader_name not in {"", old.name}, "it followed the next leader before it went"
        del cluster.nodes[old.name]
        new = await cluster.wait_for_leader()
        assert new.term == term + 1, "by a transfer, not by elections"
        await new.put("k", "v")
        await refused(old.put("k", "v"), errors.Closed)


@asynchronous
async def test_who_removes_itself_hears_of_it() -> None:
    """The last news that a removed member gets is that its removal is committed."""
    async with cluster_of(3) as cluster:
        follower = other_than(cluster, cluster.leader)
        await follower.members.remove(follower.name)
        assert follower.failed is not None
        await refused(asyncio.shield(follower.failed), errors.MemberRemoved)
        with pytest.raises(errors.MemberRemoved):
            await follower.__aexit__(None, None, None)
        del cluster.nodes[follower.name]


@asynchronous
async def test_what_would_cost_the_quorum_is_refused_unless_forced() -> None:
    """Of three, one is down: to remove one of the two others would leave one of two. To remove the one that is down
    is right.
    """
    async with cluster_of(3) as cluster:
        down, up = (node for node in cluster if node is not cluster.leader)
        await cluster.kill(down)
        leader = cluster.leader
        await until(lambda: not active(leader, down.name))
        assert "1 would be active" in str(await refused(up.members.remove(up.name), errors.QuorumAtRisk))
        await refused(up.members.demote(up.name), errors.QuorumAtRisk)
        await refused(
            leader.members.change([AddMember("n8", "n8", 0, learner=False), AddMember("n9", "n9", 0, learner=False)]),
            errors.QuorumAtRisk,
        )
        assert len(await up.members.list()) == 3
        await up.members.remove(down.name)
        assert len(await up.members.list()) == 2
        del cluster.nodes[up.name]
        await up.kill()
        await until(lambda: not active(leader, up.name))


def active(leader: Node, name: str) -> bool:
    """Whether a leader has heard of a member lately."""
    assert leader._member is not None
    peers = leader._member.raft.status().peers
    return any(peer.active for id_, peer in peers.items() if leader._member.peers.name(id_) == name)


@asynchronous
async def test_force_does_what_is_refused() -> None:
    """Who insists may leave two voters of whom one is down; it comes back, and everything goes on."""
    async with cluster_of(3) as cluster:
        down, up = (node for node in cluster if node is not cluster.leader)
        leader = cluster.leader
        await cluster.kill(down)
        await until(lambda: not active(leader, down.name))
        await refused(leader.members.remove(up.name), errors.QuorumAtRisk)
        await leader.members.remove(up.name, force=True)
        await cluster.nodes.pop(up.name).kill()
        await refused(leader.put("k", "v", timeout=0.3), errors.PyraftkvError)
        await cluster.restart(down.name)
        await leader.put("k", "v", timeout=20)
        assert len(await leader.members.list()) == 2


@asynchronous
async def test_the_last_member_is_not_removed() -> None:
    """Nobody would be left to be asked."""
    async with cluster_of(1) as cluster:
        await refused(cluster.leader.members.remove("n1"), errors.InvalidRequest)
        await refused(cluster.leader.members.remove("n1", force=True), errors.InvalidRequest)
        await cluster.leader.put("k", "v")


@asynchronous
async def test_who_is_left_alone_comes_back_alone() -> None:
    """1. Of two the leader removes the other one, which stops. 2. Its power fails, with nothing written since.

    3. What was decided is known to be: it does not wait for a vote that nobody has.
    """
    async with cluster_of(2) as cluster:
        leader, other = cluster.leader, cluster.followers[0]
        await leader.members.remove(other.name)
        assert other.failed is not None
        await refused(asyncio.shield(other.failed), errors.MemberRemoved)
        del cluster.nodes[other.name]
        await cluster.kill(leader)
        again = await cluster.restart(leader.name)
        await again.put("k", "v", timeout=10)


@asynchronous
async def test_who_was_removed_stays_until_it_is_told() -> None:
    """Its vote may be needed to learn that it was removed: it goes when it is refused, or after a while."""
    async with cluster_of(3) as cluster:
        follower = other_than(cluster, cluster.leader)
        leader = cluster.leader
        applied = follower._member
        assert applied is not None
        removal = asyncio.create_task(leader.members.remove(follower.name))
        await until(lambda: not applied.raft.membership.is_voter(applied.raft.id))
        for node in cluster:
            if node is not follower:
                cluster.network.cut(node.name, follower.name)
        await removal
        assert follower.failed is not None
        assert not follower.failed.done()
        at = asyncio.get_running_loop().time()
        await refused(asyncio.shield(follower.failed), errors.MemberRemoved)
        assert asyncio.get_running_loop().time() - at > 3 * fast().election_timeout_seconds
        del cluster.nodes[follower.name]


# --- Several at once, and in the middle ----------------------------------------------------------------------------


@asynchronous
async def test_several_change_in_one_step_and_the_joint_configuration_is_left() -> None:
    """Two learners come to vote, and two voters become learners, at once."""
    async with cluster_of(3) as cluster:
        added = [await cluster.add(f"l{number}", learner=True) for number in (1, 2)]
        leader = cluster.leader
        followers = [node for node in cluster if node is not leader and node not in added]
        ids = {member.name: member.id for member in await leader.members.list()}
        await caught_up(*cluster)
        command = [PromoteMember(ids[node.name]) for node in added] + [DemoteMember(ids[n.name]) for n in followers]
        await until_done(lambda: leader.members.change(command))
        await until(lambda: leader._member is not None and not leader._member.raft.membership.is_joint)
        expected = {leader.name: "voter"} | {n.name: "voter" for n in added} | {n.name: "learner" for n in followers}
        assert roles(await followers[0].members.list()) == expected
        await followers[0].put("k", "v")


@asynchronous
async def test_a_new_leader_leaves_the_joint_configuration_that_it_finds() -> None:
    """An explicit one waits for whoever asks, whoever leads then."""
    async with cluster_of(3) as cluster:
        learner = await cluster.add("l", learner=True)
        leader = cluster.leader
        ids = {member.name: member.id for member in await leader.members.list()}
        await caught_up(*cluster)
        await until_done(lambda: leader.members.change([PromoteMember(ids["l"])], transition=EXPLICIT))
        await cluster.kill(leader)
        new = await cluster.wait_for_leader()
        await new.put("k", "both halves agree")
        assert "joint" in str(await refused(learner.members.update("l", priority=3, timeout=20), errors.Unavailable))
        assert roles(await new.members.leave_joint(timeout=20))["l"] == "voter"
        assert "no joint" in str(await refused(learner.members.leave_joint(timeout=20), errors.InvalidRequest))
        await learner.members.update("l", priority=4, timeout=20)
        assert {member.name: member.priority for member in await new.members.list()}["l"] == 4


@asynchronous
async def test_changes_that_are_asked_for_at_once_are_made_one_after_the_other() -> None:
    """Nobody is refused for another's sake; each is made once."""
    async with cluster_of(3) as cluster:
        await asyncio.gather(
            *[node.members.add(f"x{number}", f"x{number}", timeout=20) for number, node in enumerate([*cluster] * 2)]
        )
        listed = await cluster.client().members.list()
        assert [member.id for member in listed] == list(range(1, 10))
        assert {member.name for member in listed} == {"n1", "n2", "n3", *[f"x{number}" for number in range(6)]}


@asynchronous
async def test_an_address_that_cannot_be_resolved_harms_nobody(tmp_path: Path) -> None:
    """1. A member is added at an address that is none. 2. Clients are told of it, and try it when theirs is gone."""
    async with pyraftkv.open(tmp_path / "a", name="a", listen="127.0.0.1:0", config=FAST) as node:
        for number, address in enumerate(("nonsense", "x" * 70 + ":1", "a..b:1", "127.0.0.1:0")):
            await node.members.add(f"m{number}", address)
        await refused(node.members.add("m", "a\0b:1"), errors.InvalidRequest)
        kv = pyraftkv.connect(node.address)
        await kv.__aenter__()
        await until(lambda: len(kv._named) == 4)
    await refused(kv.get("k", timeout=0.5), errors.ReadTimeout)
    assert kv._tasks, "it goes on"
    await kv.close()


@asynchronous
async def test_what_is_said_of_a_member_reaches_everybody() -> None:
    """A new name and a new address are in the table; a renamed member starts under its new name, or under the old."""
    async with cluster_of(3) as cluster:
        follower = other_than(cluster, cluster.leader)
        await cluster.leader.members.update(follower.name, name="renamed", priority=9)
        await until(lambda: all("renamed" in named(node) for node in cluster))
        storage = cluster._storages[follower.name]
        await cluster.kill(follower)
        for name in ("renamed", follower.name):
            node = Node(
                name,
                members={"n1": "n1", "n2": "n2", "n3": "n3"},
                storage=storage,
                transport=cluster.network.transport(follower.name),
                config=fast(),
                rng=random.Random(5),
            )
            async with node:
                await node.put("k", name, timeout=20)


def named(node: Node) -> list[str]:
    """Return the names that a node knows."""
    assert node._member is not None
    peers = node._member.peers
    return [peers.name(id_) for id_ in peers.ids]


# --- What a refusal means, and what a peer may say -----------------------------------------------------------------


@asynchronous
async def test_what_was_refused_stays_refused() -> None:
    """A copy of the command that comes late finds nothing that speaks against it, and is not made all the same."""
    async with cluster_of(3) as cluster:
        leader = cluster.leader
        learner = await leader.members.add("l", "l")
        session = await leader.open_session(10)
        late = encode_logged(Envelope(session, 1, 1, ChangeMembers([PromoteMember(learner.id)])))
        for node in cluster:
            await refused(node.write_encoded(late, 10), errors.LearnerNotReady)
        cluster._joining["l"], cluster._members["l"] = True, "l"
        cluster._storages["l"] = MemoryStorage(random=random.Random(9))
        joined = await cluster._start("l")
        await caught_up(leader, joined)
        to, sender = [(await node.status()).member_id for node in (leader, other_than(cluster, leader, joined))]
        for node in cluster:
            await refused(node.write_encoded(late, 10), errors.LearnerNotReady)
        leader._life.receive([ForwardedMembership(to, sender, leader.term, late, leave=False)])
        await leader.put("k", "v")
        assert roles(await leader.members.list())["l"] == "learner"
        await until_done(lambda: leader.members.promote("l"))


@asynchronous
async def test_what_cannot_be_applied_is_not_taken_from_a_peer(caplog: pytest.LogCaptureFixture) -> None:
    """No command, or one of the store, or one that says it leaves and does not. Nor a change as an ordinary proposal:
    no leader would count it.
    """
    async with cluster_of(3) as cluster:
        leader, follower = cluster.leader, cluster.followers[0]
        session = await leader.open_session(10)
        to, sender = (await leader.status()).member_id, (await follower.status()).member_id
        put = encode_logged(Envelope(session, 1, 1, PutKey(b"k", b"1")))
        change = encode_logged(Envelope(session, 2, 1, ChangeMembers([UpdateMember(1, priority=5)])))
        leave = encode_logged(Envelope(session, 3, 1, LeaveJoint()))
        for payload, says_leave in ((b"", True), (b"garbage", False), (put, False), (change, True), (leave, False)):
            leader._life.receive([ForwardedMembership(to, sender, leader.term, payload, says_leave)])
        leader._life.receive([ForwardedProposals(to, sender, leader.term, [change, leave])])
        await leader.put("after", "1")
        assert [kv.key for kv in (await follower.range("a")).kvs] == [b"after"]
        assert {member.priority for member in await follower.members.list()} == {1}
        assert all(node.failed is not None and not node.failed.done() for node in cluster)
    assert len([record for record in caplog.records if "cannot be applied" in record.message]) == 6


# --- On disks and sockets ------------------------------------------------------------------------------------------


@asynchronous
async def test_one_grows_to_three_and_back_over_tcp(tmp_path: Path) -> None:
    """With files and sockets: open(join=), load all the time, removal, and a directory that has become useless."""
    host = "127.0.0.1:0"

    def opened(name: str, **options: Any) -> Node:
        return pyraftkv.open(tmp_path / name, name=name, listen=host, config=fast(), **options)

    a = opened("a")
    await a.start()
    async with pyraftkv.connect(a.address) as db, load(db) as acknowledged:
        b, c = opened("b", join=a.address), opened("c", join=[a.address])
        await b.start()
        await c.start()
        await until(
            lambda: all(n._member is not None and n._member.raft.membership.is_voter(i) for n, i in ((b, 2), (c, 3)))
        )
        assert roles(await db.members.list()) == {"a": "voter", "b": "voter", "c": "voter"}
        await db.members.remove("b", timeout=20)
        assert b.failed is not None
        await refused(asyncio.shield(b.failed), errors.MemberRemoved)
        await c.members.remove("a", timeout=20)
        assert a.failed is not None
        await refused(asyncio.shield(a.failed), errors.MemberRemoved)
        assert roles(await db.members.list(timeout=20)) == {"c": "voter"}
        again = opened("b", join=c.address)
        await refused(stays(again), errors.MemberRemoved)
    await holds(c, acknowledged)
    await c.close()
    async with opened("c", join="127.0.0.1:1") as c:
        await holds(c, acknowledged)


async def stays(node: Node) -> None:
    """Start a node and wait for its end."""
    async with asyncio.timeout(6):
        await node.start()
        assert node.failed is not None
        await asyncio.shield(node.failed)


async def collect(node: Node) -> list[object]:
    """Return every event until the node stops."""
    return [event async for event in node.events()]
