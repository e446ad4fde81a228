"""What may befall a data directory while nobody runs: `DAMAGES`, by name."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from struct import Struct
from zlib import crc32

from pyraftkv.log.block import pack_block, unpack_block
from pyraftkv.log.identity import IDENTITY_MAGIC, SLOT_BYTES
from pyraftkv.log.record import (
    COMMIT,
    DIGEST_FLAG,
    ENTRIES,
    HARD_STATE,
    BatchEncoder,
)
from pyraftkv.log.segment import (
    BLOCK_BYTES,
    SEGMENT_MAGIC,
    SegmentHeader,
    SegmentScanner,
    pack_segment_header,
    unpack_segment_header,
)
from pyraftkv.log.snapshot import _CHUNK, _TRAILER
from tests.wal_surgery import segments

Record = tuple[int, int, int, int, bytes]
"""Type, flags, index, term and payload."""


def flip(path: Path, offset: int) -> None:
    """Change one byte; an offset below zero counts from the end."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def last_segment(folder: Path) -> tuple[Path, SegmentHeader, SegmentScanner]:
    """Return the last segment, read to its end."""
    path = max((folder / "wal").glob("*.wal"))
    data = path.read_bytes()
    header = unpack_segment_header(data[:BLOCK_BYTES], path=str(path))
    scanner = SegmentScanner(data, header)
    assert list(scanner.batches())
    return path, header, scanner


def put(path: Path, offset: int, data: bytes) -> None:
    """Overwrite a place of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def batch(folder: Path, *records: Record, step: int = 1, is_whole: bool = True) -> bytes:
    """Append a batch that no member writes: valid records, which make no sense. Return it."""
    path, header, scanner = last_segment(folder)
    encoder = BatchEncoder(
        salt=header.salt,
        batch=scanner.batch + step,
        chain=scanner.chain,
        offset=scanner.end,
        previous_commit=scanner.commit_offset,
    )
    for type_, flags, index, term, payload in records:
        encoder._add(type_, flags, index, term, payload)
    data = encoder.finish(1) if is_whole else b"".join(encoder._parts)
    put(path, scanner.end, data)
    return data


def sealed(folder: Path) -> None:
    """The last segment is sealed, and none follows: a crash in the middle of rolling."""
    path, header, scanner = last_segment(folder)
    encoder = BatchEncoder(
        salt=header.salt,
        batch=scanner.batch + 1,
        chain=scanner.chain,
        offset=scanner.end,
        previous_commit=scanner.commit_offset,
    )
    encoder.seal(1)
    put(path, scanner.end, encoder.finish(1))


def after_seal(folder: Path) -> None:
    """Bytes stand behind the seal."""
    sealed(folder)
    path, _, scanner = last_segment(folder)
    put(path, scanner.end, b"no zeros")


def torn(folder: Path) -> None:
    """The beginning of a record stands behind the log."""
    with max((folder / "wal").glob("*.wal")).open("ab") as file:
        file.write(b"\xd7WAL and no more")


def garbled(folder: Path) -> None:
    """A batch of which one byte is another one."""
    path, _, scanner = last_segment(folder)
    batch(folder, (ENTRIES, 0, 1, 1, b"some payload"))
    flip(path, scanner.end + 45)


def headed(folder: Path, number: int, **changes: int) -> None:
    """The header of a segment says something else."""
    path = segments(folder)[number].path
    header = unpack_segment_header(path.read_bytes()[:BLOCK_BYTES], path="")
    put(path, 0, pack_segment_header(replace(header, **changes)))


def algorithm(folder: Path) -> None:
    """A segment says that its checksums are of another kind."""
    path = segments(folder)[0].path
    fields = unpack_block(path.read_bytes()[:BLOCK_BYTES], SEGMENT_MAGIC, size=BLOCK_BYTES, path="")
    put(path, 0, pack_block(SEGMENT_MAGIC, b"\x09" + fields[1:], size=BLOCK_BYTES))


def only(folder: Path, kept: slice) -> None:
    """Only some of the segments are left, and no mark."""
    found = segments(folder)
    for path in {segment.path for segment in found} - {segment.path for segment in found[kept]}:
        path.unlink()
    (folder / "mark").unlink()


def hole(folder: Path) -> None:
    """A segment in the middle is gone."""
    assert len(segments(folder)) > 2
    segments(folder)[1].path.unlink()


def zeroed(folder: Path, number: int) -> None:
    """The last batch of a segment was never written."""
    segment = segments(folder)[number]
    last = segment.last_batch
    put(segment.path, last.start, bytes(len(last)))


def renamed(folder: Path) -> None:
    """A segment has the name of another one."""
    path = segments(folder)[0].path
    path.rename(path.with_name("00000000000000ff" + path.name[16:]))


def slot(folder: Path, magic: bytes, major: int) -> None:
    """Both slots of the identity hold a block of another kind."""
    for name in ("identity.a", "identity.b"):
        block = bytearray(pack_block(magic, b"", size=SLOT_BYTES))
        struct.pack_into("<H", block, 8, major)
        struct.pack_into("<I", block, SLOT_BYTES - 4, crc32(bytes(block[:-4])))
        (folder / name).write_bytes(block)
        if major == 1:
            return


def snapshots(folder: Path) -> list[Path]:
    """Return the snapshot files, newest first."""
    return sorted((folder / "snap").glob("*.snap"), reverse=True)


def mistaken(folder: Path) -> None:
    """The newest snapshot holds the bytes of the older one, which cannot be read any more."""
    newest, older = snapshots(folder)
    newest.write_bytes(older.read_bytes())
    flip(older, 100)


def trailer(folder: Path) -> None:
    """The newest snapshot ends with the trailer of another one, and the older one with no trailer."""
    newest, older = snapshots(folder)
    data = newest.read_bytes()
    body = _TRAILER.pack(9, 9, bytes(32))
    head = struct.pack("<II", 0xFFFFFFFF, len(body))
    newest.write_bytes(data[: -_CHUNK.size - len(body)] + head + struct.pack("<I", crc32(body, crc32(head))) + body)
    older.write_bytes(older.read_bytes()[: -_CHUNK.size - len(body)])


def chunks(folder: Path) -> None:
    """The newest snapshot begins with another chunk than its first, and bytes stand behind the trailer of the older."""
    newest, older = snapshots(folder)
    flip(newest, BLOCK_BYTES)
    older.write_bytes(older.read_bytes() + b"more")


def bytes_of_chunks(folder: Path) -> None:
    """A byte of the newest snapshot's trailer is another one, and the older one is gone."""
    newest, older = snapshots(folder)
    flip(newest, -1)
    older.unlink()


