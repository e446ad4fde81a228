"""How long a cluster is away when the power goes: all three members killed at once, and started again; beside etcd's.

100,000 keys of 256 B are in it. The clock runs from the first start to the first linearizable read that is answered,
asked by a client that knows all three; it stops for nothing in between: interpreters start, logs are read and checked,
a leader is elected, its first entry is committed. The time until every member answers for itself stands beside it.

    python -m tests.bench.bench_recovery --keys 100000 --runs 3

Two rows: with the defaults (a snapshot is due at 64 MiB of log), and with frequent snapshots. And a third, where it is
installed: a real etcd with its defaults, asked over its JSON gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from urllib.error import URLError
from urllib.request import Request, urlopen

from pyraftkv.client import Client
from tests.bench.harness import VALUE_BYTES, Missing, exit_on_sigterm, machine, process
from tests.bench.peer_etcd import commands, healthy
from tests.processes import HEALTH_KEY, Processes

LOADING_IN_FLIGHT = 256
SNAPSHOT_BYTES = 1024 * 1024


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


async def outage(cluster: Processes) -> tuple[float, float]:
    """Kill everybody and start everybody; return the seconds to the first read, and until each member answers."""
    cluster.kill()
    began = perf_counter()
    for member in cluster.members.values():
        member.start()
    async with cluster.connect() as client:
        found = await client.get(HEALTH_KEY)
        first = perf_counter() - began
        assert found is not None, "what was acknowledged is there"
    await cluster.ready()
    return first, perf_counter() - began


async def measure(keys: int, runs: int, folder: Path, settings: dict[str, float] | None) -> list[tuple[float, float]]:
    """Load a cluster, and let the power go so many times."""
    async with Processes(folder, settings=settings) as cluster:
        async with cluster.connect() as client:
            await fill(client, keys)
        return [await outage(cluster) for _ in range(runs)]


ETCD_PUTS = 100
"""Puts that are loaded into etcd in one transaction: one at a time would take minutes."""


def ask_etcd(port: int, path: str, request: object) -> dict[str, object]:
    """Ask a member's JSON gateway. Raises `OSError`."""
    data = json.dumps(request).encode()
    answer: dict[str, object] = json.load(urlopen(Request(f"http://127.0.0.1:{port}/v3/kv/{path}", data), timeout=10))
    return answer


def text(raw: bytes) -> str:
    """Return bytes as the JSON gateway wants them."""
    return b64encode(raw).decode()


def fill_etcd(port: int, keys: int) -> None:
    """Put every key once, many to a transaction."""
    value = text(b"v" * VALUE_BYTES)
    names = [*(b"bench/%08d" % at for at in range(keys)), HEALTH_KEY.encode()]
    for batch in (names[at : at + ETCD_PUTS] for at in range(0, len(names), ETCD_PUTS)):
        puts = [{"request_put": {"key": text(name), "value": value}} for name in batch]
        ask_etcd(port, "txn", {"success": puts})


def first_read(ports: Sequence[int]) -> None:
    """Return when any member has answered a linearizable read."""
    for port in itertools.cycle(ports):
        try:
            found = ask_etcd(port, "range", {"key": text(HEALTH_KEY.encode())})
        except (URLError, OSError):
            continue
        assert found["kvs"], "what was acknowledged is there"
        return


def measure_etcd(keys: int, runs: int, folder: Path) -> list[tuple[float, float]]:
    """Load an etcd, and let the power go so many times. Raises `Missing`."""
    ports, members = commands(folder)
    times = []
    for run in range(runs + 1):
        with contextlib.ExitStack() as stack:
            began = perf_counter()
            children = [stack.enter_context(process(command)) for command in members]
            if run:
                first_read(ports)
                first = perf_counter() - began
            for port in ports:
                asyncio.run(healthy(port))
            if run:
                times.append((first, perf_counter() - began))
            else:
                fill_etcd(ports[0], keys)
            for child in children:
                os.killpg(child.pid, signal.SIGKILL)
    return times


def bytes_below(folder: Path) -> int:
    """Return the size of all files there."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def report(title: str, times: list[tuple[float, float]], keys: int, folder: Path) -> None:
    """Print a row."""
    firsts, lasts = zip(*times, strict=True)
    print(
        f"{title}: first linearizable read after {statistics.median(firsts):.2f} s (median of "
        f"{', '.join(f'{each:.2f}' for each in firsts)}), every member after {statistics.median(lasts):.2f} s; "
        f"{keys:,} keys of {VALUE_BYTES} B, {bytes_below(folder) / 2**20:.0f} MiB on each disk",
        flush=True,
    )


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="From SIGKILL of all members to the first linearizable read.")
    parser.add_argument("--keys", type=int, default=100_000, help="keys in the store (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="outages; the median counts (default: %(default)s)")
    options = parser.parse_args()
    exit_on_sigterm()
    print(machine())
    rows: dict[str, dict[str, float] | None] = {
        "with the defaults": None,
        "with frequent snapshots": {"snapshot_log_bytes_min": SNAPSHOT_BYTES},
    }
    for title, settings in rows.items():
        with tempfile.TemporaryDirectory(prefix="pyraftkv-bench-") as directory:
            times = asyncio.run(measure(options.keys, options.runs, Path(directory), settings))
            report(title, times, options.keys, Path(directory) / "n1")
    try:
        with tempfile.TemporaryDirectory(prefix="pyraftkv-bench-") as directory:
            times = measure_etcd(options.keys, options.runs, Path(directory))
            report("etcd", times, options.keys, Path(directory) / "m0")
    except Missing as missing:
        print(f"etcd skipped: {missing}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
