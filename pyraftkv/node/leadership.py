"""Leadership: who is to have it, and how it is handed over (thesis §3.10).

The machine knows how to hand over, and nothing of why. Here are the reasons, and whom to choose:

* somebody asks for it (`transfer`), at whichever member; a follower passes the wish on to its leader;
* a member with a higher priority has caught up (`tend`): priorities are a wish of the operator's, say for the machine
  next to the clients, and never a reason to be without a leader. Anybody may be elected, a member of priority 0 too; it
  hands over when it can;
* this member loses its time (`node.watchdog`).

A leader hands over to a higher priority only after it has led for `SETTLE_SECONDS`: a member that just handed over,
because it loses its time, does not get the leadership back at once, and two members that disagree do not play ball.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pyraftkv import errors
from pyraftkv.codec import PeerMessage
from pyraftkv.core import LEADER, NO_NODE, Raft, TransferLeadership
from pyraftkv.node.events import HandoverBegun, NodeEvent
from pyraftkv.protocol import TransferRequest

SETTLE_SECONDS = 30.0
"""How long a leader leads before it hands over to a higher priority, and how long it waits to try that again."""

LAG_ENTRIES_MAX = 1000
"""How many entries a member may lack to be chosen for its priority: they are sent first, and writes wait for that."""


class Leadership:
    """What one member does about who leads.

    Args:
        raft: Its machine.
        loop: The event loop.
        name: Of a member, by its id.
        priority: Of a member, by its id: how much it is preferred as leader.
        election_seconds: The election timeout.
        feed: Takes an input for the machine.
        send: Sends messages to other members.
        emit: Tells whoever watches over the node.
    """

    def __init__(
        self,
        raft: Raft,
        *,
        loop: asyncio.AbstractEventLoop,
        name: Callable[[int], str],
        priority: Callable[[int], int],
        election_seconds: float,
        feed: Callable[[TransferLeadership], None],
        send: Callable[[list[PeerMessage]], None],
        emit: Callable[[NodeEvent], None],
    ) -> None:
        self._raft = raft
        self._loop = loop
        self._name = name
        self._priority = priority
        self._election_seconds = election_seconds
        self._feed = feed
        self._send = send
        self._emit = emit
        self._changed = asyncio.Event()
        self._is_closed = False
        self._led_since = loop.time()

    # --- Transfers -------------------------------------------------------------------------------------------------

    async def transfer(self, to: int | None, deadline: float) -> int:
        """Let member ``to`` lead, or the best of the others; return who leads now.

        Raises:
            InvalidRequest: ``to`` has no vote.
            LeadershipNotTransferred: It was given up after an election timeout, or there is nobody.
            NoLeader: There is no leader to hand over until the deadline.
            Closed: The node stopped meanwhile.
        """
        raft = self._raft
        old = await self._known_leader(deadline)
        if to == old:
            return old
        if to is not None and not self._can_lead(to):
            raise errors.InvalidRequest(f"{self._name(to)} has no vote, or no data, and cannot lead")
        term = raft.term
        if raft.role is LEADER:
            self._begin(to or self.successor(), "asked")
        else:
            self._send([TransferRequest(old, raft.id, to or NO_NODE)])
        begun_at = self._loop.time()
        for timeouts in (1, 2):  # the machine gives up after one; another one until the news of a new leader is here
            new = await self._next_leader(term, min(deadline, begun_at + timeouts * self._election_seconds))
            if new != NO_NODE or raft.leader == old:
                break
        if new == NO_NODE or to not in (None, new):
            raise errors.LeadershipNotTransferred(f"it was given up, and {self._name(new or old)} leads")
        return new

    def requested(self, request: TransferRequest) -> None:
        """A follower passes on that leadership is to be handed over. A wish that cannot be met is dropped."""
        raft = self._raft
        target = request.target or self.successor()
        if raft.role is LEADER and target not in (NO_NODE, raft.id) and self._can_lead(target):
            self._begin(target, "asked")

    def successor(self) -> int:
        """Return who is to lead after this leader, or `NO_NODE`: the highest priority, if it does not lack much.

        Among equals the one that lacks least, then the smallest id.
        """
        raft = self._raft
        candidates = [
            (raft.last_index - peer.match > LAG_ENTRIES_MAX, -self._priority(node), -peer.match, node)
            for node, peer in raft.status().peers.items()
            if peer.active and self._can_lead(node)
        ]
        return min(candidates)[-1] if candidates else NO_NODE

    def _can_lead(self, member_id: int) -> bool:
        """Whether a member may be handed the leadership: a witness takes it only when nobody else can."""
        membership = self._raft.membership
        return membership.is_voter(member_id) and member_id not in membership.witnesses

    def changed(self) -> None:
        """Role, term or leader changed."""
        self._led_since = self._loop.time()
        self._changed.set()

    def _begin(self, to: int, reason: str) -> None:
        """Raise `LeadershipNotTransferred` if there is nobody to hand over to."""
        if to == NO_NODE:
            raise errors.LeadershipNotTransferred("no other voter answers: there is nobody to hand over to")
        self._emit(HandoverBegun(to, self._name(to), reason))
        self._feed(TransferLeadership(to))

    async def _known_leader(self, deadline: float) -> int:
        try:
            async with asyncio.timeout_at(deadline):
                while self._raft.leader == NO_NODE:
                    await self._next_change()
        except TimeoutError:
            raise errors.NoLeader("there is no leader to hand over") from None
        return self._raft.leader

    async def _next_leader(self, term: int, until: float) -> int:
        """Wait until somebody leads in a later term than ``term``, or until that time; return who, or `NO_NODE`."""
        raft = self._raft
        try:
            async with asyncio.timeout_at(until):
                while raft.term == term or raft.leader == NO_NODE:
                    await self._next_change()
        except TimeoutError:
            return NO_NODE
        return raft.leader

    async def _next_change(self) -> None:
        if not self._is_closed:
            self._changed.clear()
            await self._changed.wait()
        if self._is_closed:
            raise errors.Closed("the node stopped")

    def close(self) -> None:
        """Let nobody wait any longer."""
        self._is_closed = True
        self._changed.set()

    # --- Without being asked ---------------------------------------------------------------------------------------

    def tend(self) -> None:
        """Hand over to a higher priority, if it is time. Call every 100 ms or so. O(members)."""
        raft = self._raft
        if raft.role is not LEADER:
            return
        now = self._loop.time()
        if now - self._led_since < SETTLE_SECONDS:
            return
        self._led_since = now
        best = self.successor()
        if best != NO_NODE and self._priority(best) > self._priority(raft.id):
            peer = raft.status().peers[best]
            if raft.last_index - peer.match <= LAG_ENTRIES_MAX:
                self._begin(best, "priority")

    def give_up(self, reason: str) -> None:
        """Hand over because this member loses its time, if it leads and there is anybody."""
        if self._raft.role is LEADER and (best := self.successor()) != NO_NODE:
            self._begin(best, reason)
