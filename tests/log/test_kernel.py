"""The real kernel fails: injected errors, real limits, a disk of 64 KiB. What was acknowledged is there afterwards.

A simulated disk fails as we think that disks do. Here a real kernel does, by its own means: `strace` injects errors and
kills between two system calls, `RLIMIT_FSIZE` cuts a write short, `RLIMIT_NOFILE` refuses to open, a file system of
64 KiB is full. Where one of these means is missing or forbidden, its tests are skipped and say so.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyraftkv.core.types import Membership, SnapshotMeta
from pyraftkv.errors import StorageError
from pyraftkv.log import OsFileSystem
from pyraftkv.log.fs import write_all
from tests.log.writer import check, entry, storage_at

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="limits, injections and namespaces of Linux"),
    pytest.mark.timeout(300),
]


def run(path: Path, *options: str, before: tuple[str, ...] = ()) -> tuple[list[list[str]], int]:
    """Run a writer, with a program before it that does something to it; return what it said, and its exit status."""
    command = [*before, sys.executable, "-m", "tests.log.writer", str(path), *options]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}  # whose system calls would be counted, too
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode <= 0 or lines, done.stderr
    return lines, done.returncode


def acknowledged(lines: list[list[str]]) -> int:
    """Return the last index that was acknowledged; nothing may be, once the storage has failed."""
    words = [words[0] for words in lines]
    if "failed" in words:
        assert "saved" not in words[words.index("failed") :]
    return max((int(words[1]) for words in lines if words[0] in ("start", "saved")), default=0)


def failures(lines: list[list[str]]) -> list[str]:
    """Return with which errors the storage failed, or the start was refused."""
    return [words[1] for words in lines if words[0] in ("failed", "refused")]


@functools.cache
def cannot_trace() -> str:
    """Return why system calls cannot be failed here; empty if they can."""
    if shutil.which("strace") is None:
        return "there is no strace here"
    done = subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"strace may not trace here: {done.stderr.strip()}"


@functools.cache
def cannot_mount() -> str:
    """Return why no small file system can be mounted here; empty if one can."""
    if shutil.which("unshare") is None:
        return "there is no unshare here"
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/mnt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"no file system can be mounted here: {done.stderr.strip()}"


def inject(call: str, what: str, when: str) -> tuple[str, ...]:
    """Return the command that runs another one and does this to one of its system calls."""
    if reason := cannot_trace():
        pytest.skip(reason)
    return ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:{what}:when={when}")


@pytest.mark.parametrize("when", ["3", "14", "26+"])
def test_a_sync_that_fails_is_final(tmp_path, when):
    """EIO of the kernel itself, once or from there on: the storage fails or does not start, and nothing is lost."""
    lines, status = run(tmp_path, before=inject("fdatasync", "error=EIO", when))
    assert status == 0
    assert failures(lines) in (["EIO"], ["StorageFailed"])
    asyncio.run(check(str(tmp_path), acknowledged(lines)))


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_write_that_fails_loses_nothing(tmp_path, error):
    """Whether the storage waits for room, goes on or fails."""
    lines, status = run(tmp_path, "--saves=30", before=inject("pwrite64", f"error={error}", "25+"))
    assert status == 0
    assert {words[0] for words in lines} & {"failed", "waits"}
    asyncio.run(check(str(tmp_path), acknowledged(lines)))


@pytest.mark.parametrize("call", ["fdatasync", "pwrite64", "rename"])
def test_killed_in_the_middle_of_a_system_call(tmp_path, call):
    """Again and again, on one directory."""
    known = 0
    for when in (2, 11):
        before = inject(call, "signal=KILL", str(when))
        lines, status = run(tmp_path, "--saves=40", before=before)
        assert status in (0, -signal.SIGKILL)
        known = max(known, acknowledged(lines))
        asyncio.run(check(str(tmp_path), known))


def test_a_file_that_may_not_grow(tmp_path):
    """The kernel takes part of a write and then refuses (RLIMIT_FSIZE)."""
    run(tmp_path, "--saves=5")
    lines, _ = run(tmp_path, "--file-bytes-max=12345")
    assert acknowledged(lines) > 0
    assert {words[0] for words in lines} & {"failed", "waits"}
    asyncio.run(check(str(tmp_path), acknowledged(lines)))


def test_no_more_files_can_be_opened(tmp_path):
    """The log goes on until it needs another segment (RLIMIT_NOFILE); what it acknowledged until then is there."""
    lines, _ = run(tmp_path, "--files-max=3")
    assert acknowledged(lines) > 0
    assert {words[0] for words in lines} & {"failed", "waits"}
    asyncio.run(check(str(tmp_path), acknowledged(lines)))


def test_a_disk_of_64_kib_is_full(tmp_path):
    """In a file system of its own. What was acknowledged is found there by the next start."""
    if reason := cannot_mount():
        pytest.skip(reason)
    writer = f"{sys.executable} -m tests.log.writer"
    script = f"""
        mount -t tmpfs -o size=64k tmpfs {tmp_path} && mkdir {tmp_path}/data || exit 9
        {writer} {tmp_path}/data >{tmp_path.parent}/said
        acknowledged=$(awk '$1 == "saved" {{ last = $2 }} END {{ print last + 0 }}' {tmp_path.parent}/said)
        rm -rf {tmp_path}/data/snap/*.tmp; mount -o remount,size=256k {tmp_path}
        {writer} {tmp_path}/data --check $acknowledged
    """
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    lines = [line.split() for line in Path(tmp_path.parent, "said").read_text(encoding="utf-8").splitlines()]
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("found")
    assert acknowledged(lines) > 0
    assert {words[0] for words in lines} & {"failed", "waits"}


def test_a_device_that_is_always_full(tmp_path):
    """/dev/full takes no byte: whoever writes there is told, and a snapshot that would go there ends by itself."""
    fs = OsFileSystem()
    fd = fs.open("/dev/full")
    with pytest.raises(OSError, match="No space") as told:
        write_all(fs, fd, b"anything", 0)
    fs.close(fd)
    assert told.value.errno == errno.ENOSPC

    async def main():
        storage = storage_at(str(tmp_path))
        await storage.start(failed=lambda error: pytest.fail(str(error)))
        (tmp_path / "snap" / f"{1:016x}-{1:016x}.snap.1.tmp").symlink_to("/dev/full")
        sink = storage.create_snapshot(SnapshotMeta(index=1, term=1, membership=Membership(voters=frozenset({1}))))
        with pytest.raises(StorageError, match="No space"):
            await sink.write(b"state")
        await storage.close()

    asyncio.run(main())


def test_a_process_that_is_stopped(tmp_path):
    """SIGSTOP in the middle of writing: it goes on where it was, and a kill while it stands loses nothing."""
    command = [sys.executable, "-m", "tests.log.writer", str(tmp_path), "--saves=100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
        for _ in range(3):
            lines = [writer.stdout.readline().split() for _ in range(40)]
            writer.send_signal(signal.SIGSTOP)
            writer.send_signal(signal.SIGCONT)
        writer.send_signal(signal.SIGSTOP)
        writer.kill()
        lines += [line.split() for line in writer.stdout if line.endswith("\n")]
    asyncio.run(check(str(tmp_path), acknowledged(lines)))
    assert entry(3).payload == b"3" * 50
