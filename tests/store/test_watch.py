from __future__ import annotations

import pytest

from pyraftkv.errors import Closed, Compacted, InvalidRequest, Overloaded, WatchCancelled
from pyraftkv.store import Store, Watcher, watch
from pyraftkv.store.commands import FROM_KEY, Compact, DeleteRange, PutKey, RangeQuery, Transaction
from pyraftkv.store.values import Event, EventType, KeyValue, WatchBatch
from pyraftkv.store.watch import PENDING_BYTES_MAX, PENDING_EVENTS_MAX, TAKE_BYTES_MAX, TAKE_RECORDS_MAX, prefix_of
from tests.store.world import finish


def put(store: Store, *keys: bytes) -> None:
    """Put each key, a revision each."""
    for key in keys:
        store.apply(PutKey(key, b"v"))


def take_all(watcher: Watcher, events_max: int = 1000) -> list[tuple[int, bytes]]:
    """Take until there is nothing; return revision and key of each event."""
    found: list[tuple[int, bytes]] = []
    while (batch := watcher.take(events_max)) is not None:
        found += [(event.kv.mod_revision, event.kv.key) for event in batch.events]
    return found


def test_from_now_on():
    """A watch without a start sees what comes, and is reported once until it was emptied."""
    store = Store()
    put(store, b"k")
    watcher = store.watch(b"k")
    assert watcher.synced
    assert watcher.take() is None
    assert (watcher.revision, store.advance()) == (2, [])

    put(store, b"k", b"other", b"k")
    assert store.advance() == [watcher]
    put(store, b"k")
    assert store.advance() == []
    assert watcher.take() == WatchBatch(
        [
            Event(EventType.PUT, KeyValue(b"k", b"v", 2, revision, version))
            for revision, version in ((3, 2), (5, 3), (6, 4))
        ],
        6,
    )
    assert watcher.take() is None
    put(store, b"other")
    assert store.advance() == []
    assert watcher.revision == 7


def test_events():
    """A creation says so, a deletion has only key and revision, prev_kv is what was there."""
    store = Store()
    put(store, b"k", b"k")
    store.apply(DeleteRange(b"k"))
    watcher = store.watch(b"k", start_revision=1, prev_kv=True)
    plain = store.watch(b"k", start_revision=1)
    first = KeyValue(b"k", b"v", 2, 2, 1)
    second = KeyValue(b"k", b"v", 2, 3, 2)
    gone = KeyValue(b"k", b"", 0, 4, 0)

    batch = watcher.take()
    assert batch == WatchBatch(
        [Event(EventType.PUT, first), Event(EventType.PUT, second, first), Event(EventType.DELETE, gone, second)], 4
    )
    assert [event.is_create for event in batch.events] == [True, False, False]
    assert plain.take() == WatchBatch(
        [Event(EventType.PUT, first), Event(EventType.PUT, second), Event(EventType.DELETE, gone)], 4
    )


def test_previous_is_absent_when_compacted():
    """A previous key-value that is below the compact revision is left out, removed already or not."""
    store = Store()
    put(store, b"k", b"k", b"k")
    store.apply(Compact(3))
    for _ in range(2):
        batch = store.watch(b"k", start_revision=3, prev_kv=True).take()
        assert batch is not None
        assert [event.prev_kv for event in batch.events] == [None, KeyValue(b"k", b"v", 2, 3, 2)]
        finish(store.compaction())


def test_a_creation_has_no_previous():
    """Nothing comes before a creation, even if the key was deleted in the same revision."""
    store = Store()
    put(store, b"k")
    store.apply(Transaction([], [DeleteRange(b"a", FROM_KEY), PutKey(b"k", b"new")]))

    batch = store.watch(b"k", start_revision=3, prev_kv=True).take()
    assert batch is not None
    old = KeyValue(b"k", b"v", 2, 2, 1)
    assert [(event.type, event.prev_kv) for event in batch.events] == [(EventType.DELETE, old), (EventType.PUT, None)]
    assert batch.events[1].is_create


def test_filters():
    """Filtered events are not handed out, but the revision moves on."""
    store = Store()
    puts = store.watch(b"k", no_delete=True)
    deletes = store.watch(b"k", no_put=True)
    put(store, b"k")
    store.apply(DeleteRange(b"k"))

    assert store.advance() == [puts, deletes]
    assert take_all(puts) == [(2, b"k")]
    assert take_all(deletes) == [(3, b"k")]
    assert (puts.revision, deletes.revision) == (3, 3)


