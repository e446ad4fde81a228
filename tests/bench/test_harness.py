"""Tests of the benchmarks' own tools: what they count, and that they leave no process behind."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import pytest

from tests.bench import __main__ as combined
from tests.bench import harness
from tests.bench.harness import (
    Missing,
    Result,
    Window,
    closed_loop,
    cpu_seconds,
    percentile,
    process,
    save,
    table,
    written_bytes,
)

POSIX = pytest.mark.skipif(os.name != "posix", reason="process groups")
PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")

DEAF = "trap '' TERM; echo; sleep 600; sleep 600"


def result(name: str, puts_per_s: float, in_flight: int = 1) -> Result:
    """Return a made-up measurement."""
    return Result(name, in_flight, puts_per_s, p50_ms=1.0, p99_ms=2.0, cpu_s_per_1000=0.5, written_bytes_per_put=900.0)


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (1, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)])
def test_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    """A percentile is a value that was measured."""
    assert percentile(range(1, 101), percent) == expected


def test_a_window_counts_what_is_answered_inside_it() -> None:
    """Puts answered before it opens or after it closes do not count; one sent before and answered inside does."""
    window = Window([])
    early = perf_counter()
    window.answered(early)
    window.begin()
    window.answered(early)
    window.answered(perf_counter())
    window.end()
    window.answered(perf_counter())
    assert len(window._latencies_s) == 2
    assert window.result("x", 1).puts_per_s == pytest.approx(2 / window._elapsed)


def test_a_window_without_a_put_is_an_error() -> None:
    """No figure is made of nothing."""
    window = Window([])
    window.begin()
    window.end()
    with pytest.raises(RuntimeError, match="no put was answered with 64 in flight"):
        window.result("x", 64)


def test_the_loop_keeps_that_many_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than `in_flight` puts are under way, and that many are; each has its own number."""
    monkeypatch.setattr(harness, "WARM_UP_SECONDS", 0.0)
    under_way: set[int] = set()
    most: set[int] = set()
    seen: list[int] = []

    async def put(number: int) -> None:
        seen.append(number)
        under_way.add(number)
        most.add(len(under_way))
        await asyncio.sleep(0)
        under_way.discard(number)

    measured = asyncio.run(closed_loop("x", put, in_flight=7, seconds=0.01))
    assert (max(most), sorted(seen)) == (7, [*range(len(seen))])
    assert (measured.name, measured.in_flight) == ("x", 7)
    assert measured.p50_ms <= measured.p99_ms


def test_a_put_that_fails_ends_the_measurement() -> None:
    """A store that refuses puts has no figure."""

    async def put(number: int) -> None:
        raise ConnectionError(str(number))

    with pytest.RaisesGroup(ConnectionError):
        asyncio.run(closed_loop("x", put, in_flight=1, seconds=60))


@PROC
def test_cpu_is_counted_for_every_process() -> None:
    """The same process twice costs twice; what the system cannot tell is not a number."""
    before = cpu_seconds([os.getpid()])
    while cpu_seconds([os.getpid()]) == before:
        sum(range(10_000))
    assert cpu_seconds([os.getpid()]) > before
    assert math.isnan(cpu_seconds([os.getpid(), 2**22 + 1]))


def test_what_is_written_is_counted_by_the_disk(tmp_path: Path) -> None:
    """Bytes count when the disk has been given them; what the system cannot tell is not a number."""
    before = written_bytes(tmp_path)
    with (tmp_path / "file").open("wb") as file:
        file.write(b"x" * 100_000)
        file.flush()
        os.fsync(file.fileno())
    if not math.isnan(before):  # the disk of some machines is memory
        assert written_bytes(tmp_path) - before >= 100_000
    if Path("/proc/self/stat").exists():
        assert math.isnan(written_bytes("/proc"))


@POSIX
@pytest.mark.parametrize("script", ["(echo; sleep 600) & wait", f"({DEAF}) & wait", DEAF])
def test_a_process_and_its_children_are_stopped(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """The whole group ends with the block, even if the block raises and no one in the group listens to SIGTERM."""
    monkeypatch.setattr(harness, "STOP_SECONDS_MAX", 0.05)
    reader, writer = os.pipe()

    def fail_inside() -> None:
        with process(["sh", "-c", script], stdout=writer):
            os.close(writer)
            assert os.read(reader, 1) == b"\n"  # it is up, and deaf if it is going to be
            raise RuntimeError("in the block")

    with pytest.raises(RuntimeError, match="in the block"):
        fail_inside()
    assert os.read(reader, 1) == b""  # the end of the pipe: nobody lives to hold it open
    os.close(reader)


@POSIX
def test_a_process_that_ended_by_itself_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What it said last is shown, or nobody would know why the benchmark failed."""
    code = "import sys; sys.exit('no such port')"
    with process([sys.executable, "-c", code], log=tmp_path / "log") as child:
        child.wait(timeout=30)
    assert "ended with 1:\nno such port" in capfd.readouterr().err


def test_ratios_are_to_the_first_store() -> None:
    """The first store is the base, at as many in flight; what has no base has no ratio."""
    rows = table([result("a", 2000), result("b", 1000), result("b", 5, in_flight=64)]).splitlines()
    assert [row.split()[-1] for row in rows] == ["ratio", "1.00", "0.50", "-"]


def test_results_are_saved_with_their_machine(tmp_path: Path) -> None:
    """A figure without its machine says little."""
    save([result("a", 2000)], tmp_path / "new" / "puts.json")
    saved = json.loads((tmp_path / "new" / "puts.json").read_text())
    assert saved["results"] == [asdict(result("a", 2000))]
    assert saved["results"][0]["written_bytes_per_put"] == 900.0
    assert {"cpu", "cores", "system", "python"} == set(saved["machine"])


def test_a_missing_store_is_skipped_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A benchmark that cannot run says why, and is no failure."""

    def run(in_flight: object, seconds: float) -> list[Result]:
        raise Missing("there is no etcd here")

    monkeypatch.setattr(sys, "argv", ["bench", "--seconds", "1"])
    monkeypatch.setattr(harness, "exit_on_sigterm", lambda: None)
    assert harness.main(run, "Puts.") == 0
    assert capsys.readouterr().out == "skipped: there is no etcd here\n"


def test_the_combined_run_finds_the_peers() -> None:
    """Every peer that has a module takes part."""
    assert {"peer_etcd", "peer_pysyncobj"} <= set(combined.stores())
