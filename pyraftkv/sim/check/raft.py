"""Raft's safety properties (Raft Figure 3, and the rules of durability under them), checked while a cluster runs.

Everything is judged from outside, by values that pass by: what members hand to their storage, what the storage says
is done, what leaves through the transport, and the marks of each machine after every pass of its process.

.. code-block:: text

    storage.start ──► started      storage.save ──► saving      its completion ──► completed
    transport.send ─► sending      after every pass ─► observe  the bare disks ──► check_images

A member's log is known by the terms of its entries, three times over: as `given` to the storage, as `completed` by
it, and, when an image of the disk is looked at, as a recovery would find it. Log matching makes terms enough: two
entries of equal index and term must be the same entry with the same predecessor (that is checked for every entry
that any member ever saves), so equal terms at one index stand for equal logs up to there.

=========================  ===========================================================================================
 election safety            one leader per term, over all history; one vote per member and term
 leader append-only         a leader never replaces an entry of its own log
 log matching               equal index and term: equal payload, equal term before it
 leader completeness        who leads in term T has all that was committed in terms before T
 state-machine safety       one term per committed index, ever; one revision of the store per applied index
 monotone marks             term, commit and applied index never fall within a life
 quorum before commit       what is committed was completed by the storages of a majority
 persist before send        a vote, a vote request, an accepted append and every term leave after their own save
 nothing is forgotten       a life begins with all that the storage had completed in the one before
 committed is durable       the bare disks of a majority hold every committed entry
=========================  ===========================================================================================

The tables grow with the run, by a few words per entry: a run is bounded by its virtual time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from pyraftkv.core import LEADER, Entry, HardState, Membership, Role, Save, SnapshotMeta
from pyraftkv.core.describe import describe_message
from pyraftkv.core.messages import (
    AppendRequest,
    AppendResponse,
    CommitNotice,
    ForwardedMembership,
    ForwardedProposals,
    Heartbeat,
    HeartbeatResponse,
    ReadIndexRequest,
    ReadIndexResponse,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from pyraftkv.log.base import Recovered

GENESIS_INDEX = 1
"""The first members agree on this entry before there is a leader: each has it committed when it saves it."""


class RaftView(Protocol):
    """What is looked at of a machine: `Raft` has it, and so has its `Status`."""

    @property
    def role(self) -> Role: ...
    @property
    def term(self) -> int: ...
    @property
    def commit(self) -> int: ...
    @property
    def applied(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    @property
    def membership(self) -> Membership: ...


class TermLog:
    """A log by the terms of its entries: the entry at ``base`` and all before it are a snapshot's."""

    __slots__ = ("base", "base_term", "terms")

    def __init__(self, snapshot: SnapshotMeta | None = None, entries: Sequence[Entry] = ()) -> None:
        self.base, self.base_term = (snapshot.index, snapshot.term) if snapshot is not None else (0, 0)
        self.terms = [entry.term for entry in entries]

    def __repr__(self) -> str:
        return f"{self.last_index}@{self.term_at(self.last_index)}"

    @property
    def last_index(self) -> int:
        return self.base + len(self.terms)

    def term_at(self, index: int) -> int | None:
        """Return the term of the entry at ``index``; None beyond the end, and before the base, where any may be."""
        offset = index - self.base
        if offset > 0:
            return self.terms[offset - 1] if offset <= len(self.terms) else None
        return self.base_term if offset == 0 else None

    def has(self, index: int, term: int) -> bool:
        """Return whether the log holds that entry, itself or in its snapshot."""
        return index < self.base or self.term_at(index) == term

    def copy(self) -> TermLog:
        twin = TermLog()
        twin.base, twin.base_term, twin.terms = self.base, self.base_term, self.terms.copy()
        return twin

    def take(self, save: Save) -> None:
        """Do what a save says: a snapshot replaces everything, entries replace what stands from their first on."""
        if save.snapshot is not None:
            self.base, self.base_term, self.terms = save.snapshot.index, save.snapshot.term, []
        if save.entries:
            del self.terms[save.entries[0].index - self.base - 1 :]
            self.terms += [entry.term for entry in save.entries]

    def agrees(self, other: TermLog) -> bool:
        """Return whether both end with the same entry and are equal wherever both can say."""
        if self.last_index != other.last_index:
            return False
        lo = max(self.base, other.base)
        return self.term_at(lo) == other.term_at(lo) and (
            self.terms[lo - self.base :] == other.terms[lo - other.base :]
        )


