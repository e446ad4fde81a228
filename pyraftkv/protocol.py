"""Records that travel or are logged but belong to neither the Raft machine nor the store.

Three families: what an entry's payload holds (`Envelope` and what it wraps), what members tell each other besides
Raft's own messages (`Hello`, `Genesis...`, `Snapshot...`), and what clients ask of a member (`...Call`, `Answer`).
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

from pyraftkv._record import record
from pyraftkv.core.membership import Transition
from pyraftkv.core.types import Membership, SnapshotMeta
from pyraftkv.settings import FEATURE_LEVEL, RulesCommand, RulesResult
from pyraftkv.statemachine import MachineQuery, Operate, Operated
from pyraftkv.store.commands import (
    Compact,
    DiffQuery,
    LeaseQuery,
    LeaseUpkeep,
    LoggedCommand,
    RangeQuery,
    VersionsQuery,
)
from pyraftkv.store.values import LeaseAnswer, LoggedResult, LookResult, WatchBatch

PROTOCOL_VERSION_MIN = 3
PROTOCOL_VERSION_MAX = 3

# --- What an entry's payload holds ---------------------------------------------------------------------------------


PRIORITY_DEFAULT = 1
"""What a member is preferred with as leader that nobody gave a priority."""


@record
class MemberInfo:
    """One member as the cluster knows it. Whether it votes says the `Membership` beside the table."""

    id: int
    """Rises from member to member, and is never used again."""
    name: str
    address: str
    incarnation: int
    """Of its data directory: whoever comes back with another one has forgotten what it promised. 0 before it joined."""
    priority: int = PRIORITY_DEFAULT
    """A leader hands over to a member with a higher one."""


@record
class AddMember:
    """Take in a member that is not there yet: as a learner, or as a voter or a witness that counts at once.

    Of a name that is expected, but has not come yet (incarnation 0), this binds the incarnation and the address.
    """

    name: str
    address: str
    incarnation: int
    """0 while the new member has no data directory yet."""
    learner: bool
    witness: bool = False
    """A voter without a state machine, for life; never a learner."""


@record
class PromoteMember:
    """Let a learner vote."""

    id: int


@record
class DemoteMember:
    """Make a voter a learner."""

    id: int


@record
class RemoveMember:
    """Take a member out, for ever."""

    id: int


@record
class UpdateMember:
    """Say something else of a member; None leaves as it is."""

    id: int
    name: str | None = None
    address: str | None = None
    priority: int | None = None


@record
class ReplaceMember:
    """Take a member out and another one in, in one step: what comes back with another disk is another member."""

    id: int
    """Who goes."""
    name: str
    address: str
    incarnation: int


MemberChange = AddMember | PromoteMember | DemoteMember | RemoveMember | UpdateMember | ReplaceMember


@record
class ChangeMembers:
    """Change who the members are: all of it or nothing."""

    changes: list[MemberChange]
    transition: Transition = Transition.AUTO
    force: bool = False
    """Whether the leader is to propose it even if too few would be left to decide anything."""


@record
class LeaveJoint:
    """Leave the joint configuration that an explicit transition entered."""


MembersCommand = ChangeMembers | LeaveJoint
"""A command on the members: its entry is of kind MEMBERSHIP, and it never stands in a transaction."""


@record
class MembersResult:
    """What a command on the members came to: who they are after it."""

    cluster_id: int
    members: list[MemberInfo]
    """By id."""
    membership: Membership
    added: list[int] = field(default_factory=list)
    """The ids of those that this command took in, or found there already; in its order."""
    leader: int = 0
    """Who leads, in an answer to `MembersCall`; what is logged does not know."""


@record
class Envelope:
    """A command with the session that makes its retries exactly-once (thesis §6.3)."""

    session: int
    """The session's id; 0 for a command that needs none."""
    sequence: int
    """Counts up by one per command of the session; a retry keeps it."""
    acked_below: int
    """The session's owner has every result below this sequence: they may be forgotten."""
    command: LoggedCommand | MembersCommand | RulesCommand | Operate


@record
class RegisterSession:
    """Open a session; see `sessions.session_id_of`."""

    nonce: int
    """Random, of 62 bits: makes the session's id, and tells whoever waits for it that it is this one."""


