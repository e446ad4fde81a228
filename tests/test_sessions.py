"""Exactly once: what a session remembers, for how long, and what it says when it no longer knows."""

from __future__ import annotations

import random

import pytest

from pyraftkv import codec, errors, sessions
from pyraftkv.sessions import EXPIRED, REUSED, Outcome, Refusal, Sessions
from pyraftkv.store.values import DeleteResult, KeyValue, PutResult, RangeResult, TxnResult
from pyraftkv.writes import WINDOW_MAX


def opened(*ids: int) -> Sessions:
    """Return a table with these sessions open."""
    table = Sessions()
    for id_ in ids:
        table.open(id_)
    return table


def recall(table: Sessions, session_id: int, sequence: int, acked_below: int, fingerprint: int) -> Outcome | None:
    """Look a command up, as a replica does."""
    session = table.use(session_id)
    return session.recall(sequence, acked_below, fingerprint) if session is not None else EXPIRED


def remember(table: Sessions, session_id: int, sequence: int, fingerprint: int, outcome: Outcome) -> None:
    """Keep what a command came to, as a replica does."""
    session = table.use(session_id)
    assert session is not None
    session.remember(sequence, fingerprint, outcome)


def through_a_snapshot(table: Sessions) -> Sessions:
    """Return what a snapshot of the table restores."""
    restored = Sessions()
    for part in sessions.dump(table.pin()):
        restored.load(codec.decode_table(codec.encode_table(part)))
    return restored


def heavy(revision: int, size: int) -> PutResult:
    """Return an outcome that carries this many bytes."""
    return PutResult(revision, KeyValue(b"k", b"v" * size, 1, 1, 1))


KV = KeyValue(b"k", b"v" * 1000, 1, 1, 1)


def test_a_command_is_executed_once() -> None:
    """The first meeting says "execute", every later one gives the outcome of the first."""
    table = opened(7)
    assert recall(table, 7, 1, 1, 111) is None
    outcome = PutResult(5)
    remember(table, 7, 1, 111, outcome)
    assert recall(table, 7, 1, 1, 111) is outcome
    assert table.outcome(7, 1) is outcome
    assert table.outcome(7, 2) is None
    assert table.outcome(8, 1) is None


def test_another_command_under_a_known_sequence_is_refused() -> None:
    """A sequence number names one command; other bytes under it are the caller's mistake, and are not executed."""
    table = opened(7)
    remember(table, 7, 1, 111, PutResult(5))
    assert recall(table, 7, 1, 1, 222) is REUSED


def test_an_unknown_session_is_refused_as_maybe_applied() -> None:
    """It may have been evicted after it executed the command: nothing is executed."""
    assert recall(opened(), 7, 1, 1, 111) is EXPIRED
    assert isinstance(EXPIRED.error(), errors.MaybeApplied)
    assert EXPIRED.error() is not EXPIRED.error()


def test_what_is_acknowledged_is_forgotten_and_never_executed_again() -> None:
    """Below `acked_below` outcomes are dropped; a late copy of such a command is refused, not executed."""
    table = opened(7)
    for sequence in range(1, 6):
        assert recall(table, 7, sequence, 1, sequence) is None
        remember(table, 7, sequence, sequence, PutResult(sequence))
    assert recall(table, 7, 6, 4, 6) is None
    assert recall(table, 7, 3, 4, 3) is EXPIRED
    assert recall(table, 7, 4, 4, 4) == PutResult(4)
    assert recall(table, 7, 9, 10**12, 9) is None, "a leap is no loop over everything between"
    assert recall(table, 7, 5, 1, 5) is EXPIRED


def test_a_command_never_met_below_the_floor_is_not_executed() -> None:
    """The owner gave it up (its deadline passed) and said so: the copy that still travels must do nothing."""
    table = opened(7)
    assert recall(table, 7, 2, 2, 2) is None
    assert recall(table, 7, 1, 1, 1) is EXPIRED


def test_outcomes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over `RESULTS_MAX` the oldest outcomes go, and their commands are refused from then on."""
    monkeypatch.setattr(sessions, "RESULTS_MAX", 8)
    table = opened(7)
    for sequence in range(1, 101):
        assert recall(table, 7, sequence, 1, sequence) is None
        remember(table, 7, sequence, sequence, PutResult(sequence))
        known = [s for s in range(1, sequence + 1) if table.outcome(7, s) is not None]
        assert len(known) <= 8
        assert known == list(range(known[0], sequence + 1)), "the newest are kept"
        assert all(recall(table, 7, s, 1, s) is EXPIRED for s in range(1, known[0]))


def test_sessions_are_bounded_and_the_least_recently_used_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One session more than `SESSIONS_MAX` evicts the one whose last command stands farthest back in the log."""
    monkeypatch.setattr(sessions, "SESSIONS_MAX", 3)
    table = opened(1, 2, 3)
    recall(table, 1, 1, 1, 1)
    table.open(4)
    assert len(table) == 3
    assert recall(table, 2, 1, 1, 1) is EXPIRED
    assert [recall(table, id_, 1, 1, 1) for id_ in (1, 3, 4)] == [None, None, None]


