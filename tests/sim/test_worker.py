"""Workers in virtual time: order, latency, and what a pause, a kill or a power loss does to a job."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from pyraftkv.sim.disk import DiskFaults, DiskProfile, SimDisk
from pyraftkv.sim.loop import SimLoop
from pyraftkv.sim.process import PROCESS, SimProcess
from pyraftkv.sim.worker import SimWorker
from tests.log.model import Driver


class World:
    """A machine with a process and a worker; its syncs take 10 ms."""

    def __init__(self, seed: int = 0) -> None:
        self.loop = SimLoop(Random(seed))
        self.disk = SimDisk(Random(seed), profile=DiskProfile(sync_seconds=(0.01, 0.01)))
        self.heard: list[tuple[object, object]] = []
        self.boot()

    def boot(self) -> None:
        """Start the next life."""
        self.process: SimProcess = self.loop.process("n1")
        self.fs = self.disk.mount()
        self.worker = SimWorker(self.loop, self.process, self.disk, "writer")

    def submit(self, job) -> None:
        self.worker.submit(job, lambda result, error: self.heard.append((result, error)))

    def sync(self):
        """A job that syncs, and returns when it ran."""
        self.fs.fsync_dir("/")
        return round(self.loop.now, 3)

    def run(self, main) -> None:
        self.loop.run(main, until=100.0)
        self.loop.close()


@pytest.fixture
def world() -> World:
    """One machine."""
    return World()


def test_jobs_run_in_order_in_their_process(world):
    """And so do their completions, each after its job, as a callback of the process."""
    ran, heard = [], []

    def job(number: int):
        ran.append((number, world.loop.current is world.process, PROCESS.get() is world.process))
        return number

    def then(number, error):
        assert number < len(ran)
        heard.append((number, error, world.loop.current is world.process))

    async def main():
        for number in range(10):
            world.worker.submit(lambda number=number: job(number), then)
        assert ran == [], "not before the caller is done"
        await asyncio.sleep(1)
        assert world.loop.current is world.loop.harness

    world.run(main())
    assert ran == [(number, True, True) for number in range(10)]
    assert heard == [(number, None, True) for number in range(10)]


def test_what_a_job_schedules_belongs_to_its_process(world):
    """As `call_soon_threadsafe` does from a thread."""
    owners = []

    async def main():
        job = lambda: asyncio.get_running_loop().call_soon_threadsafe(lambda: owners.append(world.loop.current))  # noqa: E731
        world.submit(job)
        await asyncio.sleep(1)

    world.run(main())
    assert owners == [world.process]


def test_an_error_is_an_outcome(world):
    """And the next job runs."""

    async def main():
        world.submit(lambda: 1 // 0)
        world.submit(lambda: 5)
        await asyncio.sleep(1)

    world.run(main())
    (nothing, error), five = world.heard
    assert (nothing, type(error), five) == (None, ZeroDivisionError, (5, None))


def test_a_job_takes_what_it_cost(world):
    """One after the other; a job that does not touch the disk takes almost nothing, and a slow disk is slow."""
    times = []

    async def main():
        for count in (1, 3, 0):
            done = asyncio.get_running_loop().create_future()
            began = world.loop.now

            def job(count=count):
                for _ in range(count):
                    world.sync()

            world.worker.submit(job, lambda _result, _error, done=done: done.set_result(None))
            await done
            times.append(world.loop.now - began)
        world.disk.fault = DiskFaults(slow_factor=100)
        await asyncio.sleep(0.1)
        world.submit(world.sync)
        await asyncio.sleep(0.9)
        assert world.heard == []
        await asyncio.sleep(1.0)
        assert len(world.heard) == 1

    world.run(main())
    assert times[0] == pytest.approx(0.01, abs=0.001)
    assert times[1] == pytest.approx(0.03, abs=0.001)
    assert times[2] < 0.031


def test_the_process_goes_on_while_its_disk_works(world):
    """A slow disk delays what waits for it and nothing else."""
    ticks = []

    async def life():
        world.submit(world.sync)
        while not world.heard:
            ticks.append(world.loop.now)
            await asyncio.sleep(0.001)

    async def main():
        await world.process.spawn(life())

    world.run(main())
    assert 9 <= len(ticks) <= 12


def test_a_job_is_done_at_some_time_before_it_is_heard_of():
    """So whoever dies in between finds it done, or not done, in the next life."""
    done = 0
    for seed in range(40):
        world = World(seed)

        async def main(world=world):
            world.submit(world.sync)
            await asyncio.sleep(0.1)
            before = world.disk.operations
            world.submit(world.sync)
            await asyncio.sleep(0.005)
            world.process.kill()
            return world.disk.operations - before

        done += world.loop.run(main(), until=10.0)
        assert len(world.heard) == 1
        world.loop.close()
    assert 10 < done < 30


def test_the_jobs_of_a_paused_process_wait(world):
    """And go on when it is resumed."""

    async def main():
        world.submit(world.sync)
        world.process.pause()
        world.submit(world.sync)
        await asyncio.sleep(5)
        assert (world.disk.operations, world.heard) == (0, [])
        world.process.resume()
        await asyncio.sleep(5)

    world.run(main())
    first, second = (ran_at for ran_at, _ in world.heard)
    assert 5 <= first < second < 5.1


def test_a_dead_process_runs_nothing(world):
    """Neither what waited, nor what is submitted after, nor a completion."""

    async def main():
        for _ in range(3):
            world.submit(world.sync)
        await asyncio.sleep(0.015)
        ran = world.disk.operations
        assert 0 < ran < 3
        world.process.kill()
        world.submit(world.sync)
        await asyncio.sleep(1)
        assert world.disk.operations == ran
        world.process.resume()
        await asyncio.sleep(1)
        assert world.disk.operations == ran

    world.run(main())
    assert len(world.heard) <= 1


def test_a_power_loss_in_the_middle_of_a_job_ends_it(world):
    """The job does not go on, nobody hears of it, and no other job follows, even if the process outlived its disk."""

    def job():
        world.sync()
        world.sync()

    async def main():
        world.disk.power_loss_at(2, lambda: None)
        world.submit(job)
        world.submit(job)
        await asyncio.sleep(1)
        assert world.disk.operations == 2
        world.boot()
        world.submit(world.sync)
        await asyncio.sleep(1)

    world.run(main())
    assert len(world.heard) == 1


def test_a_stopped_worker_finishes_what_it_has(world):
    """And takes nothing more."""

    async def main():
        world.submit(world.sync)
        world.submit(world.sync)
        world.worker.stop()
        world.worker.stop()
        world.submit(world.sync)
        await asyncio.sleep(1)

    world.run(main())
    assert len(world.heard) == 2


@pytest.mark.parametrize("seed", range(6))
def test_the_real_storage_survives_on_it(seed):
    """Lives that end by a kill or a power loss, at a random time or in the middle of a job, on one disk."""
    random = Random(seed)
    world, driver = World(seed), Driver(seed)
    world.disk.profile = DiskProfile(sync_seconds=(0.0001, 0.0005))
    world.disk.fault = DiskFaults(short_write_rate=0.1)
    deaths = 0

    async def life():
        def make_worker(name: str) -> SimWorker:
            return SimWorker(world.loop, world.process, world.disk, name)

        await driver.life(world.fs, make_worker, 40)

    async def one_life():
        nonlocal deaths
        task, ended = world.process.spawn(life()), world.loop.create_future()
        world.process.on_exit.append(ended.set_result)
        end_at = random.choice((world.disk.kill_at, world.disk.power_loss_at))
        end_at(random.randint(1, 250), world.process.kill)
        await asyncio.wait([task, ended], timeout=random.choice((0.02, 0.1, 60)), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        deaths += not task.done()
        world.process.kill()
        random.choice((world.disk.kill, world.disk.power_loss))()
        world.disk.spare()
        world.boot()

    async def main():
        for _ in range(8):
            await one_life()
        await world.process.spawn(life())

    world.run(main())
    assert deaths >= 4, f"seed {seed}: the lives ended too well"
