"""`FileStorage`: the contract of `Storage` on files, threads and all."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from pyraftkv.core.ready import Save
from pyraftkv.core.types import Entry, HardState, Membership, SnapshotMeta
from pyraftkv.errors import (
    Closed,
    DataDirLocked,
    ForeignDataDir,
    SnapshotCorruption,
    StorageError,
    StorageFailed,
    WalCorruption,
)
from pyraftkv.log import FileStorage, OsFileSystem, Storage
from pyraftkv.log import files as files_module
from pyraftkv.log.directory import Opened
from pyraftkv.log.identity import SLOT_NAMES
from pyraftkv.log.record import BatchEncoder
from pyraftkv.log.segment import BLOCK_BYTES, SegmentScanner, unpack_segment_header
from pyraftkv.log.snapshot import SnapshotWriter
from pyraftkv.sim.disk import DiskFaults, SimFS
from tests.log.disks import LoopWorker, blank, fail, heal, trace, twin

MEMBERS = Membership(voters=frozenset({1}))


def unexpected(error: BaseException) -> None:
    """The `failed` callback, or the completion, of tests where none may come."""
    raise AssertionError("the storage failed") from error


def entries(first: int, count: int, term: int = 1) -> list[Entry]:
    """`count` entries from `first` on, each with bytes of its own."""
    return [Entry(first + i, term, b"%d" % (first + i) * 20) for i in range(count)]


def meta(index: int, term: int = 1) -> SnapshotMeta:
    """A snapshot at that index."""
    return SnapshotMeta(index=index, term=term, membership=MEMBERS)


async def save(storage, number: int, of=(), *, state=None, snapshot=None) -> int:
    """Save and wait until it is durable."""
    done = asyncio.get_running_loop().create_future()
    storage.save(Save(number, state, list(of), snapshot), done.set_result)
    return await done


async def take(storage, at: SnapshotMeta, chunks=(b"state",), *, received=False) -> None:
    """Write and commit a snapshot."""
    sink = storage.create_snapshot(at, received=received)
    for chunk in chunks:
        await sink.write(chunk)
    await sink.commit()


async def restored(storage, at: SnapshotMeta, from_chunk=0) -> list[bytes]:
    """Read a snapshot."""
    return [chunk async for chunk in storage.read_snapshot(at, from_chunk=from_chunk)]


def simulated(fs, **options) -> FileStorage:
    """A storage on a simulated disk, without threads; its files end with the last batch."""

    def worker(_name):
        return LoopWorker(asyncio.get_running_loop().create_future())

    return FileStorage("/data", fs=fs, worker=worker, **{"random": Random(1), "reserve_bytes": 0, **options})


def run(coroutine):
    """Run one test's coroutine."""
    return asyncio.run(coroutine)


def test_a_life_on_a_real_disk(tmp_path):
    """Start, bind, save, close; start again and find it all."""
    path = tmp_path / "deep" / "data"

    async def first():
        storage: Storage = FileStorage(path)
        assert storage.kind == "files"
        recovered = await storage.start(failed=unexpected)
        assert (recovered.identity.boot_count, recovered.identity.cluster_id) == (1, 0)
        assert (recovered.entries, recovered.first_index, recovered.snapshot) == ([], 1, None)
        bound = await storage.identify(cluster_id=1 << 60, member_id=3)
        assert (bound.cluster_id, bound.member_id) == (1 << 60, 3)
        assert await save(storage, 1, entries(1, 10), state=HardState(2, 1, 0)) == 1
        assert await storage.read_entries(lo=3, hi=5, bytes_max=1 << 20) == entries(3, 2)
        assert storage.log_bytes > 10 * 20
        await storage.close()
        await storage.close()
        return bound

    async def second(bound):
        storage = FileStorage(path)
        recovered = await storage.start(failed=unexpected)
        assert recovered.identity.boot_count == 2
        assert recovered.identity.incarnation == bound.incarnation
        assert (recovered.entries, recovered.hard_state) == (entries(1, 10), HardState(2, 1, 0))
        with pytest.raises(ForeignDataDir):
            await storage.identify(cluster_id=1 << 60, member_id=4)
        await storage.close()

    run(second(run(first())))
    assert path.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in path.rglob("*") if file.is_file()} == {0o600}


def test_a_log_outlives_a_change_of_cluster_and_incarnation(tmp_path):
    """Segments from before and after a recovery are one log, and another directory's are still refused."""

    async def life(path, *, cluster_id: int, first: int) -> None:
        storage = FileStorage(path, segment_bytes_max=BLOCK_BYTES + 1)
        recovered = await storage.start(failed=unexpected)
        assert recovered.entries == entries(1, first - 1)
        if recovered.identity.cluster_id == 0:
            await storage.identify(cluster_id=cluster_id, member_id=3)
        else:
            await storage.rebind(cluster_id=cluster_id, incarnation=cluster_id)
        for index in range(first, first + 3):
            await save(storage, index, entries(index, 1), state=HardState(1, 0, index))
        await storage.close()

    mine, other = tmp_path / "mine", tmp_path / "other"
    for cluster_id, first in ((7, 1), (8, 4), (9, 7)):
        run(life(mine, cluster_id=cluster_id, first=first))
        run(life(other, cluster_id=cluster_id, first=first))
    stranger = max((other / "wal").iterdir())
    shutil.copy(stranger, mine / "wal" / stranger.name)
    with pytest.raises(ForeignDataDir, match="another data directory"):
        run(life(mine, cluster_id=10, first=10))


