"""A quorum is lost for good, over TCP and on real disks: what the survivor has goes on as another cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import pyraftkv
from pyraftkv import Node, errors
from pyraftkv.demo.processes import free_ports
from tests.node.support import asynchronous, fast, until

NAMES = ("a", "b", "c")
CONFIG = fast(request_timeout_seconds=10.0)
WRITES = 60


def addresses() -> dict[str, str]:
    """Return free addresses for three members."""
    return {name: f"127.0.0.1:{port}" for name, port in zip(NAMES, free_ports(len(NAMES)), strict=True)}


def member(folder: Path, name: str, members: dict[str, str]) -> Node:
    """Return a member, not started."""
    return pyraftkv.open(folder / name, name=name, listen=members[name], members=members, config=CONFIG)


def joining(folder: Path, name: str, members: dict[str, str]) -> Node:
    """Return a member that asks the survivor to be taken in, not started."""
    return pyraftkv.open(folder / name, name=name, listen=members[name], join=members["c"], config=CONFIG)


def reasons(node: Node) -> set[str]:
    """Return why others were refused, or this one was by others."""
    transport: Any = node._transport
    return {rejection.reason for rejection in transport.rejections.values()}


@asynchronous
async def test_the_survivor_of_three_goes_on_as_another_cluster(tmp_path: Path) -> None:
    """1. Three members, load. Two are killed for good; the third knows that it has no quorum, and refuses to write.

    2. It is recovered. Everything that it had is there, and it writes alone, in a later term and at later revisions.
    3. One of the two comes back with its old directory: each side refuses the other's cluster by name.
    """
    members = addresses()
    nodes = {name: member(tmp_path, name, members) for name in NAMES}
    await asyncio.gather(*[node.start() for node in nodes.values()])
    written = await asyncio.gather(*[nodes["a"].put(f"k{number}", b"v") for number in range(WRITES)])
    revision = max(each.revision for each in written)
    await until(lambda: nodes["c"]._running().replica.store.published_revision == revision)
    before = await nodes["c"].status()
    await asyncio.gather(nodes["a"].kill(), nodes["b"].kill())
    await until(lambda: not nodes["c"]._running().raft.status().has_quorum)
    with pytest.raises((errors.NotApplied, errors.MaybeApplied)):
        await nodes["c"].put("late", b"v", timeout=0.3)
    with pytest.raises(errors.DataDirLocked):
        await pyraftkv.recover(tmp_path / "c")
    await nodes["c"].kill()

    done = await pyraftkv.recover(tmp_path / "c")
    assert [row.name for row in done.lost] == ["a", "b"]
    async with member(tmp_path, "c", members) as alone:
        assert (await alone.range(prefix="k")).count == WRITES
        status = await alone.status()
        assert (status.has_quorum, status.role, status.name) == (True, "leader", "c")
        assert (status.cluster_id, status.member_id) == (done.cluster_id, before.member_id)
        assert status.cluster_id != before.cluster_id
        assert status.term > before.term
        assert (await alone.put("k0", b"w")).revision > revision
        returned = member(tmp_path, "b", members)
        await returned.start()
        await until(lambda: "wrong-cluster" in reasons(alone) | reasons(returned))
        await returned.kill()
        assert [peer.name for peer in (await alone.status()).peers] == ["c"]
    async with member(tmp_path, "c", members) as again:
        kv = await again.get("k0")
        assert kv is not None
        assert kv.value == b"w"


@asynchronous
async def test_the_new_cluster_grows_by_members_with_wiped_directories(tmp_path: Path) -> None:
    """1. Of three members one is left, and is recovered. The lost ones come back with empty directories, and join.

    2. The first is sent the whole log, the recovery in it, and all clusters before it; the second a snapshot.
    3. Both vote: the survivor can go, and nothing is missing.
    """
    members = addresses()
    nodes = {name: member(tmp_path, name, members) for name in NAMES}
    await asyncio.gather(*[node.start() for node in nodes.values()])
    await asyncio.gather(*[nodes["a"].put(f"k{number}", b"v") for number in range(WRITES)])
    await nodes["c"].get("k0")
    await asyncio.gather(*[node.kill() for node in nodes.values()])
    done = await pyraftkv.recover(tmp_path / "c")
    survivor = member(tmp_path, "c", members)
    await survivor.start()
    for name in ("a", "b"):
        nodes[name] = joining(tmp_path / "new", name, members)
        await nodes[name].start()
        await until(lambda name=name: nodes[name]._running().raft.id in survivor._running().raft.membership.voters)
        for number in range(2):
            await survivor.put(f"{name}{number}", b"v")
            await survivor.take_snapshot()
    assert [row.id for row in await survivor.members.list()] == [3, 4, 5]
    await survivor.close()
    assert (await nodes["b"].range(prefix="k")).count == WRITES
    await nodes["b"].put("more", b"v")
    assert {(await nodes[name].status()).cluster_id for name in ("a", "b")} == {done.cluster_id}
    old = member(tmp_path, "a", members | {"a": f"127.0.0.1:{free_ports(1)[0]}"})
    await old.start()
    await until(lambda: "wrong-cluster" in reasons(old))
    await asyncio.gather(old.kill(), nodes["a"].kill(), nodes["b"].kill())
