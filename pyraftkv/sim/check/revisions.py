"""Replaying a history by its revisions: linearizability in O(n log n), because the store numbers its changes.

Deciding whether a history is linearizable is NP-complete in general (Gibbons & Korach), for the order has to be
guessed. Here it is told: every command that changed something made exactly one revision and answers with it, and
everything else answers with the revision that it saw. So the writes have one possible order, revision by revision,
and what is left is to check it:

1. *Everything was made once.* Each revision from 2 on has one maker, and no two answers claim the same one.
2. *Every answer is right.* The commands are done in their order on a `Model`; each answer, to the last field, must
   be the one that the model gives at that revision. Refusals that tell of the state are answers, too.
3. *Real time is kept.* What had returned before something else began has no later place; see `order`. Reads of a
   member's own state (``"local"``) may lag, but never go backwards on one life of one member, and see no future.

A revision without a maker was made by one of the writes whose callers were never told. What others saw (see `evidence`)
and what watches did not see (`silence`) narrow the choice, mostly to one; otherwise each is tried, the revisions are
played on, and what contradicts a later answer is taken back. The search is bounded, by what is tried and by what is
played again; past its bound the verdict is "undecided". Writes of unknown outcome that no revision needs may be lost,
or may come yet: both are fine. A revision that nobody can have made is wrong; so a history must hold everything that
was done to the store since it was empty.

Compaction makes no revision. It is a second number that only grows, and is checked like the first one (`_Compaction`):
the two are checked for themselves and against each other where an answer names both.

Leases make revisions only when they end, and only if keys hang on them. So a grant is done where its answer says to
stand, and a revocation that was answered has either made the revision that it names, if nobody else has, or looked at
it. A lease that expired was ended by one of the writes of unknown outcome: who knows when leases may expire puts that
into the history (`pyraftkv.sim.tenancy`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise

from pyraftkv.errors import Compacted, FutureRevision, KeyNotFound, NotApplied
from pyraftkv.sim.check import refusals
from pyraftkv.sim.check.evidence import Evidence, Sighting, changed, may_change
from pyraftkv.sim.check.history import Delivery, History, Op, Outcome, WatchRecord
from pyraftkv.sim.check.model import Model
from pyraftkv.sim.check.order import Mark, changes_at, check_order, looks_at
from pyraftkv.sim.check.refusals import leases_of
from pyraftkv.sim.check.silence import Silence
from pyraftkv.sim.check.verdict import Finding, HistoryError, Verdict, right, wrong
from pyraftkv.sim.check.words import answer_words, kv_words
from pyraftkv.sim.show import show
from pyraftkv.store.commands import Compact, GrantLease, PutKey, RangeQuery, RevokeLease, Transaction
from pyraftkv.store.values import Result, TxnResult

STATES_MAX = 20_000
"""At most this many ways to account for revisions are tried, unless told otherwise."""

GAPS_MAX = 1000
"""More revisions than this that nobody made are not looked at one by one, if no write of unknown outcome is left."""

SWEEP_STATES = 100
"""A look at the order of everything counts as that many."""

STATE_REVISIONS = 100
"""So many revisions that are taken back count as one state: a contradiction may show thousands of them too late."""


@dataclass(slots=True)
class Replay:
    """What came of a replay."""

    verdict: Verdict
    model: Model
    """As of the last revision, if the verdict is right."""
    makers: dict[int, Op] = field(default_factory=dict)
    """Who made which revision."""


def check_revisions(history: History, *, states_max: int = STATES_MAX) -> Verdict:
    """Check a history by replaying it. O(n log n) plus what it takes to account for unknown outcomes."""
    return replay(history, states_max=states_max).verdict


def replay(history: History, *, states_max: int = STATES_MAX) -> Replay:
    """Check a history by replaying it, and return the store that it comes to, too.

    What no watch has shown is taken not to have happened; if that cannot be, a watch may have left something out, which
    is for `check_watches` to say. Then nobody's silence counts.
    """
    replayed = _replay(history, Silence(history), states_max)
    if replayed.verdict.finding is Finding.WRONG and history.watches:
        states = replayed.verdict.states
        replayed = _replay(history, None, max(states_max - states, 0))
    return replayed


def _replay(history: History, silence: Silence | None, states_max: int) -> Replay:
    work = _Work(history, silence, states_max)
    try:
        work.sort()
        if not work.solve():
            reason = f"more than {states_max} ways to account for what unknown writes did"
            verdict = Verdict(Finding.UNDECIDED, reason, states=work.states)
            return Replay(verdict, work.model, work.makers)
        check_order(_Compaction(history).marks())
    except HistoryError as error:
        return Replay(wrong(error, states=work.states), work.model, work.makers)
    return Replay(right(states=work.states), work.model, work.makers)


class _Work:
    """One replay.

    Invariants: `makers` holds who made each revision up to the model's; the answers at those are right.
    """

    def __init__(self, history: History, silence: Silence | None, states_max: int) -> None:
        self.history = history
        self._silence = silence
        self.model = Model()
        self.makers: dict[int, Op] = {}
        self.states = 0
        self._states_max = states_max
        self._owners: dict[int, Op] = {}
        """Who says to have made a revision."""
        self._lookers: dict[int, list[Op]] = {}
        """Who changed nothing, by the revision they saw."""
        self._revocations: dict[int, list[Op]] = {}
        """Those that were answered, by the revision that they name: they may have made it."""
        self._grants: dict[int, Op] = {}
        """Those of unknown outcome, by lease: whoever puts a key under it knows better."""
        self._pool: list[Op] = []
        """Writes of unknown outcome, the ones begun last first."""
        self._used: set[int] = set()
        self._evidence: Evidence | None = None
        self._unmade = 0
        """How many revisions were taken back."""
        self._deadlines: dict[int, int] = {}
        self._choices: list[tuple[int, Iterator[Op]]] = []
        """Revisions that nobody was told to have made, with those who could have made them and were not tried yet."""
        self._deepest: tuple[int, HistoryError] | None = None
        """What was found wrong at the highest revision."""
        self._refused: list[Op] = []
        """Refusals that name no revision."""
        self.last_revision = 1

    # --- Who says what ---------------------------------------------------------------------------------------------

    def sort(self) -> None:
        """Sort operations by their revisions. Raises `HistoryError` when two claim the same one."""
        for op in self.history.ops:
            if op.outcome is Outcome.OK:
                assert op.result is not None
                revision = op.result.revision
                if revision < 1 + changed(op.result):
                    raise HistoryError(f"#{op.number} was answered at revision {revision}; the store begins at 1", op)
                if changed(op.result):
                    self._own(op, revision)
                else:
                    self._lookers.setdefault(revision, []).append(op)
                if isinstance(op.request, RevokeLease):
                    self._revocations.setdefault(revision, []).append(op)
                self.last_revision = max(self.last_revision, revision)
            elif isinstance(op.error, FutureRevision) and op.outcome is Outcome.FAILED:
                self._lookers.setdefault(op.error.revision, []).append(op)
                self.last_revision = max(self.last_revision, op.error.revision)
            elif isinstance(op.error, KeyNotFound | Compacted) and op.outcome is Outcome.FAILED:
                if not refusals.can_be(op.request, op.error):
                    told = answer_words(None, op.error)
                    raise HistoryError(f"#{op.number} ({op.words}) cannot be answered: {told}", op)
                if isinstance(op.request, PutKey | Transaction):  # what others tell of, `_Compaction` knows
                    self._refused.append(op)
            elif op.outcome is Outcome.UNKNOWN and isinstance(op.request, GrantLease):
                self._grants[op.request.id] = op
            elif op.outcome is Outcome.UNKNOWN and not op.is_read and not isinstance(op.request, Compact):
                self._pool.append(op)
        for watch in self.history.watches:
            self.last_revision = max(self.last_revision, claimed_revision(watch))
        for ops in self._lookers.values():
            ops.sort(key=lambda op: not isinstance(op.request, GrantLease))  # what ends at a revision was there before
        self._pool.reverse()
        self._fill_gaps()

    def _fill_gaps(self) -> None:
        """Find the revisions that nobody says to have made, and what is known of them. Raises `HistoryError`."""
        missing = self.last_revision - 1 - len(self._owners)
        if missing > max(len(self._pool), GAPS_MAX):
            reason = f"{missing} revisions up to {self.last_revision} were made by nobody in the history"
            seen = [op for op in self.history.ops if op.result is not None and op.result.revision == self.last_revision]
            raise HistoryError(reason, *seen[:1])
        gaps = [revision for revision in range(2, self.last_revision + 1) if revision not in self._owners]
        if gaps:
            self._evidence = Evidence(self.history, self._owners)
            self._find_deadlines(gaps)

    def _own(self, op: Op, revision: int) -> None:
        other = self._owners.setdefault(revision, op)
        if other is not op:
            raise HistoryError(
                f"#{other.number} and #{op.number} both say that they made revision {revision}", other, op
            )

    def _find_deadlines(self, gaps: list[int]) -> None:
        """For each gap, find when somebody had first seen it, or something later."""
        first = 0
        seen = [(mark.position // 2, mark.ended) for mark in self._told_marks() if mark.ended is not None]
        seen.sort(reverse=True)
        at = 0
        for gap in reversed(gaps):
            while at < len(seen) and seen[at][0] >= gap:
                ended = seen[at][1]
                first = min(first, ended) if first else ended
                at += 1
            self._deadlines[gap] = first

    # --- Playing ---------------------------------------------------------------------------------------------------

    def solve(self) -> bool:
        """Play all revisions so that real time is kept; tell whether that came to an end. Raises `HistoryError`.

        Some refusals name no revision, but tell of what was done by then (`refusals`). Apart from them, who made a
        revision that nobody was told of makes no difference to the order.
        """
        self._look()
        is_played = self._play()
        if is_played:
            check_order(self._told_marks())
        while is_played and self._refused:
            self.states += SWEEP_STATES
            try:
                check_order([*self._told_marks(), *self._guessed_marks()])
            except HistoryError as error:
                self._deepest = self.last_revision + 1, error
                if not self._go_back():
                    return self._give_up()
                is_played = self._play()
            else:
                return True
        return is_played

    def _give_up(self) -> bool:
        """Everything was tried, or too much: raise what was found wrong, or return False."""
        if self.states >= self._states_max:
            return False
        assert self._deepest is not None, "nothing was found wrong"
        raise self._deepest[1]

    def _play(self) -> bool:
        """Play on to the last revision; tell whether that came to an end. Raises `HistoryError`."""
        while self.model.revision < self.last_revision:
            revision = self.model.revision + 1
            owner = self._owners.get(revision)
            try:
                if owner is not None:
                    self._make(owner)
                else:
                    self._choices.append((revision, self._candidates(revision)))
                    self._choose(self._choices[-1][1])
                self._look()
            except HistoryError as error:
                if self._deepest is None or self.model.revision > self._deepest[0]:
                    self._deepest = self.model.revision, error
                if not self._go_back():
                    return self._give_up()
        return True

    def _go_back(self) -> bool:
        """Take back everything up to the last choice that can be made in another way, and make it."""
        choices = self._choices
        while choices:
            revision, candidates = choices[-1]
            while self.model.revision >= revision:
                self._unmake()
            try:
                self._choose(candidates)
                self._look()
            except HistoryError:
                if self.states >= self._states_max:
                    return False
                if self.model.revision < revision:
                    choices.pop()
            else:
                return True
        return False

    def _make(self, op: Op) -> None:
        """Do what made the next revision, and compare the answer."""
        answer = self._apply(op)
        if answer != op.result:
            self.model.undo()
            raise misfit(op, answer)
        self.makers[self.model.revision] = op

    def _apply(self, op: Op) -> Result | NotApplied:
        """Do a command. Those that need a lease know that it was granted."""
        for lease in leases_of(op.request) if self._grants else ():
            grant = self._grants.get(lease)
            if grant is not None and lease not in self.model.leases:
                self.model.apply(grant.request)
        return self.model.apply(op.request)

    def _unmake(self) -> None:
        revision = self.model.revision
        op = self.makers.pop(revision)
        self._used.discard(op.number)
        while self.model.revision == revision:  # what was done of leases since made none
            self.model.undo()
        self._unmade += 1
        self.states += self._unmade % STATE_REVISIONS == 0

    def _look(self) -> None:
        """Compare all answers at the present revision that changed nothing."""
        model = self.model
        for op in self._lookers.get(model.revision, ()):
            request, told = op.request, op.error
            if self.makers.get(model.revision) is op:
                continue  # a revocation that made it
            answer: Result | NotApplied
            if type(request) is RangeQuery and request.revision <= model.revision:
                answer = model.read(request)
            else:
                answer = self._apply(op)
                if answer != op.result or not isinstance(request, GrantLease | RevokeLease):
                    model.undo()
            if told is None:
                if answer != op.result:
                    raise misfit(op, answer)
            elif not refusals.refuses_alike(answer, told):
                raise misfit(op, answer)

    # --- Revisions that nobody was told to have made ---------------------------------------------------------------

    def _candidates(self, revision: int) -> Iterator[Op]:
        """Yield the writes of unknown outcome that could have made a revision, the likeliest first."""
        assert self._evidence is not None
        keys = list(self._evidence.sightings.get(revision, ()))
        deadline = self._deadlines[revision]
        for op in chain(self._revocations.get(revision, ()), self._pool):
            if op.number in self._used or (deadline and op.began > deadline):
                continue
            if all(may_change(op.request, key) for key in keys):
                yield op

    def _choose(self, candidates: Iterator[Op]) -> None:
        """Let the next candidate that contradicts nothing make the next revision."""
        assert self._evidence is not None
        for op in candidates:
            self.states += 1
            if self.states >= self._states_max:
                break
            self._apply(op)
            entry = self.model.log[-1]
            is_silent = self._silence is not None and not self._silence.allows(entry)
            if entry.changes and not is_silent and self._evidence.allows(entry):
                self._used.add(op.number)
                self.makers[entry.revision] = op
                return
            self.model.undo()
        raise self._unaccounted(self.model.revision + 1)

    def _unaccounted(self, revision: int) -> HistoryError:
        """Say who saw a revision that nobody can have made, and what comes near."""
        assert self._evidence is not None
        sightings = list(self._evidence.sightings.get(revision, {}).values())
        if not sightings:
            return HistoryError(f"nobody in the history can have made revision {revision}")
        sighting = sightings[0]
        witness = sighting.seen_by
        what = kv_words(sighting.kv) if sighting.kv is not None else f"{show(sighting.key)} deleted"
        involved = [witness] if isinstance(witness, Op) else []
        who = f"#{witness.number}" if isinstance(witness, Op) else str(witness)
        reason = f"nobody in the history can have made revision {revision}, of which {who} saw: {what}"
        for op in self.history.ops:
            if _wrote(op, sighting):
                made = f"made revision {op.result.revision}" if op.result is not None else _came_of(op)
                reason += f"; #{op.number} wrote that, but {made}"
                involved.append(op)
        return HistoryError(reason, *involved)

    # --- Real time -------------------------------------------------------------------------------------------------

    def _guessed_marks(self) -> Iterator[Mark]:
        """Yield the positions that no answer names."""
        for revision, op in self.makers.items():
            if op.outcome is Outcome.UNKNOWN:
                yield Mark(op.began, None, changes_at(revision), f"made revision {revision}", op)
        for op in self._refused:
            start = self._refused_at(op, 0)
            if start is None:
                told = answer_words(None, op.error)
                raise HistoryError(f"#{op.number} ({op.words}) was answered: {told}; it fits at no revision", op)
            what = f"was refused with {type(op.error).__name__}"
            yield Mark(op.began, op.ended, start, what, op, partial(self._refused_at, op))

    def _told_marks(self) -> Iterator[Mark]:
        """Yield the positions that answers and events name."""
        for revision, op in self._owners.items():
            yield Mark(op.began, op.ended, changes_at(revision), f"made revision {revision}", op)
        for revision, ops in self._lookers.items():
            saw = f"saw revision {revision}"
            for op in ops:
                lags = op.is_local
                yield Mark(op.began, op.ended, looks_at(revision), saw, op, lags=lags, member=op.member)
        for watch in self.history.watches:
            for delivery in watch.deliveries:
                revision = claimed_by(watch, delivery)
                if revision:
                    what = f"showed revision {revision}" if delivery.events else f"was at revision {revision}"
                    yield Mark(delivery.order, delivery.order, looks_at(revision), what, lags=True, watch=watch)

    def _refused_at(self, op: Op, position: int) -> int | None:
        """Return the lowest position from ``position`` on at which a refusal fits."""
        unheard = (each for each in self._pool if each.number not in self._used)
        revision = refusals.next_fit(self.model, op, max(1, position // 2), unheard)
        return None if revision is None else looks_at(revision)


class _Compaction:
    """The order of compactions: their numbers only grow, and answers tell how far they had come.

    A refusal as `Compacted` names the last compaction; a read of an old revision says that it was not compacted yet.
    """

    def __init__(self, history: History) -> None:
        self._done: dict[int, Op] = {}
        self._maybe: dict[int, list[Op]] = {}
        self._refused: list[Op] = []
        self._old_reads: list[tuple[Op, int]] = []
        for op in history.ops:
            request = op.request
            if isinstance(request, Compact) and op.outcome is Outcome.OK:
                other = self._done.setdefault(request.revision, op)
                if other is not op:
                    raise HistoryError(f"#{other.number} and #{op.number} both compacted the same revision", other, op)
            elif isinstance(request, Compact) and op.outcome is Outcome.UNKNOWN:
                self._maybe.setdefault(request.revision, []).append(op)
            elif isinstance(op.error, Compacted) and op.outcome is Outcome.FAILED:
                self._refused.append(op)
            elif op.outcome is Outcome.OK and (oldest := _oldest_read(op.request, op.result)):
                self._old_reads.append((op, oldest))

    def marks(self) -> Iterator[Mark]:
        """Yield the positions of everything that has one. Raises `HistoryError`."""
        self._check_revisions()
        for place, op in self._done.items():
            yield Mark(op.began, op.ended, changes_at(place), f"compacted {place}", op)
        for op in self._refused:
            assert isinstance(op.error, Compacted)
            place = op.error.compact_revision
            if place and place not in self._done:
                yield self._unheard(place, op)
            asked = _oldest_asked(op.request)
            if asked > place or (asked == place and not isinstance(op.request, Compact)):
                raise HistoryError(f"#{op.number} was refused, although {asked} is not below {place}", op)
            what = f"found {place} compacted"
            yield Mark(op.began, op.ended, looks_at(place), what, op, lags=op.is_local, member=op.member)
        for op, oldest in self._old_reads:
            fit = partial(_not_past, looks_at(oldest))
            what = f"read revision {oldest}"
            yield Mark(op.began, op.ended, looks_at(0), what, op, fit, lags=op.is_local, member=op.member)

    def _unheard(self, place: int, witness: Op) -> Mark:
        """Return the mark of a compaction whose caller was never told, the one that began first."""
        if place not in self._maybe:
            raise HistoryError(f"#{witness.number} found {place} compacted, which nobody did", witness)
        op = self._maybe[place][0]
        return Mark(op.began, None, changes_at(place), f"compacted {place}", op)

    def _check_revisions(self) -> None:
        """Check compactions in their order against the revisions that they and old reads name."""
        ordered = [self._done[place] for place in sorted(self._done)]
        for earlier, later in pairwise(ordered):
            if _revision_of(earlier) > _revision_of(later):
                reason = f"#{earlier.number} compacted less than #{later.number}, but at a later revision"
                raise HistoryError(reason, earlier, later)
        for op, oldest in self._old_reads:
            for place in self._done:
                if place > oldest and _revision_of(self._done[place]) < _revision_of(op):
                    compact = self._done[place]
                    reason = f"#{op.number} read revision {oldest} after #{compact.number} had compacted it"
                    raise HistoryError(reason, op, compact)


def claimed_by(watch: WatchRecord, delivery: Delivery) -> int:
    """Return the highest revision that a delivery says to exist, 0 if none.

    A watch that begins in the future is done with everything before, whether it exists yet or not.
    """
    promised = max(delivery.revision, delivery.placed_revision)
    return max(delivery.last_revision, promised if promised >= watch.start_revision else 0)


def claimed_revision(watch: WatchRecord) -> int:
    """Return the highest revision that a watch says to exist, 0 if none."""
    resumed = watch.resume_revision or 0
    claims = [claimed_by(watch, each) for each in watch.deliveries]
    return max(resumed - 1 if resumed > watch.start_revision else 0, *claims, 0)


def misfit(op: Op, answer: Result | NotApplied) -> HistoryError:
    """Say that an operation was not answered as it must have been."""
    told = answer_words(op.result, op.error)
    expected = answer_words(None, answer) if isinstance(answer, NotApplied) else answer_words(answer, None)
    return HistoryError(f"#{op.number} ({op.words}) was answered: {told}; it must be: {expected}", op)


def _not_past(last: int, position: int) -> int | None:
    position |= 1  # behind the compaction, for it looks at what that has left
    return position if position <= last else None


def _revision_of(op: Op) -> int:
    assert op.result is not None
    return op.result.revision


def _wrote(op: Op, sighting: Sighting) -> bool:
    """Tell whether a write asked for just what was seen."""
    if op.is_read or sighting.kv is None or not may_change(op.request, sighting.key):
        return False
    return sighting.kv.value in _values_put(op.request, sighting.key)


def _values_put(request: object, key: bytes) -> list[bytes]:
    if isinstance(request, PutKey):
        return [request.value] if request.key == key else []
    if isinstance(request, Transaction):
        return [value for each in (*request.success, *request.failure) for value in _values_put(each, key)]
    return []


def _came_of(op: Op) -> str:
    return "was refused" if op.outcome is Outcome.FAILED else "cannot have made this one"


def _oldest_read(request: object, result: Result | None) -> int:
    """Return the oldest revision that an answered request has read by its number, 0 if none."""
    if isinstance(request, RangeQuery):
        return max(0, request.revision)
    if not isinstance(request, Transaction) or not isinstance(result, TxnResult):
        return 0
    branch = request.success if result.succeeded else request.failure
    read = [_oldest_read(each, response) for each, response in zip(branch, result.responses, strict=False)]
    return min(filter(None, read), default=0)


def _oldest_asked(request: object) -> int:
    """Return the lowest revision that a request names, 0 if it names none or one below all."""
    if isinstance(request, Transaction):
        asked = [_oldest_asked(each) for each in (*request.success, *request.failure)]
        return min(filter(None, asked), default=0)
    return max(0, request.revision) if isinstance(request, RangeQuery | Compact) else 0
