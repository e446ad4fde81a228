"""The simulated disk: against the real one, against plain bytes, and in everything that can go wrong."""

from __future__ import annotations

import errno
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from pyraftkv.log.fs import FileSystem, OsFileSystem, join, write_all
from pyraftkv.sim.disk import DiskError, DiskFaults, DiskProfile, SimDisk, SimFS, SimulatedCrash
from pyraftkv.sim.faults import DiskFault
from pyraftkv.sim.inode import SECTOR_BYTES, SharedBytes, SyncFailure

ROOT = Path(__file__).parents[2]
OLD, NEW = b"o" * (8 * SECTOR_BYTES), b"n" * (8 * SECTOR_BYTES)


def mounted(seed: int = 0, **faults) -> SimFS:
    """A disk with the directory ``/d``, durable."""
    fs = SimDisk(Random(seed)).mount()
    fs.make_dir("/d")
    fs.fsync_dir("/")
    fs.disk.fault = DiskFaults(**faults)
    return fs


def put(fs: SimFS, path: str, data: bytes, *, sync: bool = True) -> int:
    """Make a file with these bytes and return its descriptor; `sync` makes bytes and name durable."""
    fd = fs.open(path, create=True)
    write_all(fs, fd, data, 0)
    if sync:
        fs.fdatasync(fd)
        fs.fsync_dir("/d")
    return fd


def found(disk: SimDisk) -> dict[str, bytes]:
    """All files as programs see them."""
    return {
        f"{path}/{name}": disk.file(f"{path}/{name}")
        for path, directory in disk.directories.items()
        for name in directory.names
    }


# --- As a file system, while nothing goes wrong -----------------------------------------------------------------------


class Outcome:
    """Runs one random operation on a file system and tells what came of it."""

    def __init__(self, fs: FileSystem, root: str) -> None:
        self.fs = fs
        self.root = root
        self.fds: list[int] = []

    def run(self, random: Random):
        name = join(self.root, random.choice("abc"))
        kinds = ("open", "create", "close", "pread", "pwrite", "sync", "rename", "unlink", "list", "forget")
        kind = random.choice(kinds)
        slot, size, offset = random.random(), random.randrange(3000), random.randrange(3000)
        data, other = random.randbytes(size), join(self.root, random.choice("abc"))
        fd = self.fds[int(slot * len(self.fds))] if self.fds else None
        try:
            if kind in ("open", "create"):
                self.fds.append(self.fs.open(name, create=kind == "create"))
            elif kind == "rename":
                self.fs.rename(name, other)
            elif kind == "unlink":
                self.fs.unlink(name)
            elif kind == "list":
                return self.fs.listdir(self.root)
            elif fd is not None:
                return self._run(kind, fd, data, offset)
        except OSError as error:
            return error.errno
        return None

    def _run(self, kind: str, fd: int, data: bytes, offset: int):
        if kind == "close":
            self.fds.remove(fd)
            self.fs.close(fd)
        elif kind == "pwrite":
            return self.fs.pwrite(fd, data, offset)
        elif kind == "sync":
            self.fs.fdatasync(fd)
        elif kind == "forget":
            self.fs.forget_cache(fd)
        return self.fs.size(fd) if kind != "close" else None, self.fs.pread(
            fd, 5000, offset
        ) if kind == "pread" else b""


@pytest.mark.parametrize("seed", range(8))
def test_it_behaves_like_the_real_one(seed, tmp_path):
    """The same operations have the same results and the same errors."""
    simulated = mounted(seed)
    pair = Outcome(simulated, "/d"), Outcome(OsFileSystem(fsync=False), str(tmp_path))
    for step in range(500):
        here, there = (each.run(Random(f"{seed}/{step}")) for each in pair)
        assert here == there, f"seed {seed}, step {step}"
    for fd in pair[1].fds:
        pair[1].fs.close(fd)


