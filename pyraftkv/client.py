"""`Client`: the `KV` protocol for programs that are not members, over one connection to whichever member answers.

A client keeps a session of its own in the cluster. When its connection breaks it dials the next member and sends
again what was under way, the same bytes under the same session, so each write applies once although it was sent
twice. Reads are asked again; watches go on after the last revision that they delivered.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import fields
from functools import partial
from itertools import islice
from typing import Any, Self

from pyraftkv import codec, errors, given
from pyraftkv.client_answers import (
    DECLINED,
    LEAVE_MEMBER,
    RETRY_ELSEWHERE,
    closed_error,
    replaced_error,
)
from pyraftkv.client_asks import Asks, frame_of
from pyraftkv.client_watch import ClientWatch
from pyraftkv.engine import NOT_STARTED, Engine, Home
from pyraftkv.kv import Consistency, PeerStatus, Status
from pyraftkv.protocol import (
    Answer,
    Call,
    CancelCall,
    CompactionCall,
    DiffCall,
    HashCall,
    Hello,
    LeaseCall,
    MachineCall,
    MembersCall,
    MembersCommand,
    MembersResult,
    MembersUpdate,
    OpenSessionCall,
    ReadCall,
    Reply,
    RulesCall,
    SnapshotCall,
    SnapshotPart,
    StatusCall,
    TransferCall,
    VersionsCall,
    WatchCall,
    WatchUpdate,
    WriteCall,
)
from pyraftkv.roster import MEMBERS_MAX, NAME_CHARACTERS_MAX
from pyraftkv.sessions import Outcome, Refusal
from pyraftkv.settings import RulesCommand, RulesResult
from pyraftkv.statemachine import MachineQuery, Operate, Operated
from pyraftkv.store import Limits
from pyraftkv.store.commands import Command, LeaseQuery, LookQuery, RangeQuery, VersionsQuery
from pyraftkv.store.validate import validate
from pyraftkv.store.values import (
    DiffResult,
    KvHash,
    LeaseAnswer,
    LeaseInfo,
    LeaseList,
    LookResult,
    PutResult,
    RangeResult,
    Result,
    VersionsResult,
)
from pyraftkv.transport.base import Connection, Dialer
from pyraftkv.transport.dial import in_words
from pyraftkv.writes import PendingWrites, SessionKeeper, deadline_of

logger = logging.getLogger("pyraftkv.client")

HOUSEKEEPING_SECONDS = 0.1
RETRY_SECONDS = 2.0
"""A call not answered for this long is sent again, under the same id or session."""

SEND_QUEUE_BYTES_MAX = 4 * 1024 * 1024
"""Writes wait here, not in the connection, while that has more than this to send."""

DIAL_SECONDS = 3.0
"""How long one member gets to answer a dial."""

SILENCE_SECONDS_MAX = 1.5
"""A member that was asked something and says nothing for so long is asked how it is; after as long again it is left.

