"""The keys in order, and for each the ref of its newest version.

A chunked sorted array: the keys stand in *chunks* of at most `CHUNK_KEYS_MAX`, each a sorted list of bytes beside an
array of refs. A list of the chunks' upper bounds finds a key's chunk by bisection. So an insertion moves a few
kilobytes however many keys there are, no container grows with the store, and the collector finds nothing per key.

Each chunk also knows how many of its keys are *live* (their newest version is no tombstone) and the revision of its
*newest* change. Whoever counts at that revision or later takes the number instead of walking the keys, which makes
paging through a big range linear, not quadratic (etcd's count walks every key of the range for every page).

Keys that nobody adds to stand in a tuple, for the collector walks what a list names, 1,000,000 keys in 20 ms, but drops
a tuple of bytes from its sight. Whoever inserts into a chunk makes it a list (`loosened`); a hand that goes round while
versions are written makes it a tuple again (`settle`).

A key whose newest version is a tombstone stays until compaction removes it: its history may still be read.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left

CHUNK_KEYS_MAX = 1024


class Chunk:
    """Neighbouring keys. Invariant: `keys` ascends strictly, `refs[i]` belongs to `keys[i]` and is never 0."""

    __slots__ = ("keys", "live", "newest", "refs")

    def __init__(self, keys: list[bytes], refs: array[int], *, live: int, newest: int) -> None:
        self.keys: list[bytes] | tuple[bytes, ...] = keys
        self.refs = refs
        self.live = live
        """How many keys exist now; kept by whoever writes versions."""
        self.newest = newest
        """No version of these keys is of a later revision; kept by whoever writes versions."""

    def loosened(self) -> list[bytes]:
        """Return `keys` to be changed in place. O(1), and O(keys) when they are settled."""
        keys = self.keys
        if type(keys) is tuple:
            keys = self.keys = list(keys)
        assert type(keys) is list
        return keys


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
        return sum(len(chunk.keys) for chunk in self.chunks)

    def settle(self) -> None:
        """Make the keys of the next chunk a tuple; not the last one's, which ascending keys are added to. O(chunk).

        Nobody may hold the keys of a chunk to insert into them. To be called once per page that was filled: by the
        time the hand comes round to a chunk again, a hundred keys were added to it or, most likely, none.
        """
        if self._hand >= len(self.chunks) - 1:
            self._hand = 0
        if len(self.chunks) > 1:
            chunk = self.chunks[self._hand]
            chunk.keys = tuple(chunk.keys)
            self._hand += 1

    def chunk_for(self, key: bytes) -> Chunk:
        """Return the chunk that holds ``key``, or that is to hold it: the caller inserts it there. O(log n)."""
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
        return chunk.refs[at] if at < len(keys) and keys[at] == key else 0

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
            keys = chunk.keys
            low = bisect_left(keys, key)
            if low < len(keys):
                high = len(keys) if end is None or keys[-1] < end else bisect_left(keys, end, low)
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
            room = CHUNK_KEYS_MAX - len(chunk.keys)
            if not room:
                chunk.keys = tuple(chunk.keys)
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
        keys, refs = chunk.loosened(), chunk.refs
        ascending = at == len(self.chunks) - 1 and keys[-1] == key
        cut = len(keys) - 1 if ascending else len(keys) // 2
        upper = Chunk(keys[cut:], refs[cut:], live=len(keys) - cut, newest=chunk.newest)
        all_live = chunk.live == len(keys)
        chunk.keys, chunk.refs, chunk.live = tuple(keys[:cut]) if ascending else keys[:cut], refs[:cut], cut
        self.chunks.insert(at + 1, upper)
        self.uppers.insert(at, chunk.keys[-1])
        return None if all_live else (chunk, upper)

    def remove(self, key: bytes) -> None:
        """Forget a key whose newest version is a tombstone. O(log n), and O(chunk) to join sparse neighbours."""
        at = bisect_left(self.uppers, key)
        chunk = self.chunks[at]
        slot = bisect_left(chunk.keys, key)
        assert chunk.keys[slot] == key, key
        del chunk.loosened()[slot]
        del chunk.refs[slot]
        if len(chunk.keys) > CHUNK_KEYS_MAX // 4:
            return
        for low in (at - 1, at):
            if 0 <= low < len(self.chunks) - 1 and self._fits(low):
                self._join(low)
                return

    def _fits(self, low: int) -> bool:
        """Tell whether chunk `low` and the next may be one; joined ones are half full, so as not to split at once."""
        counts = len(self.chunks[low].keys), len(self.chunks[low + 1].keys)
        return sum(counts) <= CHUNK_KEYS_MAX // 2 or not all(counts)

    def _join(self, low: int) -> None:
        upper = self.chunks.pop(low + 1)
        del self.uppers[low]
        chunk = self.chunks[low]
        chunk.loosened().extend(upper.keys)
        chunk.refs += upper.refs
        chunk.live += upper.live
        chunk.newest = max(chunk.newest, upper.newest)

    def check(self) -> None:
        """Assert what the class promises. O(n)."""
        assert len(self.chunks) == len(self.uppers) >= 1
        below = b""
        for chunk, upper in zip(self.chunks, self.uppers, strict=True):
            assert len(chunk.keys) == len(chunk.refs) <= CHUNK_KEYS_MAX
            assert chunk.keys or len(self.chunks) == 1
            assert 0 <= chunk.live <= len(chunk.keys)
            for key, ref in zip(chunk.keys, chunk.refs, strict=True):
                assert below < key <= upper, (below, key, upper)
                assert ref
                below = key
            below = upper
