"""Real-time order: what had returned before something else began must stand before it.

Every operation is given a *position* on a line that the store can only walk forwards: its revision, say. Linearizable
means that the positions can be reconciled with real time: if a returned before b began, then a's position is not
behind b's. Where an operation leaves room (it fits at more than one position) it takes the lowest that is not below
what had returned before it began. This is the best choice it has, for it forbids the least to those that come after
it. So one pass over all invocations and returns in their order decides, in O(n log n), with one number to remember:
the highest position of everything that has returned.

What changes the store stands at an even position, what only looks at the result of it at the odd one behind it. So an
observer cannot have returned before that which it has observed was even begun.

Reads of one member's own state may lag behind, and are held only to what was seen on that member before. But they,
too, see nothing that has not been done yet, and what they saw the others must see from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pyraftkv.sim.check.history import Op, WatchRecord
from pyraftkv.sim.check.verdict import HistoryError


def changes_at(place: int) -> int:
    """Return the position of what brings the store to ``place``."""
    return 2 * place


def looks_at(place: int) -> int:
    """Return the position of what sees the store at ``place``."""
    return 2 * place + 1


@dataclass(slots=True, eq=False)
class Mark:
    """One operation, or one delivery of a watch, on the line."""

    began: int
    ended: int | None
    """None if it never returned: it holds nobody to anything."""
    position: int
    """The lowest position at which it fits."""
    what: str
    """In words, for example "saw revision 7"."""
    op: Op | None = None
    fit: Callable[[int], int | None] | None = None
    """Return the lowest position from the given one on at which it fits, None if there is none; without it,
    `position` is the only one."""
    lags: bool = False
    """It may be behind what others have seen."""
    member: str = ""
    """It is not behind what was seen on this member."""
    watch: WatchRecord | None = None


class _Floor:
    """The highest position that has returned, and whose it is."""

    __slots__ = ("mark", "position")

    def __init__(self) -> None:
        self.position = 0
        self.mark: Mark | None = None

    def rise(self, mark: Mark) -> None:
        if mark.position > self.position:
            self.position, self.mark = mark.position, mark


def check_order(marks: Iterable[Mark]) -> None:
    """Reconcile positions with real time. O(n log n). Raises `HistoryError`."""
    events: list[tuple[int, int, Mark]] = []
    for number, mark in enumerate(marks):
        events.append((mark.began, number, mark))
        if mark.ended is not None:
            events.append((mark.ended, number, mark))
    events.sort(key=lambda event: event[:2])
    everybody = _Floor()
    members: dict[str, _Floor] = {}
    nothing = _Floor()
    for order, _, mark in events:
        if order == mark.began:
            if not mark.lags:
                _place(mark, everybody)
            elif mark.member:
                _place(mark, members.get(mark.member, nothing))
        if order == mark.ended:
            everybody.rise(mark)
            if mark.member:
                members.setdefault(mark.member, _Floor()).rise(mark)


def _place(mark: Mark, floor: _Floor) -> None:
    """Give a mark the lowest position that is not below the floor."""
    if mark.position >= floor.position:
        return
    position = mark.fit(floor.position) if mark.fit is not None else None
    if position is not None:
        mark.position = position
        return
    other = floor.mark
    assert other is not None, "nothing is below an empty floor"
    names = f"{_name(mark)} {mark.what}"
    where = f" on {mark.member}" if mark.lags else ""
    reason = f"{names}, but {_name(other)}, which had ended before it began{where}, {other.what}"
    raise HistoryError(reason, *(each.op for each in (other, mark) if each.op is not None))


def _name(mark: Mark) -> str:
    return f"#{mark.op.number}" if mark.op is not None else str(mark.watch)
