"""The log: terms, conflicts, marks, pages, the cache; compared with a naive one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pyraftkv.core.raftlog import CACHE_ENTRIES_MAX, ENTRY_OVERHEAD_BYTES, RaftLog
from pyraftkv.core.types import Entry, SnapshotMeta
from tests.core.machines import entries, snapshot

SIZE = ENTRY_OVERHEAD_BYTES + 3
"""What one of `entries` weighs while index and term have one digit."""


def _log(
    *terms: int, after: SnapshotMeta | None = None, commit: int = 0, first_index: int = 1, cache: int = 0
) -> RaftLog:
    first = after.index + 1 if after is not None else 1
    log = RaftLog(
        snapshot=after,
        entries=entries(first, *terms),
        first_index=first_index,
        commit=commit,
        cache_bytes_max=cache,
    )
    log.check()
    return log


# --- Terms -----------------------------------------------------------------------------------------------------------


def test_terms_are_known_from_the_snapshot_to_the_end() -> None:
    """Index 0 has term 0; before the snapshot and after the end nothing is known."""
    log = _log(3, 3, 5, after=snapshot(10, 2))
    assert [log.term_at(index) for index in (0, 9, 10, 11, 12, 13, 14)] == [0, None, 2, 3, 3, 5, None]
    assert log.last_term == 5
    assert log.matches(index=12, term=3)
    assert not log.matches(index=14, term=5)


@pytest.mark.parametrize(
    ("index", "term", "expected"),
    [
        (9, 9, (9, 5)),
        (99, 9, (9, 5)),
        (8, 4, (6, 4)),
        (8, 3, (3, 2)),
        (3, 2, (3, 2)),
        (8, 1, (1, 1)),
        (8, 0, (0, 0)),
        (0, 7, (0, 0)),
    ],
)
def test_the_conflict_hint_skips_terms(index: int, term: int, expected: tuple[int, int]) -> None:
    """The largest index, at most the one given, whose term is at most the one given."""
    assert _log(1, 2, 2, 4, 4, 4, 5, 5, 5).find_conflict_by_term(index=index, term=term) == expected


def test_the_conflict_hint_stops_where_terms_are_unknown() -> None:
    """Behind the snapshot any index may match; its term is reported as 0."""
    assert _log(4, after=snapshot(10, 3)).find_conflict_by_term(index=11, term=2) == (9, 0)


@given(st.lists(st.integers(1, 4), max_size=12), st.integers(0, 15), st.integers(0, 6))
def test_the_conflict_hint_agrees_with_a_walk(terms: list[int], index: int, term: int) -> None:
    """Compared with walking back one by one."""
    terms.sort()
    log = _log(*terms)
    expected = min(index, len(terms))
    while expected > 0 and terms[expected - 1] > term:
        expected -= 1
    assert log.find_conflict_by_term(index=index, term=term)[0] == expected


@pytest.mark.parametrize(
    ("last_index", "last_term", "up_to_date"),
    [(3, 2, True), (4, 2, True), (2, 2, False), (1, 3, True), (9, 1, False)],
)
def test_up_to_date_compares_terms_then_lengths(last_index: int, last_term: int, up_to_date: bool) -> None:
    """Raft §5.4.1."""
    assert _log(1, 1, 2).is_up_to_date(last_index=last_index, last_term=last_term) is up_to_date


# --- Appending -------------------------------------------------------------------------------------------------------


@given(st.data())
def test_appending_agrees_with_a_naive_log(data: st.DataObject) -> None:
    """Any run of a leader's log, at any place that matches: truncate at the first difference and only there."""
    naive: list[Entry] = []
    log = _log()
    number = 0
    for _ in range(data.draw(st.integers(1, 8))):
        prev_index = data.draw(st.integers(0, len(naive)))
        kept = data.draw(st.integers(0, len(naive) - prev_index))
        term = (naive[-1].term if naive else 0) + 1
        fresh = [
            Entry(prev_index + kept + 1 + offset, term, b"%d" % (number + offset))
            for offset in range(data.draw(st.integers(0, 4)))
        ]
        number += len(fresh)
        batch = naive[prev_index : prev_index + kept] + fresh
        if fresh:
            naive = naive[: prev_index + kept] + fresh
        assert log.maybe_append(prev_index=prev_index, entries=batch) is bool(fresh)
        log.check()
        assert log.last_index == len(naive)
        if naive:
            assert log.page(lo=1, hi=len(naive) + 1, bytes_max=1 << 30) == naive
        assert [log.term_at(entry.index) for entry in naive] == [entry.term for entry in naive]


