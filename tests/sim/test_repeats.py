"""A seed is one run, with other hashes and other addresses too; `tests.sim.test_seeds` sees that of random seeds."""

from __future__ import annotations

from pathlib import Path

from pyraftkv.sim.run import simulate
from pyraftkv.sim.script import parse_script
from tests.soak.runner import Plan, run_process

HASH_SEED = 4711
"""Of the other interpreter."""

GRACEFUL = """\
at 500ms for 300ms shut_down_leader leader
at 1s for 300ms shut_down_leader leader
"""


def test_a_graceful_stop_repeats_itself_elsewhere(tmp_path: Path) -> None:
    """A member that shuts down ends its tasks and its connections in an order that does not depend on addresses."""
    script = tmp_path / "faults.txt"
    script.write_text(GRACEFUL, encoding="utf-8")
    report = simulate(4, seconds=2.0, faults=parse_script(GRACEFUL))
    assert report.faults == {"shut_down_leader": 2}
    assert report.members > 1
    plan = Plan(seconds=2.0, out=tmp_path, script=script)
    told, failure = run_process(plan, 4, hash_seed=HASH_SEED, digest=True)
    assert (failure, told["digest"]) == ("", report.digest)
