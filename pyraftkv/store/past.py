"""Looking back: the versions that a key has had, and what has changed between two revisions.

*Versions* stand in a chain from the newest to the oldest (`pages.py`). Newest first is a walk down the chain, oldest
first a walk down to where a page of the answer ends, by way of the jumps, and a turn: O(log versions + page) either
way.

*What is kept* is the same on every member, whatever each has removed of what was compacted: the versions at or above
the compact revision, and of the older ones the one that was there at that revision.

*A difference* reads the pages between two revisions, which are in the order of revisions, and so is the answer: a key
stands where it was changed last. So it holds nothing but the answer's page, and goes on from any change of any
revision, on any member: `sub` numbers the changes within a revision, and no compaction renumbers them. O(log pages +
changes between, whatever their keys).

Both answer a page at a time, bounded in bytes and in what they look at, for a caller that comes again.
"""

from __future__ import annotations

from pyraftkv.store.commands import DiffQuery, VersionsQuery
from pyraftkv.store.history import History
from pyraftkv.store.pages import RECORD_BYTES, SLOT_BITS, Page, decode, unpack_record
from pyraftkv.store.ranges import SLICE_KEYS, bounds, kv_bytes
from pyraftkv.store.values import Change, DiffResult, Event, EventType, KeyValue, VersionsResult
from pyraftkv.store.work import Steps

ANSWER_BYTES_MAX = 1024 * 1024
"""No answer goes on to another version or change when it holds this many bytes of key-values."""

VERSIONS_MAX = 1000
"""No answer holds more versions, whatever it was asked for (and those of its last revision)."""

DIFF_RECORDS_MAX = 500_000
"""One answer looks at no more changes than this, about a second's work, whether they are of its range or not."""


def versions_steps(history: History, query: VersionsQuery, *, newest: int) -> Steps[VersionsResult]:
    """Return versions of a key from ``query.min_revision`` to ``newest``, a page of them. O(log versions + page)."""
    chain = _Chain(history, query.key, query.min_revision)
    limit = min(query.limit, VERSIONS_MAX)
    head = history.pages.visible(chain.head, newest)
    if query.newest_first:
        refs, more = chain.walk(head, limit)
    else:
        steps = max(0, chain.count(head) - limit)
        while steps and chain.are_of_one_revision(chain.ancestor(head, steps - 1), chain.ancestor(head, steps)):
            steps -= 1
        refs, _ = chain.walk(chain.ancestor(head, steps), limit)
        refs.reverse()
        more = steps > 0
    events: list[Event] = []
    bytes_left = ANSWER_BYTES_MAX
    for ref in refs:
        place = history.pages.locate(ref)
        assert place is not None
        event = event_at(*place)
        is_alone = ref == chain.oldest and query.newest_first
        if bytes_left <= 0 and event.kv.mod_revision != events[-1].kv.mod_revision and not is_alone:
            more = True
            break
        events.append(event)
        bytes_left -= kv_bytes(event.kv.key, len(event.kv.value))
    yield len(refs)
    next_revision = 0
    if more and query.newest_first:
        next_revision = events[-1].kv.mod_revision - 1
    elif more:
        next_revision = max(events[-1].kv.mod_revision + 1, history.compact_revision)
    return VersionsResult(history.published_revision, events, next_revision)


def event_at(page: Page, offset: int) -> Event:
    """Decode a version; one that ends its key is an event of that kind. O(size)."""
    kv = decode(page, offset)
    if kv is not None:
        return Event(EventType.PUT, kv)
    mod_revision, _, _, _, _, _, _, _, key_bytes, _ = unpack_record(page.data, offset)
    start = offset + RECORD_BYTES
    return Event(EventType.DELETE, KeyValue(bytes(page.data[start : start + key_bytes]), b"", 0, mod_revision, 0))


