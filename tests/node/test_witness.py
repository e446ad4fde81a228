"""Two members and a witness, on real nodes: whichever one is lost, writes go on, and nothing is lost with it."""

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
from pyraftkv.core.membership import EXPLICIT
from pyraftkv.core.messages import Heartbeat
from pyraftkv.core.ready import KeepPayloads, Save
from pyraftkv.core.types import Entry
from pyraftkv.log import MemoryStorage
from pyraftkv.log.memory import ENTRY_OVERHEAD_BYTES
from pyraftkv.node import AlarmCleared, AlarmRaised, RoleChanged
from pyraftkv.node.bootstrap import GENESIS_TERM
from pyraftkv.node.leases import LeaseKeeper
from pyraftkv.node.node import Node as NodeClass
from pyraftkv.node.witness import WitnessDuty
from pyraftkv.protocol import AddMember, ChangeMembers, DemoteMember, PromoteMember, RemoveMember
from pyraftkv.witness import WitnessReplica
from tests.core.machines import ack, append, lead, machine, step_all, with_witness
from tests.node.support import FAST, asynchronous, fast, refused, until

VALUE = "v" * 1000


@asynccontextmanager
async def two_and_a_witness(seed: int = 1, **changes: Any) -> AsyncIterator[Cluster]:
    """Run n1, n2 and the witness n3."""
    async with Cluster.in_memory(3, config=fast(**changes), seed=seed, witness=True) as cluster:
        yield cluster


async def level(cluster: Cluster) -> None:
    """Wait until every running node has applied the same entries."""

    def is_level() -> bool:
        marks = {(m.replica.applied_index, m.raft.commit) for n in cluster if (m := n._member) is not None}
        return len(marks) == 1 and len(set(*marks)) == 1

    await until(is_level)


async def fill(cluster: Cluster, first: int, count: int) -> None:
    """Write, by whoever can."""
    db = cluster.client()
    for number in range(first, first + count):
        await db.put(f"k{number}", VALUE, timeout=20)


async def count_at(node: Node) -> int:
    """Return how many keys a node has of its own."""
    return len([kv async for kv in node.scan(prefix="k", consistency="local")])


# --- Losing one ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("n1", "n2"), ("n2", "n1"), ("n3", "n1")], ids="-".join)
@asynchronous
async def test_whichever_one_is_lost_writes_go_on(order: tuple[str, str]) -> None:
    """One after the other: each comes back before the next one goes, and has what was written without it."""
    async with two_and_a_witness() as cluster:
        db = cluster.client()
        for number, name in enumerate(order):
            await cluster.kill(name)
            await db.put(f"k{number}", "v", timeout=20)
            await cluster.restart(name)
            await level(cluster)
        assert [await count_at(cluster.nodes[name]) for name in ("n1", "n2")] == [2, 2]


@asynchronous
async def test_a_witness_that_leads_brings_up_who_is_behind_and_hands_over() -> None:
    """B is away while A writes; A dies, and B comes back: what it lacks is on the witness alone."""
    async with two_and_a_witness() as cluster:
        if cluster.leader.name != "n1":
            await cluster.leader.transfer_leadership("n1")
        await level(cluster)
        await cluster.kill("n2")
        await fill(cluster, 0, 20)
        await level(cluster)
        await cluster.kill("n1")
        led = asyncio.create_task(_leads(cluster.nodes["n3"]))
        node = await cluster.restart("n2")
        await until(lambda: node.is_leader)
        assert await node.get("k19") is not None
        await fill(cluster, 20, 1)
        assert await count_at(node) == 21
        assert await led


async def _leads(node: Node) -> bool:
    """Wait until a node leads; False if it never did."""
    async for event in node.events():
        if isinstance(event, RoleChanged) and event.role == "leader":
            return True
    return False


@asynchronous
async def test_the_log_of_a_witness_stays_short_while_everybody_is_there() -> None:
    """It drops what both others have: its snapshot is the table of the members."""
    async with two_and_a_witness(snapshot_log_bytes_min=4096) as cluster:
        await fill(cluster, 0, 40)
        storage = cluster._storages["n3"]
        await until(lambda: storage.snapshot_index > 20 and storage.log_bytes < 20_000)
        assert sum(len(chunk) for chunk in storage._chunks[next(iter(storage._chunks))]) < 500


