from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from pyraftkv.core.messages import Heartbeat
from pyraftkv.sim.diagram import TITLE_LENGTH_MAX, to_html, to_svg
from pyraftkv.sim.faults import Fault
from pyraftkv.sim.page import NOTES_MAX, story
from pyraftkv.sim.scene import WINDOW_SECONDS, Scene, group_of, natural, parted, read_scene
from pyraftkv.sim.svg import (
    AXIS_WIDTH,
    CHARACTER_WIDTH,
    LABEL_HEIGHT,
    LANES_MAX,
    PAD,
    WORDS_GAP,
    Label,
    Picture,
    declutter,
)
from pyraftkv.sim.trace import FATES, STEPS_TELLING_MAX, Event, Trace
from pyraftkv.store.commands import PutKey
from tests.sim.story import VIOLATION, stale_read

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
NASTY = "</script><b a='1' b=\"2\">&amp;\x00\x1b\n]]>\u2028\ud800"
VOID = {"meta", "input", "br"}


class Tags(HTMLParser):
    """Collects a page's tags and attributes, and complains about a tag that does not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open:
            self.text[self.open[-1]] = self.text.get(self.open[-1], "") + data


def data_of(html: str) -> dict:
    """The JSON that a page holds."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert match is not None
    return json.loads(match[1])


def nasty_trace() -> Trace:
    """Every kind with hostile words in every detail."""
    trace = Trace()
    trace.add(0.0, NASTY, "role", role=NASTY, term=1)
    for fate in (*FATES, NASTY):
        trace.add(0.1, NASTY, "message", target="n2", what=NASTY, sent_at=0.1, arrived_at=0.2, fate=fate)
    trace.add(0.2, NASTY, "cut", source=NASTY, target="n2")
    for kind in ("crash", "start", "pause", "resume", "stop", "disk", "clock", "fault", NASTY):
        trace.add(0.3, NASTY, kind, what=NASTY)
    trace.add(0.4, NASTY, "invoke", op=1, command=PutKey(NASTY.encode("utf-8", "replace"), b"<&\"'\0"))
    trace.add(0.5, NASTY, "return", op=1, outcome=NASTY, result=NASTY)
    trace.add(0.6, NASTY, "violation", text=NASTY, ops=[(NASTY, 1)])
    return trace


# --- What is in the picture ---


def test_roles_last_from_one_event_to_the_next() -> None:
    """A member leads until it is something else, is nothing when it is down, and the last one lasts to the end."""
    trace = Trace()
    trace.add(0.0, "n1", "role", role="leader", term=1)
    trace.add(2.0, "n1", "crash", how="killed")
    trace.add(3.0, "n1", "start", boot=2)
    trace.add(3.0, "n1", "role", role="follower", term=1)
    trace.add(4.0, "n1", "commit", index=1)
    scene = read_scene(trace)
    assert [(span.what, span.since, span.until) for span in scene.roles] == [("leader", 0, 2), ("follower", 3, 4)]
    assert [(span.what, span.since, span.until) for span in scene.outages] == [("killed", 2, 3)]


def test_what_had_begun_before_the_window_is_known_at_its_edge() -> None:
    """Roles, outages, cuts and operations that began earlier are there from the first moment."""
    scene = read_scene(stale_read(), since=3.2, until=3.4)
    assert {(span.host, span.what, span.term, span.since) for span in scene.roles} == {
        ("n1", "leader", 1, 3.2),
        ("n2", "leader", 2, 3.2),
    }
    assert [(span.host, span.what) for span in scene.outages] == [("n3", "power loss")]
    assert [parted(cut.links) for cut in scene.cuts] == ["n1 cut off from n2 n3"]
    assert all(3.2 <= event.at <= 3.4 for event, group in scene.events if group != "violation")


