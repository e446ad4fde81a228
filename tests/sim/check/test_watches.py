from __future__ import annotations

import pytest

from pyraftkv.sim.check import Finding, check_watches, replay
from tests.sim.check.notation import parse

WRITES = """
    a 0-1 put x 1 -> 2
    a 2-3 put y 1 -> 3
    a 4-5 txn x@2 {put x 2; put y 2} -> then {4; 4} at 4
    a 6-7 delete x -> 1 deleted at 5
    a 8-9 put z 1 -> 6
"""
ALL = "x=1@2 y=1@3 x=2@4/2,2 y=2@4/3,2 -x@5 z=1@6"

GOOD = {
    "everything": f"watch a zz from 1: 10 {ALL} <6",
    "everything, event by event": "watch a zz from 1: 2 x=1@2 | 6 y=1@3 | 7 x=2@4/2,2 | 8 y=2@4/3,2 | 9 -x@5",
    "in batches": "watch a zz from 1: 3 x=1@2 <2 | 6 y=1@3 x=2@4/2,2 y=2@4/3,2 <4 | 10 -x@5 z=1@6 <6",
    "one key": "watch x from 1: 10 x=1@2 x=2@4/2,2 -x@5 <6",
    "a range": "watch x z from 1: 10 x=1@2 y=1@3 x=2@4/2,2 y=2@4/3,2 -x@5 <6",
    "what was before": "watch x from 1 prev: 10 x=1@2 x=2@4/2,2(x=1@2) -x@5(x=2@4/2,2) <6",
    "no puts": "watch x from 1 no_put: 10 -x@5 <6",
    "no deletions": "watch x from 1 no_delete: 10 x=1@2 x=2@4/2,2 <6",
    "from a later revision": "watch x from 4: 10 x=2@4/2,2 -x@5 <5",
    "from a revision that is not there yet": "watch x from 9: 10 <6",
    "from now on": "watch a zz: 5 placed 4 | 10 -x@5 z=1@6",
    "from now on, and never said where": "watch a zz: 10 -x@5 z=1@6",
    "that never showed anything": "watch a zz: 10",
    "that was not read to the end": "watch a zz from 1: 5 x=1@2",
    "resumed": "watch a zz from 1: 5 x=1@2 y=1@3 <3 | 6 resume 4",
    "resumed past what does not concern it": "watch z from 1: 9 resume 6",
}

