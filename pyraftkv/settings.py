"""Settings and alarms: what all members of a cluster agree on about its upkeep, and how that is changed.

These are the records; `rules` has what they come to when they are applied.
"""

from __future__ import annotations

from dataclasses import field
from enum import IntEnum

from pyraftkv._record import record

QUOTA_BYTES_DEFAULT = 2 << 30
"""What a quota of 0 stands for, as in etcd."""

LEASE_TTL_SECONDS_DEFAULT = 2
"""The least time to live of a lease: one and a half election timeouts of a second, in whole seconds."""

FEATURE_LEVEL = 1
"""What this version can do, and says in its HELLO. Rises with every kind of entry that older versions cannot read."""


class CompactionMode(IntEnum):
    """When the leader compacts by itself (etcd, ``--auto-compaction-mode``)."""

    OFF = 0
    PERIODIC = 1
    """What is older than `compaction_seconds` goes."""
    REVISION = 2
    """The last `compaction_revisions` revisions stay."""


@record
class Settings:
    """What applies to the whole cluster and is kept in its log: no member may differ in it.

    What one member may decide by itself stands in its own `NodeConfig`.
    """

    version: int = 0
    """How often the settings were changed; 0 while they are what a cluster begins with."""
    quota_bytes: int = 0
    """Writes are refused as `NoSpace` when the store holds more than this; 0: 2 GiB, negative: no quota."""
    lease_ttl_seconds_min: int = LEASE_TTL_SECONDS_DEFAULT
    """A lease that is asked for less lives so long."""
    compaction_mode: CompactionMode = CompactionMode.PERIODIC
    compaction_seconds: int = 3600
    """For `PERIODIC`: history that can be read and watched, at least; twice as much at most, up to an hour more."""
    compaction_revisions: int = 10_000
    """For `REVISION`: history that can be read and watched, at least."""
    feature_level: int = 1
    """What every member can do. The leader raises it when all of them offer more; nobody lowers it."""
    lease_reads: bool = True
    """Whether leaders may answer "lease" reads by themselves, if their configuration allows it; if not, they ask."""

    @property
    def quota_bytes_max(self) -> int | None:
        """The quota in force; None if there is none."""
        return None if self.quota_bytes < 0 else self.quota_bytes or QUOTA_BYTES_DEFAULT


@record
class ChangeSettings:
    """Set something; None leaves as it is."""

    quota_bytes: int | None = None
    lease_ttl_seconds_min: int | None = None
    compaction_mode: CompactionMode | None = None
    compaction_seconds: int | None = None
    compaction_revisions: int | None = None
    feature_level: int | None = None
    """Leader-made alone."""
    if_version: int | None = None
    """Do it only if the settings were changed exactly so often."""
    lease_reads: bool | None = None


class AlarmKind(IntEnum):
    """What is wrong (etcd, ``AlarmType``)."""

    NONE = 0
    """Nothing; in a request: every kind."""
    NOSPACE = 1
    """The store holds more than its quota: what takes room is refused, on every member."""
    CORRUPT = 2
    """Members disagree, and nobody can say who is right: whatever would change a key is refused."""


@record
class Alarm:
    """Something is wrong at a member, and everybody knows."""

    kind: AlarmKind
    member: int
    """Its id."""

    @property
    def text(self) -> str:
        """As it stands in a status, in etcdctl's words."""
        return f"memberID:{self.member} alarm:{self.kind.name}"


@record
class ChangeAlarm:
    """Raise an alarm, which the leader alone does, or clear alarms."""

    kind: AlarmKind
    """To clear, `NONE` stands for every kind."""
    member: int
    """To clear, 0 stands for every member."""
    is_raised: bool = False


RulesCommand = ChangeSettings | ChangeAlarm
"""A command on settings and alarms: it never stands in a transaction."""


@record
class RulesResult:
    """Settings and alarms, after the command whose result this is, or as of now."""

    settings: Settings
    alarms: list[Alarm]
    """By kind and member."""
    changed: list[Alarm] = field(default_factory=list)
    """The alarms that this command raised or cleared."""
