"""`SimLoop`: an asyncio event loop in virtual time, shared by many simulated processes.

The world is a heap of events, each at a global time. The loop takes the next, moves the time there and runs it: time
passes only while nobody can run. Some events are the world's own (bytes arrive, a disk completes, a fault begins: see
`SimLoop.at`), the others are *passes* of a process: what one turn of asyncio's loop is to a real process.

1. A pass moves the timers that are due to the ready queue and runs what was ready when it began, first in, first out.
2. A pass takes no time, but the next one of that process begins a few random microseconds later at the earliest
   (`PASS_SECONDS`). So processes interleave at random, and a busy loop cannot stop the time.
3. Events at the same time run in the order they were scheduled; a pass of a process whose CPU is free runs before
   the next of them.
4. A callback belongs to the process that its context names (`pyraftkv.sim.process`).

All randomness comes from one `Random`. The garbage collector runs at fixed virtual times only (`COLLECT_SECONDS`), so
that finalizers run at the same point in every run of a seed; what was alive before the run is kept out of it.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import sys
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable
from concurrent.futures import Executor
from contextvars import Context, copy_context
from heapq import heappop, heappush
from math import inf, isnan
from random import Random
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar, TypeVarTuple, cast

from pyraftkv.sim.clock import SimClock
from pyraftkv.sim.process import PROCESS, SimHandle, SimProcess, SimTimer

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

PASS_SECONDS = (5e-6, 50e-6)
"""How much CPU time a pass is counted for."""
_PASS_SECONDS_MIN, _PASS_SECONDS_SPAN = PASS_SECONDS[0], PASS_SECONDS[1] - PASS_SECONDS[0]

TIMER_RESOLUTION_SECONDS = 1e-9
"""Timers that are due within this run now: a time that went through a clock and back is a little off."""

COLLECT_SECONDS = 10.0
"""Virtual time between two garbage collections, of what was made since the one before."""

COLLECT_ALL_EVERY = 6
"""Each so-many-th collection looks at everything, which costs more the more the simulated stores hold."""

PASSES_UNCOLLECTED_MAX = 50_000
"""After so many passes of runs that are over, the next run begins with a collection of what they left behind.

1. A run keeps what is older out of its collections, and gives it back as what has long been there.
2. So the collector takes a world that nobody knows any more, which is one large cycle, for old and settled, and looks
   at it when much else has grown old: not while one run follows another.
3. Whoever tries a thousand seeds in one process holds a thousand worlds.
"""

ERRORS_MAX = 100
"""How many errors of callbacks are kept for the end of `SimLoop.run`; further ones are counted."""


def _nothing() -> None:
    """Do what PyPy's collector, which has no `freeze`, does for one."""


_freeze: Callable[[], None] = getattr(gc, "freeze", _nothing)
_unfreeze: Callable[[], None] = getattr(gc, "unfreeze", _nothing)


class SimUnsupported(NotImplementedError):
    """Something that a simulated process cannot do: threads, subprocesses, TLS, real sockets."""


class SimTimeout(TimeoutError):
    """The virtual time given to `SimLoop.run` is over."""


class Deadlock(RuntimeError):
    """Nothing can ever happen any more, and the main coroutine still waits."""


