"""What a disk keeps: `Inode`, a file's bytes, and `Directory`, the names of files. Each is known twice.

What programs *see* is in the page cache; what is *durable* is on the platter; `pending` holds, in order, what was
changed and not synced yet. A sync moves the pending changes to the platter. When the power goes, the cache is lost,
and of the pending changes anything may have happened:

* each 512-byte sector of an unsynced write is kept, lost, zeroed or garbled, whatever became of the others;
* an unsynced growth is kept whole, cut at any byte, or lost; so is an unsynced truncation;
* each unsynced creation, rename or unlink of a name happened or did not. Syncing a file does not sync its name.

A sync that fails is worse than one that never began (`SyncFailure`): Linux marks the pages clean that it could not
write, so that the cache shows bytes that the disk will never hold (ATC'20, "Can Applications Recover from fsync
Failures?").

Images of a whole disk are taken every few virtual seconds, so bytes are shared and not copied (`SharedBytes`).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from random import Random

SECTOR_BYTES = 512
_KEPT, _ZEROED, _GARBLED = 1, 2, 3
_ALWAYS = 1 << 62


class SyncFailure(StrEnum):
    """What a failed sync of a file leaves behind, besides its error."""

    DROPPED = "dropped"
    """Nothing reached the disk, and the pages are marked clean: the cache shows them until dropped (ext4, XFS)."""
    TORN = "torn"
    """Any of the sectors reached the disk; the pages are marked clean."""
    REVERTED = "reverted"
    """Nothing reached the disk, and the cache shows what the disk holds (Btrfs)."""
    KEPT = "kept"
    """Nothing reached the disk yet: the pages are still dirty, and a later sync may succeed."""
    DURABLE = "durable"
    """Everything reached the disk; the error was about something else."""


DROPPED, TORN, REVERTED, KEPT, DURABLE = SyncFailure


class SharedBytes:
    """A growing run of bytes that can be shared for nothing while its owner goes on appending.

    Invariants: nobody changes the first ``_frozen`` bytes of ``_buffer`` in place, because somebody else shows them;
    only the owner's `size` is the length of the buffer, a sharer's may be less.
    """

    __slots__ = ("_buffer", "_frozen", "size")

    def __init__(self, data: bytes | bytearray = b"") -> None:
        self._buffer = bytearray(data)
        self._frozen = 0
        self.size = len(data)

    def share(self) -> SharedBytes:
        """Return the same bytes, to be changed independently. O(1), and O(size) for the first change of the twin."""
        twin = SharedBytes.__new__(SharedBytes)
        twin._buffer, twin._frozen, twin.size = self._buffer, _ALWAYS, self.size
        self._frozen = max(self._frozen, self.size)
        return twin

    def read(self, size: int, offset: int) -> bytes:
        """Return up to `size` bytes from `offset`. O(answer)."""
        with memoryview(self._buffer) as view:
            return bytes(view[offset : min(offset + size, self.size)])

    def write(self, offset: int, data: bytes) -> None:
        """Put `data` at `offset`; zeros fill a gap before it. O(data), unless the place is shared."""
        if offset < self._frozen:
            self._detach()
        if offset > self.size:
            self._buffer.extend(bytes(offset - self.size))
        self._buffer[offset : offset + len(data)] = data
        self.size = len(self._buffer)

    def resize(self, size: int) -> None:
        """Cut, or grow with zeros."""
        if size < self.size:
            if size < self._frozen:
                self._detach()
            del self._buffer[size:]
            self.size = size
        elif size > self.size:
            self.write(size, b"")

    def _detach(self) -> None:
        self._buffer = self._buffer[: self.size]
        self._frozen = 0


class Inode:
    """A file's bytes."""

    __slots__ = ("cached", "durable", "pending", "seen")

    def __init__(self, durable: SharedBytes | None = None) -> None:
        self.durable = SharedBytes() if durable is None else durable
        """What is on the platter."""
        self.seen = self.durable
        """What programs see; the same object while nothing was written that is not on the platter."""
        self.pending: list[tuple[int, bytes] | int] = []
        """Unsynced writes (offset, bytes) and truncations (size), in order."""
        self.cached = False
        """Whether it was read since the cache was dropped, so that the next read costs nothing."""

    def write(self, offset: int, data: bytes, *, lost: bool = False) -> None:
        """Write into the cache.

        Args:
            lost: The disk will grow the file and never take the bytes, and say nothing.
        """
        self._cache().write(offset, data)
        self.pending.append((offset + len(data), b"") if lost else (offset, data))

    def truncate(self, size: int) -> None:
        """Cut the file, or grow it with zeros, in the cache."""
        self._cache().resize(size)
        self.pending.append(size)

    def _cache(self) -> SharedBytes:
        if self.seen is self.durable:
            self.seen = self.durable.share()
        return self.seen

    @property
    def dirty_bytes(self) -> int:
        """How much the next sync has to write."""
        return sum([len(change[1]) for change in self.pending if not isinstance(change, int)])

    def sync(self) -> None:
        """Make everything durable."""
        # What a failed sync gave up is not pending any more: it stays out, though the cache still shows it.
        for change in self.pending:
            if isinstance(change, int):
                self.durable.resize(change)
            else:
                self.durable.write(*change)
        self.pending.clear()

    def fail_sync(self, how: SyncFailure, random: Random) -> None:
        """Leave behind what a failed sync leaves."""
        if how is DURABLE:
            self.sync()
        elif how is TORN:
            self._tear(random)
        elif how is not KEPT:
            self.pending.clear()
            if how is REVERTED:
                self.forget_cache()

    def forget_cache(self) -> None:
        """Show what is on the platter from now on, unless there are dirty pages: those stay."""
        if not self.pending:
            self.seen = self.durable
            self.cached = False

    def lose_power(self, random: Random) -> None:
        """Lose the cache; of what was not synced anything may have happened."""
        self._tear(random)
        self.forget_cache()

    def _tear(self, random: Random) -> None:
        if not self.pending:
            return
        assert self.seen is not self.durable
        data = bytearray(self.durable.read(self.durable.size, 0))
        for change in self.pending:
            if not isinstance(change, int):
                _tear(data, *change, random)
            elif random.random() < 0.5:
                del data[change:]
                data.extend(bytes(change - len(data)))
        self.pending.clear()
        self.durable = SharedBytes(data)


