"""Running mutants: each in its own copy of the source and its own process, so that the product needs no hooks.

A mutant is *killed* when its killer fails as a test fails: not while it is imported or collected, not by a name that
the patch forgot, and not by taking too long, unless the patch says that this is how it shows. That the killer passes
without the patch is checked once per killer.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from compileall import compile_dir
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from py_compile import PycInvalidationMode
from tempfile import TemporaryDirectory
from typing import NamedTuple
from xml.etree import ElementTree as ET

from tests.mutants.mutant import HERE, Mutant, PatchError, node_id_of, seed_of
from tests.mutants.seed import STATUS_KILLED

ROOT = HERE.parents[1]
COPIED = ("pyraftkv", "tests", "pyproject.toml", "pytest_pyraftkv.py")

KILLER_SECONDS_MAX = 20.0
"""A killer that takes longer has hung."""

PLUGINS = ("pytest_timeout", "pytest_cov.plugin", "pytest_pyraftkv")
"""What killers need of pytest, by the names of modules: to look for what else is installed takes most of its start."""

_BROKEN = frozenset({"ImportError", "ModuleNotFoundError", "NameError", "SyntaxError", "UnboundLocalError"})
"""What a patch that was written badly raises: it proves nothing about the test."""

_TESTS_FAILED = 1
"""The exit status of pytest."""


class Verdict(Enum):
    """What became of a mutant."""

    KILLED = "killed"
    SURVIVED = "SURVIVED"
    BROKEN = "BROKEN"
    """It no longer applies, or what its killer said means nothing."""
    PENDING = "pending"
    """Nothing can kill it yet."""


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    mutant: Mutant
    verdict: Verdict
    seconds: float = 0.0
    reason: str = ""


class Outcome(NamedTuple):
    """How a killer ended."""

    ending: str
    """``passed``, ``failed``, ``hung`` or ``broken``."""
    reason: str = ""


PASSED = Outcome("passed")


def copy_source(root: Path, target: Path) -> None:
    """Copy what is mutated and what kills, and compile it, so that each mutant compiles only what it changed."""
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(root / name, target / name)
    # By their contents: a file that was mutated within a second of its being written must not be mistaken for itself.
    compile_dir(target, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)


def run_all(
    mutants: Sequence[Mutant], *, root: Path = ROOT, jobs: int = 1, seconds_max: float = KILLER_SECONDS_MAX
) -> Iterator[Result]:
    """Run the mutants, ``jobs`` at a time, and yield their results in order.

    Args:
        mutants: Which.
        root: Where the source is that is copied.
        jobs: How many killers run side by side.
        seconds_max: How long a killer may take.
    """
    with TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(jobs) as pool:
        source = Path(folder) / "source"
        source.mkdir()
        copy_source(root, source)
        killers = list(dict.fromkeys(mutant.killer for mutant in mutants if not mutant.pending))
        try_killer = partial(run_killer, root=source, seconds_max=seconds_max)
        sane = dict(zip(killers, pool.map(try_killer, killers), strict=True))
        run = partial(_run_one, source=source, sane=sane, seconds_max=seconds_max)
        yield from pool.map(run, mutants)


def _run_one(mutant: Mutant, *, source: Path, sane: dict[str, Outcome], seconds_max: float) -> Result:
    if mutant.pending:
        return Result(mutant, Verdict.PENDING, reason="nothing can kill it yet")
    before = sane[mutant.killer]
    if before is not PASSED:
        return Result(mutant, Verdict.BROKEN, reason=f"without the mutant its killer {before.ending}: {before.reason}")
    with TemporaryDirectory(prefix=f"{mutant.name}-", dir=source.parent) as folder:
        copy = Path(folder) / "source"
        shutil.copytree(source, copy, copy_function=os.link)  # what a patch changes it writes anew
        try:
            mutant.apply(copy)
        except PatchError as error:
            return Result(mutant, Verdict.BROKEN, reason=str(error))
        begun = time.monotonic()
        outcome = run_killer(mutant.killer, copy, seconds_max=seconds_max)
        seconds = time.monotonic() - begun
    if outcome is PASSED:
        return Result(mutant, Verdict.SURVIVED, seconds, "its killer passes")
    if outcome.ending == "failed" or (outcome.ending == "hung" and mutant.hangs):
        return Result(mutant, Verdict.KILLED, seconds, outcome.reason)
    return Result(mutant, Verdict.BROKEN, seconds, f"its killer {outcome.ending}: {outcome.reason}")


def run_killer(killer: str, root: Path, *, seconds_max: float) -> Outcome:
    """Run a killer on the source in ``root``, and nothing else on the path."""
    report = root.with_name("report.xml")  # beside it: what lies in it is shared with other copies
    if node_id_of(killer) is not None:
        plugins = [argument for name in PLUGINS for argument in ("-p", name)]
        options = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *plugins, f"--junitxml={report}", killer]
    else:
        seed = seed_of(killer)
        options = [str(HERE / "seed.py"), str(seed.seed), json.dumps(seed.options)]
    # -P: the folder of a script, or the one we stand in, would come before the copy.
    done = _run([sys.executable, "-P", *options], root, seconds_max)
    if done is None:
        return Outcome("hung", f"it took more than {seconds_max:g} s")
    status, output = done
    if status == 0:
        return PASSED
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "")
    if node_id_of(killer) is None:
        return Outcome("failed" if status == STATUS_KILLED else "broken", last)
    if status != _TESTS_FAILED or not report.exists():
        return Outcome("broken", f"pytest ended with status {status}: {last}")
    return _judge(report)


def _judge(report: Path) -> Outcome:
    """Tell a test that failed from one that could not be run."""
    cases = list(ET.parse(report).iter("testcase"))
    messages = [failure.get("message", "") for case in cases for failure in case.iter("failure")]
    if not messages:
        return Outcome("broken", "no test failed, but something around it did")
    reason = messages[0].partition("\n")[0]
    return Outcome("broken" if reason.partition(":")[0] in _BROKEN else "failed", reason)


def _run(command: list[str], root: Path, seconds_max: float) -> tuple[int, str] | None:
    """Return the exit status and what was printed; None if it took too long: then its whole session is stopped."""
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTEST_ADDOPTS", "PYRAFTKV_SOAK"}}
    told = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    env = {**kept, **told, "PYTHONPATH": str(root)}
    process = subprocess.Popen(
        command,
        cwd=root,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            output, _ = process.communicate(timeout=seconds_max)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return None
    return process.returncode, output
