"""`Plain` is a `SimFS` on which nothing is wrong: random calls show the same on both, now and after a power failure."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import pytest

from pyraftkv.log.fs import FileSystem
from pyraftkv.sim.disk import SimDisk
from tests.log.plain import Plain

STEPS = 200
ON_NAMES = ("make_dir", "listdir", "sync_dir", "open", "create", "rename", "unlink")
ON_DESCRIPTORS = ("close", "read", "write", "sync", "forget")


def contents(disk: SimDisk) -> Mapping[str, Mapping[str, bytes]]:
    """As `Plain.contents`."""
    return {
        path: {name: disk.file(f"{path}/{name}") for name in folder.names} for path, folder in disk.directories.items()
    }


def act(fs: FileSystem, fds: list[int], random: Random) -> object:
    """Do one thing to a file system; return what it told."""
    path, other = (f"/d{random.choice(['/', '/sub/', '/sub/low/'])}{random.choice('abc')}" for _ in range(2))
    other = path.rpartition("/")[0] + other[-2:]
    number, size = random.randrange(len(fds) + 1), random.randrange(40)
    kind = random.choice(ON_NAMES + ON_DESCRIPTORS)
    fd = fds[number] if number < len(fds) else 0
    if kind in ("make_dir", "listdir", "sync_dir"):
        folder = random.choice(["/d", "/d/sub", "/d/sub/low"])
        return getattr(fs, "fsync_dir" if kind == "sync_dir" else kind)(folder)
    if kind in ("open", "create"):
        fds.append(fs.open(path, create=kind == "create"))
    elif kind == "rename":
        return fs.rename(path, other)
    elif kind == "unlink":
        return fs.unlink(path)
    elif fd:
        return on_descriptor(fs, fds, kind, fd, size, random)
    return None


def on_descriptor(fs: FileSystem, fds: list[int], kind: str, fd: int, size: int, random: Random) -> object:
    """Do one thing to an open file; return what it told."""
    if kind == "close":
        fds.remove(fd)
        return fs.close(fd)
    if kind == "read":
        return fs.pread(fd, size, random.randrange(10)), fs.size(fd)
    if kind == "write":
        return fs.pwrite(fd, random.randbytes(size), random.randrange(60))
    return fs.fdatasync(fd) if kind == "sync" else fs.forget_cache(fd)


def told(fs: FileSystem, fds: list[int], random: Random) -> object:
    """As `act`, or which error there was."""
    try:
        return act(fs, fds, random)
    except FileNotFoundError:
        return "not there"


@pytest.mark.parametrize("seed", range(10))
def test_it_does_what_a_simulated_disk_does(seed: int) -> None:
    """Calls tell the same, and leave the same behind: seen, and durable."""
    plain, disk = Plain({}), SimDisk(Random(0))
    fs = disk.mount()
    plain_fds: list[int] = []
    fds: list[int] = []
    for step in range(STEPS):
        key = f"{seed} {step}"
        expected = told(fs, fds, Random(key))
        assert told(plain, plain_fds, Random(key)) == expected, f"seed {seed}, step {step}"
        assert plain.contents() == contents(disk), f"seed {seed}, step {step}"
        assert plain.after_power_loss().contents() == contents(disk.durable_copy()), f"seed {seed}, step {step}"


def test_what_was_left_is_another_disk() -> None:
    """A write after the power failure does not show in the disk that it was taken of, nor the other way."""
    plain = Plain({})
    plain.make_dir("/d")
    plain.fsync_dir("")
    fd = plain.open("/d/f", create=True)
    plain.pwrite(fd, b"old", 0)
    plain.fdatasync(fd)
    plain.fsync_dir("/d")
    left = plain.after_power_loss()
    left.pwrite(left.lock("/d/f"), b"new", 0)
    plain.pwrite(fd, b"own", 0)
    assert (left.contents()["/d"]["f"], plain.contents()["/d"]["f"]) == (b"new", b"own")
