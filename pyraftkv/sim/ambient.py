"""`ambient`: what an application takes from the interpreter without asking its loop, while a simulation runs.

Clocks of the module `time` show the simulated machine's clocks, and all randomness that begins in Python (`random`,
a `Random()` without a seed, `os.urandom`, and so `uuid.uuid4` and `secrets`) comes from the seed; everything is put
back afterwards. What would happen in real time beside the simulation is refused with `SimUnsupported`, where it begins:
threads, processes, sockets of the system, and whatever would make everybody wait, like `time.sleep`.

Hazard 1. A test process has other threads, which know nothing of the simulation: a time limit's, a debugger's, those
of a test runner that talks to its workers. Were a ``time.sleep`` of theirs refused, the runner would break, and were
their random bytes the seed's, the simulation would not repeat. So only the thread that simulates is concerned.

What cannot be reached from here: ``datetime.now()`` (written in C; ``datetime.fromtimestamp(time.time())`` is right),
names that were imported before (``from time import time``), locks of the module `threading` that nobody will ever
release, and the order of sets of strings and of plain objects, which change with PYTHONHASHSEED and with addresses.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from random import Random
from types import ModuleType
from typing import Any, NoReturn
from unittest.mock import patch

from pyraftkv.sim.loop import SimLoop, SimUnsupported

NANOSECONDS = 1_000_000_000

_SLEEP = "`await asyncio.sleep` does not"
_WORKER = "`Host.worker` of a simulated machine does not"
_MACHINES = "let a machine of its own stand for it (`Trial.host`)"
_NAMES = "hosts are reached by the names of simulated machines"
_CLOCKS = "`time.perf_counter` shows a simulated clock"

REFUSED: tuple[tuple[object, str, str, str], ...] = (
    (time, "sleep", "time.sleep", _SLEEP),
    (signal, "alarm", "an alarm", _SLEEP),
    (signal, "setitimer", "an alarm", _SLEEP),
    (threading.Thread, "start", "a thread", _WORKER),
    (sys.modules["_thread"], "start_new_thread", "a thread", _WORKER),
    (subprocess.Popen, "__init__", "a subprocess", _MACHINES),
    (sys.modules.get("_posixsubprocess"), "fork_exec", "a subprocess", _MACHINES),  # by way of `multiprocessing`
    (os, "fork", "a subprocess", _MACHINES),
    (os, "forkpty", "a subprocess", _MACHINES),
    (os, "posix_spawn", "a subprocess", _MACHINES),
    (os, "posix_spawnp", "a subprocess", _MACHINES),
    (os, "system", "a subprocess", _MACHINES),
    (asyncio, "new_event_loop", "another event loop", "`asyncio.create_task` goes on in this one"),
    (asyncio.events, "new_event_loop", "another event loop", "`asyncio.create_task` goes on in this one"),
    (SimLoop, "subprocess_exec", "a subprocess", _MACHINES),
    (SimLoop, "subprocess_shell", "a subprocess", _MACHINES),
    (SimLoop, "getaddrinfo", "a name server", _NAMES),
    (socket, "getaddrinfo", "a name server", _NAMES),
    (socket, "gethostbyname", "a name server", _NAMES),
    (socket.socket, "__init__", "a socket of the system", "asyncio's own streams do not"),
    (time, "process_time", "the CPU's clock", _CLOCKS),
    (time, "process_time_ns", "the CPU's clock", _CLOCKS),
    (time, "thread_time", "the CPU's clock", _CLOCKS),
    (time, "thread_time_ns", "the CPU's clock", _CLOCKS),
    (uuid, "uuid1", "a name of this computer's address and time", "`uuid.uuid4` does not"),
)
"""What has no place in virtual time: where it begins, its name for people, and what to do instead.

