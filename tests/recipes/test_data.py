"""Counters, queues, and queues whose items are never lost."""

from __future__ import annotations

import asyncio

import pytest

from pyraftkv import KV, Cluster, PutKey, errors
from pyraftkv.recipes import Counter, LockingQueue, PriorityQueue, Queue, Session
from pyraftkv.recipes.compares import is_absent
from pyraftkv.recipes.once import Once
from pyraftkv.recipes.queue import PRIORITY_MAX
from tests.recipes.support import TTL, cancel_everywhere, nothing_is_left, now, refused, virtually


class Lossy:
    """A store that does what it is asked, and loses the answers to the next transactions."""

    def __init__(self, kv: KV, *, losses: int, late: bool = False) -> None:
        self._kv = kv
        self._losses = losses
        self._late = late
        self.revokes = False
        """Whether the lease ends together with the next answer."""
        self.under_way: list[asyncio.Future[object]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._kv, name)

    def txn(self) -> LossyTxn:
        """Return a transaction whose answer may be lost."""
        return LossyTxn(self, self._kv.txn())

    async def commit(self, txn: object, timeout: float | None) -> object:
        """Commit it, now or later, and lose the answer if it is time to."""
        if self.revokes:
            self.revokes = False
            await txn.commit(timeout=timeout)  # type: ignore[attr-defined]
            await self._kv.leases.revoke((await self._kv.leases.list())[-1])
            raise errors.ConnectionLost("the answer is lost, and the lease has ended")
        if not self._losses:
            return await txn.commit(timeout=timeout)  # type: ignore[attr-defined]
        self._losses -= 1
        if self._late:
            self.under_way.append(asyncio.ensure_future(_later(txn)))
        else:
            await txn.commit(timeout=timeout)  # type: ignore[attr-defined]
        raise errors.ConnectionLost("the answer is lost")


async def _later(txn: object) -> object:
    await asyncio.sleep(1)
    return await txn.commit()  # type: ignore[attr-defined]


class LossyTxn:
    """A transaction of a `Lossy` store."""

    def __init__(self, store: Lossy, txn: object) -> None:
        self._store = store
        self._txn = txn

    def __getattr__(self, name: str) -> object:
        def add(*parts: object) -> LossyTxn:
            getattr(self._txn, name)(*parts)
            return self

        return add

    async def commit(self, *, timeout: float | None = None) -> object:
        """Commit it."""
        return await self._store.commit(self._txn, timeout)

    def __await__(self) -> object:
        return self.commit().__await__()


def lossy(kv: KV, *, losses: int = 1, late: bool = False) -> KV:
    """Return the store with answers that get lost."""
    return Lossy(kv, losses=losses, late=late)  # type: ignore[return-value]


# --- Once ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True])
def test_a_lost_answer_doubles_nothing(late: bool) -> None:
    """Whether the write was done when it is tried again, or arrives only after that."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        store = lossy(kv, losses=2, late=late)
        queue, counter = Queue(store, "q", ttl=TTL), Counter(kv, "n", ttl=TTL)
        await queue.push("one")
        assert [await queue.count(), await Queue(kv, "q", ttl=TTL).take()] == [1, b"one"]
        await asyncio.sleep(1.2)
        assert await queue.count() == 0
        counter = Counter(lossy(kv, losses=1, late=late), "n", ttl=TTL)
        assert await counter.add(5) == 5
        await asyncio.sleep(1.2)
        assert await counter.add(5) == 10
        await asyncio.sleep(2 * TTL)
        await nothing_is_left(kv, "q")

    virtually(scenario)


def test_who_takes_is_told_though_the_answer_is_lost() -> None:
    """The item is his, and nobody else's."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        await Queue(kv, "q").push("one")
        assert await Queue(lossy(kv), "q").take() == b"one"

    virtually(scenario)


