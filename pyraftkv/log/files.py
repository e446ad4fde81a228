"""`FileStorage`: the log and the snapshots of one member, in one directory.

.. code-block:: text

    DATA/  0700          event loop                writer thread           snapshot thread       reader thread
      LOCK               save() ──► queue ───────► all that is queued
      identity.a .b  mark                          = one write, one sync
      wal/*.wal          then(n) ◄─── one callback ┘
      snap/*.snap        sink.write(), commit() ──────────────────────────► file, sync, rename
                         read_entries(), read_snapshot() ──────────────────────────────────────► pread
                                                                                                  purge

Rules:

1. The loop never touches the disk, and `save` does nothing but queue.
2. While a batch is being synced the next one gathers; the writer takes it without asking the loop.
3. A save that changes nothing but the commit index is not worth a sync: it rides along with the next batch that is.
   A restart with an older commit index learns the newer one from the leader.
4. The first error of the active log is the last: `failed` is called, nothing completes any more.
   But a disk without room only lets saves wait (`full`), in their order; they are tried every `FULL_RETRY_SECONDS`. A
   vote does not wait: its hard state is written ahead of them, where room is reserved for that (`promised`).
5. An error of a snapshot file ends that snapshot and nothing else.
6. A forked child has the descriptors and none of the threads: every call in it fails, and no save completes.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from random import Random, SystemRandom
from typing import TypeVar
from weakref import WeakSet

from pyraftkv._record import record
from pyraftkv.core.ready import Save
from pyraftkv.core.types import Entry, HardState, SnapshotMeta
from pyraftkv.errors import Closed, StorageError, StorageFailed
from pyraftkv.futures import fulfil
from pyraftkv.log.base import Identity, Recovered, nothing
from pyraftkv.log.directory import Opened, open_directory
from pyraftkv.log.fs import FileSystem, NoRoom, OsFileSystem, after_fork_in_child, join
from pyraftkv.log.snapshot import SnapshotReader, SnapshotWriter, purge
from pyraftkv.log.wal import RESERVE_BYTES, SEGMENT_BYTES_MAX, Wal
from pyraftkv.log.worker import ThreadWorker, Worker, WorkerFactory, run_on

BATCH_BYTES_MAX = 8 << 20
"""The writer takes no further save into a batch that has this many bytes of payload."""
QUEUED_SAVES_MAX = 100_000
"""Saves that may wait for a disk that does not answer; one more, and the storage has failed."""

FULL_RETRY_SECONDS = 0.5
"""How long a full disk is let alone before the batch that waits is tried again."""

T = TypeVar("T")
Completed = list[tuple[Callable[[int], object], int]]
"""Whom to tell what is durable, in order."""

_log = logging.getLogger("pyraftkv.log")


@record
class _Taken:
    """A local snapshot that is durable as a file, on its way into the log."""

    meta: SnapshotMeta


@record
class _Rider:
    """A save that changed the commit index only, and completes with the saves before it."""

    ticket: int
    number: int
    then: Callable[[int], object]


class FileStorage:
    """A member's durable half, in files. Implements `pyraftkv.log.Storage`; see there for what each method promises.

    Args:
        path: The data directory; made if it is not there. It must be on a local disk, and belongs to one process.
        fs: Where the files are, for a simulated disk.
        worker: Makes the workers, for a simulator; threads unless told otherwise.
        random: Mints the incarnation and the salts.
        fsync: False gives up all durability for speed. For tests that measure something else, and never for data;
            `kind` says so.
        segment_bytes_max: A log segment is sealed at this length.
        reserve_bytes: What every segment has room for behind its last batch, for votes on a full disk; 0 for nothing.
        create: False refuses a path that holds no member, in place of making one there.
        strict_tail: True refuses a log whose end may be an unfinished batch or roll of a crash, and may be rot as well
            (`WalCorruption`). For a cluster of one, whose log nobody else has.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fs: FileSystem | None = None,
        worker: WorkerFactory = ThreadWorker,
        random: Random | None = None,
        fsync: bool = True,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        reserve_bytes: int = RESERVE_BYTES,
        create: bool = True,
        strict_tail: bool = False,
    ) -> None:
        if fs is not None and not fsync:
            raise ValueError("fsync=False is for the operating system's files; a given file system decides by itself")
        self.path = os.fspath(path)
        self._fs: FileSystem = OsFileSystem(fsync=fsync) if fs is None else fs
        self._fsync = fsync
        self._make_worker = worker
        self._random = SystemRandom() if random is None else random
        self._segment_bytes_max = segment_bytes_max
        self._reserve_bytes = reserve_bytes
        self._create = create
        self._strict_tail = strict_tail
        self._opened: Opened | None = None
        self._failure: StorageFailed | None = None
        self._closed = True
        self._abandoned = False
        self._is_full = False

    def __repr__(self) -> str:
        state = "failed" if self._failure else "closed" if self._closed else "full" if self._is_full else "open"
        return f"<FileStorage {self.path!r} {state}>"

    @property
    def kind(self) -> str:
        return "files" if self._fsync else "files-without-fsync"

    @property
    def first_index(self) -> int:
        return self._wal.first_index

    @property
    def snapshot_index(self) -> int:
        named = self._wal.named_snapshots()
        return named[-1].index if named else 0

    @property
    def log_bytes(self) -> int:
        return self._wal.log_bytes

    @property
    def _wal(self) -> Wal:
        assert self._opened is not None, "the storage was not started"
        return self._opened.wal

    # --- Start and end ------------------------------------------------------------------------------------------------

    async def start(
        self,
        *,
        failed: Callable[[BaseException], None],
        full: Callable[[bool], None] = nothing,
        promised: Callable[[int], None] = nothing,
    ) -> Recovered:
        assert self._closed, "the storage is started already"
        self._loop = asyncio.get_running_loop()
        self._failed, self._filled, self._told_promised = failed, full, promised
        self._is_full = False
        self._promise: tuple[HardState, int] | None = None
        self._failure = None
        self._abandoned = False
        self._queue: deque[tuple[Save | _Taken, Callable[[int], object]]] = deque()
        self._scheduled = False
        self._queued_count = self._completed_count = 0
        self._lagging: HardState | None = None
        self._riders: deque[_Rider] = deque()
        # Dictionaries, so that they end in an order that does not depend on their addresses, as that of a set does.
        self._adopting: dict[asyncio.Future[None], None] = {}
        self._sinks: dict[SnapshotWriter, None] = {}
        self._sink_count = 0
        self._readers: dict[SnapshotReader, None] = {}
        self._writer = self._make_worker("pyraftkv-wal")
        self._snapshotter = self._make_worker("pyraftkv-snapshot")
        self._reader = self._make_worker("pyraftkv-read")
        self._closed = False
        try:
            opened = await run_on(self._writer, self._open)
        except BaseException as error:
            self._stop()
            if isinstance(error, OSError):
                raise StorageFailed(f"{self.path} cannot be opened: {error}") from error
            raise
        self._opened = opened
        state = opened.recovered.hard_state
        self._promised = (state.term, state.vote)
        _open_storages.add(self)
        return opened.recovered

    def _open(self) -> Opened:
        return open_directory(
            self._fs,
            self.path,
            random=self._random,
            segment_bytes_max=self._segment_bytes_max,
            reserve_bytes=self._reserve_bytes,
            create=self._create,
            strict_tail=self._strict_tail,
        )

    def abandon(self) -> None:
        self._abandoned = True
        if not self._closed:
            self._end_adoptions(Closed("the storage is abandoned"))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        _open_storages.discard(self)
        if self._failure is None and not self._abandoned:
            if self._lagging is not None:
                self._queue.append((Save(0, self._lagging, [], None), nothing))
            await self._settle(self._writer, self._write_everything)
        await self._settle(self._snapshotter, self._abort_sinks)
        await self._settle(self._reader, self._close_readers)
        await self._settle(self._writer, self._wal.close)
        if self._opened is not None:
            self._fs.close(self._opened.lock_fd)
        self._stop()

    async def _settle(self, worker: Worker, job: Callable[[], object]) -> None:
        """Run a job of the closing; its error has no consequence any more that the caller could act on."""
        try:
            await run_on(worker, job)
        except Exception as error:  # noqa: BLE001 - whatever it is, the rest must still be released
            _log.warning("%s: while closing: %s", self.path, error)

    def _write_everything(self) -> None:
        while self._queue:
            completed = self._write_queued()
            self._loop.call_soon_threadsafe(self._written, completed, None)

    def _abort_sinks(self) -> None:
        while self._sinks:
            self._sinks.popitem()[0].abort()

    def _close_readers(self) -> None:
        while self._readers:
            self._readers.popitem()[0].close()

    def _stop(self) -> None:
        self._closed = True
        for worker in (self._writer, self._snapshotter, self._reader):
            worker.stop()

    def poison(self) -> None:
        """Refuse everything: this is a forked child, and the log is its parent's."""
        self._closed = True  # its threads are not here to close anything
        self._failure = StorageFailed("the storage was opened before a fork, and belongs to the parent process")
        if self._opened is not None:
            self._fs.close(self._opened.lock_fd)

    # --- Saving -------------------------------------------------------------------------------------------------------

    async def identify(
        self, *, cluster_id: int, member_id: int, promises: bool = False, rolled_back: bool = False
    ) -> Identity:
        self._check()
        assert self._opened is not None
        identity = self._opened.identity
        try:
            job = partial(
                identity.bind, cluster_id=cluster_id, member_id=member_id, promises=promises, rolled_back=rolled_back
            )
            bound = await run_on(self._writer, job)
        except OSError as error:
            raise self._fail(error) from error
        self._wal.identity = bound
        return bound

    async def rebind(self, *, cluster_id: int, incarnation: int) -> Identity:
        self._check()
        assert self._opened is not None
        identity = self._opened.identity
        job = partial(identity.rebind, cluster_id=cluster_id, incarnation=incarnation)
        try:
            bound = await run_on(self._writer, job)
        except OSError as error:
            raise self._fail(error) from error
        self._wal.identity = bound
        return bound

    def save(self, save: Save, then: Callable[[int], None]) -> None:
        if self._failure is not None or self._abandoned:
            return
        state = save.hard_state
        if not save.entries and save.snapshot is None and (state is None or (state.term, state.vote) == self._promised):
            self._ride(save, then)
            return
        if state is not None:
            self._promised = (state.term, state.vote)
            self._promise = (state, save.number)
        elif self._lagging is not None:
            save = Save(save.number, self._lagging, save.entries, save.snapshot)
        self._lagging = None
        self._enqueue(save, then if save.snapshot is None else partial(self._replaced, then))
        if self._is_full and state is not None:
            self._write_ahead()

    def _ride(self, save: Save, then: Callable[[int], None]) -> None:
        if save.hard_state is not None:
            self._lagging = save.hard_state
        if self._completed_count == self._queued_count:
            self._loop.call_soon(then, save.number)
        else:
            self._riders.append(_Rider(self._queued_count, save.number, then))

    def _enqueue(self, item: Save | _Taken, then: Callable[[int], object]) -> None:
        if self._closed or self._abandoned:
            raise Closed("the storage is closed")
        if len(self._queue) >= QUEUED_SAVES_MAX:
            self._fail(StorageFailed(f"the disk is {QUEUED_SAVES_MAX} saves behind"))
            return
        self._queued_count += 1
        self._queue.append((item, then))
        # The writer lowers the flag before it looks at the queue, so whatever it does not see raises it again.
        if not self._is_full:
            self._schedule()

    def _schedule(self) -> None:
        if self._queue and not self._scheduled:
            self._scheduled = True
            self._writer.submit(self._write_queued, self._written)

    def _write_queued(self) -> Completed:
        """Write one batch of what is queued. Runs on the writer."""
        self._scheduled = False
        queue = self._queue
        items: list[tuple[Save | _Taken, Callable[[int], object]]] = []
        saves: list[Save] = []
        taken: list[SnapshotMeta] = []
        completed: Completed = []
        size_bytes = 0
        while queue and size_bytes < BATCH_BYTES_MAX and not self._abandoned:
            item, then = queue.popleft()
            items.append((item, then))
            if isinstance(item, Save):
                saves.append(item)
                size_bytes += sum([len(entry.payload) for entry in item.entries])
                completed.append((then, item.number))
            else:
                taken.append(item.meta)
                completed.append((then, 0))
        if completed:
            try:
                self._wal.append(saves, taken=taken)
            except NoRoom:
                queue.extendleft(reversed(items))
                raise
        if queue and not self._scheduled and not self._abandoned:
            self._scheduled = True
            self._writer.submit(self._write_queued, self._written)
        return completed

    def _written(self, completed: Completed | None, error: BaseException | None) -> None:
        if self._failure is not None or self._abandoned:
            return
        if isinstance(error, NoRoom):
            self._wait_for_room(error)
            return
        if completed is None:
            self._fail(error)
            return
        if self._is_full:
            self._set_full(full=False)
        last = len(completed) - 1
        for position, (then, number) in enumerate(completed):
            # A completion stands for the earlier ones of the same listener.
            if position == last or completed[position + 1][0] != then:
                then(number)
        self._completed_count += last + 1
        while self._riders and self._riders[0].ticket <= self._completed_count:
            rider = self._riders.popleft()
            rider.then(rider.number)
        self._schedule()  # what came while the disk was full has waited for nobody else

    # --- A full disk --------------------------------------------------------------------------------------------------

    def _wait_for_room(self, error: NoRoom) -> None:
        """Let saves wait; what was voted does not."""
        if self._closed:
            return
        if not self._is_full:
            _log.error("%s: no room on the disk, saves wait for it: %s", self.path, error)
            self._set_full(full=True)
        self._write_ahead()
        self._loop.call_later(FULL_RETRY_SECONDS, self._try_again, self._opened)

    def _set_full(self, *, full: bool) -> None:
        self._is_full = full
        self._filled(full)

    def _try_again(self, opened: Opened | None) -> None:
        if opened is self._opened and not self._closed and not self._abandoned and self._failure is None:
            self._schedule()

    def _write_ahead(self) -> None:
        """Make the newest term and vote durable, ahead of the saves that wait."""
        promise = self._promise
        if promise is not None:
            state, number = promise
            self._writer.submit(partial(self._wal.promise, state), partial(self._ahead, number))

    def _ahead(self, number: int, _: None, error: BaseException | None) -> None:
        if self._failure is not None or self._abandoned:
            return
        if error is None:
            self._told_promised(number)
        elif isinstance(error, NoRoom):
            _log.warning("%s: there is no room even for a vote: %s", self.path, error)
        else:
            self._fail(error)

    def _fail(self, error: BaseException | None) -> StorageFailed:
        """Fail for good, once; return what every later call raises."""
        if self._failure is None:
            self._failure = StorageFailed(f"{self.path}: the log failed: {error!r}")
            self._failure.__cause__ = error
            self._end_adoptions(self._failure)
            self._failed(self._failure)
        return self._failure

    def _end_adoptions(self, error: Exception) -> None:
        for future in self._adopting:
            if not future.done():
                future.set_exception(error)

    # --- Reading ------------------------------------------------------------------------------------------------------

    async def read_entries(self, *, lo: int, hi: int, bytes_max: int) -> list[Entry]:
        self._check()
        job = partial(self._wal.read, lo=lo, hi=hi, bytes_max=bytes_max)
        try:
            return await run_on(self._reader, job)
        except OSError as error:
            raise StorageError(f"{self.path}: entries from {lo} cannot be read: {error}") from error

    async def read_snapshot(self, meta: SnapshotMeta, *, from_chunk: int = 0) -> AsyncIterator[bytes]:
        self._check()
        reader: SnapshotReader | None = None
        try:
            reader = await run_on(self._reader, partial(self._open_reader, meta))
            chunks = reader.chunks(from_chunk=from_chunk)
            while (chunk := await run_on(self._reader, partial(next, chunks, None))) is not None:
                yield chunk
                self._check()
        except OSError as error:
            raise StorageError(f"{self.path}: the snapshot at {meta.index} cannot be read: {error}") from error
        finally:
            # On the reader, behind whatever still reads there; `close` takes care of those it finds.
            if reader is not None and not self._closed:
                self._reader.submit(partial(self._close_reader, reader), nothing)

    def _open_reader(self, meta: SnapshotMeta) -> SnapshotReader:
        reader = SnapshotReader(self._fs, join(self.path, "snap"), term=meta.term, index=meta.index)
        self._readers[reader] = None
        return reader

    def _close_reader(self, reader: SnapshotReader) -> None:
        if reader in self._readers:
            del self._readers[reader]
            reader.close()

    # --- Snapshots ----------------------------------------------------------------------------------------------------

    def create_snapshot(self, meta: SnapshotMeta, *, received: bool = False) -> FileSnapshotSink:
        self._check()
        self._sink_count += 1
        return FileSnapshotSink(self, meta, received=received, number=self._sink_count)

    async def run_snapshot_job(self, job: Callable[[], T]) -> T:
        """Run a job of a sink on the snapshot worker. Raises `StorageError` in place of `OSError`."""
        self._check()
        try:
            return await run_on(self._snapshotter, job)
        except OSError as error:
            raise StorageError(f"{self.path}: the snapshot cannot be written: {error}") from error

    def begin_snapshot(self, meta: SnapshotMeta, number: int) -> SnapshotWriter:
        """Begin a snapshot file. Runs on the snapshot worker."""
        directory = join(self.path, "snap")
        writer = SnapshotWriter(self._fs, directory, meta, cluster_id=self._wal.identity.cluster_id, number=number)
        self._sinks[writer] = None
        return writer

    def end_snapshot(self, writer: SnapshotWriter, *, keep: bool) -> None:
        """Finish or abort a snapshot file. Runs on the snapshot worker."""
        self._sinks.pop(writer, None)
        if keep:
            writer.finish()
        else:
            writer.abort()

    async def adopt_snapshot(self, meta: SnapshotMeta) -> None:
        """Name a local snapshot in the log, and remove what it replaces."""
        self._check()
        named: asyncio.Future[None] = self._loop.create_future()
        self._adopting[named] = None

        def is_named(_number: int) -> None:
            fulfil(named, None)

        try:
            self._enqueue(_Taken(meta), is_named)
            await named
        finally:
            self._adopting.pop(named, None)
        await run_on(self._reader, self._purge)

    def _replaced(self, then: Callable[[int], None], number: int) -> None:
        """A received snapshot replaced the log."""
        then(number)
        self._reader.submit(self._purge, nothing)

    def _purge(self) -> None:
        """Remove what the snapshots in use replaced. Runs on the reader, so that no read loses its file."""
        try:
            self._wal.purge()
            purge(self._fs, join(self.path, "snap"), named=self._wal.named_snapshots())
        except OSError as error:
            _log.warning("%s: old files stay for now: %s", self.path, error)

    # --- Helpers ------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise Closed("the storage is closed")


