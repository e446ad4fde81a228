"""PreVote, CheckQuorum, leases, and who may campaign."""

from __future__ import annotations

import pytest

from pyraftkv.core import Raft
from pyraftkv.core.messages import (
    AppendRequest,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from pyraftkv.core.ready import Applied, Campaign, Saved, TermSaved, Tick
from pyraftkv.core.types import CANDIDATE, FOLLOWER, LEADER, MEMBERSHIP, PRE_CANDIDATE, Entry, Membership
from tests.core.cluster import Cluster
from tests.core.machines import ELECTION_TICKS, append, lead, machine, only, snapshot, step, step_all, voters

# --- PreVote (thesis §9.6) -------------------------------------------------------------------------------------------


def test_a_rehearsal_changes_neither_term_nor_vote() -> None:
    """It asks for the next term, and saves nothing."""
    raft = machine(1, term=3, vote=2, pre_vote=True)
    ready = step(raft, Campaign())
    assert (raft.role, raft.term, raft.vote) == (PRE_CANDIDATE, 3, 2)
    assert ready.save is None
    assert ready.messages == [VoteRequest(to, 1, 4, 1, 1, True, False) for to in (2, 3)]


def test_whoever_is_asked_in_a_rehearsal_promises_nothing() -> None:
    """It may say yes to everybody, in the term that it is in, and saves nothing."""
    raft = machine(1, term=3, pre_vote=True)
    ready = step(raft, *[VoteRequest(1, sender, 4, 1, 1, True, False) for sender in (2, 3)])
    assert ready.messages == [VoteResponse(to, 1, 4, True, True) for to in (2, 3)]
    assert (raft.term, raft.vote, ready.save) == (3, 0, None)


def test_a_yes_to_a_rehearsal_that_was_not_asked_for_does_not_count() -> None:
    """It is of a term that this member did not ask about."""
    raft = machine(term=3, pre_vote=True)
    step(raft, Campaign(), VoteResponse(1, 2, 9, True, True))
    assert (raft.role, raft.term) == (PRE_CANDIDATE, 3)


def test_a_rehearsal_that_is_won_becomes_an_election() -> None:
    """Only then does the term rise."""
    raft = machine(term=3, pre_vote=True)
    step(raft, Campaign())
    ready = step(raft, VoteResponse(1, 2, 4, True, True))
    assert (raft.role, raft.term, raft.vote) == (CANDIDATE, 4, 1)
    assert ready.messages_after_save == [VoteRequest(to, 1, 4, 0, 0, False, False) for to in (2, 3)]


def test_a_rehearsal_that_is_lost_makes_a_follower() -> None:
    """Nobody was disturbed."""
    raft = machine(term=3, pre_vote=True)
    step(raft, Campaign(), VoteResponse(1, 2, 3, True, False), VoteResponse(1, 3, 3, True, False))
    assert (raft.role, raft.term) == (FOLLOWER, 3)


def test_granting_a_rehearsal_promises_nothing() -> None:
    """No save, no vote; the election clock goes on."""
    raft = machine(term=3)
    ready = step(raft, VoteRequest(1, 2, 4, 0, 0, True, False))
    assert ready.messages == [VoteResponse(2, 1, 4, True, True)]
    assert (ready.save, raft.term, raft.vote) == (None, 3, 0)


def test_a_rehearsals_yes_is_not_a_vote() -> None:
    """A late pre-vote response does not count in the election that follows."""
    raft = machine(term=3, pre_vote=True, size=5)
    step_all(raft, Campaign(), VoteResponse(1, 2, 4, True, True), VoteResponse(1, 3, 4, True, True))
    assert raft.role is CANDIDATE
    step_all(raft, VoteResponse(1, 4, 4, True, True), VoteResponse(1, 5, 4, True, True))
    assert raft.role is CANDIDATE
    step_all(raft, VoteResponse(1, 4, 4, False, True), VoteResponse(1, 5, 4, False, True))
    assert raft.role is LEADER


def test_a_vote_is_not_a_rehearsals_yes() -> None:
    """Nor does an answer to a rehearsal for another term."""
    raft = machine(term=3, pre_vote=True)
    step(raft, Campaign(), VoteResponse(1, 2, 3, False, True), VoteResponse(1, 2, 6, True, True))
    assert (raft.role, raft.term) == (PRE_CANDIDATE, 3)


def test_a_rehearsal_behind_in_terms_is_told_the_term() -> None:
    """A member with a smaller term and the best log can still complete an election (etcd#8243)."""
    raft = machine(term=5)
    assert step(raft, VoteRequest(1, 2, 3, 9, 9, True, False)).messages == [VoteResponse(2, 1, 5, True, False)]
    behind = machine(term=2, pre_vote=True)
    step_all(behind, Campaign(), VoteResponse(1, 2, 5, True, False))
    assert (behind.role, behind.term) == (FOLLOWER, 5)


def test_a_rehearsal_is_refused_while_a_leader_is_heard() -> None:
    """Even without CheckQuorum."""
    raft = machine(term=1, check_quorum=False)
    step_all(raft, Heartbeat(1, 2, 1, 0, 0))
    assert step(raft, VoteRequest(1, 3, 2, 9, 9, True, False)).messages == []
    for _ in range(ELECTION_TICKS):
        raft.feed([Tick()])
    assert only(step(raft, VoteRequest(1, 3, 2, 9, 9, True, False)).messages, VoteResponse) == [
        VoteResponse(3, 1, 2, True, True)
    ]


def test_a_refused_candidate_does_not_silence_those_who_could_win() -> None:
    """Its higher term is adopted, but the election clock of who refuses it goes on (Raft §5.2 resets it on a grant)."""
    raft = machine(1, 1, term=1)
    for _ in range(ELECTION_TICKS - 1):
        step_all(raft, Tick())
    step_all(raft, VoteRequest(1, 2, 2, 1, 1, False, False))
    assert (raft.term, raft.vote) == (2, 0)
    for _ in range(ELECTION_TICKS):
        step_all(raft, Tick())
    assert (raft.role, raft.term) == (CANDIDATE, 3)


# --- Leases (CheckQuorum) --------------------------------------------------------------------------------------------


def test_a_vote_request_is_ignored_while_a_leader_is_heard() -> None:
    """Thesis §4.2.3; it does not even raise the term."""
    raft = machine(term=1)
    step_all(raft, Heartbeat(1, 2, 1, 0, 0))
    assert step_all(raft, VoteRequest(1, 3, 7, 9, 9, False, False)) == []
    assert raft.term == 1
    for _ in range(ELECTION_TICKS):
        raft.feed([Tick()])
    assert VoteResponse(3, 1, 7, False, True) in step_all(raft, VoteRequest(1, 3, 7, 9, 9, False, False))


def test_without_check_quorum_a_vote_request_is_heard() -> None:
    """The paper's plain rule."""
    raft = machine(term=1, check_quorum=False)
    step_all(raft, Heartbeat(1, 2, 1, 0, 0), VoteRequest(1, 3, 7, 9, 9, False, False))
    assert (raft.term, raft.vote) == (7, 3)


def test_a_leader_ignores_vote_requests_while_it_leads() -> None:
    """Its lease is renewed by CheckQuorum."""
    raft = lead(machine())
    assert step_all(raft, VoteRequest(1, 3, 7, 9, 9, False, False)) == []
    assert raft.role is LEADER


def test_a_transfer_passes_the_lease() -> None:
    """The leader itself asked for this election (thesis §3.10)."""
    raft = machine(term=1)
    step_all(raft, Heartbeat(1, 2, 1, 0, 0))
    assert VoteResponse(3, 1, 2, False, True) in step_all(raft, VoteRequest(1, 3, 2, 0, 0, False, True))


def test_a_leader_without_a_quorum_steps_down() -> None:
    """Thesis §6.2: within two election timeouts of the last answer."""
    raft = lead(machine())
    for _ in range(2 * ELECTION_TICKS):
        step_all(raft, Tick())
    assert (raft.role, raft.leader, raft.term) == (FOLLOWER, 0, 1)


def test_a_leader_with_a_quorum_stays() -> None:
    """One other of three is enough; a learner's answer is not."""
    membership = Membership(voters=frozenset({1, 2, 3}), learners=frozenset({4}))
    for node, role in ((2, LEADER), (4, FOLLOWER)):
        raft = lead(machine(membership=membership))
        for _ in range(ELECTION_TICKS + 5):
            step_all(raft, Tick(), HeartbeatResponse(1, node, 1, 0))
        assert raft.role is role
        assert raft.status().has_quorum is (role is LEADER)


def test_without_check_quorum_a_leader_stays() -> None:
    """Until it hears of a higher term."""
    raft = lead(machine(check_quorum=False))
    for _ in range(5 * ELECTION_TICKS):
        step_all(raft, Tick())
    assert (raft.role, raft.status().has_quorum) == (LEADER, False)


# --- Who may campaign ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("membership", "may"),
    [
        (Membership(), False),
        (voters(2, 3), False),
        (Membership(voters=frozenset({2}), learners=frozenset({1})), False),
        (Membership(voters=frozenset({2}), outgoing=frozenset({1, 2}), learners_next=frozenset({1})), True),
        (voters(1, 2), True),
    ],
)
def test_only_voters_campaign(membership: Membership, may: bool) -> None:
    """A member with no configuration, outside it, or a learner never does, whoever asks it to."""
    raft = machine(membership=membership, term=1)
    step_all(raft, *[Tick()] * (2 * ELECTION_TICKS))
    step_all(raft, Campaign(), TimeoutNow(1, 2, 1))
    assert (raft.role is CANDIDATE, raft.term > 1) == (may, may)


