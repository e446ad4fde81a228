"""Changes of the membership on their way through machines: proposed, refused, applied, left, survived."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pyraftkv.core import Raft, Stored
from pyraftkv.core.membership import ADD_LEARNER, ADD_VOTER, EXPLICIT, JOINT, REMOVE, Change
from pyraftkv.core.messages import (
    AppendRequest,
    CommitNotice,
    ForwardedMembership,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    ReadIndexRequest,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from pyraftkv.core.ready import (
    Applied,
    Campaign,
    ForgetLeader,
    Input,
    Propose,
    ProposeMembership,
    ReadIndex,
    ReadReady,
    Ready,
    Saved,
    Tick,
    TransferLeadership,
)
from pyraftkv.core.types import (
    CANDIDATE,
    FOLLOWER,
    LEADER,
    MEMBERSHIP,
    PRE_CANDIDATE,
    Entry,
    HardState,
    Membership,
    SnapshotMeta,
)
from tests.core.cluster import Cluster
from tests.core.machines import ELECTION_TICKS, ack, append, lead, machine, only, step, step_all, voters

CHANGE = ProposeMembership(b"change", leave=False)
LEAVE = ProposeMembership(b"leave", leave=True)
LEARNER = Membership(voters=frozenset({1, 2, 3}), learners=frozenset({4}))
ENTERED = Membership(voters=frozenset({1, 2, 4}), outgoing=frozenset({1, 2, 3}), auto_leave=True)
BY_HAND = Membership(voters=frozenset({1, 2, 4}), outgoing=frozenset({1, 2, 3}))


def _step(raft: Raft, *inputs: Input) -> Ready:
    """Feed the machine and complete its save; nothing is applied. Return the first `Ready`, and all that was sent."""
    ready = step(raft, *inputs)
    sent = ready.messages + ready.messages_after_save
    committed = ready.committed
    if ready.save is not None:
        after = step(raft, Saved(ready.save.number))
        sent, committed = sent + after.messages, committed + after.committed
    return replace(ready, messages=sent, committed=committed)


def _leader(membership: Membership | None = None, **knobs: int) -> Raft:
    """Return a leader of three whose empty entry is committed by all, and applied."""
    raft = lead(machine(membership=membership or voters(1, 2, 3), **knobs))
    step_all(raft, *[ack(raft, node, 1) for node in sorted(raft.membership.members - {1})])
    assert (raft.commit, raft.applied) == (1, 1)
    return raft


def _changes(raft: Raft) -> list[tuple[int, bytes]]:
    """Return where changes of the membership stand in the log, and their payloads."""
    return [(entry.index, entry.payload) for entry in raft._log._entries if entry.kind is MEMBERSHIP]


def _commit(raft: Raft, index: int) -> Ready:
    """Let every other member acknowledge up to ``index``; nothing is applied."""
    return _step(raft, *[ack(raft, node, index) for node in sorted(raft.membership.members - {raft.id})])


def _appends(ready: Ready, to: int) -> list[AppendRequest]:
    return [message for message in only(ready.messages, AppendRequest) if message.to == to]


# --- Proposing -------------------------------------------------------------------------------------------------------


def test_a_leader_appends_a_change() -> None:
    """As an entry of its own kind, payload unchanged, replicated like any other."""
    raft = _leader()
    ready = _step(raft, CHANGE)
    change = Entry(2, 1, b"change", MEMBERSHIP)
    assert ready.rejected_proposals == []
    assert [request.entries for request in only(ready.messages, AppendRequest)] == [[change], [change]]
    assert ready.save is not None
    assert ready.save.entries == [change]


def test_a_follower_forwards_a_change() -> None:
    """To its leader; without one, or while it campaigns, it hands the change back."""
    raft = machine(term=1)
    assert _step(raft, CHANGE).rejected_proposals == [b"change"]
    step_all(raft, Heartbeat(1, 2, 1, 0, 0))
    ready = _step(raft, CHANGE, LEAVE)
    assert ready.messages == [
        ForwardedMembership(2, 1, 1, b"change", leave=False),
        ForwardedMembership(2, 1, 1, b"leave", leave=True),
    ]
    step_all(raft, Campaign())
    assert _step(raft, CHANGE).rejected_proposals == [b"change"]


def test_a_forwarded_change_is_taken_or_dropped() -> None:
    """Its proposer tries again; nothing comes back, and what is too large for a message is not taken."""
    raft = _leader(payload_bytes_max=10)
    _step(raft, ForwardedMembership(1, 2, 1, bytes(11), leave=False))
    assert _changes(raft) == []
    ready = _step(raft, *[ForwardedMembership(1, 2, 1, payload, leave=False) for payload in (b"a", b"b")])
    assert (_changes(raft), ready.rejected_proposals) == ([(2, b"a")], [])
    with pytest.raises(AssertionError, match="no message"):
        _step(raft, ProposeMembership(bytes(11), leave=False))


def test_nothing_changes_before_an_entry_of_the_own_term_is_applied() -> None:
    """NewLeaderPendingConfig, and the bug of 2015: saved is not enough, and committed is not either."""
    raft = lead(machine(1, 1, term=1, commit=2))
    assert raft.is_changing_membership
    assert _step(raft, CHANGE).rejected_proposals == [b"change"]
    _commit(raft, 3)
    assert (raft.commit, raft.applied) == (3, 2)
    assert _step(raft, CHANGE).rejected_proposals == [b"change"]
    assert _step(raft, Applied(3), CHANGE).rejected_proposals == []
    assert _changes(raft) == [(4, b"change")]


def test_one_change_at_a_time() -> None:
    """The next one waits until the one before is applied, whatever came of it; committed is not enough."""
    raft = _leader()
    _step(raft, CHANGE)
    assert _step(raft, ProposeMembership(b"other", leave=False)).rejected_proposals == [b"other"]
    _commit(raft, 2)
    assert (raft.commit, raft.is_changing_membership) == (2, True)
    assert _step(raft, ProposeMembership(b"other", leave=False)).rejected_proposals == [b"other"]
    assert _step(raft, Applied(2), ProposeMembership(b"other", leave=False)).rejected_proposals == []
    assert _changes(raft) == [(2, b"change"), (3, b"other")]


def test_a_change_in_the_log_of_a_new_leader_holds_up_the_next_one() -> None:
    """It may be committed or not; the empty entry behind it tells."""
    raft = machine(term=1)
    step_all(raft, AppendRequest(1, 2, 1, 0, 0, [Entry(1, 1, b"old", MEMBERSHIP)], 0))
    lead(raft)
    _commit(raft, 2)
    _step(raft, Applied(1, voters(1, 2, 3, 4)))
    assert _step(raft, CHANGE).rejected_proposals == [b"change"]
    assert _step(raft, Applied(2), CHANGE).rejected_proposals == []


def test_only_a_joint_configuration_is_left_and_nothing_else_is_done_to_it() -> None:
    """What does not fit is handed back, and never stands in the log."""
    raft = _leader()
    assert _step(raft, LEAVE).rejected_proposals == [b"leave"]
    _step(raft, CHANGE)
    _commit(raft, 2)
    _step(raft, Applied(2, BY_HAND))
    assert _step(raft, CHANGE).rejected_proposals == [b"change"]
    assert _step(raft, LEAVE).rejected_proposals == []
    assert _changes(raft) == [(2, b"change"), (3, b"leave")]


def test_changes_are_proposals() -> None:
    """They wait for a transfer, and for room under the cap on uncommitted bytes."""
    raft = _leader(uncommitted_bytes_max=200)
    _step(raft, TransferLeadership(2))
    assert _step(raft, CHANGE).rejected_proposals == [b"change"]
    raft = _leader(uncommitted_bytes_max=200)
    _step(raft, Propose([bytes(130)]))
    assert _step(raft, CHANGE).rejected_proposals == [b"change"]
    _commit(raft, 2)
    assert _step(raft, CHANGE).rejected_proposals == []


# --- Leaving a joint configuration -----------------------------------------------------------------------------------


def _entered(membership: Membership = ENTERED, **knobs: int) -> Raft:
    """Return a leader that has just applied the entering of a joint configuration, at index 2."""
    raft = _leader(**knobs)
    _step(raft, CHANGE)
    _commit(raft, 2)
    _step(raft, Applied(2, membership))
    return raft


def test_a_joint_configuration_is_left_once() -> None:
    """confchange_v2_add_double_auto, etcd#11046, #12582: with an empty entry, when the entering is applied."""
    raft = _entered()
    assert _changes(raft) == [(2, b"change"), (3, b"")]
    _step(raft, Applied(2), *[Tick()] * 5)
    assert _step(raft, LEAVE, CHANGE).rejected_proposals == [b"leave", b"change"]
    _commit(raft, 3)
    _step(raft, Applied(3, voters(1, 2, 4)))
    assert _changes(raft) == [(2, b"change"), (3, b"")]
    assert _step(raft, CHANGE).rejected_proposals == []