class Event:
    """A callback of the world at a global time."""

    __slots__ = ("args", "callback", "when")

    def __init__(self, when: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.when = when
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def __repr__(self) -> str:
        return f"<Event at {self.when:.6f}: {self.callback or 'cancelled'}>"

    def cancel(self) -> None:
        """Let it not happen. Idempotent."""
        self.callback, self.args = None, ()


class SimTask(asyncio.Task[T]):
    """A task whose place in a set does not depend on its address.

    asyncio keeps tasks in sets and goes through them: a `TaskGroup` that is cancelled cancels its tasks in that order.
    """

    def __init__(
        self,
        coro: Coroutine[Any, Any, T],
        *,
        loop: asyncio.AbstractEventLoop,
        number: int,
        name: str | None,
        context: Context,
    ) -> None:
        self._number = number
        super().__init__(coro, loop=loop, name=name or f"Task-{number}", context=context)

    def __hash__(self) -> int:
        return self._number


class Network(Protocol):
    """What a loop asks of the network; `pyraftkv.sim.network` is one."""

    async def connect(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Connect the current process. Raises `OSError`."""
        ...

    def listen(
        self, factory: Callable[[], asyncio.BaseProtocol], host: str | None, port: int, *, backlog: int
    ) -> asyncio.AbstractServer:
        """Listen in the current process. Raises `OSError`."""
        ...


class SimLoop(asyncio.AbstractEventLoop):
    """The event loop of every process of a simulation.

    Args:
        random: Where CPU times are drawn from.

    Use it for one simulation, then `close` it.
    """

    _passes_uncollected: ClassVar[int] = 0
    """Of all loops, since what runs leave behind was looked for."""

    def __init__(self, random: Random) -> None:
        self.now = 0.0
        """Virtual seconds since the start, for the whole world."""
        self.network: Network | None = None
        self.failure: Exception | None = None
        """Ends `run` at the end of the present pass, or of the next one."""
        self.processes: list[SimProcess] = []
        """All of them, dead ones too, in the order they were made."""
        self.machines: dict[str, SimProcess] = {}
        """The latest process on every host."""
        self.errors: list[Exception] = []
        """What callbacks raised; they fail `run` at its end."""
        self.errors_count = 0
        self.passes_count = 0
        self._random = random.random
        self._heap: list[tuple[float, int, Callable[[Any], object], Any]] = []
        self._free: deque[SimProcess] = deque()
        """Processes whose next pass begins now. At most all of them."""
        self._order = 0
        self._task_count = 0
        self._collect_at = COLLECT_SECONDS
        self._collections = 0
        self._closed = False
        self._running = False
        self.harness = self.process("harness")
        """The process of whoever runs the simulation: `run`'s coroutine, and everything outside of passes."""
        self.current = self.harness
        """The process whose pass is running."""

    def __repr__(self) -> str:
        return f"<SimLoop at {self.now:.6f}, {len(self.processes)} processes, {len(self._heap)} events>"

    # --- The world ---

    def process(self, name: str, *, host_name: str | None = None, clock: SimClock | None = None) -> SimProcess:
        """Start an empty process.

        Args:
            name: Its name, for people.
            host_name: The machine it runs on; its own name by default.
            clock: The machine's clock, which outlives processes; a new one by default.
        """
        if clock is None:
            clock = SimClock(self._read_now)
        process = SimProcess(self, name, host_name=host_name or name, clock=clock)
        process.busy_until = self.now
        self.processes.append(process)
        self.machines[process.host_name] = process
        return process

    def clock(self) -> SimClock:
        """Make a machine's clock."""
        return SimClock(self._read_now)

    def _read_now(self) -> float:
        return self.now

    def at(self, when: float, callback: Callable[..., object], *args: Any) -> Event:
        """Schedule an event of the world at a global time; one in the past happens now. O(log events)."""
        event = Event(when, callback, args)
        self.push(when, _happen, event)
        return event

    def push(self, when: float, function: Callable[[Any], object], argument: Any) -> None:
        """Like `at`, cheaper: one argument, and no way to cancel."""
        self._order = order = self._order + 1
        heappush(self._heap, (when, order, function, argument))

    def wake(self, process: SimProcess) -> None:
        """Run a pass of the process as soon as its CPU is free."""
        now, when = self.now, process.busy_until
        if when <= now:
            if now < process.ready_at and process.runs:
                process.ready_at = now
                self._free.append(process)  # most passes: the heap would cost as much again as all else here
        elif when < process.ready_at and process.runs:
            process.ready_at = when
            self._order = order = self._order + 1
            heappush(self._heap, (when, order, self._pass, process))

    def arm(self, process: SimProcess) -> None:
        """Run a pass of the process when its next timer is due, unless one is due before that anyway."""
        timers = process.timers
        while timers and timers[0][2]._cancelled:
            heappop(timers)[2].waits = False
            process.timers_cancelled -= 1
        if not timers:
            return
        when = process.clock.when(timers[0][0])
        when = max(when, process.busy_until)
        if when < process.timer_at:
            process.timer_at = when
            self._order = order = self._order + 1
            heappush(self._heap, (when, order, self._pass_timer, process))

    def run(self, main: Coroutine[Any, Any, T], *, until: float = inf) -> T:
        """Run ``main`` in the harness process to its end.

        Args:
            main: What the simulation does.
            until: The global time at which it must be over, in seconds.

        Raises:
            SimTimeout: ``until`` has come.
            Deadlock: Nothing can ever happen any more.
            ExceptionGroup: ``main`` is through, and callbacks have failed.
        """
        assert not self._running, "a loop runs once at a time"
        assert events._get_running_loop() is None, "a simulation does not run inside another loop"
        task = self.harness.spawn(main, name="main")
        collecting, hooks, passes_before = gc.isenabled(), sys.get_asyncgen_hooks(), self.passes_count
        if collecting and SimLoop._passes_uncollected > PASSES_UNCOLLECTED_MAX:
            SimLoop._passes_uncollected = 0
            gc.collect()
        gc.disable()
        _freeze()
        self._running = True
        events._set_running_loop(self)
        try:
            self._turn(task, until)
            self._finish()
        finally:
            events._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)
            self._running = False
            SimLoop._passes_uncollected += self.passes_count - passes_before
            _unfreeze()
            if collecting:
                gc.enable()
        try:
            result = task.result()
        except BaseException as error:
            for other in self._taken_errors():
                error.add_note(f"and a callback failed: {other!r}")
            raise
        if errors := self._taken_errors():
            raise ExceptionGroup("callbacks failed", errors)
        return result

    def _turn(self, task: asyncio.Task[Any], until: float) -> None:
        """Let events happen, in order, until the task is done."""
        heap, free, is_done = self._heap, self._free, task.done
        try:
            while not is_done():
                if free:
                    self._pass(free.popleft())
                    continue
                if not heap:
                    raise Deadlock(f"nothing can happen any more at {self.now:.6f} s, and {task.get_name()} waits")
                when, _, function, argument = heap[0]
                if when > until:
                    raise SimTimeout(f"the simulation is not over after {until:g} virtual seconds")
                heappop(heap)
                if when > self.now:
                    self.now = when
                    if when >= self._collect_at:
                        self._collect()
                function(argument)
        except BaseException:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            raise

    def _collect(self) -> None:
        self._collect_at = self.now + COLLECT_SECONDS
        self._collections += 1
        gc.collect(0 if self._collections % COLLECT_ALL_EVERY else 2)

    def _finish(self) -> None:
        """Hear of errors that nobody asked for, as a collector would find them some time later."""
        for process in self.processes:
            process.sweep()
        gc.collect()

    def _taken_errors(self) -> list[Exception]:
        errors, self.errors = self.errors, []
        return errors

    # --- Passes ---

    def _pass_timer(self, process: SimProcess) -> None:
        if process.timer_at > self.now:
            return  # an earlier pass has run its timer
        if process.runs and process.busy_until <= self.now and self._is_due(process):
            self._pass(process)
        else:
            process.timer_at = inf
            if process.runs:
                self.arm(process)  # its timer is gone, or its clock changed, or its CPU is busy

    def _is_due(self, process: SimProcess) -> bool:
        timers = process.timers
        return bool(timers) and timers[0][0] <= process.clock.at(self.now) + TIMER_RESOLUTION_SECONDS

    def _pass(self, process: SimProcess) -> None:
        """Run what is due in one process: one turn of its loop. Nothing happens in a dead or a paused one."""
        if process.paused or not process.alive:
            process.ready_at = inf
            return
        ready = process.ready
        if process.timer_at <= self.now:
            process.timer_at = inf
            while self._is_due(process):
                timer = heappop(process.timers)[2]
                timer.waits = False
                if timer._cancelled:
                    process.timers_cancelled -= 1
                else:
                    ready.append(timer)
        self.current = process
        process.ready_at = -inf  # what it schedules for itself needs no wake-up: we look below
        sys.set_asyncgen_hooks(None, process.generator_dropped)
        self.passes_count += 1
        try:
            for _ in range(len(ready)):
                handle = ready.popleft()
                if handle._cancelled:
                    continue
                try:
                    handle.context.run(handle.callback, *handle.args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:  # noqa: BLE001 - a callback's failure is reported, as asyncio does
                    self.call_exception_handler(
                        {"message": f"Exception in callback {handle!r}", "exception": error, "handle": handle}
                    )
                if not process.runs:  # it killed or paused itself, or its machine broke under it
                    break
        finally:
            self.current = self.harness
            process.ready_at = inf
            process.busy_until = self.now + _PASS_SECONDS_MIN + _PASS_SECONDS_SPAN * self._random()
        if process.stepped is not None:
            process.stepped(process)
        if self.failure is not None:
            raise self.failure
        if process.runs:
            if process.ready:
                self.wake(process)
            if process.timers and process.timer_at == inf:
                self.arm(process)

    def adopt(self, process: SimProcess, coro: Coroutine[Any, Any, T], *, name: str | None) -> asyncio.Task[T]:
        """Make a task of a process: `SimProcess.spawn`."""
        return self.create_task(coro, name=name, context=process.context.copy())

    # --- asyncio: callbacks and time ---

    def time(self) -> float:
        """The monotonic clock of the current process, in seconds."""
        return self.current.clock.at(self.now)

    def call_soon(self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None) -> SimHandle:
        """Queue a callback in the process of its context."""
        if context is None:
            context = copy_context()
        process = context.get(PROCESS)
        if process is None:
            process, context = self.current, self.current.context
        handle = SimHandle(callback, args, context)
        if process.alive:
            process.ready.append(handle)
            if process.ready_at > self.now:
                self.wake(process)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> SimHandle:
        """Like `call_soon`: there is one thread."""
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> SimTimer:
        """Call back ``delay`` seconds of the process's clock from now."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> SimTimer:
        """Call back when the process's clock shows ``when``. O(log timers).

        Raises:
            ValueError: It is not a number: among the timers it would let later ones go first, or none at all.
        """
        if isnan(when):
            raise ValueError("a time that is not a number never comes")
        if context is None:
            context = copy_context()
        process = context.get(PROCESS)
        if process is None:
            process, context = self.current, self.current.context
        timer = SimTimer(process, when, callback, args, context)
        if process.alive:
            self._order = order = self._order + 1
            heappush(process.timers, (when, order, timer))
            if process.timers[0][2] is timer:
                self.arm(process)
        return timer

    def create_future(self) -> asyncio.Future[Any]:
        """Make a future."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """Make a task in the process of its context; unnamed ones are numbered per loop, not per interpreter."""
        if context is None:
            context = copy_context()
        process = context.get(PROCESS)
        if process is None:
            process = self.current
            context.run(PROCESS.set, process)
        self._task_count += 1
        task = SimTask(
            cast("Coroutine[Any, Any, T]", coro), loop=self, number=self._task_count, name=name, context=context
        )
        process.own(task)
        return task

    # --- asyncio: errors ---

    def set_exception_handler(
        self, handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None
    ) -> None:
        """Set the handler of the current process; without one, errors fail `run`."""
        self.current.exception_handler = handler

    def get_exception_handler(self) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None:
        """The handler of the current process."""
        return self.current.exception_handler

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Report an error that nobody caught."""
        handler = self.current.exception_handler
        if handler is None:
            self.default_exception_handler(context)
        else:
            handler(self, context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep the error for the end of `run`."""
        error = context.get("exception")
        if not isinstance(error, Exception):
            error = RuntimeError(f"{context['message']}: {error!r}" if error else context["message"])
        failed = context.get("task") or context.get("future")
        whose = f", {failed.get_name()}" if isinstance(failed, asyncio.Task) else ""
        error.add_note(f"in {self.current.name} at {self.now:.6f} virtual seconds: {context['message']}{whose}")
        self.errors_count += 1
        if len(self.errors) < ERRORS_MAX:
            self.errors.append(error)

    # --- asyncio: the network ---

    async def create_connection(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | None = None,
        port: int | None = None,
        *,
        ssl: object = None,
        sock: object = None,
        **_options: Any,
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Connect to a simulated host. Raises `OSError`, `SimUnsupported`."""
        _refuse(ssl, "TLS")
        _refuse(sock, "a socket of the system")
        assert host is not None, "a connection goes to a host"
        assert port is not None, "a connection goes to a port"
        return await self._network().connect(protocol_factory, host, port)

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | None = None,
        port: int = 0,
        *,
        ssl: object = None,
        sock: object = None,
        backlog: int = 100,
        **_options: Any,
    ) -> asyncio.Server:
        """Listen on the current process's host. Raises `OSError`, `SimUnsupported`."""
        _refuse(ssl, "TLS")
        _refuse(sock, "a socket of the system")
        return cast("asyncio.Server", self._network().listen(protocol_factory, host, port, backlog=backlog))

    def _network(self) -> Network:
        if self.network is None:
            raise SimUnsupported("this simulation has no network")
        return self.network

    def run_in_executor(
        self,
        executor: Executor | None,  # noqa: ARG002
        func: Callable[[*Ts], T],  # noqa: ARG002
        *args: *Ts,  # noqa: ARG002
    ) -> asyncio.Future[T]:
        """Refuse: a thread would run in real time."""
        raise SimUnsupported("threads run in real time; `Host.worker` of a simulated machine does not")

    # --- asyncio: the loop itself ---

    def is_running(self) -> bool:
        """Whether `run` is under way."""
        return self._running

    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """End every process without a trace of it in time. Idempotent.

        Raises:
            SimUnsupported: A task of a program catches everything, for ever.
        """
        if self._closed:
            return
        assert not self._running, "a running loop is not closed"
        self._closed = True
        outer = events._get_running_loop()
        events._set_running_loop(self)
        try:
            endless = [(process, task) for process in self.processes for task in process.dispose()]
        finally:
            events._set_running_loop(outer)
        self._heap.clear()
        self._free.clear()
        if endless:
            _keep(task for _, task in endless)
            names = ", ".join(f"{task.get_name()} of {process.name}" for process, task in endless)
            raise SimUnsupported(f"what cannot be ended: {names} catches its own end and waits again, over and over")

    def get_debug(self) -> bool:
        """Never: debugging would look at the real clock."""
        return False

    def get_task_factory(self) -> None:
        """None: tasks are this loop's own."""

    async def shutdown_asyncgens(self) -> None:
        """Do nothing: abandoned generators are closed as they are dropped."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Do nothing: there is none."""


_ENDLESS: list[object] = []
"""Tasks that cannot be ended, of loops that are closed, and itself: see `_keep`."""


def _keep(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Keep tasks that cannot be ended, beyond the end of the interpreter.

    Whoever let go of one would close it once more, without a loop, and never return. So the list holds itself, which
    only the collector could undo, and what is frozen at the end is nothing to the collector.
    """
    if not _ENDLESS:
        _ENDLESS.append(_ENDLESS)
        atexit.register(_freeze)
    _ENDLESS.extend(tasks)


def _refuse_the_rest(loop: type[Any]) -> None:
    """Give a loop a method that raises `SimUnsupported`, by its name, for every one of asyncio's that it lacks."""

    def refusing(name: str) -> Callable[..., NoReturn]:
        def refuse(*_args: object, **_options: object) -> NoReturn:
            raise SimUnsupported(f"{name} of an event loop has no place in a simulation")

        return refuse

    for name in vars(asyncio.AbstractEventLoop).keys() - vars(loop).keys():
        if not name.startswith("_"):
            setattr(loop, name, refusing(name))


_refuse_the_rest(SimLoop)


def _happen(event: Event) -> None:
    callback = event.callback
    if callback is not None:
        callback(*event.args)


def _refuse(option: object, what: str) -> None:
    if option is not None and option is not False:
        raise SimUnsupported(f"{what} has no place in a simulation")
