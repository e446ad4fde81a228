"""The few file-system calls that durability is made of: `FileSystem`, and the real one, `OsFileSystem`.

No other module of the log touches ``os``, so that a simulated disk can stand in, and so that every call that can
fail, lie or tear is found in one place. Files are named by descriptors, as the kernel does, and read and written at
explicit offsets only: no descriptor has a position that two threads could fight over.

What the callers count on:

1. `fdatasync` makes a file's bytes and its length durable. It says nothing about the file's *name*.
2. A name (a creation, a rename, an unlink) is durable only after `fsync_dir` of the directory that holds it.
3. `rename` replaces its target in one step: after a crash the name holds the old file or the new one.
4. `pwrite` may write less than it was given; `write_all` is the loop that every caller uses.
5. After a failed sync the kernel marks the lost pages clean, so what is read back may not be what is on the disk.
   Nobody here syncs the same bytes twice, and files are dropped from the cache before a start reads them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from typing import Protocol

from pyraftkv.errors import ForeignDataDir

if sys.platform == "win32":  # pragma: no cover - exercised by the Windows job
    import msvcrt
else:
    import fcntl

ZEROS_BYTES_MAX = 1 << 20
"""Zeros that are written at once."""

LOCK_TRIES_MAX = 6
LOCK_PAUSE_SECONDS = 0.02
"""Who looks at a directory holds its lock for a moment, to see whether it is free: a start tries again after that.

It sleeps in between, a tenth of a second in all if the directory is in use. That is in the writer's thread, which has
nothing else to do before the directory is open; the event loop goes on. Nobody could tell it when the other one is
done: a lock that is waited for has no time limit. And the looking ones, who have no thread, do not try again.
"""

IN_USE_HERE = "in use by this process, which has opened it already"
IN_USE_ELSEWHERE = "in use by another process"

_NO_ROOM = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
_UNREADABLE = frozenset({errno.EIO, getattr(errno, "EBADMSG", errno.EIO), getattr(errno, "EUCLEAN", errno.EIO)})
_LOCKED = frozenset({errno.EAGAIN, errno.EACCES, getattr(errno, "EDEADLOCK", errno.EAGAIN)})
_FILE_MODE = 0o600
_DIRECTORY_MODE = 0o700
_SEPARATORS = (os.sep, os.altsep or os.sep)
_HANDLE_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class NoRoom(OSError):
    """The disk is full, or its user has as much of it as he may have."""


@contextlib.contextmanager
def room_needed() -> Generator[None]:
    """Raise `NoRoom` for the errors that say so, and any other as it is."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise NoRoom(error.errno, error.strerror, error.filename) from error
        raise


def is_unreadable(error: OSError) -> bool:
    """Whether the disk says that it can no longer read what it holds: damage, and no lack of memory or descriptors."""
    return error.errno in _UNREADABLE


class FileSystem(Protocol):
    """What the log needs of a disk. Every method may raise `OSError`."""

    def make_dir(self, path: str) -> None:
        """Make a private directory, or check that the one there is ours and make it private.

        Directories above it are made too, durably; its own name is durable only after `fsync_dir` of its parent.

        Raises: `ForeignDataDir` if it belongs to another user.
        """
        ...

    def listdir(self, path: str) -> list[str]:
        """Return the names in a directory, sorted."""
        ...

    def open(self, path: str, *, create: bool = False) -> int:
        """Open a file for reading and writing; `create` makes it, empty, whatever stood there."""
        ...

    def close(self, fd: int) -> None: ...

    def size(self, fd: int) -> int: ...

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Read up to `size` bytes at `offset`; fewer only at the end of the file."""
        ...

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Write at `offset`; return how many bytes were taken, possibly fewer than given."""
        ...

    def fdatasync(self, fd: int) -> None:
        """Make the file's bytes and length durable."""
        ...

    def fsync_dir(self, path: str) -> None:
        """Make the names in a directory durable."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Rename a file, over the one of that name; or a directory with all in it, which `node.aside` alone does."""
        ...

    def unlink(self, path: str) -> None: ...

    def forget_cache(self, fd: int) -> None:
        """Let the next read come from the disk and not from memory, as far as the system allows."""
        ...

    def lock(self, path: str) -> int:
        """Lock a file for as long as the returned descriptor is open.

        Raises: `BlockingIOError` if it is taken; its text is `IN_USE_HERE` or `IN_USE_ELSEWHERE`.
        """
        ...