def test_a_joint_configuration_is_not_left_before_it_is_applied() -> None:
    """Appended, committed: it is not in force, and may not be what its entry seems to be."""
    raft = _leader()
    _step(raft, CHANGE)
    _commit(raft, 2)
    _step(raft, Propose([b"x"]), *[Tick()] * 3)
    assert _changes(raft) == [(2, b"change")]


def test_what_is_to_be_left_by_hand_stays() -> None:
    """Nobody leaves it but who says so, whoever leads."""
    raft = _entered(BY_HAND)
    step_all(raft, Propose([b"x"]), *[Tick()] * 3, ack(raft, 2, 3), ack(raft, 4, 3))
    assert _changes(raft) == [(2, b"change")]


def test_leaving_waits_for_a_transfer_and_goes_on_when_it_is_given_up() -> None:
    """The target must find the log standing still; etcd tries again with the next entry, which may never come."""
    raft = _leader()
    _step(raft, CHANGE)
    _commit(raft, 2)
    _step(raft, TransferLeadership(3), Applied(2, ENTERED))
    assert _changes(raft) == [(2, b"change")]
    for _ in range(ELECTION_TICKS):
        _step(raft, Tick(), HeartbeatResponse(1, 2, 1, 0), HeartbeatResponse(1, 4, 1, 0))
    assert (raft.role, _changes(raft)) == (LEADER, [(2, b"change"), (3, b"")])


