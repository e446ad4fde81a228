"""Replicated collections: a counter, a dict, a list, a set and a queue that all members have.

Each is a `Machine` and a face: the machine is named when a node is made, and the face made of any `KV`.

.. code-block:: python

    machines = {"settings": ReplicatedDict.machine}  # for every member
    settings = ReplicatedDict(node, "settings")
    await settings.set("colour", "blue")

Values are plain (`codec.encode_plain`). Keys of a dict and elements of a set are scalars; a set keeps the order in
which its elements came, and gives the oldest away first: Python's own order differs from process to process, so each
member would pop another one.

For what grows past some megabytes the store is the better place: a snapshot copies a collection in one go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from pyraftkv import codec
from pyraftkv.errors import InvalidRequest
from pyraftkv.kv import KV, Consistency
from pyraftkv.machines import ROW_BYTES, Machine
from pyraftkv.statemachine import operation, query

__all__ = ["ReplicatedCounter", "ReplicatedDict", "ReplicatedList", "ReplicatedQueue", "ReplicatedSet"]

ELEMENTS_MAX = 1_000_000
"""Elements of one collection; one more is refused."""

NUMBER_BYTES = 9
"""What a number counts, and what is as short: as much as the longest one takes."""

Scalar = None | bool | int | float | str | bytes

_SCALARS = (type(None), bool, int, float, str, bytes)


def _scalar(value: Any) -> Any:
    if not isinstance(value, _SCALARS):
        raise TypeError(f"a {type(value).__name__} can be no key")
    return value


def _weight(value: Any) -> int:
    """Return what a value counts towards the quota: about its encoding; equal keys (1, 1.0, True) the same. O(n)."""
    kind = type(value)
    if kind is str:
        return ROW_BYTES + (len(value) if value.isascii() else len(value.encode()))
    if kind is bytes:
        return ROW_BYTES + len(value)
    return ROW_BYTES + (NUMBER_BYTES if kind in _SCALARS else len(codec.encode_plain(value)))


def _check_count(count: int) -> None:
    if count > ELEMENTS_MAX:
        raise InvalidRequest(f"{count} elements, over {ELEMENTS_MAX}")


# --- Machines ------------------------------------------------------------------------------------------------------


class CounterMachine(Machine):
    """A whole number."""

    def __init__(self) -> None:
        self._value = 0

    @property
    def size_bytes(self) -> int:
        return ROW_BYTES

    @operation(takes_room=False)
    def set(self, value: int) -> int:
        """Make it ``value``."""
        if type(value) is not int:
            raise TypeError("a counter is a whole number")
        self._value = value
        return value

    @operation(takes_room=False)
    def add(self, amount: int = 1) -> int:
        """Add to it. Python's numbers have no end, plain ones have: over 64 bits it is refused."""
        value = self._value + amount
        if not -(1 << 63) <= value < 1 << 63:
            raise OverflowError("a counter has 64 bits")
        return self.set(value)

    @query
    def get(self) -> int:
        """Return it."""
        return self._value

    def rows(self) -> list[Any]:
        return [self._value]

    def load(self, rows: list[Any]) -> None:
        self._value = rows[0]


class SizedMachine(Machine):
    """What knows how large it is: whatever adds an element or removes one counts it.

    A million elements would be copied to be weighed by their rows, after each that is removed while there is no room.
    """

    def __init__(self) -> None:
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._size_bytes