def test_start_in_the_future():
    """A watch from a revision to come is silent until then."""
    store = Store()
    watcher = store.watch(b"k", start_revision=4)
    assert (watcher.synced, watcher.revision) == (True, 3)
    put(store, b"k", b"k")
    assert store.advance() == []
    assert watcher.take() is None
    put(store, b"k")
    assert store.advance() == [watcher]
    assert take_all(watcher) == [(4, b"k")]


def test_refused():
    """A negative start, an empty range, history that is compacted, and too many watchers."""
    store = Store()
    put(store, b"k", b"k", b"k")
    store.apply(Compact(3))
    with pytest.raises(InvalidRequest):
        store.watch(b"k", start_revision=-1)
    with pytest.raises(InvalidRequest):
        store.watch(b"k", b"k")
    with pytest.raises(Compacted) as refused:
        store.watch(b"k", start_revision=2)
    assert refused.value.compact_revision == 3
    assert take_all(store.watch(b"k", start_revision=3)) == [(3, b"k"), (4, b"k")]


def test_watchers_are_bounded(monkeypatch):
    """One watcher too many is refused, until another is cancelled."""
    monkeypatch.setattr(watch, "WATCHERS_MAX", 2)
    store = Store()
    first = store.watch(b"a")
    store.watch(b"b")
    with pytest.raises(Overloaded):
        store.watch(b"c")
    first.cancel()
    first.cancel()
    store.watch(b"c")
    with pytest.raises(Overloaded):
        store.watch(b"d")


def test_an_empty_key_is_the_smallest():
    """As in etcd, an empty key with no bound watches everything."""
    store = Store()
    watcher = store.watch(b"", FROM_KEY)
    put(store, b"\0", b"z")
    store.advance()
    assert take_all(watcher) == [(2, b"\0"), (3, b"z")]


def test_progress_never_runs_ahead_of_events():
    """Distributed is not taken: until it is, whoever resumes at the watch's revision still gets the event."""
    store = Store()
    watcher = store.watch(b"k")
    put(store, b"k", b"other", b"k")
    store.advance()
    assert watcher.revision == 1
    assert watcher.take(1) is not None
    assert watcher.revision == 3
    assert take_all(watcher) == [(4, b"k")]
    assert watcher.revision == 4


def test_whoever_joins_takes_nothing_from_the_others():
    """A watch that begins at the present, between a put and its distribution, is no reason to skip the put."""
    store = Store()
    first = store.watch(b"k")
    put(store, b"k")
    second = store.watch(b"k")
    store.advance()
    assert (take_all(first), take_all(second)) == ([(2, b"k")], [])


@pytest.mark.parametrize("events_max", [1, 100])
def test_events_of_a_revision_come_in_the_order_of_its_changes(events_max):
    """Not in the order of their keys; from the present and from history, all that there is and a part of it."""
    store = Store()
    watchers = [store.watch(FROM_KEY, FROM_KEY)]
    for _ in range(2):
        store.apply(Transaction([], [PutKey(b"b", b""), PutKey(b"c", b""), PutKey(b"a", b"")]))
    store.advance()
    watchers.append(store.watch(FROM_KEY, FROM_KEY, start_revision=2))
    for watcher in watchers:
        batch = watcher.take(events_max)
        assert batch is not None
        assert [event.kv.key for event in batch.events][:3] == [b"b", b"c", b"a"]


@pytest.mark.parametrize("events_max", [3, 7])
def test_a_revision_is_never_cut(events_max):
    """Batches end between revisions, also when one revision has more events than asked for."""
    store = Store()
    history = store.watch(FROM_KEY, FROM_KEY, start_revision=1)
    present = store.watch(FROM_KEY, FROM_KEY)
    for _ in range(3):
        store.apply(Transaction([], [PutKey(b"%d" % i, b"") for i in range(5)]))
    store.advance()

    for watcher in (history, present):
        sizes = []
        while (batch := watcher.take(events_max)) is not None:
            sizes.append((len(batch.events), batch.revision))
        assert sum(size for size, _ in sizes) == 15
        assert all(size % 5 == 0 for size, _ in sizes)
        assert sizes[-1][1] == 4
    with pytest.raises(AssertionError):
        present.take(0)


def test_a_slow_watcher_costs_no_memory():
    """Over the bound nothing more is kept, and everything is read from the pages later."""
    store = Store()
    slow = store.watch(b"k", b"l")
    for i in range(PENDING_EVENTS_MAX + 500):
        put(store, b"k%d" % i)
    assert store.advance() == [slow]
    assert not slow.synced
    assert slow._pending == []
    for i in range(500):
        put(store, b"k%d" % i)
    assert store.advance() == []

    assert [revision for revision, _ in take_all(slow)] == list(range(2, PENDING_EVENTS_MAX + 1_002))
    assert slow.synced
    put(store, b"k")
    assert store.advance() == [slow]


