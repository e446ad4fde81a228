"""The rules: settings and alarms as a function of the commands, and which commands they let pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyraftkv import errors
from pyraftkv.rules import ALARMS_MAX, Rules, takes_room
from pyraftkv.settings import (
    FEATURE_LEVEL,
    QUOTA_BYTES_DEFAULT,
    Alarm,
    AlarmKind,
    ChangeAlarm,
    ChangeSettings,
    CompactionMode,
    RulesCommand,
    Settings,
)
from pyraftkv.store import Limits
from pyraftkv.store.commands import (
    Command,
    Compact,
    DeleteRange,
    GrantLease,
    PutBatch,
    PutKey,
    RangeQuery,
    RevokeLease,
    Transaction,
)

NOSPACE, CORRUPT = AlarmKind.NOSPACE, AlarmKind.CORRUPT
PUT = PutKey(b"k", b"v")


def alarmed(*alarms: tuple[AlarmKind, int]) -> Rules:
    """Return rules with these alarms."""
    rules = Rules()
    for kind, member in alarms:
        rules.decide(ChangeAlarm(kind, member, is_raised=True))
    return rules


def refused(rules: Rules, command: RulesCommand, error: type[errors.PyraftkvError]) -> errors.PyraftkvError:
    """Do what must be refused and alter nothing; return the error."""
    before = rules.plain()
    with pytest.raises(error) as caught:
        rules.apply(command)
    assert rules.plain() == before
    return caught.value


# --- Settings ------------------------------------------------------------------------------------------------------


def test_a_cluster_begins_with_a_quota_and_forgets_history_after_an_hour() -> None:
    """The settings of whoever sets nothing."""
    settings = Rules().settings
    assert settings == Settings(0, 0, 2, CompactionMode.PERIODIC, 3600, 10_000, 1, lease_reads=True)
    assert settings.quota_bytes_max == QUOTA_BYTES_DEFAULT == 2 << 30


@pytest.mark.parametrize(("quota_bytes", "expected"), [(0, 2 << 30), (-1, None), (1, 1), (1 << 40, 1 << 40)])
def test_a_quota_of_nothing_is_the_default_and_a_negative_one_is_none(quota_bytes: int, expected: int | None) -> None:
    """Etcd's `--quota-backend-bytes`."""
    assert Settings(quota_bytes=quota_bytes).quota_bytes_max == expected


def test_what_is_not_named_stays() -> None:
    """A change sets what it names, counts, and returns the settings after it."""
    rules = Rules()
    rules.apply(ChangeSettings(quota_bytes=7, compaction_mode=CompactionMode.REVISION))
    result = rules.apply(
        ChangeSettings(lease_ttl_seconds_min=9, compaction_seconds=60, compaction_revisions=5, lease_reads=False)
    )
    assert result.settings == rules.settings == Settings(2, 7, 9, CompactionMode.REVISION, 60, 5, 1, lease_reads=False)
    assert rules.apply(ChangeSettings()).settings.version == 2


def test_a_change_may_name_the_version_that_it_was_made_from() -> None:
    """Of two that read the same settings and change them, the second one is told."""
    rules = Rules()
    rules.apply(ChangeSettings(quota_bytes=7, if_version=0))
    error = refused(rules, ChangeSettings(quota_bytes=8, if_version=0), errors.SettingsChanged)
    assert isinstance(error, errors.SettingsChanged)
    assert error.version == 1
    assert rules.apply(ChangeSettings(quota_bytes=8, if_version=1)).settings.quota_bytes == 8


@pytest.mark.parametrize(
    "change",
    [
        ChangeSettings(quota_bytes=-2),
        ChangeSettings(lease_ttl_seconds_min=Limits().lease_ttl_min_seconds - 1),
        ChangeSettings(lease_ttl_seconds_min=9_000_000_001),
        ChangeSettings(compaction_seconds=0),
        ChangeSettings(compaction_seconds=1 << 40),
        ChangeSettings(compaction_revisions=0),
        ChangeSettings(quota_bytes=5, compaction_revisions=0),
    ],
)
def test_a_setting_out_of_its_bounds_is_refused_with_all_that_stands_beside_it(change: ChangeSettings) -> None:
    """A change is made whole or not at all."""
    refused(Rules(), change, errors.InvalidRequest)


def test_the_feature_level_is_the_leaders_and_never_falls() -> None:
    """Nobody else may raise it, and what the leader repeats late changes nothing. It does not count as a change."""
    rules = Rules()
    refused(rules, ChangeSettings(feature_level=1), errors.InvalidRequest)
    rules.settings = Settings(feature_level=FEATURE_LEVEL)
    assert rules.decide(ChangeSettings(feature_level=0)).settings == Settings(feature_level=FEATURE_LEVEL)


def test_a_member_that_the_cluster_has_left_behind_stops() -> None:
    """A level above its own, met in the log or in a snapshot, is a format that it cannot read."""
    rules = Rules()
    with pytest.raises(errors.UnsupportedFormat):
        rules.decide(ChangeSettings(feature_level=FEATURE_LEVEL + 1))
    rules.settings = Settings(feature_level=FEATURE_LEVEL + 1)
    with pytest.raises(errors.UnsupportedFormat):
        Rules.of_plain(rules.plain())


# --- Alarms --------------------------------------------------------------------------------------------------------


