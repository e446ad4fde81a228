"""One test per rule of the Raft paper's Figure 2 and of the sentences around it (§5.1 to §5.6, §8)."""

from __future__ import annotations

import pytest

from pyraftkv.core import Raft
from pyraftkv.core.messages import (
    AppendRequest,
    AppendResponse,
    CommitNotice,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    VoteRequest,
    VoteResponse,
)
from pyraftkv.core.ready import Campaign, Propose, Saved, Tick
from pyraftkv.core.types import CANDIDATE, FOLLOWER, LEADER, PRE_CANDIDATE, Role
from tests.core.machines import (
    ELECTION_TICKS,
    ack,
    append,
    entries,
    lead,
    log_terms,
    machine,
    only,
    snapshot,
    step,
    step_all,
)

# --- Rules for all servers (§5.1) ------------------------------------------------------------------------------------


def _in_role(role: Role) -> Raft:
    raft = machine(1, term=1, pre_vote=role is PRE_CANDIDATE)
    if role is LEADER:
        lead(raft)
    elif role is not FOLLOWER:
        step_all(raft, Campaign())
    assert raft.role is role
    return raft


@pytest.mark.parametrize("role", list(Role))
def test_a_higher_term_is_adopted_and_makes_a_follower(role: Role) -> None:
    """§5.1: if RPC contains term T > currentTerm, set currentTerm = T and convert to follower."""
    raft = _in_role(role)
    ready = step(raft, Heartbeat(1, 2, raft.term + 3, 0, 0))
    assert (raft.role, raft.leader) == (FOLLOWER, 2)
    assert ready.save is not None
    assert ready.save.hard_state is not None
    assert (ready.save.hard_state.term, ready.save.hard_state.vote) == (raft.term, 0)


@pytest.mark.parametrize("role", list(Role))
def test_a_lower_term_changes_nothing_but_is_answered_with_the_current_one(role: Role) -> None:
    """§5.1: a server rejects a request with a stale term number; Figure 2: reply false if term < currentTerm."""
    raft = _in_role(role)
    before = raft.status()
    stale = raft.term - 1
    sent = step(
        raft, append(raft, 1, 1, 1, term=stale, commit=2), VoteRequest(1, 3, stale, 9, 9, False, False)
    ).messages
    assert raft.status() == before
    assert only(sent, AppendResponse) == [AppendResponse(2, 1, raft.term, 1, True, 0, 0)]
    assert only(sent, VoteResponse) == [VoteResponse(3, 1, raft.term, False, False)]


@pytest.mark.parametrize("role", list(Role))
def test_a_snapshot_of_an_earlier_term_is_dropped(role: Role) -> None:
    """Figure 13: a leader whose term is over replaces nobody's state."""
    raft = _in_role(role)
    before = raft.status()
    ready = step(raft, InstallSnapshot(1, 2, raft.term - 1, snapshot(9, raft.term - 1)))
    assert (raft.status(), ready.restore) == (before, None)


def test_servers_start_up_as_followers() -> None:
    """§5.2: when servers start up, they begin as followers, with what they had stored."""
    raft = machine(1, 2, term=5, vote=3, commit=1)
    assert (raft.role, raft.term, raft.vote, raft.commit, raft.last_index) == (FOLLOWER, 5, 3, 1, 2)


def test_committed_entries_are_applied_in_order() -> None:
    """Figure 2: if commitIndex > lastApplied, apply log[lastApplied]."""
    raft = machine(1, 1, 1, term=1, commit=3)
    assert step(raft).committed == entries(1, 1, 1, 1)
    assert step(raft).committed == []


# --- Elections (§5.2) ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [FOLLOWER, CANDIDATE])
def test_an_election_timeout_starts_an_election(role: Role) -> None:
    """§5.2: it increments its term, votes for itself, and issues RequestVote RPCs to each of the others."""
    raft = _in_role(role)
    term, sent = raft.term, list[Message]()
    for _ in range(2 * ELECTION_TICKS):
        if raft.term == term:
            sent = step_all(raft, Tick())
    assert (raft.role, raft.term, raft.vote) == (CANDIDATE, term + 1, 1)
    expected = [VoteRequest(to, 1, term + 1, 1, 1, False, False) for to in (2, 3)]
    assert only(sent, VoteRequest) == expected


def test_election_timeouts_are_drawn_from_a_fixed_interval() -> None:
    """§5.2: election timeouts are chosen randomly from a fixed interval, here [election_ticks, 2 * election_ticks)."""
    raft = machine()
    timeouts = set[int]()
    for _ in range(50 * ELECTION_TICKS):
        term, ticks = raft.term, 0
        while raft.term == term:
            step_all(raft, Tick())
            ticks += 1
        timeouts.add(ticks)
    assert timeouts == set(range(ELECTION_TICKS, 2 * ELECTION_TICKS))


