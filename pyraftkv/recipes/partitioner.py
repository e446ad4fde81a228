"""`Partitioner`: items that are shared out among whoever is there, each to one at a time.

Everybody who takes part has a key under his lease, and each item that he has one more. Who has which is reckoned by
everybody alike, from who is there: item number i of n belongs to participant i modulo their number, in the order in
which they came. What decides is the item's key alone: it is made by whoever the item should belong to, once it is not
there, and deleted by whoever had it, once he does nothing with it any more.

1. Somebody comes, and everybody reckons anew. Whoever has too much is told first, and gives it back when he asks for
   his next share: so nobody begins with an item while another one is still at it.
2. Two reckon from different views, and both think that an item is theirs. One of them makes its key.
3. Somebody dies. His keys go with his lease: others reckon anew, and take his items. If he only seems to be dead, his
   block was cancelled before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from enum import IntEnum
from typing import Self

from pyraftkv.errors import InvalidRequest, LeaseLost, MaybeApplied
from pyraftkv.kv import KV, View
from pyraftkv.recipes.body import under
from pyraftkv.recipes.compares import is_absent, is_under
from pyraftkv.recipes.names import inside
from pyraftkv.recipes.session import TTL_DEFAULT, Session
from pyraftkv.store.commands import DeleteRange, PutKey

ITEMS_MAX = 10_000
"""Items that are shared out."""


class PartitionState(IntEnum):
    """What one participant is at (kazoo, `PartitionState`)."""

    ALLOCATING = 0
    """It has not all that it should have: it waits for others to give it back."""
    ACQUIRED = 1
    """It has what it should have."""
    RELEASE = 2
    """It has more than it should have, and gives that back when it asks for its next share."""
    FAILURE = 3
    """It takes no part any more: its lease was lost, or its block has ended."""


class Partitioner:
    """A participant, and an asynchronous context manager; its iteration yields what it has, whenever that changes.

    .. code-block:: python

        async with Partitioner(kv, "shards", [str(n) for n in range(16)]) as partitioner:
            async for mine in partitioner.shares():
                await workers.be_exactly(mine)  # stop those of other items, start those that are missing

    What was yielded is this participant's alone until the next share is asked for. When its lease is lost, the block
    is cancelled at its next ``await``, and ends with `LeaseLost`.

    Args:
        kv: The store.
        name: Who gives the same name takes part in the same.
        items: What is shared out; everybody gives the same. `ITEMS_MAX` at most.
        ttl: Seconds after which somebody who is gone has nothing any more.
    """

    def __init__(self, kv: KV, name: str, items: Iterable[str], *, ttl: float = TTL_DEFAULT) -> None:
        named = [] if isinstance(items, str) or not isinstance(items, Iterable) else list(items)
        if not named or not all(isinstance(item, str) and item for item in named) or len(set(named)) > ITEMS_MAX:
            raise InvalidRequest(f"items= are 1 to {ITEMS_MAX} names, text that is not empty")
        self._items = sorted(set(named))
        self._kv = kv
        self.name = name
        self._members, self._held = inside(name, "members/"), inside(name, "held/")
        self._session = Session(kv, ttl=ttl)
        self._mine: set[str] = set()
        self._is_iterated = False
        self.state = PartitionState.ALLOCATING
        """What it is at."""

    def __repr__(self) -> str:
        return f"<Partitioner {self.name!r}: {self.state.name}, {len(self._mine)} of {len(self._items)} items>"

    @property
    def mine(self) -> frozenset[str]:
        """The items that are this participant's."""
        return frozenset(self._mine)

    async def shares(self) -> AsyncIterator[frozenset[str]]:
        """Yield what this participant has, whenever that changes. Raises `LeaseLost`, and what ends a view."""
        if self._is_iterated:
            raise InvalidRequest("a participant's share is asked for in one place")
        self._is_iterated = True
        yielded: frozenset[str] | None = None
        async with await self._kv.view(prefix=inside(self.name, "")) as view:
            while True:
                at = view.revision
                should = self._should_have(view)
                excess = self._mine - should
                if excess:
                    self.state = PartitionState.RELEASE
                    yielded = frozenset(self._mine & should)
                    yield yielded
                    await self._give_back(excess)
                    continue
                await self._take(should - self._mine)
                is_done = self._mine == should
                self.state = PartitionState.ACQUIRED if is_done else PartitionState.ALLOCATING
                if yielded != self.mine:
                    yielded = self.mine
                    yield yielded
                    continue
                await view.wait(lambda view, at=at: view.revision > at)  # type: ignore[misc]

    def _should_have(self, view: View) -> set[str]:
        """Return the share of this participant, as it follows from who is there."""
        members = [kv for kv in view.values() if kv.key.startswith(self._members.encode())]
        order = [kv.lease for kv in sorted(members, key=lambda kv: kv.create_revision)]
        if self._session.lease.id not in order:
            raise LeaseLost(f"{self.name!r} goes on without this participant", lease=self._session.lease.id)
        return set(self._items[order.index(self._session.lease.id) :: len(order)])

    async def _give_back(self, items: set[str]) -> None:
        for item in sorted(items):
            key, lease = f"{self._held}{item}".encode(), self._session.lease.id
            await self._kv.txn().when(is_under(key, lease)).then(DeleteRange(key))
            self._mine.discard(item)

    async def _take(self, items: set[str]) -> None:
        lease = self._session.lease.id
        for item in sorted(items):
            key = f"{self._held}{item}".encode()
            try:
                with under(self._session.lease):
                    result = await self._kv.txn().when(is_absent(key)).then(PutKey(key, b"", lease))
                is_ours = result.succeeded
            except MaybeApplied:
                is_ours = False
            if not is_ours:  # perhaps an earlier attempt has made it: then it hangs on our lease, and nobody else's
                found = await self._kv.get(key)
                is_ours = found is not None and found.lease == lease
            if is_ours:
                self._mine.add(item)

    async def __aenter__(self) -> Self:
        lease = self._session.lease.id
        try:
            await self._session.enter_with(lambda: self._kv.put(f"{self._members}{lease:016x}", b"", lease=lease))
        except BaseException:
            self.state = PartitionState.FAILURE
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.state = PartitionState.FAILURE
        self._mine.clear()
        await self._session.__aexit__(kind, *exc)
