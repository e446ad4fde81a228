"""The command line of membership: `recover`, what is said when a quorum is lost, `member`, `move-leader`."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest

import pyraftkv
from pyraftkv import Node
from pyraftkv.cli.arguments import parser
from pyraftkv.cli.common import DONE, NOT_APPLIED, STORAGE, USAGE
from pyraftkv.cli.endpoints import NO_QUORUM
from pyraftkv.cli.membership import LIST_COLUMNS, serve_command
from pyraftkv.cli.recovering import CHANGED_MEANWHILE, NOT_CONFIRMED
from pyraftkv.demo.processes import free_ports
from pyraftkv.kv import Member
from pyraftkv.log.fs import IN_USE_HERE
from pyraftkv.node.recovery import Recovery
from tests.test_cli import Cli, run_here
from tests.test_recovery import CONFIG, NAMES, addresses, member

KEYS = 20

T = TypeVar("T")


class Lost:
    """Three members of whom two are gone for good, and the address that the third listens on when it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members = addresses()
        self.survivor = str(folder / "c")

    async def happen(self) -> None:
        """Start all, write, and kill them."""
        nodes = {name: member(self.folder, name, self.members) for name in NAMES}
        await asyncio.gather(*[node.start() for node in nodes.values()])
        await asyncio.gather(*[nodes["a"].put(f"k{number}", b"v") for number in range(KEYS)])
        await nodes["c"].get("k0")  # it has everything now
        await asyncio.gather(*[node.kill() for node in nodes.values()])


@pytest.fixture(scope="module")
def lost_once(tmp_path_factory: pytest.TempPathFactory) -> Lost:
    """What is left, once for all tests."""
    lost = Lost(tmp_path_factory.mktemp("lost"))
    asyncio.run(lost.happen())
    return lost


@pytest.fixture
def lost(lost_once: Lost, tmp_path: Path) -> Lost:
    """The same, to be changed."""
    copy = Lost.__new__(Lost)
    copy.folder, copy.members = tmp_path, lost_once.members
    copy.survivor = shutil.copytree(lost_once.survivor, str(tmp_path / "c"))
    return copy


