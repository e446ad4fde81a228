"""What is in the picture: spans, arrows and marks, read from a trace in one pass.

Events say when something begins and ends; a picture needs what lasts: who led in which term and how long, who was
down, which links were cut, which operation was under way. `read_scene` plays the events from the beginning, so that
what had begun before the window is known at its edge, and keeps what touches the window.

A run makes tens of thousands of messages, more than anybody looks at and a page should hold. What tells the story is
kept whole: roles, crashes, cuts, faults, operations, violations. Of the rest, the *chatter*, `CHATTER_MAX` events are
kept: messages that were lost or spoilt and elections first, then replication, then commits, then heartbeats; and
within each of these, the nearest to what the picture is about: the violation, and the faults if they are few.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Any, ClassVar

from pyraftkv._record import record
from pyraftkv.sim.show import show
from pyraftkv.sim.trace import Event, Trace, hosts_of, moments_of, words_of

CHATTER_MAX = 4_000
"""How many messages, commits and the like a picture holds."""
WINDOW_SECONDS = 8.0
"""How much time before its focus a picture shows, when nobody says more."""
AFTER_SECONDS = 0.25
"""How much after it."""
FAULT_SECONDS_MAX = 60.0
"""How far back the window may reach for the first of a few faults: what came of it may show only at the end."""
OPERATION_SECONDS_MAX = 30.0
"""How far back the window may reach for the beginning of an operation that the violation speaks of."""
LATE_SECONDS = 2.0
"""A violation found later than this after the operations that it speaks of is shown where they are."""
TOGETHER_SECONDS = 0.02
"""Cuts that begin within this time, and end within it, are one partition."""

GROUPS: dict[str, str] = {
    "Heartbeat": "heartbeat",
    "HeartbeatResponse": "heartbeat",
    "VoteRequest": "vote",
    "VoteResponse": "vote",
    "AppendRequest": "append",
    "AppendResponse": "append",
    "CommitNotice": "append",
    "ReadIndexRequest": "read",
    "ReadIndexResponse": "read",
    "InstallSnapshot": "snapshot",
}
"""What filters call a message, by its name; others are "message"."""
CHATTER = ("vote", "snapshot", "message", "append", "read", "commit", "heartbeat", "apply")
"""The groups of events that may be left out, the most telling first."""


@record
class Span:
    """Something that lasts on one lifeline: a role, a life that is over, a pause."""

    host: str
    since: float
    until: float
    what: str
    term: int
    event: int
    """Its place in `Scene.events`, or -1 when it had begun before the window."""


@record
class Cut:
    """Links that were cut together."""

    since: float
    until: float
    links: list[tuple[str, str]]
    event: int


@record
class Operation:
    """A client's operation; without an end when nobody heard of it again."""

    host: str
    number: int
    since: float
    until: float | None
    command: str
    outcome: str
    result: str
    lane: int
    event: int
    accused: bool
    """Whether a violation speaks of it."""


@record
class Arrow:
    """A message."""

    source: str
    target: str
    sent_at: float
    arrived_at: float | None
    name: str
    group: str
    fate: str
    event: int


@record
class Mark:
    """Something that happened at one instant."""

    host: str
    at: float
    kind: str
    text: str
    event: int


@dataclass(slots=True)
class Scene:
    """Everything that is drawn between `since` and `until`."""

    since: float
    until: float
    hosts: list[str] = field(default_factory=list)
    """The lifelines from left to right: members, then clients, then others; first whom a violation names."""
    members: set[str] = field(default_factory=set)
    """Those with a role, or that send messages. A member may ask for operations, too: of itself."""
    events: list[tuple[Event, str]] = field(default_factory=list)
    """Those in the window, and every violation, and what filters call them, in their order."""
    roles: list[Span] = field(default_factory=list)
    outages: list[Span] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    violations: list[Mark] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    """What it is about: its focus, and before that faults, if they are few."""
    left_out: int = 0
    """How much chatter of the window is not in it."""


