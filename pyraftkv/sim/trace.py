"""What happened, one event after another: the record of a simulated run.

A run of thirty virtual seconds makes some fifty thousand events and may take little more than a second, so adding one
appends a tuple and formats nothing: words are made when somebody reads. What is added must therefore not change
afterwards (records do not). The *canonical lines* of two runs of one seed are equal, byte for byte; `Trace.digest` is
their hash. To keep that promise, details hold values that `pyraftkv.sim.show` can show, and no addresses or times of
the real world.

The kinds that the diagram draws, with their details (others are lines, and marks on the host's lifeline):

=============  ====================================================================================================
``message``    target, what (a message, or words), sent_at, arrived_at (None: never), fate (one of `FATES`);
               source unless it is the host
``role``       role (a `Role`, or "leader", "follower" ...), term
``commit``     index
``apply``      index
``crash``      how ("killed", "power loss" ...)
``start``      boot, the how manieth start
``stop``       nothing: a graceful end
``pause``      nothing; ends with ``resume``, or with the host
``cut``        source, target: nothing gets from one to the other, until ``heal`` with the same (or with neither: all)
``disk``       what
``clock``      what
``fault``      text
``invoke``     op (a number, unique at its host), command
``return``     op, outcome ("ok", "failed", "unknown"), result or error
``violation``  text, ops (optional: pairs of host and op, the operations that the text speaks of)
=============  ====================================================================================================
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from pyraftkv.sim.check.words import answer_words, request_words
from pyraftkv.sim.show import printable, show, show_message
from pyraftkv.store.commands import PutKey
from pyraftkv.store.values import PutResult

FATES = ("delivered", "dropped", "duplicated", "corrupted", "late")
"""What may become of a message."""
EVENTS_MAX = 500_000
"""How many events a trace holds; when more happen, the oldest half goes (into the digest)."""
DIGEST_BYTES = 16
STEPS_TELLING_MAX = 12
"""When faults began and ended no more often than this, each of these moments is part of the story."""


class Event(NamedTuple):
    """One thing that happened."""

    at: float
    """Virtual seconds since the start of the run."""
    host: str
    """Where; empty for the world outside of every host."""
    kind: str
    detail: dict[str, Any]


AnyEvent = tuple[float, str, str, dict[str, Any]]
"""An `Event`, or the plain tuple that it is held as."""


class Trace:
    """The events of a run, in the order in which they were added, which is that of virtual time.

    Args:
        events_max: How many of the latest events are held. The digest covers all of them.
    """

    def __init__(self, *, events_max: int = EVENTS_MAX) -> None:
        assert events_max >= 2, events_max
        self._events: list[AnyEvent] = []
        self._events_max = events_max
        self._forgotten = 0
        self._hash = blake2b(digest_size=DIGEST_BYTES)
        self._hashed = 0
        """How many of the held events the hash covers already."""

    def __len__(self) -> int:
        return len(self._events)

    def __repr__(self) -> str:
        return f"<Trace events={len(self._events)} forgotten={self._forgotten}>"

    @property
    def forgotten(self) -> int:
        """How many events are held no more."""
        return self._forgotten

    def add(self, at: float, host: str, kind: str, /, **detail: Any) -> None:
        """Append one event, in about a microsecond. The values of `detail` must not change afterwards."""
        self._events.append((at, host, kind, detail))
        if len(self._events) > self._events_max:
            self._forget(self._events_max // 2)

    def events(self, kinds: Collection[str] = (), *, host: str | None = None) -> Iterator[Event]:
        """Yield the events that are held: all of them, or those of some kinds, or of one host. O(n)."""
        for event in self._events:
            if (not kinds or event[2] in kinds) and (host is None or host in hosts_of(event)):
                yield Event._make(event)

    def lines(self, kinds: Collection[str] = (), *, host: str | None = None) -> Iterator[str]:
        """Yield `events` as their canonical lines."""
        return map(line_of, self.events(kinds, host=host))

    def tail(self, count: int) -> list[str]:
        """Return the lines of the last `count` events."""
        return [line_of(event) for event in self._events[-count:]] if count > 0 else []

    def digest(self) -> str:
        """Return the hash of every line so far, in hexadecimal. It formats each that is new: O(new events)."""
        self._hash_until(len(self._events))
        return self._hash.hexdigest()

    def _hash_until(self, count: int) -> None:
        for start in range(self._hashed, count, 1_000):
            chunk = self._events[start : min(start + 1_000, count)]
            self._hash.update("".join(f"{line_of(event)}\n" for event in chunk).encode())
        self._hashed = max(self._hashed, count)

    def _forget(self, count: int) -> None:
        self._hash_until(count)
        del self._events[:count]
        self._hashed -= count
        self._forgotten += count


def moments_of(events: Iterable[AnyEvent]) -> list[float]:
    """Return when faults began and ended, if they were few enough to be looked at one by one; else nothing. O(n)."""
    moments = [event[0] for event in events if event[2] == "fault"]
    return moments if len(moments) <= STEPS_TELLING_MAX else []


def nearest(times: Sequence[float], moments: Sequence[float], count: int) -> list[int]:
    """Return the places of the ``count`` times that are nearest to some moments, in order. O(moments * n log n).

    Moments take turns, so that a crowd at one of them leaves room for the others. What follows a moment is nearer than
    what went before it.

    >>> nearest([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], [2.0, 8.0], 5)
    [2, 3, 4, 7, 8]
    """

    def order(moment: float) -> Iterator[int]:
        away = [time - moment if time >= moment else 2 * (moment - time) for time in times]
        return iter(sorted(range(len(times)), key=lambda place: (away[place], -place)))

    orders = [order(moment) for moment in moments]
    taken: set[int] = set()
    while orders and len(taken) < min(count, len(times)):
        place = next(place for place in orders[0] if place not in taken)
        taken.add(place)
        orders.append(orders.pop(0))
    return sorted(taken)


def hosts_of(event: AnyEvent) -> tuple[str, ...]:
    """Return the hosts that an event is about, the one that it comes from first."""
    _, host, _, detail = event
    target = detail.get("target")
    if target is None:
        return (host,)
    source: str = detail.get("source", host)
    return (source, target)


def line_of(event: AnyEvent) -> str:
    """Return the canonical line of an event: when, where, what and how it ended.

    >>> line_of((3.25, "n1", "commit", {"index": 12}))
    '   3.250000  n1            commit    index=12'
    """
    at, host, _, detail = event
    where = " -> ".join(hosts_of(event)) if "target" in detail else host
    return printable(f"{at:11.6f}  {where:<12}  {text_of(event)}")


def text_of(event: AnyEvent) -> str:
    """Return what happened in an event, without when and where."""
    _, _, kind, detail = event
    if kind == "message":
        return _text_of_message(detail)
    return f"{kind:<9} {_text_of_detail(detail)}".rstrip()


def _text_of_message(detail: dict[str, Any]) -> str:
    sent_at, arrived_at = detail.get("sent_at"), detail.get("arrived_at")
    text = f"{show_message(detail.get('what', '')):<56}  {detail.get('fate', 'delivered')}"
    if sent_at is None or arrived_at is None:
        return text
    return f"{text} after {(arrived_at - sent_at) * 1e3:.3f} ms"


def _text_of_detail(detail: dict[str, Any]) -> str:
    """Return ``name=value`` for each, but what names itself bare."""
    return " ".join(
        words_of(value) if name in _BARE else f"{name}={show(value)}"
        for name, value in detail.items()
        if name not in _IN_PLACE and value is not None
    )


def words_of(value: Any) -> str:
    """Return a detail in words: what was asked and answered as one would say it, anything else as `show` does."""
    module = type(value).__module__
    if module == PutKey.__module__:
        return request_words(value)
    if module == PutResult.__module__:
        return answer_words(value, None)
    return show(value)


_BARE = frozenset({"text", "what", "how", "role", "command", "outcome", "result", "error"})
_IN_PLACE = frozenset({"source", "target"})
