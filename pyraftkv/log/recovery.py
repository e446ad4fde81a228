"""Opening a write-ahead log: replay its segments, cut off a torn tail, refuse any other damage.

Each file is synced before it is read. After a killed process the cache may hold a whole batch that never reached the
disk: it is about to be acted upon, so it must be durable first. And each file is dropped from the cache before it is
read: after a failed sync the cache may hold bytes that the disk does not.
"""

from __future__ import annotations

import struct
from random import Random
from typing import NoReturn

from pyraftkv._record import record
from pyraftkv.core.types import SnapshotMeta
from pyraftkv.errors import ForeignDataDir, UnsupportedFormat, WalCorruption
from pyraftkv.log.base import Identity
from pyraftkv.log.block import BlockDamaged
from pyraftkv.log.fs import FileSystem, NoRoom, join, room_needed, write_all, zero
from pyraftkv.log.mark import MarkFile
from pyraftkv.log.record import (
    ENTRIES,
    HARD_STATE,
    RESET_FLAG,
    SEAL,
    SKIPPABLE_FLAG,
    SNAPSHOT,
    Frame,
    RunPlace,
    run_count,
    unpack_hard_state,
    unpack_snapshot,
)
from pyraftkv.log.segment import (
    BLOCK_BYTES,
    SEGMENT_BYTES_LIMIT,
    SegmentHeader,
    SegmentScanner,
    parse_segment_name,
    unpack_segment_header,
)
from pyraftkv.log.wal import RESERVE_BYTES, TEMPORARY_SUFFIX, Segment, Tail, Wal

TORN_SUFFIX = ".torn"


@record
class _Opened:
    """A segment that was read."""

    fd: int
    name: str
    header: SegmentHeader
    data: bytes


def open_wal(
    fs: FileSystem,
    directory: str,
    *,
    identity: Identity,
    random: Random,
    segment_bytes_max: int,
    reserve_bytes: int = RESERVE_BYTES,
    marks: MarkFile | None = None,
    strict_tail: bool = False,
) -> tuple[Wal, str]:
    """Open the log in ``directory``; begin it if the directory's owner never started before.

    Args:
        marks: How far it had come, read before anything here is: a log in use moves on.
        strict_tail: Refuse an end that a crash may have left, and rot too.

    Returns: The log, ready to append to, and what was mended on the way (empty when nothing).

    Raises: `WalCorruption`, `ForeignDataDir`, `UnsupportedFormat`, `OSError`.
    """
    wal = Wal(
        fs,
        directory,
        identity=identity,
        random=random,
        segment_bytes_max=segment_bytes_max,
        reserve_bytes=reserve_bytes,
        marks=marks,
    )
    try:
        return wal, _open(wal, strict_tail=strict_tail)
    except BaseException:
        if marks is not None:
            marks.close()
        raise


def _open(wal: Wal, *, strict_tail: bool) -> str:
    """Open the log; return what was mended."""
    fs, directory = wal.fs, wal.directory
    names = fs.listdir(directory)
    for name in names:
        orphaned = name.endswith(TORN_SUFFIX) and name.removesuffix(TORN_SUFFIX) not in names
        if orphaned or name.endswith(TEMPORARY_SUFFIX):
            fs.unlink(join(directory, name))
    # Names too may have been seen by nobody but the cache.
    fs.fsync_dir(directory)
    segments = sorted((parsed, name) for name in names if (parsed := parse_segment_name(name)) is not None)
    if not segments:
        if wal.identity.boot_count:
            refuse(wal, "", 0, "the log is gone: there is no segment in a directory that was used before")
        refuse_before_mark(wal, "", 0, batch=0)
        wal.begin_segment(sequence=0, previous_batch=0, previous_chain=0)
        return ""
    repaired = _Replay(wal, strict_tail=strict_tail).run([name for _, name in segments])
    wal.mark()
    return repaired


def refuse(wal: Wal, segment: str, offset: int, reason: str, *, readable_from: int = 0) -> NoReturn:
    """Raise `WalCorruption` for that place."""
    lo = wal.last_index + 1
    raise WalCorruption(
        f"{segment or wal.directory}: {reason}; the log is good up to index {wal.last_index}",
        segment=segment,
        offset=offset,
        last_good_index=wal.last_index,
        lost_range=(lo, readable_from if readable_from > lo else 0),
        reason=reason,
    )


