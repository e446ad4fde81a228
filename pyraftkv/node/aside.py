"""Setting a data directory aside: another one takes its place, and nothing of it is lost.

Two renames, of directories side by side. A crash between the two leaves no directory at the path, and the other one
ready: whoever comes again finds that, and goes on.
"""

from __future__ import annotations

import os
from pathlib import Path

from pyraftkv.errors import DataDirLocked
from pyraftkv.log.base import Identity
from pyraftkv.log.fs import OsFileSystem
from pyraftkv.log.identity import IdentityFile
from pyraftkv.log.inspect import is_in_use, read_only

ASIDE_MAX = 1000
"""Directories that were set aside at one path."""


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

    Raises: `OSError`.
    """
    target, aside = Path(path), ""
    if target.is_dir():
        taken = (f"{target}.damaged-{number}" for number in range(1, ASIDE_MAX + 1))
        aside = next(name for name in taken if not Path(name).exists())
        target.rename(aside)
    Path(new).rename(target)
    OsFileSystem().fsync_dir(os.fspath(target.absolute().parent))
    return aside
