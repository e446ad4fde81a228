"""The store's twin: the same semantics in the plainest way, a dict per revision. Slow, obvious, independent."""

from __future__ import annotations

from operator import eq, gt, lt, ne
from zlib import crc32

from pyraftkv.errors import (
    Compacted,
    DuplicateKey,
    FutureRevision,
    InvalidRequest,
    KeyNotFound,
    LeaseExists,
    LeaseNotFound,
)
from pyraftkv.store.commands import (
    Command,
    Compact,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    ExpireLeases,
    GrantLease,
    LeaseUpkeep,
    Operation,
    PutBatch,
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
    PutBatchResult,
    PutResult,
    RangeResult,
    Result,
    TxnResult,
)

State = dict[bytes, KeyValue]
FIELDS = ["version", "create_revision", "mod_revision", "value", "lease"]
SORT_FIELDS = ["key", "version", "create_revision", "mod_revision", "value"]
RELATIONS = {
    CompareResult.EQUAL: eq,
    CompareResult.GREATER: gt,
    CompareResult.LESS: lt,
    CompareResult.NOT_EQUAL: ne,
}


def in_range(key: bytes, low: bytes, end: bytes) -> bool:
    """Tell whether ``key`` is in etcd's ``[low, end)``."""
    if not end:
        return key == low
    return low <= key and (end == b"\0" or key < end)


