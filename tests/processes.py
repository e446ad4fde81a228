"""Members as processes of the operating system: started, killed, paused and started again by the tests.

Each member is ``python -m pyraftkv serve`` on a loopback port with a data directory of its own; what it says goes to
``<name>.log`` beside that. A member that needs other settings than ``serve`` offers is ``python -m tests.processes``:
this file is that program too.

Hazards that the harness itself must not add:

1. A port from the system's ephemeral range may be taken by any outgoing connection while its member is down, and a
   dial to it may even connect to itself. Ports are taken from below that range.
2. A member that is left over would spoil the next test. Each is the leader of a process group, and every group is
   killed by its id at the end, whatever happened before. On Linux a member also dies with the process that started it.
3. A process that was killed is waited for: only then are its ports and its lock on the directory free.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from random import SystemRandom
from typing import Self

import pyraftkv
from pyraftkv import errors
from pyraftkv.cli.common import exit_status, one_line
from pyraftkv.cli.serving import run_until, told_to_stop
from pyraftkv.client import Client
from pyraftkv.kv import KeyValue, Status
from pyraftkv.log import FileStorage
from pyraftkv.log.wal import SEGMENT_BYTES_MAX
from pyraftkv.opening import parse_members
from pyraftkv.transport import TcpTransport

ROOT = Path(__file__).parents[1]
NAMES = ("n1", "n2", "n3")
HEALTH_KEY = "health"
READY_SECONDS_MAX = 60.0
"""From the start of a process to its first linearizable answer, on a machine that has much else to do."""

ASK_SECONDS = 1.0
EXIT_SECONDS_MAX = 30.0
LOG_LINES_MAX = 20
PORTS = range(10_000, 32_000)
"""Below the ephemeral ports of every system that we know."""


class MemberDied(AssertionError):
    """A member ended that should run; carries what it said last."""


def free_ports(count: int) -> list[int]:
    """Return different loopback ports that nobody listens on at this moment."""
    rng = SystemRandom()
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            port = rng.choice(PORTS)
            each = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                each.bind(("127.0.0.1", port))
                ports.append(port)
        return ports


class Process:
    """One member.

    Args:
        name: Its name, and that of its directory.
        address: Where it listens.
        members: The first members of its cluster, as ``--members`` takes them.
        folder: Where its data directory and its log are.
        settings: Fields of `NodeConfig`, and ``segment_bytes_max``; none at all means plain ``serve``.
    """

    def __init__(
        self, name: str, *, address: str, members: str, folder: Path, settings: Mapping[str, float] | None = None
    ) -> None:
        self.name = name
        self.address = address
        self.data_dir = folder / name
        self.log = folder / f"{name}.log"
        self.starts = 0
        self._members = members
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        state = "not started" if self._process is None else f"pid {self._process.pid}, status {self._process.poll()}"
        return f"<Process {self.name}: {state}>"

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

    def twin(self) -> Process:
        """Return a process that would run on the same directory; its log stands beside the first one's."""
        twin = Process(
            self.name, address=self.address, members=self._members, folder=self.log.parent, settings=self._settings
        )
        twin.log = self.log.with_suffix(".twin.log")
        return twin

    def start(self) -> None:
        """Start it; `ready` waits until it answers."""
        assert not self.is_running, self
        where = ["--name", self.name, "--data-dir", str(self.data_dir), "--members", self._members]
        if self._settings is None:
            command = ["-m", "pyraftkv", "serve", *where, "--listen", self.address, "--advertise", self.address]
        else:
            command = ["-m", "tests.processes", *where, *(f"{key}={value}" for key, value in self._settings.items())]
        self.starts += 1
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  (calls one C function, and no Python lock)
            )

    def kill(self) -> None:
        """End it at once, as the out-of-memory killer would (SIGKILL), and wait until it is gone. Idempotent."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
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

    def _signal(self, number: int) -> None:
        assert self._process is not None
        assert self.is_running, self
        os.kill(self._process.pid, number)

    def connect(self, *, timeout: float = READY_SECONDS_MAX) -> Client:
        """Return a client that talks to this member alone."""
        return pyraftkv.connect(self.address, timeout=timeout, name=f"tests-{self.name}")

    async def ready(self) -> KeyValue | None:
        """Wait until it answers a linearizable read: it has found a leader, and has applied what it missed.

        Returns:
            What stands at `HEALTH_KEY`.

        Raises:
            MemberDied: It ended instead.
            TimeoutError: It did neither in time.
        """
        async with asyncio.timeout(READY_SECONDS_MAX), self.connect() as kv:
            while True:
                self.check()
                with contextlib.suppress(errors.Unavailable):
                    return await kv.get(HEALTH_KEY, timeout=ASK_SECONDS)

    async def status(self) -> Status:
        """Return its view of itself."""
        async with self.connect() as kv:
            return await kv.status()

    async def exit(self) -> int:
        """Wait until it ends by itself, and return its exit status. Raises `subprocess.TimeoutExpired`."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, EXIT_SECONDS_MAX)

    def check(self) -> None:
        """Raise `MemberDied` if it does not run."""
        if not self.is_running:
            raise MemberDied(f"{self!r} does not run; it said last:\n{self.last_words}")


