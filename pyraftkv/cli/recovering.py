"""``recover``: a quorum is lost for good; make one member that is left the first of a new cluster.

The directory is read twice: for the plan, which is shown, and to do it. While a person thinks nothing is held, so that
Ctrl-C works as everywhere; what was shown is compared with what is found then.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

import pyraftkv
from pyraftkv import errors
from pyraftkv.cli.common import DONE, NOT_APPLIED, USAGE
from pyraftkv.cli.printing import emit, emit_json
from pyraftkv.node.recovery import Recovery

WITHOUT_THE_FLAG = (
    "Error: recover makes a NEW cluster of what one member has: say --force-new-cluster if that is what you want\n"
)
NOT_CONFIRMED = "Error: nothing was changed: there is no terminal to ask on, and no --yes\n"
CHANGED_MEANWHILE = "the directory has changed since the plan was shown: nothing was done, look at the new one"


def recover(args: argparse.Namespace) -> int:
    """Make one member the first of a new cluster, after its quorum was lost for good.

    Everything that this member has is kept; what only the lost members had is lost, and their directories can never
    take part again. Stop whatever is left of the cluster first.
    """
    if not args.force_new_cluster:
        sys.stderr.write(WITHOUT_THE_FLAG)
        return USAGE
    plan = asyncio.run(_recover(args, None))
    if args.write_out != "json":
        emit("\n".join(plan_lines(plan, args.data_dir)), "\n")
    if args.dry_run:
        return _declined(plan, args, "Nothing was changed: this was a dry run.\n", DONE)
    if not args.yes and not plan.is_resumed:
        if not sys.stdin.isatty():
            sys.stderr.write(NOT_CONFIRMED)
            return _declined(plan, args, "", USAGE)
        if not asked():
            return _declined(plan, args, "Nothing was changed.\n", NOT_APPLIED)
    done = asyncio.run(_recover(args, plan))
    if args.write_out == "json":
        emit_json(plan_json(done, args.data_dir))
    else:
        emit("\n".join(done_lines(done, args.data_dir)), "\n")
    return DONE


async def _recover(args: argparse.Namespace, shown: Recovery | None) -> Recovery:
    """Recover as was shown; without a plan, make one and do nothing. Raises `StorageError`."""

    async def agree(found: Recovery) -> bool:
        if shown is not None and (found.term, found.last_index) != (shown.term, shown.last_index):
            raise errors.StorageError(CHANGED_MEANWHILE)
        return shown is not None

    return await pyraftkv.recover(
        args.data_dir, name=args.name, advertise=args.advertise, from_learner=args.from_learner, agree=agree
    )


def _declined(plan: Recovery, args: argparse.Namespace, words: str, status: int) -> int:
    if args.write_out == "json":
        emit_json(plan_json(plan, args.data_dir))
    else:
        emit(words)
    return status


def asked() -> bool:
    """Ask on the terminal; anything but yes is no."""
    sys.stderr.write("Go on? Type yes: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() == "yes"


def plan_lines(plan: Recovery, data_dir: str) -> list[str]:
    """Return the plan, for a person who has to decide."""
    member, role = plan.member, "learner" if plan.was_learner else "member"
    lines = [
        f"{data_dir}: {role} {member.name} (id {member.id}) of cluster {plan.lost_cluster_id:x}",
        f"  has      keys: {plan.keys}, revision: {plan.revision}",
        f"  log      ends at entry {plan.last_index} of term {plan.last_term}",
        f"  knows    that entry {plan.commit_index} is committed, and so is revision {plan.known_revision}",
    ]
    if plan.is_resumed:
        return [*lines, f"  was recovered before, as cluster {plan.cluster_id:x}: only what is missing will be done"]
    lost = ", ".join(f"{row.name} (id {row.id}, {row.address})" for row in plan.lost) or "nobody"
    if plan.adopted:
        lines.append(
            f"  adopts   what stands behind ({plan.adopted}): whoever wrote that may have been told that it is done"
        )
    return [
        *lines,
        f"  becomes  the only member of a new cluster, at {member.address}",
        f"  loses    {lost}: members no more, and never again with the directories that they have",
        "What only they had is lost, acknowledged or not. If they may run still, stop them first: they could go on as",
        "a cluster of their own. If several members are left, recover only one: whose last entry has the highest term",
        "and, among equals, the longest log.",
    ]


def done_lines(done: Recovery, data_dir: str) -> list[str]:
    """Return what was done, and what is to be done next."""
    member = done.member
    return [
        f"{member.name} is the only member of cluster {done.cluster_id:x}. Start it, then let new members join it:",
        f"  pyraftkv serve --name {member.name} --data-dir {data_dir} --listen {member.address}",
        f"  pyraftkv member add NAME HOST:PORT --endpoints {member.address}",
    ]


def plan_json(plan: Recovery, data_dir: str) -> dict[str, Any]:
    """Return a plan, or what was done, for a program."""
    rows = [
        {"id": row.id, "name": row.name, "address": row.address, "incarnation": row.incarnation}
        for row in (plan.member, *plan.lost)
    ]
    return {
        "data_dir": data_dir,
        "done": plan.is_done,
        "resumed": plan.is_resumed,
        "cluster_id": plan.cluster_id,
        "lost_cluster_id": plan.lost_cluster_id,
        "member": rows[0],
        "was_learner": plan.was_learner,
        "lost": rows[1:],
        "term": plan.term,
        "commit_index": plan.commit_index,
        "last_index": plan.last_index,
        "last_term": plan.last_term,
        "adopted": plan.adopted,
        "known_revision": plan.known_revision,
        "revision": plan.revision,
        "keys": plan.keys,
    }
