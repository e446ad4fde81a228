"""Run one seed in a process of its own: its last line is what came of it, as JSON.

python -m tests.soak.seed SEED --seconds N --out DIR [--digest] [--script FILE]
python -m tests.soak.seed --serve    # such arguments come line by line: see `tests.soak.nursery`
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyraftkv.cli.simulating import page_of, replay_command, shrunk
from pyraftkv.sim import Fault, SimFailure, SimReport, simulate
from pyraftkv.sim.script import format_script, parse_script
from tests.soak.nursery import serve

STATUS_FAILED = 10
"""The exit status that says that a rule was broken: no crash of Python has it."""

SHRINK_SECONDS = 120.0
"""About how long is spent on leaving out faults, and ..."""
SHRINK_RUNS_MAX = 60
"""... in how many runs at the most."""


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.seed", description="One seed, in this process.")
    parser.add_argument("seed", type=int)
    parser.add_argument("--seconds", type=float, required=True, help="virtual seconds")
    parser.add_argument("--out", type=Path, required=True, help="where a failure is written")
    parser.add_argument("--digest", action="store_true", help="tell the hash of the trace, too")
    parser.add_argument("--script", type=Path, help="the faults, in place of the seed's choice")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)  # members fail all the time
    given = None if options.script is None else parse_script(options.script.read_text(encoding="utf-8"))

    def again(faults: list[Fault] | None) -> SimReport:
        return simulate(options.seed, seconds=options.seconds, faults=faults)

    began = time.perf_counter()
    try:
        report = again(given)
    except SimFailure as failure:
        tell({"failure": f"{failure.rule}: {failure.text}"})
        runs_max = min(SHRINK_RUNS_MAX, 1 + int(SHRINK_SECONDS / (time.perf_counter() - began)))
        write_failure(failure, again, seconds=options.seconds, out=options.out, runs_max=runs_max)
        return STATUS_FAILED
    tell(facts_of(report, digest=options.digest))
    return 0


def tell(table: dict[str, Any]) -> None:
    """Write one line of JSON, now."""
    sys.stdout.write(json.dumps(table) + "\n")
    sys.stdout.flush()


def facts_of(report: SimReport, *, digest: bool) -> dict[str, Any]:
    """Return what is counted of a run."""
    return {
        "members": report.members,
        "virtual_seconds": report.virtual_seconds,
        "real_seconds": report.real_seconds,
        "operations": report.acknowledged,
        "messages": report.messages,
        "leaders": report.leaders,
        "faults": report.faults,
        **({"digest": report.digest} if digest else {}),
    }


def write_failure(
    failure: SimFailure, again: Callable[[list[Fault]], object], *, seconds: float, out: Path, runs_max: int
) -> None:
    """Write what failed as it was, then with the faults that matter: in words, as a script and as a picture.

    Args:
        failure: As it was found.
        again: Runs the same with other faults.
        seconds: How long the run was, in virtual time.
        out: Where it is written.
        runs_max: How often is tried to leave faults out.
    """
    out.mkdir(parents=True, exist_ok=True)
    name = f"seed-{failure.seed}"
    failure.command = replay_command(failure.seed, seconds=seconds)
    words = f"{failure}\n"
    (out / f"{name}.txt").write_text(words, encoding="utf-8")  # shrinking may take long, or hang
    best, _ = shrunk(failure, again, runs_max=runs_max)
    script = out / f"{name}.faults"
    script.write_text(format_script(best.faults), encoding="utf-8")
    best.command = replay_command(failure.seed, seconds=seconds, script=str(script))
    (out / f"{name}.txt").write_text(f"{words}\nwith the faults that matter: {best}\n", encoding="utf-8")
    page = page_of(best.trace, failure.seed, command=best.command, faults=best.faults)
    (out / f"{name}.html").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(serve(main) if sys.argv[1:] == ["--serve"] else main(sys.argv[1:]))
