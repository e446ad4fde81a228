"""What a leader knows of one follower, and how fast it may send to it (thesis §10.2.1; etcd's `tracker`).

::

                 accepted                         window not full: pipeline
      PROBE ───────────────────► REPLICATE        `next` runs ahead of `match`
        ▲  one message at a time     │
        │◄───────────────────────────┤  rejected, or unreachable
        │                            │
        │  sent or given up          │  the log no longer has `next`
        └──────── SNAPSHOT ◄─────────┘  (also from PROBE)
                     └──► REPLICATE     an ack from which the log can go on

The network reorders, repeats and delays. Two rules keep that harmless:

1. `match` only rises while a follower is there, and `next` never falls to `match` or below: what was acknowledged was
   saved, and stays so. What becomes of a follower whose disk has forgotten it all the same says `acknowledged`.
2. A rejection counts only if it can answer the newest probe; any other one is an echo.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from pyraftkv._record import record


class ProgressState(IntEnum):
    """How entries are sent to a follower."""

    PROBE = 0
    """Where its log ends is unknown: one message with entries, then wait for the answer."""
    REPLICATE = 1
    """Its log is known to match: send without waiting, as far as the window allows."""
    SNAPSHOT = 2
    """It needs a snapshot, which is on its way: send nothing."""


PROBE = ProgressState.PROBE
REPLICATE = ProgressState.REPLICATE
SNAPSHOT = ProgressState.SNAPSHOT


@record
class PeerStatus:
    """What `status()` tells of one follower."""

    state: ProgressState
    match: int
    next: int
    active: bool
    """Whether it was heard within the last election timeout."""
    inflight_messages: int
    inflight_bytes: int
    pending_snapshot: int
    """The index of the snapshot on its way, or 0."""


class Inflights:
    """The window of messages sent and not yet answered, bounded in messages and in bytes.

    Invariant: `size_bytes` is the sum over the queue; last indexes rise strictly.
    """

    __slots__ = ("_bytes_max", "_messages_max", "_queue", "size_bytes")

    def __init__(self, *, messages_max: int, bytes_max: int) -> None:
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._queue: deque[tuple[int, int]] = deque()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def full(self) -> bool:
        """Whether nothing more may be sent. The message that crosses the bound in bytes is let through."""
        return len(self._queue) >= self._messages_max or self.size_bytes >= self._bytes_max

    def add(self, *, last_index: int, size_bytes: int) -> None:
        """Note a message whose last entry is ``last_index``."""
        assert not self.full, "the window is full"
        self._queue.append((last_index, size_bytes))
        self.size_bytes += size_bytes

    def free_to(self, index: int) -> None:
        """Forget the messages whose entries all lie at or below ``index``."""
        queue = self._queue
        while queue and queue[0][0] <= index:
            self.size_bytes -= queue.popleft()[1]

    def clear(self) -> None:
        self._queue.clear()
        self.size_bytes = 0


class Progress:
    """One follower, as its leader sees it.

    Invariants: `match < next`; `acknowledged` never falls, and not below `match`; `pending_snapshot` is 0 unless the
    state is SNAPSHOT; the window is empty unless it is REPLICATE.
    """

    __slots__ = (
        "acknowledged",
        "active_tick",
        "due",
        "fetch",
        "hollow_index",
        "inflights",
        "match",
        "next",
        "node",
        "pending_snapshot",
        "probe_sent",
        "sent_commit",
        "state",
    )

    def __init__(self, node: int, *, next_index: int, active_tick: int, inflights: Inflights) -> None:
        self.node = node
        self.match = 0
        """The last index known to be saved there, and equal to ours. 0 again when messages to it were lost."""
        self.acknowledged: int | None = None
        """The last index that it ever acknowledged to this leader, 0 if it promised nothing but to be of this term;
        None until it was heard in it."""
        self.next = next_index
        """The index of the next entry to send."""
        self.state = PROBE
        self.probe_sent = False
        """PROBE only: a message is on its way, and until it is answered no entries go. Heartbeats' answers repeat it
        without any: it may be lost, or slow."""
        self.due = False
        """An append is owed even if it is empty: a heartbeat's answer showed that something was lost or is missing."""
        self.sent_commit = 0
        """The largest commit index that was sent and could be used there."""
        self.pending_snapshot = 0
        self.fetch = 0
        """The first index asked of the storage for this follower, or 0."""
        self.active_tick = active_tick
        """The leader's tick count when it was last heard."""
        self.hollow_index: int | None = None
        """Of a witness: the last index whose payload it may not have; None until it has said so in this term."""
        self.inflights = inflights

    @property
    def is_waiting(self) -> bool:
        """Whether nothing may go out until a snapshot has arrived, or the disk was read."""
        return self.state is SNAPSHOT or self.fetch != 0

    @property
    def can_send(self) -> bool:
        """Whether entries may go out now."""
        if self.fetch:
            return False
        if self.state is REPLICATE:
            return not self.inflights.full
        return self.state is PROBE and not self.probe_sent

    def become_probe(self) -> None:
        """Go back to one message at a time, from the last index known to match."""
        self.next = self.match + 1
        self._enter(PROBE)

    def become_replicate(self) -> None:
        """Start to pipeline: the follower's log matches ours up to `match`."""
        self.next = self.match + 1
        self._enter(REPLICATE)

    def become_snapshot(self, index: int) -> None:
        """Send nothing until the snapshot at ``index`` has arrived or failed."""
        self._enter(SNAPSHOT)
        self.pending_snapshot = index

    def end_snapshot(self, *, ok: bool) -> None:
        """Leave SNAPSHOT: probe after the snapshot, or after `match` if it failed, once the follower is heard."""
        if self.state is SNAPSHOT:
            self.next = max(self.match, self.pending_snapshot if ok else 0) + 1
            self._enter(PROBE)
            self.probe_sent = True

    def _enter(self, state: ProgressState) -> None:
        self.state = state
        self.probe_sent = False
        self.pending_snapshot = 0
        self.fetch = 0
        self.sent_commit = min(self.sent_commit, self.next - 1)  # What was sent beyond may never have arrived.
        self.inflights.clear()

    def sent_append(self, *, count: int, size_bytes: int) -> None:
        """Note a message with ``count`` entries: in REPLICATE the next one follows them, in PROBE it must wait."""
        assert self.state is not SNAPSHOT, "nothing goes to a follower that awaits a snapshot"
        if self.state is PROBE:
            self.probe_sent = True
        elif count:
            self.next += count
            self.inflights.add(last_index=self.next - 1, size_bytes=size_bytes)

    def maybe_update(self, index: int) -> bool:
        """Take an ack of everything up to ``index``; return False if it told nothing new (a late or repeated one)."""
        if index <= self.match:
            return False
        self.match = index
        self.acknowledged = max(index, self.acknowledged or 0)
        self.next = max(self.next, index + 1)
        self.probe_sent = False
        return True

    def heard(self) -> None:
        """It is of this term, durably: it voted for its leader, or answered it."""
        self.acknowledged = self.acknowledged or 0

    def maybe_decrease(self, *, rejected: int, hint: int) -> bool:
        """Take a rejection; return False if it is an echo of an older message.

        Args:
            rejected: The `prev_index` that did not match.
            hint: The largest index that may match.
        """
        if self.state is REPLICATE:
            if rejected <= self.match:
                return False
            self.become_probe()
            return True
        if self.state is SNAPSHOT or rejected != self.next - 1:
            return False
        self.next = max(min(rejected, hint + 1), self.match + 1)
        self.sent_commit = min(self.sent_commit, self.next - 1)
        self.probe_sent = False
        return True

    def check(self) -> None:
        """Assert the invariants of this class."""
        assert 0 <= self.match < self.next, (self.match, self.next)
        assert self.match <= (self.acknowledged or 0), (self.match, self.acknowledged)
        assert (self.pending_snapshot == 0) == (self.state is not SNAPSHOT), self.pending_snapshot
        assert self.state is REPLICATE or not len(self.inflights), self.state
        assert self.sent_commit < self.next, (self.sent_commit, self.next)
        assert self.inflights.size_bytes >= 0, self.inflights.size_bytes
