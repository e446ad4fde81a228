"""Replication: batches, windows, probes, fetches, proposals and their bounds."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from pyraftkv.core import Raft, Stored
from pyraftkv.core.messages import (
    AppendRequest,
    AppendResponse,
    CommitNotice,
    ForwardedProposals,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    VoteResponse,
)
from pyraftkv.core.progress import PROBE, REPLICATE
from pyraftkv.core.raftlog import ENTRY_OVERHEAD_BYTES
from pyraftkv.core.ready import (
    Applied,
    Campaign,
    EntryFetch,
    Fetched,
    PeerUnreachable,
    Propose,
    ProposeDecided,
    Ready,
    Saved,
    SnapshotTaken,
    Tick,
)
from pyraftkv.core.types import FOLLOWER, LEADER, MEMBERSHIP, Entry, HardState, Membership
from tests.core.cluster import Cluster
from tests.core.machines import ack, append, entries, lead, log_terms, machine, only, snapshot, step, step_all, voters


def _leader(*terms: int, **knobs: int) -> Raft:
    """Return a leader whose followers have its whole log, in REPLICATE."""
    raft = lead(machine(*terms, **knobs))
    step_all(raft, *[ack(raft, node, raft.last_index) for node in sorted(raft.membership.voters - {1})])
    return raft


def _appends(ready: Ready, to: int) -> list[AppendRequest]:
    return [message for message in only(ready.messages, AppendRequest) if message.to == to]


# --- The hot path ----------------------------------------------------------------------------------------------------


def test_a_batch_costs_one_message_per_follower() -> None:
    """However many proposals are fed before `ready()`; followers at one place share one list."""
    raft = _leader()
    ready = step(raft, *[Propose([b"a", b"b"])] * 50)
    (to_2,), (to_3,) = _appends(ready, 2), _appends(ready, 3)
    assert len(to_2.entries) == 100
    assert to_2.entries is to_3.entries
    assert len(ready.messages) == 2
    assert ready.save is not None
    assert ready.save.entries == to_2.entries


def test_a_commit_travels_one_ready_later_when_nothing_else_does() -> None:
    """A put that a follower forwarded does not wait for a heartbeat; the driver is told to call again."""
    raft = _leader()
    step_all(raft, Propose([b"x"]))
    ready = step(raft, ack(raft, 2, 2))
    assert raft.commit == 2
    assert (ready.messages, ready.again) == ([], True)
    ready = step(raft)
    assert ready.messages == [CommitNotice(2, 1, 1, 2, 1)]
    assert ready.again is False
    assert step(raft).messages == []


def test_a_notice_speaks_of_what_its_receiver_has_acknowledged() -> None:
    """Another lane than the entries', and no answer: one that came before them would be lost for good."""
    raft = _leader()
    step_all(raft, Propose([b"x"]))
    assert only(step_all(raft, ack(raft, 2, 2)), CommitNotice) == [CommitNotice(2, 1, 1, 2, 1)]
    assert only(step_all(raft, ack(raft, 3, 1)), CommitNotice) == []
    assert only(step_all(raft, ack(raft, 3, 2)), CommitNotice) == [CommitNotice(3, 1, 1, 2, 1)]


def test_nobody_answers_a_notice() -> None:
    """A lone put would else cost two messages more to each follower."""
    raft = machine(1, 1, term=1)
    ready = step(raft, CommitNotice(raft.id, 2, 1, 2, 1))
    assert (ready.messages, ready.messages_after_save) == ([], [])
    assert raft.commit == 2


def test_a_commit_rides_along_with_the_entries_proposed_after_it() -> None:
    """Whoever heard of it proposes again: half the messages, and half the answers."""
    raft = _leader()
    step_all(raft, Propose([b"x"]))
    assert step(raft, ack(raft, 2, 2)).messages == []
    ready = step(raft, Propose([b"y"]))
    assert [(message.commit, len(message.entries)) for message in only(ready.messages, AppendRequest)] == [(2, 1)] * 2
    assert ready.again is False
    assert step(raft).messages == []


