"""The mark: it never leads, it may lag, and a log that ends before it is damaged."""

from __future__ import annotations

import asyncio
import errno
from random import Random

import pytest

from pyraftkv.core.ready import Save
from pyraftkv.core.types import Entry, HardState
from pyraftkv.errors import WalCorruption
from pyraftkv.log.base import Identity
from pyraftkv.log.mark import MARK_BYTES, Mark, MarkFile
from pyraftkv.log.recovery import open_wal
from pyraftkv.log.segment import BLOCK_BYTES, SegmentScanner, unpack_segment_header
from pyraftkv.log.wal import Wal
from pyraftkv.sim.disk import SimFS
from tests.log.disks import blank, fail, trace, twin
from tests.log.test_files import run, simulated, unexpected

INCARNATION = 99


def reopen(fs: SimFS, *, boots: int = 1, strict_tail: bool = False, incarnation: int = INCARNATION) -> tuple[Wal, str]:
    """Open the log and the mark of a disk, as a start does."""
    return open_wal(
        fs,
        "/data/wal",
        identity=Identity(5, 2, incarnation, boots),
        random=Random(2),
        segment_bytes_max=8192,
        reserve_bytes=0,
        marks=MarkFile(fs, "/data", incarnation=incarnation),
        strict_tail=strict_tail,
    )


def make(batches: int, *, size: int = 100) -> SimFS:
    """A log of so many batches of one entry, and its mark."""
    fs = blank()
    fs.make_dir("/data")
    fs.make_dir("/data/wal")
    fs.fsync_dir("")
    fs.fsync_dir("/data")
    wal, _ = reopen(fs, boots=0)
    for index in range(1, batches + 1):
        wal.append([Save(index, HardState(1, 1, index - 1), [Entry(index, 1, bytes([index]) * size)], None)])
    wal.close()
    return fs


def last_segment(fs: SimFS) -> str:
    """The path of the segment that ends the log."""
    return f"/data/wal/{max(name for name in fs.listdir('/data/wal') if name.endswith('.wal'))}"


def last_batch(fs: SimFS) -> range:
    """The bytes of the last batch of the last segment."""
    data = fs.disk.file(last_segment(fs))
    scanner = SegmentScanner(data, unpack_segment_header(data[:BLOCK_BYTES], path=""))
    ends = [BLOCK_BYTES, *(scanner.end for _ in scanner.batches())]
    return range(ends[-2], ends[-1])


def test_damage_in_the_last_batch_is_refused_where_the_mark_knows_of_it() -> None:
    """Every flipped byte, every cut: the place and the lost index are told, and nothing is touched."""
    fs = make(5)
    path, batch = last_segment(fs), last_batch(fs)
    data = fs.disk.file(path)
    damages = [data[:at] for at in range(batch.start, batch.stop)]
    damages += [data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :] for at in batch]
    for damaged in damages:
        copy = twin(fs)
        copy.disk.damage(path, damaged)
        with pytest.raises(WalCorruption, match=r"batch 6 was durable, and the log ends with batch 5") as caught:
            reopen(copy)
        assert (caught.value.segment, caught.value.offset) == (path.rpartition("/")[2], batch.start)
        assert (caught.value.last_good_index, caught.value.lost_range) == (4, (5, 6))
        assert (copy.disk.file(path), copy.listdir("/data/wal")) == (damaged, fs.listdir("/data/wal"))
        assert copy.fds == {}


def test_a_last_segment_that_is_gone_is_refused() -> None:
    """What is left ends with a seal, like a roll that a crash has cut: the mark tells them apart."""
    fs = make(60)
    assert len(fs.listdir("/data/wal")) > 1
    fs.unlink(last_segment(fs))
    before = fs.listdir("/data/wal")
    with pytest.raises(WalCorruption, match="was durable") as caught:
        reopen(fs)
    assert fs.listdir("/data/wal") == before
    assert caught.value.lost_range[1] == 61


def test_a_log_that_is_gone_is_refused_though_its_first_start_was_never_counted() -> None:
    """A process was killed in its first start: the directory has a mark, and no boot."""
    fs = make(1)
    fs.unlink(last_segment(fs))
    with pytest.raises(WalCorruption, match="was durable"):
        reopen(fs, boots=0)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda fs: fs.unlink("/data/mark"),
        lambda fs: fs.disk.damage("/data/mark", b""),
        lambda fs: fs.disk.damage("/data/mark", fs.disk.file("/data/mark")[:-1]),
        lambda fs: fs.disk.damage("/data/mark", bytes(MARK_BYTES)),
        lambda fs: fs.disk.damage("/data/mark", b"X" + fs.disk.file("/data/mark")[1:]),
        lambda fs: MarkFile(fs, "/data", incarnation=INCARNATION).write(Mark(INCARNATION, 0, 4096, 2, 0)),
        lambda fs: MarkFile(fs, "/data", incarnation=INCARNATION).write(Mark(INCARNATION + 1, 9, 9, 99, 99)),
        lambda fs: fail(fs, lambda name, path: errno.EIO if (name, path) == ("pread", "/data/mark") else 0),
    ],
    ids=["missing", "empty", "short", "zeros", "damaged", "behind", "foreign", "unreadable"],
)
def test_no_mark_says_nothing(spoil) -> None:
    """A torn tail is cut off as ever, and the log goes on."""
    fs = make(5)
    path, batch = last_segment(fs), last_batch(fs)
    fs.disk.damage(path, fs.disk.file(path)[: batch.stop - 1])
    spoil(fs)
    wal, repaired = reopen(fs)
    assert ("torn bytes" in repaired, wal.last_index) == (True, 4)
    wal.append([Save(1, None, [Entry(5, 2, b"new")], None)])
    wal.close()