def test_a_cut_lasts_until_it_is_healed() -> None:
    """One way at a time, or all at once; links cut and healed together are one partition."""
    trace = Trace()
    for target in ("n2", "n3"):
        trace.add(1.0, "", "cut", source="n1", target=target)
    trace.add(1.5, "", "cut", source="n3", target="n2")
    trace.add(2.0, "", "heal", source="n1", target="n2")
    trace.add(2.005, "", "heal", source="n1", target="n3")
    trace.add(2.2, "", "heal", source="n2", target="n3")
    trace.add(3.0, "", "heal")
    scene = read_scene(trace, until=4.0)
    assert [(cut.links, cut.since, cut.until) for cut in scene.cuts] == [
        ([("n1", "n2"), ("n1", "n3")], 1.0, 2.0),
        ([("n3", "n2")], 1.5, 3.0),
    ]


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        ("n1n2 n2n1 n1n3 n3n1", "n1 cut off from n2 n3"),
        ("n1n2 n2n1", "n1 cut off from n2"),
        ("n1n3 n3n1 n1n4 n4n1 n2n3 n3n2 n2n4 n4n2", "n1 n2 cut off from n3 n4"),
        ("n1n2", "n1 ↛ n2"),
        ("n1n2 n2n1 n2n3", "n1 ↛ n2, n2 ↛ n1, n2 ↛ n3"),
        ("n1n2 n2n1 n2n3 n3n2 n3n4 n4n3", "n1 ↮ n2, n2 ↮ n3, n3 ↮ n4"),
    ],
)
def test_partitions_have_words(links: str, expected: str) -> None:
    """Two sides are named as sides, single ways as ways."""
    assert parted([(link[:2], link[2:]) for link in links.split()]) == expected


def test_operations_side_by_side_have_lanes() -> None:
    """A client's overlapping operations do not cover each other, and one without an answer lasts to the end."""
    trace = Trace()
    trace.add(0.0, "c1", "invoke", op=1, command="put a")
    trace.add(0.1, "c1", "invoke", op=2, command="put b")
    trace.add(0.2, "c1", "return", op=1, outcome="ok")
    trace.add(0.3, "c1", "invoke", op=3, command="put c")
    trace.add(0.4, "c1", "return", op=2, outcome="failed", error=ValueError("no"))
    trace.add(0.5, "c1", "return", op=9, outcome="ok")
    scene = read_scene(trace)
    assert [(each.number, each.lane, each.until, each.outcome, each.result) for each in scene.operations] == [
        (1, 0, 0.2, "ok", ""),
        (2, 1, 0.4, "failed", "ValueError: no"),
        (3, 0, None, "unknown", ""),
    ]
    assert (scene.hosts, scene.members) == (["c1"], set())


def test_a_members_own_operations_have_a_column_beside() -> None:
    """They do not cover its role, and an arrow never ends at them."""
    trace = Trace()
    trace.add(0.0, "n1", "role", role="leader", term=1)
    trace.add(0.1, "n1", "invoke", op=1, command="put a")
    trace.add(0.2, "n2", "role", role="follower", term=1)
    trace.add(0.9, "c1", "invoke", op=1, command="put b")
    scene = read_scene(trace)
    svg = drawn(scene)
    (band,) = shapes(svg, "leader")
    inside, outside = (float(shape.get("x", "")) for shape in shapes(svg, "operation"))
    assert float(band.get("x", "")) + 120 < inside < outside
    assert re.findall(r">([^<]+)</text>", Picture(scene).head()) == [
        "seconds",
        "n1",
        "n2",
        "program of n1",
        "c1",
    ]


def test_the_window_is_around_the_violation() -> None:
    """It ends just after it, and begins early enough to show the operations that it speaks of."""
    trace = Trace()
    trace.add(5.0, "c1", "invoke", op=1, command="put a")
    trace.add(20.0, "n1", "commit", index=1)
    assert (read_scene(trace).since, read_scene(trace).until) == (20.0 - WINDOW_SECONDS, 20.0)
    trace.add(20.5, "c1", "return", op=1, outcome="ok")
    trace.add(21.0, "", "violation", text="lost", ops=[("c1", 1)])
    trace.add(30.0, "n1", "commit", index=2)
    scene = read_scene(trace)
    assert (scene.since, scene.until) == (4.5, 21.25)
    assert [each.accused for each in scene.operations] == [True]