@asynchronous
async def test_a_witness_keeps_what_one_of_the_others_lacks_however_much() -> None:
    """No snapshot of its own goes past the floor, and after a restart it still knows what it has."""
    async with two_and_a_witness(snapshot_log_bytes_min=4096) as cluster:
        await fill(cluster, 0, 5)
        await level(cluster)
        raft = cluster.nodes["n3"]._member.raft  # type: ignore[union-attr]
        await until(lambda: raft.floor == raft.commit)
        await cluster.kill("n2")
        floor = raft.floor
        await fill(cluster, 5, 40)
        await cluster.kill("n3")
        await cluster.restart("n3")
        await level(cluster)
        storage = cluster._storages["n3"]
        assert storage.snapshot_index <= floor + 1
        await cluster.kill("n1")
        node = await cluster.restart("n2")
        await until(lambda: node.is_leader)
        await node.get("k0")
        assert await count_at(node) == 45


@asynchronous
async def test_a_witness_that_is_the_first_by_name_lets_another_one_begin() -> None:
    """Nobody waits for an election timeout at the beginning: the first one that has the data stands at once."""
    slow = fast(election_timeout_seconds=5.0)
    async with Cluster(["n1", "n2", "n3"], witness="n1", config=slow, seed=11) as cluster:
        assert (cluster.leader.name, cluster.leader.term) == ("n2", GENESIS_TERM + 1)


# --- When there is no room -----------------------------------------------------------------------------------------


@asynchronous
async def test_without_room_a_witness_keeps_no_payloads_and_the_leader_says_that_there_is_one_copy() -> None:
    """Until the other member is back and has everything: then it does not depend on this leader any more."""
    async with two_and_a_witness(witness_log_bytes_max=20_000) as cluster:
        if cluster.leader.name != "n1":
            await cluster.leader.transfer_leadership("n1")
        leader = cluster.nodes["n1"]
        await level(cluster)
        assert (await leader.status()).alarms == []
        events = leader.events()
        raised = asyncio.create_task(anext(_alarms(events)))
        await cluster.kill("n2")
        written = 0
        while not (await leader.status()).alarms:
            await fill(cluster, written, 10)
            written += 10
            assert written < 1000
        assert (await leader.status()).alarms == ["SINGLE_COPY"]
        assert await raised == AlarmRaised("SINGLE_COPY")
        await cluster.kill("n3")
        await cluster.restart("n3")
        cleared = asyncio.create_task(anext(_alarms(leader.events())))
        node = await cluster.restart("n2")
        assert await cleared == AlarmCleared("SINGLE_COPY")
        assert (await leader.status()).alarms == []
        await until(lambda: cluster._storages["n3"].log_bytes < 10_000)
        await cluster.kill("n1")
        await until(lambda: node.is_leader)
        await fill(cluster, written, 1)
        assert await count_at(node) == written + 1


@asynchronous
async def test_the_log_of_a_witness_without_room_stays_short_however_long_a_member_is_away() -> None:
    """What is hollow is dropped as well, and it still knows that it has not everything; then the member comes back."""
    async with two_and_a_witness(witness_log_bytes_max=20_000) as cluster:
        await level(cluster)
        await cluster.kill("n2")
        storage = cluster._storages["n3"]
        written = 0
        while storage.snapshot_index < 200:
            await fill(cluster, written, 20)
            written += 20
            assert written < 1000
        await until(lambda: storage.log_bytes < 40_000)
        await cluster.kill("n3")
        witness = (await cluster.restart("n3"))._member
        assert witness is not None
        assert witness.raft.floor < witness.raft.hollow_index
        await cluster.restart("n2")
        await level(cluster)
        await until(lambda: witness.raft.holds_payloads)
        assert await count_at(cluster.nodes["n2"]) == written


