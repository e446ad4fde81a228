"""Watches: every change of a key or range, in order, once, without a gap, a revision always whole.

A watcher is in one of two states.

- *Synced*: it has been offered everything that was distributed. `WatchHub.advance` reads each new version once,
  finds the watchers that want it, decodes it once for all of them, and lays the event down with each. What waits
  there is bounded: a watcher that is not emptied in time becomes
- *lagging*: it holds nothing but its place in the history, and `take` reads the pages from there. A watch from an old
  revision begins so. When it reaches the present it becomes synced.

So a slow watcher costs no memory, only the work of reading the pages again, and only when somebody takes. If the
history it still has to read is compacted away, it is cancelled and says from where to resume.

Whole revisions: one command may change a million keys at one revision. Distribution and catching up both go on in
slices in the middle of such a revision, but its events are handed out only when the last one is there.

Finding the watchers of a key: those of a single key stand in a dict, those of a prefix in one dict per length of
prefix in use. What is left, odd ranges, are sorted by their lower bound and looked through up to the key.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable

from pyraftkv.errors import Closed, Compacted, InvalidRequest, Overloaded, WatchCancelled
from pyraftkv.store.commands import FROM_KEY
from pyraftkv.store.history import History
from pyraftkv.store.pages import RECORD_BYTES, Cursor, Page, decode, unpack_record
from pyraftkv.store.ranges import bounds, kv_bytes
from pyraftkv.store.values import Event, EventType, KeyValue, WatchBatch

WATCHERS_MAX = 100_000
"""More watchers at once are refused."""

PENDING_EVENTS_MAX = 1024
"""A synced watcher with more events than this waiting becomes a lagging one."""

PENDING_BYTES_MAX = 2 * 1024 * 1024
"""So does one with more bytes of key-values than this waiting; more than the largest put."""

TAKE_RECORDS_MAX = 1024
"""A lagging watcher reads at most this many versions in one `take`."""

TAKE_BYTES_MAX = 2 * 1024 * 1024
"""And goes on to no other revision when it holds this many bytes of key-values."""

ADVANCE_RECORDS_MAX = 4096
"""`advance` distributes at most this many versions at once, unless told otherwise."""


class Watcher:
    """One watch; made by `Store.watch`.

    Invariants: what was taken covers exactly the revisions `[start, revision]`; `_pending` ascends and holds no
    revision twice over a take; a lagging watcher has nothing pending but the revision it is in the middle of.
    """

    __slots__ = (
        "_cancelled",
        "_cursor",
        "_hub",
        "_next",
        "_pending",
        "_pending_bytes",
        "end",
        "key",
        "no_delete",
        "no_put",
        "prev_kv",
        "ready",
    )

    def __init__(
        self, hub: WatchHub, key: bytes, end: bytes, start: int, *, prev_kv: bool, no_put: bool, no_delete: bool
    ) -> None:
        self._hub = hub
        self.key = key
        self.end = end
        self.prev_kv = prev_kv
        self.no_put = no_put
        self.no_delete = no_delete
        self.ready = False
        """Whether `take` has something: history to catch up with, or what `advance` returned this watcher for."""
        self._next = start
        self._pending: list[Event] = []
        self._pending_bytes = 0
        """Of a synced watcher; what a lagging one holds of an unfinished revision is not counted."""
        self._cursor: Cursor | None = None
        self._cancelled = False

    def __repr__(self) -> str:
        state = "cancelled" if self._cancelled else "synced" if self.synced else "lagging"
        return f"<Watcher [{self.key!r}, {self.end!r}) {state} at revision {self.revision}>"

    @property
    def revision(self) -> int:
        """Everything up to and including this revision was handed out (or does not concern this watch)."""
        if self._cursor is not None or self._cancelled:
            return self._next - 1
        if self._pending:
            return max(self._next, self._pending[0].kv.mod_revision) - 1
        return max(self._next - 1, self._hub.distributed_revision)

    @property
    def synced(self) -> bool:
        """Whether history is caught up with: from here on events come as they happen."""
        return self._cursor is None and not self._cancelled

    @property
    def has_more(self) -> bool:
        """Whether the next `take` returns a batch."""
        return self.has_complete(self._hub.distributed_revision)

    def wants(self, kind: EventType) -> bool:
        """Tell whether events of this kind pass the filters."""
        return not (self.no_put if kind is EventType.PUT else self.no_delete)

    def cancel(self) -> None:
        """End the watch. Idempotent."""
        if not self._cancelled:
            self._next = self.revision + 1
            self._hub.discard(self)
            self._cancelled = True
            self._pending = []
            self._pending_bytes = 0
            self._cursor = None

    def take(self, events_max: int = 1000) -> WatchBatch | None:
        """Return the next events, whole revisions of them.

        Args:
            events_max: Stop before a revision that would make it more; a single revision is never cut, however big.

        Returns:
            The batch; None when there is nothing to take. A batch without events means: so far, nothing that
            concerns this watch. Afterwards `ready` says whether there is more; if not, `advance` returns this watcher
            when there is.

        Raises:
            WatchCancelled: The history still to be read was compacted.
            Closed: The watch was cancelled before.
        """
        assert events_max > 0, events_max
        if self._cancelled:
            raise Closed("the watch was cancelled")
        batch = self._take_history(events_max) if self._cursor is not None else self._take_pending(events_max)
        self.ready = self.has_more
        return batch

    def start_at(self, cursor: Cursor) -> None:
        """Begin by reading the history from ``cursor``."""
        self._cursor = cursor
        self.ready = True

    # --- Synced ----------------------------------------------------------------------------------------------------

    def offer(self, event: Event, size_bytes: int) -> bool:
        """Take note of a new event; tell whether more is pending than may be."""
        if event.kv.mod_revision >= self._next:
            self._pending.append(event)
            self._pending_bytes += size_bytes
        return len(self._pending) > PENDING_EVENTS_MAX or self._pending_bytes > PENDING_BYTES_MAX

    def has_complete(self, revision: int) -> bool:
        """Tell whether there is something to take once everything up to ``revision`` is distributed."""
        return self._cursor is not None or (bool(self._pending) and self._pending[0].kv.mod_revision <= revision)

    def has_incomplete(self, revision: int) -> bool:
        """Tell whether events wait for the rest of a revision that is later than ``revision``."""
        return bool(self._pending) and self._pending[-1].kv.mod_revision > revision

    def fall_behind(self) -> None:
        """Forget what is pending, and read it from the history instead."""
        self._next = self._pending[0].kv.mod_revision
        self._pending = []
        self._pending_bytes = 0
        self._cursor = self._hub.history.pages.seek(self._next)

    def _take_pending(self, events_max: int) -> WatchBatch | None:
        pending = self._pending
        distributed = self._hub.distributed_revision
        if pending and len(pending) <= events_max and pending[-1].kv.mod_revision <= distributed:
            self._pending, self._pending_bytes, self._next = [], 0, distributed + 1
            return WatchBatch(pending, distributed)
        complete = _count_up_to(pending, distributed)
        if not complete:
            return None
        count = _whole_revisions(pending, complete, events_max)
        revision = distributed if count == complete else pending[count - 1].kv.mod_revision
        self._pending = pending[count:]
        self._pending_bytes -= sum(map(_event_bytes, pending[:count]))
        self._next = revision + 1
        return WatchBatch(pending[:count], revision)

    # --- Lagging ---------------------------------------------------------------------------------------------------

    def _take_history(self, events_max: int) -> WatchBatch:
        """Read on in the pages. `_pending` holds the events so far of a revision that was not finished."""
        hub, cursor = self._hub, self._cursor
        assert cursor is not None
        compact_revision = hub.history.compact_revision
        if self._next < compact_revision:
            resume_revision = self._next
            self.cancel()
            raise WatchCancelled(
                f"history from revision {resume_revision} on was compacted up to {compact_revision}",
                resume_revision=resume_revision,
                compact_revision=compact_revision,
            )
        events, revision = self._pending, self._next
        bytes_left = TAKE_BYTES_MAX
        budget = TAKE_RECORDS_MAX
        low, high = bounds(self.key, self.end)
        for page, slot, offset in hub.history.pages.scan(cursor, hub.history.published_end()):
            mod_revision, _, version, _, _, _, _, _, key_bytes, _ = unpack_record(page.data, offset)
            if mod_revision > revision:
                if not budget or len(events) >= events_max or bytes_left <= 0:
                    cursor.page, cursor.slot = page.number, slot
                    return self._hand_out(events, [], mod_revision)
                revision = mod_revision
            elif not budget:
                cursor.page, cursor.slot = page.number, slot
                complete = _count_up_to(events, revision - 1)
                return self._hand_out(events[:complete], events[complete:], revision)
            budget -= 1
            start = offset + RECORD_BYTES
            key = bytes(page.data[start : start + key_bytes])
            if low <= key and (high is None or key < high):
                kind = EventType.PUT if version else EventType.DELETE
                if self.wants(kind):
                    events.append(hub.event(page, offset, key, prev_kv=self.prev_kv))
                    bytes_left -= _event_bytes(events[-1])
        self._cursor = None
        hub.add(self)
        return self._hand_out(events, [], hub.history.published_revision + 1)

    def _hand_out(self, events: list[Event], partial: list[Event], next_revision: int) -> WatchBatch:
        """Everything below ``next_revision`` is in ``events``; ``partial`` is of that revision."""
        self._pending = partial
        self._next = next_revision
        return WatchBatch(events, next_revision - 1)


def _count_up_to(events: list[Event], revision: int) -> int:
    if events and events[-1].kv.mod_revision <= revision:
        return len(events)
    return bisect_right(events, revision, key=_mod_revision)


def _whole_revisions(events: list[Event], complete: int, events_max: int) -> int:
    """Return how many of the first ``complete`` events make whole revisions, near ``events_max`` but at least one."""
    if complete <= events_max:
        return complete
    cut_revision = events[events_max].kv.mod_revision
    below = bisect_left(events, cut_revision, key=_mod_revision)
    return below or bisect_right(events, cut_revision, hi=complete, key=_mod_revision)


def _lower_bound(bound: tuple[bytes, bytes]) -> bytes:
    return bound[0]


def _event_bytes(event: Event) -> int:
    size_bytes = kv_bytes(event.kv.key, len(event.kv.value))
    previous = event.prev_kv
    return size_bytes if previous is None else size_bytes + kv_bytes(previous.key, len(previous.value))


def _mod_revision(event: Event) -> int:
    return event.kv.mod_revision


Group = dict[Watcher, None]
"""Watchers of one range, in the order they came."""


class WatchHub:
    """Hands what is published to the watchers.

    Invariant: every synced watcher was offered every event in `(distributed, cursor)` and before; lagging ones are in
    no table.
    """

    __slots__ = (
        "_behind",
        "_cursor",
        "_exact",
        "_prefixes",
        "_ranges",
        "_ranges_order",
        "_synced_count",
        "_touched",
        "distributed_revision",
        "history",
        "watchers_count",
    )

    def __init__(self, history: History) -> None:
        self.history = history
        self.distributed_revision = history.published_revision
        """Everything up to this revision was offered to the synced watchers."""
        self.watchers_count = 0
        self._cursor = Cursor(*history.published_end())
        self._synced_count = 0
        self._exact: dict[bytes, Group] = {}
        self._prefixes: dict[int, dict[bytes, Group]] = {}
        self._ranges: dict[tuple[bytes, bytes], Group] = {}
        self._ranges_order: list[tuple[bytes, bytes]] = []
        self._touched: Group = {}
        self._behind: list[Watcher] = []

    def watch(
        self, key: bytes, end: bytes, start_revision: int, *, prev_kv: bool, no_put: bool, no_delete: bool
    ) -> Watcher:
        """Begin a watch; see `Store.watch`."""
        key = key or FROM_KEY  # etcd: an empty key is the smallest one
        if start_revision < 0:
            raise InvalidRequest(f"a watch cannot start at revision {start_revision}")
        if end and end != FROM_KEY and key >= end:
            raise InvalidRequest(f"the range [{key!r}, {end!r}) is empty")
        if self.watchers_count >= WATCHERS_MAX:
            raise Overloaded(f"there are {self.watchers_count} watchers, at most WATCHERS_MAX={WATCHERS_MAX}")
        history = self.history
        start = start_revision or history.published_revision + 1
        if start < history.compact_revision:
            raise Compacted(
                f"revision {start} is compacted, the oldest is {history.compact_revision}",
                compact_revision=history.compact_revision,
            )
        watcher = Watcher(self, key, end, start, prev_kv=prev_kv, no_put=no_put, no_delete=no_delete)
        self.watchers_count += 1
        if start > history.published_revision:
            self.add(watcher)
        else:
            watcher.start_at(history.pages.seek(start))
        return watcher

    def add(self, watcher: Watcher) -> None:
        """A watcher has caught up with what is published."""
        if not self._synced_count:
            self._skip_to_present()
        self._synced_count += 1
        self._group(watcher)[watcher] = None

    def discard(self, watcher: Watcher) -> None:
        """A watcher is being cancelled, in whichever state."""
        self.watchers_count -= 1
        self._touched.pop(watcher, None)
        if watcher.synced:
            self._ungroup(watcher)

    def needs(self, revision: int) -> bool:
        """Tell whether history below ``revision`` was not yet offered to a synced watcher, who is owed it.

        1. A synced watcher has seen everything up to 30; then a key is put at 31 and again at 32.
        2. Before anybody calls `advance`, 32 is compacted, and 31 with it removed.
        3. `advance` finds only 32: a synced watcher would have missed an event without a word.
        """
        return self._synced_count > 0 and self.distributed_revision < revision

    def advance(self, records_max: int) -> list[Watcher]:
        """Distribute what was published; see `Store.advance`."""
        if not self._synced_count:
            self._skip_to_present()
            self._touched.clear()
            return []
        history = self.history
        is_whole = True
        last_revision = history.published_revision + 1
        for page, slot, offset in history.pages.scan(self._cursor, history.published_end()):
            if not records_max:
                self._cursor.page, self._cursor.slot = page.number, slot
                last_revision = unpack_record(page.data, offset)[0]
                is_whole = False
                break
            records_max -= 1
            self._distribute(page, offset)
        self.distributed_revision = last_revision - 1
        if not self._touched:
            return []
        ready: list[Watcher] = []
        held: Group = {}
        for watcher in self._touched:
            if not watcher.ready and watcher.has_complete(self.distributed_revision):
                watcher.ready = True
                ready.append(watcher)
            if not is_whole and watcher.has_incomplete(self.distributed_revision):
                held[watcher] = None
        self._touched = held
        return ready

    def event(self, page: Page, offset: int, key: bytes, *, prev_kv: bool) -> Event:
        """Decode the change at ``offset`` of ``page``."""
        kv = decode(page, offset)
        previous = None
        if prev_kv and (kv is None or kv.version > 1):
            previous = self.history.before(page, offset)
        if kv is not None:
            return Event(EventType.PUT, kv, previous)
        mod_revision = unpack_record(page.data, offset)[0]
        return Event(EventType.DELETE, KeyValue(key, b"", 0, mod_revision, 0), previous)

    def _skip_to_present(self) -> None:
        """Nobody is synced: nobody is owed what lies between."""
        self._cursor.page, self._cursor.slot = self.history.published_end()
        self.distributed_revision = self.history.published_revision

    def _distribute(self, page: Page, offset: int) -> None:
        _, _, version, _, _, _, _, _, key_bytes, _ = unpack_record(page.data, offset)
        start = offset + RECORD_BYTES
        key = bytes(page.data[start : start + key_bytes])
        kind = EventType.PUT if version else EventType.DELETE
        plain: Event | None = None
        with_previous: Event | None = None
        plain_bytes = with_previous_bytes = 0
        for group in self._groups_of(key):
            for watcher in group:
                if not watcher.wants(kind):
                    continue
                if watcher.prev_kv:
                    if with_previous is None:
                        with_previous = self.event(page, offset, key, prev_kv=True)
                        with_previous_bytes = _event_bytes(with_previous)
                    is_over = watcher.offer(with_previous, with_previous_bytes)
                else:
                    if plain is None:
                        plain = self.event(page, offset, key, prev_kv=False)
                        plain_bytes = _event_bytes(plain)
                    is_over = watcher.offer(plain, plain_bytes)
                self._touched[watcher] = None
                if is_over:
                    self._behind.append(watcher)
        for watcher in self._behind:
            self._ungroup(watcher)
            watcher.fall_behind()
        self._behind.clear()

    # --- The tables ------------------------------------------------------------------------------------------------

    def _groups_of(self, key: bytes) -> Iterable[Group]:
        groups: list[Group] = []
        group = self._exact.get(key)
        if group is not None:
            groups.append(group)
        for length, table in self._prefixes.items():
            group = table.get(key[:length])
            if group is not None:
                groups.append(group)
        if self._ranges_order:
            begun = self._ranges_order[: bisect_right(self._ranges_order, key, key=_lower_bound)]
            groups += [self._ranges[low, end] for low, end in begun if end == FROM_KEY or key < end]
        return groups

    def _group(self, watcher: Watcher) -> Group:
        """Return the group that the watcher belongs to, making it if need be."""
        key, end = watcher.key, watcher.end
        if not end:
            return self._exact.setdefault(key, {})
        prefix = prefix_of(key, end)
        if prefix is not None:
            return self._prefixes.setdefault(len(prefix), {}).setdefault(prefix, {})
        if (key, end) not in self._ranges:
            insort(self._ranges_order, (key, end))
        return self._ranges.setdefault((key, end), {})

    def _ungroup(self, watcher: Watcher) -> None:
        """Take a synced watcher out of its group, and the group out of its table when it was the last."""
        self._synced_count -= 1
        group = self._group(watcher)
        del group[watcher]
        if group:
            return
        key, end = watcher.key, watcher.end
        if not end:
            del self._exact[key]
        elif (prefix := prefix_of(key, end)) is not None:
            del self._prefixes[len(prefix)][prefix]
            if not self._prefixes[len(prefix)]:
                del self._prefixes[len(prefix)]
        else:
            del self._ranges[key, end]
            self._ranges_order.remove((key, end))


def prefix_of(key: bytes, end: bytes) -> bytes | None:
    """Return the prefix whose keys are exactly ``[key, end)``; None if there is none."""
    if end == FROM_KEY:
        return b"" if key == FROM_KEY else None
    trimmed = key.rstrip(b"\xff")
    if trimmed and trimmed[:-1] + bytes([trimmed[-1] + 1]) == end:
        return key
    return None