def test_the_window_begins_before_the_first_of_a_few_faults() -> None:
    """What they did shows only at the end, often; the story has them, and what happened about them. Many are noise."""
    trace = Trace()
    trace.add(5.0, "", "fault", text="pause w begins")
    for number in range(100):
        trace.add(5.0 + number / 4, "n1", "message", target="n2", what="AppendRequest", fate="delivered")
        trace.add(5.0 + number / 4, "w", "note", text=f"step {number}")
    trace.add(30.0, "", "violation", text="lost")
    scene = read_scene(trace, chatter_max=20)
    assert (scene.since, scene.until, scene.moments) == (4.5, 30.0, [5.0, 30.0])
    kept = [event.at for event, group in scene.events if group == "append"]
    assert (min(kept), max(kept)) == (5.0, 29.75)
    told = [words for _, words in story(scene)]
    assert told[0] == "fault: pause w begins"
    assert "w notes: step 0" in told
    assert "w notes: step 50" not in told
    assert told[-2:] == ["w notes: step 99", "violation: lost"]
    assert '<button data-go="5.000000">first fault</button>' in to_html(trace)
    for number in range(STEPS_TELLING_MAX):
        trace.add(30.0, "", "fault", text=f"kill n{number} begins")
    assert "first fault" not in to_html(trace)
    assert (read_scene(trace).since, read_scene(trace).moments) == (30.0 - WINDOW_SECONDS, [30.0])


def test_a_fault_of_long_ago_is_out_of_the_window() -> None:
    """An hour of peace does not fit into a picture."""
    trace = Trace()
    trace.add(1.0, "", "fault", text="pause w begins")
    trace.add(3_600.0, "", "violation", text="lost")
    assert read_scene(trace).since == 3_600.0 - WINDOW_SECONDS


def test_a_violation_found_late_is_shown_where_it_happened() -> None:
    """A check of the whole history at the end speaks of operations of long ago: the window is around them."""
    trace = Trace()
    trace.add(5.0, "c1", "invoke", op=1, command="put a")
    trace.add(6.0, "c1", "return", op=1, outcome="ok")
    trace.add(60.0, "", "violation", text="lost", ops=[("c1", 1)])
    scene = read_scene(trace)
    assert (scene.since, scene.until) == (0.0, 6.25)
    assert [(mark.at, mark.text) for mark in scene.violations] == [(60.0, "lost")]
    assert len(scene.events) == 3
    assert float(drawn(scene)[-1][-1].get("transform", "").rpartition(",")[2][:-1]) <= Picture(scene).height
    assert "failed at 60.000 s: lost" in to_html(trace)


def test_an_empty_trace_has_a_picture() -> None:
    """A run that fails before anything happens is shown, too."""
    assert "A simulated run" in to_html(Trace())
    ET.fromstring(to_svg(Trace()))


def test_the_most_telling_chatter_is_kept() -> None:
    """Lost messages and elections before replication, that before heartbeats, and of these the nearest to the focus."""
    trace = Trace()
    for tenth in range(100):
        trace.add(tenth / 10, "n1", "message", target="n2", what="Heartbeat", fate="delivered")
        trace.add(tenth / 10, "n1", "message", target="n2", what="AppendRequest", fate="delivered")
    trace.add(2.0, "n1", "message", target="n2", what="AppendRequest", fate="dropped")
    trace.add(2.5, "n1", "message", target="n2", what="VoteRequest", fate="delivered")
    trace.add(9.0, "n1", "crash", how="killed")
    trace.add(10.0, "", "violation", text="lost")
    scene = read_scene(trace, since=0.0, chatter_max=5)
    assert [(event.at, group) for event, group in scene.events] == [
        (2.0, "append"),
        (2.5, "vote"),
        (9.0, "crash"),
        (9.7, "append"),
        (9.8, "append"),
        (9.9, "append"),
        (10.0, "violation"),
    ]
    assert scene.left_out == 197


