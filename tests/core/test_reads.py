"""ReadIndex: rounds, and reads through leaders and followers."""

from __future__ import annotations

import pytest

from pyraftkv.core import Raft
from pyraftkv.core.messages import (
    AppendRequest,
    Heartbeat,
    HeartbeatResponse,
    ReadIndexRequest,
    ReadIndexResponse,
)
from pyraftkv.core.reads import PendingRead, ReadRound, ReadRounds
from pyraftkv.core.ready import Applied, Campaign, Propose, ReadIndex, ReadReady, Saved, Tick
from pyraftkv.core.types import FOLLOWER, LEADER, Membership
from tests.core.cluster import Cluster
from tests.core.machines import ack, lead, machine, only, step, step_all, voters

# --- Rounds ----------------------------------------------------------------------------------------------------------


def test_a_round_is_confirmed_by_a_quorum_and_takes_earlier_ones_with_it() -> None:
    """An answer to round n says that the leader led when n went out, so when n - 1 did too."""
    rounds = ReadRounds(reads_max=10)
    for number in (1, 2, 3):
        assert rounds.add(sender=1, context=number * 10)
        rounds.open(index=number)
        assert rounds.context == number
    rounds.ack(sender=2, context=2)
    assert rounds.confirmed(voters(1, 2, 3), leader=1) == [
        ReadRound(1, 1, [PendingRead(1, 10)]),
        ReadRound(2, 2, [PendingRead(1, 20)]),
    ]
    assert (len(rounds), rounds.context) == (1, 3)
    rounds.check()


def test_answers_to_old_or_unknown_rounds_confirm_nothing() -> None:
    """Late answers carry old numbers; numbers that were never given out are ignored."""
    rounds = ReadRounds(reads_max=10)
    rounds.add(sender=1, context=5)
    rounds.open(index=1)
    rounds.ack(sender=2, context=1)
    assert len(rounds.confirmed(voters(1, 2, 3), leader=1)) == 1
    rounds.add(sender=1, context=5)
    rounds.open(index=2)
    rounds.ack(sender=2, context=1)
    rounds.ack(sender=3, context=99)
    assert rounds.confirmed(voters(1, 2, 3), leader=1) == []
    rounds.ack(sender=3, context=2)
    rounds.ack(sender=3, context=1)
    assert len(rounds.confirmed(voters(1, 2, 3), leader=1)) == 1


def test_a_joint_configuration_confirms_with_both_majorities() -> None:
    """Thesis §4.3 holds for reads too."""
    membership = Membership(voters=frozenset({1, 4, 5}), outgoing=frozenset({1, 2, 3}))
    rounds = ReadRounds(reads_max=10)
    rounds.add(sender=1, context=5)
    rounds.open(index=1)
    rounds.ack(sender=2, context=1)
    assert rounds.confirmed(membership, leader=1) == []
    rounds.ack(sender=4, context=1)
    assert len(rounds.confirmed(membership, leader=1)) == 1


def test_reads_are_bounded() -> None:
    """Over `reads_max` a read is dropped, waiting or under way alike."""
    rounds = ReadRounds(reads_max=2)
    assert rounds.add(sender=1, context=1)
    rounds.open(index=1)
    assert rounds.add(sender=1, context=2)
    assert not rounds.add(sender=1, context=3)
    rounds.clear()
    assert (len(rounds), rounds.context, rounds.has_joining) == (0, 0, False)
    assert rounds.add(sender=1, context=4)
    rounds.check()


def test_a_number_is_never_used_again() -> None:
    """Not even by a later leadership of the same member."""
    rounds = ReadRounds(reads_max=2)
    rounds.add(sender=1, context=1)
    rounds.open(index=1)
    rounds.clear()
    rounds.add(sender=1, context=1)
    rounds.open(index=1)
    assert rounds.context == 2


# --- Leaders ---------------------------------------------------------------------------------------------------------


def _leader(size: int = 3) -> Raft:
    """Return a leader whose empty entry is committed by everyone."""
    raft = lead(machine(size=size))
    step_all(raft, *[ack(raft, node, raft.last_index) for node in sorted(raft.membership.voters - {1})])
    step_all(raft)
    return raft


def test_a_read_asks_everyone_at_once_and_a_quorum_answers() -> None:
    """Heartbeats with the round leave with the same `Ready`; the first answer of three completes it."""
    raft = _leader()
    ready = step(raft, ReadIndex(70), ReadIndex(71))
    assert only(ready.messages, Heartbeat) == [Heartbeat(to, 1, 1, 1, 1) for to in (2, 3)]
    assert ready.reads == []
    ready = step(raft, HeartbeatResponse(1, 2, 1, 1))
    assert ready.reads == [ReadReady(70, 1), ReadReady(71, 1)]
    assert step(raft, HeartbeatResponse(1, 3, 1, 1)).reads == []


def test_a_read_is_as_of_what_is_committed_when_it_comes() -> None:
    """Neither what is applied already, which may be less, nor what the log has besides, which may never be."""
    raft = _leader()
    ready = step(raft, Propose([b"a"]))
    assert ready.save is not None
    step(raft, Saved(ready.save.number), ack(raft, 2, 2), Propose([b"b"]))
    assert (raft.applied, raft.commit, raft.last_index) == (1, 2, 3)
    step(raft, ReadIndex(70))
    assert step(raft, HeartbeatResponse(1, 2, 1, 1)).reads == [ReadReady(70, 2)]


