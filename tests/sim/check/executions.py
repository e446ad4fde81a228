"""Random executions of the real store, told as overlapping operations; and what can go wrong with them, put in."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from pyraftkv.errors import Compacted, FutureRevision, KeyNotFound, LeaseNotFound, NotApplied, WatchCancelled
from pyraftkv.keys import mod_revision_is
from pyraftkv.sim.check import Delivery, History, Op, Outcome, WatchRecord
from pyraftkv.store import Store
from pyraftkv.store.commands import Compact, DeleteRange, GrantLease, PutKey, RangeQuery, RevokeLease, Transaction
from pyraftkv.store.values import CompactResult, DeleteResult, KeyValue, PutResult, RangeResult, Result, TxnResult
from pyraftkv.store.watch import Watcher

KEYS = [b"a", b"b", b"c"]


def execution(random: Random, count: int, *, unknown: float = 0.15, lost: float = 0.3, leased: float = 0.0) -> History:
    """Return a history of ``count`` operations: done one by one, each at a moment of its interval.

    Args:
        random: What happens.
        count: How many operations.
        unknown: How many callers of writes hear nothing.
        lost: How many of these writes are not done at all.
        leased: How many operations are about leases.
    """
    store, history = Store(), History()
    full = history.watch("w", b"\0", 0.0, end=b"\0", start_revision=1, prev_kv=True)
    watcher = store.watch(b"\0", b"\0", start_revision=1, prev_kv=True)
    for number in range(count):
        is_leased = leased and random.random() < leased
        request = lease_request_of(random, store, number) if is_leased else request_of(random, store, number)
        done = 10.0 + number
        op = Op(0, f"c{number % 4}", request, done - random.uniform(0, 5), 0)
        op.returned = done + random.uniform(0, 5)
        is_unknown = not op.is_read and random.random() < unknown
        if is_unknown and random.random() < lost:
            op.returned = None
        else:
            carry_out(store, op)
            if is_unknown:
                op.outcome, op.result, op.error, op.returned = Outcome.UNKNOWN, None, None, None
        history.ops.append(op)
        store.advance()
        while full.resume_revision is None and random.random() < 0.8 and take(watcher, full, done):
            pass
    full.at = 1.0
    for each in [*history.ops, full]:
        each.began = 0
    history.arrange()
    return history


def take(watcher: Watcher, record: WatchRecord, at: float) -> bool:
    """Let a watch show what it has; tell whether there may be more."""
    try:
        batch = watcher.take(4)
    except WatchCancelled as error:
        record.resume_revision = error.resume_revision
        return False
    if batch is not None:
        record.deliveries.append(Delivery(at, 0, list(batch.events), batch.revision))
    return batch is not None


def request_of(random: Random, store: Store, number: int):
    """Return something to ask."""
    key, value, chance = random.choice(KEYS), b"%d" % number, random.random()
    if chance < 0.3:
        return PutKey(key, value, 0, random.random() < 0.5)
    if chance < 0.35:
        return PutKey(key, b"", ignore_value=True)
    if chance < 0.45:
        return DeleteRange(key, random.choice([b"", b"c"]) if key < b"c" else b"", random.random() < 0.5)
    if chance < 0.55:
        return RangeQuery(key)
    if chance < 0.65:
        return RangeQuery(b"a", b"z", limit=random.choice([0, 1, 2]), keys_only=random.random() < 0.3)
    if chance < 0.75:
        return RangeQuery(key, revision=random.randint(1, store.revision + 1))
    if chance < 0.8:
        return Compact(random.randint(max(1, store.revision - 5), store.revision))
    nested = Transaction([mod_revision_is(b"c", 0)], [PutKey(b"c", value)], [DeleteRange(b"c", b"", True)])
    return Transaction([mod_revision_is(key, 0)], [PutKey(b"a", value), RangeQuery(b"a", b"z")], [nested])


def lease_request_of(random: Random, store: Store, number: int):
    """Return something to ask about leases: each is granted once, and named only when it is there."""
    leases, chance = list(store.leases), random.random()
    if not leases or chance < 0.2:
        return GrantLease(number + 1, 5)
    if chance < 0.5:
        return RevokeLease(random.choice(leases))
    return PutKey(random.choice(KEYS), b"%d" % number, random.choice(leases))


def carry_out(store: Store, op: Op) -> None:
    """Ask the store, and note what it says."""
    try:
        result = store.read(op.request) if op.is_read else store.apply(op.request)
    except (Compacted, FutureRevision, KeyNotFound, LeaseNotFound) as error:
        op.outcome, op.error = Outcome.FAILED, error
    else:
        op.outcome, op.result = Outcome.OK, result


# --- Faults --------------------------------------------------------------------------------------------------------


def swapped_results(random: Random, history: History) -> bool:
    """Two operations of one kind are told each other's results."""
    answered = [op for op in history.ops if op.outcome is Outcome.OK]
    pairs = [
        (a, b)
        for a in answered
        for b in answered
        if a.number < b.number and type(a.result) is type(b.result) and a.result != b.result
    ]
    if not pairs:
        return False
    first, second = random.choice(pairs)
    first.result, second.result = second.result, first.result
    return True


