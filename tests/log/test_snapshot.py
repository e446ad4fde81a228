"""Snapshot files: every byte is checked, an error ends one snapshot and nothing else."""

from __future__ import annotations

import errno

import pytest

from pyraftkv.core.types import Membership, SnapshotMeta
from pyraftkv.errors import SnapshotCorruption, UnsupportedFormat
from pyraftkv.log import snapshot as snapshots
from pyraftkv.log.snapshot import (
    BLOCK_BYTES,
    CHUNK_BYTES_MAX,
    SnapshotReader,
    SnapshotWriter,
    clean,
    parse_snapshot_name,
    purge,
    snapshot_name,
)
from pyraftkv.sim.disk import SimFS
from tests.log.disks import blank, fail, heal, trace, twin

META = SnapshotMeta(index=10, term=2, membership=Membership(voters=frozenset({1, 2})))
CHUNKS = [b"a" * 100, b"b", b"c" * 700]
PATH = f"/snap/{snapshot_name(term=2, index=10)}"


def begin(fs, meta=META, number=1) -> SnapshotWriter:
    """A snapshot to be written."""
    return SnapshotWriter(fs, "/snap", meta, cluster_id=5, number=number)


def make(meta=META, fs=None) -> SimFS:
    """A disk with a snapshot."""
    if fs is None:
        fs = blank()
        fs.make_dir("/snap")
    writer = begin(fs, meta)
    for chunk in CHUNKS:
        writer.write(chunk)
    writer.finish()
    return fs


def read(fs, from_chunk=0) -> list[bytes]:
    """The chunks of that snapshot."""
    reader = SnapshotReader(fs, "/snap", term=2, index=10)
    try:
        assert reader.meta == META
        return list(reader.chunks(from_chunk=from_chunk))
    finally:
        reader.close()


def test_chunks_come_back_as_they_were_written():
    """The same pieces, and from any of them on."""
    fs = make()
    for start in range(4):
        assert read(fs, start) == CHUNKS[start:]
    assert not fs.fds


def test_a_snapshot_may_be_empty():
    """No chunks at all are a snapshot too."""
    fs = blank()
    fs.make_dir("/snap")
    begin(fs).finish()
    assert read(fs) == []


def test_every_flipped_byte_is_noticed():
    """Header, chunk, CRC, trailer: whatever byte is wrong, the snapshot is refused, and no wrong byte is yielded."""
    fs = make()
    data = bytes(fs.disk.file(PATH))
    for position in range(len(data)):
        copy = twin(fs)
        copy.disk.damage(PATH, data[:position] + bytes([data[position] ^ 0x20]) + data[position + 1 :])
        yielded: list[bytes] = []
        with pytest.raises(SnapshotCorruption):
            yielded.extend(SnapshotReader(copy, "/snap", term=2, index=10).chunks())
        assert yielded == CHUNKS[: len(yielded)]


def test_a_file_is_whole_before_it_has_its_name_and_the_name_is_durable_in_the_end():
    """Synced, renamed, then the directory synced: whoever finds the name after a power failure finds all of it."""
    fs = blank()
    fs.make_dir("/snap")
    writer = begin(fs)
    writer.write(CHUNKS[0])
    fs.disk.trace.clear()
    writer.finish()
    assert [line.split()[0] for line in trace(fs)] == ["pwrite", "fdatasync", "rename", "fsync_dir"]


def test_every_cut_is_noticed():
    """A file that ends early, or late, is refused."""
    fs = make()
    data = bytes(fs.disk.file(PATH))
    for cut in range(BLOCK_BYTES, len(data)):
        copy = twin(fs)
        copy.disk.damage(PATH, data[:cut])
        with pytest.raises(SnapshotCorruption):
            read(copy)
    fs.disk.damage(PATH, data + b"\0")
    with pytest.raises(SnapshotCorruption, match="after the trailer"):
        read(fs)


def test_verifying_reads_the_disk_and_not_the_cache():
    """Synced, dropped from the cache, then read: in this order, and before anything is believed."""
    fs = make()
    reader = SnapshotReader(fs, "/snap", term=2, index=10)
    fs.disk.trace.clear()
    reader.verify()
    assert [line.split()[0] for line in trace(fs)[:3]] == ["fdatasync", "forget_cache", "pread"]
    reader.close()


