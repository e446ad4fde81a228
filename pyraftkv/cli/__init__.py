"""The command ``pyraftkv``: run a member, read, write and watch keys, ask members how they are.

Verbs, flags and tables are etcdctl's, so that hands and eyes transfer. Values go to standard output as they are,
errors to standard error as one line. Exit statuses answer the two questions that `errors` answers:

======  =============================================================================================
0       done
1       not applied, and never will be: refused, not available, unhealthy
2       the request itself is wrong: the command line, an address, an empty key
3       the outcome of a write is unknown: it may have been applied, or may yet be
70      the storage: a disk failed, a directory is damaged, locked or another member's
130     interrupted
======  =============================================================================================
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from pyraftkv import errors
from pyraftkv.cli.arguments import ENDPOINTS_VARIABLE, parser, sim
from pyraftkv.cli.common import DEFAULT_ADDRESS, DONE, INTERRUPTED, USAGE, exit_status, one_line
from pyraftkv.cli.rebuilding import rebuild
from pyraftkv.cli.recovering import recover
from pyraftkv.cli.serving import data_dir_of, serve

LOG_LEVELS = {serve: "info", sim: "critical"}
"""What is told unless ``--log-level`` says otherwise; the members of a simulation fail all the time."""


def advice(error: errors.PyraftkvError, args: argparse.Namespace) -> str:
    """Return what else to say of an error: what tells more, or what was perhaps forgotten."""
    if args.run in (serve, recover) and isinstance(error, errors.WalCorruption | errors.SnapshotCorruption):
        return f"; what to do: `pyraftkv doctor {args.data_dir or data_dir_of(args.name)}`"
    if args.run is rebuild and isinstance(error, errors.MemberNotFound) and args.name is None:
        return ": --name NAME"
    asks_endpoints = args.run not in (serve, recover, rebuild)
    if asks_endpoints and isinstance(error, errors.Unavailable) and args.endpoints == DEFAULT_ADDRESS:
        return f"; name members with --endpoints or ${ENDPOINTS_VARIABLE}, or run one here: `pyraftkv serve`"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``pyraftkv``; return its exit status."""
    given = sys.argv[1:] if argv is None else argv
    if not given:
        parser().print_help(sys.stderr)
        return USAGE
    args = parser().parse_args(given)
    level = args.log_level or LOG_LEVELS.get(args.run, "error")
    logging.basicConfig(
        stream=sys.stderr, level=level.upper(), format="%(asctime)s %(levelname)-7s %(name)s %(message)s"
    )
    try:
        running = args.run(args)
        status: int = asyncio.run(running) if asyncio.iscoroutine(running) else running
    except errors.PyraftkvError as error:
        sys.stderr.write(f"Error: {one_line(error)}{advice(error, args)}\n")
        return exit_status(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has enough of it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    return status
