"""Queues, and what members keep beside the store, under every fault."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from itertools import count
from typing import NamedTuple

from pyraftkv import KV, NotApplied
from pyraftkv.client import Client
from pyraftkv.recipes import LockingQueue, PriorityQueue, Queue
from pyraftkv.replicated import ReplicatedCounter, ReplicatedDict, ReplicatedList, ReplicatedQueue, ReplicatedSet
from pyraftkv.sim import Trial
from tests.recipes.faults.support import (
    DEAD_SECONDS_MAX,
    SETTLED_SECONDS,
    TTL,
    Length,
    faults_pass,
    programs,
    revision_of,
    trial,
)

PRIORITIES = (500, 5, 50)
PUSH_SECONDS = 3.0
"""How long items are pushed once the faults are over."""


LATER = 1 << 62
"""A revision that nothing comes after."""


class Item(NamedTuple):
    """What is put into a queue."""

    value: bytes
    priority: int


class Taking(NamedTuple):
    """One item, and between which revisions it was taken."""

    item: Item
    begun_at: int
    done_at: int


class Shelf:
    """What was put into a queue, and what came out of it."""

    def __init__(self) -> None:
        self.begun: dict[bytes, Item] = {}
        self.pushed: dict[bytes, int] = {}
        """By the revision of each push that was acknowledged."""
        self.taken: list[Taking] = []
        self.takes_under_way = 0
        self.is_closed = False
        """Nothing more is pushed."""

    def check_once(self) -> None:
        """What was taken was pushed, and taken once; what is missing is somebody's who was about to take it."""
        taken = [each.item.value for each in self.taken]
        assert set(taken) <= self.begun.keys()
        assert len(taken) == len(set(taken)), "an item was taken twice"
        missing = len(self.pushed.keys() - set(taken))
        assert missing <= self.takes_under_way, f"{missing} items are lost that nobody was about to take"
        assert len(self.taken) > 3, "hardly anything was taken"

    def check_order(self) -> None:
        """Nobody took an item while one that comes before it was there all the time."""
        for each in self.taken:
            for other in self.taken:
                pushed_at = self.pushed.get(other.item.value, each.begun_at + 1)
                was_there = pushed_at <= each.begun_at and other.begun_at >= each.done_at
                comes_before = other.item.priority < each.item.priority or (
                    other.item.priority == each.item.priority
                    and pushed_at < self.pushed.get(each.item.value, pushed_at)
                )
                assert not (was_there and comes_before), f"{each} while there was {other}"


def queueing(sim: Trial, *, make: Callable[[KV], Queue | PriorityQueue]) -> None:
    """One machine pushes, others take; what was pushed comes to something, in its order."""
    shelf = Shelf()

    async def push(name: str, kv: KV) -> None:
        queue = make(kv)
        for number in count():
            if shelf.is_closed:
                await asyncio.sleep(1000)
            priority = PRIORITIES[number % 3] if isinstance(queue, PriorityQueue) else 0
            item = Item(f"{name} {sim.now():.6f} {number}".encode(), priority)
            shelf.begun[item.value] = item
            if isinstance(queue, PriorityQueue):
                shelf.pushed[item.value] = await queue.push(item.value, priority=priority)
            else:
                shelf.pushed[item.value] = await queue.push(item.value)
            await asyncio.sleep(0.2)

    async def take(kv: KV) -> None:
        queue = make(kv)
        while True:
            begun_at = await revision_of(kv)
            shelf.takes_under_way += 1
            value = await queue.take()
            shelf.takes_under_way -= 1
            shelf.taken.append(Taking(shelf.begun[value], begun_at, LATER))
            done_at = await revision_of(kv)
            shelf.taken[shelf.taken.index(Taking(shelf.begun[value], begun_at, LATER))] = Taking(
                shelf.begun[value], begun_at, done_at
            )
            await asyncio.sleep(0.1 if shelf.is_closed else 0.5)

    async def run(name: str, kv: KV) -> None:
        await (push(name, kv) if name.startswith("worker0") else take(kv))

    async def main(sim: Trial) -> None:
        await faults_pass(sim, seconds=PUSH_SECONDS)
        shelf.is_closed = True
        await asyncio.sleep(SETTLED_SECONDS + 2.0)

    programs(sim, 3, run)
    sim.run(main)
    shelf.check_once()
    shelf.check_order()


def test_an_item_of_a_queue_is_taken_once_and_in_its_order(length: Length) -> None:
    """It is lost only with whoever took it."""
    trial(length, partial(queueing, make=lambda kv: Queue(kv, "q", ttl=TTL)))


def test_an_item_of_a_priority_queue_is_taken_once_and_in_its_order(length: Length) -> None:
    """The least number first: nobody takes another one while that is there."""
    trial(length, partial(queueing, make=lambda kv: PriorityQueue(kv, "q", ttl=TTL)))


