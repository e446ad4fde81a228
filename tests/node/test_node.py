"""The life of a node: starting, stopping, failing, and being asked while it does."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pyraftkv
from pyraftkv import Node, errors, writes
from pyraftkv.codec import encode_logged
from pyraftkv.core import PAYLOAD_BYTES_MAX, Entry, EntryFetch
from pyraftkv.core.messages import ForwardedProposals
from pyraftkv.core.ready import Save
from pyraftkv.core.types import NO_NODE
from pyraftkv.log import MemoryStorage
from pyraftkv.log.base import Recovered
from pyraftkv.node import NodeStopped, admission
from pyraftkv.node.driver import Driver
from pyraftkv.protocol import Envelope, Genesis, MemberInfo
from pyraftkv.store.commands import DeleteRange, PutKey
from pyraftkv.transport import MemoryNetwork
from tests.node.support import FAST, asynchronous, cluster_of, fast, other_than, refused, take, until


class FailingStorage(MemoryStorage):
    """A disk that fails when it is told to, as a disk does: nothing completes any more, and `failed` is called once."""

    def __init__(self) -> None:
        super().__init__(random=random.Random(5))
        self.is_failing = False
        self.reads_fail = False
        self._failed: Callable[[BaseException], None] | None = None

    async def start(self, *, failed: Callable[[BaseException], None], **listeners: Any) -> Recovered:
        self._failed = failed
        return await super().start(failed=failed, **listeners)

    def save(self, save: Save, then: Callable[[int], None]) -> None:
        if not self.is_failing:
            super().save(save, then)
        elif self._failed is not None:
            failed, self._failed = self._failed, None
            asyncio.get_running_loop().call_soon(failed, errors.StorageFailed("input/output error"))

    async def read_entries(self, *, lo: int, hi: int, bytes_max: int) -> list[Entry]:
        if self.reads_fail:
            raise errors.WalCorruption("rotten")
        return await super().read_entries(lo=lo, hi=hi, bytes_max=bytes_max)


def lone_node(storage: MemoryStorage | None = None, **changes: Any) -> Node:
    """Return a cluster of one."""
    return Node(
        "n1",
        members={"n1": "n1"},
        storage=storage or MemoryStorage(),
        transport=MemoryNetwork().transport("n1"),
        config=fast(**changes),
        rng=random.Random(1),
    )


def trio(network: MemoryNetwork, storages: dict[str, MemoryStorage], **changes: Any) -> list[Node]:
    """Return the nodes of a cluster, not started."""
    members = {name: name for name in storages}
    return [
        Node(
            name,
            members=members,
            storage=storage,
            transport=network.transport(name),
            config=fast(**changes),
            rng=random.Random(number),
        )
        for number, (name, storage) in enumerate(storages.items())
    ]


@asynchronous
async def test_a_failing_disk_stops_its_node_and_no_other() -> None:
    """1. The leader's disk fails with writes under way: they may be applied, `failed` says why, the node stops.

    2. The others elect another leader and go on. What was acknowledged is there.
    """
    network = MemoryNetwork()
    storages: dict[str, MemoryStorage] = {name: FailingStorage() for name in ("a", "b", "c")}
    nodes = trio(network, storages)
    await asyncio.gather(*[node.start() for node in nodes])
    await nodes[0].put("k", "acknowledged", timeout=20)
    leader = await until(lambda: next((node for node in nodes if node.is_leader), None))
    await leader.put("k2", "v")
    events = asyncio.create_task(collect(leader))
    await asyncio.sleep(0)
    disk = leader._storage
    assert isinstance(disk, FailingStorage)
    disk.is_failing = True
    assert leader.failed is not None
    under_way = [asyncio.create_task(leader.put("lost", str(number))) for number in range(5)]
    watch = leader.watch("k")
    reader = asyncio.create_task(take(watch, 1))
    for write in under_way:
        assert "input/output" in str(await refused(write, errors.NodeFailed))
    await refused(reader, errors.Closed)
    await refused(asyncio.shield(leader.failed), errors.StorageFailed)
    assert isinstance((await events)[-1], NodeStopped)
    await refused(leader.put("k", "v"), errors.Closed)
    with pytest.raises(errors.StorageFailed):
        await leader.__aexit__(None, None, None)
    others = [node for node in nodes if node is not leader]
    kept = await others[0].get("k", timeout=20)
    assert kept is not None
    assert kept.text == "acknowledged"
    await others[1].put("k", "on", timeout=20)
    await asyncio.gather(*[node.kill() for node in others])


async def collect(node: Node) -> list[object]:
    """Return every event until the node stops."""
    return [event async for event in node.events()]


@asynchronous
async def test_no_put_is_acknowledged_before_it_is_saved() -> None:
    """A lone member whose disk never completes a save acknowledges nothing."""
    storage = FailingStorage()
    node = lone_node(storage)
    await node.start()
    await node.put("k", "1", timeout=20)
    storage.save = lambda save, then: None  # type: ignore[method-assign]  # a disk that hangs
    await refused(node.put("k", "2", timeout=0.3), errors.WriteTimeout)
    local = await node.get("k", consistency="local")
    assert local is not None
    assert local.text == "1"
    await node.kill()


@asynchronous
async def test_a_disk_that_fails_during_the_first_start() -> None:
    """`start` raises what the disk said; nothing is left running."""
    storage = FailingStorage()
    storage.is_failing = True
    node = lone_node(storage)
    await refused(node.start(), errors.StorageFailed)
    await node.close()
    assert isinstance((await collect(node))[-1], NodeStopped)


@asynchronous
async def test_a_log_that_cannot_be_read_for_a_follower_stops_the_node() -> None:
    """A disk error is never swallowed, whoever asked."""
    network = MemoryNetwork()
    storages: dict[str, MemoryStorage] = {name: FailingStorage() for name in ("a", "b", "c")}
    nodes = trio(network, storages)
    await asyncio.gather(*[node.start() for node in nodes])
    await nodes[0].put("k", "v", timeout=20)
    leader = await until(lambda: next((node for node in nodes if node.is_leader), None))
    disk = leader._storage
    assert isinstance(disk, FailingStorage)
    disk.reads_fail = True
    assert leader._member is not None
    driver: Driver = leader._member.driver
    driver._fetches.put_nowait(EntryFetch(1, 2, 100))
    assert leader.failed is not None
    await refused(asyncio.shield(leader.failed), errors.WalCorruption)
    await asyncio.gather(*[node.kill() for node in nodes])


@asynchronous
async def test_a_start_that_is_cancelled_or_closed_leaves_nothing_behind() -> None:
    """Waiting for the other members of a first start: cancelled it raises so, closed it raises `Closed`."""
    network = MemoryNetwork()
    for end in ("cancel", "close", "kill"):
        node = trio(network, {"a": MemoryStorage(), "b": MemoryStorage()})[0]
        starting = asyncio.create_task(node.start())
        await until(lambda node=node: node._bootstrap is not None)
        assert "starting" in repr(node)
        await refused(node.put("k", "v"), errors.Closed)
        if end == "cancel":
            starting.cancel()
            await refused(starting, asyncio.CancelledError)  # type: ignore[arg-type]
        else:
            await (node.close() if end == "close" else node.kill())
            await refused(starting, errors.Closed)
        assert node.term == 0


@asynchronous
async def test_a_first_start_may_be_left_at_any_await() -> None:
    """While its first entry is saved, too: the save ends, and finds nobody who waits for it."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    has_started, passes = False, 0
    while not has_started:
        node = Node("a", members={"a": "a"}, storage=MemoryStorage(), transport=MemoryNetwork().transport("a"))
        starting = asyncio.create_task(node.start())
        for _ in range(passes):
            await asyncio.sleep(0)
        has_started = starting.done()
        passes += 1
        starting.cancel()
        await asyncio.wait([starting])
        await node.close()
    assert told == []


