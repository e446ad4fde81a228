"""Let operation N of a life fail, for every N: once, and from there on (SQLite's way of testing a disk that fails).

python -m tests.log.sweep [errors ...] [--seed S]

A sync fails in one of the five ways of `SyncFailure`, in turn. After each failure the power goes, the disk is whole
again, and a start must find what was promised: in every image of `Moment.images` that is asked for, and after a crash
in the middle of the start that mends it. While the disk fails, nothing that was not durable may be acknowledged, a
storage that failed touches no file again, and what a caller is told is an error with a name: never that there is
damage, because there is none.

The last line printed is a JSON object: how many failures of each error there were.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from pyraftkv.errors import Closed, ForeignDataDir, SnapshotCorruption, StorageError, WalCorruption
from pyraftkv.log import FileStorage
from pyraftkv.log.segment import BLOCK_BYTES
from pyraftkv.sim.disk import DiskError, DiskFaults, SimDisk
from pyraftkv.sim.inode import SyncFailure
from tests.log.disks import until_crash
from tests.log.model import Promise, State
from tests.log.scenarios import Scenario, Script
from tests.log.states import Moment, Recorder

WRITING = frozenset({"make_dir", "create", "pwrite", "rename", "fdatasync", "fsync_dir", "lock"})
"""What a disk without room may refuse. A sync too: space is given out late, or over a network."""
NAMING = frozenset({"make_dir", "listdir", "create", "open", "rename", "unlink", "lock", "fsync_dir"})
"""What a directory refuses that is somebody else's by now."""
ERRORS: dict[str, tuple[int, frozenset[str]]] = {
    "EIO": (errno.EIO, frozenset()),
    "ENOSPC": (errno.ENOSPC, WRITING),
    "EDQUOT": (errno.EDQUOT, WRITING),
    "EROFS": (errno.EROFS, WRITING | {"open", "unlink"}),
    "EACCES": (
        errno.EACCES,
        frozenset({"make_dir", "listdir", "create", "open", "rename", "unlink", "lock", "fsync_dir"}),
    ),
    "short": (0, frozenset({"pwrite"})),
}
"""What fails, and with which error; ``short``: a write takes half, and if it lasts, all later ones fail with ENOSPC."""

LIFE = Scenario(
    (
        "append settle commit append settle commit append append settle snapshot settle append settle",
        "append settle overwrite settle commit append settle snapshot append settle",
    ),
    BLOCK_BYTES + 500,
)
TURNS_MAX = 400
"""Turns of the loop without any progress, after which a save waits for a disk that is full."""
OPERATIONS_MAX = 1_000
IMAGES_MAX = 4
"""Of the disk that a failure leaves."""
AGAIN_EVERY = 7
"""Of so many failures, one is followed by a crash before every operation of the start that mends it."""


class _Stuck(Exception):
    """A save waits for the disk, and will for ever."""


class Ordeal(Script):
    """Lives on a disk that fails; whatever it says is right, as long as it has a name."""

    def __init__(self, seed: int, operations: list[str], *, reads_fail: bool = False) -> None:
        super().__init__(LIFE, seed)
        self._reads_fail = reads_fail
        self.failures: list[BaseException] = []
        self.ended: list[str] = []
        """How lives ended."""
        self._operations = operations
        self._seen = self._acknowledged = 0

    def failed(self, error: BaseException) -> None:
        """Remember what was so when the storage failed."""
        self.failures.append(error)
        self._seen = len(self._operations)
        self._acknowledged = self.completed

    def promise(self) -> Promise:
        """On a full disk terms and votes do not wait for the entries that were saved with them.

        A start that cannot read the newest snapshot goes on from the one before: the log is the same in the end.
        """
        promise = super().promise()
        if self._reads_fail:
            promise = replace(promise, snapshot=0)
        early = [
            State(later.term, later.vote, state.commit, state.base, state.base_term, state.entries)
            for number, state in enumerate(promise.states)
            for later in promise.states[number + 1 :]
        ]
        return replace(promise, states=(*early, *promise.states))

    async def _step(self, storage: FileStorage) -> None:
        """Whatever waits for room, a snapshot on its way into the log too, is given up in the end."""
        step = asyncio.ensure_future(super()._step(storage))
        for _ in range(3 * TURNS_MAX):
            if step.done():
                break
            await asyncio.sleep(0)
        else:
            step.cancel()
            await asyncio.wait([step])
            raise _Stuck
        await step

    async def _settle(self, storage: FileStorage) -> None:
        turns = 0
        number, before = len(self.states) - 1, self.completed
        while self.completed < number:
            turns = turns + 1 if self.completed == before else 0
            before = self.completed
            if self.failures or turns > TURNS_MAX:
                raise _Stuck
            await asyncio.sleep(0)

    async def ordeal(self, fs, make_worker, steps: int) -> None:
        """Run a life; an end that the disk forced upon it is an end like any other."""
        try:
            await self.life(fs, make_worker, steps)
        except (WalCorruption, SnapshotCorruption, ForeignDataDir) as error:
            raise AssertionError("there is no damage") from error
        except (StorageError, Closed, _Stuck) as error:
            self.ended.append(type(error).__name__)
            await self._give_up()
        else:
            self.ended.append("well")
        assert len(self.failures) <= 1, self.failures
        if self.failures:
            assert self.completed == self._acknowledged, "acknowledged after the failure"
            touched = [line for line in self._operations[self._seen :] if "/data/wal" in line]
            assert not touched, f"touched after the failure: {touched}"
            self.failures.clear()

    async def _give_up(self) -> None:
        storage = self.storage
        if storage is not None:
            storage.abandon()
            await storage.close()


