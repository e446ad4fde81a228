"""Looking back, compared with the plainest history there is, before and after compactions of every kind."""

from __future__ import annotations

from random import Random

import pytest

from pyraftkv.errors import Compacted, FutureRevision, InvalidRequest
from pyraftkv.store import Store, past
from pyraftkv.store.commands import FROM_KEY, Compact, DeleteRange, DiffQuery, PutKey, Transaction, VersionsQuery
from pyraftkv.store.values import Change, DiffResult, Event, VersionsResult
from tests.store import generators
from tests.store.model import Model, in_range
from tests.store.world import finish, outcome


def versions(store: Store, key: bytes, *, page: int, newest_first: bool, low: int = 0, high: int = 0) -> list[Event]:
    """Return versions of a key, read page by page as a caller would."""
    found: list[Event] = []
    while True:
        result = finish(store.look(VersionsQuery(key, low, high, page, newest_first)))
        assert isinstance(result, VersionsResult)
        found += result.events
        if not result.next_revision:
            return found
        low, high = (low, result.next_revision) if newest_first else (result.next_revision, high)


def diff(store: Store, key: bytes, end: bytes, older: int, newer: int, *, page: int) -> list[Change]:
    """Return a difference, read page by page."""
    found: list[Change] = []
    query = DiffQuery(key, end, older, newer, page)
    while True:
        result = finish(store.look(query))
        assert isinstance(result, DiffResult)
        assert len(result.changes) <= page
        found += result.changes
        if not result.next_revision:
            return found
        query = DiffQuery(key, end, older, newer, page, result.next_revision, result.next_sub)


def expected_versions(model: Model, key: bytes, low: int, high: int) -> list[Event]:
    """Return what is kept of a key, oldest first, as far as it was asked for."""
    at = model.compact_revision
    events = [event for event in model.events if event.kv.key == key and max(at, low) <= event.kv.mod_revision <= high]
    oldest = model.states[at].get(key)
    if not low and oldest is not None and oldest.mod_revision < at:
        events.insert(0, next(event for event in model.events if event.kv == oldest))
    return [Event(event.type, event.kv) for event in events]


def random_history(seed: int) -> tuple[Store, Model, Random]:
    """Apply random commands to a store and its twin, some of them compactions, whose space may be won back or not."""
    rng = Random(seed)
    store, model = Store(step_keys_max=rng.choice([1, 3, 512])), Model()
    for _ in range(150):
        command = generators.command(rng) if rng.random() < 0.95 else None
        if command is None:
            command = Compact(rng.randint(max(1, model.revision - 20), model.revision))
        assert (type(outcome(lambda c=command: finish(store.apply(c)))) is type) == (
            type(outcome(model.apply, command)) is type
        ), seed
        work = store.compaction()
        if work is not None and rng.random() < 0.5:
            finish(work)
    return store, model, rng


@pytest.mark.parametrize("seed", range(15))
def test_versions_of_a_random_history(seed: int) -> None:
    """Every version kept is there once, in either direction and in pages of any size, between any two revisions."""
    store, model, rng = random_history(seed)
    assert store.published_revision == model.revision
    for key in generators.KEYS:
        for _ in range(4):
            low = rng.choice([0, rng.randint(max(1, model.compact_revision), model.revision)])
            high = rng.randint(max(1, model.compact_revision, low), model.revision)
            expected = expected_versions(model, key, low, high)
            page = rng.choice([1, 2, 3, 1000])
            assert versions(store, key, page=page, newest_first=False, low=low, high=high) == expected, seed
            backwards = versions(store, key, page=page, newest_first=True, low=low, high=high)
            assert backwards[::-1] == expected, seed


@pytest.mark.parametrize("seed", range(15, 30))
def test_differences_of_a_random_history(seed: int) -> None:
    """A difference holds each key that is not what it was, once, where it was last changed, both values with it."""
    store, model, rng = random_history(seed)
    for _ in range(60):
        older = rng.randint(max(1, model.compact_revision), model.revision)
        newer = rng.randint(older, model.revision)
        key, end = rng.choice([(b"\0", FROM_KEY), (b"a", b"c"), (b"b", b""), (b"b", FROM_KEY)])
        before, after = model.states[older], model.states[newer]
        expected = {
            each: Change(before.get(each), after.get(each))
            for each in before.keys() | after.keys()
            if in_range(each, key, end) and before.get(each) != after.get(each)
        }
        found = diff(store, key, end, older, newer, page=rng.choice([1, 2, 1000]))
        assert {change.key: change for change in found} == expected, seed
        assert len(found) == len(expected), seed
        placed = [change.after.mod_revision for change in found if change.after is not None]
        assert placed == sorted(placed), seed


