"""The client: one connection at a time to whoever answers, and nothing lost or done twice when that changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyraftkv import (
    Client,
    PutKey,
    PutResult,
    client,
    client_asks,
    client_watch,
    codec,
    errors,
    server,
    server_watch,
    writes,
)
from pyraftkv.backup import snapshot_status
from pyraftkv.protocol import (
    Answer,
    CancelCall,
    Hello,
    OpenSessionCall,
    ReadCall,
    WatchCall,
    WatchUpdate,
    WriteCall,
)
from pyraftkv.store.values import Event, EventType, KeyValue, RangeResult, WatchBatch
from tests.node.support import asynchronous, cluster_of, other_than, pairs, refused, take, until


def is_idle(kv: Client) -> bool:
    """Whether nothing is under way in a client."""
    assert kv._writes is not None
    return not (len(kv._asks) or len(kv._writes) or kv._watches)


def connected_to(kv: Client) -> str:
    """Return the name of the member that a client is connected to, or nothing."""
    return kv._connection.peer.name if kv._connection is not None else ""


class Member:
    """A member's end of a connection, played by the test."""

    def __init__(self) -> None:
        self.peer = Hello(1, 1, "fake", 1, 1, "")
        self.queued_bytes = 0
        self.sent: list[Any] = []
        self.is_closed = False
        self._received: Callable[[bytes], None] | None = None
        self._closed: Callable[[Exception | None], None] | None = None

    async def dial(self, address: str, hello: Hello) -> Member:
        """Connect."""
        self.is_closed = False
        return self

    def open(self, *, received: Callable[[bytes], None], closed: Callable[[Exception | None], None]) -> None:
        self._received, self._closed = received, closed

    def send(self, frame: bytes) -> None:
        self.sent.append(codec.decode_call(frame))

    async def drain(self) -> None:
        return

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            assert self._closed is not None
            asyncio.get_running_loop().call_soon(self._closed, None)

    def reply(self, reply: Any) -> None:
        """Send a reply to the client."""
        assert self._received is not None
        self._received(reply if isinstance(reply, bytes) else codec.encode_reply(reply))


@asynchronous
async def test_what_no_connection_carries_is_refused_alone() -> None:
    """Whatever else the client is asked, then and later, is answered."""
    async with cluster_of(1) as cluster:
        kv = cluster.client()
        long = b"k" * 2_100_000
        async with kv.watch("other") as watch:
            await refused(kv.get(long), errors.RequestTooLarge)
            with pytest.raises(errors.RequestTooLarge):
                await kv.watch(long).__aenter__()
            assert await kv.put("other", "1") == PutResult(2)
            assert (await anext(aiter(watch))).kv.value == b"1"
            assert await kv.get("k") is None
        assert is_idle(kv)


@asynchronous
async def test_a_client_goes_on_with_the_next_member() -> None:
    """Its member dies: calls under way are asked again elsewhere, and each write is applied once."""
    async with cluster_of(3) as cluster:
        kv = cluster.client()
        for number in range(20):
            if number in {5, 12}:
                victim = connected_to(kv)
                await cluster.kill(victim)
                await asyncio.gather(*[kv.put(f"k{number}/{n}", "v", timeout=20) for n in range(5)])
                await cluster.restart(victim)
            await kv.put("n", str(number), timeout=20)
        kept = await kv.get("n", timeout=20)
        assert kept is not None
        assert (kept.text, kept.version) == ("19", 20)
        assert {kv_.version for kv_ in (await kv.range(prefix="k")).kvs} == {1}


@asynchronous
async def test_a_client_goes_to_members_that_another_one_named() -> None:
    """It was told of one member; that one names the others, and dies. Who does not want to go there stays."""
    async with cluster_of(3) as cluster:
        for discover in (True, False):
            kv = client.Client(["n1"], dialer=cluster.network.dialer(), discover=discover)
            async with kv:
                await kv.get("k")
                await cluster.kill("n1")
                if discover:
                    await kv.put("k", "v", timeout=6)
                    assert connected_to(kv) in {"n2", "n3"}
                else:
                    await refused(kv.get("k", timeout=0.5), errors.ReadTimeout)
            await cluster.restart("n1")


