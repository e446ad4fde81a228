"""Damage: what a crash can have left is mended, everything else is refused with its exact place."""

from __future__ import annotations

import errno
from random import Random
from zlib import crc32

import pytest

from pyraftkv.core.ready import Save
from pyraftkv.core.types import Entry, HardState, Membership, SnapshotMeta
from pyraftkv.errors import ForeignDataDir, UnsupportedFormat, WalCorruption
from pyraftkv.log.base import Identity
from pyraftkv.log.block import pack_block
from pyraftkv.log.record import HEADER_BYTES, BatchEncoder, RecordType
from pyraftkv.log.recovery import open_wal
from pyraftkv.log.segment import (
    BLOCK_BYTES,
    SEGMENT_BYTES_LIMIT,
    SEGMENT_MAGIC,
    SegmentScanner,
    pack_segment_header,
    unpack_segment_header,
)
from pyraftkv.sim.disk import SimFS
from tests.log.disks import blank, fail, heal, trace, twin

IDENTITY = Identity(cluster_id=5, member_id=2, incarnation=99, boot_count=0)
BOOTED = Identity(cluster_id=5, member_id=2, incarnation=99, boot_count=1)
MEMBERS = Membership(voters=frozenset({1, 2, 3}))


def reopen(fs, *, identity=BOOTED, segment_bytes_max=8192):
    """Open the log of a disk, as a start does."""
    return open_wal(
        fs, "/wal", identity=identity, random=Random(2), segment_bytes_max=segment_bytes_max, reserve_bytes=0
    )


def make(batches: int, *, size: int = 100, segment_bytes_max: int = 8192) -> SimFS:
    """A log of ``batches`` batches of two entries, the commit index following."""
    fs = blank()
    fs.make_dir("/wal")
    wal, repaired = reopen(fs, identity=IDENTITY, segment_bytes_max=segment_bytes_max)
    assert repaired == ""
    for number in range(batches):
        first = 2 * number + 1
        entries = [Entry(first, 1, bytes([number % 256]) * size), Entry(first + 1, 1, b"")]
        wal.append([Save(number, HardState(1, 1, first - 1), entries, None)])
    wal.close()
    return fs


def segments(fs) -> list[str]:
    """The segment files, in order."""
    return [f"/wal/{name}" for name in fs.listdir("/wal") if name.endswith(".wal")]


def batch_ends(data: bytes) -> list[int]:
    """Where each batch of a segment ends, the opening one first."""
    scanner = SegmentScanner(bytes(data), unpack_segment_header(bytes(data[:BLOCK_BYTES]), path=""))
    return [scanner.end for _ in scanner.batches()]


def test_every_cut_of_the_last_batch_is_torn():
    """Wherever the last batch was cut, it is gone as a whole, and nothing before it is."""
    fs = make(5)
    (path,) = segments(fs)
    data = bytes(fs.disk.file(path))
    start = batch_ends(data)[-2]
    for cut in range(start, len(data)):
        copy = twin(fs)
        copy.disk.damage(path, data[:cut])
        wal, repaired = reopen(copy)
        assert wal.last_index == 8
        assert bool(repaired) == (cut > start)
        assert copy.disk.file(path) == data[:start] + bytes(cut - start)
        if repaired:
            assert copy.disk.file(path + ".torn") == data[start:cut].rstrip(b"\0")
        wal.append([Save(9, None, [Entry(9, 2, b"new")], None)])
        wal.close()
        again, repaired = reopen(copy)
        assert (again.last_index, repaired) == (9, "")
        assert again.read(lo=9, hi=10, bytes_max=1) == [Entry(9, 2, b"new")]


def test_a_torn_tail_is_kept_durably_then_cut_durably():
    """The copy is on the disk before the original goes, and both are before anything is appended."""
    fs = make(5)
    (path,) = segments(fs)
    fs.disk.damage(path, bytes(fs.disk.file(path))[:-1])
    fs.disk.trace.clear()
    reopen(fs)
    assert trace(fs)[trace(fs).index(f"create {path}.torn") :] == [
        f"create {path}.torn",
        f"pwrite {path}.torn",
        f"fdatasync {path}.torn",
        "fsync_dir /wal",
        f"pwrite {path}",
        f"fdatasync {path}",
    ]


