"""Replicated collections: what they answer is what Python's own would, on every member."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from pyraftkv import Cluster, errors
from pyraftkv.machines import ROW_BYTES, encode_call
from pyraftkv.replicated import (
    ReplicatedCounter,
    ReplicatedDict,
    ReplicatedList,
    ReplicatedQueue,
    ReplicatedSet,
)
from pyraftkv.sim import SimLoop
from pyraftkv.statemachine import Operation
from tests.node.support import refused

KINDS = {
    "counter": ReplicatedCounter,
    "dict": ReplicatedDict,
    "list": ReplicatedList,
    "set": ReplicatedSet,
    "queue": ReplicatedQueue,
}


def virtually(scenario: Callable[[Cluster], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario with three nodes that have one of each, in virtual time."""

    async def main() -> None:
        machines = {name: kind.machine for name, kind in KINDS.items()}
        async with Cluster.in_memory(3, seed=1, machines=machines) as cluster:
            await scenario(cluster)

    loop = SimLoop(random.Random(1))
    try:
        loop.run(main(), until=1e5)
    finally:
        loop.close()


def test_a_counter() -> None:
    """It is set, added to and read, and has 64 bits."""

    async def scenario(cluster: Cluster) -> None:
        counter = ReplicatedCounter(cluster.client(), "counter")
        assert (await counter.get(), await counter.add(), await counter.add(-3)) == (0, 1, -2)
        await counter.set((1 << 63) - 1)
        await refused(counter.add(), errors.OperationRefused)
        await refused(counter.add("1"), errors.OperationRefused)  # type: ignore[arg-type]
        assert await ReplicatedCounter(cluster.leader, "counter").get() == (1 << 63) - 1

    virtually(scenario)


def test_a_dict() -> None:
    """Its keys are scalars of any kind, its values anything plain."""

    async def scenario(cluster: Cluster) -> None:
        table = ReplicatedDict(cluster.client(), "dict")
        await table.set("a", {"nested": [1, b"two", None, 3.5]})
        await table.update({1: "one", b"b": True})
        assert await table.get("a") == {"nested": [1, b"two", None, 3.5]}
        assert await table.setdefault("a", 0) == {"nested": [1, b"two", None, 3.5]}
        assert (await table.setdefault("c", 5), await table.get("none", 7)) == (5, 7)
        assert (await table.contains("c"), await table.contains("d"), await table.size()) == (True, False, 4)
        assert (await table.pop("c"), await table.pop("c", "gone")) == (5, "gone")
        assert await table.all() == {"a": {"nested": [1, b"two", None, 3.5]}, 1: "one", b"b": True}
        await refused(table.set(["no", "key"], 1), errors.OperationRefused)  # type: ignore[arg-type]
        await table.clear()
        assert await table.all() == {}

    virtually(scenario)


def test_a_list() -> None:
    """Positions count from both ends, and one that is not there is refused."""

    async def scenario(cluster: Cluster) -> None:
        values = ReplicatedList(cluster.client(), "list")
        await values.extend([3, 1])
        await values.append(2)
        await values.insert(0, 3)
        assert (await values.get(-1), await values.index(1), await values.count(3), await values.size()) == (2, 2, 2, 4)
        await values.remove(3)
        await values.sort(reverse=True)
        assert await values.all() == [3, 2, 1]
        await values.set(0, "x")
        assert (await values.pop(0), await values.pop(), await values.all()) == ("x", 1, [2])
        assert (await refused(values.pop(5), errors.OperationRefused)).error == "IndexError"
        await values.append("y")
        await refused(values.sort(), errors.OperationRefused)
        assert await values.all() == [2, "y"]
        await values.clear()
        assert await values.size() == 0

    virtually(scenario)


def test_a_set() -> None:
    """The oldest element is popped, on every member the same."""

    async def scenario(cluster: Cluster) -> None:
        elements = ReplicatedSet(cluster.client(), "set")
        assert (await elements.add("z"), await elements.add("z")) == (True, False)
        await elements.update(["y", "x", "z"])
        assert (await elements.contains("y"), await elements.size()) == (True, 3)
        assert (await elements.pop(), await elements.discard("y"), await elements.discard("y")) == ("z", True, False)
        for node in cluster:
            assert await ReplicatedSet(node, "set").all() == ["x"]
        await elements.remove("x")
        assert (await refused(elements.remove("x"), errors.OperationRefused)).error == "KeyError"
        assert (await refused(elements.pop(), errors.OperationRefused)).error == "KeyError"
        await elements.clear()

    virtually(scenario)


