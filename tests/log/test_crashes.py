"""Power failures at every operation: what completed is there, nothing is invented, and no start needs help."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from pyraftkv.sim.disk import SimFS
from tests.log.disks import blank, trace, until_crash
from tests.log.model import Driver

pytestmark = pytest.mark.no_cover

STEPS = 100


def run_lives(seed: int, crash_points: list[int], *, kills: bool = False) -> tuple[SimFS, Driver]:
    """One life per crash point on one disk (0: no crash), then one that must end well.

    With `kills`, every other life ends with its process only, and what it had not synced is still in the cache.
    """
    driver = Driver(seed)
    fs = blank(Random(seed))
    disk = fs.disk

    async def lives() -> SimFS:
        current = fs
        for life, point in enumerate([*crash_points, 0]):
            disk.spare()
            if point:
                end_at = disk.kill_at if kills and life % 2 == 0 else disk.power_loss_at
                end_at(point, lambda: None)
            current = disk.mount()
            await until_crash(lambda workers, fs=current: driver.life(fs, workers, STEPS))
        return current

    return asyncio.run(lives()), driver


@pytest.mark.parametrize(("seed", "stride"), [(0, 1), (1, 3), (2, 3)])
def test_crash_before_every_operation(seed, stride):
    """One life, cut before its first, second, third ... operation; then another, cut early; then one that goes well."""
    whole, _ = run_lives(seed, [])
    count = whole.disk.operations
    assert count > 200
    for point in range(1, count + 1, stride):
        early = Random(seed * 10_007 + point).randint(1, 60)
        try:
            run_lives(seed, [point, early])
        except BaseException as error:
            error.add_note(f"seed {seed}, crash before operation {point}, then before operation {early}")
            raise


@pytest.mark.parametrize("seed", range(100, 115))
def test_many_crashes_on_one_disk(seed):
    """A member that loses power twelve times over still has everything it promised."""
    random = Random(seed)
    run_lives(seed, [random.randint(1, 400) for _ in range(12)])


@pytest.mark.parametrize("seed", range(300, 360))
def test_a_killed_process_then_a_power_failure(seed):
    """What a start found in the cache and acted upon is still there when the power goes right after."""
    random = Random(seed)
    points = [point for _ in range(4) for point in (random.randint(1, 300), random.randint(20, 70))]
    run_lives(seed, points, kills=True)


@pytest.mark.parametrize("seed", [2, 4])
def test_killed_before_a_name_was_durable(seed):
    """A process dies between a rename and the sync of the directory; the next one relies on a name that only the cache
    knows, and then the power goes.
    """
    whole, _ = run_lives(seed, [])
    for point, line in enumerate(trace(whole), 1):
        if line.startswith("fsync_dir"):
            for later in (45, 60, 75, 90):
                run_lives(seed, [point, later], kills=True)


def test_crashes_leave_torn_tails():
    """The crashes above are worth something: a crash before a sync leaves torn tails, which are mended and reported."""
    seed = 200
    whole, _ = run_lives(seed, [])
    syncs = [at for at, line in enumerate(trace(whole), 1) if line.startswith("fdatasync") and line.endswith(".wal")]
    repaired = 0
    for point in syncs:
        _, driver = run_lives(seed, [point])
        repaired += any("torn bytes" in repair for repair in driver.repairs)
    assert repaired >= len(syncs) // 4
