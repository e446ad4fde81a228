"""What the command does about room: compaction, alarms and settings, printed as etcdctl does."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import pytest

import pyraftkv
from pyraftkv import Node, codec
from pyraftkv.cli.arguments import parser
from pyraftkv.cli.common import DONE, NOT_APPLIED, USAGE
from pyraftkv.cli.decoding import entry_lines
from pyraftkv.cli.serving import config_of
from pyraftkv.core import Entry
from pyraftkv.protocol import Decided, Envelope
from pyraftkv.settings import (
    QUOTA_BYTES_DEFAULT,
    AlarmKind,
    ChangeAlarm,
    ChangeSettings,
    CompactionMode,
    Settings,
)
from pyraftkv.store.commands import Compact
from tests.test_cli import FAST, WAIT_SECONDS, Cli, run_here

Run = Callable[[Callable[[Node], Awaitable[object]]], object]


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Run]]:
    """A member that runs in a thread of its own: its address, and how to do something on it."""
    told: queue.Queue[object] = queue.Queue()

    async def body() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with pyraftkv.open(tmp_path_factory.mktemp("member"), listen="127.0.0.1:0", config=FAST) as node:
            await node.get("is there a leader?")

            def run(doing: Callable[[Node], Awaitable[object]]) -> object:
                async def do() -> object:
                    return await doing(node)

                return asyncio.run_coroutine_threadsafe(do(), loop).result(WAIT_SECONDS)

            told.put((node.address, run, lambda: loop.call_soon_threadsafe(stop.set)))
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(body()))
    thread.start()
    address, run, stop = told.get(timeout=WAIT_SECONDS)  # type: ignore[misc]
    yield address, run
    stop()
    thread.join(WAIT_SECONDS)


@pytest.fixture
def cli(
    member: tuple[str, Run], capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cli]:
    """Run the command in this process against the member, which afterwards has the settings of a new cluster."""
    monkeypatch.setenv("PYRAFTKV_ENDPOINTS", member[0])
    cli = partial(run_here, capsysbinary)
    yield cli
    cli("settings", "quota_bytes=0", "compaction_mode=periodic", "compaction_seconds=3600")
    cli("alarm", "disarm")


def test_history_is_forgotten(cli: Cli) -> None:
    """`compaction` prints what etcdctl prints; a second time it is refused by name."""
    cli("put", "k", "1")
    revision = json.loads(cli("put", "k", "2", "-w", "json")[1])["header"]["revision"]
    assert cli("compaction", str(revision - 1)) == (DONE, f"compacted revision {revision - 1}\n", "")
    status, out, _ = cli("compaction", str(revision), "--physical", "-w", "json")
    assert (status, json.loads(out)) == (DONE, {"header": {"revision": revision}})
    status, out, err = cli("compaction", str(revision))
    assert (status, out, "Compacted" in err) == (NOT_APPLIED, "", True)


def test_alarms_are_listed_and_disarmed(cli: Cli, member: tuple[str, Run]) -> None:
    """As etcdctl prints them; a status shows them as errors, and who is refused a put is told why."""
    assert cli("alarm", "list") == (DONE, "", "")
    for kind in (AlarmKind.NOSPACE, AlarmKind.CORRUPT):
        cli("settings", "quota_bytes=1")
        member[1](lambda node, kind=kind: node._running().decide(ChangeAlarm(kind, 1, is_raised=True)))
    both = "memberID:1 alarm:NOSPACE\nmemberID:1 alarm:CORRUPT\n"
    assert cli("alarm", "list") == (DONE, both, "")
    assert json.loads(cli("alarm", "list", "-w", "json")[1]) == {
        "alarms": [{"memberID": 1, "alarm": 1}, {"memberID": 1, "alarm": 2}]
    }
    assert "| 1         | NOSPACE |" in cli("alarm", "list", "-w", "table")[1]
    assert "memberID:1 alarm:NOSPACE, memberID:1 alarm:CORRUPT" in cli("endpoint", "status")[1]
    assert cli("alarm", "disarm", "--kind", "corrupt") == (DONE, "memberID:1 alarm:CORRUPT\n", "")
    status, _, err = cli("put", "k", "v")
    assert (status, "NoSpace" in err) == (NOT_APPLIED, True)


def test_settings_are_printed_and_set(cli: Cli) -> None:
    """Several at once, all or nothing; a version that is over is refused."""
    version = json.loads(cli("settings", "-w", "json")[1])["version"]
    status, out, _ = cli("settings", "quota_bytes=1000000000", "compaction_mode=revision")
    assert status == DONE
    assert out.splitlines() == [
        "quota_bytes=1000000000",
        "lease_ttl_seconds_min=2",
        "compaction_mode=revision",
        "compaction_seconds=3600",
        "compaction_revisions=10000",
        "lease_reads=true",
        "feature_level=1",
        f"version={version + 1}",
    ]
    assert cli("settings") == (DONE, out, "")
    assert "| compaction_mode       | revision   |" in cli("settings", "-w", "table")[1]
    assert "lease_reads=false\n" in cli("settings", "lease_reads=false")[1]
    out = cli("settings", "lease_reads=true")[1]
    assert cli("settings", "quota_bytes=5", "--if-version", str(version))[0] == NOT_APPLIED
    assert cli("settings", "quota_bytes=5", "compaction_seconds=0")[0] == USAGE
    assert cli("settings") == (DONE, out, "")


def test_the_quota_is_printed_as_it_holds(cli: Cli) -> None:
    """Not set, it is the default's; and there may be none. What is printed can be set."""
    assert f"quota_bytes={QUOTA_BYTES_DEFAULT}\n" in cli("settings", "quota_bytes=0")[1]
    assert json.loads(cli("settings", "-w", "json")[1])["quota_bytes"] == QUOTA_BYTES_DEFAULT
    assert "quota_bytes=-1\n" in cli("settings", "quota_bytes=-1")[1]


