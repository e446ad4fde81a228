"""Locks: one holder at a time, in order; what becomes of who loses it, gives up, or is cancelled."""

from __future__ import annotations

import asyncio
import math
from contextlib import AbstractAsyncContextManager
from copy import copy

import pytest

from pyraftkv import KV, Cluster, PutKey, errors
from pyraftkv.engine import Namespace
from pyraftkv.kv import Consistency
from pyraftkv.recipes import DoubleBarrier, Lock, LockingQueue, Party, Registry, RWLock, Semaphore, Session
from pyraftkv.recipes.contest import Contest
from pyraftkv.store.commands import Command, DeleteRange, GrantLease, RangeQuery, Transaction
from pyraftkv.store.values import RangeResult, Result
from tests.recipes.support import TTL, Cancelling, cancel_everywhere, nothing_is_left, now, refused, soon, virtually


def test_one_at_a_time_in_the_order_in_which_they_came() -> None:
    """And the token rises."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.client()
        held: list[tuple[int, int]] = []
        inside = 0

        async def worker(number: int) -> None:
            nonlocal inside
            await asyncio.sleep(number)
            async with Lock(kv, "a", ttl=TTL, value=str(number)) as lock:
                inside += 1
                assert inside == 1
                held.append((number, lock.token))
                await asyncio.sleep(5)
                inside -= 1

        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(worker(number))
            await asyncio.sleep(3.5)
            assert [each.text for each in await Lock(kv, "a").contenders()] == ["0", "1", "2", "3"]
        assert [number for number, _ in held] == [0, 1, 2, 3]
        assert sorted(held) == sorted(held, key=lambda each: each[1])
        await nothing_is_left(kv, "a")

    virtually(scenario, members=3)


def test_whoever_leaves_wakes_up_one_other() -> None:
    """The third one hears nothing when the first one goes."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        order: list[str] = []

        async def hold(name: str, seconds: float) -> None:
            async with Lock(kv, "a", ttl=TTL):
                order.append(name)
                await asyncio.sleep(seconds)

        async with asyncio.TaskGroup() as group:
            for name, seconds in (("one", 5.0), ("two", 5.0), ("three", 0.0)):
                group.create_task(hold(name, seconds))
                await soon(lambda: True)
                await asyncio.sleep(0.5)
            watched = [watch.call.key for watch in kv._running().watches._watches.values()]
            assert len(watched) == 2
            assert len(set(watched)) == 2
        assert order == ["one", "two", "three"]

    virtually(scenario)


def test_a_lock_that_is_not_free_raises_and_its_block_does_not_run() -> None:
    """At once, or after its timeout; and nothing is left of the attempt."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        async with Lock(kv, "a", ttl=TTL):
            for timeout in (0, 2.5):
                began = now()
                with pytest.raises(errors.LockNotAcquired):
                    async with Lock(kv, "a", ttl=TTL, timeout=timeout):
                        pytest.fail("the block runs")
                assert timeout <= now() - began < timeout + 0.5
                assert len(await Lock(kv, "a").contenders()) == 1
                assert len(await kv.leases.list()) == 1
        async with Lock(kv, "a", ttl=TTL, timeout=0):
            pass

    virtually(scenario)


def test_losing_the_lease_cancels_the_block() -> None:
    """It ends with `LeaseLost` at its next await, and whoever waits has the lock with a later token."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        tokens = []
        with pytest.raises(errors.LeaseLost):  # noqa: PT012 - the block is what raises
            async with Lock(kv, "a", ttl=TTL) as lock:
                tokens.append(lock.token)
                (lease,) = await kv.leases.list()
                await kv.leases.revoke(lease)
                await asyncio.sleep(100)
                pytest.fail("the block goes on")
        assert now() < 50
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        async with Lock(kv, "a", ttl=TTL) as lock:
            tokens.append(lock.token)
        assert tokens == sorted(set(tokens))

    virtually(scenario)


def test_a_holder_that_is_cut_off_knows_before_the_next_one_holds() -> None:
    """By its own clock, whatever the cluster does."""

    async def scenario(cluster: Cluster) -> None:
        kv, holder = cluster.leader, cluster.followers[0]
        lost: list[float] = []

        async def hold() -> None:
            try:
                async with Lock(holder, "a", ttl=TTL, value="holder"):
                    cluster.network.isolate(holder.address)
                    await asyncio.sleep(1000)
            except errors.LeaseLost:
                lost.append(now())

        holding = asyncio.ensure_future(hold())
        await asyncio.sleep(0.5)
        async with Lock(kv, "a", ttl=TTL, value="next"):
            assert lost
            assert lost[0] <= now() < lost[0] + 2 * TTL
        await holding

    virtually(scenario, members=3)


