"""The bricks of the codec: bounded msgpack, runs of payloads, columns of key-values, and tables of fields.

Whatever is decoded here was written by somebody else, so three rules hold:

1. **Nothing is believed before it is checked.** Lengths are compared with what is there before anything is
   allocated; types are compared exactly (`True` is no integer here); integers fit in 63 bits and a sign.
2. **Nesting costs memory before it costs bytes.** Every array header in a msgpack text reserves its claimed
   length at once, and the C unpacker goes 1,024 levels deep, so a text of a few kilobytes can reserve megabytes.
   Flat texts are unpacked with at most `FIELDS_MAX` items per array, nested ones with `ITEMS_MAX` (8 MiB reserved
   at the very worst). The few texts that may hold maps, or long arrays, are skipped through first if they are long,
   which reserves nothing: of one that is not cut short every claim is honest, and all of them together are no more
   than its bytes. Then they are unpacked, and their levels counted (`unpack_deep`).
3. **One exception leaves.** Everything wrong ends as `Malformed`, which the public functions turn into the typed
   error of their family; no msgpack, struct, unicode or recursion error ever escapes.

An unpacker is never reused: each text gets its own `unpackb` (a reused one has crashed after an error).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from enum import IntEnum
from itertools import chain
from operator import attrgetter
from struct import Struct
from typing import Any, Final

import msgpack

from pyraftkv._record import record
from pyraftkv.store.values import KeyValue

INT_END: Final = 1 << 63
"""Integers that count or name something are in `[0, INT_END)`."""
FIELDS_MAX: Final = 16
"""Items in an array of a flat text."""
ITEMS_MAX: Final = 1024
"""Items in an array of a nested text."""
MAP_LENGTH_MAX: Final = 64
"""Keys in one map."""
DEPTH_MAX: Final = 8
"""Levels of a text with maps."""
CONTROL_BYTES_MAX: Final = 256 * 1024
"""Bytes of a text with maps."""

Buffer = bytes | memoryview


class Malformed(Exception):
    """What was to be decoded (or encoded) does not follow the format. Never leaves the codec."""


class UnknownTag(Malformed):
    """A tag that this version does not know."""


_msgpack: Any = msgpack  # it has no types of its own
pack: Callable[[Any], bytes] = _msgpack.Packer(autoreset=True).pack
unpackb: Callable[..., Any] = _msgpack.unpackb


def unpack_flat(data: Buffer) -> tuple[Any, ...]:
    """Unpack an array of scalars. O(bytes). Raises `Malformed`."""
    try:
        fields = unpackb(data, use_list=False, max_array_len=FIELDS_MAX, max_map_len=0, max_ext_len=0)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not msgpack: {error}") from None
    if type(fields) is not tuple:
        raise Malformed("not an array")
    array: tuple[Any, ...] = fields
    return array


def unpack_nested(data: Buffer) -> tuple[Any, ...]:
    """Unpack an array of scalars and arrays, without maps. O(bytes). Raises `Malformed`."""
    try:
        fields = unpackb(data, use_list=False, max_array_len=ITEMS_MAX, max_map_len=0, max_ext_len=0)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not msgpack: {error}") from None
    if type(fields) is not tuple:
        raise Malformed("not an array")
    array: tuple[Any, ...] = fields
    return array


def unpack_control(data: Buffer) -> list[Any]:
    """Unpack an array that may hold maps; every array in it becomes a list. O(bytes). Raises `Malformed`."""
    fields = unpack_deep(data, object_pairs_hook=_unique_keys, max_array_len=ITEMS_MAX, max_map_len=MAP_LENGTH_MAX)
    if type(fields) is not list:
        raise Malformed("not an array")
    array: list[Any] = fields
    return array


def _unique_keys(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Build a map, refusing a key that comes twice (msgpack alone keeps the last, other readers the first)."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key comes twice")
    for key in table:
        if type(key) is not str:
            raise ValueError("a key is not a string")
    return table


# --- Depth ---------------------------------------------------------------------------------------------------------


def unpack_deep(data: Buffer, **options: Any) -> Any:
    """Unpack a text of `CONTROL_BYTES_MAX` bytes and `DEPTH_MAX` levels at most. O(bytes). Raises `Malformed`.

    Args:
        data: The text.
        options: Those of `msgpack.unpackb`.
    """
    if len(data) > CONTROL_BYTES_MAX:
        raise Malformed(f"{len(data)} bytes of control data, over {CONTROL_BYTES_MAX}")
    try:
        if len(data) > ITEMS_MAX:  # one that is shorter reserves as little as a nested one, whatever it claims
            unpacker = _msgpack.Unpacker(max_buffer_size=len(data))
            unpacker.feed(data)
            unpacker.skip()
        value = unpackb(data, max_ext_len=0, ext_hook=_refuse_extension, **options)
    except _msgpack.OutOfData:
        raise Malformed("not msgpack: incomplete") from None
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not msgpack: {error}") from None
    # What holds something has a first byte of its own: few such bytes are no depth, and take 0.1 us to count, not 2.
    if len(bytes(data).translate(None, _NOT_OPENING)) > DEPTH_MAX:
        _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    """Raise `Malformed` for what is nested deeper than `DEPTH_MAX`. O(values), level by level."""
    items: list[Any] = [value]
    depth, kind_of = 0, _kind_of
    while kinds := _CONTAINERS & set(map(kind_of, items)):
        depth += 1
        if depth > DEPTH_MAX:
            raise Malformed(f"nested deeper than {DEPTH_MAX}")
        lists = [item for item in items if kind_of(item) is list] if list in kinds else []
        tables = [item.values() for item in items if kind_of(item) is dict] if dict in kinds else []
        items = [*chain.from_iterable(lists), *chain.from_iterable(tables)]


_kind_of: Callable[[Any], type] = type  # what is in a list or a map is of no type that is known
_CONTAINERS: Final = {list, dict}

_NOT_OPENING: Final = bytes({*range(256)} - {*range(0x80, 0xA0), *range(0xDC, 0xE0)})
"""Bytes that are not the first one of an array or a map."""


def _refuse_extension(_code: int, _data: bytes) -> Any:
    raise ValueError("an extension type")


# --- Runs and columns ----------------------------------------------------------------------------------------------

_COUNT = Struct("<I")


def pack_run(payloads: Sequence[bytes]) -> bytes:
    """Lay payloads end to end behind a table of their lengths: count, lengths (u32 little endian), bytes. O(bytes)."""
    return b"".join((run_table(payloads), *payloads))


def run_table(payloads: Sequence[bytes]) -> bytes:
    """Return what stands before the payloads of a run: their count and lengths. O(payloads)."""
    return Struct(f"<I{len(payloads)}I").pack(len(payloads), *map(len, payloads))


def unpack_run(data: bytes, offset: int = 0) -> tuple[list[bytes], int]:
    """Read the payloads that `pack_run` laid out at ``offset``, and where they end. O(bytes). Raises `Malformed`."""
    end = offset + 4
    if end > len(data):
        raise Malformed("a run is cut short")
    (count,) = _COUNT.unpack_from(data, offset)
    if end + 4 * count > len(data):
        raise Malformed("a run's table is cut short")
    lengths = Struct(f"<{count}I").unpack_from(data, end)
    start = end + 4 * count
    if start + sum(lengths) > len(data):
        raise Malformed("a run's bytes are cut short")
    payloads: list[bytes] = []
    append = payloads.append
    for length in lengths:
        end = start + length
        append(data[start:end])
        start = end
    return payloads, start


def pack_kvs(kvs: Sequence[KeyValue]) -> bytes:
    """Lay key-values out in columns: count, four integers each, key and value as one run. O(bytes).

    Columns need no type checks (a column of integers holds nothing else) and cannot nest.
    """
    numbers: list[int] = []
    blobs: list[bytes] = []
    for kv in kvs:
        numbers += (kv.create_revision, kv.mod_revision, kv.version, kv.lease)
        blobs += (kv.key, kv.value)
    return b"".join((Struct(f"<I{len(numbers)}q").pack(len(kvs), *numbers), pack_run(blobs)))


def unpack_kvs(data: bytes) -> list[KeyValue]:
    """Read what `pack_kvs` laid out. O(bytes). Raises `Malformed`."""
    if len(data) < 4:
        raise Malformed("key-values are cut short")
    (count,) = _COUNT.unpack_from(data)
    if 4 + 32 * count > len(data):
        raise Malformed("key-values are cut short")
    numbers = iter(Struct(f"<{4 * count}q").unpack_from(data, 4))
    run, end = unpack_run(data, 4 + 32 * count)
    if len(run) != 2 * count or end != len(data):
        raise Malformed("key-values do not fit their count")
    blobs = iter(run)
    columns = zip(blobs, blobs, numbers, numbers, numbers, numbers, strict=True)
    return [KeyValue(key, value, create, mod, version, lease) for key, value, create, mod, version, lease in columns]


# --- Tables of fields ----------------------------------------------------------------------------------------------


@record
class Shape:
    """How one field stands in an array: two functions that check what they convert."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    scalar_type: type | None = None
    """What a value that stands for itself is exactly; None when there is more to the field."""
    number_min: int = 0
    """The least that an integer may be."""


