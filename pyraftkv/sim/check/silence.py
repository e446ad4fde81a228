"""What watches leave unsaid: between the places where one says to stand, it shows every change that concerns it.

So a revision of which a watch of `k/` says nothing changed nothing below `k/`, whoever made it. That is only as true as
the watch, which is what `watches` asks. So a replay first believes it, to tell apart the writes of unknown outcome that
could have made a revision; if nothing fits, it goes without.
"""

from __future__ import annotations

from pyraftkv.sim.check.history import History, WatchRecord
from pyraftkv.sim.check.model import Entry, in_range


class Silence:
    """What the watches of a history do not show. O(events) to make, and for each revision asked about."""

    def __init__(self, history: History) -> None:
        self._spans = [(watch, begin_of(watch), _complete_through(watch)) for watch in history.watches]
        self._watching: dict[int, list[tuple[WatchRecord, set[bytes]]]] = {}
        """By revision, the watches that have told all of it, and the keys of which they have shown something there."""

    def allows(self, entry: Entry) -> bool:
        """Tell whether every watch that a command's changes concern has shown them."""
        revision = entry.revision
        if revision not in self._watching:
            watching = [watch for watch, first, last in self._spans if first <= revision <= last]
            self._watching[revision] = [(watch, _keys_shown(watch, revision)) for watch in watching]
        return all(
            change.key in shown
            for watch, shown in self._watching[revision]
            for change in entry.changes
            if concerns(watch, change.key, is_put=change.after is not None)
        )


def concerns(watch: WatchRecord, key: bytes, *, is_put: bool) -> bool:
    """Tell whether a watch has to show a change of a key."""
    unwanted = watch.no_put if is_put else watch.no_delete
    return not unwanted and in_range(key, watch.key, watch.end)


def begin_of(watch: WatchRecord) -> int | float:
    """Return the first revision that a watch owes; infinity if it owes nothing.

    Without a start it owes what comes after the place where it says to stand, and from its first event on at the
    latest; if it has neither said nor shown anything, it owes nothing.
    """
    if watch.start_revision:
        return watch.start_revision
    starts = [each.placed_revision + 1 for each in watch.deliveries if each.placed_revision]
    starts += [each.events[0].kv.mod_revision for each in watch.deliveries if each.events]
    return min(starts, default=float("inf"))


def shown_through(watch: WatchRecord) -> int:
    """Return the last revision that a watch has shown anything of, 0 if none."""
    return max((each.last_revision for each in watch.deliveries), default=0)


def promised_through(watch: WatchRecord) -> int:
    """Return the last revision up to which a watch said to have handed out everything, 0 if it never did."""
    return max((each.revision for each in watch.deliveries), default=0)


def _complete_through(watch: WatchRecord) -> int:
    """Return up to where a watch has shown everything: of the last revision shown a part may be missing."""
    return max(promised_through(watch), shown_through(watch) - 1, (watch.resume_revision or 0) - 1)


def _keys_shown(watch: WatchRecord, revision: int) -> set[bytes]:
    events = (event for delivery in watch.deliveries for event in delivery.events)
    return {event.kv.key for event in events if event.kv.mod_revision == revision}
