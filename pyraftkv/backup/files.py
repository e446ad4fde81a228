"""A saved snapshot: one file with everything that a cluster had agreed on at one revision.

It has the layout of the snapshots in a member's own directory (`log.snapshot`), so that one of those will do as well
where there is nothing better. Written under a temporary name, synced and renamed: a file of the right name is whole.
Whoever sends the parts says the SHA-256 of all of them in the end, and what was received is compared with that before
the file gets its name.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from pyraftkv import errors
from pyraftkv._record import record
from pyraftkv.core.types import SnapshotMeta
from pyraftkv.futures import shared
from pyraftkv.log.fs import FileSystem, OsFileSystem, parent
from pyraftkv.log.snapshot import SnapshotReader, SnapshotWriter
from pyraftkv.machines import Machines
from pyraftkv.protocol import MemberInfo, SnapshotPart
from pyraftkv.replica import Replica, ReplicaRestorer

T = TypeVar("T")


@record
class SavedSnapshot:
    """What was saved."""

    path: str
    cluster_id: int
    index: int
    """Of the last entry in it."""
    term: int
    revision: int
    size_bytes: int
    sha256: str
    """Of the data in it."""


@record
class SnapshotStatus:
    """What a file holds, every byte of it checked."""

    path: str
    cluster_id: int
    index: int
    term: int
    revision: int
    compact_revision: int
    keys: int
    size_bytes: int
    """Of the file."""
    sha256: str
    members: list[MemberInfo]
    """Of the cluster that it was taken in."""


async def save(
    path: str | os.PathLike[str], parts: AsyncIterator[SnapshotPart], *, fs: FileSystem | None = None
) -> SavedSnapshot:
    """Write the parts to a file, in place of one that may be there. The disk is not touched on the event loop.

    Raises: `StorageError` if it cannot be written, `SnapshotCorruption` if it is not what was sent, what `parts` does.
    """
    target, name = place_of(path)
    disk = fs or OsFileSystem()
    writer: SnapshotWriter | None = None
    await _off_the_loop(target, partial(_refuse_no_file, target))
    try:
        async for part in parts:
            if writer is None:
                begin = partial(SnapshotWriter, disk, parent(target), part.meta, number=0, name=name)
                writer = await _off_the_loop(target, partial(begin, cluster_id=part.cluster_id))
            await _off_the_loop(target, partial(_write, writer, part.chunks))
            if not part.sha256:
                continue
            if part.sha256 != writer.sha256:
                raise errors.SnapshotCorruption(f"{target}: what was received is not what was sent", path=target)
            await _off_the_loop(target, writer.finish)
            meta, digest = part.meta, part.sha256.hex()
            return SavedSnapshot(
                target, part.cluster_id, meta.index, meta.term, part.revision, writer.size_bytes, digest
            )
    finally:
        if writer is not None:
            await _off_the_loop(target, writer.abort)
    raise errors.SnapshotCorruption(f"{target}: the snapshot ends without its last part", path=target)


def place_of(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Return the absolute path, and the name alone."""
    target = Path(path).absolute()
    return str(target), target.name


def _refuse_no_file(target: str) -> None:
    """Refuse what is there and is no file. Raises `StorageError`.

    1. Whoever wants to see whether a save works names ``/dev/null``. 2. The snapshot is renamed to it, as to any other
    name: the device is gone, for every program of the machine. And to read a pipe is to wait for its other end.
    """
    if Path(target).exists() and not Path(target).is_file():
        raise errors.StorageError(f"{target} is no file")


def _write(writer: SnapshotWriter, chunks: list[bytes]) -> None:
    for chunk in chunks:
        writer.write(chunk)


async def _off_the_loop(path: str, job: Callable[[], T]) -> T:
    """Run a job of the disk in a thread, and wait for its end even when cancelled. Raises `StorageError`.

    1. A write is under way in its thread when whoever saves is cancelled.
    2. The file is closed. The next file that anybody opens gets its descriptor, and the rest of the write.
    """
    running = asyncio.get_running_loop().run_in_executor(None, job)
    try:
        return await shared(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        running.exception()  # of no use to who was cancelled, and looked at, so that nobody reports it
        raise
    except OSError as error:
        raise errors.StorageError(f"{path} cannot be written: {error}") from error


async def load(path: str | os.PathLike[str], *, fs: FileSystem | None = None) -> tuple[Replica, SnapshotStatus]:
    """Read a file and build what it holds. O(bytes), as much memory as a member with that data.

    Raises: `SnapshotCorruption` with the place of the first byte that is not as it was written, `UnsupportedFormat`,
        `StorageError` if it cannot be read.
    """
    target, name = place_of(path)
    disk = fs or OsFileSystem(read_only=True)
    _refuse_no_file(target)
    try:
        reader = SnapshotReader(disk, parent(target), name=name)
        try:
            replica = await _restore(reader, reader.meta)
            size_bytes = reader.size_bytes
        finally:
            reader.close()
    except OSError as error:
        raise errors.StorageError(f"{target} cannot be read: {error}") from error
    store, meta = replica.store, reader.meta
    status = SnapshotStatus(
        path=target,
        cluster_id=reader.cluster_id,
        index=meta.index,
        term=meta.term,
        revision=store.published_revision,
        compact_revision=store.compact_revision,
        keys=store.key_count,
        size_bytes=size_bytes,
        sha256=reader.sha256.hex(),
        members=list(replica.roster.members.values()),
    )
    return replica, status


async def _restore(reader: SnapshotReader, meta: SnapshotMeta) -> Replica:
    restorer = ReplicaRestorer(index=meta.index, term=meta.term, machines=Machines(keeps_all=True))
    try:
        for chunk in reader.chunks():
            restorer.feed(chunk)
            await asyncio.sleep(0)
        return restorer.finish()
    except errors.SnapshotCorruption as error:
        if error.path:
            raise
        raise errors.SnapshotCorruption(f"{reader.path}: {error}", path=reader.path, offset=error.offset) from error


async def snapshot_status(path: str | os.PathLike[str]) -> SnapshotStatus:
    """Check a saved snapshot, or one of a member's directory, and say what it holds. O(bytes).

    Raises: `SnapshotCorruption` with the place of the damage, `UnsupportedFormat`, `StorageError`.
    """
    return (await load(path))[1]
