from __future__ import annotations

import json
import re

import pytest

from pyraftkv.errors import KeyExists
from pyraftkv.sim.check import History, check_revisions, check_watches, from_lines, to_lines
from pyraftkv.store.commands import PutKey
from pyraftkv.store.values import PutResult
from tests.sim.check.boards import BAD, BAD_FOR_REVISIONS, GOOD
from tests.sim.check.notation import parse
from tests.sim.check.test_watches import GOOD as GOOD_WATCHES
from tests.sim.check.test_watches import WRITES

TEXTS = [*GOOD.values(), *(text for text, _ in [*BAD.values(), *BAD_FOR_REVISIONS.values()])]


@pytest.mark.parametrize("text", [*TEXTS, *(WRITES + watch for watch in GOOD_WATCHES.values())])
def test_what_is_read_back_is_what_was_written(text: str) -> None:
    """The same lines again, and the same verdicts."""
    history = parse(text)
    lines = list(to_lines(history))
    again = from_lines(lines)
    assert list(to_lines(again)) == lines
    assert str(check_revisions(again)) == str(check_revisions(history))
    assert str(check_watches(again)) == str(check_watches(history))


def test_bytes_and_the_data_of_errors_survive() -> None:
    """What is no UTF-8 is written in hex."""
    history = History()
    history.ok(history.begin("a", PutKey(b"\xff", "\x00é".encode()), 0.0), PutResult(2), 1.0)
    history.failed(history.begin("a", PutKey(b"k", b""), 2.0), KeyExists(key=b"\xfe", mod_revision=3), 3.0)
    first, second = from_lines(to_lines(history)).ops
    assert first.request == PutKey(b"\xff", "\x00é".encode())
    assert isinstance(second.error, KeyExists)
    assert (second.error.key, second.error.mod_revision) == (b"\xfe", 3)


def test_without_an_order_times_count_and_the_same_time_is_concurrent() -> None:
    """A read that begins as a write returns may miss it; one that begins later may not."""

    def ok(began: float) -> bool:
        write = (
            '{"client": "a", "invoked": 0, "returned": 1, "outcome": "ok",'
            ' "request": ["PutKey", {"key": "x", "value": "1"}], "result": ["PutResult", {"revision": 2}]}'
        )
        lines = [
            write,
            json.dumps(
                {
                    "client": "b",
                    "invoked": began,
                    "returned": 3,
                    "outcome": "ok",
                    "request": ["RangeQuery", {"key": "x"}],
                    "result": ["RangeResult", {"revision": 1, "kvs": [], "more": False, "count": 0}],
                }
            ),
        ]
        return check_revisions(from_lines(lines)).ok

    assert ok(1.0)
    assert not ok(1.1)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "Expecting property name"),
        ("[]", "no JSON object"),
        ("{}", "there is no 'client'"),
        ('{"client": "a", "invoked": 0, "outcome": "ok", "request": %s}', "a result exactly if it is ok"),
        ('{"client": "a", "invoked": 0, "outcome": "failed", "request": %s}', "an answer without a time"),
        ('{"client": "a", "invoked": 0, "outcome": "fine", "request": %s}', "'fine' is not a valid Outcome"),
        ('{"client": "a", "invoked": 0, "outcome": "unknown", "request": ["Nothing", {}]}', "there is no 'Nothing'"),
        ('{"client": "a", "invoked": 0, "outcome": "unknown", "request": ["PutKey", {"nothing": 1}]}', "'nothing'"),
        (
            '{"client": "a", "invoked": 2, "returned": 1, "outcome": "unknown", "request": %s}',
            "began at 2 and ended at 1",
        ),
        ('{"client": "a", "invoked": NaN, "outcome": "unknown", "request": %s}', "began at nan"),
        ('{"client": "a", "invoked": "now", "outcome": "unknown", "request": %s}', "not supported"),
        (
            '{"client": "a", "invoked": 0, "returned": 1, "began": 2, "outcome": "unknown", "request": %s}',
            "one of returned and ended without the other",
        ),
        (
            '{"client": "a", "invoked": 0, "returned": 1, "began": 2, "ended": 2, "outcome": "unknown", "request": %s}',
            "in the order it began as 2 and ended as 2",
        ),
        (
            '{"client": "a", "invoked": 0, "outcome": "unknown", "request": ["PutResult", {"revision": 2}]}',
            "no request",
        ),
        ('{"client": "a", "invoked": 0, "returned": 1, "outcome": "ok", "request": %s, "result": 5}', "5 is no result"),
        (
            '{"client": "a", "invoked": 0, "outcome": "unknown", "request": ["PutKey", {"key": 5, "value": "1"}]}',
            "5 is no key of a PutKey",
        ),
        (
            '{"client": "a", "invoked": 0, "outcome": "unknown", "request": ["Compact", {"revision": [1]}]}',
            "1. is no revision of a Compact",
        ),
        (
            '{"client": "a", "invoked": 0, "consistency": "some", "outcome": "unknown", "request": %s}',
            "'some' is no consistency",
        ),
    ],
)
def test_a_line_that_is_none_is_named(line: str, words: str) -> None:
    """Garbage is told by its line, and by what is wrong with it."""
    with pytest.raises(ValueError, match=f"^line 2: .*{words}"):
        from_lines(["", line.replace("%s", '["PutKey", {"key": "x", "value": "1"}]')])


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ('["PutResult", {"revision": "2"}]', "'2' is no revision of a PutResult"),
        ('["PutResult", {"revision": true}]', "True is no revision of a PutResult"),
        ('["PutResult", {"revision": 2, "prev_kv": 5}]', "5 is no prev_kv of a PutResult"),
        (
            '["DeleteResult", {"revision": 2, "deleted": 1, "prev_kvs": ["x"]}]',
            "['x'] is no prev_kvs of a DeleteResult",
        ),
        ('["DeleteResult", {"revision": 2, "deleted": 1, "prev_kvs": "x"}]', "'x' is no prev_kvs of a DeleteResult"),
    ],
)
def test_what_has_another_type_is_named(result: str, words: str) -> None:
    """A checker would fail over it, and say nothing of the line; or take it for something else."""
    line = '{"client": "a", "invoked": 0, "returned": 1, "outcome": "ok", "request": ["Compact", {"revision": 1}]'
    with pytest.raises(ValueError, match=f"^line 1: {re.escape(words)}$"):
        from_lines([f'{line}, "result": {result}}}'])


def test_two_histories_that_are_put_together_have_no_order() -> None:
    """Each counts its events from 1; whoever joins them leaves the counts out, and times order everything."""
    alone = parse("a 0-1 put x 1 -> ?")
    with pytest.raises(ValueError, match="two events have the same place in the order"):
        from_lines([*to_lines(alone), *to_lines(parse("b 2-3 get x -> - at 1"))])
