"""A scene as a page: the picture, what happened in words, and every event, in one file that needs nothing else.

The page says that it may load nothing (its content security policy), so that it is as safe to open as to mail. What
comes from the run is either escaped text or JSON in which no tag can end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pyraftkv.sim.scene import Cut, Scene, Span, parted, slug
from pyraftkv.sim.svg import HEAD_HEIGHT, LEGEND_WIDTH, PAD, Picture, clean, resource
from pyraftkv.sim.trace import hosts_of, nearest, text_of

STORY_MAX = 40
"""How many sentences the story has: those nearest to the faults, if they are few, and to the end."""
NOTES_MAX = 15
"""How many of them are notes of the application, chosen in the same way."""
ROW_LENGTH_MAX = 300
UNRECORDED = "Who asked what is shown where a client is recorded: db = sim.recorded(db, 'name')."
"""Said where there is no operation to be seen: the first picture of most tests."""
HEARTBEATS_MAX = 150
"""With more heartbeats than this in the picture, they are hidden at first."""
HIDDEN_AT_FIRST = frozenset({"apply"})

_NAMES = {
    "operation": "client operations",
    "append": "replication",
    "vote": "elections",
    "heartbeat": "heartbeats",
    "read": "read index",
    "snapshot": "snapshots",
    "message": "other messages",
    "commit": "commits",
    "apply": "applies",
    "role": "roles",
    "crash": "crashes and pauses",
    "cut": "partitions",
    "disk": "disks",
    "clock": "clocks",
    "fault": "faults",
    "note": "notes",
}
"""What the filters are called. Violations cannot be hidden."""


def page(scene: Scene, *, title: str, command: str, faults: Sequence[str]) -> str:
    """Return a scene as a self-contained page.

    Args:
        scene: What is to be seen.
        title: One sentence: what failed, or what this is.
        command: What to type to see it again.
        faults: What was done to the cluster, in words.
    """
    picture = Picture(scene)
    body = picture.body()
    data = {
        "since": scene.since,
        "seconds": scene.until - scene.since,
        "scale": picture.scale,
        "pad": PAD,
        "hosts": scene.hosts,
        "rows": _rows(scene),
        "focus": min(scene.violations[0].at, scene.until) if scene.violations else scene.until,
    }
    packed = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    failed = " failed" if scene.violations else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{clean(title)}</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<style>
{resource("_diagram.css")}{resource("_page.css")}</style><style id="filters"></style></head>
<body>
<header class="top{failed}"><h1>{clean(title)}</h1>
{_paragraphs(scene, command, faults)}</header>
<nav>{_filters(scene)}<span class="zoom"><button id="out" title="less detail (-)">−</button><output id="scale"></output>
<button id="in" title="more detail (+)">+</button><button id="fit">whole window</button>
{_first_fault(scene)}<button id="focus">{"violation" if scene.violations else "end"}</button></span></nav>
<svg id="legend" width="{LEGEND_WIDTH}" height="19">{picture.legend()}</svg>
<main><section id="picture"><svg id="head" width="{picture.width:g}" height="{HEAD_HEIGHT}">{picture.head()}</svg>
<svg id="plot" width="{picture.width:g}" height="{picture.height}">{picture.defs()}
{body}
</svg></section>
<aside><div class="find"><input id="search" type="search" placeholder="Search events ( / )"
 autocomplete="off"><output id="found"></output></div><div id="list"><div id="rows"></div></div></aside></main>
<div id="tip" hidden></div>
<script type="application/json" id="data">{packed}</script>
<script>
{resource("_page.js")}</script></body></html>
"""


def _rows(scene: Scene) -> list[list[object]]:
    """Return the list of events: when, what the filters call it, its lifelines, its words, whether it stands out."""
    numbers = {host: number for number, host in enumerate(scene.hosts)}
    rows: list[list[object]] = []
    for event, group in scene.events:
        hosts = list(dict.fromkeys(numbers[host] for host in hosts_of(event) if host in numbers))
        text = " ".join(text_of(event).split())
        fate = slug(event.detail.get("fate", "delivered")) if event.kind == "message" else ""
        rows.append([round(event.at, 6), group, hosts, text[:ROW_LENGTH_MAX], fate])
    return rows


