"""A snapshot: every version from the compact revision to a pinned one, as a stream of bytes; and the way back.

The stream holds the pages nearly as they are in memory, so that writing one costs little more than copying:

.. code-block:: text

    header  magic "PKVS", format, revision, compact revision, compacted revision, first free page number
    page    "P", number, first revision, slots, bytes | the offsets of the slots (u32 each) | the records
    ...
    leases  "L", how many | of each its id, what it was granted for and what was left of it (u64 each, in seconds)
    ...
    end     "E", pages, live records, keys that exist, hash of the state

All integers are little endian. The stream is cut into chunks without regard to frames. Refs stay what they are, for
pages keep their numbers; the key index is not sent but built again from the records, and so are the keys of leases.

A reader trusts nothing: each record must continue the history of its key as a put or delete would have (revision,
version, create revision, the chain, the jump), its check must be that of its bytes, and the totals must agree, the
hash of the state among them. Whoever stores or sends the chunks has checksums besides; but what was damaged in memory,
before it was written, is seen here alone.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, islice, pairwise
from operator import add, lt
from struct import Struct
from types import TracebackType
from typing import NamedTuple, Self

from pyraftkv.errors import SnapshotCorruption
from pyraftkv.store.checks import check_of, checks_of
from pyraftkv.store.history import History
from pyraftkv.store.pages import (
    DEAD,
    PAGE_BYTES_TARGET,
    RECORD_BYTES,
    RECORD_BYTES_MAX,
    SLOT_BITS,
    SLOTS_MAX,
    Page,
    Pages,
    record_size,
    unpack_checked,
)
from pyraftkv.store.validate import LEASE_MAX, LEASE_TTL_MAX_SECONDS

CHUNK_BYTES_MAX = 256 * 1024
"""No chunk of a snapshot is larger."""

FORMAT = 2

_HEADER = Struct("<4sHQQQQ")
_MAGIC = b"PKVS"
_PAGE = Struct("<cQQIQ")
_PAGE_TAG = b"P"
_LEASES = Struct("<cI")
_LEASES_TAG = b"L"
_LEASE = Struct("<QQQ")
_END = Struct("<cQQQQ")
_END_TAG = b"E"

_OFFSET_BYTES = 4

_Row = tuple[int, int, int, int, int, int, int, int, int, int, int]
"""What `unpack_checked` returns."""

_FIRST = (1, 0, 0, 0, 0)
"""Version, lease, previous, jump and span of a key's first version, if it hangs on no lease."""

LEASES_PER_FRAME_MAX = 4096
"""Leases in one frame: 96 KiB."""

_PAGE_BYTES_MAX = PAGE_BYTES_TARGET + RECORD_BYTES_MAX


class _Columns(NamedTuple):
    """What `unpack_checked` returns of each record, of all records of a page."""

    mod: tuple[int, ...]
    create: tuple[int, ...]
    version: tuple[int, ...]
    lease: tuple[int, ...]
    previous: tuple[int, ...]
    jump: tuple[int, ...]
    sub: tuple[int, ...]
    span: tuple[int, ...]
    key_bytes: tuple[int, ...]
    value_bytes: tuple[int, ...]
    check: tuple[int, ...]


