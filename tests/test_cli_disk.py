"""The command line of what stands on disk: `wal verify`, `wal dump`, `doctor`; their words, JSON and exit statuses."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import shutil
from base64 import b64decode
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

import pyraftkv
from pyraftkv.cli.common import STORAGE
from pyraftkv.cli.disk import frame_json, frame_lines
from pyraftkv.log.record import ENTRIES, HARD_STATE, Frame, RecordType
from pyraftkv.store.commands import DeleteRange, PutKey
from tests.node.support import fast
from tests.test_cli import Cli, run_here
from tests.wal_surgery import forget_mark, segments

OK, TORN, CORRUPT, UNUSABLE = range(4)
KEYS = 20


async def fill(path: Path) -> None:
    """A member's directory with every kind of command in it, and a snapshot."""
    async with pyraftkv.open(path, config=fast()) as db:
        for number in range(KEYS):
            await db.put(f"key/{number:02}", f"value{number}")
        await db.take_snapshot()
        await db.txn().then(PutKey(b"in-txn", b"secret"), DeleteRange(b"key/01")).otherwise(PutKey(b"else", b"x"))
        await db.delete("key/02", "key/04")
        await db.compact(5)
        await asyncio.gather(*[db.put(f"batch{number}", b"\xff") for number in range(3)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It is made once."""
    path = tmp_path_factory.mktemp("disk") / "data"
    asyncio.run(fill(path))
    return path


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "data"))


@pytest.fixture
def cli(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run the command in this process; return status, output and errors."""
    monkeypatch.setattr("sys.stdin", io.StringIO(""))

    return partial(run_here, capsysbinary)


def test_a_log_without_a_fault_is_verified(cli: Cli, data: Path) -> None:
    """Status 0, the segments in a table, and what they hold."""
    status, out, err = cli("wal", "verify", str(data))
    assert (status, err) == (OK, "")
    assert segments(data)[0].path.name in out
    assert "in 1 segment, entries 1 to" in out
    report = json.loads(cli("wal", "verify", str(data), "-w", "json")[1])
    assert (report["verdict"], report["finding"], report["first_index"]) == ("ok", None, 1)
    assert report["last_index"] == report["segments"][0]["entries"]


def test_a_torn_tail_has_its_own_status(cli: Cli, data: Path) -> None:
    """Status 1, the place, and doctor says that a start mends it."""
    last = segments(data)[-1]
    last.truncate(last.last_batch.stop - 4)
    forget_mark(data)
    status, out, _ = cli("wal", "verify", str(data))
    assert status == TORN
    assert f"TORN: wal/{last.path.name}, offset {last.last_batch.start}: an unfinished batch" in out
    status, out, _ = cli("doctor", str(data))
    assert status == TORN
    assert "what to do: start the member" in out


def test_damage_has_its_own_status(cli: Cli, data: Path) -> None:
    """Status 2, the exact place, how far it is good, and what to do: also where a usable snapshot lies."""
    segment = segments(data)[0]
    batch = segment.batches[10]
    segment.flip_bit(batch.start + 50)
    status, out, _ = cli("wal", "verify", str(data))
    assert status == CORRUPT
    assert f"CORRUPT: wal/{segment.path.name}, offset {batch.start}: damage before a later batch" in out
    status, out, err = cli("serve", "--data-dir", str(data))
    assert status == STORAGE
    assert err.endswith(f"; what to do: `pyraftkv doctor {data}`\n")
    assert "term 0" not in cli("doctor", str(data))[1]  # nobody can say which
    status, out, _ = cli("doctor", str(data), "-w", "json")
    report = json.loads(out)
    (finding,) = report["findings"]
    assert (status, report["verdict"], finding["offset"]) == (CORRUPT, "corrupt", batch.start)
    assert finding["lost"][0] == finding["last_good_index"] + 1
    assert "pyraftkv rebuild" in finding["remedy"]
    status, out, err = cli("wal", "dump", str(data))
    assert status == CORRUPT
    assert len(out.splitlines()) < report["wal"]["segments"][0]["records"] + 1
    assert f"offset {batch.start}" in err


def test_a_directory_that_is_none_has_its_own_status(cli: Cli, tmp_path: Path) -> None:
    """Status 3, and nothing is made."""
    for verb in (("wal", "verify"), ("wal", "dump"), ("doctor",)):
        status, out, err = cli(*verb, str(tmp_path / "nowhere"))
        assert status == UNUSABLE
        assert "UNUSABLE: no member's data directory" in out + err
    assert list(tmp_path.iterdir()) == []


def test_doctor_says_what_it_sees(cli: Cli, data: Path) -> None:
    """Identity, lock, log, snapshots, disk, verdict; the same for programs."""
    status, out, _ = cli("doctor", str(data))
    assert status == OK
    for words in ("member 1 of cluster", "started once", "lock       free", "1 in use", "free of", "verdict    ok"):
        assert words in out
    assert "whole" in cli("doctor", str(data), "-w", "table")[1]
    report = json.loads(cli("doctor", str(data), "-w", "json")[1])
    assert (report["verdict"], report["in_use"], report["identity"]["boot_count"]) == ("ok", False, 1)
    assert report["snapshots"][0]["in_use"]
    assert report["disk"]["total_bytes"] > report["disk"]["free_bytes"] > 0
    (data / "wal" / "x.wal.tmp").write_bytes(b"half")
    assert "leftovers  wal/x.wal.tmp" in cli("doctor", str(data))[1]


def test_doctor_finds_a_damaged_snapshot(cli: Cli, data: Path) -> None:
    """The log reaches back to its beginning, so a start would do without it; it is told all the same."""
    (snapshot,) = (data / "snap").glob("*.snap")
    snapshot.write_bytes(snapshot.read_bytes()[:-1])
    status, out, _ = cli("doctor", str(data))
    assert status == CORRUPT
    assert f"CORRUPT: snap/{snapshot.name}, offset" in out


def test_doctor_sees_that_a_member_runs(cli: Cli, data: Path) -> None:
    """The member goes on undisturbed."""

    async def scenario() -> tuple[int, str, str]:
        async with pyraftkv.open(data, config=fast()) as db:
            await db.put("before", "1")
            told = await asyncio.to_thread(cli, "doctor", str(data))
            await db.put("after", "1")
            return told

    status, out, _ = asyncio.run(scenario())
    assert status == OK
    assert "a member runs here" in out


def test_records_are_dumped_a_line_each(cli: Cli, data: Path) -> None:
    """Type, index, term, batch, bytes and offset, one record after the other; as JSON the same."""
    lines = cli("wal", "dump", str(data))[1].splitlines()
    rows = [json.loads(line) for line in cli("wal", "dump", str(data), "-w", "json")[1].splitlines()]
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        segment, offset, kind, *fields = line.split()
        assert (segment, int(offset), kind) == (row["segment"], row["offset"], row["type"])
        for name in ("index", "term", "batch", "bytes"):
            assert f"{name}={row[name]}" in fields
    assert all(one["offset"] + one["bytes"] == two["offset"] for one, two in pairwise(rows))
    assert {row["type"] for row in rows} == {"HARD_STATE", "COMMIT", "ENTRIES", "SNAPSHOT"}


def test_entries_are_decoded_on_demand_and_values_only_when_asked_for(cli: Cli, data: Path) -> None:
    """Keys, operations and branches with --entries; values with --values; else neither."""
    plain = cli("wal", "dump", str(data))[1]
    assert "key/" not in plain
    assert "value3" not in plain
    decoded = cli("wal", "dump", str(data), "--entries")[1]
    for words in (
        "MEMBERSHIP genesis",
        "NORMAL put key='key/00'",
        "NORMAL txn compares=0",
        "NORMAL put branch=then key='in-txn'",
        "NORMAL delete branch=then key='key/01'",
        "NORMAL put branch=else key='else'",
        "NORMAL delete key='key/02' range_end='key/04'",
        "NORMAL compact revision=5",
        "NORMAL register_session",
        "NORMAL nothing",
    ):
        assert words in decoded
    assert "secret" not in decoded
    assert "value3" not in decoded
    assert "value='secret'" in cli("wal", "dump", str(data), "--values")[1]
    rows = [json.loads(line) for line in cli("wal", "dump", str(data), "-w", "json", "--values")[1].splitlines()]
    puts = [
        operation
        for row in rows
        if row["type"] == "ENTRIES"
        for entry in row["entries"]
        for operation in entry["operations"]
        if operation["op"] == "put"
    ]
    assert (b64decode(puts[3]["key"]), b64decode(puts[3]["value"])) == (b"key/03", b"value3")
    assert sum(b64decode(put["key"]).startswith(b"batch") for put in puts) == 3


def test_a_range_of_indexes_is_dumped(cli: Cli, data: Path) -> None:
    """Both ends are in it, and only entries are shown."""
    rows = [
        json.loads(line)
        for line in cli("wal", "dump", str(data), "-w", "json", "--from", "5", "--to", "7")[1].splitlines()
    ]
    assert [(row["type"], row["index"]) for row in rows] == [("ENTRIES", index) for index in (5, 6, 7)]
    assert cli("wal", "dump", str(data), "--to", "0")[1] == ""


@pytest.mark.parametrize("kind", [ENTRIES, HARD_STATE])
@pytest.mark.parametrize("payload", [b"", b"\1\0\0\0\xff\0\0\0", b"\0" * 7])
def test_a_record_that_makes_no_sense_is_shown_all_the_same(kind: RecordType, payload: bytes) -> None:
    """Its checksum is right and its payload is not: the line has its place, and nothing of what it holds."""
    frame = Frame(kind, 0, 3, 5, 2, 4096, 48, memoryview(payload))
    args = argparse.Namespace(entries=True, values=False)
    (line,) = frame_lines("segment", frame, args)
    assert line.startswith(f"segment     4096 {kind.name:<10} index=5 term=2 batch=3 bytes=48")
    assert frame_json("segment", frame, args).get("entries", []) == []
