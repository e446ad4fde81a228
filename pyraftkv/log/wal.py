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
7. *A disk without room is no error of the log* (`NoRoom`): nothing was written that counts, and the same batch may be
   appended again. What an attempt left in the file is overwritten by whatever is written there next.

One thread appends, another may read and purge: what they share stands behind one lock, held for lookups only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from random import Random

from pyraftkv._record import record
from pyraftkv.core.ready import Save
from pyraftkv.core.types import Entry, HardState, SnapshotMeta
from pyraftkv.errors import StorageFailed, WalCorruption
from pyraftkv.log.base import Identity
from pyraftkv.log.fs import FileSystem, NoRoom, join, room_needed, write_all, zero
from pyraftkv.log.mark import Mark, MarkFile
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
RESERVE_BYTES = 64 << 10
"""Behind the last batch the file has room for this much more, which entries leave alone: votes go there when the disk
is full."""
GROWTH_FACTOR = 4
"""A file that has not enough room grows by so many times its reserve."""
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


@record
class _Draft:
    """The next segment, whole and durable, but for its name."""

    header: SegmentHeader
    name: str
    temporary: str
    tail: Tail
    size_bytes: int


class Wal:
    """An open log. `recovery.open_wal` makes it; `append`, `read` and `purge` use it.

    Invariants: `segments` have consecutive sequence numbers, the last one is being appended to; `snapshots` rise in
    index, the newest last; `hard_state.commit` is at least the newest snapshot's index.
    """

    def __init__(
        self,
        fs: FileSystem,
        directory: str,
        *,
        identity: Identity,
        random: Random,
        segment_bytes_max: int,
        reserve_bytes: int = RESERVE_BYTES,
        marks: MarkFile | None = None,
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
        self._reserve_bytes = min(reserve_bytes, segment_bytes_max // 8)
        self._marks = marks
        self._room_end = 0
        """The file that is appended to has room up to here."""
        self._attempt_end = 0
        """Attempts without room may have left bytes up to here."""
        self._ahead: HardState | None = None
        """What `promise` wrote before its turn."""
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

        Raises: `NoRoom`, and nothing has happened; `OSError`, and the log is unusable from then on: `StorageFailed`.
        """
        self._guard(partial(self._append, saves, taken))

    def promise(self, state: HardState) -> None:
        """Make a term and a vote durable ahead of the saves before them, for which there is no room. O(1).

        Its commit index waits for its turn: it may cover entries that are not here.

        Raises: `NoRoom` when the reserve is used up, `OSError`, `StorageFailed`.
        """
        self._guard(partial(self._promise, state))

    def _guard(self, write: Callable[[], None]) -> None:
        if self._failure is not None:
            raise StorageFailed("the log failed before") from self._failure
        try:
            write()
        except NoRoom:
            raise
        except BaseException as error:
            self._failure = error
            raise

    def _promise(self, asked: HardState) -> None:
        assert self._tail is not None, "the log is not open"
        known = self.hard_state
        if (asked.term, asked.vote) == (known.term, known.vote) or asked.term < known.term:
            return
        state = HardState(asked.term, asked.vote, known.commit)
        encoder = self._encoder(self._tail)
        encoder.hard_state(state)
        self._write(self._tail, *self._finish(self._tail, encoder, self.last_index))
        with self._lock:
            self.hard_state = self._ahead = state
        self.mark()

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
        data, after = self._finish(tail, encoder, last_index)
        self._make_room(tail, after.offset)
        self._write(tail, data, after)
        with self._lock:
            self.hard_state = state
            self._publish(segment, steps)
            assert self.last_index == last_index
            for meta in taken:
                self.name_snapshot(meta)
        if self._ahead is not None and any(_promises(save, self._ahead) for save in saves):
            self._ahead = None
        self.mark()

    def mark(self) -> None:
        """Remember how far the log has come. Everything up to there, the segment's name included, is durable."""
        tail = self._tail
        if self._marks is not None and tail is not None:
            sequence = self.segments[-1].sequence
            self._marks.write(Mark(self.identity.mark, sequence, tail.offset, tail.batch, self.last_index))

    @property
    def marked(self) -> Mark | None:
        """How far an earlier life says that the log had come; None if it says nothing."""
        return self._marks.found if self._marks is not None else None

    def _encoder(self, tail: Tail) -> BatchEncoder:
        return BatchEncoder(
            salt=self.segments[-1].salt,
            batch=tail.batch + 1,
            chain=tail.chain,
            offset=tail.offset,
            previous_commit=tail.commit_offset,
        )

    @staticmethod
    def _finish(tail: Tail, encoder: BatchEncoder, last_index: int) -> tuple[bytes, Tail]:
        """Return a batch's bytes, and where the next one goes."""
        commit_offset = encoder.offset
        data = encoder.finish(last_index)
        return data, Tail(tail.fd, encoder.offset, tail.batch + 1, encoder.chain, commit_offset)

    def _write(self, tail: Tail, data: bytes, after: Tail) -> None:
        """Write a batch, sync it, and go on behind it. Raises `NoRoom`, and nothing has happened; `OSError`."""
        try:
            # What attempts left behind is overwritten: it would look like a torn batch behind this one.
            write_all(self.fs, tail.fd, data.ljust(self._attempt_end - tail.offset, b"\0"), tail.offset)
        except NoRoom:
            self._attempt_end = max(self._attempt_end, min(after.offset, self.fs.size(tail.fd)))
            raise
        self.fs.fdatasync(tail.fd)
        self.continue_at(after, room_end=max(self._room_end, after.offset))

    def _make_room(self, tail: Tail, end: int) -> None:
        """Let the file have room up to there, and for its reserve behind that. Raises `NoRoom`, `OSError`."""
        wanted = end + self._reserve_bytes
        if wanted <= self._room_end or not self._reserve_bytes:
            return
        try:
            zero(self.fs, tail.fd, self._room_end, wanted + GROWTH_FACTOR * self._reserve_bytes)
        except NoRoom:
            self._room_end = max(self._room_end, self.fs.size(tail.fd))
            if self._room_end < wanted:
                raise
        else:
            self._room_end = wanted + GROWTH_FACTOR * self._reserve_bytes

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
                state = self._promised(save.hard_state, state)
        steps += encoder.entries(pending)
        return last_index, state, steps

    def _promised(self, asked: HardState, state: HardState) -> HardState:
        """Return the hard state after a save; what was promised ahead of it stays promised."""
        ahead = self._ahead
        if ahead is not None and (asked.term, asked.vote) < (ahead.term, ahead.vote):
            return _committed(state, asked.commit)
        assert asked.term >= state.term, "the term went back"
        return _committed(asked, state.commit)

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

    def continue_at(self, tail: Tail, *, room_end: int) -> None:
        """Append from there on, into a file that has room up to `room_end`."""
        self._tail = tail
        self._room_end = room_end
        self._attempt_end = 0
        self._position = self.segments[-1].position + tail.offset

    def begin_segment(self, *, sequence: int, previous_batch: int, previous_chain: int) -> None:
        """Make the next segment durable, header and opening batch and then its name, and append to it from now on."""
        draft = self._draft_segment(sequence=sequence, previous_batch=previous_batch, previous_chain=previous_chain)
        self._enter_segment(draft)

    def _draft_segment(self, *, sequence: int, previous_batch: int, previous_chain: int) -> _Draft:
        """Make the next segment under a temporary name. Raises `NoRoom`, and nothing has happened; `OSError`."""
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
        encoder = BatchEncoder(
            salt=header.salt, batch=previous_batch + 1, chain=previous_chain, offset=BLOCK_BYTES, previous_commit=0
        )
        encoder.hard_state(self.hard_state)
        for meta in self.snapshots:
            encoder.snapshot(meta, reset=False)
        commit_offset = encoder.offset
        data = pack_segment_header(header) + encoder.finish(self.last_index)
        name = segment_name(sequence, header.first_index)
        temporary = join(self.directory, name + TEMPORARY_SUFFIX)
        with room_needed():
            fd = self.fs.open(temporary, create=True)
        try:
            write_all(self.fs, fd, data.ljust(len(data) + self._reserve_bytes, b"\0"), 0)
            self.fs.fdatasync(fd)
            size_bytes = self.fs.size(fd)
        except BaseException as error:
            self.fs.close(fd)
            if isinstance(error, NoRoom):
                self._discard(temporary)
            raise
        tail = Tail(fd, encoder.offset, previous_batch + 1, encoder.chain, commit_offset)
        return _Draft(header, name, temporary, tail, size_bytes)

    def _discard(self, temporary: str) -> None:
        """Remove a file that is not wanted after all; if that fails, the next start removes it."""
        with suppress(OSError):
            self.fs.unlink(temporary)

    def _enter_segment(self, draft: _Draft) -> None:
        """Give the next segment its name, durably, and append to it from now on."""
        try:
            self.fs.rename(draft.temporary, join(self.directory, draft.name))
            self.fs.fsync_dir(self.directory)
        except BaseException:
            self._tail = None
            self.fs.close(draft.tail.fd)
            raise
        with self._lock:
            self.add_segment(draft.header, draft.name)
        self.continue_at(draft.tail, room_end=draft.size_bytes)
        self.mark()

    def _roll(self, tail: Tail) -> None:
        """Seal the segment and begin the next one.

        The next one is made first: a sealed log without room for another segment could take nothing more, no vote.
        """
        encoder = self._encoder(tail)
        encoder.seal(self.last_index)
        data, sealed = self._finish(tail, encoder, self.last_index)
        draft = self._draft_segment(
            sequence=self.segments[-1].sequence + 1, previous_batch=sealed.batch, previous_chain=sealed.chain
        )
        try:
            self._write(tail, data, sealed)
        except BaseException as error:
            self.fs.close(draft.tail.fd)
            if isinstance(error, NoRoom):
                self._discard(draft.temporary)
            raise
        self.fs.close(tail.fd)
        self._enter_segment(draft)

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
        if self._marks is not None:
            self._marks.close()


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


def _promises(save: Save, ahead: HardState) -> bool:
    """Whether a save is the one that was promised ahead, or a later one."""
    state = save.hard_state
    return state is not None and (state.term, state.vote) >= (ahead.term, ahead.vote)


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
