"""Leases in the store: which there are, what hangs on them, and how they end; without a clock."""

from __future__ import annotations

import sys
from random import Random

import pytest

from pyraftkv.errors import InvalidRequest, LeaseExists, LeaseNotFound, RequestTooLarge, SnapshotCorruption
from pyraftkv.store import Limits, Store, Work, snapshot
from pyraftkv.store.commands import (
    CheckpointLeases,
    DeleteRange,
    ExpireLeases,
    GrantLease,
    PutKey,
    RevokeLease,
    Transaction,
)
from pyraftkv.store.leases import Leases
from pyraftkv.store.values import EventType, LeaseGranted, LeaseRevoked
from tests.store.world import finish, outcome, restore


def store_with(*leases: int, **options: int) -> Store:
    """Return a store with leases of 60 s."""
    store = Store(**options)
    for lease in leases:
        store.apply(GrantLease(lease, 60))
    return store


def test_a_grant_says_for_how_long_and_changes_no_revision():
    """Too little is raised to the least there is, be it negative; too much, and what is there already, is refused."""
    store = Store()
    assert store.apply(GrantLease(7, 60)) == LeaseGranted(1, 7, 60)
    assert store.apply(GrantLease(8, -1)) == LeaseGranted(1, 8, 2)
    assert store.apply(GrantLease(9, 9_000_000_000)).ttl == 9_000_000_000
    assert outcome(store.apply, GrantLease(10, 9_000_000_001)) is InvalidRequest
    assert outcome(store.apply, GrantLease(0, 60)) is InvalidRequest
    assert outcome(store.apply, GrantLease(7, 90)) is LeaseExists
    assert [(lease, store.leases.ttl(lease)) for lease in store.leases] == [(7, 60), (8, 2), (9, 9_000_000_000)]
    assert store.leases.ttl(10) == 0


def test_leases_are_bounded():
    """One more than the limit is refused, until another one is gone."""
    store = Store(limits=Limits(leases_max=2))
    for lease in (1, 2):
        store.apply(GrantLease(lease, 60))
    assert outcome(store.apply, GrantLease(3, 60)) is RequestTooLarge
    store.apply(RevokeLease(1))
    assert store.apply(GrantLease(3, 60)).id == 3


def test_a_put_under_a_lease_that_is_not_there_changes_nothing():
    """Alone, or in the branch of a transaction that is taken; the branch that is not taken may name any."""
    store = store_with(7)
    assert outcome(store.apply, PutKey(b"k", b"v", lease=8)) is LeaseNotFound
    assert outcome(store.apply, PutKey(b"k", b"", lease=8, ignore_value=True)) is LeaseNotFound
    both = Transaction([], [PutKey(b"a", b""), PutKey(b"b", b"", lease=8)])
    assert outcome(lambda: finish(store.apply(both))) is LeaseNotFound
    nested = Transaction([], [PutKey(b"a", b""), Transaction([], [PutKey(b"b", b"", lease=8)])])
    assert outcome(lambda: finish(store.apply(nested))) is LeaseNotFound
    assert (store.revision, store.key_count) == (1, 0)
    assert finish(store.apply(Transaction([], [PutKey(b"a", b"")], [PutKey(b"b", b"", lease=8)]))).succeeded


def test_what_hangs_on_a_lease():
    """The key's last put decides; a put without a lease takes it off, as a deletion does; `ignore_lease` keeps it."""
    store = store_with(7, 8)
    for key in (b"c", b"a", b"b", b"d"):
        store.apply(PutKey(key, b"", lease=7))
    store.apply(PutKey(b"a", b"", lease=8))
    store.apply(PutKey(b"b", b""))
    store.apply(DeleteRange(b"c"))
    store.apply(PutKey(b"d", b"1", ignore_lease=True))
    assert (store.leases.keys(7), store.leases.keys(8)) == ([b"d"], [b"a"])
    store.apply(PutKey(b"c", b""))
    assert store.leases.keys(7) == [b"d"]
    store.check()


