"""A leader whose process has ended is not waited for.

An election timeout is long because silence has many reasons. Two things leave no doubt: nobody listens any more where
the leader did, after every connection with it has ended (`transport.departures`), or the leader says HELLO with a
higher boot count, and whoever starts is no leader. Then:

1. This member forgets its leader, so that it does not refuse others on its account (thesis §4.2.3).
2. After a random moment it stands. It asks in a rehearsal first (thesis §9.6): where others still hear the leader, for
   it was a proxy that had ended, they say no, and nothing has happened: the next heartbeat brings the leader back.
3. The others may not know yet, or stand at the same time. So it asks again, after longer and longer, a few times; from
   then on the election timeout is its clock, like anybody's.

Where leases are on (`NodeConfig.lease_reads`) nobody forgets: every voter has promised the leader to elect nobody else
for an election timeout, and the leader may be reading by that (`node.lease`). A failover takes that long there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

from pyraftkv.core import FOLLOWER, LEADER, NO_NODE, Campaign, ForgetLeader, Raft

FIRST_SECONDS_MAX = 0.05
"""The longest wait before a member stands; at random, so that not everybody does at once."""

AGAIN_SECONDS_MAX = 0.1
"""The longest wait before it asks again, and the half of it the shortest; doubled each time."""

TRIES_MAX = 4
"""After so many it waits for its election timeout, like anybody."""


class Succession:
    """What a member does when its leader is known to be gone.

    Args:
        raft: Its machine.
        loop: Where time passes.
        rng: Says how long to wait.
        honours_leases: Whether it promises its leader to elect nobody else: then it does nothing.
        feed: Takes an input for the machine.
    """

    def __init__(
        self,
        raft: Raft,
        *,
        loop: asyncio.AbstractEventLoop,
        rng: Random,
        honours_leases: bool,
        feed: Callable[[ForgetLeader | Campaign], None],
    ) -> None:
        self._raft = raft
        self._loop = loop
        self._rng = rng
        self._honours_leases = honours_leases
        self._feed = feed
        self._timer: asyncio.TimerHandle | None = None

    def gone(self, member_id: int) -> None:
        """The process of that member has ended, or another has begun in its place."""
        if self._honours_leases or self._raft.role is not FOLLOWER or self._raft.leader != member_id:
            return
        self._feed(ForgetLeader())
        self._stand_in(self._rng.uniform(0.0, FIRST_SECONDS_MAX), tries=1)

    def close(self) -> None:
        """Stand no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _stand_in(self, seconds: float, *, tries: int) -> None:
        self.close()
        self._timer = self._loop.call_later(seconds, self._stand, tries)

    def _stand(self, tries: int) -> None:
        if self._raft.role is LEADER or self._raft.leader != NO_NODE:
            return  # Somebody leads, or the leader was not gone after all.
        self._feed(Campaign())
        if tries < TRIES_MAX:
            longest = AGAIN_SECONDS_MAX * 2 ** (tries - 1)
            self._stand_in(self._rng.uniform(longest / 2, longest), tries=tries + 1)
