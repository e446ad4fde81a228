"""Writes on their way: proposed, sent again until they are heard of, resolved once.

`OwnSession` numbers and encodes the commands of one proposer; `PendingWrites` keeps every one until its outcome is
known. A node and a remote client use both: what differs is only where `send` leads and where outcomes come from.

A write may be sent any number of times, to any leader: its session makes it apply once (see `sessions`). What its
caller gets follows from what is known at the end:

* the outcome, from the member's own apply, or
* `NoLeader` (`NotApplied`) if the deadline passed and it was never handed to anybody, or
* `WriteTimeout` (`MaybeApplied`) if it was.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from pyraftkv import codec, errors
from pyraftkv.protocol import Envelope
from pyraftkv.sessions import RESULTS_MAX, Outcome, Refusal
from pyraftkv.store.commands import Command, PutKey

PENDING_COUNT_MAX = 65_536
"""Writes under way per node or client; one more is refused as `Overloaded`."""

WINDOW_MAX = RESULTS_MAX // 2
"""How far a session runs ahead of its oldest open write; the members' own bound leaves room for what is under way."""

PENDING_BYTES_MAX = 128 * 1024 * 1024


class OwnSession:
    """The session of one proposer: its id, the next sequence number, and which outcomes it has.

    It never runs further ahead of its oldest open write than members remember outcomes for (`WINDOW_MAX`): a write that
    was lost and is sent again after thousands of later ones would find itself forgotten, and end as `SessionExpired`
    although nothing ever happened to it. Whoever would go further waits with `room`.
    """

    __slots__ = ("_granted", "_waiters", "acked_below", "id", "next_sequence")

    def __init__(self, session_id: int) -> None:
        self.id = session_id
        self.next_sequence = 1
        self.acked_below = 1
        """Every outcome below this is known here; told to the members with each command."""
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._granted = 0
        """Places given to waiters that have not run since."""

    @property
    def is_full(self) -> bool:
        """Whether the next write has to wait: for the oldest one, or behind others that wait."""
        return bool(self._waiters) or self._places <= 0

    @property
    def _places(self) -> int:
        return WINDOW_MAX - (self.next_sequence - self.acked_below) - self._granted

    async def room(self, deadline: float) -> None:
        """Wait for a place, in turn, or for the end; to be taken at once. Raises `Overloaded` at the deadline."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except TimeoutError:
            self._pass_on(waiter)
            raise errors.Overloaded(f"{WINDOW_MAX} writes of this session are open for too long") from None
        except asyncio.CancelledError:
            self._pass_on(waiter)
            raise
        self._granted -= 1

    def _pass_on(self, waiter: asyncio.Future[None]) -> None:
        """Who waited is gone: if it had just been given a place, that is the next one's."""
        if not waiter.cancelled():
            self._granted -= 1
            self._release(self._places)

    def advance(self, acked_below: int) -> None:
        """Every outcome below ``acked_below`` is known here: let as many go on as there is room for."""
        self.acked_below = acked_below
        if self._waiters:
            self._release(self._places)

    def abandon(self) -> None:
        """The session ends: nobody has to wait for it any more."""
        self._release(len(self._waiters))

    def _release(self, count: int) -> None:
        while count > 0 and self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._granted += 1
                count -= 1

    def encode(self, command: Command) -> tuple[int, bytes]:
        """Number and encode a command: these bytes travel, are logged and are applied, and serve for every retry."""
        sequence = self.next_sequence
        self.next_sequence = sequence + 1
        if type(command) is PutKey:  # Without an envelope of its own: a third of the cost.
            return sequence, codec.encode_put(command, session=self.id, sequence=sequence, acked_below=self.acked_below)
        return sequence, codec.encode_logged(Envelope(self.id, sequence, self.acked_below, command))


class PendingWrite:
    """One write that was not heard of yet."""

    __slots__ = ("deadline", "future", "offers", "payload", "sent_at")

    def __init__(self, payload: bytes, deadline: float, now: float, future: asyncio.Future[Outcome]) -> None:
        self.payload = payload
        self.deadline = deadline
        self.future = future
        self.offers = 0
        """How often it was handed to somebody who may have taken it, and did not give it back."""
        self.sent_at = now


