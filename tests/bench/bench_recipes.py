"""What recipes cost, beside etcd's lock in the same run: locks, hand-over of an election, services kept alive.

A cycle is to take a lock and give it back. Each cycle of pyraftkv has a lease of its own, as each of aetcd's `Lock`
has, and besides a place in the row, which is why it is fair; aetcd's contenders all try again when the lock is free.
With `Session`, cycles share one lease. Hand-over is from the moment that the leader resigns until the next one leads.

    python -m tests.bench.bench_recipes --seconds 5 --services 1000
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter, process_time

import pyraftkv
from pyraftkv import KV
from pyraftkv.recipes import Election, Lock, Registry, Session
from tests.bench import bench_puts, peer_etcd
from tests.bench.bench_data import show
from tests.bench.harness import Missing, free_ports

CONTENDERS = 32
TTL = 10
HAND_OVERS = 50

Cycle = Callable[[], Awaitable[object]]


async def cycles(name: str, cycle: Cycle, *, workers: int, seconds: float) -> None:
    """Let so many workers take and give back a lock for a while; print how often."""
    count = 0
    ends_at = perf_counter() + seconds

    async def work() -> None:
        nonlocal count
        while perf_counter() < ends_at:
            await cycle()
            count += 1

    began = perf_counter()
    await asyncio.gather(*[work() for _ in range(workers)])
    took = perf_counter() - began
    print(f"{name:24} lock and unlock, {workers:2} contenders: {count / took:8.1f} cycles/s")


async def hand_over(name: str, kv: KV) -> None:
    """Hand an election over again and again; print how long that takes."""
    seconds: list[float] = []
    resigned_at = 0.0

    async def stand() -> None:
        nonlocal resigned_at
        while len(seconds) < HAND_OVERS:
            async with Election(kv, "boss", ttl=TTL).campaign("me"):
                if resigned_at:
                    seconds.append(perf_counter() - resigned_at)
                await asyncio.sleep(0.02)  # the other one stands behind this one by then
                resigned_at = perf_counter()

    await asyncio.gather(stand(), stand())
    show(name, "hand-over of an election", seconds)


async def services(name: str, kv: KV, *, count: int, seconds: float, shared: bool) -> None:
    """Keep so many services alive from this process; print its share of a core."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(Session(kv, ttl=TTL)) if shared else kv
        registry = Registry(store, ttl=TTL)
        began = perf_counter()
        for first in range(0, count, 100):
            some = [registry.register("web", f"h{number}:80") for number in range(first, min(first + 100, count))]
            await asyncio.gather(*[stack.enter_async_context(each) for each in some])
        took = perf_counter() - began
        cpu, began = process_time(), perf_counter()
        await asyncio.sleep(seconds)
        share = (process_time() - cpu) / (perf_counter() - began)
        there = len(await Registry(kv).resolve("web"))
        how = "one lease" if shared else "a lease each"
        print(
            f"{name:24} {there:,} services, {how}: there after {took:.1f} s, {share:.1%} of a core to keep them alive"
        )


async def measure_pyraftkv(directory: Path, *, seconds: float, count: int) -> None:
    """Measure three members from one client of the leader."""
    ports = free_ports(len(bench_puts.MEMBERS))
    addresses = [f"127.0.0.1:{port}" for port in ports]
    members = ",".join(f"{name}={address}" for name, address in zip(bench_puts.MEMBERS, addresses, strict=True))
    name = "pyraftkv, remote client"
    with bench_puts.children(bench_puts.MEMBERS, directory, members):
        async with pyraftkv.connect(",".join(addresses), timeout=bench_puts.START_SECONDS_MAX) as finder:
            await finder.put("warm", "up")
            leader = (await finder.status()).leader
        async with pyraftkv.connect(addresses[leader - 1], timeout=30.0) as kv:
            await cycles(name, lambda: _cycle(Lock(kv, "lock", ttl=TTL)), workers=1, seconds=seconds)
            await cycles(name, lambda: _cycle(Lock(kv, "lock", ttl=TTL)), workers=CONTENDERS, seconds=seconds)
            async with Session(kv, ttl=TTL) as session:
                held = f"{name[:8]}, one Session"
                await cycles(held, lambda: _cycle(Lock(session, "lock")), workers=1, seconds=seconds)
            await hand_over(name, kv)
            for shared in (False, True):
                await services(name, kv, count=count, seconds=2 * seconds, shared=shared)


async def _cycle(lock: Lock) -> None:
    async with lock:
        pass


async def measure_etcd(directory: Path, *, seconds: float) -> None:
    """Measure three members of etcd from one client of the leader."""
    with peer_etcd.cluster(directory) as (ports, _):
        async with asyncio.timeout(peer_etcd.START_SECONDS_MAX):
            for port in ports:
                await peer_etcd.healthy(port)
            client = await peer_etcd.connect_to_leader(ports)
        name = os.urandom(8)

        async def cycle() -> None:
            lock = client.lock(name, ttl=TTL)
            await lock.acquire(timeout=None)
            lease = lock.lease
            await lock.release()
            await lease.revoke()

        for workers in (1, CONTENDERS):
            await cycles(peer_etcd.NAME, cycle, workers=workers, seconds=seconds)
        await client.close()


def main() -> None:
    """Measure both stores, one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each row")
    parser.add_argument("--services", type=int, default=1000, help="kept alive from this process")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pyraftkv-bench-") as directory:
        asyncio.run(measure_pyraftkv(Path(directory), seconds=args.seconds, count=args.services))
    with tempfile.TemporaryDirectory(prefix="pyraftkv-bench-") as directory:
        try:
            asyncio.run(measure_etcd(Path(directory), seconds=args.seconds))
        except Missing as error:
            print(error)


if __name__ == "__main__":
    main()
