"""A directory tree as things to put: one per file, several for a file over 1 MiB."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pyraftkv._record import record

PIECE_BYTES_MAX = 1024 * 1024
"""A larger file is put in pieces of this size, for a request holds 1.5 MiB at most."""

PIECES_MAX = 200_000
"""What is left over of a larger tree is not loaded."""

SKIPPED = frozenset(
    {".git", ".hg", ".svn", ".tox", ".nox", ".venv", "__pycache__", "node_modules", "site-packages", "dist-packages"}
)
"""Directories that are not the tree's own: histories, caches and environments."""

ENVIRONMENT_MARKS = ("pyvenv.cfg", "conda-meta")
"""What makes a directory an environment, whatever its name."""


@record
class Piece:
    """What becomes the value of one key."""

    name: bytes
    """The path below the root, with ``/`` between its parts; a piece of a larger file has ``/<number>`` behind it.

    No other file can have that name: nothing lies below a file.
    """
    path: Path
    offset: int
    size: int
    """Bytes, when the tree was listed."""

    def read(self) -> bytes:
        """Return the bytes as they are on the disk now. Raises `OSError`."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def pieces_of(root: Path) -> list[Piece]:
    """List a tree in the order of its names: regular files that can be read, links and environments left out.

    Raises:
        OSError: There is no such directory.
    """
    pieces: list[Piece] = []
    os.scandir(root).close()  # `walk` says nothing of a root that is not there
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if name not in SKIPPED and not _is_environment(here / name))
        for name in sorted(files):
            pieces += _pieces_of_file(root, here / name)
            if len(pieces) >= PIECES_MAX:
                return pieces[:PIECES_MAX]
    return pieces


def _is_environment(folder: Path) -> bool:
    return any((folder / mark).exists() for mark in ENVIRONMENT_MARKS)


def _pieces_of_file(root: Path, path: Path) -> list[Piece]:
    try:
        found = path.lstat()
    except OSError:  # gone since its folder was listed
        return []
    if not stat.S_ISREG(found.st_mode) or not os.access(path, os.R_OK):
        return []
    name = os.fsencode(path.relative_to(root).as_posix())
    if found.st_size <= PIECE_BYTES_MAX:
        return [Piece(name, path, 0, found.st_size)]
    starts = range(0, found.st_size, PIECE_BYTES_MAX)
    return [
        Piece(b"%s/%d" % (name, number), path, start, min(PIECE_BYTES_MAX, found.st_size - start))
        for number, start in enumerate(starts)
    ]
