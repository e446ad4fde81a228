"""Opening a data directory: its lock, its identity, its log, and the newest snapshot that is whole.

In this order, so that nothing is believed before what vouches for it: the lock says that nobody else writes here, the
identity whose the log may be, the log which snapshots count. The start is counted last: one that was refused was none.
"""

from __future__ import annotations

from random import Random

from pyraftkv._record import record
from pyraftkv.core.types import SnapshotMeta
from pyraftkv.errors import DataDirLocked, SnapshotCorruption, StorageError, StorageFailed, WalCorruption
from pyraftkv.log.base import Recovered
from pyraftkv.log.fs import FileSystem, is_unreadable, join, parent
from pyraftkv.log.identity import SLOT_NAMES, IdentityFile
from pyraftkv.log.mark import MarkFile
from pyraftkv.log.recovery import ahead, gap, open_wal, refuse_short
from pyraftkv.log.snapshot import BROKEN_SUFFIX, SnapshotReader, clean, snapshot_name
from pyraftkv.log.wal import Wal


@record
class Opened:
    """A directory that is this process's."""

    lock_fd: int
    identity: IdentityFile
    wal: Wal
    recovered: Recovered


def open_directory(
    fs: FileSystem,
    path: str,
    *,
    random: Random,
    segment_bytes_max: int,
    reserve_bytes: int,
    create: bool,
    strict_tail: bool,
) -> Opened:
    """Open a data directory, or make it; arguments as for `FileStorage`.

    Raises: `DataDirLocked`, `ForeignDataDir`, `UnsupportedFormat`, `WalCorruption`, `SnapshotCorruption`, `OSError`.
    """
    if not create:
        _check_used(fs, path)
    fs.make_dir(path)
    # Even if it stood there: the process that made it may have been killed before it could do this.
    fs.fsync_dir(parent(path))
    try:
        lock_fd = fs.lock(join(path, "LOCK"))
    except BlockingIOError as error:
        raise DataDirLocked(f"{path} is {error.strerror}") from error
    try:
        identity = _identity(fs, path, random)
        assert identity.identity is not None
        wal, repaired = open_wal(
            fs,
            join(path, "wal"),
            identity=identity.identity,
            random=random,
            segment_bytes_max=segment_bytes_max,
            reserve_bytes=reserve_bytes,
            marks=MarkFile(fs, path, incarnation=identity.identity.mark),
            strict_tail=strict_tail,
        )
        try:
            recovered = _recover(fs, path, identity, wal, repaired)
        except BaseException:
            wal.close()
            raise
    except BaseException:
        fs.close(lock_fd)
        raise
    return Opened(lock_fd, identity, wal, recovered)


def _check_used(fs: FileSystem, path: str) -> None:
    """Raise `StorageError` if no member was ever started here."""
    try:
        names = fs.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        names = []
    if not set(names) & {*SLOT_NAMES, "wal"}:
        raise StorageError(f"{path} is no member's data directory")


def _identity(fs: FileSystem, path: str, random: Random) -> IdentityFile:
    """Return whose directory it is, and make what it consists of; mint an identity if there is no log either."""
    wal_dir, snap_dir = join(path, "wal"), join(path, "snap")
    fs.make_dir(wal_dir)
    fs.make_dir(snap_dir)
    fs.fsync_dir(path)
    fs.fsync_dir(snap_dir)
    identity = IdentityFile(fs, path)
    if not identity.load():
        if any(name.endswith(".wal") for name in fs.listdir(wal_dir)):
            reason = "neither identity slot can be read"
            raise WalCorruption(f"{path}: {reason}", segment="identity.a", reason=reason)
        identity.mint(random)
    return identity


def _recover(fs: FileSystem, path: str, identity: IdentityFile, wal: Wal, repaired: str) -> Recovered:
    """Choose the snapshot, read the log after it, and count the start."""
    snap_dir = join(path, "snap")
    snapshot, snapshot_bytes, mended = _choose_snapshot(fs, snap_dir, wal)
    clean(fs, snap_dir, named=wal.snapshots)
    lo = snapshot.index + 1 if snapshot is not None else 1
    entries = wal.read(lo=lo, hi=wal.last_index + 1, bytes_max=1 << 62)
    booted = identity.count_boot()
    repairs = "; ".join(filter(None, [repaired, mended]))
    return Recovered(booted, wal.hard_state, snapshot, entries, wal.first_index, repairs, snapshot_bytes)


def _choose_snapshot(fs: FileSystem, directory: str, wal: Wal) -> tuple[SnapshotMeta | None, int, str]:
    """Return the newest snapshot that is whole and that the log continues, its size, and what had to be passed over.

    Without any snapshot the log alone must reach back to its first entry. What is passed over is set aside once
    something else will do: a start that is refused leaves all as it is, so that the next one is refused for the same.
    """
    damaged: list[tuple[str, SnapshotCorruption | StorageFailed]] = []
    chosen: SnapshotMeta | None = None
    size_bytes = 0
    refuse_short(wal)
    for meta in reversed(wal.snapshots.copy()):
        if meta.index > wal.hard_state.commit:
            raise _refusal(damaged) or ahead(wal, meta)
        if meta.index + 1 < wal.first_index:
            lacking = gap(wal, meta.index + 1, wal.first_index, "it does not continue its snapshot")
            raise _refusal(damaged) or lacking
        file = join(directory, snapshot_name(term=meta.term, index=meta.index))
        found = _examine(fs, directory, file, meta)
        if isinstance(found, int):
            chosen, size_bytes = meta, found
            break
        damaged.append((file, found))
        wal.forget_snapshot(meta)
    if chosen is None and wal.first_index != 1:
        lacking = gap(wal, 1, wal.first_index, "its first entries are gone, and there is no snapshot")
        raise _refusal(damaged) or lacking
    for file, _ in damaged:
        _set_aside(fs, file)
    return chosen, size_bytes, f"passed over a damaged snapshot: {damaged[0][1]}" if damaged else ""


def _refusal(damaged: list[tuple[str, SnapshotCorruption | StorageFailed]]) -> StorageError | None:
    """Return what to say of snapshots none of which will do: what may pass, if any of it may."""
    wrong = [error for _, error in damaged]
    return next((error for error in wrong if isinstance(error, StorageFailed)), wrong[0] if wrong else None)


def _examine(fs: FileSystem, directory: str, file: str, meta: SnapshotMeta) -> int | SnapshotCorruption | StorageFailed:
    """Return how long a snapshot is, or what is wrong with it. Raises `OSError` that says nothing about it.

    A disk that does not read it is a reason to take an older one, but no corruption: who has no older one is refused
    by an error that may pass, and finds the file as it was when the disk reads again.
    """
    try:
        reader = SnapshotReader(fs, directory, term=meta.term, index=meta.index)
        try:
            reader.verify()
            return reader.size_bytes
        finally:
            reader.close()
    except SnapshotCorruption as error:
        return error
    except OSError as error:
        if not is_unreadable(error):
            raise
        return StorageFailed(f"{file} cannot be read: {error}")


def _set_aside(fs: FileSystem, path: str) -> None:
    try:
        fs.rename(path, path + BROKEN_SUFFIX)
    except FileNotFoundError:
        return
