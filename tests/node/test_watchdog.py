"""The watchdog: time that is lost again and again is a reason to hand over, one bad moment is none."""

from __future__ import annotations

from pyraftkv.node.watchdog import DISK_SHARE, QUIET_WINDOWS, SHARE_MAX, WINDOWS_MAX, Watchdog

WINDOW = 1.0
STEP = 0.1


class Watched:
    """A watchdog that looks every `STEP` seconds of a member's life, which goes by hand."""

    def __init__(self) -> None:
        self.now = 50.0
        self.watchdog = Watchdog(window_seconds=WINDOW, at=self.now)

    def look(self, *, late: float = 0.0, saving_since: float | None = None) -> str | None:
        """Let the next look come so late."""
        self.now += STEP + late
        return self.watchdog.observe(at=self.now, late_seconds=late, saving_since=saving_since)

    def calm(self, seconds: float) -> None:
        """Let nothing be wrong for so long."""
        until = self.now + seconds
        while self.now < until:
            assert self.look() is None

    def busy(self, late: float, *, seconds: float) -> list[str]:
        """Let every look come so late, for so long; return what was said."""
        until = self.now + seconds
        said = []
        while self.now < until:
            reason = self.look(late=late)
            said += [reason] if reason is not None else []
        return said


def test_nothing_is_said_while_nothing_is_wrong() -> None:
    """Saves that take a while are no trouble."""
    watched = Watched()
    watched.calm(30.0)
    for _ in range(300):
        assert watched.look(saving_since=watched.now - DISK_SHARE * WINDOW + STEP) is None


def test_one_pause_is_no_reason_however_long() -> None:
    """1. A process was stopped for a minute. 2. When it goes on, others may lead; if not, all is well again."""
    watched = Watched()
    for _ in range(5):
        assert watched.look(late=60.0) is None
        watched.calm(3 * WINDOW)


def test_pauses_that_leave_half_of_the_time_are_no_reason() -> None:
    """A host program that holds up the loop for a third of a second every second is a bad neighbour, and no more."""
    watched = Watched()
    for _ in range(60):
        assert watched.look(late=0.3) is None
        watched.calm(0.6)


def test_a_loop_that_loses_most_of_its_time_is_a_reason_after_some_windows() -> None:
    """As soon as that many bad ones are complete, and not before."""
    watched = Watched()
    began = watched.now
    late = 2 * STEP * SHARE_MAX / (1 - SHARE_MAX)
    assert watched.busy(late, seconds=WINDOWS_MAX * WINDOW - STEP - late) == []
    assert watched.busy(late, seconds=2 * WINDOW) == ["event loop"]
    assert watched.now - began < (WINDOWS_MAX + 3) * WINDOW


def test_a_good_window_begins_the_count_again() -> None:
    """The bad ones must be in a row."""
    watched = Watched()
    for _ in range(10):
        assert watched.busy(0.4, seconds=(WINDOWS_MAX - 1.5) * WINDOW) == []
        watched.calm(2 * WINDOW)


def test_after_a_warning_it_is_quiet_for_a_while() -> None:
    """Whoever leads next has its chance; if this member still leads, and is still held up, it says so again."""
    watched = Watched()
    assert watched.busy(0.4, seconds=(QUIET_WINDOWS - 2) * WINDOW) == ["event loop"]
    assert watched.busy(0.4, seconds=10 * WINDOW) == ["event loop"]


def test_a_disk_that_hangs_is_a_reason() -> None:
    """Counted is what a save takes beyond a share of the window, so that slow disks may be slow."""
    watched = Watched()
    since = watched.now
    looks = [watched.look(saving_since=since) for _ in range(round((WINDOWS_MAX + 1) * WINDOW / STEP))]
    assert [reason for reason in looks if reason is not None] == ["disk"]
    assert looks.index("disk") * STEP >= WINDOWS_MAX * WINDOW - STEP


def test_a_slow_disk_is_none() -> None:
    """Each save is looked at for itself: what it takes of its share is not counted, and the next one has it again."""
    watched = Watched()
    for _ in range(10):
        since = watched.now
        while watched.now < since + 0.35 * WINDOW:
            assert watched.look(saving_since=since) is None
