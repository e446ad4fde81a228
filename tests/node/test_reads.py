"""Read rounds: a read is answered from state as fresh as its call, and from no round that began before it."""

from __future__ import annotations

import asyncio

import pytest

from pyraftkv import errors
from pyraftkv.core import ReadReady
from pyraftkv.node import reads
from pyraftkv.node.reads import READ_STEP_BUDGET as BUDGET
from pyraftkv.node.reads import ReadRounds, RevisionWaits
from pyraftkv.store import Work
from tests.node.support import asynchronous, refused


class Asked:
    """A `ReadRounds` and the contexts that it asked for."""

    def __init__(self, *, retry_seconds: float = 1.0, applied_index: int = 0) -> None:
        self.contexts: list[int] = []
        self.loop = asyncio.get_running_loop()
        self.rounds = ReadRounds(
            self.loop,
            send=self.contexts.append,
            retry_seconds=retry_seconds,
            first_context=100,
            applied_index=applied_index,
        )

    def join(self, seconds: float = 5.0) -> asyncio.Future[None]:
        """Begin a read."""
        return self.rounds.join(self.loop.time() + seconds)


@asynchronous
async def test_reads_share_a_round_until_it_is_sent() -> None:
    """Reads that arrive together cost one round; one that arrives after it left needs another."""
    asked = Asked()
    first, second = asked.join(), asked.join()
    asked.rounds.seal()
    third = asked.join()
    assert asked.contexts == [101, 102]
    asked.rounds.applied(7)
    asked.rounds.confirmed([ReadReady(101, 7)])
    assert (first.done(), second.done(), third.done()) == (True, True, False)
    asked.rounds.confirmed([ReadReady(102, 7)])
    assert third.done()


@asynchronous
async def test_a_confirmed_read_waits_until_its_index_is_applied() -> None:
    """The index says what the state must contain; the state may be behind it."""
    asked = Asked()
    read = asked.join()
    asked.rounds.confirmed([ReadReady(101, 7)])
    asked.rounds.applied(6)
    assert not read.done()
    asked.rounds.applied(7)
    assert read.done()


@asynchronous
async def test_what_was_restored_counts_as_applied() -> None:
    """1. A member starts from a snapshot at index 7, and nothing follows it in the log.

    2. A read is confirmed at 7. Nothing is going to be applied, so nothing would wake it: it must not wait.
    """
    asked = Asked(applied_index=7)
    read = asked.join()
    asked.rounds.confirmed([ReadReady(101, 7)])
    assert read.done()


@asynchronous
async def test_a_round_that_is_asked_again_has_a_fresh_context() -> None:
    """An answer that nobody asked for, or that was taken already, is no answer to a later question."""
    asked = Asked(retry_seconds=0.0)
    read = asked.join()
    asked.rounds.seal()
    asked.rounds.retry()
    asked.rounds.scan()
    assert asked.contexts == [101, 102, 103]
    asked.rounds.applied(7)
    asked.rounds.confirmed([ReadReady(100, 7)])
    assert not read.done()
    asked.rounds.confirmed([ReadReady(103, 7)])
    assert read.done()
    later = asked.join()
    asked.rounds.confirmed([ReadReady(101, 7), ReadReady(102, 7), ReadReady(103, 7)])
    assert not later.done()


@asynchronous
async def test_a_late_answer_still_answers_the_round_that_asked() -> None:
    """1. The way to the leader and back takes longer than the patience of one question.

    2. The round is asked again and again, and each answer is to a question before the last: were only the last one's
       taken, the read would never end. All reads of the round came before its first question, so any answer will do.
    """
    asked = Asked(retry_seconds=0.0)
    read = asked.join()
    asked.rounds.seal()
    asked.rounds.scan()
    asked.rounds.scan()
    asked.rounds.applied(7)
    asked.rounds.confirmed([ReadReady(101, 7)])
    assert read.done()
    assert asked.rounds._sent == {}


@asynchronous
async def test_deadlines_and_cancellation_leave_nothing_behind() -> None:
    """A read past its deadline is a `ReadTimeout`; its place, and that of a cancelled one, is free again."""
    asked = Asked()
    late, gone, confirmed = asked.join(-1.0), asked.join(), asked.join(-1.0)
    asked.rounds.seal()
    gone.cancel()
    asked.rounds.scan()
    await refused(late, errors.ReadTimeout)
    await refused(confirmed, errors.ReadTimeout)
    waiting = asked.join(-1.0)
    asked.rounds.seal()
    asked.rounds.confirmed([ReadReady(102, 7)])
    asked.rounds.scan()
    await refused(waiting, errors.ReadTimeout)
    asked.rounds.applied(7)
    assert (asked.rounds._sent, asked.rounds._confirmed, asked.rounds._count) == ({}, [], 0)


