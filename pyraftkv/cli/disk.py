"""``wal dump``, ``wal verify`` and ``doctor``: what stands in a data directory. Nothing in it is changed.

Their exit statuses are a checker's: 0 all is well, 1 a torn tail that the next start cuts off, 2 damage, 3 no usable
directory.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import struct
import sys
from collections.abc import Iterator
from typing import Any

from pyraftkv.cli.decoding import entry_json, entry_lines
from pyraftkv.cli.printing import emit, emit_json
from pyraftkv.cli.terminal import human_bytes, print_table
from pyraftkv.core.types import Entry
from pyraftkv.log.fs import join
from pyraftkv.log.inspect import (
    CORRUPT,
    TORN,
    DirectoryReport,
    Finding,
    SegmentReading,
    SegmentReport,
    WalReport,
    examine,
    examine_wal,
    read_only,
)
from pyraftkv.log.record import (
    ENTRIES,
    HARD_STATE,
    RESET_FLAG,
    SNAPSHOT,
    Frame,
    RecordType,
    run_count,
    unpack_hard_state,
    unpack_run,
)

SEGMENT_COLUMNS = ("SEGMENT", "FORMAT", "SIZE", "FIRST INDEX", "BATCHES", "RECORDS", "ENTRIES", "END", "STATE")
SNAPSHOT_COLUMNS = ("SNAPSHOT", "INDEX", "TERM", "SIZE", "IN USE", "STATE")

# --- wal -------------------------------------------------------------------------------------------------------------


def wal_verify(args: argparse.Namespace) -> int:
    """Check every segment, batch and record of a member's log, as its start would."""
    report = examine_wal(args.data_dir)
    if args.write_out == "json":
        emit_json(wal_json(report))
        return report.verdict
    if report.segments:
        print_table(sys.stdout, SEGMENT_COLUMNS, [segment_row(segment) for segment in report.segments])
        sys.stdout.flush()
    emit(f"{summary_of(report)}\n")
    if report.finding is not None:
        emit(f"{finding_line(report.finding)}\n")
    return report.verdict


def wal_dump(args: argparse.Namespace) -> int:
    """Print the records of a member's log, a line for each, in the order in which they were written.

    What cannot be read is left out, and told on standard error.
    """
    fs, path = read_only(), args.data_dir
    report = examine_wal(path, fs=fs)
    for segment in report.segments:
        try:
            reading = SegmentReading(fs, join(path, "wal"), segment.name)
        except FileNotFoundError:
            continue  # purged by a member that runs
        for frame in reading:
            if not is_chosen(frame, lo=args.first, hi=args.last):
                continue
            if args.write_out == "json":
                emit(json.dumps(frame_json(reading.name, frame, args), separators=(",", ":")), "\n")
            else:
                emit("\n".join(frame_lines(reading.name, frame, args)), "\n")
        if reading.damage:
            sys.stderr.write(f"{reading.name}: {reading.damage}\n")
    if report.finding is not None:
        sys.stderr.write(f"{finding_line(report.finding)}\n")
    return report.verdict


def is_chosen(frame: Frame, *, lo: int, hi: int | None) -> bool:
    """Whether a record is in the range `[lo, hi]` that was asked for; with one, only entries are shown."""
    if lo <= 0 and hi is None:
        return True
    last = frame.index + run_count(frame) - 1
    return frame.type == ENTRIES and last >= lo and (hi is None or frame.index <= hi)


def type_name(frame: Frame) -> str:
    """Return what a record is called."""
    try:
        return RecordType(frame.type).name
    except ValueError:
        return f"TYPE_{frame.type}"


def details_of(frame: Frame) -> dict[str, Any]:
    """Return what a record says besides its header; nothing if its payload makes no sense."""
    if frame.type == ENTRIES:
        return {"entries": run_count(frame)}
    if frame.type == HARD_STATE:
        try:
            return {"vote": unpack_hard_state(frame).vote}
        except struct.error:
            return {}
    if frame.type == SNAPSHOT:
        return {"replaces_log": bool(frame.flags & RESET_FLAG)}
    return {}


def entries_of(frame: Frame) -> list[Entry]:
    """Return the entries of a record; none if it is another one, or if its payload makes no sense."""
    if frame.type != ENTRIES:
        return []
    try:
        return unpack_run(frame)
    except ValueError:
        return []


