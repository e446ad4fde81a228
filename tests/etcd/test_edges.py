"""The edges of what may be asked, thought out by hand: a real etcd and the store give the same answers there, too.

Random requests come to most of these now and then; here each is asked for certain, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any

import pytest

from pyraftkv.store.commands import (
    Compact,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    GrantLease,
    PutKey,
    RangeQuery,
    RevokeLease,
    SortOrder,
    SortTarget,
    Transaction,
)
from tests.etcd.pair import TTL_SECONDS, Pair

LEASE = 7
MIB = 1024 * 1024
Story = Callable[[int], Iterator[Any]]
"""What is asked one after the other, given the revision at which everything is empty."""


def put(key: bytes, value: bytes = b"v", **options: Any) -> PutKey:
    """Return a put that wants to know what was there."""
    return PutKey(key, value, prev_kv=True, **options)


def either(target: CompareTarget, operand: int | bytes, key: bytes = b"a", end: bytes = b"") -> Iterator[Transaction]:
    """Compare in every way; both branches say which was taken."""
    for result in CompareResult:
        yield Transaction([Compare(target, result, key, operand, end)], [RangeQuery(b"a")], [RangeQuery(b"b")])


def empty_keys(_: int) -> Iterator[Any]:
    """No key is empty, but an empty end is one key."""
    yield put(b"")
    yield put(b"a")
    for end in (b"", b"\0", b"a", b"b"):
        yield RangeQuery(b"", end)
        yield DeleteRange(b"", end, prev_kv=True)
        yield Transaction([], [RangeQuery(b"", end)])
        yield Transaction([Compare(CompareTarget.VERSION, CompareResult.EQUAL, b"", 0, end)])


def whole_keyspace(_: int) -> Iterator[Any]:
    """The key NUL with the end NUL is everything; alone it is a key."""
    yield RangeQuery(b"\0", b"\0")
    for key in (b"\0", b"\0\0", b"a", b"\xff"):
        yield put(key)
    for key in (b"\0", b"\0\0", b"a", b"a\0", b"\xff", b"\xff\xff"):
        for end in (b"", b"\0", b"\0\0", b"a", b"a\0", b"\xff", b"\xff\0"):
            yield RangeQuery(key, end)
            yield Transaction([Compare(CompareTarget.CREATE, CompareResult.GREATER, key, 0, end)], [], [put(b"x")])
    yield DeleteRange(b"\0")
    yield DeleteRange(b"\0", b"\0", prev_kv=True)
    yield DeleteRange(b"\0", b"\0", prev_kv=True)


def bytes_of_255(_: int) -> Iterator[Any]:
    """Where a prefix has no end, or the end is no end of a prefix."""
    keys = [b"\xfe\xff", b"\xff", b"\xff\0", b"\xff\xfe", b"\xff\xff", b"\xff\xff\0", b"\xff\xff\xff"]
    for key in keys:
        yield put(key, key)
    for key in keys:
        for end in (*keys, b"\0"):
            yield RangeQuery(key, end, keys_only=True)
    yield DeleteRange(b"\xff\xff", b"\xff", prev_kv=True)
    yield DeleteRange(b"\xff\xff", b"\xff\xff", prev_kv=True)
    yield DeleteRange(b"\xff\xff", b"\0", prev_kv=True)
    yield RangeQuery(b"\xfe", b"\0")


def limits_and_orders(r: int) -> Iterator[Any]:
    """Limits below, at and above the count, or negative; values that are equal, in every order."""
    for key, value in ((b"a", b"2"), (b"b", b"1"), (b"c", b"2"), (b"d", b""), (b"e", b"1"), (b"b", b"1")):
        yield put(key, value)
    for limit in (-1, 0, 1, 4, 5, 6, 2**63 - 1, -(2**63)):
        for target in SortTarget:
            for order in SortOrder:
                query = partial(RangeQuery, b"a", b"z", limit=limit, sort_target=target, sort_order=order)
                yield query()
                yield query(keys_only=True)
                yield query(min_mod_revision=r + 3, max_create_revision=r + 4)
        yield RangeQuery(b"a", b"z", limit=limit, count_only=True)
        yield RangeQuery(b"a", b"z", limit=limit, count_only=True, keys_only=True, min_mod_revision=r + 3)
        yield RangeQuery(b"a", b"z", limit=limit, revision=r + 2)


def bounds_of_revisions(r: int) -> Iterator[Any]:
    """Filters leave the count alone, and decide upon `more` together with the limit."""
    for key in (b"a", b"b", b"c", b"a", b"d"):
        yield put(key)
    for name in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
        for bound in (-1, 1, r, r + 2, r + 4, r + 5, 2**63 - 1):
            for limit in (0, 1, 2, 3):
                yield RangeQuery(b"a", b"z", limit=limit, **{name: bound})
            yield RangeQuery(b"a", b"z", count_only=True, **{name: bound})
            yield RangeQuery(b"a", b"z", revision=r + 3, **{name: bound})
    yield RangeQuery(b"a", b"z", min_mod_revision=r + 4, max_mod_revision=r + 3)


def compactions(r: int) -> Iterator[Any]:
    """At the present revision, again, below, above; and what can be read then."""
    for value in (b"1", b"2", b"3"):
        yield put(b"a", value)
    yield DeleteRange(b"a")
    yield put(b"b")
    yield Compact(-1)
    yield Compact(r + 6)
    yield Compact(r + 2)
    yield Compact(r + 2)
    yield Compact(r + 1)
    for revision in range(r, r + 7):
        yield RangeQuery(b"a", b"\0", revision=revision)
        yield Transaction([], [RangeQuery(b"a", b"\0", revision=revision), put(b"c")])
    yield RangeQuery(b"a", revision=-1)
    yield RangeQuery(b"a", revision=-(2**63))
    yield Transaction([], [RangeQuery(b"a", revision=-1)])
    yield Compact(2**63 - 1)


def compaction_of_everything(r: int) -> Iterator[Any]:
    """The present can be compacted; it can still be read, and nothing before."""
    yield put(b"a")
    yield put(b"a")
    yield Compact(r + 2)
    yield Compact(r + 2)
    yield RangeQuery(b"a", revision=r + 2)
    yield RangeQuery(b"a", revision=r + 1)
    yield put(b"a")
    yield RangeQuery(b"a", revision=r + 2)


def what_is_kept(_: int) -> Iterator[Any]:
    """A put that keeps value or lease needs a key, and takes nothing else along."""
    yield GrantLease(LEASE, TTL_SECONDS)
    for key in (b"a", b"b"):
        yield put(key, b"", ignore_value=True)
        yield put(key, b"v", ignore_lease=True)
        yield put(key, b"", ignore_value=True, ignore_lease=True)
        yield put(key, b"v", ignore_value=True)
        yield put(key, b"v", lease=LEASE, ignore_lease=True)
        yield put(key, b"", lease=99, ignore_value=True)
        yield put(key, b"", lease=99)
        yield put(key, b"w", lease=LEASE)
        yield put(key, b"", ignore_value=True)
        yield put(key, b"x", lease=LEASE)
        yield put(key, b"", ignore_value=True, ignore_lease=True)
        yield put(key, b"y", ignore_lease=True)
        yield DeleteRange(key, prev_kv=True)
        yield put(key, b"", ignore_value=True)
        yield put(key, b"v", ignore_lease=True)
    yield Transaction([], [put(b"a"), put(b"b", b"", ignore_value=True)])
    yield RangeQuery(b"a", b"z")
    yield Transaction([], [put(b"a"), Transaction([], [put(b"a", b"", ignore_value=True)])])


def ends_of_leases(_: int) -> Iterator[Any]:
    """Keys go with their lease, in one revision; a lease without keys goes without one."""
    yield put(b"a", lease=LEASE)
    yield RevokeLease(LEASE)
    yield GrantLease(LEASE, TTL_SECONDS)
    yield GrantLease(LEASE, TTL_SECONDS)
    yield RevokeLease(LEASE)
    yield GrantLease(LEASE, TTL_SECONDS)
    yield GrantLease(LEASE + 1, TTL_SECONDS)
    yield GrantLease(LEASE + 2, 9_000_000_001)
    yield GrantLease(LEASE + 2, 9_000_000_000)
    yield GrantLease(2**63 - 1, TTL_SECONDS)
    for key in (b"c", b"a", b"b"):
        yield put(key, lease=LEASE)
    yield put(b"b", lease=LEASE + 1)
    yield put(b"d", lease=2**63 - 1)
    yield Transaction([Compare(CompareTarget.LEASE, CompareResult.EQUAL, b"d", 2**63 - 1)], [put(b"e", lease=LEASE)])
    yield Transaction([], [put(b"f"), put(b"g", lease=99)])
    yield DeleteRange(b"c")
    yield RevokeLease(LEASE)
    yield RevokeLease(LEASE)
    yield RangeQuery(b"\0", b"\0")
    yield RevokeLease(2**63 - 1)
    yield RevokeLease(LEASE + 1)
    yield RevokeLease(LEASE + 2)


def sizes_of_transactions(_: int) -> Iterator[Any]:
    """128 of each, not one more; an empty one takes its first branch."""
    always = Compare(CompareTarget.VERSION, CompareResult.EQUAL, b"none", 0)
    yield Transaction()
    for count in (127, 128, 129):
        yield Transaction([always] * count)
        yield Transaction([], [put(b"%d" % number) for number in range(count)])
        yield Transaction([], [], [put(b"%d" % number) for number in range(count)])
        yield Transaction([], [RangeQuery(b"1")] * count)
    yield Transaction([always], [], [put(b"1")])


def twice_in_a_transaction(_: int) -> Iterator[Any]:
    """What changes a key twice is refused where etcd sees it, and done in its order where it does not."""
    yield put(b"a")
    a, b = put(b"a"), put(b"b")
    gone, both = DeleteRange(b"a", prev_kv=True), DeleteRange(b"a", b"c", prev_kv=True)
    for operations in ([a, a], [a, gone], [gone, a], [both, b], [b, both], [gone, both], [gone, gone], [both, both]):
        yield Transaction([], operations)
        yield Transaction([], [Transaction([], operations)])
        yield Transaction([], [Transaction([], [operations[0]]), operations[1]])
        yield Transaction([], [operations[0], Transaction([], [operations[1]])])
        yield Transaction([], [Transaction([], [operations[0]]), Transaction([], [operations[1]])])
        yield Transaction([], [operations[0], Transaction([], [], [operations[1]])])
        yield Transaction([], [operations[0]], [operations[1]])
        yield Transaction([], [Transaction([], [operations[0]], [operations[1]])])
        yield RangeQuery(b"a", b"z")
    rest = DeleteRange(b"a", b"\0", prev_kv=True)
    for operations in ([a, rest], [rest, b], [rest, rest], [a, Transaction([], [rest]), b]):
        yield Transaction([], [*operations, RangeQuery(b"a", b"z")])


def reads_of_own_writes(r: int) -> Iterator[Any]:
    """A transaction's reads see what it has done so far, at revision 0 and at the one that it makes."""
    yield put(b"a", b"1")
    inside = [put(b"a", b"2"), RangeQuery(b"a"), DeleteRange(b"b"), put(b"b"), RangeQuery(b"a", b"z", limit=1)]
    yield Transaction([], [*inside[:2], *inside[3:]])
    yield Transaction([], inside)
    for revision in range(r, r + 6):
        yield Transaction([], [RangeQuery(b"a", revision=revision), put(b"c")])
        yield Transaction([], [put(b"c"), RangeQuery(b"a", b"z", revision=revision)])
    yield Transaction([Compare(CompareTarget.VALUE, CompareResult.EQUAL, b"a", b"1")], [put(b"x")], [RangeQuery(b"a")])
    nested = Transaction([Compare(CompareTarget.VALUE, CompareResult.EQUAL, b"n", b"1")], [RangeQuery(b"n")])
    yield Transaction([], [put(b"n", b"1"), nested])
    yield Transaction([], [DeleteRange(b"n"), DeleteRange(b"none"), nested, RangeQuery(b"n")])
    yield Transaction([], [DeleteRange(b"none"), RangeQuery(b"a")])


