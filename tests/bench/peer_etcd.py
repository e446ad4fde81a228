"""Puts into a real etcd: three members on loopback, driven from one Python process by aetcd.

etcd keeps its defaults, fsync included. The client talks to the leader, etcd's best case: nothing is forwarded.
Needs the programs of Debian's etcd-server (or any etcd 3.4+) and the extra `bench`.

    python -m tests.bench.peer_etcd --seconds 5
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from pyraftkv.sim.processes import free_ports
from tests.bench.harness import VALUE_BYTES, Missing, Result, closed_loop, key_of, main, process

if TYPE_CHECKING:
    import aetcd

NAME = "etcd (aetcd)"
MEMBERS = 3
START_SECONDS_MAX = 30.0


def commands(directory: Path) -> tuple[list[int], list[list[str]]]:
    """Return the client ports of three members with their data below `directory`, and how each is started.

    Raises: `Missing`.
    """
    program = shutil.which("etcd")
    if program is None:
        raise Missing("there is no etcd here (Debian: apt-get install etcd-server)")
    ports = free_ports(2 * MEMBERS)
    clients, peers = ports[:MEMBERS], ports[MEMBERS:]
    urls = ",".join(f"m{number}=http://127.0.0.1:{port}" for number, port in enumerate(peers))
    return clients, [
        [
            program,
            f"--name=m{number}",
            f"--data-dir={directory / f'm{number}'}",
            f"--listen-client-urls=http://127.0.0.1:{clients[number]}",
            f"--advertise-client-urls=http://127.0.0.1:{clients[number]}",
            f"--listen-peer-urls=http://127.0.0.1:{peers[number]}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peers[number]}",
            f"--initial-cluster={urls}",
            "--logger=zap",
            "--log-level=error",
        ]
        for number in range(MEMBERS)
    ]


@contextlib.contextmanager
def cluster(directory: Path, *options: str) -> Iterator[tuple[list[int], list[int]]]:
    """Start three members, with these options besides; yield their client ports and pids. Raises `Missing`."""
    ports, members = commands(directory)
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(process([*command, *options], log=directory / f"m{number}.log"))
            for number, command in enumerate(members)
        ]
        yield ports, [child.pid for child in children]


def ask(port: int, path: str, request: object, *, timeout: float = 10) -> dict[str, Any]:
    """Ask a member's JSON gateway, and wait for so many seconds. Raises `OSError`."""
    data = json.dumps(request).encode()
    answer: dict[str, Any] = json.load(urlopen(Request(f"http://127.0.0.1:{port}/v3/{path}", data), timeout=timeout))
    return answer


async def healthy(port: int) -> None:
    """Return when the member on `port` says that it has a leader."""
    while True:
        with contextlib.suppress(URLError, ConnectionError, TimeoutError):
            answer = await asyncio.to_thread(lambda: urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read())
            if b'"true"' in answer:
                return
        await asyncio.sleep(0.05)


async def connect_to_leader(ports: Sequence[int]) -> aetcd.Client:
    """Return a client of the member that leads."""
    import aetcd

    for port in ports:
        client = aetcd.Client(host="127.0.0.1", port=port)
        await client.connect()
        status = await client.status()
        if status.leader is not None and f":{port}" in "".join(status.leader.client_urls):
            return client
        await client.close()
    raise RuntimeError("no member of the etcd cluster leads")


async def measure(ports: Sequence[int], pids: Sequence[int], in_flight: Sequence[int], seconds: float) -> list[Result]:
    """Measure once per entry of `in_flight`, against one running cluster."""
    async with asyncio.timeout(START_SECONDS_MAX):
        for port in ports:
            await healthy(port)
        client = await connect_to_leader(ports)
    value = os.urandom(VALUE_BYTES)
    try:
        return [
            await closed_loop(
                NAME, lambda number: client.put(key_of(number), value), in_flight=each, seconds=seconds, pids=pids
            )
            for each in in_flight
        ]
    finally:
        await client.close()


def run(in_flight: Sequence[int], seconds: float) -> list[Result]:
    """Measure etcd. Raises `Missing` if the server or its client is not installed."""
    try:
        import aetcd  # noqa: F401  (asked for before the servers start)
    except ImportError as error:
        raise Missing(f"aetcd cannot be imported ({error}); `make bench` installs it") from error
    with (
        tempfile.TemporaryDirectory(prefix="pyraftkv-bench-etcd-") as directory,
        cluster(Path(directory)) as (
            ports,
            pids,
        ),
    ):
        return asyncio.run(measure(ports, pids, in_flight, seconds))


if __name__ == "__main__":
    sys.exit(main(run, "Puts of 256 B into three etcd members, from one Python process."))
