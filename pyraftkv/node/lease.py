"""The leader's lease: how long it may answer reads alone, because nobody else can have been elected (thesis §6.4.1).

A heartbeat round leaves at some time. Every voter that answers it promises to elect nobody else, and not to stand
itself, for an election timeout. Once a quorum has promised, any other leader needs a vote that was promised away, until
an election timeout after the round *left*. So for a little less than that the leader may read its own state and be as
right as if it had asked (`ReadIndex`), without a message.

The machine counts rounds and promises (`Raft.lease_round`) and knows no time; this module puts the times to them.
Whatever is in doubt, the answer is no, and the read costs a round as any other: no is always safe.

**What would break it, and what keeps it whole.**

Hazard 1, the answer's time. A round leaves at 0.0 and is answered, after a bad second on the network, at 0.9. The
promise was given at 0.1 and ends at 1.1; a lease from the answer's time would end at 1.9. The time is that from before
the turn of the loop that made the round (`sent`); a pause in that turn only makes it older.

Hazard 2, the pause. A process is stopped for a minute between any two of its lines, or sleeps with the whole machine.
So the clock is read last: after the last ``await``, in the same breath as the state. If the pause comes after that,
the answer is late but was right when the clock was read, which is within the call. A machine that sleeps takes
``time.monotonic`` with it, so the clock is one that counts suspended time (`boot_clock`). Where there is none, there
are no leases.

Hazard 3, drift. The voter counts ticks of its own clock. Late ticks only make it wait longer, because no tick is ever
made up for; the first one may come at once, so one is taken off. A fast clock makes it wait less, a slow one here makes
the lease last longer: `NodeConfig.clock_drift_max` bounds what both come to together. *Beyond it a lease read may be
stale, and nothing can tell.* The same goes for a hypervisor that stops a guest together with all its clocks.

Hazard 4, the transfer. `TimeoutNow` asks a voter to stand at once, and its request passes everybody's promise. It may
be on its way for any time: given up after an election timeout, delivered an hour later. So a leader that has sent one
has no lease for the rest of its term, whatever was promised since.

Hazard 5, the new leader. Its commit index may lag behind what the one before has acknowledged, until an entry of its
own term is applied. Until then there is no lease.

Hazard 6, other voters. A quorum of five has promised; the configuration shrinks to the three others. Rounds are counted
under the configuration in force, and there is no lease while a change of it may be committed and not applied: whoever
is elected then knows this configuration or a neighbour of it, and the majorities of neighbours meet.

Hazard 7, the voter that starts again. It has forgotten its promise. So who may have promised anything in an earlier
life promises the same for an election timeout from its start (`Stored.promised`), *whatever its own setting is now*.
That it may have is on its disk before it does (`Storage.identify`), and stays there: a life without leases in between
may have been a short one.
`Campaign` is put off by a promise too, unless no one else has a vote; `ForgetLeader` forgets a leader and no promise.

Hazard 8, the voter that hears of a new term from somebody else than its leader. It no longer follows that leader; its
promise to it stands (`election.py`).

Hazard 9, the voter of another mind. Only answers that carry a promise count, and only members with
`NodeConfig.lease_reads` give any. A member without it never prolongs a lease, nor does one with a shorter election
timeout. A promise has its length in ticks, though, and what a tick is must be the same everywhere. And who starts again
keeps its forgotten promise for as long as its election timeout is *now*: that must not shrink while there are leases.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable

from pyraftkv.core import Raft

ROUNDS_MAX = 64
"""Rounds remembered within a lease's length: a round that follows another more closely counts as of that one's time."""


def boot_clock() -> Callable[[], float] | None:
    """Return a clock in seconds that never goes back and counts suspended time, or None where there is none."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        return lambda: time.clock_gettime(time.CLOCK_MONOTONIC)  # there it goes on while the machine is asleep
    if sys.platform == "win32":
        return time.monotonic  # there too
    return None


class LeaderLease:
    """Says whether this member may answer a read by itself, now.

    Args:
        raft: Whose rounds and promises count.
        clock: Counts suspended time; in seconds.
        seconds: How long a promise is good for, after all that can shorten it (`NodeConfig.lease_seconds`).
        applied: The index up to which the state that would be read is applied.

    Invariant: the rounds remembered rise in number and in time, and are at most a lease's length apart.
    """

    def __init__(self, raft: Raft, *, clock: Callable[[], float], seconds: float, applied: Callable[[], int]) -> None:
        self._raft = raft
        self._clock = clock
        self._seconds = seconds
        self._applied = applied
        self._sent: deque[tuple[int, float]] = deque()
        self._newest = 0

    def now(self) -> float:
        """The clock. To be read before the machine is fed, for `sent`."""
        return self._clock()

    def sent(self, before: float) -> None:
        """Remember the round that the machine may have made since ``before``, which has not left yet. O(1)."""
        newest = self._raft.round
        if newest == self._newest:
            return
        self._newest = newest
        sent, seconds = self._sent, self._seconds
        while sent and before - sent[0][1] >= seconds:
            sent.popleft()
        if not sent or before - sent[-1][1] >= seconds / ROUNDS_MAX:
            sent.append((newest, before))

    def holds(self) -> bool:
        """Return whether the state, read at once and without an ``await``, is what the whole cluster would answer."""
        raft, sent = self._raft, self._sent
        promised = raft.lease_round
        if not promised or self._applied() < raft.commit:
            return False
        while len(sent) > 1 and sent[1][0] <= promised:
            sent.popleft()
        if not sent or sent[0][0] > promised:
            return False
        return self._clock() < sent[0][1] + self._seconds
