"""Writes on their way: proposed, sent again until they are heard of, resolved once.

`SessionKeeper` opens the session of one proposer, `OwnSession` numbers and encodes its commands, `PendingWrites` keeps
every command until its outcome is known. A node and a remote client use all three: what differs is only where `send`
leads and where outcomes come from.

Puts that are made in one pass of the event loop are gathered into one command (`put`, `seal`): one number, one
encoding, one entry in the log, one decoding per member and one outcome for all of them.

A write may be sent any number of times, to any leader: its session makes it apply once (see `sessions`). What its
caller gets follows from what is known at the end:

* the outcome, from the member's own apply, or
* `NoLeader` (`NotApplied`) if the deadline passed and it was never handed to anybody, or
* `WriteTimeout` (`MaybeApplied`) if it was.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from pyraftkv import codec, errors
from pyraftkv.futures import shared
from pyraftkv.given import seconds
from pyraftkv.protocol import Envelope, MembersCommand
from pyraftkv.sessions import RESULTS_MAX, Outcome, Refusal
from pyraftkv.settings import RulesCommand
from pyraftkv.statemachine import Operate
from pyraftkv.store.commands import LoggedCommand, PutBatch
from pyraftkv.store.values import PutBatchResult, PutResult

PENDING_COUNT_MAX = 65_536
"""Writes under way per node or client; one more is refused as `Overloaded`."""

WINDOW_MAX = RESULTS_MAX // 2
"""How far a session runs ahead of its oldest open write; the members' own bound leaves room for what is under way."""

WAITING_COUNT_MAX = PENDING_COUNT_MAX
"""Writes that wait for room in a session; one more is refused as `Overloaded`."""

PENDING_BYTES_MAX = 128 * 1024 * 1024

BATCH_BYTES_MAX = 256 * 1024
"""Keys and values in one batch of puts; a longer value is alone in its batch."""

TOGETHER_SECONDS = 0.05
"""Puts with the same `timeout=` that are made in one pass of the event loop end within this of each other."""


def deadline_of(now: float, timeout: float) -> float:
    """Return when a wait of ``timeout`` seconds is over. Raises `InvalidRequest` for what is no time to wait."""
    try:
        deadline = now + timeout
    except (TypeError, OverflowError):
        deadline = math.nan
    if not now <= deadline < math.inf:
        seconds(timeout)
        raise errors.InvalidRequest(f"timeout={timeout!r}: no clock gets there")
    return deadline


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
        self._waiters: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        """In turn. Who gives up leaves at once: a full session may stay so for long."""
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
        """Wait for a place, in turn, or for the end; to be taken at once.

        Raises: `Overloaded` at the deadline; at once, when `WAITING_COUNT_MAX` wait.
        """
        if len(self._waiters) >= WAITING_COUNT_MAX:
            raise errors.Overloaded(f"{len(self._waiters)} writes wait for room in this session")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
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
        if waiter.cancelled():
            self._waiters.pop(waiter, None)
        else:
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
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_result(None)
                self._granted += 1
                count -= 1

    def encode(self, command: LoggedCommand | MembersCommand | RulesCommand | Operate) -> tuple[int, bytes]:
        """Number and encode a command: these bytes travel, are logged and are applied, and serve for every retry."""
        sequence = self.next_sequence
        self.next_sequence = sequence + 1
        return sequence, codec.encode_logged(Envelope(self.id, sequence, self.acked_below, command))