def test_what_is_remembered_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. Over `RESULTS_BYTES_MAX` the oldest outcomes go, and their commands are refused from then on.

    2. The newest stays, however long it is: its owner has not heard of it yet.
    3. A table that went through a snapshot forgets the same.
    """
    monkeypatch.setattr(sessions, "RESULTS_BYTES_MAX", 10_000)
    table = opened(7)
    restored = opened(7)
    known: list[int] = []
    for sequence in range(1, 101):
        outcome = heavy(sequence, 1000 if sequence != 50 else 50_000)
        restored = through_a_snapshot(restored)
        for each in (table, restored):
            assert recall(each, 7, sequence, 1, sequence) is None
            remember(each, 7, sequence, sequence, outcome)
        assert restored.pin() == table.pin()
        known = [s for s in range(1, sequence + 1) if table.outcome(7, s) is not None]
        assert known == list(range(known[0], sequence + 1)), "the newest are kept"
        assert len(known) <= 10
        assert all(recall(table, 7, s, 1, s) is EXPIRED for s in range(1, known[0]))
    assert len(known) >= 5


def test_what_is_acknowledged_no_longer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner that hears of its outcomes and says so never meets the bound, by steps or by a leap."""
    monkeypatch.setattr(sessions, "RESULTS_BYTES_MAX", 10_000)
    table = opened(7)
    session = table.use(7)
    assert session is not None
    for sequence in [*range(1, 50), *range(1000, 1050)]:
        assert recall(table, 7, sequence, max(1, sequence - 5), sequence) is None
        remember(table, 7, sequence, sequence, heavy(sequence, 1000))
        assert session.size_bytes == sum(size for _, _, size in session.results.values())
    assert sorted(session.results) == list(range(1044, 1050))


@pytest.mark.parametrize(
    "outcome",
    [
        PutResult(1, KV),
        DeleteResult(1, 2, [KV, KV]),
        RangeResult(1, [KV], False, 1),
        TxnResult(1, True, [PutResult(1), RangeResult(1, [KV], False, 1)]),
        Refusal.of(errors.RevisionMismatch("no", key=b"k" * 1000, mod_revision=1)),
    ],
)
def test_whatever_an_outcome_carries_counts(outcome: Outcome) -> None:
    """Key-values wherever they stand, and the keys in errors."""
    table = opened(7)
    remember(table, 7, 1, 111, outcome)
    [(_, _, results)] = table.pin()
    assert results[1][2] >= 1000


def test_the_texts_of_an_error_do_not_count_by_their_length() -> None:
    """Pythons differ in what they say of the same mistake, and in the names of a few errors; members forget alike."""
    weights = set()
    for text, kind in [("unhashable type: 'list'", "error"), ("cannot use 'list' as a dict key" * 9, "PatternError")]:
        table = opened(7)
        remember(table, 7, 1, 111, Refusal.of(errors.OperationRefused(text, machine="m", error=kind)))
        [(_, _, results)] = table.pin()
        weights.add(results[1][2])
    assert len(weights) == 1
    assert min(weights) * WINDOW_MAX <= sessions.RESULTS_BYTES_MAX, "a window of refusals is remembered"


def test_a_dump_comes_in_parts() -> None:
    """A part ends by number or by bytes; a session goes on in the next one; nothing open, nothing dumped."""
    assert list(sessions.dump(opened().pin())) == []
    table = opened(7, 8, 9)
    for sequence in range(1, 2001):
        remember(table, 7, sequence, sequence, PutResult(sequence))
    for sequence in range(1, 9):
        remember(table, 8, sequence, sequence, heavy(sequence, 100_000))
    parts = list(sessions.dump(table.pin()))
    assert max(sum(len(outcomes) for _, _, outcomes in part) for part in parts) == sessions.PART_OUTCOMES_MAX
    assert max(len(codec.encode_table(part)) for part in parts) <= sessions.PART_BYTES_MAX + 110_000
    assert through_a_snapshot(table).pin() == table.pin()


@pytest.mark.parametrize("seed", range(5))
def test_a_table_survives_a_snapshot(seed: int) -> None:
    """A table that went through a snapshot answers as the one that did not, in whatever order it is asked."""
    rng = random.Random(seed)
    table = opened(1, 2, 3)
    for number in range(1, 60):
        session, sequence = rng.randint(1, 3), rng.randint(1, 20)
        if recall(table, session, sequence, max(1, sequence - 8), sequence) is None:
            refused = Refusal.of(errors.RevisionMismatch("no", key=b"k", mod_revision=number))
            outcomes: list[Outcome] = [PutResult(number), refused, number]
            remember(table, session, sequence, sequence, rng.choice(outcomes))
    restored = through_a_snapshot(table)
    assert restored.pin() == table.pin()
    for session in (1, 2, 3):
        for sequence in range(1, 21):
            assert recall(restored, session, sequence, 1, sequence) == recall(table, session, sequence, 1, sequence)


def test_a_snapshot_with_something_that_is_no_result_is_corrupt() -> None:
    """What a session remembers is a result or a refusal, nothing else."""
    with pytest.raises(errors.SnapshotCorruption):
        Sessions().load([[7, 1, [[1, 111, codec.encode_result(None)]]]])
