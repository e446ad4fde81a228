"""Kill a process at every line of the log that it executes, with SIGKILL, and see what the next one finds.

python -m tests.log.kills [--points N] [--seed S]

.. code-block:: text

    parent ──fork──► child: runs a life on real files, counts the lines of pyraftkv/log, kills itself at the N-th
      │                │ one byte for every acknowledgement
      ◄───── pipe ─────┘
      └─► starts on the same files, and judges by as many acknowledgements as bytes came

A life is the same every time, so a life that is not killed knows what had been promised after each byte. Points are
dealt out to lines and not to time: a process is killed at each line equally often, or each time that it is executed.

A killed process loses nothing that it wrote: that each sync is there is shown by `tests.log.census`, and not here.
The last line printed is a JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from inspect import CO_OPTIMIZED
from pathlib import Path
from random import Random
from types import CodeType, FrameType
from typing import Any, NoReturn

import pyraftkv.log
from pyraftkv.log import FileStorage, OsFileSystem
from pyraftkv.log.segment import BLOCK_BYTES
from pyraftkv.log.snapshot import SnapshotReader
from tests.log.disks import until_crash
from tests.log.model import Promise
from tests.log.scenarios import Scenario, Script

ROOM = str(Path(pyraftkv.log.__file__).parent) + os.sep
POINTS = 500
ACKNOWLEDGEMENTS = frozenset({"completed", "snapshot_promised", "boot_promised", "incarnation_promised", "owners"})
"""What a `Driver` changes when something was promised."""

TORN = "torn"
"""In place of a life: something tears the end of the log."""

_SMALL = BLOCK_BYTES + 200
LIVES = (
    Scenario(("append settle", "append settle overwrite settle vote settle"), BLOCK_BYTES << 2),
    Scenario(
        ("append settle commit snapshot append settle", *["commit append settle snapshot append settle"] * 2), _SMALL
    ),
    Scenario(("append settle install append settle", "append settle"), BLOCK_BYTES << 2),
    Scenario(("append settle rebind", "append settle"), BLOCK_BYTES << 2),
    Scenario(("append settle", TORN, "append settle"), BLOCK_BYTES << 2),
)
Line = tuple[str, int]
Snapshots = dict[tuple[int, int], list[list[bytes]]]


class Told(Script):
    """A script whose acknowledgements are told one by one.

    Args:
        path: The data directory, which really is one.

    `tell` is called before each, and `told` after it.
    """

    def __init__(self, scenario: Scenario, seed: int, path: str) -> None:
        self.tell: Callable[[], object] = nothing
        self.told: Callable[[], object] = nothing
        super().__init__(scenario, seed)
        self.path = path

    def __setattr__(self, name: str, value: object) -> None:
        if name not in ACKNOWLEDGEMENTS:
            super().__setattr__(name, value)
            return
        self.tell()
        super().__setattr__(name, value)
        self.told()


def nothing() -> None:
    """Do it: nobody listens."""


@dataclass
class Case:
    """One life, begun on the files that the lives before it left."""

    scenario: Scenario
    steps: str
    before: Path
    """A copy of those files."""
    driver: Told
    """As it was then."""
    snapshots: Snapshots
    """Every data that is ever written for a snapshot, in any life."""
    lines: list[Line] = field(default_factory=list)
    """What the life executes, in order."""
    promises: list[Promise] = field(default_factory=list)
    """What is promised after so many acknowledgements."""


def cases(scenario: Scenario, seed: int, work: Path, copies: Path) -> Iterator[Case]:
    """Run the lives of a scenario once, and say what there was to see.

    Args:
        scenario: What is done.
        seed: Decides about sizes.
        work: Where they run; empty.
        copies: Where the files of each life's beginning are kept.
    """
    driver = Told(scenario, seed, str(work))
    for number, steps in enumerate(scenario.lives):
        if steps == TORN:
            tear(work)
            continue
        before = copies / f"{seed}-{number}"
        if work.exists():
            shutil.copytree(work, before)
        case = Case(scenario, steps, before, deepcopy(driver), driver.snapshots)
        driver.tell = partial(remember, case, driver)
        live(driver, steps, partial(note, case))
        remember(case, driver)
        driver.tell, driver.storage = nothing, None
        yield case


def remember(case: Case, driver: Told) -> None:
    """Something new is about to be promised: remember what was until now."""
    case.promises.append(driver.promise())


def note(case: Case, frame: FrameType) -> None:
    """A line is about to be executed."""
    case.lines.append((sys.intern(frame.f_code.co_filename[len(ROOM) :]), frame.f_lineno))


def live(driver: Told, steps: str, heard: Callable[[FrameType], object]) -> None:
    """Run a life to its end; ``heard`` is called before each line of the log."""

    def line(frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line":
            heard(frame)
        return line

    def call(frame: FrameType, _event: str, _argument: object) -> Any:
        return line if frame.f_code.co_filename.startswith(ROOM) else None

    async def main() -> None:
        count, fs = driver.begin(steps), OsFileSystem()
        assert not await until_crash(lambda workers: driver.life(fs, workers, count))

    before = sys.gettrace()
    sys.settrace(call)
    try:
        asyncio.run(main())
    finally:
        sys.settrace(before)


def tear(path: Path) -> None:
    """Leave the beginning of a record behind the log."""
    segment = max((path / "wal").glob("*.wal"))
    with segment.open("ab") as file:
        file.write(b"\xd7WAL and no more")


def kill_at(case: Case, number: int, work: Path) -> int:
    """Run the life in a process of its own, which is killed before line ``number``; return what it acknowledged."""
    shutil.rmtree(work, ignore_errors=True)
    if case.before.exists():
        shutil.copytree(case.before, work)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        die_at(case, number, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        acknowledged = len(pipe.read())
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the process ended by itself: {os.waitstatus_to_exitcode(status)}"
    assert os.WTERMSIG(status) == signal.SIGKILL
    return acknowledged


def die_at(case: Case, number: int, writer: int) -> NoReturn:
    """Run the life, and end it."""
    left = number

    def heard(_frame: FrameType) -> None:
        nonlocal left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    try:
        case.driver.told = partial(os.write, writer, b".")
        live(case.driver, case.steps, heard)
    finally:
        os._exit(1)


def judge(case: Case, promise: Promise, work: Path) -> None:
    """Start on what the killed process left. Raises `AssertionError` if it breaks the promise."""
    size = case.scenario.segment_bytes_max
    opened = FileStorage(work, random=Random(1), segment_bytes_max=size)._open()
    try:
        promise.judge(opened.recovered)
        snapshot = opened.recovered.snapshot
        if snapshot is not None:
            reader = SnapshotReader(OsFileSystem(), str(work / "snap"), term=snapshot.term, index=snapshot.index)
            assert list(reader.chunks()) in case.snapshots[snapshot.term, snapshot.index]
            reader.close()
    finally:
        opened.wal.close()
        os.close(opened.lock_fd)


def deal(all_cases: Sequence[Case], points: int, random: Random) -> list[tuple[Case, int]]:
    """Return where to kill: each line once before any is taken twice."""
    hits: dict[Line, list[tuple[Case, int]]] = defaultdict(list)
    for case in all_cases:
        for number, line in enumerate(case.lines):
            hits[line].append((case, number))
    for of_line in hits.values():
        random.shuffle(of_line)
    rounds = range(max(map(len, hits.values())))
    dealt = [hits[line][turn] for turn in rounds for line in sorted(hits) if turn < len(hits[line])]
    return dealt[:points]


def executable() -> dict[str, set[int]]:
    """Return the lines of functions, by module."""

    def of(code: CodeType, *, is_module: bool = False) -> Iterator[int]:
        if not is_module and code.co_flags & CO_OPTIMIZED:
            yield from (line for _, _, line in code.co_lines() if line is not None and line > code.co_firstlineno)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from of(constant)

    return {
        path.name: set(of(compile(path.read_text(encoding="utf-8"), str(path), "exec"), is_module=True))
        for path in sorted(Path(ROOM).glob("*.py"))
    }


def main(arguments: Sequence[str]) -> int:
    """Do what the command line asks for; a broken promise is an exception."""
    parser = argparse.ArgumentParser(prog="python -m tests.log.kills", description="Kill a process at every line.")
    parser.add_argument("--points", type=int, default=POINTS, help=f"how many processes ({POINTS})")
    parser.add_argument("--seed", type=int, default=1, help="which lives (1)")
    options = parser.parse_args(arguments)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        work, copies = Path(folder, "work"), Path(folder, "copies")
        every: list[Case] = []
        for number, scenario in enumerate(LIVES):
            shutil.rmtree(work, ignore_errors=True)
            every += cases(scenario, options.seed * len(LIVES) + number, work, copies)
        dealt = deal(every, options.points, Random(options.seed))
        gc.freeze()  # a collection in a child would copy every page of the parent
        for case, number in dealt:
            try:
                acknowledged = kill_at(case, number, work)
                judge(case, case.promises[acknowledged], work)
            except BaseException as error:
                error.add_note(f"seed {options.seed}, {case.steps!r}, killed at line {number}: {case.lines[number]}")
                raise
    met = {case.lines[number] for case, number in dealt}
    for name, lines in executable().items():
        here = {line for module, line in met if module == name}
        print(f"{name:<14} {len(here & lines):>4} of {len(lines):>4} lines")  # noqa: T201
    print(json.dumps({"points": len(dealt), "lines": len(met), "of": sum(map(len, executable().values()))}))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
