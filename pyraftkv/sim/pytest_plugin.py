"""What the pytest plugin does for tests that ask for a simulation; `pytest_pyraftkv` is what pytest imports.

A failed test is a scenario (`pyraftkv.sim.trial`): its function is called again with another trial in place of the
fixture's, as long as the budget lasts and the failure stays the same. The error that is reported, the report's section
and the picture are those of the run with the fewest faults. Fixtures that stand on the simulation are made again for
each of these calls (`pyraftkv.sim.pytest_fixtures`); others are made once and shared, so what a scenario changes must
be made by the test itself, or from its simulation.

A test that is expected to fail (``xfail``) is neither shrunk nor drawn.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shlex
from collections.abc import Generator, Iterator, Sequence
from inspect import iscoroutinefunction
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import pytest

from pyraftkv.errors import InvalidRequest
from pyraftkv.sim.pytest_fixtures import Fixtures, NotRepeatable
from pyraftkv.sim.trial import Breakage, Plan, Scenario, Trial, breakage, shrunk

SEEDS_DEFAULT = 5
OUT_DEFAULT = ".raft"
OPTIONS = ("seeds", "members", "faults", "seconds", "faults_per_second", "machines")
"""Of the marker."""
NAME_LENGTH_MAX = 150
LONGER = "--raft-shrink-seconds=60"
"""What leaves fewer faults, if shrinking was cut short."""

_HERE = str(Path(__file__).parent)
_REPORT = pytest.StashKey[str]()


class Failed(AssertionError):
    """What `pytest.fail` raises, as an error like others."""


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Run a test once for each of its seeds. Raises `CollectError` for one that cannot be run."""
    if iscoroutinefunction(metafunc.function):
        name = next(iter({*metafunc.fixturenames} & {"raft_sim", "raft_cluster"}))
        raise pytest.Collector.CollectError(
            f"{metafunc.definition.nodeid}: a simulated test is no coroutine, for the simulation brings its own event "
            f"loop: write `def {metafunc.definition.name}({name}):`, and in it `async def main(sim):` and "
            f"`{name}.run(main)`"
        )
    try:
        seeds = _seeds(metafunc.config, metafunc.definition)
        _plan(metafunc.definition, is_ready=False).check()
    except (TypeError, InvalidRequest) as error:
        raise pytest.Collector.CollectError(f"{metafunc.definition.nodeid}: @pytest.mark.raft: {error}") from None
    metafunc.parametrize("raft_seed", seeds, ids=[f"seed{seed}" for seed in seeds])


def trial(request: pytest.FixtureRequest, seed: int, *, is_ready: bool) -> Iterator[Trial]:
    """Yield the trial of one seed, as the marker of the test wants it."""
    with Trial(seed, _plan(request.node, is_ready=is_ready)) as made:
        yield made


def explained(item: pytest.Function, name: str, error: BaseException) -> BaseException:
    """Return the failure of a test with as few faults as could be found; remember it for the report.

    Args:
        item: The test.
        name: Which of its fixtures is the simulation.
        error: What it raised.
    """
    made = cast(Trial, item.funcargs[name])
    if item.get_closest_marker("xfail") is not None:
        return error

    broken = breakage(made, _as_error(error))
    seconds_max: Any = item.config.getoption("--raft-shrink-seconds")
    obstacle = ""
    if seconds_max > 0:
        try:
            with _quiet():
                broken = shrunk(_scenario(item, name), broken, seconds_max=seconds_max)
        except NotRepeatable as why:
            obstacle = f"\nnot shrunk: {why}, so the test cannot run again with fewer faults"
    command = _command(item, broken.seed)
    picture: Path | None = None
    try:
        picture = _draw(item, broken, command)
    except OSError as why:
        obstacle += f"\nno picture: {why}"
    item.stash[_REPORT] = broken.report(command=command, picture=picture, longer=LONGER) + obstacle
    _detach(broken.error, error)
    return broken.error.with_traceback(_theirs(broken.error.__traceback__))


def check_ran(item: pytest.Function, name: str) -> None:
    """Raise `Failed` if a test passed without running its simulation: it is right by chance."""
    if not cast(Trial, item.funcargs[name]).has_begun:
        raise Failed(f"nothing was simulated: the test passed without calling `{name}.run(main)`")