class SessionKeeper:
    """The session of one proposer: opened with its first write, and again when the members no longer know it.

    Args:
        register: Opens a session through the log before a deadline, and returns its id. Raises `NoLeader`, `Closed`.
        situation: Says in a few words why none could be opened in time.
    """

    def __init__(self, *, register: Callable[[float], Coroutine[Any, Any, int]], situation: Callable[[], str]) -> None:
        self._register = register
        self._situation = situation
        self._current: OwnSession | None = None
        self._opening: asyncio.Task[None] | None = None

    @property
    def ready(self) -> OwnSession | None:
        """The session, if there is one with room for a write."""
        current = self._current
        return None if current is None or current.is_full else current

    async def with_room(self, deadline: float) -> OwnSession:
        """Wait for a session, and for a place in it that is to be taken at once.

        Raises: `NoLeader`, `Overloaded`, `Closed`.
        """
        while True:
            current = self._current or await self._open(deadline)
            if not current.is_full:
                return current
            await current.room(deadline)
            if current is self._current:
                return current

    async def _open(self, deadline: float) -> OwnSession:
        """Open a session; callers at the same time share the attempt, each to its own deadline."""
        loop = asyncio.get_running_loop()
        while self._current is None:
            if self._opening is None or self._opening.done():
                self._opening = loop.create_task(self._open_once(deadline), name="pyraftkv-session")
                self._opening.add_done_callback(_retrieve)
            try:
                async with asyncio.timeout_at(deadline):
                    await shared(self._opening)
            except TimeoutError:
                message = f"nothing was written: {self._situation()}"
                raise errors.NoLeader(message) from None
            except errors.NoLeader:
                if loop.time() >= deadline:  # else the attempt was another caller's, who had less time
                    raise
        return self._current

    async def _open_once(self, deadline: float) -> None:
        self._current = OwnSession(await self._register(deadline))

    def acknowledge(self, writes: PendingWrites) -> None:
        """Tell the session which outcomes are known here."""
        if self._current is not None:
            self._current.advance(writes.lowest(self._current))

    def expired(self, session_id: int) -> None:
        """The members no longer know a session: the next write opens another, as does who waits for room in it."""
        if self._current is not None and self._current.id == session_id:
            self.forget()

    def forget(self) -> None:
        """The session is of no use any more."""
        current, self._current = self._current, None
        if current is not None:
            current.abandon()

    async def close(self) -> None:
        """Let nobody wait any more, and see the last attempt end: what it waits for must have failed before."""
        self.forget()
        if self._opening is not None:
            await asyncio.wait([self._opening])


def _retrieve(task: asyncio.Task[None]) -> None:
    """Look at the task's exception: everybody who waited for it may have been cancelled."""
    if not task.cancelled():
        task.exception()


Failure = Callable[[bool], errors.PyraftkvError]
"""Makes the error of a write, given whether it may have been applied; a fresh one for every caller."""


class _Pending(ABC):
    """A command that was not heard of yet."""

    __slots__ = ("offers", "payload", "sent_at")

    def __init__(self, payload: bytes, now: float) -> None:
        self.payload = payload
        self.offers = 0
        """How often it was handed to somebody who may have taken it, and did not give it back."""
        self.sent_at = now

    @property
    @abstractmethod
    def futures(self) -> Sequence[asyncio.Future[Any]]:
        """What the callers wait for."""

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """What it counts towards `PENDING_BYTES_MAX`."""

    @abstractmethod
    def resolve(self, outcome: Outcome) -> None:
        """Tell the callers what it came to."""

    @abstractmethod
    def expire(self, now: float) -> bool:
        """Fail the callers whose deadline has passed; return whether nobody waits any more."""

    def fail(self, failure: Failure) -> None:
        """Fail everybody who still waits."""
        for future in self.futures:
            if not future.done():
                future.set_exception(failure(self.offers > 0))


class PendingWrite(_Pending):
    """A command with a caller of its own."""

    __slots__ = ("deadline", "future")

    def __init__(self, payload: bytes, deadline: float, now: float, future: asyncio.Future[Outcome]) -> None:
        super().__init__(payload, now)
        self.deadline = deadline
        self.future = future

    @property
    def futures(self) -> Sequence[asyncio.Future[Any]]:
        return (self.future,)

    @property
    def size_bytes(self) -> int:
        return len(self.payload)

    def resolve(self, outcome: Outcome) -> None:
        future = self.future
        if future.done():
            return
        if type(outcome) is Refusal:
            future.set_exception(outcome.error())
        else:
            future.set_result(outcome)

    def expire(self, now: float) -> bool:
        if now >= self.deadline:
            self.fail(timed_out)
        return self.future.done()


