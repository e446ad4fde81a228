"""The store and a real etcd give the same answers, to the last field, but for a table of differences."""

from __future__ import annotations

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.etcd.differences import REWRITTEN
from tests.etcd.pair import Pair

OPERATIONS = 17_000
"""Hypothesis does some thousand more."""


def run(port: int, seed: int, operations: int) -> Pair:
    """Do so many random operations on both."""
    pair = Pair(port, Random(seed))
    try:
        pair.run(operations)
    except BaseException as error:
        error.add_note(f"seed {seed}, after {pair.operations} operations")
        raise
    return pair


def test_the_store_answers_as_etcd_does(etcd: int, soak: bool) -> None:
    """Whatever is asked, in whatever order: key-value, transactions, compaction and watches, mixed."""
    pairs = [run(etcd, seed, OPERATIONS // 4) for seed in range(40 if soak else 4)]
    assert sum(pair.operations for pair in pairs) >= OPERATIONS
    for name in REWRITTEN - {"compact zero"}:
        assert any(pair.met[name] for pair in pairs), f"{name} was never met"


def test_hypothesis_finds_no_difference(etcd: int) -> None:
    """The same, with steps that Hypothesis can shorten to the fewest that differ."""

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair(etcd, Random(0))

        @rule(rng=st.randoms(use_true_random=False))
        def command(self, rng: Random) -> None:
            self.pair.rng = rng
            self.pair.command()

        @rule(rng=st.randoms(use_true_random=False))
        def read(self, rng: Random) -> None:
            self.pair.rng = rng
            self.pair.query()

        @rule(rng=st.randoms(use_true_random=False), action=st.sampled_from(["watch", "unwatch", "drain", "compact"]))
        def act(self, rng: Random, action: str) -> None:
            self.pair.rng = rng
            getattr(self.pair, action)()

        def teardown(self) -> None:
            self.pair.rng = Random(0)  # the other one may have said all that it had to
            self.pair.close()

    run_state_machine_as_test(Machine, settings=settings(settings.default, stateful_step_count=30))
