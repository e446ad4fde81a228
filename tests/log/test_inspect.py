"""Looking at a data directory: the judgement is a start's, the place is exact, and nothing changes."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from zlib import crc32

import pytest

from pyraftkv.core.types import HardState
from pyraftkv.errors import StorageError
from pyraftkv.log import FileStorage
from pyraftkv.log.inspect import (
    CORRUPT,
    OK,
    TORN,
    UNUSABLE,
    SegmentReading,
    Verdict,
    examine,
    examine_wal,
    read_only,
    segment_names,
)
from pyraftkv.log.record import COMMIT, ENTRIES
from pyraftkv.log.segment import BLOCK_BYTES
from tests.log.test_files import entries, meta, save, take, unexpected
from tests.wal_surgery import forget_mark, segments

SEGMENT_BYTES = 8192
SAVES = 60
DAMAGES = 60


async def fill(path: Path) -> None:
    """A member's directory: several segments, two snapshots in use."""
    storage = FileStorage(path, random=Random(3), segment_bytes_max=SEGMENT_BYTES, fsync=False)
    await storage.start(failed=unexpected)
    await storage.identify(cluster_id=7, member_id=1)
    for number in range(SAVES):
        await save(storage, number + 1, entries(3 * number + 1, 3), state=HardState(1, 1, 3 * number + 1))
        if number in (20, 40):
            await take(storage, meta(3 * number))
    await storage.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It is made once."""
    path = tmp_path_factory.mktemp("made") / "data"
    asyncio.run(fill(path))
    return path


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "data"))


def contents(path: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's bytes and time of change."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


async def starts(path: Path) -> str | None:
    """Start from a copy of the directory; return what was mended, or None if it was refused."""
    copy = shutil.copytree(path, path.with_name("copy"))
    storage = FileStorage(copy, create=False, fsync=False)
    try:
        recovered = await storage.start(failed=unexpected)
        await storage.close()
    except StorageError:
        return None
    finally:
        shutil.rmtree(copy)
    return recovered.repaired


def test_a_directory_without_a_fault(data: Path) -> None:
    """Everything is counted, nothing is found, and not a byte or a time of change is another."""
    before = contents(data)
    report = asyncio.run(examine(str(data)))
    assert contents(data) == before
    assert (report.verdict, report.findings, report.in_use, report.leftovers) == (OK, [], False, [])
    assert report.identity is not None
    assert (report.identity.cluster_id, report.identity.member_id, report.identity.boot_count) == (7, 1, 1)
    assert (report.wal.hard_state, report.wal.last_index) == (HardState(1, 1, 3 * SAVES - 2), 3 * SAVES)
    assert report.wal.first_index <= 61
    assert [(each.index, each.is_named, each.damage) for each in report.snapshots] == [(60, True, ""), (120, True, "")]
    assert report.snapshot_index == 120
    segment = report.wal.segments[-1]
    assert len(report.wal.segments) > 1
    assert (segment.is_sealed, segment.end, segment.format) == (False, segments(data)[-1].last_batch.stop, "1.0")
    assert all(each.is_sealed for each in report.wal.segments[:-1])


def test_every_record_is_shown_with_its_place(data: Path) -> None:
    """Record follows record, from the header block to the end, each batch ended by its COMMIT."""
    fs = read_only()
    indexes: list[int] = []
    for name in segment_names(fs, str(data)):
        reading = SegmentReading(fs, str(data / "wal"), name)
        frames = list(reading)
        assert frames[0].offset == BLOCK_BYTES
        assert all(one.offset + one.size == two.offset for one, two in pairwise(frames))
        batches = [frame.batch for frame in frames if frame.type == COMMIT]
        assert batches == list(range(batches[0], batches[0] + reading.batches))
        indexes += [frame.index for frame in frames if frame.type == ENTRIES]
        report = reading.report()
        assert (report.records, report.damage) == (len(frames), "")
    assert indexes[-1] == 3 * SAVES - 2
    assert indexes == sorted(indexes)


def test_a_torn_tail_is_told_with_its_place_and_left_there(data: Path) -> None:
    """What a crash left is for a start to cut off."""
    last = segments(data)[-1]
    last.truncate(last.last_batch.stop - 10)
    forget_mark(data)
    before = contents(data)
    report = examine_wal(str(data))
    assert contents(data) == before
    assert report.finding is not None
    assert (report.verdict, report.finding.offset) == (TORN, last.last_batch.start)
    assert report.finding.file == f"wal/{last.path.name}"
    assert report.last_index == 3 * SAVES - 3
    assert asyncio.run(examine(str(data))).verdict is TORN


def test_damage_is_told_with_its_place_and_its_reach(data: Path) -> None:
    """Damage in a sealed segment: the file, the offset, up to where it is good, and what cannot be read."""
    first = segments(data)[0]
    batch = first.batches[len(first.batches) // 2]
    first.flip_bit(batch.start + 60)
    report = asyncio.run(examine(str(data)))
    assert report.verdict is CORRUPT
    finding = report.findings[0]
    assert (finding.file, finding.offset) == (f"wal/{first.path.name}", batch.start)
    assert finding.lost[0] == finding.last_good_index + 1
    assert "sealed segment" in finding.reason
    assert [each.damage == "" for each in report.wal.segments] == [False, *[True] * (len(report.wal.segments) - 1)]


def test_a_log_that_ends_before_its_commit_index_is_corrupt(data: Path) -> None:
    """Every record is whole, and what was committed is not there."""

    async def commit_what_is_not_there() -> None:
        storage = FileStorage(data, segment_bytes_max=SEGMENT_BYTES, fsync=False)
        await storage.start(failed=unexpected)
        await save(storage, 1, state=HardState(2, 1, 3 * SAVES + 5))
        await storage.close()

    asyncio.run(commit_what_is_not_there())
    report = examine_wal(str(data))
    assert report.finding is not None
    assert (report.verdict, report.finding.lost) == (CORRUPT, (3 * SAVES + 1, 3 * SAVES + 6))
    assert asyncio.run(starts(data)) is None


@pytest.mark.parametrize("index", [60, 120])
def test_a_damaged_snapshot_is_found_although_a_start_would_pass_it_over(data: Path, index: int) -> None:
    """The newest one that is whole is what a start loads."""
    path = data / "snap" / f"{1:016x}-{index:016x}.snap"
    raw = bytearray(path.read_bytes())
    raw[4096 + 12] ^= 1
    path.write_bytes(raw)
    report = asyncio.run(examine(str(data)))
    assert report.verdict is CORRUPT
    assert [(finding.file, finding.offset) for finding in report.findings] == [(f"snap/{path.name}", 4096)]
    assert report.snapshot_index == (60 if index == 120 else 120)
    assert report.wal.verdict is OK


@pytest.mark.parametrize("index", [60, 120])
def test_a_snapshot_that_the_log_names_and_that_is_not_there_is_told(data: Path, index: int) -> None:
    """Also the older one, which no start would miss."""
    path = data / "snap" / f"{1:016x}-{index:016x}.snap"
    path.unlink()
    report = asyncio.run(examine(str(data)))
    assert [(each.verdict, each.file, each.reason) for each in report.findings] == [
        (CORRUPT, f"snap/{path.name}", "is missing")
    ]


def test_one_identity_slot_is_enough_and_none_is_corrupt(data: Path) -> None:
    """A start reads the other slot, and writes both anew; without any, nobody knows whose log it is."""
    (data / "identity.a").write_bytes(b"rot" * 100)
    report = asyncio.run(examine(str(data)))
    assert (report.verdict, [finding.file for finding in report.findings]) == (TORN, ["identity.a"])
    (data / "identity.b").unlink()
    report = asyncio.run(examine(str(data)))
    assert (report.verdict, report.findings[0].file, report.identity) == (CORRUPT, "identity.a", None)


@pytest.mark.parametrize("kind", ["missing", "empty", "file", "foreign", "newer"])
def test_what_is_no_usable_directory_is_said(data: Path, tmp_path: Path, kind: str) -> None:
    """Nothing there, nothing in it, no directory, another member's log, a newer version's files."""
    if kind == "missing":
        data = tmp_path / "nowhere"
    elif kind == "empty":
        shutil.rmtree(data)
        data.mkdir()
    elif kind == "file":
        shutil.rmtree(data)
        data.write_bytes(b"")
    elif kind == "foreign":
        asyncio.run(other_identity(tmp_path / "other"))
        for name in ("identity.a", "identity.b"):
            shutil.copy(tmp_path / "other" / name, data / name)
    else:
        newer_version(data / "identity.a")
    report = asyncio.run(examine(str(data)))
    assert (report.verdict, examine_wal(str(data)).verdict) == (UNUSABLE, UNUSABLE)
    assert kind == "foreign" or not (data / "LOCK").exists() or kind == "newer"


async def other_identity(path: Path) -> None:
    """Another member's directory."""
    storage = FileStorage(path, fsync=False, random=Random(4))
    await storage.start(failed=unexpected)
    await storage.close()