def test_a_commit_travels_with_entries_when_there_are_some() -> None:
    """One message per follower, not two."""
    raft = _leader()
    step_all(raft, Propose([b"x"]))
    ready = step(raft, ack(raft, 2, 2), Propose([b"y"]))
    assert [(message.commit, len(message.entries)) for message in only(ready.messages, AppendRequest)] == [(2, 1)] * 2


def test_acks_of_one_ready_become_the_last() -> None:
    """A follower that got several appends acknowledges once."""
    raft = machine(term=1)
    ready = step(raft, append(raft, 0, 0, 1), append(raft, 1, 1, 1), append(raft, 2, 1, 1, 1))
    assert ready.messages_after_save == [AppendResponse(2, 1, 1, 4, False, 0, 0)]
    assert ready.save is not None
    assert [entry.index for entry in ready.save.entries] == [1, 2, 3, 4]


def test_an_ack_with_nothing_unsaved_leaves_at_once() -> None:
    """There is no save to wait for."""
    raft = machine(1, term=1)
    ready = step(raft, append(raft, 1, 1))
    assert (ready.save, ready.after_save, ready.messages_after_save) == (None, 0, [])
    assert ready.messages == [AppendResponse(2, 1, 1, 1, False, 0, 0)]


def test_an_ack_waits_for_an_earlier_save_that_is_under_way() -> None:
    """`after_save` names it."""
    raft = machine(term=1)
    first = step(raft, append(raft, 0, 0, 1))
    second = step(raft, append(raft, 0, 0, 1))
    assert first.save is not None
    assert (second.save, second.messages) == (None, [])
    assert (second.after_save, len(second.messages_after_save)) == (first.save.number, 1)


def test_a_commit_alone_is_not_saved() -> None:
    """It travels to the disk with the next save that is needed anyway."""
    raft = machine(1, 1, term=1)
    ready = step(raft, append(raft, 2, 1, commit=2))
    assert (raft.commit, ready.save) == (2, None)
    ready = step(raft, append(raft, 2, 1, 1, commit=2))
    assert ready.save is not None
    assert ready.save.hard_state is not None
    assert ready.save.hard_state.commit == 2


# --- Windows ---------------------------------------------------------------------------------------------------------


def test_messages_are_bounded_in_bytes() -> None:
    """A batch over `append_bytes_max` goes in several messages; an entry over it goes alone."""
    size = ENTRY_OVERHEAD_BYTES + 10
    raft = _leader(append_bytes_max=2 * size, inflight_bytes_max=100 * size)
    ready = step(raft, Propose([bytes(10)] * 3 + [bytes(10 * size)] + [bytes(10)]))
    assert [len(message.entries) for message in _appends(ready, 2)] == [2, 1, 1, 1]
    assert [message.prev_index for message in _appends(ready, 2)] == [1, 3, 4, 5]


def test_the_window_bounds_messages_in_flight() -> None:
    """A full window holds everything back; an ack opens it, and the commit index waits with the entries."""
    raft = _leader(inflight_messages_max=2)
    for _ in range(4):
        step_all(raft, Propose([b"x"]))
    assert raft.status().peers[2].inflight_messages == 2
    assert raft.status().peers[2].next == 4
    ready = step(raft, ack(raft, 2, 2))
    (message,) = _appends(ready, 2)
    assert [entry.index for entry in message.entries] == [4, 5]
    assert _appends(ready, 3) == []


def test_the_window_bounds_bytes_in_flight() -> None:
    """The message that crosses the bound goes, the next waits."""
    raft = _leader(append_bytes_max=100, inflight_bytes_max=200)
    ready = step(raft, Propose([bytes(36)] * 5))
    assert len(_appends(ready, 2)) == 2
    assert raft.status().peers[2].inflight_bytes == 200


def test_a_heartbeats_answer_from_a_follower_that_lags_brings_an_append() -> None:
    """Even with a full window: if what filled it was lost, the empty append is rejected, and probing begins."""
    raft = _leader(inflight_messages_max=1)
    step_all(raft, Propose([b"x"]))
    step_all(raft, Propose([b"y"]))
    ready = step(raft, HeartbeatResponse(1, 2, 1, 0))
    assert [(m.prev_index, m.entries) for m in _appends(ready, 2)] == [(2, [])]
    ready = step(raft, AppendResponse(1, 2, 1, 2, True, 1, 1))
    (message,) = _appends(ready, 2)
    assert (message.prev_index, [entry.index for entry in message.entries]) == (1, [2, 3])
    assert raft.status().peers[2].state is PROBE


