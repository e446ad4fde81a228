"""Puts into pyraftkv: three processes on loopback, logs on disk, fdatasync on.

Two rows: callers inside the leader's own process (how it is meant to be used), and a remote client beside three
members (etcd's fair peer: its client is always remote).

    python -m tests.bench.bench_puts --seconds 5

This file is also the member: started with `--member`, it runs until its standard input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyraftkv
from pyraftkv.replicated import ReplicatedCounter
from tests.bench.harness import VALUE_BYTES, Result, closed_loop, free_ports, key_of, main, process

MEMBERS = ("a", "b", "c")
START_SECONDS_MAX = 30.0
MACHINES = {"counter": ReplicatedCounter.machine}
"""Of every member: whoever calls none of them pays nothing for them."""

PATIENT_SECONDS = 3.0
"""The other members' election timeout, so that the one that makes the load wins the first election."""


async def serve(name: str, directory: str, members: str, election_timeout_seconds: str) -> None:
    """Run one member until standard input ends."""
    config = replace(pyraftkv.NodeConfig(), election_timeout_seconds=float(election_timeout_seconds), close_seconds=0.1)
    addresses = pyraftkv.opening.parse_members(members)
    member = pyraftkv.open(
        directory, name=name, listen=addresses[name], members=members, config=config, machines=MACHINES
    )
    async with member:
        await asyncio.to_thread(sys.stdin.read)


@contextlib.contextmanager
def children(
    names: Sequence[str], directory: Path, members: str, *, election_timeout_seconds: float = 1.0
) -> Iterator[list[int]]:
    """Start these members as processes of their own; yield their pids."""
    with contextlib.ExitStack() as stack:
        pids = []
        for name in names:
            command = [sys.executable, "-m", "tests.bench.bench_puts", "--member", name, str(directory / name)]
            command += [members, str(election_timeout_seconds)]
            log = directory / f"{name}.log"
            pids.append(stack.enter_context(process(command, stdin=subprocess.PIPE, log=log)).pid)
        yield pids


async def inside(in_flight: Sequence[int], seconds: float, directory: Path) -> list[Result]:
    """Load the cluster from callers in the leader's process."""
    members = ",".join(f"{name}=127.0.0.1:{port}" for name, port in zip(MEMBERS, free_ports(len(MEMBERS)), strict=True))
    own, *others = MEMBERS
    address = pyraftkv.opening.parse_members(members)[own]
    value = b"v" * VALUE_BYTES
    with children(others, directory, members, election_timeout_seconds=PATIENT_SECONDS) as pids:
        node = pyraftkv.open(directory / own, name=own, listen=address, members=members, machines=MACHINES)
        async with node:
            await node.put("warm", "up", timeout=START_SECONDS_MAX)
            if not node.is_leader:
                raise RuntimeError(f"{own} does not lead: run it again")
            return [
                await closed_loop(
                    "pyraftkv, embedded",
                    lambda sequence: node.put(key_of(sequence), value),
                    in_flight=count,
                    seconds=seconds,
                    pids=pids,
                )
                for count in in_flight
            ]


async def remote(in_flight: Sequence[int], seconds: float, directory: Path) -> list[Result]:
    """Load the cluster from a client in a process of its own."""
    members = ",".join(f"{name}=127.0.0.1:{port}" for name, port in zip(MEMBERS, free_ports(len(MEMBERS)), strict=True))
    value = b"v" * VALUE_BYTES
    addresses = ",".join(pyraftkv.opening.parse_members(members).values())
    with children(MEMBERS, directory, members) as pids:
        async with pyraftkv.connect(addresses, timeout=START_SECONDS_MAX) as finder:
            await finder.put("warm", "up")
            leader = (await finder.status()).leader
        by_id = dict(enumerate(addresses.split(","), start=1))
        async with pyraftkv.connect(by_id[leader]) as client:
            return [
                await closed_loop(
                    "pyraftkv, remote client",
                    lambda sequence: client.put(key_of(sequence), value),
                    in_flight=count,
                    seconds=seconds,
                    pids=pids,
                )
                for count in in_flight
            ]


def run(in_flight: Sequence[int], seconds: float) -> list[Result]:
    """Measure both ways of use."""
    results = []
    for way in (inside, remote):
        with tempfile.TemporaryDirectory(prefix="pyraftkv-bench-") as directory:
            results += asyncio.run(way(in_flight, seconds, Path(directory)))
    return results


if __name__ == "__main__":
    if sys.argv[1:2] == ["--member"]:
        asyncio.run(serve(*sys.argv[2:6]))
        sys.exit(0)
    sys.exit(main(run, "Replicated puts of 256 B into pyraftkv."))
