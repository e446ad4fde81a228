"""``endpoint status``, ``endpoint health`` and ``endpoint hashkv``: every member is asked by itself."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable
from typing import Any

from pyraftkv import errors
from pyraftkv.cli.common import DONE, NOT_APPLIED, client, listed, one_line
from pyraftkv.cli.printing import emit, emit_json, print_rows, truth
from pyraftkv.cli.terminal import human_bytes, print_table
from pyraftkv.kv import Status
from pyraftkv.store.values import KvHash

HEALTH_KEY = "health"
"""What `endpoint health` reads, linearizably; it need not exist."""

STATUS_COLUMNS = (
    "ENDPOINT",
    "ID",
    "VERSION",
    "DB SIZE",
    "IS LEADER",
    "IS LEARNER",
    "RAFT TERM",
    "RAFT INDEX",
    "RAFT APPLIED INDEX",
    "LAG",
    "ERRORS",
)


NO_QUORUM = "No quorum: start the members that are down; if they are lost for good, see `pyraftkv recover --help`.\n"
"""Said when members answer and none of them hears from a majority."""


async def ask_status(args: argparse.Namespace, address: str) -> Status | errors.PyraftkvError:
    """Ask one endpoint how it is."""
    async with client(args, address) as one:
        try:
            return await one.status()
        except errors.PyraftkvError as error:
            return error


def say_if_quorum_is_lost(answers: Iterable[Status | errors.PyraftkvError]) -> None:
    """Tell on standard error what to do, if members answer and none of them hears from a majority."""
    found = [answer.has_quorum for answer in answers if isinstance(answer, Status)]
    if found and not any(found):
        sys.stderr.write(NO_QUORUM)


async def endpoint_status(args: argparse.Namespace) -> int:
    """Ask every endpoint how it is."""
    endpoints = listed(args.endpoints)
    found = await asyncio.gather(*[ask_status(args, address) for address in endpoints])
    answers = dict(zip(endpoints, found, strict=True))
    committed = max((each.commit_index for each in answers.values() if isinstance(each, Status)), default=0)
    if args.write_out == "json":
        emit_json([status_json(address, answer, committed) for address, answer in answers.items()])
    else:
        rows = [status_row(address, answer, committed) for address, answer in answers.items()]
        print_rows(STATUS_COLUMNS, rows, args.write_out)
    say_if_quorum_is_lost(found)
    return DONE if all(isinstance(each, Status) for each in answers.values()) else NOT_APPLIED


def status_row(address: str, answer: Status | errors.PyraftkvError, committed: int) -> list[str]:
    """Return one line of ``endpoint status``.

    Args:
        address: The endpoint that was asked.
        answer: What it said.
        committed: The largest commit index that any endpoint knows; what is missing to it is the LAG.
    """
    if not isinstance(answer, Status):
        return [address, *[""] * (len(STATUS_COLUMNS) - 2), one_line(answer)]
    return [
        address,
        f"{answer.member_id:x}",
        answer.version,
        human_bytes(answer.db_size_bytes),
        truth(answer.role == "leader"),
        truth(answer.role == "learner"),
        str(answer.term),
        str(answer.last_index),
        str(answer.applied_index),
        str(max(0, committed - answer.applied_index)),
        ", ".join([*answer.alarms, *([] if answer.has_quorum else ["no quorum"])]),
    ]


def status_json(address: str, answer: Status | errors.PyraftkvError, committed: int) -> dict[str, Any]:
    """Return one endpoint's status with etcdctl's names."""
    if not isinstance(answer, Status):
        return {"Endpoint": address, "Error": one_line(answer)}
    header = {
        "cluster_id": answer.cluster_id,
        "member_id": answer.member_id,
        "revision": answer.revision,
        "raft_term": answer.term,
    }
    status = {
        "header": header,
        "name": answer.name,
        "version": answer.version,
        "dbSize": answer.db_size_bytes,
        "dbSizeInUse": answer.db_in_use_bytes,
        "dbSizeQuota": answer.quota_bytes,
        "machinesSize": answer.machines_size_bytes,
        "leader": answer.leader,
        "role": answer.role,
        "raftIndex": answer.last_index,
        "raftTerm": answer.term,
        "raftAppliedIndex": answer.applied_index,
        "lag": max(0, committed - answer.applied_index),
        "hasQuorum": answer.has_quorum,
        "storage": answer.storage,
        "errors": answer.alarms,
    }
    return {"Endpoint": address, "Status": status}


async def endpoint_health(args: argparse.Namespace) -> int:
    """Read a key linearizably through every endpoint: a healthy one has a quorum behind it."""
    loop = asyncio.get_running_loop()

    async def ask(address: str) -> tuple[float, str]:
        begun, error = loop.time(), ""
        async with client(args, address) as one:
            try:
                await one.get(HEALTH_KEY)
            except errors.PyraftkvError as raised:
                error = one_line(raised)
            return loop.time() - begun, error

    endpoints = listed(args.endpoints)
    answers = dict(zip(endpoints, await asyncio.gather(*map(ask, endpoints)), strict=True))
    if all(error for _, error in answers.values()):
        say_if_quorum_is_lost(await asyncio.gather(*[ask_status(args, address) for address in endpoints]))
    if args.write_out == "json":
        rows = [
            {
                "endpoint": address,
                "health": not error,
                "took": milliseconds(took),
                **({"error": error} if error else {}),
            }
            for address, (took, error) in answers.items()
        ]
        emit_json(rows)
    elif args.write_out == "table":
        table = [[address, truth(not error), milliseconds(took), error] for address, (took, error) in answers.items()]
        print_table(sys.stdout, ["ENDPOINT", "HEALTH", "TOOK", "ERROR"], table)
    else:
        for address, (took, error) in answers.items():
            verdict = f"unhealthy: {error}" if error else f"healthy: a linearizable read took {milliseconds(took)}"
            emit(f"{address} is {verdict}\n")
    return NOT_APPLIED if any(error for _, error in answers.values()) else DONE


async def endpoint_hashkv(args: argparse.Namespace) -> int:
    """Ask every endpoint for the hash of its history: where revision and compact revision are the same, so is the hash.

    Exit status 1 if an endpoint does not answer, or two of them differ that must not.
    """

    async def ask(address: str) -> KvHash | errors.PyraftkvError:
        async with client(args, address) as one:
            try:
                return await one.hash_kv(args.rev)
            except errors.PyraftkvError as error:
                return error

    endpoints = listed(args.endpoints)
    answers = dict(zip(endpoints, await asyncio.gather(*map(ask, endpoints)), strict=True))
    if args.write_out == "json":
        emit_json([hash_json(address, answer) for address, answer in answers.items()])
    else:
        print_rows(HASH_COLUMNS, [hash_row(address, answer) for address, answer in answers.items()], args.write_out)
    found = [answer for answer in answers.values() if isinstance(answer, KvHash)]
    if some_differ(found):
        sys.stderr.write("The members differ: see docs/operations.md, When members differ.\n")
    return DONE if len(found) == len(answers) and not some_differ(found) else NOT_APPLIED


def some_differ(hashes: Iterable[KvHash]) -> bool:
    """Whether two of them are not the same, and are of the same revisions."""
    by_span: dict[tuple[int, int], set[int]] = {}
    for each in hashes:
        by_span.setdefault((each.hash_revision, each.compact_revision), set()).add(each.hash)
    return any(len(found) > 1 for found in by_span.values())


HASH_COLUMNS = ("ENDPOINT", "HASH", "HASH REVISION", "COMPACT REVISION", "ERROR")


def hash_row(address: str, answer: KvHash | errors.PyraftkvError) -> list[str]:
    """Return one line of ``endpoint hashkv``."""
    if not isinstance(answer, KvHash):
        return [address, "", "", "", one_line(answer)]
    return [address, f"{answer.hash:016x}", str(answer.hash_revision), str(answer.compact_revision), ""]


def hash_json(address: str, answer: KvHash | errors.PyraftkvError) -> dict[str, Any]:
    """Return one endpoint's hash with etcdctl's names."""
    if not isinstance(answer, KvHash):
        return {"Endpoint": address, "Error": one_line(answer)}
    fields = {
        "header": {"revision": answer.revision},
        "hash": answer.hash,
        "compact_revision": answer.compact_revision,
        "hash_revision": answer.hash_revision,
    }
    return {"Endpoint": address, "HashKV": fields}


def milliseconds(seconds: float) -> str:
    """Return a time as etcdctl writes it."""
    return f"{1000 * seconds:.3f}ms"