@pytest.mark.parametrize("seed", range(20))
def test_shared_bytes_are_independent(seed):
    """Whatever is done to one of many that share bytes, the others do not see it."""
    random = Random(seed)
    pairs = [(SharedBytes(b"start"), bytearray(b"start"))]
    for _ in range(300):
        shared, plain = pairs[random.randrange(len(pairs))]
        kind, offset, data = random.randrange(4), random.randrange(300), random.randbytes(random.randrange(40))
        if kind == 0 and len(pairs) < 8:
            pairs.append((shared.share(), plain.copy()))
        elif kind == 1:
            shared.resize(offset)
            del plain[offset:]
            plain.extend(bytes(offset - len(plain)))
        else:
            offset = len(plain) if kind == 2 else offset
            shared.write(offset, data)
            plain.extend(bytes(max(offset - len(plain), 0)))
            plain[offset : offset + len(data)] = data
        for each, expected in pairs:
            assert (each.size, each.read(1000, 0), each.read(7, 11)) == (len(expected), expected, expected[11:18]), seed


def test_directories_above_are_made():
    """A data directory may lie deep."""
    disk = SimDisk(Random(0))
    fs = disk.mount()
    fs.make_dir("/var/lib/pyraftkv")
    fs.fsync_dir("/var/lib")
    disk.power_loss()
    assert disk.mount().listdir("/var/lib/pyraftkv") == []
    with pytest.raises(FileNotFoundError):
        disk.mount().listdir("/var/log")


def test_a_lock_is_held_until_its_process_is_dead():
    """By a descriptor, against every process on the machine; the dead hold nothing."""
    disk = mounted().disk
    one, two = disk.mount(), disk.mount()
    fd = one.lock("/d/LOCK")
    for fs, holder in ((one, "this process"), (two, "another process")):
        with pytest.raises(BlockingIOError, match=holder):
            fs.lock("/d/LOCK")
    one.close(fd)
    fd = two.lock("/d/LOCK")
    disk.kill()
    three = disk.mount()
    three.lock("/d/LOCK")
    two.close(fd)
    assert disk.locked == {"/d/LOCK"}, "the dead do not unlock what others hold"
    assert three.listdir("/d") == ["LOCK"]


# --- Kill and power loss ----------------------------------------------------------------------------------------------


def test_a_killed_process_leaves_the_cache():
    """What it wrote is seen by the next one; its own view is dead."""
    fs = mounted()
    fd = put(fs, "/d/file", OLD, sync=False)
    fs.disk.kill()
    assert found(fs.disk) == {"/d/file": OLD}
    for operation in (lambda: fs.pread(fd, 1, 0), lambda: fs.fdatasync(fd), lambda: fs.listdir("/d")):
        with pytest.raises(SimulatedCrash):
            operation()
    fs.close(fd)


@pytest.mark.parametrize("seed", range(50))
def test_what_was_synced_survives(seed):
    """Bytes, length and name, whatever was begun after."""
    fs = mounted(seed)
    put(fs, "/d/file", OLD)
    put(fs, "/d/other", NEW, sync=False)
    fs.disk.power_loss()
    assert fs.disk.file("/d/file") == OLD
    assert found(fs.disk) == found(fs.disk.durable_copy()), "after a power loss nothing is in the cache only"


def test_every_sector_of_an_unsynced_write_has_its_own_fate():
    """Kept, lost, zeroed or garbled; all of them, none of them, and in any mixture."""
    fates: set[str] = set()
    for seed in range(200):
        fs = mounted(seed)
        fd = put(fs, "/d/file", OLD)
        fs.pwrite(fd, NEW, 0)
        fs.disk.power_loss()
        data = fs.disk.file("/d/file")
        assert len(data) == len(OLD)
        kinds = {OLD[:SECTOR_BYTES]: "o", NEW[:SECTOR_BYTES]: "n", bytes(SECTOR_BYTES): "0"}
        sectors = [data[at : at + SECTOR_BYTES] for at in range(0, len(data), SECTOR_BYTES)]
        fates.add("".join(kinds.get(sector, "?") for sector in sectors))
    assert {"oooooooo", "nnnnnnnn"} <= fates
    assert any("n" in fate and "o" in fate[: fate.index("n")] for fate in fates), "a later sector without an earlier"
    assert set("".join(fates)) == set("on0?")


