"""Every knob of a node, with its unit and its bounds."""

from __future__ import annotations

import math
from dataclasses import fields

from pyraftkv import errors
from pyraftkv._record import record
from pyraftkv.core import PAYLOAD_BYTES_MAX, Config
from pyraftkv.rules import complaint_of_settings
from pyraftkv.settings import Settings


@record
class NodeConfig:
    """How a node keeps time and where its limits are. The defaults are for a local network."""

    tick_seconds: float = 0.01
    """How often the Raft machine is told that time passes."""
    heartbeat_seconds: float = 0.1
    """How often an idle leader says so."""
    election_timeout_seconds: float = 1.0
    """How long a follower waits for its leader: a random time between this and twice this."""
    lease_reads: bool = False
    """Whether reads with ``consistency="lease"`` cost no message while this member leads (see `node.lease`).

    Set it on every member: only who has it set prolongs a leader's lease. `tick_seconds` and the election timeout must
    be the same on all of them then.
    """
    clock_drift_max: float = 0.1
    """How much less time may pass on the clock of a leader than on that of any other member: 0.1 is a tenth."""
    lease_checkpoint_seconds: float = 300.0
    """How often a leader writes down what is left of the leases that were granted for longer than this.

    A new leader gives a lease what was written down last: how often leaders change makes no lease of a day immortal.
    """
    request_timeout_seconds: float = 5.0
    """The deadline of a call that names none."""
    retry_seconds: float = 1.0
    """A write or read round not heard of for this long is sent again (under its session; with a fresh context)."""
    apply_slice_seconds: float = 0.001
    """How long applying may hold the event loop at a time."""
    apply_backlog_bytes_max: int = 16 * 1024 * 1024
    """Committed bytes handed to the applier and not applied yet."""
    snapshot_log_bytes_min: int = 64 * 1024 * 1024
    """A snapshot is taken when the log since the last one exceeds this and half the last one's size."""
    snapshot_entries_max: int = 1_000_000
    """A snapshot is taken, too, when more entries than this follow the last one (etcd, ``--snapshot-count``).

    A start executes them again: of small entries a log of few bytes has many.
    """
    snapshot_chunks_in_flight_max: int = 4
    """Chunks sent to a follower beyond the last one it acknowledged."""
    snapshot_bytes_per_second_max: int = 0
    """What this member streams of snapshots, to all its followers together; 0 for as fast as they are acknowledged."""
    snapshot_stall_seconds: float = 10.0
    """A snapshot transfer without an acknowledgement for this long is given up, and begun again if still needed."""
    repair: bool = True
    """Whether a member whose state turns out to be wrong takes it from the others again; or waits for somebody."""
    close_seconds: float = 2.0
    """How long a graceful close waits for writes under way, and then again for leadership to be handed over."""
    append_bytes_max: int = 1024 * 1024
    """Entries in one message to a follower; at most `PAYLOAD_BYTES_MAX`, which fits a frame."""
    uncommitted_bytes_max: int = 64 * 1024 * 1024
    """What a leader takes on before anything of it commits; more is sent back and offered again later."""
    settings: Settings | None = None
    """What the cluster is set to by its first leader; None for the defaults. Of no effect once somebody has changed
    the settings (`kv.settings`): they are the cluster's, and not a member's. Give it to all of the first members."""
    witness_log_bytes_max: int = 1024 * 1024 * 1024
    """The log of a witness; beyond it, it keeps index and term of entries alone until the other members have them."""
    log_cache_bytes_max: int = 4 * 1024 * 1024
    """Entries kept in memory for followers that are a little behind; older ones are read from the log's files.

    Every one of them is an object that the garbage collector walks, so small ones are at most `CACHE_ENTRIES_MAX`.
    """

    def check(self) -> None:
        """Raise `ConfigurationError` that names the value, or the pair of values, that cannot work."""
        for field in fields(self):
            complaint = _complaint_of(getattr(self, field.name), field.default)
            if complaint:
                raise errors.ConfigurationError(f"{field.name}={getattr(self, field.name)!r}: {complaint}")
        pairs = (
            ("tick_seconds", "heartbeat_seconds", 1),
            ("heartbeat_seconds", "election_timeout_seconds", 3),
        )
        for small, large, factor in pairs:
            low, high = getattr(self, small), getattr(self, large)
            if not 0 < low * factor <= high:
                raise errors.ConfigurationError(
                    f"{large} ({high}) must be at least {factor} times {small} ({low}), and both above 0"
                )
        if not 0 <= self.clock_drift_max < 1:
            raise errors.ConfigurationError(f"clock_drift_max ({self.clock_drift_max}) must be at least 0, and below 1")
        if not self.lease_checkpoint_seconds > 0:
            raise errors.ConfigurationError(f"lease_checkpoint_seconds={self.lease_checkpoint_seconds} must be above 0")
        if self.snapshot_entries_max < 1:
            raise errors.ConfigurationError(f"snapshot_entries_max ({self.snapshot_entries_max}) must be at least 1")
        if self.snapshot_bytes_per_second_max < 0:
            raise errors.ConfigurationError(
                f"snapshot_bytes_per_second_max ({self.snapshot_bytes_per_second_max}) must be at least 0"
            )
        complaint = complaint_of_settings(self.settings) if self.settings is not None else ""
        if complaint:
            raise errors.ConfigurationError(f"settings: {complaint}")
        if self.witness_log_bytes_max <= 0:
            raise errors.ConfigurationError(f"witness_log_bytes_max ({self.witness_log_bytes_max}) must be above 0")
        if not 0 < self.append_bytes_max <= PAYLOAD_BYTES_MAX:
            raise errors.ConfigurationError(
                f"append_bytes_max ({self.append_bytes_max}) must be between 1 and {PAYLOAD_BYTES_MAX}"
            )

    @property
    def heartbeat_ticks(self) -> int:
        return max(1, round(self.heartbeat_seconds / self.tick_seconds))

    @property
    def election_ticks(self) -> int:
        return max(2, round(self.election_timeout_seconds / self.tick_seconds))

    @property
    def lease_seconds(self) -> float:
        """How long after a heartbeat left, by the leader's clock, the promises upon it hold by everybody's.

        A promise is so many ticks of its giver's, of which the first may come at once.
        """
        return (self.election_ticks - 1) * self.tick_seconds * (1 - self.clock_drift_max)


def _complaint_of(value: object, default: object) -> str:
    """Return what is wrong with a value whose default is that: empty if it is of the same kind, and may be."""
    if type(default) is bool and type(value) is not bool:
        return "it is True or False"
    if type(default) is int and (type(value) is not int or value < 0):
        return "it is a whole number, 0 or more"
    if type(default) is float and not (isinstance(value, int | float) and 0 <= value < math.inf):
        return "it is a finite number, 0 or more"
    return ""


def core_config(member_id: int, config: NodeConfig, *, witness: bool) -> Config:
    """Return what a member's machine needs to know of its node's configuration."""
    return Config(
        id=member_id,
        witness=witness,
        heartbeat_ticks=config.heartbeat_ticks,
        election_ticks=config.election_ticks,
        lease_reads=config.lease_reads,
        append_bytes_max=config.append_bytes_max,
        uncommitted_bytes_max=config.uncommitted_bytes_max,
        committed_bytes_max=config.apply_backlog_bytes_max,
        log_cache_bytes_max=config.log_cache_bytes_max,
    )
