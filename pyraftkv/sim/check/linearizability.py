"""Linearizability without any help: is there one order of all operations that explains every answer?

Wing & Gong (1993): of the operations that nothing pending must precede, do one on a model; if the answer fits, go on
with the rest; if nothing fits, take the last one back. Lowe (2017): remember which sets of operations were done and
which state they led to, and never go on from the same place twice. The list of invocations and returns from which
operations are lifted out and put back is that of Porcupine (Athalye, 2017). The time is exponential in the operations
that overlap, so the search is bounded; past its bound the verdict is "undecided".

*Unknown outcomes fork the model.* A write whose caller was never told has an invocation and no return: it may be done
at any time from then on, or never. So it stands beside the list, nobody waits for it, and it is tried wherever
everything else fails to fit, unless what others saw rules it out at that revision (`evidence`).

*Revisions are answers like others* here, and cut off most of the tree, for a write fits at one place only.
`revisions` uses them to avoid the search; this is slower and knows less, so that the two can judge each other.

*Keys apart* (``per_key``): a history is linearizable if its part on each object is (Herlihy & Wing, 1990, locality).
Objects are the keys, joined wherever an operation spans several of them. What other keys do shows only in revisions,
which jump; compactions, and refusals for a revision's sake, are left out. This is weaker (that two objects agree on
one order of revisions is not checked) and much cheaper.

Reads of a member's own state (``"local"``) are not linearizable and not looked at here; see `revisions`.
"""

from __future__ import annotations

from itertools import count, pairwise

from pyraftkv.errors import Compacted, FutureRevision, KeyNotFound, NotApplied
from pyraftkv.sim.check.evidence import Evidence, changed, seen_kvs
from pyraftkv.sim.check.history import History, Op, Outcome
from pyraftkv.sim.check.model import Entry, Model, in_range
from pyraftkv.sim.check.refusals import named_revisions, refuses_alike, spans
from pyraftkv.sim.check.revisions import misfit
from pyraftkv.sim.check.verdict import Finding, HistoryError, Verdict, right, wrong
from pyraftkv.store.commands import Compact, GrantLease, RevokeLease
from pyraftkv.store.values import Result

STATES_MAX = 200_000
"""At most this many states are remembered, unless told otherwise."""

SHOWN_MAX = 4
"""Of the operations that were done last before nothing fitted any more, this many are named."""


def check_linearizable(history: History, *, per_key: bool = False, states_max: int = STATES_MAX) -> Verdict:
    """Search for an order that explains every answer.

    Args:
        history: What happened.
        per_key: Look at each key by itself, as far as no operation spans several.
        states_max: The bound of the search, over all keys.
    """
    ops = [op for op in history.ops if _counts(op)]
    owned = {op.result.revision for op in ops if op.result is not None and changed(op.result)}
    observed = {kv.mod_revision for op in ops if op.result is not None for kv, _, _ in seen_kvs(op)}
    evidence = Evidence(history, owned)
    states = 0
    undecided = False
    for part in _objects(ops) if per_key else [ops]:
        search = _Search(part, owned, observed, evidence, states_max=states_max - states, jumps=per_key)
        found = search.run()
        states += search.states
        if found is False:
            return wrong(search.explanation(), states=states)
        undecided |= found is None
    if undecided:
        return Verdict(Finding.UNDECIDED, f"more than {states_max} states to look at", states=states)
    return right(states=states)


def _counts(op: Op) -> bool:
    """Tell whether an operation says anything, or may have done anything."""
    if op.is_local:
        return False
    if op.outcome is Outcome.UNKNOWN:
        return not op.is_read
    return op.outcome is Outcome.OK or isinstance(op.error, Compacted | FutureRevision | KeyNotFound)


