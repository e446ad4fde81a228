"""A disk in memory that loses what was not synced: `SimFileSystem`, and workers that run without threads.

What a crash may do, decided by a seeded random:

* each 512-byte sector of an unsynced write is kept, lost, zeroed or garbled, whatever became of the others;
* an unsynced growth is kept whole, cut at any byte, or lost; so is an unsynced truncation;
* each unsynced creation, rename or unlink of a name happened or did not. Syncing a file does not sync its name.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from random import Random

SECTOR_BYTES = 512


class SimulatedCrash(BaseException):
    """The power went. Nothing after this reaches the disk."""


class Inode:
    """A file's bytes: what programs see, what is durable, and the operations between."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes] | int] = []
        """Unsynced writes (offset, bytes) and truncations (size), in order."""

    def after_crash(self, random: Random) -> Inode:
        left = Inode()
        left.durable = bytearray(self.durable)
        for operation in self.pending:
            if isinstance(operation, int):
                if random.random() < 0.5:
                    del left.durable[operation:]
                    left.durable.extend(bytes(operation - len(left.durable)))
            else:
                _tear(left.durable, *operation, random)
        left.data = bytearray(left.durable)
        return left


def _tear(data: bytearray, offset: int, written: bytes, random: Random) -> None:
    size = len(data)
    style = random.randrange(4)  # all sectors lost, all kept, a cut, or anything
    cut = random.randrange(len(written) + 1)
    position = 0
    while position < len(written):
        length = min(SECTOR_BYTES - (offset + position) % SECTOR_BYTES, len(written) - position)
        piece = written[position : position + length]
        fate = {0: 0, 1: 1, 2: 1 if position < cut else 0}.get(style, random.randrange(4))
        if fate:
            start = offset + position
            data.extend(bytes(max(start + length - len(data), 0)))
            data[start : start + length] = (piece, bytes(length), random.randbytes(length))[fate - 1]
        position += length
    end = max(size, offset + len(written))
    if random.random() < 0.3:  # the growth is durable before the bytes are
        data.extend(bytes(end - len(data)))
    elif style == 2 and len(data) > size:
        del data[max(size, offset + cut) :]


class Directory:
    """Names: what programs see, what is durable, and the operations between."""

    def __init__(self) -> None:
        self.names: dict[str, Inode] = {}
        self.durable: dict[str, Inode] = {}
        self.pending: list[tuple[str, Inode | None, str | None]] = []
        """(name, what it now is or None, the name it was renamed from)."""

    def after_crash(self, random: Random, inode: Callable[[Inode], Inode]) -> Directory:
        names = dict(self.durable)
        for name, target, source in self.pending:
            if random.random() < 0.5:
                continue
            if source is not None:
                names.pop(source, None)
            if target is None:
                names.pop(name, None)
            else:
                names[name] = target
        left = Directory()
        left.durable = {name: inode(target) for name, target in names.items()}
        left.names = dict(left.durable)
        return left


