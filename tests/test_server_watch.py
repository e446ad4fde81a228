"""The member's side of a client's watches: shared frames, turns, parts, progress, and what ends them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pyraftkv import PutKey, codec, server_watch
from pyraftkv.protocol import Answer, CancelCall, StatusCall, WatchCall, WatchUpdate
from pyraftkv.server import ClientConnection
from pyraftkv.server_watch import ServedWatches, parts_of
from pyraftkv.store.values import Event, EventType, KeyValue, WatchBatch
from tests.node.support import asynchronous, until
from tests.raw_client import RawClient, error_name, raw_client, served


async def watching(raw: RawClient, count: int, key: bytes = b"k", *, start_revision: int = 0) -> list[int]:
    """Start so many watches of a key; return their ids when they are in place."""
    ids = list(range(2, 2 + count))
    for call_id in ids:
        raw.send(WatchCall(call_id, key, b"", start_revision, False))
    await raw.wait(lambda: all(raw.updates(call_id) for call_id in ids))
    return ids


def frames_with_events(raw: RawClient) -> list[WatchUpdate]:
    """Return the updates that carry events."""
    return [reply for reply in raw.replies if isinstance(reply, WatchUpdate) and reply.batch.events]


@asynchronous
async def test_watches_that_are_due_the_same_share_a_frame() -> None:
    """One frame names them all, in the order in which they came; one of another key gets its own."""
    async with served() as (_, node, raw):
        ids = await watching(raw, 50)
        raw.send(WatchCall(100, b"other", b"", 0, False))
        raw.send(WatchCall(101, b"k", b"", 0, True))
        raw.send(WatchCall(102, b"k", b"", 0, True))
        await raw.wait(lambda: raw.updates(102))
        await node.put("k", "1")
        await node.put("k", "2")
        await node.put("other", "3")
        await raw.wait(lambda: raw.updates(100)[-1].events and raw.updates(102)[-1].revision >= 3)
        frames = frames_with_events(raw)
        assert {tuple(frame.ids) for frame in frames} == {tuple(ids), (101, 102), (100,)}
        for call_id in (*ids, 101, 102):
            events = [event for batch in raw.updates(call_id) for event in batch.events]
            assert [event.kv.value for event in events] == [b"1", b"2"]
            assert [event.prev_kv is not None for event in events] == [False, call_id > 100]


@asynchronous
async def test_a_turn_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In watches, in those of them that read history, and in bytes: what is left comes in the turns after it."""
    turns: list[int] = []
    take_turn = ServedWatches._take_turn

    def counted(watches: ServedWatches) -> Any:
        dues = take_turn(watches)
        turns.append(sum(len(due.servings) for due in dues))
        return dues

    monkeypatch.setattr(ServedWatches, "_take_turn", counted)
    monkeypatch.setattr(server_watch, "TURN_WATCHES_MAX", 8)
    monkeypatch.setattr(server_watch, "TURN_HISTORY_MAX", 3)
    monkeypatch.setattr(server_watch, "TURN_BYTES_MAX", 1000)
    async with served() as (cluster, node, raw):
        ids = await watching(raw, 20)
        await node.put("k", "1")
        await raw.wait(lambda: all(raw.updates(call_id)[-1].events for call_id in ids))
        assert (sum(turns), max(turns)) == (20, 8)
        turns.clear()
        late = await raw_client(cluster, node)
        ids = await watching(late, 10, start_revision=1)
        await late.wait(lambda: all(late.updates(call_id)[-1].events for call_id in ids))
        assert (sum(turns), max(turns)) == (10, 3)
        for number in range(4):
            late.send(WatchCall(100 + number, b"%d" % number, b"", 0, False))
        await late.wait(lambda: late.updates(103))
        turns.clear()
        await node.txn().then(*[PutKey(b"%d" % number, b"v" * 600) for number in range(4)])
        await late.wait(lambda: all(late.updates(100 + number)[-1].events for number in range(4)))
        assert turns == [2, 2]