class PendingPuts(_Pending):
    """Puts that are one command, with a caller each. It has no payload before it is sealed.

    They have one deadline, the latest of theirs, at most `TOGETHER_SECONDS` after the first put's: those of puts made
    together differ by a pass of the event loop.

    1. A put with a second to live would stand in a batch with one that has ten. Its caller gives it up and puts another
       value, while the batch is offered again for the sake of the other: the value given up would come last.
    2. So puts that do not end together do not travel together, and a batch that is given up is given up whole.
    """

    __slots__ = ("deadline", "first_deadline", "future_list", "items", "items_bytes", "session")

    def __init__(self, session: OwnSession, deadline: float, now: float) -> None:
        super().__init__(b"", now)
        self.session = session
        self.first_deadline = self.deadline = deadline
        self.items: list[bytes] = []
        self.items_bytes = 0
        self.future_list: list[asyncio.Future[PutResult]] = []

    @property
    def futures(self) -> Sequence[asyncio.Future[Any]]:
        return self.future_list

    @property
    def size_bytes(self) -> int:
        return self.items_bytes

    def takes(self, session: OwnSession, size_bytes: int, deadline: float) -> bool:
        """Whether one more put of so many bytes fits in."""
        return (
            session is self.session
            and self.first_deadline <= deadline <= self.first_deadline + TOGETHER_SECONDS
            and len(self.future_list) < codec.PUT_BATCH_MAX
            and self.items_bytes + size_bytes <= BATCH_BYTES_MAX
        )

    def add(self, key: bytes, value: bytes, deadline: float, future: asyncio.Future[PutResult]) -> None:
        """Take one more put."""
        self.items += (key, value)
        self.items_bytes += len(key) + len(value)
        self.future_list.append(future)
        self.deadline = max(self.deadline, deadline)

    def resolve(self, outcome: Outcome) -> None:
        if type(outcome) is Refusal:
            self.fail(lambda _: outcome.error())
            return
        if type(outcome) is not PutBatchResult or outcome.count != len(self.future_list):
            # A member that answers a client, or somebody under our number, says so: nobody is to wait for ever.
            self.fail(lambda _: errors.MaybeApplied(f"{len(self.future_list)} puts were answered with {outcome}"))
            return
        revision = outcome.revision - outcome.count
        for future in self.future_list:
            revision += 1
            if not future.done():  # `fulfil` written out: once per put
                future.set_result(PutResult(revision))

    def expire(self, now: float) -> bool:
        if now >= self.deadline:
            self.fail(timed_out)
        return all(future.done() for future in self.future_list)


