"""Members as processes of the operating system: started, killed, paused and started again by the tests.

What a member's process is, and what a harness must not do with it, stands in `pyraftkv.sim.processes`. Here are those
that need other settings than ``serve`` offers (``python -m tests.processes``: this file is that program too), and
what tests ask of them. They listen where they say, with no proxy between.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import logging
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Self

import pyraftkv
from pyraftkv import errors
from pyraftkv.cli.common import exit_status, one_line
from pyraftkv.cli.serving import run_until, told_to_stop
from pyraftkv.client import Client
from pyraftkv.kv import KeyValue, Status
from pyraftkv.log import FileStorage, OsFileSystem
from pyraftkv.log.wal import SEGMENT_BYTES_MAX
from pyraftkv.opening import parse_members
from pyraftkv.sim.processes import NAMES, READY_SECONDS_MAX, MemberProcess, free_ports, kill_all
from pyraftkv.transport import TcpTransport

HEALTH_KEY = "health"
ASK_SECONDS = 1.0
EXIT_SECONDS_MAX = 30.0


class Process(MemberProcess):
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
        super().__init__(name, address=address, members=members, folder=folder)
        self._settings = settings

    def twin(self) -> Process:
        """Return a process that would run on the same directory; its log stands beside the first one's."""
        twin = Process(
            self.name, address=self.address, members=self.members, folder=self.log.parent, settings=self._settings
        )
        twin.log = self.log.with_suffix(".twin.log")
        return twin

    def command(self) -> list[str]:
        if self._settings is None:
            return super().command()
        settings = (f"{key}={value}" for key, value in self._settings.items())
        return ["-m", "tests.processes", *self.identity(), *settings]

    def connect(self, *, timeout: float = READY_SECONDS_MAX) -> Client:
        """Return a client that talks to this member alone."""
        return pyraftkv.connect(self.address, timeout=timeout, name=f"tests-{self.name}", discover=False)

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

    def fail_disk(self) -> None:
        """Let the next sync of its log fail (SIGUSR1); it must have been given settings."""
        assert self._settings is not None
        self._signal(signal.SIGUSR1)

    async def exit(self) -> int:
        """Wait until it ends by itself, and return its exit status. Raises `subprocess.TimeoutExpired`."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, EXIT_SECONDS_MAX)


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
        kill_all(self.members.values() if members is None else members)

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


# --- The member with settings --------------------------------------------------------------------------------------


class FailingFileSystem(OsFileSystem):
    """The operating system's files, of which the next sync fails when it is told so; it says what is touched then."""

    def __init__(self) -> None:
        super().__init__()
        self.is_failing = False
        self._failed_fd = -1

    def fail(self) -> None:
        """Let the next sync of a file fail."""
        self.is_failing = True

    def fdatasync(self, fd: int) -> None:
        self._touch(fd)
        if self.is_failing:
            self.is_failing, self._failed_fd = False, fd
            raise OSError(errno.EIO, "the disk was told to fail")
        super().fdatasync(fd)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self._touch(fd)
        return super().pwrite(fd, data, offset)

    def _touch(self, fd: int) -> None:
        if self._failed_fd >= 0:
            logging.getLogger("tests").error("descriptor %d is touched after %d failed", fd, self._failed_fd)


async def serve(args: argparse.Namespace) -> int:
    """Run a member with settings of its own until a signal comes, and log its events."""
    settings = dict(pair.split("=", 1) for pair in args.settings)
    segment_bytes_max = int(settings.pop("segment_bytes_max", SEGMENT_BYTES_MAX))
    kinds = {field.name: type(field.default) for field in fields(pyraftkv.NodeConfig)}
    config = pyraftkv.NodeConfig(**{name: kinds[name](float(value)) for name, value in settings.items()})
    members = parse_members(args.members)
    files = FailingFileSystem()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, files.fail)
    node = pyraftkv.Node(
        args.name,
        members=members,
        storage=FileStorage(args.data_dir, fs=files, segment_bytes_max=segment_bytes_max),
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