def test_an_error_while_rebinding_is_final():
    """As while binding."""
    fs = blank()

    async def main():
        failures = []
        storage = simulated(fs)
        await storage.start(failed=failures.append)
        fail(fs, lambda operation, path: errno.EIO if operation == "fdatasync" and "identity" in path else 0)
        with pytest.raises(StorageFailed):
            await storage.rebind(cluster_id=1, incarnation=1)
        assert len(failures) == 1
        heal(fs)
        await storage.close()

    run(main())


def test_a_path_without_a_member_is_left_alone(tmp_path):
    """With `create=False` nothing is made where nothing was; a directory that was used is opened."""
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("missing", "empty", "file"):
        with pytest.raises(StorageError, match="no member's data directory"):
            run(FileStorage(tmp_path / name, create=False).start(failed=unexpected))
    assert not (tmp_path / "missing").exists()
    assert list((tmp_path / "empty").iterdir()) == []

    async def used():
        for create in (True, False):
            storage = FileStorage(tmp_path / "used", create=create)
            await storage.start(failed=unexpected)
            await storage.close()

    run(used())


def test_the_state_is_told_by_repr(tmp_path):
    """Open, closed, failed."""

    async def main():
        storage = FileStorage(tmp_path)
        assert "closed" in repr(storage)
        await storage.start(failed=lambda _error: None)
        assert "open" in repr(storage)
        storage._fail(OSError(5, "x"))
        assert "failed" in repr(storage)
        await storage.close()

    run(main())


def test_a_start_syncs_every_directory_before_it_believes_a_name():
    """The process before may have been killed between making a name and syncing it."""

    async def main():
        fs = await with_snapshots(300)
        fs.disk.trace.clear()
        storage = simulated(fs)
        await storage.start(failed=unexpected)
        for synced, believed in (
            ("fsync_dir /", "lock /data/LOCK"),
            ("fsync_dir /data", "open /data/identity.a"),
            ("fsync_dir /data/snap", "listdir /data/snap"),
            ("fsync_dir /data/wal", f"open /data/wal/{fs.listdir('/data/wal')[0]}"),
        ):
            assert trace(fs).index(synced) < trace(fs).index(believed)
        await storage.close()

    run(main())


def test_two_opens_of_one_directory(tmp_path):
    """The second is refused for as long as the first is open."""

    async def main():
        first, second = FileStorage(tmp_path), FileStorage(tmp_path)
        await first.start(failed=unexpected)
        with pytest.raises(DataDirLocked, match="in use by this process"):
            await second.start(failed=unexpected)
        await first.close()
        await second.start(failed=unexpected)
        await second.close()

    run(main())


@pytest.mark.parametrize("attempt", range(4))
def test_of_two_that_open_at_one_moment_one_is_let_in(tmp_path, attempt):
    """A directory that is not there yet: both make it, and one of them is refused before it has written anything."""
    path, ready = str(tmp_path / "above" / "data"), threading.Barrier(2)

    def start() -> Opened | DataDirLocked:
        storage = FileStorage(path, random=Random(attempt))
        ready.wait()
        try:
            return storage._open()
        except DataDirLocked as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        ends = [each.result() for each in [pool.submit(start), pool.submit(start)]]
    (opened,) = [end for end in ends if isinstance(end, Opened)]
    assert opened.recovered.identity.boot_count == 1
    opened.wal.close()
    os.close(opened.lock_fd)


def test_storage_without_fsync_says_so(tmp_path):
    """The name of the thing warns."""
    assert FileStorage(tmp_path, fsync=False).kind == "files-without-fsync"
    with pytest.raises(ValueError, match="fsync"):
        FileStorage(tmp_path, fs=OsFileSystem(), fsync=False)


def test_saves_queued_together_share_one_sync_and_complete_in_order():
    """A storm of saves is one write, and each listener hears of its last one."""

    async def main():
        fs = blank()
        storage = simulated(fs)
        await storage.start(failed=unexpected)
        path = f"/data/wal/{fs.listdir('/data/wal')[0]}"
        fs.disk.trace.clear()
        heard, others = [], []
        for number in range(1, 50):
            storage.save(Save(number, None, entries(number, 1), None), heard.append)
        storage.save(Save(50, None, entries(50, 1), None), others.append)
        storage.save(Save(51, None, entries(51, 1), None), heard.append)
        assert trace(fs) == []
        await save(storage, 52, entries(52, 1))
        assert [line for line in trace(fs) if "/mark" not in line] == [f"pwrite {path}", f"fdatasync {path}"]
        assert (heard, others) == ([49, 51], [50])
        await storage.close()

    run(main())