class DictMachine(SizedMachine):
    """Values by key, in the order in which the keys came."""

    def __init__(self) -> None:
        super().__init__()
        self._items: dict[Any, Any] = {}

    @operation
    def set(self, key: Any, value: Any) -> None:
        """Set a key."""
        _check_count(len(self._items) + 1)
        self._put(_scalar(key), value)

    def _put(self, key: Any, value: Any) -> None:
        more = _weight(value) - _weight(self._items[key]) if key in self._items else _weight(key) + _weight(value)
        self._items[key] = value
        self._size_bytes += more

    @operation
    def setdefault(self, key: Any, value: Any) -> Any:
        """Set a key that is not there; return what it has."""
        if _scalar(key) not in self._items:
            self.set(key, value)
        return self._items[key]

    @operation
    def update(self, pairs: list[Any]) -> None:
        """Set all of these keys."""
        items = {_scalar(key): value for key, value in pairs}
        _check_count(len(self._items) + len(items))
        for key, value in items.items():
            self._put(key, value)

    @operation(takes_room=False)
    def pop(self, key: Any, default: Any = None) -> Any:
        """Remove a key; return what it had."""
        if _scalar(key) not in self._items:
            return default
        value = self._items.pop(key)
        self._size_bytes -= _weight(key) + _weight(value)
        return value

    @operation(takes_room=False)
    def clear(self) -> None:
        """Remove all keys."""
        self._items, self._size_bytes = {}, 0

    @query
    def get(self, key: Any, default: Any = None) -> Any:
        """Return what a key has."""
        return self._items.get(_scalar(key), default)

    @query
    def contains(self, key: Any) -> bool:
        """Return whether a key is there."""
        return _scalar(key) in self._items

    @query
    def size(self) -> int:
        """Return how many keys there are."""
        return len(self._items)

    @query
    def items(self) -> list[Any]:
        """Return all keys with what they have."""
        return [[key, value] for key, value in self._items.items()]

    def rows(self) -> list[Any]:
        return list(self._items.items())

    def load(self, rows: list[Any]) -> None:
        for key, value in rows:
            self._put(key, value)


class ListMachine(SizedMachine):
    """Values in an order."""

    def __init__(self) -> None:
        super().__init__()
        self._values: list[Any] = []

    @operation
    def set(self, position: int, value: Any) -> None:
        """Exchange the value at a position."""
        more = _weight(value) - _weight(self._values[position])
        self._values[position] = value
        self._size_bytes += more

    @operation
    def append(self, value: Any) -> None:
        """Add a value behind the last."""
        self.extend([value])

    @operation
    def extend(self, values: list[Any]) -> None:
        """Add values behind the last."""
        _check_count(len(self._values) + len(values))
        self._values += values
        self._size_bytes += sum(map(_weight, values))

    @operation
    def insert(self, position: int, value: Any) -> None:
        """Add a value before a position."""
        _check_count(len(self._values) + 1)
        self._values.insert(position, value)
        self._size_bytes += _weight(value)

    @operation(takes_room=False)
    def remove(self, value: Any) -> None:
        """Remove the first such value."""
        self.pop(self._values.index(value))

    @operation(takes_room=False)
    def pop(self, position: int = -1) -> Any:
        """Remove the value at a position; return it."""
        value = self._values.pop(position)
        self._size_bytes -= _weight(value)
        return value

    @operation(takes_room=False)
    def sort(self, reverse: bool = False) -> None:  # noqa: FBT001, FBT002  (arguments have no names in the log)
        """Sort them; what cannot be compared is refused, and stays as it is."""
        self._values = sorted(self._values, reverse=reverse)

    @operation(takes_room=False)
    def clear(self) -> None:
        """Remove all."""
        self._values, self._size_bytes = [], 0

    @query
    def get(self, position: int) -> Any:
        """Return the value at a position."""
        return self._values[position]

    @query
    def index(self, value: Any) -> int:
        """Return the first position of a value."""
        return self._values.index(value)

    @query
    def count(self, value: Any) -> int:
        """Return how often a value is there."""
        return self._values.count(value)

    @query
    def size(self) -> int:
        """Return how many there are."""
        return len(self._values)

    @query
    def values(self) -> list[Any]:
        """Return all."""
        return self._values

    def rows(self) -> list[Any]:
        return self._values.copy()

    def load(self, rows: list[Any]) -> None:
        self._values += rows
        self._size_bytes += sum(map(_weight, rows))


