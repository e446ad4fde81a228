"""One shape for every benchmark of puts: a closed loop, a window, and what it cost.

A closed loop keeps `in_flight` puts under way: each worker sends its next one when the last is answered. The first
second warms up and is not counted. A put counts if it was answered inside the window.

CPU is the user and system time of every process involved, the one that makes the load included: on a machine
with few cores, a store that needs twice the CPU per put does half the work, wherever the CPU is spent.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

VALUE_BYTES = 256
IN_FLIGHT = (1, 64, 256)
WARM_UP_SECONDS = 1.0
STOP_SECONDS_MAX = 5.0
"""How long a process may take to end when it is asked to."""
SECTOR_BYTES = 512
"""What the counters of disks count in."""
KEYS_MAX = 100_000
"""Puts go round this many keys, so that a long run measures puts and not the growth of the store."""


class Missing(Exception):
    """The peer to measure is not installed here; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Result:
    """One measurement."""

    name: str
    in_flight: int
    puts_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_s_per_1000: float
    """CPU seconds of all processes together per 1,000 puts; NaN where the system does not tell."""
    written_bytes_per_put: float
    """Bytes that the disk of the data directories wrote per put, for all members; NaN where nobody says."""


Run = Callable[[Sequence[int], float], list[Result]]
"""What every benchmark module exposes as `run(in_flight, seconds)`."""


def key_of(sequence: int) -> bytes:
    """Return the key of the put number `sequence`, the same for every store."""
    return b"bench/%08d" % (sequence % KEYS_MAX)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU seconds that these processes have used so far, all their threads included."""
    ticks = 0
    for pid in pids:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except FileNotFoundError:
            return math.nan
        fields = stat[stat.rindex(")") + 2 :].split()  # the command before it may hold spaces
        ticks += int(fields[11]) + int(fields[12])  # utime and stime, proc(5)
    return ticks / os.sysconf("SC_CLK_TCK")


def written_bytes(directory: str | Path) -> int | float:
    """Return the bytes that the disk below ``directory`` was given to write so far, by whomever; NaN where nobody says.

    By the device's own count, journal and all. That of a process (`write_bytes` of proc(5)) is of whole folios: where a
    file was written in large pieces, a page that is written again counts as all of its piece.
    """
    device = Path(directory).stat().st_dev
    try:
        fields = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
    except OSError:
        return math.nan
    return int(fields[6]) * SECTOR_BYTES


class Window:
    """The stretch of time that is measured: call `begin`, `answered` for each put, and `end`."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = [*pids]
        self._open = False
        self._latencies_s: list[float] = []
        self._began = self._elapsed = self._cpu = 0.0
        self._written: int | float = 0

    def begin(self) -> None:
        """Start to count."""
        self._latencies_s.clear()
        self._cpu = cpu_seconds(self._pids)
        self._written = written_bytes(tempfile.gettempdir())
        self._began = perf_counter()
        self._open = True

    def answered(self, sent: float) -> float:
        """Count a put that was sent at `sent` (by `perf_counter`) and is answered now; return now."""
        now = perf_counter()
        if self._open:
            self._latencies_s.append(now - sent)
        return now

    def end(self) -> None:
        """Stop counting."""
        self._open = False
        self._elapsed = perf_counter() - self._began
        self._cpu = cpu_seconds(self._pids) - self._cpu
        self._written = written_bytes(tempfile.gettempdir()) - self._written

    def result(self, name: str, in_flight: int) -> Result:
        """Return what was measured. Raises `RuntimeError` if not a single put was answered."""
        latencies = sorted(self._latencies_s)
        if not latencies:
            raise RuntimeError(f"{name}: no put was answered with {in_flight} in flight")
        return Result(
            name=name,
            in_flight=in_flight,
            puts_per_s=len(latencies) / self._elapsed,
            p50_ms=percentile(latencies, 50) * 1e3,
            p99_ms=percentile(latencies, 99) * 1e3,
            cpu_s_per_1000=self._cpu / len(latencies) * 1e3,
            written_bytes_per_put=self._written / len(latencies),
        )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the smallest value that is >= `percent` of `ordered` (nearest rank)."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


