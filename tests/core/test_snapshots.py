"""Snapshots: sending, receiving, and going on after them (Raft §7)."""

from __future__ import annotations

import pytest

from pyraftkv.core import Raft
from pyraftkv.core.messages import (
    AppendRequest,
    AppendResponse,
    HeartbeatResponse,
    InstallSnapshot,
)
from pyraftkv.core.progress import PROBE, REPLICATE, SNAPSHOT
from pyraftkv.core.ready import Applied, Fetched, Propose, Saved, SnapshotSent, SnapshotTaken, Tick
from pyraftkv.core.types import Membership, SnapshotMeta
from tests.core.cluster import Cluster
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
    voters,
)

# --- Sending ---------------------------------------------------------------------------------------------------------


def _leader() -> Raft:
    """Return a leader with entries 1 to 6, a snapshot at 5 and its log from 4 on; followers are in REPLICATE."""
    raft = lead(machine(1, 1, 1, 1, 1))
    step_all(raft, ack(raft, 2, 6), ack(raft, 3, 6))
    step_all(raft, SnapshotTaken(snapshot(5, 1), 4))
    return raft


def _leader_to_lagging(hint: int = 1) -> Raft:
    """Return a new leader over the same log that has just learned how far follower 3 is behind."""
    raft = _leader()
    step_all(raft, append(raft, 6, 2, term=5))
    lead(raft)
    step_all(raft, ack(raft, 2, 7))
    step(raft, AppendResponse(1, 3, raft.term, 6, True, hint, 1))
    return raft


def test_a_follower_behind_the_log_gets_the_snapshot_once() -> None:
    """And nothing else until it answers or the transfer ends."""
    raft = _leader_to_lagging()
    peer = raft.status().peers[3]
    assert (peer.state, peer.pending_snapshot) == (SNAPSHOT, 5)
    sent = step(raft, Propose([b"x"]), HeartbeatResponse(1, 3, raft.term, 0), Tick()).messages
    assert [message for message in sent if message.to == 3 and not hasattr(message, "context")] == []


def test_the_snapshot_is_named_in_messages() -> None:
    """The bytes travel beside."""
    raft = _leader()
    step_all(raft, append(raft, 6, 2, term=5))
    lead(raft)
    sent = step(raft, AppendResponse(1, 3, raft.term, 6, True, 1, 1)).messages
    assert only(sent, InstallSnapshot) == [InstallSnapshot(3, 1, raft.term, snapshot(5, 1))]


def test_a_follower_that_the_log_still_reaches_gets_entries() -> None:
    """Index 4 is there, and the term of 3 is known."""
    raft = _leader_to_lagging(hint=3)
    assert raft.status().peers[3].state is PROBE
    step(raft, ack(raft, 3, 3))
    assert raft.status().peers[3].state is REPLICATE


@pytest.mark.parametrize(("index", "resumes"), [(2, False), (3, True), (5, True), (6, True)])
def test_an_ack_from_which_the_log_can_go_on_ends_the_transfer(index: int, resumes: bool) -> None:
    """Even behind the snapshot on its way (etcd#10308); one from before the log's first entry does not."""
    raft = _leader_to_lagging()
    ready = step(raft, ack(raft, 3, index))
    assert raft.status().peers[3].state is (REPLICATE if resumes else SNAPSHOT)
    assert only(ready.messages, InstallSnapshot) == [], "one is on its way"
    appends = [message for message in only(ready.messages, AppendRequest) if message.to == 3]
    assert [message.prev_index for message in appends] == ([index] if resumes else [])


@pytest.mark.parametrize(("ok", "prev_index"), [(True, 5), (False, 0)])
def test_the_end_of_a_transfer_is_followed_by_a_probe_once_the_follower_is_heard(ok: bool, prev_index: int) -> None:
    """Delivered: from the snapshot on. Given up: from the match, which needs a snapshot again."""
    raft = _leader_to_lagging()
    ready = step(raft, SnapshotSent(3, ok), SnapshotSent(9, ok), Propose([b"x"]))
    assert [message for message in ready.messages if message.to == 3] == []
    ready = step(raft, HeartbeatResponse(1, 3, raft.term, 0))
    appends = only(ready.messages, AppendRequest)
    if ok:
        assert [message.prev_index for message in appends] == [prev_index]
    else:
        assert [message.to for message in only(ready.messages, InstallSnapshot)] == [3]