class PendingWrites:
    """Every write under way, by session and sequence.

    Invariant: a future here is resolved exactly once, and leaves the table as it is resolved.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, send: Callable[[int, int, bytes], bool], retry_seconds: float
    ) -> None:
        self._loop = loop
        self._send = send
        self._retry_seconds = retry_seconds
        self._sessions: dict[int, dict[int, PendingWrite]] = {}
        self._count = 0
        self._bytes = 0
        self._closed: Callable[[bool], errors.PyraftkvError] | None = None

    def __len__(self) -> int:
        return self._count

    def submit(self, session: int, sequence: int, payload: bytes, deadline: float) -> asyncio.Future[Outcome]:
        """Send a write and return the future of its outcome. Submitting it again returns the same future.

        Raises: `InvalidRequest` when other bytes are under way under this number; `Overloaded` when
        `PENDING_COUNT_MAX` or `PENDING_BYTES_MAX` is reached; what `fail_all` was given, after it.
        """
        if self._closed is not None:
            # Its session was opened just before the end: nobody would ever resolve the future.
            raise self._closed(False)
        table = self._sessions.get(session)
        if table is None:
            table = self._sessions[session] = {}
        known = table.get(sequence)
        if known is not None:
            if known.payload != payload:
                raise errors.InvalidRequest("another command is under way under this session and sequence number")
            if known.future.cancelled():
                known.future = self._loop.create_future()
                known.deadline = deadline
            return known.future
        if self._count >= PENDING_COUNT_MAX or self._bytes >= PENDING_BYTES_MAX:
            raise errors.Overloaded(f"{self._count} writes ({self._bytes} bytes) are under way already")
        write = PendingWrite(payload, deadline, self._loop.time(), self._loop.create_future())
        table[sequence] = write
        self._count += 1
        self._bytes += len(payload)
        if self._send(session, sequence, payload):
            write.offers = 1
        return write.future

    def resolve(self, session: int, sequence: int, outcome: Outcome) -> bool:
        """Give a write its outcome; False when nobody here waits for it.

        The outcome is not compared with the bytes that wait: only the session's owner knows its id, which no other
        cluster uses either (`sessions.session_id_of`), and it numbers no two commands alike.
        """
        table = self._sessions.get(session)
        if table is None:
            return False
        write = table.pop(sequence, None)
        if write is None:
            return False
        self._count -= 1
        self._bytes -= len(write.payload)
        future = write.future
        if not future.done():
            if type(outcome) is Refusal:
                future.set_exception(outcome.error())
            else:
                future.set_result(outcome)
        return True

    def lowest(self, own: OwnSession) -> int:
        """Return the lowest sequence of ``own`` that is still open. Amortised O(1) per write."""
        table = self._sessions.get(own.id, {})
        low = own.acked_below
        while low < own.next_sequence and low not in table:
            low += 1
        return low

    def returned(self, payloads: list[bytes]) -> None:
        """Take back writes that nobody took (no leader, or its queue is full); `resend` or `scan` offers them again.

        O(writes under way): this is rare.
        """
        unsent = {id(payload) for payload in payloads}
        for table in self._sessions.values():
            for write in table.values():
                if id(write.payload) in unsent:
                    write.offers -= 1

    def declined(self, session: int, sequence: int) -> None:
        """Somebody to whom the write was sent says that it did not take it."""
        write = self._sessions.get(session, {}).get(sequence)
        if write is not None:
            write.offers -= 1

    def resend(self) -> None:
        """Offer every write again: there is a new leader, or a new connection."""
        now = self._loop.time()
        for session, table in self._sessions.items():
            for sequence, write in table.items():
                self._offer(session, sequence, write, now)

    def scan(self) -> None:
        """Give up writes past their deadline, and send again those not heard of for a while. Call every 100 ms."""
        now = self._loop.time()
        for session in list(self._sessions):
            table = self._sessions[session]
            if not table:
                del self._sessions[session]
                continue
            for sequence, write in list(table.items()):
                if now >= write.deadline or write.future.cancelled():
                    self._give_up(session, sequence, write)
                elif not write.offers or now - write.sent_at >= self._retry_seconds:
                    self._offer(session, sequence, write, now)

    def fail_all(self, error: Callable[[bool], errors.PyraftkvError]) -> None:
        """Fail every write with ``error(may_be_applied)``, and those to come: the node or client is going away."""
        self._closed = error
        self.drop_all(error)

    def drop_all(self, error: Callable[[bool], errors.PyraftkvError]) -> None:
        """Fail every write with ``error(may_be_applied)``: they are of no use where `send` leads from now on."""
        for table in self._sessions.values():
            for write in table.values():
                if not write.future.done():
                    write.future.set_exception(error(write.offers > 0))
        self._sessions.clear()
        self._count = self._bytes = 0

    def under_way(self) -> list[tuple[int, int]]:
        """Return (session, sequence) of everything under way."""
        return [(session, sequence) for session, table in self._sessions.items() for sequence in table]

    def futures(self) -> list[asyncio.Future[Outcome]]:
        """Return the futures of everything under way."""
        return [write.future for table in self._sessions.values() for write in table.values()]

    def _offer(self, session: int, sequence: int, write: PendingWrite, now: float) -> None:
        write.sent_at = now
        if self._send(session, sequence, write.payload):
            write.offers += 1

    def _give_up(self, session: int, sequence: int, write: PendingWrite) -> None:
        del self._sessions[session][sequence]
        self._count -= 1
        self._bytes -= len(write.payload)
        if not write.future.done():
            write.future.set_exception(timed_out(sent=write.offers > 0))


def timed_out(*, sent: bool) -> errors.PyraftkvError:
    """Return the error of a write whose deadline passed."""
    if sent:
        return errors.WriteTimeout("the deadline passed after the write was proposed; it may still be applied")
    return errors.NoLeader("no leader took the write before its deadline")
