"""What clients ask and members answer, to and from bytes.

A frame's payload is one byte of kind and then the fields. Writes are a fixed header and the envelope's own bytes;
events and key-values stand in columns; everything else is a msgpack array. Only a status and an error hold maps, and
they have kinds of their own, so that nothing else has to be scanned for depth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import Struct
from typing import Any, Final

from pyraftkv.codec._wire import (
    BLOB,
    BOOLEAN,
    INT_END,
    INTEGER,
    MAP_LENGTH_MAX,
    NATURAL,
    SECONDS,
    TEXT,
    Malformed,
    Schema,
    Shape,
    array_of,
    choice,
    map_of,
    nested,
    pack,
    pack_kvs,
    unpack_control,
    unpack_kvs,
    unpack_nested,
)
from pyraftkv.codec.logged import RANGE_QUERY
from pyraftkv.codec.looks import look_from, look_items
from pyraftkv.codec.messages import SNAPSHOT_META
from pyraftkv.codec.results import error_from, error_items, result_from, result_items
from pyraftkv.errors import FrameError, InvalidRequest
from pyraftkv.protocol import (
    Answer,
    Call,
    CancelCall,
    CompactionCall,
    DiffCall,
    HashCall,
    LeaseCall,
    MachineCall,
    MembersCall,
    MembersUpdate,
    OpenSessionCall,
    ReadCall,
    Reply,
    RulesCall,
    SnapshotCall,
    SnapshotPart,
    StatusCall,
    TransferCall,
    VersionsCall,
    WatchCall,
    WatchUpdate,
    WriteCall,
)
from pyraftkv.statemachine import MachineQuery
from pyraftkv.store.commands import DiffQuery, LeaseQuery, LeaseVerb, VersionsQuery
from pyraftkv.store.values import DiffResult, Event, EventType, LeaseInfo, LeaseList, VersionsResult, WatchBatch

# --- Calls ---------------------------------------------------------------------------------------------------------

KIND_WRITE_CALL: Final = 2
_WRITE = Struct("<BQd")


_QUERY = Shape(RANGE_QUERY.encode, lambda items: RANGE_QUERY.decode(array_of(items)))
_VERSIONS = Schema(
    VersionsQuery, key=BLOB, min_revision=INTEGER, max_revision=INTEGER, limit=NATURAL, newest_first=BOOLEAN
)
_DIFF = Schema(
    DiffQuery,
    key=BLOB,
    end=BLOB,
    older=INTEGER,
    newer=INTEGER,
    limit=NATURAL,
    next_revision=NATURAL,
    next_sub=NATURAL,
)
_LEASE_QUERY = Schema(LeaseQuery, verb=choice(LeaseVerb), lease=NATURAL)
_MACHINE_QUERY = Schema(MachineQuery, machine=TEXT, payload=BLOB)
_CALLS: Final[dict[int, Schema]] = {
    1: Schema(OpenSessionCall, id=NATURAL),
    3: Schema(ReadCall, id=NATURAL, query=_QUERY, consistency=TEXT, timeout=SECONDS, at_least=NATURAL),
    4: Schema(
        WatchCall,
        id=NATURAL,
        key=BLOB,
        end=BLOB,
        start_revision=INTEGER,
        prev_kv=BOOLEAN,
        no_put=BOOLEAN,
        no_delete=BOOLEAN,
    ),
    5: Schema(StatusCall, id=NATURAL),
    6: Schema(CancelCall, id=NATURAL),
    7: Schema(MembersCall, id=NATURAL, timeout=SECONDS),
    8: Schema(TransferCall, id=NATURAL, to=TEXT, timeout=SECONDS),
    10: Schema(RulesCall, id=NATURAL, timeout=SECONDS),
    11: Schema(CompactionCall, id=NATURAL, revision=NATURAL, timeout=SECONDS),
    12: Schema(VersionsCall, id=NATURAL, query=nested(_VERSIONS), consistency=TEXT, timeout=SECONDS),
    13: Schema(DiffCall, id=NATURAL, query=nested(_DIFF), consistency=TEXT, timeout=SECONDS),
    14: Schema(HashCall, id=NATURAL, revision=INTEGER),
    15: Schema(LeaseCall, id=NATURAL, query=nested(_LEASE_QUERY), timeout=SECONDS),
    16: Schema(MachineCall, id=NATURAL, query=nested(_MACHINE_QUERY), consistency=TEXT, timeout=SECONDS),
    9: Schema(SnapshotCall, id=NATURAL, snapshot=NATURAL, number=NATURAL, consistency=TEXT, timeout=SECONDS),
}
_CALL_KINDS: Final = {schema.kind: kind for kind, schema in _CALLS.items()}


def encode_call(call: Call) -> bytes:
    """Encode a client's call. O(bytes).

    Raises:
        InvalidRequest: A field is out of range.
    """
    try:
        if type(call) is WriteCall:
            header = _WRITE.pack(KIND_WRITE_CALL, NATURAL.encode(call.id), SECONDS.encode(call.timeout))
            return header + call.payload
        kind = _CALL_KINDS[type(call)]
        return bytes((kind,)) + pack(_CALLS[kind].encode(call))
    except (Malformed, UnicodeEncodeError) as error:
        raise InvalidRequest(f"{type(call).__name__}: {error}") from None


def decode_call(data: bytes) -> Call:
    """Decode a client's call. O(bytes). Raises `FrameError` on anything that is none."""
    try:
        if data[:1] == _WRITE_LEAD:
            return _decode_write(data)
        schema = _CALLS.get(data[0]) if data else None
        if schema is None:
            raise Malformed("an unknown kind")
        call: Call = schema.decode(unpack_nested(memoryview(data)[1:]))
    except Malformed as error:
        raise FrameError(f"a call: {error}") from None
    return call


