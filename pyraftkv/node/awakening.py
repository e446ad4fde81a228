"""After a start nobody may be leading: then there is nothing to wait an election timeout for.

1. The power fails everywhere, and comes back. Three members start, and connect to each other within milliseconds.
2. Each of them waits an election timeout for a leader that none of them is.

So a member that has just started, is connected to a quorum, and has heard from no leader for a few heartbeats, stands.
It asks in a rehearsal first (thesis §9.6): if there is a leader that it does not hear, those who do say no, and nothing
has happened. It does so once; after that the election timeout is its clock, like anybody's. (etcd does the like by
letting most of the first election timeout pass at once: `initial-election-tick-advance`.)
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from random import Random

from pyraftkv.core import FOLLOWER, NO_NODE, Campaign, Raft
from pyraftkv.core.quorum import has_quorum

HEARTBEATS_WAITED = 2
"""For so many a member waits for a leader's, and up to as many again, so that not everybody stands at once."""


class Awakening:
    """What a member does in the time between its start and the first leader that it sees.

    Args:
        raft: Its machine.
        connected: The members that it is connected to, itself included.
        heartbeat_seconds: How often a leader is heard.
        rng: Says who stands first.
        feed: Takes an input for the machine.
    """

    def __init__(
        self,
        raft: Raft,
        *,
        connected: Callable[[], AbstractSet[int]],
        heartbeat_seconds: float,
        rng: Random,
        feed: Callable[[Campaign], None],
    ) -> None:
        self._raft = raft
        self._connected = connected
        self._wait_seconds = heartbeat_seconds * HEARTBEATS_WAITED * (1 + rng.random())
        self._feed = feed
        self._due: float | None = None
        self._is_over = False

    def tend(self, now: float) -> None:
        """Stand if it is time to. To be called every now and then, with the loop's time."""
        raft = self._raft
        if self._is_over:
            return
        if raft.leader != NO_NODE or raft.role is not FOLLOWER:
            self._is_over = True
        elif not has_quorum(raft.membership, self._connected()):
            self._due = None
        elif self._due is None:
            self._due = now + self._wait_seconds
        elif now >= self._due:
            self._is_over = True
            self._feed(Campaign())
