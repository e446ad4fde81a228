"""Restoring: another cluster with the data and without the history; on every machine by itself, whole or not at all."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from random import Random

import pytest

import pyraftkv
from pyraftkv import Node, PutKey, codec, errors
from pyraftkv.backup import BUMP_REVISION, Restored, SavedSnapshot, restore
from pyraftkv.backup.files import load
from pyraftkv.backup.restoring import RESTORING_SUFFIX, cluster_of
from pyraftkv.log import OsFileSystem
from pyraftkv.log.inspect import OK, examine
from pyraftkv.protocol import Envelope
from tests.backup.test_files import names_in
from tests.node.support import asynchronous, fast, refused, take, until
from tests.test_recovery import NAMES, addresses

KEYS = 30
MEMBERS = {name: f"127.0.0.1:{port}" for port, name in enumerate(NAMES, start=1)}


async def fill(folder: Path) -> SavedSnapshot:
    """Save a state with some history, then write on."""
    async with pyraftkv.open(folder / "old", config=fast()) as db:
        for number in range(KEYS):
            await db.put(f"k{number}", f"v{number}")
        await db.put("k1", "again")
        await db.delete("k0")
        saved = await db.snapshot(folder / "file")
        await db.put("after", "the snapshot")
        return saved


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> SavedSnapshot:
    """It is made once."""
    return asyncio.run(fill(tmp_path_factory.mktemp("saved")))


def damage(source: str, target: Path) -> None:
    """Copy a file with one bit flipped."""
    raw = bytearray(Path(source).read_bytes())
    raw[5000] ^= 1
    target.write_bytes(raw)


def opened(path: Path, name: str = "a", members: dict[str, str] | None = None) -> Node:
    """Return a member on a restored directory, not started."""
    if members is None:
        return pyraftkv.open(path, name=name, config=fast())
    return pyraftkv.open(path, name=name, listen=members[name], members=members, config=fast())


@asynchronous
async def test_three_machines_restore_by_themselves_and_are_one_cluster(saved: SavedSnapshot, tmp_path: Path) -> None:
    """The same file and the same members: they meet, elect, write; everything of the snapshot is there."""
    members = addresses()
    made: list[Restored] = []
    for name in NAMES:
        made.append(await pyraftkv.restore_snapshot(saved.path, tmp_path / name, name=name, members=members))
        report = await examine(str(tmp_path / name))
        assert (report.verdict, report.snapshot_index) == (OK, saved.index)
        assert report.identity is not None
        assert report.identity.incarnation == made[-1].member.incarnation
    assert len({each.cluster_id for each in made}) == 1
    assert made[0].cluster_id != saved.cluster_id
    nodes = [opened(tmp_path / name, name, members) for name in NAMES]
    await asyncio.gather(*[node.start() for node in nodes])
    for node in nodes:
        found = await node.range()
        assert {kv.key: kv.value for kv in found.kvs} == {
            b"k1": b"again", **{b"k%d" % number: b"v%d" % number for number in range(2, KEYS)}
        }  # fmt: skip
    put = await nodes[0].put("new", "cluster")
    assert put.revision == saved.revision + BUMP_REVISION + 1
    assert [row.name for row in await nodes[1].members.list()] == list(NAMES)
    for node in nodes:
        await node.close()
    again = [opened(tmp_path / name, name, members) for name in NAMES]
    await asyncio.gather(*[node.start() for node in again])
    kv = await again[2].get("new")
    assert kv is not None
    assert kv.value == b"cluster"
    await asyncio.gather(*[node.kill() for node in again])


@asynchronous
async def test_a_watch_of_the_old_cluster_is_told_that_its_revisions_are_gone(
    saved: SavedSnapshot, tmp_path: Path
) -> None:
    """1. A watcher of the old cluster has seen revisions beyond the snapshot.

    2. It resumes from there in the new one: were it let in, it would miss what it does not know.
    3. From the first revision of the new history on, everything is there, once.
    """
    await restore(saved.path, tmp_path / "a", name="a", members={"a": "a"})
    first = saved.revision + BUMP_REVISION
    async with opened(tmp_path / "a") as db:
        for start in (1, saved.revision, saved.revision + 1, saved.revision + 1000, first - 1):
            error = await refused(_watched(db, start), errors.WatchCancelled)
            assert error.compact_revision == first
        watch = db.watch("k1", start_revision=first)
        await db.put("k1", "x")
        (event,) = await take(watch, 1)
        assert event.kv.mod_revision == first + 1
        assert event.kv.version == 3
        await watch.close()
        await refused(db.get("k1", revision=saved.revision), errors.Compacted)
        assert (await db.get("k2", revision=first)) is not None
        status = await db.status()
        assert (status.revision, status.compact_revision) == (first + 1, first)


async def _watched(db: Node, start: int) -> None:
    async with db.watch("k", start_revision=start) as watch:
        async for _ in watch.batches():
            raise AssertionError("it was let in")


@asynchronous
async def test_history_is_kept_when_nothing_is_bumped(saved: SavedSnapshot, tmp_path: Path) -> None:
    """A copy for those who never met the old cluster."""
    made = await restore(saved.path, tmp_path / "a", name="a", members={"a": "a"}, bump_revision=0)
    assert made.revision == saved.revision
    async with opened(tmp_path / "a") as db:
        kv = await db.get("k1", revision=3)
        assert kv is not None
        assert kv.value == b"v1"
        assert (await db.put("k", "v")).revision == saved.revision + 1


@asynchronous
async def test_a_restored_cluster_grows_and_sends_its_snapshot(saved: SavedSnapshot, tmp_path: Path) -> None:
    """Who joins is sent the restored state; what the restored member takes itself can be restored again."""
    members = addresses()
    alone = {"a": members["a"]}
    await restore(saved.path, tmp_path / "a", name="a", members=alone)
    async with opened(tmp_path / "a", "a", alone) as db:
        joined = pyraftkv.open(tmp_path / "b", name="b", listen=members["b"], join=members["a"], config=fast())
        async with joined:
            await until(lambda: joined._running().replica.store.published_revision > BUMP_REVISION)
            kv = await joined.get("k1")
            assert kv is not None
            again = await joined.snapshot(tmp_path / "again")
            assert (await pyraftkv.snapshot_status(again.path)).keys == KEYS - 1
        await db.kill()


def test_the_cluster_is_a_function_of_what_was_asked_for() -> None:
    """Another file, member, address, bump or token is another cluster; the order of the members is not."""
    base = cluster_of("00", MEMBERS, bump_revision=1, token="")
    assert cluster_of("00", dict(reversed(MEMBERS.items())), bump_revision=1, token="") == base
    others = [
        cluster_of("01", MEMBERS, bump_revision=1, token=""),
        cluster_of("00", MEMBERS | {"a": "127.0.0.1:9"}, bump_revision=1, token=""),
        cluster_of("00", MEMBERS | {"d": "127.0.0.1:9"}, bump_revision=1, token=""),
        cluster_of("00", MEMBERS, bump_revision=2, token=""),
        cluster_of("00", MEMBERS, bump_revision=1, token="x"),
    ]
    assert len({cluster_id for cluster_id, _ in [base, *others]}) == 6
    assert len({row.incarnation for _, rows in [base, *others] for row in rows}) == 3 * 5 + 4
    assert [row.id for row in base[1]] == [1, 2, 3]


@asynchronous
async def test_sessions_are_dropped(saved: SavedSnapshot, tmp_path: Path) -> None:
    """A late copy of a write of the old cluster is refused as unknown, and never executed."""
    old, _ = await load(saved.path)
    (session,) = (id_ for id_, _, _ in old.sessions.pin())
    late = codec.encode_logged(Envelope(session, 10_000, 1, PutKey(b"late", b"x")))
    await restore(saved.path, tmp_path / "a", name="a", members={"a": "a"})
    async with opened(tmp_path / "a") as db:
        await refused(db.write_encoded(late, 5.0), errors.SessionExpired)
        assert await db.get("late") is None


@asynchronous
async def test_what_cannot_work_is_refused_and_leaves_nothing(saved: SavedSnapshot, tmp_path: Path) -> None:
    """A name that is nobody's, a directory that is used, a damaged file, a file that is none."""
    await refused(restore(saved.path, tmp_path / "x", name="x", members=MEMBERS), errors.ConfigurationError)
    bump = restore(saved.path, tmp_path / "x", name="a", members=MEMBERS, bump_revision=-1)
    await refused(bump, errors.ConfigurationError)
    await refused(pyraftkv.restore_snapshot(saved.path, tmp_path / "x", members="a"), errors.ConfigurationError)
    await refused(pyraftkv.restore_snapshot(saved.path, tmp_path / "x", token="\udcff"), errors.ConfigurationError)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_bytes(b"mine")
    await refused(restore(saved.path, tmp_path / "used", name="a", members=MEMBERS), errors.StorageError)
    assert (tmp_path / "used" / "file").read_bytes() == b"mine"
    damage(saved.path, tmp_path / "damaged")
    attempt = restore(tmp_path / "damaged", tmp_path / "x", name="a", members=MEMBERS)
    error = await refused(attempt, errors.SnapshotCorruption)
    assert error.path == str(tmp_path / "damaged")
    assert 4096 <= error.offset <= 5000
    assert names_in(tmp_path) == ["damaged", "used"]
    (tmp_path / "empty").mkdir()
    await restore(saved.path, tmp_path / "empty", name="a", members=MEMBERS)