def test_a_batch_is_bounded_in_bytes(monkeypatch):
    """A queue longer than a batch becomes several, without another save."""
    monkeypatch.setattr(files_module, "BATCH_BYTES_MAX", 100)

    async def main():
        fs = blank()
        storage = simulated(fs)
        await storage.start(failed=unexpected)
        fs.disk.trace.clear()
        heard = []
        for number in range(1, 8):
            storage.save(Save(number, None, [Entry(number, 1, bytes(60))], None), heard.append)
        await storage.close()
        assert heard == [2, 4, 6, 7]
        assert sum(line.startswith("fdatasync") for line in trace(fs)) == 4

    run(main())


def test_a_commit_index_alone_is_not_worth_a_sync():
    """It completes at once when idle, after what is under way otherwise, and is written along with the next batch."""

    async def main():
        fs = blank()
        storage = simulated(fs)
        await storage.start(failed=unexpected)
        await save(storage, 1, entries(1, 3), state=HardState(1, 1, 0))
        fs.disk.trace.clear()
        order = []
        await save(storage, 2, state=HardState(1, 1, 2))
        assert trace(fs) == []
        storage.save(Save(3, None, entries(4, 1), None), order.append)
        storage.save(Save(4, HardState(1, 1, 3), [], None), lambda number: order.append(-number))
        storage.save(Save(5, None, [], None), lambda number: order.append(-number))
        assert order == []
        await save(storage, 6, entries(5, 1))
        assert order == [3, -4, -5]
        assert storage._wal.hard_state == HardState(1, 1, 3)
        await save(storage, 7, state=HardState(1, 1, 5))
        await storage.close()
        again = simulated(fs)
        recovered = await again.start(failed=unexpected)
        assert recovered.hard_state == HardState(1, 1, 5), "closing writes what lagged"
        await again.close()

    run(main())


def test_a_vote_is_never_only_ridden_along():
    """A changed term or vote is synced before it completes, without any entry."""

    async def main():
        fs = blank()
        storage = simulated(fs)
        await storage.start(failed=unexpected)
        for number, state in enumerate((HardState(1, 0, 0), HardState(1, 2, 0), HardState(2, 0, 0)), 1):
            fs.disk.trace.clear()
            await save(storage, number, state=state)
            assert [line.split()[0] for line in trace(fs)] == ["pwrite", "fdatasync", "pwrite"]  # and its mark
        await storage.close()

    run(main())


@pytest.mark.parametrize("operation", ["pwrite", "fdatasync"])
def test_an_error_of_the_active_log_is_final(operation):
    """`failed` is called once, nothing completes any more, no file is touched again, the lock is released."""

    async def main():
        fs = blank()
        storage = simulated(fs)
        failures, heard = [], []
        await storage.start(failed=failures.append)
        await save(storage, 1, entries(1, 1))
        adopting = asyncio.ensure_future(take(storage, meta(1)))
        fail(fs, lambda name, path: errno.EIO if name == operation and path.endswith(".wal") else 0)
        with pytest.raises(StorageFailed):
            await adopting
        storage.save(Save(2, None, entries(2, 1), None), heard.append)
        heal(fs)
        fs.disk.trace.clear()
        storage.save(Save(3, None, entries(3, 1), None), heard.append)
        with pytest.raises(StorageFailed):
            await storage.read_entries(lo=1, hi=2, bytes_max=1)
        with pytest.raises(StorageFailed):
            storage.create_snapshot(meta(1))
        await storage.close()
        assert len(failures) == 1
        assert isinstance(failures[0], StorageFailed)
        assert isinstance(failures[0].__cause__, OSError)
        assert heard == []
        assert trace(fs) == []
        assert fs.disk.locked == set()
        assert fs.fds == {}

    run(main())


def test_saves_under_way_when_the_log_fails_never_complete():
    """Not the batch that failed, not the one behind it, not the commit indexes that rode along."""

    async def main():
        fs = blank()
        storage = simulated(fs)
        failed = asyncio.get_running_loop().create_future()
        await storage.start(failed=failed.set_result)
        fail(fs, lambda name, _path: errno.EIO if name == "fdatasync" else 0)
        heard = []
        storage.save(Save(1, None, entries(1, 1), None), heard.append)
        storage.save(Save(2, HardState(0, 0, 1), [], None), heard.append)
        await asyncio.sleep(0)
        storage.save(Save(3, None, entries(2, 1), None), heard.append)
        await failed
        for _ in range(5):
            await asyncio.sleep(0)
        assert heard == []
        await storage.close()

    run(main())


def test_a_batch_that_succeeds_after_the_failure_does_not_complete():
    """An error elsewhere (binding, say) ends everything, whatever the writer still brings home."""

    async def main():
        storage = simulated(blank())
        failures, heard = [], []
        await storage.start(failed=failures.append)
        storage.save(Save(1, None, entries(1, 1), None), heard.append)
        storage._fail(OSError(errno.EIO, "elsewhere"))
        await asyncio.sleep(0)
        await storage.close()
        assert (heard, len(failures)) == ([], 1)

    run(main())


def test_a_disk_that_does_not_answer_fails_the_storage_in_the_end(monkeypatch):
    """The queue is bounded."""
    monkeypatch.setattr(files_module, "QUEUED_SAVES_MAX", 3)

    async def main():
        storage = simulated(blank())
        failures = []
        await storage.start(failed=failures.append)
        for number in range(1, 5):
            storage.save(Save(number, None, entries(number, 1), None), unexpected)
        assert len(failures) == 1
        await storage.close()

    run(main())


