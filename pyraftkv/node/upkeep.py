"""Upkeep: what a leader does for its cluster without being asked.

Looked at ten times a second, one decision at a time (`node.decisions`):

* the settings that its cluster is to begin with, if its configuration names any and nobody has changed them;
* the feature level, once every member has said that it can do more;
* the alarm NOSPACE: raised when the store and its machines are over the quota, cleared when they have become smaller;
* compaction, by time or by revision (`node.compaction`).

A quota is a line that a store may cross by what is under way: the alarm is an entry like any other, and up to a tenth
of a second passes before it is proposed. What is behind it in the log is refused.

1. A store stands at its quota. A put is refused, a key is deleted, a put passes, a put is refused: clients cannot tell
   what is going to happen, and every turn is two entries in the log.
2. So the alarm is cleared only when the store has become smaller by a tenth of the quota. Deleting alone makes nothing
   smaller: history is kept until it is compacted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from pyraftkv import errors
from pyraftkv.core import LEADER, Raft
from pyraftkv.node.compaction import Compactor
from pyraftkv.node.events import AlarmCleared, AlarmRaised, NodeEvent
from pyraftkv.protocol import DecidedCommand
from pyraftkv.replica import Replica
from pyraftkv.rules import Rules
from pyraftkv.settings import AlarmKind, ChangeAlarm, ChangeSettings, Settings
from pyraftkv.store.commands import Compact

logger = logging.getLogger("pyraftkv.node")

CLEARED_PART = 10
"""NOSPACE is cleared when this part of the quota is free: a tenth."""

PAUSE_SECONDS = 1.0
"""How long nothing is decided after something was refused, or came to nothing."""


class Upkeep:
    """What one member does as leader, and prepares while it is none.

    Args:
        raft: Its machine, to be looked at.
        loop: The event loop.
        replica: What was applied so far.
        decide: Does something as leader (`Member.decide`).
        offered: The feature level that all members offer; 0 if one of them has not been heard of.
        first_settings: What the cluster is to begin with; None for the defaults.
        emit: Tells whoever watches over the node.
    """

    def __init__(
        self,
        raft: Raft,
        *,
        loop: asyncio.AbstractEventLoop,
        replica: Callable[[], Replica],
        decide: Callable[[DecidedCommand], Coroutine[Any, Any, object]],
        offered: Callable[[], int],
        first_settings: ChangeSettings | None,
        emit: Callable[[NodeEvent], None],
    ) -> None:
        self._raft = raft
        self._loop = loop
        self._replica = replica
        self._decide = decide
        self._offered = offered
        self._first_settings = first_settings
        self._emit = emit
        self._told: list[str] = []
        """The alarms that this member has told of."""
        self._compactor = Compactor()
        self._deciding: asyncio.Task[None] | None = None
        self._not_before = loop.time()

    def tend(self) -> None:
        """Look at everything, and decide what is due if this member leads. Call every 100 ms or so. O(members)."""
        now, replica = self._loop.time(), self._replica()
        settings, revision = replica.rules.settings, replica.store.published_revision
        self._compactor.observe(settings, revision=revision, now=now)
        self._tell(replica.rules)
        is_deciding = self._deciding is not None and not self._deciding.done()
        if self._raft.role is not LEADER or is_deciding or now < self._not_before:
            return
        command = self._next_settings(settings) or self._next_alarm(replica) or self._next_compaction(replica, now)
        if command is not None:
            self._deciding = self._loop.create_task(self._do(command), name="pyraftkv-upkeep")

    async def close(self) -> None:
        """See the decision under way end; whoever it waits for has failed it before."""
        if self._deciding is not None:
            await asyncio.wait([self._deciding])

    async def _do(self, command: DecidedCommand) -> None:
        try:
            await self._decide(command)
        except (errors.NotApplied, errors.MaybeApplied) as error:
            logger.info("%s came to nothing: %s", type(command).__name__, error)
            self._not_before = self._loop.time() + PAUSE_SECONDS

    def _tell(self, rules: Rules) -> None:
        """Tell of alarms that came and went, whoever leads. O(1) while there are none."""
        if rules.is_quiet and not self._told:
            return
        before, self._told = self._told, [alarm.text for alarm in rules.alarms]
        for text in self._told:
            if text not in before:
                self._emit(AlarmRaised(text))
        for text in before:
            if text not in self._told:
                self._emit(AlarmCleared(text))

    def _next_settings(self, settings: Settings) -> ChangeSettings | None:
        if self._first_settings is not None and settings.version == 0:
            return self._first_settings
        offered = self._offered()
        return ChangeSettings(feature_level=offered) if offered > settings.feature_level else None

    def _next_alarm(self, replica: Replica) -> ChangeAlarm | None:
        """Return what is to be done about NOSPACE: every member holds the same, so the leader speaks for all."""
        rules, size_bytes = replica.rules, replica.store.size_bytes + replica.machines.size_bytes
        quota_bytes = rules.settings.quota_bytes_max
        if rules.has(AlarmKind.NOSPACE):
            has_room = quota_bytes is None or size_bytes <= quota_bytes - quota_bytes // CLEARED_PART
            return ChangeAlarm(AlarmKind.NOSPACE, 0) if has_room else None
        if quota_bytes is None or size_bytes <= quota_bytes:
            return None
        logger.warning("%d bytes in store and machines, over the quota of %d: no more writes", size_bytes, quota_bytes)
        return ChangeAlarm(AlarmKind.NOSPACE, self._raft.id, is_raised=True)

    def _next_compaction(self, replica: Replica, now: float) -> Compact | None:
        if replica.rules.has(AlarmKind.CORRUPT):
            return None
        store = replica.store
        revision = self._compactor.due(
            replica.rules.settings,
            revision=store.published_revision,
            compact_revision=store.compact_revision,
            now=now,
        )
        return Compact(revision) if revision is not None else None


def as_first(settings: Settings) -> ChangeSettings:
    """Return the change that sets all of ``settings`` in a cluster whose settings nobody has changed."""
    return ChangeSettings(
        quota_bytes=settings.quota_bytes,
        lease_ttl_seconds_min=settings.lease_ttl_seconds_min,
        compaction_mode=settings.compaction_mode,
        compaction_seconds=settings.compaction_seconds,
        compaction_revisions=settings.compaction_revisions,
        if_version=0,
        lease_reads=settings.lease_reads,
    )