@record
class Decided:
    """A command that a leader makes by itself; it is applied only in an entry of the term in which it was decided.

    1. A leader sees that something is due, proposes that, and is deposed before it has a quorum.
    2. What it saw is no longer its own to judge: the next leader has answered others since. Were the command passed on
       to that one, like a client's, it would be done all the same, on the word of a leader that is none.
    3. So it is never forwarded, and it does nothing in an entry of another term. It needs no session: whoever decided
       it proposes it once.
    """

    term: int
    number: int
    """Counts the decisions of one leader, which knows by it what its own have come to."""
    command: DecidedCommand


DecidedCommand = Compact | RulesCommand | LeaseUpkeep
"""What a leader may decide by itself."""


@record
class RefuseChange:
    """The leader refuses a change of the members for what it alone can know: who answers, and how far they are.

    1. The leader tells the proposer that it refuses. Its answer overtakes a copy of the command that is still under
       way; when that arrives, nothing speaks against it any more, and what was "not applied" is.
    2. Or the command stands in the leader's log already, from the leader before, and is about to be committed.
    3. So a refusal is an entry like any other: whichever of the two stands first is what the command came to.
    """

    session: int
    sequence: int
    """Of the command that is refused."""
    acked_below: int
    fingerprint: int
    """Of the bytes that are refused (`sessions.fingerprint_of`)."""
    name: str
    """The class of the error, with its `message`."""
    message: str


@record
class StampedChange:
    """A leader vouches for a change of the members: it has come to nothing yet, and this is its turn.

    A command may stand in the log twice, or behind its own refusal. Sessions know, and a witness has none: it would add
    a member that everybody else refused, and count by another configuration from there on.

    1. A leader takes up a change when every earlier one in its log is applied, and every refusal. At this moment its
       sessions say whether the command is new, once and for all: it puts the stamp on.
    2. Whoever applies it makes the change if ``after`` is still the last one, and asks its sessions for the answer.
    3. A command without a stamp changes nothing. It is answered, if it has come to something.
    """

    after: int
    """The index of the change that was made last (`Roster.last_change`)."""
    change: bytes
    """The encoded `Envelope` of a `MembersCommand`, as its proposer made it."""


@record
class Genesis:
    """Entry 1: fixes the cluster's id and its first members. The same bytes on every one of them."""

    cluster_id: int
    members: list[MemberInfo]
    witnesses: list[int] = field(default_factory=list)
    """Those of the members that keep no state, by id."""


@record
class Recover:
    """A quorum was lost for good: from here on this is another cluster, and one member is all of it.

    Proposed by nobody: it is written to the log of a member that does not run (`node.recovery`).
    """

    cluster_id: int
    """Random, so that nobody of the cluster before takes part in this one."""
    member: MemberInfo
    """The survivor: its id and as a rule its name are what they were, its incarnation is new."""


Logged = Envelope | Decided | RegisterSession | RefuseChange | StampedChange | Genesis | Recover
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
    feature_level: int = FEATURE_LEVEL
    witness: bool = False
    """Whether it runs as a witness: at a first start the others learn it from here."""
    machines: str = ""
    """Its state machines and the newest versions of their operations: ``name=version``, with commas between."""
    start_term: int = 0
    """The term in which this life of the sender began, as its disk had it."""
    start_index: int = 0
    """Where its log ended when this life began."""
    life: int = 0
    """Drawn at random for this life: two of one boot count are lives of two copies of a directory."""

    @property
    def start(self) -> tuple[int, int]:
        """What this life has of what earlier ones promised: `core.leader.LeaderRules.promise_of`."""
        return self.start_term, self.start_index


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
class StateHash:
    """What the sender's state was as of an entry. May be lost: it is told again, and the next one says more."""

    to: int
    sender: int
    index: int
    """A multiple of `replica.CHECK_ENTRIES`."""
    hash: int
    """As `Replica.state_hash`."""


@record
class Pledge:
    """What the sender has for good: no later life of it may lack that. May be lost: it is told again and again."""

    to: int
    sender: int
    term: int
    """Its term, which is on its disk."""
    index: int
    """The last entry that is committed and on its disk."""


