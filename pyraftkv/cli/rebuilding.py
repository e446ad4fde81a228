"""``rebuild``: a member's directory is damaged; let it come back with what the others have."""

from __future__ import annotations

import argparse
from typing import Any

import pyraftkv
from pyraftkv.cli.common import DONE, tls_of
from pyraftkv.cli.printing import emit, emit_json
from pyraftkv.node.rebuilding import Rebuilt


async def rebuild(args: argparse.Namespace) -> int:
    """Let a member whose directory is damaged come back as a new one of its name, with what the others have.

    Its directory is set aside, not deleted. It runs until it has caught up and votes, and is stopped; start it again as
    always. A majority of the members, this one counted, must answer.
    """
    done = await pyraftkv.rebuild(
        args.data_dir,
        join=args.join,
        name=args.name,
        listen=args.listen,
        advertise=args.advertise,
        tls=tls_of(args),
        insecure=args.insecure,
    )
    if args.write_out == "json":
        emit_json(done_json(done, args.data_dir))
    else:
        emit("\n".join(done_lines(done, args.data_dir)), "\n")
    return DONE


def done_lines(done: Rebuilt, data_dir: str) -> list[str]:
    """Return what was done, and what is to be done next."""
    member, role = done.member, "votes" if done.votes else "is a learner"
    was = f", in place of member {done.replaced}" if done.replaced else ""
    return [
        f"{member.name} is member {member.id}{was}: it has what the others have, and {role}.",
        *([f"  its damaged directory is now {done.aside}"] if done.aside else []),
        "Start it as always:",
        f"  pyraftkv serve --name {member.name} --data-dir {data_dir} --listen {member.address}",
    ]


def done_json(done: Rebuilt, data_dir: str) -> dict[str, Any]:
    """Return what was done, for a program."""
    member = done.member
    return {
        "data_dir": data_dir,
        "aside": done.aside,
        "member": {"id": member.id, "name": member.name, "address": member.address, "incarnation": member.incarnation},
        "replaced": done.replaced,
        "votes": done.votes,
    }