def test_lifelines_stand_in_order() -> None:
    """Members before clients before others, and n2 before n10."""
    trace = Trace()
    for host in ("n10", "n2", "n1"):
        trace.add(0.0, host, "role", role="follower", term=0)
    trace.add(0.1, "c1", "invoke", op=1, command="get a")
    trace.add(0.2, "a", "clock", what="jump")
    assert read_scene(trace).hosts == ["n1", "n2", "n10", "c1", "a"]
    assert sorted(["n10", "n9", "m", "n1b"], key=natural) == sorted(["n9", "n10", "m", "n1b"], key=natural)


def test_a_still_picture_is_as_high_as_asked_for() -> None:
    """Twice the pixels per second, twice as much between the margins."""
    heights = [float(ET.fromstring(to_svg(stale_read(), scale=scale)).attrib["height"]) for scale in (100, 200, 300)]
    assert heights[2] - heights[1] == heights[1] - heights[0] > 100


def test_whom_a_violation_names_stands_first() -> None:
    """Among the clients: these are what the picture is about; a name inside of a name is none."""
    trace = Trace()
    for host in ("w1", "w2", "w10"):
        trace.add(0.0, host, "invoke", op=1, command="get a")
    trace.add(1.0, "", "violation", text="w10/1 wrote after w2/1")
    assert read_scene(trace).hosts == ["w2", "w10", "w1"]


def test_filters_know_what_events_are() -> None:
    """A message by its type or its first word, other events by their kind or what they belong to."""
    beat = Heartbeat(to=2, sender=1, term=3, commit=12, context=1)
    assert group_of(Event(0.0, "n1", "message", {"target": "n2", "what": beat})) == "heartbeat"
    assert group_of(Event(0.0, "n1", "message", {"target": "n2", "what": "VoteRequest term=3"})) == "vote"
    assert group_of(Event(0.0, "n1", "message", {"target": "n2", "what": "Gossip"})) == "message"
    assert group_of(Event(0.0, "n1", "resume", {})) == "crash"
    assert group_of(Event(0.0, "n1", "new kind", {})) == "new-kind"


# --- How it is drawn ---


def test_labels_give_way() -> None:
    """One below another needs room; those that want to be alone need more; one that is always there comes first."""
    room, close = float(LABEL_HEIGHT), LABEL_HEIGHT - 1.0
    assert declutter([Label("a", 0, "", ""), Label("b", 1, "", ""), Label("a", close, "", "")]) == [True, True, False]
    assert declutter([Label("a", 0, "", ""), Label("a", room, "", "")]) == [True, True]
    assert declutter([Label("a", 0, "", ""), Label("a", close, "", "always")]) == [False, True]
    alone = [Label("a", y, "", "alone") for y in (0, 2 * room, 3 * room, 9 * room)]
    assert declutter(alone) == [True, False, False, True]


def test_layers_hold_only_what_the_page_can_move() -> None:
    """Lines, rectangles, and groups that are placed by a translation: the page's zoom knows no others."""
    svg = ET.fromstring(to_svg(stale_read()))
    layers = [group for group in svg.iter(f"{SVG}g") if "layer" in group.get("class", "").split()]
    assert [group.get("class") for group in layers][-1] == "layer violations"
    for shape in (shape for layer in layers for shape in layer):
        if shape.tag == f"{SVG}g":
            assert re.fullmatch(r"translate\([-\d.e+]+,[-\d.]+\)", shape.get("transform", ""))
        else:
            assert shape.tag in {f"{SVG}line", f"{SVG}rect"}
            assert float(shape.get("y1" if shape.tag == f"{SVG}line" else "y", "")) >= 0


@pytest.mark.parametrize("last", ["n3", "worker"])
def test_what_the_last_lifeline_says_has_room(last: str) -> None:
    """No column beside it takes what is longer than its own."""
    trace = Trace()
    for host in ("n1", "n2", "n3"):
        trace.add(0.0, host, "role", role="follower", term=0)
    trace.add(0.5, last, "note", text="has seat 1 and seat 2 and seat 3")
    scene = read_scene(trace)
    (label,) = [shape for shape in drawn(scene).iter("g") if "note-name" in shape.get("class", "").split()]
    left = float(label.get("transform", "")[len("translate(") :].partition(",")[0])
    words = "".join(label.itertext()).partition("\n")[0]
    assert left + len(words) * CHARACTER_WIDTH <= Picture(scene).width


