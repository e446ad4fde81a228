"""``compaction``, ``alarm ...`` and ``settings``: what keeps a cluster within its room."""

from __future__ import annotations

import argparse
from typing import Any

from pyraftkv.cli.common import DONE, client
from pyraftkv.cli.printing import emit, emit_json, header_json, print_rows, truth
from pyraftkv.settings import Alarm, AlarmKind, CompactionMode, Settings

MODES: dict[str, CompactionMode] = {mode.name.lower(): mode for mode in CompactionMode}
WORDS: dict[str, dict[str, Any]] = {
    "compaction_mode": MODES,
    "lease_reads": {"true": True, "false": False},
}
"""The values of settings that are no numbers."""
NO_QUOTA = -1
KINDS = {kind.name: kind for kind in AlarmKind if kind is not AlarmKind.NONE}
SETTINGS = (
    "quota_bytes",
    "lease_ttl_seconds_min",
    "compaction_mode",
    "compaction_seconds",
    "compaction_revisions",
    "lease_reads",
)
"""What can be set; the rest of `Settings` is for reading."""


async def compaction(args: argparse.Namespace) -> int:
    """Forget history before a revision."""
    async with client(args) as kv:
        result = await kv.compact(args.revision, physical=args.physical)
    if args.write_out == "json":
        emit_json({"header": header_json(result.revision)})
    else:
        emit(f"compacted revision {args.revision}\n")
    return DONE


async def alarm_list(args: argparse.Namespace) -> int:
    """List what is wrong; nothing is printed when nothing is."""
    async with client(args) as kv:
        print_alarms(await kv.alarms.list(), args)
    return DONE


async def alarm_disarm(args: argparse.Namespace) -> int:
    """Clear alarms, and print which there were. What still is wrong is raised again."""
    async with client(args) as kv:
        print_alarms(await kv.alarms.disarm(KINDS.get(args.kind, AlarmKind.NONE)), args)
    return DONE


def print_alarms(alarms: list[Alarm], args: argparse.Namespace) -> None:
    """Print alarms, as etcdctl does."""
    if args.write_out == "json":
        emit_json({"alarms": [{"memberID": alarm.member, "alarm": int(alarm.kind)} for alarm in alarms]})
    elif args.write_out == "table":
        print_rows(["MEMBER ID", "ALARM"], [[str(alarm.member), alarm.kind.name] for alarm in alarms], "table")
    else:
        emit(*[f"{alarm.text}\n" for alarm in alarms])


async def settings(args: argparse.Namespace) -> int:
    """Print what the cluster is set to; with NAME=VALUE, set it before, all of it or nothing."""
    async with client(args) as kv:
        if args.assignments:
            found = await kv.settings.change(**dict(args.assignments), if_version=args.if_version)
        else:
            found = await kv.settings.get()
    if args.write_out == "json":
        emit_json(settings_words(found))
    else:
        rows = [[name, str(value)] for name, value in settings_words(found).items()]
        if args.write_out == "table":
            print_rows(["SETTING", "VALUE"], rows, "table")
        else:
            emit(*[f"{name}={value}\n" for name, value in rows])
    return DONE


def settings_words(found: Settings) -> dict[str, Any]:
    """Return settings by name, as they are written in an assignment; the quota as it holds where none is set."""
    values = {name: getattr(found, name) for name in (*SETTINGS, "feature_level", "version")}
    return values | {
        "quota_bytes": NO_QUOTA if found.quota_bytes_max is None else found.quota_bytes_max,
        "compaction_mode": found.compaction_mode.name.lower(),
        "lease_reads": truth(found.lease_reads),
    }


def assignment(text: str) -> tuple[str, Any]:
    """Parse NAME=VALUE. Raises `ArgumentTypeError`."""
    name, _, value = text.partition("=")
    try:
        if name not in SETTINGS:
            raise KeyError(name)
        return name, WORDS[name][value] if name in WORDS else int(value)
    except (KeyError, ValueError):
        known = ", ".join(SETTINGS)
        raise argparse.ArgumentTypeError(
            f"{text!r} is no NAME=VALUE: names are {known}; modes are {', '.join(MODES)}; the rest are whole numbers,"
            " lease_reads true or false"
        ) from None
