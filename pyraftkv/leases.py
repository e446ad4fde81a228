"""Leases on every engine: `kv.lease()` holds one for as long as its block runs, `kv.leases` does each thing by itself.

A lease lives for its time to live from its last renewal, and everything that was put under it vanishes with it. So it
says of whoever holds it: still there. Renewals are cheap, they are not logged; a quorum confirms many of them at once.

The holder's own clock says when a lease may be gone: its time, counted from when the last renewal that was answered was
*sent*. The leader counts from later than that. So the holder knows first, whatever becomes of the network.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
from abc import ABC, abstractmethod
from typing import Self

from pyraftkv import errors
from pyraftkv.store.commands import Command, GrantLease, LeaseQuery, LeaseVerb, RevokeLease
from pyraftkv.store.validate import LEASE_MAX
from pyraftkv.store.values import LeaseAnswer, LeaseGranted, LeaseInfo, LeaseList, LeaseRevoked, Result

RENEWALS_PER_TTL = 3
"""How often a lease is renewed in its time to live (etcd, `clientv3`)."""

RETRY_PART = 10
"""After what part of the time to live a renewal that failed is tried again, at most a second."""

REVOKE_SECONDS = 2.0
"""How long the end of the block waits for its lease to be revoked; if it is not, it expires."""


class Leasing(ABC):
    """What an engine can say about leases, in terms of three things that differ."""

    @abstractmethod
    async def write(self, command: Command, timeout: float | None) -> Result:
        """Apply a command, exactly once. Raises `NotApplied`, `MaybeApplied`."""

    @abstractmethod
    def draw_lease_id(self) -> int:
        """Return an id for a new lease: above 0, at random."""

    @abstractmethod
    async def ask_leases(self, query: LeaseQuery, timeout: float | None) -> LeaseAnswer:
        """Renew a lease, or ask about leases. Raises `Unavailable`."""

    @property
    def leases(self) -> LeasesFace:
        """Granting, renewing and revoking by hand (see `kv.Leases`)."""
        return LeasesFace(self)

    def lease(self, *, ttl: float, id: int = 0, timeout: float | None = None) -> HeldLease:
        """Return a lease to be held: ``async with kv.lease(ttl=10) as lease: await kv.put(k, v, lease=lease.id)``.

        It is granted when the block is entered, renewed for as long as it runs, and revoked at its end.

        Args:
            ttl: Seconds that it lives without a renewal; raised to the cluster's least (2 s).
            id: Of a lease that was granted before, to be held on; 0 grants another one.
            timeout: Seconds that granting, and each renewal, may take.
        """
        return HeldLease(self, ttl=ttl, id=id, timeout=timeout)


class LeasesFace:
    """`kv.Leases` on every engine."""

    def __init__(self, engine: Leasing) -> None:
        self._engine = engine

    async def grant(self, ttl: float, *, id: int = 0, timeout: float | None = None) -> LeaseGranted:
        """Grant a lease for ``ttl`` seconds, rounded up, or the cluster's least (2 s); with ``id``, under that.

        Raises: `LeaseExists`, `InvalidRequest`, `NoSpace`, `NotApplied`, `MaybeApplied`.
        """
        result = await self._engine.write(GrantLease(id or self._engine.draw_lease_id(), whole_seconds(ttl)), timeout)
        assert isinstance(result, LeaseGranted)
        return result

    async def revoke(self, lease: int, *, timeout: float | None = None) -> LeaseRevoked:
        """End a lease, and delete its keys in one revision. Raises `LeaseNotFound`, `NotApplied`, `MaybeApplied`."""
        result = await self._engine.write(RevokeLease(lease), timeout)
        assert isinstance(result, LeaseRevoked)
        return result

    async def keep_alive(self, lease: int, *, timeout: float | None = None) -> int:
        """Renew a lease; return for how many seconds. Raises `LeaseNotFound`, `Unavailable`."""
        info = await self._ask(LeaseVerb.RENEW, lease, timeout)
        if info.ttl <= 0:
            raise errors.LeaseNotFound(f"there is no lease {lease:x}: it expired, was revoked, or was never granted")
        return info.ttl

    async def time_to_live(self, lease: int, *, keys: bool = False, timeout: float | None = None) -> LeaseInfo:
        """Return what is left of a lease, and with ``keys`` what hangs on it; a `ttl` of -1 says that there is none.

        Raises: `Unavailable`.
        """
        return await self._ask(LeaseVerb.KEYS if keys else LeaseVerb.LOOK, lease, timeout)

    async def list(self, *, timeout: float | None = None) -> builtins.list[int]:
        """Return the ids of all leases, as of now (linearizable). Raises `Unavailable`."""
        answer = await self._engine.ask_leases(LeaseQuery(LeaseVerb.LIST), timeout)
        assert isinstance(answer, LeaseList)
        return answer.ids

    async def _ask(self, verb: LeaseVerb, lease: int, timeout: float | None) -> LeaseInfo:
        if type(lease) is not int or not 0 <= lease <= LEASE_MAX:
            raise errors.InvalidRequest(f"no lease has the id {lease!r}")
        answer = await self._engine.ask_leases(LeaseQuery(verb, lease), timeout)
        assert isinstance(answer, LeaseInfo)
        return answer


class HeldLease:
    """A lease that is renewed for as long as its block runs: an asynchronous context manager; made by `KV.lease`.

    It is entered once.

    Raises, where the block ends: `LeaseLost` if it was lost meanwhile and nothing else went wrong. Who has to know at
    once waits for `lost`, or asks `check` before every step that must not be taken without the lease.
    """

    def __init__(self, engine: Leasing, *, ttl: float, id: int, timeout: float | None) -> None:
        self._engine = engine
        self._asked_ttl = ttl
        self._timeout = timeout
        self._lost_at = 0.0
        self._keeping: asyncio.Task[None] | None = None
        self._is_given = bool(id)
        self.id = id or engine.draw_lease_id()
        """Of the lease: for ``put(..., lease=lease.id)``. Known before the block is entered, for what is sent along."""
        self.ttl = 0
        """Seconds for which it was granted."""
        self.lost = asyncio.Event()
        """Set when the lease is gone, or may be."""

    def __repr__(self) -> str:
        state = "lost" if self.lost.is_set() else "held" if self._keeping is not None else "not held"
        return f"<HeldLease {self.id:x} of {self.ttl} s: {state}>"

    def check(self) -> None:
        """Raise `LeaseLost` if the lease is gone, or may be, by the clock at this moment."""
        is_late = self._keeping is not None and asyncio.get_running_loop().time() >= self._lost_at
        if self.lost.is_set() or is_late:
            self.lost.set()
            raise errors.LeaseLost(f"lease {self.id:x} is gone, or may be", lease=self.id)

    async def __aenter__(self) -> Self:
        if self.ttl:  # whoever renews for the first block would go on for ever
            raise errors.InvalidRequest(f"{self!r} was entered before: a block needs one of its own")
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        if self._is_given:
            self.ttl = await self._engine.leases.keep_alive(self.id, timeout=self._timeout)
        else:
            self.ttl = await self._grant()
        self._lost_at = asked_at + self.ttl
        self._keeping = loop.create_task(self._keep(), name="pyraftkv-lease")
        return self

    async def _grant(self) -> int:
        """Have the lease granted; return for how many seconds. What may have been granted in vain is revoked."""
        try:
            return (await self._engine.leases.grant(self._asked_ttl, id=self.id, timeout=self._timeout)).ttl
        except (errors.MaybeApplied, asyncio.CancelledError):
            await self._revoke()
            raise

    async def _revoke(self) -> bool:
        """End the lease, or let it expire; return whether it was there, as far as anybody can say."""
        try:
            await self._engine.leases.revoke(self.id, timeout=REVOKE_SECONDS)
        except errors.LeaseNotFound:
            return False
        except (errors.NotApplied, errors.MaybeApplied):
            pass
        return True

    async def __aexit__(self, *exc: object) -> None:
        keeping, self._keeping = self._keeping, None
        assert keeping is not None
        keeping.cancel()
        try:
            await asyncio.wait([keeping])
        finally:  # who is cancelled here, too, is gone with his lease
            if not (self.lost.is_set() or await self._revoke()):
                self.lost.set()  # before the end of the block, and nobody has noticed
        if self.lost.is_set() and exc[0] is None:
            raise errors.LeaseLost(f"lease {self.id:x} was lost", lease=self.id)

    async def _keep(self) -> None:
        """Renew; unless it is the end of the block that ends it, the lease is lost then, whatever the reason is."""
        try:
            await self._renew()
        finally:
            if self._keeping is not None:
                self.lost.set()

    async def _renew(self) -> None:
        """Renew until the lease is gone, or may be."""
        loop = asyncio.get_running_loop()
        renew_at = self._lost_at - self.ttl + self.ttl / RENEWALS_PER_TTL
        while True:
            await asyncio.sleep(max(0.0, min(renew_at, self._lost_at) - loop.time()))
            sent_at = loop.time()
            if sent_at >= self._lost_at:
                break
            seconds = self._lost_at - sent_at
            try:
                ttl = await self._engine.leases.keep_alive(self.id, timeout=min(seconds, self._timeout or seconds))
            except errors.LeaseNotFound:
                break
            except errors.PyraftkvError:  # whatever it is: the lease is there until its time has come
                renew_at = loop.time() + min(1.0, self.ttl / RETRY_PART)
            else:
                self._lost_at, renew_at = sent_at + ttl, sent_at + ttl / RENEWALS_PER_TTL


def whole_seconds(ttl: float) -> int:
    """Return a time to live as the store has it: rounded up. Raises `InvalidRequest` for what is no time."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if (seconds := -int(-ttl // 1)) > 0:
            return seconds
    raise errors.InvalidRequest(f"ttl= is a number of seconds above 0, not {ttl!r}")
