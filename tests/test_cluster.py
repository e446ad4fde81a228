"""Clusters in memory, under faults: what was acknowledged stays, what was sent twice counts once, no read is stale."""

from __future__ import annotations

import asyncio

import pytest

from pyraftkv import Client, Cluster, Node, errors
from pyraftkv.core import InstallSnapshot, SnapshotMeta
from pyraftkv.node import RoleChanged, SnapshotInstalled
from pyraftkv.protocol import Hello
from pyraftkv.roster import MEMBERS_MAX
from pyraftkv.transport.base import Connection
from tests.node.support import FAST, asynchronous, caught_up, cluster_of, fast, other_than, pairs, refused, take, until


async def increment(kv: Node, key: str) -> None:
    """Add one by compare-and-swap, however often it takes."""
    while True:
        now = await kv.get(key, timeout=20)
        value, revision = (int(now.value), now.mod_revision) if now is not None else (0, 0)
        try:
            await kv.put(key, str(value + 1), if_revision=revision, timeout=20)
        except errors.RevisionMismatch:
            continue
        return


@asynchronous
async def test_the_first_screen_of_the_readme() -> None:
    """Three nodes, a put, the leader's plug pulled, and the value is still there."""
    async with Cluster.in_memory(3, config=FAST) as cluster:
        db = cluster.client()
        await db.put("greeting", "hello")
        await cluster.kill(cluster.leader)
        kept = await db.get("greeting", timeout=20)
        assert kept is not None
        assert kept.text == "hello"


@asynchronous
async def test_no_write_is_lost_or_doubled_over_leader_changes() -> None:
    """Writers on every node, leaders killed in the middle: each put is one version, each increment counts once."""
    async with cluster_of(3) as cluster:
        survivor = cluster.followers[0]

        async def writer(number: int) -> None:
            for step in range(15):
                await survivor.put(f"w{number}", str(step), timeout=25)
                await increment(survivor, "total")

        writers = [asyncio.create_task(writer(number)) for number in range(4)]
        for _ in range(2):
            done = int((await survivor.get("total", timeout=25) or ZERO).value)
            victim = await until(lambda: next((node for node in cluster if node.is_leader), None))
            if victim is survivor:
                victim = other_than(cluster, survivor)
            await cluster.kill(victim)
            await cluster.wait_for_leader()
            await cluster.restart(victim.name)
            await reaches(survivor, "total", done + 8)
        await asyncio.gather(*writers)
        total = await survivor.get("total", timeout=20)
        assert total is not None
        assert (total.text, total.version) == ("60", 60)
        for number in range(4):
            kept = await survivor.get(f"w{number}")
            assert kept is not None
            assert (kept.text, kept.version) == ("14", 15)


class ZERO:
    """What a counter that does not exist counts."""

    value = b"0"


async def reaches(node: Node, key: str, value: int) -> None:
    """Wait until a counter has a value."""
    async with node.watch(key, start_revision=1) as watch:
        async for event in watch:
            if int(event.kv.value) >= value:
                return


@asynchronous
async def test_followers_forward_and_answer_from_their_own_apply() -> None:
    """A put on a follower is there, on that follower, as soon as the call returns."""
    async with cluster_of(3) as cluster:
        for follower in cluster.followers:
            result = await follower.put(follower.name, "x")
            status = await follower.status()
            assert status.role == "follower"
            assert status.revision >= result.revision
            kept = await follower.get(follower.name, consistency="local")
            assert kept is not None


@asynchronous
async def test_a_local_read_waits_for_the_revision_that_it_names() -> None:
    """1. A follower is cut off, and a put goes on without it.

    2. A local read there that names the put's revision waits and is refused at its deadline; a client's likewise.
    3. Once the follower hears of the put, both are answered.
    """
    async with cluster_of(3) as cluster:
        follower, *other = cluster.followers
        other.append(cluster.leader)
        async with Client([follower.address], dialer=cluster.network.dialer()) as client:
            assert await client.get("k", consistency="local") is None
            for node in other:
                cluster.network.cut(follower.address, node.address)
            result = await cluster.leader.put("k", "new")
            for kv in (follower, client):
                assert await kv.get("k", consistency="local") is None
                error = await refused(
                    kv.get("k", consistency="local", at_least=result.revision, timeout=0.2), errors.ReadTimeout
                )
                assert error.retryable
            waiting = [
                asyncio.create_task(kv.range("k", consistency="local", at_least=result.revision, timeout=20))
                for kv in (follower, client)
            ]
            cluster.network.heal()
            for read in waiting:
                assert [kv.text for kv in (await read).kvs] == ["new"]


