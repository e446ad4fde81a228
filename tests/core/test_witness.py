"""The witness: what it keeps, when it leads and what it does then, and what is said of it when it had no room."""

from __future__ import annotations

import random

import pytest

from pyraftkv.core import Config, Raft, Stored
from pyraftkv.core.membership import ADD_WITNESS, REMOVE, Change
from pyraftkv.core.messages import (
    AppendRequest,
    AppendResponse,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    TimeoutNow,
    VoteRequest,
)
from pyraftkv.core.ready import (
    Campaign,
    KeepPayloads,
    Propose,
    ProposeMembership,
    Saved,
    Tick,
    TransferLeadership,
)
from pyraftkv.core.types import FOLLOWER, HOLLOW, LEADER, MEMBERSHIP, NORMAL, Entry, HardState, Membership, SnapshotMeta
from tests.core.cluster import Cluster
from tests.core.machines import ELECTION_TICKS, ack, append, lead, machine, only, step, step_all, with_witness

WITNESS = 3
TWO_AND_A_WITNESS = with_witness(3)


def _cluster(**knobs: int | bool) -> Cluster:
    """Return data members 1, which leads, and 2, and the witness 3."""
    cluster = Cluster(3, membership=TWO_AND_A_WITNESS, **knobs)
    cluster.elect(1)
    return cluster


def _put(cluster: Cluster, *payloads: bytes, node: int = 1) -> None:
    cluster.feed(node, Propose(list(payloads)))
    cluster.settle()
    cluster.tick()


def _kinds(cluster: Cluster) -> list[str]:
    """Return what the witness's disk holds of each entry."""
    return [entry.kind.name for _, entry in sorted(cluster.members[WITNESS].disk.entries.items())]


# --- The floor -------------------------------------------------------------------------------------------------------


def test_the_floor_follows_what_every_data_voter_has() -> None:
    """So that the witness drops nearly everything while both are up; and it is nothing to the others."""
    cluster = _cluster()
    _put(cluster, b"a", b"b")
    cluster.tick()
    assert cluster[WITNESS].floor == 3
    assert cluster.take_snapshot(WITNESS) == SnapshotMeta(3, 1, TWO_AND_A_WITNESS)
    assert _kinds(cluster) == []


def test_the_floor_waits_for_a_data_voter_that_is_away() -> None:
    """And goes on when it is back."""
    cluster = _cluster()
    cluster.tick()
    cluster.isolate(2)
    _put(cluster, b"a", b"b")
    cluster.tick(count=3)
    assert (cluster[WITNESS].commit, cluster[WITNESS].floor) == (3, 1)
    assert cluster.take_snapshot(WITNESS).index == 1
    assert _kinds(cluster) == ["NORMAL", "NORMAL"]
    cluster.heal()
    cluster.tick(count=3)
    assert cluster[WITNESS].floor == 3


def test_learners_hold_up_no_floor() -> None:
    """What a learner lacks the leader sends it; nobody counts on it."""
    learning = Membership(frozenset({1, 2, 3}), learners=frozenset({4}), witnesses=frozenset({WITNESS}))
    cluster = Cluster(4, membership=learning)
    cluster.isolate(4)
    cluster.elect(1)
    _put(cluster, b"a")
    cluster.tick()
    assert cluster[WITNESS].floor == 2


def test_the_floor_asks_both_halves_of_a_joint_configuration() -> None:
    """An outgoing data voter may lead yet, and an incoming one decides already."""
    joint = Membership(frozenset({1, 4, 3}), frozenset({1, 2, 3}), witnesses=frozenset({3}))
    for behind in (2, 4):
        raft = lead(machine(membership=joint))
        step_all(raft, *[ack(raft, node, 1) for node in (2, 3, 4)])
        step_all(raft, Propose([b"a"]))
        step_all(raft, *[ack(raft, node, 2) for node in (2, 3, 4) if node != behind], Tick())
        assert (raft.commit, raft.floor) == (2, 1), behind
        step_all(raft, ack(raft, behind, 2), Tick())
        assert raft.floor == 2