def test_a_shorter_message_that_is_there_already_cuts_nothing() -> None:
    """Late messages do not take back what was acknowledged since."""
    log = _log(1, 1, 1)
    assert not log.maybe_append(prev_index=0, entries=entries(1, 1, 1))
    assert log.last_index == 3


def test_committed_entries_are_never_replaced() -> None:
    """A conflict below the commit index is our bug, whoever asks."""
    log = _log(1, 1, 1, commit=2)
    with pytest.raises(AssertionError, match="never replaced"):
        log.maybe_append(prev_index=1, entries=entries(2, 2))
    with pytest.raises(AssertionError, match="never replaced"):
        log.append(entries(2, 2))
    with pytest.raises(AssertionError, match="no gaps"):
        log.append(entries(5, 2))


@pytest.mark.parametrize("terms", [(2, 1), (1,)])
def test_terms_never_fall(terms: tuple[int, ...]) -> None:
    """A batch whose terms fall is our bug."""
    log = _log(2)
    with pytest.raises(AssertionError, match="never fall"):
        log.append(entries(2, *terms))
    with pytest.raises(AssertionError, match="never fall"):
        log.append_payloads(term=1, payloads=[b""])


# --- Saving ----------------------------------------------------------------------------------------------------------


def test_a_save_takes_what_is_new_and_vouches_for_it_when_done() -> None:
    """Saves complete in order; one completion may stand for several."""
    log = _log(1)
    assert not log.has_unsaved
    log.append_payloads(term=2, payloads=[b"a", b"b"])
    assert log.has_unsaved
    assert [entry.index for entry in log.accept_save(1)[0]] == [2, 3]
    log.append_payloads(term=2, payloads=[b"c"])
    assert [entry.index for entry in log.accept_save(2)[0]] == [4]
    log.append_payloads(term=2, payloads=[b"d"])
    assert [entry.index for entry in log.accept_save(3)[0]] == [5]
    assert log.saved == 1
    log.saved_to(2)
    assert log.saved == 4
    log.saved_to(3)
    assert log.saved == 5


def test_a_replaced_tail_takes_back_what_saves_under_way_vouch_for() -> None:
    """The ABA story at the top of the module: save 1 must not vouch for the entry that save 2 erases."""
    log = _log(1, 1, 1, 1)
    log.append(entries(5, 1))
    log.accept_save(1)
    log.append(entries(5, 2))
    log.accept_save(2)
    log.append(entries(4, 3))
    log.append(entries(5, 4))
    log.accept_save(3)
    log.saved_to(1)
    assert log.saved == 3
    log.saved_to(2)
    assert log.saved == 3
    log.saved_to(3)
    assert log.saved == 5


def test_a_tail_that_was_replaced_before_any_save_is_saved_once() -> None:
    """Only what stands in the log when the save is taken is written."""
    log = _log(1)
    log.append(entries(2, 2, 2, 2))
    log.append(entries(3, 3))
    assert [(entry.index, entry.term) for entry in log.accept_save(1)[0]] == [(2, 2), (3, 3)]


# --- Committing and applying -----------------------------------------------------------------------------------------


def test_a_stored_commit_index_is_not_trusted_beyond_the_log_nor_below_the_snapshot() -> None:
    """It is clamped to what is there."""
    assert _log(1, 1, commit=9).commit == 2
    assert _log(1, commit=3, after=snapshot(10, 1)).commit == 10


def test_the_commit_index_rises_within_the_log() -> None:
    """It never falls and never leads."""
    log = _log(1, 1, 1)
    assert log.commit_to(2)
    assert not log.commit_to(1)
    assert not log.commit_to(2)
    assert log.commit == 2
    with pytest.raises(AssertionError, match="never leads"):
        log.commit_to(4)


def test_pages_of_committed_entries_are_bounded_and_skip_nothing() -> None:
    """No more than the bound is handed out and not applied; a single entry over it still goes."""
    log = _log(1, 1, 1, 1, 1, commit=5)
    assert [entry.index for entry in log.next_committed(2 * SIZE)] == [1, 2]
    assert log.next_committed(2 * SIZE) == []
    log.applied_to(1)
    assert [entry.index for entry in log.next_committed(2 * SIZE)] == [3]
    log.applied_to(3)
    assert [entry.index for entry in log.next_committed(1)] == [4]
    assert log.next_committed(1) == []
    log.applied_to(4)
    assert [entry.index for entry in log.next_committed(1 << 20)] == [5]
    assert log.next_committed(1 << 20) == []
    with pytest.raises(AssertionError, match="handed out"):
        log.applied_to(6)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=20), st.integers(0, 1_000), st.data())