def test_a_revision_of_many_changes_is_read_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference goes on in the middle of a revision, over pages of the store, looking at no more than it may."""
    monkeypatch.setattr(past, "DIFF_RECORDS_MAX", 150)
    store = Store()
    keys = [b"k%04d" % number for number in range(3000)]
    for key in keys:
        store.apply(PutKey(key, bytes(100)))
    older = store.revision
    finish(store.apply(DeleteRange(b"k", b"l")))
    store.apply(PutKey(keys[7], b"again"))
    found = diff(store, b"\0", FROM_KEY, older, store.revision, page=70)
    assert [change.key for change in found] == [*keys[:7], *keys[8:], keys[7]]
    assert (found[-1].is_create, found[-1].is_delete, found[0].is_delete) == (False, False, True)
    assert diff(store, b"none", b"nonf", 1, store.revision, page=70) == []


def test_answers_are_bounded_in_bytes() -> None:
    """Large values come a few at a time; at least one comes."""
    store = Store()
    for _ in range(6):
        store.apply(PutKey(b"a", bytes(700_000)))
    for number in range(6):
        store.apply(PutKey(b"b%d" % number, bytes(700_000)))
    first = finish(store.look(VersionsQuery(b"a")))
    assert (len(first.events), first.next_revision) == (2, 4)
    assert len(versions(store, b"a", page=1000, newest_first=False)) == 6
    assert len(versions(store, b"a", page=1000, newest_first=True)) == 6
    changes = finish(store.look(DiffQuery(b"b", b"c", 1)))
    assert (len(changes.changes), changes.next_revision > 0) == (2, True)
    assert len(diff(store, b"b", b"c", 1, 0, page=1000)) == 6


def test_a_long_chain_is_read_from_both_ends() -> None:
    """Pages of a key with many versions, oldest first, hold what they should and no version twice."""
    store = Store()
    for number in range(5000):
        store.apply(PutKey(b"a", b"%d" % number))
    found = versions(store, b"a", page=10_000, newest_first=False)
    assert [event.kv.version for event in found] == list(range(1, 5001))
    assert len(finish(store.look(VersionsQuery(b"a", limit=10_000))).events) == past.VERSIONS_MAX


def test_versions_of_one_revision_are_never_parted() -> None:
    """A key that one command deleted and put again is on one page with both, from either end."""
    store = Store()
    store.apply(PutKey(b"a", b"1"))
    nested = Transaction(success=[Transaction(success=[DeleteRange(b"a", FROM_KEY)]), PutKey(b"a", b"2")])
    finish(store.apply(nested))
    store.apply(PutKey(b"a", b"3"))
    revisions = [event.kv.mod_revision for event in versions(store, b"a", page=1, newest_first=False)]
    assert revisions == [2, 3, 3, 4]
    backwards = [event.kv.mod_revision for event in versions(store, b"a", page=1, newest_first=True)]
    assert backwards == [4, 3, 3, 2]


def test_what_cannot_be_looked_at() -> None:
    """Revisions that are gone, are not there yet or do not ascend are refused, as are empty keys and pages."""
    store = Store()
    for number in range(10):
        store.apply(PutKey(b"a", b"%d" % number))
    store.apply(Compact(5))
    look = store.look
    assert outcome(look, VersionsQuery(b"")) is InvalidRequest
    assert outcome(look, VersionsQuery(b"a", limit=0)) is InvalidRequest
    assert outcome(look, VersionsQuery(b"a", min_revision=4)) is Compacted
    assert outcome(look, VersionsQuery(b"a", max_revision=4)) is Compacted
    assert outcome(look, VersionsQuery(b"a", max_revision=12)) is FutureRevision
    assert outcome(look, DiffQuery(b"", FROM_KEY, 6)) is InvalidRequest
    assert outcome(look, DiffQuery(b"a", b"", 8, 7)) is InvalidRequest
    assert outcome(look, DiffQuery(b"a", b"", 0, 7)) is InvalidRequest
    assert outcome(look, DiffQuery(b"a", b"", 4, 7)) is Compacted
    assert outcome(look, DiffQuery(b"a", b"", 6, 12)) is FutureRevision
