"""A child of an interpreter that has imported everything does what a new interpreter does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.soak.nursery import Nursery, Stopped
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


@contextmanager
def busy(nursery: Nursery, path: Path) -> Generator[int]:
    """Let a nursery run what never ends; yield its number once it runs. Afterwards `run` is stopped, and it is gone."""
    os.mkfifo(path)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(nursery.run, [str(path)], seconds_max=60.0)
        number = int(path.read_text(encoding="utf-8"))
        yield number
        with pytest.raises(Stopped):
            running.result()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_a_child_is_ended_with_its_nursery(tmp_path: Path) -> None:
    """And none begins any more."""
    with Nursery("tests.soak.idler", os.environ) as nursery:
        with busy(nursery, tmp_path / "pid"):
            nursery.stop()
        with pytest.raises(Stopped):
            nursery.run([str(tmp_path / "again")], seconds_max=60.0)
    assert not (tmp_path / "again").exists()


def test_signals_are_for_whoever_asks(tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to everybody, and a SIGTERM may go to a whole group: a child does not end by itself."""
    with Nursery("tests.soak.idler", os.environ) as nursery, busy(nursery, tmp_path / "pid") as child:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(child, number)
        os.kill(child, 0)
        nursery.stop()
