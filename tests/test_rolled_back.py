"""A data directory that is put back from an older copy, on real files and over TCP."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

import pyraftkv
from pyraftkv import errors
from pyraftkv.cli import main
from tests.node.support import asynchronous, refused, until
from tests.test_rebuild import CONFIG, WRITES, addresses, member, started, stop


@pytest.mark.parametrize("is_copied", ["while it runs", "before it starts"])
@asynchronous
async def test_a_member_on_an_older_directory_stops_by_name_until_it_is_rebuilt(
    is_copied: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a boot count that is new to everybody, or that was seen. A start and `doctor` know it from then on."""
    members = addresses()
    nodes = await started(tmp_path, members)
    await nodes["a"].transfer_leadership("a")
    copy = tmp_path / "copy"
    if is_copied == "before it starts":
        await nodes["c"].close()
        shutil.copytree(tmp_path / "c", copy)
        nodes["c"] = member(tmp_path, "c", members)
        await nodes["c"].start()
    else:
        shutil.copytree(tmp_path / "c", copy, ignore=shutil.ignore_patterns("LOCK", "mark"))
    await nodes.pop("b").close()
    await nodes["a"].put("later", b"v")  # by the word of this member alone
    await nodes.pop("c").close()
    shutil.rmtree(tmp_path / "c")
    shutil.move(copy, tmp_path / "c")

    back = member(tmp_path, "c", members)
    error = await refused(_run(back), errors.DataDirRolledBack)
    assert ("boot count 2 again" if is_copied == "before it starts" else "had acknowledged entries to") in str(error)
    again = await refused(member(tmp_path, "c", members).start(), errors.DataDirRolledBack)
    assert "`pyraftkv rebuild`" in str(again)
    assert await asyncio.to_thread(main, ["doctor", str(tmp_path / "c")]) == 2
    assert "the log ends before what it had acknowledged" in capsys.readouterr().out

    nodes["b"] = member(tmp_path, "b", members)
    await nodes["b"].start()
    await pyraftkv.rebuild(tmp_path / "c", join=[members["a"], members["b"]], config=CONFIG)
    nodes["c"] = member(tmp_path, "c", members)
    await nodes["c"].start()
    assert (await nodes["c"].range(prefix="k")).count == WRITES
    assert await nodes["c"].get("later") is not None
    await stop(nodes)


@asynchronous
async def test_a_copy_that_is_started_beside_its_member_stops_and_harms_nobody(tmp_path: Path) -> None:
    """The same directory twice, and the same boot count: the others have heard of one life, and refuse the other."""
    members = addresses()
    nodes = await started(tmp_path, members)
    await nodes["c"].close()
    shutil.copytree(tmp_path / "c", tmp_path / "elsewhere" / "c")
    nodes["c"] = member(tmp_path, "c", members)
    await nodes["c"].start()
    others = [node._member for name, node in nodes.items() if name != "c" and node._member is not None]
    await until(lambda: [other.peers._boots[3] for other in others] == [2, 2])
    copy = member(tmp_path / "elsewhere", "c", {**members, "c": addresses(1)["a"]})
    assert "it is another life" in str(await refused(_run(copy), errors.DataDirRolledBack))
    assert all(node.failed is not None and not node.failed.done() for node in nodes.values())
    await nodes["c"].put("later", b"w")
    await stop(nodes)


@asynchronous
async def test_what_is_left_can_be_made_a_cluster_although_it_was_rolled_back(tmp_path: Path) -> None:
    """Nobody of the new one was promised anything by it."""
    members = addresses(1)
    nodes = await started(tmp_path, members)
    own = nodes["a"]._life.connections
    assert own is not None
    known = (own.own.boot_count, 99, 99)
    nodes["a"]._life.peer_refused(2, errors.HandshakeRejected(reason="rolled-back", known=known, is_theirs=True))
    await refused(_run(nodes.pop("a")), errors.Closed)
    await refused(member(tmp_path, "a", members).start(), errors.DataDirRolledBack)
    await pyraftkv.recover(tmp_path / "a")
    async with member(tmp_path, "a", members) as node:
        assert (await node.range(prefix="k")).count == WRITES


async def _run(node: pyraftkv.Node) -> None:
    """Run a node until it ends by itself."""
    async with node:
        assert node.failed is not None
        await asyncio.wait([node.failed])
