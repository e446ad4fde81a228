"""Every disk that a power failure can leave: a life is recorded, and cut before each operation in every way there is.

.. code-block:: text

    scripted life ──► Recorder ──► Moment, Moment, Moment ...      what was durable, what was pending, what was promised
                                      │ images()
                                      ▼
                      image, image, image ...                      one for each end of what was pending
                                      │ a start
                                      ▼
                      Promise.judge                                nothing acknowledged lost, nothing invented

Where `SimDisk.power_loss` draws one end from a random, this counts them out. Of each file: every byte at which what
was pending may have been cut, every sector of it kept, lost, zeroed or garbled on its own, with the length durable
first or not. Of each directory: every subset of the pending changes, in every order. Where the ends of one moment are
too many, those of a single file or directory beside the others' two extremes come first, then a random choice of the
rest.

An image costs less than a start: its files share their bytes with the moment until somebody writes to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations, product
from math import prod
from random import Random

from pyraftkv._record import record
from pyraftkv.sim.disk import DiskError, SimDisk
from pyraftkv.sim.inode import SECTOR_BYTES, Directory, Inode, SharedBytes
from tests.log.model import Promise
from tests.log.plain import Plain, PlainFile

SECTORS_MAX = 4
"""Of so many pending sectors all combinations are met; of more, each one's fates beside two fates of all others."""
VERSIONS_MAX = 2
"""So many unsynced writes of the same bytes are met."""
CHANGES_MAX = 4
"""Of so many pending changes of a directory all orders are met; of more, all single omissions and all prefixes."""
CHANGING = frozenset({"make_dir", "create", "pwrite", "fdatasync", "fsync_dir", "rename", "unlink", "lock"})
"""Operations before which a power failure may find something else than before the one before."""

_KEPT, _LOST, _ZEROED, _GARBLED = range(4)
_Names = dict[str, Inode]
_Contents = dict[Inode, tuple[bytes, int]]


class Recorder(SimDisk):
    """A disk that tells before each operation that may change it.

    Args:
        watch: Called with this disk and the operation.
    """

    def __init__(self, random: Random, watch: Callable[[SimDisk, str], None]) -> None:
        super().__init__(random)
        self.watch = watch

    def begin(self, operation: str, path: str) -> DiskError | None:
        if operation in CHANGING:
            self.watch(self, f"{operation} {path}")
        return super().begin(operation, path)


@dataclass(slots=True)
class _Choice:
    """What may have become of a file's bytes, or of a directory's names: the ends, all lost first and all kept last."""

    of: Inode | str
    ends: list[bytes] | list[_Names] | list[None]
    marks: list[int]
    """A number for each end, equal for equal ends."""


@record
class Image:
    """One disk after the power failure."""

    mark: int
    """Equal for equal images, and for next to no others."""
    names: dict[str, _Names]
    """Of each directory."""
    contents: _Contents
    """Of each file, with a mark for it."""

    def mount(self) -> Plain:
        """Return its files, to be changed independently of everybody else's. O(files)."""
        twins = {inode: PlainFile(durable) for inode, (durable, _) in self.contents.items()}
        return Plain(
            {path: {name: twins[inode] for name, inode in names.items()} for path, names in self.names.items()}
        )

    def put(self, disk: SimDisk) -> None:
        """Put it onto a disk."""
        twins = {inode: Inode(SharedBytes(durable)) for inode, (durable, _) in self.contents.items()}
        disk.directories = {
            path: Directory({name: twins[inode] for name, inode in files.items()}) for path, files in self.names.items()
        }
        disk.durable_directories = set(self.names)


