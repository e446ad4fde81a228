"""Promises to a leader: who gives them, what they hold up, and when a leader may count on them (`node.lease`)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pyraftkv.core import Config, Raft, Stored
from pyraftkv.core.messages import (
    AppendRequest,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from pyraftkv.core.reads import ReadRounds
from pyraftkv.core.ready import Applied, Campaign, ForgetLeader, ReadIndex, Tick, TransferLeadership
from pyraftkv.core.types import (
    CANDIDATE,
    FOLLOWER,
    LEADER,
    MEMBERSHIP,
    Entry,
    HardState,
    Membership,
)
from tests.core.machines import ELECTION_TICKS, ack, entries, lead, machine, only, snapshot, step, step_all


def leader(*, size: int = 3, **knobs: Any) -> Raft:
    """Return a leader in term 1 whose empty entry is committed and applied, and who numbers its heartbeats."""
    raft = lead(machine(size=size, **{"lease_reads": True, **knobs}))
    step_all(raft, *[ack(raft, node, raft.last_index) for node in sorted(raft.membership.voters - {1})])
    assert raft.applied == raft.last_index
    return raft


def promise(raft: Raft, sender: int, context: int) -> HeartbeatResponse:
    """Return the answer to a heartbeat, with a promise."""
    return HeartbeatResponse(raft.id, sender, raft.term, context, ELECTION_TICKS)


def request(term: int, *, sender: int = 3, pre: bool = False, by_transfer: bool = False) -> VoteRequest:
    """Return a vote request of a member whose log is no worse than anybody's."""
    return VoteRequest(1, sender, term, 9, term, pre, by_transfer)


def granted(messages: list[Any]) -> bool:
    """Whether one of the messages is a vote."""
    return any(type(message) is VoteResponse and message.granted for message in messages)


# --- Rounds ----------------------------------------------------------------------------------------------------------


def test_every_heartbeat_has_a_number_of_its_own() -> None:
    """With reads or without; a round of reads brings its own."""
    raft = leader()
    numbers = [{beat.context for beat in only(step(raft, Tick()).messages, Heartbeat)} for _ in range(2)]
    assert numbers == [{1}, {2}]
    assert {beat.context for beat in only(step(raft, ReadIndex(7)).messages, Heartbeat)} == {3}
    assert raft.round == 3


def test_without_leases_heartbeats_are_not_numbered() -> None:
    """There is nothing to tell apart, and their answers promise nothing."""
    raft = leader(lease_reads=False)
    assert {beat.context for beat in only(step(raft, Tick()).messages, Heartbeat)} == {0}
    follower = machine(1, term=1)
    assert step_all(follower, Heartbeat(1, 2, 1, 0, 4)) == [HeartbeatResponse(2, 1, 1, 4, 0)]
    assert granted(step_all(follower, *[Tick()] * ELECTION_TICKS, request(2)))


def test_a_lease_stands_on_the_newest_round_that_a_quorum_has_promised_upon() -> None:
    """One other of three is enough, and later answers to earlier rounds take nothing back."""
    raft = leader()
    step(raft, Tick())
    step(raft, Tick())
    assert raft.lease_round == 0
    step(raft, promise(raft, 3, 2))
    assert raft.lease_round == 2
    step(raft, promise(raft, 3, 1), promise(raft, 2, 1))
    assert raft.lease_round == 2


def test_only_promises_make_a_lease() -> None:
    """An answer without one confirms reads, and says nothing of what its sender does next."""
    raft = leader()
    step(raft, Tick(), ReadIndex(7))
    ready = step(raft, HeartbeatResponse(1, 2, 1, raft.round))
    assert [read.context for read in ready.reads] == [7]
    assert raft.lease_round == 0


def test_a_shorter_promise_makes_no_lease() -> None:
    """1. A member has a shorter election timeout by mistake. 2. Its promise ends before the leader's lease would."""
    raft = leader()
    step(raft, Tick(), HeartbeatResponse(1, 2, 1, 1, ELECTION_TICKS - 1))
    assert raft.lease_round == 0
    step(raft, HeartbeatResponse(1, 3, 1, 1, ELECTION_TICKS + 1))
    assert raft.lease_round == 1


def test_a_round_that_was_never_sent_is_no_promise() -> None:
    """Whoever answers it answers somebody else."""
    raft = leader()
    step(raft, Tick(), promise(raft, 2, 5))
    assert raft.lease_round == 0