@asynchronous
async def test_as_many_frames_as_it_takes_to_name_the_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. An event nearly fills a frame. 2. There is no room left to name everybody who is due it.

    3. That is no reason to end a watch: several frames carry it.
    """
    async with served() as (_, node, raw):
        ids = await watching(raw, 10)
        await node.put("k", b"x" * 1000)
        (first,) = [frame async for frame in _frames(raw, ids)]
        size_bytes = len(codec.encode_reply(first)) - 8 * len(ids)
        monkeypatch.setattr(server_watch, "CLIENT_FRAME_BYTES_MAX", size_bytes + 3 * 8)
        await node.put("k", b"y" * 1000)
        frames = [frame async for frame in _frames(raw, ids)][1:]
        assert [len(frame.ids) for frame in frames] == [3, 3, 3, 1]
        assert [call_id for frame in frames for call_id in frame.ids] == ids
        monkeypatch.setattr(server_watch, "CLIENT_FRAME_BYTES_MAX", size_bytes + 7)
        await node.put("k", b"z" * 1000)
        for call_id in ids:
            assert error_name(await raw.answer(call_id)) == "WatchCancelled"


async def _frames(raw: RawClient, ids: list[int]) -> AsyncIterator[WatchUpdate]:
    """Yield the frames with events, once the last of them has come to every watch."""
    count = len(frames_with_events(raw))
    await raw.wait(lambda: len(frames_with_events(raw)) > count)
    await raw.ask(StatusCall(1000 + count))
    assert all(raw.updates(call_id)[-1].events for call_id in ids)
    for frame in frames_with_events(raw):
        yield frame


@asynchronous
async def test_whoever_cancels_between_two_parts_gets_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A batch goes to two watches in parts. 2. One is cancelled, and its id used for another watch.

    3. The rest of the batch would be taken for that one's.
    """
    may_go_on = asyncio.Event()

    async def slow(_: ClientConnection) -> None:
        await may_go_on.wait()

    monkeypatch.setattr(ClientConnection, "_room", slow)
    async with served() as (_, node, raw):
        for call_id in (2, 3):
            raw.send(WatchCall(call_id, b"k", b"l", 0, False))
        await raw.wait(lambda: raw.updates(2) and raw.updates(3))
        await node.txn().then(*[PutKey(b"k%d" % n, b"x" * 600_000) for n in range(2)])
        await raw.wait(lambda: raw.updates(3)[-1].events)
        raw.send(CancelCall(3))
        raw.send(WatchCall(3, b"other", b"", 0, False))
        await raw.wait(lambda: not raw.updates(3)[-1].events)
        may_go_on.set()
        await raw.wait(lambda: len(raw.updates(2)) == 3)
        assert len(raw.updates(3)) == 3
        assert not raw.updates(3)[-1].events