class Moment:
    """What stood on a disk before one operation, and what had been promised by then.

    Args:
        disk: As it is; it may go on.
        before: The operation.
        promise: What had been promised.
    """

    def __init__(self, disk: SimDisk, before: str, promise: Promise) -> None:
        self.before = before
        self.promise = promise
        self._names = {path: (folder.durable.copy(), list(folder.pending)) for path, folder in disk.directories.items()}
        self._durable_directories = frozenset(disk.durable_directories)
        self._bytes: dict[Inode, tuple[SharedBytes, list[tuple[int, bytes] | int]]] = {}
        for durable, pending in self._names.values():
            for inode in (*durable.values(), *(change[1] for change in pending)):
                if inode is not None and inode not in self._bytes:
                    self._bytes[inode] = inode.durable.share(), list(inode.pending)

    def images(self, random: Random, *, most: int) -> Iterator[Image]:
        """Yield the disks that may be found after a power failure; the first has lost all that was not synced.

        Args:
            random: Chooses what is garbled to what, and among too many.
            most: Yield no more.
        """
        durable = {inode: (data, hash(data)) for inode, data in self._durable_bytes()}
        choices = self._choices(random, cuts_max=most)
        for ends in _combine([len(choice.ends) for choice in choices], random, most=most):
            yield self._image(choices, ends, durable.copy())

    def _durable_bytes(self) -> Iterator[tuple[Inode, bytes]]:
        for inode, (durable, _) in self._bytes.items():
            yield inode, durable.read(durable.size, 0)

    def put_as_killed(self, disk: SimDisk) -> None:
        """Put onto ``disk`` what is found after the process was killed: all of it, and what is pending still is."""
        twins = {inode: Inode(durable.share()) for inode, (durable, _) in self._bytes.items()}
        for inode, (_, changes) in self._bytes.items():
            for change in changes:
                if isinstance(change, int):
                    twins[inode].truncate(change)
                else:
                    twins[inode].write(*change)
        disk.directories = {}
        for path, (durable, pending) in self._names.items():
            folder = disk.directories[path] = Directory({name: twins[inode] for name, inode in durable.items()})
            for name, inode, source in pending:
                if inode is None:
                    folder.remove(name)
                else:
                    folder.put(name, twins[inode], source=source)
        disk.durable_directories = set(self._durable_directories)

    def _choices(self, random: Random, *, cuts_max: int) -> list[_Choice]:
        choices: list[_Choice] = []
        for path, (durable, pending) in self._names.items():
            if path not in self._durable_directories:
                choices.append(_Choice("?" + path, [None, None], [0, 1]))
            if pending:
                names = _name_ends(durable, pending)
                choices.append(_Choice(path, names, list(range(len(names)))))
        for inode, (whole, changes) in self._bytes.items():
            if changes:
                ends = _byte_ends(whole.read(whole.size, 0), changes, random, cuts_max=cuts_max)
                choices.append(_Choice(inode, ends, [hash(end) for end in ends]))
        return choices

    def _image(self, choices: list[_Choice], ends: tuple[int, ...], contents: _Contents) -> Image:
        """Put an image together; ``contents`` are what is durable, and become what was chosen."""
        names = {path: durable for path, (durable, _) in self._names.items()}
        gone: list[str] = []
        for choice, end in zip(choices, ends, strict=True):
            if isinstance(choice.of, Inode):
                contents[choice.of] = choice.ends[end], choice.marks[end]
            elif not choice.of.startswith("?"):
                names[choice.of] = choice.ends[end]
            elif not end:
                gone.append(choice.of[1:] + "/")
        if gone:
            names = {path: kept for path, kept in names.items() if not f"{path}/".startswith(tuple(gone))}
        found = [(path, name, contents[inode][1]) for path in names for name, inode in names[path].items()]
        return Image(hash(frozenset(found)) ^ hash(frozenset(names)), names, contents)


def _combine(counts: list[int], random: Random, *, most: int) -> Iterator[tuple[int, ...]]:
    """Yield which end each choice has: all combinations, or ``most`` of them."""
    if prod(counts) <= most:
        yield from product(*map(range, counts))
        return
    lost, kept = tuple([0] * len(counts)), tuple([count - 1 for count in counts])
    single = {
        (*extreme[:position], end, *extreme[position + 1 :])
        for extreme in (lost, kept)
        for position, count in enumerate(counts)
        for end in range(count)
    }
    chosen = {lost, kept} | set(random.sample(sorted(single), min(len(single), most - 2)))
    while len(chosen) < most:
        chosen.add(tuple([random.randrange(count) for count in counts]))
    yield from sorted(chosen)


