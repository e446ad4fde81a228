"""The log as the machine sees it: terms for everything, payloads for what is near its end.

::

      first_index      _base          applied   commit    saved     last_index
           │             │               │        │         │           │
    ───────┼─────────────┼───────────────┼────────┼─────────┼───────────┤
     only a└─ on disk ───┘└────────────── in memory ────────────────────┘
     snapshot   (fetch)

Terms rise along the log, so a table of runs (where each term begins) answers for the term of any index, in
O(log terms) and mostly at once. Payloads are dropped from the front once they are saved *and* applied, beyond a cache
for followers that are a little behind; a follower that needs older ones makes the leader fetch them from the disk.

Sizes come from one running sum per entry: the bytes of any range are one subtraction, and a page of at most so many
bytes is one bisection. No per-entry work is done in Python beyond making the entries.

Saving is asynchronous. Hazard 1, the ABA of a truncated tail:

1. Entry 5 of term 1 is handed to the disk in save 1.
2. The leader of term 2 overwrites it; entry 5 of term 2 goes out in save 2.
3. The leader of term 3, whose log has it, restores entry 5 of term 1; it goes out in save 3.
4. Save 1 completes. The log holds entry 5 of term 1 again, and so does the disk, but save 2 is about to erase it.
   Whoever calls it saved now acknowledges an entry that a crash before save 3 loses.

So every outstanding save carries a claim, "up to here", and truncation cuts all claims back: a completed save speaks
only for entries that were never replaced since.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from itertools import accumulate, repeat
from operator import attrgetter

from pyraftkv.core.types import HOLLOW, Entry, SnapshotMeta

ENTRY_OVERHEAD_BYTES = 64
"""What an entry weighs besides its payload, so that bounds in bytes bound empty entries too."""

CACHE_ENTRIES_MAX = 16 * 1024
"""Saved and applied entries in memory, however small: the collector walks each, and it takes more than it weighs."""

_weigh = ENTRY_OVERHEAD_BYTES.__add__
_payload_of = attrgetter("payload")


def count_admitted(payloads: list[bytes], *, used_bytes: int, bytes_max: int) -> int:
    """Return how many of ``payloads`` fit where ``used_bytes`` are taken. One always does when nothing is."""
    ends = accumulate(map(_weigh, map(len, payloads)), initial=used_bytes)
    return max(bisect_right(list(ends), bytes_max) - 1, 0 if used_bytes else 1)


class RaftLog:
    """One member's log and its marks.

    Invariants: `applied <= handed_out <= commit <= last_index`; `saved <= last_index`; entries that are not applied, or
    not yet handed to the disk, are in memory; terms never fall along the log.
    """

    __slots__ = (
        "_base",
        "_cache_bytes_max",
        "_claims",
        "_entries",
        "_restore",
        "_run_starts",
        "_run_terms",
        "_save_next",
        "_starts",
        "applied",
        "commit",
        "first_index",
        "handed_out",
        "hollow_index",
        "last_index",
        "saved",
        "snapshot",
    )

    def __init__(
        self,
        *,
        snapshot: SnapshotMeta | None,
        entries: list[Entry],
        first_index: int,
        commit: int,
        cache_bytes_max: int,
    ) -> None:
        """Build the log that stood on disk.

        Args:
            snapshot: The newest snapshot, already in the state machine; None for none.
            entries: Every entry after it.
            first_index: The first index that the disk can still return.
            commit: The stored commit index; never trusted beyond the log.
            cache_bytes_max: Saved and applied entries to keep in memory, `CACHE_ENTRIES_MAX` of them at most.
        """
        index, term = (snapshot.index, snapshot.term) if snapshot is not None else (0, 0)
        self._cache_bytes_max = cache_bytes_max
        self._run_starts = [index]
        self._run_terms = [term]
        self._entries: list[Entry] = []
        self._base = index + 1
        """The index of `_entries[0]`."""
        self._starts = [0]
        """`_starts[i]` is where `_entries[i]` begins in the running sum of bytes; the last item is its end."""
        self.first_index = min(first_index, index + 1)
        self.snapshot = snapshot
        """The newest snapshot, to send to followers that need one."""
        self.last_index = index
        self.saved = index
        """The last index known to be on disk; 0 while a received snapshot is on its way there."""
        self.applied = index
        self.handed_out = index
        """The last index handed out to apply."""
        self.hollow_index = 0
        """The last index whose payload may be missing; 0 on everybody but a witness (`witness.py`)."""
        if entries:
            self.append(entries)
        self.saved = self.last_index
        self.commit = max(index, min(commit, self.last_index))
        self._save_next = self.last_index + 1
        self._claims: deque[tuple[int, int]] = deque()
        """Saves under way, as (number, last index they vouch for)."""
        self._restore: SnapshotMeta | None = None

    # --- Terms -------------------------------------------------------------------------------------------------------

    @property
    def last_term(self) -> int:
        return self._run_terms[-1]

    def term_at(self, index: int) -> int | None:
        """Return the term of the entry at ``index``, 0 at index 0, None where it is not known."""
        starts = self._run_starts
        if index >= starts[-1]:
            return self._run_terms[-1] if index <= self.last_index else None
        if index < starts[0]:
            return 0 if index == 0 else None
        return self._run_terms[bisect_right(starts, index) - 1]

    def matches(self, *, index: int, term: int) -> bool:
        """Return whether the log has an entry of ``term`` at ``index``: then all before it is equal too (Raft §5.3)."""
        return self.term_at(index) == term

    def is_up_to_date(self, *, last_index: int, last_term: int) -> bool:
        """Return whether a log that ends there is at least as up-to-date as this one (Raft §5.4.1)."""
        return last_term > self.last_term or (last_term == self.last_term and last_index >= self.last_index)

    def find_conflict_by_term(self, *, index: int, term: int) -> tuple[int, int]:
        """Return the largest index, at most ``index``, whose term is at most ``term``, and its term.

        Both ends of a rejected append use it to skip whole terms (Raft §5.3, end; etcd's `findConflictByTerm`). The
        term is 0 where it is not known.
        """
        index = min(index, self.last_index)
        run = bisect_right(self._run_terms, term) - 1
        if run < 0:
            index = max(0, min(index, self._run_starts[0] - 1))
        elif run + 1 < len(self._run_starts):
            index = min(index, self._run_starts[run + 1] - 1)
        return index, self.term_at(index) or 0

    # --- Reading -----------------------------------------------------------------------------------------------------

    @property
    def memory_index(self) -> int:
        """The first index whose payload is in memory."""
        return self._base

    def bytes_between(self, lo: int, hi: int) -> int:
        """Return the size in bytes of the entries `[lo, hi)` that are in memory."""
        return self._starts[hi - self._base] - self._starts[max(lo - self._base, 0)]

    def page(self, *, lo: int, hi: int, bytes_max: int) -> list[Entry]:
        """Return entries from ``lo``, up to ``hi`` (exclusive) or ``bytes_max`` bytes, at least one."""
        assert self._base <= lo < hi <= self.last_index + 1, (self._base, lo, hi, self.last_index)
        start, stop = lo - self._base, hi - self._base
        starts = self._starts
        limit = starts[start] + bytes_max
        if starts[stop] > limit:
            stop = max(bisect_right(starts, limit, start, stop) - 1, start + 1)
        return self._entries[start:stop]

    @property
    def is_restoring(self) -> bool:
        """Whether a received snapshot is not in the state machine yet."""
        return self.snapshot is not None and self.applied < self.snapshot.index

    def unapplied(self) -> list[Entry]:
        """Return the entries that are committed and not yet applied."""
        return self._entries[max(self.applied + 1 - self._base, 0) : self.commit + 1 - self._base]

    def following(self, index: int) -> list[Entry]:
        """Return the entries in memory after ``index``, committed or not."""
        return self._entries[max(index + 1 - self._base, 0) :]

    # --- Writing -----------------------------------------------------------------------------------------------------

    def append_payloads(self, *, term: int, payloads: list[bytes]) -> None:
        """Append one new entry per payload, at the end."""
        first = self.last_index + 1
        if term != self._run_terms[-1]:
            assert term > self._run_terms[-1], "terms never fall along the log"
            self._run_starts.append(first)
            self._run_terms.append(term)
        self.last_index += len(payloads)
        self._entries.extend(map(Entry, range(first, self.last_index + 1), repeat(term), payloads))
        self._starts.extend(accumulate(map(_weigh, map(len, payloads)), initial=self._starts.pop()))

    def append(self, entries: list[Entry]) -> None:
        """Append consecutive entries; whatever stood at their place or after is replaced (Raft §5.3)."""
        first = entries[0].index
        assert first <= self.last_index + 1, "no gaps"
        if first <= self.last_index:
            self._truncate(first)
        if entries[-1].term != self._run_terms[-1]:
            self._note_terms(entries)
        self._entries.extend(entries)
        sizes = map(_weigh, map(len, map(_payload_of, entries)))
        self._starts.extend(accumulate(sizes, initial=self._starts.pop()))
        self.last_index = entries[-1].index

    def maybe_append(self, *, prev_index: int, entries: list[Entry]) -> bool:
        """Append those of ``entries`` that the log lacks; return False if it has them all.

        The log must match at ``prev_index``. Entries that are already there stay, with all that follows them: a late,
        shorter message must not cut off what was acknowledged since (Figure 2, AppendEntries rules 3 and 4).
        """
        if not entries or self.matches(index=entries[-1].index, term=entries[-1].term):
            return False
        if prev_index != self.last_index:
            # Log Matching (Raft §5.3) makes "is the same here" a prefix of `entries`, so bisection finds its end.
            entries = entries[bisect_left(entries, True, key=self._differs) :]
            assert entries[0].index > self.commit, "committed entries are never replaced"
        self.append(entries)
        return True

    def _differs(self, entry: Entry) -> bool:
        return self.term_at(entry.index) != entry.term

    def _note_terms(self, entries: list[Entry]) -> None:
        last = self._run_terms[-1]
        for entry in entries:
            if entry.term != last:
                assert entry.term > last, "terms never fall along the log"
                last = entry.term
                self._run_starts.append(entry.index)
                self._run_terms.append(last)

    def _truncate(self, index: int) -> None:
        """Drop everything from ``index`` on, and cut back what outstanding saves vouch for (hazard 1)."""
        assert index > self.commit, "committed entries are never replaced"
        while self._run_starts[-1] >= index:
            self._run_starts.pop()
            self._run_terms.pop()
        del self._entries[index - self._base :]
        del self._starts[index - self._base + 1 :]
        self.last_index = index - 1
        self.saved = min(self.saved, index - 1)
        self.hollow_index = min(self.hollow_index, index - 1)
        self._save_next = min(self._save_next, index)
        self._claims = deque((number, min(claim, index - 1)) for number, claim in self._claims)

    def restore(self, snapshot: SnapshotMeta) -> None:
        """Start over after a received snapshot: nothing of the old log is kept, not even beyond it.

        An entry kept beyond the snapshot could conflict with it: the log did not contain the snapshot's last entry.
        """
        assert snapshot.index > self.commit, "a snapshot behind the commit index is not for restoring"
        self._run_starts = [snapshot.index]
        self._run_terms = [snapshot.term]
        self._entries = []
        self._starts = [0]
        self._base = self.first_index = self._save_next = snapshot.index + 1
        self._claims = deque((number, 0) for number, _ in self._claims)
        self._restore = self.snapshot = snapshot
        self.saved = 0
        self.last_index = self.commit = self.handed_out = snapshot.index

    # --- Saving ------------------------------------------------------------------------------------------------------

    @property
    def has_unsaved(self) -> bool:
        """Whether something was not yet handed to the disk."""
        return self._save_next <= self.last_index or self._restore is not None

    def accept_save(self, number: int) -> tuple[list[Entry], SnapshotMeta | None]:
        """Take what save ``number`` must write: new entries, and a received snapshot that comes before them."""
        entries = self._entries[self._save_next - self._base :]
        restore, self._restore = self._restore, None
        self._save_next = self.last_index + 1
        self._claims.append((number, self.last_index))
        return entries, restore

    def saved_to(self, number: int) -> None:
        """Move `saved`: every save up to ``number`` is on disk."""
        while self._claims and self._claims[0][0] <= number:
            self.saved = max(self.saved, self._claims.popleft()[1])

    # --- Committing and applying -------------------------------------------------------------------------------------

    def commit_to(self, index: int) -> bool:
        """Move `commit` up to ``index``; return False if it was there already. It never falls."""
        if index <= self.commit:
            return False
        assert index <= self.last_index, "the commit index never leads the log"
        self.commit = index
        return True

    def next_committed(self, bytes_max: int) -> list[Entry]:
        """Hand out committed entries to apply, while less than ``bytes_max`` bytes are handed out and not applied."""
        if self.handed_out == self.commit:
            return []
        room = bytes_max - self.bytes_between(self.applied + 1, self.handed_out + 1)
        if room <= 0:
            return []
        entries = self.page(lo=self.handed_out + 1, hi=self.commit + 1, bytes_max=room)
        self.handed_out = entries[-1].index
        return entries

    def applied_to(self, index: int) -> None:
        """Move `applied` up to ``index``, and drop payloads that nobody needs from memory."""
        assert index <= self.handed_out, "only what was handed out can have been applied"
        if index > self.applied:
            self.applied = index
            self.trim()

    def trim(self) -> None:
        """Drop saved and applied payloads beyond the cache, in bulk: amortised O(1) per entry."""
        stop = min(self.saved, self.applied) + 1 - self._base
        if stop <= 0:
            return
        excess = self._starts[stop] - self._starts[0] - self._cache_bytes_max
        too_many = stop - CACHE_ENTRIES_MAX
        if excess > self._cache_bytes_max >> 4 or too_many > CACHE_ENTRIES_MAX >> 4:
            self._drop_front(max(too_many, bisect_left(self._starts, self._starts[0] + excess, 0, stop)))

    def compact(self, *, snapshot: SnapshotMeta, first_index: int) -> None:
        """Note a snapshot that was taken here, and that the disk now begins at ``first_index``.

        While it was being written a received one may have replaced the log: then it is history, and nothing changes.
        """
        if self.snapshot is not None and snapshot.index <= self.snapshot.index:
            return
        assert first_index <= snapshot.index + 1, "the log goes on where the snapshot ends"
        assert snapshot.index <= self.applied, "a snapshot holds only what was applied"
        self.snapshot = snapshot
        if first_index <= self.first_index:
            return
        self.first_index = first_index
        if first_index > self._base:
            self._drop_front(first_index - self._base)
        known = first_index - 1
        if known > self._run_starts[0]:
            run = bisect_right(self._run_starts, known) - 1
            del self._run_starts[:run], self._run_terms[:run]
            self._run_starts[0] = known

    def lose_payloads(self, index: int) -> None:
        """Note that payloads up to ``index`` are not here."""
        self.hollow_index = max(self.hollow_index, index)

    def lost_index(self) -> int:
        """Return the last committed index whose payload is missing. O(entries in memory), if later ones are, too.

        `hollow_index` may fall, where another leader replaces what is not committed by something whole; this may not.
        """
        if self.hollow_index <= self.commit:
            return self.hollow_index
        committed = self._entries[: self.commit + 1 - self._base]
        return next((entry.index for entry in reversed(committed) if entry.kind is HOLLOW), 0)

    def forget_before(self, first_index: int) -> None:
        """Note that the disk no longer has what is before ``first_index``."""
        self.first_index = max(self.first_index, first_index)

    def _drop_front(self, count: int) -> None:
        assert self._base + count <= self._save_next, "what the disk was not given stays in memory"
        del self._entries[:count], self._starts[:count]
        self._base += count

    # --- For tests ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants of this class. O(entries in memory)."""
        assert self.applied <= self.handed_out <= self.commit <= self.last_index, repr(self)
        assert self.saved <= self.last_index, repr(self)
        assert self._base <= self._save_next, repr(self)
        assert self._base <= self.applied + 1 or self.is_restoring, repr(self)
        assert self._base + len(self._entries) == self.last_index + 1, repr(self)
        assert len(self._starts) == len(self._entries) + 1
        assert self._run_starts == sorted(set(self._run_starts)), self._run_starts
        assert self._run_terms == sorted(set(self._run_terms)), self._run_terms
        assert self._run_starts[-1] <= self.last_index, repr(self)
        assert self.hollow_index <= self.last_index, repr(self)
        for offset, entry in enumerate(self._entries):
            assert entry.index == self._base + offset, entry
            assert entry.term == self.term_at(entry.index), entry
            assert entry.kind is not HOLLOW or entry.index <= self.hollow_index, entry
            size_bytes = self._starts[offset + 1] - self._starts[offset]
            assert size_bytes == len(entry.payload) + ENTRY_OVERHEAD_BYTES, entry

    def __repr__(self) -> str:
        return (
            f"RaftLog(first_index={self.first_index}, memory_index={self._base}, applied={self.applied}, "
            f"handed_out={self.handed_out}, commit={self.commit}, saved={self.saved}, last_index={self.last_index})"
        )
