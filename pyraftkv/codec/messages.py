"""What members say to each other, to and from bytes: Raft's messages, the snapshot's, HELLO and its refusal.

A message is a kind (which travels in the frame's header) and a payload. Kinds are part of the wire format: a layout
never changes, it gets a new kind. The two messages that carry entries are laid out with `struct` and runs, because
they are nearly all of the traffic; the others are flat msgpack arrays of their fields.

An `AppendRequest` names no entry's index: entries follow `prev_index` without a gap, so the first has
``prev_index + 1``. They are grouped in runs of one term and kind (nearly always a single run).
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, Final

from pyraftkv.codec._wire import (
    BLOB,
    BOOLEAN,
    INT_END,
    INTEGER,
    ITEMS_MAX,
    NATURAL,
    TEXT,
    Malformed,
    Schema,
    Shape,
    array_of,
    pack,
    pack_run,
    run_table,
    unpack_flat,
    unpack_nested,
    unpack_run,
)
from pyraftkv.core.messages import (
    AppendRequest,
    AppendResponse,
    CommitNotice,
    ForwardedMembership,
    ForwardedProposals,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    Message,
    ReadIndexRequest,
    ReadIndexResponse,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from pyraftkv.core.types import HOLLOW, NORMAL, Entry, EntryKind, Membership, SnapshotMeta
from pyraftkv.errors import FrameError, HandshakeRejected, UnsupportedFormat
from pyraftkv.protocol import (
    GenesisOffer,
    Hello,
    LeaseAsk,
    LeaseTold,
    Pledge,
    SnapshotAck,
    SnapshotChunk,
    StateHash,
    TransferRequest,
)

PeerMessage = (
    Message | GenesisOffer | SnapshotChunk | SnapshotAck | TransferRequest | StateHash | Pledge | LeaseAsk | LeaseTold
)
"""Everything that travels between members after the HELLO."""

KIND_APPEND_REQUEST: Final = 3
KIND_FORWARDED_PROPOSALS: Final = 10

# --- Membership ----------------------------------------------------------------------------------------------------


def _encode_set(members: Any) -> list[int]:
    return sorted(NATURAL.encode(member) for member in members)


def _decode_set(items: Any) -> frozenset[int]:
    members = [NATURAL.decode(item) for item in array_of(items)]
    if members != sorted(set(members)):
        raise Malformed("a set of members is not in ascending order")
    return frozenset(members)


_MEMBERS = Shape(_encode_set, _decode_set)
_MEMBERSHIP_SCHEMA = Schema(
    Membership,
    voters=_MEMBERS,
    outgoing=_MEMBERS,
    learners=_MEMBERS,
    learners_next=_MEMBERS,
    auto_leave=BOOLEAN,
    witnesses=_MEMBERS,
)
MEMBERSHIP: Final = Shape(_MEMBERSHIP_SCHEMA.encode, lambda items: _MEMBERSHIP_SCHEMA.decode(array_of(items)))
_SNAPSHOT_SCHEMA = Schema(SnapshotMeta, index=NATURAL, term=NATURAL, membership=MEMBERSHIP)
SNAPSHOT_META: Final = Shape(_SNAPSHOT_SCHEMA.encode, lambda items: _SNAPSHOT_SCHEMA.decode(array_of(items)))


def encode_membership(membership: Membership) -> bytes:
    """Encode a membership for the log and for snapshots; equal memberships have equal bytes. O(members)."""
    return pack(_MEMBERSHIP_SCHEMA.encode(membership))


def decode_membership(data: bytes) -> Membership:
    """Decode what `encode_membership` made. Raises `UnsupportedFormat`."""
    try:
        membership: Membership = _MEMBERSHIP_SCHEMA.decode(unpack_nested(data))
    except Malformed as error:
        raise UnsupportedFormat(f"a membership: {error}") from None
    return membership


# --- Small messages ------------------------------------------------------------------------------------------------


def _message(kind: type, **shapes: Shape) -> Schema:
    return Schema(kind, to=NATURAL, sender=NATURAL, term=NATURAL, **shapes)


_SCHEMAS: Final[dict[int, Schema]] = {
    1: _message(VoteRequest, last_index=NATURAL, last_term=NATURAL, pre=BOOLEAN, by_transfer=BOOLEAN),
    2: _message(VoteResponse, pre=BOOLEAN, granted=BOOLEAN),
    4: _message(
        AppendResponse, index=NATURAL, rejected=BOOLEAN, hint_index=NATURAL, hint_term=NATURAL, hollow_index=NATURAL
    ),
    5: _message(Heartbeat, commit=NATURAL, context=NATURAL, floor=NATURAL),
    6: _message(HeartbeatResponse, context=NATURAL, promised_ticks=NATURAL),
    7: _message(InstallSnapshot, snapshot=SNAPSHOT_META),
    8: _message(ReadIndexRequest, context=NATURAL),
    9: _message(ReadIndexResponse, context=NATURAL, index=NATURAL),
    11: _message(TimeoutNow),
    12: Schema(GenesisOffer, to=NATURAL, sender=NATURAL, payload=BLOB),
    13: _message(SnapshotChunk, index=NATURAL, snapshot_term=NATURAL, number=NATURAL, data=BLOB, last=BOOLEAN),
    14: Schema(SnapshotAck, to=NATURAL, sender=NATURAL, index=NATURAL, snapshot_term=NATURAL, next_number=INTEGER),
    15: _message(ForwardedMembership, payload=BLOB, leave=BOOLEAN),
    16: _message(CommitNotice, index=NATURAL, index_term=NATURAL),
    17: Schema(TransferRequest, to=NATURAL, sender=NATURAL, target=NATURAL),
    19: Schema(LeaseAsk, to=NATURAL, sender=NATURAL, context=NATURAL, lease=NATURAL, renew=BOOLEAN),
    20: Schema(LeaseTold, to=NATURAL, sender=NATURAL, context=NATURAL, seconds=INTEGER),
    18: Schema(StateHash, to=NATURAL, sender=NATURAL, index=NATURAL, hash=NATURAL),
    21: _message(Pledge, index=NATURAL),
}
_KINDS: Final = {schema.kind: (kind, schema) for kind, schema in _SCHEMAS.items()}
_NESTED_KINDS: Final = frozenset({7})

# --- Messages with entries -----------------------------------------------------------------------------------------

_APPEND = Struct("<QQQQQQI")
_RUN = Struct("<QB")
_FORWARD = Struct("<QQQ")


def _encode_append(request: AppendRequest) -> bytes:
    """Lay out an `AppendRequest`: header, then (term, kind, run of payloads) for each run of entries. O(bytes)."""
    entries = request.entries
    chunks = [b""]
    run_count = 0
    if entries:
        assert entries[0].index == request.prev_index + 1, "entries must follow prev_index"
        assert entries[-1].index == request.prev_index + len(entries), "entries must have no gap"
        kinds = [entry.kind for entry in entries]
        if entries[0].term == entries[-1].term and kinds.count(kinds[0]) == len(kinds):  # terms never decrease
            runs = [entries]
        else:
            runs = _runs(entries)
        for run in runs:
            payloads = [entry.payload for entry in run]
            chunks += (_RUN.pack(run[0].term, run[0].kind), run_table(payloads), *payloads)
        run_count = len(runs)
    chunks[0] = _APPEND.pack(
        request.to,
        request.sender,
        request.term,
        request.prev_index,
        request.prev_term,
        request.commit,
        run_count,
    )
    return b"".join(chunks)


def _runs(entries: list[Entry]) -> list[list[Entry]]:
    """Group consecutive entries of one term and kind."""
    runs: list[list[Entry]] = []
    for entry in entries:
        if runs and runs[-1][0].term == entry.term and runs[-1][0].kind == entry.kind:
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return runs


def _decode_append(data: bytes) -> AppendRequest:
    """Read what `_encode_append` laid out. O(bytes)."""
    if len(data) < _APPEND.size:
        raise Malformed("cut short")
    to, sender, term, prev_index, prev_term, commit, run_count = _APPEND.unpack_from(data)
    # The highest bit of any of them shows in their union: one comparison checks all six.
    if to | sender | term | prev_index | prev_term | commit >= INT_END:
        raise Malformed("a number is out of range")
    entries: list[Entry] = []
    index, offset = prev_index, _APPEND.size
    for _ in range(run_count):
        if offset + _RUN.size > len(data):
            raise Malformed("cut short")
        entry_term, kind_number = _RUN.unpack_from(data, offset)
        kind = _ENTRY_KINDS.get(kind_number)
        if kind is None or entry_term >= INT_END:
            raise Malformed(f"entries of kind {kind_number} in term {entry_term}")
        payloads, offset = unpack_run(data, offset + _RUN.size)
        for payload in payloads:
            index += 1
            entries.append(Entry(index, entry_term, payload, kind))
    if offset != len(data) or index >= INT_END:
        raise Malformed("bytes after the last entry")
    return AppendRequest(to, sender, term, prev_index, prev_term, entries, commit)


_ENTRY_KINDS: Final = {int(kind): kind for kind in EntryKind if kind is not HOLLOW}
"""Those that travel."""
assert _ENTRY_KINDS[0] is NORMAL


def _encode_forwarded(message: ForwardedProposals) -> bytes:
    return _FORWARD.pack(message.to, message.sender, message.term) + pack_run(message.payloads)


def _decode_forwarded(data: bytes) -> ForwardedProposals:
    if len(data) < _FORWARD.size:
        raise Malformed("cut short")
    to, sender, term = _FORWARD.unpack_from(data)
    if to | sender | term >= INT_END:
        raise Malformed("a number is out of range")
    payloads, end = unpack_run(data, _FORWARD.size)
    if end != len(data):
        raise Malformed("bytes after the last payload")
    return ForwardedProposals(to, sender, term, payloads)


# --- Every message -------------------------------------------------------------------------------------------------


def encode_message(message: PeerMessage) -> tuple[int, bytes]:
    """Return the frame kind and the payload of a message between members. O(bytes)."""
    kind = type(message)
    if kind is AppendRequest:
        return KIND_APPEND_REQUEST, _encode_append(message)  # type: ignore[arg-type]
    if kind is ForwardedProposals:
        return KIND_FORWARDED_PROPOSALS, _encode_forwarded(message)  # type: ignore[arg-type]
    number, schema = _KINDS[kind]
    return number, pack(schema.encode(message))


def _decode_small(kind: int, payload: bytes) -> PeerMessage:
    schema = _SCHEMAS.get(kind)
    if schema is None:
        raise Malformed("an unknown kind of message")
    items = unpack_nested(payload) if kind in _NESTED_KINDS else unpack_flat(payload)
    message: PeerMessage = schema.decode(items)
    return message


_DECODERS: Final[dict[int, Callable[[bytes], PeerMessage]]] = {
    KIND_APPEND_REQUEST: _decode_append,
    KIND_FORWARDED_PROPOSALS: _decode_forwarded,
}


def decode_message(kind: int, payload: bytes) -> PeerMessage:
    """Rebuild a message between members from its frame's kind and payload. O(bytes).

    Raises:
        FrameError: The bytes are no message of that kind, or the kind is unknown.
    """
    try:
        decode = _DECODERS.get(kind)
        return decode(payload) if decode is not None else _decode_small(kind, payload)
    except Malformed as error:
        raise FrameError(f"a message of kind {kind}: {error}") from None


# --- HELLO ---------------------------------------------------------------------------------------------------------

_HELLO_SCHEMA = Schema(
    Hello,
    cluster_id=NATURAL,
    member_id=NATURAL,
    name=TEXT,
    incarnation=NATURAL,
    boot_count=NATURAL,
    address=TEXT,
    version_min=NATURAL,
    version_max=NATURAL,
    feature_level=NATURAL,
    witness=BOOLEAN,
    machines=TEXT,
    start_term=NATURAL,
    start_index=NATURAL,
    life=NATURAL,
)


def encode_hello(hello: Hello) -> bytes:
    """Encode the first frame of a connection."""
    return pack(_HELLO_SCHEMA.encode(hello))


def decode_hello(data: bytes) -> Hello:
    """Decode a HELLO. Fields that a later version added behind ours are ignored, so that it can be answered.

    Raises:
        FrameError: The bytes are no HELLO.
    """
    try:
        hello: Hello = _HELLO_SCHEMA.decode(unpack_flat(data)[: len(_HELLO_SCHEMA.names)])
    except Malformed as error:
        raise FrameError(f"a HELLO: {error}") from None
    return hello


def encode_rejection(rejection: HandshakeRejected) -> bytes:
    """Encode the refusal of a HELLO: a named reason, a sentence for a person, and what is known of an earlier life."""
    return pack((rejection.reason, str(rejection)[:ITEMS_MAX], *rejection.known))


def decode_rejection(data: bytes) -> HandshakeRejected:
    """Return the refusal of a HELLO, as that of the other end. Raises `FrameError`."""
    try:
        reason, message, boot, term, index = unpack_flat(data)[:5]
        known = (NATURAL.decode(boot), NATURAL.decode(term), NATURAL.decode(index))
        return HandshakeRejected(TEXT.decode(message), reason=TEXT.decode(reason), known=known, is_theirs=True)
    except (Malformed, ValueError) as error:
        raise FrameError(f"a refusal: {error}") from None
