"""Connections between a client and a member: what is sent together leaves together, and nothing is left behind."""

from __future__ import annotations

import asyncio
from typing import Any

from pyraftkv.protocol import Hello
from pyraftkv.transport.connection import FramedConnection, Wire
from pyraftkv.transport.framing import KIND_CLIENT, FrameDecoder
from pyraftkv.transport.limits import Limits
from tests.node.support import asynchronous


class Socket(asyncio.Transport):
    """The system's side: notes every write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        """Return what waits: the system takes everything at once."""
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True


def connection(**limits: int) -> tuple[FramedConnection, Socket]:
    """Return a connection, and the socket below it."""
    socket = Socket()
    connected: list[Wire] = []
    wire = Wire(None, connected=connected.append)  # type: ignore[arg-type]  # a FramedConnection takes the role
    wire.connection_made(socket)
    return FramedConnection(wire, Hello(0, 0, "other", 0, 0, ""), Limits(**limits)), socket


def frames(data: bytes) -> list[bytes]:
    """Return the payloads that the bytes hold."""
    decoder = FrameDecoder(payload_bytes_max=1000)
    decoder.feed(data)
    payloads = []
    while (frame := decoder.next_frame()) is not None:
        assert frame.kind == KIND_CLIENT
        payloads.append(frame.payload)
    assert decoder.pending_bytes == 0
    return payloads


@asynchronous
async def test_what_is_sent_in_one_pass_leaves_in_one_write() -> None:
    """In order; what is sent in a later pass leaves by itself."""
    sender, socket = connection()
    for number in range(3):
        sender.send(b"%d" % number)
    assert socket.writes == []
    assert sender.queued_bytes > 3, "what was gathered counts as queued"
    await asyncio.sleep(0)
    assert [frames(data) for data in socket.writes] == [[b"0", b"1", b"2"]]
    assert sender.queued_bytes == 0
    sender.send(b"3")
    await asyncio.sleep(0)
    assert [frames(data) for data in socket.writes[1:]] == [[b"3"]]


@asynchronous
async def test_closing_and_draining_leave_nothing_behind() -> None:
    """What was gathered is written first; the pass that was to write it finds nothing."""
    sender, socket = connection()
    sender.send(b"drained")
    await sender.drain()
    assert frames(b"".join(socket.writes)) == [b"drained"]
    sender.send(b"last")
    sender.close()
    await asyncio.sleep(0)
    assert frames(b"".join(socket.writes)) == [b"drained", b"last"]
    assert socket.closed


@asynchronous
async def test_what_is_gathered_counts_towards_the_bound() -> None:
    """Who sends more in one pass than the queue holds is too slow at once, and not in the next pass."""
    sender, socket = connection(connection_queue_bytes_max=1000)
    for _ in range(3):
        sender.send(bytes(400))
    assert socket.closed