@asynchronous
async def test_a_close_that_is_cancelled_still_stops_the_node() -> None:
    """Whoever cancels a close wants it sooner, not never."""
    async with cluster_of(3) as cluster:
        node = cluster.leader
        await node.put("k", "v")
        del cluster.nodes[node.name]
        for other in list(cluster):
            await cluster.kill(other)
        closing = asyncio.create_task(node.close())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        closing.cancel()
        await refused(closing, asyncio.CancelledError)  # type: ignore[arg-type]
        assert node.failed is not None
        await node.failed
        assert not node.is_leader


@asynchronous
async def test_cancelled_calls_leave_nothing_behind() -> None:
    """At every await that there is: afterwards nothing is pending, and no session is being opened."""
    async with cluster_of(3) as cluster:
        for node in (cluster.leader, cluster.followers[0]):
            member = node._member
            assert member is not None
            for passes in range(15):
                calls = [
                    asyncio.create_task(node.put("a", "1")),
                    asyncio.create_task(node.get("a")),
                    asyncio.create_task(node.delete(prefix="a")),
                    asyncio.create_task(take(node.watch("a"), 1)),
                ]
                for _ in range(passes):
                    await asyncio.sleep(0)
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            await until(lambda member=member: not len(member.writes) and not member.reads._count)
            await node.put("a", "2")
            watch = node.watch("a")
            await watch.close()
            for left in list(member.watches._watches.values()):
                await left.close()
            assert len(member.watches) == 0


