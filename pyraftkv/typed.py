"""Typed values: a dataclass in, a dataclass out.

A value is stored as a JSON object with a member for each field, so every other program that reads the store can read
it too. What may stand in a field is kept small:

.. code-block:: text

    str, int, float, bool, None          themselves (a float is finite; a whole number is one, too)
    bytes                                base64
    datetime with an offset              ISO 8601
    an Enum                              the value of its member
    list[T], tuple[T, ...]               an array
    dict[str, T]                         an object
    a dataclass                          an object; it may hold itself
    T | None                             what T is, or null
    a name made by ``type``              what it stands for

*Versions of a class.* Programs of yesterday and of tomorrow share a store. A field that is missing gets its default,
so a new field needs one. A member that no field is named for is left out (``unknown="refuse"`` refuses it): who reads
such a value and writes it back drops what he did not know, so let everybody learn a field before anybody relies on it.

*Nothing is guessed.* A value that does not fit is an `InvalidValue` with the key and the place in it; an instance that
does not fit its own annotations is refused before it is written (`InvalidRequest`). No text of a store ever chooses
which class is made: the annotations do.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import math
import types
import typing
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from datetime import datetime
from enum import Enum
from typing import Any, Generic, Literal, Self, TypeVar

from typing_extensions import TypeAliasType

from pyraftkv import errors
from pyraftkv._record import record
from pyraftkv.kv import KV, Bytes, Consistency, Stm, View, Watch
from pyraftkv.store.values import DeleteResult, EventType, KeyValue, PutResult

M = TypeVar("M")
T = TypeVar("T")

Unknown = Literal["ignore", "refuse"]


@record
class Item(Generic[M]):
    """A key and its value as an instance, with the fields of a `KeyValue`."""

    key: bytes
    value: M
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


@record
class ItemEvent(Generic[M]):
    """One change of one key; a deletion has no item."""

    key: bytes
    item: Item[M] | None
    previous: Item[M] | None
    """What stood there before, if the watch was asked for it."""
    revision: int


LEVELS_MAX = 100
"""Arrays and objects inside of each other in a value. Were the interpreter's stack the bound, one program could write
what another cannot read: Pythons differ in what a level takes, and callers in what they leave of it."""


class _Misfit(Exception):
    """A value does not fit; says where. Never leaves this module."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"{path or 'the value'}: {what}")
        self.path = path


# --- Shapes --------------------------------------------------------------------------------------------------------


@record
class _Shape:
    """How a field is laid out: both raise `_Misfit` with the path that they are given."""

    encode: Callable[[Any, str], Any]
    decode: Callable[[Any, str], Any]


def _scalar(kind: type) -> _Shape:
    def check(value: Any, path: str) -> Any:
        if type(value) is not kind:
            raise _Misfit(path, f"{type(value).__name__} where {kind.__name__} is meant")
        return value

    return _Shape(check, check)


def _float(value: Any, path: str) -> float:
    try:
        number = float(value) if type(value) in (float, int) else math.nan
    except OverflowError:  # a whole number of more digits than a float has room for
        number = math.inf
    if not math.isfinite(number):
        raise _Misfit(path, f"{value!r:.40} is no finite number")
    return number


def _encode_bytes(value: Any, path: str) -> str:
    if type(value) is not bytes:
        raise _Misfit(path, f"{type(value).__name__} where bytes is meant")
    return base64.b64encode(value).decode()


