"""Histories as lines of JSON: to keep them, and to check what another program has recorded.

Operations and watches are objects, one a line. A request or result is ``["PutKey", {"key": "a", "value": "1"}]``: the
name of its record and the fields that differ from their defaults. Bytes are text if they are UTF-8, and
``{"hex": "ff00"}`` if they are not. ``began`` and ``ended`` order events exactly and may be left out: then times do,
and events at the same time are concurrent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields
from enum import IntEnum
from math import inf
from typing import Any, cast, get_args, get_origin, get_type_hints

from pyraftkv.errors import from_wire, to_wire
from pyraftkv.kv import Consistency
from pyraftkv.sim.check.history import Delivery, History, Op, Outcome, Request, WatchRecord
from pyraftkv.store import commands, values
from pyraftkv.store.values import Result

LINE_BYTES_MAX = 64 * 1024 * 1024
"""A longer line is refused."""

_RECORDS: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        commands.PutKey,
        commands.DeleteRange,
        commands.RangeQuery,
        commands.Compare,
        commands.Transaction,
        commands.Compact,
        commands.GrantLease,
        commands.RevokeLease,
        values.KeyValue,
        values.PutResult,
        values.DeleteResult,
        values.RangeResult,
        values.TxnResult,
        values.CompactResult,
        values.LeaseGranted,
        values.LeaseRevoked,
        values.Event,
    )
}
_HINTS: dict[str, dict[str, Any]] = {name: get_type_hints(cls) for name, cls in _RECORDS.items()}
_ENUMS: dict[tuple[str, str], type[IntEnum]] = {
    ("RangeQuery", "sort_target"): commands.SortTarget,
    ("RangeQuery", "sort_order"): commands.SortOrder,
    ("Compare", "target"): commands.CompareTarget,
    ("Compare", "result"): commands.CompareResult,
    ("Event", "type"): values.EventType,
}


def to_lines(history: History) -> Iterator[str]:
    """Yield a history line by line, operations first."""
    for op in history.ops:
        yield _line(_op_fields(op))
    for watch in history.watches:
        yield _line({"watch": watch.client} | _watch_fields(watch))


def from_lines(lines: Iterable[str]) -> History:
    """Rebuild a history. Raises `ValueError` on a line that is none."""
    history = History()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            _take(history, line)
        except KeyError as error:
            raise ValueError(f"line {number}: there is no {error}") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"line {number}: {error}") from None
    _check_order(history)
    history.arrange()
    return history


def _take(history: History, line: str) -> None:
    if len(line) > LINE_BYTES_MAX:
        raise ValueError("too long")
    found = json.loads(line)
    if not isinstance(found, dict):
        raise TypeError("no JSON object")
    table = cast(dict[str, Any], found)
    if "watch" in table:
        history.watches.append(_watch_from(table))
    else:
        history.ops.append(_op_from(table))


def _line(table: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in table.items() if value not in (None, "")}, ensure_ascii=False)


def _op_fields(op: Op) -> dict[str, Any]:
    return {
        "client": op.client,
        "invoked": op.invoked,
        "returned": op.returned,
        "began": op.began,
        "ended": op.ended,
        "consistency": op.consistency,
        "member": op.member,
        "request": to_json(op.request),
        "outcome": op.outcome.value,
        "result": to_json(op.result),
        "error": None if op.error is None else to_json(list(to_wire(op.error))),
    }


def _op_from(table: dict[str, Any]) -> Op:
    op = Op(
        0,
        table["client"],
        from_json(table["request"]),
        table["invoked"],
        table.get("began", 0),
        table.get("consistency", "linearizable"),
        table.get("member", ""),
        table.get("returned"),
        table.get("ended"),
        Outcome(table["outcome"]),
        from_json(table.get("result")),
    )
    if "error" in table:
        name, message, data = table["error"]
        op.error = from_wire(name, message, {key: from_json(value) for key, value in data.items()})
    if (op.outcome is Outcome.OK) is (op.result is None):
        raise ValueError("a result exactly if it is ok")
    if op.outcome is not Outcome.UNKNOWN and op.returned is None:
        raise ValueError("an answer without a time")
    _check_op(op)
    return op


def _check_op(op: Op) -> None:
    """See that an operation can be what it says to be. Raises `ValueError`, `TypeError`."""
    if not isinstance(op.request, Request):
        raise TypeError(f"{op.request!r} is no request")
    if op.result is not None and not isinstance(op.result, Result):
        raise TypeError(f"{op.result!r} is no result")
    if op.consistency not in get_args(Consistency):
        raise ValueError(f"{op.consistency!r} is no consistency")
    if not -inf < op.invoked <= (op.invoked if op.returned is None else op.returned) < inf:
        raise ValueError(f"it began at {op.invoked} and ended at {op.returned}")
    if op.began and (op.ended is None) is not (op.returned is None):
        raise ValueError("one of returned and ended without the other, although there is a began")
    if op.ended is not None and not 0 < op.began < op.ended:
        raise ValueError(f"in the order it began as {op.began} and ended as {op.ended}")


def _check_order(history: History) -> None:
    """See that no two events have the same place: two histories that were put together have. Raises `ValueError`."""
    places = [op.began for op in history.ops] + [op.ended for op in history.ops if op.ended is not None]
    if all(op.began for op in history.ops) and len(set(places)) < len(places):
        raise ValueError("two events have the same place in the order: leave out began and ended, and times order them")


def _watch_fields(watch: WatchRecord) -> dict[str, Any]:
    deliveries = [
        [each.at, each.order, [to_json(event) for event in each.events], each.revision, each.placed_revision]
        for each in watch.deliveries
    ]
    return {
        "at": watch.at,
        "began": watch.began,
        "key": to_json(watch.key),
        "end": to_json(watch.end),
        "start_revision": watch.start_revision,
        "options": [name for name in _OPTIONS if getattr(watch, name)],
        "deliveries": deliveries,
        "resume_revision": watch.resume_revision,
    }


_OPTIONS = ("prev_kv", "no_put", "no_delete")


def _watch_from(table: dict[str, Any]) -> WatchRecord:
    options = table.get("options", ())
    watch = WatchRecord(
        number=0,
        client=table["watch"],
        key=from_json(table["key"]),
        end=from_json(table.get("end", "")),
        start_revision=table.get("start_revision", 0),
        at=table["at"],
        began=table.get("began", 0),
        prev_kv="prev_kv" in options,
        no_put="no_put" in options,
        no_delete="no_delete" in options,
    )
    watch.resume_revision = table.get("resume_revision")
    for at, order, events, revision, placed_revision in table.get("deliveries", ()):
        watch.deliveries.append(Delivery(at, order, [from_json(event) for event in events], revision, placed_revision))
    return watch


def to_json(value: Any) -> Any:
    """Return a record, bytes, a number or a list of them as what JSON can say."""
    name = type(value).__name__
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"hex": value.hex()}
    if isinstance(value, list):
        return [to_json(each) for each in value]
    if isinstance(value, dict):
        return {key: {"text": each} if isinstance(each, str) else to_json(each) for key, each in value.items()}
    if name in _RECORDS:
        said = {each.name: getattr(value, each.name) for each in fields(value)}
        defaults = {each.name: each.default for each in fields(value) if each.default is not MISSING}
        return [name, {key: to_json(each) for key, each in said.items() if each != defaults.get(key, MISSING)}]
    return value


def from_json(value: Any) -> Any:
    """Rebuild what `to_json` has said."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict):
        table: dict[str, str] = value
        return table["text"] if "text" in table else bytes.fromhex(table["hex"])
    if not isinstance(value, list):
        return value
    items: list[Any] = value
    if len(items) == 2 and isinstance(items[0], str) and isinstance(items[1], dict):
        name: str = items[0]
        said: dict[str, Any] = items[1]
        fields_said = {
            key: _ENUMS[name, key](each) if (name, key) in _ENUMS else from_json(each) for key, each in said.items()
        }
        made = _RECORDS[name](**fields_said)
        for key, each in fields_said.items():
            if not _fits(each, _HINTS[name][key]):
                raise TypeError(f"{said[key]!r:.100} is no {key} of a {name}")
        return made
    return [from_json(each) for each in items]


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value is what an annotation says: a truth value is no number, and text none either."""
    inner = get_args(hint)
    if isinstance(value, list):
        return get_origin(hint) is list and all(_fits(each, inner[0]) for each in value)
    if get_origin(hint) is list:
        return False
    return type(value) is hint or any(_fits(value, each) for each in inner)
