"""What a result may hold: the bound is never exceeded, and a refusal leaves no trace."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from pyraftkv.errors import NotApplied, RequestTooLarge
from pyraftkv.store import Limits, Store, Work
from pyraftkv.store.commands import (
    DeleteRange,
    Operation,
    PutKey,
    RangeQuery,
    SortOrder,
    SortTarget,
    Transaction,
)
from pyraftkv.store.ranges import kv_bytes
from pyraftkv.store.values import (
    DeleteResult,
    KeyValue,
    LeaseGranted,
    LeaseRevoked,
    PutBatchResult,
    PutResult,
    RangeResult,
)
from tests.store import generators
from tests.store.world import finish

VALUE = b"v" * 1000
ONE = kv_bytes(b"k0", len(VALUE))
FIVE = Limits(request_bytes_max=5 * ONE, result_bytes_max=5 * ONE)
ALL = RangeQuery(b"k", b"l")


def make_store(limits: Limits = FIVE, *, step_keys_max: int = 1) -> Store:
    """Return a store of k0 to k3, four fifths of what a result may hold."""
    store = Store(limits=limits, step_keys_max=step_keys_max)
    for i in range(4):
        store.apply(PutKey(b"k%d" % i, VALUE))
    return store


def held_bytes(result: Any) -> int:
    """Return what a result holds, however it is nested."""
    if isinstance(result, KeyValue):
        return kv_bytes(result.key, len(result.value))
    if isinstance(result, PutResult):
        return held_bytes(result.prev_kv) if result.prev_kv is not None else 0
    if isinstance(result, DeleteResult):
        return sum(map(held_bytes, result.prev_kvs))
    return sum(map(held_bytes, result.kvs if isinstance(result, RangeResult) else result.responses))


def then(*operations: Operation) -> Transaction:
    """Return a transaction that does ``operations``."""
    return Transaction([], list(operations))


FITS = {
    "a range and a key": then(ALL, RangeQuery(b"k0")),
    "a nested one": then(ALL, then(RangeQuery(b"k0"))),
    "keys only": then(ALL, *[RangeQuery(b"k", b"l", keys_only=True)] * 3),
    "keys only, sorted by their values": then(
        ALL, RangeQuery(b"k", b"l", keys_only=True, sort_target=SortTarget.VALUE, sort_order=SortOrder.DESCEND)
    ),
    "counts": then(ALL, *[RangeQuery(b"k", b"l", count_only=True)] * 50),
    "limits": then(*[RangeQuery(b"k", b"l", limit=1)] * 5),
    "limits of sorted ones": then(
        *[RangeQuery(b"k", b"l", limit=1, sort_target=SortTarget.MOD, sort_order=SortOrder.DESCEND)] * 5
    ),
    "the branch not taken": Transaction([], [ALL], [ALL, ALL]),
    "a delete that returns them": DeleteRange(b"k", b"l", prev_kv=True),
    "deletes that return nothing": then(ALL, DeleteRange(b"k", b"l")),
    "an own write": then(PutKey(b"k4", VALUE), ALL),
    "an own write elsewhere": then(PutKey(b"other", VALUE * 4), ALL),
    "an older revision": then(PutKey(b"k4", VALUE), RangeQuery(b"k", b"l", revision=5), RangeQuery(b"k4")),
    "previous ones": then(ALL, PutKey(b"k0", b"", prev_kv=True)),
}

TOO_LARGE = {
    "a range and two keys": then(ALL, RangeQuery(b"k0"), RangeQuery(b"k1")),
    "a nested one": then(RangeQuery(b"k0"), then(ALL, then(RangeQuery(b"k0")))),
    "limits": then(*[RangeQuery(b"k", b"l", limit=1)] * 6),
    "limits of sorted ones": then(
        *[RangeQuery(b"k", b"l", limit=1, sort_target=SortTarget.MOD, sort_order=SortOrder.DESCEND)] * 6
    ),
    "the branch taken": Transaction([], [ALL, ALL], [ALL]),
    "a delete that returns them": then(RangeQuery(b"k0"), RangeQuery(b"k0"), DeleteRange(b"k", b"l", prev_kv=True)),
    "own writes": then(PutKey(b"k4", VALUE), PutKey(b"k5", VALUE), ALL),
    "own writes returned by a delete": then(
        then(PutKey(b"k4", VALUE), PutKey(b"k5", VALUE)), then(DeleteRange(b"k", b"l", prev_kv=True))
    ),
    "an older revision": then(ALL, RangeQuery(b"k", b"l", revision=3)),
    "previous ones": then(ALL, *[PutKey(b"k%d" % i, b"", prev_kv=True) for i in range(2)]),
    "what a limit may let in when a key is gone": then(
        *[RangeQuery(b"k0")] * 4, DeleteRange(b"k0"), RangeQuery(b"k", b"l", limit=1)
    ),
    "what a limit may let in when a range is gone": then(
        *[RangeQuery(b"k0")] * 2, DeleteRange(b"k0", b"k1"), RangeQuery(b"k", b"l", limit=1)
    ),
}


@pytest.mark.parametrize("name", FITS)
def test_fits(name):
    """What is within the bound is done."""
    store = make_store()

    result = finish(store.apply(FITS[name]))

    assert held_bytes(result) <= FIVE.result_bytes_max
    store.check()


@pytest.mark.parametrize("name", TOO_LARGE)
@pytest.mark.parametrize("step_keys_max", [1, 1000])
def test_too_large(name, step_keys_max):
    """What is over the bound is refused, though it comes after changes, before any of them."""
    store = make_store(step_keys_max=step_keys_max)
    command = then(PutKey(b"first", b""), TOO_LARGE[name])
    store.validate(command)

    with pytest.raises(RequestTooLarge, match="result_bytes_max"):
        finish(store.apply(command))
    assert (store.revision, store.key_count) == (5, 4)
    store.check()
    assert store.apply(PutKey(b"next", b"")) == PutResult(6)


def test_a_delete_by_itself():
    """A delete that returns more than the bound changes nothing; one that returns nothing has no bound."""
    store = make_store()
    for i in range(4, 6):
        store.apply(PutKey(b"k%d" % i, VALUE))

    with pytest.raises(RequestTooLarge):
        finish(store.apply(DeleteRange(b"k", b"l", prev_kv=True)))
    assert (store.revision, store.key_count) == (7, 6)
    assert finish(store.apply(DeleteRange(b"k", b"l"))) == DeleteResult(8, 6)


def test_a_query_is_not_bounded():
    """What is read without a command is answered whatever it holds: no other member keeps it."""
    store = make_store(Limits(request_bytes_max=5 * ONE, result_bytes_max=ONE))
    assert held_bytes(finish(store.read(ALL))) == 4 * ONE


def test_a_refusal_does_not_read_everything():
    """A range over many keys is given up as soon as it is too large."""
    store = Store(limits=FIVE, step_keys_max=100)
    for i in range(1000):
        store.apply(PutKey(b"k%03d" % i, VALUE))

    with pytest.raises(RequestTooLarge):  # at once, not after some slices
        assert not isinstance(store.apply(then(ALL)), Work)


@pytest.mark.no_cover
def test_the_bound_holds_for_anything():
    """No transaction returns more than it may, whatever it writes, deletes, sorts and limits; many are refused."""
    refused = 0
    for seed in range(1500):
        rng = Random(seed)
        store = Store(limits=Limits(result_bytes_max=rng.choice([100, 300, 600, 1200])), step_keys_max=10**6)
        for _ in range(15):
            command = generators.command(rng)
            before = (store.revision, store.key_count, store.size_bytes)
            try:
                result = finish(store.apply(command))
            except RequestTooLarge:
                refused += 1
                assert (store.revision, store.key_count, store.size_bytes) == before, seed
            except NotApplied:
                pass
            else:
                # One put returns no more than one key-value: that much is allowed by the size of a request.
                is_put = isinstance(result, PutResult | PutBatchResult | LeaseGranted | LeaseRevoked)
                assert is_put or held_bytes(result) <= store.limits.result_bytes_max, seed
    assert refused > 100