def test_an_error_while_binding_is_final():
    """Nobody knows what the slots hold then."""

    async def main():
        fs = blank()
        storage = simulated(fs)
        failures = []
        await storage.start(failed=failures.append)
        fail(fs, lambda name, path: errno.EIO if "identity" in path else 0)
        with pytest.raises(StorageFailed):
            await storage.identify(cluster_id=1, member_id=1)
        assert len(failures) == 1
        await storage.close()

    run(main())


@pytest.mark.parametrize("operation", ["make_dir", "lock", "create", "pwrite", "fdatasync", "fsync_dir", "listdir"])
def test_a_disk_that_refuses_the_start(operation):
    """Whatever goes wrong while opening, nothing stays open or locked, and the next try may succeed."""

    async def main():
        fs = blank()
        fail(fs, lambda name, _path: errno.EIO if name == operation else 0)
        storage = simulated(fs)
        with pytest.raises(StorageFailed):
            await storage.start(failed=unexpected)
        assert (fs.fds, fs.disk.locked) == ({}, set())
        heal(fs)
        await storage.start(failed=unexpected)
        await storage.close()

    run(main())


def test_every_operation_of_a_start_may_fail():
    """One error at each operation in turn: it refuses and leaves nothing open, or does without what it cannot read."""

    async def main():
        fs = blank()
        storage = simulated(fs, segment_bytes_max=8192)
        await storage.start(failed=unexpected)
        for number in range(1, 30):
            await save(storage, number, entries(20 * number - 19, 20), state=HardState(1, 1, 20 * number - 20))
        await take(storage, meta(100))
        await take(storage, meta(200))
        await storage.close()
        at = 0
        while True:
            copy = twin(fs)
            at += 1
            fail(copy, lambda _name, _path, copy=copy, at=at: errno.EIO if copy.disk.operations == at else 0)
            storage = simulated(copy, segment_bytes_max=8192)
            try:
                recovered = await storage.start(failed=unexpected)
            except StorageFailed:
                assert (copy.fds, copy.disk.locked) == ({}, set())
                recovered = await storage.start(failed=unexpected)
            base = recovered.snapshot.index
            assert (base, recovered.repaired != "") in ((200, False), (100, True))
            assert (recovered.entries, recovered.hard_state.commit) == (entries(base + 1, 580 - base), 560)
            await storage.close()
            if copy.disk.operations < at:
                return

    run(main())


def test_snapshots_purge_what_they_replace():
    """Two are kept, and the log back to the older; a reader that had one open keeps reading it."""

    async def main():
        fs = blank()
        storage = simulated(fs, segment_bytes_max=8192)
        await storage.start(failed=unexpected)
        for number in range(1, 50):
            await save(storage, number, entries(20 * number - 19, 20), state=HardState(1, 1, 20 * number - 20))
        await take(storage, meta(200), [b"a", b"b"])
        assert storage.first_index == 1
        reading = storage.read_snapshot(meta(200))
        assert await anext(reading) == b"a"
        for index in (400, 600):
            before = storage.log_bytes
            await take(storage, meta(index), [b"%d" % index])
            assert storage.log_bytes < before
        assert 200 < storage.first_index <= 401
        assert await anext(reading) == b"b"
        await reading.aclose()
        assert await storage.read_entries(lo=storage.first_index - 1, hi=900, bytes_max=1) == []
        with pytest.raises(SnapshotCorruption):
            await restored(storage, meta(200))
        assert await restored(storage, meta(400)) == [b"400"]
        await storage.close()
        assert fs.fds == {}

    run(main())


def test_a_snapshot_can_be_read_from_any_chunk(tmp_path):
    """A transfer that broke goes on where it was."""

    async def main():
        storage = FileStorage(tmp_path)
        await storage.start(failed=unexpected)
        await save(storage, 1, entries(1, 9))
        await take(storage, meta(5), [b"a", b"b", b"c"])
        assert await restored(storage, meta(5), from_chunk=1) == [b"b", b"c"]
        await storage.close()

    run(main())


def test_a_received_snapshot_is_used_once_a_save_names_it():
    """Readable from its commit on, in use from its save on, forgotten by a start in between."""

    async def main():
        fs = blank()
        storage = simulated(fs, segment_bytes_max=8192)
        await storage.start(failed=unexpected)
        for number in range(1, 30):
            await save(storage, number, entries(20 * number - 19, 20))
        await take(storage, meta(900, 3), [b"leader"], received=True)
        assert await restored(storage, meta(900, 3)) == [b"leader"]
        unnamed = twin(fs)
        await save(storage, 31, snapshot=meta(900, 3), state=HardState(3, 0, 900))
        await save(storage, 32, entries(901, 1, term=3))
        assert (storage.first_index, await storage.read_entries(lo=900, hi=901, bytes_max=1)) == (901, [])
        await storage.close()
        assert len(fs.listdir("/data/wal")) == 1

        storage = simulated(fs)
        recovered = await storage.start(failed=unexpected)
        assert (recovered.snapshot, recovered.entries) == (meta(900, 3), entries(901, 1, term=3))
        assert recovered.snapshot_bytes > len(b"leader")
        assert await restored(storage, meta(900, 3)) == [b"leader"]
        await storage.close()

        storage = simulated(unnamed)
        recovered = await storage.start(failed=unexpected)
        assert (recovered.snapshot, recovered.snapshot_bytes, len(recovered.entries)) == (None, 0, 580)
        assert unnamed.listdir("/data/snap") == []
        await storage.close()

    run(main())


