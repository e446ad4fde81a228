"""``top``: every endpoint in one table, asked again and again."""

from __future__ import annotations

import argparse
import asyncio
import sys

from pyraftkv import errors
from pyraftkv.cli.common import DONE, NOT_APPLIED, listed
from pyraftkv.cli.endpoints import STATUS_COLUMNS, ask_status, say_if_quorum_is_lost, status_json, status_row
from pyraftkv.cli.printing import emit, emit_json
from pyraftkv.cli.terminal import print_table
from pyraftkv.kv import Status

TO_THE_TOP = "\x1b[H\x1b[2J"
"""Takes a terminal's cursor home, and clears what stands there."""


async def top(args: argparse.Namespace) -> int:
    """Print how every endpoint is, and the log entries that it applies per second, until interrupted.

    Exit status 1 if an endpoint did not answer the last time.
    """
    loop, endpoints = asyncio.get_running_loop(), listed(args.endpoints)
    before: dict[str, tuple[float, int]] = {}
    rounds = 0
    while True:
        asked_at = loop.time()
        answers = dict(
            zip(endpoints, await asyncio.gather(*[ask_status(args, each) for each in endpoints]), strict=True)
        )
        rates = {each: rate_of(answers[each], before.get(each), now=loop.time()) for each in endpoints}
        now = loop.time()
        before = {each: (now, found.applied_index) for each, found in answers.items() if isinstance(found, Status)}
        show(args, answers, rates)
        rounds += 1
        if rounds == args.count:
            say_if_quorum_is_lost(answers.values())
            return DONE if len(before) == len(endpoints) else NOT_APPLIED
        await asyncio.sleep(max(0.0, asked_at + args.every - loop.time()))


def rate_of(answer: Status | errors.PyraftkvError, before: tuple[float, int] | None, *, now: float) -> float | None:
    """Return how many entries per second were applied since an endpoint was asked before; None if nobody can say."""
    if not isinstance(answer, Status) or before is None or now <= before[0] or answer.applied_index < before[1]:
        return None
    return (answer.applied_index - before[1]) / (now - before[0])


def show(
    args: argparse.Namespace, answers: dict[str, Status | errors.PyraftkvError], rates: dict[str, float | None]
) -> None:
    """Print one table, in place of the last one if this is a terminal; or one line of JSON."""
    committed = max((each.commit_index for each in answers.values() if isinstance(each, Status)), default=0)
    if args.write_out == "json":
        emit_json(
            [{**status_json(each, answers[each], committed), "entriesPerSecond": rates[each]} for each in answers]
        )
        return
    rows: list[list[str]] = []
    for address, answer in answers.items():
        rate, row = rates[address], status_row(address, answer, committed)
        rows.append([*row[:-1], "" if rate is None else f"{rate:.0f}", row[-1]])
    if sys.stdout.isatty():
        emit(TO_THE_TOP)
    print_table(sys.stdout, [*STATUS_COLUMNS[:-1], "ENTRIES/S", STATUS_COLUMNS[-1]], rows)
    sys.stdout.flush()
