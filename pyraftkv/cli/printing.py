"""What the verbs print: simple lines, tables or JSON, as etcdctl prints them."""

from __future__ import annotations

import argparse
import json
import sys
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

from pyraftkv.cli.terminal import print_table
from pyraftkv.store.values import DeleteResult, Event, KeyValue, PutResult, RangeResult, WatchBatch


def emit(*parts: bytes | str) -> None:
    """Write to standard output; bytes as they are."""
    for part in parts:
        sys.stdout.buffer.write(part if isinstance(part, bytes) else part.encode())
    sys.stdout.buffer.flush()


def emit_json(table: Any) -> None:
    """Write one line of JSON."""
    emit(json.dumps(table, separators=(",", ":")), "\n")


def emit_kv(kv: KeyValue, *, key: bool = True, value: bool = True) -> None:
    """Write a key and its value, a line each."""
    emit(*([kv.key, b"\n"] if key else []), *([kv.value, b"\n"] if value else []))


def readable(raw: bytes) -> str:
    """Return bytes as text for a table; what is not UTF-8 is escaped."""
    return raw.decode(errors="backslashreplace")


def kv_json(kv: KeyValue) -> dict[str, Any]:
    """Return a key and value as etcd's JSON has them: bytes in base64, zeros left out."""
    numbers = {
        "create_revision": kv.create_revision,
        "mod_revision": kv.mod_revision,
        "version": kv.version,
        "lease": kv.lease,
    }
    return {
        "key": b64encode(kv.key).decode(),
        **({"value": b64encode(kv.value).decode()} if kv.value else {}),
        **{name: number for name, number in numbers.items() if number},
    }


def header_json(revision: int) -> dict[str, Any]:
    """Return the part of etcd's response header that we have everywhere."""
    return {"revision": revision}


def print_put(result: PutResult, style: str) -> None:
    """Print what a put did: ``OK``, and what stood there before."""
    if style == "json":
        previous = {"prev_kv": kv_json(result.prev_kv)} if result.prev_kv else {}
        emit_json({"header": header_json(result.revision), **previous})
        return
    emit("OK\n")
    if result.prev_kv is not None:
        emit_kv(result.prev_kv)


def print_range(result: RangeResult, args: argparse.Namespace) -> None:
    """Print keys and values, one per line in turn, or as the flags say."""
    if args.write_out == "json":
        rows = [kv_json(kv) for kv in result.kvs]
        more = {"more": True} if result.more else {}
        emit_json({"header": header_json(result.revision), "kvs": rows, "count": result.count, **more})
    elif args.count_only:
        emit(f"{result.count}\n")
    elif args.write_out == "table":
        columns = ["KEY", "VALUE", "CREATE REVISION", "MOD REVISION", "VERSION"]
        table = [
            [readable(kv.key), readable(kv.value), str(kv.create_revision), str(kv.mod_revision), str(kv.version)]
            for kv in result.kvs
        ]
        print_table(sys.stdout, columns, table)
    else:
        for kv in result.kvs:
            emit_kv(kv, key=not args.print_value_only, value=not args.keys_only)


def print_delete(result: DeleteResult, style: str) -> None:
    """Print how many keys were deleted, and which if that was asked for."""
    if style == "json":
        previous = [kv_json(kv) for kv in result.prev_kvs]
        emit_json({"header": header_json(result.revision), "deleted": result.deleted, "prev_kvs": previous})
        return
    emit(f"{result.deleted}\n")
    for kv in result.prev_kvs:
        emit_kv(kv)


def print_event(event: Event) -> None:
    """Print PUT or DELETE, what stood there before if it was asked for, and what stands there now."""
    emit(event.type.name, "\n")
    if event.prev_kv is not None:
        emit_kv(event.prev_kv)
    emit_kv(event.kv)


def batch_json(batch: WatchBatch) -> dict[str, Any]:
    """Return a watch's batch as etcd's JSON has it."""
    rows: list[dict[str, Any]] = []
    for event in batch.events:
        previous = {"prev_kv": kv_json(event.prev_kv)} if event.prev_kv else {}
        rows.append({"type": event.type.name, "kv": kv_json(event.kv), **previous})
    return {"header": header_json(batch.revision), "events": rows}


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[str]], style: str) -> None:
    """Print a table, or with ``-w simple`` its cells behind commas as etcdctl does."""
    if style == "table":
        print_table(sys.stdout, columns, rows)
        return
    for row in rows:
        emit(", ".join(row), "\n")


def truth(value: bool) -> str:  # noqa: FBT001  (a conversion, like str)
    """Return a boolean as etcdctl writes it."""
    return "true" if value else "false"