def test_the_floor_never_falls_and_is_never_beyond_what_the_witness_has() -> None:
    """A new leader knows of nobody's log, and a late heartbeat of less."""
    raft = machine(1, 1, node=WITNESS, membership=TWO_AND_A_WITNESS, witness=True)
    step_all(raft, Heartbeat(WITNESS, 1, 1, 2, 0, 2), Heartbeat(WITNESS, 1, 1, 1, 0, 1), Heartbeat(WITNESS, 2, 2, 0, 0))
    assert raft.floor == 2
    leader = lead(machine(membership=TWO_AND_A_WITNESS))
    step_all(leader, Propose([b"a"]), ack(leader, 2, 2), ack(leader, WITNESS, 1))
    beats = only(step_all(leader, Tick()), Heartbeat)
    assert {beat.to: beat.floor for beat in beats} == {2: 2, WITNESS: 1}


# --- Leading ---------------------------------------------------------------------------------------------------------


def test_a_witness_leads_to_bring_a_data_voter_on_and_hands_over() -> None:
    """2 was away while 1 committed with the witness; then 1 dies. Nothing is lost, and soon 2 leads."""
    cluster = _cluster()
    cluster.isolate(2)
    _put(cluster, b"a", b"b")
    cluster.crash(1)
    cluster.heal()
    led: list[int] = []
    for _ in range(12 * ELECTION_TICKS):
        cluster.tick()
        led += [cluster.leader] if cluster.leader not in {0, *led[-1:]} else []
    assert led == [2]  # The witness led within one tick.
    assert cluster[2].term >= 3
    assert cluster.members[2].state[:3] == [b"", b"a", b"b"]
    _put(cluster, b"c", node=2)
    assert cluster.members[2].state[-1] == b"c"


def test_a_leading_witness_takes_nothing_and_hands_over_to_who_has_everything() -> None:
    """Its log stands still behind the empty entry of its term; a learner or one that is behind is not told to lead."""
    membership = Membership(frozenset({1, 2, 3}), learners=frozenset({4}), witnesses=frozenset({WITNESS}))
    raft = lead(machine(1, 1, node=WITNESS, membership=membership, witness=True))
    ready = step(raft, Propose([b"x"]), ProposeMembership(b"y", leave=False))
    assert ready.rejected_proposals == [b"x", b"y"]
    assert only(step_all(raft, ack(raft, 4, 3), ack(raft, 2, 2)), TimeoutNow) == []
    assert only(step_all(raft, ack(raft, 2, 3)), TimeoutNow) == [TimeoutNow(2, WITNESS, raft.term)]
    assert step(raft, ProposeMembership(b"z", leave=False)).rejected_proposals == [b"z"]
    assert (raft.applied, raft.last_index) == (3, 3)


def test_a_leading_witness_does_not_leave_a_joint_configuration() -> None:
    """The next leader does."""
    joint = Membership(frozenset({1, 2, 3}), frozenset({1, 2, 4}), auto_leave=True, witnesses=frozenset({3}))
    raft = lead(machine(1, node=WITNESS, membership=joint, witness=True))
    step_all(raft, ack(raft, 1, 2), ack(raft, 2, 2))
    step_all(raft, *[Tick() for _ in range(ELECTION_TICKS - 1)])
    assert (raft.role, raft.commit, raft.last_index) == (LEADER, 2, 2)


def test_a_leading_witness_that_brings_nobody_on_steps_down() -> None:
    """Within an election timeout in which no data voter got anything new; whoever is up to date can then stand."""
    raft = lead(machine(1, 1, node=WITNESS, membership=TWO_AND_A_WITNESS, witness=True, check_quorum=False))
    step_all(raft, ack(raft, 2, 1), *[Tick() for _ in range(ELECTION_TICKS)])
    assert raft.role is LEADER
    step_all(raft, ack(raft, 2, 2), *[Tick() for _ in range(ELECTION_TICKS)])
    assert raft.role is LEADER
    step_all(raft, *[Tick() for _ in range(ELECTION_TICKS)])
    assert raft.role is FOLLOWER


def test_a_witness_has_no_snapshot_for_anybody() -> None:
    """There is nothing in its own: who needs one waits for another leader."""
    snapshot = SnapshotMeta(5, 1, TWO_AND_A_WITNESS)
    config = Config(id=WITNESS, witness=True, pre_vote=False)
    raft = lead(Raft(config, stored=Stored(HardState(1), snapshot, first_index=6, floor=5), rng=random.Random(1)))
    assert (raft._log.first_index, raft.last_index) == (6, 6)
    sent = step_all(raft, AppendResponse(WITNESS, 2, raft.term, 5, True, 3, 1), Tick())
    sent += step_all(raft, HeartbeatResponse(WITNESS, 2, raft.term, 0), Tick())
    assert only(sent, InstallSnapshot) == []


