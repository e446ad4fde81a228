"""`Holding`: what runs a block while it has one of the places that a row of contenders waits for."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Self

from pyraftkv.errors import InvalidRequest, LeaseLost, LockNotAcquired
from pyraftkv.given import seconds
from pyraftkv.kv import KV, Bytes
from pyraftkv.recipes.contest import Contest
from pyraftkv.recipes.names import inside
from pyraftkv.recipes.place import Place
from pyraftkv.recipes.session import TTL_DEFAULT, Session
from pyraftkv.store.commands import Compare, Operation, SortTarget
from pyraftkv.store.values import KeyValue, TxnResult


class Holding:
    """An asynchronous context manager: its block runs while it holds a place.

    Where none can be had, `LockNotAcquired` is raised, and the block does not run. When its lease is lost, the block is
    cancelled at its next ``await``, and ends with `LeaseLost`.

    Args:
        store: The store; or a `Session`, to hold several places under one lease.
        name: Of what all contenders contend for. Without ``//``, and not ending in ``/``.
        ttl: Seconds after which a place is free when its holder is gone.
        timeout: Seconds to wait for other holders; None: as long as it takes, 0: not at all.
        value: What `contenders` shows of this one.
        reentrant: Whether a task that holds this object may enter it again.
    """

    _kind = ""
    """What this contender is, if there are several kinds."""
    _behind = ""
    """Which kind it waits for."""
    _seats = 1
    """How many may hold a place at the same time."""

    def __init__(
        self,
        store: KV | Session,
        name: str,
        *,
        ttl: float = TTL_DEFAULT,
        timeout: float | None = None,
        value: Bytes = b"",
        reentrant: bool = False,
    ) -> None:
        self.name = name
        self._store = store
        self._kv = store.kv if isinstance(store, Session) else store
        self._row = inside(name, "wait/")
        self._ttl = ttl
        self._timeout = seconds(timeout)
        self._value = value
        self.is_reentrant = reentrant
        """Whether whoever holds it may enter it again."""
        self._owner: asyncio.Task[object] | None = None
        self._depth = 0
        self._place: Place | None = None
        self._contest: Contest | None = None

    def __repr__(self) -> str:
        state = f"held with token {self._contest.token}" if self._contest is not None else "not held"
        return f"<{type(self).__name__} {self.name!r}: {state}>"

    @property
    def token(self) -> int:
        """The fencing token: it rises from holder to holder. Raises `LeaseLost` if nothing is held."""
        return self._holding().token

    @property
    def guard(self) -> Compare:
        """What a transaction compares so that it is done only while this holder is one. Raises `LeaseLost`."""
        return self._holding().guard

    async def commit(self, *operations: Operation, timeout: float | None = None) -> TxnResult:
        """Do these operations, at one revision, while this holder is one.

        Raises: `LeaseLost`, and nothing was done; `NotApplied`, `MaybeApplied`.
        """
        result = await self._kv.txn().when(self.guard).then(*operations).commit(timeout=timeout)
        if not result.succeeded:
            raise LeaseLost(f"{self.name!r} is somebody else's by now")
        return result

    async def check(self) -> None:
        """Raise `LeaseLost` if this is no holder any more, as far as the store can say now. Raises `Unavailable`."""
        await self._holding().check()

    async def contenders(self) -> list[KeyValue]:
        """Return who holds, and who waits, in their order; each with its ``value``. Raises `Unavailable`."""
        return (await self._kv.range(prefix=self._row, sort=SortTarget.CREATE)).kvs

    def _holding(self) -> Contest:
        if self._contest is None:
            raise LeaseLost(f"{self.name!r} is not held here")
        return self._contest

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        if self._owner is not None:
            if self._owner is not task or not self.is_reentrant or self._contest is None:
                raise InvalidRequest(f"{self!r} is in use: make another one, or enter it again with reentrant=True")
            self._depth += 1
            return self
        self._owner = task
        try:
            await self._acquire()
        except BaseException:
            self._owner = None
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if self._depth:
            self._depth -= 1
            return
        place, contest = self._place, self._holding()
        assert place is not None
        self._place = self._contest = None
        try:
            try:
                await self._ended(place.session, contest)
            finally:  # whatever becomes of that: a session that is not left is renewed for ever
                was_there = await place.leave(kind, *exc)
            if kind is None and was_there is False:
                raise LeaseLost(f"{self.name!r} was lost before the end of its block", lease=contest.lease.id)
        finally:
            self._owner = None

    async def _acquire(self) -> None:
        place = Place(self._store, ttl=self._ttl)
        row = self._row
        contest = Contest(self._kv, row, place.session, kind=self._kind, behind=self._behind, seats=self._seats)
        await place.enter(partial(contest.join, self._value), contest.leave)
        try:
            try:
                await contest.wait(timeout=self._timeout)
            except TimeoutError:
                raise LockNotAcquired(f"{self.name!r} was not free within {self._timeout} s") from None
            await self._begun(contest)
        except BaseException as error:
            await place.leave(type(error), error, error.__traceback__)
            raise
        self._place, self._contest = place, contest

    async def _begun(self, contest: Contest) -> None:
        """What else is to be done before the block may run."""

    async def _ended(self, session: Session, contest: Contest) -> None:
        """What else is to be done after the block, before the place is free."""
