"""Reading a range of keys at a revision (etcd, `RangeRequest` and `txn/range.go`)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import Any

from pyraftkv.errors import RequestTooLarge
from pyraftkv.store.commands import FROM_KEY, RangeQuery, SortOrder, SortTarget
from pyraftkv.store.history import History
from pyraftkv.store.keyindex import Chunk
from pyraftkv.store.pages import RECORD_BYTES, SLOT_BITS, SLOT_MASK, unpack_record
from pyraftkv.store.values import KeyValue, RangeResult
from pyraftkv.store.work import Steps

SLICE_KEYS = 64
"""Work looks at this many keys between two looks at its budget."""

SORT_RUN_KEYS = 4096
"""More keys than this are sorted in runs, which are then merged slice by slice."""

SPARE_KEYS = 256
"""For the first ones of an order, twice as many as are wanted and this many more are gathered, then sorted and cut."""

_SORT_KEYS: dict[SortTarget, Any] = {
    SortTarget.VERSION: attrgetter("version"),
    SortTarget.CREATE: attrgetter("create_revision"),
    SortTarget.MOD: attrgetter("mod_revision"),
    SortTarget.VALUE: attrgetter("value"),
}


def bounds(key: bytes, end: bytes) -> tuple[bytes, bytes | None]:
    """Return etcd's ``[key, end)`` as a lower bound and an exclusive upper one, None for no bound."""
    if not end:
        return key, key + b"\0"
    return key, None if end == FROM_KEY else end


def kv_bytes(key: bytes, value_bytes: int) -> int:
    """Return what a key-value counts in a result: the same on every member, and no less than it takes on the wire."""
    return RECORD_BYTES + len(key) + value_bytes


class Intervals:
    """A set of keys, given as intervals ``[low, high)``.

    Invariant: the intervals ascend and do not meet, for those that do are joined. So both `add` and `in` find their
    place by bisection.
    """

    __slots__ = ("_from", "_highs", "_lows")

    def __init__(self) -> None:
        self._lows: list[bytes] = []
        self._highs: list[bytes] = []
        self._from: bytes | None = None
        """Everything from this key on is in the set, too."""

    def __contains__(self, key: bytes) -> bool:
        if self._from is not None and key >= self._from:
            return True
        position = bisect_right(self._lows, key) - 1
        return position >= 0 and key < self._highs[position]

    def add(self, low: bytes, high: bytes | None) -> None:
        """Add the keys in ``[low, high)``; None is no bound, and nothing is between bounds that do not ascend."""
        if high is None:
            self._from = low if self._from is None else min(low, self._from)
        elif low < high:
            first, stop = bisect_left(self._highs, low), bisect_right(self._lows, high)
            if first < stop:
                low, high = min(low, self._lows[first]), max(high, self._highs[stop - 1])
            self._lows[first:stop] = [low]
            self._highs[first:stop] = [high]

    def update(self, other: Intervals) -> None:
        """Add the keys of ``other``."""
        for low, high in zip(other._lows, other._highs, strict=True):
            self.add(low, high)
        if other._from is not None:
            self.add(other._from, None)


