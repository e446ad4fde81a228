"""Hashes: of a version, and of the whole state.

Members apply the same log, so their states are equal, unless a bug or a broken memory makes them differ. To see that, a
hash of the state is compared every so often. It must cost next to nothing at every put, and must be a function of the
state alone: neither of the pages' layout (when a page was compacted is local), nor of slices, batches or snapshots.

So it is a sum. Each version has its *check*, of 64 bits, made of its key, its value, its revisions, its version and
its lease; the hash is the sum of the checks of the newest version of every key that exists, and of every lease. A
change subtracts one check and adds one.

What the check must be good for:

1. *Two values are exchanged between two keys.* A CRC is linear: the CRCs of ``k1 v2`` and ``k2 v1`` together are those
   of ``k1 v1`` and ``k2 v2`` as far as exclusive-or goes, and often as far as a sum goes. A product is not linear.
2. *A key ends where its value begins*, ``ab``+``c`` against ``a``+``bc``: the CRC after the key is a factor of its own.
3. *Any Python.* `hash` is salted and differs between builds. `zlib.crc32` is the same everywhere, and C.

It guards against accidents, not against somebody who looks for collisions: whoever can write the state needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from zlib import crc32

_LEASE: Final = 0x85EB_CA77_C2B2_AE63
"""Odd, so that every bit of a lease's id counts."""

_KEY_COUNT: Final = 0x9E37_79B9_7F4A_7C15
_REVISION: Final = 0xC2B2_AE3D_27D4_EB4F
_COMPACT: Final = 0x1656_67B1_9E37_79F9

CHECK_MASK: Final = (1 << 64) - 1
HASH_MASK: Final = (1 << 63) - 1
"""A hash travels, and is shown: it fits a signed integer."""


def check_of(
    key: bytes, value: bytes | bytearray, mod_revision: int, create_revision: int, version: int, lease: int
) -> int:
    """Return the check of a version, or of a tombstone (version 0), in 64 bits. O(bytes).

    Positional, because every put comes through here.
    """
    after_key = crc32(key, mod_revision)  # of which it takes the lowest 32 bits
    after_value = crc32(value, after_key)
    check = (after_key + create_revision) * (after_value + version) + mod_revision
    if lease:
        check += lease * _LEASE
    return check & CHECK_MASK


def checks_of(
    keys: Sequence[bytes],
    values: Sequence[bytes],
    mod_revisions: Sequence[int],
    create_revisions: Sequence[int],
    versions: Sequence[int],
    leases: Sequence[int],
) -> list[int]:
    """Return the checks of many versions, as `check_of` does of one, in half of the time. O(bytes)."""
    after_keys = list(map(crc32, keys, mod_revisions))
    after_values = map(crc32, values, after_keys)
    return [
        ((after_key + create) * (after_value + version) + mod + lease * _LEASE) & CHECK_MASK
        for after_key, after_value, mod, create, version, lease in zip(
            after_keys, after_values, mod_revisions, create_revisions, versions, leases, strict=True
        )
    ]


def lease_check_of(lease: int, ttl: int, left: int) -> int:
    """Return the check of a lease, of what it was granted for and what was left of it. O(1)."""
    return (lease * _LEASE + ttl) * _REVISION + left


def state_hash_of(live_sum: int, key_count: int, revision: int, compact_revision: int) -> int:
    """Return the hash of a state whose newest versions and leases have checks with this sum, in 63 bits. O(1)."""
    return (live_sum + key_count * _KEY_COUNT + revision * _REVISION + compact_revision * _COMPACT) & HASH_MASK
