"""A cluster of real processes that faults can befall: `ProcessCluster`, a `FaultTarget` on this machine.

Each member is ``python -m pyraftkv serve`` on a loopback port with a data directory of its own; what it says goes to
``<name>.log`` beside that. Members and clients reach each other through proxies (`pyraftkv.sim.proxy`), so that their
links can be cut and spoiled; a kill is SIGKILL, a pause SIGSTOP. Disks, clocks and the power are this machine's own and
are left alone: scripts that need them are refused.

Hazards that such a harness itself must not add:

1. A port from the system's ephemeral range may be taken by any outgoing connection while its member is down, and a
   dial to it may even connect to itself. Ports are taken from below that range.
2. A member that is left over would spoil the next run. Each is the leader of a process group, and every group is
   killed by its id at the end, whatever happened before. On Linux a member also dies with the process that started it.
3. A process that was killed is waited for: only then are its ports and its lock on the directory free.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random, SystemRandom
from typing import Self

import pyraftkv
from pyraftkv import errors
from pyraftkv.client import Client
from pyraftkv.sim.faults import Ability, FaultTarget, LinkFault
from pyraftkv.sim.proxy import Proxy, ProxyLinks

NAMES = ("n1", "n2", "n3")
READY_SECONDS_MAX = 60.0
"""From the start of a process to its first answer, on a machine that has much else to do."""

ASK_SECONDS = 1.0
POLL_SECONDS = 0.1
LOG_LINES_MAX = 20
PORTS = range(10_000, 32_000)
"""Below the ephemeral ports of every system that we know."""


class MemberDied(AssertionError):
    """A member ended that should run; carries what it said last."""


def free_ports(count: int) -> list[int]:
    """Return different loopback ports that nobody listens on at this moment."""
    random = SystemRandom()
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            port = random.choice(PORTS)
            each = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                each.bind(("127.0.0.1", port))
                ports.append(port)
        return ports


class MemberProcess:
    """One member's process, through all its lives.

    Args:
        name: Its name, and that of its directory.
        address: Where it listens.
        members: The first members of its cluster, as ``--members`` takes them.
        folder: Where its data directory and its log are.
        advertise: Where the others dial it, if that differs.
    """

    def __init__(self, name: str, *, address: str, members: str, folder: Path, advertise: str | None = None) -> None:
        self.name = name
        self.address = address
        self.advertise = advertise
        self.members = members
        self.data_dir = folder / name
        self.log = folder / f"{name}.log"
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        state = "not started" if self._process is None else f"pid {self._process.pid}, status {self._process.poll()}"
        return f"<{type(self).__name__} {self.name}: {state}>"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def said(self) -> str:
        """Everything it wrote to its standard output and error, over all its lives."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def last_words(self) -> str:
        return "\n".join(f"    {line}" for line in self.said.splitlines()[-LOG_LINES_MAX:])

    def command(self) -> list[str]:
        """Return the arguments of Python that make it run."""
        where = ["--listen", self.address, "--advertise", self.advertise or self.address]
        return ["-m", "pyraftkv", "serve", *self.identity(), *where]

    def identity(self) -> list[str]:
        """Return the arguments that say who it is."""
        return ["--name", self.name, "--data-dir", str(self.data_dir), "--members", self.members]

    def start(self) -> None:
        """Start it; it answers some time later."""
        assert not self.is_running, self
        self.starts += 1
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  (our own command, and no shell)
                [sys.executable, "-X", "faulthandler", *self.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=Path(pyraftkv.__file__).parents[1],
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  (calls one C function, and no Python lock)
            )

    def signal_end(self) -> None:
        """Send it the end (SIGKILL), without waiting for it. Never to an id that may be somebody else's by now."""
        if self._process is not None and self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """End it at once, as the out-of-memory killer would (SIGKILL), and wait until it is gone. Idempotent."""
        self.signal_end()
        if self._process is not None:
            self._process.wait()

    def pause(self) -> None:
        """Stop it in the middle of whatever it does (SIGSTOP), until `resume`."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on, not knowing that time has passed (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to close (SIGTERM)."""
        self._signal(signal.SIGTERM)

    def check(self) -> None:
        """Raise `MemberDied` if it does not run."""
        if not self.is_running:
            raise MemberDied(f"{self!r} does not run; it said last:\n{self.last_words}")

    def _signal(self, number: int) -> None:
        assert self._process is not None
        assert self.is_running, self
        os.kill(self._process.pid, number)


def kill_all(processes: Iterable[MemberProcess]) -> None:
    """Kill these members at the same moment, and wait until all are gone."""
    victims = list(processes)
    for victim in victims:
        victim.signal_end()
    for victim in victims:
        victim.kill()