def refuse_before_mark(wal: Wal, segment: str, offset: int, *, batch: int) -> None:
    """Raise `WalCorruption` if the log ends with that batch, and its mark knows of a later one."""
    mark = wal.marked
    if mark is not None and mark.batch > batch:
        reason = f"batch {mark.batch} was durable, and the log ends with batch {batch}"
        refuse(wal, segment, offset, reason, readable_from=mark.last_index + 1)


def refuse_short(wal: Wal) -> None:
    """Raise `WalCorruption` if the log ends before what it says to be committed."""
    if wal.hard_state.commit > wal.last_index:
        raise gap(wal, wal.last_index + 1, wal.hard_state.commit + 1, "it ends before its own commit index")


def gap(wal: Wal, lo: int, hi: int, reason: str) -> WalCorruption:
    """Return the error for entries `[lo, hi)` that are missing."""
    assert lo < hi, "a gap has entries"
    return WalCorruption(
        f"{wal.directory}: {reason}: entries {lo} to {hi - 1} are missing",
        segment=wal.segments[0].name,
        last_good_index=lo - 1,
        lost_range=(lo, hi),
        reason=reason,
    )


def ahead(wal: Wal, meta: SnapshotMeta) -> WalCorruption:
    """Return the error for a snapshot that holds more than the log says to be committed."""
    commit = wal.hard_state.commit
    reason = f"its snapshot holds entries to {meta.index}, and only those to {commit} are committed"
    return WalCorruption(
        f"{wal.directory}: {reason}", segment=wal.segments[0].name, last_good_index=commit, reason=reason
    )


