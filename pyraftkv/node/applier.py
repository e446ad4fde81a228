"""Applying: committed entries reach the replica in slices of about a millisecond, so that the loop never blocks.

A slice ends when its time is up, even in the middle of a long command. Between slices everything else has its turn:
heartbeats, reads, watches, a snapshot being walked. Readers see a revision only when its entry is complete.

A snapshot says everything that stands before it. What is still queued then, entries and older snapshots alike, is
dropped: the data of a snapshot may be purged as soon as a newer one is named.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from pyraftkv import errors
from pyraftkv.core import Applied, Entry, Membership, SnapshotMeta
from pyraftkv.replica import BUSY, DecisionApplied, Effect, MembershipApplied, Replica

ENTRIES_PER_CLOCK_READ = 32
"""The clock is read after this many entries ..."""

BYTES_PER_CLOCK_READ = 16 * 1024
"""... or this many bytes of them: an entry may be a batch of small commands, and a millisecond's work by itself."""

STEP_BUDGET = 500
"""Keys that a long command touches between two looks at the clock."""


async def restore(snapshot: SnapshotMeta, chunks: AsyncIterator[bytes], like: Replica | None = None) -> Replica:
    """Build a replica from a snapshot's data, a chunk at a time. Raises `SnapshotCorruption`.

    Args:
        snapshot: What it stands for.
        chunks: Its data.
        like: A replica of the kind that is to be built: a witness has its own.
    """
    restorer = (like or Replica()).restorer(index=snapshot.index, term=snapshot.term)
    async for chunk in chunks:
        restorer.feed(chunk)
        await asyncio.sleep(0)
    return restorer.finish()


class Owner(Protocol):
    """What the applier tells its node."""

    def effects_applied(self, effects: list[Effect], applied: Applied) -> None:
        """A slice is complete: resolve who waits, wake the watches, tell the core."""
        ...

    def decision_applied(self, decision: DecisionApplied) -> None:
        """What some leader decided by itself is done, or is not to be."""
        ...

    def replica_restored(self, replica: Replica, snapshot: SnapshotMeta) -> None:
        """Another replica, restored from a snapshot, takes over from here."""
        ...


class Applier:
    """Feeds one replica, in order: entries, and snapshots that replace it."""

    def __init__(
        self,
        replica: Replica,
        owner: Owner,
        *,
        loop: asyncio.AbstractEventLoop,
        read_snapshot: Callable[[SnapshotMeta], AsyncIterator[bytes]],
        slice_seconds: float,
    ) -> None:
        self.replica = replica
        self._owner = owner
        self._loop = loop
        self._read_snapshot = read_snapshot
        self._slice_seconds = slice_seconds
        self._work: deque[list[Entry] | SnapshotMeta] = deque()
        self._offset = 0
        """How many entries of the first list in `_work` are applied."""
        self._wake = asyncio.Event()
        self._restoring = False
        self._changed = asyncio.Event()
        """Set when something is applied."""
        self._is_closed = False

    @property
    def is_restored(self) -> bool:
        """Whether the replica is whole: no snapshot is being loaded."""
        return not self._restoring

    @property
    def is_idle(self) -> bool:
        return not self._work and not self._restoring

    def submit(self, restore: SnapshotMeta | None, committed: list[Entry]) -> None:
        """Take what a `Ready` says is to be applied. The first slice of it runs at once, when nothing is before it."""
        idle = self.is_idle
        if restore is not None:
            self._work.clear()
            self._offset = 0
            self._work.append(restore)
        if committed:
            self._work.append(committed)
        if idle and self._work and not isinstance(self._work[0], SnapshotMeta):
            self._slice()
        if self._work:
            self._wake.set()

    def adopt(self, replica: Replica) -> None:
        """Go on with another replica, which has applied exactly the same entries."""
        assert self.is_restored, "what a snapshot brings is newer than either"
        assert not self.replica.is_busy, "replicas are exchanged between entries"
        assert replica.applied_index == self.replica.applied_index, (replica.applied_index, self.replica.applied_index)
        self.replica = replica

    async def applied_to(self, index: int) -> None:
        """Wait until everything up to ``index``, which is committed, is applied. Raises `Closed`."""
        while self.replica.applied_index < index:
            await self._next_change()

    async def between_entries(self) -> None:
        """Wait until there is a state, and no entry is being applied. Raises `Closed`."""
        while self.replica.is_busy or not self.is_restored or not self.replica.applied_index:
            await self._next_change()

    def close(self) -> None:
        """Let nobody wait for what will not be applied any more."""
        self._is_closed = True
        self._changed.set()

    async def _next_change(self) -> None:
        """Wait until something is applied. Raises `Closed`."""
        if not self._is_closed:
            self._changed.clear()
            await self._changed.wait()
        if self._is_closed:
            raise errors.Closed("the node stopped")

    async def run(self) -> None:
        """Apply whatever is left over from `submit`, slice by slice, until cancelled."""
        while True:
            await self._wake.wait()
            while self._work:
                first = self._work[0]
                if isinstance(first, SnapshotMeta):
                    await self._restore(first)
                else:
                    self._slice()
                await asyncio.sleep(0)
            self._wake.clear()

    async def _restore(self, snapshot: SnapshotMeta) -> None:
        """Swap a replica in that is restored from a snapshot; none if a newer one is queued meanwhile.

        Raises: `SnapshotCorruption`, `StorageError`.
        """
        self._restoring = True
        try:
            replica = await restore(snapshot, self._read_snapshot(snapshot), self.replica)
        except errors.StorageError:
            if self._work[0] is snapshot:
                raise
            return  # its data was purged under the reader: the newer one has all of it
        if self._work[0] is not snapshot:
            return
        self._work.popleft()
        self._restoring = False
        self.replica = replica
        self._owner.replica_restored(replica, snapshot)
        self._changed.set()

    def _slice(self) -> None:
        """Apply for about `slice_seconds`, then report what came of it."""
        deadline = self._loop.time() + self._slice_seconds
        effects: list[Effect] = []
        membership: Membership | None = None
        replica = self.replica
        while self._work and not isinstance(self._work[0], SnapshotMeta):
            changed = self._some_entries(self._work[0], effects)
            membership = changed or membership
            if self._loop.time() >= deadline:
                break
        self._owner.effects_applied(effects, Applied(replica.applied_index, membership))
        self._changed.set()

    def _some_entries(self, entries: list[Entry], effects: list[Effect]) -> Membership | None:
        """Apply the next few of ``entries``, or a step of the one under way; return a membership that one set."""
        replica = self.replica
        membership = None
        is_busy = replica.is_busy
        seen_bytes = 0
        for entry in entries[self._offset : self._offset + ENTRIES_PER_CLOCK_READ]:
            consequence = replica.step(STEP_BUDGET) if is_busy else replica.apply(entry)
            is_busy = False
            if consequence is BUSY:
                break
            self._offset += 1
            if type(consequence) is Effect:
                effects.append(consequence)
            elif isinstance(consequence, MembershipApplied):
                membership = consequence.membership
                if consequence.effect is not None:
                    effects.append(consequence.effect)
            elif isinstance(consequence, DecisionApplied):
                self._owner.decision_applied(consequence)
            seen_bytes += len(entry.payload)
            if seen_bytes >= BYTES_PER_CLOCK_READ:
                break
        if self._offset == len(entries):
            self._work.popleft()
            self._offset = 0
        return membership
