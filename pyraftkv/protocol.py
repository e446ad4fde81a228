"""Records that travel or are logged but belong to neither the Raft machine nor the store.

Three families: what an entry's payload holds (`Envelope` and what it wraps), what members tell each other besides
Raft's own messages (`Hello`, `Genesis...`, `Snapshot...`), and what clients ask of a member (`...Call`, `Answer`).
"""

from __future__ import annotations

from typing import Any

from pyraftkv._record import record
from pyraftkv.store.commands import LoggedCommand, RangeQuery
from pyraftkv.store.values import LoggedResult, WatchBatch

PROTOCOL_VERSION_MIN = 1
PROTOCOL_VERSION_MAX = 1

# --- What an entry's payload holds ---------------------------------------------------------------------------------


@record
class Envelope:
    """A command with the session that makes its retries exactly-once (thesis §6.3)."""

    session: int
    """The session's id; 0 for a command that needs none."""
    sequence: int
    """Counts up by one per command of the session; a retry keeps it."""
    acked_below: int
    """The session's owner has every result below this sequence: they may be forgotten."""
    command: LoggedCommand


@record
class RegisterSession:
    """Open a session; see `sessions.session_id_of`."""

    nonce: int
    """Random, of 62 bits: makes the session's id, and tells whoever waits for it that it is this one."""


@record
class MemberInfo:
    """One member as the cluster knows it."""

    id: int
    name: str
    address: str
    incarnation: int
    learner: bool = False


@record
class Genesis:
    """Entry 1: fixes the cluster's id and its first members. The same bytes on every one of them."""

    cluster_id: int
    members: list[MemberInfo]


@record
class Recover:
    """A quorum was lost for good: from here on this is another cluster, and one member is all of it.

    Proposed by nobody: it is written to the log of a member that does not run (`node.recovery`).
    """

    cluster_id: int
    """Random, so that nobody of the cluster before takes part in this one."""
    member: MemberInfo
    """The survivor: its id and as a rule its name are what they were, its incarnation is new."""


Logged = Envelope | RegisterSession | Genesis | Recover
"""Whatever a payload decodes to (an empty payload is Raft's own empty entry)."""

# --- What members tell each other besides Raft ---------------------------------------------------------------------


@record
class Hello:
    """The first frame each way: who is calling, and of what cluster and life."""

    cluster_id: int
    """0 while the sender has not joined a cluster yet: it may then only talk about joining."""
    member_id: int
    """0 for a client."""
    name: str
    incarnation: int
    boot_count: int
    address: str
    """Where the sender can be reached: its advertised address; empty for a client."""
    version_min: int = PROTOCOL_VERSION_MIN
    version_max: int = PROTOCOL_VERSION_MAX
    feature_level: int = 1


@record
class GenesisOffer:
    """A member of a running cluster shows entry 1 to a listed member that has an empty directory."""

    to: int
    sender: int
    payload: bytes
    """The encoded `Genesis`."""


@record
class SnapshotChunk:
    """One piece of a snapshot on its way to a follower, on the bulk lane."""

    to: int
    sender: int
    term: int
    """The leader's term: a chunk of an earlier one is dropped."""
    index: int
    snapshot_term: int
    """With `index`, names the snapshot."""
    number: int
    """Counts the chunks from 0."""
    data: bytes
    last: bool


@record
class SnapshotAck:
    """The receiver has every chunk below `next_number` and wants that one; a negative number ends the transfer."""

    to: int
    sender: int
    index: int
    snapshot_term: int
    next_number: int


@record
class TransferRequest:
    """A follower passes on that leadership is to be handed over. May be lost: whoever asked for it waits, and sees."""

    to: int
    sender: int
    target: int
    """Who is to lead; 0: the best of the others."""


# --- What clients ask of a member ----------------------------------------------------------------------------------


@record
class OpenSessionCall:
    """Register a session for this client; answered with its id."""

    id: int


@record
class WriteCall:
    """Propose an encoded `Envelope`; answered with its result."""

    id: int
    payload: bytes
    timeout: float
    """Seconds that the client is going to wait."""


@record
class ReadCall:
    id: int
    query: RangeQuery
    consistency: str
    timeout: float
    at_least: int = 0
    """Wait until the member has this revision."""


@record
class WatchCall:
    """Start a watch named `id`; `WatchUpdate`s follow until `CancelCall` or an `Answer` with an error."""

    id: int
    key: bytes
    end: bytes
    start_revision: int
    prev_kv: bool
    no_put: bool = False
    no_delete: bool = False


@record
class StatusCall:
    """Ask for the member's status; answered with a map."""

    id: int


@record
class TransferCall:
    """Hand leadership over; answered with a map that names the leader."""

    id: int
    to: str
    """The name of who is to lead; empty: the best of the others."""
    timeout: float


@record
class CancelCall:
    """The client no longer wants the answer (or the watch) `id`."""

    id: int


Call = OpenSessionCall | WriteCall | ReadCall | WatchCall | StatusCall | TransferCall | CancelCall


@record
class Answer:
    """What a call came to: exactly one of `result` and `error`."""

    id: int
    result: LoggedResult | int | dict[str, Any] | None = None
    error: tuple[str, str, dict[str, Any]] | None = None
    """As `errors.to_wire` gives it."""


@record
class WatchUpdate:
    """The next events of watch `id`. The first one is empty: the watch is in place, `batch.revision` is its start."""

    id: int
    batch: WatchBatch


Reply = Answer | WatchUpdate
