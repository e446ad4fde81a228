"""A seed is one run: in this interpreter and in another one, with other hashes and other addresses.

Every tenth of the seeds that `tests.sim.test_seeds` runs: twenty of two hundred.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pyraftkv.sim.run import simulate
from pyraftkv.sim.script import parse_script
from tests.sim.test_seeds import COUNT, FIRST, SECONDS
from tests.soak.runner import Plan, run_process

HASH_SEED = 4711
"""Of the other interpreter."""


GRACEFUL = """\
at 500ms for 300ms shut_down_leader leader
at 1s for 300ms shut_down_leader leader
"""


def digest_elsewhere(seed: int, *, seconds: float, out: Path, script: Path | None = None) -> str:
    """Run a seed in a fresh interpreter; return the hash of its trace."""
    plan = Plan(seconds=seconds, out=out, script=script)
    told, failure = run_process(plan, seed, hash_seed=HASH_SEED, digest=True)
    assert failure == ""
    digest: str = told["digest"]
    return digest


@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT, 10))
def test_a_seed_repeats_itself_elsewhere(seed: int, tmp_path: Path) -> None:
    """Every event, at the same time."""
    assert digest_elsewhere(seed, seconds=SECONDS, out=tmp_path) == simulate(seed, seconds=SECONDS).digest


def test_a_graceful_stop_repeats_itself_elsewhere(tmp_path: Path) -> None:
    """A member that shuts down ends its tasks and its connections in an order that does not depend on addresses."""
    script = tmp_path / "faults.txt"
    script.write_text(GRACEFUL, encoding="utf-8")
    report = simulate(4, seconds=2.0, faults=parse_script(GRACEFUL))
    assert report.faults == {"shut_down_leader": 2}
    assert report.members > 1
    assert digest_elsewhere(4, seconds=2.0, out=tmp_path, script=script) == report.digest
