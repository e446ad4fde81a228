"""Exactly once: what a session remembers, for how long, and what it says when it no longer knows."""

from __future__ import annotations

import random

import pytest

from pyraftkv import codec, errors, sessions
from pyraftkv.sessions import EXPIRED, REUSED, Outcome, Refusal, Sessions
from pyraftkv.store.values import PutResult


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


@pytest.mark.parametrize("seed", range(5))
def test_a_table_survives_a_snapshot(seed: int) -> None:
    """A table that went through a snapshot answers as the one that did not, in whatever order it is asked."""
    rng = random.Random(seed)
    table = opened(1, 2, 3)
    for number in range(1, 60):
        session, sequence = rng.randint(1, 3), rng.randint(1, 20)
        if recall(table, session, sequence, max(1, sequence - 8), sequence) is None:
            refused = Refusal.of(errors.RevisionMismatch("no", key=b"k", mod_revision=number))
            remember(table, session, sequence, sequence, rng.choice([PutResult(number), refused, number]))
    restored = Sessions.load(codec.decode_table(codec.encode_table(table.dump())))
    assert restored.dump() == table.dump()
    for session in (1, 2, 3):
        for sequence in range(1, 21):
            assert recall(restored, session, sequence, 1, sequence) == recall(table, session, sequence, 1, sequence)


def test_a_snapshot_with_something_that_is_no_result_is_corrupt() -> None:
    """What a session remembers is a result or a refusal, nothing else."""
    with pytest.raises(errors.SnapshotCorruption):
        Sessions.load([[7, 1, [[1, 111, codec.encode_result(None)]]]])
