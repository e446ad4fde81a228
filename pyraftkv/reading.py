"""`Reader` and `Pinned`: reading, in terms of how to answer one query; of the store as it is, or as it was."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from enum import IntEnum
from typing import TypeVar

from pyraftkv import errors
from pyraftkv.given import whole
from pyraftkv.keys import key_of, key_range
from pyraftkv.kv import Bytes, Consistency
from pyraftkv.store.commands import RangeQuery, SortOrder, SortTarget
from pyraftkv.store.values import KeyValue, RangeResult

SCAN_PAGE_MAX = 100_000
SCAN_PAGE_DEFAULT = 1000


C = TypeVar("C", bound=IntEnum)


def _one_of(kind: type[C], value: C, name: str) -> C:
    """Return a member of an enumeration, or what has its number. Raises `InvalidRequest` for anything else."""
    if type(value) is not kind:
        try:
            return kind(value)
        except ValueError:
            names = ", ".join(each.name for each in kind)
            raise errors.InvalidRequest(f"{name}= is a {kind.__name__} ({names}), not {value!r}") from None
    return value


class Reader(ABC):
    """Reading, in terms of how to answer one query."""

    @abstractmethod
    async def read(
        self, query: RangeQuery, consistency: Consistency, timeout: float | None, *, at_least: int = 0
    ) -> RangeResult:
        """Answer a query, from no state before revision ``at_least``.

        Raises: `Compacted`, `FutureRevision`, `InvalidRequest`, `Unavailable`.
        """

    async def get(
        self,
        key: Bytes,
        *,
        revision: int = 0,
        consistency: Consistency = "linearizable",
        at_least: int = 0,
        timeout: float | None = None,
    ) -> KeyValue | None:
        """Return the key's value, or None. Raises `Compacted`, `FutureRevision`, `Unavailable`."""
        query = RangeQuery(key_of(key), revision=whole(revision, "revision"))
        result = await self.read(query, consistency, timeout, at_least=whole(at_least, "at_least", least=0))
        return result.kvs[0] if result.kvs else None

    async def range(
        self,
        start: Bytes = b"",
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        revision: int = 0,
        limit: int = 0,
        sort: SortTarget = SortTarget.KEY,
        order: SortOrder = SortOrder.NONE,
        keys_only: bool = False,
        count_only: bool = False,
        min_mod_revision: int = 0,
        max_mod_revision: int = 0,
        min_create_revision: int = 0,
        max_create_revision: int = 0,
        consistency: Consistency = "linearizable",
        at_least: int = 0,
        timeout: float | None = None,
    ) -> RangeResult:
        """Read `[start, end)`, every key from `start` on when `end` is None, or every key with `prefix`."""
        first, last = key_range(start, end, prefix)
        query = RangeQuery(
            first,
            last,
            revision=whole(revision, "revision"),
            limit=whole(limit, "limit"),
            sort_target=_one_of(SortTarget, sort, "sort"),
            sort_order=_one_of(SortOrder, order, "order"),
            keys_only=keys_only,
            count_only=count_only,
            min_mod_revision=whole(min_mod_revision, "min_mod_revision"),
            max_mod_revision=whole(max_mod_revision, "max_mod_revision"),
            min_create_revision=whole(min_create_revision, "min_create_revision"),
            max_create_revision=whole(max_create_revision, "max_create_revision"),
        )
        return await self.read(query, consistency, timeout, at_least=whole(at_least, "at_least", least=0))

    async def scan(
        self,
        start: Bytes = b"",
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        revision: int = 0,
        page: int = SCAN_PAGE_DEFAULT,
        consistency: Consistency = "linearizable",
    ) -> AsyncIterator[KeyValue]:
        """Iterate over a range of any size, page by page, all at one revision.

        A page that is too large to travel is asked for again in smaller pages.
        """
        if not 1 <= whole(page, "page") <= SCAN_PAGE_MAX:
            raise errors.InvalidRequest(f"page is 1 to {SCAN_PAGE_MAX}, not {page}")
        first, last = key_range(start, end, prefix)
        async with aclosing(self.pages(RangeQuery(first, last, revision=revision, limit=page), consistency)) as pages:
            async for result in pages:
                for kv in result.kvs:
                    yield kv

    async def pages(
        self, query: RangeQuery, consistency: Consistency, timeout: float | None = None
    ) -> AsyncGenerator[RangeResult]:
        """Answer a query that is limited to a page, page by page, all at the revision of the first one."""
        while True:
            try:
                result = await self.read(query, consistency, timeout)
            except errors.RequestTooLarge:
                if query.limit == 1:
                    raise
                query = replace(query, limit=max(1, query.limit // 8))
                continue
            yield result
            if not result.more:
                return
            query = replace(query, key=result.kvs[-1].key + b"\0", revision=query.revision or result.revision)


class Pinned(Reader):
    """The store as it was at one revision; see `KV.at`."""

    def __init__(self, reader: Reader, revision: int) -> None:
        if type(revision) is not int or revision < 1:
            raise errors.InvalidRequest(f"a revision is 1 at least, not {revision!r}")
        self._reader = reader
        self.revision = revision
        """What is read."""

    def __repr__(self) -> str:
        return f"<Pinned {self._reader!r} at revision {self.revision}>"

    async def read(
        self, query: RangeQuery, consistency: Consistency, timeout: float | None, *, at_least: int = 0
    ) -> RangeResult:
        """Answer a query of this revision. Raises `InvalidRequest` for one of another revision, and as the store."""
        if query.revision not in (0, self.revision):
            raise errors.InvalidRequest(f"revision {query.revision} was asked for, of a store at {self.revision}")
        query = replace(query, revision=self.revision)
        result = await self._reader.read(query, consistency, timeout, at_least=at_least)
        return replace(result, revision=self.revision)