class _Collector:
    """Gathers the keys of one query.

    Invariants: `count` counts every key of the range that exists at the revision, whatever the limit and the
    filters; `kvs` holds those that pass the filters: up to `keep_max`, in the order in which the keys are walked, or
    `cut_at`, and then all those among them that may be wanted, equals in the order of their keys.
    """

    __slots__ = (
        "at",
        "bytes_left",
        "count",
        "cut_at",
        "filtered",
        "history",
        "is_backward",
        "keep_max",
        "kvs",
        "query",
        "record_bytes",
        "weighed_count",
        "with_leases",
        "with_values",
    )

    def __init__(self, history: History, query: RangeQuery, at: int) -> None:
        self.history = history
        self.query = query
        self.at = at
        self.count = 0
        self.kvs: list[KeyValue] = []
        self.filtered = bool(
            query.min_mod_revision or query.max_mod_revision or query.min_create_revision or query.max_create_revision
        )
        by_key = query.sort_target is SortTarget.KEY
        self.is_backward = by_key and query.sort_order is SortOrder.DESCEND
        # etcd fetches one more than the limit, to know `more`; all of them to filter or sort. A target without an
        # order sorts what the limit has fetched: odd, and exactly what etcd does.
        self.keep_max: int | None = None
        """So many are kept: they are the first ones of the order that is asked for."""
        self.cut_at: int | None = None
        """With more than so many it is time to sort and cut them."""
        if query.count_only:
            self.keep_max = 0
        elif query.limit > 0 and (by_key or (query.sort_order is SortOrder.NONE and not self.filtered)):
            self.keep_max = query.limit + 1
        elif query.limit > 0:
            self.cut_at = 2 * (query.limit + 1) + SPARE_KEYS
        self.with_leases = not query.keys_only  # as etcd from 3.7 on, which answers these from its index
        self.with_values = self.with_leases or query.sort_target is SortTarget.VALUE
        self.bytes_left: int | None = None
        """What `kvs` may still grow by; None: no bound, or only a part of it will be wanted."""
        self.record_bytes = RECORD_BYTES
        """What each counts besides its key and its value."""
        self.weighed_count = 0

    def bound(self, bytes_max: int, record_bytes: int) -> None:
        """Let the result grow to ``bytes_max``, if what is gathered is what will be returned."""
        if self.query.limit <= 0 or self.keep_max is not None:
            self.bytes_left, self.record_bytes = bytes_max, record_bytes

    def weigh(self) -> bool:
        """Weigh what came since the last time; tell whether it is within the bound."""
        if self.bytes_left is None:
            return True
        stop = len(self.kvs) if self.query.limit <= 0 else min(len(self.kvs), self.query.limit)
        keys_only, record_bytes = self.query.keys_only, self.record_bytes
        for kv in self.kvs[self.weighed_count : stop]:
            self.bytes_left -= record_bytes + len(kv.key) + (0 if keys_only else len(kv.value))
        self.weighed_count = stop
        return self.bytes_left >= 0

    @property
    def is_full(self) -> bool:
        return self.keep_max is not None and len(self.kvs) >= self.keep_max

    @property
    def is_to_be_cut(self) -> bool:
        return self.cut_at is not None and len(self.kvs) > self.cut_at

    def take_counted(self, chunk: Chunk) -> bool:
        """Count a whole chunk at once, if it has not changed since the revision and its keys are not wanted."""
        if self.is_full and chunk.newest <= self.at:
            self.count += chunk.live
            return True
        return False

    def take(self, keys: Sequence[bytes], refs: Iterable[int]) -> None:
        """Decode keys of the range. The hot loop of reading: about a microsecond per key."""
        at, kvs, with_leases, with_values = self.at, self.kvs, self.with_leases, self.with_values
        keep_max = -1 if self.keep_max is None else self.keep_max
        pages = self.history.pages
        by_number = pages.by_number
        for key, head in zip(keys, refs, strict=True):
            page = by_number[head >> SLOT_BITS]
            offset = page.offsets[head & SLOT_MASK]
            mod, create, version, lease, _, _, _, _, _, value_bytes = unpack_record(page.data, offset)
            if mod > at:
                place = pages.locate(pages.visible(head, at))
                if place is None:
                    continue
                page, offset = place
                mod, create, version, lease, _, _, _, _, _, value_bytes = unpack_record(page.data, offset)
            if not version:
                continue
            self.count += 1
            if len(kvs) == keep_max or (self.filtered and not self._passes(mod, create)):
                continue
            value = b""
            if with_values:
                start = offset + RECORD_BYTES + len(key)
                value = bytes(page.data[start : start + value_bytes])
            kvs.append(KeyValue(key, value, create, mod, version, lease if with_leases else 0))

    def _passes(self, mod_revision: int, create_revision: int) -> bool:
        query = self.query
        return (
            (not query.max_mod_revision or mod_revision <= query.max_mod_revision)
            and (not query.min_mod_revision or mod_revision >= query.min_mod_revision)
            and (not query.max_create_revision or create_revision <= query.max_create_revision)
            and (not query.min_create_revision or create_revision >= query.min_create_revision)
        )