def _name_ends(durable: _Names, pending: list[tuple[str, Inode | None, str]]) -> list[_Names]:
    """Return what may be left of a directory: any of its pending changes, in any order."""
    count = len(pending)
    orders: Iterator[tuple[int, ...]]
    if count <= CHANGES_MAX:
        orders = (order for size in range(count + 1) for order in permutations(range(count), size))
    else:
        prefixes = [tuple(range(size)) for size in range(count + 1)]
        orders = iter([*prefixes, *(tuple(i for i in range(count) if i != without) for without in range(count))])
    ends: dict[tuple[tuple[str, int], ...], _Names] = {}
    for order in orders:
        names = durable.copy()
        for number in order:
            name, inode, source = pending[number]
            if source:
                names.pop(source, None)
            if inode is None:
                names.pop(name, None)
            else:
                names[name] = inode
        ends.setdefault(tuple(sorted((name, id(inode)) for name, inode in names.items())), names)
    return list(ends.values())


def _byte_ends(durable: bytes, changes: list[tuple[int, bytes] | int], random: Random, *, cuts_max: int) -> list[bytes]:
    """Return what may be left of a file, whose pending changes are writes (offset, bytes) and truncations (size).

    Args:
        cuts_max: Cut each sector in no more places.
    """
    pieces = _recent([piece for change in changes for piece in _pieces(change)])
    ends = {durable: None}
    whole = durable
    for piece in pieces:
        if not isinstance(piece, int):
            offset, data = piece
            before = whole[:offset].ljust(offset, b"\0")
            cuts = range(1, len(data))
            for cut in cuts if len(cuts) <= cuts_max else random.sample(cuts, cuts_max):
                ends[before + data[:cut] + whole[offset + cut :]] = None
        whole = _apply(whole, [piece], [_KEPT], random)
        ends[whole] = None
    for fates in _fates(len(pieces)):
        end = _apply(durable, pieces, fates, random)
        ends[end] = None
        ends[end + bytes(max(len(whole) - len(end), 0))] = None  # the length was durable before the bytes were
    del ends[durable]
    ends.pop(whole, None)
    return [durable, *ends, whole] if whole != durable else [durable, *ends]


def _recent(pieces: list[tuple[int, bytes] | int]) -> list[tuple[int, bytes] | int]:
    """Leave out what was written over twice: a file that nobody syncs would have a history without end."""
    count: Counter[tuple[int, int]] = Counter()
    kept: list[tuple[int, bytes] | int] = []
    for piece in reversed(pieces):
        where = (-1, piece) if isinstance(piece, int) else (piece[0], len(piece[1]))
        count[where] += 1
        if count[where] <= VERSIONS_MAX:
            kept.append(piece)
    return kept[::-1]


def _fates(count: int) -> Iterator[list[int]]:
    """Yield the fates of so many pieces."""
    if count <= SECTORS_MAX:
        yield from map(list, product(range(4), repeat=count))
        return
    for others in (_KEPT, _LOST):
        for position in range(count):
            for fate in range(4):
                fates = [others] * count
                fates[position] = fate
                yield fates


def _pieces(change: tuple[int, bytes] | int) -> list[tuple[int, bytes] | int]:
    """Cut a write where sectors end; a truncation is one piece."""
    if isinstance(change, int):
        return [change]
    offset, data = change
    starts = [0, *range(SECTOR_BYTES - offset % SECTOR_BYTES, len(data), SECTOR_BYTES)]
    return [(offset + start, data[start:stop]) for start, stop in zip(starts, [*starts[1:], len(data)], strict=True)]


def _apply(durable: bytes, pieces: list[tuple[int, bytes] | int], fates: list[int], random: Random) -> bytes:
    """Return what a file holds after the pieces had these fates."""
    data = bytearray(durable)
    for piece, fate in zip(pieces, fates, strict=True):
        if fate == _LOST:
            continue
        if isinstance(piece, int):
            del data[piece:]
            data.extend(bytes(piece - len(data)))
            continue
        offset, written = piece
        if fate != _KEPT:
            written = bytes(len(written)) if fate == _ZEROED else random.randbytes(len(written))
        data.extend(bytes(max(offset - len(data), 0)))
        data[offset : offset + len(written)] = written
    return bytes(data)