def _decode_bytes(value: Any, path: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise _Misfit(path, "no base64") from None


def _encode_time(value: Any, path: str) -> str:
    if not isinstance(value, datetime) or value.utcoffset() is None:
        raise _Misfit(path, f"{value!r:.40} is no datetime with an offset")
    return value.isoformat()


def _decode_time(value: Any, path: str) -> datetime:
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise _Misfit(path, f"{value!r:.40} is no time") from None
    if time.utcoffset() is None:
        raise _Misfit(path, "a time without an offset")
    return time


def _enum(kind: type[Enum]) -> _Shape:
    members = {member.value: member for member in kind}
    if any(type(value) not in (str, int) for value in members):
        raise errors.InvalidRequest(f"{kind.__name__} has members that are neither text nor whole numbers")

    def encode(value: Any, path: str) -> Any:
        if type(value) is not kind:
            raise _Misfit(path, f"{type(value).__name__} where {kind.__name__} is meant")
        return value.value

    def decode(value: Any, path: str) -> Enum:
        member = members.get(value) if type(value) in (str, int) else None
        if member is None:
            raise _Misfit(path, f"{value!r:.40} is no {kind.__name__}")
        return member

    return _Shape(encode, decode)


def _sequence(kind: type[list[Any] | tuple[Any, ...]], item: _Shape) -> _Shape:
    def encode(value: Any, path: str) -> list[Any]:
        if type(value) is not kind:
            raise _Misfit(path, f"{type(value).__name__} where {kind.__name__} is meant")
        items: list[Any] = list(value)
        return [item.encode(each, f"{path}[{place}]") for place, each in enumerate(items)]

    def decode(value: Any, path: str) -> Any:
        if type(value) is not list:
            raise _Misfit(path, f"{type(value).__name__} where a list is meant")
        items: list[Any] = value
        return kind(item.decode(each, f"{path}[{place}]") for place, each in enumerate(items))

    return _Shape(encode, decode)


def _mapping(item: _Shape) -> _Shape:
    def convert(how: Callable[[Any, str], Any], value: Any, path: str) -> dict[str, Any]:
        table: dict[Any, Any] = value if type(value) is dict else {None: value}
        if not all(type(key) is str for key in table):
            raise _Misfit(path, "no dict with keys of text")
        return {key: how(each, f"{path}[{key!r}]") for key, each in table.items()}

    return _Shape(
        lambda value, path: convert(item.encode, value, path), lambda value, path: convert(item.decode, value, path)
    )


def _optional(shape: _Shape) -> _Shape:
    return _Shape(
        lambda value, path: None if value is None else shape.encode(value, path),
        lambda value, path: None if value is None else shape.decode(value, path),
    )


_SCALARS: dict[Any, _Shape] = {
    str: _scalar(str),
    int: _scalar(int),
    bool: _scalar(bool),
    float: _Shape(_float, _float),
    bytes: _Shape(_encode_bytes, _decode_bytes),
    datetime: _Shape(_encode_time, _decode_time),
    type(None): _scalar(type(None)),
}


_ALIASES = (TypeAliasType, getattr(typing, "TypeAliasType", TypeAliasType))
"""What ``type X = ...`` makes. On Python 3.12 and 3.13 it is not what `typing_extensions` has under the name."""

_UNREADABLE = (AttributeError, LookupError, NameError, SyntaxError, TypeError, ValueError)
"""What evaluating an annotation raises: from Python 3.14 on, and in strings, that is not done before here."""


class _Model:
    """A dataclass as a shape. The fields are filled in after it is known, so that a class may hold itself."""

    def __init__(self, kind: type, unknown: Unknown) -> None:
        self.kind = kind
        self.unknown = unknown
        self.fields: dict[str, _Shape] = {}
        self.required: frozenset[str] = frozenset()

    def encode(self, value: Any, path: str) -> dict[str, Any]:
        if type(value) is not self.kind:
            raise _Misfit(path, f"{type(value).__name__} where {self.kind.__name__} is meant")
        return {name: shape.encode(getattr(value, name), _below(path, name)) for name, shape in self.fields.items()}

    def decode(self, value: Any, path: str) -> Any:
        if type(value) is not dict:
            raise _Misfit(path, f"{type(value).__name__} where {self.kind.__name__} is meant")
        table: dict[str, Any] = value
        missing = sorted(self.required - table.keys())
        if missing:
            raise _Misfit(_below(path, missing[0]), "missing, and it has no default")
        extra = sorted(table.keys() - self.fields.keys())
        if extra and self.unknown == "refuse":
            raise _Misfit(_below(path, extra[0]), f"{self.kind.__name__} has no such field")
        given = {
            name: shape.decode(table[name], _below(path, name)) for name, shape in self.fields.items() if name in table
        }
        try:
            return self.kind(**given)
        except (TypeError, ValueError) as error:
            raise _Misfit(path, f"{self.kind.__name__} refuses it: {error}") from None


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


class _Compiler:
    """Makes shapes of annotations, each class once."""

    def __init__(self, unknown: Unknown) -> None:
        self._unknown: Unknown = unknown
        self._models: dict[type, _Model] = {}
        self._aliases: set[TypeAliasType] = set()
        """Those that are being looked into."""

    def model(self, kind: type) -> _Model:
        """Return the shape of a dataclass. Raises `InvalidRequest` for what cannot stand in one."""
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            raise errors.InvalidRequest(f"{kind!r} is no dataclass")
        if kind in self._models:
            return self._models[kind]
        model = self._models[kind] = _Model(kind, self._unknown)
        try:
            hints = typing.get_type_hints(kind)
        except NameError as error:
            raise errors.InvalidRequest(f"{kind.__name__}: an annotation names what is not there: {error}") from None
        except _UNREADABLE as error:
            raise errors.InvalidRequest(f"{kind.__name__}: an annotation cannot be read: {error}") from None
        fields = [field for field in dataclasses.fields(kind) if field.init]
        model.fields = {field.name: self.shape(hints[field.name], f"{kind.__name__}.{field.name}") for field in fields}
        none = dataclasses.MISSING
        model.required = frozenset(
            field.name for field in fields if field.default is none and field.default_factory is none
        )
        return model

    def shape(self, hint: Any, path: str) -> _Shape:
        """Return the shape of an annotation. Raises `InvalidRequest`."""
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if isinstance(hint, _ALIASES):
            return self._alias(hint, path)
        if isinstance(hint, type) and hint in _SCALARS:
            return _SCALARS[hint]
        if origin in (typing.Union, types.UnionType) and len(arguments) == 2 and type(None) in arguments:
            (other,) = [argument for argument in arguments if argument is not type(None)]
            return _optional(self.shape(other, path))
        if origin is list and arguments:
            return _sequence(list, self.shape(arguments[0], path))
        if origin is tuple and len(arguments) == 2 and arguments[1] is ...:
            return _sequence(tuple, self.shape(arguments[0], path))
        if origin is dict and arguments[:1] == (str,):
            return _mapping(self.shape(arguments[1], path))
        if isinstance(hint, type) and issubclass(hint, Enum):
            return _enum(hint)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            model = self.model(hint)
            return _Shape(model.encode, model.decode)
        raise errors.InvalidRequest(f"{path}: {hint!r} cannot stand in a typed value")

    def _alias(self, alias: TypeAliasType, path: str) -> _Shape:
        """Return the shape of what was named by ``type alias = ...``, which is evaluated here for the first time."""
        if alias in self._aliases:
            raise errors.InvalidRequest(f"{path}: {alias} holds itself: a dataclass may, an alias cannot")
        try:
            named = alias.__value__
        except _UNREADABLE as error:
            raise errors.InvalidRequest(f"{path}: {alias} cannot be read: {error}") from None
        self._aliases.add(alias)
        try:
            return self.shape(named, path)
        finally:
            self._aliases.remove(alias)


def _check_levels(plain: Any, data: bytes) -> None:
    """Raise `ValueError` for a value that is nested too deeply. O(bytes), and next to nothing for what is short."""
    if data.count(b"{") + data.count(b"[") <= LEVELS_MAX:
        return
    level: list[Any] = [plain]
    for _ in range(LEVELS_MAX):
        inside = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
        level = [inner for inner in inside if isinstance(inner, dict | list)]
        if not level:
            return
    raise ValueError(f"it has more than {LEVELS_MAX} levels")


# --- Faces ---------------------------------------------------------------------------------------------------------


class Typed(Generic[M]):
    """A store, or a namespace of one, whose values are instances of a dataclass.

    Every method is the `KV` one of its name, with instances for values; `load` and `dump` are for everything else.

    Args:
        kv: Where the values are kept.
        model: The dataclass.
        unknown: What to do with members of a value that no field is named for: "ignore" or "refuse".

    Raises:
        InvalidRequest: It is no dataclass, or a field has an annotation that cannot stand in a value.
    """

    def __init__(self, kv: KV, model: type[M], *, unknown: Unknown = "ignore") -> None:
        if unknown not in typing.get_args(Unknown):
            raise errors.InvalidRequest(f"unknown= is one of {typing.get_args(Unknown)}, not {unknown!r}")
        self._kv = kv
        self._model = _Compiler(unknown).model(model)

    def __repr__(self) -> str:
        return f"<Typed {self._model.kind.__name__} in {self._kv!r}>"

    def dump(self, value: M) -> bytes:
        """Return an instance as it is stored. Raises `InvalidRequest` if it does not fit its annotations."""
        try:
            plain = self._model.encode(value, "")
            data = json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
            _check_levels(plain, data)
        except _Misfit as error:
            raise errors.InvalidRequest(f"{self._model.kind.__name__}: {error}") from None
        except (RecursionError, ValueError) as error:
            raise errors.InvalidRequest(f"{self._model.kind.__name__} cannot be written: {error}") from None
        return data

    def load(self, kv: KeyValue) -> Item[M]:
        """Return what is stored as an instance. Raises `InvalidValue`."""
        path = ""
        try:
            plain = json.loads(kv.value.decode())
            _check_levels(plain, kv.value)
            value = self._model.decode(plain, "")
        except _Misfit as error:
            path, text = error.path, str(error)
        except (RecursionError, ValueError) as error:
            text = f"no JSON: {error}"
        else:
            return Item(kv.key, value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)
        text = f"{kv.key!r} holds no {self._model.kind.__name__}: {text}"
        raise errors.InvalidValue(text, key=kv.key, mod_revision=kv.mod_revision, path=path)

    def load_optional(self, kv: KeyValue | None) -> Item[M] | None:
        """As `load`; None for None."""
        return None if kv is None else self.load(kv)

    async def get(
        self,
        key: Bytes,
        *,
        revision: int = 0,
        consistency: Consistency = "linearizable",
        at_least: int = 0,
        timeout: float | None = None,
    ) -> Item[M] | None:
        """Return the key's item, or None. Raises `InvalidValue`, and as `KV.get`."""
        found = await self._kv.get(key, revision=revision, consistency=consistency, at_least=at_least, timeout=timeout)
        return self.load_optional(found)

    async def scan(
        self,
        start: Bytes = b"",
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        revision: int = 0,
        consistency: Consistency = "linearizable",
    ) -> AsyncGenerator[Item[M]]:
        """Iterate over a range of any size, all at one revision. Raises `InvalidValue`, and as `KV.scan`."""
        async for kv in self._kv.scan(start, end, prefix=prefix, revision=revision, consistency=consistency):
            yield self.load(kv)

    async def put(
        self, key: Bytes, value: M, *, lease: int = 0, if_revision: int | None = None, timeout: float | None = None
    ) -> PutResult:
        """Set the key. Raises `InvalidRequest` for an instance that does not fit, and as `KV.put`."""
        return await self._kv.put(key, self.dump(value), lease=lease, if_revision=if_revision, timeout=timeout)

    async def create(self, key: Bytes, value: M, *, lease: int = 0, timeout: float | None = None) -> PutResult:
        """Set the key if it does not exist. Raises `KeyExists`, and as `put`."""
        return await self._kv.create(key, self.dump(value), lease=lease, timeout=timeout)

    async def delete(self, key: Bytes, *, if_revision: int | None = None, timeout: float | None = None) -> DeleteResult:
        """Delete one key. Raises as `KV.delete`."""
        return await self._kv.delete(key, if_revision=if_revision, timeout=timeout)

    def watch(
        self,
        key: Bytes | None = None,
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        start_revision: int = 0,
        prev_kv: bool = False,
    ) -> TypedWatch[M]:
        """Watch one key, a range or a prefix; see `KV.watch`."""
        watch = self._kv.watch(key, end, prefix=prefix, start_revision=start_revision, prev_kv=prev_kv)
        return TypedWatch(self, watch)

    async def transact(self, work: Callable[[TypedStm[M]], Awaitable[T]], *, timeout: float | None = None) -> T:
        """Call ``work`` until it can be done as one transaction; see `KV.transact`."""
        return await self._kv.transact(lambda tx: work(TypedStm(self, tx)), timeout=timeout)

    async def view(
        self,
        key: Bytes | None = None,
        end: Bytes | None = None,
        *,
        prefix: Bytes | None = None,
        keys_max: int = 100_000,
        timeout: float | None = None,
    ) -> TypedView[M]:
        """Return a range as a mapping to items that is kept current; see `KV.view`."""
        view = await self._kv.view(key, end, prefix=prefix, keys_max=keys_max, timeout=timeout)
        return TypedView(self, view)


class TypedWatch(Generic[M]):
    """A watch whose events hold items: an async context manager and iterator. Made by `Typed.watch`.

    A value that does not fit raises `InvalidValue`, which ends the iteration: the next one goes on behind it.
    """

    def __init__(self, typed: Typed[M], watch: Watch) -> None:
        self._typed = typed
        self.watch = watch
        """The watch beneath."""
        self._events = aiter(watch)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ItemEvent[M]:
        event = await anext(self._events)
        item = self._typed.load(event.kv) if event.type is EventType.PUT else None
        return ItemEvent(event.kv.key, item, self._typed.load_optional(event.prev_kv), event.kv.mod_revision)

    async def __aenter__(self) -> Self:
        await self.watch.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.watch.__aexit__(*exc)


class TypedStm(Generic[M]):
    """One attempt of the function given to `Typed.transact`; see `kv.Stm`."""

    def __init__(self, typed: Typed[M], tx: Stm) -> None:
        self._typed = typed
        self.tx = tx
        """The attempt beneath: for keys that hold something else."""

    async def get(self, key: Bytes) -> Item[M] | None:
        """Return the key's item, or what this attempt has put there. Raises `InvalidValue`."""
        return self._typed.load_optional(await self.tx.get(key))

    def put(self, key: Bytes, value: M, *, lease: int = 0) -> None:
        """Set the key when the attempt is committed. Raises `InvalidRequest`."""
        self.tx.put(key, self._typed.dump(value), lease=lease)

    def delete(self, key: Bytes) -> None:
        """Delete the key when the attempt is committed."""
        self.tx.delete(key)


class TypedView(Mapping[bytes, Item[M]]):
    """A live view whose values are items; made by `Typed.view`. Looking at a value that does not fit raises."""

    def __init__(self, typed: Typed[M], view: View) -> None:
        self._typed = typed
        self.view = view
        """The view beneath: `at_least`, `wait`, `changes` and `revision` are its."""

    def __getitem__(self, key: Bytes) -> Item[M]:
        return self._typed.load(self.view[key])

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.view)

    def __len__(self) -> int:
        return len(self.view)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.view.close()
