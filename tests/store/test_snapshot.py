from __future__ import annotations

from random import Random

import pytest

from pyraftkv.errors import Compacted, SnapshotCorruption
from pyraftkv.store import Restorer, Snapshot, Store, keyindex, pages, snapshot
from pyraftkv.store.commands import (
    FROM_KEY,
    CheckpointLeases,
    Compact,
    DeleteRange,
    GrantLease,
    PutBatch,
    PutKey,
    RangeQuery,
)
from pyraftkv.store.history import History
from pyraftkv.store.pages import RECORD_BYTES, SLOT_BITS, SLOT_MASK, unpack_checked
from tests.store.world import finish, outcome, restore

EVERYTHING = RangeQuery(FROM_KEY, FROM_KEY)


def busy_store(seed: int = 1) -> Store:
    """Return a store with a history of puts, deletes and a compaction."""
    rng = Random(seed)
    store = Store(step_keys_max=10**6)
    store.apply(GrantLease(5, 60))
    store.apply(GrantLease(6, 60))
    store.keep_leases(CheckpointLeases([6, 7]))
    for i in range(3_000):
        store.apply(PutKey(b"%03d" % rng.randrange(500), b"v" * rng.randrange(300), lease=rng.choice([0, 5])))
        if i % 7 == 0:
            store.apply(DeleteRange(b"%03d" % rng.randrange(500)))
        if i == 2_000:
            store.apply(Compact(store.revision - 100))
            finish(store.compaction(), 100)
    return store


def test_restored_stores_are_equal_and_go_on_equally():
    """A restored store reads, counts and continues as the original does, and its snapshot is the same."""
    store = busy_store()
    with store.snapshot() as taken:
        chunks = list(taken)
        assert list(taken) == chunks
    twin = restore(chunks, step_keys_max=10**6)
    twin.check()

    for revision in range(store.compact_revision, store.revision + 1, 50):
        query = RangeQuery(FROM_KEY, FROM_KEY, revision)
        assert twin.read(query) == store.read(query)
    assert (twin.size_bytes, twin.key_count) == (store.size_bytes, store.key_count)
    for command in (PutKey(b"001", b"new"), DeleteRange(b"0", b"2", prev_kv=True), PutKey(b"003", b"", prev_kv=True)):
        assert twin.apply(command) == store.apply(command)
    for each in (store, twin):
        each.apply(Compact(each.revision))
        finish(each.compaction(), 100)
        each.check()
    assert twin.read(EVERYTHING) == store.read(EVERYTHING)


def test_chunks_are_bounded():
    """No chunk is larger than the bound, whatever the values are."""
    store = Store()
    for i in range(20):
        store.apply(PutKey(b"%d" % i, b"v" * 1_000_000))
    with store.snapshot() as taken:
        chunks = list(taken)

    assert {len(chunk) for chunk in chunks[:-1]} == {snapshot.CHUNK_BYTES_MAX}
    assert 0 < len(chunks[-1]) <= snapshot.CHUNK_BYTES_MAX
    assert restore(chunks).read(EVERYTHING) == store.read(EVERYTHING)


def test_the_pinned_revision_is_sent_whatever_happens():
    """Changes and compactions during the walk do not change what is sent."""
    store = busy_store()
    expected = store.read(EVERYTHING)
    taken = store.snapshot()
    chunks = []
    for chunk in taken:
        chunks.append(chunk)
        for i in range(300):
            store.apply(PutKey(b"%03d" % i, b"changed"))
        store.apply(DeleteRange(b"4", FROM_KEY))
        store.apply(Compact(store.revision))
        assert store.compaction() is None
    taken.close()
    taken.close()

    assert restore(chunks, step_keys_max=10**6).read(EVERYTHING) == expected
    finish(store.compaction(), 1_000)
    store.check()


def test_an_unfinished_command_is_not_sent():
    """A snapshot pinned while a command is under way has nothing of it."""
    store = Store(step_keys_max=1)
    for i in range(2_000):
        store.apply(PutKey(b"%04d" % i, b"v" * 50))
    work = store.apply(DeleteRange(b"0", FROM_KEY))
    with store.snapshot() as taken:
        finish(work)
        twin = restore(list(taken), step_keys_max=10**6)
    twin.check()

    assert (twin.revision, twin.key_count) == (2_001, 2_000)
    assert twin.read(EVERYTHING).count == 2_000


