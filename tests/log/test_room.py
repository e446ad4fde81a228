"""A disk without room: nothing is lost or half there, votes still go, and everything goes on when there is room."""

from __future__ import annotations

import asyncio
import errno
from random import Random

import pytest

from pyraftkv.core.ready import Save
from pyraftkv.core.types import HardState
from pyraftkv.errors import StorageFailed
from pyraftkv.log import FileStorage
from pyraftkv.log import files as files_module
from pyraftkv.log.base import Identity
from pyraftkv.log.files import FULL_RETRY_SECONDS
from pyraftkv.log.fs import NoRoom
from pyraftkv.log.recovery import open_wal
from pyraftkv.log.wal import Wal
from pyraftkv.sim.disk import DiskError, DiskFaults, SimFS
from tests.log.disks import LoopWorker, blank, fail, heal, trace
from tests.log.test_files import entries, run, save, simulated, unexpected

SEGMENT_BYTES = 16 << 10
RESERVE_BYTES = 2 << 10


def reopen(fs: SimFS, *, boots: int = 1, reserve_bytes: int = RESERVE_BYTES) -> tuple[Wal, str]:
    """Open the log of a disk, or begin it."""
    return open_wal(
        fs,
        "/wal",
        identity=Identity(1, 1, 1, boots),
        random=Random(1),
        segment_bytes_max=SEGMENT_BYTES,
        reserve_bytes=reserve_bytes,
    )


def begun(*, reserve_bytes: int = RESERVE_BYTES) -> tuple[SimFS, Wal]:
    """A disk with an empty log."""
    fs = blank()
    fs.make_dir("/wal")
    fs.fsync_dir("")
    return fs, reopen(fs, boots=0, reserve_bytes=reserve_bytes)[0]


def fill(fs: SimFS, *, left_bytes: int = 0) -> None:
    """Let the disk have room for so many bytes more."""
    fs.disk.fault = DiskFaults(capacity_bytes=fs.disk.used_bytes + left_bytes)


def append(wal: Wal, first: int, count: int, *, state: HardState | None = None) -> None:
    """Append so many entries."""
    wal.append([Save(first, state, entries(first, count), None)])


def read(wal: Wal) -> list[int]:
    """The indexes that the log holds."""
    return [entry.index for entry in wal.read(lo=wal.first_index, hi=wal.last_index + 1, bytes_max=1 << 40)]


def append_until_full(wal: Wal) -> int:
    """Append entries one by one; return the first that had no room."""
    index = wal.last_index + 1
    try:
        while True:
            append(wal, index, 1)
            index += 1
    except NoRoom:
        return index


@pytest.mark.parametrize("reserve_bytes", [0, RESERVE_BYTES])
@pytest.mark.parametrize("left_bytes", [0, 1, 100, 2000, 5000, 60_000])
def test_a_batch_without_room_is_none_and_may_be_appended_again(reserve_bytes: int, left_bytes: int) -> None:
    """What was there is there, what had no room is not, a start finds nothing torn; with room everything goes on."""
    fs, wal = begun(reserve_bytes=reserve_bytes)
    append(wal, 1, 5)
    fill(fs, left_bytes=left_bytes)
    index = append_until_full(wal)
    for _ in range(3):
        with pytest.raises(NoRoom):
            append(wal, index, 70)
    assert read(wal) == list(range(1, index))
    again, _ = reopen(fs.disk.durable_copy().mount(), reserve_bytes=reserve_bytes)
    assert read(again) == list(range(1, index))
    heal(fs)
    append(wal, index, 1)
    append(wal, index + 1, 70)
    again, repaired = reopen(fs.disk.durable_copy().mount(), reserve_bytes=reserve_bytes)
    assert (read(again), repaired) == (list(range(1, index + 71)), "")


def test_what_an_attempt_left_is_overwritten() -> None:
    """A long batch is half written, a short one takes its place: nothing of the long one looks like a torn batch."""
    fs, wal = begun(reserve_bytes=0)
    fill(fs, left_bytes=3000)
    with pytest.raises(NoRoom):
        append(wal, 1, 100)
    append(wal, 1, 1)
    again, repaired = reopen(fs.disk.durable_copy().mount(), reserve_bytes=0)
    assert (read(again), repaired) == ([1], "")


def test_behind_every_batch_there_is_room_for_votes() -> None:
    """However long batches are, and over all segments."""
    random = Random(5)
    fs, wal = begun()
    for _ in range(150):
        append(wal, wal.last_index + 1, random.choice((1, 3, 40)))
        name = f"/wal/{max(fs.listdir('/wal'))}"
        tail = fs.disk.file(name)
        assert len(tail) - len(tail.rstrip(b"\0")) >= RESERVE_BYTES
        assert fs.disk.inode(name).durable.size == len(tail), "the room is durable with the batch"
    assert len(wal.segments) > 3


