"""The index of runs, against a list that remembers every entry."""

from __future__ import annotations

from random import Random

import pytest

from pyraftkv.log.runs import RunIndex, Span


@pytest.mark.parametrize("seed", range(20))
def test_the_index_agrees_with_a_plain_list(seed):
    """Runs, overwrites, resets and purges: the index finds each entry in the record that holds it."""
    random = Random(seed)
    runs, dumb = RunIndex(last_index=0), {}
    sequence, offset = 0, 4096
    for _ in range(300):
        kind = random.random()
        if kind < 0.9:
            back = 0 if random.random() < 0.8 else random.randint(0, min(5, len(runs)))
            first = max(runs.last_index + 1 - back, runs.first_index)
            last = first + random.randint(0, 6)
            size = random.randint(50, 500)
            runs.add(first, last, sequence=sequence, offset=offset, size=size)
            dumb = {index: place for index, place in dumb.items() if index < first}
            dumb |= dict.fromkeys(range(first, last + 1), (sequence, offset, size))
            offset += size
        elif kind < 0.95:
            sequence, offset = sequence + 1, 4096
        elif kind < 0.98 and dumb:
            keep = random.choice(list(dumb.values()))[0]
            runs.drop_before(keep)
            dumb = {index: place for index, place in dumb.items() if place[0] >= keep}
        else:
            runs.reset(runs.last_index + random.randint(0, 9))
            dumb = {}
        runs.check()
        _compare(runs, dumb, random)


def _compare(runs: RunIndex, dumb: dict, random: Random) -> None:
    assert runs.first_index == min(dumb, default=runs.last_index + 1)
    lo = random.randint(0, runs.last_index + 2)
    hi = lo + random.randint(0, 40)
    spans = runs.spans(lo=lo, hi=hi, bytes_max=1 << 30)
    found = {i: (s.sequence, s.offset, s.size) for s in spans for i in range(s.lo, s.hi)}
    expected = {index: dumb[index] for index in range(lo, hi) if index in dumb} if lo in dumb else {}
    assert found == expected
    after = runs.place_after(lo)
    places = [place for index, place in sorted(dumb.items()) if index > lo]
    assert after == (places[0][:2] if places else None)


def test_spans_stop_at_the_bound_but_give_one_at_least():
    """The bytes asked for bound the answer, and one run is always given."""
    runs = RunIndex(last_index=0)
    for index in range(1, 6):
        runs.add(index, index, sequence=3, offset=index * 100, size=100)
    assert runs.spans(lo=2, hi=9, bytes_max=1) == [Span(2, 3, 3, 200, 100)]
    assert [span.lo for span in runs.spans(lo=2, hi=9, bytes_max=250)] == [2, 3, 4]
    assert runs.spans(lo=2, hi=2, bytes_max=250) == []


def test_a_gap_is_our_bug():
    """Nobody appends past the end."""
    with pytest.raises(AssertionError, match="a gap"):
        RunIndex(last_index=3).add(5, 5, sequence=0, offset=0, size=1)
