"""Which lane a message takes. Lanes are separate streams, so that what is small and urgent never waits for bulk.

A heartbeat that stands behind 8 MiB of entries arrives after the election it should have prevented (etcd keeps a
stream and a pipeline apart for the same reason).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from pyraftkv.codec import PeerMessage
from pyraftkv.core.messages import (
    AppendRequest,
    AppendResponse,
    CommitNotice,
    ForwardedMembership,
    ForwardedProposals,
    Heartbeat,
    HeartbeatResponse,
    InstallSnapshot,
    ReadIndexRequest,
    ReadIndexResponse,
    TimeoutNow,
    VoteRequest,
    VoteResponse,
)
from pyraftkv.protocol import (
    GenesisOffer,
    LeaseAsk,
    LeaseTold,
    Pledge,
    SnapshotAck,
    SnapshotChunk,
    StateHash,
    TransferRequest,
)


class Lane(IntEnum):
    """The three streams to a peer."""

    CONTROL = 0
    """Votes, heartbeats, read rounds, leader transfer, genesis: small and urgent."""
    APPENDS = 1
    """Entries, their answers and forwarded proposals."""
    BULK = 2
    """Snapshots."""


LANE_OF: Final[dict[type[PeerMessage], Lane]] = {
    VoteRequest: Lane.CONTROL,
    VoteResponse: Lane.CONTROL,
    Heartbeat: Lane.CONTROL,
    HeartbeatResponse: Lane.CONTROL,
    ReadIndexRequest: Lane.CONTROL,
    ReadIndexResponse: Lane.CONTROL,
    TimeoutNow: Lane.CONTROL,
    CommitNotice: Lane.CONTROL,
    GenesisOffer: Lane.CONTROL,
    TransferRequest: Lane.CONTROL,
    LeaseAsk: Lane.CONTROL,
    LeaseTold: Lane.CONTROL,
    StateHash: Lane.CONTROL,
    Pledge: Lane.CONTROL,
    AppendRequest: Lane.APPENDS,
    AppendResponse: Lane.APPENDS,
    ForwardedProposals: Lane.APPENDS,
    ForwardedMembership: Lane.APPENDS,
    InstallSnapshot: Lane.BULK,
    SnapshotChunk: Lane.BULK,
    SnapshotAck: Lane.BULK,
}