def test_a_snapshot_error_ends_that_snapshot_only():
    """The log goes on, and another snapshot may succeed."""

    async def main():
        fs = blank()
        storage = simulated(fs)
        await storage.start(failed=unexpected)
        await save(storage, 1, entries(1, 9), state=HardState(1, 1, 9))
        for operation in ("create", "pwrite", "fdatasync", "rename", "fsync_dir"):
            fail(
                fs,
                lambda name, path, operation=operation: errno.ENOSPC if name == operation and "/snap" in path else 0,
            )
            sink = storage.create_snapshot(meta(5))
            with pytest.raises(StorageError) as caught:  # noqa: PT012 - either may be the first to meet the error
                await sink.write(b"x")
                await sink.commit()
            assert not isinstance(caught.value, StorageFailed)
            await sink.abort()
        heal(fs)
        await save(storage, 2, entries(10, 1))
        await take(storage, meta(5))
        await storage.close()
        assert fs.fds == {}

    run(main())


def test_an_aborted_snapshot_leaves_nothing():
    """Before or after the first chunk, twice, after a commit."""

    async def main():
        fs = blank()
        storage = simulated(fs)
        await storage.start(failed=unexpected)
        await save(storage, 1, entries(1, 9))
        unbegun, begun, done = (storage.create_snapshot(meta(index)) for index in (3, 4, 5))
        await begun.write(b"x")
        await unbegun.abort()
        await begun.abort()
        await begun.abort()
        with pytest.raises(StorageError, match="aborted"):
            await begun.write(b"y")
        await done.commit()
        await done.abort()
        assert len(fs.listdir("/data/snap")) == 1
        await storage.close()

    run(main())


def test_a_purge_that_fails_is_put_off():
    """Old files are a nuisance, not a failure."""

    async def main():
        fs = blank()
        storage = simulated(fs, segment_bytes_max=8192)
        await storage.start(failed=unexpected)
        await save(storage, 1, entries(1, 900), state=HardState(1, 1, 900))
        await save(storage, 2, entries(901, 1))
        await take(storage, meta(300))
        fail(fs, lambda name, _path: errno.EPERM if name == "unlink" else 0)
        await take(storage, meta(600))
        await take(storage, meta(900))
        heal(fs)
        assert len(fs.listdir("/data/snap")) == 3
        await storage.close()

    run(main())


def damage(fs, path: str, position: int = -70) -> None:
    """Flip one bit, durably."""
    data = bytearray(fs.disk.file(path))
    data[position] ^= 1
    fs.disk.damage(path, data)


def snapshots(fs) -> list[str]:
    """The snapshot files, oldest first."""
    return [f"/data/snap/{name}" for name in fs.listdir("/data/snap") if name.endswith(".snap")]


async def with_snapshots(*indexes: int) -> SimFS:
    """A closed directory with 980 entries, 960 of them committed, and snapshots at those indexes."""
    fs = blank()
    storage = simulated(fs, segment_bytes_max=8192)
    await storage.start(failed=unexpected)
    for number in range(1, 50):
        await save(storage, number, entries(20 * number - 19, 20), state=HardState(1, 1, 20 * number - 20))
    for index in indexes:
        await take(storage, meta(index), [b"%d" % index])
    await storage.close()
    return fs


def test_a_damaged_newest_snapshot_falls_back_to_the_older_and_the_log():
    """Both are kept for this; a later snapshot puts everything right again."""

    async def main():
        fs = await with_snapshots(300, 600)
        damage(fs, snapshots(fs)[1])
        storage = simulated(fs, segment_bytes_max=8192)
        recovered = await storage.start(failed=unexpected)
        assert (recovered.snapshot, recovered.entries) == (meta(300), entries(301, 680))
        assert "damaged snapshot" in recovered.repaired
        await take(storage, meta(900), [b"900"])
        assert storage._wal.named_snapshots() == [meta(300), meta(900)], "the damaged one is nothing to fall back to"
        await storage.close()
        storage = simulated(fs, segment_bytes_max=8192)
        recovered = await storage.start(failed=unexpected)
        assert (recovered.snapshot, recovered.repaired) == (meta(900), "")
        await storage.close()

    run(main())


def test_a_newest_snapshot_that_cannot_be_read_falls_back_to_the_older_and_the_log():
    """A sector that the disk gives up is as damaged as one that it gives back wrong; a lack of memory is no damage."""

    async def main():
        fs = await with_snapshots(300, 600)
        newest = snapshots(fs)[1]
        fail(fs, lambda operation, path: errno.ENOMEM if (operation, path) == ("pread", newest) else 0)
        with pytest.raises(StorageFailed):
            await simulated(fs).start(failed=unexpected)
        fs.disk.fault = DiskFaults(unreadable_sectors=frozenset({(newest, 8)}))
        storage = simulated(fs, segment_bytes_max=8192)
        recovered = await storage.start(failed=unexpected)
        assert (recovered.snapshot, recovered.entries) == (meta(300), entries(301, 680))
        assert "cannot be read" in recovered.repaired
        await storage.close()

    run(main())


