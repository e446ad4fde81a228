"""What queries of the past and of leases come to, to and from bytes: versions and differences as types and columns.

They are answers alone: no log and no session holds one.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any, Final

from pyraftkv.codec._wire import BLOB, INTEGER, NATURAL, Malformed, pack_kvs, pack_run, unpack_kvs, unpack_run
from pyraftkv.store.values import (
    Change,
    DiffResult,
    Event,
    EventType,
    LeaseAnswer,
    LeaseInfo,
    LeaseList,
    LookResult,
    VersionsResult,
)

TAG_VERSIONS: Final = 1
TAG_DIFF: Final = 2
TAG_LEASE_INFO: Final = 3
TAG_LEASE_LIST: Final = 4

_LEASE = Struct("<Q")

_HAS_BEFORE: Final = 1
_HAS_AFTER: Final = 2
"""Which of its key-values a change has."""

_EVENT_TYPES: Final = (EventType.PUT, EventType.DELETE)


def look_items(result: LookResult | LeaseAnswer) -> tuple[Any, ...]:
    """Return a result as the items of an array, its tag first. Raises `Malformed`."""
    if isinstance(result, VersionsResult):
        types = bytes([event.type for event in result.events])
        kvs = pack_kvs([event.kv for event in result.events])
        return TAG_VERSIONS, NATURAL.encode(result.revision), NATURAL.encode(result.next_revision), types, kvs
    if isinstance(result, LeaseInfo):
        lease, granted_ttl = NATURAL.encode(result.id), NATURAL.encode(result.granted_ttl)
        return TAG_LEASE_INFO, lease, INTEGER.encode(result.ttl), granted_ttl, pack_run(result.keys)
    if isinstance(result, LeaseList):
        return TAG_LEASE_LIST, b"".join([_LEASE.pack(NATURAL.encode(lease)) for lease in result.ids])
    flags = bytes(
        [
            _HAS_BEFORE * (change.before is not None) | _HAS_AFTER * (change.after is not None)
            for change in result.changes
        ]
    )
    before = pack_kvs([change.before for change in result.changes if change.before is not None])
    after = pack_kvs([change.after for change in result.changes if change.after is not None])
    numbers = [NATURAL.encode(number) for number in (result.revision, result.next_revision, result.next_sub)]
    return TAG_DIFF, *numbers, flags, before, after


def look_from(items: Sequence[Any]) -> LookResult | LeaseAnswer:
    """Rebuild a result from the items of an array. Raises `Malformed`."""
    tag = NATURAL.decode(items[0] if items else None)
    if tag == TAG_VERSIONS and len(items) == 5:
        revision, next_revision = [NATURAL.decode(item) for item in items[1:3]]
        return VersionsResult(revision, _events(*[BLOB.decode(item) for item in items[3:]]), next_revision)
    if tag == TAG_DIFF and len(items) == 7:
        revision, next_revision, next_sub = [NATURAL.decode(item) for item in items[1:4]]
        return DiffResult(revision, _changes(*[BLOB.decode(item) for item in items[4:]]), next_revision, next_sub)
    if tag == TAG_LEASE_INFO and len(items) == 5:
        lease, granted_ttl = NATURAL.decode(items[1]), NATURAL.decode(items[3])
        return LeaseInfo(lease, INTEGER.decode(items[2]), granted_ttl, _keys(BLOB.decode(items[4])))
    if tag == TAG_LEASE_LIST and len(items) == 2:
        return LeaseList(_leases(BLOB.decode(items[1])))
    raise Malformed(f"{len(items)} items in an answer of the past with tag {tag}")


def _keys(run: bytes) -> list[bytes]:
    keys, end = unpack_run(run)
    if end != len(run):
        raise Malformed("bytes after the last key")
    return keys


def _leases(column: bytes) -> list[int]:
    if len(column) % _LEASE.size:
        raise Malformed("leases are cut short")
    return [NATURAL.decode(lease) for (lease,) in _LEASE.iter_unpack(column)]


def _events(types: bytes, columns: bytes) -> list[Event]:
    kvs = unpack_kvs(columns)
    if len(types) != len(kvs) or max(types, default=0) >= len(_EVENT_TYPES):
        raise Malformed("versions do not fit their count")
    return [Event(_EVENT_TYPES[kind], kv) for kind, kv in zip(types, kvs, strict=True)]


def _changes(flags: bytes, before: bytes, after: bytes) -> list[Change]:
    befores, afters = unpack_kvs(before), unpack_kvs(after)
    counts = [sum(1 for flag in flags if flag & which) for which in (_HAS_BEFORE, _HAS_AFTER)]
    if counts != [len(befores), len(afters)] or any(not 0 < flag <= _HAS_BEFORE | _HAS_AFTER for flag in flags):
        raise Malformed("changes do not fit their count")
    first, second = iter(befores), iter(afters)
    return [
        Change(next(first) if flag & _HAS_BEFORE else None, next(second) if flag & _HAS_AFTER else None)
        for flag in flags
    ]
