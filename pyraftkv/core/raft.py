"""The Raft machine: values in, values out.

`Raft` is one member's share of the algorithm and nothing else. It never touches a clock, a disk, a network, a thread or
a global random: time arrives as `Tick`, completed writes as `Saved` and `Applied`, and everything it wants done leaves
in one `Ready`. The whole driver is::

    while True:
        raft.feed(inputs)  # ticks, messages, proposals, completions
        ready = raft.ready()  # obey the order drawn in pyraftkv.core.ready

The rules of Figure 2 live by role: `follower.py`, `election.py`, `leader.py`, on the state in `base.py`. Which message
means something to which role is the table `Raft.MESSAGES`; a message that a role has no entry for is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, get_args

from pyraftkv._record import record
from pyraftkv.core.election import ElectionRules
from pyraftkv.core.follower import FollowerRules
from pyraftkv.core.membership import check as check_membership
from pyraftkv.core.messages import (
    AppendRequest,
    AppendResponse,
    CommitNotice,
    ForwardedMembership,
    ForwardedProposals,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    ReadIndexRequest,
    ReadIndexResponse,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from pyraftkv.core.progress import PeerStatus
from pyraftkv.core.ready import (
    NOTHING,
    Applied,
    Campaign,
    Fetched,
    ForgetLeader,
    Input,
    KeepPayloads,
    PeerUnreachable,
    Propose,
    ProposeDecided,
    ProposeMembership,
    ReadIndex,
    Ready,
    Saved,
    SnapshotSent,
    SnapshotTaken,
    SoftState,
    TermSaved,
    Tick,
    TransferLeadership,
)
from pyraftkv.core.types import CANDIDATE, FOLLOWER, LEADER, NO_NODE, PRE_CANDIDATE, Membership, Role


@record
class Status:
    """What one member knows, for people and for tests."""

    id: int
    role: Role
    leader: int
    term: int
    vote: int
    commit: int
    applied: int
    saved: int
    first_index: int
    last_index: int
    membership: Membership
    has_quorum: bool
    """Leader: a quorum was heard within the last election timeout. Others: a leader was."""
    transferee: int
    """Leader: whom it is handing over to, or 0."""
    peers: dict[int, PeerStatus]
    """Leader: every other member."""
    single_copy: bool = False
    """Leader: whether what is acknowledged may stand on one disk alone, the witness having had no room for it."""


MESSAGE_TYPES: tuple[type, ...] = get_args(Message)


class Raft(FollowerRules, ElectionRules):
    """One member's Raft machine. Feed it inputs, then do what `ready()` says.

    Args:
        config: How it behaves, and who it is.
        stored: What stood on its disk. The state machine stands at the stored snapshot; committed entries after it
            are handed out by the first `Ready`s.
        rng: Where election timeouts come from; its own, so that members differ and a seed repeats a run.
    """

    __slots__ = ()

    MESSAGES: ClassVar[dict[Role, dict[type, Callable[[Any, Any], None]]]] = {
        FOLLOWER: {
            AppendRequest: FollowerRules._on_append_request,
            Heartbeat: FollowerRules._on_heartbeat,
            InstallSnapshot: FollowerRules._on_install_snapshot,
            VoteRequest: ElectionRules._on_vote_request,
            TimeoutNow: ElectionRules._on_timeout_now,
            ReadIndexResponse: FollowerRules._on_read_index_response,
            CommitNotice: ElectionRules._on_commit_notice,
        },
        PRE_CANDIDATE: {
            AppendRequest: FollowerRules._on_append_request,
            Heartbeat: FollowerRules._on_heartbeat,
            InstallSnapshot: FollowerRules._on_install_snapshot,
            VoteRequest: ElectionRules._on_vote_request,
            VoteResponse: ElectionRules._on_vote_response,
            CommitNotice: ElectionRules._on_commit_notice,
        },
        CANDIDATE: {
            AppendRequest: FollowerRules._on_append_request,
            Heartbeat: FollowerRules._on_heartbeat,
            InstallSnapshot: FollowerRules._on_install_snapshot,
            VoteRequest: ElectionRules._on_vote_request,
            VoteResponse: ElectionRules._on_vote_response,
            CommitNotice: ElectionRules._on_commit_notice,
        },
        LEADER: {
            AppendResponse: ElectionRules._on_append_response,
            HeartbeatResponse: ElectionRules._on_heartbeat_response,
            ForwardedProposals: ElectionRules._on_forwarded_proposals,
            ForwardedMembership: ElectionRules._on_forwarded_membership,
            ReadIndexRequest: ElectionRules._on_read_index_request,
            VoteRequest: ElectionRules._on_vote_request,
        },
    }
    """What each role does with each message of its own term (Figure 2)."""

    # --- In and out --------------------------------------------------------------------------------------------------

    def feed(self, inputs: Iterable[Input]) -> None:
        """Take inputs in order. After this, handle `ready()`.

        Messages may be late, repeated, reordered, or from anyone: those that mean nothing are dropped.
        """
        handlers = self._INPUTS
        for item in inputs:
            handlers[type(item)](self, item)

    def ready(self) -> Ready:
        """Take everything that is to be done since the last call. Empty when there is nothing."""
        again = self.role is LEADER and self._replicate()
        if self._forwards:
            self._flush_forwards()
        if not again and not self._has_news():
            return NOTHING
        save = self._next_save()
        after_save: list[Message] = []
        after_number = 0
        if self._after_save:
            if self._saved_number == self._save_number:
                self._messages.extend(self._after_save)  # Nothing is unsaved: they promise what is on disk already.
            else:
                after_save, after_number = self._after_save, self._save_number
            self._after_save = []
        messages, self._messages = self._messages, []
        reads, self._read_ready = self._read_ready, []
        fetches, self._fetches = self._fetches, []
        rejected, self._rejected = self._rejected, []
        committed = self._log.next_committed(self._config.committed_bytes_max)
        restore = save.snapshot if save is not None else None
        soft_state = self._next_soft_state()
        return Ready(
            messages, save, after_save, after_number, restore, committed, reads, fetches, soft_state, rejected, again
        )

    def _has_news(self) -> bool:
        """Return whether anything is to be done.

        Micro-optimization (tests/bench/bench_core.py): half of all inputs lead to nothing, ticks and completions most
        of all, and to ask this takes a third of what it takes to gather nothing from everywhere.
        """
        log = self._log
        if self._messages or self._after_save or self._read_ready or self._fetches or self._rejected:
            return True
        if self._hard_dirty or log.has_unsaved or log.handed_out != log.commit:
            return True
        return self._soft_reported != (self.role, self.leader, self.term)

    def _next_soft_state(self) -> SoftState | None:
        now = (self.role, self.leader, self.term)
        if now == self._soft_reported:
            return None
        self._soft_reported = now
        return SoftState(self.role, self.leader, self.term)

    def status(self) -> Status:
        """Return what this member knows now."""
        log = self._log
        peers = {
            node: PeerStatus(
                state=progress.state,
                match=progress.match,
                next=progress.next,
                active=self._is_active(progress),
                inflight_messages=len(progress.inflights),
                inflight_bytes=progress.inflights.size_bytes,
                pending_snapshot=progress.pending_snapshot,
            )
            for node, progress in self._progress.items()
        }
        if self.role is LEADER:
            quorum_heard = self._quorum_is_active()
        else:
            quorum_heard = self.leader != NO_NODE and self._election_elapsed < self._config.election_ticks
        return Status(
            id=self.id,
            role=self.role,
            leader=self.leader,
            term=self.term,
            vote=self.vote,
            commit=log.commit,
            applied=log.applied,
            saved=log.saved,
            first_index=log.first_index,
            last_index=log.last_index,
            membership=self.membership,
            has_quorum=quorum_heard,
            transferee=self._transferee,
            peers=peers,
            single_copy=self.is_single_copy,
        )

    # --- Messages ----------------------------------------------------------------------------------------------------

    def _step(self, message: Message) -> None:
        if message.to != self.id or message.sender == self.id:
            return
        if message.term != self.term and not self._accept_term(message):
            return
        handler = self.MESSAGES[self.role].get(type(message))
        if handler is not None:
            handler(self, message)

    def _accept_term(self, message: Message) -> bool:
        """Compare terms (Raft §5.1, Figure 2 "Rules for servers"); return whether to go on with the message."""
        if type(message) is CommitNotice:
            return True  # True in every term, and no reason to enter its sender's.
        if message.term < self.term:
            self._answer_stale(message)
            return False
        if isinstance(message, VoteRequest):
            if self._is_leased(message):
                return False
            if message.pre:
                return True  # The term is one that its sender has not entered: nobody else does.
        elif isinstance(message, VoteResponse) and message.pre and message.granted:
            return True  # Our own question's term comes back.
        leader = message.sender if type(message) in _SENT_BY_LEADERS else NO_NODE
        self._become_follower(term=message.term, leader=leader)
        return True

    def _answer_stale(self, message: Message) -> None:
        """Tell a leader or a candidate of an earlier term that its term is over; drop the rest.

        Without this answer a member whose term ran ahead could never rejoin: it would ignore the leader, and the
        leader's lease would ignore it.
        """
        to = message.sender
        if isinstance(message, AppendRequest):
            self._send(AppendResponse(to, self.id, self.term, message.prev_index, True, 0, 0))
        elif isinstance(message, Heartbeat):
            self._send(HeartbeatResponse(to, self.id, self.term, 0))
        elif isinstance(message, VoteRequest):
            self._send(VoteResponse(to, self.id, self.term, message.pre, False))

    # --- Local inputs ------------------------------------------------------------------------------------------------

    def _on_tick(self, _: Tick) -> None:
        self._ticks += 1
        if self.role is LEADER:
            self._tick_leader()
        else:
            self._tick_election()

    def _on_propose(self, proposal: Propose) -> None:
        payloads = proposal.payloads
        if not payloads:
            return
        assert max(map(len, payloads)) <= self._config.payload_bytes_max, "no message could carry it"
        if self.role is LEADER:
            count = self._append_proposals(payloads)
            if count < len(payloads):
                self._rejected.extend(payloads[count:])
        else:
            self._forward(payloads)

    def _on_propose_decided(self, proposal: ProposeDecided) -> None:
        if self.role is LEADER and proposal.term == self.term:
            self._on_propose(Propose(proposal.payloads))
        else:
            self._rejected.extend(proposal.payloads)

    def _on_propose_membership(self, proposal: ProposeMembership) -> None:
        payload, leave = proposal.payload, proposal.leave
        assert len(payload) <= self._config.payload_bytes_max, "no message could carry it"
        if self.role is not LEADER:
            self._forward_membership(payload, leave=leave)
        elif not self._append_membership(payload, leave=leave):
            self._rejected.append(payload)

    def _on_read_index(self, read: ReadIndex) -> None:
        if self.role is LEADER:
            self._reads.add(sender=self.id, context=read.context)
        elif self.role is FOLLOWER and self.leader != NO_NODE:
            self._send(ReadIndexRequest(self.leader, self.id, self.term, read.context))

    def _on_saved(self, saved: Saved) -> None:
        assert saved.number <= self._save_number, "only what was handed out can have been saved"
        if saved.number <= self._saved_number:
            return
        self._saved_number = saved.number
        self._log.saved_to(saved.number)
        if self.role is LEADER:
            if self._log.saved > self._log.commit:
                self._maybe_commit()
        elif self.role is CANDIDATE and self._vote_is_saved and self.id not in self._votes:
            self._count_own_vote()

    def _on_term_saved(self, saved: TermSaved) -> None:
        assert saved.number <= self._save_number, "only what was handed out can have been saved"
        self._term_saved_number = max(self._term_saved_number, saved.number)

    def _on_applied(self, applied: Applied) -> None:
        self._log.applied_to(applied.index)
        # A received snapshot may have brought a later configuration than entries applied before it was loaded.
        if applied.membership is not None and applied.index > self._membership_index:
            assert self.role in {FOLLOWER, LEADER}, "nobody campaigns before a change that it knows of is applied"
            self._membership_index = applied.index
            if applied.index > 1:  # What the first entry of all makes replaces nothing.
                self._last_change = applied.index
            self.membership = applied.membership
            if self.role is LEADER:
                self._follow_membership(applied.membership)
        if self.role is LEADER:
            self._maybe_leave_joint()

    def _on_snapshot_taken(self, taken: SnapshotTaken) -> None:
        self._log.compact(snapshot=taken.snapshot, first_index=taken.first_index)

    def _on_campaign(self, _: Campaign) -> None:
        self._campaign(by_transfer=False)

    def _on_forget_leader(self, _: ForgetLeader) -> None:
        if self.role is FOLLOWER:
            self.leader = NO_NODE

    _INPUTS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        **dict.fromkeys(MESSAGE_TYPES, _step),
        Tick: _on_tick,
        Propose: _on_propose,
        ProposeDecided: _on_propose_decided,
        ProposeMembership: _on_propose_membership,
        ReadIndex: _on_read_index,
        Saved: _on_saved,
        TermSaved: _on_term_saved,
        Applied: _on_applied,
        Fetched: ElectionRules._on_fetched,
        SnapshotTaken: _on_snapshot_taken,
        PeerUnreachable: ElectionRules._on_peer_unreachable,
        SnapshotSent: ElectionRules._on_snapshot_sent,
        TransferLeadership: ElectionRules._on_transfer_leadership,
        Campaign: _on_campaign,
        ForgetLeader: _on_forget_leader,
        KeepPayloads: ElectionRules._on_keep_payloads,
    }

    # --- For tests and people ----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants of the machine and its parts. O(entries in memory)."""
        self._log.check()
        self._reads.check()
        for progress in self._progress.values():
            progress.check()
            assert progress.match <= self._log.last_index, (progress.match, self._log)
        check_membership(self.membership)
        if self.membership.is_voter(self.id):
            assert self._config.witness is (self.id in self.membership.witnesses), self.membership
        assert self._config.witness or not self._log.hollow_index, "who has a state machine needs every payload"
        if self.role is LEADER:
            assert self._progress.keys() == self.membership.members - {self.id}, self.membership
            assert self._pending_membership >= self._term_start, "what is older may be a change"
        assert self.role is LEADER or not (self._progress or self._transferee or len(self._reads)), self.role
        assert (self.leader == self.id) == (self.role is LEADER), (self.leader, self.role)
        assert self.role is not CANDIDATE or self.vote == self.id, self.vote
        assert self._log.last_term <= self.term, (self._log.last_term, self.term)

    def __repr__(self) -> str:
        return (
            f"Raft(id={self.id}, role={self.role.name}, term={self.term}, vote={self.vote}, leader={self.leader}, "
            f"log={self._log!r})"
        )


_SENT_BY_LEADERS = frozenset({AppendRequest, Heartbeat, InstallSnapshot})
