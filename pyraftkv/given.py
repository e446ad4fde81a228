"""What callers give: a value of the wrong type is refused where it comes in, and by the name of its argument.

1. A form that somebody has filled in gives ``limit="10"``. 2. Nobody looks at it before the store compares it with a
number, eight calls further down: a `TypeError` that names neither the argument nor whose mistake it is.
"""

from __future__ import annotations

import sys

from pyraftkv.errors import InvalidRequest


def seconds(value: float | None, name: str = "timeout") -> float | None:
    """Return so many seconds, or None, which stands for a default. Raises `InvalidRequest` for what is no time."""
    if value is not None and not (isinstance(value, int | float) and 0 <= value <= sys.float_info.max):
        raise InvalidRequest(f"{name}= is a finite number of seconds, 0 or more: not {value!r}")
    return value


def whole(value: int, name: str, *, least: int | None = None) -> int:
    """Return a whole number, which is no less than ``least``. Raises `InvalidRequest` for anything else."""
    if type(value) is not int:
        raise InvalidRequest(f"{name}= is a whole number, not {value!r}")
    if least is not None and value < least:
        raise InvalidRequest(f"{name}= is {least} or more, not {value}")
    return value