_WRITE_LEAD: Final = bytes((KIND_WRITE_CALL,))


def _decode_write(data: bytes) -> WriteCall:
    if len(data) < _WRITE.size:
        raise Malformed("cut short")
    _, call_id, timeout_seconds = _WRITE.unpack_from(data)
    if call_id >= INT_END:
        raise Malformed("a number is out of range")
    return WriteCall(call_id, data[_WRITE.size :], SECONDS.decode(timeout_seconds))


# --- Replies -------------------------------------------------------------------------------------------------------

KIND_ANSWER: Final = 1
KIND_ANSWER_MAP: Final = 2
KIND_ANSWER_ERROR: Final = 3
KIND_WATCH_UPDATE: Final = 4
KIND_MEMBERS_UPDATE: Final = 5
KIND_SNAPSHOT_PART: Final = 6
KIND_ANSWER_LOOK: Final = 7

_UPDATE = Struct("<BqIII")
_DELETED: Final = 1
_HAS_PREV: Final = 2
_FLAGS_MAX: Final = 3


def _encode_answer(answer: Answer) -> bytes:
    call_id = NATURAL.encode(answer.id)
    if answer.error is not None:
        return bytes((KIND_ANSWER_ERROR,)) + pack((call_id, *error_items(answer.error)))
    if isinstance(answer.result, dict):
        return bytes((KIND_ANSWER_MAP,)) + pack((call_id, _bounded_map(answer.result)))
    if isinstance(answer.result, VersionsResult | DiffResult | LeaseInfo | LeaseList):
        return bytes((KIND_ANSWER_LOOK,)) + pack((call_id, *look_items(answer.result)))
    return bytes((KIND_ANSWER,)) + pack((call_id, *result_items(answer.result)))


def _decode_answer(body: memoryview) -> Answer:
    items = unpack_nested(body)
    return Answer(NATURAL.decode(items[0] if items else None), result_from(items[1:]))


def _decode_answer_look(body: memoryview) -> Answer:
    items = unpack_nested(body)
    return Answer(NATURAL.decode(items[0] if items else None), look_from(items[1:]))


def _decode_answer_map(body: memoryview) -> Answer:
    items = unpack_control(body)
    if len(items) != 2:
        raise Malformed("not an id and a map")
    return Answer(NATURAL.decode(items[0]), map_of(items[1]))


def _decode_answer_error(body: memoryview) -> Answer:
    items = unpack_control(body)
    return Answer(NATURAL.decode(items[0] if items else None), error=error_from(items[1:]))


def _bounded_map(table: Mapping[str, Any]) -> Mapping[str, Any]:
    if len(table) > MAP_LENGTH_MAX:
        raise Malformed(f"a map of {len(table)} keys, over {MAP_LENGTH_MAX}")
    return table


def _encode_update(update: WatchUpdate) -> bytes:
    """Lay out a batch of events: header, watches, a byte of flags per event, key-values, previous ones. O(bytes)."""
    events = update.batch.events
    flags = bytes((_DELETED * event.type) | (_HAS_PREV * (event.prev_kv is not None)) for event in events)
    kvs = pack_kvs([event.kv for event in events])
    previous = pack_kvs([event.prev_kv for event in events if event.prev_kv is not None])
    ids = [NATURAL.encode(watch_id) for watch_id in update.ids]
    header = _UPDATE.pack(KIND_WATCH_UPDATE, INTEGER.encode(update.batch.revision), len(ids), len(events), len(kvs))
    return b"".join((header, Struct(f"<{len(ids)}Q").pack(*ids), flags, kvs, previous))


