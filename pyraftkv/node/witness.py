"""What a node does for a witness: as one, and as the leader of one (`core.witness` has the theory).

A witness tells its replica of the floor, so that it takes its snapshots there, and its machine whether there is room
for payloads. A leader says aloud when what it acknowledges may stand on one disk alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from pyraftkv import errors
from pyraftkv.core import HOLLOW, KeepPayloads, Membership, Raft
from pyraftkv.core.membership import DATA_VOTERS_MIN, WITNESSES_MAX
from pyraftkv.log.base import Recovered, Storage
from pyraftkv.machines import Machines
from pyraftkv.node.config import NodeConfig
from pyraftkv.node.events import AlarmCleared, AlarmRaised, NodeEvent
from pyraftkv.replica import Replica
from pyraftkv.witness import WitnessReplica

logger = logging.getLogger("pyraftkv.node")

SINGLE_COPY = "SINGLE_COPY"
"""The alarm of a leader whose witness keeps no payloads, while the other data voter is behind."""

WITNESS_LOG_BYTES = 1 << 20
"""A witness takes its snapshot, a kilobyte, when its log since the last one exceeds this: others wait for much more."""


class WitnessDuty:
    """What a witness looks after, ten times a second.

    Args:
        raft: Its machine.
        replica: Returns its replica as of now.
        storage: Where its log grows.
        bytes_max: How long that may get before payloads are left out.
        feed: Takes an input for the machine.
    """

    def __init__(
        self,
        raft: Raft,
        *,
        replica: Callable[[], Replica],
        storage: Storage,
        bytes_max: int,
        feed: Callable[[KeepPayloads], object],
    ) -> None:
        self._raft = raft
        self._replica = replica
        self._storage = storage
        self._bytes_max = bytes_max
        self._feed = feed
        self._has_room = True

    def tend(self) -> None:
        """Learn from the machine what is needed, and tell it whether there is room: again when half of it is free."""
        replica = self._replica()
        assert isinstance(replica, WitnessReplica), "a witness has no other"
        replica.floor, replica.lost_index = self._raft.floor, self._raft.lost_index
        has_room = self._storage.log_bytes <= (self._bytes_max if self._has_room else self._bytes_max // 2)
        if has_room is not self._has_room:
            self._has_room = has_room
            logger.warning("payloads are %s, the log has %d bytes", _KEPT[has_room], self._storage.log_bytes)
            self._feed(KeepPayloads(has_room))


_KEPT = {True: "kept again", False: "left out"}


class SingleCopyWatch:
    """Tells when this leader begins, and ceases, to acknowledge what may stand on one disk alone."""

    def __init__(self, raft: Raft, *, emit: Callable[[NodeEvent], None]) -> None:
        self._raft = raft
        self._emit = emit
        self._was_raised = False

    @property
    def alarms(self) -> list[str]:
        """What is wrong, as of now."""
        return [SINGLE_COPY] if self._raft.is_single_copy else []

    def tend(self) -> None:
        """Tell what has changed. Call every 100 ms or so."""
        is_raised = self._raft.is_single_copy
        if is_raised is self._was_raised:
            return
        self._was_raised = is_raised
        if is_raised:
            logger.warning("%s: what is written now stands on this member's disk alone", SINGLE_COPY)
            self._emit(AlarmRaised(SINGLE_COPY))
        else:
            logger.info("%s is over, or this member leads no more", SINGLE_COPY)
            self._emit(AlarmCleared(SINGLE_COPY))


def of_witness(config: NodeConfig) -> NodeConfig:
    """Return the settings by which a witness takes its snapshots."""
    size_bytes = min(config.snapshot_log_bytes_min, WITNESS_LOG_BYTES, config.witness_log_bytes_max // 4)
    return replace(config, snapshot_log_bytes_min=size_bytes)


def replica_for(recovered: Recovered, *, witness: bool, machines: Machines | None = None) -> Replica:
    """Return an empty replica of the kind that a directory is for.

    Raises: `ConfigurationError` if it is for the other kind, as far as that is seen without reading more of it.
    """
    own = recovered.identity.member_id
    if recovered.snapshot is not None:
        refuse_other_kind(own, recovered.snapshot.membership, witness=witness)
    if not witness and any(entry.kind is HOLLOW for entry in recovered.entries):
        raise _other_kind(witness=False)
    return WitnessReplica() if witness else Replica(machines)


def refuse_other_kind(own: int, membership: Membership, *, witness: bool) -> None:
    """Raise `ConfigurationError` if a member is what it is not told to be: a witness, or none, is so for life."""
    if own in membership.members and (own in membership.witnesses) is not witness:
        raise _other_kind(witness=witness)


def _other_kind(*, witness: bool) -> errors.ConfigurationError:
    if witness:
        return errors.ConfigurationError("the cluster knows this member as no witness: start it without witness=True")
    return errors.ConfigurationError("the cluster knows this member as its witness: start it with witness=True")


def complaint_of_first(witnesses: list[int], members: int) -> str:
    """Return what is wrong with the first members of a cluster: empty if nothing is."""
    if len(witnesses) > WITNESSES_MAX:
        return f"{len(witnesses)} of the first members are witnesses, at most {WITNESSES_MAX} may be"
    if witnesses and members - len(witnesses) < DATA_VOTERS_MIN:
        return f"a witness needs {DATA_VOTERS_MIN} members with the data beside it"
    return ""
