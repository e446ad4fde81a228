"""Typed values: what goes in comes out, as the same class; what does not fit says where."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass
from datetime import UTC, datetime
from enum import Enum, IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import TypeAliasType

from pyraftkv import KeyValue, Typed, errors
from pyraftkv.recipes import ConfigCenter
from pyraftkv.typed import LEVELS_MAX, TypedStm
from tests.node.support import asynchronous, cluster_of, refused
from tests.test_engine import faces, open_face


class State(Enum):
    WAITING = "waiting"
    DONE = "done"


class Priority(IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Step:
    name: str
    seconds: float = 0.0
    then: list[Step] = field(default_factory=list)


@dataclass
class Job:
    title: str
    state: State = State.WAITING
    priority: Priority = Priority.LOW
    attempts: int = 0
    is_urgent: bool = False
    payload: bytes = b""
    due: datetime | None = None
    tags: tuple[str, ...] = ()
    limits: dict[str, int] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)


class Odd(Enum):
    ODD = (1, 2)


@dataclass
class HoldsOdd:
    odd: Odd


class Nowhere:
    """Something that no store holds."""

    async def get(self) -> None:
        """Never called."""


JOBS: Typed[Job] = Typed(Nowhere(), Job)  # type: ignore[arg-type]

steps = st.recursive(
    st.builds(Step, st.text(), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.builds(Step, st.text(), st.just(0.0), st.lists(inner, max_size=2)),
    max_leaves=4,
)
jobs = st.builds(
    Job,
    st.text(),
    st.sampled_from(State),
    st.sampled_from(Priority),
    st.integers(),
    st.booleans(),
    st.binary(),
    st.none() | st.datetimes(timezones=st.just(UTC)),
    st.lists(st.text()).map(tuple),
    st.dictionaries(st.text(), st.integers()),
    st.lists(steps, max_size=2),
)


def stored(value: Any) -> KeyValue:
    """Return a key-value that holds this JSON."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return KeyValue(b"k", data, 1, 2, 3, 4)


@given(jobs)
def test_an_instance_comes_back_as_it_was(job: Job) -> None:
    """Every field survives, whatever Unicode and numbers are in it; surrogates alone are refused."""
    try:
        data = JOBS.dump(job)
    except errors.InvalidRequest as error:
        assert "surrogates" in str(error)  # noqa: PT017
        return
    item = JOBS.load(stored(data))
    assert item.value == job
    assert (item.key, item.create_revision, item.mod_revision, item.version, item.lease) == (b"k", 1, 2, 3, 4)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_nothing_else_is_taken_for_one(value: Any) -> None:
    """Any other JSON is a whole job, or an `InvalidValue`."""
    try:
        assert isinstance(JOBS.load(stored(value)).value, Job)
    except errors.InvalidValue as error:
        assert (error.key, error.mod_revision) == (b"k", 2)  # noqa: PT017


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (b"\xff", ""),
        (b"{", ""),
        (b"[" * 100_000, ""),
        ([], ""),
        ({}, "title"),
        ({"title": 1}, "title"),
        ({"title": "t", "state": "gone"}, "state"),
        ({"title": "t", "state": []}, "state"),
        ({"title": "t", "priority": 3}, "priority"),
        ({"title": "t", "attempts": True}, "attempts"),
        ({"title": "t", "is_urgent": 1}, "is_urgent"),
        ({"title": "t", "payload": "!"}, "payload"),
        ({"title": "t", "payload": 5}, "payload"),
        ({"title": "t", "due": "soon"}, "due"),
        ({"title": "t", "due": 5}, "due"),
        ({"title": "t", "due": "2026-01-01T00:00:00"}, "due"),
        ({"title": "t", "tags": "ab"}, "tags"),
        ({"title": "t", "tags": ["a", 1]}, "tags[1]"),
        ({"title": "t", "limits": []}, "limits"),
        ({"title": "t", "limits": {"a": "b"}}, "limits['a']"),
        ({"title": "t", "steps": [{"name": "s", "then": [{}]}]}, "steps[0].then[0].name"),
        ({"title": "t", "steps": [{"name": "s", "seconds": "long"}]}, "steps[0].seconds"),
        ({"title": "t", "steps": [{"name": "s", "seconds": 10**400}]}, "steps[0].seconds"),
    ],
)
def test_what_does_not_fit_says_where(value: Any, path: str) -> None:
    """The error names the key and the place in the value."""
    with pytest.raises(errors.InvalidValue) as caught:
        JOBS.load(stored(value))
    assert (caught.value.path, caught.value.key) == (path, b"k")


