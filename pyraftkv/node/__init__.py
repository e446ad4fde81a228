"""A member of the cluster: where core, replica, log and transport meet."""

from pyraftkv.node.config import NodeConfig
from pyraftkv.node.events import (
    AlarmCleared,
    AlarmRaised,
    EventsDropped,
    HandoverBegun,
    MemberQuarantined,
    MemberRepaired,
    NodeEvent,
    NodeStopped,
    PeerConnected,
    PeerLost,
    RoleChanged,
    SnapshotInstalled,
    SnapshotWritten,
)
from pyraftkv.node.node import Node

__all__ = [
    "AlarmCleared",
    "AlarmRaised",
    "EventsDropped",
    "HandoverBegun",
    "MemberQuarantined",
    "MemberRepaired",
    "Node",
    "NodeConfig",
    "NodeEvent",
    "NodeStopped",
    "PeerConnected",
    "PeerLost",
    "RoleChanged",
    "SnapshotInstalled",
    "SnapshotWritten",
]