class _Chain:
    """The versions of a key, as far down as they are kept and asked for.

    Whoever asks for the next page names a revision. So two versions of one revision (a transaction deleted the key and
    put it again) are never parted; nor, newest first, is the oldest left alone, which no revision can be named for.
    """

    def __init__(self, history: History, key: bytes, min_revision: int) -> None:
        self._pages = history.pages
        self.head = history.index.find(key)
        self._floor_revision = max(min_revision, history.compact_revision)
        self.oldest = 0
        """What was there at the compact revision, and is older than that."""
        if min_revision <= 0:
            oldest = self._pages.visible(self.head, history.compact_revision)
            self.oldest = oldest if self._pages.key_value(oldest) is not None else 0

    def walk(self, ref: int, limit: int) -> tuple[list[int], bool]:
        """Return up to ``limit`` versions from ``ref`` down, and whether there are more."""
        refs: list[int] = []
        while self._has(ref):
            is_full = len(refs) >= limit and not self.are_of_one_revision(ref, refs[-1])
            if is_full and ref != self.oldest:
                return refs, True
            refs.append(ref)
            ref = self._links(ref)[0]
        return refs, False

    def count(self, ref: int) -> int:
        """Return how many versions there are from ``ref`` down. O(log versions)."""
        count = 0
        while self._has(ref):
            previous, jump, span = self._links(ref)
            ref, count = (jump, count + span) if self._has(jump) else (previous, count + 1)
        return count

    def ancestor(self, ref: int, steps: int) -> int:
        """Return the version that is ``steps`` older than ``ref``, which must be there. O(log versions)."""
        while steps:
            previous, jump, span = self._links(ref)
            ref, steps = (jump, steps - span) if jump and span <= steps else (previous, steps - 1)
        return ref

    def are_of_one_revision(self, one: int, other: int) -> bool:
        """Tell whether one command made both versions."""
        return self._pages.revision_of(one) == self._pages.revision_of(other)

    def _has(self, ref: int) -> bool:
        return ref != 0 and (ref == self.oldest or self._pages.revision_of(ref) >= max(1, self._floor_revision))

    def _links(self, ref: int) -> tuple[int, int, int]:
        """Return the version before, a far ancestor, and how far that is."""
        place = self._pages.locate(ref)
        assert place is not None
        _, _, _, _, previous, jump, _, span, _, _ = unpack_record(place[0].data, place[1])
        return previous, jump, span


def diff_steps(history: History, query: DiffQuery, *, newer: int) -> Steps[DiffResult]:
    """Return what differs between ``query.older`` and ``newer``, from the change on that the query names."""
    pages = history.pages
    first = max(query.next_revision, query.older + 1)
    cursor = pages.seek(first, query.next_sub if first == query.next_revision else 0)
    low, high = bounds(query.key, query.end)
    changes: list[Change] = []
    bytes_left, records_left = ANSWER_BYTES_MAX, DIFF_RECORDS_MAX
    history.pins += 1
    try:
        is_over = False
        while not is_over:
            is_over = True
            for examined, (page, slot, offset) in enumerate(pages.scan(cursor, history.published_end())):
                mod_revision, _, _, _, previous, _, sub, _, key_bytes, _ = unpack_record(page.data, offset)
                if mod_revision > newer:
                    break
                if len(changes) >= query.limit or bytes_left <= 0 or not records_left:
                    return DiffResult(history.published_revision, changes, mod_revision, sub)
                records_left -= 1
                key = bytes(page.data[offset + RECORD_BYTES : offset + RECORD_BYTES + key_bytes])
                if low <= key and (high is None or key < high):
                    ref = page.number << SLOT_BITS | slot
                    change = _change(history, key, ref, previous, query.older, newer)
                    if change is not None:
                        changes.append(change)
                        bytes_left -= sum(kv_bytes(key, len(kv.value)) for kv in (change.before, change.after) if kv)
                if examined >= SLICE_KEYS:
                    is_over = False
                    break
            yield SLICE_KEYS
    finally:
        history.pins -= 1
    return DiffResult(history.published_revision, changes)


def _change(history: History, key: bytes, ref: int, previous: int, older: int, newer: int) -> Change | None:
    """Return the difference that a key makes, if ``ref`` is the last change of it between the revisions."""
    pages = history.pages
    if pages.visible(history.index.find(key), newer) != ref:
        return None
    before, after = pages.key_value(pages.visible(previous, older)), pages.key_value(ref)
    return Change(before, after) if before is not None or after is not None else None
