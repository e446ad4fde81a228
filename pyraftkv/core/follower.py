"""What a member does for its leader: append, acknowledge, install snapshots (Raft §5.3, §7).

Everything here is idempotent, because the network may repeat, reorder and delay: an append at or below the commit
index is answered with the commit index, one that is already in the log changes nothing, a heartbeat never commits what
was not matched.
"""

from __future__ import annotations

from pyraftkv.core.messages import (
    AppendRequest,
    AppendResponse,
    ForwardedMembership,
    ForwardedProposals,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    ReadIndexResponse,
)
from pyraftkv.core.raftlog import ENTRY_OVERHEAD_BYTES, count_admitted
from pyraftkv.core.ready import ReadReady
from pyraftkv.core.types import FOLLOWER, NO_NODE
from pyraftkv.core.witness import WitnessRules


class FollowerRules(WitnessRules):
    """Figure 2, "Rules for followers", and the receivers of the leader's RPCs."""

    __slots__ = ()

    def _follow(self, leader: int) -> None:
        """Take a message of this term's leader: candidates give up, and the election clock starts again."""
        if self.role is FOLLOWER:
            self.leader = leader
            self._election_elapsed = 0
        else:
            self._become_follower(term=self.term, leader=leader)

    def _on_append_request(self, message: AppendRequest) -> None:
        if not _is_well_formed(message):
            return
        self._follow(message.sender)
        log = self._log
        prev_index = message.prev_index
        if prev_index < log.commit:
            # What is committed is equal on both sides; say so, and touch nothing (Raft §5.4.3).
            self._accept_append(to=message.sender, index=log.commit)
        elif log.matches(index=prev_index, term=message.prev_term):
            entries = message.entries
            self._keep(prev_index, entries)
            matched = prev_index + len(entries)
            # Only up to what this message matched: beyond it, our entries may be another leader's (Figure 2, rule 5).
            log.commit_to(min(message.commit, matched))
            self._accept_append(to=message.sender, index=matched)
        else:
            self._reject_append(message)

    def _reject_append(self, message: AppendRequest) -> None:
        hint_index, hint_term = self._log.find_conflict_by_term(index=message.prev_index, term=message.prev_term)
        self._send(AppendResponse(message.sender, self.id, self.term, message.prev_index, True, hint_index, hint_term))

    def _on_heartbeat(self, message: Heartbeat) -> None:
        self._follow(message.sender)
        # The leader sends no commit index beyond what we acknowledged. A larger one means that our disk lost entries
        # it had confirmed; committing what stands there now could commit something else.
        if message.commit <= self._log.last_index:
            self._log.commit_to(message.commit)
        self._raise_floor(message.floor)
        ticks = self._config.election_ticks if self._config.lease_reads else 0
        self._promised_tick = max(self._promised_tick, self._ticks + ticks)
        self._send(HeartbeatResponse(message.sender, self.id, self.term, message.context, ticks))

    def _on_install_snapshot(self, message: InstallSnapshot) -> None:
        self._follow(message.sender)
        log = self._log
        snapshot = message.snapshot
        if snapshot.index > log.commit:
            if log.matches(index=snapshot.index, term=snapshot.term):
                # The log has it all already, and perhaps more that was acknowledged: keep it (Raft §7).
                log.commit_to(snapshot.index)
            else:
                log.restore(snapshot)
                if self._config.witness:
                    log.lose_payloads(snapshot.index)  # Its sender may be the only one that has them.
                self.membership = snapshot.membership
                self._membership_index = self._last_change = snapshot.index
        self._accept_append(to=message.sender, index=log.commit)

    def _on_read_index_response(self, message: ReadIndexResponse) -> None:
        self._read_ready.append(ReadReady(message.context, message.index))

    def _forward(self, payloads: list[bytes]) -> None:
        """Keep proposals for the leader until `ready()`; without one, hand them back, or those over the bound."""
        if self.role is not FOLLOWER or self.leader == NO_NODE:
            self._rejected.extend(payloads)
            return
        used_bytes, bytes_max = self._forward_bytes, self._config.forward_bytes_max
        size_bytes = _size_bytes(payloads)
        if used_bytes + size_bytes > bytes_max:
            count = count_admitted(payloads, used_bytes=used_bytes, bytes_max=bytes_max)
            self._rejected.extend(payloads[count:])
            payloads = payloads[:count]
            size_bytes = _size_bytes(payloads)
        self._forwards.extend(payloads)
        self._forward_bytes += size_bytes

    def _forward_membership(self, payload: bytes, *, leave: bool) -> None:
        if self.role is FOLLOWER and self.leader != NO_NODE:
            self._send(ForwardedMembership(self.leader, self.id, self.term, payload, leave))
        else:
            self._rejected.append(payload)

    def _flush_forwards(self) -> None:
        """Send the proposals that were kept, no more in one message than an `AppendRequest` may hold."""
        forwards, self._forwards, self._forward_bytes = self._forwards, [], 0
        if self.role is not FOLLOWER or self.leader == NO_NODE:
            self._rejected.extend(forwards)
            return
        while forwards:
            count = count_admitted(forwards, used_bytes=0, bytes_max=self._config.append_bytes_max)
            self._send(ForwardedProposals(self.leader, self.id, self.term, forwards[:count]))
            forwards = forwards[count:]


def _size_bytes(payloads: list[bytes]) -> int:
    return sum(map(len, payloads)) + len(payloads) * ENTRY_OVERHEAD_BYTES


def _is_well_formed(message: AppendRequest) -> bool:
    """Return whether the entries are numbered from `prev_index`, and their terms can be this leader's.

    The numbers between the ends need no look: they do not travel, whoever decodes the message counts.
    """
    entries = message.entries
    if not entries:
        return True
    count, first, last = len(entries), entries[0], entries[-1]
    if first.index != message.prev_index + 1 or last.index != message.prev_index + count:
        return False
    if not message.prev_term <= first.term <= last.term <= message.term:
        return False
    if count <= 2:
        return True
    terms = [entry.term for entry in entries]
    # Micro-optimization: nearly always they are one term's (tests/bench/bench_core.py).
    return terms.count(first.term) == count or terms == sorted(terms)