def test_who_lost_its_place_while_it_waited_does_not_hold() -> None:
    """Its key went, by an operator or with its lease; somebody may have come since, and hold by rights."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.client()
        lost: list[errors.LeaseLost] = []

        async def wait() -> None:
            try:
                async with Lock(kv, "a", ttl=TTL, value="waiter"):
                    raise AssertionError("it holds what it has lost")
            except errors.LeaseLost as error:
                lost.append(error)

        async with Lock(kv, "a", ttl=TTL, value="holder") as held:
            waiting = asyncio.ensure_future(wait())
            await asyncio.sleep(1)
            place = next(each for each in await held.contenders() if each.text == "waiter")
            await kv.delete(place.key)
            await asyncio.sleep(1)
        await waiting
        assert "out of the row" in str(lost)

    virtually(scenario)


def test_cancelling_from_outside_is_no_loss() -> None:
    """`CancelledError` stays what it is, and the lock is free at once."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        entered = asyncio.Event()

        async def hold() -> None:
            async with Lock(kv, "a", ttl=TTL):
                entered.set()
                await asyncio.sleep(1000)

        task = asyncio.ensure_future(hold())
        await entered.wait()
        task.cancel()
        await refused(task, asyncio.CancelledError)
        async with Lock(kv, "a", ttl=TTL, timeout=0):
            pass

    virtually(scenario)


def test_a_transaction_with_the_guard_is_done_while_the_lock_is_held() -> None:
    """By `commit`, or by hand; afterwards it is not done, and says so."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        async with Lock(kv, "a", ttl=TTL) as lock:
            await lock.commit(PutKey(b"x", b"1"))
            guard = lock.guard
            await lock.check()
            await kv.delete((await lock.contenders())[0].key)
            await refused(lock.check(), errors.LeaseLost)
            await refused(lock.commit(PutKey(b"x", b"2")), errors.LeaseLost)
            assert not (await kv.txn().when(guard).then(PutKey(b"x", b"3"))).succeeded
        found = await kv.get("x")
        assert found is not None
        assert found.text == "1"
        for lost in (lambda: lock.token, lambda: lock.guard):
            with pytest.raises(errors.LeaseLost):
                lost()

    virtually(scenario)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1, "1"])
def test_a_delay_that_has_no_end_is_refused(wrong: float) -> None:
    """The lock of a holder that died would be nobody's for ever."""

    async def scenario(cluster: Cluster) -> None:
        with pytest.raises(errors.InvalidRequest, match="delay="):
            Lock(cluster.leader, "a", delay=wrong)
        await refused(enter(Lock(cluster.leader, "a", value="\ud800")), errors.InvalidRequest)

    virtually(scenario)


def test_entering_again() -> None:
    """Only where it was asked for, and by the task that holds it."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        async with Lock(kv, "a", ttl=TTL) as once:
            with pytest.raises(errors.InvalidRequest):
                await once.__aenter__()
        lock = Lock(kv, "a", ttl=TTL, reentrant=True)
        async with lock, lock:
            token = lock.token
            async with lock:
                assert lock.token == token
            assert lock.token == token
            await refused(asyncio.ensure_future(enter(lock)), errors.InvalidRequest)
        await nothing_is_left(kv, "a")
        async with lock:
            assert lock.token > token

    virtually(scenario)


async def enter(lock: Lock) -> None:
    """Enter a lock in another task."""
    async with lock:
        pass


def test_several_locks_under_one_session() -> None:
    """One lease; each is free when its block ends, and all when the session is lost."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        with pytest.raises(errors.LeaseLost):  # noqa: PT012 - the block is what raises
            async with Session(kv, ttl=TTL) as session, Lock(session, "a") as a:
                async with Lock(session, "b") as b:
                    assert a.token < b.token
                    assert len(await kv.leases.list()) == 1
                async with Lock(kv, "b", ttl=TTL, timeout=0):
                    pass
                await kv.leases.revoke(session.lease.id)
                await asyncio.sleep(1000)
        async with Lock(kv, "a", ttl=TTL, timeout=0):
            pass
        await nothing_is_left(kv, "a")

    virtually(scenario)


