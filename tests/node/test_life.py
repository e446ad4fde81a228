"""The life of a node: starting, stopping, failing, and what the transport tells it meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pyraftkv
from pyraftkv import Node, errors
from pyraftkv.core import Entry, EntryFetch
from pyraftkv.core.ready import Save
from pyraftkv.core.types import NO_NODE
from pyraftkv.log import MemoryStorage
from pyraftkv.log.base import Recovered
from pyraftkv.node import NodeStopped
from pyraftkv.node.driver import Driver
from pyraftkv.transport import MemoryNetwork
from tests.node.support import FAST, asynchronous, cluster_of, fast, lone_node, refused, take, until


class FailingStorage(MemoryStorage):
    """A disk that fails when it is told to, as a disk does: nothing completes any more, and `failed` is called once."""

    def __init__(self) -> None:
        super().__init__(random=random.Random(5))
        self.is_failing = False
        self.reads_fail = False
        self._failed: Callable[[BaseException], None] | None = None

    async def start(self, *, failed: Callable[[BaseException], None], **listeners: Any) -> Recovered:
        self._failed = failed
        return await super().start(failed=failed, **listeners)

    def save(self, save: Save, then: Callable[[int], None]) -> None:
        if not self.is_failing:
            super().save(save, then)
        elif self._failed is not None:
            failed, self._failed = self._failed, None
            asyncio.get_running_loop().call_soon(failed, errors.StorageFailed("input/output error"))

    async def read_entries(self, *, lo: int, hi: int, bytes_max: int) -> list[Entry]:
        if self.reads_fail:
            raise errors.WalCorruption("rotten")
        return await super().read_entries(lo=lo, hi=hi, bytes_max=bytes_max)


def trio(network: MemoryNetwork, storages: dict[str, MemoryStorage], **changes: Any) -> list[Node]:
    """Return the nodes of a cluster, not started."""
    members = {name: name for name in storages}
    return [
        Node(
            name,
            members=members,
            storage=storage,
            transport=network.transport(name),
            config=fast(**changes),
            rng=random.Random(number),
        )
        for number, (name, storage) in enumerate(storages.items())
    ]


@asynchronous
async def test_a_failing_disk_stops_its_node_and_no_other() -> None:
    """1. The leader's disk fails with writes under way: they may be applied, `failed` says why, the node stops.

    2. The others elect another leader and go on. What was acknowledged is there.
    """
    network = MemoryNetwork()
    storages: dict[str, MemoryStorage] = {name: FailingStorage() for name in ("a", "b", "c")}
    nodes = trio(network, storages)
    await asyncio.gather(*[node.start() for node in nodes])
    await nodes[0].put("k", "acknowledged", timeout=20)
    leader = await until(lambda: next((node for node in nodes if node.is_leader), None))
    await leader.put("k2", "v")
    events = asyncio.create_task(collect(leader))
    await asyncio.sleep(0)
    disk = leader._storage
    assert isinstance(disk, FailingStorage)
    disk.is_failing = True
    assert leader.failed is not None
    under_way = [asyncio.create_task(leader.put("lost", str(number))) for number in range(5)]
    watch = leader.watch("k")
    reader = asyncio.create_task(take(watch, 1))
    for write in under_way:
        assert "input/output" in str(await refused(write, errors.NodeFailed))
    await refused(reader, errors.Closed)
    await refused(asyncio.shield(leader.failed), errors.StorageFailed)
    assert isinstance((await events)[-1], NodeStopped)
    await refused(leader.put("k", "v"), errors.Closed)
    with pytest.raises(errors.StorageFailed):
        await leader.__aexit__(None, None, None)
    others = [node for node in nodes if node is not leader]
    kept = await others[0].get("k", timeout=20)
    assert kept is not None
    assert kept.text == "acknowledged"
    await others[1].put("k", "on", timeout=20)
    await asyncio.gather(*[node.kill() for node in others])


async def collect(node: Node) -> list[object]:
    """Return every event until the node stops."""
    return [event async for event in node.events()]


@asynchronous
async def test_a_disk_that_fails_during_the_first_start() -> None:
    """`start` raises what the disk said; nothing is left running."""
    storage = FailingStorage()
    storage.is_failing = True
    node = lone_node(storage)
    await refused(node.start(), errors.StorageFailed)
    await node.close()
    assert isinstance((await collect(node))[-1], NodeStopped)


@asynchronous
async def test_a_log_that_cannot_be_read_for_a_follower_stops_the_node() -> None:
    """A disk error is never swallowed, whoever asked."""
    network = MemoryNetwork()
    storages: dict[str, MemoryStorage] = {name: FailingStorage() for name in ("a", "b", "c")}
    nodes = trio(network, storages)
    await asyncio.gather(*[node.start() for node in nodes])
    await nodes[0].put("k", "v", timeout=20)
    leader = await until(lambda: next((node for node in nodes if node.is_leader), None))
    disk = leader._storage
    assert isinstance(disk, FailingStorage)
    disk.reads_fail = True
    assert leader._member is not None
    driver: Driver = leader._member.driver
    driver._fetches.put_nowait(EntryFetch(1, 2, 100))
    assert leader.failed is not None
    await refused(asyncio.shield(leader.failed), errors.WalCorruption)
    await asyncio.gather(*[node.kill() for node in nodes])


@asynchronous
async def test_a_start_that_is_cancelled_or_closed_leaves_nothing_behind() -> None:
    """Waiting for the other members of a first start: cancelled it raises so, closed it raises `Closed`."""
    network = MemoryNetwork()
    for end in ("cancel", "close", "kill"):
        node = trio(network, {"a": MemoryStorage(), "b": MemoryStorage()})[0]
        starting = asyncio.create_task(node.start())
        await until(lambda node=node: node._life._bootstrap is not None)
        assert "starting" in repr(node)
        await refused(node.put("k", "v"), errors.Closed)
        if end == "cancel":
            starting.cancel()
            await refused(starting, asyncio.CancelledError)  # type: ignore[arg-type]
        else:
            await (node.close() if end == "close" else node.kill())
            await refused(starting, errors.Closed)
        assert node.term == 0


@asynchronous
async def test_a_first_start_may_be_left_at_any_await() -> None:
    """While its first entry is saved, too: the save ends, and finds nobody who waits for it."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    has_started, passes = False, 0
    while not has_started:
        node = Node("a", members={"a": "a"}, storage=MemoryStorage(), transport=MemoryNetwork().transport("a"))
        starting = asyncio.create_task(node.start())
        for _ in range(passes):
            await asyncio.sleep(0)
        has_started = starting.done()
        passes += 1
        starting.cancel()
        await asyncio.wait([starting])
        await node.close()
    assert told == []


