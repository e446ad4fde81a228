"""The long run beside etcd counts what it did, goes on where it stopped, and ends with a difference."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from pyraftkv.store.values import RangeResult
from tests.etcd.gateway import Gateway
from tests.soak.counters import FIRST_SEED
from tests.soak.etcd import EtcdCounters
from tests.soak.etcd import main as soak_etcd


def test_a_run_beside_etcd_goes_on_where_the_last_one_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], etcd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds come one after another, all runs add up, and what differs is counted and shown."""
    monkeypatch.setattr("tests.soak.etcd.running", lambda: nullcontext(etcd))
    path = tmp_path / "etcd.json"
    assert soak_etcd(["--operations=60", "--of-a-seed=40", f"--counters={path}"]) == 0
    assert soak_etcd(["--operations=10", "--of-a-seed=10", f"--counters={path}"]) == 0
    counters = EtcdCounters.load(path)
    assert (counters.next_seed, counters.failures) == (FIRST_SEED + 3, 0)
    assert counters.operations >= 80
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"next is seed {FIRST_SEED + 3}")
    monkeypatch.setattr(Gateway, "read", lambda *_, **__: RangeResult(1, [], more=True, count=7))
    assert soak_etcd(["--operations=1", f"--counters={path}"]) == 1
    counters = EtcdCounters.load(path)
    assert (counters.failures, counters.failed_seeds) == (1, [FIRST_SEED + 3])
    assert "FAILED" in capsys.readouterr().out
