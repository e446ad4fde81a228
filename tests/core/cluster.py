"""A cluster of bare Raft machines in one thread, with a disk, a state machine and a network per test's wish.

Everything that a node would do with a `Ready` is split into steps that a test takes one by one: deliver this message,
complete that save, apply this page. `settle` takes them all, in order, until nothing is left.

`Checker` watches every step of every member and asserts Raft's safety properties (Raft Figure 3), that what is
committed is on the disks of a quorum, that nothing leaves before what it promises is on its sender's disk, and that the
membership changes one step at a time, to configurations that overlap. It counts quorums by itself.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from pyraftkv.core import Config, InvalidChange, MembershipChange, Raft, Stored, changed
from pyraftkv.core.membership import Change, Transition
from pyraftkv.core.messages import AppendRequest, AppendResponse, InstallSnapshot, Message, VoteRequest, VoteResponse
from pyraftkv.core.ready import (
    Applied,
    EntryFetch,
    Fetched,
    Input,
    ProposeMembership,
    ReadReady,
    Ready,
    Save,
    Saved,
    SnapshotTaken,
    Tick,
)
from pyraftkv.core.types import HOLLOW, LEADER, MEMBERSHIP, Entry, HardState, Membership, SnapshotMeta

STEPS_MAX = 100_000


class Disk:
    """What survives a crash of one member."""

    def __init__(self) -> None:
        self.hard_state = HardState()
        self.snapshot: SnapshotMeta | None = None
        self.entries: dict[int, Entry] = {}
        self.first_index = 1
        self.floor = 0
        """A witness's: the floor as of its snapshot, if it took that itself."""

    @property
    def last_index(self) -> int:
        return max(self.entries, default=self.snapshot.index if self.snapshot else 0)

    def write(self, save: Save) -> None:
        if save.hard_state is not None:
            assert save.hard_state.term >= self.hard_state.term, "the term on disk never falls"
            if save.hard_state.term == self.hard_state.term and self.hard_state.vote:
                assert save.hard_state.vote == self.hard_state.vote, "one vote per term on disk"
            assert save.hard_state.commit >= self.hard_state.commit, "the commit index on disk never falls"
            self.hard_state = save.hard_state
        if save.snapshot is not None:
            self.snapshot = save.snapshot
            self.floor = 0
            self.entries.clear()
            self.first_index = save.snapshot.index + 1
        if save.entries:
            first = save.entries[0].index
            assert first <= self.last_index + 1, "the log on disk has no gaps"
            for index in [index for index in self.entries if index >= first]:
                del self.entries[index]
            self.entries.update((entry.index, entry) for entry in save.entries)

    def holds(self, *, index: int, term: int) -> bool:
        if self.snapshot is not None and index <= self.snapshot.index:
            return True
        return index in self.entries and self.entries[index].term == term

    def holds_payloads(self, *, after: int, to: int) -> bool:
        """Return whether a witness can give everything behind ``after``, up to ``to``, which it has."""
        begin = max(self.snapshot.index if self.snapshot is not None else 0, after)
        dropped = begin > max(after, self.floor)  # What it drops up to the floor, every data voter has.
        return not dropped and all(self.entries[index].kind is not HOLLOW for index in range(begin + 1, to + 1))

    def stored(self) -> Stored:
        after = self.snapshot.index if self.snapshot else 0
        entries = [self.entries[index] for index in sorted(self.entries) if index > after]
        return Stored(self.hard_state, self.snapshot, entries, self.first_index, floor=self.floor)


@dataclass
class PendingSave:
    """A save on its way to the disk (None: nothing to write), and the messages that wait for it."""

    number: int
    save: Save | None
    messages: list[Message]


@dataclass
class Member:
    """One machine and what surrounds it."""

    config: Config
    disk: Disk
    raft: Raft
    saves: deque[PendingSave] = field(default_factory=deque)
    pages: deque[list[Entry] | SnapshotMeta] = field(default_factory=deque)
    fetches: deque[EntryFetch] = field(default_factory=deque)
    first: Membership = field(default_factory=Membership)
    """What its machine begins with; empty for one that is yet to hear of a cluster."""
    state: list[bytes] = field(default_factory=list)
    """The state machine: every payload applied so far, index 1 first."""
    membership: Membership = field(default_factory=Membership)
    """The state machine's: the cluster's first one, changed by every change applied so far."""
    memberships: dict[int, Membership] = field(default_factory=dict)
    """A witness's: the configurations since its snapshot, by the index from which they are in force."""
    lost_index: int = 0
    """A witness's: up to where payloads were missing for good when anybody looked last, which may be long ago."""
    reads: list[ReadReady] = field(default_factory=list)
    rejected: list[bytes] = field(default_factory=list)
    again: bool = False
    """Whether the last `Ready` asked to be followed by another."""
    alive: bool = True


