"""Records: the framed, salted, checksummed pieces that a write-ahead log segment is made of.

.. code-block:: text

    0       4        8     12     13      14      16      24      32     40
    ┌───────┬────────┬─────┬──────┬───────┬───────┬───────┬───────┬──────┬─────────┬──────┐
    │ magic │ length │ CRC │ type │ flags │ group │ batch │ index │ term │ payload │ pad  │   8-aligned
    └───────┴────────┴─────┴──────┴───────┴───────┴───────┴───────┴──────┴─────────┴──────┘

A *batch* is what one fdatasync makes durable: its records, closed by a COMMIT record that counts them and continues a
checksum over the headers of every record before (each header holds the checksum of its payload). A batch whose COMMIT
is missing or wrong does not exist.

Rules that the rest of the log rests on:

1. The CRC starts from the segment's random salt, so bytes of another segment never look like a record of this one.
2. A batch's number is one more than the one before. Batch N+1 is written only after the sync of batch N returned: a
   valid record of a later batch proves that an earlier one was durable, whatever its bytes look like now.
3. A length is checked against the bound and against what is left of the file before anything is cut or allocated.
4. CRC-32 finds every error of three bits only up to 11 KiB, so runs of entries stay below `RUN_BYTES_MAX`, and the
   payload of a single larger entry is followed by eight bytes of BLAKE2b.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from enum import IntEnum
from hashlib import blake2b
from itertools import accumulate, groupby, islice
from struct import Struct
from sys import byteorder
from zlib import crc32

from pyraftkv._record import record
from pyraftkv.core.types import NORMAL, Entry, EntryKind, HardState, Membership, SnapshotMeta

MAGIC = b"\xd7WAL"

RUN_BYTES_MAX = 4096
"""A run of entries ends at this many bytes of payload; a single entry may be larger."""
RECORD_BYTES_MAX = 64 << 20
"""The longest payload of a record that is written or believed."""
DIGEST_BYTES_MIN = 8192
"""Payloads from this size on carry a BLAKE2b digest besides their CRC."""
MEMBERS_MAX = 256
"""The most ids that a stored membership can hold, all its sets together."""

_HEADER = Struct("<4sIIBBHQQQ")
_LEAD = Struct("<4sI")
_REST = Struct("<BBHQQQ")
_CRC = Struct("<I")
_COMMIT = Struct("<IIQ")
_VOTE = Struct("<Q")
_COUNT = Struct("<I")
_MEMBERSHIP = Struct("<HHHHHB")
HEADER_BYTES = _HEADER.size

_LEAD_PACK, _REST_PACK, _CRC_PACK = _LEAD.pack, _REST.pack, _CRC.pack

_PADS = tuple(b"\0" * (-size % 8) for size in range(8))


class RecordType(IntEnum):
    """What a record's payload is."""

    ENTRIES = 1
    """A run of entries, consecutive and of one term and kind; `index` is the first one's."""
    HARD_STATE = 2
    """`term`, and `index` as the commit index; the payload is the vote."""
    SNAPSHOT = 3
    """Names a snapshot file by `index` and `term`; the payload is its membership."""
    COMMIT = 4
    """Ends a batch; `index` is the last index of the log after it."""
    SEAL = 5
    """Nothing follows in this segment; the next one goes on."""


ENTRIES = RecordType.ENTRIES
HARD_STATE = RecordType.HARD_STATE
SNAPSHOT = RecordType.SNAPSHOT
COMMIT = RecordType.COMMIT
SEAL = RecordType.SEAL

_KIND_BITS = 0x0F
"""ENTRIES: the `EntryKind`."""
RESET_FLAG = 0x10
"""SNAPSHOT: received, it replaces the log; without the flag it was taken of this log, which goes on."""
DIGEST_FLAG = 0x20
"""The payload's last eight bytes are its BLAKE2b digest."""
SKIPPABLE_FLAG = 0x80
"""A reader that does not know the type may pass over the record."""


@record
class Frame:
    """One record as found, verified."""

    type: int
    flags: int
    batch: int
    index: int
    term: int
    offset: int
    size: int
    """The bytes it takes in the segment, header and padding included."""
    payload: memoryview


@record
class Commit:
    """The payload of a COMMIT record."""

    count: int
    chain: int
    previous: int
    """Where the COMMIT before it in this segment is; 0 for the first."""