def test_every_flipped_byte_of_the_last_batch_is_torn():
    """Whatever byte of the last batch is wrong, the batch is gone as a whole: nothing wrong is ever read."""
    fs = make(5)
    (path,) = segments(fs)
    data = bytes(fs.disk.file(path))
    start = batch_ends(data)[-2]
    for position in range(start, len(data)):
        copy = twin(fs)
        copy.disk.damage(path, data[:position] + bytes([data[position] ^ 0x40]) + data[position + 1 :])
        wal, repaired = reopen(copy)
        assert wal.last_index == 8, position
        assert "torn bytes" in repaired


def test_every_flipped_bit_before_the_last_batch_is_corruption():
    """A later batch proves that an earlier one was durable: the damage is refused, with its place."""
    fs = make(5)
    (path,) = segments(fs)
    data = bytes(fs.disk.file(path))
    ends = batch_ends(data)
    for position in range(BLOCK_BYTES, ends[-2]):
        copy = twin(fs)
        damaged = data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :]
        copy.disk.damage(path, damaged)
        with pytest.raises(WalCorruption) as caught:
            reopen(copy)
        batch = sum(end <= position for end in ends)  # 0: the opening batch
        assert caught.value.segment == path.rpartition("/")[2]
        assert caught.value.offset == (ends[batch - 1] if batch else BLOCK_BYTES)
        assert caught.value.last_good_index == max(batch - 1, 0) * 2
        assert copy.disk.file(path) == damaged, "nothing was touched"
        if batch:
            lo, hi = caught.value.lost_range
            assert (lo, hi) == (2 * batch - 1, 2 * batch + 1)


