"""Count crash states: lives of each scenario are recorded, and a start must succeed on every disk that may be left.

python -m tests.log.census [scenarios ...] [--states N] [--seed S]

Of every state: the start succeeds without help, and finds one of the logs between what was acknowledged and what was
asked for. Of every `DEEP_EVERY`-th also: what the start found is still there if the power goes right after it, and the
log goes on. And of some starts every moment is a crash state again, after a power failure and after a killed process.

No two states that are counted are alike: they differ in what is on the disk, or in what was promised. Those that came
up again are counted apart (``repeated``), and no start is spent on them.

It is a process of its own, because a test's process measures its coverage, and most of the time would be that.
The last line printed is a JSON object: how many states of each scenario there were.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from random import Random
from time import process_time

from pyraftkv.core.ready import Save
from pyraftkv.core.types import Entry
from pyraftkv.log import FileStorage, FileSystem
from pyraftkv.log.directory import Opened
from pyraftkv.log.snapshot import SnapshotReader
from pyraftkv.sim.disk import SimDisk
from tests.log.model import Promise
from tests.log.plain import Plain
from tests.log.scenarios import SCENARIOS, Recording, Scenario, record
from tests.log.states import Image, Moment, Recorder

STATES = 2_000
"""Of each scenario, unless told otherwise."""
IMAGES_MIN = 6
"""Of each moment at least, if there are as many."""
DEEP_EVERY = 16
AGAIN_EVERY = 1_500
"""Of so many states, one start is recorded itself."""
KILLED_EVERY = 12
"""Of so many moments, one is the end of a process and not of the power, and the start after it is recorded."""
AGAIN_IMAGES_MAX = 10
"""Of each moment of such a start."""


class Census:
    """Examines the crash states of one scenario.

    Args:
        cuts_starts: Whether starts are cut too, which costs more than all else.
    """

    def __init__(self, scenario: Scenario, random: Random, *, cuts_starts: bool) -> None:
        self.scenario = scenario
        self._cuts_starts = cuts_starts
        self.random = random
        self.counts: Counter[str] = Counter()
        self._seen: set[tuple[int, object]] = set()

    @property
    def states(self) -> int:
        """How many there were, no two of them alike."""
        return self.counts["states"]

    def examine(self, recording: Recording, *, states: int) -> None:
        """Go through every moment of a recording, for about so many states."""
        most = max(IMAGES_MIN, states // len(recording.moments))
        for number, moment in enumerate(recording.moments):
            self.counts["moments"] += 1
            try:
                self._moment(moment, recording, most=most)
            except Exception as error:
                error.add_note(f"crash {number}, before {moment.before}")
                raise

    def _moment(self, moment: Moment, recording: Recording, *, most: int) -> None:
        promise = moment.promise
        for image in self._fresh(moment, most=most):
            self._examine(image, promise, recording)
            if self._cuts_starts and self.counts["states"] % AGAIN_EVERY == 0:
                self._again(image.put, promise)
        if self._cuts_starts and self.counts["moments"] % KILLED_EVERY == 0:
            self._again(moment.put_as_killed, promise)

    def _fresh(self, moment: Moment, *, most: int) -> Iterator[Image]:
        """Yield the images of a moment that did not come up before, and count them."""
        promise = moment.promise
        # Before anything was promised, disks are alike that lives have in common.
        promised = promise.boot and (id(promise.states[0]), promise.boot, promise.snapshot, promise.owners)
        for image in moment.images(self.random, most=most):
            state = image.mark, promised
            if state in self._seen:
                self.counts["repeated"] += 1
                continue
            self._seen.add(state)
            self.counts["states"] += 1
            yield image

    def _examine(self, image: Image, promise: Promise, recording: Recording) -> None:
        """Start, and judge what is found; of some, look deeper."""
        fs = image.mount()
        opened = self._start(fs, promise)
        self.counts["torn"] += "torn bytes" in opened.recovered.repaired
        if self.counts["states"] % DEEP_EVERY == 0:
            self._deep(fs, opened, promise, recording)

    def _start(self, fs: FileSystem, promise: Promise) -> Opened:
        """Open a data directory and judge what was found; return what the storage opened."""
        random, size = self.random, self.scenario.segment_bytes_max
        opened = FileStorage("/data", fs=fs, random=random, segment_bytes_max=size)._open()
        promise.judge(opened.recovered)
        return opened

    def _deep(self, fs: Plain, opened: Opened, promise: Promise, recording: Recording) -> None:
        """What a start acted upon outlives a power failure right after it, and what it appends too."""
        recovered, wal = opened.recovered, opened.wal
        if recovered.snapshot is not None:
            meta = recovered.snapshot
            reader = SnapshotReader(fs, "/data/snap", term=meta.term, index=meta.index)
            assert list(reader.chunks()) in recording.driver.snapshots[meta.term, meta.index]
            reader.close()
        again = self._start(fs.after_power_loss(), promise)
        assert again.recovered.entries == recovered.entries
        assert again.recovered.hard_state == recovered.hard_state
        assert again.recovered.identity.boot_count > recovered.identity.boot_count
        entry = Entry(wal.last_index + 1, max(recovered.hard_state.term, 1), b"on and on")
        wal.append([Save(1, None, [entry], None)])
        last = FileStorage("/data", fs=fs.after_power_loss(), random=self.random)._open()
        assert last.recovered.entries == [*recovered.entries, entry]
        self.counts["deep"] += 1

    def _again(self, put: Callable[[SimDisk], None], promise: Promise) -> None:
        """Cut a start before each of its operations; ``put`` makes the disk that it finds."""
        moments: list[Moment] = []

        def watch(disk: SimDisk, operation: str) -> None:
            moments.append(Moment(disk, operation, promise))

        disk = Recorder(Random(0), watch)
        put(disk)
        self._start(disk.mount(), promise)
        for moment in moments:
            for image in self._fresh(moment, most=AGAIN_IMAGES_MAX):
                self.counts["again"] += 1
                self._start(image.mount(), promise)


def take(name: str, *, states: int, seed: int, cuts_starts: bool = True) -> Counter[str]:
    """Examine ``states`` crash states of a scenario at least; return what was counted."""
    random = Random(f"{name} {seed}")
    scenario = SCENARIOS[name]
    census = Census(scenario, random, cuts_starts=cuts_starts)
    began = process_time()
    while census.states < states:
        life = random.getrandbits(32)
        try:
            recording = record(scenario, life, crashes=bool(life & 1))
            for beginning in scenario.shows:
                assert any(line.startswith(beginning) for line in recording.operations), f"no {beginning} happened"
            census.examine(recording, states=states)
        except Exception as error:
            error.add_note(f"scenario {name}, seed {seed}, life {life}")
            raise
        census.counts["lives"] += 1
    seconds = process_time() - began
    print(f"{name:<10} {dict(census.counts)} {census.states / seconds:.0f} a second", flush=True)  # noqa: T201
    return census.counts


def main(arguments: Sequence[str]) -> int:
    """Do what the command line asks for; a state that breaks a promise is an exception."""
    parser = argparse.ArgumentParser(prog="python -m tests.log.census", description="Count crash states.")
    parser.add_argument("names", nargs="*", help="scenarios; all by default", choices=[[], *SCENARIOS])
    parser.add_argument("--states", type=int, default=STATES, help=f"of each scenario, at least ({STATES})")
    parser.add_argument("--seed", type=int, default=1, help="which lives (1)")
    options = parser.parse_args(arguments)
    names = options.names or list(SCENARIOS)
    counts = {name: take(name, states=options.states, seed=options.seed) for name in names}
    print(json.dumps(counts))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
