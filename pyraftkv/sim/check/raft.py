"""Raft's safety properties (Raft Figure 3, and the rules of durability under them), checked while a cluster runs.

Everything is judged from outside, by values that pass by: what members hand to their storage, what the storage says
is done, what leaves through the transport, and the marks of each machine after every pass of its process.

.. code-block:: text

    storage.start ──► started      storage.save ──► saving      its completion ──► completed
    transport.send ─► sending      after every pass ─► observe  the bare disks ──► check_images
    storage.identify ─► identified

A member's log is known by the terms of its entries, three times over: as `given` to the storage, as `completed` by
it, and, when an image of the disk is looked at, as a recovery would find it. Log matching makes terms enough: two
entries of equal index and term must be the same entry with the same predecessor (that is checked for every entry
that any member ever saves), so equal terms at one index stand for equal logs up to there.

=========================  ===========================================================================================
 election safety            one leader per term, over all history; one vote per member and term
 elected by a quorum        who leads was voted for by a majority, of both halves of a joint configuration
 leader append-only         a leader never replaces an entry of its own log
 log matching               equal index and term: equal payload, equal term before it
 leader completeness        who leads in term T has all that was committed in terms before T
 state-machine safety       one term per committed index, ever; one revision of the store per applied index
 monotone marks             term, commit and applied index never fall within a life
 quorum before commit       what is committed was completed by the storages of a majority
 persist before send        a vote, a vote request, an accepted append and every term leave after their own save
 nothing is forgotten       a life begins with all that the storage had completed in the one before
 committed is durable       the bare disks of a majority hold every committed entry
 one change at a time       a leader's log has one change of the members at most that is not committed
 who leads has a vote       a leader that applies its own removal leads no more
 an id is used once         ids of removed members are nobody's any more
=========================  ===========================================================================================

Members come and go. A machine that begins anew is another member (`newcomer`), and what the former one did stays on
record. Which configuration counts at which entry is what `pyraftkv.sim.check.configurations` is about. A quorum is one
of the configuration that a member went by before the pass or after it: both are right for what happened in between.

The tables grow with the run, by a few words per entry: a run is bounded by its virtual time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

from pyraftkv.core import HOLLOW, LEADER, MEMBERSHIP, Entry, HardState, Membership, Role, Save, SnapshotMeta
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
from pyraftkv.sim.check.configurations import GENESIS_INDEX, Configurations, is_quorum


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
        """0 as long as it has joined nothing."""
        self.given = TermLog()
        self.changes: list[int] = []
        """Where changes of the members stand in `given`, as far as they may be uncommitted."""
        self.completed = TermLog()
        self.term = 0
        """The term that is on disk."""
        self.vote = 0
        """The vote of that term that is on disk."""
        self.commit = 0
        """The commit index that is on disk."""
        self.pending: deque[Save] = deque()
        """Saves under way."""
        self.is_lost = False
        """Whether its disk was damaged behind its back: what it had does not count any more."""
        self.begin()

    def begin(self) -> None:
        """Forget the marks of the last life."""
        self.mark: tuple[object, ...] = ()
        self.seen_term = self.seen_commit = self.seen_applied = 0
        self.given_term = 0
        """The term of the last save that it handed to its storage."""
        self.leading = 0
        """The term that it leads as of the last look; 0 for none."""
        self.membership = Membership()
        """What it went by as of the last look."""

    def finish(self, save: Save) -> None:
        """Count a save as done."""
        self.completed.take(save)
        state = save.hard_state
        if state is not None:
            self.promise(state)
            self.commit = state.commit

    def promise(self, state: HardState) -> None:
        """Count a term and a vote as saved. What was saved ahead of its turn is not taken back in turn."""
        self.term, self.vote = max((self.term, self.vote), (state.term, state.vote))

    def give(self, save: Save) -> None:
        """Note what is handed to the storage."""
        self.given.take(save)
        if save.snapshot is not None:
            self.changes = []
        if save.entries:
            first = save.entries[0].index
            self.changes = [index for index in self.changes if index < first] + _changes(save.entries)

    def outcomes(self) -> Iterable[tuple[TermLog, int, int]]:
        """Yield what the disk may hold: all that was completed, then what is under way, one save after the other."""
        log, term, vote = self.completed, self.term, self.vote
        yield log, term, vote
        log = log.copy()
        for save in self.pending:
            log.take(save)
            if save.hard_state is not None:
                term, vote = max((term, vote), (save.hard_state.term, save.hard_state.vote))
            yield log, term, vote

    def holds(self, hard_state: HardState, log: TermLog) -> bool:
        """Return whether a recovery that finds this has lost nothing that was completed."""
        found = (hard_state.term, hard_state.vote)
        return any(found == (term, vote) and log.agrees(known) for known, term, vote in self.outcomes())


class RaftInvariants:
    """Watches a cluster from its first start to the end of the run.

    Args:
        ids: The first members' names and ids.
        witnesses: Those of them that keep no state.
        violated: Called with the rule that was broken and with what happened, in words. It must not raise: it may be
            called from within the code under test.
    """

    def __init__(
        self, ids: Mapping[str, int], *, violated: Callable[[str, str], None], witnesses: Iterable[int] = ()
    ) -> None:
        self.members = {name: MemberRecord(name, member_id) for name, member_id in ids.items()}
        self._former: list[MemberRecord] = []
        """Members whose machines began anew."""
        self._names = {member_id: name for name, member_id in ids.items()}
        self._violated = violated
        first = Membership(voters=frozenset(ids.values()), witnesses=frozenset(witnesses))
        self.configurations = Configurations(first, violated=violated)
        self._deciders = [first]
        """The configurations by which the last entry was committed."""
        self.leaders: dict[int, int] = {}
        """Who led, by term."""
        self._votes: dict[tuple[int, int], int] = {}
        """Whom a member voted for, by its id and the term."""
        self._voters: dict[tuple[int, int], set[int]] = {}
        """Who voted for a member, by the term and its id."""
        self._change_entries: set[tuple[int, int]] = set()
        """The entries that may change the members, by index and term."""
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

    # --- The members -------------------------------------------------------------------------------------------------

    def newcomer(self, name: str) -> None:
        """A machine begins anew, with an empty disk: whoever it was, it is no member yet."""
        former = self.members.get(name)
        if former is not None and former.id:
            self._former.append(former)
        self.members[name] = MemberRecord(name, 0)

    def identified(self, name: str, member_id: int) -> None:
        """A member's directory is bound to that id."""
        member = self.members[name]
        if member.id == member_id:
            return
        if member.id or member_id in self._names:
            self._violated(
                "an id is used once",
                f"{name} was {member.id} and calls itself {member_id}, as {self._name(member_id)} did",
            )
        member.id = member_id
        self._names[member_id] = name

    def name_of(self, member_id: int) -> str | None:
        """Return the machine on which the member of that id lives, or lived; None if nobody ever had it."""
        return self._names.get(member_id)

    def is_current(self, name: str) -> bool:
        """Whether a machine's member is one of the cluster's, as of the last change that anybody has applied."""
        return self.members[name].id in self.configurations.latest.members

    def is_gone(self, name: str) -> bool:
        """Whether the member of a machine was removed."""
        return self.members[name].id in self.configurations.gone

    def is_gone_for_good(self, name: str) -> bool:
        """Whether so many of the others have on disk that it was removed that they do not need it to go on."""
        index = self.configurations.gone.get(self.members[name].id)
        if index is None:
            return False
        know = {member.id for member in self.members.values() if member.commit >= index}
        return is_quorum(self.configurations.latest, know)

    def _everybody(self) -> Iterable[MemberRecord]:
        yield from self.members.values()
        yield from self._former

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
        member.changes = _changes(recovered.entries)
        member.term, member.vote, member.commit = state.term, state.vote, state.commit
        self._note_entries(member, recovered.entries)
        return True

    def lost(self, name: str) -> None:
        """A member's disk was damaged behind its back, or wiped: it may have forgotten what it completed."""
        self.members[name].is_lost = True

    def saving(self, name: str, save: Save) -> None:
        """A member hands a save to its storage."""
        member = self.members[name]
        entries, state = save.entries, save.hard_state
        if state is not None:
            if state.term < member.given_term:
                self._violated("monotone marks", f"{name} saves term {state.term} after term {member.given_term}")
            member.given_term = state.term
        if entries:
            first = entries[0].index
            replaces = first <= member.given.last_index and save.snapshot is None
            if member.leading and replaces and state is not None and state.term == member.leading:
                self._violated(
                    "leader append-only",
                    f"{name} leads in term {state.term} and replaces its own entries from {first} on",
                )
        member.pending.append(save)
        member.give(save)
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

    def promised(self, name: str, number: int) -> None:
        """The storage says that term and vote of the save of that number are on disk."""
        member = self.members[name]
        for save in member.pending:
            if save.number <= number and save.hard_state is not None:
                member.promise(save.hard_state)
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
            if entry.kind is HOLLOW:  # Its payload is known to others alone, and so is what it is.
                before = entry.term
                continue
            twin = known.setdefault(key, value)
            if twin is not value and twin != value and (twin[0] != entry.payload or None not in (twin[1], before)):
                what = "another payload" if twin[0] != entry.payload else f"{before} before it, elsewhere {twin[1]}"
                self._violated(
                    "log matching", f"{member.name} has entry {entry.index} of term {entry.term} with {what}"
                )
            before = entry.term
            if entry.kind is MEMBERSHIP:
                self._change_entries.add(key)

    def _note_vote(self, member: MemberRecord, term: int, candidate: int) -> None:
        first = self._votes.setdefault((member.id, term), candidate)
        self._voters.setdefault((term, candidate), set()).add(member.id)
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
        log = member.completed
        if log.has(message.last_index, message.last_term) or log.term_at(log.last_index) == message.term:
            return ""  # or it is saved together with what replaced it: that is of a leader, and the term is decided
        return "the log that it stands for is not saved"

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
            self._note_leader(member, raft)
        if role is LEADER and not raft.membership.is_voter(member.id):
            self._violated("who leads has a vote", f"{name} leads in term {term}, by {raft.membership}")
        if commit > member.seen_commit:
            self._note_commit(member, raft, member.seen_commit, commit)
            member.seen_commit = commit
        if member.leading and member.changes:
            self._note_changes(member)
        member.membership = raft.membership
        return True

    def _note_changes(self, member: MemberRecord) -> None:
        member.changes = [index for index in member.changes if index > self.commit]
        if len(member.changes) > 1:
            self._violated(
                "one change at a time", f"{member.name} leads with changes at {member.changes}, none of them committed"
            )

    def _note_leader(self, member: MemberRecord, raft: RaftView) -> None:
        term = raft.term
        first = self.leaders.setdefault(term, member.id)
        if first != member.id:
            self._violated("election safety", f"{member.name} leads in term {term}, as {self._name(first)} did")
        voters = self._voters.get((term, member.id), set())
        if not self._quorums(member, raft, voters):
            names = sorted(map(self._name, voters))
            self._violated("elected by a quorum", f"{member.name} leads in term {term} by the votes of {names}")
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
                    self._note_change(index, term)
            else:
                committed.extend([0] * (index - len(committed)))
                committed.append(term)
                self._note_change(index, term)
        if hi > self._committed_in.get(raft.term, 0) and hi > max(self._committed_in.values(), default=0):
            self._committed_in[raft.term] = hi
            if hi > GENESIS_INDEX:
                self._check_quorum(member, raft, hi, committed[hi])

    def _note_change(self, index: int, term: int) -> None:
        if (index, term) in self._change_entries:
            self.configurations.committed(index)

    def _quorums(self, member: MemberRecord, raft: RaftView, holders: set[int]) -> list[Membership]:
        """Return the configurations, of those that a member went by lately, in which these are enough."""
        return [each for each in (member.membership, raft.membership) if each.voters and is_quorum(each, holders)]

    def _check_quorum(self, member: MemberRecord, raft: RaftView, index: int, term: int) -> None:
        holders = {other.id for other in self._everybody() if other.completed.has(index, term)}
        deciders = self._quorums(member, raft, holders)
        if deciders:
            self._deciders = deciders
        else:
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

    def configured(self, name: str, index: int, membership: Membership) -> None:
        """A member goes by this configuration, having applied everything up to ``index``, or a snapshot beyond it."""
        self.configurations.applied(name, max(index, self.members[name].given.base), membership)

    # --- The bare disks ----------------------------------------------------------------------------------------------

    def check_images(self, images: Mapping[str, Recovered | None]) -> None:
        """Judge what recoveries find on the bare disks of members, None where one refuses to start.

        A member that is not among ``images`` was not looked at, and counts by what its storage completed; one whose
        machine began anew could have had everything, as one whose disk is lost.
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
        unusable |= {member.id for member in self._former}
        if index > GENESIS_INDEX and not any(is_quorum(each, holders | unusable) for each in self._deciders):
            names = sorted(map(self._name, holders))
            self._violated("committed is durable", f"entry {index} is committed, and on the disks of {names} only")


def _changes(entries: Sequence[Entry]) -> list[int]:
    """Return where changes of the members stand."""
    return [entry.index for entry in entries if entry.kind is MEMBERSHIP]
