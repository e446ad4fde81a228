"""Machines: lives that end in every way, what outlives them, and who starts them again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from random import Random

import pytest

from pyraftkv.sim.disk import SimDisk
from pyraftkv.sim.faults import DiskFault
from pyraftkv.sim.host import RESTART_SECONDS, Host, HostDied, Program
from pyraftkv.sim.loop import SimLoop
from pyraftkv.sim.trace import Trace


class World:
    """One machine."""

    def __init__(self, program: Program | None = None) -> None:
        self.loop = SimLoop(Random(1))  # type: ignore[abstract]
        self.trace = Trace()
        self.ended: list[BaseException | None] = []
        self.said: list[str] = []
        self.host = Host(
            "m",
            loop=self.loop,
            trace=self.trace,
            random=Random(2),
            disk=SimDisk(Random(3)),
            addresses=["n1:1", "n2:1"],
            program=program or self.talk,
            ended=lambda _, error: self.ended.append(error),
        )

    async def talk(self, host: Host) -> None:
        """Say something every second, and good-bye at the end."""
        boot = host.boots
        try:
            while True:
                self.said.append(f"{boot}")
                await asyncio.sleep(1)
        finally:
            self.said.append(f"{boot} ends")

    def pass_time(self, seconds: float) -> None:
        self.loop.run(asyncio.sleep(seconds))

    def kinds(self) -> list[str]:
        return [event.kind for event in self.trace.events()]


@pytest.fixture
def world() -> Iterator[World]:
    """A machine whose program talks."""
    made = World()
    yield made
    made.loop.close()


def test_a_killed_program_says_no_more(world: World) -> None:
    """Not even good-bye; and nobody but who killed it starts it again."""
    world.host.start()
    world.pass_time(1.5)
    world.host.kill()
    world.pass_time(10)
    assert world.said == ["1", "1"]
    assert not world.host.is_up
    world.host.start()
    world.host.start()
    world.pass_time(0.5)
    assert world.said == ["1", "1", "2"]
    assert world.kinds() == ["start", "crash", "start"]


def test_a_program_that_is_asked_to_end_cleans_up(world: World) -> None:
    """It stays down afterwards."""
    world.host.start()
    world.pass_time(0.5)
    world.host.shut_down()
    world.pass_time(5)
    assert world.said == ["1", "1 ends"]
    assert (world.host.is_up, world.ended) == (False, [None])


def test_a_program_that_fails_is_started_again() -> None:
    """By a supervisor, a moment later; whoever judges failures hears of it."""

    async def fail(host: Host) -> None:
        await asyncio.sleep(0.01)
        if host.boots < 3:
            raise OSError("no luck")
        await asyncio.sleep(100)

    world = World(fail)
    world.host.start()
    world.pass_time(3 * RESTART_SECONDS[1])
    assert [str(error) for error in world.ended] == ["no luck", "no luck"]
    assert (world.host.boots, world.host.is_up) == (3, True)
    world.loop.close()


def test_a_machine_that_was_given_up_stays_down(world: World) -> None:
    """As one whose disk is gone."""
    world.host.start()
    world.host.wipe()
    world.host.start()
    world.pass_time(1)
    assert (world.host.is_up, world.host.is_out, world.host.had_bad_disk) == (False, True, True)


def test_who_is_paused_is_born_paused(world: World) -> None:
    """A life that begins during a pause or a suspension waits for its end; both must end."""
    world.host.pause()
    world.host.freeze()
    world.host.start()
    world.pass_time(2)
    world.host.resume()
    world.pass_time(2)
    assert world.said == []
    world.host.thaw()
    world.pass_time(0.5)
    assert world.said == ["1"]


def test_the_disk_outlives_the_process_but_not_the_power() -> None:
    """What was written and not synced survives a kill, and not a power loss that loses it all."""

    async def write(host: Host) -> None:
        host.files.make_dir("/d")
        host.files.fsync_dir("/")
        fd = host.files.open("/d/f", create=True)
        host.files.fsync_dir("/d")
        host.files.pwrite(fd, b"x" * 10, 0)
        await asyncio.sleep(100)

    world = World(write)
    world.host.start()
    world.pass_time(0.1)
    world.host.kill()
    assert world.host.disk.file("/d/f") == b"x" * 10
    assert world.host.disk.durable_copy().file("/d/f") == b""
    world.host.power_loss()
    assert "crash" in world.kinds()
    world.loop.close()


def test_power_can_fail_in_the_middle_of_an_operation() -> None:
    """The process ends before that operation is done, and is started by nobody."""

    async def write(host: Host) -> None:
        fd = host.files.open("/f", create=True)
        for position in range(100):
            host.files.pwrite(fd, b"x", position)
            await asyncio.sleep(0.1)

    world = World(write)
    world.host.start()
    world.host.power_loss_at(5)
    world.pass_time(20)
    assert not world.host.is_up
    assert world.host.disk.operations == 5
    world.loop.close()


def test_somebody_else_can_run_something_there(world: World) -> None:
    """They get its result or error; and hear of it when the process dies first, or there is none."""

    async def answer(host: Host) -> str:
        await asyncio.sleep(0.1)
        return f"{host.name}, {host.boots}"

    async def refuse(_: Host) -> None:
        raise ValueError("no")

    async def forever(_: Host) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        with pytest.raises(HostDied, match=r"m was not started yet: `start\(\)` does it"):
            await world.host.run(answer)
        world.host.start()
        assert await world.host.run(answer) == "m, 1"
        with pytest.raises(ValueError, match="no"):
            await world.host.run(refuse)
        world.loop.at(world.loop.now + 1, world.host.kill)
        with pytest.raises(HostDied, match="died"):
            await world.host.run(forever)
        with pytest.raises(HostDied, match="is down"):
            await world.host.run(answer)

    world.loop.run(main(), until=10)


def test_a_bad_disk_is_remembered(world: World) -> None:
    """Whether it ever was bad decides what a member's failure means."""
    world.host.set_disk(DiskFault())
    assert not world.host.had_bad_disk
    world.host.set_disk(DiskFault(is_full=True))
    world.host.set_disk(DiskFault())
    assert world.host.had_bad_disk