def test_writes_are_lost_out_of_order():
    """A later write may be there, and an earlier one not."""
    seen = set()
    for seed in range(100):
        fs = mounted(seed)
        fd = put(fs, "/d/file", bytes(2 * SECTOR_BYTES))
        fs.pwrite(fd, b"1" * SECTOR_BYTES, 0)
        fs.pwrite(fd, b"2" * SECTOR_BYTES, SECTOR_BYTES)
        fs.disk.power_loss()
        data = fs.disk.file("/d/file")
        seen.add((data[:1] == b"1", data[-1:] == b"2"))
    assert seen == {(False, False), (True, False), (False, True), (True, True)}


def test_an_unsynced_growth_is_cut_anywhere():
    """At a byte, not only at a sector; or it is there before its bytes are."""
    sizes, zeros = set(), 0
    for seed in range(200):
        fs = mounted(seed)
        put(fs, "/d/file", OLD[:100])
        fs.pwrite(fs.open("/d/file"), NEW, 100)
        fs.disk.power_loss()
        data = fs.disk.file("/d/file")
        assert data[:100] == OLD[:100]
        sizes.add(len(data))
        zeros += data[100:] == bytes(len(NEW))
    assert {100, 100 + len(NEW)} <= sizes
    assert any(size % SECTOR_BYTES not in (0, 100) for size in sizes)
    assert zeros


def test_an_unsynced_truncation_may_not_have_happened():
    """A file that is created again is emptied."""
    sizes = set()
    for seed in range(50):
        fs = mounted(seed)
        put(fs, "/d/file", OLD)
        fs.open("/d/file", create=True)
        assert fs.disk.file("/d/file") == b""
        fs.disk.power_loss()
        sizes.add(len(fs.disk.file("/d/file")))
    assert sizes == {0, len(OLD)}


def test_names_are_durable_by_the_sync_of_their_directory_only():
    """A synced file may have lost its name; a rename or an unlink may not have happened."""
    seen = set()
    for seed in range(100):
        fs = mounted(seed)
        put(fs, "/d/removed", b"r")
        put(fs, "/d/target", b"old")
        fs.fdatasync(put(fs, "/d/source", b"new", sync=False))
        fs.rename("/d/source", "/d/target")
        fs.unlink("/d/removed")
        assert fs.listdir("/d") == ["target"]
        fs.disk.power_loss()
        left = found(fs.disk)
        assert left["/d/target"] in (b"old", b"new"), "a rename replaces its target in one step"
        assert left["/d/target"] == b"old" or "/d/source" not in left, "and takes the old name away in the same"
        seen.add(tuple(sorted((path[3:], data) for path, data in left.items())))
    target = [("target", b"old")], [("target", b"new")]
    removed = [], [("removed", b"r")]
    assert {tuple(sorted(t + r)) for t in target for r in removed} <= seen
    assert any(("source", b"new") in names for names in seen)


@pytest.mark.parametrize("seed", range(10))
def test_after_a_power_loss_nothing_is_in_the_cache_only(seed):
    """Whatever was done before: also files that came back because their removal was lost."""
    for step in range(20):
        fs, random = mounted(seed), Random(f"{seed}/{step}")
        outcome = Outcome(fs, "/d")
        for _ in range(random.randrange(60)):
            outcome.run(random)
            if random.random() < 0.1:
                fs.fsync_dir("/d")
        fs.disk.power_loss()
        left = found(fs.disk)
        assert left == found(fs.disk.durable_copy()), f"seed {seed}, step {step}"
        fs.disk.power_loss()
        assert left == found(fs.disk), f"seed {seed}, step {step}"


