from collections.abc import Callable
from random import Random

import pytest

from pyraftkv.sim.faults import BESIDE, Fault
from pyraftkv.sim.shrink import SECONDS_MIN, shrink

CROWD = [Fault(float(n) + 0.123, "kill", ("n1", "n2"), 1.234, 0.0, n + 1) for n in range(64)]


def needs(*seconds: int) -> Callable[[list[Fault]], bool]:
    """Return a verdict: fails if something strikes in each of these whole seconds."""
    return lambda faults: set(seconds) <= {int(fault.at) for fault in faults}


@pytest.mark.parametrize("wanted", [(0,), (63,), (31, 32), (5, 40, 41), (1, 20, 30, 50)])
def test_only_what_matters_is_left(wanted: tuple[int, ...]) -> None:
    """Of sixty-four faults those remain without which the run passes, in a small part of all possible runs."""
    shrunk = shrink(needs(*wanted), CROWD)
    assert [int(fault.at) for fault in shrunk.faults] == list(wanted)
    assert shrunk.is_minimal
    assert shrunk.runs <= 30 + 32 * len(wanted)


def test_what_is_left_is_made_plain() -> None:
    """One victim, a round time, the shortest duration, and no luck: as far as the run still fails."""
    (plain,) = shrink(needs(7), CROWD).faults
    assert plain == Fault(7.0, "kill", ("n2",), plain.seconds)
    assert SECONDS_MIN <= plain.seconds < 3 * SECONDS_MIN


def test_what_matters_of_a_fault_stays() -> None:
    """A duration, a victim, a seed or an amount without which the run passes is kept."""
    fault = Fault(3.21, "delay", ("n1", "n2", BESIDE, "n3"), 4.0, 0.25, 99)

    def fails(faults: list[Fault]) -> bool:
        return any(
            each.seconds >= 1.7 and each.amount == 0.25 and each.seed == 99 and each.targets[-2:] == (BESIDE, "n3")
            for each in faults
        )

    (plain,) = shrink(fails, [fault]).faults
    assert plain == Fault(3.0, "delay", ("n2", BESIDE, "n3"), 2.0, 0.25, 99)


def test_no_group_is_emptied() -> None:
    """The last of a group stays: a partition of one side is another fault."""
    (plain,) = shrink(bool, [Fault(1.0, "partition", ("n1", "n2", BESIDE, "n3"), 1.0)]).faults
    assert plain.targets == ("n2", BESIDE, "n3")


def test_nothing_gets_later_or_longer() -> None:
    """A fault that ended within its phase still does."""
    for seed in range(20):
        random = Random(seed)
        faults = [Fault(random.uniform(0, 9), "kill", ("n1",), random.uniform(0, 3)) for _ in range(5)]
        kept = random.sample(faults, 2)

        def fails(tried: list[Fault], kept: list[Fault] = kept) -> bool:
            return all(any(abs(each.at - fault.at) < 0.3 for each in tried) for fault in kept)

        shrunk = shrink(fails, faults)
        assert fails(shrunk.faults)
        assert max(fault.ends for fault in shrunk.faults) <= max(fault.ends for fault in faults)


def test_times_are_rounded_down() -> None:
    """A fault shortly before the end of its phase is not rounded out of it."""
    (plain,) = shrink(lambda faults: any(fault.at >= 29.5 for fault in faults), [Fault(29.97, "reset")]).faults
    assert plain.at == 29.9


def test_what_is_plainer_may_need_less_company() -> None:
    """After faults were made plainer it is tried again to leave some out."""

    def fails(faults: list[Fault]) -> bool:
        return len(faults) >= 3 or any(fault.at.is_integer() for fault in faults)

    shrunk = shrink(fails, [Fault(0.5 + number, "kill", (), 1.0) for number in range(9)])
    assert len(shrunk.faults) == 1


def test_a_run_that_fails_without_faults_needs_none() -> None:
    """The first try is the empty list, and there is nothing to do after it."""
    shrunk = shrink(lambda _: True, CROWD)
    assert (shrunk.faults, shrunk.runs, shrunk.is_minimal) == ([], 1, True)


def test_the_budget_is_kept() -> None:
    """When the runs are used up the best list so far comes back, and says that it may not be the shortest."""
    for runs_max in (0, 1, 5, 20):
        tried: list[list[Fault]] = []

        def fails(faults: list[Fault], tried: list[list[Fault]] = tried) -> bool:
            tried.append(faults)
            return needs(3, 60)(faults)

        shrunk = shrink(fails, CROWD, runs_max=runs_max)
        assert len(tried) == shrunk.runs == runs_max
        assert not shrunk.is_minimal
        assert needs(3, 60)(shrunk.faults)


def test_no_list_is_tried_twice_and_the_way_is_always_the_same() -> None:
    """Runs are dear: no verdict is asked for again. The same verdicts lead the same way."""
    ways = []
    for _ in range(2):
        tried: list[str] = []

        def fails(faults: list[Fault], tried: list[str] = tried) -> bool:
            tried.append(repr(faults))
            return needs(3, 33, 60)(faults)

        shrink(fails, CROWD)
        assert len(set(tried)) == len(tried)
        ways.append(tried)
    assert ways[0] == ways[1]


def test_verdicts_that_depend_on_company_are_followed() -> None:
    """Where faults are only harmful together with any of some others, one such pair is left, and no less."""

    def fails(faults: list[Fault]) -> bool:
        odd = [fault for fault in faults if int(fault.at) % 2]
        return len(odd) >= 2 and any(int(fault.at) in {10, 20} for fault in faults)

    shrunk = shrink(fails, CROWD)
    assert fails(shrunk.faults)
    assert len(shrunk.faults) == 3
