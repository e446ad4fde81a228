from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import queue
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import pyraftkv
from pyraftkv import errors
from pyraftkv.cli import advice, main
from pyraftkv.cli.arguments import parser, seconds
from pyraftkv.cli.common import DEFAULT_ADDRESS, DONE, INTERRUPTED, NOT_APPLIED, STORAGE, UNKNOWN, USAGE, exit_status
from pyraftkv.cli.endpoints import some_differ, status_json, status_row
from pyraftkv.cli.keys import watch
from pyraftkv.cli.serving import run_until, told_to_stop
from pyraftkv.cli.terminal import Screen, bar, human_bytes, plain_table, print_table
from pyraftkv.demo.processes import Processes, free_ports
from pyraftkv.log import MemoryStorage
from pyraftkv.node import Node
from pyraftkv.store.values import KvHash
from pyraftkv.transport import MemoryNetwork

FAST = pyraftkv.NodeConfig(heartbeat_seconds=0.05, election_timeout_seconds=0.2)
WAIT_SECONDS = 30.0


# --- A member to talk to -------------------------------------------------------------------------------------------


def run_member(data_dir: Path, told: queue.Queue[object]) -> None:
    """Run a member on a free port; tell its address, and then how to stop it."""

    async def body() -> None:
        stop = asyncio.Event()
        async with pyraftkv.open(data_dir, listen="127.0.0.1:0", config=FAST) as node:
            await node.get("is there a leader?")
            loop = asyncio.get_running_loop()
            told.put((node.address, lambda: loop.call_soon_threadsafe(stop.set)))
            await stop.wait()

    try:
        asyncio.run(body())
    except BaseException as error:  # the fixture raises it in the test's thread
        told.put(error)
        raise


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a member that runs in a thread of its own."""
    told: queue.Queue[object] = queue.Queue()
    thread = threading.Thread(target=run_member, args=(tmp_path_factory.mktemp("member"), told))
    thread.start()
    answer = told.get(timeout=WAIT_SECONDS)
    if isinstance(answer, BaseException):
        raise answer
    address, stop = answer  # type: ignore[misc]
    yield address
    stop()
    thread.join(WAIT_SECONDS)


Cli = Callable[..., tuple[int, str, str]]


def run_here(capture: pytest.CaptureFixture[bytes], *arguments: str) -> tuple[int, str, str]:
    """Run the command in this process; return status, output and errors."""
    capture.readouterr()
    status = main(arguments)
    out, err = capture.readouterr()
    return status, out.decode(), err.decode()


@pytest.fixture
def cli(address: str, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run the command in this process against the member; return status, output and errors."""
    monkeypatch.setenv("PYRAFTKV_ENDPOINTS", address)

    return partial(run_here, capsysbinary)


@pytest.fixture
def fresh(cli: Cli) -> Iterator[Cli]:
    """The same, with nothing in the store."""
    cli("del", "", "--prefix")
    yield cli
    cli("del", "", "--prefix")


# --- Keys ----------------------------------------------------------------------------------------------------------


def test_a_value_that_was_put_is_read_again(fresh: Cli) -> None:
    """As in etcdctl: put says OK, get prints key and value, del how many it deleted."""
    assert fresh("put", "k", "v") == (DONE, "OK\n", "")
    assert fresh("get", "k") == (DONE, "k\nv\n", "")
    assert fresh("get", "k", "--print-value-only") == (DONE, "v\n", "")
    assert fresh("get", "k", "--keys-only") == (DONE, "k\n", "")
    assert fresh("del", "k") == (DONE, "1\n", "")
    assert fresh("get", "k") == (DONE, "", "")
    assert fresh("del", "k") == (DONE, "0\n", "")


def test_put_keeps_what_it_is_told_to(fresh: Cli) -> None:
    """`--ignore-value` needs a key that is there, and no value; `--ignore-lease` keeps the lease."""
    assert fresh("put", "k", "--ignore-value")[0] != DONE
    assert fresh("put", "k", "1")[0] == DONE
    assert fresh("put", "k", "2", "--ignore-value")[0] != DONE
    assert fresh("put", "k", "--ignore-value", "--ignore-lease") == (DONE, "OK\n", "")
    assert json.loads(fresh("get", "k", "-w", "json")[1])["kvs"][0]["version"] == 2


