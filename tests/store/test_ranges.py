from __future__ import annotations

import gc
from dataclasses import replace
from random import Random

import pytest

from pyraftkv.errors import Compacted, FutureRevision, InvalidRequest, RequestTooLarge
from pyraftkv.store import Store, Work
from pyraftkv.store.commands import (
    FROM_KEY,
    Compact,
    DeleteRange,
    GrantLease,
    PutKey,
    RangeQuery,
    SortOrder,
    SortTarget,
)
from pyraftkv.store.ranges import SPARE_KEYS, Intervals, _Collector, _gather
from pyraftkv.store.values import KeyValue
from tests.store.model import range_of
from tests.store.world import finish


@pytest.fixture(name="versions")
def make_versions() -> Store:
    """Return a store with s1..s5, put 4, 3, 2, 1 and 1 times."""
    store = Store()
    for key, count in ((b"s1", 4), (b"s2", 3), (b"s3", 2), (b"s4", 1), (b"s5", 1)):
        for _ in range(count):
            store.apply(PutKey(key, b"v"))
    return store


def keys(store: Store, **options: object) -> tuple[list[bytes], bool, int]:
    """Range over s* and return keys, more and count."""
    result = finish(store.read(RangeQuery(b"s", b"t", **options)))  # type: ignore[arg-type]
    return [kv.key for kv in result.kvs], result.more, result.count


def test_target_without_order(versions):
    """A sort target without an order sorts only what the limit has fetched, as etcd does."""
    assert keys(versions, sort_target=SortTarget.VERSION, limit=2) == ([b"s3", b"s2"], True, 5)
    ascending = keys(versions, sort_target=SortTarget.VERSION, sort_order=SortOrder.ASCEND, limit=2)
    assert ascending == ([b"s4", b"s5"], True, 5)


def test_limit_filter_and_count(versions):
    """The count knows neither limit nor filters; filters come before the limit."""
    assert keys(versions, limit=2) == ([b"s1", b"s2"], True, 5)
    assert keys(versions, limit=5) == ([b"s1", b"s2", b"s3", b"s4", b"s5"], False, 5)
    assert keys(versions, limit=-1)[1:] == (False, 5)
    assert keys(versions, min_create_revision=6, limit=1) == ([b"s2"], True, 5)
    assert keys(versions, max_mod_revision=8) == ([b"s1", b"s2"], False, 5)
    assert keys(versions, min_mod_revision=9, max_create_revision=9) == ([b"s3"], False, 5)
    assert keys(versions, count_only=True, limit=1) == ([], False, 5)
    assert keys(versions, sort_order=SortOrder.DESCEND, limit=1) == ([b"s5"], True, 5)


def test_keys_only(versions):
    """Values are left out, also when they were needed to sort, and leases with them."""
    versions.apply(GrantLease(7, 600))
    versions.apply(PutKey(b"s1", b"zz", 7))
    assert versions.read(RangeQuery(b"s1", keys_only=True)).kvs == [KeyValue(b"s1", b"", 2, 13, 5)]
    query = RangeQuery(b"s", b"t", keys_only=True, sort_target=SortTarget.VALUE, sort_order=SortOrder.DESCEND, limit=1)
    assert versions.read(query).kvs == [KeyValue(b"s1", b"", 2, 13, 5)]


def test_bounds(versions):
    """Single keys, from a key on, everything, and ranges the wrong way round."""
    assert [kv.key for kv in versions.read(RangeQuery(b"s2")).kvs] == [b"s2"]
    assert versions.read(RangeQuery(b"s2x")).kvs == []
    assert versions.read(RangeQuery(b"s4", FROM_KEY)).count == 2
    assert versions.read(RangeQuery(FROM_KEY, FROM_KEY)).count == 5
    assert versions.read(RangeQuery(b"t", b"s")).count == 0
    assert versions.apply(DeleteRange(b"t", b"s")).deleted == 0
    with pytest.raises(InvalidRequest):
        versions.read(RangeQuery(b"", b"z"))
    with pytest.raises(InvalidRequest):
        versions.get(b"")


