"""The real file system, short writes and the kernel's own limits included."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from threading import Timer

import pytest

from pyraftkv.errors import ForeignDataDir
from pyraftkv.log.fs import (
    IN_USE_ELSEWHERE,
    IN_USE_HERE,
    LOCK_PAUSE_SECONDS,
    OsFileSystem,
    after_fork_in_child,
    join,
    parent,
    write_all,
)
from pyraftkv.sim.disk import SimDisk, SimFS

ROOT = Path(__file__).parents[2]


def test_files_are_read_and_written_at_offsets(tmp_path):
    """Positions are explicit; a read past the end is short."""
    fs = OsFileSystem()
    path = str(tmp_path / "file")
    fd = fs.open(path, create=True)
    write_all(fs, fd, b"hello", 3)
    fs.fdatasync(fd)
    fs.forget_cache(fd)
    assert (fs.size(fd), fs.pread(fd, 5, 3), fs.pread(fd, 100, 6), fs.pread(fd, 4, 50)) == (8, b"hello", b"lo", b"")
    fs.close(fd)
    again = fs.open(path)
    assert fs.pread(again, 10, 3) == b"hello"
    fs.close(again)
    fs.rename(path, path + "2")
    fs.fsync_dir(str(tmp_path))
    assert fs.listdir(str(tmp_path)) == ["file2"]
    fs.unlink(path + "2")
    assert parent(path) == str(tmp_path)


def test_long_reads_are_whole_even_if_the_kernel_gives_pieces(tmp_path, monkeypatch):
    """Linux reads 2 GiB at most in one call; whoever asks for more must not see less."""
    fs = OsFileSystem()
    fd = fs.open(str(tmp_path / "file"), create=True)
    write_all(fs, fd, bytes(range(100)), 0)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: pread(fd, min(size, 7), offset))
    assert fs.pread(fd, 90, 5) == bytes(range(5, 95))
    assert fs.pread(fd, 200, 5) == bytes(range(5, 100))
    fs.close(fd)


def test_directories_are_private(tmp_path):
    """Made 0700, and made 0700 if they were not."""
    fs = OsFileSystem()
    path = tmp_path / "data"
    fs.make_dir(str(path))
    assert path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o755)
    fs.make_dir(str(path))
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_directory_is_private_from_its_first_moment(tmp_path, monkeypatch):
    """Before anybody could change its mode, somebody else could open it."""
    monkeypatch.setattr(os, "chmod", lambda _path, _mode: None)
    path = tmp_path / "data"
    OsFileSystem().make_dir(str(path))
    assert path.stat().st_mode & 0o777 == 0o700


def test_directories_above_are_made_durably(tmp_path, monkeypatch):
    """Each name is synced by the directory that holds it; the last one by whoever asked for it."""
    fs, synced = OsFileSystem(), []
    monkeypatch.setattr(fs, "fsync_dir", synced.append)
    fs.make_dir(str(tmp_path / "a" / "b" / "c"))
    assert (tmp_path / "a" / "b" / "c").is_dir()
    assert synced[1:] == [str(tmp_path), str(tmp_path / "a")]


def test_a_directory_above_that_a_killed_process_made_becomes_durable(tmp_path, monkeypatch):
    """It stands there, and its name may be in the cache alone; what stands in it would be lost with it."""
    fs, synced = OsFileSystem(), []
    monkeypatch.setattr(fs, "fsync_dir", synced.append)
    (tmp_path / "a").mkdir()
    fs.make_dir(str(tmp_path / "a" / "b"))
    assert synced == [str(tmp_path)]
    fs.make_dir(str(tmp_path / "a" / "b"))
    assert synced == [str(tmp_path)], "it was durable before the directory was made"


def test_a_directory_above_that_nobody_may_read_is_no_reason_to_stop(tmp_path, monkeypatch):
    """It is another user's then, and older than ours; but one that the disk cannot read is told."""
    fs, code = OsFileSystem(), errno.EACCES

    def fsync_dir(path):
        raise OSError(code, "simulated", path)

    monkeypatch.setattr(fs, "fsync_dir", fsync_dir)
    fs.make_dir(str(tmp_path / "a"))
    code = errno.EIO
    with pytest.raises(OSError, match="simulated"):
        fs.make_dir(str(tmp_path / "b"))


