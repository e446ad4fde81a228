"""The blocking faces of the store, of what stands beside it, and of those who have it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Self, TypeVar

from pyraftkv import errors, kv
from pyraftkv.administration import AlarmsFace, SettingsFace
from pyraftkv.client import Client as AsyncClient
from pyraftkv.cluster import Cluster as AsyncCluster
from pyraftkv.engine import Engine
from pyraftkv.engine import Txn as AsyncTxn
from pyraftkv.futures import shared
from pyraftkv.given import seconds
from pyraftkv.kv import Bytes
from pyraftkv.leases import HeldLease, LeasesFace
from pyraftkv.members import MembersFace
from pyraftkv.node import Node as AsyncNode
from pyraftkv.node import NodeConfig
from pyraftkv.operating import MachineFace
from pyraftkv.reading import Reader
from pyraftkv.statemachine import Factories
from pyraftkv.store.commands import Compare, Operation
from pyraftkv.store.values import Event, KeyValue, RangeResult, WatchBatch
from pyraftkv.sync.bridge import AT_ONCE_MAX, Entered, Face, Iteration, blocking, iterating, making
from pyraftkv.sync.portal import Portal, refuse_in_loop
from pyraftkv.views import VIEW_KEYS_MAX

T = TypeVar("T")


class Watch(Face):
    """A running watch: a context manager, and an iterator over events (see `pyraftkv.kv.Watch`)."""

    target: kv.Watch

    def __init__(self, target: kv.Watch, portal: Portal) -> None:
        super().__init__(target, portal)
        self._batches: Iteration[WatchBatch] | None = None
        self._is_closed = False

    @property
    def revision(self) -> int:
        """Everything up to this revision has been handed out."""
        return self.target.revision

    synced = blocking(kv.Watch.synced)

    def batches(self) -> Iteration[WatchBatch]:
        """Iterate over batches of whole revisions instead of single events; its `next` takes a ``timeout=``."""
        if self._batches is None:
            self._batches = Iteration(self.target.batches(), self.portal)
        return self._batches

    def __iter__(self) -> Iterator[Event]:
        try:
            for batch in self.batches():
                yield from batch.events
        except errors.Closed:
            if not self._is_closed:
                raise

    def close(self) -> None:
        """Stop watching: whoever iterates over events is at the end. From any thread. Idempotent."""
        self._is_closed = True
        self.portal.run(self.target.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Txn(Face):
    """Collects a transaction: ``kv.txn().when(...).then(...).otherwise(...).commit()``."""

    target: AsyncTxn

    def when(self, *compares: Compare) -> Self:
        """Add comparisons: all must hold."""
        self.target.when(*compares)
        return self

    def then(self, *operations: Operation) -> Self:
        """Add what is done if they hold."""
        self.target.then(*operations)
        return self

    def otherwise(self, *operations: Operation) -> Self:
        """Add what is done if not."""
        self.target.otherwise(*operations)
        return self

    commit = blocking(AsyncTxn.commit)


class Stm(Face):
    """One attempt of the function given to `KV.transact` (see `pyraftkv.kv.Stm`)."""

    target: kv.Stm

    @property
    def revision(self) -> int:
        """The revision that everything was read at; once it is done, the one it made."""
        return self.target.revision

    get = blocking(kv.Stm.get)
    range = blocking(kv.Stm.range)

    def put(self, key: Bytes, value: Bytes, *, lease: int = 0) -> None:
        """Set the key when the attempt is committed."""
        self.target.put(key, value, lease=lease)

    def delete(self, key: Bytes) -> None:
        """Delete the key when the attempt is committed."""
        self.target.delete(key)


class View(Face, Mapping[bytes, KeyValue]):
    """A part of the store as a mapping that is kept current: a context manager (see `pyraftkv.kv.View`)."""

    target: kv.View

    def __getitem__(self, key: Bytes) -> KeyValue:
        return self.target[key]

    def __len__(self) -> int:
        return len(self.target)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.portal.call(lambda: list(self.target)))  # all of one revision, whatever comes meanwhile

    @property
    def revision(self) -> int:
        """The revision of which everything is shown. Never falls."""
        return self.target.revision

    @property
    def is_live(self) -> bool:
        """Whether it is still kept current."""
        return self.target.is_live

    at_least = blocking(kv.View.at_least)
    changes = iterating(kv.View.changes)
    close = blocking(kv.View.close)

    def wait(self, predicate: Callable[[kv.View], T], *, timeout: float | None = None) -> T:
        """Wait until ``predicate`` is true of the view, and return what it returned; it is called on the loop's thread.

        Raises `TimeoutError`, and what has ended the view.
        """
        return self.portal.run(lambda: self.target.wait(predicate, timeout=timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Lease(Entered):
    """A lease that is renewed for as long as its block runs: a context manager (see `pyraftkv.kv.Lease`).

    No block of a thread can be cancelled: ask `check` before every step that must not be taken without the lease.
    """

    target: HeldLease

    @property
    def id(self) -> int:
        """Of the lease: for ``put(..., lease=lease.id)``."""
        return self.target.id

    @property
    def ttl(self) -> int:
        """Seconds for which it was granted."""
        return self.target.ttl

    @property
    def is_lost(self) -> bool:
        """Whether the lease is gone, or may be."""
        return self.target.lost.is_set()

    def check(self) -> None:
        """Raise `LeaseLost` if the lease is gone, or may be, by the clock at this moment."""
        self.portal.call(self.target.check)


class Leases(Face):
    """Leases one by one (see `pyraftkv.kv.Leases`)."""

    grant = blocking(LeasesFace.grant)
    revoke = blocking(LeasesFace.revoke)
    keep_alive = blocking(LeasesFace.keep_alive)
    time_to_live = blocking(LeasesFace.time_to_live)
    list = blocking(LeasesFace.list)


class Machine(Face):
    """One state machine of the cluster (see `pyraftkv.kv.Machine`)."""

    target: kv.Machine

    @property
    def name(self) -> str:
        """What it is called in ``machines=``."""
        return self.target.name

    version = blocking(MachineFace.version)
    call = blocking(MachineFace.call)
    apply = blocking(MachineFace.apply)
    query = blocking(MachineFace.query)
    ask = blocking(MachineFace.ask)


class Members(Face):
    """Who the members are, and changing it (see `pyraftkv.kv.Members`)."""

    list = blocking(MembersFace.list)
    add = blocking(MembersFace.add)
    promote = blocking(MembersFace.promote)
    demote = blocking(MembersFace.demote)
    remove = blocking(MembersFace.remove)
    update = blocking(MembersFace.update)
    replace = blocking(MembersFace.replace)
    change = blocking(MembersFace.change)
    leave_joint = blocking(MembersFace.leave_joint)


class ClusterSettings(Face):
    """What the whole cluster is set to (see `pyraftkv.kv.ClusterSettings`)."""

    get = blocking(SettingsFace.get)
    change = blocking(SettingsFace.change)


class Alarms(Face):
    """What is wrong with the cluster (see `pyraftkv.kv.Alarms`)."""

    list = blocking(AlarmsFace.list)
    disarm = blocking(AlarmsFace.disarm)


class Readable(Face):
    """What can be read: the store, or the store as it was."""

    get = blocking(Reader.get)
    range = blocking(Reader.range)
    scan = iterating(Reader.scan, at_once=AT_ONCE_MAX)


class KV(Readable):
    """The store: the same names as `pyraftkv.KV`, blocking, from any thread."""

    put = blocking(Engine.put)
    create = blocking(Engine.create)
    delete = blocking(Engine.delete)
    compact = blocking(Engine.compact)
    txn = making(Engine.txn, Txn)
    watch = making(Engine.watch, Watch)
    at = making(Engine.at, Readable)
    history = iterating(Engine.history, at_once=AT_ONCE_MAX)
    diff = iterating(Engine.diff, at_once=AT_ONCE_MAX)

    lease = making(Engine.lease, Lease)
    machine = making(Engine.machine, Machine)

    def transact(self, work: Callable[[Stm], T], *, timeout: float | None = None) -> T:
        """Call ``work`` until what it read and wrote can be done as one transaction; return what it returned.

        It runs in another thread, and may be called many times (see `pyraftkv.KV.transact`).
        """

        async def in_thread(attempt: kv.Stm) -> T:
            result = await asyncio.to_thread(work, Stm(attempt, self.portal))
            if isinstance(result, Coroutine):
                result.close()
                raise errors.InvalidRequest("a transaction of a thread is a plain function: nobody awaits it here")
            return result

        engine: Engine = self.target
        return self.portal.run(lambda: engine.transact(in_thread, timeout=timeout))

    def get_and_watch(
        self,
        key: Bytes | None = None,
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        prev_kv: bool = False,
        timeout: float | None = None,
    ) -> tuple[RangeResult, Watch]:
        """Read a key or a range, and watch it from the very next revision on: no gap, and nothing twice."""
        found, watch = self.portal.run(
            lambda: self.target.get_and_watch(key, end, prefix=prefix, prev_kv=prev_kv, timeout=timeout)
        )
        return found, Watch(watch, self.portal)

    def view(
        self,
        key: Bytes | None = None,
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        keys_max: int = VIEW_KEYS_MAX,
        timeout: float | None = None,
    ) -> View:
        """Return one key, `[key, end)` or a prefix as a mapping that is kept current, to be closed."""
        view = self.portal.run(lambda: self.target.view(key, end, prefix=prefix, keys_max=keys_max, timeout=timeout))
        return View(view, self.portal)

    def namespace(self, prefix: Bytes) -> KV:
        """Return the keys with ``prefix`` as a store of their own, named by the rest."""
        return KV(self.portal.call(lambda: self.target.namespace(prefix)), self.portal)

    @property
    def members(self) -> Members:
        """Who the members are, and changing it."""
        return Members(self.target.members, self.portal)

    @property
    def leases(self) -> Leases:
        """Granting, renewing and revoking leases by hand."""
        return Leases(self.target.leases, self.portal)

    @property
    def settings(self) -> ClusterSettings:
        """What the whole cluster is set to."""
        return ClusterSettings(self.target.settings, self.portal)

    @property
    def alarms(self) -> Alarms:
        """What is wrong with the cluster."""
        return Alarms(self.target.alarms, self.portal)

    status = blocking(Engine.status)
    snapshot = blocking(Engine.snapshot)


class Node(KV):
    """A member of the cluster (see `pyraftkv.Node`)."""

    @property
    def _node(self) -> AsyncNode:
        node: AsyncNode = self.target
        return node

    @property
    def name(self) -> str:
        """This member's name."""
        return self._node.name

    @property
    def address(self) -> str:
        """Where this member is reached."""
        return self._node.address

    @property
    def is_leader(self) -> bool:
        """Whether this member leads, as far as it knows."""
        return self._node.is_leader

    @property
    def term(self) -> int:
        """The Raft term this member is in; 0 before it runs."""
        return self._node.term

    transfer_leadership = blocking(AsyncNode.transfer_leadership)
    take_snapshot = blocking(AsyncNode.take_snapshot)
    events = iterating(AsyncNode.events)

    def wait(self, *, timeout: float | None = None) -> None:
        """Wait until the member stops. Raises what it stopped with, if it did so by itself; `TimeoutError`."""
        stopped = self._node.failed
        if stopped is None:
            raise errors.Closed(f"{self.name} was not started")

        async def wait() -> None:
            async with asyncio.timeout(seconds(timeout)):
                await shared(stopped)

        self.portal.run(wait)


