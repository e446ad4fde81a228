"""What a leader does: append, replicate, count, confirm reads, hand over (Raft §5.3, §5.4; thesis §3.10, §6.4).

Replication is decided once per `ready()`, not per proposal: inputs only change marks, then `_replicate` looks at every
follower and sends it what it lacks in as few messages as its window allows. So a batch costs one `AppendRequest` per
follower however many proposals it carries, and followers at the same place share one list of entries. A follower with
nothing to receive still gets a notice when the commit index moved, or a put that it forwarded would wait for a
heartbeat to learn that it is committed. It gets it one `ready()` later, though: whoever heard of a commit here proposes
again at once, likely, and then the news rides along with the entries. A notice speaks only of what its receiver has
acknowledged, and needs no answer: a lone put costs two messages fewer in three members than with empty appends.

**What a follower can be sent** depends on where its `next` stands::

      ... first_index ............... memory_index ............ last_index
     │ snapshot  │    fetch from disk       │    entries in memory    │ nothing
"""

from __future__ import annotations

from pyraftkv.core.messages import (
    AppendRequest,
    AppendResponse,
    CommitNotice,
    ForwardedMembership,
    ForwardedProposals,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    ReadIndexRequest,
    ReadIndexResponse,
    TimeoutNow,
)
from pyraftkv.core.progress import PROBE, REPLICATE, Inflights, Progress
from pyraftkv.core.quorum import committed_index, has_quorum
from pyraftkv.core.raftlog import ENTRY_OVERHEAD_BYTES, count_admitted
from pyraftkv.core.ready import (
    EntryFetch,
    Fetched,
    PeerUnreachable,
    ReadReady,
    SnapshotSent,
    TransferLeadership,
)
from pyraftkv.core.types import LEADER, MEMBERSHIP, NO_NODE, Entry, Membership
from pyraftkv.core.witness import WitnessRules


