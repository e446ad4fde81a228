"""What the command holds, and what it measures: `lock`, `elect`, `check perf`, `bench` and `top`."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest

import pyraftkv
from pyraftkv import KV, errors
from pyraftkv.cli.arguments import parser
from pyraftkv.cli.common import DONE, NOT_APPLIED, USAGE
from pyraftkv.cli.loading import Measured, judged, measure
from pyraftkv.cli.top import rate_of
from pyraftkv.recipes import Election, Lock
from pyraftkv.sim import SimLoop
from tests.test_cli import WAIT_SECONDS, Cli
from tests.test_cli_upkeep import Run, cli, member  # noqa: F401 - fixtures

CODE = """
import os, sys
open(sys.argv[1], "w").write(os.environ["PYRAFTKV_LOCK_KEY"] + " " + os.environ["PYRAFTKV_LOCK_TOKEN"])
"""

SLEEPING = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(30)"


def test_a_command_runs_while_its_lock_is_held(cli: Cli, member: tuple[str, Run], tmp_path: Path) -> None:  # noqa: F811
    """It is told which lock that is; its exit status is ours, and the lock is free when it has ended."""
    found = tmp_path / "found"
    assert cli("lock", "job", "--", sys.executable, "-c", CODE, str(found)) == (DONE, "", "")
    key, token = found.read_text().split()
    assert key.startswith("job//wait/")
    assert int(token) > 1
    assert cli("lock", "--ttl", "5s", "job", sys.executable, "-c", "raise SystemExit(7)")[0] == 7
    assert cli("lock", "job", sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")[0] == 128 + 9
    status, _, err = cli("lock", "job", str(tmp_path / "no such program"))
    assert (status, "cannot be run" in err) == (USAGE, True)
    assert cli("lock", "a//b")[0] == USAGE
    status, _, err = cli("lock", "job", "--ttl", "5s")
    assert (status, "before the name" in err) == (USAGE, True)
    assert member[1](lambda node: node.leases.list()) == []


def test_a_lock_that_is_not_free_is_not_waited_for_longer_than_asked(cli: Cli, member: tuple[str, Run]) -> None:  # noqa: F811
    """Its command does not run."""

    async def try_it(node: KV) -> int:
        async with Lock(node, "job", ttl=60):
            return await asyncio.to_thread(lambda: cli("lock", "--wait", "100ms", "job", "no such program")[0])

    assert member[1](try_it) == NOT_APPLIED


def test_a_command_whose_lock_is_lost_is_ended(cli: Cli, member: tuple[str, Run], tmp_path: Path) -> None:  # noqa: F811
    """And it is said why."""
    begun = tmp_path / "begun"

    async def revoke(node: KV) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not (begun.exists() and begun.read_text()):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.02)
        (lease,) = await node.leases.list()
        await node.leases.revoke(lease)

    thread = threading.Thread(target=lambda: member[1](revoke))
    thread.start()
    status, _, err = cli("lock", "job", sys.executable, "-c", SLEEPING, str(begun))
    thread.join(WAIT_SECONDS)
    assert (status, "LeaseLost" in err) == (NOT_APPLIED, True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)


def meanwhile(address: str, argv: list[str], until: Callable[[KV], Awaitable[object]]) -> None:
    """Run a command until something is so, then interrupt it."""

    async def run() -> None:
        args = parser().parse_args(["--endpoints", address, *argv])
        running = asyncio.ensure_future(args.run(args))
        async with pyraftkv.connect(address) as kv, asyncio.timeout(WAIT_SECONDS):
            while not running.done() and not await until(kv):  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()

    asyncio.run(run())


def test_a_lock_and_an_office_are_held_until_interrupted(
    member: tuple[str, Run],  # noqa: F811
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    """What is held is printed as etcdctl prints it, and free afterwards."""
    meanwhile(member[0], ["lock", "job"], lambda kv: Lock(kv, "job").contenders())
    assert capsysbinary.readouterr().out.startswith(b"job//wait/")
    meanwhile(member[0], ["elect", "boss", "me"], lambda kv: Election(kv, "boss").leader())
    key, proposal = capsysbinary.readouterr().out.splitlines()
    assert (key[:11], proposal) == (b"boss//wait/", b"me")
    meanwhile(member[0], ["elect", "boss", "me", "-w", "json"], lambda kv: Election(kv, "boss").leader())
    assert json.loads(capsysbinary.readouterr().out)["value"] == "bWU="
    assert member[1](lambda node: node.leases.list()) == []


def test_who_listens_is_told_who_leads(
    member: tuple[str, Run],  # noqa: F811
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    """Whoever it is now."""
    seen = b""

    async def is_told(kv: KV) -> bool:
        nonlocal seen
        async with Election(kv, "boss", ttl=60).campaign("a"):
            while not seen:
                await asyncio.sleep(0.02)
                seen += capsysbinary.readouterr().out
        return True

    meanwhile(member[0], ["elect", "--listen", "boss"], is_told)
    assert seen.endswith(b"\na\n")


# --- Measuring -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["put", "get", "lock"])
def test_a_bench_says_how_many_and_how_long(cli: Cli, what: str) -> None:  # noqa: F811
    """And leaves nothing behind."""
    status, out, _ = cli("bench", what, "--seconds", "200ms", "--in-flight", "3", "--clients", "2", "-w", "json")
    row = json.loads(out)
    assert (status, row["what"], row["in_flight"], row["failed"]) == (DONE, what, 3, 0)
    assert row["per_second"] > 0
    assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert cli("get", "pyraftkv-bench/", "--prefix", "--count-only")[1] == "0\n"
    assert "PER SECOND" in cli("bench", what, "--seconds", "100ms")[1]
    with pytest.raises(SystemExit) as refused:
        cli("bench", "--in-flight", "0")
    assert refused.value.code == USAGE


def test_a_cluster_that_is_fast_enough_passes(cli: Cli) -> None:  # noqa: F811
    """Each point has a line; its keys are gone."""
    status, out, _ = cli("check", "perf", "--seconds", "500ms")
    lines = out.splitlines()
    assert len(lines) == 4
    assert all(line.startswith(("PASS: ", "FAIL: ")) for line in lines)
    assert status == (DONE if "FAIL" not in out else NOT_APPLIED)
    assert cli("get", "pyraftkv-check-perf/", "--prefix", "--count-only")[1] == "0\n"
    assert len(json.loads(cli("check", "perf", "--seconds", "200ms", "-w", "json")[1])) == 4


def test_what_is_too_slow_fails() -> None:
    """At each point by itself."""

    def verdicts(took: list[float], failed: int = 0) -> list[bool]:
        measured = Measured(10.0, sorted(took), [errors.NoLeader("nobody")] * failed)
        return [is_fine for is_fine, _ in judged(measured, 10)]

    assert verdicts([0.01] * 90) == [True] * 4
    assert verdicts([0.01] * 89) == [False, True, True, True]
    assert verdicts([0.01] * 99 + [0.6]) == [True, False, True, True]
    assert verdicts([0.01] * 50 + [0.3] * 50) == [True, True, False, True]
    assert verdicts([0.01] * 90, failed=1) == [True, True, True, False]
    assert verdicts([]) == [False, False, False, True]


def test_a_load_keeps_to_its_rate_and_its_number_under_way() -> None:
    """In virtual time: what takes a fifth of a second, two at a time, is done ten times a second, or as asked."""
    loop = SimLoop(Random(1))
    under_way: list[int] = []
    most = 0

    async def work(number: int) -> None:
        nonlocal most
        under_way.append(number)
        most = max(most, len(under_way))
        await asyncio.sleep(0.2)
        under_way.remove(number)
        if number == 3:
            raise errors.NoLeader("nobody")

    async def main() -> tuple[Measured, Measured]:
        fast = await measure(work, in_flight=2, seconds=10)
        return fast, await measure(work, in_flight=2, seconds=10, rate=4)

    try:
        fast, paced = loop.run(main(), until=1e3)
    finally:
        loop.close()
    assert most == 2
    assert (len(fast.took) + 1, len(fast.failed)) == (100, 1)
    assert len(paced.took) + 1 == 40
    assert fast.percentile(50) == pytest.approx(0.2, rel=0.01)
    assert math.isnan(Measured().percentile(50))


def test_top_asks_again_and_again(cli: Cli, member: tuple[str, Run]) -> None:  # noqa: F811
    """A table each time; from the second on, with entries per second."""
    status, out, _ = cli("top", "--every", "50ms", "--count", "2")
    assert status == DONE
    assert out.count("ENTRIES/S") == 2
    first, second = (
        json.loads(line) for line in cli("top", "--every", "50ms", "--count", "2", "-w", "json")[1].splitlines()
    )
    assert first[0]["entriesPerSecond"] is None
    assert second[0]["entriesPerSecond"] >= 0
    status, _, _ = cli("top", "--count", "1", "--endpoints", f"{member[0]},127.0.0.1:1", "--timeout", "300ms")
    assert status == NOT_APPLIED


def test_a_rate_is_told_only_if_it_is_known() -> None:
    """An endpoint that began anew has none."""
    status = pyraftkv.Status.__new__(pyraftkv.Status)
    object.__setattr__(status, "applied_index", 30)
    assert rate_of(status, (1.0, 10), now=3.0) == 10.0
    assert rate_of(status, (1.0, 31), now=3.0) is None
    assert rate_of(status, (3.0, 10), now=3.0) is None
    assert rate_of(status, None, now=3.0) is None
    assert rate_of(errors.NoLeader("nobody"), (1.0, 10), now=3.0) is None
