"""Where recipes keep their keys: below the name that the caller gave them, behind a double slash.

A name has no double slash in it, so the keys of the lock `a` are none of the lock `a/b`, and no name can be made that
meets the keys of another one (etcd's lock `a` contends with `a/b`).
"""

from __future__ import annotations

from pyraftkv.errors import InvalidRequest
from pyraftkv.keys import to_bytes


def inside(name: str, part: str) -> str:
    """Return the key, or the prefix, of a part of what has that name. Raises `InvalidRequest` for a bad name."""
    if not isinstance(name, str) or not name or "//" in name or name.endswith("/"):
        raise InvalidRequest(f"a name is text without '//', and does not end in '/': not {name!r:.100}")
    to_bytes(name)
    return f"{name}//{part}"


def prefix_end(prefix: str) -> str:
    """Return the end of the range of what begins with a prefix of the recipes: it ends in a plain character."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
