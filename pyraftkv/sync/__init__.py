"""The blocking face: the names of `pyraftkv` for programs of threads, each with the same arguments and errors.

What is opened runs on an event loop in a thread of its own, so a program that is busy with something else loses no
leadership. Any thread may call; a coroutine may not (`CalledInLoop`), nor a forked child (`Forked`).
"""

from __future__ import annotations

from pyraftkv.sync.bridge import Iteration
from pyraftkv.sync.faces import (
    KV,
    Alarms,
    Client,
    Cluster,
    ClusterSettings,
    Lease,
    Leases,
    Machine,
    Members,
    Node,
    OpenNode,
    Readable,
    Stm,
    Txn,
    View,
    Watch,
)
from pyraftkv.sync.opening import connect, open  # noqa: A004  (pyraftkv.sync.open, as pyraftkv.open)

__all__ = [
    "KV",
    "Alarms",
    "Client",
    "Cluster",
    "ClusterSettings",
    "Iteration",
    "Lease",
    "Leases",
    "Machine",
    "Members",
    "Node",
    "OpenNode",
    "Readable",
    "Stm",
    "Txn",
    "View",
    "Watch",
    "connect",
    "open",
]
