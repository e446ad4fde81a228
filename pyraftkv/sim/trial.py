"""`Trial`: a simulation for somebody's own application, and `search`, which looks for a seed that breaks it.

A *scenario* is a function that takes a trial, adds machines with programs to it, runs it and asserts what must be so.
A trial is a `Simulation` with what a test needs besides:

- faults by a `Plan`: which kinds, for how long. They befall the members, and the scenario's own machines as far as a
  kind means anything there (`OWN_NEEDS`, `OWN_AIMS`): a worker is paused in the middle of its work as a member is.
- the interpreter's clocks and global randomness under the seed (`pyraftkv.sim.ambient`);
- whatever ends the scenario with an error becomes a `Breakage`, and `shrunk` runs the scenario with fewer and fewer
  faults for one that tells the same story in fewer words.

A scenario is run again and again, so it must make everything it uses anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from dataclasses import field, replace
from math import inf
from pathlib import Path
from types import CoroutineType
from typing import Any, TypeVar

from pyraftkv import errors
from pyraftkv._record import record
from pyraftkv.node.bootstrap import MEMBERS_MAX
from pyraftkv.sim.ambient import ambient
from pyraftkv.sim.check.history import Op
from pyraftkv.sim.check.verdict import Verdict
from pyraftkv.sim.diagram import to_html
from pyraftkv.sim.faults import FAULTS_MAX, Ability, Fault, FaultError
from pyraftkv.sim.kinds import KINDS, Aim, kind_named
from pyraftkv.sim.loop import SimTimeout
from pyraftkv.sim.report import SimFailure
from pyraftkv.sim.schedule import random_faults
from pyraftkv.sim.script import script_lines
from pyraftkv.sim.shrink import shrink
from pyraftkv.sim.simulation import Simulation
from pyraftkv.sim.swarm import Swarm, random_swarm
from pyraftkv.sim.trace import Trace, line_of, moments_of, nearest
from pyraftkv.statemachine import Factories

T = TypeVar("T")

ALL_KINDS = "all"
"""For `Plan.faults`: each seed chooses kinds of its own from all there are, and how the cluster is built."""

FAULTS_PER_SECOND = 0.5
OVERTIME_SECONDS = 120.0
"""How long a scenario may go on after the time of the faults."""
LEADER_SECONDS_MAX = 30.0
POLL_SECONDS = 0.01
SHRINK_RUNS_MAX = 100
STORY_LINES = 25
TELLING = ("note", "role", "crash", "start", "stop", "pause", "resume", "fault", "invoke", "return", "violation")
"""The kinds of events that a report shows; the picture has them all."""
FAULTS_SHOWN_MAX = 20
TEXT_LENGTH_MAX = 500

LIBRARIES = tuple(f"{folder}{os.sep}" for folder in (Path(asyncio.__file__).parent, Path(__file__).parents[1]))
"""A program waits in these for reasons of its own."""

OWN_NEEDS = Ability.PROCESSES | Ability.POWER | Ability.LINKS | Ability.CLOCKS
"""What is done to the machines of a scenario, of all that may be done to members ..."""
OWN_AIMS = (Aim.ONE, Aim.SOME, Aim.MAJORITY)
"""... and how it is aimed."""


@record
class Plan:
    """What every trial of a scenario has in common."""

    members: int = 3
    faults: str | Sequence[str | Fault] = ()
    """Names of kinds (`pyraftkv.sim.kinds.KINDS`), `ALL_KINDS`, or faults to the letter; none by default."""
    seconds: float = 30.0
    """How long faults strike, in virtual time from the start of the run; then they end."""
    faults_per_second: float = FAULTS_PER_SECOND
    """On the members, and as many on the scenario's own machines."""
    is_ready: bool = False
    """Whether the scenario (and the faults) wait until there is a leader."""
    machines: Factories = field(default_factory=dict)
    """State machines of your own that every member has, by name: what makes each of them."""

    def check(self) -> None:
        """Raise `InvalidRequest` for what cannot be, as `FaultError` if it is the faults."""
        if type(self.members) is not int or not 1 <= self.members <= MEMBERS_MAX:
            raise errors.InvalidRequest(f"a cluster has 1 to {MEMBERS_MAX} members, not {self.members!r}")
        self._check_faults()
        if not (0 <= self.seconds < inf and 0 <= self.faults_per_second < inf):
            raise FaultError(f"{self.faults_per_second} faults per second for {self.seconds} s cannot be")
        if self.seconds * self.faults_per_second > FAULTS_MAX:
            raise FaultError(f"{self.seconds * self.faults_per_second:g} faults, over {FAULTS_MAX}")
        kinds = [kind_named(kind) for kind in self.kinds]
        if any(kind.is_fatal for kind in kinds) and any(kind.is_order for kind in kinds):
            raise FaultError(
                "members that are removed, and members that are lost for good, may leave no majority: "
                f"name orders, or {' and '.join(kind.name for kind in kinds if kind.is_fatal)}, not both"
            )

    def _check_faults(self) -> None:
        """See that each of them is one, in an order of its own: a set's is another one in every process."""
        if not isinstance(self.faults, Sequence):
            raise FaultError(f"faults are {ALL_KINDS!r}, or a list of names and records: not {self.faults!r:.100}")
        for each in self.faults:
            if not isinstance(each, str | Fault):
                raise FaultError(f"a fault is the name of a kind, or a `Fault` record: not {each!r:.100}")

    @property
    def kinds(self) -> list[str]:
        """The kinds that are named."""
        if isinstance(self.faults, str):
            return [] if self.faults == ALL_KINDS else [self.faults]
        return [each for each in self.faults if isinstance(each, str)]

    @property
    def script(self) -> list[Fault]:
        """The faults that are given to the letter."""
        return [each for each in self.faults if isinstance(each, Fault)]