@asynchronous
async def test_each_caller_has_its_own_deadline_while_a_session_is_opened() -> None:
    """One with little time does not wait for another's; one with more is not failed by another's."""
    async with cluster_of(3) as cluster:
        node = cluster.leader
        network = cluster.network
        network.isolate(node.address)
        await until(lambda: node._member is not None and node._member.raft.leader == 0)
        patient = asyncio.create_task(node.put("a", "1", timeout=60))
        await asyncio.sleep(0)
        await refused(asyncio.wait_for(node.put("b", "1", timeout=0.05), 10), errors.NoLeader)
        other = other_than(cluster, node)
        for far in cluster:
            network.isolate(far.address)
        await until(lambda: other._member is not None and other._member.raft.leader == 0)
        first = asyncio.create_task(other.put("c", "1", timeout=0.05))
        second = asyncio.create_task(other.put("d", "1", timeout=60))
        await refused(first, errors.NoLeader)
        network.heal()
        await asyncio.gather(patient, second)


@asynchronous
async def test_a_stop_while_a_session_is_opened_fails_the_write() -> None:
    """It was not written: `Closed`, and nobody waits for ever."""
    for passes in range(10):
        node = lone_node()
        await node.start()
        write = asyncio.create_task(node.put("a", "1"))
        for _ in range(passes):
            await asyncio.sleep(0)
        await node.kill()
        results = await asyncio.wait_for(asyncio.gather(write, return_exceptions=True), 10)
        assert isinstance(results[0], errors.Closed | errors.NodeFailed | pyraftkv.PutResult), results


@asynchronous
async def test_an_evicted_session_is_replaced() -> None:
    """The write that finds out may have been applied; the next one has a session again."""
    node = lone_node()
    async with node:
        await node.put("a", "1")
        member = node._member
        assert member is not None
        member.replica.sessions._by_id.clear()
        await refused(node.put("a", "2"), errors.SessionExpired)
        await node.put("a", "3")


@asynchronous
async def test_who_waits_for_an_evicted_session_goes_on_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it was sent: it does not wait for the end of what will not come."""
    async with lone_node() as node:
        await node.put("a", "1")
        member = node._member
        assert member is not None
        monkeypatch.setattr(writes, "WINDOW_MAX", 1)
        member.replica.sessions._by_id.clear()
        lost, waited = node.put("a", "2", prev_kv=True), node.put("a", "3", prev_kv=True)
        results = await asyncio.gather(lost, waited, return_exceptions=True)
        assert [type(result) for result in results] == [errors.SessionExpired, pyraftkv.PutResult]


@asynchronous
async def test_writes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One put more than `PENDING_COUNT_MAX` is `Overloaded`; when there is room again, puts go on."""
    async with lone_node() as node:
        await node.put("a", "1")
        monkeypatch.setattr(writes, "PENDING_COUNT_MAX", 3)
        results = await asyncio.gather(*[node.put(f"k{number}", "v") for number in range(5)], return_exceptions=True)
        assert [type(result) for result in results[3:]] == [errors.Overloaded] * 2
        await node.put("b", "1")


