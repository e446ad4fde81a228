"""The pytest plugin of pyraftkv: the fixtures `raft_sim` and `raft_cluster`, the marker `raft`, its options.

pytest imports every plugin that is installed at its start, in runs that never use it, too. So this module stands beside
the package and imports nothing of it: what it does when a test asks for a simulation stands in
`pyraftkv.sim.pytest_plugin`, which is imported then.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pyraftkv.sim.trial import Trial

FIXTURES = ("raft_sim", "raft_cluster")

MARKER = (
    "raft(seeds=5, members=3, faults=(), seconds=30.0, faults_per_second=0.5, machines={}): the seeds and the "
    "cluster of a simulated test; faults are 'all', names of kinds, or pyraftkv.sim.Fault records, for so many seconds"
)


def _from(least: int) -> Callable[[str], int]:
    """Return what reads a whole number of an option, from ``least`` on."""

    def read(text: str) -> int:
        number = int(text) if text.isdecimal() else least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return number

    return read


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that choose seeds and say where pictures go."""
    group = parser.getgroup("pyraftkv", "simulated clusters (pyraftkv)")
    group.addoption(
        "--raft-seeds",
        type=_from(1),
        metavar="N",
        help="run every simulated test under the seeds 0 to N-1 (default: 5)",
    )
    group.addoption("--raft-seed", type=_from(0), metavar="S", help="run every simulated test under this seed only")
    group.addoption(
        "--raft-out", metavar="DIR", help="where pictures of failures go (default: .raft beside the configuration)"
    )
    group.addoption(
        "--raft-shrink-seconds",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="how long to look for fewer faults that fail, in real time per failure; 0: not at all (default: 10)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", MARKER)


@pytest.hookimpl(trylast=True)  # after the test's own parameters, so that the seed comes last in its name
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a simulated test once per seed."""
    if not set(FIXTURES).isdisjoint(metafunc.fixturenames):
        from pyraftkv.sim import pytest_plugin

        pytest_plugin.parametrize(metafunc)


@pytest.fixture
def raft_seed() -> int:
    """The seed that this test runs under: tests with a simulation are parametrized over it."""
    return 0


@pytest.fixture
def raft_sim(request: pytest.FixtureRequest, raft_seed: int) -> Iterator[Trial]:
    """A simulated cluster (`pyraftkv.sim.Trial`); nothing runs before ``raft_sim.run(main)``."""
    from pyraftkv.sim import pytest_plugin

    yield from pytest_plugin.trial(request, raft_seed, is_ready=False)


@pytest.fixture
def raft_cluster(request: pytest.FixtureRequest, raft_seed: int) -> Iterator[Trial]:
    """The same, with a leader elected before ``main`` begins."""
    from pyraftkv.sim import pytest_plugin

    yield from pytest_plugin.trial(request, raft_seed, is_ready=True)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Look for fewer faults that make a simulated test fail in the same way, and draw what happened."""
    used = [name for name in FIXTURES if name in pyfuncitem.funcargs]
    if not used:
        return (yield)
    from pyraftkv.sim import pytest_plugin

    try:
        done = yield
        pytest_plugin.check_ran(pyfuncitem, used[0])
        return done
    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - raised again below
        failure = pytest_plugin.explained(pyfuncitem, used[0], error)
    raise failure


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what was found to the report of a failed test."""
    report = yield
    if report.when == "call" and report.failed and isinstance(item, pytest.Function):
        if set(FIXTURES).isdisjoint(item.funcargs):
            return report
        from pyraftkv.sim import pytest_plugin

        pytest_plugin.add_section(item, report)
    return report
