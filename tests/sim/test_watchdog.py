"""A leader that loses its time hands over, and keeps what it has while it does not: whole nodes in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from pyraftkv import errors
from pyraftkv.node import HandoverBegun
from pyraftkv.sim.faults import DiskFault
from pyraftkv.sim.host import Host
from pyraftkv.sim.simulation import Simulation
from tests.sim.test_pitfalls import SECONDS_MAX, node_of, until
from tests.sim.test_simulation import leader_of


async def hold_up(sim: Simulation, host: Host, *, stopped: float, running: float) -> None:
    """Let a process run for so long at a time, and stop it for so long in between."""
    while True:
        host.pause()
        await sim.sleep(stopped)
        host.resume()
        await sim.sleep(running)


async def handovers(host: Host, note: Callable[[HandoverBegun], object]) -> None:
    """Note every handover that a node begins."""
    async for event in node_of(host).events():
        if isinstance(event, HandoverBegun):
            note(event)


async def write(sim: Simulation) -> None:
    """Put something again and again."""
    async with sim.client() as kv:
        while True:
            try:
                await kv.put("k", "v", timeout=20)
            except errors.MaybeApplied:
                continue
            await sim.sleep(0.01)


def run(main: Callable[[Simulation], Coroutine[Any, Any, None]], *, until_seconds: float = SECONDS_MAX) -> None:
    """Run a scenario on three members."""
    with Simulation(seed=51) as sim:
        sim.run(main, until=until_seconds)


async def watched(sim: Simulation) -> tuple[Host, list[HandoverBegun], int]:
    """Wait for a leader; return it, the handovers that it begins from now on, and its term."""
    leader = await leader_of(sim)
    begun: list[HandoverBegun] = []
    assert leader.process is not None
    leader.process.spawn(handovers(leader, begun.append))
    await sim.sleep(0.1)
    return leader, begun, node_of(leader).term


def test_a_leader_that_is_held_up_hands_over_before_it_loses_its_leadership() -> None:
    """1. A leader runs for a tenth of a second, and is stopped for four, over and over: it is heard, and slow.

    2. It hands over, once; the others never had to look for a leader. 3. It does not get the leadership back.
    """

    async def main(sim: Simulation) -> None:
        leader, begun, term = await watched(sim)
        holding = asyncio.ensure_future(hold_up(sim, leader, stopped=0.4, running=0.1))
        await until(lambda: sim.leader not in (None, leader), sim)
        assert [event.reason for event in begun] == ["event loop"]
        await sim.sleep(10)
        heir = sim.leader
        assert heir not in (None, leader)
        assert heir is not None
        assert node_of(heir).term == term + 1
        holding.cancel()

    run(main)


def test_a_leader_whose_disk_hangs_hands_over() -> None:
    """Its followers have what it cannot save; one of them takes over, and writes go on."""

    async def main(sim: Simulation) -> None:
        leader, begun, term = await watched(sim)
        writing = asyncio.ensure_future(write(sim))
        leader.set_disk(DiskFault(sync_seconds=4.0))
        await until(lambda: sim.leader not in (None, leader), sim)
        assert [event.reason for event in begun] == ["disk"]
        heir = sim.leader
        assert heir is not None
        assert node_of(heir).term == term + 1
        writing.cancel()

    run(main)


def test_pauses_now_and_then_cost_no_election() -> None:
    """Three minutes with a leader that is stopped for 300 ms in every second: it leads on, in the same term."""

    async def main(sim: Simulation) -> None:
        leader, begun, term = await watched(sim)
        holding = asyncio.ensure_future(hold_up(sim, leader, stopped=0.3, running=0.7))
        await sim.sleep(180)
        assert sim.leader is leader
        assert (node_of(leader).term, begun) == (term, [])
        holding.cancel()

    run(main, until_seconds=300.0)