@asynchronous
async def test_a_command_that_no_frame_could_carry_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its fields weigh, its encoded form counts; and the next command goes on as if it had not been."""
    async with lone_node() as node:
        session = await node.open_session(10)
        monkeypatch.setattr(admission, "PAYLOAD_BYTES_MAX", 100)
        await refused(node.put("a", b"v" * 100, prev_kv=True), errors.RequestTooLarge)
        with pytest.raises(errors.RequestTooLarge):
            node.write_encoded(encode_logged(Envelope(session, 1, 1, PutKey(b"a", b"v" * 100))), 10)
        await node.put("a", b"v")
        kept = await node.get("a")
        assert kept is not None
        assert kept.version == 1


@asynchronous
async def test_more_puts_at_once_than_a_frame_holds_reach_the_leader() -> None:
    """A follower forwards them in several messages, and what is over its bound in another pass."""
    async with cluster_of(3) as cluster:
        follower = cluster.followers[0]
        await asyncio.gather(*[follower.put(f"k{number}", bytes(1 << 20)) for number in range(10)])


@asynchronous
async def test_a_leader_that_says_it_has_started_again_is_none() -> None:
    """Whoever has its address by now: with that boot count it leads nobody; here it does, and is heard again."""
    async with cluster_of(3) as cluster:
        leader, follower = cluster.leader, cluster.followers[0]
        assert leader._connections is not None
        assert follower._member is not None
        own, raft = leader._connections.own, follower._member.raft
        follower.peer_hello(own)
        await follower.put("k", "v")
        assert raft.leader == own.member_id
        follower.peer_hello(replace(own, boot_count=own.boot_count + 1))
        await until(lambda: raft.leader == NO_NODE)
        await follower.put("k", "v")


@asynchronous
async def test_every_life_draws_a_number_and_leaves_its_seed_alone() -> None:
    """A copy that is put back may have the boot count of a life that was seen, but not its number."""
    numbers = set()
    for rng in (random.Random(1), random.Random(2), random.SystemRandom(), random.SystemRandom()):
        node = Node("a", members={"a": "a"}, storage=MemoryStorage(), transport=MemoryNetwork().transport("a"), rng=rng)
        async with node:
            assert node._connections is not None
            numbers.add(node._connections.own.life)
    assert len(numbers) == 4
    assert min(numbers) > 0


@asynchronous
async def test_a_node_does_not_stop_for_a_refusal_that_cannot_be_true() -> None:
    """It has all that somebody says it has forgotten; or it is refused for something else."""
    async with cluster_of(3) as cluster:
        node = cluster.followers[0]
        assert node._connections is not None
        own = node._connections.own
        less, more = (own.boot_count - 1, *own.start), (own.boot_count - 1, own.start_term, own.start_index + 1)
        node.peer_refused(9, errors.HandshakeRejected(reason="rolled-back", known=less, is_theirs=True))
        node.peer_refused(9, errors.HandshakeRejected(reason="wrong-incarnation", known=more, is_theirs=True))
        await node.put("k", "v")
        node.peer_refused(9, errors.HandshakeRejected("gone", reason="rolled-back", known=more, is_theirs=True))
        assert node.failed is not None
        assert "is refused by member 9: gone" in str(await refused(node.failed, errors.DataDirRolledBack))
        await cluster.kill(node)
        error = await refused(cluster.restart(node.name), errors.DataDirRolledBack)
        assert "had less than was acknowledged" in str(error)


@asynchronous
async def test_what_cannot_be_applied_is_not_taken_from_a_peer(caplog: pytest.LogCaptureFixture) -> None:
    """Once committed it would stop every member, at every start again; one warning tells of all of it."""
    async with cluster_of(3) as cluster:
        leader, follower = cluster.leader, cluster.followers[0]
        session = await leader.open_session(10)
        to, sender = (await leader.status()).member_id, (await follower.status()).member_id
        good = encode_logged(Envelope(session, 1, 1, PutKey(b"good", b"1")))
        genesis = encode_logged(Genesis(7, [MemberInfo(1, "n1", "n1", 1)]))
        for payloads in ([b"garbage", good, genesis], [b""]):
            leader.receive([ForwardedProposals(to, sender, leader.term, payloads)])
        await leader.put("after", "1")
        assert [kv.key for kv in (await follower.range("a")).kvs] == [b"after", b"good"]
        assert all(node.failed is not None and not node.failed.done() for node in cluster)
    dropped = [record.message for record in caplog.records if "cannot be applied" in record.message]
    assert dropped == [f"2 of member {sender}'s proposals cannot be applied: dropped"]


@asynchronous
async def test_the_same_bytes_to_several_members_are_applied_once() -> None:
    """A retry keeps its session and sequence: whoever proposes it, and however often."""
    async with cluster_of(3) as cluster:
        nodes = list(cluster)
        session = await nodes[0].open_session(10)
        payload = encode_logged(Envelope(session, 1, 1, PutKey(b"k", b"v")))
        outcomes = await asyncio.gather(*[node.write_encoded(payload, 10) for node in nodes for _ in range(3)])
        assert len({outcome.revision for outcome in outcomes}) == 1  # type: ignore[union-attr]
        again = await nodes[1].write_encoded(payload, 10)
        assert again == outcomes[0]
        kept = await nodes[2].get("k")
        assert kept is not None
        assert kept.version == 1


@asynchronous
async def test_a_long_command_and_a_long_read_let_others_have_their_turn() -> None:
    """A delete and a range of many keys go on in slices; heartbeats and puts stand between them."""
    async with cluster_of(3) as cluster:
        node = cluster.leader
        await asyncio.gather(*[node.put(f"k{number:05d}", "v", timeout=20) for number in range(4000)])
        assert node._member is not None
        assert len((await node.range(prefix="k")).kvs) == 4000
        term = node.term
        deleted, result = await asyncio.gather(node.delete(prefix="k"), node.put("after", "v"))
        assert deleted.deleted == 4000
        assert result.revision == deleted.revision + 1
        await node.write(DeleteRange(b"k", b"l"), None)
        assert node.term == term


@asynchronous
async def test_a_bug_in_a_loop_stops_the_node_loudly(caplog: pytest.LogCaptureFixture) -> None:
    """A member that goes on half would be worse than one that stops."""
    node = lone_node()
    await node.start()
    assert node._member is not None
    node._member.inbox.put(object())  # type: ignore[arg-type]
    assert node.failed is not None
    await refused(asyncio.shield(node.failed), KeyError)
    assert "n1 stops" in caplog.text
    await node.close()


@asynchronous
async def test_the_end_of_a_node_is_told_once() -> None:
    """`failed` is None for one that was closed; events end with `NodeStopped`, also for who comes later."""
    node = lone_node()
    async with node:
        events = asyncio.create_task(collect(node))
        await node.put("k", "v")
    assert node.failed is not None
    assert await node.failed is None
    assert [type(event) for event in (await events)[-1:]] == [NodeStopped]
    assert await collect(node) == [NodeStopped(None)]
    await node.close()
    await node.kill()


@asynchronous
async def test_a_node_that_is_killed_loses_what_was_not_saved() -> None:
    """A save that is under way when the power goes does not happen; the next start knows what came before."""

    class Watched(MemoryStorage):
        """Tells of a save before it is queued: who hears of it comes before its completion."""

        def __init__(self) -> None:
            super().__init__()
            self.saving = asyncio.Event()

        def save(self, save: Save, then: Callable[[int], None]) -> None:
            self.saving.set()
            super().save(save, then)

    storage = Watched()
    node = lone_node(storage)
    await node.start()
    await node.put("k", "v")
    storage.saving.clear()
    lost = asyncio.create_task(node.put("k", "lost"))
    await storage.saving.wait()
    await node.kill()
    await refused(lost, errors.MaybeApplied)
    async with lone_node(storage) as node:
        kept = await node.get("k")
        assert kept is not None
        assert kept.text == "v"


@asynchronous
async def test_configurations_that_cannot_work_are_refused() -> None:
    """By the pair of values that cannot work together, or by the name that is not listed."""
    with pytest.raises(errors.ConfigurationError, match="heartbeat_seconds"):
        lone_node(heartbeat_seconds=0.1, election_timeout_seconds=0.2)
    with pytest.raises(errors.ConfigurationError, match="tick_seconds"):
        lone_node(tick_seconds=0.0)
    with pytest.raises(errors.ConfigurationError, match="append_bytes_max"):
        lone_node(append_bytes_max=PAYLOAD_BYTES_MAX + 1)
    for name, wrong in {"retry_seconds": "1", "close_seconds": math.inf, "repair": 1, "append_bytes_max": 1e6}.items():
        with pytest.raises(errors.ConfigurationError, match=name):
            lone_node(**{name: wrong})
    with pytest.raises(errors.ConfigurationError, match="snapshot_entries_max"):
        lone_node(snapshot_entries_max=0)
    with pytest.raises(errors.ConfigurationError, match="snapshot_bytes_per_second_max"):
        lone_node(snapshot_bytes_per_second_max=-1)
    stranger = Node(
        "x", members={"n1": "n1"}, storage=MemoryStorage(), transport=MemoryNetwork().transport("x"), config=FAST
    )
    await refused(stranger.start(), errors.ConfigurationError)
    crowd = {f"n{number}": str(number) for number in range(65)}
    many = Node("n1", members=crowd, storage=MemoryStorage(), transport=MemoryNetwork().transport("1"), config=FAST)
    await refused(many.start(), errors.ConfigurationError)


@asynchronous
async def test_a_lone_member_takes_snapshots_and_starts_from_them() -> None:
    """Twice at the same place is harmless; refused commands are part of what is remembered."""
    storage = MemoryStorage()
    async with lone_node(storage) as node:
        await node.put("k", "v")
        await refused(node.write(PutKey(b"no", b"", ignore_value=True), None), errors.KeyNotFound)
        await node.take_snapshot()
        await node.take_snapshot()
        await node.put("k", "w")
    async with lone_node(storage) as node:
        kept = await node.get("k")
        assert kept is not None
        assert kept.text == "w"
        await node.take_snapshot()
    async with lone_node(storage) as node:
        assert (await node.range()).count == 1


@asynchronous
async def test_a_snapshot_that_cannot_be_written_is_told() -> None:
    """`take_snapshot` raises; the node goes on without it."""

    class FullDisk(MemoryStorage):
        """Takes no snapshot."""

        def create_snapshot(self, meta: object, *, received: bool = False) -> Any:
            sink = super().create_snapshot(meta, received=received)  # type: ignore[arg-type]

            async def write(chunk: bytes) -> None:
                raise errors.StorageError("no space left")

            sink.write = write  # type: ignore[method-assign]
            return sink

    async with lone_node(FullDisk()) as node:
        await node.put("k", "v")
        await refused(node.take_snapshot(), errors.StorageError)
        await node.put("k", "w")
        assert node._member is not None
        assert not node._member.taker.is_running


@asynchronous
async def test_who_waits_for_room_is_not_proposed_and_ends_with_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session goes no further than its window; when the node stops nobody waits for their own deadline."""
    monkeypatch.setattr(writes, "WINDOW_MAX", 3)
    async with lone_node() as node:
        await node.put("a", "1")
        member = node._member
        assert member is not None
        puts = [asyncio.create_task(node.put("a", "2", prev_kv=True, timeout=600)) for _ in range(5)]
        puts += [asyncio.create_task(node.put("a", "2", timeout=600)) for _ in range(5)]
        await asyncio.sleep(0)
        assert len(member.writes.under_way()) == 3
        await node.kill()
        results = await asyncio.gather(*puts, return_exceptions=True)
        assert [type(result) for result in results[3:]] == [errors.Closed] * 7


