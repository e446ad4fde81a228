"""The driver: the one loop in which core, log, transport and replica meet.

Nothing here waits for the disk, the network or the state machine: each is handed its part of a `Ready`, and what
comes of it returns through the inbox as one more input.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from pyraftkv.codec import PeerMessage
from pyraftkv.core import (
    FOLLOWER,
    EntryFetch,
    Fetched,
    Input,
    InstallSnapshot,
    Raft,
    Ready,
    Saved,
    SoftState,
    TermSaved,
    Tick,
)
from pyraftkv.core.messages import AppendResponse, VoteRequest
from pyraftkv.log.base import Storage
from pyraftkv.node.applier import Applier
from pyraftkv.node.disk import DiskHealth
from pyraftkv.node.inbox import Inbox
from pyraftkv.node.lease import LeaderLease
from pyraftkv.node.reads import ReadRounds
from pyraftkv.node.snapshots import SnapshotSender
from pyraftkv.transport.base import Transport
from pyraftkv.writes import PendingWrites


class Driver:
    """Runs one Raft machine against a disk, a network and a replica."""

    def __init__(
        self,
        raft: Raft,
        *,
        loop: asyncio.AbstractEventLoop,
        inbox: Inbox,
        storage: Storage,
        transport: Transport,
        applier: Applier,
        reads: ReadRounds,
        writes: PendingWrites,
        snapshots: SnapshotSender,
        lease: LeaderLease | None,
        disk: DiskHealth,
        led: Callable[[SoftState], None],
        returned: Callable[[list[bytes]], None],
    ) -> None:
        self._raft = raft
        self._loop = loop
        self._inbox = inbox
        self._storage = storage
        self._transport = transport
        self._applier = applier
        self._reads = reads
        self._writes = writes
        self._snapshots = snapshots
        self._lease = lease
        self._disk = disk
        disk.release = self._promised
        self._led = led
        self._returned = returned
        self._saved_number = 0
        self._saves: deque[tuple[int, float]] = deque()
        """Saves under way: their numbers, and when they were handed out."""
        self._is_delivering = False
        self._held: deque[tuple[int, list[PeerMessage]]] = deque()
        """Messages that wait for a save, by its number."""
        self._fetches: asyncio.Queue[EntryFetch] = asyncio.Queue()
        """At most one per follower: the machine asks for the next when it has the last."""

    async def run(self) -> None:
        """Drive the machine until cancelled."""
        while True:
            await self._inbox.filled()
            self._turn()

    @property
    def saving_since(self) -> float | None:
        """When the oldest save that is not on disk was handed out, by the loop's time; None if everything is."""
        return self._saves[0][1] if self._saves else None

    def deliver(self, *inputs: Input) -> None:
        """Take what came from the network, the disk or the clock.

        While others wait for the next turn it joins them. Alone it has its turn in this very pass: nobody would gain
        by another, and a put that has nobody beside it waits for four of them on its way.
        """
        is_alone = self._inbox.is_idle and not self._is_delivering
        self._inbox.extend(inputs, urgent=not is_alone)
        if is_alone:
            self._is_delivering = True  # whatever this leads to comes back as input of the next turn, not inside this
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001 - whoever called is not to blame: `run` raises it
                self._inbox.fail(error)
            finally:
                self._is_delivering = False

    def _turn(self) -> None:
        self._writes.seal()
        self._reads.seal()
        lease = self._lease
        before = lease.now() if lease is not None else 0.0
        self._raft.feed(self._inbox.take())
        ready = self._raft.ready()
        if lease is not None:
            lease.sent(before)
        if ready.save is not None:
            self._saves.append((ready.save.number, self._loop.time()))
            self._storage.save(ready.save, self._saved)
        self._send(ready)
        if ready.restore is not None or ready.committed:
            self._applier.submit(ready.restore, ready.committed)
        if ready.reads:
            self._reads.confirmed(ready.reads)
        if ready.again:
            self._inbox.wake()
        if ready.fetches or ready.soft_state or ready.rejected_proposals:
            self._handle_rare(ready)

    async def tick(self, seconds: float) -> None:
        """Tell the machine that time passes, until cancelled.

        A late tick counts once, however late (design: never replayed in bulk). A timer calls, and not this coroutine:
        waking a task takes a pass of the event loop of its own, and most of what an idle member does is ticks.
        """
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None

        def tick() -> None:
            nonlocal timer
            if timer is not None:
                self.deliver(Tick())
            timer = loop.call_later(seconds, tick)

        tick()
        try:
            await loop.create_future()
        finally:
            assert timer is not None
            timer.cancel()

    def _send(self, ready: Ready) -> None:
        """Send what may leave now; hold what waits for a save that is not on disk yet."""
        messages: list[PeerMessage] = []
        for message in ready.messages:
            if type(message) is InstallSnapshot:
                self._snapshots.start(message)
            else:
                messages.append(message)
        waiting = ready.messages_after_save
        if waiting:
            if ready.after_save <= self._saved_number:
                messages += waiting
            else:
                self._held.append((ready.after_save, list(waiting)))
        if messages:
            self._transport.send(messages)

    def _saved(self, number: int) -> None:
        """A save is on disk: release what waited for it at once, then let the machine count it.

        A follower's machine only keeps book of it: that is no reason to wake it.
        """
        self._saved_number = number
        saves = self._saves
        if saves:
            now = self._loop.time()
            self._disk.saved(now - saves[0][1], now=now)
        while saves and saves[0][0] <= number:
            saves.popleft()
        released: list[PeerMessage] = []
        while self._held and self._held[0][0] <= number:
            released += self._held.popleft()[1]
        if released:
            self._transport.send(released)
        if self._raft.role is FOLLOWER:
            self._inbox.put(Saved(number), urgent=False)
        else:
            self.deliver(Saved(number))

    def _promised(self, number: int) -> None:
        """The disk is full, but term and vote of a save are on it: what promises nothing else may leave."""
        released: list[PeerMessage] = []
        for held, messages in self._held:
            if held <= number:
                released += [message for message in messages if not _promises_entries(message)]
                messages[:] = [message for message in messages if _promises_entries(message)]
        if released:
            self._transport.send(released)
        self.deliver(TermSaved(number))

    def _handle_rare(self, ready: Ready) -> None:
        if ready.rejected_proposals:
            self._returned(ready.rejected_proposals)
        for fetch in ready.fetches:
            self._fetches.put_nowait(fetch)
        if ready.soft_state is not None:
            self._led(ready.soft_state)

    async def fetch(self) -> None:
        """Read what slow followers need from the log, until cancelled. Raises `StorageError`, which ends the node."""
        while True:
            fetch = await self._fetches.get()
            entries = await self._storage.read_entries(lo=fetch.lo, hi=fetch.hi, bytes_max=fetch.bytes_max)
            self._inbox.put(Fetched(fetch.lo, entries))


def _promises_entries(message: PeerMessage) -> bool:
    """Whether a message says that entries are on disk, of an append or of the log that a candidate stands for."""
    return isinstance(message, AppendResponse | VoteRequest)