@pytest.mark.parametrize("order", ["ascending", "two rows", "random"])
def test_many_keys_are_restored_whatever_their_order(order):
    """The index is that of the keys, whether pages are appended to it at once or their keys are inserted."""
    names = [b"%05d" % i for i in range(5_000)]
    if order == "two rows":
        names = [b"%d/%s" % (i % 2, name) for i, name in enumerate(names)]
    elif order == "random":
        Random(3).shuffle(names)
    store = Store()
    for at in range(0, len(names), 100):
        store.apply(PutBatch([part for name in names[at : at + 100] for part in (name, b"value of " + name)]))
    with store.snapshot() as taken:
        twin = restore(list(taken))
    twin.check()

    assert twin.state_hash == store.state_hash
    assert (twin.key_count, twin.in_use_bytes) == (5_000, store.in_use_bytes)
    for each in (store, twin):
        each.apply(PutBatch([part for name in sorted(names)[::7] for part in (name + b"x", b"new")]))
        each.check()
    assert finish(twin.read(EVERYTHING)) == finish(store.read(EVERYTHING))


def test_an_empty_store():
    """A store that has nothing can be sent, too."""
    with Store().snapshot() as taken:
        twin = restore(list(taken))
    twin.check()
    assert (twin.revision, twin.key_count) == (1, 0)


def test_a_closed_snapshot_is_not_walked():
    """Walking on after `close` is a bug: what it pinned may be gone."""
    taken = busy_store().snapshot()
    walk = iter(taken)
    next(walk)
    taken.close()
    with pytest.raises(AssertionError, match="closed"):
        list(walk)
    with pytest.raises(AssertionError, match="closed"):
        next(iter(taken))


def test_chunks_may_be_cut_anywhere():
    """The restorer does not mind how the stream is cut."""
    store = busy_store()
    with store.snapshot() as taken:
        stream = b"".join(taken)
    rng = Random(2)
    restorer = Restorer(step_keys_max=10**6)
    at = 0
    while at < len(stream):
        size = rng.choice([1, 2, 30, 5_000])
        restorer.feed(stream[at : at + size])
        at += size
    assert restorer.finish().read(EVERYTHING) == store.read(EVERYTHING)


@pytest.mark.parametrize("cut", [0, 1, 20, 100, 5_000, -1])
def test_a_snapshot_that_ends_early(cut):
    """What is missing is missed."""
    with busy_store().snapshot() as taken:
        stream = b"".join(taken)
    restorer = Restorer()
    restorer.feed(stream[:cut])
    with pytest.raises(SnapshotCorruption):
        restorer.finish()


def test_bytes_after_the_end():
    """Nothing may follow the end."""
    with busy_store().snapshot() as taken:
        stream = b"".join(taken)
    restorer = Restorer()
    with pytest.raises(SnapshotCorruption, match="after the end"):
        restorer.feed(stream + b"x")


def small_stream(*, compacted: bool = False) -> bytes:
    """Return the snapshot of a store with a few keys, versions and a tombstone."""
    store = Store()
    for i in range(12):
        store.apply(PutKey(b"%d" % (i % 4), b""))
    store.apply(DeleteRange(b"1"))
    store.apply(PutKey(b"1", b""))
    if compacted:
        store.apply(Compact(10))
        finish(store.compaction())
    with store.snapshot() as taken:
        return b"".join(taken)


@pytest.mark.parametrize("compacted", [False, True])
def test_damage_to_structure_is_found(compacted):
    """Whatever byte is changed, the snapshot is refused, or it is a field that nothing else depends on."""
    stream = small_stream(compacted=compacted)
    slots = snapshot._PAGE.unpack_from(stream, snapshot._HEADER.size)[3]
    records_at = snapshot._HEADER.size + snapshot._PAGE.size + 4 * slots
    record_bytes = RECORD_BYTES + 1
    free = {"compacted revision", "next page", "sub", "previous", "jump"}
    if compacted:
        # What follows on a version that was compacted cannot be checked against it.
        free |= {"first revision", "span"}
    refused = 0
    for at in range(len(stream)):
        for byte in {0, 0xFF, stream[at] ^ 1} - {stream[at]}:
            twin = outcome(restore, [stream[:at] + bytes([byte]) + stream[at + 1 :]])
            if twin is SnapshotCorruption:
                refused += 1
                continue
            field = header_field(at) if at < records_at else RECORD_FIELDS[(at - records_at) % record_bytes]
            assert field in free
            twin.check()
            for revision in range(twin.compact_revision or 1, twin.revision + 1):
                finish(twin.read(RangeQuery(FROM_KEY, FROM_KEY, revision)))
    assert refused > 1_000