async def closed_loop(
    name: str,
    put: Callable[[int], Awaitable[object]],
    *,
    in_flight: int,
    seconds: float,
    pids: Iterable[int] = (),
) -> Result:
    """Keep `in_flight` puts under way for `seconds` after the warm-up.

    Args:
        name: The row's name.
        put: Does put number n; what it raises ends the measurement.
        in_flight: How many puts are under way at any time.
        seconds: The length of the window.
        pids: The processes that do the work, besides this one.

    Returns:
        The measurement.
    """
    window = Window({os.getpid(), *pids})
    sequence = itertools.count()
    running = True

    async def worker() -> None:
        sent = perf_counter()
        while running:
            await put(next(sequence))
            sent = window.answered(sent)

    async def measure() -> None:
        nonlocal running
        await asyncio.sleep(WARM_UP_SECONDS)
        window.begin()
        await asyncio.sleep(seconds)
        window.end()
        running = False

    async with asyncio.TaskGroup() as group:
        group.create_task(measure())
        for _ in range(in_flight):
            group.create_task(worker())
    return window.result(name, in_flight)


@contextlib.contextmanager
def process(
    arguments: Sequence[str],
    *,
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | None = subprocess.DEVNULL,
    log: Path | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Start a program in a process group of its own, and stop the whole group at the end, whatever happens.

    Args:
        arguments: The command line.
        stdin: As `subprocess.Popen` takes it.
        stdout: As `subprocess.Popen` takes it.
        log: Where its standard error goes; shown if the program ends by itself.
    """
    with contextlib.ExitStack() as stack:
        stderr = stack.enter_context(log.open("w")) if log else subprocess.DEVNULL
        child = subprocess.Popen(
            arguments, stdin=stdin, stdout=stdout, stderr=stderr, text=True, start_new_session=True
        )
        try:
            yield child
        finally:
            if child.poll() is not None and log:
                print(f"{arguments[0]} ended with {child.returncode}:\n{log.read_text()[-2000:]}", file=sys.stderr)
            stop(child)


def stop(child: subprocess.Popen[str]) -> None:
    """End a process group: politely first, and for certain before this returns."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=STOP_SECONDS_MAX)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # whoever in the group did not listen
    child.wait()
    for stream in (child.stdin, child.stdout):
        if stream:
            stream.close()


def free_ports(count: int) -> list[int]:
    """Return loopback ports that nobody listens on at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def table(results: Sequence[Result]) -> str:
    """Lay out the results, each beside its ratio to the first store's puts/s at as many in flight."""
    base = {each.in_flight: each.puts_per_s for each in results if each.name == results[0].name}
    rows = [("store", "in flight", "puts/s", "p50 ms", "p99 ms", "CPU s/1000", "B written/put", "ratio")]
    rows += [
        (
            each.name,
            str(each.in_flight),
            f"{each.puts_per_s:,.0f}",
            f"{each.p50_ms:.2f}",
            f"{each.p99_ms:.2f}",
            f"{each.cpu_s_per_1000:.3f}",
            f"{each.written_bytes_per_put:,.0f}",
            f"{each.puts_per_s / base[each.in_flight]:.2f}" if each.in_flight in base else "-",
        )
        for each in results
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def machine() -> dict[str, str | int]:
    """Say where it was measured."""
    cpu = platform.processor()
    with contextlib.suppress(FileNotFoundError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def save(results: Sequence[Result], path: Path) -> None:
    """Write the results as JSON, with the machine they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "results": [asdict(each) for each in results]}, indent=2) + "\n")


def arguments(description: str) -> argparse.Namespace:
    """Parse the command line that all benchmarks of puts share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each window (default: %(default)s)")
    parser.add_argument(
        "--in-flight", type=int, nargs="+", default=[*IN_FLIGHT], help="puts under way (default: 1 64 256)"
    )
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    return parser.parse_args()


def main(run: Run, description: str) -> int:
    """Run one benchmark from its command line, print its table, and return the exit status."""
    options = arguments(description)
    exit_on_sigterm()
    try:
        results = run(options.in_flight, options.seconds)
    except Missing as missing:
        print(f"skipped: {missing}")
        return 0
    print(table(results))
    if options.json:
        save(results, options.json)
    return 0


def exit_on_sigterm() -> None:
    """Turn SIGTERM into `SystemExit`, so that the processes started are stopped on the way out."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
