"""The calls of a node: what is acknowledged, bounded, refused and cancelled."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

import pyraftkv
from pyraftkv import Node, errors, writes
from pyraftkv.codec import encode_logged
from pyraftkv.core import PAYLOAD_BYTES_MAX
from pyraftkv.core.messages import ForwardedProposals
from pyraftkv.log import MemoryStorage
from pyraftkv.node import admission
from pyraftkv.protocol import Envelope, Genesis, MemberInfo
from pyraftkv.store.commands import DeleteRange, PutKey
from pyraftkv.transport import MemoryNetwork
from tests.node.support import FAST, asynchronous, cluster_of, lone_node, other_than, refused, take, until


@asynchronous
async def test_no_put_is_acknowledged_before_it_is_saved() -> None:
    """A lone member whose disk never completes a save acknowledges nothing."""
    storage = MemoryStorage()
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
async def test_what_cannot_be_applied_is_not_taken_from_a_peer(caplog: pytest.LogCaptureFixture) -> None:
    """Once committed it would stop every member, at every start again; one warning tells of all of it."""
    async with cluster_of(3) as cluster:
        leader, follower = cluster.leader, cluster.followers[0]
        session = await leader.open_session(10)
        to, sender = (await leader.status()).member_id, (await follower.status()).member_id
        good = encode_logged(Envelope(session, 1, 1, PutKey(b"good", b"1")))
        genesis = encode_logged(Genesis(7, [MemberInfo(1, "n1", "n1", 1)]))
        for payloads in ([b"garbage", good, genesis], [b""]):
            leader._life.receive([ForwardedProposals(to, sender, leader.term, payloads)])
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
