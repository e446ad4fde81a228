"""The witness: a voter without a state machine, so that two machines and a small third one make a cluster.

It votes and acknowledges as everybody does, and keeps what it acknowledged until it is not needed. What is needed is
told by the *floor*: up to there every data voter (a voter that is no witness) has everything saved, and it is
committed. The leader knows the floor from its followers' acknowledgements and sends it with its heartbeats; the witness
drops what is below. While all data voters are up its log is a few entries long.

::

       dropped             kept, for a data voter that is behind
    ───────────────┤─────────────────────────────────────────────┤
                 floor                                        last_index

**What it is good for.** Of the data voters A and B let B be down for a while. A commits with the witness; then A dies,
and B comes back. B's log is too short for the witness's vote, rightly. So the witness campaigns itself, leads, sends B
what it lacks, and hands over. It takes no proposals and answers no reads meanwhile: it has no state to answer from.

**When it must not lead.** What it does not hold it cannot send. It may lack payloads for two reasons: it received a
leader's snapshot, of which it keeps the table of members alone; or B is away for so long that its bound was reached,
and it keeps *hollow* entries, with index and term and without a payload, which is enough to acknowledge and to vote.
`RaftLog.hollow_index` is the last index whose payload may be missing, and the witness campaigns only while that is not
above the floor. It tells the leader with each acknowledgement, so that no entry is committed by a hollow copy without
the leader knowing: from then on until the floor has passed that index, what is acknowledged may stand on one disk
(`Raft.is_single_copy`).

1. *Beside a witness there are two data voters at least*, on either side of a joint configuration. With {A, W}, all data
   voters having an entry would mean that A has it, and W would keep nothing for the member that comes in place of B.
   `membership.DATA_VOTERS_MIN` tells what else would happen.
2. *The floor never falls.* A new leader knows nobody's log yet and says 0; what was on two disks still is.
3. *It is never past what the witness itself acknowledged*, nor what is committed: what is above may be replaced, and
   then nobody has it.
4. *The witness comes later*, by a whole election timeout. A data voter that can lead should, without a detour.
5. *A witness is sent only what is on its leader's own disk.* Else a leader that crashed could come back without an
   entry of which the witness has the hollow half: the witness would refuse it its vote, and could not lead either.
6. *A member is a witness for life.* One that became a data voter would have a state machine without the beginning.
"""

from __future__ import annotations

from dataclasses import replace

from pyraftkv.core.base import RaftBase
from pyraftkv.core.ready import KeepPayloads
from pyraftkv.core.types import HOLLOW, LEADER, NORMAL, Entry


class WitnessRules(RaftBase):
    """What a witness does otherwise than others, and what a leader does for it."""

    __slots__ = ()

    # --- The witness -------------------------------------------------------------------------------------------------

    @property
    def floor(self) -> int:
        """Witness: up to here every data voter has everything. Leader: the same, as far as it was needed."""
        return self._floor

    @property
    def hollow_index(self) -> int:
        """The last index whose payload may be missing here."""
        return self._log.hollow_index

    @property
    def lost_index(self) -> int:
        """The last index whose payload is missing for good: what is not committed may yet be replaced, and be whole."""
        return self._log.lost_index()

    @property
    def holds_payloads(self) -> bool:
        """Whether everything beyond the floor is here, to be sent to whoever lacks it."""
        return self._log.hollow_index <= self._floor

    @property
    def _patience_ticks(self) -> int:
        """For how much longer than others this member waits before it campaigns."""
        return self._config.election_ticks if self._config.witness else 0

    def _raise_floor(self, index: int) -> None:
        self._floor = max(self._floor, index)

    def _on_keep_payloads(self, room: KeepPayloads) -> None:
        assert self._config.witness, "everybody else has to keep them"
        self._keeps_payloads = room.keep

    def _keep(self, prev_index: int, entries: list[Entry]) -> None:
        """Append what a leader sent; without its payloads where there is no room for them."""
        log = self._log
        if self._keeps_payloads:
            log.maybe_append(prev_index=prev_index, entries=entries)
            return
        kept = [_hollowed(entry) for entry in entries]
        if log.maybe_append(prev_index=prev_index, entries=kept):
            log.lose_payloads(max((entry.index for entry in kept if entry.kind is HOLLOW), default=0))

    def _brings_nobody_on(self) -> bool:
        """Return whether this leader is a witness that can do no good: no data voter has come on since it was asked."""
        if not self._config.witness:
            return False
        before, self._brought = self._brought, max(map(self._match_of, self._data_voters()))
        return self._brought <= before

    # --- Its leader --------------------------------------------------------------------------------------------------

    @property
    def is_single_copy(self) -> bool:
        """Leader: whether what was acknowledged may stand on one disk alone. It knows once it has committed anything.

        Of a witness that has not answered yet it only knows what it has acknowledged itself: nothing of this term.
        """
        if self.role is not LEADER or self._log.commit < self._term_start:
            return False
        hollow = [self._progress[node].hollow_index for node in self.membership.witnesses - {self.id}]
        return max((self._term_start - 1 if index is None else index for index in hollow), default=0) > self._floor

    def _data_voters(self) -> frozenset[int]:
        membership = self.membership
        return (membership.voters | membership.outgoing) - membership.witnesses

    def _match_of(self, node: int) -> int:
        return self._log.saved if node == self.id else self._progress[node].match

    def _find_floor(self) -> None:
        """Learn from the followers' acknowledgements which entries nobody will ask of the witness. O(voters)."""
        if self.membership.witnesses:  # Hardly any cluster has one.
            self._raise_floor(min(self._log.commit, *map(self._match_of, self._data_voters())))


def _hollowed(entry: Entry) -> Entry:
    """Return an entry without its payload; a change of the membership whole, for that is what a witness applies."""
    return replace(entry, payload=b"", kind=HOLLOW) if entry.kind is NORMAL and entry.payload else entry
