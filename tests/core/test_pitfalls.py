"""Known bugs of other implementations, as scenarios, each named after where it was seen.

Most rows of the list are tests beside the rule that they guard; here is what needs a scenario of its own. Where a row
is tested elsewhere:

- prior-term entry committed by counting: `test_paper.test_only_entries_of_the_current_term_commit_by_counting`
- commit past the last matched entry: `test_paper.test_a_follower_commits_at_most_the_last_new_entry`
- pre-vote reply counted as a vote: `test_elections.test_a_rehearsals_yes_is_not_a_vote`
- pre-vote ignoring the log: `test_paper.test_a_vote_goes_only_to_an_up_to_date_log`
- campaigning on a stale configuration: `test_elections.test_nobody_campaigns_before_a_committed_change_is_applied`
- leader that removed itself: `test_membership_changes.test_a_removed_leader_tells_everyone_what_is_committed_...`
- change before own-term commit: `test_membership_changes.test_nothing_changes_before_an_entry_of_the_own_term_is_...`
- leaves joint several times, or never, or before committing it: `test_membership_changes`, "Leaving"
- snapshot keeps uncommitted membership: `test_membership_changes.test_uncommitted_changes_do_not_outlive_a_snapshot`
- fast commit under old quorum: `test_membership_changes.test_what_follows_a_change_is_counted_by_it_once_it_is_applied`
- old snapshot truncates, conflicting entry kept: `test_snapshots`
- ABA in asynchronous appends: `test_raftlog`, and below as a crash
- ReadIndex before own-term commit, contexts reused: `test_reads`
- transfer target behind: `test_transfer.test_a_target_that_lags_is_brought_up_to_date_first`
- commit pagination after a restart: `test_replication.test_stored_entries_are_handed_out_again_after_a_restart`
- log grows without a quorum: `test_replication.test_uncommitted_proposals_are_bounded`
"""

from __future__ import annotations

import pytest

from pyraftkv.core.membership import ADD_VOTER, REMOVE, Change, MembershipChange
from pyraftkv.core.messages import (
    AppendRequest,
    AppendResponse,
    CommitNotice,
    Heartbeat,
    HeartbeatResponse,
    Message,
    VoteRequest,
    VoteResponse,
)
from pyraftkv.core.ready import Applied, Campaign, Propose, ProposeMembership, ReadIndex, Saved, TransferLeadership
from pyraftkv.core.types import CANDIDATE, FOLLOWER, LEADER, Membership
from tests.core.cluster import Cluster
from tests.core.machines import ack, append, entries, lead, log_terms, machine, only, step, step_all, voters


def test_a_late_shorter_append_does_not_truncate_what_was_acknowledged() -> None:
    """LogReplicationWithReorderedMessage: the second message overtakes the first."""
    raft = machine(term=1)
    step_all(raft, append(raft, 0, 0, 1, 1, 1))
    sent = step_all(raft, append(raft, 0, 0, 1), append(raft, 0, 0))
    assert raft.last_index == 3
    assert [message.index for message in only(sent, AppendResponse)] == [1, 0]
    assert raft.saved == 3


def test_late_answers_move_nothing_back() -> None:
    """etcd#1207, #1761: acks and rejections in every order leave `match` at its height, and `next` above it."""
    raft = lead(machine())
    step_all(raft, ack(raft, 2, 1), Propose([b"a"]), Propose([b"b"]))
    step_all(raft, ack(raft, 2, 3))
    before = raft.status().peers[2]
    step_all(
        raft,
        ack(raft, 2, 1),
        ack(raft, 2, 2),
        AppendResponse(1, 2, raft.term, 1, True, 0, 0),
        AppendResponse(1, 2, raft.term, 3, True, 0, 0),
    )
    assert raft.status().peers[2] == before


def test_a_rejection_acknowledges_nothing() -> None:
    """Its hint says where the logs may agree, not that they do."""
    raft = lead(machine(1, 1, 1))
    step_all(raft, AppendResponse(1, 2, raft.term, 3, True, 2, 1))
    status = raft.status().peers[2]
    assert (status.match, status.next, raft.commit) == (0, 3, 0)


def test_a_stale_rejection_to_a_probe_is_an_echo() -> None:
    """Only a rejection of the newest probe moves it."""
    raft = lead(machine(1, 1, 1))
    before = raft.status().peers[2]
    step(raft, AppendResponse(1, 2, raft.term, 1, True, 0, 0), AppendResponse(1, 2, raft.term, 2, True, 0, 0))
    assert raft.status().peers[2] == before


