"""`Host`: a simulated machine, whose disk and clock outlive the processes that run on it one after the other.

.. code-block:: text

            start ─────────────► up ──── shut_down: the program is cancelled, and cleans up ───┐
              ▲                   ├───── kill: the process ends between two instructions ──────┤
              │                   ├───── power_loss: the same, and unsynced bytes are lost ────┤
              │                   └───── the program ends by itself: a disk failed, a bug ─────┤
              └── by whoever took it down; by a supervisor if it ended by itself ◄── down ◄────┘

A host runs one program. What the program needs of its machine it takes from the host: files, workers, the transport's
address, clients. Nothing else of the simulation is its business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from random import Random
from typing import Any, TypeVar

from pyraftkv import errors
from pyraftkv.client import Client
from pyraftkv.node import Node
from pyraftkv.node.member import Member
from pyraftkv.sim.disk import SimDisk, SimulatedCrash
from pyraftkv.sim.faults import DiskFault
from pyraftkv.sim.loop import SimLoop
from pyraftkv.sim.process import SimProcess
from pyraftkv.sim.trace import Trace
from pyraftkv.sim.worker import SimWorker
from pyraftkv.transport import TcpDialer

T = TypeVar("T")

RESTART_SECONDS = (0.1, 1.0)
"""How long a supervisor waits before it starts a program again that ended by itself."""


class HostDied(errors.Unavailable):
    """The process that was to answer is gone."""


Program = Callable[["Host"], Coroutine[Any, Any, object]]
"""What a machine runs at each start; the process ends with it."""


class Host:
    """A machine and what runs on it.

    Args:
        name: Its name, which is its network address too.
        loop: The world.
        trace: Where its life is written down.
        random: Its own; every life gets one that is forked from it.
        disk: Its disk.
        addresses: Where clients find the cluster.
        program: What it runs; None for what only `run` gives it to do.
        died: Told its name whenever its process is gone, however that came.
        ended: Told of every program that ended by itself, with its error.

    Invariant: at most one process lives; a host that is `out` never starts again.
    """

    def __init__(
        self,
        name: str,
        *,
        loop: SimLoop,
        trace: Trace,
        random: Random,
        disk: SimDisk,
        addresses: list[str],
        program: Program | None = None,
        died: Callable[[str], None] | None = None,
        ended: Callable[[Host, BaseException | None], None] | None = None,
    ) -> None:
        self.name = name
        self.loop = loop
        self.clock = loop.clock()
        self.disk = disk
        self.process: SimProcess | None = None
        self.node: Node | None = None
        """The member that runs here, if the program is one."""
        self.boots = 0
        """How many lives it has had."""
        self.stepped: Callable[[SimProcess], object] | None = None
        """Called after each pass of each of its processes."""
        self.held = False
        """Whether somebody took it down who will start it again: no supervisor does."""
        self.is_out = False
        """Whether it can never start again."""
        self.is_paused = False
        self.is_frozen = False
        self.is_rotten = False
        """Whether its disk rots: it need not be able to start again."""
        self.had_bad_disk = False
        """Whether anything was ever wrong with its disk."""
        self._trace = trace
        self._random = random
        self._addresses = addresses
        self._program = program
        self._died = died
        self._ended = ended
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "up" if self.is_up else "out" if self.is_out else "down"
        return f"<Host {self.name}: {state}, life {self.boots}>"

    @property
    def is_up(self) -> bool:
        """Whether a process lives here, be it paused."""
        return self.process is not None

    @property
    def member(self) -> Member | None:
        """The running parts of the member that runs here, for those who look on."""
        return None if self.node is None else self.node._member  # pyright: ignore[reportPrivateUsage] - there are no hooks

    # --- Life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the program in a new process; nothing if one lives, or none ever can."""
        self.held = False
        if self.process is not None or self.is_out:
            return
        self.boots += 1
        name = f"{self.name}/{self.boots}"
        self.process = process = self.loop.process(name, host_name=self.name, clock=self.clock)
        process.stepped = self.stepped
        self.random = Random(self._random.getrandbits(64))
        """Of this life."""
        self.files = self.disk.mount()
        self._trace.add(self.loop.now, self.name, "start", boot=self.boots)
        self._hold()
        if self._program is not None:
            self._task = process.spawn(self._live(self._program), name=name)

    async def _live(self, program: Program) -> None:
        process = self.process
        error: BaseException | None = None
        try:
            await program(self)
        except SimulatedCrash:
            return  # the power went in the middle of it
        except asyncio.CancelledError:
            pass
        except SystemExit as exit_:
            error = exit_ if exit_.code else None  # it ends this process, and not the simulation's
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as caught:  # noqa: BLE001 - whatever ends the program ends the process; `ended` judges it
            error = caught
        # From the world outside: this pass is still the process's own.
        self.loop.at(self.loop.now, self._program_ended, process, error)

    def _program_ended(self, process: SimProcess, error: BaseException | None) -> None:
        if self.process is not process:
            return
        self._trace.add(self.loop.now, self.name, "stop", why=type(error).__name__ if error else None)
        self._end(silent=False)
        self.disk.kill()
        if self._ended is not None:
            self._ended(self, error)
        if not self.held and not self.is_out:
            lo, hi = RESTART_SECONDS
            self.loop.at(self.loop.now + self._random.uniform(lo, hi), self._supervise, self.boots)

    def _supervise(self, boot: int) -> None:
        if boot == self.boots and not self.held:
            self.start()

    def shut_down(self) -> None:
        """Ask the program to end (SIGTERM); it stays down until `start`."""
        self.held = True
        if self.process is not None and self._task is not None:
            self.process.post(self._task.cancel)

    def kill(self) -> None:
        """End the process at once (SIGKILL); it stays down until `start`."""
        self.held = True
        if self.process is not None:
            self._trace.add(self.loop.now, self.name, "crash", how="killed")
            self._end(silent=False)
            self.disk.kill()

    def power_loss(self) -> None:
        """Cut the power: the process ends without a word, and what was not synced may be lost. Stays down."""
        self.held = True
        if self.process is not None:
            self._trace.add(self.loop.now, self.name, "crash", how="power loss")
            self._end(silent=True)
        self.disk.power_loss()

    def power_loss_at(self, operation: int) -> None:
        """Cut the power in the middle of the ``operation``-th disk operation from now."""
        self.held = True
        self.disk.power_loss_at(operation, self._lost_power)

    def _lost_power(self) -> None:
        if self.process is not None:
            self._trace.add(self.loop.now, self.name, "crash", how="power loss in the middle of a write")
            self._end(silent=True)

    def wipe(self) -> None:
        """Lose the disk, for good."""
        self._trace.add(self.loop.now, self.name, "disk", what="wiped")
        self.power_loss()
        self.disk.wipe()
        self.had_bad_disk = True
        self.give_up()

    def give_up(self) -> None:
        """Never start again."""
        self.is_out = True

    def begin_anew(self) -> None:
        """Be a machine with an empty disk, which can start whatever it was before."""
        self.power_loss()
        self.disk.wipe()
        self._trace.add(self.loop.now, self.name, "disk", what="new")
        self.is_out = self.is_rotten = False

    def _end(self, *, silent: bool) -> None:
        process, self.process, self.node, self._task = self.process, None, None, None
        assert process is not None
        process.kill(silent=silent)
        if self._died is not None:
            self._died(self.name)

    # --- Time ------------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Let the process do nothing (SIGSTOP); the next one neither, until `resume`."""
        self.is_paused = True
        self._trace.add(self.loop.now, self.name, "pause")
        self._hold()

    def resume(self) -> None:
        """Go on."""
        self.is_paused = False
        self._trace.add(self.loop.now, self.name, "resume")
        self._hold()

    def freeze(self) -> None:
        """Suspend the machine, with its monotonic clock."""
        self.is_frozen = True
        self.clock.freeze()
        self._trace.add(self.loop.now, self.name, "pause", why="suspended")
        self._hold()

    def thaw(self) -> None:
        """Go on where `freeze` stopped."""
        self.is_frozen = False
        self.clock.thaw()
        self._trace.add(self.loop.now, self.name, "resume")
        self._hold()

    def _hold(self) -> None:
        if self.process is None:
            return
        if self.is_paused or self.is_frozen:
            self.process.pause()
        else:
            self.process.resume()

    # --- The disk --------------------------------------------------------------------------------------------------

    def set_disk(self, fault: DiskFault) -> None:
        """This is wrong with the disk from now on."""
        self.had_bad_disk = self.had_bad_disk or fault != DiskFault()
        self._trace.add(self.loop.now, self.name, "disk", what=fault)
        self.disk.suffer(fault)

    # --- For programs ----------------------------------------------------------------------------------------------

    def fork(self) -> Random:
        """Return a source of randomness for a part of this life."""
        return Random(self.random.getrandbits(64))

    def worker(self, name: str) -> SimWorker:
        """Make a worker of this process: a `WorkerFactory`."""
        assert self.process is not None
        return SimWorker(self.loop, self.process, self.disk, name)

    def client(self, *, name: str = "", timeout: float = 5.0) -> Client:
        """Make a client of the cluster that runs in this process; enter it to use it.

        Args:
            name: What the members call it.
            timeout: The deadline in seconds of a call that names none.
        """
        random = self.fork()
        addresses = random.sample(self._addresses, len(self._addresses))
        return Client(addresses, dialer=TcpDialer(), name=name or self.name, timeout=timeout, rng=random)

    async def run(self, program: Callable[[Host], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine in the process that lives here, and wait for it from another.

        Raises:
            HostDied: There is none, or it died first.
        """
        process = self.process
        if process is None:
            why = "is down" if self.boots else "was not started yet: `start()` does it"
            raise HostDied(f"{self.name} {why}")
        waiting: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        task = process.spawn(program(self), name=f"{process.name}-run")
        task.add_done_callback(partial(_hand_over, waiting))
        died = partial(_tell_death, waiting, self.name)
        process.on_exit.append(died)
        try:
            return await waiting
        finally:
            if died in process.on_exit:
                process.on_exit.remove(died)


def _hand_over(waiting: asyncio.Future[T], task: asyncio.Task[T]) -> None:
    if waiting.done():
        return
    if task.cancelled():
        waiting.cancel()
    elif (error := task.exception()) is not None:
        waiting.set_exception(error)
    else:
        waiting.set_result(task.result())


def _tell_death(waiting: asyncio.Future[Any], name: str, _: SimProcess) -> None:
    if not waiting.done():
        waiting.set_exception(HostDied(f"{name} died"))