def test_an_alarm_is_raised_once_and_only_by_the_leader() -> None:
    """Who asks for one is refused; who decides it twice changes nothing the second time."""
    rules = Rules()
    refused(rules, ChangeAlarm(NOSPACE, 1, is_raised=True), errors.InvalidRequest)
    assert rules.decide(ChangeAlarm(NOSPACE, 1, is_raised=True)).changed == [Alarm(NOSPACE, 1)]
    assert rules.decide(ChangeAlarm(NOSPACE, 1, is_raised=True)).changed == []
    assert rules.decide(ChangeAlarm(AlarmKind.NONE, 1, is_raised=True)).changed == []
    assert rules.alarms == [Alarm(NOSPACE, 1)]
    assert Alarm(NOSPACE, 1).text == "memberID:1 alarm:NOSPACE"


@pytest.mark.parametrize(
    ("kind", "member", "left"),
    [
        (AlarmKind.NONE, 0, []),
        (NOSPACE, 0, [Alarm(CORRUPT, 2)]),
        (AlarmKind.NONE, 2, [Alarm(NOSPACE, 1)]),
        (NOSPACE, 1, [Alarm(NOSPACE, 2), Alarm(CORRUPT, 2)]),
        (CORRUPT, 1, [Alarm(NOSPACE, 1), Alarm(NOSPACE, 2), Alarm(CORRUPT, 2)]),
    ],
)
def test_alarms_are_cleared_by_kind_and_member(kind: AlarmKind, member: int, left: list[Alarm]) -> None:
    """No kind is every kind, no member every member; who clears them is told which there were."""
    rules = alarmed((CORRUPT, 2), (NOSPACE, 2), (NOSPACE, 1))
    every = rules.alarms
    result = rules.apply(ChangeAlarm(kind, member))
    assert (result.alarms, rules.alarms) == (left, left)
    assert result.changed == [alarm for alarm in every if alarm not in left]


def test_alarms_are_bounded() -> None:
    """Whatever ids members once had."""
    rules = alarmed(*[(NOSPACE, member) for member in range(ALARMS_MAX + 1)])
    assert len(rules.alarms) == ALARMS_MAX


COMMANDS: list[tuple[Command | PutBatch, bool]] = [
    (PUT, True),
    (PutBatch((b"k", b"v")), True),
    (GrantLease(1, 10), True),
    (RevokeLease(1), False),
    (DeleteRange(b"k"), False),
    (Compact(3), False),
    (Transaction([], [DeleteRange(b"k")], [RangeQuery(b"k")]), False),
    (Transaction([], [PUT], []), True),
    (Transaction([], [], [DeleteRange(b"k"), PUT]), True),
    (Transaction([], [Transaction([], [], [PUT])], []), True),
]
"""Commands, and whether they may make the store larger."""


@pytest.mark.parametrize(("command", "takes"), COMMANDS)
def test_what_takes_room_is_refused_while_there_is_none(command: Command | PutBatch, takes: bool) -> None:
    """A put, be it in the branch of a transaction that would not be done; what makes room passes (etcd, `quota.go`)."""
    Rules().admit(command)
    rules = alarmed((NOSPACE, 3))
    assert takes_room(command) is takes
    if takes:
        with pytest.raises(errors.NoSpace):
            rules.admit(command)
    else:
        rules.admit(command)


@pytest.mark.parametrize("command", [command for command, _ in COMMANDS])
def test_a_cluster_that_does_not_know_its_state_changes_nothing(command: Command | PutBatch) -> None:
    """Deletes and compactions are refused as well (etcd, `corrupt.go`), and that is what is said first."""
    with pytest.raises(errors.Corrupt):
        alarmed((NOSPACE, 1), (CORRUPT, 1)).admit(command)


def test_who_is_refused_is_told_the_quota() -> None:
    """So that it can be told from a full disk."""
    rules = alarmed((NOSPACE, 1))
    rules.apply(ChangeSettings(quota_bytes=4711))
    with pytest.raises(errors.NoSpace, match="4711"):
        rules.admit(PUT)
    rules.apply(ChangeSettings(quota_bytes=-1))
    with pytest.raises(errors.NoSpace, match="no quota any more"):
        rules.admit(PUT)


# --- Any history ---------------------------------------------------------------------------------------------------

kinds = st.sampled_from(AlarmKind)
steps = st.lists(
    st.one_of(
        st.builds(ChangeAlarm, kinds, st.integers(0, 3), st.booleans()),
        st.builds(
            ChangeSettings,
            quota_bytes=st.none() | st.integers(-3, 9),
            compaction_mode=st.none() | st.sampled_from(CompactionMode),
            compaction_seconds=st.none() | st.integers(-1, 99),
            lease_reads=st.none() | st.booleans(),
            if_version=st.none() | st.integers(0, 3),
        ),
    ),
    max_size=12,
)


@given(steps)
def test_whatever_is_decided_alarms_are_a_set_and_settings_survive_a_snapshot(history: list[RulesCommand]) -> None:
    """A naive twin keeps alarms in a set; plain values hold everything."""
    rules = Rules()
    twin: set[tuple[AlarmKind, int]] = set()
    for command in history:
        version = rules.settings.version
        try:
            result = rules.decide(command)
        except errors.NotApplied:
            assert rules.settings.version == version
            continue
        if isinstance(command, ChangeAlarm):
            if command.is_raised:
                twin |= {(command.kind, command.member)} if command.kind else set()
            else:
                twin -= {a for a in twin if command.kind in {0, a[0]} and command.member in {0, a[1]}}
        assert [(alarm.kind, alarm.member) for alarm in result.alarms] == sorted(twin)
        assert rules.is_quiet is (not twin)
        back = Rules.of_plain(rules.plain())
        assert (back.result(), back.plain()) == (rules.result(), rules.plain())