@asynchronous
async def test_at_least_is_a_revision() -> None:
    """Of one that nobody has yet nothing is read, however strict the read; a negative one is no revision."""
    async with cluster_of(1) as cluster:
        node = cluster.leader
        await refused(node.get("k", at_least=-1), errors.InvalidRequest)
        revision = (await node.put("k", "v")).revision
        early = asyncio.create_task(node.get("k", at_least=revision + 1, timeout=20))
        await refused(node.get("k", at_least=revision + 2, timeout=0.1), errors.ReadTimeout)
        await node.put("k", "later")
        found = await early
        assert found is not None
        assert found.text == "later"


@asynchronous
async def test_an_isolated_leader_serves_no_stale_read() -> None:
    """1. A leader is cut off and does not know it yet. 2. The others elect another, and a value changes there.

    3. A linearizable read on the old leader must not see the old value; it waits, and times out. A local read may.
    """
    async with cluster_of(3) as cluster:
        old = cluster.leader
        await old.put("k", "old")
        cluster.network.isolate(old.address)
        reads = [asyncio.create_task(old.get("k", timeout=0.6)) for _ in range(3)]
        new = await until(lambda: next((node for node in cluster if node is not old and node.is_leader), None))
        await new.put("k", "new", timeout=20)
        late = asyncio.create_task(old.get("k", timeout=0.3))
        lease = asyncio.create_task(old.get("k", timeout=0.3, consistency="lease"))
        for read in (*reads, late, lease):
            await refused(read, errors.ReadTimeout)
        stale = await old.get("k", consistency="local")
        assert stale is not None
        assert stale.text == "old"
        cluster.network.heal()
        fresh = await old.get("k", timeout=20)
        assert fresh is not None
        assert fresh.text == "new"


@asynchronous
async def test_what_was_lost_with_a_leader_is_sent_to_the_next_one_at_once() -> None:
    """Writes that the old one took and reads that it could not confirm do not wait for `retry_seconds`."""
    async with cluster_of(3, retry_seconds=1000.0) as cluster:
        old = cluster.leader
        await old.put("k", "v")
        cluster.network.isolate(old.address)
        write = asyncio.create_task(old.put("k", "w", timeout=25))
        read = asyncio.create_task(old.get("k", timeout=25))
        await until(lambda: len(old._member.writes) == 1)
        await until(lambda: [node for node in cluster if node is not old and node.is_leader])
        cluster.network.heal()
        result, kept = await asyncio.wait_for(asyncio.gather(write, read), 20)
        assert kept is not None
        assert kept.text in {"v", "w"}
        now = await old.get("k", timeout=20)
        assert now is not None
        assert (now.mod_revision, now.version) == (result.revision, 2)


@asynchronous
async def test_reads_on_every_member_see_what_was_written_before_them() -> None:
    """Whatever is delayed and lost between the members."""
    async with cluster_of(3) as cluster:
        await cluster.leader.put("n", "-1")
        cluster.network.latency_seconds = (0.0, 0.01)
        cluster.network.drop_rate = 0.02
        nodes = list(cluster)
        for number in range(25):
            await nodes[number % 3].put("n", str(number), timeout=25)
            reads = await asyncio.gather(*[node.get("n", timeout=25) for node in nodes])
            assert [kv.text for kv in reads if kv is not None] == [str(number)] * 3


@asynchronous
async def test_without_a_quorum_writes_say_what_may_have_happened() -> None:
    """Handed to a leader: `WriteTimeout`. To nobody: `NoLeader`, which is `NotApplied`. Reads: `ReadTimeout`."""
    async with cluster_of(3) as cluster:
        leader, follower = cluster.leader, cluster.followers[0]
        await follower.put("k", "v")
        await leader.put("k", "v")
        await cluster.kill(other_than(cluster, leader, follower))
        cluster.network.isolate(leader.address)
        await refused(leader.put("k", "taken", timeout=0.3), errors.WriteTimeout)
        for node in (leader, follower):
            await until(lambda node=node: node._member.raft.leader == 0)
            await refused(node.put("k", "untaken", timeout=0.1), errors.NoLeader)
            await refused(node.get("k", timeout=0.1), errors.ReadTimeout)
            status = await node.status()
            assert (status.has_quorum, status.leader, status.leader_name) == (False, 0, "")
            assert len(node._member.writes) == 0
        cluster.network.heal()
        kept = await leader.get("k", timeout=20)
        assert kept is not None
        assert kept.text in {"v", "taken"}


