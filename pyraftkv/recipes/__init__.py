"""Recipes: what people build on a store like this one, written against the `KV` protocol alone.

They run on a node, a client, the client of a cluster in memory, and inside the simulator. Each file is one idea; the
theory of those with holders stands in `contest` and `holding`.
"""

from pyraftkv.recipes.barrier import Barrier, DoubleBarrier
from pyraftkv.recipes.config import ConfigCenter, ConfigChange
from pyraftkv.recipes.counter import Counter
from pyraftkv.recipes.election import Election, Leadership
from pyraftkv.recipes.limiter import RateLimiter
from pyraftkv.recipes.lock import Lock, ReadLock, RWLock, WriteLock
from pyraftkv.recipes.locking_queue import LockingQueue, Taken
from pyraftkv.recipes.partitioner import Partitioner, PartitionState
from pyraftkv.recipes.party import Party, Presence
from pyraftkv.recipes.queue import PriorityQueue, Queue
from pyraftkv.recipes.registry import Instance, NoInstance, Registration, Registry, Service
from pyraftkv.recipes.semaphore import Semaphore
from pyraftkv.recipes.session import Session
from pyraftkv.recipes.tasks import leader_only, singleton

__all__ = [
    "Barrier",
    "ConfigCenter",
    "ConfigChange",
    "Counter",
    "DoubleBarrier",
    "Election",
    "Instance",
    "Leadership",
    "Lock",
    "LockingQueue",
    "NoInstance",
    "PartitionState",
    "Partitioner",
    "Party",
    "Presence",
    "PriorityQueue",
    "Queue",
    "RWLock",
    "RateLimiter",
    "ReadLock",
    "Registration",
    "Registry",
    "Semaphore",
    "Service",
    "Session",
    "Taken",
    "WriteLock",
    "leader_only",
    "singleton",
]
