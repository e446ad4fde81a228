"""The loop never blocks: the longest single callback of a leader, while it takes writes and writes a snapshot.

Three members; the leader in this process is the one that is measured, with 100,000 keys of 256 B in it. Every callback
of its event loop is timed by the thread's own CPU clock, so that a machine that is busy elsewhere, or a writer thread
that holds the interpreter, is not taken for a long callback; the longest stretch between two looks at the sockets is
shown beside it by the wall clock, where all of that does count.

    python -m tests.bench.bench_loop --keys 100000 --seconds 5

Four windows, each with the p50 and p99 of its puts: puts alone; puts while a snapshot is taken; the same with Python's
cyclic collector off; and with what stands in the store hidden from the collector (`gc.freeze`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import sys
import tempfile
from asyncio.events import Handle
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import Any

import pyraftkv
from pyraftkv.node import Node
from tests.bench.bench_puts import MEMBERS, PATIENT_SECONDS, START_SECONDS_MAX, children
from tests.bench.harness import VALUE_BYTES, exit_on_sigterm, free_ports, machine, percentile

GOAL_SECONDS = 0.020
IN_FLIGHT = 64
LOADING_IN_FLIGHT = 512
TOP = 5
COLLECTIONS = 9


@dataclass
class Calls:
    """All callbacks of one name."""

    count: int = 0
    cpu_s_max: float = 0.0
    wall_s_max: float = 0.0
    cpu_s: float = 0.0


@dataclass
class Window:
    """What was seen of the loop in one stretch of time."""

    title: str
    calls: dict[str, Calls] = field(default_factory=lambda: defaultdict(Calls))
    gap_s_max: float = 0.0
    """The longest time between two looks at the sockets."""
    collections: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    """CPU seconds of each run of the cyclic collector on this thread, by generation."""
    latencies_s: list[float] = field(default_factory=list)
    """Of each put."""
    snapshots: int = 0
    seconds: float = 0.0

    def report(self) -> str:
        """Lay out the window: the longest callbacks first."""
        by_length = sorted(self.calls.items(), key=lambda item: -item[1].cpu_s_max)
        longest = by_length[0][1].cpu_s_max if by_length else 0.0
        verdict = "within" if longest <= GOAL_SECONDS else "OVER"
        puts_per_s = len(self.latencies_s) / self.seconds
        latencies = sorted(self.latencies_s)
        p50, p99 = (percentile(latencies, each) * 1e3 for each in (50, 99))
        goal = f"{verdict} {GOAL_SECONDS * 1e3:.0f} ms"
        gap = f"longest gap {self.gap_s_max * 1e3:.1f} ms of wall clock"
        lines = [
            f"{self.title}: {puts_per_s:,.0f} puts/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms, {self.snapshots} snapshots",
            f"  longest callback {longest * 1e3:.1f} ms of CPU, {goal}; {gap}",
        ]
        for name, calls in by_length[:TOP]:
            lines.append(
                f"  {calls.cpu_s_max * 1e3:8.2f} ms CPU  {calls.wall_s_max * 1e3:8.2f} ms wall  "
                f"{calls.count:8,} calls  {calls.cpu_s:6.2f} s  {name}"
            )
        for generation, seconds in sorted(self.collections.items()):
            lines.append(
                f"  collector, generation {generation}: {len(seconds):,} runs, "
                f"longest {max(seconds) * 1e3:.1f} ms of CPU, {sum(seconds):.2f} s in all"
            )
        return "\n".join(lines)


class Watcher:
    """Times every callback of the running loop, between `open` and the end of it."""

    def __init__(self) -> None:
        self._window: Window | None = None
        self._collecting = 0.0

    @contextlib.contextmanager
    def installed(self) -> Iterator[Watcher]:
        """Put the clocks in, in this process only."""
        run = Handle._run
        loop: Any = asyncio.get_running_loop()
        select = loop._selector.select
        looked_at = perf_counter()

        def timed_run(handle: Any) -> None:
            window = self._window
            if window is None:
                run(handle)
                return
            name = name_of(handle._callback)
            wall, cpu = perf_counter(), thread_time()
            run(handle)
            cpu, wall = thread_time() - cpu, perf_counter() - wall
            calls = window.calls[name]
            calls.count += 1
            calls.cpu_s += cpu
            calls.cpu_s_max = max(calls.cpu_s_max, cpu)
            calls.wall_s_max = max(calls.wall_s_max, wall)

        def timed_select(timeout: float | None = None) -> Any:
            nonlocal looked_at
            if self._window is not None:
                self._window.gap_s_max = max(self._window.gap_s_max, perf_counter() - looked_at)
            events = select(timeout)
            looked_at = perf_counter()
            return events

        Handle._run = timed_run  # type: ignore[method-assign]
        loop._selector.select = timed_select
        gc.callbacks.append(self._collected)
        try:
            yield self
        finally:
            Handle._run = run  # type: ignore[method-assign]
            loop._selector.select = select
            gc.callbacks.remove(self._collected)

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._collecting = thread_time()
        elif self._window is not None:
            self._window.collections[info["generation"]].append(thread_time() - self._collecting)

    @contextlib.contextmanager
    def window(self, title: str) -> Iterator[Window]:
        """Watch for a while."""
        window = self._window = Window(title)
        began = perf_counter()
        try:
            yield window
        finally:
            self._window = None
            window.seconds = perf_counter() - began


def name_of(callback: Any) -> str:
    """Return what a person calls this callback: a task's coroutine, or the function."""
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        coroutine = owner.get_coro()
        return f"task {getattr(coroutine, '__qualname__', owner.get_name())}"
    while hasattr(callback, "func"):
        callback = callback.func
    return getattr(callback, "__qualname__", type(callback).__qualname__)


