"""The machines of a replica, beside the store: their operations, and their parts of a snapshot.

`Machine` turns methods into a `StateMachine`: what they take and return is plain (`codec.encode_plain`). `Machines` is
what a replica has of them.

What an operation raises is its outcome, on every member the same: else one that calls `sys.exit` would stop all
members, and again whenever they are started. Three errors are none. Ctrl-C is for one program, and whether memory or
stack was short is one member's own matter.

1. A member has little memory left. An operation that the others carry out raises `MemoryError` there.
2. Had it been taken for the outcome, this member would now be another machine than the others.
3. So it stops. Started again, it applies the operation once more.

What machines hold counts towards the cluster's quota (`rules`). A machine that does not know its size is weighed by a
sample of its rows, and again when it was given an eighth as much as that: a function of the log, whoever asks and when.

1. A machine is full of jobs. The alarm NOSPACE is raised, and an operation that takes no room removes them all.
2. It was given a few bytes, far from an eighth. Were it not weighed again, the alarm would stand for ever.
3. So it is weighed when the alarm is raised, and after each operation while that stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from inspect import iscoroutinefunction
from typing import Any, ClassVar, Protocol
from zlib import crc32

from pyraftkv import codec, errors
from pyraftkv.statemachine import (
    CHUNK_BYTES_MAX,
    MACHINES_MAX,
    MARK,
    NAME_CHARACTERS_MAX,
    RESULT_BYTES_MAX,
    Factories,
    Factory,
    MachineQuery,
    Operate,
    Operated,
    Operation,
    StateMachine,
    complaint_of_machine,
)

__all__ = ["Machine"]

ROWS_PER_CHUNK = 256
"""Rows of a `Machine` that are encoded together, as far as they fit."""

ROW_BYTES = 72
"""What a row counts besides its encoding, and an operation besides its arguments: as much as a version of a key."""

ROWS_WEIGHED_MAX = 64
"""Rows of a sample, evenly spaced, by which a machine is weighed."""

GIVEN_BYTES_MIN = 64 * 1024
"""What a machine is given at least before it is weighed again."""

GIVEN_PART = 8
"""And the part of its size that it is given."""

_PARTS = ("version", "size_bytes", "takes_room", "apply", "query", "snapshot", "restore")
"""What a `StateMachine` has."""

_WHOLE, _LAST, _PIECE = b"\0", b"\1", b"\2"
"""What a part of a snapshot begins with: a chunk of a machine (or what was left of it), a machine's end, a piece of a
chunk that goes on in the next part."""


class Machine:
    """A state machine made of methods: `@operation` those that change it, `@query` those that do not.

    A subclass says what it consists of with `rows` and `load`. Its arguments and results are plain.
    """

    version: int = 1
    entry_index: int = 0
    """The place in the log of the operation under way: a number that no other operation has."""
    store_revision: int = 1
    """The store's, as of the operation under way."""
    _operations: ClassVar[dict[str, list[tuple[int, Callable[..., Any]]]]] = {}
    """By name, the newest version first."""
    _queries: ClassVar[dict[str, Callable[..., Any]]] = {}

    def __init_subclass__(cls) -> None:
        for name in vars(cls):
            _check_method(cls, name)
        operations: dict[str, dict[int, Callable[..., Any]]] = {}
        queries: dict[str, Callable[..., Any]] = {}
        for base in reversed(cls.__mro__):
            for method in vars(base).values():
                name, version, _ = getattr(method, MARK, ("", 0, False))
                if version:
                    operations.setdefault(name, {})[version] = method
                elif name:
                    queries[name] = method
        cls._operations = {name: sorted(table.items(), reverse=True) for name, table in operations.items()}
        cls._queries = queries
        cls.version = max([table[0][0] for table in cls._operations.values()], default=1)

    @property
    def size_bytes(self) -> int | None:
        """What the state takes, about, for a subclass that keeps count of it; None: the rows are weighed. O(1)."""
        return None

    def takes_room(self, operation: Operation) -> bool:
        """Whether the method of that name may make the machine larger. Raises `InvalidRequest`."""
        name, _ = _call_of(operation.payload)
        takes_room: bool = getattr(self._method(name, operation.version), MARK)[2]
        return takes_room

    def apply(self, operation: Operation) -> bytes:
        """Call the method of that name, at its newest version that is not above the operation's."""
        name, args = _call_of(operation.payload)
        method = self._method(name, operation.version)
        self.entry_index, self.store_revision = operation.index, operation.revision
        return _result_of(method(self, *args))

    def _method(self, name: str, version_max: int) -> Callable[..., Any]:
        for version, method in self._operations.get(name, ()):
            if version <= version_max:
                return method
        hint = ": it is a query" if name in self._queries else f" at version {version_max}"
        raise errors.InvalidRequest(f"there is no operation {name!r}{hint}")

    def query(self, payload: bytes) -> bytes:
        """Call the query of that name."""
        name, args = _call_of(payload)
        method = self._queries.get(name)
        if method is None:
            hint = ": it is an operation, to be called" if name in self._operations else ""
            raise errors.InvalidRequest(f"there is no query {name!r}{hint}")
        return codec.encode_plain(method(self, *args))

    def rows(self) -> list[Any]:
        """Return the state as plain values that are never changed in place. To be quick: a copy at most."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it consists of")

    def load(self, rows: list[Any]) -> None:
        """Take in the next of what `rows` returned."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is built of {len(rows)} rows")

    def snapshot(self) -> Iterator[bytes]:
        """Pin the rows, and yield them in chunks."""
        return _chunks(self.rows())

    def restore(self, chunk: bytes) -> None:
        """Take in a chunk of rows. Raises `InvalidRequest`."""
        self.load(codec.decode_rows(chunk))


