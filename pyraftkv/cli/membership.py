"""``member ...`` and ``move-leader``: who the members are, and who leads.

A MEMBER is named by its name or by its id, as ``member list`` shows them; what consists of digits is an id.
"""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from pyraftkv import errors
from pyraftkv.cli.common import DONE, client, listed
from pyraftkv.cli.printing import emit, emit_json, print_rows, truth
from pyraftkv.kv import Member
from pyraftkv.transport.address import is_loopback, parse_address

LIST_COLUMNS = ("ID", "NAME", "ADDRESS", "IS LEARNER", "IS LEADER", "PRIORITY", "IS WITNESS")


async def member_list(args: argparse.Namespace) -> int:
    """List the members, as the leader knows them now."""
    async with client(args) as kv:
        members = await kv.members.list()
    if args.write_out == "json":
        emit_json({"members": [member_json(member) for member in members]})
    else:
        print_rows(LIST_COLUMNS, [member_row(member) for member in members], args.write_out)
    return DONE


async def member_add(args: argparse.Namespace) -> int:
    """Take in a member, and print how to start it: a learner, which asks for its vote later, or a witness."""
    parse_address(args.address)
    async with client(args) as kv:
        added = await kv.members.add(args.name, args.address, witness=args.witness)
        others = [member for member in await kv.members.list() if member.id != added.id]
    command = serve_command(args, added, others)
    return _done(args, f"Member {_called(added)} added.", member=added, start=command)


async def member_replace(args: argparse.Namespace) -> int:
    """Take out a member whose disk is gone and take in another one, in one step, and print how to start that.

    It has the name and the address of the old one unless told otherwise, and another id.
    """
    if args.address is not None:
        parse_address(args.address)
    async with client(args) as kv:
        added = await kv.members.replace(args.member, name=args.name, address=args.address)
        others = [member for member in await kv.members.list() if member.id != added.id]
    command = serve_command(args, added, others)
    return _done(args, f"Member {args.member} replaced by {_called(added)}.", member=added, start=command)


async def member_remove(args: argparse.Namespace) -> int:
    """Take out a member, for ever; a leader hands over first."""
    async with client(args) as kv:
        await kv.members.remove(args.member, force=args.force)
    return _done(args, f"Member {args.member} removed. Its id and its directory are of no use any more.")


async def member_promote(args: argparse.Namespace) -> int:
    """Let a learner vote; refused until it has caught up."""
    async with client(args) as kv:
        await kv.members.promote(args.member)
    return _done(args, f"Member {args.member} promoted: it votes.")


async def member_demote(args: argparse.Namespace) -> int:
    """Make a voter a learner: it receives everything and votes no more."""
    async with client(args) as kv:
        await kv.members.demote(args.member)
    return _done(args, f"Member {args.member} demoted: it is a learner.")


async def member_update(args: argparse.Namespace) -> int:
    """Say something else of a member: its name, its address, how much it is preferred as leader."""
    if args.name is None and args.address is None and args.priority is None:
        raise errors.ConfigurationError("say what is new of it: --name, --address or --priority")
    if args.address is not None:
        parse_address(args.address)
    async with client(args) as kv:
        await kv.members.update(args.member, name=args.name, address=args.address, priority=args.priority)
    return _done(args, f"Member {args.member} updated.")


async def move_leader(args: argparse.Namespace) -> int:
    """Hand leadership over, to a member or to the best one."""
    async with client(args) as kv:
        target = args.member
        if isinstance(target, int):
            names = {member.id: member.name for member in await kv.members.list()}
            target = names.get(target, str(target))
        leader = await kv.transfer_leadership(to=target)
    return _done(args, f"{leader} leads.")


def member_named(text: str) -> int | str:
    """Parse MEMBER."""
    return int(text) if text.isascii() and text.isdecimal() else text


def member_row(member: Member) -> list[str]:
    """Return one line of ``member list``."""
    learner, leader, witness = (truth(it) for it in (member.role == "learner", member.is_leader, _is_witness(member)))
    return [str(member.id), member.name, member.address, learner, leader, str(member.priority), witness]


def member_json(member: Member) -> dict[str, Any]:
    """Return one member with etcdctl's names, as far as it has them."""
    return {
        "ID": member.id,
        "name": member.name,
        "address": member.address,
        "isLearner": member.role == "learner",
        "isLeader": member.is_leader,
        "priority": member.priority,
        "isWitness": _is_witness(member),
    }


def _is_witness(member: Member) -> bool:
    return member.role == "witness"


def serve_command(args: argparse.Namespace, member: Member, others: list[Member]) -> str:
    """Return the command that starts a new member on its machine."""
    words = ["pyraftkv", "serve", "--name", member.name, "--data-dir", f"{member.name}.pyraftkv"]
    words += ["--listen", member.address, "--join", ",".join(_dialable(others) or listed(args.endpoints))]
    if _is_witness(member):
        words.append("--witness")
    elif getattr(args, "learner", False):
        words.append("--learner")
    if args.tls_ca is not None:
        words += ["--tls-ca", "ca.pem", "--tls-cert", f"{member.name}.pem", "--tls-key", f"{member.name}.key"]
    elif not is_loopback(parse_address(member.address)[0]):
        words.append("--insecure")
    return shlex.join(words)


def _dialable(members: list[Member]) -> list[str]:
    """Return where members can be reached. Who began without an address stands in the table with its name."""
    return [member.address for member in members if ":" in member.address]


def _called(member: Member) -> str:
    return f"{member.name} (id {member.id}, {member.address})"


def _done(args: argparse.Namespace, words: str, *, member: Member | None = None, start: str = "") -> int:
    """Print what was done, and how to start who is new."""
    if args.write_out == "json":
        emit_json({**({"member": member_json(member)} if member else {}), **({"start": start} if start else {})})
    else:
        emit(words, "\n")
        if start:
            emit("Start it on its machine, with an empty directory:\n  ", start, "\n")
    return DONE