def run(name: str, *, seed: int, nth: int, is_lasting: bool, again: bool) -> tuple[bool, Ordeal]:
    """Let the ``nth`` operation fail. Return whether there was one, and what came of it."""
    code, operations = ERRORS[name]
    how = list(SyncFailure)[(nth + seed) % len(SyncFailure)]
    rules = [DiskError(operations, nth=nth, code=code, is_lasting=is_lasting and bool(code), sync_failure=how)]
    if is_lasting and not code:
        rules.append(DiskError(operations, nth=nth + 1, code=errno.ENOSPC, is_lasting=True))
    touched: list[str] = []
    disk = Recorder(Random(seed), lambda _disk, operation: touched.append(operation))
    disk.fault = DiskFaults(errors=tuple(rules))
    ordeal = Ordeal(seed, touched, reads_fail=code == errno.EIO)

    async def lives() -> None:
        for steps in LIFE.lives:
            fs, count = disk.mount(), ordeal.begin(steps)
            assert not await until_crash(lambda workers, fs=fs, count=count: ordeal.ordeal(fs, workers, count))

    asyncio.run(lives())
    moment = Moment(disk, "the end", ordeal.promise())
    for image in moment.images(Random(nth), most=IMAGES_MAX):
        start(image.mount(), moment)
    if again:
        mend(moment)
    return rules[0].count >= nth, ordeal


def start(fs, moment: Moment) -> None:
    """Start on a whole disk, and judge what is found."""
    opened = FileStorage("/data", fs=fs, random=Random(3), segment_bytes_max=LIFE.segment_bytes_max)._open()
    moment.promise.judge(opened.recovered)


def mend(moment: Moment) -> None:
    """Crash before each operation of the start after the failure, which finds what a killed process leaves: all."""
    moments: list[Moment] = []

    def watch(disk: SimDisk, operation: str) -> None:
        moments.append(Moment(disk, operation, moment.promise))

    disk = Recorder(Random(0), watch)
    moment.put_as_killed(disk)
    start(disk.mount(), moment)
    for later in moments:
        for image in later.images(Random(1), most=2):
            start(image.mount(), later)


def sweep(name: str, *, seed: int) -> dict[str, int]:
    """Let every operation fail with this error; return how lives ended, and how many operations there were."""
    ends: dict[str, int] = {}
    for is_lasting in (False, True):
        for nth in range(1, OPERATIONS_MAX):
            try:
                struck, ordeal = run(name, seed=seed, nth=nth, is_lasting=is_lasting, again=nth % AGAIN_EVERY == 0)
            except BaseException as error:
                error.add_note(f"{name} at operation {nth}, {'for good' if is_lasting else 'once'}, seed {seed}")
                raise
            for end in ordeal.ended:
                ends[end] = ends.get(end, 0) + 1
            if not struck:
                assert ordeal.ended == ["well"] * len(LIFE.lives), ordeal.ended
                break
            ends["failures"] = ends.get("failures", 0) + 1
        else:
            raise AssertionError(f"more than {OPERATIONS_MAX} operations")
    print(name, ends, flush=True)  # noqa: T201
    return ends


def main(arguments: Sequence[str]) -> int:
    """Do what the command line asks for; a broken promise is an exception."""
    parser = argparse.ArgumentParser(prog="python -m tests.log.sweep", description="Let each operation fail.")
    parser.add_argument("names", nargs="*", help="errors; all by default", choices=[[], *ERRORS])
    parser.add_argument("--seed", type=int, default=1, help="which life (1)")
    options = parser.parse_args(arguments)
    ends = {name: sweep(name, seed=options.seed) for name in options.names or ERRORS}
    print(json.dumps(ends))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
