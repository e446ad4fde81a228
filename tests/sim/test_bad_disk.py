"""Disks that fail or rot under load: whole nodes in virtual time, and nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio

import pytest

from pyraftkv import errors
from pyraftkv.node import Node
from pyraftkv.sim.faults import DiskFault, SyncFailure
from pyraftkv.sim.host import Host
from pyraftkv.sim.simulation import Simulation
from tests.sim.test_full_disk import Writer, everything_is_there
from tests.sim.test_pitfalls import SECONDS_MAX, until
from tests.sim.test_simulation import leader_of


WRITERS = 16
"""Enough that some of them wait for an answer at any moment."""


class Embedder:
    """A program that writes through its own node and looks at what becomes of that, in each of a member's lives."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, list[str]] = {}
        self.ends: dict[str, list[errors.PyraftkvError]] = {}
        """The errors of each life's writes, by machine and boot."""
        self.is_over = False

    async def __call__(self, host: Host, node: Node) -> None:
        """Write, several at a time, until the node ends."""
        life = f"{host.name}/{host.boots}"
        self.acknowledged[life], self.ends[life] = [], []
        writers = [asyncio.ensure_future(self._write(node, life, number)) for number in range(WRITERS)]
        try:
            await asyncio.wait(writers)
        finally:
            for writer in writers:
                writer.cancel()
            await asyncio.wait(writers)

    async def _write(self, node: Node, life: str, writer: int) -> None:
        number = 0
        while not self.is_over:
            number += 1
            key = f"{life}/{writer}/{number:04}"
            try:
                await node.put(key, "v", timeout=1.0)
                self.acknowledged[life].append(key)
                await asyncio.sleep(0.001 * writer)
            except errors.PyraftkvError as error:
                self.ends[life].append(error)
                if isinstance(error, errors.Closed | errors.NodeFailed):
                    return
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("how", ["dropped", "kept", "durable"])
def test_a_sync_that_fails_ends_the_leader_and_nothing_is_lost(how: SyncFailure) -> None:
    """1. Under load, from clients and from its own program: what is under way ends as "may be applied".

    2. The log is not touched again, and no file beside it: a second sync would succeed, and mean nothing.
    3. The node ends with that error, its clients find the others, and with a sound disk it comes back.
    """

    async def main(sim: Simulation) -> None:
        sim.embedded = embedder = Embedder()
        leader = await leader_of(sim)
        writer = Writer(sim)
        await writer.more(10)
        life, node, disk = f"{leader.name}/{leader.boots}", leader.node, leader.disk
        assert node is not None
        assert node.failed is not None
        failed = node.failed
        disk.trace.clear()
        leader.set_disk(DiskFault(sync_failure=how))
        await until(lambda: not leader.is_up, sim)
        operations = list(disk.trace)
        last = next(at for at, (what, _) in enumerate(operations) if what == "fdatasync")
        assert operations[last][1].endswith(".wal")
        assert operations[last + 1 :] == [], "something was touched after the failure"
        assert isinstance(failed.exception(), errors.StorageFailed)
        ends = embedder.ends[life]
        assert {errors.NodeFailed} <= {type(error) for error in ends} <= {errors.NodeFailed, errors.Closed}, ends
        assert all("the log failed" in str(error) for error in ends if isinstance(error, errors.NodeFailed))
        leader.set_disk(DiskFault())
        await writer.more(20)
        await until(lambda: leader.is_up, sim)
        embedder.is_over = True
        await sim.sleep(2.0)
        writer.acknowledged += [key for keys in embedder.acknowledged.values() for key in keys]
        await everything_is_there(sim, writer)

    with Simulation(seed=62) as sim:
        sim.run(main, until=SECONDS_MAX)