RECORD_FIELDS = [
    *["mod"] * 8,
    *["create"] * 8,
    *["version"] * 8,
    *["lease"] * 8,
    *["previous"] * 8,
    *["jump"] * 8,
    *["sub"] * 4,
    *["span"] * 4,
    *["key length"] * 4,
    *["value length"] * 4,
    *["check"] * 8,
    "key",
]


def header_field(at: int) -> str:
    """Name the field of the header or of the first page's frame at that place."""
    header = ["magic"] * 4 + ["format"] * 2
    for name in ("revision", "compact revision", "compacted revision", "next page"):
        header += [name] * 8
    header += ["tag"] + ["page number"] * 8 + ["first revision"] * 8 + ["slots"] * 4 + ["bytes"] * 8
    return (header + ["offsets"] * at)[at]


@pytest.mark.parametrize("damage", ["drop", "swap", "repeat"])
def test_pages_missing_or_out_of_order(damage):
    """Pages that are lost, exchanged or doubled are found."""
    store = busy_store()
    with store.snapshot() as taken:
        stream = b"".join(taken)
    frames = split_frames(stream)
    if damage == "drop":
        del frames[2]
    elif damage == "swap":
        frames[2], frames[3] = frames[3], frames[2]
    else:
        frames.insert(2, frames[2])
    with pytest.raises(SnapshotCorruption):
        restore([b"".join(frames)])


def split_frames(stream: bytes) -> list[bytes]:
    """Cut a stream into header, pages and end."""
    at = snapshot._HEADER.size
    frames = [stream[:at]]
    while stream[at : at + 1] == b"P":
        _, _, _, slots, size = snapshot._PAGE.unpack_from(stream, at)
        stop = at + snapshot._PAGE.size + 4 * slots + size
        frames.append(stream[at:stop])
        at = stop
    return [*frames, stream[at:]]


def test_sizes_that_cannot_be_are_refused_before_they_are_waited_for():
    """A page that claims to be gigantic is refused at once, not collected."""
    restorer = Restorer()
    restorer.feed(small_stream()[: snapshot._HEADER.size])
    with pytest.raises(SnapshotCorruption, match="impossible size"):
        restorer.feed(snapshot._PAGE.pack(b"P", 1, 2, 1, 1 << 40))


def test_big_endian_machines_write_the_same(monkeypatch):
    """The offsets are little endian in the stream, whatever the machine."""
    offsets = snapshot.array("I", [1, 2])
    monkeypatch.setattr(snapshot.sys, "byteorder", "big")
    swapped = snapshot._little_endian(offsets)
    assert swapped.tolist() == [1 << 24, 2 << 24]
    assert offsets.tolist() == [1, 2]


FIRST = 1 << SLOT_BITS
"""The ref of the first record of the first page."""


def crafted(*records: tuple[int, ...], dead: int = 0) -> bytes:
    """Return the snapshot of a history whose records of one key were written by hand, the first ``dead`` removed.

    A record is: key length (0 or 1), value length, mod and create revision, version, lease, previous, jump, sub, span.
    """
    history = History()
    ref = 0
    for key_bytes, value_bytes, *fields in records:
        ref = history.pages.append(b"k" * key_bytes, b"v" * value_bytes, *fields)
        history.published_revision = fields[0]
    page = history.pages.order[0]
    history.pages.rewrite(page, set(range(dead)))
    chunk = history.index.chunk_for(b"k")
    chunk.loosened().append(b"k")
    chunk.refs.append(ref)
    history.key_count = int(records[-1][4] > 0)
    *_, check = unpack_checked(page.data, page.offsets[ref & SLOT_MASK])
    history.pages.live_sum = check * history.key_count
    return b"".join(Snapshot(history))


PUT = (1, 0, 2, 2, 1, 0, 0, 0, 0, 0)
TOMBSTONE = (1, 0, 3, 0, 0, 0, FIRST, FIRST, 0, 1)

