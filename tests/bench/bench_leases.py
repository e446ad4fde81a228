"""What leases cost: grants and renewals per second, ten thousand that end at once, a hundred thousand kept alive.

Three members; the leader in this process is the one that is asked, and whose event loop is watched (`bench_loop`).

    python -m tests.bench.bench_leases --leases 10000 --many 100000 --seconds 10

Windows: grants; a key put under each lease; renewals, few under way at a time, and then many; the end
of all of them, at once, with puts beside; and then renewals of many leases, each three times in its time to live.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter

import pyraftkv
from pyraftkv.leases import RENEWALS_PER_TTL
from pyraftkv.node import Node
from tests.bench.bench_loop import IN_FLIGHT, LOADING_IN_FLIGHT, Watcher, Window
from tests.bench.bench_puts import MEMBERS, PATIENT_SECONDS, START_SECONDS_MAX, children
from tests.bench.harness import exit_on_sigterm, free_ports, machine

SHORT_TTL_SECONDS = 40
"""Of the leases that end: long enough to put something under all of them, and to renew them."""

LONG_TTL_SECONDS = 150
"""Of the leases that are kept alive: longer than it takes to grant all of them."""

BESIDE_SECONDS = 0.01
"""Between two puts while leases end."""

POLL_SECONDS = 0.01


async def each(count: int, in_flight: int, call: Callable[[int], Awaitable[object]]) -> list[float]:
    """Call something for every number below ``count``, so many at a time; return how long each call took."""
    numbers, latencies = iter(range(count)), list[float]()

    async def worker() -> None:
        for number in numbers:
            sent = perf_counter()
            await call(number)
            latencies.append(perf_counter() - sent)

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(worker())
    return latencies


async def granted(node: Node, count: int, ttl: int) -> list[int]:
    """Grant leases; return their ids."""
    ids: list[int] = []

    async def grant(_: int) -> None:
        ids.append((await node.leases.grant(ttl, timeout=START_SECONDS_MAX)).id)

    await each(count, LOADING_IN_FLIGHT, grant)
    return ids


class Leases:
    """The windows, one after the other."""

    def __init__(self, node: Node, watcher: Watcher) -> None:
        self._node = node
        self._watcher = watcher

    async def short(self, count: int) -> None:
        """Grant leases, put a key under each, renew them at the same time, and see them end."""
        node, ids = self._node, list[int]()

        async def grant(_: int) -> None:
            ids.append((await node.leases.grant(SHORT_TTL_SECONDS, timeout=START_SECONDS_MAX)).id)

        async def put(number: int) -> None:
            await node.put(b"leased/%08d" % number, b"v", lease=ids[number], timeout=START_SECONDS_MAX)

        async def renew(number: int) -> None:
            await node.leases.keep_alive(ids[number], timeout=START_SECONDS_MAX)

        await self._window("grants", count, LOADING_IN_FLIGHT, grant)
        await self._window("puts under leases", count, LOADING_IN_FLIGHT, put)
        await self._window("renewals, few at a time", count, IN_FLIGHT, renew)
        await self._window("renewals, many at once", count, LOADING_IN_FLIGHT, renew)
        await self._end(count)

    async def _window(self, title: str, count: int, in_flight: int, call: Callable[[int], Awaitable[object]]) -> None:
        with self._watcher.window(title) as window:
            window.latencies_s = await each(count, in_flight, call)
        print(report(window), flush=True)

    async def _end(self, count: int) -> None:
        """See leases end, and what becomes of puts meanwhile."""
        node = self._node
        while await self._left() == count:
            await asyncio.sleep(POLL_SECONDS)
        began = perf_counter()
        with self._watcher.window(f"the end of {count:,} leases") as window:
            while await self._left():
                sent = perf_counter()
                await node.put("beside", "v", timeout=START_SECONDS_MAX)
                window.latencies_s.append(perf_counter() - sent)
                await asyncio.sleep(BESIDE_SECONDS)
        print(f"{count:,} leases with a key each ended in {perf_counter() - began:.2f} s")
        print(report(window), flush=True)

    async def _left(self) -> int:
        query = await self._node.range(prefix="leased/", count_only=True, consistency="local")
        return query.count

    async def many(self, count: int, seconds: float) -> None:
        """Keep many leases alive for a while."""
        node = self._node
        began = perf_counter()
        ids = await granted(node, count, LONG_TTL_SECONDS)
        print(f"{count:,} leases granted in {perf_counter() - began:.1f} s", flush=True)
        due = itertools.cycle(ids)
        rate = count * RENEWALS_PER_TTL / LONG_TTL_SECONDS
        end = perf_counter() + seconds
        with self._watcher.window(f"{count:,} leases kept alive, {rate:,.0f} renewals due per second") as window:
            async with asyncio.TaskGroup() as group:
                begun, start = 0, perf_counter()
                while (now := perf_counter()) < end:
                    while begun < (now - start) * rate:
                        group.create_task(renewed(node, next(due), window))
                        begun += 1
                    await asyncio.sleep(POLL_SECONDS)
        print(report(window))
        print(f"{len(await node.leases.list()):,} of {count:,} leases are there at the end", flush=True)


async def renewed(node: Node, lease: int, window: Window) -> None:
    """Renew a lease, and note how long it took."""
    sent = perf_counter()
    await node.leases.keep_alive(lease, timeout=START_SECONDS_MAX)
    window.latencies_s.append(perf_counter() - sent)


def report(window: Window) -> str:
    """Return what a window says, of calls of any kind."""
    return window.report().replace(" puts/s", " calls/s", 1)


async def measure(leases: int, many: int, seconds: float, directory: Path) -> None:
    """Run the cluster, and go through the windows."""
    members = ",".join(f"{name}=127.0.0.1:{port}" for name, port in zip(MEMBERS, free_ports(len(MEMBERS)), strict=True))
    own, *others = MEMBERS
    address = pyraftkv.opening.parse_members(members)[own]
    with children(others, directory, members, election_timeout_seconds=PATIENT_SECONDS):
        async with pyraftkv.open(directory / own, name=own, listen=address, members=members) as node:
            await node.put("warm", "up", timeout=START_SECONDS_MAX)
            if not node.is_leader:
                raise RuntimeError(f"{own} does not lead: run it again")
            with Watcher().installed() as watcher:
                windows = Leases(node, watcher)
                await windows.short(leases)
                if many:
                    await windows.many(many, seconds)


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="What leases cost their leader.")
    parser.add_argument("--leases", type=int, default=10_000, help="that end at once (default: %(default)s)")
    parser.add_argument("--many", type=int, default=100_000, help="that are kept alive (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="for so long (default: %(default)s)")
    options = parser.parse_args()
    exit_on_sigterm()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="pyraftkv-bench-") as directory:
        asyncio.run(measure(options.leases, options.many, options.seconds, Path(directory)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
