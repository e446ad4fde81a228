from __future__ import annotations

from random import Random

import pytest

from pyraftkv.errors import InvalidRequest, NotApplied, RequestTooLarge, to_wire
from pyraftkv.sim.check.model import Model
from pyraftkv.store import Store
from pyraftkv.store.commands import DeleteRange, PutBatch, PutKey, Transaction
from pyraftkv.store.values import EventType
from tests.store import generators


def asked(call, request: object) -> object:
    """Return the result, or the class and data of the refusal."""
    try:
        answer = call(request)
    except NotApplied as error:
        answer = error
    return to_wire(answer)[::2] if isinstance(answer, NotApplied) else answer


@pytest.mark.parametrize("seed", range(20))
def test_it_answers_what_the_store_answers(seed: int, soak: bool) -> None:
    """Commands, queries at any revision and events are the store's own, and everything can be undone."""
    random, store, model = Random(seed), Store(), Model()
    watcher = store.watch(b"\0", b"\0", start_revision=1, prev_kv=True)
    for _ in range(400 if soak else 60):
        command = generators.command(random)
        if isinstance(command, PutBatch):
            continue  # what clients never ask for
        try:
            store.validate(command)
        except (InvalidRequest, RequestTooLarge):
            continue
        expected = asked(store.apply, command)
        model.apply(command)
        model.undo()
        assert asked(model.apply, command) == expected
        query = generators.query(random, random.choice([0, 0, random.randint(1, store.revision + 1)]))
        if query.key:
            assert asked(model.read, query) == asked(store.read, query)
    store.advance()
    shown = []
    while (batch := watcher.take()) is not None:
        shown += batch.events
    assert [event for entry in model.log for event in model.events(entry)] == shown
    while model.log:
        model.undo()
    assert (model.revision, model.kvs, model.keys) == (1, {}, [])


def test_a_key_that_is_deleted_and_put_in_one_transaction_has_nothing_before() -> None:
    """It begins anew, and what was there belongs to the deletion."""
    model = Model()
    model.apply(PutKey(b"k", b"1"))
    model.apply(Transaction([], [DeleteRange(b"a", b"\0"), PutKey(b"k", b"2")], []))
    deleted, put = model.events(model.log[-1])
    assert (deleted.type, put.type) == (EventType.DELETE, EventType.PUT)
    assert deleted.prev_kv is not None
    assert put.prev_kv is None
