"""Kill a process at every line of the log, with SIGKILL, and see what the next one finds.

python -m tests.log.kills [--rounds N] [--seed S]

.. code-block:: text

    parent ──► runs a life on real files, and looks at them before each line of pyraftkv/log: what a kill would leave
      │        └─► starts on each of these, and judges by what had been acknowledged then
      ├──fork──► child: runs the same life, counts the lines, kills itself at the N-th
      │                │ one byte for every acknowledgement
      ◄───── pipe ─────┘
      └─► starts on the files that are left, which are the very ones that were seen there

A life is the same every time, so one that is not killed knows what is promised after each byte, and what is on the disk
before each line. So every place in every life is judged (``points``), for the price of a start for each disk that
differs. And at each line a process is killed that really is one (``kills``): what that leaves is what was seen there.

The lives are those of `tests.log.ills`: every line of the log is among theirs, but for those that `tests.log.spared`
names (``unexplained``).

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
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from random import Random
from types import CodeType, FrameType
from typing import Any, NoReturn, TypeVar

from pyraftkv.log import FileStorage, FileSystem, OsFileSystem
from pyraftkv.log.snapshot import SnapshotReader
from tests.log.damages import DAMAGES
from tests.log.disks import until_crash
from tests.log.failing import in_force
from tests.log.ills import ILLS, Ill, Patient
from tests.log.model import Promise
from tests.log.plain import Plain, PlainFile
from tests.log.scenarios import Scenario
from tests.log.spared import ROOM, executable, unexplained

ACKNOWLEDGEMENTS = frozenset({"completed", "snapshot_promised", "boot_promised", "incarnation_promised", "owners"})
"""What a `Driver` changes when something was promised."""

Line = tuple[str, int]
ROUNDS = 5
LINES: dict[Line, Line] = {}
"""Each line once: a process that forks by the thousand is better small."""
Snapshots = dict[tuple[int, int], list[list[bytes]]]
Files = dict[str, dict[str, bytes]]
"""The bytes of each file, by directory and name."""
Heard = Callable[[CodeType, int], object]
F = TypeVar("F", bound=Callable[..., Any])


class Told(Patient):
    """A script whose acknowledgements are told one by one.

    Args:
        path: The data directory, which really is one.

    `tell` is called before each, and `told` after it.
    """

    def __init__(self, scenario: Scenario, seed: int, path: str) -> None:
        self.tell: Callable[[], object] = nothing
        self.told: Callable[[], object] = nothing
        super().__init__(scenario, seed, path)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in ACKNOWLEDGEMENTS:
            super().__setattr__(name, value)
            return
        self.tell()
        super().__setattr__(name, value)
        self.told()


def nothing() -> None:
    """Do it: nobody listens."""


def _changing(method: F) -> F:
    """Have it known while it runs, and that it ran."""

    def changing(self: Watched, *arguments: Any, **options: Any) -> Any:
        self.is_busy = True
        try:
            return method(self, *arguments, **options)
        finally:
            self.is_busy = False
            self.changes += 1

    return changing  # type: ignore[return-value]  # it is called as the method is


class Watched(OsFileSystem):
    """Real files, and whether they may be others than they were."""

    is_busy = False
    changes = 0

    make_dir = _changing(OsFileSystem.make_dir)
    open = _changing(OsFileSystem.open)
    pwrite = _changing(OsFileSystem.pwrite)
    rename = _changing(OsFileSystem.rename)
    unlink = _changing(OsFileSystem.unlink)
    fdatasync = _changing(OsFileSystem.fdatasync)  # one that fails takes back what was written
    lock = _changing(OsFileSystem.lock)


@dataclass
class Case:
    """One life, begun on the files that the lives before it left."""

    ill: Ill
    before: Path
    """A copy of those files."""
    driver: Told
    """As it was then."""
    snapshots: Snapshots
    """Every data that is ever written for a snapshot, in any life."""
    lines: list[Line] = field(default_factory=list)
    """What the life executes, in order."""
    left: list[Files] = field(default_factory=list)
    """What was on the disk before each of them."""
    acknowledged: list[int] = field(default_factory=list)
    """How much had been acknowledged before each."""
    promises: list[Promise] = field(default_factory=list)
    """What is promised after so many acknowledgements."""


class Witness:
    """Writes down what happens in a life.

    Args:
        case: Where.
        fs: What the life runs on.
        work: Its directory.
        known: Bytes that were read before, so that equal ones are kept once.
    """

    def __init__(self, case: Case, fs: Watched, work: Path, known: dict[bytes, bytes]) -> None:
        self._case, self._fs, self._work, self._known = case, fs, work, known
        self._changes = -1

    def note(self, code: CodeType, line: int) -> None:
        """A line is about to be executed."""
        case, fs = self._case, self._fs
        if fs.is_busy or fs.changes != self._changes:
            self._changes = fs.changes
            left = read(self._work, self._known)
            case.left.append(case.left[-1] if case.left and case.left[-1] == left else left)
        else:
            case.left.append(case.left[-1])
        here = code.co_filename[len(ROOM) :], line
        case.lines.append(LINES.setdefault(here, here))
        case.acknowledged.append(len(case.promises))


def read(path: Path, known: dict[bytes, bytes]) -> Files:
    """Return all that is in a data directory; empty if there is none. O(bytes)."""
    return {
        folder.removeprefix(str(path)): {
            name: known.setdefault(data, data) for name in sorted(names) for data in [Path(folder, name).read_bytes()]
        }
        for folder, _, names in os.walk(path)
    }


def case_of(ill: Ill, seed: int, work: Path, copies: Path) -> Case:
    """Run a life once, and say what there was to see.

    Args:
        ill: What is done.
        seed: Decides about sizes.
        work: Where it runs; empty.
        copies: Where the files of its beginning are kept.
    """
    driver = Told(Scenario((), ill.segment_bytes_max), seed, f"{work}{ill.inside}")
    for steps in ill.before:
        assert live(driver, Ill(steps), OsFileSystem(), None) == ""
    if ill.damage:
        DAMAGES[ill.damage](work)
        driver.is_damaged = ill.is_of_snapshots
    driver.storage, driver.options = None, ill.options
    before = copies / f"{seed}"
    if work.exists():
        shutil.copytree(work, before)
    case = Case(ill, before, deepcopy(driver), driver.snapshots)
    driver.tell = partial(remember, case, driver)
    fs = Watched(fsync=ill.is_synced)
    ended = live(driver, ill, fs, Witness(case, fs, work, {}).note)
    assert ill.fits(ended), f"{ill} ended with {ended!r}"
    remember(case, driver)
    return case


def remember(case: Case, driver: Told) -> None:
    """Something new is about to be promised: remember what was until now."""
    case.promises.append(driver.promise())


def live(driver: Told, ill: Ill, fs: OsFileSystem, heard: Heard | None) -> str:
    """Run a life to its end, and return what that was: `Patient.ill`.

    Args:
        heard: Called before each line of the log, with its code and its number.
    """
    ended: list[str] = []

    async def life(workers: Any) -> None:
        ended.append(await driver.ill(fs, workers, driver.begin(ill.steps)))

    with in_force(driver.failures, dict(ill.bounds)), listening(heard) if heard is not None else nullcontext():
        assert not asyncio.run(until_crash(life))
    return ended[0]


@contextmanager
def listening(heard: Heard) -> Generator[None]:
    """Have ``heard`` called before each line of the log that is executed meanwhile, on this thread."""
    if sys.version_info >= (3, 12):
        with _monitored(heard):
            yield
        return

    def line(frame: FrameType, event: str, _argument: object) -> Any:
        if event == "line":
            heard(frame.f_code, frame.f_lineno)
        return line

    def call(frame: FrameType, _event: str, _argument: object) -> Any:
        return line if frame.f_code.co_filename.startswith(ROOM) else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)


if sys.version_info >= (3, 12):

    @contextmanager
    def _monitored(heard: Heard) -> Generator[None]:
        """As `listening`, without a call for each function that is none of the log's (PEP 669)."""
        monitoring = sys.monitoring
        tool, event = monitoring.DEBUGGER_ID, monitoring.events.LINE

        def line(code: CodeType, number: int) -> object:
            if not code.co_filename.startswith(ROOM):
                return monitoring.DISABLE  # this place; it costs nothing from now on
            heard(code, number)
            return None

        monitoring.use_tool_id(tool, "kills")
        monitoring.register_callback(tool, event, line)
        monitoring.set_events(tool, event)
        try:
            yield
        finally:
            monitoring.set_events(tool, monitoring.events.NO_EVENTS)
            monitoring.register_callback(tool, event, None)
            monitoring.free_tool_id(tool)


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

    def heard(_code: CodeType, _line: int) -> None:
        nonlocal left
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    try:
        case.driver.told = partial(os.write, writer, b".")
        live(case.driver, case.ill, OsFileSystem(fsync=case.ill.is_synced), heard)
    finally:
        os._exit(1)


