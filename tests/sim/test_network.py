"""Streams and links: what asyncio's transports promise, and what a network does to it."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

from pyraftkv.core.messages import AppendRequest, Heartbeat
from pyraftkv.core.types import Entry
from pyraftkv.sim.network import SimNetwork
from pyraftkv.transport import Limits, TcpDialer, TcpTransport
from tests.sim.world import World
from tests.transport.members import Member, Stream, close, hello


async def until(condition: Any) -> None:
    """Wait in virtual time until the condition holds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - it reads other objects' state, which announce no event
            await asyncio.sleep(0.01)


def member(number: int, **limits: Any) -> Member:
    """A recording member on host ``n<number>``."""
    name = f"n{number}"
    transport = TcpTransport(listen=f"{name}:7400", insecure=True, rng=Random(number), limits=Limits(**limits))
    return Member(transport, number)


def test_the_real_transport_runs_on_it_unchanged() -> None:
    """Two members exchange messages of every size, a client is served, and all of it closes."""

    async def main(world: World) -> None:
        one, two = member(1), member(2)
        await world.on("n1", one.start())
        await world.on("n2", two.start())

        world.process("n1").post(one.transport.set_peers, {2: "n2:7400"})
        world.process("n2").post(two.transport.set_peers, {1: "n1:7400"})
        await until(lambda: one.transport.connected == {2} and two.transport.connected == {1})
        large = AppendRequest(2, 1, 5, 0, 0, [Entry(1, 5, bytes(1_000_000))], 0)
        world.process("n1").post(one.transport.send, [large, Heartbeat(2, 1, 5, 9, 0)])
        await until(lambda: len(two.received) == 2)
        assert large in two.received

        async def call() -> list[bytes]:
            connection = await TcpDialer()("n1:7400", hello())
            stream = Stream(connection)
            connection.send(b"question")
            await until(lambda: stream.frames)
            connection.close()
            return stream.frames

        async def answer() -> None:
            await until(lambda: one.clients)
            client = one.clients[0]
            client.open(received=lambda frame: client.send(frame + b"!"), closed=lambda _: None)

        answering = world.process("n1").spawn(answer())
        assert await world.on("c1", call()) == [b"question!"]
        await answering
        await world.on("n1", close(one))
        await world.on("n2", close(two))

    world = World(seed=1)
    world.run(main)
    assert isinstance(world.loop.network, SimNetwork)
