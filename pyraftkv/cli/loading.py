"""``check perf`` and ``bench``: what a cluster does under load, as its clients see it.

`bench` keeps a number of operations under way and says how many that makes a second. `check perf` asks for a rate that
a cluster of a size should keep up, as etcdctl does, and says PASS or FAIL. Both write below a prefix of their own, and
delete it at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from statistics import pstdev

from pyraftkv import errors
from pyraftkv.cli.common import DONE, NOT_APPLIED, client
from pyraftkv.cli.printing import emit, emit_json, print_rows
from pyraftkv.kv import KV
from pyraftkv.recipes import Lock, Session

KEYS_MAX = 10_000
"""Operations go round so many keys."""

CLIENTS_MAX = 8
"""Connections of a load."""

LOADS = {"s": (150, 50), "m": (1000, 200), "l": (8000, 500), "xl": (15_000, 1000)}
"""Puts per second that are asked for, and under way at most, by the size of a cluster (etcdctl, ``check perf``)."""

VALUE_BYTES = 1024
"""What ``check perf`` puts."""

THROUGHPUT_SHARE_MIN = 0.9
"""Of the rate: a cluster that does less is too slow."""
SLOWEST_SECONDS_MAX = 0.5
"""The longest that one put may take."""
SPREAD_SECONDS_MAX = 0.1
"""The standard deviation that the puts' times may have."""


@dataclass(slots=True)
class Measured:
    """What a load came to."""

    seconds: float = 0.0
    """How long it was."""
    took: list[float] = field(default_factory=list)
    """Of every operation that was answered, in seconds; sorted once it is over."""
    failed: list[errors.PyraftkvError] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Operations per second."""
        return len(self.took) / self.seconds if self.seconds else 0.0

    def percentile(self, percent: float) -> float:
        """Return the time that so many percent took at most; NaN if nothing was answered."""
        return self.took[max(0, math.ceil(len(self.took) * percent / 100) - 1)] if self.took else math.nan


Work = Callable[[int], Awaitable[object]]
"""Does operation number n."""


async def measure(work: Work, *, in_flight: int, seconds: float, rate: float = 0.0) -> Measured:
    """Keep operations under way for a while.

    Args:
        work: What to do; errors that `errors` knows are counted.
        in_flight: How many at the same time.
        seconds: How long.
        rate: Operations per second that are begun at the most; 0: as many as are answered.
    """
    loop, measured = asyncio.get_running_loop(), Measured()
    began, number = loop.time(), 0

    async def worker() -> None:
        nonlocal number
        while loop.time() < began + seconds:
            due, mine = (began + number / rate if rate else 0.0), number
            number += 1
            if due >= began + seconds:
                return
            await asyncio.sleep(max(0.0, due - loop.time()))
            sent = loop.time()
            try:
                await work(mine)
            except errors.PyraftkvError as error:
                measured.failed.append(error)
            else:
                measured.took.append(loop.time() - sent)

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(worker())
    measured.seconds = max(loop.time() - began, seconds)
    measured.took.sort()
    return measured


async def bench(args: argparse.Namespace) -> int:
    """Keep operations under way for a while, and print how many were answered and how long they took.

    Exit status 1 if any of them failed.
    """
    async with AsyncExitStack() as stack:
        kvs = [await stack.enter_async_context(client(args)) for _ in range(min(args.in_flight, args.clients))]
        await kvs[0].get(args.prefix)  # as in `check_perf`
        work = await work_of(args, kvs, stack)
        measured = await measure(work, in_flight=args.in_flight, seconds=args.seconds)
        await kvs[0].delete(prefix=args.prefix)
    row = {
        "what": args.what,
        "in_flight": args.in_flight,
        "per_second": round(measured.rate, 1),
        "p50_ms": round(1000 * measured.percentile(50), 3),
        "p99_ms": round(1000 * measured.percentile(99), 3),
        "failed": len(measured.failed),
    }
    if args.write_out == "json":
        emit_json(row)
    else:
        print_rows(
            ["WHAT", "IN FLIGHT", "PER SECOND", "P50 MS", "P99 MS", "FAILED"], [[*map(str, row.values())]], "table"
        )
    return NOT_APPLIED if measured.failed else DONE


async def work_of(args: argparse.Namespace, kvs: Sequence[KV], stack: AsyncExitStack) -> Work:
    """Return what is measured: puts, gets, or locks that are taken and given back."""
    prefix, value = args.prefix, b"x" * args.value_bytes

    def kv_of(number: int) -> KV:
        return kvs[number % len(kvs)]

    if args.what == "put":
        return lambda number: kv_of(number).put(f"{prefix}{number % KEYS_MAX}", value)
    if args.what == "get":
        await kvs[0].put(f"{prefix}0", value)
        return lambda number: kv_of(number).get(f"{prefix}0")
    session = await stack.enter_async_context(Session(kvs[0]))

    async def cycle(number: int) -> None:
        async with Lock(session, f"{prefix}{number % args.in_flight}"):
            pass

    return cycle


async def check_perf(args: argparse.Namespace) -> int:
    """Put at the rate that a cluster of a size should keep up, and say PASS or FAIL.

    Exit status 1 if it is too slow: less than nine tenths of the rate, one put over 500 ms, a standard deviation over
    100 ms, or a put that failed.
    """
    rate, in_flight = LOADS[args.load]
    value = b"x" * VALUE_BYTES
    async with AsyncExitStack() as stack:
        kvs = [await stack.enter_async_context(client(args)) for _ in range(CLIENTS_MAX)]
        await kvs[0].get(args.prefix)  # nobody there is said now, and not after a minute of puts that fail
        work: Work = lambda number: kvs[number % CLIENTS_MAX].put(f"{args.prefix}{number % KEYS_MAX}", value)  # noqa: E731
        measured = await measure(work, in_flight=in_flight, seconds=args.seconds, rate=rate)
        await kvs[0].delete(prefix=args.prefix)
    verdicts = list(judged(measured, rate))
    if args.write_out == "json":
        emit_json([{"ok": is_fine, "text": text} for is_fine, text in verdicts])
    else:
        emit(*[f"{'PASS' if is_fine else 'FAIL'}: {text}\n" for is_fine, text in verdicts])
    return DONE if all(is_fine for is_fine, _ in verdicts) else NOT_APPLIED


def judged(measured: Measured, rate: float) -> list[tuple[bool, str]]:
    """Return what is said of a load that was to have this rate: whether each point is fine, and a line."""
    slowest = measured.took[-1] if measured.took else math.inf
    spread = pstdev(measured.took) if measured.took else math.inf
    what = f"{measured.rate:.0f} puts/s of {rate:g}"
    return [
        (measured.rate >= THROUGHPUT_SHARE_MIN * rate, what),
        (slowest <= SLOWEST_SECONDS_MAX, f"the slowest took {slowest:.3f} s (at most {SLOWEST_SECONDS_MAX:g})"),
        (spread <= SPREAD_SECONDS_MAX, f"standard deviation {spread:.3f} s (at most {SPREAD_SECONDS_MAX:g})"),
        (not measured.failed, f"{len(measured.failed)} puts failed"),
    ]