def test_a_heartbeats_answer_from_a_follower_that_has_all_brings_nothing() -> None:
    """The idle cluster sends heartbeats and their answers alone."""
    raft = _leader()
    assert step(raft, HeartbeatResponse(1, 2, 1, 0)).messages == []


def test_heartbeats_carry_no_commit_beyond_the_match() -> None:
    """What a follower may commit is what it is known to have."""
    raft = lead(machine(1, 1, term=1))
    step_all(raft, ack(raft, 2, 3))
    heartbeats = only(step(raft, Tick()).messages, Heartbeat)
    assert [(heartbeat.to, heartbeat.commit) for heartbeat in heartbeats] == [(2, 3), (3, 0)]


def test_an_unreachable_follower_is_probed() -> None:
    """What was sent optimistically is lost; go on from the match, one message at a time."""
    raft = _leader()
    step(raft, Propose([b"x"]))
    ready = step(raft, PeerUnreachable(2), PeerUnreachable(9), Propose([b"y"]))
    (message,) = _appends(ready, 2)
    assert [entry.index for entry in message.entries] == [2, 3]
    assert [message.to for message in step(raft, Propose([b"z"])).messages] == [3], "2 has a probe to answer"
    step(raft, ack(raft, 2, 3))
    assert raft.status().peers[2].state is REPLICATE


def test_a_probe_is_repeated_without_its_entries() -> None:
    """Heartbeats are answered however slow the entries are: those go once, until something is known of them."""
    raft = _leader()
    (probe,) = _appends(step(raft, PeerUnreachable(2), Propose([b"x"])), 2)
    assert (probe.prev_index, [entry.index for entry in probe.entries]) == (1, [2])
    for _ in range(3):
        (message,) = _appends(step(raft, Propose([b"y"]), HeartbeatResponse(1, 2, raft.term, 0)), 2)
        assert (message.prev_index, message.entries) == (1, [])
    (message,) = _appends(step(raft, ack(raft, 2, 1)), 2)
    assert [entry.index for entry in message.entries] == [2, 3, 4, 5], "the probe was lost, and its repetition was not"


def test_a_probe_whose_place_only_the_disk_knows_is_repeated_without_its_entries() -> None:
    """The term before it is read again for each, and no entry that is read with it goes twice."""
    stored = Stored(HardState(1, 0, 4), snapshot(4, 1, 1, 2), [], 1)
    raft = lead(Raft(machine(size=2)._config, stored=stored, rng=random.Random(1)))
    (fetch,) = step(raft, AppendResponse(1, 2, raft.term, 4, True, 2, 1)).fetches
    (probe,) = _appends(step(raft, Fetched(fetch.lo, entries(2, 1, 1, 1))), 2)
    assert (probe.prev_index, probe.entries) == (2, entries(3, 1, 1))
    for _ in range(2):
        (fetch,) = step(raft, HeartbeatResponse(1, 2, raft.term, 0)).fetches
        (message,) = _appends(step(raft, Fetched(fetch.lo, entries(2, 1, 1, 1))), 2)
        assert (message.prev_index, message.prev_term, message.entries) == (2, 1, [])
    step(raft, ack(raft, 2, 2))
    assert raft.status().peers[2].state is REPLICATE


def test_a_follower_that_lost_what_it_acknowledged_gets_it_again() -> None:
    """Its disk lied about a sync, and it comes back with less: from then on its rejections are no echoes."""
    raft = _leader()
    step(raft, PeerUnreachable(2), Propose([b"x"]))
    (message,) = _appends(step(raft, AppendResponse(1, 2, raft.term, 1, True, 0, 0)), 2)
    assert (message.prev_index, [entry.index for entry in message.entries]) == (0, [1, 2])
    raft.check()


