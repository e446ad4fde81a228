"""What an entry's payload holds, to and from bytes: envelopes with their commands, sessions, genesis.

A payload is a msgpack array whose first item is a tag: a kind and a version at once. A layout never changes once it
was released; it gets a new tag, and the cluster's feature level says when members may propose it. A member that meets
a tag it does not know cannot go on applying: `decode_logged` raises `UnsupportedFormat` and the node stops.

That is why the encoder is as strict as the decoder: a payload that one member proposes and all refuse would stop them
all. Whatever the decoder refuses, the encoder refuses first, as `InvalidRequest`; and a payload that a client encoded
is decoded once before it is proposed.

Nested transactions stand as arrays within arrays. Their depth has a bound of its own (`TRANSACTION_DEPTH_MAX`), counted
the same on both sides: had the interpreter's recursion limit been the bound, members with deeper call stacks
would refuse what others accept.

Nearly every payload is a batch of puts, long enough to make up for what the tables cost (measured in tests/bench).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

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
    nested,
    optional,
    pack,
    unpack_nested,
)
from pyraftkv.core.membership import Transition
from pyraftkv.errors import InvalidRequest, UnsupportedFormat
from pyraftkv.protocol import (
    AddMember,
    ChangeMembers,
    Decided,
    DemoteMember,
    Envelope,
    Genesis,
    LeaveJoint,
    Logged,
    MemberInfo,
    PromoteMember,
    Recover,
    RefuseChange,
    RegisterSession,
    RemoveMember,
    ReplaceMember,
    StampedChange,
    UpdateMember,
)
from pyraftkv.settings import AlarmKind, ChangeAlarm, ChangeSettings, CompactionMode
from pyraftkv.statemachine import OPERATION_BYTES_MAX, VERSION_MAX, Operate, complaint_of_machine
from pyraftkv.store.commands import (
    CheckpointLeases,
    Compact,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    ExpireLeases,
    GrantLease,
    PutBatch,
    PutKey,
    RangeQuery,
    RevokeLease,
    SortOrder,
    SortTarget,
    Transaction,
)

TRANSACTION_DEPTH_MAX: Final = 8
"""Levels of transactions within transactions, the outermost included."""

CHANGES_MAX: Final = 64
"""Changes of the members in one command."""

PUT_BATCH_MAX: Final = 256
"""Puts in one batch. About a millisecond's work: a member applies it in one go."""

TAG_PUT: Final = 1
TAG_DELETE: Final = 2
TAG_TRANSACTION: Final = 3
TAG_COMPACT: Final = 4
TAG_RANGE: Final = 5
TAG_PUT_BATCH: Final = 6
TAG_GRANT_LEASE: Final = 7
TAG_REVOKE_LEASE: Final = 8
TAG_EXPIRE_LEASES: Final = 9
TAG_CHECKPOINT_LEASES: Final = 23
TAG_REGISTER_SESSION: Final = 16
TAG_GENESIS: Final = 17
TAG_RECOVER: Final = 18
TAG_CHANGE_MEMBERS: Final = 19
TAG_LEAVE_JOINT: Final = 20
TAG_REFUSE_CHANGE: Final = 21
TAG_DECIDED: Final = 22
TAG_CHANGE_SETTINGS: Final = 24
TAG_CHANGE_ALARM: Final = 25
TAG_STAMPED_CHANGE: Final = 28
TAG_OPERATE: Final = 30

STAMP_BYTES_MAX: Final = 16
"""What a stamp adds to a change of the members."""

_ENVELOPE: Final = ("session", "sequence", "acked_below")
"""What stands between an envelope's tag and its command."""

# --- Operations ----------------------------------------------------------------------------------------------------

_FLAGS_END: Final = 8
"""A put's flags: 1 prev_kv, 2 ignore_value, 4 ignore_lease."""


def _put_flags(put: PutKey) -> int:
    return put.prev_kv | put.ignore_value << 1 | put.ignore_lease << 2


class _PutSchema(Schema):
    """A put, whose three booleans share one integer."""

    def encode(self, value: PutKey) -> tuple[Any, ...]:
        return *super().encode(value), _put_flags(value)

    def decode(self, items: Sequence[Any]) -> PutKey:
        flags = NATURAL.decode(items[-1]) if items else _FLAGS_END
        if flags >= _FLAGS_END:
            raise Malformed(f"unknown flags {flags} of a put")
        put: PutKey = super().decode(items[:-1])
        return PutKey(put.key, put.value, put.lease, bool(flags & 1), bool(flags & 2), bool(flags & 4))