class FileSnapshotSink:
    """A snapshot on its way into a file. Implements `pyraftkv.log.SnapshotSink`.

    Made by `FileStorage.create_snapshot`; the file itself is begun by the first call.
    """

    def __init__(self, storage: FileStorage, meta: SnapshotMeta, *, received: bool, number: int) -> None:
        self._storage = storage
        self._meta = meta
        self._received = received
        self._number = number
        self._writer: SnapshotWriter | None = None
        self._ended = False

    async def _begin(self) -> SnapshotWriter:
        if self._ended:
            raise StorageError("the snapshot is committed or aborted")
        if self._writer is None:
            begin = partial(self._storage.begin_snapshot, self._meta, self._number)
            self._writer = await self._storage.run_snapshot_job(begin)
        return self._writer

    async def write(self, chunk: bytes) -> None:
        writer = await self._begin()
        try:
            await self._storage.run_snapshot_job(partial(writer.write, chunk))
        except StorageError:
            self._ended = True
            raise

    async def commit(self) -> None:
        writer = await self._begin()
        self._ended = True
        keep = self._received or self._meta.index > self._storage.snapshot_index
        await self._storage.run_snapshot_job(partial(self._storage.end_snapshot, writer, keep=keep))
        if keep and not self._received:
            await self._storage.adopt_snapshot(self._meta)

    async def abort(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self._writer is not None:
            await self._storage.run_snapshot_job(partial(self._storage.end_snapshot, self._writer, keep=False))


_open_storages: WeakSet[FileStorage] = WeakSet()


def _poison_all() -> None:
    for storage in list(_open_storages):
        storage.poison()


after_fork_in_child(_poison_all)