def test_leaving_waits_for_no_room() -> None:
    """It is one empty entry, and without it nothing gets smaller."""
    raft = _leader(uncommitted_bytes_max=200)
    _step(raft, CHANGE, Propose([bytes(60)]))
    _step(raft, ack(raft, 2, 2), ack(raft, 3, 2))
    assert _step(raft, Applied(2, ENTERED), Propose([bytes(60)])).rejected_proposals == [bytes(60)]
    assert _changes(raft) == [(2, b"change"), (4, b"")]


def test_a_new_leader_leaves_what_it_finds() -> None:
    """The one that entered it is gone before it could leave (untested in etcd)."""
    raft = machine(term=1)
    _step(raft, AppendRequest(1, 2, 1, 0, 0, [Entry(1, 1, b"enter", MEMBERSHIP)], 1))
    _step(raft, Applied(1, ENTERED))
    lead(raft)
    assert _changes(raft) == [(1, b"enter")]
    _commit(raft, 2)
    _step(raft, Applied(2))
    assert _changes(raft) == [(1, b"enter"), (3, b"")]


def test_a_new_leader_does_not_leave_again_what_its_log_leaves() -> None:
    """The last leader's leave is committed with this one's first entry."""
    raft = machine(term=1)
    entering = [Entry(1, 1, b"enter", MEMBERSHIP), Entry(2, 1, b"", MEMBERSHIP)]
    _step(raft, AppendRequest(1, 2, 1, 0, 0, entering, 1))
    step_all(raft, Applied(1, ENTERED))
    lead(raft)
    _step(raft, *[Tick()] * (ELECTION_TICKS - 1), HeartbeatResponse(1, 2, raft.term, 0), Tick())
    assert (raft.role, _changes(raft)) == (LEADER, [(1, b"enter"), (2, b"")]), "it looks whether there is one to leave"
    _commit(raft, 3)
    _step(raft, Applied(2, voters(1, 2, 4)), Applied(3))
    assert _changes(raft) == [(1, b"enter"), (2, b"")]


@pytest.mark.parametrize("commit", [0, 1])
def test_a_leader_that_restarts_does_not_leave_before_the_entering_is_committed_and_applied(commit: int) -> None:
    """camunda#61854: the entering stands in its log, and means nothing yet."""
    stored = Stored(HardState(1, 1, commit), None, [Entry(1, 1, b"enter", MEMBERSHIP)], 1, voters(1, 2, 3))
    raft = machine(membership=voters(1, 2, 3))
    raft = Raft(raft._config, stored=stored, rng=raft._rng)
    _step(raft, *([Applied(1, ENTERED)] if commit and raft.ready().committed else []))
    lead(raft)
    assert _changes(raft) == [(1, b"enter")]
    _commit(raft, 2)
    if not commit:
        _step(raft, Applied(1, ENTERED))
        assert _changes(raft) == [(1, b"enter")]
    _step(raft, Applied(2))
    assert _changes(raft) == [(1, b"enter"), (3, b"")]