def test_an_only_snapshot_that_cannot_be_read_for_now_is_no_corruption():
    """Who has nothing else to start from is refused by an error that may pass, and all stays as it is: the simulator
    found members given up for a disk that read again a moment later.
    """

    async def main():
        fs = blank()
        storage = simulated(fs)
        await storage.start(failed=unexpected)
        await take(storage, meta(500), received=True)
        await save(storage, 1, state=HardState(1, 1, 500), snapshot=meta(500))
        await storage.close()
        (only,) = snapshots(fs)
        fs.disk.fault = DiskFaults(unreadable_sectors=frozenset({(only, 0)}))
        with pytest.raises(StorageFailed, match=f"{only} cannot be read"):
            await simulated(fs).start(failed=unexpected)
        heal(fs)
        storage = simulated(fs)
        recovered = await storage.start(failed=unexpected)
        assert (recovered.snapshot, recovered.repaired) == (meta(500), "")
        await storage.close()

    run(main())


def test_of_a_damaged_snapshot_and_an_unreadable_one_the_second_may_yet_serve():
    """So that is what a start is refused for; and the next one goes on from it."""

    async def main():
        fs = await with_snapshots(300, 600)
        older, newest = snapshots(fs)
        damage(fs, newest)
        fs.disk.fault = DiskFaults(unreadable_sectors=frozenset({(older, 0)}))
        with pytest.raises(StorageFailed, match=f"{older} cannot be read"):
            await simulated(fs, segment_bytes_max=8192).start(failed=unexpected)
        heal(fs)
        storage = simulated(fs, segment_bytes_max=8192)
        recovered = await storage.start(failed=unexpected)
        assert (recovered.snapshot, recovered.entries) == (meta(300), entries(301, 680))
        await storage.close()

    run(main())


def test_a_missing_only_snapshot_falls_back_to_the_whole_log():
    """One snapshot purges nothing, so the log can do without it."""

    async def main():
        fs = await with_snapshots(300)
        fs.unlink(snapshots(fs)[0])
        storage = simulated(fs)
        recovered = await storage.start(failed=unexpected)
        assert (recovered.snapshot, recovered.entries) == (None, entries(1, 980))
        await storage.close()

    run(main())


def test_two_damaged_snapshots_are_refused():
    """The log does not reach back further: nothing is made up."""

    async def main():
        fs = await with_snapshots(100, 300, 600)
        for path in snapshots(fs):
            damage(fs, path)
        before, slots = fs.listdir("/data/snap"), [fs.disk.file(f"/data/{name}") for name in SLOT_NAMES]
        told: list[str] = []
        for _ in range(2):
            with pytest.raises(SnapshotCorruption) as caught:
                await simulated(fs).start(failed=unexpected)
            told.append(str(caught.value))
            assert (fs.fds, fs.disk.locked) == ({}, set())
        assert (told[0], fs.listdir("/data/snap")) == (told[1], before), "a start that is refused leaves all as it is"
        assert [fs.disk.file(f"/data/{name}") for name in SLOT_NAMES] == slots, "... and was none"

    run(main())


def test_a_damaged_received_snapshot_is_refused():
    """What came before it is not enough: the entries between were never here."""

    async def main():
        fs = await with_snapshots(300)
        storage = simulated(fs)
        await storage.start(failed=unexpected)
        await take(storage, meta(2000, 2), received=True)
        await save(storage, 1, snapshot=meta(2000, 2))
        await storage.close()
        damage(fs, f"/data/snap/{2:016x}-{2000:016x}.snap")
        with pytest.raises(SnapshotCorruption):
            await simulated(fs).start(failed=unexpected)

    run(main())


def test_a_log_that_does_not_reach_its_snapshot_is_refused():
    """The first segments are gone, though a snapshot needs them."""

    async def main():
        fs = await with_snapshots(300)
        for name in fs.listdir("/data/wal")[:-1]:
            fs.unlink(f"/data/wal/{name}")
        with pytest.raises(WalCorruption) as caught:
            await simulated(fs).start(failed=unexpected)
        assert caught.value.lost_range[0] == 301
        fs = await with_snapshots()
        for name in fs.listdir("/data/wal")[:-1]:
            fs.unlink(f"/data/wal/{name}")
        with pytest.raises(WalCorruption, match="no snapshot"):
            await simulated(fs).start(failed=unexpected)

    run(main())


def test_a_log_that_ends_before_its_commit_index_is_refused():
    """Committed entries that are not there were lost."""

    async def main():
        fs = blank()
        storage = simulated(fs)
        await storage.start(failed=unexpected)
        await save(storage, 1, entries(1, 2), state=HardState(1, 1, 5))
        await storage.close()
        with pytest.raises(WalCorruption, match="commit index") as caught:
            await simulated(fs).start(failed=unexpected)
        assert caught.value.lost_range == (3, 6)

    run(main())


