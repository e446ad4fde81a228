"""Software transactional memory: a function that reads and writes, done as one transaction (etcd, `concurrency.STM`).

*One revision.* The first read of an attempt is linearizable and fixes the revision; whatever else is read is read as
of that. So the function sees a state that there was, even in an attempt that will come to nothing: it never fails
over what could not be. Nothing is sent for what it writes; it is kept, and seen by its own reads.

*The guard.* The writes are done as one transaction, if what was read still is what it was:

1. A key that was read has the mod_revision that it had, 0 if it was not there.
2. A range that was read: so do all keys that were found in it; and no key in it has a mod_revision above the revision
   that was read at. The first alone would miss a key that came (a phantom), the second alone one that went.
3. Who wrote nothing needs no guard: everything was read at one revision.

So a transaction takes effect at the revision that it makes as if nobody had been there since it read: they are
serializable, and in the order in which they were done.

*Again.* When the guard fails, the same request brings the present state of the keys that were read, all as of one
revision, and the next attempt begins with them: it costs one round trip, not one for each key. Every failure is
somebody else's success, so attempts need no lots to be drawn to get ahead of one another; they only wait, ever
longer, to be less in the way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol, TypeVar

from pyraftkv import errors
from pyraftkv.given import seconds
from pyraftkv.keys import key_of, key_range, mod_revision_is, to_bytes
from pyraftkv.kv import Bytes, Consistency, Stm
from pyraftkv.store import Limits
from pyraftkv.store.commands import (
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    PutKey,
    RangeQuery,
    Transaction,
)
from pyraftkv.store.ranges import bounds
from pyraftkv.store.values import KeyValue, RangeResult, TxnResult

T = TypeVar("T")

TIMEOUT_SECONDS = 5.0
"""How long a transaction is tried, unless told otherwise."""

COMPARES_MAX = Limits().txn_ops_max
"""How much one attempt may read: a range counts one, and one for each key in it."""

BACKOFF_SECONDS_MIN = 0.001
BACKOFF_SECONDS_MAX = 0.1
"""The pause after the second failure and each one after it, doubling from the first to the second."""

PREFETCH_BYTES_MAX = 256 * 1024
"""What was read and is larger than this together is read again key by key."""


class StmEngine(Protocol):
    """What a transaction needs of its store."""

    async def read(
        self, query: RangeQuery, consistency: Consistency, timeout: float | None, *, at_least: int = 0
    ) -> RangeResult:
        """Answer a query, from no state before revision ``at_least``."""
        ...

    async def commit(self, transaction: Transaction, *, timeout: float | None = None) -> TxnResult:
        """Do a whole transaction. Raises `NotApplied`, `MaybeApplied`."""
        ...


async def transact(engine: StmEngine, work: Callable[[Stm], Awaitable[T]], *, timeout: float | None = None) -> T:
    """Call ``work`` with attempts until one is committed; see `KV.transact`."""
    loop = asyncio.get_running_loop()
    wait = seconds(timeout)
    deadline = loop.time() + (TIMEOUT_SECONDS if wait is None else wait)
    pause_seconds = 0.0
    attempt = Attempt(engine, deadline)
    while True:
        try:
            asked = work(attempt) if callable(work) else None
            if not isinstance(asked, Awaitable):
                raise errors.InvalidRequest("a transaction is an async function, and awaits what it reads")
            result = await asked
            if await attempt.commit():
                return result
            attempt = attempt.next()
        except errors.Compacted:
            if not attempt.is_outdated:
                raise
            attempt = Attempt(engine, deadline)
        if loop.time() + pause_seconds >= deadline:
            raise errors.Contended("what was read was changed by others before the transaction was done")
        await asyncio.sleep(pause_seconds)
        pause_seconds = min(max(2 * pause_seconds, BACKOFF_SECONDS_MIN), BACKOFF_SECONDS_MAX)


class Attempt:
    """One call of the function; see `kv.Stm`.

    Args:
        engine: What to ask.
        deadline: When to give up, by the clock of the loop.
        revision: What was prefetched is as of this revision, and so is whatever else will be read; 0: nothing was.
        prefetched: What there is at some keys.

    Invariant: everything in `_read` and `_prefetched` is as of `revision`, which never changes once it is not 0.
    """

    def __init__(
        self,
        engine: StmEngine,
        deadline: float,
        *,
        revision: int = 0,
        prefetched: dict[bytes, KeyValue | None] | None = None,
    ) -> None:
        self._engine = engine
        self._deadline = deadline
        self._revision = revision
        self._prefetched = prefetched or {}
        self._first = asyncio.Lock()
        """Held by the read that fixes the revision."""
        self._read: dict[bytes, KeyValue | None] = {}
        self._ranges: dict[tuple[bytes, bytes], list[KeyValue]] = {}
        self._writes: dict[bytes, PutKey | DeleteRange] = {}
        self._is_prefetching = True
        self._is_over = False
        self.is_outdated = False
        """Whether the revision that it reads at was compacted meanwhile."""
        self._present: TxnResult | None = None
        """What a failed commit found."""

    @property
    def revision(self) -> int:
        """The revision that everything was read at; once it is committed, the one it made."""
        return self._revision

    async def get(self, key: Bytes) -> KeyValue | None:
        """Return the key's value; see `kv.Stm`."""
        self._check()
        raw = key_of(key)
        write = self._writes.get(raw)
        if write is not None:
            return _pending(write)
        if raw not in self._read:
            if raw in self._prefetched:
                found = self._prefetched[raw]
            else:
                result = await self._ask(RangeQuery(raw))
                found = result.kvs[0] if result.kvs else None
            self._note({raw: found})
        return self._read[raw]

    async def range(
        self, start: Bytes = b"", end: Bytes | None = None, *, prefix: Bytes | None = None
    ) -> list[KeyValue]:
        """Return a range; see `kv.Stm`."""
        self._check()
        first, last = key_range(start, end, prefix)
        if (first, last) not in self._ranges:
            found = await self._ask(RangeQuery(first, last, limit=COMPARES_MAX))
            if found.more:
                raise errors.RequestTooLarge(
                    f"a range of {found.count} keys in one transaction, at most {COMPARES_MAX}"
                )
            self._ranges[first, last] = found.kvs
            self._note({kv.key: kv for kv in found.kvs})
        kvs = {kv.key: kv for kv in self._ranges[first, last]}
        low, high = bounds(first, last)
        for key, write in self._writes.items():
            if low <= key and (high is None or key < high):
                pending = _pending(write)
                if pending is not None:
                    kvs[key] = pending
                else:
                    kvs.pop(key, None)
        return [kvs[key] for key in sorted(kvs)]

    def put(self, key: Bytes, value: Bytes, *, lease: int = 0) -> None:
        """Set the key; see `kv.Stm`."""
        self._check()
        raw = key_of(key)
        self._writes[raw] = PutKey(raw, to_bytes(value), lease)

    def delete(self, key: Bytes) -> None:
        """Delete the key; see `kv.Stm`."""
        self._check()
        raw = key_of(key)
        self._writes[raw] = DeleteRange(raw)

    def _check(self) -> None:
        """Refuse whoever has kept the attempt, or a task that was not waited for: what it puts now would be lost."""
        if self._is_over:
            raise errors.InvalidRequest(
                "this attempt of a transaction is over: it takes part until its function returns"
            )

    # --- For `transact` --------------------------------------------------------------------------------------------

    async def commit(self) -> bool:
        """Write what is to be written if nothing of what was read has changed; tell whether it is so."""
        self._is_over = True
        if not self._writes:
            return True
        compares = [mod_revision_is(key, 0 if kv is None else kv.mod_revision) for key, kv in self._read.items()]
        compares += [
            Compare(CompareTarget.MOD, CompareResult.LESS, first, self._revision + 1, last)
            for first, last in self._ranges
        ]
        writes = list(self._writes.values())
        try:
            result = await self._commit(Transaction(compares, [*writes], [*self._prefetches()]))
        except errors.RequestTooLarge:
            # The writes, or what others have put where this has read.
            self._is_prefetching = False
            result = await self._commit(Transaction(compares, [*writes]))
        if result.succeeded:
            self._revision = result.revision
        else:
            self._present = result
        return result.succeeded

    async def _commit(self, transaction: Transaction) -> TxnResult:
        return await self._engine.commit(transaction, timeout=self._seconds_left())

    def next(self) -> Attempt:
        """Return the attempt after this failed one: it has what the failed commit found."""
        result = self._present
        assert result is not None
        found: dict[bytes, KeyValue | None] = {}
        for query, response in zip(self._prefetches(), result.responses, strict=True):
            assert isinstance(response, RangeResult)
            found[query.key] = response.kvs[0] if response.kvs else None
        revision = result.revision if found else 0
        return Attempt(self._engine, self._deadline, revision=revision, prefetched=found)

    def _prefetches(self) -> list[RangeQuery]:
        """The reads to be done when the guard fails."""
        size_bytes = sum(len(kv.value) for kv in self._read.values() if kv is not None)
        is_small = self._is_prefetching and size_bytes <= PREFETCH_BYTES_MAX
        return [RangeQuery(key) for key in self._read] if is_small else []

    def _note(self, found: dict[bytes, KeyValue | None]) -> None:
        """Take down what was read. Raises `RequestTooLarge` for more than one transaction can compare."""
        self._read |= found
        count = len(self._read) + len(self._ranges)
        if count > COMPARES_MAX:
            raise errors.RequestTooLarge(f"{count} keys and ranges read in one transaction, at most {COMPARES_MAX}")

    async def _ask(self, query: RangeQuery) -> RangeResult:
        """Read at the revision of this attempt; the first read fixes it."""
        async with self._first:
            if not self._revision:
                result = await self._engine.read(query, "linearizable", self._seconds_left())
                self._revision = result.revision
                return result
        # There is such a revision, and it is over: wherever it can be read, it is the same.
        query = replace(query, revision=self._revision)
        try:
            return await self._engine.read(query, "local", self._seconds_left(), at_least=self._revision)
        except errors.Compacted:
            self.is_outdated = True
            raise

    def _seconds_left(self) -> float:
        seconds = self._deadline - asyncio.get_running_loop().time()
        if seconds <= 0:
            raise errors.Contended("the transaction was not done in time")
        return seconds


def _pending(write: PutKey | DeleteRange) -> KeyValue | None:
    """Return what a write is going to leave there: it has no revisions yet."""
    return KeyValue(write.key, write.value, 0, 0, 0, write.lease) if isinstance(write, PutKey) else None
