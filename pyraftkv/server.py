"""The member's side of remote use: answers the calls of connected clients with the member's own `KV` face."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from pyraftkv import codec, errors
from pyraftkv.backup import SnapshotSource
from pyraftkv.kv import Consistency, Status
from pyraftkv.protocol import (
    Answer,
    CancelCall,
    CompactionCall,
    DiffCall,
    HashCall,
    LeaseCall,
    MachineCall,
    MembersCall,
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
    WriteCall,
)
from pyraftkv.server_turns import Turns
from pyraftkv.server_watch import ServedWatch, ServedWatches
from pyraftkv.sessions import Outcome
from pyraftkv.settings import RulesResult
from pyraftkv.statemachine import MachineQuery, Operated
from pyraftkv.store.commands import LeaseQuery, LookQuery, RangeQuery
from pyraftkv.store.values import KvHash, LeaseAnswer, LookResult, RangeResult
from pyraftkv.transport.base import Connection
from pyraftkv.transport.framing import CLIENT_FRAME_BYTES_MAX

logger = logging.getLogger("pyraftkv.server")

CALLS_MAX = 4096
"""Calls under way per connection, and as many watches; one more is refused as `Overloaded`.

1. A program watches for thousands of things. 2. Were watches calls like any other, its client could put nothing any
more, and renew no lease.
"""

SESSIONS_PER_CONNECTION_MAX = 8
"""Sessions that one connection may ask for in its life; one more is refused as `Overloaded`.

A client needs one, and another when that was evicted. Members remember 4096 in all: without this bound, one client
could evict everybody's within a second.
"""

REPLY_QUEUE_BYTES_MAX = 4 * 1024 * 1024
"""What is given to a connection to send; further replies wait here until it has room."""

REPLIES_WAITING_BYTES_MAX = 64 * 1024 * 1024
"""Replies that wait for room on one connection; a client with more is too slow, and is dropped.

What is only read waits for room before it is looked up (see `server_turns`), so that this is for the results of writes.
"""

READS_MAX = 256
"""Calls of one connection that are being looked up at the same time; the others wait for their turn."""

SNAPSHOTS_PER_CONNECTION_MAX = 1
"""Snapshots that one connection is being given; another one waits (`Overloaded`)."""

SNAPSHOT_IDLE_SECONDS = 60.0
"""A client that asks for no further part for this long wants no more: what is pinned holds compaction up."""

OPEN_SESSION_SECONDS = 5.0
"""How long a member tries to open a session for a client."""

CONSISTENCIES: dict[str, Consistency] = {"linearizable": "linearizable", "lease": "lease", "local": "local"}


class Member(Protocol):
    """What the server needs of its node."""

    def write_encoded(self, payload: bytes, timeout: float) -> asyncio.Future[Outcome]:
        """Propose a client's encoded command. Raises `NotApplied` at once when it is not acceptable."""
        ...

    async def open_session(self, timeout: float) -> int:
        """Register a session for a client and return its id."""
        ...

    async def read(
        self,
        query: RangeQuery,
        consistency: Consistency,
        timeout: float | None,
        *,
        at_least: int = 0,
        bytes_max: int | None = None,
    ) -> RangeResult: ...

    async def look(self, query: LookQuery, consistency: Consistency, timeout: float | None) -> LookResult: ...

    async def ask_machine(self, query: MachineQuery, consistency: Consistency, timeout: float | None) -> Operated: ...

    async def ask_leases(self, query: LeaseQuery, timeout: float | None) -> LeaseAnswer: ...

    def open_watch(self, call: WatchCall) -> ServedWatch: ...

    async def member_table(self, timeout: float | None) -> MembersResult: ...

    async def rules_table(self, timeout: float | None) -> RulesResult: ...

    async def space_won_back(self, revision: int, timeout: float | None) -> None: ...

    async def status(self, *, timeout: float | None = None) -> Status: ...

    async def hash_kv(self, revision: int = 0, *, timeout: float | None = None) -> KvHash: ...

    async def transfer_leadership(self, to: str | None = None, *, timeout: float | None = None) -> str: ...

    async def open_snapshot(self, consistency: Consistency, timeout: float | None) -> SnapshotSource:
        """Pin the state for a client that saves it."""
        ...


