"""pyraftkv: etcd inside your Python process.

An embeddable, replicated, durable, linearizable key-value store with etcd v3's data model. `open` makes your program
a member of a cluster, `connect` a client of one, and `Cluster.in_memory` a whole cluster inside a test.
"""

import logging

from pyraftkv._version import __version__
from pyraftkv.backup import snapshot_status
from pyraftkv.client import Client
from pyraftkv.cluster import Cluster
from pyraftkv.errors import MaybeApplied, NotApplied, PyraftkvError
from pyraftkv.keys import compare
from pyraftkv.kv import KV, Status, Stm, View
from pyraftkv.latest import LatestWatch
from pyraftkv.node import Node, NodeConfig
from pyraftkv.opening import connect, open, rebuild, recover, restore_snapshot  # noqa: A004  (pyraftkv.open)
from pyraftkv.settings import Alarm, AlarmKind, CompactionMode, Settings
from pyraftkv.store.commands import (
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    PutKey,
    RangeQuery,
    SortOrder,
    SortTarget,
    Transaction,
)
from pyraftkv.store.values import (
    Change,
    CompactResult,
    DeleteResult,
    Event,
    EventType,
    KeyValue,
    LeaseGranted,
    LeaseInfo,
    LeaseRevoked,
    PutResult,
    RangeResult,
    TxnResult,
    WatchBatch,
)
from pyraftkv.transport import TLS
from pyraftkv.typed import Typed

__all__ = [
    "KV",
    "TLS",
    "Alarm",
    "AlarmKind",
    "Change",
    "Client",
    "Cluster",
    "CompactResult",
    "CompactionMode",
    "Compare",
    "CompareResult",
    "CompareTarget",
    "DeleteRange",
    "DeleteResult",
    "Event",
    "EventType",
    "KeyValue",
    "LatestWatch",
    "LeaseGranted",
    "LeaseInfo",
    "LeaseRevoked",
    "MaybeApplied",
    "Node",
    "NodeConfig",
    "NotApplied",
    "PutKey",
    "PutResult",
    "PyraftkvError",
    "RangeQuery",
    "RangeResult",
    "Settings",
    "SortOrder",
    "SortTarget",
    "Status",
    "Stm",
    "Transaction",
    "TxnResult",
    "Typed",
    "View",
    "WatchBatch",
    "__version__",
    "compare",
    "connect",
    "open",
    "rebuild",
    "recover",
    "restore_snapshot",
    "snapshot_status",
]

logging.getLogger("pyraftkv").addHandler(logging.NullHandler())