@record
class RunPlace:
    """Where a run of entries went: its first and last index, its record's offset in the segment, its record's size."""

    first: int
    last: int
    offset: int
    size: int


class BatchEncoder:
    """Builds the bytes of one batch. Appends only; `finish` ends it.

    Args:
        salt: The segment's.
        batch: This batch's number.
        chain: The chained checksum after the batch before.
        offset: Where in the segment the batch will stand.
        previous_commit: Where the segment's last COMMIT stands, or 0.
    """

    def __init__(self, *, salt: int, batch: int, chain: int, offset: int, previous_commit: int) -> None:
        self._salt = salt
        self._batch = batch
        self._chain = chain
        self._offset = offset
        self._previous_commit = previous_commit
        self._parts: list[bytes] = []
        self._count = 0

    @property
    def is_empty(self) -> bool:
        return not self._count

    @property
    def offset(self) -> int:
        """Where the next record will stand."""
        return self._offset

    @property
    def chain(self) -> int:
        """The chained checksum so far."""
        return self._chain

    def _add(self, type_: RecordType, flags: int, index: int, term: int, payload: bytes) -> None:
        if len(payload) >= DIGEST_BYTES_MIN:
            payload += blake2b(payload, digest_size=8).digest()
            flags |= DIGEST_FLAG
        size = len(payload)
        assert size <= RECORD_BYTES_MAX, f"a record of {size} bytes"
        body = payload + _PADS[size & 7] if size & 7 else payload
        lead = _LEAD_PACK(MAGIC, size)
        rest = _REST_PACK(type_, flags, 0, self._batch, index, term)
        header = lead + _CRC_PACK(crc32(body, crc32(rest, crc32(lead, self._salt)))) + rest
        self._chain = crc32(header, self._chain)
        self._parts += (header, body)
        self._offset += HEADER_BYTES + len(body)
        self._count += 1

    def entries(self, entries: Sequence[Entry]) -> list[RunPlace]:
        """Add consecutive entries, as one record per run of one term and kind; return where they went. O(bytes)."""
        if not entries:
            return []
        first, last = entries[0], entries[-1]
        assert last.index - first.index == len(entries) - 1, "entries are not consecutive"
        # Terms never fall along a log, so equal ends mean one term. Most batches end here.
        if first.term == last.term and not sum([entry.kind for entry in entries]):
            return self._run(first.index, first.term, NORMAL, [entry.payload for entry in entries])
        places: list[RunPlace] = []
        index = first.index
        for (term, kind), group in groupby(entries, lambda entry: (entry.term, entry.kind)):
            payloads = [entry.payload for entry in group]
            places += self._run(index, term, kind, payloads)
            index += len(payloads)
        return places

    def _run(self, index: int, term: int, kind: EntryKind, payloads: list[bytes]) -> list[RunPlace]:
        places: list[RunPlace] = []
        lengths = array("I", map(len, payloads))
        ends = list(accumulate(lengths))
        if byteorder == "big":  # pragma: no cover
            lengths.byteswap()
        start = done = 0
        while start < len(payloads):
            stop = max(bisect_right(ends, done + RUN_BYTES_MAX, start), start + 1)
            offset = self._offset
            # The layout of codec.pack_run, from a table made once: half the time at 15 entries a run.
            table = (_COUNT.pack(stop - start), lengths[start:stop].tobytes())
            self._add(ENTRIES, kind, index + start, term, b"".join((*table, *payloads[start:stop])))
            places.append(RunPlace(index + start, index + stop - 1, offset, self._offset - offset))
            start, done = stop, ends[stop - 1]
        return places

    def hard_state(self, state: HardState) -> None:
        """Add the hard state."""
        self._add(HARD_STATE, 0, state.commit, state.term, _VOTE.pack(state.vote))

    def snapshot(self, meta: SnapshotMeta, *, reset: bool) -> None:
        """Add the name of a snapshot; `reset` when it replaces the log."""
        self._add(SNAPSHOT, RESET_FLAG if reset else 0, meta.index, meta.term, pack_membership(meta.membership))

    def seal(self, index: int) -> None:
        """Add the mark that ends the segment."""
        self._add(SEAL, 0, index, 0, b"")

    def finish(self, last_index: int) -> bytes:
        """Close the batch with its COMMIT and return its bytes."""
        self._add(COMMIT, 0, last_index, 0, _COMMIT.pack(self._count, self._chain, self._previous_commit))
        return b"".join(self._parts)