def read_scene(
    trace: Trace, *, since: float | None = None, until: float | None = None, chatter_max: int = CHATTER_MAX
) -> Scene:
    """Return what is to be seen of a trace between two times; without them, around its first violation.

    Args:
        trace: What happened.
        since: The beginning of the window in virtual seconds.
        until: Its end.
        chatter_max: How many messages and the like are kept.
    """
    events = sorted(map(_from_sending, trace.events()), key=lambda event: event.at)
    moments, since, until = _window(events, since, until)
    scene = Scene(since=since, until=until, moments=moments)
    places, scene.left_out = _choose(events, chatter_max, scene)
    _Reader(scene, _accused(events)).read(events, places)
    scene.hosts, scene.members = _hosts(events)
    return scene


def group_of(event: Event) -> str:
    """Return what filters call an event."""
    if event.kind != "message":
        return _GROUPS_OF_KINDS.get(event.kind) or slug(event.kind)
    return GROUPS.get(_name(event.detail.get("what", "")), "message")


def slug(text: str) -> str:
    """Return `text` as one word that can be the name of a class."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower())[:40]


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts n2 before n10."""
    return [(int(digits or 0), letters) for letters, digits in re.findall(r"(\D*)(\d*)", name)]


def parted(links: Iterable[tuple[str, str]]) -> str:
    """Return cut links in words: who is parted from whom, or which single ways are closed."""
    ways = dict.fromkeys(links)
    both = [way for way in ways if way[::-1] in ways and natural(way[0]) <= natural(way[1])]
    if both and len(both) * 2 == len(ways):
        ends = sorted({end for way in both for end in way}, key=natural)
        near = [end for end in ends if end == ends[0] or (ends[0], end) not in ways]
        far = [end for end in ends if end not in near]
        if len(near) * len(far) == len(both) and all(way in ways for way in product(near, far)):
            one, other = sorted((near, far), key=len)
            return f"{' '.join(one)} cut off from {' '.join(other)}"
        return ", ".join(f"{one} ↮ {other}" for one, other in both)
    return ", ".join(f"{source} ↛ {target}" for source, target in ways)


_GROUPS_OF_KINDS = {
    "start": "crash",
    "stop": "crash",
    "pause": "crash",
    "resume": "crash",
    "heal": "cut",
    "invoke": "operation",
    "return": "operation",
}


def _name(what: Any) -> str:
    """Return the first word of a message."""
    return what.partition(" ")[0] if isinstance(what, str) else type(what).__name__


def _from_sending(event: Event) -> Event:
    """Return an event as of when it began: a message is added to a trace when its fate is known."""
    sent_at = event.detail.get("sent_at") if event.kind == "message" else None
    return event if sent_at is None else event._replace(at=sent_at)


def _window(events: list[Event], since: float | None, until: float | None) -> tuple[list[float], float, float]:
    """Return what the picture is about, and its window."""
    last = events[-1].at if events else 0.0
    accused = _accused(events)
    times = [event.at for event in events if event.kind in {"invoke", "return"} and _key(event) in accused]
    focus = next((event.at for event in events if event.kind == "violation"), last)
    if times and focus - times[-1] > LATE_SECONDS:  # found by a check at the end: what matters was long ago
        focus = times[-1]
    if until is None:
        until = min(focus + AFTER_SECONDS, last) if since is None else last
    focus = min(focus, until)
    struck = [at for at in moments_of(events) if at <= focus]
    if since is None:
        earliest = min([at for at in times if focus - OPERATION_SECONDS_MAX <= at], default=focus)
        earliest = min([earliest, *(at for at in struck if focus - FAULT_SECONDS_MAX <= at)])
        since = max(0.0, min(until - WINDOW_SECONDS, earliest - 0.5))
    return [*(at for at in struck if at >= since), focus], since, max(until, since + 1e-3)


def _accused(events: list[Event]) -> set[tuple[str, Any]]:
    """Return the operations that violations speak of."""
    return {tuple(key) for event in events if event.kind == "violation" for key in event.detail.get("ops") or ()}


def _key(event: Event) -> tuple[str, Any]:
    return event.host, event.detail.get("op")


