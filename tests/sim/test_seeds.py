"""Whole runs: random clusters, workloads and faults, every check on.

How many seeds, from where and for how long is set by the environment; the default is what an edit can wait for.
"""

from __future__ import annotations

import os

import pytest

from pyraftkv.sim.run import simulate

FIRST = int(os.environ.get("PYRAFTKV_SIM_FIRST", "1"))
COUNT = int(os.environ.get("PYRAFTKV_SIM_SEEDS", "6"))
SECONDS = float(os.environ.get("PYRAFTKV_SIM_SECONDS", "8"))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_a_seed_breaks_no_rule(seed: int) -> None:
    """Nothing wrong is ever seen, and a healed majority goes on."""
    report = simulate(seed, seconds=SECONDS)
    assert report.liveness_seconds > 0, report
    assert report.virtual_seconds >= SECONDS, report
