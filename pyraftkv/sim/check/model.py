"""`Model`: the store in dicts, in the plainest way, to judge the store by.

It shares nothing with `pyraftkv.store` but the records that go in and come out. What it knows of etcd's semantics is
written a second time, from etcd's documentation, without pages, slices or indexes. Every command leaves an entry in a
log, also one that changed nothing, and the last entry can be undone: that is what a search needs.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter, eq, gt, itemgetter, lt, ne
from typing import Any

from pyraftkv._record import record
from pyraftkv.errors import Compacted, FutureRevision, KeyNotFound, LeaseExists, LeaseNotFound, NotApplied
from pyraftkv.store.commands import (
    FROM_KEY,
    Command,
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
from pyraftkv.store.values import (
    CompactResult,
    DeleteResult,
    Event,
    EventType,
    KeyValue,
    LeaseGranted,
    LeaseRevoked,
    PutResult,
    RangeResult,
    Result,
    TxnResult,
)

LEASE_TTL_SECONDS_MIN = 2
"""No lease is granted for less."""

_RELATIONS: dict[CompareResult, Callable[[Any, Any], bool]] = {
    CompareResult.EQUAL: eq,
    CompareResult.GREATER: gt,
    CompareResult.LESS: lt,
    CompareResult.NOT_EQUAL: ne,
}
_COMPARED: dict[CompareTarget, Callable[[KeyValue], Any]] = {
    CompareTarget.VERSION: attrgetter("version"),
    CompareTarget.CREATE: attrgetter("create_revision"),
    CompareTarget.MOD: attrgetter("mod_revision"),
    CompareTarget.VALUE: attrgetter("value"),
    CompareTarget.LEASE: attrgetter("lease"),
}
_SORTED_BY: dict[SortTarget, Callable[[KeyValue], Any]] = {
    SortTarget.KEY: attrgetter("key"),
    SortTarget.VERSION: attrgetter("version"),
    SortTarget.CREATE: attrgetter("create_revision"),
    SortTarget.MOD: attrgetter("mod_revision"),
    SortTarget.VALUE: attrgetter("value"),
}


def in_range(key: bytes, low: bytes, end: bytes) -> bool:
    """Tell whether ``key`` is in etcd's ``[low, end)``."""
    if not end:
        return key == low
    return low <= key and (end == FROM_KEY or key < end)


@record
class Change:
    """One change of one key: what stood there before, and what stands there now; None is nothing."""

    key: bytes
    before: KeyValue | None
    after: KeyValue | None


@record
class Entry:
    """What one command did."""

    revision: int
    """The store's revision after it."""
    before_revision: int
    before_compact_revision: int
    before_leases: dict[int, int]
    changes: list[Change]