class MemberRecord:
    """What is known of one member, over all its lives."""

    def __init__(self, name: str, member_id: int) -> None:
        self.name = name
        self.id = member_id
        self.given = TermLog()
        self.completed = TermLog()
        self.term = 0
        """The term that is on disk."""
        self.vote = 0
        """The vote of that term that is on disk."""
        self.pending: deque[Save] = deque()
        """Saves under way."""
        self.is_lost = False
        """Whether its disk was damaged behind its back: what it had does not count any more."""
        self.begin()

    def begin(self) -> None:
        """Forget the marks of the last life."""
        self.mark: tuple[object, ...] = ()
        self.seen_term = self.seen_commit = self.seen_applied = 0
        self.leading = 0
        """The term that it leads as of the last look; 0 for none."""

    def finish(self, save: Save) -> None:
        """Count a save as done."""
        self.completed.take(save)
        state = save.hard_state
        if state is not None:
            self.term, self.vote = state.term, state.vote

    def outcomes(self) -> Iterable[tuple[TermLog, int, int]]:
        """Yield what the disk may hold: all that was completed, then what is under way, one save after the other."""
        log, term, vote = self.completed, self.term, self.vote
        yield log, term, vote
        log = log.copy()
        for save in self.pending:
            log.take(save)
            if save.hard_state is not None:
                term, vote = save.hard_state.term, save.hard_state.vote
            yield log, term, vote

    def holds(self, hard_state: HardState, log: TermLog) -> bool:
        """Return whether a recovery that finds this has lost nothing that was completed."""
        found = (hard_state.term, hard_state.vote)
        return any(found == (term, vote) and log.agrees(known) for known, term, vote in self.outcomes())