def judge(case: Case, acknowledged: int, fs: FileSystem, path: str) -> None:
    """Start on what a killed process left. Raises `AssertionError` if it breaks what was promised."""
    ill = case.ill
    storage = FileStorage(path, fs=fs, random=Random(1), segment_bytes_max=ill.segment_bytes_max, **ill.options)
    try:
        opened = storage._open()
    except Exception as error:
        if ill.is_refused and ill.fits(f"{type(error).__name__}: {error}"):
            return
        raise
    try:
        assert not ill.is_refused, "it was refused for a reason that is none any more"
        case.promises[acknowledged].judge(opened.recovered)
        snapshot = opened.recovered.snapshot
        if snapshot is not None:
            reader = SnapshotReader(fs, f"{path}/snap", term=snapshot.term, index=snapshot.index)
            assert list(reader.chunks()) in case.snapshots[snapshot.term, snapshot.index]
            reader.close()
    finally:
        opened.wal.close()
        fs.close(opened.lock_fd)


def judge_all(case: Case) -> int:
    """Start on whatever a kill at any line would leave; return how many starts that took."""
    judged: set[tuple[int, int]] = set()
    for number, (left, acknowledged) in enumerate(zip(case.left, case.acknowledged, strict=True)):
        if (id(left), acknowledged) in judged:
            continue
        judged.add((id(left), acknowledged))
        files = {
            f"/data{folder}": {name: PlainFile(data) for name, data in names.items()} for folder, names in left.items()
        }
        with blamed(case, number):
            judge(case, acknowledged, Plain(files), f"/data{case.ill.inside}")
    return len(judged)