def test_a_directory_may_be_lost_with_all_that_is_in_it():
    """Until its own name was synced."""
    lost = 0
    for seed in range(40):
        fs = SimDisk(Random(seed)).mount()
        fs.make_dir("/d")
        put(fs, "/d/file", b"x")
        fs.make_dir("/d/below")
        fs.disk.power_loss()
        left = list(fs.disk.directories)
        lost += "/d" not in left
        assert "/d/below" not in left or "/d" in left
        fs.disk.power_loss()
        assert list(fs.disk.directories) == left, "what the first power loss left is durable"
    assert 0 < lost < 40


def test_the_power_goes_in_the_middle_of_a_job():
    """Before the operation that was named, once; who planned it is told at that moment."""
    fs = mounted()
    told = []
    fs.disk.power_loss_at(3, lambda: told.append(fs.disk.operations))
    fd = fs.open("/d/file", create=True)
    fs.pwrite(fd, OLD, 0)
    began = fs.disk.operations
    with pytest.raises(SimulatedCrash):
        fs.fdatasync(fd)
    assert told == [began + 1]
    with pytest.raises(SimulatedCrash):
        fs.listdir("/d")
    again = fs.disk.mount()
    for _ in range(5):
        again.listdir("/d")
    assert told == [began + 1]


def test_a_plan_can_be_forgotten():
    """By `spare`, and by a power loss that comes first."""
    fs = mounted()
    fs.disk.power_loss_at(1, lambda: pytest.fail("told"))
    fs.disk.spare()
    fs.listdir("/d")
    fs.disk.kill_at(1, lambda: pytest.fail("told"))
    fs.disk.power_loss()
    fs.disk.mount().listdir("/d")


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "seen", "after_cache", "after_sync"),
    [
        (SyncFailure.DROPPED, NEW, OLD, OLD),
        (SyncFailure.REVERTED, OLD, OLD, OLD),
        (SyncFailure.KEPT, NEW, NEW, NEW),
        (SyncFailure.DURABLE, NEW, NEW, NEW),
    ],
)
def test_a_sync_fails_in_many_ways(how, seen, after_cache, after_sync):
    """What is seen right after it, when the cache is dropped, and when a later sync succeeds and the power goes."""
    for step in range(3):
        fs = mounted()
        fd = put(fs, "/d/file", OLD)
        fs.pwrite(fd, NEW, 0)
        fs.disk.fault = DiskFaults(errors=(DiskError(frozenset({"fdatasync"}), sync_failure=how),))
        with pytest.raises(OSError, match="simulated: fdatasync"):
            fs.fdatasync(fd)
        fs.disk.fault = DiskFaults()
        if step == 0:
            assert fs.pread(fd, len(NEW), 0) == seen
        elif step == 1:
            fs.forget_cache(fd)
            assert fs.pread(fd, len(NEW), 0) == after_cache
        else:
            fs.fdatasync(fd)
            fs.disk.power_loss()
            assert fs.disk.file("/d/file") == after_sync


def test_a_failed_sync_may_have_written_a_part():
    """The cache shows all of it; on the disk is any mixture, and nothing of it is written later."""
    mixtures = set()
    for seed in range(40):
        fs = mounted(seed)
        fd = put(fs, "/d/file", OLD)
        fs.pwrite(fd, NEW, 0)
        fs.disk.fault = DiskFaults(errors=(DiskError(frozenset({"fdatasync"}), nth=1, sync_failure=SyncFailure.TORN),))
        with pytest.raises(OSError, match="simulated"):
            fs.fdatasync(fd)
        assert fs.pread(fd, len(NEW), 0) == NEW
        torn = found(fs.disk.durable_copy())
        fs.fdatasync(fd)
        fs.disk.power_loss()
        assert found(fs.disk) == torn
        mixtures.add(torn["/d/file"])
    assert {OLD, NEW} < mixtures


