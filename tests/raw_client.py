"""A client without a `Client`: calls are made by hand, and replies kept as they came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pyraftkv import Cluster, Node, PutKey, codec
from pyraftkv.protocol import Answer, Call, Envelope, Hello, OpenSessionCall, Reply, WatchUpdate
from pyraftkv.store.values import WatchBatch
from pyraftkv.transport.framing import CLIENT_FRAME_BYTES_MAX
from tests.node.support import cluster_of

T = TypeVar("T")


class RawClient:
    """A connection whose calls are made by hand, and whose replies are kept."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.replies: list[Reply] = []
        self.is_closed = False
        self._news = asyncio.Event()
        connection.open(received=self._received, closed=self._closed)

    def _received(self, frame: bytes) -> None:
        assert len(frame) <= CLIENT_FRAME_BYTES_MAX
        self.replies.append(codec.decode_reply(frame))
        self._news.set()

    def _closed(self, _: Exception | None) -> None:
        self.is_closed = True
        self._news.set()

    def send(self, call: Call) -> None:
        """Send a call."""
        self.connection.send(codec.encode_call(call))

    async def wait(self, condition: Callable[[], T]) -> T:
        """Wait until what was received fulfils the condition."""
        async with asyncio.timeout(20):
            while not (result := condition()):
                self._news.clear()
                await self._news.wait()
        return result

    async def answer(self, call_id: int) -> Answer:
        """Wait for the answer to a call."""

        def found() -> list[Answer]:
            return [reply for reply in self.replies if isinstance(reply, Answer) and reply.id == call_id]

        return (await self.wait(found))[0]

    async def ask(self, call: Call) -> Answer:
        """Send a call and wait for its answer."""
        self.send(call)
        return await self.answer(call.id)

    async def session(self) -> int:
        """Open a session."""
        answer = await self.ask(OpenSessionCall(1))
        assert isinstance(answer.result, int)
        return answer.result

    def updates(self, call_id: int) -> list[WatchBatch]:
        """Return the batches that a watch was sent."""
        return [reply.batch for reply in self.replies if isinstance(reply, WatchUpdate) and call_id in reply.ids]


async def raw_client(cluster: Cluster, node: Node) -> RawClient:
    """Connect to one member by hand."""
    return RawClient(await cluster.network.dialer()(node.address, Hello(0, 0, "raw", 0, 0, "")))


@asynccontextmanager
async def served(**changes: Any) -> AsyncIterator[tuple[Cluster, Node, RawClient]]:
    """Run one member and a connection to it."""
    async with cluster_of(1, **changes) as cluster:
        yield cluster, cluster.leader, await raw_client(cluster, cluster.leader)


def put(session: int, sequence: int, key: bytes, value: bytes = b"v", acked_below: int = 1) -> bytes:
    """Return an encoded put."""
    return codec.encode_logged(Envelope(session, sequence, acked_below, PutKey(key, value)))


def error_name(answer: Answer) -> str:
    """Return the name of the error that an answer carries."""
    assert answer.error is not None, answer
    return answer.error[0]
