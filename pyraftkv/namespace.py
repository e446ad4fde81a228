"""Namespaces: the part of the store below a prefix, as if it were a store of its own.

Commands, queries and watches get the prefix on their way in, and whatever comes back loses it (etcd,
`clientv3/namespace`). Nothing here knows how they travel: `engine.Namespace` is the store that uses it.

1. "Everything from the key on" has no end. Below a prefix it ends where the prefix does, or a namespace would show
   its neighbours.
2. An empty key is refused by the store. With the prefix before it, it would be the key that is the prefix itself,
   which no namespace shows: so it is refused here.
3. Events are decoded once for all watchers, so none is changed: each namespace makes events of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Self

from pyraftkv import errors
from pyraftkv.keys import prefix_end
from pyraftkv.kv import Watch
from pyraftkv.store.commands import (
    FROM_KEY,
    SINGLE_KEY,
    Command,
    Compare,
    DeleteRange,
    LookQuery,
    Operation,
    PutKey,
    RangeQuery,
    Transaction,
    VersionsQuery,
)
from pyraftkv.store.values import (
    Change,
    DeleteResult,
    Event,
    KeyValue,
    LeaseAnswer,
    LeaseList,
    LookResult,
    PutResult,
    RangeResult,
    Result,
    TxnResult,
    VersionsResult,
    WatchBatch,
)


class Prefix:
    """Puts a prefix before keys, and takes it off again. O(size) each.

    Args:
        prefix: What every key of the namespace begins with.

    Raises:
        InvalidRequest: An empty prefix: that is no namespace but the store.
    """

    __slots__ = ("_end", "_length", "prefix")

    def __init__(self, prefix: bytes) -> None:
        if not prefix:
            raise errors.InvalidRequest("a namespace needs a prefix")
        self.prefix = prefix
        self._end = prefix_end(prefix)
        self._length = len(prefix)

    # --- On the way in ---------------------------------------------------------------------------------------------

    def key(self, key: bytes) -> bytes:
        """Return the key as the store knows it. Raises `InvalidRequest` for an empty one."""
        if not key:
            raise errors.InvalidRequest("a key must not be empty")
        return self.prefix + key

    def interval(self, key: bytes, end: bytes) -> tuple[bytes, bytes]:
        """Return etcd's ``[key, end)`` as the store knows it. Raises `InvalidRequest` for an empty key."""
        first = self.key(key)
        if end == SINGLE_KEY:
            return first, end
        return first, self._end if end == FROM_KEY else self.prefix + end

    def query(self, query: RangeQuery) -> RangeQuery:
        """Return the query of the same keys as the store knows them."""
        key, end = self.interval(query.key, query.end)
        return replace(query, key=key, end=end)

    def look(self, query: LookQuery) -> LookQuery:
        """Return the query of the past of the same keys as the store knows them."""
        if isinstance(query, VersionsQuery):
            return replace(query, key=self.key(query.key))
        key, end = self.interval(query.key, query.end)
        return replace(query, key=key, end=end)

    def command(self, command: Command) -> Command:
        """Return the command on the same keys as the store knows them; one that names no key stays as it is."""
        if isinstance(command, PutKey | DeleteRange | Transaction):
            return self._operation(command)  # type: ignore[return-value]  # no query comes of one of these
        return command

    def _operation(self, operation: Operation) -> Operation:
        if isinstance(operation, PutKey):
            return replace(operation, key=self.key(operation.key))
        if isinstance(operation, RangeQuery):
            return self.query(operation)
        if isinstance(operation, DeleteRange):
            key, end = self.interval(operation.key, operation.end)
            return replace(operation, key=key, end=end)
        return Transaction(
            [self._compare(compare) for compare in operation.compares],
            [self._operation(nested) for nested in operation.success],
            [self._operation(nested) for nested in operation.failure],
        )

    def _compare(self, compare: Compare) -> Compare:
        key, end = self.interval(compare.key, compare.end)
        return replace(compare, key=key, end=end)

    # --- On the way back -------------------------------------------------------------------------------------------

    def result(self, result: Result) -> Result:
        """Return what a command came to, with the keys of the namespace."""
        if isinstance(result, PutResult):
            return result if result.prev_kv is None else replace(result, prev_kv=self.bare(result.prev_kv))
        if isinstance(result, DeleteResult):
            return replace(result, prev_kvs=[self.bare(kv) for kv in result.prev_kvs])
        if isinstance(result, RangeResult):
            return self.found(result)
        if isinstance(result, TxnResult):
            responses = [self.result(response) for response in result.responses]
            return replace(result, responses=responses)  # type: ignore[arg-type]  # each is of the kind that it was
        return result

    def found(self, result: RangeResult) -> RangeResult:
        """Return what a range holds, with the keys of the namespace."""
        return replace(result, kvs=[self.bare(kv) for kv in result.kvs])

    def seen(self, result: LookResult) -> LookResult:
        """Return what a query of the past came to, with the keys of the namespace."""
        if isinstance(result, VersionsResult):
            return replace(result, events=[self.event(event) for event in result.events])
        return replace(result, changes=[self.change(change) for change in result.changes])

    def change(self, change: Change) -> Change:
        """Return the change with the key of the namespace."""
        before, after = change.before, change.after
        return Change(None if before is None else self.bare(before), None if after is None else self.bare(after))

    def hanging(self, answer: LeaseAnswer) -> LeaseAnswer:
        """Return what a lease is like, with those of its keys that are in the namespace."""
        if isinstance(answer, LeaseList):
            return answer
        bare = [key[self._length :] for key in answer.keys if key.startswith(self.prefix)]
        return replace(answer, keys=[key for key in bare if key])  # hazard 2

    def bare(self, kv: KeyValue) -> KeyValue:
        """Return the key-value with the key of the namespace."""
        assert kv.key.startswith(self.prefix), kv.key
        return replace(kv, key=kv.key[self._length :])

    def event(self, event: Event) -> Event:
        """Return the event with the key of the namespace."""
        previous = event.prev_kv
        return Event(event.type, self.bare(event.kv), None if previous is None else self.bare(previous))


class NamespaceWatch:
    """A watch of a namespace; see `kv.Watch`."""

    def __init__(self, watch: Watch, prefix: Prefix) -> None:
        self._watch = watch
        self._prefix = prefix

    @property
    def revision(self) -> int:
        """Everything up to this revision has been handed out."""
        return self._watch.revision

    async def synced(self, *, timeout: float | None = None) -> int:
        """Wait until the watch is in place; see `kv.Watch`."""
        return await self._watch.synced(timeout=timeout)

    async def batches(self) -> AsyncIterator[WatchBatch]:
        """Yield batches of whole revisions until the watch is closed. Raises `WatchCancelled`, `Closed`."""
        async for batch in self._watch.batches():
            yield WatchBatch([self._prefix.event(event) for event in batch.events], batch.revision)

    async def __aiter__(self) -> AsyncIterator[Event]:
        async for event in self._watch:
            yield self._prefix.event(event)

    async def __aenter__(self) -> Self:
        await self._watch.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._watch.__aexit__(*exc)

    async def close(self) -> None:
        """Stop watching. Idempotent."""
        await self._watch.close()