def test_a_full_log_still_takes_votes() -> None:
    """Terms and votes go where entries have no room; they are durable at once, and not taken back by what waited."""
    fs, wal = begun()
    append(wal, 1, 5, state=HardState(1, 0, 3))
    fill(fs)
    index = append_until_full(wal)
    for term in range(2, 18):
        wal.promise(HardState(term, term % 3, index + 50))
        again, repaired = reopen(fs.disk.durable_copy().mount())
        assert (again.hard_state, repaired) == (HardState(term, term % 3, 3), "")
    waiting = [
        Save(1, HardState(1, 0, 4), entries(index, 40), None),
        Save(2, HardState(5, 0, 4), entries(index + 40, 10), None),
        Save(3, HardState(17, 0, index), [], None),
        Save(4, HardState(17, 2, index + 1), entries(index + 50, 1), None),
    ]
    with pytest.raises(NoRoom):
        wal.append(waiting)
    heal(fs)
    for each in waiting:
        wal.append([each])
        assert (wal.hard_state.term, wal.hard_state.vote) == (17, 2)
    again, repaired = reopen(fs.disk.durable_copy().mount())
    assert (again.hard_state, again.last_index, repaired) == (HardState(17, 2, index + 1), index + 50, "")
    with pytest.raises(AssertionError, match="the term went back"):
        wal.append([Save(5, HardState(16, 0, 0), [], None)])


def test_a_vote_that_is_known_or_old_writes_nothing() -> None:
    """Promises are asked for again and again while the disk is full."""
    fs, wal = begun()
    append(wal, 1, 1, state=HardState(4, 2, 1))
    fs.disk.trace.clear()
    wal.promise(HardState(4, 2, 1))
    wal.promise(HardState(3, 1, 1))
    assert (trace(fs), wal.hard_state) == ([], HardState(4, 2, 1))


def test_room_for_votes_ends_too() -> None:
    """Then the next one waits with everything else, and nothing has failed."""
    fs, wal = begun()
    fill(fs)
    append_until_full(wal)
    term = 1
    try:
        while True:
            wal.promise(HardState(term, 1, 0))
            term += 1
    except NoRoom:
        assert term > RESERVE_BYTES // 150
    heal(fs)
    wal.promise(HardState(term, 1, 0))
    assert reopen(fs.disk.durable_copy().mount())[0].hard_state == HardState(term, 1, 0)


@pytest.mark.parametrize("left_bytes", [0, 200, 4200, 6000])
def test_a_log_that_cannot_roll_is_not_sealed(left_bytes: int) -> None:
    """The next segment is made before the one at hand is sealed: without it, votes go on where they are."""
    fs, wal = begun()
    while wal._tail.offset < SEGMENT_BYTES:  # type: ignore[union-attr]
        append(wal, wal.last_index + 1, 10)
    last = wal.last_index
    fill(fs, left_bytes=left_bytes)
    for _ in range(2):
        with pytest.raises(NoRoom):
            append(wal, last + 1, 1)
    assert (len(wal.segments), fs.listdir("/wal")) == (1, [wal.segments[0].name])
    wal.promise(HardState(7, 3, 0))
    again, repaired = reopen(fs.disk.durable_copy().mount())
    assert (again.hard_state, again.last_index, repaired) == (HardState(7, 3, 0), last, "")
    heal(fs)
    append(wal, last + 1, 1)
    assert (len(wal.segments), read(wal)[-1]) == (2, last + 1)


def test_a_quota_is_a_full_disk() -> None:
    """EDQUOT says the same as ENOSPC."""
    fs, wal = begun()
    fail(fs, lambda name, _: errno.EDQUOT if name == "pwrite" else 0)
    with pytest.raises(NoRoom):
        append(wal, 1, 200)
    heal(fs)
    append(wal, 1, 200)


def test_a_sync_without_room_is_final() -> None:
    """What a failed sync has left on the disk nobody knows, whatever the reason."""
    fs, wal = begun()
    fs.disk.fault = DiskFaults(errors=(DiskError(frozenset({"fdatasync"}), code=errno.ENOSPC),))
    with pytest.raises(OSError, match="fdatasync"):
        append(wal, 1, 1)
    heal(fs)
    with pytest.raises(StorageFailed):
        append(wal, 1, 1)
    with pytest.raises(StorageFailed):
        wal.promise(HardState(1, 1, 0))


def test_a_torn_tail_is_cut_off_on_a_full_disk() -> None:
    """Without room for a copy there is none, and the start goes on."""
    fs, wal = begun()
    append(wal, 1, 3)
    wal.close()
    name = f"/wal/{wal.segments[0].name}"
    data = bytearray(fs.disk.file(name))
    data[len(bytes(data).rstrip(b"\0")) - 1] ^= 1
    fs.disk.damage(name, data)
    fill(fs)
    again, repaired = reopen(fs)
    assert again.last_index == 0
    assert "without a copy: the disk is full" in repaired
    again.promise(HardState(1, 1, 0))


