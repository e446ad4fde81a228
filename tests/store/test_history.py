from __future__ import annotations

import gc
from random import Random

import pytest

from pyraftkv.errors import Compacted, FutureRevision
from pyraftkv.store import Store
from pyraftkv.store.commands import FROM_KEY, Compact, DeleteRange, PutKey, RangeQuery, Transaction
from pyraftkv.store.history import History
from pyraftkv.store.pages import Pages
from pyraftkv.store.values import CompactResult, KeyValue
from tests.store.world import finish, restore


def versions(store: Store) -> int:
    """Count the versions that take up space."""
    return sum(page.live() for page in store._history.pages.order)


def test_compaction_keeps_what_can_be_seen():
    """Of each key the newest version below the compact revision stays, unless it is a tombstone; and all from it on."""
    store = Store()
    store.apply(PutKey(b"a", b"1"))  # 2
    store.apply(PutKey(b"a", b"2"))  # 3
    store.apply(PutKey(b"b", b"1"))  # 4
    store.apply(DeleteRange(b"b"))  # 5
    store.apply(PutKey(b"c", b"1"))  # 6
    store.apply(DeleteRange(b"c"))  # 7
    store.apply(PutKey(b"a", b"3"))  # 8

    assert store.apply(Compact(7)) == CompactResult(8)
    assert store.compact_revision == 7
    assert finish(store.compaction()) == 4  # a@2, b@4, b@5, c@6
    assert store.compaction() is None
    assert versions(store) == 3
    assert len(store._history.index) == 2
    assert store.get(b"a", 7) == KeyValue(b"a", b"2", 2, 3, 2)
    assert store.get(b"c", 7) is None
    store.check()


def test_a_tombstone_at_the_compact_revision_stays_watchable():
    """A watch from exactly the compact revision sees the deletion that was made there (etcd#19179)."""
    store = Store()
    store.apply(PutKey(b"k", b""))
    store.apply(DeleteRange(b"k"))
    store.apply(PutKey(b"other", b""))
    store.apply(Compact(3))
    finish(store.compaction())

    batch = store.watch(b"k", start_revision=3).take()
    assert batch is not None
    assert [event.kv.mod_revision for event in batch.events] == [3]
    store.apply(Compact(4))
    finish(store.compaction())
    assert versions(store) == 1
    store.check()


def test_refused_compactions():
    """Not twice, not backwards, not into the future."""
    store = Store()
    store.apply(PutKey(b"k", b""))
    for revision, error in ((0, Compacted), (-1, Compacted), (3, FutureRevision)):
        with pytest.raises(error):
            store.apply(Compact(revision))
    store.apply(Compact(2))
    with pytest.raises(Compacted) as refused:
        store.apply(Compact(2))
    assert refused.value.compact_revision == 2
    assert store.revision == 2


def test_compaction_waits_for_pins():
    """Nothing is removed while a snapshot is open, whenever it was opened; nor while a command is under way."""
    store = Store(step_keys_max=1)
    for _ in range(1_000):
        store.apply(PutKey(b"k", b"v" * 1000))
    store.apply(Compact(1_000))
    with store.snapshot():
        assert store.compaction() is None
    work = store.compaction()
    assert work is not None
    assert work is store.compaction()
    assert work.step(1) is None
    size_bytes = store.size_bytes
    with store.snapshot():
        assert work.step(10**6) is None
        assert store.size_bytes == size_bytes
    for i in range(100):
        store.apply(PutKey(b"%d" % i, b""))
    deleting = store.apply(DeleteRange(b"0", b"9"))
    assert work.step(10**6) is None
    finish(deleting)
    assert work.step(10**6) == 998
    assert store.compaction() is None
    store.check()


def test_compaction_waits_for_synced_watchers():
    """What was not distributed yet is not removed: a synced watcher misses nothing."""
    store = Store()
    watcher = store.watch(b"k")
    for i in range(3):
        store.apply(PutKey(b"k", b"%d" % i))
    store.apply(Compact(4))
    assert store.compaction() is None

    store.advance()
    finish(store.compaction())

    batch = watcher.take()
    assert batch is not None
    assert [event.kv.value for event in batch.events] == [b"0", b"1", b"2"]


@pytest.mark.no_cover
def test_compaction_looks_only_where_something_can_be_removed():
    """A compaction of a big store with few changes does not read all of it."""
    store = Store(step_keys_max=10**6)
    for i in range(20_000):
        store.apply(PutKey(b"%06d" % i, b"v" * 200))
    for _ in range(10):
        store.apply(PutKey(b"000000", b""))
    store.apply(Compact(store.revision))
    work = store.compaction()
    assert work is not None

    assert work.step(1_000) == 10
    store.check()


