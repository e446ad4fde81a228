"""The `KV` protocol: one definition of what an application can ask, for every engine.

`Node`, `Client` and the client of an in-memory cluster are all `KV`; recipes are written against nothing else.
Keys and values are `str` (encoded as UTF-8) or `bytes`; results hold bytes. Options are keyword-only. `timeout` is
a wait in seconds; None means the engine's default (5 s). Every write may raise `NotApplied` or `MaybeApplied`; every
read may raise `Unavailable`.
"""

from __future__ import annotations

import asyncio
import builtins
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from dataclasses import field
from typing import Any, Literal, Protocol, Self, TypeVar

from pyraftkv._record import record
from pyraftkv.settings import Alarm, AlarmKind, CompactionMode, Settings
from pyraftkv.statemachine import Operated
from pyraftkv.store.commands import Compare, Operation, SortOrder, SortTarget
from pyraftkv.store.values import (
    Change,
    CompactResult,
    DeleteResult,
    Event,
    KeyValue,
    LeaseGranted,
    LeaseInfo,
    LeaseRevoked,
    PutResult,
    RangeResult,
    TxnResult,
    WatchBatch,
)

Consistency = Literal["linearizable", "lease", "local"]
Bytes = str | bytes
T = TypeVar("T")


@record
class PeerStatus:
    """How a leader sees one peer, or how the transport does."""

    id: int
    name: str
    address: str
    connected: bool
    match: int = 0
    """The last index known to be stored there (leader only)."""
    state: str = ""
    """"probe", "replicate" or "snapshot" (leader only)."""


@record
class Status:
    """One member's view of itself and of its cluster (etcd, `StatusResponse`, and more)."""

    name: str
    member_id: int
    cluster_id: int
    role: str
    """"leader", "follower", "learner", "witness", "candidate", "pre-candidate" or "starting"."""
    leader: int
    """The leader's member id; 0 when none is known."""
    leader_name: str
    term: int
    commit_index: int
    applied_index: int
    last_index: int
    saved_index: int
    revision: int
    compact_revision: int
    db_size_bytes: int
    keys: int
    has_quorum: bool
    """Whether the member hears from a quorum: a leader by its CheckQuorum, a follower by its leader's heartbeats."""
    storage: str
    version: str
    peers: list[PeerStatus] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    """What is wrong: the cluster's alarms in etcdctl's words, then what is wrong with this member alone."""
    db_in_use_bytes: int = 0
    """Of `db_size_bytes`, what the keys that exist take; the rest is history, which goes with compaction."""
    quota_bytes: int = 0
    """What the store and its machines may hold before writes are refused; 0: anything."""
    machines_size_bytes: int = 0
    """What state machines of the program's hold, about: it counts towards the quota as `db_size_bytes` does."""
    slow_saves: int = 0
    """Saves since the start that its disk took longer than a second for."""


@record
class Member:
    """One member of the cluster (etcd, `Member`)."""

    id: int
    """Never used again, whatever becomes of the member."""
    name: str
    address: str
    role: str
    """"voter", "learner" or "witness"."""
    is_leader: bool
    """Whether it leads, as far as the member knows that answered."""
    priority: int
    """A leader hands over to a member with a higher one."""


