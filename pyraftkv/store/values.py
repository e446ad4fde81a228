"""What the store answers: key-values with etcd's fields, results with their revision, watch events."""

from __future__ import annotations

import json
from dataclasses import field
from enum import IntEnum
from typing import Any

from pyraftkv._record import record


@record
class KeyValue:
    """A key, its value and where they stand in history (etcd, `KeyValue`)."""

    key: bytes
    value: bytes
    create_revision: int
    """The revision of the put that created the key, since it last did not exist."""
    mod_revision: int
    """The revision of the last change."""
    version: int
    """How many puts since the key was created, itself included."""
    lease: int = 0

    @property
    def text(self) -> str:
        """The value, decoded as UTF-8."""
        return self.value.decode()

    def json(self) -> Any:
        """The value, parsed as JSON."""
        return json.loads(self.value)


@record
class PutResult:
    """What a put came to (etcd, `PutResponse`)."""

    revision: int
    """The revision that this put made."""
    prev_kv: KeyValue | None = None
    """What stood there before, if it was asked for and existed."""


@record
class PutBatchResult:
    """What a batch of puts came to: consecutive revisions, the first put's first."""

    revision: int
    """The revision that the last put made."""
    count: int
    """How many puts there were."""


@record
class DeleteResult:
    """What a deletion came to (etcd, `DeleteRangeResponse`)."""

    revision: int
    """The revision that the deletion made; the current one when nothing was deleted."""
    deleted: int
    prev_kvs: list[KeyValue] = field(default_factory=list)


@record
class RangeResult:
    """What a range holds (etcd, `RangeResponse`)."""

    revision: int
    """The store's current revision when the range was read (etcd's header), not the one that was asked for."""
    kvs: list[KeyValue]
    more: bool
    """Whether `limit` cut the result."""
    count: int
    """How many keys are in the range, whatever `limit` says."""


@record
class TxnResult:
    """What a transaction came to (etcd, `TxnResponse`): a response per operation of the branch that was done."""

    revision: int
    succeeded: bool
    responses: list[PutResult | DeleteResult | RangeResult | TxnResult] = field(default_factory=list)


@record
class KvHash:
    """The hash of a member's history (etcd, `HashKVResponse`).

    Comparable between members whose `hash_revision` and `compact_revision` are the same.
    """

    revision: int
    """The member's current revision."""
    hash_revision: int
    """The last revision in the hash."""
    compact_revision: int
    """The first one; 0 if nothing was ever compacted."""
    hash: int
    """63 bits, of every version that can be read or watched from the first to the last of these revisions."""


@record
class CompactResult:
    """A compaction was taken on (etcd, `CompactionResponse`)."""

    revision: int


@record
class LeaseGranted:
    """A lease was granted (etcd, `LeaseGrantResponse`)."""

    revision: int
    id: int
    ttl: int
    """Seconds, as it was granted: not less than the least that there is."""


@record
class LeaseRevoked:
    """A lease was revoked, and its keys are gone (etcd, `LeaseRevokeResponse`)."""

    revision: int
    """The revision that the deletion made; the current one when there was no key."""


@record
class LeaseInfo:
    """A lease as of now (etcd, `LeaseTimeToLiveResponse`)."""

    id: int
    ttl: int
    """Whole seconds that are left of it; -1: there is no such lease (any more)."""
    granted_ttl: int
    """Seconds that it was granted for; 0: there is no such lease."""
    keys: list[bytes] = field(default_factory=list)
    """What hangs on it, in order, if that was asked for."""


@record
class LeaseList:
    """Which leases there are (etcd, `LeaseLeasesResponse`)."""

    ids: list[int]
    """In the order in which they were granted."""


LeaseAnswer = LeaseInfo | LeaseList
"""What a `LeaseQuery` comes to."""

Result = PutResult | DeleteResult | RangeResult | TxnResult | CompactResult | LeaseGranted | LeaseRevoked

LoggedResult = Result | PutBatchResult
"""What a `LoggedCommand` comes to."""


class EventType(IntEnum):
    """What happened to a key (etcd, `Event.EventType`)."""

    PUT = 0
    DELETE = 1


@record
class Event:
    """One change of one key (etcd, `Event`)."""

    type: EventType
    kv: KeyValue
    """For a DELETE only `key` and `mod_revision` are set."""
    prev_kv: KeyValue | None = None

    @property
    def is_create(self) -> bool:
        return self.type is EventType.PUT and self.kv.create_revision == self.kv.mod_revision


@record
class Change:
    """How one key differs between two states; at least one of the two is there."""

    before: KeyValue | None
    """None: the key was not there."""
    after: KeyValue | None
    """None: it is not there any more."""

    @property
    def key(self) -> bytes:
        """The key that differs."""
        kv = self.after or self.before
        assert kv is not None
        return kv.key

    @property
    def is_create(self) -> bool:
        """Whether the key was not there before."""
        return self.before is None

    @property
    def is_delete(self) -> bool:
        """Whether the key is not there any more."""
        return self.after is None


@record
class VersionsResult:
    """Versions of a key, in the order asked for: a PUT each, or the DELETE that ended the key."""

    revision: int
    """The store's current revision when it was read."""
    events: list[Event]
    next_revision: int
    """The `max_revision`, newest first, or `min_revision` to go on with; 0: this was all."""


@record
class DiffResult:
    """What differs between two revisions, each key where it was changed last."""

    revision: int
    """The store's current revision when it was read."""
    changes: list[Change]
    next_revision: int = 0
    """With `next_sub`, where to go on; 0: this was all."""
    next_sub: int = 0


LookResult = VersionsResult | DiffResult
"""What a `LookQuery` comes to."""


@record
class WatchBatch:
    """The events of one or more whole revisions, in order; a revision is never split over two batches."""

    events: list[Event]
    revision: int
    """Everything up to and including this revision has been delivered."""
