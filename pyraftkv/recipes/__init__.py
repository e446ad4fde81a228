"""Recipes: what people build on a store like this one, written against the `KV` protocol alone.

They run on a node, a client, the client of a cluster in memory, and inside the simulator. Each file is one idea; the
theory of those with holders stands in `contest` and `holding`.
"""

from pyraftkv.recipes.barrier import Barrier, DoubleBarrier
from pyraftkv.recipes.election import Election, Leadership
from pyraftkv.recipes.limiter import RateLimiter
from pyraftkv.recipes.lock import Lock, ReadLock, RWLock, WriteLock
from pyraftkv.recipes.semaphore import Semaphore
from pyraftkv.recipes.session import Session
from pyraftkv.recipes.tasks import leader_only, singleton

__all__ = [
    "Barrier",
    "DoubleBarrier",
    "Election",
    "Leadership",
    "Lock",
    "RWLock",
    "RateLimiter",
    "ReadLock",
    "Semaphore",
    "Session",
    "WriteLock",
    "leader_only",
    "singleton",
]