@pytest.mark.parametrize(
    "text", ["quota_bytes", "quota_bytes=much", "version=3", "compaction_mode=never", "lease_reads=maybe"]
)
def test_an_assignment_that_is_none_is_usage(cli: Cli, text: str) -> None:
    """What can be set is named."""
    with pytest.raises(SystemExit) as ended:
        cli("settings", text)
    assert ended.value.code == USAGE


def test_a_member_can_be_told_what_its_cluster_begins_with() -> None:
    """Like etcd's flags, but for the cluster: a cluster that runs has its own."""
    assert config_of(parser().parse_args(["serve"])) is None
    config = config_of(parser().parse_args(["serve", "--set", "quota_bytes=5", "--set", "compaction_mode=off"]))
    assert config is not None
    assert config.settings == Settings(quota_bytes=5, compaction_mode=CompactionMode.OFF)


def test_the_log_is_told_in_words() -> None:
    """Who reads it sees what was set, and what leaders have decided."""
    commands = [
        Envelope(1, 1, 1, ChangeSettings(quota_bytes=5, if_version=2)),
        Decided(3, 1, ChangeAlarm(AlarmKind.NOSPACE, 2, is_raised=True)),
        Envelope(1, 2, 1, ChangeAlarm(AlarmKind.NONE, 0)),
        Decided(3, 2, Compact(7)),
    ]
    lines = [
        line
        for index, command in enumerate(commands, start=1)
        for line in entry_lines(Entry(index, 3, codec.encode_logged(command)), values=False)
    ]
    assert lines == [
        "  1 NORMAL change_settings quota_bytes=5 if_version=2",
        "  2 NORMAL raise_alarm kind=NOSPACE member=2",
        "  3 NORMAL clear_alarm kind=NONE member=0",
        "  4 NORMAL compact revision=7",
    ]