def test_a_silent_follower_gets_no_snapshot() -> None:
    """It would be sent for nothing, again and again; the first sign of life starts it."""
    raft = _leader()
    for _ in range(ELECTION_TICKS):
        step_all(raft, Tick(), HeartbeatResponse(1, 2, raft.term, 0))
    assert not raft.status().peers[3].active
    progress = raft._progress[3]
    progress.match, progress.next = 1, 2
    assert only(step(raft).messages, InstallSnapshot) == []
    assert raft.status().peers[3].state is PROBE
    ready = step(raft, HeartbeatResponse(1, 3, raft.term, 0))
    assert [message.to for message in only(ready.messages, InstallSnapshot)] == [3]


def test_entries_that_are_gone_from_the_disk_too_are_replaced_by_a_snapshot() -> None:
    """`Fetched` comes back empty; if there is no snapshot that helps, the follower waits for the next one."""
    raft = lead(machine(1, 1, 1, 1, 1, log_cache_bytes_max=1))
    step_all(raft, ack(raft, 2, 6))
    step(raft, AppendResponse(1, 3, raft.term, 5, True, 1, 1))
    assert step(raft, ack(raft, 3, 1)).fetches[0].lo == 2
    ready = step(raft, Fetched(2, []))
    assert (only(ready.messages, InstallSnapshot), raft.status().first_index) == ([], 3)
    step(raft, SnapshotTaken(snapshot(5, 1), 6))
    assert only(step(raft).messages, InstallSnapshot) == []
    ready = step(raft, HeartbeatResponse(1, 3, raft.term, 0))
    assert only(ready.messages, InstallSnapshot) == [InstallSnapshot(3, 1, raft.term, snapshot(5, 1))]


def test_a_fetch_with_nothing_but_the_entry_before_is_not_enough() -> None:
    """After a restart the term before must come from the disk; if the entry after it does not, send a snapshot."""
    cluster = Cluster(3, append_bytes_max=1, inflight_bytes_max=1)
    cluster.elect(1)
    cluster.crash(3)
    for _ in range(3):
        cluster.feed(1, Propose([bytes(100)]))
        cluster.settle()
    cluster.take_snapshot(1, keep=4)
    cluster.crash(1)
    cluster.restart(1)
    cluster.elect(1)
    cluster.restart(3)
    cluster.tick(count=3)
    assert cluster.members[3].state == cluster.members[1].state
    assert cluster[3]._log.snapshot is not None


# --- Receiving -------------------------------------------------------------------------------------------------------


def test_a_snapshot_ahead_restores() -> None:
    """It is saved and loaded, its membership holds at once, and the answer waits for the save."""
    raft = machine(1, 1, term=1)
    meta = SnapshotMeta(9, 3, voters(1, 2, 4))
    ready = step(raft, InstallSnapshot(1, 2, 3, meta))
    assert (raft.commit, raft.last_index, raft.membership) == (9, 9, voters(1, 2, 4))
    assert ready.save is not None
    assert (ready.save.snapshot, ready.save.entries, ready.restore) == (meta, [], meta)
    assert ready.save.hard_state is not None
    assert ready.save.hard_state.commit == 9
    assert ready.messages == []
    assert ready.messages_after_save == [AppendResponse(2, 1, 3, 9, False, 0, 0)]
    ready = step(raft, append(raft, 9, 3, 3, commit=10))
    assert (ready.restore, [entry.index for entry in ready.committed]) == (None, [10])


def test_entries_after_the_snapshot_come_in_the_same_ready() -> None:
    """Save and apply: the snapshot first."""
    raft = machine(term=3)
    ready = step(raft, InstallSnapshot(1, 2, 3, snapshot(9, 3)), append(raft, 9, 3, 3, commit=10))
    assert ready.save is not None
    assert (ready.save.snapshot, ready.save.entries) == (snapshot(9, 3), entries(10, 3))
    assert (ready.restore, ready.committed) == (snapshot(9, 3), entries(10, 3))
    assert ready.messages_after_save == [AppendResponse(2, 1, 3, 10, False, 0, 0)]


def test_a_snapshot_behind_the_commit_index_changes_nothing() -> None:
    """The answer tells how far this member is (RestoreIgnoreSnapshot)."""
    raft = machine(1, 1, 1, term=1, commit=2)
    step_all(raft)
    ready = step(raft, InstallSnapshot(1, 2, 1, snapshot(1, 1, 1, 9)))
    assert (ready.save, ready.restore, raft.membership) == (None, None, voters(1, 2, 3))
    assert ready.messages == [AppendResponse(2, 1, 1, 2, False, 0, 0)]


def test_a_snapshot_behind_what_was_compacted_here_changes_nothing() -> None:
    """Its term is no longer known, and need not be."""
    raft = machine(1, 1, 1, term=1, commit=3)
    step_all(raft)
    step(raft, SnapshotTaken(snapshot(3, 1), 4))
    ready = step(raft, InstallSnapshot(1, 2, 1, snapshot(1, 1)))
    assert (ready.save, ready.restore, raft.last_index) == (None, None, 3)
    assert ready.messages == [AppendResponse(2, 1, 1, 3, False, 0, 0)]


