"""`Configurations`: who the members were at every entry of the log, as one history that all of them must agree on.

A configuration takes effect on a member when it applies the entry that makes it, so members go through the same
configurations at different times. What holds in spite of that:

1. Whoever has applied the same entry has the same configuration.
2. Any quorum of a configuration shares a member with any quorum of the next one. Those further apart need not.
3. An id that is gone never comes back.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from itertools import chain, combinations

from pyraftkv.core import Membership

GENESIS_INDEX = 1
"""The first members agree on this entry before there is a leader: each has it committed when it saves it."""


def is_quorum(membership: Membership, holders: AbstractSet[int]) -> bool:
    """Return whether ``holders`` are a majority, of both halves of a joint configuration (thesis §4.3)."""
    halves = [half for half in (membership.voters, membership.outgoing) if half]
    return all(2 * len(half & holders) > len(half) for half in halves)


def can_part(one: Membership, other: Membership) -> bool:
    """Return whether two configurations can decide without a member in common. O(2^voters)."""
    voters = one.voters | one.outgoing
    parts = chain.from_iterable(combinations(sorted(voters), count) for count in range(len(voters) + 1))
    others = other.voters | other.outgoing
    return any(is_quorum(one, {*part}) and is_quorum(other, others - {*part}) for part in parts)


class Configurations:
    """Every configuration that a committed entry made.

    Args:
        first: What the first entry makes.
        violated: Called with the rule that was broken and with what happened.
    """

    def __init__(self, first: Membership, *, violated: Callable[[str, str], None]) -> None:
        self._violated = violated
        self._changes = [GENESIS_INDEX]
        """The indices of committed entries that may change the configuration, in order."""
        self._known = {GENESIS_INDEX: first}
        """What they came to, once somebody has applied them."""
        self._newest = GENESIS_INDEX
        self.gone: dict[int, int] = {}
        """Members that were removed, and the index of the entry that did it."""

    @property
    def latest(self) -> Membership:
        """The configuration of the last change that anybody has applied."""
        return self._known[self._newest]

    def committed(self, index: int) -> None:
        """The entry at ``index``, which may change the configuration, is committed."""
        if index > self._changes[-1]:
            self._changes.append(index)
        elif index not in self._changes:
            insort(self._changes, index)

    def applied(self, name: str, index: int, membership: Membership) -> None:
        """A member that has applied everything up to ``index`` goes by that configuration."""
        if index < GENESIS_INDEX:
            return
        place = bisect_right(self._changes, index) - 1
        change = self._changes[place]
        known = self._known.setdefault(change, membership)
        if known != membership:
            self._violated(
                "one configuration per entry",
                f"{name} goes by {membership} after entry {index}; after entry {change} others go by {known}",
            )
        if change <= self._newest:
            return
        self._newest = change
        before = self._known.get(self._changes[place - 1])
        if before is not None:
            self._follow(change, before, membership)

    def _follow(self, change: int, before: Membership, after: Membership) -> None:
        for member in before.members - after.members:
            self.gone[member] = change
        back = sorted(after.members & self.gone.keys())
        if back:
            self._violated("an id is used once", f"entry {change} brings members {back} back")
        if can_part(before, after):
            self._violated(
                "consecutive quorums intersect", f"entry {change} leads from {before} to {after}, which can part"
            )
