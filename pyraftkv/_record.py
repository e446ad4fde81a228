"""`@record`: a slotted dataclass, frozen to type checkers and cheap to make at run time.

A frozen dataclass costs about four times a plain one to construct, because every field goes through
``object.__setattr__``. Type checkers do not need that to reject an assignment, so records are frozen for
them and plain at run time. Set ``PYRAFTKV_FREEZE_RECORDS=1`` (one CI job does) to make Python reject it too.

Records compare by value and are unhashable: key tables by ``(term, index)`` or an id instead.

Every start of a process makes two hundred of these classes, and `dataclass` compiles each method of each of them, which
is half of what importing this package takes. So how a record compares and is shown is written once, for all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any, TypeVar

from typing_extensions import dataclass_transform

T = TypeVar("T")

_FREEZE = os.environ.get("PYRAFTKV_FREEZE_RECORDS") == "1"


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Make ``cls`` a slotted dataclass, immutable to type checkers and cheap to construct."""
    if _FREEZE:
        return dataclass(slots=True, frozen=True)(cls)
    made: Any = dataclass(slots=True, repr=False, eq=False)(cls)
    names = [each.name for each in fields(made)]
    for method in (_repr_of(names), _eq_of(attrgetter(*names) if names else type)):
        if method.__name__ not in cls.__dict__:
            setattr(made, method.__name__, method)
    made.__hash__ = None
    return made  # type: ignore[no-any-return]  # what is set on it is no business of a type checker's


def _repr_of(names: list[str]) -> Callable[[object], str]:
    def __repr__(self: object) -> str:  # noqa: N807
        return f"{type(self).__qualname__}({', '.join([f'{name}={getattr(self, name)!r}' for name in names])})"

    return __repr__


def _eq_of(values: Callable[[object], object]) -> Callable[[object, object], bool]:
    def __eq__(self: object, other: object) -> bool:  # noqa: N807
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    return __eq__