class Puts:
    """A closed loop of puts over the keys, as many under way as asked for."""

    def __init__(self, node: Node, keys: int) -> None:
        self._node = node
        self._keys = keys
        self._sequence = itertools.count()
        self._value = b"v" * VALUE_BYTES
        self.window: Window | None = None

    async def fill(self) -> None:
        """Put every key once."""
        await self._run(LOADING_IN_FLIGHT, until=lambda at: at >= self._keys)

    async def run(self, seconds: float) -> None:
        """Overwrite keys for so long."""
        end = perf_counter() + seconds
        await self._run(IN_FLIGHT, until=lambda _: perf_counter() >= end)

    async def _run(self, in_flight: int, *, until: Any) -> None:
        async def worker() -> None:
            while not until(at := next(self._sequence)):
                sent = perf_counter()
                await self._node.put(b"bench/%08d" % (at % self._keys), self._value, timeout=START_SECONDS_MAX)
                if self.window is not None:
                    self.window.latencies_s.append(perf_counter() - sent)

        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(worker())


async def measure(keys: int, seconds: float, directory: Path) -> list[Window]:
    """Run the cluster, and watch its leader in four windows."""
    members = ",".join(f"{name}=127.0.0.1:{port}" for name, port in zip(MEMBERS, free_ports(len(MEMBERS)), strict=True))
    own, *others = MEMBERS
    address = pyraftkv.opening.parse_members(members)[own]
    windows: list[Window] = []
    with children(others, directory, members, election_timeout_seconds=PATIENT_SECONDS):
        async with pyraftkv.open(directory / own, name=own, listen=address, members=members) as node:
            puts = Puts(node, keys)
            began = perf_counter()
            await puts.fill()
            if not node.is_leader:
                await node.transfer_leadership(own)  # a machine that is busy elsewhere has lost it meanwhile
            print(f"{keys:,} keys of {VALUE_BYTES} B loaded in {perf_counter() - began:.1f} s", flush=True)
            with Watcher().installed() as watcher:
                for title in ("puts", "puts, snapshot", "puts, snapshot, no collector", "puts, snapshot, frozen heap"):
                    with collector(title), watcher.window(title) as window:
                        puts.window = window
                        await load(node, puts, window, seconds)
                    windows.append(window)
                    await asyncio.sleep(0)  # what comes next is no part of the callback that ended the window
            print(full_collection(), flush=True)
    return windows


@contextlib.contextmanager
def collector(title: str) -> Iterator[None]:
    """Set the cyclic collector as the window's title says, and set it back."""
    gc.collect()
    if "no collector" in title:
        gc.disable()
    if "frozen" in title:
        gc.freeze()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def full_collection() -> str:
    """Measure full runs of the collector, as Python may start one at any time, and say over what they went."""
    tracked = Counter(type(each).__name__ for each in gc.get_objects())
    gc.collect()
    times: list[float] = []
    for _ in range(COLLECTIONS):
        began = thread_time()
        gc.collect()
        times.append(1e3 * (thread_time() - began))
    most = ", ".join(f"{count:,} {name}" for name, count in tracked.most_common(TOP))
    took = f"{median(times):.1f} ms of CPU (at least {min(times):.1f})"
    return f"a full collection: {took} over {tracked.total():,} objects ({most}, ...)"


async def load(node: Node, puts: Puts, window: Window, seconds: float) -> None:
    """Put for so long, with snapshots one after the other meanwhile if the window is about them."""
    running = asyncio.create_task(puts.run(seconds), name="puts")
    while "snapshot" in window.title and not running.done():
        await node.take_snapshot()
        window.snapshots += 1
    await running


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description="The longest callback of a leader's event loop.")
    parser.add_argument("--keys", type=int, default=100_000, help="keys in the store (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each window (default: %(default)s)")
    options = parser.parse_args()
    exit_on_sigterm()
    print(machine())
    with tempfile.TemporaryDirectory(prefix="pyraftkv-bench-") as directory:
        windows = asyncio.run(measure(options.keys, options.seconds, Path(directory)))
    for window in windows:
        print(window.report())
    return 0


if __name__ == "__main__":
    sys.exit(main())