@asynchronous
async def test_writes_under_way_survive_the_loss_of_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. The member has no quorum, so the write is proposed but stays unanswered. 2. The connection breaks.

    3. The client sends the same bytes to another member, of a majority, at once. 4. The partition heals: applied once.
    """
    monkeypatch.setattr(client, "RETRY_SECONDS", 1000.0)
    async with cluster_of(3) as cluster:
        kv = cluster.client()
        await kv.put("n", "0")
        old = cluster.leader
        while connected_to(kv) != old.name:
            await other_member(kv)
        cluster.network.isolate(old.address)
        member = old._member
        assert member is not None
        writes = []
        for number in range(5):  # a batch, and a command of its own, at a time
            together = [kv.put("n", str(number), prev_kv=prev_kv, timeout=20) for prev_kv in (False, True)]
            writes += map(asyncio.create_task, together)
            await until(lambda: len(member.writes) == len(writes))  # noqa: B023  (awaited in its round)
        cluster.network.cut("client", old.address)
        await asyncio.gather(*writes)
        assert kv._write_ids == {}, "what was sent on the old connection is not answered any more"
        cluster.network.heal()
        kept = await kv.get("n", timeout=20)
        assert kept is not None
        assert kept.version == 11


async def other_member(kv: Client) -> None:
    """Make the client move on to the next member."""
    before = kv._connection
    assert before is not None
    before.close()
    await until(lambda: kv._connection is not None and kv._connection is not before)


@asynchronous
async def test_a_watch_goes_on_over_reconnections() -> None:
    """Every event once and in order, whatever members come and go; also those of a time without a connection."""
    async with cluster_of(3) as cluster:
        kv = cluster.client()
        async with kv.watch("n", start_revision=1) as watch:
            written = []
            reader = asyncio.create_task(take(watch, 40))
            for number in range(40):
                if number % 8 == 7:
                    await other_member(kv)
                if number == 20:
                    victim = connected_to(kv)
                    await cluster.kill(victim)
                result = await kv.put("n", str(number), timeout=20)
                written.append((b"n", str(number).encode(), result.revision))
            assert pairs(await reader) == written


@asynchronous
async def test_an_idle_watch_outlives_compaction_and_its_member(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has missed nothing, and knows: it goes on elsewhere from a revision that is not compacted."""
    monkeypatch.setattr(server_watch, "PROGRESS_SECONDS", 0.02)
    async with cluster_of(3) as cluster:
        kv = cluster.client()
        async with kv.watch("idle") as watch:
            await watch.synced(timeout=10)
            for number in range(5):
                result = await kv.put("busy", str(number))
            await until(lambda: watch.revision >= result.revision)
            await kv.compact(result.revision)
            await other_member(kv)
            last = await kv.put("idle", "now", timeout=20)
            assert pairs(await take(watch, 1)) == [(b"idle", b"now", last.revision)]


@asynchronous
async def test_a_slow_reader_pauses_its_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that nobody takes are bounded; the watch goes on when they are taken, and nothing is missing."""
    monkeypatch.setattr(client_watch, "WATCH_BATCHES_MAX", 3)
    async with cluster_of(1) as cluster:
        kv, node = cluster.client(), cluster.leader
        member = node._member
        assert member is not None
        watch = kv.watch(prefix="w/")
        await watch.synced(timeout=10)
        written = []
        for number in range(50):
            result = await node.put(f"w/{number}", "v")
            written.append((f"w/{number}".encode(), b"v", result.revision))
        await until(lambda: len(member.watches) == 0)
        assert len(watch._queue) == 3
        assert pairs(await take(watch, 50)) == written
        await watch.close()


@asynchronous
async def test_a_slow_reader_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large batches pause a watch long before there are many."""
    monkeypatch.setattr(client_watch, "WATCH_BYTES_MAX", 250_000)
    async with cluster_of(1) as cluster:
        kv, node = cluster.client(), cluster.leader
        member = node._member
        assert member is not None
        async with kv.watch(prefix="w/") as watch:
            await watch.synced(timeout=10)
            for number in range(8):
                await node.put(f"w/{number}", b"x" * 100_000)
            await until(lambda: len(member.watches) == 0)
            assert len(watch._queue) <= 4
            assert [event.kv.key for event in await take(watch, 8)] == [b"w/%d" % n for n in range(8)]


