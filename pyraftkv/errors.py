"""Every error that pyraftkv raises. Each answers two questions: did it happen, and may I retry?

.. code-block:: text

    PyraftkvError
    ├── NotApplied                 the request did not take effect and never will
    │   ├── InvalidRequest         the request itself is wrong; a retry fails again (also a ValueError)
    │   │   ├── DuplicateKey       one transaction writes a key twice
    │   │   └── RequestTooLarge    over a named limit
    │   ├── Compacted              that revision is gone; carries `compact_revision`
    │   ├── FutureRevision         that revision does not exist yet; carries `revision`
    │   ├── KeyNotFound            ignore_value/ignore_lease on a key that does not exist
    │   ├── KeyExists              `create` of a key that is there; carries `key`, `mod_revision`
    │   ├── RevisionMismatch       `if_revision=` did not hold; carries `key`, `mod_revision`
    │   ├── LeaseNotFound          the lease is unknown or expired
    │   ├── LeaseExists            a lease with that id is there already
    │   ├── NoSpace                the quota is crossed: delete and compact, or raise it
    │   ├── Corrupt                members disagree, and nobody can say who is right: nothing may be changed
    │   ├── SettingsChanged        `if_version=` did not hold; carries `version`
    │   ├── OperationRefused       an operation on a machine of your own raised; carries `machine`, `error`
    │   ├── MemberNotFound         there is no such member (any more)
    │   ├── MemberExists           another member has that name, address or data directory
    │   ├── QuorumAtRisk           too few members would be left to decide anything; `force=True` does it all the same
    │   └── Unavailable            nobody could serve it now; a retry may succeed
    │       ├── LearnerNotReady    the learner has not caught up, and cannot vote yet
    │       ├── NoLeader           no leader within the deadline, and nothing was sent to one
    │       ├── Overloaded         a named queue is full
    │       ├── DiskFull           this member's disk is full; another member's may not be
    │       ├── Contended          what a transaction had read was changed again and again until its deadline
    │       ├── ReadTimeout        a read was not answered in time (reads change nothing)
    │       ├── Quarantined        this member's state is not what the others' is: ask another one
    │       ├── NoState            a witness was asked, which keeps no keys: another member has them
    │       ├── LeadershipNotTransferred   leadership was to be handed over, and the transfer was given up
    │       └── Closed             the node, client or watch is closed
    ├── MaybeApplied               a write whose outcome is unknown: it may have happened, or may yet
    │   ├── WriteTimeout           the deadline passed after the write was sent
    │   ├── ConnectionLost         the connection broke while the write was under way
    │   ├── SessionExpired         the session that made retries exactly-once was evicted
    │   └── NodeFailed             the node stopped with the write under way
    ├── LockNotAcquired            a lock, a place or a permit was not free in time
    ├── LeaseLost                  a lease that was held is gone: what was held under it may be somebody else's
    ├── MemberRemoved              this node was removed from its cluster, and stops
    ├── CalledInLoop               a blocking call in a thread that runs an event loop (also a RuntimeError)
    ├── WrongLoop                  the call came from another event loop than its own (also a RuntimeError)
    ├── Forked                     the call came from a forked child; what it asks belongs to the parent
    ├── InvalidValue               a stored value is no instance of the class it is read as; carries `key`, `path`
    ├── WatchCancelled             a watch ended; carries `resume_revision` (and `compact_revision`)
    ├── StorageError               the disk, or what stands on it
    │   ├── DataDirLocked          this data directory is open already, here or elsewhere
    │   ├── ForeignDataDir         the directory belongs to another cluster or member
    │   ├── DataDirRolledBack      the directory has less than its member had acknowledged: an older copy, a lying disk
    │   ├── UnsupportedFormat      written by a version that this one cannot read
    │   ├── WalCorruption          damage that is not a torn tail; carries the exact place
    │   ├── SnapshotCorruption     a snapshot file fails its checks
    │   └── StorageFailed          an I/O error on the active log: final, never retried
    └── TransportError             the network, or what came over it
        ├── FrameError             garbage or oversized bytes; the connection is dropped
        ├── HandshakeRejected      the other end refused our HELLO; carries `reason`
        └── ConfigurationError     addresses, names or TLS settings that cannot work (also a ValueError)

A caller of a write needs two `except` clauses, `NotApplied` and `MaybeApplied`; the rest is detail.
Errors carry data as attributes and can cross the wire: `to_wire` and `from_wire`.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "CalledInLoop",
    "Closed",
    "Compacted",
    "ConfigurationError",
    "ConnectionLost",
    "Contended",
    "Corrupt",
    "DataDirLocked",
    "DataDirRolledBack",
    "DiskFull",
    "DuplicateKey",
    "ForeignDataDir",
    "Forked",
    "FrameError",
    "FutureRevision",
    "HandshakeRejected",
    "InvalidRequest",
    "InvalidValue",
    "KeyExists",
    "KeyNotFound",
    "LeadershipNotTransferred",
    "LearnerNotReady",
    "LeaseExists",
    "LeaseLost",
    "LeaseNotFound",
    "LockNotAcquired",
    "MaybeApplied",
    "MemberExists",
    "MemberNotFound",
    "MemberRemoved",
    "NoLeader",
    "NoSpace",
    "NoState",
    "NodeFailed",
    "NotApplied",
    "OperationRefused",
    "Overloaded",
    "PyraftkvError",
    "Quarantined",
    "QuorumAtRisk",
    "ReadTimeout",
    "RequestTooLarge",
    "RevisionMismatch",
    "SessionExpired",
    "SettingsChanged",
    "SnapshotCorruption",
    "StorageError",
    "StorageFailed",
    "TransportError",
    "Unavailable",
    "UnsupportedFormat",
    "WalCorruption",
    "WatchCancelled",
    "WriteTimeout",
    "WrongLoop",
]


class PyraftkvError(Exception):
    """The root of every error that pyraftkv raises on purpose.

    Args:
        message: What happened, for a person.
        data: The attributes that the class documents, by keyword.
    """

    defaults: ClassVar[dict[str, Any]] = {}
    """The attributes an error of this class carries, with their defaults."""

    retryable: ClassVar[bool] = False
    """Whether the same call may succeed later without a change."""

    def __init__(self, message: str = "", **data: Any) -> None:
        super().__init__(message or _first_sentence(type(self)))
        for name, default in self.defaults.items():
            setattr(self, name, data.pop(name, default))
        if data:
            raise TypeError(f"{type(self).__name__} carries no {', '.join(sorted(data))}")


def _first_sentence(cls: type) -> str:
    return (cls.__doc__ or cls.__name__).splitlines()[0].rstrip(".")


class NotApplied(PyraftkvError):
    """The request did not take effect and never will."""


class InvalidRequest(NotApplied, ValueError):
    """The request itself is wrong; a retry fails again."""


class DuplicateKey(InvalidRequest):
    """One transaction writes the same key twice."""


class RequestTooLarge(InvalidRequest):
    """The request is larger than a named limit."""


class Compacted(NotApplied):
    """The revision asked for has been compacted away."""

    defaults: ClassVar[dict[str, Any]] = {"compact_revision": 0}
    compact_revision: int


class FutureRevision(NotApplied):
    """The revision asked for does not exist yet."""

    defaults: ClassVar[dict[str, Any]] = {"revision": 0}
    revision: int


class KeyNotFound(NotApplied):
    """The key does not exist, and the request needs it to."""


class KeyExists(NotApplied):
    """`create` found the key already there."""

    defaults: ClassVar[dict[str, Any]] = {"key": b"", "mod_revision": 0}
    key: bytes
    mod_revision: int


class RevisionMismatch(NotApplied):
    """`if_revision=` did not hold: the key has another mod_revision (0: the key does not exist)."""

    defaults: ClassVar[dict[str, Any]] = {"key": b"", "mod_revision": 0}
    key: bytes
    mod_revision: int


class LeaseNotFound(NotApplied):
    """The lease is unknown, revoked or expired."""


class LeaseExists(NotApplied):
    """There is a lease with that id already."""


class NoSpace(NotApplied):
    """The quota is crossed: what takes room is refused until keys are deleted and compacted, or it is raised."""


class Corrupt(NotApplied):
    """Members of the cluster disagree, and nobody can say who is right: nothing may be changed."""


class SettingsChanged(NotApplied):
    """`if_version=` did not hold: somebody else has changed the settings."""

    defaults: ClassVar[dict[str, Any]] = {"version": 0}
    version: int


class OperationRefused(NotApplied):
    """An operation, or a query, on a state machine raised: what it had not changed before, it has not changed."""

    defaults: ClassVar[dict[str, Any]] = {"machine": "", "error": ""}
    machine: str
    error: str
    """The name of the class of what it raised, whose message is this one's."""