def scalar(check: Callable[[Any], Any], kind: type, *, number_min: int = 0) -> Shape:
    """A field that stands for itself, checked the same way in both directions."""
    return Shape(check, check, kind, number_min)


def _natural(value: Any) -> Any:
    if type(value) is not int or not 0 <= value < INT_END:
        raise Malformed("not an integer in [0, 2**63)")
    return value


def _integer(value: Any) -> Any:
    if type(value) is not int or not -INT_END <= value < INT_END:
        raise Malformed("not an integer of 64 bits")
    return value


def _boolean(value: Any) -> Any:
    if type(value) is not bool:
        raise Malformed("not a boolean")
    return value


def _blob(value: Any) -> Any:
    if type(value) is not bytes:
        raise Malformed("not bytes")
    return value


def _text(value: Any) -> Any:
    if type(value) is not str:
        raise Malformed("not a string")
    return value


def _seconds(value: Any) -> Any:
    if type(value) is not float or not 0.0 <= value < float("inf"):  # a NaN fails both
        raise Malformed("not a finite, positive number of seconds")
    return value


NATURAL: Final = scalar(_natural, int)
INTEGER: Final = scalar(_integer, int, number_min=-INT_END)
BOOLEAN: Final = scalar(_boolean, bool)
BLOB: Final = scalar(_blob, bytes)
TEXT: Final = scalar(_text, str)
SECONDS: Final = Shape(lambda value: _seconds(float(value) if type(value) is int else value), _seconds)


