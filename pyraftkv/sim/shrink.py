"""`shrink`: from a list of faults that makes a run fail to a short one that still does.

First whole faults are left out, by delta debugging (Zeller and Hildebrandt, 2002, "ddmin"): try ever smaller parts of
the list, keep what still fails, until no single fault can be missed. Then what is left is made plainer, fault by
fault: fewer victims, shorter, at a rounder time. Each try is a whole run of the caller's, so tries are what
is counted, and no list is tried twice.

Nothing here is random: the same list and the same verdicts give the same result after the same number of runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from math import floor

from pyraftkv._record import record
from pyraftkv.sim.faults import BESIDE, Fault

RUNS_MAX = 200
SECONDS_MIN = 0.01
"""Nothing is made shorter than this."""

Fails = Callable[[list[Fault]], bool]
"""Runs everything again with other faults; whether it fails in the way that is looked for."""


@record
class Shrunk:
    """What came of shrinking."""

    faults: list[Fault]
    """The shortest list found that fails."""
    runs: int
    """How often something was run to find it."""
    is_minimal: bool
    """Whether nothing more could be tried; false if the runs were used up."""


class _OutOfRuns(Exception):
    """The budget is spent."""


class _Trials:
    """Counts the runs, remembers their verdicts, and holds the best list so far."""

    def __init__(self, fails: Fails, faults: Sequence[Fault], runs_max: int) -> None:
        self.best = list(faults)
        self.runs = 0
        self._fails = fails
        self._runs_max = runs_max
        self._passed: set[str] = set()

    def better(self, faults: list[Fault]) -> bool:
        """Whether this list fails too; it is the best one then. Raises `_OutOfRuns`."""
        key = repr(faults)
        if faults == self.best or key in self._passed:
            return False
        if self.runs >= self._runs_max:
            raise _OutOfRuns
        self.runs += 1
        if self._fails(faults):
            self.best = faults
            return True
        self._passed.add(key)
        return False


def shrink(fails: Fails, faults: Sequence[Fault], *, runs_max: int = RUNS_MAX) -> Shrunk:
    """Return the shortest and plainest list of faults found that still fails.

    Args:
        fails: Runs with the faults it is given; deterministic.
        faults: What is known to fail.
        runs_max: How often ``fails`` is called at the most. About ``n log n`` runs are needed for ``n`` faults of
            which few matter.
    """
    trials = _Trials(fails, faults, runs_max)
    try:
        while True:
            before = trials.best
            _leave_out(trials)
            _make_plainer(trials)
            if trials.best == before:
                break
    except _OutOfRuns:
        return Shrunk(trials.best, trials.runs, is_minimal=False)
    return Shrunk(trials.best, trials.runs, is_minimal=True)


def _leave_out(trials: _Trials) -> None:
    """Delta debugging: leave `best` with no fault, and no run of equal parts, that can be missed."""
    if trials.better([]):
        return
    parts = 2
    while len(trials.best) > 1:
        parts = min(parts, len(trials.best))
        pieces = _split(trials.best, parts)
        if any(trials.better(piece) for piece in pieces):
            parts = 2
        elif any(trials.better([f for other in pieces if other is not piece for f in other]) for piece in pieces):
            parts = max(parts - 1, 2)
        elif parts == len(trials.best):
            return
        else:
            parts = 2 * parts


def _split(faults: list[Fault], parts: int) -> list[list[Fault]]:
    """Return a list in so many pieces of nearly the same length, none empty."""
    bounds = [len(faults) * number // parts for number in range(parts + 1)]
    return [faults[lo:hi] for lo, hi in pairwise(bounds)]


def _make_plainer(trials: _Trials) -> None:
    """Take the first plainer form of each fault that still fails, until there is none."""
    for number in range(len(trials.best)):
        while any(
            trials.better([*trials.best[:number], plainer, *trials.best[number + 1 :]])
            for plainer in _plainer(trials.best[number])
        ):
            pass


def _plainer(fault: Fault) -> Iterator[Fault]:
    """Yield simpler forms of a fault, the simplest first."""
    for number, name in enumerate(fault.targets):
        if name != BESIDE and _is_crowded(fault.targets, number):
            yield replace(fault, targets=fault.targets[:number] + fault.targets[number + 1 :])
    if fault.seed:
        yield replace(fault, seed=0)
    if fault.amount:
        yield replace(fault, amount=0.0)
    for part in (4, 2):
        if fault.seconds / part >= SECONDS_MIN:
            yield replace(fault, seconds=round(fault.seconds / part, 3))
    for digits in (0, 1, 2):
        at, seconds = _rounded_down(fault.at, digits), _rounded_down(fault.seconds, digits)
        if at < fault.at:
            yield replace(fault, at=at)
        if SECONDS_MIN <= seconds < fault.seconds:
            yield replace(fault, seconds=seconds)


def _rounded_down(value: float, digits: int) -> float:
    """Return a value with at most so many digits, and no larger, so that no fault ends later than it did."""
    scale = 10.0**digits
    return floor(round(value * scale, 6)) / scale


def _is_crowded(targets: tuple[str, ...], number: int) -> bool:
    """Whether somebody else stands in the same group as this target."""
    before = targets[number - 1] if number else BESIDE
    after = targets[number + 1] if number + 1 < len(targets) else BESIDE
    return before != BESIDE or after != BESIDE
