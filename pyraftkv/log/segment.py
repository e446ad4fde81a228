"""One segment of the write-ahead log: its name, its header block, and reading its batches back.

A segment is a 4 KiB header block, then batches. The header stands alone in its block so that no append ever rewrites
the sectors that hold it. It is written to a temporary file together with an opening batch and synced before the file
gets its name: in a file that is named like a segment, header and opening batch were durable once, always.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from struct import Struct

from pyraftkv._record import record
from pyraftkv.log.block import BlockDamaged, pack_block, unpack_block
from pyraftkv.log.record import (
    COMMIT,
    ENTRIES,
    HEADER_BYTES,
    MAGIC,
    SEAL,
    Frame,
    chain_over,
    read_frame,
    unpack_commit,
)

SEGMENT_MAGIC = b"PRKVSEGM"
BLOCK_BYTES = 4096
SEGMENT_BYTES_LIMIT = 1 << 30
"""No segment is longer, whatever it is configured to; a longer file is not read into memory to find out why."""

_FIELDS = Struct("<BxxxIQQQQQQI")
_CRC32_SALTED = 1
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.wal")


@record
class SegmentHeader:
    """What the header block says."""

    salt: int
    cluster_id: int
    """0 while the directory was not bound to a cluster yet; so is `member_id`."""
    member_id: int
    incarnation: int
    sequence: int
    first_index: int
    """One past the last index of the log when the segment was begun."""
    previous_batch: int
    """The number of the last batch of the segment before."""
    previous_chain: int
    """The chained checksum after that batch."""


def segment_name(sequence: int, first_index: int) -> str:
    """Return a segment's file name."""
    return f"{sequence:016x}-{first_index:016x}.wal"


def parse_segment_name(name: str) -> tuple[int, int] | None:
    """Return the sequence number and first index of a segment's file name, or None for any other file."""
    match = _NAME.fullmatch(name)
    return (int(match[1], 16), int(match[2], 16)) if match else None


def pack_segment_header(header: SegmentHeader) -> bytes:
    """Return the header block."""
    fields = _FIELDS.pack(
        _CRC32_SALTED,
        header.salt,
        header.cluster_id,
        header.member_id,
        header.incarnation,
        header.sequence,
        header.first_index,
        header.previous_batch,
        header.previous_chain,
    )
    return pack_block(SEGMENT_MAGIC, fields, size=BLOCK_BYTES)


def unpack_segment_header(block: bytes, *, path: str) -> SegmentHeader:
    """Return what a header block says. Raises `BlockDamaged` and `UnsupportedFormat`."""
    fields = _FIELDS.unpack_from(unpack_block(block, SEGMENT_MAGIC, size=BLOCK_BYTES, path=path))
    if fields[0] != _CRC32_SALTED:
        raise BlockDamaged(f"checksum algorithm {fields[0]} is unknown")
    return SegmentHeader(*fields[1:])


class SegmentScanner:
    """Reads a segment's batches in order, up to the first byte that does not belong to a whole valid one.

    Args:
        data: The whole file.
        header: Its header block, unpacked.
    """

    def __init__(self, data: bytes, header: SegmentHeader) -> None:
        self._data = data
        self._view = memoryview(data)
        self._salt = header.salt
        self.end = BLOCK_BYTES
        """Where the last valid batch ends."""
        self.batch = header.previous_batch
        """The number of the last valid batch."""
        self.chain = header.previous_chain
        """The chained checksum after it."""
        self.commit_offset = 0
        """Where its COMMIT stands; 0 while there is none."""
        self.sealed = False
        """Whether its last batch sealed the segment."""
        self.damage = ""
        """Why reading stopped, when it was not at the end of the file or at nothing but zeros."""

    def batches(self) -> Iterator[list[Frame]]:
        """Yield the records of each valid batch, without its COMMIT. O(bytes) in all."""
        while not self.sealed and (frames := self._next_batch()) is not None:
            yield frames
        tail = self._data[self.end :]
        if tail.count(0) == len(tail):
            self.damage = ""
        elif self.sealed:
            self.damage = "bytes after the seal"

    def _next_batch(self) -> list[Frame] | None:
        frames: list[Frame] = []
        offset, chain, batch = self.end, self.chain, self.batch + 1
        while True:
            frame = read_frame(self._view, offset, salt=self._salt)
            if frame is None:
                self.damage = f"no valid record at offset {offset}"
                return None
            if frame.batch != batch:
                self.damage = f"a record of batch {frame.batch} at offset {offset}, where batch {batch} belongs"
                return None
            if frame.type == COMMIT:
                break
            frames.append(frame)
            chain = chain_over(self._view, frame, chain)
            offset += frame.size
        try:
            commit = unpack_commit(frame)
        except struct.error:
            self.damage = f"the commit at offset {offset} is {len(frame.payload)} bytes long"
            return None
        if (commit.count, commit.chain, commit.previous) != (len(frames), chain, self.commit_offset):
            self.damage = f"the commit at offset {offset} is of other records"
            return None
        self.end, self.batch, self.commit_offset = offset + frame.size, batch, offset
        self.chain = chain_over(self._view, frame, chain)
        self.sealed = bool(frames) and frames[-1].type == SEAL
        return frames

    def torn(self) -> bytes:
        """Return what stands behind the last valid batch, without the zeros that every segment ends with."""
        return self._data[self.end :].rstrip(b"\0")

    def later_batch(self) -> bool:
        """Whether a valid record of a later batch than the damaged one stands anywhere behind the damage.

        If so, the damaged batch was durable once, and is damaged and not torn: the later batch was written only after
        its sync returned. Records of *earlier* batches prove nothing: they may be copies inside a user's value.
        """
        return any(frame.batch > self.batch + 1 for frame in self._stray_frames())

    def next_index(self) -> int:
        """Return the index of the first run of entries of a later batch behind the damage; 0 if there is none."""
        later = (f.index for f in self._stray_frames() if f.type == ENTRIES and f.batch > self.batch + 1)
        return next(later, 0)

    def _stray_frames(self) -> Iterator[Frame]:
        position = self._data.find(MAGIC, self.end)
        while position >= 0:
            frame = None if position & 7 else read_frame(self._view, position, salt=self._salt)
            if frame is not None:
                yield frame
            position = self._data.find(MAGIC, position + (HEADER_BYTES if frame is not None else 1))
