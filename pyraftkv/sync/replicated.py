"""The replicated collections for threads: those of `pyraftkv.replicated`, each made of a blocking store.

.. code-block:: python

    with sync.open(path, machines={"settings": ReplicatedDict.machine}) as node:
        ReplicatedDict(node, "settings").set("colour", "blue")
"""

from __future__ import annotations

from typing import ClassVar

from pyraftkv import replicated
from pyraftkv.errors import InvalidRequest
from pyraftkv.kv import Consistency
from pyraftkv.machines import Machine
from pyraftkv.sync.bridge import Face, blocking
from pyraftkv.sync.faces import KV

__all__ = ["ReplicatedCounter", "ReplicatedDict", "ReplicatedList", "ReplicatedQueue", "ReplicatedSet"]


class Replicated(Face):
    """A collection of a cluster (see `pyraftkv.replicated.Replicated`)."""

    machine: ClassVar[type[Machine]]
    _of: ClassVar[type[replicated.Replicated]]

    def __init__(
        self, kv: KV, name: str, *, consistency: Consistency = "linearizable", timeout: float | None = None
    ) -> None:
        if not isinstance(kv, KV):
            raise InvalidRequest(f"{kv!r} is no store of pyraftkv.sync: see pyraftkv.replicated for asyncio")
        super().__init__(self._of(kv.target, name, consistency=consistency, timeout=timeout), kv.portal)


class Sized(Replicated):
    """A collection with elements."""

    size = blocking(replicated.Sized.size)
    clear = blocking(replicated.Sized.clear)


class ReplicatedCounter(Replicated):
    """A whole number of 64 bits that begins at 0 (see `pyraftkv.replicated.ReplicatedCounter`)."""

    machine = replicated.CounterMachine
    _of = replicated.ReplicatedCounter

    set = blocking(replicated.ReplicatedCounter.set)
    add = blocking(replicated.ReplicatedCounter.add)
    get = blocking(replicated.ReplicatedCounter.get)


class ReplicatedDict(Sized):
    """Values by key (see `pyraftkv.replicated.ReplicatedDict`)."""

    machine = replicated.DictMachine
    _of = replicated.ReplicatedDict

    set = blocking(replicated.ReplicatedDict.set)
    setdefault = blocking(replicated.ReplicatedDict.setdefault)
    update = blocking(replicated.ReplicatedDict.update)
    pop = blocking(replicated.ReplicatedDict.pop)
    get = blocking(replicated.ReplicatedDict.get)
    contains = blocking(replicated.ReplicatedDict.contains)
    all = blocking(replicated.ReplicatedDict.all)


class ReplicatedList(Sized):
    """Values in an order (see `pyraftkv.replicated.ReplicatedList`)."""

    machine = replicated.ListMachine
    _of = replicated.ReplicatedList

    set = blocking(replicated.ReplicatedList.set)
    append = blocking(replicated.ReplicatedList.append)
    extend = blocking(replicated.ReplicatedList.extend)
    insert = blocking(replicated.ReplicatedList.insert)
    remove = blocking(replicated.ReplicatedList.remove)
    pop = blocking(replicated.ReplicatedList.pop)
    sort = blocking(replicated.ReplicatedList.sort)
    get = blocking(replicated.ReplicatedList.get)
    index = blocking(replicated.ReplicatedList.index)
    count = blocking(replicated.ReplicatedList.count)
    all = blocking(replicated.ReplicatedList.all)


class ReplicatedSet(Sized):
    """Scalars, each once, in the order in which they came (see `pyraftkv.replicated.ReplicatedSet`)."""

    machine = replicated.SetMachine
    _of = replicated.ReplicatedSet

    add = blocking(replicated.ReplicatedSet.add)
    update = blocking(replicated.ReplicatedSet.update)
    discard = blocking(replicated.ReplicatedSet.discard)
    remove = blocking(replicated.ReplicatedSet.remove)
    pop = blocking(replicated.ReplicatedSet.pop)
    contains = blocking(replicated.ReplicatedSet.contains)
    all = blocking(replicated.ReplicatedSet.all)


class ReplicatedQueue(Sized):
    """Values, first in, first out (see `pyraftkv.replicated.ReplicatedQueue`)."""

    machine = replicated.QueueMachine
    _of = replicated.ReplicatedQueue

    put = blocking(replicated.ReplicatedQueue.put)
    get = blocking(replicated.ReplicatedQueue.get)
