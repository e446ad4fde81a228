"""``sim``: run seeds of the simulator; say, draw and shrink how one fails."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pyraftkv import errors
from pyraftkv.cli.common import DONE, NOT_APPLIED
from pyraftkv.cli.printing import emit
from pyraftkv.cli.terminal import print_table
from pyraftkv.node.bootstrap import MEMBERS_MAX
from pyraftkv.sim import Fault, Run, SimFailure, SimReport, Trace, shrink, to_html, to_svg
from pyraftkv.sim.kinds import kinds_table
from pyraftkv.sim.run import SECONDS
from pyraftkv.sim.script import format_fault, format_script, parse_script
from pyraftkv.sim.shrink import RUNS_MAX

SEEDS_MAX = 100_000
"""How many seeds one command runs."""

COLUMNS = ["SEED", "MEMBERS", "SECONDS", "SPEED", "OPERATIONS", "WATCHED", "LEADERS", "FAULTS", "RESULT"]

KINDS_COLUMNS = ["KIND", "WHAT HAPPENS", "AMOUNT", "NEEDS"]


def run(args: argparse.Namespace) -> int:
    """Run the seeds that the command line asks for. Raises `ConfigurationError`, `FaultError`."""
    if args.kinds:
        print_table(sys.stdout, KINDS_COLUMNS, kinds_table())
        return DONE
    if args.members is not None and not 1 <= args.members <= MEMBERS_MAX:
        raise errors.ConfigurationError(f"a cluster has 1 to {MEMBERS_MAX} members, not {args.members}")
    return _run_one(args) if args.seeds is None else _run_several(args)


def replay_command(
    seed: int, *, seconds: float | None = None, members: int | None = None, script: str | None = None
) -> str:
    """Return what to type to run a seed as it was run.

    >>> replay_command(7, seconds=60.0, members=3)
    'python -m pyraftkv sim --seed 7 --seconds 60 --members 3'
    """
    words = ["python", "-m", "pyraftkv", "sim", "--seed", str(seed)]
    if seconds is not None and seconds != SECONDS:
        words += ["--seconds", repr(seconds).removesuffix(".0")]
    if members is not None:
        words += ["--members", str(members)]
    if script is not None:
        words += ["--script", script]
    return shlex.join(words)


def shrunk(
    failure: SimFailure, again: Callable[[list[Fault]], object], *, runs_max: int = RUNS_MAX
) -> tuple[SimFailure, int]:
    """Look for the fewest faults that break the same rule.

    Args:
        failure: What is to be explained.
        again: Runs the same with other faults; raises `SimFailure`.
        runs_max: How often it is called at the most.

    Returns:
        The failure with the fewest faults, which may be the one given, and how many runs were made.
    """
    best = failure

    def fails(faults: list[Fault]) -> bool:
        nonlocal best
        try:
            again(faults)
        except SimFailure as other:
            if other.rule == failure.rule:
                best = other
                return True
        return False

    runs = shrink(fails, failure.faults, runs_max=runs_max).runs
    return best, runs


def page_of(trace: Trace, seed: int, *, command: str, faults: Sequence[Fault]) -> str:
    """Return the picture of a run as a page for a browser."""
    return to_html(trace, title=f"seed {seed}", command=command, faults=[format_fault(fault) for fault in faults])


def _run_one(args: argparse.Namespace) -> int:
    faults = _script(args)
    command = replay_command(args.seed, seconds=args.seconds, members=args.members, script=args.script)
    outcome, struck = _attempt(args, args.seed, faults)
    if isinstance(outcome, SimFailure) and args.shrink:
        outcome = _shrink(args, outcome)
        struck = outcome.faults
    has_failed = isinstance(outcome, SimFailure)
    if isinstance(outcome, SimFailure):
        outcome.command = command
    emit(f"{outcome}\n")
    if has_failed and args.shrink:
        emit(f"the faults that matter, for a file and --script:\n{format_script(struck)}")
    # After the words, which nobody gets a second time for a file that cannot be written.
    if args.html is not None:
        _write(args.html, page_of(outcome.trace, args.seed, command=command, faults=struck))
    if args.svg is not None:
        _write(args.svg, to_svg(outcome.trace, title=f"seed {args.seed}"))
    if args.trace is not None:
        _write(args.trace, "".join(f"{line}\n" for line in outcome.trace.lines()))
    return NOT_APPLIED if has_failed else DONE


def _run_several(args: argparse.Namespace) -> int:
    """Run a range of seeds: a line on standard error as each ends, and a table of all."""
    for name in ("html", "svg", "trace", "shrink"):
        if getattr(args, name):
            raise errors.ConfigurationError(f"--{name} is for one seed: give --seed")
    if len(args.seeds) > SEEDS_MAX:
        raise errors.ConfigurationError(f"{len(args.seeds)} seeds, over {SEEDS_MAX}")
    faults = _script(args)
    rows: list[list[str]] = []
    failures: list[str] = []
    for seed in args.seeds:
        outcome, _ = _attempt(args, seed, faults)
        if isinstance(outcome, SimFailure):
            command = replay_command(seed, seconds=args.seconds, members=args.members, script=args.script)
            failures.append(f"seed {seed} fails: {outcome.rule}: {outcome.text}\nreplay: {command}\n")
        rows.append(row_of(outcome))
        sys.stderr.write(f"seed {seed}: {rows[-1][-1]}\n")
    print_table(sys.stdout, COLUMNS, rows)
    sys.stdout.flush()  # `emit` writes below its buffer
    emit(*failures)
    return NOT_APPLIED if failures else DONE


def row_of(outcome: SimReport | SimFailure) -> list[str]:
    """Return what came of a seed as a row of the table."""
    if isinstance(outcome, SimFailure):
        return [str(outcome.seed), *[""] * (len(COLUMNS) - 3), str(len(outcome.faults)), outcome.rule]
    return [
        str(outcome.seed),
        str(outcome.members),
        f"{outcome.virtual_seconds:.1f}",
        f"{outcome.speed:.1f}x",
        f"{outcome.acknowledged}/{outcome.operations}",
        str(outcome.watched),
        str(outcome.leaders),
        str(sum(outcome.faults.values())),
        f"ok, at work again after {outcome.liveness_seconds:.2f} s",
    ]


def _attempt(
    args: argparse.Namespace, seed: int, faults: Sequence[Fault] | None
) -> tuple[SimReport | SimFailure, list[Fault]]:
    """Run a seed once; return what came of it, and the faults that it met."""
    with Run(seed, seconds=args.seconds or SECONDS, faults=faults, members=args.members) as running:
        try:
            return running.run(), running.faults
        except SimFailure as failure:
            return failure, running.faults


def _shrink(args: argparse.Namespace, failure: SimFailure) -> SimFailure:
    def again(faults: list[Fault]) -> None:
        sys.stderr.write(f"trying {len(faults)} of {len(failure.faults)} faults\n")
        outcome, _ = _attempt(args, args.seed, faults)
        if isinstance(outcome, SimFailure):
            raise outcome

    best, runs = shrunk(failure, again)
    sys.stderr.write(f"{len(failure.faults)} faults became {len(best.faults)} in {runs} runs\n")
    return best


def _script(args: argparse.Namespace) -> list[Fault] | None:
    """Return the faults of ``--script``, if it was given. Raises `ConfigurationError`, `ScriptError`."""
    if args.script is None:
        return None
    try:
        return parse_script(Path(args.script).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigurationError(f"cannot read {args.script}: {error}") from error


def _write(path: str, text: str) -> None:
    """Raises `ConfigurationError`."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise errors.ConfigurationError(f"cannot write {path}: {error}") from error