def _choose(events: list[Event], chatter_max: int, scene: Scene) -> tuple[dict[int, int], int]:
    """Fill `scene.events`. Return their places by position in `events`, and how many were left out."""
    chatter: list[tuple[int, float, int]] = []
    kept: list[int] = []
    groups: dict[int, str] = {}
    for position, event in enumerate(events):
        if not scene.since <= event.at <= scene.until and event.kind != "violation":
            continue
        groups[position] = group = group_of(event)
        if group not in CHATTER:
            kept.append(position)
            continue
        spoilt = event.detail.get("fate", "delivered") != "delivered" and group != "heartbeat"
        away = min(abs(event.at - moment) for moment in scene.moments)
        chatter.append((0 if spoilt else CHATTER.index(group), away, position))
    chatter.sort()
    kept += [position for _, _, position in chatter[:chatter_max]]
    kept.sort()
    scene.events = [(events[position], groups[position]) for position in kept]
    return {position: place for place, position in enumerate(kept)}, max(0, len(chatter) - chatter_max)


def _hosts(events: list[Event]) -> tuple[list[str], set[str]]:
    """Return every host of the trace, and which of them are members, by what they do."""
    found: dict[str, set[str]] = {}
    for event in events:
        for host in hosts_of(event):
            if host:
                found.setdefault(host, set()).add(event.kind)
    members = {host for host, kinds in found.items() if kinds & {"role", "commit", "message"}}
    clients = {host for host, kinds in found.items() if "invoke" in kinds and host not in members}
    words = " ".join(_words(event) for event in events if event.kind == "violation")
    named = {host for host in found if host not in members and re.search(rf"\b{re.escape(host)}\b", words)}
    floors = {host: 0 if host in members else 1 if host in clients else 2 for host in found}
    return sorted(found, key=lambda host: (floors[host], host not in named, natural(host))), members


