"""Streams: what asyncio's transports promise, and what a network does to them."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest

from pyraftkv.sim.links import LinkProfile
from pyraftkv.sim.streams import RETRANSMIT_SECONDS_MAX, WINDOW_BYTES_MAX, SimStream
from tests.sim.world import World

PORT = 7000


class End(asyncio.Protocol):
    """One end of a connection, recording what it is told."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.pieces = 0
        self.told: list[Any] = []
        self.half_open = False
        self.stream: SimStream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, SimStream)
        self.stream = transport
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.pieces += 1

    def eof_received(self) -> bool:
        self.told.append("eof")
        return self.half_open

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append(exc if exc is None else type(exc))


class Pair:
    """A server's end on ``n1`` and a client's on ``c1``, connected."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.server, self.client = End(), End()

    async def connect(self) -> Pair:
        """Listen, dial."""

        async def listen() -> None:
            await asyncio.get_running_loop().create_server(lambda: self.server, "n1", PORT)

        async def dial() -> None:
            await asyncio.get_running_loop().create_connection(lambda: self.client, "n1", PORT)

        await self.world.on("n1", listen())
        await self.world.on("c1", dial())
        await asyncio.sleep(0.1)
        return self

    def do(self, name: str, callback: Callable[..., object], *args: Any) -> None:
        """Call in a process."""
        self.world.process(name).post(callback, *args)


def connected(
    test: Callable[[Pair], Coroutine[Any, Any, None]],
) -> Callable[[], None]:
    """Run a test on two connected ends."""

    def run() -> None:
        async def main(world: World) -> None:
            await test(await Pair(world).connect())

        World(seed=1).run(main)

    run.__doc__, run.__name__ = test.__doc__, test.__name__
    return run


def test_asyncios_own_streams_run_on_it() -> None:
    """`open_connection` and `start_server`, both ways, in order, to the end."""
    sent = Random(3).randbytes(3_000_000)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(50_000):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(serve, "n1", PORT)

    async def call() -> bytes:
        reader, writer = await asyncio.open_connection("n1", PORT)
        assert writer.get_extra_info("peername") == ("n1", PORT)
        assert writer.get_extra_info("sockname")[0] == "c1"
        assert writer.get_extra_info("socket") is None

        async def send() -> None:
            random = Random(4)
            place = 0
            while place < len(sent):
                size = random.choice((1, 100, 10_000, 200_000))
                writer.write(sent[place : place + size])
                place += size
                await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        received = await reader.read()
        await sending
        writer.close()
        await writer.wait_closed()
        return received

    async def main(world: World) -> None:
        server = await world.on("n1", listen())
        assert await world.on("c1", call()) == sent
        server.close()
        async with asyncio.timeout(1):
            await server.wait_closed()
        assert repr(world.network) == "<SimNetwork, 0 listeners, 0 ends of streams>"

    World(seed=1).run(main)


@connected
async def test_bytes_take_the_latency_and_arrive_in_order(pair: Pair) -> None:
    """However different the pieces' travels are."""
    pair.world.links.set_profile("c1", "n1", LinkProfile(latency_seconds=(1.0, 3.0), drop_rate=0.2))
    expected = bytes(range(200))
    for byte in expected:
        pair.do("c1", pair.client.stream.write, bytes([byte]))
    await asyncio.sleep(0.99)
    assert pair.server.data == b""
    await asyncio.sleep(60)
    assert pair.server.data == expected
    assert 1 < pair.server.pieces < 200


@connected
async def test_writes_are_torn_at_random_places(pair: Pair) -> None:
    """A reader sees parts of frames."""
    for _ in range(200):
        pair.do("c1", pair.client.stream.write, b"frame")
        await asyncio.sleep(0.01)
    assert pair.server.data == b"frame" * 200
    assert pair.server.pieces > 201


@connected
async def test_a_slow_link_carries_what_it_can(pair: Pair) -> None:
    """A million bytes take ten seconds at 100 kB/s, and wait at the sender, not in the link."""
    pair.world.links.set_default(LinkProfile(bandwidth_bytes=100_000))
    pair.do("c1", pair.client.stream.write, bytes(1_000_000))
    await asyncio.sleep(5)
    assert 350_000 < len(pair.server.data) < 550_000
    assert pair.client.stream.get_write_buffer_size() > 350_000
    await asyncio.sleep(6)
    assert len(pair.server.data) == 1_000_000
    pair.do("c1", pair.client.stream.write, bytes(1_000_000))
    await asyncio.sleep(1)
    pair.world.links.set_default(LinkProfile())
    await asyncio.sleep(0.8)
    assert len(pair.server.data) == 2_000_000


