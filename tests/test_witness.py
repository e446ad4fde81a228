"""The replica of a witness: it goes by the same members as everybody, and says who they were at its floor."""

from __future__ import annotations

import pytest

from pyraftkv import PutKey, codec, errors
from pyraftkv.core import HOLLOW, MEMBERSHIP, NORMAL, Entry, EntryKind, Membership
from pyraftkv.core.membership import EXPLICIT
from pyraftkv.protocol import (
    AddMember,
    ChangeMembers,
    Envelope,
    Genesis,
    LeaveJoint,
    MemberInfo,
    MembersCommand,
    RefuseChange,
    RegisterSession,
    RemoveMember,
    StampedChange,
)
from pyraftkv.replica import CHECK_ENTRIES, Replica, ReplicaSnapshot
from pyraftkv.witness import WitnessReplica, WitnessRestorer

GENESIS = Genesis(0xC1, [MemberInfo(id_, f"n{id_}", f"h:{id_}", id_) for id_ in (1, 2, 3)], [3])
SESSION = 2 ^ 77


class Log:
    """The same entries, applied by a member that has the data and by its witness."""

    def __init__(self) -> None:
        self.data, self.witness = Replica(), WitnessReplica()
        self.entries: list[Entry] = []
        self.add(codec.encode_logged(GENESIS), MEMBERSHIP)
        self.add(codec.encode_logged(RegisterSession(77)))

    def add(self, payload: bytes, kind: EntryKind = NORMAL, term: int = 1) -> int:
        """Append and apply an entry, on the witness without what it has no room for; return its index."""
        entry = Entry(self.data.applied_index + 1, term, payload, kind)
        self.entries.append(entry)
        self.data.apply(entry)
        self.witness.apply(entry if kind is MEMBERSHIP else Entry(entry.index, term, b"", HOLLOW))
        assert self.witness.roster.plain() == self.data.roster.plain()
        return entry.index

    def put(self, *, count: int = 1, term: int = 1) -> int:
        """Append puts; return the last one's index."""
        for _ in range(count):
            sequence = self.data.applied_index + 1
            index = self.add(codec.encode_logged(Envelope(SESSION, sequence, 1, PutKey(b"k", b"v"))), term=term)
        return index

    def change(self, command: MembersCommand) -> int:
        """Append a change of the members as a leader stamps it."""
        change = codec.encode_logged(Envelope(SESSION, self.data.applied_index + 1, 1, command))
        return self.add(codec.encode_logged(StampedChange(self.data.roster.last_change, change)), MEMBERSHIP)


def restored(snapshot: ReplicaSnapshot, chunks: list[bytes]) -> WitnessReplica:
    """Return what a witness makes of a snapshot."""
    restorer = WitnessRestorer(index=snapshot.index, term=snapshot.term)
    for chunk in chunks:
        restorer.feed(chunk)
    replica = restorer.finish()
    assert isinstance(replica, WitnessReplica)
    assert (replica.applied_index, replica.applied_term) == (snapshot.index, snapshot.term)
    return replica


def test_a_witness_goes_by_the_members_that_everybody_goes_by() -> None:
    """Whatever is refused by whom: no session is asked. It keeps no keys, and compares its state with nobody."""
    log = Log()
    assert log.witness.membership == Membership(frozenset({1, 2, 3}), witnesses=frozenset({3}))
    log.change(ChangeMembers([AddMember("n4", "h:4", 4, learner=False)]))
    log.change(ChangeMembers([RemoveMember(9)]))
    log.change(ChangeMembers([RemoveMember(2)], EXPLICIT))
    log.add(codec.encode_logged(RefuseChange(SESSION, 99, 1, 0, "QuorumAtRisk", "too few")), MEMBERSHIP)
    log.change(LeaveJoint())
    bare = codec.encode_logged(Envelope(SESSION, 100, 1, ChangeMembers([RemoveMember(4)])))
    log.add(bare, MEMBERSHIP)
    log.put(count=CHECK_ENTRIES)
    assert log.data.checkpoints
    assert not log.witness.checkpoints
    assert log.witness.membership == Membership(frozenset({1, 3, 4}), witnesses=frozenset({3}))
    assert (log.witness.store.key_count, len(log.witness.sessions)) == (0, 0)


def test_its_snapshot_stands_at_the_floor_with_the_members_of_that_time() -> None:
    """Behind the floor the log goes on: there it has other members, and another term."""
    log = Log()
    floor = log.put(count=3)
    log.change(ChangeMembers([AddMember("n4", "h:4", 4, learner=True)]))
    log.put(count=3, term=2)
    log.witness.floor = floor
    assert log.witness.is_worth_a_snapshot(since=0)
    assert not log.witness.is_worth_a_snapshot(since=floor)
    assert not log.witness.is_worth_a_snapshot(since=floor - 1)
    snapshot = log.witness.snapshot()
    assert (snapshot.index, snapshot.term, snapshot.membership.learners) == (floor, 1, frozenset())
    twin = restored(snapshot, list(snapshot.chunks()))
    assert twin.floor == floor
    for entry in log.entries[floor:]:
        twin.apply(entry)
    assert twin.roster.plain() == log.data.roster.plain()
    for replica in (log.witness, twin):
        replica.floor = replica.applied_index + 5
        later = replica.snapshot()
        assert (later.index, later.term, later.membership) == (log.data.applied_index, 2, log.data.membership)


def test_its_snapshot_goes_past_the_floor_where_there_was_no_room() -> None:
    """What is here before the last hollow entry can be sent to nobody."""
    log = Log()
    floor = log.put(count=2)
    hollow = log.put(count=20)
    log.put(count=3)
    log.witness.floor, log.witness.lost_index = floor, hollow
    assert log.witness.is_worth_a_snapshot(since=floor)
    snapshot = log.witness.snapshot()
    assert snapshot.index == hollow
    twin = restored(snapshot, list(snapshot.chunks()))
    assert (twin.floor, twin.roster.plain()) == (floor, log.data.roster.plain())


def test_of_a_leaders_snapshot_it_has_the_members_and_no_floor() -> None:
    """Its sender may be the only one that has what it stands for. A part of the state is no part of a witness."""
    log = Log()
    log.put(count=3)
    snapshot = log.data.snapshot()
    chunks = list(snapshot.chunks())
    replica = restored(snapshot, chunks[:1])
    assert (replica.floor, replica.membership) == (0, log.data.membership)
    assert replica.roster.plain() == log.data.roster.plain()
    assert replica.roster.genesis == GENESIS
    with pytest.raises(errors.StorageError):
        restored(snapshot, chunks)
    with pytest.raises(errors.StorageError, match="empty"):
        restored(snapshot, [])
