"""Watches on a node: woken by what concerns them, carried over to a restored store, each ended with its own error."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest

from pyraftkv import errors
from pyraftkv.node import watches
from pyraftkv.node.watches import WatchHub
from pyraftkv.protocol import WatchCall
from pyraftkv.store import Restorer, Store, Work
from pyraftkv.store.commands import Compact, PutKey, Transaction
from tests.node.support import asynchronous, pairs, refused, take


def call(key: bytes, start_revision: int = 0, end: bytes = b"") -> WatchCall:
    """Return a call for a watch."""
    return WatchCall(0, key, end, start_revision, False)


def put(store: Store, key: bytes, value: bytes = b"v") -> int:
    """Put a key; return the revision."""
    result = store.apply(PutKey(key, value))
    assert not isinstance(result, Work)
    return result.revision


def copy_of(store: Store) -> Store:
    """Return the store as it comes out of a snapshot."""
    restorer, snapshot = Restorer(), store.snapshot()
    for chunk in snapshot:
        restorer.feed(chunk)
    snapshot.close()
    return restorer.finish()


def hub_of(store: Store) -> WatchHub:
    """Return the hub of a store's watches."""
    return WatchHub(store, asyncio.get_running_loop())


@asynchronous
async def test_a_store_that_is_replaced_while_a_reader_is_in_the_middle_of_a_batch() -> None:
    """No gap and no repetition: the rest of the batch is the old store's, what follows the new one's."""
    store = Store()
    hub = hub_of(store)
    for number in range(5):
        put(store, b"k", b"%d" % number)
    watch = hub.open(call(b"k", start_revision=1))
    events = aiter(watch)
    seen = [await anext(events), await anext(events)]
    fresh = copy_of(store)
    for number in range(5, 8):
        put(fresh, b"k", b"%d" % number)
    hub.replace_store(fresh)
    seen += [await anext(events) for _ in range(6)]
    assert [event.kv.value for event in seen] == [b"%d" % number for number in range(8)]
    put(fresh, b"k", b"live")
    hub.advance()
    assert (await anext(events)).kv.value == b"live"
    await watch.close()
    assert len(hub) == 0


@asynchronous
async def test_an_idle_watch_goes_on_in_a_store_that_is_compacted_past_its_beginning() -> None:
    """It has seen everything up to the replacement, although nothing of it concerned it."""
    store = Store()
    hub = hub_of(store)
    watch = hub.open(call(b"idle"))
    for _ in range(10):
        last = put(store, b"busy")
    hub.advance()
    store.apply(Compact(last))
    fresh = copy_of(store)
    hub.replace_store(fresh)
    put(fresh, b"idle", b"now")
    hub.advance()
    assert [event.kv.value for event in await take(watch, 1)] == [b"now"]


@asynchronous
async def test_a_watch_that_would_miss_something_is_cancelled() -> None:
    """The restored store no longer has what it was to read next: it says where it stood."""
    store = Store()
    hub = hub_of(store)
    watch = hub.open(call(b"k"))
    fresh = copy_of(store)
    for _ in range(10):
        last = put(fresh, b"k")
    fresh.apply(Compact(last))
    hub.replace_store(fresh)
    for _ in range(2):
        cancelled = await refused(take(watch, 1), errors.WatchCancelled)
        assert (cancelled.resume_revision, cancelled.compact_revision) == (2, last)
    await refused(watch.synced(), errors.WatchCancelled)


@asynchronous
async def test_a_lagging_watch_whose_history_is_compacted() -> None:
    """It says so, also when asked again, and takes no place any more."""
    store = Store()
    hub = hub_of(store)
    for _ in range(10):
        last = put(store, b"k")
    watch = hub.open(call(b"k", start_revision=2))
    store.apply(Compact(last))
    for _ in range(2):
        cancelled = await refused(take(watch, 1), errors.WatchCancelled)
        assert cancelled.compact_revision == last
    assert len(hub) == 0


@asynchronous
async def test_the_revision_of_a_watch_never_runs_ahead_of_its_reader() -> None:
    """In the middle of a revision it is not complete; at its end it is."""
    store = Store()
    hub = hub_of(store)
    watch = hub.open(call(b"k", end=b"l"))
    store.apply(Transaction([], [PutKey(b"k1", b"v"), PutKey(b"k2", b"v")], []))
    hub.advance()
    events = aiter(watch)
    revisions = [watch.revision]
    for _ in range(2):
        await anext(events)
        revisions.append(watch.revision)
    assert revisions == [1, 1, 1]
    ended = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    assert watch.revision == watch.progress == 2
    await watch.close()
    await refused(ended, errors.Closed)


