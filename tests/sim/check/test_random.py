"""Both checkers on random histories of the real store: they must approve of them, and agree when one is spoilt."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyraftkv.sim.check import Finding, check_linearizable, check_revisions, check_watches
from tests.sim.check.executions import MUTATORS, WATCH_MUTATORS, execution, lost_answer

EXAMPLES = 150
SEEDS = st.integers(min_value=0, max_value=1 << 32)


@settings(max_examples=EXAMPLES)
@given(seed=SEEDS, count=st.integers(1, 40))
def test_what_the_store_does_is_right(seed: int, count: int) -> None:
    """Whatever the intervals, and whoever is not told."""
    history = execution(Random(seed), count)
    assert Finding.RIGHT is check_revisions(history).finding, check_revisions(history)
    assert Finding.RIGHT is check_watches(history).finding, check_watches(history)
    assert Finding.RIGHT is check_linearizable(history).finding, check_linearizable(history)
    assert Finding.RIGHT is check_linearizable(history, per_key=True).finding


@settings(max_examples=EXAMPLES)
@given(seed=SEEDS, count=st.integers(2, 25), mutator=st.sampled_from(MUTATORS))
def test_the_checkers_agree_on_what_was_spoilt(seed: int, count: int, mutator) -> None:
    """What the replay finds wrong has no order, and what has none the replay finds wrong; watches left out."""
    random = Random(seed)
    history = execution(random, count)
    history.watches.clear()
    if not mutator(random, history):
        return
    replayed, searched = check_revisions(history), check_linearizable(history)
    assert searched.finding is replayed.finding, f"{replayed}\n{searched}"
    if mutator is lost_answer:
        assert Finding.RIGHT is replayed.finding, replayed


@pytest.mark.parametrize("mutator", [each for each in MUTATORS if each is not lost_answer])
def test_each_fault_is_caught_now_and_then(mutator) -> None:
    """No fault is always legal."""
    caught = 0
    for seed in range(20):
        random = Random(seed)
        history = execution(random, 30, unknown=0.05)
        caught += mutator(random, history) and check_revisions(history).finding is Finding.WRONG
    assert caught >= 15, f"{caught} of 20 seeds"


@settings(max_examples=EXAMPLES)
@given(seed=SEEDS, mutator=st.sampled_from(WATCH_MUTATORS))
def test_a_spoilt_watch_is_always_caught(seed: int, mutator) -> None:
    """Its deliveries end with the promise to be complete up to a revision, so nothing can be missing."""
    random = Random(seed)
    history = execution(random, 25, unknown=0.0)  # else what only the watch has shown may not have happened
    if mutator(random, history):
        assert Finding.WRONG is check_watches(history).finding


@settings(max_examples=EXAMPLES)
@given(seed=SEEDS, count=st.integers(1, 30))
def test_what_the_store_does_with_leases_is_right(seed: int, count: int) -> None:
    """Whoever is not told of a grant, of a put under it, or of its end."""
    history = execution(Random(seed), count, leased=0.4)
    assert Finding.RIGHT is check_revisions(history).finding, check_revisions(history)
    assert Finding.RIGHT is check_watches(history).finding, check_watches(history)
    assert Finding.RIGHT is check_linearizable(history).finding, check_linearizable(history)
    assert Finding.RIGHT is check_linearizable(history, per_key=True).finding