@pytest.mark.parametrize(
    "changed",
    [
        {"title": 1},
        {"state": "done"},
        {"priority": 1},
        {"attempts": True},
        {"payload": "text"},
        {"due": datetime(2026, 1, 1)},
        {"tags": ["a"]},
        {"limits": {1: 1}},
        {"steps": [Step("s", float("inf"))]},
        {"steps": [Step("s", float("nan"))]},
        {"steps": [Step("s", 10**400)]},
        {"steps": (Step("s"),)},
        {"title": "\ud800"},
    ],
)
def test_what_does_not_fit_is_not_written(changed: dict[str, Any]) -> None:
    """An instance that breaks its own annotations is refused before anybody sees it."""
    job = Job(**{"title": "t", **changed})
    with pytest.raises(errors.InvalidRequest):
        JOBS.dump(job)
    with pytest.raises(errors.InvalidRequest):
        JOBS.dump("a job")  # type: ignore[arg-type]


def test_a_class_may_grow() -> None:
    """A field that is missing gets its default; one that nobody knows is left out, or refused if so asked."""
    assert JOBS.load(stored({"title": "t", "colour": "red"})).value == Job("t")
    strict: Typed[Job] = Typed(Nowhere(), Job, unknown="refuse")  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidValue) as caught:
        strict.load(stored({"title": "t", "colour": "red"}))
    assert caught.value.path == "colour"
    with pytest.raises(errors.InvalidRequest):
        Typed(Nowhere(), Job, unknown="keep")  # type: ignore[arg-type]


def test_a_whole_number_is_a_float_too() -> None:
    """Other writers write 1 for 1.0."""
    assert JOBS.load(stored({"title": "t", "steps": [{"name": "s", "seconds": 1}]})).value.steps[0].seconds == 1.0


def test_a_class_may_refuse() -> None:
    """What `__post_init__` raises is an `InvalidValue`."""

    @dataclass
    class Positive:
        number: int

        def __post_init__(self) -> None:
            if self.number < 0:
                raise ValueError("below zero")

    typed: Typed[Positive] = Typed(Nowhere(), Positive)  # type: ignore[arg-type]
    assert typed.load(stored({"number": 1})).value == Positive(1)
    with pytest.raises(errors.InvalidValue, match="below zero"):
        typed.load(stored({"number": -1}))