@asynchronous
async def test_a_revision_in_parts_is_one_batch() -> None:
    """What is too large for a frame arrives in parts, and is handed out whole."""
    async with cluster_of(1) as cluster:
        kv = cluster.client()
        async with kv.watch(prefix="k") as watch:
            await watch.synced(timeout=10)
            done = await cluster.leader.txn().then(*[PutKey(b"k%d" % n, b"x" * 500_000) for n in range(3)]).commit()
            batch = await anext(watch.batches())
            assert [event.kv.key for event in batch.events] == [b"k0", b"k1", b"k2"]
            assert batch.revision == done.revision
        async with kv.watch(prefix="k", start_revision=1) as watch:
            assert len(await take(watch, 3)) == 3


def put_event(key: bytes, revision: int) -> Event:
    """Return a put."""
    return Event(EventType.PUT, KeyValue(key, b"v", revision, revision, 1))


@asynchronous
async def test_a_part_is_dropped_with_its_connection() -> None:
    """1. The first part of a revision arrives. 2. The connection breaks: the rest would come without it.

    3. The whole revision is asked for again, and handed out once.
    """
    member = Member()
    async with Client(["a"], dialer=member.dial) as kv:
        watch = kv.watch(prefix="k", start_revision=5)
        await until(lambda: member.sent)
        first = member.sent[-1]
        member.reply(WatchUpdate([first.id], WatchBatch([], 4)))
        member.reply(WatchUpdate([first.id], WatchBatch([put_event(b"k0", 5), put_event(b"k1", 6)], 5)))
        member.close()
        await until(lambda: len(member.sent) == 2)
        again = member.sent[-1]
        assert (again.start_revision, again.id == first.id) == (6, False)
        member.reply(WatchUpdate([first.id], WatchBatch([put_event(b"late", 6)], 6)))
        member.reply(WatchUpdate([again.id], WatchBatch([put_event(b"k1", 6)], 5)))
        member.reply(WatchUpdate([again.id], WatchBatch([put_event(b"k2", 6)], 6)))
        batches = watch.batches()
        assert await anext(batches) == WatchBatch([put_event(b"k0", 5)], 5)
        assert await anext(batches) == WatchBatch([put_event(b"k1", 6), put_event(b"k2", 6)], 6)
        await watch.close()


@asynchronous
async def test_the_revision_of_a_watch_never_runs_ahead_of_its_reader() -> None:
    """Who begins another watch at `revision + 1` misses nothing, wherever it stopped reading."""
    member = Member()
    async with Client(["a"], dialer=member.dial) as kv:
        watch = kv.watch(prefix="k", start_revision=5)
        await until(lambda: member.sent)
        call = member.sent[-1]
        events = [put_event(b"a", 5), put_event(b"b", 5), put_event(b"c", 7)]
        member.reply(WatchUpdate([call.id], WatchBatch(events, 8)))
        seen = []
        async for event in watch:
            member.reply(WatchUpdate([call.id], WatchBatch([], 20)))
            seen.append((event.kv.key, watch.revision))
            if len(seen) == 3:
                break
        assert seen == [(b"a", 4), (b"b", 4), (b"c", 6)]


@asynchronous
async def test_a_member_that_goes_away_ends_no_watch() -> None:
    """It answers `Closed`: the watch goes on with the next one."""
    member = Member()
    async with Client(["a"], dialer=member.dial) as kv:
        watch = kv.watch("k")
        await until(lambda: member.sent)
        member.reply(Answer(member.sent[-1].id, error=errors.to_wire(errors.Closed("going"))))
        await until(lambda: len(member.sent) == 2)
        member.reply(Answer(member.sent[-1].id, error=errors.to_wire(errors.Compacted("no", compact_revision=9))))
        await refused(watch.synced(), errors.Compacted)


@asynchronous
async def test_a_watch_is_asked_for_until_there_is_room() -> None:
    """A member with too many calls under way ends no watch."""
    member = Member()
    async with Client(["a"], dialer=member.dial) as kv:
        watch = kv.watch("k")
        await until(lambda: member.sent)
        member.reply(Answer(member.sent[-1].id, error=errors.to_wire(errors.Overloaded("full"))))
        await until(lambda: len(member.sent) == 2)
        assert isinstance(member.sent[-1], WatchCall)
        member.reply(WatchUpdate([member.sent[-1].id], WatchBatch([], 5)))
        assert await watch.synced() == 5


