"""A disk that loses what was not synced, and everything else that disks do: `SimDisk`, and `SimFS`, a process's view.

.. code-block:: text

    FileStorage ──► SimFS ──┐   descriptors, locks: gone with the process
    FileStorage ──► SimFS ──┴─► SimDisk ──► Directory ──► Inode    seen | pending | durable   (`pyraftkv.sim.inode`)
                                   │ ▲
                     profile, fault  kill, power_loss, rot, wipe

What can be wrong with it:

* it is slow, or stalls now and then (`DiskProfile`, `DiskFaults.slow_factor`);
* it is full: the write that crosses the capacity is short, the next one fails with ENOSPC;
* operations fail, the n-th or at a rate, by kind and by path (`DiskError`); a sync fails in any of five ways;
* it lies: a write is taken and never arrives, arrives somewhere else, or a sync returns before anything is durable;
* what is durable rots, and nobody hears of it before it is read, or some of it cannot be read at all;
* the process dies, or the power goes, between any two operations or in the middle of a job.

Nothing here takes time: an operation adds what it costs to `SimDisk.seconds`, and `pyraftkv.sim.worker` lets it pass.
All chance comes from the one random that a disk is made with, so the same operations meet the same fate.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import NoReturn

from pyraftkv._record import record
from pyraftkv.log.fs import IN_USE_ELSEWHERE, IN_USE_HERE
from pyraftkv.sim.faults import DiskFault
from pyraftkv.sim.inode import SECTOR_BYTES, Directory, Inode, SharedBytes, SyncFailure

OPERATIONS_KEPT_MAX = 4096
"""The last operations that `SimDisk.trace` remembers."""


class SimulatedCrash(BaseException):
    """The process is dead, or the power is gone. Nothing after this reaches the disk."""


@record
class DiskProfile:
    """How fast a sound disk is. Times are seconds, drawn from `[lo, hi)`."""

    sync_seconds: tuple[float, float] = (0.0005, 0.003)
    """Of a sync of a file or a directory, besides the bytes to write."""
    stall_rate: float = 0.0
    """The share of syncs that take `stall_seconds` longer."""
    stall_seconds: tuple[float, float] = (0.02, 0.2)
    read_seconds: tuple[float, float] = (0.00005, 0.0003)
    """Of a read that is not served from the cache, besides the bytes to read."""
    write_bytes_per_second: float = 200e6
    read_bytes_per_second: float = 500e6


@dataclass(slots=True)
class DiskError:
    """A rule by which operations fail; it counts those that it applies to.

    The operations: ``make_dir listdir open create pread pwrite fdatasync fsync_dir rename unlink forget_cache
    lock``.
    """

    operations: frozenset[str] = frozenset()
    """Which may fail; empty: all."""
    path: str = ""
    """Only where this is a part of the path."""
    rate: float = 1.0
    """The share of them that fail."""
    nth: int = 0
    """If not 0, only the n-th of them fails, counted from 1, and `rate` says nothing."""
    is_lasting: bool = False
    """Whether all those after the n-th fail too."""
    code: int = errno.EIO
    """0: nothing fails, but a write takes half of what it was given, and says so."""
    sync_failure: SyncFailure = SyncFailure.DROPPED
    """What it leaves behind where it fails a sync."""
    count: int = 0
    """How many it was asked about so far."""

    def strikes(self, operation: str, path: str, random: Random) -> bool:
        """Count this operation, and return whether it fails."""
        if self.path not in path or (self.operations and operation not in self.operations):
            return False
        self.count += 1
        if self.nth:
            return self.count == self.nth or (self.is_lasting and self.count > self.nth)
        return random.random() < self.rate


@record
class DiskFaults:
    """What is wrong with a disk. The defaults: nothing."""

    errors: tuple[DiskError, ...] = ()
    capacity_bytes: int | None = None
    """Files cannot grow beyond this together; None: no end."""
    slow_factor: float = 1.0
    """Everything takes so many times as long."""
    sync_extra_seconds: float = 0.0
    """Added to every sync."""
    short_write_rate: float = 0.0
    """The share of writes that take fewer bytes than they were given, and say so."""
    lost_write_rate: float = 0.0
    """The share of writes that never reach the disk, and nobody is told."""
    misdirected_write_rate: float = 0.0
    """The share of writes that reach another place on the disk, and nobody is told."""
    lost_sync_rate: float = 0.0
    """The share of syncs that make nothing durable and claim they did."""
    unreadable_sectors: frozenset[tuple[str, int]] = frozenset()
    """Sectors, as path and number, that cannot be read."""


class SimDisk:
    """What outlives processes. `mount` it to use it.

    Args:
        random: Decides whatever is left to chance.
        profile: How fast it is.
    """

    def __init__(self, random: Random, *, profile: DiskProfile | None = None) -> None:
        self.random = random
        self.profile = DiskProfile() if profile is None else profile
        self.fault = DiskFaults()
        self.seconds = 0.0
        """What the operations since it was last set to 0 cost."""
        self.operations = 0
        """Operations so far. One that fails counts."""
        self.trace: deque[tuple[str, str]] = deque(maxlen=OPERATIONS_KEPT_MAX)
        """The last operations and their paths."""
        self.life = 0
        """Rises when the processes that mounted it die."""
        self.locked: set[str] = set()
        self._end: Callable[[], None] | None = None
        self._end_at = 0
        self._format()

    def _format(self) -> None:
        self.directories: dict[str, Directory] = {"": Directory()}
        self.durable_directories: set[str] = {""}
        self.moves: list[tuple[str, str]] = []
        """Directories that were renamed, from and to, in order, while that is not durable."""

    def __repr__(self) -> str:
        return f"<SimDisk of {self.used_bytes} bytes after {self.operations} operations>"

    def mount(self) -> SimFS:
        """Return the files as a process sees them, until it dies."""
        return SimFS(self)

    # --- How lives end ------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Take descriptors and locks from every process, and let all they still try raise. The cache stays."""
        self.life += 1
        self.locked.clear()

    def power_loss(self) -> None:
        """Kill every process, and lose the cache; of what was not synced anything may have happened. O(unsynced)."""
        self.kill()
        self.spare()
        for source, target in reversed(self.moves):
            if self.random.random() < 0.5:
                self._move(target, source)
        self.moves.clear()
        for path in sorted(self.directories):
            known = path in self.durable_directories or self.random.random() < 0.5
            if not known or (path and _folder(path) not in self.directories):
                del self.directories[path]
                continue
            directory = self.directories[path]
            directory.lose_power(self.random)
            for inode in directory.names.values():
                inode.lose_power(self.random)
        self.durable_directories = set(self.directories)

    def kill_at(self, operation: int, then: Callable[[], None]) -> None:
        """Kill every process before the ``operation``-th operation from now, in the middle of a job; call ``then``."""
        self._plan(operation, self.kill, then)

    def power_loss_at(self, operation: int, then: Callable[[], None]) -> None:
        """Lose power before the ``operation``-th operation from now, in the middle of a job; call ``then``.

        Replaces an earlier plan. A power loss that comes first cancels it.
        """
        self._plan(operation, self.power_loss, then)

    def spare(self) -> None:
        """Forget the plan of `kill_at` or `power_loss_at`."""
        self._end, self._end_at = None, 0

    def _plan(self, operation: int, end: Callable[[], None], then: Callable[[], None]) -> None:
        assert operation > 0

        def happen() -> None:
            end()
            then()

        self._end, self._end_at = happen, self.operations + operation

    # --- Operations, for `SimFS` --------------------------------------------------------------------------------------

    def begin(self, operation: str, path: str) -> DiskError | None:
        """Count an operation; return why it fails, if it does. Raises `SimulatedCrash`."""
        self.operations += 1
        self.trace.append((operation, path))
        if self.operations == self._end_at:
            assert self._end is not None
            self._end()
            raise SimulatedCrash
        for error in self.fault.errors:
            if error.strikes(operation, path, self.random):
                return error
        return None

    def charge_sync(self, size_bytes: int) -> None:
        """Add what a sync costs."""
        profile, fault, random = self.profile, self.fault, self.random.random
        lo, hi = profile.sync_seconds
        seconds = lo + (hi - lo) * random() + size_bytes / profile.write_bytes_per_second
        if profile.stall_rate and random() < profile.stall_rate:
            lo, hi = profile.stall_seconds
            seconds += lo + (hi - lo) * random()
        self.seconds += seconds * fault.slow_factor + fault.sync_extra_seconds

    def charge_read(self, size_bytes: int) -> None:
        """Add what a read from the disk costs."""
        lo, hi = self.profile.read_seconds
        seconds = lo + (hi - lo) * self.random.random() + size_bytes / self.profile.read_bytes_per_second
        self.seconds += seconds * self.fault.slow_factor

    def write(self, inode: Inode, path: str, data: bytes, offset: int) -> int:
        """Write into a file as faithfully as this disk does; return how many bytes were taken. Raises `OSError`."""
        fault, random = self.fault, self.random
        if fault.short_write_rate and len(data) > 1 and random.random() < fault.short_write_rate:
            data = data[: random.randrange(1, len(data))]
        if fault.capacity_bytes is not None:
            growth = offset + len(data) - inode.seen.size
            excess = min(growth, self.used_bytes + growth - fault.capacity_bytes)
            if excess > 0:
                data = data[:-excess]
                if not data:
                    raise no_space(path)
        if fault.lost_write_rate and random.random() < fault.lost_write_rate:
            inode.write(offset, data, lost=True)
        elif fault.misdirected_write_rate and random.random() < fault.misdirected_write_rate:
            inode.write(offset, data, lost=True)
            self._misdirect(data)
        else:
            inode.write(offset, data)
        return len(data)

    def check_readable(self, path: str, offset: int, size: int) -> None:
        """Raise `OSError` if one of these bytes stands in a sector that cannot be read. O(unreadable sectors)."""
        for where, number in self.fault.unreadable_sectors:
            if where == path and offset < (number + 1) * SECTOR_BYTES and number * SECTOR_BYTES < offset + size:
                raise OSError(errno.EIO, f"simulated: sector {number} cannot be read", path)

    def loses_sync(self) -> bool:
        """Whether this sync claims to be one and is none."""
        rate = self.fault.lost_sync_rate
        return rate > 0 and self.random.random() < rate

    def _misdirect(self, data: bytes) -> None:
        """Put these bytes over others that are durable already, from the start of some sector on."""
        place = self._durable_place(self.random)
        if place is not None:
            _, inode, position = place
            start = position - position % SECTOR_BYTES
            inode.durable.write(start, data[: inode.durable.size - start])

    def _durable_place(self, random: Random) -> tuple[str, Inode, int] | None:
        """Return a random byte of what is durable: its file and the position there. None if there is none."""
        files = [
            (f"{path}/{name}", inode)
            for path, directory in sorted(self.directories.items())
            for name, inode in sorted(directory.durable.items())
            if inode.durable.size
        ]
        if not files:
            return None
        position = random.randrange(sum(inode.durable.size for _, inode in files))
        for path, inode in files:
            if position < inode.durable.size:
                return path, inode, position
            position -= inode.durable.size
        raise AssertionError("the position is in one of the files")

    @property
    def used_bytes(self) -> int:
        """The length of all files together. O(files)."""
        return sum([inode.seen.size for directory in self.directories.values() for inode in directory.names.values()])

    @property
    def is_full(self) -> bool:
        return self.fault.capacity_bytes is not None and self.used_bytes >= self.fault.capacity_bytes

    def move(self, source: str, target: str) -> None:
        """Rename a directory. Raises `OSError` if there is another one by that name, and anything in it."""
        below = any(path.startswith(f"{target}/") for path in self.directories)
        if below or (target in self.directories and self.directories[target].names):
            raise OSError(errno.ENOTEMPTY, "simulated: a directory that is not empty", target)
        self._move(source, target)
        self.moves.append((source, target))

    def _move(self, source: str, target: str) -> None:
        """Let a directory have another name. What has that name already is nowhere any more."""
        self.directories = {
            moved(path, source, target): directory
            for path, directory in self.directories.items()
            if path != target and not path.startswith(f"{target}/")
        }
        self.durable_directories = {moved(path, source, target) for path in self.durable_directories}

    # --- What befalls it ----------------------------------------------------------------------------------------------

    def suffer(self, fault: DiskFault) -> None:
        """This is wrong with the disk from now on; replaces what was."""
        errors = [
            DiskError(frozenset({"pwrite"}), rate=fault.write_error_rate),
            DiskError(frozenset({"pread"}), rate=fault.read_error_rate),
        ]
        if fault.sync_failure:
            sync_failure = SyncFailure(fault.sync_failure)
            errors.append(DiskError(frozenset({"fdatasync", "fsync_dir"}), sync_failure=sync_failure))
        capacity = None
        if fault.is_full:
            # It is full from the moment on when it was first said to be.
            capacity = self.used_bytes if self.fault.capacity_bytes is None else self.fault.capacity_bytes
        self.fault = DiskFaults(
            errors=tuple([error for error in errors if error.rate]),
            capacity_bytes=capacity,
            slow_factor=fault.slow_factor,
            sync_extra_seconds=fault.sync_seconds,
            short_write_rate=fault.short_write_rate,
        )

    def rot(self, random: Random, *, path: str = "") -> str:
        """Flip a bit of what is durable, at rest: who has it in the cache does not notice.

        Args:
            random: Where.
            path: In this file, and not in any.

        Returns: What was flipped, for a person; empty if nothing is durable.
        """
        if path:
            inode = self.inode(path)
            place = (path, inode, random.randrange(inode.durable.size)) if inode.durable.size else None
        else:
            place = self._durable_place(random)
        if place is None:
            return ""
        path, inode, position = place
        bit = random.randrange(8)
        inode.durable.write(position, bytes([inode.durable.read(1, position)[0] ^ 1 << bit]))
        return f"{path}: bit {bit} of byte {position} of {inode.durable.size}"

    def wipe(self) -> None:
        """Kill every process, and lose everything for good."""
        self.power_loss()
        self._format()

    def take(self, other: SimDisk) -> None:
        """Hold what another disk holds, durably, in place of all that is here. O(files)."""
        twin = other.copy()
        self.directories, self.durable_directories = twin.directories, twin.durable_directories
        self.moves.clear()

    # --- Looking at it, behind the back of programs -------------------------------------------------------------------

    def inode(self, path: str) -> Inode:
        """Return the file of that name. Raises `FileNotFoundError`."""
        directory, name = self.directory_of(path)
        inode = directory.names.get(name)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return inode

    def directory_of(self, path: str) -> tuple[Directory, str]:
        """Return the directory that a path leads to, and the name in it. Raises `FileNotFoundError`."""
        folder, _, name = path.rpartition("/")
        return self.directory(folder), name

    def directory(self, path: str) -> Directory:
        """Return a directory. Raises `FileNotFoundError`."""
        directory = self.directories.get(path)
        if directory is None:
            raise FileNotFoundError(errno.ENOENT, "no such directory", path)
        return directory

    def file(self, path: str) -> bytes:
        """Return the bytes of a file, as programs see them. Raises `FileNotFoundError`."""
        seen = self.inode(path).seen
        return seen.read(seen.size, 0)

    def damage(self, path: str, data: bytes | bytearray) -> None:
        """Replace a file's bytes, durably. Raises `FileNotFoundError`."""
        inode = self.inode(path)
        inode.durable = SharedBytes(data)
        inode.pending.clear()
        inode.forget_cache()

    def copy(self) -> SimDisk:
        """Return the same disk with everything synced and nothing wrong. O(files)."""
        names = {path: directory.names for path, directory in self.directories.items()}
        return self._twin(names, lambda inode: inode.seen)

    def durable_copy(self) -> SimDisk:
        """Return the disk as it were after a power failure that lost all that was not synced. O(files).

        What is done to either does not show in the other.
        """
        names = {path: self.directories[path].durable for path in self.directories if path in self.durable_directories}
        for source, target in reversed(self.moves):
            names = {moved(path, target, source): files for path, files in names.items()}
        return self._twin(names, lambda inode: inode.durable)

    def _twin(self, names: dict[str, dict[str, Inode]], image: Callable[[Inode], SharedBytes]) -> SimDisk:
        left = SimDisk(Random(0), profile=self.profile)
        twins: dict[Inode, Inode] = {}
        for path, files in names.items():
            if path and _folder(path) not in left.directories:
                continue
            for inode in files.values():
                if inode not in twins:
                    twins[inode] = Inode(image(inode).share())
            left.directories[path] = Directory({name: twins[inode] for name, inode in files.items()})
        left.durable_directories = set(left.directories)
        return left


