"""The mark: how far the log had come when its last sync returned, in a small file beside it.

The end of a log cannot speak for itself: damage in its very last batch looks like a crash in the middle of writing it,
and a last segment that is gone looks like one that was never begun. The mark remembers that there was more.

Rules:

1. *It may lag, and never leads.* It is written after the sync of the batch that it names, and after the sync of the
   name of the segment that holds it; and it is not synced itself.
2. *A log that ends before its mark is damaged.* It is refused, with what it has lost.
3. *No mark says nothing.* One that is missing, damaged, of another directory or behind is no reason for anything.
4. *It is worth no failure.* A mark that cannot be written stays behind, and the log goes on.

Why it may not lead, as a story:

1. A batch is written, and so is its mark; then the batch is synced.
2. The power goes before that. The disk took the mark, and half of the batch.
3. Nobody was promised anything, yet the start refuses to cut the half batch off.
"""

from __future__ import annotations

import logging
from struct import Struct

from pyraftkv._record import record
from pyraftkv.errors import UnsupportedFormat
from pyraftkv.log.block import BlockDamaged, pack_block, unpack_block
from pyraftkv.log.fs import FileSystem, join, parent

MARK_MAGIC = b"PRKVMARK"
MARK_BYTES = 64
MARK_NAME = "mark"

_FIELDS = Struct("<QQQQQ")

_log = logging.getLogger("pyraftkv.log")


@record
class Mark:
    """The end of the log after some batch."""

    incarnation: int
    """Of the directory; as in its segments."""
    sequence: int
    """Of the segment that ends with the batch."""
    offset: int
    """Where in the segment the batch ends."""
    batch: int
    last_index: int
    """The last index of the log after the batch."""


class MarkFile:
    """The mark of one data directory, read when it is made and written from then on.

    Args:
        directory: The data directory.
        incarnation: Whose marks count.
    """

    def __init__(self, fs: FileSystem, directory: str, *, incarnation: int) -> None:
        self._fs = fs
        self._path = join(directory, MARK_NAME)
        self._fd: int | None = None
        self.found: Mark | None = None
        """What stood in it, if that says anything."""
        try:
            self._fd = self._open()
            mark = self._read(self._fd)
        except OSError as error:
            self._give_up(error)
        else:
            self.found = mark if mark is not None and mark.incarnation == incarnation else None

    def _open(self) -> int:
        try:
            return self._fs.open(self._path)
        except FileNotFoundError:
            fd = self._fs.open(self._path, create=True)
            self._fs.fsync_dir(parent(self._path))
            return fd

    def _read(self, fd: int) -> Mark | None:
        block = self._fs.pread(fd, MARK_BYTES, 0)
        try:
            return Mark(*_FIELDS.unpack_from(unpack_block(block, MARK_MAGIC, size=MARK_BYTES, path=self._path)))
        except (BlockDamaged, UnsupportedFormat):
            return None

    def write(self, mark: Mark) -> None:
        """Move the mark. An error is the last one: the file is let alone from then on."""
        if self._fd is None:
            return
        fields = _FIELDS.pack(mark.incarnation, mark.sequence, mark.offset, mark.batch, mark.last_index)
        try:
            # One call and no loop: a mark of which half is written is damaged, and says nothing.
            self._fs.pwrite(self._fd, pack_block(MARK_MAGIC, fields, size=MARK_BYTES), 0)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        _log.warning("%s: the log goes on without a mark: %s", self._path, error)
        self.close()

    def close(self) -> None:
        """Release the file. Idempotent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            self._fs.close(fd)
