"""The codec: every record comes back as it was, and nothing that is no record gets through."""

from __future__ import annotations

import contextlib
import enum
import math
import tracemalloc
import typing
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyraftkv import codec, protocol
from pyraftkv.codec import _wire, logged, messages, results
from pyraftkv.core import messages as core_messages
from pyraftkv.core.membership import Transition
from pyraftkv.core.messages import (
    AppendRequest,
    AppendResponse,
    CommitNotice,
    ForwardedMembership,
    ForwardedProposals,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    ReadIndexRequest,
    ReadIndexResponse,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from pyraftkv.core.types import HOLLOW, MEMBERSHIP, NORMAL, Entry, Membership, SnapshotMeta
from pyraftkv.errors import (
    MESSAGE_CHARACTERS_MAX,
    Compacted,
    FrameError,
    HandshakeRejected,
    InvalidRequest,
    KeyExists,
    NotApplied,
    PyraftkvError,
    StorageError,
    UnsupportedFormat,
    WalCorruption,
    to_wire,
)
from pyraftkv.protocol import (
    AddMember,
    Answer,
    CancelCall,
    ChangeMembers,
    CompactionCall,
    Decided,
    DemoteMember,
    DiffCall,
    Envelope,
    Genesis,
    GenesisOffer,
    HashCall,
    Hello,
    LeaseAsk,
    LeaseCall,
    LeaseTold,
    LeaveJoint,
    MemberInfo,
    MembersCall,
    MembersResult,
    MembersUpdate,
    OpenSessionCall,
    Pledge,
    PromoteMember,
    ReadCall,
    Recover,
    RefuseChange,
    RegisterSession,
    RemoveMember,
    ReplaceMember,
    RulesCall,
    SnapshotAck,
    SnapshotCall,
    SnapshotChunk,
    SnapshotPart,
    StampedChange,
    StateHash,
    StatusCall,
    TransferCall,
    TransferRequest,
    UpdateMember,
    VersionsCall,
    WatchCall,
    WatchUpdate,
    WriteCall,
)
from pyraftkv.settings import Alarm, AlarmKind, ChangeAlarm, ChangeSettings, CompactionMode, RulesResult, Settings
from pyraftkv.store.commands import (
    CheckpointLeases,
    Compact,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    DiffQuery,
    ExpireLeases,
    GrantLease,
    LeaseQuery,
    LeaseVerb,
    PutBatch,
    PutKey,
    RangeQuery,
    RevokeLease,
    SortOrder,
    SortTarget,
    Transaction,
    VersionsQuery,
)
from pyraftkv.store.values import (
    Change,
    CompactResult,
    DeleteResult,
    DiffResult,
    Event,
    EventType,
    KeyValue,
    LeaseGranted,
    LeaseInfo,
    LeaseList,
    LeaseRevoked,
    PutBatchResult,
    PutResult,
    RangeResult,
    TxnResult,
    VersionsResult,
    WatchBatch,
)

# --- Strategies ----------------------------------------------------------------------------------------------------

naturals = st.one_of(st.integers(0, 300), st.integers(0, 2**63 - 1))
integers = st.one_of(st.integers(-2, 300), st.integers(-(2**63), 2**63 - 1))
blobs = st.binary(max_size=40)
texts = st.text(max_size=20)
booleans = st.booleans()
seconds = st.floats(0, 1e9)
id_sets = st.frozensets(naturals, max_size=5)

memberships = st.builds(Membership, id_sets, id_sets, id_sets, id_sets, booleans, id_sets)
snapshots = st.builds(SnapshotMeta, naturals, naturals, memberships)


@st.composite
def append_requests(draw: st.DrawFn) -> AppendRequest:
    """Entries follow `prev_index`, with terms that never decrease and kinds that may change at any place."""
    prev_index = draw(st.integers(0, 2**62))
    term = draw(st.integers(0, 2**40))
    entries: list[Entry] = []
    for index in range(prev_index + 1, prev_index + 1 + draw(st.integers(0, 8))):
        term += draw(st.sampled_from([0, 0, 0, 1, 7]))
        entries.append(Entry(index, term, draw(blobs), draw(st.sampled_from([NORMAL, NORMAL, MEMBERSHIP]))))
    return AppendRequest(
        draw(naturals), draw(naturals), draw(naturals), prev_index, draw(naturals), entries, draw(naturals)
    )


peer_messages = st.one_of(
    append_requests(),
    st.builds(VoteRequest, naturals, naturals, naturals, naturals, naturals, booleans, booleans),
    st.builds(VoteResponse, naturals, naturals, naturals, booleans, booleans),
    st.builds(AppendResponse, naturals, naturals, naturals, naturals, booleans, naturals, naturals),
    st.builds(Heartbeat, naturals, naturals, naturals, naturals, naturals),
    st.builds(HeartbeatResponse, naturals, naturals, naturals, naturals, naturals),
    st.builds(InstallSnapshot, naturals, naturals, naturals, snapshots),
    st.builds(ReadIndexRequest, naturals, naturals, naturals, naturals),
    st.builds(ReadIndexResponse, naturals, naturals, naturals, naturals, naturals),
    st.builds(ForwardedProposals, naturals, naturals, naturals, st.lists(blobs, max_size=5)),
    st.builds(ForwardedMembership, naturals, naturals, naturals, blobs, booleans),
    st.builds(CommitNotice, naturals, naturals, naturals, naturals, naturals),
    st.builds(TimeoutNow, naturals, naturals, naturals),
    st.builds(GenesisOffer, naturals, naturals, blobs),
    st.builds(SnapshotChunk, naturals, naturals, naturals, naturals, naturals, naturals, blobs, booleans),
    st.builds(SnapshotAck, naturals, naturals, naturals, naturals, integers),
    st.builds(TransferRequest, naturals, naturals, naturals),
    st.builds(LeaseAsk, naturals, naturals, naturals, naturals, booleans),
    st.builds(LeaseTold, naturals, naturals, naturals, integers),
    st.builds(StateHash, naturals, naturals, naturals, naturals),
    st.builds(Pledge, naturals, naturals, naturals, naturals),
)

puts = st.builds(PutKey, blobs, blobs, integers, booleans, booleans, booleans)
deletes = st.builds(DeleteRange, blobs, blobs, booleans)
queries = st.builds(
    RangeQuery,
    blobs,
    blobs,
    integers,
    integers,
    st.sampled_from(SortTarget),
    st.sampled_from(SortOrder),
    booleans,
    booleans,
    integers,
    integers,
    integers,
    integers,
)
compares = st.one_of(
    st.builds(Compare, st.just(CompareTarget.VALUE), st.sampled_from(CompareResult), blobs, blobs, blobs),
    st.builds(
        Compare,
        st.sampled_from([target for target in CompareTarget if target is not CompareTarget.VALUE]),
        st.sampled_from(CompareResult),
        blobs,
        integers,
        blobs,
    ),
)


def _transactions(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Transaction]:
    branch = st.lists(inner, max_size=3)
    return st.builds(Transaction, st.lists(compares, max_size=3), branch, branch)


operations = st.one_of(puts, deletes, queries)
transactions = _transactions(st.one_of(operations, _transactions(st.one_of(operations, _transactions(operations)))))
batches = st.lists(st.tuples(blobs, blobs), min_size=1, max_size=5).map(lambda pairs: PutBatch(sum(pairs, ())))
lease_commands = st.builds(GrantLease, naturals, integers) | st.builds(RevokeLease, naturals)
commands = st.one_of(puts, batches, deletes, transactions, st.builds(Compact, integers), lease_commands)
member_infos = st.builds(MemberInfo, naturals, texts, texts, naturals, naturals)
changes = st.one_of(
    st.builds(AddMember, texts, texts, naturals, booleans, booleans),
    *[st.builds(kind, naturals) for kind in (PromoteMember, DemoteMember, RemoveMember)],
    st.builds(UpdateMember, naturals, st.none() | texts, st.none() | texts, st.none() | naturals),
    st.builds(ReplaceMember, naturals, texts, texts, naturals),
)
members_commands = st.one_of(
    st.builds(ChangeMembers, st.lists(changes, min_size=1, max_size=4), st.sampled_from(Transition), booleans),
    st.just(LeaveJoint()),
)
modes = st.sampled_from(CompactionMode)
numbers = st.none() | naturals
rules_commands = st.one_of(
    st.builds(ChangeSettings, st.none() | integers, numbers, st.none() | modes, *[numbers] * 4, st.none() | booleans),
    st.builds(ChangeAlarm, st.sampled_from(AlarmKind), naturals, booleans),
)
number_lists = st.lists(st.tuples(naturals, naturals), min_size=1, max_size=4).map(lambda pairs: list(sum(pairs, ())))
decisions = st.one_of(
    st.builds(Compact, integers),
    st.builds(ExpireLeases, number_lists),
    st.builds(CheckpointLeases, number_lists),
    rules_commands,
)
payloads = st.one_of(
    st.builds(Envelope, naturals, naturals, naturals, commands | members_commands | rules_commands),
    st.builds(RefuseChange, naturals, naturals, naturals, naturals, texts, texts),
    st.builds(Decided, naturals, naturals, decisions),
    st.builds(
        StampedChange,
        naturals,
        st.builds(Envelope, naturals, naturals, naturals, members_commands).map(codec.encode_logged),
    ),
    st.builds(RegisterSession, naturals),
    st.builds(Genesis, naturals, st.lists(member_infos, max_size=4), st.lists(naturals, max_size=2)),
    st.builds(Recover, naturals, member_infos),
)

kvs = st.builds(KeyValue, blobs, blobs, integers, integers, integers, integers)
plain_results = st.one_of(
    st.builds(PutResult, naturals, st.none() | kvs),
    st.builds(DeleteResult, naturals, naturals, st.lists(kvs, max_size=3)),
    st.builds(RangeResult, naturals, st.lists(kvs, max_size=3), booleans, naturals),
)


def _txn_results(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[TxnResult]:
    return st.builds(TxnResult, naturals, booleans, st.lists(inner, max_size=3))


alarms = st.lists(st.builds(Alarm, st.sampled_from(AlarmKind), naturals), max_size=3)
settings = st.builds(Settings, naturals, integers, naturals, modes, naturals, naturals, naturals, booleans)
differences = st.one_of(
    st.builds(Change, kvs, kvs), st.builds(Change, st.none(), kvs), st.builds(Change, kvs, st.none())
)
versions = st.lists(st.builds(Event, st.sampled_from(EventType), kvs), max_size=3)
look_results = st.one_of(
    st.builds(LeaseInfo, naturals, integers, naturals, st.lists(blobs, max_size=3)),
    st.builds(LeaseList, st.lists(naturals, max_size=3)),
    st.builds(VersionsResult, naturals, versions, naturals),
    st.builds(DiffResult, naturals, st.lists(differences, max_size=3), naturals, naturals),
)
wire_results = st.one_of(
    plain_results,
    _txn_results(plain_results | _txn_results(plain_results)),
    st.builds(PutBatchResult, naturals, naturals),
    st.builds(CompactResult, naturals),
    st.builds(LeaseGranted, naturals, naturals, naturals),
    st.builds(LeaseRevoked, naturals),
    st.builds(MembersResult, naturals, st.lists(member_infos, max_size=3), memberships, st.lists(naturals), naturals),
    st.builds(RulesResult, settings, alarms, alarms),
    integers,
    st.none(),
)
error_objects = st.one_of(
    st.builds(Compacted, texts.filter(bool), compact_revision=naturals),
    st.builds(KeyExists, texts.filter(bool), key=blobs, mod_revision=naturals),
    st.builds(WalCorruption, texts.filter(bool), lost_range=st.tuples(naturals, naturals), segment=texts),
)

calls = st.one_of(
    st.builds(OpenSessionCall, naturals),
    st.builds(WriteCall, naturals, blobs, seconds),
    st.builds(ReadCall, naturals, queries, texts, seconds, naturals),
    st.builds(WatchCall, naturals, blobs, blobs, integers, booleans, booleans, booleans),
    st.builds(StatusCall, naturals),
    st.builds(TransferCall, naturals, texts, seconds),
    st.builds(MembersCall, naturals, seconds),
    st.builds(LeaseCall, naturals, st.builds(LeaseQuery, st.sampled_from(LeaseVerb), naturals), seconds),
    st.builds(RulesCall, naturals, seconds),
    st.builds(CompactionCall, naturals, naturals, seconds),
    st.builds(HashCall, naturals, integers),
    st.builds(
        VersionsCall, naturals, st.builds(VersionsQuery, blobs, integers, integers, naturals, booleans), texts, seconds
    ),
    st.builds(
        DiffCall,
        naturals,
        st.builds(DiffQuery, blobs, blobs, integers, integers, naturals, naturals, naturals),
        texts,
        seconds,
    ),
    st.builds(SnapshotCall, naturals, naturals, naturals, texts, seconds),
    st.builds(CancelCall, naturals),
)

events = st.builds(Event, st.sampled_from(EventType), kvs, st.none() | kvs)
status_maps = st.dictionaries(
    texts,
    st.one_of(integers, texts, booleans, st.none(), blobs, st.lists(st.dictionaries(texts, integers, max_size=3))),
    max_size=5,
)
replies = st.one_of(
    st.builds(Answer, naturals, wire_results),
    st.builds(Answer, naturals, look_results),
    st.builds(Answer, naturals, status_maps),
    st.builds(Answer, naturals, st.none(), error_objects.map(to_wire)),
    st.builds(MembersUpdate, st.lists(texts, max_size=4)),
    st.builds(
        WatchUpdate, st.lists(naturals, max_size=3), st.builds(WatchBatch, st.lists(events, max_size=4), integers)
    ),
    st.builds(SnapshotPart, naturals, naturals, snapshots, naturals, st.lists(blobs, max_size=4), blobs),
)
hellos = st.builds(Hello, naturals, naturals, texts, naturals, naturals, texts, naturals, naturals, naturals, booleans)

# --- Round trips ---------------------------------------------------------------------------------------------------


@given(peer_messages)
def test_messages_come_back_as_they_were(message: codec.PeerMessage) -> None:
    """Every message between members survives the wire."""
    kind, payload = codec.encode_message(message)
    assert codec.decode_message(kind, payload) == message


@given(payloads)
@example(Envelope(1, 2, 3, PutKey(b"k", b"v", 4, prev_kv=True, ignore_value=True, ignore_lease=True)))
def test_payloads_come_back_as_they_were(record: protocol.Logged) -> None:
    """Every logged record survives, and has one encoding only."""
    payload = codec.encode_logged(record)
    assert codec.decode_logged(payload) == record
    assert codec.encode_logged(codec.decode_logged(payload)) == payload


@given(st.one_of(wire_results, error_objects))
def test_results_come_back_as_they_were(outcome: Any) -> None:
    """Every result survives, and errors with their data."""
    back = codec.decode_result(codec.encode_result(outcome))
    if isinstance(outcome, PyraftkvError):
        assert isinstance(back, type(outcome))
        assert to_wire(back) == to_wire(outcome)
    else:
        assert back == outcome
        assert type(back) is type(outcome)


def test_an_error_can_be_told_whatever_its_message_is() -> None:
    """It keeps its beginning and its end, and what is no text (a name of a file may hold such) is spelled out."""
    back = codec.decode_result(codec.encode_result(StorageError("a" + "\x01" * 2_000_000 + "\udcff" * 9 + "z")))
    assert isinstance(back, StorageError)
    text = str(back)
    assert text[0] + text[-1] == "az"
    assert "\\udcff" in text
    assert len(text) < 2 * MESSAGE_CHARACTERS_MAX


@given(calls)
def test_calls_come_back_as_they_were(call: protocol.Call) -> None:
    """Every call of a client survives."""
    assert codec.decode_call(codec.encode_call(call)) == call


@given(replies)
def test_replies_come_back_as_they_were(reply: protocol.Reply) -> None:
    """Every reply to a client survives."""
    assert codec.decode_reply(codec.encode_reply(reply)) == reply


@given(hellos)
def test_hellos_come_back_as_they_were(hello: Hello) -> None:
    """A HELLO survives."""
    assert codec.decode_hello(codec.encode_hello(hello)) == hello


@given(memberships)
def test_memberships_come_back_as_they_were(membership: Membership) -> None:
    """A membership survives, whatever order its sets iterate in."""
    assert codec.decode_membership(codec.encode_membership(membership)) == membership


@given(st.recursive(st.none() | booleans | integers | blobs | texts, st.lists, max_leaves=20).map(lambda x: [x]))
def test_tables_come_back_as_they_were(table: list[Any]) -> None:
    """Plain data of a snapshot survives."""
    assert codec.decode_table(codec.encode_table(table)) == table


@given(st.lists(blobs, max_size=6), blobs)
def test_runs_come_back_as_they_were(run: list[bytes], before: bytes) -> None:
    """A run is found again at its offset, with its end."""
    data = before + codec.pack_run(run)
    assert codec.unpack_run(data + b"after", len(before)) == (run, len(data))


def test_rejections_come_back_as_they_were() -> None:
    """A refusal keeps its reason, its sentence and what it is for; whoever reads it was refused by the other end."""
    rejection = HandshakeRejected("not so much", reason="rolled-back", known=(3, 2, 1))
    read = codec.decode_rejection(codec.encode_rejection(rejection))
    assert (str(read), read.reason, read.known, read.is_theirs) == ("not so much", "rolled-back", (3, 2, 1), True)
    with pytest.raises(FrameError):
        codec.decode_rejection(msgpack.packb(["rolled-back", "not so much", 3, 2]))


# --- The tables are complete ---------------------------------------------------------------------------------------


def _schemas() -> list[_wire.Schema]:
    found: list[_wire.Schema] = []
    for module in (messages, logged, results, codec.client):
        for value in vars(module).values():
            if isinstance(value, _wire.Schema):
                found.append(value)
            elif isinstance(value, dict):
                found += [schema for schema in value.values() if isinstance(schema, _wire.Schema)]
    return found


def test_every_field_of_every_record_is_encoded() -> None:
    """A field that is added to a record and not to its table would vanish on the wire: this test says so."""
    by_hand = {
        PutKey: {"prev_kv", "ignore_value", "ignore_lease"},  # one integer
        PutBatch: {"items"},  # the items of the array
    }
    for schema in _schemas():
        names = {field.name for field in fields(schema.kind)}
        assert names == set(schema.names) | by_hand.get(schema.kind, set()), schema.kind


def test_every_member_of_every_union_has_a_layout() -> None:
    """No record of the contract is left out."""
    kinds = {schema.kind for schema in _schemas()}
    by_hand = {
        *(AppendRequest, ForwardedProposals),
        *(Envelope, Decided, Transaction),
        *(WriteCall, Answer, WatchUpdate, MembersUpdate),
    }
    for union in (core_messages.Message, codec.PeerMessage, protocol.Logged, protocol.Call, protocol.Reply):
        assert set(typing.get_args(union)) - by_hand <= kinds


def test_kinds_and_tags_never_change() -> None:
    """The numbers are part of the format: a change here is a change of every cluster's files and wires."""
    kinds = {number: schema.kind.__name__ for number, schema in messages._SCHEMAS.items()}
    assert kinds == {
        1: "VoteRequest",
        2: "VoteResponse",
        4: "AppendResponse",
        5: "Heartbeat",
        6: "HeartbeatResponse",
        7: "InstallSnapshot",
        8: "ReadIndexRequest",
        9: "ReadIndexResponse",
        11: "TimeoutNow",
        12: "GenesisOffer",
        13: "SnapshotChunk",
        14: "SnapshotAck",
        15: "ForwardedMembership",
        16: "CommitNotice",
        17: "TransferRequest",
        19: "LeaseAsk",
        20: "LeaseTold",
        18: "StateHash",
        21: "Pledge",
    }
    changes: list[protocol.MemberChange] = [
        AddMember("a", "b", 2, learner=True),
        PromoteMember(3),
        DemoteMember(4),
        RemoveMember(5),
        UpdateMember(6, priority=7),
        ReplaceMember(8, "c", "d", 9),
    ]
    changes_text = "9601a161a16202c3c2" + "920203" + "920304" + "920405" + "950506c0c007" + "950608a163a16409"
    golden: list[tuple[Any, str]] = [
        (Envelope(1, 2, 3, PutKey(b"k", b"v", 4)), "9801010203c4016bc401760400"),
        (Envelope(1, 2, 3, PutKey(b"k", b"v", 4, ignore_lease=True)), "9801010203c4016bc401760404"),
        (Envelope(1, 2, 3, PutBatch((b"k", b"v", b"l", b""))), "9806010203c4016bc40176c4016cc400"),
        (Envelope(1, 2, 3, DeleteRange(b"k", b"l", prev_kv=True)), "9702010203c4016bc4016cc3"),
        (Envelope(1, 2, 3, Compact(7)), "950401020307"),
        (RegisterSession(9), "921009"),
        (Genesis(5, [MemberInfo(1, "a", "b", 2)], [1]), "9411059195" + "01a161a1620201" + "9101"),
        (Recover(5, MemberInfo(1, "a", "b", 2)), "93120595" + "01a161a1620201"),
        (RefuseChange(1, 2, 3, 4, "E", "m"), "971501020304a145a16d"),
        (Envelope(1, 2, 3, GrantLease(4, -5)), "960701020304fb"),
        (Envelope(1, 2, 3, RevokeLease(4)), "950801020304"),
        (Decided(8, 9, Compact(7)), "951608090407"),
        (StampedChange(7, bytes.fromhex("9414010203")), "931c07c405" + "9414010203"),
        (Decided(8, 9, ExpireLeases([1, 2])), "95160809099201" + "02"),
        (Decided(8, 9, CheckpointLeases([1, 2])), "95160809179201" + "02"),
        (Envelope(1, 2, 3, LeaveJoint()), "9414010203"),
        (Envelope(1, 2, 3, ChangeSettings(-1, compaction_mode=CompactionMode.OFF)), "9c18010203ffc000c0c0c0c0c0"),
        (Envelope(1, 2, 3, ChangeAlarm(AlarmKind.NOSPACE, 4, is_raised=True)), "97190102030104c3"),
        (Envelope(1, 2, 3, ChangeMembers(changes)), "9713010203" + "96" + changes_text + "00c2"),
    ]
    for record, text in golden:
        assert codec.encode_logged(record).hex() == text


def test_a_stamp_is_put_on_changes_of_the_members_alone() -> None:
    """What no member could apply nobody proposes; what is under a stamp is found, and nothing else is taken for it."""
    put = codec.encode_logged(Envelope(1, 2, 3, PutKey(b"k", b"v")))
    change = codec.encode_logged(Envelope(1, 2, 3, LeaveJoint()))
    stamped = codec.encode_logged(StampedChange(7, change))
    assert len(stamped) <= len(change) + codec.STAMP_BYTES_MAX
    for payload in (put, change[:-1], stamped, b""):
        with pytest.raises(InvalidRequest):
            codec.encode_logged(StampedChange(7, payload))
    assert codec.members_envelope(stamped) == codec.members_envelope(change) == Envelope(1, 2, 3, LeaveJoint())
    assert [codec.members_envelope(payload) for payload in (put, b"", stamped[:-1])] == [None, None, None]
    assert codec.decode_judged(stamped) == StampedChange(7, change)
    assert codec.decode_judged(codec.encode_logged(RefuseChange(1, 2, 3, 4, "E", "m"))) is not None
    assert [codec.decode_judged(payload) for payload in (put, change, b"")] == [None, None, None]


def test_an_append_request_has_this_layout() -> None:
    """Header, then per run its term, kind, count, lengths and bytes; no entry names its index."""
    entries = [Entry(11, 4, b"ab"), Entry(12, 4, b"c"), Entry(13, 5, b"", MEMBERSHIP)]
    kind, payload = codec.encode_message(AppendRequest(2, 1, 5, 10, 4, entries, 9))
    header = b"".join(number.to_bytes(8, "little") for number in (2, 1, 5, 10, 4, 9))
    first = b"\x04" + bytes(7) + b"\x00" + b"\x02\0\0\0" + b"\x02\0\0\0" + b"\x01\0\0\0" + b"abc"
    second = b"\x05" + bytes(7) + b"\x01" + b"\x01\0\0\0" + b"\0\0\0\0"
    assert (kind, payload) == (3, header + b"\x02\0\0\0" + first + second)


# --- Garbage -------------------------------------------------------------------------------------------------------

DECODERS: list[tuple[str, Callable[[bytes], Any], type[PyraftkvError]]] = [
    *[(f"message {kind}", lambda data, kind=kind: codec.decode_message(kind, data), FrameError) for kind in range(17)],
    ("logged", codec.decode_logged, UnsupportedFormat),
    ("result", codec.decode_result, UnsupportedFormat),
    ("membership", codec.decode_membership, UnsupportedFormat),
    ("table", codec.decode_table, StorageError),
    ("call", codec.decode_call, FrameError),
    ("reply", codec.decode_reply, FrameError),
    ("hello", codec.decode_hello, FrameError),
    ("rejection", codec.decode_rejection, FrameError),
    ("run", codec.unpack_run, FrameError),
]


def _survives(decode: Callable[[bytes], Any], data: bytes, error: type[PyraftkvError]) -> None:
    with contextlib.suppress(error):
        decode(data)


@given(data=st.binary(max_size=200), lead=st.sampled_from([b"", b"\x98\x01", b"\x93", b"\x92\x09", b"\x04", b"\x02"]))
def test_garbage_raises_the_family_s_error_and_nothing_else(data: bytes, lead: bytes) -> None:
    """Arbitrary bytes decode, or raise the one error that callers expect."""
    for _, decode, error in DECODERS:
        _survives(decode, lead + data, error)


plain_values = st.recursive(
    st.none() | booleans | st.integers(-(2**63), 2**64 - 1) | st.floats() | blobs | texts,
    lambda inner: st.lists(inner, max_size=12) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=30,
)


@given(st.lists(plain_values, max_size=12), st.integers(0, 20))
def test_well_formed_msgpack_of_the_wrong_shape_raises_the_family_s_error(items: list[Any], tag: int) -> None:
    """Types, counts and ranges are checked, not only the bytes."""
    for lead in (b"", bytes((tag,))):
        for array in (items, [tag, *items]):
            data = lead + msgpack.packb(array)
            for _, decode, error in DECODERS:
                _survives(decode, data, error)


@given(st.data())
def test_a_damaged_record_raises_the_family_s_error_or_is_another_record(data: st.DataObject) -> None:
    """Flipped, cut, doubled: whatever happens to a valid text, only the typed error comes out."""
    message = data.draw(peer_messages)
    kind, payload = codec.encode_message(message)
    texts_and_decoders: list[tuple[bytes, Callable[[bytes], Any], type[PyraftkvError]]] = [
        (payload, lambda text: codec.decode_message(kind, text), FrameError),
        (codec.encode_logged(data.draw(payloads)), codec.decode_logged, UnsupportedFormat),
        (codec.encode_result(data.draw(wire_results | error_objects)), codec.decode_result, UnsupportedFormat),
        (codec.encode_call(data.draw(calls)), codec.decode_call, FrameError),
        (codec.encode_reply(data.draw(replies)), codec.decode_reply, FrameError),
        (codec.encode_hello(data.draw(hellos)), codec.decode_hello, FrameError),
    ]
    for text, decode, error in texts_and_decoders:
        place = data.draw(st.integers(0, max(0, len(text) - 1)))
        damaged = bytearray(text)
        action = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if action == "flip":
            damaged[place : place + 1] = bytes((data.draw(st.integers(0, 255)),))
        elif action == "cut":
            del damaged[place:]
        else:
            damaged[place:place] = data.draw(blobs)
        _survives(decode, bytes(damaged), error)


def _deep(levels: int, lead: bytes = b"\x91") -> bytes:
    return lead * levels + b"\xc0"


@pytest.mark.parametrize(
    "bomb",
    [
        _deep(100_000),
        _deep(1000),
        _deep(60_000, b"\xdd\x00\x00\xff\xff"),  # each level claims 65,535 items
        _deep(2000, b"\x81\xa1a"),
        b"\x98\x01" + _deep(50_000),
        b"\xdd\xff\xff\xff\xff",  # claims four billion items
        b"\xc6\xff\xff\xff\xff",  # claims four gigabytes
        b"\x92\x09" + _deep(100_000),
        b"\xc7\xff\x01" + bytes(255),  # an extension type
        b"\xd6\xff\0\0\0\0",  # a timestamp
    ],
)
def test_bombs_do_no_harm(bomb: bytes) -> None:
    """Nesting and claimed lengths cost nothing worth mentioning; they raise the typed error."""
    for name, decode, error in DECODERS:
        for lead in (b"", b"\x01", b"\x02", b"\x05"):
            if name == "table" and not lead:
                _survives(decode, bomb, error)
            elif name != "call" or lead != b"\x02":  # a write's payload is anything
                with pytest.raises(error):
                    decode(lead + bomb)


def test_a_claimed_length_is_compared_before_it_is_reserved() -> None:
    """16 items in a flat text, 1,024 in a nested one: a header alone could reserve far more."""
    for decode, error, count in (
        (codec.decode_hello, FrameError, 17),
        (lambda data: codec.decode_message(5, data), FrameError, 17),
        (codec.decode_logged, UnsupportedFormat, 1025),
        (codec.decode_result, UnsupportedFormat, 1025),
        (lambda data: codec.decode_call(b"\x03" + data), FrameError, 1025),
    ):
        with pytest.raises(error, match="exceeds max_array_len"):
            decode(msgpack.packb([1] * count))


def _decodes(decode: Callable[[bytes], Any], *array: Any, lead: bytes = b"") -> Any:
    return decode(lead + msgpack.packb(array))


def test_the_depth_of_maps_is_bounded() -> None:
    """Eight levels pass, nine do not, whatever they are made of."""
    deep: Any = 1
    for _ in range(7):
        deep = [deep]
    at_the_bound = msgpack.packb([1, {"a": deep[0]}])
    assert codec.decode_reply(b"\x02" + at_the_bound) == Answer(1, {"a": deep[0]})
    with pytest.raises(FrameError, match="nested deeper"):
        codec.decode_reply(b"\x02" + msgpack.packb([1, {"a": deep}]))


@given(plain_values)
def test_the_depth_agrees_with_a_walk_over_the_value(value: Any) -> None:
    """The levels are counted, and what is at most so deep comes back."""

    def depth(item: Any) -> int:
        if isinstance(item, list):
            return 1 + max(map(depth, item), default=0)
        if isinstance(item, dict):
            return 1 + max(map(depth, item.values()), default=0)
        return 0

    data = msgpack.packb(value)
    if depth(value) <= _wire.DEPTH_MAX:
        assert repr(_wire.unpack_deep(data)) == repr(value)  # of which a NaN is like another
    else:
        with pytest.raises(_wire.Malformed, match="nested deeper"):
            _wire.unpack_deep(data)


def test_nothing_is_reserved_for_claims_that_are_not_honest() -> None:
    """1. Each of a thousand headers claims as many items as the text has bytes, all of them within one another.

    2. Whoever reserves what they claim reserves gigabytes for a text of a few kilobytes.
    """
    for bomb in (
        (b"\xdd" + (5_000).to_bytes(4, "big")) * 1_000,
        (b"\xdf" + (3_000).to_bytes(4, "big") + b"\xa1a") * 1_000,
    ):
        tracemalloc.start()
        try:
            with pytest.raises(_wire.Malformed, match="incomplete"):
                _wire.unpack_deep(bomb)
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()


def test_a_text_that_is_none_is_refused() -> None:
    """Cut short, followed by more, of an extension type, or deeper than the unpacker goes."""
    for data, why in (
        (b"", "incomplete"),
        (b"\x92\x01", "incomplete"),
        (b"\x81\xa1a", "incomplete"),
        (b"\x01\x01", "extra data"),
        (b"\xc7\x00\x05", "extension"),
        (b"\x91\xd4\x05\x01", "max_ext_len"),
        (b"\x91" * 2_000 + b"\x01", "not msgpack"),
    ):
        with pytest.raises(_wire.Malformed, match=why):
            _wire.unpack_deep(data)


def test_control_data_is_bounded_in_bytes() -> None:
    """A status or an error of more than 256 KiB is refused before it is looked at."""
    with pytest.raises(FrameError, match="control data"):
        codec.decode_reply(b"\x02" + msgpack.packb([1, {"a": bytes(_wire.CONTROL_BYTES_MAX)}]))


def test_a_key_that_comes_twice_is_refused() -> None:
    """Two readers could disagree about which value counts."""
    with pytest.raises(FrameError, match="twice"):
        codec.decode_reply(b"\x02\x92\x01\x82\xa1a\x01\xa1a\x02")


def test_keys_are_strings() -> None:
    """A map with other keys than strings is no map of ours."""
    with pytest.raises(FrameError):
        codec.decode_reply(b"\x02\x92\x01\x81\xc4\x01a\x01")


# --- Exact types and ranges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("items", [[], [b"k"], [b"k", b"v", b"l"], [b"k", "v"], [b"k", None], [b"k", [b"v"]]])
def test_a_batch_of_puts_has_a_value_for_every_key(items: list[Any]) -> None:
    """Bytes alone, in pairs, and one pair at least; the encoder refuses the same."""
    _decodes(codec.decode_logged, 6, 1, 2, 3, b"k", b"v")
    with pytest.raises(UnsupportedFormat):
        _decodes(codec.decode_logged, 6, 1, 2, 3, *items)
    with pytest.raises(InvalidRequest):
        codec.encode_logged(Envelope(1, 2, 3, PutBatch(items)))


def test_a_batch_of_puts_is_bounded() -> None:
    """A member applies it in one go."""
    full = Envelope(1, 2, 3, PutBatch((b"k", b"v") * codec.PUT_BATCH_MAX))
    assert codec.decode_logged(codec.encode_logged(full)) == full
    items = (b"k", b"v") * (codec.PUT_BATCH_MAX + 1)
    with pytest.raises(UnsupportedFormat):
        _decodes(codec.decode_logged, 6, 1, 2, 3, *items)
    with pytest.raises(InvalidRequest):
        codec.encode_logged(Envelope(1, 2, 3, PutBatch(items)))


PUT = (1, 1, 2, 3, b"k", b"v", 4, 0)


@pytest.mark.parametrize("place", [1, 2, 3])
@pytest.mark.parametrize("wrong", [-1, 2**63, True, 1.0, None, b"1", "1", [1], {}])
def test_a_put_has_naturals_where_naturals_belong(place: int, wrong: Any) -> None:
    """The unrolled path checks what the tables check."""
    _decodes(codec.decode_logged, *PUT)
    with pytest.raises(UnsupportedFormat):
        _decodes(codec.decode_logged, *PUT[:place], wrong, *PUT[place + 1 :])


@pytest.mark.parametrize("place", [4, 5])
@pytest.mark.parametrize("wrong", [1, "k", None, [b"k"]])
def test_a_put_has_bytes_where_bytes_belong(place: int, wrong: Any) -> None:
    """A string is no key."""
    with pytest.raises(UnsupportedFormat):
        _decodes(codec.decode_logged, *PUT[:place], wrong, *PUT[place + 1 :])


@pytest.mark.parametrize("wrong", [2**63, False, None, b""])
def test_a_put_s_lease_is_an_integer_of_64_bits(wrong: Any) -> None:
    """Negative ones are etcd's to judge; the range is ours."""
    assert _decodes(codec.decode_logged, *PUT[:6], -1, 0).command.lease == -1
    with pytest.raises(UnsupportedFormat):
        _decodes(codec.decode_logged, *PUT[:6], wrong, 0)


@pytest.mark.parametrize("wrong", [8, -1, True, None, 2**63])
def test_unknown_flags_of_a_put_are_refused(wrong: Any) -> None:
    """A flag of a newer version changes what the put does: it must not be ignored."""
    with pytest.raises(UnsupportedFormat):
        _decodes(codec.decode_logged, *PUT[:7], wrong)
    with pytest.raises(UnsupportedFormat):
        _decodes(codec.decode_logged, 3, 1, 2, 3, [], [[1, b"k", b"v", 0, wrong]], [])


def test_an_unknown_tag_says_that_the_version_is_newer() -> None:
    """The member that meets it must stop, and the message says why."""
    for items in ([99, 1], [5, 1, 2, 3, b""], [3, 1, 2, 3, [], [[88, b"k"]], []]):
        with pytest.raises(UnsupportedFormat, match="newer version"):
            _decodes(codec.decode_logged, *items)
    with pytest.raises(UnsupportedFormat):
        codec.decode_logged(b"")


def test_an_envelope_that_is_cut_short_is_refused() -> None:
    """Session, sequence and acked_below must all be there."""
    for items in ([4], [4, 1], [4, 1, 2], [4, 1, 2, 3], [4, 1, 2, 3, 4, 5]):
        with pytest.raises(UnsupportedFormat):
            _decodes(codec.decode_logged, *items)


@pytest.mark.parametrize(("command", "items"), [(Compact(1), [4, 1]), (PutBatch((b"k", b"v")), [6, b"k", b"v"])])
def test_what_stands_alone_cannot_stand_in_a_transaction(command: Any, items: list[Any]) -> None:
    """Neither way round."""
    with pytest.raises(InvalidRequest):
        codec.encode_logged(Envelope(1, 1, 1, Transaction([], [command], [])))
    with pytest.raises(UnsupportedFormat):
        _decodes(codec.decode_logged, 3, 1, 1, 1, [], [], [items])


def test_a_comparison_s_operand_fits_its_target() -> None:
    """Bytes for the value, an integer for everything else, on both sides."""
    for target, operand in ((CompareTarget.VALUE, 1), (CompareTarget.MOD, b"1")):
        with pytest.raises(InvalidRequest):
            codec.encode_logged(
                Envelope(1, 1, 1, Transaction([Compare(target, CompareResult.EQUAL, b"k", operand)], [], []))
            )
        with pytest.raises(UnsupportedFormat):
            _decodes(codec.decode_logged, 3, 1, 1, 1, [[int(target), 0, b"k", operand, b""]], [], [])


def _nested(levels: int) -> Transaction:
    transaction = Transaction([], [PutKey(b"k", b"v")], [])
    for _ in range(levels - 1):
        transaction = Transaction([], [transaction], [])
    return transaction


def test_the_depth_of_transactions_is_bounded_the_same_on_both_sides() -> None:
    """What a member can propose every member can apply: no payload passes the encoder and fails the decoder."""
    deepest = Envelope(1, 1, 1, _nested(codec.TRANSACTION_DEPTH_MAX))
    assert codec.decode_logged(codec.encode_logged(deepest)) == deepest
    with pytest.raises(InvalidRequest, match="deeper"):
        codec.encode_logged(Envelope(1, 1, 1, _nested(codec.TRANSACTION_DEPTH_MAX + 1)))
    operation: Any = [1, b"k", b"v", 0, 0]
    for _ in range(codec.TRANSACTION_DEPTH_MAX + 1):
        operation = [3, [], [operation], []]
    with pytest.raises(UnsupportedFormat, match="deeper"):
        _decodes(codec.decode_logged, 3, 1, 1, 1, *operation[1:])


def test_the_depth_of_results_is_bounded_the_same_on_both_sides() -> None:
    """As deep as transactions go, and no deeper."""
    result: Any = TxnResult(1, succeeded=True)
    for _ in range(results.RESULT_DEPTH_MAX - 1):
        result = TxnResult(1, succeeded=True, responses=[result])
    assert codec.decode_result(codec.encode_result(result)) == result
    with pytest.raises(InvalidRequest):
        codec.encode_result(TxnResult(1, succeeded=True, responses=[result]))
    items: Any = [4, 1, True, []]
    for _ in range(results.RESULT_DEPTH_MAX):
        items = [4, 1, True, [items]]
    with pytest.raises(UnsupportedFormat, match="deep"):
        _decodes(codec.decode_result, *items)


@pytest.mark.parametrize(
    "command",
    [
        PutKey(b"k", b"v", 2**63),
        PutKey("k", b"v"),  # type: ignore[arg-type]
        PutKey(b"k", "v"),  # type: ignore[arg-type]
        PutKey(b"k", b"v", True),
        DeleteRange("k"),  # type: ignore[arg-type]
        Compact(2**63),
        Compact(1.5),  # type: ignore[arg-type]
        Transaction([], [DeleteRange(b"k")] * 1025, []),
        Transaction([Compare(CompareTarget.MOD, CompareResult.EQUAL, b"k", 1)] * 1025, [], []),
        Transaction([], [RangeQuery(b"k", revision=-(2**63) - 1)], []),
        Transaction([], [Event(EventType.PUT, KeyValue(b"", b"", 1, 1, 1))], []),  # type: ignore[list-item]
        Transaction([Compare(7, CompareResult.EQUAL, b"k", 1)], [], []),  # type: ignore[arg-type]
        ChangeMembers([PromoteMember(1)], 7),  # type: ignore[arg-type]
        ChangeMembers([PromoteMember(1)], "joint"),  # type: ignore[arg-type]
        ChangeMembers([PutKey(b"k", b"v")]),  # type: ignore[list-item]
        ChangeMembers([UpdateMember(1, name="\ud800")]),
    ],
)
def test_what_every_member_would_refuse_is_not_encoded(command: Any) -> None:
    """Proposing it would stop the whole cluster; the caller gets `InvalidRequest` instead."""
    with pytest.raises(InvalidRequest):
        codec.encode_logged(Envelope(1, 1, 1, command))


@pytest.mark.parametrize("numbers", [(-1, 1, 1), (1, 2**63, 1), (1, 1, -5)])
def test_sessions_and_sequences_are_naturals(numbers: tuple[int, int, int]) -> None:
    """For puts and for all other commands."""
    for command in (PutKey(b"k", b"v"), PutBatch((b"k", b"v")), DeleteRange(b"k")):
        with pytest.raises(InvalidRequest):
            codec.encode_logged(Envelope(*numbers, command))


def test_a_full_transaction_passes() -> None:
    """1,024 operations are the bound, and are within it."""
    full = Envelope(1, 1, 1, Transaction([], [DeleteRange(b"k")] * 1024, []))
    assert codec.decode_logged(codec.encode_logged(full)) == full


@pytest.mark.parametrize("timeout", [math.nan, math.inf, -1.0])
def test_a_wait_is_a_finite_number_of_seconds(timeout: float) -> None:
    """NaN compares with nothing, so it must not get in."""
    with pytest.raises(InvalidRequest):
        codec.encode_call(WriteCall(1, b"", timeout))
    with pytest.raises(FrameError):
        _decodes(codec.decode_call, 1, _wire_query(), "lease", timeout, 0, lead=b"\x03")


def _wire_query() -> list[Any]:
    return [b"", b"", 0, 0, 0, 0, False, False, 0, 0, 0, 0]


def test_choices_are_checked() -> None:
    """A number that no enumeration has is refused."""
    query = _wire_query()
    query[4] = 17
    with pytest.raises(FrameError, match="17"):
        _decodes(codec.decode_call, 1, query, "lease", 1.0, 0, lead=b"\x03")


def test_a_whole_number_of_seconds_is_a_float_on_the_wire() -> None:
    """`timeout=5` is as good as `timeout=5.0`."""
    call = ReadCall(1, RangeQuery(b"k"), "local", 5)
    assert codec.decode_call(codec.encode_call(call)) == call


@pytest.mark.parametrize("place", range(6))
def test_numbers_of_an_append_request_fit_in_63_bits(place: int) -> None:
    """Each of them is checked."""
    _, payload = codec.encode_message(AppendRequest(1, 2, 3, 4, 5, [], 6))
    damaged = bytearray(payload)
    damaged[8 * place + 7] = 0x80
    with pytest.raises(FrameError, match="range"):
        codec.decode_message(3, bytes(damaged))


@pytest.mark.parametrize("place", range(3))
def test_numbers_of_forwarded_proposals_fit_in_63_bits(place: int) -> None:
    """Each of them is checked."""
    _, payload = codec.encode_message(ForwardedProposals(1, 2, 3, [b"a"]))
    damaged = bytearray(payload)
    damaged[8 * place + 7] = 0x80
    with pytest.raises(FrameError, match="range"):
        codec.decode_message(10, bytes(damaged))


def test_bytes_behind_the_last_entry_are_refused() -> None:
    """A length that does not add up means that something else is wrong too."""
    for message in (AppendRequest(1, 2, 3, 4, 5, [Entry(5, 5, b"a")], 6), ForwardedProposals(1, 2, 3, [b"a"])):
        kind, payload = codec.encode_message(message)
        with pytest.raises(FrameError, match="after the last"):
            codec.decode_message(kind, payload + b"x")


def test_entries_follow_prev_index_without_a_gap() -> None:
    """No index travels, so a gap would renumber entries silently: the encoder asserts."""
    for indexes in ([6, 7], [5, 7], [4, 5]):
        with pytest.raises(AssertionError):
            codec.encode_message(AppendRequest(1, 2, 3, 4, 5, [Entry(i, 5, b"") for i in indexes], 6))


def test_kinds_of_entries_are_checked() -> None:
    """An entry of a kind that does not exist is refused."""
    _, payload = codec.encode_message(AppendRequest(1, 2, 3, 4, 5, [Entry(5, 5, b"a")], 6))
    damaged = bytearray(payload)
    damaged[60] = 9
    with pytest.raises(FrameError, match="kind 9"):
        codec.decode_message(3, bytes(damaged))


def test_an_entry_without_its_payload_does_not_travel() -> None:
    """Whoever appended it would believe that there is nothing in it."""
    _, payload = codec.encode_message(AppendRequest(1, 2, 3, 4, 5, [Entry(5, 5, b"", HOLLOW)], 6))
    with pytest.raises(FrameError, match="kind 2"):
        codec.decode_message(3, payload)


def test_sets_of_members_have_one_encoding() -> None:
    """Ascending and without doubles, so that equal memberships have equal bytes."""
    assert codec.encode_membership(Membership(frozenset({3, 1, 2}))).hex() == "9693010203909090c290"
    for voters in ([2, 1], [1, 1]):
        with pytest.raises(UnsupportedFormat, match="ascending"):
            _decodes(codec.decode_membership, voters, [], [], [], False, [])


def test_a_hello_of_a_newer_version_can_be_read() -> None:
    """Fields behind ours are ignored, so that we can say "protocol" rather than hang up."""
    hello = Hello(1, 2, "a", 3, 4, "b")
    array = msgpack.unpackb(codec.encode_hello(hello))
    assert codec.decode_hello(msgpack.packb([*array, "more", 7])) == hello
    with pytest.raises(FrameError):
        codec.decode_hello(msgpack.packb(array[:-1]))


def test_events_must_fit_their_count() -> None:
    """Flags, key-values and previous key-values say the same, or the batch is refused."""
    kv = KeyValue(b"k", b"v", 1, 2, 3)
    data = codec.encode_reply(WatchUpdate([1, 2], WatchBatch([Event(EventType.PUT, kv, kv)], 2)))
    flags_at = 21 + 2 * 8
    assert data[flags_at] == 2
    for flag in (0, 4, 255):
        with pytest.raises(FrameError):
            codec.decode_reply(data[:flags_at] + bytes((flag,)) + data[flags_at + 1 :])


def test_the_watches_of_an_update_are_all_there() -> None:
    """A list of watches that is cut short, or names one by no natural, is refused."""
    data = codec.encode_reply(WatchUpdate([1, 2], WatchBatch([], 2)))
    for cut in range(21, 21 + 2 * 8):
        with pytest.raises(FrameError):
            codec.decode_reply(data[:cut])
    with pytest.raises(FrameError):
        codec.decode_reply(data[:28] + b"\xff" + data[29:])


@pytest.mark.parametrize(
    "items",
    [
        [1, 1, b""],
        [1, 1, _wire.pack_kvs([])],
        [1, -1, None],
        [4, 1, True, [[5, 1]]],
        [4, 1, True, [[7]]],
        [4, 1, True, [[6, 1]]],
        [3, 1, 1, 1, _wire.pack_kvs([])],
        [3, 1, True, 1, _wire.pack_kvs([]) + b"x"],
        [3, 1, True, 1, (5).to_bytes(4, "little")],
        [3, 1, True, 1, (1).to_bytes(4, "little") + bytes(32) + codec.pack_run([b"a", b"b", b"c"])],
        [3, 1, True, 1, (1).to_bytes(4, "little") + bytes(32) + codec.pack_run([b"a"])],
        [2, 1, 1],
        [9, "Compacted", "", {"compact_revision": [[1]]}],
        [9, "Compacted", "", {"compact_revision": {}}],
        [9, "Compacted", "", 1],
        [9, "Compacted", ""],
        [8],
        [],
    ],
)
def test_results_of_the_wrong_shape_are_refused(items: list[Any]) -> None:
    """One by one."""
    with pytest.raises(UnsupportedFormat):
        _decodes(codec.decode_result, *items)


def test_an_error_of_a_newer_version_becomes_its_root() -> None:
    """A client of an older version still learns that there was an error, and which."""
    back = _decodes(codec.decode_result, 9, "TooBusy", "later", {})
    assert (type(back), str(back)) == (PyraftkvError, "TooBusy: later")
    back = _decodes(codec.decode_result, 9, "NotApplied", "no", {"news": 1})
    assert (type(back), str(back)) == (NotApplied, "no")


def test_what_is_no_result_is_not_encoded() -> None:
    """A float, a string or a number out of range."""
    for wrong in (1.5, "text", 2**63, object()):
        with pytest.raises(InvalidRequest):
            codec.encode_result(wrong)  # type: ignore[arg-type]


def test_a_status_is_bounded() -> None:
    """64 keys, on both sides."""
    table = {f"{number}": number for number in range(65)}
    with pytest.raises(InvalidRequest, match="65"):
        codec.encode_reply(Answer(1, table))
    with pytest.raises(FrameError):
        _decodes(codec.decode_reply, 1, table, lead=b"\x02")


@pytest.mark.parametrize("data", [b"\x02\x91\x01", b"\x02\x92\x01\x01", b"\x05\x91\x01", b"\x05\x92\x01\x81\xa1a\x01"])
def test_maps_stand_where_maps_belong(data: bytes) -> None:
    """In a status and in a leader hint."""
    with pytest.raises(FrameError):
        codec.decode_reply(data)


def test_an_enumeration_travels_as_its_number() -> None:
    """And comes back as itself, not as a bare integer."""
    call = ReadCall(1, RangeQuery(b"k", sort_target=SortTarget.MOD), "local", 1.0)
    back = codec.decode_call(codec.encode_call(call))
    assert isinstance(back, ReadCall)
    assert isinstance(back.query.sort_target, enum.IntEnum)


def test_a_result_s_transaction_is_bounded_in_length() -> None:
    """1,024 responses, as many as a transaction has operations."""
    with pytest.raises(InvalidRequest, match="long"):
        codec.encode_result(TxnResult(1, succeeded=True, responses=[PutResult(1)] * 1025))


@pytest.mark.parametrize("size", [0, 47, 51, 52, 60, 62, 64, 66])
def test_an_append_request_may_be_cut_anywhere(size: int) -> None:
    """In the header, before a run, in its table and in its bytes."""
    _, payload = codec.encode_message(AppendRequest(1, 2, 3, 4, 5, [Entry(5, 5, b"ab")], 6))
    with pytest.raises(FrameError):
        codec.decode_message(3, payload[:size])


def test_a_run_s_count_is_bounded() -> None:
    """A count beyond the bytes that are there is refused before a table is read."""
    for count in (2, 2**32 - 1):
        with pytest.raises(FrameError, match="table"):
            codec.unpack_run(count.to_bytes(4, "little") + bytes(4))


def test_an_empty_envelope_tag_is_refused() -> None:
    """A payload that is an empty array, or whose tag is no number."""
    for items in ([], ["1"], [None], [True]):
        with pytest.raises(UnsupportedFormat):
            _decodes(codec.decode_logged, *items)