@asynchronous
async def test_a_member_that_comes_back_catches_up() -> None:
    """Killed, written past, restarted: it has everything, from its own disk and from the leader."""
    async with cluster_of(3) as cluster:
        victim = cluster.followers[0]
        await cluster.leader.put("before", "1")
        await cluster.kill(victim)
        assert victim.name not in cluster.nodes
        for number in range(30):
            result = await cluster.leader.put("k", str(number))
        node = await cluster.restart(victim.name)
        kept = await node.get("k", timeout=20)
        assert kept is not None
        assert (kept.text, kept.mod_revision) == ("29", result.revision)
        with pytest.raises(errors.ConfigurationError):
            await cluster.restart(node.name)


@asynchronous
async def test_everybody_dies_and_comes_back() -> None:
    """What was acknowledged is on the disks of a quorum."""
    async with cluster_of(3) as cluster:
        for number in range(10):
            await cluster.leader.put(f"k{number}", "v")
        names = list(cluster.nodes)
        for name in names:
            await cluster.kill(name)
        with pytest.raises(errors.NoLeader):
            _ = cluster.leader
        await asyncio.gather(*[cluster.restart(name) for name in names])
        node = await cluster.wait_for_leader()
        assert (await node.range(prefix="k", timeout=20)).count == 10


@asynchronous
async def test_a_graceful_close_hands_leadership_over() -> None:
    """The others have a leader at once: nobody waits for an election timeout, which here would take minutes."""
    config = fast(election_timeout_seconds=60.0, heartbeat_seconds=0.03)
    async with Cluster.in_memory(3, config=config, seed=3) as cluster:
        old = cluster.leader
        await old.put("k", "v")
        term = old.term
        del cluster.nodes[old.name]
        await old.close()
        new = await cluster.wait_for_leader(timeout=10)
        kept = await new.get("k", timeout=10)
        assert kept is not None
        assert new.term == term + 1


@asynchronous
async def test_a_close_waits_for_writes_under_way() -> None:
    """Writes that can finish do; those that cannot are `MaybeApplied`, after `close_seconds`."""
    async with cluster_of(3, close_seconds=0.3) as cluster:
        leader = cluster.leader
        await leader.put("k", "v")
        writes = [asyncio.create_task(leader.put(f"k{number}", "v")) for number in range(50)]
        await asyncio.sleep(0)
        del cluster.nodes[leader.name]
        await asyncio.gather(leader.close(), leader.close())
        results = await asyncio.gather(*writes)
        assert len({result.revision for result in results}) == 50
        second = await cluster.wait_for_leader()
        await second.put("k", "v", timeout=20)
        await cluster.kill(other_than(cluster, second))
        stuck = asyncio.create_task(second.put("k", "never?"))
        await until(lambda: len(second._member.writes))
        del cluster.nodes[second.name]
        await second.close()
        await refused(stuck, errors.NodeFailed)
        await refused(second.put("k", "v"), errors.Closed)
        await refused(second.get("k"), errors.Closed)
        await refused(second.status(), errors.Closed)
        await refused(second.take_snapshot(), errors.Closed)
        with pytest.raises(errors.Closed):
            second.watch("k")
        assert "closed" in repr(second)


@asynchronous
async def test_a_deposed_leader_streams_no_snapshot() -> None:
    """Whoever leads now does; the old one's conversations end with its term."""
    async with cluster_of(3, snapshot_stall_seconds=1000.0) as cluster:
        old, follower = cluster.leader, cluster.followers[0]
        member = old._member
        assert member is not None
        await old.put("k", "v")
        await old.take_snapshot()
        cluster.network.isolate(old.address)
        status = member.raft.status()
        meta = SnapshotMeta(status.applied, status.term, status.membership)
        member.sender.start(InstallSnapshot((await follower.status()).member_id, status.id, status.term, meta))
        assert member.sender._tasks
        await until(lambda: not old.is_leader)
        await until(lambda: not member.sender._tasks and not member.sender._ending)


@asynchronous
async def test_a_far_follower_takes_a_snapshot_through_a_bad_network() -> None:
    """Its log is gone everywhere; the snapshot comes in chunks, some of which are lost, and then the log goes on."""
    async with cluster_of(3, snapshot_chunks_in_flight_max=2, snapshot_stall_seconds=5.0) as cluster:
        leader, far = cluster.leader, cluster.followers[0]
        await leader.put("k", "v")
        await cluster.kill(far)
        for number in range(24):
            await leader.put(f"big{number}", bytes([number]) * 400_000)
        await leader.take_snapshot()
        await leader.put("one-more", "v")
        await leader.take_snapshot()
        assert leader._storage.first_index > 10
        await leader.put("after", "x")
        cluster.network.drop_rate = 0.05
        node = await cluster.restart(far.name)
        installed = asyncio.create_task(first(node, SnapshotInstalled))
        await until(lambda: node._member.replica.applied_index > 10, seconds=25)
        cluster.network.drop_rate = 0.0
        assert (await node.range(prefix="big", count_only=True, timeout=20)).count == 24
        kept = await node.get("after", timeout=20)
        assert kept is not None
        installed.cancel()
        await caught_up(*cluster)


