"""Leader transfer (thesis §3.10)."""

from __future__ import annotations

import pytest

from pyraftkv.core import Raft
from pyraftkv.core.messages import ForwardedProposals, TimeoutNow, VoteRequest
from pyraftkv.core.ready import Applied, Propose, Tick, TransferLeadership
from pyraftkv.core.types import CANDIDATE, LEADER, Membership
from tests.core.cluster import Cluster
from tests.core.machines import ELECTION_TICKS, ack, lead, machine, only, step, step_all, voters


def _leader(membership: Membership | None = None) -> Raft:
    raft = lead(machine(membership=membership or voters(1, 2, 3)))
    step_all(raft, ack(raft, 2, 1), ack(raft, 3, 1))
    return raft


def test_a_target_that_has_everything_is_told_at_once() -> None:
    """It campaigns without waiting for its timeout."""
    raft = _leader()
    ready = step(raft, TransferLeadership(2))
    assert only(ready.messages, TimeoutNow) == [TimeoutNow(2, 1, 1)]
    assert raft.status().transferee == 2


def test_a_target_that_lags_is_brought_up_to_date_first() -> None:
    """`TimeoutNow` leaves only when it has matched the last index."""
    raft = _leader()
    step_all(raft, Propose([b"x"]))
    assert only(step(raft, TransferLeadership(2)).messages, TimeoutNow) == []
    assert only(step(raft, ack(raft, 3, 2)).messages, TimeoutNow) == []
    assert only(step(raft, ack(raft, 2, 2)).messages, TimeoutNow) == [TimeoutNow(2, 1, 1)]


def test_proposals_come_back_while_a_transfer_is_under_way() -> None:
    """Local ones are rejected, forwarded ones lost; after it was given up they are taken again."""
    raft = _leader()
    step(raft, TransferLeadership(2))
    ready = step(raft, Propose([b"x"]), ForwardedProposals(1, 3, 1, [b"y"]))
    assert (ready.rejected_proposals, raft.last_index) == ([b"x"], 1)


def test_a_transfer_is_given_up_after_one_election_timeout() -> None:
    """The leader goes on."""
    raft = _leader()
    for _ in range(ELECTION_TICKS // 2):
        step(raft, Tick())
    step(raft, TransferLeadership(2))
    for _ in range(ELECTION_TICKS - 1):
        step(raft, Tick(), ack(raft, 2, 1))
    assert raft.status().transferee == 2
    step(raft, Tick())
    assert (raft.role, raft.status().transferee) == (LEADER, 0)
    assert step(raft, Propose([b"x"])).rejected_proposals == []


@pytest.mark.parametrize("target", [1, 4, 9])
def test_only_another_voter_can_take_over(target: int) -> None:
    """Not the leader itself, not a learner, not a stranger."""
    raft = _leader(Membership(voters=frozenset({1, 2, 3}), learners=frozenset({4})))
    step_all(raft, ack(raft, 4, 1))
    assert only(step(raft, TransferLeadership(target)).messages, TimeoutNow) == []
    assert raft.status().transferee == 0


def test_a_second_transfer_replaces_the_first() -> None:
    """The same one again changes nothing."""
    raft = _leader()
    step(raft, TransferLeadership(2))
    assert step(raft, TransferLeadership(2)).messages == []
    assert only(step(raft, TransferLeadership(3)).messages, TimeoutNow) == [TimeoutNow(3, 1, 1)]
    assert raft.status().transferee == 3


def test_a_target_that_is_removed_ends_the_transfer() -> None:
    """It could never take over."""
    raft = _leader()
    step(raft, TransferLeadership(3), Applied(1, voters(1, 2)))
    assert raft.status().transferee == 0


def test_the_best_successor_is_the_most_up_to_date_voter_that_is_alive() -> None:
    """Target 0: most matched, recently heard, smallest id among equals."""
    raft = _leader(Membership(voters=frozenset({1, 2, 3, 4, 5}), learners=frozenset({6})))
    step_all(raft, Propose([b"x"]))
    step_all(raft, ack(raft, 4, 2), ack(raft, 5, 2), ack(raft, 6, 2))
    step(raft, TransferLeadership(0))
    assert raft.status().transferee == 4


def test_nobody_alive_means_no_transfer() -> None:
    """A silent voter is no successor."""
    raft = lead(machine(check_quorum=False))
    for _ in range(ELECTION_TICKS):
        step(raft, Tick())
    step(raft, TransferLeadership(0))
    assert raft.status().transferee == 0


def test_only_a_leader_hands_over() -> None:
    """Elsewhere the command means nothing, and so does `TimeoutNow` to anyone but a follower."""
    raft = machine(term=1)
    assert step(raft, TransferLeadership(2), TransferLeadership(0)).messages == []
    raft = _leader()
    step_all(raft, TimeoutNow(1, 2, raft.term))
    assert raft.role is LEADER


def test_the_target_campaigns_without_a_rehearsal_and_passes_the_lease() -> None:
    """Its vote request says that the leader asked for it."""
    raft = machine(term=1, pre_vote=True)
    ready = step(raft, TimeoutNow(1, 2, 1))
    assert (raft.role, raft.term) == (CANDIDATE, 2)
    assert [(m.pre, m.by_transfer) for m in only(ready.messages_after_save, VoteRequest)] == [(False, True)] * 2


@pytest.mark.parametrize("pre_vote", [False, True])
def test_leadership_moves_within_a_cluster(pre_vote: bool) -> None:
    """No tick is needed, and nothing proposed before is lost."""
    cluster = Cluster(3, pre_vote=pre_vote)
    cluster.elect(1)
    cluster.feed(1, Propose([b"a"]))
    cluster.feed(1, TransferLeadership(3))
    cluster.settle()
    assert (cluster.leader, cluster[1].leader) == (3, 3)
    assert b"a" in cluster.members[3].state


def test_a_transfer_to_a_member_that_needs_a_snapshot_waits_for_it() -> None:
    """LeaderTransferAfterSnapshot."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(3)
    cluster.feed(1, Propose([b"a"]))
    cluster.settle()
    cluster.take_snapshot(1)
    cluster.heal()
    cluster.feed(1, TransferLeadership(3))
    cluster.tick(count=3)
    assert cluster.leader == 3
    assert cluster.members[3].state[:2] == [b"", b"a"]
