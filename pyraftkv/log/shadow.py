"""A file system over another one that leaves it alone: what is written stays in memory, and is read back from there.

A start mends what a crash left, counts itself and sets damage aside: to look at a directory with the very code that a
start runs, something has to take those writes. A file that is written to is copied first; names that come and go are
remembered. Of the file system below, nothing is called that changes it, locks it or waits for its disk.
"""

from __future__ import annotations

import itertools

from pyraftkv.log.fs import FileSystem, join, parent


class _File:
    """A file: the one below, until it is written to, and from then on a copy."""

    __slots__ = ("copy", "fd", "path", "users")

    def __init__(self, path: str, copy: bytearray | None = None) -> None:
        self.path = path
        """Where it is, below."""
        self.copy = copy
        self.fd = -1
        """Of the file below, while it is open and was not copied."""
        self.users = 0


class Shadow:
    """Implements `FileSystem`: reads from another one, writes to memory.

    Takes as much memory as the files that are written to are long; a start writes to the last segment, at most.

    Args:
        fs: What is looked at.
    """

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
        self._names: dict[str, _File | None] = {}
        """What is not as it is below: a file that was opened, moved here or made here; None where it was taken away."""
        self._dirs: set[str] = set()
        """Directories made here."""
        self._open: dict[int, _File] = {}
        self._numbers = itertools.count(1)

    def make_dir(self, path: str) -> None:
        try:
            self._fs.listdir(path)
        except FileNotFoundError:
            self._dirs.add(path)

    def listdir(self, path: str) -> list[str]:
        try:
            names = set(self._fs.listdir(path))
        except FileNotFoundError:
            if path not in self._dirs:
                raise
            names = set[str]()
        for here, file in self._names.items():
            name = here.removeprefix(join(path, ""))
            if name != here and parent(here) == parent(join(path, "any")):
                (names.discard if file is None else names.add)(name)
        return sorted(names)

    def open(self, path: str, *, create: bool = False) -> int:
        file = self._names.get(path)
        if create:
            file = self._names[path] = _File(path, bytearray())
        elif file is None:
            if path in self._names:
                raise FileNotFoundError(path)
            file = _File(path)
        if file.copy is None and file.fd < 0:
            file.fd = self._fs.open(file.path)
        self._names[path] = file
        file.users += 1
        number = next(self._numbers)
        self._open[number] = file
        return number

    def close(self, fd: int) -> None:
        file = self._open.pop(fd)
        file.users -= 1
        if not file.users:
            self._let_go(file)

    def _let_go(self, file: _File) -> None:
        if file.fd >= 0:
            self._fs.close(file.fd)
            file.fd = -1

    def size(self, fd: int) -> int:
        file = self._open[fd]
        return self._fs.size(file.fd) if file.copy is None else len(file.copy)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        file = self._open[fd]
        return self._fs.pread(file.fd, size, offset) if file.copy is None else bytes(file.copy[offset : offset + size])

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        copy = self._copy(fd)
        copy.extend(bytes(max(0, offset - len(copy))))
        copy[offset : offset + len(data)] = data
        return len(data)

    def _copy(self, fd: int) -> bytearray:
        file = self._open[fd]
        if file.copy is None:
            file.copy = bytearray(self._fs.pread(file.fd, self._fs.size(file.fd), 0))
            self._let_go(file)
        return file.copy

    def fdatasync(self, fd: int) -> None:
        assert fd in self._open, f"{fd} is not open"

    def fsync_dir(self, path: str) -> None:
        self.listdir(path)

    def rename(self, source: str, target: str) -> None:
        self.close(self.open(source))
        moved, self._names[source] = self._names[source], None
        self._names[target] = moved

    def unlink(self, path: str) -> None:
        self.close(self.open(path))
        self._names[path] = None

    def forget_cache(self, fd: int) -> None:
        file = self._open[fd]
        if file.copy is None:
            self._fs.forget_cache(file.fd)

    def lock(self, path: str) -> int:
        """Return a descriptor that locks nothing."""
        return self.open(path, create=True)
