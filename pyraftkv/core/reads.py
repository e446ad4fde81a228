"""Linearizable reads without writing: the leader's side of ReadIndex, and of leases (thesis §6.4).

A leader may answer a read from its commit index once it knows that it was still the leader *after* the read arrived.
So reads join a round; the round's number goes out with a heartbeat to everyone; when a quorum has answered with that
number or a later one, the leader led when it went out, and the round's reads and all earlier ones are confirmed.

Hazard 1. A new leader's commit index may lag behind what the old one confirmed to clients. Until an entry of its own
term is committed, reads wait (`open` is not called); afterwards the index covers every earlier term.

Hazard 2. Contexts are chosen by the nodes that ask, and two of them may choose the same. A context is only ever given
back to the node that sent it; what travels in heartbeats is the round's own number, which is never used twice: an
answer to an old round can confirm nothing newer.

Where leases are in use every heartbeat has a number of its own, with reads or without, and an answer may carry a
promise to elect nobody else for a while. The newest number that a quorum has promised upon is what a lease is made of;
the time that goes with it is not known here.
"""

from __future__ import annotations

from collections import deque

from pyraftkv._record import record
from pyraftkv.core.quorum import committed_index
from pyraftkv.core.types import Membership


@record
class PendingRead:
    """One read that waits for confirmation."""

    sender: int
    """The member that asked; the leader itself or a follower."""
    context: int
    """What the sender calls it."""


@record
class ReadRound:
    """Reads that share one confirmation."""

    number: int
    index: int
    """The commit index when the round went out: the reads may be answered from any state at or past it."""
    reads: list[PendingRead]


class ReadRounds:
    """The leader's pending reads: those that joined no round yet, then the rounds under way, oldest first."""

    __slots__ = ("_acked", "_count", "_is_numbered", "_joining", "_promised", "_reads_max", "_rounds", "newest")

    def __init__(self, *, reads_max: int) -> None:
        self._reads_max = reads_max
        self._count = 0
        self._joining: list[PendingRead] = []
        self._rounds: deque[ReadRound] = deque()
        self._acked: dict[int, int] = {}
        self._promised: dict[int, int] = {}
        """The newest round that each member has answered with a promise."""
        self._is_numbered = False
        self.newest = 0
        """The number of the last round that was opened. Never falls, whoever leads."""

    def __len__(self) -> int:
        return self._count

    @property
    def has_joining(self) -> bool:
        """Whether reads wait for a round to be opened."""
        return bool(self._joining)

    @property
    def context(self) -> int:
        """What heartbeats carry: the newest round, or 0 when nobody waits for an answer."""
        return self.newest if self._rounds or self._is_numbered else 0

    def add(self, *, sender: int, context: int) -> bool:
        """Let a read join the next round; return False, having dropped it, when there are too many."""
        if self._count >= self._reads_max:
            return False
        self._count += 1
        self._joining.append(PendingRead(sender, context))
        return True

    def open(self, *, index: int) -> None:
        """Open a round for the reads that joined. After this, heartbeats must leave with `context`."""
        self.newest += 1
        joining, self._joining = self._joining, []
        self._rounds.append(ReadRound(self.newest, index, joining))

    def number(self) -> None:
        """Give the heartbeats that leave next a number of their own, from now on until `clear`."""
        self.newest += 1
        self._is_numbered = True

    def ack(self, *, sender: int, context: int, promised: bool = False) -> None:
        """Note that ``sender`` answered the heartbeat of round ``context``, with a promise or without."""
        if context <= self.newest:
            self._acked[sender] = max(self._acked.get(sender, 0), context)
            if promised:
                self._promised[sender] = max(self._promised.get(sender, 0), context)

    def promised(self, membership: Membership, *, leader: int) -> int:
        """Return the newest round that a quorum has promised upon, counting ``leader`` for all of them. O(voters)."""
        return committed_index(membership, {**self._promised, leader: self.newest})

    def confirmed(self, membership: Membership, *, leader: int) -> list[ReadRound]:
        """Take the rounds that a quorum has answered, counting ``leader`` as having answered all."""
        if not self._rounds:
            return []
        number = committed_index(membership, {**self._acked, leader: self.newest})
        rounds: list[ReadRound] = []
        while self._rounds and self._rounds[0].number <= number:
            rounds.append(self._rounds.popleft())
            self._count -= len(rounds[-1].reads)
        return rounds

    def clear(self) -> None:
        """Drop every read: leadership has changed."""
        self._count = 0
        self._joining = []
        self._rounds.clear()
        self._acked.clear()
        self._promised.clear()
        self._is_numbered = False

    def check(self) -> None:
        """Assert the invariants of this class."""
        assert self._count == len(self._joining) + sum(len(round_.reads) for round_ in self._rounds)
        assert self._count <= self._reads_max
        assert all(number <= self.newest for number in self._acked.values())
        assert all(number <= self._acked[sender] for sender, number in self._promised.items())
