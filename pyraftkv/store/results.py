"""How much the result of a command may hold, found out before the command changes anything.

A result is kept by every member until its client has acknowledged it, so it has a bound, and a command whose result
would be larger is refused by all of them. A refusal comes before any effect, but a transaction's reads come after its
writes. So what is added up here is an upper bound:

1. What a range holds before the transaction, and what the transaction has put into it up to there. A key that was
   overwritten counts with both its values, a deleted one still counts.
2. A limit is no bound as it stands: delete the first key of a range, and the first one is another, perhaps a larger.
   Each key that was changed can let in one more, so the limit is raised by as many; after a delete of a range, of
   which nobody has counted the keys, it is left out.

For reads that come before the writes, and for those of an older revision, it is exact.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import replace

from pyraftkv.errors import RequestTooLarge
from pyraftkv.store.commands import DeleteRange, PutKey, RangeQuery, SortOrder, SortTarget
from pyraftkv.store.history import History
from pyraftkv.store.ranges import bounds, kv_bytes, range_steps
from pyraftkv.store.work import Steps


class ResultBound:
    """Adds up what the operations of one command return, in their order. See above.

    Args:
        history: The state before the command.
        bytes_max: The bound; each method raises `RequestTooLarge` when it is exceeded.
    """

    __slots__ = ("_bytes_left", "_changes_count", "_history", "_put_bytes", "_put_keys", "_range_deleted")

    def __init__(self, history: History, bytes_max: int) -> None:
        self._history = history
        self._bytes_left = bytes_max
        self._put_keys: list[bytes] = []
        """Sorted."""
        self._put_bytes: dict[bytes, int] = {}
        """The size of each one's value."""
        self._changes_count = 0
        """How many keys were put or deleted one by one."""
        self._range_deleted = False

    def put(self, put: PutKey) -> None:
        """Take note of a put. O(log n)."""
        value_bytes = len(put.value)
        if put.prev_kv or put.ignore_value:
            previous = self._history.get(put.key, self._history.published_revision)
            if previous is not None and put.prev_kv:
                self._spend(kv_bytes(put.key, len(previous.value)))
            if previous is not None and put.ignore_value:
                value_bytes = len(previous.value)
        insort(self._put_keys, put.key)
        self._put_bytes[put.key] = value_bytes
        self._changes_count += 1

    def delete_steps(self, delete: DeleteRange) -> Steps[None]:
        """Take note of a deletion. As expensive as reading what it returns."""
        if delete.prev_kv:
            yield from self.range_steps(RangeQuery(delete.key, delete.end))
        if delete.end:
            self._range_deleted = True
        else:
            self._changes_count += 1

    def range_steps(self, query: RangeQuery) -> Steps[None]:
        """Take note of a range. As expensive as reading it, or as much of it as is allowed."""
        if query.count_only:
            return
        history = self._history
        at = query.revision
        if at <= 0:
            at = history.published_revision
            self._spend_puts(query)
            query = self._widened(query)
        if not query.end:  # most of all: to look the key up takes a fifth of the time that a range of one takes
            kv = history.get(query.key, at)
            if kv is not None:
                self._spend(kv_bytes(kv.key, 0 if query.keys_only else len(kv.value)))
            return
        found = yield from range_steps(history, query, at=at, current=at, bytes_max=self._bytes_left)
        for kv in found.kvs:
            self._spend(kv_bytes(kv.key, len(kv.value)))

    def _spend_puts(self, query: RangeQuery) -> None:
        low, high = bounds(query.key, query.end)
        keys = self._put_keys
        for position in range(bisect_left(keys, low), len(keys)):
            key = keys[position]
            if high is not None and key >= high:
                break
            self._spend(kv_bytes(key, 0 if query.keys_only else self._put_bytes[key]))

    def _widened(self, query: RangeQuery) -> RangeQuery:
        """Return a query that finds, before the command, every unchanged key that ``query`` finds now."""
        if query.limit <= 0 or not (self._changes_count or self._range_deleted):
            return query
        # A sort target without an order sorts what the limit has fetched: what a larger limit cuts is another thing.
        is_odd = query.sort_order is SortOrder.NONE and query.sort_target is not SortTarget.KEY
        return replace(query, limit=0 if self._range_deleted or is_odd else query.limit + self._changes_count)

    def _spend(self, size_bytes: int) -> None:
        self._bytes_left -= size_bytes
        if self._bytes_left < 0:
            raise RequestTooLarge("the result would hold more than result_bytes_max")
