"""What a request must be before the store looks at it: checks that need no state (etcd, `v3rpc/key.go`).

They are made twice: before proposing, so that nonsense never reaches the log, and again by `apply`, for every member
must refuse the same commands whoever proposed them. So the limits must be equal on all members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyraftkv._record import record
from pyraftkv.errors import DuplicateKey, InvalidRequest, RequestTooLarge
from pyraftkv.store.commands import (
    Compact,
    Compare,
    CompareTarget,
    DeleteRange,
    GrantLease,
    LoggedCommand,
    Operation,
    PutBatch,
    PutKey,
    RangeQuery,
    RevokeLease,
    Transaction,
)
from pyraftkv.store.ranges import Intervals

LEASE_MAX = (1 << 63) - 1

LEASE_TTL_MAX_SECONDS = 9_000_000_000
"""As long as a lease can be (etcd, `MaxLeaseTTL`)."""


@record
class Limits:
    """The bounds of one request."""

    txn_ops_max: int = 128
    """At most this many comparisons, or operations in a branch; nested transactions share what their parent left."""
    txn_total_max: int = 1024
    """At most this many comparisons and operations in a transaction, all its branches and nested ones together."""
    request_bytes_max: int = 1024 * 1024 * 3 // 2
    """At most this many bytes of keys, values and operands in one command."""
    result_bytes_max: int = 4 * 1024 * 1024
    """At most this many bytes of key-values in the result of one command, 64 more for each; see `results.py`."""
    leases_max: int = 262_144
    """At most this many leases at a time."""
    lease_ttl_min_seconds: int = 2
    """A lease that is asked for with less is granted for this: one and a half election timeouts, rounded up."""


def validate(command: LoggedCommand, limits: Limits) -> None:
    """Refuse a command that could never be applied.

    Raises:
        InvalidRequest: An empty key, a value given along with `ignore_value`, an operand of the wrong type ...
        DuplicateKey: A transaction changes a key twice.
        RequestTooLarge: Over one of the limits.
    """
    if isinstance(command, Compact):
        return
    if isinstance(command, GrantLease | RevokeLease):
        _check_lease(command)
        return
    if isinstance(command, PutBatch):
        _check_batch(command, limits)
        return
    if isinstance(command, Transaction):
        _check_total(command, limits.txn_total_max)
    size_bytes = _check_operation(command, limits.txn_ops_max)
    if size_bytes > limits.request_bytes_max:
        raise RequestTooLarge(f"{size_bytes} bytes in one request, request_bytes_max is {limits.request_bytes_max}")
    if isinstance(command, Transaction):
        for branch in (command.success, command.failure):
            if len(branch) > 1 or (branch and isinstance(branch[0], Transaction)):  # one alone is in nobody's way
                _check_intervals(branch)


def _check_batch(batch: PutBatch, limits: Limits) -> None:
    """Each of its puts must be one that could stand alone. Runs for most of what is ever applied, so: few steps."""
    items = batch.items
    if not items or len(items) % 2:
        raise InvalidRequest("a batch of puts has a value for every key, and one at least")
    if not all(items[::2]):
        raise InvalidRequest("the key is empty")
    bytes_max = limits.request_bytes_max
    if sum(map(len, items)) > bytes_max:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if len(key) + len(value) > bytes_max:
                raise RequestTooLarge(f"{len(key) + len(value)} bytes in one put, request_bytes_max is {bytes_max}")


def _check_lease(command: GrantLease | RevokeLease) -> None:
    if type(command.id) is not int or not 0 < command.id <= LEASE_MAX:
        raise InvalidRequest(f"no lease has the id {command.id!r}")
    if isinstance(command, GrantLease) and command.ttl > LEASE_TTL_MAX_SECONDS:
        raise InvalidRequest(f"a lease of {command.ttl} seconds, over {LEASE_TTL_MAX_SECONDS}")


def validate_query(query: RangeQuery) -> None:
    """Refuse a query that could never be answered. Raises `InvalidRequest`."""
    _check_key(query.key)


def _check_key(key: bytes) -> None:
    if not key:
        raise InvalidRequest("the key is empty")
    _check_bytes("key", key)


def _check_bytes(name: str, value: object) -> None:
    if not isinstance(value, bytes):
        raise InvalidRequest(f"the {name} of an operation or a comparison is bytes, not {type(value).__name__}")


def _check_total(txn: Transaction, total_max: int) -> None:
    """Refuse a tree of transactions that is too large, looking at no more of it than is allowed.

    1. `txn_ops_max` bounds a branch, and how deep transactions nest; but each of a branch's nested ones has the same
       rest to itself, and so has each of theirs.
    2. A message under the bound in bytes holds 27,000 operations so, and every member carries them out in one go.
    """
    total = 0
    waiting = [txn]
    while waiting:
        txn = waiting.pop()
        total += len(txn.compares) + len(txn.success) + len(txn.failure)
        if total > total_max:
            raise RequestTooLarge(f"{total} comparisons and operations or more, txn_total_max is {total_max}")
        waiting += [operation for operation in (*txn.success, *txn.failure) if isinstance(operation, Transaction)]


def _check_operation(operation: Operation, ops_max: int) -> int:
    """Check one operation and return the bytes it carries."""
    kind = type(operation)
    check: Any = _CHECKS.get(kind)
    if check is None:
        raise InvalidRequest(f"{kind.__name__} is no operation of a transaction")
    size_bytes: int = check(operation, ops_max)
    return size_bytes


def _check_put(put: PutKey, _ops_max: int) -> int:
    _check_key(put.key)
    _check_bytes("value", put.value)
    if put.ignore_value and put.value:
        raise InvalidRequest("a value is given along with ignore_value")
    if put.ignore_lease and put.lease:
        raise InvalidRequest("a lease is given along with ignore_lease")
    if type(put.lease) is not int or not 0 <= put.lease <= LEASE_MAX:
        raise InvalidRequest(f"no lease has the id {put.lease!r}")
    for flag in (put.prev_kv, put.ignore_value, put.ignore_lease):
        if type(flag) is not bool:
            raise InvalidRequest(f"prev_kv, ignore_value and ignore_lease are True or False, not {flag!r}")
    return len(put.key) + len(put.value)


def _check_delete(delete: DeleteRange, _ops_max: int) -> int:
    _check_key(delete.key)
    return len(delete.key) + len(delete.end)


def _check_range(query: RangeQuery, _ops_max: int) -> int:
    _check_key(query.key)
    return len(query.key) + len(query.end)


def _check_transaction(txn: Transaction, ops_max: int) -> int:
    used = max(len(txn.compares), len(txn.success), len(txn.failure))
    if used > ops_max:
        raise RequestTooLarge(f"{used} operations where txn_ops_max leaves {ops_max}")
    size_bytes = 0
    for compare in txn.compares:
        if type(compare) is not Compare:
            raise InvalidRequest(f"{type(compare).__name__} is no comparison")
        _check_key(compare.key)
        if isinstance(compare.operand, bytes) is not (compare.target is CompareTarget.VALUE):
            raise InvalidRequest(f"{compare.target.name} cannot be compared with {type(compare.operand).__name__}")
        size_bytes += len(compare.key) + len(compare.end)
        size_bytes += len(compare.operand) if isinstance(compare.operand, bytes) else 0
    for operation in (*txn.success, *txn.failure):
        size_bytes += _check_operation(operation, ops_max - used)
    return size_bytes


_CHECKS = {
    PutKey: _check_put,
    DeleteRange: _check_delete,
    RangeQuery: _check_range,
    Transaction: _check_transaction,
}


def _check_intervals(operations: Sequence[Operation]) -> tuple[set[bytes], Intervals]:
    """Refuse operations of which two may change one key (etcd, `checkIntervals`, rule for rule).

    Two deletes may overlap; two branches of a nested transaction may change the same key, for only one is taken.
    Like etcd's, it lets pass what it cannot see: a put in one nested transaction before a delete of the same key in
    a later one, and `[key, end)` whose end is not above the key, be it "everything from the key on". The key then
    changes twice in one revision, which the store takes in its stride.

    Returns:
        The keys put, and the intervals deleted, here and in nested transactions.
    """
    puts: set[bytes] = set()
    deletes = Intervals()
    for operation in operations:
        if isinstance(operation, DeleteRange):
            deletes.add(operation.key, operation.end or operation.key + b"\0")
    for operation in operations:
        if isinstance(operation, Transaction):
            puts_then, deletes_then = _check_intervals(operation.success)
            puts_else, deletes_else = _check_intervals(operation.failure)
            puts_nested = puts_then | puts_else
            for key in sorted(puts_nested):  # a set has another order on each member, and an error names the key
                _check_put_once(key, puts, deletes)
            puts |= puts_nested
            deletes.update(deletes_then)
            deletes.update(deletes_else)
    for operation in operations:
        if isinstance(operation, PutKey):
            _check_put_once(operation.key, puts, deletes)
            puts.add(operation.key)
    return puts, deletes


def _check_put_once(key: bytes, puts: set[bytes], deletes: Intervals) -> None:
    if key in puts or key in deletes:
        raise DuplicateKey(f"the transaction changes the key {key!r} twice")