@asynchronous
async def test_watches_that_find_no_room_are_no_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands some are asked for again, in turn: a member that is full has other things to do than to refuse."""
    monkeypatch.setattr(client, "WATCHES_AGAIN_MAX", 2)
    member = Member()
    async with Client(["a"], dialer=member.dial) as kv:
        for number in range(5):
            kv.watch(f"k{number}")
        asked: list[bytes] = []
        for portion in (5, 2, 2, 2):
            await until(lambda: member.sent)
            calls, member.sent = member.sent, []
            asked += [call.key for call in calls if isinstance(call, WatchCall)]
            assert len(calls) == portion
            for call in calls:
                member.reply(Answer(call.id, error=errors.to_wire(errors.Overloaded("full"))))
        assert asked == [b"k%d" % number for number in (0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0)]


@asynchronous
async def test_watches_go_first_and_calls_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. Many calls are under way, and a watch. 2. The connection breaks, and everything is sent again.

    3. The member takes no more calls than it has room for: the watch must not be the one that it refuses.
    """
    monkeypatch.setattr(client_asks, "ASKS_SENT_MAX", 2)
    member = Member()
    async with Client(["a"], dialer=member.dial) as kv:
        reads = [asyncio.create_task(kv.get(f"k{number}", timeout=60)) for number in range(5)]
        await until(lambda: len(member.sent) == 2)
        kv.watch("k")
        sent = member.sent = []
        member.close()
        await until(lambda: len(sent) == 3)
        assert [type(call) for call in sent] == [WatchCall, ReadCall, ReadCall]
        reads[0].cancel()
        await until(lambda: len(sent) == 5)
        assert sent[3] == CancelCall(sent[1].id)
        for number in range(2, 6):
            call = [call for call in sent if isinstance(call, ReadCall)][number - 1]
            member.reply(Answer(call.id, result=RangeResult(1, [], more=False, count=0)))
        assert await asyncio.gather(*reads[1:]) == [None] * 4
        assert (len(kv._asks._sent), len(kv._asks._waiting)) == (0, 0)


@asynchronous
async def test_a_client_that_outlives_its_cluster_opens_a_session_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A client has a session, a write that was sent, one that was not, and one that waits for room in the session.

    2. Another cluster takes the addresses. 3. It knows nothing of the session: neither of the first two is sent there,
    and the third opens a session.
    """
    monkeypatch.setattr(writes, "WINDOW_MAX", 2)
    member = Member()
    async with Client(["a"], dialer=member.dial) as kv:
        sent = asyncio.create_task(kv.put("a", "1", timeout=60))
        await until(lambda: member.sent)
        member.reply(Answer(member.sent[-1].id, result=77))
        await until(lambda: len(member.sent) == 2)
        member.queued_bytes = client.SEND_QUEUE_BYTES_MAX + 1
        unsent = asyncio.create_task(kv.put("b", "1", timeout=60))
        await until(lambda: kv._writes is not None and len(kv._writes) == 2)
        waiting = asyncio.create_task(kv.put("c", "1", timeout=60))
        await until(lambda: kv._sessions._current is not None and len(kv._sessions._current._waiters) == 1)
        member.peer, member.queued_bytes, member.sent = Hello(2, 1, "fake", 1, 1, ""), 0, []
        member.close()
        await refused(sent, errors.SessionExpired)
        assert not isinstance(await refused(unsent, errors.NotApplied), errors.MaybeApplied)
        await until(lambda: member.sent)
        assert [type(call) for call in member.sent] == [OpenSessionCall]
        waiting.cancel()


@asynchronous
async def test_a_connection_that_had_its_sessions_is_left() -> None:
    """A member opens a few sessions per connection: the client goes on with another one."""
    member = Member()
    async with Client(["a"], dialer=member.dial) as kv:
        put = asyncio.create_task(kv.put("a", "1", timeout=60))
        await until(lambda: member.sent)
        member.reply(Answer(member.sent[-1].id, error=errors.to_wire(errors.Overloaded("enough"))))
        assert member.is_closed
        await until(lambda: len(member.sent) == 2)
        assert not member.is_closed
        member.reply(Answer(member.sent[-1].id, result=77))
        await until(lambda: len(member.sent) == 3)
        assert isinstance(member.sent[-1], WriteCall)
        put.cancel()


@asynchronous
async def test_replies_that_mean_nothing_are_ignored() -> None:
    """Answers to nobody, updates of nobody. What is no reply at all ends the connection; the next is dialled."""
    member = Member()
    async with Client(["a"], dialer=member.dial) as kv:
        await until(lambda: member._received)
        member.reply(Answer(77, result=5))
        member.reply(WatchUpdate([77], WatchBatch([], 5)))
        status = asyncio.create_task(kv.status(timeout=10))
        await until(lambda: member.sent)
        member.reply(b"\x00garbage")
        assert member.is_closed
        await until(lambda: len(member.sent) == 2)
        assert member.sent[0] == member.sent[1], "the call is asked again"
        status.cancel()


@asynchronous
async def test_a_member_that_cannot_answer_is_asked_again() -> None:
    """Overloaded, no leader, a read that timed out there: asked again until the call's own deadline."""
    member = Member()
    async with Client(["a"], dialer=member.dial) as kv:
        read = asyncio.create_task(kv.get("k", timeout=10))
        for number, error in enumerate((errors.Overloaded, errors.NoLeader, errors.ReadTimeout), start=1):
            await until(lambda number=number: len(member.sent) == number)
            member.reply(Answer(member.sent[-1].id, error=errors.to_wire(error("later"))))
        await until(lambda: len(member.sent) == 4)
        member.reply(Answer(member.sent[-1].id, error=errors.to_wire(errors.Compacted("no", compact_revision=9))))
        assert (await refused(read, errors.Compacted)).compact_revision == 9


