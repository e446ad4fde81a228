"""``snapshot save``, ``status`` and ``restore``: everything in a file, and a new cluster that begins with it."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Any

import pyraftkv
from pyraftkv.backup import Restored, SavedSnapshot, SnapshotStatus
from pyraftkv.cli.common import DEFAULT_ADDRESS, DONE, client
from pyraftkv.cli.keys import CONSISTENCIES
from pyraftkv.cli.printing import emit, emit_json
from pyraftkv.cli.terminal import human_bytes, print_table

STATUS_COLUMNS = ("HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE", "COMPACTED", "INDEX", "TERM", "CLUSTER")


async def snapshot_save(args: argparse.Namespace) -> int:
    """Save everything that the cluster has, as of one revision, to a file on this machine."""
    async with client(args) as kv:
        saved = await kv.snapshot(args.file, consistency=CONSISTENCIES[args.consistency])
    if args.write_out == "json":
        emit_json(saved_json(saved))
    else:
        emit(f"Snapshot saved at {saved.path}: revision {saved.revision}, {human_bytes(saved.size_bytes)}\n")
    return DONE


async def snapshot_status(args: argparse.Namespace) -> int:
    """Check every byte of a saved snapshot, and say what it holds; damage is told with its place."""
    status = await pyraftkv.snapshot_status(args.file)
    if args.write_out == "json":
        emit_json(status_json(status))
    else:
        print_table(sys.stdout, STATUS_COLUMNS, [status_row(status)])
        sys.stdout.flush()
    return DONE


async def snapshot_restore(args: argparse.Namespace) -> int:
    """Make the directory of one member of a NEW cluster that begins with the data of a saved snapshot.

    On each machine, from a copy of the same file and with the same --members. Revisions go on far behind those of the
    old cluster, and what is before counts as compacted: a watch from there is told so. Sessions are dropped.
    """
    data_dir = args.data_dir or f"{args.name}.pyraftkv"
    restored = await pyraftkv.restore_snapshot(
        args.file,
        data_dir,
        name=args.name,
        members=args.members or {args.name: DEFAULT_ADDRESS},
        bump_revision=args.bump_revision,
        token=args.token,
    )
    if args.write_out == "json":
        emit_json(restored_json(restored))
    else:
        emit("\n".join(restored_lines(restored, data_dir)), "\n")
    return DONE


def status_row(status: SnapshotStatus) -> list[str]:
    """Return what a file holds as a row, with etcdctl's columns first."""
    return [
        status.sha256[:8],
        str(status.revision),
        str(status.keys),
        human_bytes(status.size_bytes),
        str(status.compact_revision),
        str(status.index),
        str(status.term),
        f"{status.cluster_id:x}",
    ]


def saved_json(saved: SavedSnapshot) -> dict[str, Any]:
    """Return what was saved for a program."""
    return {
        "path": saved.path,
        "cluster_id": saved.cluster_id,
        "revision": saved.revision,
        "index": saved.index,
        "term": saved.term,
        "totalSize": saved.size_bytes,
        "hash": saved.sha256,
    }


def status_json(status: SnapshotStatus) -> dict[str, Any]:
    """Return what a file holds for a program, with etcdctl's names where it has them."""
    return {
        "path": status.path,
        "hash": status.sha256,
        "revision": status.revision,
        "totalKey": status.keys,
        "totalSize": status.size_bytes,
        "compact_revision": status.compact_revision,
        "index": status.index,
        "term": status.term,
        "cluster_id": status.cluster_id,
        "members": [{"id": row.id, "name": row.name, "address": row.address} for row in status.members],
    }


def restored_lines(restored: Restored, data_dir: str) -> list[str]:
    """Return what was made, and what is to be done next."""
    member = restored.member
    listed = ",".join(f"{row.name}={row.address}" for row in restored.members)
    start = ["pyraftkv", "serve", "--name", member.name, "--data-dir", data_dir, "--members", listed]
    others = (
        "Restore the other members on their machines from the same file with the same --members, then start them all:"
    )
    return [
        f"{data_dir} is member {member.name} of the new cluster {restored.cluster_id:x}; keys: {restored.keys}.",
        f"Revisions go on after {restored.revision}; the snapshot ended at {restored.snapshot.revision}.",
        others if len(restored.members) > 1 else "It is the only one. Start it:",
        f"  {shlex.join(start)}",
    ]


def restored_json(restored: Restored) -> dict[str, Any]:
    """Return what was made for a program."""
    return {
        "data_dir": restored.data_dir,
        "cluster_id": restored.cluster_id,
        "member_id": restored.member.id,
        "name": restored.member.name,
        "members": [{"id": row.id, "name": row.name, "address": row.address} for row in restored.members],
        "revision": restored.revision,
        "keys": restored.keys,
        "snapshot": status_json(restored.snapshot),
    }
