"""A rebuilding that is cut before any operation on its disk: the same command goes on, and nothing is ever lost."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from pyraftkv.log import FileStorage
from pyraftkv.node.aside import drop_note, read_note, write_note
from pyraftkv.node.rebuilding import NEW_SUFFIX, Rebuilding, Rebuilt
from pyraftkv.sim.disk import SimDisk
from pyraftkv.sim.host import Host
from pyraftkv.sim.simulation import DATA_DIR, Simulation
from pyraftkv.transport import TcpDialer
from tests.log.disks import LoopWorker
from tests.sim.test_bad_disk import rot_in_the_middle, votes
from tests.sim.test_full_disk import Writer, everything_is_there
from tests.sim.test_pitfalls import SECONDS_MAX, until
from tests.sim.test_simulation import leader_of

MARK = "damaged"
"""A file in the directory that is to be kept."""
ENDS = {"killed": SimDisk.kill_at, "without power": SimDisk.power_loss_at}
CUTS_MAX = 200
CLOSELY_FROM = 60
"""Before that a new directory is made, as any start makes one: half of its places are enough."""


async def attempt(sim: Simulation, name: str, disk: SimDisk) -> Rebuilt | None:
    """Rebuild a member; None if that was cut off."""
    crashed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    rebuilding = Rebuilding(
        DATA_DIR,
        name=None,
        join=[address for other, address in sim.addresses.items() if other != name],
        dialer=TcpDialer(),
        random=Random(disk.random.random()),
        fs=disk.mount(),
        worker=lambda _: LoopWorker(crashed),
    )
    task = asyncio.ensure_future(rebuilding.replace(None))
    await asyncio.wait([task, crashed], return_when=asyncio.FIRST_COMPLETED)
    while not task.done():
        task.cancel()
        await sim.sleep(0.001)
    return None if crashed.done() else task.result()


def logs(disk: SimDisk, path: str) -> dict[str, bytes]:
    """Return the segments of a data directory."""
    folder = f"{path}/wal"
    return {name: disk.file(f"{folder}/{name}") for name in disk.directory(folder).names}


def kept(disk: SimDisk, mark: bytes) -> str:
    """Return where the directory with that mark is."""
    found = [path for path, folder in disk.directories.items() if MARK in folder.names]
    return next(path for path in found if disk.file(f"{path}/{MARK}") == mark)


def openable(disk: SimDisk) -> None:
    """Whatever a start may be told to open can be: what is damaged is not there any more, or still is."""
    for path in (DATA_DIR, f"{DATA_DIR}{NEW_SUFFIX}"):
        if path in disk.directories and MARK not in disk.directories[path].names:
            assert FileStorage(path, fs=disk.copy().mount(), random=Random(1))._open().recovered.entries == []


async def cut(
    sim: Simulation, victim: Host, disk: SimDisk, how: str, number: int, *, seed: int
) -> tuple[SimDisk, bool]:
    """Rebuild a member, cut before so many operations, and again; return the disk, and whether anything was cut."""
    disk.directories = {
        path: of for path, of in disk.directories.items() if not path.startswith(f"{DATA_DIR}.damaged-")
    }
    mark = f"{how} {number} {seed}".encode()
    fs = disk.mount()
    fs.pwrite(fs.open(f"{DATA_DIR}/{MARK}", create=True), mark, 0)
    disk, before = disk.copy(), logs(disk, DATA_DIR)
    disk.random = Random(mark)
    ENDS[how](disk, number, lambda: None)
    done = await attempt(sim, victim.name, disk)
    disk.spare()
    was_cut = done is None
    if was_cut:
        assert logs(disk, kept(disk, mark)) == before
        openable(disk)
        done = await attempt(sim, victim.name, disk)
    assert done is not None
    assert done.votes
    disk = disk.durable_copy()
    assert logs(disk, kept(disk, mark)) == before
    assert kept(disk, mark).startswith(f"{DATA_DIR}.damaged-")
    assert f"{DATA_DIR}{NEW_SUFFIX}" not in disk.directories
    openable(disk)
    return disk, was_cut


@pytest.mark.parametrize("how", ENDS)
def test_a_rebuilding_cut_before_any_operation_of_its_disk(how: str, soak: bool) -> None:
    """1. A member's log rots. Its rebuilding is cut off, and the same command comes again; and so on, for each place.

    2. Each time there is one new member in the place of the one before, which is to vote; what was damaged is kept.
    3. In the end it is started: it votes, and has everything.
    """

    async def main(sim: Simulation) -> int:
        leader = await leader_of(sim)
        victim = next(host for host in sim.members if host is not leader)
        writer = Writer(sim, size_bytes=10)
        await writer.more(20)
        victim.power_loss()
        rot_in_the_middle(victim)
        writer.task.cancel()
        disk, number = victim.disk.copy(), 0
        sim.invariants.lost(victim.name)
        host = sim.renew(victim.name)
        for number in range(1, CUTS_MAX):
            was_cut = True
            for seed in range(20) if soak else range(number % 2 or 2 * (number > CLOSELY_FROM)):
                disk, was_cut = await cut(sim, victim, disk, how, number, seed=seed)
            if not was_cut:
                break
        async with sim.client(name="members") as client:
            rows = (await client.member_table(None)).members
        assert sorted(row.name for row in rows) == sorted(sim.addresses)
        assert read_note(DATA_DIR, fs=disk.mount())
        host.disk.take(disk)
        host.start()
        await until(lambda: votes(victim), sim)
        await everything_is_there(sim, writer)
        return number

    with Simulation(seed=64) as sim:
        assert 50 < sim.run(main, until=SECONDS_MAX) < CUTS_MAX - 1


def test_a_rebuilt_member_without_power_while_it_learns(soak: bool) -> None:
    """1. Its new directory is in place, it has been started, and the power goes in the middle of what it saves.

    2. The same command comes again: another one is put in its place, which is to vote. And so on.
    3. In the end one is left alone: it votes, and has everything.
    """

    async def main(sim: Simulation) -> None:
        leader = await leader_of(sim)
        victim = next(host for host in sim.members if host is not leader)
        writer = Writer(sim, size_bytes=10)
        await writer.more(20)
        victim.power_loss()
        disk = victim.disk.copy()
        for number in range(10, 130, 2 if soak else 40):
            disk.random = Random(number)
            done = await attempt(sim, victim.name, disk)
            assert done is not None
            assert done.votes
            sim.invariants.lost(victim.name)
            host = sim.renew(victim.name)
            host.disk.take(disk)
            host.power_loss_at(number)
            host.start()
            await until(lambda host=host: not host.is_up or votes(host), sim)
            if host.is_up:
                host.power_loss()
            disk = host.disk.copy()
        host.start()
        await until(lambda: votes(victim), sim)
        await everything_is_there(sim, writer)

    with Simulation(seed=65) as sim:
        sim.run(main, until=SECONDS_MAX)


def test_what_was_noted_does_not_come_back() -> None:
    """It would let a member vote that was made a learner since, and is rebuilt then."""
    disk = SimDisk(Random(1))
    fs = disk.mount()
    fs.make_dir("/data")
    fs.fsync_dir("/")
    write_note("/data", votes=True, fs=fs)
    drop_note("/data", fs=fs)
    drop_note("/data", fs=fs)
    assert read_note("/data", fs=disk.durable_copy().mount()) is None
