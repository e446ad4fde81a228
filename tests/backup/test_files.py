"""Saving a snapshot to a file: consistent, checked, in one step; and saying what a file holds."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pyraftkv
from pyraftkv import Node, errors
from pyraftkv.backup import SavedSnapshot, SnapshotSource, save, snapshot_status
from pyraftkv.log import MemoryStorage, OsFileSystem
from pyraftkv.protocol import SnapshotPart
from pyraftkv.transport import MemoryNetwork
from tests.node.support import asynchronous, cluster_of, fast, refused

KEYS = 300
VALUE = b"v" * 8192
"""Enough for several parts."""


def names_in(folder: Path) -> list[str]:
    """Return the names in a directory."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> SavedSnapshot:
    """A saved snapshot of a member with some history."""

    async def scenario() -> SavedSnapshot:
        folder = tmp_path_factory.mktemp("saved")
        async with pyraftkv.open(folder / "data", config=fast()) as db:
            await asyncio.gather(*[db.put(f"k{number}", VALUE) for number in range(KEYS)])
            await db.delete("k0")
            return await db.snapshot(folder / "file")

    return asyncio.run(scenario())


@asynchronous
async def test_the_state_of_one_revision_is_saved_while_writes_go_on(tmp_path: Path) -> None:
    """Every put is in it up to its revision, and none after."""
    async with cluster_of(3) as cluster:
        db = cluster.nodes["n1"]
        await asyncio.gather(*[db.put(f"k{number:03}", VALUE) for number in range(100)])
        writing = asyncio.gather(*[db.put(f"late{number}", VALUE) for number in range(100)])
        done = await db.snapshot(tmp_path / "file")
        await writing
        status = await snapshot_status(tmp_path / "file")
        assert status.revision == done.revision >= 101
        assert status.keys == done.revision - 1
        assert (status.sha256, status.size_bytes) == (done.sha256, done.size_bytes)
        assert status.cluster_id == (await db.status()).cluster_id
        assert [row.name for row in status.members] == ["n1", "n2", "n3"]
        assert db._running().replica.store._history.pins == 0
    assert names_in(tmp_path) == ["file"]


@asynchronous
async def test_a_follower_saves_everything_that_was_acknowledged(tmp_path: Path) -> None:
    """Whoever is asked confirms with a quorum first; a local one does not, and needs none."""
    async with cluster_of(3) as cluster:
        await cluster.nodes["n1"].put("k", "v")
        follower = next(node for node in cluster.nodes.values() if not node.is_leader)
        assert (await follower.snapshot(tmp_path / "one")).revision == 2
        for node in cluster.nodes.values():
            if node is not follower:
                await node.kill()
        await refused(follower.snapshot(tmp_path / "two", timeout=0.2), errors.Unavailable)
        assert (await follower.snapshot(tmp_path / "three", consistency="local")).revision == 2
    assert names_in(tmp_path) == ["one", "three"]


def parts_of(*parts: SnapshotPart) -> AsyncGenerator[SnapshotPart]:
    """Return the parts as they come over a connection."""

    async def generate() -> AsyncGenerator[SnapshotPart]:
        for part in parts:
            yield part

    return generate()


async def parts() -> list[SnapshotPart]:
    """Return the parts of a snapshot."""
    storage, transport = MemoryStorage(), MemoryNetwork().transport("n")
    async with Node("n", members={"n": "n"}, storage=storage, transport=transport, config=fast()) as db:
        for number in range(200):
            await db.put(f"k{number}", VALUE)
        return [part async for part in db.snapshot_parts("linearizable", None)]


@asynchronous
async def test_what_is_not_what_was_sent_gets_no_name(tmp_path: Path) -> None:
    """A byte that changed on the way, a part too few: nothing new stands there, and what stood there still does."""
    sent = await parts()
    assert len(sent) > 1
    path = tmp_path / "file"
    path.write_bytes(b"the one of yesterday")
    first = sent[0]
    flipped = bytes([first.chunks[-1][0] ^ 1]) + first.chunks[-1][1:]
    changed = replace(first, chunks=[*first.chunks[:-1], flipped])
    for broken in ([changed, *sent[1:]], sent[:-1], [*sent[:-2], sent[-1]], []):
        await refused(save(path, parts_of(*broken)), errors.SnapshotCorruption)
        assert path.read_bytes() == b"the one of yesterday"
        assert names_in(tmp_path) == ["file"]
    done = await save(path, parts_of(*sent))
    assert (await snapshot_status(path)).sha256 == done.sha256