async def _rest() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_saves_wait_for_room_in_their_order() -> None:
    """A full disk is told once; nothing completes but what was before; a vote is promised; then all complete."""

    async def main() -> None:
        fs, told, promised, done = blank(), [], [], []
        storage = simulated(fs, reserve_bytes=RESERVE_BYTES, segment_bytes_max=SEGMENT_BYTES)
        await storage.start(failed=unexpected, full=told.append, promised=promised.append)
        await save(storage, 1, entries(1, 1), state=HardState(1, 0, 0))
        fill(fs)
        storage.save(Save(2, None, entries(2, 200), None), done.append)
        await _rest()
        assert (told, done, "full" in repr(storage)) == ([True], [], True)
        assert promised == [1], "what was voted before is durable"
        storage.save(Save(3, None, entries(202, 5), None), done.append)
        storage.save(Save(4, HardState(2, 3, 1), entries(207, 1), None), done.append)
        storage.save(Save(5, HardState(2, 3, 2), [], None), done.append)
        await _rest()
        assert (told, done, promised[-1]) == ([True], [], 4)
        again = simulated(fs.disk.durable_copy().mount(), reserve_bytes=RESERVE_BYTES, segment_bytes_max=SEGMENT_BYTES)
        recovered = await again.start(failed=unexpected)
        assert (recovered.hard_state, recovered.entries) == (HardState(2, 3, 0), entries(1, 1))
        await again.close()
        await asyncio.sleep(FULL_RETRY_SECONDS + 0.1)
        assert (told, done) == ([True], [])
        heal(fs)
        await asyncio.sleep(FULL_RETRY_SECONDS + 0.1)
        assert (told, done) == ([True, False], [4, 5])
        assert await save(storage, 6, entries(208, 1)) == 6
        await storage.close()
        recovered = await simulated(fs, segment_bytes_max=SEGMENT_BYTES).start(failed=unexpected)
        assert (recovered.hard_state, recovered.entries) == (HardState(2, 3, 2), entries(1, 208))

    run(main())


def test_saves_that_wait_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are more than one batch: what found no room is tried again before what came after it."""
    monkeypatch.setattr(files_module, "BATCH_BYTES_MAX", 100)

    async def main() -> None:
        fs, done = blank(), []
        storage = simulated(fs, reserve_bytes=RESERVE_BYTES, segment_bytes_max=SEGMENT_BYTES)
        await storage.start(failed=unexpected)
        fill(fs)
        for number in range(3):
            storage.save(Save(number, None, entries(200 * number + 1, 200), None), done.append)
        await _rest()
        assert done == []
        heal(fs)
        await asyncio.sleep(FULL_RETRY_SECONDS + 0.1)
        assert done == [0, 1, 2]
        await storage.close()

    run(main())


def test_what_comes_as_the_disk_has_room_again_is_written() -> None:
    """A save is queued after the writer took what waited, and before the loop hears that the disk is no longer full."""

    class Worker(LoopWorker):
        hook = staticmethod(lambda: None)

        def _run(self, job, then) -> None:
            super()._run(job, then)
            Worker.hook()

    async def main() -> None:
        fs, done = blank(), []
        crashed = asyncio.get_running_loop().create_future()
        storage = FileStorage("/data", fs=fs, worker=lambda _: Worker(crashed), segment_bytes_max=SEGMENT_BYTES)
        await storage.start(failed=unexpected)
        fill(fs)
        storage.save(Save(1, None, entries(1, 200), None), done.append)
        await _rest()
        heal(fs)

        def save_more() -> None:
            if fs.disk.trace[-1] == ("pwrite", "/data/mark") and not storage._queue:
                Worker.hook = staticmethod(lambda: None)
                storage.save(Save(2, None, entries(201, 1), None), done.append)

        Worker.hook = staticmethod(save_more)
        await asyncio.sleep(FULL_RETRY_SECONDS + 0.1)
        await _rest()
        assert done == [1, 2]
        await storage.close()

    run(main())


def test_a_full_storage_closes_and_loses_what_nobody_was_promised(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever stops a member whose disk is full does not wait for room."""

    async def main() -> None:
        fs, done = blank(), []
        storage = simulated(fs, reserve_bytes=RESERVE_BYTES, segment_bytes_max=SEGMENT_BYTES)
        await storage.start(failed=unexpected)
        await save(storage, 1, entries(1, 1))
        fill(fs)
        storage.save(Save(2, None, entries(2, 200), None), done.append)
        await _rest()
        await storage.close()
        assert (done, fs.fds) == ([], {})
        assert "while closing" in caplog.text
        heal(fs)
        recovered = await simulated(fs, segment_bytes_max=SEGMENT_BYTES).start(failed=unexpected)
        assert recovered.entries == entries(1, 1)

    run(main())


def test_another_error_of_a_full_disk_is_final() -> None:
    """Also that of a vote that is written ahead."""

    async def main() -> None:
        fs, failures = blank(), []
        storage = simulated(fs, reserve_bytes=RESERVE_BYTES, segment_bytes_max=SEGMENT_BYTES)
        await storage.start(failed=failures.append)
        fill(fs)
        storage.save(Save(1, None, entries(1, 200), None), unexpected)
        await _rest()
        fail(fs, lambda name, _: errno.EIO if name == "fdatasync" else 0)
        storage.save(Save(2, HardState(1, 1, 0), [], None), unexpected)
        await _rest()
        assert len(failures) == 1
        with pytest.raises(StorageFailed):
            await storage.read_entries(lo=1, hi=2, bytes_max=1)
        await storage.close()

    run(main())