@asynchronous
async def test_more_writers_than_a_session_has_room_for_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a member and on a client alike every write happens, once."""
    monkeypatch.setattr(writes, "WINDOW_MAX", 8)
    async with cluster_of(3) as cluster:
        for kv in (cluster.leader, cluster.client()):
            results = await asyncio.gather(*(kv.put(f"k{number}", "v") for number in range(100)))
            assert len({result.revision for result in results}) == 100
        assert {found.version async for found in cluster.leader.scan(prefix="k")} == {2}


@asynchronous
async def test_a_node_lives_once(tmp_path: Path) -> None:
    """To start it again, inside or after its life, is refused, and harms neither its life nor its directory."""
    node = pyraftkv.open(tmp_path / "d")
    async with node:
        await node.put("k", "v")
        await refused(node.start(), errors.Closed)
        assert (await node.get("k")) is not None
    await refused(node.start(), errors.Closed)
    async with pyraftkv.open(tmp_path / "d") as again:
        assert (await again.get("k")) is not None


@asynchronous
async def test_members_that_the_cluster_does_not_have_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says who the members are; whoever lists others is told."""
    async with pyraftkv.open(tmp_path / "d", name="a"):
        pass
    members = {"a": "127.0.0.1:1", "b": "127.0.0.1:2"}
    async with pyraftkv.open(tmp_path / "d", name="a", listen="127.0.0.1:0", members=members) as node:
        assert (await node.status()).peers[0].name == "a"
    assert "['b'] too, in vain" in caplog.text


@asynchronous
async def test_who_joined_later_is_not_told_that_it_lists_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Started again without ``join=`` it knows of the first members alone; that is no reason to warn anybody."""
    async with pyraftkv.open(tmp_path / "a", name="a", listen="127.0.0.1:0", config=FAST) as first:
        options: dict[str, Any] = {"name": "b", "listen": "127.0.0.1:0", "config": FAST}
        async with pyraftkv.open(tmp_path / "b", join=first.address, learner=True, **options) as node:
            await node.members.list()
        async with pyraftkv.open(tmp_path / "b", **options):
            assert "in vain" not in caplog.text
