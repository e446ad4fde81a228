"""Raft's invariants: each rule accepts what Raft does, and names what it must not do."""

from __future__ import annotations

import pytest

from pyraftkv.core import (
    CANDIDATE,
    FOLLOWER,
    LEADER,
    MEMBERSHIP,
    Entry,
    HardState,
    Membership,
    Role,
    Save,
    SnapshotMeta,
    Status,
)
from pyraftkv.core.messages import AppendResponse, Heartbeat, VoteRequest, VoteResponse
from pyraftkv.log.base import Identity, Recovered
from pyraftkv.sim.check.raft import RaftInvariants, TermLog

MEMBERS = {"a": 1, "b": 2, "c": 3}
VOTERS = Membership(voters=frozenset(MEMBERS.values()))
IDENTITY = Identity(7, 1, 1, 1)


def entries(*terms: int, first: int = 1, payload: bytes = b"x") -> list[Entry]:
    """Return entries of these terms, from index ``first`` on."""
    return [Entry(index, term, payload) for index, term in enumerate(terms, start=first)]


def found(*terms: int, term: int = 0, vote: int = 0, commit: int = 0) -> Recovered:
    """Return what a recovery finds: a log of these terms."""
    return Recovered(IDENTITY, HardState(term or max(terms, default=0), vote, commit), None, entries(*terms), 1)


def marks(
    role: Role, term: int, *, commit: int = 0, applied: int = 0, last: int = 0, members: Membership = VOTERS
) -> Status:
    """Return what is seen of a machine."""
    return Status(1, role, 0, term, 0, commit, applied, last, 1, last, members, True, 0, {})


class Watched:
    """The invariants, and what they complained of."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self.rules = RaftInvariants(MEMBERS, violated=lambda rule, _: self.broken.append(rule))
        self._numbers = 0
        for name in MEMBERS:
            self.rules.started(name, found())

    def save(self, name: str, *new: Entry, term: int, vote: int = 0, done: bool = True) -> int:
        """Let a member save, and the disk do it at once unless told otherwise."""
        self._numbers += 1
        self.rules.saving(name, Save(self._numbers, HardState(term, vote, 0), list(new), None))
        if done:
            self.rules.completed(name, self._numbers)
        return self._numbers

    def replicate(self, *new: Entry, term: int, on: str = "abc") -> None:
        for name in on:
            self.save(name, *new, term=term)

    def elect(self, name: str, term: int, *, by: str = "ab") -> None:
        """Let members vote for one of them."""
        for voter in by:
            self.save(voter, term=term, vote=MEMBERS[name])


@pytest.fixture
def watched() -> Watched:
    """Three members that start with nothing."""
    return Watched()


def test_a_life_as_it_should_be_breaks_no_rule(watched: Watched) -> None:
    """An election, entries on a majority, a commit, and a restart."""
    watched.save("a", term=1, vote=1)
    watched.rules.sending("a", [VoteRequest(2, 1, 1, 0, 0, False, False)])
    watched.save("b", term=1, vote=1)
    watched.rules.sending("b", [VoteResponse(1, 2, 1, False, True)])
    watched.rules.observe("a", marks(LEADER, 1))
    log = entries(1, 1)
    watched.save("a", *log, term=1, vote=1)
    watched.save("b", *log, term=1, vote=1)
    watched.rules.sending("b", [AppendResponse(1, 2, 1, 2, False, 0, 0)])
    watched.rules.observe("a", marks(LEADER, 1, commit=2, applied=2, last=2))
    watched.rules.observe("b", marks(FOLLOWER, 1, commit=2, applied=1, last=2))
    watched.rules.started("b", found(1, 1, vote=1, commit=1))
    watched.rules.observe("b", marks(FOLLOWER, 1, commit=1, applied=1, last=2))
    watched.rules.check_images({"a": found(1, 1, vote=1), "b": found(1, 1, vote=1), "c": None})
    assert watched.broken == []
    assert watched.rules.commit == 2


def test_two_leaders_of_one_term(watched: Watched) -> None:
    """The second one is reported, however long after the first."""
    watched.elect("a", 3)
    watched.rules.observe("a", marks(LEADER, 3))
    watched.rules.observe("a", marks(FOLLOWER, 5))
    assert watched.broken == []
    watched.rules.observe("b", marks(LEADER, 3))
    assert watched.broken == ["election safety", "elected by a quorum"]


def test_a_leader_by_too_few_votes(watched: Watched) -> None:
    """Its own, or a learner's, or a majority of one half of a joint configuration."""
    watched.elect("a", 1, by="a")
    watched.rules.observe("a", marks(LEADER, 1))
    assert watched.broken == ["elected by a quorum"]
    joint = Membership(VOTERS.voters, frozenset({1, 4, 5}))
    watched.elect("a", 2, by="ab")
    watched.rules.observe("a", marks(FOLLOWER, 2, members=joint))
    watched.rules.observe("a", marks(LEADER, 2, members=joint))
    assert len(watched.broken) == 2
    watched.rules.newcomer("d")
    watched.rules.identified("d", 4)
    watched.rules.started("d", found())
    watched.save("d", term=3, vote=1)
    watched.elect("a", 3, by="a")
    members = Membership(frozenset({1, 2}), learners=frozenset({4}))
    watched.rules.observe("a", marks(FOLLOWER, 3, members=members))
    watched.rules.observe("a", marks(LEADER, 3, members=members))
    assert watched.broken == ["elected by a quorum"] * 3