def _scenario(item: pytest.Function, name: str) -> Scenario:
    """Return the function of a test as a scenario. Raises `NotRepeatable`, which comes out of the scenario, too."""
    fixtures = Fixtures(item, name)
    has_begun = cast(Trial, item.funcargs[name]).has_begun

    def scenario(another: Trial) -> None:
        try:
            fixtures.call(another)
        except pytest.fail.Exception as failure:
            raise _as_error(failure) from None
        finally:
            if has_begun and not another.has_begun:
                raise NotRepeatable(f"`{name}` came to the test past its parameters")

    return scenario


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Let what runs again print and log nothing: the first run has said it all."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def add_section(item: pytest.Function, report: pytest.TestReport) -> None:
    """Put what `explained` found into the report of the test."""
    text = item.stash.get(_REPORT, None)
    if text is not None:
        report.sections.append(("pyraftkv simulation", text))


# --- What was asked for --------------------------------------------------------------------------------------------


def _options(node: pytest.Item | Any) -> dict[str, Any]:
    """Return what the markers of a test say, the closest the last word. Raises `TypeError`."""
    options: dict[str, Any] = {}
    for marker in reversed(list(node.iter_markers("raft"))):
        if marker.args:
            raise TypeError(f"its options have names, such as faults={marker.args[0]!r}")
        options.update(marker.kwargs)
    if unknown := [name for name in options if name not in OPTIONS]:
        raise TypeError(f"there is no option {unknown[0]!r}; there are {', '.join(OPTIONS)}")
    return options


def _seeds(config: pytest.Config, node: Any) -> Sequence[int]:
    """Return the seeds of a test: the command line has the last word. Raises `TypeError`."""
    one, count = config.getoption("--raft-seed"), config.getoption("--raft-seeds")
    if one is not None:
        return [one]
    if count is None:
        count = _options(node).get("seeds", SEEDS_DEFAULT)
    given = range(count) if type(count) is int else count
    seeds = cast(Sequence[Any], given) if isinstance(given, Sequence) else ()
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise TypeError(f"seeds are how many, 1 or more, or a list of whole numbers from 0 on: not {count!r:.100}")
    return seeds


def _plan(node: Any, *, is_ready: bool) -> Plan:
    options = _options(node)
    options.pop("seeds", None)
    return Plan(**options, is_ready=is_ready)


# --- What is said --------------------------------------------------------------------------------------------------


def _command(item: pytest.Function, seed: int) -> str:
    """Return what to type to see a failure again."""
    ours = f"seed{seed}"
    name = item.nodeid.removesuffix(f"[{ours}]")
    return f"pytest {shlex.quote(name)} --raft-seed={seed}"


def _draw(item: pytest.Function, broken: Breakage, command: str) -> Path:
    """Write the picture of a failure; return where it is. Raises `OSError`."""
    out = item.config.getoption("--raft-out")
    folder = item.config.invocation_params.dir / out if out else item.config.rootpath / OUT_DEFAULT
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    name = re.sub(r"[^\w.-]+", "-", item.nodeid.rpartition("/")[2]).strip("-")[:NAME_LENGTH_MAX]
    path = folder / f"{name}.html"
    path.write_text(broken.html(title=item.originalname, command=command), encoding="utf-8")
    return path


def _as_error(error: BaseException) -> BaseException:
    """Return what `pytest.fail` raises as an error, so that it is told and shrunk like others."""
    if isinstance(error, pytest.fail.Exception):
        return Failed(error.msg).with_traceback(error.__traceback__)
    return error


def _detach(error: BaseException, first: BaseException) -> None:
    """Let an error forget that it was raised while the first one was being looked into."""
    at: BaseException | None = error
    while at is not None:
        if at.__context__ is first:
            at.__context__ = None
        at = at.__context__


def _theirs(at: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the simulator's own frames, which say nothing about the test."""
    if at is None:
        return None
    rest = _theirs(at.tb_next)
    if at.tb_frame.f_code.co_filename.startswith(_HERE):
        return rest
    return TracebackType(rest, at.tb_frame, at.tb_lasti, at.tb_lineno)
