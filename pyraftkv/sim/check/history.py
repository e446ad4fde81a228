"""What was asked, what was answered, and when: the one input of every checker.

A history holds *operations* and *watches*. An operation has an invocation and, unless nobody ever heard of it again, a
return. Three things can have come of it:

========== ===================================================================================================
 `OK`       it was answered with a result
 `FAILED`   it was refused: it did not take effect and never will (`NotApplied`)
 `UNKNOWN`  nobody knows (`MaybeApplied`, a caller that died or gave up): it may have taken effect at any time
            after its invocation, may do so yet, long after the last return, or never
========== ===================================================================================================

Order matters more than time: of two events the history knows which was noted first (`began`, `ended`, one counter for
all). Times are for people. A history read from lines without that counter is ordered by its times, and what happened
at the same time counts as concurrent.

Everything is kept in the store's own records (`PutKey`, `RangeResult`), which are what `Engine.write` and
`Engine.read` speak, so that `create`, `if_revision=` and the like need no treatment of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from pyraftkv.errors import MaybeApplied, PyraftkvError
from pyraftkv.kv import Consistency
from pyraftkv.sim.check.words import answer_words, request_words
from pyraftkv.store.commands import SINGLE_KEY, Command, RangeQuery
from pyraftkv.store.values import Event, Result

OPS_MAX = 5_000_000
"""Operations, and deliveries of watches, in one history."""

Request = Command | RangeQuery


class Outcome(Enum):
    """What is known of an operation."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(slots=True, eq=False)
class Op:
    """One operation.

    Invariants: a result exactly if it is `OK`; an error if it is `FAILED`; `ended` > `began`.
    """

    number: int
    """Its place in the history, from 0."""
    client: str
    request: Request
    invoked: float
    """In seconds."""
    began: int
    """The place of the invocation among all events of the history."""
    consistency: Consistency = "linearizable"
    member: str = ""
    """The one life of one member that served it, when it could be no other; empty if it is not known."""
    returned: float | None = None
    """In seconds; None if it never did."""
    ended: int | None = None
    outcome: Outcome = Outcome.UNKNOWN
    result: Result | None = None
    error: PyraftkvError | None = None

    def __str__(self) -> str:
        end = "" if self.returned is None else f"{self.returned:.4f}"
        answer = answer_words(self.result, self.error)
        return f"#{self.number} {self.client} [{self.invoked:.4f}–{end}] {self.words} -> {answer}"

    @property
    def words(self) -> str:
        """What was asked, as one would type it."""
        words = request_words(self.request)
        return words if self.consistency == "linearizable" else f"{words} ({self.consistency})"

    @property
    def is_read(self) -> bool:
        """Whether it changes nothing by its nature."""
        return type(self.request) is RangeQuery

    @property
    def is_local(self) -> bool:
        """Whether it may be answered from the past."""
        return self.consistency == "local"


@dataclass(slots=True, eq=False)
class Delivery:
    """Something that a watch handed to its reader, or promised."""

    at: float
    order: int
    """Its place among all events of the history."""
    events: list[Event] = field(default_factory=list)
    revision: int = 0
    """With this, everything up to this revision has been handed out; 0: nothing is promised."""
    placed_revision: int = 0
    """The watch is in place: everything after this revision will be handed out; 0: nothing is promised."""

    @property
    def last_revision(self) -> int:
        """The highest revision that it shows something of; 0 if it shows nothing."""
        # Nearly always a single one, and the question is asked again and again.
        events = self.events
        return events[0].kv.mod_revision if len(events) == 1 else max([e.kv.mod_revision for e in events], default=0)


@dataclass(slots=True, eq=False)
class WatchRecord:
    """One watch, from its opening to its end."""

    number: int
    client: str
    key: bytes
    end: bytes
    start_revision: int
    """0: from now on."""
    prev_kv: bool
    no_put: bool
    no_delete: bool
    at: float
    began: int
    deliveries: list[Delivery] = field(default_factory=list)
    resume_revision: int | None = None
    """What `WatchCancelled` named as the first revision not delivered, if that is how it ended."""

    def __str__(self) -> str:
        words = request_words(RangeQuery(self.key, self.end)).removeprefix("get ").removeprefix("range ")
        options = [name for name in ("prev_kv", "no_put", "no_delete") if getattr(self, name)]
        start = f" from revision {self.start_revision}" if self.start_revision else ""
        return " ".join([f"watch {self.number} of {self.client} on {words}{start}", *options])