def leftovers(folder: Path) -> None:
    """Files that a killed process left in the middle of something."""
    for name in ("wal/a.wal.tmp", "wal/b.wal.torn", f"snap/{16 * '0'}-{16 * '1'}.snap", "snap/c.snap.1.tmp"):
        (folder / name).write_bytes(b"some")


def unlink_all(folder: Path, pattern: str) -> None:
    """Files are gone."""
    for path in folder.glob(pattern):
        path.unlink()


def both_slots(folder: Path) -> None:
    """Neither slot of the identity can be trusted."""
    for name in ("identity.a", "identity.b"):
        flip(folder / name, 30)


_RUN = Struct("<II")

DAMAGES: dict[str, Callable[[Path], object]] = {
    "torn": torn,
    "garbled": garbled,
    "wrong digest": lambda folder: batch(
        folder, (ENTRIES, 0, 1, 1, bytes(20)), (ENTRIES, DIGEST_FLAG, 1, 1, bytes(90))
    ),
    "no table": lambda folder: batch(folder, (ENTRIES, 0, 1, 1, b"")),
    "wrong table": lambda folder: batch(folder, (ENTRIES, 0, last_index(folder) + 1, 99, _RUN.pack(1, 5) + b"xx")),
    "gap": lambda folder: batch(folder, (ENTRIES, 0, 1000, 99, _RUN.pack(1, 0))),
    "went back": lambda folder: batch(folder, (HARD_STATE, 0, 0, 0, bytes(8))),
    "beyond its end": lambda folder: batch(folder, (HARD_STATE, 0, 1000, 99, bytes(8))),
    "nonsense": lambda folder: batch(folder, (HARD_STATE, 0, 1000, 99, b"x")),
    "unknown": lambda folder: batch(folder, (99, 0, 1, 1, b"")),
    "later": lambda folder: batch(folder, (ENTRIES, 0, 1000, 99, _RUN.pack(1, 0)), step=3),
    "long commit": lambda folder: batch(folder, (COMMIT, 0, 1, 0, b"x"), is_whole=False),
    "other commit": lambda folder: batch(folder, (COMMIT, 0, 1, 0, bytes(16)), is_whole=False),
    "sealed": sealed,
    "after the seal": after_seal,
    "no segments": lambda folder: unlink_all(folder, "wal/*"),
    "last batch": lambda folder: zeroed(folder, -1),
    "no seal": lambda folder: zeroed(folder, 0),
    "no opening": lambda folder: segments(folder)[0].truncate(BLOCK_BYTES),
    "opening": lambda folder: flip(segments(folder)[0].path, BLOCK_BYTES + 44),
    "header": lambda folder: flip(segments(folder)[0].path, 20),
    "algorithm": algorithm,
    "incarnation": lambda folder: headed(folder, 0, incarnation=5),
    "member": lambda folder: headed(folder, 0, member_id=99),
    "chain": lambda folder: headed(folder, 1, previous_chain=5),
    "renamed": renamed,
    "hole": hole,
    "sealed damage": lambda folder: flip(segments(folder)[0].path, segments(folder)[0].batches[1].start + 45),
    "first segments": lambda folder: only(folder, slice(-1, None)),
    "mistaken": mistaken,
    "trailer": trailer,
    "chunks": chunks,
    "snapshot bytes": bytes_of_chunks,
    "no snapshots": lambda folder: unlink_all(folder, "snap/*"),
    "slot": lambda folder: flip(folder / "identity.a", 30),
    "newest slot": lambda folder: flip(folder / "identity.b", 30),
    "slot of another": lambda folder: slot(folder, b"OTHERKIN", 1),
    "newer": lambda folder: slot(folder, IDENTITY_MAGIC, 7),
    "both slots": both_slots,
    "leftovers": leftovers,
    "open to all": lambda folder: folder.chmod(0o755),
}


def last_index(folder: Path) -> int:
    """Return the last index of the log, of which one segment holds all."""
    last = 0
    _, _, scanner = last_segment(folder)
    again = SegmentScanner(scanner._data, last_segment(folder)[1])
    for frames in again.batches():
        for frame in frames:
            if frame.type == ENTRIES:
                last = frame.index + struct.unpack_from("<I", frame.payload)[0] - 1
    return last