class ProcessCluster(FaultTarget):
    """Members as processes of this machine, behind proxies: an asynchronous context manager that ends them all.

    Args:
        folder: Where their directories and logs go; left there.
        members: Who they are.
        clients: The hosts of clients, as scripts name them; `client` makes one on such a host.
        seed: Which bits flip on corrupting links.
    """

    def __init__(
        self, folder: Path, *, members: Sequence[str] = NAMES, clients: Sequence[str] = ("c1",), seed: int = 0
    ) -> None:
        folder = folder.absolute()  # members run in a directory of their own choice
        folder.mkdir(parents=True, exist_ok=True)
        ports = iter(free_ports(2 * len(members)))
        self.links = ProxyLinks(Random(seed))
        own = {name: f"127.0.0.1:{next(ports)}" for name in members}
        self._proxies = {
            name: Proxy(self.links, name, listen=f"127.0.0.1:{next(ports)}", forward=own[name]) for name in members
        }
        table = ",".join(f"{name}={proxy.address}" for name, proxy in self._proxies.items())
        self.processes = {
            name: MemberProcess(name, address=own[name], members=table, folder=folder, advertise=proxy.address)
            for name, proxy in self._proxies.items()
        }
        self._clients = tuple(clients)
        self._paused: set[str] = set()
        self._leading: dict[str, int] = {}
        """Who says that it leads, and its term."""
        self._stack = contextlib.AsyncExitStack()

    def __repr__(self) -> str:
        return f"<ProcessCluster {list(self.processes)}>"

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            for proxy in self._proxies.values():
                await stack.enter_async_context(proxy)
            stack.callback(kill_all, self.processes.values())
            for process in self.processes.values():
                process.start()
            controls = {
                name: await stack.enter_async_context(pyraftkv.connect(process.address, name="control", discover=False))
                for name, process in self.processes.items()
            }
            watches = [
                asyncio.create_task(self._watch(name, control), name=f"pyraftkv-watch-{name}")
                for name, control in controls.items()
            ]
            stack.push_async_callback(_cancel, watches)
            await self.ready()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    def client(self, host: str, *, timeout: float = READY_SECONDS_MAX) -> Client:
        """Return a client on one of the clients' hosts that knows all members; enter it to connect."""
        assert host in self._clients, host
        proxies = [proxy.address for proxy in self._proxies.values()]
        return pyraftkv.connect(proxies, name=host, timeout=timeout, discover=False)

    async def ready(self) -> None:
        """Wait until somebody leads. Raises `MemberDied` if a member ended by itself, `TimeoutError`."""
        async with asyncio.timeout(READY_SECONDS_MAX):
            while self.leader() is None:
                for process in self.processes.values():
                    process.check()
                await asyncio.sleep(POLL_SECONDS)

    # --- As a target of faults ---

    @property
    def abilities(self) -> Ability:
        return Ability.PROCESSES | Ability.LINKS

    @property
    def members(self) -> Sequence[str]:
        return list(self.processes)

    @property
    def clients(self) -> Sequence[str]:
        return self._clients

    def leader(self) -> str | None:
        return max(self._leading, key=self._leading.__getitem__, default=None)

    def kill(self, host: str) -> None:
        self.processes[host].kill()

    def shut_down(self, host: str) -> None:
        if self.processes[host].is_running:
            self.processes[host].terminate()

    def start(self, host: str) -> None:
        """Start a process that was ended; one that is still at its end has had its time and is killed."""
        self.processes[host].kill()
        self.processes[host].start()
        if host in self._paused:
            self.processes[host].pause()

    def pause(self, host: str) -> None:
        self._paused.add(host)
        if self.processes[host].is_running:
            self.processes[host].pause()

    def resume(self, host: str) -> None:
        self._paused.discard(host)
        if self.processes[host].is_running:
            self.processes[host].resume()

    def cut(self, source: str, target: str) -> None:
        self.links.cut(source, target)

    def heal(self, source: str, target: str) -> None:
        self.links.heal(source, target)

    def reset(self, a: str, b: str) -> None:
        self.links.reset(a, b)

    def set_link(self, source: str, target: str, fault: LinkFault) -> None:
        self.links.set_fault(source, target, fault)

    # --- Within ---

    async def _watch(self, name: str, control: Client) -> None:
        """Keep asking a member, past the proxies, whether it leads."""
        while True:
            try:
                status = await control.status(timeout=ASK_SECONDS)
            except errors.Unavailable:
                status = None
            if status is not None and status.role == "leader":
                self._leading[name] = status.term
            else:
                self._leading.pop(name, None)
            await asyncio.sleep(POLL_SECONDS)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel tasks, and wait until they are done."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


_LIBC: ctypes.CDLL | None = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Ask Linux for SIGKILL when whoever started us is gone (prctl(2)). Runs between fork and exec."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