def test_get_leaves_out_other_revisions(fresh: Cli) -> None:
    """By when keys were changed or created."""
    for key in ("a", "b", "a"):
        fresh("put", key, "")
    first, last = (json.loads(fresh("get", key, "-w", "json")[1])["kvs"][0]["mod_revision"] for key in "ba")
    for option, key in [
        (f"--min-mod-rev={last}", "a"),
        (f"--max-mod-rev={first}", "b"),
        (f"--min-create-rev={first}", "b"),
        (f"--max-create-rev={first - 1}", "a"),
    ]:
        assert fresh("get", "", "--prefix", "--keys-only", option)[1] == f"{key}\n"


def test_what_stood_there_before_is_printed_when_asked_for(fresh: Cli) -> None:
    """`--prev-kv` prints the earlier key and value after the answer."""
    assert fresh("put", "k", "1", "--prev-kv") == (DONE, "OK\n", "")
    assert fresh("put", "k", "2", "--prev-kv") == (DONE, "OK\nk\n1\n", "")
    assert fresh("del", "k", "--prev-kv") == (DONE, "1\nk\n2\n", "")


def test_a_value_can_come_from_standard_input(fresh: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` and a missing value both read bytes as they are, newlines included."""
    for arguments in (["put", "k", "-"], ["put", "k"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"two\nlines\xc3\xa9\n")))
        assert fresh(*arguments)[0] == DONE
        assert fresh("get", "k", "--print-value-only")[1] == "two\nlines\xe9\n\n"
        fresh("del", "k")


def test_keys_and_values_are_bytes(fresh: Cli, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Arguments that are not UTF-8 reach the store, and come back, unaltered."""
    key, value = os.fsdecode(b"\xff\xfe"), os.fsdecode(b"\x80")
    fresh("put", key, value)
    assert main(["get", key]) == DONE
    assert capsysbinary.readouterr().out == b"\xff\xfe\n\x80\n"
    assert fresh("get", key, "-w", "table")[1].splitlines()[3].startswith("| \\xff\\xfe | \\x80  |")


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["a", "--prefix"], ["a1", "a2", "a3"]),
        (["a2", "--from-key"], ["a2", "a3", "b1"]),
        (["a2", "b1"], ["a2", "a3"]),
        (["", "--prefix", "--limit", "2"], ["a1", "a2"]),
        (["", "--prefix", "--order", "DESCEND"], ["b1", "a3", "a2", "a1"]),
        (["a", "--prefix", "--sort-by", "VALUE"], ["a3", "a1", "a2"]),
        (["a", "--prefix", "--sort-by", "modify", "--order", "descend"], ["a3", "a2", "a1"]),
        (["a", "--prefix", "--consistency", "s"], ["a1", "a2", "a3"]),
    ],
)
def test_ranges_are_etcdctls(fresh: Cli, arguments: list[str], keys: list[str]) -> None:
    """Prefix, from-key, range end, limit, order and sort mean what they mean in etcdctl."""
    for key, value in (("a1", "y"), ("a2", "z"), ("a3", "x"), ("b1", "w")):
        fresh("put", key, value)
    assert fresh("get", *arguments, "--keys-only")[1].split() == keys


def test_serializable_reads_need_no_quorum(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """`--consistency s` asks the member alone; the default never does, and fails rather than be stale."""

    async def scenario() -> tuple[int, int]:
        async with Processes(tmp_path) as nodes:
            await nodes["n1"].kv.put("k", "v", timeout=20.0)
            await nodes["n2"].kill()
            await nodes["n3"].kill()
            get = ["--endpoints", nodes["n1"].address, "--timeout", "0.5", "get", "k"]
            linearizable = await asyncio.to_thread(main, get)
            assert capsysbinary.readouterr().out == b""
            return linearizable, await asyncio.to_thread(main, [*get, "--consistency", "s"])

    assert asyncio.run(scenario()) == (NOT_APPLIED, DONE)
    assert capsysbinary.readouterr().out == b"k\nv\n"


def test_only_the_count_is_printed_when_asked_for(fresh: Cli) -> None:
    """`--count-only` counts the whole range."""
    fresh("put", "a", "1")
    fresh("put", "b", "1")
    assert fresh("get", "", "--prefix", "--count-only") == (DONE, "2\n", "")


def test_an_older_revision_can_be_read(fresh: Cli) -> None:
    """`--rev` reads as of that revision."""
    fresh("put", "k", "old")
    revision = json.loads(fresh("get", "k", "-w", "json")[1])["header"]["revision"]
    fresh("put", "k", "new")
    assert fresh("get", "k", "--rev", str(revision))[1] == "k\nold\n"
    assert fresh("get", "k", "--rev", str(revision + 1000))[0] == NOT_APPLIED


def test_ranges_are_deleted(fresh: Cli) -> None:
    """`del` takes a prefix, a range end or from-key."""
    for key in ("a1", "a2", "b1", "b2", "c1"):
        fresh("put", key, "v")
    assert fresh("del", "a", "--prefix")[1] == "2\n"
    assert fresh("del", "b1", "b2")[1] == "1\n"
    assert fresh("del", "b", "--from-key")[1] == "2\n"


def test_json_is_etcds(fresh: Cli) -> None:
    """Bytes in base64, zeros left out, names as in etcd."""

    def b64(text: str) -> str:
        return base64.b64encode(text.encode()).decode()

    put = json.loads(fresh("put", "k", "v", "-w", "json")[1])
    revision = put["header"]["revision"]
    assert put == {"header": {"revision": revision}}
    kv = {
        "key": b64("k"),
        "value": b64("v"),
        "create_revision": revision,
        "mod_revision": revision,
        "version": 1,
    }
    got = json.loads(fresh("get", "k", "-w", "json")[1])
    assert got == {"header": {"revision": revision}, "kvs": [kv], "count": 1}
    limited = json.loads(fresh("get", "", "--prefix", "--limit", "1", "--keys-only", "-w", "json")[1])
    del kv["value"]
    assert limited["kvs"] == [kv]
    fresh("put", "k2", "")
    limited = json.loads(fresh("get", "", "--prefix", "--limit", "1", "-w", "json")[1])
    assert (limited["count"], limited["more"]) == (2, True)
    assert json.loads(fresh("put", "k", "w", "--prev-kv", "-w", "json")[1])["prev_kv"]["version"] == 1
    deleted = json.loads(fresh("del", "k", "--prev-kv", "-w", "json")[1])
    assert (deleted["deleted"], deleted["prev_kvs"][0]["value"]) == (1, b64("w"))


# --- Watching ------------------------------------------------------------------------------------------------------


class Told(io.TextIOBase):
    """A standard output that wakes whoever waits for its next words."""

    def __init__(self) -> None:
        self.text = ""
        self._more = asyncio.Event()

    @property
    def buffer(self) -> Told:
        return self

    def write(self, raw: bytes) -> int:  # type: ignore[override]
        self.text += raw.decode()
        self._more.set()
        return len(raw)

    async def until(self, end: str) -> str:
        """Wait until what was told ends so, and return it."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not self.text.endswith(end):
                self._more.clear()
                await self._more.wait()
        return self.text


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--rev"], "PUT\nw\n1\nPUT\nw\n2\nDELETE\nw\n\n"),
        (["--prev-kv", "--rev"], "PUT\nw\n1\nPUT\nw\n1\nw\n2\nDELETE\nw\n2\nw\n\n"),
    ],
)
def test_history_and_changes_are_printed(
    fresh: Cli, address: str, flags: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From `--rev` on, every change is printed as etcdctl prints it."""
    revision = json.loads(fresh("put", "w", "1", "-w", "json")[1])["header"]["revision"]

    async def scenario() -> str:
        out = Told()
        monkeypatch.setattr(sys, "stdout", out)
        args = parser().parse_args(["--endpoints", address, "watch", "w", *flags, str(revision)])
        watching = asyncio.create_task(watch(args))
        await out.until("w\n1\n")
        async with pyraftkv.connect(address) as kv:
            await kv.put("w", "2")
            await kv.delete("w")
        text = await out.until("w\n\n")
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        return text

    assert asyncio.run(scenario()) == told


def test_a_watch_prints_json(fresh: Cli, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line per batch, with etcd's names."""
    revision = json.loads(fresh("put", "w", "1", "-w", "json")[1])["header"]["revision"]

    async def scenario() -> str:
        out = Told()
        monkeypatch.setattr(sys, "stdout", out)
        arguments = ["watch", "w", "--prefix", "--rev", str(revision), "-w", "json", "--endpoints", address]
        watching = asyncio.create_task(watch(parser().parse_args(arguments)))
        text = await out.until("\n")
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        return text

    batch = json.loads(asyncio.run(scenario()))
    assert batch["header"]["revision"] == revision
    assert [(event["type"], event["kv"]["key"]) for event in batch["events"]] == [("PUT", "dw==")]


def test_a_watch_is_ended_by_ctrl_c(address: str) -> None:
    """Ctrl-C ends a watch with status 130 and without a traceback."""
    command = [sys.executable, "-m", "pyraftkv", "--endpoints", address, "watch", "c", "--rev", "1"]
    asyncio.run(_put(address, "c", "1"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "PUT\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=WAIT_SECONDS)
    assert (process.returncode, err) == (INTERRUPTED, "")


async def _put(address: str, key: str, value: str) -> None:
    async with pyraftkv.connect(address) as kv:
        await kv.put(key, value)


# --- Endpoints -----------------------------------------------------------------------------------------------------


def test_a_member_tells_its_status(fresh: Cli, address: str) -> None:
    """Simple is etcdctl's commas, table its frame, JSON its names."""
    status, out, _ = fresh("endpoint", "status")
    assert (status, out.split(", ")[0], out.split(", ")[4:6]) == (DONE, address, ["true", "false"])
    status, out, _ = fresh("endpoint", "status", "-w", "table")
    assert status == DONE
    assert [cell.strip() for cell in out.splitlines()[1].strip("|").split("|")] == [
        *("ENDPOINT", "ID", "VERSION", "DB SIZE", "IS LEADER", "IS LEARNER", "RAFT TERM", "RAFT INDEX"),
        *("RAFT APPLIED INDEX", "LAG", "ERRORS"),
    ]
    (row,) = json.loads(fresh("endpoint", "status", "-w", "json")[1])
    assert row["Endpoint"] == address
    assert row["Status"]["leader"] == row["Status"]["header"]["member_id"] == 1
    assert (row["Status"]["lag"], row["Status"]["hasQuorum"]) == (0, True)


def test_hashes_of_endpoints_are_compared(fresh: Cli, address: str) -> None:
    """One line each; those of the same revisions must be the same, and others say nothing of each other."""
    status, out, _ = fresh("endpoint", "hashkv")
    name, hash_, revision, compact, error = out.rstrip("\n").split(", ")
    assert (status, name, compact, error) == (DONE, address, "0", "")
    (row,) = json.loads(fresh("endpoint", "hashkv", "--rev", revision, "-w", "json")[1])
    assert row["Endpoint"] == address
    assert f"{row['HashKV']['hash']:016x}" == hash_
    assert row["HashKV"]["hash_revision"] == int(revision)
    status, out, _ = fresh("endpoint", "hashkv", "--rev", "99999")
    assert (status, "FutureRevision" in out) == (NOT_APPLIED, True)
    assert "FutureRevision" in json.loads(fresh("endpoint", "hashkv", "--rev", "99999", "-w", "json")[1])[0]["Error"]
    one = KvHash(9, 9, 5, 77)
    assert not some_differ([one, KvHash(10, 9, 5, 77), KvHash(9, 9, 4, 78), KvHash(9, 8, 5, 79)])
    assert some_differ([one, KvHash(9, 9, 5, 78)])


def test_an_endpoint_that_is_down_is_a_line_of_its_own(fresh: Cli, address: str) -> None:
    """The others are shown all the same, and the status says that not all is well."""
    down = f"127.0.0.1:{free_ports(1)[0]}"
    both = ["--endpoints", f"{address},{down}", "--timeout", "0.3"]
    status, out, _ = fresh(*both, "endpoint", "status")
    assert status == NOT_APPLIED
    assert out.splitlines()[0].startswith(address)
    assert re.match(rf"{down}, (, )+ReadTimeout: ", out.splitlines()[1])
    rows = json.loads(fresh(*both, "endpoint", "status", "-w", "json")[1])
    assert "ReadTimeout" in rows[1]["Error"]
    status, out, _ = fresh(*both, "endpoint", "health")
    assert status == NOT_APPLIED
    assert re.match(rf"{address} is healthy: .*\n{down} is unhealthy: ReadTimeout: ", out)
    rows = json.loads(fresh(*both, "endpoint", "health", "-w", "json")[1])
    assert [row["health"] for row in rows] == [True, False]
    table = fresh(*both, "endpoint", "health", "-w", "table")[1].splitlines()
    assert [re.split(r" *\| *", line)[1:3] for line in table[3:5]] == [[address, "true"], [down, "false"]]


def test_what_a_member_misses_of_what_is_committed_is_its_lag() -> None:
    """The largest commit index that anybody knows is the mark; alarms and a lost quorum stand under ERRORS."""
    status = pyraftkv.Status(
        *("n2", 2, 7, "follower", 0, "", 3),
        *(90, 80, 95, 95, 40, 1, 20480, 10),
        has_quorum=False,
        storage="file",
        version="1",
        alarms=["NOSPACE"],
    )
    row = status_row("a:1", status, committed=100)
    assert row == ["a:1", "2", "1", "20 kB", "false", "false", "3", "95", "80", "20", "NOSPACE, no quorum"]
    assert status_json("a:1", status, committed=100)["Status"]["lag"] == 20
    assert status_row("a:1", status, committed=70)[-2] == "0"


# --- Errors and arguments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.NoLeader(), NOT_APPLIED),
        (errors.Compacted(), NOT_APPLIED),
        (errors.HandshakeRejected(), NOT_APPLIED),
        (errors.InvalidRequest(), USAGE),
        (errors.ConfigurationError(), USAGE),
        (errors.WriteTimeout(), UNKNOWN),
        (errors.ConnectionLost(), UNKNOWN),
        (errors.StorageFailed(), STORAGE),
        (errors.DataDirLocked(), STORAGE),
        (errors.WalCorruption(), STORAGE),
    ],
)
def test_the_exit_status_says_whether_it_happened(error: errors.PyraftkvError, status: int) -> None:
    """1: it did not; 3: nobody knows; 2: it never can; 70: the disk."""
    assert exit_status(error) == status


def test_nobody_there_is_one_line_and_soon(capsys: pytest.CaptureFixture[str]) -> None:
    """No command hangs; the error is one line on standard error."""
    endpoint = f"127.0.0.1:{free_ports(1)[0]}"
    for verb in (["get", "k"], ["put", "k", "v"], ["watch", "k"], ["bench"], ["check", "perf"]):
        assert main(["--endpoints", endpoint, "--timeout", "200ms", *verb]) == NOT_APPLIED
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(r"Error: (ReadTimeout|NoLeader): .*\n", err)
        assert verb == ["watch", "k"] or f"({endpoint}: Connection refused)" in err


def test_whose_directory_was_is_asked_for_by_its_flag() -> None:
    """The error is the library's, and names its argument."""
    unnamed = parser().parse_args(["rebuild", "d", "--join", "a:1"])
    assert "--name" in advice(errors.MemberNotFound(), unnamed)


def test_who_names_no_members_is_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody at the default address is a newcomer's first error; whoever named others knows what he did."""
    monkeypatch.delenv("PYRAFTKV_ENDPOINTS", raising=False)
    unnamed, named = parser().parse_args(["get", "k"]), parser().parse_args(["get", "k", "--endpoints", "a:1"])
    assert "--endpoints" in advice(errors.NoLeader(), unnamed)
    assert (advice(errors.NoLeader(), named), advice(errors.LockNotAcquired(), unnamed)) == ("", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["get", ""],
        ["put", "", "v"],
        ["get", "k", "--endpoints", " , "],
        ["get", "k", "--endpoints", ",".join(f"h:{port}" for port in range(1, 100))],
        ["get", "k", "--tls-ca", "/nowhere"],
        ["serve", "--listen", "0.0.0.0:0", "--data-dir", "{tmp}"],
        ["serve", "--members", "nonsense", "--data-dir", "{tmp}"],
        ["serve", "--name", "x", "--members", "a=127.0.0.1:1", "--data-dir", "{tmp}"],
        ["demo", "/nowhere/at/all"],
        ["demo", "{tmp}"],
    ],
)
def test_a_request_that_is_wrong_is_usage(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What can never work is status 2 and one line, before or without any member's help."""
    assert main(["--timeout", "0.5", *(each.replace("{tmp}", str(tmp_path)) for each in arguments)]) == USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["frob"],
        ["get"],
        ["get", "k", "--limit", "-1"],
        ["get", "k", "--timeout", "0"],
        ["endpoint"],
        ["serve", "--data-dir", ""],
    ],
)
def test_arguments_that_do_not_parse_are_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with 2, as other commands do, and with one line that says where to read more."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: ")
    assert line.endswith("--help`")


def test_nothing_at_all_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Every verb with a line, on standard error, as it is a wrong command line still."""
    assert main([]) == USAGE
    out, err = capsys.readouterr()
    assert (out, "set a key" in err) == ("", True)


def test_a_verb_that_is_nearly_right_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """In place of a list of all of them; what is near nothing gets the list."""
    for arguments, told in [(["member", "lst"], "did you mean 'list'?"), (["xyzzy"], "snapshot")]:
        with pytest.raises(SystemExit):
            main(arguments)
        assert told in capsys.readouterr().err


def test_help_shows_what_is_a_verbs_own(capsys: pytest.CaptureFixture[str]) -> None:
    """What every verb takes stands in the help of the whole, and is named in one line of each other."""
    with pytest.raises(SystemExit):
        main(["put", "--help"])
    told = capsys.readouterr().out
    assert "KEY [VALUE]" in told
    assert "[--endpoints" not in told
    assert told.count("--tls-ca") == 1


def test_an_argument_that_does_not_parse_is_told_what_it_should_be(capsys: pytest.CaptureFixture[str]) -> None:
    """In the words of whoever types it, not in the name of the function that parses it."""
    for arguments, words in [
        (["get", "k", "--rev", "-1"], "--rev: '-1' is no whole number from 0 on"),
        (["get", "k", "--timeout", "soon"], "'soon' is no wait above zero, such as 5, 5s, 500ms or 1m"),
        (["lease", "revoke", "mine"], "'mine' is no id of a lease"),
    ]:
        with pytest.raises(SystemExit):
            main(arguments)
        assert words in capsys.readouterr().err


def test_global_options_stand_before_or_after_the_verb() -> None:
    """Hands put them in either place; the last one wins."""
    before = parser().parse_args(["--endpoints", "a:1", "-w", "json", "get", "k"])
    after = parser().parse_args(["get", "k", "--endpoints", "a:1", "-w", "json"])
    assert (before.endpoints, before.write_out) == (after.endpoints, after.write_out) == ("a:1", "json")
    assert parser().parse_args(["--timeout", "1", "get", "k", "--timeout", "2"]).timeout == 2.0


def test_endpoints_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """PYRAFTKV_ENDPOINTS, or the port that `serve` listens on."""
    monkeypatch.delenv("PYRAFTKV_ENDPOINTS", raising=False)
    assert parser().parse_args(["get", "k"]).endpoints == DEFAULT_ADDRESS
    monkeypatch.setenv("PYRAFTKV_ENDPOINTS", "a:1,b:2")
    assert parser().parse_args(["get", "k"]).endpoints == "a:1,b:2"


def test_waits_are_written_as_in_etcdctl() -> None:
    """Seconds, or with a unit."""
    assert [seconds(text) for text in ("5", "0.5", "5s", "500ms", "2m")] == [5.0, 0.5, 5.0, 0.5, 120.0]
    for text in ("", "x", "-1s", "0", "inf", "nan"):
        with pytest.raises(argparse.ArgumentTypeError, match="no wait above zero"):
            seconds(text)


def test_the_version_is_told(cli: Cli) -> None:
    """By verb and by flag."""
    assert cli("version") == (DONE, f"pyraftkv {pyraftkv.__version__}\n", "")
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == DONE


def test_a_reader_that_has_enough_is_no_error(address: str) -> None:
    """`pyraftkv get ... | head` ends quietly."""
    asyncio.run(_put(address, "big", "x" * 1_000_000))
    command = [sys.executable, "-m", "pyraftkv", "--endpoints", address, "get", "big"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait(WAIT_SECONDS)) == (b"", DONE)


# --- Serving -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(data_dir: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run ``serve`` as a process; yield it and the address that it says."""
    command = [sys.executable, "-m", "pyraftkv", "serve", "--data-dir", str(data_dir), "--listen", "127.0.0.1:0"]
    with subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        while " runs at " not in said:
            line = process.stderr.readline()
            assert line, f"serve ended: {said}"
            said += line
        try:
            yield process, said.split(" runs at ")[1].split()[0]
        finally:
            process.kill()
            process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_closes_on_a_signal_and_keeps_the_data(tmp_path: Path, cli: Cli, number: signal.Signals) -> None:
    """A signal to stop is a graceful end with status 0; the next start has the data."""
    with served(tmp_path) as (process, address):
        assert cli("--endpoints", address, "put", "k", "v")[1] == "OK\n"
        process.send_signal(number)
        assert process.wait(WAIT_SECONDS) == DONE
    with served(tmp_path) as (process, address):
        assert cli("--endpoints", address, "get", "k")[1] == "k\nv\n"


def test_a_second_member_on_one_directory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The storage's errors have a status of their own: 70."""
    with served(tmp_path):
        assert main(["serve", "--data-dir", str(tmp_path), "--listen", "127.0.0.1:0"]) == STORAGE
    assert "Error: DataDirLocked: " in capsys.readouterr().err


def test_a_port_that_is_taken_is_usage(tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A member that cannot listen says so and ends; the demo counts on this status."""
    assert main(["serve", "--data-dir", str(tmp_path), "--listen", address]) == USAGE
    assert "Error: ConfigurationError: " in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGTERM")
def test_serve_listens_at_its_own_address_in_members(tmp_path: Path) -> None:
    """With `--members`, a member needs no `--listen`; a signal while it waits for the others ends it too."""
    here, there = free_ports(2)
    members = f"a=127.0.0.1:{here},b=127.0.0.1:{there}"
    command = ["serve", "--name", "a", "--data-dir", str(tmp_path / "a"), "--members", members]

    def stop_when_it_listens() -> None:
        asyncio.run(_dial_until_listening(here))
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_when_it_listens)
    thread.start()
    assert main(command) == DONE
    thread.join(WAIT_SECONDS)


async def _dial_until_listening(port: int) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.01)


def one_node(network: MemoryNetwork, storage: MemoryStorage) -> Node:
    """Make a cluster of one."""
    return Node(
        "a",
        members={"a": "a"},
        storage=storage,
        transport=network.transport("a"),
        config=FAST,
        rng=random.Random(1),
    )


async def running_now(node: Node) -> None:
    """Wait until a node that somebody else starts can be asked."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            with contextlib.suppress(errors.Closed):
                await node.get("k")
                return
            await asyncio.sleep(0)


def test_a_node_runs_until_it_is_told_to_stop() -> None:
    """Then it is closed, and all is well."""

    async def scenario() -> int:
        stop = asyncio.Event()
        node = one_node(MemoryNetwork(), MemoryStorage())
        running = asyncio.create_task(run_until(node, stop))
        await running_now(node)
        await node.put("k", "v")
        stop.set()
        status = await running
        with pytest.raises(errors.Closed):
            await node.get("k")
        return status

    assert asyncio.run(scenario()) == DONE


def test_a_disk_that_fails_ends_the_run_with_its_error() -> None:
    """What stopped the node is raised, so that the exit status is the storage's."""

    async def scenario() -> None:
        node = one_node(MemoryNetwork(), MemoryStorage())
        running = asyncio.create_task(run_until(node, asyncio.Event()))
        await running_now(node)
        node._life._fail(errors.StorageFailed("the disk is gone"))
        with pytest.raises(errors.StorageFailed, match="the disk is gone"):
            await running

    asyncio.run(scenario())


def test_the_second_signal_has_its_usual_effect() -> None:
    """The first one asks; whoever sends another is in a hurry."""

    async def scenario() -> object:
        before = signal.getsignal(signal.SIGTERM)
        with told_to_stop() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(WAIT_SECONDS):
                await stop.wait()
            assert signal.getsignal(signal.SIGTERM) == before
        return signal.getsignal(signal.SIGTERM) == before

    assert asyncio.run(scenario()) is True


# --- The terminal --------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A terminal of 80 columns."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (20480, "20 kB"), (999_499, "999 kB"), (999_500, "1.0 MB")),
        *((1_250_000, "1.2 MB"), (3 * 10**9, "3.0 GB"), (5 * 10**12, "5.0 TB"), (5 * 10**15, "5000 TB")),
    ],
)
def test_sizes_are_written_as_in_etcdctl(count: int, text: str) -> None:
    """Powers of 1000."""
    assert human_bytes(count) == text


