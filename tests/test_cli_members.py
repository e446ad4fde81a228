"""The command line of membership: `recover`, and what is said when a quorum is lost."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyraftkv
from pyraftkv.cli import main
from pyraftkv.cli.common import DONE, NOT_APPLIED, STORAGE, USAGE
from pyraftkv.cli.endpoints import NO_QUORUM
from pyraftkv.cli.recovering import CHANGED_MEANWHILE, NOT_CONFIRMED
from pyraftkv.node.recovery import Recovery
from tests.test_recovery import NAMES, addresses, member

KEYS = 20


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


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run the command in this process, without a terminal; return status, output and errors."""
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))

    def run(*arguments: str) -> tuple[int, str, str]:
        capsysbinary.readouterr()
        status = main(arguments)
        out, err = capsysbinary.readouterr()
        return status, out.decode(), err.decode()

    return run


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
    assert f"{KEYS} keys at revision" in out
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


@contextlib.contextmanager
def running(lost: Lost) -> Iterator[str]:
    """Run the survivor in a thread of its own; yield its address."""
    started: queue.Queue[Callable[[], object]] = queue.Queue()

    async def body() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with member(lost.folder, "c", lost.members):
            started.put(lambda: loop.call_soon_threadsafe(stop.set))
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(body()))
    thread.start()
    stop = started.get(timeout=30)
    try:
        yield lost.members["c"]
    finally:
        stop()
        thread.join(30)


def test_who_asks_a_member_without_a_quorum_is_told_what_to_do(cli: Cli, lost: Lost) -> None:
    """`status` and `health` say so, and point to what to start and how to recover; a running member is not touched."""
    with running(lost) as address:
        status, out, err = cli("endpoint", "status", "--endpoints", address)
        assert (status, err) == (DONE, NO_QUORUM)
        assert out.rstrip().endswith("no quorum")
        everybody = ",".join(lost.members.values())
        status, out, err = cli("endpoint", "health", "--endpoints", everybody, "--timeout", "300ms")
        assert (status, err) == (NOT_APPLIED, NO_QUORUM)
        assert out.count("unhealthy") == len(NAMES)
        status, _, err = cli("recover", lost.survivor, "--force-new-cluster", "--yes")
        assert (status, err) == (STORAGE, f"Error: DataDirLocked: {lost.survivor} is in use by another process\n")
