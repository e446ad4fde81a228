"""What a member's disk is able to do, and what the member does about it.

*Without room* nothing that is to be saved can be: a follower acknowledges nothing, a leader counts itself no more. Both
still vote (the log has room reserved for that), and answer what needs no disk. So while its disk is full a member

* refuses writes, as `DiskFull`: nothing was proposed, and another member may take them;
* hands leadership over, again and again until somebody has it: the cluster goes on with the disks that have room;
* says so: ``DISK_FULL`` among the alarms of its status.

All of that ends by itself when there is room again: what waited is saved, and what was missed comes from the leader.

*A slow disk* makes everybody wait. Saves that take longer than `SLOW_SAVE_SECONDS` are counted and told; a leader that
loses much of its time to them hands over (`node.watchdog`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from pyraftkv import errors

logger = logging.getLogger("pyraftkv.node")

DISK_FULL = "DISK_FULL"
"""The alarm of a member whose disk is full, as its status says it."""

SLOW_SAVE_SECONDS = 1.0
"""A save that takes longer is counted and told."""

WARNING_SECONDS = 10.0
"""How long nothing more is said of slow saves, which are counted all the same."""


class DiskHealth:
    """How the disk of one member is.

    Args:
        name: The member's, for the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.is_full = False
        """Whether saves wait for room."""
        self.slow_saves = 0
        """Saves so far that took longer than `SLOW_SAVE_SECONDS`."""
        self._quiet_until = 0.0
        self._hand_over_at = 0.0
        self.release: Callable[[int], None] | None = None
        """Told of saves whose vote is durable, and nothing else of them; None before the member runs."""

    @property
    def alarms(self) -> list[str]:
        return [DISK_FULL] if self.is_full else []

    def filled(self, is_full: bool) -> None:  # noqa: FBT001  (the storage's listener)
        """Take note that saves wait for room, or do so no longer."""
        self.is_full = is_full
        if is_full:
            self._hand_over_at = 0.0
            logger.error("%s: the disk is full: no writes here until there is room", self._name)
        else:
            logger.warning("%s: the disk has room again", self._name)

    def promised(self, number: int) -> None:
        """Take note that the vote of a save is durable."""
        if self.release is not None:
            self.release(number)

    def saved(self, seconds: float, *, now: float) -> None:
        """Take note of how long a save took. Times are the event loop's."""
        if seconds <= SLOW_SAVE_SECONDS:
            return
        self.slow_saves += 1
        if now >= self._quiet_until:
            self._quiet_until = now + WARNING_SECONDS
            logger.warning("%s: a save took %.1f s; %d were slow so far", self._name, seconds, self.slow_saves)

    def check(self) -> None:
        """Raise `DiskFull` if there is no room for a write."""
        if self.is_full:
            raise errors.DiskFull(f"the disk of {self._name} is full")

    def tend(self, now: float, *, again_seconds: float, give_up: Callable[[str], None]) -> None:
        """Hand over while there is no room. Call every 100 ms or so.

        Args:
            now: The event loop's time.
            again_seconds: After how long to try again, if nobody took over.
            give_up: Hands over, if this member leads and there is anybody.
        """
        if self.is_full and now >= self._hand_over_at:
            self._hand_over_at = now + again_seconds
            give_up("disk full")
