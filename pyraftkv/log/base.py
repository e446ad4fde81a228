"""What the node needs of durability: `Storage`, and the records it exchanges.

`FileStorage` (files.py) and `MemoryStorage` (memory.py) implement it. Calls come from one event loop; the disk is
touched on the writer's and the snapshot writer's threads only, and completions return to the loop through the
callables given. After the first error of the active log the storage has failed for good: `failed` is called once,
nothing completes any more, and no file is touched again (durability rule: never retry an fsync). A disk without room
is no such error: saves wait, in order, and complete when there is room again; only votes do not wait (`promised`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from pyraftkv._record import record
from pyraftkv.core.ready import Save
from pyraftkv.core.types import Entry, HardState, SnapshotMeta


@record
class Identity:
    """Whose directory this is. Zero means not known yet; once set, a value never changes, but for
    `boot_count`, and in a recovery (`Storage.rebind`).
    """

    cluster_id: int
    member_id: int
    incarnation: int
    """Minted at random with the directory: a wiped disk comes back as somebody else."""
    boot_count: int
    """Counts the starts from this directory; durable before the start goes on."""
    origin: int = 0
    """The incarnation that the directory was made with, once a recovery has minted another; 0 until then."""
    has_promised: bool = False
    """Whether any life of it may have promised a leader to elect nobody else for a while (`node.lease`)."""
    is_rolled_back: bool = False
    """Whether it was found to have less than its member had acknowledged: no node starts from it any more."""

    @property
    def mark(self) -> int:
        """What the log's files are marked with: it stays when the incarnation changes."""
        return self.origin or self.incarnation


@record
class Recovered:
    """What stood on disk when the storage was opened."""

    identity: Identity
    hard_state: HardState
    snapshot: SnapshotMeta | None
    """The newest usable snapshot: its data comes from `read_snapshot`."""
    entries: list[Entry]
    """Every entry after `snapshot`, in order."""
    first_index: int
    """The first index that `read_entries` can still return (it may precede the snapshot)."""
    repaired: str = ""
    """What was mended on the way, for the log; empty when nothing."""
    snapshot_bytes: int = 0
    """How long `snapshot` is, about; 0 if there is none."""

    @property
    def last_index(self) -> int:
        """Where the log ends."""
        if self.entries:
            return self.entries[-1].index
        return self.snapshot.index if self.snapshot is not None else 0


class SnapshotSink(Protocol):
    """Where a snapshot's chunks go: a temporary file until `commit`."""

    async def write(self, chunk: bytes) -> None:
        """Append one chunk. Raises `StorageError` if the disk refuses; the sink is then aborted."""
        ...

    async def commit(self) -> None:
        """Make the snapshot durable: file synced, renamed, directory synced. Nothing uses it before this returns.

        For a local snapshot the log then records it and purges what it replaces; it is dropped instead if the log
        names one by now that is not older. For a received one that is done by the `Save` that carries it.
        """
        ...

    async def abort(self) -> None:
        """Forget what was written. Idempotent; harmless after `commit`."""
        ...


def nothing(*_: object) -> None:
    """Tell nobody: the listener where nobody listens."""


class Storage(Protocol):
    """The durable half of a member."""

    @property
    def kind(self) -> str:
        """For `status()`: "files", "memory" or, without syncs, "files-without-fsync"."""
        ...

    async def start(
        self,
        *,
        failed: Callable[[BaseException], None],
        full: Callable[[bool], None] = nothing,
        promised: Callable[[int], None] = nothing,
    ) -> Recovered:
        """Open or create everything, count the boot, and return what stood there.

        Args:
            failed: Called once, when the storage has failed for good.
            full: Called with True when saves wait for room on the disk, and with False when they no longer do.
            promised: Called, while that is so, with the number of a save whose term and vote are durable ahead of it;
                of what the saves up to there hold besides, nothing is.

        Raises: `DataDirLocked`, `ForeignDataDir`, `UnsupportedFormat`, `WalCorruption`, `SnapshotCorruption`,
        `StorageFailed`.
        """
        ...

    async def identify(
        self, *, cluster_id: int, member_id: int, promises: bool = False, rolled_back: bool = False
    ) -> Identity:
        """Bind the directory to a cluster and a member, durably. Raises `ForeignDataDir` if it is bound otherwise.

        Args:
            cluster_id: Which cluster.
            member_id: Which member.
            promises: Whether this life may promise a leader to elect nobody else: that stays remembered.
            rolled_back: Whether it was found to have less than was acknowledged: that stays remembered, too.
        """
        ...

    async def rebind(self, *, cluster_id: int, incarnation: int) -> Identity:
        """Bind the directory to another cluster, durably, and in another life of the same member.

        Only where the log already says so, durably: see `node.recovery`.
        """
        ...

    def save(self, save: Save, then: Callable[[int], None]) -> None:
        """Queue `save` for the writer and call ``then(save.number)`` on the loop when it is durable.

        Never blocks. Saves queued together share one write and one fdatasync, and complete in order; a later
        completion may stand for earlier ones.
        """
        ...

    async def read_entries(self, *, lo: int, hi: int, bytes_max: int) -> list[Entry]:
        """Return the entries from `lo`, at most to `hi`, one at least; empty if the log no longer has `lo`."""
        ...

    def create_snapshot(self, meta: SnapshotMeta, *, received: bool = False) -> SnapshotSink:
        """Start writing a snapshot; `received` when it comes from the leader and a `Save` will name it."""
        ...

    def read_snapshot(self, meta: SnapshotMeta, *, from_chunk: int = 0) -> AsyncIterator[bytes]:
        """Yield the chunks of a committed snapshot, verified. Raises `SnapshotCorruption`."""
        ...

    @property
    def first_index(self) -> int:
        """The first index that `read_entries` can still return."""
        ...

    @property
    def snapshot_index(self) -> int:
        """The index of the newest snapshot that the log names, 0 without any; a local one must be newer."""
        ...

    @property
    def log_bytes(self) -> int:
        """Bytes of log since the newest snapshot, for the snapshot policy."""
        ...

    def abandon(self) -> None:
        """Drop what is queued, as if the power had gone: no save is written or completes any more. Idempotent.

        A batch that is being written may still become durable. `close` must follow, and writes nothing then.
        """
        ...

    async def close(self) -> None:
        """Finish what is queued, sync and release everything. Idempotent."""
        ...
