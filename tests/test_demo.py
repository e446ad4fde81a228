from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pyraftkv
from pyraftkv import errors
from pyraftkv.cli.common import DONE, INTERRUPTED, STORAGE
from pyraftkv.cli.terminal import Screen
from pyraftkv.client import Client
from pyraftkv.demo import BAD, GOOD, Demo, run
from pyraftkv.demo import verdict as checking
from pyraftkv.demo.load import AGAIN_BYTES_MAX, IN_FLIGHT_BYTES_MAX, Loader, Written, digest
from pyraftkv.demo.processes import MemberDied, Processes, free_ports
from pyraftkv.demo.tree import PIECE_BYTES_MAX, Piece, pieces_of
from pyraftkv.demo.verdict import Verdict, check
from pyraftkv.store.values import PutResult

FAST = pyraftkv.NodeConfig(heartbeat_seconds=0.05, election_timeout_seconds=0.2)
WAIT_SECONDS = 60.0


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree with everything that a tree can have."""
    root = tmp_path / "tree"
    for name, content in {
        "b.txt": b"b",
        "a/empty": b"",
        "a/one.py": b"one\n",
        "a/two.bin": bytes(range(256)) * 10,
        ".git/config": b"history",
        "a/__pycache__/one.pyc": b"cache",
        "env/pyvenv.cfg": b"home = /usr",
        "env/lib/x.py": b"environment",
        ".hidden": b"a file like others",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def written(piece: Piece) -> Written:
    """Return what is remembered of a piece that was put."""
    return Written(piece, piece.size, digest(piece.read()))


# --- The tree ------------------------------------------------------------------------------------------------------


def test_a_tree_is_its_own_files(tree: Path) -> None:
    """Histories, caches and environments are left out; the rest comes in order."""
    assert [piece.name for piece in pieces_of(tree)] == [b".hidden", b"b.txt", b"a/empty", b"a/one.py", b"a/two.bin"]
    assert [piece.read() for piece in pieces_of(tree)[1:4]] == [b"b", b"", b"one\n"]


def test_links_and_pipes_are_not_followed(tree: Path) -> None:
    """Only regular files: a link may lead out of the tree, and a pipe never ends."""
    before = [piece.name for piece in pieces_of(tree)]
    (tree / "link").symlink_to("/etc/passwd")
    (tree / "loop").symlink_to(tree)
    os.mkfifo(tree / "pipe")
    assert [piece.name for piece in pieces_of(tree)] == before


def test_a_large_file_comes_in_pieces(tmp_path: Path) -> None:
    """Pieces of 1 MiB, which together are the file."""
    content = os.urandom(256) * ((2 * PIECE_BYTES_MAX + 512) // 256)
    (tmp_path / "large").write_bytes(content)
    (tmp_path / "limit").write_bytes(content[:PIECE_BYTES_MAX])
    pieces = pieces_of(tmp_path)
    assert [(piece.name, piece.size) for piece in pieces] == [
        (b"large/0", PIECE_BYTES_MAX),
        (b"large/1", PIECE_BYTES_MAX),
        (b"large/2", 512),
        (b"limit", PIECE_BYTES_MAX),
    ]
    assert b"".join(piece.read() for piece in pieces[:3]) == content


def test_names_need_not_be_utf8(tmp_path: Path) -> None:
    """A file's name is bytes."""
    try:
        (tmp_path / os.fsdecode(b"\xff.txt")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system knows only UTF-8")
    assert [piece.name for piece in pieces_of(tmp_path)] == [b"\xff.txt"]


def test_a_tree_has_a_bound(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left over is not loaded; a large file may be cut in the middle."""
    monkeypatch.setattr("pyraftkv.demo.tree.PIECES_MAX", 3)
    assert [piece.name for piece in pieces_of(tree)] == [b".hidden", b"b.txt", b"a/empty"]


def test_a_tree_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """Nothing loaded is nothing shown."""
    with pytest.raises(OSError):
        pieces_of(tmp_path / "nowhere")


# --- Loading -------------------------------------------------------------------------------------------------------


def test_every_key_is_put_once_while_the_leader_dies(tree: Path) -> None:
    """Through a follower, round after round; the outage is measured, and nothing is put twice."""

    async def scenario() -> tuple[Loader, list[pyraftkv.KeyValue]]:
        async with pyraftkv.Cluster.in_memory(3, config=FAST, seed=7) as cluster:
            kv = cluster.client()
            loader = Loader(kv, pieces_of(tree), loop=asyncio.get_running_loop())
            loading = asyncio.create_task(loader.run())
            async with asyncio.timeout(WAIT_SECONDS):
                await loader.tree_loaded.wait()
                loader.killed()
                await cluster.kill(cluster.leader)
                await loader.recovered.wait()
            loader.stop()
            await loading
            return loader, [kv_ async for kv_ in kv.scan()]

    loader, found = asyncio.run(scenario())
    assert loader.outage_seconds > 0.05
    assert loader.seconds > loader.outage_seconds
    assert {kv.version for kv in found} == {1}
    assert {kv.key for kv in found} >= set(loader.acknowledged)
    assert {kv.key for kv in found} <= set(loader.acknowledged) | set(loader.unknown)
    assert loader.round > 1
    assert all(digest(kv.value) == loader.acknowledged[kv.key].digest for kv in found if kv.key in loader.acknowledged)


class Moody(Client):
    """A client whose first writes end as they are told to, after they were applied or not."""

    def __init__(self, inner: Client, moods: list[errors.PyraftkvError]) -> None:
        self._inner = inner
        self._moods = moods
        self.attempts: list[bytes] = []

    async def write_put(self, key: bytes, value: bytes, timeout: float | None) -> PutResult:
        self.attempts.append(key)
        if self._moods:
            mood = self._moods.pop(0)
            if isinstance(mood, errors.MaybeApplied):
                await self._inner.write_put(key, value, timeout)
            raise mood
        return await self._inner.write_put(key, value, timeout)


def load_moodily(tree: Path, *moods: errors.PyraftkvError) -> tuple[Loader, Moody, dict[bytes, int]]:
    """Load a tree through a `Moody` client; return what the loader knows, and every key's version."""

    async def scenario() -> tuple[Loader, Moody, dict[bytes, int]]:
        async with pyraftkv.Cluster.in_memory(1, config=FAST, seed=7) as cluster:
            kv = Moody(cluster.client(), list(moods))
            loader = Loader(kv, pieces_of(tree), loop=asyncio.get_running_loop())
            loading = asyncio.create_task(loader.run())
            waiting = asyncio.create_task(loader.tree_loaded.wait())
            await asyncio.wait([loading, waiting], return_when=asyncio.FIRST_COMPLETED)
            loader.stop()
            waiting.cancel()
            await loading
            return loader, kv, {kv_.key: kv_.version async for kv_ in cluster.client().scan()}

    return asyncio.run(scenario())


def test_a_put_that_was_not_applied_is_put_again(tree: Path) -> None:
    """`NotApplied` never happened: the key is put again and counts once."""
    loader, kv, versions = load_moodily(tree, errors.NoLeader(), errors.Overloaded())
    assert loader.unknown == {}
    assert set(versions) == set(loader.acknowledged)
    assert set(versions.values()) == {1}
    assert len(kv.attempts) == len(loader.acknowledged) + 2


def test_a_put_that_may_have_been_applied_is_never_put_again(tree: Path) -> None:
    """`MaybeApplied` is counted apart; to put it again could make it a duplicate."""
    loader, kv, versions = load_moodily(tree, errors.WriteTimeout())
    assert len(loader.unknown) == 1
    assert not set(loader.unknown) & set(loader.acknowledged)
    assert len(kv.attempts) == len(set(kv.attempts))
    assert set(versions.values()) == {1}


def test_an_error_that_cannot_be_right_ends_the_load(tree: Path) -> None:
    """A refusal that no retry can mend is not swept under."""
    with pytest.raises(ExceptionGroup) as raised:
        load_moodily(tree, errors.RequestTooLarge())
    assert raised.group_contains(errors.RequestTooLarge)


def test_large_files_are_loaded_once(tmp_path: Path) -> None:
    """Further rounds take the small ones, unless there are none."""

    async def first(count: int) -> list[bytes]:
        async with pyraftkv.Cluster.in_memory(1, config=FAST, seed=7) as cluster:
            keys = Loader(cluster.client(), pieces_of(tmp_path), loop=asyncio.get_running_loop())._rounds()
            return [next(keys)[0] for _ in range(count)]

    (tmp_path / "large").write_bytes(bytes(AGAIN_BYTES_MAX + 1))
    assert asyncio.run(first(2)) == [b"1/large", b"2/large"]
    (tmp_path / "small").write_bytes(bytes(AGAIN_BYTES_MAX))
    assert asyncio.run(first(4)) == [b"1/large", b"1/small", b"2/small", b"3/small"]


def test_a_file_that_vanishes_is_counted_and_passed_over(tree: Path) -> None:
    """A tree in use changes under our hands."""
    pieces = pieces_of(tree)
    pieces[0].path.unlink()

    async def scenario() -> Loader:
        async with pyraftkv.Cluster.in_memory(1, config=FAST, seed=7) as cluster:
            loader = Loader(cluster.client(), pieces, loop=asyncio.get_running_loop())
            loading = asyncio.create_task(loader.run())
            await loader.tree_loaded.wait()
            loader.stop()
            await loading
            return loader

    assert asyncio.run(scenario()).unreadable == {pieces[0].name}


def test_values_under_way_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the files and whatever the pace: a member drops a client that has too much to send."""
    monkeypatch.setattr("pyraftkv.demo.load.BYTES_PER_SECOND_MAX", 10**12)
    for number in range(20):
        (tmp_path / str(number)).write_bytes(bytes(PIECE_BYTES_MAX))
    largest = 0

    class Counting(Moody):
        under_way = 0

        async def write_put(self, key: bytes, value: bytes, timeout: float | None) -> PutResult:
            nonlocal largest
            self.under_way += len(value)
            largest = max(largest, self.under_way)
            try:
                return await super().write_put(key, value, timeout)
            finally:
                self.under_way -= len(value)

    async def scenario() -> None:
        async with pyraftkv.Cluster.in_memory(1, config=FAST, seed=7) as cluster:
            loader = Loader(Counting(cluster.client(), []), pieces_of(tmp_path), loop=asyncio.get_running_loop())
            loading = asyncio.create_task(loader.run())
            await loader.tree_loaded.wait()
            loader.stop()
            await loading

    asyncio.run(scenario())
    assert 0 < largest <= IN_FLIGHT_BYTES_MAX


# --- Checking ------------------------------------------------------------------------------------------------------


def judged(tree: Path, *spoil: tuple[str, bytes, bytes], maybe: tuple[bytes, ...] = ()) -> Verdict:
    """Put a tree, spoil it by (verb, key, value), check it; ``maybe`` are keys whose outcome is unknown."""

    async def scenario() -> Verdict:
        pieces = {piece.name: piece for piece in pieces_of(tree)}
        async with pyraftkv.Cluster.in_memory(1, config=FAST, seed=7) as cluster:
            kv = cluster.client()
            known = {name: written(piece) for name, piece in pieces.items()}
            for name, piece in pieces.items():
                await kv.put(name, piece.read())
            for verb, key, value in spoil:
                if verb == "delete":
                    await kv.delete(key)
                elif verb == "put":
                    await kv.put(key, value)
                elif verb == "write":
                    (tree / os.fsdecode(key)).write_bytes(value)
                else:
                    (tree / os.fsdecode(key)).unlink()
            verdict = Verdict("n")
            unknown = {name: known.pop(name) for name in maybe}
            await check(verdict, kv, acknowledged=known, unknown=unknown)
            return verdict

    return asyncio.run(scenario())


def counts(verdict: Verdict) -> tuple[int, int, int, int, int]:
    """Return keys, lost, duplicated, different, changed."""
    return verdict.keys, verdict.lost, verdict.duplicated, verdict.different, verdict.changed


def test_a_tree_that_is_all_there_is_good(tree: Path) -> None:
    """Five files, five keys."""
    verdict = judged(tree)
    assert counts(verdict) == (5, 0, 0, 0, 0)
    assert (verdict.is_good, verdict.examples) == (True, [])


@pytest.mark.parametrize("key", [b".hidden", b"a/one.py", b"b.txt"])
def test_an_acknowledged_key_that_is_missing_is_lost(tree: Path, key: bytes) -> None:
    """Wherever it stood."""
    verdict = judged(tree, ("delete", key, b""))
    assert counts(verdict) == (4, 1, 0, 0, 0)
    assert (verdict.is_good, verdict.examples) == (False, [f"lost: {key!r}"])


def test_an_unknown_outcome_may_be_there_or_not(tree: Path) -> None:
    """`MaybeApplied` means just that."""
    assert judged(tree, ("delete", b"b.txt", b""), maybe=(b"b.txt",)).is_good
    assert judged(tree, maybe=(b"b.txt",)).is_good


def test_a_key_that_was_put_twice_is_duplicated(tree: Path) -> None:
    """Its version says so, although its bytes are the same; an unknown outcome is no excuse."""
    assert counts(judged(tree, ("put", b"b.txt", b"b"))) == (5, 0, 1, 0, 0)
    assert counts(judged(tree, ("put", b"b.txt", b"b"), maybe=(b"b.txt",))) == (5, 0, 1, 0, 0)


def test_other_bytes_are_different(tree: Path) -> None:
    """Deleted and put again hides the version, not the bytes."""
    verdict = judged(tree, ("delete", b"b.txt", b""), ("put", b"b.txt", b"x"))
    assert counts(verdict) == (5, 0, 0, 1, 0)
    assert not verdict.is_good


@pytest.mark.parametrize("key", [b"0", b"a/on", b"zzz"])
def test_a_key_that_nobody_put_is_different(tree: Path, key: bytes) -> None:
    """Before, between and behind the others."""
    assert counts(judged(tree, ("put", key, b"?"))) == (6, 0, 0, 1, 0)


def test_a_file_that_changed_on_the_disk_is_no_fault_of_the_store(tree: Path) -> None:
    """The value is what was put: said, and not held against it."""
    assert counts(judged(tree, ("write", b"b.txt", b"new"))) == (5, 0, 0, 0, 1)
    assert judged(tree, ("unlink", b"b.txt", b"")).is_good


def test_answers_are_asked_for_in_sizes_that_fit(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many keys as one answer holds, and never less than one."""
    monkeypatch.setattr(checking, "BATCH_BYTES_MAX", 5)
    pieces = {piece.name: written(piece) for piece in pieces_of(tree)}
    assert list(checking._batches(pieces)) == [[b".hidden"], [b"a/empty", b"a/one.py"], [b"a/two.bin"], [b"b.txt"]]
    monkeypatch.setattr(checking, "BATCH_BYTES_MAX", 10**6)
    monkeypatch.setattr(checking, "BATCH_KEYS_MAX", 4)
    assert [len(batch) for batch in checking._batches(pieces)] == [4, 1]
    assert list(checking._batches({})) == []
    assert judged(tree).is_good


# --- Processes -----------------------------------------------------------------------------------------------------


def test_a_killed_member_comes_back_and_catches_up(tmp_path: Path) -> None:
    """Three processes; the leader dies, the two others go on, it returns with the rest; none is left behind."""

    async def scenario() -> list[int]:
        async with Processes(tmp_path) as nodes, asyncio.timeout(WAIT_SECONDS):
            leader = await nodes.leader()
            pids = [node.pid for node in nodes.nodes.values()]
            follower = next(node for node in nodes.nodes.values() if node is not leader)
            await follower.kv.put("before", "1")
            await leader.kill()
            assert not leader.is_running
            await follower.kv.put("after", "2", timeout=20.0)
            await nodes.start(leader.name)
            await nodes.caught_up(leader.name)
            found = await leader.kv.range(consistency="local")
            assert [(kv.key, kv.value) for kv in found.kvs] == [(b"after", b"2"), (b"before", b"1")]
            return [*pids, leader.pid]

    for pid in asyncio.run(scenario()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_member_that_cannot_start_says_why(tmp_path: Path) -> None:
    """What it said last is in the error, and the others are ended."""
    (tmp_path / "n2").write_bytes(b"no directory")

    async def scenario() -> None:
        async with Processes(tmp_path):
            raise AssertionError("it must not start")

    with pytest.raises(BaseException) as raised:
        asyncio.run(scenario())
    assert isinstance(raised.value, MemberDied)
    assert "n2 ended with status" in str(raised.value)
    assert "Error: " in str(raised.value)


def test_a_port_that_is_taken_during_a_restart_is_waited_for(tmp_path: Path) -> None:
    """A connection of somebody else may have our port for a moment; the member's address cannot change any more."""

    async def scenario() -> None:
        async with Processes(tmp_path) as nodes:
            await nodes["n1"].kill()
            port = int(nodes["n1"].address.rpartition(":")[2])
            dialled = asyncio.Event()
            server = await asyncio.start_server(lambda _, writer: (dialled.set(), writer.close()), "127.0.0.1", port)
            starting = asyncio.create_task(nodes.start("n1"))
            async with asyncio.timeout(WAIT_SECONDS):
                await dialled.wait()
                pid = None
                while pid is None or nodes["n1"].pid == pid:
                    pid = nodes["n1"].pid if nodes["n1"].is_running else pid
                    await asyncio.sleep(0.01)
                server.close()
                await starting
            assert nodes["n1"].is_running

    asyncio.run(scenario())


def test_ports_are_different_and_free() -> None:
    """Held all at once while they are looked for."""
    ports = free_ports(50)
    assert len(set(ports)) == 50


def test_a_port_that_is_taken_meanwhile_makes_the_start_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may listen there between our look and our start."""
    taken = free_ports(1)[0]
    offers = [[taken, *free_ports(2)], free_ports(3)]
    monkeypatch.setattr("pyraftkv.demo.processes.free_ports", lambda _: offers.pop(0))

    async def scenario() -> list[str]:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", taken)
        async with server, Processes(tmp_path) as nodes:
            return [node.address for node in nodes.nodes.values()]

    assert f"127.0.0.1:{taken}" not in asyncio.run(scenario())


# --- The whole story -----------------------------------------------------------------------------------------------


def test_the_demo_loses_nothing(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole of it with a small tree: the leader dies under load, then everybody; and nothing is lost."""
    out = io.StringIO()
    data = tmp_path / "data"
    status = asyncio.run(run(tree=str(tree), seconds=0.5, data_dir=str(data), keep=False, out=out))
    told = out.getvalue()
    assert status == GOOD, told
    for words in ("KILL SIGKILL to n", "caught up under load", "KILL SIGKILL to all three", "n3: "):
        assert words in told
    table = {cells[1]: cells[2] for line in told.splitlines() if len(cells := re.split(r"\s*\|\s*", line)) == 5}
    assert (table["lost"], table["duplicated"], table["different"]) == ("0", "0", "0")
    assert int(table["acknowledged"].replace(",", "")) > 10
    assert float(table["failover"].split()[0]) > 0.0
    assert not data.exists()
    assert "\x1b" not in told


def test_a_demo_that_cannot_go_on_says_why_and_keeps_the_evidence(tree: Path, tmp_path: Path) -> None:
    """Status 1, the member's last words, and where everything lies."""
    data = tmp_path / "data"
    out = io.StringIO()

    async def scenario() -> int:
        return await run(tree=str(tree), seconds=0.5, data_dir=str(data), keep=False, out=out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path / "broken"))
        broken = tmp_path / "broken" / "msgpack"
        broken.mkdir(parents=True)
        (broken / "__init__.py").write_text("raise SystemExit('no msgpack today')")
        assert asyncio.run(scenario()) == BAD
    assert re.search(r"FAIL MemberDied: n\d ended with status 1", out.getvalue())
    assert "no msgpack today" in out.getvalue()
    assert data.exists()


def test_a_bad_verdict_is_a_bad_end(tree: Path, tmp_path: Path) -> None:
    """What is lost, duplicated or different makes the status 1 and stands in the table."""

    async def scenario() -> tuple[list[Verdict], str]:
        out = io.StringIO()
        demo = Demo(Screen(out), tree, pieces_of(tree), seconds=0.1, folder=tmp_path)
        async with Processes(tmp_path) as nodes:
            await nodes.leader()
            kv = nodes["n1"].kv
            loader = Loader(kv, pieces_of(tree), loop=asyncio.get_running_loop())
            loading = asyncio.create_task(loader.run())
            await loader.tree_loaded.wait()
            loader.stop()
            await loading
            await kv.delete(b"1/b.txt")
            await kv.put(b"1/.hidden", b"x")
            loader.unreadable.add(b"gone")
            for name in nodes.nodes:
                await nodes.caught_up(name)
            verdicts = await demo._check(nodes, loader)
            demo._sum_up(loader, verdicts, seconds=1.0)
        return verdicts, out.getvalue()

    verdicts, told = asyncio.run(scenario())
    assert [(v.lost, v.duplicated, v.different) for v in verdicts] == [(1, 1, 1)] * 3
    assert "FAIL n1: " in told
    assert "lost: b'1/b.txt'" in told
    assert re.search(r"\| lost +\| 3 ", told)
    assert re.search(r"\| unreadable +\| 1 ", told)


@pytest.mark.parametrize(("files", "complaint"), [([], "no file to load"), (["x"], "is not empty")])
def test_a_demo_needs_a_tree_and_a_directory_of_its_own(tmp_path: Path, files: list[str], complaint: str) -> None:
    """Refused before anything is started."""
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(errors.ConfigurationError, match=complaint):
        asyncio.run(run(tree=str(tmp_path), seconds=1.0, data_dir=str(tmp_path), keep=False, out=io.StringIO()))


def test_a_directory_that_was_named_stays_when_the_demo_is_cancelled(tree: Path, tmp_path: Path) -> None:
    """Nothing went wrong, and nobody said that it may be removed."""
    data = tmp_path / "data"

    async def scenario() -> str:
        out = io.StringIO()
        telling = asyncio.create_task(run(tree=str(tree), seconds=60.0, data_dir=str(data), keep=False, out=out))
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                if re.search(r"[1-9]\d* puts", out.getvalue()):
                    break
                await asyncio.sleep(0.05)
        telling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await telling
        return out.getvalue()

    assert f"are in {data}" in asyncio.run(scenario())
    assert sorted(path.name for path in data.iterdir()) == ["n1", "n1.log", "n2", "n2.log", "n3", "n3.log"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing_behind(tree: Path, tmp_path: Path, number: signal.Signals) -> None:
    """No process, no directory, no traceback."""
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, "-m", "pyraftkv", "demo", str(tree), "--seconds", "60"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        said = ""
        while not re.search(r"[1-9]\d* puts", said):
            line = process.stdout.readline()
            assert line, said
            said += line
        process.send_signal(number)
        _, err = process.communicate(timeout=WAIT_SECONDS)
    assert (process.returncode, err) == (INTERRUPTED, "")
    assert list((tmp_path / "temporary").iterdir()) == []
    for pid in re.findall(r"process (\d+)", said):
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_statuses_are_the_command_lines() -> None:
    """Zero is good everywhere, and the storage's is not the demo's."""
    assert GOOD == DONE
    assert BAD not in {DONE, STORAGE}