def test_an_answer_that_never_comes_is_maybe() -> None:
    """And the next write begins with another mark."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        queue = Queue(lossy(kv, losses=5), "q", ttl=TTL)
        await refused(queue.push("one"), errors.MaybeApplied)
        await queue.push("two")
        assert await queue.count() == 2

    virtually(scenario)


def test_a_mark_is_renewed_before_it_ends() -> None:
    """A writer that pauses for longer than its mark lives writes as before."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        queue = Queue(kv, "q", ttl=TTL)
        for value in ("one", "two", "three"):
            await queue.push(value)
            await asyncio.sleep(TTL * 3)
        assert [await queue.take() for _ in range(3)] == [b"one", b"two", b"three"]

    virtually(scenario)


def test_a_mark_that_ended_early_is_replaced() -> None:
    """Whether it had been used or not: nothing was done under it, so nobody need be told."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        queue = Queue(kv, "q", ttl=TTL)
        for value in ("one", "two"):
            await queue.push(value)
            await kv.leases.revoke((await kv.leases.list())[-1])
        unused = Once(kv, "q//marks/", ttl=TTL)
        await unused.name()
        await kv.leases.revoke((await kv.leases.list())[-1])
        assert await unused.commit(PutKey(b"k", b"v"), when=is_absent(b"k")) > 0
        assert await unused.commit(PutKey(b"k", b"v"), when=is_absent(b"k")) == 0
        await queue.push("three")
        assert await queue.count() == 3

    virtually(scenario)


@pytest.mark.parametrize("used", [False, True])
def test_a_mark_that_ends_before_the_answer_comes_tells_nothing(used: bool) -> None:
    """The write was done, and the mark is gone that could say so: it is maybe."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        store = Lossy(kv, losses=0)
        once = Once(store, "q//marks/", ttl=TTL)  # type: ignore[arg-type]
        if used:
            await once.commit(PutKey(b"k", b"first"), when=is_absent(b"k"))
            await kv.delete("k")
        else:
            await once.name()
        store.revokes = True
        await refused(once.commit(PutKey(b"k", b"v"), when=is_absent(b"k")), errors.MaybeApplied)
        found = await kv.get("k")
        assert found is not None
        assert found.version == 1

    virtually(scenario)


def test_names_are_never_given_twice() -> None:
    """To nobody."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        ones = [Once(kv, "x//marks/", ttl=TTL) for _ in range(3)]
        assert len({await each.name() for each in ones}) == 3

    virtually(scenario)


# --- Counters ------------------------------------------------------------------------------------------------------


def test_a_counter_counts_each_addition() -> None:
    """Of everybody at the same time; numbers may be of any size, and fall."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.client()

        async def visitor() -> None:
            counter = Counter(kv, "visits", ttl=TTL)
            for _ in range(5):
                await counter.add()

        await asyncio.gather(*[visitor() for _ in range(4)])
        counter = Counter(kv, "visits", ttl=TTL)
        assert await counter.value() == 20
        assert await counter.add(-(2**70)) == 20 - 2**70
        assert await Counter(kv, "other", default=7).value() == 7
        await kv.put("visits//number", "nonsense")
        await refused(counter.value(), errors.InvalidValue)

    virtually(scenario, members=3)


def test_a_counter_adds_whole_numbers() -> None:
    """Half a visit would be told as 1.5, and stand there as 1."""

    async def scenario(cluster: Cluster) -> None:
        for amount in (1.5, "1", None):
            await refused(Counter(cluster.leader, "visits").add(amount), errors.InvalidRequest)  # type: ignore[arg-type]
        with pytest.raises(errors.InvalidRequest, match="default="):
            Counter(cluster.leader, "visits", default="1")  # type: ignore[arg-type]
        assert await Counter(cluster.leader, "visits").value() == 0

    virtually(scenario)