def no_space(path: str) -> OSError:
    """Return the error of a disk that is full."""
    return OSError(errno.ENOSPC, "simulated: no space left", path)


def moved(path: str, source: str, target: str) -> str:
    """Return what a path is called once a directory was renamed, it or one that it is in."""
    return target + path[len(source) :] if path == source or path.startswith(f"{source}/") else path


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


class _File:
    """What a descriptor stands for."""

    __slots__ = ("inode", "is_lock", "path")

    def __init__(self, inode: Inode, path: str, *, is_lock: bool) -> None:
        self.inode = inode
        self.path = path
        self.is_lock = is_lock


class SimFS:
    """A process's view of a `SimDisk`. Implements `pyraftkv.log.FileSystem`.

    After the process died, or the power went, every operation raises `SimulatedCrash`.
    """

    def __init__(self, disk: SimDisk) -> None:
        self.disk = disk
        self.fds: dict[int, _File] = {}
        self._life = disk.life
        self._next_fd = 3

    def __repr__(self) -> str:
        return f"<SimFS with {len(self.fds)} open files on {self.disk!r}>"

    def _begin(self, operation: str, path: str) -> DiskError | None:
        if self._life != self.disk.life:
            raise SimulatedCrash
        return self.disk.begin(operation, path)

    def _step(self, operation: str, path: str) -> None:
        error = self._begin(operation, path)
        if error is not None:
            _fail(error, operation, path)

    def _fd(self, inode: Inode, path: str, *, is_lock: bool = False) -> int:
        self._next_fd += 1
        self.fds[self._next_fd] = _File(inode, path, is_lock=is_lock)
        return self._next_fd

    def _make(self, path: str) -> Inode:
        """Create an empty file."""
        if self.disk.is_full:
            raise no_space(path)
        directory, name = self.disk.directory_of(path)
        inode = Inode()
        directory.put(name, inode)
        return inode

    def make_dir(self, path: str) -> None:
        self._step("make_dir", path)
        self._make_dir_above(path)
        self.disk.directories.setdefault(path, Directory())

    def _make_dir_above(self, path: str) -> None:
        above = _folder(path)
        if above not in self.disk.directories:
            self._make_dir_above(above)
            self.disk.directories[above] = Directory()
            self.disk.durable_directories.add(above)

    def listdir(self, path: str) -> list[str]:
        self._step("listdir", path)
        return sorted(self.disk.directory(path).names)

    def open(self, path: str, *, create: bool = False) -> int:
        self._step("create" if create else "open", path)
        if not create:
            return self._fd(self.disk.inode(path), path)
        directory, name = self.disk.directory_of(path)
        inode = directory.names.get(name)
        if inode is None:
            inode = self._make(path)
        else:
            inode.truncate(0)
        return self._fd(inode, path)

    def close(self, fd: int) -> None:
        file = self.fds.pop(fd)
        if file.is_lock and self._life == self.disk.life:
            self.disk.locked.discard(file.path)

    def size(self, fd: int) -> int:
        return self.fds[fd].inode.seen.size

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        file = self.fds[fd]
        self._step("pread", file.path)
        self.disk.check_readable(file.path, offset, size)
        inode = file.inode
        data = inode.seen.read(size, offset)
        if inode.seen is inode.durable and not inode.cached:
            inode.cached = True
            self.disk.charge_read(len(data))
        return data

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        file = self.fds[fd]
        error = self._begin("pwrite", file.path)
        if error is not None:
            if error.code:
                _fail(error, "pwrite", file.path)
            data = data[: max(len(data) // 2, 1)]
        return self.disk.write(file.inode, file.path, bytes(data), offset)

    def fdatasync(self, fd: int) -> None:
        file, disk = self.fds[fd], self.disk
        error = self._begin("fdatasync", file.path)
        disk.charge_sync(file.inode.dirty_bytes)
        if error is not None:
            file.inode.fail_sync(error.sync_failure, disk.random)
            _fail(error, "fdatasync", file.path)
        if not disk.loses_sync():
            file.inode.sync()

    def fsync_dir(self, path: str) -> None:
        error = self._begin("fsync_dir", path)
        self.disk.charge_sync(0)
        path = path.rstrip("/")
        syncs = not self.disk.loses_sync() if error is None else error.sync_failure is SyncFailure.DURABLE
        if syncs:
            self.disk.directory(path).sync()
            below = [child for child in self.disk.directories if child and _folder(child) == path]
            self.disk.durable_directories.update(below)
            self.disk.moves = [move for move in self.disk.moves if _folder(move[1]) != path]
        if error is not None:
            _fail(error, "fsync_dir", path)

    def rename(self, source: str, target: str) -> None:
        self._step("rename", target)
        assert _folder(source) == _folder(target), "files do not move to other directories here"
        if source in self.disk.directories:
            self.disk.move(source, target)
            for file in self.fds.values():
                file.path = moved(file.path, source, target)
            return
        inode = self.disk.inode(source)
        directory, old = self.disk.directory_of(source)
        directory.put(target.rpartition("/")[2], inode, source=old)
        for file in self.fds.values():
            if file.path == source:
                file.path = target

    def unlink(self, path: str) -> None:
        self._step("unlink", path)
        self.disk.inode(path)
        directory, name = self.disk.directory_of(path)
        directory.remove(name)

    def forget_cache(self, fd: int) -> None:
        """Read from the disk from now on. Clean pages that a failed sync left behind are gone."""
        file = self.fds[fd]
        self._step("forget_cache", file.path)
        file.inode.forget_cache()

    def lock(self, path: str) -> int:
        self._step("lock", path)
        directory, name = self.disk.directory_of(path)
        inode = directory.names.get(name)
        if inode is None:
            inode = self._make(path)
        if path in self.disk.locked:
            is_own = any(file.is_lock and file.path == path for file in self.fds.values())
            raise BlockingIOError(errno.EAGAIN, IN_USE_HERE if is_own else IN_USE_ELSEWHERE, path)
        self.disk.locked.add(path)
        return self._fd(inode, path, is_lock=True)


def _fail(error: DiskError, operation: str, path: str) -> NoReturn:
    raise OSError(error.code, f"simulated: {operation} fails", path)
