"""The values that the Raft machine is made of: entries, hard state, membership, snapshots, roles."""

from __future__ import annotations

from dataclasses import field
from enum import IntEnum

from pyraftkv._record import record

NO_NODE = 0
"""No member: nobody voted for, no leader known. Member ids start at 1."""


class EntryKind(IntEnum):
    """What an entry's payload is for."""

    NORMAL = 0
    """Opaque bytes for the state machine; empty at the start of a term."""
    MEMBERSHIP = 1
    """A change of membership, opaque too: whoever applies it answers with the new `Membership`."""
    HOLLOW = 2
    """A NORMAL entry whose payload a witness had no room for: never sent, and nothing to apply (`witness.py`)."""


NORMAL = EntryKind.NORMAL
MEMBERSHIP = EntryKind.MEMBERSHIP
HOLLOW = EntryKind.HOLLOW


class Role(IntEnum):
    """The roles of Raft §5.1, and PreVote's (thesis §9.6)."""

    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


FOLLOWER = Role.FOLLOWER
PRE_CANDIDATE = Role.PRE_CANDIDATE
CANDIDATE = Role.CANDIDATE
LEADER = Role.LEADER


@record
class Entry:
    """One log entry (Raft §5.3)."""

    index: int
    term: int
    payload: bytes
    """Encoded once by the proposer; the same bytes travel, are stored and are applied."""
    kind: EntryKind = NORMAL


@record
class HardState:
    """What a member must find again after a crash (Raft Figure 2, "Persistent state")."""

    term: int = 0
    vote: int = NO_NODE
    commit: int = 0
    """May lag behind the real commit index on disk; never leads it."""


@record
class Membership:
    """The members, as a value: `voters` alone, or a joint configuration (Raft §6, thesis §4.3).

    Invariants: `learners` is disjoint from `voters` and `outgoing`; `learners_next` is a subset of
    `outgoing`; `outgoing`, `learners_next` and `auto_leave` are empty or false unless the configuration is joint; of
    `voters`, and of `outgoing`, at most one is a witness, and beside it two at least are none.
    """

    voters: frozenset[int] = field(default_factory=frozenset)
    """The incoming majority."""
    outgoing: frozenset[int] = field(default_factory=frozenset)
    """The outgoing majority of a joint configuration; empty otherwise."""
    learners: frozenset[int] = field(default_factory=frozenset)
    """Receive entries, and count in no quorum."""
    learners_next: frozenset[int] = field(default_factory=frozenset)
    """Outgoing voters that become learners when the joint configuration is left."""
    auto_leave: bool = False
    """Whether the leader proposes to leave the joint configuration by itself."""
    witnesses: frozenset[int] = field(default_factory=frozenset)
    """Those of the voters that run no state machine (`witness.py`)."""

    @property
    def is_joint(self) -> bool:
        return bool(self.outgoing)

    @property
    def members(self) -> frozenset[int]:
        """Everyone who receives entries."""
        return self.voters | self.outgoing | self.learners | self.learners_next

    def is_voter(self, node: int) -> bool:
        return node in self.voters or node in self.outgoing


@record
class SnapshotMeta:
    """Which prefix of the log a snapshot stands for, and who the members were at its end."""

    index: int
    term: int
    membership: Membership
