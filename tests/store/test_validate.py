from __future__ import annotations

import pytest

from pyraftkv.errors import DuplicateKey, InvalidRequest, NotApplied, RequestTooLarge
from pyraftkv.store import Limits, Store
from pyraftkv.store.commands import (
    Compact,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    GrantLease,
    Operation,
    PutBatch,
    PutKey,
    RangeQuery,
    Transaction,
)

MODERATE = Limits(txn_ops_max=4, request_bytes_max=100)


def compare(key: bytes = b"k", operand: int | bytes = 0, target: CompareTarget = CompareTarget.VERSION) -> Compare:
    """Return a comparison that is right unless told otherwise."""
    return Compare(target, CompareResult.EQUAL, key, operand)


def nested(*operations: object) -> Transaction:
    """Return a transaction that does ``operations`` when it succeeds."""
    return Transaction([], list(operations), [])  # type: ignore[arg-type]


BAD = {
    "empty key of a put": (PutKey(b"", b""), InvalidRequest),
    "empty key of a delete": (DeleteRange(b"", b"\0"), InvalidRequest),
    "empty key of a range": (nested(RangeQuery(b"", b"\0")), InvalidRequest),
    "empty key of a comparison": (Transaction([compare(b"")]), InvalidRequest),
    "empty key deep inside": (nested(nested(PutKey(b"", b""))), InvalidRequest),
    "value and ignore_value": (PutKey(b"k", b"v", ignore_value=True), InvalidRequest),
    "lease and ignore_lease": (PutKey(b"k", b"v", lease=1, ignore_lease=True), InvalidRequest),
    "negative lease": (PutKey(b"k", b"v", lease=-1), InvalidRequest),
    "lease over 63 bits": (PutKey(b"k", b"v", lease=1 << 63), InvalidRequest),
    "number for a value": (Transaction([compare(operand=1, target=CompareTarget.VALUE)]), InvalidRequest),
    "value for a number": (Transaction([compare(operand=b"1")]), InvalidRequest),
    "empty key in a batch": (PutBatch((b"a", b"", b"", b"")), InvalidRequest),
    "an empty batch": (PutBatch(()), InvalidRequest),
    "a key without a value": (PutBatch((b"a", b"", b"b")), InvalidRequest),
    "large put in a batch": (PutBatch((b"a", b"", b"k", b"v" * 100)), RequestTooLarge),
    "a batch inside": (nested(PutBatch((b"a", b""))), InvalidRequest),
    "a compaction inside": (nested(Compact(1)), InvalidRequest),
    "large put": (PutKey(b"k", b"v" * 100), RequestTooLarge),
    "large put with a lease": (PutKey(b"k", b"v" * 100, lease=1), RequestTooLarge),
    "large delete": (DeleteRange(b"k" * 50, b"k" * 51), RequestTooLarge),
    "large in sum": (nested(PutKey(b"a", b"v" * 50), PutKey(b"b", b"v" * 50)), RequestTooLarge),
    "large comparison": (Transaction([compare(b"k", b"v" * 100, CompareTarget.VALUE)]), RequestTooLarge),
    "large range in a comparison": (
        Transaction([Compare(CompareTarget.MOD, CompareResult.LESS, b"k" * 40, 1, b"l" * 61)]),
        RequestTooLarge,
    ),
    "large query inside": (nested(RangeQuery(b"a" * 60, b"b" * 60)), RequestTooLarge),
    "many comparisons": (Transaction([compare()] * 5), RequestTooLarge),
    "many operations": (nested(*[RangeQuery(b"k")] * 5), RequestTooLarge),
    "many operations otherwise": (Transaction([], [], [RangeQuery(b"k")] * 5), RequestTooLarge),
    "many operations for what the parent left": (
        nested(RangeQuery(b"a"), nested(*[RangeQuery(b"b")] * 3)),
        RequestTooLarge,
    ),
    "put twice": (nested(PutKey(b"a", b""), PutKey(b"a", b"")), DuplicateKey),
    "put and delete": (nested(PutKey(b"a", b""), DeleteRange(b"a")), DuplicateKey),
    "delete range over a put": (nested(DeleteRange(b"a", b"c"), PutKey(b"b", b"")), DuplicateKey),
    "duplicate otherwise": (Transaction([], [], [PutKey(b"a", b""), PutKey(b"a", b"")]), DuplicateKey),
    "delete nested, put later": (nested(nested(DeleteRange(b"a")), nested(PutKey(b"a", b""))), DuplicateKey),
    "put nested, delete here": (nested(nested(PutKey(b"a", b"")), DeleteRange(b"a")), DuplicateKey),
    "put nested, put here": (nested(PutKey(b"a", b""), nested(PutKey(b"a", b""))), DuplicateKey),
    "put in two nested ones": (nested(nested(PutKey(b"a", b"")), nested(PutKey(b"a", b""))), DuplicateKey),
    "put here, deleted by the other branch": (
        nested(PutKey(b"a", b""), Transaction([], [], [DeleteRange(b"a")])),
        DuplicateKey,
    ),
}