def test_the_mark_never_leads() -> None:
    """Before every operation of a life the durable log has what the mark says: no power failure is damage."""
    fs = make(0)
    wal, _ = reopen(fs)
    marks = 0

    def decide(name: str, path: str) -> int:
        nonlocal marks
        if (name, path) == ("pwrite", "/data/mark"):
            marks += 1
        durable = fs.disk.durable_copy()  # with the mark as the cache has it, and nothing else that was not synced
        durable.damage("/data/mark", fs.disk.file("/data/mark"))
        reopened, _ = reopen(durable.mount())
        reopened.close()
        return 0

    fail(fs, decide)
    for index in range(1, 60):
        wal.append([Save(index, HardState(1, 1, index - 1), [Entry(index, 1, bytes(100))], None)])
    assert len(wal.segments) > 2
    assert marks >= 59


def test_the_mark_is_one_write_without_a_sync() -> None:
    """It costs a batch 64 bytes of the cache."""
    fs = make(3)
    wal, _ = reopen(fs)
    fs.disk.trace.clear()
    wal.append([Save(1, None, [Entry(4, 1, b"four")], None)])
    assert [line.split()[0] for line in trace(fs)] == ["pwrite", "fdatasync", "pwrite"]
    assert trace(fs)[-1] == "pwrite /data/mark"
    assert len(fs.disk.file("/data/mark")) == MARK_BYTES


def test_the_name_of_the_mark_is_durable() -> None:
    """Its bytes may lag behind; a file that vanishes with the power would say nothing about the whole log."""
    fs = make(3)
    assert "mark" in fs.disk.durable_copy().mount().listdir("/data")


def test_a_mark_that_cannot_be_written_stays_behind(caplog: pytest.LogCaptureFixture) -> None:
    """It is told once, its file is let alone, and the log goes on."""
    fs = make(3)
    wal, _ = reopen(fs)
    fail(fs, lambda name, path: errno.EIO if (name, path) == ("pwrite", "/data/mark") else 0)
    for index in (4, 5):
        wal.append([Save(index, None, [Entry(index, 1, b"more")], None)])
    assert caplog.text.count("goes on without a mark") == 1
    wal.close()
    assert reopen(fs)[0].last_index == 5


@pytest.mark.parametrize("with_mark", [True, False])
def test_a_strict_tail_refuses_what_a_crash_may_have_left(with_mark: bool) -> None:
    """An unfinished batch and an unfinished roll; a whole log is opened."""
    fs = make(5)
    reopen(twin(fs), strict_tail=True)
    path, batch = last_segment(fs), last_batch(fs)
    data = fs.disk.file(path)
    torn = twin(fs)
    torn.disk.damage(path, data + data[batch.start : batch.stop - 3])
    if not with_mark:
        torn.unlink("/data/mark")
    before = torn.disk.file(path)
    with pytest.raises(WalCorruption, match="strict_tail"):
        reopen(torn, strict_tail=True)
    assert torn.disk.file(path) == before
    assert "torn bytes" in reopen(torn)[1]

    rolled = make(40)
    wal, _ = reopen(rolled)
    count = len(wal.segments)
    fail(rolled, lambda name, _path: errno.EIO if name == "rename" else 0)
    wal.append([Save(1, None, [Entry(41, 1, bytes(4096))], None)])
    with pytest.raises(OSError, match="rename"):
        wal.append([Save(2, None, [Entry(42, 1, b"")], None)])
    wal.close()
    rolled.disk.fault = blank().disk.fault
    with pytest.raises(WalCorruption, match="strict_tail"):
        reopen(twin(rolled), strict_tail=True)
    again, _ = reopen(rolled)
    assert (len(again.segments), again.last_index) == (count + 1, 41)


def test_a_storage_passes_it_on() -> None:
    """A start with `strict_tail`, and one without; and the mark stays the directory's through a recovery."""

    async def main() -> None:
        fs = blank()
        storage = simulated(fs)
        await storage.start(failed=unexpected)
        await storage.identify(cluster_id=7, member_id=1)
        await storage.rebind(cluster_id=8, incarnation=123)
        done = asyncio.get_running_loop().create_future()
        storage.save(Save(1, HardState(1, 1, 0), [Entry(1, 1, b"one")], None), done.set_result)
        await done
        await storage.close()
        name = fs.listdir("/data/wal")[0]
        data = fs.disk.file(f"/data/wal/{name}")
        fs.disk.damage(f"/data/wal/{name}", data + b"\xd7WAL")
        with pytest.raises(WalCorruption, match="strict_tail"):
            await simulated(fs, strict_tail=True).start(failed=unexpected)
        fs.disk.damage(f"/data/wal/{name}", data[:-1])
        with pytest.raises(WalCorruption, match="was durable"):
            await simulated(fs).start(failed=unexpected)
        assert fs.fds == {}

    run(main())