class _PutBatchSchema(Schema):
    """A batch of puts: its keys and values are the items themselves."""

    def encode(self, value: PutBatch) -> tuple[Any, ...]:
        return tuple(_pairs(value.items))

    def decode(self, items: Sequence[Any]) -> PutBatch:
        return PutBatch(_pairs(items))


def _pairs(items: Sequence[Any]) -> Sequence[bytes]:
    if not items or len(items) % 2 or len(items) > 2 * PUT_BATCH_MAX:
        raise Malformed(f"{len(items)} keys and values in a batch of puts")
    if set(map(type, items)) != _BYTES_ALONE:
        raise Malformed("a batch of puts holds something else than bytes")
    return items


_BYTES_ALONE: Final = {bytes}


def _encode_operand(value: Any) -> Any:
    return BLOB.encode(value) if isinstance(value, bytes) else INTEGER.encode(value)


_OPERAND = Shape(_encode_operand, _encode_operand)


class _CompareSchema(Schema):
    """A comparison, whose operand is bytes exactly when the target is the value."""

    def encode(self, value: Compare) -> tuple[Any, ...]:
        _check_operand(value)
        return super().encode(value)

    def decode(self, items: Sequence[Any]) -> Compare:
        compare: Compare = super().decode(items)
        _check_operand(compare)
        return compare


def _check_operand(compare: Compare) -> None:
    if isinstance(compare.operand, bytes) is not (compare.target == CompareTarget.VALUE):
        raise Malformed("the operand of a comparison does not fit its target")


RANGE_QUERY: Final = Schema(
    RangeQuery,
    key=BLOB,
    end=BLOB,
    revision=INTEGER,
    limit=INTEGER,
    sort_target=choice(SortTarget),
    sort_order=choice(SortOrder),
    keys_only=BOOLEAN,
    count_only=BOOLEAN,
    min_mod_revision=INTEGER,
    max_mod_revision=INTEGER,
    min_create_revision=INTEGER,
    max_create_revision=INTEGER,
)
_COMPARE = each(
    _CompareSchema(
        Compare, target=choice(CompareTarget), result=choice(CompareResult), key=BLOB, operand=_OPERAND, end=BLOB
    )
)
_FLAT: Final[dict[int, Schema]] = {
    TAG_PUT: _PutSchema(PutKey, key=BLOB, value=BLOB, lease=INTEGER),
    TAG_DELETE: Schema(DeleteRange, key=BLOB, end=BLOB, prev_kv=BOOLEAN),
    TAG_COMPACT: Schema(Compact, revision=INTEGER),
    TAG_RANGE: RANGE_QUERY,
    TAG_PUT_BATCH: _PutBatchSchema(PutBatch),
    TAG_GRANT_LEASE: Schema(GrantLease, id=NATURAL, ttl=INTEGER),
    TAG_REVOKE_LEASE: Schema(RevokeLease, id=NATURAL),
}
_FLAT_TAGS: Final = {schema.kind: tag for tag, schema in _FLAT.items()}


def _encode_operation(operation: Any, *, depth: int) -> tuple[Any, ...]:
    """Return an operation as tag and fields."""
    if type(operation) is Transaction:
        return _encode_transaction(operation, depth=depth)
    kind: type = type(operation)
    tag = _FLAT_TAGS.get(kind)
    if tag is None:
        raise Malformed(f"{kind.__name__} is no operation")
    return tag, *_FLAT[tag].encode(operation)


def _encode_transaction(transaction: Transaction, *, depth: int) -> tuple[Any, ...]:
    if depth > TRANSACTION_DEPTH_MAX:
        raise Malformed(f"transactions nested deeper than {TRANSACTION_DEPTH_MAX}")
    return (
        TAG_TRANSACTION,
        _COMPARE.encode(transaction.compares),
        _encode_branch(transaction.success, depth=depth),
        _encode_branch(transaction.failure, depth=depth),
    )


def _encode_branch(operations: Sequence[Any], *, depth: int) -> list[tuple[Any, ...]]:
    if len(operations) > ITEMS_MAX:
        raise Malformed(f"{len(operations)} operations, over {ITEMS_MAX}")
    for operation in operations:
        if type(operation) in _ALONE:
            raise Malformed(f"{type(operation).__name__} cannot stand in a transaction")
    return [_encode_operation(operation, depth=depth + 1) for operation in operations]


