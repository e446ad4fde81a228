"""What every test shares: short and repeatable runs by default, long ones with new seeds under ``--soak``.

A random test takes its seeds from a fixed list, and more of them when the fixture `soak` is true::

    def test_anything_goes(soak: bool) -> None:
        for seed in range(2_000 if soak else 20):
            run(random.Random(seed))  # names the seed when it fails

Hypothesis tests need nothing: their profile changes with the option. An explicit ``@settings(max_examples=...)``
stays as it is.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.time_limit import TimedOut, TimeLimit

COVERED = frozenset(("core", "log", "store"))
"""The folders whose tests `coverage` measures: a test takes two to six times as long under it."""

LONG = (
    "sim/test_seeds.py",
    "test_crash.py",
    "log/test_census.py",
    "test_damage.py",
    "log/test_kill.py",
    "test_demo.py",
    "etcd/test_pair.py",
    "test_examples.py",
)
"""The modules that take longest, which go first where several run: in turn one that computes and one that waits."""

LIMIT = pytest.StashKey[TimeLimit]()
"""Where a test has its time limit."""

FIGURE = "figure"
"""The property of a test report that is printed at the end."""

settings.register_profile("short", derandomize=True, deadline=None)
settings.register_profile(
    "soak", max_examples=10_000, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--soak`` and ``--rewrite``."""
    parser.addoption(
        "--soak",
        action="store_true",
        default=os.environ.get("PYRAFTKV_SOAK") == "1",
        help="run the long versions of the random tests (also: PYRAFTKV_SOAK=1)",
    )
    parser.addoption("--rewrite", action="store_true", help="write tests/core/transcripts and docs/reference.md anew")


def pytest_configure(config: pytest.Config) -> None:
    """Choose the Hypothesis profile, and tell the processes that tests start."""
    # Who starts pytest in the background of a shell has it ignore Ctrl-C, and every process that a test starts, too.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    soak = config.getoption("--soak")
    settings.load_profile("soak" if soak else "short")
    os.environ["PYRAFTKV_SOAK"] = "1" if soak else "0"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let `coverage` measure the tests of what it reports on alone; the long random ones among them say `no_cover`."""
    if item.path.parent.name not in COVERED:
        item.add_marker("no_cover")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each worker of pytest-xdist begin with some of what takes long: what waits then does so beside the rest."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        items[:] = shared_out(items, workers)


def shared_out(items: Sequence[pytest.Item], workers: int) -> list[pytest.Item]:
    """Return the tests in pieces of one length, one for each worker (`--dist worksteal`): first long ones, then others.

    Long modules are dealt out in their order in `LONG`; all others keep theirs.
    """
    tests = Path(__file__).parent
    places = {tests / name: place for place, name in enumerate(LONG)}
    others = [item for item in items if item.path not in places]
    long = sorted((item for item in items if item.path in places), key=lambda item: places[item.path])
    ordered: list[pytest.Item] = []
    for worker in range(workers):
        piece = [item for item in long if places[item.path] % workers == worker]
        count = (len(items) - len(ordered)) // (workers - worker) - len(piece)
        ordered += [*piece, *others[: max(count, 0)]]
        del others[: max(count, 0)]
    return [*ordered, *others]


@pytest.hookimpl(optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool | None:
    """Take over from pytest-timeout, whose limit does not end whatever a test may do (`tests.time_limit`)."""
    if settings.method != "signal":
        return None
    from pytest_timeout import is_debugging

    item.stash[LIMIT] = limit = TimeLimit(settings.timeout, is_off=is_debugging)
    item.cancel_timeout = limit.end  # type: ignore[attr-defined]  # which it calls
    return True


def _in_time() -> Generator[None, Any, Any]:
    """Make a failure of what a time limit raises."""
    try:
        return (yield)
    except TimedOut as late:
        pytest.fail(str(late))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup() -> Generator[None, Any, Any]:
    """Hold the fixtures of a test to its time limit."""
    return (yield from _in_time())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Hold a test to its time limit, also one that takes no notice of it."""
    result = yield from _in_time()
    limit = item.stash.get(LIMIT, None)
    if limit is not None and limit.is_over:
        pytest.fail(str(limit))
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Generator[None, Any, Any]:
    """Hold what tidies up behind a test to its time limit."""
    return (yield from _in_time())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests `report`; a worker of pytest-xdist has no terminal of its own."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, text in getattr(report, "user_properties", ()):
                if name == FIGURE and report.when == "call":
                    terminalreporter.write_line(f"{report.nodeid}: {text}")


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Return what prints a figure at the end of the run, whoever runs the test."""
    return partial(record_property, FIGURE)


@pytest.fixture(scope="session")
def soak(pytestconfig: pytest.Config) -> bool:
    """Whether random tests should run long."""
    return bool(pytestconfig.getoption("--soak"))


@pytest.fixture(scope="session")
def rewrite(pytestconfig: pytest.Config) -> bool:
    """Whether transcripts should be written anew."""
    return bool(pytestconfig.getoption("--rewrite"))
