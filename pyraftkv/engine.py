"""`Engine`: the whole `KV` protocol in terms of three things that differ: how to write, read and watch.

`Node` and `Client` inherit it, so a call means the same and is checked the same wherever it is made.
"""

from __future__ import annotations

import asyncio
import os
import threading
from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from pyraftkv import errors
from pyraftkv.administration import Administered
from pyraftkv.backup import SavedSnapshot, save
from pyraftkv.given import whole
from pyraftkv.keys import key_of, key_range, mod_revision_is, single_or_range, to_bytes
from pyraftkv.kv import Bytes, Consistency, Status, Stm, Watch
from pyraftkv.leases import Leasing
from pyraftkv.members import MembersFace
from pyraftkv.namespace import NamespaceWatch, Prefix
from pyraftkv.operating import MachineFace
from pyraftkv.protocol import MembersCommand, MembersResult, SnapshotPart
from pyraftkv.reading import SCAN_PAGE_DEFAULT, Pinned, Reader
from pyraftkv.settings import RulesCommand, RulesResult
from pyraftkv.statemachine import MachineQuery, Operate, Operated, complaint_of_machine
from pyraftkv.stm import transact
from pyraftkv.store.commands import (
    Command,
    Compact,
    Compare,
    DeleteRange,
    DiffQuery,
    LeaseQuery,
    LookQuery,
    Operation,
    PutKey,
    RangeQuery,
    Transaction,
    VersionsQuery,
)
from pyraftkv.store.values import (
    Change,
    CompactResult,
    DeleteResult,
    DiffResult,
    Event,
    KeyValue,
    LeaseAnswer,
    LookResult,
    PutResult,
    RangeResult,
    Result,
    TxnResult,
    VersionsResult,
)
from pyraftkv.views import VIEW_KEYS_MAX, LiveView

R = TypeVar("R", PutResult, DeleteResult)
T = TypeVar("T")

REQUEST_BYTES_MAX = 3 * 512 * 1024
"""The largest key and value (or transaction) in one request: 1.5 MiB, as etcd's default."""


NOT_STARTED = "does not run yet: enter it with 'async with', or call start()"
"""What is said of a node or a client that was made and never started."""


class Home:
    """The event loop in which a node or a client is started, and in which alone it may be called.

    1. A thread has a loop of its own and calls what another one started. 2. The call changes tables that the other
    thread is reading, and waits for a future that nobody wakes it up for.

    Or 1. a program runs one loop after the other, and calls in the second what it started in the first. 2. Nothing of
    the first one goes on, so nobody ever answers.
    """

    __slots__ = ("_loop", "_thread_id")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()

    def check(self) -> None:
        """Raise `WrongLoop` in another thread or loop. O(1); to ask for the running loop would be a system call."""
        if threading.get_ident() != self._thread_id or not self._loop.is_running():
            raise errors.WrongLoop(
                "this was started in another event loop, and can be called in that one alone: open one here, or use "
                "pyraftkv.sync, which every thread may call"
            )