def test_two_votes_in_one_term(watched: Watched) -> None:
    """Also when the first was given in an earlier life."""
    watched.save("c", term=2, vote=1)
    watched.rules.started("c", found(term=2, vote=1))
    watched.save("c", term=2, vote=2)
    assert watched.broken == ["election safety"]


def test_a_term_that_is_saved_after_a_later_one(watched: Watched) -> None:
    """Though what was promised ahead of its turn is not taken back by a save that comes in turn."""
    watched.save("a", term=2)
    watched.rules.started("a", found(term=2))
    watched.save("a", term=2)
    assert watched.broken == []
    watched.save("a", term=1)
    assert watched.broken == ["monotone marks"]


def test_a_leader_that_replaces_its_own_entries(watched: Watched) -> None:
    """A follower may, a leader never."""
    watched.save("a", *entries(1, 1), term=1)
    watched.save("a", *entries(2, first=2), term=2)
    watched.elect("a", 2)
    watched.rules.observe("a", marks(LEADER, 2, last=2))
    assert watched.broken == []
    watched.save("a", *entries(2, first=2), term=2)
    assert watched.broken == ["leader append-only"]


@pytest.mark.parametrize("other", [entries(1, first=2, payload=b"y"), entries(0, 1)])
def test_logs_that_do_not_match(watched: Watched, other: list[Entry]) -> None:
    """Equal index and term, but another payload or another predecessor."""
    watched.save("a", *entries(1, 1), term=1)
    watched.save("b", *entries(1), term=1)
    watched.save("b", *other, term=1)
    assert watched.broken == ["log matching"]


def test_a_leader_without_a_committed_entry(watched: Watched) -> None:
    """Its log ends before what a majority had committed in an earlier term; a stale leader may lack later ones."""
    watched.replicate(*entries(1, 1), term=1, on="ab")
    watched.elect("a", 1)
    watched.rules.observe("a", marks(LEADER, 1, commit=2, last=2))
    watched.save("c", *entries(1), term=1)
    assert watched.broken == []
    watched.elect("c", 2, by="bc")
    watched.rules.observe("c", marks(LEADER, 2, last=1))
    assert watched.broken == ["leader completeness"]


def test_another_entry_committed_at_the_same_index(watched: Watched) -> None:
    """Another term at an index that was committed before, by anybody."""
    watched.replicate(*entries(1, 1), term=1)
    watched.elect("a", 1)
    watched.rules.observe("a", marks(LEADER, 1, commit=2, last=2))
    watched.save("b", *entries(2, first=2), term=2)
    watched.rules.observe("b", marks(FOLLOWER, 2, commit=2, last=2))
    assert watched.broken == ["state-machine safety"]


def test_two_stores_that_differ_after_the_same_entry(watched: Watched) -> None:
    """As one does that applied an entry twice."""
    watched.rules.applied("a", 5, 4)
    watched.rules.applied("b", 5, 4)
    assert watched.broken == []
    watched.rules.applied("c", 5, 5)
    assert watched.broken == ["state-machine safety"]


def test_a_commit_without_a_majority(watched: Watched) -> None:
    """What is handed to the disk and not done does not count; what was replaced does not count either."""
    watched.elect("a", 1, by="ac")
    watched.save("a", *entries(1, 1), term=1)
    number = watched.save("b", *entries(1, 1), term=1, done=False)
    watched.save("c", *entries(1), term=1)
    watched.rules.observe("a", marks(LEADER, 1, commit=2, last=2))
    assert watched.broken == ["quorum before commit"]
    watched.rules.completed("b", number)
    watched.rules.observe("b", marks(FOLLOWER, 1, commit=2, last=2))
    assert watched.broken == ["quorum before commit"]


