"""`SimProcess`: one operating-system process of the simulation, with its queue of callbacks and its timers.

A callback belongs to a process by its *context*: `PROCESS` is set in the context that a process's first task runs in,
tasks copy their context from the task that makes them, and so everything that grows from a process belongs to it,
whoever completes the future it waits for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from math import inf
from typing import Any, Protocol, TypeVar

from pyraftkv.sim.clock import SimClock

T = TypeVar("T")

PROCESS: ContextVar[SimProcess] = ContextVar("pyraftkv_sim_process")
"""The process that the running code belongs to."""

TASKS_SWEEP_MIN = 64
"""Finished tasks are forgotten when as many again were made, and not below this many."""

TIMERS_SWEEP_MIN = 64
"""Cancelled timers are thrown out when they are the most of those waiting, and not below this many."""


class SimHandle(asyncio.Handle):
    """A callback in a process's queue: asyncio's handle without its debugging, at half of the cost."""

    __slots__ = ("args", "callback", "context")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], context: Context) -> None:  # pyright: ignore[reportMissingSuperCall]
        self.callback = callback
        self.args = args
        self.context = context
        self._cancelled = False

    def __repr__(self) -> str:
        return f"<SimHandle {self.callback!r}{' cancelled' if self._cancelled else ''}>"

    def cancel(self) -> None:
        """Never run it. Idempotent."""
        self._cancelled = True
        self.args = ()


class SimTimer(asyncio.TimerHandle):
    """A callback that waits for its time in a process's own clock."""

    __slots__ = ("args", "callback", "context", "process", "waits")

    def __init__(  # pyright: ignore[reportMissingSuperCall]
        self,
        process: SimProcess,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: Context,
    ) -> None:
        # asyncio's own constructor would look for debugging.
        self.process = process
        self.callback = callback
        self.args = args
        self.context = context
        self._when = when
        self.waits = True
        self._cancelled = False

    def __repr__(self) -> str:
        return f"<SimTimer at {self._when:.6f}: {self.callback!r}{' cancelled' if self._cancelled else ''}>"

    def when(self) -> float:
        """The time in the process's clock."""
        return self._when

    def cancel(self) -> None:
        """Never run it. Idempotent."""
        if not self._cancelled:
            self._cancelled = True
            self.args = ()
            if self.waits:
                self.process.timer_cancelled()


class World(Protocol):
    """What a process needs of the loop it lives in."""

    now: float
    current: SimProcess

    def wake(self, process: SimProcess) -> None:
        """Run a pass of the process as soon as its CPU is free."""
        ...

    def arm(self, process: SimProcess) -> None:
        """Run a pass of the process when its next timer is due."""
        ...

    def adopt(self, process: SimProcess, coro: Coroutine[Any, Any, T], *, name: str | None) -> asyncio.Task[T]:
        """Make a task of the process."""
        ...