@contextlib.contextmanager
def untroubled() -> Generator[None]:
    """Keep members from warning at every start that they listen without TLS: nobody else is on a simulated network."""

    def is_news(message: logging.LogRecord) -> bool:
        return "without TLS" not in str(message.msg)

    transport = logging.getLogger("pyraftkv.transport")
    transport.addFilter(is_news)
    try:
        yield
    finally:
        transport.removeFilter(is_news)


def waiting_at(coroutine: Coroutine[Any, Any, Any]) -> str:
    """Return the line in which a suspended coroutine waits: the innermost that is not a library's."""
    place = "an unknown line"
    at: Any = coroutine
    while isinstance(at, CoroutineType):
        frame = at.cr_frame
        if frame is not None and not frame.f_code.co_filename.startswith(LIBRARIES):
            place = f"{frame.f_code.co_filename}:{frame.f_lineno}, in {frame.f_code.co_name}"
        at = at.cr_await
    return place


class TrialFailure(SimFailure):
    """A trial broke a rule. Its trace is told beside it, not in its words."""

    def __str__(self) -> str:
        return "\n".join([f"{self.rule}: {self.text}", *(f"    {op}" for op in self.ops)])


class Trial(Simulation):
    """A simulation of a cluster with an application: a context manager.

    Args:
        seed: Decides everything.
        plan: What is common to all seeds.
        faults: What befalls it, in place of the seed's choice.

    >>> async def main(sim: Simulation) -> float:
    ...     async with sim.client() as kv:
    ...         await kv.put("greeting", "hello")
    ...     await asyncio.sleep(3600)
    ...     return time.monotonic() // 3600
    >>> with Trial(7) as sim:
    ...     sim.run(main, until=4000)
    1.0
    """

    def __init__(self, seed: int, plan: Plan | None = None, *, faults: Sequence[Fault] | None = None) -> None:
        self.plan = plan or Plan()
        self.plan.check()
        super().__init__(seed, swarm=self._swarm(seed), members=self.plan.members, machines=self.plan.machines)
        self._given = None if faults is None else list(faults)
        self._has_begun = False
        self._injected: list[Fault] = []
        self._injected_at = 0.0

    def _swarm(self, seed: int) -> Swarm:
        if self.plan.faults == ALL_KINDS:
            return random_swarm(self.fork(seed, "swarm"), members=self.plan.members, changes_members=False)
        return Swarm(members=self.plan.members, kinds=tuple(self.plan.kinds))

    @property
    def has_begun(self) -> bool:
        """Whether anything was run."""
        return self._has_begun

    # --- Running ---------------------------------------------------------------------------------------------------

    def run(self, main: Callable[[Any], Coroutine[Any, Any, T]], *, until: float | None = None) -> T:
        """Start every machine, let the faults begin, and run ``main`` to its end, outside of all machines.

        Args:
            main: What is to be done; it gets this simulation.
            until: The virtual time at which it must be over, in seconds; two minutes after the last faults by default.

        Raises:
            SimFailure: An invariant broke, a program failed, or a callback did.
            SimTimeout: ``until`` has come; its note says where ``main`` waits.
            TypeError: ``main`` was called already.
        """
        called: object = main
        if isinstance(called, CoroutineType):
            called.close()
            raise TypeError("`run` takes the function itself, run(main), and calls it with the simulation")
        if until is None:
            until = self.now() + self.plan.seconds + OVERTIME_SECONDS
        began: list[Coroutine[Any, Any, T]] = []

        async def begin(sim: Simulation) -> T:
            if self.plan.is_ready:
                await self._elected()
            if not self._has_begun:
                self._has_begun = True
                self._injected = self.chosen_faults() if self._given is None else self._given
                self._injected_at = self.now()
                self.inject(self._injected)
            began.append(main(sim))
            return await began[0]

        with ambient(self.loop, self.random("ambient")), untroubled():
            try:
                return super().run(begin, until=until)
            except SimTimeout as error:
                for place in map(waiting_at, began):
                    error.add_note(f"`main` waits at {place}")
                raise

    async def _elected(self) -> None:
        gives_up_at = self.now() + LEADER_SECONDS_MAX
        while self.leader is None:
            if self.now() >= gives_up_at:
                raise self.failed("liveness", f"no leader within {LEADER_SECONDS_MAX:g} s")
            await asyncio.sleep(POLL_SECONDS)

    def chosen_faults(self) -> list[Fault]:
        """Return what the plan and the seed have in store for the machines that there are, by time."""
        members = list(self.addresses)
        own = [name for name in self.hosts if name not in self.addresses]
        kinds = [KINDS[name] for name in self.swarm.kinds]
        for_members = tuple(kind.name for kind in kinds if len(members) >= kind.members_min)
        for_own = tuple(kind.name for kind in kinds if kind.needs in OWN_NEEDS and kind.aim in OWN_AIMS)
        found = list(self.plan.script)
        if for_members:
            found += self._draw("faults", for_members, members, own)
        if for_own and own:
            found += self._draw("faults of our own", for_own, own, [])
        return sorted(found, key=lambda fault: fault.at)

    def _draw(self, name: str, kinds: tuple[str, ...], members: list[str], clients: list[str]) -> list[Fault]:
        swarm = Swarm(kinds=kinds, faults_per_second=self.plan.faults_per_second)
        return random_faults(self.random(name), swarm, members=members, clients=clients, seconds=self.plan.seconds)

    @property
    def begun_faults(self) -> list[Fault]:
        """Those of the plan and the seed that have struck by now: what comes later has no part in a failure."""
        return [fault for fault in self._injected if self._injected_at + fault.at <= self.now()]

    # --- For scenarios ---------------------------------------------------------------------------------------------

    def wall_clock(self) -> float:
        """What the wall clock of the machine that asks shows, in seconds since the epoch; `time.time` is the same."""
        return self.loop.current.clock.wall()

    async def healed(self) -> None:
        """Wait until all faults of the plan and the seed are over; it may take the members a moment more to agree."""
        healed_at = self._injected_at + max([fault.ends for fault in self._injected], default=0.0)
        while self.now() < healed_at:  # noqa: ASYNC110 - the clock of the machine that asks may run fast
            await asyncio.sleep(healed_at - self.now())

    def note(self, text: str) -> None:
        """Write something of the application's own into the trace and the picture, at the machine that says it."""
        process = self.loop.current
        host = "" if process is self.loop.harness else process.host_name
        self.trace.add(self.now(), host, "note", text=text)

    def expect(self, verdict: Verdict) -> None:
        """Fail unless a checker found everything right: the run ends here, whoever asks.

        Raises:
            SimFailure: With the operations that the verdict speaks of.
        """
        if not verdict.ok:
            failure = self.failed(verdict.finding.value, verdict.reason, verdict.ops)
            self.end_with(failure)
            raise failure

    def failed(self, rule: str, text: str, ops: Sequence[Op] = ()) -> SimFailure:
        """Return a failure of this run, as of now."""
        failure = super().failed(rule, text, ops)
        return TrialFailure(rule, text, seed=self.seed, faults=self.faults, trace=self.trace, ops=failure.ops)