def comparisons(r: int) -> Iterator[Any]:
    """With a key that is not there, with a range that is empty, with ranges of which one does not hold."""
    for _ in range(2):
        for end in (b"", b"\0", b"a", b"c"):
            for operand in (-1, 0, 1, r + 1, LEASE):
                yield from either(CompareTarget.VERSION, operand, end=end)
                yield from either(CompareTarget.CREATE, operand, end=end)
                yield from either(CompareTarget.MOD, operand, end=end)
                yield from either(CompareTarget.LEASE, operand, end=end)
            for value in (b"", b"1", b"2"):
                yield from either(CompareTarget.VALUE, value, end=end)
        yield GrantLease(LEASE, TTL_SECONDS)
        yield put(b"a", b"1", lease=LEASE)
        yield put(b"b", b"2")
        yield put(b"b", b"")


def deletions(_: int) -> Iterator[Any]:
    """What was not there is no change, and makes no revision."""
    yield DeleteRange(b"a", prev_kv=True)
    yield put(b"a")
    yield DeleteRange(b"a", prev_kv=True)
    yield DeleteRange(b"a", prev_kv=True)
    yield put(b"a")
    yield put(b"c")
    yield DeleteRange(b"b", b"a", prev_kv=True)
    yield DeleteRange(b"a", b"a", prev_kv=True)
    yield Transaction([], [DeleteRange(b"b"), DeleteRange(b"b", b"c")])
    yield DeleteRange(b"a", b"c\0", prev_kv=True)
    yield put(b"c")
    yield RangeQuery(b"a", b"z")