@asynchronous
async def test_reads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One read more than `READS_WAITING_MAX` is refused as `Overloaded`."""
    monkeypatch.setattr(reads, "READS_WAITING_MAX", 2)
    asked = Asked()
    first, second = asked.join(), asked.join()
    with pytest.raises(errors.Overloaded):
        asked.join()
    first.cancel()
    second.cancel()
    asked.rounds.scan()
    asked.join().cancel()


HALF = BUDGET // 2


class Slices(Work[int]):
    """Work of so many slices."""

    def __init__(self, count: int) -> None:
        self._left = count

    def step(self, budget: int) -> int | None:
        self._left -= 1
        return None if self._left else budget


@asynchronous
async def test_long_reads_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many go on at a time, and share a slice in a pass of the loop; what is finished waits for nobody."""
    monkeypatch.setattr(reads, "LONG_READS_MAX", 2)
    long_reads = reads.LongReads()
    works = [Slices(3) for _ in range(6)]
    running = [asyncio.create_task(long_reads.finished(work)) for work in works]
    await asyncio.sleep(0)
    assert await long_reads.finished(7) == 7
    await asyncio.sleep(0)
    assert [work._left for work in works] == [2, 2, 3, 3, 3, 3]
    running[2].cancel()
    running[0].cancel()
    await asyncio.wait(running)
    assert [task.cancelled() or task.result() for task in running] == [True, HALF, True, HALF, HALF, BUDGET]
    assert await long_reads.finished(Slices(1)) == BUDGET


@asynchronous
async def test_the_end_fails_every_read_with_an_error_of_its_own() -> None:
    """Sent or confirmed, each caller gets its own exception."""
    asked = Asked()
    one, two = asked.join(), asked.join()
    asked.rounds.seal()
    asked.rounds.confirmed([ReadReady(101, 7)])
    three = asked.join()
    asked.rounds.fail_all(lambda: errors.Closed("gone"))
    raised = [await refused(read, errors.Closed) for read in (one, two, three)]
    assert len({id(error) for error in raised}) == 3


# --- Revisions -------------------------------------------------------------------------------------------------------


class Waits:
    """A `RevisionWaits` of a store at revision 5."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.waits = RevisionWaits(self.loop, revision=5)

    def join(self, revision: int, seconds: float = 5.0) -> asyncio.Future[None]:
        """Begin to wait."""
        return self.waits.join(revision, self.loop.time() + seconds)


@asynchronous
async def test_a_read_waits_until_its_revision_is_there() -> None:
    """Whoever waits for less is not held up by whoever waits for more, in whatever order they came."""
    store = Waits()
    nine, seven, seven_too, five = store.join(9), store.join(7), store.join(7), store.join(5)
    assert [wait.done() for wait in (nine, seven, seven_too, five)] == [False, False, False, True]
    store.waits.published(6)
    assert not seven.done()
    store.waits.published(8)
    assert [wait.done() for wait in (nine, seven, seven_too)] == [False, True, True]
    store.waits.published(9)
    assert nine.done()


@asynchronous
async def test_a_revision_that_does_not_come_is_a_timeout() -> None:
    """At the deadline; who is cancelled leaves, and the others go on waiting."""
    store = Waits()
    late, gone, waiting = store.join(7, -1.0), store.join(6), store.join(8)
    gone.cancel()
    store.waits.scan()
    assert "revision 7 is not here, 5 is" in str(await refused(late, errors.ReadTimeout))
    assert len(store.waits._waiting) == 1
    store.waits.published(8)
    assert waiting.done()
    store.waits.scan()


@asynchronous
async def test_waits_for_revisions_are_bounded_and_end_with_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than `READS_WAITING_MAX` is refused; at the end each caller gets its own exception."""
    monkeypatch.setattr(reads, "READS_WAITING_MAX", 2)
    store = Waits()
    one, two = store.join(7), store.join(7)
    with pytest.raises(errors.Overloaded):
        store.join(7)
    store.waits.fail_all(lambda: errors.Closed("gone"))
    assert await refused(one, errors.Closed) is not await refused(two, errors.Closed)
    store.join(7).cancel()
