"""`LockingQueue`: an item stays in the queue until somebody has done it.

Who takes an item puts a key beside it, under his lease: nobody else takes it while that is there. When he has done it,
both keys go in one transaction. When he dies, the lease's end takes his key away, and the item is the first again.

1. A worker is suspended in the middle of an item. His lease ends, and another one does the item. He wakes up and says
   that it is done: his key is not the one that stands there, so he is told `LeaseLost`, and nothing happens.
2. The answer to a take is lost. The key beside the item says whose it is: each take has a name of its own.
3. A worker does the item, and dies before he can say so. It is done again: let doing it twice do no harm, or fence it
   with the `token`.
"""

from __future__ import annotations

import asyncio
from typing import Self

from pyraftkv.errors import InvalidRequest, LeaseLost, LockNotAcquired, MaybeApplied
from pyraftkv.given import seconds
from pyraftkv.kv import KV, Bytes
from pyraftkv.recipes.body import under
from pyraftkv.recipes.compares import holds, is_absent, is_created_at
from pyraftkv.recipes.contest import change
from pyraftkv.recipes.names import inside, prefix_end
from pyraftkv.recipes.place import Place
from pyraftkv.recipes.queue import Queue
from pyraftkv.recipes.session import TTL_DEFAULT, Session
from pyraftkv.store.commands import Compare, DeleteRange, PutKey, RangeQuery, SortOrder, SortTarget
from pyraftkv.store.values import KeyValue, RangeResult

ITEMS_LOOKED_AT = 32
"""The first items of a queue, by their keys, that are looked at for one that nobody holds; more if all of them are."""


class LockingQueue:
    """First in, first out, and nothing is lost: ``async with queue.take() as item: work(item.value)``.

    Args:
        kv: The store.
        name: Who gives the same name means the same queue.
        ttl: Seconds after which the item of somebody who is gone is there for others.
    """

    def __init__(self, kv: KV, name: str, *, ttl: float = TTL_DEFAULT) -> None:
        self._kv = kv
        self.name = name
        self._ttl = ttl
        self._queue = Queue(kv, name, ttl=ttl)

    def __repr__(self) -> str:
        return f"<LockingQueue {self.name!r}>"

    async def push(self, value: Bytes, *, timeout: float | None = None) -> int:
        """Put an item at the end; return the revision of that.

        Raises: `NotApplied`; `MaybeApplied`: it was put in once, or not at all.
        """
        return await self._queue.push(value, timeout=timeout)

    def take(self, *, timeout: float | None = None, session: Session | None = None) -> Taken:
        """Return the next item, to be entered.

        Args:
            timeout: Seconds to wait for one; None: as long as it takes, 0: not at all.
            session: What to hold it under, in place of a lease of its own.
        """
        return Taken(session or self._kv, self.name, ttl=self._ttl, timeout=timeout)

    async def count(self, *, timeout: float | None = None) -> int:
        """Return how many items are not done, those that somebody has taken among them. Raises `Unavailable`."""
        return await self._queue.count(timeout=timeout)

    async def held(self, *, timeout: float | None = None) -> int:
        """Return how many of them somebody has taken. Raises `Unavailable`."""
        return (await self._kv.range(prefix=inside(self.name, "held/"), count_only=True, timeout=timeout)).count


