"""Pledges: every member tells the others what it has for good, so that they know if it comes back without that.

A leader knows what was acknowledged to it (`LeaderRules.promise_of`), to the last entry, and as long as it leads. But
whoever is to be elected must know as well:

1. Of three members the leader and another one have an entry; the third has not. The entry is acknowledged.
2. The other one's machine is set back to a snapshot of yesterday. The leader dies, and nobody is there who knew.
3. The third stands, has the longer log of the two, and is elected. The entry is lost.

So each member tells all others itself, now and then, which term and which committed entries are on its disk. It would
not do for a leader to tell what was acknowledged to it: whoever hears that cannot know by which life.

1. A member starts again, and acknowledges. Its leader tells the third of it.
2. Only now its HELLO to the third arrives: of a life that began with less than is told of the member.

What a member tells itself comes over its own connection, after the HELLO of the same life. So it was promised by lives
that are known, and the next one that is not has all of it (`Peers.judge_memory`).
"""

from __future__ import annotations

from collections.abc import Callable

from pyraftkv.codec import PeerMessage
from pyraftkv.core import Raft
from pyraftkv.protocol import Pledge

PLEDGE_SECONDS = 5.0
"""How often a member tells. What it gained since may be forgotten unnoticed, once its leader is gone."""


class Pledges:
    """Tells what one member has for good.

    Args:
        raft: Its machine.
        send: Sends messages to other members.
    """

    def __init__(self, raft: Raft, *, send: Callable[[list[PeerMessage]], None]) -> None:
        self._raft = raft
        self._send = send
        self._told_at = 0.0

    def tend(self, now: float) -> None:
        """Tell all others, if it is time. Call every 100 ms or so. O(members)."""
        if now - self._told_at < PLEDGE_SECONDS:
            return
        self._told_at = now
        own, (term, index) = self._raft.id, self._raft.pledge
        self._send([Pledge(other, own, term, index) for other in sorted(self._raft.membership.members - {own})])