class History:
    """Operations and watches as they happen: `begin`, then one of `ok`, `failed`, `unknown`; or nothing, for unknown.

    >>> history = History()
    >>> op = history.begin("alice", RangeQuery(b"color"), 1.0)
    >>> op.outcome
    <Outcome.UNKNOWN: 'unknown'>
    """

    def __init__(self) -> None:
        self.ops: list[Op] = []
        """In the order of their invocations."""
        self.watches: list[WatchRecord] = []
        """In the order of their opening."""
        self._events = 0

    def __repr__(self) -> str:
        return f"<History of {len(self.ops)} operations and {len(self.watches)} watches>"

    def _next(self) -> int:
        assert self._events < 2 * OPS_MAX, "the history is longer than OPS_MAX"
        self._events += 1
        return self._events

    def arrange(self) -> None:
        """Number operations and watches that were put in by hand; order them by their times if no order was given."""
        if any(not op.began for op in self.ops):
            events: list[tuple[float, int, Op | WatchRecord | Delivery]] = []
            for op in self.ops:
                events.append((op.invoked, 0, op))
                if op.returned is not None:
                    events.append((op.returned, 2, op))
            for watch in self.watches:
                events.append((watch.at, 0, watch))
                events += [(each.at, 1, each) for each in watch.deliveries]
            self._number_events(events)
        self.ops.sort(key=lambda op: op.began)
        self.watches.sort(key=lambda watch: watch.began)
        for number, op in enumerate(self.ops):
            op.number = number
        for number, watch in enumerate(self.watches):
            watch.number = number

    def _number_events(self, events: list[tuple[float, int, Op | WatchRecord | Delivery]]) -> None:
        """Order invocations (0), deliveries (1) and returns (2) by their times."""
        events.sort(key=lambda event: event[:2])
        for order, (_, rank, each) in enumerate(events, 1):
            if isinstance(each, Delivery):
                each.order = order
            elif rank == 0:
                each.began = order
            elif isinstance(each, Op):
                each.ended = order
        self._events = len(events)

    # --- Operations ------------------------------------------------------------------------------------------------

    def begin(
        self,
        client: str,
        request: Request,
        at: float,
        *,
        consistency: Consistency = "linearizable",
        member: str = "",
    ) -> Op:
        """Note an invocation; until one of the others is called its outcome is unknown.

        Args:
            client: Who asks.
            request: What is asked.
            at: When, in seconds.
            consistency: Of a read.
            member: Who serves it, if it can be no other: reads of one member's own state never go backwards. Another
                life of a member is another member.
        """
        op = Op(len(self.ops), client, request, at, self._next(), consistency, member)
        self.ops.append(op)
        return op

    def ok(self, op: Op, result: Result, at: float) -> None:
        """It was answered."""
        self._end(op, Outcome.OK, at)
        op.result = result

    def failed(self, op: Op, error: PyraftkvError, at: float) -> None:
        """It was refused, and has not taken effect and never will."""
        self._end(op, Outcome.FAILED, at)
        op.error = error

    def unknown(self, op: Op, at: float, error: PyraftkvError | None = None) -> None:
        """The caller does not know, and will not."""
        self._end(op, Outcome.UNKNOWN, at)
        op.error = error or MaybeApplied()

    def _end(self, op: Op, outcome: Outcome, at: float) -> None:
        assert op.ended is None, f"{op} has ended before"
        op.outcome, op.returned, op.ended = outcome, at, self._next()

    # --- Watches ---------------------------------------------------------------------------------------------------

    def watch(
        self,
        client: str,
        key: bytes,
        at: float,
        *,
        end: bytes = SINGLE_KEY,
        start_revision: int = 0,
        prev_kv: bool = False,
        no_put: bool = False,
        no_delete: bool = False,
    ) -> WatchRecord:
        """Note that a watch was opened, with the store's own notation of a range."""
        number = len(self.watches)
        record = WatchRecord(number, client, key, end, start_revision, prev_kv, no_put, no_delete, at, self._next())
        self.watches.append(record)
        return record

    def delivered(self, watch: WatchRecord, events: list[Event], at: float, *, revision: int = 0) -> None:
        """Note events that were handed out; with ``revision``, everything up to it has been with them."""
        watch.deliveries.append(Delivery(at, self._next(), events, revision))

    def bookmark(self, watch: WatchRecord, revision: int, at: float) -> None:
        """Note the promise that everything up to ``revision`` has been handed out."""
        watch.deliveries.append(Delivery(at, self._next(), revision=revision))

    def placed(self, watch: WatchRecord, revision: int, at: float) -> None:
        """Note the promise that everything after ``revision`` will be handed out (`Watch.synced`)."""
        watch.deliveries.append(Delivery(at, self._next(), placed_revision=revision))

    def cancelled(self, watch: WatchRecord, resume_revision: int) -> None:
        """Note that the watch ended with `WatchCancelled`."""
        watch.resume_revision = resume_revision
