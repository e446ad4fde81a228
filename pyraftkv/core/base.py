"""The state of Figure 2, the changes of role, and the one rule of sending: persist before send.

**What may leave before the disk is done?** A message says something about its sender; it may leave once a crash can no
longer make that untrue.

===========================================  ======================================================================
 leaves at once                               a leader's appends and heartbeats: its term was saved before it won
 leaves once the term in it is saved          rejections, heartbeat responses, pre-votes, reads, forwarded proposals
 leaves once everything so far is saved       votes, vote requests, accepted appends
===========================================  ======================================================================

A vote *request* waits too: one that leaves before its save can be granted, forgotten in a crash, and the stale grant
counted for a second candidacy in the same term, with a shorter log. For the same reason a member's own vote and own
ack count only when `Saved` says so.
"""

from __future__ import annotations

import random
from dataclasses import field

from pyraftkv._record import record
from pyraftkv.core.config import Config
from pyraftkv.core.messages import AppendResponse, Message
from pyraftkv.core.progress import Progress
from pyraftkv.core.raftlog import RaftLog
from pyraftkv.core.reads import ReadRounds
from pyraftkv.core.ready import EntryFetch, ReadReady, Save
from pyraftkv.core.types import (
    CANDIDATE,
    FOLLOWER,
    HOLLOW,
    LEADER,
    NO_NODE,
    PRE_CANDIDATE,
    Entry,
    HardState,
    Membership,
    Role,
    SnapshotMeta,
)


@record
class Stored:
    """What a member finds on its disk. The default is an empty one."""

    hard_state: HardState = field(default_factory=HardState)
    snapshot: SnapshotMeta | None = None
    """The newest snapshot, already loaded into the state machine."""
    entries: list[Entry] = field(default_factory=list)
    """Every entry after the snapshot."""
    first_index: int = 1
    """The first index that an `EntryFetch` can return; it may precede the snapshot."""
    membership: Membership | None = None
    """The configuration as of the snapshot; the snapshot's own when None."""
    promised: bool = False
    """Whether an earlier life may have answered a leader's heartbeat: its promise binds this one, which has forgotten
    when that was, for an election timeout from now."""
    floor: int = 0
    """Of a witness: up to here every data voter had everything when the snapshot was taken; 0 if it was received."""

    def __post_init__(self) -> None:
        last_index, last_term = (self.snapshot.index, self.snapshot.term) if self.snapshot is not None else (0, 0)
        if self.first_index > last_index + 1:
            raise ValueError(f"first_index ({self.first_index}) leaves a gap after the snapshot at {last_index}")
        for entry in self.entries:
            if entry.index != last_index + 1 or entry.term < last_term:
                raise ValueError(f"entry {entry.index}@{entry.term} cannot follow {last_index}@{last_term}")
            last_index, last_term = entry.index, entry.term
        if self.hard_state.term < last_term:
            raise ValueError(f"hard_state.term ({self.hard_state.term}) is behind the log's last term ({last_term})")


