"""State machines in a simulated run: who calls them (`Caller`), and what their answers are held to (`Calls`).

Three machines stand beside the store: a list of names (an own machine), a counter and a queue (collections). Each name
and each item of the queue is given once. So what a machine is at the end tells of every operation whether and where in
the order it was applied, and nothing has to be searched for:

- *Once.* What was answered was applied, once, at the place that the answer tells. What was refused was not applied.
  What nobody heard of was applied once or not at all.
- *In order.* What was answered before another one was asked for stands before it; a question sees all that was answered
  before it, and nothing that was asked for after its answer. Together with the above that is linearizability: the place
  in the order is a point between the two at which each can have happened.
- *Equal.* All members' machines are the same at the same entry (`Run` compares them with the rest of what members are).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from random import Random
from typing import Any, TypeVar

from pyraftkv import errors
from pyraftkv.engine import Engine
from pyraftkv.machines import Machine, Machines
from pyraftkv.replicated import ReplicatedCounter, ReplicatedQueue
from pyraftkv.sim.check.history import Outcome
from pyraftkv.statemachine import Factories, operation, query

R = TypeVar("R")

CALLS_PER_SECOND = 2.0
"""Of each caller, as far as the cluster keeps up."""

QUESTIONS_SHARE = 0.2
"""Of the calls: they change nothing."""


class NamesMachine(Machine):
    """Names, in the order in which they came."""

    def __init__(self) -> None:
        self._names: list[str] = []

    @operation
    def add(self, name: str) -> int:
        """Add a name; return its place, from 1 on."""
        self._names.append(name)
        return len(self._names)

    @query
    def count(self) -> int:
        """Return how many there are."""
        return len(self._names)

    def rows(self) -> list[Any]:
        return list(self._names)

    def load(self, rows: list[Any]) -> None:
        self._names += rows


FACTORIES: Factories = {
    "names": NamesMachine,
    "counter": ReplicatedCounter.machine,
    "queue": ReplicatedQueue.machine,
}
"""The machines of a run in which they are called."""


@dataclass(slots=True, eq=False)
class Call:
    """One call of a machine."""

    what: str
    """"name", "count names", "add", "read", "put" or "take"."""
    token: str
    """What it adds or puts; no other call has the same."""
    began: int
    """Its place among all beginnings and ends."""
    ended: float = inf
    outcome: Outcome = Outcome.UNKNOWN
    answer: Any = None


class Calls:
    """Every call of a run.

    >>> calls = Calls()
    >>> first, second = calls.begin("add", "a"), calls.begin("add", "b")
    >>> calls.answered(first, 1)
    >>> list(calls.complaints(names=[], counter=2, queue=[]))
    []
    >>> calls.answered(second, 1)
    >>> list(calls.complaints(names=[], counter=2, queue=[]))
    ['add a and add b have the same place 1']
    """

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._events = 0

    def __len__(self) -> int:
        return len(self._calls)

    def begin(self, what: str, token: str) -> Call:
        """A call is about to be made."""
        call = Call(what, token, self._event())
        self._calls.append(call)
        return call

    def answered(self, call: Call, answer: Any) -> None:
        """It was answered now."""
        call.outcome, call.answer, call.ended = Outcome.OK, answer, self._event()

    def refused(self, call: Call) -> None:
        """It was not applied, and never will be."""
        call.outcome, call.ended = Outcome.FAILED, self._event()

    def _event(self) -> int:
        self._events += 1
        return self._events

    def complaints(self, *, names: Sequence[str], counter: int, queue: Sequence[str]) -> Iterator[str]:
        """Yield what is wrong, given what the machines are at the end. O(n log n), the queue O(n^2)."""
        yield from self._complaints_of_names(names)
        yield from self._complaints_of_counter(counter)
        yield from self._complaints_of_queue(queue)

    def _of(self, what: str, *outcomes: Outcome) -> list[Call]:
        return [call for call in self._calls if call.what == what and (not outcomes or call.outcome in outcomes)]

    def _complaints_of_names(self, names: Sequence[str]) -> Iterator[str]:
        places = {name: place for place, name in enumerate(names, 1)}
        if len(places) < len(names):
            yield f"of {len(names)} names {len(names) - len(places)} are there twice"
        applied: list[tuple[float, Call]] = []
        for call in self._of("name"):
            place = places.pop(call.token, 0)
            if call.outcome is Outcome.OK and call.answer != place:
                yield f"name {call.token} was given place {call.answer}, and has {place or 'none'}"
            if call.outcome is Outcome.FAILED and place:
                yield f"name {call.token} was refused, and is there"
            if place:
                applied.append((place, call))
        for name in places:
            yield f"nobody gave the name {name}"
        yield from _out_of_order([*applied, *self._questions("count names")])

    def _complaints_of_counter(self, counter: int) -> Iterator[str]:
        answered = self._of("add", Outcome.OK)
        by_place: dict[int, Call] = {}
        for call in answered:
            other = by_place.setdefault(call.answer, call)
            if other is not call:
                yield f"add {other.token} and add {call.token} have the same place {call.answer}"
        known, unknown = len(answered), len(self._of("add", Outcome.UNKNOWN))
        if not known <= counter <= known + unknown:
            yield f"the counter is {counter}: {known} additions were answered, of {unknown} nobody knows"
        yield from _out_of_order([*((call.answer, call) for call in answered), *self._questions("read")])

    def _questions(self, what: str) -> Iterable[tuple[float, Call]]:
        """Return questions with their places in the order: right after the last that they have seen."""
        return ((call.answer + 0.5, call) for call in self._of(what, Outcome.OK))

    def _complaints_of_queue(self, queue: Sequence[str]) -> Iterator[str]:
        takes = {call.answer: call for call in self._of("take", Outcome.OK) if call.answer is not None}
        there = [*takes, *queue]
        if len(there) > len(set(there)) or len(takes) < sum(
            call.answer is not None for call in self._of("take", Outcome.OK)
        ):
            yield "an item was taken twice, or was taken and is there"
        puts = {call.token: call for call in self._of("put")}
        for item in there:
            if item not in puts or puts[item].outcome is Outcome.FAILED:
                yield f"item {item} is there, and nobody put it in"
        lost = [call.token for call in puts.values() if call.outcome is Outcome.OK and call.token not in set(there)]
        unknown = len(self._of("take", Outcome.UNKNOWN))
        if len(lost) > unknown:
            yield f"{len(lost)} items were lost, as {lost[0]}, and of {unknown} takes nobody knows what they took"
        taken = [(puts[item], take) for item, take in takes.items() if item in puts]
        for earlier, first in taken:
            for later, second in taken:
                if earlier.ended < later.began and second.ended < first.began:
                    yield f"item {later.token} was taken before {earlier.token}, which was there first"


def _out_of_order(placed: Iterable[tuple[float, Call]]) -> Iterator[str]:
    """Yield calls that stand behind one that was asked for only after their own answer."""
    soonest, last = inf, None
    for _, call in sorted(placed, key=lambda each: (each[0], each[1].began), reverse=True):  # questions may share one
        if call.began > soonest:
            assert last is not None
            yield f"{call.what} {call.token} comes before {last.what} {last.token}, which had its answer before"
        if call.ended < soonest:
            soonest, last = call.ended, call


def state_of(machines: Machines) -> list[object]:
    """Return what members' machines share if they are equal."""
    return [(row, list(chunks)) for row, chunks in machines.pin()]