def test_revisions(versions):
    """Zero and less is the latest; the compact revision can be read, below and above the present cannot."""
    versions.apply(Compact(5))
    for revision in (0, -5):
        assert versions.read(RangeQuery(b"s1", revision=revision)).kvs == [versions.get(b"s1", revision)]
    assert versions.get(b"s1", 5) == KeyValue(b"s1", b"v", 2, 5, 4)
    assert versions.read(RangeQuery(b"s1", revision=5)).revision == 12
    for revision, error in ((4, Compacted), (13, FutureRevision)):
        with pytest.raises(error) as refused:
            versions.read(RangeQuery(b"s1", revision=revision))
        with pytest.raises(error):
            versions.get(b"s1", revision)
        assert refused.value.defaults.keys() <= vars(refused.value).keys()


def test_a_long_read_keeps_its_revision():
    """A read in slices answers as of its beginning, while keys come, change, vanish and are compacted."""
    store = Store(step_keys_max=10)
    for i in range(5_000):
        store.apply(PutKey(b"%06d" % i, b"old"))
    expected = [KeyValue(b"%06d" % i, b"old", i + 2, i + 2, 1) for i in range(5_000)]
    rng = Random(5)
    query = RangeQuery(b"0", FROM_KEY, sort_target=SortTarget.MOD, sort_order=SortOrder.DESCEND)
    work = store.read(query)
    assert isinstance(work, Work)

    result = None
    while result is None:
        for _ in range(20):
            store.apply(PutKey(b"%06d" % rng.randrange(10_000), b"new"))
            finish(store.apply(DeleteRange(b"%06d" % rng.randrange(5_000))), 10**6)
        store.apply(Compact(store.revision))
        assert store.compaction() is None, "the read pins"
        result = work.step(100)

    assert result.kvs == expected[::-1]
    assert (result.revision, result.count) == (5_001, 5_000)
    finish(store.compaction(), 1_000)
    store.check()


