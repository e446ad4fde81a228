"""Sessions: how a retried write is applied exactly once (thesis §6.3).

A proposer that does not hear of its command sends it again, perhaps to another leader, so the same command may stand
in the log twice. Every member therefore remembers, per session, what each recent sequence number came to:

1.  A session is opened through the log. Its id is made of the index of the entry that opened it and of a nonce: see
    `session_id_of`.
2.  The first time a sequence number is met its command is applied, and the outcome remembered.
3.  The next time the remembered outcome is returned and nothing is applied.
4.  The owner says with every command which outcomes it has (`acked_below`); those are forgotten.
5.  A command of a session that is unknown, or of a sequence already forgotten, is refused as `SessionExpired`
    (a `MaybeApplied`) and never executed: it may have been applied when it was first met.

Everything here is a function of the log: which session is evicted, and when, depends on log positions alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import field
from typing import Any
from zlib import crc32

from pyraftkv import codec, errors
from pyraftkv._record import record
from pyraftkv.protocol import MembersResult
from pyraftkv.settings import RulesResult
from pyraftkv.statemachine import Operated
from pyraftkv.store.values import (
    DeleteResult,
    KeyValue,
    LoggedResult,
    PutBatchResult,
    PutResult,
    RangeResult,
    TxnResult,
)

SESSIONS_MAX = 4096
"""Sessions kept; one more evicts the one whose last command stands farthest back in the log."""

RESULTS_MAX = 4096
"""Unacknowledged outcomes kept per session; one more forgets the oldest."""

RESULTS_BYTES_MAX = 1 << 20
"""Bytes of keys, values and texts in the outcomes kept per session; over it the oldest are forgotten, save the last."""

RESULT_OVERHEAD_BYTES = 64
"""What a key-value or a response counts in an outcome besides its bytes."""

REFUSAL_TEXT_BYTES = 448
"""What the texts of a refusal count, whatever their length: on different Pythons members have different ones."""

PART_OUTCOMES_MAX = 512
"""Outcomes in one part of a dump: about as many as are encoded, or decoded, in a few milliseconds."""

PART_BYTES_MAX = 256 << 10
"""A part of a dump ends with the outcome that takes it over this."""


@record
class Refusal:
    """A command that came to an error, in the form that it is kept and travels in."""

    name: str
    message: str
    data: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, error: errors.PyraftkvError) -> Refusal:
        return cls(*errors.to_wire(error))

    def error(self) -> errors.PyraftkvError:
        """Return a fresh exception: one instance must never be raised to two callers."""
        return errors.from_wire(self.name, self.message, self.data)


Outcome = LoggedResult | MembersResult | RulesResult | Operated | Refusal | int
"""What a logged command came to; an int is the id of a session just opened, or a number of leases."""

fingerprint_of = crc32
"""Tells two commands apart that claim the same sequence number."""

EXPIRED = Refusal.of(errors.SessionExpired("the session, or this command's outcome, is no longer remembered"))
REUSED = Refusal.of(errors.InvalidRequest("this sequence number was used for another command"))


def session_id_of(*, index: int, nonce: int) -> int:
    """Return the id of the session that the entry at ``index`` opens.

    1. A cluster is wiped and started anew at the same addresses; clients of the old one live on, and number on.
    2. Were an id an index, theirs would be other clients' sessions by now: a put would be answered with the outcome of
       another's, and never be written. Of a nonce of 62 random bits no other cluster has the like.
    3. Were it the nonce alone, a late copy of a registration could open a session again that was evicted, and a retry
       would find its outcome forgotten and be executed twice. No other entry has this index.
    """
    return index ^ nonce


Remembered = tuple[int, Outcome, int]
"""The fingerprint of a command, its outcome, and what that counts towards `RESULTS_BYTES_MAX`."""


class Session:
    """The outcomes that one proposer may still ask for."""

    __slots__ = ("floor", "id", "results", "size_bytes")

    def __init__(self, id_: int, floor: int = 1) -> None:
        self.id = id_
        self.floor = floor
        """Outcomes of sequences below this are forgotten."""
        self.results: dict[int, Remembered] = {}
        """By sequence, in the order they were applied."""
        self.size_bytes = 0
        """What `results` hold, by `_size_bytes`."""

    def recall(self, sequence: int, acked_below: int, fingerprint: int) -> Outcome | None:
        """Return what a command came to before, or None if it is met for the first time and must be executed now.

        Args:
            sequence: The command's number in this session.
            acked_below: What the proposer has the outcomes of.
            fingerprint: Of the command's bytes (`fingerprint_of`): a retry has the same ones.
        """
        known = self.results.get(sequence)
        if known is not None:
            return known[1] if known[0] == fingerprint else REUSED
        if sequence < self.floor:
            return EXPIRED
        if acked_below > self.floor:
            self.forget_below(acked_below)
        return None

    def forget_below(self, acked_below: int) -> None:
        """Drop what the owner has acknowledged. Amortised O(1) per command."""
        results = self.results
        if acked_below - self.floor > len(results):
            for sequence in [s for s in results if s < acked_below]:
                self.size_bytes -= results.pop(sequence)[2]
        else:
            for sequence in range(self.floor, acked_below):
                known = results.pop(sequence, None)
                if known is not None:
                    self.size_bytes -= known[2]
        self.floor = acked_below

    def remember(self, sequence: int, fingerprint: int, outcome: Outcome) -> None:
        """Keep an outcome. Amortised O(log RESULTS_MAX): the window is thinned by a quarter when it is full."""
        self.keep(sequence, fingerprint, outcome)
        if len(self.results) > RESULTS_MAX or self.size_bytes > RESULTS_BYTES_MAX:
            self._thin()

    def keep(self, sequence: int, fingerprint: int, outcome: Outcome) -> None:
        """Take an outcome in, whatever the bounds."""
        size_bytes = 0 if type(outcome) is PutBatchResult else _size_bytes(outcome)  # as most are
        self.results[sequence] = (fingerprint, outcome, size_bytes)
        self.size_bytes += size_bytes

    def _thin(self) -> None:
        """Forget the oldest, down to three quarters of both bounds, or to the last one."""
        results = self.results
        for oldest in sorted(results)[:-1]:
            if len(results) <= RESULTS_MAX * 3 // 4 and self.size_bytes <= RESULTS_BYTES_MAX * 3 // 4:
                return
            self.size_bytes -= results.pop(oldest)[2]
            self.floor = max(self.floor, oldest + 1)


class Sessions:
    """Every open session, the one used least recently (by log position) first."""

    def __init__(self) -> None:
        self._by_id: OrderedDict[int, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_id)

    def open(self, session_id: int) -> None:
        """Open a session, evicting the least recently used one when there are `SESSIONS_MAX`."""
        self._by_id[session_id] = Session(session_id)
        if len(self._by_id) > SESSIONS_MAX:
            self._by_id.popitem(last=False)

    def use(self, session_id: int) -> Session | None:
        """Return a session that a command names, now the one used last; None if it is unknown."""
        session = self._by_id.get(session_id)
        if session is not None:
            self._by_id.move_to_end(session_id)
        return session

    def is_new(self, session_id: int, sequence: int) -> bool:
        """Whether a command has come to nothing yet, as far as the log is applied. The session is not touched."""
        session = self._by_id.get(session_id)
        return session is not None and sequence >= session.floor and sequence not in session.results

    def outcome(self, session_id: int, sequence: int) -> Outcome | None:
        """Return the remembered outcome, or None. For callers that wait while a snapshot is installed."""
        session = self._by_id.get(session_id)
        known = session.results.get(sequence) if session is not None else None
        return known[1] if known is not None else None

    def pin(self) -> Pinned:
        """Copy what is remembered now. Cheap: outcomes never change, so they themselves are not copied."""
        return [(session.id, session.floor, session.results.copy()) for session in self._by_id.values()]

    def load(self, part: list[Any]) -> None:
        """Take in the next part of a `dump`. Raises `SnapshotCorruption`."""
        for session_id, floor, outcomes in part:
            session = self._by_id.get(session_id)
            if session is None:
                session = self._by_id[session_id] = Session(session_id, floor)
            for sequence, fingerprint, plain in outcomes:
                session.keep(sequence, fingerprint, _outcome(plain))


Pinned = list[tuple[int, int, dict[int, Remembered]]]
"""Every session's id, floor and outcomes, at one moment."""