@pytest.mark.parametrize("queued", [False, True])
def test_a_leader_change_in_the_middle_of_a_joint_change(queued: bool) -> None:
    """The leader that entered dies, before or after it appended the leave: the next one leaves, and once."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.add(4, membership=Membership())
    cluster.add(5, membership=Membership())
    changes = [Change(ADD_VOTER, 4), Change(ADD_VOTER, 5), Change(REMOVE, 3)]
    cluster.change(1, *changes)
    cluster.lost = lambda message: queued and isinstance(message, AppendRequest) and message.prev_index >= 2
    if queued:
        cluster.settle()
        assert cluster[1].last_index == 3, "the leave stands in its log alone"
    else:
        while not cluster[2].membership.is_joint:
            cluster.deliver()
            for node, member in cluster.members.items():
                while member.saves:
                    cluster.complete_save(node)
                while member.pages and node != 1:
                    cluster.apply_page(node)
            for node, member in cluster.members.items():
                if member.again:
                    cluster.feed(node)
    cluster.crash(1)
    cluster.heal()
    for node in (4, 5):
        assert cluster[node].last_index <= 3
    cluster.tick(count=60)
    leader = cluster.leader
    assert leader in {2, 3, 4, 5}
    assert cluster[leader].membership == voters(1, 2, 4, 5)
    leaves = [entry for entry in _changes(cluster[leader]) if entry[1] == b""]
    assert len(leaves) == 1
    cluster.restart(1)
    cluster.tick(count=60)
    assert all(cluster[node].membership == voters(1, 2, 4, 5) for node in (1, 2, 4, 5))


# --- Leaders that go -------------------------------------------------------------------------------------------------


def test_a_removed_leader_tells_everyone_what_is_committed_and_steps_down() -> None:
    """etcd#11038, #10563: it heartbeats no more, takes nothing any more, and nobody is left in the dark."""
    raft = _leader()
    _step(raft, CHANGE)
    _step(raft, ack(raft, 2, 2))
    assert raft.commit == 2
    ready = _step(raft, Applied(2, voters(2, 3)))
    assert (raft.role, raft.leader, raft.status().peers) == (FOLLOWER, 0, {})
    assert [(message.to, message.commit) for message in only(ready.messages, AppendRequest)] == [(2, 2), (3, 2)]
    ready = _step(raft, *[Tick()] * (3 * ELECTION_TICKS), Propose([b"x"]), LEAVE)
    assert (ready.messages, ready.rejected_proposals, raft.term) == ([], [b"x", b"leave"], 1)


def test_a_removed_follower_hears_that_it_was_removed() -> None:
    """Before its leader forgets it; nobody else would tell it."""
    raft = _leader()
    _step(raft, CHANGE)
    _commit(raft, 2)
    ready = _step(raft, Applied(2, voters(1, 2)))
    assert [message.commit for message in _appends(ready, 3)] == [2]
    assert sorted(raft.status().peers) == [2]
    assert _appends(_step(raft, Propose([b"x"])), 3) == []


def test_a_follower_that_awaits_a_snapshot_is_told_nothing() -> None:
    """It could do nothing with an append, and the snapshot says it all."""
    raft = _leader()
    _step(raft, Propose([b"x"]))
    _commit(raft, 2)
    _step(raft, Applied(2))
    raft._progress[3].become_snapshot(2)
    assert _appends(_step(raft, Applied(2, voters(2, 3))), 3) == []


def test_a_removed_leader_still_votes() -> None:
    """The others may need its vote until they know of its removal."""
    raft = _leader()
    step_all(raft, Applied(1, voters(2, 3)))
    sent = step_all(raft, VoteRequest(1, 2, 2, 9, 1, False, False))
    assert only(sent, VoteResponse) == [VoteResponse(2, 1, 2, False, True)]


def test_a_demoted_leader_steps_down_and_learns() -> None:
    """At once in a simple step; after a joint one when that is left."""
    raft = _leader()
    _step(raft, Applied(1, Membership(voters=frozenset({2, 3}), learners=frozenset({1}))))
    assert raft.role is FOLLOWER
    raft = _leader()
    half = Membership(
        voters=frozenset({2, 3}), outgoing=frozenset({1, 2, 3}), learners_next=frozenset({1}), auto_leave=True
    )
    _step(raft, Applied(1, half))
    assert (raft.role, _changes(raft)) == (LEADER, [(2, b"")])
    step_all(raft, ack(raft, 2, 2), ack(raft, 3, 2))
    step_all(raft, Applied(2, Membership(voters=frozenset({2, 3}), learners=frozenset({1}))))
    assert (raft.role, raft.applied) == (FOLLOWER, 2)
    step_all(raft, append(raft, 2, 1, 2, term=2))
    assert (raft.leader, raft.last_index) == (2, 3)