class Taken:
    """An item while it is done: an asynchronous context manager, made by `LockingQueue.take`.

    When the block ends the item is done; when it raises, the item is given back. When the lease is lost, the block is
    cancelled, and ends with `LeaseLost`. Where no item is had in time, `LockNotAcquired` is raised.
    """

    def __init__(self, store: KV | Session, name: str, *, ttl: float, timeout: float | None) -> None:
        self._store = store
        self._kv = store.kv if isinstance(store, Session) else store
        self._name = name
        self._all, self._items, self._held = (inside(name, part) for part in ("", "items/", "held/"))
        self._ttl = ttl
        self._timeout = seconds(timeout)
        self._place: Place | None = None
        self._owner = b""
        self._seen = 0
        """The revision at which nothing was free."""
        self._mark = b""
        """The key that stands beside the item; empty before it is known."""
        self._item: KeyValue | None = None
        self._token = 0
        self._is_over = False

    @property
    def value(self) -> bytes:
        """What was pushed. Raises `LeaseLost` if no item is held here."""
        return self._holding().value

    @property
    def token(self) -> int:
        """The fencing token: it rises from holder to holder of an item. Raises `LeaseLost`."""
        self._holding()
        return self._token

    @property
    def guard(self) -> Compare:
        """What a transaction compares so that it is done only while the item is held here. Raises `LeaseLost`."""
        self._holding()
        return is_created_at(self._mark, self._token)

    async def check(self) -> None:
        """Raise `LeaseLost` if the item is not held here any more. Raises `Unavailable`."""
        self._holding()
        found = await self._kv.get(self._mark)
        if found is None or found.create_revision != self._token:
            raise LeaseLost(f"an item of {self._name!r} is somebody else's by now")

    async def done(self) -> None:
        """The item is done: it leaves the queue. Raises `LeaseLost`: it may be done again; `MaybeApplied`."""
        item = self._holding()
        txn = self._kv.txn().when(self.guard).then(DeleteRange(item.key), DeleteRange(self._mark))
        if not (await txn).succeeded:
            raise LeaseLost(f"an item of {self._name!r} is somebody else's by now")
        self._is_over = True

    async def release(self) -> None:
        """Give the item back: it is where it was in the queue. Raises `NotApplied`, `MaybeApplied`."""
        await self._kv.txn().when(self.guard).then(DeleteRange(self._mark))
        self._is_over = True

    async def __aenter__(self) -> Self:
        if self._place is not None:
            raise InvalidRequest("an item is entered once: take another one")
        self._place = place = Place(self._store, ttl=self._ttl)
        self._owner = place.session.next_place().encode()
        gives_up_at = None if self._timeout is None else asyncio.get_running_loop().time() + self._timeout
        await place.enter(self._try, self._give_back)
        try:
            try:
                while self._item is None:
                    async with asyncio.timeout_at(gives_up_at):
                        await change(self._kv, self._all, prefix_end(self._all), revision=self._seen)
                    with under(place.session.lease):
                        await self._try()
            except TimeoutError:
                raise LockNotAcquired(f"{self._name!r} had no item within {self._timeout} s") from None
        except BaseException as error:
            await self._leave(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            if kind is None and not self._is_over:
                await self.done()
        finally:
            await self._leave(kind, *exc)

    async def _try(self) -> None:
        """Claim the first item that is free, if there is one."""
        while True:
            self._seen, free = await self._look()
            if free is None or await self._claim(free):
                return

    async def _look(self) -> tuple[int, KeyValue | None]:
        """Return a revision, and the first item that nobody holds; if there is none, there may be one after that."""
        limit = ITEMS_LOOKED_AT
        while True:
            held, items = await asyncio.gather(
                self._kv.range(prefix=self._held, keys_only=True),
                self._kv.range(
                    prefix=self._items, sort=SortTarget.CREATE, order=SortOrder.ASCEND, limit=limit, keys_only=True
                ),
            )
            marks = {kv.key for kv in held.kvs}
            free = next((kv for kv in items.kvs if self._mark_of(kv) not in marks), None)
            if free is not None or len(items.kvs) < limit:
                return min(held.revision, items.revision), free
            limit = len(marks) + 1

    async def _claim(self, item: KeyValue) -> bool:
        """Put a mark beside an item, unless somebody has; return whether it is this one's."""
        assert self._place is not None
        mark = self._mark_of(item)
        put = PutKey(mark, self._owner, self._place.session.lease.id)
        there = is_created_at(item.key, item.create_revision)
        try:
            result = await self._kv.txn().when(there, is_absent(mark)).then(put, RangeQuery(item.key))
        except MaybeApplied:
            found, whole = await self._kv.get(mark), await self._kv.get(item.key)
            if found is None or found.value != self._owner or whole is None:
                raise
            self._token, self._mark, self._item = found.create_revision, mark, whole
            return True
        if result.succeeded:
            read = result.responses[1]
            assert isinstance(read, RangeResult)
            self._token, self._mark, self._item = result.revision, mark, read.kvs[0]
        return result.succeeded

    async def _leave(self, kind: type[BaseException] | None, *exc: object) -> None:
        assert self._place is not None
        self._item = None
        await self._place.leave(kind, *exc)

    async def _give_back(self) -> None:
        """Let go of the item, or of whatever this take has: a claim that was cancelled may have been done."""
        if self._is_over:
            return
        for mark in [self._mark] if self._mark else [kv.key async for kv in self._kv.scan(prefix=self._held)]:
            ours = holds(mark, self._owner)
            await self._kv.txn().when(ours).then(DeleteRange(mark))

    def _mark_of(self, item: KeyValue) -> bytes:
        return self._held.encode() + item.key.removeprefix(self._items.encode())

    def _holding(self) -> KeyValue:
        if self._item is None or self._is_over:
            raise LeaseLost(f"no item of {self._name!r} is held here")
        return self._item