def large_values(_: int) -> Iterator[Any]:
    """What is clearly below 1.5 MiB is taken, what is clearly above is not."""
    yield put(b"a", b"v" * (MIB + MIB // 4))
    yield put(b"a", b"v" * (MIB + MIB // 2 + 1))
    yield Transaction([], [put(b"a", b"v" * MIB), put(b"b", b"v" * (MIB // 4))])
    yield Transaction([], [put(b"a", b"v" * MIB), put(b"b", b"v" * (MIB * 3 // 4))])
    yield put(b"k" * MIB, b"")
    yield DeleteRange(b"\0", b"\0")


STORIES: list[Story] = [
    empty_keys,
    whole_keyspace,
    bytes_of_255,
    limits_and_orders,
    bounds_of_revisions,
    compactions,
    compaction_of_everything,
    what_is_kept,
    ends_of_leases,
    sizes_of_transactions,
    twice_in_a_transaction,
    reads_of_own_writes,
    comparisons,
    deletions,
    large_values,
]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_edges(etcd: int, story: Story) -> None:
    """Every answer is the same, documented differences apart."""
    pair = Pair(etcd, Random(1))
    try:
        for request in story(pair.store.revision):
            if isinstance(request, RangeQuery):
                pair.read(request)
            else:
                pair.apply(request)
    finally:
        pair.close()


def test_where_watches_begin(etcd: int) -> None:
    """At, before and after the compact revision, now, and in the future; with ranges that are empty or endless."""
    pair = Pair(etcd, Random(2))
    first = pair.store.revision
    for value in (b"1", b"2", b"3"):
        for key in (b"a", b"\xff\xff"):
            pair.apply(put(key, value))
    pair.apply(Compact(first + 3))
    ranges = [(b"a", b""), (b"a", b"\0"), (b"", b""), (b"\xff\xff", b"\xff"), (b"b", b"a"), (b"a", b"a")]
    try:
        for start in (0, 1, first, first + 2, first + 3, first + 4, first + 6, first + 7, first + 9):
            for key, end in ranges:
                pair.watch_range(key, end, start, prev_kv=True)
            for value in (b"4", b"5"):
                pair.apply(put(b"a", value))
                pair.apply(put(b"\xff\xff", value))
            while pair.watched:
                pair.unwatch()
    finally:
        pair.close()