def test_queues_say_what_was_wrong_and_what_was_not_there() -> None:
    """A value that is none, a time that is none, and which queue was empty for how long."""

    async def scenario(cluster: Cluster) -> None:
        queue = Queue(cluster.leader, "mail")
        assert "str or bytes" in str(await refused(queue.push(5), errors.InvalidRequest))  # type: ignore[arg-type]
        await refused(queue.take(timeout="1"), errors.InvalidRequest)  # type: ignore[arg-type]
        assert str(await refused(queue.take(timeout=0.5), TimeoutError)) == "'mail' had no item within 0.5 s"
        with pytest.raises(errors.InvalidRequest, match="timeout="):
            LockingQueue(cluster.leader, "jobs").take(timeout="1")  # type: ignore[arg-type]

    virtually(scenario)


# --- Queues --------------------------------------------------------------------------------------------------------


def test_a_queue_is_first_in_first_out() -> None:
    """Each item is taken once, however many take."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.client()
        queue = Queue(kv, "q", ttl=TTL)
        got: list[bytes] = []

        async def worker() -> None:
            own = Queue(kv, "q", ttl=TTL)
            while True:
                got.append(await own.take())

        for number in range(5):
            await queue.push(f"{number}")
        assert await queue.peek() == b"0"
        assert [await queue.take() for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
        assert await queue.peek() is None
        workers = [asyncio.ensure_future(worker()) for _ in range(3)]
        for number in range(12):
            await queue.push(f"{number}")
        await asyncio.sleep(2)
        assert sorted(map(int, got)) == list(range(12))
        for each in workers:
            each.cancel()

    virtually(scenario, members=3)


def test_an_empty_queue_is_waited_for() -> None:
    """For as long as the caller says."""

    async def scenario(cluster: Cluster) -> None:
        queue = Queue(cluster.leader, "q", ttl=TTL)
        began = now()
        await refused(queue.take(timeout=0), TimeoutError)
        assert now() - began < 0.1
        await refused(queue.take(timeout=2), TimeoutError)
        assert 2 <= now() - began < 2.2
        waiting = asyncio.ensure_future(queue.take())
        await asyncio.sleep(1)
        await Queue(cluster.leader, "q").push("late")
        assert await waiting == b"late"

    virtually(scenario)


def test_a_priority_queue_has_the_least_number_first() -> None:
    """And among the same the first that came."""

    async def scenario(cluster: Cluster) -> None:
        queue = PriorityQueue(cluster.leader, "q", ttl=TTL)
        for value, priority in [("c", 500), ("a", 2), ("b", 10), ("a2", 2)]:
            await PriorityQueue(cluster.leader, "q", ttl=TTL).push(value, priority=priority)
        assert [await queue.take() for _ in range(4)] == [b"a", b"a2", b"b", b"c"]
        await cluster.leader.put(b"q//items/\xff", "another program's")
        assert await queue.take() == b"another program's"
        for priority in (-1, PRIORITY_MAX + 1, 1.5):
            await refused(queue.push("x", priority=priority), errors.InvalidRequest)  # type: ignore[arg-type]

    virtually(scenario)


# --- Locking queues ------------------------------------------------------------------------------------------------


def test_what_is_done_leaves_and_what_fails_comes_back() -> None:
    """In its old place."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        queue = LockingQueue(kv, "q", ttl=TTL)
        for value in ("one", "two"):
            await queue.push(value)
        async with queue.take() as item:
            assert item.value == b"one"
            assert [await queue.count(), await queue.held()] == [2, 1]
            async with queue.take() as other:
                assert other.value == b"two"
                await refused(_enter(queue.take(timeout=0)), errors.LockNotAcquired)
                await other.release()
                await refused(other.done(), errors.LeaseLost)
        assert await queue.count() == 1
        with pytest.raises(LookupError):
            await _fail(queue)
        async with queue.take(timeout=0) as item:
            assert item.value == b"two"
            await item.done()
            await refused(item.check(), errors.LeaseLost)
        assert [await queue.count(), await queue.held()] == [0, 0]

    virtually(scenario)