def range_steps(
    history: History,
    query: RangeQuery,
    *,
    at: int,
    current: int,
    bytes_max: int | None = None,
    record_bytes: int = RECORD_BYTES,
) -> Steps[RangeResult]:
    """Read a range. O(log n + keys in the range); keys past the limit are counted a chunk at a time.

    In the order of keys, or against it, no more than the limit is looked at besides; in another order every key is, and
    a few times the limit is gathered. A chunk in which no key is left is passed over as a whole: the row of a lock, or
    a queue, leaves thousands an hour.

    Args:
        history: Where to read.
        query: What to read; its revision has been resolved to ``at``.
        at: The revision to read at.
        current: The revision to report in the result.
        bytes_max: Give up early when the result would be larger; a limited one that is sorted may be.
        record_bytes: What a key counts besides itself and its value.

    Raises:
        RequestTooLarge: The result would hold more than ``bytes_max``.
    """
    collector = _Collector(history, query, at)
    if bytes_max is not None:
        collector.bound(bytes_max, record_bytes)
    history.pins += 1
    try:
        yield from _gather(collector)
        kvs = yield from _sort(query, collector.kvs)
    finally:
        history.pins -= 1
    more = 0 < query.limit < len(kvs)
    if more:
        del kvs[query.limit :]
    if query.keys_only and collector.with_values:
        for i, kv in enumerate(kvs):
            kvs[i] = KeyValue(kv.key, b"", kv.create_revision, kv.mod_revision, kv.version)
    return RangeResult(current, kvs, more, collector.count)


def _gather(collector: _Collector) -> Steps[None]:
    """Walk the keys of the range, from whichever end the order asked for begins at."""
    history, query, at = collector.history, collector.query, collector.at
    is_backward = collector.is_backward
    span = history.index.span_back if is_backward else history.index.span
    low, high = bounds(query.key, query.end)
    while found := span(low, high):
        chunk, start, stop = found
        is_whole = stop - start == len(chunk.keys)
        cost = 1
        if (chunk.live or chunk.newest > at) and not (is_whole and collector.take_counted(chunk)):
            if is_backward:
                start = max(start, stop - SLICE_KEYS)
                collector.take(chunk.keys[start:stop][::-1], chunk.refs[start:stop][::-1])
            else:
                stop = min(stop, start + SLICE_KEYS)
                collector.take(chunk.keys[start:stop], chunk.refs[start:stop])
            if not collector.weigh():
                raise RequestTooLarge("the result would hold more than result_bytes_max")
            cost = stop - start
        if is_backward:
            high = chunk.keys[start]
        else:
            low = chunk.keys[stop - 1] + b"\0"
        if collector.is_to_be_cut:
            collector.kvs = yield from _sort(query, collector.kvs)
            del collector.kvs[query.limit + 1 :]
        yield cost


def _sort(query: RangeQuery, kvs: list[KeyValue]) -> Steps[list[KeyValue]]:
    """Sort as asked, but for keys, which were gathered as asked; stable, so that ties stay in key order."""
    if query.sort_target is SortTarget.KEY:
        return kvs
    sort_key = _SORT_KEYS[query.sort_target]
    reverse = query.sort_order is SortOrder.DESCEND
    if len(kvs) <= SORT_RUN_KEYS:
        kvs.sort(key=sort_key, reverse=reverse)
        return kvs
    runs: list[list[KeyValue]] = []
    for start in range(0, len(kvs), SORT_RUN_KEYS):
        runs.append(sorted(kvs[start : start + SORT_RUN_KEYS], key=sort_key, reverse=reverse))
        yield SORT_RUN_KEYS
    wanted = query.limit + 1 if query.limit > 0 else len(kvs)
    merged = islice(merge(*runs, key=sort_key, reverse=reverse), wanted)
    result: list[KeyValue] = []
    while part := list(islice(merged, SLICE_KEYS)):
        result += part
        yield len(part)
    return result
