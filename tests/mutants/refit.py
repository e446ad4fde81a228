"""Refit a patch to lines that an edit beside the rule has moved or changed.

The newest commit that the patch still applies to knows three texts of its file: without the fault, with it, and the
file of today. Their three-way merge is today's file with the fault, and the difference is the new patch. Where fault
and edit touch the same lines there is no such merge: then the rule itself was edited, and a person has to look.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from difflib import unified_diff
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.mutants.mutant import Mutant, PatchError

COMMITS_MAX = 500
"""How many commits of a file are looked at."""

CONTEXT_LINES = 2


def refit(mutant: Mutant, patch: Path, root: Path) -> bool:
    """Write ``patch`` anew so that it applies to the files below ``root``; return False if it does already.

    Raises: `PatchError` if the rule itself was edited, or no commit is known that the patch applied to.
    """
    paths = sorted({hunk.path for hunk in mutant.hunks})
    now = {path: (root / path).read_text(encoding="utf-8") for path in paths if (root / path).is_file()}
    if _with_fault(mutant, now) is not None:
        return False
    if now.keys() != set(paths):
        raise PatchError(f"{mutant.name}: a file that it changes is gone")
    for before in _past(paths, root):
        after = _with_fault(mutant, before)
        if after is not None:
            merged = {path: _merge(mutant.name, after[path], before[path], now[path]) for path in paths}
            _write(patch, now, merged)
            return True
    raise PatchError(f"{mutant.name} applies to none of the last {COMMITS_MAX} commits of {', '.join(paths)}")


def _with_fault(mutant: Mutant, texts: dict[str, str]) -> dict[str, str] | None:
    """Return the files with the fault in them, or None if it does not apply to them."""
    with TemporaryDirectory() as folder:
        for path, text in texts.items():
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / path).write_text(text, encoding="utf-8")
        try:
            mutant.apply(Path(folder))
        except PatchError:
            return None
        return {path: (Path(folder) / path).read_text(encoding="utf-8") for path in texts}


def _past(paths: list[str], root: Path) -> Iterator[dict[str, str]]:
    """Yield the files as they were at each commit of theirs, the newest first."""
    for commit in _git(root, "log", f"--max-count={COMMITS_MAX}", "--format=%H", "--", *paths).split():
        try:
            yield {path: _git(root, "show", f"{commit}:{path}") for path in paths}
        except subprocess.CalledProcessError:
            return  # one of them did not exist yet


def _merge(name: str, ours: str, base: str, theirs: str) -> str:
    """Return the three-way merge of a file. Raises `PatchError` where both sides touch the same lines."""
    with TemporaryDirectory() as folder:
        sides = [Path(folder) / side for side in ("with-the-fault", "then", "now")]
        for side, text in zip(sides, (ours, base, theirs), strict=True):
            side.write_text(text, encoding="utf-8")
        merging = ["git", "merge-file", "--stdout", *map(str, sides)]
        merged = subprocess.run(merging, check=False, capture_output=True, encoding="utf-8")
    if merged.returncode != 0:
        raise PatchError(f"{name}: the rule itself was edited; see whether it still holds, and break it anew")
    return merged.stdout


def _write(patch: Path, now: dict[str, str], merged: dict[str, str]) -> None:
    """Put new hunks below the patch's old header."""
    header = patch.read_text(encoding="utf-8").partition("\n--- ")[0]
    lines: list[str] = []
    for path, text in now.items():
        sides = text.splitlines(), merged[path].splitlines()
        lines += unified_diff(*sides, f"a/{path}", f"b/{path}", lineterm="", n=CONTEXT_LINES)
    patch.write_text("\n".join([header.rstrip("\n"), "", *lines, ""]), encoding="utf-8")


def _git(root: Path, *arguments: str) -> str:
    asking = ["git", "-C", str(root), *arguments]
    return subprocess.run(asking, check=True, capture_output=True, encoding="utf-8").stdout
