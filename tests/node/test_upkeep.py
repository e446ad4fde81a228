"""What a leader does for its cluster without being asked: settings, alarms, compaction."""

from __future__ import annotations

import asyncio

import pytest

from pyraftkv import Cluster, Node, PutKey, errors
from pyraftkv.codec import encode_logged
from pyraftkv.kv import KV
from pyraftkv.node import AlarmCleared, AlarmRaised
from pyraftkv.node.peers import Peers
from pyraftkv.node.upkeep import PAUSE_SECONDS, Upkeep, as_first
from pyraftkv.protocol import Envelope, Genesis, Hello, MemberInfo
from pyraftkv.replica import Replica
from pyraftkv.roster import Roster
from pyraftkv.settings import Alarm, AlarmKind, ChangeAlarm, ChangeSettings, CompactionMode, Settings
from pyraftkv.store.commands import Compact
from tests.core.machines import machine
from tests.node.support import asynchronous, caught_up, cluster_of, fast, other_than, refused, until

KIB = 1024
QUOTA = 64 * KIB
VALUE = b"v" * 4 * KIB


async def fill(kv: KV, *, keys: int = 40) -> errors.NoSpace:
    """Put until nothing more is taken; return what the last put was refused with."""
    for count in range(10_000):
        try:
            await kv.put(f"k{count % keys}", VALUE, timeout=20)
        except errors.NoSpace as error:
            return error
        await asyncio.sleep(0.002)
    raise AssertionError("the quota was never reached")


async def alarms_of(cluster: Cluster) -> list[list[str]]:
    """Return the alarms that each member's status shows."""
    await caught_up(*cluster)
    return [(await node.status()).alarms for node in cluster]


async def make_room(kv: KV) -> None:
    """Delete everything, and forget that it was there."""
    deleted = await kv.delete(prefix="", timeout=20)
    await kv.compact(deleted.revision, timeout=20)


# --- The quota -----------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_store_over_its_quota_takes_no_more_until_there_is_room_and_then_by_itself() -> None:
    """NOSPACE is raised for all members at once; deletes and compactions pass; it is cleared without an operator."""
    async with cluster_of(3, settings=Settings(quota_bytes=QUOTA)) as cluster:
        db = cluster.client()
        await fill(db)
        leader = cluster.leader
        id_ = (await leader.status()).member_id
        assert await db.alarms.list() == [Alarm(AlarmKind.NOSPACE, id_)]
        assert await alarms_of(cluster) == [[f"memberID:{id_} alarm:NOSPACE"]] * 3
        for kv in [*cluster, db]:
            await refused(kv.put("more", "1"), errors.NoSpace)
            await refused(kv.create("more", "1"), errors.NoSpace)
            await refused(kv.put("k0", "1", prev_kv=True), errors.NoSpace)
            await refused(kv.txn().otherwise(PutKey(b"more", b"1")).commit(), errors.NoSpace)
        assert await db.get("more") is None
        await make_room(db)
        await until(lambda: leader._running().replica.rules.is_quiet)
        await db.put("more", "1")
        assert await alarms_of(cluster) == [[], [], []]


@asynchronous
async def test_deleting_alone_makes_no_room() -> None:
    """History is kept until it is compacted, and an alarm that was disarmed by hand comes back."""
    async with cluster_of(1, settings=Settings(quota_bytes=QUOTA)) as cluster:
        node = cluster.leader
        await fill(node)
        await node.delete(prefix="")
        assert [alarm.kind for alarm in await node.alarms.disarm()] == [AlarmKind.NOSPACE]
        await until(lambda: not node._running().replica.rules.is_quiet)
        await refused(node.put("more", "1"), errors.NoSpace)


