"""What commands come to, and the replica's tables, to and from bytes.

A result is a msgpack array that begins with its tag; key-values stand in it as one blob of columns (`pack_kvs`).
Equal results have equal bytes, so that members can compare what they remember.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pyraftkv import errors
from pyraftkv.codec._wire import (
    BLOB,
    BOOLEAN,
    INTEGER,
    ITEMS_MAX,
    NATURAL,
    TEXT,
    Malformed,
    Schema,
    Shape,
    UnknownTag,
    array_of,
    choice,
    each,
    map_of,
    nested,
    pack,
    pack_kvs,
    unpack_control,
    unpack_kvs,
    unpack_nested,
    unpackb,
)
from pyraftkv.codec.logged import MEMBER_INFO
from pyraftkv.codec.messages import MEMBERSHIP
from pyraftkv.errors import InvalidRequest, PyraftkvError, StorageError, UnsupportedFormat
from pyraftkv.protocol import MembersResult
from pyraftkv.settings import Alarm, AlarmKind, CompactionMode, RulesResult, Settings
from pyraftkv.statemachine import Operated
from pyraftkv.store.values import (
    CompactResult,
    DeleteResult,
    KeyValue,
    LeaseGranted,
    LeaseRevoked,
    LoggedResult,
    PutBatchResult,
    PutResult,
    RangeResult,
    TxnResult,
)

TAG_PUT_RESULT: Final = 1
TAG_DELETE_RESULT: Final = 2
TAG_RANGE_RESULT: Final = 3
TAG_TXN_RESULT: Final = 4
TAG_COMPACT_RESULT: Final = 5
TAG_INTEGER: Final = 6
TAG_NOTHING: Final = 7
TAG_PUT_BATCH_RESULT: Final = 8
TAG_ERROR: Final = 9
TAG_MEMBERS_RESULT: Final = 10
TAG_RULES_RESULT: Final = 11
TAG_LEASE_GRANTED: Final = 12
TAG_LEASE_REVOKED: Final = 13
TAG_OPERATED: Final = 14

RESULT_DEPTH_MAX: Final = 8
"""Levels of transaction results within transaction results, as deep as transactions go."""

Outcome = LoggedResult | MembersResult | RulesResult | Operated | int | None | PyraftkvError
"""What a logged payload comes to: a result, a number (a new session's id), nothing, or an error."""

# --- Results -------------------------------------------------------------------------------------------------------


def _ids(items: Sequence[Any]) -> list[int]:
    return [NATURAL.decode(item) for item in items]


_MEMBERS = Schema(
    MembersResult,
    cluster_id=NATURAL,
    members=each(MEMBER_INFO),
    membership=MEMBERSHIP,
    added=Shape(_ids, lambda items: _ids(array_of(items))),
    leader=NATURAL,
)

_SETTINGS = Schema(
    Settings,
    version=NATURAL,
    quota_bytes=INTEGER,
    lease_ttl_seconds_min=NATURAL,
    compaction_mode=choice(CompactionMode),
    compaction_seconds=NATURAL,
    compaction_revisions=NATURAL,
    feature_level=NATURAL,
    lease_reads=BOOLEAN,
)
_ALARM = Schema(Alarm, kind=choice(AlarmKind), member=NATURAL)
_RULES = Schema(RulesResult, settings=nested(_SETTINGS), alarms=each(_ALARM), changed=each(_ALARM))


def result_items(
    result: LoggedResult | MembersResult | RulesResult | Operated | int | None, *, depth: int = 1
) -> tuple[Any, ...]:
    """Return a result as the items of an array, its tag first. Raises `Malformed`."""
    kind = type(result)
    if isinstance(result, PutBatchResult):
        return TAG_PUT_BATCH_RESULT, result.revision, result.count
    if isinstance(result, PutResult):
        kvs = None if result.prev_kv is None else pack_kvs([result.prev_kv])
        return TAG_PUT_RESULT, result.revision, kvs
    if isinstance(result, RangeResult):
        return TAG_RANGE_RESULT, result.revision, result.more, result.count, pack_kvs(result.kvs)
    if isinstance(result, DeleteResult):
        return TAG_DELETE_RESULT, result.revision, result.deleted, pack_kvs(result.prev_kvs)
    if isinstance(result, TxnResult):
        if depth > RESULT_DEPTH_MAX or len(result.responses) > ITEMS_MAX:
            raise Malformed("a transaction's result is too deep or too long")
        responses = [result_items(response, depth=depth + 1) for response in result.responses]
        return TAG_TXN_RESULT, result.revision, result.succeeded, responses
    if isinstance(result, CompactResult):
        return TAG_COMPACT_RESULT, result.revision
    if isinstance(result, LeaseGranted):
        return TAG_LEASE_GRANTED, result.revision, result.id, result.ttl
    if isinstance(result, LeaseRevoked):
        return TAG_LEASE_REVOKED, result.revision
    if isinstance(result, Operated):
        return TAG_OPERATED, NATURAL.encode(result.revision), BLOB.encode(result.result)
    if isinstance(result, MembersResult):
        return TAG_MEMBERS_RESULT, *_MEMBERS.encode(result)
    if isinstance(result, RulesResult):
        return TAG_RULES_RESULT, *_RULES.encode(result)
    if kind is int:
        return TAG_INTEGER, INTEGER.encode(result)
    if result is None:
        return (TAG_NOTHING,)
    raise Malformed(f"{kind.__name__} is no result")


def result_from(
    items: Sequence[Any], *, depth: int = 1
) -> LoggedResult | MembersResult | RulesResult | Operated | int | None:
    """Rebuild a result from the items of an array. Raises `Malformed`."""
    tag = NATURAL.decode(items[0] if items else None)
    arity = _ARITIES.get(tag)
    if arity is None:
        raise UnknownTag(f"a result with tag {tag}")
    if len(items) != arity:
        raise Malformed(f"{len(items)} items in a result with tag {tag}")
    if tag == TAG_NOTHING:
        return None
    if tag == TAG_MEMBERS_RESULT:
        members: MembersResult = _MEMBERS.decode(items[1:])
        return members
    if tag == TAG_RULES_RESULT:
        rules: RulesResult = _RULES.decode(items[1:])
        return rules
    if tag == TAG_INTEGER:
        number: int = INTEGER.decode(items[1])
        return number
    revision = NATURAL.decode(items[1])
    if tag == TAG_PUT_BATCH_RESULT:
        return PutBatchResult(revision, NATURAL.decode(items[2]))
    if tag == TAG_PUT_RESULT:
        return PutResult(revision, _optional_kv(items[2]))
    if tag == TAG_RANGE_RESULT:
        kvs = unpack_kvs(BLOB.decode(items[4]))
        return RangeResult(revision, kvs, BOOLEAN.decode(items[2]), NATURAL.decode(items[3]))
    if tag == TAG_DELETE_RESULT:
        return DeleteResult(revision, NATURAL.decode(items[2]), unpack_kvs(BLOB.decode(items[3])))
    if tag == TAG_COMPACT_RESULT:
        return CompactResult(revision)
    if tag == TAG_LEASE_GRANTED:
        return LeaseGranted(revision, NATURAL.decode(items[2]), NATURAL.decode(items[3]))
    if tag == TAG_LEASE_REVOKED:
        return LeaseRevoked(revision)
    if tag == TAG_OPERATED:
        return Operated(revision, BLOB.decode(items[2]))
    if depth > RESULT_DEPTH_MAX:
        raise Malformed("a transaction's result is too deep")
    return TxnResult(revision, BOOLEAN.decode(items[2]), _responses(items[3], depth=depth + 1))


_ARITIES: Final = {
    TAG_PUT_BATCH_RESULT: 3,
    TAG_PUT_RESULT: 3,
    TAG_DELETE_RESULT: 4,
    TAG_RANGE_RESULT: 5,
    TAG_TXN_RESULT: 4,
    TAG_COMPACT_RESULT: 2,
    TAG_LEASE_GRANTED: 4,
    TAG_LEASE_REVOKED: 2,
    TAG_OPERATED: 3,
    TAG_INTEGER: 2,
    TAG_NOTHING: 1,
    TAG_MEMBERS_RESULT: 6,
    TAG_RULES_RESULT: 4,
}


def _optional_kv(item: Any) -> KeyValue | None:
    if item is None:
        return None
    kvs = unpack_kvs(BLOB.decode(item))
    if len(kvs) != 1:
        raise Malformed(f"{len(kvs)} previous values of one key")
    return kvs[0]


def _responses(items: Any, *, depth: int) -> list[Any]:
    responses = [result_from(array_of(item), depth=depth) for item in array_of(items)]
    if any(type(response) not in _RESPONSES for response in responses):
        raise Malformed("a response that no operation gives")
    return responses


_RESPONSES: Final = frozenset({PutResult, DeleteResult, RangeResult, TxnResult})

# --- Errors --------------------------------------------------------------------------------------------------------

WireError = tuple[str, str, dict[str, Any]]


def error_items(error: WireError) -> list[Any]:
    """Return an error, as `errors.to_wire` gives it, as the items of an array."""
    name, message, data = error
    return [TEXT.encode(name), TEXT.encode(message), data]


def error_from(items: Sequence[Any]) -> WireError:
    """Rebuild an error's name, message and data; lists in the data become tuples. Raises `Malformed`."""
    if len(items) != 3:
        raise Malformed("not the three parts of an error")
    data = {key: _datum(value) for key, value in map_of(items[2]).items()}
    return TEXT.decode(items[0]), TEXT.decode(items[1]), data


def _datum(value: Any) -> Any:
    """Check one attribute of an error: a scalar, or a row of them."""
    if type(value) is list:
        row: list[Any] = value
        if any(type(item) not in _SCALARS for item in row):
            raise Malformed("an error's data is nested")
        return tuple(row)
    if type(value) not in _SCALARS:
        raise Malformed("an error's data is nested")
    return value


_SCALARS: Final = frozenset({int, str, bytes, bool, type(None)})

# --- Outcomes ------------------------------------------------------------------------------------------------------


def encode_result(outcome: Outcome) -> bytes:
    """Encode what a logged payload came to, for a session's window or for a client. O(bytes).

    Raises:
        InvalidRequest: It cannot be represented (nested too deep, or a number out of range).
    """
    try:
        if isinstance(outcome, PyraftkvError):
            return pack((TAG_ERROR, *error_items(errors.to_wire(outcome))))
        return pack(result_items(outcome))
    except Malformed as error:
        raise InvalidRequest(f"a result: {error}") from None


def decode_result(data: bytes) -> Outcome:
    """Decode what `encode_result` made; an error is returned, not raised. O(bytes).

    Raises:
        UnsupportedFormat: The bytes are no result that this version knows.
    """
    try:
        if data[1:2] == _ERROR_TAG:
            items = unpack_control(data)
            name, message, values = error_from(items[1:])
            return errors.from_wire(name, message, values)
        return result_from(unpack_nested(data))
    except Malformed as error:
        raise UnsupportedFormat(f"a result: {error}") from None


_ERROR_TAG: Final = bytes((TAG_ERROR,))

# --- Tables --------------------------------------------------------------------------------------------------------


def encode_table(table: Sequence[Any]) -> bytes:
    """Encode plain data (lists of numbers, strings, bytes, booleans, None and more lists) for a snapshot. O(bytes).

    Maps are left out on purpose: write them as lists of pairs, sorted, so that equal tables have equal bytes.
    """
    return pack(table)


def decode_table(data: bytes) -> list[Any]:
    """Decode what `encode_table` made; every array becomes a list. O(bytes).

    The text comes from a snapshot file whose checksums were verified; its arrays may be as long as the text.

    Raises:
        StorageError: The bytes are no table.
    """
    try:
        table = unpackb(data, max_map_len=0, max_ext_len=0)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"a snapshot's table: {error}") from None
    if type(table) is not list:
        raise StorageError("a snapshot's table is not a list")
    rows: list[Any] = table
    return rows
