"""The lines of the log at which nobody is killed, and why: `spared` finds whatever is neither killed at nor named here.

A reason is one of these: nothing is written there, nothing can come there, or it is of another system than the one
that the tests run on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType

import pyraftkv.log

ROOM = str(Path(pyraftkv.log.__file__).parent) + os.sep

MODULES = {
    "base.py": "a protocol, and records",
    "inspect.py": "looks at a directory, and changes nothing",
    "shadow.py": "what `doctor` looks through; it changes nothing",
    "memory.py": "there is no disk",
    "worker.py": "a life runs the jobs of threads on its loop; `test_kill` kills one that has threads",
}
FUNCTIONS = {
    ("block.py", "version_of"): "for those who look",
    ("fs.py", "OsFileSystem.__init__"): "nothing is open yet",
    ("fs.py", "after_fork_in_child"): "runs when the module is imported",
    ("recovery.py", "ahead"): "nothing is written there",
    ("snapshot.py", "SnapshotWriter.size_bytes"): "for saved snapshots",
}
LINES = {
    (
        "files.py",
        'raise ValueError("fsync=False is for the operating system\'s files; a given file system decides by itself")',
    ): "before anything is opened",
    ("directory.py", "raise _refusal(damaged) or ahead(wal, meta)"): "nothing is written there",
    ("identity.py", 'raise StorageFailed(f"{self._directory}: neither identity slot can be read")'): "a start has one",
    (
        "record.py",
        'raise ValueError("the table of lengths does not fit the payload")',
    ): "that there is a table at all was seen when the log was read first",
    ("wal.py", 'f"entry {first} after {last_index}, committed {self.hard_state.commit}"'): "an assertion's message",
    ("fs.py", "..."): "a protocol",
    ("fs.py", "with self._seek_lock:"): "Windows",
    ("fs.py", "os.lseek(fd, offset, os.SEEK_SET)"): "Windows",
    ("fs.py", "parts: list[bytes] = []"): "Windows",
    ("fs.py", "while size and (data := os.read(fd, size)):"): "Windows",
    ("fs.py", "parts.append(data)"): "Windows",
    ("fs.py", "size -= len(data)"): "Windows",
    ("fs.py", 'return b"".join(parts)'): "Windows",
    ("fs.py", "return os.write(fd, data)"): "Windows",
    ("fs.py", "msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)"): "Windows",
    ("fs.py", "os.fsync(fd)"): "Windows",
    ("fs.py", "fcntl.fcntl(fd, fcntl.F_FULLFSYNC)"): "macOS",
    ("record.py", "lengths.byteswap()"): "processors that count from the other end",
}


def executable() -> dict[str, dict[int, str]]:
    """Return the lines of functions, and the function of each, by module."""

    def of(code: CodeType, *, is_module: bool = False) -> Iterator[tuple[int, str]]:
        if code.co_name == "__annotate__":  # what Python 3.14 makes of annotations, for those who ask (PEP 649)
            return
        if not is_module and code.co_flags & CO_OPTIMIZED:
            numbers = {line for _, _, line in code.co_lines() if line is not None and line > code.co_firstlineno}
            yield from ((line, code.co_qualname) for line in numbers)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from of(constant)

    return {
        path.name: dict(of(compile(path.read_text(encoding="utf-8"), str(path), "exec"), is_module=True))
        for path in sorted(Path(ROOM).glob("*.py"))
    }


def unexplained(met: set[tuple[str, int]]) -> list[str]:
    """Return the lines that were not met, and that nobody says anything about; and what is said of lines that were.

    Args:
        met: Modules and lines.
    """
    missed: list[str] = []
    useless: dict[object, str] = {**MODULES, **FUNCTIONS, **LINES}
    for module, lines in executable().items():
        texts = Path(ROOM, module).read_text(encoding="utf-8").splitlines()
        for line, function in sorted(lines.items()):
            text = texts[line - 1].split("  #")[0].strip()
            if (module, line) in met:
                continue
            reasons = {module, (module, function), (module, text)} & {*MODULES, *FUNCTIONS, *LINES}
            for reason in reasons:
                useless.pop(reason, None)
            if not reasons:
                missed.append(f"{module} {function}: {text}")
    return missed + [f"{place} is explained for nothing" for place in useless]
