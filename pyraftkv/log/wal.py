"""The write-ahead log: segments of batches, one fdatasync per batch. Synchronous; the caller owns the threads.

Rules, and the stories behind them:

1. *Nothing is published before its sync returned.* `append` writes, syncs, and only then moves the index, the hard
   state and the last index. A reader sees durable entries or none.
2. *A log entry is never rewritten in place.* An overwrite (Raft §5.3, a follower's conflict) is a later record with a
   lower index; replaying the records in order gives the log.
3. *Torn or corrupt is decided by position.* A crash can only damage the batch that was being written: the last one, in
   the last segment, not its opening batch, with no valid record of a later batch behind it. That is cut off, and kept
   beside as ``.torn``. Any other damage is refused with its place, because everything in it had been promised.
4. *Every segment starts with the hard state and the names of the snapshots in use*, so that purging the segments
   before it loses neither.
5. *Segments are purged oldest first, and each unlink is durable before the next*: a crash leaves no hole.
6. *The first error of a write or a sync is final.* After it the file's state on disk is unknown (the kernel marks the
   pages clean that it failed to write), so the object refuses everything from then on.

One thread appends, another may read and purge: what they share stands behind one lock, held for lookups only.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from random import Random

from pyraftkv._record import record
from pyraftkv.core.ready import Save
from pyraftkv.core.types import Entry, HardState, SnapshotMeta
from pyraftkv.errors import StorageFailed, WalCorruption
from pyraftkv.log.base import Identity
from pyraftkv.log.fs import FileSystem, join, write_all
from pyraftkv.log.record import ENTRIES, BatchEncoder, RunPlace, read_frame, unpack_run
from pyraftkv.log.runs import RunIndex, Span
from pyraftkv.log.segment import (
    BLOCK_BYTES,
    SEGMENT_BYTES_LIMIT,
    SegmentHeader,
    pack_segment_header,
    segment_name,
)

SEGMENT_BYTES_MAX = 16 << 20
"""A segment is sealed at the first batch that finds it this long."""
READ_BYTES_MAX = 1 << 20
"""Bytes that are read at once, unless a single record has more."""
TEMPORARY_SUFFIX = ".tmp"
SNAPSHOTS_KEPT_MAX = 2
"""Snapshots that the log names, and reaches back to."""


@record
class Segment:
    """A segment as the index needs it."""

    sequence: int
    name: str
    salt: int
    position: int
    """Where its offset 0 would be in one long log without header blocks."""


@record
class Tail:
    """Where the next batch goes."""

    fd: int
    offset: int
    batch: int
    """The number of the last batch."""
    chain: int
    commit_offset: int


class Wal:
    """An open log. `recovery.open_wal` makes it; `append`, `read` and `purge` use it.

    Invariants: `segments` have consecutive sequence numbers, the last one is being appended to; `snapshots` rise in
    index, the newest last; `hard_state.commit` is at least the newest snapshot's index.
    """

    def __init__(
        self, fs: FileSystem, directory: str, *, identity: Identity, random: Random, segment_bytes_max: int
    ) -> None:
        assert BLOCK_BYTES < segment_bytes_max <= SEGMENT_BYTES_LIMIT // 2
        self.fs = fs
        self.directory = directory
        self.identity = identity
        self.hard_state = HardState()
        self.snapshots: list[SnapshotMeta] = []
        self.segments: list[Segment] = []
        self.runs = RunIndex(last_index=0)
        self._tail: Tail | None = None
        self._random = random
        self._segment_bytes_max = segment_bytes_max
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._position = 0
        self._snapshot_position = 0

    # --- What stands in it --------------------------------------------------------------------------------------------

    @property
    def first_index(self) -> int:
        """The first index that `read` can return."""
        return self.runs.first_index

    @property
    def last_index(self) -> int:
        """The last durable index."""
        return self.runs.last_index

    def named_snapshots(self) -> list[SnapshotMeta]:
        """The snapshots in use, oldest first."""
        with self._lock:
            return self.snapshots.copy()

    @property
    def log_bytes(self) -> int:
        """Bytes of log that are not covered by the newest snapshot."""
        return self._position - self._snapshot_position

    # --- Appending ----------------------------------------------------------------------------------------------------

    def append(self, saves: Sequence[Save], *, taken: Sequence[SnapshotMeta] = ()) -> None:
        """Make ``saves`` durable, in order, as one batch with one sync. O(bytes).

        Args:
            saves: What the machine wants on disk.
            taken: Snapshots of this log that are durable as files: name them.

        Raises: `OSError`; the log is unusable from then on, and raises `StorageFailed`.
        """
        if self._failure is not None:
            raise StorageFailed("the log failed before") from self._failure
        try:
            self._append(saves, taken)
        except BaseException as error:
            self._failure = error
            raise

    def _append(self, saves: Sequence[Save], taken: Sequence[SnapshotMeta]) -> None:
        assert self._tail is not None, "the log is not open"
        if self._tail.offset >= self._segment_bytes_max:
            self._roll(self._tail)
        tail, segment = self._tail, self.segments[-1]
        encoder = self._encoder(tail)
        last_index, state, steps = self._encode(encoder, saves)
        for meta in taken:
            encoder.snapshot(meta, reset=False)
            state = _committed(state, meta.index)
        if state != self.hard_state:
            encoder.hard_state(state)
        if encoder.is_empty:
            return
        self._write(tail, encoder, last_index)
        with self._lock:
            self.hard_state = state
            self._publish(segment, steps)
            assert self.last_index == last_index
            for meta in taken:
                self.name_snapshot(meta)

    def _encoder(self, tail: Tail) -> BatchEncoder:
        return BatchEncoder(
            salt=self.segments[-1].salt,
            batch=tail.batch + 1,
            chain=tail.chain,
            offset=tail.offset,
            previous_commit=tail.commit_offset,
        )

    def _write(self, tail: Tail, encoder: BatchEncoder, last_index: int) -> None:
        commit_offset = encoder.offset
        data = encoder.finish(last_index)
        write_all(self.fs, tail.fd, data, tail.offset)
        self.fs.fdatasync(tail.fd)
        self.continue_at(Tail(tail.fd, encoder.offset, tail.batch + 1, encoder.chain, commit_offset))

    def _encode(
        self, encoder: BatchEncoder, saves: Sequence[Save]
    ) -> tuple[int, HardState, list[RunPlace | SnapshotMeta]]:
        """Put the saves into the batch; return the last index, the hard state and what to publish after them."""
        last_index, state = self.last_index, self.hard_state
        steps: list[RunPlace | SnapshotMeta] = []
        pending: list[Entry] = []
        for save in saves:
            if save.snapshot is not None:
                steps += encoder.entries(pending)
                pending = []
                encoder.snapshot(save.snapshot, reset=True)
                steps.append(save.snapshot)
                last_index = save.snapshot.index
                state = _committed(state, last_index)
            if save.entries:
                first = save.entries[0].index
                assert self.hard_state.commit < first <= last_index + 1, (
                    f"entry {first} after {last_index}, committed {self.hard_state.commit}"
                )
                if first != last_index + 1:
                    steps += encoder.entries(pending)
                    pending = []
                pending += save.entries  # Saves that go on from each other become one run.
                last_index = save.entries[-1].index
            if save.hard_state is not None:
                assert save.hard_state.term >= state.term, "the term went back"
                state = _committed(save.hard_state, state.commit)
        steps += encoder.entries(pending)
        return last_index, state, steps

    def _publish(self, segment: Segment, steps: list[RunPlace | SnapshotMeta]) -> None:
        for step in steps:
            if isinstance(step, SnapshotMeta):
                self.reset(step)
            else:
                self.add_run(segment, step)

    # --- What recovery and appending share ----------------------------------------------------------------------------

    def add_run(self, segment: Segment, place: RunPlace) -> None:
        """Take a run that is on disk into the index."""
        self.runs.add(place.first, place.last, sequence=segment.sequence, offset=place.offset, size=place.size)

    def reset(self, meta: SnapshotMeta) -> None:
        """Replace the whole log by a received snapshot; from snapshots before it nothing can be continued."""
        self.runs.reset(meta.index)
        self.snapshots.clear()
        self.name_snapshot(meta)

    def name_snapshot(self, meta: SnapshotMeta) -> None:
        """Take a snapshot that is named on disk into use; one that is not newer than those in use changes nothing."""
        if self.snapshots and meta.index <= self.snapshots[-1].index:
            return
        self.snapshots.append(meta)
        del self.snapshots[:-SNAPSHOTS_KEPT_MAX]
        self.measure()

    def forget_snapshot(self, meta: SnapshotMeta) -> None:
        """Do without a named snapshot whose file is damaged: reach back to the one before it, if there is one."""
        self.snapshots = [kept for kept in self.snapshots if kept.index < meta.index]
        self.measure()

    def measure(self) -> None:
        """Find again where the log that the newest snapshot does not cover begins. O(log runs)."""
        place = self.runs.place_after(self.snapshots[-1].index if self.snapshots else 0)
        if place is None:
            self._snapshot_position = self._position
        else:
            self._snapshot_position = self._segment(place[0]).position + place[1]

    def add_segment(self, header: SegmentHeader, name: str) -> Segment:
        """Take a segment into use, after all others."""
        segment = Segment(header.sequence, name, header.salt, self._position - BLOCK_BYTES)
        assert not self.segments or self.segments[-1].sequence + 1 == header.sequence
        self.segments.append(segment)
        return segment

    def continue_at(self, tail: Tail) -> None:
        """Append from there on."""
        self._tail = tail
        self._position = self.segments[-1].position + tail.offset

    def begin_segment(self, *, sequence: int, previous_batch: int, previous_chain: int) -> None:
        """Make the next segment durable, header and opening batch and then its name, and append to it from now on."""
        identity = self.identity
        header = SegmentHeader(
            salt=self._random.getrandbits(32),
            cluster_id=identity.cluster_id,
            member_id=identity.member_id,
            incarnation=identity.mark,
            sequence=sequence,
            first_index=self.last_index + 1,
            previous_batch=previous_batch,
            previous_chain=previous_chain,
        )
        name = segment_name(sequence, header.first_index)
        path = join(self.directory, name)
        fd = self.fs.open(path + TEMPORARY_SUFFIX, create=True)
        try:
            write_all(self.fs, fd, pack_segment_header(header), 0)
            with self._lock:
                self.add_segment(header, name)
            tail = Tail(fd, BLOCK_BYTES, previous_batch, previous_chain, 0)
            encoder = self._encoder(tail)
            encoder.hard_state(self.hard_state)
            for meta in self.snapshots:
                encoder.snapshot(meta, reset=False)
            self._write(tail, encoder, self.last_index)
            self.fs.rename(path + TEMPORARY_SUFFIX, path)
            self.fs.fsync_dir(self.directory)
        except BaseException:
            self._tail = None
            self.fs.close(fd)
            raise

    def _roll(self, tail: Tail) -> None:
        encoder = self._encoder(tail)
        encoder.seal(self.last_index)
        self._write(tail, encoder, self.last_index)
        self.begin_segment(
            sequence=self.segments[-1].sequence + 1, previous_batch=tail.batch + 1, previous_chain=encoder.chain
        )
        self.fs.close(tail.fd)

    # --- Reading and purging, on another thread -----------------------------------------------------------------------

    def read(self, *, lo: int, hi: int, bytes_max: int) -> list[Entry]:
        """Return the entries from `lo`, at most to `hi` and about `bytes_max`, one at least; empty if `lo` is not here.

        O(log runs + bytes of the answer).

        Raises: `WalCorruption` if the disk no longer holds what it was given, `OSError`.
        """
        with self._lock:
            spans = self.runs.spans(lo=lo, hi=hi, bytes_max=bytes_max)
            segments = {span.sequence: self._segment(span.sequence) for span in spans}
        entries: list[Entry] = []
        for sequence, segment in segments.items():
            fd = self.fs.open(join(self.directory, segment.name))
            try:
                for stretch in _stretches([span for span in spans if span.sequence == sequence]):
                    entries += self._read_stretch(fd, segment, stretch)
            finally:
                self.fs.close(fd)
        return _cut(entries, bytes_max)

    def _read_stretch(self, fd: int, segment: Segment, spans: list[Span]) -> list[Entry]:
        """Read spans that stand near each other, at once."""
        start, end = spans[0].offset, spans[-1].offset + spans[-1].size
        data = memoryview(self.fs.pread(fd, end - start, start))
        entries: list[Entry] = []
        for span in spans:
            entries += self._read_span(data[span.offset - start :], segment, span)
        return entries

    def _read_span(self, data: memoryview, segment: Segment, span: Span) -> list[Entry]:
        frame = read_frame(data, 0, salt=segment.salt)
        try:
            if frame is None or frame.type != ENTRIES or not frame.index <= span.lo:
                raise ValueError("a record is not what was written there")
            return unpack_run(frame)[span.lo - frame.index : span.hi - frame.index]
        except ValueError as error:
            raise WalCorruption(
                f"{segment.name}: the entries at offset {span.offset} can no longer be read: {error}",
                segment=segment.name,
                offset=span.offset,
                last_good_index=span.lo - 1,
                lost_range=(span.lo, span.hi),
                reason=str(error),
            ) from error

    def purge(self) -> None:
        """Unlink the segments that hold nothing after the older of the two snapshots in use. O(runs).

        With one snapshot taken of this log everything stays: if that snapshot is damaged, the log alone must do.

        Raises: `OSError`; what was not unlinked is tried again by the next purge or start.
        """
        with self._lock:
            floor = self.snapshots[0].index if len(self.snapshots) == SNAPSHOTS_KEPT_MAX else 0
            place = self.runs.place_after(floor)
            needed = place[0] if place is not None else self.segments[-1].sequence
            self.runs.drop_before(needed)
        while self.segments[0].sequence < needed:
            self.fs.unlink(join(self.directory, self.segments[0].name))
            self.fs.fsync_dir(self.directory)
            with self._lock:
                del self.segments[0]

    def _segment(self, sequence: int) -> Segment:
        return self.segments[sequence - self.segments[0].sequence]

    def close(self) -> None:
        """Release the descriptor. Everything appended is durable already."""
        tail, self._tail = self._tail, None
        if tail is not None:
            self.fs.close(tail.fd)


def _stretches(spans: list[Span]) -> Iterator[list[Span]]:
    """Group the spans of a segment: each group is read at once, with the small records between."""
    stretch: list[Span] = []
    for span in spans:
        if stretch and span.offset + span.size - stretch[0].offset > READ_BYTES_MAX:
            yield stretch
            stretch = []
        stretch.append(span)
    if stretch:
        yield stretch


def _committed(state: HardState, index: int) -> HardState:
    """Raise the commit index to ``index``, which is known to be committed: a snapshot holds nothing else."""
    return state if state.commit >= index else HardState(state.term, state.vote, index)


def _cut(entries: list[Entry], bytes_max: int) -> list[Entry]:
    """Return the first entries of at most ``bytes_max`` of payload together, one at least."""
    total = 0
    for count, entry in enumerate(entries):
        total += len(entry.payload)
        if total > bytes_max and count:
            return entries[:count]
    return entries