@pytest.mark.parametrize("membership", [Membership(), voters(2, 3)])
def test_a_member_without_a_configuration_accepts_a_leader(membership: Membership) -> None:
    """It learns who the members are from the log (or a snapshot)."""
    raft = machine(membership=membership)
    step_all(raft, AppendRequest(1, 2, 1, 0, 0, [Entry(1, 1, b"x")], 1))
    assert (raft.leader, raft.last_index, raft.applied) == (2, 1, 1)


def test_a_learner_votes() -> None:
    """It may have been promoted by an entry that it has not applied (etcd#10998)."""
    raft = machine(membership=Membership(voters=frozenset({2, 3}), learners=frozenset({1})))
    sent = step_all(raft, VoteRequest(1, 3, 1, 0, 0, False, False))
    assert sent == [VoteResponse(3, 1, 1, False, True)]


def test_who_is_no_member_here_gets_a_vote() -> None:
    """It may be one by an entry that has not come here yet (thesis §4.1)."""
    sent = step_all(machine(), VoteRequest(1, 9, 1, 0, 0, False, False))
    assert sent == [VoteResponse(9, 1, 1, False, True)]


def test_nobody_gets_a_vote_in_a_term_whose_leader_is_known() -> None:
    """It was elected without this member's vote, and needs no rival (etcd, Step)."""
    raft = machine(term=1)
    step_all(raft, Heartbeat(1, 2, 1, 0, 0))
    sent = step_all(raft, VoteRequest(1, 3, 1, 0, 0, False, False))
    assert (sent, raft.vote) == ([VoteResponse(3, 1, 1, False, False)], 0)