def test_a_leader_remembers_what_was_promised_to_it() -> None:
    """Who voted for it is of its term; what is acknowledged stays so, lost connections and late acks or not."""
    raft = machine(1, 1)
    step_all(raft, Campaign())
    step_all(raft, VoteResponse(1, 2, raft.term, False, True))
    term = raft.term
    assert [raft.promise_of(node) for node in (1, 2, 3, 9)] == [None, (term, 0), None, None]
    step_all(raft, HeartbeatResponse(1, 3, term, 0))
    assert raft.promise_of(3) == (term, 0)
    step_all(raft, ack(raft, 2, 3), ack(raft, 2, 2), PeerUnreachable(2), ack(raft, 2, 1))
    assert (raft.status().peers[2].match, raft.promise_of(2)) == (1, (term, 3))
    step_all(raft, HeartbeatResponse(1, 3, term + 1, 0))
    assert (raft.role, raft.promise_of(2)) == (FOLLOWER, (term, 3))


def test_what_was_promised_outlives_the_leading() -> None:
    """Until more is promised in a later one, or the member is removed."""
    raft = lead(machine(1, 1, membership=voters(1, 2, 3)))
    first = raft.term
    step_all(raft, ack(raft, 2, 3), HeartbeatResponse(1, 3, first, 0), HeartbeatResponse(1, 3, first + 1, 0))
    step_all(raft, Campaign(), VoteResponse(1, 3, first + 2, False, True))
    assert raft.role is LEADER
    assert [raft.promise_of(node) for node in (2, 3)] == [(first, 3), (first + 2, 0)]
    raft.membership = voters(1, 3)
    step_all(raft, HeartbeatResponse(1, 3, first + 3, 0))
    assert [raft.promise_of(node) for node in (2, 3)] == [None, (first + 2, 0)]


def test_who_rejects_an_append_is_of_this_term_too() -> None:
    """It says no more than that."""
    raft = machine(1, 1)
    step_all(raft, Campaign())
    step_all(raft, VoteResponse(1, 2, raft.term, False, True), AppendResponse(1, 3, raft.term, 2, True, 0, 0))
    assert raft.promise_of(3) == (raft.term, 0)


def test_a_pledge_is_of_what_is_committed_and_on_the_own_disk() -> None:
    """A term that is not saved yet, entries that are not, and what another leader may yet replace, may be lost."""
    raft = machine(1, 1, term=1)
    assert raft.pledge == (1, 0)
    step_all(raft, append(raft, 2, 1, 1, term=1, commit=2))
    assert raft.pledge == (1, 2)
    ready = step(raft, append(raft, 3, 1, 3, term=3, commit=4))
    assert (raft.term, raft.commit, raft.pledge) == (3, 4, (0, 3))
    assert ready.save is not None
    step(raft, Saved(ready.save.number))
    assert raft.pledge == (3, 4)


def test_a_follower_keeps_what_it_acknowledged_whatever_its_leader_sends() -> None:
    """What `promise_of` rests on: neither late appends nor a snapshot of less make a follower's log shorter."""
    raft = machine(1, 1, 1, term=2)
    step_all(raft, append(raft, 3, 1, 2, 2))
    acknowledged = raft.last_index
    late = append(raft, 3, 1, 2)
    for message in (late, append(raft, 1, 1), InstallSnapshot(1, 2, 2, snapshot(2, 1, 1, 2, 3))):
        step_all(raft, message)
        assert raft.saved == acknowledged


def test_a_probe_that_finds_what_is_known_already_resumes() -> None:
    """An ack at exactly the match ends the probing (etcd: `pr.Match == m.Index && StateProbe`)."""
    raft = _leader()
    step(raft, PeerUnreachable(2))
    step(raft, ack(raft, 2, 1))
    assert raft.status().peers[2].state is REPLICATE


def test_acks_of_strangers_and_of_what_never_was_are_dropped() -> None:
    """No progress is kept for them, and nothing commits."""
    raft = _leader()
    step_all(raft, Propose([b"x"]))
    step(raft, ack(raft, 9, 2), HeartbeatResponse(1, 9, 1, 0), ack(raft, 2, 50), ack(raft, 3, 99))
    assert (raft.commit, raft.status().peers[2].match, sorted(raft.status().peers)) == (1, 1, [2, 3])