class Living(Face):
    """What runs from `start` to `close`, or while it is entered, in a thread of its own."""

    def __init__(self, target: AsyncNode | AsyncClient | AsyncCluster, name: str) -> None:
        self.target = target
        self._name = name
        self._is_over = False

    def __getattr__(self, name: str) -> Portal:
        if name == "portal":
            raise errors.Closed(f"{self!r} does not run: enter it with 'with', or call start()")
        raise AttributeError(name)

    def start(self) -> Self:
        """Run, as `pyraftkv` says of what this is the face of; return it. Raises `Closed` if it ran before."""
        if self._is_over or "portal" in vars(self):
            raise errors.Closed(f"{self!r} was started before: open it anew")
        self.portal = Portal(self._name)
        try:
            self.portal.run(self.target.__aenter__)
        except BaseException:
            self._end()
            raise
        return self

    def close(self) -> None:
        """Leave gracefully, and end the thread. Idempotent. Raises what a node stopped with before, by itself."""
        self.__exit__(None, None, None)

    def _end(self) -> None:
        self._is_over = True
        self.portal.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        if self._is_over or "portal" not in vars(self):
            return
        refuse_in_loop()  # or it would not be left, but torn down with its thread
        try:
            self.portal.run(lambda: self.target.__aexit__(*exc))
        finally:
            self._end()


