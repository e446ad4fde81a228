from __future__ import annotations

from random import Random

import pytest

from pyraftkv.store.pages import (
    DEAD,
    PAGE_BYTES_TARGET,
    RECORD_BYTES,
    SLOT_BITS,
    SLOTS_MAX,
    Cursor,
    Page,
    Pages,
    revision_at,
)


def chain(pages: Pages, versions: int, first_revision: int = 2) -> list[int]:
    """Write that many versions of one key at consecutive revisions; return their refs."""
    refs: list[int] = []
    jump = span = 0
    for i in range(versions):
        if refs:
            jump, span = pages.jump_from(refs[-1], jump, span)
        previous = refs[-1] if refs else 0
        revision = first_revision + i
        refs.append(pages.append(b"hot", b"%d" % i, revision, first_revision, i + 1, 0, previous, jump, 0, span))
    return refs


class CountingDict(dict[int, Page]):
    """Counts how often a page is looked up."""

    lookups = 0

    def get(self, key: int, default: Page | None = None) -> Page | None:
        """Look up and count."""
        self.lookups += 1
        return super().get(key, default)


def test_a_hot_key_is_read_at_any_revision_in_logarithmic_steps():
    """Of 100,000 versions of a key, every old one is found in some dozens of looks."""
    pages = Pages()
    refs = chain(pages, 100_000)
    counting = CountingDict(pages.by_number)
    pages.by_number = counting

    worst = 0
    for i in [*range(0, 100_000, 997), 99_999]:
        counting.lookups = 0
        assert pages.visible(refs[-1], i + 2) == refs[i]
        worst = max(worst, counting.lookups)

    assert worst <= 6 * 17
    assert pages.visible(refs[-1], 1) == 0
    assert pages.visible(refs[-1], 10**9) == refs[-1]


def test_jumps_stay_short_after_the_oldest_versions_died():
    """A chain whose old part was compacted grows on, and is still read in logarithmic steps."""
    pages = Pages()
    refs = chain(pages, 5_000)
    for page in pages.order[:-2]:
        pages.rewrite(page, set(range(len(page.offsets))))
    pages.purge()
    refs = [ref for ref in refs if pages.locate(ref)]
    jump, span = pages.jump_from(refs[-2], 0, 0)
    for i in range(20_000):
        jump, span = pages.jump_from(refs[-1], jump, span)
        refs.append(pages.append(b"hot", b"", 5_002 + i, 2, 5_001 + i, 0, refs[-1], jump, 0, span))
    counting = CountingDict(pages.by_number)
    pages.by_number = counting

    for i in Random(1).sample(range(len(refs)), 100):
        counting.lookups = 0
        assert pages.visible(refs[-1], pages.revision_of(refs[i])) == refs[i]
        assert counting.lookups <= 8 * 17


def test_pages_fill_up_to_the_target_and_are_sealed():
    """A page is closed when it holds the target; a large record has a page for itself."""
    pages = Pages()
    for i in range(1000):
        pages.append(b"key", b"v" * 200, i + 2, i + 2, 1, 0, 0, 0, 0, 0)
    pages.append(b"key", b"v" * 1_000_000, 2000, 2000, 1, 0, 0, 0, 0, 0)

    *sealed, newest = pages.order
    assert all(len(page.data) >= PAGE_BYTES_TARGET for page in sealed)
    assert all(len(page.data) < PAGE_BYTES_TARGET + 300 for page in sealed[:-1])
    assert all(type(page.data) is bytes for page in sealed)
    assert newest.offsets.tolist() == []
    assert pages.size_bytes == 1000 * (RECORD_BYTES + 203) + RECORD_BYTES + 3 + 1_000_000


@pytest.mark.no_cover
def test_a_page_never_runs_out_of_slots():
    """An open page that is compacted again and again is sealed when its slots are used up."""
    pages = Pages()
    refs = []
    for i in range(2 * SLOTS_MAX):
        refs.append(pages.append(b"k", b"", i + 2, i + 2, 1, 0, 0, 0, 0, 0))
        page = pages.order[-1]
        if len(page.offsets) > 1:
            page.stale += 1
            pages.rewrite(page, {len(page.offsets) - 2})

    assert len(set(refs)) == 2 * SLOTS_MAX
    assert {ref >> SLOT_BITS for ref in refs} == {1, 2}
    assert pages.revision_of(refs[-1]) == 2 * SLOTS_MAX + 1
    assert pages.revision_of(refs[0]) == 0


def test_rewriting_keeps_refs():
    """After a page is rewritten its living records have their old refs, the dead ones none."""
    pages = Pages()
    refs = chain(pages, 2_000)
    page = pages.order[0]
    doomed = set(range(0, len(page.offsets), 3))
    before = pages.size_bytes
    page.stale = len(page.offsets)
    pages.rewrite(page, doomed)

    for i, ref in enumerate(refs):
        if ref >> SLOT_BITS == page.number and ref % (1 << SLOT_BITS) in doomed:
            assert pages.locate(ref) is None
            assert pages.key_value(ref) is None
        else:
            kv = pages.key_value(ref)
            assert kv is not None
            assert (kv.mod_revision, kv.value) == (i + 2, b"%d" % i)
    assert pages.size_bytes < before
    assert page.live() == len(page.offsets) - len(doomed)


def test_scan_and_seek():
    """A scan from a revision meets every later record once, wherever pages begin and whatever died."""
    pages = Pages()
    refs = chain(pages, 3_000)
    for number in (0, 2):
        page = pages.order[number]
        pages.rewrite(page, set(range(len(page.offsets))))  # dropped whole
    alive = [pages.revision_of(ref) for ref in refs if pages.locate(ref)]

    for purge in (False, True):
        if purge:
            pages.purge()
        for revision in [1, 2, 3, *range(2, 3_000, 131), 3_001, 3_002]:
            cursor = pages.seek(revision)
            found = [revision_at(page.data, offset) for page, _, offset in pages.scan(cursor, pages.end())]
            assert found == [r for r in alive if r >= revision]
            assert list(pages.scan(cursor, pages.end())) == []
    assert list(pages.scan(Cursor(99, 0), (100, 0))) == []


def test_scan_stops_at_its_end():
    """What lies at or behind the end is not read."""
    pages = Pages()
    chain(pages, 10)

    found = [slot for _, slot, _ in pages.scan(Cursor(1, 3), (1, 6))]

    assert found == [3, 4, 5]


def test_a_scan_goes_on_after_its_page_was_compacted():
    """A cursor into a page that is gone continues with the next one."""
    pages = Pages()
    chain(pages, 5_000)
    cursor = Cursor(2, 17)
    for page in pages.order[:3]:
        pages.rewrite(page, set(range(len(page.offsets))))
    pages.purge()

    page, slot, _ = next(pages.scan(cursor, pages.end()))

    assert (page.number, slot) == (4, 0)


def test_adopting_comes_before_writing():
    """Pages of a snapshot cannot be put under a store that has its own."""
    pages = Pages(5)
    pages.append(b"k", b"", 2, 2, 1, 0, 0, 0, 0, 0)
    with pytest.raises(AssertionError, match="before"):
        pages.adopt(Page(3, 2))


def test_dead_is_no_offset():
    """The mark of a dead slot can never be the offset of a record."""
    assert DEAD > 64 * 1024 * 1024 + PAGE_BYTES_TARGET
