"""Recovery: when a quorum is lost for good, one member that is left becomes the first of another cluster.

Without a quorum nothing can be decided, and that is right: the others may be there, cut off, and going on. Whether they
are gone is known to people alone. So nobody recovers by itself. It is done by hand, to the directory of one member that
does not run, and by one entry at the end of its log, `Recover`: from there on this is another cluster, this member is
all of it, and everything before the entry is committed, because it says so.

1.  *Everything in the log is kept*, also what stands behind the commit index. What a member acknowledged it has on its
    disk, and it learns only later that it was committed: the commit index on its disk may lag behind. To cut the tail
    off could lose an acknowledged write. To keep it can only bring in writes whose callers were never told what became
    of them.
2.  *What only the lost members had is lost*, and nobody can say what it was. A write that was acknowledged is on a
    quorum; this one member need not have been in it. Of several that are left, recover the one that the others would
    vote for (Raft §5.4.1): whose last entry has the highest term and, of those, the one with the longest log. A longer
    log that ends in an older term may be that of a leader which nobody followed any more.
3.  *It is another cluster*, with a random id. If the others come back after all, or are recovered as well, each side
    refuses the other: two clusters that decide for themselves must not take each other's word. For the same reason the
    directory gets a new incarnation, and an older copy of it takes part in nothing.
4.  *Ids go on rising*, and so do terms, indexes and revisions: a watch or a session of before is not led astray.
5.  *The log comes first, the identity second.* The entry, its term and its commit index become durable as one batch: a
    crash leaves all of it or nothing. Until then this is the old member as it was. From then on it is the new cluster,
    even if the identity slots do not know it yet: whoever opens the directory next binds them as the log says
    (`finish`). The other way round a crash would leave an identity whose log belongs to somebody else.

Source: etcd, "Disaster recovery"; thesis §4.1 says why nothing less than a person may do this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from random import Random, SystemRandom
from typing import Self

from pyraftkv import codec, errors
from pyraftkv._record import record
from pyraftkv.core import HOLLOW, MEMBERSHIP, Entry, HardState, Membership, Save
from pyraftkv.futures import fulfil
from pyraftkv.log.base import Identity, Recovered, Storage
from pyraftkv.machines import Machines
from pyraftkv.node.applier import STEP_BUDGET, restore
from pyraftkv.protocol import MemberInfo, Recover
from pyraftkv.replica import BUSY, Replica

ENTRIES_PER_TURN = 64
"""Entries that are applied before others have their turn on the loop."""

NOTHING = Recovered(Identity(0, 0, 0, 0), HardState(), None, [], 1)
"""What stands in a directory that was not opened yet."""


@record
class Recovery:
    """What a recovery is about to do, or has done."""

    member: MemberInfo
    """The survivor as the new cluster knows it."""
    was_learner: bool
    """Whether it did not vote before."""
    cluster_id: int
    """The new cluster's."""
    lost_cluster_id: int
    """The one before."""
    lost: list[MemberInfo]
    """Who is no member any more: everybody else."""
    term: int
    """The term that begins with the new cluster."""
    commit_index: int
    """What this member knew to be committed."""
    last_index: int
    """The last entry of its log. What stands behind `commit_index` is adopted."""
    last_term: int
    """That entry's term. Of several members that are left, the one with the highest has what the others may lack."""
    revision: int
    """The last revision, of all that is kept."""
    known_revision: int
    """The last revision that this member knew to be committed."""
    keys: int
    """How many keys there are."""
    is_done: bool = False
    """Whether it has been done; otherwise nothing has changed yet."""
    is_resumed: bool = False
    """Whether it stood in the log already: begun before, and finished by this call unless it had been finished then."""

    @property
    def adopted(self) -> int:
        """How many entries are kept that were not known to be committed."""
        return self.last_index - self.commit_index


Agree = Callable[[Recovery], Awaitable[bool]]
"""Is shown what is about to be done, and decides."""


async def agreed(_: Recovery) -> bool:
    """Agree to everything."""
    return True


async def recover(
    storage: Storage,
    *,
    name: str | None = None,
    address: str | None = None,
    from_learner: bool = False,
    agree: Agree = agreed,
    random: Random | None = None,
) -> Recovery:
    """Make the member whose directory this is the first of a new cluster; see `pyraftkv.recover`.

    A recovery that was interrupted is finished, with what was decided then: the log says it.

    Args:
        storage: Not started; it is started and closed here.
        name: What the member is called from now on; as before when None.
        address: Where it is reached from now on; as before when None.
        from_learner: Accept a member that did not vote.
        agree: Sees the plan while the directory is locked; nothing is changed unless it returns True.
        random: Mints the cluster id and the incarnation.

    Raises:
        StorageError: The directory is locked, damaged, empty, or of a member that cannot be recovered.
    """
    async with _Survivor(storage) as survivor:
        await survivor.read()
        plan = survivor.plan(name=name, address=address, random=random or SystemRandom())
        if plan.was_learner and not from_learner and not plan.is_resumed:
            raise errors.StorageError(
                f"{plan.member.name!r} is a learner, and may lack more than a voter: recover a voter if one is left"
            )
        if not await agree(plan):
            return plan
        if not plan.is_resumed:
            await survivor.append(plan)
        await survivor.bind()
        return replace(plan, is_done=True)