class _Replay:
    """Reads the segments in order into a `Wal`."""

    def __init__(self, wal: Wal, *, strict_tail: bool) -> None:
        self._wal = wal
        self._strict_tail = strict_tail
        self._batch = 0
        self._chain = 0
        self._sealed = True

    def run(self, names: list[str]) -> str:
        """Replay the segments; return what was mended."""
        repaired = ""
        for name in names:
            repaired = self._segment(name, is_last=name == names[-1])
        if self._sealed:
            # The crash came between the seal and the next segment's name.
            self._wal.begin_segment(
                sequence=self._wal.segments[-1].sequence + 1, previous_batch=self._batch, previous_chain=self._chain
            )
        self._wal.measure()
        return repaired

    def _segment(self, name: str, *, is_last: bool) -> str:
        opened = self._open(name)
        keep = False
        try:
            segment = self._enter(opened)
            scanner = SegmentScanner(opened.data, opened.header)
            for frames in scanner.batches():
                for frame in frames:
                    try:
                        self._frame(segment, frame)
                    except struct.error as error:
                        refuse(self._wal, name, frame.offset, f"a record of type {frame.type} makes no sense: {error}")
            repaired = ""
            if scanner.damage:
                repaired = self._mend(opened, scanner, is_last=is_last)
            if not scanner.commit_offset:
                refuse(self._wal, name, BLOCK_BYTES, "the opening batch is missing")
            if not scanner.sealed and not is_last:
                refuse(self._wal, name, scanner.end, "it ends without a seal, and another segment follows")
            if is_last:
                refuse_before_mark(self._wal, name, scanner.end, batch=scanner.batch)
                if scanner.sealed and self._strict_tail:
                    refuse(self._wal, name, scanner.end, "it ends with a seal, and no segment follows (strict_tail)")
            self._batch, self._chain, self._sealed = scanner.batch, scanner.chain, scanner.sealed
            keep = not scanner.sealed
            tail = Tail(opened.fd, scanner.end, scanner.batch, scanner.chain, scanner.commit_offset)
            self._wal.continue_at(tail, room_end=len(opened.data))
        finally:
            if not keep:
                self._wal.fs.close(opened.fd)
        return repaired

    def _open(self, name: str) -> _Opened:
        wal, fs = self._wal, self._wal.fs
        path = join(wal.directory, name)
        fd = fs.open(path)
        try:
            fs.fdatasync(fd)
            fs.forget_cache(fd)
            size = fs.size(fd)
            if size > SEGMENT_BYTES_LIMIT:
                refuse(wal, name, 0, f"it is {size} bytes long, over the limit of {SEGMENT_BYTES_LIMIT}")
            data = fs.pread(fd, size, 0)
            if len(data) != size:
                refuse(wal, name, len(data), f"it could be read up to there only, of {size} bytes")
            try:
                header = unpack_segment_header(data[:BLOCK_BYTES], path=path)
            except BlockDamaged as damage:
                refuse(wal, name, 0, f"the header is damaged: {damage}")
        except BaseException:
            fs.close(fd)
            raise
        return _Opened(fd, name, header, data)

    def _enter(self, opened: _Opened) -> Segment:
        """Check that the segment is ours, and the next one, before anything in it is believed."""
        wal, header, name, identity = self._wal, opened.header, opened.name, self._wal.identity
        if header.incarnation != identity.mark:
            raise ForeignDataDir(f"{name} was written in another data directory (incarnation {header.incarnation:x})")
        # After a recovery the log's older segments are still marked with the clusters that it belonged to before.
        is_known = bool(identity.origin) or header.cluster_id in (0, identity.cluster_id)
        if not is_known or header.member_id not in (0, identity.member_id):
            raise ForeignDataDir(f"{name} belongs to member {header.member_id} of cluster {header.cluster_id:x}")
        if parse_segment_name(name) != (header.sequence, header.first_index):
            refuse(wal, name, 0, "its name and its header differ")
        if not wal.segments:
            wal.runs.reset(header.first_index - 1)
        else:
            if header.sequence != wal.segments[-1].sequence + 1:
                reason = f"segment {wal.segments[-1].sequence + 1:x} before it is missing"
                refuse(wal, name, 0, reason, readable_from=header.first_index)
            found = (header.first_index, header.previous_batch, header.previous_chain)
            if found != (wal.last_index + 1, self._batch, self._chain):
                refuse(wal, name, 0, "it does not continue the segment before it")
        return wal.add_segment(header, name)

    def _frame(self, segment: Segment, frame: Frame) -> None:
        wal = self._wal
        if frame.type == ENTRIES:
            count = run_count(frame)
            # A gap would be indexed as if it held the entries that it lacks (CVE-2020-15112).
            if not count or not wal.hard_state.commit < frame.index <= wal.last_index + 1:
                reason = f"{count} entries from index {frame.index} cannot follow index {wal.last_index}"
                refuse(wal, segment.name, frame.offset, reason)
            wal.add_run(segment, RunPlace(frame.index, frame.index + count - 1, frame.offset, frame.size))
        elif frame.type == HARD_STATE:
            state = unpack_hard_state(frame)
            if state.term < wal.hard_state.term or state.commit < wal.hard_state.commit:
                refuse(wal, segment.name, frame.offset, "the hard state went back")
            wal.hard_state = state
        elif frame.type == SNAPSHOT and frame.flags & RESET_FLAG:
            wal.reset(unpack_snapshot(frame))
        elif frame.type == SNAPSHOT:
            wal.name_snapshot(unpack_snapshot(frame))
        elif frame.type != SEAL and not frame.flags & SKIPPABLE_FLAG:
            raise UnsupportedFormat(f"{segment.name} holds a record of type {frame.type} at offset {frame.offset}")

    def _mend(self, opened: _Opened, scanner: SegmentScanner, *, is_last: bool) -> str:
        """Cut a torn tail off, or refuse: only an unfinished last batch can have been torn by a crash."""
        wal, fs = self._wal, self._wal.fs
        where = (wal, opened.name, scanner.end)
        if not is_last:
            refuse(*where, f"damage in a sealed segment: {scanner.damage}", readable_from=scanner.next_index())
        if scanner.sealed or not scanner.commit_offset:
            refuse(*where, scanner.damage if scanner.sealed else f"damage in the opening batch: {scanner.damage}")
        if scanner.later_batch():
            refuse(*where, f"damage before a later batch: {scanner.damage}", readable_from=scanner.next_index())
        refuse_before_mark(*where, batch=scanner.batch)
        if self._strict_tail:
            refuse(*where, f"an unfinished batch, or one that is damaged (strict_tail): {scanner.damage}")
        torn = scanner.torn()
        copied = self._copy_torn(opened.name, torn)
        zero(fs, opened.fd, scanner.end, scanner.end + len(torn))
        fs.fdatasync(opened.fd)
        copy = "" if copied else ", without a copy: the disk is full"
        return f"{opened.name}: cut {len(torn)} torn bytes off at offset {scanner.end} ({scanner.damage}){copy}"

    def _copy_torn(self, name: str, torn: bytes) -> bool:
        """Keep what is about to be cut off, for whoever wants to look at it; return whether there was room for it."""
        wal, fs = self._wal, self._wal.fs
        path = join(wal.directory, name + TORN_SUFFIX)
        try:
            with room_needed():
                fd = fs.open(path, create=True)
            try:
                write_all(fs, fd, torn, 0)
                fs.fdatasync(fd)
            finally:
                fs.close(fd)
        except NoRoom:
            return False
        fs.fsync_dir(wal.directory)
        return True
