"""`RateLimiter`: so many in a stretch of time, over all programs that use it, in the order in which they came."""

from __future__ import annotations

import asyncio

from pyraftkv.errors import InvalidRequest, LeaseLost, LeaseNotFound, LockNotAcquired
from pyraftkv.given import whole
from pyraftkv.kv import KV
from pyraftkv.recipes.contest import Contest
from pyraftkv.recipes.names import inside
from pyraftkv.recipes.session import TTL_DEFAULT, Session
from pyraftkv.store.commands import PutKey
from pyraftkv.store.values import LeaseGranted

LATE_PART = 0.1
"""A permit that comes later than this part of its time counts anew from then on.

1. A lease is granted, and its caller suspended for nearly as long as the permit counts. Then he has his permit.
2. The lease ends a moment later, and the next one has a permit, too: two at the same time, where there may be one.
3. He is not suspended, but nobody answers when he gives back his place in the row, or renews the permit. So it is
   looked at the clock last, when there is nothing left to wait for.
"""
RENEWALS_MAX = 10
"""How often a permit is counted anew: where every answer is so late, there are no permits of that length."""


class RateLimiter:
    """At most ``limit`` permits in any ``seconds``: ``await limiter.acquire()``.

    A permit is a key under a lease that nobody renews, so it is the cluster that tells the time, and no caller's clock.
    It counts from when it was given; its caller may have it up to a tenth of its time later.

    Args:
        kv: The store.
        name: Who gives the same name (and limit) means the same limiter.
        limit: How many permits, 1 at least.
        seconds: Whole seconds for which a permit counts: at least the cluster's least time of a lease (2 s).
        ttl: Seconds after which somebody who waits and is gone is forgotten.
    """

    def __init__(self, kv: KV, name: str, *, limit: int, seconds: int, ttl: float = TTL_DEFAULT) -> None:
        if type(limit) is not int or limit < 1:
            raise InvalidRequest(f"limit= is how many permits there are, 1 at least: not {limit!r}")
        whole(seconds, "seconds", least=1)
        self._kv = kv
        self._name = name
        self._row = inside(name, "permits/")
        self._limit = limit
        self._seconds = seconds
        self._ttl = ttl

    async def acquire(self, *, timeout: float | None = None) -> None:
        """Wait for a permit, and take it.

        Raises: `LockNotAcquired` after ``timeout`` seconds (0: without a wait); `LeaseLost`, `NotApplied`,
        `MaybeApplied`: then a permit may be gone for nothing.
        """
        lease, asked_at = await self._take(timeout)
        for _ in range(RENEWALS_MAX):
            if _now() - asked_at <= self._seconds * LATE_PART:
                return
            asked_at = _now()
            try:
                await self._kv.leases.keep_alive(lease.id)
            except LeaseNotFound as error:
                raise LeaseLost(f"{self._name!r}: the permit was over when it came", lease=lease.id) from error
        raise LeaseLost(f"{self._name!r}: the permit comes too late again and again", lease=lease.id)

    async def _take(self, timeout: float | None) -> tuple[LeaseGranted, float]:
        """Wait for a permit; return its lease, and when that was asked for."""
        async with Session(self._kv, ttl=self._ttl) as session:
            contest = Contest(self._kv, self._row, session, seats=self._limit)
            await contest.join(b"")
            try:
                await contest.wait(timeout=timeout)
            except TimeoutError:
                raise LockNotAcquired(f"{self._name!r} had no permit within {timeout} s") from None
            # From here on it is the permit's own lease that the key hangs on: the session's end leaves it alone.
            asked_at = _now()
            lease = await self._kv.leases.grant(self._seconds)
            result = await self._kv.txn().when(contest.guard).then(PutKey(contest.key.encode(), b"", lease=lease.id))
            if not result.succeeded:
                raise LeaseLost(f"{self._name!r}: the place in the row was lost")
        return lease, asked_at

    async def count(self) -> int:
        """Return how many permits count at the moment, and how many wait for one. Raises `Unavailable`."""
        return (await self._kv.range(prefix=self._row, count_only=True)).count


def _now() -> float:
    return asyncio.get_running_loop().time()