@pytest.mark.parametrize(
    ("size", "votes", "role"),
    [
        (1, {}, LEADER),
        (3, {2: True}, LEADER),
        (3, {2: True, 3: False}, LEADER),
        (3, {2: False, 3: False}, FOLLOWER),
        (3, {2: False}, CANDIDATE),
        (5, {2: True}, CANDIDATE),
        (5, {2: True, 3: True}, LEADER),
        (5, {2: True, 3: False, 4: False, 5: False}, FOLLOWER),
    ],
)
def test_a_candidate_wins_with_a_majority(size: int, votes: dict[int, bool], role: Role) -> None:
    """§5.2: a candidate wins an election if it receives votes from a majority of the servers for the same term."""
    raft = machine(size=size)
    step_all(raft, Campaign())
    for node, granted in votes.items():
        step_all(raft, VoteResponse(1, node, raft.term, False, granted))
    assert (raft.role, raft.term) == (role, 1)


def test_one_vote_counts_once() -> None:
    """§5.2: a majority is of servers, not of messages."""
    raft = machine(size=5)
    step_all(raft, Campaign())
    step_all(raft, *[VoteResponse(1, 2, 1, False, True)] * 3)
    assert raft.role is CANDIDATE


def test_a_vote_that_was_counted_is_not_taken_back() -> None:
    """§5.2: one word of each server counts, the first that is heard; another one was on its way for longer."""
    raft = machine(size=5)
    step_all(raft, Campaign())
    step_all(raft, VoteResponse(1, 2, 1, False, True), VoteResponse(1, 2, 1, False, False))
    step_all(raft, VoteResponse(1, 3, 1, False, True))
    assert raft.role is LEADER


def test_a_vote_of_another_term_does_not_count() -> None:
    """§5.2: ... for the same term."""
    raft = machine(term=4)
    step_all(raft, Campaign())
    step_all(raft, Campaign())
    assert (raft.role, raft.term) == (CANDIDATE, 6)
    step_all(raft, VoteResponse(1, 2, 5, False, True))
    assert raft.role is CANDIDATE


@pytest.mark.parametrize(("vote", "candidate", "granted"), [(0, 2, True), (0, 3, True), (2, 2, True), (3, 2, False)])
def test_at_most_one_vote_per_term_first_come_first_served(vote: int, candidate: int, granted: bool) -> None:
    """§5.2: each server will vote for at most one candidate in a given term."""
    raft = machine(term=1, vote=vote)
    sent = step_all(raft, VoteRequest(1, candidate, 1, 0, 0, False, False))
    assert sent == [VoteResponse(candidate, 1, 1, False, granted)]
    assert raft.vote == (candidate if granted else vote)


def test_a_candidate_and_a_leader_vote_for_nobody_else() -> None:
    """§5.2: they have voted for themselves."""
    for role in (CANDIDATE, LEADER):
        raft = _in_role(role)
        request = VoteRequest(1, 2, raft.term, 99, 99, False, False)
        assert step_all(raft, request) == [VoteResponse(2, 1, raft.term, False, False)]


@pytest.mark.parametrize("role", [PRE_CANDIDATE, CANDIDATE])
@pytest.mark.parametrize("kind", ["append", "heartbeat"])
def test_a_candidate_returns_to_follower_when_another_leads_its_term(role: Role, kind: str) -> None:
    """§5.2: if the leader's term is at least as large, the candidate recognizes it and returns to follower state."""
    raft = _in_role(role)
    step(raft, append(raft, 1, 1) if kind == "append" else Heartbeat(1, 2, raft.term, 0, 0))
    assert (raft.role, raft.leader) == (FOLLOWER, 2)


def test_a_leader_sends_heartbeats_to_all() -> None:
    """§5.2: leaders send periodic heartbeats to all followers in order to maintain their authority."""
    raft = lead(machine())
    sent = step(raft, Tick()).messages
    assert only(sent, Heartbeat) == [Heartbeat(to, 1, 1, 0, 0) for to in (2, 3)]


def test_a_silent_leader_waits_for_the_heartbeat_interval() -> None:
    """§5.2: heartbeats are periodic; between two of them a leader with nothing to send says nothing."""
    raft = lead(machine(heartbeat_ticks=3))
    step_all(raft, *[ack(raft, node, raft.last_index) for node in (2, 3)])
    sent = [len(only(step(raft, Tick()).messages, Heartbeat)) for _ in range(6)]
    assert sent == [0, 0, 2, 0, 0, 2]