def read_frame(data: memoryview, offset: int, *, salt: int) -> Frame | None:
    """Return the valid record at ``offset`` of a segment's bytes, or None. Allocates nothing. O(record)."""
    left = len(data) - offset
    if left < HEADER_BYTES:
        return None
    magic, length, crc, type_, flags, _group, batch, index, term = _HEADER.unpack_from(data, offset)
    size = HEADER_BYTES + length + (-length & 7)
    if magic != MAGIC or length > RECORD_BYTES_MAX or size > left:
        return None
    if crc32(data[offset + 12 : offset + size], crc32(data[offset : offset + 8], salt)) != crc:
        return None
    payload = data[offset + HEADER_BYTES : offset + HEADER_BYTES + length]
    if flags & DIGEST_FLAG:
        payload, digest = payload[:-8], payload[-8:]
        if blake2b(payload, digest_size=8).digest() != bytes(digest):
            return None
    return Frame(type_, flags, batch, index, term, offset, size, payload)


def chain_over(data: memoryview, frame: Frame, chain: int) -> int:
    """Continue the chained checksum over a record's header."""
    return crc32(data[frame.offset : frame.offset + HEADER_BYTES], chain)


def unpack_commit(frame: Frame) -> Commit:
    """Return what a COMMIT record says."""
    return Commit(*_COMMIT.unpack(frame.payload))


def unpack_hard_state(frame: Frame) -> HardState:
    """Return what a HARD_STATE record says."""
    return HardState(term=frame.term, vote=_VOTE.unpack(frame.payload)[0], commit=frame.index)


def unpack_snapshot(frame: Frame) -> SnapshotMeta:
    """Return what a SNAPSHOT record says."""
    return SnapshotMeta(index=frame.index, term=frame.term, membership=unpack_membership(frame.payload))


def run_count(frame: Frame) -> int:
    """Return how many entries an ENTRIES record holds; 0 if its table cannot be right."""
    if len(frame.payload) < _COUNT.size:
        return 0
    count: int = _COUNT.unpack_from(frame.payload)[0]
    return count if _COUNT.size * (count + 1) <= len(frame.payload) else 0


def unpack_run(frame: Frame) -> list[Entry]:
    """Return the entries of an ENTRIES record. O(bytes).

    Raises: `ValueError` if the table of lengths does not fit the bytes.
    """
    count = run_count(frame)
    if not count:
        raise ValueError("the table of lengths does not fit the payload")
    ends = list(accumulate(Struct(f"<{count}I").unpack_from(frame.payload, 4), initial=4 * (count + 1)))
    if ends[-1] != len(frame.payload):
        raise ValueError("the table of lengths does not fit the payload")
    kind = EntryKind(frame.flags & _KIND_BITS)
    data = bytes(frame.payload)
    term, first = frame.term, frame.index
    return [Entry(first + i, term, data[ends[i] : ends[i + 1]], kind) for i in range(count)]


def pack_membership(membership: Membership) -> bytes:
    """Lay a membership out as five counts, a flag and sorted ids."""
    sets = (membership.voters, membership.outgoing, membership.learners, membership.learners_next, membership.witnesses)
    groups = [sorted(ids) for ids in sets]
    ids = [node for group in groups for node in group]
    assert len(ids) <= MEMBERS_MAX, f"{len(ids)} members"
    return _MEMBERSHIP.pack(*map(len, groups), membership.auto_leave) + Struct(f"<{len(ids)}Q").pack(*ids)


def unpack_membership(data: bytes | memoryview) -> Membership:
    """Return the membership that `pack_membership` laid out; bytes after it are ignored."""
    *counts, auto_leave = _MEMBERSHIP.unpack_from(data)
    ids = iter(Struct(f"<{sum(counts)}Q").unpack_from(data, _MEMBERSHIP.size))
    voters, outgoing, learners, learners_next, witnesses = (frozenset(islice(ids, count)) for count in counts)
    return Membership(voters, outgoing, learners, learners_next, bool(auto_leave), witnesses)
