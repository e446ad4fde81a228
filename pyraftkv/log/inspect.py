"""Looking at a data directory: everything a start would check, and nothing changed.

The judgement is that of a start, made by its own code over a `Shadow`: what it would mend is *torn*, what it would
refuse is *corrupt*, and what is no directory that this version can start from at all is *unusable*. Beside it stands
what each file holds when it is read alone, so that damage in one does not hide the others.

A member may be running in the directory, and goes on writing:

1. *The last batch may be half there.* Its start cut off whatever was torn, so a torn tail can only be the batch that is
   being written. That is no damage.
2. *Files come and go while they are listed and read.* So what looks like damage is looked at again; what stands on the
   disk is still there the next time.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from random import Random

from pyraftkv._record import record
from pyraftkv.core.types import HardState, SnapshotMeta
from pyraftkv.errors import SnapshotCorruption, StorageError, WalCorruption
from pyraftkv.log.base import Identity
from pyraftkv.log.block import BlockDamaged, version_of
from pyraftkv.log.files import FileStorage
from pyraftkv.log.fs import FileSystem, OsFileSystem, join
from pyraftkv.log.identity import SLOT_NAMES, IdentityFile
from pyraftkv.log.mark import MarkFile
from pyraftkv.log.record import ENTRIES, Frame, read_frame, run_count
from pyraftkv.log.recovery import TORN_SUFFIX, open_wal, refuse_short
from pyraftkv.log.segment import (
    BLOCK_BYTES,
    SEGMENT_BYTES_LIMIT,
    SegmentHeader,
    SegmentScanner,
    parse_segment_name,
    unpack_segment_header,
)
from pyraftkv.log.shadow import Shadow
from pyraftkv.log.snapshot import BROKEN_SUFFIX, SnapshotReader, parse_snapshot_name, snapshot_name
from pyraftkv.log.wal import SEGMENT_BYTES_MAX, TEMPORARY_SUFFIX, Wal

LOOKS_MAX = 3
"""How often a directory in use is looked at before what seems to be damage is believed."""

ONE_SLOT = "the slot cannot be read; the other one can, and the next start writes it anew"

ROLLED_BACK = "its member was refused, for the log ends before what it had acknowledged: an older copy, or a lying disk"


class Verdict(IntEnum):
    """What a start would make of it, from good to bad."""

    OK = 0
    TORN = 1
    """A crash left an unfinished last batch; a start cuts it off, and nothing that was promised is lost."""
    CORRUPT = 2
    """Something that was durable cannot be read any more, or was found to be missing."""
    UNUSABLE = 3
    """No member's directory, another one's, of another version, or not to be read."""


OK = Verdict.OK
TORN = Verdict.TORN
CORRUPT = Verdict.CORRUPT
UNUSABLE = Verdict.UNUSABLE


@record
class Finding:
    """One thing that is wrong, and where."""

    verdict: Verdict
    file: str
    """Below the data directory; empty when it is no single file."""
    offset: int
    reason: str
    last_good_index: int = 0
    """Of damage in the log: everything up to here can be read."""
    lost: tuple[int, int] = (0, 0)
    """Of damage in the log: the indexes `[lo, hi)` that cannot be read; `hi` is 0 where it is not known."""


@record
class SegmentReport:
    """What one segment holds when it is read by itself."""

    name: str
    size_bytes: int
    header: SegmentHeader | None
    """None if it is damaged."""
    format: str
    """As ``major.minor``; empty if the header is damaged."""
    batches: int
    records: int
    """COMMIT records included."""
    entries: int
    """Entries written, overwritten ones included."""
    end: int
    """Where the last valid batch ends."""
    is_sealed: bool
    torn_bytes: int
    """What stands behind that, without the zeros that every segment ends with."""
    damage: str
    """Why reading stopped; empty at a clean end."""


@record
class WalReport:
    """What a start would make of the log."""

    segments: list[SegmentReport]
    hard_state: HardState
    first_index: int
    last_index: int
    snapshots: list[SnapshotMeta]
    """Those that the log names, oldest first."""
    finding: Finding | None

    @property
    def verdict(self) -> Verdict:
        return self.finding.verdict if self.finding is not None else OK


@record
class SnapshotReport:
    """One snapshot file."""

    name: str
    index: int
    term: int
    size_bytes: int
    is_named: bool
    """Whether the log names it: what it does not name, a start removes."""
    damage: str
    damaged_at: int


@record
class DirectoryReport:
    """Everything about a data directory."""

    path: str
    in_use: bool
    """Whether a process had it locked."""
    identity: Identity | None
    wal: WalReport
    snapshots: list[SnapshotReport]
    snapshot_index: int
    """Of the snapshot that a start would load; 0 without one, or if it would refuse."""
    leftovers: list[str]
    """Files that a start or the next snapshot removes: half-made ones, copies of what was cut off or set aside."""
    findings: list[Finding]
    """The worst first."""

    @property
    def verdict(self) -> Verdict:
        return max((finding.verdict for finding in self.findings), default=OK)


def read_only() -> OsFileSystem:
    """Return the operating system's files, opened for reading alone."""
    return OsFileSystem(read_only=True)


