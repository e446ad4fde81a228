"""Disks that fill up under load, and have room again: whole nodes in virtual time, nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import pytest

from pyraftkv import errors
from pyraftkv.node.disk import DISK_FULL
from pyraftkv.sim.faults import DiskFault
from pyraftkv.sim.host import Host
from pyraftkv.sim.simulation import Simulation
from tests.sim.test_pitfalls import CRAMPED, SECONDS_MAX, contents, node_of, snapshots_to, until
from tests.sim.test_simulation import leader_of
from tests.sim.test_watchdog import watched

FULL = DiskFault(is_full=True)
VALUE = bytes(16 << 10)
"""Large enough to use up what room a log has ahead within a second."""

TURNS = 80


class Writer:
    """Writes keys one after the other, and knows which were acknowledged."""

    def __init__(self, sim: Simulation, *, size_bytes: int = len(VALUE)) -> None:
        self._sim = sim
        self._value = bytes(size_bytes)
        self.acknowledged: list[str] = []
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        number = 0
        async with self._sim.client() as kv:
            while True:
                number += 1
                try:
                    await kv.put(f"k{number:05}", self._value, timeout=1.0)
                    self.acknowledged.append(f"k{number:05}")
                except (errors.NotApplied, errors.MaybeApplied):
                    await self._sim.sleep(0.05)

    async def more(self, count: int) -> None:
        """Wait until so many more were acknowledged."""
        enough = len(self.acknowledged) + count
        await until(lambda: len(self.acknowledged) >= enough, self._sim)


def run(main: Callable[[Simulation], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario on three members."""
    with Simulation(seed=61) as sim:
        sim.run(main, until=SECONDS_MAX)


def is_full(host: Host) -> bool:
    """Whether a member says that its disk is full."""
    assert host.member is not None
    return host.member.disk.is_full


async def everything_is_there(sim: Simulation, writer: Writer) -> None:
    """See that all members run, hold the same, and all that was acknowledged."""
    writer.task.cancel()
    states = await contents(sim)
    assert states[0] == states[1] == states[2]
    _, kvs = states[0]  # type: ignore[misc]
    assert set(writer.acknowledged) <= {kv.key.decode() for kv in kvs}  # type: ignore[attr-defined]
    assert not any(is_full(host) for host in sim.members)


async def local_read(host: Host) -> object:
    """Read what a member has, and how it says it is."""
    node = node_of(host)
    return await node.get("k00001", consistency="local"), (await node.status()).alarms


def test_a_leader_whose_disk_fills_up_hands_over_and_comes_back() -> None:
    """Writes go on with the others; the full one refuses writes, serves local reads, says so, and catches up later."""

    async def main(sim: Simulation) -> None:
        leader, begun, _ = await watched(sim)
        writer = Writer(sim)
        await writer.more(5)
        leader.set_disk(FULL)
        await until(lambda: sim.leader not in (None, leader), sim)
        assert begun[0].reason == "disk full"
        await writer.more(60)
        value, alarms = await leader.run(local_read)  # type: ignore[misc]
        assert value is not None
        assert DISK_FULL in alarms
        with pytest.raises(errors.DiskFull):
            await leader.run(lambda host: node_of(host).put("refused", "here"))
        assert sim.leader is not leader
        leader.set_disk(DiskFault())
        await writer.more(5)
        await until(lambda: not is_full(leader), sim)
        assert await leader.run(lambda host: node_of(host).put("taken", "here"))
        await everything_is_there(sim, writer)

    run(main)


def test_a_follower_whose_disk_is_full_acknowledges_nothing_and_votes() -> None:
    """With it alone the leader commits nothing; but when the leader dies, its vote makes the third one the leader."""

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        full, other = (host for host in sim.members if host is not leader)
        writer = Writer(sim)
        await writer.more(5)
        full.set_disk(FULL)
        await until(lambda: is_full(full), sim)
        other.kill()
        await sim.sleep(1.0)
        count = len(writer.acknowledged)
        await sim.sleep(5.0)
        assert len(writer.acknowledged) == count, "one disk of three has it"
        other.start()
        await writer.more(5)
        leader.power_loss()
        await until(lambda: sim.leader is other, sim)
        assert is_full(full)
        count = len(writer.acknowledged)
        await sim.sleep(5.0)
        assert len(writer.acknowledged) == count
        full.set_disk(DiskFault())
        await writer.more(5)
        leader.start()
        await everything_is_there(sim, writer)

    run(main)


def test_all_disks_full_is_a_pause() -> None:
    """Nobody fails, nothing is acknowledged, and all goes on with room, though one lost its power meanwhile."""

    async def main(sim: Simulation) -> None:
        await leader_of(sim)
        writer = Writer(sim)
        await writer.more(5)
        for host in sim.members:
            host.set_disk(FULL)
        await until(lambda: all(is_full(host) for host in sim.members), sim)
        count = len(writer.acknowledged)
        await sim.sleep(10.0)
        assert len(writer.acknowledged) == count
        assert all(host.is_up for host in sim.members)
        sim.members[0].power_loss()
        sim.members[0].start()
        await sim.sleep(3.0)
        for host in sim.members:
            host.set_disk(DiskFault())
        await writer.more(20)
        await everything_is_there(sim, writer)

    run(main)


def test_room_that_comes_and_goes() -> None:
    """1. Every disk fills up and has room again, in quick turns: in the middle of batches, seals, snapshots and purges.

    2. One member is cut off meanwhile, and has to be sent a snapshot, onto a disk that does the same.
    3. Nobody fails, nothing that was acknowledged is lost, and with room for good nobody says that its disk is full.
    """

    async def main(sim: Simulation) -> None:
        await leader_of(sim)
        random, writer = Random(64), Writer(sim, size_bytes=700)
        late = sim.members[1]
        for turn in range(TURNS):
            if turn == TURNS // 2:
                late.power_loss()
                await writer.more(150)
                late.start()
            for host in sim.members:
                host.set_disk(DiskFault())
                if random.random() < 0.5 and turn != TURNS // 2 - 1:
                    host.set_disk(FULL)
            await sim.sleep(random.choice((0.01, 0.03, 0.1, 0.6)))
        for host in sim.members:
            host.set_disk(DiskFault())
        await writer.more(20)
        assert all(host.is_up for host in sim.members)
        await until(lambda: not any(is_full(host) for host in sim.members), sim)
        await everything_is_there(sim, writer)
        assert snapshots_to(sim.trace, late.name) > 0

    with Simulation(seed=64, swarm=CRAMPED) as sim:
        sim.run(main, until=SECONDS_MAX)