# --- Learners and voters ---------------------------------------------------------------------------------------------


def test_a_learner_counts_in_nothing() -> None:
    """It receives everything; commits, votes, reads, quorums and elections go on without it (thesis §4.2.1)."""
    raft = lead(machine(membership=LEARNER))
    assert [message.prev_index for message in _appends(_step(raft, Propose([b"x"]), ack(raft, 4, 1)), 4)] == [1]
    _step(raft, ack(raft, 4, 2))
    assert raft.commit == 0
    _step(raft, ack(raft, 2, 2))
    assert raft.commit == 2
    _step(raft, Applied(2), ReadIndex(7))
    assert _step(raft, HeartbeatResponse(1, 4, 1, 1)).reads == []
    assert _step(raft, HeartbeatResponse(1, 2, 1, 1)).reads == [ReadReady(7, 2)]
    for _ in range(2 * ELECTION_TICKS):
        _step(raft, Tick(), HeartbeatResponse(1, 4, 1, 0))
    assert raft.role is FOLLOWER


def test_nobody_waits_for_a_learner() -> None:
    """It is silent, and one voter of three as well: the other two commit and read."""
    raft = lead(machine(membership=LEARNER))
    _step(raft, Propose([b"x"]), ack(raft, 2, 2))
    assert raft.commit == 2
    _step(raft, Applied(2), ReadIndex(7))
    assert _step(raft, HeartbeatResponse(1, 2, 1, 1)).reads == [ReadReady(7, 2)]


def test_a_learner_does_not_win_an_election_for_anyone() -> None:
    """Its yes is no vote, and nobody asks for it."""
    raft = machine(membership=LEARNER)
    assert [message.to for message in only(step_all(raft, Campaign()), VoteRequest)] == [2, 3]
    step_all(raft, VoteResponse(1, 4, 1, False, True))
    assert raft.role is CANDIDATE


def test_a_learner_never_campaigns_and_may_read() -> None:
    """Not on time, not on command, not when a transfer names it; its reads go to the leader."""
    raft = machine(node=4, membership=LEARNER, term=1, pre_vote=True)
    step_all(raft, *[Tick()] * (3 * ELECTION_TICKS), Campaign(), TimeoutNow(4, 1, 1))
    assert (raft.role, raft.term) == (FOLLOWER, 1)
    step_all(raft, Heartbeat(4, 1, 1, 0, 0))
    assert _step(raft, ReadIndex(7)).messages == [ReadIndexRequest(1, 4, 1, 7)]


def test_a_learner_that_is_promoted_counts_from_then_on() -> None:
    """When the leader applied it, and not before; the learner itself may not know."""
    raft = _leader(LEARNER)
    _step(raft, CHANGE, Propose([b"x"]))
    _step(raft, ack(raft, 4, 3), ack(raft, 2, 2))
    assert raft.commit == 2
    _step(raft, Applied(2, voters(1, 2, 3, 4)))
    assert raft.commit == 2, "1 and 4 are half of four"
    _step(raft, ack(raft, 3, 3))
    assert raft.commit == 3


def test_a_voter_that_is_demoted_counts_no_more() -> None:
    """What it acknowledged helps nobody."""
    raft = _leader(voters(1, 2, 3, 4, 5))
    _step(raft, CHANGE, Propose([b"x"]))
    _step(raft, *[ack(raft, node, 2) for node in (2, 3)], ack(raft, 4, 3))
    assert raft.commit == 2
    _step(raft, Applied(2, Membership(voters=frozenset({1, 2, 3, 5}), learners=frozenset({4}))))
    _step(raft, ack(raft, 5, 3))
    assert raft.commit == 2, "1 and 5 are half of four"
    _step(raft, ack(raft, 2, 3))
    assert raft.commit == 3