@asynchronous
async def test_payloads_are_kept_again_when_half_of_the_room_is_free() -> None:
    """Not as soon as a little is: a witness at its bound would say so with every other entry."""
    storage = MemoryStorage(random=random.Random(1))
    await storage.start(failed=lambda _: None)
    raft = machine(1, node=3, membership=with_witness(3), witness=True)
    told: list[KeepPayloads] = []
    duty = WitnessDuty(raft, replica=WitnessReplica, storage=storage, bytes_max=1000, feed=told.append)
    rooms: list[tuple[int, list[KeepPayloads]]] = []
    for size_bytes in (900, 1100, 900, 600, 400, 900):
        saved = asyncio.get_running_loop().create_future()
        entry = Entry(1, 1, bytes(size_bytes - ENTRY_OVERHEAD_BYTES))
        storage.save(Save(1, None, [entry], None), saved.set_result)
        await saved
        duty.tend()
        rooms.append((storage.log_bytes, [*told]))
        told.clear()
    out, again = [KeepPayloads(False)], [KeepPayloads(True)]
    assert rooms == [(900, []), (1100, out), (900, []), (600, []), (400, again), (900, [])]


def test_a_witness_drops_nothing_that_another_leader_may_yet_replace() -> None:
    """What is hollow today and not committed may be whole tomorrow, and count as a copy."""
    raft = machine(1, node=3, membership=with_witness(3), witness=True)
    replica = WitnessReplica()
    storage = MemoryStorage(random=random.Random(1))
    duty = WitnessDuty(raft, replica=lambda: replica, storage=storage, bytes_max=1000, feed=raft.feed)
    step_all(raft, KeepPayloads(False), append(raft, 1, 1, 1, 1, commit=2), Heartbeat(3, 1, 1, 1, 0, 1))
    duty.tend()
    assert (raft.hollow_index, replica.lost_index, replica.floor) == (3, 2, 1)


