"""Leases in a simulated run: who holds them (`Tenant`), and what they are held to (`Tenancy`).

A lease that expires does so by nobody's command, and at a time that is nobody's to say. But it is known before when it
cannot be: its owner sent a renewal that was answered, and from that moment on it lives for its full time, by a clock
that is at most so much too fast. So when that time has passed, and not before, the history is told of one more
operation: somebody ends the lease, and nobody hears what came of it. A replay then finds out for itself

- that no key vanished with its lease too early: nothing that has not begun yet can have been seen,
- that just the keys vanished that hung on the lease, and all of them at one revision.

If a renewal is answered after all, the lease had not ended, and that operation never did anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

from pyraftkv import errors
from pyraftkv.engine import Engine
from pyraftkv.sim.check.history import History, Op
from pyraftkv.store.commands import RevokeLease

TTL_SECONDS = (2, 3, 5, 8)
"""What leases are granted for."""

KEYS_MAX = 3
"""At most so many keys hang on a lease when it begins."""

SHARED_SHARE = 0.5
"""Of these keys: others write them, too."""

RENEWALS_MAX = 5
"""After so many renewals at most its owner has enough of a lease ..."""

REVOKED_SHARE = 0.3
"""... and ends it himself in some cases; the others end by themselves."""

CLIENT = "time"
"""Who ends leases that nobody renews."""


class Tenancy:
    """What is known of the leases of a run: until when each of them must live.

    Args:
        history: Is told when leases may end.
        now: The time of the world, in seconds.
        at: Calls something at a time of the world.
        slowest: How much of a second has passed at least when a clock has counted one.
        violated: Called with a rule that was broken, and how.
    """

    def __init__(
        self,
        history: History,
        *,
        now: Callable[[], float],
        at: Callable[..., object],
        slowest: float,
        violated: Callable[[str, str], object],
    ) -> None:
        self.now = now
        self.count = 0
        """How many leases were granted."""
        self._history = history
        self._at = at
        self._slowest = slowest
        self._violated = violated
        self._lives_until: dict[int, float] = {}
        self._revoked: set[int] = set()
        self._ends: dict[int, Op] = {}
        """Leases that may have ended, each with the operation that did it, if anything did."""

    def granted(self, lease: int, ttl: int, *, sent_at: float) -> None:
        """A grant was answered that was sent at that time."""
        self.count += 1
        self._lives_until[lease] = until = sent_at + ttl * self._slowest
        self._at(until, self._may_end, lease)

    def renewed(self, lease: int, ttl: int, *, sent_at: float) -> None:
        """A renewal was answered that was sent at that time: until then the lease cannot have ended."""
        until = max(self._lives_until[lease], sent_at + ttl * self._slowest)
        self._lives_until[lease] = until
        end = self._ends.get(lease)
        if end is not None and self.now() < until:
            del self._ends[lease]
            self._history.failed(end, errors.NotApplied("the lease was renewed"), self.now())
            self._at(until, self._may_end, lease)

    def revoking(self, lease: int) -> None:
        """Its owner is about to end a lease: from now on it may be gone."""
        self._revoked.add(lease)

    def missed(self, lease: int) -> None:
        """Somebody was told that a lease is gone: that must be possible."""
        until = self._lives_until[lease]
        if self.now() < until and lease not in self._revoked:
            self._violated(
                "no lease ends too early", f"lease {lease:x} is gone at {self.now():.3f}, it lives until {until:.3f}"
            )

    def _may_end(self, lease: int) -> None:
        until = self._lives_until[lease]
        if self.now() < until:
            self._at(until, self._may_end, lease)
        elif lease not in self._ends:
            self._ends[lease] = self._history.begin(CLIENT, RevokeLease(lease), self.now())


class Tenant:
    """Holds one lease after the other, with keys under it.

    Args:
        kv: Whom to ask.
        name: Which tenant this is; makes values unique.
        prefix: Of every key.
        keys: How many of the keys are shared with others.
        random: How long, and what.
        tenancy: Is told of what was answered.
        timeout: Of every request, in seconds.
        is_over: Whether it is time to stop.
    """

    def __init__(
        self,
        kv: Engine,
        name: str,
        *,
        prefix: str,
        keys: int,
        random: Random,
        tenancy: Tenancy,
        timeout: float,
        is_over: Callable[[], bool],
    ) -> None:
        self._kv = kv
        self._name = name
        self._prefix = prefix
        self._keys = keys
        self._random = random
        self._tenancy = tenancy
        self._timeout = timeout
        self._is_over = is_over
        self._count = 0

    async def run(self) -> None:
        """Hold leases until it is over; the last one ends by itself."""
        while not self._is_over():
            try:
                await self._hold(self._random.choice(TTL_SECONDS))
            except errors.Closed:
                return
            except errors.PyraftkvError:
                await asyncio.sleep(self._random.uniform(0.05, 1.0))

    async def _hold(self, ttl: int) -> None:
        random, tenancy = self._random, self._tenancy
        sent_at = tenancy.now()
        granted = await self._kv.leases.grant(ttl, timeout=self._timeout)
        lease = granted.id
        tenancy.granted(lease, granted.ttl, sent_at=sent_at)
        try:
            for _ in range(random.randint(1, KEYS_MAX)):
                await self._put(lease)
            for _ in range(random.randint(0, RENEWALS_MAX)):
                await asyncio.sleep(ttl * random.uniform(0.1, 0.6))
                if self._is_over():
                    return
                await self._renew(lease)
        except errors.LeaseNotFound:
            tenancy.missed(lease)
            return
        if random.random() < REVOKED_SHARE:
            tenancy.revoking(lease)
            await self._kv.leases.revoke(lease, timeout=self._timeout)

    async def _put(self, lease: int) -> None:
        """Hang a key on the lease: a shared one, or one of the tenants' own."""
        random, self._count = self._random, self._count + 1
        is_shared = random.random() < SHARED_SHARE
        key = f"{self._prefix}{'' if is_shared else 'e'}{random.randrange(self._keys)}"
        value = f"{self._name}.{self._count}"
        await self._kv.put(key, value, lease=lease, prev_kv=random.random() < 0.2, timeout=self._timeout)

    async def _renew(self, lease: int) -> None:
        """Renew the lease, and now and then look at it, or hang one more key on it. Raises `LeaseNotFound`."""
        random, tenancy, sent_at = self._random, self._tenancy, self._tenancy.now()
        try:
            ttl = await self._kv.leases.keep_alive(lease, timeout=self._timeout)
        except (errors.Unavailable, errors.MaybeApplied):
            return  # its time goes on
        tenancy.renewed(lease, ttl, sent_at=sent_at)
        chance = random.random()
        if chance < 0.2:
            await self._put(lease)
        elif chance < 0.3:
            info = await self._kv.leases.time_to_live(lease, keys=True, timeout=self._timeout)
            if info.ttl < 0:
                tenancy.missed(lease)
        elif chance < 0.4 and lease not in await self._kv.leases.list(timeout=self._timeout):
            tenancy.missed(lease)