@connected
async def test_what_waits_for_a_slow_link_goes_when_it_is_fast_again(pair: Pair) -> None:
    """A large piece was not promised to the slow one as a whole."""
    pair.world.links.set_default(LinkProfile(bandwidth_bytes=1_000))
    pair.do("c1", pair.client.stream.write, bytes(50_000))
    await asyncio.sleep(2)
    assert 1_000 <= len(pair.server.data) <= 3_000
    pair.world.links.set_default(LinkProfile())
    await asyncio.sleep(0.8)
    assert len(pair.server.data) == 50_000


@connected
async def test_a_reader_that_does_not_read_stops_the_writer(pair: Pair) -> None:
    """What fits the window leaves; above the high mark the protocol is told, and again below the low one."""
    pair.do("n1", pair.server.stream.pause_reading)
    await asyncio.sleep(0.1)
    pair.do("c1", pair.client.stream.write, bytes(WINDOW_BYTES_MAX + 60_000))
    await asyncio.sleep(1)
    assert (pair.server.data, pair.client.told) == (b"", ["made"])
    assert not pair.server.stream.is_reading()
    assert pair.client.stream.get_write_buffer_size() == 60_000
    pair.do("c1", pair.client.stream.write, bytes(10_000))
    await asyncio.sleep(1)
    assert pair.client.told == ["made", "pause"]
    pair.do("n1", pair.server.stream.resume_reading)
    await asyncio.sleep(1)
    assert len(pair.server.data) == WINDOW_BYTES_MAX + 70_000
    assert pair.client.told == ["made", "pause", "resume"]


@connected
async def test_a_closed_stream_sends_what_was_written(pair: Pair) -> None:
    """Then the other end hears the end, closes too, and both are told once."""
    pair.do("c1", pair.client.stream.write, bytes(1_000_000))
    pair.do("c1", pair.client.stream.close)
    pair.do("c1", pair.client.stream.close)
    pair.do("c1", pair.client.stream.write, b"too late")
    await asyncio.sleep(5)
    assert len(pair.server.data) == 1_000_000
    assert pair.server.told == ["made", "eof", None]
    assert pair.client.told == ["made", "pause", None]
    assert pair.client.stream.is_closing()


@connected
async def test_one_direction_can_be_closed_alone(pair: Pair) -> None:
    """The other one goes on until it is closed as well."""
    pair.server.half_open = True
    pair.do("c1", pair.client.stream.write, b"question")
    pair.do("c1", pair.client.stream.write_eof)
    await asyncio.sleep(1)
    assert (pair.server.data, pair.server.told) == (b"question", ["made", "eof"])
    pair.do("n1", pair.server.stream.write, b"answer")
    pair.do("n1", pair.server.stream.close)
    await asyncio.sleep(1)
    assert (pair.client.data, pair.client.told) == (b"answer", ["made", "eof", None])
    assert pair.server.told == ["made", "eof", None]


@connected
async def test_an_aborted_stream_resets_the_other_end(pair: Pair) -> None:
    """What is buffered is lost."""
    pair.do("c1", pair.client.stream.write, bytes(1_000_000))
    pair.do("c1", pair.client.stream.abort)
    await asyncio.sleep(1)
    assert len(pair.server.data) <= WINDOW_BYTES_MAX
    assert pair.server.told == ["made", ConnectionResetError]
    assert pair.client.told == ["made", "pause", None]


@connected
async def test_writing_to_a_closed_end_is_answered_with_a_reset(pair: Pair) -> None:
    """As a kernel does that knows no such connection."""
    pair.server.half_open = True
    pair.do("c1", pair.client.stream.close)
    await asyncio.sleep(1)
    assert pair.server.told == ["made", "eof"]
    pair.do("n1", pair.server.stream.write, b"hello?")
    await asyncio.sleep(1)
    assert pair.server.told == ["made", "eof", ConnectionResetError]


