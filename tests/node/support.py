"""What the tests of nodes, clients and clusters share.

`asynchronous` runs a test on a loop of its own and holds it to what every test must leave behind: no task that still
runs, and nothing that the loop had to complain about (an exception that nobody retrieved, a callback that failed).
"""

from __future__ import annotations

import asyncio
import functools
import gc
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from pyraftkv import Cluster, Node, NodeConfig, codec
from pyraftkv.kv import Watch
from pyraftkv.log import MemoryStorage
from pyraftkv.protocol import Envelope, StampedChange
from pyraftkv.store.values import Event
from pyraftkv.transport import MemoryNetwork

FAST = NodeConfig(
    tick_seconds=0.01,
    heartbeat_seconds=0.03,
    election_timeout_seconds=0.15,
    retry_seconds=0.2,
    snapshot_stall_seconds=0.3,
    close_seconds=1.0,
)
"""Timing for tests: ten times as fast as a local network needs."""

SECONDS_MAX = 30.0
"""How long one test may take before it is a failure; on a busy machine they wait for one another."""

POLL_SECONDS = 0.005


def fast(**changes: Any) -> NodeConfig:
    """Return the timing for tests with some values changed."""
    return replace(FAST, **changes)


def lone_node(storage: MemoryStorage | None = None, **changes: Any) -> Node:
    """Return a cluster of one."""
    return Node(
        "n1",
        members={"n1": "n1"},
        storage=storage or MemoryStorage(),
        transport=MemoryNetwork().transport("n1"),
        config=fast(**changes),
        rng=random.Random(1),
    )


def leave_out_what_stays() -> None:
    """Keep the collector from what was imported, and from every test that pytest knows: it is asked after each test.

    To look through all of that takes longer than most tests. A simulation gives back what was left out.
    """
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a test of a coroutine function, and check what it leaves behind."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        leave_out_what_stays()
        complaints: list[dict[str, Any]] = []

        async def main() -> set[asyncio.Task[Any]]:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            async with asyncio.timeout(SECONDS_MAX):
                await test(*args, **kwargs)
            gc.collect()
            for _ in range(10):  # an asynchronous generator that was left in the middle is closed by the loop
                await asyncio.sleep(0)
            return asyncio.all_tasks() - {asyncio.current_task()}

        left = asyncio.run(main())
        gc.collect()
        assert not left, left
        assert not complaints, complaints

    return run


@asynccontextmanager
async def cluster_of(size: int = 3, *, seed: int = 1, **changes: Any) -> AsyncIterator[Cluster]:
    """Run a cluster in memory with a leader, at the pace of tests."""
    async with Cluster.in_memory(size, config=fast(**changes), seed=seed) as cluster:
        yield cluster


async def until(condition: Callable[[], Any], *, seconds: float = 15.0) -> Any:
    """Wait until the condition holds, and return what it returned."""
    async with asyncio.timeout(seconds):
        while True:
            if result := condition():
                return result
            await asyncio.sleep(POLL_SECONDS)


async def refused(awaitable: Awaitable[Any], error: type[Exception]) -> Any:
    """Await something that must raise ``error``; return the exception."""
    try:
        result = await awaitable
    except error as raised:
        return raised
    raise AssertionError(f"{error.__name__} was not raised, the result is {result!r}")


async def take(watch: Watch, count: int) -> list[Event]:
    """Return the next ``count`` events of a watch."""
    events: list[Event] = []
    async for event in watch:
        events.append(event)
        if len(events) == count:
            break
    return events


def stamped(after: int, change: Envelope) -> bytes:
    """Return an encoded change of the members as a leader logs it, with the index of the change before it."""
    return codec.encode_logged(StampedChange(after, codec.encode_logged(change)))


def pairs(events: list[Event]) -> list[tuple[bytes, bytes, int]]:
    """Return key, value and revision of events."""
    return [(event.kv.key, event.kv.value, event.kv.mod_revision) for event in events]


async def caught_up(*nodes: Node) -> None:
    """Wait until every one of the nodes has applied what the one farthest ahead has committed."""
    index = max([(await node.status()).commit_index for node in nodes])
    for node in nodes:
        member = node._member
        assert member is not None
        async with asyncio.timeout(15):
            await member.applier.applied_to(index)


def other_than(cluster: Cluster, *nodes: Node) -> Node:
    """Return a running node that is none of ``nodes``."""
    return next(node for node in cluster if node not in nodes)
