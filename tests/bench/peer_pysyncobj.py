"""Puts into PySyncObj: three processes on loopback, a `ReplDict` set from the leader's own process.

Its best case: a tick of 5 ms (the default of 50 ms answers 20 rounds a second), batches on, the journal and the dump
file set, the next put sent from the callback of the last. PySyncObj never calls fsync: what it acknowledged is
in the page cache.

    python -m tests.bench.peer_pysyncobj --seconds 5

This file is also the member: started with `--member`, it joins, says who leads, and runs the loads it is told to.
Members end when their standard input does.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import IO, Any

from tests.bench.harness import (
    VALUE_BYTES,
    WARM_UP_SECONDS,
    Missing,
    Result,
    Window,
    free_ports,
    key_of,
    main,
    process,
)

NAME = "PySyncObj"
MEMBERS = 3
TICK_SECONDS = 0.005
START_SECONDS_MAX = 30.0

# --- The member ----------------------------------------------------------------------------------------------------


def join(address: str, others: Sequence[str], directory: Path) -> tuple[Any, Any]:
    """Start one member; return its `SyncObj` and its `ReplDict` once a leader is known."""
    from pysyncobj import SyncObj, SyncObjConf
    from pysyncobj.batteries import ReplDict

    name = address.rpartition(":")[2]
    changed = threading.Event()
    replicated = ReplDict()
    member = SyncObj(
        address,
        others,
        conf=SyncObjConf(
            autoTickPeriod=TICK_SECONDS,
            appendEntriesPeriod=TICK_SECONDS,
            journalFile=str(directory / f"{name}.journal"),
            fullDumpFile=str(directory / f"{name}.dump"),
            connectionRetryTime=0.1,
        ),
        consumers=[replicated],
    )
    deadline = perf_counter() + START_SECONDS_MAX
    while not (member.isReady() and member._getLeader()):
        if perf_counter() > deadline:
            raise TimeoutError("PySyncObj found no leader")
        changed.wait(0.05)
    return member, replicated


def load(replicated: Any, *, in_flight: int, seconds: float, pids: Sequence[int]) -> Result:
    """Keep `in_flight` puts under way, each sent from the callback of the one before."""
    window = Window(pids)
    sequence = itertools.count()
    value = os.urandom(VALUE_BYTES)
    finished = threading.Event()
    failures: list[int] = []

    def send(sent: float) -> None:
        def answered(_: object, failure: int) -> None:
            if failure:
                failures.append(failure)
                finished.set()
            now = window.answered(sent)
            if not finished.is_set():
                send(now)

        replicated.set(key_of(next(sequence)), value, callback=answered)

    for _ in range(in_flight):
        send(perf_counter())
    finished.wait(WARM_UP_SECONDS)
    window.begin()
    finished.wait(seconds)
    window.end()
    finished.set()
    if failures:
        raise RuntimeError(f"PySyncObj refused a put: FAIL_REASON {failures[0]}")
    return window.result(NAME, in_flight)


def member_main(address: str, others: Sequence[str], directory: Path) -> None:
    """Join, print the leader's address, then answer each line of input (a load) by a line (its result)."""
    member, replicated = join(address, others, directory)
    print(json.dumps({"leader": str(member._getLeader())}), flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(load(replicated, **json.loads(line)))), flush=True)
    member.destroy()


# --- The benchmark -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def cluster(directory: Path) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Start three members with their files in `directory`; yield their processes by address."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(MEMBERS)]
    with contextlib.ExitStack() as stack:
        yield {
            address: stack.enter_context(
                process(
                    [sys.executable, "-m", __spec__.name, "--member", address, *addresses, str(directory)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    log=directory / f"{address.rpartition(':')[2]}.log",
                )
            )
            for address in addresses
        }


def line_of(stream: IO[str] | None) -> dict[str, Any]:
    """Return the next line that a member says. Raises `RuntimeError` if the member has ended."""
    assert stream is not None, "members are started with pipes"
    line = stream.readline()
    if not line:
        raise RuntimeError("a PySyncObj member ended before it answered")
    answer: dict[str, Any] = json.loads(line)
    return answer


def run(in_flight: Sequence[int], seconds: float) -> list[Result]:
    """Measure PySyncObj. Raises `Missing` if it is not installed."""
    if find_spec("pysyncobj") is None:
        raise Missing("pysyncobj is not installed; `make bench` installs it")
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="pyraftkv-bench-pysyncobj-") as directory, cluster(Path(directory)) as team:
        leader = team[{line_of(member.stdout)["leader"] for member in team.values()}.pop()]
        assert leader.stdin is not None, "members are started with pipes"
        for each in in_flight:
            task = {"in_flight": each, "seconds": seconds, "pids": [member.pid for member in team.values()]}
            print(json.dumps(task), file=leader.stdin, flush=True)
            results.append(Result(**line_of(leader.stdout)))
    return results


if __name__ == "__main__":
    if sys.argv[1:2] == ["--member"]:
        own, *everyone, folder = sys.argv[2:]
        member_main(own, [address for address in everyone if address != own], Path(folder))
    else:
        sys.exit(main(run, "Puts of 256 B into three PySyncObj members, from the leader's process."))