def test_messages_to_others_and_from_oneself_are_dropped() -> None:
    """A misdirected message is not an answer to anything."""
    raft = machine(term=1)
    step(raft, Heartbeat(2, 3, 9, 0, 0), Heartbeat(1, 1, 9, 0, 0))
    assert (raft.term, raft.leader) == (1, 0)


@pytest.mark.parametrize(
    "entries_",
    [
        [Entry(3, 1, b"")],
        [Entry(2, 1, b""), Entry(4, 1, b"")],
        [Entry(2, 9, b"")],
        [Entry(2, 2, b""), Entry(3, 1, b"")],
        [Entry(2, 2, b""), Entry(3, 1, b""), Entry(4, 2, b"")],
        [Entry(2, 1, b""), Entry(3, 3, b""), Entry(4, 2, b""), Entry(5, 3, b"")],
        [Entry(2, 0, b"")],
    ],
)
def test_a_malformed_append_is_dropped(entries_: list[Entry]) -> None:
    """Entries that do not follow `prev_index`, or whose terms cannot be, change nothing."""
    raft = machine(1, term=3)
    ready = step(raft, AppendRequest(1, 2, 3, 1, 1, entries_, 0))
    assert (ready.messages, ready.save, raft.last_index) == ([], None, 1)


# --- Fetches ---------------------------------------------------------------------------------------------------------


def _leader_with_short_memory() -> Raft:
    """Return a leader whose payloads up to 4 are on disk alone; follower 3 has only index 1."""
    raft = lead(machine(1, 1, 1, 1, log_cache_bytes_max=1))
    step_all(raft, ack(raft, 2, 5))
    assert raft._log.memory_index == 6
    return raft


def test_a_slow_follower_is_served_from_the_disk() -> None:
    """Entries that left memory are fetched, a page at a time; meanwhile nothing is sent to it."""
    raft = _leader_with_short_memory()
    ready = step(raft, AppendResponse(1, 3, raft.term, 4, True, 1, 1))
    assert _appends(ready, 3)[0].entries == [], "a probe needs no payload"
    ready = step(raft, ack(raft, 3, 1))
    assert (ready.fetches, _appends(ready, 3)) == ([EntryFetch(2, 6, 1 << 20)], [])
    ready = step(raft, Propose([b"x"]))
    assert (ready.fetches, _appends(ready, 3)) == ([], [])
    ready = step(raft, Fetched(2, entries(2, 1, 1)))
    (message,) = _appends(ready, 3)
    assert (message.prev_index, message.prev_term, message.entries) == (1, 1, entries(2, 1, 1))
    assert ready.fetches == [EntryFetch(4, 6, 1 << 20)]
    ready = step(raft, Fetched(4, [*entries(4, 1), Entry(5, 2, b"")]))
    assert [[entry.index for entry in message.entries] for message in _appends(ready, 3)] == [[4, 5], [6]]


def test_a_fetch_that_comes_too_late_is_dropped() -> None:
    """The follower has moved on, or nobody asked; so does one that arrives after leadership is lost."""
    raft = _leader_with_short_memory()
    step(raft, AppendResponse(1, 3, raft.term, 4, True, 1, 1), ack(raft, 3, 1))
    step(raft, Fetched(9, entries(9, 1)))
    ready = step(raft, ack(raft, 3, 3), Fetched(2, entries(2, 1, 1)))
    assert (_appends(ready, 3), ready.fetches) == ([], [EntryFetch(4, 6, 1 << 20)])
    step(raft, PeerUnreachable(3))
    assert step(raft, Fetched(4, entries(4, 1))).fetches == []
    step(raft, append(raft, 5, 2, term=9))
    assert raft.role is FOLLOWER
    assert only(step(raft, Fetched(4, entries(4, 1))).messages, AppendRequest) == []


