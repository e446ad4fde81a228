"""Replicated collections from threads."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from pyraftkv import Cluster, errors, replicated, sync
from pyraftkv.sync import replicated as blocking

KINDS = {name: getattr(replicated, name) for name in blocking.__all__}


@pytest.fixture(scope="module")
def db() -> Iterator[sync.KV]:
    """A store of a cluster that has one of each."""
    machines = {name: getattr(blocking, name).machine for name in KINDS}
    with sync.Cluster.in_memory(1, seed=1, machines=machines) as cluster:
        yield cluster.client()


@pytest.mark.parametrize("name", KINDS)
def test_every_collection_has_a_blocking_twin(name: str) -> None:
    """With every public name of it, and with the same arguments."""
    ours, theirs = getattr(blocking, name), KINDS[name]
    assert ours.machine is theirs.machine
    assert inspect.signature(ours) == inspect.signature(theirs)
    methods = [name for name in dir(theirs) if not name.startswith("_") and name != "machine"]
    for method in methods:
        assert inspect.signature(getattr(ours, method)) == inspect.signature(getattr(theirs, method))


def test_no_collection_is_left_out() -> None:
    """Whoever adds one adds its twin."""
    kinds = {name for name in vars(replicated) if name.startswith("Replicated")} - {"Replicated"}
    assert kinds == set(blocking.__all__)


def test_each_does_what_it_says(db: sync.KV) -> None:
    """As from a coroutine."""
    visits = blocking.ReplicatedCounter(db, "ReplicatedCounter")
    assert (visits.add(), visits.add(5), visits.get()) == (1, 6, 6)
    settings = blocking.ReplicatedDict(db, "ReplicatedDict", consistency="local", timeout=3.0)
    settings.update({"colour": "blue", "sizes": [1, 2]})
    assert (settings.all(), settings.size()) == ({"colour": "blue", "sizes": [1, 2]}, 2)
    row = blocking.ReplicatedList(db, "ReplicatedList")
    row.extend(range(3))
    with pytest.raises(errors.OperationRefused, match="IndexError"):
        row.pop(7)
    assert (row.pop(), row.all()) == (2, [0, 1])
    names = blocking.ReplicatedSet(db.namespace("part/"), "ReplicatedSet")
    assert (names.add("a"), names.add("a"), names.all()) == (True, False, ["a"])
    jobs = blocking.ReplicatedQueue(db, "ReplicatedQueue")
    assert (jobs.put("x", size_max=1), jobs.put("y", size_max=1), jobs.get(), jobs.get()) == (True, False, "x", None)


def test_a_store_of_asyncio_is_told_apart(db: sync.KV) -> None:
    """And a name that no machine can have is none here either."""
    store: Any = Cluster.in_memory(1)
    with pytest.raises(errors.InvalidRequest, match=r"pyraftkv\.replicated"):
        blocking.ReplicatedCounter(store, "ReplicatedCounter")
    with pytest.raises(errors.InvalidRequest, match="letters"):
        blocking.ReplicatedCounter(db, "no machine")