def test_a_page_is_the_longest_that_fits(sizes: list[int], bytes_max: int, data: st.DataObject) -> None:
    """Compared with adding up one by one."""
    log = _log()
    log.append_payloads(term=1, payloads=[bytes(size) for size in sizes])
    lo = data.draw(st.integers(1, len(sizes)))
    hi = data.draw(st.integers(lo + 1, len(sizes) + 1))
    expected, total = lo, 0
    while expected < hi and (total := total + sizes[expected - 1] + ENTRY_OVERHEAD_BYTES) <= bytes_max:
        expected += 1
    page = log.page(lo=lo, hi=hi, bytes_max=bytes_max)
    assert [entry.index for entry in page] == list(range(lo, max(expected, lo + 1)))


# --- The cache -------------------------------------------------------------------------------------------------------


def test_saved_and_applied_entries_leave_memory_in_bulk() -> None:
    """Their terms stay known; what is not saved or not applied stays."""
    log = _log(*[1] * 9, commit=9, cache=3 * SIZE)
    log.next_committed(1 << 20)
    log.applied_to(3)
    assert log.memory_index == 1
    log.applied_to(8)
    assert log.memory_index == 6
    assert log.term_at(2) == 1
    log.append_payloads(term=2, payloads=[b"xyz"] * 9)
    log.accept_save(1)
    log.commit_to(18)
    log.next_committed(1 << 20)
    log.applied_to(18)
    assert log.memory_index == 7, "up to 9 is saved, three stay"
    log.saved_to(1)
    log.trim()
    assert log.memory_index == 16
    log.check()


def test_small_entries_are_counted_too() -> None:
    """However little they weigh, so many stay at most; a sixteenth more before any go."""
    few = CACHE_ENTRIES_MAX >> 4
    log = _log(*[1] * (CACHE_ENTRIES_MAX + 2 * few), commit=CACHE_ENTRIES_MAX + 2 * few, cache=1 << 30)
    log.next_committed(1 << 30)
    log.applied_to(CACHE_ENTRIES_MAX + few)
    assert log.memory_index == 1
    log.applied_to(CACHE_ENTRIES_MAX + few + 1)
    assert log.memory_index == few + 2
    log.check()


def test_compaction_moves_the_first_index_and_forgets_terms_before_it() -> None:
    """The term just before stays: it is the `prev_term` of the first entry that can be sent."""
    log = _log(1, 2, 3, 4, commit=4, cache=1 << 20)
    log.next_committed(1 << 20)
    log.applied_to(4)
    log.compact(snapshot=snapshot(3, 3), first_index=3)
    assert (log.first_index, log.memory_index, log.snapshot) == (3, 3, snapshot(3, 3))
    assert [log.term_at(index) for index in range(6)] == [0, None, 2, 3, 4, None]
    log.compact(snapshot=snapshot(2, 2), first_index=2)
    assert (log.first_index, log.snapshot) == (3, snapshot(3, 3)), "an older snapshot changes nothing"
    log.compact(snapshot=snapshot(4, 4), first_index=5)
    assert [log.term_at(index) for index in range(1, 6)] == [None, None, None, 4, None]
    log.check()
    log.append_payloads(term=5, payloads=[b"x"])
    log.check()


def test_compaction_of_what_memory_never_held_forgets_no_term() -> None:
    """After a start the disk may reach back further than the terms in memory, and be cut there."""
    log = _log(3, after=snapshot(5, 2), first_index=1, commit=6)
    log.next_committed(1 << 20)
    log.applied_to(6)
    log.compact(snapshot=snapshot(6, 3), first_index=4)
    assert (log.first_index, log.memory_index) == (4, 7)
    assert [log.term_at(index) for index in (4, 5, 6)] == [None, 2, 3]
    log.check()


def test_a_snapshot_holds_only_what_was_applied() -> None:
    """And the log goes on where it ends."""
    log = _log(1, 1, commit=1)
    with pytest.raises(AssertionError, match="applied"):
        log.compact(snapshot=snapshot(1, 1), first_index=1)
    with pytest.raises(AssertionError, match="goes on"):
        log.compact(snapshot=snapshot(1, 1), first_index=3)