def _check_method(cls: type, name: str) -> None:
    """Refuse a method that would not be called, or not do what it says. Raises `TypeError`.

    1. A subclass has a method in the place of an operation, and has not made it one. 2. Under that name the one of the
    base class is called still, for what an operation does at its version never changes.
    """
    method = vars(cls)[name]
    is_marked = hasattr(method, MARK)
    if is_marked and iscoroutinefunction(method):
        raise TypeError(f"{cls.__name__}.{name} cannot be a coroutine: an operation awaits nothing, nor does a query")
    if not is_marked and any(hasattr(vars(base).get(name), MARK) for base in cls.__mro__[1:]):
        raise TypeError(f"{cls.__name__}.{name} takes the place of an operation or a query, and is none")


def _chunks(rows: list[Any]) -> Iterator[bytes]:
    """Yield rows in chunks, fewer together where they are long; a row that is too long is a chunk. O(chunk) each."""
    start, count = 0, ROWS_PER_CHUNK
    while start < len(rows):
        chunk = codec.encode_table(rows[start : start + count])
        if len(chunk) <= CHUNK_BYTES_MAX or count == 1:
            yield chunk
            start += count
        else:
            count = max(1, count // 4)


def _weight_of(rows: list[Any]) -> int:
    """Return what rows take, by a sample of them. O(1), and O(row)."""
    if not rows:
        return 0
    sample = rows[:: -(-len(rows) // ROWS_WEIGHED_MAX)]
    return len(rows) * (ROW_BYTES + len(codec.encode_table(sample)) // len(sample))


def _result_of(value: Any) -> bytes:
    """Encode what an operation returned. Raises `MaybeApplied`."""
    try:
        return codec.encode_plain(value)
    except errors.InvalidRequest as error:
        raise errors.MaybeApplied(f"it was applied, but its result cannot be told: {error}") from None


def encode_call(name: str, args: tuple[Any, ...]) -> bytes:
    """Encode a call of a `Machine`'s method. Raises `InvalidRequest`."""
    return codec.encode_plain([name, *args])


def _call_of(payload: bytes) -> tuple[str, list[Any]]:
    items = codec.decode_plain(payload)
    call: list[Any] = items if isinstance(items, list) else []
    if not call or type(call[0]) is not str:
        raise errors.InvalidRequest("not the name of a method and its arguments")
    return call[0], call[1:]


def _made(name: str, factory: Factory) -> StateMachine:
    """Make a machine. Raises `ConfigurationError` for what lacks a part: its first snapshot would be late to say so."""
    if not callable(factory):
        raise errors.ConfigurationError(f"machines= says what makes {name!r}, its class perhaps: not {factory!r}")
    machine = factory()
    missing = [part for part in _PARTS if not hasattr(machine, part)]
    size_bytes = 0 if missing else machine.size_bytes
    if type(size_bytes) is not int and not (size_bytes is None and isinstance(machine, Machine)):
        raise errors.ConfigurationError(f"size_bytes of the machine {name!r} is a number, not {size_bytes!r:.100}")
    if isinstance(machine, Machine):
        missing = [part for part in ("rows", "load") if getattr(type(machine), part) is getattr(Machine, part)]
    if missing:
        raise errors.ConfigurationError(f"the machine {name!r}, a {type(machine).__name__}, has no {missing[0]!r}")
    return machine


class _Slot:
    """A machine, and what has become of it."""

    __slots__ = ("applied", "digest", "given_bytes", "machine", "version", "weighed_bytes")

    def __init__(self, machine: StateMachine) -> None:
        self.machine = machine
        self.applied = 0
        """Operations, refused ones among them."""
        self.version = 0
        """The newest of them."""
        self.digest = 0
        """Of what they came to; messages of errors are left out, for they may tell addresses."""
        self.weighed_bytes = 0
        """What the machine took when it was weighed."""
        self.given_bytes = 0
        """What it was given since."""

    def weigh(self, payload_bytes: int, *, is_full: bool) -> None:
        """An operation was applied: see how large the machine is, or may be by now. Amortised O(operation)."""
        machine = self.machine
        try:
            size_bytes = machine.size_bytes
            if size_bytes is None:
                self.given_bytes += ROW_BYTES + payload_bytes
                is_due = is_full or self.given_bytes >= max(GIVEN_BYTES_MIN, self.weighed_bytes // GIVEN_PART)
                if not is_due or not isinstance(machine, Machine):
                    return
                size_bytes = _weight_of(machine.rows())
            self.weighed_bytes, self.given_bytes = max(0, int(size_bytes)), 0
        except Exception:  # noqa: BLE001, S110 - what cannot be saved cannot be weighed: it counts what it was given
            pass

    def tell(self, outcome: bytes) -> None:
        self.digest = crc32(outcome, self.digest)
        self.applied += 1


class Machines:
    """The machines of a replica, by name.

    Args:
        factories: Makes each of them.
        keeps_all: Whether machines that are not among them are kept as they stand in a snapshot, instead of refused,
            and their operations passed over: for tools, which know no machine.

    Raises: `ConfigurationError` for a name that cannot work, or too many.
    """

    def __init__(self, factories: Factories | None = None, *, keeps_all: bool = False) -> None:
        if factories is not None and not isinstance(factories, Mapping):
            raise errors.ConfigurationError(f"machines= are names, and what makes each: not {factories!r}")
        self._factories = dict(factories or {})
        self._keeps_all = keeps_all
        if len(self._factories) > MACHINES_MAX:
            raise errors.ConfigurationError(f"{len(self._factories)} machines, over {MACHINES_MAX}")
        for name in self._factories:
            complaint = complaint_of_machine(name)
            if complaint:
                raise errors.ConfigurationError(complaint)
        self._slots = {name: _Slot(_made(name, factory)) for name, factory in sorted(self._factories.items())}

    def anew(self) -> Machines:
        """Return the same machines, empty."""
        return Machines(self._factories, keeps_all=self._keeps_all)

    @property
    def offer(self) -> str:
        """What a HELLO says of them: names and versions, ``name=version`` with commas between. O(machines)."""
        return ",".join([f"{name}={slot.machine.version}" for name, slot in self._slots.items()])

    def version_of(self, name: str) -> int:
        """Return the newest version of a machine's operations that is known here; 0 if there is no such machine."""
        slot = self._slots.get(name)
        return slot.machine.version if slot is not None else 0

    def applied_version(self, name: str) -> int:
        """Return the newest version that was ever applied; 0 if nothing was."""
        slot = self._slots.get(name)
        return slot.version if slot is not None else 0

    @property
    def size_bytes(self) -> int:
        """What all of them take, about. O(machines)."""
        return sum([slot.weighed_bytes + slot.given_bytes for slot in self._slots.values()])

    def weigh(self) -> None:
        """See how large all of them are: the quota is crossed, as far as anybody knew. O(machines), and their rows."""
        for slot in self._slots.values():
            if slot.applied:
                slot.weigh(0, is_full=True)

    def takes_room(self, command: Operate, *, index: int, revision: int) -> bool:
        """Whether an operation may make its machine larger; one that cannot be told may. Raises `UnsupportedFormat`."""
        slot = self._fit_for(command, index)
        try:
            return slot.machine.takes_room(Operation(command.payload, command.version, index, revision))
        except (MemoryError, RecursionError):
            raise
        except Exception:  # noqa: BLE001 - of an operation that does not exist, say
            return True

    def apply(self, command: Operate, *, index: int, revision: int, is_full: bool = False) -> Operated:
        """Apply an operation. O(what it does).

        Args:
            command: What and with which arguments.
            index: The place in the log of its entry.
            revision: The store's.
            is_full: Whether the quota is crossed: whatever is made smaller now is to be seen.

        Raises:
            UnsupportedFormat: There is no such machine here, or it is of an older version: the member must stop.
            OperationRefused: The operation raised.
            MaybeApplied: It was applied, and its result is too long, or cannot be told.
        """
        slot = self._fit_for(command, index)
        slot.version = max(slot.version, command.version)
        operation = Operation(command.payload, command.version, index, revision)
        try:
            result = _outcome(slot, operation, command.machine)
        finally:
            slot.weigh(len(command.payload), is_full=is_full)
        if len(result) > RESULT_BYTES_MAX:
            text = f"it was applied, but its result has {len(result)} bytes, over {RESULT_BYTES_MAX}"
            raise errors.MaybeApplied(text)
        return Operated(revision, result)

    def query(self, query: MachineQuery) -> bytes:
        """Answer a question. Raises `InvalidRequest`, `OperationRefused`, `RequestTooLarge`."""
        slot = self._slots.get(query.machine)
        if slot is None:
            raise errors.InvalidRequest(f"there is no machine {query.machine!r} here")
        result = _carried_out(lambda: slot.machine.query(query.payload), query.machine)
        if len(result) > RESULT_BYTES_MAX:
            raise errors.RequestTooLarge(f"the result has {len(result)} bytes, over {RESULT_BYTES_MAX}")
        return result

    def _fit_for(self, command: Operate, index: int) -> _Slot:
        slot = self._known(command.machine)
        if command.version > slot.machine.version and not self._keeps_all:
            raise errors.UnsupportedFormat(
                f"entry {index} is an operation of {command.machine!r} at version {command.version}, "
                f"this member's is of version {slot.machine.version}: start it with the newer one"
            )
        return slot

    def _known(self, name: str) -> _Slot:
        slot = self._slots.get(name)
        if slot is None and self._keeps_all:
            slot = self._slots[name] = _Slot(_Kept())
        if slot is None:
            raise errors.UnsupportedFormat(
                f"the cluster has a machine {name!r}, and this member has {sorted(self._slots)}: start it with all"
            )
        return slot

    # --- What members agree on -------------------------------------------------------------------------------------

    def plain(self) -> list[Any]:
        """Return what members compare, of machines that were ever used. O(machines)."""
        return [
            [name, slot.applied, slot.version, slot.digest]
            for name, slot in sorted(self._slots.items())
            if slot.applied
        ]

    def pin(self) -> list[Pinned]:
        """Pin all machines now, for `parts_of`."""
        pinned: list[Pinned] = []
        for row in self.plain():
            slot = self._slots[row[0]]
            pinned.append(([*row, slot.weighed_bytes, slot.given_bytes], _chunks_of(slot.machine)))
        return pinned

    def restorer(self) -> MachinesRestorer:
        """Return what fills these machines, which are empty."""
        return MachinesRestorer(self._begin)

    def _begin(
        self, name: str, applied: int, version: int, digest: int, weighed_bytes: int, given_bytes: int
    ) -> StateMachine:
        slot = self._known(name)
        if version > slot.machine.version and not self._keeps_all:
            raise errors.UnsupportedFormat(
                f"the snapshot has {name!r} at version {version}, this member's is of version {slot.machine.version}"
            )
        slot.applied, slot.version, slot.digest = applied, version, digest
        slot.weighed_bytes, slot.given_bytes = weighed_bytes, given_bytes
        return slot.machine


def _outcome(slot: _Slot, operation: Operation, name: str) -> bytes:
    """Apply an operation, and note what it came to."""
    try:
        result = _carried_out(lambda: slot.machine.apply(operation), name)
    except errors.OperationRefused as error:
        slot.tell(error.error.encode())
        raise
    except errors.MaybeApplied:
        slot.tell(b"")
        raise
    slot.tell(result)
    return result


def _carried_out(work: Callable[[], bytes], name: str) -> bytes:
    """Do what a machine does; whatever it raises is its answer, unless this member alone may have raised it."""
    try:
        result = work()
        return result if type(result) is bytes else bytes(memoryview(result))  # of a number `bytes` would make zeros
    except (MemoryError, RecursionError, KeyboardInterrupt, errors.MaybeApplied):
        raise
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the outcome on every member
        kind = type(error).__name__[:NAME_CHARACTERS_MAX]
        raise errors.OperationRefused(f"{kind}: {errors.told(error)}", machine=name, error=kind) from None


def _chunks_of(machine: StateMachine) -> Iterator[bytes]:
    """Pin a machine; what goes wrong with that is raised for who asks for a chunk: the member itself goes on."""
    try:
        return machine.snapshot()
    except Exception as error:  # noqa: BLE001 - it is raised
        return map(_raise, [error])


def _raise(error: Exception) -> bytes:
    raise error


class _Kept:
    """A machine that nobody knows here: what a snapshot has of it, as it is."""

    version = 1
    size_bytes = None

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def takes_room(self, operation: Operation) -> bool:  # noqa: ARG002  (a `StateMachine` by its shape)
        return False

    def apply(self, operation: Operation) -> bytes:  # noqa: ARG002  (as above)
        return b""

    def query(self, payload: bytes) -> bytes:  # noqa: ARG002  (as above)
        raise errors.InvalidRequest("this machine is kept, and not known")

    def snapshot(self) -> Iterator[bytes]:
        return iter(self._chunks)

    def restore(self, chunk: bytes) -> None:
        self._chunks.append(chunk)


# --- Snapshots -----------------------------------------------------------------------------------------------------


Pinned = tuple[list[Any], Iterator[bytes]]
"""What members compare of a machine, what it was weighed and given since, and its chunks, to be taken once."""


def _saved(name: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield a machine's chunks. Raises `OperationRefused`, by its name: `rows` returned what is not plain, say."""
    try:
        yield from chunks
    except (errors.PyraftkvError, MemoryError, RecursionError):
        raise
    except Exception as error:
        kind = type(error).__name__
        text = f"the machine {name!r} cannot be saved: {kind}: {error}"
        raise errors.OperationRefused(text, machine=name, error=kind) from error


def parts_of(pinned: list[Pinned]) -> Iterator[bytes]:
    """Yield the machines' parts of a snapshot: an empty table is the end.

    1. A machine has a row that grows, with every member that signs up, say. One day it is longer than a part may be.
    2. Were it refused, no snapshot could be written any more: the log grows for ever, and who is behind stays there.
    3. So a chunk of any length is cut in pieces.
    """
    for row, chunks in pinned:
        yield codec.encode_table(row)
        for chunk in _saved(row[0], chunks):
            rest = memoryview(chunk)
            while len(rest) > CHUNK_BYTES_MAX:
                yield _PIECE + rest[:CHUNK_BYTES_MAX]
                rest = rest[CHUNK_BYTES_MAX:]
            yield _WHOLE + rest
        yield _LAST
    yield codec.encode_table([])


def versions_of(offer: str) -> dict[str, int]:
    """Return the machines of a HELLO, and their versions; what cannot be read is left out."""
    pairs = [part.partition("=")[::2] for part in offer.split(",")[:MACHINES_MAX]]
    return {name: int(version) for name, version in pairs if version.isascii() and version.isdecimal()}


class Begin(Protocol):
    """Returns the machine that a part of a snapshot is of."""

    def __call__(
        self, name: str, applied: int, version: int, digest: int, weighed_bytes: int, given_bytes: int
    ) -> StateMachine: ...


class MachinesRestorer:
    """Fills machines with their parts of a snapshot, a chunk at a time."""

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._machine: StateMachine | None = None
        self._pieces: list[memoryview] = []
        self.is_done = False
        """Whether the last part was fed."""

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk. Raises `SnapshotCorruption`, `UnsupportedFormat`."""
        if self._machine is None:
            row = codec.decode_table(chunk)
            self.is_done = not row
            if row:
                self._machine = self._begin(*row)
        elif chunk[:1] == _LAST:
            self._machine = None
        else:
            self._pieces.append(memoryview(chunk)[1:])
            if chunk[:1] == _PIECE:
                return
            pieces, self._pieces = self._pieces, []
            try:
                self._machine.restore(b"".join(pieces))
            except (ValueError, TypeError, KeyError) as error:
                raise errors.SnapshotCorruption(f"a machine cannot read its part: {error!r:.200}") from error
