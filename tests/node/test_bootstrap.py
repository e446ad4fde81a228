"""The first start of a cluster, and who is let in afterwards."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from pyraftkv import Cluster, Node, codec, errors
from pyraftkv.log import MemoryStorage
from pyraftkv.node import bootstrap, offers
from pyraftkv.node.bootstrap import Bootstrap, first_ids, genesis_of
from pyraftkv.protocol import Genesis, GenesisOffer, Hello, MemberInfo, RegisterSession
from pyraftkv.transport import MemoryNetwork
from tests.node.support import asynchronous, fast, refused, until

NAMES = ("a", "b", "c")
MEMBERS = {name: name for name in NAMES}


def make(network: MemoryNetwork, name: str, storage: MemoryStorage, members: dict[str, str] | None = None) -> Node:
    """Return a member, not started."""
    return Node(
        name,
        members=MEMBERS if members is None else members,
        storage=storage,
        transport=network.transport(name),
        config=fast(),
        rng=random.Random(name),
    )


def reasons(node: Node) -> dict[int, str]:
    """Return why which members were refused, as the node knows it."""
    transport: Any = node._transport
    return {member: rejection.reason for member, rejection in transport.rejections.items()}


def hello(number: int, *, cluster_id: int = 0, name: str = "", incarnation: int = 0) -> Hello:
    """Return a member's HELLO."""
    return Hello(cluster_id, number, name or "abc"[number - 1], incarnation or number * 11, 1, f"h:{number}")