def test_the_keys_of_a_lease_vanish_in_one_revision_and_in_their_order():
    """However many slices it takes: nobody sees a part of it. Without keys the revision stays."""
    store = store_with(7, 8, step_keys_max=10)
    keys = [b"%04d" % i for i in range(2000)]
    for key in Random(1).sample(keys, len(keys)):
        store.apply(PutKey(key, b"", lease=7))
    store.apply(PutKey(b"other", b""))
    watcher = store.watch(b"\0", b"\0")
    revision = store.revision

    work = store.apply(RevokeLease(7))
    assert isinstance(work, Work)
    while (result := work.step(100)) is None:
        assert store.get(b"0000") is not None
        assert store.published_revision == revision
        assert 7 in store.leases
    assert result == LeaseRevoked(revision + 1)
    while store.distributed_revision < store.published_revision:
        store.advance()
    events = []
    while (batch := watcher.take()) is not None:
        events += batch.events
    assert [(event.type, event.kv.key) for event in events] == [(EventType.DELETE, key) for key in keys]
    assert {event.kv.mod_revision for event in events} == {revision + 1}
    assert store.apply(RevokeLease(8)) == LeaseRevoked(revision + 1)
    assert outcome(store.apply, RevokeLease(8)) is LeaseNotFound
    assert len(store.leases) == 0
    store.check()


def test_leases_that_expire_together_go_one_after_the_other():
    """Each at a revision of its own; who is gone already, or is named twice, is passed over."""
    store = store_with(1, 2, 3)
    for lease in (1, 2, 3):
        store.apply(PutKey(b"k%d" % lease, b"", lease=lease))
    assert store.keep_leases(ExpireLeases([3, 9, 1, 3])) == 2
    assert store.revision == 6
    assert [store.get(b"k%d" % lease) is None for lease in (1, 2, 3)] == [True, False, True]
    assert list(store.leases) == [2]
    store.check()


def test_a_checkpoint_says_what_is_left_until_the_next_one():
    """None, or all of it, is no checkpoint."""
    store = store_with(1, 2)
    assert store.keep_leases(CheckpointLeases([1, 20, 9, 30, 2, 60])) == 2
    assert (store.leases.left(1), store.leases.left(2)) == (20, 0)
    store.keep_leases(CheckpointLeases([1, 10]))
    assert store.leases.left(1) == 10
    store.keep_leases(CheckpointLeases([1, 0]))
    assert store.leases.left(1) == 0


def test_leases_are_restored_with_what_hangs_on_them(monkeypatch):
    """What they were granted for, what was left, their keys; in frames of a few at a time."""
    monkeypatch.setattr(snapshot, "LEASES_PER_FRAME_MAX", 2)
    store = store_with(*range(1, 8))
    store.keep_leases(CheckpointLeases([3, 30]))
    store.apply(PutKey(b"a", b"", lease=5))
    store.apply(PutKey(b"b", b"", lease=5))
    store.apply(PutKey(b"b", b""))
    with store.snapshot() as taken:
        store.apply(RevokeLease(5))
        twin = restore(list(taken))
    twin.check()
    assert twin.leases.rows() == [(lease, 60, 30 if lease == 3 else 0) for lease in range(1, 8)]
    assert twin.leases.keys(5) == [b"a"]
    assert (store.apply(RevokeLease(4)).revision, twin.apply(RevokeLease(4)).revision) == (
        store.revision,
        twin.revision,
    )


@pytest.mark.parametrize("rows", [[(5, 60, 0)], [(7, 0, 0)], [(7, 60, 60)], [(7, 60, 0)] * 2, [(0, 60, 0), (7, 60, 0)]])
def test_leases_that_cannot_be_are_no_snapshot(rows):
    """A key whose lease is not there; one granted for nothing, with more left than that, twice, with the number 0."""
    store = store_with(7)
    store.apply(PutKey(b"a", b"", lease=7))
    with store.snapshot() as taken:
        taken._leases = rows
        chunks = list(taken)
    with pytest.raises(SnapshotCorruption):
        restore(chunks)


def test_a_hundred_thousand_leases_take_little_memory():
    """With a key each: below 200 bytes for a lease, and nothing for the garbage collector to walk."""
    leases = Leases()
    for lease in range(100_000):
        leases.grant(lease + 2**62, 60, count_max=200_000)
        leases.move(b"service/%06d" % lease, 0, lease + 2**62)
    rows = list(leases._attached)
    assert sum(map(sys.getsizeof, rows)) + sys.getsizeof(leases._ttls) < 200 * len(leases)
    assert leases.keys(2**62 + 99_999) == [b"service/099999"]
    assert not leases.keys(2**62 + 100_000)
