"""What the data model costs, beside etcd in the same run: fan-out of a put, ranges, transactions, memory per key.

Fan-out is the time from a put's call until the last of so many watchers of its key has the event, all in one process;
three members, a remote client of the leader for both, and for pyraftkv the leader's own process, too. Memory is the
resident memory of a single member that was given so many keys of 256 B, less what it had when it was empty.

    python -m tests.bench.bench_data --watchers 1 100 1000 10000 --keys 100000 1000000

With ``--cpu`` only what a fan-out costs in CPU time, of one member in memory and its client, all in this process.

More watchers than one connection takes are measured in the leader's process alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import pyraftkv
from pyraftkv import PutKey
from pyraftkv.server import CALLS_MAX
from tests.bench import bench_puts, peer_etcd
from tests.bench.harness import VALUE_BYTES, free_ports, percentile, process

ROUNDS = 50
RANGE_KEYS = 1000
TXN_OPERATIONS = 10
FILL_TXN_KEYS = 100
FILL_IN_FLIGHT = 32
KEY = b"fan/out"
MANY = 10_000
"""Of so many watchers it is told what memory they take."""

Put = Callable[[bytes, bytes], Awaitable[Any]]


class Arrivals:
    """Counts the watchers that have had the event of a put, and says when all have."""

    def __init__(self, watchers_count: int) -> None:
        self.watchers_count = watchers_count
        self._left = 0
        self.all_in = asyncio.Event()

    def expect(self) -> None:
        """A put begins."""
        self._left = self.watchers_count
        self.all_in.clear()

    def arrived(self) -> None:
        """One more watcher has it."""
        self._left -= 1
        if self._left == 0:
            self.all_in.set()


async def fan_out(name: str, put: Put, arrivals: Arrivals, clock: Callable[[], float] = perf_counter) -> None:
    """Put again and again, each time until every watcher has it; print the median."""
    seconds = []
    for number in range(ROUNDS + 5):
        arrivals.expect()
        began = clock()
        await put(KEY, b"%d" % number)
        async with asyncio.timeout(30):
            await arrivals.all_in.wait()
        seconds.append(clock() - began)
    show(name, f"one put to {arrivals.watchers_count:,} watchers", seconds[5:])


def show(name: str, what: str, seconds: Sequence[float]) -> None:
    """Print the median and the 99th percentile of some times."""
    ordered = sorted(seconds)
    print(
        f"{name:24} {what:32} p50 {percentile(ordered, 50) * 1e3:8.2f} ms   p99 {percentile(ordered, 99) * 1e3:8.2f} ms"
    )


async def repeated(name: str, what: str, call: Callable[[], Awaitable[Any]]) -> None:
    """Do something again and again, one after the other."""
    seconds = []
    for _ in range(ROUNDS):
        began = perf_counter()
        await call()
        seconds.append(perf_counter() - began)
    show(name, what, seconds)


def on_a_connection(watchers: Sequence[int]) -> list[int]:
    """Return the numbers of watchers that one connection takes."""
    return [count for count in watchers if count < CALLS_MAX]


# --- pyraftkv ------------------------------------------------------------------------------------------------------


async def measure_pyraftkv(name: str, kv: pyraftkv.KV, watchers: Sequence[int]) -> None:
    """Measure a node or a client."""
    value = os.urandom(VALUE_BYTES)
    await asyncio.gather(*(kv.put(b"range/%04d" % number, value) for number in range(RANGE_KEYS)))
    await measure_fan_out(name, kv, watchers)
    await repeated(name, f"range of {RANGE_KEYS:,} keys", lambda: kv.range(prefix="range/"))
    puts = [PutKey(b"txn/%d" % number, value) for number in range(TXN_OPERATIONS)]
    await repeated(name, f"transaction of {TXN_OPERATIONS} puts", lambda: kv.txn().then(*puts).commit())


async def measure_fan_out(
    name: str, kv: pyraftkv.KV, watchers: Sequence[int], clock: Callable[[], float] = perf_counter
) -> None:
    """Let so many watchers follow a key that is put again and again."""
    for count in watchers:
        arrivals = Arrivals(count)
        before = resident_mb(os.getpid())
        watches = [kv.watch(KEY) for _ in range(count)]

        async def follow(watch: pyraftkv.kv.Watch, arrivals: Arrivals = arrivals) -> None:
            async for _ in watch:
                arrivals.arrived()

        tasks = [asyncio.create_task(follow(watch)) for watch in watches]
        await asyncio.gather(*(watch.synced() for watch in watches))
        await fan_out(name, kv.put, arrivals, clock)
        if count >= MANY:
            each_kb = (resident_mb(os.getpid()) - before) * 1e3 / count
            print(f"{name:24} {count:,} watchers and their readers take {each_kb:.1f} kB each", flush=True)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for watch in watches:
            await watch.close()


async def pyraftkv_cpu(watchers: Sequence[int]) -> None:
    """Measure CPU time alone: both ends of everything are here."""
    async with pyraftkv.Cluster.in_memory(1) as cluster, cluster.client() as client:
        await client.put("warm", "up")
        await measure_fan_out("CPU, embedded", cluster.leader, watchers, process_time)
        await measure_fan_out("CPU, client and member", client, on_a_connection(watchers), process_time)


async def pyraftkv_embedded(watchers: Sequence[int], directory: Path) -> None:
    """Measure in the leader's process."""
    own, *others = bench_puts.MEMBERS
    ports = free_ports(len(bench_puts.MEMBERS))
    members = ",".join(f"{name}=127.0.0.1:{port}" for name, port in zip(bench_puts.MEMBERS, ports, strict=True))
    with bench_puts.children(others, directory, members, election_timeout_seconds=bench_puts.PATIENT_SECONDS):
        async with pyraftkv.open(directory / own, name=own, listen=f"127.0.0.1:{ports[0]}", members=members) as node:
            await node.put("warm", "up", timeout=bench_puts.START_SECONDS_MAX)
            await measure_pyraftkv("pyraftkv, embedded", node, watchers)


