"""`Queue` and `PriorityQueue`: what one program puts in, another one takes out.

An item is a key, and the order of the keys' create revisions is the order of the items (etcd, `recipes.Queue`). Who
takes one deletes it: if he dies then, nobody does it. `LockingQueue` is for what must be done.

1. The answer to a push is lost: it is pushed once all the same (see `once`).
2. The answer to a take is lost, and somebody else seems to have been faster. It was this one: the mark says so.
3. Two take the same item. Each deletes the key that was created at the revision that it has seen: one of them does.
"""

from __future__ import annotations

import asyncio

from pyraftkv.errors import InvalidRequest
from pyraftkv.given import seconds
from pyraftkv.keys import to_bytes
from pyraftkv.kv import KV, Bytes
from pyraftkv.recipes.compares import is_absent, is_created_at
from pyraftkv.recipes.contest import change
from pyraftkv.recipes.names import inside, prefix_end
from pyraftkv.recipes.once import MARK_TTL, Once
from pyraftkv.store.commands import DeleteRange, PutKey, SortOrder, SortTarget
from pyraftkv.store.values import RangeResult

PRIORITY_MAX = 65_535
PRIORITY_DEFAULT = 100


class Queue:
    """First in, first out: ``await queue.push("job")``, ``await queue.take()``. Each item is taken once.

    To take an item costs the store O(n) for n items in the queue.

    Args:
        kv: The store.
        name: Who gives the same name means the same queue.
        ttl: Seconds after which nothing is left of what tells pushes apart (see `once`).
    """

    def __init__(self, kv: KV, name: str, *, ttl: float = MARK_TTL) -> None:
        self._kv = kv
        self.name = name
        self._row = inside(name, "items/")
        self._once = Once(kv, inside(name, "marks/"), ttl=ttl)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    async def push(self, value: Bytes, *, timeout: float | None = None) -> int:
        """Put an item at the end; return the revision of that.

        Raises: `NotApplied`; `MaybeApplied`: it was put in once, or not at all.
        """
        return await self._push("", value, timeout)

    async def _push(self, part: str, value: Bytes, timeout: float | None) -> int:
        key = f"{self._row}{part}{await self._once.name(timeout=timeout)}".encode()
        put = PutKey(key, to_bytes(value))
        revision = await self._once.commit(put, when=is_absent(key), timeout=timeout)
        assert revision, "nobody else makes a key of that name"
        return revision

    async def take(self, *, timeout: float | None = None) -> bytes:
        """Take the first item out, and return it; wait until there is one.

        Raises: `TimeoutError` after ``timeout`` seconds, without a wait if that is 0; `NotApplied`; `MaybeApplied`: the
        item may be out.
        """
        wait = seconds(timeout)
        gives_up_at = None if wait is None else asyncio.get_running_loop().time() + wait
        while True:
            found = await self._first()
            if not found.kvs:
                try:
                    async with asyncio.timeout_at(gives_up_at):
                        await change(self._kv, self._row, prefix_end(self._row), revision=found.revision)
                except TimeoutError:
                    raise TimeoutError(f"{self.name!r} had no item within {timeout} s") from None
                continue
            first = found.kvs[0]
            if await self._once.commit(DeleteRange(first.key), when=is_created_at(first.key, first.create_revision)):
                return first.value

    async def peek(self, *, timeout: float | None = None) -> bytes | None:
        """Return the first item, which stays there; None if there is none. Raises `Unavailable`."""
        found = await self._first(timeout=timeout)
        return found.kvs[0].value if found.kvs else None

    async def count(self, *, timeout: float | None = None) -> int:
        """Return how many items there are. Raises `Unavailable`."""
        return (await self._kv.range(prefix=self._row, count_only=True, timeout=timeout)).count

    async def _first(self, *, timeout: float | None = None) -> RangeResult:
        return await self._kv.range(
            prefix=self._row, sort=SortTarget.CREATE, order=SortOrder.ASCEND, limit=1, timeout=timeout
        )


class PriorityQueue(Queue):
    """The item with the least number first, and of those with the same number the first that came (kazoo)."""

    async def push(self, value: Bytes, *, priority: int = PRIORITY_DEFAULT, timeout: float | None = None) -> int:
        """Put an item in; return the revision of that. ``priority``: 0 (first) to `PRIORITY_MAX`.

        Raises: `NotApplied`; `MaybeApplied`: it was put in once, or not at all.
        """
        if type(priority) is not int or not 0 <= priority <= PRIORITY_MAX:
            raise InvalidRequest(f"priority= is a number from 0 to {PRIORITY_MAX}, not {priority!r}")
        return await self._push(f"{priority:05d}/", value, timeout)

    async def _first(self, *, timeout: float | None = None) -> RangeResult:
        while True:
            found = await self._kv.range(prefix=self._row, keys_only=True, limit=1, timeout=timeout)
            if not found.kvs:
                return found
            level = found.kvs[0].key.rpartition(b"/")[0] + b"/"
            first = await self._kv.range(
                prefix=level, sort=SortTarget.CREATE, order=SortOrder.ASCEND, limit=1, timeout=timeout
            )
            if first.kvs:
                return first
