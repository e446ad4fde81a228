"""Header blocks: the fixed-size, CRC'd starts of segments, snapshots and identity slots.

.. code-block:: text

    0        8       10      12                                size-4   size
    ┌────────┬───────┬───────┬──────────────────────┬────────────┬───────┐
    │ magic  │ major │ minor │ fields               │ zeros      │ CRC32 │
    └────────┴───────┴───────┴──────────────────────┴────────────┴───────┘

The frame is the same in every version to come, so that a reader can always tell "damaged" from "newer than I am".
A higher minor is readable by everybody; a higher major is refused.
"""

from __future__ import annotations

from struct import Struct
from zlib import crc32

from pyraftkv.errors import UnsupportedFormat

MAJOR = 1
MINOR = 0

_HEAD = Struct("<8sHH")
_CRC = Struct("<I")


class BlockDamaged(Exception):
    """The block is not what was written: wrong length, magic or CRC."""


def pack_block(magic: bytes, fields: bytes, *, size: int) -> bytes:
    """Frame ``fields`` as a block of ``size`` bytes. O(size)."""
    body = _HEAD.pack(magic, MAJOR, MINOR) + fields
    assert len(magic) == 8, "a magic is eight bytes"
    assert len(body) <= size - _CRC.size, "the fields do not fit their block"
    body = body.ljust(size - _CRC.size, b"\0")
    return body + _CRC.pack(crc32(body))


def unpack_block(block: bytes, magic: bytes, *, size: int, path: str) -> bytes:
    """Return the fields, and the zeros behind them, of a block.

    Args:
        block: What was read; may be shorter than asked for.
        path: Where from, for the error.

    Raises: `BlockDamaged`, and `UnsupportedFormat` for an intact block of an unknown major version.
    """
    if len(block) != size:
        raise BlockDamaged(f"{len(block)} bytes where {size} belong")
    if crc32(block[: -_CRC.size]) != _CRC.unpack_from(block, size - _CRC.size)[0]:
        raise BlockDamaged("its CRC does not match")
    found, major, minor = _HEAD.unpack_from(block)
    if found != magic:
        raise BlockDamaged(f"its magic is {found!r} where {magic!r} belongs")
    if major != MAJOR:
        raise UnsupportedFormat(f"{path} has format {major}.{minor}; this version reads {MAJOR}.x")
    return block[_HEAD.size : -_CRC.size]


def version_of(block: bytes) -> str:
    """Return the format that an intact block was written in, as ``major.minor``."""
    _, major, minor = _HEAD.unpack_from(block)
    return f"{major}.{minor}"