@asynchronous
async def test_deadlines_without_anybody() -> None:
    """Nobody answers: a write was not applied, a read has timed out, and nothing is left behind."""
    async with cluster_of(1) as cluster:
        kv = cluster.client()
        await cluster.kill("n1")
        await refused(kv.put("a", "1", timeout=0.1), errors.NoLeader)
        await refused(kv.get("a", timeout=0.1), errors.ReadTimeout)
        await refused(kv.status(timeout=0.1), errors.ReadTimeout)
        assert is_idle(kv)


@asynchronous
async def test_each_caller_has_its_own_deadline_while_a_session_is_opened() -> None:
    """One with little time does not wait for another's; one with more is not failed by another's."""
    async with cluster_of(1) as cluster:
        kv = cluster.client()
        await cluster.kill("n1")
        patient = asyncio.create_task(kv.put("a", "1", timeout=60))
        hasty = asyncio.create_task(kv.put("b", "1", timeout=0.05))
        await refused(asyncio.wait_for(hasty, 10), errors.NoLeader)
        other = cluster.client()
        first = asyncio.create_task(other.put("c", "1", timeout=0.05))
        second = asyncio.create_task(other.put("d", "1", timeout=60))
        await refused(first, errors.NoLeader)
        await cluster.restart("n1")
        await asyncio.gather(patient, second)


@asynchronous
async def test_a_write_that_may_be_applied_says_so() -> None:
    """It reached a member that has no quorum: past its deadline nobody knows."""
    async with cluster_of(3) as cluster:
        kv = cluster.client()
        await kv.put("a", "1")
        for node in cluster.followers:
            await cluster.kill(node)
        await refused(kv.put("a", "2", timeout=0.4), errors.WriteTimeout)
        await refused(kv.get("a", timeout=0.2), errors.ReadTimeout)


@asynchronous
async def test_a_session_that_expired_is_replaced() -> None:
    """The write that finds out may have been applied; the next one has a session again."""
    async with cluster_of(1) as cluster:
        kv = cluster.client()
        await kv.put("a", "1")
        member = cluster.leader._member
        assert member is not None
        member.replica.sessions._by_id.clear()
        await refused(kv.put("a", "2"), errors.SessionExpired)
        await kv.put("a", "3")