def test_followers_at_one_place_share_a_fetch() -> None:
    """The disk is read once for all of them."""
    raft = lead(machine(1, 1, 1, 1, log_cache_bytes_max=1, size=5))
    step_all(raft, ack(raft, 2, 5), ack(raft, 3, 5))
    step(raft, *[AppendResponse(1, node, raft.term, 4, True, 1, 1) for node in (4, 5)])
    ready = step(raft, ack(raft, 4, 1), ack(raft, 5, 1))
    assert ready.fetches == [EntryFetch(2, 6, 1 << 20)]
    ready = step(raft, Fetched(2, entries(2, 1)))
    assert [message.to for message in only(ready.messages, AppendRequest)] == [4, 5]


# --- Proposals -------------------------------------------------------------------------------------------------------


def test_a_follower_forwards_proposals_unchanged_in_one_message() -> None:
    """The leader appends them as if proposed there."""
    cluster = Cluster(3)
    cluster.elect(1)
    ready = cluster.feed(2, Propose([b"a"]), Propose([b"b", b"c"]))
    assert ready.messages == [ForwardedProposals(1, 2, cluster[2].term, [b"a", b"b", b"c"])]
    cluster.settle()
    assert cluster.members[3].state[-3:] == [b"a", b"b", b"c"]


def test_forwarded_proposals_are_bounded() -> None:
    """Over the bound they come back; one alone always goes."""
    raft = machine(term=1, forward_bytes_max=10)
    step_all(raft, Heartbeat(1, 2, 1, 0, 0))
    ready = step(raft, Propose([bytes(20)]), Propose([b"x"]))
    assert [message.payloads for message in only(ready.messages, ForwardedProposals)] == [[bytes(20)]]
    assert ready.rejected_proposals == [b"x"]
    assert only(step(raft, Propose([b"x"])).messages, ForwardedProposals) != []


def test_of_one_batch_what_is_over_the_bound_comes_back() -> None:
    """A batch is no reason to let more through than the bound; what goes, goes in order."""
    size = ENTRY_OVERHEAD_BYTES + 1
    raft = machine(term=1, forward_bytes_max=3 * size)
    step_all(raft, Heartbeat(1, 2, 1, 0, 0))
    ready = step(raft, Propose([b"a", b"b"]), Propose([b"c", b"d", b"e"]))
    assert [message.payloads for message in only(ready.messages, ForwardedProposals)] == [[b"a", b"b", b"c"]]
    assert ready.rejected_proposals == [b"d", b"e"]


def test_forwarded_proposals_go_in_messages_as_large_as_appends() -> None:
    """What a follower forwards must fit the frames that the leader's appends fit; one alone goes whatever its size."""
    size = ENTRY_OVERHEAD_BYTES + 10
    raft = machine(term=1, append_bytes_max=2 * size)
    step_all(raft, Heartbeat(1, 2, 1, 0, 0))
    ready = step(raft, Propose([bytes(10)] * 3 + [bytes(10 * size)] + [bytes(10)]))
    sizes = [list(map(len, message.payloads)) for message in only(ready.messages, ForwardedProposals)]
    assert sizes == [[10, 10], [10], [10 * size], [10]]
    assert ready.rejected_proposals == []


def test_proposals_without_a_leader_come_back() -> None:
    """Nothing happened to them; so it is with those of a candidate, and of who loses its leader meanwhile."""
    raft = machine(term=1)
    assert step(raft, Propose([b"x"])).rejected_proposals == [b"x"]
    assert step(raft, Propose([])).rejected_proposals == []
    step_all(raft, Heartbeat(1, 2, 1, 0, 0))
    ready = step(raft, Propose([b"x"]), Campaign())
    assert ready.rejected_proposals == [b"x"]
    assert step(raft, Propose([b"y"])).rejected_proposals == [b"y"]


def test_uncommitted_proposals_are_bounded() -> None:
    """Those over the cap come back; they fit again when others are committed (etcd#10167)."""
    size = ENTRY_OVERHEAD_BYTES + 1
    raft = _leader(uncommitted_bytes_max=3 * size)
    ready = step(raft, Propose([b"a", b"b"]), Propose([b"c", b"d", b"e"]))
    assert (raft.last_index, ready.rejected_proposals) == (4, [b"d", b"e"])
    assert step(raft, Propose([b"d"])).rejected_proposals == [b"d"]
    step_all(raft, Saved(ready.save.number if ready.save else 0), ack(raft, 2, 3))
    assert step(raft, Propose([b"d", b"e", b"f"])).rejected_proposals == [b"f"]


