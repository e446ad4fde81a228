"""What an entry of the log holds, in words: the operation and its keys; values only where they are asked for."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from pyraftkv import codec, errors
from pyraftkv.cli.common import one_line
from pyraftkv.cli.printing import readable
from pyraftkv.core.types import Entry
from pyraftkv.protocol import Decided, Envelope, Genesis, Logged, Recover, StampedChange
from pyraftkv.settings import ChangeAlarm, ChangeSettings
from pyraftkv.store.commands import Compact, DeleteRange, PutBatch, PutKey, RangeQuery, Transaction

Described = dict[str, Any]
"""One operation: ``op``, and what it is about; keys and values are bytes."""


def describe(entry: Entry) -> list[Described]:
    """Return what an entry does, operation by operation; what cannot be decoded is one that says so."""
    if not entry.payload:
        return [{"op": "nothing"}]
    try:
        return list(_of_logged(codec.decode_logged(entry.payload)))
    except errors.PyraftkvError as error:
        return [{"op": "unreadable", "error": one_line(error)}]


def _of_logged(logged: Logged) -> Iterator[Described]:
    if isinstance(logged, Envelope | Decided):
        yield from _of_command(logged.command)
    elif isinstance(logged, StampedChange):
        yield from _of_logged(codec.decode_logged(logged.change))
    elif isinstance(logged, Genesis):
        yield {"op": "genesis", "cluster_id": logged.cluster_id, "members": [row.name for row in logged.members]}
    elif isinstance(logged, Recover):
        yield {"op": "recover", "cluster_id": logged.cluster_id, "members": [logged.member.name]}
    else:
        yield {"op": _words(type(logged).__name__)}


def _of_command(command: Any) -> Iterator[Described]:
    if isinstance(command, PutKey):
        yield {"op": "put", "key": command.key, "value": command.value}
    elif isinstance(command, PutBatch):
        items = command.items
        for key, value in zip(items[::2], items[1::2], strict=True):
            yield {"op": "put", "key": key, "value": value}
    elif isinstance(command, DeleteRange | RangeQuery):
        end = {"range_end": command.end} if command.end else {}
        yield {"op": "delete" if isinstance(command, DeleteRange) else "range", "key": command.key, **end}
    elif isinstance(command, Transaction):
        yield {"op": "txn", "compares": len(command.compares)}
        for branch, operations in (("then", command.success), ("else", command.failure)):
            for operation in operations:
                yield from ({"branch": branch, **inner} for inner in _of_command(operation))
    elif isinstance(command, Compact):
        yield {"op": "compact", "revision": command.revision}
    elif isinstance(command, ChangeSettings):
        changes = {field.name: getattr(command, field.name) for field in fields(command)}
        yield {"op": "change_settings", **{name: value for name, value in changes.items() if value is not None}}
    elif isinstance(command, ChangeAlarm):
        op = "raise_alarm" if command.is_raised else "clear_alarm"
        yield {"op": op, "kind": command.kind.name, "member": command.member}
    else:
        yield {"op": _words(type(command).__name__)}


def _words(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def entry_json(entry: Entry, *, values: bool) -> dict[str, Any]:
    """Return an entry for a program; bytes in base64, as in etcd's JSON."""
    operations = [
        {name: b64encode(value).decode() if isinstance(value, bytes) else value for name, value in each.items()}
        for each in (_without(described, values=values) for described in describe(entry))
    ]
    return {"index": entry.index, "kind": entry.kind.name, "bytes": len(entry.payload), "operations": operations}


def entry_lines(entry: Entry, *, values: bool) -> Iterator[str]:
    """Yield an entry as lines, one for each operation."""
    for each in describe(entry):
        words = [f"{name}={_text(value)}" for name, value in _without(each, values=values).items() if name != "op"]
        yield " ".join([f"  {entry.index} {entry.kind.name} {each['op']}", *words])


def _without(described: Described, *, values: bool) -> Described:
    return {name: value for name, value in described.items() if values or name != "value"}


def _text(value: Any) -> str:
    return repr(readable(value)) if isinstance(value, bytes) else str(value)
