"""A scene as SVG. Time flows down, every host is a lifeline.

Down, because what clients do is told in words, and words need width: each operation is a line of text beside its bar,
and the page's list of events, which is in step with the picture, is one too.

The page stretches time without drawing anew. So that it can, everything in a layer is one of three things: a ``line``
(its y1 and y2 move), a ``rect`` (its y and height) or a ``g`` placed by ``translate`` (it moves as it is). What they
are is said by classes: ``k-…`` what filters call it, ``h-…`` the lifelines that it belongs to, ``x`` a label that has
no room now. ``data-e`` is the event's place in the list.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from itertools import pairwise
from textwrap import wrap

from pyraftkv._record import record
from pyraftkv.sim.scene import Arrow, Cut, Mark, Operation, Scene, Span, parted, slug
from pyraftkv.sim.show import cut, printable
from pyraftkv.sim.trace import FATES, line_of

AXIS_WIDTH = 62
WORLD_WIDTH = 160
MEMBER_WIDTH = 126
CLIENT_WIDTH_MIN, CLIENT_WIDTH_MAX, CLIENTS_WIDTH = 140, 230, 600
"""Of the column of one client, and of all of them if that is possible."""
CHARACTER_WIDTH = 5.4
"""Of a label, on average."""
HEAD_HEIGHT = 34
PAD = 14
"""Pixels above the first moment and below the last."""
HEIGHT = 1_500
"""Pixels that a picture of a whole window has by default, within the two scales below."""
SCALE_MIN, SCALE_MAX = 60.0, 4_000.0
"""Pixels per second."""
LEGEND_WIDTH = 1_180
LANE_WIDTH = 9
LANES_MAX = 6
"""Operations of one client side by side; more are drawn over one another."""
LABEL_HEIGHT = 11
WORDS_GAP = 12
"""Between the last moment and the words of a violation: the names of what happened then are seen above them."""
MARK_OFFSET = 13
"""Of the words of a mark, from its lifeline."""
MARK_LENGTH_MAX, MARK_LENGTH_MORE = 20, 6
"""Of the words of a mark, and how much longer they are beside a client, where there is room."""
TERM_COLOURS = 6
TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
TICK_HEIGHT_MIN = 45
NAMES_PIXELS, NAMES_MAX = 300, 50
"""How often a leader's band says whose it is."""
LOST_AT = 0.6
"""How far on its way a lost message is drawn."""


@record
class Label:
    """Words that may be hidden."""

    lane: str
    """Labels of one lane get into each other's way."""
    y: float
    shape: str
    want: str
    """"", "alone" or "always"."""


_BAND_WIDTHS = {"leader": 16, "candidate": 12, "pre_candidate": 12}


def resource(name: str) -> str:
    """Return a text that lies beside this module."""
    return files("pyraftkv.sim").joinpath(name).read_text(encoding="utf-8")


def clean(text: str) -> str:
    """Return `text` so that it can stand in XML, in an attribute too."""
    return escape(printable(text), quote=True)


