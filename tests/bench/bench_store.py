"""How fast the store is, and how much memory a key takes.

Run: ``python -m tests.bench.bench_store [--million]``. The numbers are printed, never asserted: machines differ.

With ``--collector`` it measures memory and full garbage collections alone, in CPU time, of a process that holds nothing
besides a store of 1,000,000 keys of 256 B: at no keys, when they were put in order, and in no order.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from random import Random
from time import perf_counter, process_time

from pyraftkv.store import Restorer, Store, Work
from pyraftkv.store.commands import (
    FROM_KEY,
    Compact,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    PutBatch,
    PutKey,
    RangeQuery,
    Transaction,
)

VALUE = b"v" * 256
SLICE_KEYS = 1000
TXN_KEYS = 100
COLLECTIONS = 15


def rss_mb() -> float:
    """Return the resident memory of this process, in MB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def show(name: str, seconds: float, count: int) -> None:
    """Print the time that each of ``count`` operations took."""
    print(f"{name:44} {seconds / count * 1e9:12,.0f} ns each")


def keys_of(count: int) -> list[bytes]:
    """Return ``count`` keys of 16 bytes in a fixed random order."""
    keys = [b"k%015d" % i for i in range(count)]
    Random(1).shuffle(keys)
    return keys


def fill(store: Store, keys: list[bytes], name: str) -> None:
    """Put every key once; print the mean and the worst."""
    worst = 0.0
    started = perf_counter()
    for key in keys:
        store.apply(PutKey(key, VALUE))
    elapsed = perf_counter() - started
    for key in keys[:20_000]:
        before = perf_counter()
        store.apply(PutKey(key, VALUE))
        worst = max(worst, perf_counter() - before)
    show(f"put {name} (incl. 150 ns for the command)", elapsed, len(keys))
    print(f"{'  worst of 20,000 puts over them':44} {worst * 1e3:12.2f} ms")


def bench_operations(store: Store, keys: list[bytes]) -> None:
    """Time single operations on a filled store."""
    sample = keys[:50_000]
    commands = [PutKey(key, VALUE) for key in sample]
    started = perf_counter()
    for command in commands:
        store.apply(command)
    show("put, existing keys in random order", perf_counter() - started, len(sample))
    batches = [PutBatch([item for key in sample[i : i + 64] for item in (key, VALUE)]) for i in range(0, 50_000, 64)]
    started = perf_counter()
    for batch in batches:
        store.apply(batch)
    show("put, the same in batches of 64", perf_counter() - started, len(sample))
    commands = [PutKey(b"hot", VALUE)] * 50_000
    started = perf_counter()
    for command in commands:
        store.apply(command)
    show("put, one hot key", perf_counter() - started, len(sample))
    started = perf_counter()
    for key in sample:
        store.get(key)
    show("get", perf_counter() - started, len(sample))
    started = perf_counter()
    for _ in range(1000):
        store.get(b"hot", store.revision - 40_000)
    show("get of the hot key, 40,000 versions back", perf_counter() - started, 1000)
    query = RangeQuery(b"k", FROM_KEY, limit=1000)
    started = perf_counter()
    for _ in range(20):
        result = store.read(query)
        while isinstance(result, Work):
            done = result.step(SLICE_KEYS)
            result = result if done is None else done
    show("range of 1,000 (per key, counting the rest)", perf_counter() - started, 20_000)
    compare = Compare(CompareTarget.VERSION, CompareResult.GREATER, sample[0], 0)
    txns = [Transaction([compare], [PutKey(key, VALUE) for key in keys[i : i + 10]]) for i in range(0, 50_000, 10)]
    started = perf_counter()
    for txn in txns:
        store.apply(txn)
    show("transaction of 1 compare and 10 puts", perf_counter() - started, len(txns))


def bench_watch(store: Store, keys: list[bytes]) -> None:
    """Time distribution to 10,000 watchers of single keys and 1 of everything."""
    for key in keys[:10_000]:
        store.watch(key)
    everything = store.watch(FROM_KEY, FROM_KEY)
    store.advance()
    started = perf_counter()
    events = 0
    for i in range(0, 50_000, 100):
        for key in keys[i : i + 100]:
            store.apply(PutKey(key, VALUE))
        for watcher in store.advance():
            while (batch := watcher.take()) is not None:
                events += len(batch.events) if watcher is everything else 0
    show("put + watch event, 10,001 watchers", perf_counter() - started, events)