def test_verifying_reads_the_header_again():
    """A sync that failed left a whole one in the cache, and the disk has another."""
    fs = make()
    whole = fs.disk.file(PATH)
    fs.disk.damage(PATH, whole[:40] + b"?" + whole[41:])
    fd = fs.open(PATH)
    fs.pwrite(fd, whole, 0)
    fail(fs, lambda operation, _path: errno.EIO if operation == "fdatasync" else 0)
    with pytest.raises(OSError, match="simulated"):
        fs.fdatasync(fd)
    heal(fs)
    reader = SnapshotReader(fs, "/snap", term=META.term, index=META.index)
    assert reader.meta == META
    with pytest.raises(SnapshotCorruption, match="header"):
        reader.verify()


def test_a_missing_chunk_is_noticed_even_when_reading_from_behind_it():
    """The trailer counts chunks and bytes; numbers leave no gap."""
    fs = make()
    data = bytes(fs.disk.file(PATH))
    second = BLOCK_BYTES + 12 + 100
    fs.disk.damage(PATH, data[:second] + data[second + 13 :])
    for start in (0, 2):
        with pytest.raises(SnapshotCorruption):
            read(fs, start)


def test_chunks_out_of_order_are_noticed_before_they_are_yielded():
    """Also when the reading starts in the middle, where no digest helps."""
    fs = blank()
    fs.make_dir("/snap")
    writer = begin(fs)
    for chunk in (b"one", b"two"):
        writer.write(chunk)
    writer.finish()
    data = bytes(fs.disk.file(PATH))
    first, second = data[BLOCK_BYTES : BLOCK_BYTES + 15], data[BLOCK_BYTES + 15 : BLOCK_BYTES + 30]
    fs.disk.damage(PATH, data[:BLOCK_BYTES] + second + first + data[BLOCK_BYTES + 30 :])
    for start in (0, 1):
        with pytest.raises(SnapshotCorruption, match="where chunk 0 belongs"):
            read(fs, start)


@pytest.mark.parametrize("size", [0, CHUNK_BYTES_MAX + 1])
def test_a_chunk_of_a_length_that_is_never_written_is_not_read(size):
    """Before its bytes are: whoever sends it on counts on the bound, and nobody holds more in memory."""
    fs = blank()
    fs.make_dir("/snap")
    writer = begin(fs)
    writer._append(snapshots._frame(0, bytes(size)))
    writer._count = 1
    writer.finish()
    fs.disk.trace.clear()
    with pytest.raises(SnapshotCorruption, match=f"chunk 0 of {size} bytes"):
        read(fs)
    assert [operation for operation, _ in fs.disk.trace].count("pread") == 2, "the header, and the chunk's head"


def test_chunks_of_another_snapshot_are_noticed_by_the_digest():
    """Intact chunks of another file, in number and size the same, are not these."""
    fs = make()
    other = blank()
    other.make_dir("/snap")
    writer = begin(other)
    for chunk in CHUNKS:
        writer.write(b"x" * len(chunk))
    writer.finish()
    data, foreign = bytes(fs.disk.file(PATH)), bytes(other.disk.file(PATH))
    trailer = len(data) - 60
    fs.disk.damage(PATH, foreign[:trailer] + data[trailer:])
    with pytest.raises(SnapshotCorruption, match="other chunks"):
        read(fs)


def test_a_file_under_another_name_is_refused():
    """Name and header must agree, and the file must be there."""
    fs = make()
    fs.rename(PATH, f"/snap/{snapshot_name(term=3, index=10)}")
    with pytest.raises(SnapshotCorruption, match="it holds index 10"):
        SnapshotReader(fs, "/snap", term=3, index=10)
    with pytest.raises(SnapshotCorruption, match="missing"):
        SnapshotReader(fs, "/snap", term=2, index=10)
    assert not fs.fds