@pytest.mark.parametrize(
    "later",
    [
        marks(FOLLOWER, 1, commit=2, applied=2, last=3),
        marks(FOLLOWER, 2, commit=1, applied=1, last=3),
        marks(FOLLOWER, 2, commit=2, applied=1, last=3),
        marks(FOLLOWER, 2, commit=2, applied=2, last=1),
    ],
    ids=["term", "commit", "applied", "last"],
)
def test_marks_that_go_back_or_ahead(watched: Watched, later: Status) -> None:
    """Term, commit and applied index never fall within a life, nor lead the log."""
    watched.replicate(*entries(1, 2, 2), term=2)
    watched.rules.observe("a", marks(FOLLOWER, 2, commit=2, applied=2, last=3))
    assert watched.broken == []
    watched.rules.observe("a", later)
    assert watched.broken == ["monotone marks"]


@pytest.mark.parametrize(
    "message",
    [
        VoteRequest(2, 1, 3, 2, 2, False, False),
        VoteResponse(2, 1, 3, False, True),
        VoteResponse(2, 1, 2, False, True),
        AppendResponse(2, 1, 2, 3, False, 0, 0),
        Heartbeat(2, 1, 3, 0, 0),
    ],
)
def test_promises_that_are_not_on_disk(watched: Watched, message: object) -> None:
    """Term 2 and two entries are saved; a save of everything else is under way."""
    watched.save("a", *entries(1, 2), term=2)
    watched.save("a", *entries(3, first=3), term=3, vote=2, done=False)
    watched.rules.sending("a", [message])
    assert watched.broken == ["persist before send"]


def test_promises_of_an_earlier_term_hold_nobody(watched: Watched) -> None:
    """They may leave together with what replaced them, and those who get them know better."""
    watched.save("a", *entries(1, 2), term=3, vote=3)
    watched.rules.sending("a", [VoteRequest(2, 1, 2, 5, 2, False, False), AppendResponse(2, 1, 2, 9, False, 0, 0)])
    watched.rules.sending("a", [VoteRequest(2, 1, 4, 2, 2, True, False), VoteResponse(2, 1, 4, True, True)])
    assert watched.broken == []


def test_a_vote_request_may_leave_together_with_what_replaced_its_log(watched: Watched) -> None:
    """A leader of its term has replaced it, so nobody is elected by that; one of an earlier term decides nothing."""
    watched.save("a", *entries(2, 3, 3), term=4, vote=1)
    watched.save("a", *entries(4, first=3), term=4, vote=1)
    watched.rules.sending("a", [VoteRequest(2, 1, 4, 3, 3, False, False)])
    assert watched.broken == []
    watched.save("b", *entries(2, 3), term=4, vote=2)
    watched.rules.sending("b", [VoteRequest(1, 2, 4, 3, 3, False, False)])
    assert watched.broken == ["persist before send"]


def test_a_start_that_forgot_something(watched: Watched) -> None:
    """The vote, or the last entry. What was under way may be there or not, but not in part."""
    watched.save("a", *entries(1, 1), term=1, vote=2)
    watched.save("a", *entries(2, 2, first=2), term=2, vote=3, done=False)
    for good in (found(1, 1, vote=2), found(1, 2, 2, vote=3)):
        watched.rules.check_images({"a": good})
    assert watched.broken == []
    for bad in (found(1, vote=2), found(1, 1, vote=0), found(1, 2, term=2, vote=3), found(1, 1, term=2, vote=3)):
        watched.rules.check_images({"a": bad})
    assert watched.broken == ["nothing is forgotten"] * 4
    watched.rules.started("a", found(1, vote=2))
    assert len(watched.broken) == 5


def test_committed_and_not_durable(watched: Watched) -> None:
    """A majority must hold what is committed; a disk that is lost for good may have been one of them."""
    watched.replicate(*entries(1, 1), term=1, on="ab")
    watched.rules.observe("a", marks(FOLLOWER, 1, commit=2, last=2))
    watched.rules.check_images({"a": found(1, 1), "b": None, "c": found()})
    assert watched.broken == []
    watched.rules.check_images({"a": found(1, 1), "b": found(1), "c": found()})
    assert watched.broken == ["nothing is forgotten", "committed is durable"]
    watched.rules.lost("b")
    watched.rules.check_images({"a": found(1, 1), "b": found(1), "c": found()})
    assert len(watched.broken) == 2


def test_a_log_of_terms_after_a_snapshot() -> None:
    """What a snapshot covers is there, whatever its terms were; entries replace what stands behind them."""
    log = TermLog(SnapshotMeta(3, 2, VOTERS), entries(2, 3, first=4))
    assert (log.last_index, log.term_at(5), log.term_at(3), log.term_at(6)) == (5, 3, 2, None)
    assert log.has(1, 99)
    assert not log.has(4, 3)
    log.take(Save(1, None, entries(4, first=5), None))
    assert log.agrees(TermLog(None, entries(1, 1, 2, 2, 4)))
    assert not log.agrees(TermLog(None, entries(1, 1, 2, 3, 4)))
    log.take(Save(2, None, entries(5, first=10), SnapshotMeta(9, 5, VOTERS)))
    assert repr(log) == "10@5"