def newer_version(path: Path) -> None:
    """Write the block as the next major version would."""
    raw = bytearray(path.read_bytes())
    raw[8] += 1
    path.write_bytes(bytes(raw[:-4]) + crc32(raw[:-4]).to_bytes(4, "little"))


def test_a_directory_in_use_is_looked_at_and_its_last_batch_may_be_half_there(data: Path) -> None:
    """A member runs, its lock is held, and it goes on undisturbed; a torn tail is what it is writing."""

    async def scenario() -> tuple[Verdict, bool, Verdict]:
        storage = FileStorage(data, segment_bytes_max=SEGMENT_BYTES, fsync=False)
        await storage.start(failed=unexpected)
        whole = await examine(str(data))
        last = segments(data)[-1]
        with last.path.open("ab") as file:
            file.write(last.path.read_bytes()[last.last_batch.start : last.last_batch.stop - 8])
        half = await examine(str(data))
        last.truncate(last.last_batch.stop)
        await save(storage, 1, entries(3 * SAVES + 1, 1))
        await storage.close()
        return whole.verdict, whole.in_use and half.in_use, half.verdict

    assert asyncio.run(scenario()) == (OK, True, OK)
    assert asyncio.run(examine(str(data))).wal.last_index == 3 * SAVES + 1


def test_what_comes_and_goes_meanwhile_is_looked_at_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment is purged between listing and reading: no damage."""
    looks: list[int] = []
    fs = read_only()
    listdir = fs.listdir

    def stale(path: str) -> list[str]:
        looks.append(len(looks))
        ghost = [f"{0:016x}-{1:016x}.wal"] if path.endswith("wal") and len(looks) == 1 else []
        return ghost + [name for name in listdir(path) if name not in ghost]

    async def scenario() -> Verdict:
        storage = FileStorage(data, segment_bytes_max=SEGMENT_BYTES, fsync=False)
        await storage.start(failed=unexpected)
        monkeypatch.setattr(fs, "listdir", stale)
        verdict = examine_wal(str(data), fs=fs).verdict
        await storage.close()
        return verdict

    assert asyncio.run(scenario()) is OK


def damages() -> list[tuple[str, Callable[[Path, Random], None]]]:
    """Ways to damage a directory at random."""

    def flip(path: Path, random: Random) -> None:
        raw = bytearray(path.read_bytes())
        raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
        path.write_bytes(raw)

    def cut(path: Path, random: Random) -> None:
        path.write_bytes(path.read_bytes()[: random.randrange(path.stat().st_size)])

    def vanish(path: Path, _: Random) -> None:
        path.unlink()

    def grow(path: Path, random: Random) -> None:
        path.write_bytes(path.read_bytes() + random.randbytes(random.randrange(1, 200)))

    return [("flip", flip), ("cut", cut), ("vanish", vanish), ("grow", grow)]


def test_the_judgement_is_that_of_a_start(made: Path, tmp_path: Path) -> None:
    """Whatever happens to a file: unusable or corrupt is refused by a start, torn is mended, and nothing is changed.

    A damaged snapshot that a start passes over is corrupt, too.
    """
    seen = dict.fromkeys(Verdict, 0)
    for seed in range(DAMAGES):
        random = Random(seed)
        data = Path(shutil.copytree(made, tmp_path / f"data{seed}"))
        files = sorted(path for path in data.rglob("*") if path.is_file() and path.name != "LOCK")
        name, damage = random.choice(damages())
        victim = random.choice(files)
        damage(victim, random)
        before = contents(data)
        report = asyncio.run(examine(str(data)))
        assert contents(data) == before
        repaired = asyncio.run(starts(data))
        story = (seed, name, victim.name, report.findings, repaired)
        seen[report.verdict] += 1
        if repaired is None:
            assert report.verdict >= CORRUPT, story
        elif "passed over" in repaired:
            assert report.verdict is CORRUPT, story
        elif repaired:
            assert report.verdict is TORN, story
        else:
            assert report.verdict < CORRUPT or report.findings[0].file.startswith("snap"), story
        shutil.rmtree(data)
    assert min(seen[verdict] for verdict in (OK, TORN, CORRUPT)) > 0, seen