@pytest.mark.parametrize("kind", ["lock", "writers", "semaphore"])
def test_tasks_that_share_a_session_exclude_each_other(kind: str) -> None:
    """And none of them takes the place of another one with it when it leaves."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        inside = 0

        async def worker(session: Session) -> None:
            nonlocal inside
            places = {"lock": Lock(session, "a"), "writers": RWLock(session, "a").write()}
            async with places.get(kind) or Semaphore(session, "a", limit=1) as place:
                inside += 1
                assert inside == 1
                await asyncio.sleep(1)
                await place.check()
                inside -= 1

        async with Session(kv, ttl=TTL) as session, asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(worker(session))
        await nothing_is_left(kv, "a")

    virtually(scenario)


def test_after_a_holder_that_died_the_lock_stays_free_for_its_delay() -> None:
    """And not after one that released it."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        async with Lock(kv, "a", ttl=TTL, delay=20):
            pass
        began = now()
        with pytest.raises(errors.LeaseLost):  # noqa: PT012 - the block is what raises
            async with Lock(kv, "a", ttl=TTL, delay=20):
                assert now() - began < 1
                await kv.leases.revoke((await kv.leases.list())[0])
                await asyncio.sleep(1000)
        began = now()
        async with Lock(kv, "a", ttl=TTL, delay=20):
            assert now() - began >= 20
        began = now()
        async with Lock(kv, "a", ttl=TTL, delay=20):
            assert now() - began < 1

    virtually(scenario)


def test_readers_share_and_writers_do_not() -> None:
    """In the order in which they came: a reader behind a writer waits, so no writer is starved."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        lock = RWLock(kv, "a", ttl=TTL)
        seen: list[str] = []

        async def hold(name: str) -> None:
            async with lock.read() if name.startswith("r") else lock.write():
                seen.append(f"+{name}")
                await asyncio.sleep(10)
                seen.append(f"-{name}")

        async with asyncio.TaskGroup() as group:
            for name in ("r1", "r2", "w1", "r3", "r4", "w2"):
                group.create_task(hold(name))
                await asyncio.sleep(1)
        assert seen == ["+r1", "+r2", "-r1", "-r2", "+w1", "-w1", "+r3", "+r4", "-r3", "-r4", "+w2", "-w2"]
        await nothing_is_left(kv, "a")

    virtually(scenario)


@pytest.mark.parametrize("name", ["", "a//b", "a/", "//", "\ud800"])
def test_a_name_that_could_meet_another_is_refused(name: str) -> None:
    """And the lock `a` has nothing to do with the lock `a/b`."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        with pytest.raises(errors.InvalidRequest):
            Lock(kv, name)
        async with Lock(kv, "a", ttl=TTL), Lock(kv, "a/b", ttl=TTL, timeout=0):
            pass

    virtually(scenario)


async def take(kv: KV) -> None:
    """Hold a lock for a moment, as programs do."""
    async with Lock(kv, "a", ttl=TTL) as lock:
        await lock.commit(PutKey(b"done", b"%d" % lock.token))


async def take_late(kv: KV) -> None:
    """The same behind somebody who holds it for a second."""
    first = asyncio.ensure_future(hold(kv))
    await asyncio.sleep(0.5)
    try:
        await take(kv)
    finally:
        first.cancel()


async def hold(kv: KV) -> None:
    """Hold the lock for a second."""
    async with Lock(kv, "a", ttl=TTL):
        await asyncio.sleep(1)


async def take_with_delay(kv: KV) -> None:
    """Hold a lock with a delay."""
    async with Lock(kv, "a", ttl=TTL, delay=1) as lock:
        await lock.commit(PutKey(b"done", b"%d" % lock.token))


@pytest.mark.parametrize("operation", [take, take_late, take_with_delay])
def test_cancelled_anywhere_it_leaves_nothing_behind(operation: object) -> None:
    """What it did it did once or not at all, and the next one has the lock as soon as its ttl is over."""

    async def check(kv: KV, ended: bool) -> None:
        found = await kv.get("done")
        assert found is not None or not ended
        assert found is None or found.version == 1
        await nothing_is_left(kv, "a")
        async with Lock(kv, "a", ttl=TTL, timeout=5, delay=1 if operation is take_with_delay else 0):
            pass

    assert cancel_everywhere(operation, check) > 5  # type: ignore[arg-type]