def test_a_queue() -> None:
    """First in, first out; over its bound nothing is taken."""

    async def scenario(cluster: Cluster) -> None:
        queue = ReplicatedQueue(cluster.client(), "queue")
        assert [await queue.put(number, size_max=2) for number in range(3)] == [True, True, False]
        assert [await queue.get(), await queue.get("none"), await queue.get("none")] == [0, 1, "none"]
        await queue.put(1)
        await queue.clear()
        assert await queue.size() == 0

    virtually(scenario)


KEYS = [0, 1, True, 1.0, 2.5, None, "a", "text", b"a", b"bytes" * 9]
"""Some of them are one key."""

CALLS: dict[str, list[tuple[str, str]]] = {
    "dict": [("set", "kv"), ("setdefault", "kv"), ("update", "p"), ("pop", "k"), ("clear", "")],
    "list": [
        ("set", "iv"),
        ("append", "v"),
        ("extend", "l"),
        ("insert", "iv"),
        ("remove", "v"),
        ("pop", "i"),
        ("sort", ""),
        ("clear", ""),
    ],
    "set": [("add", "k"), ("update", "K"), ("discard", "k"), ("remove", "k"), ("pop", ""), ("clear", "")],
    "queue": [("put", "v"), ("get", ""), ("clear", "")],
}
"""Operations, and what they are given: a key, a value, a position, pairs, a list of values or of keys."""

GROWING = {"set", "setdefault", "update", "append", "extend", "insert", "add", "put"}


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("seed", range(3))
def test_a_collection_knows_its_size(kind: str, seed: int) -> None:
    """It is what its elements count, whatever was done; and what makes it no larger passes when there is no room."""
    rng = random.Random(seed)
    machine = KINDS[kind].machine()
    given: dict[str, Callable[[], Any]] = {
        "k": lambda: rng.choice(KEYS),
        "v": lambda: rng.choice([*KEYS, [1, "x"], {"a": "b" * rng.randrange(40)}]),
        "i": lambda: rng.randrange(-3, 5),
        "p": lambda: [[rng.choice(KEYS), rng.randrange(1000)] for _ in range(3)],
        "l": lambda: [rng.choice(KEYS) for _ in range(3)],
        "K": lambda: [rng.choice(KEYS) for _ in range(3)],
    }
    largest = 0
    for _ in range(400):
        name, arguments = rng.choices(CALLS[kind], [1 if name == "clear" else 20 for name, _ in CALLS[kind]])[0]
        before = machine.size_bytes
        with suppress(KeyError, IndexError, ValueError, TypeError):
            getattr(machine, name)(*[given[each]() for each in arguments])
        same = KINDS[kind].machine()
        same.load(machine.rows())
        assert machine.size_bytes == same.size_bytes
        assert machine.size_bytes is not None
        assert before is not None
        assert name in GROWING or machine.size_bytes <= before
        assert machine.takes_room(Operation(encode_call(name, ()), 1, 1, 1)) is (name in GROWING)
        assert machine.rows() != [] or machine.size_bytes == 0
        largest = max(largest, machine.size_bytes)
    assert largest > 3 * ROW_BYTES


@pytest.mark.parametrize("restart", [False, True], ids=["joined", "restarted"])
def test_collections_come_out_of_a_snapshot_as_they_went_in(restart: bool) -> None:
    """Every kind, with the order of what has one."""

    async def scenario(cluster: Cluster) -> None:
        client = cluster.client()
        await ReplicatedCounter(client, "counter").set(-5)
        await ReplicatedDict(client, "dict").update({key: [key] for key in "zyx"})
        await ReplicatedList(client, "list").extend(range(1000))
        await ReplicatedSet(client, "set").update(["b", 1, b"a", None])
        await ReplicatedQueue(client, "queue").put({"first": 1})
        for node in cluster:
            await node.take_snapshot()
        await cluster.kill("n3")
        node = await cluster.restart("n3") if restart else await cluster.add()
        assert await ReplicatedCounter(node, "counter").get() == -5
        assert list((await ReplicatedDict(node, "dict").all()).items()) == [("z", ["z"]), ("y", ["y"]), ("x", ["x"])]
        assert await ReplicatedList(node, "list").all() == list(range(1000))
        assert await ReplicatedSet(node, "set").all() == ["b", 1, b"a", None]
        assert await ReplicatedQueue(node, "queue").get() == {"first": 1}

    virtually(scenario)
