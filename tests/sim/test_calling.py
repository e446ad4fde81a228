"""State machines in random runs: what their answers are held to, and that a run calls them."""

from __future__ import annotations

import pytest

from pyraftkv.sim.calling import Calls
from pyraftkv.sim.check import Outcome
from pyraftkv.sim.report import SimFailure
from pyraftkv.sim.run import Run
from pyraftkv.sim.swarm import Swarm, Workload, with_callers


class Told:
    """Calls that are answered, refused or forgotten one after the other."""

    def __init__(self) -> None:
        self.calls = Calls()
        self._count = 0

    def __call__(self, what: str, answer: object = ..., *, token: str = "") -> str:
        """Make a call and have it answered; with no answer, nobody hears of it. Return its token."""
        self._count += 1
        call = self.calls.begin(what, token or str(self._count))
        if isinstance(answer, Exception):
            self.calls.refused(call)
        elif answer is not ...:
            self.calls.answered(call, answer)
        return call.token

    def says(self, *, names: list[str] | None = None, counter: int = 0, queue: list[str] | None = None) -> str:
        """Return the first complaint, given what the machines are at the end."""
        return next(self.calls.complaints(names=names or [], counter=counter, queue=queue or []), "")


REFUSED = LookupError()


def test_names_are_there_once_and_where_it_was_said() -> None:
    """Those of unknown outcome once or not at all, those that were refused not at all."""
    told = Told()
    a, b, c = told("name", 1), told("name"), told("name", REFUSED)
    assert told.says(names=[a]) == told.says(names=[a, b]) == ""
    assert "there twice" in told.says(names=[a, b, b])
    assert "has none" in told.says(names=[b])
    assert "has 2" in told.says(names=[b, a])
    assert "was refused" in told.says(names=[a, c])
    assert "nobody gave" in told.says(names=[a, "?"])


def test_what_was_answered_before_another_was_asked_for_stands_before_it() -> None:
    """Whether or not the other was answered; and a question is one of them."""
    told = Told()
    a, b = told("name", 2), told("name")
    assert "comes before" in told.says(names=[b, a])
    told = Told()
    a = told("name", 1)
    told("count names", 0)
    assert "comes before" in told.says(names=[a])
    told = Told()
    a = told("name", 1)
    told("count names", 1)
    told("count names", 1)
    assert told.says(names=[a]) == ""


def test_a_question_sees_nothing_that_is_asked_for_later() -> None:
    """And nothing less than the question before."""
    told = Told()
    told("read", 1)
    told("add", 1)
    assert "comes before" in told.says(counter=1)
    told = Told()
    told("add")
    told("read", 1)
    told("read", 0)
    assert "comes before" in told.says(counter=1)


def test_a_counter_counts_each_addition_once() -> None:
    """At most those of unknown outcome may be missing."""
    told = Told()
    told("add", 1)
    told("add")
    assert told.says(counter=1) == told.says(counter=2) == ""
    assert "1 additions" in told.says(counter=0)
    assert "1 additions" in told.says(counter=3)
    told("add", 1)
    assert "the same place" in told.says(counter=2)


def test_an_item_is_taken_once_and_in_order_and_none_is_lost() -> None:
    """But by a take of which nobody knows what it took."""
    told = Told()
    a, b, c = told("put", True), told("put", True), told("put", REFUSED)
    assert told.says(queue=[a, b]) == ""
    assert "lost" in told.says(queue=[a])
    assert "nobody put" in told.says(queue=[a, b, c])
    told("take")
    assert told.says(queue=[b]) == ""
    told("take", None)
    told("take", b)
    assert "taken twice" in told.says(queue=[a, b])
    told("take", a)
    assert "there first" in told.says()
    told("take", a)
    assert "taken twice" in told.says()


def test_machines_are_called_in_a_run_and_judged_at_its_end() -> None:
    """Under faults: some calls are answered, and what all members have at the end is what these say."""
    swarm = Swarm(workload=Workload(operations_per_second=10), kinds=("kill", "partition"), faults_per_second=0.5)
    with Run(4, seconds=10, swarm=with_callers(swarm, 2)) as run:
        run.run()
        calls = run.calls._calls
    assert {call.what for call in calls if call.outcome is Outcome.OK} == {
        "name",
        "count names",
        "add",
        "read",
        "put",
        "take",
    }
    assert len(calls) > 50


def test_a_run_fails_if_its_machines_are_not_what_was_answered() -> None:
    """Here by a call that nobody made."""
    run = Run(4, seconds=4, swarm=with_callers(Swarm(workload=Workload(operations_per_second=10)), 1))
    run.calls.answered(run.calls.begin("name", "nobody's"), 1)
    with run, pytest.raises(SimFailure, match="nobody's was given place 1"):
        run.run()
