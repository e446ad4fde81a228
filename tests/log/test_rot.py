"""One damage anywhere on a disk at rest: a start finds all of it, or refuses and says what is damaged; never less.

Every sector of every file is zeroed, garbled, cannot be read, has a bit flipped, or holds what belongs to another one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

import pytest

from pyraftkv.errors import ForeignDataDir, SnapshotCorruption, StorageFailed, WalCorruption
from pyraftkv.log import FileStorage, FileSystem
from pyraftkv.sim.disk import DiskFaults, SimFS
from pyraftkv.sim.inode import SECTOR_BYTES
from tests.log.model import Promise
from tests.log.scenarios import SCENARIOS, Scenario, record

STRANGERS = 2
"""Sectors that each is mistaken for: the one before it, and a random one."""
FILES = ("/data/identity.a", "/data/identity.b", "/data/mark", "/data/wal", "/data/snap")


@dataclass
class Damage:
    """One thing that is wrong with a disk."""

    what: str
    path: str
    data: bytes
    """What the file holds now."""
    unreadable: int = -1
    """The sector that cannot be read."""

    def befall(self, fs: SimFS) -> None:
        """Do it."""
        fs.disk.damage(self.path, self.data)
        if self.unreadable >= 0:
            fs.disk.fault = DiskFaults(unreadable_sectors=frozenset({(self.path, self.unreadable)}))


def damages(files: dict[str, bytes], random: Random) -> Iterator[Damage]:
    """Yield whatever may be wrong with one sector, of all files."""
    everything = [data[at : at + SECTOR_BYTES] for data in files.values() for at in range(0, len(data), SECTOR_BYTES)]
    for path, data in files.items():
        for number, start in enumerate(range(0, len(data), SECTOR_BYTES)):
            stop = min(start + SECTOR_BYTES, len(data))
            flipped = bytearray(data[start:stop])
            flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
            strangers = [data[start - SECTOR_BYTES : start], random.choice(everything)][:STRANGERS]
            contents = {
                "zeroed": bytes(stop - start),
                "garbled": random.randbytes(stop - start),
                "flipped": bytes(flipped),
                **{f"mistaken {i}": other.ljust(stop - start, b"\0") for i, other in enumerate(strangers) if other},
            }
            for what, content in contents.items():
                yield Damage(f"{what} {number}", path, data[:start] + content[: stop - start] + data[stop:])
            yield Damage(f"unreadable {number}", path, data, unreadable=number)


def outcome(fs: FileSystem, scenario: Scenario, promise: Promise, *, is_readable: bool = True) -> str:
    """Start, and return how it refused, or judge what it found."""
    size = scenario.segment_bytes_max
    try:
        recovered = FileStorage("/data", fs=fs, random=Random(1), segment_bytes_max=size)._open().recovered
    except (WalCorruption, SnapshotCorruption, ForeignDataDir) as error:
        return type(error).__name__
    except (OSError, StorageFailed) as error:
        if is_readable:
            raise AssertionError("everything can be read") from error
        return StorageFailed.__name__
    promise.judge(recovered)
    return "mended" if recovered.repaired else "whole"


@pytest.mark.parametrize("name", ["truncate", "snapshot", "install", "identity"])
def test_one_damaged_sector(name, soak):
    """The log is found to its last entry, or refused."""
    outcomes: Counter[str] = Counter()
    scenario = SCENARIOS[name]
    for seed in range(40 if soak else 1, 100 if soak else 2):
        random = Random(seed)
        recording = record(scenario, seed)
        disk = recording.disk.copy()
        # An older snapshot will do, and a boot may be counted again where the slot with the last one is gone.
        promise = replace(recording.driver.promise(), snapshot=0)
        names = [f"{path}/{name}" for path in disk.directories for name in disk.directories[path].names]
        files = {path: disk.file(path) for path in names if path.startswith(FILES)}
        for damage in damages(files, random):
            fs = disk.copy().mount()
            damage.befall(fs)
            try:
                outcomes[outcome(fs, scenario, promise, is_readable=damage.unreadable < 0)] += 1
            except Exception as error:
                error.add_note(f"seed {seed}: {damage.what} of {damage.path}")
                raise
    assert outcomes.total() > 100, outcomes
    assert outcomes["ForeignDataDir"] == 0, "no single damage makes it somebody else's"
    assert outcomes["WalCorruption"] > 10
    assert outcomes["StorageFailed"] > 10
    assert outcomes["whole"] > 5


LIES = {
    "no sync": DiskFaults(lost_sync_rate=1.0),
    "some syncs": DiskFaults(lost_sync_rate=0.1),
    "lost writes": DiskFaults(lost_write_rate=0.1),
    "misdirected writes": DiskFaults(misdirected_write_rate=0.1),
}


@pytest.mark.parametrize("name", ["append", "truncate", "roll", "snapshot", "install", "purge"])
@pytest.mark.parametrize("lie", LIES)
def test_a_disk_that_lied(name, lie, soak):
    """What never arrived, or went elsewhere, may be gone: it is refused, or the log is as it was at some time.

    A log whose directory forgot its cluster is refused as somebody else's.
    """
    outcomes: Counter[str] = Counter()
    scenario = SCENARIOS[name]
    for seed in range(50, 150) if soak else range(3):
        recording = record(scenario, seed, faults=LIES[lie])
        driver = recording.driver
        # Where everything is gone, a start makes a new directory, which is somebody else's.
        anything = {"snapshot": 0, "boot": 0, "incarnation": 0, "owners": ((0, 0), (77, 1))}
        promise = replace(driver.promise(), states=tuple(driver.states), **anything)
        for moment in recording.moments[:: -(-len(recording.moments) // 10)] + recording.moments[-1:]:
            for image in moment.images(Random(seed), most=4):
                try:
                    outcomes[outcome(image.mount(), scenario, promise)] += 1
                except Exception as error:
                    error.add_note(f"seed {seed}, before {moment.before}")
                    raise
    assert outcomes.total() >= 40, outcomes
    assert outcomes["whole"] + outcomes["mended"] > 0, outcomes