class OsFileSystem:
    """The operating system's files.

    Args:
        fsync: False turns every sync into nothing. For tests that measure something else; never for data.
        read_only: Files are opened for reading alone, and none is made: for looking at a directory (`Shadow`).
    """

    def __init__(self, *, fsync: bool = True, read_only: bool = False) -> None:
        self._fsync = fsync
        self._open_flags = _HANDLE_FLAGS | (os.O_RDONLY if read_only else os.O_RDWR)
        self._create_flag = 0 if read_only else os.O_CREAT
        self._seek_lock = threading.Lock()

    def make_dir(self, path: str) -> None:
        above: list[str] = []
        while not os.path.isdir(parent(above[-1] if above else path)):
            above.append(parent(above[-1] if above else path))
        if not os.path.isdir(path):
            self._sync_name(parent(above[-1] if above else path))
        for directory in reversed(above):
            with contextlib.suppress(FileExistsError):  # another process makes it as well
                os.mkdir(directory)
            self.fsync_dir(parent(directory))
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, mode=_DIRECTORY_MODE)
        if sys.platform != "win32":
            status = os.stat(path)
            if status.st_uid != os.geteuid():
                raise ForeignDataDir(f"{path} belongs to user {status.st_uid}: use a directory of your own")
            if status.st_mode & 0o077:
                os.chmod(path, _DIRECTORY_MODE)

    def _sync_name(self, directory: str) -> None:
        """Make the name of a directory durable that stood there, if that may be done.

        A process that made it may have been killed before it could. None above it: those were synced before.
        """
        try:
            self.fsync_dir(parent(directory))
        except OSError as error:
            if is_unreadable(error):
                raise

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def open(self, path: str, *, create: bool = False) -> int:
        return os.open(path, self._open_flags | (os.O_CREAT | os.O_TRUNC if create else 0), _FILE_MODE)

    def close(self, fd: int) -> None:
        _held_locks.discard(fd)
        os.close(fd)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    if hasattr(os, "pread"):

        def pread(self, fd: int, size: int, offset: int) -> bytes:
            data = os.pread(fd, size, offset)
            if len(data) == size:
                return data
            parts = [data]
            while data and (missing := size - sum(map(len, parts))):
                data = os.pread(fd, missing, offset + size - missing)
                parts.append(data)
            return b"".join(parts)

        def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
            return os.pwrite(fd, data, offset)

    else:  # pragma: no cover - Windows has no positioned reads and writes

        def pread(self, fd: int, size: int, offset: int) -> bytes:
            with self._seek_lock:
                os.lseek(fd, offset, os.SEEK_SET)
                parts: list[bytes] = []
                while size and (data := os.read(fd, size)):
                    parts.append(data)
                    size -= len(data)
                return b"".join(parts)

        def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
            with self._seek_lock:
                os.lseek(fd, offset, os.SEEK_SET)
                return os.write(fd, data)

    def fdatasync(self, fd: int) -> None:
        if not self._fsync:
            return
        if sys.platform == "darwin":  # pragma: no cover - fsync leaves the drive's own cache alone there
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        elif sys.platform == "win32":  # pragma: no cover
            os.fsync(fd)
        else:
            os.fdatasync(fd)

    def fsync_dir(self, path: str) -> None:
        if not self._fsync or sys.platform == "win32":  # NTFS journals names by itself
            return
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: str, target: str) -> None:
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def forget_cache(self, fd: int) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def lock(self, path: str) -> int:
        for _ in range(LOCK_TRIES_MAX - 1 if self._create_flag else 0):
            with contextlib.suppress(BlockingIOError):
                return self._lock(path)
            time.sleep(LOCK_PAUSE_SECONDS)
        return self._lock(path)

    def _lock(self, path: str) -> int:
        fd = os.open(path, self._open_flags | self._create_flag, _FILE_MODE)
        try:
            if sys.platform == "win32":  # pragma: no cover
                msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            else:
                # flock, not lockf: a POSIX lock vanishes when any descriptor of the file is closed.
                # Those who only look do not take each other for the owner.
                fcntl.flock(fd, (fcntl.LOCK_EX if self._create_flag else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno not in _LOCKED:  # a file system that has no locks, for one
                raise
            raise BlockingIOError(errno.EAGAIN, _holder(path), path) from error
        if self._create_flag:
            _held_locks.add(fd)
        return fd


_held_locks: set[int] = set()
"""Descriptors through which members of this process hold their directories, whatever `OsFileSystem` each has."""


def _holder(path: str) -> str:
    """Return who has locked a file: this process, if one of its descriptors that hold locks is of the same file."""
    is_own = False
    with contextlib.suppress(OSError):  # the file or a descriptor is gone by now
        taken = os.stat(path)
        is_own = any(os.path.samestat(taken, os.fstat(fd)) for fd in _held_locks.copy())
    return IN_USE_HERE if is_own else IN_USE_ELSEWHERE


def write_all(fs: FileSystem, fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write every byte of ``data`` at ``offset``, however short the single writes fall.

    Raises: `NoRoom`; `OSError`, also when the disk takes nothing and says nothing.
    """
    with room_needed():
        written = fs.pwrite(fd, data, offset)
        if written == len(data):
            return
        view = memoryview(data)
        while written < len(view):
            count = fs.pwrite(fd, view[written:], offset + written)
            if count <= 0:
                raise OSError(errno.EIO, "a write made no progress")
            written += count


def zero(fs: FileSystem, fd: int, start: int, end: int) -> None:
    """Write zeros to `[start, end)`, a piece at a time. Raises: as `write_all`."""
    for offset in range(start, end, ZEROS_BYTES_MAX):
        write_all(fs, fd, bytes(min(ZEROS_BYTES_MAX, end - offset)), offset)


def after_fork_in_child(callback: Callable[[], None]) -> None:
    """Run ``callback`` in every forked child of this process, where the system forks at all."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=callback)


def join(directory: str, name: str) -> str:
    """Return the path of a name in a directory. As `os.path.join`, for a name that is no path of its own."""
    return f"{directory}{os.sep}{name}" if directory and not directory.endswith(_SEPARATORS) else directory + name


def parent(path: str) -> str:
    """Return the directory that holds ``path``."""
    return os.path.dirname(os.path.abspath(path))
