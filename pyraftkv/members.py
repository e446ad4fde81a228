"""`MembersFace`: who the members are, and changing it, on every engine (see `kv.Members`)."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Protocol

from pyraftkv import errors
from pyraftkv.core import Membership
from pyraftkv.core.membership import Transition
from pyraftkv.kv import Member
from pyraftkv.protocol import (
    AddMember,
    ChangeMembers,
    DemoteMember,
    LeaveJoint,
    MemberChange,
    MembersCommand,
    MembersResult,
    PromoteMember,
    RemoveMember,
    ReplaceMember,
    UpdateMember,
)


class MembersEngine(Protocol):
    """What the face needs of its engine."""

    async def change_members(self, command: MembersCommand, timeout: float | None) -> MembersResult:
        """Do a command on the members, exactly once. Raises `NotApplied`, `MaybeApplied`."""
        ...

    async def member_table(self, timeout: float | None) -> MembersResult:
        """Return who the members are, as of now. Raises `Unavailable`."""
        ...


class MembersFace:
    """`kv.Members` in terms of two things that differ: how to change the members, and how to ask who they are."""

    def __init__(self, engine: MembersEngine) -> None:
        self._engine = engine

    async def list(self, *, timeout: float | None = None) -> builtins.list[Member]:
        """Return the members, by id, as of now (linearizable). Raises `Unavailable`."""
        return members_of(await self._engine.member_table(timeout))

    async def add(
        self,
        name: str,
        address: str,
        *,
        learner: bool = True,
        witness: bool = False,
        incarnation: int = 0,
        timeout: float | None = None,
    ) -> Member:
        """Take in a member, as a learner that receives everything and has no vote, or as a witness, which votes.

        Raises: `MemberExists`; `InvalidRequest` for a second witness, or without two voters beside it.
        """
        return await self._take_in(AddMember(name, address, incarnation, learner and not witness, witness), timeout)

    async def promote(self, member: int | str, *, timeout: float | None = None) -> None:
        """Let a learner vote, once it has caught up. Raises `LearnerNotReady` before."""
        await self.change([PromoteMember((await self._find(member, timeout)).id)], timeout=timeout)

    async def demote(self, member: int | str, *, timeout: float | None = None) -> None:
        """Make a voter a learner."""
        await self.change([DemoteMember((await self._find(member, timeout)).id)], timeout=timeout)

    async def remove(self, member: int | str, *, force: bool = False, timeout: float | None = None) -> None:
        """Take a member out, for ever; a leader hands over first. Raises `QuorumAtRisk` unless ``force``."""
        await self.change([RemoveMember((await self._find(member, timeout)).id)], force=force, timeout=timeout)

    async def update(
        self,
        member: int | str,
        *,
        name: str | None = None,
        address: str | None = None,
        priority: int | None = None,
        timeout: float | None = None,
    ) -> None:
        """Say something else of a member. Raises `MemberExists` if that is said of another one."""
        known = await self._find(member, timeout)
        await self.change([UpdateMember(known.id, name, address, priority)], timeout=timeout)

    async def replace(
        self,
        member: int | str,
        *,
        name: str | None = None,
        address: str | None = None,
        incarnation: int = 0,
        timeout: float | None = None,
    ) -> Member:
        """Take a member out and another one in, in one step; by default with its name and address."""
        old = await self._find(member, timeout)
        return await self._take_in(
            ReplaceMember(old.id, name or old.name, address or old.address, incarnation), timeout
        )

    async def change(
        self,
        changes: Sequence[MemberChange],
        *,
        transition: Transition = Transition.AUTO,
        force: bool = False,
        timeout: float | None = None,
    ) -> builtins.list[Member]:
        """Make several changes (records of `pyraftkv.protocol`) together, or none of them; return the members after it.

        Args:
            changes: In this order.
            transition: By which way; an `EXPLICIT` one stays joint until `leave_joint`.
            force: Do it even if too few active voters would be left, or one of two that have the keys.
            timeout: Seconds to wait.
        """
        return members_of(await self._engine.change_members(ChangeMembers([*changes], transition, force), timeout))

    async def leave_joint(self, *, timeout: float | None = None) -> builtins.list[Member]:
        """Leave the joint configuration that an explicit transition entered; return the members after it."""
        return members_of(await self._engine.change_members(LeaveJoint(), timeout))

    async def _take_in(self, change: AddMember | ReplaceMember, timeout: float | None) -> Member:
        result = await self._engine.change_members(ChangeMembers([change]), timeout)
        return next(member for member in members_of(result) if member.id == result.added[0])

    async def _find(self, member: int | str, timeout: float | None) -> Member:
        """Return a member by id or name; of two with one name (one takes the other's place) the new one."""
        for known in reversed(await self.list(timeout=timeout)):
            if known.name == member or (type(member) is int and known.id == member):  # True is 1, and nobody's id
                return known
        raise errors.MemberNotFound(f"there is no member {member!r}")


def members_of(result: MembersResult) -> list[Member]:
    """Return what a `MembersResult` says, a record each."""
    return [
        Member(
            id=info.id,
            name=info.name,
            address=info.address,
            role=_role_of(info.id, result.membership),
            is_leader=info.id == result.leader,
            priority=info.priority,
        )
        for info in result.members
    ]


def _role_of(member_id: int, membership: Membership) -> str:
    if member_id in membership.witnesses:
        return "witness"
    return "voter" if membership.is_voter(member_id) else "learner"
