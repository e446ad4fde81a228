"""The names of `pyraftkv.recipes` for threads: each is made of a blocking store, and entered with a plain ``with``.

No block of a thread can be cancelled. Where an asynchronous block is cancelled because its lease was lost, one of a
thread goes on, and raises `LeaseLost` at its end: ask `check` before every step that must not be taken without what is
held, and let `commit` or the `token` guard what is written.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, overload

from pyraftkv import recipes
from pyraftkv.errors import InvalidRequest, LeaseLost, Unavailable
from pyraftkv.kv import Bytes
from pyraftkv.recipes import ConfigChange, Instance, NoInstance, PartitionState
from pyraftkv.recipes import barrier as _barrier
from pyraftkv.recipes import config as _config
from pyraftkv.recipes import holding as _holding
from pyraftkv.recipes.session import TTL_DEFAULT
from pyraftkv.recipes.tasks import PAUSE_SECONDS
from pyraftkv.store.commands import Compare
from pyraftkv.sync.bridge import Entered, Face, blocking, iterating, making
from pyraftkv.sync.faces import KV, Lease
from pyraftkv.sync.portal import Portal

P = ParamSpec("P")
F = TypeVar("F", bound=Face)
T = TypeVar("T")
_Config = _config.ConfigCenter[Any]

__all__ = [
    "Barrier",
    "ConfigCenter",
    "ConfigChange",
    "Counter",
    "DoubleBarrier",
    "Election",
    "Instance",
    "Leadership",
    "Lock",
    "LockingQueue",
    "NoInstance",
    "PartitionState",
    "Partitioner",
    "Party",
    "Presence",
    "PriorityQueue",
    "Queue",
    "RWLock",
    "RateLimiter",
    "ReadLock",
    "Registration",
    "Registry",
    "Semaphore",
    "Service",
    "Session",
    "Taken",
    "WriteLock",
    "leader_only",
    "singleton",
]


def _of(
    make: Callable[Concatenate[Any, P], Any], face: Callable[[Any, Portal], F]
) -> Callable[Concatenate[Face, P], F]:
    """Return what makes a recipe of a blocking store (or session), as its face."""

    @wraps(make, updated=())
    def construct(store: Face, /, *args: P.args, **kwargs: P.kwargs) -> F:
        if not isinstance(store, Face):
            raise InvalidRequest(f"{store!r} is no store of pyraftkv.sync: see pyraftkv.recipes for asyncio")
        return face(store.portal.call(lambda: make(store.target, *args, **kwargs)), store.portal)

    return construct


class SessionFace(Entered):
    """A lease that several recipes share (see `pyraftkv.recipes.Session`)."""

    @property
    def lease(self) -> Lease:
        """What it holds."""
        return Lease(self.target.lease, self.portal)

    def check(self) -> None:
        """Raise `LeaseLost` if its lease is gone, or may be, by the clock at this moment."""
        self.lease.check()

    def next_place(self) -> str:
        """Return what names another place under the lease: no other one is called so, of this session or of any."""
        place: str = self.portal.call(self.target.next_place)  # where the recipes count, too
        return place


class Holding(Entered):
    """A place that is held while the block runs (see `pyraftkv.recipes.holding.Holding`)."""

    target: _holding.Holding

    def __init__(self, target: _holding.Holding, portal: Portal) -> None:
        super().__init__(target, portal)
        self._owner = 0
        self._depth = 0

    @property
    def name(self) -> str:
        """Of what is held."""
        return self.target.name

    @property
    def token(self) -> int:
        """The fencing token: it rises from holder to holder. Raises `LeaseLost` if nothing is held."""
        return self.target.token

    @property
    def guard(self) -> Compare:
        """What a transaction compares so that it is done only while this holder is one. Raises `LeaseLost`."""
        return self.target.guard

    commit = blocking(_holding.Holding.commit)
    check = blocking(_holding.Holding.check)
    contenders = blocking(_holding.Holding.contenders)

    def __enter__(self) -> Self:
        if self._owner == threading.get_ident() and self.target.is_reentrant:
            self._depth += 1
            return self
        super().__enter__()
        self._owner = threading.get_ident()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._depth:
            self._depth -= 1
            return
        self._owner = 0
        super().__exit__(*exc)


class RWLockFace(Face):
    """Many readers or one writer (see `pyraftkv.recipes.RWLock`)."""

    read = making(recipes.RWLock.read, Holding)
    write = making(recipes.RWLock.write, Holding)


class BarrierFace(Face):
    """Whoever comes waits while it is there (see `pyraftkv.recipes.Barrier`)."""

    hold = blocking(_barrier.Barrier.hold)
    lift = blocking(_barrier.Barrier.lift)
    wait = blocking(_barrier.Barrier.wait)


class Leadership(Holding):
    """A candidacy; its block runs while it leads (see `pyraftkv.recipes.Leadership`)."""

    proclaim = blocking(recipes.Leadership.proclaim)


class ElectionFace(Face):
    """An election (see `pyraftkv.recipes.Election`)."""

    campaign = making(recipes.Election.campaign, Leadership)
    leader = blocking(recipes.Election.leader)
    observe = iterating(recipes.Election.observe)


class RateLimiterFace(Face):
    """So many in a stretch of time (see `pyraftkv.recipes.RateLimiter`)."""

    acquire = blocking(recipes.RateLimiter.acquire)
    count = blocking(recipes.RateLimiter.count)


class CounterFace(Face):
    """A number that everybody adds to (see `pyraftkv.recipes.Counter`)."""

    value = blocking(recipes.Counter.value)
    add = blocking(recipes.Counter.add)


class QueueFace(Face):
    """First in, first out (see `pyraftkv.recipes.Queue`)."""

    push = blocking(recipes.Queue.push)
    take = blocking(recipes.Queue.take)
    peek = blocking(recipes.Queue.peek)
    count = blocking(recipes.Queue.count)


class PriorityQueueFace(Face):
    """The least number first (see `pyraftkv.recipes.PriorityQueue`)."""

    push = blocking(recipes.PriorityQueue.push)
    take = blocking(recipes.Queue.take)
    peek = blocking(recipes.Queue.peek)
    count = blocking(recipes.Queue.count)


class Taken(Entered):
    """An item while it is done (see `pyraftkv.recipes.Taken`)."""

    target: recipes.Taken

    @property
    def value(self) -> bytes:
        """What was pushed. Raises `LeaseLost` if no item is held here."""
        return self.target.value

    @property
    def token(self) -> int:
        """The fencing token: it rises from holder to holder of an item. Raises `LeaseLost`."""
        return self.target.token

    @property
    def guard(self) -> Compare:
        """What a transaction compares so that it is done only while the item is held here. Raises `LeaseLost`."""
        return self.target.guard

    check = blocking(recipes.Taken.check)
    done = blocking(recipes.Taken.done)
    release = blocking(recipes.Taken.release)


class LockingQueueFace(Face):
    """First in, first out, and nothing is lost (see `pyraftkv.recipes.LockingQueue`)."""

    push = blocking(recipes.LockingQueue.push)
    count = blocking(recipes.LockingQueue.count)
    held = blocking(recipes.LockingQueue.held)

    def take(self, *, timeout: float | None = None, session: SessionFace | None = None) -> Taken:
        """Return the next item, to be entered."""
        under = None if session is None else session.target
        return Taken(self.portal.call(lambda: self.target.take(timeout=timeout, session=under)), self.portal)


class Presence(Entered):
    """A key that is there while the block runs (see `pyraftkv.recipes.Presence`)."""

    @property
    def id(self) -> str:
        """Of this one, once it is entered."""
        found: str = self.target.id
        return found

    update = blocking(recipes.Presence.update)
    check = blocking(recipes.Presence.check)


class PartyFace(Face):
    """Who takes part (see `pyraftkv.recipes.Party`)."""

    join = making(recipes.Party.join, Presence)
    members = blocking(recipes.Party.members)
    watch = iterating(recipes.Party.watch)


class Registration(Presence):
    """An instance while its block runs (see `pyraftkv.recipes.Registration`)."""

    drain = blocking(recipes.Registration.drain)
    recover = blocking(recipes.Registration.recover)
    describe = blocking(recipes.Registration.describe)


class Service(Face, Sequence[Instance]):
    """The healthy instances of a service: a sequence, and a context manager (see `pyraftkv.recipes.Service`)."""

    target: recipes.Service

    @property
    def instances(self) -> list[Instance]:
        """Those that are to be asked, the longest there first."""
        return self.portal.call(lambda: self.target.instances)

    def pick(self, key: str = "") -> Instance:
        """Return the instance whose turn it is; with ``key``, the same one for the same key. Raises `NoInstance`."""
        return self.portal.call(lambda: self.target.pick(key))

    changes = iterating(recipes.Service.changes)
    close = blocking(recipes.Service.close)

    def __len__(self) -> int:
        return len(self.instances)

    @overload
    def __getitem__(self, at: int) -> Instance: ...

    @overload
    def __getitem__(self, at: slice) -> list[Instance]: ...

    def __getitem__(self, at: int | slice) -> Instance | list[Instance]:
        """Return one instance, or some of them."""
        return self.instances[at]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class RegistryFace(Face):
    """The services of a name (see `pyraftkv.recipes.Registry`)."""

    register = making(recipes.Registry.register, Registration)
    resolve = blocking(recipes.Registry.resolve)

    def watch(self, service: str, *, timeout: float | None = None) -> Service:
        """Return the instances of a service as a list that is kept current, to be closed. Raises as `KV.view`."""
        return Service(self.portal.run(lambda: self.target.watch(service, timeout=timeout)), self.portal)


class PartitionerFace(Entered):
    """A participant in what is shared out (see `pyraftkv.recipes.Partitioner`)."""

    target: recipes.Partitioner

    @property
    def mine(self) -> frozenset[str]:
        """The items that are this participant's."""
        return self.target.mine

    @property
    def state(self) -> PartitionState:
        """What it is at."""
        return self.target.state

    shares = iterating(recipes.Partitioner.shares)