class Members(Protocol):
    """Who the members are, and changing it. A `member` is named by its id or by its name.

    Every change may raise `MemberNotFound`, `InvalidRequest`, `QuorumAtRisk`, `Unavailable`, `MaybeApplied`. One change
    is under way at a time; another one waits for its turn.
    """

    async def list(self, *, timeout: float | None = None) -> list[Member]:
        """Return the members, by id, as of now (linearizable). Raises `Unavailable`."""
        ...

    async def add(
        self,
        name: str,
        address: str,
        *,
        learner: bool = True,
        witness: bool = False,
        incarnation: int = 0,
        timeout: float | None = None,
    ) -> Member:
        """Take in a member, as a learner that receives everything and has no vote. Raises `MemberExists`.

        It may be started afterwards, with `join=`. A voter (`learner=False`) counts before it has anything. A witness
        votes and keeps no keys, for life.
        """
        ...

    async def promote(self, member: int | str, *, timeout: float | None = None) -> None:
        """Let a learner vote, once it has caught up. Raises `LearnerNotReady` before."""
        ...

    async def demote(self, member: int | str, *, timeout: float | None = None) -> None:
        """Make a voter a learner."""
        ...

    async def remove(self, member: int | str, *, force: bool = False, timeout: float | None = None) -> None:
        """Take a member out, for ever; a leader hands over first.

        `force` does it even if too few active voters would be left to decide anything.
        """
        ...

    async def update(
        self,
        member: int | str,
        *,
        name: str | None = None,
        address: str | None = None,
        priority: int | None = None,
        timeout: float | None = None,
    ) -> None:
        """Say something else of a member. Raises `MemberExists` if that is said of another one."""
        ...

    async def replace(
        self,
        member: int | str,
        *,
        name: str | None = None,
        address: str | None = None,
        incarnation: int = 0,
        timeout: float | None = None,
    ) -> Member:
        """Take a member out and another one in, in one step; by default with its name and address.

        For a member whose disk is gone: start it with an empty directory and `join=` afterwards.
        """
        ...


class ClusterSettings(Protocol):
    """What the whole cluster is set to, and changing it (see `Settings`)."""

    async def get(self, *, timeout: float | None = None) -> Settings:
        """Return the settings, as of now (linearizable). Raises `Unavailable`."""
        ...

    async def change(
        self,
        *,
        quota_bytes: int | None = None,
        lease_ttl_seconds_min: int | None = None,
        compaction_mode: CompactionMode | None = None,
        compaction_seconds: int | None = None,
        compaction_revisions: int | None = None,
        lease_reads: bool | None = None,
        if_version: int | None = None,
        timeout: float | None = None,
    ) -> Settings:
        """Set what is given, all of it or nothing, and return the settings after it.

        With `if_version`, only if they were changed exactly so often: `SettingsChanged` otherwise.
        """
        ...


class Lease(Protocol):
    """A lease that is renewed for as long as its block runs; an async context manager.

    Where the block ends, `LeaseLost` is raised if it was lost meanwhile and nothing else went wrong.
    """

    id: int
    """For ``put(..., lease=lease.id)``."""
    ttl: int
    """Seconds for which it was granted."""
    lost: asyncio.Event
    """Set when the lease is gone, or may be: what was held under it may be somebody else's."""

    def check(self) -> None:
        """Raise `LeaseLost` if the lease is gone, or may be, by the clock at this moment."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...


class Leases(Protocol):
    """Leases one by one: keys put under one vanish with it. `KV.lease` holds one by itself."""

    async def grant(self, ttl: float, *, id: int = 0, timeout: float | None = None) -> LeaseGranted:
        """Grant a lease for `ttl` seconds, or the least there is; under `id`, or at random. Raises `LeaseExists`."""
        ...

    async def revoke(self, lease: int, *, timeout: float | None = None) -> LeaseRevoked:
        """End a lease, and delete its keys in one revision. Raises `LeaseNotFound`."""
        ...

    async def keep_alive(self, lease: int, *, timeout: float | None = None) -> int:
        """Renew a lease; return for how many seconds. Raises `LeaseNotFound`, `Unavailable`."""
        ...

    async def time_to_live(self, lease: int, *, keys: bool = False, timeout: float | None = None) -> LeaseInfo:
        """Return what is left of a lease, and with `keys` what hangs on it; a `ttl` of -1 says that there is none."""
        ...

    async def list(self, *, timeout: float | None = None) -> list[int]:
        """Return the ids of all leases, as of now (linearizable)."""
        ...


class Alarms(Protocol):
    """What is wrong with the cluster: alarms that every member knows of, and that writes are refused for."""

    async def list(self, *, timeout: float | None = None) -> list[Alarm]:
        """Return what is wrong, as of now (linearizable). Raises `Unavailable`."""
        ...

    async def disarm(
        self, kind: AlarmKind = AlarmKind.NONE, member: int = 0, *, timeout: float | None = None
    ) -> builtins.list[Alarm]:
        """Clear alarms, by default all of them; return those that there were. What still is wrong is raised again."""
        ...


class Machine(Protocol):
    """A state machine of the cluster, as its callers see it (see `statemachine`)."""

    @property
    def name(self) -> str:
        """What it is called in ``machines=``."""
        ...

    async def version(self, *, timeout: float | None = None) -> int:
        """Return the newest version of operations that all members know, and use it from now on."""
        ...

    async def call(self, operation: str, *args: Any, version: int = 0, timeout: float | None = None) -> Any:
        """Apply an operation, exactly once; return its result. Raises `OperationRefused` with what it raised."""
        ...

    async def apply(self, payload: bytes, *, version: int = 0, timeout: float | None = None) -> Operated:
        """As `call`, for a machine that takes bytes; return its result with the store's revision at that time."""
        ...

    async def query(
        self, query: str, *args: Any, consistency: Consistency = "linearizable", timeout: float | None = None
    ) -> Any:
        """Ask a question, and return the answer. Raises `OperationRefused`."""
        ...

    async def ask(
        self, payload: bytes, *, consistency: Consistency = "linearizable", timeout: float | None = None
    ) -> Operated:
        """As `query`, for a machine that takes bytes."""
        ...