def test_a_received_snapshot_starts_the_log_over() -> None:
    """Nothing of the old log is kept, and what saves under way vouch for is void."""
    log = _log(1, 1, commit=1)
    log.append(entries(3, 1, 1))
    log.accept_save(1)
    log.restore(snapshot(3, 2))
    assert (log.first_index, log.last_index, log.commit, log.saved) == (4, 3, 3, 0)
    assert (log.has_unsaved, log.is_restoring) == (True, True)
    assert [log.term_at(index) for index in (1, 2, 3, 4)] == [None, None, 2, None]
    log.saved_to(1)
    assert log.saved == 0
    assert log.accept_save(2) == ([], snapshot(3, 2))
    log.check()
    log.saved_to(2)
    assert (log.saved, log.has_unsaved) == (3, False)
    log.append(entries(4, 2))
    log.commit_to(4)
    assert [entry.index for entry in log.next_committed(1)] == [4]
    log.applied_to(1)
    assert log.is_restoring
    log.applied_to(3)
    assert not log.is_restoring
    with pytest.raises(AssertionError, match="not for restoring"):
        log.restore(snapshot(4, 2))


def test_the_repr_tells_the_marks() -> None:
    """For failures."""
    assert "last_index=2" in repr(_log(1, 1))


# --- A naive twin ----------------------------------------------------------------------------------------------------


class NaiveLog:
    """The same log as a dictionary of entries, beside a disk on which saves do to entries what they say.

    Nothing is kept up to date: what is saved, for one, is found by comparing the log with the disk.
    """

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}
        self.snapshot: SnapshotMeta | None = None
        self.base = (0, 0)
        """Index and term just before the first entry there ever was, or of the snapshot that replaced the log."""
        self.known = 0
        """The first index whose term is known."""
        self.first_index = 1
        self.last_index = self.commit = self.applied = self.handed_out = 0
        self.save_next = 1
        self.received: SnapshotMeta | None = None
        self.saves: list[tuple[int, list[Entry], SnapshotMeta | None]] = []
        self.disk: dict[int, Entry] = {}
        self.disk_base = 0
        self.cut: list[list[Entry]] = []
        """Tails that were replaced, and may come back."""

    def term_at(self, index: int) -> int | None:
        if index == 0 or index == self.base[0]:
            return 0 if index == 0 else self.base[1]
        if index < self.known or index not in self.entries:
            return None
        return self.entries[index].term

    def append(self, entries: list[Entry]) -> None:
        """Replace everything from the first of ``entries`` on."""
        tail = [self.entries.pop(index) for index in range(entries[0].index, self.last_index + 1)]
        if tail:
            self.cut.append(tail)
        self.entries.update((entry.index, entry) for entry in entries)
        self.save_next = min(self.save_next, entries[0].index)
        self.last_index = entries[-1].index

    def complete(self) -> int:
        """Write the oldest save; return its number."""
        number, entries, snapshot = self.saves.pop(0)
        if snapshot is not None:
            self.disk, self.disk_base = {}, snapshot.index
        if entries:
            self.disk = {index: entry for index, entry in self.disk.items() if index < entries[0].index}
            self.disk.update((entry.index, entry) for entry in entries)
        return number

    @property
    def saved(self) -> int:
        """The end of what equals the disk and is not about to be erased there; 0 if the disk is of an older log."""
        if self.disk_base != self.base[0]:
            return 0
        firsts = [entries[0].index for _, entries, _ in self.saves if entries]
        index = self.base[0]
        while index + 1 < min(firsts, default=index + 2) and self.disk.get(index + 1, 0) == self.entries.get(index + 1):
            index += 1
        return index

    def page(self, lo: int, hi: int, bytes_max: int) -> list[Entry]:
        page: list[Entry] = []
        for index in range(lo, hi):
            page.append(self.entries[index])
            if len(page) > 1 and _weight(page) > bytes_max:
                return page[:-1]
        return page


def _weight(entries_: list[Entry]) -> int:
    return sum(len(entry.payload) + ENTRY_OVERHEAD_BYTES for entry in entries_)