async def first(node: Node, kind: type) -> object:
    """Return the node's next event of a kind."""
    async for event in node.events():
        if isinstance(event, kind):
            return event
    raise AssertionError(f"no {kind.__name__}")


@asynchronous
async def test_watches_and_writes_of_a_member_that_takes_a_snapshot() -> None:
    """1. A follower watches, then is cut off. Its last write reached the leader, which applied it.

    2. The others write on, take snapshots, and forget the log that it lacks. The network heals.
    3. It restores a snapshot. Its write resolves, from the sessions in it; its watches miss nothing and repeat nothing;
       one whose key nobody wrote goes on although the history since it began is compacted.
    """
    async with cluster_of(3, retry_seconds=1000.0) as cluster:
        leader, far = cluster.leader, cluster.followers[0]
        member = far._member
        assert member is not None
        written = [(b"w", b"first", (await far.put("w", "first")).revision)]
        watch, idle = far.watch("w", start_revision=1), far.watch("idle")
        assert pairs(await take(watch, 1)) == written
        cluster.network.cut(leader.address, far.address, both=False)
        cluster.network.cut(other_than(cluster, leader, far).address, far.address)
        mine = asyncio.create_task(far.put("mine", "x", timeout=25))
        await until(lambda: leader._member.replica.store.get(b"mine"))
        cluster.network.cut(leader.address, far.address)
        for number in range(10):
            result = await leader.put("w", str(number), timeout=20)
            written.append((b"w", str(number).encode(), result.revision))
        await leader.take_snapshot()
        written.append((b"w", b"last", (await leader.put("w", "last")).revision))
        await leader.take_snapshot()
        assert leader._storage.first_index > member.raft.status().last_index
        member.writes.resend = lambda: None  # nothing is sent again: only the sessions can tell
        installed = asyncio.create_task(first(far, SnapshotInstalled))
        await asyncio.sleep(0)
        cluster.network.heal()
        await asyncio.wait_for(installed, 25)
        mine_result = await mine
        assert pairs(await take(watch, 11)) == written[1:]
        await leader.put("w", "live", timeout=20)
        assert [event.kv.value for event in await take(watch, 1)] == [b"live"]
        await leader.put("idle", "now")
        assert [event.kv.value for event in await take(idle, 1)] == [b"now"]
        mine_now = await far.get("mine", timeout=20)
        assert mine_now is not None
        assert (mine_now.mod_revision, mine_now.version) == (mine_result.revision, 1)
        assert len(member.writes) == 0


@asynchronous
async def test_a_watch_whose_history_is_compacted_away_while_it_is_cut_off() -> None:
    """It cannot go on without a gap: it is cancelled, and says where it stood and what is left."""
    async with cluster_of(3) as cluster:
        leader, far = cluster.leader, cluster.followers[0]
        first_put = await far.put("w", "first")
        watch = far.watch("w", start_revision=first_put.revision)
        await take(watch, 1)
        cluster.network.isolate(far.address)
        for number in range(10):
            result = await leader.put("w", str(number), timeout=20)
        await leader.compact(result.revision)
        await leader.take_snapshot()
        await leader.put("w", "last")
        await leader.take_snapshot()
        cluster.network.heal()
        cancelled = await refused(take(watch, 1), errors.WatchCancelled)
        assert cancelled.compact_revision == result.revision
        assert first_put.revision < cancelled.resume_revision <= result.revision


@asynchronous
async def test_snapshots_are_taken_by_policy_and_bound_the_log() -> None:
    """When the log has grown by so much, one is written; a restart begins with it, and goes on in the log."""
    async with cluster_of(3, snapshot_log_bytes_min=20_000) as cluster:
        puts = 0
        while any(node._storage.first_index <= 100 for node in cluster):
            await cluster.leader.put(f"k{puts % 7}", b"x" * 500)
            puts += 1
            assert puts < 20_000, "no snapshot ever freed the log"
        names = list(cluster.nodes)
        for name in names:
            await cluster.kill(name)
        await asyncio.gather(*[cluster.restart(name) for name in names])
        node = await cluster.wait_for_leader()
        kept = await node.get("k5", timeout=20)
        assert kept is not None
        assert kept.version == len(range(5, puts, 7))
        await node.put("k5", "v")


