"""Whether this member's state is what the others' is.

Members apply the same log, and so their states are equal. When they are not, a bug of ours or a broken memory has
struck, and every answer of one of them may be wrong. So every `CHECK_ENTRIES` entries each member tells all others the
hash of its state as of that entry (`StateHash`), and each one judges itself by what it hears:

1. *A majority of those who keep the state has one hash, and this member another one.* It is the one that is wrong. It
   quarantines itself: it answers nothing any more but how it is, hands leadership over, and takes and sends no
   snapshot. Its log is as good as ever, so it goes on storing, acknowledging and voting: what is acknowledged stays as
   durable as it was. Then it is repaired (`node.repair`).
2. *No hash can have a majority.* Nobody can say who is right. The leader raises the alarm CORRUPT, with which nothing
   may be changed until people have decided (docs/operations.md).
3. *Who has not been heard of says nothing.* Messages may be lost, and a slow member comes to that entry later: what was
   heard is kept for it. What is wrong stays wrong, and shows again at the next entry that is compared; and the last
   hash is said again every `REPEAT_SECONDS`.

A member in quarantine tells its hash on. Of three members one is in quarantine when the other two come to differ: if it
were silent, it could be what both wait for, for ever.

The hash is one of what was written (`store.checks`). A bit that flips in memory later is found by a patrol, a page of
versions at a time; who finds damage in itself needs nobody else to know that it is wrong.

Source: etcd, "Data corruption": its checks compare members that are at the same revision, from outside, and are off
unless they are asked for. The corruption of etcd 3.5 was met by users first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from pyraftkv import errors
from pyraftkv.codec import PeerMessage
from pyraftkv.core import Membership
from pyraftkv.protocol import StateHash
from pyraftkv.replica import CHECK_ENTRIES, Checkpoint, Replica

REPEAT_SECONDS = 10.0
"""How often the last hash is told again: what was told before may have been lost, and no entry may follow."""

PATROL_SECONDS = 1.0
"""How often a page is looked at, which takes half a millisecond or so: it goes on for ever, so it must cost nothing."""

REPORTS_MAX = 16
"""Indexes whose hashes are kept of what others told; a member that is further behind compares again when it is not."""


class Integrity:
    """Compares one member with the others, and says when it is to be trusted no longer.

    Args:
        own: This member's id.
        replica: Returns its state.
        send: Sends messages to other members.
        quarantined: Is told, once, that this member is wrong.
        split: Is told that nobody knows who is right, and the ids of those who differ; again and again.
    """

    def __init__(
        self,
        own: int,
        *,
        replica: Callable[[], Replica],
        send: Callable[[list[PeerMessage]], None],
        quarantined: Callable[[str], None],
        split: Callable[[list[int]], None],
    ) -> None:
        self._own = own
        self._replica = replica
        self._send = send
        self._quarantined = quarantined
        self._split = split
        self._told_index = 0
        self._told_at = self._patrolled_at = 0.0
        self._reports: dict[int, dict[int, int]] = {}
        """The others' hashes: by index, then by member."""
        self.reason = ""
        """Why this member is in quarantine; empty while it is not."""

    def check(self) -> None:
        """Raise `Quarantined` if this member's state is not to be used."""
        if self.reason:
            raise errors.Quarantined(f"this member answers nothing: {self.reason}")

    def applied(self) -> None:
        """Entries were applied: tell and judge the hashes that there are now. O(1) nearly always."""
        checkpoints = self._replica().checkpoints
        if checkpoints and checkpoints[-1].index != self._told_index:
            new = [checkpoint for checkpoint in checkpoints if checkpoint.index > self._told_index]
            self._told_index = checkpoints[-1].index
            for checkpoint in new:
                self._tell(checkpoint)
                self._judge(checkpoint.index)

    def received(self, message: StateHash) -> None:
        """Take what another member's state was as of an entry."""
        if message.index % CHECK_ENTRIES:
            return
        self._reports.setdefault(message.index, {})[message.sender] = message.hash
        if len(self._reports) > REPORTS_MAX:
            del self._reports[min(self._reports)]
        self._judge(message.index)

    def tend(self, now: float) -> None:
        """Look for damage, and tell the last hash again, if it is time. Call every 100 ms or so. O(page)."""
        replica = self._replica()
        if now - self._patrolled_at >= PATROL_SECONDS:
            self._patrolled_at = now
            if not self.reason and (damage := replica.store.patrol()) is not None:
                self.quarantine(f"its memory is damaged: {damage}")
        if now - self._told_at >= REPEAT_SECONDS:
            self._told_at = now
            if replica.checkpoints:
                self._tell(replica.checkpoints[-1])

    def quarantine(self, reason: str) -> None:
        """This member is wrong."""
        if not self.reason:
            self.reason = reason
            self._quarantined(reason)

    def renewed(self) -> None:
        """The state is another one, taken from somebody who is trusted."""
        self.reason = ""
        self._told_index = 0

    def agreeing(self) -> set[int]:
        """Return the members whose last known hash is that of a majority; none if that is not known."""
        for index in sorted(self._reports, reverse=True):
            votes = self._votes(index, _holders(self._replica().membership))
            right = _majority(votes, len(_holders(self._replica().membership)))
            if right is not None:
                return {member for member, hash_ in votes.items() if hash_ == right}
        return set()

    def _tell(self, checkpoint: Checkpoint) -> None:
        membership = self._replica().membership
        if self._own in membership.witnesses:
            return
        others = sorted((membership.members - membership.witnesses) - {self._own})
        self._send([StateHash(other, self._own, checkpoint.index, checkpoint.hash) for other in others])

    def _judge(self, index: int) -> None:
        membership, own = self._replica().membership, self._replica().hash_at(index)
        if own is None or self.reason or self._own in membership.witnesses:
            return
        holders = _holders(membership)
        votes = self._votes(index, holders)
        right = _majority(votes, len(holders))
        if right is not None and right != own:
            count = sum(hash_ == right for hash_ in votes.values())
            self.quarantine(f"{count} of {len(holders)} members have another state than this one as of entry {index}")
        elif right is None and _is_split(votes, len(holders)):
            self._split(sorted(votes))

    def _votes(self, index: int, holders: frozenset[int]) -> dict[int, int]:
        """Return the hashes of those who count, as far as they are known."""
        known = dict(self._reports.get(index, {}))
        own = self._replica().hash_at(index)
        if own is not None:
            known[self._own] = own
        return {member: hash_ for member, hash_ in known.items() if member in holders}


def _holders(membership: Membership) -> frozenset[int]:
    """Return who counts: whoever votes, and keeps the state. Nobody is wrong by a learner's word."""
    return (membership.voters | membership.outgoing) - membership.witnesses


def _majority(votes: dict[int, int], count: int) -> int | None:
    """Return the hash that more than half of ``count`` members have; None if there is none."""
    for hash_, found in Counter(votes.values()).most_common(1):
        if 2 * found > count:
            return hash_
    return None


def _is_split(votes: dict[int, int], count: int) -> bool:
    """Whether no hash can have a majority, whatever those have who were not heard of."""
    best = max(Counter(votes.values()).values(), default=0)
    return 2 * (best + count - len(votes)) <= count