class OpenNode(Living, Node):
    """A member of the cluster in a thread of its own; see `pyraftkv.sync.open`."""


class Client(Living, KV):
    """A client in a thread of its own; see `pyraftkv.sync.connect`."""

    transfer_leadership = blocking(AsyncClient.transfer_leadership)


class Cluster(Living):
    """Several real nodes in a thread, to try things and to test with (see `pyraftkv.Cluster`)."""

    target: AsyncCluster

    @classmethod
    def in_memory(
        cls,
        size: int = 3,
        *,
        config: NodeConfig | None = None,
        seed: int | None = None,
        witness: bool = False,
        machines: Factories | None = None,
    ) -> Self:
        """Make a cluster of ``size`` nodes; it starts when it is entered."""
        cluster = AsyncCluster.in_memory(size, config=config, seed=seed, witness=witness, machines=machines)
        return cls(cluster, "pyraftkv-cluster")

    client = making(AsyncCluster.client, KV)

    @property
    def nodes(self) -> dict[str, Node]:
        """The nodes that run, by name."""
        return {name: self._face(node) for name, node in self.target.nodes.items()}

    @property
    def leader(self) -> Node:
        """The running node that leads in the highest term. Raises `NoLeader`."""
        return self._face(self.target.leader)

    @property
    def followers(self) -> list[Node]:
        """The running nodes that do not lead."""
        return [self._face(node) for node in self.target.followers]

    def wait_for_leader(self, *, timeout: float = 10.0) -> Node:
        """Wait until somebody leads. Raises `TimeoutError`."""
        return self._face(self.portal.run(lambda: self.target.wait_for_leader(timeout=timeout)))

    def add(self, name: str = "", *, learner: bool = False, witness: bool = False, timeout: float = 30.0) -> Node:
        """Let another node join the running cluster, and wait until it votes (or is a learner); return it."""
        return self._face(
            self.portal.run(lambda: self.target.add(name, learner=learner, witness=witness, timeout=timeout))
        )

    def remove(self, node: Node | str, *, force: bool = False) -> None:
        """Take a node out of the cluster, for ever, and stop it. Raises `QuorumAtRisk` unless ``force``."""
        self.portal.run(lambda: self.target.remove(_name(node), force=force))

    def kill(self, node: Node | str) -> None:
        """Stop a node at once, as if its process had died. What it had saved stays, for `restart`."""
        self.portal.run(lambda: self.target.kill(_name(node)))

    def restart(self, node: Node | str) -> Node:
        """Start a killed node again from what it had saved; return what runs now."""
        return self._face(self.portal.run(lambda: self.target.restart(_name(node))))

    def _face(self, node: AsyncNode) -> Node:
        return Node(node, self.portal)


def _name(node: Node | str) -> str:
    return node if isinstance(node, str) else node.name