BAD = {
    "in place where nobody has come to": ("watch x: 10 placed 9", "can have made revision 7"),
    "in place before its time": ("watch y: 1 placed 5", "#1 made revision 3, but watch 0 of w on 'y'"),
    "done with what nobody has done": ("watch x from 5: 10 -x@5 <9", "can have made revision 7"),
    "done with it before it was begun": ("watch z from 2: 3 <4", "#2 made revision 4, but"),
    "resumes from nowhere": ("watch x from 5: 10 -x@5 | 11 resume 9", "can have made revision 7"),
    "resumes from before it began": ("watch x from 5: 10 | 11 resume 3", "resume from revision 3, before it began"),
    "out of order": ("watch a zz from 1: 10 y=1@3 x=1@2", "left out revision 2: 'x' = '1'"),
    "twice": ("watch a zz from 1: 10 x=1@2 x=1@2", "showed revision 2: 'x' = '1' (mod 2, version 1) again"),
    "a gap": ("watch a zz from 1: 10 x=1@2 x=2@4/2,2", "left out revision 3: 'y' = '1'"),
    "a gap that a bookmark shows": ("watch a zz from 1: 10 x=1@2 <3", "done up to revision 3, but left out revision 3"),
    "half a revision": ("watch a zz from 1: 7 x=1@2 y=1@3 x=2@4/2,2 <4 | 8 y=2@4/3,2 <4", "left out revision 4: 'y'"),
    "half a revision, then the next": (
        "watch a zz from 1: 8 x=1@2 y=1@3 x=2@4/2,2 -x@5",
        "showed revision 5: 'x' deleted, but left out revision 4: 'y' = '2'",
    ),
    "older than a bookmark": ("watch x from 1: 3 x=1@2 <2 | 9 x=1@2", "after it had promised to be past it"),
    "a bookmark too early": ("watch x: 8 <5 | 9 x=2@4/2,2", "promised to be done up to revision 5"),
    "beyond its batch": ("watch a zz from 1: 10 x=1@2 y=1@3 <2", "in a batch up to revision 2"),
    "a wrong value": ("watch x from 1: 10 x=9@2", "showed revision 2: 'x' = '9'"),
    "a wrong version": ("watch x from 1: 10 x=1@2 x=2@4/2,7", "version 7), but it was"),
    "a deletion that was a put": ("watch x from 1: 10 -x@2", "showed revision 2: 'x' deleted, but it was"),
    "a key of another range": ("watch x from 1: 10 x=1@2 y=1@3", "showed what does not concern it"),
    "what is filtered": ("watch x from 1 no_delete: 10 x=1@2 x=2@4/2,2 -x@5", "showed what does not concern it"),
    "what never happened": ("watch x from 1: 10 x=1@2 x=2@4/2,2 -x@5 -x@6", "which did not happen"),
    "before its start": ("watch x from 4: 10 x=1@2", "showed revision 2"),
    "less than from where it says to stand": ("watch a zz: 5 placed 4 | 10 z=1@6", "left out revision 5"),
    "the wrong thing before": ("watch x from 1 prev: 10 x=1@2 x=2@4/2,2(x=9@2)", "a wrong key-value before revision 4"),
    "nothing before": ("watch x from 1 prev: 10 x=1@2 x=2@4/2,2", "a wrong key-value before revision 4"),
    "something before that nobody asked for": ("watch x from 4: 10 x=2@4/2,2(x=1@2)", "a wrong key-value before"),
    "resumes too late": (
        "watch a zz from 1: 5 x=1@2 <2 | 6 resume 4",
        "from revision 4, but left out revision 3",
    ),
    "resumes too early": (
        "watch a zz from 1: 5 x=1@2 y=1@3 <3 | 6 resume 3",
        "from revision 3, but has shown 3",
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_a_watch_may_show(name: str) -> None:
    """Every event that it owes, in order, once, in whole revisions."""
    verdict = check_watches(parse(WRITES + GOOD[name]))
    assert Finding.RIGHT is verdict.finding, verdict


@pytest.mark.parametrize("name", BAD)
def test_what_a_watch_must_not_show(name: str) -> None:
    """Anything else is told in words."""
    text, reason = BAD[name]
    verdict = check_watches(parse(WRITES + text))
    assert Finding.WRONG is verdict.finding
    assert reason in verdict.reason


def test_an_event_is_not_shown_before_its_write_begins() -> None:
    """A watch sees no future."""
    verdict = check_watches(parse("a 5-6 put x 1 -> 2\nwatch x from 1: 3 x=1@2"))
    assert "#0 made revision 2, but watch 0 of w on 'x'" in verdict.reason


def test_what_a_watch_showed_is_there_from_then_on() -> None:
    """A read that begins after an event was shown is no older."""
    verdict = check_watches(parse("a 0- put x 1 -> ?\nb 4-5 get x -> - at 1\nwatch x from 1: 3 x=1@2"))
    assert "#1 saw revision 1, but watch 0" in verdict.reason


def test_an_event_tells_which_unknown_write_it_was() -> None:
    """Events are evidence, deletions too."""
    text = """
        a 0-1 put x 1 -> 2
        a 2- delete x -> ?
        b 2- put y 1 -> ?
        c 4-5 put z 1 -> 4
        watch a zz from 1: 9 x=1@2 -x@3 z=1@4
    """
    assert check_watches(parse(text)).ok
    assert "nobody in the history can have made revision 3" in check_watches(parse(text.replace("-x@3", "-w@3"))).reason


UNKNOWN = """
    b 0- put zz 1 -> ?
    a 1- put x 1 -> ?
    c 4-5 put y 1 -> 3
"""


@pytest.mark.parametrize(
    "watch",
    [
        "watch a z from 1: 9 y=1@3",
        "watch a z from 1: 9 <2",
        "watch a z from 2: 9 resume 3",
        "watch a z: 2 placed 1 | 9 y=1@3",
    ],
)
def test_what_a_watch_does_not_show_tells_which_unknown_write_it_was(watch: str) -> None:
    """A revision that it passes over was made outside its range, whoever was asked first."""
    history = parse(UNKNOWN + watch)
    assert check_watches(history).ok
    assert replay(history).makers[2].client == "b"


@pytest.mark.parametrize(
    "watch",
    ["watch a z from 3: 9 y=1@3", "watch a z: 9 y=1@3", "watch a z from 1 no_put: 9 <3", "watch y from 1: 9 y=1@3"],
)
def test_a_watch_that_owes_nothing_there_tells_nothing(watch: str) -> None:
    """Before it begins, of what it filters out, and outside its range."""
    assert replay(parse(UNKNOWN + watch)).makers[2].client == "a"


def test_a_watch_that_left_something_out_is_told_from_a_store_that_made_it_up() -> None:
    """If only a change that it should have shown explains a revision, it is the watch that is wrong."""
    history = parse(UNKNOWN.replace("b 0- put zz 1 -> ?", "") + "watch a z from 1: 9 y=1@3")
    assert replay(history).verdict.ok
    assert "left out revision 2" in check_watches(history).reason


def test_what_was_before_may_be_missing_when_it_was_compacted() -> None:
    """And only then: not before the compaction has begun, and not past its revision."""
    shown = "watch x from 4 prev: {at} x=2@4/2,2 -x@5(x=2@4/2,2) <6"
    compacted = WRITES + "b 20-21 compact 4 -> 6\n"
    assert check_watches(parse(compacted + shown.format(at=22))).ok
    assert not check_watches(parse(compacted + shown.format(at=10))).ok
    assert not check_watches(parse(compacted.replace("compact 4", "compact 3") + shown.format(at=22))).ok


def test_a_watch_can_be_asked_to_have_come_to_the_end() -> None:
    """What it owes up to a revision is asked for when the caller says that it had the time."""
    history = parse(WRITES + "watch a zz from 1: 5 x=1@2\nwatch x from 1: 9 x=1@2 x=2@4/2,2 -x@5")
    assert check_watches(history).ok
    assert "has not shown, by its end, revision 3" in check_watches(history, through_revision=6).reason
    assert check_watches(history, through_revision=2).ok


def test_nothing_is_said_of_watches_when_it_is_not_known_what_was_done() -> None:
    """The replay's verdict comes first."""
    verdict = check_watches(parse("a 0-1 put x 1 -> 3\nwatch x from 1: 3 x=1@2"))
    assert Finding.WRONG is verdict.finding
    assert "nobody in the history can have made revision 2" in verdict.reason
