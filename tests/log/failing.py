"""System calls that fail when they are told to, below `OsFileSystem`: what a kernel says, as the log hears it.

`Failures` stands in for ``os``, ``fcntl`` and ``time`` in `pyraftkv.log.fs`. So every line of the log runs as it does
anywhere, those of `fs` too. It draws nothing, and nobody waits: a life on it is the same every time.

A sync that fails takes back what was written since the last one that did not (as Btrfs does, and as the other file
systems may once memory is short). So who acknowledges it in spite of the error has promised what is gone.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from typing import Any

import pyraftkv.log.fs

SHORT, NOTHING, GARBLED, GROWING = -1, -2, -3, -4
"""Half of it is read or written; nothing is; other bytes are read; what makes a file longer finds no room."""


@dataclass(frozen=True)
class Failure:
    """Which calls fail, and how."""

    call: str
    """Its name in ``os``, or ``flock``."""
    path: str = "*"
    """Of what, as a pattern."""
    code: int = errno.EIO
    times: int = 1 << 30


class Failures:
    """Implements what `pyraftkv.log.fs` needs of three modules, for one process."""

    path = os.path

    def __init__(self) -> None:
        self._armed: list[Failure] = []
        self._left: list[int] = []
        self.paths: dict[int, str] = {}
        """What is open, by descriptor."""
        self.mistakes: list[str] = []
        """What was closed twice: it might be somebody else's by now."""
        self._durable: dict[int, bytes] = {}
        """What each file held when it was last synced."""

    def __bool__(self) -> bool:
        """Whether anything fails."""
        return bool(self._armed)

    def arm(self, failure: Failure) -> None:
        """From now on calls fail."""
        self._armed.insert(0, failure)
        self._left.insert(0, failure.times)

    def heal(self) -> None:
        """Nothing fails any more."""
        self._armed.clear()
        self._left.clear()

    def sleep(self, _seconds: float) -> None:
        """Wait for nobody."""

    def __getattr__(self, name: str) -> Any:
        """Return what is not made here from the modules themselves."""
        real = getattr(os if hasattr(os, name) else pyraftkv_fcntl, name)
        watched = callable(real) and name.islower() and name not in ("register_at_fork", "fspath")
        return partial(self._call, name, real) if watched else real

    def _call(self, name: str, real: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        of = arguments[0] if arguments else ""
        path = self.paths.get(of, "") if isinstance(of, int) else os.fspath(of)
        code = self._strike(name, path)
        if code > 0:
            if name == "fdatasync" and code != errno.EACCES:
                self._take_back(of)
            raise OSError(code, "simulated", path)
        if code:
            return self._partly(name, real, code, *arguments)
        if name == "close" and self.paths.pop(of, None) is None:
            self.mistakes.append(f"descriptor {of} is not open")
        result = real(*arguments, **options)
        if name == "open":
            self.paths[result] = path
        elif name == "replace":
            self.paths = {fd: arguments[1] if old == path else old for fd, old in self.paths.items()}
        elif name == "fdatasync":
            self._durable[os.fstat(of).st_ino] = os.pread(of, os.fstat(of).st_size, 0)
        return result

    def _strike(self, name: str, path: str) -> int:
        for number, failure in enumerate(self._armed):
            if failure.call == name and self._left[number] and fnmatch(path, failure.path):
                self._left[number] -= 1
                return failure.code
        return 0

    def _take_back(self, fd: int) -> None:
        data = self._durable.get(os.fstat(fd).st_ino)
        if data is not None:
            os.ftruncate(fd, len(data))
            os.pwrite(fd, data, 0)

    def _partly(self, name: str, real: Callable[..., Any], code: int, *arguments: Any) -> Any:
        if name == "geteuid":
            return real() + 1
        fd, what, offset = arguments
        if name == "pread":
            data: bytes = real(*arguments)
            return {SHORT: data[: len(data) // 2], NOTHING: b"", GARBLED: bytes(byte ^ 1 for byte in data)}[code]
        if code == GROWING:
            room = max(os.fstat(fd).st_size - offset, 0)
            if not room and len(what):
                raise OSError(errno.ENOSPC, "simulated", self.paths[fd])
            return real(fd, what[:room], offset)
        return real(fd, what[: len(what) // 2], offset) if code == SHORT else 0


pyraftkv_fcntl: Any = getattr(pyraftkv.log.fs, "fcntl", None)


@contextmanager
def in_force(failures: Failures, bounds: dict[str, float]) -> Generator[None]:
    """Let system calls fail meanwhile, and bounds of the log be these; by module and name."""
    new = {"fs.os": failures, "fs.fcntl": failures, "fs.time": failures, **bounds}
    places = [(getattr(pyraftkv.log, where.partition(".")[0]), where.partition(".")[2]) for where in new]
    before = [getattr(module, name) for module, name in places]
    for (module, name), value in zip(places, new.values(), strict=True):
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)