def test_nobody_campaigns_before_a_committed_change_is_applied() -> None:
    """The change may have removed it, or changed whose votes count (etcd#7280, #11284)."""
    raft = machine(term=1)
    change = Entry(1, 1, b"change", MEMBERSHIP)
    step(raft, AppendRequest(1, 2, 1, 0, 0, [change], 0))
    step(raft, Heartbeat(1, 2, 1, 1, 0))
    for event in (Campaign(), TimeoutNow(1, 2, 1)):
        step(raft, event)
        assert raft.role is FOLLOWER
    step(raft, Applied(1, voters(1, 2)), Campaign())
    assert raft.role is CANDIDATE


def test_nobody_campaigns_while_a_snapshot_is_loaded() -> None:
    """Its state machine is not what its log says it is."""
    raft = machine(term=1)
    step(raft, InstallSnapshot(1, 2, 1, snapshot(5, 1)), Campaign())
    assert raft.role is FOLLOWER
    step(raft, Applied(5), Campaign())
    assert raft.role is CANDIDATE


def test_an_election_under_a_joint_configuration_needs_both_majorities() -> None:
    """Thesis §4.3."""
    raft = machine(membership=Membership(voters=frozenset({1, 4, 5}), outgoing=frozenset({1, 2, 3})))
    step_all(raft, Campaign(), VoteResponse(1, 2, 1, False, True), VoteResponse(1, 3, 1, False, True))
    step_all(raft, Campaign())
    requests = only(step_all(raft, Campaign()), VoteRequest)
    assert [request.to for request in requests] == [2, 3, 4, 5]
    step_all(raft, VoteResponse(1, 2, raft.term, False, True))
    assert raft.role is CANDIDATE
    step_all(raft, VoteResponse(1, 5, raft.term, False, True))
    assert raft.role is LEADER


