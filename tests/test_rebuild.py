"""A damaged directory, on real files and over TCP: its member comes back with what the others have, or as it was."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

import pyraftkv
from pyraftkv import Node, errors
from pyraftkv.cli import main
from pyraftkv.cli.common import NOT_APPLIED, USAGE
from pyraftkv.demo.processes import free_ports
from pyraftkv.log import FileStorage
from pyraftkv.node.aside import identity_at, put_in_place, read_note
from pyraftkv.node.rebuilding import NEW_SUFFIX, Rebuilding
from pyraftkv.transport import TcpDialer
from tests.node.support import asynchronous, fast, refused, until

NAMES = ("a", "b", "c")
CONFIG = fast(request_timeout_seconds=10.0)
WRITES = 40


def addresses(count: int = 3) -> dict[str, str]:
    """Return free addresses for so many members."""
    names = NAMES[:count]
    return {name: f"127.0.0.1:{port}" for name, port in zip(names, free_ports(count), strict=True)}


def member(folder: Path, name: str, members: dict[str, str]) -> Node:
    """Return a member, not started."""
    return pyraftkv.open(folder / name, name=name, listen=members[name], members=members, config=CONFIG)


def rot(folder: Path) -> None:
    """Let the disk forget what stands in the middle of the log."""
    segment = min((folder / "wal").glob("*.wal"))
    data = bytearray(segment.read_bytes())
    data[4096 + 60 : 4096 + 700] = bytes(640)
    segment.write_bytes(data)


async def started(folder: Path, members: dict[str, str]) -> dict[str, Node]:
    """Start everybody, and write something."""
    nodes = {name: member(folder, name, members) for name in members}
    await asyncio.gather(*[node.start() for node in nodes.values()])
    await asyncio.gather(*[nodes["a"].put(f"k{number}", b"v") for number in range(WRITES)])
    return nodes


async def stop(nodes: dict[str, Node]) -> None:
    """Stop everybody who runs."""
    await asyncio.gather(*[node.close() for node in nodes.values()])


@asynchronous
async def test_a_member_whose_log_rots_is_rebuilt_and_nothing_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """1. Of three members one has a rotten log, and refuses to start. The others go on.

    2. It is rebuilt: another id and incarnation, the same name, everything that was acknowledged; the damage is kept.
    3. It votes: another member may fail now, and the two go on.
    """
    members = addresses()
    nodes = await started(tmp_path, members)
    before = await nodes["c"].status()
    await nodes.pop("c").close()
    await nodes["a"].put("meanwhile", b"v")
    rot(tmp_path / "c")
    await refused(member(tmp_path, "c", members).start(), errors.WalCorruption)

    done = await pyraftkv.rebuild(tmp_path / "c", join=[members["a"], members["b"]], config=CONFIG)
    assert (done.replaced, done.member.name, done.member.address) == (before.member_id, "c", members["c"])
    assert done.member.id > before.member_id
    assert (done.aside, done.votes) == (f"{tmp_path / 'c'}.damaged-1", True)
    await refused(FileStorage(done.aside).start(failed=pytest.fail), errors.WalCorruption)
    assert not (tmp_path / f"c{NEW_SUFFIX}").exists()

    nodes["c"] = member(tmp_path, "c", members)
    caplog.clear()
    await nodes["c"].start()
    assert (await nodes["c"].range(prefix="k")).count == WRITES
    assert [row.getMessage() for row in caplog.records if row.levelname == "WARNING"] == []
    await nodes.pop("b").kill()
    await nodes["c"].put("with two of three", b"v", timeout=20)
    assert [row.role for row in await nodes["a"].members.list()] == ["voter"] * 3
    await stop(nodes)


@asynchronous
async def test_nothing_happens_without_a_majority_or_under_a_member_that_runs(tmp_path: Path) -> None:
    """Of two members the one that is left cannot decide by itself; the directory stays where it is."""
    members = addresses(2)
    nodes = await started(tmp_path, members)
    with pytest.raises(errors.DataDirLocked):
        await pyraftkv.rebuild(tmp_path / "b", join=members["a"])
    await nodes.pop("b").close()
    rot(tmp_path / "b")
    rebuilding = Rebuilding(tmp_path / "b", name=None, join=[members["a"]], dialer=TcpDialer())
    await refused(rebuilding.replace(None), errors.Unavailable)
    await refused(member(tmp_path, "b", members).start(), errors.WalCorruption)
    await stop(nodes)


@asynchronous
async def test_what_was_interrupted_goes_on(tmp_path: Path) -> None:
    """The cluster has exchanged the members, and the directories were not: the same member comes in once."""
    members = addresses()
    nodes = await started(tmp_path, members)
    await nodes.pop("c").close()
    rot(tmp_path / "c")
    rebuilding = Rebuilding(tmp_path / "c", name=None, join=[members["a"]], dialer=TcpDialer())
    first = await rebuilding.replace(None)
    roles = {row.name: row.role for row in await nodes["a"].members.list()}
    assert roles == {"a": "voter", "b": "voter", "c": "learner"}  # until it has everything it counts for nothing
    put_in_place(first.aside, tmp_path / f"c{NEW_SUFFIX}.was")
    (tmp_path / "c").rename(tmp_path / f"c{NEW_SUFFIX}")
    (tmp_path / f"c{NEW_SUFFIX}.was").rename(tmp_path / "c")

    done = await pyraftkv.rebuild(tmp_path / "c", join=[members["a"]], config=CONFIG)
    assert done.member == first.member
    rows = await nodes["a"].members.list()
    assert [(row.id, row.name) for row in rows] == [(1, "a"), (2, "b"), (first.member.id, "c")]
    await stop(nodes)


@asynchronous
async def test_who_was_interrupted_while_it_learned_votes_in_the_end(tmp_path: Path) -> None:
    """1. The new directory is in place, its member a learner, and the machine goes down; then its disk rots as well.

    2. The same command makes a third of it, which votes: that the learner was to vote was not forgotten.
    3. A member that never voted does not, wherever its rebuilding was interrupted.
    """
    members = addresses()
    nodes = await started(tmp_path, members)
    await nodes.pop("c").close()
    rot(tmp_path / "c")
    first = await Rebuilding(tmp_path / "c", name=None, join=[members["a"]], dialer=TcpDialer()).replace(None)
    (tmp_path / "c" / "wal" / "0000000000000000-0000000000000001.wal").write_bytes(b"rot")
    done = await pyraftkv.rebuild(tmp_path / "c", join=[members["a"]], config=CONFIG)
    assert (done.replaced, done.votes) == (first.member.id, True)
    assert read_note(tmp_path / "c") is None

    await nodes["a"].members.demote("c")
    again = Rebuilding(tmp_path / "c", name=None, join=[members["a"]], dialer=TcpDialer())
    assert not (await again.replace(None)).votes
    (tmp_path / "c").rename(tmp_path / f"c{NEW_SUFFIX}")  # the power went between the two renames
    done = await pyraftkv.rebuild(tmp_path / "c", join=[members["a"]], config=CONFIG)
    assert (done.replaced, done.votes) == (0, False)
    await stop(nodes)


@asynchronous
async def test_a_new_directory_of_somebody_who_was_taken_out_is_not_used(tmp_path: Path) -> None:
    """It was left by a rebuilding that was given up. Nothing happens; without it the member is rebuilt."""
    members = addresses()
    nodes = await started(tmp_path, members)
    await nodes.pop("c").close()
    left = Rebuilding(tmp_path / "c", name=None, join=[members["a"]], dialer=TcpDialer())
    first = await left.replace(None)
    (tmp_path / "c").rename(tmp_path / f"c{NEW_SUFFIX}")
    await nodes["a"].members.replace("c")
    rows = await nodes["a"].members.list()
    again = pyraftkv.rebuild(tmp_path / "c", join=[members["a"]], name="c", config=CONFIG)
    told = await refused(again, errors.ForeignDataDir)
    assert f"member {first.member.id}, which was taken out" in str(told)
    assert await nodes["a"].members.list() == rows
    (tmp_path / f"c{NEW_SUFFIX}").rename(tmp_path / "away")
    done = await pyraftkv.rebuild(tmp_path / "c", join=[members["a"]], name="c", config=CONFIG)
    assert done.replaced == rows[-1].id
    await stop(nodes)


def test_nothing_is_moved_if_there_is_nothing_to_put_in_its_place(tmp_path: Path) -> None:
    """Of two who rebuild one member, the later one leaves alone what the first has made."""
    (tmp_path / "c").mkdir()
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "c.rebuild", tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@asynchronous
async def test_who_nobody_knows_any_more_needs_a_name(tmp_path: Path) -> None:
    """The directory is gone and with it whose it was; or the member was taken out before."""
    members = addresses()
    nodes = await started(tmp_path, members)
    await nodes.pop("c").close()
    (tmp_path / "c").rename(tmp_path / "lost")
    await refused(pyraftkv.rebuild(tmp_path / "c", join=[members["a"]]), errors.MemberNotFound)
    await nodes["a"].members.remove("c")
    await refused(pyraftkv.rebuild(tmp_path / "c", join=[members["a"]], name="c"), errors.ConfigurationError)
    done = await pyraftkv.rebuild(tmp_path / "c", join=[members["a"]], name="c", advertise=members["c"], config=CONFIG)
    assert (done.replaced, done.aside, done.member.name) == (0, "", "c")
    await stop(nodes)


@pytest.mark.parametrize(
    ("there", "status", "told"),
    [
        ("nothing", NOT_APPLIED, "MemberNotFound: {path} does not exist: if that is right, say with name="),
        ("an empty directory", NOT_APPLIED, "MemberNotFound: {path} does not say whose it is: if that is right, "),
        ("a file", USAGE, "ConfigurationError: {path} is no directory"),
    ],
)
def test_what_is_wrong_here_is_said_before_anybody_is_asked(
    there: str, status: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slip in the path needs no cluster to be seen, and waits for none."""
    path = tmp_path / "c"
    if there == "a file":
        path.write_bytes(b"")
    elif there != "nothing":
        path.mkdir()
    nobody = addresses(1)["a"]
    assert main(["rebuild", str(path), "--join", nobody]) == status
    assert capsys.readouterr().err.startswith(f"Error: {told.format(path=path)}")
    assert {found.name for found in tmp_path.iterdir()} <= {"c"}