def _voters(*voters: int) -> Membership:
    return Membership(voters=frozenset(voters))


class Cluster:
    """Members numbered from 1, all voters unless told otherwise, and the messages between them.

    Args:
        size: How many members.
        seed: Of everything random here.
        membership: In force at the start on every member; all of them as voters by default.
        knobs: For every member's `Config`.
    """

    def __init__(self, size: int, *, seed: int = 0, membership: Membership | None = None, **knobs: Any) -> None:
        self.rng = random.Random(seed)
        self.first = membership if membership is not None else _voters(*range(1, size + 1))
        self.network: list[Message] = []
        self.lost: Callable[[Message], bool] = lambda _: False
        self.snapshots: dict[tuple[int, int], list[bytes]] = {}
        """State machines by (index, term) of their snapshots."""
        self.changes: dict[bytes, MembershipChange] = {b"": MembershipChange()}
        """What the payload of a MEMBERSHIP entry stands for; an empty one leaves a joint configuration."""
        self.checker = Checker(self)
        self.knobs = {"heartbeat_ticks": 1, "election_ticks": 10, **knobs}
        self.members: dict[int, Member] = {}
        for node in range(1, size + 1):
            self.add(node)

    def __getitem__(self, node: int) -> Raft:
        return self.members[node].raft

    def rafts(self) -> list[Raft]:
        """Return the machines that are up."""
        return [member.raft for member in self.members.values() if member.alive]

    def add(self, node: int, *, membership: Membership | None = None, witness: bool = False) -> None:
        """Start a member with an empty disk."""
        first = self.first if membership is None else membership
        config = Config(id=node, witness=witness or node in first.witnesses, **self.knobs)
        raft = Raft(config, stored=Stored(membership=first), rng=self._fork())
        self.members[node] = Member(config, Disk(), raft, first=first, membership=self.first)
        self.members[node].memberships[0] = self.first

    def _fork(self) -> random.Random:
        return random.Random(self.rng.randrange(1 << 30))

    # --- One step of one member --------------------------------------------------------------------------------------

    def feed(self, node: int, *inputs: Input) -> Ready:
        """Feed a member, and put what its `Ready` asks for where the other steps find it."""
        member = self.members[node]
        assert member.alive, f"{node} is down"
        member.raft.feed(inputs)
        ready = member.raft.ready()
        self._send(member, ready.messages)
        if ready.save is not None or ready.messages_after_save:
            number = ready.save.number if ready.save is not None else ready.after_save
            assert ready.messages_after_save == [] or ready.after_save == number
            member.saves.append(PendingSave(number, ready.save, ready.messages_after_save))
        if ready.restore is not None:
            member.pages.append(ready.restore)
        if ready.committed:
            member.pages.append(ready.committed)
        member.fetches.extend(ready.fetches)
        member.reads.extend(ready.reads)
        member.rejected.extend(ready.rejected_proposals)
        member.again = ready.again
        self.checker.stepped(member, ready)
        return ready

    def change(self, node: int, *changes: Change, transition: Transition = Transition.AUTO) -> Ready:
        """Propose to a member that these change the membership; none leaves a joint configuration."""
        payload = b"change %d" % len(self.changes)
        self.changes[payload] = MembershipChange(list(changes), transition)
        return self.feed(node, ProposeMembership(payload, self.changes[payload].is_leave))

    def _send(self, member: Member, messages: Iterable[Message]) -> None:
        for message in messages:
            self.checker.leaves(member, message)
            if not self.lost(message):
                self.network.append(message)

    def deliver(self, position: int = 0, *, keep: bool = False) -> None:
        """Deliver the message at ``position``; ``keep`` leaves a copy on its way."""
        message = self.network[position] if keep else self.network.pop(position)
        target = self.members.get(message.to)
        if target is not None and target.alive and not self.lost(message):
            self.feed(message.to, message)

    def complete_save(self, node: int) -> None:
        """Write the oldest pending save, let go what waits for it, and tell the machine."""
        member = self.members[node]
        pending = member.saves.popleft()
        if pending.save is not None:
            member.disk.write(pending.save)
        self._send(member, pending.messages)
        self.feed(node, Saved(pending.number))

    def apply_page(self, node: int) -> None:
        """Apply the oldest page of committed entries, or load the snapshot that stands there."""
        member = self.members[node]
        page = member.pages.popleft()
        if isinstance(page, SnapshotMeta):
            member.state = self._state_of(member, page)
            member.membership = page.membership
            member.memberships = {page.index: page.membership}
            self.feed(node, Applied(page.index, page.membership))
            return
        membership = None
        for entry in page:
            self.checker.applies(member, entry)
            member.state.append(b"" if member.config.witness else entry.payload)
            if entry.kind is MEMBERSHIP:
                membership = self._change_membership(member, entry)
        self.feed(node, Applied(page[-1].index, membership))

    def _state_of(self, member: Member, snapshot: SnapshotMeta) -> list[bytes]:
        """Return the state machine that a member has from a snapshot: a witness has none."""
        if member.config.witness:
            return [b""] * snapshot.index
        return list(self.snapshots[snapshot.index, snapshot.term])

    def _change_membership(self, member: Member, entry: Entry) -> Membership:
        """Apply a change; one that does not fit any more changes nothing."""
        before = member.membership
        with suppress(InvalidChange):
            member.membership = changed(before, self.changes[entry.payload])
        self.checker.changes(entry.index, before, member.membership)
        member.memberships[entry.index] = member.membership
        return member.membership

    def answer_fetch(self, node: int) -> None:
        """Read from the disk what the machine asked for."""
        member = self.members[node]
        fetch = member.fetches.popleft()
        entries: list[Entry] = []
        size_bytes = 0
        for index in range(fetch.lo, fetch.hi):
            if index < member.disk.first_index or (entries and size_bytes > fetch.bytes_max):
                break
            entries.append(member.disk.entries[index])
            size_bytes += len(entries[-1].payload)
        self.feed(node, Fetched(fetch.lo, entries))

    def snapshot_index(self, node: int) -> int:
        """Return where a member takes its snapshot: a witness where nobody needs, or can be sent, what is before."""
        member = self.members[node]
        last = len(member.state)
        return min(max(member.raft.floor, member.lost_index), last) if member.config.witness else last

    def take_snapshot(self, node: int, *, keep: int = 0) -> SnapshotMeta:
        """Snapshot a member's state machine; its disk keeps the last ``keep`` entries before it."""
        member = self.members[node]
        raft = member.raft
        index = self.snapshot_index(node)
        term = raft._log.term_at(index)
        assert index > 0, "nothing is applied yet"
        assert term is not None, index
        meta = SnapshotMeta(index, term, member.membership)
        if member.config.witness:
            meta = SnapshotMeta(index, term, member.memberships[max(at for at in member.memberships if at <= index)])
            member.disk.floor = min(raft.floor, index)
        else:
            self.snapshots[index, term] = list(member.state)
        member.disk.snapshot = meta
        member.disk.first_index = max(member.disk.first_index, index + 1 - keep)
        for old in [old for old in member.disk.entries if old < member.disk.first_index]:
            del member.disk.entries[old]
        self.feed(node, SnapshotTaken(meta, member.disk.first_index))
        return meta

    def crash(self, node: int, *, written: int = 0) -> None:
        """Stop a member. Only ``written`` of its pending saves reach the disk; nobody hears of them."""
        member = self.members[node]
        for pending in list(member.saves)[:written]:
            if pending.save is not None:
                member.disk.write(pending.save)
        member.alive = False
        member.saves.clear()
        member.pages.clear()
        member.fetches.clear()
        member.again = False

    def restart(self, node: int) -> None:
        """Start a member again from its disk."""
        member = self.members[node]
        stored = member.disk.stored()
        if stored.snapshot is None:
            stored = Stored(stored.hard_state, None, stored.entries, stored.first_index, member.first)
            member.state = []
            member.membership = self.first
            member.memberships = {0: self.first}
        else:
            member.membership = stored.snapshot.membership
            member.memberships = {stored.snapshot.index: member.membership}
            member.state = self._state_of(member, stored.snapshot)
        member.raft = Raft(member.config, stored=stored, rng=self._fork())
        member.alive = True
        member.lost_index = 0
        self.checker.restarted(member)
        self.feed(node)

    # --- Everything --------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Deliver, save, apply and read until nothing is left to do."""
        for _ in range(STEPS_MAX):
            if not self.settle_once():
                return
        raise AssertionError("the cluster does not come to rest")

    def settle_once(self) -> bool:
        """Do everything that is pending now, once; return whether there was anything."""
        busy = bool(self.network)
        for _ in range(len(self.network)):
            self.deliver()
        for node, member in self.members.items():
            while member.alive and member.saves:
                busy = True
                self.complete_save(node)
            while member.alive and member.pages:
                busy = True
                self.apply_page(node)
            while member.alive and member.fetches:
                busy = True
                self.answer_fetch(node)
            if member.alive and member.again:
                busy = True
                self.feed(node)
        return busy

    def tick(self, *, count: int = 1, only: int = 0) -> None:
        """Let time pass for everyone (or ``only`` one), and settle after each tick."""
        for _ in range(count):
            for node, member in self.members.items():
                if member.alive and (not only or node == only):
                    self.feed(node, Tick())
            self.settle()

    def elect(self, node: int) -> None:
        """Make ``node`` the leader by letting its election timeout pass first."""
        for _ in range(10 * self.members[node].config.election_ticks):
            if self[node].role is LEADER:
                return
            for other, member in self.members.items():
                if other != node and member.alive:
                    member.raft._election_elapsed = 0
                    if member.raft.role is not LEADER:
                        member.raft.leader = 0
            self.tick(only=node)
        raise AssertionError(f"{node} was not elected")

    @property
    def leader(self) -> int:
        """The leader of the highest term, or 0."""
        leaders = [
            (member.raft.term, node)
            for node, member in self.members.items()
            if member.alive and member.raft.role is LEADER
        ]
        return max(leaders)[1] if leaders else 0

    def isolate(self, *nodes: int) -> None:
        """Lose every message between ``nodes`` and the others."""
        self.lost = lambda message: (message.to in nodes) != (message.sender in nodes)

    def heal(self) -> None:
        self.lost = lambda _: False


