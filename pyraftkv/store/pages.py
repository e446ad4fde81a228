"""Every version of every key, packed as bytes in the order of their revisions.

A million small Python objects cost memory and, worse, time in every full garbage collection. So a *version* (one put
or one tombstone) is a run of bytes, its *record*, and records stand in *pages* of about 64 KiB. Pages are filled
strictly in revision order, and that one layout serves three masters: it is the data, it is the history that watches
read, and it is what a snapshot sends, nearly verbatim.

A record is addressed by a *ref*: ``page number << 12 | slot``. The page's table of offsets says where a slot's
record begins. Refs are good for life: compaction rewrites a page without its dead records but keeps the slot numbers
of the others (a dead slot holds the offset `DEAD`), and a page that has died whole is dropped, its number never used
again. Ref 0 is no version, for page numbers begin at 1.

The versions of one key form a chain from the newest (which the key index knows) to the oldest, through `previous`.
Walking it costs a step per version, too slow for a key that was written a hundred thousand times. So each record also
has a `jump` to some far ancestor, laid out as Myers' skew-binary lists (E. Myers, "An applicative random-access
stack", 1983): a version jumps over two equal jumps of its predecessor if there are two, else just to its
predecessor. That needs one extra field, the `span` of the jump in versions, is never changed afterwards, and reads
any old version in O(log versions) steps.

Each record also holds its *check*, a hash of everything in it that is the same on every member. The sum of the checks
of the newest versions is the hash of the whole state, kept up to date by a subtraction and an addition per change
(`live_sum`); and whoever reads a record may see whether it still is what was written. See `checks.py`.

What compaction may leave behind, and why it is harmless: `previous` and `jump` of a kept record may name dead records.
Whatever is dead is older than the version visible at the compact revision, and nobody may ask below that. So a walk
that meets a dead record knows that it has gone too far (`jump`) or that there is nothing there (`previous`).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from operator import attrgetter
from struct import Struct

from pyraftkv.store.checks import check_of
from pyraftkv.store.values import KeyValue

PAGE_BYTES_TARGET = 64 * 1024
"""A page is sealed as soon as it holds this much."""

RECORD_BYTES_MAX = 64 * 1024 * 1024
"""No record is larger; what claims to be is damage."""

SLOT_BITS = 12
SLOT_MASK = (1 << SLOT_BITS) - 1
SLOTS_MAX = 1 << SLOT_BITS
"""Only an open page that is compacted again and again comes near: dead slots are never given out twice."""

SUB_END = 1 << 32
"""No revision has so many changes: their number has 32 bits."""

DEAD = 0xFFFF_FFFF
"""The offset of a slot whose record was compacted away."""

RECORD = Struct("<QQQqQQIIIIQ")
"""mod revision, create revision, version, lease, previous, jump, sub, span, key length, value length, check.

