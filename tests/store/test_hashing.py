"""Damage in memory; what the hash of a history is, `World` compares with the plainest one."""

from __future__ import annotations

from random import Random

import pytest

from pyraftkv.errors import SnapshotCorruption
from pyraftkv.store import Damage, Store
from pyraftkv.store.commands import GrantLease, PutKey
from pyraftkv.store.pages import DEAD, RECORD_BYTES
from tests.store.world import finish, restore


def filled() -> Store:
    """Return a store of several pages."""
    store = Store()
    for i in range(2_000):
        store.apply(PutKey(b"%04d" % i, b"v" * 100))
    return store


def flip(store: Store, key: bytes, *, bit: int = 1) -> None:
    """Flip a bit of the first byte of the key's value, in memory."""
    pages = store._history.pages
    place = pages.locate(store._history.index.find(key))
    assert place is not None
    page, offset = place
    data = bytearray(page.data)
    data[offset + RECORD_BYTES + len(key)] ^= bit
    page.data = data if page is pages.order[-1] else bytes(data)


@pytest.mark.parametrize("key", [b"0000", b"0700", b"1999"])
def test_a_flipped_bit_is_found_in_one_round(key):
    """The patrol finds it by the time it has been round once, wherever it is; and again in the next round."""
    store = filled()
    pages = len(store._history.pages.order)
    assert pages > 3
    assert [store.patrol() for _ in range(pages + 1)] == [None] * (pages + 1)
    flip(store, key)
    for _ in range(2):
        assert [found for found in [store.patrol() for _ in range(pages)] if found] == [Damage(key, 2 + int(key))]
    flip(store, key)
    assert {store.patrol() for _ in range(pages)} == {None}


def test_a_flipped_bit_is_not_hidden_by_the_sum():
    """The hash of the history is of what is there now, that of the state of what was written; a snapshot is refused."""
    store = filled()
    state, history = store.state_hash, finish(store.hash_kv())
    flip(store, b"0700")

    assert store.state_hash == state
    assert finish(store.hash_kv()) != history
    with store.snapshot() as taken, pytest.raises(SnapshotCorruption, match="not what was written"):
        restore(list(taken))


def test_any_byte_of_a_record_counts():
    """Whatever is changed in a record is found, but for its place in the chain of its key's versions."""
    rng = Random(5)
    for _ in range(200):
        store = Store()
        for i in range(3):
            store.apply(GrantLease(i + 1, 60))
            store.apply(PutKey(b"key", b"value %d" % i, lease=i + 1))
        page = store._history.pages.order[0]
        offset = page.offsets[1]
        assert offset != DEAD
        at = rng.choice([*range(32), *range(56, RECORD_BYTES + 10)])
        page.data[offset + at] ^= 1 << rng.randrange(8)
        assert store.patrol() is not None, at


def test_the_patrol_goes_on_while_pages_come_and_go():
    """Pages that are written and won back beneath it do not lead the patrol astray."""
    store = filled()
    for i in range(60):
        assert store.patrol() is None
        for j in range(100):
            store.apply(PutKey(b"%04d" % (i * 37 + j), b"w" * 50))
        if i % 10 == 9:
            store.bump_revision(1)
            store.advance()
            finish(store.compaction(), 1000)
    flip(store, b"0100")
    pages = len(store._history.pages.order)
    assert any(store.patrol() for _ in range(pages))