def test_a_witness_is_nobodys_successor() -> None:
    """Neither the best one nor by name: it would only hand over in its turn."""
    raft = lead(machine(membership=TWO_AND_A_WITNESS))
    step_all(raft, ack(raft, WITNESS, 1))
    for to in (0, WITNESS):
        step_all(raft, *[Tick() for _ in range(ELECTION_TICKS - 1)], TransferLeadership(to))
        assert raft.status().transferee in {0, 2}


def test_a_witness_waits_an_election_timeout_longer() -> None:
    """A data voter that can lead should, without a detour."""
    waits: list[int] = []
    for seed in range(40):
        cluster = Cluster(3, seed=seed, membership=TWO_AND_A_WITNESS)
        raft = cluster[WITNESS]
        waits.append(next(count for count in range(99) if raft.role is not FOLLOWER or raft.feed([Tick()])))
    assert min(waits) >= 2 * ELECTION_TICKS
    assert max(waits) < 3 * ELECTION_TICKS


# --- Hollow entries --------------------------------------------------------------------------------------------------


def test_without_room_a_witness_keeps_index_and_term() -> None:
    """It acknowledges and votes all the same; changes of the membership and empty entries stay as they are."""
    raft = machine(1, node=WITNESS, membership=TWO_AND_A_WITNESS, witness=True)
    sent = [Entry(2, 1, b"b"), Entry(3, 1, b"c", MEMBERSHIP), Entry(4, 1, b"")]
    step(raft, KeepPayloads(False), AppendRequest(WITNESS, 1, 1, 1, 1, sent, 0))
    assert raft._log.following(1) == [Entry(2, 1, b"", HOLLOW), *sent[1:]]
    raft = machine(1, node=WITNESS, membership=TWO_AND_A_WITNESS, witness=True)
    ready = step(raft, KeepPayloads(False), append(raft, 1, 1, 1, 1))
    assert [(message.index, message.hollow_index) for message in ready.messages_after_save] == [(3, 3)]
    ready = step(raft, Saved(1), KeepPayloads(True), append(raft, 3, 1, 1))
    assert ready.save is not None
    assert [entry.kind for entry in ready.save.entries] == [NORMAL]
    assert [(message.index, message.hollow_index) for message in ready.messages_after_save] == [(4, 3)]


def test_a_witness_that_lacks_payloads_does_not_stand_before_the_floor_has_passed_them() -> None:
    """Not by itself, not asked to; the floor lets it."""
    raft = machine(1, node=WITNESS, membership=TWO_AND_A_WITNESS, witness=True)
    step_all(raft, KeepPayloads(False), append(raft, 1, 1, 1, commit=2))
    assert not raft.holds_payloads
    assert only(step_all(raft, Campaign(), *[Tick() for _ in range(9 * ELECTION_TICKS)]), VoteRequest) == []
    assert step_all(raft, TimeoutNow(WITNESS, 1, 1)) == []
    step_all(raft, Heartbeat(WITNESS, 1, 1, 2, 0, 2))
    assert raft.holds_payloads
    assert len(only(step_all(raft, Campaign()), VoteRequest)) == 2


def test_hollow_entries_that_are_replaced_are_missed_no_more() -> None:
    """They were never committed: another leader's stand there, whole."""
    raft = machine(1, node=WITNESS, membership=TWO_AND_A_WITNESS, witness=True)
    step_all(raft, KeepPayloads(False), append(raft, 1, 1, 1, 1))
    assert raft._log.hollow_index == 3
    step_all(raft, KeepPayloads(True), append(raft, 1, 1, 2, 2, term=2))
    assert raft._log.hollow_index == 1
    assert [entry.kind for entry in raft._log.following(1)] == [NORMAL, NORMAL]


def test_only_what_is_committed_is_missing_for_good() -> None:
    """The rest may come whole, from another leader; it is acknowledged as such, and counts as a copy."""
    raft = machine(1, 1, node=WITNESS, membership=TWO_AND_A_WITNESS, witness=True)
    step_all(raft, KeepPayloads(False), append(raft, 2, 1, 1, 1, 1, commit=3))
    assert (raft.hollow_index, raft.lost_index) == (5, 3)
    step_all(raft, KeepPayloads(True), append(raft, 3, 1, 2, 2, term=2, commit=5))
    assert (raft.hollow_index, raft.lost_index) == (3, 3)
    step_all(raft, KeepPayloads(False), append(raft, 5, 2, 2, commit=5))
    assert (raft.hollow_index, raft.lost_index) == (6, 3)
    step_all(raft, append(raft, 6, 2, commit=6))
    assert raft.lost_index == 6