def dump(pinned: Pinned) -> Iterator[list[Any]]:
    """Yield everything as plain values, for a snapshot: in parts, each of which takes a few milliseconds.

    A part is about `PART_BYTES_MAX` long, or as long as its last outcome; a session may go on in the next part.
    """
    rows: list[Any] = []
    outcomes: list[Any]
    count = part_bytes = 0
    for session_id, floor, results in pinned:
        outcomes = []
        rows.append([session_id, floor, outcomes])
        for sequence, (fingerprint, outcome, size_bytes) in results.items():
            outcomes.append([sequence, fingerprint, _plain(outcome)])
            count += 1
            part_bytes += size_bytes
            if count >= PART_OUTCOMES_MAX or part_bytes >= PART_BYTES_MAX:
                yield rows
                outcomes = []
                rows = [[session_id, floor, outcomes]]
                count = part_bytes = 0
    if rows:
        yield rows


def _size_bytes(outcome: Outcome) -> int:
    """Return about what an outcome takes: a function of its value, so that every member forgets the same.

    1. An operation of a user's raises `TypeError`. Python 3.14 says so at greater length than Python 3.11 does.
    2. Were the texts weighed, the member on 3.14 would forget older outcomes earlier than the others do.
    3. A command from among those comes late. It is refused there and applied by the others: their states differ.
    """
    if isinstance(outcome, Refusal):
        keys = [value for value in outcome.data.values() if isinstance(value, bytes)]
        return RESULT_OVERHEAD_BYTES + REFUSAL_TEXT_BYTES + sum([len(key) for key in keys])
    if isinstance(outcome, Operated):
        return RESULT_OVERHEAD_BYTES + len(outcome.result)
    if isinstance(outcome, MembersResult):
        return sum([RESULT_OVERHEAD_BYTES + len(member.name) + len(member.address) for member in outcome.members])
    if isinstance(outcome, RulesResult):
        return RESULT_OVERHEAD_BYTES * (1 + len(outcome.alarms) + len(outcome.changed))
    if isinstance(outcome, TxnResult):
        return sum([RESULT_OVERHEAD_BYTES + _size_bytes(response) for response in outcome.responses])
    kvs: list[KeyValue] = []
    if isinstance(outcome, PutResult):
        kvs = [outcome.prev_kv] if outcome.prev_kv is not None else []
    elif isinstance(outcome, DeleteResult):
        kvs = outcome.prev_kvs
    elif isinstance(outcome, RangeResult):
        kvs = outcome.kvs
    return sum([RESULT_OVERHEAD_BYTES + len(kv.key) + len(kv.value) for kv in kvs])


def _plain(outcome: Outcome) -> Any:
    if isinstance(outcome, Refusal):
        return [outcome.name, outcome.message, [[name, value] for name, value in sorted(outcome.data.items())]]
    return outcome if isinstance(outcome, int) else codec.encode_result(outcome)


def _outcome(plain: Any) -> Outcome:
    if isinstance(plain, bytes):
        result = codec.decode_result(plain)
        if result is None or isinstance(result, int | errors.PyraftkvError):
            raise errors.SnapshotCorruption("a session remembers something that is no result")
        return result
    if isinstance(plain, int):
        return plain
    name, message, pairs = plain
    return Refusal(name, message, dict(pairs))
