"""Linearizable reads: rounds of ReadIndex that many reads share (thesis §6.4).

A read joins the round that has not been sent yet; when the round is confirmed at some index, and this member has
applied up to it, its reads may be answered from local state. A round that is not answered (the leader changed, a
message was lost) is asked again with a *fresh* context, so that no answer is taken for one to another question. All its
reads had arrived before it was asked for the first time, so an answer to any of its contexts will do: where a way there
and back takes longer than the patience of one question, waiting for the last answer alone would never end.

Reads of local state ask nobody; one that names a revision waits until it is there (`RevisionWaits`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import TypeVar

from pyraftkv import errors
from pyraftkv.core import ReadReady
from pyraftkv.futures import fulfil
from pyraftkv.server_turns import Turns
from pyraftkv.store import Work

T = TypeVar("T")

READ_STEP_BUDGET = 2000
"""Keys that large ranges touch, all together, before others have their turn."""

LONG_READS_MAX = 8
"""Reads that go on for longer than that at the same time; the others wait for their turn."""

READS_WAITING_MAX = 65_536
"""Linearizable reads under way; one more is refused as `Overloaded`."""


class _Round:
    __slots__ = ("contexts", "sent_at", "waiters")

    def __init__(self) -> None:
        self.waiters: list[tuple[asyncio.Future[None], float]] = []
        self.contexts: list[int] = []
        """Those that it was asked with, the latest last: one for each `retry_seconds` until the last deadline."""
        self.sent_at = 0.0


class ReadRounds:
    """The reads that wait for a read index, and those that wait for it to be applied."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        send: Callable[[int], None],
        retry_seconds: float,
        first_context: int,
        applied_index: int,
    ) -> None:
        self._loop = loop
        self._send = send
        self._retry_seconds = retry_seconds
        self._context = self.first_context = first_context
        self._gathering: _Round | None = None
        self._sent: dict[int, _Round] = {}
        """The rounds without an answer, by each context that they were asked with."""
        self._confirmed: list[tuple[int, _Round]] = []
        self._applied = applied_index
        self._count = 0

    def join(self, deadline: float) -> asyncio.Future[None]:
        """Return a future that resolves once local state is as fresh as this moment."""
        if self._count >= READS_WAITING_MAX:
            raise errors.Overloaded(f"{self._count} linearizable reads are under way already")
        if self._gathering is None:
            self._gathering = _Round()
            self._start(self._gathering)
        future: asyncio.Future[None] = self._loop.create_future()
        self._gathering.waiters.append((future, deadline))
        self._count += 1
        return future

    def seal(self) -> None:
        """The round being gathered is on its way: a read that arrives now must join the next one."""
        self._gathering = None

    def confirmed(self, reads: list[ReadReady]) -> None:
        """Take the rounds that the core confirmed."""
        for ready in reads:
            waiting = self._sent.get(ready.context)
            if waiting is not None:
                self._forget(waiting)
                self._confirmed.append((ready.index, waiting))
        self.applied(self._applied)

    def applied(self, index: int) -> None:
        """Local state now reflects everything up to ``index``: release the rounds that waited for it."""
        self._applied = index
        if not self._confirmed:
            return
        waiting: list[tuple[int, _Round]] = []
        for read_index, round_ in self._confirmed:
            if read_index <= index:
                self._count -= len(round_.waiters)
                for future, _ in round_.waiters:
                    if not future.done():  # `fulfil` written out: once per read
                        future.set_result(None)
            else:
                waiting.append((read_index, round_))
        self._confirmed = waiting

    def retry(self) -> None:
        """Ask again for every round without an answer: the leader changed."""
        for round_ in self._unanswered():
            self._start(round_)

    def scan(self) -> None:
        """Give up reads past their deadline, and ask again for old rounds. Call every 100 ms or so."""
        now = self._loop.time()
        for round_ in self._unanswered():
            self._expire(round_, now)
            if not round_.waiters and round_ is not self._gathering:
                self._forget(round_)
            elif now - round_.sent_at >= self._retry_seconds:
                self._start(round_)
        for _, round_ in self._confirmed:
            self._expire(round_, now)

    def fail_all(self, error: Callable[[], errors.PyraftkvError]) -> None:
        """Fail every read: the node is going away."""
        for round_ in [*self._unanswered(), *(r for _, r in self._confirmed)]:
            for future, _ in round_.waiters:
                if not future.done():
                    future.set_exception(error())
        self._sent.clear()
        self._confirmed.clear()
        self._gathering = None
        self._count = 0

    def _unanswered(self) -> list[_Round]:
        return [round_ for context, round_ in self._sent.items() if context == round_.contexts[-1]]

    def _forget(self, round_: _Round) -> None:
        for context in round_.contexts:
            del self._sent[context]

    def _start(self, round_: _Round) -> None:
        self._context += 1
        round_.contexts.append(self._context)
        round_.sent_at = self._loop.time()
        self._sent[self._context] = round_
        self._send(self._context)

    def _expire(self, round_: _Round, now: float) -> None:
        keep: list[tuple[asyncio.Future[None], float]] = []
        for future, deadline in round_.waiters:
            if future.done():
                continue
            if now >= deadline:
                future.set_exception(errors.ReadTimeout("no leader confirmed the read before its deadline"))
            else:
                keep.append((future, deadline))
        self._count -= len(round_.waiters) - len(keep)
        round_.waiters = keep


