"""The replica of a witness: who the members are, and nothing else (`core.witness`).

It applies the entries that may change the members, and passes over all others; it could not read those that are hollow.
What a change comes to depends on the members alone (`protocol.StampedChange`), so it goes by the same configurations as
everybody else.

A witness takes its snapshot at the *floor*, behind which it still keeps entries that it has applied. So it has to say
who the members were at an index of the past, and keeps every table of them since its last snapshot.

Where it had no room (`core.witness`, hollow entries) a snapshot goes past the floor, up to the last payload that is
missing: until the floor has passed that one, nobody is sent what is here before it. Else a few dozen bytes an entry
would fill its disk, if a data member were away for long. Only what is committed counts as missing:

1. The witness has entry 9 whole, and for entry 10 of the same leader there is no room. It looks how far payloads are
   missing: 10.
2. There is room again. Another leader replaces entry 10 by one of its own, which is whole, and commits it with the
   witness: its acknowledgement says that nothing is missing, so nobody is told of a single copy.
3. The witness takes its snapshot at 10, by what it saw before, and has dropped what it vouched for.

What it keeps of a snapshot depends on who took that. In its own stands the floor: up to there every data voter has
everything, and nobody will ask. Of a leader's it is sent the first chunk alone, the members. No floor stands there, for
its sender may be the only one that has what it stands for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from operator import itemgetter

from pyraftkv import codec, errors
from pyraftkv.core import MEMBERSHIP, Entry
from pyraftkv.replica import Busy, Consequence, Replica, ReplicaRestorer, ReplicaSnapshot
from pyraftkv.roster import Roster

_at = itemgetter(0)


class WitnessReplica(Replica):
    """A replica whose store, sessions and rules stay empty.

    Invariant: `_rosters` and `_terms` begin at or before the index of the next snapshot.
    """

    def __init__(self) -> None:
        super().__init__()
        self.floor = 0
        """Up to here nobody will ask this member for anything; as the machine says, or the own snapshot."""
        self.lost_index = 0
        """The last index whose payload is missing for good, as the machine says."""
        self._rosters: list[tuple[int, Roster]] = [(0, self.roster.copy())]
        """The members, by the index from which on they were so."""
        self._terms: list[tuple[int, int]] = [(0, 0)]
        """The terms of the log, by the index of their first entry."""

    @classmethod
    def begun(cls, past: Replica, *, floor: int) -> WitnessReplica:
        """Return a replica that goes on from the members of another one."""
        replica = cls()
        replica.roster, replica.floor = past.roster, floor
        replica.applied_index, replica.applied_term = past.applied_index, past.applied_term
        replica._rosters = [(past.applied_index, past.roster.copy())]
        replica._terms = [(past.applied_index, past.applied_term)]
        return replica

    def apply(self, entry: Entry) -> Consequence | Busy:
        """Apply the next committed entry, if it may change the members."""
        if entry.kind is MEMBERSHIP:
            return super().apply(entry)
        assert entry.index == self.applied_index + 1, (entry.index, self.applied_index)
        self._is_applied(entry)
        return None

    def _is_applied(self, entry: Entry) -> None:
        """Keep what a snapshot may have to say of this entry. There is no state that could be compared."""
        if self.roster.last_change != self._rosters[-1][1].last_change:
            self._rosters.append((entry.index, self.roster.copy()))
        if entry.term != self._terms[-1][1]:
            self._terms.append((entry.index, entry.term))
        self.applied_index, self.applied_term = entry.index, entry.term

    @property
    def _snapshot_index(self) -> int:
        """Up to where nothing is of any use here."""
        return min(max(self.floor, self.lost_index), self.applied_index)

    def is_worth_a_snapshot(self, *, since: int) -> bool:
        """Whether half of the log after the snapshot at ``since`` can be dropped."""
        index = self._snapshot_index
        return index > since and 2 * (index - since) >= self.applied_index - since

    def snapshot(self) -> ReplicaSnapshot:
        """Return the members as of an index of the past, and forget who they were before. O(changes since the last)."""
        index = self._snapshot_index
        del self._rosters[: bisect_right(self._rosters, index, key=_at) - 1]
        del self._terms[: bisect_right(self._terms, index, key=_at) - 1]
        past = Replica()
        past.roster = self._rosters[0][1]
        past.applied_index, past.applied_term = index, self._terms[0][1]
        return WitnessSnapshot(past, floor=min(self.floor, index))

    def restorer(self, *, index: int, term: int) -> ReplicaRestorer:
        return WitnessRestorer(index=index, term=term)


class WitnessSnapshot(ReplicaSnapshot):
    """The members as of one entry, up to which a witness can give nobody anything."""

    def __init__(self, past: Replica, *, floor: int) -> None:
        super().__init__(past)
        self._floor = floor

    def chunks(self) -> Iterator[bytes]:
        """Yield the header, then the floor."""
        yield next(self.tables())
        yield codec.encode_table([self._floor])


class WitnessRestorer(ReplicaRestorer):
    """Builds a witness's replica of its own snapshot, or of the first chunk of a leader's."""

    def __init__(self, *, index: int, term: int) -> None:
        super().__init__(index=index, term=term)
        self._floor = 0

    def feed(self, chunk: bytes) -> None:
        if self._replica is None:
            self._replica = self._begin(chunk)
            return
        table = codec.decode_table(chunk)
        if len(table) != 1 or not isinstance(table[0], int) or not 0 <= table[0] <= self._index:
            raise errors.SnapshotCorruption("the snapshot is no witness's")
        self._floor = table[0]

    def finish(self) -> Replica:
        if self._replica is None:
            raise errors.SnapshotCorruption("the snapshot is empty")
        return WitnessReplica.begun(self._replica, floor=self._floor)