GOOD = {
    "a put at the limit": PutKey(b"k", b"v" * 99),
    "a batch of puts at the limit": PutBatch((b"k", b"v" * 99) * 3),
    "a key twice in a batch": PutBatch((b"a", b"1", b"a", b"2")),
    "deletes overlap": nested(DeleteRange(b"a", b"c"), DeleteRange(b"b")),
    "both branches put": Transaction([], [PutKey(b"a", b"")], [PutKey(b"a", b"")]),
    "both nested branches put": nested(Transaction([], [PutKey(b"a", b"")], [PutKey(b"a", b"")])),
    "delete up to a put": nested(DeleteRange(b"a", b"b"), PutKey(b"b", b"")),
    "as many operations as are left": nested(RangeQuery(b"a"), nested(*[RangeQuery(b"b")] * 2)),
    "put nested before delete nested, as etcd has it": nested(nested(PutKey(b"a", b"")), nested(DeleteRange(b"a"))),
    "put and delete from a key on, as etcd has it": nested(PutKey(b"n", b""), DeleteRange(b"m", b"\0")),
    "the largest lease": PutKey(b"k", b"", lease=(1 << 63) - 1),
    "a compaction": Compact(1),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_before_and_at_apply(name):
    """A bad command is refused by `validate`, and by `apply` with the same error and without a trace."""
    command, error = BAD[name]
    store = Store(limits=MODERATE)

    with pytest.raises(NotApplied) as refused:
        store.validate(command)
    assert type(refused.value) is error
    with pytest.raises(NotApplied) as refused:
        store.apply(command)
    assert type(refused.value) is error
    assert (store.revision, store.key_count, store.size_bytes) == (1, 0, 0)
    store.check()
    store.apply(PutKey(b"next", b""))


@pytest.mark.parametrize("name", GOOD)
def test_accepted(name):
    """A good command is accepted by `validate` and by `apply`."""
    store = Store(limits=MODERATE)
    store.apply(PutKey(b"z", b""))

    store.apply(GrantLease((1 << 63) - 1, 60))
    store.validate(GOOD[name])
    store.apply(GOOD[name])
    store.check()


def test_the_whole_of_a_transaction_is_bounded():
    """Nested transactions share one bound besides, however they divide; the largest flat one keeps within it."""
    everything = [compare(b"c%d" % i) for i in range(128)]
    full = Transaction(everything, [PutKey(b"p%d" % i, b"") for i in range(128)], [DeleteRange(b"d")] * 128)
    store = Store()
    store.validate(full)
    inner: list[Operation] = [nested(*[RangeQuery(b"k")] * 15) for _ in range(64)]
    store.validate(nested(*inner))
    assert Limits().txn_total_max == 64 + 64 * 15

    for one_more in (
        Transaction([compare()], inner),
        Transaction([], inner, [RangeQuery(b"k")]),
        nested(*inner[1:], Transaction([compare()], [RangeQuery(b"k")] * 15)),
        nested(*inner[1:], nested(*[RangeQuery(b"k")] * 15, nested())),
    ):
        with pytest.raises(RequestTooLarge, match="txn_total_max"):
            store.validate(one_more)
        with pytest.raises(RequestTooLarge, match="txn_total_max"):
            store.apply(one_more)


class Counted(bytes):
    """A key that counts how often keys are compared."""

    comparisons = 0

    def __lt__(self, other: bytes) -> bool:
        Counted.comparisons += 1
        return bytes(self) < bytes(other)

    def __gt__(self, other: bytes) -> bool:
        return Counted(other) < self

    def __le__(self, other: bytes) -> bool:
        return not self > other


def test_checking_for_duplicates_is_not_quadratic():
    """Puts are not compared with every delete: with half a thousand of each, a few comparisons per key."""
    count = Limits().txn_total_max // 2 - 8
    puts = [PutKey(Counted(b"p%03d" % (i * 5 % count)), b"") for i in range(count)]
    deletes = [
        DeleteRange(Counted(b"d%03d" % (i * 5 % count)), Counted(b"d%03d/" % (i * 5 % count))) for i in range(count)
    ]
    parts = [nested(*part[i : i + 100]) for part in (deletes, puts) for i in range(0, count, 100)]
    Counted.comparisons = 0

    Store().validate(nested(*parts))
    assert Counted.comparisons < 60 * count
    parts.append(nested(PutKey(Counted(deletes[-1].key + b"."), b"")))
    with pytest.raises(DuplicateKey):
        Store().validate(nested(*parts))


def test_deep_nesting_is_bounded():
    """Transactions nest no deeper than there are operations, and that deep they work."""
    txn = nested(PutKey(b"k", b"deep"))
    for _ in range(127):
        txn = nested(txn)
    store = Store()
    store.apply(txn)
    found = store.get(b"k")
    assert found is not None
    assert found.value == b"deep"

    with pytest.raises(RequestTooLarge):
        store.validate(nested(txn))
