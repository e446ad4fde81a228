"""The proxies, in virtual time: two members with the real transport, each reached through a proxy on a third host."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest

from pyraftkv.core.messages import Heartbeat
from pyraftkv.sim.faults import LinkFault
from pyraftkv.sim.proxy import RETRANSMIT_SECONDS_MAX, Proxy, ProxyLinks
from pyraftkv.transport import TcpTransport
from tests.sim.world import World
from tests.transport.members import Member, close

BEAT = Heartbeat(2, 1, 5, 9, 0)


class Pair:
    """Members ``n1`` and ``n2``, of which the first sends to the second."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.links = ProxyLinks(Random(0))
        self.members = {
            number: Member(TcpTransport(listen=f"n{number}:7400", insecure=True, rng=Random(number)), number)
            for number in (1, 2)
        }
        self.proxies = [
            Proxy(self.links, f"n{number}", listen=f"proxy:{number}", forward=f"n{number}:7400") for number in (1, 2)
        ]

    @property
    def received(self) -> list[Any]:
        return self.members[2].received

    @property
    def now(self) -> float:
        return self.world.loop.now

    async def start(self) -> None:
        for proxy in self.proxies:
            await self.world.on("proxy", proxy.__aenter__())
        for number, member in self.members.items():
            await self.world.on(f"n{number}", member.start())
        for number, other in ((1, 2), (2, 1)):
            peers = {other: f"proxy:{other}"}
            self.world.process(f"n{number}").post(self.members[number].transport.set_peers, peers)
        await self.joined()

    async def joined(self) -> None:
        """Wait until each has a connection to the other."""
        await self.until(lambda: all(len(member.transport.connected) == 1 for member in self.members.values()))

    async def until(self, condition: Callable[[], bool], *, seconds: float = 60.0) -> float:
        """Wait until the condition holds; return how long that took."""
        began = self.now
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - it reads other objects' state, which announce no event
                await asyncio.sleep(0.001)
        return self.now - began

    def send(self) -> None:
        """Send one message from the first to the second."""
        self.world.process("n1").post(self.members[1].transport.send, [BEAT])

    async def arrival(self) -> float:
        """Send one message; return how long it takes."""
        count = len(self.received)
        self.send()
        return await self.until(lambda: len(self.received) > count)

    async def close(self) -> None:
        for number, member in self.members.items():
            await self.world.on(f"n{number}", close(member))
        for proxy in self.proxies:
            await self.world.on("proxy", proxy.__aexit__())


def run(test: Callable[[Pair], Awaitable[None]]) -> None:
    """Run a test on a pair that is connected."""

    async def main(world: World) -> None:
        pair = Pair(world)
        await pair.start()
        await test(pair)
        await pair.close()

    World(seed=1).run(main)


def test_members_reach_each_other_through_their_proxies() -> None:
    """What is sent arrives, soon and as it was sent."""

    async def test(pair: Pair) -> None:
        assert await pair.arrival() < 0.1
        assert pair.received == [BEAT]

    run(test)


def test_a_cut_holds_back_one_direction_until_it_heals() -> None:
    """Nothing arrives over a link that is cut; what was sent meanwhile does afterwards, over the same connection."""

    async def test(pair: Pair) -> None:
        hellos = len(pair.members[2].hellos)
        pair.links.cut("n2", "n1")
        assert await pair.arrival() < 0.1
        pair.links.heal("n2", "n1")
        pair.links.cut("n1", "n2")
        pair.send()
        await asyncio.sleep(1)
        assert len(pair.received) == 1
        pair.links.heal("n1", "n2")
        assert await pair.until(lambda: len(pair.received) == 2) < 0.1
        assert len(pair.members[2].hellos) == hellos

    run(test)


def test_a_cut_that_lasts_breaks_what_waits() -> None:
    """Bytes that cannot pass for long end their connection, as TCP gives up; another follows once the link is whole."""

    async def test(pair: Pair) -> None:
        pair.links.cut("n1", "n2")
        pair.send()
        await pair.until(lambda: pair.members[1].transport.connected == set())
        assert pair.received == []
        await asyncio.sleep(RETRANSMIT_SECONDS_MAX)
        pair.links.heal("n1", "n2")
        await pair.joined()
        assert await pair.arrival() < 0.1

    run(test)


@pytest.mark.parametrize(
    ("fault", "low", "high"),
    [
        (LinkFault(delay_seconds=0.5), 0.5, 0.6),
        (LinkFault(bandwidth_bytes=50), 0.5, 2.0),
        (LinkFault(), 0.0, 0.1),
    ],
)
def test_a_bad_link_is_late(fault: LinkFault, low: float, high: float) -> None:
    """Delay is added to what a piece takes, and bandwidth stretches it by its size; the way back is as usual."""

    async def test(pair: Pair) -> None:
        pair.links.set_fault("n1", "n2", fault)
        assert low <= await pair.arrival() <= high
        pair.links.set_fault("n1", "n2", LinkFault())
        assert await pair.arrival() < 0.1

    run(test)


def test_corruption_is_noticed_by_whom_it_befalls() -> None:
    """A flipped bit arrives, so the receiver drops the connection and takes nothing wrong; afterwards all is well."""

    async def test(pair: Pair) -> None:
        pair.links.set_fault("n1", "n2", LinkFault(corrupt_rate=1.0))
        pair.send()
        await pair.until(lambda: pair.members[1].transport.connected == set())
        assert pair.received == []
        pair.links.set_fault("n1", "n2", LinkFault())
        await pair.joined()
        assert await pair.arrival() < 0.1
        assert pair.received == [BEAT]

    run(test)


def test_a_reset_breaks_the_connections_between_two_and_no_other() -> None:
    """Both members lose each other, and find each other again; a reset of others changes nothing."""

    async def test(pair: Pair) -> None:
        hellos = len(pair.members[2].hellos)
        pair.links.reset("n1", "c1")
        assert await pair.arrival() < 0.1
        assert len(pair.members[2].hellos) == hellos
        pair.links.reset("n2", "n1")
        await pair.until(lambda: not any(member.transport.connected for member in pair.members.values()))
        await pair.joined()
        assert len(pair.members[2].hellos) > hellos

    run(test)


def test_a_member_that_is_down_refuses() -> None:
    """Who dials a host behind whose proxy nobody listens is reset at once, and not left to wait."""

    async def test(pair: Pair) -> None:
        await pair.world.on("n2", close(pair.members[2]))

        async def dial() -> bytes:
            reader, writer = await asyncio.open_connection("proxy", 2)
            try:
                writer.write(b"GET / HTTP/1.1\r\nHost: proxy\r\n\r\n")
                return await reader.read()
            except ConnectionResetError:
                return b"reset"
            finally:
                writer.transport.abort()

        began = pair.now
        assert await pair.world.on("c1", dial()) in {b"reset", b""}
        assert pair.now - began < 0.1

    run(test)
