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
from pyraftkv.log.fs import FileSystem, OsFileSystem, join, parent, write_all
from pyraftkv.log.identity import IdentityFile
from pyraftkv.log.inspect import is_in_use, read_only

NOTHING, DIRECTORY, OTHER = range(3)
"""What may stand at a path."""

ASIDE_MAX = 1000
"""Directories that were set aside at one path."""

NOTE_NAME = "rebuild"
VOTES = b"votes\n"
LEARNS = b"learns\n"


def identity_at(path: str | Path, *, fs: FileSystem | None = None) -> Identity | None:
    """Return whose directory that is; None if there is none, or neither slot of its identity can be read.

    Raises: `DataDirLocked` if its member runs, `UnsupportedFormat`, `OSError`.
    """
    disk, directory = fs or read_only(), os.fspath(path)
    if what_stands_at(directory, fs=disk) != DIRECTORY:
        return None
    if is_in_use(disk, directory):
        raise DataDirLocked(f"{directory} is in use: stop its member first")
    identities = IdentityFile(disk, directory)
    identities.load()
    return identities.identity


def what_stands_at(path: str | Path, *, fs: FileSystem | None = None) -> int:
    """Return `NOTHING`, `DIRECTORY` or `OTHER`. Raises `OSError` if a directory cannot be read."""
    try:
        (fs or read_only()).listdir(os.fspath(path))
    except FileNotFoundError:
        return NOTHING
    except NotADirectoryError:
        return OTHER
    return DIRECTORY


def put_in_place(new: str | Path, path: str | Path, *, fs: FileSystem | None = None) -> str:
    """Move what is at ``path`` aside, and ``new`` there; return where the former is, empty if nothing was there.

    Raises: `OSError`; also if ``new`` is gone, because somebody else has done it: then nothing is moved.
    """
    disk, source, target, aside = fs or OsFileSystem(), os.fspath(new), os.fspath(path), ""
    above = parent(target)
    disk.listdir(source)
    if what_stands_at(target, fs=disk) == DIRECTORY:
        taken = (f"{target}.damaged-{number}" for number in range(1, ASIDE_MAX + 1))
        aside = next(name for name in taken if what_stands_at(name, fs=disk) == NOTHING)
        disk.rename(target, aside)
        disk.fsync_dir(above)
    disk.rename(source, target)
    disk.fsync_dir(above)
    return aside


def read_note(path: str | Path, *, fs: FileSystem | None = None) -> bool | None:
    """Return whether the member of a directory is to vote; None if nothing is noted. Raises `OSError`."""
    disk = fs or read_only()
    try:
        fd = disk.open(join(os.fspath(path), NOTE_NAME))
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return disk.pread(fd, len(VOTES) + 1, 0) == VOTES
    finally:
        disk.close(fd)


def write_note(path: str | Path, *, votes: bool, fs: FileSystem | None = None) -> None:
    """Note durably whether the member of a directory is to vote. Raises `OSError`."""
    disk, directory = fs or OsFileSystem(), os.fspath(path)
    fd = disk.open(join(directory, NOTE_NAME), create=True)
    try:
        write_all(disk, fd, VOTES if votes else LEARNS, 0)
        disk.fdatasync(fd)
    finally:
        disk.close(fd)
    disk.fsync_dir(directory)


def drop_note(path: str | Path, *, fs: FileSystem | None = None) -> None:
    """What was noted has come about: forget it, durably. Raises `OSError`.

    It would come back with the power otherwise, and let a member vote that was made a learner since, and is rebuilt.
    """
    disk, directory = fs or OsFileSystem(), os.fspath(path)
    if NOTE_NAME in disk.listdir(directory):
        disk.unlink(join(directory, NOTE_NAME))
        disk.fsync_dir(directory)