class Snapshot:
    """The store as of `revision`, to be walked while it goes on changing. Physical compaction waits until `close`.

    Iterate over it for the chunks; a second iteration yields the same bytes, unless a compaction was requested
    before the snapshot was taken and is still waiting for it.
    """

    __slots__ = (
        "_closed",
        "_end",
        "_header",
        "_history",
        "_key_count",
        "_leases",
        "_pages",
        "_state_hash",
        "revision",
    )

    def __init__(self, history: History) -> None:
        self._history = history
        self._closed = False
        history.pins += 1
        self.revision = history.published_revision
        """The last revision in the snapshot."""
        self._end = history.published_end()
        self._key_count = history.mark[2] if history.mark is not None else history.key_count
        self._state_hash = history.state_hash()
        self._pages = [page for page in history.pages.order if page.number <= self._end[0]]
        self._leases = history.leases.rows()
        self._header = _HEADER.pack(
            _MAGIC, FORMAT, self.revision, history.compact_revision, history.compacted_revision, self._end[0] + 1
        )

    def __iter__(self) -> Iterator[bytes]:
        """Yield chunks of at most `CHUNK_BYTES_MAX` bytes. O(chunk) each."""
        assert not self._closed, "the snapshot is closed"
        buffer = bytearray(self._header)
        pages = records = 0
        for page in self._pages:
            assert not self._closed, "the snapshot is closed"
            live = self._write(page, buffer)
            pages += live > 0
            records += live
            while len(buffer) >= CHUNK_BYTES_MAX:
                yield bytes(buffer[:CHUNK_BYTES_MAX])
                del buffer[:CHUNK_BYTES_MAX]
        for start in range(0, len(self._leases), LEASES_PER_FRAME_MAX):
            frame = self._leases[start : start + LEASES_PER_FRAME_MAX]
            buffer += _LEASES.pack(_LEASES_TAG, len(frame)) + b"".join([_LEASE.pack(*row) for row in frame])
            while len(buffer) >= CHUNK_BYTES_MAX:
                yield bytes(buffer[:CHUNK_BYTES_MAX])
                del buffer[:CHUNK_BYTES_MAX]
        buffer += _END.pack(_END_TAG, pages, records, self._key_count, self._state_hash)
        for start in range(0, len(buffer), CHUNK_BYTES_MAX):
            yield bytes(buffer[start : start + CHUNK_BYTES_MAX])

    def _write(self, page: Page, buffer: bytearray) -> int:
        """Append a page's frame, if it has a live record; return how many it has."""
        offsets, data = page.offsets, page.data
        end_page, end_slot = self._end
        if page.number == end_page and end_slot < len(offsets):
            # Cut the records that were not published when the snapshot was taken.
            size = next((offset for offset in offsets[end_slot:] if offset != DEAD), len(data))
            offsets, data = offsets[:end_slot], data[:size]
        live = len(offsets) - offsets.count(DEAD)
        if live:
            buffer += _PAGE.pack(_PAGE_TAG, page.number, page.first_revision, len(offsets), len(data))
            buffer += _little_endian(offsets).tobytes()
            buffer += data
        return live

    def close(self) -> None:
        """Let compaction go on. Idempotent."""
        if not self._closed:
            self._closed = True
            self._history.pins -= 1
            self._pages = []
            self._leases = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class HistoryReader:
    """Builds a history from the chunks of a snapshot. Each `feed` takes time in proportion to its chunk."""

    __slots__ = ("_buffer", "_ended", "_header_read", "_history", "_offset", "_pages", "_records", "_revision", "_sub")

    def __init__(self) -> None:
        self._history = History()
        self._buffer = bytearray()
        self._header_read = False
        self._ended = False
        self._offset = 0
        """The place in the stream of the buffer's first byte, for errors."""
        self._pages = 0
        self._records = 0
        self._revision = 1
        """Of the last record, with its `sub`: the next must be above."""
        self._sub = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk. O(its records x log n).

        Raises:
            SnapshotCorruption: The bytes are not a snapshot's; the reader is of no use any more.
        """
        self._buffer += chunk
        while size := self._frame_bytes():
            if not self._header_read:
                self._read_header()
            elif self._buffer[0] == _PAGE_TAG[0]:
                self._read_page(size)
            elif self._buffer[0] == _LEASES_TAG[0]:
                self._read_leases()
            else:
                self._read_end()
            del self._buffer[:size]
            self._offset += size

    def finish(self) -> History:
        """Return the history when every chunk was fed. Raises `SnapshotCorruption` if something is missing."""
        self._require(self._ended, "the snapshot ends too early")
        return self._history

    def _require(self, holds: object, reason: str) -> None:
        if not holds:
            raise self._corrupt(reason)

    def _corrupt(self, reason: str) -> SnapshotCorruption:
        return SnapshotCorruption(f"{reason}, in the frame at byte {self._offset}", offset=self._offset)

    def _frame_bytes(self) -> int:
        """Return the size of the frame that the buffer begins with; 0 if it is not there whole."""
        buffer = self._buffer
        if not buffer:
            return 0
        self._require(not self._ended, "bytes after the end")
        if not self._header_read:
            size = _HEADER.size
        elif buffer[0] == _PAGE_TAG[0]:
            if len(buffer) < _PAGE.size:
                return 0
            _, _, _, slots, data_bytes = _PAGE.unpack_from(buffer)
            self._require(slots <= SLOTS_MAX and data_bytes <= _PAGE_BYTES_MAX, "a page of impossible size")
            size = _PAGE.size + slots * _OFFSET_BYTES + data_bytes
        elif buffer[0] == _LEASES_TAG[0]:
            if len(buffer) < _LEASES.size:
                return 0
            _, count = _LEASES.unpack_from(buffer)
            self._require(0 < count <= LEASES_PER_FRAME_MAX, "an impossible number of leases")
            size = _LEASES.size + count * _LEASE.size
        else:
            self._require(buffer[0] == _END_TAG[0], "no frame begins like that")
            size = _END.size
        return size if len(buffer) >= size else 0

    def _read_header(self) -> None:
        magic, version, revision, compact_revision, compacted_revision, next_number = _HEADER.unpack_from(self._buffer)
        self._require(magic == _MAGIC, "not a snapshot of a store")
        self._require(version == FORMAT, f"format {version} is not known")
        self._require(revision >= 1 and compacted_revision <= compact_revision <= revision, "impossible revisions")
        self._require(next_number >= 1, "impossible page number")
        history = self._history
        history.published_revision = revision
        history.compact_revision = compact_revision
        history.compacted_revision = compacted_revision
        history.pages = Pages(next_number)
        self._header_read = True

    def _read_page(self, size: int) -> None:
        _, number, first_revision, count, _ = _PAGE.unpack_from(self._buffer)
        pages = self._history.pages
        last_number = pages.order[-2].number if len(pages.order) > 1 else 0
        self._require(last_number < number < pages.order[-1].number, "a page out of order")
        page = Page(number, first_revision)
        middle = _PAGE.size + count * _OFFSET_BYTES
        page.offsets.frombytes(self._buffer[_PAGE.size : middle])
        page.offsets = _little_endian(page.offsets)
        page.data = bytes(memoryview(self._buffer)[middle:size])
        self._require(self._revision <= first_revision, "a page out of order")
        # Before the records, which may refer to each other.
        pages.by_number[number] = page
        offsets = page.offsets.tolist()
        slots: Sequence[int] = range(len(offsets))
        if DEAD in offsets:
            slots = [slot for slot, offset in enumerate(offsets) if offset != DEAD]
            offsets = [offset for offset in offsets if offset != DEAD]
        rows = self._unpack(page.data, offsets)
        columns = _Columns(*zip(*rows, strict=True))
        self._check_layout(page, offsets, columns)
        keys = self._check_records(page, offsets, columns)
        self._index(page, list(map((number << SLOT_BITS).__or__, slots)), rows, columns, keys)
        pages.adopt(page)
        self._pages += 1
        self._records += len(rows)

    def _unpack(self, data: bytes | bytearray, offsets: list[int]) -> list[_Row]:
        try:
            rows = [unpack_checked(data, offset) for offset in offsets]
        except struct.error:
            rows = []
        self._require(rows, "a record cut off")
        return rows

    def _check_layout(self, page: Page, offsets: list[int], columns: _Columns) -> None:
        """Check that the records lie end to end, each of a later change than the one before."""
        self._require(0 not in columns.key_bytes, "a record cut off")
        sizes = map(RECORD_BYTES.__add__, map(add, columns.key_bytes, columns.value_bytes))
        ends = list(accumulate(sizes, initial=0))
        self._require(ends.pop() == len(page.data) and ends == offsets, "records that do not lie end to end")
        changes = list(zip(columns.mod, columns.sub, strict=True))
        self._require(
            all(map(lt, chain([(self._revision, self._sub)], changes), changes))
            and page.first_revision <= columns.mod[0]
            and columns.mod[-1] <= self._history.published_revision,
            "records out of order",
        )
        self._revision, self._sub = changes[-1]

    def _check_records(self, page: Page, offsets: list[int], columns: _Columns) -> list[bytes]:
        """Check that each record is what was written, count it as its key's newest, and return the keys."""
        data = bytes(page.data)
        starts = list(map(RECORD_BYTES.__add__, offsets))
        middles = list(map(add, starts, columns.key_bytes))
        ends = map(add, middles, columns.value_bytes)
        keys = [data[start:middle] for start, middle in zip(starts, middles, strict=True)]
        values = [data[middle:end] for middle, end in zip(middles, ends, strict=True)]
        found = checks_of(keys, values, columns.mod, columns.create, columns.version, columns.lease)
        self._require(found == list(columns.check), "a record that is not what was written")
        pages = self._history.pages
        pages.live_sum += sum(found)
        pages.live_bytes += len(data)
        self._require(min(columns.lease) >= 0, "an impossible record")
        for at, version in enumerate(columns.version) if 0 in columns.version else ():
            if not version:
                is_empty = not (columns.create[at] or columns.lease[at] or columns.value_bytes[at])
                self._require(is_empty, "an impossible record")
                pages.live_sum -= found[at]
                pages.live_bytes -= RECORD_BYTES + columns.key_bytes[at]
        return keys

    def _index(self, page: Page, refs: list[int], rows: list[_Row], columns: _Columns, keys: list[bytes]) -> None:
        """Make each record its key's newest.

        Most of a big snapshot are versions of keys that were never written again, with nothing to compare them with;
        and keys that were loaded, or begin with a time, were written in their order.
        """
        history = self._history
        index = history.index
        fields = zip(columns.version, columns.lease, columns.previous, columns.jump, columns.span, strict=True)
        is_first = [
            each == _FIRST and create == mod
            for each, create, mod in zip(fields, columns.create, columns.mod, strict=True)
        ]
        if all(is_first) and index.chunks[-1].loosened()[-1:] < keys[:1] and all(map(lt, keys, islice(keys, 1, None))):
            index.extend(keys, refs, newest=columns.mod[-1])
            history.key_count += len(keys)
            return
        for key, ref, row, may_be_new in zip(keys, refs, rows, is_first, strict=True):
            chunk = index.chunk_for(key)
            known = chunk.keys
            at = bisect_left(known, key)
            if not may_be_new or (at < len(known) and known[at] == key) or key in chunk.fresh:
                self._link(page, key, ref, row)
                continue
            chunk.live += 1
            chunk.newest = row[0]
            history.key_count += 1
            if chunk.insert(at, key, ref):
                history.split(key)
        index.settle()

    def _link(self, page: Page, key: bytes, ref: int, row: _Row) -> None:
        """Check that the version follows on its key's newest so far, and take its place."""
        mod, create, version, lease, previous, jump, _, span, _, _, _ = row
        history = self._history
        pages = history.pages
        chunk = history.index.chunk_for(key)
        known_keys = chunk.ordered()
        at = bisect_left(known_keys, key)
        is_full = False
        if at < len(known_keys) and known_keys[at] == key:
            self._require(previous == chunk.refs[at], "a broken chain of versions")
            place = pages.locate(previous)
            assert place is not None
            _, was_create, was_version, was_lease, _, was_jump, _, was_span, _, _, was_check = unpack_checked(
                place[0].data, place[1]
            )
            if version:
                expected = (was_create if was_version else mod, was_version + 1)
                self._require((create, version) == expected, "a version that does not follow the one before")
            else:
                self._require(was_version > 0, "a tombstone for a key that does not exist")
            # When this version was written, what the one before jumped to may have been there; now it may be dead.
            known = not was_jump or pages.locate(was_jump) or (jump < previous and pages.locate(jump))
            expected_jump = pages.jump_from(previous, was_jump, was_span)
            self._require(jump <= previous and (not known or (jump, span) == expected_jump), "a wrong jump")
            if was_version:
                place[0].stale += 1
                pages.live_sum -= was_check
                pages.live_bytes -= record_size(place[0].data, place[1])
            change = (version > 0) - (was_version > 0)
            chunk.refs[at] = ref
            if lease != was_lease:
                history.leases.move(key, was_lease, lease)
        else:
            self._require(previous < ref and jump <= previous, "a chain that does not go back")
            self._require(pages.locate(previous) is None and pages.locate(jump) is None, "a chain of another key")
            self._require(previous > 0 or (version, create, span) == (1, mod, 0), "a first version that is none")
            self._require(create <= mod, "created after it was changed")
            change = int(version > 0)
            is_full = chunk.insert(at, key, ref)
            if lease:
                history.leases.move(key, 0, lease)
        if not version:
            page.stale += 1
        chunk.live += change
        chunk.newest = mod
        history.key_count += change
        if is_full:
            history.split(key)

    def _read_leases(self) -> None:
        leases = self._history.leases
        _, count = _LEASES.unpack_from(self._buffer)
        for lease, ttl, left in _LEASE.iter_unpack(memoryview(self._buffer)[_LEASES.size :][: count * _LEASE.size]):
            is_possible = 0 < lease <= LEASE_MAX and 0 < ttl <= LEASE_TTL_MAX_SECONDS and left < ttl
            self._require(is_possible and lease not in leases, "an impossible lease")
            leases.add(lease, ttl, left)

    def _read_end(self) -> None:
        _, pages, records, key_count, state_hash = _END.unpack_from(self._buffer)
        self._require((pages, records) == (self._pages, self._records), "not all pages")
        # Compaction never removes a change of the last revision; but a revision that was bumped to has none.
        history = self._history
        is_last = self._revision == history.published_revision
        self._require(is_last or history.compact_revision == history.published_revision, "not the last revision")
        self._require(key_count == history.key_count, "not the same number of keys")
        self._require(state_hash == history.state_hash(), "not the state that was hashed")
        self._require(history.leases.are_all_there(), "a key of a lease that is not there")
        self._ended = True