async def _alarms(events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for event in events:
        if isinstance(event, AlarmRaised | AlarmCleared):
            yield event


# --- Coming, going and being replaced ------------------------------------------------------------------------------


@asynchronous
async def test_a_witness_joins_two_that_run_and_votes_from_the_first_moment() -> None:
    """Far behind it gets the members alone; then either of the two may be lost."""
    async with Cluster.in_memory(2, config=fast(snapshot_log_bytes_min=4096), seed=2) as cluster:
        await fill(cluster, 0, 30)
        for node in cluster:
            await node.take_snapshot()
            await fill(cluster, 0, 1)
            await node.take_snapshot()
        witness = await cluster.add("w", witness=True)
        assert {m.name: m.role for m in await cluster.client().members.list()} == {
            "n1": "voter",
            "n2": "voter",
            "w": "witness",
        }
        await level(cluster)
        assert (await witness.status()).keys == 0
        await cluster.kill(cluster.leader)
        await fill(cluster, 30, 1)


@asynchronous
async def test_a_lost_member_is_replaced_while_there_are_one_and_a_witness() -> None:
    """In one step, for a witness needs two beside it; the new one gets everything, and then the old leader may go."""
    async with two_and_a_witness(seed=3) as cluster:
        await fill(cluster, 0, 5)
        await level(cluster)
        await cluster.kill("n2")
        db = cluster.client()
        with pytest.raises(errors.InvalidRequest, match="2 voters with the data"):
            await db.members.remove("n2", timeout=20)
        await db.members.replace("n2", name="n4", address="n4", timeout=20)
        cluster.forget("n2")
        node = await cluster.add("n4")
        await fill(cluster, 5, 1)
        await level(cluster)
        await cluster.kill("n1")
        await fill(cluster, 6, 1)
        assert await count_at(node) == 7


@asynchronous
async def test_a_lost_member_is_replaced_after_its_leader_was_started_again() -> None:
    """That one knows neither what the lost one has, nor what the witness dropped."""
    async with two_and_a_witness(seed=10) as cluster:
        await fill(cluster, 0, 5)
        await level(cluster)
        await cluster.kill("n2")
        await cluster.kill("n1")
        await cluster.restart("n1")
        await cluster.wait_for_leader()
        leader, db = cluster.nodes["n1"], cluster.client()
        await until(lambda: leader.is_leader and not leader._member.raft.status().peers[2].active)  # type: ignore[union-attr]
        await db.members.replace("n2", name="n4", address="n4", timeout=20)
        assert leader._member.raft.floor == 0  # type: ignore[union-attr]


@asynchronous
async def test_who_has_what_the_witness_dropped_does_not_go_before_another_one_has_it() -> None:
    """All of it would stand on one disk, with nobody lost; a member that is lost has nothing to stay for."""
    async with two_and_a_witness(seed=8) as cluster:
        if cluster.leader.name != "n1":
            await cluster.leader.transfer_leadership("n1")
        await fill(cluster, 0, 5)
        await level(cluster)
        leader, db = cluster.leader, cluster.client()
        await until(lambda: leader._member.raft.floor >= 5)  # type: ignore[union-attr]
        for name in ("n1", "n2"):
            with pytest.raises(errors.QuorumAtRisk, match="the witness has dropped"):
                await db.members.replace(name, name="x", address="x", timeout=20)
        await cluster.add("n4", learner=True)
        members = {member.name: member.id for member in await db.members.list()}
        await db.members.change([PromoteMember(members["n4"]), RemoveMember(members["n2"])], timeout=20)
        await cluster.kill("n1")
        await fill(cluster, 5, 1)
        assert await count_at(cluster.nodes["n4"]) == 6


@asynchronous
async def test_a_leader_that_goes_does_not_wait_for_a_witness_to_take_over() -> None:
    """Where it is the only other voter that answers, the leader makes the change itself."""
    async with two_and_a_witness(seed=9) as cluster:
        await cluster.add("n4", learner=True)
        if cluster.leader.name != "n1":
            await cluster.leader.transfer_leadership("n1")
        leader, db = cluster.leader, cluster.client()
        members = {member.name: member.id for member in await db.members.list()}
        await cluster.kill("n2")
        await until(lambda: not leader._member.raft.status().peers[members["n2"]].active)  # type: ignore[union-attr]
        await db.members.change([PromoteMember(members["n4"]), RemoveMember(members["n1"])], timeout=8)
        await until(lambda: cluster.nodes["n4"].is_leader)
        await fill(cluster, 0, 1)


@asynchronous
async def test_a_lost_witness_is_replaced_by_a_witness() -> None:
    """One takes the other's place; a second one beside it is refused."""
    async with two_and_a_witness(seed=4) as cluster:
        await fill(cluster, 0, 5)
        await cluster.kill("n3")
        db = cluster.client()
        with pytest.raises(errors.InvalidRequest, match="more than one witness"):
            await db.members.add("w", "w", witness=True, timeout=20)
        added = await db.members.replace("n3", name="w", address="w", timeout=20)
        assert added.role == "witness"
        cluster.forget("n3")
        await cluster.add("w", witness=True)
        assert {m.role for m in await db.members.list() if m.name == "w"} == {"witness"}
        await cluster.kill("n2")
        await fill(cluster, 5, 1)


@asynchronous
async def test_a_member_is_a_witness_for_life_or_never() -> None:
    """It is not demoted, nobody else joins as an expected one, and no directory is started as the other kind."""
    async with two_and_a_witness(seed=5) as cluster:
        db = cluster.client()
        with pytest.raises(errors.InvalidRequest, match="stays what it is"):
            await db.members.demote("n3")
        with pytest.raises(errors.InvalidRequest, match="nothing to catch up"):
            await db.members.change([AddMember("x", "x", 0, learner=True, witness=True)])
        with pytest.raises(errors.LeadershipNotTransferred):
            await _alone(cluster)
        with pytest.raises(errors.InvalidRequest, match="cannot lead"):
            await db.transfer_leadership("n3")
        await cluster.kill("n3")
        await cluster.kill("n2")
        for name, witness in (("n3", False), ("n2", True)):
            node = _node(cluster, name, witness=witness)
            with pytest.raises(errors.ConfigurationError, match="the cluster knows this member"):
                await node.start()
        await cluster.restart("n2")
        await db.members.replace("n3", name="w", address="w", timeout=20)
        joins = _node(cluster, "w", witness=False, storage=MemoryStorage(random=random.Random(1)), join=["n1", "n2"])
        with pytest.raises(errors.InvalidRequest, match="a witness, and stays"):
            await joins.start()


@asynchronous
async def test_a_directory_that_was_bound_as_a_witness_s_is_no_other_member_s() -> None:
    """It was stopped before it had heard anything of its cluster: the log tells it what it is, and it stops."""
    async with two_and_a_witness(seed=12) as cluster:
        storage = MemoryStorage(random=random.Random(2))
        incarnation = (await storage.start(failed=lambda _: None)).identity.incarnation
        await cluster.kill("n3")
        db = cluster.client()
        change = ChangeMembers([RemoveMember(3), AddMember("w", "w", incarnation, learner=False, witness=True)])
        cluster_id = cluster.nodes["n1"]._member.replica.roster.cluster_id  # type: ignore[union-attr]
        (added,) = (await db.change_members(change, 20)).added
        await storage.identify(cluster_id=cluster_id, member_id=added)
        await storage.close()
        node = _node(cluster, "w", witness=False, storage=storage, join=["n1", "n2"])
        await node.start()
        assert node.failed is not None
        try:
            with pytest.raises(errors.ConfigurationError, match="its witness"):
                await asyncio.wait_for(node.failed, 5.0)
        finally:
            await node.kill()


async def _alone(cluster: Cluster) -> None:
    """Ask the leader to hand over while the witness is the only other one."""
    follower = next(node.name for node in cluster.followers if node.name != "n3")
    await cluster.kill(follower)
    try:
        leader = await cluster.wait_for_leader()
        await until(lambda: not leader._member.raft.status().peers[int(follower[1:])].active)  # type: ignore[union-attr]
        await leader.transfer_leadership()
    finally:
        await cluster.restart(follower)
        await level(cluster)


def _node(cluster: Cluster, name: str, *, witness: bool, storage: MemoryStorage | None = None, **options: Any) -> Node:
    return Node(
        name,
        members=None if options else cluster._members,
        storage=storage or cluster._storages[name],
        transport=cluster.network.transport(name),
        config=FAST,
        rng=random.Random(1),
        witness=witness,
        **options,
    )


@asynchronous
async def test_a_cluster_begins_with_two_members_and_one_witness_or_not_at_all() -> None:
    """Two witnesses, or one beside a single member, would be worse than none."""
    members = {name: "x" + name for name in ("n1", "n2", "n3")}
    async with Cluster.in_memory(1) as network:
        nodes = [
            Node(
                name,
                members=members,
                storage=MemoryStorage(random=random.Random(number)),
                transport=network.network.transport(members[name]),
                config=FAST,
                witness=number > 1,
            )
            for number, name in enumerate(members, start=1)
        ]
        starts = await asyncio.gather(*(node.start() for node in nodes), return_exceptions=True)
        assert {type(error) for error in starts} == {errors.ConfigurationError}


@asynchronous
async def test_an_explicit_joint_configuration_keeps_its_witness() -> None:
    """On either side of it; afterwards it is where it was."""
    async with two_and_a_witness(seed=6) as cluster:
        await cluster.add("n4", learner=True)
        db = cluster.client()
        members = {member.name: member.id for member in await db.members.list()}
        await db.members.change([DemoteMember(members["n2"]), RemoveMember(members["n4"])][1:], transition=EXPLICIT)
        assert {m.role for m in await db.members.leave_joint() if m.name == "n3"} == {"witness"}


@asynchronous
async def test_nobody_is_repaired_from_a_witness() -> None:
    """It has no state that anybody could take."""
    async with two_and_a_witness(seed=13) as cluster:
        await level(cluster)
        assert cluster.nodes["n1"]._member.guard._sources() == [2]  # type: ignore[union-attr]


# --- Who asks it ---------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_witness_answers_how_it_is_and_nothing_else() -> None:
    """Whatever a program asks of it is refused by name, and did not happen; a client goes on to who can answer."""
    async with two_and_a_witness(seed=7) as cluster:
        witness = cluster.nodes["n3"]
        for call in (
            witness.put("k", "v"),
            witness.get("k", consistency="local"),
            witness.delete("k"),
            witness.members.list(),
            witness.members.remove("n1"),
            witness.open_session(1.0),
            anext(aiter(witness.snapshot_parts("local", None))),
        ):
            await refused(call, errors.NoState)
        with pytest.raises(errors.NoState):
            witness.watch_range(b"k", b"", start_revision=0, prev_kv=False, no_put=False, no_delete=False)
        assert (await witness.status()).role == "witness"
        client = pyraftkv.Client(["n3"], dialer=cluster.network.dialer(), rng=random.Random(1))
        async with client:
            await client.put("k", "v")
            assert (await client.get("k")).text == "v"
        assert await witness.transfer_leadership(timeout=10) in {"n1", "n2"}


@asynchronous
async def test_a_leading_witness_says_of_no_lease_that_it_is_gone() -> None:
    """It has none, and a quorum that confirms that it leads: who asks has to wait for one that keeps them."""
    raft = lead(machine(1, 1, node=3, membership=with_witness(3), witness=True))
    step_all(raft, ack(raft, 2, raft.last_index))
    replica = WitnessReplica()
    replica.applied_index, replica.applied_term = raft.commit, raft.term

    async def done(_: object) -> None: ...

    keeper = LeaseKeeper(
        raft,
        loop=asyncio.get_running_loop(),
        replica=lambda: replica,
        decide=done,
        confirm=done,
        election_seconds=1.0,
        checkpoint_seconds=300.0,
        timeout_seconds=1.0,
    )
    keeper.tend(asyncio.get_running_loop().time() + 1.0, late_seconds=0.0)
    await refused(keeper.renew(7, 9.0), errors.NoLeader)
    await refused(keeper.time_to_live(7, 9.0), errors.NoLeader)


@asynchronous
async def test_two_members_and_a_witness_over_tcp(tmp_path: Path) -> None:
    """On files and sockets: the witness's directory begins with the members, and is started again."""
    ports: dict[str, str] = {}
    nodes: dict[str, NodeClass] = {}

    def opened(name: str) -> NodeClass:
        return pyraftkv.open(
            tmp_path / name,
            name=name,
            listen=ports[name],
            members=ports,
            witness=name == "w",
            config=fast(snapshot_log_bytes_min=4096),
        )

    for name in ("a", "b", "w"):
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        ports[name] = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        server.close()
        await server.wait_closed()
    try:
        nodes = {name: opened(name) for name in ports}
        await asyncio.gather(*(node.start() for node in nodes.values()))
        for number in range(30):
            await nodes["a"].put(f"k{number}", VALUE, timeout=20)
        await until(lambda: nodes["w"]._storage.snapshot_index > 0)
        await nodes["w"].kill()
        nodes["w"] = opened("w")
        await nodes["w"].start()
        await nodes["b"].kill()
        await nodes["a"].put("k30", VALUE, timeout=20)
        await until(lambda: nodes["w"]._member.raft.commit == nodes["a"]._member.raft.commit)  # type: ignore[union-attr]
        await nodes["a"].kill()
        nodes["b"] = opened("b")
        await nodes["b"].start()
        assert await nodes["b"].get("k30", timeout=20) is not None
    finally:
        for node in nodes.values():
            await node.kill()


@pytest.mark.parametrize(
    "options",
    [{}, {"members": "a=h:1,w=h:2"}, {"join": "h:1", "learner": True}],
    ids=["alone", "beside-one", "learner"],
)
def test_where_a_witness_could_be_of_no_use_none_is_opened(tmp_path: Path, options: dict[str, Any]) -> None:
    """It is said before anything is made on the disk."""
    with pytest.raises(errors.ConfigurationError, match="two members with the data"):
        pyraftkv.open(tmp_path / "w", name="w", listen="127.0.0.1:0", witness=True, insecure=True, **options)
    assert not (tmp_path / "w").exists()