def test_a_snapshot_taken_here_may_be_overtaken_by_a_received_one() -> None:
    """It was begun at 2, and is ready when the one at 9 has replaced the log: nobody needs it any more."""
    raft = machine(1, 1, 1, term=1, commit=2)
    step_all(raft)
    step_all(raft, InstallSnapshot(1, 2, 1, snapshot(9, 1)))
    step(raft, SnapshotTaken(snapshot(2, 1), 10))
    assert (raft.last_index, raft.status().first_index, raft.commit) == (9, 10, 9)
    raft.check()


def test_a_snapshot_whose_last_entry_is_in_the_log_moves_the_commit_index_alone() -> None:
    """What follows it may have been acknowledged: it stays (etcd#1763)."""
    raft = machine(1, 1, 1, term=1)
    ready = step(raft, InstallSnapshot(1, 2, 1, snapshot(2, 1)))
    assert (raft.commit, raft.last_index, ready.save, ready.restore) == (2, 3, None, None)
    assert [entry.index for entry in ready.committed] == [1, 2]
    assert ready.messages == [AppendResponse(2, 1, 1, 2, False, 0, 0)]


def test_a_conflicting_log_is_thrown_away_beyond_the_snapshot_too() -> None:
    """A kept tail would conflict with what the snapshot ends in (hashicorp/raft#704)."""
    raft = machine(1, 1, 1, 1, term=1)
    step(raft, InstallSnapshot(1, 2, 2, snapshot(3, 2)))
    assert (raft.last_index, log_terms(raft)) == (3, [None, None, 2])


def test_entries_applied_late_do_not_bring_an_older_membership_back() -> None:
    """A page that was handed out before the snapshot came reports after it."""
    raft = machine(1, 1, term=1, commit=2)
    assert len(step(raft).committed) == 2
    step(raft, InstallSnapshot(1, 2, 1, SnapshotMeta(9, 1, voters(1, 2, 4))))
    step(raft, Applied(2, voters(1, 2, 3)))
    assert raft.membership == voters(1, 2, 4)
    step(raft, Applied(9, voters(1, 2, 4)))
    assert (raft.applied, raft.membership) == (9, voters(1, 2, 4))


def test_saves_from_before_the_snapshot_vouch_for_nothing_after_it() -> None:
    """`saved` counts again once the snapshot itself is on disk."""
    raft = machine(term=1)
    first = step(raft, append(raft, 0, 0, 1, 1, 1))
    second = step(raft, InstallSnapshot(1, 2, 2, snapshot(2, 2)))
    assert first.save is not None
    assert second.save is not None
    step(raft, Saved(first.save.number))
    assert raft.saved == 0
    step(raft, Saved(second.save.number))
    assert raft.saved == 2


def test_a_member_that_the_snapshot_does_not_name_still_takes_it() -> None:
    """It joined after the snapshot was taken; the entries after it will say so."""
    raft = machine(membership=Membership())
    step_all(raft, InstallSnapshot(1, 2, 1, snapshot(5, 1, 2, 3)))
    assert (raft.last_index, raft.membership) == (5, voters(2, 3))


# --- Clusters --------------------------------------------------------------------------------------------------------


def test_a_member_that_was_away_comes_back_by_snapshot_and_goes_on() -> None:
    """Then by entries, and survives a restart of its own."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.crash(3)
    for payload in (b"a", b"b", b"c"):
        cluster.feed(1, Propose([payload]))
        cluster.settle()
    cluster.take_snapshot(1)
    cluster.feed(1, Propose([b"d"]))
    cluster.settle()
    cluster.restart(3)
    cluster.tick(count=3)
    assert cluster.members[3].state == [b"", b"a", b"b", b"c", b"d"]
    assert cluster.members[3].disk.first_index == 5
    cluster.crash(3)
    cluster.restart(3)
    cluster.tick(count=3)
    assert cluster.members[3].state == cluster.members[1].state


def test_a_divergent_member_comes_back_by_snapshot() -> None:
    """Its unacknowledged tail is replaced."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(1)
    cluster.feed(1, Propose([b"lost"] * 9))
    cluster.settle()
    cluster.elect(2)
    cluster.feed(2, Propose([b"kept"]))
    cluster.settle()
    cluster.take_snapshot(2)
    cluster.heal()
    cluster.tick(count=20)
    assert cluster.members[1].state == cluster.members[2].state
    assert b"lost" not in cluster.members[1].state