class Model:
    """A store that remembers everything and can go back.

    Invariant: `kvs` is what all changes in `log` come to, and `keys` its keys in order.
    """

    def __init__(self) -> None:
        self.revision = 1
        self.compact_revision = 0
        self.leases: dict[int, int] = {}
        """What leases were granted for, in seconds; 0 once one has ended. Replaced, never changed."""
        self.kvs: dict[bytes, KeyValue] = {}
        self.keys: list[bytes] = []
        self.past: dict[bytes, list[tuple[int, KeyValue | None]]] = {}
        """Every version of every key that ever existed, with its revision."""
        self.log: list[Entry] = []
        self._changes: list[Change] = []

    # --- Commands --------------------------------------------------------------------------------------------------

    def apply(self, command: Command | RangeQuery, *, at: int | None = None) -> Result | NotApplied:
        """Do a command; it leaves one entry in the log. O(log n) for a put.

        Args:
            command: What to do.
            at: The revision to do it at, no lower than the present one; what it changes is at the next one.

        Returns:
            What the store must answer: the result, or the error. Whether a request is right in itself
            (`InvalidRequest`) is not judged.
        """
        before = self.revision, self.compact_revision, self.leases
        if at is not None:
            assert at >= self.revision, f"{at} is before {self.revision}"
            self.revision = at
        answer: Result | NotApplied
        try:
            answer = self._do(command)
        except NotApplied as error:
            self._revert(self._changes)
            self._changes = []
            answer = error
        if self._changes:
            self.revision += 1
            for change in self._changes:
                self.past.setdefault(change.key, []).append((self.revision, change.after))
        self.log.append(Entry(self.revision, *before, self._changes))
        self._changes = []
        return answer

    def undo(self) -> None:
        """Take back the last command. O(changes)."""
        entry = self.log.pop()
        self._revert(entry.changes)
        for change in entry.changes:
            self.past[change.key].pop()
        self.revision, self.compact_revision = entry.before_revision, entry.before_compact_revision
        self.leases = entry.before_leases

    def _do(self, command: Command | RangeQuery) -> Result:
        if isinstance(command, PutKey):
            self._see_lease(command)  # first, as etcd does; in a transaction the key comes first
            return self._put(command)
        if isinstance(command, RangeQuery):
            return self.read(command)
        if isinstance(command, DeleteRange):
            return self._delete(command)
        if isinstance(command, Transaction):
            return self._commit(command)
        if isinstance(command, Compact):
            return self._compact(command)
        return self._grant(command) if isinstance(command, GrantLease) else self._revoke(command)

    def _revert(self, changes: list[Change]) -> None:
        for change in reversed(changes):
            self._set(change.key, change.before)

    def _change(self, key: bytes, after: KeyValue | None) -> None:
        self._changes.append(Change(key, self.kvs.get(key), after))
        self._set(key, after)

    def _set(self, key: bytes, kv: KeyValue | None) -> None:
        if kv is None:
            del self.kvs[key]
            del self.keys[bisect_left(self.keys, key)]
        else:
            if key not in self.kvs:
                insort(self.keys, key)
            self.kvs[key] = kv

    def _current(self) -> int:
        """The revision that a response in the middle of a command names."""
        return self.revision + bool(self._changes)

    def _put(self, put: PutKey) -> PutResult:
        old = self.kvs.get(put.key)
        value, lease, revision = put.value, put.lease, self.revision + 1
        if put.ignore_value or put.ignore_lease:
            if old is None:
                raise KeyNotFound
            value = old.value if put.ignore_value else value
            lease = old.lease if put.ignore_lease else lease
        self._see_lease(put)
        if old is None:
            kv = KeyValue(put.key, value, revision, revision, 1, lease)
        else:
            kv = KeyValue(put.key, value, old.create_revision, revision, old.version + 1, lease)
        self._change(put.key, kv)
        return PutResult(revision, old if put.prev_kv else None)

    def _delete(self, delete: DeleteRange) -> DeleteResult:
        gone = list(self.scan(delete.key, delete.end))
        for kv in gone:
            self._change(kv.key, None)
        return DeleteResult(self._current(), len(gone), gone if delete.prev_kv else [])

    def _compact(self, compact: Compact) -> CompactResult:
        if compact.revision <= self.compact_revision:
            raise Compacted(compact_revision=self.compact_revision)
        if compact.revision > self.revision:
            raise FutureRevision(revision=self.revision)
        self.compact_revision = compact.revision
        return CompactResult(self.revision)

    def _see_lease(self, put: PutKey) -> None:
        if put.lease and not self.leases.get(put.lease):
            raise LeaseNotFound

    def _grant(self, grant: GrantLease) -> LeaseGranted:
        if self.leases.get(grant.id):
            raise LeaseExists
        ttl = max(grant.ttl, LEASE_TTL_SECONDS_MIN)
        self.leases = {**self.leases, grant.id: ttl}
        return LeaseGranted(self.revision, grant.id, ttl)

    def _revoke(self, revoke: RevokeLease) -> LeaseRevoked:
        if not self.leases.get(revoke.id):
            raise LeaseNotFound
        self.leases = {**self.leases, revoke.id: 0}
        for key in [key for key in self.keys if self.kvs[key].lease == revoke.id]:
            self._change(key, None)
        return LeaseRevoked(self._current())

    # --- Transactions ----------------------------------------------------------------------------------------------

    def _choose(self, txn: Transaction) -> Iterator[bool]:
        """Yield which branch is taken, for this transaction and those on its path, all judged before any change."""
        holds = all(self._holds(compare) for compare in txn.compares)
        yield holds
        for operation in txn.success if holds else txn.failure:
            if isinstance(operation, Transaction):
                yield from self._choose(operation)

    def _holds(self, compare: Compare) -> bool:
        relation, field = _RELATIONS[compare.result], _COMPARED[compare.target]
        found = list(self.scan(compare.key, compare.end))
        if not found:
            return compare.target is not CompareTarget.VALUE and relation(0, compare.operand)
        return all(relation(field(kv), compare.operand) for kv in found)

    def _commit(self, txn: Transaction) -> TxnResult:
        late: list[NotApplied] = []
        result = self._execute(txn, iter(list(self._choose(txn))), late)
        if late:
            raise late[0]
        return result

    def _execute(self, txn: Transaction, chosen: Iterator[bool], late: list[NotApplied]) -> TxnResult:
        """Do a branch. What refuses its ranges goes to ``late``: what refuses its puts comes first, as in etcd."""
        succeeded = next(chosen)
        responses: list[PutResult | DeleteResult | RangeResult | TxnResult] = []
        for operation in txn.success if succeeded else txn.failure:
            if isinstance(operation, PutKey):
                responses.append(self._put(operation))
            elif isinstance(operation, DeleteRange):
                responses.append(self._delete(operation))
            elif isinstance(operation, RangeQuery):
                # Only 0 is "the latest" here: a negative one is below whatever was compacted (etcd#13871).
                try:
                    if operation.revision < 0 < self.compact_revision:
                        raise Compacted(compact_revision=self.compact_revision)
                    responses.append(self.read(operation))
                except (Compacted, FutureRevision) as error:
                    late.append(error)
            else:
                responses.append(self._execute(operation, chosen, late))
        return TxnResult(self._current(), succeeded, responses)

    # --- Reading ---------------------------------------------------------------------------------------------------

    def read(self, query: RangeQuery) -> RangeResult:
        """Answer a query. O(log n + keys in the range). Raises `Compacted`, `FutureRevision`."""
        if query.revision > self.revision:
            raise FutureRevision(revision=self.revision)
        if 0 < query.revision < self.compact_revision:
            raise Compacted(compact_revision=self.compact_revision)
        if query.revision > 0:
            found = list(self.scan_at(query.key, query.end, query.revision))
        elif not query.end:
            kv = self.kvs.get(query.key)
            found = [] if kv is None else [kv]
        else:
            found = list(self.scan(query.key, query.end))
        return select(query, found, self._current())

    def scan(self, key: bytes, end: bytes) -> Iterator[KeyValue]:
        """Yield what stands in a range now, in order."""
        return (self.kvs[each] for each in _cut(self.keys, key, end))

    def scan_at(self, key: bytes, end: bytes, revision: int) -> Iterator[KeyValue]:
        """Yield what stood in a range at a revision, in order. O(all keys) if it is more than one key."""
        for each in [key] if not end else sorted(each for each in self.past if in_range(each, key, end)):
            kv = self.kv_at(each, revision)
            if kv is not None:
                yield kv

    def kv_at(self, key: bytes, revision: int) -> KeyValue | None:
        """Return what stood at a key at a revision. O(log versions)."""
        versions = self.past.get(key, [])
        # Past the last version of that revision: a command may change a key twice.
        place = bisect_right(versions, revision, key=itemgetter(0))
        return versions[place - 1][1] if place else None

    def events(self, entry: Entry) -> list[Event]:
        """Return what a watch with ``prev_kv`` sees of a command."""
        return [self._event(change, entry.revision) for change in entry.changes]

    def _event(self, change: Change, revision: int) -> Event:
        # What stood there before the command; between two changes of one command nothing is seen.
        before = self.kv_at(change.key, revision - 1)
        if change.after is None:
            return Event(EventType.DELETE, KeyValue(change.key, b"", 0, revision, 0), before)
        return Event(EventType.PUT, change.after, before if change.after.create_revision < revision else None)