class RaftInvariants:
    """Watches a cluster from its first start to the end of the run.

    Args:
        ids: The members' names and ids.
        violated: Called with the rule that was broken and with what happened, in words. It must not raise: it may be
            called from within the code under test.
    """

    def __init__(self, ids: Mapping[str, int], *, violated: Callable[[str, str], None]) -> None:
        self.members = {name: MemberRecord(name, member_id) for name, member_id in ids.items()}
        self._names = {member_id: name for name, member_id in ids.items()}
        self._violated = violated
        self.leaders: dict[int, int] = {}
        """Who led, by term."""
        self._votes: dict[tuple[int, int], int] = {}
        """Whom a member voted for, by its id and the term."""
        self._entries: dict[tuple[int, int], tuple[bytes, int | None]] = {}
        """Every entry ever saved, by index and term: its payload, and the term before it."""
        self._committed = [0]
        """The term of every committed entry, by index; 0 where it is not known."""
        self._committed_in: dict[int, int] = {}
        """The highest index that was seen committed in a term, by that term."""
        self._revisions: dict[int, int] = {}
        """The store's revision by applied index."""

    @property
    def commit(self) -> int:
        """The highest index that any member ever saw committed."""
        return len(self._committed) - 1

    # --- The storage -------------------------------------------------------------------------------------------------

    def started(self, name: str, recovered: Recovered) -> bool:
        """A member opened its storage: a life begins. Return whether it has all that was completed.

        One that has not, because its disk was damaged behind its back, must not take part any more.
        """
        member = self.members[name]
        log = TermLog(recovered.snapshot, recovered.entries)
        state = recovered.hard_state
        if not member.holds(state, log):
            if member.is_lost:
                return False
            self._violated(
                "nothing is forgotten",
                f"{name} starts with term {state.term}, vote {state.vote}, log to {log}; its storage had completed "
                f"term {member.term}, vote {member.vote}, log to {member.completed}",
            )
        member.begin()
        member.pending.clear()
        member.given, member.completed = log, log.copy()
        member.term, member.vote = state.term, state.vote
        self._note_entries(member, recovered.entries)
        return True

    def lost(self, name: str) -> None:
        """A member's disk was damaged behind its back, or wiped: it may have forgotten what it completed."""
        self.members[name].is_lost = True

    def saving(self, name: str, save: Save) -> None:
        """A member hands a save to its storage."""
        member = self.members[name]
        entries = save.entries
        if entries:
            first = entries[0].index
            if member.leading and first <= member.given.last_index and save.snapshot is None:
                state = save.hard_state
                if state is not None and state.term == member.leading:
                    self._violated(
                        "leader append-only",
                        f"{name} leads in term {state.term} and replaces its own entries from {first} on",
                    )
        member.pending.append(save)
        member.given.take(save)
        if entries:
            self._note_entries(member, entries)

    def completed(self, name: str, number: int) -> None:
        """The storage says that every save up to ``number`` is on disk."""
        member = self.members[name]
        pending = member.pending
        while pending and pending[0].number <= number:
            member.finish(pending.popleft())
        if member.vote:
            self._note_vote(member, member.term, member.vote)

    def _note_entries(self, member: MemberRecord, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        known = self._entries
        before = member.given.term_at(entries[0].index - 1)
        for entry in entries:
            key = (entry.index, entry.term)
            value = (entry.payload, before)
            twin = known.setdefault(key, value)
            if twin is not value and twin != value and (twin[0] != entry.payload or None not in (twin[1], before)):
                what = "another payload" if twin[0] != entry.payload else f"{before} before it, elsewhere {twin[1]}"
                self._violated(
                    "log matching", f"{member.name} has entry {entry.index} of term {entry.term} with {what}"
                )
            before = entry.term

    def _note_vote(self, member: MemberRecord, term: int, candidate: int) -> None:
        first = self._votes.setdefault((member.id, term), candidate)
        if first != candidate:
            self._violated(
                "election safety",
                f"{member.name} votes for {self._name(candidate)} in term {term}; it voted for {self._name(first)}",
            )

    def _name(self, member_id: int) -> str:
        return self._names.get(member_id, str(member_id))

    # --- The transport -----------------------------------------------------------------------------------------------

    def sending(self, name: str, messages: Iterable[Any]) -> None:
        """A member hands messages to its transport: what they promise must be on its disk (core/base.py)."""
        member = self.members[name]
        for message in messages:
            rule = self._PROMISES.get(message.__class__)
            if rule is not None:
                broken = rule(self, member, message)
                if broken:
                    self._violated(
                        "persist before send",
                        f"{name} sends {describe_message(message)}, but {broken}; on disk are term {member.term}, "
                        f"vote {member.vote}, log to {member.completed}",
                    )

    def _term_promised(self, member: MemberRecord, message: Any) -> str:
        return "" if message.term <= member.term else "the term is not saved"

    def _vote_requested(self, member: MemberRecord, message: VoteRequest) -> str:
        if message.pre or message.term < member.term:
            return ""
        if message.term > member.term or member.vote != member.id:
            return "its own vote is not saved"
        is_saved = member.completed.has(message.last_index, message.last_term)
        return "" if is_saved else "the log that it stands for is not saved"

    def _vote_answered(self, member: MemberRecord, message: VoteResponse) -> str:
        if message.pre:
            return "" if message.granted else self._term_promised(member, message)
        if not message.granted:
            return self._term_promised(member, message)
        self._note_vote(member, message.term, message.to)
        if message.term < member.term:
            return ""
        return "" if (member.term, member.vote) == (message.term, message.to) else "the vote is not saved"

    def _append_answered(self, member: MemberRecord, message: AppendResponse) -> str:
        if message.rejected or message.term != member.term:
            return self._term_promised(member, message)
        return "" if message.index <= member.completed.last_index else "the entries are not saved"

    _PROMISES: ClassVar[dict[type, Callable[[Any, MemberRecord, Any], str]]] = {
        VoteRequest: _vote_requested,
        VoteResponse: _vote_answered,
        AppendResponse: _append_answered,
        AppendRequest: _term_promised,
        Heartbeat: _term_promised,
        HeartbeatResponse: _term_promised,
        ReadIndexRequest: _term_promised,
        ReadIndexResponse: _term_promised,
        ForwardedProposals: _term_promised,
        ForwardedMembership: _term_promised,
        CommitNotice: _term_promised,
        TimeoutNow: _term_promised,
    }

    # --- The machine -------------------------------------------------------------------------------------------------

    def observe(self, name: str, raft: RaftView) -> bool:
        """Look at a member's machine after a pass; return whether anything changed. Nearly free when nothing did."""
        member = self.members[name]
        mark = (raft.term, raft.role, raft.commit, raft.applied, raft.last_index)
        if mark == member.mark:
            return False
        member.mark = mark
        term, role, commit, applied, last_index = mark
        if term < member.seen_term or commit < member.seen_commit or applied < member.seen_applied:
            self._violated(
                "monotone marks",
                f"{name} went back: term {member.seen_term} to {term}, commit {member.seen_commit} to {commit}, "
                f"applied {member.seen_applied} to {applied}",
            )
        if not applied <= commit <= last_index:
            self._violated("monotone marks", f"{name} applied {applied}, committed {commit}, has {last_index}")
        member.seen_term, member.seen_applied = term, applied
        if role is not LEADER:
            member.leading = 0
        elif member.leading != term:
            member.leading = term
            self._note_leader(member, term)
        if commit > member.seen_commit:
            self._note_commit(member, raft, member.seen_commit, commit)
            member.seen_commit = commit
        return True

    def _note_leader(self, member: MemberRecord, term: int) -> None:
        first = self.leaders.setdefault(term, member.id)
        if first != member.id:
            self._violated("election safety", f"{member.name} leads in term {term}, as {self._name(first)} did")
        index = max((index for earlier, index in self._committed_in.items() if earlier < term), default=0)
        if not member.given.has(index, self._committed[index]):
            self._violated(
                "leader completeness",
                f"{member.name} leads in term {term} with a log to {member.given}, without entry {index} of term "
                f"{self._committed[index]}, which was committed",
            )

    def _note_commit(self, member: MemberRecord, raft: RaftView, lo: int, hi: int) -> None:
        """Compare what a member holds for committed after ``lo``, up to ``hi``, with what anybody ever did."""
        log, committed = member.given, self._committed
        for index in range(max(lo + 1, log.base), hi + 1):
            term = log.term_at(index)
            if term is None:
                self._violated("state-machine safety", f"{member.name} commits entry {index}, which it never saved")
                return
            if index < len(committed):
                if committed[index] != term:
                    if committed[index]:
                        self._violated(
                            "state-machine safety",
                            f"{member.name} commits entry {index} of term {term}, others that of {committed[index]}",
                        )
                        return
                    committed[index] = term
            else:
                committed.extend([0] * (index - len(committed)))
                committed.append(term)
        if hi > self._committed_in.get(raft.term, 0) and hi > max(self._committed_in.values(), default=0):
            self._committed_in[raft.term] = hi
            if hi > GENESIS_INDEX:
                self._check_quorum(member, raft.membership, hi, committed[hi])

    def _check_quorum(self, member: MemberRecord, membership: Membership, index: int, term: int) -> None:
        holders = {other.id for other in self.members.values() if other.completed.has(index, term)}
        if not _is_quorum(membership, holders):
            names = sorted(map(self._name, holders))
            self._violated("quorum before commit", f"{member.name} commits entry {index}, which only {names} saved")

    def applied(self, name: str, index: int, revision: int) -> None:
        """A member's store stands at ``revision`` after applying entry ``index``."""
        first = self._revisions.setdefault(index, revision)
        if first != revision:
            self._violated(
                "state-machine safety",
                f"{name} is at revision {revision} after entry {index}, another member was at {first}",
            )

    # --- The bare disks ----------------------------------------------------------------------------------------------

    def check_images(self, images: Mapping[str, Recovered | None], membership: Membership) -> None:
        """Judge what recoveries find on the bare disks of members, None where one refuses to start.

        A member that is not among ``images`` was not looked at, and counts by what its storage completed.
        """
        holders: set[int] = set()
        index = self.commit
        for name, member in self.members.items():
            if name not in images:
                log = member.completed
            elif (image := images[name]) is None:
                continue
            else:
                log = TermLog(image.snapshot, image.entries)
                if not member.is_lost and not member.holds(image.hard_state, log):
                    self._violated(
                        "nothing is forgotten",
                        f"the disk of {name} holds {image.hard_state}, log to {log}; its storage had completed term "
                        f"{member.term}, vote {member.vote}, log to {member.completed}",
                    )
            if log.has(index, self._committed[index]):
                holders.add(member.id)
        unusable = {
            self.members[name].id for name, image in images.items() if image is None or self.members[name].is_lost
        }
        if index > GENESIS_INDEX and not _is_quorum(membership, holders | unusable):
            names = sorted(map(self._name, holders))
            self._violated("committed is durable", f"entry {index} is committed, and on the disks of {names} only")


def _is_quorum(membership: Membership, holders: set[int]) -> bool:
    """Return whether ``holders`` are a majority, of both halves of a joint configuration (thesis §4.3)."""
    halves = [half for half in (membership.voters, membership.outgoing) if half]
    return all(2 * len(half & holders) > len(half) for half in halves)