def test_a_directory_sync_that_fails_makes_no_name_durable():
    """Unless the error was about something else."""
    for how, durable in ((SyncFailure.DROPPED, False), (SyncFailure.DURABLE, True)):
        fs = mounted()
        put(fs, "/d/file", b"x", sync=False)
        fs.disk.fault = DiskFaults(errors=(DiskError(frozenset({"fsync_dir"}), sync_failure=how),))
        with pytest.raises(OSError, match="fsync_dir"):
            fs.fsync_dir("/d")
        assert ("/d/file" in found(fs.disk.durable_copy())) is durable


def test_errors_may_last():
    """From the n-th operation on."""
    fs = mounted(errors=(DiskError(frozenset({"pwrite"}), nth=3, is_lasting=True, code=errno.EROFS),))
    fd = fs.open("/d/f", create=True)
    assert [fs.pwrite(fd, b"x", 0) for _ in range(2)] == [1, 1]
    for _ in range(3):
        with pytest.raises(OSError, match="pwrite fails"):
            fs.pwrite(fd, b"x", 0)


def test_the_nth_write_may_be_short():
    """It takes half, and all others take everything."""
    fs = mounted(errors=(DiskError(frozenset({"pwrite"}), nth=2, code=0),))
    fd = fs.open("/d/f", create=True)
    assert [fs.pwrite(fd, b"12345678", 8 * n) for n in range(3)] == [8, 4, 8]
    assert fs.disk.file("/d/f") == b"123456781234" + bytes(4) + b"12345678"


def test_a_sector_may_not_be_readable():
    """Whoever reads past it fails; others do not."""
    fs = mounted()
    fd = put(fs, "/d/f", OLD)
    fs.disk.fault = DiskFaults(unreadable_sectors=frozenset({("/d/f", 2), ("/d/g", 0)}))
    assert fs.pread(fd, 2 * SECTOR_BYTES, 0) == OLD[: 2 * SECTOR_BYTES]
    assert fs.pread(fd, 99, 3 * SECTOR_BYTES) == OLD[:99]
    for size, offset in ((1, 2 * SECTOR_BYTES), (1, 3 * SECTOR_BYTES - 1), (8 * SECTOR_BYTES, 0)):
        with pytest.raises(OSError, match="sector 2"):
            fs.pread(fd, size, offset)


def test_errors_strike_by_kind_path_number_and_rate():
    """And leave alone what they do not name."""
    fs = mounted()
    one, two = put(fs, "/d/one", b"1"), put(fs, "/d/two", b"2")
    third_read = DiskError(frozenset({"pread"}), path="one", nth=3, code=errno.ENXIO)
    half_the_lists = DiskError(frozenset({"listdir"}), rate=0.5)
    fs.disk.fault = DiskFaults(errors=(third_read, half_the_lists))
    codes = []
    for _ in range(5):
        assert fs.pread(two, 1, 0) == b"2"
        try:
            fs.pread(one, 1, 0)
            codes.append(0)
        except OSError as error:
            codes.append(error.errno)
    assert codes == [0, 0, errno.ENXIO, 0, 0]
    failed = 0
    for _ in range(200):
        try:
            fs.listdir("/d")
        except OSError:
            failed += 1
    assert 60 < failed < 140
    assert (third_read.count, half_the_lists.count) == (5, 200)


def test_an_open_file_goes_by_its_new_name():
    """A rule and the trace mean the path that a file has now, whoever opened it before."""
    fs = mounted()
    fd = put(fs, "/d/old", OLD)
    fs.rename("/d/old", "/d/new")
    fs.disk.fault = DiskFaults(errors=(DiskError(path="new"),))
    with pytest.raises(OSError, match="/d/new"):
        fs.pread(fd, 1, 0)
    assert fs.disk.trace[-1] == ("pread", "/d/new")


