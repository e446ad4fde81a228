"""`Barrier` and `DoubleBarrier`: to wait for somebody's word, and to begin and end together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Self

from pyraftkv.errors import InvalidRequest, LockNotAcquired
from pyraftkv.given import seconds
from pyraftkv.kv import KV
from pyraftkv.recipes.compares import holds, is_absent, is_created_at
from pyraftkv.recipes.contest import Contest, change
from pyraftkv.recipes.names import inside, prefix_end
from pyraftkv.recipes.place import Place
from pyraftkv.recipes.session import TTL_DEFAULT, Session
from pyraftkv.store.commands import Compare, DeleteRange, PutKey, RangeQuery, SortOrder, SortTarget
from pyraftkv.store.values import KeyValue, RangeResult

COUNT_MAX = 100
"""Participants of a double barrier: one transaction compares the keys of all of them."""


class Barrier:
    """Whoever comes waits while it is there: `hold` puts it up, `lift` takes it away (etcd, `recipes.Barrier`)."""

    def __init__(self, kv: KV, name: str) -> None:
        self._kv = kv
        self._key = inside(name, "barrier")

    async def hold(self) -> None:
        """Put the barrier up, if it is not there. Raises `NotApplied`, `MaybeApplied`."""
        await self._kv.put(self._key, b"")

    async def lift(self) -> None:
        """Take it away: everybody goes on. Raises `NotApplied`, `MaybeApplied`."""
        await self._kv.delete(self._key)

    async def wait(self, *, timeout: float | None = None) -> None:
        """Wait until there is none. Raises `TimeoutError`, `Unavailable`."""
        async with asyncio.timeout(seconds(timeout)):
            while True:
                found = await self._kv.range(self._key, self._key + "\0", keys_only=True)
                if not found.kvs:
                    return
                await change(self._kv, self._key, revision=found.revision, no_put=True)


class DoubleBarrier:
    """A block that ``count`` participants begin together, and end together: an asynchronous context manager.

    The first ``count`` who wait make a round. It opens for all of them or for none: whoever gives up or dies before it
    opens is none of them. The block is cancelled, and ends with `LeaseLost`, for whom the cluster takes for dead.

    1. A has waited long enough and gives up, while C comes as the last of three.
    2. C opens the barrier in a transaction that compares the keys of all three, and A leaves in one that compares that
       the barrier is not open. Only one of them is done.
    3. The next round's first participant comes while this one's are leaving. The barrier is open, but not for those who
       stand behind the last of its round: it waits until everybody has left.
    4. All of a round die while they are inside. Whoever comes next finds the barrier open for nobody that is there, and
       closes it.

    Args:
        store: The store; or a `Session`.
        name: Who gives the same name means the same barrier.
        count: How many begin together: 1 to `COUNT_MAX`.
        ttl: Seconds after which somebody who is gone is left out.
        timeout: Seconds to wait for the others, at the beginning; None: as long as it takes.
    """

    def __init__(
        self,
        store: KV | Session,
        name: str,
        *,
        count: int,
        ttl: float = TTL_DEFAULT,
        timeout: float | None = None,
    ) -> None:
        if type(count) is not int or not 1 <= count <= COUNT_MAX:
            raise InvalidRequest(f"count= is how many begin together, 1 to {COUNT_MAX}: not {count!r}")
        self._store = store
        self._kv = store.kv if isinstance(store, Session) else store
        self._name = name
        self._count = count
        self._ttl = ttl
        self._timeout = seconds(timeout)
        self._row, self._open = inside(name, "wait/"), inside(name, "open").encode()
        self._place: Place | None = None
        self._contest: Contest | None = None

    async def __aenter__(self) -> Self:
        if self._place is not None:
            raise InvalidRequest("a barrier object is one participant's: make another one")
        self._place = place = Place(self._store, ttl=self._ttl)
        self._contest = contest = Contest(self._kv, self._row, place.session)
        try:
            await place.enter(partial(contest.join, b""), contest.leave)
        except BaseException:
            self._place = self._contest = None
            raise
        try:
            await self._wait_for_all(contest)
        except BaseException as error:
            await self._leave(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        contest = self._contest
        assert contest is not None
        try:
            await contest.leave()
            if kind is None:
                await self._wait_until_empty(contest.token)
        finally:
            await self._leave(kind, *exc)

    async def _wait_for_all(self, contest: Contest) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                while not await self._is_open_for(contest):
                    pass
        except TimeoutError:
            if await self._give_up(contest):
                raise LockNotAcquired(f"{self._name!r}: fewer than {self._count} came in {self._timeout} s") from None

    async def _is_open_for(self, contest: Contest) -> bool:
        """Open the barrier if everybody is there, and return whether it is open; if not, wait until it may be."""
        revision, waiting, last = await self._look()
        if last >= contest.token:
            return True
        if await self._close_if_over(waiting, last):
            return False
        if not last and len(waiting) >= self._count:
            await self._begin(waiting[: self._count])
            return False  # look again: somebody may have gone
        everything = inside(self._name, "")
        await change(self._kv, everything, prefix_end(everything), revision=revision)
        await contest.check()
        return False

    async def _look(self) -> tuple[int, Sequence[KeyValue], int]:
        """Return the revision, who waits, and the token of the last for whom it is open (0: it is closed)."""
        everybody = RangeQuery(
            self._row.encode(),
            prefix_end(self._row).encode(),
            sort_target=SortTarget.CREATE,
            sort_order=SortOrder.ASCEND,
        )
        result = await self._kv.txn().then(everybody, RangeQuery(self._open))
        waiting, opened = result.responses
        assert isinstance(waiting, RangeResult)
        assert isinstance(opened, RangeResult)
        return result.revision, waiting.kvs, int(opened.kvs[0].text) if opened.kvs else 0

    async def _begin(self, waiting: Sequence[KeyValue]) -> None:
        """Open for these, if all of them are still there."""
        there = [is_created_at(kv.key, kv.create_revision) for kv in waiting]
        last = b"%d" % waiting[-1].create_revision
        await self._kv.txn().when(self._is_closed, *there).then(PutKey(self._open, last))

    @property
    def _is_closed(self) -> Compare:
        return is_absent(self._open)

    async def _give_up(self, contest: Contest) -> bool:
        """Leave, unless it has opened for this one meanwhile; return whether it left."""
        result = await self._kv.txn().when(self._is_closed, contest.guard).then(DeleteRange(contest.key.encode()))
        if result.succeeded:
            contest.has_left()
            return True
        _, _, last = await self._look()
        return last < contest.token

    async def _wait_until_empty(self, token: int) -> None:
        """Wait until everybody of the round has left; the last one closes the barrier."""
        while True:
            revision, waiting, last = await self._look()
            if last < token:
                return
            if await self._close_if_over(waiting, last):
                return
            await change(self._kv, self._row, prefix_end(self._row), revision=revision, no_put=True)

    async def _close_if_over(self, waiting: Sequence[KeyValue], last: int) -> bool:
        """Close the barrier if nobody of its round is left; return whether that is so. Whoever sees it does it."""
        if not last or (waiting and waiting[0].create_revision <= last):
            return False
        is_ours = holds(self._open, b"%d" % last)
        await self._kv.txn().when(is_ours).then(DeleteRange(self._open))
        return True

    async def _leave(self, kind: type[BaseException] | None, *exc: object) -> None:
        place = self._place
        self._place = self._contest = None
        assert place is not None
        await place.leave(kind, *exc)