def optional(shape: Shape) -> Shape:
    """A field that may be None."""
    return Shape(
        lambda value: None if value is None else shape.encode(value),
        lambda value: None if value is None else shape.decode(value),
    )


def choice(kind: type[IntEnum]) -> Shape:
    """A field of an `IntEnum`."""
    members = {int(member): member for member in kind}

    def encode(value: Any) -> Any:
        if type(value) is not kind:
            raise Malformed(f"{value!r} is no {kind.__name__}")
        return int(value)

    def decode(value: Any) -> Any:
        member = members.get(_natural(value))
        if member is None:
            raise Malformed(f"{value} is no {kind.__name__}")
        return member

    return Shape(encode, decode)


class Schema:
    """How one record stands in an array: its fields in this order, whatever the order in its class.

    A layout never changes once it was released: a record that gains a field gets a new tag and a new schema.
    """

    def __init__(self, kind: type, /, **shapes: Shape) -> None:
        self.kind = kind
        self.names = tuple(shapes)
        self._fetch = attrgetter(*shapes) if len(shapes) > 1 else None
        self._is_in_order = self.names == tuple(field.name for field in dataclasses.fields(kind))[: len(self.names)]
        """Whether the record can be built by position, which takes half the time."""
        self._encoders = [shape.encode for shape in shapes.values()]
        self._decoders = [shape.decode for shape in shapes.values()]
        self._types = tuple([shape.scalar_type for shape in shapes.values()])
        numbers = [place for place, shape in enumerate(shapes.values()) if shape.scalar_type is int]
        self._numbers = slice(numbers[0], numbers[-1] + 1) if numbers else slice(0, 0)
        """Where the integers stand. What may stand between them are truth values, which are in every range."""
        self._number_min = max([shape.number_min for shape in shapes.values()], default=0)
        self._is_plain = {int, bool}.issuperset(self._types[self._numbers])

    def _are_sound(self, items: Sequence[Any]) -> bool:
        """Return whether items need no further look: scalars of the right types, in the ranges of all their fields.

        Micro-optimization (tests/bench/bench_transport.py): three steps in C instead of a call for each item halve
        what a small message between members costs. Items for which it is False may yet be right.
        """
        if not self._is_plain or tuple(map(type, items)) != self._types:
            return False
        numbers = items[self._numbers]
        return not numbers or (self._number_min <= min(numbers) and max(numbers) < INT_END)

    def encode(self, value: Any) -> tuple[Any, ...]:
        """Return the fields of a record as the items of an array. Raises `Malformed`."""
        values: tuple[Any, ...] = self._fetch(value) if self._fetch else tuple([getattr(value, x) for x in self.names])
        if self._are_sound(values):
            return values
        return tuple([self._encoded(*named) for named in zip(self.names, self._encoders, values, strict=True)])

    @staticmethod
    def _encoded(name: str, encode: Callable[[Any], Any], item: Any) -> Any:
        try:
            return encode(item)
        except Malformed as error:
            raise Malformed(f"{name}: {error}") from None

    def decode(self, items: Sequence[Any]) -> Any:
        """Build the record from the items of an array. Raises `Malformed`."""
        if len(items) != len(self.names):
            raise Malformed(f"{len(items)} fields for a {self.kind.__name__}, which has {len(self.names)}")
        values = items
        if not self._are_sound(items):
            values = [decode(item) for decode, item in zip(self._decoders, items, strict=True)]
        return self.kind(*values) if self._is_in_order else self.kind(**dict(zip(self.names, values, strict=True)))


def nested(schema: Schema) -> Shape:
    """A field that is a record itself: its fields, in an array of their own."""
    return Shape(schema.encode, lambda value: schema.decode(array_of(value)))


def each(schema: Schema) -> Shape:
    """A field that is a list of records of one kind."""

    def encode(values: Sequence[Any]) -> Any:
        if len(values) > ITEMS_MAX:
            raise Malformed(f"{len(values)} items, over {ITEMS_MAX}")
        return [schema.encode(value) for value in values]

    def decode(items: Any) -> Any:
        return [schema.decode(array_of(item)) for item in array_of(items)]

    return Shape(encode, decode)


def map_of(value: Any) -> dict[str, Any]:
    """Return ``value`` if it is a map (`unpack_control` has checked its keys). Raises `Malformed`."""
    if type(value) is not dict:
        raise Malformed("not a map")
    table: dict[str, Any] = value
    return table


def array_of(value: Any) -> tuple[Any, ...]:
    """Return ``value`` if it is an array. Raises `Malformed`."""
    if type(value) is not tuple:
        raise Malformed("not an array")
    array: tuple[Any, ...] = value
    return array