A process that hangs keeps its connections: the system acknowledges what nobody will ever read.
"""

BACKOFF_SECONDS_MIN = 0.02
BACKOFF_SECONDS_MAX = 1.0
"""The pause after every member was tried in vain, doubling from the first to the second, with jitter."""

LIMITS = Limits()
"""The bounds of one request, checked before it is sent."""

WRITES_SENT_MAX = 2048
"""Writes under way on one connection; further ones wait here. (A member takes 4096 calls.)"""

WATCHES_AGAIN_MAX = 64
"""Watches that found no room at a member and are asked for again at the same time; the others later."""


class Client(Engine):
    """A connection to a cluster that outlives its members; an asynchronous context manager.

    Args:
        addresses: Members to try, in this order at first and in turn ever after, and with them those that a member
            names.
        dialer: How to reach them.
        name: What the members call this client in their logs.
        timeout: The deadline in seconds of a call that names none.
        rng: The source of back-off jitter.
        discover: Whether to go to members that only another member has named.

    Raises:
        ConfigurationError: No address, or a timeout that cannot be told to a member.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        dialer: Dialer,
        name: str = "client",
        timeout: float = 5.0,
        rng: random.Random | None = None,
        discover: bool = True,
    ) -> None:
        if not addresses:
            raise errors.ConfigurationError("a client needs one address at least")
        if not isinstance(timeout, int | float) or not 0.0 <= timeout < math.inf:
            raise errors.ConfigurationError(f"timeout= is a finite number of seconds, not {timeout}")
        self._addresses = list(addresses)
        self._discovers = discover
        self._named: list[str] = []
        """Where members are reached that were not among them, as one said last."""
        self._dialer = dialer
        self._hello = Hello(0, 0, name, 0, 0, "")
        self._timeout = timeout
        self._rng = rng or random.Random()
        self._connection: Connection | None = None
        self._lost = asyncio.Event()
        self._has_answered = False
        """Whether the member said anything since it was dialled. Who hangs up at once is dialled ever more slowly."""
        self._heard_at = 0.0
        self._is_probed = False
        self._probe_id = 0
        self._next_id = 1
        self._asks = Asks(send=self._send, leave=self._leave)
        self._write_ids: dict[int, tuple[int, int]] = {}
        self._watches: dict[int, ClientWatch] = {}
        self._cluster_id = 0
        """Of the cluster that answered last; 0 before."""
        self._sessions = SessionKeeper(register=self._register, situation=lambda: self._situation)
        self._tasks: list[asyncio.Task[None]] = []
        self._writes: PendingWrites | None = None
        self._last_refusal = ""

    def __repr__(self) -> str:
        peer = self._connection.peer.name if self._connection is not None else "nobody"
        return f"<Client connected to {peer}>"

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def start(self) -> None:
        """Begin to connect, in the background. Calls wait for the connection as long as their deadline allows."""
        self._loop = loop = asyncio.get_running_loop()
        self._home = Home()
        self._writes = writes = PendingWrites(
            loop,
            send=self._send_write,
            gather=lambda: loop.call_soon(writes.seal),
            expired=self._sessions.expired,
            retry_seconds=RETRY_SECONDS,
        )
        for work in (self._stay_connected(), self._housekeeping()):
            task = loop.create_task(work, name="pyraftkv-client")
            task.add_done_callback(self._loop_ended)
            self._tasks.append(task)

    async def close(self) -> None:
        """Disconnect; calls under way fail. Idempotent. Raises `WrongLoop`."""
        if not all(task.done() for task in self._tasks):
            self._home.check()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.remove_done_callback(self._loop_ended)
            task.cancel()
        self._end()
        if tasks:
            await asyncio.wait(tasks)
        await self._sessions.close()

    def _end(self) -> None:
        """Fail everything under way."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._writes is not None:
            self._writes.fail_all(closed_error)
        self._sessions.forget()
        self._asks.close()
        for watch in list(self._watches.values()):
            watch.end(errors.Closed("the client was closed"))
        self._watches.clear()

    @property
    def _situation(self) -> str:
        """Say in a few words why nobody answers."""
        if self._connection is not None:
            return f"member {self._connection.peer.name!r} answers, but has no leader that it could ask"
        return f"no member can be reached ({self._last_refusal})" if self._last_refusal else "no member was reached yet"

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        """A loop never ends by itself: a bug. Nobody may wait for what will not come."""
        error = None if task.cancelled() else task.exception()
        logger.critical("the client stops: %s ended", task.get_name(), exc_info=error)
        tasks, self._tasks = self._tasks, []
        for other in tasks:
            other.remove_done_callback(self._loop_ended)
            other.cancel()
        self._end()

    # --- The KV protocol -------------------------------------------------------------------------------------------

    async def write(self, command: Command, timeout: float | None) -> Result:
        """Apply a command, exactly once. Raises `NotApplied`, `MaybeApplied`."""
        self._running()
        validate(command, LIMITS)
        return await self._submit(command, timeout)  # type: ignore[return-value]

    async def _submit(
        self, command: Command | MembersCommand | RulesCommand | Operate, timeout: float | None
    ) -> Outcome:
        deadline = self._deadline(timeout)
        session = await self._sessions.with_room(deadline)
        writes = self._running()
        writes.seal()
        sequence, payload = session.encode(command)
        return await writes.submit(session.id, sequence, payload, deadline)

    def write_put(self, key: bytes, value: bytes, timeout: float | None) -> Awaitable[PutResult]:
        """Apply a put without options, exactly once. Raises `NotApplied`, `MaybeApplied`."""
        writes = self._running()
        deadline = self._deadline(timeout)
        session = self._sessions.ready
        if session is None:
            return self._write_put_later(key, value, deadline)
        return writes.put(session, key, value, deadline)

    async def _write_put_later(self, key: bytes, value: bytes, deadline: float) -> PutResult:
        session = await self._sessions.with_room(deadline)
        return await self._running().put(session, key, value, deadline)

    async def read(
        self, query: RangeQuery, consistency: Consistency, timeout: float | None, *, at_least: int = 0
    ) -> RangeResult:
        """Answer a query. Raises `Compacted`, `FutureRevision`, `InvalidRequest`, `Unavailable`."""
        seconds = self._seconds(timeout)
        result = await self._ask(lambda id_: ReadCall(id_, query, consistency, seconds, at_least), timeout)
        assert isinstance(result, RangeResult)
        return result

    async def look(self, query: LookQuery, consistency: Consistency, timeout: float | None) -> LookResult:
        """Answer a query of the past. Raises `Compacted`, `FutureRevision`, `InvalidRequest`, `Unavailable`."""
        seconds = self._seconds(timeout)
        if isinstance(query, VersionsQuery):
            result = await self._ask(lambda id_: VersionsCall(id_, query, consistency, seconds), timeout)
        else:
            result = await self._ask(lambda id_: DiffCall(id_, query, consistency, seconds), timeout)
        assert isinstance(result, VersionsResult | DiffResult)
        return result

    def draw_lease_id(self) -> int:
        """Return an id for a new lease: above 0, at random."""
        return self._rng.getrandbits(62) + 1

    async def ask_leases(self, query: LeaseQuery, timeout: float | None) -> LeaseAnswer:
        """Renew a lease, or ask about leases. Raises `Unavailable`."""
        seconds = self._seconds(timeout)
        result = await self._ask(lambda id_: LeaseCall(id_, query, seconds), timeout)
        assert isinstance(result, LeaseInfo | LeaseList)
        return result

    def watch_range(
        self, key: bytes, end: bytes, *, start_revision: int, prev_kv: bool, no_put: bool, no_delete: bool
    ) -> ClientWatch:
        """Start a watch; it goes on through reconnections."""
        self._running()
        watch = ClientWatch(self, WatchCall(0, key, end, start_revision, prev_kv, no_put, no_delete))
        self.subscribe(watch)
        return watch

    async def change_members(self, command: MembersCommand, timeout: float | None) -> MembersResult:
        """Do a command on the members, exactly once. Raises `NotApplied`, `MaybeApplied`."""
        self._running()
        result = await self._submit(command, timeout)
        assert isinstance(result, MembersResult)
        return result

    async def operate(self, command: Operate, timeout: float | None) -> Operated:
        """Apply an operation to a machine, exactly once. Raises `OperationRefused`, `NotApplied`, `MaybeApplied`."""
        self._running()
        result = await self._submit(command, timeout)
        assert isinstance(result, Operated)
        return result

    async def ask_machine(self, query: MachineQuery, consistency: Consistency, timeout: float | None) -> Operated:
        """Ask a machine. Raises `InvalidRequest`, `OperationRefused`, `Unavailable`."""
        seconds = self._seconds(timeout)
        result = await self._ask(lambda id_: MachineCall(id_, query, consistency, seconds), timeout)
        assert isinstance(result, Operated)
        return result

    async def member_table(self, timeout: float | None) -> MembersResult:
        """Return who the members are, as of now. Raises `Unavailable`."""
        seconds = self._seconds(timeout)
        result = await self._ask(lambda id_: MembersCall(id_, seconds), timeout)
        assert isinstance(result, MembersResult)
        return result

    async def change_rules(self, command: RulesCommand, timeout: float | None) -> RulesResult:
        """Do a command on settings and alarms, exactly once. Raises `NotApplied`, `MaybeApplied`."""
        self._running()
        result = await self._submit(command, timeout)
        assert isinstance(result, RulesResult)
        return result

    async def rules_table(self, timeout: float | None) -> RulesResult:
        """Return settings and alarms, as of now. Raises `Unavailable`."""
        seconds = self._seconds(timeout)
        result = await self._ask(lambda id_: RulesCall(id_, seconds), timeout)
        assert isinstance(result, RulesResult)
        return result

    async def space_won_back(self, revision: int, timeout: float | None) -> None:
        """Wait until the member that answers has removed what was compacted at ``revision``. Raises `Unavailable`."""
        seconds = self._seconds(timeout)
        await self._ask(lambda id_: CompactionCall(id_, revision, seconds), timeout)

    async def status(self, *, timeout: float | None = None) -> Status:
        """Return the status of the member that this client is connected to."""
        table = await self._ask(StatusCall, timeout)
        known = {field.name for field in fields(Status)}
        peer_known = {field.name for field in fields(PeerStatus)}
        peers = [PeerStatus(**{k: v for k, v in row.items() if k in peer_known}) for row in table.pop("peers", [])]
        return Status(**{k: v for k, v in table.items() if k in known}, peers=peers)

    async def hash_kv(self, revision: int = 0, *, timeout: float | None = None) -> KvHash:
        """Return the hash of the history of the member that this client is connected to. See `Node.hash_kv`."""
        return KvHash(**await self._ask(lambda id_: HashCall(id_, revision), timeout))

    async def transfer_leadership(self, to: str | None = None, *, timeout: float | None = None) -> str:
        """Let the member of that name lead, or the best of the others; return who leads now. See `Node`.

        Raises: `MemberNotFound`, `InvalidRequest`, `LeadershipNotTransferred`, `Unavailable`.
        """
        if to is not None and (not to or len(to) > NAME_CHARACTERS_MAX):
            raise errors.MemberNotFound(f"there is no member {to!r:.{NAME_CHARACTERS_MAX}}")
        seconds = self._seconds(timeout)
        table = await self._ask(lambda id_: TransferCall(id_, "" if to is None else to, seconds), timeout)
        leader: str = table["leader"]
        return leader

    async def snapshot_parts(self, consistency: Consistency, timeout: float | None) -> AsyncGenerator[SnapshotPart]:
        """Yield the parts of a snapshot, all from one member. Raises `Unavailable` if the connection to that breaks."""
        seconds = self._seconds(timeout)
        snapshot, number, is_last = self._id(), 0, False
        try:
            while not is_last:
                call = partial(SnapshotCall, snapshot=snapshot, number=number, consistency=consistency, timeout=seconds)
                part = await self._ask(call, timeout)
                assert isinstance(part, SnapshotPart)
                number, is_last = number + 1, bool(part.sha256)
                yield part
        finally:
            if not is_last:
                self._send(codec.encode_call(CancelCall(snapshot)))

    # --- Calls -----------------------------------------------------------------------------------------------------

    def _running(self) -> PendingWrites:
        if self._writes is None or not self._tasks:
            raise errors.Closed(f"the client {'is closed' if self._writes is not None else NOT_STARTED}")
        self._home.check()
        return self._writes

    def _seconds(self, timeout: float | None) -> float:
        wait = given.seconds(timeout)
        return float(self._timeout if wait is None else wait)

    def _deadline(self, timeout: float | None) -> float:
        # By the loop at hand: to ask asyncio for the running one costs a system call on Python 3.11.
        return deadline_of(self._loop.time(), self._timeout if timeout is None else timeout)

    def _id(self) -> int:
        self._next_id += 1
        return self._next_id

    async def _ask(self, make: Callable[[int], Call], timeout: float | None) -> Any:
        """Send a call that may be repeated, and wait for its answer. Raises `ReadTimeout`, and what it came to."""
        self._running()
        return await self._asks.ask(make(self._id()), self._deadline(timeout))

    async def _register(self, deadline: float) -> int:
        try:
            session_id: int = await self._ask(OpenSessionCall, deadline - self._loop.time())
        except (errors.ReadTimeout, errors.MaybeApplied) as error:
            raise errors.NoLeader(f"nothing was written: {error}") from None
        return session_id

    def _send_write(self, session: int, sequence: int, payload: bytes) -> bool:
        connection = self._connection
        if (
            connection is None
            or connection.queued_bytes > SEND_QUEUE_BYTES_MAX
            or len(self._write_ids) >= WRITES_SENT_MAX
        ):
            return False  # It stays pending, and is offered again when the connection has room.
        call_id = self._id()
        self._write_ids[call_id] = (session, sequence)
        return self._send(codec.encode_call(WriteCall(call_id, payload, float(self._timeout))))

    def _send(self, frame: bytes) -> bool:
        """Send if connected; what was not sent goes out upon the next connection."""
        if self._connection is None:
            return False
        self._connection.send(frame)
        return True

    # --- Connection ------------------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        """Dial the members in turn, for ever."""
        address, tries = self._addresses[0], 0
        backoff = BACKOFF_SECONDS_MIN
        while True:
            if await self._connect(address):
                await self._lost.wait()
                if self._has_answered:
                    backoff = BACKOFF_SECONDS_MIN
            known = [*self._addresses, *self._named]
            address = known[(known.index(address) + 1) % len(known)] if address in known else known[0]
            tries += 1
            if tries >= len(known):
                tries = 0
                await asyncio.sleep(backoff * self._rng.uniform(0.5, 1.0))
                backoff = min(2 * backoff, BACKOFF_SECONDS_MAX)

    async def _connect(self, address: str) -> bool:
        """Connect to one member and send everything that is under way; False if it does not answer."""
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                connection = await self._dialer(address, self._hello)
        except (OSError, errors.TransportError) as error:
            refusal = f"{address}: {in_words(error)}"
            if refusal != self._last_refusal:
                logger.info("no answer from %s", refusal)
            self._last_refusal = refusal
            return False
        self._lost.clear()
        self._last_refusal = ""
        self._has_answered = False
        self._connection = connection
        self._heard()
        connection.open(received=self._received, closed=partial(self._disconnected, connection))
        self._belongs_to(connection.peer.cluster_id)
        for watch in list(self._watches.values()):  # First: nothing else may take their room.
            self.subscribe(watch)
        self._write_ids.clear()
        self._running().resend()
        self._asks.connected()
        return True

    def _belongs_to(self, cluster_id: int) -> None:
        """Notice when another cluster answers at the addresses of the last one: it knows nothing of the session."""
        if self._cluster_id and cluster_id and cluster_id != self._cluster_id:
            logger.warning("cluster %x answers in place of %x", cluster_id, self._cluster_id)
            self._sessions.forget()
            self._running().drop_all(replaced_error)
        self._cluster_id = cluster_id or self._cluster_id

    def _disconnected(self, connection: Connection, error: Exception | None) -> None:
        if connection is self._connection:
            logger.info("disconnected: %s", error or "closed")
            self._connection = None
            self._lost.set()

    def _leave(self) -> None:
        """Give up the connection; what is under way goes on with the next member."""
        if self._connection is not None:
            self._connection.close()

    def _heard(self) -> None:
        self._heard_at = self._loop.time()
        self._is_probed = False

    def _leave_if_silent(self, now: float) -> None:
        """Ask a member that says nothing how it is. Leave it if it says nothing still, or hears no quorum."""
        connection = self._connection
        if connection is None or not (self._asks or self._watches or len(self._running())):
            self._heard_at = now
        elif now - self._heard_at >= 2 * SILENCE_SECONDS_MAX and self._is_probed:
            connection.close()
            self._disconnected(connection, TimeoutError("the member says nothing any more"))
        elif now - self._heard_at >= SILENCE_SECONDS_MAX and not self._is_probed:
            self._is_probed = True
            self._probe_id = self._id()
            self._send(codec.encode_call(StatusCall(self._probe_id)))

    def _probe_answered(self, answer: Answer) -> None:
        """Stay with a member that hears a quorum: what it was asked takes its time. Another one may know better."""
        if isinstance(answer.result, dict) and not answer.result.get("has_quorum", True) and self._connection:
            logger.info("%s is cut off from the others", self._connection.peer.name)
            self._leave()

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            self._running().scan()
            self._sessions.acknowledge(self._running())
            now = self._loop.time()
            self._asks.scan(now, lambda: self._situation)
            for watch in list(islice((each for each in self._watches.values() if each.is_due), WATCHES_AGAIN_MAX)):
                self.subscribe(watch)
            self._leave_if_silent(now)

    # --- Replies ---------------------------------------------------------------------------------------------------

    def _received(self, frame: bytes) -> None:
        if self._connection is None:
            return  # What was under way when the client left.
        self._heard()
        self._has_answered = True
        try:
            reply: Reply = codec.decode_reply(frame)
        except errors.FrameError as error:
            logger.warning("a reply cannot be read: %s", error)
            self._connection.close()
            return
        if isinstance(reply, MembersUpdate):
            if self._discovers:
                self._named = [address for address in reply.addresses[:MEMBERS_MAX] if address not in self._addresses]
        elif isinstance(reply, SnapshotPart):
            self._asks.part_arrived(reply)
        elif isinstance(reply, WatchUpdate):
            for watch_id in reply.ids:
                watch = self._watches.get(watch_id)
                if watch is not None:
                    watch.deliver(reply.batch, size_bytes=len(frame))
        else:
            self._answered(reply)

    def _answered(self, answer: Answer) -> None:
        if answer.id == self._probe_id:
            self._probe_answered(answer)
            return
        key = self._write_ids.pop(answer.id, None)
        if key is not None:
            self._write_answered(key, answer)
            return
        if self._asks.answered(answer):
            return
        watch = self._watches.get(answer.id)
        if watch is None or answer.error is None:
            return
        if answer.error[0] in LEAVE_MEMBER:
            self._leave()  # The watch goes on with the next member.
        elif answer.error[0] == "Overloaded":
            watch.is_due = True
        else:
            del self._watches[answer.id]
            watch.end(errors.from_wire(*answer.error))

    def _write_answered(self, key: tuple[int, int], answer: Answer) -> None:
        """Resolve a write; an answer of the member about itself (closing, overloaded) is no outcome: try elsewhere."""
        if answer.error is None:
            assert answer.result is not None
            assert not isinstance(answer.result, dict | VersionsResult | DiffResult | LeaseInfo | LeaseList)
            self._running().resolve(*key, answer.result)
            self._sessions.acknowledge(self._running())
        elif answer.error[0] in RETRY_ELSEWHERE:
            if answer.error[0] in DECLINED:
                self._running().declined(*key)
            if answer.error[0] in LEAVE_MEMBER:
                self._leave()
        else:
            self._running().resolve(*key, Refusal(*answer.error))
            self._sessions.acknowledge(self._running())

    def subscribe(self, watch: ClientWatch) -> None:
        """Ask for a watch from where it stands, under a fresh id: updates for an older one are ignored."""
        if not self._tasks:
            watch.end(errors.Closed("the client was closed"))
            return
        call = watch.next_call(self._id())
        frame = frame_of(call)
        self._watches.pop(watch.id, None)
        watch.is_called(call)
        self._watches[call.id] = watch
        self._send(frame)

    def unsubscribe(self, watch: ClientWatch) -> None:
        """Stop the updates of a watch, for good or until it subscribes again."""
        if self._watches.pop(watch.id, None) is not None:
            self._send(codec.encode_call(CancelCall(watch.id)))