@asynchronous
async def test_the_alarm_stays_until_a_tenth_is_free() -> None:
    """Or every put that fits would raise it anew."""
    async with cluster_of(1, settings=Settings(quota_bytes=QUOTA)) as cluster:
        node = cluster.leader
        await fill(node)
        store, rules = node._running().replica.store, node._running().replica.rules
        size_bytes = store.size_bytes
        assert size_bytes > QUOTA
        await node.settings.change(quota_bytes=size_bytes + size_bytes // 20)
        await asyncio.sleep(0.35)  # three looks at it
        assert rules.has(AlarmKind.NOSPACE)
        await node.settings.change(quota_bytes=size_bytes + size_bytes // 8)
        await until(lambda: rules.is_quiet)


@asynchronous
async def test_without_a_quota_nothing_is_refused() -> None:
    """And who lifts it clears the alarm."""
    async with cluster_of(1, settings=Settings(quota_bytes=QUOTA)) as cluster:
        node = cluster.leader
        await fill(node)
        await node.settings.change(quota_bytes=-1)
        await until(lambda: node._running().replica.rules.is_quiet)
        await node.put("more", VALUE)
        assert (await node.status()).quota_bytes == 0


@asynchronous
async def test_a_write_that_is_sent_again_while_there_is_no_room_keeps_its_outcome() -> None:
    """1. A client's put is applied, and the answer lost. 2. NOSPACE is raised. 3. It is sent again, elsewhere."""
    async with cluster_of(3) as cluster:
        leader, other = cluster.leader, cluster.followers[0]
        session = await leader.open_session(5.0)
        payload = encode_logged(Envelope(session, 1, 1, PutKey(b"k", b"v")))
        first = await leader.write_encoded(payload, 5.0)
        await leader._running().decide(ChangeAlarm(AlarmKind.CORRUPT, 1, is_raised=True))
        await caught_up(*cluster)
        assert await other.write_encoded(payload, 5.0) == first
        again = encode_logged(Envelope(session, 2, 1, PutKey(b"k", b"w")))
        await refused(other.write_encoded(again, 5.0), errors.Corrupt)


@asynchronous
async def test_every_member_tells_of_alarms_that_come_and_go() -> None:
    """Each once, whoever leads: an application hears of it without asking."""
    async with cluster_of(2) as cluster:
        follower = cluster.followers[0]
        heard: list[object] = []

        async def listen() -> None:
            async for event in follower.events():
                heard.append(event)  # noqa: PERF401  (they are looked at while more come)

        listening = asyncio.create_task(listen())
        leader = cluster.leader
        for kind in (AlarmKind.CORRUPT, AlarmKind.NOSPACE, AlarmKind.CORRUPT):
            await leader._running().decide(ChangeAlarm(kind, 1, is_raised=True))
        corrupt = "memberID:1 alarm:CORRUPT"
        await until(lambda: AlarmRaised(corrupt) in heard, seconds=5)
        await leader.alarms.disarm(AlarmKind.CORRUPT)
        await until(lambda: AlarmCleared(corrupt) in heard, seconds=5)
        assert [heard.count(AlarmRaised(corrupt)), heard.count(AlarmCleared(corrupt))] == [1, 1]
        listening.cancel()
        await asyncio.wait([listening])


@asynchronous
async def test_who_does_not_lead_tells_of_alarms_too() -> None:
    """What it has applied is true of the cluster, whoever leads."""
    replica, heard = Replica(), list[object]()

    async def decide(command: object) -> None:
        raise AssertionError(f"a follower decides {command}")

    upkeep = Upkeep(
        machine(),
        loop=asyncio.get_running_loop(),
        replica=lambda: replica,
        decide=decide,
        offered=lambda: 0,
        first_settings=None,
        emit=heard.append,
    )
    for is_raised in (True, False):
        replica.rules.decide(ChangeAlarm(AlarmKind.CORRUPT, 1, is_raised=is_raised))
        upkeep.tend()
        upkeep.tend()
    corrupt = "memberID:1 alarm:CORRUPT"
    assert heard == [AlarmRaised(corrupt), AlarmCleared(corrupt)]


@asynchronous
async def test_a_corrupt_cluster_changes_nothing() -> None:
    """Until somebody says which state is the right one, and disarms."""
    async with cluster_of(1) as cluster:
        node = cluster.leader
        put = await node.put("k", "v")
        await node._running().decide(ChangeAlarm(AlarmKind.CORRUPT, 1, is_raised=True))
        for doing in (node.put("k", "w"), node.delete("k"), node.compact(put.revision)):
            await refused(doing, errors.Corrupt)
        kv = await node.get("k")
        assert kv is not None
        assert (kv.value, (await node.status()).compact_revision) == (b"v", 0)
        await node.alarms.disarm(AlarmKind.CORRUPT)
        await node.put("k", "w")


# --- Settings ------------------------------------------------------------------------------------------------------


@asynchronous
async def test_the_first_leader_sets_what_its_configuration_names_once() -> None:
    """What was changed by somebody since is not set back, not by a leader that comes later either."""
    settings = Settings(quota_bytes=1 << 20, compaction_mode=CompactionMode.REVISION, compaction_revisions=77)
    async with cluster_of(3, settings=settings) as cluster:
        db = cluster.client()
        await until(lambda: cluster.leader._running().replica.rules.settings.version)
        first = await db.settings.get()
        assert (first.version, first.quota_bytes, first.compaction_revisions) == (1, 1 << 20, 77)
        changed = await db.settings.change(compaction_revisions=88)
        await cluster.kill(cluster.leader)
        await cluster.wait_for_leader()
        await db.put("k", "v", timeout=20)
        assert await db.settings.get(timeout=20) == changed


def test_first_settings_that_come_late_change_nothing() -> None:
    """Somebody changed the settings while the leader's decision was on its way."""
    rules = Replica().rules
    rules.apply(ChangeSettings(quota_bytes=7))
    with pytest.raises(errors.SettingsChanged):
        rules.decide(as_first(Settings(quota_bytes=8)))
    assert rules.settings.quota_bytes == 7


def test_settings_that_cannot_be_are_refused_before_the_start() -> None:
    """By name."""
    with pytest.raises(errors.ConfigurationError, match="compaction_seconds"):
        fast(settings=Settings(compaction_seconds=0)).check()


# --- The feature level ---------------------------------------------------------------------------------------------


def hello(member: int, level: int) -> Hello:
    """Return a member's HELLO."""
    return Hello(7, member, f"n{member}", member * 11, 1, f"h:{member}", feature_level=level)


def test_what_all_members_offer_is_the_least_of_it_and_nothing_before_all_were_heard() -> None:
    """Who was removed is not waited for; whoever comes back with an older version lowers it."""
    own = hello(1, 3)
    peers = Peers(own, {})
    roster = Roster()
    roster.found(Genesis(7, [MemberInfo(id_, f"n{id_}", f"h:{id_}", id_ * 11) for id_ in (1, 2, 3)]))
    peers.adopt(own, roster)
    assert peers.feature_level == 0
    peers.heard(hello(2, 2))
    assert peers.feature_level == 0
    peers.heard(hello(3, 4))
    assert peers.feature_level == 2
    peers.heard(hello(2, 3))
    assert peers.feature_level == 3
    peers.heard(hello(3, 1))
    assert peers.feature_level == 1


@asynchronous
async def test_the_leader_raises_the_feature_level_once_everybody_offers_more() -> None:
    """By one decision at a time, and with a pause after one that came to nothing."""
    async with cluster_of(1) as cluster:
        raft = cluster.leader._running().raft
        replica = Replica()
        decided: list[object] = []
        offered = [1]

        async def decide(command: object) -> None:
            decided.append(command)
            await asyncio.sleep(0)
            raise errors.NoLeader("handing over")

        upkeep = Upkeep(
            raft,
            loop=asyncio.get_running_loop(),
            replica=lambda: replica,
            decide=decide,
            offered=lambda: offered[0],
            first_settings=None,
            emit=lambda _: None,
        )
        upkeep.tend()
        assert decided == []
        offered[0] = 2
        for _ in range(3):
            upkeep.tend()
            await asyncio.sleep(0.01)
        assert decided == [ChangeSettings(feature_level=2)]
        await asyncio.sleep(PAUSE_SECONDS)
        upkeep.tend()
        await upkeep.close()
        assert len(decided) == 2


# --- Compaction ----------------------------------------------------------------------------------------------------


@asynchronous
async def test_history_is_compacted_by_time_and_its_space_won_back_on_every_member() -> None:
    """A key that is written again and again takes no more room than a second of it."""
    async with cluster_of(3, settings=Settings(compaction_seconds=1)) as cluster:
        db = cluster.client()
        for count in range(200):
            await db.put("k", VALUE + str(count).encode())
            await asyncio.sleep(0.01)
        await until(lambda: all(n._running().replica.store.compacted_revision > 20 for n in cluster))
        assert (await db.get("k")) is not None
        status = await cluster.leader.status()
        assert status.db_size_bytes < 200 * len(VALUE)


@asynchronous
async def test_a_physical_compaction_waits_until_the_space_is_won_back() -> None:
    """On the member that answers; a snapshot that is being saved holds it up, and then it is not certain."""
    async with cluster_of(3) as cluster:
        client = cluster.client()
        for kv in (other_than(cluster, cluster.leader), client):
            for _ in range(50):
                last = await kv.put("k", VALUE)
            result = await kv.compact(last.revision, physical=True)
            assert result.revision == last.revision
            if isinstance(kv, Node):
                store = kv._running().replica.store
                assert (store.compacted_revision, store.size_bytes < 2 * len(VALUE)) == (last.revision, True)
        node = cluster.leader
        pinned = await node._running().pin()
        last = await node.put("k", "1")
        error = await refused(node.compact(last.revision, physical=True, timeout=0.3), errors.MaybeApplied)
        assert "may not be won back" in str(error)
        assert node._running().replica.store.compact_revision == last.revision
        pinned.close()
        await node.space_won_back(last.revision, 5.0)


# --- Being behind --------------------------------------------------------------------------------------------------


@asynchronous
async def test_a_member_that_is_far_behind_with_applying_takes_no_write_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what it has promised to apply does not grow without bound (etcd, `maxGapBetweenApplyAndCommitIndex`)."""
    async with cluster_of(1) as cluster:
        node = cluster.leader
        await node.put("k", "v")
        monkeypatch.setattr("pyraftkv.node.admission.APPLY_LAG_ENTRIES_MAX", -1)
        await refused(node.delete("k"), errors.Overloaded)
        with pytest.raises(errors.Overloaded):
            node.write_put(b"k", b"w", None)


@asynchronous
async def test_a_corrupt_cluster_proposes_no_compaction() -> None:
    """It would be refused, again and again, and the history is evidence."""
    async with cluster_of(1) as cluster:
        upkeep = cluster.leader._running().upkeep
        replica = Replica()
        replica.rules.apply(ChangeSettings(compaction_mode=CompactionMode.REVISION, compaction_revisions=1))
        for count in range(5):
            replica.store.apply(PutKey(b"k", b"%d" % count))
        now = asyncio.get_running_loop().time()
        upkeep._compactor.observe(replica.rules.settings, revision=6, now=now)
        replica.rules.decide(ChangeAlarm(AlarmKind.CORRUPT, 1, is_raised=True))
        assert upkeep._next_compaction(replica, now + 1000) is None
        replica.rules.apply(ChangeAlarm(AlarmKind.NONE, 0))
        assert upkeep._next_compaction(replica, now + 1000) == Compact(5)