class RaftBase:
    """State and transitions that every role shares.

    Invariants: `term` never falls; `vote` changes only from `NO_NODE`, or with the term; progress, reads and a
    transfer under way exist only while leading.
    """

    __slots__ = (
        "_acknowledged",
        "_after_save",
        "_announced_commit",
        "_brought",
        "_config",
        "_election_elapsed",
        "_election_timeout",
        "_fetches",
        "_floor",
        "_forward_bytes",
        "_forwards",
        "_hard_dirty",
        "_hard_number",
        "_heartbeat_elapsed",
        "_keeps_payloads",
        "_last_change",
        "_log",
        "_membership_index",
        "_messages",
        "_pending_membership",
        "_progress",
        "_promised_tick",
        "_read_ready",
        "_reads",
        "_rejected",
        "_rng",
        "_save_number",
        "_saved_number",
        "_soft_reported",
        "_term_saved_number",
        "_term_start",
        "_ticks",
        "_timed_out",
        "_transferee",
        "_votes",
        "id",
        "leader",
        "membership",
        "role",
        "term",
        "vote",
    )

    def __init__(self, config: Config, *, stored: Stored, rng: random.Random) -> None:
        snapshot = stored.snapshot
        self._config = config
        self._rng = rng
        self.id = config.id
        self.role: Role = FOLLOWER
        self.term = stored.hard_state.term
        self.vote = stored.hard_state.vote
        self.leader = NO_NODE
        self.membership = stored.membership or (snapshot.membership if snapshot is not None else Membership())
        self._membership_index = snapshot.index if snapshot is not None else 0
        """The index as of which `membership` holds."""
        self._last_change = self._membership_index
        """An index at or past the last change of the membership that is applied; 0 if there was none. Those who have
        not heard of it count by an older configuration."""
        self._log = RaftLog(
            snapshot=snapshot,
            entries=stored.entries,
            first_index=stored.first_index,
            commit=stored.hard_state.commit,
            cache_bytes_max=config.log_cache_bytes_max,
        )
        if config.witness:
            hollow = [entry.index for entry in stored.entries if entry.kind is HOLLOW]
            self._log.lose_payloads(max([snapshot.index if snapshot is not None else 0, *hollow]))

        self._ticks = 0
        self._election_elapsed = 0
        self._heartbeat_elapsed = 0
        self._election_timeout = 0
        self._draw_election_timeout()
        self._votes: dict[int, bool] = {}
        self._promised_tick = config.election_ticks if stored.promised else 0
        """The tick until which this member has promised to elect nobody, whoever leads by then and in whatever term."""

        self._floor = stored.floor
        """The last index that no data voter will ask of a witness, as far as is known here. Never falls."""
        self._keeps_payloads = True
        """False on a witness whose bound is reached."""
        self._brought = 0
        """Leading witness: how far the best data voter had come when it was looked at last."""

        self._progress: dict[int, Progress] = {}
        """Leader: every other member."""
        self._acknowledged: dict[int, tuple[int, int]] = {}
        """What members promised this one when it led last in their time: its term, and the last index."""
        self._term_start = 0
        """Leader: the index of the empty entry that begins its term."""
        self._pending_membership = 0
        """Leader: the last index at which a change of the membership may stand in its log; nothing may change before
        it is applied. At first that of the empty entry: what stands before may be anything (core/membership.py)."""
        self._transferee = NO_NODE
        """Leader: whom it hands over to."""
        self._timed_out = False
        """Leader: whether it has told anybody of this term to campaign, which nobody's promise stands against."""
        self._reads = ReadRounds(reads_max=config.reads_max)
        self._announced_commit = 0
        """Leader: the commit index as of the last `ready()`; what is newer may still ride along with entries."""
        self._init_outputs()

    def _init_outputs(self) -> None:
        """Nothing is to be saved, sent or told."""
        self._save_number = 0
        """The last save handed out."""
        self._saved_number = 0
        """The last save that completed."""
        self._hard_number = 0
        """The save that carries the newest term and vote."""
        self._term_saved_number = 0
        """Up to this save term and vote are on disk, if nothing else."""
        self._hard_dirty = False
        """Whether term or vote changed since the last save was handed out."""

        self._messages: list[Message] = []
        self._after_save: list[Message] = []
        self._read_ready: list[ReadReady] = []
        self._fetches: list[EntryFetch] = []
        self._forwards: list[bytes] = []
        self._forward_bytes = 0
        self._rejected: list[bytes] = []
        self._soft_reported = (self.role, self.leader, self.term)

    # --- Cheap to read on every loop ---------------------------------------------------------------------------------

    @property
    def commit(self) -> int:
        """The commit index."""
        return self._log.commit

    @property
    def applied(self) -> int:
        """The last index known to be applied."""
        return self._log.applied

    @property
    def saved(self) -> int:
        """The last index known to be on this member's disk."""
        return self._log.saved

    @property
    def pledge(self) -> tuple[int, int]:
        """The term and the last committed index that are on this member's disk: no later life of it may lack them.

        A term rises only, and nobody replaces what is committed (Raft §5.4.3); so this holds in every term. The term is
        0 as long as it is not saved.
        """
        return self.term if self._term_is_saved else 0, min(self._log.saved, self._log.commit)

    @property
    def last_index(self) -> int:
        """The index of the log's last entry."""
        return self._log.last_index

    @property
    def is_changing_membership(self) -> bool:
        """Leader: whether a change of the membership may be under way, so that another one has to wait."""
        return self._log.applied < self._pending_membership

    @property
    def round(self) -> int:
        """The number of the newest round of heartbeats that was sent; never falls."""
        return self._reads.newest

    @property
    def lease_round(self) -> int:
        """The newest round upon which a quorum promised to elect nobody else; 0 when that would not make a lease.

        It says nothing of time: `node.lease` does. See there for why each of these ends a lease. O(voters).
        """
        if self.role is not LEADER or self._timed_out or self.is_changing_membership:
            return 0
        return self._reads.promised(self.membership, leader=self.id)

    @property
    def _is_promised(self) -> bool:
        return self._ticks < self._promised_tick

    # --- Sending -----------------------------------------------------------------------------------------------------

    @property
    def _term_is_saved(self) -> bool:
        return not self._hard_dirty and self._hard_number <= max(self._saved_number, self._term_saved_number)

    @property
    def _vote_is_saved(self) -> bool:
        """Whether the own vote counts: it is saved, and so is everything before it (`TermSaved` is not enough)."""
        return not self._hard_dirty and self._saved_number >= self._hard_number

    def _send(self, message: Message) -> None:
        """Send a message that promises nothing but the term in it."""
        if self._term_is_saved:
            self._messages.append(message)
        else:
            self._after_save.append(message)

    def _send_after_save(self, message: Message) -> None:
        """Send a message that promises what is in the log, or a vote."""
        self._after_save.append(message)

    def _accept_append(self, *, to: int, index: int) -> None:
        """Acknowledge the log up to ``index``; several acks of one `Ready` become the last one."""
        after = self._after_save
        response = AppendResponse(to, self.id, self.term, index, False, 0, 0, self._log.hollow_index)
        if after:
            last = after[-1]
            if (
                type(last) is AppendResponse
                and not last.rejected
                and last.to == to
                and last.term == self.term
                and last.index <= index
            ):
                after[-1] = response
                return
        after.append(response)

    def _next_save(self) -> Save | None:
        """Take what the disk must get: term and vote when they changed, new entries, a received snapshot."""
        if not self._hard_dirty and not self._log.has_unsaved:
            return None
        self._save_number += 1
        if self._hard_dirty:
            self._hard_dirty = False
            self._hard_number = self._save_number
        entries, snapshot = self._log.accept_save(self._save_number)
        return Save(self._save_number, HardState(self.term, self.vote, self._log.commit), entries, snapshot)

    # --- Roles -------------------------------------------------------------------------------------------------------

    def _become_follower(self, *, term: int, leader: int) -> None:
        """Follow ``leader``, or nobody yet. The vote is kept unless the term rises: one vote per term (Raft §5.2).

        Without a leader the election clock goes on: a candidate with a short log could otherwise silence, election
        after election, those who refuse it and could win themselves.
        """
        elapsed = 0 if leader != NO_NODE or self.role is LEADER else self._election_elapsed
        self._reset(term)
        self._election_elapsed = elapsed
        self.role = FOLLOWER
        self.leader = leader

    def _become_pre_candidate(self) -> None:
        """Rehearse an election: neither term nor vote change (thesis §9.6)."""
        assert self.role is not LEADER, "a leader does not campaign"
        self._reset(self.term)
        self.role = PRE_CANDIDATE
        self._votes[self.id] = True  # A rehearsal promises nothing, so it needs no save.

    def _become_candidate(self) -> None:
        """Enter a new term and vote for itself; the vote counts when it is saved (Raft §5.2)."""
        assert self.role is not LEADER, "a leader does not campaign"
        self._reset(self.term + 1)
        self.role = CANDIDATE
        self.vote = self.id

    def _reset(self, term: int) -> None:
        assert term >= self.term, "the term never falls"
        if self.role is LEADER:
            self._remember_promises()
        if term != self.term:
            self.term = term
            self.vote = NO_NODE
            self._hard_dirty = True
        self.leader = NO_NODE
        self._election_elapsed = 0
        self._heartbeat_elapsed = 0
        self._draw_election_timeout()
        self._votes = {}
        self._progress = {}
        self._brought = 0
        self._term_start = 0
        self._pending_membership = 0
        self._transferee = NO_NODE
        self._timed_out = False
        self._reads.clear()
        self._fetches.clear()

    def _remember_promises(self) -> None:
        """Keep what members acknowledged beyond the end of this leading (`LeaderRules.promise_of`). O(members)."""
        for node, progress in self._progress.items():
            if progress.acknowledged is not None:
                self._acknowledged[node] = (self.term, progress.acknowledged)
        for node in self._acknowledged.keys() - self.membership.members:
            del self._acknowledged[node]

    def _draw_election_timeout(self) -> None:
        """Draw from [election_ticks, 2 * election_ticks): split votes are rare and resolve fast (Raft §5.2)."""
        ticks = self._config.election_ticks
        self._election_timeout = ticks + self._rng.randrange(ticks)