@pytest.mark.no_cover
def test_deleting_and_compacting_everything_frees_everything():
    """After everything was deleted and compacted, only the newest tombstones take space; then nothing of them."""
    store = Store(step_keys_max=10**6)
    for i in range(20_000):
        store.apply(PutKey(b"%06d" % i, b"v" * 200))
    store.apply(DeleteRange(b"\0", FROM_KEY))
    store.apply(PutKey(b"last", b""))
    store.apply(Compact(store.revision))
    assert finish(store.compaction(), 100) == 40_000

    assert (store.key_count, versions(store), len(store._history.index)) == (1, 1, 1)
    assert len(store._history.pages.order) <= 2
    assert store.size_bytes < 100
    store.check()


@pytest.mark.no_cover
def test_the_collector_finds_nothing_per_key():
    """No container has an entry per key or version, and no object that the collector tracks belongs to one."""
    store = Store()
    gc.collect()
    before = len(gc.get_objects())
    for i in range(50_000):
        store.apply(PutKey(b"%06d" % (i * 7919 % 50_000), b"v" * 64))
    gc.collect()

    tracked = gc.get_objects()
    assert len(tracked) - before < 50_000 / 50
    history = store._history
    assert isinstance(history, History)
    assert isinstance(history.pages, Pages)
    sizes = [len(chunk.keys) for chunk in history.index.chunks]
    sizes += [len(history.index.chunks), len(history.pages.order), len(history.pages.by_number)]
    sizes += [len(page.offsets) for page in history.pages.order]
    assert max(sizes) <= 1024


def test_a_million_versions_later_counts_are_right():
    """Chunks that split and change hands keep their counts of live keys."""
    store = Store(step_keys_max=10**6)
    for i in range(6_000):
        store.apply(PutKey(b"%05d" % (i * 37 % 5_000), b""))
        if i % 3 == 0:
            store.apply(DeleteRange(b"%05d" % (i * 11 % 5_000)))
    store.check()
    query = RangeQuery(b"0", FROM_KEY)
    assert store.key_count == store.read(query).count == len(store.read(query).kvs)


@pytest.mark.parametrize("key", [b"9", b"00512x", b"00000x"])
def test_a_split_does_not_hide_what_is_new(key):
    """A count at an older revision leaves out the key whose coming split its chunk, whichever half it went to."""
    store = Store(step_keys_max=10**6)
    for i in range(1024):
        store.apply(PutKey(b"%05d" % i, b""))
    at = store.revision
    store.apply(PutKey(key, b""))
    assert len(store._history.index.chunks) == 2

    assert store.read(RangeQuery(b"0", FROM_KEY, at, count_only=True)).count == 1024
    assert store.read(RangeQuery(b"0", FROM_KEY, count_only=True)).count == 1025


def test_only_one_command_at_a_time():
    """Beginning twice, and failing after a change, are bugs."""
    history = History()
    history.begin()
    with pytest.raises(AssertionError, match="one command"):
        history.begin()
    history.put(b"k", b"", 0, 2)
    with pytest.raises(AssertionError, match="before its first change"):
        history.abandon()


def test_the_collector_sees_few_keys_while_they_come_in_no_order() -> None:
    """Of chunks that have settled once, it sees those alone that somebody reads while keys are put into them."""
    rng = Random(8)
    store = Store()
    for key in rng.sample(range(100_000), 30_000):
        store.apply(PutKey(b"%06d" % key, b"v" * 256))
    index = store._history.index
    index.check()
    for _ in index.chunks:
        index.settle()
    for key in rng.sample(range(100_000, 200_000), 2_000):
        store.apply(PutKey(b"%06d" % (key - 100_000) + b"-", b"v"))
    gc.collect()
    assert sum(len(chunk.fresh) for chunk in index.chunks) > 500
    seen = [chunk for chunk in index.chunks if gc.is_tracked(chunk.keys)]
    assert len(seen) <= 2 < len(index.chunks) // 10, "the last one, which may have been split"
    index.check()


def test_the_collector_sees_no_keys() -> None:
    """Whether they came in order or not, and in a restored store, too: a full collection does not walk them."""
    rng = Random(7)
    numbers = [*range(10_000), *rng.sample(range(10_000, 30_000), 10_000)]
    store = Store()
    for first in range(0, len(numbers), 100):
        batch = [PutKey(b"%06d" % number, b"v" * 256) for number in numbers[first : first + 100]]
        store.apply(Transaction([], batch, []))
    for _ in range(50):
        store.apply(Transaction([], [PutKey(b"%06d" % number, b"w" * 1000) for number in range(100)], []))
    for each in (store, restore(list(store.snapshot()))):
        gc.collect()
        chunks = each._history.index.chunks
        seen = [chunk for chunk in chunks if gc.is_tracked(chunk.keys)]
        assert len(seen) <= 2, f"{len(seen)} of {len(chunks)}"
