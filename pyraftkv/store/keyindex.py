"""The keys in order, and for each the ref of its newest version.

A chunked sorted array: the keys stand in *chunks* of at most `CHUNK_KEYS_MAX`, each a sorted list of bytes beside an
array of refs. A list of the chunks' upper bounds finds a key's chunk by bisection. So an insertion moves a few
kilobytes however many keys there are, no container grows with the store, and the collector finds nothing per key.

Each chunk also knows how many of its keys are *live* (their newest version is no tombstone) and the revision of its
*newest* change. Whoever counts at that revision or later takes the number instead of walking the keys, which makes
paging through a big range linear, not quadratic (etcd's count walks every key of the range for every page).

Most keys stand in tuples, for the collector walks what a list names, 1,000,000 keys in 40 ms, but loses sight of a
tuple of bytes. Nothing can be inserted into a tuple: keys that come to such a chunk, a *settled* one, are *fresh* and
stand beside it, until they are so many that a new tuple is worth its while, or somebody needs all keys in their order
and makes them a list (`loosened`). A hand that goes round while versions are written settles lists (`settle`).

A key whose newest version is a tombstone stays until compaction removes it: its history may still be read.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left

CHUNK_KEYS_MAX = 1024

FRESH_KEYS_MAX = 64
"""Of a chunk. Twice as many would be half as many new tuples, and more to put in order for whoever reads a range."""


class Chunk:
    """Neighbouring keys.

    Invariants: `keys` ascends strictly, `refs[i]` belongs to `keys[i]` and is never 0; `fresh` holds none of `keys`,
    and nothing when they are a list.
    """

    __slots__ = ("fresh", "keys", "live", "newest", "refs")

    def __init__(self, keys: list[bytes] | tuple[bytes, ...], refs: array[int], *, live: int, newest: int) -> None:
        self.keys = keys
        self.refs = refs
        self.fresh: dict[bytes, int] = {}
        """Keys that came since `keys` became a tuple, with their refs."""
        self.live = live
        """How many keys exist now; kept by whoever writes versions."""
        self.newest = newest
        """No version of these keys is of a later revision; kept by whoever writes versions."""

    def __len__(self) -> int:
        """Return how many keys there are. O(1)."""
        return len(self.keys) + len(self.fresh)

    def loosened(self) -> list[bytes]:
        """Return all keys as `keys`, to be changed in place. O(1), and O(keys) when they are settled."""
        keys = self.keys
        if type(keys) is tuple:
            keys = self.keys = list(keys)
            refs = self.refs
            for key, ref in self.fresh.items():
                at = bisect_left(keys, key)
                keys.insert(at, key)
                refs.insert(at, ref)
            self.fresh = {}
        assert type(keys) is list
        return keys

    def settle(self) -> None:
        """Make a tuple of all keys. O(keys), and O(1) when there is nothing to do."""
        if self.fresh or type(self.keys) is list:
            self.keys = tuple(self.loosened())

    def ordered(self) -> list[bytes] | tuple[bytes, ...]:
        """Return all keys as `keys`, to be looked at. O(1), and O(keys) when some are fresh."""
        return self.loosened() if self.fresh else self.keys

    def insert(self, at: int, key: bytes, ref: int) -> bool:
        """Take in a key that is not there, and that belongs at ``at`` in `keys`. O(keys), and mostly O(1) when settled.

        Returns:
            Whether the chunk has to be split.
        """
        keys = self.keys
        if type(keys) is list:
            keys.insert(at, key)
            self.refs.insert(at, ref)
            return len(keys) > CHUNK_KEYS_MAX
        fresh = self.fresh
        fresh[key] = ref
        if len(fresh) >= FRESH_KEYS_MAX:
            self.settle()
        return len(self) > CHUNK_KEYS_MAX


class KeyIndex:
    """Keys to refs.

    Invariants: chunk `i` holds the keys in `(uppers[i-1], uppers[i]]`, so that a bound may outlive its key; there is
    always at least one chunk, and only a lone chunk may be empty.
    """

    __slots__ = ("_hand", "chunks", "uppers")

    def __init__(self) -> None:
        self.chunks = [Chunk([], array("Q"), live=0, newest=0)]
        self.uppers = [b""]
        self._hand = 0
        """The chunk that is settled next."""

    def __len__(self) -> int:
        """Return how many keys are known, those under a tombstone included. O(chunks)."""
        return sum(map(len, self.chunks))

    def settle(self) -> None:
        """Settle the next chunk; not the last one, which ascending keys are added to. O(chunk).

        Nobody may hold the keys of a chunk to insert into them. To be called once per page that was filled: by the
        time the hand comes round to a chunk again, a hundred keys were added to it or, most likely, none.
        """
        if self._hand >= len(self.chunks) - 1:
            self._hand = 0
        if len(self.chunks) > 1:
            self.chunks[self._hand].settle()
            self._hand += 1

    def chunk_for(self, key: bytes) -> Chunk:
        """Return the chunk that holds ``key``, perhaps as a fresh one, or that is to take it in. O(log n)."""
        uppers = self.uppers
        at = bisect_left(uppers, key)
        if at == len(uppers):
            at -= 1
            uppers[at] = key
        return self.chunks[at]

    def find(self, key: bytes) -> int:
        """Return the ref of the key's newest version; 0 if the key is not known. O(log n)."""
        at = bisect_left(self.uppers, key)
        if at == len(self.uppers):
            return 0
        chunk = self.chunks[at]
        keys = chunk.keys
        at = bisect_left(keys, key)
        return chunk.refs[at] if at < len(keys) and keys[at] == key else chunk.fresh.get(key, 0)

    def span(self, key: bytes, end: bytes | None) -> tuple[Chunk, int, int] | None:
        """Return the first chunk with keys in ``[key, end)`` and their positions ``[lo, hi)`` in it. O(log n).

        Call again with the key after ``keys[hi - 1]`` for the rest: that stays right whatever was inserted, split
        or removed in between.

        Args:
            key: The lower bound, inclusive.
            end: The upper bound, exclusive; None: no bound.
        """
        for at in range(bisect_left(self.uppers, key), len(self.chunks)):
            chunk = self.chunks[at]
            keys = chunk.ordered()
            low = bisect_left(keys, key)
            if low < len(keys):
                high = len(keys) if end is None or keys[-1] < end else bisect_left(keys, end, low)
                return (chunk, low, high) if high > low else None
        return None

    def span_back(self, key: bytes, end: bytes | None) -> tuple[Chunk, int, int] | None:
        """Return the last chunk with keys in ``[key, end)`` and their positions ``[lo, hi)`` in it. O(log n).

        Call again with ``keys[lo]`` for the end for the rest: that stays right as for `span`, whose arguments it has.
        """
        last = len(self.chunks) - 1
        for at in range(last if end is None else min(last, bisect_left(self.uppers, end)), -1, -1):
            chunk = self.chunks[at]
            keys = chunk.ordered()
            high = len(keys) if end is None else bisect_left(keys, end)
            if high:
                low = bisect_left(keys, key, 0, high)
                return (chunk, low, high) if high > low else None
        return None

    def extend(self, keys: list[bytes], refs: list[int], *, newest: int) -> None:
        """Append keys that ascend, come after all that are here, and exist. O(n).

        Args:
            keys: One at least.
            refs: Of each its newest version.
            newest: No version of these keys is of a later revision.
        """
        chunk = self.chunks[-1]
        assert chunk.loosened()[-1:] < keys[:1], "they do not come last"
        done = 0
        while done < len(keys):
            room = CHUNK_KEYS_MAX - len(chunk)
            if not room:
                chunk.settle()
                self.uppers[-1] = chunk.keys[-1]  # the bound may have outlived a key that came after these
                room, chunk = CHUNK_KEYS_MAX, Chunk([], array("Q"), live=0, newest=0)
                self.chunks.append(chunk)
                self.uppers.append(b"")
            taken = keys[done : done + room]
            chunk.loosened().extend(taken)
            chunk.refs.extend(refs[done : done + room])
            chunk.live += len(taken)
            chunk.newest = newest
            self.uppers[-1] = taken[-1]
            done += len(taken)

    def split(self, key: bytes) -> tuple[Chunk, Chunk] | None:
        """Split the chunk that holds ``key``, which has just been inserted, into two.

        Keys often arrive in ascending order. A last chunk that grew at its end is left full, or every chunk of such
        a store would stay half empty.

        Returns:
            Both halves, whose `live` the caller must count; None when every key was live, and they are counted.
        """
        at = bisect_left(self.uppers, key)
        chunk = self.chunks[at]
        was_settled = type(chunk.keys) is tuple
        keys, refs = chunk.loosened(), chunk.refs
        ascending = at == len(self.chunks) - 1 and keys[-1] == key
        cut = len(keys) - 1 if ascending else len(keys) // 2
        upper = Chunk(keys[cut:], refs[cut:], live=len(keys) - cut, newest=chunk.newest)
        all_live = chunk.live == len(keys)
        chunk.keys, chunk.refs, chunk.live = keys[:cut], refs[:cut], cut
        if was_settled or ascending:
            chunk.settle()
        if was_settled:
            upper.settle()
        self.chunks.insert(at + 1, upper)
        self.uppers.insert(at, chunk.keys[-1])
        return None if all_live else (chunk, upper)

    def remove(self, key: bytes) -> None:
        """Forget a key whose newest version is a tombstone. O(log n), and O(chunk) to join sparse neighbours."""
        at = bisect_left(self.uppers, key)
        chunk = self.chunks[at]
        keys = chunk.loosened()
        slot = bisect_left(keys, key)
        assert keys[slot] == key, key
        del keys[slot]
        del chunk.refs[slot]
        if len(keys) > CHUNK_KEYS_MAX // 4:
            return
        for low in (at - 1, at):
            if 0 <= low < len(self.chunks) - 1 and self._fits(low):
                self._join(low)
                return

    def _fits(self, low: int) -> bool:
        """Tell whether chunk `low` and the next may be one; joined ones are half full, so as not to split at once."""
        counts = len(self.chunks[low]), len(self.chunks[low + 1])
        return sum(counts) <= CHUNK_KEYS_MAX // 2 or not all(counts)

    def _join(self, low: int) -> None:
        upper = self.chunks.pop(low + 1)
        del self.uppers[low]
        chunk = self.chunks[low]
        chunk.loosened().extend(upper.loosened())
        chunk.refs += upper.refs
        chunk.live += upper.live
        chunk.newest = max(chunk.newest, upper.newest)

    def check(self) -> None:
        """Assert what the class promises. O(n)."""
        assert len(self.chunks) == len(self.uppers) >= 1
        below = b""
        for chunk, upper in zip(self.chunks, self.uppers, strict=True):
            assert len(chunk.keys) == len(chunk.refs)
            assert len(chunk) <= CHUNK_KEYS_MAX
            assert chunk.keys or len(self.chunks) == 1
            assert 0 <= chunk.live <= len(chunk)
            assert not chunk.fresh or type(chunk.keys) is tuple
            rows = dict(zip(chunk.keys, chunk.refs, strict=True))
            assert rows.keys().isdisjoint(chunk.fresh)
            assert list(rows) == sorted(rows)
            for key, ref in sorted((rows | chunk.fresh).items()):
                assert below < key <= upper, (below, key, upper)
                assert ref
                below = key
            below = upper
