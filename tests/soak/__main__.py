"""Go on with the long run.

make soak MINUTES=60
python -m tests.soak --minutes 60 [--jobs 2] [--seconds 60]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.soak.counters import Counters
from tests.soak.runner import ROOT, Ending, Plan, Result, run_seeds

COUNTERS = Path(__file__).with_name("counters.json")
OUT = ROOT / ".raft"
SECONDS = 60.0
JOBS = 2


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for; return the exit status: 1 if a seed failed, else that of a signal."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Seeds that nobody has run before.")
    parser.add_argument("--minutes", type=float, required=True, help="real time after which no further seed begins")
    parser.add_argument("--seeds-max", type=int, default=Plan.seeds_max, help="how many seeds, at the most")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"virtual time of each ({SECONDS:g})")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"how many processes at a time ({JOBS})")
    parser.add_argument("--counters", type=Path, default=COUNTERS, help="where is counted")
    parser.add_argument("--out", type=Path, default=OUT, help="where failures are written (.raft)")
    parser.add_argument("--script", type=Path, help="the faults, in place of the seeds' choice")
    options = parser.parse_args(arguments)
    plan = Plan(
        seconds=options.seconds,
        out=options.out.absolute(),
        deadline=time.monotonic() + 60.0 * options.minutes,
        seeds_max=options.seeds_max,
        jobs=options.jobs,
        script=None if options.script is None else options.script.absolute(),
    )
    counters = Counters.load(options.counters)
    began = time.monotonic()
    results: list[Result] = []
    ending = Ending()
    with ending.by_signals():
        for result in run_seeds(plan, counters, options.counters, ending):
            print(result.line, flush=True)
            results.append(result)
    print("\n".join(summary(results, counters, real_seconds=time.monotonic() - began)))
    failed = [result for result in results if result.failure]
    for result in failed:
        print(f"{result.line}\n    see {plan.out}/seed-{result.seed}.txt")
    return 1 if failed else ending.status


def summary(results: Sequence[Result], counters: Counters, *, real_seconds: float) -> list[str]:
    """Return what this run did, and what all runs together have done."""
    virtual = sum(result.told.get("virtual_seconds", 0.0) for result in results)
    alone = sum(result.told.get("real_seconds", 0.0) for result in results)
    pairs = sum(result.is_pair for result in results)
    now = (
        f"{len(results)} seeds, {pairs} of them twice: {virtual:.0f} virtual seconds in {real_seconds:.0f} "
        f"({virtual / (real_seconds or 1.0):.1f}x), in each process {virtual / (alone or 1.0):.1f}x"
    )
    so_far = (
        f"so far {counters.seeds} seeds, {counters.pairs} of them twice, {counters.virtual_seconds:.0f} virtual "
        f"seconds, {counters.operations} operations, {counters.messages} messages, {sum(counters.faults.values())} "
        f"faults of {len(counters.faults)} kinds, {counters.failures} failures; next is seed {counters.next_seed}"
    )
    return [now, so_far]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