@asynchronous
async def test_a_close_that_is_cancelled_still_stops_the_node() -> None:
    """Whoever cancels a close wants it sooner, not never."""
    async with cluster_of(3) as cluster:
        node = cluster.leader
        await node.put("k", "v")
        del cluster.nodes[node.name]
        for other in list(cluster):
            await cluster.kill(other)
        closing = asyncio.create_task(node.close())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        closing.cancel()
        await refused(closing, asyncio.CancelledError)  # type: ignore[arg-type]
        assert node.failed is not None
        await node.failed
        assert not node.is_leader


@asynchronous
async def test_a_stop_while_a_session_is_opened_fails_the_write() -> None:
    """It was not written: `Closed`, and nobody waits for ever."""
    for passes in range(10):
        node = lone_node()
        await node.start()
        write = asyncio.create_task(node.put("a", "1"))
        for _ in range(passes):
            await asyncio.sleep(0)
        await node.kill()
        results = await asyncio.wait_for(asyncio.gather(write, return_exceptions=True), 10)
        assert isinstance(results[0], errors.Closed | errors.NodeFailed | pyraftkv.PutResult), results


@asynchronous
async def test_a_leader_that_says_it_has_started_again_is_none() -> None:
    """Whoever has its address by now: with that boot count it leads nobody; here it does, and is heard again."""
    async with cluster_of(3) as cluster:
        leader, follower = cluster.leader, cluster.followers[0]
        assert leader._life.connections is not None
        assert follower._member is not None
        own, raft = leader._life.connections.own, follower._member.raft
        follower._life.peer_hello(own)
        await follower.put("k", "v")
        assert raft.leader == own.member_id
        follower._life.peer_hello(replace(own, boot_count=own.boot_count + 1))
        await until(lambda: raft.leader == NO_NODE)
        await follower.put("k", "v")


@asynchronous
async def test_every_life_draws_a_number_and_leaves_its_seed_alone() -> None:
    """A copy that is put back may have the boot count of a life that was seen, but not its number."""
    numbers = set()
    for rng in (random.Random(1), random.Random(2), random.SystemRandom(), random.SystemRandom()):
        node = Node("a", members={"a": "a"}, storage=MemoryStorage(), transport=MemoryNetwork().transport("a"), rng=rng)
        async with node:
            assert node._life.connections is not None
            numbers.add(node._life.connections.own.life)
    assert len(numbers) == 4
    assert min(numbers) > 0


