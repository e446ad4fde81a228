"""`SettingsFace` and `AlarmsFace`: what the cluster is set to, and what is wrong with it, on every engine."""

from __future__ import annotations

import builtins
from abc import ABC, abstractmethod

from pyraftkv.settings import (
    Alarm,
    AlarmKind,
    ChangeAlarm,
    ChangeSettings,
    CompactionMode,
    RulesCommand,
    RulesResult,
    Settings,
)


class SettingsFace:
    """`kv.ClusterSettings` in terms of two things that differ: how to change the rules, and how to ask for them."""

    def __init__(self, engine: Administered) -> None:
        self._engine = engine

    async def get(self, *, timeout: float | None = None) -> Settings:
        """Return the settings, as of now (linearizable). Raises `Unavailable`."""
        return (await self._engine.rules_table(timeout)).settings

    async def change(
        self,
        *,
        quota_bytes: int | None = None,
        lease_ttl_seconds_min: int | None = None,
        compaction_mode: CompactionMode | None = None,
        compaction_seconds: int | None = None,
        compaction_revisions: int | None = None,
        lease_reads: bool | None = None,
        if_version: int | None = None,
        timeout: float | None = None,
    ) -> Settings:
        """Set what is given, all of it or nothing, and return the settings after it.

        Raises: `InvalidRequest`, `SettingsChanged` if they are not at ``if_version``.
        """
        command = ChangeSettings(
            quota_bytes=quota_bytes,
            lease_ttl_seconds_min=lease_ttl_seconds_min,
            compaction_mode=compaction_mode,
            compaction_seconds=compaction_seconds,
            compaction_revisions=compaction_revisions,
            lease_reads=lease_reads,
            if_version=if_version,
        )
        return (await self._engine.change_rules(command, timeout)).settings


class AlarmsFace:
    """`kv.Alarms`, as `SettingsFace`."""

    def __init__(self, engine: Administered) -> None:
        self._engine = engine

    async def list(self, *, timeout: float | None = None) -> builtins.list[Alarm]:
        """Return what is wrong, as of now (linearizable). Raises `Unavailable`."""
        return (await self._engine.rules_table(timeout)).alarms

    async def disarm(
        self, kind: AlarmKind = AlarmKind.NONE, member: int = 0, *, timeout: float | None = None
    ) -> builtins.list[Alarm]:
        """Clear alarms, by default all of them; return those that there were. What still is wrong is raised again."""
        return (await self._engine.change_rules(ChangeAlarm(kind, member), timeout)).changed


class Administered(ABC):
    """What an engine needs for the two faces, and what else concerns the upkeep of a cluster."""

    @abstractmethod
    async def change_rules(self, command: RulesCommand, timeout: float | None) -> RulesResult:
        """Do a command on settings and alarms, exactly once. Raises `NotApplied`, `MaybeApplied`."""

    @abstractmethod
    async def rules_table(self, timeout: float | None) -> RulesResult:
        """Return settings and alarms, as of now. Raises `Unavailable`."""

    @abstractmethod
    async def space_won_back(self, revision: int, timeout: float | None) -> None:
        """Wait until the member that answers has removed what was compacted at ``revision``. Raises `Unavailable`."""

    @property
    def settings(self) -> SettingsFace:
        """What the cluster is set to, and changing it (see `kv.ClusterSettings`)."""
        return SettingsFace(self)

    @property
    def alarms(self) -> AlarmsFace:
        """What is wrong with the cluster (see `kv.Alarms`)."""
        return AlarmsFace(self)
