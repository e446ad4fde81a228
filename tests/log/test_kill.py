"""Real processes: SIGKILL in the middle of writing, and two processes on one directory."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from pyraftkv.core.types import Entry
from pyraftkv.errors import DataDirLocked
from pyraftkv.log import FileStorage

ROOT = Path(__file__).parents[2]

WRITER = """
import asyncio, sys
sys.path.insert(0, sys.argv[2])
from pyraftkv.core.ready import Save
from pyraftkv.core.types import Entry, HardState, Membership, SnapshotMeta
from pyraftkv.log import FileStorage

async def main():
    storage = FileStorage(sys.argv[1], segment_bytes_max=64 << 10)
    recovered = await storage.start(failed=lambda error: print(error, file=sys.stderr))
    base = recovered.snapshot.index if recovered.snapshot else 0
    index = recovered.entries[-1].index if recovered.entries else base
    loop = asyncio.get_running_loop()
    print("start", index, flush=True)
    number = 0
    while True:
        number += 1
        entries = [Entry(index + 1 + i, 1, b"%d" % (index + 1 + i) * 50) for i in range(7)]
        done = loop.create_future()
        storage.save(Save(number, HardState(1, 1, index), entries, None), done.set_result)
        await done
        index += 7
        print("saved", index, flush=True)
        if number % 100 == 0:
            meta = SnapshotMeta(index=index - 10, term=1, membership=Membership(voters=frozenset({1})))
            sink = storage.create_snapshot(meta)
            await sink.write(b"state at %d" % meta.index)
            await sink.commit()
            print("snapshot", meta.index, flush=True)

asyncio.run(main())
"""


def test_a_killed_writer_has_everything_it_acknowledged(tmp_path):
    """Killed again and again in the middle of writing, it starts unaided and nothing acknowledged is missing."""
    path = str(tmp_path / "data")
    random = Random(5)
    acknowledged = 0
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path, str(ROOT)], stdout=subprocess.PIPE, text=True)
        snapshot = 0
        with writer:
            for _ in range(random.randint(30, 250)):
                word, index = writer.stdout.readline().split()
                assert word in ("start", "saved", "snapshot")
                if word == "start":
                    assert int(index) >= acknowledged
                elif word == "saved":
                    acknowledged = int(index)
                else:
                    snapshot = int(index)
            writer.send_signal(signal.SIGKILL)
            for line in writer.stdout:
                if line.startswith("saved") and line.endswith("\n"):
                    acknowledged = int(line.split()[1])
        assert writer.returncode == -signal.SIGKILL
        asyncio.run(_check(path, acknowledged, snapshot))


async def _check(path: str, acknowledged: int, snapshot: int) -> None:
    storage = FileStorage(path)
    recovered = await storage.start(failed=lambda error: pytest.fail(str(error)))
    base = recovered.snapshot.index if recovered.snapshot else 0
    assert base >= snapshot
    if recovered.snapshot:
        assert [chunk async for chunk in storage.read_snapshot(recovered.snapshot)] == [b"state at %d" % base]
    last = recovered.entries[-1].index
    assert last >= acknowledged
    assert recovered.entries == [Entry(index, 1, b"%d" % index * 50) for index in range(base + 1, last + 1)]
    await storage.close()


def test_two_processes_on_one_directory(tmp_path):
    """The second is refused while the first lives, and let in as soon as the first is killed."""
    path = str(tmp_path / "data")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path, str(ROOT)], stdout=subprocess.PIPE, text=True)
    with writer:
        assert writer.stdout.readline() == "start 0\n"

        async def refused():
            with pytest.raises(DataDirLocked, match="in use by another process"):
                await FileStorage(path).start(failed=lambda error: pytest.fail(str(error)))

        asyncio.run(refused())
        writer.kill()
        writer.stdout.read()
    asyncio.run(_check_opens(path))


@pytest.mark.timeout(3000)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, and kills by signal")
def test_a_process_killed_at_any_line_of_the_log(soak):
    """What it had acknowledged is there, and nothing that was not asked for; the next one starts unaided.

    At any line: of healthy lives, and of those in which the disk fails or the directory was damaged.
    """
    for seed in range(2, 12) if soak else (1,):
        command = [sys.executable, "-m", "tests.log.kills", f"--seed={seed}", f"--rounds={40 if soak else 1}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        counts = json.loads(done.stdout.splitlines()[-1])
        assert counts["unexplained"] == [], "nobody is killed there, and nobody says why"
        assert counts["points"] >= 100_000
        assert counts["kills"] >= counts["lines"] >= 1_400, done.stdout


async def _check_opens(path: str) -> None:
    storage = FileStorage(path)
    await storage.start(failed=lambda error: pytest.fail(str(error)))
    await storage.close()
