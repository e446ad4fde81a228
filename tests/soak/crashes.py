"""Go on counting crash states where the last run stopped: `tests.log.census`, for long.

python -m tests.soak.crashes [--states 400000] [--seconds 600]

Each seed is a number of lives of every scenario. The first state that breaks a promise ends the run. Several of these
may run at the same time: each takes the next seed that nobody has, and what a seed came to is added when it has ended.
One that is interrupted leaves its seed uncounted, and nothing else.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.log.census import take
from tests.log.scenarios import SCENARIOS
from tests.soak.counters import FAILED_MAX, FIRST_SEED, Saved

COUNTERS = Path(__file__).with_name("crashes.json")
STATES = 400_000
SHARE_STATES = 200
"""Under each seed, for each of a scenario's shares."""


@dataclass
class CrashCounters(Saved):
    """What all runs together have gone through."""

    next_seed: int = FIRST_SEED
    """That nobody has taken yet."""
    seeds: int = 0
    """That have ended. Those before `next_seed` that have not were interrupted, or are still running."""
    states: int = 0
    """Disks after a crash, no two of a seed alike, from which a start has found what was promised."""
    repeated: int = 0
    """Disks that had come up before under the same seed, not counted above, and not tried again."""
    torn: int = 0
    """Of the states had a tail to be cut off."""
    again: int = 0
    """Of them are from a crash in the middle of a start after a crash."""
    deep: int = 0
    """Of them had another power failure right after the start, and one after it had appended."""
    moments: int = 0
    """Operations before which the power failed."""
    cpu_seconds: float = 0.0
    failures: int = 0
    failed_seeds: list[int] = field(default_factory=list)
    """The latest that broke a promise."""
    scenarios: dict[str, int] = field(default_factory=dict)
    """How many states of each."""

    def take_seed(self) -> int:
        """Return a seed that is nobody else's."""
        self.next_seed += 1
        return self.next_seed - 1

    def add(self, seed: int, counts: dict[str, Counter[str]], *, cpu_seconds: float, failed: bool) -> None:
        """Count what came of a seed."""
        if failed:
            self.failures += 1
            self.failed_seeds = [*self.failed_seeds, seed][-FAILED_MAX:]
        self.seeds += 1
        for name, count in counts.items():
            self.states += count["states"]
            self.repeated += count["repeated"]
            self.torn += count["torn"]
            self.again += count["again"]
            self.deep += count["deep"]
            self.moments += count["moments"]
            self.scenarios[name] = self.scenarios.get(name, 0) + count["states"]
        self.cpu_seconds = round(self.cpu_seconds + cpu_seconds, 1)
        self.scenarios = dict(sorted(self.scenarios.items()))


@contextmanager
def changed(path: Path) -> Generator[CrashCounters]:
    """Read the counters, let them be changed, and write them, while no other process does so."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        counters = CrashCounters.load(path)
        yield counters
        counters.save(path)
    finally:
        os.close(folder)


def run_seed(path: Path, share_states: int) -> str:
    """Take the next seed, examine its states and count them; return what went wrong, if anything did."""
    with changed(path) as counters:
        seed = counters.take_seed()
    failure, counts = "", dict[str, Counter[str]]()
    began = time.process_time()
    try:
        for name, scenario in SCENARIOS.items():
            counts[name] = take(name, states=scenario.share * share_states, seed=seed)
    except Exception:  # noqa: BLE001  (whatever it is, it is told)
        failure = traceback.format_exc()
    cpu_seconds = time.process_time() - began
    with changed(path) as counters:
        counters.add(seed, counts, cpu_seconds=cpu_seconds, failed=bool(failure))
    states = sum(count["states"] for count in counts.values())
    print(f"seed {seed}: {states} states, {states / cpu_seconds:.0f} a CPU second {failure}", flush=True)
    return failure


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for; return the exit status: 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.crashes", description="Crash states, for long.")
    parser.add_argument("--states", type=int, default=STATES, help=f"how many more, by whomever, about ({STATES})")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no seed after so long")
    parser.add_argument(
        "--of-a-share", type=int, default=SHARE_STATES, help=f"states of a scenario's share ({SHARE_STATES})"
    )
    parser.add_argument("--counters", type=Path, default=COUNTERS, help="where is counted")
    options = parser.parse_args(arguments)
    last = CrashCounters.load(options.counters).states + options.states
    ends, failure = time.monotonic() + options.seconds, ""
    while not failure and time.monotonic() < ends and CrashCounters.load(options.counters).states < last:
        failure = run_seed(options.counters, options.of_a_share)
    counters = CrashCounters.load(options.counters)
    print(
        f"so far {counters.states} crash states of {counters.moments} moments, {counters.again} of them of a start "
        f"after a crash, {counters.torn} torn, {counters.failures} seeds failed; next is seed {counters.next_seed}"
    )
    return int(bool(failure))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
