"""Three members as three processes of this machine: started, killed and started again.

Each is ``python -m pyraftkv serve`` with a data directory of its own; what it says goes to ``<name>.log`` beside it.
Nothing here touches a process that was not started here.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path
from typing import BinaryIO, Self

import pyraftkv
from pyraftkv import errors
from pyraftkv.cli.common import USAGE
from pyraftkv.client import Client
from pyraftkv.kv import Status

NAMES = ("n1", "n2", "n3")
START_SECONDS = 60.0
"""How long a member may take from its start to its first answer: it reads its log in that time."""

START_ATTEMPTS = 5
"""How often a start is tried: between finding a free port and listening on it, anybody may take it.

Who cannot listen ends with `USAGE`, as whenever its addresses cannot work.
"""

ASK_SECONDS = 1.0
POLL_SECONDS = 0.05
LOG_LINES_MAX = 15


class MemberDied(Exception):
    """A member ended that should run.

    Args:
        message: Which, and what it said last.
        status: Its exit status.
    """

    def __init__(self, message: str, *, status: int | None) -> None:
        super().__init__(message)
        self.status = status


def free_ports(count: int) -> list[int]:
    """Return different ports of the loopback interface that nobody listens on now."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()


class Process:
    """One member's process, and a client that talks to it alone."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name = name
        self.address = address
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self.kv: Client = pyraftkv.connect(address, name=f"demo-{name}", discover=False)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self, members: str) -> None:
        """Start it; `ready` waits until it answers."""
        assert not self.is_running
        arguments = [
            *("serve", "--name", self.name, "--data-dir", str(self._folder / self.name)),
            *("--listen", self.address, "--members", members, "--log-level", "warning"),
        ]
        with self._log("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "pyraftkv", *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )

    async def ready(self) -> Status:
        """Wait until it answers. Raises `MemberDied`, `TimeoutError`."""
        async with asyncio.timeout(START_SECONDS):
            while True:
                if not self.is_running:
                    status = self._process.returncode if self._process is not None else None
                    raise MemberDied(
                        f"{self.name} ended with status {status}, and said:\n{self.last_words()}", status=status
                    )
                try:
                    return await self.kv.status(timeout=ASK_SECONDS)
                except errors.Unavailable:
                    await asyncio.sleep(POLL_SECONDS)

    async def kill(self) -> None:
        """End it at once, as a power cut would (SIGKILL). Nothing happens if it does not run."""
        if self._process is None:
            return
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    def last_words(self) -> str:
        """Return the end of what it said."""
        with self._log("rb") as log:
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-LOG_LINES_MAX:])

    def _log(self, mode: str) -> BinaryIO:
        return (self._folder / f"{self.name}.log").open(mode)  # type: ignore[return-value]


class Processes:
    """Three members on three ports; an asynchronous context manager that kills what it started."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._members = ""
        self.nodes: dict[str, Process] = {}

    def __getitem__(self, name: str) -> Process:
        return self.nodes[name]

    async def __aenter__(self) -> Self:
        try:
            await self._found()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._end()

    async def kill_all(self) -> None:
        """Kill every member at the same moment."""
        await asyncio.gather(*(node.kill() for node in self.nodes.values()))

    async def start(self, *names: str, attempts: int = START_ATTEMPTS) -> None:
        """Start members that are down, and wait until they answer. Raises `MemberDied`, `TimeoutError`."""
        for name in names:
            await self.nodes[name].start(self._members)
        await asyncio.gather(*(self._ready(self.nodes[name], attempts) for name in names))

    async def leader(self) -> Process:
        """Ask every member how it is, until one leads. Raises `TimeoutError`."""
        async with asyncio.timeout(START_SECONDS):
            while True:
                statuses = await self._statuses()
                leaders = [each for each in statuses if each.role == "leader" and each.has_quorum]
                if leaders:
                    return self.nodes[max(leaders, key=lambda each: each.term).name]
                await asyncio.sleep(POLL_SECONDS)

    async def caught_up(self, name: str) -> None:
        """Wait until a member has applied all that is committed now. Raises `TimeoutError`."""
        committed = (await (await self.leader()).kv.status()).commit_index
        async with asyncio.timeout(START_SECONDS):
            while True:
                if (await self.nodes[name].kv.status()).applied_index >= committed:
                    return
                await asyncio.sleep(POLL_SECONDS)

    async def _statuses(self) -> list[Status]:
        async def ask(node: Process) -> Status | None:
            try:
                return await node.kv.status(timeout=ASK_SECONDS)
            except errors.Unavailable:
                return None

        answers = await asyncio.gather(*(ask(node) for node in self.nodes.values() if node.is_running))
        return [answer for answer in answers if answer is not None]

    async def _found(self) -> None:
        """Start a new cluster; on other ports if somebody takes one of them first."""
        for attempt in range(START_ATTEMPTS):
            folder = self._folder / str(attempt) if attempt else self._folder
            folder.mkdir(parents=True, exist_ok=True)
            addresses = [f"127.0.0.1:{port}" for port in free_ports(len(NAMES))]
            self._members = ",".join(f"{name}={address}" for name, address in zip(NAMES, addresses, strict=True))
            self.nodes = {name: Process(name, address, folder) for name, address in zip(NAMES, addresses, strict=True)}
            for node in self.nodes.values():
                node.kv.start()
            try:
                await self.start(*NAMES, attempts=1)
            except MemberDied as death:
                if attempt == START_ATTEMPTS - 1 or death.status != USAGE:
                    raise
                await self._end()
            else:
                return

    async def _ready(self, node: Process, attempts: int) -> None:
        """Wait for a member; start it again if its port is not free at the moment."""
        for attempt in range(attempts):
            try:
                await node.ready()
            except MemberDied as death:
                if attempt == attempts - 1 or death.status != USAGE:
                    raise
                await asyncio.sleep(POLL_SECONDS)
                await node.start(self._members)
            else:
                return

    async def _end(self) -> None:
        await self.kill_all()
        for node in self.nodes.values():
            await node.kv.close()