Scenario = Callable[[Trial], object]
"""Sets a trial up, runs it, and asserts what must be so."""


@record
class Breakage:
    """How a scenario broke under one seed."""

    seed: int
    plan: Plan
    error: BaseException
    faults: list[Fault] = field(default_factory=list)
    """What befell the machines: a list that was shrunk, if it was."""
    trace: Trace = field(default_factory=Trace)
    faults_before: int = 0
    """How many faults there were before shrinking."""
    runs: int = 0
    """How often the scenario ran again to shrink them."""
    is_minimal: bool = False
    """Whether no single fault of these can be missed; false if shrinking was cut short, or has not been tried."""

    @property
    def signature(self) -> tuple[object, ...]:
        """What two breakages share if they are the same: the rule that broke, or the line that raised."""
        if isinstance(self.error, SimFailure):
            return (SimFailure, self.error.rule)
        place: tuple[object, ...] = ()
        at = self.error.__traceback__
        while at is not None:
            place = (at.tb_frame.f_code.co_filename, at.tb_lineno)
            at = at.tb_next
        return (type(self.error), *place)

    def report(self, *, command: str = "", picture: Path | None = None, longer: str = "more time") -> str:
        """Return what a person needs to see it again: the seed, the faults, what happened, the picture.

        Args:
            command: What to type to see it again.
            picture: Where it is.
            longer: What leaves fewer faults, if shrinking was cut short.
        """
        lines = [f"seed: {self.seed}"]
        if command:
            lines.append(f"replay: {command}")
        if picture is not None:
            lines.append(f"picture: {picture}")
        again = f"{self.runs} run{'s' if self.runs > 1 else ''}"
        shrunk = f", shrunk from {self.faults_before} in {again}" if self.runs else ""
        early = f", stopped early: {longer} may leave fewer" if self.runs and not self.is_minimal else ""
        lines.append(f"faults: {len(self.faults)}{shrunk}{early}")
        lines += [f"    {line}" for line in script_lines(self.faults[:FAULTS_SHOWN_MAX])]
        if len(self.faults) > FAULTS_SHOWN_MAX:
            lines.append(f"    ... and {len(self.faults) - FAULTS_SHOWN_MAX} more")
        return "\n".join([*lines, "what happened:", *self.story()])

    def story(self, lines_max: int = STORY_LINES) -> list[str]:
        """Return lines of the trace that tell what happened, around the faults if they are few, and at the end.

        What a healthy cluster does all the time is not among them. A line of three dots stands for others.
        """
        events = list(self.trace.events(TELLING))
        moments = [*moments_of(events), *(event.at for event in events[-1:])]
        lines: list[str] = []
        told = -1
        for place in nearest([event.at for event in events], moments, lines_max):
            if place > told + 1:
                lines.append("        ...")
            lines.append(line_of(events[place]))
            told = place
        return lines

    def html(self, *, title: str = "", command: str = "") -> str:
        """Return the picture: a page for a browser."""
        name = f"{title}, seed {self.seed}" if title else f"seed {self.seed}"
        return to_html(self.trace, title=name, command=command, faults=script_lines(self.faults))


