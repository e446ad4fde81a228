"""A seed is one run: in this interpreter and in another one, with other hashes and other addresses.

Every tenth of the seeds that `tests.sim.test_seeds` runs: twenty of two hundred.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pyraftkv.sim.run import simulate
from tests.sim.test_seeds import COUNT, FIRST, SECONDS
from tests.soak.runner import Plan, run_process

HASH_SEED = 4711
"""Of the other interpreter."""


def digest_elsewhere(seed: int, *, seconds: float, out: Path) -> str:
    """Run a seed in a fresh interpreter; return the hash of its trace."""
    told, failure = run_process(Plan(seconds=seconds, out=out), seed, hash_seed=HASH_SEED, digest=True)
    assert failure == ""
    digest: str = told["digest"]
    return digest


@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT, 10))
def test_a_seed_repeats_itself_elsewhere(seed: int, tmp_path: Path) -> None:
    """Every event, at the same time."""
    assert digest_elsewhere(seed, seconds=SECONDS, out=tmp_path) == simulate(seed, seconds=SECONDS).digest


def test_a_graceful_stop_repeats_itself_elsewhere(tmp_path: Path) -> None:
    """A member that shuts down ends its tasks and its connections in an order that does not depend on addresses."""
    report = simulate(1000, seconds=2.0)
    assert report.faults == {"shut_down_leader": 1}
    assert digest_elsewhere(1000, seconds=2.0, out=tmp_path) == report.digest