class SetMachine(SizedMachine):
    """Scalars, each once."""

    def __init__(self) -> None:
        super().__init__()
        self._elements: dict[Any, None] = {}

    @operation
    def add(self, element: Any) -> bool:
        """Add an element; return whether it is new."""
        is_new = _scalar(element) not in self._elements
        _check_count(len(self._elements) + is_new)
        self._take_in([element])
        return is_new

    def _take_in(self, elements: Iterable[Any]) -> None:
        for element in elements:
            if element not in self._elements:
                self._elements[element] = None
                self._size_bytes += _weight(element)

    @operation
    def update(self, elements: list[Any]) -> None:
        """Add elements."""
        added = dict.fromkeys([_scalar(element) for element in elements])
        _check_count(len(self._elements) + len(added))
        self._take_in(added)

    @operation(takes_room=False)
    def discard(self, element: Any) -> bool:
        """Remove an element; return whether it was there."""
        is_there = _scalar(element) in self._elements
        if is_there:
            self.remove(element)
        return is_there

    @operation(takes_room=False)
    def remove(self, element: Any) -> None:
        """Remove an element that is there."""
        del self._elements[_scalar(element)]
        self._size_bytes -= _weight(element)

    @operation(takes_room=False)
    def pop(self) -> Any:
        """Remove the oldest element; return it."""
        if not self._elements:
            raise KeyError("the set is empty")
        oldest = next(iter(self._elements))
        self.remove(oldest)
        return oldest

    @operation(takes_room=False)
    def clear(self) -> None:
        """Remove all."""
        self._elements, self._size_bytes = {}, 0

    @query
    def contains(self, element: Any) -> bool:
        """Return whether an element is there."""
        return _scalar(element) in self._elements

    @query
    def size(self) -> int:
        """Return how many there are."""
        return len(self._elements)

    @query
    def values(self) -> list[Any]:
        """Return all."""
        return list(self._elements)

    def rows(self) -> list[Any]:
        return list(self._elements)

    def load(self, rows: list[Any]) -> None:
        self._take_in(rows)


class QueueMachine(SizedMachine):
    """Values, first in, first out."""

    def __init__(self) -> None:
        super().__init__()
        self._values: deque[Any] = deque()

    @operation
    def put(self, value: Any, size_max: int = ELEMENTS_MAX) -> bool:
        """Add a value, unless there are as many already; return whether it was added."""
        if len(self._values) >= min(size_max, ELEMENTS_MAX):
            return False
        self._values.append(value)
        self._size_bytes += _weight(value)
        return True

    @operation(takes_room=False)
    def get(self, default: Any = None) -> Any:
        """Remove the oldest value; return it."""
        if not self._values:
            return default
        value = self._values.popleft()
        self._size_bytes -= _weight(value)
        return value

    @operation(takes_room=False)
    def clear(self) -> None:
        """Remove all."""
        self._values, self._size_bytes = deque(), 0

    @query
    def size(self) -> int:
        """Return how many there are."""
        return len(self._values)

    def rows(self) -> list[Any]:
        return list(self._values)

    def load(self, rows: list[Any]) -> None:
        self._values += rows
        self._size_bytes += sum(map(_weight, rows))


# --- Faces ---------------------------------------------------------------------------------------------------------


class Replicated:
    """A collection of a cluster: what its methods write is applied on every member, exactly once.

    Args:
        kv: The store of a cluster that has the machine.
        name: What the collection is called in ``machines=``.
        consistency: Of its reads: "local" ones answer from memory, and may be behind.
        timeout: Of each call, in seconds; the node's or client's own by default.

    What is wrong with a call (a list has no such position) is `OperationRefused`; else it raises what any write or
    read raises.
    """

    machine: ClassVar[type[Machine]]

    def __init__(
        self,
        kv: KV,
        name: str,
        *,
        consistency: Consistency = "linearizable",
        timeout: float | None = None,
    ) -> None:
        self._machine = kv.machine(name)
        self._consistency: Consistency = consistency
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._machine.name!r}>"

    async def _do(self, name: str, *args: Any) -> Any:
        return await self._machine.call(name, *args, timeout=self._timeout)

    async def _see(self, name: str, *args: Any) -> Any:
        return await self._machine.query(name, *args, consistency=self._consistency, timeout=self._timeout)


class Sized(Replicated):
    """A collection with elements."""

    async def size(self) -> int:
        """Return how many elements there are."""
        return await self._see("size")  # type: ignore[no-any-return]

    async def clear(self) -> None:
        """Remove all elements."""
        await self._do("clear")


class ReplicatedCounter(Replicated):
    """A whole number of 64 bits that begins at 0."""

    machine = CounterMachine

    async def set(self, value: int) -> None:
        """Make it ``value``."""
        await self._do("set", value)

    async def add(self, amount: int = 1) -> int:
        """Add ``amount``, which may be negative; return what it is then."""
        return await self._do("add", amount)  # type: ignore[no-any-return]

    async def get(self) -> int:
        """Return what it is."""
        return await self._see("get")  # type: ignore[no-any-return]


