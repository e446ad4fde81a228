"""Where on disk each run of entries stands: 20 bytes a run, in flat arrays, nothing for the collector to walk."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right

from pyraftkv._record import record

_OFFSET_BITS = 32


@record
class Span:
    """The part of one run that somebody asked for: entries `[lo, hi)` of the record at `offset`."""

    lo: int
    hi: int
    sequence: int
    offset: int
    size: int


class RunIndex:
    """Maps entry indexes to runs.

    Invariants: `first` rises strictly; so does `(sequence, offset)`, because a run at a lower index that was written
    later removed everything from its index on; runs leave no gap, so a run ends where the next begins, and the last
    one at `last_index`.
    """

    def __init__(self, *, last_index: int) -> None:
        self._first = array("Q")
        self._place = array("Q")
        self._size = array("I")
        self.last_index = last_index
        """The last index of the log."""

    def __len__(self) -> int:
        return len(self._first)

    @property
    def first_index(self) -> int:
        """The first index that is here; one past `last_index` when nothing is."""
        return self._first[0] if self._first else self.last_index + 1

    def add(self, first: int, last: int, *, sequence: int, offset: int, size: int) -> None:
        """Add a run, which replaces everything from `first` on. O(log runs), plus what it replaces."""
        assert first <= self.last_index + 1, f"a gap: {first} after {self.last_index}"
        assert offset < 1 << _OFFSET_BITS
        self._keep(0, bisect_left(self._first, first))
        self._first.append(first)
        self._place.append(sequence << _OFFSET_BITS | offset)
        self._size.append(size)
        self.last_index = last

    def reset(self, last_index: int) -> None:
        """Forget everything: a snapshot up to ``last_index`` replaced the log."""
        self._keep(0, 0)
        self.last_index = last_index

    def drop_before(self, sequence: int) -> None:
        """Forget the runs in segments before ``sequence``. O(runs)."""
        self._keep(bisect_left(self._place, sequence << _OFFSET_BITS), len(self))

    def _keep(self, start: int, stop: int) -> None:
        if start or stop < len(self._first):
            self._first = self._first[start:stop]
            self._place = self._place[start:stop]
            self._size = self._size[start:stop]

    def place_after(self, index: int) -> tuple[int, int] | None:
        """Return `(sequence, offset)` of the first run that holds anything after ``index``, or None. O(log runs)."""
        if index >= self.last_index or not self._first:
            return None
        run = max(bisect_right(self._first, index + 1) - 1, 0)
        place = self._place[run]
        return place >> _OFFSET_BITS, place & ((1 << _OFFSET_BITS) - 1)

    def spans(self, *, lo: int, hi: int, bytes_max: int) -> list[Span]:
        """Return the runs that hold `[lo, hi)`, until their records exceed `bytes_max`; one at least.

        Empty if `lo` is not here. O(log runs + answer).
        """
        hi = min(hi, self.last_index + 1)
        spans: list[Span] = []
        if not self.first_index <= lo < hi:
            return spans
        run = bisect_right(self._first, lo) - 1
        while lo < hi and bytes_max > 0:
            stop = min(self._first[run + 1] if run + 1 < len(self._first) else hi, hi)
            place, size = self._place[run], self._size[run]
            spans.append(Span(lo, stop, place >> _OFFSET_BITS, place & ((1 << _OFFSET_BITS) - 1), size))
            bytes_max -= size
            lo = stop
            run += 1
        return spans

    def check(self) -> None:
        """Assert every invariant. O(runs)."""
        assert len(self._first) == len(self._place) == len(self._size)
        for before, after in zip(self._first, self._first[1:], strict=False):
            assert before < after, f"run {after} follows {before}"
        for before, after in zip(self._place, self._place[1:], strict=False):
            assert before < after, f"the run at {after:x} follows the one at {before:x}"
        assert not self._first or self._first[-1] <= self.last_index
