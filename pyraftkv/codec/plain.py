"""Plain values to and from bytes: what operations on machines take and return.

None, booleans, integers of 64 bits, floats, text, bytes, lists, and maps with text for keys; tuples become lists.
Nothing else: bytes of a stranger become values, and never code.
"""

from __future__ import annotations

from typing import Any

from pyraftkv.codec._wire import CONTROL_BYTES_MAX, DEPTH_MAX, Buffer, Malformed, pack, unpack_deep, unpackb
from pyraftkv.errors import InvalidRequest


def encode_plain(value: Any) -> bytes:
    """Encode a plain value, as strictly as it is decoded. O(bytes). Raises `InvalidRequest`."""
    try:
        data = pack(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRequest(f"no plain value: {error}") from None
    decode_plain(data)
    return data


def decode_plain(data: Buffer) -> Any:
    """Decode what `encode_plain` made. O(bytes). Raises `InvalidRequest`."""
    try:
        return unpack_deep(data, object_pairs_hook=_text_keys)
    except Malformed as error:
        text = f"no plain value of {CONTROL_BYTES_MAX} bytes and {DEPTH_MAX} levels at most: {error}"
        raise InvalidRequest(text) from None


def decode_rows(data: Buffer) -> Any:
    """Decode plain values of a snapshot, whose checksums were verified. O(bytes). Raises `InvalidRequest`.

    They may be nested deeper than what was sent: a row of a table has levels of its own around a value.
    """
    try:
        return unpackb(data, max_ext_len=0, object_pairs_hook=_text_keys)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"no rows: {error}") from None


def _text_keys(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if type(key) is not str:
            raise ValueError("a key of a map is not text")
        table[key] = value
    return table