def test_a_newer_major_format_is_refused_as_such():
    """What is newer than the reader is told apart from what is damaged."""
    from zlib import crc32

    fs = make()
    block = bytearray(fs.disk.file(PATH)[:BLOCK_BYTES])
    block[8] = 2
    block[-4:] = crc32(bytes(block[:-4])).to_bytes(4, "little")
    fs.disk.damage(PATH, bytes(block) + bytes(fs.disk.file(PATH)[BLOCK_BYTES:]))
    with pytest.raises(UnsupportedFormat):
        read(fs)


@pytest.mark.parametrize("operation", ["pwrite", "fdatasync", "rename", "fsync_dir"])
def test_an_error_ends_the_snapshot_and_leaves_nothing_open(operation):
    """Wherever the disk refuses, the temporary file goes, and another try may succeed."""
    fs = blank()
    fs.make_dir("/snap")
    fail(fs, lambda name, path: errno.EIO if name == operation and "/snap" in path else 0)
    with pytest.raises(OSError, match="simulated"):
        make(fs=fs)
    assert not fs.fds
    if operation != "fsync_dir":
        assert fs.listdir("/snap") == []
    heal(fs)
    make(fs=fs)
    assert read(fs) == CHUNKS


def test_an_abort_that_fails_leaves_the_file_to_the_next_start():
    """The temporary file stays if even its unlink fails, and `clean` takes it."""
    fs = blank()
    fs.make_dir("/snap")
    writer = begin(fs)
    fail(fs, lambda name, _path: errno.EIO if name == "unlink" else 0)
    writer.abort()
    writer.abort()
    assert len(fs.listdir("/snap")) == 1
    heal(fs)
    clean(fs, "/snap", named=[])
    assert fs.listdir("/snap") == []


def test_a_long_snapshot_is_synced_on_the_way(monkeypatch):
    """The log's own syncs never wait for more than a bounded amount of snapshot."""
    monkeypatch.setattr(snapshots, "UNSYNCED_BYTES_MAX", 3000)
    fs = blank()
    fs.make_dir("/snap")
    writer = begin(fs)
    for _ in range(10):
        writer.write(bytes(1000))
    assert sum(line.startswith("fdatasync") for line in trace(fs)) >= 3


def test_chunks_are_bounded():
    """More than a mebibyte in one piece, or nothing in one, is our bug."""
    fs = blank()
    fs.make_dir("/snap")
    writer = begin(fs)
    for size in (0, CHUNK_BYTES_MAX + 1):
        with pytest.raises(AssertionError):
            writer.write(bytes(size))


def test_purge_keeps_what_is_in_use_and_what_is_newer():
    """A received snapshot that no save has named yet is newer than those in use, and stays."""
    fs = blank()
    fs.make_dir("/snap")
    metas = [SnapshotMeta(index=index, term=2, membership=META.membership) for index in (5, 10, 20, 30)]
    for meta in metas:
        make(meta, fs)
    fs.close(fs.open("/snap/x.snap.broken", create=True))
    purge(fs, "/snap", named=metas[1:3])
    assert [parse_snapshot_name(name) for name in fs.listdir("/snap")] == [(2, 10), (2, 20), (2, 30)]
    clean(fs, "/snap", named=metas[1:3])
    assert [parse_snapshot_name(name) for name in fs.listdir("/snap")] == [(2, 10), (2, 20)]
    purge(fs, "/snap", named=[])
    assert len(fs.listdir("/snap")) == 2


def test_purge_removes_the_oldest_first():
    """Whatever comes in between, what is left is the newer part; by index, for terms say nothing of age here."""
    fs = blank()
    fs.make_dir("/snap")
    ages = [(9, 5), (2, 10), (3, 20), (3, 30)]
    metas = [SnapshotMeta(index=index, term=term, membership=META.membership) for term, index in ages]
    for meta in metas:
        make(meta, fs)
    fs.disk.trace.clear()
    purge(fs, "/snap", named=metas[3:])
    gone = [path.rpartition("/")[2] for operation, path in fs.disk.trace if operation == "unlink"]
    assert [parse_snapshot_name(name) for name in gone] == ages[:3]