def test_a_promoted_learner_that_lags_votes_for_those_who_know() -> None:
    """campaign_learner_must_vote, etcd#10998: without it {1, 2, 3} could elect nobody when 1 is gone."""
    cluster = Cluster(2, pre_vote=False)
    cluster.elect(1)
    cluster.add(3, membership=Membership())
    cluster.change(1, Change(ADD_LEARNER, 3))
    cluster.tick(count=3)
    cluster.isolate(3)
    cluster.change(1, Change(ADD_VOTER, 3))
    cluster.tick(count=3)
    assert cluster[2].membership == voters(1, 2, 3)
    assert cluster[3].membership == Membership(voters=frozenset({1, 2}), learners=frozenset({3}))
    cluster.crash(1)
    cluster.heal()
    cluster.tick(count=60)
    assert cluster.leader == 2
    assert cluster[3].membership == voters(1, 2, 3)


def test_what_follows_a_change_is_counted_by_it_once_it_is_applied() -> None:
    """openraft#364: an old quorum must not commit fast what the new one has to agree with."""
    raft = _leader()
    _step(raft, CHANGE)
    _commit(raft, 2)
    joint = Membership(voters=frozenset({1, 4, 5}), outgoing=frozenset({1, 2, 3}))
    _step(raft, Applied(2, joint), Propose([b"x"]))
    _step(raft, ack(raft, 2, 3), ack(raft, 3, 3))
    assert raft.commit == 2, "three of five, and the outgoing voters alone"
    _step(raft, ack(raft, 4, 3))
    assert raft.commit == 3


def test_a_change_is_counted_by_the_configuration_before_it() -> None:
    """Appended is not applied: a majority of three commits the step to five."""
    raft = _leader()
    _step(raft, CHANGE)
    assert [len(raft.membership.voters), raft.commit] == [3, 1]
    _step(raft, ack(raft, 2, 2))
    assert raft.commit == 2


# --- What a member knows ---------------------------------------------------------------------------------------------


def test_whoever_has_a_change_knows_that_the_one_before_is_committed() -> None:
    """Rule 2 of `membership.py`: the commit index comes with it and is saved with it, and a crash forgets neither."""
    raft = _leader()
    step(raft, CHANGE)
    _commit(raft, 2)
    step(raft, Applied(2))
    second = ProposeMembership(b"second", leave=False)
    assert [message.commit for message in only(step(raft, second).messages, AppendRequest)] == [2, 2]

    first, last = Entry(1, 1, b"first", MEMBERSHIP), Entry(2, 1, b"last", MEMBERSHIP)
    raft = machine(term=1)
    _step(raft, AppendRequest(1, 2, 1, 0, 0, [first], 0))
    save = step(raft, AppendRequest(1, 2, 1, 1, 1, [last], 1)).save
    assert save is not None
    assert save.entries == [last]
    assert save.hard_state == HardState(1, 0, 1)
    stored = Stored(save.hard_state, None, [first, last], 1, voters(1, 2, 3))
    raft = Raft(raft._config, stored=stored, rng=raft._rng)
    step(raft, Campaign())
    assert raft.role is FOLLOWER, "it applies the first change before it campaigns"


@pytest.mark.parametrize("role", [FOLLOWER, PRE_CANDIDATE, CANDIDATE])
def test_a_notice_commits_a_change_and_whoever_campaigns_applies_it_first(role: int) -> None:
    """By the entry's term, whatever the notice's own; without such an entry it says nothing."""
    raft = machine(term=1, pre_vote=True)
    step_all(raft, AppendRequest(1, 2, 1, 0, 0, [Entry(1, 1, b"change", MEMBERSHIP)], 0))
    if role is not FOLLOWER:
        step_all(raft, Campaign())
    if role is CANDIDATE:
        step_all(raft, VoteResponse(1, 2, 2, True, True))
    term = raft.term
    for notice in (CommitNotice(1, 3, 9, 1, 2), CommitNotice(1, 3, 9, 2, 1)):
        _step(raft, notice)
        assert (raft.role, raft.commit) == (role, 0)
    ready = _step(raft, CommitNotice(1, 3, 0, 1, 1))
    assert (raft.role, raft.commit, raft.term, len(ready.committed)) == (FOLLOWER, 1, term, 1)


