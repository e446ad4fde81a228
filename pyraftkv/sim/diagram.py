"""The space-time diagram of a run: what happened, for somebody who did not write the test.

`to_svg` is a still picture for a report, `to_html` a page with zoom, filters, search and every event. Both are one
file without references, and the same trace gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyraftkv.sim.faults import Fault
from pyraftkv.sim.page import page
from pyraftkv.sim.scene import CHATTER_MAX, Scene, read_scene
from pyraftkv.sim.show import cut, show
from pyraftkv.sim.svg import HEAD_HEIGHT, LEGEND_WIDTH, Picture, clean, resource
from pyraftkv.sim.trace import Trace

TITLE_LENGTH_MAX = 400
FAULTS_SHOWN_MAX = 30
STILL_CHATTER_MAX = 2_500
"""How many messages and the like a picture without zoom holds."""


def to_svg(
    trace: Trace,
    *,
    since: float | None = None,
    until: float | None = None,
    title: str = "",
    scale: float | None = None,
    chatter_max: int = STILL_CHATTER_MAX,
) -> str:
    """Return what happened between two times as an SVG picture.

    Args:
        trace: What happened.
        since: The beginning of the window in virtual seconds; when left out, some seconds before the violation, far
            enough to show the operations that it speaks of.
        until: Its end; when left out, just after the violation, or the end of the trace.
        title: A line above the picture.
        scale: Pixels per second; when left out, chosen by the length of the window.
        chatter_max: How many messages, commits and the like are drawn, the most telling first.
    """
    scene = read_scene(trace, since=since, until=until, chatter_max=chatter_max)
    picture = Picture(scene, scale=scale, titles=True)
    head = 50 if title else 24
    top = head + HEAD_HEIGHT
    width = max(picture.width, LEGEND_WIDTH)
    heading = f'<text x="12" y="20" style="font-size:15px;font-weight:700">{clean(title)}</text>' if title else ""
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{picture.height + top}">
<style>
{resource("_diagram.css")}</style>
{picture.defs()}
<rect width="100%" height="100%" fill="#fff"/>
{heading}<g transform="translate(0,{head - 20})">{picture.legend()}</g>
<g transform="translate(0,{head})">{picture.head()}</g>
<g transform="translate(0,{top})">
{picture.body()}
</g>
</svg>
"""


def to_html(
    trace: Trace,
    *,
    since: float | None = None,
    until: float | None = None,
    title: str = "",
    command: str = "",
    faults: Iterable[object] = (),
    chatter_max: int = CHATTER_MAX,
) -> str:
    """Return what happened between two times as a page for a browser: one file, nothing loaded from anywhere.

    Args:
        trace: What happened.
        since: As for `to_svg`.
        until: As for `to_svg`.
        title: What this is, before the words of the violation: "seed 4711".
        command: What to type to replay it.
        faults: What was done to the cluster: words, or records that are shown.
        chatter_max: As for `to_svg`. With the default a busy page stays below two megabytes.
    """
    scene = read_scene(trace, since=since, until=until, chatter_max=chatter_max)
    listed = [fault.words if isinstance(fault, Fault) else show(fault) for fault in faults]
    if len(listed) > FAULTS_SHOWN_MAX:
        listed[FAULTS_SHOWN_MAX:] = [f"… and {len(listed) - FAULTS_SHOWN_MAX} more"]
    return page(scene, title=_headline(scene, title), command=command, faults=listed)


def _headline(scene: Scene, title: str) -> str:
    """Return what failed in one sentence."""
    if not scene.violations:
        return title or "A simulated run"
    first = scene.violations[0]
    where = f" on {first.host}" if first.host else ""
    return cut(f"{title or 'The run'} failed at {first.at:.3f} s{where}: {first.text}", length_max=TITLE_LENGTH_MAX)
