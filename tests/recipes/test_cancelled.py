"""Every recipe is cancelled at each of its awaits in turn: what it does it does once or not at all, and leaves nothing.

Operations that change something for good stand beside the other tests of their recipes, with what must have become of
that. Here are the others, and the test that nothing is left out.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import CodeType, FrameType
from typing import Any

import pytest

from pyraftkv import KV, Cluster, PutKey, recipes
from pyraftkv.recipes import (
    Barrier,
    ConfigCenter,
    Counter,
    Election,
    Leadership,
    LockingQueue,
    Party,
    PriorityQueue,
    Queue,
    RateLimiter,
    Registry,
    RWLock,
    Session,
    leader_only,
    singleton,
)
from tests.recipes.support import TTL, cancel_everywhere, nothing_is_left, virtually
from tests.recipes.test_config import Shop, follow_and_change
from tests.recipes.test_data import count_one, do_one, push_one, take_one
from tests.recipes.test_election import lead
from tests.recipes.test_lock import take, take_late, take_with_delay
from tests.recipes.test_presence import register, share, take_part
from tests.recipes.test_together import dance, permit, use

Operation = Callable[[KV], Coroutine[Any, Any, object]]


class Enough(Exception):
    """The work is to be done no more."""


async def read_and_write(kv: KV) -> None:
    """A writer waits for a reader, and looks whether it holds the lock then."""
    lock = RWLock(kv, "x", ttl=TTL)

    async def read() -> None:
        async with lock.read():
            await asyncio.sleep(0.1)

    reading = asyncio.ensure_future(read())
    try:
        await asyncio.sleep(0.05)
        async with lock.write() as writer:
            await writer.check()
            await writer.contenders()
    finally:
        reading.cancel()


async def read(kv: KV) -> None:
    """Hold a reader's place, and do something while it is held."""
    async with RWLock(kv, "x", ttl=TTL).read() as reader:
        await reader.commit(PutKey(b"read", b""))


async def pass_a_barrier(kv: KV) -> None:
    """Put it up, and wait until another one takes it away."""

    async def lift() -> None:
        await asyncio.sleep(0.1)
        await Barrier(kv, "x").lift()

    await Barrier(kv, "x").hold()
    lifting = asyncio.ensure_future(lift())
    await Barrier(kv, "x").wait()
    await lifting


async def work_alone(kv: KV) -> None:
    """Do work that is done once."""

    async def work(leadership: Leadership) -> None:
        await leadership.commit(PutKey(b"worked", b""))

    await singleton(kv, "x", work, ttl=TTL)


async def work_by_the_clock(kv: KV) -> None:
    """Do work twice, for which there is a time."""
    times: list[int] = []

    async def work(_: Leadership) -> None:
        times.append(1)
        if len(times) > 1:
            raise Enough

    with suppress(Enough):
        await leader_only(kv, "x", work, every=1, ttl=TTL)


async def hold_a_session(kv: KV) -> None:
    """Hang a key on it."""
    async with Session(kv, ttl=TTL) as session:
        await kv.put("x//hanging", b"", lease=session.lease.id)


async def queue_by_priority(kv: KV) -> None:
    """Put something in, and take it out."""
    queue = PriorityQueue(kv, "x", ttl=TTL)
    await queue.push("a", priority=5)
    await queue.take()


async def look_around(kv: KV) -> None:
    """Ask what can be asked without changing anything."""
    await Counter(kv, "x").value()
    await Queue(kv, "x").peek()
    await Queue(kv, "x").count()
    await LockingQueue(kv, "x").count()
    await LockingQueue(kv, "x").held()
    await RateLimiter(kv, "x", limit=1, seconds=3).count()
    await Election(kv, "x").leader()
    await Party(kv, "x").members()
    await Registry(kv, "x").resolve("x")


async def look_on(kv: KV) -> None:
    """Follow what can be followed."""
    async for _ in Election(kv, "x").observe():
        break
    async for _ in Party(kv, "x").watch():
        break
    async with await Registry(kv, "x").watch("x") as service:
        async for _ in service.changes():
            break


async def be_there(kv: KV) -> None:
    """Be found, look whether one is, and say something else."""
    async with Registry(kv, "x", ttl=TTL).register("x", "here") as instance:
        await instance.check()
        await instance.describe({"zone": "a"})
        await instance.recover()


async def give_back(kv: KV) -> None:
    """Take an item, look whether one has it, and give it back."""
    queue = LockingQueue(kv, "x", ttl=TTL)
    await queue.push("a")
    async with queue.take() as item:
        await item.check()
        await item.release()


async def roll_back(kv: KV) -> None:
    """Make a configuration what it was."""
    config = ConfigCenter(kv, "x", Shop)
    await config.rollback(await config.change(low=5, high=6))
    assert [change async for change in config.history()]


HERE: list[Operation] = [
    read_and_write,
    read,
    pass_a_barrier,
    work_alone,
    work_by_the_clock,
    hold_a_session,
    queue_by_priority,
    look_around,
    look_on,
    be_there,
    give_back,
    roll_back,
]
ELSEWHERE: list[Operation] = [
    take,
    take_late,
    take_with_delay,
    follow_and_change,
    count_one,
    push_one,
    take_one,
    do_one,
    lead,
    register,
    share,
    take_part,
    dance,
    permit,
    use,
]
"""Cancelled beside the other tests of their recipes."""


@pytest.mark.parametrize("operation", HERE)
def test_cancelled_anywhere_it_leaves_nothing_behind(operation: Operation) -> None:
    """And can be done again; what it wrote it wrote once."""

    async def check(kv: KV, ended: bool) -> None:
        await nothing_is_left(kv, "x")
        await nothing_is_left(kv, "x/x")
        for each in (await kv.range(prefix="")).kvs:
            assert each.version == 1 or each.key == b"x//changes"
        assert await Queue(kv, "x").count() <= 1
        async with asyncio.timeout(30):
            await operation(kv)

    assert cancel_everywhere(operation, check) > 1


def entered_by(operation: Operation) -> tuple[set[CodeType], set[str]]:
    """Return which coroutines of recipes an operation runs, and objects of which classes they are of."""
    codes: set[CodeType] = set()
    classes: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_globals.get("__name__", "").startswith("pyraftkv.recipes."):
            codes.add(frame.f_code)
            classes.update(each.__name__ for each in type(frame.f_locals.get("self")).__mro__)

    async def scenario(cluster: Cluster) -> None:
        if operation is take_one or operation is do_one:
            await push_one(cluster.leader)
        sys.setprofile(note)
        try:
            await operation(cluster.leader)
        finally:
            sys.setprofile(None)

    virtually(scenario)
    return codes, classes


def test_each_recipe_is_cancelled() -> None:
    """Whatever is public and can be awaited is part of an operation that is cancelled at each of its awaits."""
    codes: set[CodeType] = set()
    classes: set[str] = set()
    for operation in [*HERE, *ELSEWHERE]:
        more = entered_by(operation)
        codes |= more[0]
        classes |= more[1]
    missing: list[str] = []
    for name in recipes.__all__:
        recipe = getattr(recipes, name)
        methods = inspect.getmembers(recipe, inspect.isfunction) if inspect.isclass(recipe) else [(name, recipe)]
        awaited = [
            (method, function)
            for method, function in methods
            if (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function))
            and (not method.startswith("_") or method in ("__aenter__", "__aexit__"))
        ]
        if inspect.isclass(recipe) and awaited and name not in classes:
            missing.append(name)
        missing += [f"{name}.{method}" for method, function in awaited if function.__code__ not in codes]
    assert not missing, f"never cancelled: {missing}"