def test_damage_in_the_opening_batch_is_corruption_even_if_it_is_the_last():
    """A segment gets its name only after header and opening batch are durable, so they cannot be torn."""
    fs = make(0)
    (path,) = segments(fs)
    data = bytes(fs.disk.file(path))
    for position in range(len(data)):
        copy = twin(fs)
        copy.disk.damage(path, data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        with pytest.raises(WalCorruption):
            reopen(copy)
        assert copy.listdir("/wal") == fs.listdir("/wal")
        assert len(copy.disk.file(path)) == len(data), "nothing was touched"
    copy = twin(fs)
    copy.disk.damage(path, data[:BLOCK_BYTES])
    with pytest.raises(WalCorruption, match="opening batch"):
        reopen(copy)


def test_any_damage_in_a_sealed_segment_is_corruption():
    """A sealed segment was synced before the next one began."""
    fs = make(100)
    sealed = segments(fs)[-2]
    data = bytes(fs.disk.file(sealed))
    random = Random(3)
    for position in [0, BLOCK_BYTES, len(data) - 1, *(random.randrange(len(data)) for _ in range(200))]:
        copy = twin(fs)
        copy.disk.damage(sealed, data[:position] + bytes([data[position] ^ 0x08]) + data[position + 1 :])
        with pytest.raises(WalCorruption) as caught:
            reopen(copy)
        assert caught.value.segment in sealed
        assert copy.listdir("/wal") == fs.listdir("/wal")
        assert len(copy.disk.file(sealed)) == len(data), "nothing was touched"
    for cut in (len(data) - 1, batch_ends(data)[-2], batch_ends(data)[-3]):
        copy = twin(fs)
        copy.disk.damage(sealed, data[:cut])
        with pytest.raises(WalCorruption):
            reopen(copy)
    copy = twin(fs)
    copy.disk.damage(sealed, data[: batch_ends(data)[-2]])
    with pytest.raises(WalCorruption, match="without a seal"):
        reopen(copy)
    copy = twin(fs)
    copy.disk.damage(sealed, data + b"x")
    with pytest.raises(WalCorruption, match="after the seal"):
        reopen(copy)


def test_bytes_after_the_seal_of_the_last_segment_are_corruption():
    """Nothing is ever written behind a seal."""
    fs = make(100)
    for name in segments(fs)[2:]:
        fs.unlink(name)
    path = segments(fs)[-1]
    fs.disk.damage(path, bytes(fs.disk.file(path)) + b"x")
    with pytest.raises(WalCorruption, match="after the seal"):
        reopen(fs)


def test_a_missing_segment_is_corruption():
    """A hole in the sequence names what is lost; a missing end after a seal cannot be told from an unfinished roll."""
    fs = make(100)
    names = segments(fs)
    for missing in names[1:-1]:
        copy = twin(fs)
        copy.unlink(missing)
        with pytest.raises(WalCorruption, match="missing") as caught:
            reopen(copy)
        lo, hi = caught.value.lost_range
        assert lo == int(missing[-20:-4], 16)
        assert hi == int(names[names.index(missing) + 1][-20:-4], 16)
    copy = twin(fs)
    for name in names:
        copy.unlink(name)
    with pytest.raises(WalCorruption, match="the log is gone"):
        reopen(copy)


def test_a_roll_that_was_cut_after_the_seal_is_finished():
    """The last segment may end with a seal: the next one is begun, and the log goes on."""
    fs = make(100)
    last = segments(fs)[-1]
    index = int(last[-20:-4], 16) - 1
    fs.unlink(last)
    wal, repaired = reopen(fs)
    assert (wal.last_index, repaired) == (index, "")
    wal.append([Save(1, None, [Entry(index + 1, 1, b"next")], None)])
    wal.close()
    again, _ = reopen(fs)
    assert again.last_index == index + 1


def test_what_a_failed_sync_left_in_the_cache_is_not_believed():
    """The kernel marks the pages clean that it could not write: they can be read, and are not on the disk."""
    fs = make(3)
    wal, _ = reopen(fs)
    fail(fs, lambda name, _path: errno.EIO if name == "fdatasync" else 0)
    with pytest.raises(OSError, match="simulated"):
        wal.append([Save(9, None, [Entry(7, 1, b"never durable")], None)])
    heal(fs)
    fs.disk.kill()
    copy = fs.disk.mount()
    (path,) = segments(copy)
    assert b"never durable" in copy.disk.file(path)
    wal, _ = reopen(copy)
    assert wal.last_index == 6


def test_zeros_in_a_value_are_no_torn_tail():
    """Torn is decided by position: a value of zeros, whole or damaged, changes nothing (etcd's rule would)."""
    fs = blank()
    fs.make_dir("/wal")
    wal, _ = reopen(fs, identity=IDENTITY, segment_bytes_max=1 << 20)
    for index in (1, 2):
        wal.append([Save(index, None, [Entry(index, 1, bytes(3000))], None)])
    wal.close()
    assert reopen(fs, segment_bytes_max=1 << 20)[1] == ""
    (path,) = segments(fs)
    data = fs.disk.file(path)
    first = batch_ends(data)[0]
    damaged = bytearray(data)
    damaged[first + 200] = 1
    fs.disk.damage(path, damaged)
    with pytest.raises(WalCorruption):
        reopen(fs)


def test_zeros_after_the_last_batch_are_a_clean_end():
    """A file that grew before its bytes arrived ends where its last batch does."""
    fs = make(3)
    (path,) = segments(fs)
    fs.disk.damage(path, bytes(fs.disk.file(path)) + bytes(5000))
    wal, repaired = reopen(fs)
    assert (wal.last_index, repaired) == (6, "")


def test_a_value_that_holds_a_copy_of_the_log_does_not_prove_a_later_batch():
    """A torn batch whose value contains valid records of earlier batches is torn all the same."""
    fs = make(3, segment_bytes_max=1 << 16)
    (path,) = segments(fs)
    wal, _ = reopen(fs, segment_bytes_max=1 << 16)
    copy = bytes(fs.disk.file(path))[BLOCK_BYTES:]
    end = len(fs.disk.file(path))
    wal.append([Save(9, None, [Entry(7, 1, bytes(8 - (HEADER_BYTES + 8) % 8) + copy)], None)])
    wal.close()
    data = bytearray(fs.disk.file(path))
    data[-1] ^= 1
    fs.disk.damage(path, data)
    wal, repaired = reopen(fs, segment_bytes_max=1 << 16)
    assert (wal.last_index, "torn bytes" in repaired) == (6, True)
    assert not any(fs.disk.file(path)[end:])


def test_absurd_lengths_are_refused_before_anything_is_allocated():
    """A length of 4 GiB is not believed, and not allocated."""
    fs = make(5)
    (path,) = segments(fs)
    data = bytearray(fs.disk.file(path))
    offset = batch_ends(data)[1]
    data[offset + 4 : offset + 8] = b"\xff\xff\xff\xff"
    fs.disk.damage(path, data)
    with pytest.raises(WalCorruption) as caught:
        reopen(fs)
    assert caught.value.offset == offset


def test_an_absurdly_long_segment_is_not_read(monkeypatch):
    """A file over the limit is refused by its size alone."""
    fs = make(1)
    monkeypatch.setattr(fs, "size", lambda _fd: SEGMENT_BYTES_LIMIT + 1)
    with pytest.raises(WalCorruption, match="over the limit"):
        reopen(fs)


def test_a_segment_that_cannot_be_read_whole_is_refused(monkeypatch):
    """A read that ends early is damage too."""
    fs = make(1)
    monkeypatch.setattr(fs, "size", lambda _fd: 1 << 20)
    with pytest.raises(WalCorruption, match="up to there only"):
        reopen(fs)


def test_a_segment_of_another_directory_is_refused():
    """Files copied from another member, or from this one's earlier life, are not this log."""
    fs = make(1)
    for identity in (
        Identity(cluster_id=5, member_id=2, incarnation=100, boot_count=1),
        Identity(cluster_id=6, member_id=2, incarnation=99, boot_count=1),
        Identity(cluster_id=5, member_id=3, incarnation=99, boot_count=1),
    ):
        with pytest.raises(ForeignDataDir):
            reopen(twin(fs), identity=identity)


def test_a_segment_under_another_name_is_refused():
    """Name and header must agree."""
    fs = make(1)
    (path,) = segments(fs)
    fs.rename(path, path.replace("-0000000000000001", "-0000000000000002"))
    with pytest.raises(WalCorruption, match="differ"):
        reopen(fs)


def test_a_segment_that_does_not_continue_the_one_before_is_refused():
    """An intact segment from another time of the same directory does not fit the chain."""
    fs, other = make(60), make(61)
    names = segments(fs)
    changed = names[1]
    header = unpack_segment_header(bytes(fs.disk.file(changed)[:BLOCK_BYTES]), path="")
    assert header.previous_chain != 0
    for field in ("previous_chain", "previous_batch"):
        values = {name: getattr(header, name) for name in header.__slots__}
        values[field] += 1
        copy = twin(other)
        data = bytearray(fs.disk.file(changed))
        data[:BLOCK_BYTES] = pack_segment_header(type(header)(**values))
        copy.disk.damage(changed, data)
        with pytest.raises(WalCorruption, match="does not continue"):
            reopen(copy)


def test_a_newer_major_format_is_refused_as_such():
    """What is newer than the reader is told apart from what is damaged."""
    fs = make(1)
    (path,) = segments(fs)
    data = bytearray(fs.disk.file(path))
    block = bytearray(pack_block(SEGMENT_MAGIC, bytes(data[12:100]), size=BLOCK_BYTES))
    block[8:10] = (2).to_bytes(2, "little")
    _fix_crc(block)
    data[:BLOCK_BYTES] = block
    fs.disk.damage(path, data)
    with pytest.raises(UnsupportedFormat):
        reopen(fs)


def test_a_newer_minor_format_is_read():
    """A higher minor changes nothing that an older reader must know."""
    fs = make(1)
    (path,) = segments(fs)
    data = bytearray(fs.disk.file(path))
    block = bytearray(data[:BLOCK_BYTES])
    block[10:12] = (7).to_bytes(2, "little")
    _fix_crc(block)
    fs.disk.damage(path, bytes(block) + bytes(data[BLOCK_BYTES:]))
    assert reopen(fs)[0].last_index == 2


def test_an_unknown_checksum_algorithm_is_refused():
    """The records cannot be verified, so they are not read."""
    fs = make(1)
    (path,) = segments(fs)
    data = bytearray(fs.disk.file(path))
    block = bytearray(data[:BLOCK_BYTES])
    block[12] = 9
    _fix_crc(block)
    fs.disk.damage(path, bytes(block) + bytes(data[BLOCK_BYTES:]))
    with pytest.raises(WalCorruption, match="algorithm 9"):
        reopen(fs)


def _fix_crc(block: bytearray) -> None:
    block[-4:] = crc32(bytes(block[:-4])).to_bytes(4, "little")


def append_raw(fs, build) -> None:
    """Append a well-formed batch that the log itself would never write."""
    (path,) = segments(fs)
    data = bytes(fs.disk.file(path))
    header = unpack_segment_header(data[:BLOCK_BYTES], path="")
    scanner = SegmentScanner(data, header)
    for _ in scanner.batches():
        pass
    encoder = BatchEncoder(
        salt=header.salt,
        batch=scanner.batch + 1,
        chain=scanner.chain,
        offset=scanner.end,
        previous_commit=scanner.commit_offset,
    )
    build(encoder)
    fs.disk.damage(path, data + encoder.finish(0))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda batch: batch.entries([Entry(8, 1, b"gap")]), "cannot follow"),
        (lambda batch: batch.entries([Entry(4, 1, b"committed")]), "cannot follow"),
        (lambda batch: batch._add(RecordType.ENTRIES, 0, 7, 1, b"\1"), "cannot follow"),
        (lambda batch: batch._add(RecordType.ENTRIES, 0, 7, 1, b"\xff\xff\0\0"), "cannot follow"),
        (lambda batch: batch._add(RecordType.HARD_STATE, 0, 9, 9, b"short"), "no sense"),
        (lambda batch: batch._add(RecordType.SNAPSHOT, 0, 4, 1, b"\xff\xff" + bytes(7)), "no sense"),
        (lambda batch: batch.hard_state(HardState(0, 0, 9)), "went back"),
        (lambda batch: batch.hard_state(HardState(9, 0, 3)), "went back"),
    ],
)
def test_well_formed_nonsense_is_refused(build, reason):
    """A gap, an overwrite of what is committed, a term that falls: intact bytes are not believed blindly."""
    fs = make(3)
    append_raw(fs, build)
    with pytest.raises(WalCorruption, match=reason):
        reopen(fs)


