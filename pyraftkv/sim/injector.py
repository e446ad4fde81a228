"""`Injector`: carries out a list of faults, whatever keeps the time.

It judges the whole list before anything happens, turns it into steps in the order of their times, and does a step when
it is told to: by the events of a simulation, or by a task that sleeps beside real processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf

from pyraftkv._record import record
from pyraftkv.sim.faults import BESIDE, FAULTS_MAX, LEADER, Fault, FaultError, FaultTarget, UnsupportedFault
from pyraftkv.sim.holds import Grip, Holds
from pyraftkv.sim.kinds import Aim, Kind, kind_of, windows

AMOUNT_FACTOR_MAX = 1000.0
"""How many times as bad as in random schedules a fault may be."""


@record
class Step:
    """One moment: a fault strikes, or lets go."""

    at: float
    fault: Fault
    number: int
    """Which fault of the list it is."""
    window: int
    """Which of the times at which the fault strikes."""
    begins: bool


def timeline(faults: Sequence[Fault]) -> list[Step]:
    """Return every step of a list of faults by time; what lets go at a moment comes before what strikes then.

    An instant fault is one step. Raises `FaultError`.
    """
    steps: list[Step] = []
    for number, fault in enumerate(faults):
        for window, stretch in enumerate(windows(fault)):
            steps.append(Step(stretch.begins, fault, number, window, begins=True))
            if fault.seconds:
                steps.append(Step(stretch.ends, fault, number, window, begins=False))
    return sorted(steps, key=lambda step: (step.at, step.begins))


def check_faults(faults: Sequence[Fault], target: FaultTarget) -> None:
    """Raise `FaultError` if a list makes no sense for this target, `UnsupportedFault` if it is beyond its abilities."""
    if len(faults) > FAULTS_MAX:
        raise FaultError(f"{len(faults)} faults, over {FAULTS_MAX}")
    here = [*target.members, *target.clients]
    hosts = {*here, LEADER, BESIDE}
    for fault in faults:
        kind = kind_of(fault)
        if missing := kind.needs & ~target.abilities:
            raise UnsupportedFault(f"{fault.kind} at {fault.at} s needs {missing.name}, which {target!r} has not")
        if not (0 <= fault.at < inf and 0 <= fault.seconds < inf):
            raise FaultError(f"{fault.kind} at {fault.at} s for {fault.seconds} s is no time")
        if not _is_possible(fault.amount, kind):
            what = f"its amount, {fault.amount} {kind.unit}, cannot be" if kind.unit else "it has no amount"
            raise FaultError(f"{fault.kind} at {fault.at} s: {what}")
        if len(target.members) < kind.members_min:
            raise FaultError(f"{fault.kind} needs {kind.members_min} members, there are {len(target.members)}")
        for name in fault.targets:
            if name not in hosts:
                raise FaultError(
                    f"{fault.kind} at {fault.at} s: there is no host {name!r}; there are {', '.join(here)}"
                )
        if complaint := _complaint_of_sides(fault, kind):
            raise FaultError(f"{fault.kind} at {fault.at} s: {complaint}")


def _complaint_of_sides(fault: Fault, kind: Kind) -> str:
    """Return what is wrong with a fault's groups; nothing if there is but one.

    1. A script says ``kill n1 | n2``, and means both. Only the first group would be struck, and nobody told.
    """
    groups = fault.groups
    if len(groups) == 1:
        return ""
    if not kind.has_sides:
        return f"it has no sides: leave out {BESIDE!r}"
    if not kind.is_order and not all(groups):
        return "nobody stands on one of its sides"
    names = [name for group in groups for name in dict.fromkeys(group)]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    return f"{twice[0]} stands on two of its sides" if twice else ""


def _is_possible(amount: float, kind: Kind) -> bool:
    """Tell whether an amount means something: finite, and far from what the kind is made for at the most.

    A clock that runs a million times too fast makes a million times the events: nobody would see the end of it.
    """
    low, high = kind.amount
    if not kind.unit:
        return amount == 0
    farthest = 1.0 if kind.unit.startswith("share") else AMOUNT_FACTOR_MAX * high
    return (0 if low >= 0 else -farthest) <= amount <= farthest


def _meant(kind: Kind, target: FaultTarget) -> tuple[str, ...]:
    """Return whom a fault befalls that names nobody: whom its kind is aimed at. Nobody stands for every member.

    A script says ``at 3s kill_leader`` and means the leader, not whoever there is.
    """
    if kind.aim is Aim.LEADER:
        return (LEADER,)
    if kind.aim is Aim.MAJORITY:
        return tuple(target.members[: len(target.members) // 2 + 1])
    return ()


class Injector:
    """Makes the faults of one run happen.

    Args:
        target: Whom they befall.
        faults: What happens.
        tell: Called with each step before it is done.

    Invariant: after `end_all` nothing holds the target, and nothing ever will again.

    Raises:
        FaultError: A fault that makes no sense for this target; nothing has happened then.
        UnsupportedFault: A fault that is beyond its abilities; the same.
    """

    def __init__(
        self, target: FaultTarget, faults: Sequence[Fault], *, tell: Callable[[Step], None] | None = None
    ) -> None:
        check_faults(faults, target)
        self.steps = timeline(faults)
        """What is to be done, by time."""
        self.struck: Counter[str] = Counter()
        """How many faults have begun, by kind."""
        self._holds = Holds(target)
        self._tell = tell
        self._grips: dict[tuple[int, int], Grip] = {}
        self._ended = False

    @property
    def is_quiet(self) -> bool:
        """Whether no fault holds the target at the moment."""
        return not self._grips

    def do(self, step: Step) -> None:
        """Do one step. The steps of a fault are done in their order; after `end_all` they are nothing."""
        if self._ended:
            return
        if self._tell is not None:
            self._tell(step)
        key = step.number, step.window
        if step.begins:
            self._strike(key, step.fault)
        else:
            self._grips.pop(key).release()

    def end_all(self) -> None:
        """End every fault that has begun, the latest first, and let none begin any more. Idempotent."""
        self._ended = True
        while self._grips:
            self._grips.popitem()[1].release()
        assert not self._holds

    def _strike(self, key: tuple[int, int], fault: Fault) -> None:
        kind = kind_of(fault)
        if not fault.targets:
            fault = replace(fault, targets=_meant(kind, self._holds.target))
        grip = Grip(self._holds, fault, amount=fault.amount or kind.amount[0])
        self.struck[fault.kind] += key[1] == 0
        self._grips[key] = grip
        kind.strike(grip)
        if not fault.seconds:
            self._grips.pop(key).release()