def test_a_request_to_leave_that_comes_late_takes_nobody_s_place() -> None:
    """It was sent again as another one meanwhile, and the place of that name is the next contender's."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        async with Session(kv, ttl=TTL) as session:
            first = Contest(kv, "a/", session)
            await first.join(b"")
            late = copy(first)
            assert await first.leave()
            second = Contest(kv, "a/", session)
            assert second.key == first.key
            await second.join(b"")
            assert not await late.leave()
            await second.check()

    virtually(scenario)


def test_cancelled_anywhere_it_leaves_no_place_in_a_session_that_goes_on() -> None:
    """A write that is under way is taken back: nobody else would ever leave that place."""
    at = awaits = 0
    while awaits >= at:
        at += 1

        async def scenario(cluster: Cluster, at: int = at) -> None:
            nonlocal awaits
            async with Session(cluster.leader, ttl=TTL) as session:
                counted = Cancelling(take_in(session), at=at)
                task = asyncio.ensure_future(counted.run())
                await asyncio.wait([task])
                awaits = counted.awaits
                await asyncio.sleep(1)
                assert await Lock(session, "a").contenders() == [], at

        virtually(scenario)
    assert at > 3


@pytest.mark.parametrize("how", ["nobody answers", "cancelled"])
@pytest.mark.parametrize("kind", ["lock", "barrier", "item", "presence", "presence with an id"])
def test_a_place_that_could_not_be_left_is_left_later(kind: str, how: str) -> None:
    """Its session goes on, and would keep it for ever: held by nobody, and free for nobody."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        async with Session(kv, ttl=60) as session:
            places: dict[str, AbstractAsyncContextManager[object]] = {
                "lock": Lock(session, "a"),
                "barrier": DoubleBarrier(session, "a", count=1),
                "item": LockingQueue(kv, "a").take(session=session),
                "presence": Party(session, "a").join(),
                "presence with an id": Party(session, "a").join(id="me"),
            }
            await LockingQueue(kv, "a").push("one")
            leaving = asyncio.ensure_future(leave_alone(places[kind], cluster))
            if how == "cancelled":
                await asyncio.sleep(3)
                leaving.cancel()
            await asyncio.wait([leaving])
            assert leaving.cancelled() or isinstance(leaving.exception(), errors.PyraftkvError)
            await asyncio.sleep(20)
            cluster.network.heal()
            await asyncio.sleep(20)
            assert await kv.leases.list() == [session.lease.id]
            assert (await kv.leases.time_to_live(session.lease.id, keys=True)).keys == []

    virtually(scenario, members=3)


async def leave_alone(place: AbstractAsyncContextManager[object], cluster: Cluster) -> None:
    """Have a place, and leave it when nobody reaches anybody."""
    async with place:
        for node in cluster:
            cluster.network.isolate(node.address)
        await asyncio.sleep(2)
        raise ValueError("an item is given back, not done")


async def take_in(session: Session) -> None:
    """Hold a lock under a session for a moment."""
    async with Lock(session, "a"):
        await asyncio.sleep(0.1)


# --- Round trips ---------------------------------------------------------------------------------------------------


class Overtaking(Namespace):
    """A store in which whatever is written reaches the members before a lease that was asked for earlier."""

    late: type = GrantLease

    async def write(self, command: Command, timeout: float | None) -> Result:
        if isinstance(command, self.late):
            await asyncio.sleep(0.5)
        return await super().write(command, timeout)


class Trailing(Overtaking):
    """A store in which transactions take longer than anything else."""

    late = Transaction


class Repeating(Namespace):
    """A store whose random numbers are all the same."""

    def draw_lease_id(self) -> int:
        return 7


