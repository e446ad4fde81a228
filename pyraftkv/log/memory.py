"""`MemoryStorage`: the storage's memory twin, for clusters without a disk.

It keeps the contract of the disk: a save completes later and not at once, what has not completed when the node is
killed is lost, and what has completed is found again by the next `start` of the same object. A node that is killed
without `close` is no error: the next `start` takes over, as it would from a disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from random import Random, SystemRandom

from pyraftkv.core.ready import Save
from pyraftkv.core.types import Entry, HardState, SnapshotMeta
from pyraftkv.errors import Closed, ForeignDataDir, SnapshotCorruption
from pyraftkv.log.base import Identity, Recovered, nothing

ENTRY_OVERHEAD_BYTES = 48
"""What an entry counts in `log_bytes` besides its payload, so that the figure is like that of files."""


class MemoryStorage:
    """A member's durable half, in memory. Implements `pyraftkv.log.Storage`; see there for what each method promises.

    Args:
        random: Mints the incarnation.
    """

    def __init__(self, *, random: Random | None = None) -> None:
        random = SystemRandom() if random is None else random
        self._identity = Identity(cluster_id=0, member_id=0, incarnation=random.getrandbits(63) | 1, boot_count=0)
        self._hard_state = HardState()
        self._entries: list[Entry] = []
        self._base_index = 0
        """The index before the first entry that is kept."""
        self._snapshot: SnapshotMeta | None = None
        self._chunks: dict[tuple[int, int], list[bytes]] = {}
        """Data by term and index: of the snapshot in use, and of received ones that no save has named yet."""
        self._pending: list[tuple[Save, Callable[[int], None]]] = []
        self._log_bytes = 0
        self._life = 0
        self._open = False
        self._abandoned = False

    def __repr__(self) -> str:
        last = self._base_index + len(self._entries)
        return f"<MemoryStorage entries {self.first_index}..{last} {'open' if self._open else 'closed'}>"

    @property
    def kind(self) -> str:
        return "memory"

    @property
    def first_index(self) -> int:
        return self._base_index + 1

    @property
    def snapshot_index(self) -> int:
        return self._snapshot.index if self._snapshot is not None else 0

    @property
    def log_bytes(self) -> int:
        return self._log_bytes

    async def start(
        self,
        *,
        failed: Callable[[BaseException], None],
        full: Callable[[bool], None] = nothing,
        promised: Callable[[int], None] = nothing,
    ) -> Recovered:
        del failed, full, promised  # memory does not fail
        self._life += 1
        self._open = True
        self._abandoned = False
        self._pending = []
        self._loop = asyncio.get_running_loop()
        named = self._snapshot
        kept = (named.term, named.index) if named is not None else None
        self._chunks = {key: chunks for key, chunks in self._chunks.items() if key == kept}
        self._identity = replace(self._identity, boot_count=self._identity.boot_count + 1)
        lo = named.index + 1 if named is not None else 1
        entries = self._entries[lo - self.first_index :]
        size_bytes = sum(map(len, self._chunks[kept])) if kept is not None else 0
        return Recovered(self._identity, self._hard_state, named, entries, self.first_index, snapshot_bytes=size_bytes)

    async def identify(
        self, *, cluster_id: int, member_id: int, promises: bool = False, rolled_back: bool = False
    ) -> Identity:
        self._check()
        old = self._identity
        if old.cluster_id not in (0, cluster_id) or old.member_id not in (0, member_id):
            raise ForeignDataDir(
                f"the storage belongs to member {old.member_id} of cluster {old.cluster_id:x}, "
                f"not to member {member_id} of cluster {cluster_id:x}"
            )
        self._identity = replace(
            old,
            cluster_id=cluster_id,
            member_id=member_id,
            has_promised=old.has_promised or promises,
            is_rolled_back=old.is_rolled_back or rolled_back,
        )
        return self._identity

    async def rebind(self, *, cluster_id: int, incarnation: int) -> Identity:
        self._check()
        old = self._identity
        self._identity = replace(
            old, cluster_id=cluster_id, incarnation=incarnation, origin=old.mark, is_rolled_back=False
        )
        return self._identity

    def save(self, save: Save, then: Callable[[int], None]) -> None:
        self._check()
        if self._abandoned:
            return
        if not self._pending:
            self._loop.call_soon(self._complete, self._life)
        self._pending.append((save, then))

    def _complete(self, life: int) -> None:
        """Store everything pending as one batch, then tell; nothing if the node was killed in between."""
        if life != self._life:
            return
        pending, self._pending = self._pending, []
        for save, _ in pending:
            self._store(save)
        last = len(pending) - 1
        for position, (save, then) in enumerate(pending):
            if position == last or pending[position + 1][1] != then:
                then(save.number)

    def _store(self, save: Save) -> None:
        if save.snapshot is not None:
            self._entries = []
            self._base_index = save.snapshot.index
            self._use(save.snapshot)
        if save.entries:
            start = save.entries[0].index - self.first_index
            assert 0 <= start <= len(self._entries), f"entry {save.entries[0].index} leaves a gap"
            self._log_bytes += _bytes(save.entries) - _bytes(self._entries[start:])
            del self._entries[start:]
            self._entries += save.entries
        if save.hard_state is not None:
            self._hard_state = save.hard_state

    def _use(self, meta: SnapshotMeta) -> None:
        self._chunks = {key: chunks for key, chunks in self._chunks.items() if key[1] >= meta.index}
        assert (meta.term, meta.index) in self._chunks, "the save names a snapshot that was not committed"
        self._snapshot = meta
        self._log_bytes = _bytes(self._entries[max(meta.index - self._base_index, 0) :])

    async def read_entries(self, *, lo: int, hi: int, bytes_max: int) -> list[Entry]:
        self._check()
        if lo < self.first_index:
            return []
        entries = self._entries[lo - self.first_index : max(hi - self.first_index, 0)]
        total = 0
        for count, entry in enumerate(entries):
            total += len(entry.payload)
            if total > bytes_max and count:
                return entries[:count]
        return entries

    def create_snapshot(self, meta: SnapshotMeta, *, received: bool = False) -> MemorySnapshotSink:
        self._check()
        return MemorySnapshotSink(self, meta, received=received)

    def keep_snapshot(self, meta: SnapshotMeta, chunks: list[bytes], *, received: bool) -> None:
        """Take a snapshot's data; if it is a local one, use it, and keep the log back to the one before."""
        self._check()
        if self._abandoned:
            raise Closed("the storage is abandoned")
        previous = self._snapshot
        if not received and previous is not None and meta.index <= previous.index:
            return
        self._chunks[meta.term, meta.index] = chunks
        if received:
            return
        self._use(meta)
        floor = previous.index if previous is not None else 0
        kept = max(floor - self._base_index, 0)
        del self._entries[:kept]
        self._base_index += kept

    async def read_snapshot(self, meta: SnapshotMeta, *, from_chunk: int = 0) -> AsyncIterator[bytes]:
        self._check()
        chunks = self._chunks.get((meta.term, meta.index))
        if chunks is None:
            raise SnapshotCorruption(f"the snapshot at index {meta.index} is missing")
        for chunk in chunks[from_chunk:]:
            yield chunk

    def abandon(self) -> None:
        self._pending = []
        self._abandoned = True

    async def close(self) -> None:
        if self._open:
            self._complete(self._life)
            self._open = False

    def _check(self) -> None:
        if not self._open:
            raise Closed("the storage is closed")


class MemorySnapshotSink:
    """A snapshot on its way into memory. Implements `pyraftkv.log.SnapshotSink`."""

    def __init__(self, storage: MemoryStorage, meta: SnapshotMeta, *, received: bool) -> None:
        self._storage = storage
        self._meta = meta
        self._received = received
        self._chunks: list[bytes] | None = []

    async def write(self, chunk: bytes) -> None:
        assert self._chunks is not None, "the snapshot is committed or aborted"
        self._chunks.append(chunk)

    async def commit(self) -> None:
        assert self._chunks is not None, "the snapshot is committed or aborted"
        chunks, self._chunks = self._chunks, None
        self._storage.keep_snapshot(self._meta, chunks, received=self._received)

    async def abort(self) -> None:
        self._chunks = None


def _bytes(entries: list[Entry]) -> int:
    return sum([len(entry.payload) for entry in entries]) + ENTRY_OVERHEAD_BYTES * len(entries)