class ClientPort:
    """Every client connected to this member."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._clients: dict[ClientConnection, None] = {}
        """In the order in which they came, and are closed."""
        self._addresses: list[str] = []

    def __len__(self) -> int:
        return len(self._clients)

    def accept(self, connection: Connection) -> None:
        """Serve a client until either side closes."""
        client = ClientConnection(self._member, connection, closed=self._forget)
        self._clients[client] = None
        client.open()
        client.tell(self._addresses)

    def tell(self, addresses: list[str]) -> None:
        """Tell every client, and those to come, where the members are reached."""
        if addresses != self._addresses:
            self._addresses = addresses
            for client in list(self._clients):
                client.tell(addresses)

    def close(self) -> None:
        """Drop every client. Idempotent."""
        for client in list(self._clients):
            client.close()

    def _forget(self, client: ClientConnection) -> None:
        self._clients.pop(client, None)


class _Saving:
    """A snapshot that a client is being given, and when it is given up."""

    __slots__ = ("idle", "source")

    def __init__(self, source: SnapshotSource, idle: asyncio.TimerHandle) -> None:
        self.source = source
        self.idle = idle

    def close(self) -> None:
        """Let go of the state."""
        self.idle.cancel()
        self.source.close()


class ClientConnection:
    """One client: its calls under way by their id, answered in whatever order they finish."""

    def __init__(self, member: Member, connection: Connection, *, closed: Callable[[ClientConnection], None]) -> None:
        self._member = member
        self._connection = connection
        self._closed = closed
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._watches = ServedWatches(send=self._send, room=self._room, ended=self._refuse, failed=self.close)
        self._snapshots: dict[int, _Saving] = {}
        self._session_count = 0
        """Sessions that were asked for, opened or not."""
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._sending: asyncio.Task[None] | None = None
        self._reading = 0
        self._to_read = Turns(lambda: self._sending is None and self._reading < READS_MAX)
        self._to_answer = Turns(lambda: self._sending is None)

    def open(self) -> None:
        """Begin to serve."""
        self._connection.open(received=self._received, closed=self._lost)

    def tell(self, addresses: list[str]) -> None:
        """Tell this client where the members are reached."""
        if addresses:
            self._reply(MembersUpdate(addresses))

    def close(self) -> None:
        """Drop the connection."""
        self._connection.close()
        self._lost(None)

    def _lost(self, _: Exception | None) -> None:
        calls, self._calls = list(self._calls.values()), {}
        for call in calls:
            _abandon(call)
        for snapshot in list(self._snapshots):
            self._end_snapshot(snapshot)
        if self._sending is not None:
            self._sending.cancel()
        self._watches.close()
        self._waiting.clear()
        self._waiting_bytes = 0
        self._closed(self)

    # --- Calls -----------------------------------------------------------------------------------------------------

    def _received(self, frame: bytes) -> None:
        try:
            call = codec.decode_call(frame)
        except errors.FrameError as error:
            logger.warning("client %r is dropped: %s", self._connection.peer.name, error)
            self.close()
            return
        if isinstance(call, CancelCall):
            self._cancel(call.id)
            return
        count, what = len(self._calls), "calls"
        if isinstance(call, WatchCall):
            count, what = len(self._watches), "watches"
        if call.id in self._calls or call.id in self._watches or count >= CALLS_MAX:
            self._refuse(call.id, errors.Overloaded(f"{count} {what} are under way on this connection"))
            return
        try:
            if isinstance(call, WatchCall):
                self._watches.add(call, self._member.open_watch(call))
                return
            if isinstance(call, WriteCall):
                future = self._member.write_encoded(call.payload, call.timeout)
            else:
                future = self._task(call)
        except errors.PyraftkvError as error:
            self._refuse(call.id, error)
            return
        self._calls[call.id] = future
        done = self._write_done if isinstance(call, WriteCall) else self._done
        future.add_done_callback(partial(done, call.id))

    def _task(
        self,
        call: OpenSessionCall
        | ReadCall
        | VersionsCall
        | DiffCall
        | LeaseCall
        | MachineCall
        | StatusCall
        | MembersCall
        | TransferCall
        | RulesCall
        | CompactionCall
        | HashCall
        | SnapshotCall,
    ) -> asyncio.Task[Any]:
        work: Coroutine[Any, Any, Any]
        if isinstance(call, ReadCall):
            work = self._in_turn(call.id, partial(self._read, call))
        elif isinstance(call, VersionsCall | DiffCall):
            work = self._in_turn(call.id, partial(self._look, call))
        elif isinstance(call, LeaseCall):
            work = self._in_turn(call.id, partial(self._member.ask_leases, call.query, call.timeout))
        elif isinstance(call, MachineCall):
            work = self._in_turn(call.id, partial(self._ask_machine, call))
        elif isinstance(call, StatusCall):
            work = self._status()
        elif isinstance(call, MembersCall):
            work = self._member.member_table(call.timeout)
        elif isinstance(call, RulesCall):
            work = self._member.rules_table(call.timeout)
        elif isinstance(call, CompactionCall):
            work = self._space_won_back(call)
        elif isinstance(call, HashCall):
            work = self._hash(call)
        elif isinstance(call, TransferCall):
            work = self._transfer(call)
        elif isinstance(call, SnapshotCall):
            work = self._snapshot_part(call)
        else:
            work = self._open_session()
        return asyncio.get_running_loop().create_task(work, name=f"pyraftkv-{type(call).__name__}")

    async def _in_turn(self, call_id: int, work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Do a call that only reads, and answer it, each when the client has room."""
        await self._to_read.come()
        self._reading += 1
        try:
            result = await work()
            await self._to_answer.come()
            self._answer(call_id, result)
        finally:
            self._reading -= 1
            self._go_on()

    def _go_on(self) -> None:
        self._to_answer.go_on()
        self._to_read.go_on()

    def _answer(self, call_id: int, result: Any) -> None:
        """Answer the current task's call. Raises `RequestTooLarge`, `InvalidRequest`."""
        frame = codec.encode_reply(Answer(call_id, result=result))
        if len(frame) > CLIENT_FRAME_BYTES_MAX:
            raise _too_large()
        if self._calls.get(call_id) is asyncio.current_task():  # else cancelled
            del self._calls[call_id]
            self._send(frame)

    async def _read(self, call: ReadCall) -> RangeResult:
        consistency = _consistency(call.consistency)
        try:
            result = await self._member.read(
                call.query, consistency, call.timeout, at_least=call.at_least, bytes_max=CLIENT_FRAME_BYTES_MAX
            )
        except errors.RequestTooLarge:
            raise _too_large() from None
        if sum([len(kv.key) + len(kv.value) for kv in result.kvs]) > CLIENT_FRAME_BYTES_MAX:  # sorted, and limited
            raise _too_large()
        return result

    async def _look(self, call: VersionsCall | DiffCall) -> LookResult:
        return await self._member.look(call.query, _consistency(call.consistency), call.timeout)

    async def _ask_machine(self, call: MachineCall) -> Operated:
        return await self._member.ask_machine(call.query, _consistency(call.consistency), call.timeout)

    async def _open_session(self) -> int:
        if self._session_count >= SESSIONS_PER_CONNECTION_MAX:
            raise errors.Overloaded(f"{self._session_count} sessions were asked for on this connection")
        self._session_count += 1
        return await self._member.open_session(OPEN_SESSION_SECONDS)

    async def _status(self) -> dict[str, Any]:
        return dataclasses.asdict(await self._member.status())

    async def _transfer(self, call: TransferCall) -> dict[str, Any]:
        return {"leader": await self._member.transfer_leadership(call.to or None, timeout=call.timeout)}

    async def _hash(self, call: HashCall) -> dict[str, Any]:
        return dataclasses.asdict(await self._member.hash_kv(call.revision))

    async def _space_won_back(self, call: CompactionCall) -> int:
        await self._member.space_won_back(call.revision, call.timeout)
        return call.revision

    async def _snapshot_part(self, call: SnapshotCall) -> SnapshotPart:
        """Return the next part of a snapshot; what is not the next is refused: somebody else's, or one that ended."""
        if call.number == 0 and call.snapshot not in self._snapshots:
            await self._begin_snapshot(call)
        saving = self._snapshots.get(call.snapshot)
        if saving is None or saving.source.next_number != call.number:
            raise errors.Unavailable(
                "this member does not know the snapshot: it ended with its connection, or was idle"
            )
        saving.idle.cancel()
        try:
            part = await saving.source.part(call.id)
        except BaseException:
            self._end_snapshot(call.snapshot)
            raise
        if part.sha256:
            self._end_snapshot(call.snapshot)
        else:
            saving.idle = self._give_up_later(call.snapshot)
        return part

    async def _begin_snapshot(self, call: SnapshotCall) -> None:
        consistency = _consistency(call.consistency)
        if len(self._snapshots) >= SNAPSHOTS_PER_CONNECTION_MAX:
            raise errors.Overloaded("this connection is being given a snapshot already")
        source = await self._member.open_snapshot(consistency, call.timeout)
        if len(self._snapshots) >= SNAPSHOTS_PER_CONNECTION_MAX:
            source.close()
            raise errors.Overloaded("this connection is being given a snapshot already")
        self._snapshots[call.snapshot] = _Saving(source, self._give_up_later(call.snapshot))

    def _give_up_later(self, snapshot: int) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(SNAPSHOT_IDLE_SECONDS, self._end_snapshot, snapshot)

    def _end_snapshot(self, snapshot: int) -> None:
        """Let go of a snapshot that was given, or that nobody wants any more. Idempotent."""
        saving = self._snapshots.pop(snapshot, None)
        if saving is not None:
            saving.close()

    def _done(self, call_id: int, future: asyncio.Future[Any]) -> None:
        """Answer a call that changed nothing."""
        result = self._result(call_id, future)
        if result is not None:
            frame = codec.encode_reply(result if isinstance(result, SnapshotPart) else Answer(call_id, result=result))
            if len(frame) > CLIENT_FRAME_BYTES_MAX:
                self._refuse(call_id, _too_large())
            else:
                self._send(frame)

    def _write_done(self, call_id: int, future: asyncio.Future[Any]) -> None:
        """Answer a write. It has been applied: a result that cannot be told is no reason to say otherwise."""
        result = self._result(call_id, future)
        if result is None:
            return
        try:
            frame = codec.encode_reply(Answer(call_id, result=result))
        except errors.InvalidRequest as error:
            self._refuse(call_id, errors.MaybeApplied(f"the write was applied, but its result cannot be told: {error}"))
            return
        if len(frame) > CLIENT_FRAME_BYTES_MAX:
            text = f"the write was applied, but its result has {len(frame)} bytes, over {CLIENT_FRAME_BYTES_MAX}"
            self._refuse(call_id, errors.MaybeApplied(text))
        else:
            self._send(frame)

    def _result(self, call_id: int, future: asyncio.Future[Any]) -> Any:
        """Return what a call came to; None when it was answered with an error, or nobody waits for it any more."""
        error = None if future.cancelled() else future.exception()
        if self._calls.get(call_id) is not future:
            return None  # Cancelled by its client; another call may have the id by now.
        del self._calls[call_id]
        if future.cancelled():
            return None
        if error is None:
            return future.result()
        if isinstance(error, errors.PyraftkvError):
            self._refuse(call_id, error)
        else:
            logger.error("a client's call failed", exc_info=error)
            self._refuse(call_id, errors.MaybeApplied(f"the member failed: {type(error).__name__}"))
        return None

    def _cancel(self, call_id: int) -> None:
        self._end_snapshot(call_id)
        self._watches.discard(call_id)
        future = self._calls.pop(call_id, None)
        if future is not None:
            _abandon(future)

    # --- Replies ---------------------------------------------------------------------------------------------------

    def _refuse(self, call_id: int, error: errors.PyraftkvError) -> None:
        self._reply(Answer(call_id, error=errors.to_wire(error)))

    def _reply(self, reply: Reply) -> None:
        self._send(codec.encode_reply(reply))

    def _send(self, frame: bytes) -> None:
        """Send a reply now, or when the connection has room: it breaks when it is given too much at once."""
        if self._sending is None and self._connection.queued_bytes + len(frame) <= REPLY_QUEUE_BYTES_MAX:
            self._connection.send(frame)
            return
        self._waiting.append(frame)
        self._waiting_bytes += len(frame)
        if self._waiting_bytes > REPLIES_WAITING_BYTES_MAX:
            logger.warning("client %r is dropped: it reads too slowly", self._connection.peer.name)
            self.close()
        elif self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._send_waiting(), name="pyraftkv-replies")

    async def _send_waiting(self) -> None:
        while self._waiting:
            await self._connection.drain()
            frame = self._waiting.popleft()
            self._waiting_bytes -= len(frame)
            self._connection.send(frame)
        self._sending = None
        self._go_on()

    async def _room(self) -> None:
        """Wait until the client has taken what it was sent."""
        if self._sending is not None:
            await asyncio.wait([self._sending])
        await self._connection.drain()


def _consistency(name: str) -> Consistency:
    consistency = CONSISTENCIES.get(name)
    if consistency is None:
        raise errors.InvalidRequest(f"there is no consistency {name!r}")
    return consistency


def _abandon(call: asyncio.Future[Any]) -> None:
    """Stop working on a call.

    Not so on a write, which is no task: its future may be shared with another connection, to which its client has
    gone already. It is applied, or given up at its deadline.
    """
    if isinstance(call, asyncio.Task):
        call.cancel()


def _too_large() -> errors.RequestTooLarge:
    return errors.RequestTooLarge(
        f"the result has more than {CLIENT_FRAME_BYTES_MAX} bytes: ask for less with limit=, or use scan()"
    )
