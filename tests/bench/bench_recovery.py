"""How long a cluster is away when the power goes: all three members killed at once, and started again; beside etcd's.

100,000 keys of 256 B are in it. The clock runs from the first start to the first linearizable read that is answered,
asked by a client that knows all three; it stops for nothing in between: interpreters start, logs are read and checked,
a leader is elected, its first entry is committed. The time until every member answers for itself stands beside it.

    python -m tests.bench.bench_recovery --keys 100000 --runs 3
    python -m tests.bench.bench_recovery --keys 1000000 --rows defaults
    python -m tests.bench.bench_recovery --keys 1000000 --rows etcd

Two rows: with the defaults (a snapshot is due at 64 MiB of log), and with frequent snapshots. And a third, where it is
installed: a real etcd with its defaults, asked over its JSON gateway. Members find the library compiled, as it is where
it was installed, whatever this process was told about bytecode.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import statistics
import sys
import tempfile
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from urllib.error import URLError

from pyraftkv.client import Client
from tests.bench.harness import VALUE_BYTES, Missing, exit_on_sigterm, machine, process
from tests.bench.peer_etcd import ask, commands, healthy
from tests.processes import HEALTH_KEY, Processes

LOADING_IN_FLIGHT = 256
OUTAGE_SECONDS_MAX = 600.0
"""For a million keys, on a machine that has much else to do."""
SNAPSHOT_BYTES = 1024 * 1024
ROWS = ("defaults", "snapshots", "etcd")


async def fill(client: Client, keys: int) -> None:
    """Put every key once."""
    sequence = itertools.count()
    value = b"v" * VALUE_BYTES

    async def worker() -> None:
        while (at := next(sequence)) < keys:
            await client.put(b"bench/%08d" % at, value)

    async with asyncio.TaskGroup() as group:
        for _ in range(LOADING_IN_FLIGHT):
            group.create_task(worker())
    await client.put(HEALTH_KEY, b"fine")


Times = tuple[float, float, float]
"""Seconds until the first read, until each member answers, and those of CPU that all members together took."""


def ended_seconds() -> float:
    """Return the CPU seconds of all processes that this one started, and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


async def outage(cluster: Processes) -> Times:
    """Kill everybody, start everybody, and kill them again once each has answered."""
    cluster.kill()
    cpu, began = ended_seconds(), perf_counter()
    for member in cluster.members.values():
        member.start()
    async with cluster.connect() as client:
        found = await client.get(HEALTH_KEY, timeout=OUTAGE_SECONDS_MAX)
        first = perf_counter() - began
        assert found is not None, "what was acknowledged is there"
    await cluster.ready()
    last = perf_counter() - began
    cluster.kill()
    return first, last, ended_seconds() - cpu


async def measure(keys: int, runs: int, folder: Path, settings: dict[str, float] | None) -> list[Times]:
    """Load a cluster, and let the power go so many times."""
    async with Processes(folder, settings=settings) as cluster:
        async with cluster.connect() as client:
            await fill(client, keys)
        return [await outage(cluster) for _ in range(runs)]


ETCD_PUTS = 100
"""Puts that are loaded into etcd in one transaction: one at a time would take minutes."""


def text(raw: bytes) -> str:
    """Return bytes as the JSON gateway wants them."""
    return b64encode(raw).decode()


def fill_etcd(port: int, keys: int) -> None:
    """Put every key once, many to a transaction."""
    value = text(b"v" * VALUE_BYTES)
    names = [*(b"bench/%08d" % at for at in range(keys)), HEALTH_KEY.encode()]
    for batch in (names[at : at + ETCD_PUTS] for at in range(0, len(names), ETCD_PUTS)):
        puts = [{"request_put": {"key": text(name), "value": value}} for name in batch]
        ask(port, "kv/txn", {"success": puts})


def first_read(ports: Sequence[int]) -> None:
    """Return when any member has answered a linearizable read."""
    for port in itertools.cycle(ports):
        try:
            found = ask(port, "kv/range", {"key": text(HEALTH_KEY.encode())})
        except (URLError, OSError):
            continue
        assert found["kvs"], "what was acknowledged is there"
        return


def measure_etcd(keys: int, runs: int, folder: Path) -> list[Times]:
    """Load an etcd, and let the power go so many times. Raises `Missing`."""
    ports, members = commands(folder)
    times: list[Times] = []
    for run in range(runs + 1):
        first = last = 0.0
        cpu, began = ended_seconds(), perf_counter()
        with contextlib.ExitStack() as stack:
            children = [stack.enter_context(process(command)) for command in members]
            if run:
                first_read(ports)
                first = perf_counter() - began
            for port in ports:
                asyncio.run(healthy(port))
            last = perf_counter() - began
            if not run:
                fill_etcd(ports[0], keys)
            for child in children:
                os.killpg(child.pid, signal.SIGKILL)
        if run:
            times.append((first, last, ended_seconds() - cpu))
    return times


def bytes_below(folder: Path) -> int:
    """Return the size of all files there."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def report(title: str, times: list[Times], keys: int, folder: Path) -> None:
    """Print a row."""
    firsts, lasts, cpu = zip(*times, strict=True)
    print(
        f"{title}: first linearizable read after {statistics.median(firsts):.2f} s (median of "
        f"{', '.join(f'{each:.2f}' for each in firsts)}), every member after {statistics.median(lasts):.2f} s, "
        f"{statistics.median(cpu):.2f} s of CPU in all; "
        f"{keys:,} keys of {VALUE_BYTES} B, {bytes_below(folder) / 2**20:.0f} MiB on each disk",
        flush=True,
    )


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="From SIGKILL of all members to the first linearizable read.")
    parser.add_argument("--keys", type=int, default=100_000, help="keys in the store (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="outages; the median counts (default: %(default)s)")
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS, default=[*ROWS], help="what is killed and started again (default: all)"
    )
    options = parser.parse_args()
    exit_on_sigterm()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="pyraftkv-bench-") as directory:
        compile_into(Path(directory) / "bytecode")
        for row in options.rows:
            folder = Path(directory) / row
            folder.mkdir()
            try:
                show(row, options.keys, options.runs, folder)
            except Missing as missing:
                print(f"{row} skipped: {missing}")
            shutil.rmtree(folder)
    return 0


def show(row: str, keys: int, runs: int, folder: Path) -> None:
    """Measure a row, and print it. Raises `Missing`."""
    if row == "etcd":
        report(row, measure_etcd(keys, runs, folder), keys, folder / "m0")
    else:
        settings: dict[str, float] | None = {"snapshot_log_bytes_min": SNAPSHOT_BYTES} if row == "snapshots" else None
        report(row, asyncio.run(measure(keys, runs, folder, settings)), keys, folder / "n1")


def compile_into(folder: Path) -> None:
    """Let Python processes that are started from now on keep what they compiled there, and find it."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder)


if __name__ == "__main__":
    sys.exit(main())