def test_a_full_disk_takes_what_fits():
    """The write that crosses the end is short, the next one fails; what is there can be written over, or removed."""
    fs = mounted()
    one = put(fs, "/d/one", b"1" * 600)
    two = put(fs, "/d/two", b"2" * 300)
    fs.disk.fault = DiskFaults(capacity_bytes=1000)
    assert fs.pwrite(one, b"x" * 300, 500) == 200
    with pytest.raises(OSError, match="no space") as caught:
        fs.pwrite(one, b"x", 700)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="no space"):
        write_all(fs, two, b"y" * 400, 0)
    assert fs.disk.file("/d/two") == b"y" * 300
    assert fs.pwrite(one, b"z" * 700, 0) == 700
    for make in (lambda: fs.open("/d/three", create=True), lambda: fs.lock("/d/LOCK")):
        with pytest.raises(OSError, match="no space"):
            make()
    fs.unlink("/d/two")
    assert fs.pwrite(one, b"x" * 300, 700) == 300


def test_short_writes_say_so():
    """Never nothing, never more than given, and a caller that goes on gets everything in."""
    fs = mounted(short_write_rate=1.0)
    fd = fs.open("/d/file", create=True)
    counts = {fs.pwrite(fd, b"abcd", 0) for _ in range(50)}
    assert counts == {1, 2, 3}
    write_all(fs, fd, NEW, 0)
    assert fs.disk.file("/d/file") == NEW


# --- Lies and rot -----------------------------------------------------------------------------------------------------


def test_a_lost_write_is_seen_until_the_cache_is_dropped():
    """Its sync succeeds, the file has grown, and the bytes are not there."""
    fs = mounted()
    fd = put(fs, "/d/file", OLD)
    fs.disk.fault = DiskFaults(lost_write_rate=1.0)
    write_all(fs, fd, NEW, SECTOR_BYTES)
    fs.fdatasync(fd)
    assert fs.pread(fd, len(NEW), SECTOR_BYTES) == NEW
    fs.forget_cache(fd)
    assert fs.pread(fd, 99_999, 0) == OLD + bytes(SECTOR_BYTES)


def test_a_misdirected_write_hits_other_bytes():
    """The right place keeps what it held; some other place holds what it should not."""
    hit = set()
    for seed in range(30):
        fs = mounted(seed)
        put(fs, "/d/other", bytes(len(OLD)))
        fd = put(fs, "/d/file", OLD)
        fs.disk.fault = DiskFaults(misdirected_write_rate=1.0)
        fs.pwrite(fd, NEW[:SECTOR_BYTES], 0)
        fs.fdatasync(fd)
        left = found(fs.disk.durable_copy())
        assert sum(data.count(NEW[:SECTOR_BYTES]) for data in left.values()) == 1
        hit |= {path for path, data in left.items() if b"n" in data}
        assert [len(data) for data in left.values()] == [len(OLD)] * 2
    assert hit == {"/d/file", "/d/other"}
    fs = mounted(misdirected_write_rate=1.0)
    put(fs, "/d/file", OLD)
    assert found(fs.disk.durable_copy()) == {"/d/file": bytes(len(OLD))}, "there was no other place"


def test_a_lost_sync_claims_success():
    """Of a file and of a directory; an honest one later makes up for it."""
    fs = mounted(lost_sync_rate=1.0)
    fd = put(fs, "/d/file", OLD)
    assert found(fs.disk.durable_copy()) == {}
    fs.disk.fault = DiskFaults()
    fs.fsync_dir("/d")
    assert found(fs.disk.durable_copy()) == {"/d/file": b""}
    fs.fdatasync(fd)
    assert found(fs.disk.durable_copy()) == {"/d/file": OLD}


