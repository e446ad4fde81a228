"""The rules of a cluster as a function of its log: settings, alarms, and which commands they let pass.

`apply` consults these and nothing local, so that a command is refused by all members or by none:

1. A member is over its quota, and refuses a put that the others apply. From here on it has another state than they,
   and nobody notices (etcd#18667 is one of this family).
2. So being over the quota is an entry in the log: the leader raises an *alarm*, and whatever stands behind it meets
   the same alarm on every member.
3. etcd applies the put that meets it, and tells the client that it failed. Here what is refused has changed nothing.

An alarm does not know why it was raised; who raises one clears it again (`node.upkeep`), or an operator does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pyraftkv.errors import Corrupt, InvalidRequest, NoSpace, SettingsChanged, UnsupportedFormat
from pyraftkv.settings import (
    FEATURE_LEVEL,
    LEASE_TTL_SECONDS_DEFAULT,
    Alarm,
    AlarmKind,
    ChangeAlarm,
    ChangeSettings,
    CompactionMode,
    RulesCommand,
    RulesResult,
    Settings,
)
from pyraftkv.statemachine import Operate
from pyraftkv.store.commands import Compact, GrantLease, LeaseUpkeep, LoggedCommand, PutBatch, PutKey, Transaction

ALARMS_MAX = 256
"""Alarms at a time; what would be one more is not raised: two for each of the members that there can be, and as many
again for some that were removed."""

LEASE_TTL_SECONDS_MAX = 9_000_000_000
COMPACTION_SECONDS_MAX = 10 * 365 * 24 * 3600
REVISIONS_MAX = 1 << 62

_BOUNDS: dict[str, tuple[int, int]] = {
    "quota_bytes": (-1, REVISIONS_MAX),
    "lease_ttl_seconds_min": (LEASE_TTL_SECONDS_DEFAULT, LEASE_TTL_SECONDS_MAX),  # less the store does not grant
    "compaction_seconds": (1, COMPACTION_SECONDS_MAX),
    "compaction_revisions": (1, REVISIONS_MAX),
}
"""The least and the most of a setting."""


def takes_room(command: object) -> bool:
    """Whether a command may make the store larger: a put, wherever it stands, or a lease. O(operations)."""
    if isinstance(command, Transaction):
        return any(takes_room(operation) for operation in (*command.success, *command.failure))
    return isinstance(command, PutKey | PutBatch | GrantLease)


def complaint_of_settings(settings: Settings | ChangeSettings) -> str:
    """Return what is wrong with settings, or with a change of them: one is out of its bounds. Empty if nothing is."""
    for name, (least, most) in _BOUNDS.items():
        value = getattr(settings, name)
        if value is not None and not least <= value <= most:
            return f"{name} is between {least} and {most}, not {value}"
    return ""


class Rules:
    """Settings and alarms.

    Invariants: settings are within their bounds; there are at most `ALARMS_MAX` alarms.
    """

    __slots__ = ("_alarms", "settings")

    def __init__(self) -> None:
        self.settings = Settings()
        self._alarms: frozenset[tuple[AlarmKind, int]] = frozenset()
        """Kinds and members."""

    @property
    def alarms(self) -> list[Alarm]:
        """What is wrong, by kind and member. O(alarms)."""
        return _listed(self._alarms)

    @property
    def is_quiet(self) -> bool:
        """Whether there is no alarm. O(1)."""
        return not self._alarms

    def has(self, kind: AlarmKind) -> bool:
        """Whether there is an alarm of that kind. O(alarms)."""
        return any(raised is kind for raised, _ in self._alarms)

    def admit(self, command: LoggedCommand | LeaseUpkeep | Compact | Operate, *, grows: bool = False) -> None:
        """Refuse what alarms stand against. O(1) while there is none. Raises `Corrupt`, `NoSpace`.

        Args:
            command: About to be applied.
            grows: Whether it is an operation that may make its machine larger.
        """
        if not self._alarms:
            return
        if self.has(AlarmKind.CORRUPT):
            raise Corrupt("members of the cluster disagree, and nobody can say who is right: nothing may be changed")
        if self.has(AlarmKind.NOSPACE) and (grows or takes_room(command)):
            quota = self.settings.quota_bytes_max
            raise NoSpace(
                f"the store and its machines are over their quota of {quota} bytes: delete and compact, or raise it"
                if quota is not None
                else "the alarm NOSPACE stands, though there is no quota any more: it is about to be cleared"
            )

    # --- Changing --------------------------------------------------------------------------------------------------

    def apply(self, command: RulesCommand) -> RulesResult:
        """Do what somebody asks for.

        Raises:
            InvalidRequest: A setting is out of its bounds, or is the leader's alone to decide.
            SettingsChanged: They are not at the version that the command names.
        """
        if isinstance(command, ChangeSettings):
            if command.feature_level is not None:
                raise InvalidRequest("the feature level is raised by the leader, once every member offers it")
            return self._change(command)
        if command.is_raised:
            raise InvalidRequest("an alarm is raised by the leader")
        return self._change_alarm(command)

    def decide(self, command: RulesCommand) -> RulesResult:
        """Do what the leader has decided.

        Raises:
            UnsupportedFormat: The cluster is past this version: the member must stop.
            InvalidRequest: A setting is out of its bounds.
            SettingsChanged: They are not at the version that the command names.
        """
        if isinstance(command, ChangeAlarm):
            return self._change_alarm(command)
        level = command.feature_level
        if level is not None and level > FEATURE_LEVEL:
            raise UnsupportedFormat(f"the cluster is at feature level {level}, this version knows {FEATURE_LEVEL}")
        return self._change(command)

    def _change(self, command: ChangeSettings) -> RulesResult:
        settings = self.settings
        if command.if_version not in (None, settings.version):
            raise SettingsChanged(
                f"the settings are at version {settings.version}, not {command.if_version}", version=settings.version
            )
        changes: dict[str, Any] = {
            name: getattr(command, name) for name in (*_BOUNDS, "compaction_mode", "lease_reads")
        }
        changes = {name: value for name, value in changes.items() if value is not None}
        complaint = complaint_of_settings(command)
        if complaint:
            raise InvalidRequest(complaint)
        if changes:
            changes["version"] = settings.version + 1
        if command.feature_level is not None:
            changes["feature_level"] = max(settings.feature_level, command.feature_level)
        self.settings = replace(settings, **changes)
        return self.result()

    def _change_alarm(self, command: ChangeAlarm) -> RulesResult:
        before = self._alarms
        if command.is_raised:
            if len(before) < ALARMS_MAX and command.kind is not AlarmKind.NONE:
                self._alarms = before | {(command.kind, command.member)}
        else:
            self._alarms = frozenset(alarm for alarm in before if not _names(command, *alarm))
        return replace(self.result(), changed=_listed(before ^ self._alarms))

    def result(self) -> RulesResult:
        """Return settings and alarms as they are."""
        return RulesResult(self.settings, self.alarms)

    # --- Snapshots -------------------------------------------------------------------------------------------------

    def plain(self) -> list[Any]:
        """Return everything as plain values; equal rules have equal ones."""
        s = self.settings
        settings = [s.version, s.quota_bytes, s.lease_ttl_seconds_min, int(s.compaction_mode)]
        settings += [s.compaction_seconds, s.compaction_revisions, s.feature_level, s.lease_reads]
        return [settings, [[int(alarm.kind), alarm.member] for alarm in self.alarms]]

    @classmethod
    def of_plain(cls, plain: list[Any]) -> Rules:
        """Rebuild what `plain` returned. Raises `UnsupportedFormat` if the cluster is past this version."""
        rules = cls()
        (version, quota, ttl, mode, seconds, revisions, level, leases), alarms = plain
        if level > FEATURE_LEVEL:
            raise UnsupportedFormat(f"the snapshot is of feature level {level}, this version knows {FEATURE_LEVEL}")
        rules.settings = Settings(version, quota, ttl, CompactionMode(mode), seconds, revisions, level, leases)
        rules._alarms = frozenset((AlarmKind(kind), member) for kind, member in alarms)
        return rules


def _names(command: ChangeAlarm, kind: AlarmKind, member: int) -> bool:
    """Whether a command that clears alarms means this one."""
    return command.kind in (AlarmKind.NONE, kind) and command.member in (0, member)


def _listed(alarms: frozenset[tuple[AlarmKind, int]]) -> list[Alarm]:
    return [Alarm(kind, member) for kind, member in sorted(alarms)]