class Watch(Protocol):
    """A running watch: an async context manager, and an async iterator over events.

    Events arrive in revision order, each once, with no gap. Ends with `WatchCancelled` when it cannot go on.
    """

    @property
    def revision(self) -> int:
        """Everything up to this revision has been handed out."""
        ...

    async def synced(self, *, timeout: float | None = None) -> int:
        """Wait until the watch is in place and history up to the present is delivered; return that revision."""
        ...

    def batches(self) -> AsyncIterator[WatchBatch]:
        """Iterate over batches of whole revisions instead of single events."""
        ...

    def __aiter__(self) -> AsyncIterator[Event]: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...

    async def close(self) -> None: ...


class TxnBuilder(Protocol):
    """Collects a transaction: ``await kv.txn().when(...).then(...).otherwise(...)``; every part is optional."""

    def when(self, *compares: Compare) -> Self: ...

    def then(self, *operations: Operation) -> Self: ...

    def otherwise(self, *operations: Operation) -> Self: ...

    async def commit(self, *, timeout: float | None = None) -> TxnResult: ...

    def __await__(self) -> Generator[Any, None, TxnResult]: ...


class Stm(Protocol):
    """One attempt of the function given to `KV.transact`: what it reads, and what it is going to write."""

    @property
    def revision(self) -> int:
        """The revision that everything was read at, 0 before the first read; once it is done, the one it made."""
        ...

    async def get(self, key: Bytes) -> KeyValue | None:
        """Return the key's value, or what this attempt has put there: that has no revisions yet, but zeros."""
        ...

    async def range(
        self, start: Bytes = b"", end: Bytes | None = None, *, prefix: Bytes | None = None
    ) -> list[KeyValue]:
        """Return the range as `get` would find its keys, in their order.

        Raises `RequestTooLarge` for more keys than one transaction can compare.
        """
        ...

    def put(self, key: Bytes, value: Bytes, *, lease: int = 0) -> None:
        """Set the key when the attempt is committed."""
        ...

    def delete(self, key: Bytes) -> None:
        """Delete the key when the attempt is committed."""
        ...