@pytest.mark.parametrize("leaf", [0.0, 1.5])
def test_levels_are_bounded_for_writers_and_readers(leaf: float) -> None:
    """By a number, which is the same on every Python: what can be written can be read."""
    typed: Typed[Step] = Typed(Nowhere(), Step)  # type: ignore[arg-type]
    step = Step("s", leaf)
    for _ in range(LEVELS_MAX // 2 - 1):
        step = Step("s", then=[step])
    data = typed.dump(step)
    assert data.count(b"{") + data.count(b"[") == LEVELS_MAX
    assert typed.load(stored(data)).value == step
    step.then.append(Step("[" * LEVELS_MAX))
    assert typed.load(stored(typed.dump(step))).value == step, "brackets in texts, and beside each other, are no levels"
    deeper = Step("s", then=[step])
    with pytest.raises(errors.InvalidRequest, match=f"more than {LEVELS_MAX} levels"):
        typed.dump(deeper)
    with pytest.raises(errors.InvalidValue, match=f"more than {LEVELS_MAX} levels"):
        typed.load(stored(b'{"name":"s","then":[' + data + b"]}"))


def test_what_cannot_stand_in_a_value() -> None:
    """Annotations outside of the list are refused at once, not when the first value is written."""

    @dataclass
    class Loose:
        anything: Any

    @dataclass
    class Either:
        either: int | str

    @dataclass
    class Keys:
        keys: dict[int, str]

    @dataclass
    class Pair:
        pair: tuple[int, str]

    @dataclass
    class Unnamed:
        unnamed: Missing  # type: ignore[name-defined]  # noqa: F821

    for model in (Loose, Either, Keys, Pair, HoldsOdd, Unnamed, int, Job("instance")):
        with pytest.raises(errors.InvalidRequest):
            Typed(Nowhere(), model)  # type: ignore[arg-type]


SHAPES = """
from dataclasses import dataclass, field

@dataclass
class Inner:
    number: int = 0

@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)
    perhaps: Inner | None = None
    many: list[Inner] = field(default_factory=list)
"""
LOCAL = """
from dataclasses import dataclass

def local():
    @dataclass(slots=True)
    class Node:
        value: Value | None = None
        then: Node | None = None

    @dataclass
    class Value:
        number: int = 0

    return Node, Value
"""
NAMED = """
from dataclasses import dataclass, field

type Many = list[Number]
type Number = int | None
type Endless = dict[str, Endless]
type Gone = NotThere

@dataclass
class Outer:
    many: Many = field(default_factory=list)
    perhaps: Number | None = None

@dataclass
class HoldsEndless:
    endless: Endless

@dataclass
class HoldsGone:
    gone: Gone
"""


def module(tmp_path: Path, text: str) -> ModuleType:
    """Return a module of this text: whether annotations are evaluated is a matter of its first lines."""
    name = f"shapes_{hash(tmp_path) & 0xFFFFFFFF:x}"
    (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # where the names in annotations are looked up
    spec.loader.exec_module(made)
    return made


@pytest.fixture(autouse=True)
def no_module_stays() -> Iterator[None]:
    """What a test added to the modules is gone after it."""
    before = set(sys.modules)
    yield
    for name in [each for each in sys.modules.keys() - before if each.startswith("shapes_")]:
        del sys.modules[name]


def is_carried(typed: Typed[Any], value: object) -> bool:
    """Whether a value comes back as it was."""
    return typed.load(stored(typed.dump(value))).value == value


@pytest.mark.parametrize("first", ["", "from __future__ import annotations"])
def test_annotations_are_read_as_texts_and_as_they_are(tmp_path: Path, first: str) -> None:
    """Whether or not the user's module postpones them; by a configuration, too."""
    made = module(tmp_path, first + SHAPES)
    value = made.Outer(made.Inner(1), made.Inner(2), [made.Inner(3)])
    assert is_carried(Typed(Nowhere(), made.Outer), value)  # type: ignore[arg-type]
    center = ConfigCenter(Nowhere(), "shapes", made.Outer)  # type: ignore[arg-type]
    assert "shapes" in repr(center)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are evaluated where they stand")
def test_classes_of_a_function_may_hold_themselves_and_later_ones(tmp_path: Path) -> None:
    """Annotations that are evaluated late see what the function made in the end."""
    node, value = module(tmp_path, LOCAL).local()
    assert is_carried(Typed(Nowhere(), node), node(value(1), node(None, node())))  # type: ignore[arg-type]


def test_classes_of_a_function_are_not_found_by_text(tmp_path: Path) -> None:
    """The refusal names what is missing."""
    node, _ = module(tmp_path, "from __future__ import annotations" + LOCAL).local()
    with pytest.raises(errors.InvalidRequest, match=r"^Node: an annotation names what is not there: .*(Node|Value)"):
        Typed(Nowhere(), node)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", {TypeAliasType, getattr(typing, "TypeAliasType", TypeAliasType)})
def test_a_name_stands_for_what_it_names(kind: Any) -> None:
    """Of `typing` and of `typing_extensions`, alone and inside of something."""
    number = kind("number", int | None)
    outer = make_dataclass("outer", [("one", number), ("many", list[number])])
    typed: Typed[Any] = Typed(Nowhere(), outer)  # type: ignore[arg-type]
    assert is_carried(typed, outer(1, [2, None]))
    with pytest.raises(errors.InvalidRequest, match="many"):
        typed.dump(outer(1, ["2"]))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="there is no `type` statement")
@pytest.mark.parametrize("first", ["", "from __future__ import annotations"])
def test_a_name_may_be_used_before_it_is_there_but_not_for_ever(tmp_path: Path, first: str) -> None:
    """What holds itself has no end, and what names nothing no meaning: both are refused with the field."""
    made = module(tmp_path, first + NAMED)
    assert is_carried(Typed(Nowhere(), made.Outer), made.Outer([1, None], 2))  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidRequest, match=r"HoldsEndless\.endless: Endless holds itself"):
        Typed(Nowhere(), made.HoldsEndless)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidRequest, match=r"HoldsGone\.gone: Gone cannot be read: .*NotThere"):
        Typed(Nowhere(), made.HoldsGone)  # type: ignore[arg-type]