def drawn(scene: Scene) -> ET.Element:
    """The picture of a scene."""
    return ET.fromstring(f"<svg>{Picture(scene, titles=True).body()}</svg>")


def shapes(svg: ET.Element, *classes: str) -> list[ET.Element]:
    """What a picture holds with all of these classes, labels apart."""
    found = [(shape, set(shape.get("class", "").split())) for shape in svg.iter()]
    return [shape for shape, has in found if set(classes) <= has and "label" not in has]


def test_every_fate_and_role_has_its_look() -> None:
    """Messages by what became of them, bands by role and term, and the accused operations stand out."""
    svg = drawn(read_scene(stale_read(operations_per_second=60)))
    for fate in FATES:
        assert shapes(svg, fate, "k-heartbeat" if fate == "dropped" else "k-append"), fate
    leaders = shapes(svg, "leader")
    assert {shape.get("class", "").split()[-1] for shape in leaders} == {"t1", "t2"}
    assert {shape.get("width") for shape in leaders} == {"16"}
    assert {shape.get("width") for shape in shapes(svg, "follower")} == {"8"}
    assert len(shapes(svg, "operation", "accused")) == 2
    assert len(shapes(svg, "operation", "unknown")) == 1
    assert len(shapes(svg, "operation", "ok")) > 60
    assert len(shapes(svg, "paused")) == len(shapes(svg, "down")) == 1
    assert len(shapes(svg, "cut")) == 1, "n1 | n2 n3 is one gap, between neighbours"


def test_a_lost_message_ends_on_its_way() -> None:
    """An arrow that reaches the other lifeline was delivered."""
    trace = Trace()
    for fate, arrived_at in (("delivered", 0.5), ("dropped", None)):
        trace.add(0.4, "n1", "message", target="n2", what="Gossip", sent_at=0.4, arrived_at=arrived_at, fate=fate)
    svg = drawn(read_scene(trace, since=0.0, until=1.0))
    (there,), (lost,) = shapes(svg, "delivered", "k-message"), shapes(svg, "dropped", "k-message")
    assert there.get("x1") == lost.get("x1")
    assert float(lost.get("x2", "")) < float(there.get("x2", "")) - 20
    assert float(there.get("y2", "")) > float(there.get("y1", ""))
    assert lost.get("y1") == lost.get("y2")


def test_a_message_stands_where_it_was_sent() -> None:
    """A trace learns of a message when its fate is known; the picture and its list show it where it began."""
    trace = Trace()
    trace.add(1.0, "n1", "commit", index=1)
    trace.add(3.0, "n1", "message", target="n2", what="Gossip", sent_at=0.5, fate="dropped")
    scene = read_scene(trace)
    assert [(event.at, event.kind) for event, _ in scene.events] == [(0.5, "message"), (1.0, "commit")]
    assert [arrow.sent_at for arrow in scene.arrows] == [0.5]


def test_a_client_with_many_operations_keeps_to_its_column() -> None:
    """More lanes than there is room for are drawn over one another."""
    trace = Trace()
    for number in range(3 * LANES_MAX):
        trace.add(number / 100, "c1", "invoke", op=number, command="get a")
    places = {shape.get("x") for shape in shapes(drawn(read_scene(trace)), "operation") if shape.tag == "rect"}
    assert len(places) == LANES_MAX


# --- The page ---


def test_the_page_says_what_failed() -> None:
    """The headline is one sentence; the command, the faults and the turning points follow."""
    html = to_html(stale_read(), title="Seed 4711", command="pyraftkv sim --seed 4711", faults=["partition n1", 3])
    tags = Tags(html)
    assert tags.text["h1"] == f"Seed 4711 failed at 4.600 s: {VIOLATION}"
    assert tags.text["code"] == "pyraftkv sim --seed 4711"
    assert "partition n1" in tags.text["li"]
    assert tags.text["title"].startswith("Seed 4711 failed")