@asynchronous
async def test_who_waits_for_a_session_that_expires_goes_on_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it was sent: it does not wait for the end of what will not come."""
    async with cluster_of(1) as cluster:
        kv = cluster.client()
        await kv.put("a", "1")
        member = cluster.leader._member
        assert member is not None
        monkeypatch.setattr(writes, "WINDOW_MAX", 1)
        member.replica.sessions._by_id.clear()
        lost, waited = kv.put("a", "2", prev_kv=True), kv.put("a", "3", prev_kv=True)
        results = await asyncio.gather(lost, waited, return_exceptions=True)
        assert [type(result) for result in results] == [errors.SessionExpired, PutResult]


@asynchronous
async def test_cancelled_calls_leave_nothing_behind() -> None:
    """At whatever moment they are cancelled, on both sides."""
    async with cluster_of(3) as cluster:
        kv = cluster.client()
        for passes in range(12):
            calls = [
                asyncio.create_task(kv.put("a", "1")),
                asyncio.create_task(kv.get("a")),
                asyncio.create_task(kv.status()),
                asyncio.create_task(kv.range()),
            ]
            for _ in range(passes):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        await until(lambda: is_idle(kv))
        for node in cluster:
            assert node._member is not None
            await until(lambda member=node._member: not len(member.writes) and not member.reads._count)
        await kv.put("a", "2")
        await until(lambda: not kv._write_ids)


@asynchronous
async def test_closing_ends_every_call() -> None:
    """Sent writes may be applied, unsent ones are not; reads and watches are closed; closing again is harmless."""
    async with cluster_of(3) as cluster:
        kv = cluster.client()
        await kv.put("a", "1")
        watch, paused = kv.watch("a"), kv.watch("a")
        for node in cluster.followers:
            await cluster.kill(node)
        sent = asyncio.create_task(kv.put("a", "2"))
        read = asyncio.create_task(kv.get("a"))
        reader = asyncio.create_task(take(watch, 1))
        await until(lambda: len(kv._write_ids) == 1 and kv._asks)
        paused._is_paused = True
        kv.unsubscribe(paused)
        await kv.close()
        await kv.close()
        await refused(sent, errors.ConnectionLost)
        await refused(read, errors.Closed)
        await refused(reader, errors.Closed)
        await refused(take(paused, 1), errors.Closed)
        for call in (kv.put("a", "3"), kv.get("a"), kv.status()):
            await refused(call, errors.Closed)
        with pytest.raises(errors.Closed):
            kv.watch("a")
        fresh = cluster.client()
        await cluster.kill(cluster.leader)
        await until(lambda: fresh._connection is None)
        unsent = asyncio.create_task(fresh.put("a", "2"))
        await asyncio.sleep(0)
        await fresh.close()
        assert not isinstance(await refused(unsent, errors.PyraftkvError), errors.MaybeApplied)


@asynchronous
async def test_many_large_writes_do_not_break_the_connection() -> None:
    """20 MiB at once wait for room on a connection that takes 8."""
    async with cluster_of(1) as cluster:
        kv = cluster.client()
        await kv.put("k", "v")
        connection = kv._connection
        await asyncio.gather(*[kv.put(f"k{number}", b"x" * 1_000_000, timeout=20) for number in range(20)])
        assert kv._connection is connection
        assert (await kv.range(prefix="k", count_only=True)).count == 21


@asynchronous
async def test_more_writes_than_a_member_takes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait their turn, and none is refused or lost."""
    monkeypatch.setattr(client, "WRITES_SENT_MAX", 50)
    monkeypatch.setattr(server, "CALLS_MAX", 50)
    async with cluster_of(1) as cluster:
        kv = cluster.client()
        await asyncio.gather(*[kv.put(f"k{number}", "v", timeout=20) for number in range(200)])
        assert (await kv.range(prefix="k", count_only=True)).count == 200
        assert {kv_.version for kv_ in (await kv.range(prefix="k")).kvs} == {1}


@asynchronous
async def test_a_call_that_cannot_be_encoded_leaves_nothing_behind() -> None:
    """It fails at once, and the next connection does not stumble over it."""
    async with cluster_of(1) as cluster:
        kv = cluster.client()
        await kv.put("a", "1")
        await refused(kv.get("a", revision=1 << 70), errors.InvalidRequest)
        with pytest.raises(errors.InvalidRequest):
            kv.watch("a", start_revision=1 << 70)
        assert is_idle(kv)
        await other_member(kv)
        assert await kv.get("a") is not None