def stale_read(random: Random, history: History) -> bool:
    """A read is told what another one was told before a write that had been acknowledged when the read began."""
    answered = [op for op in history.ops if op.outcome is Outcome.OK and not op.is_local]
    reads = [op for op in answered if op.is_read]
    pairs = [
        (a, b)
        for a in reads
        for b in reads
        if a.request == b.request
        and any(op.ended < b.began and op.result.revision > a.result.revision for op in answered)
    ]
    if not pairs:
        return False
    old, new = random.choice(pairs)
    new.result = old.result
    return True


def altered_field(random: Random, history: History) -> bool:
    """Some field of some answer is another."""
    answered = [op for op in history.ops if op.outcome is Outcome.OK]
    if not answered:
        return False
    op = random.choice(answered)
    op.result = altered(random, op.result)
    return True


def altered(random: Random, result: Result) -> Result:
    """Return the result with something changed."""
    if isinstance(result, RangeResult) and result.kvs:
        return replace(result, kvs=[altered_kv(random, result.kvs[0]), *result.kvs[1:]])
    if isinstance(result, RangeResult):
        return replace(result, count=result.count + 1)
    if isinstance(result, PutResult) and result.prev_kv is not None:
        return replace(result, prev_kv=altered_kv(random, result.prev_kv))
    if isinstance(result, DeleteResult):
        return replace(result, deleted=result.deleted + 1)
    if isinstance(result, TxnResult):
        return replace(result, succeeded=not result.succeeded)
    if isinstance(result, CompactResult):  # it tells of the present: one beside it may have been that, too
        return replace(result, revision=result.revision + 1000)
    return replace(result, revision=result.revision + random.choice([-1, 1]))


def altered_kv(random: Random, kv: KeyValue) -> KeyValue:
    """Return the key-value with something changed."""
    name = random.choice(["create_revision", "mod_revision", "version"])
    return replace(kv, **{name: getattr(kv, name) + 1})


def lost_write(random: Random, history: History) -> bool:
    """An acknowledged write is said to have been refused: its revision has no maker."""
    writes = [op for op in history.ops if op.outcome is Outcome.OK and not op.is_read]
    if not writes:
        return False
    op = random.choice(writes)
    op.outcome, op.result, op.error = Outcome.FAILED, None, NotApplied()
    return True


def lost_answer(random: Random, history: History) -> bool:
    """Nobody is told of a write: this is always legal."""
    writes = [op for op in history.ops if op.outcome is Outcome.OK and not op.is_read]
    if not writes:
        return False
    op = random.choice(writes)
    op.outcome, op.result, op.returned, op.ended = Outcome.UNKNOWN, None, None, None
    return True


def moved_later(random: Random, history: History) -> bool:
    """An operation is said to have begun after everything else had returned."""
    op = random.choice(history.ops)
    if op.outcome is Outcome.UNKNOWN:
        return False
    last = max(each.ended or each.began for each in history.ops)
    op.began, op.ended = last + 1, last + 2
    return True


MUTATORS = [swapped_results, stale_read, altered_field, lost_write, lost_answer, moved_later]


def dropped_event(random: Random, history: History) -> bool:
    """A watch leaves out an event."""
    return _spoil(random, history, lambda events, at: events.pop(at))


def doubled_event(random: Random, history: History) -> bool:
    """A watch shows an event twice."""
    return _spoil(random, history, lambda events, at: events.insert(at, events[at]))


def event_without_past(random: Random, history: History) -> bool:
    """A watch shows something else before an event."""

    def spoil(events, at):
        before = KeyValue(events[at].kv.key, b"other", 1, 1, 1)
        events[at] = replace(events[at], prev_kv=before)

    return _spoil(random, history, spoil)


def _spoil(random: Random, history: History, spoil) -> bool:
    shown = [each for each in history.watches[0].deliveries if each.events]
    if not shown:
        return False
    delivery = random.choice(shown)
    spoil(delivery.events, random.randrange(len(delivery.events)))
    return True


WATCH_MUTATORS = [dropped_event, doubled_event, event_without_past]
