"""``serve``: run a member until a signal comes or its disk fails."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
from collections.abc import Generator
from typing import Any

import pyraftkv
from pyraftkv.cli.common import DEFAULT_ADDRESS, DONE, tls_of
from pyraftkv.node import Node, NodeConfig
from pyraftkv.opening import parse_members
from pyraftkv.settings import Settings

logger = logging.getLogger("pyraftkv.cli")


async def serve(args: argparse.Namespace) -> int:
    """Run a member until a signal comes or its disk fails."""
    members = parse_members(args.members) if args.members is not None else {}
    own = members.get(args.name)
    listen = args.listen or own or DEFAULT_ADDRESS
    node = pyraftkv.open(
        args.data_dir or data_dir_of(args.name),
        name=args.name,
        listen=listen,
        advertise=args.advertise or own,
        members=members or None,
        join=args.join,
        learner=args.learner,
        witness=args.witness,
        tls=tls_of(args),
        insecure=args.insecure,
        strict_tail=args.strict_tail,
        config=config_of(args),
    )
    with told_to_stop() as stop:
        return await run_until(node, stop)


def data_dir_of(name: str) -> str:
    """Return the directory of a member that was not given one."""
    return f"{name}.pyraftkv"


def config_of(args: argparse.Namespace) -> NodeConfig | None:
    """Return the configuration that the flags name, None for the defaults."""
    return NodeConfig(settings=Settings(**dict(args.assignments))) if args.assignments else None


async def run_until(node: Node, stop: asyncio.Event) -> int:
    """Run a node; return 0 once ``stop`` is set and leadership was handed over. Raises what stopped the node."""
    stopping = asyncio.create_task(stop.wait(), name="pyraftkv-stop-signal")
    starting = asyncio.create_task(node.start(), name="pyraftkv-start")
    tasks: list[asyncio.Task[Any]] = [starting, stopping]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            logger.info("%s: told to stop before it was started", node.name)
            return DONE
        await starting
        logger.info("%s runs at %s", node.name, node.address)
        assert node.failed is not None
        ends: list[asyncio.Future[Any]] = [node.failed, stopping]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if node.failed.done():
            await node.failed
        logger.info("%s: closing", node.name)
        return DONE
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await node.close()


def stop_signals() -> list[int]:
    """Return the signals that ask a program to stop, on this system."""
    names = ("SIGINT", "SIGTERM", "SIGBREAK")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


@contextlib.contextmanager
def told_to_stop() -> Generator[asyncio.Event]:
    """Set an event at the first signal to stop; a second one has its usual effect, for the impatient."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    before: dict[int, Any] = {number: signal.getsignal(number) for number in stop_signals()}

    def restore() -> None:
        for number, handler in before.items():
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, handler)

    def stop_once() -> None:
        stop.set()
        restore()

    def from_windows(_: int, __: Any) -> None:
        loop.call_soon_threadsafe(stop_once)

    for number in before:
        try:
            loop.add_signal_handler(number, stop_once)
        except NotImplementedError:  # Windows
            signal.signal(number, from_windows)
    try:
        yield stop
    finally:
        restore()
