"""Running seeds side by side, each in its own process, and counting what comes of them in the order of the seeds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pyraftkv.cli.simulating import replay_command
from tests.soak.counters import Counters
from tests.soak.nursery import ROOT, Nursery, Stopped
from tests.soak.seed import STATUS_FAILED

MODULE = "tests.soak.seed"

PAIR_EVERY = 20
"""Every so many seeds, one runs twice."""

SEED_SECONDS_MAX = 1_200.0
"""A process that takes longer in real time has hung."""

WINDOW = 4
"""How many seeds are under way or wait, for each process: nobody idles while the oldest one takes its time."""


@dataclass(frozen=True)
class Plan:
    """How seeds are run."""

    seconds: float
    """The virtual time of each."""
    out: Path
    """Where failures are written."""
    deadline: float = float("inf")
    """When no further seed begins, in seconds of the monotonic clock."""
    seeds_max: int = 1_000_000
    """After how many none begins either."""
    jobs: int = 2
    """How many processes run at a time."""
    pair_every: int = PAIR_EVERY
    """Of so many seeds, one runs twice."""
    real_seconds_max: float = SEED_SECONDS_MAX
    """How long a process may take."""
    script: Path | None = None
    """Faults in place of those of the seeds."""


@dataclass(frozen=True)
class Result:
    """What came of one seed."""

    seed: int
    told: dict[str, Any] = field(default_factory=dict)
    """What its process told of it."""
    failure: str = ""
    """What went wrong, if it did."""
    is_pair: bool = False
    """Whether it ran twice, and both traces were compared."""

    @property
    def line(self) -> str:
        if self.failure:
            return f"seed {self.seed}: FAILED: {self.failure}"
        virtual, real = self.told["virtual_seconds"], self.told["real_seconds"]
        return (
            f"seed {self.seed}: {self.told['members']} members, {virtual:.1f} virtual seconds in {real:.1f} "
            f"({virtual / real:.1f}x), {self.told['operations']} operations, {self.told['leaders']} leaders, "
            f"{sum(self.told['faults'].values())} faults{', and again the same' if self.is_pair else ''}"
        )


class Ending:
    """The end of a run, by itself or by a signal: its nurseries are stopped, and what has come of seeds is counted.

    1. A run is told to end: by Ctrl-C, or by SIGTERM. 2. It dies at once. What had ended, and waited for an earlier
    seed, is not counted, and the processes of those under way run on.
    """

    def __init__(self) -> None:
        self.is_near = False
        self.status = 0
        """What a run that was told to end exits with, as a shell has it."""
        self._nurseries: list[Nursery] = []

    def nursery(self, *, hash_seed: int) -> Nursery:
        """Return a new one, to be stopped with the others."""
        nursery = Nursery(MODULE, _environment(hash_seed=hash_seed))
        self._nurseries.append(nursery)
        if self.is_near:
            nursery.stop()
        return nursery

    def now(self) -> None:
        """Stop whatever runs. Idempotent."""
        self.is_near = True
        for nursery in self._nurseries.copy():
            nursery.stop()

    @contextmanager
    def by_signals(self) -> Generator[None]:
        """Take SIGINT and SIGTERM for the end; in the main thread."""

        def end(number: int, _: object) -> None:
            self.status = 128 + number
            self.now()

        before = [(number, signal.signal(number, end)) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)


def run_seeds(plan: Plan, counters: Counters, path: Path, ending: Ending) -> Iterator[Result]:
    """Run seeds until it is time to stop, and yield what came of each, when it has been counted and written."""
    first = counters.next_seed
    seeds = iter(range(first, first + plan.seeds_max))
    waiting: deque[Future[Result | None]] = deque()
    with ExitStack() as ends:
        nurseries: SimpleQueue[Nursery] = SimpleQueue()
        for _ in range(plan.jobs):
            nurseries.put(ends.enter_context(ending.nursery(hash_seed=0)))
        pool = ends.enter_context(ThreadPoolExecutor(plan.jobs))
        try:
            while True:
                while len(waiting) < plan.jobs * WINDOW and (seed := next(seeds, None)) is not None:
                    waiting.append(pool.submit(_run_in_time, plan, seed, ending, nurseries))
                if not waiting or (result := waiting.popleft().result()) is None:
                    return  # they begin in order, so after one that came too late, or was stopped, none counts
                counters.add(result.seed, result.told, is_pair=result.is_pair, failed=bool(result.failure))
                counters.save(path)
                yield result
        finally:
            ending.now()


def _run_in_time(plan: Plan, seed: int, ending: Ending, nurseries: SimpleQueue[Nursery]) -> Result | None:
    if ending.is_near or time.monotonic() >= plan.deadline:
        return None
    nursery = nurseries.get()  # there is one for each thread
    try:
        return run_seed(plan, seed, nursery, ending)
    except Stopped:
        return None
    finally:
        nurseries.put(nursery)


def run_seed(plan: Plan, seed: int, nursery: Nursery, ending: Ending) -> Result:
    """Run a seed, and every `pair_every`-th one twice, the second time in a new interpreter under another hash seed.

    Raises: `Stopped`.
    """
    is_pair = seed % plan.pair_every == 0
    told, failure = run_process(plan, seed, hash_seed=0, digest=is_pair, nursery=nursery)
    if failure or not is_pair:
        return Result(seed, told, failure)
    with ending.nursery(hash_seed=seed) as another:
        other, failure = run_process(plan, seed, hash_seed=seed, digest=True, nursery=another)
    return Result(seed, told, failure or compare(plan, seed, told, other), is_pair=True)


def compare(plan: Plan, seed: int, told: dict[str, Any], other: dict[str, Any]) -> str:
    """Return what is wrong with two runs of one seed, if they differ, and write how to see it."""
    if told["digest"] == other["digest"]:
        return ""
    command = replay_command(seed, seconds=plan.seconds)
    lines = [f"PYTHONHASHSEED={number} {command} --trace {number}.txt" for number in (0, seed)]
    _write_note(plan, seed, "\n".join([f"seed {seed} does not repeat itself:", *lines]))
    return f"it is another run under PYTHONHASHSEED={seed}"


def run_process(
    plan: Plan, seed: int, *, hash_seed: int, digest: bool, nursery: Nursery | None = None
) -> tuple[dict[str, Any], str]:
    """Run a seed in a process of its own; return what it tells, and what went wrong.

    Args:
        plan: How.
        seed: Which.
        hash_seed: What strings are hashed with.
        digest: Whether to tell the hash of the trace, too.
        nursery: Whose child it is; its hash seed counts. Without one it is a new interpreter.
    """
    arguments = [str(seed), "--seconds", str(plan.seconds), "--out", str(plan.out), *["--digest"] * digest]
    if plan.script is not None:
        arguments += ["--script", str(plan.script)]
    command = [sys.executable, "-m", MODULE, *arguments]
    try:
        ran = (
            nursery.run(arguments, seconds_max=plan.real_seconds_max)
            if nursery is not None
            else subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                env=_environment(hash_seed=hash_seed),
                cwd=ROOT,
                timeout=plan.real_seconds_max,
            )
        )
    except subprocess.TimeoutExpired:
        failure = f"it did not end within {plan.real_seconds_max:g} s"
        _write_note(plan, seed, f"seed {seed}: {failure}: {' '.join(command)}")
        return {}, failure
    if ran.returncode == 0:
        return json.loads(ran.stdout.splitlines()[-1]), ""
    if ran.returncode == STATUS_FAILED:
        return {}, json.loads(ran.stdout.splitlines()[-1])["failure"]
    _write_note(plan, seed, f"{' '.join(command)}\nended with {ran.returncode}\n{ran.stdout}\n{ran.stderr}")
    return {}, f"its process ended with {ran.returncode}: {(ran.stderr.splitlines() or [''])[-1]}"


def _environment(*, hash_seed: int) -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": str(hash_seed)}


def _write_note(plan: Plan, seed: int, text: str) -> None:
    plan.out.mkdir(parents=True, exist_ok=True)
    (plan.out / f"seed-{seed}.txt").write_text(f"{text}\n", encoding="utf-8")