def test_a_record_of_an_unknown_type_is_refused_unless_it_may_be_skipped():
    """A later minor version may add records, and says which of them an older reader can do without."""
    fs = make(3)
    append_raw(fs, lambda batch: batch._add(42, 0x80, 0, 0, b"for later"))
    assert reopen(fs)[0].last_index == 6
    append_raw(fs, lambda batch: batch._add(42, 0, 0, 0, b"needed"))
    with pytest.raises(UnsupportedFormat, match="type 42"):
        reopen(fs)


def test_a_commit_of_other_records_is_no_commit():
    """Count, chain and place of the batch before must fit, or the batch does not exist."""
    fs = make(3)
    (path,) = segments(fs)
    data = bytes(fs.disk.file(path))
    header = unpack_segment_header(data[:BLOCK_BYTES], path="")
    scanner = SegmentScanner(data, header)
    for _ in scanner.batches():
        pass
    good = {
        "salt": header.salt,
        "batch": scanner.batch + 1,
        "chain": scanner.chain,
        "offset": scanner.end,
        "previous_commit": scanner.commit_offset,
    }
    for wrong in ({"chain": 1}, {"previous_commit": 8}, {"batch": scanner.batch}, {"salt": header.salt ^ 1}):
        encoder = BatchEncoder(**good | wrong)
        encoder.entries([Entry(7, 1, b"x")])
        copy = twin(fs)
        copy.disk.damage(path, data + encoder.finish(7))
        wal, repaired = reopen(copy)
        assert (wal.last_index, "torn bytes" in repaired) == (6, True), wrong
    encoder = BatchEncoder(**good)
    encoder.entries([Entry(7, 1, b"x")])
    encoder._count += 1
    copy = twin(fs)
    copy.disk.damage(path, data + encoder.finish(7))
    assert reopen(copy)[0].last_index == 6
    encoder = BatchEncoder(**good)
    encoder._add(RecordType.COMMIT, 0, 6, 0, b"short")
    fs.disk.damage(path, data + b"".join(encoder._parts))
    assert reopen(fs)[0].last_index == 6


def test_temporary_files_and_orphaned_torn_tails_are_removed():
    """What an unfinished roll or a purged segment left behind does not pile up."""
    fs = make(1)
    for name in ("x.wal.tmp", "0000000000000009-0000000000000001.wal.torn", "README"):
        fs.close(fs.open(f"/wal/{name}", create=True))
    reopen(fs)
    assert [name for name in fs.listdir("/wal") if not name.endswith(".wal")] == ["README"]


def test_a_snapshot_that_replaced_the_log_is_replayed_as_such():
    """Entries before a received snapshot do not come back."""
    fs = make(3)
    wal, _ = reopen(fs)
    meta = SnapshotMeta(index=50, term=3, membership=MEMBERS)
    wal.append([Save(1, None, [], meta), Save(2, None, [Entry(51, 3, b"after")], None)])
    wal.close()
    again, _ = reopen(fs)
    assert (again.first_index, again.last_index, again.snapshots) == (51, 51, [meta])
    assert again.hard_state == HardState(1, 1, 50)