def test_a_candidate_is_no_leader(watched: Watched) -> None:
    """Two of them in one term are nothing unusual."""
    watched.rules.observe("a", marks(CANDIDATE, 3))
    watched.rules.observe("b", marks(CANDIDATE, 3))
    assert watched.broken == []
    assert watched.rules.leaders == {}


def change(index: int, term: int = 1) -> Entry:
    """Return an entry that may change the members."""
    return Entry(index, term, b"change", MEMBERSHIP)


def test_two_changes_under_way(watched: Watched) -> None:
    """A leader may have one that is not committed; a follower that lags may have any number it has not heard of."""
    watched.elect("a", 1)
    watched.save("a", *entries(1), change(2), term=1, vote=1)
    watched.rules.observe("a", marks(LEADER, 1, commit=1, last=2))
    watched.save("b", *entries(1), change(2), change(3), term=1, vote=1)
    watched.rules.observe("b", marks(FOLLOWER, 1, commit=1, last=3))
    assert watched.broken == []
    watched.save("a", change(3), term=1, vote=1)
    watched.rules.observe("a", marks(LEADER, 1, commit=1, last=3))
    assert watched.broken == ["one change at a time"]


def test_a_change_after_the_last_one_is_committed(watched: Watched) -> None:
    """In the same pass even: what counts is what it comes to."""
    watched.elect("a", 1)
    for name in "ab":
        watched.save(name, *entries(1), change(2), term=1, vote=1)
    watched.save("a", change(3), term=1, vote=1)
    watched.rules.observe("a", marks(LEADER, 1, commit=2, last=3))
    assert watched.broken == []
    watched.rules.configured("a", 2, Membership(frozenset({1, 2})))
    watched.rules.configured("b", 2, VOTERS)
    assert watched.broken == ["one configuration per entry"]


def test_a_commit_is_counted_by_the_configuration_in_force(watched: Watched) -> None:
    """That of before the pass, or of after it; a learner's disk and a removed member's are none of its majority."""
    two = Membership(frozenset({1, 2}), learners=frozenset({3}))
    watched.elect("a", 1)
    watched.rules.observe("a", marks(LEADER, 1, last=0))
    watched.replicate(*entries(1, 1), term=1, on="ac")
    watched.rules.observe("a", marks(LEADER, 1, commit=2, last=2, members=two))
    assert watched.broken == []
    watched.replicate(*entries(1, first=3), term=1, on="ac")
    watched.rules.observe("a", marks(LEADER, 1, commit=3, last=3, members=two))
    assert watched.broken == ["quorum before commit"]


def test_a_leader_without_a_vote(watched: Watched) -> None:
    """It was removed, or is a learner by now, and goes on."""
    watched.elect("a", 1, by="abc")
    watched.rules.observe("a", marks(LEADER, 1, members=Membership(frozenset({2, 3}), outgoing=VOTERS.voters)))
    assert watched.broken == []
    watched.rules.observe("a", marks(LEADER, 1, last=1, members=Membership(frozenset({2, 3}))))
    assert watched.broken == ["who leads has a vote"]


def test_a_machine_that_begins_anew_is_another_member(watched: Watched) -> None:
    """What it had does not count, nor what it promised; and it gets an id that nobody had."""
    watched.save("c", *entries(1), term=4, vote=1)
    watched.rules.newcomer("c")
    watched.rules.started("c", found())
    watched.rules.identified("c", 4)
    watched.save("c", term=4, vote=2)
    assert watched.broken == []
    assert watched.rules.name_of(4) == watched.rules.name_of(3) == "c"
    assert watched.rules.name_of(9) is None
    watched.rules.newcomer("c")
    watched.rules.identified("c", 3)
    assert watched.broken == ["an id is used once"]


def test_when_a_removed_member_can_be_done_without(watched: Watched) -> None:
    """When a majority of the others has on disk that the removal is committed, not when they have heard of it."""
    watched.elect("a", 1)
    for name in "abc":
        watched.save(name, *entries(1), change(2), term=1, vote=1)
    watched.rules.observe("a", marks(LEADER, 1, commit=2, applied=2, last=2))
    watched.rules.configured("a", 2, Membership(frozenset({1, 2})))
    assert watched.rules.is_gone("c")
    assert not watched.rules.is_current("c")
    assert not watched.rules.is_gone_for_good("c")
    for number, name in enumerate("ab", start=100):
        assert not watched.rules.is_gone_for_good("c")
        watched.rules.saving(name, Save(number, HardState(1, 1, 2), [], None))
        watched.rules.completed(name, number)
    assert watched.rules.is_gone_for_good("c")
    assert not watched.rules.is_gone_for_good("a")
