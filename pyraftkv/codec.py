"""Commands, messages and results to and from bytes. The one module that knows msgpack."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from pyraftkv.core.messages import Message
from pyraftkv.protocol import GenesisOffer, SnapshotAck, SnapshotChunk

PeerMessage = Message | GenesisOffer | SnapshotChunk | SnapshotAck
"""Everything that travels between members after the HELLO."""

_COUNT = Struct("<I")


def pack_run(payloads: Sequence[bytes]) -> bytes:
    """Lay payloads end to end behind a table of their lengths: count, lengths (u32 little endian), bytes. O(bytes)."""
    lengths = Struct(f"<I{len(payloads)}I").pack(len(payloads), *map(len, payloads))
    return b"".join((lengths, *payloads))