@pytest.mark.parametrize("seed", range(2))
def test_what_an_order_begins_with_is_what_all_of_it_begins_with(seed):
    """Whatever is cut on the way: the same rows, equals by their keys, `more` and `count` as when all are gathered."""
    rng = Random(seed)
    store = Store(step_keys_max=1)
    for i in range(2_500):
        store.apply(PutKey(b"%04d" % rng.randrange(2_000), b"%d" % rng.randrange(9)))
        if i % 5 == 0:
            finish(store.apply(DeleteRange(b"%04d" % rng.randrange(2_000))))
    for _ in range(6):
        at = rng.randrange(1_000, store.revision)
        everything = finish(store.read(RangeQuery(b"\0", FROM_KEY, at)), 10**6)
        state = {kv.key: kv for kv in everything.kvs}
        low, end = sorted(b"%04d" % rng.randrange(2_000) for _ in range(2))
        query = RangeQuery(
            low,
            rng.choice((end, FROM_KEY)),
            at,
            limit=rng.choice((1, 7, 300, len(state) - 1)),
            min_mod_revision=rng.choice((0, 0, at // 3)),
            keys_only=rng.random() < 0.3,
        )
        for target in SortTarget:
            for order in SortOrder:
                asked = replace(query, sort_target=target, sort_order=order)
                work = store.read(asked)
                store.apply(PutKey(b"%04d" % rng.randrange(2_000), b"later"))
                assert finish(work, 200) == range_of(state, asked, everything.revision), asked
                everything = replace(everything, revision=everything.revision + 1)


def test_no_more_is_gathered_than_may_be_wanted():
    """The ten that changed last of many are found among few."""
    store = Store()
    for i in range(5_000):
        store.apply(PutKey(b"%06d" % i, b""))
    query = RangeQuery(
        b"0", FROM_KEY, limit=10, sort_target=SortTarget.MOD, sort_order=SortOrder.DESCEND, min_mod_revision=2
    )
    collector = _Collector(store._history, query, store.revision)
    most = max(len(collector.kvs) for _ in _gather(collector))
    assert most <= 2 * 11 + SPARE_KEYS
    assert collector.count == 5_000


def test_a_read_that_would_be_too_large_is_given_up():
    """As soon as that is sure, and not when everything was gathered; what is left out does not count."""
    store = Store(step_keys_max=100)
    for i in range(5_000):
        store.apply(PutKey(b"%06d" % i, b"1234"))
    everything = RangeQuery(b"0", FROM_KEY)
    work = store.read(everything, bytes_max=500 * 10)
    assert isinstance(work, Work)
    assert work.step(300) is None
    with pytest.raises(RequestTooLarge):
        work.step(300)
    assert len(finish(store.read(everything, bytes_max=5_000 * 10)).kvs) == 5_000
    assert len(finish(store.read(replace(everything, limit=10), bytes_max=100)).kvs) == 10
    assert len(finish(store.read(replace(everything, keys_only=True), bytes_max=5_000 * 6)).kvs) == 5_000
    assert finish(store.read(replace(everything, count_only=True), bytes_max=0)).count == 5_000


def test_a_read_that_is_dropped_unpins():
    """Somebody who no longer wants the answer does not hold up compaction."""
    store = Store(step_keys_max=1)
    for i in range(500):
        store.apply(PutKey(b"%03d" % i, b""))
    work = store.read(RangeQuery(b"0", FROM_KEY))
    store.apply(Compact(400))
    assert store.compaction() is None

    del work
    gc.collect()

    assert store.compaction() is not None


@pytest.mark.no_cover
def test_counting_behind_the_limit_takes_a_step_per_chunk():
    """Paging through many keys does not look at every key of the range for every page; nor backwards, nor filtered."""
    store = Store(step_keys_max=10**9)
    for i in range(50_000):
        store.apply(PutKey(b"%06d" % i, b""))
    at = store.revision
    store.apply(PutKey(b"000001x", b""))
    for order, least in ((SortOrder.NONE, 0), (SortOrder.ASCEND, 2), (SortOrder.DESCEND, 0), (SortOrder.DESCEND, 2)):
        query = RangeQuery(b"0", FROM_KEY, at, limit=10, sort_order=order, min_mod_revision=least)
        work = Store(step_keys_max=1, history=store._history).read(query)
        assert isinstance(work, Work)

        result = work.step(2_500)

        assert result is not None
        assert (result.count, result.more, len(result.kvs)) == (50_000, True, 10)


@pytest.mark.no_cover
def test_keys_that_are_gone_are_passed_over_a_chunk_at_a_time():
    """Who reads a row of which many keys were deleted does not look at each; who reads its past sees them."""
    store = Store(step_keys_max=10**9)
    for i in range(50_000):
        store.apply(PutKey(b"%06d" % i, b""))
    at = store.revision
    store.apply(DeleteRange(b"000001", FROM_KEY))
    work = Store(step_keys_max=1, history=store._history).read(RangeQuery(b"0", FROM_KEY))
    assert isinstance(work, Work)

    result = work.step(2_500)

    assert result is not None
    assert [kv.key for kv in result.kvs] == [b"000000"]
    assert finish(store.read(RangeQuery(b"0", FROM_KEY, at, count_only=True))).count == 50_000


def test_intervals():
    """Intervals hold the keys that any of those added holds, and stay few: what meets is joined."""
    for seed in range(200):
        rng = Random(seed)
        added: list[tuple[bytes, bytes | None]] = []
        halves = [Intervals(), Intervals()]
        for _ in range(rng.randrange(12)):
            high = None if rng.random() < 0.05 else b"%02d" % rng.randrange(40)
            added.append((b"%02d" % rng.randrange(40), high))
            rng.choice(halves).add(*added[-1])
        intervals, other = halves
        intervals.update(other)

        for key in (b"%02d" % i for i in range(41)):
            wanted = any(low <= key and (high is None or key < high) for low, high in added)
            assert (key in intervals) is wanted, (seed, key, added)
        ends = [end for pair in zip(intervals._lows, intervals._highs, strict=True) for end in pair]
        assert ends == sorted(set(ends)), seed