def test_an_append_below_the_commit_index_is_answered_with_it() -> None:
    """It may conflict with nothing, and must not be looked at (etcd: `m.Index < committed`)."""
    raft = machine(1, 1, 1, term=1, commit=2)
    for request in (append(raft, 1, 1, 1), append(raft, 0, 0, 1), append(raft, 1, 7)):
        assert step_all(raft, request) == [AppendResponse(2, 1, 1, 2, False, 0, 0)]
    assert log_terms(raft) == [1, 1, 1]


def test_a_vote_survives_a_crash() -> None:
    """PySyncObj#201: who forgets its vote votes twice, and two leaders share a term."""
    cluster = Cluster(3, pre_vote=False)
    cluster.lost = lambda message: isinstance(message, VoteResponse)
    cluster.feed(1, Campaign())
    cluster.settle()
    assert cluster[2].vote == 1
    cluster.crash(2)
    cluster.restart(2)
    assert (cluster[2].term, cluster[2].vote) == (1, 1)
    ready = cluster.feed(2, VoteRequest(2, 3, 1, 9, 9, False, False))
    assert ready.messages == [VoteResponse(3, 2, 1, False, False)]


def test_a_vote_that_was_not_saved_was_not_given() -> None:
    """The crash comes before the save: the response never left, and another may get the vote."""
    cluster = Cluster(3, pre_vote=False)
    cluster.feed(2, VoteRequest(2, 1, 1, 0, 0, False, False))
    assert cluster.network == []
    cluster.crash(2)
    cluster.restart(2)
    cluster.feed(2, VoteRequest(2, 3, 1, 0, 0, False, False))
    cluster.complete_save(2)
    assert cluster.network == [VoteResponse(3, 2, 1, False, True)]


@pytest.mark.parametrize("kind", ["append", "heartbeat"])
def test_stepping_down_within_a_term_keeps_the_vote(kind: str) -> None:
    """CCF#8094: a candidate that finds the term's leader has still voted for itself."""
    raft = machine()
    step_all(raft, Campaign())
    assert (raft.role, raft.vote) == (CANDIDATE, 1)
    step_all(raft, append(raft, 0, 0) if kind == "append" else Heartbeat(1, 2, 1, 0, 0))
    assert (raft.role, raft.term, raft.vote) == (FOLLOWER, 1, 1)
    sent = step_all(raft, VoteRequest(1, 3, 1, 9, 9, False, False))
    assert sent == [VoteResponse(3, 1, 1, False, False)]


def test_a_leader_of_one_acknowledges_nothing_before_its_disk() -> None:
    """etcd#14370: the single member's commit waits for its own save."""
    cluster = Cluster(1)
    cluster.elect(1)
    ready = cluster.feed(1, Propose([b"x"]))
    assert ready.committed == []
    cluster.crash(1)
    cluster.restart(1)
    cluster.elect(1)
    assert b"x" not in cluster.members[1].state


def test_an_erased_entry_is_not_acknowledged_by_the_save_before_its_erasure() -> None:
    """The ABA race (etcd-io/raft#8), played to its end with a crash between the saves."""
    cluster = Cluster(5)
    two = 2
    cluster.feed(two, AppendRequest(2, 1, 1, 0, 0, entries(1, 1), 0))
    cluster.feed(two, AppendRequest(2, 3, 2, 0, 0, entries(1, 2), 0))
    cluster.feed(two, AppendRequest(2, 1, 3, 0, 0, entries(1, 1), 0))
    cluster.complete_save(two)
    assert cluster[two].saved == 0, "what save 1 wrote is about to be erased by save 2"
    assert [m for m in cluster.network if m.term == 3] == []
    cluster.complete_save(two)
    assert cluster[two].saved == 0
    cluster.complete_save(two)
    assert cluster[two].saved == 1
    assert AppendResponse(1, 2, 3, 1, False, 0, 0) in cluster.network


def test_a_disk_that_lost_its_tail_commits_nothing_wrong() -> None:
    """etcd#10166: the leader believes in entries that are gone; a heartbeat's commit index beyond them is no proof."""
    raft = machine(1, term=1)
    ready = step(raft, Heartbeat(1, 2, 1, 5, 0))
    assert (raft.commit, ready.committed) == (0, [])
    assert only(ready.messages, HeartbeatResponse) != []


