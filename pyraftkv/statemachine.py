"""State machines of your own: what is asked of them, and what they can rely on.

A machine is a function of the log. Every member builds its own, and applies to it the same operations in the same
order; so they are equal for ever, if each operation does the same everywhere:

1. It reads nothing but the machine and its arguments: no clock, no random number, no file, no environment.
2. It depends on no order that differs between processes. That of a `set` of strings does (`PYTHONHASHSEED`); a dict's
   does not.
3. It raises before it has changed anything, or has changed the same everywhere. What it raises is a result like any
   other: its caller gets it as `OperationRefused`.
4. What it is given belongs to it. What it returns, and what `snapshot` pins, it never changes in place.
5. It takes a few milliseconds at most: the event loop waits for it.

A machine that breaks these rules is a bug that nobody can see at once. Members compare what their operations came to
with the state hash (docs/concepts/integrity.md): who differs is quarantined.

Members are not upgraded all at once:

1. Release 2 of a program knows an operation that release 1 does not. Two of three members run release 2.
2. One of them proposes it. The third could only skip it, and would not be what the others are; so it stops.
3. So every operation has a version. Members say in their HELLO which machines they have and up to which version, and
   one is proposed at a version that all of them offer. Who meets a newer one in the log, come from where it may,
   stops with `UnsupportedFormat` and says why; started as the new release, it goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar, overload

from pyraftkv._record import record

__all__ = ["Operation", "StateMachine", "operation", "query"]

OPERATION_BYTES_MAX = 256 * 1024
"""What an operation takes with its arguments, encoded; and what a query takes."""

RESULT_BYTES_MAX = 256 * 1024
"""What an operation or a query may return, encoded."""

CHUNK_BYTES_MAX = 255 * 1024
"""The longest part of a snapshot that a machine's chunk takes; a longer chunk takes several."""

MACHINES_MAX = 32
"""Machines of one member."""

NAME_CHARACTERS_MAX = 64
"""The longest name of a machine: letters, digits, ``-``, ``_`` and ``.``."""

VERSION_MAX = 1 << 31
"""Versions of operations are below this."""


@record
class Operate:
    """A command: apply an operation to a machine."""

    machine: str
    version: int
    payload: bytes
    """What it is and its arguments, as the machine reads them."""


@record
class Operated:
    """What an operation came to."""

    revision: int
    """The store's, when it was applied. An operation changes no key, and makes no revision."""
    result: bytes


@record
class MachineQuery:
    """A question to a machine, which changes nothing; an empty one asks which version all members offer."""

    machine: str
    payload: bytes


@record
class Operation:
    """An operation about to be applied."""

    payload: bytes
    version: int
    index: int
    """The place of its entry in the log: above that of every operation before."""
    revision: int
    """The store's, as of now."""


class StateMachine(Protocol):
    """What a node asks of a machine. `machines.Machine` does it for methods; this is for who wants bytes."""

    @property
    def version(self) -> int:
        """The newest version of operations that it knows, from 1 on."""
        ...

    @property
    def size_bytes(self) -> int | None:
        """What the state takes, about: it counts towards the cluster's quota. O(1). The same on every member.

        None of a `machines.Machine`: its rows are weighed now and then.
        """
        ...

    def takes_room(self, operation: Operation) -> bool:
        """Whether an operation may make the state larger: it is refused while the quota is crossed.

        What it says of an operation never changes, as what that does.
        """
        ...

    def apply(self, operation: Operation) -> bytes:
        """Apply an operation, and return its result. Whatever it raises is the result."""
        ...

    def query(self, payload: bytes) -> bytes:
        """Answer a question, and change nothing."""
        ...

    def snapshot(self) -> Iterator[bytes]:
        """Pin the state now, and yield it in chunks while further operations are applied.

        The loop stands while a chunk is made, here and where it is restored: they are to be short.
        """
        ...

    def restore(self, chunk: bytes) -> None:
        """Take the next chunk of a snapshot into a machine that was just made. Raises `ValueError` if it is none."""
        ...


Factory = Callable[[], StateMachine]
"""Makes an empty machine. A member makes several: a snapshot is restored into a new one while the old one serves."""

Factories = Mapping[str, Factory]

F = TypeVar("F", bound=Callable[..., Any])

MARK = "_pyraftkv_operation"
"""The attribute of a method that is an operation (its name and version, and whether it takes room), or a query (its
name, 0 and False)."""


@overload
def operation(method: F, /) -> F: ...
@overload
def operation(*, version: int = 1, name: str = "", takes_room: bool = True) -> Callable[[F], F]: ...
def operation(
    method: F | None = None, /, *, version: int = 1, name: str = "", takes_room: bool = True
) -> F | Callable[[F], F]:
    """Make a method of a `Machine` an operation, which all members apply.

    Args:
        method: The method.
        version: From which version on it is this. What an operation does at one version never changes once it was
            released: another method, with the same ``name`` and a higher version, takes its place.
        name: What it is called; as the method when empty.
        takes_room: Whether it may make the machine larger. What removes, and what stays as large, says False: it
            passes when the cluster is over its quota, and else nobody could make room. Never changes either.
    """
    if type(version) is not int or not 1 <= version < VERSION_MAX:
        raise ValueError(f"versions are numbered from 1 on, not {version!r}")

    def mark(marked: F) -> F:
        setattr(marked, MARK, (name or marked.__name__, version, takes_room))
        return marked

    return mark if method is None else mark(method)


def query(method: F) -> F:
    """Make a method of a `Machine` a question, which one member answers and which changes nothing."""
    setattr(method, MARK, (method.__name__, 0, False))
    return method


def complaint_of_machine(name: str) -> str:
    """Return what is wrong with a machine's name: empty if nothing is."""
    if type(name) is not str:
        return f"the name of a machine is text, not {name!r}"
    if not 0 < len(name) <= NAME_CHARACTERS_MAX or not name.isascii():
        return f"the name of a machine has 1 to {NAME_CHARACTERS_MAX} characters of ASCII"
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        return f"the name of a machine is made of letters, digits, '-', '_' and '.', not {name!r}"
    return ""
