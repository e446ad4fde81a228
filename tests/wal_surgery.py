"""Finding one's way in a segment of a real log, to damage it in a chosen place."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from pyraftkv.log.segment import BLOCK_BYTES, SegmentScanner, unpack_segment_header


class Segment:
    """A segment file, with the place of each batch in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        data = path.read_bytes()
        scanner = SegmentScanner(data, unpack_segment_header(data[:BLOCK_BYTES], path=str(path)))
        ends = [BLOCK_BYTES, *(scanner.end for _ in scanner.batches())]
        self.batches = [range(start, stop) for start, stop in pairwise(ends)]

    @property
    def last_batch(self) -> range:
        """The bytes of what was saved last."""
        return self.batches[-1]

    def truncate(self, size: int) -> None:
        """Cut the file off."""
        with self.path.open("r+b") as file:
            file.truncate(size)

    def write(self, offset: int, data: bytes) -> None:
        """Overwrite a place."""
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def flip_bit(self, offset: int) -> None:
        """Flip one bit of the byte there; a second time puts it back."""
        self.write(offset, bytes([self.path.read_bytes()[offset] ^ 0x10]))


def segments(data_dir: Path) -> list[Segment]:
    """Return the segments of a member's log, oldest first."""
    return [Segment(path) for path in sorted((data_dir / "wal").glob("*.wal"))]


def forget_mark(data_dir: Path) -> None:
    """Let nothing but the log itself say how far it had come, as a mark does that no power failure has spared."""
    (data_dir / "mark").unlink()