@contextmanager
def blamed(case: Case, number: int) -> Generator[None]:
    """Say of an error which life it was, and where it ended."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"{case.ill}, killed at line {number}: {case.lines[number]}")
        raise


def deal(all_cases: Sequence[Case], rounds: int, random: Random) -> dict[Line, list[tuple[Case, int]]]:
    """Return where to kill: at each line so often, or each time that it is executed."""
    places: dict[Line, list[tuple[Case, int]]] = defaultdict(list)
    for case in all_cases:
        for number, line in enumerate(case.lines):
            places[line].append((case, number))
    return {line: random.sample(places[line], min(rounds, len(places[line]))) for line in sorted(places)}


def main(arguments: Sequence[str]) -> int:
    """Do what the command line asks for; a broken promise is an exception."""
    parser = argparse.ArgumentParser(prog="python -m tests.log.kills", description="Kill a process at every line.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"kills at each line ({ROUNDS})")
    parser.add_argument("--seed", type=int, default=1, help="which lives (1)")
    options = parser.parse_args(arguments)
    memory = Path("/dev/shm")
    starts = 0
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        work, copies = Path(folder, "work"), Path(folder, "copies")
        every: list[Case] = []
        for number, ill in enumerate(ILLS):
            every.append(case_of(ill, options.seed * len(ILLS) + number, work, copies))
            starts += judge_all(every[-1])
            shutil.rmtree(work, ignore_errors=True)
        dealt = deal(every, options.rounds, Random(options.seed))
        gc.freeze()  # a collection in a child would copy every page of the parent
        for case, number in chain.from_iterable(dealt.values()):
            with blamed(case, number):
                acknowledged = kill_at(case, number, work)
                assert acknowledged == case.acknowledged[number], "another life than the one before"
                assert read(work, {}) == case.left[number], "a kill leaves something else than was seen there"
                judge(case, acknowledged, OsFileSystem(), f"{work}{case.ill.inside}")
    for name, lines in executable().items():
        here = {line for module, line in dealt if module == name}
        print(f"{name:<14} {len(here & {*lines}):>4} of {len(lines):>4} lines")  # noqa: T201
    counts = {
        "kills": sum(map(len, dealt.values())),
        "points": sum(len(case.lines) for case in every),
        "starts": starts,
        "lines": len(dealt),
        "unexplained": unexplained(set(dealt)),
    }
    print(json.dumps(counts))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
