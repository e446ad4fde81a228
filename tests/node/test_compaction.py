"""Compaction without being asked: when it is due, and up to which revision."""

from __future__ import annotations

import random

from pyraftkv.node.compaction import REVISION_SECONDS, SAMPLES_MAX, Compactor
from pyraftkv.settings import CompactionMode, Settings

HOUR = 3600


def periodic(seconds: int) -> Settings:
    """Return settings that keep so many seconds of history."""
    return Settings(compaction_mode=CompactionMode.PERIODIC, compaction_seconds=seconds)


class Clock:
    """A compactor, a clock that it is told of ten times a second or so, and a store that writes all the time."""

    def __init__(self, settings: Settings, *, step: float = 0.5, revisions_per_second: float = 10.0) -> None:
        self.settings = settings
        self.compactor = Compactor()
        self.now = 1000.0
        self.begun = self.now
        self.step = step
        self.revisions_per_second = revisions_per_second
        self.compact_revision = 0
        self.done: list[tuple[float, int]] = []
        """Seconds since the beginning, and the revision that was compacted at."""
        self.leads = True

    @property
    def revision(self) -> int:
        """One more every so often."""
        return 1 + int((self.now - self.begun) * self.revisions_per_second)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until = self.now + seconds
        while self.now < until:
            self.compactor.observe(self.settings, revision=self.revision, now=self.now)
            if self.leads:
                target = self.compactor.due(
                    self.settings, revision=self.revision, compact_revision=self.compact_revision, now=self.now
                )
                if target is not None:
                    self.compact_revision = target
                    self.done.append((self.now - self.begun, target))
            self.now += self.step


def test_the_first_compaction_comes_after_a_whole_period_and_then_one_every_period() -> None:
    """What was there a period ago is forgotten, no later than a tenth of a period after it."""
    clock = Clock(periodic(100))
    clock.run(99)
    assert clock.done == []
    clock.run(302)
    assert [round(at) for at, _ in clock.done] == [100, 200, 300, 400]
    assert [target for _, target in clock.done] == [1, 1001, 2001, 3001]


def test_a_long_period_is_compacted_every_hour() -> None:
    """A day is kept, and a little more, not two."""
    clock = Clock(periodic(24 * HOUR), step=30.0, revisions_per_second=1.0)
    clock.run(30 * HOUR + 60)
    assert [round(at / HOUR, 1) for at, _ in clock.done] == [24.0, 25.0, 26.0, 27.0, 28.0, 29.0, 30.0]
    assert [round(target / HOUR, 1) for _, target in clock.done] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_history_is_never_shorter_than_the_period_whatever_the_hours() -> None:
    """Random periods, and a clock that is looked at late."""
    for seed in range(30):
        rng = random.Random(seed)
        seconds = rng.randint(1, 5000)
        clock = Clock(periodic(seconds), step=seconds / rng.uniform(3, 60))
        clock.run(seconds * rng.uniform(1, 8))
        for at, target in clock.done:
            newest_that_may_go = 1 + (at - seconds) * clock.revisions_per_second
            assert target <= newest_that_may_go + 1, (seed, seconds, at, target)


def test_who_leads_late_has_taken_notes_before() -> None:
    """Leaders that change more often than a period lasts compact all the same."""
    clock = Clock(periodic(100))
    clock.leads = False
    clock.run(250)
    clock.leads = True
    clock.run(1)
    assert [target for _, target in clock.done] == [1501]


def test_another_period_begins_anew() -> None:
    """Notes that were taken for another one are too far apart, or too few."""
    clock = Clock(periodic(100))
    clock.run(95)
    clock.settings = periodic(10)
    clock.run(9)
    assert clock.done == []
    clock.run(2)
    assert [target for _, target in clock.done] == [951]
    clock.settings = Settings(compaction_mode=CompactionMode.OFF)
    clock.run(1000)
    assert len(clock.done) == 1


def test_the_last_revisions_stay() -> None:
    """Looked at every five minutes; nothing is compacted before there are as many."""
    settings = Settings(compaction_mode=CompactionMode.REVISION, compaction_revisions=4000)
    clock = Clock(settings)
    clock.run(4 * REVISION_SECONDS + 1)
    assert clock.done == [(600.0, 2001), (900.0, 5001), (1200.0, 8001)]


def test_what_was_compacted_further_already_is_left_alone() -> None:
    """Somebody was faster by hand, and then nothing was written."""
    clock = Clock(periodic(100), revisions_per_second=0.0)
    clock.run(350)
    assert clock.done == [(100.0, 1)]
    clock.compact_revision = 500
    clock.revisions_per_second = 1.0
    clock.run(300)
    assert [target for _, target in clock.done[1:]] == [501]


def test_notes_are_bounded() -> None:
    """Of years there are no more than of an hour."""
    clock = Clock(periodic(10 * 365 * 24 * HOUR), step=1e5)
    clock.run(20 * 365 * 24 * HOUR)
    assert 10 < len(clock.compactor._samples) <= SAMPLES_MAX + 2