@connected
async def test_closing_with_bytes_unread_resets(pair: Pair) -> None:
    """The other end learns that they were not taken."""
    pair.do("n1", pair.server.stream.pause_reading)
    await asyncio.sleep(0.1)
    pair.do("c1", pair.client.stream.write, b"unread")
    await asyncio.sleep(1)
    pair.do("n1", pair.server.stream.close)
    await asyncio.sleep(1)
    assert pair.client.told == ["made", ConnectionResetError]


def test_a_protocol_that_fails_loses_its_connection() -> None:
    """And the run hears of it."""

    class Failing(End):
        def data_received(self, data: bytes) -> None:
            raise ValueError(data)

    async def main(world: World) -> None:
        pair = Pair(world)
        pair.server = Failing()
        await pair.connect()
        pair.do("c1", pair.client.stream.write, b"poison")
        await asyncio.sleep(1)
        assert pair.client.told == ["made", ConnectionResetError]
        assert pair.server.told == ["made", ValueError]

    with pytest.raises(ExceptionGroup, match="callbacks failed"):
        World(seed=1).run(main)


@connected
async def test_corruption_flips_bits(pair: Pair) -> None:
    """And loses or moves nothing."""
    pair.world.links.set_default(LinkProfile(corrupt_rate=1.0))
    pair.do("c1", pair.client.stream.write, bytes(100))
    await asyncio.sleep(1)
    assert len(pair.server.data) == 100
    assert 1 <= sum(byte.bit_count() for byte in pair.server.data) <= 2


# --- Broken paths --------------------------------------------------------------------------------------------------


@connected
async def test_a_cut_holds_bytes_back_until_it_heals(pair: Pair) -> None:
    """In that direction alone."""
    pair.world.links.cut("c1", "n1")
    for data in (b"one ", b"two"):
        pair.do("c1", pair.client.stream.write, data)
        await asyncio.sleep(1)
    pair.do("n1", pair.server.stream.write, b"other way")
    await asyncio.sleep(5)
    assert (pair.server.data, pair.client.data) == (b"", b"other way")
    pair.world.links.heal_all()
    pair.do("c1", pair.client.stream.write, b" three")
    await asyncio.sleep(1)
    assert pair.server.data == b"one two three"
    await asyncio.sleep(30)
    assert (pair.client.told, pair.server.told) == (["made"], ["made"])


@pytest.mark.parametrize("direction", [("c1", "n1"), ("n1", "c1")])
def test_a_path_broken_for_too_long_is_given_up(direction: tuple[str, str]) -> None:
    """Idle or not, in either direction, by both ends."""

    async def main(world: World) -> None:
        pair = await Pair(world).connect()
        world.links.cut(*direction)
        await asyncio.sleep(0.8 * RETRANSMIT_SECONDS_MAX)
        assert (pair.client.told, pair.server.told) == (["made"], ["made"])
        await asyncio.sleep(0.4 * RETRANSMIT_SECONDS_MAX)
        ends = {"made", TimeoutError, ConnectionResetError}
        assert len(pair.client.told) == len(pair.server.told) == 2
        assert {*pair.client.told, *pair.server.told} <= ends
        world.links.heal_all()
        await asyncio.sleep(1)

    World(seed=1).run(main)


@connected
async def test_a_link_can_reset_its_streams(pair: Pair) -> None:
    """At both ends, at once."""
    pair.world.links.reset("c1", "n1")
    pair.world.links.reset("c1", "n2")
    await asyncio.sleep(0.001)
    assert pair.client.told == pair.server.told == ["made", ConnectionResetError]


@connected
async def test_the_kernel_of_a_killed_process_resets_its_streams(pair: Pair) -> None:
    """And its port refuses from then on."""
    pair.world.process("n1").kill()
    await asyncio.sleep(0.1)
    assert pair.client.told == ["made", ConnectionResetError]
    with pytest.raises(ConnectionRefusedError):
        await pair.world.on("c1", asyncio.get_running_loop().create_connection(End, "n1", PORT))


@connected
async def test_a_machine_without_power_says_nothing(pair: Pair) -> None:
    """Its connections die of old age, and nobody can connect to it."""
    world = pair.world
    world.process("n1").kill(silent=True)
    pair.do("c1", pair.client.stream.write, b"anybody there?")
    await asyncio.sleep(0.8 * RETRANSMIT_SECONDS_MAX)
    assert pair.client.told == ["made"]
    await asyncio.sleep(0.4 * RETRANSMIT_SECONDS_MAX)
    assert pair.client.told == ["made", TimeoutError]
    begun = world.loop.now
    with pytest.raises(TimeoutError) as caught:
        await world.on("c1", asyncio.get_running_loop().create_connection(End, "n1", PORT))
    assert caught.value.errno == errno.ETIMEDOUT
    assert world.loop.now - begun == pytest.approx(RETRANSMIT_SECONDS_MAX, abs=0.01)