def _decode_operation(items: Sequence[Any], *, depth: int) -> Any:
    """Rebuild an operation from tag and fields."""
    tag = items[0] if items else None
    if tag == TAG_TRANSACTION:
        return _decode_transaction(items[1:], depth=depth)
    schema = _FLAT.get(NATURAL.decode(tag))
    if schema is None:
        raise UnknownTag(f"tag {tag}")
    return schema.decode(items[1:])


def _decode_transaction(items: Sequence[Any], *, depth: int) -> Transaction:
    if depth > TRANSACTION_DEPTH_MAX:
        raise Malformed(f"transactions nested deeper than {TRANSACTION_DEPTH_MAX}")
    if len(items) != 3:
        raise Malformed(f"{len(items)} parts of a transaction")
    compares, success, failure = items
    return Transaction(
        _COMPARE.decode(compares), _decode_branch(success, depth=depth), _decode_branch(failure, depth=depth)
    )


def _decode_branch(items: Any, *, depth: int) -> list[Any]:
    operations = [_decode_operation(array_of(item), depth=depth + 1) for item in array_of(items)]
    if any(type(operation) in _ALONE for operation in operations):
        raise Malformed("something that is no operation stands in a transaction")
    return operations


_ALONE: Final = frozenset({Compact, PutBatch, GrantLease, RevokeLease})
"""Commands that are no operations."""

# --- Members -------------------------------------------------------------------------------------------------------

MEMBER_INFO: Final = Schema(MemberInfo, id=NATURAL, name=TEXT, address=TEXT, incarnation=NATURAL, priority=NATURAL)
_CHANGES: Final[dict[int, Schema]] = {
    1: Schema(AddMember, name=TEXT, address=TEXT, incarnation=NATURAL, learner=BOOLEAN, witness=BOOLEAN),
    2: Schema(PromoteMember, id=NATURAL),
    3: Schema(DemoteMember, id=NATURAL),
    4: Schema(RemoveMember, id=NATURAL),
    5: Schema(UpdateMember, id=NATURAL, name=optional(TEXT), address=optional(TEXT), priority=optional(NATURAL)),
    6: Schema(ReplaceMember, id=NATURAL, name=TEXT, address=TEXT, incarnation=NATURAL),
}
_CHANGE_TAGS: Final = {schema.kind: tag for tag, schema in _CHANGES.items()}


def _encode_changes(changes: Sequence[Any]) -> list[tuple[Any, ...]]:
    _check_change_count(changes)
    return [_encode_change(change) for change in changes]


def _encode_change(change: Any) -> tuple[Any, ...]:
    kind: type = type(change)
    tag = _CHANGE_TAGS.get(kind)
    if tag is None:
        raise Malformed(f"a {kind.__name__} is no change of the members")
    return tag, *_CHANGES[tag].encode(change)


def _decode_changes(items: Any) -> list[Any]:
    changes = [_decode_change(array_of(item)) for item in array_of(items)]
    _check_change_count(changes)
    return changes


def _decode_change(items: Sequence[Any]) -> Any:
    tag = NATURAL.decode(items[0] if items else None)
    if tag not in _CHANGES:
        raise UnknownTag(f"a change of members with tag {tag}")
    return _CHANGES[tag].decode(items[1:])


def _check_change_count(changes: Sequence[Any]) -> None:
    if not 0 < len(changes) <= CHANGES_MAX:
        raise Malformed(f"{len(changes)} changes of members in one command")


_MEMBERS: Final[dict[int, Schema]] = {
    TAG_CHANGE_MEMBERS: Schema(
        ChangeMembers, changes=Shape(_encode_changes, _decode_changes), transition=choice(Transition), force=BOOLEAN
    ),
    TAG_LEAVE_JOINT: Schema(LeaveJoint),
}
_MEMBERS_LEADS: Final = frozenset(pack((tag, *_ENVELOPE, *schema.names))[:2] for tag, schema in _MEMBERS.items())
"""The first bytes of their envelopes: how many items there are, and the tag."""


_RULES: Final[dict[int, Schema]] = {
    TAG_CHANGE_SETTINGS: Schema(
        ChangeSettings,
        quota_bytes=optional(INTEGER),
        lease_ttl_seconds_min=optional(NATURAL),
        compaction_mode=optional(choice(CompactionMode)),
        compaction_seconds=optional(NATURAL),
        compaction_revisions=optional(NATURAL),
        feature_level=optional(NATURAL),
        if_version=optional(NATURAL),
        lease_reads=optional(BOOLEAN),
    ),
    TAG_CHANGE_ALARM: Schema(ChangeAlarm, kind=choice(AlarmKind), member=NATURAL, is_raised=BOOLEAN),
}
# --- Machines ------------------------------------------------------------------------------------------------------


