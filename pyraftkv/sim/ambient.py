"""`ambient`: what an application takes from the interpreter without asking its loop, while a simulation runs.

Clocks of the module `time` show the simulated machine's clocks, and the global randomness (`random`, `os.urandom`, and
so `uuid.uuid4`) comes from the seed; both are put back afterwards. What would happen in real time beside the
simulation is refused with `SimUnsupported`, where it begins: threads, subprocesses, sockets of the system, and a
`time.sleep`, which would stop everybody.

What cannot be reached from here: ``datetime.now()`` (written in C; ``datetime.fromtimestamp(time.time())`` is right),
names that were imported before (``from time import time``), and the order of sets of strings, which changes with
PYTHONHASHSEED.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from random import Random
from typing import Any, NoReturn
from unittest.mock import patch

from pyraftkv.sim.loop import SimLoop, SimUnsupported

NANOSECONDS = 1_000_000_000

_MACHINES = "let a machine of its own stand for it (`Trial.host`)"

REFUSED: tuple[tuple[object, str, str, str], ...] = (
    (time, "sleep", "time.sleep", "`await asyncio.sleep` does not"),
    (threading.Thread, "start", "a thread", "`Host.worker` of a simulated machine does not"),
    (subprocess.Popen, "__init__", "a subprocess", _MACHINES),
    (SimLoop, "subprocess_exec", "a subprocess", _MACHINES),
    (SimLoop, "subprocess_shell", "a subprocess", _MACHINES),
    (SimLoop, "getaddrinfo", "a name server", "hosts are reached by the names of simulated machines"),
    (
        socket.socket,
        "__init__",
        "a socket of the system",
        "asyncio's own streams do not",
    ),
)
"""What has no place in virtual time: where it begins, its name for people, and what to do instead."""


@contextmanager
def ambient(loop: SimLoop, random: Random) -> Generator[None]:
    """Let clocks and global randomness be those of the simulation, until the end of the block.

    Args:
        loop: Whose time; the clocks are those of the process whose pass is running.
        random: What global randomness is seeded from.
    """
    shared: Any = sys.modules["random"]  # the one place that touches it, to give it back as it was
    state = shared.getstate()
    shared.seed(random.getrandbits(64))
    with ExitStack() as patches:
        for name, clock in _clocks(loop).items():
            patches.enter_context(patch.object(time, name, clock))
        patches.enter_context(patch.object(os, "urandom", random.randbytes))
        for owner, name, what, instead in REFUSED:
            patches.enter_context(patch.object(owner, name, _refusal(what, instead)))
        try:
            yield
        finally:
            shared.setstate(state)


def _clocks(loop: SimLoop) -> dict[str, Callable[..., float]]:
    """Return the clocks of the module `time` that have a simulated counterpart."""

    def wall() -> float:
        return loop.current.clock.wall()

    def nanoseconds(clock: Callable[[], float]) -> Callable[[], float]:
        return lambda: int(clock() * NANOSECONDS)

    def by_number(number: int) -> float:
        if number == time.CLOCK_REALTIME:
            return wall()
        return loop.current.clock.boot() if number == getattr(time, "CLOCK_BOOTTIME", None) else loop.time()

    return {
        "clock_gettime": by_number,
        "time": wall,
        "time_ns": nanoseconds(wall),
        "monotonic": loop.time,
        "monotonic_ns": nanoseconds(loop.time),
        "perf_counter": loop.time,
        "perf_counter_ns": nanoseconds(loop.time),
    }


def _refusal(what: str, instead: str) -> Callable[..., NoReturn]:
    def refuse(*_args: object, **_options: object) -> NoReturn:
        raise SimUnsupported(f"{what} would run in real time; {instead}")

    return refuse
