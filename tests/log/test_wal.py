"""The log itself: appending, rolling, reading back, purging, failing."""

from __future__ import annotations

import errno
from random import Random

import pytest

from pyraftkv.core.ready import Save
from pyraftkv.core.types import Entry, HardState, Membership, SnapshotMeta
from pyraftkv.errors import StorageFailed, WalCorruption
from pyraftkv.log.base import Identity
from pyraftkv.log.recovery import open_wal
from pyraftkv.log.wal import Wal
from pyraftkv.sim.disk import SimFS
from tests.log.disks import blank, fail, heal, trace

MEMBERS = Membership(voters=frozenset({1}))


def disk() -> SimFS:
    """An empty disk."""
    fs = blank()
    fs.make_dir("/wal")
    return fs


def open_log(fs, *, boots=0, segment_bytes_max=8192, reserve_bytes=0) -> Wal:
    """Open the log of a disk, or begin it. Its files end with the last batch, unless there is a reserve behind that."""
    identity = Identity(cluster_id=1, member_id=1, incarnation=1, boot_count=boots)
    options = {"random": Random(1), "segment_bytes_max": segment_bytes_max, "reserve_bytes": reserve_bytes}
    return open_wal(fs, "/wal", identity=identity, **options)[0]


def entries(first: int, count: int, *, term: int = 1, size: int = 100) -> list[Entry]:
    """`count` entries from `first` on."""
    return [Entry(first + i, term, bytes([(first + i) % 251]) * size) for i in range(count)]


def save(of=(), *, number=1, state=None, snapshot=None) -> Save:
    """A save of these entries."""
    return Save(number, state, list(of), snapshot)


def meta(index: int, term: int = 1) -> SnapshotMeta:
    """A snapshot at that index."""
    return SnapshotMeta(index=index, term=term, membership=MEMBERS)


def everything(wal: Wal) -> list[Entry]:
    """All entries that the log still has."""
    return wal.read(lo=wal.first_index, hi=wal.last_index + 1, bytes_max=1 << 40)


def writes(fs) -> list[str]:
    """What was done to the disk, reads left out."""
    return [line.split()[0] for line in trace(fs) if line.split()[0] in ("pwrite", "fdatasync", "fsync_dir", "rename")]


def test_a_batch_is_one_write_and_one_sync():
    """However many saves it holds."""
    fs = disk()
    wal = open_log(fs)
    fs.disk.trace.clear()
    wal.append([save(entries(first, 3), state=HardState(1, 1, 0)) for first in (1, 4, 7)])
    assert writes(fs) == ["pwrite", "fdatasync"]
    assert everything(wal) == entries(1, 9)


def test_saves_that_go_on_from_each_other_are_one_run():
    """Many small saves cost no more records than one large one."""
    wal = open_log(disk())
    wal.append([save(entries(first, 1)) for first in range(1, 20)])
    assert len(wal.runs) == 1


def test_an_append_of_nothing_new_writes_nothing():
    """An unchanged hard state is on disk already."""
    fs = disk()
    wal = open_log(fs)
    wal.append([save(state=HardState(2, 1, 0))])
    fs.disk.trace.clear()
    wal.append([save(state=HardState(2, 1, 0)), save()])
    wal.append([])
    assert trace(fs) == []


def test_an_overwrite_replaces_everything_from_its_index_on():
    """In one batch or in several, before and after a start."""
    fs = disk()
    wal = open_log(fs)
    wal.append([save(entries(1, 10)), save(entries(8, 1, term=2))])
    assert everything(wal) == entries(1, 7) + entries(8, 1, term=2)
    wal.append([save(entries(3, 2, term=3))])
    expected = entries(1, 2) + entries(3, 2, term=3)
    assert everything(wal) == expected
    assert everything(open_log(fs, boots=1)) == expected


def test_what_is_committed_is_never_overwritten():
    """An overwrite at or below the commit index is our bug, and so is a gap, and a term that falls."""
    for wrong in (
        save(entries(2, 1, term=2)),
        save(entries(9, 1)),
        save(state=HardState(0, 0, 0)),
    ):
        wal = open_log(disk())
        wal.append([save(entries(1, 4), state=HardState(1, 1, 2))])
        with pytest.raises(AssertionError):
            wal.append([wrong])


def test_the_commit_index_never_goes_back():
    """A hard state that knows less than a snapshot does not lower it."""
    wal = open_log(disk())
    wal.append([save(entries(1, 4), state=HardState(1, 1, 1))])
    wal.append([], taken=[meta(3)])
    wal.append([save(state=HardState(2, 1, 2))])
    assert wal.hard_state == HardState(2, 1, 3)