def _machine(name: Any) -> Any:
    complaint = complaint_of_machine(TEXT.encode(name))
    if complaint:
        raise Malformed(complaint)
    return name


def _version(version: Any) -> Any:
    if not 1 <= NATURAL.encode(version) < VERSION_MAX:
        raise Malformed(f"version {version} of an operation")
    return version


def _operation(payload: Any) -> Any:
    if len(BLOB.encode(payload)) > OPERATION_BYTES_MAX:
        raise Malformed(f"an operation of {len(payload)} bytes, over {OPERATION_BYTES_MAX}")
    return payload


_MACHINES: Final[dict[int, Schema]] = {
    TAG_OPERATE: Schema(
        Operate,
        machine=Shape(_machine, _machine),
        version=Shape(_version, _version),
        payload=Shape(_operation, _operation),
    )
}
_TABLES: Final[dict[int, Schema]] = _MEMBERS | _RULES | _MACHINES
"""Commands on tables beside the store."""
_TABLES_TAGS: Final = {schema.kind: tag for tag, schema in _TABLES.items()}


def is_members_command(payload: bytes) -> bool:
    """Whether an encoded `Envelope` holds a command on the members. O(1)."""
    return payload[:2] in _MEMBERS_LEADS


def members_envelope(payload: bytes) -> Envelope | None:
    """Return the envelope of an encoded change of the members, stamped or not; None for anything else. O(bytes)."""
    try:
        logged = decode_logged(payload)
        if isinstance(logged, StampedChange):
            logged = decode_logged(logged.change)
    except UnsupportedFormat:
        return None
    if isinstance(logged, Envelope) and isinstance(logged.command, ChangeMembers | LeaveJoint):
        return logged
    return None


def _change(payload: Any) -> bytes:
    """Return the bytes that a stamp is put on, if they are a change of the members."""
    change: bytes = BLOB.decode(payload)
    if not is_members_command(change):
        raise Malformed("a stamp on what is no change of the members")
    _decode_plain(unpack_nested(change))
    return change


# --- Decided -------------------------------------------------------------------------------------------------------

LEASES_PER_DECISION_MAX: Final = 512
"""Leases in one decision: their entry takes a few milliseconds, and waits for its turn in between."""


def _encode_numbers(numbers: Sequence[int]) -> list[int]:
    if len(numbers) > 2 * LEASES_PER_DECISION_MAX or len(numbers) == 0:
        raise Malformed(f"{len(numbers)} numbers of leases in one decision")
    return [NATURAL.encode(number) for number in numbers]


def _encode_pairs(numbers: Sequence[int]) -> list[int]:
    if len(numbers) % 2:
        raise Malformed("leases and what is left of them do not fit")
    return _encode_numbers(numbers)


_NUMBERS = Shape(_encode_numbers, lambda items: _encode_numbers(array_of(items)))
_PAIRS = Shape(_encode_pairs, lambda items: _encode_pairs(array_of(items)))
_DECIDED: Final[dict[int, Schema]] = {
    TAG_COMPACT: _FLAT[TAG_COMPACT],
    **_RULES,
    TAG_EXPIRE_LEASES: Schema(ExpireLeases, ids=_NUMBERS),
    TAG_CHECKPOINT_LEASES: Schema(CheckpointLeases, items=_PAIRS),
}
"""What a leader may decide by itself."""
_DECIDED_TAGS: Final = {schema.kind: tag for tag, schema in _DECIDED.items()}


def _encode_decided(decided: Decided) -> tuple[Any, ...]:
    kind: type = type(decided.command)
    tag = _DECIDED_TAGS.get(kind)
    if tag is None:
        raise Malformed(f"no leader decides a {kind.__name__} by itself")
    numbers = NATURAL.encode(decided.term), NATURAL.encode(decided.number)
    return TAG_DECIDED, *numbers, tag, *_DECIDED[tag].encode(decided.command)


