"""Pending writes: each is resolved exactly once, sent as often as it takes, and never said to be what it is not."""

from __future__ import annotations

import asyncio

import pytest

from pyraftkv import errors, writes
from pyraftkv.codec import decode_logged
from pyraftkv.protocol import Envelope
from pyraftkv.sessions import Refusal
from pyraftkv.store.commands import PutKey
from pyraftkv.store.values import PutResult
from pyraftkv.writes import OwnSession, PendingWrites
from tests.node.support import asynchronous, refused


class Desk:
    """A `PendingWrites` and what it sent."""

    def __init__(self, *, retry_seconds: float = 100.0) -> None:
        self.loop = asyncio.get_running_loop()
        self.sent: list[tuple[int, int, bytes]] = []
        self.takes = True
        self.writes = PendingWrites(self.loop, send=self.send, retry_seconds=retry_seconds)

    def send(self, session: int, sequence: int, payload: bytes) -> bool:
        """Note what is sent, and say whether it was taken."""
        self.sent.append((session, sequence, payload))
        return self.takes

    def submit(self, sequence: int, *, seconds: float = 5.0, payload: bytes = b"p", session: int = 7) -> asyncio.Future:
        """Submit a write."""
        return self.writes.submit(session, sequence, payload, self.loop.time() + seconds)


@asynchronous
async def test_a_write_is_resolved_once() -> None:
    """The first outcome counts; a second one finds nobody."""
    desk = Desk()
    future = desk.submit(1)
    assert desk.submit(1) is future, "submitted again, it is the same write"
    assert desk.sent == [(7, 1, b"p")]
    assert desk.writes.resolve(7, 1, PutResult(5))
    assert not desk.writes.resolve(7, 1, PutResult(6))
    assert not desk.writes.resolve(8, 1, PutResult(6))
    assert await future == PutResult(5)
    assert len(desk.writes) == 0


@asynchronous
async def test_another_command_under_a_number_that_is_under_way_is_refused() -> None:
    """It must not be answered with the outcome of the first: it would be said to be applied, and never was."""
    desk = Desk()
    future = desk.submit(1)
    with pytest.raises(errors.InvalidRequest):
        desk.submit(1, payload=b"other")
    assert desk.sent == [(7, 1, b"p")]
    assert desk.submit(1, payload=b"other", session=8) is not future
    for write in desk.writes.futures():
        write.cancel()


@asynchronous
async def test_a_refusal_is_raised() -> None:
    """The error that every member came to is raised to the caller."""
    desk = Desk()
    future = desk.submit(1)
    desk.writes.resolve(7, 1, Refusal.of(errors.KeyNotFound("no")))
    await refused(future, errors.KeyNotFound)


@asynchronous
async def test_what_nobody_took_was_not_applied() -> None:
    """Past its deadline a write that was never taken is `NoLeader`; one that was taken is `WriteTimeout`."""
    desk = Desk()
    taken = desk.submit(1, seconds=-1)
    desk.takes = False
    untaken = desk.submit(2, seconds=-1)
    desk.takes = True
    payload = bytes(bytearray(b"returned"))
    returned = desk.submit(3, seconds=-1, payload=payload)
    desk.writes.returned([payload])
    declined = desk.submit(4, seconds=-1)
    desk.writes.declined(7, 4)
    desk.writes.declined(7, 99)
    desk.writes.scan()
    assert len(desk.writes) == 0
    await refused(taken, errors.WriteTimeout)
    for future in (untaken, returned, declined):
        assert not isinstance(await refused(future, errors.NoLeader), errors.MaybeApplied)


@asynchronous
async def test_a_write_taken_once_may_be_applied_whoever_declines_later() -> None:
    """1. A leader takes a write. 2. It is sent again, to a member that declines. 3. The first may still apply it."""
    desk = Desk()
    future = desk.submit(1, seconds=-1)
    desk.writes.resend()
    desk.writes.declined(7, 1)
    desk.writes.scan()
    await refused(future, errors.WriteTimeout)


@asynchronous
async def test_writes_are_sent_again() -> None:
    """Untaken ones at every scan, others after `retry_seconds`, all of them upon `resend`; always the same bytes."""
    desk = Desk(retry_seconds=0.0)
    first = desk.submit(1)
    desk.writes.scan()
    desk.writes.resend()
    assert desk.sent == [(7, 1, b"p")] * 3
    patient = Desk(retry_seconds=100.0)
    second = patient.submit(1)
    patient.writes.scan()
    assert len(patient.sent) == 1
    patient.takes = False
    third = patient.submit(2)
    patient.writes.scan()
    assert [sequence for _, sequence, _ in patient.sent] == [1, 2, 2]
    for future in (first, second, third):
        future.cancel()


@asynchronous
async def test_a_cancelled_write_leaves_the_table() -> None:
    """Nobody waits for it: it goes with the next scan, unless its owner asks for it again before."""
    desk = Desk()
    future = desk.submit(1)
    future.cancel()
    desk.writes.scan()
    assert (len(desk.writes), desk.writes.under_way()) == (0, [])
    again = desk.submit(2)
    again.cancel()
    anew = desk.submit(2)
    assert anew is not again
    desk.writes.resolve(7, 2, PutResult(5))
    assert await anew == PutResult(5)
    desk.writes.scan()
    assert desk.writes._sessions == {}