class RevisionWaits:
    """The reads that wait until this member's store has a revision, the lowest first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, revision: int) -> None:
        self._loop = loop
        self._revision = revision
        self._serial = 0
        self._waiting: list[tuple[int, int, float, asyncio.Future[None]]] = []
        """A heap of revisions, with what keeps equal ones apart, the deadline and who waits."""

    def join(self, revision: int, deadline: float) -> asyncio.Future[None]:
        """Return a future that resolves once ``revision`` is there, or fails as `ReadTimeout`. O(log waiting).

        Raises: `Overloaded`.
        """
        if len(self._waiting) >= READS_WAITING_MAX:
            raise errors.Overloaded(f"{len(self._waiting)} reads wait for a revision already")
        future: asyncio.Future[None] = self._loop.create_future()
        if revision <= self._revision:
            future.set_result(None)
        else:
            self._serial += 1
            heappush(self._waiting, (revision, self._serial, deadline, future))
        return future

    def published(self, revision: int) -> None:
        """The store has everything up to ``revision``. O(log waiting) for each that waited for it."""
        self._revision = revision
        waiting = self._waiting
        while waiting and waiting[0][0] <= revision:
            fulfil(heappop(waiting)[3], None)

    def scan(self) -> None:
        """Give up reads past their deadline, and forget those that nobody waits for. Call every 100 ms or so."""
        if not self._waiting:
            return
        now = self._loop.time()
        keep: list[tuple[int, int, float, asyncio.Future[None]]] = []
        for entry in self._waiting:
            revision, _, deadline, future = entry
            if not future.done() and now >= deadline:
                future.set_exception(errors.ReadTimeout(f"revision {revision} is not here, {self._revision} is"))
            if not future.done():
                keep.append(entry)
        heapify(keep)
        self._waiting = keep

    def fail_all(self, error: Callable[[], errors.PyraftkvError]) -> None:
        """Fail every read: the node is going away."""
        waiting, self._waiting = self._waiting, []
        for *_, future in waiting:
            if not future.done():
                future.set_exception(error())


class LongReads:
    """Reads that go on for more than a slice: so many at a time, first come, first served, and a slice for all of them.

    1. A client asks three hundred times for the whole store. 2. Each pass of the loop does a slice of each of them, and
    heartbeats wait behind it; and three hundred copies of the store grow in memory.
    """

    def __init__(self) -> None:
        self._count = 0
        self._turns = Turns(lambda: self._count < LONG_READS_MAX)

    async def finished(self, result: T | Work[T]) -> T:
        """Return what a read comes to; one that takes long gives others their turn."""
        if not isinstance(result, Work):
            return result
        await self._turns.come()
        self._count += 1
        try:
            done = None
            while done is None:
                await asyncio.sleep(0)
                done = result.step(READ_STEP_BUDGET // self._count)
            return done
        finally:
            self._count -= 1
            self._turns.go_on()
