from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from operator import methodcaller
from random import Random

import pytest

from pyraftkv.sim.ambient import ambient
from pyraftkv.sim.clock import WALL_EPOCH
from pyraftkv.sim.loop import SimLoop, SimUnsupported


def looked_at(seed: int) -> list[object]:
    """Return what an application sees that looks around, and looks again half a minute later."""

    async def main() -> list[object]:
        before = [time.time(), time.monotonic(), time.perf_counter(), random.random(), uuid.uuid4(), os.urandom(4)]
        await asyncio.sleep(30)
        return [*before, round(time.time() - WALL_EPOCH, 3), time.time_ns() // 10**9, time.monotonic_ns() // 10**9]

    loop = SimLoop(Random(seed))  # type: ignore[abstract]
    try:
        with ambient(loop, Random(seed)):
            return loop.run(main())
    finally:
        loop.close()


def test_clocks_and_randomness_are_those_of_the_seed() -> None:
    """One seed shows the same twice, another one something else, and clocks go with virtual time."""
    first, again, other = looked_at(1), looked_at(1), looked_at(2)
    assert first == again
    assert first[3:6] != other[3:6]
    assert first[-3:] == [30.0, int(WALL_EPOCH) + 30, 30]


def test_everything_is_put_back() -> None:
    """Afterwards the interpreter is as it was, and its random numbers go on where they stood."""
    clocks = time.time, time.monotonic, os.urandom, threading.Thread.start
    random.seed(5)
    expected = [random.random(), random.random()]
    random.seed(5)
    found = [random.random()]
    looked_at(1)
    assert expected == [*found, random.random()]
    assert clocks == (time.time, time.monotonic, os.urandom, threading.Thread.start)


@pytest.mark.parametrize(
    "begin",
    [
        methodcaller("sleep", 1),
        lambda _: threading.Thread(target=print).start(),
        lambda _: subprocess.run(["true"], check=True),
        lambda _: socket.socket(),
    ],
    ids=["time.sleep", "thread", "subprocess", "socket"],
)
def test_what_runs_in_real_time_is_refused(begin: Callable[[object], object]) -> None:
    """Where it begins, and with a word of what it is."""
    loop = SimLoop(Random(1))  # type: ignore[abstract]
    with ambient(loop, Random(1)), pytest.raises(SimUnsupported, match="would run in real time"):
        begin(time)
    loop.close()