def test_acknowledgements_of_a_lost_log_do_not_stop_a_leader() -> None:
    """The other way round: the leader itself lost entries that a follower still has."""
    raft = lead(machine())
    step_all(raft, ack(raft, 2, 17))
    assert (raft.commit, raft.role) == (0, LEADER)


def test_a_member_with_a_smaller_term_and_the_best_log_is_elected() -> None:
    """etcd#8243: pre-vote must not deadlock; refused rehearsals teach the term."""
    cluster = Cluster(3, pre_vote=True)
    cluster.elect(1)
    cluster.isolate(3)
    cluster.feed(1, Propose([b"x"]))
    cluster.settle()
    cluster.heal()
    cluster.crash(2)
    cluster.members[3].raft._become_follower(term=9, leader=0)
    cluster.crash(1)
    cluster.restart(1)
    cluster.feed(3)
    cluster.settle()
    assert cluster[3].term > cluster[1].term
    assert cluster[3].last_index < cluster[1].last_index
    cluster.tick(count=80)
    assert cluster.leader == 1


def test_a_member_that_was_away_does_not_disturb() -> None:
    """etcd#9333, with and without pre-vote: what CheckQuorum's lease is for."""
    cluster = Cluster(3, pre_vote=False)
    cluster.elect(1)
    raft = cluster[2]
    request = VoteRequest(2, 3, raft.term + 5, 99, 99, False, False)
    ready = cluster.feed(2, request)
    assert (ready.messages, ready.save, raft.term) == ([], None, cluster[1].term)


def test_a_removed_member_does_not_disturb() -> None:
    """hashicorp/raft#524: it knows nothing of its removal and campaigns for ever."""
    cluster = Cluster(3, pre_vote=False)
    cluster.elect(1)
    cluster.isolate(3)
    for node in (1, 2):
        cluster.feed(node, Applied(cluster[node].applied, voters(1, 2)))
    term = cluster[1].term
    cluster.tick(count=50)
    cluster.heal()
    cluster.tick(count=100)
    assert (cluster.leader, cluster[1].term, cluster[2].term) == (1, term, term)
    assert cluster[3].term > term


def test_removing_the_leader_of_two_does_not_wedge_the_other() -> None:
    """etcd#10563: the other never hears of the commit; the removed one still answers its vote request."""
    cluster = Cluster(2, pre_vote=False)
    cluster.elect(1)
    cluster.isolate(2)
    cluster.feed(1, Applied(cluster[1].applied, voters(2)))
    assert cluster[1].role is FOLLOWER
    cluster.heal()
    cluster.tick(count=60)
    assert (cluster.leader, cluster[2].membership) == (2, voters(1, 2))


def _remove_unheard(*, tail: int) -> Cluster:
    """Return {1, 2} after leader 1 removed itself, said so in vain, and kept ``tail`` entries that 2 never saw."""
    cluster = Cluster(2, pre_vote=False)
    cluster.elect(1)
    cluster.lost = lambda message: (
        isinstance(message, Heartbeat | CommitNotice)
        or (isinstance(message, AppendRequest) and message.prev_index >= 2)
    )
    cluster.change(1, Change(REMOVE, 1))
    cluster.feed(1, *[Propose([b"%d" % number]) for number in range(tail)])
    cluster.settle()
    assert (cluster[1].role, cluster[1].membership, cluster[1].last_index) == (FOLLOWER, voters(2), 2 + tail)
    assert (cluster[2].last_index, cluster[2].commit) == (2, 1)
    cluster.heal()
    return cluster


@pytest.mark.parametrize("tail", [0, 3])
@pytest.mark.parametrize("restart", [False, True])
def test_the_one_that_is_left_of_two_goes_on_whatever_the_removed_leader_has(tail: int, restart: bool) -> None:
    """etcd#10563: with entries behind its removal its log is the longer one, and it refuses its vote for ever."""
    cluster = _remove_unheard(tail=tail)
    if restart:
        cluster.crash(1)
        cluster.restart(1)
        cluster.settle()
    cluster.tick(count=60)
    assert (cluster.leader, cluster[2].membership) == (2, voters(2))
    cluster.crash(1)
    cluster.feed(2, Propose([b"x"]))
    cluster.settle()
    assert cluster.members[2].state[-1] == b"x"


