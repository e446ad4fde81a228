"""How long a cluster is away when the power goes: all three members killed at once, and started again.

100,000 keys of 256 B are in it. The clock runs from the first start to the first linearizable read that is answered,
asked by a client that knows all three; it stops for nothing in between: interpreters start, logs are read and checked,
a leader is elected, its first entry is committed. The time until every member answers for itself stands beside it.

    python -m tests.bench.bench_recovery --keys 100000 --runs 3

Two rows: with everything in the log (the snapshot threshold is 64 MiB), and started from snapshots.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from pyraftkv.client import Client
from tests.bench.harness import VALUE_BYTES, exit_on_sigterm, machine
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


def bytes_below(folder: Path) -> int:
    """Return the size of all files there."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="From SIGKILL of all members to the first linearizable read.")
    parser.add_argument("--keys", type=int, default=100_000, help="keys in the store (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="outages; the median counts (default: %(default)s)")
    options = parser.parse_args()
    exit_on_sigterm()
    print(machine())
    rows: dict[str, dict[str, float] | None] = {
        "all in the log": None,
        "from snapshots": {"snapshot_log_bytes_min": SNAPSHOT_BYTES},
    }
    for title, settings in rows.items():
        with tempfile.TemporaryDirectory(prefix="pyraftkv-bench-") as directory:
            times = asyncio.run(measure(options.keys, options.runs, Path(directory), settings))
            size = bytes_below(Path(directory) / "n1")
        firsts, lasts = zip(*times, strict=True)
        print(
            f"{title}: first linearizable read after {statistics.median(firsts):.2f} s (median of "
            f"{', '.join(f'{each:.2f}' for each in firsts)}), every member after {statistics.median(lasts):.2f} s; "
            f"{options.keys:,} keys of {VALUE_BYTES} B, {size / 2**20:.0f} MiB on each disk",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