async def finish(storage: Storage, recovered: Recovered) -> Recovered:
    """Bind the identity as the log says, if a recovery of this member was interrupted between the two."""
    command, identity = own_recovery(recovered), recovered.identity
    if command is None:
        return recovered
    if (identity.cluster_id, identity.incarnation) == (command.cluster_id, command.member.incarnation):
        return recovered
    identity = await storage.rebind(cluster_id=command.cluster_id, incarnation=command.member.incarnation)
    return replace(recovered, identity=identity)


def own_recovery(recovered: Recovered) -> Recover | None:
    """Return the last recovery after the snapshot, if it is this member's. O(entries).

    Whoever joined the new cluster later has the same entry in its log, and another id.
    """
    for entry in reversed(recovered.entries):
        if entry.kind is MEMBERSHIP and entry.payload and entry.index <= recovered.hard_state.commit:
            logged = codec.decode_logged(entry.payload)
            if isinstance(logged, Recover):
                return logged if logged.member.id == recovered.identity.member_id else None
    return None


class _Survivor:
    """The directory of a member that does not run, open for its recovery."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._recovered = NOTHING
        self._begun: Recover | None = None
        """The recovery that is the log's last entry: it was done, or begun, and nothing has happened since."""
        self._replica = Replica(Machines(keeps_all=True))
        self._known_revision = 0
        self._known_members: dict[int, MemberInfo] = {}
        """Who the members were at the commit index."""
        self._saved: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        self._recovered = await self._storage.start(failed=self._failed, full=self._filled)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._saved.cancel()
        await self._storage.close()

    def _failed(self, error: BaseException) -> None:
        if not self._saved.done():
            self._saved.set_exception(error)
            self._saved.exception()  # whoever waits for it gets it; perhaps nobody does

    def _filled(self, is_full: bool) -> None:  # noqa: FBT001  (the storage's listener)
        if is_full:
            self._failed(errors.StorageFailed("the disk is full: nothing was recovered"))

    async def read(self) -> None:
        """Apply everything that stands in the log, but for a recovery at its very end.

        Raises: `StorageError` if there is nothing, or something that this version cannot apply.
        """
        recovered = self._recovered
        snapshot, commit, entries = recovered.snapshot, recovered.hard_state.commit, recovered.entries
        if not recovered.identity.member_id or not (snapshot or entries):
            raise errors.StorageError("the directory holds nothing: its member has never been part of a cluster")
        own = recovered.identity.member_id
        is_hollow = any(entry.kind is HOLLOW for entry in entries)
        if is_hollow or (snapshot is not None and own in snapshot.membership.witnesses):
            raise errors.StorageError("the directory is a witness's, which keeps no keys: recover another member")
        self._begun = own_recovery(replace(recovered, entries=entries[-1:]))
        if snapshot is not None:
            self._replica = await restore(snapshot, self._storage.read_snapshot(snapshot), self._replica)
        for entry in entries[:-1] if self._begun is not None else entries:
            if entry.index == commit + 1:
                self._note_what_is_known()
            consequence = self._replica.apply(entry)
            while consequence is BUSY:
                await asyncio.sleep(0)
                consequence = self._replica.step(STEP_BUDGET)
            if entry.index % ENTRIES_PER_TURN == 0:
                await asyncio.sleep(0)
        if self._replica.applied_index <= commit:
            self._note_what_is_known()

    def _note_what_is_known(self) -> None:
        self._known_revision = self._replica.store.published_revision
        self._known_members = dict(self._replica.roster.members)

    def plan(self, *, name: str | None, address: str | None, random: Random) -> Recovery:
        """Return what is to be done. Raises `StorageError` if this is no member any more."""
        replica, state = self._replica, self._recovered.hard_state
        own = self._recovered.identity.member_id
        # A removal in the tail does not bind: whether it was committed is not known, and nobody else is left.
        before = replica.roster.members.get(own) or self._known_members.get(own)
        if before is None:
            raise errors.StorageError("the directory's member was removed from its cluster, and knows only what was")
        member = MemberInfo(
            own,
            before.name if name is None else name,
            before.address if address is None else address,
            random.getrandbits(63) | 1,
        )
        command = self._begun or Recover(random.getrandbits(56) | 1, member)
        return Recovery(
            member=command.member,
            was_learner=own in replica.membership.learners,
            cluster_id=command.cluster_id,
            lost_cluster_id=replica.roster.cluster_id,
            lost=[row for id_, row in sorted(replica.roster.members.items()) if id_ != own],
            term=state.term if self._begun else state.term + 1,
            commit_index=min(state.commit, replica.applied_index),
            last_index=replica.applied_index,
            last_term=replica.applied_term,
            known_revision=self._known_revision,
            revision=replica.store.published_revision,
            keys=replica.store.key_count,
            is_resumed=self._begun is not None,
        )

    async def append(self, plan: Recovery) -> None:
        """Begin the new cluster in the log: from here on it is what this directory holds. Raises `StorageFailed`."""
        assert not plan.is_resumed, "a cluster is begun once"
        payload = codec.encode_logged(Recover(plan.cluster_id, plan.member))
        entry = Entry(plan.last_index + 1, plan.term, payload, MEMBERSHIP)
        self._replica.apply(entry)
        assert self._replica.membership == Membership(voters=frozenset({plan.member.id})), "one member, who votes"
        state = HardState(term=plan.term, vote=plan.member.id, commit=entry.index)
        self._storage.save(Save(1, state, [entry], None), partial(fulfil, self._saved))
        await self._saved
        self._recovered = replace(self._recovered, hard_state=state, entries=[entry])

    async def bind(self) -> None:
        """Let the identity follow the log. Raises `StorageFailed`."""
        await finish(self._storage, self._recovered)
