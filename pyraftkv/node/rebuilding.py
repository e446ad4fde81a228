"""Rebuilding: a member whose directory is damaged comes back as another one, with everything the cluster has.

What a damaged log has lost nobody can tell, and a member that has forgotten an acknowledgement or a vote must not count
as if it had not (`roster`, rule 2). So the member is taken out for ever, and a new one of the same name and address
comes in, with an empty directory and a new incarnation: as a learner, that counts for nothing until it has what the
others have, and then asks for a vote.

1. The members are asked who they are. The directory's identity says which of them this one is.
2. A new directory is made beside the damaged one. It has an incarnation before anybody is asked.
3. The cluster takes the old member out and the new one in, in one step of its log. It needs a majority for that, of the
   members as they were, this one included: with two of three there is one, with one of two there is none, and nothing
   has happened. (The leader looks as well whether enough would be left.)
4. The new directory is bound to what the cluster said. The damaged one is set aside: nothing is ever deleted.
5. The member runs until it has caught up and votes, and is stopped: it is started again as it always was.

*A crash anywhere* leaves something from which the same command goes on: before 3 the incarnation in the new directory,
after it a row with that incarnation among the members. Whether the member votes is noted in the new directory before 3,
because after it nobody else knows. As a story:

1. A voter is exchanged for a learner, and its directory put in place. The machine goes down before it has caught up.
2. The same command comes again. The member that it finds is a learner, and it exchanges that for another learner.
3. All is well, and nobody notices that the cluster has a vote less than before.

So the note goes when the member votes, and one that is found in the damaged directory counts. A new directory that is
bound to a member whom the cluster has taken out since is refused before anything has happened: its incarnation must not
come in again.

What was acknowledged is on a majority. The damaged member may have been one of it; but the step in 3 is committed by a
majority of the same members without it, by a leader that has all that was ever acknowledged (Raft §5.4), and stands
behind all of that in their logs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random, SystemRandom

from pyraftkv import errors
from pyraftkv._record import record
from pyraftkv.client import Client
from pyraftkv.log import FileStorage
from pyraftkv.log.base import Identity
from pyraftkv.log.fs import FileSystem
from pyraftkv.log.worker import ThreadWorker, Worker, WorkerFactory, run_on
from pyraftkv.node.aside import NOTHING, OTHER, identity_at, put_in_place, read_note, what_stands_at, write_note
from pyraftkv.node.node import Node
from pyraftkv.protocol import AddMember, ChangeMembers, MemberChange, MemberInfo, MembersResult, RemoveMember
from pyraftkv.transport.base import Dialer

NEW_SUFFIX = ".rebuild"
"""What the new directory is called until it takes the place of the damaged one."""

POLL_SECONDS = 0.05


@record
class Rebuilt:
    """What came of a rebuilding."""

    member: MemberInfo
    """Who the member is from now on."""
    replaced: int
    """The id of the member that it was; 0 if that had been taken out already."""
    aside: str
    """Where the damaged directory is; empty if there was none."""
    votes: bool
    """Whether it votes, as it did before."""


class Rebuilding:
    """One member that is to be rebuilt.

    Args:
        path: Its directory.
        name: What it is called, where neither its directory nor the cluster can say that any more.
        join: Where other members are.
        dialer: How to reach them.
        random: Mints the incarnation.
        fs: Where the files are, for a simulated disk.
        worker: Makes the workers, for a simulator; threads unless told otherwise.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None,
        join: Sequence[str],
        dialer: Dialer,
        random: Random | None = None,
        fs: FileSystem | None = None,
        worker: WorkerFactory = ThreadWorker,
    ) -> None:
        self._path = os.fspath(Path(path))
        self._new = f"{self._path}{NEW_SUFFIX}"
        self._name = name
        self._join = list(join)
        self._dialer = dialer
        self._random = random or SystemRandom()
        self._fs = fs
        self._make_worker = worker

    async def replace(self, address: str | None) -> Rebuilt:
        """Take the old member out and the new one in, and put its directory in place.

        Args:
            address: Where the new member is reached; as the old one when None.

        Raises:
            DataDirLocked: The member runs.
            ForeignDataDir: The directory belongs to another cluster.
            MemberNotFound: The cluster does not know the member, or nothing here says which it was, and no name was
                given.
            QuorumAtRisk: Too few would be left to decide anything.
            Unavailable: No majority answers: nothing has happened.
            ConfigurationError: The path is no directory's.
        """
        disk = self._make_worker("pyraftkv-rebuild")
        try:
            own = await run_on(disk, self._examine)
            rng = Random(self._random.getrandbits(64))
            async with Client(self._join, dialer=self._dialer, name="rebuild", rng=rng) as client:
                member, replaced, votes = await self._exchange(client, disk, own, address)
            aside = await run_on(disk, partial(put_in_place, self._new, self._path, fs=self._fs))
        finally:
            disk.stop()
        return Rebuilt(member, replaced, aside, votes)

    def _examine(self) -> Identity | None:
        """Return whose the directory is, as `identity_at`: before anybody is asked, what here can be wrong.

        Raises: `DataDirLocked`, `ConfigurationError`; `MemberNotFound` if no answer could say who the member was.
        """
        there = what_stands_at(self._path, fs=self._fs)
        if there == OTHER:
            raise errors.ConfigurationError(f"{self._path} is no directory")
        own = identity_at(self._path, fs=self._fs)
        is_begun = what_stands_at(self._new, fs=self._fs) != NOTHING  # and may be of a member by now
        if self._name is None and not is_begun and (own is None or not own.member_id):
            what = "does not exist" if there == NOTHING else "does not say whose it is"
            raise errors.MemberNotFound(f"{self._path} {what}: if that is right, say with name= which member it was")
        return own

    async def _exchange(
        self, client: Client, disk: Worker, own: Identity | None, address: str | None
    ) -> tuple[MemberInfo, int, bool]:
        """Let the cluster take the old member out and the new one in, and bind the new directory; it is closed then.

        Args:
            client: Of the other members.
            disk: Where notes are read and written.
            own: Whose the damaged directory is, as far as it can say.
            address: As for `replace`.

        Returns:
            The new member, the id of the old one or 0, and whether that had a vote.

        Raises: as `replace`.
        """
        table = await client.member_table(None)
        if own is not None and own.cluster_id not in (0, table.cluster_id):
            raise errors.ForeignDataDir(
                f"{self._path} belongs to cluster {own.cluster_id:x}, and {', '.join(self._join)} to "
                f"{table.cluster_id:x}"
            )
        storage = FileStorage(self._new, fs=self._fs, worker=self._make_worker, random=self._random)
        new = (await storage.start(failed=_ignore)).identity
        try:
            old, member = None, _with(new.incarnation, table)
            if member is not None:
                votes = await run_on(disk, partial(read_note, self._new, fs=self._fs)) is not False
            else:
                if new.member_id:
                    raise errors.ForeignDataDir(
                        f"{self._new} is of member {new.member_id}, which was taken out: move it away, and come again"
                    )
                old = self._old(table, own.member_id if own is not None else 0)
                votes = old is None or old.id in table.membership.voters
                votes = votes or bool(await run_on(disk, partial(read_note, self._path, fs=self._fs)))
                await run_on(disk, partial(write_note, self._new, votes=votes, fs=self._fs))
                table_now = await client.change_members(self._changes(old, address, new.incarnation), None)
                member = _with(new.incarnation, table_now)
                assert member is not None, "who was taken in is a member"
            await storage.identify(cluster_id=table.cluster_id, member_id=member.id)
        finally:
            await storage.close()
        return member, old.id if old is not None else 0, votes

    def _old(self, table: MembersResult, own: int) -> MemberInfo | None:
        """Return the member that is to go; None if it is gone. Raises `MemberNotFound` if nobody can say who it was."""
        row = next((row for row in table.members if row.id == own or row.name == self._name), None)
        if row is None and self._name is None:
            raise errors.MemberNotFound(
                f"{self._path} is of no member of this cluster (any more): say with name= who it is to be"
            )
        return row

    def _changes(self, old: MemberInfo | None, address: str | None, incarnation: int) -> ChangeMembers:
        """Return the command that takes one out and the other in. Raises `ConfigurationError`."""
        name = old.name if old is not None else self._name
        reached = old.address if old is not None and address is None else address
        if reached is None or name is None:
            raise errors.ConfigurationError("say where the member is reached: the cluster does not know it any more")
        changes: list[MemberChange] = [] if old is None else [RemoveMember(old.id)]
        return ChangeMembers([*changes, AddMember(name, reached, incarnation, learner=True)])


def _with(incarnation: int, table: MembersResult) -> MemberInfo | None:
    return next((row for row in table.members if row.incarnation == incarnation), None)


def _ignore(_: BaseException) -> None:
    """Whoever waits for the storage gets its error."""


async def run_until_level(node: Node, *, votes: bool) -> None:
    """Run a node that has just been taken in until it has what the others have, and votes if it is to.

    Raises: what starting it may raise, and what stops it.
    """
    async with node:
        assert node.failed is not None
        while not node.failed.done():
            status = await node.status()
            is_level = status.leader and status.applied_index >= status.commit_index > 0
            if is_level and not (votes and status.role == "learner"):
                break
            await asyncio.wait([node.failed], timeout=POLL_SECONDS)
