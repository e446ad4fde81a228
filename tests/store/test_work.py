from __future__ import annotations

import pytest

from pyraftkv.errors import KeyNotFound
from pyraftkv.store.work import SlicedWork, Steps


def count_to(stop: int) -> Steps[str]:
    """Yield a cost of 1, ``stop`` times."""
    for _ in range(stop):
        yield 1
    return "done"


@pytest.mark.parametrize(("budget", "steps"), [(1, 8), (2, 4), (3, 3), (100, 1)])
def test_budget(budget, steps):
    """A step goes on until its budget is spent; the last one returns the result."""
    work = SlicedWork(count_to(7))

    assert [work.step(budget) for _ in range(steps)] == [None] * (steps - 1) + ["done"]


def test_finished_work_is_not_stepped():
    """Stepping on after the result is a bug of the caller."""
    work = SlicedWork(count_to(0))
    assert work.step(1) == "done"

    with pytest.raises(AssertionError, match="finished"):
        work.step(1)
    with pytest.raises(AssertionError):
        SlicedWork(count_to(1)).step(0)


def test_work_that_raises_is_finished():
    """An error ends the work."""

    def fail() -> Steps[str]:
        yield 1
        raise KeyNotFound

    work = SlicedWork(fail())
    assert work.step(1) is None
    with pytest.raises(KeyNotFound):
        work.step(1)
    with pytest.raises(AssertionError, match="finished"):
        work.step(1)