def test_two_who_take_at_the_same_time_have_different_items() -> None:
    """Though both have seen the same one first."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.client()
        queue = LockingQueue(kv, "q", ttl=TTL)
        for number in range(8):
            await queue.push(f"{number}")
        got: list[bytes] = []

        async def worker() -> None:
            async with queue.take(timeout=5) as item:
                got.append(item.value)
                await asyncio.sleep(1)

        await asyncio.gather(*[worker() for _ in range(8)])
        assert sorted(got) == [b"%d" % number for number in range(8)]

    virtually(scenario, members=3)


async def _fail(queue: LockingQueue) -> None:
    async with queue.take() as item:
        assert item.value == b"two"
        raise LookupError


async def _enter(taken: object) -> None:
    async with taken:  # type: ignore[attr-defined]
        raise AssertionError("there was an item")


def test_the_item_of_the_dead_is_done_by_another() -> None:
    """And whoever only seemed dead is told when he says that it is done."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        queue = LockingQueue(kv, "q", ttl=TTL)
        await queue.push("one")
        tokens: list[int] = []

        async def dying() -> None:
            async with queue.take() as item:
                tokens.append(item.token)
                await item.check()
                await kv.delete(prefix="q//held/")
                await refused(item.check(), errors.LeaseLost)
                async with queue.take(timeout=0) as again:
                    tokens.append(again.token)
                    await refused(item.done(), errors.LeaseLost)
                    assert await queue.count() == 1

        await refused(dying(), errors.LeaseLost)
        assert await queue.count() == 0
        assert tokens[0] < tokens[1]
        await queue.push("two")

        async def dead() -> None:
            async with queue.take():
                await kv.leases.revoke((await kv.leases.list())[-1])
                await asyncio.sleep(60)

        await refused(dead(), errors.LeaseLost)
        async with queue.take(timeout=0) as item:
            assert item.value == b"two"

    virtually(scenario)


def test_several_items_under_one_session() -> None:
    """Each is given back by itself, though a claim was answered by nobody."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        queue = LockingQueue(kv, "q", ttl=TTL)
        await queue.push("one")
        await queue.push("two")
        async with Session(kv, ttl=TTL) as session, queue.take(session=session) as item:
            async with queue.take(session=session) as other:
                assert [item.value, other.value] == [b"one", b"two"]
                await other.release()
            assert [await queue.count(), await queue.held()] == [2, 1]
        async with Session(lossy(kv), ttl=TTL) as session, queue.take(session=session) as item:
            assert item.value == b"two"
        assert [await queue.count(), await queue.held()] == [0, 0]

    virtually(scenario)


# --- Cancelled -----------------------------------------------------------------------------------------------------


async def count_one(kv: KV) -> None:
    """Add to a counter."""
    await Counter(kv, "x", ttl=TTL).add()


async def push_one(kv: KV) -> None:
    """Put in an item."""
    await Queue(kv, "x", ttl=TTL).push("new")


async def take_one(kv: KV) -> None:
    """Take one out."""
    await Queue(kv, "x", ttl=TTL).take()


async def do_one(kv: KV) -> None:
    """Take one out, and do it."""
    async with LockingQueue(kv, "x", ttl=TTL).take():
        await asyncio.sleep(0.1)


async def done(kv: KV) -> tuple[int, int]:
    """Return what the operations of this section change."""
    return await Counter(kv, "x").value(), await Queue(kv, "x").count()


@pytest.mark.parametrize(
    ("operation", "undone", "finished"),
    [(count_one, (0, 1), (1, 1)), (push_one, (0, 1), (0, 2)), (take_one, (0, 1), (0, 0)), (do_one, (0, 1), (0, 0))],
)
def test_cancelled_anywhere_it_happened_once_or_not_at_all(
    operation: object, undone: tuple[int, int], finished: tuple[int, int]
) -> None:
    """And nothing is left behind."""

    async def setup(kv: KV) -> None:
        await Queue(kv, "x", ttl=TTL).push("old")

    async def check(kv: KV, ended: bool) -> None:
        await nothing_is_left(kv, "x")
        state = await done(kv)
        assert state in ((finished,) if ended else (undone, finished))
        assert (await kv.range(prefix="x//held/")).count == 0

    assert cancel_everywhere(operation, check, setup=setup) >= 2  # type: ignore[arg-type]
