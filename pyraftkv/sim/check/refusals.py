"""Refusals that tell of the state, but name no revision: where in the order of revisions do they fit?

`FutureRevision` names the revision that the store had come to, so it is looked at there. `KeyNotFound` names none, and
`Compacted` only what was compacted by then. Both still say something: that the key was not there, that the branch of a
transaction was taken which reads what is compacted. So each fits at some revisions and not at others, and real time
asks for one of these.

1. Alice puts x, and nobody ever deletes it. Bob's transaction, which keeps the value of x, ends with `KeyNotFound`.
2. No answer names a revision at which that must be wrong. It fits at revision 1, where x was not there yet;
   but Alice's put had returned before Bob began, and behind it there is no place.

Behind the last revision that anybody saw, writes of unknown outcome may have done things that nobody saw. A refusal
fits there if one of them could have changed what it looks at; which state they lead to is not gone into.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from pyraftkv.errors import Compacted, KeyNotFound, NotApplied, PyraftkvError, to_wire
from pyraftkv.sim.check.evidence import may_change, may_delete
from pyraftkv.sim.check.history import Op
from pyraftkv.sim.check.model import Model, in_range
from pyraftkv.store.commands import FROM_KEY, Compact, GrantLease, PutKey, RangeQuery, RevokeLease, Transaction
from pyraftkv.store.values import Result


def refuses_alike(answer: Result | NotApplied, told: PyraftkvError | None) -> bool:
    """Tell whether the model refused what was refused, for the same reason."""
    return isinstance(answer, NotApplied) and told is not None and to_wire(answer)[::2] == to_wire(told)[::2]


def can_be(request: object, error: KeyNotFound | Compacted) -> bool:
    """Tell whether there is any state in which a request is refused like this."""
    if isinstance(request, Transaction):
        return any(
            can_be(each, error) or (isinstance(each, RangeQuery) and isinstance(error, Compacted) and each.revision < 0)
            for each in (*request.success, *request.failure)
        )
    if isinstance(error, KeyNotFound):
        return isinstance(request, PutKey) and (request.ignore_value or request.ignore_lease)
    return isinstance(request, Compact) or (isinstance(request, RangeQuery) and request.revision > 0)


def next_fit(model: Model, op: Op, revision: int, unheard: Iterable[Op]) -> int | None:
    """Return the lowest revision, from ``revision`` on, at which the model refuses what was refused; None if none.

    Args:
        model: What was done, to the last revision that anybody saw.
        op: What was refused.
        revision: Where to begin.
        unheard: Writes that may have been done behind the last revision; then that is `model.revision` + 1.
    """
    request = op.request
    touched = list(spans(request))
    keys = {key for key, end in touched if not end}
    keys.update(key for key in model.past for low, end in touched if end and in_range(key, low, end))
    changes = {each for key in keys for each, _ in model.past.get(key, ())}
    places = changes.union(named_revisions(request))
    for place in chain([revision], sorted(each for each in places if revision < each <= model.revision)):
        if place <= model.revision and refuses_alike(_answer_at(model, op, place), op.error):
            return place
    affects = may_delete if isinstance(request, PutKey) else may_change
    for other in unheard:
        named = {key for key, end in spans(other.request) if not end and any(in_range(key, *each) for each in touched)}
        if any(affects(other.request, key) for key in keys | named):
            return model.revision + 1
    return None


def _answer_at(model: Model, op: Op, revision: int) -> Result | NotApplied:
    """Return what a request would have been answered at a revision. O(keys that it touches)."""
    request, then = op.request, Model()
    then.revision, then.past = revision, model.past
    then.leases = dict.fromkeys(leases_of(request), 1)  # else it would have been refused for their sake
    if isinstance(op.error, Compacted):
        then.compact_revision = op.error.compact_revision
    then.kvs = {kv.key: kv for key, end in spans(request) for kv in model.scan_at(key, end, revision)}
    then.keys = sorted(then.kvs)
    answer = then.apply(request)
    then.undo()  # the past is shared
    return answer


def spans(request: object) -> Iterator[tuple[bytes, bytes]]:
    """Yield the ranges that a request can touch; a lease may be that of any key."""
    if isinstance(request, Transaction):
        for compare in request.compares:
            yield compare.key, compare.end
        for operation in (*request.success, *request.failure):
            yield from spans(operation)
    elif isinstance(request, GrantLease | RevokeLease):
        yield FROM_KEY, FROM_KEY
    elif not isinstance(request, Compact):
        yield getattr(request, "key", b""), getattr(request, "end", b"")


def leases_of(request: object) -> Iterator[int]:
    """Yield the leases that a request needs."""
    if isinstance(request, Transaction):
        for operation in (*request.success, *request.failure):
            yield from leases_of(operation)
    elif isinstance(request, PutKey) and request.lease:
        yield request.lease
    elif isinstance(request, RevokeLease):
        yield request.id


def named_revisions(request: object) -> Iterator[int]:
    """Yield the revisions that a request names, and those just below them."""
    if isinstance(request, Transaction):
        for compare in request.compares:
            if isinstance(compare.operand, int):
                yield from (compare.operand - 1, compare.operand)
        for operation in (*request.success, *request.failure):
            yield from named_revisions(operation)
    elif isinstance(request, RangeQuery) and request.revision > 0:
        yield from (request.revision - 1, request.revision)