def test_a_lock_that_is_free_takes_two_round_trips() -> None:
    """The lease, the place in the row and the look who is before are one; its end is the other."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.client()
        await kv.put("a", "1")
        began = now()
        await kv.put("a", "2")
        put_seconds = now() - began
        async with Session(kv, ttl=TTL) as session:
            for store in (kv, session):
                began = now()
                async with Lock(store, "a", ttl=TTL):
                    assert now() - began < 1.5 * put_seconds
                assert now() - began < 3 * put_seconds

    virtually(scenario, members=3)


class Distant(Namespace):
    """A store that is a second away."""

    async def write(self, command: Command, timeout: float | None) -> Result:
        await asyncio.sleep(1)
        return await super().write(command, timeout)

    async def read(
        self, query: RangeQuery, consistency: Consistency, timeout: float | None, *, at_least: int = 0
    ) -> RangeResult:
        await asyncio.sleep(1)
        return await super().read(query, consistency, timeout, at_least=at_least)


@pytest.mark.parametrize(("kind", "round_trips"), [("lock", 1), ("presence", 1), ("item", 2), ("barrier for one", 4)])
@pytest.mark.parametrize("shared", [False, True])
def test_nobody_waits_for_a_lease_alone(kind: str, round_trips: int, shared: bool) -> None:
    """What is done first goes along with the question for it."""

    async def scenario(cluster: Cluster) -> None:
        kv = Distant(cluster.leader, b"part/")
        await LockingQueue(kv, "a").push("one")
        async with Session(kv, ttl=60) as session:
            store = session if shared else kv
            places: dict[str, AbstractAsyncContextManager[object]] = {
                "lock": Lock(store, "a"),
                "presence": Party(store, "a").join(),
                "item": LockingQueue(kv, "a").take(session=session if shared else None),
                "barrier for one": DoubleBarrier(store, "a", count=1),
            }
            began = now()
            async with places[kind]:
                assert round(now() - began) == round_trips

    virtually(scenario)


@pytest.mark.parametrize("count", [1, 3])
def test_cycles_under_a_session_go_round_on_a_few_keys(count: int) -> None:
    """A key of its own for each would leave a tombstone that everybody passes who looks at the row."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        first = (await kv.put("a", "")).revision + 1

        async def cycles() -> None:
            for _ in range(10):
                async with Lock(session, "a"):
                    pass

        async with Session(kv, ttl=TTL) as session:
            await asyncio.gather(*[cycles() for _ in range(count)])
            async with kv.watch("a//", "a/0", start_revision=first) as watch:
                await kv.put("a//end", "")
                keys: set[bytes] = set()
                async for event in watch:
                    if event.kv.key == b"a//end":
                        break
                    keys.add(event.kv.key)
        assert len(keys) == count

    virtually(scenario)


class Stuck(Namespace):
    """A store that deletes nothing for a while."""

    is_stuck = True

    async def write(self, command: Command, timeout: float | None) -> Result:
        if isinstance(command, Transaction) and isinstance(command.success[0], DeleteRange) and self.is_stuck:
            raise errors.Unavailable("nobody is there")
        return await super().write(command, timeout)


def test_a_place_that_is_yet_to_be_left_is_given_to_nobody_else() -> None:
    """Else the next one under the session is thrown out of the row when that is done."""

    async def scenario(cluster: Cluster) -> None:
        kv = Stuck(cluster.leader, b"part/")
        async with Session(kv, ttl=60) as session:
            lock = Lock(session, "a")
            await lock.__aenter__()
            await refused(lock.__aexit__(None, None, None), errors.Unavailable)
            waiting = asyncio.ensure_future(enter(Lock(session, "a")))
            await asyncio.sleep(5)
            assert len(await lock.contenders()) == 2
            kv.is_stuck = False
            await waiting
            await asyncio.sleep(5)
            assert await lock.contenders() == []

    virtually(scenario)


class Mute(Namespace):
    """A store that does not answer a put, and then does not do the first transaction."""

    refusals = 1

    async def write(self, command: Command, timeout: float | None) -> Result:
        if isinstance(command, Transaction) and self.refusals:
            self.refusals -= 1
            raise errors.Unavailable("nobody is there")
        result = await super().write(command, timeout)
        if isinstance(command, PutKey):
            raise errors.MaybeApplied("it was")
        return result


def test_a_presence_whose_beginning_was_not_answered_is_taken_back() -> None:
    """Though that could not be done at once, and nobody knows when it was written."""

    async def scenario(cluster: Cluster) -> None:
        kv = Mute(cluster.leader, b"part/")
        async with Session(kv, ttl=60) as session:
            await refused(Party(session, "a").join().__aenter__(), errors.Unavailable)
            assert await Party(kv, "a").members() != []
            await asyncio.sleep(5)
            assert await Party(kv, "a").members() == []

    virtually(scenario)


@pytest.mark.parametrize("kind", [Lock, Registry])
def test_a_place_that_arrives_before_its_lease_is_asked_for_again(kind: type) -> None:
    """It is refused, for there is no such lease yet."""

    async def scenario(cluster: Cluster) -> None:
        kv = Overtaking(cluster.leader, b"part/")
        async with Lock(kv, "a", ttl=TTL) if kind is Lock else Registry(kv, ttl=TTL).register("a", "b"):
            (lease,) = await kv.leases.list()
            assert len((await kv.leases.time_to_live(lease, keys=True)).keys) == 1
        assert await kv.leases.list() == []

    virtually(scenario)