class MemberNotFound(NotApplied):
    """There is no such member, or not any more."""


class MemberExists(NotApplied):
    """Another member has that name, address or data directory."""


class QuorumAtRisk(NotApplied):
    """Too few active voters would be left to decide anything, or to have the keys; `force=True` does it anyway."""


class Unavailable(NotApplied):
    """Nobody could serve the request now; a retry may succeed."""

    retryable = True


class LearnerNotReady(Unavailable):
    """The learner has not caught up with the leader: as a voter it could only hold the others up."""


class NoLeader(Unavailable):
    """No leader was known within the deadline; nothing was sent to one."""


class Overloaded(Unavailable):
    """A named queue is full."""


class Contended(Unavailable):
    """What the transaction had read was changed by others, again and again, until its deadline."""


class DiskFull(Unavailable):
    """This member's disk is full: nothing was proposed. Another member may have room."""


class ReadTimeout(Unavailable):
    """The read was not answered in time."""


class Quarantined(Unavailable):
    """The member's state is not what the others have, and it answers nothing until it is repaired: ask another one."""


class NoState(Unavailable):
    """A witness was asked. It votes and keeps no keys: ask another member."""

    retryable = False


class LeadershipNotTransferred(Unavailable):
    """Leadership was to be handed over, and the transfer was given up."""