def frame_json(segment: str, frame: Frame, args: argparse.Namespace) -> dict[str, Any]:
    """Return one record for a program."""
    row: dict[str, Any] = {
        "segment": segment,
        "offset": frame.offset,
        "type": type_name(frame),
        "index": frame.index,
        "term": frame.term,
        "batch": frame.batch,
        "bytes": frame.size,
        **details_of(frame),
    }
    if frame.type == ENTRIES and (args.entries or args.values):
        row["entries"] = [entry_json(entry, values=args.values) for entry in entries_of(frame)]
    return row


def frame_lines(segment: str, frame: Frame, args: argparse.Namespace) -> Iterator[str]:
    """Yield one record as a line, and its entries as further ones."""
    details = "".join(f" {name}={value}" for name, value in details_of(frame).items())
    place = f"{segment} {frame.offset:>8} {type_name(frame):<10}"
    yield f"{place} index={frame.index} term={frame.term} batch={frame.batch} bytes={frame.size}{details}"
    if args.entries or args.values:
        for entry in entries_of(frame):
            yield from entry_lines(entry, values=args.values)


# --- doctor ----------------------------------------------------------------------------------------------------------


async def doctor(args: argparse.Namespace) -> int:
    """Look at everything in a member's directory; say what is wrong, where, and what to do."""
    report = await examine(args.data_dir)
    if args.write_out == "json":
        emit_json(directory_json(report))
        return report.verdict
    if report.wal.segments or report.identity is not None or report.snapshots:
        emit("\n".join(directory_lines(report)), "\n")
    if args.write_out == "table":
        print_table(sys.stdout, SEGMENT_COLUMNS, [segment_row(segment) for segment in report.wal.segments])
        print_table(sys.stdout, SNAPSHOT_COLUMNS, snapshot_rows(report))
        sys.stdout.flush()
    for finding in report.findings:
        emit(f"{finding_line(finding)}\n  what to do: {remedy(finding, report)}\n")
    return report.verdict


def disk_space(path: str) -> tuple[int, int]:
    """Return the bytes that are free where a directory lies, and all there are; zeros if nobody can say."""
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return 0, 0
    return usage.free, usage.total


def directory_lines(report: DirectoryReport) -> Iterator[str]:
    """Yield what stands in a directory, for a person."""
    identity, state = report.identity, report.wal.hard_state
    if identity is None:
        yield f"{report.path}: nobody's"
    else:
        starts = "once" if identity.boot_count == 1 else f"{identity.boot_count} times"
        yield (
            f"{report.path}: member {identity.member_id} of cluster {identity.cluster_id:x}, "
            f"incarnation {identity.incarnation:x}, started {starts}"
        )
    free, total = disk_space(report.path)
    yield f"  lock       {'held: a member runs here' if report.in_use else 'free'}"
    yield f"  log        {summary_of(report.wal)}"
    if report.wal.verdict < CORRUPT:
        yield f"  state      term {state.term}, vote {state.vote}, commit index {state.commit}"
    named = [each for each in report.snapshots if each.is_named]
    newest = f", a start loads the one at index {report.snapshot_index}" if report.snapshot_index else ""
    yield f"  snapshots  {len(named)} in use{newest}"
    if report.leftovers:
        yield f"  leftovers  {', '.join(report.leftovers)}: of no use any more"
    yield f"  disk       {human_bytes(free)} free of {human_bytes(total)}"
    yield f"  verdict    {report.verdict.name.lower()}"


def remedy(finding: Finding, report: DirectoryReport) -> str:
    """Return what to do about a finding."""
    if finding.verdict is TORN:
        return "start the member: it mends this by itself, and nothing that was acknowledged is lost"
    if finding.verdict is not CORRUPT:
        return "nothing can be said of it here: look at the path, who may read it, and which version wrote it"
    usable = [each for each in report.snapshots if each.is_named and not each.damage]
    if finding.file.startswith("snap") and report.wal.verdict < CORRUPT and report.snapshot_index:
        return "start the member: it goes on from an older snapshot and the log behind it; then look at the disk"
    rebuild = shlex.join(["pyraftkv", "rebuild", report.path, "--join"])
    words = (
        f"look at the disk. While a majority of the members runs: `{rebuild} HOST:PORT` sets the "
        "directory aside, and lets the member come back with what the others have"
    )
    if usable:
        words += (
            f". If there is no majority any more, `pyraftkv snapshot restore` makes a new cluster of a saved snapshot, "
            f"or of snap/{usable[-1].name}"
        )
    return words