@asynchronous
async def test_a_first_start_waits_for_all_and_says_for_whom(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three do not begin without the third, though they are a majority."""
    monkeypatch.setattr(bootstrap, "WAIT_LOG_SECONDS", 0.02)
    network = MemoryNetwork()
    nodes = {name: make(network, name, MemoryStorage()) for name in NAMES}
    starts = [asyncio.create_task(nodes[name].start()) for name in "ab"]
    await until(lambda: "a: first start waits for c" in caplog.text and "b: first start waits for c" in caplog.text)
    assert not any(start.done() for start in starts)
    await asyncio.gather(nodes["c"].start(), *starts)
    await nodes["a"].put("k", "v", timeout=20)
    statuses = [await node.status() for node in nodes.values()]
    assert len({status.cluster_id for status in statuses}) == 1
    assert [status.member_id for status in statuses] == [1, 2, 3]
    await asyncio.gather(*[node.kill() for node in nodes.values()])


@asynchronous
async def test_a_late_member_takes_entry_1_from_those_who_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """1. Everybody said HELLO to everybody. Two go on; the third dies before it saved entry 1.

    2. It comes back with its directory: the others run, and will not say HELLO as newcomers again.
    3. They show it entry 1, in which it finds itself, as often as it takes.
    """
    monkeypatch.setattr(offers, "OFFERS_MAX", 5)
    network = MemoryNetwork()
    storages = {name: MemoryStorage(random=random.Random(name)) for name in NAMES}
    nodes = {name: make(network, name, storages[name]) for name in NAMES}

    class Dying(MemoryStorage):
        """Saves nothing."""

        def save(self, save: object, then: object) -> None:
            return

    dying = Dying(random=random.Random("c"))
    nodes["c"] = make(network, "c", dying)
    starting = asyncio.create_task(nodes["c"].start())
    await asyncio.gather(nodes["a"].start(), nodes["b"].start())
    await nodes["c"].kill()
    await refused(starting, errors.Closed)
    await nodes["a"].put("k", "v", timeout=20)
    nodes["c"] = make(network, "c", storages["c"])
    await nodes["c"].start()
    kept = await nodes["c"].get("k", timeout=20)
    assert kept is not None
    await until(
        lambda: not nodes["a"]._life._offers._newcomers and not nodes["b"]._life._offers._newcomers
    )  # nobody is offered it for ever
    await asyncio.gather(*[node.kill() for node in nodes.values()])


@asynchronous
async def test_a_wiped_directory_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have forgotten what it acknowledged: the others refuse it, and it does not begin a cluster either."""
    async with Cluster.in_memory(3, config=fast(), seed=4) as cluster:
        victim = cluster.followers[0]
        name = victim.name
        await cluster.leader.put("k", "v")
        await cluster.kill(victim)
        wiped = make(cluster.network, name, MemoryStorage(), dict(cluster._members))
        starting = asyncio.create_task(wiped.start())
        own = int(name[1:])
        for node in cluster:
            await until(lambda node=node: reasons(node).get(own) == "wrong-incarnation")
        assert not starting.done()
        await cluster.leader.put("k", "w")
        await wiped.kill()
        await refused(starting, errors.Closed)
        node = await cluster.restart(name)
        await node.put("k", "x", timeout=20)


@asynchronous
async def test_a_member_of_another_cluster_is_refused() -> None:
    """Two clusters on one network: whoever moves to the other's address is refused as "wrong-cluster"."""
    network = MemoryNetwork()
    ours = {name: make(network, name, MemoryStorage()) for name in NAMES}
    other = MemoryNetwork()
    foreign_storage = MemoryStorage()
    theirs = {name: make(other, name, foreign_storage if name == "c" else MemoryStorage()) for name in NAMES}
    await asyncio.gather(*[node.start() for node in (*ours.values(), *theirs.values())])
    await ours["a"].put("k", "ours", timeout=20)
    await asyncio.gather(*[node.kill() for node in (*theirs.values(), ours["c"])])
    stranger = make(network, "c", foreign_storage)
    await stranger.start()
    for node in (ours["a"], ours["b"]):
        await until(lambda node=node: reasons(node).get(3) == "wrong-cluster")
    await refused(stranger.put("k", "theirs", timeout=0.2), errors.NoLeader)
    await ours["b"].put("k", "still ours", timeout=20)
    await asyncio.gather(*[node.kill() for node in (*ours.values(), stranger)])


@asynchronous
async def test_members_are_ignored_after_the_first_start() -> None:
    """The log says who the members are, whatever `members=` says by then; the node's own name must be one of them."""
    network = MemoryNetwork()
    storages = {name: MemoryStorage() for name in NAMES}
    nodes = {name: make(network, name, storages[name]) for name in NAMES}
    await asyncio.gather(*[node.start() for node in nodes.values()])
    await nodes["a"].put("k", "v", timeout=20)
    for members in ({}, {"a": "a", "z": "nowhere"}, {"zz": "q", **MEMBERS}):
        await asyncio.gather(*[node.kill() for node in nodes.values()])
        nodes = {name: make(network, name, storages[name], members) for name in NAMES}
        await asyncio.gather(*[node.start() for node in nodes.values()])
        kept = await nodes["b"].get("k", timeout=20)
        assert kept is not None
        assert [peer.name for peer in (await nodes["c"].status()).peers] == list(NAMES)
    await nodes["a"].kill()
    for name, error in (("x", errors.ForeignDataDir), ("b", errors.ForeignDataDir)):
        impostor = Node(
            name, members=MEMBERS, storage=storages["a"], transport=network.transport("elsewhere"), config=fast()
        )
        await refused(impostor.start(), error)
    await asyncio.gather(nodes["b"].kill(), nodes["c"].kill())


def test_equal_facts_give_equal_bytes() -> None:
    """Whoever hears the HELLOs in whatever order writes the same entry 1; another incarnation is another cluster."""
    one = genesis_of({1: hello(1), 2: hello(2)})
    two = genesis_of({2: hello(2), 1: hello(1)})
    assert codec.encode_logged(one) == codec.encode_logged(two)
    assert genesis_of({1: hello(1), 2: hello(2, incarnation=5)}).cluster_id != one.cluster_id
    assert first_ids({"b": "", "a": ""}) == {"a": 1, "b": 2}


@asynchronous
async def test_only_listed_members_count() -> None:
    """A stranger, a wrong rank, a member of a running cluster: none completes the first start."""
    start = Bootstrap(hello(1), {"a": "", "b": ""})
    for stranger in (hello(3), hello(2, name="z"), hello(1, name="b")):
        with pytest.raises(errors.HandshakeRejected) as caught:
            start.heard(stranger)
        assert caught.value.reason == "unknown-member"
    start.heard(hello(2, cluster_id=9))
    assert start.missing == ["b"]
    waiting = asyncio.create_task(start.genesis("h:1"))
    start.heard(hello(2))
    genesis = codec.decode_logged(await waiting)
    assert isinstance(genesis, Genesis)
    assert [member.name for member in genesis.members] == ["a", "b"]


@asynchronous
async def test_nothing_is_founded_before_everybody_was_heard() -> None:
    """A majority is not enough: the one that is missing would found another cluster."""
    start = Bootstrap(hello(1), {"a": "", "b": "", "c": ""})
    waiting = asyncio.create_task(start.genesis("h:1"))
    start.heard(hello(2))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    start.heard(hello(3))
    genesis = codec.decode_logged(await waiting)
    assert isinstance(genesis, Genesis)
    assert [member.incarnation for member in genesis.members] == [11, 22, 33]


@asynchronous
async def test_an_offer_counts_only_if_we_are_in_it() -> None:
    """Garbage, something else, or a genesis with another incarnation of ours is not ours."""
    start = Bootstrap(hello(1), {"a": "", "b": ""})
    waiting = asyncio.create_task(start.genesis("h:1"))
    other = Genesis(9, [MemberInfo(1, "a", "h:1", 99), MemberInfo(2, "b", "h:2", 22)])
    for payload in (b"\xfe", codec.encode_logged(RegisterSession(1)), codec.encode_logged(other)):
        start.offered(GenesisOffer(1, 2, payload))
    await asyncio.sleep(0)
    assert not waiting.done()
    ours = codec.encode_logged(Genesis(9, [MemberInfo(1, "a", "h:1", 11), MemberInfo(2, "b", "h:2", 22)]))
    start.offered(GenesisOffer(1, 2, ours))
    start.offered(GenesisOffer(1, 2, ours))
    assert await waiting == ours
