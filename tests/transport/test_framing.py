"""Frames: however a stream is cut, the same frames come out; what is no frame is refused at once."""

from __future__ import annotations

import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyraftkv.codec import encode_message
from pyraftkv.core import PAYLOAD_BYTES_MAX, Entry
from pyraftkv.core.messages import AppendRequest, ForwardedProposals
from pyraftkv.errors import FrameError
from pyraftkv.transport.framing import (
    CRC,
    HEADER,
    HEADER_BYTES,
    PEER_FRAME_BYTES_MAX,
    Frame,
    FrameDecoder,
    frame_header,
)

BOUND = 1000

frames = st.builds(
    Frame, st.integers(0, 255), st.binary(max_size=300), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)
)


def _encode(frame: Frame) -> bytes:
    header = frame_header(frame.kind, frame.payload, sender_boot=frame.sender_boot, receiver_boot=frame.receiver_boot)
    return header + frame.payload


def _take(decoder: FrameDecoder) -> list[Frame]:
    taken: list[Frame] = []
    while (frame := decoder.next_frame()) is not None:
        taken.append(frame)
    return taken


@given(st.lists(frames, max_size=6), st.data())
def test_frames_come_out_however_the_stream_is_cut(expected: list[Frame], data: st.DataObject) -> None:
    """Any split gives the same frames, none early, none late."""
    stream = b"".join(map(_encode, expected))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder = FrameDecoder(payload_bytes_max=BOUND)
    actual: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        decoder.feed(stream[start:end])
        actual += _take(decoder)
    assert actual == expected
    assert decoder.pending_bytes == 0


def test_a_stream_may_come_byte_by_byte() -> None:
    """The slowest of all streams."""
    expected = [Frame(3, b"abc" * 50, 1, 2), Frame(4, b"", 0, 0), Frame(5, b"x", 7, 8)]
    decoder = FrameDecoder(payload_bytes_max=BOUND)
    actual: list[Frame] = []
    for byte in b"".join(map(_encode, expected)):
        decoder.feed(bytes((byte,)))
        actual += _take(decoder)
    assert actual == expected


def test_payloads_are_bytes_whichever_way_they_came() -> None:
    """Records compare and hash their payloads: a bytearray must not slip through."""
    stream = _encode(Frame(1, b"ab", 0, 0))
    for cut in (0, 5, len(stream) - 1):
        decoder = FrameDecoder(payload_bytes_max=BOUND)
        decoder.feed(stream[:cut])
        decoder.feed(stream[cut:])
        frame = decoder.next_frame()
        assert frame is not None
        assert type(frame.payload) is bytes


def test_the_header_has_this_layout() -> None:
    """24 bytes, little endian, the CRC last."""
    header = frame_header(3, b"abc", sender_boot=0x01020304, receiver_boot=0x05060708)
    expected = bytes.fromhex("52b5 01 03 0000 0000 03000000 04030201 08070605")
    assert header == expected + zlib.crc32(expected + b"abc").to_bytes(4, "little")
    assert len(header) == HEADER_BYTES == 24


def test_every_flipped_bit_of_a_payload_is_noticed() -> None:
    """One after the other, in one frame."""
    stream = _encode(Frame(3, b"abcdefgh", 1, 2))
    for place in range(HEADER_BYTES, len(stream)):
        for bit in range(8):
            flipped = bytearray(stream)
            flipped[place] ^= 1 << bit
            decoder = FrameDecoder(payload_bytes_max=BOUND)
            decoder.feed(bytes(flipped))
            with pytest.raises(FrameError, match="CRC"):
                decoder.next_frame()


@given(frames, st.data())
def test_a_flipped_bit_is_noticed(frame: Frame, data: st.DataObject) -> None:
    """Wherever it is: the frame is refused, or (in its length) waits for more; it never comes out changed."""
    stream = bytearray(_encode(frame))
    place = data.draw(st.integers(0, len(stream) - 1))
    stream[place] ^= 1 << data.draw(st.integers(0, 7))
    decoder = FrameDecoder(payload_bytes_max=BOUND)
    decoder.feed(bytes(stream))
    try:
        actual = decoder.next_frame()
    except FrameError:
        return
    assert actual is None
    assert place in range(8, 12)


