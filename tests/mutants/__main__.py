"""Break our own code on purpose, one rule at a time, and see that something notices.

make mutants
python -m tests.mutants [names ...] [--list] [--refit] [--jobs N]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence

from tests.mutants.mutant import PATCHES, PENDING, Mutant, PatchError, load
from tests.mutants.refit import refit
from tests.mutants.runner import ROOT, Result, Verdict, run_all

JOBS_MAX = 8


def main(arguments: Sequence[str]) -> int:
    """Run what the command line asks for; return the exit status: 1 when a mutant survives or does not apply."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Seeded faults, each to be noticed.")
    parser.add_argument("names", nargs="*", help="which mutants; all of them by default")
    parser.add_argument("--list", action="store_true", help="print the table of docs/mutants.md and run none")
    parser.add_argument("--refit", action="store_true", help="write anew what an edit has moved, and run none")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, JOBS_MAX), help="how many side by side")
    options = parser.parse_args(arguments)
    mutants = load(PATCHES, PENDING)
    known = {mutant.name for mutant in mutants}
    strangers = [name for name in options.names if name not in known]
    if strangers:
        parser.error(f"there is no mutant named {', '.join(strangers)}; --list names them all")
    if options.names:
        mutants = [mutant for mutant in mutants if mutant.name in options.names]
    if options.list:
        print("\n".join(table(mutants)))
        return 0
    if options.refit:
        return refit_all(mutants)
    return run(mutants, jobs=max(1, min(options.jobs, JOBS_MAX)))


def table(mutants: Sequence[Mutant]) -> list[str]:
    """Return what each mutant breaks and what kills it, as the lines of a table in Markdown (docs/mutants.md)."""
    rows = [
        f"| {mutant.name}{' (pending)' * mutant.pending} | {mutant.rule} | {mutant.source} | `{mutant.killer}` |"
        for mutant in mutants
    ]
    return ["| mutant | the rule that it breaks | source | killer |", "|---|---|---|---|", *rows]


def run(mutants: Sequence[Mutant], *, jobs: int) -> int:
    """Run mutants, printing a row for each as it ends; return the exit status."""
    width = max(len(mutant.name) for mutant in mutants)
    counts: Counter[Verdict] = Counter()
    for result in run_all(mutants, jobs=jobs):
        counts[result.verdict] += 1
        print(row(result, width), flush=True)
    print(", ".join(f"{count} {verdict.value}" for verdict, count in counts.items()))
    return 1 if counts[Verdict.SURVIVED] or counts[Verdict.BROKEN] else 0


def refit_all(mutants: Sequence[Mutant]) -> int:
    """Refit what no longer applies, printing what came of it; return the exit status: 1 if a person has to look."""
    status = 0
    for mutant in mutants:
        folder = PENDING if mutant.pending else PATCHES
        try:
            if refit(mutant, folder / f"{mutant.name}.patch", ROOT):
                print(f"{mutant.name} is refitted: see that its killer still kills it")
        except PatchError as error:
            print(error)
            status = 1
    return status


def row(result: Result, width: int) -> str:
    """Return one line of the table: name, verdict, seconds, and what killed it or why nothing did."""
    mutant = result.mutant
    line = f"{mutant.name:<{width}}  {result.verdict.value:<8}  {result.seconds:5.1f} s  {mutant.killer}"
    return line if result.verdict is Verdict.KILLED else f"{line}\n{'':<{width}}  {result.reason}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
