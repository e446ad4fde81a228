"""Setting a data directory aside: another one takes its place, and nothing of it is lost.

Two renames, of directories side by side, the first durable before the second. A crash between the two leaves no
directory at the path, and the other one ready: whoever comes again finds that, and goes on.

Beside its files a directory that is on its way may hold a note: whether its member is to vote.
"""

from __future__ import annotations

import os
from pathlib import Path

from pyraftkv.errors import DataDirLocked
from pyraftkv.log.base import Identity
from pyraftkv.log.fs import OsFileSystem, join, write_all
from pyraftkv.log.identity import IdentityFile
from pyraftkv.log.inspect import is_in_use, read_only

ASIDE_MAX = 1000
"""Directories that were set aside at one path."""

NOTE_NAME = "rebuild"
VOTES = b"votes\n"
LEARNS = b"learns\n"


def identity_at(path: str | Path) -> Identity | None:
    """Return whose directory that is; None if there is none, or neither slot of its identity can be read.

    Raises: `DataDirLocked` if its member runs, `UnsupportedFormat`, `OSError`.
    """
    directory = os.fspath(path)
    if not Path(directory).is_dir():
        return None
    disk = read_only()
    if is_in_use(disk, directory):
        raise DataDirLocked(f"{directory} is in use: stop its member first")
    identities = IdentityFile(disk, directory)
    identities.load()
    return identities.identity


def put_in_place(new: str | Path, path: str | Path) -> str:
    """Move what is at ``path`` aside, and ``new`` there; return where the former is, empty if nothing was there.

    Raises: `OSError`; also if ``new`` is gone, because somebody else has done it: then nothing is moved.
    """
    target, aside, disk = Path(path), "", OsFileSystem()
    above = os.fspath(target.absolute().parent)
    Path(new).stat()
    if target.is_dir():
        taken = (f"{target}.damaged-{number}" for number in range(1, ASIDE_MAX + 1))
        aside = next(name for name in taken if not Path(name).exists())
        target.rename(aside)
        disk.fsync_dir(above)
    Path(new).rename(target)
    disk.fsync_dir(above)
    return aside


def read_note(path: str | Path) -> bool | None:
    """Return whether the member of a directory is to vote; None if nothing is noted. Raises `OSError`."""
    try:
        return (Path(path) / NOTE_NAME).read_bytes() == VOTES
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_note(path: str | Path, *, votes: bool) -> None:
    """Note durably whether the member of a directory is to vote. Raises `OSError`."""
    disk, directory = OsFileSystem(), os.fspath(path)
    fd = disk.open(join(directory, NOTE_NAME), create=True)
    try:
        write_all(disk, fd, VOTES if votes else LEARNS, 0)
        disk.fdatasync(fd)
    finally:
        disk.close(fd)
    disk.fsync_dir(directory)


def drop_note(path: str | Path) -> None:
    """What was noted has come about. Raises `OSError`."""
    (Path(path) / NOTE_NAME).unlink(missing_ok=True)