def is_quorum(membership: Membership, nodes: Collection[int]) -> bool:
    """Return whether ``nodes`` hold a majority of the voters, and of the outgoing ones if there are any."""
    halves = [half for half in (membership.voters, membership.outgoing) if half]
    return bool(halves) and all(2 * len(half.intersection(nodes)) > len(half) for half in halves)


def overlap(first: Membership, second: Membership) -> bool:
    """Return whether every quorum of the one shares a member with every quorum of the other, by trying them all."""
    nodes = sorted(first.voters | first.outgoing | second.voters | second.outgoing)
    groups = [frozenset(group) for size in range(len(nodes) + 1) for group in combinations(nodes, size)]
    of_second = [group for group in groups if is_quorum(second, group)]
    return all(group & other for group in groups if is_quorum(first, group) for other in of_second)


class Checker:
    """Asserts the safety properties over all history and all members."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._leaders: dict[int, int] = {}
        self._entries: dict[tuple[int, int], tuple[bytes, int]] = {}
        self.committed: dict[int, tuple[int, bytes]] = {}
        """Index to (term, payload) of everything that any member ever held committed."""
        self.commit_max = 0
        self._commits: dict[int, int] = {}
        self._leader_logs: dict[int, tuple[int, int]] = {}
        self.configurations: dict[int, Membership] = {}
        """Index to the configuration that was in force from there on, for every change that was applied anywhere."""
        self._votes: dict[tuple[int, int], set[int]] = {}
        """(term, candidate) to those who voted for it."""

    def restarted(self, member: Member) -> None:
        self._commits.pop(member.config.id, None)
        self._leader_logs.pop(member.config.id, None)

    def stepped(self, member: Member, ready: Ready) -> None:
        raft, node = member.raft, member.config.id
        raft.check()
        if ready.save is not None and ready.save.entries:
            self._check_log_matching(raft, ready.save.entries)
        commit = self._commits.get(node, 0)
        assert raft.commit >= commit, "the commit index never falls"
        if raft.commit > commit:
            self._check_commit(raft, commit)
            self._commits[node] = raft.commit
        if raft.role is LEADER:
            self._check_leader(raft)
        # Whoever has a change in its log knows that the one before it is committed, and a leader has it applied.
        known = raft.applied if raft.role is LEADER else raft.commit
        entries = raft._log._entries[max(known + 1 - raft._log.memory_index, 0) :]
        unknown = [entry.index for entry in entries if entry.kind is MEMBERSHIP]
        assert len(unknown) <= 1, f"changes of the membership under way at {unknown}"

    def changes(self, index: int, before: Membership, after: Membership) -> None:
        """Check a change that a member applies: the same everywhere, and to a configuration that overlaps."""
        if index not in self.configurations:
            assert overlap(before, after), f"{index} leads from {before} to {after}"
        assert self.configurations.setdefault(index, after) == after, f"another membership at {index}"

    def _check_log_matching(self, raft: Raft, entries: list[Entry]) -> None:
        prev_term = raft._log.term_at(entries[0].index - 1)
        for entry in entries:
            assert prev_term is not None
            known = self._entries.setdefault((entry.index, entry.term), (entry.payload, prev_term))
            payload = known[0] if entry.kind is HOLLOW else entry.payload
            assert known == (payload, prev_term), f"log matching at {entry}"
            prev_term = entry.term

    def _check_commit(self, raft: Raft, commit: int) -> None:
        log = raft._log
        for index in range(max(commit + 1, log.memory_index), raft.commit + 1):
            entry = log.page(lo=index, hi=index + 1, bytes_max=1)[0]
            known = self.committed.setdefault(index, (entry.term, entry.payload))
            payload = known[1] if entry.kind is HOLLOW else entry.payload
            assert known == (entry.term, payload), f"state-machine safety at {entry}"
        if raft.commit > self.commit_max:
            self.commit_max = raft.commit
            self._check_durable(raft)

    def _check_durable(self, raft: Raft) -> None:
        term = raft._log.term_at(raft.commit)
        assert term is not None
        holders = [
            node for node, member in self._cluster.members.items() if member.disk.holds(index=raft.commit, term=term)
        ]
        assert is_quorum(raft.membership, holders), (
            f"{raft.commit}@{term} is committed but only on the disks of {holders}: {raft.membership}"
        )
        witnesses = [node for node in holders if self._cluster.members[node].config.witness]
        empty = {node for node in witnesses if not self._holds_payloads(node, after=raft.floor, to=raft.commit)}
        whole = [node for node in holders if node not in empty]
        assert is_quorum(raft.membership, whole) or raft.is_single_copy, (
            f"{raft.commit}@{term} is committed, and whole only on the disks of {whole}, and nobody says so"
        )

    def _holds_payloads(self, node: int, *, after: int, to: int) -> bool:
        return self._cluster.members[node].disk.holds_payloads(after=after, to=to)

    def _check_leader(self, raft: Raft) -> None:
        first = self._leaders.setdefault(raft.term, raft.id)
        assert first == raft.id, f"two leaders in term {raft.term}: {first} and {raft.id}"
        term, last_index = self._leader_logs.get(raft.id, (0, 0))
        if term == raft.term:
            assert raft.last_index >= last_index, "a leader's log only grows"
        else:
            self._check_completeness(raft)
            votes = self._votes.get((raft.term, raft.id), set()) | {raft.id}
            assert is_quorum(raft.membership, votes), f"{raft.id} leads term {raft.term} by the votes of {votes}"
        assert raft.membership.is_voter(raft.id), f"{raft.id} leads {raft.membership}"
        self._leader_logs[raft.id] = (raft.term, raft.last_index)

    def _check_completeness(self, raft: Raft) -> None:
        for index, (term, _) in self.committed.items():
            if term < raft.term and index > raft._log.first_index and index > raft._log._run_starts[0]:
                assert raft._log.matches(index=index, term=term), f"the leader of {raft.term} lacks {index}@{term}"

    def applies(self, member: Member, entry: Entry) -> None:
        assert len(member.state) + 1 == entry.index, "entries apply in order, once each"
        payload = self.committed[entry.index][1] if entry.kind is HOLLOW else entry.payload
        assert self.committed[entry.index] == (entry.term, payload), f"applies what is not committed: {entry}"
        assert entry.kind is not HOLLOW or member.config.witness, f"applies what nobody knows: {entry}"

    def leaves(self, member: Member, message: Message) -> None:
        """Check persist-before-send, at the moment that a message leaves."""
        hard, node = member.disk.hard_state, member.config.id
        assert message.sender == node
        if isinstance(message, VoteRequest | VoteResponse) and message.pre:
            return  # A rehearsal: its term is one that nobody entered.
        assert message.term <= hard.term, f"leaves with a term that is not saved: {message}"
        if message.term < hard.term:
            return
        if isinstance(message, VoteRequest):
            assert hard.vote == node, f"its own vote is not saved: {message}"
        if isinstance(message, VoteResponse) and message.granted:
            assert hard.vote == message.to, f"the vote is not saved: {message}"
            self._votes.setdefault((message.term, message.to), set()).add(node)
        if isinstance(message, AppendResponse) and not message.rejected:
            assert member.disk.last_index >= message.index, f"acknowledges what is not saved: {message}"
        if isinstance(message, InstallSnapshot):
            assert member.disk.snapshot is not None
            assert not member.config.witness, "there is nothing in its snapshots"
        if isinstance(message, AppendRequest):
            assert all(entry.kind is not HOLLOW for entry in message.entries), f"sends what it does not have: {message}"
