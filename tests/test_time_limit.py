"""A test that takes too long ends, whatever it does."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Generator
from contextlib import contextmanager, suppress

import pytest

from tests.conftest import LIMIT
from tests.sim.test_host import World
from tests.time_limit import AGAIN_SECONDS, TimedOut, TimeLimit

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="there are no alarms here")


@contextmanager
def soon() -> Generator[TimeLimit]:
    """Set a limit inside that of the test, which is soon over."""
    limit = TimeLimit(0.1, again_seconds=0.2)
    try:
        yield limit
    finally:
        while limit.is_set:
            with suppress(TimedOut):  # it rings while it is turned off
                limit.end()


@contextmanager
def ended_by_time() -> Generator[TimeLimit]:
    """Let a limit end the block."""
    with pytest.raises(TimedOut, match=r"^it took longer than 0.1 s$"), soon() as limit:
        yield limit


def test_what_spins_in_callbacks_ends() -> None:
    """What is raised in one is swallowed by asyncio."""

    async def main() -> None:
        asyncio.get_running_loop().call_soon(spin)
        await asyncio.Event().wait()

    def spin() -> None:
        asyncio.get_running_loop().call_soon(spin)
        if not limit.is_over:
            signal.pause()

    with ended_by_time() as limit:
        asyncio.run(main())


def test_what_is_not_to_be_cancelled_ends() -> None:
    """It is told again, because asyncio waits for it."""
    times_cancelled = 0

    async def main() -> None:
        nonlocal times_cancelled
        task = asyncio.current_task()
        task._log_destroy_pending = False
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                times_cancelled += 1

    with ended_by_time():
        asyncio.run(main())
    assert times_cancelled == 1


def test_a_simulated_program_does_not_end_in_place_of_its_test() -> None:
    """A simulated process may end by an exit, and is started again."""

    async def program(_: object) -> None:
        signal.pause()

    world = World(program)
    with ended_by_time():
        world.host.start()
        world.pass_time(60)
    assert world.ended == []
    world.loop.close()


def test_who_debugs_has_all_the_time() -> None:
    """Nothing is raised; nor after the end, which may come twice."""
    limit = TimeLimit(0.01, is_off=lambda: True)
    signal.pause()
    limit.end()
    limit.end()
    assert not limit.is_over


def test_every_test_has_a_limit(request: pytest.FixtureRequest) -> None:
    """Where pytest-timeout is there to say how long."""
    if not request.config.pluginmanager.hasplugin("timeout"):
        pytest.skip("there is no pytest-timeout here")
    assert signal.getsignal(signal.SIGALRM) == request.node.stash[LIMIT]._ring
    assert signal.getitimer(signal.ITIMER_REAL)[1] == AGAIN_SECONDS