@pytest.mark.parametrize("seed", range(20))
def test_rot_flips_one_durable_bit(seed):
    """And says which; who has it in the cache sees nothing of it before the cache is dropped."""
    fs = mounted(seed)
    fds = {path: put(fs, path, OLD) for path in ("/d/one", "/d/two")}
    where = fs.disk.rot(Random(seed), path="/d/two" if seed % 2 else "")
    path = where.partition(":")[0]
    assert path == "/d/two" or not seed % 2
    assert fs.pread(fds[path], len(OLD), 0) == OLD
    fs.forget_cache(fds[path])
    flipped = [(at, a ^ b) for at, (a, b) in enumerate(zip(fs.disk.file(path), OLD, strict=True)) if a != b]
    ((position, difference),) = flipped
    assert where == f"{path}: bit {difference.bit_length() - 1} of byte {position} of {len(OLD)}"
    assert difference.bit_count() == 1


def test_nothing_rots_where_nothing_is():
    """An empty disk, an empty file."""
    fs = mounted()
    assert fs.disk.rot(Random(0)) == ""
    put(fs, "/d/file", b"")
    assert fs.disk.rot(Random(0)) == fs.disk.rot(Random(0), path="/d/file") == ""


def test_a_wiped_disk_is_blank():
    """And whoever used it is dead."""
    fs = mounted()
    put(fs, "/d/file", OLD)
    fs.disk.wipe()
    assert (found(fs.disk), fs.disk.used_bytes) == ({}, 0)
    with pytest.raises(SimulatedCrash):
        fs.listdir("/d")
    with pytest.raises(FileNotFoundError):
        fs.disk.mount().listdir("/d")


# --- Copies -----------------------------------------------------------------------------------------------------------


def test_a_durable_copy_holds_what_was_synced():
    """Of bytes and of names; what is done to either later does not show in the other."""
    fs = mounted()
    fd = put(fs, "/d/file", OLD)
    put(fs, "/d/unnamed", b"x", sync=False)
    fs.pwrite(fd, NEW, len(OLD))
    fs.make_dir("/e")
    fs.make_dir("/e/below")
    fs.fsync_dir("/e")
    put(fs, "/e/lost", b"x", sync=False)
    copy = fs.disk.durable_copy()
    assert (found(copy), sorted(copy.directories)) == ({"/d/file": OLD}, ["", "/d"])
    fs.fdatasync(fd)
    fs.pwrite(fd, b"first", 0)
    fs.fdatasync(fd)
    assert found(copy) == {"/d/file": OLD}
    view = copy.mount()
    put(view, "/d/file", b"other")
    assert found(copy) == {"/d/file": b"other"}
    assert fs.disk.file("/d/file") == b"first" + (OLD + NEW)[5:]


def test_a_durable_copy_costs_no_bytes():
    """However long the files are; appending to them afterwards does not either."""
    fs = mounted()
    fds = [put(fs, f"/d/{number}", bytes(4 << 20)) for number in range(3)]

    def append() -> None:
        for fd in fds:
            fs.pwrite(fd, b"more", fs.size(fd))
            fs.fdatasync(fd)

    append()  # makes room for more, as Python does
    tracemalloc.start()
    try:
        copy = fs.disk.durable_copy()
        append()
        copied_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert copied_bytes < 100_000
    assert copy.used_bytes == 3 * (4 << 20) + 12
    assert fs.disk.used_bytes == 3 * (4 << 20) + 24


def test_a_copy_is_the_disk_as_it_is_seen():
    """With everything synced and nothing wrong."""
    fs = mounted(lost_sync_rate=1.0)
    put(fs, "/d/file", OLD)
    copy = fs.disk.copy()
    copy.power_loss()
    assert found(copy) == {"/d/file": OLD}
    assert copy.fault == DiskFaults()


# --- Time and chance --------------------------------------------------------------------------------------------------