def test_one_proposal_is_always_let_through_when_nothing_is_uncommitted() -> None:
    """Or it could never be proposed; the empty entry of a new term does not count."""
    raft = lead(machine(uncommitted_bytes_max=10))
    assert raft.commit == 0
    ready = step(raft, Propose([bytes(50), b"x"]))
    assert (raft.last_index, ready.rejected_proposals) == (2, [b"x"])


def test_forwarded_proposals_over_the_cap_are_lost() -> None:
    """Their proposer tries again under its session; an empty message is no harm."""
    raft = _leader(uncommitted_bytes_max=10)
    ready = step(raft, ForwardedProposals(1, 2, 1, [b"a", b"b"]), ForwardedProposals(1, 2, 1, []))
    assert (raft.last_index, ready.rejected_proposals) == (2, [])


def test_payloads_that_no_message_could_carry_are_never_appended() -> None:
    """The log would stand still behind such an entry: forwarded ones are dropped, and nobody proposes one here."""
    raft = _leader(payload_bytes_max=10)
    step(raft, ForwardedProposals(1, 2, 1, [b"a", bytes(11), bytes(10)]), ForwardedProposals(1, 2, 1, [bytes(11)]))
    assert raft.last_index == 3
    with pytest.raises(AssertionError, match="no message"):
        step(raft, Propose([b"a", bytes(11)]))


# --- Memberships -----------------------------------------------------------------------------------------------------


def test_a_configuration_takes_effect_when_applied() -> None:
    """Not when appended, not when committed: new members are probed, removed ones forgotten, from then on."""
    raft = _leader()
    change = Entry(2, 2, b"change", MEMBERSHIP)
    step_all(raft, AppendRequest(1, 2, 2, 1, 1, [change], 1))
    lead(raft)
    step(raft, ack(raft, 2, 3))
    assert (raft.commit, sorted(raft.status().peers)) == (3, [2, 3])
    ready = step(raft, Applied(3, Membership(voters=frozenset({1, 2}), learners=frozenset({4}))))
    assert sorted(raft.status().peers) == [2, 4]
    (probe,) = _appends(ready, 4)
    assert probe.prev_index == 3


def test_a_smaller_quorum_commits_what_a_larger_could_not() -> None:
    """CommitAfterRemoveNode."""
    raft = _leader(size=5)
    step_all(raft, Propose([b"x"]), ack(raft, 2, 2))
    assert raft.commit == 1
    step(raft, Applied(1, voters(1, 2, 3)))
    assert raft.commit == 2


@pytest.mark.parametrize(
    "membership", [voters(2, 3), Membership(voters=frozenset({2, 3}), learners=frozenset({1})), Membership()]
)
def test_a_leader_without_a_vote_steps_down(membership: Membership) -> None:
    """Removed or demoted, once the change is applied (thesis §4.2.2); it takes no proposals any more."""
    raft = _leader()
    ready = step(raft, Applied(1, membership), Propose([b"x"]))
    assert (raft.role, raft.leader, ready.rejected_proposals) == (FOLLOWER, 0, [b"x"])
    step_all(raft, *[Tick()] * 50)
    assert raft.role is FOLLOWER


def test_a_leader_of_the_outgoing_half_stays_until_the_joint_configuration_is_left() -> None:
    """It still counts in one of the two majorities."""
    raft = _leader()
    step(raft, Applied(1, Membership(voters=frozenset({2, 3, 4}), outgoing=frozenset({1, 2, 3}))))
    assert raft.role is LEADER
    step_all(raft, Propose([b"x"]), ack(raft, 2, 2))
    assert raft.commit == 1, "a majority of the outgoing half alone"
    step_all(raft, ack(raft, 4, 2))
    assert raft.commit == 2


