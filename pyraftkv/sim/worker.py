"""Where blocking work runs in virtual time: `SimWorker`, a thread of a simulated process that waits for its disk.

.. code-block:: text

    submit ──► queue ──► wait ──► the job, at one instant ──► wait ──► then(result), in a pass of the process
                          └──────── together: what the job cost the disk ───────┘

What a job does to the disk happens at one instant, somewhere between its start and its completion: so a process that is
killed in the meantime finds, in its next life, that it was done or that it was not. How long a job takes is known only
when it ran; the wait before it is a random part of what the worker's last job took.

A dead process runs no job; the jobs of a paused one wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from pyraftkv.log.worker import Then
from pyraftkv.sim.disk import SimDisk, SimulatedCrash
from pyraftkv.sim.loop import SimLoop
from pyraftkv.sim.process import SimProcess

T = TypeVar("T")

JOB_SECONDS = (5e-6, 50e-6)
"""What handing a job over and back is counted for, besides the disk."""
JOBS_QUEUED_MAX = 200_000
"""Jobs that wait for one worker. The storage bounds them; more are our bug."""


class SimWorker:
    """Runs the jobs of one process on its disk, one at a time, in order. Implements `pyraftkv.log.Worker`."""

    def __init__(self, loop: SimLoop, process: SimProcess, disk: SimDisk, name: str) -> None:
        self.name = name
        self._loop = loop
        self._process = process
        self._disk = disk
        self._jobs: deque[tuple[Callable[[], Any], Then[Any]]] = deque()
        self._busy = False
        self._stopped = False
        self._waited_seconds = 0.0
        self._last_seconds = 0.0

    def __repr__(self) -> str:
        return f"<SimWorker {self.name} of {self._process.name}, {len(self._jobs)} jobs>"

    def submit(self, job: Callable[[], T], then: Then[T]) -> None:
        if self._stopped:
            return
        assert len(self._jobs) < JOBS_QUEUED_MAX
        self._jobs.append((job, then))
        if not self._busy:
            self._busy = True
            self._begin()

    def stop(self) -> None:
        self._stopped = True

    def _begin(self) -> None:
        """Let the next job run after a part of the time that it will take, so far as anybody knows."""
        self._waited_seconds = self._disk.random.random() * self._last_seconds
        self._loop.push(self._loop.now + self._waited_seconds, self._run, None)

    def _run(self, _: None) -> None:
        loop, process, disk = self._loop, self._process, self._disk
        if not process.runs:
            process.post(self._begin)  # when it is resumed, and never in a dead one
            return
        job, then = self._jobs.popleft()
        disk.seconds = 0.0
        outside, loop.current = loop.current, process
        error: Exception | None = None
        result = None
        try:
            result = process.context.run(job)
        except SimulatedCrash:
            self._jobs.clear()
            return
        except Exception as caught:  # noqa: BLE001 - the storage decides what an error of any kind means
            error = caught
        finally:
            loop.current = outside
        lo, hi = JOB_SECONDS
        self._last_seconds = disk.seconds + lo + (hi - lo) * disk.random.random()
        rest = max(self._last_seconds - self._waited_seconds, 0.0)
        loop.push(loop.now + rest, self._complete, (then, result, error))

    def _complete(self, outcome: tuple[Then[Any], Any, Exception | None]) -> None:
        self._process.post(*outcome)
        if self._jobs:
            self._begin()
        else:
            self._busy = False
