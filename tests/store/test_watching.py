"""What checks every watch in the random tests: each of its rules is shown to tell a broken watch from a right one."""

from __future__ import annotations

import pytest

from pyraftkv.store.values import Event, EventType, KeyValue, WatchBatch
from tests.store.watching import WatchRules


def put(key: str, revision: int, create: int = 0, version: int = 0, before: KeyValue | None = None) -> Event:
    """Return a put; of a key that it creates, unless told otherwise."""
    kv = KeyValue(key.encode(), b"v", create or revision, revision, version or 1)
    return Event(EventType.PUT, kv, before)


def delete(key: str, revision: int, value: bytes = b"") -> Event:
    """Return a deletion."""
    return Event(EventType.DELETE, KeyValue(key.encode(), value, 0, revision, 0))


def old(key: str, revision: int, create: int = 0) -> KeyValue:
    """Return what stood there before."""
    return KeyValue(key.encode(), b"v", create or revision, revision, 1)


A_TO_C = {"key": b"a", "end": b"c"}

GOOD = {
    "nothing yet": (A_TO_C, [([], 3), ([], 3)]),
    "events and bookmarks": (A_TO_C, [([put("a", 2), put("b", 2)], 3), ([], 5), ([delete("a", 6)], 6)]),
    "what was before": (A_TO_C | {"prev_kv": True}, [([put("a", 4, 2, 2, old("a", 2)), delete("b", 5)], 5)]),
    "created again": (A_TO_C | {"prev_kv": True}, [([delete("a", 4), put("a", 5)], 5)]),
    "no deletions": (A_TO_C | {"no_delete": True}, [([put("a", 4)], 5)]),
}

BAD = {
    "filter: a key of another range": (A_TO_C, [([put("c", 2)], 2)]),
    "filter: a put that was left out": (A_TO_C | {"no_put": True}, [([put("a", 2)], 2)]),
    "filter: a deletion that was left out": (A_TO_C | {"no_delete": True}, [([delete("a", 2)], 2)]),
    "ordered: an older one later": (A_TO_C, [([put("a", 3), put("b", 2)], 3)]),
    "ordered: an older batch later": (A_TO_C, [([put("a", 3)], 3), ([put("b", 2)], 3)]),
    "unique: a revision again": (A_TO_C, [([put("a", 3)], 3), ([put("a", 3)], 3)]),
    "atomic: a revision in two batches": (A_TO_C, [([put("a", 3)], 3), ([put("b", 3)], 4)]),
    "bookmarkable: beyond its batch": (A_TO_C, [([put("a", 3)], 2)]),
    "bookmarkable: before a bookmark": (A_TO_C, [([], 5), ([put("a", 4)], 6)]),
    "bookmarkable: a bookmark that goes back": (A_TO_C, [([], 5), ([], 4)]),
    "previous value: not asked for": (A_TO_C, [([put("a", 4, 2, 2, old("a", 2))], 4)]),
    "previous value: of another key": (A_TO_C | {"prev_kv": True}, [([put("a", 4, 2, 2, old("b", 2))], 4)]),
    "previous value: of no earlier revision": (A_TO_C | {"prev_kv": True}, [([put("a", 4, 4, 2, old("a", 4))], 4)]),
    "previous value: of another life": (A_TO_C | {"prev_kv": True}, [([put("a", 4, 2, 2, old("a", 3))], 4)]),
    "is-create: begins with another version": (A_TO_C, [([put("a", 4, 2, 1)], 4)]),
    "is-create: created later": (A_TO_C, [([put("a", 4, 5, 2)], 4)]),
    "is-create: a deletion leaves something": (A_TO_C, [([delete("a", 4, b"v")], 4)]),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_a_watch_may_hand_out(name):
    """Whatever is right is taken."""
    watched, batches = GOOD[name]
    rules = WatchRules(**watched)
    for events, revision in batches:
        rules.check(WatchBatch(events, revision))


@pytest.mark.parametrize("name", BAD)
def test_what_a_watch_may_not_hand_out(name):
    """The last batch of each breaks one rule; those before it are right."""
    watched, batches = BAD[name]
    rules = WatchRules(**watched)
    for events, revision in batches[:-1]:
        rules.check(WatchBatch(events, revision))
    events, revision = batches[-1]
    with pytest.raises(AssertionError):
        rules.check(WatchBatch(events, revision))