class Dying(OsFileSystem):
    """A disk that fails at the nth change and at every later one."""

    def __init__(self, after: int) -> None:
        super().__init__(fsync=False)
        self.left = after

    def _change(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self._change()
        return super().pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        self._change()
        super().fdatasync(fd)

    def fsync_dir(self, path: str) -> None:
        self._change()
        super().fsync_dir(path)

    def rename(self, source: str, target: str) -> None:
        self._change()
        super().rename(source, target)


@asynchronous
async def test_an_interrupted_restore_leaves_nothing_half(saved: SavedSnapshot, tmp_path: Path) -> None:
    """The disk fails at any change: no directory is there, or a whole one; and the next restore begins afresh."""
    target = tmp_path / "a"
    after = 0
    for after in range(1000):
        try:
            await restore(saved.path, target, name="a", members={"a": "a"}, random=Random(1), fs=Dying(after))
        except errors.StorageError:
            if not target.exists():
                continue
            # Renamed; only the last sync, of the directory above, has failed.
            assert (await examine(str(target))).verdict is OK
        break
    assert after > 20
    assert not (tmp_path / ("a" + RESTORING_SUFFIX)).exists()
    async with opened(target) as db:
        assert (await db.range()).count == KEYS - 1


class Telling(OsFileSystem):
    """A file system that tells what becomes of names."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, str]] = []

    def rename(self, source: str, target: str) -> None:
        self.told.append(("rename", target))
        super().rename(source, target)

    def fsync_dir(self, path: str) -> None:
        self.told.append(("sync", path))
        super().fsync_dir(path)


@asynchronous
async def test_a_restored_directory_is_durable_when_it_is_told(saved: SavedSnapshot, tmp_path: Path) -> None:
    """It has its name last, when all in it is durable, and the name is synced: nothing of it is gone with the power."""
    disk, target = Telling(), str(tmp_path / "a")
    await restore(saved.path, target, name="a", members={"a": "a"}, fs=disk)
    assert disk.told[-2:] == [("rename", target), ("sync", str(tmp_path))]


@asynchronous
async def test_two_processes_do_not_restore_to_one_place(saved: SavedSnapshot, tmp_path: Path) -> None:
    """The second is refused, and does not take the first one's half-made directory away."""
    fs = OsFileSystem()
    draft = tmp_path / ("a" + RESTORING_SUFFIX)
    draft.mkdir()
    lock = fs.lock(str(draft / "LOCK"))
    await refused(restore(saved.path, tmp_path / "a", name="a", members={"a": "a"}), errors.DataDirLocked)
    assert draft.exists()
    fs.close(lock)
    (draft / "diary").write_bytes(b"mine")
    await refused(restore(saved.path, tmp_path / "a", name="a", members={"a": "a"}), errors.StorageError)
    (draft / "diary").unlink()
    await restore(saved.path, tmp_path / "a", name="a", members={"a": "a"})
    assert not draft.exists()
