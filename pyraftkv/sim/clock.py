"""`SimClock`: the clocks of a simulated machine, which may run at another speed than the world.

They are straight lines over the world's time: ``local = offset + rate * world``. Every change of a line starts a new
one where the old one stands, so the monotonic clock never goes back, whatever is done to it.

The wall clock shares the oscillator, so it drifts with the monotonic one. It goes on while the machine is suspended
(a battery keeps it), and it can be set at will: nothing of the product may depend on it.

The boot clock is the monotonic one and the time for which the machine was suspended, as ``CLOCK_BOOTTIME`` is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

WALL_EPOCH = 1_767_225_600.0
"""What wall clocks show when a simulation starts: 2026-01-01 00:00 UTC, in seconds since the epoch."""


class SimClock:
    """The clocks of one machine; they outlive its processes.

    Args:
        world: The world's time, in seconds since the start.

    Invariant: `time` never goes back.
    """

    __slots__ = ("_frozen", "_frozen_at", "_offset", "_rate", "_suspended", "_wall_offset", "_world", "changed")

    def __init__(self, world: Callable[[], float]) -> None:
        self._world = world
        self._offset = 0.0
        self._rate = 1.0
        self._frozen = False
        self._frozen_at = 0.0
        self._suspended = 0.0
        """For how long it was suspended before, by its own oscillator."""
        self._wall_offset = WALL_EPOCH
        self.changed: list[Callable[[], object]] = []
        """Called after every change of the monotonic clock: pending timers move."""

    def __repr__(self) -> str:
        return f"<SimClock at {self.time():.6f}, {'frozen' if self._frozen else f'rate {self._rate:g}'}>"

    @property
    def rate(self) -> float:
        """Local seconds per second of the world; 0 while frozen."""
        return 0.0 if self._frozen else self._rate

    def time(self) -> float:
        """The monotonic clock, in seconds."""
        return self.at(self._world())

    def at(self, world: float) -> float:
        """What the monotonic clock shows at that time of the world, as things stand."""
        return self._offset if self._frozen else self._offset + self._rate * world

    def when(self, local: float) -> float:
        """When in the world the monotonic clock will show ``local``; infinity if that never comes."""
        if self._frozen:
            return math.inf if local > self._offset else self._world()
        return (local - self._offset) / self._rate

    def set_rate(self, rate: float) -> None:
        """Run at ``rate`` local seconds per second of the world from now on."""
        assert 0 < rate < math.inf, "a clock that stands still is frozen"
        wall, self._suspended, self._frozen_at = self.wall(), self._asleep(), self._world()
        self._move(self.time(), rate=rate)
        self.set_wall(wall)
        self._tell()

    def jump(self, seconds: float) -> None:
        """Go forward at once, the wall clock too."""
        assert seconds >= 0, "a monotonic clock does not go back"
        self._move(self.time() + seconds, rate=self._rate)
        self._wall_offset += seconds
        self._tell()

    def freeze(self) -> None:
        """Suspend the machine: the monotonic clock stands still until `thaw`. Idempotent."""
        if not self._frozen:
            local, self._frozen = self.time(), True
            self._offset = local
            self._frozen_at = self._world()
            self._tell()

    def thaw(self) -> None:
        """Go on where `freeze` stopped. Idempotent."""
        if self._frozen:
            self._suspended = self._asleep()
            local, self._frozen = self._offset, False
            self._move(local, rate=self._rate)
            self._tell()

    def boot(self) -> float:
        """The boot clock, in seconds: it counts suspended time as well."""
        return self.time() + self._asleep()

    def _asleep(self) -> float:
        return self._suspended + (self._rate * (self._world() - self._frozen_at) if self._frozen else 0.0)

    def wall(self) -> float:
        """The wall clock, in seconds since the epoch."""
        return self._wall_offset + self._rate * self._world()

    def set_wall(self, seconds: float) -> None:
        """Set the wall clock, forward or back."""
        self._wall_offset = seconds - self._rate * self._world()

    def _move(self, local: float, *, rate: float) -> None:
        """Draw a line of that slope through (now, ``local``), rounded so that it does not begin below."""
        self._rate = rate
        if self._frozen:
            self._offset = local
            return
        run = rate * self._world()
        self._offset = local - run
        while self._offset + run < local:
            self._offset = math.nextafter(self._offset, math.inf)

    def _tell(self) -> None:
        for callback in list(self.changed):
            callback()