def _decode_decided(items: Sequence[Any]) -> Decided:
    if len(items) < 3:
        raise Malformed("cut short")
    term, number, tag = map(NATURAL.decode, items[:3])
    if tag not in _DECIDED:
        raise UnknownTag(f"a decision with tag {tag}")
    return Decided(term, number, _DECIDED[tag].decode(items[3:]))


# --- Payloads ------------------------------------------------------------------------------------------------------


def _ids(items: Any) -> list[int]:
    return [NATURAL.decode(item) for item in array_of(items)]


_IDS = Shape(lambda ids: _ids(tuple(ids)), _ids)
_PLAIN: Final[dict[int, Schema]] = {
    TAG_REGISTER_SESSION: Schema(RegisterSession, nonce=NATURAL),
    TAG_GENESIS: Schema(Genesis, cluster_id=NATURAL, members=each(MEMBER_INFO), witnesses=_IDS),
    TAG_RECOVER: Schema(Recover, cluster_id=NATURAL, member=nested(MEMBER_INFO)),
    TAG_REFUSE_CHANGE: Schema(
        RefuseChange,
        session=NATURAL,
        sequence=NATURAL,
        acked_below=NATURAL,
        fingerprint=NATURAL,
        name=TEXT,
        message=TEXT,
    ),
    TAG_STAMPED_CHANGE: Schema(StampedChange, after=NATURAL, change=Shape(_change, _change)),
}
_PLAIN_TAGS: Final = {schema.kind: tag for tag, schema in _PLAIN.items()}
_JUDGED_LEADS: Final = frozenset(pack((tag, *_PLAIN[tag].names))[:2] for tag in (TAG_REFUSE_CHANGE, TAG_STAMPED_CHANGE))


def encode_logged(logged: Logged) -> bytes:
    """Encode an entry's payload. The same record always has the same bytes. O(bytes).

    Raises:
        InvalidRequest: The record cannot be represented; nothing that every member would refuse may be proposed.
    """
    try:
        return pack(_encode_plain(logged))
    except (Malformed, UnicodeEncodeError) as error:
        raise InvalidRequest(f"{type(logged).__name__}: {error}") from None


def _encode_plain(logged: Logged) -> tuple[Any, ...]:
    if type(logged) is Envelope:
        tag, *fields = _encode_command(logged.command)
        numbers = [NATURAL.encode(number) for number in (logged.session, logged.sequence, logged.acked_below)]
        return tag, *numbers, *fields
    if type(logged) is Decided:
        return _encode_decided(logged)
    tag = _PLAIN_TAGS[type(logged)]
    return tag, *_PLAIN[tag].encode(logged)


def _encode_command(command: Any) -> tuple[Any, ...]:
    kind: type = type(command)
    tag = _TABLES_TAGS.get(kind)
    return _encode_operation(command, depth=1) if tag is None else (tag, *_TABLES[tag].encode(command))


def decode_logged(payload: bytes) -> Logged:
    """Decode an entry's payload. O(bytes).

    Raises:
        UnsupportedFormat: The payload has a tag or a layout that this version does not know. For a committed entry
            the member must stop: it cannot know what the others did.
    """
    try:
        return _decode_plain(unpack_nested(payload))
    except UnknownTag as error:
        raise UnsupportedFormat(f"an entry of a newer version: {error}") from None
    except Malformed as error:
        raise UnsupportedFormat(f"an entry's payload: {error}") from None


def decode_judged(payload: bytes) -> RefuseChange | StampedChange | None:
    """Decode what a leader makes of a change of the members; None for anything else, in O(1)."""
    if payload[:2] not in _JUDGED_LEADS:
        return None
    logged = decode_logged(payload)
    assert isinstance(logged, RefuseChange | StampedChange), "the tag says so"
    return logged


def _decode_plain(items: tuple[Any, ...]) -> Logged:
    tag = NATURAL.decode(items[0] if items else None)
    if tag in _PLAIN:
        logged: Logged = _PLAIN[tag].decode(items[1:])
        return logged
    if tag == TAG_DECIDED:
        return _decode_decided(items[1:])
    is_operation = tag == TAG_TRANSACTION or (tag in _FLAT and tag != TAG_RANGE)
    if not is_operation and tag not in _TABLES:
        raise UnknownTag(f"tag {tag}")
    if len(items) < 4:
        raise Malformed("cut short")
    session, sequence, acked_below = map(NATURAL.decode, items[1:4])
    command = _decode_operation((tag, *items[4:]), depth=1) if is_operation else _TABLES[tag].decode(items[4:])
    return Envelope(session, sequence, acked_below, command)
