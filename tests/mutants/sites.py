"""Where the source does what no reader misses when it is gone: `sites`, and which of them a mutant deletes.

A sync that is missing shows only after a power failure, a checksum that is not compared only on a disk that rots. So
each call of one of `CALLS` in the rooms that promise must be deleted, moved or spoiled by some mutant, and a new one
cannot be forgotten.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

from tests.mutants.mutant import Hunk, Mutant

CALLS = frozenset({"crc32", "fdatasync", "forget_cache", "fsync", "fsync_dir"})
ROOMS = ("pyraftkv/backup", "pyraftkv/log", "pyraftkv/node", "pyraftkv/transport")


class Site(NamedTuple):
    """A line on which one of the calls stands."""

    path: str
    """Relative to the root, with forward slashes."""
    line: int
    text: str


def sites(root: Path) -> list[Site]:
    """Return every such line below ``root``, in order."""
    return [
        Site(path.relative_to(root).as_posix(), line, path.read_text(encoding="utf-8").splitlines()[line - 1].strip())
        for room in ROOMS
        for path in sorted((root / room).glob("*.py"))
        for line in sorted(_lines(ast.parse(path.read_text(encoding="utf-8"))))
    ]


def _lines(tree: ast.AST) -> set[int]:
    """Return the lines of the calls."""
    names = ((node.lineno, node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {
        line
        for line, func in names
        if (isinstance(func, ast.Attribute) and func.attr in CALLS) or (isinstance(func, ast.Name) and func.id in CALLS)
    }


def changed(mutants: Iterable[Mutant], root: Path) -> set[tuple[str, int]]:
    """Return the lines that one of the mutants changes: path and line. Of a patch that does not apply: none."""
    return {place for mutant in mutants for hunk in mutant.hunks for place in _changed(hunk, root)}


def _changed(hunk: Hunk, root: Path) -> Iterator[tuple[str, int]]:
    text = (root / hunk.path).read_text(encoding="utf-8")
    found = re.search("^" + re.escape(hunk.before), text, re.MULTILINE)
    if found is None:
        return
    first = text.count("\n", 0, found.start()) + 1
    matcher = SequenceMatcher(None, hunk.before.splitlines(), hunk.after.splitlines(), autojunk=False)
    for kind, start, stop, _, _ in matcher.get_opcodes():
        if kind != "equal":
            yield from ((hunk.path, first + line) for line in range(start, stop))