def test_a_heartbeat_from_before_the_read_confirms_nothing() -> None:
    """Its answer says nothing of the time after the read arrived."""
    raft = _leader()
    step(raft, Tick())
    step(raft, ReadIndex(70))
    assert step(raft, HeartbeatResponse(1, 2, 1, 0)).reads == []


def test_a_round_that_was_lost_is_asked_again_by_the_next_heartbeat() -> None:
    """The periodic heartbeat carries the newest round under way."""
    raft = _leader()
    step(raft, ReadIndex(70))
    step(raft, ReadIndex(71))
    heartbeats = only(step(raft, Tick()).messages, Heartbeat)
    assert [heartbeat.context for heartbeat in heartbeats] == [2, 2]
    assert step(raft, HeartbeatResponse(1, 2, 1, 2)).reads == [ReadReady(70, 1), ReadReady(71, 1)]


def test_a_single_voter_answers_at_once() -> None:
    """There is nobody to ask; learners have no say."""
    raft = lead(machine(membership=Membership(voters=frozenset({1}), learners=frozenset({2}))))
    ready = step(raft, ReadIndex(7))
    assert ready.reads == [ReadReady(7, 1)]
    assert only(ready.messages, Heartbeat) == []


def test_a_new_leader_answers_only_after_it_committed_in_its_term() -> None:
    """Thesis §6.4, step 1: its commit index may lag behind what the old leader confirmed."""
    raft = lead(machine(1, 1, term=1))
    ready = step(raft, ReadIndex(7), ReadIndexRequest(1, 3, 2, 8))
    assert (ready.reads, only(ready.messages, Heartbeat)) == ([], [])
    step(raft, HeartbeatResponse(1, 2, 2, 0), HeartbeatResponse(1, 3, 2, 0))
    ready = step(raft, ack(raft, 2, 3))
    assert raft.commit == 3
    assert [heartbeat.context for heartbeat in only(ready.messages, Heartbeat)] == [1, 1]
    ready = step(raft, HeartbeatResponse(1, 2, 2, 1))
    assert ready.reads == [ReadReady(7, 3)]
    assert only(ready.messages, ReadIndexResponse) == [ReadIndexResponse(3, 1, 2, 8, 3)]


def test_equal_contexts_of_different_members_stay_apart() -> None:
    """Each gets its own answer."""
    raft = _leader()
    step(raft, ReadIndex(7), ReadIndexRequest(1, 2, 1, 7), ReadIndexRequest(1, 3, 1, 7))
    ready = step(raft, HeartbeatResponse(1, 3, 1, 1))
    assert ready.reads == [ReadReady(7, 1)]
    assert ready.messages == [ReadIndexResponse(2, 1, 1, 7, 1), ReadIndexResponse(3, 1, 1, 7, 1)]


def test_reads_die_with_the_leadership() -> None:
    """A leader that is deposed answers none of its reads, even if it leads again."""
    raft = _leader()
    step(raft, ReadIndex(7))
    step_all(raft, AppendRequest(1, 2, 5, 1, 1, [], 0))
    assert raft.role is FOLLOWER
    step_all(raft, Campaign())
    lead(raft)
    step_all(raft, ack(raft, 2, raft.last_index))
    assert raft.role is LEADER
    assert step(raft, HeartbeatResponse(1, 2, raft.term, 1), HeartbeatResponse(1, 3, raft.term, 1)).reads == []


def test_a_smaller_membership_can_confirm_what_a_larger_could_not() -> None:
    """The quorum that counts is that of the configuration in force."""
    raft = _leader(size=5)
    step(raft, ReadIndex(7))
    assert step(raft, HeartbeatResponse(1, 2, 1, 1)).reads == []
    raft._log.handed_out = raft._log.commit
    assert step(raft, Applied(1, voters(1, 2, 3))).reads == [ReadReady(7, 1)]


# --- Followers -------------------------------------------------------------------------------------------------------


def test_a_follower_asks_its_leader() -> None:
    """The request carries the context; the answer comes back as a read that is ready."""
    raft = machine(1, term=1)
    step_all(raft, Heartbeat(1, 2, 1, 0, 0))
    assert step(raft, ReadIndex(7)).messages == [ReadIndexRequest(2, 1, 1, 7)]
    assert step(raft, ReadIndexResponse(1, 2, 1, 7, 1)).reads == [ReadReady(7, 1)]


@pytest.mark.parametrize("campaigning", [False, True])
def test_without_a_leader_a_read_is_dropped(campaigning: bool) -> None:
    """Its node tries again, under a fresh context."""
    raft = machine(1, term=1)
    if campaigning:
        step_all(raft, Campaign())
    ready = step(raft, ReadIndex(7))
    assert (only(ready.messages, ReadIndexRequest), ready.reads) == ([], [])


def test_reads_through_every_member_of_a_cluster() -> None:
    """Leader and followers learn the same index."""
    cluster = Cluster(3)
    cluster.elect(2)
    for node in (1, 2, 3):
        cluster.feed(node, ReadIndex(node))
    cluster.settle()
    commit = cluster[2].commit
    assert [cluster.members[node].reads for node in (1, 2, 3)] == [[ReadReady(node, commit)] for node in (1, 2, 3)]


def test_an_isolated_leader_confirms_no_read() -> None:
    """It may have been replaced without knowing."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(1)
    cluster.feed(1, ReadIndex(1))
    cluster.tick(count=5)
    assert cluster.members[1].reads == []
