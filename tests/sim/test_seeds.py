"""Whole runs: random clusters, workloads and faults, every check on. `make soak MINUTES=60` runs seeds that are new."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyraftkv.sim.kinds import KINDS
from tests.soak.__main__ import summary
from tests.soak.counters import Counters
from tests.soak.runner import ROOT, Ending, Plan, run_seeds

SEEDS = int(os.environ.get("PYRAFTKV_SIM_SEEDS", "200"))
"""Fewer are for whoever edits the simulator; what must hold over many seeds is then not asked for."""

FIRST_SEED = 1
SECONDS = 30.0
PAIR_EVERY = 10

KINDS_MIN = 25
"""So many kinds of fault must have struck somewhere, or the schedule is not what it says."""

OPERATIONS_MIN = 20.0
"""Answered operations per virtual second, over all seeds: nearly half of what is asked, whatever befalls them."""


@pytest.mark.timeout(1800)
def test_no_seed_breaks_a_rule(tmp_path: Path, report: Callable[[str], None]) -> None:
    """Nothing wrong is ever seen, a healed majority goes on, and a seed is the same run wherever it is run."""
    counters = Counters(next_seed=FIRST_SEED)
    plan = Plan(seconds=SECONDS, out=ROOT / ".raft", seeds_max=SEEDS, jobs=os.cpu_count() or 1, pair_every=PAIR_EVERY)
    began = time.monotonic()
    results = list(run_seeds(plan, counters, tmp_path / "counters.json", Ending()))
    report(summary(results, counters, real_seconds=time.monotonic() - began)[0])
    assert [result.line for result in results if result.failure] == []
    assert counters.pairs == SEEDS // PAIR_EVERY
    assert counters.virtual_seconds >= SEEDS * SECONDS
    assert counters.operations >= OPERATIONS_MIN * counters.virtual_seconds
    if SEEDS >= 200:
        assert len(counters.faults) >= KINDS_MIN
        assert counters.faults.keys() <= KINDS.keys()