class ConfigCenterFace(Entered):
    """A configuration (see `pyraftkv.recipes.ConfigCenter`)."""

    target: _config.ConfigCenter[Any]

    @property
    def value(self) -> Any:
        """The configuration, kept current while the block runs; the last good one."""
        return self.target.value

    @property
    def error(self) -> Exception | None:
        """Why what is stored is not given out, if it is not."""
        return self.target.error

    @property
    def revision(self) -> int:
        """The revision of which `value` is."""
        return self.target.revision

    def on_change(self, callback: Callable[[Any, Any], object]) -> None:
        """Call this, on the loop's thread, with the configuration before and after, whenever it has changed."""
        self.portal.call(lambda: self.target.on_change(callback))

    get = blocking(_Config.get)
    change = blocking(_Config.change)
    rollback = blocking(_Config.rollback)
    at_least = blocking(_Config.at_least)
    history = iterating(_Config.history)


Session = _of(recipes.Session, SessionFace)
Lock = _of(recipes.Lock, Holding)
ReadLock = _of(recipes.ReadLock, Holding)
WriteLock = _of(recipes.WriteLock, Holding)
RWLock = _of(recipes.RWLock, RWLockFace)
Semaphore = _of(recipes.Semaphore, Holding)
Barrier = _of(recipes.Barrier, BarrierFace)
DoubleBarrier = _of(recipes.DoubleBarrier, Entered)
Election = _of(recipes.Election, ElectionFace)
RateLimiter = _of(recipes.RateLimiter, RateLimiterFace)
Counter = _of(recipes.Counter, CounterFace)
Queue = _of(recipes.Queue, QueueFace)
PriorityQueue = _of(recipes.PriorityQueue, PriorityQueueFace)
LockingQueue = _of(recipes.LockingQueue, LockingQueueFace)
Party = _of(recipes.Party, PartyFace)
Registry = _of(recipes.Registry, RegistryFace)
Partitioner = _of(recipes.Partitioner, PartitionerFace)
ConfigCenter = _of(recipes.ConfigCenter, ConfigCenterFace)