def test_what_is_hollow_on_disk_is_after_a_restart() -> None:
    """And so is what a received snapshot stands for; of its own snapshots a witness knows that nobody needs more."""
    cluster = _cluster()
    cluster.tick()
    cluster.take_snapshot(WITNESS)
    cluster.crash(WITNESS)
    cluster.restart(WITNESS)
    assert (cluster[WITNESS].floor, cluster[WITNESS].holds_payloads) == (1, True)
    cluster.isolate(2)
    cluster.tick(count=2)
    cluster.feed(WITNESS, KeepPayloads(False))
    _put(cluster, b"a")
    cluster.crash(WITNESS)
    cluster.restart(WITNESS)
    assert _kinds(cluster) == ["HOLLOW"]
    assert not cluster[WITNESS].holds_payloads


def test_a_leader_knows_that_it_commits_on_one_disk_and_when_no_more() -> None:
    """From the very acknowledgement that it counts, until every data voter has what the witness has not."""
    cluster = _cluster()
    cluster.isolate(2)
    cluster.tick(count=2)
    _put(cluster, b"a")
    assert not cluster[1].status().single_copy
    cluster.feed(WITNESS, KeepPayloads(False))
    _put(cluster, b"b")
    assert _kinds(cluster) == ["NORMAL", "NORMAL", "HOLLOW"]
    assert cluster[1].status().single_copy
    cluster.feed(WITNESS, KeepPayloads(True))
    _put(cluster, b"c")
    assert cluster[1].status().single_copy
    cluster.heal()
    cluster.tick(count=3)
    assert not cluster[1].status().single_copy
    assert cluster[WITNESS].holds_payloads


def test_a_new_leader_hears_of_hollow_entries_before_it_commits_with_them() -> None:
    """It was told nothing by the one before; whoever acknowledges says so."""
    cluster = _cluster()
    cluster.isolate(2)
    cluster.tick(count=2)
    cluster.feed(WITNESS, KeepPayloads(False))
    _put(cluster, b"b")
    cluster.crash(1)
    cluster.restart(1)
    cluster.elect(1)
    assert cluster[1].status().single_copy


def test_of_a_silent_witness_a_new_leader_assumes_the_worst() -> None:
    """Of what is older than its term; whatever it acknowledges itself, the witness says at once what it lacks of it."""
    raft = lead(machine(1, 1, membership=with_witness(5)))
    step_all(raft, ack(raft, 2, 3), ack(raft, 3, 3))
    assert (raft.commit, raft.status().single_copy) == (3, True)
    step_all(raft, ack(raft, 5, 3))
    assert not raft.status().single_copy


def test_late_acknowledgements_take_no_hollow_entry_back() -> None:
    """A witness in one term lacks more and more; what is beyond the acknowledged may be replaced yet."""
    raft = lead(machine(membership=TWO_AND_A_WITNESS))
    step_all(raft, Propose([b"a"]))
    hollow = AppendResponse(1, WITNESS, raft.term, 2, False, 0, 0, hollow_index=2)
    step_all(raft, hollow, ack(raft, WITNESS, 1), ack(raft, WITNESS, 2))
    assert raft.status().single_copy
    step_all(raft, ack(raft, 2, 2), Tick())
    assert not raft.status().single_copy


def test_a_witness_is_sent_only_what_its_leader_has_on_disk() -> None:
    """A leader that forgot in a crash what the witness has the hollow half of could not win again."""
    raft = lead(machine(membership=TWO_AND_A_WITNESS))
    step_all(raft, ack(raft, 2, 1), ack(raft, WITNESS, 1))
    ready = step(raft, Propose([b"a"]))
    assert ready.save is not None
    assert [message.to for message in only(ready.messages, AppendRequest)] == [2]
    ready = step(raft, Saved(ready.save.number))
    assert [message.to for message in only(ready.messages, AppendRequest)] == [WITNESS]


