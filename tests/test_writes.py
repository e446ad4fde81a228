"""Pending writes: each is resolved exactly once, sent as often as it takes, and never said to be what it is not."""

from __future__ import annotations

import asyncio
import math

import pytest

from pyraftkv import codec, errors, writes
from pyraftkv.codec import decode_logged
from pyraftkv.protocol import Envelope
from pyraftkv.sessions import Refusal
from pyraftkv.store.commands import PutBatch, PutKey
from pyraftkv.store.values import PutBatchResult, PutResult
from pyraftkv.writes import TOGETHER_SECONDS, OwnSession, PendingWrites, SessionKeeper
from tests.node.support import asynchronous, refused


class Desk:
    """A `PendingWrites` and what it sent."""

    def __init__(self, *, retry_seconds: float = 100.0) -> None:
        self.loop = asyncio.get_running_loop()
        self.sent: list[tuple[int, int, bytes]] = []
        self.takes = True
        self.gathered = 0
        self.expired: list[int] = []
        self.writes = PendingWrites(
            self.loop, send=self.send, gather=self.gather, expired=self.expired.append, retry_seconds=retry_seconds
        )

    def gather(self) -> None:
        """Note that there is something to be sealed."""
        self.gathered += 1

    def send(self, session: int, sequence: int, payload: bytes) -> bool:
        """Note what is sent, and say whether it was taken."""
        self.sent.append((session, sequence, payload))
        return self.takes

    def submit(self, sequence: int, *, seconds: float = 5.0, payload: bytes = b"p", session: int = 7) -> asyncio.Future:
        """Submit a write."""
        return self.writes.submit(session, sequence, payload, self.loop.time() + seconds)

    def put(self, own: OwnSession, key: bytes, *, seconds: float = 5.0, value: bytes = b"v") -> asyncio.Future:
        """Put into the batch that is being gathered."""
        return self.writes.put(own, key, value, self.loop.time() + seconds)

    def commands(self) -> list[Envelope]:
        """Return what was sent, decoded."""
        return [decode_logged(payload) for _, _, payload in self.sent]


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
    puts = desk.put(OwnSession(9), b"a")
    desk.writes.seal()
    with pytest.raises(errors.InvalidRequest):
        desk.submit(1, payload=desk.sent[-1][2], session=9)
    assert not puts.done()
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
async def test_what_a_new_connection_has_no_room_for_is_due_at_once() -> None:
    """It was taken by the last one, and may be applied; but it waits for room now, and not for `retry_seconds`."""
    desk = Desk(retry_seconds=100.0)
    future = desk.submit(1)
    desk.takes = False
    desk.writes.resend()
    desk.writes.scan()
    assert len(desk.sent) == 3
    desk.takes = True
    desk.writes.scan()
    desk.writes.scan()
    assert len(desk.sent) == 4, "taken: from now on it waits for an answer"
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


# --- Batches -------------------------------------------------------------------------------------------------------


@asynchronous
async def test_puts_made_together_are_one_command() -> None:
    """One number, one payload; each caller gets the revision of its own put."""
    desk, own = Desk(), OwnSession(7)
    futures = [desk.put(own, b"a"), desk.put(own, b"b"), desk.put(own, b"a")]
    assert (desk.sent, desk.gathered, len(desk.writes)) == ([], 1, 3)
    desk.writes.seal()
    desk.writes.seal()
    assert desk.commands() == [Envelope(7, 1, 1, PutBatch((b"a", b"v", b"b", b"v", b"a", b"v")))]
    assert desk.writes.resolve(7, 1, PutBatchResult(12, 3))
    assert await asyncio.gather(*futures) == [PutResult(10), PutResult(11), PutResult(12)]
    assert (len(desk.writes), desk.writes._bytes) == (0, 0)
    again = desk.put(own, b"c")
    desk.writes.seal()
    assert (desk.gathered, desk.sent[1][:2]) == (2, (7, 2))
    desk.writes.resolve(7, 2, PutBatchResult(13, 1))
    assert await again == PutResult(13)


@asynchronous
async def test_a_put_that_was_given_up_keeps_its_revision() -> None:
    """It was made all the same: those behind it in the batch are told theirs."""
    desk, own = Desk(), OwnSession(7)
    given_up, other = desk.put(own, b"a"), desk.put(own, b"b")
    desk.writes.seal()
    given_up.cancel()
    assert desk.writes.resolve(7, 1, PutBatchResult(12, 2))
    assert await other == PutResult(12)


