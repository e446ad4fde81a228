"""The MVCC key-value machine: etcd's data model. Pure, and ignorant of Raft."""

from pyraftkv.store.hashing import Damage
from pyraftkv.store.machine import Restorer, Store
from pyraftkv.store.snapshot import Snapshot
from pyraftkv.store.validate import Limits
from pyraftkv.store.watch import Watcher
from pyraftkv.store.work import Work

__all__ = ["Damage", "Limits", "Restorer", "Snapshot", "Store", "Watcher", "Work"]
