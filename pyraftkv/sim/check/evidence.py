"""What answers and events tell about revisions that nobody was told to have made.

A write whose caller never heard of it may have made a revision. Which one it was shows in what others saw: a
key-value names the revision of its last change, so whoever saw it saw what that revision did to the key; and between
that revision and the one at which it was seen nothing changed the key. Both narrow down who can have made a revision,
before anything has to be tried.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator
from itertools import zip_longest

from pyraftkv._record import record
from pyraftkv.sim.check.history import History, Op, Outcome, WatchRecord
from pyraftkv.sim.check.model import Entry, in_range
from pyraftkv.store.commands import DeleteRange, PutKey, RangeQuery, RevokeLease, Transaction
from pyraftkv.store.values import DeleteResult, Event, EventType, KeyValue, PutResult, RangeResult, Result, TxnResult


def changed(result: Result) -> bool:
    """Tell whether a result is of a command that changed the store; that of a revocation does not say."""
    if isinstance(result, PutResult):
        return True
    if isinstance(result, DeleteResult):
        return result.deleted > 0
    return isinstance(result, TxnResult) and any(map(changed, result.responses))


@record
class Sighting:
    """What a revision did to a key, as somebody saw it."""

    key: bytes
    kv: KeyValue | None
    """None: it was deleted."""
    value_known: bool
    seen_by: Op | WatchRecord

    def fits(self, entry: Entry) -> bool:
        """Tell whether a command that made the revision did this to the key."""
        after = [change.after for change in entry.changes if change.key == self.key]
        if not after:
            return False
        kv = after[-1]
        if self.kv is None or kv is None or self.value_known:
            return kv == self.kv
        return (kv.create_revision, kv.version) == (self.kv.create_revision, self.kv.version)


class Evidence:
    """What is known of the revisions that nobody says to have made. O(n log n).

    Args:
        history: What happened.
        owned: The revisions that somebody says to have made.
    """

    def __init__(self, history: History, owned: Collection[int]) -> None:
        self._owned = frozenset(owned)
        self._owned_order = sorted(self._owned)
        self.sightings: dict[int, dict[bytes, Sighting]] = {}
        """What a revision did, by key."""
        self._quiet: dict[bytes, dict[int, int]] = {}
        """For a key, the last revision up to which it was seen not to change, from each change of it on."""
        for op in history.ops:
            if op.outcome is Outcome.OK:
                assert op.result is not None
                for kv, value_known, until in seen_kvs(op):
                    self._saw(kv, op, until, value_known=value_known)
        for watch in history.watches:
            for delivery in watch.deliveries:
                for event in delivery.events:
                    self._event(event, watch)

    def allows(self, entry: Entry) -> bool:
        """Tell whether nothing is known that a command which made a revision contradicts."""
        revision = entry.revision
        if any(self._is_quiet(change.key, revision) for change in entry.changes):
            return False
        return all(sighting.fits(entry) for sighting in self.sightings.get(revision, {}).values())

    def _is_quiet(self, key: bytes, revision: int) -> bool:
        return any(low < revision <= high for low, high in self._quiet.get(key, {}).items())

    def _saw(self, kv: KeyValue, by: Op | WatchRecord, until: int, *, value_known: bool) -> None:
        mod_revision = kv.mod_revision
        if mod_revision not in self._owned:
            known = self.sightings.setdefault(mod_revision, {})
            if kv.key not in known or (value_known and not known[kv.key].value_known):
                known[kv.key] = Sighting(kv.key, kv, value_known, by)
        order = self._owned_order
        if until - mod_revision > bisect_right(order, until) - bisect_right(order, mod_revision):
            spans = self._quiet.setdefault(kv.key, {})
            spans[mod_revision] = max(until, spans.get(mod_revision, 0))

    def _event(self, event: Event, watch: WatchRecord) -> None:
        kv = event.kv
        if event.type is EventType.PUT:
            self._saw(kv, watch, kv.mod_revision, value_known=True)
        elif kv.mod_revision not in self._owned:
            self.sightings.setdefault(kv.mod_revision, {})[kv.key] = Sighting(kv.key, None, True, watch)
        if event.prev_kv is not None:
            self._saw(event.prev_kv, watch, kv.mod_revision - 1, value_known=True)


def seen_kvs(op: Op) -> Iterator[tuple[KeyValue, bool, int]]:
    """Yield every key-value in an answer, whether its value is known, and until which revision it stood so."""
    result = op.result
    assert result is not None
    before = result.revision - changed(result)
    return _seen(op.request, result, before)


def _seen(request: object, result: Result, before: int) -> Iterator[tuple[KeyValue, bool, int]]:
    if isinstance(result, RangeResult):
        if isinstance(request, RangeQuery):
            until = request.revision if request.revision > 0 else before
            for kv in result.kvs:
                yield kv, not request.keys_only, until
    elif isinstance(result, PutResult):
        if result.prev_kv is not None:
            yield result.prev_kv, True, before
    elif isinstance(result, DeleteResult):
        for kv in result.prev_kvs:
            yield kv, True, before
    elif isinstance(result, TxnResult) and isinstance(request, Transaction):
        branch = request.success if result.succeeded else request.failure
        for operation, response in zip_longest(branch, result.responses):
            if response is not None:
                yield from _seen(operation, response, before)


def may_change(request: object, key: bytes) -> bool:
    """Tell whether a command could change a key, in one state or another."""
    if isinstance(request, PutKey):
        return request.key == key
    if isinstance(request, Transaction):
        return any(may_change(each, key) for each in (*request.success, *request.failure))
    return may_delete(request, key)


def may_delete(request: object, key: bytes) -> bool:
    """Tell whether a command could delete a key, in one state or another."""
    if isinstance(request, Transaction):
        return any(may_delete(each, key) for each in (*request.success, *request.failure))
    if isinstance(request, RevokeLease):
        return True  # of the key's own lease: which that is, depends on the state
    return isinstance(request, DeleteRange) and in_range(key, request.key, request.end)
