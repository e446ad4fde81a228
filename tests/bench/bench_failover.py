"""How long a cluster takes no writes when the process of its leader is killed, and nothing else happens; beside etcd's.

Three processes on loopback with their defaults. The clock runs from SIGKILL until a write that was begun right after it
is acknowledged. Of pyraftkv one client is asked, which knows all three members and sees to the rest; of etcd, a member
that lives, over its JSON gateway, with a fresh attempt whenever one has failed or has said nothing for `TRY_SECONDS`.
The killed member is started again and has time to catch up before the next round.

    python -m tests.bench.bench_failover --kills 100 --etcd-kills 30
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from urllib.error import URLError

from tests.bench.harness import Missing, exit_on_sigterm, machine, percentile, process
from tests.bench.peer_etcd import ask, commands, healthy
from tests.processes import Processes

PAUSE_SECONDS = 1.0
"""How long a cluster has all its members between two rounds."""

TRY_SECONDS = 0.1
PUT = {"key": "aw==", "value": "dg=="}


async def measure(kills: int, folder: Path) -> list[float]:
    """Kill the leader so many times; return the seconds until the next write is acknowledged."""
    took = []
    async with Processes(folder) as cluster, cluster.connect() as client:
        for number in range(kills):
            leader = await cluster.leader()
            await client.put("k", str(number))
            leader.kill()
            began = perf_counter()
            await client.put("k", f"{number} again")
            took.append(perf_counter() - began)
            leader.start()
            await leader.ready()
            await asyncio.sleep(PAUSE_SECONDS)
    return took


def leader_of(ports: Sequence[int]) -> int:
    """Return which member leads, by its place."""
    for place, port in enumerate(ports):
        status = ask(port, "maintenance/status", {})
        if status["leader"] == status["header"]["member_id"]:
            return place
    raise RuntimeError("no member of the etcd cluster leads")


def put_somewhere(ports: Sequence[int]) -> None:
    """Return when one of these members has acknowledged a write."""
    while True:
        for port in ports:
            with contextlib.suppress(URLError, OSError):
                ask(port, "kv/put", PUT, timeout=TRY_SECONDS)
                return


def measure_etcd(kills: int, folder: Path) -> list[float]:
    """Do the same to an etcd. Raises `Missing`."""
    ports, members = commands(folder)
    took = []
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(process(command)) for command in members]
        for _ in range(kills):
            for port in ports:
                asyncio.run(healthy(port))
            place = leader_of(ports)
            os.killpg(children[place].pid, signal.SIGKILL)
            began = perf_counter()
            put_somewhere([port for other, port in enumerate(ports) if other != place])
            took.append(perf_counter() - began)
            children[place].wait()
            children[place] = stack.enter_context(process(members[place]))
            asyncio.run(healthy(ports[place]))
            asyncio.run(asyncio.sleep(PAUSE_SECONDS))
    return took


def report(title: str, took: list[float]) -> None:
    """Print a row."""
    ordered = sorted(took)
    print(
        f"{title}: a write is taken again after {statistics.median(ordered):.3f} s (median of {len(ordered)} kills), "
        f"p90 {percentile(ordered, 90):.3f}, p99 {percentile(ordered, 99):.3f}, "
        f"from {ordered[0]:.3f} to {ordered[-1]:.3f}",
        flush=True,
    )


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="From SIGKILL of the leader to the next acknowledged write.")
    parser.add_argument("--kills", type=int, default=100, help="of pyraftkv's leaders (default: %(default)s)")
    parser.add_argument("--etcd-kills", type=int, default=30, help="of etcd's (default: %(default)s)")
    options = parser.parse_args()
    exit_on_sigterm()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="pyraftkv-bench-") as directory:
        folders = [Path(directory) / name for name in ("pyraftkv", "etcd")]
        for folder in folders:
            folder.mkdir()
        report("pyraftkv", asyncio.run(measure(options.kills, folders[0])))
        try:
            report("etcd", measure_etcd(options.etcd_kills, folders[1]))
        except Missing as missing:
            print(f"etcd skipped: {missing}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
