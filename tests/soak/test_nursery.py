"""A child of an interpreter that has imported everything does what a new interpreter does."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.soak.nursery import Nursery
from tests.soak.runner import MODULE, Plan, run_process

SEED = 1001


def test_a_seed_is_the_same_in_a_nursery(tmp_path: Path) -> None:
    """Also after others that took too long or broke in the same nursery: they are processes of their own."""
    plan = Plan(seconds=0.5, out=tmp_path)
    alone, failure = run_process(plan, SEED, hash_seed=7, digest=True)
    assert not failure
    with Nursery(MODULE, {**os.environ, "PYTHONHASHSEED": "0"}) as nursery:
        arguments = [str(SEED), "--seconds=0.5", f"--out={tmp_path}", "--digest"]
        with pytest.raises(subprocess.TimeoutExpired):
            nursery.run(arguments, seconds_max=0.01)
        broken = nursery.run([*arguments, f"--script={tmp_path / 'missing'}"], seconds_max=60.0)
        assert (broken.returncode, broken.stdout) == (1, "")
        assert "FileNotFoundError" in broken.stderr
        ran = nursery.run(arguments, seconds_max=60.0)
        assert ran.returncode == 0
        assert json.loads(ran.stdout)["digest"] == alone["digest"]
        told, failure = run_process(plan, SEED, hash_seed=0, digest=True, nursery=nursery)
        assert (told["digest"], failure) == (alone["digest"], "")