class Txn:
    """Collects a transaction; see `KV.txn`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._compares: list[Compare] = []
        self._success: list[Operation] = []
        self._failure: list[Operation] = []

    def when(self, *compares: Compare) -> Txn:
        """Add comparisons: all must hold for `then` to be done."""
        self._compares += compares
        return self

    def then(self, *operations: Operation) -> Txn:
        """Add operations to do when every comparison holds."""
        self._success += operations
        return self

    def otherwise(self, *operations: Operation) -> Txn:
        """Add operations to do when one does not."""
        self._failure += operations
        return self

    async def commit(self, *, timeout: float | None = None) -> TxnResult:
        """Do it, atomically and at one revision. Raises `NotApplied`, `MaybeApplied`."""
        return await self._engine.commit(Transaction(self._compares, self._success, self._failure), timeout=timeout)

    def __await__(self) -> Generator[Any, None, TxnResult]:
        """Commit with the default deadline."""
        return self.commit().__await__()


class Engine(Reader, Administered, Leasing):
    """The `KV` protocol over what differs: its abstract methods."""

    @abstractmethod
    async def write(self, command: Command, timeout: float | None) -> Result:
        """Apply a command, exactly once. Raises `NotApplied`, `MaybeApplied`."""

    @abstractmethod
    def write_put(self, key: bytes, value: bytes, timeout: float | None) -> Awaitable[PutResult]:
        """Apply a put without options, exactly once, as `write` would: but puts made together travel together.

        Raises (at once or when awaited): `NotApplied`, `MaybeApplied`.
        """

    @abstractmethod
    async def look(self, query: LookQuery, consistency: Consistency, timeout: float | None) -> LookResult:
        """Answer a query of the past. Raises `Compacted`, `FutureRevision`, `InvalidRequest`, `Unavailable`."""

    @abstractmethod
    def watch_range(
        self, key: bytes, end: bytes, *, start_revision: int, prev_kv: bool, no_put: bool, no_delete: bool
    ) -> Watch:
        """Start a watch."""

    @abstractmethod
    async def change_members(self, command: MembersCommand, timeout: float | None) -> MembersResult:
        """Do a command on the members, exactly once. Raises `NotApplied`, `MaybeApplied`."""

    @abstractmethod
    async def member_table(self, timeout: float | None) -> MembersResult:
        """Return who the members are, as of now. Raises `Unavailable`."""

    @property
    def members(self) -> MembersFace:
        """Who the members are, and changing it (see `kv.Members`)."""
        return MembersFace(self)

    @abstractmethod
    def snapshot_parts(self, consistency: Consistency, timeout: float | None) -> AsyncGenerator[SnapshotPart]:
        """Yield the parts of a snapshot of everything, as of one revision. Raises `Unavailable`."""

    async def snapshot(
        self, path: str | os.PathLike[str], *, consistency: Consistency = "linearizable", timeout: float | None = None
    ) -> SavedSnapshot:
        """Save everything, as of one revision, to a file on this machine: for `restore_snapshot`.

        Writes go on meanwhile. Everything that was acknowledged before is in it. If the connection to the member that
        it comes from breaks, it is given up, and nothing is left.

        Args:
            path: Replaced in one step when all of it is durable, and is what was sent (SHA-256).
            consistency: "linearizable", or "local" for what the member has, which needs no quorum.
            timeout: In seconds, for a quorum to confirm, and for each part that a client asks for.

        Raises: `StorageError` if it cannot be written, `SnapshotCorruption` if it is not what was sent, `Unavailable`.
        """
        async with aclosing(self.snapshot_parts(consistency, timeout)) as parts:
            return await save(path, parts)

    @abstractmethod
    async def status(self, *, timeout: float | None = None) -> Status:
        """Return this member's view of itself and of the cluster."""

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

        Raises: `RevisionMismatch`, `KeyNotFound`, `InvalidRequest`, `Unavailable`, `MaybeApplied`.
        """
        raw, data = key_of(key), to_bytes(value)
        if len(raw) + len(data) > REQUEST_BYTES_MAX:
            raise errors.RequestTooLarge(f"key and value have {len(raw) + len(data)} bytes, over 1.5 MiB")
        if not (lease or prev_kv or ignore_value or ignore_lease) and if_revision is None:
            return await self.write_put(raw, data, timeout)
        command = PutKey(raw, data, lease, prev_kv, ignore_value, ignore_lease)
        if if_revision is not None:
            return await self._guarded(raw, command, if_revision, errors.RevisionMismatch, PutResult, timeout)
        result = await self.write(command, timeout)
        assert type(result) is PutResult
        return result

    async def create(self, key: Bytes, value: Bytes, *, lease: int = 0, timeout: float | None = None) -> PutResult:
        """Set the key if it does not exist. Raises `KeyExists`."""
        raw = key_of(key)
        command = PutKey(raw, to_bytes(value), lease)
        return await self._guarded(raw, command, 0, errors.KeyExists, PutResult, timeout)

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
        """Delete one key, `[key, end)`, or every key with `prefix`.

        Raises: `RevisionMismatch`, `InvalidRequest`, `Unavailable`, `MaybeApplied`.
        """
        first, last = single_or_range(key, end, prefix)
        command = DeleteRange(first, last, prev_kv)
        if if_revision is not None:
            if last:
                raise errors.InvalidRequest("if_revision= guards a single key")
            return await self._guarded(first, command, if_revision, errors.RevisionMismatch, DeleteResult, timeout)
        result = await self.write(command, timeout)
        assert isinstance(result, DeleteResult)
        return result

    def txn(self) -> Txn:
        """Begin a transaction: ``await kv.txn().when(...).then(...).otherwise(...)``."""
        return Txn(self)

    async def commit(self, transaction: Transaction, *, timeout: float | None = None) -> TxnResult:
        """Do a whole transaction. Raises `NotApplied`, `MaybeApplied`."""
        result = await self.write(transaction, timeout)
        assert isinstance(result, TxnResult)
        return result

    async def transact(self, work: Callable[[Stm], Awaitable[T]], *, timeout: float | None = None) -> T:
        """Call ``work`` until what it read and wrote can be done as one transaction; return what it returned.

        It may be called many times, so whatever else it does it does many times. What it raises ends it all, and
        nothing was written. See `stm`.

        Raises: `Contended` after ``timeout``, `NotApplied`, `MaybeApplied`.
        """
        return await transact(self, work, timeout=timeout)

    async def compact(self, revision: int, *, physical: bool = False, timeout: float | None = None) -> CompactResult:
        """Forget history before `revision`. Raises `Compacted`, `FutureRevision`.

        Args:
            revision: Nobody can read or watch below it any more.
            physical: Wait, too, until the member that answers has won back the space (`MaybeApplied` if it has not).
            timeout: In seconds, for the compaction, and then again for the space.
        """
        result = await self.write(Compact(whole(revision, "revision")), timeout)
        assert isinstance(result, CompactResult)
        if physical:
            try:
                await self.space_won_back(revision, timeout)
            except errors.Unavailable as error:
                text = (
                    f"history before revision {revision} is forgotten, but its space may not be won back yet: {error}"
                )
                raise errors.MaybeApplied(text) from None
        return result

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
        first, last = single_or_range(key, end, prefix)
        whole(start_revision, "start_revision", least=0)
        return self.watch_range(
            first, last, start_revision=start_revision, prev_kv=prev_kv, no_put=no_put, no_delete=no_delete
        )

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

        Returns:
            What is there, at `revision`, whatever its size (it is read in pages); and the watch, to be closed.

        Raises: `Compacted` if that revision was compacted meanwhile; what a read and a watch may raise.
        """
        first, last = single_or_range(key, end, prefix)
        return await self.read_and_watch(first, last, prev_kv=prev_kv, timeout=timeout)

    async def read_and_watch(
        self, first: bytes, last: bytes, *, prev_kv: bool, timeout: float | None
    ) -> tuple[RangeResult, Watch]:
        """Read etcd's `[first, last)`, and watch it; see `get_and_watch`."""
        kvs: list[KeyValue] = []
        revision = 0
        query = RangeQuery(first, last, limit=SCAN_PAGE_DEFAULT)
        async with aclosing(self.pages(query, "linearizable", timeout)) as pages:
            async for result in pages:
                revision = revision or result.revision
                kvs += result.kvs
        watch = self.watch_range(
            first, last, start_revision=revision + 1, prev_kv=prev_kv, no_put=False, no_delete=False
        )
        return RangeResult(revision, kvs, more=False, count=len(kvs)), watch

    async def view(
        self,
        key: Bytes | None = None,
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        keys_max: int = VIEW_KEYS_MAX,
        timeout: float | None = None,
    ) -> LiveView:
        """Return one key, `[key, end)` or a prefix as a mapping that is kept current, to be closed. See `views`.

        Raises: `RequestTooLarge` for more than ``keys_max`` keys; what a read and a watch may raise.
        """
        first, last = single_or_range(key, end, prefix)
        return await LiveView.open(self, first, last, keys_max=whole(keys_max, "keys_max", least=0), timeout=timeout)

    async def operate(self, command: Operate, timeout: float | None) -> Operated:  # noqa: ARG002
        """Apply an operation to a machine, exactly once. Raises `OperationRefused`, `NotApplied`, `MaybeApplied`."""
        raise errors.InvalidRequest(f"there are no machines here, and no {command.machine!r}")

    async def ask_machine(
        self,
        query: MachineQuery,
        consistency: Consistency,  # noqa: ARG002  (as above)
        timeout: float | None,  # noqa: ARG002  (as above)
    ) -> Operated:
        """Ask a machine. Raises `InvalidRequest`, `OperationRefused`, `Unavailable`."""
        raise errors.InvalidRequest(f"there are no machines here, and no {query.machine!r}")

    def machine(self, name: str) -> MachineFace:
        """Return a state machine of the cluster, to be called. See `statemachine`. Raises `InvalidRequest`: no name."""
        complaint = complaint_of_machine(name)
        if complaint:
            raise errors.InvalidRequest(complaint)
        return MachineFace(self, name)

    def at(self, revision: int) -> Pinned:
        """Return the store as it was at ``revision``, to be read. Raises `InvalidRequest`; each read `Compacted`."""
        return Pinned(self, revision)

    async def history(
        self,
        key: Bytes,
        *,
        min_revision: int = 0,
        max_revision: int = 0,
        newest_first: bool = False,
        page: int = SCAN_PAGE_DEFAULT,
        consistency: Consistency = "linearizable",
        timeout: float | None = None,
    ) -> AsyncGenerator[Event]:
        """Iterate over every version of a key that is kept; where it was deleted, there is a DELETE.

        Kept is what is not compacted, and of what is older the version that was there when that begins.

        Args:
            key: The key.
            min_revision: The first revision of interest; by default as old as they are kept.
            max_revision: The last one; by default that of now.
            newest_first: Begin with the last one.
            page: Versions read at a time.
            consistency: As for `get`.
            timeout: In seconds, for each page.

        Raises: `Compacted` if a revision named is gone, or what is left to read is by now; `FutureRevision`.
        """
        low, high = whole(min_revision, "min_revision"), whole(max_revision, "max_revision")
        query = VersionsQuery(key_of(key), low, high, whole(page, "page", least=1), newest_first)
        while True:
            result = await self.look(query, consistency, timeout)
            assert isinstance(result, VersionsResult)
            for event in result.events:
                yield event
            if not result.next_revision:
                return
            if newest_first:
                query = replace(query, max_revision=result.next_revision)
            else:
                query = replace(
                    query, min_revision=result.next_revision, max_revision=query.max_revision or result.revision
                )

    async def diff(
        self,
        older: int,
        newer: int = 0,
        *,
        start: Bytes = b"",
        end: Bytes | None = None,
        prefix: Bytes | None = None,
        page: int = SCAN_PAGE_DEFAULT,
        consistency: Consistency = "linearizable",
        timeout: float | None = None,
    ) -> AsyncGenerator[Change]:
        """Iterate over the keys that are not at revision ``newer`` what they were at ``older``, both values with each.

        A key comes once, in the order of the last changes; one that was put with the same value again has changed.

        Args:
            older: The earlier revision.
            newer: The later one; by default that of now.
            start: With `end` or `prefix`, which keys: as for `range`.
            end: See `start`.
            prefix: See `start`.
            page: Changes read at a time.
            consistency: As for `get`.
            timeout: In seconds, for each page.

        Raises: `Compacted` if ``older`` is gone, or by now has gone; `FutureRevision`, `InvalidRequest`.
        """
        first, last = key_range(start, end, prefix)
        query = DiffQuery(first, last, whole(older, "older"), whole(newer, "newer"), whole(page, "page", least=1))
        while True:
            result = await self.look(query, consistency, timeout)
            assert isinstance(result, DiffResult)
            for change in result.changes:
                yield change
            if not result.next_revision:
                return
            query = replace(
                query,
                newer=query.newer or result.revision,
                next_revision=result.next_revision,
                next_sub=result.next_sub,
            )

    def namespace(self, prefix: Bytes) -> Namespace:
        """Return the keys with ``prefix`` as a store of their own, in which they are named by the rest.

        For order, not for security: who has the namespace can ask for the store. Compacting it compacts the store,
        and members, status and snapshots are the store's. Raises `InvalidRequest` for an empty prefix.
        """
        return Namespace(self, to_bytes(prefix))

    async def _guarded(
        self,
        key: bytes,
        command: PutKey | DeleteRange,
        revision: int,
        error: type[errors.KeyExists | errors.RevisionMismatch],
        kind: type[R],
        timeout: float | None,
    ) -> R:
        """Do ``command`` if the key's mod_revision is ``revision``, else raise ``error`` with the real one."""
        whole(revision, "if_revision")
        txn = Transaction([mod_revision_is(key, revision)], [command], [RangeQuery(key)])
        result = await self.commit(txn, timeout=timeout)
        response = result.responses[0]
        if result.succeeded:
            assert isinstance(response, kind)
            return response
        assert isinstance(response, RangeResult)
        actual = response.kvs[0].mod_revision if response.kvs else 0
        raise error(f"{key!r} has mod_revision {actual}, not {revision}", key=key, mod_revision=actual)