def test_a_snapshot_ahead_of_the_commit_index_is_not_loaded():
    """The log names it and it is whole; but what it holds may never have been decided."""

    async def main():
        fs = blank()
        storage = simulated(fs)
        await storage.start(failed=unexpected)
        await save(storage, 1, entries(1, 3), state=HardState(1, 1, 1))
        await storage.close()
        writer = SnapshotWriter(fs, "/data/snap", meta(2), cluster_id=0, number=1)
        writer.finish()
        path = f"/data/wal/{fs.listdir('/data/wal')[0]}"
        data = bytearray(fs.disk.file(path))
        header = unpack_segment_header(bytes(data[:BLOCK_BYTES]), path=path)
        scanner = SegmentScanner(bytes(data), header)
        assert list(scanner.batches())
        encoder = BatchEncoder(
            salt=header.salt,
            batch=scanner.batch + 1,
            chain=scanner.chain,
            offset=scanner.end,
            previous_commit=scanner.commit_offset,
        )
        encoder.snapshot(meta(2), reset=False)
        batch = encoder.finish(3)
        data[scanner.end : scanner.end + len(batch)] = batch
        fs.disk.damage(path, data)
        told = "/data/wal: its snapshot holds entries to 2, and only those to 1 are committed"
        with pytest.raises(WalCorruption, match=f"^{told}$") as caught:
            await simulated(fs).start(failed=unexpected)
        assert (caught.value.last_good_index, caught.value.lost_range) == (1, (0, 0))

    run(main())


def test_both_identity_slots_damaged_is_refused():
    """A log whose owner is unknown is not given to a new one."""

    async def main():
        fs = await with_snapshots()
        for slot in ("a", "b"):
            fs.disk.damage(f"/data/identity.{slot}", b"")
        with pytest.raises(WalCorruption, match="identity"):
            await simulated(fs).start(failed=unexpected)

    run(main())


def test_a_log_that_is_gone_is_refused():
    """An empty log under a known identity would be amnesia: its votes and entries are forgotten."""

    async def main():
        fs = await with_snapshots()
        for name in fs.listdir("/data/wal"):
            fs.unlink(f"/data/wal/{name}")
        with pytest.raises(WalCorruption, match="the log is gone"):
            await simulated(fs).start(failed=unexpected)

    run(main())


def test_a_closed_storage_refuses():
    """Calls after `close` say so, and what was being written is aborted."""

    async def main():
        fs = blank()
        storage = simulated(fs)
        await storage.start(failed=unexpected)
        await save(storage, 1, entries(1, 5))
        await take(storage, meta(3), [b"a", b"b"])
        sink = storage.create_snapshot(meta(5))
        await sink.write(b"x")
        reading = storage.read_snapshot(meta(3))
        assert await anext(reading) == b"a"
        await storage.close()
        with pytest.raises(Closed):
            await anext(reading)
        with pytest.raises(Closed):
            await sink.write(b"y")
        with pytest.raises(Closed):
            await storage.read_entries(lo=1, hi=2, bytes_max=1)
        with pytest.raises(Closed):
            storage.save(Save(9, None, entries(6, 1), None), unexpected)
        assert fs.fds == {}
        assert fs.listdir("/data/snap") == [f"{1:016x}-{3:016x}.snap"]

    run(main())


def test_an_abandoned_storage_loses_what_is_queued():
    """Nothing is written any more and nobody is told; the next start finds what was saved before."""

    async def main():
        fs = blank()
        storage = simulated(fs)
        await storage.start(failed=unexpected)
        await save(storage, 1, entries(1, 2), state=HardState(1, 1, 2))
        sink = storage.create_snapshot(meta(1))
        await sink.write(b"state")
        storage.save(Save(2, HardState(2, 2, 2), entries(3, 2), None), unexpected)
        storage.save(Save(3, HardState(2, 2, 2), [], None), unexpected)
        storage.abandon()
        storage.save(Save(4, None, entries(5, 2), None), unexpected)
        with pytest.raises(Closed):
            await sink.commit()
        storage.abandon()
        await storage.close()
        recovered = await storage.start(failed=unexpected)
        assert (recovered.entries, recovered.hard_state) == (entries(1, 2), HardState(1, 1, 2))
        assert recovered.snapshot is None
        assert await save(storage, 5, entries(3, 1)) == 5
        await storage.close()

    run(main())


def test_a_snapshot_on_its_way_into_the_log_ends_with_an_abandoned_storage():
    """Who waits for it to be named is told."""

    async def main():
        storage = simulated(blank())
        await storage.start(failed=unexpected)
        await save(storage, 1, entries(1, 2), state=HardState(1, 1, 2))
        taking = asyncio.ensure_future(take(storage, meta(1)))
        while not storage._adopting:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0)
        storage.abandon()
        with pytest.raises(Closed):
            await taking
        await storage.close()

    run(main())


def test_the_second_snapshot_at_an_index_is_dropped():
    """It says the same in other bytes, and somebody may be reading the first."""

    async def main():
        fs = blank()
        storage = simulated(fs)
        await storage.start(failed=unexpected)
        assert storage.snapshot_index == 0
        await save(storage, 1, entries(1, 4), state=HardState(1, 1, 4))
        await take(storage, meta(3), [b"first"])
        await take(storage, meta(3), [b"second"])
        await take(storage, meta(2), [b"older"])
        assert storage.snapshot_index == 3
        assert await restored(storage, meta(3)) == [b"first"]
        assert len(fs.listdir("/data/snap")) == 1
        await storage.close()

    run(main())