class Model:
    """Every state of every revision, and every event."""

    def __init__(self) -> None:
        self.revision = 1
        self.compact_revision = 0
        self.states: dict[int, State] = {0: {}, 1: {}}
        self.events: list[Event] = []
        self.leases: dict[int, tuple[int, int]] = {}
        """What each was granted for, and what was left of it at its checkpoint."""
        self._state: State = {}
        self._changes = 0

    def state_hash(self, revision: int) -> int:
        """Return what the hash of the state at a revision must be, with nothing compacted since."""
        state = self.states[revision]
        total = sum(naive_check(kv) for kv in state.values())
        for lease, (ttl, left) in self.leases.items():
            total += (lease * 0x85EBCA77C2B2AE63 + ttl) * 0xC2B2AE3D27D4EB4F + left
        total += len(state) * 0x9E3779B97F4A7C15 + revision * 0xC2B2AE3D27D4EB4F
        return (total + self.compact_revision * 0x165667B19E3779F9) % 2**63

    def kv_hash(self, revision: int) -> int:
        """Return what the hash of the history up to a revision must be."""
        at = self.compact_revision
        total = last = sub = 0
        for event in self.events:
            kv = event.kv
            last, sub = kv.mod_revision, sub + 1 if kv.mod_revision == last else 0
            if at <= kv.mod_revision <= revision or (kv.mod_revision < at and self.states[at].get(kv.key) == kv):
                total += naive_check(kv) * (2 * sub + 1)
        return total % 2**63

    # --- Commands --------------------------------------------------------------------------------------------------

    def apply(self, command: Command) -> Result:
        """Apply a command, or raise what the store must raise."""
        if isinstance(command, Compact):
            if command.revision <= self.compact_revision:
                raise Compacted
            if command.revision > self.revision:
                raise FutureRevision
            self.compact_revision = command.revision
            return CompactResult(self.revision)
        if isinstance(command, PutBatch):
            return self._put_all([PutKey(*pair) for pair in zip(command.items[::2], command.items[1::2], strict=True)])
        if isinstance(command, GrantLease):
            return self._grant(command)
        if isinstance(command, RevokeLease):
            return self._revoke(command.id)
        self._validate(command)
        if isinstance(command, Transaction):
            changes_twice(command.success)
            changes_twice(command.failure)
        self._state = dict(self.states[self.revision])
        self._changes = 0
        if isinstance(command, Transaction):
            chosen = self._choose(command)
            self._check(command, chosen)
            result: Result = self._execute(command, chosen)
        else:
            if isinstance(command, PutKey):
                self._check_lease(command)
                self._check_key(command, set(self._state))
            result = self._do(command)
        if self._changes:
            self.revision += 1
            self.states[self.revision] = self._state
        return result

    def _grant(self, grant: GrantLease) -> LeaseGranted:
        if grant.id < 1 or grant.ttl > 9_000_000_000:
            raise InvalidRequest
        if grant.id in self.leases:
            raise LeaseExists
        self.leases[grant.id] = max(2, grant.ttl), 0
        return LeaseGranted(self.revision, grant.id, max(2, grant.ttl))

    def _revoke(self, lease: int) -> LeaseRevoked:
        if lease < 1:
            raise InvalidRequest
        if lease not in self.leases:
            raise LeaseNotFound
        del self.leases[lease]
        self._state = dict(self.states[self.revision])
        self._changes = 0
        for key in self.attached(lease):
            self._delete(DeleteRange(key))
        if self._changes:
            self.revision += 1
            self.states[self.revision] = self._state
        return LeaseRevoked(self.revision)

    def attached(self, lease: int) -> list[bytes]:
        """Return the keys of a lease."""
        return sorted(key for key, kv in self.states[self.revision].items() if kv.lease == lease)

    def keep_leases(self, command: LeaseUpkeep) -> int:
        """Expire leases, or write down what is left of them."""
        if isinstance(command, ExpireLeases):
            there = [lease for lease in dict.fromkeys(command.ids) if lease in self.leases]
            for lease in there:
                self._revoke(lease)
            return len(there)
        pairs = list(zip(command.items[::2], command.items[1::2], strict=True))
        for lease, left in pairs:
            if lease in self.leases:
                ttl = self.leases[lease][0]
                self.leases[lease] = ttl, left if left < ttl else 0
        return sum(lease in self.leases for lease, _ in pairs)

    def _put_all(self, puts: list[PutKey]) -> PutBatchResult:
        for put in puts:
            self._validate(put)
        for put in puts:
            self.apply(put)
        return PutBatchResult(self.revision, len(puts))

    def _current(self) -> int:
        return self.revision + (self._changes > 0)

    def _validate(self, op: Operation) -> None:
        if not isinstance(op, Transaction):
            if not op.key:
                raise InvalidRequest
            return
        if any(not compare.key for compare in op.compares):
            raise InvalidRequest
        for child in op.success + op.failure:
            self._validate(child)

    def _choose(self, txn: Transaction) -> list:
        """Return [which branch, the choices of the transactions in it] judged against the state before."""
        holds = all(self._holds(compare) for compare in txn.compares)
        branch = txn.success if holds else txn.failure
        return [holds, *(self._choose(op) for op in branch if isinstance(op, Transaction))]

    def _holds(self, compare: Compare) -> bool:
        state = self.states[self.revision]
        found = [kv for key, kv in state.items() if in_range(key, compare.key, compare.end)]
        relation = RELATIONS[compare.result]
        if not found:
            return compare.target is not CompareTarget.VALUE and relation(0, compare.operand)
        return all(relation(getattr(kv, FIELDS[compare.target]), compare.operand) for kv in found)

    def _check(self, txn: Transaction, chosen: list) -> None:
        """Raise if what is chosen cannot be done: first for the puts, then for the ranges."""
        operations = self._flat(txn, chosen)
        keys = set(self._state)
        for op in operations:
            if isinstance(op, PutKey):
                self._check_key(op, keys)
                self._check_lease(op)
                keys.add(op.key)
            elif isinstance(op, DeleteRange):
                keys -= {key for key in keys if in_range(key, op.key, op.end)}
        for op in operations:
            if isinstance(op, RangeQuery) and op.revision > self.revision:
                raise FutureRevision
            if isinstance(op, RangeQuery) and op.revision and op.revision < (self.compact_revision or -1):
                raise Compacted

    def _flat(self, txn: Transaction, chosen: list) -> list:
        nested = iter(chosen[1:])
        operations: list = []
        for op in txn.success if chosen[0] else txn.failure:
            operations += self._flat(op, next(nested)) if isinstance(op, Transaction) else [op]
        return operations

    def _check_lease(self, op: PutKey) -> None:
        if op.lease and op.lease not in self.leases:
            raise LeaseNotFound

    def _check_key(self, op: PutKey, keys: set[bytes]) -> None:
        if (op.ignore_value or op.ignore_lease) and op.key not in keys:
            raise KeyNotFound

    def _execute(self, txn: Transaction, chosen: list) -> TxnResult:
        nested = iter(chosen[1:])
        responses = [
            self._execute(op, next(nested)) if isinstance(op, Transaction) else self._do(op)
            for op in (txn.success if chosen[0] else txn.failure)
        ]
        return TxnResult(self._current(), chosen[0], responses)

    def _do(self, op: PutKey | DeleteRange | RangeQuery) -> PutResult | DeleteResult | RangeResult:
        if isinstance(op, PutKey):
            return self._put(op)
        if isinstance(op, DeleteRange):
            return self._delete(op)
        state = self.states[op.revision] if op.revision > 0 else self._state
        return range_of(state, op, self._current())

    def _put(self, op: PutKey) -> PutResult:
        old = self._state.get(op.key)
        revision = self.revision + 1
        kv = KeyValue(
            op.key,
            old.value if op.ignore_value and old else op.value,
            old.create_revision if old else revision,
            revision,
            old.version + 1 if old else 1,
            old.lease if op.ignore_lease and old else op.lease,
        )
        self._state[op.key] = kv
        self._changes += 1
        self._note(Event(EventType.PUT, kv))
        return PutResult(revision, old if op.prev_kv else None)

    def _delete(self, op: DeleteRange) -> DeleteResult:
        gone = sorted(key for key in self._state if in_range(key, op.key, op.end))
        previous = [self._state.pop(key) for key in gone]
        for key in gone:
            self._changes += 1
            self._note(Event(EventType.DELETE, KeyValue(key, b"", 0, self.revision + 1, 0)))
        return DeleteResult(self._current(), len(gone), previous if op.prev_kv else [])

    def _note(self, event: Event) -> None:
        before = None if event.is_create else self.states[self.revision].get(event.kv.key)
        self.events.append(Event(event.type, event.kv, before))

    # --- Queries ---------------------------------------------------------------------------------------------------

    def read(self, query: RangeQuery) -> RangeResult:
        """Answer a query."""
        if not query.key:
            raise InvalidRequest
        if query.revision > self.revision:
            raise FutureRevision
        if 0 < query.revision < self.compact_revision:
            raise Compacted
        return range_of(self.states[query.revision if query.revision > 0 else self.revision], query, self.revision)


