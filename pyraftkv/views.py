"""Live views: a part of the store as a mapping in this process, kept current by a watch.

The view is read once, and from the very next revision on a watch brings every change, whole revisions at a time. So
what the mapping holds is at any moment what the store held at `revision`: perhaps a little old, never a mixture.

1. *The watch ends*: what it was to read was compacted while the reader was away, or a member has no room for it. The
   view reads everything again, and passes on what is different as one change of many keys: no reader can tell it from
   a large revision.
2. *Nothing happens in this part*, while the store goes on. The watch is silent, and `at_least` would wait for ever for
   a revision that has come and gone. So it asks, after a moment, for the difference since the view's own revision:
   if there is none, the view is as new as the answer.
3. *A slow reader of changes* is given, for each key, the state that it knew and the last one: what waits for it is
   never more than the keys that differ.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, Protocol, Self, TypeVar

from sortedcontainers import SortedDict

from pyraftkv import errors
from pyraftkv.keys import to_bytes
from pyraftkv.kv import Bytes, Consistency, View, Watch
from pyraftkv.store.commands import DiffQuery, LookQuery
from pyraftkv.store.values import Change, DiffResult, Event, EventType, KeyValue, LookResult, RangeResult

T = TypeVar("T")

VIEW_KEYS_MAX = 100_000
"""A view of more keys is refused, and ends when it comes to have more, unless told otherwise."""

QUIET_SECONDS_MIN = 0.05
QUIET_SECONDS_MAX = 1.0
"""How long `at_least` waits for the watch before it asks, doubling from the first to the second."""

RETRY_SECONDS_MIN = 0.05
RETRY_SECONDS_MAX = 1.0
"""The pause before everything is read again, doubling from the first to the second."""


class ViewEngine(Protocol):
    """What a view needs of its store."""

    async def read_and_watch(
        self, first: bytes, last: bytes, *, prev_kv: bool, timeout: float | None
    ) -> tuple[RangeResult, Watch]:
        """Read `[first, last)`, and watch it from the next revision on."""
        ...

    async def look(self, query: LookQuery, consistency: Consistency, timeout: float | None) -> LookResult:
        """Answer a query of the past."""
        ...


class LiveView(View):
    """See `kv.View`; made by `LiveView.open`.

    Invariants: `_kvs` is what the store held at `_revision`, which never falls; a view that has ended (`_error`) stays
    as it was then.
    """

    def __init__(self, engine: ViewEngine, first: bytes, last: bytes, *, keys_max: int) -> None:
        self._engine = engine
        self._bounds = (first, last)
        self._keys_max = keys_max
        self._kvs: Any = SortedDict()
        self._revision = 0
        self._moved = asyncio.Event()
        """Set, and replaced, whenever the view has changed or ended."""
        self._readers: dict[_Pending, None] = {}
        self._error: errors.PyraftkvError | None = None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls, engine: ViewEngine, first: bytes, last: bytes, *, keys_max: int, timeout: float | None
    ) -> LiveView:
        """Read everything and go on from there. Raises `RequestTooLarge`, and what a read may raise."""
        view = cls(engine, first, last, keys_max=keys_max)
        found, watch = await engine.read_and_watch(first, last, prev_kv=False, timeout=timeout)
        try:
            view._replace(found)
        except errors.RequestTooLarge:
            await watch.close()
            raise
        view._task = asyncio.get_running_loop().create_task(view._run(watch), name="pyraftkv-view")
        return view

    def __repr__(self) -> str:
        state = f", ended: {self._error}" if self._error is not None else ""
        return f"<View of {len(self)} keys at revision {self._revision}{state}>"

    # --- The mapping -----------------------------------------------------------------------------------------------

    def __getitem__(self, key: Bytes) -> KeyValue:
        kv: KeyValue = self._kvs[to_bytes(key)]
        return kv

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._kvs)

    def __len__(self) -> int:
        return len(self._kvs)

    @property
    def revision(self) -> int:
        """The revision of which everything is shown."""
        return self._revision

    @property
    def is_live(self) -> bool:
        """Whether it is still kept current."""
        return self._error is None

    # --- Waiting ---------------------------------------------------------------------------------------------------

    async def at_least(self, revision: int, *, timeout: float | None = None) -> int:
        """Wait until everything up to ``revision`` is shown; see `kv.View`."""
        quiet_seconds = QUIET_SECONDS_MIN
        async with asyncio.timeout(timeout):
            while self._revision < revision:
                self._check()
                moved = self._moved
                try:
                    async with asyncio.timeout(quiet_seconds):
                        await moved.wait()
                except TimeoutError:
                    await self._ask()
                    quiet_seconds = min(2 * quiet_seconds, QUIET_SECONDS_MAX)
        return self._revision

    async def wait(self, predicate: Callable[[View], T], *, timeout: float | None = None) -> T:
        """Wait until ``predicate`` holds of the view; see `kv.View`."""
        async with asyncio.timeout(timeout):
            while not (result := predicate(self)):
                self._check()
                await self._moved.wait()
        return result

    async def changes(self) -> AsyncGenerator[Change]:
        """Yield what changes from here on; see `kv.View`."""
        pending = _Pending()
        self._readers[pending] = None
        try:
            while True:
                for change in pending.take():
                    yield change
                if not pending:
                    self._check()
                    await self._moved.wait()
        finally:
            del self._readers[pending]

    async def close(self) -> None:
        """Stop; whoever waits gets `Closed`. Idempotent."""
        self._end(errors.Closed("the view was closed"))
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    # --- Keeping current -------------------------------------------------------------------------------------------

    async def _run(self, watch: Watch) -> None:
        """Apply what the watch brings; when it ends, begin again with another one, until there is nobody to ask."""
        try:
            while True:
                try:
                    async with watch:
                        async for batch in watch.batches():
                            self._apply(batch.events, batch.revision)
                except (errors.WatchCancelled, errors.Overloaded):
                    watch = await self._again()
        except errors.PyraftkvError as error:
            self._end(error)
        finally:
            self._end(errors.Closed("the view has stopped"))

    async def _again(self) -> Watch:
        """Read everything again, as often as it takes; return the watch to go on with. Raises what ends the view."""
        pause_seconds = RETRY_SECONDS_MIN
        while True:
            try:
                found, watch = await self._engine.read_and_watch(*self._bounds, prev_kv=False, timeout=None)
            except (errors.Unavailable, errors.Compacted, errors.WatchCancelled) as error:
                if isinstance(error, errors.Closed):
                    raise
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, RETRY_SECONDS_MAX)
            else:
                try:
                    self._replace(found)
                except errors.RequestTooLarge:
                    await watch.close()
                    raise
                return watch

    async def _ask(self) -> None:
        """Find out whether anything has changed that the watch has not brought yet."""
        revision = self._revision
        try:
            result = await self._engine.look(DiffQuery(*self._bounds, revision, limit=1), "linearizable", None)
            assert isinstance(result, DiffResult)
            if revision == self._revision and not result.changes and not result.next_revision:
                self._apply([], result.revision)
        except errors.Compacted:
            found, watch = await self._engine.read_and_watch(*self._bounds, prev_kv=False, timeout=None)
            await watch.close()
            self._replace(found)
        except errors.Closed:
            raise
        except errors.Unavailable:
            return  # It is asked again.

    def _apply(self, events: list[Event], revision: int) -> None:
        """Take over the events of whole revisions, but for those that are known already. Raises what ended the view."""
        self._check()
        changes: list[Change] = []
        kvs = self._kvs
        for event in events:
            if event.kv.mod_revision > self._revision:
                key = event.kv.key
                before = kvs.get(key)
                if event.type is EventType.PUT:
                    kvs[key] = event.kv
                    changes.append(Change(before, event.kv))
                elif before is not None:
                    del kvs[key]
                    changes.append(Change(before, None))
        self._move(changes, revision)

    def _replace(self, found: RangeResult) -> None:
        """Take over everything at once, unless it is older than what there is. Raises what ended the view."""
        self._check()
        if found.revision < self._revision:
            return
        before: dict[bytes, KeyValue] = dict(self._kvs)
        after = {kv.key: kv for kv in found.kvs}
        keys = sorted(before.keys() | after.keys())
        changes = [Change(before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]
        self._kvs = SortedDict(after)
        self._move(changes, found.revision)

    def _move(self, changes: list[Change], revision: int) -> None:
        self._revision = max(self._revision, revision)
        if len(self._kvs) > self._keys_max:
            self._end(errors.RequestTooLarge(f"a view of {len(self._kvs)} keys, keys_max is {self._keys_max}"))
            self._check()
        for pending in self._readers:
            for change in changes:
                pending.add(change)
        self._wake()

    def _end(self, error: errors.PyraftkvError) -> None:
        self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()


class _Pending:
    """Changes that a reader has not taken yet, at most one for each key: from what it knows to what there is."""

    __slots__ = ("_changes",)

    def __init__(self) -> None:
        self._changes: dict[bytes, Change] = {}

    def __len__(self) -> int:
        return len(self._changes)

    def add(self, change: Change) -> None:
        """Take note of a change; what came and went while nobody looked is nothing."""
        key = change.key
        earlier = self._changes.pop(key, None)
        before = change.before if earlier is None else earlier.before
        if before != change.after:
            self._changes[key] = Change(before, change.after)

    def take(self) -> list[Change]:
        """Return what there is, in the order of the last changes, and forget it."""
        changes, self._changes = list(self._changes.values()), {}
        return changes