class Twins(RuleBasedStateMachine):
    """Every public operation, in any order that the machine may come up with, on the log and on the naive one."""

    def __init__(self) -> None:
        super().__init__()
        self.naive = NaiveLog()
        self.log = _log()
        self.term = 1
        self.number = 0
        self.saves = 0

    @initialize(cache=st.sampled_from([0, 100, 300, 1 << 20]))
    def start(self, cache: int) -> None:
        """Begin with an empty log, and any cache."""
        self.cache = cache
        self.log = _log(cache=cache)

    def payload(self) -> bytes:
        """Return a payload that no other entry has."""
        self.number += 1
        return b"%d" % self.number + bytes(self.number % 90)

    @rule(count=st.integers(1, 4), term=st.integers(0, 1))
    def propose(self, count: int, term: int) -> None:
        """A leader appends, perhaps in a new term."""
        self.term += term
        payloads = [self.payload() for _ in range(count)]
        first = self.naive.last_index + 1
        self.naive.append([Entry(first + place, self.term, payload) for place, payload in enumerate(payloads)])
        self.log.append_payloads(term=self.term, payloads=payloads)

    @rule(data=st.data())
    def receive(self, data: st.DataObject) -> None:
        """A follower takes what a leader sends: some of what it has, then something new, or nothing new at all."""
        naive = self.naive
        prev_index = data.draw(st.integers(naive.commit, naive.last_index))
        kept = data.draw(st.integers(0, naive.last_index - prev_index))
        self.term += 1
        first = prev_index + kept + 1
        fresh = [Entry(first + place, self.term, self.payload()) for place in range(data.draw(st.integers(0, 3)))]
        batch = [naive.entries[prev_index + 1 + place] for place in range(kept)] + fresh
        assert self.log.maybe_append(prev_index=prev_index, entries=batch) is bool(fresh)
        if fresh:
            naive.append(fresh)

    @precondition(lambda self: self.naive.cut)
    @rule(data=st.data())
    def bring_back(self, data: st.DataObject) -> None:
        """A later leader has what an earlier one cut off, and something of its own."""
        naive = self.naive
        tail = data.draw(st.sampled_from(naive.cut))
        first, prev_term = tail[0].index, naive.term_at(tail[0].index - 1)
        if first <= naive.commit or prev_term is None or prev_term > tail[0].term:
            return
        self.term += 1
        batch = [*tail, Entry(tail[-1].index + 1, self.term, self.payload())]
        same = [entry for entry in tail if naive.entries.get(entry.index) == entry]
        assert self.log.maybe_append(prev_index=first - 1, entries=batch)
        naive.append(batch[len(same) :])

    @rule(ahead=st.integers(1, 5))
    def restore(self, ahead: int) -> None:
        """A snapshot of another log replaces this one."""
        naive = self.naive
        self.term += 1
        meta = snapshot(naive.commit + ahead, self.term)
        self.log.restore(meta)
        naive.entries, naive.cut = {}, []
        naive.snapshot = naive.received = meta
        naive.base, naive.known = (meta.index, meta.term), meta.index
        naive.first_index = naive.save_next = meta.index + 1
        naive.last_index = naive.commit = naive.handed_out = meta.index

    @precondition(lambda self: self.log.has_unsaved)
    @rule()
    def save(self) -> None:
        """What is new is handed to the disk."""
        naive = self.naive
        self.saves += 1
        entries_ = [naive.entries[index] for index in range(naive.save_next, naive.last_index + 1)]
        assert self.log.accept_save(self.saves) == (entries_, naive.received)
        naive.saves.append((self.saves, entries_, naive.received))
        naive.save_next, naive.received = naive.last_index + 1, None

    @precondition(lambda self: self.naive.saves)
    @rule(data=st.data())
    def saved(self, data: st.DataObject) -> None:
        """One or more saves complete, and are heard of together."""
        for _ in range(data.draw(st.integers(1, len(self.naive.saves)))):
            number = self.naive.complete()
        self.log.saved_to(number)

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        """The commit index rises, or is told again."""
        index = data.draw(st.integers(0, self.naive.last_index))
        assert self.log.commit_to(index) is (index > self.naive.commit)
        self.naive.commit = max(self.naive.commit, index)

    @rule(bytes_max=st.sampled_from([1, 100, 200, 500, 1 << 20]))
    def hand_out(self, bytes_max: int) -> None:
        """Committed entries are handed out to be applied, as many as there is room for."""
        naive = self.naive
        out = [
            naive.entries[index] for index in range(naive.applied + 1, naive.handed_out + 1) if index in naive.entries
        ]
        room = bytes_max - _weight(out)
        page = naive.page(naive.handed_out + 1, naive.commit + 1, room) if room > 0 else []
        assert self.log.next_committed(bytes_max) == page
        naive.handed_out += len(page)

    @rule(data=st.data())
    def apply(self, data: st.DataObject) -> None:
        """Some of what was handed out is applied; no more than the cache stays of what is saved and applied."""
        naive, log = self.naive, self.log
        naive.applied = data.draw(st.integers(naive.applied, naive.handed_out))
        log.applied_to(naive.applied)
        done = min(log.saved, naive.applied)
        if log.memory_index <= done:
            assert log.bytes_between(log.memory_index, done + 1) <= self.cache + (self.cache >> 4)

    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        """A snapshot was taken here, and the disk drops what is before it, or a part of that."""
        naive = self.naive
        index = data.draw(st.integers(0, min(naive.applied, naive.save_next - 1)))
        term = naive.term_at(index)
        if index == 0 or term is None:
            return
        meta = snapshot(index, term)
        first_index = data.draw(st.integers(1, index + 1))
        self.log.compact(snapshot=meta, first_index=first_index)
        if naive.snapshot is None or index > naive.snapshot.index:
            naive.snapshot = meta
            if first_index > naive.first_index:
                naive.first_index = first_index
                naive.known = max(naive.known, first_index - 1)

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """The disk turns out to hold less."""
        first_index = data.draw(st.integers(1, self.log.memory_index))
        self.log.forget_before(first_index)
        self.naive.first_index = max(self.naive.first_index, first_index)

    @rule(index=st.integers(0, 40), term=st.integers(0, 20))
    def ask(self, index: int, term: int) -> None:
        """What elections and rejections ask the log."""
        naive, log = self.naive, self.log
        last_term = naive.term_at(naive.last_index)
        assert last_term is not None
        assert log.matches(index=index, term=term) is (naive.term_at(index) == term)
        newer = (term, index) >= (last_term, naive.last_index)
        assert log.is_up_to_date(last_index=index, last_term=term) is newer
        found = min(index, naive.last_index)
        while found > 0 and (naive.term_at(found) or 0) > term:
            found -= 1
        assert log.find_conflict_by_term(index=index, term=term) == (found, naive.term_at(found) or 0)

    @rule(data=st.data(), bytes_max=st.sampled_from([1, 100, 200, 500]))
    def read(self, data: st.DataObject, bytes_max: int) -> None:
        """Pages and sizes of what is in memory."""
        naive, log = self.naive, self.log
        if log.memory_index > naive.last_index:
            return
        lo = data.draw(st.integers(log.memory_index, naive.last_index))
        hi = data.draw(st.integers(lo + 1, naive.last_index + 1))
        assert log.page(lo=lo, hi=hi, bytes_max=bytes_max) == naive.page(lo, hi, bytes_max)
        assert log.bytes_between(lo, hi) == _weight([naive.entries[index] for index in range(lo, hi)])
        assert log.following(lo) == [naive.entries[index] for index in range(lo + 1, naive.last_index + 1)]

    @invariant()
    def both_say_the_same(self) -> None:
        """Marks, terms, and what must be in memory."""
        naive, log = self.naive, self.log
        log.check()
        marks = (log.first_index, log.last_index, log.commit, log.handed_out, log.applied, log.snapshot)
        assert marks == (
            naive.first_index,
            naive.last_index,
            naive.commit,
            naive.handed_out,
            naive.applied,
            naive.snapshot,
        )
        assert log.last_term == naive.term_at(naive.last_index)
        terms = [log.term_at(index) for index in range(naive.last_index + 3)]
        assert terms == [naive.term_at(index) for index in range(naive.last_index + 3)]
        assert log.has_unsaved is (naive.save_next <= naive.last_index or naive.received is not None)
        assert log.is_restoring is (naive.snapshot is not None and naive.applied < naive.snapshot.index)
        if not log.is_restoring:
            owed = [naive.entries[index] for index in range(naive.applied + 1, naive.commit + 1)]
            assert log.unapplied() == owed
            assert log.memory_index <= max(min(log.saved, log.applied) + 1, log.first_index)
        assert log.saved <= naive.saved, "nothing is called saved that is not, or is about to be erased"
        if not naive.saves and not log.has_unsaved:
            assert log.saved == naive.last_index, "in the end everything is saved"


@pytest.mark.no_cover
class TestTwins(Twins.TestCase):
    """Runs the machine."""

    settings = settings(max_examples=100, stateful_step_count=40, deadline=None, derandomize=True)
