"""The store and a real etcd give the same answers, to the last field, but for a table of differences."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.etcd.pair import Pair

SEEDS = 4
OPERATIONS = 4_500
"""Under each seed; Hypothesis does some thousand more, and 20,000 it shall be."""

RANDOMS = st.randoms(use_true_random=True)
"""Hypothesis chooses the seed of a step, and shortens to few steps: each number in it would take ten times as long."""


def run(port: int, seed: int, operations: int) -> Pair:
    """Do so many random operations on both."""
    pair = Pair(port, Random(seed))
    try:
        pair.run(operations)
    except BaseException as error:
        error.add_note(f"seed {seed}, after {pair.operations} operations")
        raise
    return pair


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_store_answers_as_etcd_does(etcd: int, soak: bool, seed: int) -> None:
    """Whatever is asked, in whatever order: key-value, transactions, leases, compaction and watches, mixed."""
    for number in range(seed, 40 if soak else SEEDS, SEEDS):
        pair = run(etcd, number, OPERATIONS)
        assert min(pair.met[name] for name in ("nested revision", "ties", "lease of keys only")) > 0


@pytest.mark.timeout(3_600)
def test_hypothesis_finds_no_difference(etcd: int) -> None:
    """The same, with steps that Hypothesis can shorten to the fewest that differ."""

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair(etcd, Random(0))

        @rule(rng=RANDOMS)
        def command(self, rng: Random) -> None:
            self.pair.rng = rng
            self.pair.command()

        @rule(rng=RANDOMS)
        def read(self, rng: Random) -> None:
            self.pair.rng = rng
            self.pair.query()

        @rule(rng=RANDOMS, action=st.sampled_from(["watch", "unwatch", "drain", "compact"]))
        def act(self, rng: Random, action: str) -> None:
            self.pair.rng = rng
            getattr(self.pair, action)()

        def teardown(self) -> None:
            self.pair.close()

    run_state_machine_as_test(Machine, settings=settings(settings.default, stateful_step_count=30))
