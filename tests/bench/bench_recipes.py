"""What recipes cost, beside etcd's lock in the same run: locks, hand-over, services kept alive, own machines.

A cycle is to take a lock and give it back. Each cycle of pyraftkv has a lease of its own, as each of aetcd's `Lock`
has, and besides a place in the row, which is why it is fair; aetcd's contenders all try again when the lock is free.
With `Session`, cycles share one lease. Hand-over is from the moment that the leader resigns until the next one leads;
aetcd has no election, so there it is that of a lock. Operations of a machine are a counter's, beside plain puts.

    python -m tests.bench.bench_recipes --seconds 5 --services 1000
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import perf_counter, process_time

import pyraftkv
from pyraftkv.engine import Engine, Namespace
from pyraftkv.recipes import Election, Lock, Registry, Session
from pyraftkv.replicated import ReplicatedCounter
from pyraftkv.store.commands import LeaseQuery
from pyraftkv.store.values import LeaseAnswer
from tests.bench import bench_puts, peer_etcd
from tests.bench.bench_data import show
from tests.bench.harness import VALUE_BYTES, Missing, Result, closed_loop, free_ports, key_of, table

CONTENDERS = 32
TTL = 10
HAND_OVERS = 50
OPERATIONS_IN_FLIGHT = (1, 64)

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


Held = Callable[[], AbstractAsyncContextManager[object]]


async def hand_over(name: str, held: Held, what: str) -> None:
    """Hand something over again and again between two; print how long that takes."""
    seconds: list[float] = []
    resigned_at = 0.0

    async def stand() -> None:
        nonlocal resigned_at
        while len(seconds) < HAND_OVERS:
            async with held():
                if resigned_at:
                    seconds.append(perf_counter() - resigned_at)
                await asyncio.sleep(0.02)  # the other one stands behind this one by then
                resigned_at = perf_counter()

    await asyncio.gather(stand(), stand())
    show(name, f"hand-over of {what}", seconds)


class Counted(Namespace):
    """A part of a store that counts what is asked about leases."""

    asked = 0

    async def ask_leases(self, query: LeaseQuery, timeout: float | None) -> LeaseAnswer:
        """Renew a lease."""
        self.asked += 1
        return await super().ask_leases(query, timeout)


async def services(name: str, engine: Engine, *, count: int, seconds: float, shared: bool) -> None:
    """Keep so many services alive from this process; print how many renewals that takes, and its share of a core."""
    kv = Counted(engine, b"services/")
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(Session(kv, ttl=TTL)) if shared else kv
        registry = Registry(store, ttl=TTL)
        began = perf_counter()
        for first in range(0, count, 100):
            some = [registry.register("web", f"h{number}:80") for number in range(first, min(first + 100, count))]
            await asyncio.gather(*[stack.enter_async_context(each) for each in some])
        took = perf_counter() - began
        cpu, began, asked = process_time(), perf_counter(), kv.asked
        await asyncio.sleep(seconds)
        passed = perf_counter() - began
        share, renewals = (process_time() - cpu) / passed, (kv.asked - asked) / passed
        there = len(await Registry(kv).resolve("web"))
        how = "one lease" if shared else "a lease each"
        print(
            f"{name:24} {there:,} services, {how}: there after {took:.1f} s, "
            f"{renewals:.1f} renewals/s, {share:.1%} of a core to keep them alive"
        )


async def operations(name: str, kv: Engine, *, seconds: float, pids: Sequence[int]) -> None:
    """Add to a machine's number, beside plain puts."""
    counter = ReplicatedCounter(kv, "counter")
    value = os.urandom(VALUE_BYTES)
    results: list[Result] = []
    for in_flight in OPERATIONS_IN_FLIGHT:
        for what, work in (
            ("puts", lambda number: kv.put(key_of(number), value)),
            ("operations", lambda _: counter.add()),
        ):
            results.append(await closed_loop(f"{name}: {what}", work, in_flight=in_flight, seconds=seconds, pids=pids))
    print(table(results))


async def measure_pyraftkv(directory: Path, *, seconds: float, count: int) -> None:
    """Measure three members from one client of the leader."""
    ports = free_ports(len(bench_puts.MEMBERS))
    addresses = [f"127.0.0.1:{port}" for port in ports]
    members = ",".join(f"{name}={address}" for name, address in zip(bench_puts.MEMBERS, addresses, strict=True))
    name = "pyraftkv, remote client"
    with bench_puts.children(bench_puts.MEMBERS, directory, members) as pids:
        async with pyraftkv.connect(",".join(addresses), timeout=bench_puts.START_SECONDS_MAX) as finder:
            await finder.put("warm", "up")
            leader = (await finder.status()).leader
        async with pyraftkv.connect(addresses[leader - 1], timeout=30.0) as kv:
            await cycles(name, lambda: _cycle(Lock(kv, "lock", ttl=TTL)), workers=1, seconds=seconds)
            await cycles(name, lambda: _cycle(Lock(kv, "lock", ttl=TTL)), workers=CONTENDERS, seconds=seconds)
            async with Session(kv, ttl=TTL) as session:
                held = f"{name[:8]}, one Session"
                await cycles(held, lambda: _cycle(Lock(session, "lock")), workers=1, seconds=seconds)
                await cycles(held, lambda: _cycle(Lock(session, "lock")), workers=CONTENDERS, seconds=seconds)
            await hand_over(name, lambda: Election(kv, "boss", ttl=TTL).campaign("me"), "an election")
            await hand_over(name, lambda: Lock(kv, "handed", ttl=TTL), "a lock")
            for shared in (False, True):
                await services(name, kv, count=count, seconds=2 * seconds, shared=shared)
            await operations(name, kv, seconds=seconds, pids=pids)


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

        @asynccontextmanager
        async def held() -> AsyncIterator[None]:
            lock = client.lock(name, ttl=TTL)
            await lock.acquire(timeout=None)
            lease = lock.lease
            yield
            await lock.release()
            await lease.revoke()

        async def cycle() -> None:
            async with held():
                pass

        for workers in (1, CONTENDERS):
            await cycles(peer_etcd.NAME, cycle, workers=workers, seconds=seconds)
        await hand_over(peer_etcd.NAME, held, "a lock")
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
