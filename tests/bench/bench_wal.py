"""What durability costs: CPU per entry, latency of a sync, and the way to the writer thread and back.

Run: ``python tests/bench/bench_wal.py [DIRECTORY]``. Give a directory on the disk that matters.

Figures are per configuration: the best of several rounds for CPU (the least disturbed), medians for latencies. The
thread's own CPU clock leaves out the waiting, so "CPU" is the work and "sync" is the disk.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from statistics import median

from pyraftkv.core.ready import Save
from pyraftkv.core.types import Entry, HardState
from pyraftkv.log import FileStorage, Identity, OsFileSystem
from pyraftkv.log.recovery import open_wal
from pyraftkv.log.wal import SEGMENT_BYTES_MAX
from pyraftkv.log.worker import ThreadWorker

PAYLOAD = Random(1).randbytes(270)
IDENTITY = Identity(cluster_id=1, member_id=1, incarnation=1, boot_count=0)


class TimedFileSystem(OsFileSystem):
    """Measures each sync."""

    def __init__(self) -> None:
        super().__init__()
        self.sync_seconds: list[float] = []

    def fdatasync(self, fd: int) -> None:
        started = time.perf_counter()
        super().fdatasync(fd)
        self.sync_seconds.append(time.perf_counter() - started)


def saves(count: int, batch: int) -> list[Save]:
    """``count`` saves of ``batch`` entries each, as a busy leader makes them."""
    made: list[Save] = []
    for number in range(count):
        first = number * batch + 1
        entries = [Entry(first + i, 1, PAYLOAD) for i in range(batch)]
        made.append(Save(number + 1, HardState(1, 1, first - 1), entries, None))
    return made


def bench_append(directory: str, batch: int, count: int) -> None:
    """The synchronous log: append one batch after the other."""
    fs = TimedFileSystem()
    Path(directory).mkdir()
    wal, _ = open_wal(fs, directory, identity=IDENTITY, random=Random(1), segment_bytes_max=SEGMENT_BYTES_MAX)
    work = saves(count, batch)
    cpu: list[float] = []
    started = time.perf_counter()
    for save in work:
        before, syncs = time.thread_time(), len(fs.sync_seconds)
        wal.append([save])
        if len(fs.sync_seconds) == syncs + 1:  # not a roll
            cpu.append(time.thread_time() - before)
    elapsed = time.perf_counter() - started
    wal.close()
    cpu.sort()
    per_batch = median(cpu) * 1e6
    print(
        f"append      batch {batch:4}: {count / elapsed:8,.0f} batches/s  {count * batch / elapsed:9,.0f} entries/s  "
        f"CPU {per_batch:7.1f} us/batch {per_batch / batch:7.2f} us/entry  "
        f"fdatasync p50 {median(fs.sync_seconds) * 1e6:6.0f} us"
    )


async def bench_storage(directory: str, batch: int, count: int) -> None:
    """The storage: a save, and its completion on the loop, one at a time."""
    storage = FileStorage(directory)
    await storage.start(failed=print)
    loop = asyncio.get_running_loop()
    latency: list[float] = []
    for save in saves(count, batch):
        done = loop.create_future()
        started = time.perf_counter()
        storage.save(save, done.set_result)
        await done
        latency.append(time.perf_counter() - started)
    await storage.close()
    latency.sort()
    print(
        f"save->then  batch {batch:4}: p50 {latency[count // 2] * 1e6:7.0f} us  "
        f"p99 {latency[count * 99 // 100] * 1e6:7.0f} us"
    )


async def bench_group(directory: str, writers: int, seconds: float) -> None:
    """Group commit: each of many writers saves one entry as soon as its last one is durable."""
    storage = FileStorage(directory)
    await storage.start(failed=print)
    loop = asyncio.get_running_loop()
    stop = loop.time() + seconds
    index = 0

    async def write() -> None:
        nonlocal index
        while loop.time() < stop:
            index += 1
            done = loop.create_future()
            save = Save(index, None, [Entry(index, 1, PAYLOAD)], None)
            storage.save(save, done.set_result)
            await done

    cpu = time.process_time()
    await asyncio.gather(*(write() for _ in range(writers)))
    cpu = time.process_time() - cpu
    await storage.close()
    print(f"group       {writers:4} writers: {index / seconds:9,.0f} saves/s  CPU {cpu / index * 1e6:6.1f} us/save")


async def bench_hop(count: int) -> None:
    """An empty job: to the worker's thread and back, on an idle loop and on one that is busy in Python."""
    worker = ThreadWorker("hop")
    loop = asyncio.get_running_loop()
    for busy in (False, True):
        spinning = asyncio.ensure_future(_spin()) if busy else None
        latency: list[float] = []
        for _ in range(count):
            done = loop.create_future()
            started = time.perf_counter()
            worker.submit(lambda: None, lambda _result, _error, done=done: done.set_result(None))
            await done
            latency.append(time.perf_counter() - started)
        if spinning is not None:
            spinning.cancel()
        latency.sort()
        print(
            f"thread hop  {'busy' if busy else 'idle'} loop:  p50 {latency[count // 2] * 1e6:7.0f} us  "
            f"p99 {latency[count * 99 // 100] * 1e6:7.0f} us"
        )
    worker.stop()


async def _spin() -> None:
    while True:
        sum(range(10_000))  # about 0.2 ms of work between two looks at the selector
        await asyncio.sleep(0)


def bench_open(directory: str, batch: int, count: int) -> None:
    """A start: scan, verify and read the entries back."""
    Path(directory).mkdir()
    fs = OsFileSystem()
    wal, _ = open_wal(fs, directory, identity=IDENTITY, random=Random(1), segment_bytes_max=SEGMENT_BYTES_MAX)
    for save in saves(count, batch):
        wal.append([save])
    wal.close()
    started = time.perf_counter()
    wal, _ = open_wal(fs, directory, identity=IDENTITY, random=Random(1), segment_bytes_max=SEGMENT_BYTES_MAX)
    scanned = time.perf_counter()
    entries = wal.read(lo=1, hi=wal.last_index + 1, bytes_max=1 << 62)
    read = time.perf_counter()
    wal.close()
    size = len(entries) * len(PAYLOAD) / 1e6
    print(
        f"open        {len(entries):,} entries, {size:.0f} MB: scan {scanned - started:.2f} s, "
        f"read {read - scanned:.2f} s ({(read - scanned) / len(entries) * 1e6:.2f} us/entry)"
    )


def main() -> None:
    """Run everything and print one line per figure."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as root:
        for batch, count in ((1, 3000), (64, 2000), (256, 1000)):
            bench_append(f"{root}/append-{batch}", batch, count)
        for batch, count in ((1, 3000), (64, 2000), (256, 1000)):
            asyncio.run(bench_storage(f"{root}/storage-{batch}", batch, count))
        asyncio.run(bench_group(f"{root}/group", 64, 2.0))
        asyncio.run(bench_hop(3000))
        bench_open(f"{root}/open", 256, 1000)


if __name__ == "__main__":
    main()