def test_a_directory_of_another_user_is_refused(tmp_path, monkeypatch):
    """Whoever owns the directory could replace what is in it."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ForeignDataDir):
        OsFileSystem().make_dir(str(tmp_path))


def test_who_only_looks_keeps_nobody_from_starting(tmp_path):
    """`doctor` finds out whether a directory is in use while its member starts; and two who look see no owner."""
    path = str(tmp_path / "LOCK")
    member, looking = OsFileSystem(), OsFileSystem(read_only=True)
    member.close(member.lock(path))
    held = looking.lock(path)
    looking.close(looking.lock(path))
    Timer(LOCK_PAUSE_SECONDS, looking.close, [held]).start()
    fd = member.lock(path)
    with pytest.raises(BlockingIOError):
        looking.lock(path)
    member.close(fd)


def test_a_lock_lasts_as_long_as_its_descriptor(tmp_path):
    """Even in the same process, and not longer."""
    fs = OsFileSystem()
    path = str(tmp_path / "LOCK")
    fd = fs.lock(path)
    with pytest.raises(BlockingIOError, match=IN_USE_HERE):
        OsFileSystem().lock(path)
    os.close(os.open(path, os.O_RDONLY))  # this is what would drop a POSIX lock
    with pytest.raises(BlockingIOError):
        fs.lock(path)
    fs.close(fd)
    fs.close(fs.lock(path))


def test_who_holds_another_directory_does_not_hold_this_one(tmp_path):
    """The other process is told of, although this one has locked a file as well, whatever its number is."""
    fs, path = OsFileSystem(), str(tmp_path / "LOCK")
    fd = fs.lock(str(tmp_path / "another"))
    elsewhere = os.open(path, os.O_CREAT | os.O_RDWR)
    fcntl = pytest.importorskip("fcntl")
    fcntl.flock(elsewhere, fcntl.LOCK_EX)
    with pytest.raises(BlockingIOError, match=IN_USE_ELSEWHERE):
        fs.lock(path)
    os.close(elsewhere)
    fs.close(fd)


def test_a_file_system_without_locks_is_not_taken_for_a_locked_file(tmp_path, monkeypatch):
    """Who looks for the other process would never find it."""
    fcntl = pytest.importorskip("fcntl")

    def flock(_fd: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="no locks") as caught:
        OsFileSystem().lock(str(tmp_path / "LOCK"))
    assert not isinstance(caught.value, BlockingIOError)


def test_without_fsync_nothing_is_synced(tmp_path, monkeypatch):
    """The name of the option is the truth."""
    fs = OsFileSystem(fsync=False)
    fd = fs.open(str(tmp_path / "file"), create=True)
    monkeypatch.setattr(os, "fdatasync", lambda _fd: pytest.fail("synced"))
    monkeypatch.setattr(os, "fsync", lambda _fd: pytest.fail("synced"))
    fs.fdatasync(fd)
    fs.fsync_dir(str(tmp_path))
    fs.close(fd)


def test_syncs_reach_the_kernel(tmp_path, monkeypatch):
    """Each kind of sync is the system call that it names."""
    fs, calls = OsFileSystem(), []
    fd = fs.open(str(tmp_path / "file"), create=True)
    fdatasync, fsync = os.fdatasync, os.fsync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (calls.append("fdatasync"), fdatasync(fd)))
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    fs.fdatasync(fd)
    fs.fsync_dir(str(tmp_path))
    fs.close(fd)
    assert calls == ["fdatasync", "fsync"]


def test_short_writes_are_continued():
    """However little the disk takes at a time, everything arrives."""

    class Slow(SimFS):
        def pwrite(self, fd, data, offset):
            return super().pwrite(fd, data[:3], offset)

    fs = Slow(SimDisk(Random(0)))
    fd = fs.open("/file", create=True)
    write_all(fs, fd, b"a long story", 2)
    assert fs.pread(fd, 100, 0) == b"\0\0a long story"


def test_a_disk_that_takes_nothing_is_an_error():
    """No endless loop."""

    class Full(SimFS):
        def pwrite(self, fd, data, offset):
            return 0

    fs = Full(SimDisk(Random(0)))
    with pytest.raises(OSError, match="no progress") as caught:
        write_all(fs, fs.open("/file", create=True), b"x", 0)
    assert caught.value.errno == errno.EIO


def test_a_real_short_write_fails_the_log_and_is_mended_by_the_next_start(tmp_path):
    """The kernel takes part of a batch and then refuses (RLIMIT_FSIZE): what was acknowledged is there, no more."""
    program = f"""
