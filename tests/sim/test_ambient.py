from __future__ import annotations

import _thread
import asyncio
import multiprocessing
import os
import queue
import random
import secrets
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from pyraftkv.sim.ambient import ambient
from pyraftkv.sim.clock import WALL_EPOCH
from pyraftkv.sim.loop import SimLoop, SimUnsupported


def looked_at(seed: int) -> list[object]:
    """Return what an application sees that looks around, and looks again half a minute later."""

    async def main() -> list[object]:
        before = [time.time(), time.monotonic(), time.perf_counter(), random.random(), uuid.uuid4(), os.urandom(4)]
        before += [secrets.token_hex(), random.SystemRandom().random(), Random().random(), os.getrandom(4)]
        random.seed()
        before.append(random.random())
        await asyncio.sleep(30)
        return [*before, round(time.time() - WALL_EPOCH, 3), time.time_ns() // 10**9, time.monotonic_ns() // 10**9]

    loop = SimLoop(Random(seed))
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


def test_whatever_tells_the_time_tells_the_simulated_one() -> None:
    """Also where it is not asked for a clock, but given no time to write."""

    async def main() -> None:
        await asyncio.sleep(60)
        assert time.gmtime()[:5] == (2026, 1, 1, 0, 1)
        assert time.gmtime(0)[:5] == (1970, 1, 1, 0, 0)
        assert time.localtime() == time.localtime(time.time())
        assert time.ctime() == time.asctime() == time.ctime(WALL_EPOCH + 60) == time.asctime(time.localtime())
        assert time.strftime("%S", time.gmtime(7)) == "07"
        assert time.strftime("%c") == time.strftime("%c", time.localtime())
        assert round(time.clock_gettime(time.CLOCK_REALTIME) - WALL_EPOCH, 3) == 60
        assert time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 10**9 == 60

    loop = SimLoop(Random(1))
    with ambient(loop, Random(1)):
        loop.run(main())
    loop.close()


def test_the_numbered_clocks_are_simulated_too() -> None:
    """`time.clock_gettime` shows the wall clock, the monotonic one, and the one that counts suspended time."""

    async def main() -> list[float]:
        clock = loop.current.clock
        clock.freeze()
        await other.spawn(asyncio.sleep(7))
        clock.thaw()
        return [
            time.clock_gettime(number) for number in (time.CLOCK_REALTIME, time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)
        ]

    loop = SimLoop(Random(1))  # type: ignore[abstract]
    other = loop.process("other")
    try:
        with ambient(loop, Random(1)):
            assert [round(shown, 3) for shown in loop.run(main())] == [WALL_EPOCH + 7, 0.0, 7.0]
    finally:
        loop.close()


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


def sleep(seconds: float) -> None:
    """Sleep in real time, as an application might try to; a test never does."""
    getattr(time, "sleep")(seconds)  # noqa: B009


BEGINNINGS: dict[str, Callable[[], object]] = {
    "time.sleep": lambda: sleep(1),
    "thread": lambda: threading.Thread(target=print).start(),
    "low thread": lambda: _thread.start_new_thread(print, ()),
    "pool": lambda: ThreadPoolExecutor(1).submit(print),
    "wait": lambda: threading.Event().wait(0.01),
    "queue": lambda: queue.Queue[int]().get(timeout=0.01),
    "subprocess": lambda: subprocess.run(["true"], check=True),
    "multiprocessing": lambda: multiprocessing.get_context("spawn").Process(target=print).start(),
    "fork": lambda: os.waitpid(os.fork(), 0),
    "system": lambda: os.system("true"),
    "alarm": lambda: signal.setitimer(signal.ITIMER_REAL, 0),
    "socket": lambda: socket.socket(socket.AF_INET),
    "name server": lambda: socket.create_connection(("localhost", 9)),
    "event loop": lambda: asyncio.new_event_loop().close(),
    "CPU time": lambda: round(time.process_time()),
    "CPU clock": lambda: time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID),
    "uuid1": lambda: uuid.uuid1(node=1),
}


@pytest.mark.parametrize("begin", BEGINNINGS.values(), ids=BEGINNINGS.keys())
def test_what_runs_in_real_time_is_refused(begin: Callable[[], object]) -> None:
    """Where it begins, and with a word of what it is."""
    loop = SimLoop(Random(1))
    with ambient(loop, Random(1)), pytest.raises(SimUnsupported, match="would run in real time"):
        begin()
    loop.close()


def test_looking_is_not_waiting() -> None:
    """What is there already is had from a queue for threads, and that nothing is there is seen."""
    loop = SimLoop(Random(1))
    shelf = queue.Queue[int]()
    with ambient(loop, Random(1)):
        shelf.put(1)
        assert shelf.get(timeout=5) == 1
        assert not threading.Event().wait(0)
    loop.close()


def test_other_threads_go_on_as_before() -> None:
    """A test runner's own threads sleep, wait, draw random bytes and read clocks, and the simulation repeats."""
    asked, found = threading.Semaphore(0), queue.Queue[object]()

    def look() -> None:
        while asked.acquire(timeout=30):
            try:
                sleep(0)
                os.urandom(8)
                found.put(time.time() > WALL_EPOCH + 60)
            except Exception as error:  # noqa: BLE001 - the test looks at whatever it is
                found.put(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    loop = SimLoop(Random(1))
    with ambient(loop, Random(1)):
        before = os.urandom(4)
        asked.release()
        while found.empty():
            pass
        drawn = [before, os.urandom(4)]
    loop.close()
    with ambient(loop, Random(1)):
        assert drawn == [os.urandom(4), os.urandom(4)]
    assert found.get() is True


def test_coroutines_start_in_the_order_they_are_given() -> None:
    """Though asyncio keeps them in a set."""

    async def main() -> list[int]:
        started: list[int] = []

        async def start(number: int) -> None:
            started.append(number)

        for each in asyncio.as_completed([start(number) for number in range(50)]):
            await each
        with pytest.raises(TypeError):
            list(asyncio.as_completed(asyncio.get_running_loop().create_future()))  # type: ignore[type-var]
        return started

    loop = SimLoop(Random(1))
    with ambient(loop, Random(1)):
        assert loop.run(main()) == list(range(50))
    loop.close()