async def pyraftkv_remote(watchers: Sequence[int], directory: Path) -> None:
    """Measure with a client of the leader."""
    ports = free_ports(len(bench_puts.MEMBERS))
    addresses = [f"127.0.0.1:{port}" for port in ports]
    members = ",".join(f"{name}={address}" for name, address in zip(bench_puts.MEMBERS, addresses, strict=True))
    with bench_puts.children(bench_puts.MEMBERS, directory, members):
        async with pyraftkv.connect(",".join(addresses), timeout=bench_puts.START_SECONDS_MAX) as finder:
            await finder.put("warm", "up")
            leader = (await finder.status()).leader
        async with pyraftkv.connect(addresses[leader - 1]) as client:
            await measure_pyraftkv("pyraftkv, remote client", client, on_a_connection(watchers))


async def pyraftkv_memory(count: int, directory: Path) -> None:
    """Fill a single member and print what it takes."""
    (port,) = free_ports(1)
    with bench_puts.children(["a"], directory, f"a=127.0.0.1:{port}") as pids:
        async with pyraftkv.connect(f"127.0.0.1:{port}", timeout=60.0) as client:
            await client.put("warm", "up")
            before = resident_mb(pids[0])

            async def put_some(first: int) -> None:
                keys = range(first, min(first + FILL_TXN_KEYS, count))
                await client.txn().then(*[PutKey(b"key/%010d" % key, os.urandom(VALUE_BYTES)) for key in keys])

            await fill(put_some, count)
            show_memory("pyraftkv", count, resident_mb(pids[0]), before)


async def fill(put_some: Callable[[int], Awaitable[Any]], count: int) -> None:
    """Put `count` keys, some transactions at a time."""
    starts = iter(range(0, count, FILL_TXN_KEYS))

    async def work() -> None:
        for first in starts:
            await put_some(first)

    await asyncio.gather(*(work() for _ in range(FILL_IN_FLIGHT)))


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process, in MB (Linux)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def show_memory(name: str, count: int, resident: float, before: float) -> None:
    """Print the memory of a process and of a key."""
    each = (resident - before) * 1e6 / count
    print(f"{name:24} {count:9,} keys of {VALUE_BYTES} B: {resident:6.0f} MB resident, {each:5.0f} B per key")