class PendingWrites:
    """Every write under way, by session and sequence.

    Invariant: a future here is resolved exactly once, and leaves the table as it is resolved.

    Args:
        loop: The event loop of all callers.
        send: Offers a command (session, sequence, payload) to whom it concerns; returns whether it was taken.
        gather: Told when the first put of a batch has come: `seal` is to be called soon.
        expired: Told of a session that the members no longer know.
        retry_seconds: After how long a command is offered again.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        send: Callable[[int, int, bytes], bool],
        gather: Callable[[], object],
        expired: Callable[[int], object],
        retry_seconds: float,
    ) -> None:
        self._loop = loop
        self._send = send
        self._gather = gather
        self._expired = expired
        self._retry_seconds = retry_seconds
        self._sessions: dict[int, dict[int, _Pending]] = {}
        self._gathering: PendingPuts | None = None
        self._count = 0
        self._bytes = 0
        self._closed: Failure | None = None

    def __len__(self) -> int:
        return self._count

    def put(self, session: OwnSession, key: bytes, value: bytes, deadline: float) -> asyncio.Future[PutResult]:
        """Add a put to the batch that leaves with the next `seal`. The hot path of every proposer.

        Raises: `Overloaded`; what `fail_all` was given, after it.
        """
        puts = self._gathering
        size_bytes = len(key) + len(value)
        if puts is not None and not puts.takes(session, size_bytes, deadline):
            self.seal()
            puts = None
        self._check_room()
        if puts is None:
            puts = self._gathering = PendingPuts(session, deadline, self._loop.time())
            self._gather()
        future: asyncio.Future[PutResult] = self._loop.create_future()
        puts.add(key, value, deadline, future)
        self._count += 1
        self._bytes += size_bytes
        return future

    def seal(self) -> None:
        """Send the puts gathered so far. Call it before any other write: writes leave in the order of the calls."""
        puts = self._gathering
        if puts is not None:
            sequence, puts.payload = puts.session.encode(PutBatch(puts.items))
            self._gathering = None
            self._sessions.setdefault(puts.session.id, {})[sequence] = puts
            puts.offers = int(self._send(puts.session.id, sequence, puts.payload))

    def submit(self, session: int, sequence: int, payload: bytes, deadline: float) -> asyncio.Future[Outcome]:
        """Send a write and return the future of its outcome. Submitting it again returns the same future.

        Raises: `InvalidRequest` when other bytes are under way under this number; `Overloaded` when
        `PENDING_COUNT_MAX` or `PENDING_BYTES_MAX` is reached; what `fail_all` was given, after it.
        """
        table = self._sessions.get(session)
        if table is None:
            table = self._sessions[session] = {}
        known = table.get(sequence)
        if known is not None:
            if not isinstance(known, PendingWrite) or known.payload != payload:
                raise errors.InvalidRequest("another command is under way under this session and sequence number")
            if known.future.cancelled():
                known.future = self._loop.create_future()
                known.deadline = deadline
            return known.future
        self._check_room()
        write = PendingWrite(payload, deadline, self._loop.time(), self._loop.create_future())
        table[sequence] = write
        self._count += 1
        self._bytes += len(payload)
        write.offers = int(self._send(session, sequence, payload))
        return write.future

    def _check_room(self) -> None:
        if self._closed is not None:
            # The session was opened just before the end: nobody would ever resolve the future.
            raise self._closed(False)
        if self._count >= PENDING_COUNT_MAX or self._bytes >= PENDING_BYTES_MAX:
            raise errors.Overloaded(f"{self._count} writes ({self._bytes} bytes) are under way already")

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
        self._left(write)
        if type(outcome) is Refusal and outcome.name == errors.SessionExpired.__name__:
            self._expired(session)
        write.resolve(outcome)
        return True

    def _left(self, write: _Pending) -> None:
        self._count -= len(write.futures)
        self._bytes -= write.size_bytes

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
                if write.expire(now):
                    del table[sequence]
                    self._left(write)
                elif not write.offers or now - write.sent_at >= self._retry_seconds:
                    self._offer(session, sequence, write, now)

    def fail_all(self, failure: Failure) -> None:
        """Fail every write, and those to come: the node or client is going away."""
        self._closed = failure
        self.drop_all(failure)

    def drop_all(self, failure: Failure) -> None:
        """Fail every write: they are of no use where `send` leads from now on."""
        for write in self._all():
            write.fail(failure)
        self._gathering = None
        self._sessions.clear()
        self._count = self._bytes = 0

    def under_way(self) -> list[tuple[int, int]]:
        """Return (session, sequence) of everything under way."""
        return [(session, sequence) for session, table in self._sessions.items() for sequence in table]

    def futures(self) -> list[asyncio.Future[Outcome]]:
        """Return the futures of everything under way."""
        return [future for write in self._all() for future in write.futures]

    def _all(self) -> list[_Pending]:
        writes = [write for table in self._sessions.values() for write in table.values()]
        return writes if self._gathering is None else [*writes, self._gathering]

    def _offer(self, session: int, sequence: int, write: _Pending, now: float) -> None:
        is_taken = self._send(session, sequence, write.payload)
        write.offers += is_taken
        write.sent_at = now if is_taken else -math.inf  # Not taken again: due at the next scan, whoever took it before.


def timed_out(sent: bool) -> errors.PyraftkvError:  # noqa: FBT001  (a `Failure`)
    """Return the error of a write whose deadline passed."""
    if sent:
        return errors.WriteTimeout("the deadline passed after the write was proposed; it may still be applied")
    return errors.NoLeader("no leader took the write before its deadline")
