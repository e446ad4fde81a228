"""The long run counts what it did, goes on where it stopped, and keeps what failed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyraftkv.sim.run import simulate
from pyraftkv.sim.script import parse_script
from tests.sim.test_cli import NOBODY_ASKS
from tests.soak.__main__ import COUNTERS, OUT, main
from tests.soak.counters import FAILED_MAX, FIRST_SEED, Counters
from tests.soak.runner import ROOT, Plan, Result, compare, run_process

FAILING = 22
"""A seed with three clients; the one after it has two."""

TOLD = {"virtual_seconds": 61.04, "real_seconds": 4.0, "operations": 5, "messages": 7, "faults": {"pause": 2, "rot": 1}}


def soak(tmp_path: Path, *arguments: str, seconds: float = 0.5) -> int:
    """Run it for a moment, beside the repository."""
    counters, out = tmp_path / "counters.json", tmp_path / "out"
    return main(["--minutes=1", f"--seconds={seconds}", f"--counters={counters}", f"--out={out}", *arguments])


def test_a_run_goes_on_where_the_last_one_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds come one after another, and all runs add up."""
    assert soak(tmp_path, "--seeds-max=2") == 0
    first = Counters.load(tmp_path / "counters.json")
    assert (first.next_seed, first.seeds, first.pairs, first.failures) == (FIRST_SEED + 2, 2, 1, 0)
    assert first.operations > 0
    assert first.virtual_seconds > 1.0
    assert soak(tmp_path, "--seeds-max=1") == 0
    second = Counters.load(tmp_path / "counters.json")
    assert (second.next_seed, second.seeds, second.pairs) == (FIRST_SEED + 3, 3, 1)
    assert second.operations > first.operations
    lines = capsys.readouterr().out.splitlines()
    seeds = [line.partition(":")[0] for line in lines if line.startswith("seed ")]
    assert seeds == [f"seed {FIRST_SEED + number}" for number in range(3)]
    assert lines[0].endswith(", and again the same")
    assert lines[-2].startswith("1 seeds, 0 of them twice: ")
    assert lines[-1].endswith(f"next is seed {FIRST_SEED + 3}")


def test_nothing_begins_after_the_time(tmp_path: Path) -> None:
    """No time, no seed, and no file."""
    assert soak(tmp_path, "--minutes=0") == 0
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_told_to_end_ends_everything_and_has_counted_what_it_told(tmp_path: Path) -> None:
    """It alone is told so, and nobody is left of its group. It exits as a shell has it."""
    path = tmp_path / "counters.json"
    Counters(next_seed=FIRST_SEED + 1).save(path)
    command = ["-m", "tests.soak", "--minutes=5", "--seconds=1", "--jobs=1", f"--counters={path}", f"--out={tmp_path}"]
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    ) as run:
        assert run.stdout is not None
        told = [run.stdout.readline()]
        run.terminate()
        told += run.stdout.readlines()
    assert run.returncode == 128 + signal.SIGTERM
    seeds = [line for line in told if line.startswith("seed ")]
    counters = Counters.load(path)
    assert (counters.seeds, counters.failures) == (len(seeds), 0)
    assert told[-1].endswith(f"next is seed {counters.next_seed}\n")
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)


