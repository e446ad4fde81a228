"""The member's side of remote use: answers the calls of connected clients with the member's own `KV` face."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any, Protocol

from pyraftkv import codec, errors
from pyraftkv.kv import Consistency, Status, Watch
from pyraftkv.protocol import (
    Answer,
    CancelCall,
    OpenSessionCall,
    ReadCall,
    Reply,
    StatusCall,
    WatchCall,
    WatchUpdate,
    WriteCall,
)
from pyraftkv.sessions import Outcome
from pyraftkv.store.commands import RangeQuery
from pyraftkv.store.values import RangeResult, WatchBatch
from pyraftkv.transport.base import Connection

logger = logging.getLogger("pyraftkv.server")

CALLS_MAX = 4096
"""Calls (and watches) under way per connection; one more is refused as `Overloaded`."""

CONSISTENCIES: dict[str, Consistency] = {"linearizable": "linearizable", "lease": "lease", "local": "local"}


class Member(Protocol):
    """What the server needs of its node."""

    def write_encoded(self, payload: bytes, timeout: float) -> asyncio.Future[Outcome]:
        """Propose a client's encoded command. Raises `NotApplied` at once when it is not acceptable."""
        ...

    async def open_session(self, timeout: float) -> int:
        """Register a session for a client and return its id."""
        ...

    async def read(self, query: RangeQuery, consistency: Consistency, timeout: float | None) -> RangeResult: ...

    def open_watch(self, call: WatchCall) -> Watch: ...

    async def status(self, *, timeout: float | None = None) -> Status: ...


class ClientPort:
    """Every client connected to this member."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._clients: set[ClientConnection] = set()

    def __len__(self) -> int:
        return len(self._clients)

    def accept(self, connection: Connection) -> None:
        """Serve a client until either side closes."""
        client = ClientConnection(self._member, connection, closed=self._clients.discard)
        self._clients.add(client)
        client.open()

    def close(self) -> None:
        """Drop every client. Idempotent."""
        for client in list(self._clients):
            client.close()


class ClientConnection:
    """One client: its calls under way by their id, answered in whatever order they finish."""

    def __init__(self, member: Member, connection: Connection, *, closed: Any) -> None:
        self._member = member
        self._connection = connection
        self._closed = closed
        self._calls: dict[int, asyncio.Future[Any]] = {}

    def open(self) -> None:
        """Begin to serve."""
        self._connection.open(received=self._received, closed=self._lost)

    def close(self) -> None:
        """Drop the connection."""
        self._connection.close()
        self._lost(None)

    def _lost(self, _: Exception | None) -> None:
        for call in list(self._calls.values()):
            call.cancel()
        self._calls.clear()
        self._closed(self)

    def _received(self, frame: bytes) -> None:
        try:
            call = codec.decode_call(frame)
        except errors.FrameError as error:
            logger.warning("client %s is dropped: %s", self._connection.peer.name, error)
            self.close()
            return
        if isinstance(call, CancelCall):
            self._cancel(call.id)
            return
        if call.id in self._calls or len(self._calls) >= CALLS_MAX:
            self._refuse(call.id, errors.Overloaded(f"{len(self._calls)} calls are under way on this connection"))
            return
        try:
            if isinstance(call, WriteCall):
                future = self._member.write_encoded(call.payload, call.timeout)
            else:
                future = self._task(call)
        except errors.PyraftkvError as error:
            self._refuse(call.id, error)
            return
        self._calls[call.id] = future
        future.add_done_callback(partial(self._done, call.id))

    def _task(self, call: OpenSessionCall | ReadCall | WatchCall | StatusCall) -> asyncio.Task[Any]:
        work: Coroutine[Any, Any, Any]
        if isinstance(call, ReadCall):
            work = self._member.read(call.query, CONSISTENCIES[call.consistency], call.timeout)
        elif isinstance(call, WatchCall):
            work = self._watch(call)
        elif isinstance(call, StatusCall):
            work = self._status()
        else:
            work = self._member.open_session(OPEN_SESSION_SECONDS)
        return asyncio.get_running_loop().create_task(work, name=f"pyraftkv-{type(call).__name__}")

    async def _status(self) -> dict[str, Any]:
        return dataclasses.asdict(await self._member.status())

    async def _watch(self, call: WatchCall) -> None:
        """Send a watch's batches, no faster than the client takes them."""
        watch = self._member.open_watch(call)
        async with watch:
            self._reply(WatchUpdate(call.id, WatchBatch([], watch.revision)))
            async for batch in watch.batches():
                self._reply(WatchUpdate(call.id, batch))
                await self._connection.drain()

    def _done(self, call_id: int, future: asyncio.Future[Any]) -> None:
        if self._calls.pop(call_id, None) is None or future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._reply(Answer(call_id, result=future.result()))
        elif isinstance(error, errors.PyraftkvError):
            self._refuse(call_id, error)
        else:
            logger.error("a client's call failed", exc_info=error)
            self._refuse(call_id, errors.MaybeApplied(f"the member failed: {type(error).__name__}"))

    def _cancel(self, call_id: int) -> None:
        future = self._calls.pop(call_id, None)
        if future is not None:
            future.cancel()

    def _refuse(self, call_id: int, error: errors.PyraftkvError) -> None:
        self._reply(Answer(call_id, error=errors.to_wire(error)))

    def _reply(self, reply: Reply) -> None:
        self._connection.send(codec.encode_reply(reply))


OPEN_SESSION_SECONDS = 5.0
"""How long a member tries to open a session for a client."""