def test_a_heartbeat_starts_the_election_clock_again() -> None:
    """§5.2: a server remains in follower state as long as it receives valid RPCs from a leader or candidate."""
    raft = machine(term=1)
    for _ in range(5 * ELECTION_TICKS):
        step_all(raft, Tick(), Heartbeat(1, 2, 1, 0, 0))
    assert (raft.role, raft.term) == (FOLLOWER, 1)


def test_a_vote_that_is_given_starts_the_election_clock_again() -> None:
    """Figure 2, followers: an election timeout without granting a vote to a candidate."""
    raft = machine(1)
    last_ticks = [Tick()] * (raft._election_timeout - 1)
    step_all(raft, *last_ticks, VoteRequest(1, 2, raft.term, 1, 1, False, False))
    assert raft.vote == 2
    step_all(raft, *last_ticks)
    assert raft.role is FOLLOWER
    step_all(raft, Tick())
    assert raft.role is CANDIDATE


# --- Log replication (§5.3) ------------------------------------------------------------------------------------------


def test_a_leader_appends_a_proposal_and_sends_it_to_all() -> None:
    """§5.3: the leader appends the command to its log as a new entry, then issues AppendEntries RPCs in parallel."""
    raft = lead(machine())
    step_all(raft, ack(raft, 2, 1), ack(raft, 3, 1))
    ready = step(raft, Propose([b"x"]))
    for to in (2, 3):
        (request,) = [message for message in only(ready.messages, AppendRequest) if message.to == to]
        assert (request.prev_index, request.prev_term, request.commit) == (1, 1, 1)
        assert [(entry.index, entry.term, entry.payload) for entry in request.entries] == [(2, 1, b"x")]
    assert ready.save is not None
    assert [entry.payload for entry in ready.save.entries] == [b"x"]


def test_a_new_leader_knows_nothing_of_its_followers() -> None:
    """Figure 2: nextIndex begins at the leader's last log index + 1, matchIndex at 0, after every election anew."""
    raft = lead(machine(1, 1, 1))
    step_all(raft, ack(raft, 2, raft.last_index), Propose([b"a"]))
    assert raft.status().peers[2].match > 0
    step_all(raft, Heartbeat(1, 3, raft.term + 1, 0, 0))
    last_index = raft.last_index
    lead(raft)
    assert [(peer.match, peer.next) for peer in raft.status().peers.values()] == [(0, last_index + 1)] * 2


def test_a_leader_never_overwrites_its_own_log() -> None:
    """Figure 3, leader append-only: not even if somebody claims to lead its term."""
    raft = lead(machine(1, 1))
    before = raft.status()
    step_all(raft, append(raft, 1, 1, raft.term, raft.term))
    assert raft.status() == before


def test_an_entry_is_committed_once_a_majority_has_it() -> None:
    """§5.3: a log entry is committed once the leader that created it has replicated it on a majority."""
    raft = lead(machine(size=5))
    step_all(raft, Propose([b"x"]))
    step_all(raft, ack(raft, 2, 2))
    assert raft.commit == 0
    step_all(raft, ack(raft, 3, 2))
    assert raft.commit == 2


def test_a_commit_takes_preceding_entries_with_it() -> None:
    """§5.3: this also commits all preceding entries in the leader's log, those of previous leaders included."""
    raft = lead(machine(1, 2, 3))
    ready = step(raft, ack(raft, 2, 4))
    assert [(entry.index, entry.term) for entry in ready.committed] == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_followers_learn_the_commit_index_and_apply() -> None:
    """§5.3: the leader includes the highest index it knows to be committed in future AppendEntries RPCs.

    When there is nothing to append, a notice of its own says so.
    """
    raft = machine(1, 1, term=1)
    ready = step(raft, append(raft, 2, 1, 1, commit=2))
    assert ready.committed == entries(1, 1, 1)
    raft = lead(machine())
    assert step(raft, ack(raft, 2, 1)).again
    (notice,) = only(step(raft).messages, CommitNotice)
    assert (notice.index, notice.index_term) == (1, raft.term)
    raft = machine(1, 1, term=1)
    assert step(raft, CommitNotice(raft.id, 2, 1, 2, 1)).committed == entries(1, 1, 1)