def test_the_own_vote_counts_only_for_the_candidacy_it_was_saved_in() -> None:
    """A save of the previous term's vote completes late."""
    raft = machine(size=1)
    raft.feed([Campaign()])
    first = raft.ready()
    raft.feed([Campaign()])
    second = raft.ready()
    assert first.save is not None
    assert second.save is not None
    step(raft, Saved(first.save.number))
    assert (raft.role, raft.term) == (CANDIDATE, 2)
    step(raft, Saved(second.save.number))
    assert raft.role is LEADER
    step(raft, Saved(first.save.number))
    assert raft.role is LEADER, "a completion that comes twice means nothing"


def test_the_own_vote_does_not_count_while_there_is_no_room() -> None:
    """Term and vote are on disk ahead of an append: it stands as a candidate, and leads when everything is saved."""
    raft = machine(size=1)
    step(raft, AppendRequest(1, 2, 1, 0, 0, [Entry(1, 1, b"")], 0))
    first = raft.ready()
    raft.feed([Campaign()])
    second = raft.ready()
    assert first.save is None
    assert second.save is not None
    step(raft, TermSaved(second.save.number), Saved(second.save.number - 1))
    assert raft.role is CANDIDATE
    step(raft, Saved(second.save.number))
    assert raft.role is LEADER


def test_a_term_that_is_saved_ahead_may_be_spoken_of() -> None:
    """The disk is full: what promises the new term alone leaves at once, an acknowledgement of entries does not."""
    raft = machine(size=3)
    ready = step(raft, Heartbeat(1, 2, 2, 0, 7))
    assert ready.save is not None
    assert ready.messages == []
    raft.feed([TermSaved(ready.save.number)])
    assert step(raft, Heartbeat(1, 2, 2, 0, 8)).messages == [HeartbeatResponse(2, 1, 2, 8)]
    ready = step(raft, AppendRequest(1, 2, 2, 0, 0, [Entry(1, 2, b"")], 0))
    assert ready.messages == []
    assert [type(message) for message in ready.messages_after_save] == [AppendResponse]


# --- Clusters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pre_vote", [False, True])
def test_a_cluster_elects_and_elects_again(pre_vote: bool) -> None:
    """The leader goes, another comes."""
    cluster = Cluster(3, pre_vote=pre_vote)
    cluster.tick(count=40)
    first = cluster.leader
    assert first
    cluster.crash(first)
    cluster.tick(count=60)
    second = cluster.leader
    assert second not in {0, first}
    cluster.restart(first)
    cluster.tick(count=30)
    assert cluster.leader == second, "whoever comes back disturbs nobody"
    assert cluster[first].leader == second


def test_with_pre_vote_an_isolated_member_changes_no_term() -> None:
    """It rehearses, and never gets to raise its term (etcd#9333)."""
    cluster = Cluster(3, pre_vote=True)
    cluster.elect(1)
    term = cluster[1].term
    cluster.isolate(3)
    cluster.tick(count=100)
    cluster.heal()
    cluster.tick(count=5)
    assert [cluster[node].term for node in (1, 2, 3)] == [term] * 3
    assert cluster.leader == 1


def test_a_member_whose_term_ran_ahead_rejoins() -> None:
    """Its answer to a heartbeat deposes the leader once, and an election takes it back in."""
    cluster = Cluster(3, pre_vote=False)
    cluster.elect(1)
    cluster.isolate(3)
    cluster.tick(count=100)
    assert cluster[3].term > cluster[1].term
    cluster.heal()
    cluster.tick(count=60)
    leader: Raft = cluster[cluster.leader]
    assert {cluster[node].leader for node in (1, 2, 3)} == {leader.id}
    assert {cluster[node].term for node in (1, 2, 3)} == {leader.term}


def test_an_isolated_leader_steps_down_and_comes_back_as_a_follower() -> None:
    """Two members may believe to lead for a while, in different terms; never longer than CheckQuorum lets them."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(1)
    cluster.tick(count=60)
    assert cluster[1].role is not LEADER
    assert cluster.leader in {2, 3}
    cluster.heal()
    cluster.tick(count=5)
    assert cluster[1].leader == cluster.leader


def test_the_repr_tells_the_state() -> None:
    """For failures."""
    assert repr(machine(1, term=2, vote=3)).startswith(
        "Raft(id=1, role=FOLLOWER, term=2, vote=3, leader=0, log=RaftLog("
    )


def test_status_tells_whether_a_leader_is_heard() -> None:
    """For followers, `has_quorum` means that a leader was heard within an election timeout."""
    raft = machine(term=1)
    assert not raft.status().has_quorum
    step_all(raft, append(raft, 0, 0))
    assert raft.status().has_quorum