def bench_upkeep(store: Store) -> None:
    """Time snapshot, restore, compaction and deletion of everything."""
    started = perf_counter()
    with store.snapshot() as snapshot:
        chunks = list(snapshot)
    size_mb = sum(map(len, chunks)) / 1e6
    print(f"{'snapshot':44} {perf_counter() - started:12.2f} s for {size_mb:,.0f} MB")
    worst = 0.0
    started = perf_counter()
    restorer = Restorer()
    for chunk in chunks:
        before = perf_counter()
        restorer.feed(chunk)
        worst = max(worst, perf_counter() - before)
    restored = restorer.finish()
    print(f"{'restore':44} {perf_counter() - started:12.2f} s, worst chunk {worst * 1e3:.1f} ms")
    assert restored.key_count == store.key_count
    del restored, restorer, chunks
    store.apply(Compact(store.revision))
    run_sliced("compaction", store.compaction())
    run_sliced("delete of every key", store.apply(DeleteRange(b"k", FROM_KEY)))


def run_sliced(name: str, work: object) -> None:
    """Step through ``work`` and print the whole time and the worst slice."""
    worst = 0.0
    started = perf_counter()
    done = None
    while isinstance(work, Work) and done is None:
        before = perf_counter()
        done = work.step(SLICE_KEYS)
        worst = max(worst, perf_counter() - before)
    print(f"{name:44} {perf_counter() - started:12.2f} s, worst slice {worst * 1e3:.1f} ms")


def collector(count: int) -> None:
    """Print what a store of ``count`` keys costs in memory and to the collector, beside an empty process."""
    show_collection("no keys")
    base = rss_mb()
    for name, step in (("in order", 1), ("in no order", 617_171)):
        store = Store()
        for first in range(0, count, TXN_KEYS):
            numbers = [number * step % count for number in range(first, first + TXN_KEYS)]
            store.apply(Transaction([], [PutKey(b"key/%010d" % number, VALUE) for number in numbers], []))
        print(f"{f'{count:,} keys {name}, memory':44} {(rss_mb() - base) * 1e6 / count:12.0f} B per key")
        show_collection(f"{count:,} keys {name}")
        for first in range(0, count // 3, TXN_KEYS):
            again = [PutKey(b"key/%010d" % number, VALUE) for number in range(first, first + TXN_KEYS)]
            store.apply(Transaction([], again, []))
        show_collection("a third of them put again")
        del store
        gc.collect()


def show_collection(name: str) -> None:
    """Print how long full collections take, and how many objects there are for them to look at."""
    seconds = []
    gc.collect()
    for _ in range(COLLECTIONS):
        before = process_time()
        gc.collect()
        seconds.append(process_time() - before)
    seconds.sort()
    middle, least = seconds[COLLECTIONS // 2] * 1e3, seconds[0] * 1e3
    objects = len(gc.get_objects())
    print(f"{f'{name}, gc.collect()':44} {middle:12.1f} ms (at least {least:.1f}), {objects:,} objects", flush=True)


def main() -> None:
    """Run everything at 100,000 keys, or at 1,000,000 with ``--million``."""
    if "--collector" in sys.argv:
        collector(1_000_000)
        return
    count = 1_000_000 if "--million" in sys.argv else 100_000
    keys = keys_of(count)
    gc.collect()
    gc.freeze()
    base = rss_mb()
    store = Store()
    fill(store, keys, f"{count:,} new keys in random order")
    print(f"{'memory':44} {rss_mb() - base:12.0f} MB (besides the keys that the bench holds)")
    gc.unfreeze()
    started = perf_counter()
    gc.collect()
    print(f"{'gc.collect()':44} {(perf_counter() - started) * 1e3:12.1f} ms (the bench's list of keys included)")
    bench_operations(store, keys)
    bench_upkeep(store)
    bench_watch(Store(), keys)


if __name__ == "__main__":
    main()