def test_a_majority_elects_of_which_only_the_newest_knows_that_it_is_one() -> None:
    """{1, 2} takes 3 in, only 3 hears that this is committed, and 1 is gone; 2 has the longer log and counts on 1."""
    cluster = Cluster(2, pre_vote=False, append_bytes_max=1)
    cluster.elect(1)
    cluster.add(3, membership=Membership())

    def is_lost(message: Message) -> bool:
        if message.to == 2:
            news = message.commit if isinstance(message, AppendRequest | Heartbeat) else 0
            return news >= 2 or isinstance(message, CommitNotice)
        return message.to == 3 and isinstance(message, AppendRequest) and any(e.index > 2 for e in message.entries)

    cluster.lost = is_lost
    cluster.changes[b"add 3"] = MembershipChange([Change(ADD_VOTER, 3)])
    cluster.feed(1, ProposeMembership(b"add 3", leave=False), Propose([b"x"]))
    cluster.settle()
    cluster.tick(count=3)
    cluster.crash(1)
    cluster.heal()
    assert (cluster[2].membership, cluster[2].commit, cluster[2].last_index) == (voters(1, 2), 1, 3)
    assert (cluster[3].membership, cluster[3].commit, cluster[3].last_index) == (voters(1, 2, 3), 2, 2)
    cluster.tick(count=80)
    assert cluster.leader == 2
    assert cluster[2].membership == cluster[3].membership == voters(1, 2, 3)


def test_between_commit_and_apply_of_a_change_everyone_may_crash() -> None:
    """etcd#12359: nobody campaigns before it applied what it knows to be committed, and then somebody does."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.change(1, Change(REMOVE, 3))
    for _ in range(20):
        while cluster.network:
            cluster.deliver()
        for node, member in cluster.members.items():
            while member.saves:
                cluster.complete_save(node)
            cluster.feed(node)
    assert [cluster[node].commit for node in (1, 2, 3)] == [2, 2, 2]
    assert [cluster[node].applied for node in (1, 2, 3)] == [1, 1, 1]
    for node in (1, 2, 3):
        cluster.crash(node, written=9)
    for node in (1, 2, 3):
        cluster.restart(node)
        cluster.feed(node, Campaign())
        assert cluster[node].membership == voters(1, 2, 3)
    cluster.tick(count=60)
    assert cluster.leader in {1, 2}
    assert cluster[cluster.leader].membership == voters(1, 2)


def test_a_joint_configuration_survives_a_change_of_leader() -> None:
    """The next leader counts both halves, too, until the configuration is left."""
    joint = Membership(voters=frozenset({1, 2, 4}), outgoing=frozenset({1, 2, 3}))
    cluster = Cluster(4, membership=joint)
    cluster.elect(1)
    cluster.elect(2)
    cluster.isolate(3, 4)
    cluster.feed(2, Propose([b"x"]))
    cluster.settle()
    assert cluster.members[2].state[-1] == b"x", "1 and 2 are a majority of both halves"
    cluster.crash(1)
    cluster.feed(2, Propose([b"y"]))
    cluster.tick(count=3)
    assert cluster.members[2].state[-1] == b"x", "2 alone is one of neither"


def test_a_leader_deposed_and_elected_again_confirms_no_old_read() -> None:
    """etcd#20418: rounds of an earlier leadership are gone, and their numbers are never used again."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.lost = lambda message: isinstance(message, HeartbeatResponse)
    cluster.feed(1, ReadIndex(1))
    cluster.settle()
    cluster.heal()
    cluster.elect(2)
    cluster.feed(2, Propose([b"x"]))
    cluster.settle()
    cluster.elect(1)
    cluster.tick(count=5)
    assert cluster.members[1].reads == []


def test_a_transfer_under_check_quorum_is_voted_for() -> None:
    """braft#262: followers that just heard the leader must not refuse whom it names."""
    cluster = Cluster(5, pre_vote=True, check_quorum=True)
    cluster.elect(1)
    cluster.tick(count=1)
    cluster.feed(1, TransferLeadership(4))
    cluster.settle()
    assert cluster.leader == 4


def test_an_old_saves_completion_counts_no_new_candidacys_vote() -> None:
    """Votes count when *their* save is done."""
    raft = machine()
    first = step(raft, Campaign())
    second = step(raft, Campaign())
    assert first.save is not None
    assert second.save is not None
    step(raft, Saved(first.save.number), VoteResponse(1, 2, 2, False, True))
    assert raft.role is CANDIDATE
    step(raft, Saved(second.save.number))
    assert raft.role is LEADER
