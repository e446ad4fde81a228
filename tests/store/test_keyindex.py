from __future__ import annotations

from bisect import bisect_left
from random import Random

import pytest

from pyraftkv.store import keyindex
from pyraftkv.store.keyindex import KeyIndex


def insert(index: KeyIndex, key: bytes, ref: int) -> None:
    """Insert a key as `History.put` does."""
    chunk = index.chunk_for(key)
    at = bisect_left(chunk.keys, key)
    chunk.live += 1
    if chunk.insert(at, key, ref):
        assert index.split(key) is None


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_sorted_list(seed):
    """Insertions, removals, look-ups and spans agree with a sorted list of the keys."""
    rng = Random(seed)
    index = KeyIndex()
    twin: dict[bytes, int] = {}
    for step in range(1, 12_000):
        key = b"%d" % rng.randrange(6_000)
        removing = step % 6_000 > 3_000
        if key not in twin and not removing:
            insert(index, key, step)
            twin[key] = step
        elif key in twin and removing:
            index.remove(key)
            for chunk in index.chunks:
                chunk.live = len(chunk)
            del twin[key]
        if step % 7 == 0:
            index.settle()
        assert index.find(key) == twin.get(key, 0)
        if step % 1_000 == 0:
            index.check()
            assert len(index) == len(twin)
            low, high = sorted([b"%d" % rng.randrange(6_000), b"%d" % rng.randrange(6_000)])
            for end in (high, None):
                wanted = sorted(k for k in twin if low <= k and (end is None or k < end))
                assert walk(index, low, end) == wanted
                assert walk_back(index, low, end) == wanted[::-1]


def walk(index: KeyIndex, low: bytes, end: bytes | None) -> list[bytes]:
    """Return the keys in the range, span after span."""
    keys: list[bytes] = []
    while found := index.span(low, end):
        chunk, start, stop = found
        keys += chunk.keys[start:stop]
        low = keys[-1] + b"\0"
    return keys


def walk_back(index: KeyIndex, low: bytes, end: bytes | None) -> list[bytes]:
    """Return the keys in the range, span before span."""
    keys: list[bytes] = []
    while found := index.span_back(low, end):
        chunk, start, stop = found
        keys += chunk.keys[start:stop][::-1]
        end = keys[-1]
    return keys


def test_ascending_keys_leave_full_chunks():
    """Keys that come in order do not leave every chunk half empty."""
    index = KeyIndex()
    for i in range(10_000):
        insert(index, b"%09d" % i, i + 1)

    index.check()
    assert len(index.chunks) == 10
    assert [type(chunk.keys) for chunk in index.chunks] == [tuple] * 9 + [list], "nobody will add to what is full"


def test_many_keys_that_come_last_are_appended_at_once():
    """They fill the last chunk, then chunks of their own; a bound that outlived its key does not hide them."""
    index = KeyIndex()
    count = keyindex.CHUNK_KEYS_MAX
    index.extend([b"a%04d" % i for i in range(count - 1)], list(range(1, count)), newest=5)
    index.extend([b"b", b"z"], [9_998, 9_999], newest=6)
    index.check()
    assert [len(chunk.keys) for chunk in index.chunks] == [count, 1]
    index.remove(b"z")
    for chunk in index.chunks:
        chunk.live = len(chunk.keys)
    index.extend([b"c%04d" % i for i in range(2 * count)], list(range(10_000, 10_000 + 2 * count)), newest=7)
    index.check()
    assert (index.find(b"b"), index.find(b"c0000"), index.find(b"c2047")) == (9_998, 10_000, 12_047)
    assert [chunk.newest for chunk in index.chunks] == [6, 7, 7]
    with pytest.raises(AssertionError, match="come last"):
        index.extend([b"c1"], [1], newest=8)


def test_emptied_chunks_are_joined():
    """Removing nearly every key leaves few chunks, and removing all of them leaves one."""
    index = KeyIndex()
    keys = [b"%09d" % i for i in range(20_000)]
    for i, key in enumerate(keys):
        insert(index, key, i + 1)
    for key in keys[1:]:
        index.remove(key)
    for chunk in index.chunks:
        chunk.live = len(chunk.keys)
    index.check()
    assert len(index.chunks) == 1

    index.remove(keys[0])
    index.chunks[0].live = 0
    index.check()
    assert index.find(keys[0]) == 0
    assert index.span(b"\0", None) is None
    assert index.span_back(b"\0", None) is None


def test_the_hand_settles_every_chunk_but_the_last():
    """It goes round; what is inserted into stays settled, two halves if it was full."""
    index = KeyIndex()
    for i in range(5_000):
        insert(index, b"%09d" % i, i + 1)
    for _ in index.chunks:
        index.settle()
    assert [type(chunk.keys) for chunk in index.chunks] == [tuple] * (len(index.chunks) - 1) + [list]
    insert(index, b"%09d-" % 1_500, 9_999)
    assert [len(chunk.keys) for chunk in index.chunks][:3] == [1024, 512, 513]
    assert [type(chunk.keys) for chunk in index.chunks] == [tuple] * (len(index.chunks) - 1) + [list]
    index.check()
    assert index.find(b"%09d-" % 1_500) == 9_999


def test_keys_that_come_to_a_settled_chunk_are_fresh_until_they_are_many() -> None:
    """They are found meanwhile; whoever asks for a range has all in their order, from where on the chunk is a list."""
    index = KeyIndex()
    for i in range(3 * keyindex.CHUNK_KEYS_MAX):
        insert(index, b"%09d" % i, i + 1)
    for _ in range(1_000):
        index.remove(b"%09d" % (keyindex.CHUNK_KEYS_MAX + _))
    for chunk in index.chunks:
        chunk.live = len(chunk)
        index.settle()
    fresh = [b"%09d-" % i for i in range(keyindex.CHUNK_KEYS_MAX)][: keyindex.FRESH_KEYS_MAX + 5]
    few, many = fresh[:5], fresh[5:]
    for key in (*many, *few):
        insert(index, b"%09d" % keyindex.CHUNK_KEYS_MAX + key, 7)
    (chunk,) = [chunk for chunk in index.chunks if chunk.fresh]
    assert list(chunk.fresh) == [b"%09d" % keyindex.CHUNK_KEYS_MAX + key for key in few]
    assert type(chunk.keys) is tuple
    assert len(chunk) == len(chunk.keys) + 5 == 24 + len(fresh)
    index.check()
    assert [index.find(b"%09d" % keyindex.CHUNK_KEYS_MAX + key) for key in fresh] == [7] * len(fresh)
    assert index.find(b"%09d" % keyindex.CHUNK_KEYS_MAX) == 0
    low = b"%09d" % keyindex.CHUNK_KEYS_MAX
    assert walk(index, low, low + b"~") == [low + key for key in fresh]
    assert (type(chunk.keys), chunk.fresh) == (list, {})
    index.check()


def test_no_container_is_large():
    """With 60,000 keys no list or array has more than some hundreds of entries beyond a chunk."""
    index = KeyIndex()
    keys = [b"%09d" % i for i in range(60_000)]
    Random(3).shuffle(keys)
    for i, key in enumerate(keys):
        insert(index, key, i + 1)

    assert max(len(chunk.keys) for chunk in index.chunks) <= keyindex.CHUNK_KEYS_MAX
    assert len(index.chunks) <= 2 * 60_000 / keyindex.CHUNK_KEYS_MAX + 1
