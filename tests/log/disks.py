"""Simulated disks for storages that run on a plain event loop: what only these tests need."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from pyraftkv.sim.disk import DiskError, DiskFaults, SimDisk, SimFS, SimulatedCrash


def blank(random: Random | None = None) -> SimFS:
    """An empty disk, mounted. With a random, a tenth of its writes are short."""
    disk = SimDisk(random or Random(0))
    if random is not None:
        disk.fault = DiskFaults(short_write_rate=0.1)
    return disk.mount()


def twin(fs: SimFS) -> SimFS:
    """A copy of the disk with everything synced, mounted."""
    return fs.disk.copy().mount()


def trace(fs: SimFS) -> list[str]:
    """The disk's operations, a line for each."""
    return [f"{operation} {path}" for operation, path in fs.disk.trace]


@dataclass(slots=True)
class Rule(DiskError):
    """Fails what a function of operation and path returns an errno for."""

    decide: Callable[[str, str], int] = lambda _operation, _path: 0

    def strikes(self, operation: str, path: str, random: Random) -> bool:
        self.code = self.decide(operation, path)
        return bool(self.code)


def fail(fs: SimFS, decide: Callable[[str, str], int]) -> None:
    """Let the disk fail by this rule, until `heal`."""
    fs.disk.fault = DiskFaults(errors=(Rule(decide=decide),))


def heal(fs: SimFS) -> None:
    """Nothing is wrong with the disk any more."""
    fs.disk.fault = DiskFaults()


class LoopWorker:
    """Runs jobs on the event loop itself, one per turn, in order.

    Args:
        crashed: Told when the process is dead.
    """

    def __init__(self, crashed: asyncio.Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._crashed = crashed

    def submit(self, job, then) -> None:
        self._loop.call_soon(self._run, job, then)

    def _run(self, job, then) -> None:
        try:
            result = job()
        except SimulatedCrash:
            if not self._crashed.done():
                self._crashed.set_result(None)
        except Exception as error:  # noqa: BLE001 - as the thread does
            self._loop.call_soon(then, None, error)
        else:
            self._loop.call_soon(then, result, None)

    def stop(self) -> None:
        """Nothing to stop."""


async def until_crash(life) -> bool:
    """Run ``life(worker_factory)`` until it ends or its process dies. Return whether it died."""
    crashed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(life(lambda _name: LoopWorker(crashed)))
    await asyncio.wait([task, crashed], return_when=asyncio.FIRST_COMPLETED)
    if crashed.done():
        task.cancel()
        await asyncio.wait([task])
        return True
    crashed.cancel()
    task.result()
    return False