def test_a_new_member_catches_up_and_a_removed_one_disturbs_nobody() -> None:
    """Member 4 joins in place of member 3, which never hears of it."""
    cluster = Cluster(3, pre_vote=True)
    cluster.elect(1)
    cluster.feed(1, Propose([b"a"]))
    cluster.settle()
    cluster.add(4, membership=Membership())
    cluster.isolate(3)
    for node in (1, 2):
        cluster.feed(node, Applied(cluster[node].applied, voters(1, 2, 4)))
    cluster.tick(count=3)
    assert cluster.members[4].state == cluster.members[1].state
    cluster.heal()
    cluster.tick(count=100)
    assert (cluster.leader, cluster[4].leader) == (1, 1)
    assert log_terms(cluster[4]) == log_terms(cluster[1])


def test_stored_entries_are_handed_out_again_after_a_restart() -> None:
    """From the snapshot on, in pages, without a gap (etcd#10063)."""
    raft = machine(*[1] * 9, term=1, commit=7, committed_bytes_max=1)
    seen: list[int] = []
    for _ in range(7):
        page = step(raft, *([Applied(seen[-1])] if seen else [])).committed
        seen += [entry.index for entry in page]
    assert seen == [1, 2, 3, 4, 5, 6, 7]


def test_terms_before_the_snapshot_are_learned_from_the_disk() -> None:
    """After a restart the log on disk may reach back further than the terms in memory: the fetch begins one earlier."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.crash(3)
    for payload in (b"a", b"b", b"c"):
        cluster.feed(1, Propose([payload]))
        cluster.settle()
    cluster.take_snapshot(1, keep=4)
    cluster.crash(1)
    cluster.restart(1)
    cluster.elect(1)
    assert cluster[1].status().first_index == 1
    cluster.restart(3)
    cluster.tick(count=3)
    assert cluster.members[3].state == cluster.members[1].state
    assert cluster[3]._log.snapshot is None, "without a snapshot"


def test_what_was_fetched_for_its_term_does_not_cross_the_window() -> None:
    """A lagging follower's heartbeat is answered with an empty append, for which alone the disk was read."""
    raft = machine(size=2)
    stored = Stored(HardState(1, 0, 4), snapshot(4, 1, 1, 2), [], 1)
    raft = lead(Raft(replace(raft._config, inflight_messages_max=1), stored=stored, rng=random.Random(1)))
    assert step(raft, ack(raft, 2, 0)).fetches == [EntryFetch(1, 5, 1 << 20)]
    assert len(_appends(step(raft, Fetched(1, entries(1, 1, 1))), 2)) == 1
    lagging = step(raft, HeartbeatResponse(1, 2, raft.term, 0))
    assert [fetch.lo for fetch in lagging.fetches] == [2], "the entry before the next, for its term"
    assert step(raft, Fetched(2, entries(2, 1, 1, 1))).messages == [], "the window is full"
    assert [fetch.lo for fetch in step(raft, ack(raft, 2, 2)).fetches] == [2], "now there is room"
    sent = _appends(step(raft, Fetched(2, entries(2, 1, 1, 1))), 2)
    assert [(message.prev_index, message.prev_term, len(message.entries)) for message in sent] == [(2, 1, 2)]


def test_a_snapshot_taken_here_shortens_what_can_be_fetched() -> None:
    """The core learns of it by `SnapshotTaken`."""
    raft = _leader(1, 1)
    step(raft, SnapshotTaken(snapshot(2, 1), 3))
    assert raft.status().first_index == 3


# --- What a leader decides -------------------------------------------------------------------------------------------


def test_a_decision_is_taken_in_its_own_term_alone_and_never_forwarded() -> None:
    """Another term's leader, and one that is none any more, hand it back."""
    raft = _leader()
    assert step(raft, ProposeDecided(raft.term - 1, [b"old"])).rejected_proposals == [b"old"]
    taken = step(raft, ProposeDecided(raft.term, [b"a"]))
    assert not taken.rejected_proposals
    assert [entry.payload for entry in _appends(taken, 2)[0].entries] == [b"a"]
    term = raft.term
    step(raft, Heartbeat(1, 2, term + 1, 0, 0, 0))
    assert (raft.role, raft.leader) == (FOLLOWER, 2)
    deposed = step(raft, ProposeDecided(term, [b"b"]), ProposeDecided(term + 1, [b"c"]))
    assert deposed.rejected_proposals == [b"b", b"c"]
    assert not only(deposed.messages, ForwardedProposals)
