"""Joining a cluster that runs: ask to be taken in, bind the directory, start, and ask to vote when there is enough.

A crash at any point leaves something from which the next start goes on:

1.  The directory has an incarnation, durably, before anybody is asked. *Crash here*: the next start asks for the first
    time.
2.  A member of the cluster is asked to add this one, by its name and incarnation, as a learner. *Crash here*, or an
    answer that is lost: the next start asks again, and is told the same id, for the same name with the same
    incarnation is the same member.
3.  The directory is bound to the cluster and to that id. *Crash here*: it holds no entry, and does not need any. The
    leader knows the address, dials it, and sends what it has. From here on nobody is asked any more.
4.  It has received what the others have, and asks to be promoted. As long as it lacks more than what is just on its
    way the leader refuses that, and it asks again. *Crash here*: it comes back as the learner that it is.

A learner that takes part in no quorum cannot hold anybody up, however long it takes (thesis §4.2.1). A wiped directory
has another incarnation, and is refused under a name that is taken: it has to `replace` the member that it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from random import Random

from pyraftkv import errors
from pyraftkv.client import Client
from pyraftkv.node.member import Member
from pyraftkv.protocol import AddMember, ChangeMembers, MembersResult, PromoteMember
from pyraftkv.transport.base import Transport

logger = logging.getLogger("pyraftkv.node")

ASK_SECONDS = 5.0
"""How long one attempt to be added takes before it says so and begins again."""

PAUSE_SECONDS = 0.2
"""The pause between two attempts, and between two looks at whether there is anything to ask for."""


async def ask_in(
    name: str, *, incarnation: int, addresses: Sequence[str], transport: Transport, rng: Random, witness: bool = False
) -> MembersResult:
    """Ask the cluster at ``addresses`` to add this member as a learner, or as its witness, until it has.

    Raises: `MemberExists`, `InvalidRequest`, `QuorumAtRisk`: it never will.
    """
    command = ChangeMembers([AddMember(name, transport.address, incarnation, learner=not witness, witness=witness)])
    async with Client(addresses, dialer=transport.dialer(), name=name, timeout=ASK_SECONDS, rng=rng) as client:
        while True:
            try:
                return await client.change_members(command, None)
            except (errors.Unavailable, errors.MaybeApplied) as error:
                logger.warning("%s: nobody at %s has added it yet: %s", name, ", ".join(addresses), error)
            await asyncio.sleep(PAUSE_SECONDS)


async def become_voter(member: Member, name: str) -> None:
    """Ask to be promoted, until this member votes; then wait for the end of the node.

    What is applied here may be of long ago, and says that a member votes which was demoted while it was away. So the
    last word is the leader's.
    """
    own = member.raft.id
    while not await _votes(member, own):
        await asyncio.sleep(PAUSE_SECONDS)
        if not member.is_level or own not in member.replica.membership.learners:
            continue  # It would be refused, and every refusal is an entry in the log.
        try:
            await member.change_members(ChangeMembers([PromoteMember(own)]), ASK_SECONDS)
        except errors.LearnerNotReady:
            continue
        except (errors.NotApplied, errors.MaybeApplied) as error:
            logger.warning("%s: not promoted yet: %s", name, error)
    logger.info("%s votes from now on", name)
    await asyncio.get_running_loop().create_future()


async def _votes(member: Member, own: int) -> bool:
    """Whether a member has a vote, as of now; False if that cannot be told."""
    if own not in member.replica.membership.voters:
        return False
    try:
        await member.reads.join(member.deadline(ASK_SECONDS))
    except errors.Unavailable:
        return False
    return own in member.replica.membership.voters