class _Reader:
    """Plays events and collects what lasts. Fills `scene`."""

    def __init__(self, scene: Scene, accused: set[tuple[str, Any]]) -> None:
        self._scene = scene
        self._accused = accused
        self._roles: dict[str, Span] = {}
        self._outages: dict[str, Span] = {}
        self._cuts: dict[tuple[str, str], tuple[float, int]] = {}
        self._closed: list[tuple[float, float, int, tuple[str, str]]] = []
        self._operations: dict[tuple[str, Any], Operation] = {}

    def read(self, events: list[Event], places: dict[int, int]) -> None:
        """Play every event up to the end of the window, then close what is still open."""
        handlers, scene = self._HANDLERS, self._scene
        for position, event in enumerate(events):
            if event.at > scene.until and event.kind != "violation":
                continue
            place = places.get(position, -1)
            handler = handlers.get(event.kind)
            if handler is not None:
                handler(self, event, place)
            elif place >= 0 and event.kind != "apply":
                scene.marks.append(Mark(event.host, event.at, event.kind, _words(event), place))
        for table, into in ((self._roles, scene.roles), (self._outages, scene.outages)):
            for host in list(table):
                self._close(table, into, host, scene.until)
        for link in list(self._cuts):
            self._heal(link, scene.until)
        scene.cuts = _together(self._closed)
        for operation in self._operations.values():
            self._keep(operation)
        scene.operations.sort(key=lambda each: (each.since, each.host, each.number))

    def _close(self, table: dict[str, Span], into: list[Span], host: str, at: float) -> None:
        span = table.pop(host, None)
        if span is not None and at > self._scene.since:
            into.append(Span(host, max(span.since, self._scene.since), at, span.what, span.term, span.event))

    def _message(self, event: Event, place: int) -> None:
        if place < 0:
            return
        detail = event.detail
        source, target = hosts_of(event) if "target" in detail else (event.host, event.host)
        arrived_at, fate = detail.get("arrived_at"), slug(detail.get("fate", "delivered"))
        name = _name(detail.get("what", ""))
        self._scene.arrows.append(
            Arrow(source, target, event.at, arrived_at, name, GROUPS.get(name, "message"), fate, place)
        )

    def _role(self, event: Event, place: int) -> None:
        self._close(self._roles, self._scene.roles, event.host, event.at)
        role, term = slug(show(event.detail.get("role", ""))), event.detail.get("term", 0)
        self._roles[event.host] = Span(event.host, event.at, event.at, role, term, place)

    def _down(self, event: Event, place: int) -> None:
        self._close(self._roles, self._scene.roles, event.host, event.at)
        self._close(self._outages, self._scene.outages, event.host, event.at)
        what = show(event.detail.get("how", "stopped" if event.kind == "stop" else event.kind))
        self._outages[event.host] = Span(event.host, event.at, event.at, what, 0, place)
        self._mark(event, place)

    def _pause(self, event: Event, place: int) -> None:
        if event.host not in self._outages:
            self._outages[event.host] = Span(event.host, event.at, event.at, "paused", 0, place)
        self._mark(event, place)

    def _up(self, event: Event, place: int) -> None:
        self._close(self._outages, self._scene.outages, event.host, event.at)
        self._mark(event, place)

    def _cut(self, event: Event, place: int) -> None:
        link = event.detail.get("source", event.host), event.detail.get("target", "")
        self._cuts.setdefault(link, (event.at, place))

    def _healed(self, event: Event, place: int) -> None:
        del place
        source, target = event.detail.get("source"), event.detail.get("target")
        for link in list(self._cuts):
            if source is None or link == (source, target):
                self._heal(link, event.at)

    def _heal(self, link: tuple[str, str], at: float) -> None:
        begun = self._cuts.pop(link, None)
        if begun is not None and at > self._scene.since:
            self._closed.append((max(begun[0], self._scene.since), at, begun[1], link))

    def _invoke(self, event: Event, place: int) -> None:
        key = _key(event)
        if (before := self._operations.pop(key, None)) is not None:
            self._keep(before)
        busy = {each.lane for each in self._operations.values() if each.host == event.host}
        lane = next(lane for lane in range(len(busy) + 1) if lane not in busy)
        number = key[1] if isinstance(key[1], int) else -1
        command = words_of(event.detail.get("command", ""))
        accused = key in self._accused
        self._operations[key] = Operation(
            event.host, number, event.at, None, command, "unknown", "", lane, place, accused
        )

    def _return(self, event: Event, place: int) -> None:
        operation = self._operations.pop(_key(event), None)
        if operation is None:
            return
        result = event.detail.get("result", event.detail.get("error"))
        self._keep(
            Operation(
                operation.host,
                operation.number,
                operation.since,
                event.at,
                operation.command,
                slug(show(event.detail.get("outcome", "ok"))),
                "" if result is None else words_of(result),
                operation.lane,
                operation.event if operation.event >= 0 else place,
                operation.accused,
            )
        )

    def _keep(self, operation: Operation) -> None:
        if operation.until is None or operation.until > self._scene.since:
            self._scene.operations.append(operation)

    def _mark(self, event: Event, place: int) -> None:
        if place >= 0:
            self._scene.marks.append(Mark(event.host, event.at, event.kind, _words(event), place))

    def _violation(self, event: Event, place: int) -> None:
        if place >= 0:
            self._scene.violations.append(Mark(event.host, event.at, "violation", _words(event), place))

    _HANDLERS: ClassVar[dict[str, Callable[[_Reader, Event, int], None]]] = {
        "message": _message,
        "role": _role,
        "crash": _down,
        "stop": _down,
        "start": _up,
        "pause": _pause,
        "resume": _up,
        "cut": _cut,
        "heal": _healed,
        "invoke": _invoke,
        "return": _return,
        "violation": _violation,
    }


def _words(event: Event) -> str:
    """Return what a mark says."""
    detail = event.detail
    for name in ("text", "what", "how"):
        if name in detail:
            return show(detail[name])
    return " ".join(f"{name} {show(value)}" for name, value in detail.items() if value is not None)


def _together(closed: list[tuple[float, float, int, tuple[str, str]]]) -> list[Cut]:
    """Join links that were cut at about the same time and healed at about the same time."""
    cuts: list[Cut] = []
    for since, until, event, link in sorted(closed):
        for cut in cuts:
            if abs(cut.since - since) <= TOGETHER_SECONDS and abs(cut.until - until) <= TOGETHER_SECONDS:
                cut.links.append(link)
                break
        else:
            cuts.append(Cut(since, until, [link], event))
    return cuts