class LeaderRules(WitnessRules):
    """Figure 2, "Rules for leaders"."""

    __slots__ = ()

    # --- Coming, ticking and going -----------------------------------------------------------------------------------

    def _become_leader(self) -> None:
        """Lead this term, and begin it with an empty entry: only with it can earlier terms commit (Raft §5.4.2, §8)."""
        voted = self._votes.keys()
        self._reset(self.term)
        self.role = LEADER
        self.leader = self.id
        for node in sorted(self.membership.members - {self.id}):
            self._add_progress(node)
            if node in voted:
                self._progress[node].heard()
        self._term_start = self._pending_membership = self._log.last_index + 1
        self._log.append_payloads(term=self.term, payloads=[b""])
        self._log.forget_before(self._log.hollow_index + 1)  # A witness: what is not here cannot be sent.

    def _tick_leader(self) -> None:
        config = self._config
        self._election_elapsed += 1
        if self._election_elapsed >= config.election_ticks:
            self._election_elapsed = 0
            self._transferee = NO_NODE  # A transfer that took this long is given up (thesis §3.10).
            if (config.check_quorum and not self._quorum_is_active()) or self._brings_nobody_on():
                self._become_follower(term=self.term, leader=NO_NODE)  # thesis §6.2
                return
            self._maybe_leave_joint()
        self._heartbeat_elapsed += 1
        if self._heartbeat_elapsed >= config.heartbeat_ticks:
            if config.lease_reads:
                self._reads.number()
            self._broadcast_heartbeat()

    def _broadcast_heartbeat(self) -> None:
        self._heartbeat_elapsed = 0
        self._find_floor()
        commit, context, floor = self._log.commit, self._reads.context, self._floor
        for progress in self._progress.values():
            known = min(progress.match, commit)
            self._messages.append(Heartbeat(progress.node, self.id, self.term, known, context, min(known, floor)))

    def _is_active(self, progress: Progress) -> bool:
        return self._ticks - progress.active_tick < self._config.election_ticks

    def _quorum_is_active(self) -> bool:
        active = {node for node, progress in self._progress.items() if self._is_active(progress)}
        return has_quorum(self.membership, active | {self.id})

    # --- Members -----------------------------------------------------------------------------------------------------

    def _add_progress(self, node: int) -> None:
        inflights = Inflights(
            messages_max=self._config.inflight_messages_max, bytes_max=self._config.inflight_bytes_max
        )
        self._progress[node] = Progress(
            node, next_index=self._log.last_index + 1, active_tick=self._ticks, inflights=inflights
        )

    def _follow_membership(self, membership: Membership) -> None:
        """Lead under the configuration that was just applied; step down if it has no vote for this member.

        Whoever goes, this leader included, was still told what is committed: nobody else might know that the change
        is, and of two members the one that stays could not go on by itself (etcd#10563).
        """
        if not membership.is_voter(self.id):
            for progress in self._progress.values():
                self._announce_commit(progress)
            self._become_follower(term=self.term, leader=NO_NODE)  # thesis §4.2.2
            return
        for node in sorted(self._progress.keys() - membership.members):
            self._announce_commit(self._progress.pop(node))
        for node in sorted(membership.members - self._progress.keys() - {self.id}):
            self._add_progress(node)
            self._progress[node].due = True
        if self._transferee not in self._data_voters():
            self._transferee = NO_NODE
        self._maybe_commit()  # A smaller quorum may have what a larger one lacked.
        self._confirm_reads()

    def _announce_commit(self, progress: Progress) -> None:
        """Send a follower the commit index without waiting for the next `ready()`, if anything can go to it now."""
        prev_term = self._log.term_at(progress.next - 1)
        if prev_term is not None and not progress.is_waiting:
            self._emit_append(progress, prev_term=prev_term, entries=[], size_bytes=0)

    def _append_membership(self, payload: bytes, *, leave: bool) -> bool:
        """Append a change of the membership; return False if it cannot be made now, or never (core/membership.py)."""
        if self.is_changing_membership or leave is not self.membership.is_joint or self._transferee != NO_NODE:
            return False
        if self._config.witness or self._count_admitted([payload]) == 0:
            return False
        self._begin_change(payload)
        return True

    def _begin_change(self, payload: bytes) -> None:
        index = self._pending_membership = self._log.last_index + 1
        self._log.append([Entry(index, self.term, payload, MEMBERSHIP)])

    def _maybe_leave_joint(self) -> None:
        """Leave a joint configuration that is to be left by itself, once (thesis §4.3).

        Nothing says that this leader entered it: one that came after it finishes what it finds.
        """
        is_due = self.membership.auto_leave and not self.is_changing_membership
        if is_due and self._transferee == NO_NODE and not self._config.witness:
            self._begin_change(b"")

    def _on_forwarded_membership(self, message: ForwardedMembership) -> None:
        if len(message.payload) <= self._config.payload_bytes_max:
            self._append_membership(message.payload, leave=message.leave)  # As above: its proposer tries again.

    # --- Proposals ---------------------------------------------------------------------------------------------------

    def _append_proposals(self, payloads: list[bytes]) -> int:
        """Append as many of ``payloads`` as the cap on uncommitted bytes lets in; return how many."""
        if self._transferee != NO_NODE or self._config.witness:
            return 0  # The target must be able to catch up with a log that stands still (thesis §3.10).
        count = self._count_admitted(payloads)
        if count:
            self._log.append_payloads(term=self.term, payloads=payloads[:count] if count < len(payloads) else payloads)
        return count

    def _count_admitted(self, payloads: list[bytes]) -> int:
        """Return how many of ``payloads`` the cap on uncommitted bytes lets in."""
        size_bytes = sum(map(len, payloads)) + len(payloads) * ENTRY_OVERHEAD_BYTES
        log = self._log
        uncommitted = log.bytes_between(max(log.commit, self._term_start) + 1, log.last_index + 1)
        bytes_max = self._config.uncommitted_bytes_max
        if uncommitted + size_bytes <= bytes_max:
            return len(payloads)
        return count_admitted(payloads, used_bytes=uncommitted, bytes_max=bytes_max)

    def _on_forwarded_proposals(self, message: ForwardedProposals) -> None:
        bytes_max = self._config.payload_bytes_max
        payloads = [payload for payload in message.payloads if len(payload) <= bytes_max]
        if payloads:
            self._append_proposals(payloads)  # What is not taken is lost; its proposer tries again.

    # --- Replication -------------------------------------------------------------------------------------------------

    def _replicate(self) -> bool:
        """Send every follower what it lacks. Called once per `ready()`; returns whether to call again in any case."""
        if self._reads.has_joining and self._log.commit >= self._term_start:
            self._open_read_round()
        last_index = self._log.last_index
        announced, self._announced_commit = self._announced_commit, self._log.commit
        pages: dict[tuple[int, int], list[Entry]] = {}
        witnesses = self.membership.witnesses
        for progress in self._progress.values():
            end = last_index if progress.node not in witnesses else self._log.saved
            if progress.next > end and progress.sent_commit >= announced and not progress.due:
                continue  # Micro-optimization: most followers, most of the time (tests/bench/bench_core.py).
            sent = False
            while progress.next <= end and progress.can_send:
                sent = self._send_append(progress, pages, end=end)
                if not sent:
                    break
            if progress.due and not sent and not progress.is_waiting:
                sent = self._send_append(progress, None)
            if not sent:
                self._announce(progress, announced)
        return self._announced_commit > announced

    def _announce(self, progress: Progress, commit: int) -> None:
        """Tell a follower what is committed of what it is known to have, if that is news to it.

        Nobody answers this: if it is lost, the next append or heartbeat says it again.
        """
        index = min(commit, progress.match)
        if index > progress.sent_commit and (term := self._log.term_at(index)) is not None:
            self._messages.append(CommitNotice(progress.node, self.id, self.term, index, term))
            progress.sent_commit = index

    def _send_append(
        self, progress: Progress, pages: dict[tuple[int, int], list[Entry]] | None, *, end: int = 0
    ) -> bool:
        """Send one `AppendRequest`, or find out what has to come before it; return whether one was sent.

        Args:
            progress: Whom to send to.
            pages: Entries already cut out of the log, by where they begin and where they must end at the latest, to
                share between followers; None to send an empty message.
            end: The last index that may go to it.
        """
        log = self._log
        lo = progress.next
        prev_term = log.term_at(lo - 1)
        progress.due = False
        if lo < log.first_index or (prev_term is None and lo - 1 < log.first_index):
            self._send_snapshot(progress)
            return False
        if prev_term is None:
            self._fetch(progress, lo - 1)  # Only the disk still knows the term before `lo`.
            return False
        if pages is None or (lo < log.memory_index and progress.state is PROBE):
            self._emit_append(progress, prev_term=prev_term, entries=[], size_bytes=0)  # Enough to find the place.
            return True
        if lo < log.memory_index:
            self._fetch(progress, lo)
            return False
        entries = pages.get((lo, end))
        if entries is None:
            entries = pages[lo, end] = log.page(lo=lo, hi=end + 1, bytes_max=self._config.append_bytes_max)
        size_bytes = log.bytes_between(lo, lo + len(entries))
        self._emit_append(progress, prev_term=prev_term, entries=entries, size_bytes=size_bytes)
        return True

    def _emit_append(self, progress: Progress, *, prev_term: int, entries: list[Entry], size_bytes: int) -> None:
        prev_index, commit = progress.next - 1, self._log.commit
        self._messages.append(AppendRequest(progress.node, self.id, self.term, prev_index, prev_term, entries, commit))
        progress.sent_append(count=len(entries), size_bytes=size_bytes)
        progress.sent_commit = min(commit, progress.next - 1)

    def _fetch(self, progress: Progress, lo: int) -> None:
        """Ask the storage for entries that memory no longer has; nothing is sent to this follower meanwhile."""
        progress.fetch = lo
        fetch = EntryFetch(lo, self._log.memory_index, self._config.append_bytes_max)
        if fetch not in self._fetches:
            self._fetches.append(fetch)

    def _on_fetched(self, fetched: Fetched) -> None:
        """Send what the storage read; a follower whose entries are gone from it needs a snapshot."""
        lo, entries = fetched.lo, fetched.entries
        if not entries:
            self._log.forget_before(lo + 1)
        for progress in self._progress.values():
            if progress.fetch != lo:
                continue
            progress.fetch = 0
            if progress.state is REPLICATE and not progress.can_send:
                continue
            prev_term = self._log.term_at(progress.next - 1)
            found = entries
            if prev_term is None and entries and lo == progress.next - 1:
                prev_term, found = entries[0].term, entries[1:]
            if prev_term is None or not found:
                self._send_snapshot(progress)
            elif found[0].index == progress.next:
                found = found if progress.can_send else []  # A probe that is repeated, for which the term was read.
                size_bytes = sum(len(entry.payload) + ENTRY_OVERHEAD_BYTES for entry in found)
                self._emit_append(progress, prev_term=prev_term, entries=found, size_bytes=size_bytes)

    def _send_snapshot(self, progress: Progress) -> None:
        """Start a snapshot for a follower that is alive; else, or without one that helps, wait to hear from it."""
        snapshot = self._log.snapshot
        if snapshot is None or snapshot.index < progress.next or not self._is_active(progress) or self._config.witness:
            progress.become_probe()
            progress.probe_sent = True
            return
        self._messages.append(InstallSnapshot(progress.node, self.id, self.term, snapshot))
        progress.become_snapshot(snapshot.index)

    def promise_of(self, node: int) -> tuple[int, int] | None:
        """Return the term and the last index that a member cannot have forgotten; None if nothing is known of it.

        *If it starts again with less than that, its disk has lost what it had promised*: with an earlier term, or in
        this one with a log that ends before that index. Tuples compare like that. For it answered this leader, or
        voted for it, and so its term is not below ours, durably. Whatever it acknowledged is durable as well, and as
        long as its term is ours nobody shortens its log but this leader, which never sends anything that conflicts
        with its own entries (Raft §5.3); a snapshot replaces only a log that does not match ours up to there. Of one
        that starts in a later term nothing is proven: another leader may have cut its log off since.

        None of that ends with the leading, and so neither does the memory:

        1. Of three members one is down. The other two have an entry, which is acknowledged.
        2. The follower's disk lied about its syncs, and its power goes. So its leader has no quorum, and steps down.
        3. The follower comes back without the entry, and the third one as well. Those two could elect a leader.

        Only who led knows that to the last entry. What members know of each other besides they tell themselves
        (`pledge`).
        """
        progress = self._progress.get(node)
        if progress is None or progress.acknowledged is None:
            return self._acknowledged.get(node)
        return self.term, progress.acknowledged

    # --- Answers -----------------------------------------------------------------------------------------------------

    def _on_append_response(self, message: AppendResponse) -> None:
        progress = self._progress.get(message.sender)
        if progress is None:
            return
        progress.active_tick = self._ticks
        log = self._log
        if message.rejected:
            progress.heard()
            hint = message.hint_index
            if message.hint_term > 0:
                hint, _ = log.find_conflict_by_term(index=hint, term=message.hint_term)
            progress.maybe_decrease(rejected=message.index, hint=hint)
            return
        index = message.index
        if index > log.last_index:
            return  # Nobody can have what we never had: not an answer to this log.
        if index >= self._term_start:  # Its log is ours up to here: what it lacks before does not grow any more.
            progress.hollow_index = max(progress.hollow_index or 0, min(message.hollow_index, index))
        news = progress.maybe_update(index)
        if progress.state is REPLICATE:
            progress.inflights.free_to(index)
        elif progress.state is PROBE:
            if index == progress.match:
                progress.become_replicate()
        elif news and progress.match + 1 >= log.first_index:
            progress.become_replicate()  # The log can go on from here, whatever the snapshot on its way holds.
        if news:
            if index > log.commit:
                self._maybe_commit()
            if message.sender == self._transferee or (self._config.witness and message.sender in self._data_voters()):
                self._maybe_time_out(progress)

    def _on_heartbeat_response(self, message: HeartbeatResponse) -> None:
        """Count its sender as alive, and ask it what it has if it lacks anything: what was sent may be lost.

        It may as well be on its way, and heartbeats do not wait for it. So the question carries no entries:

        1. A follower lacks a megabyte, which its link carries in a second. The probe with all that leaves.
        2. Every read opens a round, forty in that second. Each is answered at once: a lane of its own carries it.
        3. Forty answers, and forty times the megabyte is sent again. The acknowledgement of the first comes, and the
           next entries stand behind forty seconds of copies, for the follower never to catch up.
        """
        progress = self._progress.get(message.sender)
        if progress is None:
            return
        progress.active_tick = self._ticks
        progress.heard()
        if progress.match < self._log.last_index or progress.state is PROBE:
            progress.due = True
        if message.context:
            promised = message.promised_ticks >= self._config.election_ticks
            self._reads.ack(sender=message.sender, context=message.context, promised=promised)
            self._confirm_reads()

    def _maybe_commit(self) -> None:
        """Commit what a quorum has *saved*, own disk included, if it is of this term (Figure 2; Raft §5.4.2)."""
        acked = {node: progress.match for node, progress in self._progress.items()}
        acked[self.id] = self._log.saved
        index = committed_index(self.membership, acked)
        if index >= self._term_start:  # All entries from there on are of this term, and none before.
            self._log.commit_to(index)
            self._find_floor()

    def _on_peer_unreachable(self, event: PeerUnreachable) -> None:
        """Ask anew where a follower stands: what was sent optimistically is lost, likely.

        And what it acknowledged may be, too, on a disk which lied. Whoever carries messages asks `promise_of`, and does
        not let such a follower in again; but nothing here rests on that. One that came in all the same would reject
        our next append for ever, and we would take it for an echo, being sure of what it has. Not counting on anybody
        until it acknowledges again costs one message, and the commit index never falls.
        """
        progress = self._progress.get(event.node)
        if progress is not None and progress.state is REPLICATE:
            progress.become_probe()
            progress.match = 0

    def _on_snapshot_sent(self, event: SnapshotSent) -> None:
        progress = self._progress.get(event.node)
        if progress is not None:
            progress.end_snapshot(ok=event.ok)

    # --- Reads -------------------------------------------------------------------------------------------------------

    def _on_read_index_request(self, message: ReadIndexRequest) -> None:
        self._reads.add(sender=message.sender, context=message.context)

    def _open_read_round(self) -> None:
        """Confirm leadership for all reads that joined since the last round: at once if no one else has a vote."""
        self._reads.open(index=self._log.commit)
        self._confirm_reads()
        if self._reads.context:
            self._broadcast_heartbeat()

    def _confirm_reads(self) -> None:
        for round_ in self._reads.confirmed(self.membership, leader=self.id):
            for read in round_.reads:
                if read.sender == self.id:
                    self._read_ready.append(ReadReady(read.context, round_.index))
                else:
                    self._send(ReadIndexResponse(read.sender, self.id, self.term, read.context, round_.index))

    # --- Handing over ------------------------------------------------------------------------------------------------

    def _on_transfer_leadership(self, command: TransferLeadership) -> None:
        """Begin a transfer; one to another member replaces one under way. Only a leader has anyone to hand over to."""
        target = command.to or self._best_successor()
        progress = self._progress.get(target)
        if progress is None or target not in self._data_voters() or target == self._transferee:
            return
        self._election_elapsed = 0  # The transfer gets one whole election timeout.
        self._transferee = target
        progress.due = True
        self._maybe_time_out(progress)

    def _best_successor(self) -> int:
        """Return the data voter that was heard recently and lacks least, the smallest id among equals, or `NO_NODE`."""
        voters = self._data_voters()
        candidates = [
            (-progress.match, node)
            for node, progress in self._progress.items()
            if node in voters and self._is_active(progress)
        ]
        return min(candidates)[1] if candidates else NO_NODE

    def _maybe_time_out(self, progress: Progress) -> None:
        """Tell the transfer's target to campaign, but only once it has everything (thesis §3.10)."""
        if progress.match == self._log.last_index:
            self._timed_out = True
            self._messages.append(TimeoutNow(progress.node, self.id, self.term))