@pytest.fixture
def cli(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run the command in this process, without a terminal; return status, output and errors."""
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))

    return partial(run_here, capsysbinary)


class Terminal(io.StringIO):
    """Somebody at a terminal, who does something before the answer."""

    def __init__(self, answer: str, before: Callable[[], object] = lambda: None) -> None:
        super().__init__(answer)
        self._before = before

    def isatty(self) -> bool:
        return True

    def readline(self, size: int | None = -1, /) -> str:
        self._before()
        return super().readline(-1 if size is None else size)


class Hosted:
    """Members that run in a thread of their own, while the test's thread runs commands."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self.nodes: list[Node] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self.run(self._kill())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(30)
            self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run something on the members' loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def start(self, make: Callable[[], Node]) -> Node:
        """Make a member there and start it."""

        async def body() -> Node:
            node = make()
            self.nodes.append(node)
            await node.start()
            return node

        return self.run(body())

    async def _kill(self) -> None:
        for node in reversed(self.nodes):
            await node.kill()


def is_new(path: str) -> bool:
    """Whether the directory was recovered."""

    async def look(_: Recovery) -> bool:
        return False

    return asyncio.run(pyraftkv.recover(path, agree=look)).is_resumed


# --- recover -------------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_what_would_be_done(cli: Cli, lost: Lost) -> None:
    """Who it is, what it has, what is adopted, who goes; and nothing is changed."""
    status, out, err = cli("recover", lost.survivor, "--force-new-cluster", "--dry-run")
    assert (status, err) == (DONE, "")
    assert out.splitlines()[0].startswith(f"{lost.survivor}: member c (id 3) of cluster ")
    assert f"keys: {KEYS}, revision: " in out
    assert f"a (id 1, {lost.members['a']}), b (id 2, {lost.members['b']}): members no more" in out
    assert out.endswith("Nothing was changed: this was a dry run.\n")
    assert not is_new(lost.survivor)
    table = json.loads(cli("recover", lost.survivor, "--force-new-cluster", "--dry-run", "-w", "json")[1])
    assert (table["done"], table["keys"], [row["name"] for row in table["lost"]]) == (False, KEYS, ["a", "b"])


def test_a_new_cluster_is_made_of_what_one_member_has(cli: Cli, lost: Lost) -> None:
    """What to do next is printed; the same command again finds that it is done."""
    status, out, _ = cli("recover", "--force-new-cluster", "--yes", lost.survivor, "--advertise", "127.0.0.1:1")
    assert status == DONE
    assert f"pyraftkv serve --name c --data-dir {lost.survivor} --listen 127.0.0.1:1\n" in out
    assert is_new(lost.survivor)
    status, out, _ = cli("recover", "--force-new-cluster", lost.survivor)
    assert status == DONE, "there is nothing left to ask"
    assert "was recovered before" in out
    table = json.loads(cli("recover", "--force-new-cluster", lost.survivor, "-w", "json")[1])
    assert (table["done"], table["resumed"], table["member"]["address"]) == (True, True, "127.0.0.1:1")


def test_it_must_be_said_twice(cli: Cli, lost: Lost) -> None:
    """Neither without the flag that names what comes out, nor without a yes, on whatever terminal or none."""
    status, _, err = cli("recover", lost.survivor, "--yes")
    assert (status, err.count("\n")) == (USAGE, 1)
    assert "--force-new-cluster" in err
    assert cli("recover", lost.survivor, "--force-new-cluster")[::2] == (USAGE, NOT_CONFIRMED)
    assert json.loads(cli("recover", lost.survivor, "--force-new-cluster", "-w", "json")[1])["done"] is False
    assert not is_new(lost.survivor)


@pytest.mark.parametrize(("answer", "expected"), [("yes\n", DONE), ("y\n", NOT_APPLIED), ("", NOT_APPLIED)])
def test_a_person_is_asked(cli: Cli, lost: Lost, monkeypatch: pytest.MonkeyPatch, answer: str, expected: int) -> None:
    """Only a whole yes is one."""
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    status, out, err = cli("recover", lost.survivor, "--force-new-cluster")
    assert (status, err) == (expected, "Go on? Type yes: ")
    assert is_new(lost.survivor) is (expected == DONE)
    assert ("Nothing was changed." in out) is (expected != DONE)


def test_what_was_shown_is_what_is_done(cli: Cli, lost: Lost, monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody thought, the member was started elsewhere: the plan no longer holds."""

    async def recovered_and_lives_on() -> None:
        await pyraftkv.recover(lost.survivor)
        async with member(lost.folder, "c", lost.members) as node:
            await node.put("k", "v")

    monkeypatch.setattr("sys.stdin", Terminal("yes\n", lambda: asyncio.run(recovered_and_lives_on())))
    status, _, err = cli("recover", lost.survivor, "--force-new-cluster")
    assert status == STORAGE
    assert CHANGED_MEANWHILE in err
    assert not is_new(lost.survivor), "it was not recovered once more"


def test_what_cannot_be_recovered_is_an_error_of_one_line(cli: Cli, lost: Lost, tmp_path: Path) -> None:
    """Nothing there, or nothing of a member."""
    for path in (tmp_path / "missing", tmp_path):
        status, _, err = cli("recover", str(path), "--force-new-cluster", "--yes")
        assert (status, err) == (STORAGE, f"Error: StorageError: {path} is no member's data directory\n")
    assert cli("recover", lost.survivor, "--force-new-cluster", "--name", "a b")[0] == USAGE
    assert cli("recover", lost.survivor, "--force-new-cluster", "--advertise", "nowhere")[0] == USAGE


# --- No quorum -----------------------------------------------------------------------------------------------------


def test_who_asks_a_member_without_a_quorum_is_told_what_to_do(cli: Cli, lost: Lost) -> None:
    """`status` and `health` say so, and point to what to start and how to recover; a running member is not touched."""
    address = lost.members["c"]
    with Hosted() as hosted:
        hosted.start(lambda: member(lost.folder, "c", lost.members))
        status, out, err = cli("endpoint", "status", "--endpoints", address)
        assert (status, err) == (DONE, NO_QUORUM)
        assert out.rstrip().endswith("no quorum")
        everybody = ",".join(lost.members.values())
        status, out, err = cli("endpoint", "health", "--endpoints", everybody, "--timeout", "300ms")
        assert (status, err) == (NOT_APPLIED, NO_QUORUM)
        assert out.count("unhealthy") == len(NAMES)
        status, _, err = cli("recover", lost.survivor, "--force-new-cluster", "--yes")
        assert (status, err) == (STORAGE, f"Error: DataDirLocked: {lost.survivor} is {IN_USE_HERE}\n")


# --- member --------------------------------------------------------------------------------------------------------


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosted]:
    """A cluster of one, whom the commands ask."""
    with Hosted() as hosted:
        address = f"127.0.0.1:{free_ports(1)[0]}"
        hosted.start(lambda: pyraftkv.open(tmp_path / "a", name="a", listen=address, config=CONFIG))
        monkeypatch.setenv("PYRAFTKV_ENDPOINTS", address)
        yield hosted


def start_as_printed(hosted: Hosted, folder: Path, out: str) -> Node:
    """Start a member by the command that was printed."""
    words = shlex.split(out.splitlines()[-1])
    assert words[0] == "pyraftkv"
    args = parser().parse_args(words[1:])

    def make() -> Node:
        return pyraftkv.open(
            folder / args.data_dir,
            name=args.name,
            listen=args.listen,
            join=args.join or (),
            learner=args.learner,
            config=CONFIG,
        )

    return hosted.start(make)


def listed(cli: Cli) -> list[dict[str, Any]]:
    """Return who the members are."""
    return json.loads(cli("member", "list", "-w", "json")[1])["members"]  # type: ignore[no-any-return]


def until(condition: Callable[[], bool]) -> None:
    """Wait for what a member does by itself."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not come to that"


def test_a_member_is_added_as_is_printed_and_removed(cli: Cli, first: Hosted, tmp_path: Path) -> None:
    """The printed command starts it; it catches up and votes; renamed, demoted, promoted, and gone."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    status, out, _ = cli("member", "add", "b", address)
    assert status == DONE
    assert out.startswith(f"Member b (id 2, {address}) added.\n")
    start_as_printed(first, tmp_path, out)
    until(lambda: not listed(cli)[1]["isLearner"])
    assert cli("member", "list")[1].splitlines() == [
        f"1, a, {first.nodes[0].address}, false, true, 1, false",
        f"2, b, {address}, false, false, 1, false",
    ]
    table = cli("member", "list", "-w", "table")[1].splitlines()
    assert [cell.strip() for cell in table[1].split("|")[1:-1]] == list(LIST_COLUMNS)
    assert cli("member", "update", "2", "--priority", "0", "--name", "bb")[:2] == (DONE, "Member 2 updated.\n")
    assert (listed(cli)[1]["name"], listed(cli)[1]["priority"]) == ("bb", 0)
    assert cli("member", "demote", "bb")[:2] == (DONE, "Member bb demoted: it is a learner.\n")
    assert listed(cli)[1]["isLearner"]
    assert cli("member", "promote", "bb")[:2] == (DONE, "Member bb promoted: it votes.\n")
    status, out, _ = cli("member", "remove", "bb")
    assert (status, out) == (DONE, "Member bb removed. Its id and its directory are of no use any more.\n")
    assert [row["name"] for row in listed(cli)] == ["a"]


@pytest.mark.parametrize(
    ("address", "tls_ca", "end"),
    [
        ("10.0.0.4:2479", None, " --insecure"),
        ("127.0.0.1:2479", None, " --join 10.0.0.1:2479,10.0.0.2:2479"),
        ("10.0.0.4:2479", "my-ca.pem", " --tls-ca ca.pem --tls-cert d.pem --tls-key d.key"),
    ],
)
def test_the_printed_command_goes_as_far_as_is_known(address: str, tls_ca: str | None, end: str) -> None:
    """Certificates where the cluster has them; otherwise what makes a member listen without."""
    rows = [Member(number, name, f"10.0.0.{number}:2479", "voter", False, 1) for number, name in ((1, "a"), (2, "b"))]
    command = serve_command(argparse.Namespace(tls_ca=tls_ca), Member(4, "d", address, "learner", False, 1), rows)
    assert command.startswith(f"pyraftkv serve --name d --data-dir d.pyraftkv --listen {address} --join ")
    assert command.endswith(end)


def test_who_cannot_be_dialled_is_not_printed() -> None:
    """`open(path)` alone begins a cluster without an address: then the endpoints lead to it."""
    first, second = Member(1, "default", "default", "voter", True, 1), Member(2, "b", "b.example:1", "voter", False, 1)
    args = argparse.Namespace(tls_ca=None, endpoints="a.example:1,b.example:1")
    for others, printed in (([first, second], "b.example:1"), ([first], "a.example:1,b.example:1")):
        words = serve_command(args, Member(4, "d", "127.0.0.1:2479", "learner", False, 1), others).split()
        assert words[words.index("--join") + 1] == printed


def test_a_learner_may_be_asked_to_stay_one(cli: Cli, first: Hosted, tmp_path: Path) -> None:
    """`--learner` stands in the printed command, and there it is a learner for good; `endpoint status` shows it."""
    status, out, _ = cli("member", "add", "l", f"127.0.0.1:{free_ports(1)[0]}", "--learner", "-w", "json")
    table = json.loads(out)
    assert (status, table["member"]["ID"], table["member"]["isLearner"]) == (DONE, 2, True)
    assert table["start"].endswith("--learner")
    node = start_as_printed(first, tmp_path, table["start"])
    until(lambda: cli("get", "k", "--endpoints", node.address)[0] == DONE)
    status, out, _ = cli("endpoint", "status", "--endpoints", node.address, "-w", "json")
    assert json.loads(out)[0]["Status"]["role"] == "learner"
    assert listed(cli)[1]["isLearner"]


def test_a_member_whose_disk_is_gone_is_replaced(cli: Cli, first: Hosted, tmp_path: Path) -> None:
    """One step: the old one out, a new one with its name and address in, under an id of its own."""
    status, out, _ = cli("member", "add", "b", f"127.0.0.1:{free_ports(1)[0]}", "--learner")
    lost = start_as_printed(first, tmp_path, out)
    address = lost.address
    first.run(lost.kill())
    shutil.rmtree(tmp_path / "b.pyraftkv")
    status, out, _ = cli("member", "replace", "b")
    assert status == DONE
    assert out.startswith(f"Member b replaced by b (id 3, {address}).\n")
    start_as_printed(first, tmp_path, out)
    until(lambda: [row["ID"] for row in listed(cli) if not row["isLearner"]] == [1, 3])


def test_what_cannot_be_done_is_an_error_of_one_line(cli: Cli, first: Hosted) -> None:
    """Unknown members, names that are taken, the last voter."""
    address = first.nodes[0].address
    for words in (
        ("member", "promote", "z"),
        ("member", "remove", "9"),
        ("member", "add", "a", "127.0.0.1:1"),
        ("member", "add", "b", address),
    ):
        status, _, err = cli(*words)
        assert (status, err.count("\n")) == (NOT_APPLIED, 1), words
        assert err.startswith("Error: Member"), err
    assert cli("member", "add", "b", "nowhere")[0] == USAGE
    assert cli("member", "update", "a", "--address", "nowhere")[0] == USAGE
    assert cli("member", "update", "a")[0] == USAGE
    assert cli("member", "replace", "a", "--address", "nowhere")[0] == USAGE


def test_leadership_moves(cli: Cli, first: Hosted, tmp_path: Path) -> None:
    """To a member by name or id, or to the best one."""
    _, out, _ = cli("member", "add", "b", f"127.0.0.1:{free_ports(1)[0]}")
    start_as_printed(first, tmp_path, out)
    until(lambda: not listed(cli)[1]["isLearner"])
    assert cli("move-leader", "b")[:2] == (DONE, "b leads.\n")
    assert cli("move-leader", "1")[:2] == (DONE, "a leads.\n")
    assert cli("move-leader")[:2] == (DONE, "b leads.\n")