def test_a_leading_witness_sends_nothing_that_it_lacks() -> None:
    """What is hollow lies below the floor; one that came later asks for it all the same, and in vain."""
    raft = machine(1, node=WITNESS, membership=with_witness(3), witness=True)
    step_all(raft, KeepPayloads(False), append(raft, 1, 1, 1, commit=2), Heartbeat(WITNESS, 1, 1, 2, 0, 2))
    lead(raft)
    sent = step_all(raft, AppendResponse(WITNESS, 2, raft.term, 2, True, 1, 1), Tick())
    sent += step_all(raft, HeartbeatResponse(WITNESS, 2, raft.term, 0), ack(raft, 2, 1), Tick())
    assert [entry for message in only(sent, AppendRequest) for entry in message.entries if entry.index <= 2] == []


# --- Snapshots -------------------------------------------------------------------------------------------------------


def test_a_witness_that_is_replaced_while_a_data_voter_is_away_is_missed() -> None:
    """The new one has nothing that the absent one lacks: its leader says so, until that one is back."""
    cluster = _cluster()
    cluster.isolate(2)
    _put(cluster, b"a")
    cluster.add(4, membership=Membership(), witness=True)
    cluster.take_snapshot(1)
    cluster.change(1, Change(REMOVE, WITNESS), Change(ADD_WITNESS, 4))
    cluster.settle()
    cluster.tick(count=3)
    assert cluster[1].status().single_copy
    cluster.heal()
    cluster.tick(count=3)
    assert cluster[1].membership == Membership(frozenset({1, 2, 4}), witnesses=frozenset({4}))
    assert not cluster[1].status().single_copy
    assert cluster[4].holds_payloads


def test_only_the_table_of_members_is_left_of_a_received_snapshot() -> None:
    """So the receiver does not stand until the floor is past it."""
    raft = machine(node=WITNESS, membership=TWO_AND_A_WITNESS, witness=True)
    step(raft, InstallSnapshot(WITNESS, 1, 1, SnapshotMeta(9, 1, TWO_AND_A_WITNESS)))
    assert (raft.commit, raft.holds_payloads) == (9, False)
    step(raft, Heartbeat(WITNESS, 1, 1, 9, 0, 9))
    assert raft.holds_payloads


# --- All of it, at random --------------------------------------------------------------------------------------------


def _lose_one(seed: int) -> bool:
    """Lose a data member for ever at a random moment; return whether anybody could tell that this loses nothing."""
    rng = random.Random(seed)
    cluster = Cluster(3, seed=seed, membership=TWO_AND_A_WITNESS)
    cluster.elect(rng.choice((1, 2)))
    for _ in range(rng.randrange(5, 60)):
        draw = rng.random()
        if draw < 0.3:
            cluster.isolate(rng.choice((1, 2, 3)))
        elif draw < 0.5:
            cluster.heal()
        elif draw < 0.6:
            cluster.feed(WITNESS, KeepPayloads(rng.random() < 0.7))
        elif draw < 0.7 and cluster[WITNESS].floor > (cluster.members[WITNESS].disk.floor or 0):
            floor = min(cluster[WITNESS].floor, len(cluster.members[WITNESS].state))
            newest = cluster.members[WITNESS].disk.snapshot
            if newest is None or newest.index < floor:
                cluster.take_snapshot(WITNESS)
        elif cluster.leader:
            cluster.feed(cluster.leader, Propose([b"%d" % rng.randrange(99)]))
        for _ in range(rng.randrange(4)):
            cluster.settle_once()
        cluster.tick(count=rng.choice((0, 1, 1, 5, 15)))
    leader = cluster.leader
    is_known = leader in {1, 2} and cluster[leader].commit >= cluster[leader]._term_start
    if not is_known or cluster[leader].is_single_copy or not cluster[WITNESS].holds_payloads:
        return False
    committed = [payload for _, (_, payload) in sorted(cluster.checker.committed.items())]
    lost, left = rng.sample((1, 2), 2)
    cluster.crash(lost)
    cluster.heal()
    for _ in range(20):
        if cluster.leader != left:
            cluster.tick(count=ELECTION_TICKS)
    assert cluster.leader == left
    cluster.tick(count=ELECTION_TICKS)
    assert cluster.members[left].state[: len(committed)] == committed
    return True


@pytest.mark.no_cover
@pytest.mark.parametrize("first", [0, 50])
def test_whoever_is_lost_nothing_is_unless_it_was_said(first: int) -> None:
    """One data member gone for ever, at any moment when its leader does not say that there is a single copy."""
    told: list[bool] = []
    for seed in range(first, first + 50):
        try:
            told.append(_lose_one(seed))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    assert sum(told) > 10
