"""`Lock` and `RWLock`: first come, first served, and a token that fences off whoever does not know that it lost.

No lock of a distributed system excludes by itself: a holder may be suspended, wake up after its lease has ended, and go
on for as long as it takes to notice. So there are two means beyond it (Kleppmann; Jepsen's report on etcd 3.4.3):

- `token` rises from holder to holder. Whatever is guarded outside the store refuses a token that is older than one that
  it has seen.
- `guard` is a comparison for transactions in the store, `commit` a transaction with it: it is done while the lock is
  held, or not at all.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from pyraftkv.errors import LeaseLost, MaybeApplied, NotApplied
from pyraftkv.given import seconds
from pyraftkv.kv import KV, Bytes
from pyraftkv.recipes.contest import Contest
from pyraftkv.recipes.holding import Holding
from pyraftkv.recipes.names import inside
from pyraftkv.recipes.session import TTL_DEFAULT, Session
from pyraftkv.store.commands import DeleteRange, PutKey


class Lock(Holding):
    """One holder at a time: ``async with Lock(kv, "jobs/7", ttl=10) as lock``. See `Holding` for how it ends.

    Args:
        store: The store; or a `Session`, to hold several locks under one lease.
        name: Who gives the same name means the same lock. Without ``//``, and not ending in ``/``.
        ttl: Seconds after which it is free when its holder is gone.
        timeout: Seconds to wait for other holders; None: as long as it takes, 0: not at all.
        value: What `contenders` shows of this one.
        reentrant: Whether a task that holds this object may enter it again.
        delay: Seconds that the lock stays free after a holder that did not release it: what that one had begun may
            still be on its way. All who use the lock give the same. Counted by whoever comes next (Consul, lock-delay).
    """

    def __init__(
        self,
        store: KV | Session,
        name: str,
        *,
        ttl: float = TTL_DEFAULT,
        timeout: float | None = None,
        value: Bytes = b"",
        reentrant: bool = False,
        delay: float = 0.0,
    ) -> None:
        super().__init__(store, name, ttl=ttl, timeout=timeout, value=value, reentrant=reentrant)
        self._delay = seconds(delay, "delay")
        self._held = inside(name, "held").encode()
        """There while somebody holds the lock, and after a holder that did not release it."""

    async def _begun(self, contest: Contest) -> None:
        if not self._delay:
            return
        if await self._kv.get(self._held) is not None:
            await asyncio.sleep(self._delay)
        result = await self._kv.txn().when(contest.guard).then(PutKey(self._held, b"%d" % contest.token))
        if not result.succeeded:
            raise LeaseLost(f"{self.name!r} was lost before it was held")

    async def _ended(self, session: Session, contest: Contest) -> None:
        if self._delay and not session.lease.lost.is_set():
            with suppress(NotApplied, MaybeApplied):  # then it looks as if this holder had died
                ends = DeleteRange(self._held), DeleteRange(contest.key.encode())
                if (await self._kv.txn().when(contest.guard).then(*ends)).succeeded:
                    contest.has_left()


class RWLock:
    """Many readers or one writer, in the order in which they came: ``async with RWLock(kv, "map").read()``.

    A reader waits for the writers before it, a writer for everybody before it; so neither can be starved.

    Args:
        store: The store; or a `Session`.
        name: Who gives the same name means the same lock.
        ttl: Seconds after which a place is free when its holder is gone.
        timeout: Seconds to wait for other holders; None: as long as it takes, 0: not at all.
        value: What `contenders` shows of this one.
    """

    def __init__(
        self,
        store: KV | Session,
        name: str,
        *,
        ttl: float = TTL_DEFAULT,
        timeout: float | None = None,
        value: Bytes = b"",
    ) -> None:
        self._store = store
        self._name = name
        self._ttl = ttl
        self._timeout = timeout
        self._value = value

    def read(self) -> ReadLock:
        """Return one reader's place, to be entered."""
        return ReadLock(self._store, self._name, ttl=self._ttl, timeout=self._timeout, value=self._value)

    def write(self) -> WriteLock:
        """Return one writer's place, to be entered."""
        return WriteLock(self._store, self._name, ttl=self._ttl, timeout=self._timeout, value=self._value)


class ReadLock(Holding):
    """A reader of an `RWLock`."""

    _kind = "reader/"
    _behind = "writer/"


class WriteLock(Holding):
    """A writer of an `RWLock`."""

    _kind = "writer/"