CRAFTED = {
    "a put": ([PUT], 0, None),
    "a put and a tombstone": ([PUT, TOMBSTONE], 0, None),
    "a tombstone alone": ([PUT, TOMBSTONE], 1, None),
    "a tombstone after a tombstone": (
        [PUT, TOMBSTONE, (1, 0, 4, 0, 0, 0, FIRST + 1, FIRST, 0, 1)],
        0,
        "a key that does not exist",
    ),
    "created after it was changed": ([PUT, (1, 0, 3, 9, 2, 0, FIRST, FIRST, 0, 1)], 1, "created after"),
    "a negative lease": ([(1, 0, 2, 2, 1, -1, 0, 0, 0, 0)], 0, "impossible record"),
    "a tombstone with a value": ([PUT, (1, 3, 3, 0, 0, 0, FIRST, FIRST, 0, 1)], 0, "impossible record"),
    "a tombstone with a lease": ([PUT, (1, 0, 3, 0, 0, 7, FIRST, FIRST, 0, 1)], 0, "impossible record"),
    "an empty key": ([(0, 3, 2, 2, 1, 0, 0, 0, 0, 0)], 0, "cut off"),
    "a first version that is the second": ([(1, 0, 2, 2, 2, 0, 0, 0, 0, 0)], 0, "first version"),
    "a first version created before": ([(1, 0, 3, 2, 1, 0, 0, 0, 0, 0)], 0, "first version"),
    "a predecessor to come": ([(1, 0, 2, 2, 2, 0, FIRST + 5, 0, 0, 0)], 0, "go back"),
    "a jump forwards": ([PUT, (1, 0, 3, 2, 2, 0, FIRST, FIRST + 7, 0, 1)], 0, "wrong jump"),
    "the same place in a revision": ([PUT, (1, 0, 2, 2, 2, 0, FIRST, FIRST, 0, 1)], 0, "out of order"),
    "revision 1": ([(1, 0, 1, 1, 1, 0, 0, 0, 0, 0)], 0, "out of order"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_histories_that_cannot_be(name):
    """A record that no command could have written is refused, with the reason."""
    records, dead, reason = CRAFTED[name]
    stream = crafted(*records, dead=dead)
    if reason is None:
        restore([stream]).check()
        return
    with pytest.raises(SnapshotCorruption, match=reason):
        restore([stream])


def test_a_key_that_has_just_been_restored_is_no_new_one(monkeypatch):
    """Two first versions of a key are refused, wherever the first one stands by then."""
    monkeypatch.setattr(keyindex, "CHUNK_KEYS_MAX", 4)
    monkeypatch.setattr(pages, "PAGE_BYTES_TARGET", 6 * (RECORD_BYTES + 1))
    history = History()
    for revision, key in enumerate([b"g", b"f", b"e", b"d", b"c", b"b", b"a", b"a"], 2):
        history.pages.append(key, b"", revision, revision, 1, 0, 0, 0, 0, 0)
        history.published_revision = revision
        history.key_count += 1
    with pytest.raises(SnapshotCorruption, match="broken chain"):
        restore(list(Snapshot(history)))


def test_a_bumped_revision_is_restored_and_everything_before_is_gone():
    """The state is what it was; reads and watches of before are refused, and the next change is one revision on."""
    store = busy_store()
    before, state = store.revision, finish(store.read(EVERYTHING))
    store.bump_revision(1000)
    store.advance()
    finish(store.compaction(), 100)
    store.check()
    with store.snapshot() as taken:
        twin = restore(taken)
    twin.check()
    for each in (store, twin):
        assert (each.published_revision, each.compact_revision) == (before + 1000, before + 1000)
        assert finish(each.read(EVERYTHING)).kvs == state.kvs
        for gone in (1, before, before + 999):
            with pytest.raises(Compacted):
                each.get(b"001", revision=gone)
            with pytest.raises(Compacted):
                each.watch(FROM_KEY, FROM_KEY, start_revision=gone)
        watcher = each.watch(FROM_KEY, FROM_KEY, start_revision=before + 1000)
        assert each.apply(PutKey(b"k", b"v")).revision == before + 1001
        each.advance()
        events = []
        while (batch := watcher.take()) is not None:
            events += batch.events
        assert [(event.kv.key, event.kv.mod_revision) for event in events] == [(b"k", before + 1001)]
    with pytest.raises(AssertionError):
        store.bump_revision(1)


def test_a_revision_without_changes_is_one_that_was_bumped_to():
    """The last revision has a change, or everything up to it is compacted: else something is missing."""
    store = busy_store()
    with store.snapshot() as taken:
        stream = bytearray(b"".join(taken))
    magic_and_format = 6
    stream[magic_and_format : magic_and_format + 8] = (store.revision + 1).to_bytes(8, "little")
    with pytest.raises(SnapshotCorruption, match="not the last revision"):
        restore([bytes(stream)])