@asynchronous
async def test_a_batch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By puts and by bytes; what is too long for any batch goes alone."""
    monkeypatch.setattr(codec, "PUT_BATCH_MAX", 3)
    monkeypatch.setattr(writes, "BATCH_BYTES_MAX", 100)
    desk, own = Desk(), OwnSession(7)
    values = [b"", b"", b"", b"", b"v" * 60, b"v" * 60, b"v" * 200, b""]
    futures = [desk.put(own, b"k", value=value) for value in values]
    desk.writes.seal()
    assert [command.command.count for command in desk.commands()] == [3, 2, 1, 1, 1]
    assert sum([command.command.items for command in desk.commands()], ())[1::2] == tuple(values)
    for future in futures:
        future.cancel()


@asynchronous
async def test_a_batch_is_of_one_session() -> None:
    """A put of another session begins a batch of its own; numbers follow the order of the calls."""
    desk, old, new = Desk(), OwnSession(7), OwnSession(8)
    futures = [desk.put(old, b"a"), desk.put(new, b"b")]
    desk.writes.seal()
    assert [(session, sequence) for session, sequence, _ in desk.sent] == [(7, 1), (8, 1)]
    for future in futures:
        future.cancel()


@asynchronous
async def test_a_batch_is_given_up_whole() -> None:
    """Puts that end together travel together: one that is given up is not sent again for the sake of another."""
    desk, own = Desk(), OwnSession(7)
    short, long = desk.put(own, b"a", seconds=-1), desk.put(own, b"b")
    cancelled = desk.put(own, b"c")
    cancelled.cancel()
    desk.writes.seal()
    assert [command.command.count for command in desk.commands()] == [1, 2]
    desk.writes.scan()
    await refused(short, errors.WriteTimeout)
    assert (long.done(), desk.writes.under_way(), desk.writes.lowest(own)) == (False, [(7, 2)], 2)
    desk.writes.resolve(7, 2, PutBatchResult(12, 2))
    assert await long == PutResult(11)
    desk.takes = False
    never = desk.put(own, b"d", seconds=-1)
    desk.writes.seal()
    desk.writes.scan()
    assert not isinstance(await refused(never, errors.NoLeader), errors.MaybeApplied)
    assert (len(desk.writes), desk.writes._bytes, desk.writes.lowest(own)) == (0, 0, 4)


@asynchronous
async def test_puts_that_end_apart_travel_apart() -> None:
    """However many lie between them: each is compared with the first. Those that never end end together."""
    desk, own = Desk(), OwnSession(7)
    start, step = desk.loop.time(), TOGETHER_SECONDS / 2
    deadlines = [start + step * count for count in range(5)] + [start, math.inf, math.inf]
    futures = [desk.writes.put(own, b"k", b"v", deadline) for deadline in deadlines]
    desk.writes.seal()
    assert [command.command.count for command in desk.commands()] == [3, 2, 1, 2]
    for future in futures:
        future.cancel()


@asynchronous
async def test_a_batch_lasts_as_long_as_anybody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the last of its deadlines, whoever is cancelled; then it leaves, and makes room."""
    monkeypatch.setattr(writes, "TOGETHER_SECONDS", 100.0)
    desk, own = Desk(), OwnSession(7)
    futures = [desk.put(own, b"k", seconds=seconds) for seconds in (-1, 60, -2, 70)]
    desk.writes.seal()
    futures[2].cancel()
    desk.writes.scan()
    assert ([future.done() for future in futures], len(desk.writes)) == ([False, False, True, False], 4)
    futures[3].cancel()
    desk.writes.scan()
    assert (desk.writes.under_way(), len(desk.writes), desk.writes.lowest(own)) == ([(7, 1)], 2, 1)
    for future in futures:
        future.cancel()


@asynchronous
async def test_a_batch_is_sent_again_whole() -> None:
    """The same bytes under the same number, so that it is applied once."""
    desk, own = Desk(retry_seconds=0.0), OwnSession(7)
    future = desk.put(own, b"a")
    desk.writes.scan()
    assert desk.sent == [], "nothing is sent before it is sealed"
    desk.writes.seal()
    desk.writes.scan()
    desk.writes.resend()
    assert desk.sent == [desk.sent[0]] * 3
    future.cancel()


