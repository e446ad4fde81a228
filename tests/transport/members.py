"""What the transport's tests share: members that record what they are told, and ways to wait without sleeping."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ParamSpec

from pyraftkv.codec import PeerMessage
from pyraftkv.errors import HandshakeRejected
from pyraftkv.protocol import Hello
from pyraftkv.transport import Connection, MemoryTransport, TcpTransport

CLUSTER = 7
P = ParamSpec("P")


def in_loop(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run an async test in a loop of its own, for 30 seconds at most, and let no task of it survive."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(30):
                await test(*args, **kwargs)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert left == set()

        asyncio.run(bounded())

    return run


async def until(condition: Callable[[], Any]) -> None:
    """Let the loop run until the condition holds: it reads other objects' state, which announce no event."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


def hello(member_id: int = 0, *, cluster_id: int = CLUSTER, boot_count: int = 1, **fields: Any) -> Hello:
    """Make the HELLO of member ``member_id``, or of a client."""
    name = f"n{member_id}" if member_id else ""
    return Hello(cluster_id, member_id, fields.pop("name", name), 100 + member_id, boot_count, "", **fields)


class Member:
    """A handler on a transport, recording everything."""

    def __init__(self, transport: MemoryTransport | TcpTransport, member_id: int) -> None:
        self.transport = transport
        self.id = member_id
        self.hellos: list[Hello] = []
        self.batches: list[list[PeerMessage]] = []
        self.lost: list[int] = []
        self.gone: list[int] = []
        self.refused: list[tuple[int, HandshakeRejected]] = []
        self.clients: list[Connection] = []
        self.refuse: str = ""

    @property
    def received(self) -> list[PeerMessage]:
        """Every message, in order."""
        return [message for batch in self.batches for message in batch]

    def peer_hello(self, hello: Hello) -> None:
        """Record, and refuse if told to."""
        self.hellos.append(hello)
        if self.refuse:
            raise HandshakeRejected("refused by the handler", reason=self.refuse, peer=hello.name)

    def receive(self, messages: Sequence[PeerMessage]) -> None:
        """Record what arrived together."""
        self.batches.append(list(messages))

    def peer_lost(self, member_id: int) -> None:
        """Record."""
        self.lost.append(member_id)

    def peer_gone(self, member_id: int) -> None:
        """Record."""
        self.gone.append(member_id)

    def peer_refused(self, member_id: int, rejection: HandshakeRejected) -> None:
        """Record."""
        self.refused.append((member_id, rejection))

    def client_connected(self, connection: Connection) -> None:
        """Record; the test opens it."""
        self.clients.append(connection)

    async def start(self, **fields: Any) -> Member:
        """Start the transport with this member's HELLO."""
        await self.transport.start(hello(self.id, **fields), self)
        return self


def introduce(*members: Member) -> None:
    """Make each the peer of all."""
    addresses = {member.id: member.transport.address for member in members}
    for member in members:
        member.transport.set_peers(addresses)


async def connected(*members: Member) -> None:
    """Wait until each can send to all."""
    ids = {member.id for member in members}
    await until(lambda: all(member.transport.connected == ids - {member.id} for member in members))


class Stream:
    """A client's end of a connection, recording what arrives."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.frames: list[bytes] = []
        self.ends: list[Exception | None] = []
        connection.open(received=self.frames.append, closed=self.ends.append)


async def close(*members: Member) -> None:
    """Close every transport, twice: it is idempotent."""
    for member in members:
        await member.transport.close()
        await member.transport.close()
