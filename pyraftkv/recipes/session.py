"""`Session`: a lease that several recipes share, and whose loss ends the block that runs under it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Self

from pyraftkv.errors import Closed, InvalidRequest, LeaseNotFound, MaybeApplied, PyraftkvError, Unavailable
from pyraftkv.kv import KV, Lease
from pyraftkv.recipes.body import Body

TTL_DEFAULT = 10.0
"""Seconds after which the others go on without somebody who is gone."""
PLACES_LEFT_MAX = 1024
"""Places of one session that could not be left at once, and are left later; one more is there until its end."""
RETRY_SECONDS = 1.0
"""Before a place is tried to be left again."""


class Session:
    """An asynchronous context manager: ``async with Session(kv, ttl=10) as session``.

    It is entered once. Losing its lease cancels the block at its next ``await``, and raises `LeaseLost`; so it does to
    the block of whatever is held under it, in whichever task. What was put under the lease vanishes at its end.

    Args:
        kv: The store.
        ttl: Seconds that it lives when nobody renews it.
        timeout: Seconds that it may take to begin.
    """

    def __init__(self, kv: KV, *, ttl: float = TTL_DEFAULT, timeout: float | None = None) -> None:
        self.kv = kv
        """The store that it is a session of."""
        self._lease = kv.lease(ttl=ttl, timeout=timeout)
        self._body: Body | None = None
        self._places = 0
        self._free: list[str] = []
        """Places that were given back: as many at most as were had at a time."""
        self._left: deque[Callable[[], Awaitable[object]]] = deque()
        self._leaving: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Session of {self._lease!r}>"

    @property
    def lease(self) -> Lease:
        """What it holds: for ``put(..., lease=session.lease.id)``."""
        return self._lease

    def next_place(self) -> str:
        """Return what names another place under the lease: no other one is called so, of this session or of any."""
        self._places += 1
        return f"{self._lease.id:016x}.{self._places}"

    def take_place(self) -> str:
        """Return a place that was given back, or the next one: for keys that their revisions tell apart.

        1. A task takes a lock and gives it back, a hundred times a second, each time under a key of another name.
        2. Their tombstones stay until they are compacted, in an hour. Whoever looks at the row passes all of them.
        """
        return self._free.pop() if self._free else self.next_place()

    def give_place_back(self, place: str) -> None:
        """The key of that name is gone, and no write is under way that could make it, or delete it."""
        self._free.append(place)

    def leave_later(self, leave: Callable[[], Awaitable[object]]) -> None:
        """Do this until it is done, or the session over: somebody has a place under it, and could not leave it.

        1. A lock is released while the cluster has no leader, or whoever releases it is cancelled. He goes on.
        2. The session goes on as well, and with it the key. Nobody holds the lock, and nobody can have it.
        """
        if self._body is None or len(self._left) >= PLACES_LEFT_MAX:
            return
        self._left.append(leave)
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._leave_all(), name="pyraftkv-leave")

    async def _leave_all(self) -> None:
        while self._left and not self._lease.lost.is_set():
            try:
                await self._left[0]()
            except Closed:
                self._left.clear()
            except (Unavailable, MaybeApplied):
                await asyncio.sleep(RETRY_SECONDS)
            except PyraftkvError:  # it will not be otherwise the next time
                self._left.popleft()
            else:
                self._left.popleft()
        self._leaving = None

    async def __aenter__(self) -> Self:
        self._check_is_new()
        await self._lease.__aenter__()
        self._body = Body(self._lease)
        return self

    async def enter_with(self, write: Callable[[], Awaitable[object]]) -> None:
        """Enter, and do a write that hangs on the lease without waiting for the lease first: one round trip for both.

        If that fails, or the session cannot be entered, the lease is ended, and the write with it. To be left by
        `__aexit__` if it did not. ``write`` is called once more if it came before the lease: it must find that out.

        Raises: what ``write`` raises; `NotApplied`, `MaybeApplied`.
        """
        self._check_is_new()
        entering = asyncio.create_task(self._lease.__aenter__(), name="pyraftkv-session")
        try:
            await asyncio.sleep(0)  # the lease is asked for first
            try:
                await write()
            except LeaseNotFound:
                await entering
                await write()
            await entering
        except BaseException as error:
            entering.cancel()
            await asyncio.wait([entering])
            if not entering.cancelled() and entering.exception() is None:
                await self._lease.__aexit__(type(error), error, error.__traceback__)
            raise
        self._body = Body(self._lease)

    def body_here(self) -> Body | None:
        """Return what interrupts a block of the current task when the lease is lost; None if the session's own does."""
        return None if self._body is None or self._body.is_here else Body(self._lease)

    def _check_is_new(self) -> None:
        if self._body is not None:
            raise InvalidRequest("a session is entered once")

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        assert self._body is not None
        if self._leaving is not None:
            self._leaving.cancel()
        try:
            self._body.leave(kind)
        finally:
            await self._lease.__aexit__(kind, *exc)