def attempt(scenario: Scenario, seed: int, plan: Plan, *, faults: Sequence[Fault] | None = None) -> Breakage | None:
    """Run a scenario once; return how it broke, if it did."""
    with Trial(seed, plan, faults=faults) as trial:
        try:
            scenario(trial)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            return breakage(trial, error)
    return None


def breakage(trial: Trial, error: BaseException) -> Breakage:
    """Return how a scenario broke that ended with an error; the error gets its mark in the trace."""
    if not isinstance(error, SimFailure):
        words = str(error).strip().partition("\n")[0]
        trial.failed(type(error).__name__, words[:TEXT_LENGTH_MAX] or "without a word")
    faults = trial.begun_faults
    return Breakage(trial.seed, trial.plan, error, faults, trial.trace, len(faults))


def shrunk(
    scenario: Scenario, broken: Breakage, *, runs_max: int = SHRINK_RUNS_MAX, seconds_max: float = inf
) -> Breakage:
    """Return the same breakage with as few faults as are found to be enough.

    Args:
        scenario: What broke.
        broken: How.
        runs_max: How often it is run again, at the most.
        seconds_max: In real time; no run begins after it. How far it gets then depends on the machine.
    """
    best = broken
    began, runs, is_late = time.monotonic(), 0, False

    def fails(faults: list[Fault]) -> bool:
        nonlocal best, runs, is_late
        if is_late or time.monotonic() - began >= seconds_max:
            is_late = True
            return False
        runs += 1
        found = attempt(scenario, broken.seed, broken.plan, faults=faults)
        if found is None or found.signature != broken.signature:
            return False
        best = found
        return True

    is_minimal = not broken.faults or shrink(fails, broken.faults, runs_max=runs_max).is_minimal
    return replace(best, faults_before=len(broken.faults), runs=runs, is_minimal=is_minimal and not is_late)


def search(scenario: Scenario, seeds: Iterable[int], plan: Plan | None = None) -> Breakage | None:
    """Return how the first of the seeds that breaks a scenario does it; None if none of them does."""
    for seed in seeds:
        found = attempt(scenario, seed, plan or Plan())
        if found is not None:
            return found
    return None