@pytest.mark.parametrize(
    ("prev_index", "prev_term", "accepted"),
    [(0, 0, True), (1, 1, True), (2, 2, True), (1, 2, False), (2, 1, False), (3, 3, False), (3, 2, False)],
)
def test_the_consistency_check(prev_index: int, prev_term: int, accepted: bool) -> None:
    """§5.3: if the follower does not find an entry with the same index and term, it refuses the new entries."""
    raft = machine(1, 2)
    sent = step_all(raft, append(raft, prev_index, prev_term, 3, term=3))
    (response,) = only(sent, AppendResponse)
    assert response.rejected is not accepted
    assert response.index == (prev_index + 1 if accepted else prev_index)
    assert log_terms(raft) == ([*[1, 2][:prev_index], 3] if accepted else [1, 2])


@pytest.mark.parametrize(
    ("prev_index", "prev_term", "terms", "log", "saved"),
    [
        (2, 2, [3], [1, 2, 3], [3]),
        (1, 1, [3, 4], [1, 3, 4], [2, 3]),
        (0, 0, [1], [1, 2], []),
        (0, 0, [3], [3], [1]),
        (0, 0, [1, 2], [1, 2], []),
        (0, 0, [1, 2, 2], [1, 2, 2], [3]),
    ],
)
def test_a_follower_overwrites_conflicts_and_only_conflicts(
    prev_index: int, prev_term: int, terms: list[int], log: list[int], saved: list[int]
) -> None:
    """Figure 2, AppendEntries 3 and 4: delete an entry that conflicts and all that follow; append what is missing."""
    raft = machine(1, 2)
    ready = step(raft, append(raft, prev_index, prev_term, *terms, term=4))
    assert log_terms(raft) == log
    assert ready.save is not None
    assert [entry.index for entry in ready.save.entries] == saved


@pytest.mark.parametrize(
    ("prev_index", "terms", "leader_commit", "commit"),
    [(0, [1], 1, 1), (0, [1], 2, 1), (0, [1, 1], 3, 2), (1, [], 2, 1), (2, [], 2, 2), (2, [], 1, 1), (1, [1], 0, 0)],
)
def test_a_follower_commits_at_most_the_last_new_entry(
    prev_index: int, terms: list[int], leader_commit: int, commit: int
) -> None:
    """Figure 2, AppendEntries 5: set commitIndex = min(leaderCommit, index of last new entry)."""
    raft = machine(1, 1, term=2)
    step(raft, append(raft, prev_index, 1 if prev_index else 0, *terms, commit=leader_commit))
    assert raft.commit == commit


