"""Carrying out commands on the history: deletes, transactions, and the reads inside them (etcd, `txn/txn.go`).

A transaction goes through three passes, and only the last one changes anything:

1. *Path.* Every comparison, those of nested transactions included, is judged against the state before the
   transaction. The outcome is the path: one truth per transaction on it, in the order they are met.
2. *Check.* Everything on the path that may still fail is tried: a key that `ignore_value` needs, a revision that a
   range asks for, a result that is too large. An error after the first change would leave half a transaction behind
   (etcd panics there).
3. *Execution.* In order; reads see the changes made before them, and all changes share one revision.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from operator import eq, gt, lt, ne
from typing import Any

from pyraftkv.errors import Compacted, FutureRevision, KeyNotFound
from pyraftkv.store.commands import (
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    PutKey,
    RangeQuery,
    Transaction,
)
from pyraftkv.store.history import History
from pyraftkv.store.ranges import SLICE_KEYS, Intervals, bounds, range_steps
from pyraftkv.store.results import ResultBound
from pyraftkv.store.values import DeleteResult, KeyValue, LeaseRevoked, PutResult, RangeResult, TxnResult
from pyraftkv.store.work import Steps

_RELATIONS: dict[CompareResult, Callable[[Any, Any], bool]] = {
    CompareResult.EQUAL: eq,
    CompareResult.GREATER: gt,
    CompareResult.LESS: lt,
    CompareResult.NOT_EQUAL: ne,
}

_FIELDS: dict[CompareTarget, str] = {
    CompareTarget.VERSION: "version",
    CompareTarget.CREATE: "create_revision",
    CompareTarget.MOD: "mod_revision",
    CompareTarget.VALUE: "value",
    CompareTarget.LEASE: "lease",
}


def check_put(history: History, put: PutKey) -> None:
    """Refuse a put that needs a lease or a key which does not exist. Raises `LeaseNotFound`, `KeyNotFound`."""
    if put.lease:
        history.leases.check(put.lease)
    _check_key(history, put)


def _check_key(history: History, put: PutKey) -> None:
    if (put.ignore_value or put.ignore_lease) and history.get(put.key, history.current_revision) is None:
        raise KeyNotFound(f"ignore_value and ignore_lease need the key {put.key!r}, which does not exist")


def do_put(history: History, put: PutKey) -> PutResult:
    """Set a key; `check_put` has passed. O(log n)."""
    previous = None
    value, lease = put.value, put.lease
    if put.prev_kv or put.ignore_value or put.ignore_lease:
        previous = history.get(put.key, history.current_revision)
        if put.ignore_value:
            assert previous is not None
            value = previous.value
        if put.ignore_lease:
            assert previous is not None
            lease = previous.lease
    revision = history.published_revision + 1
    history.put(put.key, value, lease, revision)
    return PutResult(revision, previous if put.prev_kv else None)


def delete_steps(history: History, delete: DeleteRange) -> Steps[DeleteResult]:
    """Delete a range. O(log n + keys in the range)."""
    at = history.current_revision
    revision = history.published_revision + 1
    deleted = 0
    prev_kvs: list[KeyValue] = []
    low, high = bounds(delete.key, delete.end)
    while found := history.index.span(low, high):
        chunk, start, stop = found
        stop = min(stop, start + SLICE_KEYS)
        for position in range(start, stop):
            if delete.prev_kv and (previous := history.get(chunk.keys[position], at)) is not None:
                prev_kvs.append(previous)
            deleted += history.bury(chunk, position, revision)
        low = chunk.keys[stop - 1] + b"\0"
        yield stop - start
    return DeleteResult(history.current_revision, deleted, prev_kvs)


def revoke_steps(history: History, lease: int) -> Steps[LeaseRevoked]:
    """End a lease that is there, its keys first. O(keys x log n)."""
    revision = history.published_revision + 1
    while keys := history.leases.keys(lease, SLICE_KEYS):
        for key in keys:
            chunk = history.index.chunk_for(key)
            history.bury(chunk, bisect_left(chunk.ordered(), key), revision)
        yield len(keys)
    history.leases.remove(lease)
    return LeaseRevoked(history.current_revision)


def bounded_delete_steps(history: History, delete: DeleteRange, result_bytes_max: int) -> Steps[DeleteResult]:
    """Delete a range, unless what it would return is too large. Raises `RequestTooLarge`."""
    if delete.prev_kv:
        yield from ResultBound(history, result_bytes_max).delete_steps(delete)
    return (yield from delete_steps(history, delete))


def txn_steps(history: History, txn: Transaction, result_bytes_max: int) -> Steps[TxnResult]:
    """Carry out a valid transaction.

    Raises:
        RequestTooLarge: Its result would hold more than ``result_bytes_max``.
        KeyNotFound: `ignore_value` or `ignore_lease` of a key that does not exist.
        LeaseNotFound: A put names a lease that does not exist.
        Compacted: A range asks for a revision that is gone.
        FutureRevision: A range asks for a revision that does not exist yet.
    """
    path: list[bool] = []
    yield from _path_steps(history, txn, path)
    yield from _check_steps(history, txn, iter(path), result_bytes_max)
    return (yield from _execution_steps(history, txn, iter(path)))


def _path_steps(history: History, txn: Transaction, path: list[bool]) -> Steps[None]:
    """Append to ``path`` which branch this transaction takes, then the same for the transactions on it."""
    holds = True
    for compare in txn.compares:
        if not (yield from _compare_steps(history, compare)):
            holds = False
            break
    path.append(holds)
    for operation in txn.success if holds else txn.failure:
        if isinstance(operation, Transaction):
            yield from _path_steps(history, operation, path)


def _compare_steps(history: History, compare: Compare) -> Steps[bool]:
    """Judge one comparison: every key of its range must satisfy it (etcd, `applyCompare`)."""
    at = history.published_revision
    if not compare.end:
        yield 1
        return _holds(compare, history.get(compare.key, at))
    keys_only = compare.target not in {CompareTarget.VALUE, CompareTarget.LEASE}
    query = RangeQuery(compare.key, compare.end, keys_only=keys_only)
    found = yield from range_steps(history, query, at=at, current=at)
    if not found.kvs:
        return _holds(compare, None)
    return all(_holds(compare, kv) for kv in found.kvs)


def _holds(compare: Compare, kv: KeyValue | None) -> bool:
    if kv is None:
        # A key that does not exist has version, revisions and lease 0, but no value, not even one that differs.
        return compare.target is not CompareTarget.VALUE and _RELATIONS[compare.result](0, compare.operand)
    return _RELATIONS[compare.result](getattr(kv, _FIELDS[compare.target]), compare.operand)


def _check_steps(history: History, txn: Transaction, path: Iterator[bool], result_bytes_max: int) -> Steps[None]:
    """Raise now whatever the execution along ``path`` could raise: first for the puts, then for the ranges, as etcd."""
    operations = list(_operations(txn, path))
    _check_puts(history, operations)
    for operation in operations:
        if isinstance(operation, RangeQuery):
            _check_range(history, operation.revision)
    bound = ResultBound(history, result_bytes_max)
    for operation in operations:
        if isinstance(operation, PutKey):
            bound.put(operation)
        elif isinstance(operation, DeleteRange):
            yield from bound.delete_steps(operation)
        else:
            yield from bound.range_steps(operation)


def _operations(txn: Transaction, path: Iterator[bool]) -> Iterator[PutKey | DeleteRange | RangeQuery]:
    """Yield what will be done along ``path``, in order."""
    for operation in txn.success if next(path) else txn.failure:
        if isinstance(operation, Transaction):
            yield from _operations(operation, path)
        else:
            yield operation


def _check_puts(history: History, operations: list[PutKey | DeleteRange | RangeQuery]) -> None:
    """Refuse a put that needs a key which does not exist, or will not by then, or a lease that does not.

    A put of its own that needs both is refused for its lease, and one in a transaction for its key: as etcd does.

    1. The key k exists. A transaction deletes everything from a on, then puts k with `ignore_value`.
    2. etcd's check for duplicate keys does not see that the two meet (see `validate.py`), and k is there before.
    3. The delete is done, then the put finds no key: an error in the middle (etcd panics). So deletes are kept in
       mind here.
    """
    deletes = Intervals()
    for operation in operations:
        if isinstance(operation, PutKey):
            _check_key(history, operation)
            if operation.lease:
                history.leases.check(operation.lease)
            if (operation.ignore_value or operation.ignore_lease) and operation.key in deletes:
                raise KeyNotFound(f"the transaction deletes the key {operation.key!r} and then needs it")
        elif isinstance(operation, DeleteRange):
            deletes.add(*bounds(operation.key, operation.end))


def _check_range(history: History, revision: int) -> None:
    if revision > history.published_revision:
        raise FutureRevision(
            f"revision {revision} is not there yet, the current one is {history.published_revision}",
            revision=history.published_revision,
        )
    # Only 0 is "the latest" here: a negative one is below whatever was compacted (etcd#13871). What was never compacted
    # begins at -1.
    if revision and revision < (history.compact_revision or -1):
        raise Compacted(
            f"revision {revision} is compacted, the oldest is {history.compact_revision}",
            compact_revision=history.compact_revision,
        )


def _execution_steps(history: History, txn: Transaction, path: Iterator[bool]) -> Steps[TxnResult]:
    succeeded = next(path)
    responses: list[PutResult | DeleteResult | RangeResult | TxnResult] = []
    for operation in txn.success if succeeded else txn.failure:
        if isinstance(operation, PutKey):
            responses.append(do_put(history, operation))
            yield 1
        elif isinstance(operation, DeleteRange):
            responses.append((yield from delete_steps(history, operation)))
        elif isinstance(operation, RangeQuery):
            current = history.current_revision
            at = operation.revision if operation.revision > 0 else current
            responses.append((yield from range_steps(history, operation, at=at, current=current)))
        else:
            responses.append((yield from _execution_steps(history, operation, path)))
    return TxnResult(history.current_revision, succeeded, responses)