PROFILE = DiskProfile(
    sync_seconds=(0.001, 0.001), read_seconds=(0.01, 0.01), write_bytes_per_second=1000, read_bytes_per_second=100
)


def cost(fs: SimFS, operation) -> float:
    """What an operation adds."""
    fs.disk.seconds = 0.0
    operation()
    return round(fs.disk.seconds, 9)


def test_operations_cost_what_the_profile_says():
    """Syncs by what is dirty, reads by what is not in the cache; the rest is memory."""
    fs = mounted()
    fs.disk.profile = PROFILE
    fd = fs.open("/d/file", create=True)
    assert cost(fs, lambda: fs.pwrite(fd, b"x" * 500, 0)) == 0
    assert cost(fs, lambda: fs.fdatasync(fd)) == 0.501
    assert cost(fs, lambda: fs.fdatasync(fd)) == 0.001
    assert cost(fs, lambda: fs.fsync_dir("/d")) == 0.001
    assert cost(fs, lambda: fs.pread(fd, 500, 0)) == 0
    fs.forget_cache(fd)
    assert cost(fs, lambda: fs.pread(fd, 50, 0)) == 0.51
    assert cost(fs, lambda: fs.pread(fd, 50, 0)) == 0
    fs.disk.fault = DiskFaults(slow_factor=10, sync_extra_seconds=2)
    assert cost(fs, lambda: fs.fsync_dir("/d")) == 2.01
    fs.disk.fault = DiskFaults()
    fs.disk.profile = replace(PROFILE, stall_rate=1.0, stall_seconds=(3, 3))
    assert cost(fs, lambda: fs.fsync_dir("/d")) == 3.001


def test_a_fault_record_is_taken_as_a_whole():
    """Each replaces the one before; a disk that stays full keeps the size at which it became so."""
    fs = mounted()
    fd = put(fs, "/d/file", OLD)
    fs.disk.suffer(DiskFault(is_full=True, slow_factor=3.0, sync_seconds=1.0, short_write_rate=0.5))
    fs.unlink("/d/file")
    fs.disk.suffer(DiskFault(is_full=True, write_error_rate=1.0, read_error_rate=1.0, sync_failure="kept"))
    assert (fs.disk.fault.capacity_bytes, fs.disk.fault.slow_factor) == (len(OLD), 1.0)
    for operation in (lambda: fs.pwrite(fd, b"x", 0), lambda: fs.pread(fd, 1, 0), lambda: fs.fdatasync(fd)):
        with pytest.raises(OSError, match="simulated") as caught:
            operation()
        assert caught.value.errno == errno.EIO
    assert [error.sync_failure for error in fs.disk.fault.errors][-1] is SyncFailure.KEPT
    fs.disk.suffer(DiskFault())
    assert fs.disk.fault == DiskFaults()


def story(seed: int) -> str:
    """Everything that chance decides, in one life and its end."""
    fs = mounted(seed, short_write_rate=0.3, lost_write_rate=0.1, misdirected_write_rate=0.1, lost_sync_rate=0.1)
    random = Random(seed)
    for number in range(30):
        fd = put(fs, f"/d/{number % 7}", random.randbytes(3000), sync=number % 3 > 0)
        if number % 5 == 0:
            fs.rename(f"/d/{number % 7}", f"/d/r{number}")
        fs.close(fd)
    where = fs.disk.rot(random)
    fs.disk.power_loss()
    return f"{where} {fs.disk.seconds} {sorted(found(fs.disk).items())}"


def test_the_same_seed_has_the_same_fate():
    """In another process too, which hashes strings otherwise; another seed has another."""
    from hashlib import sha256

    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from hashlib import sha256\nfrom tests.sim.test_disk import story\n"
        "print(sha256(story(5).encode()).hexdigest())"
    )
    here = sha256(story(5).encode()).hexdigest()
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "77"}
    )
    assert result.stdout.strip() == here
    assert story(6) != story(5)
