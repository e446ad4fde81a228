"""Disks that fail or rot under load: whole nodes in virtual time, and nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio

import pytest

from pyraftkv import errors
from pyraftkv.log.segment import BLOCK_BYTES
from pyraftkv.node import Node
from pyraftkv.node.rebuilding import Rebuilding
from pyraftkv.sim.faults import DiskFault, SyncFailure
from pyraftkv.sim.host import Host
from pyraftkv.sim.simulation import DATA_DIR, Simulation
from pyraftkv.transport import TcpDialer
from tests.log.disks import LoopWorker
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


def rot_in_the_middle(host: Host) -> None:
    """Flip a bit of the log, in a batch that many others follow, and of the copy in memory: it is not running."""
    path = next(f"/data/wal/{name}" for name in host.disk.mount().listdir("/data/wal") if name.endswith(".wal"))
    data = bytearray(host.disk.file(path))
    data[BLOCK_BYTES + 2000] ^= 1
    host.disk.damage(path, data)
    host.had_bad_disk = host.is_rotten = True


def votes(host: Host) -> bool:
    """Whether a member runs, and has a vote as far as it knows."""
    return host.member is not None and host.member.raft.membership.is_voter(host.member.raft.id)


async def rebuild(sim: Simulation, victim: Host) -> int:
    """Rebuild a member that refused to start, as `pyraftkv.rebuild` does; return the id of the one that it was."""
    disk = victim.disk.copy()
    sim.invariants.lost(victim.name)
    host = sim.renew(victim.name)
    others = [address for name, address in sim.addresses.items() if name != victim.name]
    crashed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    rebuilding = Rebuilding(
        DATA_DIR,
        name=None,
        join=others,
        dialer=TcpDialer(),
        random=sim.random("new"),
        fs=disk.mount(),
        worker=lambda _: LoopWorker(crashed),
    )
    done = await rebuilding.replace(None)
    assert (done.member.name, done.votes, done.aside) == (victim.name, True, f"{DATA_DIR}.damaged-1")
    host.disk.take(disk)
    host.start()
    return done.replaced


@pytest.mark.parametrize("victim_leads", [False, True])
def test_a_member_whose_log_rots_is_rebuilt_under_load(victim_leads: bool) -> None:
    """1. A member lost its power, and meanwhile its log rots in the middle: it refuses to start, by name.

    2. It is rebuilt while the others take writes: another id, a learner first, then it votes.
    3. It counts: with it and one of the others the cluster goes on. Nothing that was acknowledged is lost.
    """

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        victim = leader if victim_leads else next(host for host in sim.members if host is not leader)
        writer = Writer(sim)
        await writer.more(20)
        node = victim.node
        assert node is not None
        old = (await victim.run(lambda _: node.status())).member_id  # type: ignore[misc]
        victim.power_loss()
        rot_in_the_middle(victim)
        victim.start()
        await until(lambda: victim.is_out, sim)
        stops = [event for event in sim.trace.events({"stop"}) if event.host == victim.name]
        assert stops[-1].detail["why"] == "WalCorruption"
        await writer.more(20)
        assert await rebuild(sim, victim) == old
        await writer.more(20)
        await until(lambda: votes(victim), sim)
        other = next(host for host in sim.members if host is not victim and host is not sim.leader)
        other.kill()
        await writer.more(20)
        other.start()
        await everything_is_there(sim, writer)
        sim.check_images()

    with Simulation(seed=63) as sim:
        sim.run(main, until=SECONDS_MAX)