# --- Segments --------------------------------------------------------------------------------------------------------


class SegmentReading:
    """One segment, read by itself: iterate over it for its records, then look at what is left.

    Args:
        directory: Where the segments are.

    Raises: `UnsupportedFormat`, `OSError`.
    """

    def __init__(self, fs: FileSystem, directory: str, name: str) -> None:
        path = join(directory, name)
        fd = fs.open(path)
        try:
            self.size_bytes = fs.size(fd)
            self._data = fs.pread(fd, min(self.size_bytes, SEGMENT_BYTES_LIMIT), 0)
        finally:
            fs.close(fd)
        self.name = name
        self.damage = ""
        self.batches = self.records = self.entries = 0
        self._scanner: SegmentScanner | None = None
        self.header: SegmentHeader | None = None
        try:
            self.header = unpack_segment_header(self._data[:BLOCK_BYTES], path=path)
            self._scanner = SegmentScanner(self._data, self.header)
        except BlockDamaged as error:
            self.damage = f"the header is damaged: {error}"

    def __iter__(self) -> Iterator[Frame]:
        """Yield every record of every valid batch, its COMMIT last. O(bytes) in all."""
        scanner = self._scanner
        if scanner is None:
            return
        assert self.header is not None
        view = memoryview(self._data)
        for frames in scanner.batches():
            commit = read_frame(view, scanner.commit_offset, salt=self.header.salt)
            assert commit is not None, "the scanner has just read it"
            self.batches += 1
            for frame in (*frames, commit):
                self.records += 1
                self.entries += run_count(frame) if frame.type == ENTRIES else 0
                yield frame
        self.damage = scanner.damage

    def report(self) -> SegmentReport:
        """Return what it holds, as far as it was iterated over."""
        scanner = self._scanner
        return SegmentReport(
            self.name,
            self.size_bytes,
            self.header,
            version_of(self._data) if self.header is not None else "",
            self.batches,
            self.records,
            self.entries,
            scanner.end if scanner is not None else 0,
            scanner is not None and scanner.sealed,
            len(scanner.torn()) if scanner is not None else 0,
            self.damage,
        )


def segment_names(fs: FileSystem, path: str) -> list[str]:
    """Return the names of a data directory's segments, in order. Raises `OSError`."""
    return [name for name in fs.listdir(join(path, "wal")) if parse_segment_name(name) is not None]


def _scan(fs: FileSystem, path: str) -> list[SegmentReport]:
    reports: list[SegmentReport] = []
    for name in segment_names(fs, path):
        reading = SegmentReading(fs, join(path, "wal"), name)
        for _ in reading:
            pass
        reports.append(reading.report())
    return reports


# --- Judgement -------------------------------------------------------------------------------------------------------


def is_in_use(fs: FileSystem, path: str) -> bool:
    """Whether a process has the directory locked. Holds the lock for no longer than it takes to find out."""
    try:
        fs.close(fs.lock(join(path, "LOCK")))
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def examine_wal(path: str, *, fs: FileSystem | None = None) -> WalReport:
    """Check every segment, batch and record of a data directory's log as a start would. O(bytes of log)."""
    disk = fs or read_only()
    report = _examine_wal(disk, path)
    for _ in range(LOOKS_MAX - 1):
        if report.verdict < CORRUPT or not is_in_use(disk, path):
            break
        report = _examine_wal(disk, path)
    return report


def _examine_wal(disk: FileSystem, path: str) -> WalReport:
    shadow = Shadow(disk)
    segments: list[SegmentReport] = []
    wal: Wal | None = None
    finding: Finding | None = None
    directory = join(path, "wal")
    try:
        segments = _scan(shadow, path)
        identity = _identity(shadow, path)
        marks = MarkFile(shadow, path, incarnation=identity.mark)
        wal, torn = open_wal(
            shadow, directory, identity=identity, random=Random(0), segment_bytes_max=SEGMENT_BYTES_MAX, marks=marks
        )
        wal.close()
        refuse_short(wal)
        if torn and not is_in_use(disk, path):
            finding = _torn(segments)
    except (StorageError, OSError) as error:
        finding = finding_of(error, path)
    if wal is None:
        return WalReport(segments, HardState(), 0, 0, [], finding)
    return WalReport(segments, wal.hard_state, wal.first_index, wal.last_index, wal.snapshots, finding)


def _identity(fs: FileSystem, path: str) -> Identity:
    """Return whose directory it is. Raises `WalCorruption`, `StorageError`."""
    file = IdentityFile(fs, path)
    if not file.load():
        if not segment_names(fs, path):
            raise StorageError(f"{path} is no member's data directory")
        reason = "neither identity slot can be read"
        raise WalCorruption(f"{path}: {reason}", segment=SLOT_NAMES[0], reason=reason)
    assert file.identity is not None
    return file.identity