class Namespace(Engine):
    """A part of a store as a store of its own; made by `KV.namespace`. See `namespace`."""

    def __init__(self, engine: Engine, prefix: bytes) -> None:
        self._engine = engine
        self._prefix = Prefix(prefix)

    def __repr__(self) -> str:
        return f"<Namespace {self._prefix.prefix!r} of {self._engine!r}>"

    async def write(self, command: Command, timeout: float | None) -> Result:
        """Apply a command, exactly once. Raises `NotApplied`, `MaybeApplied`."""
        return self._prefix.result(await self._engine.write(self._prefix.command(command), timeout))

    def write_put(self, key: bytes, value: bytes, timeout: float | None) -> Awaitable[PutResult]:
        """Apply a put without options, exactly once. Raises `NotApplied`, `MaybeApplied`."""
        return self._engine.write_put(self._prefix.key(key), value, timeout)

    async def read(
        self, query: RangeQuery, consistency: Consistency, timeout: float | None, *, at_least: int = 0
    ) -> RangeResult:
        """Answer a query. Raises `Compacted`, `FutureRevision`, `InvalidRequest`, `Unavailable`."""
        query = self._prefix.query(query)
        return self._prefix.found(await self._engine.read(query, consistency, timeout, at_least=at_least))

    async def look(self, query: LookQuery, consistency: Consistency, timeout: float | None) -> LookResult:
        """Answer a query of the past. Raises `Compacted`, `FutureRevision`, `InvalidRequest`, `Unavailable`."""
        return self._prefix.seen(await self._engine.look(self._prefix.look(query), consistency, timeout))

    def draw_lease_id(self) -> int:
        """Return an id for a new lease; leases are the cluster's."""
        return self._engine.draw_lease_id()

    async def ask_leases(self, query: LeaseQuery, timeout: float | None) -> LeaseAnswer:
        """Renew a lease, or ask about leases: keys of others that hang on it are left out. Raises `Unavailable`."""
        return self._prefix.hanging(await self._engine.ask_leases(query, timeout))

    def watch_range(
        self, key: bytes, end: bytes, *, start_revision: int, prev_kv: bool, no_put: bool, no_delete: bool
    ) -> NamespaceWatch:
        """Start a watch."""
        first, last = self._prefix.interval(key, end)
        watch = self._engine.watch_range(
            first, last, start_revision=start_revision, prev_kv=prev_kv, no_put=no_put, no_delete=no_delete
        )
        return NamespaceWatch(watch, self._prefix)

    async def change_members(self, command: MembersCommand, timeout: float | None) -> MembersResult:
        """Do a command on the members of the cluster, exactly once. Raises `NotApplied`, `MaybeApplied`."""
        return await self._engine.change_members(command, timeout)

    async def member_table(self, timeout: float | None) -> MembersResult:
        """Return who the members of the cluster are, as of now. Raises `Unavailable`."""
        return await self._engine.member_table(timeout)

    async def change_rules(self, command: RulesCommand, timeout: float | None) -> RulesResult:
        """Do a command on the settings and alarms of the cluster, exactly once. Raises `NotApplied`, `MaybeApplied`."""
        return await self._engine.change_rules(command, timeout)

    async def rules_table(self, timeout: float | None) -> RulesResult:
        """Return the settings and alarms of the cluster, as of now. Raises `Unavailable`."""
        return await self._engine.rules_table(timeout)

    async def operate(self, command: Operate, timeout: float | None) -> Operated:
        """Apply an operation to a machine of the cluster. Raises `OperationRefused`, `NotApplied`, `MaybeApplied`."""
        return await self._engine.operate(command, timeout)

    async def ask_machine(self, query: MachineQuery, consistency: Consistency, timeout: float | None) -> Operated:
        """Ask a machine of the cluster. Raises `InvalidRequest`, `OperationRefused`, `Unavailable`."""
        return await self._engine.ask_machine(query, consistency, timeout)

    async def space_won_back(self, revision: int, timeout: float | None) -> None:
        """Wait until what was compacted is removed; see `Engine.space_won_back`."""
        await self._engine.space_won_back(revision, timeout)

    def snapshot_parts(self, consistency: Consistency, timeout: float | None) -> AsyncGenerator[SnapshotPart]:
        """Yield the parts of a snapshot of everything, and not of the namespace alone. Raises `Unavailable`."""
        return self._engine.snapshot_parts(consistency, timeout)

    async def status(self, *, timeout: float | None = None) -> Status:
        """Return a member's view of itself and of the cluster."""
        return await self._engine.status(timeout=timeout)

    def namespace(self, prefix: Bytes) -> Namespace:
        """Return a part of this part; see `Engine.namespace`."""
        return Namespace(self._engine, self._prefix.key(to_bytes(prefix)))
