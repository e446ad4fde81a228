"""Connections without a HELLO: so many and no more, under TLS too, and nobody keeps the others out."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from pyraftkv.transport import Limits, TcpDialer, TcpTransport
from pyraftkv.transport.doorway import Doorway

from .certificates import Authority
from .members import Member, Stream, close, connected, hello, in_loop, introduce, until

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The cluster's authority."""
    return Authority(tmp_path_factory.mktemp("doorway"))


async def _member(authority: Authority, **limits: float) -> Member:
    transport = TcpTransport(listen=f"{HOST}:0", tls=authority.tls("n1"), limits=Limits(**limits))  # type: ignore[arg-type]
    return await Member(transport, 1).start()


async def _silent(member: Member) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect, and begin no handshake."""
    return await asyncio.open_connection(HOST, int(member.transport.address.split(":")[1]))


async def _hang_up(*silent: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    for _, writer in silent:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def _end(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionError):
        assert await reader.read() == b""


@in_loop
async def test_tls_handshakes_are_counted(authority: Authority) -> None:
    """One more is hung up on, before its handshake costs anything; when one has ended there is room again."""
    one = await _member(authority, handshakes_max=2)
    silent = [await _silent(one) for _ in range(3)]
    await _end(silent[2][0])
    assert len(one.transport._doorway) == 2
    assert not silent[0][0].at_eof()
    await _hang_up(silent[0])
    await until(lambda: len(one.transport._doorway) == 1)
    stream = Stream(await TcpDialer(tls=authority.tls("client"))(one.transport.address, hello()))
    await until(lambda: one.clients)
    await _hang_up(*silent)
    await close(one)
    await until(lambda: stream.ends)


@in_loop
async def test_nobody_is_kept_out_by_who_says_nothing(authority: Authority) -> None:
    """Who has had the time to say HELLO gives up its place, the first that came first."""
    one = await _member(authority, handshakes_max=2, greeting_seconds_min=0)
    silent = [await _silent(one) for _ in range(2)]
    await until(lambda: len(one.transport._doorway) == 2)
    stream = Stream(await TcpDialer(tls=authority.tls("client"))(one.transport.address, hello()))
    await _end(silent[0][0])
    await _hang_up(*silent)
    await close(one)
    await until(lambda: stream.ends)


@in_loop
async def test_nobody_is_left_in_the_doorway_when_it_is_closed(authority: Authority) -> None:
    """Whether a handshake has begun or not."""
    one = await _member(authority)
    silent = [await _silent(one) for _ in range(3)]
    await until(lambda: len(one.transport._doorway) == 3)
    late = await _silent(one)
    await close(one)
    assert len(one.transport._doorway) == 0
    assert not one.transport._doorway._handshakes
    for reader, _ in (*silent, late):
        await _end(reader)
    await _hang_up(*silent, late)


@in_loop
async def test_places_are_taken_in_their_order() -> None:
    """Whoever left takes nobody along, and a visitor that was turned away may leave again."""
    doorway, away = Doorway(Limits(handshakes_max=2, greeting_seconds_min=0)), []
    for name in ("a", "b", "c"):
        assert doorway.enter(name, lambda name=name: away.append(name))  # type: ignore[misc]
    doorway.leave("a")
    assert doorway.enter("d", lambda: away.append("d"))
    assert (away, len(doorway)) == (["a", "b"], 2)
    doorway.leave("c")
    doorway.leave("d")
    assert len(doorway) == 0


def test_uvloop_reads_nothing_of_a_handshake_before_it_begins(authority: Authority) -> None:
    """It begins to read whatever it was told; members speak TLS on it all the same."""
    uvloop = pytest.importorskip("uvloop")

    async def scenario() -> None:
        async with asyncio.timeout(10):
            one, two = await _member(authority), Member(TcpTransport(listen=f"{HOST}:0", tls=authority.tls("n2")), 2)
            await two.start()
            introduce(one, two)
            await connected(one, two)
            await close(one, two)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