Some systems lack some of it.
"""

Replacement = tuple[object, str, Callable[..., Any]]
"""Whose attribute is replaced, which one, and by what."""


@contextmanager
def ambient(loop: SimLoop, random: Random) -> Generator[None]:
    """Let clocks and global randomness be those of the simulation, in this thread, until the end of the block.

    Args:
        loop: Whose time; the clocks are those of the process whose pass is running.
        random: What global randomness is seeded from.
    """
    shared: Any = sys.modules["random"]  # the one place that touches it, to give it back as it was
    state = shared.getstate()
    shared.seed(random.getrandbits(64))
    refused = ((owner, name, _refusal(*words)) for owner, name, *words in REFUSED if hasattr(owner, name))
    with ExitStack() as patches:
        for owner, name, ours in (*refused, *_clocks(loop), *_randomness(shared, random), _wait(), *_orders()):
            patches.enter_context(patch.object(owner, name, _in_this_thread(getattr(owner, name), ours)))
        try:
            yield
        finally:
            shared.setstate(state)


def _in_this_thread(theirs: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """Return what is ``ours`` in this thread, and in all others as it was."""
    get_ident, simulating = threading.get_ident, threading.get_ident()

    @wraps(theirs)
    def choose(*args: Any, **options: Any) -> Any:
        return (ours if get_ident() == simulating else theirs)(*args, **options)

    return choose


def _refusal(what: str, instead: str) -> Callable[..., NoReturn]:
    def refuse(*_args: object, **_options: object) -> NoReturn:
        raise SimUnsupported(f"{what} would run in real time; {instead}")

    return refuse


def _wait() -> Replacement:
    """Refuse to wait for another thread, under which lies every wait of `threading` and `queue`; looking is allowed."""
    wait, refuse = threading.Condition.wait, _refusal("a wait for a thread", "what `asyncio` offers instead does not")

    def wait_or_look(self: threading.Condition, timeout: float | None = None) -> bool:
        return wait(self, timeout) if timeout is not None and timeout <= 0 else refuse()

    return threading.Condition, "wait", wait_or_look


def _clocks(loop: SimLoop) -> Iterator[Replacement]:
    """Yield the clocks of the module `time`, and what there looks at one if it is given no time."""

    def wall() -> float:
        return loop.current.clock.wall()

    def by_number(number: int) -> float:
        if number in (time.CLOCK_PROCESS_CPUTIME_ID, time.CLOCK_THREAD_CPUTIME_ID):
            _refusal("the CPU's clock", _CLOCKS)()
        if number == time.CLOCK_REALTIME:
            return wall()
        return loop.current.clock.boot() if number == getattr(time, "CLOCK_BOOTTIME", None) else loop.time()

    shown: dict[str, Callable[..., float]] = {
        "time": wall,
        "monotonic": loop.time,
        "perf_counter": loop.time,
        "clock_gettime": by_number,
    }
    for name, clock in shown.items():
        if hasattr(time, name):
            yield time, name, clock
            yield time, f"{name}_ns", _nanoseconds(clock)
    for name in ("gmtime", "localtime", "ctime"):
        yield time, name, _of_now(getattr(time, name), wall)
    localtime = time.localtime
    yield time, "asctime", _of_now(time.asctime, lambda: localtime(wall()))
    strftime = time.strftime

    def written(format_: str, then: Any = None) -> str:
        return strftime(format_, localtime(wall()) if then is None else then)

    yield time, "strftime", written


def _nanoseconds(clock: Callable[..., float]) -> Callable[..., int]:
    def nanoseconds(*args: Any) -> int:
        return int(clock(*args) * NANOSECONDS)

    return nanoseconds


def _of_now(function: Callable[..., Any], now: Callable[[], Any]) -> Callable[..., Any]:
    """Return a function of a time that takes the simulated one where it is given none."""

    def told(then: Any = None) -> Any:
        return function(now() if then is None else then)

    return told


def _randomness(shared: ModuleType, random: Random) -> Iterator[Replacement]:
    """Yield every way in which Python code comes to random bits that no seed explains."""
    seed, seed_shared = Random.seed, shared.seed

    def seeded(self: Random, a: Any = None, version: int = 2) -> None:
        seed(self, random.getrandbits(64) if a is None else a, version)

    def seeded_shared(a: Any = None, version: int = 2) -> None:
        seed_shared(random.getrandbits(64) if a is None else a, version)

    def drawn(size: int, _flags: int = 0) -> bytes:
        return random.randbytes(size)

    yield Random, "seed", seeded
    yield shared, "seed", seeded_shared
    yield shared, "_urandom", random.randbytes  # of `SystemRandom`, and so of `secrets`
    yield os, "urandom", random.randbytes
    if hasattr(os, "getrandom"):
        yield os, "getrandom", drawn


def _orders() -> Iterator[Replacement]:
    """Yield what asyncio does in the order of a set of whatever it is given.

    `asyncio.as_completed` starts coroutines in the order of their addresses. Tasks have a fixed place (`SimTask`), so
    it gets tasks.
    """
    as_completed: Any = asyncio.as_completed

    def in_order(fs: Iterable[Awaitable[Any]], **options: Any) -> Any:
        if asyncio.isfuture(fs) or asyncio.iscoroutine(fs):
            return as_completed(fs, **options)  # which says what is wrong with it
        return as_completed([asyncio.ensure_future(each) for each in dict.fromkeys(fs)], **options)

    yield asyncio, "as_completed", in_order
    yield asyncio.tasks, "as_completed", in_order