@asynchronous
async def test_a_bug_in_a_loop_ends_the_client_loudly(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for what will not come."""

    async def broken(address: str, hello: Hello) -> Any:
        raise ZeroDivisionError

    kv = Client(["a"], dialer=broken)
    kv.start()
    await refused(kv.get("a"), errors.Closed)
    assert "the client stops" in caplog.text
    await kv.close()
    assert "nobody" in repr(kv)


def test_a_client_needs_an_address() -> None:
    """Without one there is nobody to dial."""
    with pytest.raises(errors.ConfigurationError):
        Client([], dialer=Member().dial)


@pytest.mark.parametrize("timeout", [-1.0, float("inf"), float("nan")])
def test_a_client_needs_a_timeout_that_it_can_tell(timeout: float) -> None:
    """It travels with every write: one that cannot be encoded would end the client at the first."""
    with pytest.raises(errors.ConfigurationError):
        Client(["a"], dialer=Member().dial, timeout=timeout)


@asynchronous
async def test_linearizable_reads_follow_writes_through_any_member() -> None:
    """What one client has written every other client reads, whichever members they are connected to."""
    async with cluster_of(3) as cluster:
        clients = [cluster.client() for _ in range(3)]
        for number, kv in enumerate(clients):
            await kv.get("warm")
            for _ in range(number):
                await other_member(kv)
        assert len({connected_to(kv) for kv in clients}) == 3
        for number in range(12):
            await clients[number % 3].put("n", str(number))
            reads = await asyncio.gather(*[kv.get("n") for kv in clients])
            assert [kv_.text for kv_ in reads if kv_ is not None] == [str(number)] * 3
        assert other_than(cluster, cluster.leader).is_leader is False


@asynchronous
async def test_a_member_that_is_cut_off_is_left() -> None:
    """It answers, but it can get nothing done: another one may hear the others."""
    async with cluster_of(3) as cluster:
        kv = cluster.client()
        await kv.put("k", "before")
        cut_off = cluster.nodes[connected_to(kv)]
        cluster.network.isolate(cut_off.address)
        result = await kv.put("k", "after", timeout=20)
        assert result.revision == 3
        assert connected_to(kv) != cut_off.name


@asynchronous
async def test_a_snapshot_is_saved_through_any_member(tmp_path: Path) -> None:
    """Everything that was acknowledged is in it; nothing is pinned when it is done."""
    async with cluster_of(3) as cluster:
        async with cluster.client() as kv:
            await asyncio.gather(*[kv.put(f"k{number}", b"v" * 16384) for number in range(150)])
            saved = await kv.snapshot(tmp_path / "file")
        status = await snapshot_status(tmp_path / "file")
        assert (status.keys, status.revision, status.sha256) == (150, 151, saved.sha256)
        assert not any(node._running().replica.store._history.pins for node in cluster)


@asynchronous
async def test_a_snapshot_ends_with_its_connection_and_leaves_nothing(tmp_path: Path) -> None:
    """The next member knows nothing of it: it is given up, and said so; another try is another snapshot."""
    async with cluster_of(3) as cluster, cluster.client() as kv:
        await asyncio.gather(*[kv.put(f"k{number}", b"v" * 16384) for number in range(150)])
        parts = kv.snapshot_parts("linearizable", None)
        await anext(parts)
        await other_member(kv)
        await refused(anext(parts), errors.Unavailable)
        await kv.snapshot(tmp_path / "file")


@asynchronous
async def test_a_snapshot_that_is_given_up_in_the_middle_is_let_go_of() -> None:
    """The member is told, so that compaction goes on."""
    async with cluster_of(1) as cluster, cluster.client() as kv:
        await asyncio.gather(*[kv.put(f"k{number}", b"v" * 16384) for number in range(150)])
        history = cluster.leader._running().replica.store._history
        parts = kv.snapshot_parts("linearizable", None)
        await anext(parts)
        assert history.pins == 1
        await parts.aclose()
        await until(lambda: history.pins == 0)


@asynchronous
async def test_a_scan_asks_for_less_when_a_page_is_too_large() -> None:
    """Three values of a megabyte do not fit into one answer."""
    async with cluster_of(1) as cluster:
        kv = cluster.client()
        for key in ("a", "b", "c"):
            await kv.put(key, key * 1_000_000)
        assert [len(found.value) async for found in kv.scan()] == [1_000_000] * 3
        with pytest.raises(errors.RequestTooLarge):
            await kv.range()


@asynchronous
async def test_a_member_that_hangs_up_at_once_is_dialled_ever_more_slowly() -> None:
    """As one that does not answer: it may start, and wait for others."""
    member, dials = Member(), 0

    async def dial(address: str, hello: Hello) -> Member:
        nonlocal dials
        dials += 1
        asyncio.get_running_loop().call_soon(member.close)
        return await member.dial(address, hello)

    async with Client(["m"], dialer=dial) as kv:
        await refused(kv.get("k", timeout=1), errors.ReadTimeout)
    assert dials <= 9, dials


@asynchronous
async def test_who_waits_for_a_revision_in_vain_is_told_which() -> None:
    """The member has a leader; the revision is of the future."""
    async with cluster_of(1) as cluster:
        error = await refused(
            cluster.client().get("k", consistency="local", at_least=99, timeout=0.2), errors.ReadTimeout
        )
        assert "99" in str(error)