class _Search:
    """One search.

    Invariants: `_done` has the bits of the operations on the stack, which are those lifted out of the list, and the
    model has done just these, in the order of the stack.
    """

    def __init__(
        self, ops: list[Op], owned: set[int], observed: set[int], evidence: Evidence, *, states_max: int, jumps: bool
    ) -> None:
        self.states = 0
        self._ops = ops
        self._owned = owned
        self._evidence = evidence
        self._orphans = sorted(observed - owned)
        self._taken = owned | observed
        self._states_max = states_max
        self._jumps = jumps
        self._thresholds = sorted({each for op in ops for each in named_revisions(op.request)}) if jumps else []
        self._model = Model()
        self._done = 0
        self._stack: list[tuple[int, int]] = []
        self._seen: set[tuple[int, int, int, int]] = set()
        self._change_ids: dict[tuple[int, int, tuple[object, ...]], int] = {}
        self._path = [0]
        """The id of what was changed, in what order, after each operation on the stack."""
        self._deepest = -1
        self._explanation: HistoryError | None = None
        self._build()

    def _build(self) -> None:
        """Lay out the list: node 0 is its head, 2i+1 the invocation and 2i+2 the return of the i-th operation.

        The invocations of unknown outcome are nodes, too, but beside the list.
        """
        places: list[tuple[int, int]] = []
        self._beside: list[int] = []
        for i, op in enumerate(self._ops):
            if op.outcome is Outcome.UNKNOWN:
                self._beside.append(2 * i + 1)
                continue
            assert op.ended is not None
            places += [(op.began, 2 * i + 1), (op.ended, 2 * i + 2)]
        self._end = 2 * len(self._ops) + 1
        order = [0, *(node for _, node in sorted(places)), self._end]
        self._next = [0] * (self._end + 1)
        self._prev = [0] * (self._end + 1)
        for before, after in pairwise(order):
            self._next[before], self._prev[after] = after, before
        self._waiting = len(self._ops) - len(self._beside)
        """Operations that were answered and are not done yet."""

    def run(self) -> bool | None:
        """Tell whether there is an order; None when the bound was reached first."""
        node, variant = self._first(), 0
        while self._waiting:
            if not node:
                self._explain()
                if not self._stack:
                    return False
                node, variant = self._take_back()
                variant += 1
                continue
            fits = self._try(node, variant)
            if fits:
                if self.states > self._states_max:
                    return None
                self._lift(node, variant)
                node, variant = self._first(), 0
            elif fits is None:
                node, variant = self._after(node), 0
            else:
                variant += 1
        return True

    def _first(self) -> int:
        """Return what could be done first; 0 if there is nothing."""
        if not self._waiting:
            return 0
        node = self._next[0]
        return node if node & 1 and node != self._end else self._after_beside(-1)

    def _after(self, node: int) -> int:
        """Return what else could be done instead of ``node``; 0 if there is nothing."""
        if self._ops[node >> 1].outcome is Outcome.UNKNOWN:
            return self._after_beside(node)
        following = self._next[node]
        return following if following & 1 and following != self._end else self._after_beside(-1)

    def _after_beside(self, node: int) -> int:
        """Return the next operation of unknown outcome that had begun when the next return came; 0 if none had."""
        now = self._ops[self._blocked() // 2 - 1].ended
        assert now is not None
        for each in self._beside:
            if each > node and not self._done >> (each >> 1) & 1:
                return each if self._ops[each >> 1].began < now else 0
        return 0

    def _blocked(self) -> int:
        """Return the first return in the list: what has not begun before it has to wait for it."""
        node = self._next[0]
        while node & 1:
            node = self._next[node]
        return node

    def _lift(self, node: int, variant: int) -> None:
        """Take out what was done."""
        self._stack.append((node, variant))
        self._done |= 1 << (node >> 1)
        if self._ops[node >> 1].outcome is Outcome.UNKNOWN:
            return
        self._waiting -= 1
        for each in (node, node + 1):
            before, after = self._prev[each], self._next[each]
            self._next[before], self._prev[after] = after, before

    def _take_back(self) -> tuple[int, int]:
        """Undo what was done last, and put it back."""
        node, variant = self._stack.pop()
        self._path.pop()
        self._model.undo()
        self._done ^= 1 << (node >> 1)
        if self._ops[node >> 1].outcome is not Outcome.UNKNOWN:
            self._waiting += 1
            for each in (node + 1, node):
                self._next[self._prev[each]] = self._prev[self._next[each]] = each
        return node, variant

    # --- Doing one -------------------------------------------------------------------------------------------------

    def _try(self, node: int, variant: int) -> bool | None:
        """Do an operation on the model; None if there is no such variant of it, False if it does not fit."""
        op = self._ops[node >> 1]
        model = self._model
        at = self._revision(op, variant)
        if at is None:
            return None
        if at < model.revision or self._passes_over(node, at + _makes_revision(op)):
            return False
        answer = model.apply(op.request, at=at)
        entry = model.log[-1]
        if self._fits(op, answer, entry) and self._is_new(node, entry):
            return True
        model.undo()
        return False

    def _revision(self, op: Op, variant: int) -> int | None:
        """Return the revision to do an operation at."""
        now = self._model.revision
        if op.outcome is Outcome.UNKNOWN and self._jumps and not isinstance(op.request, GrantLease):
            return self._jump(now, variant)
        if variant > isinstance(op.request, RevokeLease):
            return None
        if op.result is None:
            return now
        if variant:  # it made the revision that it names
            return op.result.revision - 1 if op.result.revision - 1 == now else -1
        at = op.result.revision - changed(op.result)
        return at if self._jumps or at == now else -1

    def _passes_over(self, node: int, revision: int) -> bool:
        """Tell whether something that has begun, too, must have been done before the store came to ``revision``."""
        each = self._next[0]
        while each & 1 and each != self._end:
            result = self._ops[each >> 1].result
            if each != node and result is not None and result.revision - changed(result) < revision:
                return True
            each = self._next[each]
        return False

    def _jump(self, now: int, variant: int) -> int | None:
        """Return a revision before one that a write of unknown outcome may have made.

        One that was seen and that nobody says to have made; or one that nobody saw: then only its place among those
        that somebody names matters, so the first free one is tried, and the first one past each of the others.
        """
        orphans = [each for each in self._orphans if each > now]
        if variant < len(orphans):
            return orphans[variant] - 1
        starts = [now, *(each for each in self._thresholds if each > now)]
        if variant - len(orphans) >= len(starts):
            return None
        return next(each for each in count(starts[variant - len(orphans)]) if each + 1 not in self._taken)

    def _fits(self, op: Op, answer: Result | NotApplied, entry: Entry) -> bool:
        if op.outcome is Outcome.OK:
            return answer == op.result
        if op.outcome is Outcome.FAILED:
            return refuses_alike(answer, op.error)
        if entry.changes:
            return entry.revision not in self._owned and self._evidence.allows(entry)
        after, before = self._model, (entry.before_compact_revision, entry.before_leases)
        return (after.compact_revision, after.leases) != before

    def _is_new(self, node: int, entry: Entry) -> bool:
        """Tell whether the place that was come to is a new one, and remember it.

        A state is what was changed at which revision, for a read of an old one may look at all of it.
        """
        change_id = self._path[-1]
        if entry.changes:
            changes = tuple(_frozen(each.after) if each.after else each.key for each in entry.changes)
            key = (change_id, entry.revision, changes)
            change_id = self._change_ids.setdefault(key, len(self._change_ids) + 1)
        place = (self._done | 1 << (node >> 1), change_id, self._model.revision, self._model.compact_revision)
        if place in self._seen:
            return False
        self._seen.add(place)
        self.states += 1
        self._path.append(change_id)
        return True

    # --- Saying why not --------------------------------------------------------------------------------------------

    def _explain(self) -> None:
        """Nothing fits before the next return: keep the words for it, if no place was deeper."""
        if len(self._stack) <= self._deepest:
            return
        self._deepest = len(self._stack)
        op = self._ops[self._blocked() // 2 - 1]
        answer = self._model.apply(op.request)
        self._model.undo()
        last = [self._ops[each >> 1] for each, _ in self._stack[-SHOWN_MAX:]]
        reason = f"no order explains the answers; the longest one ends after {self._deepest}, where "
        self._explanation = HistoryError(reason + misfit(op, answer).reason, *last, op)

    def explanation(self) -> HistoryError:
        """Return why there is no order."""
        assert self._explanation is not None, "nothing was found wrong"
        return self._explanation


def _makes_revision(op: Op) -> bool:
    """Tell whether an operation makes a revision, if it is done at all."""
    if op.outcome is Outcome.UNKNOWN:
        return not isinstance(op.request, Compact | GrantLease)
    return op.result is not None and changed(op.result)


def _frozen(kv: object) -> tuple[object, ...]:
    return tuple(getattr(kv, name) for name in ("key", "value", "create_revision", "mod_revision", "version", "lease"))


# --- Keys apart ----------------------------------------------------------------------------------------------------


def _objects(ops: list[Op]) -> list[list[Op]]:
    """Split operations by the keys that they can touch, keys joined that one operation spans."""
    kept = [
        op for op in ops if not isinstance(op.request, Compact) and not isinstance(op.error, Compacted | FutureRevision)
    ]
    spanned = {op.number: list(spans(op.request)) for op in kept}
    keys = sorted({key for each in spanned.values() for key, _ in each})
    root = {key: key for key in keys}

    def find(key: bytes) -> bytes:
        while root[key] != key:
            root[key] = key = root[root[key]]
        return key

    for op in kept:
        touched = [each for key, end in spanned[op.number] for each in _touched(keys, key, end)]
        for each in touched[1:]:
            root[find(each)] = find(touched[0])
    parts: dict[bytes, list[Op]] = {}
    for op in kept:
        if spanned[op.number]:
            parts.setdefault(find(spanned[op.number][0][0]), []).append(op)
    return list(parts.values())


def _touched(keys: list[bytes], key: bytes, end: bytes) -> list[bytes]:
    """Return the keys in a range, its own lower bound first: that stands for the range."""
    return [key, *(each for each in keys if in_range(each, key, end))] if end else [key]