def _tear(data: bytearray, offset: int, written: bytes, random: Random) -> None:
    """Let happen to ``data`` what a power failure makes of an unsynced write."""
    size = len(data)
    lost, kept, cut_off, _anything = range(4)
    style = random.randrange(4)
    cut = random.randrange(len(written) + 1)
    position = 0
    while position < len(written):
        length = min(SECTOR_BYTES - (offset + position) % SECTOR_BYTES, len(written) - position)
        if style == lost:
            fate = 0
        elif style in (kept, cut_off):
            fate = _KEPT if style == kept or position < cut else 0
        else:
            fate = random.randrange(4)
        if fate:
            start = offset + position
            data.extend(bytes(max(start - len(data), 0)))
            if fate == _KEPT:
                piece = written[position : position + length]
            else:
                piece = bytes(length) if fate == _ZEROED else random.randbytes(length)
            data[start : start + length] = piece
        position += length
    if random.random() < 0.3:  # the growth is durable before the bytes are
        data.extend(bytes(max(size, offset + len(written)) - len(data)))
    elif style == cut_off and len(data) > size:
        del data[max(size, offset + cut) :]


class Directory:
    """The names of files."""

    __slots__ = ("durable", "names", "pending")

    def __init__(self, names: dict[str, Inode] | None = None) -> None:
        self.durable: dict[str, Inode] = {} if names is None else names
        self.names: dict[str, Inode] = self.durable.copy()
        """What programs see."""
        self.pending: list[tuple[str, Inode | None, str]] = []
        """Unsynced changes: a name, the file it now names or None, and the name that was renamed to it or ""."""

    def put(self, name: str, inode: Inode, *, source: str = "") -> None:
        """Give a file a name; `source` is the one it loses by that."""
        if source:
            del self.names[source]
        self.names[name] = inode
        self.pending.append((name, inode, source))

    def remove(self, name: str) -> None:
        """Unlink a name."""
        del self.names[name]
        self.pending.append((name, None, ""))

    def sync(self) -> None:
        """Make every name durable."""
        if self.pending:
            self.durable = self.names.copy()
            self.pending.clear()

    def lose_power(self, random: Random) -> None:
        """Forget any of the changes that were not synced, in any combination."""
        for name, inode, source in self.pending:
            if random.random() < 0.5:
                continue
            if source:
                self.durable.pop(source, None)
            if inode is None:
                self.durable.pop(name, None)
            else:
                self.durable[name] = inode
        self.pending.clear()
        self.names = self.durable.copy()

    def twin(self, of: Callable[[Inode], Inode]) -> Directory:
        """Return the durable names, of twins of their files."""
        return Directory({name: of(inode) for name, inode in self.durable.items()})
