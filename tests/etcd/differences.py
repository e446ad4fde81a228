"""Where a real etcd answers otherwise: the table of `docs/etcd-differences.md` as a program.

Each row of the table has a name, and is here in one of three forms:

- *rewritten*: our answer is turned into the one that etcd gives, before the two are compared (`as_etcd_says`);
- *avoided*: the request is asked of neither, for etcd would do something else altogether (`avoided`);
- *shown*: it lies outside of what random requests meet, and has a test of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from pyraftkv.errors import Compacted
from pyraftkv.store.commands import (
    Compact,
    DeleteRange,
    GrantLease,
    Operation,
    PutKey,
    RangeQuery,
    RevokeLease,
    SortTarget,
    Transaction,
)
from pyraftkv.store.ranges import Intervals, bounds
from pyraftkv.store.values import CompactResult, KeyValue, RangeResult, TxnResult
from tests.store.model import SORT_FIELDS

PAGE = Path(__file__).parents[2] / "docs" / "etcd-differences.md"

REWRITTEN = frozenset({"nested revision", "ties", "lease of keys only", "compact zero", "tombstone"})
AVOIDED = frozenset({"panic", "lease ids"})
SHOWN = frozenset({"negative start", "operations in all", "large answer", "large request"})

STABLE_KEYS_MAX = 12
"""So few are sorted by etcd in a way that leaves ties in the order of their keys (Go's sort of short slices)."""


def rows() -> list[str]:
    """Return the names of the rows of the page."""
    return re.findall(r"^\| \*(.+?)\* \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def as_etcd_says(request: Any, ours: Any, theirs: Any, met: Counter[str]) -> Any:
    """Return our answer with the documented differences taken out; ``met`` counts them."""
    if isinstance(request, Compact):
        if request.revision == 0 and ours is Compacted and isinstance(theirs, CompactResult):
            met["compact zero"] += 1
            return theirs
        return ours
    if isinstance(ours, RangeResult) and isinstance(theirs, RangeResult):
        return _range(request, ours, theirs, met)
    if isinstance(ours, TxnResult) and isinstance(theirs, TxnResult):
        return _transaction(request, ours, theirs, met)
    return ours


def _transaction(txn: Transaction, ours: TxnResult, theirs: TxnResult, met: Counter[str]) -> TxnResult:
    operations = txn.success if ours.succeeded else txn.failure
    if len(ours.responses) != len(theirs.responses):
        return ours
    responses: list[Any] = []
    for operation, our, their in zip(operations, ours.responses, theirs.responses, strict=True):
        answer = as_etcd_says(operation, our, their, met)
        if isinstance(answer, TxnResult):
            met["nested revision"] += 1
            answer = replace(answer, revision=0)
        responses.append(answer)
    return replace(ours, responses=responses)


def _range(query: RangeQuery, ours: RangeResult, theirs: RangeResult, met: Counter[str]) -> RangeResult:
    if len(ours.kvs) != len(theirs.kvs):
        return ours
    if query.keys_only and any(kv.lease for kv in theirs.kvs):
        assert not any(kv.lease for kv in ours.kvs), ours
        leases = {kv.key: kv.lease for kv in theirs.kvs}
        ours = replace(ours, kvs=[replace(kv, lease=leases.get(kv.key, 0)) for kv in ours.kvs])
        met["lease of keys only"] += 1
    if ours.kvs != theirs.kvs and ours.count > STABLE_KEYS_MAX and _differ_in_ties(query, ours, theirs):
        met["ties"] += 1
        ours = replace(ours, kvs=theirs.kvs)
    return ours


def _differ_in_ties(query: RangeQuery, ours: RangeResult, theirs: RangeResult) -> bool:
    """Tell whether both hold the same but for the order of equals, and for which of the last ones a limit cut."""
    if query.sort_target is SortTarget.KEY:
        return False

    def field(kv: KeyValue) -> Any:
        is_left_out = query.keys_only and query.sort_target is SortTarget.VALUE
        return None if is_left_out else getattr(kv, SORT_FIELDS[query.sort_target])

    if list(map(field, ours.kvs)) != list(map(field, theirs.kvs)):
        return False
    groups = [[set(map(repr, group)) for _, group in groupby(result.kvs, field)] for result in (ours, theirs)]
    if ours.more:
        groups = [each[:-1] for each in groups]
    return groups[0] == groups[1] and len({kv.key for kv in theirs.kvs}) == len(theirs.kvs)


def avoided(command: Any) -> bool:
    """Tell whether etcd would do something else altogether.

    A member might panic: the transaction needs a key that it may have deleted before. Or a lease has no number of ours.
    """
    if isinstance(command, GrantLease | RevokeLease):
        return command.id <= 0
    if not isinstance(command, Transaction):
        return False
    deletes = Intervals()
    for operation in _operations(command):
        if isinstance(operation, DeleteRange):
            deletes.add(*bounds(operation.key, operation.end))
    puts = (operation for operation in _operations(command) if isinstance(operation, PutKey))
    return any(put.key in deletes for put in puts if put.ignore_value or put.ignore_lease)


def _operations(txn: Transaction) -> Iterator[Operation]:
    for operation in (*txn.success, *txn.failure):
        yield operation
        if isinstance(operation, Transaction):
            yield from _operations(operation)