class SimFileSystem:
    """Implements `pyraftkv.log.FileSystem` in memory.

    Args:
        random: Decides how much a short write takes; None for no short writes.
    """

    def __init__(self, *, random: Random | None = None) -> None:
        self.random = random
        self.directories: dict[str, Directory] = {"": Directory()}
        self.durable_directories: set[str] = {""}
        self.fds: dict[int, tuple[Inode, str]] = {}
        self.next_fd = 3
        self.locked: dict[int, str] = {}
        self.operations = 0
        self.crash_at = 0
        """The operation, counted from 1, before which the power goes; 0 for never."""
        self.crashed = False
        self.fault: Callable[[str, str], int] = lambda _operation, _path: 0
        """Asked before every operation for an errno to fail with."""
        self.trace: list[str] = []

    def crash(self, random: Random) -> SimFileSystem:
        """Return what a machine finds on this disk after the power went now."""
        left = SimFileSystem(random=self.random)
        inodes: dict[int, Inode] = {}

        def survivor(inode: Inode) -> Inode:
            return inodes.setdefault(id(inode), inode.after_crash(random))

        for path in sorted(self.directories):
            known = path in self.durable_directories or random.random() < 0.5
            if known and (path == "" or _parent(path) in left.directories):
                left.directories[path] = self.directories[path].after_crash(random, survivor)
                left.durable_directories.add(path)
        return left

    def kill(self) -> SimFileSystem:
        """Return what the next process finds after this one was killed: the cache is intact, nothing is open."""
        left = SimFileSystem(random=self.random)
        left.directories, left.durable_directories = self.directories, self.durable_directories
        return left

    def _step(self, operation: str, path: str) -> None:
        if self.crashed:
            raise SimulatedCrash
        self.operations += 1
        self.trace.append(f"{operation} {path}")
        if self.operations == self.crash_at:
            self.crashed = True
            raise SimulatedCrash
        if code := self.fault(operation, path):
            raise OSError(code, f"simulated: {operation} {path}")

    def _directory(self, path: str) -> tuple[Directory, str]:
        folder, _, name = path.rpartition("/")
        if folder not in self.directories:
            raise FileNotFoundError(errno.ENOENT, "no such directory", folder)
        return self.directories[folder], name

    def make_dir(self, path: str) -> None:
        self._step("make_dir", path)
        self.directories.setdefault(path, Directory())

    def listdir(self, path: str) -> list[str]:
        self._step("listdir", path)
        return sorted(self.directories[path].names)

    def open(self, path: str, *, create: bool = False) -> int:
        self._step("create" if create else "open", path)
        directory, name = self._directory(path)
        inode = directory.names.get(name)
        if inode is None:
            if not create:
                raise FileNotFoundError(errno.ENOENT, "no such file", path)
            inode = directory.names[name] = Inode()
            directory.pending.append((name, inode, None))
        elif create:
            inode.data.clear()
            inode.pending.append(0)
        return self._fd(inode, path)

    def _fd(self, inode: Inode, path: str) -> int:
        self.next_fd += 1
        self.fds[self.next_fd] = (inode, path)
        return self.next_fd

    def close(self, fd: int) -> None:
        del self.fds[fd]
        self.locked.pop(fd, None)

    def size(self, fd: int) -> int:
        return len(self.fds[fd][0].data)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        inode, path = self.fds[fd]
        self._step("pread", path)
        return bytes(inode.data[offset : offset + size])

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        inode, path = self.fds[fd]
        self._step("pwrite", path)
        taken = bytes(data)
        if self.random is not None and self.random.random() < 0.1:
            taken = taken[: self.random.randrange(1, len(taken) + 1)]
        inode.data.extend(bytes(max(offset + len(taken) - len(inode.data), 0)))
        inode.data[offset : offset + len(taken)] = taken
        inode.pending.append((offset, taken))
        return len(taken)

    def truncate(self, fd: int, size: int) -> None:
        inode, path = self.fds[fd]
        self._step("truncate", path)
        del inode.data[size:]
        inode.pending.append(size)

    def fdatasync(self, fd: int) -> None:
        inode, path = self.fds[fd]
        try:
            self._step("fdatasync", path)
        except OSError:
            inode.pending.clear()  # the pages are marked clean: readable from the cache, and never on the disk
            raise
        # What a failed sync gave up is not pending any more: it stays out, though the cache still shows it.
        for operation in inode.pending:
            if isinstance(operation, int):
                del inode.durable[operation:]
            else:
                offset, written = operation
                inode.durable.extend(bytes(max(offset + len(written) - len(inode.durable), 0)))
                inode.durable[offset : offset + len(written)] = written
        inode.pending.clear()

    def fsync_dir(self, path: str) -> None:
        self._step("fsync_dir", path)
        path = path.rstrip("/")
        directory = self.directories[path]
        directory.durable = dict(directory.names)
        directory.pending.clear()
        self.durable_directories |= {child for child in self.directories if _parent(child) == path}

    def rename(self, source: str, target: str) -> None:
        self._step("rename", target)
        directory, old = self._directory(source)
        if old not in directory.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", source)
        name = target.rpartition("/")[2]
        directory.names[name] = directory.names.pop(old)
        directory.pending.append((name, directory.names[name], old))
        self.fds = {fd: (inode, target if path == source else path) for fd, (inode, path) in self.fds.items()}

    def unlink(self, path: str) -> None:
        self._step("unlink", path)
        directory, name = self._directory(path)
        if name not in directory.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        del directory.names[name]
        directory.pending.append((name, None, None))

    def forget_cache(self, fd: int) -> None:
        """Read from the disk from now on. Clean pages that a failed sync left behind are gone."""
        inode, path = self.fds[fd]
        self._step("forget_cache", path)
        if not inode.pending:
            inode.data[:] = inode.durable

    def lock(self, path: str) -> int:
        self._step("lock", path)
        if path in self.locked.values():
            raise BlockingIOError(errno.EAGAIN, "locked", path)
        fd = self._fd(Inode(), path)
        self.locked[fd] = path
        return fd

    # What tests do to a disk behind the program's back

    def file(self, path: str) -> bytearray:
        """The bytes of a file; change them with `damage`."""
        directory, name = self._directory(path)
        return directory.names[name].data

    def damage(self, path: str, data: bytes | bytearray) -> None:
        """Replace a file's bytes, durably."""
        directory, name = self._directory(path)
        inode = directory.names[name]
        inode.data = bytearray(data)
        inode.durable = bytearray(data)

    def copy(self) -> SimFileSystem:
        """The same disk, fully synced, with nothing open."""
        left = SimFileSystem(random=self.random)
        left.durable_directories = set(self.directories)
        for path, directory in self.directories.items():
            left.directories[path] = Directory()
            for name, inode in directory.names.items():
                twin = Inode()
                twin.data, twin.durable = bytearray(inode.data), bytearray(inode.data)
                left.directories[path].names[name] = left.directories[path].durable[name] = twin
        return left


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


class LoopWorker:
    """Runs jobs on the event loop itself, one per turn, in order.

    Args:
        crashed: Told when the simulated power goes.
    """

    def __init__(self, crashed: asyncio.Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._crashed = crashed

    def submit(self, job, then) -> None:
        self._loop.call_soon(self._run, job, then)

    def _run(self, job, then) -> None:
        try:
            result = job()
        except SimulatedCrash as crash:
            if not self._crashed.done():
                self._crashed.set_exception(_Crashed(str(crash)))
        except Exception as error:  # noqa: BLE001 - as the thread does
            self._loop.call_soon(then, None, error)
        else:
            self._loop.call_soon(then, result, None)

    def stop(self) -> None:
        """Nothing to stop."""


class _Crashed(Exception):
    """`SimulatedCrash`, as an exception that a future may carry."""


async def until_crash(fs: SimFileSystem, life) -> bool:
    """Run ``life(worker_factory)`` until it ends or the power goes. Return whether the power went."""
    crashed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(life(lambda _name: LoopWorker(crashed)))
    await asyncio.wait([task, crashed], return_when=asyncio.FIRST_COMPLETED)
    if crashed.done():
        crashed.exception()
        task.cancel()
        await asyncio.wait([task])
        return True
    crashed.cancel()
    task.result()
    return fs.crashed