The key and the value follow. `sub` counts the changes within one revision from 0. A tombstone has version 0 and create
revision 0.
"""

RECORD_BYTES = RECORD.size

unpack_record = Struct("<QQQqQQIIII8x").unpack_from
"""All fields but the check, which few need."""
unpack_checked = RECORD.unpack_from
_pack = RECORD.pack
_unpack_revision = Struct("<Q").unpack_from
_first_revision = attrgetter("first_revision")
_number = attrgetter("number")


class Page:
    """Records of consecutive changes.

    Invariants: live records lie end to end in `data` in slot order; `stale` of them are tombstones or have a newer
    version, which is what compaction can hope to remove. The open page's `data` is a bytearray, a sealed one's bytes.
    """

    __slots__ = ("data", "first_revision", "number", "offsets", "stale")

    def __init__(self, number: int, first_revision: int) -> None:
        self.number = number
        self.first_revision = first_revision
        """No record here is of an earlier revision, and none in an earlier page is of a later one."""
        self.data: bytes | bytearray = bytearray()
        self.offsets: array[int] = array("I")
        self.stale = 0

    def live(self) -> int:
        """How many records are not dead. O(slots)."""
        return len(self.offsets) - self.offsets.count(DEAD)


class Cursor:
    """A place between two records that stays good whatever is appended or compacted: the next slot to look at."""

    __slots__ = ("page", "slot")

    def __init__(self, page: int, slot: int) -> None:
        self.page = page
        self.slot = slot


class Pages:
    """All pages, in order. Knows records and chains, nothing of keys' order or of what is published."""

    __slots__ = ("_open", "_sealed_bytes", "by_number", "live_bytes", "live_sum", "order")

    def __init__(self, next_number: int = 1) -> None:
        self._open = Page(next_number, 0)
        self.by_number: dict[int, Page] = {next_number: self._open}
        self.order: list[Page] = [self._open]
        self._sealed_bytes = 0
        self.live_sum = 0
        """The sum of the checks of the newest versions, tombstones left out: whoever supersedes one subtracts it."""
        self.live_bytes = 0
        """The bytes of the records that are their keys' newest, without tombstones: what compaction leaves for good."""

    @property
    def size_bytes(self) -> int:
        """The bytes of all records, superseded ones included."""
        return self._sealed_bytes + len(self._open.data)

    def end(self) -> tuple[int, int]:
        """Return the place after the last record: page number and slot."""
        return self._open.number, len(self._open.offsets)

    # --- Writing ---------------------------------------------------------------------------------------------------

    def append(
        self,
        key: bytes,
        value: bytes,
        mod_revision: int,
        create_revision: int,
        version: int,
        lease: int,
        previous: int,
        jump: int,
        sub: int,
        span: int,
    ) -> int:
        """Write a record behind all others and return its ref. O(1), and O(page) when it fills the page.

        Positional, and in the record's order, because every put comes through here.
        """
        page = self._open
        data = page.data
        offset = len(data)
        slot = len(page.offsets)
        check = check_of(key, value, mod_revision, create_revision, version, lease)
        data += (
            _pack(
                mod_revision, create_revision, version, lease, previous, jump, sub, span, len(key), len(value), check
            )
            + key
            + value
        )  # fmt: skip
        if version:
            self.live_sum += check
            self.live_bytes += len(data) - offset
        page.offsets.append(offset)
        if not slot:
            page.first_revision = mod_revision
        if len(data) >= PAGE_BYTES_TARGET or slot == SLOT_MASK:
            self._seal()
        return page.number << SLOT_BITS | slot

    def _seal(self) -> None:
        page = self._open
        page.data = bytes(page.data)
        self._sealed_bytes += len(page.data)
        self._open = Page(page.number + 1, 0)
        self.by_number[self._open.number] = self._open
        # The order is searched by first revision; an empty page must not come before what it will hold.
        self._open.first_revision = revision_at(page.data, page.offsets[-1])
        self.order.append(self._open)

    def adopt(self, page: Page) -> None:
        """Take a sealed page of a snapshot; they come in order, before anything is appended."""
        assert not self._open.offsets, "pages are adopted before anything is written"
        assert page.number < self._open.number, (page.number, self._open.number)
        self.by_number[page.number] = page
        self.order.insert(len(self.order) - 1, page)
        self._sealed_bytes += len(page.data)
        self._open.first_revision = revision_at(page.data, last_offset(page))

    def jump_from(self, parent: int, jump: int, span: int) -> tuple[int, int]:
        """Return the jump of a version that follows ``parent``, and its span.

        Args:
            parent: The ref of the version before.
            jump: Where that one jumps to; 0 if it is a first version.
            span: Over how many versions it does.
        """
        if jump:
            page = self.by_number.get(jump >> SLOT_BITS)
            if page is not None:
                offset = page.offsets[jump & SLOT_MASK]
                if offset != DEAD:
                    _, _, _, _, _, far, _, far_span, _, _ = unpack_record(page.data, offset)
                    if far_span == span:
                        return far, 2 * span + 1
        return parent, 1

    def rewrite(self, page: Page, doomed: set[int]) -> None:
        """Remove the records of the slots ``doomed``, or the whole sealed page when none is left. O(page)."""
        data = page.data
        offsets = page.offsets
        kept: list[bytes | bytearray] = []
        position = 0
        for slot, offset in enumerate(offsets):
            if offset == DEAD:
                continue
            if slot in doomed:
                offsets[slot] = DEAD
                continue
            size = record_size(data, offset)
            kept.append(data[offset : offset + size])
            offsets[slot] = position
            position += size
        page.stale -= len(doomed)
        if page is self._open:
            page.data = bytearray(b"".join(kept))
            return
        page.data = b"".join(kept)
        self._sealed_bytes -= len(data) - position
        if not kept:
            page.offsets = array("I")
            del self.by_number[page.number]

    def purge(self) -> None:
        """Forget the pages that `rewrite` has emptied. O(pages)."""
        by_number = self.by_number
        self.order = [page for page in self.order if page.number in by_number]

    # --- Reading ---------------------------------------------------------------------------------------------------

    def locate(self, ref: int) -> tuple[Page, int] | None:
        """Return the page of ``ref`` and the record's offset in it; None if it is dead or 0. O(1)."""
        page = self.by_number.get(ref >> SLOT_BITS)
        if page is None:
            return None
        offset = page.offsets[ref & SLOT_MASK]
        return None if offset == DEAD else (page, offset)

    def revision_of(self, ref: int) -> int:
        """Return the mod revision of ``ref``; 0 if it is dead or 0, so that it is older than everything. O(1)."""
        place = self.locate(ref)
        return revision_at(place[0].data, place[1]) if place is not None else 0

    def visible(self, ref: int, revision: int) -> int:
        """Return the newest version at or below ``revision`` in the chain that begins at ``ref``; 0 if there is none.

        O(log versions).
        """
        while place := self.locate(ref):
            page, offset = place
            mod_revision, _, _, _, previous, jump, _, _, _, _ = unpack_record(page.data, offset)
            if mod_revision <= revision:
                return ref
            ref = jump if self.revision_of(jump) > revision else previous
        return 0

    def key_value(self, ref: int) -> KeyValue | None:
        """Decode the version ``ref``; None for 0, a dead one or a tombstone. O(size)."""
        place = self.locate(ref)
        return decode(*place) if place is not None else None

    def seek(self, revision: int, sub: int = 0) -> Cursor:
        """Return the place before the first record at or above change ``sub`` of ``revision``.

        O(log pages + slots of a page). Other than 0, `sub` is for a revision of which nothing may be compacted.
        """
        order = self.order
        at = bisect_left(order, revision, key=_first_revision)
        if sub:
            at = bisect_left(order, sub, at, bisect_right(order, revision, key=_first_revision), key=_first_sub)
        page = order[max(0, at - 1)]
        for slot, offset in enumerate(page.offsets):
            if offset != DEAD and change_at(page.data, offset) >= (revision, sub):
                return Cursor(page.number, slot)
        return Cursor(page.number, len(page.offsets))

    def scan(self, cursor: Cursor, end: tuple[int, int]) -> Iterator[tuple[Page, int, int]]:
        """Yield page, slot and offset of each live record from ``cursor`` up to ``end`` (exclusive).

        The cursor stands behind the record that was yielded last. Nothing may be written between two records.
        """
        end_page, end_slot = end
        at = bisect_right(self.order, cursor.page, key=_number) - 1
        if at < 0 or self.order[at].number != cursor.page:  # compacted away beneath the cursor
            at += 1
            if at == len(self.order):
                return
            cursor.page, cursor.slot = self.order[at].number, 0
        while cursor.page <= end_page:
            page = self.order[at]
            offsets = page.offsets
            stop = end_slot if page.number == end_page else len(offsets)
            for slot in range(cursor.slot, stop):
                offset = offsets[slot]
                if offset != DEAD:
                    cursor.slot = slot + 1
                    yield page, slot, offset
            cursor.slot = max(cursor.slot, stop)
            at += 1
            if at == len(self.order) or self.order[at].number > end_page:
                return
            cursor.page, cursor.slot = self.order[at].number, 0