import asyncio, resource, sys
sys.path.insert(0, {str(ROOT)!r})
from pyraftkv.core.ready import Save
from pyraftkv.core.types import Entry
from pyraftkv.log import FileStorage

async def main():
    failed = asyncio.get_running_loop().create_future()
    storage = FileStorage({str(tmp_path / "data")!r}, reserve_bytes=0)
    await storage.start(failed=failed.set_result)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    for number in range(1, 100):
        done = asyncio.get_running_loop().create_future()
        storage.save(Save(number, None, [Entry(number, 1, b"x" * 1000)], None), done.set_result)
        await asyncio.wait([done, failed], return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            print("failed", type(failed.result()).__name__, failed.result().__cause__.errno)
            break
        print(number)
    await storage.close()

asyncio.run(main())
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    lines = result.stdout.split("\n")[:-1]
    assert lines[-1] == f"failed StorageFailed {errno.EFBIG}"
    acknowledged = int(lines[-2])
    assert 5 < acknowledged < 20
    segment = next((tmp_path / "data" / "wal").glob("*.wal"))
    assert segment.stat().st_size == 20_000, "the write was short, not refused"
    assert _reopen(tmp_path / "data") == (acknowledged, True)
    assert _reopen(tmp_path / "data") == (acknowledged, False)


def _reopen(path: Path) -> tuple[int, bool]:
    import asyncio

    from pyraftkv.log import FileStorage

    async def main():
        storage = FileStorage(path)
        recovered = await storage.start(failed=lambda error: pytest.fail(str(error)))
        await storage.close()
        return recovered.entries[-1].index, "torn" in recovered.repaired

    return asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_told():
    """The callback runs in the child, and only there."""
    program = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pyraftkv.log.fs import after_fork_in_child
after_fork_in_child(lambda: print("child", flush=True))
child = os.fork()
if child:
    os.waitpid(child, 0)
    print("parent", flush=True)
else:
    os._exit(0)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.split() == ["child", "parent"]


def test_systems_without_fork_have_nothing_to_tell(monkeypatch):
    """Windows does not fork."""
    monkeypatch.delattr(os, "register_at_fork")
    after_fork_in_child(lambda: None)


def test_systems_without_advice_read_through_the_cache(tmp_path, monkeypatch):
    """Not every system has posix_fadvise."""
    monkeypatch.delattr(os, "posix_fadvise")
    fs = OsFileSystem()
    fd = fs.open(str(tmp_path / "file"), create=True)
    fs.forget_cache(fd)
    fs.close(fd)


@pytest.mark.parametrize("directory", ["/data", "/data/", "/", "data", ".", ""])
def test_a_name_in_a_directory(directory: str) -> None:
    """As the standard library joins them."""
    assert join(directory, "mark") == os.path.join(directory, "mark")  # noqa: PTH118
    assert join(directory, "") == os.path.join(directory, "")  # noqa: PTH118