# --- What both print -------------------------------------------------------------------------------------------------


def summary_of(report: WalReport) -> str:
    """Return a log in one line."""
    size = human_bytes(sum(segment.size_bytes for segment in report.segments))
    count = len(report.segments)
    files = f"{size} in {count} segment{'' if count == 1 else 's'}"
    if report.finding is not None and report.finding.verdict >= CORRUPT:
        return f"{files}, not to be started from"
    if report.last_index < report.first_index:
        return f"{files}, no entries after {report.last_index}"
    return f"{files}, entries {report.first_index} to {report.last_index}"


def finding_line(finding: Finding) -> str:
    """Return what is wrong, with its exact place."""
    place = f"{finding.file}, offset {finding.offset}: " if finding.file else ""
    line = f"{finding.verdict.name}: {place}{finding.reason}"
    if finding.verdict is CORRUPT and finding.last_good_index:
        line += f"; good up to index {finding.last_good_index}"
    if finding.lost[1]:
        line += f"; entries {finding.lost[0]} to {finding.lost[1] - 1} cannot be read"
    return line


def segment_row(segment: SegmentReport) -> list[str]:
    """Return one segment as a row."""
    state = segment.damage or ("sealed" if segment.is_sealed else "open")
    first = str(segment.header.first_index) if segment.header is not None else ""
    counts = (segment.batches, segment.records, segment.entries, segment.end)
    return [segment.name, segment.format, str(segment.size_bytes), first, *map(str, counts), state]


def snapshot_rows(report: DirectoryReport) -> list[list[str]]:
    """Return the snapshots as rows."""
    return [
        [
            each.name,
            str(each.index),
            str(each.term),
            str(each.size_bytes),
            "yes" if each.is_named else "no",
            f"at {each.damaged_at}: {each.damage}" if each.damage else "whole",
        ]
        for each in report.snapshots
    ]


def wal_json(report: WalReport) -> dict[str, Any]:
    """Return a log for a program."""
    state = report.hard_state
    return {
        "verdict": report.verdict.name.lower(),
        "term": state.term,
        "vote": state.vote,
        "commit_index": state.commit,
        "first_index": report.first_index,
        "last_index": report.last_index,
        "segments": [segment_json(segment) for segment in report.segments],
        "finding": finding_json(report.finding) if report.finding is not None else None,
    }


def segment_json(segment: SegmentReport) -> dict[str, Any]:
    """Return a segment for a program."""
    return {
        "name": segment.name,
        "format": segment.format,
        "size_bytes": segment.size_bytes,
        "first_index": segment.header.first_index if segment.header is not None else None,
        "batches": segment.batches,
        "records": segment.records,
        "entries": segment.entries,
        "end": segment.end,
        "sealed": segment.is_sealed,
        "damage": segment.damage,
    }


def finding_json(finding: Finding) -> dict[str, Any]:
    """Return a finding for a program."""
    return {
        "verdict": finding.verdict.name.lower(),
        "file": finding.file,
        "offset": finding.offset,
        "reason": finding.reason,
        "last_good_index": finding.last_good_index,
        "lost": list(finding.lost),
    }


def directory_json(report: DirectoryReport) -> dict[str, Any]:
    """Return everything about a directory for a program."""
    identity = report.identity
    free, total = disk_space(report.path)
    return {
        "data_dir": report.path,
        "verdict": report.verdict.name.lower(),
        "in_use": report.in_use,
        "identity": None
        if identity is None
        else {
            "cluster_id": identity.cluster_id,
            "member_id": identity.member_id,
            "incarnation": identity.incarnation,
            "boot_count": identity.boot_count,
        },
        "wal": wal_json(report.wal),
        "snapshots": [
            {
                "name": each.name,
                "index": each.index,
                "term": each.term,
                "size_bytes": each.size_bytes,
                "in_use": each.is_named,
                "damage": each.damage,
                "damaged_at": each.damaged_at,
            }
            for each in report.snapshots
        ],
        "snapshot_index": report.snapshot_index,
        "leftovers": report.leftovers,
        "disk": {"free_bytes": free, "total_bytes": total},
        "findings": [{**finding_json(finding), "remedy": remedy(finding, report)} for finding in report.findings],
    }