# --- etcd ----------------------------------------------------------------------------------------------------------


async def measure_etcd(ports: Sequence[int], watchers: Sequence[int]) -> None:
    """Measure three members of etcd from one client of the leader."""
    async with asyncio.timeout(peer_etcd.START_SECONDS_MAX):
        for port in ports:
            await peer_etcd.healthy(port)
        client = await peer_etcd.connect_to_leader(ports)
    value = os.urandom(VALUE_BYTES)
    for number in range(RANGE_KEYS):
        await client.put(b"range/%04d" % number, value)
    for count in watchers:
        arrivals = Arrivals(count)
        watches = [await client.watch(KEY) for _ in range(count)]

        async def follow(watch: Any, arrivals: Arrivals = arrivals) -> None:
            async for _ in watch:
                arrivals.arrived()

        tasks = [asyncio.create_task(follow(watch)) for watch in watches]
        await fan_out("etcd (aetcd)", client.put, arrivals)
        for watch in watches:
            await watch.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    await repeated("etcd (aetcd)", f"range of {RANGE_KEYS:,} keys", lambda: client.get_prefix(b"range/"))
    puts = [client.transactions.put(b"txn/%d" % number, value) for number in range(TXN_OPERATIONS)]
    await repeated(
        "etcd (aetcd)",
        f"transaction of {TXN_OPERATIONS} puts",
        lambda: client.transaction(compare=[], success=puts, failure=[]),
    )
    await client.close()


async def etcd_memory(count: int, directory: Path) -> None:
    """Fill a single member of etcd and print what it takes."""
    import aetcd

    client_port, peer_port = free_ports(2)
    command = [
        "etcd",
        f"--data-dir={directory / 'etcd'}",
        f"--listen-client-urls=http://127.0.0.1:{client_port}",
        f"--advertise-client-urls=http://127.0.0.1:{client_port}",
        f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
        "--log-level=error",
    ]
    with process(command, log=directory / "etcd.log") as child:
        await peer_etcd.healthy(client_port)
        async with aetcd.Client(host="127.0.0.1", port=client_port) as client:
            before = resident_mb(child.pid)

            async def put_some(first: int) -> None:
                keys = range(first, min(first + FILL_TXN_KEYS, count))
                puts = [client.transactions.put(b"key/%010d" % key, os.urandom(VALUE_BYTES)) for key in keys]
                await client.transaction(compare=[], success=puts, failure=[])

            await fill(put_some, count)
            show_memory("etcd", count, resident_mb(child.pid), before)


def main() -> None:
    """Measure both stores, one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--watchers", type=int, nargs="*", default=[1, 100, 1000])
    parser.add_argument("--keys", type=int, nargs="*", default=[100_000])
    parser.add_argument("--cpu", action="store_true", help="only what a fan-out costs in CPU time")
    args = parser.parse_args()
    if args.cpu:
        asyncio.run(pyraftkv_cpu(args.watchers))
        return

    def in_a_directory(measure: Callable[[Path], Awaitable[None]]) -> None:
        with tempfile.TemporaryDirectory(prefix="pyraftkv-bench-") as directory:
            asyncio.run(_awaited(measure(Path(directory))))

    if args.watchers:
        in_a_directory(lambda directory: pyraftkv_embedded(args.watchers, directory))
        in_a_directory(lambda directory: pyraftkv_remote(args.watchers, directory))
        with tempfile.TemporaryDirectory(prefix="pyraftkv-bench-") as name, peer_etcd.cluster(Path(name)) as (ports, _):
            asyncio.run(measure_etcd(ports, on_a_connection(args.watchers)))
    for count in args.keys:
        in_a_directory(lambda directory, count=count: pyraftkv_memory(count, directory))  # type: ignore[misc]
        in_a_directory(lambda directory, count=count: etcd_memory(count, directory))  # type: ignore[misc]


async def _awaited(work: Awaitable[None]) -> None:
    await work


if __name__ == "__main__":
    sys.exit(main())
