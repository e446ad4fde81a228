"""The command line of saved snapshots: save from members that run, look at, restore on every machine, start again."""

from __future__ import annotations

import asyncio
import io
import json
from functools import partial
from pathlib import Path

import pytest

import pyraftkv
from pyraftkv.backup import BUMP_REVISION
from pyraftkv.cli.common import DONE, NOT_APPLIED, STORAGE, USAGE
from tests.backup.test_files import names_in
from tests.backup.test_restoring import opened
from tests.test_cli import Cli, run_here
from tests.test_recovery import NAMES, addresses, member

KEYS = 25


@pytest.fixture
def cli(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run the command in this process; return status, output and errors."""
    monkeypatch.setattr("sys.stdin", io.StringIO(""))

    return partial(run_here, capsysbinary)


def test_a_cluster_is_saved_and_another_one_restored_from_it(cli: Cli, tmp_path: Path) -> None:
    """`snapshot save` from a running cluster, `status`, `restore` for each member, and all of them start."""
    members, path = addresses(), tmp_path / "file"
    endpoints = ",".join(members.values())

    async def save() -> tuple[int, str, str]:
        nodes = [member(tmp_path / "old", name, members) for name in NAMES]
        await asyncio.gather(*[node.start() for node in nodes])
        await asyncio.gather(*[nodes[0].put(f"k{number}", "v") for number in range(KEYS)])
        saved = await asyncio.to_thread(cli, "--endpoints", endpoints, "snapshot", "save", str(path))
        await asyncio.gather(*[node.kill() for node in nodes])
        return saved

    status, out, err = asyncio.run(save())
    assert (status, err) == (DONE, "")
    assert out.startswith(f"Snapshot saved at {path}: revision {KEYS + 1}, ")
    status, out, _ = cli("snapshot", "status", str(path))
    assert status == DONE
    row = [cell.strip() for cell in out.splitlines()[3].split("|")]
    assert row[2:4] == [str(KEYS + 1), str(KEYS)]
    told = json.loads(cli("snapshot", "status", str(path), "-w", "json")[1])
    assert told["hash"].startswith(row[1])
    assert (told["totalKey"], told["totalSize"]) == (KEYS, path.stat().st_size)

    listed = ",".join(f"{name}={address}" for name, address in members.items())
    made = [
        cli("snapshot", "restore", str(path), "--name", name, "--data-dir", str(tmp_path / name), "--members", listed)
        for name in NAMES
    ]
    assert {status for status, _, _ in made} == {DONE}
    assert f"keys: {KEYS}." in made[0][1]
    assert f"serve --name a --data-dir {tmp_path / 'a'} --members {listed}" in made[0][1]
    assert len({out.splitlines()[0].split("new cluster")[1] for _, out, _ in made}) == 1

    async def read() -> int:
        nodes = [opened(tmp_path / name, name, members) for name in NAMES]
        await asyncio.gather(*[node.start() for node in nodes])
        async with pyraftkv.connect(endpoints) as kv:
            count = (await kv.range(prefix="k")).count
            assert (await kv.put("k0", "w")).revision == KEYS + 1 + BUMP_REVISION + 1
        await asyncio.gather(*[node.kill() for node in nodes])
        return count

    assert asyncio.run(read()) == KEYS


def test_what_goes_wrong_has_a_status_and_a_line(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers, a damaged file, a directory that is used, a name that is nobody's."""
    monkeypatch.chdir(tmp_path)

    async def fill() -> None:
        async with pyraftkv.open("data") as db:
            await db.put("k", "v")
            await db.snapshot("file")

    asyncio.run(fill())
    nobody = f"127.0.0.1:{addresses()['a'].rpartition(':')[2]}"
    status, _, err = cli("--endpoints", nobody, "--timeout", "0.2", "snapshot", "save", "new")
    assert (status, err.startswith("Error: ReadTimeout")) == (NOT_APPLIED, True)
    status, _, err = cli("snapshot", "restore", "file", "--data-dir", "data")
    assert (status, "is not empty" in err) == (STORAGE, True)
    assert cli("snapshot", "restore", "file", "--name", "x", "--members", "a=127.0.0.1:1")[0] == USAGE
    raw = bytearray(Path("file").read_bytes())
    raw[4200] ^= 1
    Path("damaged").write_bytes(raw)
    for verb in ("status", "restore"):
        status, _, err = cli("snapshot", verb, "damaged")
        assert status == STORAGE
        assert err.startswith(f"Error: SnapshotCorruption: {tmp_path / 'damaged'}: ")
    assert names_in(tmp_path) == ["damaged", "data", "file"]
    restored = json.loads(cli("snapshot", "restore", "file", "--bump-revision", "0", "--token", "t", "-w", "json")[1])
    assert (restored["data_dir"], restored["revision"]) == (str(tmp_path / "default.pyraftkv"), 2)
    other = json.loads(cli("snapshot", "restore", "file", "--data-dir", "other", "-w", "json")[1])
    assert other["cluster_id"] != restored["cluster_id"]