def test_a_notice_goes_with_a_refusal_both_ways() -> None:
    """Who knows of a change tells whom it refuses, and who refuses it; in an ordinary election there is none."""
    raft = machine(1, 1, term=1, commit=2)
    refused = VoteRequest(1, 2, 2, 1, 1, False, False)
    assert only(step_all(raft, refused), CommitNotice) == []
    raft = machine(1, 1, term=1, commit=2)
    _step(raft)
    _step(raft, Applied(2, voters(1, 2, 4)))
    assert only(step_all(raft, refused), CommitNotice) == [CommitNotice(2, 1, 2, 2, 1)]
    assert only(step_all(raft, VoteRequest(1, 4, 3, 2, 1, False, False)), CommitNotice) == []
    step_all(raft, Campaign())
    sent = step_all(raft, VoteResponse(1, 2, raft.term, False, False))
    assert only(sent, CommitNotice) == [CommitNotice(2, 1, raft.term, 2, 1)]


def test_a_member_without_a_vote_tells_everyone_who_asks_it() -> None:
    """Its yes counts only by a configuration that is not the last one."""
    raft = machine(1, 1, term=1, commit=2)
    _step(raft)
    _step(raft, Applied(2, voters(2, 3)))
    sent = step_all(raft, VoteRequest(1, 2, 2, 5, 1, False, False))
    assert only(sent, VoteResponse) == [VoteResponse(2, 1, 2, False, True)]
    assert only(sent, CommitNotice) == [CommitNotice(2, 1, 2, 2, 1)]


def test_a_notice_of_a_change_that_was_compacted_names_the_commit_index() -> None:
    """Any later committed entry does as well."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.change(1, Change(REMOVE, 3))
    cluster.settle()
    cluster.feed(2, Propose([b"x"]))
    cluster.settle()
    cluster.take_snapshot(2)
    assert cluster[2]._log.term_at(2) is None
    cluster.feed(2, VoteRequest(2, 3, 9, 0, 0, False, True))
    cluster.lost = lambda _: True
    while cluster.members[2].saves:
        assert not cluster.network or only(cluster.network, CommitNotice) != []
        (notice,) = only(cluster.members[2].saves[0].messages, CommitNotice)
        assert (notice.index, notice.index_term) == (3, 1)
        cluster.complete_save(2)


# --- Snapshots -------------------------------------------------------------------------------------------------------


def test_a_snapshot_brings_a_joint_configuration() -> None:
    """RestoreWithVotersOutgoing: both halves count at once, before its data are loaded."""
    raft = machine(node=1, membership=Membership())
    _step(raft, InstallSnapshot(1, 2, 1, SnapshotMeta(5, 1, ENTERED)))
    assert raft.membership == ENTERED
    step_all(raft, Applied(5, ENTERED), Campaign(), VoteResponse(1, 2, 2, False, True))
    assert raft.role is LEADER, "1 and 2 are a majority of both"
    step_all(raft, ack(raft, 2, 6))
    assert _changes(raft) == [(7, b"")], "and it leaves what it was told of"


def test_uncommitted_changes_do_not_outlive_a_snapshot() -> None:
    """openraft#1808: an uncommitted change behind a snapshot's index must not count, or quorums fall apart."""
    raft = machine(term=1)
    entries = [Entry(1, 1, b"", MEMBERSHIP), Entry(2, 1, b"stale", MEMBERSHIP), Entry(3, 1, b"x"), Entry(4, 1, b"y")]
    step_all(raft, AppendRequest(1, 2, 1, 0, 0, [entries[0], *entries[2:2]], 0))
    step_all(raft, AppendRequest(1, 2, 1, 1, 1, entries[1:], 0))
    _step(raft, InstallSnapshot(1, 3, 2, SnapshotMeta(2, 2, voters(1, 2, 3))))
    assert (raft.last_index, raft.commit, _changes(raft)) == (2, 2, [])
    step_all(raft, Applied(2, voters(1, 2, 3)), Campaign())
    assert raft.role is CANDIDATE, "nothing is left to be applied"


def test_a_snapshot_of_what_the_log_has_leaves_the_configuration_to_the_log() -> None:
    """Its entries are committed, and bring each its own when they are applied; until then nobody campaigns."""
    raft = machine(term=1)
    step_all(raft, AppendRequest(1, 2, 1, 0, 0, [Entry(1, 1, b"change", MEMBERSHIP)], 0))
    ready = _step(raft, InstallSnapshot(1, 2, 1, SnapshotMeta(1, 1, voters(1, 2, 4))), Campaign())
    assert (ready.restore, raft.membership, raft.role) == (None, voters(1, 2, 3), FOLLOWER)
    _step(raft, Applied(1, voters(1, 2, 4)), Campaign())
    assert (raft.membership, raft.role) == (voters(1, 2, 4), CANDIDATE)