@asynchronous
async def test_synced_waits_for_history_to_be_handed_out() -> None:
    """A watch that starts now is synced at once, one with history when somebody has taken it."""
    store = Store()
    hub = hub_of(store)
    for _ in range(3):
        last = put(store, b"k")
    assert await hub.open(call(b"k")).synced(timeout=5) == last
    watch = hub.open(call(b"k", start_revision=1))
    await refused(watch.synced(timeout=0.01), TimeoutError)
    reader = asyncio.create_task(take(watch, 4))
    assert await watch.synced(timeout=5) >= last - 1
    put(store, b"k", b"live")
    hub.advance()
    assert pairs(await reader)[-1] == (b"k", b"live", last + 1)


@asynchronous
async def test_more_history_than_one_advance_distributes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub goes on by itself in the next passes of the loop."""
    store = Store()
    hub = hub_of(store)
    watch = hub.open(call(b"k"))
    for _ in range(10_000):
        put(store, b"k")
    hub.advance()
    assert store.distributed_revision < store.published_revision
    assert len(await take(watch, 10_000)) == 10_000


@asynchronous
async def test_watches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than `WATCHES_MAX` is `Overloaded`; a closed one makes room."""
    monkeypatch.setattr(watches, "WATCHES_MAX", 2)
    hub = hub_of(Store())
    first = hub.open(call(b"a"))
    hub.open(call(b"a"))
    with pytest.raises(errors.Overloaded):
        hub.open(call(b"a"))
    async with first:
        pass
    hub.open(call(b"a"))


@asynchronous
async def test_each_watch_ends_with_an_error_of_its_own() -> None:
    """One exception must never be raised to two callers."""
    hub = hub_of(Store())
    readers = [asyncio.create_task(take(hub.open(call(b"a")), 1)) for _ in range(2)]
    await asyncio.sleep(0)
    hub.close(lambda: errors.Closed("the node stopped"))
    one, two = [await refused(reader, errors.Closed) for reader in readers]
    assert one is not two
    assert len(hub) == 0


@asynchronous
async def test_ten_thousand_watchers() -> None:
    """As many as a node takes: half of them of one key, each other of a key of its own; each hears what is its own."""
    store = Store()
    hub = hub_of(store)
    half = watches.WATCHES_MAX // 2
    keys = [b"shared"] * half + [b"own/%d" % number for number in range(half)]
    opened = [hub.open(call(key)) for key in keys]
    readers = [asyncio.create_task(take(watch, 1)) for watch in opened]
    await asyncio.sleep(0)
    woken = []
    for key in (b"own/7", b"shared", b"nobody's"):
        put(store, key)
        hub.advance()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        woken.append(sum(reader.done() for reader in readers))
    assert woken == [1, 1 + half, 1 + half]
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)
    for watch in opened:
        await watch.close()
    assert len(hub) == 0


@asynchronous
async def test_ten_thousand_watches_that_nobody_reads_hold_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is refused. What waits for them is shared, and then given up: history has it. None of them misses any.

    1. Ten thousand readers are busy, while a megabyte is written that all of them watch.
    2. A copy each would be 10 GB; a reference to each change, 8 MB and growing.
    """
    monkeypatch.setattr("pyraftkv.store.watch.PENDING_EVENTS_MAX", 8)
    store = Store()
    hub = hub_of(store)
    open_watches = [hub.open(call(b"k", end=b"l")) for _ in range(watches.WATCHES_MAX)]
    with pytest.raises(errors.Overloaded):
        hub.open(call(b"k"))
    tracemalloc.start()
    for number in range(100):
        put(store, b"k%d" % number, bytes(10_000))
        hub.advance()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held - store.size_bytes < 400 * watches.WATCHES_MAX, f"{held:,} bytes"
    assert all(watch.is_behind for watch in open_watches)
    for watch in (open_watches[0], open_watches[-1]):
        assert len(await take(watch, 100)) == 100
    for watch in open_watches:
        await watch.close()
    assert len(hub) == 0
