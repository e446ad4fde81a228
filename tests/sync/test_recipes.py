"""Every recipe from threads."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from pyraftkv import PutKey, connect, errors, recipes, sync
from pyraftkv.sync import recipes as blocking
from pyraftkv.sync.bridge import Face

TTL = 3.0


@dataclass
class Shop:
    """What is configured."""

    limit: int = 1


@pytest.fixture(scope="module")
def db() -> Iterator[sync.KV]:
    """A store."""
    with sync.Cluster.in_memory(1, seed=1) as cluster:
        yield cluster.client()


@pytest.mark.parametrize("name", recipes.__all__)
def test_every_recipe_has_a_blocking_twin(name: str) -> None:
    """With every public name of it, and with the same arguments."""
    assert name in blocking.__all__
    ours, theirs = getattr(blocking, name), getattr(recipes, name)
    if inspect.isclass(ours) and not issubclass(ours, Face):
        assert ours is theirs
        return
    if name not in ("singleton", "leader_only") and not inspect.isclass(ours):
        assert inspect.signature(ours) == inspect.signature(theirs)


FACES = {
    recipes.Session: blocking.SessionFace,
    recipes.Lock: blocking.Holding,
    recipes.RWLock: blocking.RWLockFace,
    recipes.Barrier: blocking.BarrierFace,
    recipes.Election: blocking.ElectionFace,
    recipes.Leadership: blocking.Leadership,
    recipes.RateLimiter: blocking.RateLimiterFace,
    recipes.Counter: blocking.CounterFace,
    recipes.Queue: blocking.QueueFace,
    recipes.PriorityQueue: blocking.PriorityQueueFace,
    recipes.LockingQueue: blocking.LockingQueueFace,
    recipes.Taken: blocking.Taken,
    recipes.Party: blocking.PartyFace,
    recipes.Presence: blocking.Presence,
    recipes.Registry: blocking.RegistryFace,
    recipes.Registration: blocking.Registration,
    recipes.Service: blocking.Service,
    recipes.Partitioner: blocking.PartitionerFace,
    recipes.ConfigCenter: blocking.ConfigCenterFace,
}


AMONG_RECIPES = {"enter_with", "body_here", "leave_later", "take_place", "give_place_back"}
"""What recipes ask of a `Session`, and programs do not."""


@pytest.mark.parametrize("of", FACES, ids=lambda of: of.__name__)
def test_every_method_is_there(of: type) -> None:
    """Under the same name."""
    public = [name for name in vars(of) if not name.startswith("_") and name not in AMONG_RECIPES]
    assert [name for name in public if not hasattr(FACES[of], name)] == []


def lose(db: sync.KV) -> None:
    """Lose a lock in the middle of a block."""
    with blocking.Session(db, ttl=TTL) as session:
        lost = blocking.Lock(session, "lock")
        lost.__enter__()
        db.leases.revoke(session.lease.id)
        with pytest.raises(errors.LeaseLost):
            lost.check()
        with pytest.raises(errors.LeaseLost):
            lost.commit(PutKey(b"by", b"nobody"))
        session.portal.run(session.target.lease.lost.wait)


def test_locks(db: sync.KV) -> None:
    """Threads exclude each other; one that lost its lease is told by `check`, by `commit` and at the end."""
    inside: list[int] = []

    def work(number: int) -> None:
        with blocking.Lock(db, "lock", ttl=TTL) as lock:
            inside.append(number)
            assert len(inside) == 1
            lock.commit(PutKey(b"by", b"%d" % number))
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lock = blocking.Lock(db, "lock", ttl=TTL, reentrant=True, timeout=0)
    with lock, lock:
        assert lock.token > 0
        assert [each.create_revision for each in lock.contenders()] == [lock.token]
        with pytest.raises(errors.LockNotAcquired):
            blocking.Lock(db, "lock", ttl=TTL, timeout=0).__enter__()
    with pytest.raises(errors.LeaseLost):
        lose(db)
    with blocking.RWLock(db, "map", ttl=TTL).read(), blocking.ReadLock(db, "map", ttl=TTL):
        pass
    with blocking.WriteLock(db, "map", ttl=TTL), blocking.Semaphore(db, "seats", limit=1, ttl=TTL):
        pass


def test_elections_and_tasks(db: sync.KV) -> None:
    """One leads, and the others see who."""
    election = blocking.Election(db, "boss", ttl=TTL)
    with election.campaign("me") as leadership:
        leadership.proclaim("I")
        leader = election.leader()
        assert leader is not None
        assert leader.text == "I"
        observed = election.observe()
        first = next(observed)
        assert first is not None
        assert first.text == "I"
        observed.close()
    assert blocking.singleton(db, "boss", lambda leadership: leadership.token, ttl=TTL) > 0
    calls: list[int] = []

    def work(leadership: blocking.Leadership) -> None:
        calls.append(leadership.token)
        if len(calls) == 3:
            raise LookupError

    with pytest.raises(LookupError):
        blocking.leader_only(db, "boss", work, every=0.01, ttl=TTL)
    assert len(calls) == 3
    assert len(set(calls)) == 1


def test_a_store_of_asyncio_is_told_apart() -> None:
    """By what it is, and where its own recipes are."""
    with pytest.raises(errors.InvalidRequest, match=r"pyraftkv\.sync"):
        blocking.Lock(connect("127.0.0.1:1"), "a")  # type: ignore[arg-type]


def test_together(db: sync.KV) -> None:
    """Barriers, rates and sessions."""
    barrier = blocking.Barrier(db, "gate")
    barrier.hold()
    barrier.lift()
    barrier.wait(timeout=1)
    with blocking.DoubleBarrier(db, "dance", count=1, ttl=TTL):
        pass
    limiter = blocking.RateLimiter(db, "mail", limit=1, seconds=60, ttl=TTL)
    limiter.acquire()
    assert limiter.count() == 1
    with blocking.Session(db, ttl=TTL) as session, blocking.Lock(session, "lock"):
        session.check()
        assert session.lease.id
        assert session.next_place() != session.next_place()


def test_data(db: sync.KV) -> None:
    """Counters and queues."""
    counter = blocking.Counter(db, "visits")
    assert counter.add(2) == counter.value() == 2
    queue = blocking.Queue(db, "q")
    queue.push("a")
    assert [queue.peek(), queue.count(), queue.take(timeout=0)] == [b"a", 1, b"a"]
    levels = blocking.PriorityQueue(db, "levels")
    levels.push("later")
    levels.push("first", priority=1)
    assert levels.take() == b"first"
    jobs = blocking.LockingQueue(db, "jobs", ttl=TTL)
    jobs.push("one")
    with blocking.Session(db, ttl=TTL) as session, jobs.take(session=session) as job:
        assert [job.value, jobs.count(), jobs.held()] == [b"one", 1, 1]
        job.check()
        assert job.token
    assert jobs.count() == 0


def test_presence(db: sync.KV) -> None:
    """Parties, services and shares."""
    party = blocking.Party(db, "party", ttl=TTL)
    with party.join("ann") as ann:
        ann.update("anna")
        assert [each.text for each in party.members()] == [next(party.watch())[0].text] == ["anna"]
    registry = blocking.Registry(db, ttl=TTL)
    with registry.watch("web") as web, registry.register("web", "h1:80", id="w") as instance:
        assert [each.address for each in registry.resolve("web")] == ["h1:80"]
        changes = web.changes()
        while not next(changes):
            pass
        assert [web.pick().id, web[0].id, instance.id] == ["w", "w", "w"]
        instance.drain()
        assert registry.resolve("web") == []
    with blocking.Partitioner(db, "shards", list("ab"), ttl=TTL) as partitioner:
        assert next(partitioner.shares()) == partitioner.mine == frozenset("ab")
        assert partitioner.state is recipes.PartitionState.ACQUIRED


def test_configuration(db: sync.KV) -> None:
    """Changed, followed, put back."""
    seen: list[int] = []
    with blocking.ConfigCenter(db, "shop", Shop) as config:
        config.on_change(lambda _, after: seen.append(after.limit))
        revision = config.change(limit=5)
        assert config.at_least(revision).limit == config.value.limit == 5
        assert config.at_least(config.rollback(revision - 1)).limit == 1
        assert [change.fields for change in config.history()] == [("limit",), ("limit",)]
        assert config.error is None
    assert seen == [5, 1]
