"""Every operation fails once, and then for good: nothing acknowledged is lost, and nothing else is said than that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.log.sweep import ERRORS

ROOT = Path(__file__).parents[2]
FAILURES_MIN = {"EIO": 250, "ENOSPC": 150, "EDQUOT": 150, "EROFS": 150, "EACCES": 100, "short": 50}
"""How often it strikes, once and for good together: fewer, and the life has become too short."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ERRORS)
def test_every_operation_may_fail(name, soak):
    """Until a life ends untouched."""
    for seed in range(2, 12) if soak else (1,):
        command = [sys.executable, "-m", "tests.log.sweep", name, f"--seed={seed}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        ends = json.loads(done.stdout.splitlines()[-1])[name]
        assert ends["failures"] >= FAILURES_MIN[name]
        assert ends["well"] >= 2, "lives end well when nothing fails any more"