class ReplicatedDict(Sized):
    """Values by key."""

    machine = DictMachine

    async def set(self, key: Scalar, value: Any) -> None:
        """Set a key."""
        await self._do("set", key, value)

    async def setdefault(self, key: Scalar, value: Any) -> Any:
        """Set a key that is not there; return what it has then."""
        return await self._do("setdefault", key, value)

    async def update(self, items: Mapping[Any, Any]) -> None:
        """Set all of these keys, at once."""
        await self._do("update", [list(pair) for pair in items.items()])

    async def pop(self, key: Scalar, default: Any = None) -> Any:
        """Remove a key; return what it had."""
        return await self._do("pop", key, default)

    async def get(self, key: Scalar, default: Any = None) -> Any:
        """Return what a key has."""
        return await self._see("get", key, default)

    async def contains(self, key: Scalar) -> bool:
        """Return whether a key is there."""
        return await self._see("contains", key)  # type: ignore[no-any-return]

    async def all(self) -> dict[Any, Any]:
        """Return everything, as of one moment."""
        return dict(await self._see("items"))


class ReplicatedList(Sized):
    """Values in an order; positions count from 0, and negative ones from the end."""

    machine = ListMachine

    async def set(self, position: int, value: Any) -> None:
        """Exchange the value at a position."""
        await self._do("set", position, value)

    async def append(self, value: Any) -> None:
        """Add a value behind the last."""
        await self._do("append", value)

    async def extend(self, values: Iterable[Any]) -> None:
        """Add values behind the last, at once."""
        await self._do("extend", list(values))

    async def insert(self, position: int, value: Any) -> None:
        """Add a value before a position."""
        await self._do("insert", position, value)

    async def remove(self, value: Any) -> None:
        """Remove the first such value."""
        await self._do("remove", value)

    async def pop(self, position: int = -1) -> Any:
        """Remove the value at a position; return it."""
        return await self._do("pop", position)

    async def sort(self, *, reverse: bool = False) -> None:
        """Sort the values."""
        await self._do("sort", reverse)

    async def get(self, position: int) -> Any:
        """Return the value at a position."""
        return await self._see("get", position)

    async def index(self, value: Any) -> int:
        """Return the first position of a value."""
        return await self._see("index", value)  # type: ignore[no-any-return]

    async def count(self, value: Any) -> int:
        """Return how often a value is there."""
        return await self._see("count", value)  # type: ignore[no-any-return]

    async def all(self) -> list[Any]:
        """Return everything, as of one moment."""
        return await self._see("values")  # type: ignore[no-any-return]


class ReplicatedSet(Sized):
    """Scalars, each once, in the order in which they came."""

    machine = SetMachine

    async def add(self, element: Scalar) -> bool:
        """Add an element; return whether it is new."""
        return await self._do("add", element)  # type: ignore[no-any-return]

    async def update(self, elements: Iterable[Scalar]) -> None:
        """Add elements, at once."""
        await self._do("update", list(elements))

    async def discard(self, element: Scalar) -> bool:
        """Remove an element; return whether it was there."""
        return await self._do("discard", element)  # type: ignore[no-any-return]

    async def remove(self, element: Scalar) -> None:
        """Remove an element, which must be there."""
        await self._do("remove", element)

    async def pop(self) -> Any:
        """Remove the oldest element; return it."""
        return await self._do("pop")

    async def contains(self, element: Scalar) -> bool:
        """Return whether an element is there."""
        return await self._see("contains", element)  # type: ignore[no-any-return]

    async def all(self) -> list[Any]:
        """Return everything, as of one moment."""
        return await self._see("values")  # type: ignore[no-any-return]


class ReplicatedQueue(Sized):
    """Values, first in, first out. Whoever takes one and dies has taken it."""

    machine = QueueMachine

    async def put(self, value: Any, *, size_max: int = ELEMENTS_MAX) -> bool:
        """Add a value, unless there are ``size_max`` already; return whether it was added."""
        return await self._do("put", value, size_max)  # type: ignore[no-any-return]

    async def get(self, default: Any = None) -> Any:
        """Remove the oldest value; return it, or ``default`` if there is none."""
        return await self._do("get", default)
