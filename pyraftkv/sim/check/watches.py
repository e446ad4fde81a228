"""Watches: every change of a key or range, in order, once, without a gap, a revision always whole.

A replay knows every revision, who made it, and what it changed (`revisions`). So what a watch has to show is known to
the last field, and each delivery is compared with it:

- *Ordered, once*: revisions ascend, over the whole life of the watch; within one, events come as they were made.
- *Right*: each event is the model's, the key-value before it too if it was asked for. That may only be missing when
  history up to the event was compacted.
- *Without a gap*: nothing is left out between the first revision that the watch owes and the last one it has shown. It
  owes from `start_revision` on; without one, from where it says to stand (`synced`), or from its first event.
- *Whole*: of a revision that it has shown a part of, it shows the rest before it goes on, or says it is done with it.
- *Bookmarks hold*: what promises that everything up to a revision has been handed out is true, and nothing older
  follows. After `WatchCancelled` just what was shown is below the revision it says to resume from, so that the two
  watches together have no gap and nothing twice.

That no event is shown, and no revision promised, before it was begun is a matter of real-time order, which the replay
has checked.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from pyraftkv.sim.check.history import Delivery, History, Outcome, WatchRecord
from pyraftkv.sim.check.revisions import Replay, replay
from pyraftkv.sim.check.silence import begin_of, concerns, promised_through, shown_through
from pyraftkv.sim.check.verdict import HistoryError, Verdict, right, wrong
from pyraftkv.sim.check.words import event_words
from pyraftkv.store.commands import Compact
from pyraftkv.store.values import Event, EventType


def check_watches(history: History, replayed: Replay | None = None, *, through_revision: int = 0) -> Verdict:
    """Check every watch of a history against what was done to the store.

    Args:
        history: What happened.
        replayed: What `replay` made of it, if that is known already.
        through_revision: What every watch that was not cancelled must have shown by its end, if it concerns it.

    Returns:
        The replay's verdict if that is not right: without knowing what was done nothing can be said of watches.
    """
    replayed = replayed or replay(history)
    if not replayed.verdict.ok:
        return replayed.verdict
    everything = [event for entry in replayed.model.log for event in replayed.model.events(entry)]
    compactions = _compactions(history)
    try:
        for watch in history.watches:
            last = max(through_revision, shown_through(watch), promised_through(watch), watch.resume_revision or 0)
            low = bisect_left(everything, begin_of(watch), key=_revision)
            owed = everything[low : bisect_right(everything, last, key=_revision)]
            _Check(watch, [event for event in owed if _concerns(watch, event)], replayed, compactions).run(
                through_revision
            )
    except HistoryError as error:
        return wrong(error)
    return right(states=replayed.verdict.states)


def _compactions(history: History) -> list[tuple[int, int]]:
    """Return when compactions began that may have been done, and which revision they name."""
    return [
        (op.began, op.request.revision)
        for op in history.ops
        if isinstance(op.request, Compact) and op.outcome is not Outcome.FAILED
    ]


class _Check:
    """The check of one watch.

    Invariant: `_at` is the place, among the events owed, of the next one to be shown; those before it were shown.
    """

    def __init__(
        self, watch: WatchRecord, owed: list[Event], replayed: Replay, compactions: list[tuple[int, int]]
    ) -> None:
        self.watch = watch
        self._owed = owed
        self._replayed = replayed
        self._compactions = compactions
        self._at = 0
        self._promised = 0
        """Everything up to here was said to be handed out."""

    def run(self, through_revision: int) -> None:
        """Check all deliveries. Raises `HistoryError`."""
        for delivery in self.watch.deliveries:
            for event in delivery.events:
                self._take(event, delivery)
            if delivery.revision:
                self._promise(delivery)
        resume_revision = self.watch.resume_revision
        if resume_revision is not None:
            self._resume(resume_revision)
        elif self._at < len(self._owed) and _revision(self._owed[self._at]) <= through_revision:
            raise self._error(f"has not shown, by its end, {event_words(self._owed[self._at])}", self._owed[self._at])

    def _take(self, event: Event, delivery: Delivery) -> None:
        """Compare one event with the next one owed."""
        revision = _revision(event)
        if revision <= self._promised:
            raise self._error(f"showed {event_words(event)} after it had promised to be past it", event)
        if self._at == len(self._owed):
            raise self._odd(event)
        owed = self._owed[self._at]
        if (event.type, event.kv) != (owed.type, owed.kv):
            raise self._odd(event)
        if event.prev_kv != (owed.prev_kv if self.watch.prev_kv else None) and not self._forgotten(event, delivery):
            raise self._error(f"showed a wrong key-value before {event_words(event)}: {event.prev_kv}", event)
        self._at += 1

    def _forgotten(self, event: Event, delivery: Delivery) -> bool:
        """Tell whether the key-value before an event may be missing because it was compacted."""
        revision = _revision(event)
        return (
            self.watch.prev_kv
            and event.prev_kv is None
            and any(began < delivery.order and compact >= revision for began, compact in self._compactions)
        )

    def _odd(self, event: Event) -> HistoryError:
        """Say in which way an event is not the one that was due."""
        shown = event_words(event)
        place = bisect_left(self._owed, _revision(event), key=_revision)
        same = [owed for owed in self._owed[place:] if _revision(owed) == _revision(event)]
        match = next((owed for owed in same if (owed.type, owed.kv) == (event.type, event.kv)), None)
        if match is None:
            of_key = next((owed for owed in same if owed.kv.key == event.kv.key), None)
            if of_key is not None:
                return self._error(f"showed {shown}, but it was {event_words(of_key)}", event)
            if not _concerns(self.watch, event):
                return self._error(f"showed what does not concern it, {shown}", event)
            return self._error(f"showed {shown}, which did not happen", event)
        if self._owed.index(match) < self._at:
            return self._error(f"showed {shown} again, or too late", event)
        missed = self._owed[self._at]
        return self._error(f"showed {shown}, but left out {event_words(missed)}", missed)

    def _promise(self, delivery: Delivery) -> None:
        """Everything up to its revision is said to have been handed out, and nothing beyond it was."""
        revision = delivery.revision
        if delivery.last_revision > revision:
            event = delivery.events[-1]
            raise self._error(f"handed out {event_words(event)} in a batch up to revision {revision}", event)
        if self._at < len(self._owed) and _revision(self._owed[self._at]) <= revision:
            missed = self._owed[self._at]
            raise self._error(
                f"promised to be done up to revision {revision}, but left out {event_words(missed)}", missed
            )
        self._promised = max(self._promised, revision)

    def _resume(self, revision: int) -> None:
        """The watch said to go on from ``revision``."""
        if revision < self.watch.start_revision:
            raise HistoryError(f"{self.watch} said to resume from revision {revision}, before it began")
        if self._at < len(self._owed) and _revision(self._owed[self._at]) < revision:
            missed = self._owed[self._at]
            raise self._error(f"said to resume from revision {revision}, but left out {event_words(missed)}", missed)
        if self._at and shown_through(self.watch) >= revision:
            reason = f"said to resume from revision {revision}, but has shown {shown_through(self.watch)} before"
            raise self._error(reason, self._owed[self._at - 1])

    def _error(self, what: str, event: Event) -> HistoryError:
        maker = self._replayed.makers.get(_revision(event))
        return HistoryError(f"{self.watch} {what}", *([maker] if maker is not None else []))


def _revision(event: Event) -> int:
    return event.kv.mod_revision


def _concerns(watch: WatchRecord, event: Event) -> bool:
    return concerns(watch, event.kv.key, is_put=event.type is EventType.PUT)