def singleton(kv: KV, name: str, work: Callable[[Leadership], T], *, ttl: float = TTL_DEFAULT, value: Bytes = b"") -> T:
    """Run ``work`` in one program at a time, and return what it returns (see `pyraftkv.recipes.singleton`).

    It is not cancelled when the leadership is lost: let it ask `check`. What it returns then does not count.
    """
    while True:
        try:
            with Election(kv, name, ttl=ttl).campaign(value) as leadership:
                return work(leadership)
        except LeaseLost:
            continue


def leader_only(
    kv: KV,
    name: str,
    work: Callable[[Leadership], object],
    *,
    every: float,
    ttl: float = TTL_DEFAULT,
    value: Bytes = b"",
) -> None:
    """Call ``work`` every so many seconds in one program at a time, for ever (see `pyraftkv.recipes.leader_only`).

    Whether it leads is asked before every call.
    """

    def pause(seconds: float) -> None:
        kv.portal.run(lambda: asyncio.sleep(seconds))

    def repeat(leadership: Leadership) -> None:
        while True:
            leadership.check()
            due = time.monotonic() + every
            work(leadership)
            pause(max(0.0, due - time.monotonic()))

    while True:
        try:
            singleton(kv, name, repeat, ttl=ttl, value=value)
        except Unavailable:
            pause(PAUSE_SECONDS)
