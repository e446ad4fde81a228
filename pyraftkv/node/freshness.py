"""How fresh the state is that a read is answered from, and who waits until it is fresher.

* "linearizable": as fresh as this moment. A quorum is asked, in a round that many reads share (`node.reads`).
* "lease": the same without asking, where this member leads under a lease (`node.lease`); elsewhere, as above.
* "local": as it is; or from a revision on, which another member may have named.

What is waited for is a log index, a revision, or a revision that is compacted physically. All of them only rise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pyraftkv import errors
from pyraftkv.kv import Consistency
from pyraftkv.node.applier import Applier
from pyraftkv.node.lease import LeaderLease
from pyraftkv.node.reads import ReadRounds, RevisionWaits
from pyraftkv.store import Store


class Freshness:
    """Whoever waits for the state of one member.

    Args:
        applier: Has the state.
        loop: The event loop of all callers.
        rounds: Ask a quorum.
        lease: Spares that where it holds; None where there is none.
        deadline: When a call with a timeout is to be given up (`Member.deadline`).
    """

    def __init__(
        self,
        applier: Applier,
        *,
        loop: asyncio.AbstractEventLoop,
        rounds: ReadRounds,
        lease: LeaderLease | None,
        deadline: Callable[[float | None], float],
    ) -> None:
        self._applier = applier
        self._rounds = rounds
        self._lease = lease
        self._deadline = deadline
        store = applier.replica.store
        self._revisions = RevisionWaits(loop, revision=store.published_revision)
        self.compactions = RevisionWaits(loop, revision=store.compacted_revision)
        """Who waits until what was compacted is removed."""

    @property
    def has_lease(self) -> bool:
        """Whether the state, read without an ``await`` from here on, is as fresh as a linearizable read's."""
        lease = self._lease
        return lease is not None and self._applier.replica.rules.settings.lease_reads and lease.holds()

    async def store(self, consistency: Consistency, timeout: float | None, *, at_least: int = 0) -> Store:
        """Return the store once it is as fresh as asked for. Raises `Unavailable`, `InvalidRequest`."""
        if at_least > self._applier.replica.store.published_revision:
            await self._revisions.join(at_least, self._deadline(timeout))
        if consistency == "linearizable" or (consistency == "lease" and not self.has_lease):
            await self._rounds.join(self._deadline(timeout))
        elif consistency not in ("local", "lease"):
            raise errors.InvalidRequest(f"there is no consistency {consistency!r}")
        return self._applier.replica.store

    def applied(self, index: int) -> None:
        """The state now reflects everything up to ``index``: release who waited for that."""
        self._rounds.applied(index)
        self._revisions.published(self._applier.replica.store.published_revision)

    def compacted(self) -> None:
        """Something was removed, perhaps: release who waited for that."""
        self.compactions.published(self._applier.replica.store.compacted_revision)

    def scan(self) -> None:
        """Give up whoever is past their deadline. Call every 100 ms or so."""
        self._rounds.scan()
        self._revisions.scan()
        self.compactions.scan()

    def fail_all(self, error: Callable[[], errors.PyraftkvError]) -> None:
        """Fail everybody: the node is going away, or its state is wrong."""
        self._rounds.fail_all(error)
        self._revisions.fail_all(error)
        self.compactions.fail_all(error)