class Closed(Unavailable):
    """The node, client or watch is closed."""

    retryable = False


class MaybeApplied(PyraftkvError):
    """The outcome of the write is unknown: it may have happened, or may yet."""


class WriteTimeout(MaybeApplied):
    """The deadline passed after the write was sent."""


class ConnectionLost(MaybeApplied):
    """The connection broke while the write was under way."""


class SessionExpired(MaybeApplied):
    """The session that made retries exactly-once was evicted."""


class NodeFailed(MaybeApplied):
    """The node stopped with the write under way."""


class LeaseLost(PyraftkvError):
    """A lease that was held is gone, or may be: what was held under it may be somebody else's."""

    defaults: ClassVar[dict[str, Any]] = {"lease": 0}
    lease: int


class MemberRemoved(PyraftkvError):
    """This node was removed from its cluster. Its directory belongs to nobody: join with an empty one."""


class LockNotAcquired(PyraftkvError):
    """What was waited for was not free in time: nothing is held, and the block does not run."""


class CalledInLoop(PyraftkvError, RuntimeError):
    """A blocking call would stop the event loop that this thread runs; nothing was asked."""


class WrongLoop(PyraftkvError, RuntimeError):
    """A node or a client is called in the event loop that it was started in, and in no other; nothing was asked."""


class Forked(PyraftkvError, RuntimeError):
    """What was opened before a fork belongs to the parent process; nothing was asked."""


class InvalidValue(PyraftkvError):
    """What is stored at `key` is no instance of the class that it is read as. It stays there."""

    defaults: ClassVar[dict[str, Any]] = {"key": b"", "mod_revision": 0, "path": ""}
    key: bytes
    mod_revision: int
    path: str
    """The field that does not fit; empty if it is the value itself."""


class WatchCancelled(PyraftkvError):
    """The watch ended; start another at `resume_revision`, the first revision it has not delivered."""

    defaults: ClassVar[dict[str, Any]] = {"resume_revision": 0, "compact_revision": 0}
    resume_revision: int
    compact_revision: int


class StorageError(PyraftkvError):
    """The disk, or what stands on it, is not usable."""