@connected
async def test_a_machine_that_came_back_resets_what_it_does_not_know(pair: Pair) -> None:
    """The next bytes of an old connection are answered."""
    world = pair.world
    world.process("n1").kill(silent=True)
    await asyncio.sleep(1)
    world.loop.process("n1")
    await asyncio.sleep(1)
    assert pair.client.told == ["made"]
    pair.do("c1", pair.client.stream.write, b"still there?")
    await asyncio.sleep(0.1)
    assert pair.client.told == ["made", ConnectionResetError]


@connected
async def test_an_end_killed_behind_a_cut_is_found_out_after_it(pair: Pair) -> None:
    """Its reset was lost; the other end's probe is answered with another."""
    pair.world.links.cut("n1", "c1")
    pair.world.process("n1").kill()
    await asyncio.sleep(5)
    assert pair.client.told == ["made"]
    pair.world.links.heal("n1", "c1")
    await asyncio.sleep(1)
    assert pair.client.told == ["made", ConnectionResetError]


@connected
async def test_a_paused_process_still_has_a_kernel(pair: Pair) -> None:
    """It takes what fits the window, and connections up to the backlog."""
    process = pair.world.process("n1")
    process.pause()
    pair.do("c1", pair.client.stream.write, bytes(2 * WINDOW_BYTES_MAX))
    await asyncio.sleep(60)
    assert pair.client.stream.get_write_buffer_size() == WINDOW_BYTES_MAX
    assert pair.client.told == ["made", "pause"]
    process.resume()
    await asyncio.sleep(1)
    assert len(pair.server.data) == 2 * WINDOW_BYTES_MAX


# --- Connecting ----------------------------------------------------------------------------------------------------


def test_names_that_are_no_hosts_do_not_resolve() -> None:
    """And a port without a listener refuses."""

    async def main(world: World) -> None:
        loop = world.loop
        with pytest.raises(socket.gaierror):
            await loop.create_connection(End, "nowhere", PORT)
        world.process("n1")
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(End, "n1", PORT)

    World(seed=1).run(main)


def test_a_listener_takes_an_address_of_its_own_machine() -> None:
    """Once; port 0 takes a free one; a closed one is free again."""

    async def main(world: World) -> None:
        loop = world.loop
        server = await loop.create_server(End, "localhost", PORT)
        with pytest.raises(OSError, match="in use") as in_use:
            await loop.create_server(End, None, PORT)
        assert in_use.value.errno == errno.EADDRINUSE
        with pytest.raises(OSError, match="assign") as elsewhere:
            await loop.create_server(End, "n1", PORT)
        assert elsewhere.value.errno == errno.EADDRNOTAVAIL
        ports = {(await loop.create_server(End, "0.0.0.0", 0)).sockets[0].getsockname()[1] for _ in range(3)}
        assert len(ports) == 3
        assert server.is_serving()
        server.close()
        await server.wait_closed()
        assert not server.is_serving()
        assert server.sockets == ()
        async with await loop.create_server(End, "harness", PORT) as again:
            stream, _ = await loop.create_connection(End, "127.0.0.1", PORT)
            again.close()
            stream.close()

    World(seed=1).run(main)


def test_a_dial_goes_through_when_the_cut_heals() -> None:
    """The SYN is sent again; a dial that was given up leaves nothing."""

    async def main(world: World) -> None:
        async def listen() -> None:
            await asyncio.get_running_loop().create_server(End, "n1", PORT)

        await world.on("n1", listen())
        for direction in (("c1", "n1"), ("n1", "c1")):
            world.links.cut(*direction)
            begun = world.loop.now
            dialling = world.process("c1").spawn(world.loop.create_connection(End, "n1", PORT))
            given_up = world.process("c1").spawn(
                asyncio.wait_for(world.loop.create_connection(End, "n1", PORT), timeout=2)
            )
            await asyncio.sleep(5)
            assert not dialling.done()
            assert isinstance(given_up.exception(), TimeoutError)
            world.links.heal_all()
            stream, _ = await dialling
            assert world.loop.now - begun == pytest.approx(7, abs=0.01)  # SYNs after 0, 1, 3 and 7 seconds
            stream.close()
            await asyncio.sleep(20)
            assert repr(world.network) == "<SimNetwork, 1 listeners, 0 ends of streams>"

    World(seed=1).run(main)


