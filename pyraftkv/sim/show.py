"""Any value as a few printable characters: what traces, pictures and verdicts call the things they speak of.

What is shown depends on the value alone: never on an address, a hash or the order of a set, so that two runs of one
seed print the same, in two processes too. Values are cut, and every character that could break a line is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from typing import Any, cast

from pyraftkv.core.describe import describe_message
from pyraftkv.core.messages import AppendRequest

BYTES_MAX = 32
"""How much of a byte string is shown."""
ITEMS_MAX = 6
"""How many items of a collection are shown."""
TEXT_MAX = 2_000
"""How many characters of a text are shown."""


def printable(text: str) -> str:
    """Return `text` with everything that is not a printable character or a space escaped."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def cut(text: str, *, length_max: int) -> str:
    """Return `text`, or its beginning and an ellipsis, in at most `length_max` characters."""
    return text if len(text) <= length_max else text[: length_max - 1] + "…"


def show(value: Any) -> str:
    """Return a value in words. Records omit the fields that have their default."""
    kind: type[Any] = type(value)
    if kind is str:
        return printable(cut(value, length_max=TEXT_MAX))
    if kind is int or kind is bool or value is None:
        return str(value)
    if kind is float:
        return f"{value:.6g}"
    if kind is bytes or kind is bytearray or kind is memoryview:
        return _show_bytes(bytes(value))
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, BaseException):
        return printable(cut(f"{kind.__name__}: {value}", length_max=TEXT_MAX))
    if is_dataclass(kind):
        return _show_record(value)
    if isinstance(value, set | frozenset):
        return _show_items(sorted(map(show, cast(set[Any], value))), "{}")
    if isinstance(value, list | tuple):
        items = cast(list[Any], value)
        return _show_items([show(each) for each in items[:ITEMS_MAX]], "[]", len(items))
    if isinstance(value, Mapping):
        return _show_items([f"{show(key)}: {show(each)}" for key, each in value.items()], "{}")
    return kind.__name__


def show_message(message: Any) -> str:
    """Return a message between members as its name and its numbers, without sender, addressee and payloads."""
    kind = type(message)
    if kind is str:
        return printable(message)
    if kind is AppendRequest:
        entries = len(message.entries)
        position = f"prev={message.prev_index}@{message.prev_term} entries={entries} commit={message.commit}"
        return f"AppendRequest term={message.term} {position}"
    if kind.__module__ == AppendRequest.__module__:
        return printable(describe_message(message).partition(" ")[2])
    return show(message)


def _show_bytes(data: bytes) -> str:
    shown = repr(data[:BYTES_MAX])[1:]
    return shown if len(data) <= BYTES_MAX else f"{shown}… ({len(data)} bytes)"


def _show_items(items: list[str], brackets: str, count: int | None = None) -> str:
    count = len(items) if count is None else count
    more = f", … ({count})" if count > ITEMS_MAX else ""
    return brackets[0] + ", ".join(items[:ITEMS_MAX]) + more + brackets[1]


def _show_record(value: Any) -> str:
    name = type(value).__name__
    parts = [
        f"{each.name}={show(got)}" for each in fields(value) if (got := getattr(value, each.name)) != _default(each)
    ]
    return f"{name}({' '.join(parts)})" if parts else name


def _default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else MISSING
