"""``lock`` and ``elect``: to hold something for as long as a command runs, or until interrupted.

Both print what etcdctl prints: the key, and of a leader its proposal. The key's create revision is the fencing token.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from base64 import b64encode
from collections.abc import Sequence

from pyraftkv import errors
from pyraftkv.cli.common import DONE, client
from pyraftkv.cli.printing import emit, emit_json
from pyraftkv.recipes import Election, Lock

COMMAND_SECONDS_MAX = 10.0
"""How long a command that is told to end has for it."""

SIGNALLED = 128
"""Added to the number of the signal that ended a command, as shells do."""


async def lock(args: argparse.Namespace) -> int:
    """Hold a lock while a command runs, whose exit status is returned; without one, until interrupted.

    The command finds the lock's key in PYRAFTKV_LOCK_KEY and its fencing token in PYRAFTKV_LOCK_TOKEN. When the lock is
    lost, it is told to end (SIGTERM), and killed if it does not within 10 s.
    """
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if command and command[0].startswith("-"):
        raise errors.InvalidRequest(f"{command[0]} is no command: options stand before the name")
    async with client(args) as kv, Lock(kv, args.name, ttl=args.ttl, timeout=args.wait) as held:
        key = held.guard.key
        if command:
            found = {"PYRAFTKV_LOCK_KEY": os.fsdecode(key), "PYRAFTKV_LOCK_TOKEN": str(held.token)}
            return await run(command, {**os.environ, **found})
        if args.write_out == "json":
            emit_json({"key": b64encode(key).decode(), "token": held.token})
        else:
            emit(key, "\n")
        await asyncio.Event().wait()
    return DONE


async def run(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command to its end, or see it ended; return its exit status. Raises `InvalidRequest`."""
    try:
        child = await asyncio.create_subprocess_exec(*command, env=environment)
    except OSError as error:
        raise errors.InvalidRequest(f"{command[0]} cannot be run: {error.strerror}") from None
    try:
        status = await child.wait()
    finally:
        if child.returncode is None:
            child.terminate()
            try:
                async with asyncio.timeout(COMMAND_SECONDS_MAX):
                    await child.wait()
            except TimeoutError:
                child.kill()
                await child.wait()
    return status if status >= 0 else SIGNALLED - status


async def elect(args: argparse.Namespace) -> int:
    """Stand in an election, and lead until interrupted; with ``--listen``, print who leads, and whoever leads next."""
    async with client(args) as kv:
        election = Election(kv, args.name, ttl=args.ttl)
        if args.listen:
            async for leader in election.observe():
                if leader is not None:
                    show_leader(args, leader.key, leader.value, leader.create_revision)
            return DONE
        proposal = os.fsencode(args.proposal)
        async with election.campaign(proposal, timeout=args.wait) as leadership:
            show_leader(args, leadership.guard.key, proposal, leadership.token)
            await asyncio.Event().wait()
    return DONE


def show_leader(args: argparse.Namespace, key: bytes, proposal: bytes, token: int) -> None:
    """Print a leader's key and what it proposed."""
    if args.write_out == "json":
        emit_json({"key": b64encode(key).decode(), "value": b64encode(proposal).decode(), "token": token})
    else:
        emit(key, "\n", proposal, "\n")
