"""`Shadow`: everything that is written is read back, and nothing of it reaches the files below."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from pyraftkv.log.fs import FileSystem, OsFileSystem
from pyraftkv.log.shadow import Shadow
from tests.log.disks import blank, trace

SEEDS = range(20)
STEPS = 200
CHANGING = ("pwrite", "rename", "unlink", "fsync_dir", "make_dir", "create", "fdatasync", "lock")


def put(fs: FileSystem, path: str, data: bytes) -> None:
    """Write a whole file."""
    fd = fs.open(path, create=True)
    fs.pwrite(fd, data, 0)
    fs.close(fd)


def get(fs: FileSystem, path: str) -> bytes:
    """Read a whole file."""
    fd = fs.open(path)
    data = fs.pread(fd, fs.size(fd), 0)
    fs.close(fd)
    return data


def below():
    """A disk with a few files."""
    fs = blank()
    fs.make_dir("/data")
    for name in ("a", "b", "c"):
        put(fs, f"/data/{name}", name.encode() * 10)
    return fs


@pytest.mark.parametrize("seed", SEEDS)
def test_it_is_a_file_system_that_leaves_the_one_below_alone(seed: int) -> None:
    """Random calls do the same as on the disk itself, and the disk is what it was, untouched."""
    random = Random(seed)
    disk, twin = below(), below()
    shadow = Shadow(disk)
    done = len(trace(disk))
    for _ in range(STEPS):
        path, other = (f"/data/{random.choice('abcde')}" for _ in range(2))
        step = random.choice(["put", "put", "append", "rename", "unlink", "reopen"])
        number = random.randrange(30)
        results: list[tuple[dict[str, bytes], str]] = []
        for fs in (shadow, twin):
            try:
                if step == "put":
                    put(fs, path, bytes([number]) * number)
                elif step in ("rename", "unlink"):
                    fs.rename(path, other) if step == "rename" else fs.unlink(path)
                else:
                    fd = fs.open(path)
                    if step == "append":
                        fs.pwrite(fd, b"x" * number, fs.size(fd) + number // 10)
                    fs.fdatasync(fd)
                    fs.forget_cache(fd)
                    fs.close(fd)
                results.append(({name: get(fs, f"/data/{name}") for name in fs.listdir("/data")}, ""))
            except FileNotFoundError:
                results.append(({}, "not there"))
        assert results[0] == results[1], f"seed {seed}, {step} of {path}"
    touched = [line for line in trace(disk)[done:] if line.split()[0] in CHANGING]
    assert touched == []
    assert {name: disk.disk.file(f"/data/{name}") for name in "abc"} == {name: name.encode() * 10 for name in "abc"}


def test_a_file_that_is_open_stays_what_it_is_when_its_name_goes() -> None:
    """As on a real disk: a descriptor outlives the name, and two descriptors see the same bytes."""
    shadow = Shadow(below())
    one, two = shadow.open("/data/a"), shadow.open("/data/a")
    shadow.pwrite(one, b"new", 0)
    assert shadow.pread(two, 3, 0) == b"new"
    shadow.unlink("/data/a")
    assert shadow.pread(two, 3, 0) == b"new"
    shadow.close(one)
    shadow.close(two)
    with pytest.raises(FileNotFoundError):
        shadow.open("/data/a")


def test_directories_that_were_made_here_can_be_listed() -> None:
    """A start makes what is missing; a directory that nobody made is still missing."""
    disk = below()
    shadow = Shadow(disk)
    shadow.make_dir("/data/wal")
    assert shadow.listdir("/data/wal") == []
    put(shadow, "/data/wal/x", b"1")
    assert shadow.listdir("/data/wal") == ["x"]
    assert shadow.listdir("/data") == ["a", "b", "c"]
    with pytest.raises(FileNotFoundError):
        shadow.listdir("/data/snap")
    with pytest.raises(FileNotFoundError):
        disk.listdir("/data/wal")


def test_a_real_file_is_opened_for_reading_alone(tmp_path: Path) -> None:
    """A file that must not be written can be looked at; locking makes none."""
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "a").chmod(0o400)
    fs = OsFileSystem(read_only=True)
    shadow = Shadow(fs)
    fd = shadow.open(str(tmp_path / "a"))
    shadow.pwrite(fd, b"x", 1)
    assert shadow.pread(fd, 10, 0) == b"axc"
    shadow.close(fd)
    shadow.close(shadow.lock(str(tmp_path / "LOCK")))
    with pytest.raises(FileNotFoundError):
        fs.lock(str(tmp_path / "LOCK"))
    real = fs.open(str(tmp_path / "a"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        fs.pwrite(real, b"x", 0)
    fs.close(real)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_is_looked_at_is_read_from_the_disk() -> None:
    """As a start reads it, and not the cache, which may hold what the disk does not. What was written here is here."""
    disk = blank()
    disk.make_dir("/data")
    put(disk, "/data/a", b"abc")
    shadow = Shadow(disk)
    fd = shadow.open("/data/a")
    shadow.forget_cache(fd)
    shadow.pwrite(fd, b"x", 0)
    shadow.forget_cache(fd)
    assert [line for line in trace(disk) if line.startswith("forget_cache")] == ["forget_cache /data/a"]