def _decode_update(data: bytes) -> WatchUpdate:
    """Read what `_encode_update` laid out. O(bytes)."""
    if len(data) < _UPDATE.size:
        raise Malformed("cut short")
    _, revision, ids_count, count, kvs_bytes = _UPDATE.unpack_from(data)
    ids_end = _UPDATE.size + 8 * ids_count
    if len(data) < ids_end:
        raise Malformed("cut short")
    ids = list(Struct(f"<{ids_count}Q").unpack_from(data, _UPDATE.size))
    flags_end = ids_end + count
    flags = data[ids_end:flags_end]
    kvs = unpack_kvs(data[flags_end : flags_end + kvs_bytes])
    previous = unpack_kvs(data[flags_end + kvs_bytes :])
    if max(ids, default=0) >= INT_END or not len(flags) == len(kvs) == count or max(flags, default=0) > _FLAGS_MAX:
        raise Malformed("events do not fit their count")
    if len(previous) != sum(flag >= _HAS_PREV for flag in flags):
        raise Malformed("previous values do not fit their count")
    following = iter(previous)
    events = [
        Event(_EVENT_TYPES[flag & _DELETED], kv, next(following) if flag & _HAS_PREV else None)
        for flag, kv in zip(flags, kvs, strict=True)
    ]
    return WatchUpdate(ids, WatchBatch(events, revision))


_EVENT_TYPES: Final = (EventType.PUT, EventType.DELETE)


def _encode_members(update: MembersUpdate) -> bytes:
    return bytes((KIND_MEMBERS_UPDATE,)) + pack([TEXT.encode(address) for address in update.addresses])


def _decode_members(body: memoryview) -> MembersUpdate:
    return MembersUpdate([TEXT.decode(address) for address in unpack_nested(body)])


_CHUNKS = Shape(
    lambda chunks: [BLOB.encode(chunk) for chunk in chunks],
    lambda items: [BLOB.decode(item) for item in array_of(items)],
)
_SNAPSHOT_PART = Schema(
    SnapshotPart, id=NATURAL, cluster_id=NATURAL, meta=SNAPSHOT_META, revision=NATURAL, chunks=_CHUNKS, sha256=BLOB
)


def _encode_part(part: SnapshotPart) -> bytes:
    return bytes((KIND_SNAPSHOT_PART,)) + pack(_SNAPSHOT_PART.encode(part))


def _decode_part(body: memoryview) -> SnapshotPart:
    part: SnapshotPart = _SNAPSHOT_PART.decode(unpack_nested(body))
    return part


_ENCODERS: Final[dict[type, Callable[[Any], bytes]]] = {
    Answer: _encode_answer,
    WatchUpdate: _encode_update,
    MembersUpdate: _encode_members,
    SnapshotPart: _encode_part,
}
_DECODERS: Final[dict[int, Callable[[memoryview], Reply]]] = {
    KIND_ANSWER: _decode_answer,
    KIND_ANSWER_LOOK: _decode_answer_look,
    KIND_ANSWER_MAP: _decode_answer_map,
    KIND_ANSWER_ERROR: _decode_answer_error,
    KIND_MEMBERS_UPDATE: _decode_members,
    KIND_SNAPSHOT_PART: _decode_part,
}


def encode_reply(reply: Reply) -> bytes:
    """Encode a member's reply to a client. O(bytes).

    Raises:
        InvalidRequest: It cannot be represented.
    """
    try:
        return _ENCODERS[type(reply)](reply)
    except Malformed as error:
        raise InvalidRequest(f"{type(reply).__name__}: {error}") from None


def decode_reply(data: bytes) -> Reply:
    """Decode a member's reply. O(bytes). Raises `FrameError` on anything that is none."""
    try:
        if data[:1] == _UPDATE_LEAD:
            return _decode_update(data)
        decode = _DECODERS.get(data[0]) if data else None
        if decode is None:
            raise Malformed("an unknown kind")
        return decode(memoryview(data)[1:])
    except Malformed as error:
        raise FrameError(f"a reply: {error}") from None


_UPDATE_LEAD: Final = bytes((KIND_WATCH_UPDATE,))