def revision_at(data: bytes | bytearray, offset: int) -> int:
    """Return the mod revision of the record at ``offset``."""
    revision: int = _unpack_revision(data, offset)[0]
    return revision


def change_at(data: bytes | bytearray, offset: int) -> tuple[int, int]:
    """Return the mod revision and the `sub` of the record at ``offset``."""
    fields = unpack_record(data, offset)
    return fields[0], fields[6]


def _first_sub(page: Page) -> int:
    """Return the `sub` of a page's first record; of an empty one, which is open, one above all."""
    return change_at(page.data, page.offsets[0])[1] if page.offsets else SUB_END


def record_size(data: bytes | bytearray, offset: int) -> int:
    """Return the length in bytes of the record at ``offset``, its key and value included."""
    *_, key_bytes, value_bytes = unpack_record(data, offset)
    size: int = RECORD_BYTES + key_bytes + value_bytes
    return size


def last_offset(page: Page) -> int:
    """Return the offset of the last live record of a page that has one."""
    return next(offset for offset in reversed(page.offsets) if offset != DEAD)


def decode(page: Page, offset: int) -> KeyValue | None:
    """Return the key-value at ``offset``; None if it is a tombstone. O(size)."""
    data = page.data
    mod_revision, create_revision, version, lease, _, _, _, _, key_bytes, value_bytes = unpack_record(data, offset)
    if not version:
        return None
    start = offset + RECORD_BYTES
    middle = start + key_bytes
    key = bytes(data[start:middle])
    value = bytes(data[middle : middle + value_bytes])
    return KeyValue(key, value, create_revision, mod_revision, version, lease)