class Processes:
    """The members of one cluster, on free ports; an asynchronous context manager that ends them all.

    Args:
        folder: Where their directories and logs go; left there.
        names: Who they are.
        settings: As `Process` takes them.
    """

    def __init__(
        self, folder: Path, *, names: Sequence[str] = NAMES, settings: Mapping[str, float] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        addresses = {name: f"127.0.0.1:{port}" for name, port in zip(names, free_ports(len(names)), strict=True)}
        members = ",".join(f"{name}={address}" for name, address in addresses.items())
        self.members = {
            name: Process(name, address=address, members=members, folder=folder, settings=settings)
            for name, address in addresses.items()
        }

    def __getitem__(self, name: str) -> Process:
        return self.members[name]

    @property
    def addresses(self) -> list[str]:
        return [member.address for member in self.members.values()]

    async def __aenter__(self) -> Self:
        try:
            for member in self.members.values():
                member.start()
            await self.ready()
        except BaseException:
            self.kill()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.kill()

    def kill(self, members: Iterable[Process] | None = None) -> None:
        """Kill these members, or all of them, at the same moment."""
        victims = list(self.members.values() if members is None else members)
        for victim in victims:
            if victim.is_running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(victim._process.pid, signal.SIGKILL)  # type: ignore[union-attr]
        for victim in victims:
            victim.kill()

    async def ready(self) -> None:
        """Wait until every member answers. Raises `MemberDied`, `TimeoutError`."""
        await asyncio.gather(*(member.ready() for member in self.members.values()))

    def connect(self, *, first: int = 0, timeout: float = READY_SECONDS_MAX) -> Client:
        """Return a client of all members that tries the one at position ``first`` first."""
        addresses = self.addresses
        turned = addresses[first:] + addresses[:first]
        return pyraftkv.connect(",".join(turned), timeout=timeout, name=f"tests-{first}")

    async def leader(self) -> Process:
        """Return the member that leads, by the word of one that answers."""
        while True:
            async with self.connect() as kv:
                name = (await kv.status()).leader_name
            if name:
                return self.members[name]


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """Ask Linux for SIGKILL when whoever started us is gone (prctl(2)). Runs between fork and exec."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


# --- The member with settings --------------------------------------------------------------------------------------


async def serve(args: argparse.Namespace) -> int:
    """Run a member with settings of its own until a signal comes, and log its events."""
    settings = dict(pair.split("=", 1) for pair in args.settings)
    segment_bytes_max = int(settings.pop("segment_bytes_max", SEGMENT_BYTES_MAX))
    kinds = {field.name: type(field.default) for field in fields(pyraftkv.NodeConfig)}
    config = pyraftkv.NodeConfig(**{name: kinds[name](float(value)) for name, value in settings.items()})
    members = parse_members(args.members)
    node = pyraftkv.Node(
        args.name,
        members=members,
        storage=FileStorage(args.data_dir, segment_bytes_max=segment_bytes_max),
        transport=TcpTransport(listen=members[args.name]),
        config=config,
    )

    async def log_events() -> None:
        async for event in node.events():
            logging.getLogger("tests").info("%s", event)

    watching = asyncio.create_task(log_events(), name="events")
    try:
        with told_to_stop() as stop:
            return await run_until(node, stop)
    finally:
        watching.cancel()


def main() -> int:
    """Parse the command line, and serve."""
    parser = argparse.ArgumentParser(description="A member with settings that `serve` does not offer.")
    for name in ("--name", "--data-dir", "--members"):
        parser.add_argument(name, required=True)
    parser.add_argument("settings", nargs="*", metavar="setting=value")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s %(message)s")
    try:
        return asyncio.run(serve(parser.parse_args()))
    except errors.PyraftkvError as error:
        sys.stderr.write(f"Error: {one_line(error)}\n")
        return exit_status(error)


if __name__ == "__main__":
    sys.exit(main())
