"""When a leader compacts by itself, and up to which revision (etcd, ``--auto-compaction-mode``).

*Periodic.* Revisions have no time in the store, so every member notes now and then how far history has come. What was
there a whole period ago is compacted: history that can be read and watched is never shorter than a period. Every
member takes notes, not only the leader:

1. A leader dies every fifty minutes, and the period is an hour.
2. If the next one began to count when it is elected, nothing would ever be compacted.

Who was just started begins to count: its first compaction comes after a whole period.

*By revision.* The last so many revisions stay; looked at every five minutes.
"""

from __future__ import annotations

from collections import deque

from pyraftkv.settings import CompactionMode, Settings

PERIOD_SECONDS_MAX = 3600.0
"""A longer period, too, is compacted so often."""

SAMPLES_PER_PERIOD = 10
"""How often history is looked at in a period, or in an hour of it."""

SAMPLES_MAX = 1000
"""Notes kept: of a long period they stand farther apart."""

REVISION_SECONDS = 300.0
"""How often it is looked at how many revisions there are."""


class Compactor:
    """Says what is due; knows neither the leader nor the store."""

    __slots__ = ("_mode", "_next_compaction", "_next_sample", "_period_seconds", "_samples")

    def __init__(self) -> None:
        self._mode = CompactionMode.OFF
        self._period_seconds = 0
        self._samples: deque[tuple[float, int]] = deque()
        """When, and how far history had come: the newest that is a period old, and all after it."""
        self._next_sample = 0.0
        self._next_compaction = 0.0

    def observe(self, settings: Settings, *, revision: int, now: float) -> None:
        """Take note of the present. Call it every 100 ms or so, on every member. O(1).

        Args:
            settings: As they are now.
            revision: The current one.
            now: On a monotonic clock, in seconds.
        """
        if (self._mode, self._period_seconds) != (settings.compaction_mode, settings.compaction_seconds):
            self._begin(settings, now)
        if self._mode is not CompactionMode.PERIODIC or now < self._next_sample:
            return
        period, samples = self._period_seconds, self._samples
        samples.append((now, revision))
        self._next_sample = now + max(self._interval_seconds / SAMPLES_PER_PERIOD, period / SAMPLES_MAX)
        while len(samples) > 1 and samples[1][0] <= now - period:
            samples.popleft()

    @property
    def _interval_seconds(self) -> float:
        """How long it is from one compaction to the next, at least."""
        if self._mode is CompactionMode.REVISION:
            return REVISION_SECONDS
        return min(self._period_seconds, PERIOD_SECONDS_MAX)

    def _begin(self, settings: Settings, now: float) -> None:
        """The settings are others than before: what was noted says nothing about them."""
        self._mode, self._period_seconds = settings.compaction_mode, settings.compaction_seconds
        self._samples.clear()
        self._next_sample = now
        self._next_compaction = now + self._interval_seconds

    def due(self, settings: Settings, *, revision: int, compact_revision: int, now: float) -> int | None:
        """Return the revision to compact at now, if any; it is taken as done. O(1). Arguments as for `observe`."""
        if now < self._next_compaction:
            return None
        target = 0
        if self._mode is CompactionMode.REVISION:
            target = revision - settings.compaction_revisions
        elif self._samples and self._samples[0][0] <= now - self._period_seconds:
            target = self._samples[0][1]
        is_due = target > compact_revision
        if is_due or self._mode is CompactionMode.REVISION:
            self._next_compaction = now + self._interval_seconds
        return target if is_due else None