@asynchronous
async def test_a_refused_batch_is_refused_to_everybody() -> None:
    """Each caller gets an exception of its own; a session that expired is told of, whoever's write found out."""
    desk, own = Desk(), OwnSession(7)
    first, second = desk.put(own, b"a"), desk.put(own, b"b")
    desk.writes.seal()
    desk.writes.resolve(7, 1, Refusal.of(errors.InvalidRequest("no")))
    one, other = await refused(first, errors.InvalidRequest), await refused(second, errors.InvalidRequest)
    assert one is not other
    assert desk.expired == []
    third = desk.put(own, b"c")
    desk.writes.seal()
    desk.writes.resolve(7, 2, Refusal.of(errors.SessionExpired("gone")))
    await refused(third, errors.SessionExpired)
    fourth = desk.submit(3)
    desk.writes.resolve(7, 3, Refusal.of(errors.SessionExpired("gone")))
    await refused(fourth, errors.SessionExpired)
    assert desk.expired == [7, 7]


@asynchronous
async def test_an_outcome_that_is_none_of_a_batch_ends_it() -> None:
    """What a member answers is checked before it is believed: nobody waits for ever, or gets a wrong revision."""
    desk, own = Desk(), OwnSession(7)
    for sequence, outcome in enumerate([PutResult(5), PutBatchResult(5, 1), PutBatchResult(5, 3), 5], 1):
        futures = [desk.put(own, b"a"), desk.put(own, b"b")]
        desk.writes.seal()
        assert desk.writes.resolve(7, sequence, outcome)
        for future in futures:
            await refused(future, errors.MaybeApplied)
    assert len(desk.writes) == 0


@asynchronous
async def test_puts_are_bounded_and_end_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not sealed yet counts, and was sent to nobody."""
    monkeypatch.setattr(writes, "PENDING_COUNT_MAX", 2)
    desk, own = Desk(), OwnSession(7)
    sealed = desk.put(own, b"a")
    desk.writes.seal()
    gathered = desk.put(own, b"b")
    with pytest.raises(errors.Overloaded):
        desk.put(own, b"c")
    assert desk.writes.futures() == [sealed, gathered]
    desk.writes.fail_all(lambda sent: errors.NodeFailed("x") if sent else errors.Closed("x"))
    await refused(sealed, errors.NodeFailed)
    await refused(gathered, errors.Closed)
    with pytest.raises(errors.Closed):
        desk.put(own, b"d")
    desk.writes.seal()
    assert len(desk.sent) == 1


# --- Sessions ------------------------------------------------------------------------------------------------------


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


def test_who_gives_up_waiting_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session may be full for as long as its oldest write is open: what waits for it is bounded, and only that."""
    monkeypatch.setattr(writes, "WINDOW_MAX", 1)
    monkeypatch.setattr(writes, "WAITING_COUNT_MAX", 2)

    async def main() -> None:
        own = OwnSession(7)
        loop = asyncio.get_running_loop()
        own.encode(PutKey(b"k", b"v"))
        for _ in range(3):
            with pytest.raises(errors.Overloaded, match="too long"):
                await own.room(loop.time())
        waiting = [asyncio.create_task(own.room(loop.time() + 60)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(errors.Overloaded, match="2 writes wait"):
            await own.room(loop.time() + 60)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        own.advance(2)
        assert not own.is_full, "those who gave up are in nobody's way"

    asyncio.run(main())


@asynchronous
async def test_an_attempt_that_fails_is_told_to_those_who_still_wait_for_it() -> None:
    """Not to the loop, on behalf of the one who has left."""
    loop, goes_on, told = asyncio.get_running_loop(), asyncio.Event(), []
    loop.set_exception_handler(lambda _, context: told.append(context))

    async def register(deadline: float) -> int:
        await goes_on.wait()
        raise errors.NoLeader("nobody leads")

    keeper = SessionKeeper(register=register, situation=lambda: "nobody answers")
    leaving = asyncio.create_task(keeper.with_room(loop.time() + 60))
    staying = asyncio.create_task(keeper.with_room(loop.time() + 0.01))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    await refused(staying, errors.NoLeader)
    goes_on.set()
    await keeper.close()
    assert told == []
