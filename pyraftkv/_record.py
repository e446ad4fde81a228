"""`@record`: a slotted dataclass, frozen to type checkers and cheap to make at run time.

A frozen dataclass costs about four times a plain one to construct, because every field goes through
``object.__setattr__``. Type checkers do not need that to reject an assignment, so records are frozen for
them and plain at run time. Set ``PYRAFTKV_FREEZE_RECORDS=1`` (one CI job does) to make Python reject it too.

Records compare by value and are unhashable: key tables by ``(term, index)`` or an id instead.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TypeVar

from typing_extensions import dataclass_transform

T = TypeVar("T")

_FREEZE = os.environ.get("PYRAFTKV_FREEZE_RECORDS") == "1"


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Make ``cls`` a slotted dataclass, immutable to type checkers and cheap to construct."""
    return dataclass(slots=True, frozen=_FREEZE)(cls)