def test_rounds_are_counted_under_the_configuration_in_force() -> None:
    """The promises of members that are gone make no lease, nor do those of learners."""
    raft = leader(size=5)
    step(raft, Tick())
    step(raft, promise(raft, 4, 1), promise(raft, 5, 1))
    assert raft.lease_round == 1
    raft._log.handed_out = raft._log.commit
    step(raft, Applied(1, Membership(voters=frozenset({1, 2, 3}), learners=frozenset({4, 5}))))
    assert raft.lease_round == 0
    step(raft, promise(raft, 2, 1))
    assert raft.lease_round == 1


def test_a_joint_configuration_needs_promises_of_both_majorities() -> None:
    """As everything else that it decides (thesis §4.3)."""
    rounds = ReadRounds(reads_max=1)
    rounds.number()
    membership = Membership(voters=frozenset({1, 4, 5}), outgoing=frozenset({1, 2, 3}))
    rounds.ack(sender=2, context=1, promised=True)
    assert rounds.promised(membership, leader=1) == 0
    rounds.ack(sender=4, context=1, promised=True)
    assert rounds.promised(membership, leader=1) == 1
    rounds.check()


def test_who_votes_alone_needs_no_promise() -> None:
    """Nobody else can elect anyone; a learner is not asked."""
    raft = lead(machine(membership=Membership(voters=frozenset({1}), learners=frozenset({2})), lease_reads=True))
    step_all(raft, Tick())
    assert raft.lease_round == 1


def test_there_is_no_lease_before_an_entry_of_the_own_term_is_applied() -> None:
    """Thesis §6.4: the commit index may lag behind what the leader before has acknowledged."""
    raft = lead(machine(1, 1, term=1, lease_reads=True))
    step(raft, Tick(), promise(raft, 2, 1))
    assert raft.lease_round == 0
    step(raft, ack(raft, 2, 3))
    assert (raft.commit, raft.applied) == (3, 0)
    assert raft.lease_round == 0
    step(raft, Applied(3))
    assert raft.lease_round == 1


def test_a_lease_ends_with_the_leadership() -> None:
    """Also for a leader that leads again: promises of an earlier term count for nothing."""
    raft = leader()
    step(raft, Tick(), promise(raft, 2, 1))
    step_all(raft, AppendRequest(1, 3, 2, 1, 1, [], 1))
    assert (raft.role, raft.lease_round) == (FOLLOWER, 0)
    step_all(raft, *[Tick()] * (2 * ELECTION_TICKS))
    lead(raft)
    step_all(raft, ack(raft, 2, raft.last_index), ack(raft, 3, raft.last_index))
    assert raft.lease_round == 0
    assert raft.round == 1


def test_a_leader_that_told_another_to_campaign_has_no_lease_in_its_term() -> None:
    """raft-rs#234: `TimeoutNow` passes every promise, and may arrive long after the transfer was given up."""
    raft = leader()
    step(raft, Tick(), promise(raft, 2, 1))
    ready = step(raft, TransferLeadership(3))
    assert only(ready.messages, TimeoutNow) == [TimeoutNow(3, 1, 1)]
    assert raft.lease_round == 0
    for _ in range(2 * ELECTION_TICKS):
        step_all(raft, Tick(), promise(raft, 2, raft.round), promise(raft, 3, raft.round))
    assert (raft.role, raft.status().transferee, raft.lease_round) == (LEADER, 0, 0)


def test_a_transfer_that_told_nobody_leaves_the_lease() -> None:
    """Its target never caught up, and was never told: nobody's promise was passed."""
    raft = leader()
    step_all(raft, AppendResponse(1, 2, 1, 1, False, 0, 0))
    raft._log.append_payloads(term=1, payloads=[b"x"])
    step_all(raft, ack(raft, 2, raft.last_index))
    step_all(raft, Tick(), promise(raft, 2, 1), TransferLeadership(3))
    assert (raft.status().transferee, raft.lease_round) == (3, 1)


# --- Promises --------------------------------------------------------------------------------------------------------


def follower(**knobs: Any) -> Raft:
    """Return a follower that has just answered a heartbeat of member 2 in term 1."""
    raft = machine(1, term=1, **{"lease_reads": True, **knobs})
    assert step_all(raft, Heartbeat(1, 2, 1, 0, 4)) == [HeartbeatResponse(2, 1, 1, 4, ELECTION_TICKS)]
    return raft


