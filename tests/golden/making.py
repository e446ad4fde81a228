"""Making golden directories, and reading them back.

A version's directories are made once, when it is released, and never again: what they say is what was promised then.
Until then ``python -m tests.golden`` makes those of the version at hand anew, after any change of a stored format.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyraftkv
from pyraftkv import Node
from pyraftkv.log import FileStorage
from pyraftkv.transport import MemoryNetwork
from tests.node.support import FAST

HERE = Path(__file__).parent
EXPECTED = "expected.json"
SEGMENT_BYTES = 8192


def node_in(path: Path) -> Node:
    """Return the lone member of that directory."""
    storage = FileStorage(path, segment_bytes_max=SEGMENT_BYTES)
    return Node("n1", members={"n1": "n1"}, storage=storage, transport=MemoryNetwork().transport("n1"), config=FAST)


async def make(target: Path) -> None:
    """Make the directories of this version, with what they hold beside them."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)  # noqa: ASYNC240  (nobody else runs on this loop)
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch) / "saved.snap"
        lived, restored = target / "lived", target / "restored"
        await _live(lived, saved)
        await pyraftkv.restore_snapshot(saved, restored, name="n1", token="golden")
        for directory in (lived, restored):
            copy = Path(scratch) / directory.name
            shutil.copytree(directory, copy)
            text = json.dumps(await contents(copy), indent=1, sort_keys=True)
            (target / f"{directory.name}.{EXPECTED}").write_text(text + "\n", encoding="utf-8")


async def _live(path: Path, saved: Path) -> None:
    """Leave behind what a member has of everything: segments, two snapshots, a log after them, compacted history."""
    node = node_in(path)
    await node.start()
    for number in range(60):
        await node.put(f"key-{number % 20:02}", bytes([number]) * (30 * (number % 9)))
        if number in {25, 45}:
            await node.take_snapshot()
    await node.delete("key-03")
    await node.compact((await node.status()).revision - 20)
    await node.snapshot(saved)
    await node.put("large", bytes(range(256)) * 40)
    await node.put("last", "of all")
    await node.kill()


async def contents(path: Path) -> dict[str, Any]:
    """Start the member of a directory, and return all that it has. The directory is changed by that: give a copy."""
    async with node_in(path) as node:
        status, found = await node.status(), await node.range(prefix="")
        hashed = await node.hash_kv()
        return {
            "cluster_id": status.cluster_id,
            "member_id": status.member_id,
            "revision": status.revision,
            "compact_revision": status.compact_revision,
            "hash": str(hashed),
            "keys": [
                [kv.key.hex(), kv.value.hex(), kv.create_revision, kv.mod_revision, kv.version, kv.lease]
                for kv in found.kvs
            ],
        }