def _forged(*, magic: int = 0xB552, version: int = 1, flags: int = 0, group: int = 0, length: int = 0) -> bytes:
    head = HEADER.pack(magic, version, 1, flags, group, length, 0, 0)
    return head + CRC.pack(zlib.crc32(head))


def test_a_forged_header_with_the_right_values_passes() -> None:
    """What the next test changes one by one."""
    decoder = FrameDecoder(payload_bytes_max=BOUND)
    decoder.feed(_forged())
    assert decoder.next_frame() == Frame(1, b"", 0, 0)


@pytest.mark.parametrize(
    "header",
    [
        _forged(magic=0xB553),
        _forged(version=2),
        _forged(flags=1),
        _forged(group=1),
        _forged(length=BOUND + 1),
        b"GET / HTTP/1.1\r\nHost: example\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(20),
    ],
)
def test_what_is_no_frame_of_ours_is_refused(header: bytes) -> None:
    """Though its CRC may be right: another protocol, version, group, or a length over the bound."""
    decoder = FrameDecoder(payload_bytes_max=BOUND)
    decoder.feed(header)
    with pytest.raises(FrameError):
        decoder.next_frame()


def test_the_bound_is_inclusive_and_may_change_between_frames() -> None:
    """A HELLO is small, what follows may be larger, in the same feed."""
    small, large = Frame(1, bytes(10), 0, 0), Frame(2, bytes(100), 0, 0)
    decoder = FrameDecoder(payload_bytes_max=10)
    decoder.feed(_encode(small) + _encode(large))
    assert decoder.next_frame() == small
    decoder.payload_bytes_max = 100
    assert decoder.next_frame() == large
    decoder.payload_bytes_max = 99
    decoder.feed(_encode(large))
    with pytest.raises(FrameError, match="100 bytes, over 99"):
        decoder.next_frame()


def test_an_oversized_length_is_refused_before_its_payload_is_awaited() -> None:
    """The header alone is enough."""
    decoder = FrameDecoder(payload_bytes_max=BOUND)
    decoder.feed(frame_header(1, bytes(BOUND + 1)))
    with pytest.raises(FrameError):
        decoder.next_frame()


def test_buffering_costs_memory_in_proportion_to_the_frame() -> None:
    """One megabyte in 1,024 pieces needs a few megabytes at most, not their sum over time."""
    payload = bytes(1024 * 1024)
    stream = frame_header(1, payload) + payload
    decoder = FrameDecoder(payload_bytes_max=len(payload))
    tracemalloc.start()
    for start in range(0, len(stream), 1024):
        decoder.feed(stream[start : start + 1024])
        frame = decoder.next_frame()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert frame is not None
    assert frame.payload == payload
    assert peak_bytes < 4 * len(payload)


def test_pending_bytes_count_what_was_not_handed_out() -> None:
    """From which the transport sees that a frame has begun."""
    stream = _encode(Frame(1, b"abc", 0, 0))
    decoder = FrameDecoder(payload_bytes_max=BOUND)
    decoder.feed(stream + stream[:5])
    assert decoder.pending_bytes == len(stream) + 5
    assert decoder.next_frame() is not None
    assert decoder.pending_bytes == 5
    assert decoder.next_frame() is None


def test_the_largest_payload_fits_a_frame() -> None:
    """What could be logged and not sent would stop every follower for ever."""
    payload = bytes(PAYLOAD_BYTES_MAX)
    for message in (AppendRequest(2, 1, 1, 0, 0, [Entry(1, 1, payload)], 0), ForwardedProposals(2, 1, 1, [payload])):
        assert len(encode_message(message)[1]) <= PEER_FRAME_BYTES_MAX