@asynchronous
async def test_a_bug_in_serving_watches_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client goes on elsewhere, where it would wait for ever otherwise; the member lives."""

    def broken(_: ServedWatches) -> None:
        raise ZeroDivisionError

    async with served() as (_, node, raw):
        await watching(raw, 2)
        monkeypatch.setattr(ServedWatches, "_take_turn", broken)
        await node.put("k", "1")
        await raw.wait(lambda: raw.is_closed)
        await node.put("k", "2")
        member = node._member
        assert member is not None
        assert len(member.watches) == 0


@asynchronous
async def test_a_cancelled_watch_is_silent() -> None:
    """After `CancelCall` neither updates nor an answer come."""
    async with served() as (_, node, raw):
        raw.send(WatchCall(2, b"a", b"", 0, False))
        await raw.wait(lambda: raw.updates(2))
        raw.send(CancelCall(2))
        await raw.ask(StatusCall(3))
        await node.put("a", "1")
        await raw.ask(StatusCall(4))
        assert len(raw.updates(2)) == 1
        assert not [reply for reply in raw.replies if isinstance(reply, Answer) and reply.id == 2]
        member = node._member
        assert member is not None
        await until(lambda: len(member.watches) == 0)


@asynchronous
async def test_a_large_revision_is_sent_in_parts() -> None:
    """Every part fits a frame, and says that its last revision is not complete until the last part."""
    async with served() as (_, node, raw):
        raw.send(WatchCall(2, b"k", b"l", 0, False))
        await raw.wait(lambda: raw.updates(2))
        operations = [PutKey(b"k%d" % number, b"x" * 400_000) for number in range(3)]
        done = await node.txn().then(*operations).commit()
        more = await node.txn().then(*[PutKey(b"k%d" % n, b"y" * 500_000) for n in range(3)]).commit()
        await raw.wait(lambda: raw.updates(2)[-1].revision >= more.revision)
        batches = raw.updates(2)[1:]
        events = [event for batch in batches for event in batch.events]
        assert [event.kv.mod_revision for event in events] == [done.revision] * 3 + [more.revision] * 3
        assert len(batches) >= 3
        for batch, following in itertools.pairwise(batches):
            assert batch.revision < following.events[0].kv.mod_revision


@asynchronous
async def test_an_event_larger_than_a_frame_ends_the_watch_with_advice() -> None:
    """Only a large value with a large previous value can be: the watch ends with a typed error, the member goes on."""
    async with served() as (_, node, raw):
        raw.send(WatchCall(2, b"k", b"", 0, True))
        await raw.wait(lambda: raw.updates(2))
        await node.put("k", b"x" * 1_500_000)
        second = await node.put("k", b"y" * 1_500_000)
        answer = await raw.answer(2)
        assert answer.error is not None
        assert answer.error[0] == "WatchCancelled"
        assert answer.error[2]["resume_revision"] == second.revision


def event(key: bytes, revision: int, size_bytes: int) -> Event:
    """Return a put of that size."""
    return Event(EventType.PUT, KeyValue(key, b"x" * size_bytes, revision, revision, 1))


def test_parts_are_the_batch_and_never_promise_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put together they are the batch; what a part says is complete is complete."""
    monkeypatch.setattr(server_watch, "PART_BYTES_MAX", 1000)
    events = [event(b"%03d" % number, 10 + number // 4, 100 * (number % 5)) for number in range(40)]
    parts = list(parts_of(WatchBatch(events, 25)))
    assert [e for part in parts for e in part.events] == events
    assert len(parts) > 5
    assert parts[-1].revision == 25
    for number, part in enumerate(parts[:-1]):
        later = [e.kv.mod_revision for following in parts[number + 1 :] for e in following.events]
        assert part.revision < min(later)
    big = [event(b"a", 10, 5000), event(b"b", 10, 5000)]
    assert [len(part.events) for part in parts_of(WatchBatch(big, 10))] == [1, 1]
    assert list(parts_of(WatchBatch([], 7))) == [WatchBatch([], 7)]


@asynchronous
async def test_idle_watches_are_told_how_far_history_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch that concerns nothing of what happens still learns the revision that it has seen everything up to."""
    monkeypatch.setattr(server_watch, "PROGRESS_SECONDS", 0.02)
    async with served() as (_, node, raw):
        raw.send(WatchCall(2, b"idle", b"", 0, False))
        await raw.wait(lambda: raw.updates(2))
        done = await node.put("other", "1")
        await raw.wait(lambda: raw.updates(2)[-1].revision == done.revision)
        assert all(not batch.events for batch in raw.updates(2))


@asynchronous
async def test_no_progress_is_told_in_the_middle_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. A batch is sent in parts, and the client is slow to take the first. 2. All of it is taken from the store.

    3. Telling how far the store's watch is would promise what is still to be sent; it is told after the last part.
    """
    monkeypatch.setattr(server_watch, "PROGRESS_SECONDS", 0.01)
    may_go_on, told = asyncio.Event(), asyncio.Event()

    async def slow(_: ClientConnection) -> None:
        await may_go_on.wait()

    tell = ServedWatches._tell_progress

    def telling(watches: ServedWatches) -> None:
        tell(watches)
        told.set()

    monkeypatch.setattr(ClientConnection, "_room", slow)
    monkeypatch.setattr(ServedWatches, "_tell_progress", telling)
    async with served() as (_, node, raw):
        raw.send(WatchCall(2, b"k", b"l", 0, False))
        await raw.wait(lambda: raw.updates(2))
        done = await node.txn().then(*[PutKey(b"k%d" % n, b"x" * 500_000) for n in range(3)]).commit()
        await raw.wait(lambda: raw.updates(2)[-1].events)
        for _ in range(2):
            told.clear()
            await told.wait()
        await raw.ask(StatusCall(3))
        assert raw.updates(2)[-1].revision < done.revision
        may_go_on.set()
        await raw.wait(lambda: raw.updates(2)[-1].revision == done.revision)
        assert len([event for batch in raw.updates(2) for event in batch.events]) == 3
