"""Short lives with a purpose, for those who cut them everywhere: `SCENARIOS`, and `record`, which runs one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from random import Random

from pyraftkv.log import FileStorage
from pyraftkv.log.segment import BLOCK_BYTES
from pyraftkv.sim.disk import DiskFaults, SimDisk
from tests.log.disks import until_crash
from tests.log.model import Driver
from tests.log.states import Moment, Recorder


@dataclass(frozen=True)
class Scenario:
    """What is done in a few lives, one after another."""

    lives: tuple[str, ...]
    """Names of steps: those of `Driver`, and ``rebind``."""
    segment_bytes_max: int = BLOCK_BYTES << 2
    shows: tuple[str, ...] = ()
    """Beginnings of operations that it is there for: it is no such scenario without them."""
    share: int = 10
    """Of 200 crash states, about so many are of this one. Those with few files cost less, and are met more often."""


_EVERY_BATCH = BLOCK_BYTES + 1
_FILL = "append settle append append settle commit append settle"

SCENARIOS = {
    "append": Scenario(
        (f"{_FILL} vote append settle commit append settle vote settle",), shows=("pwrite /data/wal",), share=60
    ),
    "roll": Scenario((f"{_FILL} vote settle append settle commit settle append settle",), _EVERY_BATCH),
    "truncate": Scenario(
        ("append settle append settle overwrite settle overwrite append settle overwrite settle",), share=60
    ),
    "snapshot": Scenario((f"{_FILL} commit snapshot {_FILL} commit snapshot {_FILL} commit snapshot settle",)),
    "install": Scenario((f"{_FILL} install append settle commit append settle snapshot install append settle",)),
    "purge": Scenario((" ".join(["append settle commit append settle snapshot settle"] * 5),), _EVERY_BATCH),
    "identity": Scenario(
        ("append settle rebind append settle", "append settle rebind rebind", "append settle"), share=30
    ),
    "recover": Scenario(
        (f"{_FILL} append", "append append settle", "vote append", "append settle"), _EVERY_BATCH + 300
    ),
}


class Script(Driver):
    """Does what a scenario says; chance decides about sizes and indexes only."""

    sizes = (0, 20, 90)
    entries_max = 4
    chunks = (1, 300, 700)

    def __init__(self, scenario: Scenario, seed: int) -> None:
        super().__init__(seed)
        self.segment_bytes_max = scenario.segment_bytes_max
        self._steps: list[str] = []
        self._lives = 0

    def begin(self, steps: str) -> int:
        """Take the steps of the next life; return how many."""
        self._steps = steps.split()
        return len(self._steps)

    async def _step(self, storage: FileStorage) -> None:
        name = self._steps.pop(0)
        await getattr(self, f"_{name}")(storage)

    async def _rebind(self, storage: FileStorage) -> None:
        cluster_id, member_id = self.owners[-1]
        self.owners.append((cluster_id + 1, member_id))
        await storage.rebind(cluster_id=cluster_id + 1, incarnation=self.random.getrandbits(60))
        self.owners = self.owners[1:]


@dataclass
class Recording:
    """What happened in the lives of a scenario."""

    moments: list[Moment]
    operations: list[str]
    driver: Script
    disk: SimDisk


def record(scenario: Scenario, seed: int, *, crashes: bool = False, faults: DiskFaults | None = None) -> Recording:
    """Run a scenario and remember every moment of it.

    Args:
        scenario: What is done.
        seed: Decides about sizes and indexes.
        faults: What is wrong with the disk from the first operation on.
        crashes: Every life but the last ends with a power failure that loses what was not synced.
    """
    driver = Script(scenario, seed)
    moments: list[Moment] = []
    operations: list[str] = []

    def watch(disk: SimDisk, operation: str) -> None:
        moments.append(Moment(disk, operation, driver.promise()))
        operations.append(operation)

    disk = Recorder(Random(seed), watch)
    disk.fault = faults or DiskFaults()

    async def lives() -> None:
        for steps in scenario.lives:
            fs, count = disk.mount(), driver.begin(steps)
            await until_crash(lambda workers, fs=fs, count=count: driver.life(fs, workers, count))
            if crashes:
                disk.power_loss()

    asyncio.run(lives())
    watch(disk, "the end")
    return Recording(moments, operations, driver, disk)