@record
class TransferRequest:
    """A follower passes on that leadership is to be handed over. May be lost: whoever asked for it waits, and sees."""

    to: int
    sender: int
    target: int
    """Who is to lead; 0: the best of the others."""


@record
class LeaseAsk:
    """A member passes on to the leader that a lease is to be renewed, or how long it lives still. May be lost."""

    to: int
    sender: int
    context: int
    """Names the question among the sender's own."""
    lease: int
    renew: bool


@record
class LeaseTold:
    """The leader's answer to a `LeaseAsk`. May be lost: whoever asks asks again."""

    to: int
    sender: int
    context: int
    seconds: int
    """What the lease was granted for, when it was renewed; what is left of it otherwise. 0 or -1: there is none."""


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
class VersionsCall:
    """Ask for a page of the versions of a key."""

    id: int
    query: VersionsQuery
    consistency: str
    timeout: float


@record
class DiffCall:
    """Ask for a page of what differs between two revisions."""

    id: int
    query: DiffQuery
    consistency: str
    timeout: float


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
class MembersCall:
    """Ask who the members are, as of now; answered with a `MembersResult`."""

    id: int
    timeout: float


@record
class RulesCall:
    """Ask for settings and alarms, as of now; answered with a `RulesResult`."""

    id: int
    timeout: float


@record
class CompactionCall:
    """Wait until the member has won back the space of what was compacted at `revision`; answered with that revision."""

    id: int
    revision: int
    timeout: float


@record
class HashCall:
    """Ask for the hash of the member's own history; answered with a map of the fields of `store.values.KvHash`."""

    id: int
    revision: int
    """The last revision in it; 0: the member's latest."""


@record
class MachineCall:
    """Ask a state machine; an empty query asks which version all members offer."""

    id: int
    query: MachineQuery
    consistency: str
    timeout: float


@record
class SnapshotCall:
    """Ask for the next part of a saved snapshot; answered with a `SnapshotPart`. The first call pins the state."""

    id: int
    snapshot: int
    """Names the snapshot on this connection: the id of its first call."""
    number: int
    """Counts the parts from 0; each is asked for once the one before is there."""
    consistency: str
    """For the first part: "linearizable", or "local" for what the member has."""
    timeout: float


@record
class CancelCall:
    """The client no longer wants the answer (or the watch, or the snapshot) `id`."""

    id: int


@record
class LeaseCall:
    """Renew a lease, or ask about leases; answered with a `LeaseInfo` or a `LeaseList`."""

    id: int
    query: LeaseQuery
    timeout: float


Call = (
    OpenSessionCall
    | LeaseCall
    | WriteCall
    | ReadCall
    | VersionsCall
    | DiffCall
    | WatchCall
    | StatusCall
    | MembersCall
    | TransferCall
    | RulesCall
    | CompactionCall
    | HashCall
    | MachineCall
    | SnapshotCall
    | CancelCall
)


@record
class Answer:
    """What a call came to: exactly one of `result` and `error`."""

    id: int
    result: (
        LoggedResult | LookResult | LeaseAnswer | MembersResult | RulesResult | Operated | int | dict[str, Any] | None
    ) = None
    error: tuple[str, str, dict[str, Any]] | None = None
    """As `errors.to_wire` gives it."""


@record
class WatchUpdate:
    """The next events of some watches. Each one's first is empty: it is in place, `batch.revision` is its start."""

    ids: list[int]
    batch: WatchBatch


@record
class MembersUpdate:
    """Where the members are reached: sent to every client when it connects, and when it changes.

    A client that was told of one member outlives it.
    """

    addresses: list[str]
    """At most `roster.MEMBERS_MAX`."""


@record
class SnapshotPart:
    """A part of a saved snapshot: what every part says of the whole, and the next chunks."""

    id: int
    cluster_id: int
    meta: SnapshotMeta
    revision: int
    chunks: list[bytes]
    sha256: bytes
    """Of all chunks of all parts, with the last one; empty before."""


Reply = Answer | WatchUpdate | MembersUpdate | SnapshotPart