@pytest.mark.parametrize("annotation", ["int +", "None | 'int'", "{}['gone']", "int.gone", "list[[]]", "Literal[[]]"])
def test_an_annotation_that_cannot_be_read_is_refused(annotation: str) -> None:
    """As are those that can be and mean nothing: whatever evaluating them raises is told as one error."""
    with pytest.raises(errors.InvalidRequest, match=r"^Holds(\.field)?: "):
        Typed(Nowhere(), make_dataclass("Holds", [("field", annotation)]))  # type: ignore[arg-type]


@faces
@asynchronous
async def test_typed_values_on_every_face(face: str, tmp_path: Path) -> None:
    """Reading, writing, watching, transactions and views take and give instances."""
    async with open_face(face, tmp_path) as kv:
        jobs_ = Typed(kv.namespace("jobs/"), Job)
        put = await jobs_.put("1", Job("write", due=datetime(2026, 1, 2, tzinfo=UTC)))
        item = await jobs_.get("1")
        assert item is not None
        assert (item.value.title, item.mod_revision, item.key) == ("write", put.revision, b"1")
        assert await jobs_.get("2") is None
        await refused(jobs_.create("1", Job("again")), errors.KeyExists)
        await jobs_.create("2", Job("read"))
        assert [each.value.title async for each in jobs_.scan()] == ["write", "read"]

        async def finish(tx: TypedStm[Job]) -> int:
            found = await tx.get("1")
            assert found is not None
            found.value.state = State.DONE
            found.value.attempts += 1
            tx.put("1", found.value)
            tx.delete("2")
            return found.value.attempts

        assert await jobs_.transact(finish) == 1
        async with await jobs_.view(prefix="") as view:
            await view.view.at_least(put.revision + 2)
            assert {key: each.value.state for key, each in view.items()} == {b"1": State.DONE}
            assert len(view) == 1
        async with jobs_.watch(prefix="", start_revision=put.revision, prev_kv=True) as watch:
            events = [await anext(watch) for _ in range(4)]
        assert [(each.key, each.item.value.state if each.item else None) for each in events] == [
            (b"1", State.WAITING),
            (b"2", State.WAITING),
            (b"1", State.DONE),
            (b"2", None),
        ]
        assert events[2].previous is not None
        assert events[2].previous.value.attempts == 0
        gone = await jobs_.delete("1", if_revision=put.revision + 2)
        assert gone.deleted == 1


@asynchronous
async def test_a_watch_goes_on_behind_what_does_not_fit() -> None:
    """A value that is no instance raises once; the events behind it come, those of the same batch too."""
    async with cluster_of(1) as cluster:
        kv = cluster.leader
        typed = Typed(kv, Step)
        async with typed.watch(prefix="s/") as watch:
            await asyncio.gather(typed.put("s/1", Step("one")), kv.put("s/2", "bad"), typed.put("s/3", Step("three")))
            seen = []
            for _ in range(3):
                try:
                    event = await anext(watch)
                    assert event.item is not None
                    seen.append(event.item.value.name)
                except errors.InvalidValue as error:
                    seen.append(error.key.decode())
            assert sorted(seen) == ["one", "s/2", "three"]
        bad = await refused(typed.get("s/2"), errors.InvalidValue)
        assert bad.mod_revision > 1
