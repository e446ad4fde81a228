"""`Verdict`: what a checker found, in words, with the operations that it is about."""

from __future__ import annotations

from dataclasses import field
from enum import Enum

from pyraftkv._record import record
from pyraftkv.sim.check.history import Op


class Finding(Enum):
    """The three things that a checker can say."""

    RIGHT = "right"
    WRONG = "wrong"
    UNDECIDED = "undecided"
    """A bound of the search was reached first. It is no approval."""


@record
class Verdict:
    """What a checker found."""

    finding: Finding
    reason: str = ""
    """What is wrong, for a person; what was reached, when it is undecided."""
    ops: list[Op] = field(default_factory=list)
    """The operations that the reason speaks of."""
    states: int = 0
    """How many states were looked at."""

    def __str__(self) -> str:
        lines = [f"{self.finding.value}: {self.reason}" if self.reason else self.finding.value]
        return "\n".join([*lines, *(f"    {op}" for op in self.ops)])

    @property
    def ok(self) -> bool:
        """Whether everything was checked and nothing is wrong: false when it is undecided."""
        return self.finding is Finding.RIGHT


class HistoryError(Exception):
    """A history is wrong. For checkers that stop at the first thing they find.

    Args:
        reason: What is wrong.
        ops: The operations that it is about.
    """

    def __init__(self, reason: str, *ops: Op) -> None:
        super().__init__(reason)
        self.reason = reason
        self.ops = ops


def wrong(error: HistoryError, *, states: int = 0) -> Verdict:
    """Return the verdict that names what was found; every operation once, in the order they began."""
    ops = sorted({op.number: op for op in error.ops}.values(), key=lambda op: op.number)
    return Verdict(Finding.WRONG, error.reason, ops, states)


def right(*, states: int = 0) -> Verdict:
    """Return the verdict that finds nothing wrong."""
    return Verdict(Finding.RIGHT, states=states)