def test_an_error_while_closing_does_not_keep_the_rest_open():
    """The lock is released whatever the last write says."""

    async def main():
        fs = blank()
        storage = simulated(fs)
        await storage.start(failed=lambda _error: None)
        storage.save(Save(1, None, entries(1, 5), None), unexpected)
        fail(fs, lambda name, _path: errno.EIO if name == "fdatasync" else 0)
        await storage.close()
        assert (fs.fds, fs.disk.locked) == ({}, set())

    run(main())


def test_a_rotten_disk_under_a_reader_is_reported():
    """A read error is the caller's, and says which snapshot or entry."""

    async def main():
        fs = blank()
        storage = simulated(fs)
        await storage.start(failed=unexpected)
        await save(storage, 1, entries(1, 5))
        await take(storage, meta(3))
        fail(fs, lambda name, _path: errno.EIO if name == "pread" else 0)
        with pytest.raises(StorageError):
            await storage.read_entries(lo=1, hi=2, bytes_max=1)
        fail(fs, lambda name, path: errno.EIO if name == "pread" and "snap" in path else 0)
        with pytest.raises(StorageError):
            await restored(storage, meta(3))
        heal(fs)
        reading = storage.read_snapshot(meta(3))
        assert await anext(reading)
        fail(fs, lambda name, _path: errno.EIO if name == "pread" else 0)
        with pytest.raises(StorageError):
            await anext(reading)
        await storage.close()

    run(main())


def test_a_cancelled_wait_hurts_nobody():
    """Whoever stops waiting for an answer leaves the worker and everybody else alone."""

    async def main():
        storage = simulated(blank())
        await storage.start(failed=unexpected)
        await save(storage, 1, entries(1, 5))
        task = asyncio.ensure_future(storage.read_entries(lo=1, hi=2, bytes_max=1))
        snapshot = asyncio.ensure_future(take(storage, meta(3)))
        await asyncio.sleep(0)
        task.cancel()
        snapshot.cancel()
        await asyncio.wait([task, snapshot])
        assert await storage.read_entries(lo=1, hi=2, bytes_max=1) == entries(1, 1)
        await storage.close()

    run(main())


FORKER = """
import asyncio, os, sys
sys.path.insert(0, sys.argv[2])
from pyraftkv.core.ready import Save
from pyraftkv.core.types import Entry
from pyraftkv.log import FileStorage

async def main():
    storage = FileStorage(sys.argv[1])
    await storage.start(failed=print)
    asked, answer = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            storage.create_snapshot(None)
        except Exception as error:
            os.write(answer[1], f"{type(error).__name__}: {error}".encode())
        os.read(asked[0], 1)
        os._exit(0)
    print(os.read(answer[0], 1000).decode())
    done = asyncio.get_running_loop().create_future()
    storage.save(Save(1, None, [Entry(1, 1, b"")], None), done.set_result)
    print("parent saved", await done)
    await storage.close()
    again = FileStorage(sys.argv[1])
    print("reopened", len((await again.start(failed=print)).entries))
    await again.close()
    os.write(asked[1], b"x")
    os.waitpid(child, 0)

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_poisoned(tmp_path):
    """The child cannot write the parent's log, the parent goes on, and the child does not keep the lock."""
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", FORKER, str(tmp_path / "data"), root]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    told, *others = result.stdout.splitlines()
    assert told.startswith("StorageFailed: the storage was opened before a fork")
    assert others == ["parent saved 1", "reopened 1"]


def test_a_poisoned_storage_refuses_and_closes_at_once():
    """It waits for no thread: a forked child has none."""

    async def main():
        fs = blank()
        storage = simulated(fs)
        await storage.start(failed=unexpected)
        storage.poison()
        with pytest.raises(StorageFailed, match="fork"):
            await storage.read_entries(lo=1, hi=2, bytes_max=1)
        await storage.close()
        assert fs.disk.locked == set()

    run(main())


def test_reads_and_appends_at_the_same_time(tmp_path):
    """Readers on their own thread see durable entries only, and always a gapless run of the right ones."""

    async def main():
        storage = FileStorage(tmp_path, segment_bytes_max=16 << 10)
        await storage.start(failed=unexpected)
        durable, stop = 0, False

        async def read(random: Random) -> int:
            count = 0
            while not stop:
                if durable:
                    known = durable
                    lo = random.randint(max(storage.first_index, 1), known)
                    found = await storage.read_entries(lo=lo, hi=lo + 50, bytes_max=1 << 16)
                    if lo >= storage.first_index:
                        assert found == entries(lo, len(found))
                        assert len(found) >= min(50, known - lo + 1)
                        count += 1
                await asyncio.sleep(0)
            return count

        readers = [asyncio.ensure_future(read(Random(seed))) for seed in range(3)]
        for number in range(1, 200):
            first = number * 10 - 9
            await save(storage, number, entries(first, 10), state=HardState(1, 1, first - 1))
            durable = first + 9
            if number % 50 == 0:
                await take(storage, meta(durable - 100))
        stop = True
        assert sum([await reader for reader in readers]) > 50
        await storage.close()

    run(main())
