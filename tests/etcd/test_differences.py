"""Each row of the page of differences is as it says, on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from http.client import HTTPException
from typing import Any

import pytest

from pyraftkv import errors
from pyraftkv.store import Store
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
    RevokeLease,
    Transaction,
)
from pyraftkv.store.validate import Limits
from pyraftkv.store.values import CompactResult, EventType, TxnResult
from tests.etcd.differences import AVOIDED, REWRITTEN, SHOWN, avoided, rows
from tests.etcd.gateway import Gateway, WatchStream
from tests.etcd.members import TTL_MIN_SECONDS
from tests.store.world import finish, outcome

MIB = 1024 * 1024
LATER = (3, 5, 30)
"""A version of etcd that is known to have two differences less than the one that the page is about."""


class Both:
    """A store and an etcd, to be asked the same."""

    def __init__(self, port: int) -> None:
        self.store = Store(limits=Limits(lease_ttl_min_seconds=TTL_MIN_SECONDS))
        self.etcd = Gateway(port)

    def apply(self, command: Any) -> tuple[Any, Any]:
        """Do a command on both; return both answers."""
        return outcome(lambda: finish(self.store.apply(command))), outcome(self.etcd.apply, command)


@pytest.fixture
def both(etcd: int) -> Iterator[Both]:
    """A store, and an etcd that others have used."""
    both = Both(etcd)
    with closing(both.etcd):
        yield both


@pytest.fixture
def fresh(fresh_etcd: int) -> Iterator[Both]:
    """A store and an etcd in which nothing was ever written."""
    both = Both(fresh_etcd)
    with closing(both.etcd):
        yield both


def reading(revision: int) -> Transaction:
    """Return a transaction that reads at a revision."""
    return Transaction([], [RangeQuery(b"a", revision=revision)])


def test_the_page_has_the_differences_that_the_program_has() -> None:
    """No row without a program that shows it, and no exception without a row that gives its reason."""
    assert sorted(rows()) == sorted(REWRITTEN | AVOIDED | SHOWN)


def test_before_any_compaction(fresh: Both) -> None:
    """What was never compacted begins at revision -1; and revision 0 can be compacted once, there."""
    done = TxnResult(1, True, [finish(fresh.store.read(RangeQuery(b"a")))])
    assert fresh.apply(reading(-1)) == (done, done)
    assert fresh.apply(reading(-2)) == (errors.Compacted, errors.Compacted)
    assert fresh.apply(Compact(-1)) == (errors.Compacted, errors.Compacted)
    assert fresh.apply(Compact(0)) == (errors.Compacted, CompactResult(1))
    assert fresh.apply(Compact(0)) == (errors.Compacted, errors.Compacted)
    assert fresh.apply(Compact(1)) == (CompactResult(1), CompactResult(1))
    assert fresh.apply(reading(-1)) == (errors.Compacted, errors.Compacted)


def test_a_transaction_that_ends_its_members(fresh: Both) -> None:
    """What deletes a key unseen, and then needs it, is refused here; there nobody is left to answer."""
    fresh.apply(PutKey(b"k", b"v"))
    fatal = Transaction([], [DeleteRange(b"a", FROM_KEY), PutKey(b"k", b"", ignore_value=True)])
    assert avoided(fatal)
    assert outcome(fresh.store.apply, fatal) is errors.KeyNotFound
    assert fresh.store.get(b"k") is not None
    with pytest.raises((HTTPException, OSError)):
        fresh.etcd.apply(fatal)


def test_a_deletion_at_the_compact_revision(both: Both) -> None:
    """A watch from there on sees it here, and once it is removed no more there; later versions keep it, as we do."""
    kept = both.etcd.version() >= LATER
    both.apply(PutKey(b"gone", b""))
    ours, theirs = both.apply(DeleteRange(b"gone"))
    both.store.apply(Compact(ours.revision))
    both.etcd.apply(Compact(theirs.revision))
    both.apply(PutKey(b"gone", b"again"))
    finish(both.store.compaction())
    watcher = both.store.watch(b"gone", start_revision=ours.revision)
    assert [event.type for event in watcher.take().events] == [EventType.DELETE, EventType.PUT]
    for _ in range(100):  # they remove it a moment later
        with closing(WatchStream(both.etcd.port, b"gone", b"", start_revision=theirs.revision)) as stream:
            [first] = stream.take(1)
        if kept or first.type is EventType.PUT:
            break
    else:
        pytest.fail("the deletion is still there")
    assert first.type is (EventType.DELETE if kept else EventType.PUT)


def test_a_watch_from_a_negative_revision(fresh: Both) -> None:
    """It is refused here; there it begins, and is refused once something was compacted, or always in later ones."""
    assert outcome(lambda: fresh.store.watch(b"a", start_revision=-1)) is errors.InvalidRequest
    if fresh.etcd.version() >= LATER:
        assert outcome(lambda: WatchStream(fresh.etcd.port, b"a", b"", start_revision=-1)) is errors.InvalidRequest
        return
    WatchStream(fresh.etcd.port, b"a", b"", start_revision=-1).close()
    fresh.apply(PutKey(b"a", b"1"))
    fresh.apply(Compact(1))
    with closing(WatchStream(fresh.etcd.port, b"a", b"", start_revision=-1)) as stream:
        assert outcome(stream.take, 1) is errors.Compacted


def test_ids_and_lives_of_leases(both: Both) -> None:
    """An id is above 0 here, and anything there; a life is as short and as long as there."""
    for lease in (0, -4):
        ours, theirs = both.apply(GrantLease(lease, 600))
        assert ours is errors.InvalidRequest
        assert theirs.id == lease or lease == 0 < theirs.id
        assert both.apply(RevokeLease(lease))[0] is errors.InvalidRequest
    assert both.apply(PutKey(b"k", b"v", lease=-4)) == (errors.InvalidRequest, errors.LeaseNotFound)
    for lease, ttl in enumerate([-1, 0, 1, TTL_MIN_SECONDS + 1, 9_000_000_000, 9_000_000_001], 10):
        ours, theirs = both.apply(GrantLease(lease, ttl))
        assert ours == (theirs if isinstance(theirs, type) else replace(theirs, revision=ours.revision))


def test_operations_of_a_whole_tree(both: Both) -> None:
    """There each transaction of a tree may hold as many as the first one; here all of them have a bound."""
    many = Transaction([], [RangeQuery(b"a", count_only=True)] * 110)
    ours, theirs = both.apply(Transaction([], [many] * 10))
    assert ours is errors.RequestTooLarge
    assert [len(nested.responses) for nested in theirs.responses] == [110] * 10


@pytest.mark.parametrize(("outer", "inner"), [(128, 0), (129, 0), (100, 28), (100, 29), (1, 127), (1, 128)])
def test_limits_of_a_transaction(both: Both, outer: int, inner: int) -> None:
    """A transaction holds 128 comparisons, or operations of a branch; a nested one what its parent has left."""
    nested = Transaction([], [RangeQuery(b"no")] * inner)
    ours, theirs = both.apply(Transaction([], [RangeQuery(b"no")] * (outer - 1) + [nested]))
    assert isinstance(ours, type) == isinstance(theirs, type) == (outer + inner > 128)
    compare = Compare(CompareTarget.VERSION, CompareResult.EQUAL, b"no", 0)
    ours, theirs = both.apply(Transaction([compare] * outer, [Transaction([compare] * inner)]))
    assert isinstance(ours, type) == isinstance(theirs, type) == (outer + inner > 128)


def test_an_answer_of_many_bytes(both: Both) -> None:
    """There a transaction returns what it finds; here no more than what members can keep."""
    for number in range(4):
        both.apply(PutKey(b"large/%d" % number, bytes(MIB)))
    everything = RangeQuery(b"large/", b"large0")
    ours, theirs = both.apply(Transaction([], [everything]))
    assert ours is errors.RequestTooLarge
    assert len(theirs.responses[0].kvs) == 4
    assert len(finish(both.store.read(everything)).kvs) == 4


def test_a_request_of_many_bytes(both: Both) -> None:
    """1.5 MiB of key and value can be put here; there a little less, for how it is written counts, too."""
    ours, theirs = both.apply(PutKey(b"k", bytes(3 * MIB // 2 - 1)))
    assert ours.revision == both.store.revision
    assert theirs is errors.RequestTooLarge
    assert both.apply(PutKey(b"k", bytes(3 * MIB // 2))) == (errors.RequestTooLarge, errors.RequestTooLarge)