def _cut(keys: list[bytes], key: bytes, end: bytes) -> Iterable[bytes]:
    low = bisect_left(keys, key)
    if not end:
        return keys[low : low + 1] if low < len(keys) and keys[low] == key else ()
    return keys[low:] if end == FROM_KEY else keys[low : max(low, bisect_left(keys, end))]


def select(query: RangeQuery, found: list[KeyValue], revision: int) -> RangeResult:
    """Return what of ``found`` a query asks for (etcd, `RangeRequest`)."""
    count = len(found)
    if query.count_only:
        return RangeResult(revision, [], more=False, count=count)
    filters = query.min_mod_revision, query.max_mod_revision, query.min_create_revision, query.max_create_revision
    limited = query.limit > 0
    if limited and query.sort_order is SortOrder.NONE and not any(filters):
        found = found[: query.limit + 1]  # before it sorts: odd, and what etcd does
    if any(filters):
        found = [kv for kv in found if _passes(kv, *filters)]
    if query.sort_target is not SortTarget.KEY or query.sort_order is not SortOrder.NONE:
        descends = query.sort_order is SortOrder.DESCEND
        found = sorted(found, key=_SORTED_BY[query.sort_target], reverse=descends)
    more = limited and len(found) > query.limit
    found = found[: query.limit] if more else found
    if query.keys_only:
        found = [KeyValue(kv.key, b"", kv.create_revision, kv.mod_revision, kv.version) for kv in found]
    return RangeResult(revision, found, more, count)


def _passes(kv: KeyValue, min_mod: int, max_mod: int, min_create: int, max_create: int) -> bool:
    return (
        kv.mod_revision >= min_mod
        and (not max_mod or kv.mod_revision <= max_mod)
        and kv.create_revision >= min_create
        and (not max_create or kv.create_revision <= max_create)
    )
