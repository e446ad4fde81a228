"""Every knob of the Raft machine, with its unit and its bound. `Config` validates itself."""

from __future__ import annotations

from pyraftkv._record import record

KIB = 1024
MIB = 1024 * KIB

PAYLOAD_BYTES_MAX = 4 * MIB
"""One payload. A frame can carry it, with room to spare: the log would stand still behind an entry that none could."""


@record
class Config:
    """How one member behaves. Sizes count an entry as its payload and `ENTRY_OVERHEAD_BYTES`.

    Raises:
        ValueError: A value, or a pair of values, cannot work; the message names them.
    """

    id: int
    """This member. Ids start at 1 and are never reused."""
    heartbeat_ticks: int = 10
    """Ticks between two heartbeats of a leader."""
    election_ticks: int = 100
    """Ticks without a leader before an election; each wait is drawn from [election_ticks, 2 * election_ticks)."""
    payload_bytes_max: int = PAYLOAD_BYTES_MAX
    """One payload; whoever proposes checks it, and a leader drops what is forwarded and larger."""
    append_bytes_max: int = MIB
    """Entries in one `AppendRequest`, proposals in one `ForwardedProposals` (one goes in whatever its size)."""
    inflight_messages_max: int = 64
    """`AppendRequest`s with entries sent to one follower and not yet answered."""
    inflight_bytes_max: int = 16 * MIB
    """Their bytes; the message that crosses the bound still goes."""
    uncommitted_bytes_max: int = 64 * MIB
    """Proposals in the leader's log that are not committed; more are handed back as rejected."""
    forward_bytes_max: int = 4 * MIB
    """Proposals that a follower passes to the leader in one `Ready`; more are handed back as rejected."""
    committed_bytes_max: int = 4 * MIB
    """Entries handed out to apply and not yet applied."""
    log_cache_bytes_max: int = 32 * MIB
    """Saved and applied entries kept in memory for followers that are a little behind; `CACHE_ENTRIES_MAX` of them."""
    reads_max: int = 16 * KIB
    """Reads that wait for their leader's confirmation; more are dropped (and tried again by their node)."""
    pre_vote: bool = True
    """Ask whether an election could be won before raising the term (thesis §9.6)."""
    check_quorum: bool = True
    """A leader that hears no quorum for an election timeout steps down, and nobody votes while a leader is heard."""
    witness: bool = False
    """Vote and acknowledge without a state machine, and lead only to hand over (`witness.py`). For life."""
    lease_reads: bool = False
    """Answer heartbeats with the promise to elect nobody else for an election timeout, and keep it in whatever comes
    between; number every heartbeat while leading, so that its driver can tell how old the promises are."""

    def __post_init__(self) -> None:
        for name in ("id", "heartbeat_ticks", *_BOUNDS):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.election_ticks <= self.heartbeat_ticks:
            raise ValueError(
                f"election_ticks ({self.election_ticks}) must exceed heartbeat_ticks ({self.heartbeat_ticks})"
            )
        if self.inflight_bytes_max < self.append_bytes_max:
            raise ValueError(
                f"inflight_bytes_max ({self.inflight_bytes_max}) must be at least "
                f"append_bytes_max ({self.append_bytes_max})"
            )


_BOUNDS = tuple(name for name in Config.__dataclass_fields__ if name.endswith("_max"))
