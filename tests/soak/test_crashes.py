"""Crash states are counted, run after run, and the first that breaks a promise ends the run and is named."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.log.scenarios import SCENARIOS, Scenario
from tests.soak.counters import FIRST_SEED
from tests.soak.crashes import COUNTERS, CrashCounters, main, run_seed


def test_a_run_goes_on_where_the_last_one_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other lives, and the sum of both."""
    monkeypatch.setattr("tests.soak.crashes.SCENARIOS", {"append": SCENARIOS["append"]})
    arguments = ["--states=60", "--of-a-share=1", f"--counters={tmp_path / 'crashes.json'}"]
    assert main(arguments) == 0
    first = CrashCounters.load(tmp_path / "crashes.json")
    assert main(arguments) == 0
    second = CrashCounters.load(tmp_path / "crashes.json")
    assert (first.next_seed, second.next_seed) == (FIRST_SEED + 1, FIRST_SEED + 2)
    assert second.states > first.states >= 60
    assert (first.seeds, second.seeds) == (1, 2)
    assert second.states == second.scenarios["append"]
    assert second.moments > first.moments > 30


def test_two_runs_at_a_time_take_seeds_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are counted, in whatever order they end; one that is interrupted costs its own seed only."""
    path = tmp_path / "crashes.json"
    met: list[int] = []

    def take(_name: str, *, states: int, seed: int) -> Counter[str]:
        met.append(seed)
        if len(met) == 1:
            run_seed(path, 1)  # the other run, from its beginning to its end
        if len(met) == 3:
            raise KeyboardInterrupt
        return Counter(states=states)

    monkeypatch.setattr("tests.soak.crashes.take", take)
    monkeypatch.setattr("tests.soak.crashes.SCENARIOS", {"append": Scenario((), share=5)})
    assert run_seed(path, 1) == ""
    with pytest.raises(KeyboardInterrupt):
        run_seed(path, 1)
    counters = CrashCounters.load(path)
    assert met == [FIRST_SEED, FIRST_SEED + 1, FIRST_SEED + 2]
    assert (counters.seeds, counters.states, counters.next_seed) == (2, 10, FIRST_SEED + 3)


def test_a_broken_promise_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says which, and the next run begins behind it."""

    def take(name: str, *, states: int, seed: int) -> Counter[str]:
        raise AssertionError(f"{name} {states} {seed}")

    monkeypatch.setattr("tests.soak.crashes.take", take)
    assert main(["--of-a-share=7", f"--counters={tmp_path / 'crashes.json'}"]) == 1
    assert f"AssertionError: append 420 {FIRST_SEED}" in capsys.readouterr().out
    counters = CrashCounters.load(tmp_path / "crashes.json")
    assert (counters.failures, counters.failed_seeds, counters.next_seed) == (1, [FIRST_SEED], FIRST_SEED + 1)


def test_the_repositorys_counters_add_up() -> None:
    """Every state is of some scenario."""
    counters = CrashCounters.load(COUNTERS)
    assert counters.states == sum(counters.scenarios.values())