@asynchronous
async def test_the_directory_of_another_cluster_is_left_alone(tmp_path: Path) -> None:
    """A slip of the hand must not take a member out of a cluster that it has nothing to do with."""
    members = addresses()
    nodes = await started(tmp_path, members)
    async with pyraftkv.open(tmp_path / "alone") as alone:
        await alone.put("k", "v")
    await refused(pyraftkv.rebuild(tmp_path / "alone", join=[members["a"]]), errors.ForeignDataDir)
    assert identity_at(tmp_path / "alone") is not None
    assert len(await nodes["a"].members.list()) == 3
    await stop(nodes)


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One command, and the one to start the member again; JSON for programs."""
    members = addresses()

    async def prepare() -> dict[str, Node]:
        nodes = await started(tmp_path, members)
        await nodes.pop("c").close()
        rot(tmp_path / "c")
        return nodes

    async def scenario() -> tuple[int, int]:
        nodes = await prepare()
        first = await asyncio.to_thread(main, ["rebuild", str(tmp_path / "c"), "--join", members["a"]])
        await until(lambda: not (tmp_path / f"c{NEW_SUFFIX}").exists())
        second = await asyncio.to_thread(main, ["rebuild", str(tmp_path / "c"), "--join", members["a"], "-w", "json"])
        await stop(nodes)
        return first, second

    assert asyncio.run(scenario()) == (0, 0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "c is member 4, in place of member 3: it has what the others have, and votes."
    assert lines[1] == f"  its damaged directory is now {tmp_path / 'c'}.damaged-1"
    assert lines[3] == f"  pyraftkv serve --name c --data-dir {tmp_path / 'c'} --listen {members['c']}"
    done = json.loads("\n".join(lines[4:]))
    assert (done["member"]["id"], done["replaced"], done["votes"]) == (5, 4, True)
    assert done["aside"] == f"{tmp_path / 'c'}.damaged-2"


def test_each_of_two_renames_is_durable_before_what_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If only both were, a crash could leave the new name alone, or neither: what stands there at each sync is told."""
    for name in ("c", "c.rebuild"):
        (tmp_path / name).mkdir()
    synced: list[list[str]] = []
    sync = os.fsync

    def telling(fd: int) -> None:
        synced.append(sorted(os.listdir(fd)))
        sync(fd)

    monkeypatch.setattr(os, "fsync", telling)
    put_in_place(tmp_path / "c.rebuild", tmp_path / "c")
    assert synced == [["c.damaged-1", "c.rebuild"], ["c", "c.damaged-1"]]