@pytest.mark.parametrize("bytes_max", [0, 1, 99, 100, 250, 10_000, 1 << 30])
def test_reads_stop_at_the_bytes_asked_for_but_give_one_entry(bytes_max):
    """`bytes_max` counts payload; one entry comes at least."""
    wal = open_log(disk())
    wal.append([save(entries(1, 200))])
    read = wal.read(lo=20, hi=150, bytes_max=max(bytes_max, 1))
    assert read == entries(20, len(read))
    assert len(read) == min(max(bytes_max // 100, 1), 130)


def test_reads_outside_the_log_are_empty():
    """What is purged, or not there yet, is not there."""
    wal = open_log(disk())
    wal.append([save(entries(1, 5))])
    assert wal.read(lo=6, hi=9, bytes_max=1) == []
    assert wal.read(lo=0, hi=3, bytes_max=1) == []
    assert wal.read(lo=3, hi=3, bytes_max=1) == []


def test_a_record_that_changed_after_it_was_written_is_noticed_when_read():
    """Entries go to followers from the disk: rot must not travel."""
    fs = disk()
    wal = open_log(fs)
    wal.append([save(entries(1, 5))])
    (name,) = fs.listdir("/wal")
    data = bytearray(fs.disk.file(f"/wal/{name}"))
    data[wal.runs.spans(lo=1, hi=2, bytes_max=1)[0].offset + 90] ^= 1
    fs.disk.damage(f"/wal/{name}", data)
    with pytest.raises(WalCorruption) as caught:
        wal.read(lo=2, hi=4, bytes_max=1 << 20)
    assert (caught.value.segment, caught.value.lost_range) == (name, (2, 4))


def test_a_roll_seals_and_syncs_before_the_next_segment_gets_its_name():
    """Temporary file, sync; seal, sync; rename; sync of the directory."""
    fs = disk()
    wal = open_log(fs)
    wal.append([save(entries(1, 50))])
    fs.disk.trace.clear()
    wal.append([save(entries(51, 1))])
    draft, seal, batch = ["pwrite", "fdatasync"], ["pwrite", "fdatasync"], ["pwrite", "fdatasync"]
    assert writes(fs) == [*draft, *seal, "rename", "fsync_dir", *batch]
    assert len(wal.segments) == 2
    assert not [fd for fd, file in fs.fds.items() if "0000-" in file.path], "the sealed segment was closed"
    assert everything(open_log(fs, boots=1)) == entries(1, 51)


def fill(fs, count: int) -> Wal:
    """A log of so many entries, over many segments."""
    wal = open_log(fs)
    for first in range(1, count, 10):
        wal.append([save(entries(first, 10), state=HardState(1, 1, first - 1))])
    return wal


def test_purging_keeps_the_log_back_to_the_older_of_two_snapshots():
    """One snapshot purges nothing; the second one purges up to the first; names survive the purge."""
    fs = disk()
    wal = fill(fs, 500)
    wal.append([], taken=[meta(200)])
    wal.purge()
    assert wal.first_index == 1
    wal.append([], taken=[meta(400)])
    wal.purge()
    assert 100 < wal.first_index <= 201
    assert wal.snapshots == [meta(200), meta(400)]
    again = open_log(fs, boots=1)
    assert (again.first_index, again.last_index) == (wal.first_index, 500)
    assert again.named_snapshots() == [meta(200), meta(400)]
    assert again.log_bytes == wal.log_bytes
    assert everything(again) == entries(wal.first_index, 501 - wal.first_index)


def test_a_snapshot_stays_named_though_the_segment_that_named_it_is_purged():
    """Each new segment names the snapshots in use again."""
    fs = disk()
    wal = open_log(fs)
    wal.append([save(entries(1, 200), state=HardState(1, 1, 200))], taken=[meta(200)])
    wal.append([save(entries(201, 200), state=HardState(1, 1, 400))])
    wal.append([], taken=[meta(400)])
    wal.purge()
    assert wal.first_index == 201
    assert open_log(fs, boots=1).snapshots == [meta(200), meta(400)]


def test_a_vote_is_kept_though_the_segment_that_it_was_saved_in_is_purged():
    """Each new segment begins with the hard state: after a received snapshot nothing else may save that vote again."""
    fs = disk()
    wal = open_log(fs)
    wal.append([save(entries(1, 200)), save(snapshot=meta(1000), state=HardState(3, 2, 1000))])
    wal.append([save(entries(1001, 1))])
    wal.purge()
    assert len(wal.segments) == 1
    assert open_log(fs, boots=1).hard_state == HardState(3, 2, 1000)


def test_purging_unlinks_oldest_first_and_durably_one_by_one():
    """A crash in the middle leaves no hole in the sequence."""
    fs = disk()
    wal = fill(fs, 500)
    wal.append([], taken=[meta(200)])
    wal.append([], taken=[meta(400)])
    fs.disk.trace.clear()
    wal.purge()
    unlinked = [line for line in trace(fs) if line.startswith("unlink")]
    assert unlinked == sorted(unlinked)
    assert len(unlinked) > 1
    assert trace(fs) == [line for name in unlinked for line in (name, "fsync_dir /wal")]


def test_a_purge_that_fails_is_continued_by_the_next():
    """An unlink that the disk refuses leaves the segments after it alone."""
    fs = disk()
    wal = fill(fs, 500)
    wal.append([], taken=[meta(200)])
    wal.append([], taken=[meta(400)])
    before = len(wal.segments)
    fail(fs, lambda name, _path: errno.EIO if name == "unlink" else 0)
    with pytest.raises(OSError, match="unlink"):
        wal.purge()
    assert len(wal.segments) == before
    heal(fs)
    wal.purge()
    assert len(wal.segments) < before
    assert everything(open_log(fs, boots=1))[0].index == wal.first_index


def test_a_received_snapshot_replaces_the_log_and_purges_all_of_it():
    """Nothing before it can be continued from."""
    fs = disk()
    wal = fill(fs, 500)
    wal.append([save(snapshot=meta(900, 4)), save(entries(901, 2, term=4))])
    assert (wal.first_index, wal.last_index, wal.hard_state.commit) == (901, 902, 900)
    wal.purge()
    assert len(wal.segments) == 1
    assert wal.snapshots == [meta(900, 4)]
    again = open_log(fs, boots=1)
    assert everything(again) == entries(901, 2, term=4)
    assert again.snapshots == [meta(900, 4)]


def test_a_snapshot_older_than_those_in_use_is_not_taken_into_use():
    """A local snapshot that a received one overtook changes nothing."""
    fs = disk()
    wal = fill(fs, 100)
    wal.append([save(snapshot=meta(900, 4))])
    wal.append([], taken=[meta(50)])
    assert wal.snapshots == [meta(900, 4)]
    assert open_log(fs, boots=1).snapshots == [meta(900, 4)]


def test_log_bytes_counts_what_the_newest_snapshot_does_not_cover():
    """It starts near nothing, grows by what is written, and shrinks to what follows a snapshot."""
    fs = disk()
    wal = open_log(fs, segment_bytes_max=1 << 20)
    empty = wal.log_bytes
    wal.append([save(entries(1, 400), state=HardState(1, 1, 400))])
    full = wal.log_bytes
    assert 40_000 < full - empty < 50_000
    wal.append([], taken=[meta(200)])
    assert full // 2 - 5000 < wal.log_bytes < full // 2 + 5000
    wal.append([], taken=[meta(400)])
    assert wal.log_bytes == 0
    assert open_log(fs, boots=1, segment_bytes_max=1 << 20).log_bytes == 0


@pytest.mark.parametrize("operation", ["pwrite", "fdatasync"])
def test_the_first_error_is_final(operation):
    """After a failed write or sync nothing is retried, and the file is not touched again."""
    fs = disk()
    wal = open_log(fs)
    wal.append([save(entries(1, 2))])
    fail(fs, lambda name, _path: errno.EIO if name == operation else 0)
    with pytest.raises(OSError, match="simulated"):
        wal.append([save(entries(3, 2))])
    heal(fs)
    fs.disk.trace.clear()
    with pytest.raises(StorageFailed):
        wal.append([save(entries(3, 2))])
    assert trace(fs) == []
    assert everything(wal) == entries(1, 2)


@pytest.mark.parametrize("operation", ["create", "pwrite", "fdatasync", "rename", "fsync_dir"])
def test_an_error_while_rolling_is_final_too(operation):
    """A segment whose name may not be durable is not appended to. Each descriptor is closed once."""
    fs = disk()
    wal = open_log(fs)
    wal.append([save(entries(1, 100))])
    fail(fs, lambda name, path: errno.EIO if name == operation and "0001-" in path + "0001-" else 0)
    with pytest.raises(OSError, match="simulated"):
        wal.append([save(entries(101, 1))])
    heal(fs)
    with pytest.raises(StorageFailed):
        wal.append([save(entries(101, 1))])
    wal.close()
    assert fs.fds == {}
    again = open_log(fs, boots=1)
    assert everything(again) == entries(1, 100)


def test_many_random_appends_read_back_as_one_log():
    """Against a plain list: appends, overwrites and rolls, with starts in between."""
    random = Random(11)
    fs = blank(random)
    fs.make_dir("/wal")
    wal, plain, term = open_log(fs), [], 1
    for step in range(400):
        if random.random() < 0.1 and plain:
            term += 1
            del plain[random.randrange(len(plain)) :]
        batch = entries(len(plain) + 1, random.randint(1, 9), term=term, size=random.choice((0, 7, 400)))
        plain += batch
        wal.append([save(batch)])
        if random.random() < 0.05:
            wal.close()
            wal = open_log(fs, boots=1)
        if step % 20 == 0:
            assert everything(wal) == plain
            wal.runs.check()
    assert everything(wal) == plain