class SimProcess:
    """A process: spawned into, paused, killed; made by `SimLoop.process`.

    Invariants: nothing of a process runs outside of its passes; nothing of a dead one ever runs again.
    """

    def __init__(self, world: World, name: str, *, host_name: str, clock: SimClock) -> None:
        self.name = name
        self.host_name = host_name
        """The machine it runs on, which is also its network address."""
        self.clock = clock
        self.alive = True
        self.paused = False
        self.silent = False
        """Whether it ended as in a power loss, so that nobody was told."""
        self.runs = True
        """Alive and not paused."""
        self.on_exit: list[Callable[[SimProcess], object]] = []
        """Called at once when it is killed; `silent` tells how."""
        self.stepped: Callable[[SimProcess], object] | None = None
        """Called after each of its passes."""
        self.exception_handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None = None
        self.context = copy_context()
        """What code that the world calls in this process runs in."""
        self.context.run(PROCESS.set, self)
        # The loop's own: the queue, the timers as (time, number, timer), the tasks, and when passes are due.
        self.ready: deque[SimHandle | SimTimer] = deque()
        self.timers: list[tuple[float, int, SimTimer]] = []
        self.timers_cancelled = 0
        self.ready_at = inf
        self.timer_at = inf
        self.busy_until = 0.0
        self._world = world
        self._tasks: list[asyncio.Task[Any]] = []
        self._tasks_sweep_at = TASKS_SWEEP_MIN
        self.generator_dropped = self._generator_dropped
        clock.changed.append(self._clock_changed)

    def __repr__(self) -> str:
        state = "dead" if not self.alive else "paused" if self.paused else f"{len(self.ready)} ready"
        return f"<SimProcess {self.name}, {state}>"

    # --- From outside ---

    def spawn(self, coro: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Run a coroutine as a task of this process."""
        assert self.alive, f"{self.name} is dead"
        return self._world.adopt(self, coro, name=name)

    def post(self, callback: Callable[..., object], *args: Any) -> None:
        """Queue a callback: the kernel has something for the process. Nothing happens when it is dead."""
        if self.alive:
            self.ready.append(SimHandle(callback, args, self.context))
            if self.ready_at > self._world.now:
                self._world.wake(self)

    def pause(self) -> None:
        """Stop it where it is, as SIGSTOP does: what arrives piles up, its clock goes on. Idempotent."""
        self.paused, self.runs = True, False

    def resume(self) -> None:
        """Go on. Idempotent."""
        if self.paused:
            self.paused, self.runs = False, self.alive
            if self.runs:
                self._world.wake(self)

    def kill(self, *, silent: bool = False) -> None:
        """End it here and now: not even a ``finally`` block of it runs. Idempotent.

        Args:
            silent: As by a power loss: no kernel is left that would reset its connections.
        """
        if not self.alive:
            return
        self.alive = self.runs = False
        self.silent = silent
        self.clock.changed.remove(self._clock_changed)
        # Tasks, handles and timers stay: the collector must not run `finally` blocks of the dead.
        callbacks, self.on_exit = self.on_exit, []
        for callback in callbacks:
            callback(self)

    # --- For the loop ---

    def own(self, task: asyncio.Task[Any]) -> None:
        """Keep a task until it is done."""
        self._tasks.append(task)
        if len(self._tasks) >= self._tasks_sweep_at:
            self.sweep()

    def sweep(self) -> None:
        """Forget tasks that are done: amortised, because a callback per task would cost more."""
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks_sweep_at = max(TASKS_SWEEP_MIN, 2 * len(self._tasks))

    def timer_cancelled(self) -> None:
        """Count a timer that will not run; throw them out when they are too many."""
        self.timers_cancelled += 1
        if self.timers_cancelled > TIMERS_SWEEP_MIN and 2 * self.timers_cancelled > len(self.timers):
            # Sorted is a heap, too.
            self.timers = sorted(entry for entry in self.timers if not entry[2].cancelled())
            self.timers_cancelled = 0

    def dispose(self) -> list[asyncio.Task[Any]]:
        """Let go of everything, at the end of the simulation.

        Coroutines that were under way are closed one by one in the order they were made; what their ``finally``
        blocks raise or wait for is of no interest any more. The loop must stand as the running one:

        1. A ``finally`` block tries to give a lock back until it succeeds, and catches whatever goes wrong.
        2. Without a running loop nothing can be waited for: ``asyncio.sleep`` raises at once, the block catches that,
           too, and goes round for ever. With one it waits; it is closed where it waits, and counted.

        Returns:
            The tasks that do not end, however often they are closed.
        """
        self.kill(silent=True)
        endless: list[asyncio.Task[Any]] = []
        for task in self._tasks:  # closing one may make others
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                if not self.context.copy().run(_close, task.get_coro()):
                    endless.append(task)
        self._tasks = []
        self.ready.clear()
        self.timers.clear()
        return endless

    def _clock_changed(self) -> None:
        self._world.arm(self)

    def _generator_dropped(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Close an abandoned asynchronous generator in a task, as asyncio does."""
        if self.alive:
            self._world.adopt(self, generator.aclose(), name=None)


CLOSES_MAX = 100
"""How often a coroutine that waits again, in its ``finally`` blocks for instance, is closed."""


class _End(BaseException):
    """What closes a coroutine.

    Not `GeneratorExit`: where one coroutine awaits another, that ends the outer one and loses the inner one, if it goes
    on; the collector then lets it go round without a loop.
    """


def _close(coro: Any) -> bool:
    """Close a coroutine; tell whether it has ended."""
    for _ in range(CLOSES_MAX):
        try:
            coro.throw(_End())
        except BaseException:  # noqa: BLE001 - the process died long ago; nobody hears it
            return True
    return False