class Picture:
    """Draws a scene.

    Args:
        scene: What is to be seen.
        scale: Pixels per second; chosen by the window when left out.
        titles: Whether every shape carries its line, for pictures without a page around them.
    """

    def __init__(self, scene: Scene, *, scale: float | None = None, titles: bool = False) -> None:
        self._scene = scene
        self._titles = titles
        seconds = scene.until - scene.since
        self.scale = scale or min(max(HEIGHT / seconds, SCALE_MIN), SCALE_MAX)
        self.numbers = {host: number for number, host in enumerate(scene.hosts)}
        self._lanes: dict[str, int] = {}
        for each in scene.operations:
            self._lanes[each.host] = max(self._lanes.get(each.host, 0), min(each.lane, LANES_MAX - 1))
        self._place_columns()
        self.height = round(2 * PAD + seconds * self.scale + self._words_height())
        self._labels: list[Label] = []

    def _place_columns(self) -> None:
        """Give each host a lifeline, and what it asks for a column: a client's own, a member's beside the lifelines."""
        world = any(mark.kind == "fault" or not mark.host for mark in self._scene.marks)
        left: float = AXIS_WIDTH + WORLD_WIDTH * world
        asking = [host for host in self._scene.hosts if host in self._lanes]
        self._client_width = min(max(CLIENTS_WIDTH / max(1, len(asking)), CLIENT_WIDTH_MIN), CLIENT_WIDTH_MAX)
        self._x: dict[str, float] = {}
        self._clients_x: dict[str, float] = {}
        for host in self._scene.hosts:
            if host in self._scene.members or host not in self._lanes:
                self._x[host] = left + MEMBER_WIDTH / 2
                left += MEMBER_WIDTH
        for host in asking:
            self._clients_x[host] = left + 26
            self._x.setdefault(host, left + 26)
            left += self._client_width
        # What is said of the last lifeline has no column beside it to reach into.
        reach = MARK_OFFSET + (MARK_LENGTH_MAX + MARK_LENGTH_MORE) * CHARACTER_WIDTH
        self.width = round(max(left + 10, max(self._x.values(), default=0.0) + reach))

    def _words_height(self) -> int:
        """Return the room that the words of violations need below the last moment."""
        return max((WORDS_GAP + 17 * len(self._wrapped(mark)) for mark in self._scene.violations), default=0)

    def _wrapped(self, mark: Mark) -> list[str]:
        words = printable(f"{mark.host}: {mark.text}" if mark.host else mark.text)
        return wrap(words, max(40, int(self.width - AXIS_WIDTH - 60) // 8))[:8] or [""]

    # --- Parts ---

    def head(self) -> str:
        """Return the names of the lifelines."""
        parts = [f'<text class="axis" x="{AXIS_WIDTH - 8}" y="22" text-anchor="end">seconds</text>']
        if self._x and min(self._x.values()) > AXIS_WIDTH + WORLD_WIDTH:
            parts.append(f'<text class="axis" x="{AXIS_WIDTH + 10}" y="22">what was done to them</text>')
        for host, x in self._x.items():
            if host not in self._clients_x or host in self._scene.members:
                parts.append(self._heading(host, x, "middle", host))
        for host, x in self._clients_x.items():
            words = f"program of {host}" if host in self._scene.members else host
            parts.append(self._heading(host, x - 6, "start", words))
        return "".join(parts)

    def _heading(self, host: str, x: float, anchor: str, words: str) -> str:
        number = self.numbers[host]
        return (
            f'<text class="host h-{number}" data-h="{number}" x="{x:g}" y="22" text-anchor="{anchor}">'
            f"{clean(cut(words, length_max=18))}</text>"
        )

    def body(self) -> str:
        """Return everything that happens, layer by layer, the lowest first."""
        scene = self._scene
        layers = {
            "cuts": [self._cut(each) for each in scene.cuts],
            "lines": self._lifelines(),
            "axes": self._ticks(),
            "bands": self._bands(),
            "outages": [self._outage(span) for span in scene.outages],
            "arrows": [self._arrow(arrow) for arrow in scene.arrows],
            "operations": [self._operation(each) for each in scene.operations],
            "marks": [self._mark(mark) for mark in scene.marks],
            "violations": [self._violation(mark) for mark in scene.violations],
        }
        layers["labels"] = self._decluttered()
        order = [name for name in layers if name != "violations"] + ["violations"]
        return "\n".join(f'<g class="layer {name}">\n{_joined(layers[name])}</g>' for name in order)

    def defs(self) -> str:
        """Return arrow heads and hatches."""
        heads = "".join(
            f'<marker id="to-{fate}" class="{fate}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6.5" '
            f'markerHeight="6.5" markerUnits="userSpaceOnUse" orient="auto"><path d="M0,0.8 L8,4 L0,7.2 z"/></marker>'
            for fate in ("delivered", "heartbeat", "duplicated", "corrupted", "late")
        )
        lost = (
            '<marker id="to-dropped" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="8" markerHeight="8" '
            'markerUnits="userSpaceOnUse"><path class="lost" d="M1,1 L7,7 M7,1 L1,7"/></marker>'
        )
        hatches = "".join(_hatch(f"hatch-{number}", f"hatch t{number}", 5) for number in range(TERM_COLOURS))
        return (
            f"<defs>{heads}{lost}{hatches}{_hatch('hatch-pause', 'grey', 6)}{_hatch('hatch-cut', 'cutting', 9)}</defs>"
        )

    def legend(self) -> str:
        """Return what the signs mean, in one line of `LEGEND_WIDTH` and the height of a heading."""
        parts: list[str] = []
        x = 8
        for fate in FATES:
            end = x + 20 if fate == "dropped" else x + 30
            parts.append(
                f'<line class="{fate}" x1="{x}" x2="{end}" y1="9" y2="9"/><text x="{x + 36}" y="13">{fate}</text>'
            )
            x += 104
        for role, width in (("leader", 16), ("candidate", 12), ("follower", 8)):
            parts.append(f'<rect class="{role} t2" x="{x}" y="2" width="{width}" height="14"/>')
            parts.append(f'<text x="{x + 22}" y="13">{role}</text>')
            x += 88
        for words, classes in (("down", "down"), ("paused", "paused"), ("links cut", "cut")):
            parts.append(f'<rect class="{classes}" x="{x}" y="2" width="18" height="14"/>')
            parts.append(f'<text x="{x + 24}" y="13">{words}</text>')
            x += 84
        parts.append(f'<text x="{x}" y="13">one colour per term</text>')
        return f'<g class="arrows legend">{"".join(parts)}</g>'

    # --- Layers ---

    def _y(self, at: float) -> float:
        return PAD + (at - self._scene.since) * self.scale

    def _tag(self, event: int, kind: str, hosts: Iterable[str], extra: str = "") -> str:
        numbers = [f"h-{self.numbers[host]}" for host in dict.fromkeys(hosts) if host in self.numbers]
        classes = " ".join(filter(None, [f"k-{kind}", *numbers, extra]))
        return f'class="{classes}"' + (f' data-e="{event}"' if event >= 0 else "")

    def _title(self, event: int) -> str:
        if not self._titles or event < 0:
            return ""
        return f"<title>{clean(' '.join(line_of(self._scene.events[event][0]).split()))}</title>"

    def _rect(self, tag: str, x: float, width: float, since: float, until: float, event: int) -> str:
        y = self._y(max(since, self._scene.since))
        height = max(self._y(min(until, self._scene.until)) - y, 1.5)
        return f'<rect {tag} x="{x:g}" width="{width:g}" y="{y:.1f}" height="{height:.1f}">{self._title(event)}</rect>'

    def _pin(self, tag: str, x: float, at: float, inside: str, event: int = -1) -> str:
        return f'<g {tag} transform="translate({x:g},{self._y(at):.1f})">{inside}{self._title(event)}</g>'

    def _label(self, lane: str, at: float, shape: str, *, want: str = "") -> None:
        """Remember a label, to be shown if its lane has room for what it wants (see `declutter`)."""
        self._labels.append(Label(lane, self._y(at), shape, want))

    def _lifelines(self) -> list[str]:
        bottom = self._y(self._scene.until)
        return [
            f'<line class="life h-{self.numbers[host]}" x1="{x:g}" x2="{x:g}" y1="{PAD}" y2="{bottom:.1f}"/>'
            for host, x in dict.fromkeys([*self._x.items(), *self._clients_x.items()])
        ]

    def _ticks(self) -> list[str]:
        step = next((step for step in TICKS if step * self.scale >= TICK_HEIGHT_MIN), TICKS[-1])
        first, last = int(self._scene.since / step + 0.999999), int(self._scene.until / step + 1e-9)
        digits = 3 if step < 0.01 else 2 if step < 0.1 else 1
        lines = [f'<line x1="{AXIS_WIDTH - 4}" x2="{self.width}" y1="0" y2="0"/>'] * (last - first + 1)
        return [
            self._pin(
                'class="tick"',
                0,
                number * step,
                f'{line}<text x="{AXIS_WIDTH - 8}" y="3.5" text-anchor="end">{number * step:.{digits}f}</text>',
            )
            for number, line in zip(range(first, last + 1), lines, strict=True)
        ]

    def _bands(self) -> list[str]:
        shapes: list[str] = []
        terms: dict[str, int] = {}
        for span in self._scene.roles:
            x, width = self._x[span.host], _BAND_WIDTHS.get(span.what, 8)
            tag = self._tag(span.event, "role", [span.host], f"{span.what} t{span.term % TERM_COLOURS}")
            shapes.append(self._rect(tag, x - width / 2, width, span.since, span.until, span.event))
            self._name_band(span, named=terms.get(span.host) == span.term)
            terms[span.host] = span.term
        return shapes

    def _name_band(self, span: Span, *, named: bool) -> None:
        """Say role and term where they begin; of a leader again and again, for who comes in the middle."""
        ruling = span.what in _BAND_WIDTHS
        if named and not ruling:
            return
        words = f"{span.what.replace('_', '-')} {span.term}" if ruling else f"term {span.term}"
        side, anchor, offset = ("left", "end", -13)
        if ruling and span.what != "leader":  # a candidate's stands where it is not in the way of the leader's
            side, anchor, offset = ("right", "start", 13)
        tag = self._tag(span.event, "role", [span.host], f"label n{span.term % TERM_COLOURS} {span.what}-name")
        inside = f'<text y="8" text-anchor="{anchor}">{clean(words)}</text>'
        at = span.since
        for _ in range(NAMES_MAX if span.what == "leader" else 1):
            self._label(f"{side} {span.host}", at, self._pin(tag, self._x[span.host] + offset, at, inside))
            at += NAMES_PIXELS / self.scale
            if at > span.until - NAMES_PIXELS / self.scale / 2:
                break

    def _outage(self, span: Span) -> str:
        x = self._x[span.host]
        paused = span.what == "paused"
        tag = self._tag(span.event, "crash", [span.host], "paused" if paused else "down")
        return self._rect(tag, x - 10, 20, span.since, span.until, span.event)

    def _cut(self, each: Cut) -> str:
        """Shade the gaps between neighbours that are parted; for other links, all that is between their ends."""
        order = [host for host in self._x if any(host in link for link in each.links)]
        near = {frozenset(pair) for pair in pairwise(order)}
        shaded = [link for link in each.links if frozenset(link) in near] or each.links
        sides = sorted({tuple(sorted(self._x[end] for end in link)) for link in shaded if set(link) <= set(order)})
        if not sides:
            return ""
        tag = self._tag(each.event, "cut", (), "cut")
        left, right = sides[0][0], sides[0][1]
        words = cut(parted(each.links), length_max=44)
        shape = self._pin(
            self._tag(each.event, "cut", (), "label cut-name"),
            (left + right) / 2,
            max(each.since, self._scene.since),
            f'<text y="12" text-anchor="middle">{clean(words)}</text>',
        )
        self._label("cuts", each.since, shape)
        return "".join(
            self._rect(tag, one + 14, max(4, other - one - 28), each.since, each.until, each.event)
            for one, other in sides
        )

    def _arrow(self, arrow: Arrow) -> str:
        one, other = self._x.get(arrow.source), self._x.get(arrow.target)
        if one is None or other is None or one == other:
            return ""
        side = 9 if other > one else -9
        x1, x2 = one + side, other - side
        y1 = self._y(arrow.sent_at)
        y2 = y1 if arrow.arrived_at is None else self._y(arrow.arrived_at)
        fate = arrow.fate
        if arrow.arrived_at is None:
            x2, fate = x1 + (x2 - x1) * LOST_AT, "corrupted" if fate == "corrupted" else "dropped"
        tag = self._tag(arrow.event, arrow.group, (arrow.source, arrow.target), fate)
        self._name_arrow(arrow, x1, x2)
        title = self._title(arrow.event)
        return f'<line {tag} x1="{x1:g}" x2="{x2:g}" y1="{y1:.1f}" y2="{y2:.1f}">{title}</line>'

    def _name_arrow(self, arrow: Arrow, x1: float, x2: float) -> None:
        if arrow.group == "heartbeat":
            return
        rightward = x2 > x1
        gap = min(abs(x2 - x1), MEMBER_WIDTH - 18)
        middle = x1 + (gap if rightward else -gap) / 2
        seconds = (arrow.arrived_at or arrow.sent_at) - arrow.sent_at
        at = arrow.sent_at + seconds * (gap / 2 / max(1.0, abs(x2 - x1)))
        shape = self._pin(
            self._tag(arrow.event, arrow.group, (arrow.source, arrow.target), f"label arrow-name {arrow.fate}"),
            middle,
            at,
            f"<text>{clean(cut(arrow.name, length_max=22))}</text>",
        )
        gap_number = self.numbers[arrow.source] - (not rightward)
        self._label(f"gap {gap_number}", at, shape, want="alone")

    def _operation(self, each: Operation) -> str:
        left = self._clients_x[each.host]
        x = left - 4 + LANE_WIDTH * min(each.lane, LANES_MAX - 1)
        until = self._scene.until if each.until is None else each.until
        extra = f"{each.outcome}{' accused' if each.accused else ''}"
        tag = self._tag(each.event, "operation", [each.host], f"operation {extra}")
        asked = each.command.removeprefix("get ").partition(" (")[0]  # a key that was read need not be said twice
        result = (each.result or each.outcome).removeprefix(f"{asked} = ").replace(" at revision ", " @")
        answer = f" → {result}" if each.until is not None else " → no answer"
        beside = LANE_WIDTH * (1 + self._lanes[each.host]) - 3
        room = int((self._client_width - beside - 26) / CHARACTER_WIDTH) + 1
        words = cut(each.command, length_max=max(8, room - min(len(answer), room // 2)))
        words += cut(answer, length_max=max(5, room - len(words)))
        at = max(each.since, self._scene.since)
        shape = self._pin(
            self._tag(each.event, "operation", [each.host], f"label operation-name {extra}"),
            left + beside,
            at,
            f'<text y="7.5">{clean(words)}</text>',
        )
        self._label(f"client {each.host}", at, shape, want="always" if each.accused else "")
        return self._rect(tag, x, LANE_WIDTH - 2, each.since, until, each.event)

    def _mark(self, mark: Mark) -> str:
        kind = "crash" if mark.kind in _SIGNS else slug(mark.kind)
        if mark.kind == "commit" and mark.host in self._x:
            x = self._x[mark.host] + 9
            y = self._y(mark.at)
            tag = self._tag(mark.event, kind, [mark.host], "commit")
            title = self._title(mark.event)
            return f'<line {tag} x1="{x:g}" x2="{x + 6:g}" y1="{y:.1f}" y2="{y:.1f}">{title}</line>'
        if mark.kind == "fault" or mark.host not in self._x:
            words = f"{mark.host}: {mark.text}" if mark.host else mark.text
            shape = self._pin(
                self._tag(mark.event, kind, [mark.host], "label fault-name"),
                AXIS_WIDTH + 10,
                mark.at,
                f'<text y="4">ϟ {clean(cut(words, length_max=29))}</text>',
            )
            self._label("world", mark.at, shape)
            return ""
        glyph, words = _SIGNS.get(mark.kind, ("◆", f"{mark.kind} {mark.text}"))
        if mark.kind in {"crash", "note"}:
            words = mark.text
        x = self._x[mark.host]
        of_client = mark.host in self._clients_x and mark.host not in self._scene.members
        shape = self._pin(
            self._tag(mark.event, kind, [mark.host], f"label mark-name {slug(mark.kind)}-name"),
            x + MARK_OFFSET,
            mark.at,
            f'<text y="4">{clean(cut(words, length_max=MARK_LENGTH_MAX + MARK_LENGTH_MORE * of_client))}</text>',
        )
        at_fault = mark.kind == "note" and any(mark.at == each.at for each in self._scene.violations)
        lane = f"{'client' if of_client else 'right'} {mark.host}"
        self._label(lane, mark.at, shape, want="always" if at_fault else "")
        tag = self._tag(mark.event, kind, [mark.host], f"mark {slug(mark.kind)}")
        return self._pin(tag, x, mark.at, f'<text y="4.5" text-anchor="middle">{glyph}</text>', mark.event)

    def _violation(self, mark: Mark) -> str:
        lines = self._wrapped(mark)
        text = "".join(
            f'<text x="{AXIS_WIDTH + 14}" y="{WORDS_GAP + 18 + 17 * row}">{escape(line)}</text>'
            for row, line in enumerate(lines)
        )
        width, height = self.width - AXIS_WIDTH - 10, 17 * len(lines) + 9
        box = f'<rect class="words" x="{AXIS_WIDTH}" y="{WORDS_GAP}" width="{width}" height="{height}" rx="3"/>'
        line = f'<path class="now" d="M{AXIS_WIDTH - 4},{WORDS_GAP - 4} H{self.width - 10}"/>'
        at = max(self._scene.since, min(mark.at, self._scene.until))  # one that was found later is told at the edge
        return self._pin(self._tag(mark.event, "violation", (), "violation"), 0, at, line + box + text, mark.event)

    def _decluttered(self) -> list[str]:
        """Return the labels; those without room are hidden, or left out where no zoom can make room for them."""
        labels = sorted(self._labels, key=lambda label: label.y)
        fitting = declutter(labels)
        if self._titles:
            return [label.shape for label, fits in zip(labels, fitting, strict=True) if fits]
        shown: list[str] = []
        for label, fits in zip(labels, fitting, strict=True):
            shape = label.shape if fits else label.shape.replace('class="', 'class="x ', 1)
            want = f' data-want="{label.want}"' if label.want else ""
            shown.append(shape.replace("<g ", f'<g data-lane="{clean(label.lane)}"{want} ', 1))
        return shown


def declutter(labels: list[Label]) -> list[bool]:
    """Return which labels fit, from top to bottom. The page does the same after each zoom.

    A label needs room below the last one shown in its lane. One that wants to be "alone" needs twice as much, above
    and below and from hidden ones too: names of arrows are for times when few are sent. One that wants to be shown
    "always" is, and others give way.
    """
    lanes: dict[str, list[int]] = {}
    for position, label in enumerate(labels):
        lanes.setdefault(label.lane, []).append(position)
    fitting = [True] * len(labels)
    for positions in lanes.values():
        firm = [labels[position].y for position in positions if labels[position].want == "always"]
        last = -math.inf
        for place, position in enumerate(positions):
            label = labels[position]
            if label.want == "alone":
                after = labels[positions[place + 1]].y if place + 1 < len(positions) else math.inf
                fits = min(label.y - last, after - label.y) >= 2 * LABEL_HEIGHT
                last = label.y
            elif label.want != "always":
                fits = min([label.y - last, *(abs(label.y - y) for y in firm)]) >= LABEL_HEIGHT
                last = label.y if fits else last
            else:
                fits = True
            fitting[position] = fits
    return fitting


_SIGNS = {
    "crash": ("✖", ""),
    "stop": ("■", "stopped"),
    "start": ("▲", "started"),
    "pause": ("❚❚", "paused"),
    "resume": ("▶", "goes on"),
}


def _hatch(name: str, classes: str, size: int) -> str:
    return (
        f'<pattern id="{name}" class="{classes}" width="{size}" height="{size}" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate(45)"><rect width="{size}" height="{size}"/><path d="M0,0 V{size}"/></pattern>'
    )


def _joined(shapes: Iterable[str]) -> str:
    return "".join(f"{shape}\n" for shape in shapes if shape)
