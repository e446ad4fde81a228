"""`Once`: writes that are done once, though their answers get lost.

An engine asks again until it has an answer, under a session of its own that keeps a write from being done twice. When
its time is over, it says `MaybeApplied`. Whoever asks anew then may do it twice: a second item in a queue, a counter
that counts twice. So a writer here has a *mark*: a key under a lease of its own, whose version is the number of writes
that it has done. Each write is a transaction that compares that version, and raises it.

1. The answer was lost, and the write done. It is tried again: the mark has moved on, so nothing is done, and the mark's
   own revision tells when it was done.
2. The answer was lost, and the write is still under way. It is tried again, and done; then the first one arrives, and
   finds that the mark has moved on.
3. The writer is cancelled in the middle. Nobody knows what the mark's version is, so it is given up: the next write
   takes another one, and the lease of the first, which nobody renews, takes the key away.
4. The lease ends while a write is tried again, because the writer was cut off for so long. The mark is gone, and with
   it what it could tell: the write may have been done, and it is said so.
5. The lease ends sooner than the writer thinks, whose clock is slow. Its first attempt finds no mark where one should
   be, or no lease, and so did nothing: it takes another mark.
"""

from __future__ import annotations

import asyncio

from pyraftkv.errors import LeaseNotFound, MaybeApplied, Unavailable
from pyraftkv.kv import KV
from pyraftkv.store.commands import Compare, CompareResult, CompareTarget, Operation, PutKey, RangeQuery
from pyraftkv.store.values import RangeResult, TxnResult

MARK_TTL = 60.0
"""Seconds that a mark lives; half of it is used."""
ATTEMPTS_MAX = 5
"""How often a write is asked for that gets no answer."""
PAUSE_SECONDS = 0.05
"""Before it is asked for again."""


class Once:
    """One writer. Its writes are done one after the other.

    Args:
        kv: The store.
        row: The prefix of all writers' marks.
        ttl: Seconds after which nothing is left of a writer that is gone.
    """

    def __init__(self, kv: KV, row: str, *, ttl: float = MARK_TTL) -> None:
        self._kv = kv
        self._row = row
        self._ttl = ttl
        self._turn = asyncio.Lock()
        self._lease = 0
        self._done = 0
        """Writes that were done under this mark."""
        self._granted_at = 0.0

    async def commit(self, *operations: Operation, when: Compare, timeout: float | None = None) -> int:
        """Do these operations if ``when`` holds, once; return the revision, or 0 if it does not hold.

        Raises: `NotApplied`; `MaybeApplied`: it was done once, or not at all.
        """
        async with self._turn:
            for _ in range(ATTEMPTS_MAX):
                await self._take_mark(timeout)
                is_known = False
                try:
                    revision = await self._ask_until_answered([*operations], when, timeout)
                    is_known = revision is not None
                finally:
                    if not is_known:
                        self._lease = 0
                if revision is not None:
                    self._done += revision > 0
                    return revision
        raise Unavailable("each mark has ended before anything could be written with it")

    async def name(self, *, timeout: float | None = None) -> str:
        """Return a name that nobody else has been given, nor this writer for an earlier write."""
        async with self._turn:
            await self._take_mark(timeout)
            return f"{self._lease:016x}{self._done:08x}"

    async def _take_mark(self, timeout: float | None) -> None:
        now = asyncio.get_running_loop().time()
        if not self._lease or now > self._granted_at + self._ttl / 2:
            self._lease = (await self._kv.leases.grant(self._ttl, timeout=timeout)).id
            self._done, self._granted_at = 0, now

    async def _ask_until_answered(
        self, operations: list[Operation], when: Compare, timeout: float | None
    ) -> int | None:
        """Return the revision, 0 if ``when`` does not hold, None if nothing was done because the mark has ended."""
        mark = f"{self._row}{self._lease:016x}".encode()
        is_next = Compare(CompareTarget.VERSION, CompareResult.EQUAL, mark, self._done)
        txn = self._kv.txn().when(is_next, when).then(PutKey(mark, b"", self._lease), *operations)
        txn = txn.otherwise(RangeQuery(mark))
        lost: MaybeApplied | None = None
        for _ in range(ATTEMPTS_MAX):
            try:
                result = await txn.commit(timeout=timeout)
            except MaybeApplied as error:
                lost = error
            except Unavailable:
                if lost is None:
                    raise
            except LeaseNotFound:
                if lost is None:
                    return None
                break
            else:
                version, revision = self._seen(result)
                if version == self._done + 1:
                    return revision
                if version == self._done and (version or lost is None):
                    return 0
                if lost is None:
                    return None
                break  # the mark has ended: what it could tell is forgotten
            await asyncio.sleep(PAUSE_SECONDS)
        assert lost is not None
        raise lost

    def _seen(self, result: TxnResult) -> tuple[int, int]:
        """Return the mark's version and revision, as an answer tells them."""
        if result.succeeded:
            return self._done + 1, result.revision
        (found,) = result.responses
        assert isinstance(found, RangeResult)
        return (found.kvs[0].version, found.kvs[0].mod_revision) if found.kvs else (0, 0)