def test_a_member_that_slept_through_changes_gets_them_by_snapshot() -> None:
    """It was a voter, was removed, and is a learner now: its own log knows nothing of it."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(3)
    cluster.change(1, Change(REMOVE, 3))
    cluster.settle()
    cluster.change(1, Change(ADD_LEARNER, 3))
    cluster.settle()
    cluster.feed(1, Propose([b"x"]))
    cluster.settle()
    cluster.take_snapshot(1)
    cluster.heal()
    cluster.tick(count=60)
    assert cluster[3].membership == Membership(voters=frozenset({1, 2}), learners=frozenset({3}))
    assert cluster.members[3].state == cluster.members[1].state
    assert cluster.leader == 1


# --- Whole clusters --------------------------------------------------------------------------------------------------


def _wait(cluster: Cluster, membership: Membership) -> int:
    """Let time pass until a leader has this configuration; return it."""
    for _ in range(40):
        if cluster.leader and cluster[cluster.leader].membership == membership:
            return cluster.leader
        cluster.tick(count=5)
    raise AssertionError(f"{cluster[cluster.leader]} has {cluster[cluster.leader].membership}")


def test_a_cluster_grows_from_one_to_five_and_back() -> None:
    """Learners first, then voters, one by one and at once; leaders remove themselves on the way back."""
    cluster = Cluster(1, pre_vote=True)
    cluster.elect(1)
    for node in (2, 3, 4, 5):
        cluster.add(node, membership=Membership())
        cluster.change(cluster.leader, Change(ADD_LEARNER, node))
        cluster.tick(count=2)
    assert cluster[5].membership == Membership(voters=frozenset({1}), learners=frozenset({2, 3, 4, 5}))
    cluster.change(1, Change(ADD_VOTER, 2))
    cluster.tick(count=2)
    cluster.change(1, Change(ADD_VOTER, 3))
    cluster.tick(count=2)
    cluster.change(1, Change(ADD_VOTER, 4), Change(ADD_VOTER, 5))
    cluster.tick(count=2)
    assert cluster[5].membership == voters(1, 2, 3, 4, 5)
    left = {1, 2, 3, 4, 5}
    while len(left) > 1:
        leader = cluster.leader
        cluster.change(leader, Change(REMOVE, leader))
        left.remove(leader)
        cluster.feed(leader, Propose([b"without %d" % leader]))
        assert _wait(cluster, voters(*left)) in left
    (last,) = left
    cluster.feed(last, Propose([b"alone"]))
    cluster.settle()
    assert cluster.members[last].state[-1] == b"alone"


@pytest.mark.parametrize("transition", [JOINT, EXPLICIT])
def test_everyone_is_replaced_in_one_step(transition: int) -> None:
    """{1, 2, 3} by {4, 5, 6}, the leader included; the old ones may be switched off when the new ones say so."""
    cluster = Cluster(3, pre_vote=True)
    cluster.elect(1)
    for node in (4, 5, 6):
        cluster.add(node, membership=Membership())
    changes = [Change(ADD_VOTER, node) for node in (4, 5, 6)] + [Change(REMOVE, node) for node in (1, 2, 3)]
    cluster.change(1, *changes, transition=JOINT if transition is JOINT else EXPLICIT)
    cluster.tick(count=3)
    if transition is EXPLICIT:
        assert (cluster[1].role, cluster[4].membership.is_joint) == (LEADER, True)
        cluster.change(2)
    leader = _wait(cluster, voters(4, 5, 6))
    for node in (1, 2, 3):
        cluster.crash(node)
    cluster.feed(leader, Propose([b"x"]))
    cluster.settle()
    assert [cluster.members[node].state[-1] for node in (4, 5, 6)] == [b"x"] * 3


def test_a_forgotten_leader_may_be_voted_out_at_once() -> None:
    """`ForgetLeader`: a follower's CheckQuorum stands in nobody's way any more; a leader does not forget itself."""
    raft = machine(term=1)
    request = VoteRequest(1, 3, 2, 9, 9, False, False)
    step_all(raft, Heartbeat(1, 2, 1, 0, 0))
    assert step_all(raft, request) == []
    step_all(raft, ForgetLeader())
    assert raft.leader == 0
    assert step_all(raft, request) == [VoteResponse(3, 1, 2, False, True)]
    raft = _leader()
    step_all(raft, ForgetLeader())
    assert (raft.role, raft.leader) == (LEADER, 1)
    raft = machine(term=1)
    step_all(raft, Campaign(), ForgetLeader())
    assert raft.role is CANDIDATE
