"""A network between real processes that can be cut: TCP proxies on the loopback interface, in user space.

Each member is reached through a proxy of its own. Who dials is not said by an address (they are all 127.0.0.1), but by
the HELLO that opens every connection, so the proxy reads that one frame, finds the dialler's name, and from there on
moves bytes that it does not look at. What is wrong between two hosts is asked of `ProxyLinks` for every piece:

* a cut holds the bytes back, as TCP would that sends them again and again; they flow when it heals, and the
  connection breaks if that takes longer than `RETRANSMIT_SECONDS_MAX`;
* delay and bandwidth make each piece late, corruption flips one bit of it;
* a reset breaks every connection between two hosts at once.

Loss, doubling and reordering of messages do not exist here: TCP hides them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator
from random import Random
from typing import Self

from pyraftkv.codec import decode_hello
from pyraftkv.errors import FrameError
from pyraftkv.sim.faults import LinkFault
from pyraftkv.transport.address import parse_address
from pyraftkv.transport.framing import HELLO_BYTES_MAX, FrameDecoder

RETRANSMIT_SECONDS_MAX = 15.0
"""A connection over a link that is cut for longer breaks."""

PIECE_BYTES_MAX = 64 * 1024
"""Bytes that pass at a time; also what a proxy holds of a connection in one direction."""

HELLO_SECONDS_MAX = 10.0

_STRANGER = ""
"""Whoever dials and does not say HELLO. No link of it is ever bad."""

Link = tuple[str, str]


class ProxyLinks:
    """The state of the network between hosts, as its proxies see it.

    Args:
        random: Which bits flip.
    """

    def __init__(self, random: Random) -> None:
        self.random = random
        self._whole: dict[Link, asyncio.Event] = {}
        self._faults: dict[Link, LinkFault] = {}
        self._streams: dict[asyncio.StreamWriter, tuple[Link, asyncio.StreamWriter]] = {}
        """Every connection by its accepted end, with who dialled whom, and its other end."""

    def cut(self, source: str, target: str) -> None:
        """Let nothing through in this direction, until `heal`."""
        self._whole.setdefault((source, target), asyncio.Event()).clear()

    def heal(self, source: str, target: str) -> None:
        """Let through what was held back."""
        self._whole.setdefault((source, target), asyncio.Event()).set()

    def set_fault(self, source: str, target: str, fault: LinkFault) -> None:
        """This is wrong in this direction from now on."""
        self._faults[source, target] = fault

    def reset(self, a: str, b: str) -> None:
        """Break every connection between two hosts."""
        for near, (link, far) in list(self._streams.items()):
            if set(link) == {a, b}:
                near.transport.abort()
                far.transport.abort()

    @contextlib.contextmanager
    def joined(self, link: Link, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> Generator[None]:
        """While this runs, a connection stands between these two ends."""
        self._streams[near] = link, far
        try:
            yield
        finally:
            del self._streams[near]

    async def passage(self, link: Link, piece: bytes) -> bytes:
        """Wait until a piece may pass, and return what arrives of it. Raises `TimeoutError` if it never may."""
        fault = self._faults.get(link)
        if fault is not None:
            late = fault.delay_seconds
            if fault.bandwidth_bytes:
                late += len(piece) / fault.bandwidth_bytes
            if late:
                await asyncio.sleep(late)
            if piece and self.random.random() < fault.corrupt_rate:
                piece = self._corrupted(piece)
        whole = self._whole.get(link)
        if whole is not None and not whole.is_set():
            async with asyncio.timeout(RETRANSMIT_SECONDS_MAX):
                await whole.wait()
        return piece

    def _corrupted(self, piece: bytes) -> bytes:
        """Return a piece with one bit flipped."""
        position = self.random.randrange(8 * len(piece))
        bad = bytearray(piece)
        bad[position // 8] ^= 1 << position % 8
        return bytes(bad)


class Proxy:
    """Stands before one host: an asynchronous context manager.

    Args:
        links: What is wrong with the network.
        host: Who is behind it.
        listen: Where it is dialled.
        forward: Where the host itself listens.
    """

    def __init__(self, links: ProxyLinks, host: str, *, listen: str, forward: str) -> None:
        self.address = listen
        self._links = links
        self._host = host
        self._forward = forward
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Proxy {self.address} of {self._host} at {self._forward}>"

    async def __aenter__(self) -> Self:
        host, port = parse_address(self.address)
        self._server = await asyncio.start_server(self._accept, host, port, limit=PIECE_BYTES_MAX)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._join(reader, writer), name=f"pyraftkv-proxy-{self._host}")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until it breaks, at either end or between them."""
        far: asyncio.StreamWriter | None = None
        try:
            source, opening = await self._introduced(reader)
            far_reader, far = await asyncio.open_connection(*parse_address(self._forward), limit=PIECE_BYTES_MAX)
            there, back = (source, self._host), (self._host, source)
            with self._links.joined(there, writer, far):
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._carry(there, reader, far, opening))
                    group.create_task(self._carry(back, far_reader, writer, b""))
        except* (OSError, EOFError):
            pass  # the connection broke: so does its other half
        finally:
            writer.transport.abort()
            if far is not None:
                far.transport.abort()

    async def _introduced(self, reader: asyncio.StreamReader) -> tuple[str, bytes]:
        """Return who dials, and the bytes that said so. Raises `OSError`, `TimeoutError`."""
        decoder, opening = FrameDecoder(payload_bytes_max=HELLO_BYTES_MAX), b""
        async with asyncio.timeout(HELLO_SECONDS_MAX):
            while data := await reader.read(HELLO_BYTES_MAX):
                opening += data
                decoder.feed(data)
                try:
                    frame = decoder.next_frame()
                    if frame is not None:
                        return decode_hello(frame.payload).name, opening
                except FrameError:
                    break
        return _STRANGER, opening

    async def _carry(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, piece: bytes
    ) -> None:
        """Move bytes in one direction. Ends by raising `EOFError` when the stream does, and so ends the other too."""
        while True:
            if piece:
                writer.write(await self._links.passage(link, piece))
                await writer.drain()
            piece = await reader.read(PIECE_BYTES_MAX)
            if not piece:
                await self._links.passage(link, piece)
                raise EOFError(f"{link[0]} closed")
