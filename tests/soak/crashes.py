"""Go on counting crash states where the last run stopped: `tests.log.census`, for long.

python -m tests.soak.crashes [--states 400000]

Each seed is a number of lives of every scenario. The first state that breaks a promise ends the run.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.log.census import take
from tests.log.scenarios import SCENARIOS
from tests.soak.counters import FAILED_MAX, FIRST_SEED, Saved

COUNTERS = Path(__file__).with_name("crashes.json")
STATES = 400_000
SEED_STATES = 5_000
"""Of each scenario under each seed."""


@dataclass
class CrashCounters(Saved):
    """What all runs together have gone through."""

    next_seed: int = FIRST_SEED
    states: int = 0
    """Disks after a crash, no two of one life alike, from which a start has found what was promised."""
    torn: int = 0
    """Of them had a tail to be cut off."""
    again: int = 0
    """Of them are from a crash in the middle of a start after a crash."""
    moments: int = 0
    """Operations before which the power failed."""
    real_seconds: float = 0.0
    failures: int = 0
    failed_seeds: list[int] = field(default_factory=list)
    """The latest that broke a promise."""
    scenarios: dict[str, int] = field(default_factory=dict)
    """How many states of each."""

    def add(self, counts: dict[str, Counter[str]], *, seconds: float, failed: bool) -> None:
        """Count what came of the next seed."""
        if failed:
            self.failures += 1
            self.failed_seeds = [*self.failed_seeds, self.next_seed][-FAILED_MAX:]
        self.next_seed += 1
        for name, count in counts.items():
            self.states += count["states"]
            self.torn += count["torn"]
            self.again += count["again"]
            self.moments += count["moments"]
            self.scenarios[name] = self.scenarios.get(name, 0) + count["states"]
        self.real_seconds = round(self.real_seconds + seconds, 1)
        self.scenarios = dict(sorted(self.scenarios.items()))


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for; return the exit status: 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.crashes", description="Crash states, for long.")
    parser.add_argument("--states", type=int, default=STATES, help=f"how many, about ({STATES})")
    parser.add_argument("--of-a-seed", type=int, default=SEED_STATES, help=f"of each scenario ({SEED_STATES})")
    parser.add_argument("--counters", type=Path, default=COUNTERS, help="where is counted")
    options = parser.parse_args(arguments)
    counters = CrashCounters.load(options.counters)
    last, failure = counters.states + options.states, ""
    while counters.states < last and not failure:
        seed, began = counters.next_seed, time.perf_counter()
        counts: dict[str, Counter[str]] = {}
        try:
            for name in SCENARIOS:
                counts[name] = take(name, states=options.of_a_seed, seed=seed)
        except Exception:  # noqa: BLE001  (whatever it is, it is told)
            failure = traceback.format_exc()
        counters.add(counts, seconds=time.perf_counter() - began, failed=bool(failure))
        counters.save(options.counters)
        print(f"seed {seed}: {sum(count['states'] for count in counts.values())} states {failure}", flush=True)
    print(
        f"so far {counters.states} crash states of {counters.moments} moments, {counters.again} of them of a start "
        f"after a crash, {counters.torn} torn, {counters.failures} seeds failed; next is seed {counters.next_seed}"
    )
    return int(bool(failure))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