@asynchronous
async def test_a_node_does_not_stop_for_a_refusal_that_cannot_be_true() -> None:
    """It has all that somebody says it has forgotten; or it is refused for something else."""
    async with cluster_of(3) as cluster:
        node = cluster.followers[0]
        assert node._life.connections is not None
        own = node._life.connections.own
        less, more = (own.boot_count - 1, *own.start), (own.boot_count - 1, own.start_term, own.start_index + 1)
        node._life.peer_refused(9, errors.HandshakeRejected(reason="rolled-back", known=less, is_theirs=True))
        node._life.peer_refused(9, errors.HandshakeRejected(reason="wrong-incarnation", known=more, is_theirs=True))
        await node.put("k", "v")
        node._life.peer_refused(9, errors.HandshakeRejected("gone", reason="rolled-back", known=more, is_theirs=True))
        assert node.failed is not None
        assert "is refused by member 9: gone" in str(await refused(node.failed, errors.DataDirRolledBack))
        await cluster.kill(node)
        error = await refused(cluster.restart(node.name), errors.DataDirRolledBack)
        assert "had less than was acknowledged" in str(error)


@asynchronous
async def test_a_bug_in_a_loop_stops_the_node_loudly(caplog: pytest.LogCaptureFixture) -> None:
    """A member that goes on half would be worse than one that stops."""
    node = lone_node()
    await node.start()
    assert node._member is not None
    node._member.inbox.put(object())  # type: ignore[arg-type]
    assert node.failed is not None
    await refused(asyncio.shield(node.failed), KeyError)
    assert "n1 stops" in caplog.text
    await node.close()


@asynchronous
async def test_the_end_of_a_node_is_told_once() -> None:
    """`failed` is None for one that was closed; events end with `NodeStopped`, also for who comes later."""
    node = lone_node()
    async with node:
        events = asyncio.create_task(collect(node))
        await node.put("k", "v")
    assert node.failed is not None
    assert await node.failed is None
    assert [type(event) for event in (await events)[-1:]] == [NodeStopped]
    assert await collect(node) == [NodeStopped(None)]
    await node.close()
    await node.kill()


@asynchronous
async def test_a_node_that_is_killed_loses_what_was_not_saved() -> None:
    """A save that is under way when the power goes does not happen; the next start knows what came before."""

    class Watched(MemoryStorage):
        """Tells of a save before it is queued: who hears of it comes before its completion."""

        def __init__(self) -> None:
            super().__init__()
            self.saving = asyncio.Event()

        def save(self, save: Save, then: Callable[[int], None]) -> None:
            self.saving.set()
            super().save(save, then)

    storage = Watched()
    node = lone_node(storage)
    await node.start()
    await node.put("k", "v")
    storage.saving.clear()
    lost = asyncio.create_task(node.put("k", "lost"))
    await storage.saving.wait()
    await node.kill()
    await refused(lost, errors.MaybeApplied)
    async with lone_node(storage) as node:
        kept = await node.get("k")
        assert kept is not None
        assert kept.text == "v"


@asynchronous
async def test_a_node_lives_once(tmp_path: Path) -> None:
    """To start it again, inside or after its life, is refused, and harms neither its life nor its directory."""
    node = pyraftkv.open(tmp_path / "d")
    async with node:
        await node.put("k", "v")
        await refused(node.start(), errors.Closed)
        assert (await node.get("k")) is not None
    await refused(node.start(), errors.Closed)
    async with pyraftkv.open(tmp_path / "d") as again:
        assert (await again.get("k")) is not None


@asynchronous
async def test_members_that_the_cluster_does_not_have_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says who the members are; whoever lists others is told."""
    async with pyraftkv.open(tmp_path / "d", name="a"):
        pass
    members = {"a": "127.0.0.1:1", "b": "127.0.0.1:2"}
    async with pyraftkv.open(tmp_path / "d", name="a", listen="127.0.0.1:0", members=members) as node:
        assert (await node.status()).peers[0].name == "a"
    assert "['b'] too, in vain" in caplog.text


@asynchronous
async def test_who_joined_later_is_not_told_that_it_lists_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Started again without ``join=`` it knows of the first members alone; that is no reason to warn anybody."""
    async with pyraftkv.open(tmp_path / "a", name="a", listen="127.0.0.1:0", config=FAST) as first:
        options: dict[str, Any] = {"name": "b", "listen": "127.0.0.1:0", "config": FAST}
        async with pyraftkv.open(tmp_path / "b", join=first.address, learner=True, **options) as node:
            await node.members.list()
        async with pyraftkv.open(tmp_path / "b", **options):
            assert "in vain" not in caplog.text