@pytest.mark.parametrize("pre", [False, True])
def test_a_promise_holds_for_an_election_timeout(pre: bool) -> None:
    """To the tick, for votes and rehearsals alike; the leader's own wish passes it."""
    raft = follower()
    step_all(raft, *[Tick()] * (ELECTION_TICKS - 1))
    assert step_all(raft, request(2, pre=pre)) == []
    assert granted(step_all(raft, Tick(), request(2, pre=pre)))
    assert granted(step_all(follower(), request(2, by_transfer=True)))


def test_a_promise_needs_no_check_quorum() -> None:
    """A leader counts on it, whatever else guards elections."""
    assert step_all(follower(check_quorum=False), request(2)) == []


def test_a_promise_holds_in_whatever_term() -> None:
    """A late answer of a member whose term ran ahead deposes nobody: its leader still reads on the promise."""
    raft = follower()
    step_all(raft, VoteResponse(1, 3, 7, False, False))
    assert (raft.term, raft.leader) == (7, 0)
    assert not granted(step_all(raft, request(7), request(8)))
    assert raft.term == 7
    step_all(raft, *[Tick()] * ELECTION_TICKS)
    assert granted(step_all(raft, request(8)))


def test_a_promise_binds_the_own_candidacy() -> None:
    """`Campaign` is put off by it; what the leader asks for is not."""
    raft = follower()
    step_all(raft, Campaign())
    assert raft.role is FOLLOWER
    step_all(raft, TimeoutNow(1, 2, 1))
    assert raft.role is CANDIDATE


def test_a_promise_outlives_the_leader_in_mind() -> None:
    """`ForgetLeader` forgets whom to follow, and nothing that was promised to it."""
    raft = follower()
    step_all(raft, ForgetLeader())
    assert raft.leader == 0
    assert not granted(step_all(raft, request(2)))


def test_a_promise_is_over_when_the_election_timeout_has_run_out() -> None:
    """The shortest wait for an election is as long as a promise."""
    raft = follower()
    raft._election_timeout = ELECTION_TICKS
    step_all(raft, *[Tick()] * (ELECTION_TICKS - 1))
    assert raft.role is FOLLOWER
    step_all(raft, Tick())
    assert raft.role is CANDIDATE


# --- Starting again --------------------------------------------------------------------------------------------------


def restarted(*nodes: int, log: list[Entry] | None = None, **knobs: Any) -> Raft:
    """Return a member that may have promised something before it was started, and has none of it in its memory.

    Args:
        nodes: The voters as of its snapshot, at index 1.
        log: What it has after that.
        knobs: For its `Config`.
    """
    config = Config(id=1, heartbeat_ticks=1, election_ticks=ELECTION_TICKS, **knobs)
    stored = Stored(HardState(3, 0, 1), snapshot(1, 1, *nodes), log or [], 2, promised=True)
    return Raft(config, stored=stored, rng=random.Random(1))


@pytest.mark.parametrize("lease_reads", [False, True])
def test_who_starts_again_keeps_what_it_may_have_promised(lease_reads: bool) -> None:
    """For an election timeout from its start, whatever its setting is now: it was another one then, perhaps."""
    raft = restarted(1, 2, 3, lease_reads=lease_reads)
    assert not granted(step_all(raft, request(4), request(4, pre=True), *[Tick()] * (ELECTION_TICKS - 1), request(4)))
    assert raft.term == 3
    assert granted(step_all(raft, Tick(), request(4)))


def test_who_never_heard_a_leader_votes_at_once() -> None:
    """The first start of a cluster waits for nothing."""
    assert granted(step_all(machine(1, term=1, lease_reads=True), request(2)))


def test_who_starts_again_waits_before_it_campaigns() -> None:
    """Unless no one else has a vote: then nobody can have its promise."""
    waiting, alone = restarted(1, 2, 3), restarted(1)
    step_all(waiting, Campaign())
    step_all(alone, Campaign())
    assert (waiting.role, alone.role) == (FOLLOWER, LEADER)


def test_who_let_another_in_is_not_alone_though_its_snapshot_says_so() -> None:
    """The other may lead by now, and have its promise: the change stands in the log, committed or not."""
    raft = restarted(1, log=[Entry(2, 2, b"let 2 in", MEMBERSHIP), *entries(3, 3)])
    step_all(raft, Campaign())
    assert raft.role is FOLLOWER
    step_all(raft, *[Tick()] * (2 * ELECTION_TICKS))
    assert raft.role is LEADER