def _torn(segments: list[SegmentReport]) -> Finding:
    last = segments[-1]
    reason = f"an unfinished batch of {last.torn_bytes} bytes: {last.damage}"
    return Finding(TORN, join("wal", last.name), last.end, reason)


def finding_of(error: StorageError | OSError, path: str) -> Finding:
    """Return what an error says about a data directory."""
    if isinstance(error, WalCorruption):
        folder = "" if error.segment in SLOT_NAMES or not error.segment else "wal"
        file = join(folder, error.segment)
        return Finding(CORRUPT, file, error.offset, error.reason, error.last_good_index, error.lost_range)
    if isinstance(error, SnapshotCorruption):
        file = error.path.removeprefix(join(path, ""))
        return Finding(CORRUPT, file, error.offset, reason_of(error))
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Finding(UNUSABLE, "", 0, f"no member's data directory: {error}")
    return Finding(UNUSABLE, "", 0, f"{type(error).__name__}: {error}")


# --- The whole directory ---------------------------------------------------------------------------------------------


async def examine(path: str, *, fs: FileSystem | None = None) -> DirectoryReport:
    """Look at everything in a data directory, and say what a start would make of it. O(bytes)."""
    disk = fs or read_only()
    report = await _examine(disk, path)
    for _ in range(LOOKS_MAX - 1):
        if report.verdict < CORRUPT or not report.in_use:
            break
        report = await _examine(disk, path)
    return report


async def _examine(disk: FileSystem, path: str) -> DirectoryReport:
    in_use = is_in_use(disk, path)
    wal = examine_wal(path, fs=disk)
    findings = [wal.finding] if wal.finding is not None else []
    snapshot_index = 0
    if wal.verdict < CORRUPT:
        storage = FileStorage(path, fs=Shadow(disk), create=False, random=Random(0))
        try:
            recovered = await storage.start(failed=_never)
            snapshot_index = recovered.snapshot.index if recovered.snapshot is not None else 0
            storage.abandon()
            await storage.close()
        except StorageError as error:
            findings.append(finding_of(error, path))
    file = IdentityFile(disk, path)
    snapshots: list[SnapshotReport] = []
    leftovers: list[str] = []
    try:
        if file.load():
            findings += [Finding(TORN, name, 0, ONE_SLOT) for name in file.unreadable]
            is_rolled_back = file.identity is not None and file.identity.is_rolled_back
            findings += [Finding(CORRUPT, "", 0, ROLLED_BACK)] if is_rolled_back else []
        snapshots = _snapshots(disk, path, wal.snapshots)
        leftovers = _leftovers(disk, path)
    except (StorageError, OSError) as error:
        findings += [finding_of(error, path)] if wal.verdict is OK else []
    told = {finding.file for finding in findings}
    for each in snapshots:
        place = join("snap", each.name)
        if each.damage and each.is_named and place not in told:
            findings.append(Finding(CORRUPT, place, each.damaged_at, each.damage))
    findings.sort(key=lambda finding: -finding.verdict)
    return DirectoryReport(path, in_use, file.identity, wal, snapshots, snapshot_index, leftovers, findings)


def _never(_: BaseException) -> None:
    """What a storage over a shadow tells of its failure: nothing, it is not there to be used."""


def _snapshots(fs: FileSystem, path: str, named: list[SnapshotMeta]) -> list[SnapshotReport]:
    """Read every snapshot file to its end."""
    directory = join(path, "snap")
    places = {(meta.term, meta.index) for meta in named}
    found = {parsed for name in fs.listdir(directory) if (parsed := parse_snapshot_name(name)) is not None}
    reports: list[SnapshotReport] = []
    for term, index in sorted(found | places, key=lambda place: place[1]):
        size_bytes, damage, damaged_at = 0, "", 0
        try:
            reader = SnapshotReader(fs, directory, term=term, index=index)
            try:
                size_bytes = reader.size_bytes
                for _ in reader.chunks():
                    pass
            finally:
                reader.close()
        except SnapshotCorruption as error:
            damage, damaged_at = reason_of(error), error.offset
        name = snapshot_name(term=term, index=index)
        is_named = (term, index) in places
        reports.append(SnapshotReport(name, index, term, size_bytes, is_named, damage, damaged_at))
    return reports


def reason_of(error: SnapshotCorruption) -> str:
    """Return what is wrong with a snapshot, without its path."""
    return str(error).removeprefix(error.path).removeprefix(":").strip()


def _leftovers(fs: FileSystem, path: str) -> list[str]:
    suffixes = (TORN_SUFFIX, BROKEN_SUFFIX, TEMPORARY_SUFFIX)
    return [
        join(folder, name)
        for folder in ("wal", "snap")
        for name in fs.listdir(join(path, folder))
        if name.endswith(suffixes)
    ]
