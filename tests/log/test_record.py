"""Records: encoding, verifying, splitting into runs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyraftkv.codec import pack_run
from pyraftkv.core.types import MEMBERSHIP, NORMAL, Entry, EntryKind, HardState, Membership, SnapshotMeta
from pyraftkv.log import record
from pyraftkv.log.record import (
    COMMIT,
    DIGEST_BYTES_MIN,
    DIGEST_FLAG,
    ENTRIES,
    HEADER_BYTES,
    MEMBERS_MAX,
    RECORD_BYTES_MAX,
    RUN_BYTES_MAX,
    BatchEncoder,
    Frame,
    pack_membership,
    read_frame,
    run_count,
    unpack_commit,
    unpack_hard_state,
    unpack_membership,
    unpack_run,
    unpack_snapshot,
)

SALT = 0x1234


def encoder(offset: int = 4096) -> BatchEncoder:
    """A batch in the middle of a log."""
    return BatchEncoder(salt=SALT, batch=7, chain=1, offset=offset, previous_commit=0)


def frames(data: bytes) -> list[Frame]:
    """Every record of a batch."""
    view, found, offset = memoryview(data), [], 0
    while offset < len(data):
        frame = read_frame(view, offset, salt=SALT)
        assert frame is not None
        found.append(frame)
        offset += frame.size
    return found


terms_and_kinds = st.lists(
    st.tuples(st.booleans(), st.sampled_from(EntryKind), st.binary(max_size=6000)), min_size=1, max_size=60
)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(terms_and_kinds)
def test_entries_come_back(choices):
    """Whatever the terms, kinds and sizes, the entries come back, in runs that stay below their bound."""
    term, entries = 1, []
    for index, (new_term, kind, payload) in enumerate(choices, 10):
        term += new_term
        entries.append(Entry(index, term, payload, kind))
    batch = encoder()
    places = batch.entries(entries)
    data = batch.finish(entries[-1].index)
    found = [frame for frame in frames(data) if frame.type == ENTRIES]
    assert [entry for frame in found for entry in unpack_run(frame)] == entries
    assert [(p.first, p.offset - 4096, p.size) for p in places] == [(f.index, f.offset, f.size) for f in found]
    assert [(p.first, p.last) for p in places] == [(f.index, f.index + run_count(f) - 1) for f in found]
    for frame in found:
        sizes = [len(entry.payload) for entry in unpack_run(frame)]
        assert sum(sizes) <= RUN_BYTES_MAX or len(sizes) == 1


def test_runs_are_packed_like_those_on_the_wire():
    """A run's payload has one layout everywhere."""
    payloads = [b"", b"one", bytes(range(200))]
    batch = encoder()
    batch.entries([Entry(i, 1, payload) for i, payload in enumerate(payloads)])
    assert bytes(frames(batch.finish(2))[0].payload) == pack_run(payloads)


def test_no_entries_are_no_record():
    """An empty list adds nothing."""
    batch = encoder()
    assert batch.entries([]) == []
    assert batch.is_empty


def test_every_record_is_aligned_and_every_bit_of_it_is_checked():
    """No byte of a record, padding included, can change unnoticed."""
    batch = encoder()
    batch.entries([Entry(1, 1, b"abc", MEMBERSHIP)])
    data = batch.finish(1)
    record = bytearray(data[: frames(data)[0].size])
    assert len(record) % 8 == 0
    for position in range(len(record)):
        for bit in range(8):
            record[position] ^= 1 << bit
            assert read_frame(memoryview(record), 0, salt=SALT) is None, (position, bit)
            record[position] ^= 1 << bit
    assert read_frame(memoryview(record), 0, salt=SALT) is not None
    assert read_frame(memoryview(record), 0, salt=SALT + 1) is None
    assert read_frame(memoryview(record), 1, salt=SALT) is None
    assert read_frame(memoryview(record)[:-1], 0, salt=SALT) is None
    assert read_frame(memoryview(record)[: HEADER_BYTES - 1], 0, salt=SALT) is None


def test_a_large_payload_carries_a_digest_too():
    """Where CRC-32 grows weak, BLAKE2b stands beside it: a forged CRC is not enough."""
    payload = bytes(DIGEST_BYTES_MIN)
    batch = encoder()
    batch.entries([Entry(1, 1, payload)])
    data = bytearray(batch.finish(1))
    frame = read_frame(memoryview(data), 0, salt=SALT)
    assert frame is not None
    assert frame.flags & DIGEST_FLAG
    assert unpack_run(frame) == [Entry(1, 1, payload)]
    from zlib import crc32

    data[HEADER_BYTES + 100] ^= 1
    body = bytes(data[12 : frame.size])
    data[8:12] = crc32(body, crc32(bytes(data[:8]), SALT)).to_bytes(4, "little")
    assert read_frame(memoryview(data), 0, salt=SALT) is None


def test_a_record_over_the_bound_is_not_believed(monkeypatch):
    """However well it is signed: nobody wrote it, and whoever reads on would hold all of it in memory."""
    batch = encoder()
    batch.entries([Entry(1, 1, bytes(200))])
    data = memoryview(batch.finish(1))
    assert read_frame(data, 0, salt=SALT) is not None
    monkeypatch.setattr(record, "RECORD_BYTES_MAX", 100)
    assert read_frame(data, 0, salt=SALT) is None


def test_a_record_over_the_bound_is_our_bug():
    """Nobody may propose so much that the log would not believe it afterwards."""
    with pytest.raises(AssertionError, match="a record of"):
        encoder().entries([Entry(1, 1, bytes(RECORD_BYTES_MAX))])


def test_entries_must_be_consecutive():
    """A hole between the entries of one save is our bug."""
    with pytest.raises(AssertionError, match="not consecutive"):
        encoder().entries([Entry(1, 1, b""), Entry(3, 1, b"")])


def test_states_and_snapshots_come_back():
    """Hard state, snapshot and commit say what they were told."""
    state = HardState(term=5, vote=3, commit=1 << 40)
    meta = SnapshotMeta(
        index=9,
        term=4,
        membership=Membership(
            frozenset({1, 2}),
            frozenset({2, 3}),
            frozenset({8}),
            frozenset({3}),
            auto_leave=True,
            witnesses=frozenset({2}),
        ),
    )
    batch = encoder()
    batch.hard_state(state)
    batch.snapshot(meta, reset=True)
    chain = batch.chain
    hard, snapshot, commit = frames(batch.finish(9))
    assert unpack_hard_state(hard) == state
    assert unpack_snapshot(snapshot) == meta
    found = unpack_commit(commit)
    assert (commit.type, found.count, found.chain, found.previous) == (COMMIT, 2, chain, 0)


def test_memberships_are_bounded():
    """A membership fits the header of a snapshot."""
    most = Membership(voters=frozenset(range(1, MEMBERS_MAX + 1)))
    assert unpack_membership(pack_membership(most) + b"rest") == most
    with pytest.raises(AssertionError):
        pack_membership(Membership(voters=frozenset(range(1, MEMBERS_MAX + 2))))


def test_a_table_of_lengths_that_does_not_fit_is_refused():
    """Intact bytes with impossible lengths are not cut up."""
    for payload in (b"", b"\0\0\0\0", b"\2\0\0\0\1\0\0\0\1\0\0\0abc"):
        frame = Frame(ENTRIES, NORMAL, 1, 1, 1, 0, 0, memoryview(payload))
        with pytest.raises(ValueError, match="table"):
            unpack_run(frame)
