"""`Election`: one of the candidates leads, everybody can know who, and no two terms of office have the same token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

from pyraftkv.keys import to_bytes
from pyraftkv.kv import KV, Bytes, View
from pyraftkv.recipes.holding import Holding
from pyraftkv.recipes.names import inside
from pyraftkv.recipes.session import TTL_DEFAULT, Session
from pyraftkv.store.commands import PutKey, SortOrder, SortTarget
from pyraftkv.store.values import KeyValue


class _Unseen:
    """The type of what no leader is."""


_UNSEEN = _Unseen()


class Election:
    """An election of that name, for candidates and for those who follow (etcd, `concurrency.Election`).

    ``async with election.campaign("10.0.0.7:80") as leadership`` waits until this candidate leads, and leads while the
    block runs: leaving it is to resign.

    Args:
        store: The store; or a `Session`, under whose lease to stand.
        name: Who gives the same name means the same election.
        ttl: Seconds after which somebody else leads when the leader is gone.
    """

    def __init__(self, store: KV | Session, name: str, *, ttl: float = TTL_DEFAULT) -> None:
        self._store = store
        self._kv = store.kv if isinstance(store, Session) else store
        self._name = name
        self._row = inside(name, "wait/")
        self._ttl = ttl

    def campaign(self, value: Bytes, *, timeout: float | None = None) -> Leadership:
        """Return a candidacy, to be entered. ``value`` is what the others are told of this leader.

        Args:
            value: Say, where it is reached.
            timeout: Seconds to wait for other leaders; None: as long as it takes, 0: not at all.
        """
        return Leadership(self._store, self._name, ttl=self._ttl, timeout=timeout, value=value)

    async def leader(self, *, timeout: float | None = None) -> KeyValue | None:
        """Return who leads, its value and its token (`create_revision`); None if nobody does. Raises `Unavailable`."""
        found = await self._kv.range(
            prefix=self._row, sort=SortTarget.CREATE, order=SortOrder.ASCEND, limit=1, timeout=timeout
        )
        return found.kvs[0] if found.kvs else None

    async def observe(self) -> AsyncIterator[KeyValue | None]:
        """Yield who leads now, then whoever leads next, and what leaders proclaim; None while there is nobody.

        Who reads slowly sees the latest, and not everybody in between. Raises as `KV.view`.
        """
        before: KeyValue | _Unseen | None = _UNSEEN
        async with await self._kv.view(prefix=self._row) as view:
            while True:
                found = await view.wait(partial(_other_leader, before=before))
                assert found is not None, "a view waits for what is true"
                (leader,) = found
                yield leader
                before = leader


def _other_leader(view: View, *, before: KeyValue | _Unseen | None) -> tuple[KeyValue | None] | None:
    leader = min(view.values(), key=lambda kv: kv.create_revision, default=None)
    return None if leader == before else (leader,)


class Leadership(Holding):
    """A candidacy that was entered: its block runs while it leads. Made by `Election.campaign`."""

    async def proclaim(self, value: Bytes) -> None:
        """Tell the others something else of this leader. Raises `LeaseLost`, `NotApplied`, `MaybeApplied`."""
        contest = self._holding()
        await self.commit(PutKey(contest.key.encode(), to_bytes(value), lease=contest.lease.id))
