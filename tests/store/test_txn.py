"""Transactions, as transcripts of a real etcd 3.4.23 that was asked the same."""

from __future__ import annotations

import pytest

from pyraftkv.errors import Compacted, FutureRevision, KeyNotFound, LeaseNotFound
from pyraftkv.store import Store, Work
from pyraftkv.store.commands import (
    FROM_KEY,
    Compact,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    GrantLease,
    PutKey,
    RangeQuery,
    Transaction,
)
from pyraftkv.store.values import DeleteResult, KeyValue, PutResult, RangeResult, TxnResult
from tests.store.world import finish


def test_headers_and_own_writes():
    """A read before the first change reports the old revision, one after it the new one, and sees the change."""
    store = Store()
    result = store.apply(
        Transaction([], [RangeQuery(b"a"), PutKey(b"a", b"x"), RangeQuery(b"a"), DeleteRange(b"no"), RangeQuery(b"z")])
    )

    assert result == TxnResult(
        2,
        True,
        [
            RangeResult(1, [], more=False, count=0),
            PutResult(2),
            RangeResult(2, [KeyValue(b"a", b"x", 2, 2, 1)], more=False, count=1),
            DeleteResult(2, 0),
            RangeResult(2, [], more=False, count=0),
        ],
    )


def test_no_change_no_revision():
    """A transaction that changes nothing makes no revision."""
    store = Store()
    assert store.apply(Transaction([], [DeleteRange(b"nope"), RangeQuery(b"a")])).revision == 1
    assert store.apply(DeleteRange(b"nope")) == DeleteResult(1, 0)
    assert store.revision == 1


def test_changes_share_a_revision():
    """All changes of a transaction have one revision, a key may even change twice in it, and history shows the last."""
    store = Store()
    store.apply(PutKey(b"n", b"0"))
    watcher = store.watch(b"n", prev_kv=True)
    result = store.apply(
        Transaction([], [Transaction([], [PutKey(b"n", b"1")]), Transaction([], [DeleteRange(b"n", prev_kv=True)])])
    )

    assert (result.revision, store.revision) == (3, 3)
    assert result.responses[1].responses == [DeleteResult(3, 1, [KeyValue(b"n", b"1", 2, 3, 2)])]
    assert store.get(b"n") is None
    assert store.get(b"n", 2) == KeyValue(b"n", b"0", 2, 2, 1)
    store.advance()
    batch = watcher.take()
    assert batch is not None
    assert [event.kv.mod_revision for event in batch.events] == [3, 3]
    # etcd reads the previous key-value at the revision before, so both events have the same one.
    assert [event.prev_kv for event in batch.events] == [KeyValue(b"n", b"0", 2, 2, 1)] * 2
    store.check()


@pytest.mark.parametrize(
    ("compare", "holds"),
    [
        (Compare(CompareTarget.VALUE, CompareResult.NOT_EQUAL, b"none", b"z"), False),
        (Compare(CompareTarget.VALUE, CompareResult.EQUAL, b"none", b""), False),
        (Compare(CompareTarget.VERSION, CompareResult.EQUAL, b"none", 0), True),
        (Compare(CompareTarget.LEASE, CompareResult.LESS, b"none", 1), True),
        (Compare(CompareTarget.VERSION, CompareResult.EQUAL, b"x", 0, b"y"), True),
        (Compare(CompareTarget.CREATE, CompareResult.GREATER, b"x", 0, b"y"), False),
        (Compare(CompareTarget.VERSION, CompareResult.EQUAL, b"y", 0, b"x"), True),
        (Compare(CompareTarget.MOD, CompareResult.GREATER, b"a", 1, b"c"), True),
        (Compare(CompareTarget.MOD, CompareResult.GREATER, b"a", 2, b"c"), False),
        (Compare(CompareTarget.VALUE, CompareResult.EQUAL, b"a", b"1"), True),
        (Compare(CompareTarget.VALUE, CompareResult.LESS, b"\0", b"2", FROM_KEY), False),
        (Compare(CompareTarget.LEASE, CompareResult.EQUAL, b"b", 7), True),
    ],
)
def test_compare(compare, holds):
    """Comparisons on keys that exist, that do not, on ranges and on empty ranges."""
    store = Store(step_keys_max=1)
    store.apply(PutKey(b"a", b"1"))
    store.apply(GrantLease(7, 60))
    store.apply(PutKey(b"b", b"2", lease=7))

    result = finish(store.apply(Transaction([compare], [], [PutKey(b"failed", b"")])))

    assert result.succeeded is holds
    assert (store.get(b"failed") is None) is holds


def test_nested_compares_see_the_state_before():
    """A nested comparison does not see what its parent has just put."""
    store = Store()
    inner = Transaction([Compare(CompareTarget.VERSION, CompareResult.GREATER, b"pre", 0)], [PutKey(b"yes", b"")])
    result = store.apply(Transaction([], [PutKey(b"pre", b""), inner]))

    assert result.responses[1].succeeded is False
    assert store.get(b"yes") is None


FAILING = {
    "ignore_value of no key": (PutKey(b"gone", b"", ignore_value=True), KeyNotFound),
    "ignore_lease of no key": (PutKey(b"gone", b"v", ignore_lease=True), KeyNotFound),
    "future range": (RangeQuery(b"a", revision=10**6), FutureRevision),
    "revision that the transaction is making": (RangeQuery(b"a", revision=5), FutureRevision),
    "compacted range": (RangeQuery(b"a", revision=2), Compacted),
    "negative revision": (RangeQuery(b"a", revision=-1), Compacted),
    "nested": (Transaction([], [RangeQuery(b"a", revision=2)]), Compacted),
}