def working_off(sim: Trial) -> None:
    """One machine pushes; two do what they take, and may die while they are at it."""
    begun: set[bytes] = set()
    pushed: set[bytes] = set()
    done: set[bytes] = set()
    takers: dict[bytes, list[int]] = {}
    is_closed = False

    async def push(name: str, kv: KV) -> None:
        queue = LockingQueue(kv, "q", ttl=TTL)
        for number in count():
            if is_closed:
                await asyncio.sleep(1000)
            item = f"{name} {sim.now():.6f} {number}".encode()
            begun.add(item)
            await queue.push(item)
            pushed.add(item)
            await asyncio.sleep(0.4)

    async def work(kv: KV) -> None:
        async with LockingQueue(kv, "q", ttl=TTL).take() as item:
            takers.setdefault(item.value, []).append(item.token)
            await asyncio.sleep(0.1)
            done.add(item.value)

    async def run(name: str, kv: KV) -> None:
        await (push(name, kv) if name.startswith("worker0") else work(kv))

    async def main(sim: Trial) -> None:
        nonlocal is_closed
        await faults_pass(sim, seconds=PUSH_SECONDS)
        is_closed = True
        await asyncio.sleep(TTL + DEAD_SECONDS_MAX + SETTLED_SECONDS)

    programs(sim, 3, run)
    sim.run(main)
    assert len(pushed) > 3
    assert done <= begun
    assert pushed <= done, "an item was lost"
    for tokens in takers.values():
        assert len(tokens) == len(set(tokens)), "two had an item with the same token"


def test_an_item_of_a_locking_queue_is_never_lost(length: Length) -> None:
    """Whoever dies with it: it is done at least once."""
    trial(length.halved, working_off)


# --- Collections beside the store ----------------------------------------------------------------------------------

COLLECTIONS = {
    "counter": ReplicatedCounter.machine,
    "dict": ReplicatedDict.machine,
    "list": ReplicatedList.machine,
    "queue": ReplicatedQueue.machine,
    "set": ReplicatedSet.machine,
}


class Ledger:
    """What was asked of a collection, and what became of it as far as the answers tell."""

    def __init__(self) -> None:
        self.done: set[str] = set()
        self.undone: set[str] = set()
        self.asked: set[str] = set()

    async def write(self, what: str, asked: Awaitable[object]) -> None:
        """Do it, and write down what is known of it. Raises what it raises."""
        self.asked.add(what)
        try:
            await asked
        except NotApplied:
            self.undone.add(what)
            raise
        self.done.add(what)

    def check(self, found: Collection[str]) -> None:
        """What was acknowledged is there, what was refused is not, and nothing is there twice."""
        assert len(found) == len(set(found)), "something was done twice"
        assert self.done <= set(found), f"lost: {self.done - set(found)}"
        assert not self.undone & set(found), f"done after all: {self.undone & set(found)}"
        assert set(found) <= self.asked
        assert len(self.done) > 3


def collecting(sim: Trial) -> None:
    """Three programs write to collections of every kind, and one takes out of a queue."""
    ledgers = {name: Ledger() for name in COLLECTIONS}
    taken: list[str] = []
    takes_under_way: list[int] = []

    async def write(name: str, kv: Client) -> None:
        for number in count():
            what = f"{name} {sim.now():.6f} {number}"
            await ledgers["counter"].write(what, ReplicatedCounter(kv, "counter").add())
            await ledgers["dict"].write(what, ReplicatedDict(kv, "dict").set(what, number))
            await ledgers["list"].write(what, ReplicatedList(kv, "list").append(what))
            await ledgers["set"].write(what, ReplicatedSet(kv, "set").add(what))
            await ledgers["queue"].write(what, ReplicatedQueue(kv, "queue").put(what))
            if number % 2:
                takes_under_way.append(number)
                item = await ReplicatedQueue(kv, "queue").get()
                takes_under_way.pop()
                taken.extend([] if item is None else [item])
            await asyncio.sleep(0.5)

    async def main(sim: Trial) -> None:
        await faults_pass(sim)
        for host in ("worker0", "worker1", "worker2"):
            sim.hosts[host].kill()
        await asyncio.sleep(1.0)
        async with sim.client() as kv:
            ledgers["dict"].check(list(await ReplicatedDict(kv, "dict").all()))
            ledgers["list"].check(await ReplicatedList(kv, "list").all())
            ledgers["set"].check(await ReplicatedSet(kv, "set").all())
            queue = ReplicatedQueue(kv, "queue")
            rest = [await queue.get() for _ in range(await queue.size())]
            gone = sorted(ledgers["queue"].done - {*taken, *rest})
            assert len(gone) <= len(takes_under_way), "an item is lost that nobody was about to take"
            ledgers["queue"].check([*taken, *rest, *gone])
            counter = ledgers["counter"]
            added = await ReplicatedCounter(kv, "counter").get()
            assert len(counter.done) <= added <= len(counter.asked) - len(counter.undone)

    programs(sim, 3, write)
    sim.run(main)


def test_collections_of_all_members_have_once_what_was_acknowledged(length: Length) -> None:
    """And not at all what was refused."""
    trial(length.halved, collecting, machines=COLLECTIONS)