@asynchronous
async def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A directory that is not there."""
    sent = await parts()
    error = await refused(save(tmp_path / "no" / "file", parts_of(*sent)), errors.StorageError)
    assert str(tmp_path / "no" / "file") in str(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
@asynchronous
async def test_what_is_no_file_keeps_its_place(tmp_path: Path) -> None:
    """A device that was named would be gone for every program; nobody waits for the other end of a pipe."""
    sent = await parts()
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for place in (pipe, folder):
        assert "is no file" in str(await refused(save(place, parts_of(*sent)), errors.StorageError))
        assert "is no file" in str(await refused(snapshot_status(place), errors.StorageError))
    assert pipe.is_fifo()
    assert names_in(tmp_path) == ["folder", "pipe"]


class Slow(OsFileSystem):
    """A disk whose second write takes its time."""

    def __init__(self) -> None:
        super().__init__(fsync=False)
        self.writing, self.go_on = threading.Event(), threading.Event()
        self.calls: list[str] = []
        self.is_full = False

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self.calls.append("pwrite")
        if len(self.calls) == 2:
            self.writing.set()
            assert self.go_on.wait(10)
            self.calls.append("written")
            if self.is_full:
                raise OSError(errno.ENOSPC, "no space")
        return super().pwrite(fd, data, offset)

    def close(self, fd: int) -> None:
        self.calls.append("close")
        super().close(fd)


@asynchronous
async def test_who_is_cancelled_closes_no_file_that_is_being_written(tmp_path: Path) -> None:
    """The write comes to its end, then the file is closed and removed."""
    sent, fs = await parts(), Slow()
    saving = asyncio.create_task(save(tmp_path / "file", parts_of(*sent), fs=fs))
    await asyncio.to_thread(fs.writing.wait, 10)
    saving.cancel()
    await asyncio.sleep(0)
    fs.go_on.set()
    await asyncio.wait([saving])
    assert saving.cancelled()
    assert fs.calls.index("close") > fs.calls.index("written")
    assert fs.calls.count("close") == 1
    assert names_in(tmp_path) == []


@asynchronous
async def test_a_write_that_fails_when_its_caller_is_gone_is_reported_by_nobody(tmp_path: Path) -> None:
    """Who was cancelled wants no file any more, and what became of its last write is no news."""
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    sent, fs = await parts(), Slow()
    fs.is_full = True
    saving = asyncio.create_task(save(tmp_path / "file", parts_of(*sent), fs=fs))
    await asyncio.to_thread(fs.writing.wait, 10)
    saving.cancel()
    await asyncio.sleep(0)
    fs.go_on.set()
    await asyncio.wait([saving])
    assert saving.cancelled()
    del saving
    gc.collect()
    assert told == []
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("where", [0.0, 0.1, 0.5, 0.9, 0.999999])
def test_damage_is_refused_with_its_place(saved: SavedSnapshot, tmp_path: Path, where: float) -> None:
    """One flipped bit anywhere: the error names the file, and a place at or before the bit."""
    raw = bytearray(Path(saved.path).read_bytes())
    place = int(where * len(raw))
    raw[place] ^= 4
    path = tmp_path / "damaged"
    path.write_bytes(raw)
    with pytest.raises(errors.SnapshotCorruption) as caught:
        asyncio.run(snapshot_status(path))
    error: Any = caught.value
    assert error.path == str(path)
    assert error.offset <= place < error.offset + (1 << 20)


def test_a_file_that_is_cut_or_is_none_is_refused(saved: SavedSnapshot, tmp_path: Path) -> None:
    """Also one that was cut at a chunk's end, is missing, or is something else."""
    raw = Path(saved.path).read_bytes()
    path = tmp_path / "file"
    for text in (raw[:-60], raw[: len(raw) // 2], raw + b"\0", b"", b"not a snapshot" * 1000):
        path.write_bytes(text)
        with pytest.raises(errors.SnapshotCorruption):
            asyncio.run(snapshot_status(path))
    with pytest.raises(errors.SnapshotCorruption):
        asyncio.run(snapshot_status(tmp_path / "missing"))


@asynchronous
async def test_a_members_own_snapshot_file_will_do(tmp_path: Path) -> None:
    """It has the same layout."""
    async with pyraftkv.open(tmp_path / "data", config=fast()) as db:
        await db.put("k", "v")
        await db.take_snapshot()
    (name,) = names_in(tmp_path / "data" / "snap")
    status = await snapshot_status(tmp_path / "data" / "snap" / name)
    assert (status.keys, status.revision) == (1, 2)


@asynchronous
async def test_a_source_is_let_go_of_in_the_middle() -> None:
    """Compaction goes on when nobody wants the rest."""
    async with cluster_of(1) as cluster:
        db = cluster.nodes["n1"]
        await db.put("k", "v")
        source: SnapshotSource = await db.open_snapshot("local", None)
        history = db._running().replica.store._history
        assert history.pins == 1
        source.close()
        source.close()
        assert history.pins == 0