def _paragraphs(scene: Scene, command: str, faults: Sequence[str]) -> str:
    parts: list[str] = []
    if command:
        parts.append(f'<p class="replay">Replay it: <code>{clean(command)}</code></p>')
    if faults:
        items = "".join(f"<li>{clean(fault)}</li>" for fault in faults)
        parts.append(f"<details open><summary>Faults ({len(faults)})</summary><ul>{items}</ul></details>")
    told = story(scene)
    if told:
        items = "".join(
            f'<li data-t="{at:.6f}"><a href="#{at:.6f}">{at:.3f}</a> {clean(words)}</li>' for at, words in told
        )
        parts.append(f"<details class='story' open><summary>What happened</summary><ol>{items}</ol></details>")
    window = f"The picture shows {scene.since:.3f} to {scene.until:.3f} s."
    if scene.left_out:
        window += f" Of its busiest kinds {scene.left_out:,} events far from the focus are left out."
    if not scene.operations:
        window += f" {UNRECORDED}"
    return "\n".join([*parts, f'<p class="note">{window}</p>'])


def _filters(scene: Scene) -> str:
    counts: dict[str, int] = {}
    for _, group in scene.events:
        counts[group] = counts.get(group, 0) + 1
    chips: list[str] = []
    for group in [*(name for name in _NAMES if name in counts), *sorted(set(counts) - set(_NAMES) - {"violation"})]:
        hidden = group in HIDDEN_AT_FIRST or (group == "heartbeat" and counts[group] > HEARTBEATS_MAX)
        chips.append(
            f'<label><input type="checkbox" data-k="{clean(group)}"{"" if hidden else " checked"}>'
            f"{clean(_NAMES.get(group, group))} <i>{counts[group]:,}</i></label>"
        )
    return "".join(chips)


def _first_fault(scene: Scene) -> str:
    """Return the button that leads to where a few faults began; the page opens at what came of them."""
    first = scene.moments[0]
    return f'<button data-go="{first:.6f}">first fault</button>\n' if len(scene.moments) > 1 else ""


def story(scene: Scene) -> list[tuple[float, str]]:
    """Return the turning points of a scene in words: who led, who was down, what was cut, what went wrong."""
    told = [(span.since, f"{span.host} becomes leader of term {span.term}") for span in scene.roles if _led(span)]
    told += [(span.since, _outage_words(span, scene)) for span in scene.outages]
    for cut in scene.cuts:
        told += _cut_words(cut, scene)
    for mark in scene.marks:
        if mark.kind in {"fault", "disk", "clock"}:
            place = f"{mark.host}: " if mark.host else ""
            told.append((mark.at, f"{_NAMES[mark.kind].removesuffix('s')}: {place}{mark.text}"))
        elif mark.kind == "start" and mark.at > scene.since:
            told.append((mark.at, f"{mark.host} starts"))
    notes = [mark for mark in scene.marks if mark.kind == "note"]
    chosen = nearest([mark.at for mark in notes], scene.moments, NOTES_MAX)
    told += [(mark.at, f"{mark.host or 'the test'} notes: {mark.text}") for mark in (notes[place] for place in chosen)]
    for each in scene.operations:
        if each.accused:
            answer = "never hears of it" if each.until is None else f"is told: {each.result or each.outcome}"
            end = each.since if each.until is None else each.until
            told.append((end, f"{each.host} asks at {each.since:.3f}: {each.command}, and {answer}"))
    told += [(mark.at, f"violation: {mark.text}") for mark in scene.violations]
    told.sort(key=lambda each: each[0])
    moments = [*scene.moments, *(mark.at for mark in scene.violations)]
    return [told[place] for place in nearest([at for at, _ in told], moments, STORY_MAX)]


def _led(span: Span) -> bool:
    return span.what == "leader" and span.event >= 0


def _outage_words(span: Span, scene: Scene) -> str:
    what = "is paused" if span.what == "paused" else f"goes down ({span.what})"
    end = "" if span.until >= scene.until else f" for {span.until - span.since:.2f} s"
    return f"{span.host} {what}{end}"


def _cut_words(cut: Cut, scene: Scene) -> list[tuple[float, str]]:
    words = parted(cut.links)
    told = [(cut.since, f"network: {words}")]
    if cut.until < scene.until:
        told.append((cut.until, f"network heals: {words} no more"))
    return told
