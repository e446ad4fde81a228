"""`RecordedKV`: a store like the one it wraps, that writes down what it is asked and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Self, TypeVar

from pyraftkv.engine import Engine
from pyraftkv.errors import NotApplied, PyraftkvError, WatchCancelled
from pyraftkv.kv import Consistency, Status, Watch
from pyraftkv.protocol import MembersCommand, MembersResult, SnapshotPart
from pyraftkv.settings import RulesCommand, RulesResult
from pyraftkv.sim.check.history import History, Op, Request, WatchRecord
from pyraftkv.store.commands import Command, LeaseQuery, LookQuery, PutKey, RangeQuery
from pyraftkv.store.values import Event, LeaseAnswer, LookResult, PutResult, RangeResult, Result, WatchBatch

R = TypeVar("R", bound=Result)


class RecordedKV(Engine):
    """Wraps a `Node` or a `Client`; several of them may share one history.

    A call that ends in any other way than with a result or with `NotApplied` has an unknown outcome: so has one whose
    caller is cancelled, and one that never returns, because its process is killed.

    Args:
        engine: What to ask.
        history: Where to write it down.
        clock: Seconds, the same for all who share the history.
        client: Who asks.
        member: The one life of one member that `engine` is, if it can be no other: a `Node`, say. Its reads of its
            own state never go backwards.
        noted: Called with an operation when it begins and again when it has ended.
    """

    def __init__(
        self,
        engine: Engine,
        history: History,
        *,
        clock: Callable[[], float],
        client: str,
        member: str = "",
        noted: Callable[[Op], None] | None = None,
    ) -> None:
        self._engine = engine
        self._history = history
        self._clock = clock
        self._client = client
        self._member = member
        self._noted = noted

    def __repr__(self) -> str:
        return f"<RecordedKV {self._client} of {self._engine!r}>"

    async def write(self, command: Command, timeout: float | None) -> Result:
        """Apply a command, exactly once. Raises `NotApplied`, `MaybeApplied`."""
        return await self._recorded(command, "linearizable", lambda: self._engine.write(command, timeout))

    async def write_put(self, key: bytes, value: bytes, timeout: float | None) -> PutResult:
        """Apply a put without options, exactly once. Raises `NotApplied`, `MaybeApplied`."""
        put = PutKey(key, value)
        return await self._recorded(put, "linearizable", lambda: self._engine.write_put(key, value, timeout))

    async def read(
        self, query: RangeQuery, consistency: Consistency, timeout: float | None, *, at_least: int = 0
    ) -> RangeResult:
        """Answer a query. Raises `Compacted`, `FutureRevision`, `InvalidRequest`, `Unavailable`."""
        result = await self._recorded(
            query, consistency, lambda: self._engine.read(query, consistency, timeout, at_least=at_least)
        )
        assert result.revision >= at_least, f"revision {at_least} was to be seen at least, {result.revision} was"
        return result

    async def change_members(self, command: MembersCommand, timeout: float | None) -> MembersResult:
        """Do a command on the members, exactly once; no history holds it. Raises `NotApplied`, `MaybeApplied`."""
        return await self._engine.change_members(command, timeout)

    async def member_table(self, timeout: float | None) -> MembersResult:
        """Return who the members are, as of now. Raises `Unavailable`."""
        return await self._engine.member_table(timeout)

    async def change_rules(self, command: RulesCommand, timeout: float | None) -> RulesResult:
        """Do a command on settings and alarms; no history holds it. Raises `NotApplied`, `MaybeApplied`."""
        return await self._engine.change_rules(command, timeout)

    async def rules_table(self, timeout: float | None) -> RulesResult:
        """Return settings and alarms, as of now. Raises `Unavailable`."""
        return await self._engine.rules_table(timeout)

    async def space_won_back(self, revision: int, timeout: float | None) -> None:
        """Wait until what was compacted is removed; it changes nothing that could be read. Raises `Unavailable`."""
        await self._engine.space_won_back(revision, timeout)

    async def look(self, query: LookQuery, consistency: Consistency, timeout: float | None) -> LookResult:
        """Answer a query of the past; not part of the history. Raises as `read`."""
        return await self._engine.look(query, consistency, timeout)

    def draw_lease_id(self) -> int:
        """Return an id for a new lease."""
        return self._engine.draw_lease_id()

    async def ask_leases(self, query: LeaseQuery, timeout: float | None) -> LeaseAnswer:
        """Renew a lease, or ask about leases; no history holds it. Raises `Unavailable`."""
        return await self._engine.ask_leases(query, timeout)

    def watch_range(
        self, key: bytes, end: bytes, *, start_revision: int, prev_kv: bool, no_put: bool, no_delete: bool
    ) -> RecordedWatch:
        """Start a watch."""
        watch = self._engine.watch_range(
            key, end, start_revision=start_revision, prev_kv=prev_kv, no_put=no_put, no_delete=no_delete
        )
        record = self._history.watch(
            self._client,
            key,
            self._clock(),
            end=end,
            start_revision=start_revision,
            prev_kv=prev_kv,
            no_put=no_put,
            no_delete=no_delete,
        )
        return RecordedWatch(watch, record, self._history, self._clock)

    def snapshot_parts(self, consistency: Consistency, timeout: float | None) -> AsyncGenerator[SnapshotPart]:
        """Yield the parts of a snapshot; not part of the history."""
        return self._engine.snapshot_parts(consistency, timeout)

    async def status(self, *, timeout: float | None = None) -> Status:
        """Return this member's view of itself and of the cluster; it is not written down."""
        return await self._engine.status(timeout=timeout)

    async def _recorded(self, request: Request, consistency: Consistency, ask: Callable[[], Awaitable[R]]) -> R:
        """Ask, and write down that it was asked, when, and how it ended."""
        history = self._history
        op = history.begin(self._client, request, self._clock(), consistency=consistency, member=self._member)
        self._note(op)
        try:
            result = await ask()
        except NotApplied as error:
            history.failed(op, error, self._clock())
            raise
        except (PyraftkvError, asyncio.CancelledError) as error:
            history.unknown(op, self._clock(), error if isinstance(error, PyraftkvError) else None)
            raise
        else:
            history.ok(op, result, self._clock())
            return result
        finally:
            self._note(op)

    def _note(self, op: Op) -> None:
        if self._noted is not None:
            self._noted(op)