def test_the_room_for_words_is_no_time() -> None:
    """The page is told how long its window is: its height has the words below in it, which must not be cut off."""
    scene = read_scene(stale_read())
    picture = Picture(scene)
    seconds = data_of(to_html(stale_read()))["seconds"]
    assert (seconds, picture.height > seconds * picture.scale + 2 * PAD) == (scene.until - scene.since, True)


def test_the_story_tells_the_turning_points() -> None:
    """Who led, what was cut and for how long, who was down, what the accused asked and were told."""
    told = [words for _, words in story(read_scene(stale_read()))]
    assert told == [
        "n1 becomes leader of term 1",
        "disk: n3: slow fsync: 80 ms",
        "network: n1 cut off from n2 n3",
        "fault: partition n1 | n2 n3",
        "n2 becomes leader of term 2",
        "n1 is paused for 0.35 s",
        "n3 goes down (power loss) for 0.40 s",
        "clock: n2: jumps 0.4 s",
        "n3 starts",
        "c1 asks at 3.720: put 'x' = '<new> & \"quoted\"', and is told: ok at revision 34",
        "c2 asks at 3.850: get 'x', and is told: 'x' = '<old>' (mod 7, version 2) at revision 7",
        "network heals: n1 cut off from n2 n3 no more",
        f"violation: {VIOLATION}",
    ]


def test_the_story_has_the_notes_of_the_application() -> None:
    """The last of them, and where they were made."""
    trace = Trace()
    for number in range(NOTES_MAX + 5):
        trace.add(number, "w1", "note", text=f"step {number}")
    trace.add(30.0, "", "note", text="over")
    told = [words for _, words in story(read_scene(trace, since=0.0))]
    assert told == [*(f"w1 notes: step {number}" for number in range(6, NOTES_MAX + 5)), "the test notes: over"]


def test_an_answer_does_not_repeat_the_key() -> None:
    """There is little room, and it is the value that one looks for."""
    trace = Trace()
    for number, command in enumerate(["get 'jobs/owner'", "get 'jobs/owner' (local)"]):
        trace.add(number, "w1", "invoke", op=number, command=command)
        trace.add(number + 0.1, "w1", "return", op=number, outcome="ok", result="'jobs/owner' = 'w2' (mod 2)")
    assert len(re.findall("get &#x27;jobs/ow[^<]* → &#x27;w2&#x27; ", Picture(read_scene(trace)).body())) == 2


def test_a_page_without_operations_says_how_to_have_them() -> None:
    """Nobody's asking is drawn unless it is recorded, and the first picture of most tests has none."""
    trace = Trace()
    trace.add(0.0, "n1", "start", boot=1)
    assert "sim.recorded(" in to_html(trace)
    assert "sim.recorded(" not in to_html(stale_read())


def test_a_clients_marks_give_way_to_its_operations() -> None:
    """They share its column, so they are in one lane."""
    trace = Trace()
    trace.add(0.0, "w1", "invoke", op=1, command="get a")
    trace.add(0.1, "w1", "note", text="has asked for what is at the key")
    picture = Picture(read_scene(trace))
    body = picture.body()
    assert set(re.findall('data-lane="([^"]*)"', body)) == {"client w1"}
    assert "has asked for what is at …" in body


def test_what_happens_at_the_moment_of_a_violation_is_seen() -> None:
    """The words of the violation stand below it, and what the application noted then gives way to nothing."""
    trace = Trace()
    trace.add(1.0, "w1", "resume")
    trace.add(1.0, "w1", "note", text="writes with an old token")
    trace.add(1.0, "", "violation", text="too old")
    body = Picture(read_scene(trace, since=0.0, until=1.0)).body()
    assert re.search(r'<g data-lane="right w1" data-want="always" class="k-note [^"]*note-name', body)
    assert f'<rect class="words" x="{AXIS_WIDTH}" y="{WORDS_GAP}"' in body


