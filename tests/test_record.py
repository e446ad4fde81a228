from __future__ import annotations

from dataclasses import field

import pytest

from pyraftkv import _record
from pyraftkv._record import record


@record
class Point:
    x: int
    y: int = 0
    names: list[str] = field(default_factory=list, kw_only=True)


@record
class Other:
    x: int
    y: int = 0


@record
class Empty:
    pass


@record
class Own:  # noqa: PLW1641  (that is the point)
    value: float

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own)

    def __repr__(self) -> str:
        return "<Own>"


def test_records_compare_by_value():
    """Equal are those of one class whose fields are equal."""
    assert Point(1, 2, names=["a"]) == Point(1, 2, names=["a"])
    assert Point(1, 2) != Point(1, 3)
    assert Point(1, 2, names=["a"]) != Point(1, 2)
    assert Point(1, 2) != Other(1, 2)
    assert Other(1) != (1, 0)
    assert Empty() == Empty()
    assert Empty() != Other(1)


def test_records_are_shown_with_their_fields():
    """As the call that would make it."""
    assert repr(Point(1, names=["a"])) == "Point(x=1, y=0, names=['a'])"
    assert repr(Empty()) == "Empty()"


def test_what_a_record_defines_itself_stays():
    """Its own comparison, and how it is shown."""
    assert Own(1.0) == Own(2.0)
    assert repr(Own(1.0)) == "<Own>"


def test_records_are_small_and_no_keys():
    """They have slots and no dictionary, and are unhashable unless they are frozen."""
    assert not hasattr(Point(1), "__dict__")
    if not _record._FREEZE:
        for each in (Point(1), Empty(), Own(1.0)):
            with pytest.raises(TypeError, match="unhashable"):
                hash(each)


def test_records_are_matched_by_their_places():
    """As dataclasses are."""
    match Point(3, 4):
        case Point(x, y):
            assert (x, y) == (3, 4)