class RecordedWatch:
    """A watch that writes down what it hands out; see `kv.Watch`."""

    def __init__(self, watch: Watch, record: WatchRecord, history: History, clock: Callable[[], float]) -> None:
        self._watch = watch
        self._history = history
        self._clock = clock
        self.record = record
        """What it has written down."""

    @property
    def revision(self) -> int:
        """Everything up to this revision has been handed out."""
        return self._watch.revision

    async def synced(self, *, timeout: float | None = None) -> int:
        """Wait until the watch is in place; what it names, and what it has handed out by then, is written down."""
        revision = await self._watch.synced(timeout=timeout)
        self._history.placed(self.record, revision, self._clock())
        self._history.bookmark(self.record, self._watch.revision, self._clock())
        return revision

    async def batches(self) -> AsyncIterator[WatchBatch]:
        """Iterate over batches of whole revisions."""
        try:
            async for batch in self._watch.batches():
                self._history.delivered(self.record, batch.events, self._clock(), revision=batch.revision)
                yield batch
        except WatchCancelled as error:
            self._history.cancelled(self.record, error.resume_revision)
            raise

    async def __aiter__(self) -> AsyncIterator[Event]:
        try:
            async for event in self._watch:
                self._history.delivered(self.record, [event], self._clock())
                yield event
        except WatchCancelled as error:
            self._history.cancelled(self.record, error.resume_revision)
            raise

    async def __aenter__(self) -> Self:
        await self._watch.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._note_end()
        await self._watch.__aexit__(*exc)

    async def close(self) -> None:
        """Stop watching. Idempotent."""
        self._note_end()
        await self._watch.close()

    def _note_end(self) -> None:
        """Write down how far it says to have come: else nobody would miss what it never showed at its end."""
        if self._watch.revision > max((each.revision for each in self.record.deliveries), default=0):
            self._history.bookmark(self.record, self._watch.revision, self._clock())