@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("step_keys_max", [1, 100])
def test_errors_come_before_effects(name, step_keys_max):
    """An operation that fails is found before the ones in front of it have changed anything."""
    operation, error = FAILING[name]
    store = Store(step_keys_max=step_keys_max)
    for _ in range(3):
        store.apply(PutKey(b"a", b""))
    store.apply(Compact(3))
    # The range in the comparison makes it take several slices.
    compare = Compare(CompareTarget.VERSION, CompareResult.GREATER, b"a", 0, b"c")
    txn = Transaction([compare, compare], [PutKey(b"zzz", b""), DeleteRange(b"a", FROM_KEY), operation])

    with pytest.raises(error):
        finish(store.apply(txn))
    assert (store.revision, store.get(b"zzz")) == (4, None)
    store.check()
    otherwise = Transaction([Compare(CompareTarget.VERSION, CompareResult.EQUAL, b"a", 0)], [operation])
    assert finish(store.apply(otherwise)).succeeded is False
    assert store.apply(PutKey(b"a", b"")) == PutResult(5)


def test_negative_revision_before_any_compaction():
    """Only a compaction makes a negative revision a compacted one."""
    assert Store().apply(Transaction([], [RangeQuery(b"a", revision=-1)])).revision == 1


def test_a_delete_that_etcds_interval_check_misses():
    """Deleting from a key on, then needing one of those keys: an error before any effect (etcd panics)."""
    store = Store()
    store.apply(PutKey(b"k", b"v"))

    with pytest.raises(KeyNotFound):
        store.apply(Transaction([], [DeleteRange(b"a", FROM_KEY), PutKey(b"k", b"", ignore_value=True)]))
    assert (store.revision, store.key_count) == (2, 1)
    result = store.apply(Transaction([], [DeleteRange(b"x", FROM_KEY), PutKey(b"k", b"", ignore_value=True)]))
    assert result.revision == 3


def test_ignore_value_and_lease():
    """What is ignored keeps its old value; a put without a lease detaches it."""
    store = Store()
    for lease in (7, 8):
        store.apply(GrantLease(lease, 60))
    store.apply(PutKey(b"k", b"1", lease=7))
    with pytest.raises(KeyNotFound):
        store.apply(PutKey(b"other", b"", ignore_value=True))

    store.apply(PutKey(b"k", b"", lease=8, ignore_value=True))
    assert store.get(b"k") == KeyValue(b"k", b"1", 2, 3, 2, 8)
    result = store.apply(PutKey(b"k", b"2", ignore_lease=True, prev_kv=True))
    assert result == PutResult(4, KeyValue(b"k", b"1", 2, 3, 2, 8))
    assert store.get(b"k") == KeyValue(b"k", b"2", 2, 4, 3, 8)
    store.apply(PutKey(b"k", b"3"))
    assert store.get(b"k") == KeyValue(b"k", b"3", 2, 5, 4, 0)


def test_nothing_of_a_command_under_way_is_seen():
    """While a long transaction goes on, readers, counts and snapshots see the revision before; then all of it."""
    store = Store(step_keys_max=10)
    for i in range(200):
        store.apply(PutKey(b"%03d" % i, b""))
    work = store.apply(Transaction([], [PutKey(b"new", b""), DeleteRange(b"0", b"9")]))
    assert isinstance(work, Work)

    result = None
    while result is None:
        assert (store.published_revision, store.revision) == (201, 202)
        assert store.get(b"new") is None
        assert store.get(b"000") is not None
        assert finish(store.read(RangeQuery(b"\0", FROM_KEY, count_only=True))).count == 200
        with pytest.raises(FutureRevision):
            store.get(b"a", 202)
        with pytest.raises(AssertionError, match="under way"):
            store.apply(PutKey(b"k", b""))
        store.check()
        result = work.step(50)

    assert result.responses == [PutResult(202), DeleteResult(202, 200)]
    assert (store.published_revision, store.key_count) == (202, 1)
    store.check()


def test_what_fails_first():
    """The puts of a transaction are judged before its ranges, a key before a lease; of a put alone, the lease first."""
    store = Store()
    needy = PutKey(b"k", b"", 7, ignore_value=True)
    with pytest.raises(LeaseNotFound):
        store.apply(needy)
    with pytest.raises(KeyNotFound):
        store.apply(Transaction([], [RangeQuery(b"a", revision=9), needy]))
    with pytest.raises(LeaseNotFound):
        store.apply(Transaction([], [RangeQuery(b"a", revision=9), PutKey(b"k", b"", 7)]))
    with pytest.raises(FutureRevision):
        store.apply(Transaction([], [RangeQuery(b"a", revision=9), PutKey(b"k", b"")]))


def test_what_was_never_compacted_begins_at_minus_one():
    """A transaction can read at revision -1 then, and at none before; after a compaction at none below that."""
    store = Store()
    assert store.apply(Transaction([], [RangeQuery(b"a", revision=-1)])).succeeded
    with pytest.raises(Compacted):
        store.apply(Transaction([], [RangeQuery(b"a", revision=-2)]))
    store.apply(Compact(1))
    with pytest.raises(Compacted):
        store.apply(Transaction([], [RangeQuery(b"a", revision=-1)]))


def test_leases_of_a_range_are_compared():
    """The lease of every key of the range counts."""
    store = Store()
    store.apply(GrantLease(7, 600))
    store.apply(PutKey(b"a", b"", 7))
    is_seven = Compare(CompareTarget.LEASE, CompareResult.EQUAL, b"a", 7, end=b"c")
    assert store.apply(Transaction([is_seven])).succeeded
    store.apply(PutKey(b"b", b""))
    assert not store.apply(Transaction([is_seven])).succeeded