@pytest.mark.parametrize(
    "follower",
    [
        [1, 1, 1, 4, 4, 5, 5, 6, 6],
        [1, 1, 1, 4],
        [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        [1, 1, 1, 4, 4, 4, 4],
        [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ],
)
def test_a_leader_brings_followers_into_sync_with_its_own_log(follower: list[int]) -> None:
    """§5.3, Figure 7: whatever a follower's log holds, the leader finds where they agree and overwrites the rest."""
    leader = lead(machine(1, 1, 1, 4, 4, 5, 5, 6, 6, 6, term=7))
    other = machine(*follower, node=2, term=7)
    to_other = [message for message in step(leader, Tick()).messages if message.to == 2]
    for _ in range(20):
        to_leader = [message for message in step_all(other, *to_other) if message.to == 1]
        to_other = [message for message in step_all(leader, *to_leader) if message.to == 2]
    assert log_terms(other) == log_terms(leader) == [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 8]


def test_a_leader_skips_a_term_per_rejection() -> None:
    """§5.3, end: one rejected RPC is enough for each term with conflicting entries."""
    leader = lead(machine(1, *[5] * 50))
    other = machine(1, *[2] * 20, *[3] * 30, *[4] * 40, node=2)
    rejections = 0
    to_other = [message for message in step(leader, Tick()).messages if message.to == 2]
    for _ in range(10):
        to_leader = [message for message in step_all(other, *to_other) if message.to == 1]
        rejections += sum(message.rejected for message in only(to_leader, AppendResponse))
        to_other = [message for message in step_all(leader, *to_leader) if message.to == 2]
    assert log_terms(other) == log_terms(leader)
    assert rejections <= 2


# --- Safety (§5.4) ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "last_index", "last_term", "granted"),
    [
        ([1], 1, 1, True),
        ([1], 2, 1, True),
        ([1, 1], 1, 1, False),
        ([1, 1], 1, 2, True),
        ([1, 2], 1, 2, False),
        ([1, 2], 3, 1, False),
        ([2], 5, 1, False),
        ([1, 2], 2, 2, True),
    ],
)
@pytest.mark.parametrize("pre", [False, True])
def test_a_vote_goes_only_to_an_up_to_date_log(
    log: list[int], last_index: int, last_term: int, granted: bool, pre: bool
) -> None:
    """§5.4.1: the voter denies its vote if its own log is more up-to-date than that of the candidate."""
    raft = machine(*log, term=3)
    (response,) = step_all(raft, VoteRequest(1, 2, 4, last_index, last_term, pre, False))
    assert isinstance(response, VoteResponse)
    assert (response.granted, response.pre) == (granted, pre)


def test_only_entries_of_the_current_term_commit_by_counting() -> None:
    """§5.4.2, Figure 8: Raft never commits log entries from previous terms by counting replicas."""
    raft = lead(machine(1, 2, term=2))
    step_all(raft, ack(raft, 2, 2), ack(raft, 3, 2))
    assert raft.commit == 0
    step_all(raft, ack(raft, 2, 3))
    assert raft.commit == 3


def test_a_new_leader_appends_an_empty_entry() -> None:
    """§8: each leader commits a blank no-op entry into the log at the start of its term."""
    raft = machine(1, term=1)
    step_all(raft, Campaign())
    ready = step(raft, VoteResponse(1, 2, 2, False, True))
    assert ready.save is not None
    assert [(entry.index, entry.term, entry.payload) for entry in ready.save.entries] == [(2, 2, b"")]


# --- Persistence (Figure 2, "Updated on stable storage before responding to RPCs") -----------------------------------


def test_an_ack_waits_for_the_save() -> None:
    """Figure 2: persistent state is updated on stable storage before responding to RPCs."""
    raft = machine(term=1)
    ready = step(raft, append(raft, 0, 0, 1))
    assert ready.messages == []
    assert ready.save is not None
    assert ready.after_save == ready.save.number
    assert ready.messages_after_save == [AppendResponse(2, 1, 1, 1, False, 0, 0)]


@pytest.mark.parametrize("term", [0, 1])
def test_a_vote_waits_for_the_save(term: int) -> None:
    """Figure 2: votedFor is on stable storage before the response, in a new term and in one that it was in already."""
    raft = machine(term=term)
    ready = step(raft, VoteRequest(1, 2, 1, 0, 0, False, False))
    assert ready.messages == []
    assert ready.save is not None
    assert ready.save.hard_state is not None
    assert (ready.save.hard_state.term, ready.save.hard_state.vote) == (1, 2)
    assert ready.messages_after_save == [VoteResponse(2, 1, 1, False, True)]


def test_a_vote_request_and_the_own_vote_wait_for_the_save() -> None:
    """A request that leaves early can be granted, forgotten in a crash, and the stale grant counted again."""
    raft = machine(size=1)
    ready = step(raft, Campaign())
    assert raft.role is CANDIDATE
    assert ready.save is not None
    step(raft, Saved(ready.save.number))
    assert raft.role is LEADER
    raft = machine()
    ready = step(raft, Campaign())
    assert ready.messages == []
    assert [type(message) for message in ready.messages_after_save] == [VoteRequest, VoteRequest]


def test_the_own_ack_waits_for_the_save() -> None:
    """A leader counts itself only for what is on its disk, alone or among others."""
    raft = lead(machine(size=1))
    assert raft.commit == 1
    ready = step(raft, Propose([b"x"]))
    assert (raft.commit, ready.committed) == (1, [])
    assert ready.save is not None
    ready = step(raft, Saved(ready.save.number))
    assert [entry.payload for entry in ready.committed] == [b"x"]

    raft = lead(machine())
    step_all(raft, ack(raft, 2, 1))
    ready = step(raft, Propose([b"x"]))
    step(raft, ack(raft, 2, 2))
    assert raft.commit == 1, "one disk of three"
    step(raft, ack(raft, 3, 2))
    assert raft.commit == 2, "two disks of three, and neither is the leader's"


def test_a_new_term_is_saved_before_anything_says_it() -> None:
    """Figure 2: currentTerm is on stable storage before responding to RPCs."""
    raft = machine(term=1)
    ready = step(raft, Heartbeat(1, 2, 5, 0, 0), append(raft, 7, 7, term=5))
    assert ready.messages == []
    kinds = [type(message) for message in ready.messages_after_save]
    assert kinds == [HeartbeatResponse, AppendResponse]
    ready = step(raft, Heartbeat(1, 2, 5, 0, 0))
    assert (ready.messages, ready.after_save) == ([], 1), "the save is still under way"
    ready = step(raft, Saved(1), Heartbeat(1, 2, 5, 0, 0))
    assert ready.messages == [HeartbeatResponse(2, 1, 5, 0)]