class View(Mapping[bytes, KeyValue], ABC):
    """A part of the store as a mapping that is kept current: from keys, in their order, to key-values.

    What it shows is what the store held at `revision`. It is an async context manager; when it has ended it stays as
    it was. Keys may be asked for as text, too.
    """

    @abstractmethod
    def __getitem__(self, key: Bytes) -> KeyValue: ...

    @property
    @abstractmethod
    def revision(self) -> int:
        """The revision of which everything is shown. Never falls."""

    @property
    @abstractmethod
    def is_live(self) -> bool:
        """Whether it is still kept current: its engine runs, and it has no more keys than it may have."""

    @abstractmethod
    async def at_least(self, revision: int, *, timeout: float | None = None) -> int:
        """Wait until everything up to `revision` is shown, what the caller has just written, say; return `revision`.

        Raises `TimeoutError`, and what has ended the view.
        """

    @abstractmethod
    async def wait(self, predicate: Callable[[View], T], *, timeout: float | None = None) -> T:
        """Wait until `predicate` is true of the view, and return what it returned. It is called after every change.

        Raises `TimeoutError`, and what has ended the view.
        """

    @abstractmethod
    def changes(self) -> AsyncIterator[Change]:
        """Iterate over what changes after the iteration has begun.

        A slow reader gets one change for each key, from what it knew to what there is. Raises what ends the view.
        """

    @abstractmethod
    async def close(self) -> None:
        """Stop; whoever waits gets `Closed`. Idempotent."""

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(self, *exc: object) -> None: ...


class Readable(Protocol):
    """What can be read: the store, or the store as it was (`KV.at`)."""

    async def get(
        self,
        key: Bytes,
        *,
        revision: int = 0,
        consistency: Consistency = "linearizable",
        at_least: int = 0,
        timeout: float | None = None,
    ) -> KeyValue | None:
        """Return the key's value, or None. Raises `Compacted`, `FutureRevision`, `Unavailable`.

        With `at_least`, the member that answers waits until it has that revision: `ReadTimeout` if it does not get it.
        """
        ...

    async def range(
        self,
        start: Bytes = b"",
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        revision: int = 0,
        limit: int = 0,
        sort: SortTarget = SortTarget.KEY,
        order: SortOrder = SortOrder.NONE,
        keys_only: bool = False,
        count_only: bool = False,
        min_mod_revision: int = 0,
        max_mod_revision: int = 0,
        min_create_revision: int = 0,
        max_create_revision: int = 0,
        consistency: Consistency = "linearizable",
        at_least: int = 0,
        timeout: float | None = None,
    ) -> RangeResult:
        """Read `[start, end)`, every key from `start` on when `end` is None, or every key with `prefix`.

        Of these, `min_mod_revision` and the like leave out what was changed, or created, earlier or later (0: nothing);
        `count` counts it all the same. They and `sort` come before `limit`. `keys_only` leaves out values and leases.
        `at_least` is as for `get`.
        """
        ...

    def scan(
        self,
        start: Bytes = b"",
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        revision: int = 0,
        page: int = 1000,
        consistency: Consistency = "linearizable",
    ) -> AsyncIterator[KeyValue]:
        """Iterate over a range of any size, page by page, all at one revision."""
        ...