def test_faults_are_told_in_words() -> None:
    """When, what, whom, how badly and for how long."""
    fault = Fault(3.5, "pause_long", ("w1",), 2.0)
    assert "<li>at 3.5 s: pause_long w1 for 2 s</li>" in to_html(Trace(), faults=[fault])
    assert Fault(0.25, "jump_clock", ("n1", "n2"), amount=30.0).words == "at 0.25 s: jump_clock n1 n2 by 30"


def test_every_shape_has_its_row() -> None:
    """The list holds every event that a shape points to, in the order of time."""
    html = to_html(stale_read())
    rows = data_of(html)["rows"]
    pointed = {int(attributes["data-e"] or "") for _, attributes in Tags(html).seen if "data-e" in attributes}
    assert pointed <= set(range(len(rows)))
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert sum(row[1] == "violation" for row in rows) == 1


def test_hostile_words_stay_words() -> None:
    """Keys, values and errors may hold anything: no tag, entity or control character of theirs gets into the file."""
    trace = nasty_trace()
    html = to_html(trace, title=NASTY, command=NASTY, faults=[NASTY])
    tags = Tags(html)
    assert "b" not in {tag for tag, _ in tags.seen}
    assert sum(tag == "script" for tag, _ in tags.seen) == 2
    assert all(character.isprintable() or character == "\n" for character in html)
    assert data_of(html)["rows"]
    svg = to_svg(trace, title=NASTY)
    assert "b" not in {element.tag.removeprefix(SVG) for element in ET.fromstring(svg).iter()}
    assert all(character.isprintable() or character == "\n" for character in svg)
    svg.encode()
    html.encode()


def test_the_page_loads_nothing() -> None:
    """It has no address of anything, and forbids itself to load."""
    html = to_html(stale_read())
    assert "://" not in html
    policy = [attributes["content"] for tag, attributes in Tags(html).seen if "http-equiv" in attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"]
    assert not [tag for tag, attributes in Tags(html).seen if "src" in attributes]
    links = [attributes["href"] for _, attributes in Tags(html).seen if "href" in attributes]
    assert all(link is not None and link.startswith("#") for link in links)


def test_a_long_title_is_cut() -> None:
    """A violation with a whole history in it does not push the picture off the page."""
    trace = Trace()
    trace.add(1.0, "n1", "violation", text="x" * 5_000)
    title = Tags(to_html(trace)).text["h1"]
    assert len(title) == TITLE_LENGTH_MAX
    assert title.startswith("The run failed at 1.000 s on n1: xxx")


def test_a_busy_run_makes_a_page_that_opens() -> None:
    """Fifty thousand events in thirty seconds make less than two megabytes, and say how much is left out."""
    trace = Trace()
    for number in range(12_500):
        at = number * 30 / 12_500
        trace.add(at, "n1", "message", target="n2", what="Heartbeat term=3", sent_at=at, arrived_at=at + 0.001)
        trace.add(at, "n2", "message", target="n1", what="AppendResponse term=3 accepted index=1", sent_at=at)
        trace.add(at, "n1", "commit", index=number)
        if number % 2 == 0:
            trace.add(at, "c1", "return" if number % 4 else "invoke", op=number // 4, command="put 'job/1' = 'w1'")
    html = to_html(trace)
    assert len(html.encode()) < 2_000_000
    assert re.search(r"[\d,]+ events far from the focus are left out", html)


def test_the_same_trace_makes_the_same_bytes() -> None:
    """In this process, and in one whose hashes differ."""
    program = (
        "from tests.sim.story import stale_read\n"
        "from tests.sim.test_diagram import fingerprint\n"
        "print(fingerprint(stale_read(7)))\n"
    )
    here = fingerprint(stale_read(7))
    assert here == fingerprint(stale_read(7))
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    there = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == here


def fingerprint(trace: Trace) -> str:
    """The hash of everything that is made of a trace."""
    made = trace.digest() + to_html(trace) + to_svg(trace)
    return sha256(made.encode()).hexdigest()
