"""`Plain`: a disk with nothing wrong, in dictionaries, for starts by the hundred thousand.

It does what a `SimFS` without faults does (`test_plain.py`), and loses what was not synced when the power goes. But it
draws, counts and charges nothing, and half of what a start on a simulated disk costs is that.
"""

from __future__ import annotations

from collections.abc import Mapping


class PlainFile:
    """A file's bytes.

    Args:
        durable: What is on the platter, and seen.
    """

    __slots__ = ("durable", "seen")

    def __init__(self, durable: bytes = b"") -> None:
        self.seen = self.durable = durable


Names = dict[str, PlainFile]


class Plain:
    """Implements `pyraftkv.log.FileSystem` for one process, which nobody else meets: its lock is always free.

    Args:
        directories: The files of each directory, by path, all of them durable; from now on they are this disk's.
    """

    def __init__(self, directories: dict[str, Names]) -> None:
        self.directories: dict[str, Names] = {"": {}}
        self.directories.update(directories)
        self._durable = {path: names.copy() for path, names in self.directories.items()}
        self._durable_directories = set(self.directories)
        self._made: list[str] = []
        """Directories whose names are not durable."""
        self._open: dict[int, PlainFile] = {}
        self._next_fd = 3

    def after_power_loss(self) -> Plain:
        """Return the disk as it were after a power failure that lost all that was not synced. O(files).

        What is done to either does not show in the other.
        """
        twins = {file: PlainFile(file.durable) for names in self._durable.values() for file in names.values()}
        left: dict[str, Names] = {}
        for path in self.directories:
            if path in self._durable_directories and (not path or path.rpartition("/")[0] in left):
                left[path] = {name: twins[file] for name, file in self._durable[path].items()}
        return Plain(left)

    def contents(self) -> Mapping[str, Mapping[str, bytes]]:
        """Return what programs see: the bytes of each file, by directory and name. O(files)."""
        return {path: {name: file.seen for name, file in names.items()} for path, names in self.directories.items()}

    def make_dir(self, path: str) -> None:
        if path not in self.directories:
            self._make_dir_above(path)
            self.directories[path] = {}
            self._durable[path] = {}
            self._made.append(path)

    def _make_dir_above(self, path: str) -> None:
        above = path.rpartition("/")[0]
        if above not in self.directories:
            self._make_dir_above(above)
            self.directories[above] = {}
            self._durable[above] = {}
            self._durable_directories.add(above)

    def listdir(self, path: str) -> list[str]:
        return sorted(self._names(path))

    def open(self, path: str, *, create: bool = False) -> int:
        folder, _, name = path.rpartition("/")
        names = self._names(folder)
        file = names.get(name)
        if file is None:
            if not create:
                raise FileNotFoundError(path)
            file = names[name] = PlainFile()
        elif create:
            file.seen = b""
        self._next_fd += 1
        self._open[self._next_fd] = file
        return self._next_fd

    def _names(self, path: str) -> Names:
        names = self.directories.get(path)
        if names is None:
            raise FileNotFoundError(path)
        return names

    def close(self, fd: int) -> None:
        del self._open[fd]

    def size(self, fd: int) -> int:
        return len(self._open[fd].seen)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return self._open[fd].seen[offset : offset + size]

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        file = self._open[fd]
        seen = file.seen
        file.seen = b"".join((seen[:offset].ljust(offset, b"\0"), data, seen[offset + len(data) :]))
        return len(data)

    def fdatasync(self, fd: int) -> None:
        file = self._open[fd]
        file.durable = file.seen

    def fsync_dir(self, path: str) -> None:
        path = path.rstrip("/")
        self._durable[path] = self._names(path).copy()
        if self._made:
            self._durable_directories.update([made for made in self._made if made.rpartition("/")[0] == path])
            self._made = [made for made in self._made if made not in self._durable_directories]

    def rename(self, source: str, target: str) -> None:
        folder, _, name = source.rpartition("/")
        names = self._names(folder)
        if name not in names:
            raise FileNotFoundError(source)
        file = names.pop(name)
        names[target.rpartition("/")[2]] = file

    def unlink(self, path: str) -> None:
        folder, _, name = path.rpartition("/")
        names = self._names(folder)
        if name not in names:
            raise FileNotFoundError(path)
        del names[name]

    def forget_cache(self, fd: int) -> None:
        """What is seen here is what the disk holds: no sync failed."""
        assert fd in self._open, f"{fd} is not open"

    def lock(self, path: str) -> int:
        folder, _, name = path.rpartition("/")
        return self.open(path, create=name not in self._names(folder))