class KV(Readable, Protocol):
    """The store as an application sees it."""

    async def put(
        self,
        key: Bytes,
        value: Bytes,
        *,
        lease: int = 0,
        prev_kv: bool = False,
        ignore_value: bool = False,
        ignore_lease: bool = False,
        if_revision: int | None = None,
        timeout: float | None = None,
    ) -> PutResult:
        """Set the key. With `if_revision`, only if its mod_revision is that (0: it does not exist).

        With `ignore_value` (and an empty value), or `ignore_lease` (and no lease), it keeps that; it must exist.

        Raises `RevisionMismatch`, `KeyNotFound`, `InvalidRequest`, `Unavailable`, `MaybeApplied`.
        """
        ...

    async def create(self, key: Bytes, value: Bytes, *, lease: int = 0, timeout: float | None = None) -> PutResult:
        """Set the key if it does not exist. Raises `KeyExists`."""
        ...

    async def delete(
        self,
        key: Bytes | None = None,
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        prev_kv: bool = False,
        if_revision: int | None = None,
        timeout: float | None = None,
    ) -> DeleteResult:
        """Delete one key, `[key, end)`, or every key with `prefix`."""
        ...

    def txn(self) -> TxnBuilder:
        """Begin a transaction: ``await kv.txn().when(...).then(...).otherwise(...)``."""
        ...

    async def transact(self, work: Callable[[Stm], Awaitable[T]], *, timeout: float | None = None) -> T:
        """Call `work` until what it read and wrote can be done as one transaction; return what it returned.

        Raises `Contended` after `timeout`, `NotApplied`, `MaybeApplied`, and what `work` raises: nothing was written.
        """
        ...

    async def compact(self, revision: int, *, physical: bool = False, timeout: float | None = None) -> CompactResult:
        """Forget history before `revision`. Raises `Compacted`, `FutureRevision`.

        With `physical`, wait, too, until the member that answers has won back the space.
        """
        ...

    def watch(
        self,
        key: Bytes | None = None,
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        start_revision: int = 0,
        prev_kv: bool = False,
        no_put: bool = False,
        no_delete: bool = False,
    ) -> Watch:
        """Watch one key, `[key, end)` or a prefix; from now on, or from `start_revision` (1: all history)."""
        ...

    async def get_and_watch(
        self,
        key: Bytes | None = None,
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        prev_kv: bool = False,
        timeout: float | None = None,
    ) -> tuple[RangeResult, Watch]:
        """Read a key or a range, and watch it from the very next revision on: nothing is missed, nothing comes twice.

        Raises `Compacted` if that revision was compacted meanwhile.
        """
        ...

    async def view(
        self,
        key: Bytes | None = None,
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        keys_max: int = 100_000,
        timeout: float | None = None,
    ) -> View:
        """Return one key, `[key, end)` or a prefix as a mapping that is kept current, to be closed.

        Raises `RequestTooLarge` for more than `keys_max` keys, and what a read may raise.
        """
        ...

    def at(self, revision: int) -> Readable:
        """Return the store as it was at `revision`, to be read."""
        ...

    def history(
        self,
        key: Bytes,
        *,
        min_revision: int = 0,
        max_revision: int = 0,
        newest_first: bool = False,
        page: int = 1000,
        consistency: Consistency = "linearizable",
        timeout: float | None = None,
    ) -> AsyncIterator[Event]:
        """Iterate over every version of a key that is kept; where it was deleted, there is a DELETE.

        Kept is what is not compacted, and of what is older the version that was there when that begins. Raises
        `Compacted`, `FutureRevision`.
        """
        ...

    def diff(
        self,
        older: int,
        newer: int = 0,
        *,
        start: Bytes = b"",
        end: Bytes | None = None,
        prefix: Bytes | None = None,
        page: int = 1000,
        consistency: Consistency = "linearizable",
        timeout: float | None = None,
    ) -> AsyncIterator[Change]:
        """Iterate over the keys that are not at revision `newer` (0: now) what they were at `older`.

        A key comes once, in the order of the last changes. Raises `Compacted`, `FutureRevision`.
        """
        ...

    def machine(self, name: str) -> Machine:
        """Return a state machine of the cluster, to be called. Raises `InvalidRequest`: no machine is called so."""
        ...

    def namespace(self, prefix: Bytes) -> KV:
        """Return the keys with `prefix` as a store of their own, named by the rest. For order, not for security."""
        ...

    @property
    def members(self) -> Members:
        """Who the members are, and changing it."""
        ...

    def lease(self, *, ttl: float, id: int = 0, timeout: float | None = None) -> Lease:
        """Return a lease to be held: ``async with kv.lease(ttl=10) as lease: await kv.put(k, v, lease=lease.id)``.

        Granted when the block is entered (or `id` is held on to), renewed while it runs, revoked at its end.
        """
        ...

    @property
    def leases(self) -> Leases:
        """Granting, renewing and revoking leases by hand."""
        ...

    @property
    def settings(self) -> ClusterSettings:
        """What the cluster is set to, and changing it."""
        ...

    @property
    def alarms(self) -> Alarms:
        """What is wrong with the cluster."""
        ...

    async def status(self, *, timeout: float | None = None) -> Status:
        """Return the view of one member: this one, or the one that this client is connected to."""
        ...
