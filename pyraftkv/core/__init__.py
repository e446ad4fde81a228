"""The Raft machine: pure, values in, values out. Start at `Raft`, and at `Ready` for what it asks of its driver."""

from pyraftkv.core.base import Stored
from pyraftkv.core.config import Config
from pyraftkv.core.describe import describe_entry, describe_message, describe_ready
from pyraftkv.core.progress import PeerStatus, ProgressState
from pyraftkv.core.raft import Raft, Status

__all__ = [
    "Config",
    "PeerStatus",
    "ProgressState",
    "Raft",
    "Status",
    "Stored",
    "describe_entry",
    "describe_message",
    "describe_ready",
]
