"""Leases as their leader keeps them: deadlines on its own clock, renewals, and the end.

The store holds no time (`store/leases.py`). When a lease ends is known to the leader alone, by its event loop's clock,
which no change of the wall clock moves; what comes of it goes through the log as the leader's decision
(`node/decisions.py`). Two promises are kept, whatever pauses, partitions and changes of leader there are:

* *Not too early.* A lease lives for its full time from the moment at which its owner asked for a renewal that was
  answered.
* *Not for ever.* When its owner is gone, so is the lease: after its time, and an election timeout and what is left of
  its time for each new leader.

**What would break them, and what keeps them whole.**

Hazard 1, the leader that is none (etcd#15247). Its process stops for a minute, and goes on as if nothing had happened:
it still believes that it leads, and all leases look expired. So nothing ends before a quorum has confirmed, in a round
begun after the deadline had passed, that this member leads; and the end itself does nothing in another leader's term.

Hazard 2, the renewal in the mailbox. After that minute the leader's sockets are full of renewals that came in time. So
after a gap in the loop one look passes without any end: what has come is read first. And a lease for which a renewal is
under way does not end.

Hazard 3, the renewal that is not worth anything. A leader that was deposed answers a renewal; the new one counts from
its own beginning, which was before. So a renewal is answered after a round that a quorum confirmed, begun after it
came: whoever leads later begins later than that, and gives every lease its full time anew.

Hazard 4, the checkpoint. New leaders that give full time anew let a lease of a day live for ever, if there is a change
a day. So what is left of long leases is written down now and then, and a new leader gives no more than that. But then a
renewal must be written down before it is answered: the checkpoint of the hour before would cut it short. One that is
under way counts as one that is there.

Hazard 5, the end under way. A renewal that comes when the end was decided is too late, but the lease is still there. It
waits until it is gone, and is told so.

Hazard 6, ten thousand at once. Leases that were granted together end together. They end in batches, one after the
other, and everything else has its turn in between.

Hazard 7, the leader without a state. A witness leads for a moment, and a quorum confirms it. It knows of no lease, and
would tell every owner that theirs is gone. So it keeps none: who asks asks again, of who leads next.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from heapq import heapify, heappop, heappush
from typing import Any

from pyraftkv import errors
from pyraftkv.codec import LEASES_PER_DECISION_MAX
from pyraftkv.core import LEADER, Raft
from pyraftkv.protocol import DecidedCommand
from pyraftkv.replica import Replica
from pyraftkv.store.commands import CheckpointLeases, ExpireLeases
from pyraftkv.store.leases import Leases

logger = logging.getLogger("pyraftkv.node")

GAP_SECONDS = 0.2
"""A look that comes so much too late ends nothing: what has come meanwhile is read first."""

EXPIRE_BATCH_MAX = 128
"""Leases that end in one decision."""

ARM_BATCH = 1000
"""Leases that are looked at in one go; about a millisecond."""

SWEEP_MIN = 10_000
"""So many leases more than twice those that there are may be kept in mind that were revoked before their time."""

PAUSE_SECONDS = 1.0
"""How long nothing is decided after something was refused, or came to nothing."""


class _Clearing:
    """Leases whose checkpoints are to be taken back in one decision."""

    __slots__ = ("is_done", "leases", "task")

    def __init__(self) -> None:
        self.leases: dict[int, None] = {}
        self.task: asyncio.Task[None] | None = None
        self.is_done = False
        """Whether the log has taken them back."""


class LeaseKeeper:
    """Keeps the deadlines while this member leads.

    Args:
        raft: The machine, to be looked at.
        loop: Its clock is the one that counts.
        replica: Returns what was applied so far.
        decide: Does something as leader (`Member.decide`).
        confirm: Waits for a quorum that confirms, in a round that begins now, who leads; and until everything that was
            committed then is applied. Given a deadline.
        election_seconds: What a new leader adds to every lease.
        checkpoint_seconds: How often what is left of a lease is written down that was granted for longer than this.
        timeout_seconds: How long a quorum is waited for.

    Invariants: deadlines are of the term `_term`; each lease with a deadline has a place in the heap at or before it,
    or its end is under way.
    """

    def __init__(
        self,
        raft: Raft,
        *,
        loop: asyncio.AbstractEventLoop,
        replica: Callable[[], Replica],
        decide: Callable[[DecidedCommand], Coroutine[Any, Any, object]],
        confirm: Callable[[float], Awaitable[None]],
        election_seconds: float,
        checkpoint_seconds: float,
        timeout_seconds: float,
    ) -> None:
        self._raft = raft
        self._loop = loop
        self._replica = replica
        self._decide = decide
        self._confirm = confirm
        self._election_seconds = election_seconds
        self._checkpoint_seconds = checkpoint_seconds
        self._timeout_seconds = timeout_seconds
        self._term = 0
        """Of what follows; 0: this member keeps nothing."""
        self._is_armed = False
        """Whether every lease has a deadline."""
        self._deadlines: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []
        self._renewing: Counter[int] = Counter()
        """How many renewals of a lease are under way."""
        self._ending: dict[int, asyncio.Event] = {}
        """Leases whose end was decided, and who waits for it."""
        self._writing: set[int] = set()
        """Leases whose checkpoint is under way."""
        self._clearing: _Clearing | None = None
        # A dictionary, so that it ends in an order that does not depend on addresses, as that of a set does.
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._next_checkpoint = self._not_before = loop.time()
        self._looking: asyncio.Task[None] | None = None
        """Ends leases, writes down what is left of them, or gives them deadlines."""

    @property
    def _leases(self) -> Leases:
        return self._replica().store.leases

    @property
    def is_keeping(self) -> bool:
        """Whether this member leads, has applied what leaders before it decided, and every lease has a deadline."""
        return self._is_armed and self._holds(self._term)

    def _holds(self, term: int) -> bool:
        return term == self._term == self._raft.term and self._raft.role is LEADER

    # --- What happens ----------------------------------------------------------------------------------------------

    def granted(self, lease: int) -> None:
        """A lease was granted, or its owner was told so again: its time begins now. O(log n)."""
        ttl = self._leases.ttl(lease)
        if ttl and self._holds(self._term):
            self._set(lease, self._loop.time() + ttl)

    def _set(self, lease: int, deadline: float) -> None:
        """Move a deadline; a later one leaves its place in the heap, to be looked at when that has come."""
        known = self._deadlines.get(lease)
        if known is None or deadline < known:
            heappush(self._heap, (deadline, lease))
        self._deadlines[lease] = deadline

    def tend(self, now: float, *, late_seconds: float) -> None:
        """Look after the leases, if this member leads. Call every 100 ms or so. O(1) when nothing is due.

        Args:
            now: When the loop came to this: whatever holds it up from there on makes nothing end.
            late_seconds: How much later than meant that was: the loop had a gap.
        """
        raft = self._raft
        if raft.role is not LEADER or raft.id in raft.membership.witnesses:
            self._let_go()
        elif (
            now >= self._not_before and late_seconds <= GAP_SECONDS and (self._looking is None or self._looking.done())
        ):
            if self._term == raft.term:
                self._sweep()
                if self._is_due(now):
                    self._looking = self._begin(self._keep(now))
            elif self._replica().applied_term == raft.term:  # what leaders before have decided is known here
                self._let_go()
                self._term = raft.term
                self._next_checkpoint = now + self._checkpoint_seconds
                self._is_armed = not len(self._leases)
                if not self._is_armed:
                    self._looking = self._begin(self._arm(raft.term))

    def _is_due(self, now: float) -> bool:
        return bool(self._heap) and (self._heap[0][0] <= now or self._next_checkpoint <= now)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work, name="pyraftkv-leases")
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    async def close(self) -> None:
        """Stop what is under way, and see it end. Idempotent."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _keep(self, now: float) -> None:
        try:
            await self._expire_due(now)
            await self._write_down()
        except (errors.NotApplied, errors.MaybeApplied) as error:
            logger.info("leases wait: %s", error)
            self._not_before = self._loop.time() + PAUSE_SECONDS

    def _let_go(self) -> None:
        """Another one keeps the leases."""
        if self._term:
            self._term = 0
            self._is_armed = False
            self._deadlines = {}
            self._heap = []
            self._writing = set()
            for event in self._ending.values():
                event.set()
            self._ending = {}

    async def _arm(self, term: int) -> None:
        """Give every lease what is left of it, from now on."""
        leases, begun_at = self._leases, self._loop.time() + self._election_seconds
        for count, lease in enumerate(list(leases)):
            if count % ARM_BATCH == ARM_BATCH - 1:
                await asyncio.sleep(0)
                if not self._holds(term):
                    return
            if lease not in self._deadlines and lease in leases:
                self._set(lease, begun_at + (leases.left(lease) or leases.ttl(lease)))
        self._is_armed = True

    # --- The end ---------------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Forget leases that were revoked before their time, when they are most of what is kept. O(1), amortised."""
        leases = self._leases
        if len(self._heap) > 2 * len(leases) + SWEEP_MIN:
            self._deadlines = {lease: at for lease, at in self._deadlines.items() if lease in leases}
            self._heap = [(at, lease) for lease, at in self._deadlines.items()]
            heapify(self._heap)

    def _due(self, now: float) -> list[int]:
        """Take those out of the heap whose deadline has passed, some at most. O(log n) each."""
        heap, deadlines, leases = self._heap, self._deadlines, self._leases
        due: list[int] = []
        while heap and heap[0][0] <= now and len(due) < EXPIRE_BATCH_MAX:
            _, lease = heappop(heap)
            if lease not in leases:
                deadlines.pop(lease, None)
            elif deadlines[lease] > now:
                heappush(heap, (deadlines[lease], lease))
            else:
                due.append(lease)
        return due

    async def _expire_due(self, now: float) -> None:
        """End what was due at a time that has passed, once a quorum has said since that this member leads."""
        if not self._heap or self._heap[0][0] > now:
            return
        term, spared = self._term, list[int]()
        await self._confirm(now + self._timeout_seconds)
        try:
            while self._holds(term) and (due := self._due(now)):
                spared += due
                doomed = [lease for lease in due if not self._renewing[lease]]
                if doomed:
                    await self._end(doomed)
        finally:
            if self._holds(term):
                for lease in spared:
                    if lease in self._deadlines:
                        heappush(self._heap, (self._deadlines[lease], lease))

    async def _end(self, doomed: list[int]) -> None:
        """Decide the end of leases, and wait until they are gone. Raises `NotApplied`, `MaybeApplied`."""
        gone = asyncio.Event()
        ending = self._ending
        ending.update(dict.fromkeys(doomed, gone))
        try:
            await self._decide(ExpireLeases(doomed))
        finally:
            for lease in doomed:
                if ending is self._ending:
                    ending.pop(lease, None)
                    if lease not in self._leases:
                        self._deadlines.pop(lease, None)
            gone.set()

    # --- Renewals --------------------------------------------------------------------------------------------------

    async def renew(self, lease: int, deadline: float) -> int:
        """Give a lease its full time again; return that in seconds, or 0 if it is not there (any more).

        Raises: `NoLeader` if this member does not keep the leases, `Unavailable` if no quorum says that it leads.
        """
        self._renewing[lease] += 1
        try:
            while True:
                term = self._term
                self._require_keeping(term)
                while lease in self._ending:
                    await self._ending[lease].wait()
                if self._is_checkpointed(lease):
                    await self._clear(lease)
                await self._confirm(deadline)
                self._require_keeping(term)
                if lease not in self._ending and not self._is_checkpointed(lease):
                    break
            ttl = self._leases.ttl(lease)
            if ttl:
                self._set(lease, self._loop.time() + ttl)
            return ttl
        finally:
            self._renewing[lease] -= 1
            if not self._renewing[lease]:
                del self._renewing[lease]

    async def time_to_live(self, lease: int, deadline: float) -> int:
        """Return how many whole seconds are left of a lease; -1 if it is not there. Raises as `renew`."""
        term = self._term
        self._require_keeping(term)
        await self._confirm(deadline)
        self._require_keeping(term)
        if lease not in self._leases or lease not in self._deadlines:
            return -1
        return max(0, math.floor(self._deadlines[lease] - self._loop.time()))

    def _require_keeping(self, term: int) -> None:
        if not self.is_keeping or term != self._term:
            raise errors.NoLeader("another member keeps the leases, or this one has just begun to")

    # --- Checkpoints -----------------------------------------------------------------------------------------------

    def _is_checkpointed(self, lease: int) -> bool:
        return lease in self._writing or self._leases.left(lease) > 0

    async def _clear(self, lease: int) -> None:
        """Take a checkpoint back, together with others. Raises `Unavailable` if it cannot be."""
        clearing = self._clearing
        if clearing is None or clearing.task is None or len(clearing.leases) >= LEASES_PER_DECISION_MAX:
            clearing = self._clearing = _Clearing()
            clearing.task = self._begin(self._clear_all(clearing))
        clearing.leases[lease] = None
        assert clearing.task is not None
        await asyncio.wait([clearing.task])
        if not clearing.is_done:
            raise errors.NoLeader("what is left of the lease could not be written down")

    async def _clear_all(self, clearing: _Clearing) -> None:
        """Do it, and note whether it was done: nobody may be left to be told.

        1. A leader is cut off, and a renewal has it take a checkpoint back: nobody is there to commit that.
        2. The renewal's deadline passes before the leader steps down: it is told so, and waits no longer.
        3. The leader steps down, and the decision fails. As the exception of a task it would never be retrieved: an
           error that was answered for stands in the log as one that was not.
        """
        await asyncio.sleep(0)
        if self._clearing is clearing:
            self._clearing = None
        try:
            await self._decide(CheckpointLeases([number for lease in clearing.leases for number in (lease, 0)]))
        except (errors.NotApplied, errors.MaybeApplied) as error:
            logger.info("checkpoints of %d leases may stand still: %s", len(clearing.leases), error)
        else:
            clearing.is_done = True

    async def _write_down(self) -> None:
        """Write down what is left of long leases, if it is time."""
        now, term = self._loop.time(), self._term
        if now < self._next_checkpoint:
            return
        self._next_checkpoint = now + self._checkpoint_seconds
        leases, items = self._leases, list[int]()
        for count, lease in enumerate(list(leases)):
            if count % ARM_BATCH == ARM_BATCH - 1:
                await asyncio.sleep(0)
            if not self._holds(term):
                return
            ttl = leases.ttl(lease)
            if ttl > self._checkpoint_seconds and lease in self._deadlines and not self._renewing[lease]:
                left = math.ceil(self._deadlines[lease] - self._loop.time())
                items += (lease, left) if 0 < left < ttl else ()
            if len(items) >= 2 * LEASES_PER_DECISION_MAX:
                await self._checkpoint(items)
                items = []
        if items:
            await self._checkpoint(items)

    async def _checkpoint(self, items: list[int]) -> None:
        """Write down what is left of some leases. From here on it counts as written: it may be in the log already."""
        writing = self._writing
        kept = [pair for pair in zip(items[::2], items[1::2], strict=True) if not self._renewing[pair[0]]]
        writing.update(lease for lease, _ in kept)
        if not kept:
            return
        try:
            await self._decide(CheckpointLeases([number for pair in kept for number in pair]))
        except errors.MaybeApplied:
            raise  # it counts for the rest of the term, which is over
        except errors.NotApplied:
            writing.difference_update(lease for lease, _ in kept)
            raise
        writing.difference_update(lease for lease, _ in kept)
