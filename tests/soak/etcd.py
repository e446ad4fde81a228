"""Ask the store and a real etcd what nobody has asked them before, and count it: `tests/etcd`, for long.

python -m tests.soak.etcd [--operations 100000]

Seeds come one after another, each a `Pair` of its own on the same etcd. The first difference ends the run.
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
from random import Random

from tests.etcd.members import Missing, running
from tests.etcd.pair import Pair
from tests.soak.counters import FAILED_MAX, FIRST_SEED, Saved

COUNTERS = Path(__file__).with_name("etcd.json")
OPERATIONS = 100_000
SEED_OPERATIONS = 5_000
"""Of each seed: so many are asked before everything begins anew."""


@dataclass
class EtcdCounters(Saved):
    """What all runs together have compared."""

    next_seed: int = FIRST_SEED
    operations: int = 0
    """What both were asked, and answered alike."""
    real_seconds: float = 0.0
    failures: int = 0
    """Seeds under which they did not."""
    failed_seeds: list[int] = field(default_factory=list)
    """The latest of them."""
    met: dict[str, int] = field(default_factory=dict)
    """How often each of the documented differences was seen."""

    def add(self, pair: Pair, *, seconds: float, failed: bool) -> None:
        """Count what came of the next seed."""
        if failed:
            self.failures += 1
            self.failed_seeds = [*self.failed_seeds, self.next_seed][-FAILED_MAX:]
        self.next_seed += 1
        self.operations += pair.operations
        self.real_seconds = round(self.real_seconds + seconds, 1)
        self.met = dict(sorted((Counter(self.met) + pair.met).items()))


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for; return the exit status: 1 if there was a difference."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.etcd", description="The store beside a real etcd.")
    parser.add_argument("--operations", type=int, default=OPERATIONS, help=f"how many, about ({OPERATIONS})")
    parser.add_argument("--of-a-seed", type=int, default=SEED_OPERATIONS, help=f"of each seed ({SEED_OPERATIONS})")
    parser.add_argument("--counters", type=Path, default=COUNTERS, help="where is counted")
    options = parser.parse_args(arguments)
    counters = EtcdCounters.load(options.counters)
    try:
        with running() as port:
            differs = _run(port, counters, options)
    except Missing as missing:
        print(f"{missing}: nothing to compare with")
        return 0
    print(
        f"so far {counters.operations} operations, {counters.failures} seeds with a difference, "
        f"{sum(counters.met.values())} that are documented; next is seed {counters.next_seed}"
    )
    return int(differs)


def _run(port: int, counters: EtcdCounters, options: argparse.Namespace) -> bool:
    """Run seeds until there were enough operations, or a difference; tell whether there was one."""
    last = counters.operations + options.operations
    failure = ""
    while counters.operations < last and not failure:
        seed, began = counters.next_seed, time.perf_counter()
        pair = Pair(port, Random(seed))
        try:
            pair.run(options.of_a_seed)
        except Exception:  # noqa: BLE001  (whatever it is, it is told)
            failure = traceback.format_exc()
        seconds = time.perf_counter() - began
        counters.add(pair, seconds=seconds, failed=bool(failure))
        counters.save(options.counters)
        print(
            f"seed {seed}: {pair.operations} operations in {seconds:.1f} s {failure and f'FAILED: {failure}'}",
            flush=True,
        )
    return bool(failure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
