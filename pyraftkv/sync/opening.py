"""The short forms: `open` a node in a thread of its own, `connect` to a cluster from one."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from pyraftkv import opening
from pyraftkv.client import Client as AsyncClient
from pyraftkv.node import Node as AsyncNode
from pyraftkv.sync.faces import Client, Living, OpenNode

P = ParamSpec("P")
A = TypeVar("A", AsyncNode, AsyncClient)
L = TypeVar("L", bound=Living)


def _living(function: Callable[P, A], kind: Callable[[A, str], L]) -> Callable[P, L]:
    """Return a function that makes something to be awaited, as one that makes what waits in its stead."""

    @wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> L:
        return kind(function(*args, **kwargs), f"pyraftkv-{function.__name__}")

    return make


open = _living(opening.open, OpenNode)  # noqa: A001  (pyraftkv.sync.open, as pyraftkv.open)
connect = _living(opening.connect, Client)
