"""Frames: how payloads stand on a stream. Sans-IO: bytes in, frames out.

.. code-block:: text

    0      2  3  4     6     8         12        16        20      24
    +------+--+--+-----+-----+---------+---------+---------+-------+---------
    |magic |v |k |flags|group|length   |sender's |receiver's|crc   | payload
    |      |  |  |     |     |         |boot     |boot     |       |
    +------+--+--+-----+-----+---------+---------+---------+-------+---------

Little endian. The CRC (zlib's CRC-32) covers the header before it and the payload. `length` is compared with the bound
before a byte of the payload is kept, so a peer cannot make us buffer more than one frame of the size we allow.

The decoder copies a byte at most twice, however the stream was cut into pieces: a chunk that holds whole frames is
sliced in place, and what is left over is gathered in a `bytearray`, which grows by doubling and sheds its front in
constant time.
"""

from __future__ import annotations

import zlib
from struct import Struct
from typing import Final

from pyraftkv._record import record
from pyraftkv.errors import FrameError

MAGIC: Final = 0xB552
"""Bytes 52 B5: no text and no TLS record begins so, and whoever expects TLS sees at once that this is none."""
FRAME_VERSION: Final = 1
HEADER: Final = Struct("<HBBHHIII")
CRC: Final = Struct("<I")
HEADER_BYTES: Final = HEADER.size + CRC.size

HELLO_BYTES_MAX: Final = 4 * 1024
PEER_FRAME_BYTES_MAX: Final = 8 * 1024 * 1024
CLIENT_FRAME_BYTES_MAX: Final = 2 * 1024 * 1024

KIND_HELLO: Final = 0xF0
KIND_HELLO_ACK: Final = 0xF1
KIND_REJECTED: Final = 0xF2
KIND_CLIENT: Final = 0xE0
"""A call or a reply; kinds below 0x80 are messages between members (see the codec)."""


@record
class Frame:
    """One frame as it arrived, its CRC verified."""

    kind: int
    payload: bytes
    sender_boot: int
    receiver_boot: int


def frame_header(kind: int, payload: bytes, *, sender_boot: int = 0, receiver_boot: int = 0) -> bytes:
    """Return the header that ``payload`` needs before it on the stream. O(bytes): the CRC reads the payload."""
    head = HEADER.pack(MAGIC, FRAME_VERSION, kind, 0, 0, len(payload), sender_boot, receiver_boot)
    return head + CRC.pack(zlib.crc32(payload, zlib.crc32(head)))


class FrameDecoder:
    """Cuts a stream into frames: `feed` what arrived, then take `next_frame` until it returns None.

    Invariant: the bytes from `_offset` on are what has not been handed out; at most one incomplete frame of them is
    kept between feeds.

    Args:
        payload_bytes_max: The largest payload accepted; may be changed between frames (a HELLO is small).
    """

    def __init__(self, *, payload_bytes_max: int) -> None:
        self.payload_bytes_max = payload_bytes_max
        self._buffer: bytes | bytearray = b""
        self._offset = 0

    @property
    def pending_bytes(self) -> int:
        """Bytes that arrived and belong to no frame handed out yet."""
        return len(self._buffer) - self._offset

    def feed(self, data: bytes) -> None:
        """Take what arrived. After this, take every `next_frame`. O(len(data)), amortised."""
        if self._offset == len(self._buffer):
            self._buffer, self._offset = data, 0
            return
        if isinstance(self._buffer, bytearray):
            del self._buffer[: self._offset]
        else:
            self._buffer = bytearray(memoryview(self._buffer)[self._offset :])
        self._offset = 0
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """Return the next whole frame, or None when more bytes are needed.

        Raises:
            FrameError: The stream is no stream of frames, or a frame is over the bound. The stream cannot go on.
        """
        buffer, start = self._buffer, self._offset
        available = len(buffer) - start
        if available < HEADER_BYTES:
            return None
        magic, version, kind, flags, group, length, sender_boot, receiver_boot = HEADER.unpack_from(buffer, start)
        if magic != MAGIC:
            raise FrameError("not a frame: the other end does not speak this protocol")
        if version != FRAME_VERSION or flags or group:
            raise FrameError(f"a frame of version {version}, flags {flags:#x}, group {group}")
        if length > self.payload_bytes_max:
            raise FrameError(f"a frame of {length} bytes, over {self.payload_bytes_max}")
        if available < HEADER_BYTES + length:
            return None
        self._offset = end = start + HEADER_BYTES + length
        if isinstance(buffer, bytes):
            payload = buffer[start + HEADER_BYTES : end]
        else:
            with memoryview(buffer) as view:  # a slice of a bytearray would be copied twice
                payload = bytes(view[start + HEADER_BYTES : end])
        head_crc = zlib.crc32(buffer[start : start + HEADER.size])
        if CRC.unpack_from(buffer, start + HEADER.size)[0] != zlib.crc32(payload, head_crc):
            raise FrameError("a frame's CRC does not match")
        return Frame(kind, payload, sender_boot, receiver_boot)