def _little_endian(offsets: array[int]) -> array[int]:
    assert offsets.itemsize == _OFFSET_BYTES
    if sys.byteorder == "big":
        offsets = offsets[:]
        offsets.byteswap()
    return offsets


def check_history(history: History) -> None:
    """Assert what `History`, `Pages` and `KeyIndex` promise. O(everything)."""
    pages, index = history.pages, history.index
    index.check()
    assert 0 <= history.compacted_revision <= history.compact_revision <= history.published_revision
    assert pages.size_bytes == sum(len(page.data) for page in pages.order)
    newest = pages.order[-1]
    assert pages.by_number == {page.number: page for page in pages.order if page.offsets or page is newest}
    stale = dict.fromkeys(pages.by_number, 0)
    assert sum(chunk.live for chunk in index.chunks) == history.key_count
    for older, newer in pairwise(pages.order):
        assert older.number < newer.number
        assert older.first_revision <= newer.first_revision
    last = (0, -1)
    live_sum = live_bytes = 0
    for page in pages.order:
        position = 0
        for slot, offset in enumerate(page.offsets):
            if offset == DEAD:
                continue
            assert offset == position
            fields = unpack_checked(page.data, offset)
            mod, create, version, lease, _, _, sub, _, key_bytes, value_bytes, check = fields
            assert last < (mod, sub)
            assert page.first_revision <= mod <= history.published_revision + 1
            last = (mod, sub)
            middle = offset + RECORD_BYTES + key_bytes
            key = bytes(page.data[middle - key_bytes : middle])
            assert check == check_of(key, page.data[middle : middle + value_bytes], mod, create, version, lease)
            is_head = index.find(key) == page.number << SLOT_BITS | slot
            if version and is_head:
                live_sum += check
                live_bytes += record_size(page.data, offset)
            assert is_head or pages.visible(index.find(key), mod)
            stale[page.number] += not version or not is_head
            position += RECORD_BYTES + key_bytes + value_bytes
        assert position == len(page.data)
    assert (live_sum, live_bytes) == (pages.live_sum, pages.live_bytes)
    assert stale == {page.number: page.stale for page in pages.by_number.values()}
    attached: dict[bytes, int] = {}
    for chunk in index.chunks:
        keys = chunk.ordered()
        values = [pages.key_value(ref) for ref in chunk.refs]
        assert chunk.live == sum(value is not None for value in values)
        attached |= {value.key: value.lease for value in values if value is not None and value.lease}
        for key, ref, value in zip(keys, chunk.refs, values, strict=True):
            assert pages.revision_of(ref) <= chunk.newest
            assert value is None or value.key == key
    assert history.leases.holds(attached)