@pytest.mark.parametrize("prev_kv", [False, True])
def test_a_slow_watcher_of_large_values_costs_no_memory(prev_kv):
    """The bound is one on bytes, too, and on those of one `take`; previous values count."""
    store = Store()
    value = b"v" * (PENDING_BYTES_MAX // 8)
    store.apply(PutKey(b"k", value))
    slow = store.watch(b"k", prev_kv=prev_kv)
    fits = 3 if prev_kv else 7
    for _ in range(fits):
        store.apply(PutKey(b"k", value))
    assert store.advance() == [slow]
    assert slow.synced
    store.apply(PutKey(b"k", value))
    store.advance()
    assert not slow.synced
    assert slow._pending == []
    for _ in range(20):
        store.apply(PutKey(b"k", value))
    store.advance()

    sizes: list[int] = []
    revisions: list[int] = []
    while (batch := slow.take()) is not None:
        sizes.append(
            sum(len(event.kv.value) + len(event.prev_kv.value if event.prev_kv else b"") for event in batch.events)
        )
        revisions += [event.kv.mod_revision for event in batch.events]
    assert revisions == list(range(3, fits + 24))
    assert max(sizes) <= TAKE_BYTES_MAX + 2 * len(value)
    assert slow.synced


def test_a_watcher_that_keeps_up_stays_synced():
    """What was taken does not count any more, be it everything or the first revisions of it."""
    store = Store()
    watcher = store.watch(b"k")
    value = b"v" * (PENDING_BYTES_MAX // 8)
    for _ in range(2):
        store.apply(PutKey(b"k", value))
    for _ in range(20):
        store.apply(PutKey(b"k", value))
        store.advance()
        assert watcher.take(1) is not None
        assert watcher.synced
    assert len(take_all(watcher)) == 2
    assert watcher._pending_bytes == 0


def test_a_slow_watcher_of_large_values_is_cancelled_by_compaction():
    """It fell behind for its bytes, and what it has still to read is compacted: it says where to resume."""
    store = Store()
    slow = store.watch(b"k")
    for _ in range(3):
        store.apply(PutKey(b"k", b"v" * (PENDING_BYTES_MAX // 2)))
    store.advance()
    store.apply(Compact(4))

    with pytest.raises(WatchCancelled) as ended:
        slow.take()
    assert (ended.value.resume_revision, ended.value.compact_revision) == (2, 4)


def test_a_slow_watcher_is_cancelled_by_compaction():
    """If what it has still to read is compacted it ends, and says where it was."""
    store = Store()
    slow = store.watch(b"k")
    put(store, *[b"k"] * (PENDING_EVENTS_MAX + 10))
    store.advance()
    batch = slow.take(100)
    assert batch is not None
    store.apply(Compact(batch.revision + 1))
    assert slow.take(100) is not None, "nothing that it needs is gone yet"
    at = slow.revision
    store.apply(Compact(at + 2))

    with pytest.raises(WatchCancelled) as ended:
        slow.take()
    assert (ended.value.resume_revision, ended.value.compact_revision) == (at + 1, at + 2)
    assert slow.revision == at
    with pytest.raises(Closed):
        slow.take()
    assert "cancelled" in repr(slow)


def test_pending_events_survive_compaction():
    """What was already distributed is handed out whatever is compacted."""
    store = Store()
    watcher = store.watch(b"k")
    put(store, b"k", b"k", b"k")
    store.advance()
    store.apply(Compact(4))
    finish(store.compaction())
    assert take_all(watcher) == [(2, b"k"), (3, b"k"), (4, b"k")]


def test_a_giant_revision_is_distributed_in_slices():
    """Nobody gets a part of a revision, however many slices it takes to distribute or to read."""
    store = Store(step_keys_max=10**9)
    count = 3 * TAKE_RECORDS_MAX
    for i in range(count):
        put(store, b"k%05d" % i)
    one = store.watch(b"k00000")
    late = store.watch(b"k%05d" % (count - 1))
    everything = store.watch(b"k", FROM_KEY)
    store.apply(DeleteRange(b"k", FROM_KEY))

    ready: list[Watcher] = []
    calls = 0
    while store.distributed_revision < store.published_revision:
        assert one.take() is None
        ready += store.advance(500)
        calls += 1
    assert calls == -(-count // 500)
    assert set(ready) == {one, late, everything}
    batches: list[WatchBatch] = []
    while (batch := everything.take()) is not None:
        batches.append(batch)
    assert [len(batch.events) for batch in batches if batch.events] == [count]
    assert len(batches) >= 3
    assert take_all(one) == [(count + 2, b"k00000")]
    assert take_all(late) == [(count + 2, b"k%05d" % (count - 1))]


def test_a_watcher_emptied_in_the_middle_of_a_revision_is_told_of_its_end():
    """Taking while the next revision is half distributed does not lose the notice of its completion."""
    store = Store()
    watcher = store.watch(b"a")
    put(store, b"a")
    store.apply(Transaction([], [PutKey(b"a", b""), PutKey(b"b", b""), PutKey(b"c", b"")]))
    assert store.advance(2) == [watcher]
    assert take_all(watcher) == [(2, b"a")]
    assert watcher.revision == 2

    assert store.advance(2) == [watcher]
    assert take_all(watcher) == [(3, b"a")]


def test_nothing_of_an_unfinished_command_is_seen():
    """Neither synced nor catching-up watchers see a revision before it is published."""
    store = Store(step_keys_max=1)
    put(store, *[b"%03d" % i for i in range(300)])
    synced = store.watch(b"0", FROM_KEY)
    work = store.apply(DeleteRange(b"0", FROM_KEY))
    lagging = store.watch(b"0", FROM_KEY, start_revision=1)

    assert store.advance() == []
    assert len(take_all(lagging)) == 300
    finish(work)
    assert store.advance() == [synced, lagging]
    assert len(take_all(synced)) == len(take_all(lagging)) == 300


def test_ten_thousand_watchers():
    """An event looks up those whom it concerns; the others are not touched, and it is decoded once for all."""
    store = Store()
    for i in range(10_000):
        store.watch(b"key%05d" % i)
    same = [store.watch(b"key0", b"key1") for _ in range(10)]
    odd = [store.watch(b"key00007", b"key0001"), store.watch(b"key00008", FROM_KEY), store.watch(b"k", b"kez")]

    put(store, b"key00007")
    ready = store.advance()

    assert len(ready) == 13
    assert len(list(store._hub._groups_of(b"key00007"))) == 4
    events = [watcher.take().events[0] for watcher in same]  # type: ignore[union-attr]
    assert len({id(event) for event in events}) == 1
    for watcher in (*same, *odd):
        watcher.cancel()
    put(store, b"key00007")
    assert len(list(store._hub._groups_of(b"key00007"))) == 1


def test_cancelling_everything_leaves_nothing():
    """The tables are empty again, and `advance` has nothing to do."""
    store = Store()
    watchers = [store.watch(b"a"), store.watch(b"a", b"b"), store.watch(b"a", b"az"), store.watch(b"a", FROM_KEY)]
    watchers.append(store.watch(b"a", start_revision=1))
    for watcher in watchers:
        watcher.cancel()
    hub = store._hub
    assert (hub._exact, hub._prefixes, hub._ranges, hub._ranges_order) == ({}, {}, {}, [])
    assert (hub.watchers_count, hub._synced_count) == (0, 0)
    put(store, b"a")
    assert store.advance() == []
    assert store.distributed_revision == 2
    with pytest.raises(AssertionError):
        store.advance(0)


@pytest.mark.parametrize(
    ("key", "end", "prefix"),
    [
        (b"a", b"b", b"a"),
        (b"a\xff", b"b", b"a\xff"),
        (b"ab", b"ac", b"ab"),
        (b"ab", b"b", None),
        (b"a", b"c", None),
        (b"\0", b"\0", b""),
        (b"\xff", b"\0", None),
        (b"a", b"\0", None),
    ],
)
def test_prefix_of(key, end, prefix):
    """A range is a prefix's exactly if its end is the prefix's successor."""
    assert prefix_of(key, end) == prefix


def test_watch_and_read_agree():
    """Replaying the events of a watch gives what a read gives."""
    store = Store()
    watcher = store.watch(b"k", b"l", start_revision=1)
    for i in range(3_000):
        put(store, b"k%d" % (i * 7 % 100))
        if i % 5 == 0:
            store.apply(DeleteRange(b"k%d" % (i % 100)))
    state: dict[bytes, KeyValue] = {}
    while (batch := watcher.take(10)) is not None:
        for event in batch.events:
            if event.type is EventType.PUT:
                state[event.kv.key] = event.kv
            else:
                del state[event.kv.key]
    assert [state[key] for key in sorted(state)] == store.read(RangeQuery(b"k", b"l")).kvs