@asynchronous
async def test_snapshots_by_count_keep_the_log_of_the_last_two() -> None:
    """1. Entries of a few bytes: their count alone makes snapshots due, and the log reaches back to the older of two.

    2. So a follower that was away for less than a snapshot is sent entries and no snapshot, however many there were.
    """
    count = 60
    async with cluster_of(3, snapshot_entries_max=count) as cluster:
        leader = cluster.leader
        storage = leader._storage
        puts = snapshots = 0
        while snapshots < 3:
            before = storage.snapshot_index
            await leader.put("k", str(puts))
            puts += 1
            assert puts < 20_000, "no snapshot was ever due"
            if storage.snapshot_index != before:
                snapshots += 1
                assert snapshots < 2 or storage.first_index == before + 1
        away = other_than(cluster, leader)
        await caught_up(*cluster)
        cluster.network.isolate(away.name)
        began = away._storage.snapshot_index
        for number in range(count // 2):
            await leader.put("k", f"unseen {number}")
        cluster.network.heal()
        await caught_up(*cluster)
        assert away._storage.snapshot_index == began or away._storage.first_index <= began + 1, "it was sent entries"


@asynchronous
async def test_events_tell_of_leaders() -> None:
    """Every member says who leads, by name; a killed one says that it stopped, last of all."""
    async with cluster_of(3) as cluster:
        watcher = cluster.followers[0]
        victim = cluster.leader
        heard = asyncio.create_task(first_leader(watcher, victim.name))
        stopped = asyncio.create_task(collect(victim))
        await asyncio.sleep(0)
        await cluster.kill(victim)
        event = await asyncio.wait_for(heard, 20)
        assert event.leader_name in cluster.nodes
        assert event.term > victim.term or event.leader_name != victim.name
        events = await stopped
        assert type(events[-1]).__name__ == "NodeStopped"


async def first_leader(node: Node, other: str) -> RoleChanged:
    """Return the first news of a leader with another name."""
    async for event in node.events():
        if isinstance(event, RoleChanged) and event.leader_name not in {"", other}:
            return event
    raise AssertionError("no leader")


async def collect(node: Node) -> list[object]:
    """Return every event until the node stops."""
    return [event async for event in node.events()]


class Deaf:
    """A handler that takes everything and says nothing."""

    def peer_hello(self, hello: Hello) -> None:
        return

    def receive(self, messages: object) -> None:
        return

    def peer_lost(self, member_id: int) -> None:
        return

    def peer_gone(self, member_id: int) -> None:
        return

    def peer_refused(self, member_id: int, rejection: errors.HandshakeRejected) -> None:
        return

    def client_connected(self, connection: Connection) -> None:
        connection.close()


@asynchronous
async def test_a_cluster_that_cannot_start_leaves_nothing_behind() -> None:
    """One address is taken: the error is raised, and the members that had begun are stopped."""
    for size in (0, MEMBERS_MAX + 1, "3", None, 2.5):
        with pytest.raises(errors.ConfigurationError, match="1 to 64 members"):
            Cluster.in_memory(size)  # type: ignore[arg-type]
    cluster = Cluster.in_memory(2, config=FAST)
    other = cluster.network.transport("n2")
    await other.start(Hello(0, 9, "other", 1, 1, ""), Deaf())
    with pytest.raises(errors.ConfigurationError, match="n2 is already in use"):
        await cluster.__aenter__()
    assert cluster.nodes == {}
    assert "Cluster" in repr(cluster)
    await other.close()


@asynchronous
async def test_a_cluster_is_entered_once_at_a_time() -> None:
    """The second block does not end what the first one runs; after it, the members go on from what they had saved."""
    cluster = Cluster.in_memory(1, config=FAST)
    async with cluster:
        await cluster.leader.put("a", "1")
        await refused(cluster.__aenter__(), errors.InvalidRequest)
        await cluster.leader.put("a", "2")
    async with cluster:
        found = await cluster.leader.get("a")
        assert found is not None
        assert found.text == "2"


@asynchronous
async def test_a_restart_that_fails_can_be_tried_again() -> None:
    """A name is in `nodes` only while its node runs."""
    async with cluster_of(3) as cluster:
        victim = cluster.followers[0].name
        await cluster.kill(victim)
        other = cluster.network.transport(victim)
        await other.start(Hello(0, 9, "other", 1, 1, ""), Deaf())
        await refused(cluster.restart(victim), errors.ConfigurationError)
        assert victim not in cluster.nodes
        await other.close()
        node = await cluster.restart(victim)
        await node.put("k", "v", timeout=20)
