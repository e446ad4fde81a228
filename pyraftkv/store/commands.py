r"""What the store can be asked: imperatives that change it, and queries that read it.

Key ranges are `[key, end)` in etcd's notation (etcd, `RangeRequest`): `end == b""` is the single key,
`end == b"\0"` everything from `key` on, `key == end == b"\0"` everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from enum import IntEnum

from pyraftkv._record import record

SINGLE_KEY = b""
FROM_KEY = b"\0"


class SortTarget(IntEnum):
    """What a range is sorted by (etcd, `RangeRequest.SortTarget`)."""

    KEY = 0
    VERSION = 1
    CREATE = 2
    MOD = 3
    VALUE = 4


class SortOrder(IntEnum):
    """How a range is sorted (etcd, `RangeRequest.SortOrder`)."""

    NONE = 0
    ASCEND = 1
    DESCEND = 2


class CompareTarget(IntEnum):
    """What of a key is compared (etcd, `Compare.CompareTarget`); a key that does not exist has zeros."""

    VERSION = 0
    CREATE = 1
    MOD = 2
    VALUE = 3
    LEASE = 4


class CompareResult(IntEnum):
    """How it must compare (etcd, `Compare.CompareResult`)."""

    EQUAL = 0
    GREATER = 1
    LESS = 2
    NOT_EQUAL = 3


@record
class PutKey:
    """Set `key` to `value` (etcd, `PutRequest`)."""

    key: bytes
    value: bytes
    lease: int = 0
    prev_kv: bool = False
    ignore_value: bool = False
    ignore_lease: bool = False


@record
class PutBatch:
    """Set keys to values in this order, each at a revision of its own, as that many plain puts would.

    What proposers gather puts into that are made at the same time. It cannot stand in a transaction.
    """

    items: Sequence[bytes]
    """A key, its value, the next key, its value ..."""

    @property
    def count(self) -> int:
        """How many puts this is."""
        return len(self.items) // 2


@record
class DeleteRange:
    """Delete the keys in `[key, end)` (etcd, `DeleteRangeRequest`)."""

    key: bytes
    end: bytes = SINGLE_KEY
    prev_kv: bool = False


@record
class RangeQuery:
    """Read the keys in `[key, end)` (etcd, `RangeRequest`)."""

    key: bytes
    end: bytes = SINGLE_KEY
    revision: int = 0
    """Read as of this revision; 0 or less: the latest."""
    limit: int = 0
    """At most this many keys; 0: all."""
    sort_target: SortTarget = SortTarget.KEY
    sort_order: SortOrder = SortOrder.NONE
    keys_only: bool = False
    """Leave out the values, and the leases with them (etcd from 3.7 on)."""
    count_only: bool = False
    min_mod_revision: int = 0
    max_mod_revision: int = 0
    min_create_revision: int = 0
    max_create_revision: int = 0


@record
class VersionsQuery:
    """Read the versions that a key has had, deletions among them; a page of them."""

    key: bytes
    min_revision: int = 0
    """No version before this revision; 0: as old as they are kept."""
    max_revision: int = 0
    """No version after this revision; 0: the latest."""
    limit: int = 1000
    newest_first: bool = False


@record
class DiffQuery:
    """Read what differs in `[key, end)` between two revisions; a page of it."""

    key: bytes
    end: bytes
    older: int
    newer: int = 0
    """0: the latest."""
    limit: int = 1000
    next_revision: int = 0
    """With `next_sub`, where the answer before has ended."""
    next_sub: int = 0


LookQuery = VersionsQuery | DiffQuery
"""What may be asked of the past besides a range."""


@record
class Compare:
    """One comparison of a transaction's guard (etcd, `Compare`)."""

    target: CompareTarget
    result: CompareResult
    key: bytes
    operand: int | bytes
    """Bytes for `CompareTarget.VALUE`, an integer otherwise."""
    end: bytes = SINGLE_KEY
    """With a range, every key in it must satisfy the comparison."""


@record
class Transaction:
    """If every comparison holds do `success`, else `failure`: atomically, at one revision (etcd, `TxnRequest`)."""

    compares: list[Compare] = field(default_factory=list)
    success: list[Operation] = field(default_factory=list)
    failure: list[Operation] = field(default_factory=list)


@record
class Compact:
    """Forget history before `revision` (etcd, `CompactionRequest`)."""

    revision: int


@record
class GrantLease:
    """Grant a lease (etcd, `LeaseGrantRequest`)."""

    id: int
    """Above 0; who asks for it chooses it, at random."""
    ttl: int
    """Seconds; raised to `Limits.lease_ttl_min_seconds`."""


@record
class RevokeLease:
    """End a lease, and delete the keys that are attached to it, at one revision (etcd, `LeaseRevokeRequest`)."""

    id: int


@record
class ExpireLeases:
    """End these leases, each with its keys at a revision of its own; those that are gone already are passed over."""

    ids: list[int]


@record
class CheckpointLeases:
    """Remember what is left of these leases (etcd, `LeaseCheckpointRequest`); those that are gone are passed over."""

    items: list[int]
    """A lease, the seconds that are left of it (0: all of it), the next lease ..."""


class LeaseVerb(IntEnum):
    """What is asked about leases: none of it is logged."""

    RENEW = 0
    """Let it live for its full time from now on."""
    LOOK = 1
    """How long it lives still."""
    KEYS = 2
    """That, and its keys."""
    LIST = 3
    """Which there are."""


@record
class LeaseQuery:
    """A question about leases; the leader knows the answer."""

    verb: LeaseVerb
    lease: int = 0


Operation = PutKey | DeleteRange | RangeQuery | Transaction
"""What may stand in a transaction's branches."""

Command = PutKey | DeleteRange | Transaction | Compact | GrantLease | RevokeLease
"""What may be asked for: everything that can change the store."""

LoggedCommand = Command | PutBatch
"""What may be applied: how it travels and stands in the log."""

LeaseUpkeep = ExpireLeases | CheckpointLeases
"""What a leader makes of the time that passes."""