def test_a_lease_that_is_there_already_gives_no_place() -> None:
    """Its holder keeps it, and what hangs on it."""

    async def scenario(cluster: Cluster) -> None:
        kv = Repeating(cluster.leader, b"part/")
        lock = Lock(kv, "a", ttl=TTL)
        await kv.leases.grant(100, id=kv.draw_lease_id())
        await refused(lock.__aenter__(), errors.LeaseExists)
        assert len(await kv.leases.list()) == 1
        assert await lock.contenders() == []

    virtually(scenario)


def test_who_is_cancelled_on_his_way_in_leaves_at_once() -> None:
    """His lease is ended, and not only left to itself: nobody has to wait until its time is over."""
    at = awaits = 0
    while awaits >= at:
        at += 1

        async def scenario(cluster: Cluster, at: int = at) -> None:
            nonlocal awaits
            kv = cluster.leader
            counted = Cancelling(enter(Lock(kv, "a", ttl=1000)), at=at)
            task = asyncio.ensure_future(counted.run())
            await asyncio.wait([task])
            awaits = counted.awaits
            async with Lock(kv, "a", ttl=TTL, timeout=3):
                pass
            assert await kv.leases.list() == []

        virtually(scenario)
    assert at > 3


def test_who_is_cancelled_with_his_lease_and_before_his_place_has_neither() -> None:
    """The lease that was granted meanwhile is ended at once."""

    async def scenario(cluster: Cluster) -> None:
        kv = Trailing(cluster.leader, b"part/")
        task = asyncio.ensure_future(enter(Lock(kv, "a", ttl=1000)))
        await asyncio.sleep(0.4)
        assert await kv.leases.list() != []
        task.cancel()
        await refused(task, asyncio.CancelledError)
        assert await kv.leases.list() == []

    virtually(scenario)


# --- Losing it -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lock", "waiting", "party", "item", "barrier"])
def test_what_is_held_under_a_session_ends_with_it_in_whichever_task(kind: str) -> None:
    """The task that entered the session is not the only one that its loss concerns."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        entered = asyncio.Event()
        await LockingQueue(kv, "q").push("x")

        async def block(session: Session) -> None:
            held = {
                "lock": Lock(session, "a"),
                "waiting": Lock(session, "taken"),
                "party": Party(session, "a").join("me"),
                "item": LockingQueue(kv, "q").take(session=session),
                "barrier": DoubleBarrier(session, "b", count=1),
            }[kind]
            async with held:  # type: ignore[attr-defined]
                entered.set()
                await asyncio.sleep(1000)

        async with Lock(kv, "taken", ttl=100):
            with pytest.raises(errors.LeaseLost):  # noqa: PT012 - the block is what raises
                async with Session(kv, ttl=TTL) as session:
                    task = asyncio.ensure_future(block(session))
                    await (asyncio.sleep(0.5) if kind == "waiting" else entered.wait())
                    await kv.leases.revoke(session.lease.id)
                    await asyncio.sleep(1000)
            async with asyncio.timeout(0.1):
                await refused(task, errors.LeaseLost)

    virtually(scenario)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("delay", [0.0, 1.0])
def test_a_block_that_ends_before_anybody_noticed_its_loss_is_told(shared: bool, delay: float) -> None:
    """Its end finds that nothing is there that it could give back."""

    async def scenario(cluster: Cluster) -> None:
        kv = cluster.leader
        async with Session(kv, ttl=TTL) as session:
            store = session if shared else kv
            async with Lock(store, "a", ttl=TTL, delay=delay):
                pass
            lock = Lock(store, "a", ttl=TTL, delay=delay)
            await lock.__aenter__()
            if shared:
                await kv.delete((await lock.contenders())[0].key)
            else:
                await kv.leases.revoke((await lock.contenders())[0].lease)
            await refused(lock.__aexit__(None, None, None), errors.LeaseLost)
            error = ValueError("its own")
            lock = Lock(store, "a", ttl=TTL)
            await lock.__aenter__()
            await kv.delete((await lock.contenders())[0].key)
            await lock.__aexit__(ValueError, error, None)

    virtually(scenario)
