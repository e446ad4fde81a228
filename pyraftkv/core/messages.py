"""One record per message between members. Every one starts with `to`, `sender` and `term`.

The names are the Raft paper's RPCs as nouns. `term` is the sender's current term, except in a pre-vote
request (the term it would campaign in) and the answer that grants it (the same term), as in thesis §9.6.
"""

from __future__ import annotations

from pyraftkv._record import record
from pyraftkv.core.types import Entry, SnapshotMeta


@record
class VoteRequest:
    """RequestVote (Raft §5.2), or its rehearsal when `pre` is set (thesis §9.6)."""

    to: int
    sender: int
    term: int
    last_index: int
    last_term: int
    pre: bool
    by_transfer: bool
    """Set when the leader asked for this election, so that CheckQuorum's lease does not refuse it (thesis §3.10)."""


@record
class VoteResponse:
    """The answer to a `VoteRequest`; leaves only after term and vote are saved."""

    to: int
    sender: int
    term: int
    pre: bool
    granted: bool


@record
class AppendRequest:
    """AppendEntries with entries, or an empty one that probes or carries a commit index (Raft §5.3)."""

    to: int
    sender: int
    term: int
    prev_index: int
    prev_term: int
    entries: list[Entry]
    commit: int


@record
class AppendResponse:
    """The answer to an `AppendRequest`; an accepting one leaves only after the entries are saved."""

    to: int
    sender: int
    term: int
    index: int
    """Accepted: the last index known to match. Rejected: the `prev_index` that did not."""
    rejected: bool
    hint_index: int
    """When rejected: the follower's guess of the largest index that can match."""
    hint_term: int
    """When rejected: the follower's term at `hint_index`; the leader skips the terms between."""
    hollow_index: int = 0
    """The last index whose payload its sender, a witness, may not have; 0 if it has them all (`witness.py`)."""


@record
class Heartbeat:
    """An idle leader's sign of life. `commit` never exceeds what `to` is known to have matched."""

    to: int
    sender: int
    term: int
    commit: int
    context: int
    """The latest ReadIndex round under way, or 0 (thesis §6.4)."""
    floor: int = 0
    """What a witness need not keep: up to here every data voter has everything (`witness.py`)."""


@record
class HeartbeatResponse:
    to: int
    sender: int
    term: int
    context: int
    promised_ticks: int = 0
    """For how many ticks of its clock the sender elects nobody else; 0: it promises nothing (see `node.lease`)."""


@record
class InstallSnapshot:
    """Names the snapshot a follower needs; its bytes travel beside, on the bulk lane (Raft §7).

    A leader's node streams the data and hands this message to the transport's bulk lane last; a follower's node
    steps it into the core only when every byte is there and verified.
    """

    to: int
    sender: int
    term: int
    snapshot: SnapshotMeta


@record
class ReadIndexRequest:
    """A follower asks the leader for a read index (thesis §6.4)."""

    to: int
    sender: int
    term: int
    context: int


@record
class ReadIndexResponse:
    to: int
    sender: int
    term: int
    context: int
    index: int


@record
class ForwardedProposals:
    """Payloads that a follower passes to the leader unchanged. May be lost: the proposer retries under its session."""

    to: int
    sender: int
    term: int
    payloads: list[bytes]


@record
class ForwardedMembership:
    """A change of the membership that a follower passes to the leader. May be lost, like `ForwardedProposals`."""

    to: int
    sender: int
    term: int
    payload: bytes
    leave: bool
    """Whether it leaves a joint configuration."""


@record
class TimeoutNow:
    """Leader transfer: campaign at once, without a pre-vote (thesis §3.10)."""

    to: int
    sender: int
    term: int


@record
class CommitNotice:
    """An entry that is committed. Needs no answer, and is right in any term.

    A leader says so that its commit index moved (see `leader.py`), and either end of a vote what it knows of the last
    change of the membership (see `election.py`).
    """

    to: int
    sender: int
    term: int
    index: int
    """Where it stands: at or past that change."""
    index_term: int
    """Its term: whoever has such an entry there has committed everything up to it."""


Message = (
    VoteRequest
    | VoteResponse
    | AppendRequest
    | AppendResponse
    | Heartbeat
    | HeartbeatResponse
    | InstallSnapshot
    | ReadIndexRequest
    | ReadIndexResponse
    | ForwardedProposals
    | ForwardedMembership
    | TimeoutNow
    | CommitNotice
)