@asynchronous
async def test_writes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By count and by bytes: one more is refused, and was not sent."""
    monkeypatch.setattr(writes, "PENDING_COUNT_MAX", 2)
    desk = Desk()
    futures = [desk.submit(1), desk.submit(2)]
    with pytest.raises(errors.Overloaded):
        desk.submit(3)
    monkeypatch.setattr(writes, "PENDING_COUNT_MAX", 100)
    monkeypatch.setattr(writes, "PENDING_BYTES_MAX", 2)
    with pytest.raises(errors.Overloaded):
        desk.submit(3)
    assert len(desk.sent) == 2
    desk.writes.resolve(7, 1, PutResult(5))
    futures.append(desk.submit(3))
    for future in futures:
        future.cancel()


@asynchronous
async def test_the_end_fails_what_is_under_way_and_what_comes_after() -> None:
    """A write that was begun just before the end must not wait for ever."""
    desk = Desk()
    sent = desk.submit(1)
    desk.takes = False
    unsent = desk.submit(2)
    cancelled = desk.submit(3)
    cancelled.cancel()
    assert set(desk.writes.futures()) == {sent, unsent, cancelled}

    def stopped(may_be_applied: bool) -> errors.PyraftkvError:
        return errors.NodeFailed("x") if may_be_applied else errors.Closed("x")

    desk.writes.fail_all(stopped)
    await refused(sent, errors.NodeFailed)
    await refused(unsent, errors.Closed)
    with pytest.raises(errors.Closed):
        desk.submit(4)
    assert len(desk.writes) == 0


@asynchronous
async def test_what_is_dropped_makes_room_for_others() -> None:
    """Who had a write under way is told whether it may be applied; those to come are sent."""
    desk = Desk()
    dropped = desk.submit(1)
    desk.writes.drop_all(lambda _: errors.SessionExpired("x"))
    await refused(dropped, errors.SessionExpired)
    assert len(desk.writes) == 0
    future = desk.submit(1, payload=b"other", session=8)
    desk.writes.resolve(8, 1, PutResult(5))
    assert await future == PutResult(5)


@asynchronous
async def test_a_session_knows_what_it_has_the_outcomes_of() -> None:
    """`lowest` is the first sequence still open: everything below was answered, refused or given up."""
    desk = Desk()
    own = OwnSession(7)
    futures = {}
    for _ in range(4):
        sequence, payload = own.encode(PutKey(b"k", b"v"))
        futures[sequence] = desk.submit(sequence, payload=payload)
    assert own.encode(PutKey(b"k", b"v"))[0] == 5, "numbered, but never submitted: not open"
    assert desk.writes.lowest(own) == 1
    desk.writes.resolve(7, 2, PutResult(1))
    assert desk.writes.lowest(own) == 1
    desk.writes.resolve(7, 1, PutResult(1))
    own.acked_below = desk.writes.lowest(own)
    assert own.acked_below == 3
    _, payload = own.encode(PutKey(b"k", b"v"))
    assert decode_logged(payload) == Envelope(7, 6, 3, PutKey(b"k", b"v"))
    desk.writes.resolve(7, 3, PutResult(1))
    desk.writes.resolve(7, 4, PutResult(1))
    assert desk.writes.lowest(own) == 7
    assert all(future.done() for future in futures.values())


def test_a_session_waits_for_its_oldest_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who runs too far ahead waits, and goes on as there is room, no more of them than there is."""
    monkeypatch.setattr(writes, "WINDOW_MAX", 4)

    async def main() -> None:
        own = OwnSession(7)
        loop = asyncio.get_running_loop()
        for _ in range(4):
            assert not own.is_full
            own.encode(PutKey(b"k", b"v"))
        assert own.is_full
        waiting = [asyncio.create_task(own.room(loop.time() + 60)) for _ in range(3)]
        await asyncio.sleep(0)
        own.advance(1)
        await asyncio.sleep(0)
        assert [task.done() for task in waiting] == [False, False, False]
        own.advance(3)
        await asyncio.gather(*waiting[:2])
        assert waiting[2].done() is False
        own.abandon()
        await waiting[2]
        with pytest.raises(errors.Overloaded):
            await own.room(loop.time())

    asyncio.run(main())


def test_a_place_is_never_lost_nor_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes later waits behind those who wait; who is cancelled with a place in hand passes it on."""
    monkeypatch.setattr(writes, "WINDOW_MAX", 2)

    async def main() -> None:
        own = OwnSession(7)
        deadline = asyncio.get_running_loop().time() + 60
        for _ in range(2):
            own.encode(PutKey(b"k", b"v"))
        first, second = (asyncio.create_task(own.room(deadline)) for _ in range(2))
        await asyncio.sleep(0)
        own.advance(2)
        assert own.is_full, "the place is given away, though nobody has taken it yet"
        first.cancel()
        await second
        assert first.cancelled()
        assert not own.is_full
        own.encode(PutKey(b"k", b"v"))
        assert own.is_full

    asyncio.run(main())
