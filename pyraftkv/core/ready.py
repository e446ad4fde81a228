"""The one output of the machine, `Ready`, and the order that its parts must be handled in.

.. code-block:: text

            inputs                                outputs (Ready)
    Tick ───────────┐                    ┌── messages              send now
    message ────────┤                    ├── save ──► disk ──┬──── then send messages_after_save
    Propose ────────┼──► Raft.feed() ──► │                   └──── then feed Saved(save.number)
    ReadIndex ──────┤    Raft.ready()    ├── restore         load that snapshot into the state machine,
    Saved ──────────┤                    ├── committed       then apply these, then feed Applied(index)
    Applied ────────┘                    ├── reads           answer when applied >= index
                                         └── fetches         read from the log, then feed Fetched(...)

Everything in a `Ready` may go on at once: the disk is never waited for. The only orders that matter are the ones
drawn: what depends on a save waits for that save, and entries apply in order, after a snapshot that precedes them.
"""

from __future__ import annotations

from dataclasses import field
from typing import Final

from pyraftkv._record import record
from pyraftkv.core.messages import Message
from pyraftkv.core.types import Entry, HardState, Membership, Role, SnapshotMeta

# --- Outputs ---------------------------------------------------------------------------------------------------------


@record
class Save:
    """What must reach the disk, in order of `number`, before what waits for it may happen.

    Saves must complete in order. A save with entries overwrites: everything stored from `entries[0].index` on is gone.
    """

    number: int
    """Counts up by one per save; comes back in `Saved`."""
    hard_state: HardState | None
    """The term, vote and commit to store, or None when unchanged."""
    entries: list[Entry]
    snapshot: SnapshotMeta | None
    """A snapshot that was received and replaces the log: stored entries up to and past it are gone."""


@record
class ReadReady:
    """A read round that was confirmed: it may be answered from any state with applied >= `index`."""

    context: int
    index: int


@record
class EntryFetch:
    """Entries `[lo, hi)` that a slow follower needs and that memory no longer holds."""

    lo: int
    hi: int
    bytes_max: int
    """Stop after this many bytes of payload, but return one entry at least."""


@record
class SoftState:
    """Who leads and what this member is; volatile, for those who watch."""

    role: Role
    leader: int
    term: int


@record
class Ready:
    """Everything the machine wants done since the last `ready()`."""

    messages: list[Message] = field(default_factory=list)
    """Safe to send at once, before any save of this `Ready`."""
    save: Save | None = None
    """Hand to the storage; do not wait for it."""
    messages_after_save: list[Message] = field(default_factory=list)
    """Send when `save` is on disk: votes, vote requests and accepted appends (Raft §5.1, "before responding to RPCs").
    Empty unless `save` is set, or an earlier save is still under way: then they wait for the latest one, whose number
    is `after_save`."""
    after_save: int = 0
    """The save that `messages_after_save` wait for."""
    restore: SnapshotMeta | None = None
    """Replace the state machine by this received snapshot before applying `committed`."""
    committed: list[Entry] = field(default_factory=list)
    """Apply in order. Bounded by `Config.committed_bytes_max`; more follow after `Applied`."""
    reads: list[ReadReady] = field(default_factory=list)
    fetches: list[EntryFetch] = field(default_factory=list)
    soft_state: SoftState | None = None
    """Set when role, leader or term changed."""
    rejected_proposals: list[bytes] = field(default_factory=list)
    """Payloads that were not taken (no leader is known, a transfer is under way, the uncommitted cap is reached, or a
    change of the membership has to wait): nothing happened and they may be proposed again."""
    again: bool = False
    """Call `ready()` again in the next pass of the loop, with whatever inputs there are by then, none included: a
    leader's commit index moved, and its followers hear of it with the next entries or else by itself."""


NOTHING: Final = Ready()
"""The empty one, which is returned over and over: it is nobody's to change."""


# --- Inputs ----------------------------------------------------------------------------------------------------------


@record
class Tick:
    """One tick of the clock has passed. Late ticks are never replayed in bulk."""


@record
class Propose:
    """Append these payloads in order if leading, else forward them. None is over `Config.payload_bytes_max`."""

    payloads: list[bytes]


@record
class ProposeDecided:
    """Append these payloads in order if leading in `term`, else hand them back in `Ready.rejected_proposals`.

    For what a leader decides by itself, and no other leader may be asked to do: it is never forwarded.
    """

    term: int
    payloads: list[bytes]


@record
class ProposeMembership:
    """Append this change of the membership if leading, else forward it.

    Handed back in `Ready.rejected_proposals` while no leader is known or the leader cannot take it: one change is under
    way, nothing of its own term is applied yet, or `leave` does not fit the configuration (see `membership.py`).
    """

    payload: bytes
    """Opaque, and not over `Config.payload_bytes_max`; whoever applies it answers with the new `Membership`. Empty
    means: leave the joint configuration."""
    leave: bool
    """Whether it leaves a joint configuration. Must be said, because a payload is opaque here."""


@record
class ReadIndex:
    """Confirm leadership and learn a read index (thesis §6.4). `context` must be fresh for every try."""

    context: int


@record
class Saved:
    """Every save up to and including `number` is on disk."""

    number: int


@record
class TermSaved:
    """Term and vote of every save up to and including `number` are on disk; there is no room for what else they hold.

    What promises nothing but that may leave. A member's own vote does not count by it: who cannot save is not to lead.
    """

    number: int


@record
class Applied:
    """Every entry up to and including `index` is applied."""

    index: int
    membership: Membership | None = None
    """The configuration now in force, when one of the entries changed it: it takes effect here, not when appended."""


@record
class Fetched:
    """The answer to an `EntryFetch` that asked for `lo`; empty when the log no longer has them."""

    lo: int
    entries: list[Entry]


@record
class SnapshotTaken:
    """The state machine's snapshot at `snapshot.index` is durable; the log now begins at `first_index` on disk."""

    snapshot: SnapshotMeta
    first_index: int


@record
class PeerUnreachable:
    """Messages to `node` are being lost: probe it until it answers."""

    node: int


@record
class SnapshotSent:
    """The snapshot for `node` was delivered (`ok`) or given up."""

    node: int
    ok: bool


@record
class TransferLeadership:
    """Hand leadership to `to`, or to the best candidate when it is 0; given up after one election timeout."""

    to: int


@record
class Campaign:
    """Start an election now."""


@record
class ForgetLeader:
    """A follower follows nobody until it hears of a leader again, and may vote at once.

    For a node that knows, by a refused connection for one, that its leader is gone. Others ignore it.
    """


@record
class KeepPayloads:
    """To a witness: whether there is room for the payloads of what is appended from now on (`witness.py`)."""

    keep: bool


Input = (
    Message
    | Tick
    | Propose
    | ProposeDecided
    | ProposeMembership
    | ReadIndex
    | Saved
    | TermSaved
    | Applied
    | Fetched
    | SnapshotTaken
    | PeerUnreachable
    | SnapshotSent
    | TransferLeadership
    | Campaign
    | ForgetLeader
    | KeepPayloads
)