def test_a_table_has_etcdctls_frame() -> None:
    """Columns are as wide as their widest cell."""
    framed = "+---+------+\n| A | B    |\n+---+------+\n| 1 | long |\n+---+------+"
    assert plain_table(["A", "B"], [["1", "long"]]) == framed


def story(screen: Screen) -> None:
    """Tell something of everything."""
    screen.title("title")
    screen.progress("half", 1, 2)
    screen.progress("too soon to draw again", 1, 2)
    screen.step("done")
    screen.blow("dead")
    screen.note("aside")
    screen.fail("wrong")
    screen.table(["A"], [["[b]1"]])


def test_a_log_file_gets_plain_lines() -> None:
    """No control code, and progress as a line now and then."""
    out = io.StringIO()
    story(Screen(out))
    assert out.getvalue() == (
        "title\n\n       half\n  ok   done\n  KILL dead\n       aside\n  FAIL wrong\n"
        "+------+\n| A    |\n+------+\n| [b]1 |\n+------+\n"
    )


def test_progress_is_said_seldom_where_it_cannot_be_redrawn() -> None:
    """Every two seconds in a log."""
    now = 0.0
    out = io.StringIO()
    screen = Screen(out, clock=lambda: now)
    for _ in range(100):
        screen.progress("on", 1, 2)
        now += 0.1
    assert out.getvalue().count("on") == 5


def test_a_terminal_with_rich_gets_colours() -> None:
    """The same words, drawn."""
    out = Terminal()
    story(Screen(out))
    text = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", out.getvalue())
    for word in ("title", "half", "ok", "done", "KILL dead", "FAIL wrong", "[b]1"):
        assert word in text


def test_a_terminal_without_rich_redraws_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything works without the extra."""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    out = Terminal()
    screen = Screen(out)
    screen.progress("one half", 1, 2)
    screen.step("done")
    half = f"  {bar(1, 2)} one half"
    assert out.getvalue() == f"\r{half}\r{' ' * len(half)}\r  ok   done\n"
    print_table(out, ["A"], [["1"]])
    assert out.getvalue().endswith("| 1 |\n+---+\n")


def test_a_bar_is_never_longer_than_itself() -> None:
    """Nothing to do, more than everything done."""
    assert bar(0, 0) == "[------------------------]"
    assert bar(3, 2) == "[########################]"