def naive_check(kv: KeyValue) -> int:
    """Return the check of a version: frozen, for what is stored and compared depends on it."""
    key = crc32(kv.key, kv.mod_revision % 2**32)
    value = crc32(kv.value, key)
    total = (key + kv.create_revision) * (value + kv.version) + kv.mod_revision + kv.lease * 0x85EBCA77C2B2AE63
    return total % 2**64


def changes_twice(operations: list[Operation]) -> tuple[set[bytes], list[DeleteRange]]:
    """Raise `DuplicateKey` as etcd would; return the keys put and the deletes."""
    deletes = [op for op in operations if isinstance(op, DeleteRange)]
    puts: set[bytes] = set()

    def add(key: bytes) -> None:
        # etcd takes "from the key on" for an interval that ends at "\0": it meets nothing.
        if key in puts or any(in_range(key, d.key, d.end) and d.end != b"\0" for d in deletes):
            raise DuplicateKey
        puts.add(key)

    for op in operations:
        if isinstance(op, Transaction):
            (puts_then, deletes_then), (puts_else, deletes_else) = changes_twice(op.success), changes_twice(op.failure)
            for key in puts_then | puts_else:
                add(key)
            deletes = deletes + deletes_then + deletes_else
    for op in operations:
        if isinstance(op, PutKey):
            add(op.key)
    return puts, deletes


def range_of(state: State, query: RangeQuery, current: int) -> RangeResult:
    """Answer a query from one state."""
    found = [state[key] for key in sorted(state) if in_range(key, query.key, query.end)]
    count = len(found)
    if query.count_only:
        return RangeResult(current, [], more=False, count=count)
    filters = (
        query.min_mod_revision,
        query.max_mod_revision,
        query.min_create_revision,
        query.max_create_revision,
    )
    if query.limit > 0 and query.sort_order is SortOrder.NONE and not any(filters):
        found = found[: query.limit + 1]
    low_mod, high_mod, low_create, high_create = filters
    found = [
        kv
        for kv in found
        if (not low_mod or kv.mod_revision >= low_mod)
        and (not high_mod or kv.mod_revision <= high_mod)
        and (not low_create or kv.create_revision >= low_create)
        and (not high_create or kv.create_revision <= high_create)
    ]
    if query.sort_target is not SortTarget.KEY or query.sort_order is not SortOrder.NONE:
        field = SORT_FIELDS[query.sort_target]
        found.sort(key=lambda kv: getattr(kv, field), reverse=query.sort_order is SortOrder.DESCEND)
    more = 0 < query.limit < len(found)
    if query.limit > 0:
        found = found[: query.limit]
    if query.keys_only:
        found = [KeyValue(kv.key, b"", kv.create_revision, kv.mod_revision, kv.version) for kv in found]
    return RangeResult(current, found, more, count)