def complaints(calls: Calls, machines: Machines) -> Iterator[str]:
    """Yield what is wrong with the calls of a run, given the machines of a member at its end."""
    rows: dict[str, list[Any]] = {name: [] for name in FACTORIES}
    for (name, *_), chunks in machines.pin():
        machine = FACTORIES[name]()
        for chunk in chunks:
            machine.restore(chunk)
        assert isinstance(machine, Machine)
        rows[name] = machine.rows()
    counter = rows["counter"][0] if rows["counter"] else 0
    yield from calls.complaints(names=rows["names"], counter=counter, queue=rows["queue"])


class Caller:
    """Calls the machines, one call after the other.

    Args:
        kv: Whom to ask.
        name: Which caller this is; makes names and items unique.
        random: When, and what.
        calls: Is told of every call.
        timeout: Of every call, in seconds.
        is_over: Whether it is time to stop.
    """

    def __init__(
        self, kv: Engine, name: str, *, random: Random, calls: Calls, timeout: float, is_over: Callable[[], bool]
    ) -> None:
        self._name = name
        self._random = random
        self._calls = calls
        self._timeout = timeout
        self._is_over = is_over
        self._count = 0
        self._names = kv.machine("names")
        self._counter = ReplicatedCounter(kv, "counter", timeout=timeout)
        self._queue = ReplicatedQueue(kv, "queue", timeout=timeout)

    async def run(self) -> None:
        """Call until it is over."""
        while not self._is_over():
            await asyncio.sleep(self._random.expovariate(CALLS_PER_SECOND))
            try:
                await self._call()
            except errors.Closed:
                return
            except errors.PyraftkvError:
                pass  # what came of it is noted

    async def _call(self) -> None:
        self._count += 1
        token, names, timeout = f"{self._name}.{self._count}", self._names, self._timeout
        which, is_question = self._random.randrange(3), self._random.random() < QUESTIONS_SHARE
        if which == 0 and is_question:
            await self._noted("count names", token, lambda: names.query("count", timeout=timeout))
        elif which == 0:
            await self._noted("name", token, lambda: names.call("add", token, timeout=timeout))
        elif which == 1 and is_question:
            await self._noted("read", token, self._counter.get)
        elif which == 1:
            await self._noted("add", token, self._counter.add)
        elif self._random.random() < 0.5:
            await self._noted("put", token, lambda: self._queue.put(token))
        else:
            await self._noted("take", token, self._queue.get)

    async def _noted(self, what: str, token: str, work: Callable[[], Awaitable[R]]) -> None:
        call = self._calls.begin(what, token)
        try:
            answer = await work()
        except errors.NotApplied:
            self._calls.refused(call)
            raise
        self._calls.answered(call, answer)