def test_what_fails_is_kept_and_the_rest_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rule that breaks is written in words, as a script and as a picture; a crash with its traceback."""
    script = tmp_path / "faults.txt"
    script.write_text(NOBODY_ASKS, encoding="utf-8")
    Counters(next_seed=FAILING).save(tmp_path / "counters.json")
    assert soak(tmp_path, f"--script={script}", "--seeds-max=2", seconds=2.0) == 1
    counters = Counters.load(tmp_path / "counters.json")
    assert (counters.seeds, counters.failures, counters.failed_seeds) == (2, 2, [FAILING, FAILING + 1])
    out, first, second = tmp_path / "out", f"seed-{FAILING}", f"seed-{FAILING + 1}"
    assert sorted(path.name for path in out.iterdir()) == [
        f"{first}.faults",
        f"{first}.html",
        f"{first}.txt",
        f"{second}.txt",
    ]
    words = (out / f"{first}.txt").read_text(encoding="utf-8")
    assert words.startswith(f"seed {FAILING}: traffic: ")
    assert f"replay: python -m pyraftkv sim --seed {FAILING} --seconds 2\n" in words
    assert f"replay: python -m pyraftkv sim --seed {FAILING} --seconds 2 --script {out}/{first}.faults\n" in words
    with pytest.raises(AssertionError, match="traffic"):
        simulate(FAILING, seconds=2.0, faults=parse_script((out / f"{first}.faults").read_text(encoding="utf-8")))
    # The next seed has two clients, and the script speaks of a third.
    assert "Traceback" in (out / f"{second}.txt").read_text(encoding="utf-8")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"seed {FAILING}: FAILED: traffic: ")
    assert lines[1].startswith(f"seed {FAILING + 1}: FAILED: its process ended with 1: ")
    assert "there is no host 'c3'" in lines[1]


def test_two_runs_that_differ_are_a_failure(tmp_path: Path) -> None:
    """And how to compare them is written down."""
    plan = Plan(seconds=60.0, out=tmp_path)
    assert compare(plan, 1020, {"digest": "a"}, {"digest": "a"}) == ""
    assert compare(plan, 1020, {"digest": "a"}, {"digest": "b"}) == "it is another run under PYTHONHASHSEED=1020"
    note = (tmp_path / "seed-1020.txt").read_text(encoding="utf-8")
    assert "PYTHONHASHSEED=0 python -m pyraftkv sim --seed 1020 --seconds 60 --trace 0.txt\n" in note
    assert "PYTHONHASHSEED=1020 python -m pyraftkv sim --seed 1020 --seconds 60 --trace 1020.txt\n" in note


def test_a_process_that_hangs_is_a_failure(tmp_path: Path) -> None:
    """It is ended, and the others go on."""
    plan = Plan(seconds=60.0, out=tmp_path, real_seconds_max=0.01)
    assert run_process(plan, 1001, hash_seed=0, digest=False) == ({}, "it did not end within 0.01 s")
    assert (tmp_path / "seed-1001.txt").read_text(encoding="utf-8").startswith("seed 1001: it did not end")


def test_counters_add_up(tmp_path: Path) -> None:
    """Times to a tenth of a second, faults by kind in the order of their names."""
    path = tmp_path / "counters.json"
    assert Counters.load(path) == Counters()
    counters = Counters()
    counters.add(1000, TOLD, is_pair=True, failed=False)
    counters.add(1001, {**TOLD, "faults": {"kill": 1, "rot": 1}}, is_pair=False, failed=False)
    counters.add(1002, {}, is_pair=False, failed=True)
    counters.save(path)
    assert Counters.load(path) == counters == Counters(
        next_seed=1003, seeds=3, virtual_seconds=122.0, real_seconds=8.0, operations=10, messages=14, pairs=1,
        failures=1, failed_seeds=[1002], faults={"kill": 1, "pause": 2, "rot": 2},
    )  # fmt: skip
    assert list(counters.faults) == ["kill", "pause", "rot"]
    assert [each.name for each in tmp_path.iterdir()] == ["counters.json"]


def test_no_seed_is_counted_twice_or_left_out() -> None:
    """They come in order."""
    with pytest.raises(AssertionError):
        Counters().add(FIRST_SEED + 1, TOLD, is_pair=False, failed=False)


def test_the_names_of_failed_seeds_are_bounded() -> None:
    """The latest are kept, all are counted."""
    counters = Counters()
    for number in range(FAILED_MAX + 5):
        counters.add(FIRST_SEED + number, {}, is_pair=False, failed=True)
    assert counters.failures == FAILED_MAX + 5
    assert counters.failed_seeds == [FIRST_SEED + number for number in range(5, FAILED_MAX + 5)]


def test_the_repositorys_counters_are_whole() -> None:
    """They can be read, and say no more than the seeds between the first and the next."""
    counters = Counters.load(COUNTERS)
    assert counters.next_seed == FIRST_SEED + counters.seeds
    assert counters.pairs <= counters.seeds
    assert len(counters.failed_seeds) <= counters.failures <= counters.seeds
    assert json.loads((OUT.parent / "tests/soak/counters.json").read_text(encoding="utf-8"))["seeds"] == counters.seeds


def test_a_result_says_how_fast_it_was() -> None:
    """Virtual over real time."""
    told = {**TOLD, "members": 3, "leaders": 2, "virtual_seconds": 60.0, "real_seconds": 3.0}
    assert Result(1001, told).line == (
        "seed 1001: 3 members, 60.0 virtual seconds in 3.0 (20.0x), 5 operations, 2 leaders, 3 faults"
    )


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "-m pytest --soak --timeout=3600"),
        (["MINUTES=60"], "-m tests.soak --minutes 60"),
        (["MINUTES=5", "ARGS=--jobs 1"], "-m tests.soak --minutes 5 --jobs 1"),
    ],
)
def test_make_chooses_by_the_minutes(arguments: list[str], said: str) -> None:
    """Without them it is the random tests that run long."""
    ran = subprocess.run(["make", "-n", "soak", *arguments], capture_output=True, text=True, check=True, cwd=ROOT)
    assert said in ran.stdout
