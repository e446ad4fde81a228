"""`Party`: who is there. A member is there while his block runs, and his lease lives.

1. A program is started again under the id of its former life, whose lease still lives. It takes the place over: the key
   hangs on its own lease from then on, and the end of the older one leaves it alone.
2. The older one is not dead, but slow, and leaves now. It deletes the key only if that hangs on its own lease.
3. Both are under one session, and so under one lease: the older one's word is lost, or late, and it has come back
   under its id by then. So it deletes the key only if that is as it was written last, where it knows when that was.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Self

from pyraftkv.errors import InvalidRequest, LeaseLost
from pyraftkv.keys import mod_revision_is, to_bytes
from pyraftkv.kv import KV, Bytes
from pyraftkv.recipes.compares import is_under
from pyraftkv.recipes.names import inside
from pyraftkv.recipes.place import Place
from pyraftkv.recipes.session import TTL_DEFAULT, Session
from pyraftkv.store.commands import DeleteRange, PutKey, SortTarget
from pyraftkv.store.values import KeyValue


class Presence:
    """A key that is there while the block runs: an asynchronous context manager.

    When its lease is lost, the block is cancelled at its next ``await``, and ends with `LeaseLost`.

    Args:
        store: The store; or a `Session`, for several under one lease.
        row: The prefix of all keys of this kind.
        id: What tells this one from others: the key is ``row`` and this; "": one that nobody else has.
        value: What the others see.
        ttl: Seconds after which it is gone when nobody renews it.
    """

    def __init__(
        self, store: KV | Session, row: str, *, id: str = "", value: Bytes = b"", ttl: float = TTL_DEFAULT
    ) -> None:
        self._store = store
        self._kv = store.kv if isinstance(store, Session) else store
        self._row = row
        self.id = id
        """Of this one, once it is entered."""
        self._is_nameless = not id
        """Whether nobody else can come under its id."""
        self._value = value
        self._ttl = ttl
        self._written_at = 0
        """The revision of what it wrote last; 0 when that was not answered."""
        self._place: Place | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._row}{self.id}>"

    async def update(self, value: Bytes) -> None:
        """Let the others see something else. Raises `LeaseLost`, `NotApplied`, `MaybeApplied`."""
        session = self._entered()
        put = PutKey(self._key, to_bytes(value), session.lease.id)
        self._written_at = 0
        result = await self._kv.txn().when(is_under(self._key, session.lease.id)).then(put)
        if not result.succeeded:
            raise LeaseLost(f"{self!r} is not there any more, or somebody else's", lease=session.lease.id)
        self._written_at = result.revision

    async def check(self) -> None:
        """Raise `LeaseLost` unless the others can see it. Raises `Unavailable`."""
        session = self._entered()
        session.lease.check()
        found = await self._kv.get(self._key)
        if found is None or found.lease != session.lease.id:
            raise LeaseLost(f"{self!r} is not there any more, or somebody else's", lease=session.lease.id)

    async def __aenter__(self) -> Self:
        if self._place is not None:
            raise InvalidRequest(f"{self!r} is entered once: make another one")
        self._place = place = Place(self._store, ttl=self._ttl)
        self.id = self.id or place.session.next_place()
        await place.enter(self._appear, self._disappear, later=self._disappear_later)
        return self

    async def _appear(self) -> None:
        self._written_at = (await self._kv.put(self._key, self._value, lease=self._entered().lease.id)).revision

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        assert self._place is not None
        await self._place.leave(kind, *exc)

    async def _disappear(self) -> None:
        lease, at = self._entered().lease.id, self._written_at
        ours = mod_revision_is(self._key, at) if at else is_under(self._key, lease)
        await self._kv.txn().when(ours).then(DeleteRange(self._key))

    async def _disappear_later(self) -> None:
        if self._written_at or self._is_nameless:
            await self._disappear()

    @property
    def _key(self) -> bytes:
        return to_bytes(f"{self._row}{self.id}")

    def _entered(self) -> Session:
        if self._place is None:
            raise LeaseLost(f"{self!r} was not entered")
        return self._place.session


class Party:
    """Who takes part: ``async with party.join("me"): await party.members()`` (kazoo, `Party`).

    Args:
        store: The store; or a `Session`, under whose lease to take part.
        name: Who gives the same name means the same party.
        ttl: Seconds after which somebody who is gone takes no part.
    """

    def __init__(self, store: KV | Session, name: str, *, ttl: float = TTL_DEFAULT) -> None:
        self._store = store
        self._kv = store.kv if isinstance(store, Session) else store
        self._name = name
        self._row = inside(name, "members/")
        self._ttl = ttl

    def join(self, value: Bytes = b"", *, id: str = "") -> Presence:
        """Return a place in it, to be entered.

        Args:
            value: What `members` shows.
            id: What tells this member from others; nobody else's by default. Whoever has the same takes the place over.
        """
        return Presence(self._store, self._row, id=id, value=value, ttl=self._ttl)

    async def members(self, *, timeout: float | None = None) -> list[KeyValue]:
        """Return who is there, the longest first. Raises `Unavailable`."""
        return (await self._kv.range(prefix=self._row, sort=SortTarget.CREATE, timeout=timeout)).kvs

    async def watch(self) -> AsyncIterator[list[KeyValue]]:
        """Yield who is there now, then again whenever that is different. Raises as `KV.view`.

        Who reads slowly sees the latest, and not everything in between.
        """
        before: list[KeyValue] | None = None
        async with await self._kv.view(prefix=self._row) as view:
            while True:
                at = view.revision
                now = sorted(view.values(), key=lambda kv: kv.create_revision)
                if now != before:
                    before = now
                    yield now
                await view.wait(lambda view, at=at: view.revision > at)  # type: ignore[misc]