def test_a_connection_may_break_before_its_dialler_hears_of_it() -> None:
    """By a reset, or because the listener was closed or killed meanwhile: the dial fails, and nothing is left."""

    async def listen() -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(End, "n1", PORT)

    async def main(world: World) -> None:
        world.links.set_default(LinkProfile(latency_seconds=(0.1, 0.1)))
        for seconds in (0.05, 0.15, 0.25):
            world.loop.process("n1")
            server = await world.on("n1", listen())
            dialling = world.process("c1").spawn(world.loop.create_connection(End, "n1", PORT))
            await asyncio.sleep(seconds)
            world.links.reset("c1", "n1")
            await asyncio.wait([dialling])
            assert isinstance(dialling.exception(), ConnectionResetError) == (seconds < 0.2)
            world.process("n1").post(server.close)
            killed = world.process("c1").spawn(world.loop.create_connection(End, "n1", PORT))
            await asyncio.sleep(seconds)
            world.process("n1").kill()
            await asyncio.wait([killed], timeout=1)
            assert isinstance(killed.exception(), ConnectionRefusedError)
            await asyncio.sleep(1)
            assert repr(world.network) == "<SimNetwork, 0 listeners, 0 ends of streams>"

    World(seed=1).run(main)


@connected
async def test_a_connection_may_break_before_its_dialler_runs_again(pair: Pair) -> None:
    """It was made and reset while the dialler was paused."""
    process = pair.world.process("c1")
    dialling = process.spawn(pair.world.loop.create_connection(End, "n1", PORT))
    process.post(process.pause)
    await asyncio.sleep(1)
    pair.world.links.reset("c1", "n1")
    process.resume()
    await asyncio.wait([dialling])
    assert isinstance(dialling.exception(), ConnectionResetError)


def test_a_listener_closed_before_it_accepted_resets() -> None:
    """The kernel had taken the connection; nobody wants it."""
    end = End()

    async def listen() -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(End, "n1", PORT)

    async def main(world: World) -> None:
        server = await world.on("n1", listen())
        world.process("n1").pause()
        world.process("n1").post(server.close)
        await world.on("c1", world.loop.create_connection(lambda: end, "n1", PORT))
        world.process("n1").resume()
        await asyncio.sleep(1)
        assert end.told == ["made", ConnectionResetError]

    World(seed=1).run(main)


def test_a_full_backlog_takes_no_more() -> None:
    """Their SYNs are dropped, until the process accepts."""

    async def main(world: World) -> None:
        async def listen() -> None:
            await asyncio.get_running_loop().create_server(End, "n1", PORT, backlog=2)

        await world.on("n1", listen())
        world.process("n1").pause()
        dials = [world.process("c1").spawn(world.loop.create_connection(End, "n1", PORT)) for _ in range(5)]
        await asyncio.sleep(0.5)
        assert sum(dial.done() for dial in dials) == 2
        world.process("n1").resume()
        await asyncio.gather(*dials)
        assert world.loop.now < 5

    World(seed=1).run(main)


class Buffered(asyncio.BufferedProtocol):
    """Takes four bytes at a time, and stops reading after the second four."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self._buffer = bytearray(4)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.stream = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        """Return where to write."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was written."""
        self.pieces.append(bytes(self._buffer[:nbytes]))
        if len(self.pieces) == 2:
            self.stream.pause_reading()


@connected
async def test_a_buffered_protocol_gets_what_its_buffer_holds(pair: Pair) -> None:
    """Piece by piece, in order, and nothing while it does not read."""
    buffered = Buffered()
    buffered.stream = pair.server.stream
    pair.do("n1", pair.server.stream.set_protocol, buffered)
    pair.do("c1", pair.client.stream.write, b"0123456789")
    await asyncio.sleep(1)
    assert buffered.pieces == [b"0123", b"4567"]
    pair.do("n1", pair.server.stream.resume_reading)
    await asyncio.sleep(1)
    assert buffered.pieces == [b"0123", b"4567", b"89"]
