"""The way onto a loop in another thread, and who is not let in."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyraftkv import errors, sync
from pyraftkv.sync.portal import Portal


@pytest.fixture
def portal() -> Iterator[Portal]:
    """A loop in a thread."""
    portal = Portal("portal")
    yield portal
    portal.close()


async def thread() -> str:
    """Return where this runs."""
    return threading.current_thread().name


def test_a_coroutine_runs_on_the_loop_and_its_result_or_error_comes_back(portal: Portal) -> None:
    """From any thread."""
    assert portal.run(thread) == "portal"

    async def fail() -> None:
        raise LookupError("no")

    with pytest.raises(LookupError, match="no"):
        portal.run(fail)


def test_a_coroutine_may_not_block_its_loop(portal: Portal) -> None:
    """Neither its own, nor the portal's, which would wait for itself."""

    async def block() -> None:
        portal.run(thread)

    with pytest.raises(errors.CalledInLoop, match="to_thread"):
        asyncio.run(block())
    with pytest.raises(errors.CalledInLoop, match="to_thread"):
        portal.run(block)
    with pytest.raises(errors.CalledInLoop):
        asyncio.run(opening())


async def opening() -> None:
    """Open a portal where none may be."""
    Portal("no")


def test_from_a_thread_of_a_program_with_a_loop_it_may(portal: Portal) -> None:
    """Which is what the error says to do."""
    assert asyncio.run(in_thread(portal)) == "portal"


async def in_thread(portal: Portal) -> str:
    """Ask from a thread."""
    return await asyncio.to_thread(portal.run, thread)


async def _begun(running: asyncio.Event) -> None:
    running.set()
    await asyncio.sleep(3600)


def test_what_is_closed_says_so_and_ends_what_runs(portal: Portal) -> None:
    """Whoever waits is told; whether it was done nobody knows."""
    waiting = portal.submit(lambda: asyncio.sleep(3600))
    with ThreadPoolExecutor() as threads:
        running = portal.call(asyncio.Event)
        call = threads.submit(portal.run, lambda: _begun(running))
        portal.run(running.wait)
        portal.close()
        assert isinstance(call.exception(), errors.MaybeApplied)
    portal.close()
    assert waiting.cancelled()
    with pytest.raises(errors.Closed):
        portal.run(thread)


def test_who_may_not_close_from_a_loop_changes_nothing(tmp_path: Path) -> None:
    """It would be torn down with its thread, and not left: nothing handed over, nothing told to whoever waits."""
    with sync.open(tmp_path) as node:

        async def close() -> None:
            node.close()

        with pytest.raises(errors.CalledInLoop):
            asyncio.run(close())
        with pytest.raises(errors.CalledInLoop):
            node.portal.run(close)
        node.put("k", "v")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_refused_and_the_parent_goes_on(portal: Portal) -> None:
    """In the child nobody runs the loop."""
    child = os.fork()
    if not child:  # pragma: no cover - not in this process
        try:
            portal.close()
            portal.run(thread)
        except errors.Forked:
            os._exit(7)
        finally:
            os._exit(8)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert portal.run(thread) == "portal"


FORGETFUL = """
from pyraftkv import sync
cluster = sync.Cluster.in_memory(3).start()
cluster.client().put("k", "v")
print("done", flush=True)
"""

WAITING = """
from pyraftkv import sync
with sync.Cluster.in_memory(1) as cluster:
    watch = cluster.client().watch("k")
    print(watch.synced(), flush=True)
    for event in watch:
        print(event)
"""


FULL = """
import os, resource
from pyraftkv import sync
cluster = sync.Cluster.in_memory(1)
resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    cluster.start()
except OSError as error:
    print(type(error).__name__, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="resource limits")
def test_a_loop_that_cannot_be_made_is_told_of() -> None:
    """Who opens too many files is not left waiting for a thread that has ended."""
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "OSError\n"), done.stderr


def test_a_program_that_forgets_to_close_ends() -> None:
    """Nothing hangs, and nothing is complained of."""
    done = subprocess.run([sys.executable, "-c", FORGETFUL], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interrupt_ends_a_call_that_waits() -> None:
    """Ctrl-C reaches who waits for an event that never comes, and the nodes are closed on the way out."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline().strip().isdigit()
            program.send_signal(signal.SIGINT)
            _, said = program.communicate(timeout=60)
        finally:
            program.kill()
    assert program.returncode != 0
    assert said.strip().endswith("KeyboardInterrupt")