class DataDirLocked(StorageError):
    """The data directory is open already: in another process, or in this one; its text says which."""


class ForeignDataDir(StorageError):
    """The data directory belongs to another cluster or member."""


class DataDirRolledBack(StorageError):
    """The data directory has less than its member acknowledged: it is an older copy, or its disk lied about a sync.

    The member must not count any more as if it had kept its word. Another one takes its place: `pyraftkv rebuild`.
    """


class UnsupportedFormat(StorageError):
    """The file was written in a format that this version cannot read."""


class WalCorruption(StorageError):
    """The write-ahead log is damaged in a place that a crash cannot have left so."""

    defaults: ClassVar[dict[str, Any]] = {
        "segment": "",
        "offset": 0,
        "last_good_index": 0,
        "lost_range": (0, 0),
        "reason": "",
    }
    segment: str
    offset: int
    last_good_index: int
    lost_range: tuple[int, int]
    """The indexes `[lo, hi)` whose entries can no longer be read; `hi` is 0 if unknown."""
    reason: str


class SnapshotCorruption(StorageError):
    """A snapshot file fails its checks."""

    defaults: ClassVar[dict[str, Any]] = {"path": "", "offset": 0}
    path: str
    offset: int


class StorageFailed(StorageError):
    """An I/O error on the active log: the node stops, and the file is not touched again."""


class TransportError(PyraftkvError):
    """The network, or what came over it."""


class FrameError(TransportError):
    """Garbage or oversized bytes arrived; the connection is dropped."""


class HandshakeRejected(TransportError):
    """The other end refused our HELLO, or we refused theirs."""

    defaults: ClassVar[dict[str, Any]] = {"reason": "", "peer": "", "is_theirs": False, "known": (0, 0, 0)}
    reason: str
    """One of "wrong-cluster", "wrong-member", "unknown-member", "removed", "joining", "wrong-incarnation",
    "rolled-back", "protocol", "unauthorized"."""
    peer: str
    known: tuple[int, int, int]
    """Of "rolled-back": a boot count, a term and an index of the log that an earlier life was known to have."""
    is_theirs: bool
    """Whether it was the other end that refused."""


class ConfigurationError(TransportError, ValueError):
    """Addresses, names or TLS settings that cannot work."""


def _subclasses(cls: type[PyraftkvError]) -> dict[str, type[PyraftkvError]]:
    table = {cls.__name__: cls}
    for sub in cls.__subclasses__():
        table |= _subclasses(sub)
    return table


_BY_NAME = _subclasses(PyraftkvError)


MESSAGE_CHARACTERS_MAX = 1000
"""What is told of a message to others: they can do without the middle of a longer one."""


def told(error: BaseException) -> str:
    """Return the message of an error in a form that always fits a frame, and is text to every codec.

    1. A message names a key of a mebibyte, four characters for each of its bytes: it is longer than any frame.
    2. The answer cannot be sent. Its client asks again on another connection, and all its other calls with it.
    3. At the deadline, what was refused has become a write whose outcome is unknown.
    """
    try:
        text = str(error)
    except Exception as failure:  # noqa: BLE001 - an exception of a user's own, who can say anything
        text = f"(its message cannot be told: {type(failure).__name__})"
    if len(text) > MESSAGE_CHARACTERS_MAX:
        kept = MESSAGE_CHARACTERS_MAX // 2
        text = f"{text[:kept]} [...] {text[-kept:]}"
    return text.encode("utf-8", "backslashreplace").decode()


def to_wire(error: PyraftkvError) -> tuple[str, str, dict[str, Any]]:
    """Return the class name, message and data of ``error``, ready for the codec."""
    return type(error).__name__, told(error), {name: getattr(error, name) for name in error.defaults}


def from_wire(name: str, message: str, data: dict[str, Any]) -> PyraftkvError:
    """Rebuild an error from `to_wire`; a class or attribute of a newer version falls back to its root."""
    cls = _BY_NAME.get(name)
    if cls is None:
        return PyraftkvError(f"{name}: {message}")
    return cls(message, **{key: value for key, value in data.items() if key in cls.defaults})
