"""The watchdog: notices that a leader loses its time, so that it can hand over before it loses its leadership.

A leader whose event loop is held up, by its host program or by a machine that has too much to do, sends heartbeats
late; one whose disk hangs acknowledges nothing of its own. Followers wait an election timeout before they look for
another leader, and so does everybody's traffic. A leader that notices first costs nobody anything: a transfer is done
in a few messages.

But every program is held up now and then, and a transfer for each of these would be worse than the trouble. So time is
looked at in windows of an election timeout. A window is bad when more than `SHARE_MAX` of it was lost, and only
`WINDOWS_MAX` bad ones in a row are a reason. One long pause, however long, is one bad window: when it is over, it is
over.
"""

from __future__ import annotations

SHARE_MAX = 0.5
"""Of a window: what may be lost of it."""

WINDOWS_MAX = 3
"""Bad windows in a row upon which a leader hands over."""

DISK_SHARE = 0.25
"""Of an election timeout: a save that takes longer keeps its leader from its work."""

QUIET_WINDOWS = 30
"""After a warning nothing is said for so many windows: whoever leads next has its chance, and so has the trouble."""


class Watchdog:
    """Counts the time that one member loses. Times are the event loop's, in seconds; nothing is asked of a clock.

    Args:
        window_seconds: An election timeout.
        at: The time now.
    """

    def __init__(self, *, window_seconds: float, at: float) -> None:
        self._window_seconds = window_seconds
        self._began_at = self._seen_at = at
        self._lost = {"event loop": 0.0, "disk": 0.0}
        self._bad = {"event loop": 0, "disk": 0}
        self._quiet_until = at

    def observe(self, *, at: float, late_seconds: float, saving_since: float | None) -> str | None:
        """Take note of the time since the last call; return what to hand over for, or None.

        Args:
            at: The time now.
            late_seconds: How much later than it was due this call comes.
            saving_since: When the oldest save that is not on disk was handed out; None if everything is.
        """
        self._lost["event loop"] += late_seconds
        if saving_since is not None:
            behind = at - max(saving_since + DISK_SHARE * self._window_seconds, self._seen_at)
            self._lost["disk"] += max(0.0, behind)
        self._seen_at = at
        length = at - self._began_at
        if length < self._window_seconds:
            return None
        self._began_at = at
        for what, lost in self._lost.items():
            self._bad[what] = self._bad[what] + 1 if lost > SHARE_MAX * length else 0
            self._lost[what] = 0.0
        reason = next((what for what, bad in self._bad.items() if bad >= WINDOWS_MAX), None)
        if reason is None or at < self._quiet_until:
            return None
        self._quiet_until = at + QUIET_WINDOWS * self._window_seconds
        self._bad[reason] = 0
        return reason
