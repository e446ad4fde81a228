"""What a node tells those who watch over it: records, in order, through a bounded queue per subscriber."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from pyraftkv._record import record

EVENTS_MAX = 256
"""Events kept for a slow subscriber; older ones give way, and an `EventsDropped` says how many."""


@record
class RoleChanged:
    """This member's role, term or leader changed."""

    role: str
    term: int
    leader: int
    leader_name: str


@record
class HandoverBegun:
    """This leader begins to hand over to another member; a `RoleChanged` follows if that takes over."""

    member_id: int
    name: str
    reason: str
    """"asked", "priority", "closing", "quarantine", "disk full", or what it loses its time to: "event loop", "disk"."""


@record
class AlarmRaised:
    """Something is wrong with this member or its cluster; `Status.alarms` holds it from now on."""

    alarm: str


@record
class AlarmCleared:
    """It is over, as far as this member can tell."""

    alarm: str


@record
class PeerConnected:
    """A peer said HELLO."""

    member_id: int
    name: str


@record
class PeerLost:
    """Messages to a peer were dropped: its connection broke, or it reads too slowly."""

    member_id: int
    name: str


@record
class SnapshotWritten:
    """A snapshot of this member's state is on disk."""

    index: int
    size_bytes: int


@record
class SnapshotInstalled:
    """This member was too far behind and took its state from the leader's snapshot."""

    index: int


@record
class MemberQuarantined:
    """This member's state is not what the others' is, or is damaged: it answers nothing until it is repaired."""

    reason: str


@record
class MemberRepaired:
    """This member has taken its state from another one, and answers again."""

    index: int
    """The last entry in what it took."""


@record
class NodeStopped:
    """The node is no longer running; `error` is None after a close."""

    error: BaseException | None


@record
class EventsDropped:
    """The subscriber was too slow: this many events before this one are missing."""

    count: int


NodeEvent = (
    RoleChanged
    | HandoverBegun
    | AlarmRaised
    | AlarmCleared
    | PeerConnected
    | PeerLost
    | SnapshotWritten
    | SnapshotInstalled
    | MemberQuarantined
    | MemberRepaired
    | NodeStopped
    | EventsDropped
)


class _Subscription:
    def __init__(self) -> None:
        self.queue: deque[NodeEvent] = deque()
        self.dropped = 0
        self.ready = asyncio.Event()


class EventHub:
    """Fans events out to subscribers; ends every subscription after `NodeStopped`."""

    def __init__(self) -> None:
        self._subscriptions: list[_Subscription] = []
        self._stopped: NodeStopped | None = None

    def emit(self, event: NodeEvent) -> None:
        """Hand ``event`` to every subscriber. Never blocks. O(subscribers)."""
        if isinstance(event, NodeStopped):
            self._stopped = event
        for subscription in self._subscriptions:
            if len(subscription.queue) >= EVENTS_MAX:
                subscription.queue.popleft()
                subscription.dropped += 1
            subscription.queue.append(event)
            subscription.ready.set()

    async def subscribe(self) -> AsyncIterator[NodeEvent]:
        """Yield events from now on, until the node stops."""
        if self._stopped is not None:
            yield self._stopped
            return
        subscription = _Subscription()
        self._subscriptions.append(subscription)
        try:
            while True:
                await subscription.ready.wait()
                subscription.ready.clear()
                if subscription.dropped:
                    count, subscription.dropped = subscription.dropped, 0
                    yield EventsDropped(count)
                while subscription.queue:
                    event = subscription.queue.popleft()
                    yield event
                    if isinstance(event, NodeStopped):
                        return
        finally:
            self._subscriptions.remove(subscription)
