"""`Contest`: a row of contenders, the order of which everybody agrees on. Locks and elections stand on it.

Each contender has a key of its own below a common prefix, under its lease. The order of the keys' *create revisions* is
the order of the contenders (etcd, `concurrency.Mutex`), and a create revision is never given twice: it is the fencing
token, for whatever stands outside the store to tell an older holder from a newer one.

Who waits for one seat watches one key alone, that of the contender before it: when somebody leaves, one other is woken
up, and not all of them.

1. A contender's write was sent, and its answer lost. It looks for its key: the key is named by its lease and its place
   under it, so nobody else can have made it, and it joins the row where the key stands.
2. The contender before goes, and is not the first: it gave up. Then there may be another one before that, so the row
   is looked at again.
3. A contender's own key was deleted by an operator, or its lease was lost while it waited. It is out of the row: it
   does not hold what it waited for.
4. Two tasks contend under one session. With one key for both, the second would find itself in the row already, hold
   what the first holds, and take it from that one when it leaves. So each has a key of its own.
5. A contender is cancelled while its write is under way. It deletes what the write may have made: a shared session
   goes on, and nobody would ever leave that place.

Nobody asks more often than he must. The transaction that makes a contender's key looks who stands before it, at that
revision: whoever is alone holds what he wants with that answer. Who has waited asks any member that knows of the end of
the one before him, and no quorum. Nobody can come before a contender any more, so what was true at a revision that is
not before that end is true until the contender's own key goes; and of that its lease tells, as it does of every holder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from pyraftkv.errors import Closed, KeyExists, LeaseLost, MaybeApplied, WatchCancelled
from pyraftkv.keys import to_bytes
from pyraftkv.kv import KV, Bytes
from pyraftkv.recipes.compares import is_absent, is_created_at
from pyraftkv.recipes.names import prefix_end
from pyraftkv.recipes.session import Session
from pyraftkv.store.commands import Compare, DeleteRange, PutKey, RangeQuery, SortOrder, SortTarget
from pyraftkv.store.values import DeleteResult, KeyValue, RangeResult


class Contest:
    """One contender's place in the row.

    Args:
        kv: The store.
        row: The prefix of all contenders' keys.
        session: Under whose lease the contender's key stands; others may stand in the same row.
        kind: A part of the key after the prefix, for contenders of several kinds.
        behind: The kind that it waits for; "": all of them.
        seats: How many may have what they wait for at the same time.
    """

    def __init__(self, kv: KV, row: str, session: Session, *, kind: str = "", behind: str = "", seats: int = 1) -> None:
        self._kv = kv
        self._before_it = row + behind
        """The prefix of the keys of those that it waits for."""
        self._seats = seats
        self._is_asking = False
        self._seen: tuple[int, Sequence[KeyValue]] | None = None
        """The revision at which it joined the row, and the nearest that stood before it; None: look."""
        self._session = session
        self.lease = session.lease
        """What the contender's key hangs on."""
        self._place = session.take_place()
        self.key = f"{row}{kind}{self._place}"
        """The contender's own key."""
        self._is_among_them = self.key.startswith(self._before_it)
        self.token = 0
        """The create revision of the key, once it stands there: it rises from holder to holder."""

    @property
    def guard(self) -> Compare:
        """What a transaction compares so that it is done only while the key stands there."""
        return is_created_at(self.key.encode(), self.token)

    async def join(self, value: Bytes, *, timeout: float | None = None) -> None:
        """Stand at the end of the row. Raises as `KV.create`."""
        self._is_asking = True
        key = self.key.encode()
        look = RangeQuery(
            self._before_it.encode(),
            prefix_end(self._before_it).encode(),
            limit=self._seats + 1,
            sort_target=SortTarget.CREATE,
            sort_order=SortOrder.DESCEND,
            keys_only=True,
        )
        put = PutKey(key, to_bytes(value), self.lease.id)
        txn = self._kv.txn().when(is_absent(key)).then(put, look)
        try:
            result = await txn.commit(timeout=timeout)
            if not result.succeeded:
                raise KeyExists(f"{self.key} is there already", key=key)
        except (KeyExists, MaybeApplied):
            own = await self._own(timeout)
            if own is None:
                raise
            self.token = own.create_revision
        else:
            found = result.responses[1]
            assert isinstance(found, RangeResult)
            self.token = result.revision
            self._seen = result.revision, self._without_itself(found.kvs)

    async def wait(self, *, timeout: float | None = None) -> None:
        """Wait until fewer than ``seats`` of those that it waits for stand before this contender.

        Raises: `LeaseLost`, `Unavailable`; `TimeoutError` after ``timeout`` seconds, without a wait if that is 0.
        """
        has_just_come = self._seen is not None
        revision, before = self._seen or await self._look()
        async with asyncio.timeout(timeout if len(before) >= self._seats else None):
            while len(before) >= self._seats:
                has_just_come = False
                row = self._before_it
                first, last = (before[0].key, None) if self._seats == 1 else (row, prefix_end(row))
                gone_at = await change(self._kv, first, last, revision=revision, no_put=True)
                revision, before = await self._look(gone_at)
        if self._is_among_them or has_just_come:
            self.lease.check()
        else:
            await self.check()

    async def _look(self, at_least: int = 0) -> tuple[int, Sequence[KeyValue]]:
        """Return a revision, and the nearest that stand before this contender then. Raises `LeaseLost`."""
        found = await self._kv.range(
            prefix=self._before_it,
            max_create_revision=self.token,
            sort=SortTarget.CREATE,
            order=SortOrder.DESCEND,
            limit=self._seats + 1,
            keys_only=True,
            consistency="local" if at_least else "linearizable",
            at_least=at_least,
        )
        return found.revision, self._without_itself(found.kvs)

    def _without_itself(self, found: Sequence[KeyValue]) -> Sequence[KeyValue]:
        """Return who stands before this contender, given the nearest and, if it is among them, itself."""
        if not self._is_among_them:
            return found[: self._seats]
        if not found or found[0].create_revision != self.token:
            raise self._out_of_the_row()
        return found[1:]

    async def check(self, *, timeout: float | None = None) -> None:
        """Raise `LeaseLost` unless the contender's key stands where it stood."""
        self.lease.check()
        own = await self._own(timeout)
        if own is None or own.create_revision != self.token:
            raise self._out_of_the_row()

    def _out_of_the_row(self) -> LeaseLost:
        return LeaseLost(f"{self.key} was deleted: its holder is out of the row", lease=self.lease.id)

    async def leave(self) -> bool:
        """Step out of the row, if the contender may stand there; return whether it stood there.

        Raises `NotApplied`, `MaybeApplied`: then it may still stand there.

        1. A request to leave is not answered, and is sent again as another one. Now the place is free.
        2. The next contender of this session stands there. Then the first request arrives.
        """
        if not self._is_asking:
            return True
        ours = [self.guard] if self.token else []  # else nobody has the place after this one
        result = await self._kv.txn().when(*ours).then(DeleteRange(self.key.encode()))
        was_there = any(isinstance(each, DeleteResult) and each.deleted for each in result.responses)
        self.has_left()
        return was_there

    def has_left(self) -> None:
        """It has stepped out of the row, in a transaction of the caller's, say."""
        if self._is_asking and self.token:
            self._session.give_place_back(self._place)
        self._is_asking = False

    async def _own(self, timeout: float | None) -> KeyValue | None:
        found = await self._kv.get(self.key, timeout=timeout)
        return found if found is not None and found.lease == self.lease.id else None


async def change(kv: KV, start: Bytes, end: Bytes | None = None, *, revision: int, no_put: bool = False) -> int:
    """Wait until a key or a range changes after ``revision``, or nobody can say any more: look again.

    With ``no_put``, until something there is deleted. Raises `Unavailable`.

    Returns:
        The revision of the change, 0 if nobody can say.
    """
    with suppress(WatchCancelled):
        async with kv.watch(start, end, start_revision=revision + 1, no_put=no_put) as watch:
            async for event in watch:
                return event.kv.mod_revision
        raise Closed("the watch has ended")
    return 0
