from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyraftkv.demo.processes import free_ports

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
WAIT_SECONDS = 60.0
LINES_MAX = 30
LOOP_LINES_MAX = 80
TUTORIAL_LINES_MAX = 150
SECONDS_PER_SEED_MAX = 10.0


def run(name: str, *arguments: str, folder: Path) -> str:
    """Run an example to its end; return what it prints."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def environment() -> dict[str, str]:
    """Return an environment in which the examples find the package, wherever they run."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def test_every_example_is_tested() -> None:
    """A new example gets a test here."""
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == [
        "01_one_process.py",
        "02_embed_node.py",
        "own_machine.py",
        "sans_io_loop.py",
        "tcp_cluster.py",
        "test_my_app.py",
        "test_workers.py",
    ]


def test_one_process(tmp_path: Path) -> None:
    """The first program is short, and the greeting outlives the leader."""
    assert run("01_one_process.py", folder=tmp_path) == "hello\n"
    assert len((EXAMPLES / "01_one_process.py").read_text().splitlines()) <= LINES_MAX


def test_an_embedded_node_goes_on_counting(tmp_path: Path) -> None:
    """Every increment counts, is seen by the watch once and in order, and is there after a restart."""
    first = run("02_embed_node.py", folder=tmp_path)
    assert [int(number) for number in re.findall(r"visits is (\d+)", first)] == [1, 2, 3, 4, 5]
    assert (first.splitlines()[0], first.splitlines()[-1]) == ("no visits so far", "5 visits so far")
    second = run("02_embed_node.py", folder=tmp_path)
    assert [int(number) for number in re.findall(r"visits is (\d+)", second)] == [6, 7, 8, 9, 10]
    assert second.splitlines()[-1] == "10 visits so far"


def test_a_seat_is_reserved_once(tmp_path: Path) -> None:
    """Whoever comes second is refused, by a machine that outlives the leader."""
    assert run("own_machine.py", folder=tmp_path) == "ValueError: 7A is Ada's\nAda\n"


def test_the_machine_alone_needs_no_event_loop(tmp_path: Path) -> None:
    """Two leaders die and come back, and everybody has both values; nothing but the core is imported."""
    told = run("sans_io_loop.py", folder=tmp_path).splitlines()
    leaders = [re.fullmatch(r"term (\d+): member (\d) leads, and \w+ is (\w+) on its side", line) for line in told[:2]]
    assert [found and found[3] for found in leaders] == ["hello", "goodbye"]
    assert len({found and found[2] for found in leaders}) == 2
    assert told[2:] == ["in the end:", *["{'greeting': 'hello', 'parting': 'goodbye'}"] * 3]
    source = (EXAMPLES / "sans_io_loop.py").read_text()
    assert len(source.splitlines()) < LOOP_LINES_MAX
    assert "asyncio" not in source.partition('"""\n\n')[2]


def simulate(name: str, *, folder: Path, seeds: int) -> subprocess.CompletedProcess[str]:
    """Run the tests of an example, as whoever has installed pyraftkv does."""
    options = ["-s", "-p", "pytest_pyraftkv", "-p", "no:cacheprovider", "-c", os.devnull]
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", *options, str(EXAMPLES / name)),
            *(f"--raft-seeds={seeds}", "--raft-out", str(folder)),
        ],
        cwd=folder,
        env={**environment(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # to look for others takes longer than a seed
        capture_output=True,
        text=True,
        timeout=SECONDS_PER_SEED_MAX * seeds + WAIT_SECONDS,
        check=False,
    )


def test_the_simulator_finds_what_is_wrong_with_an_application(tmp_path: Path, soak: bool) -> None:
    """A seed breaks the version without fencing and is named; no seed breaks the other. The program fits a page."""
    seeds = 220 if soak else 4
    done = simulate("test_my_app.py", folder=tmp_path, seeds=seeds)
    assert done.returncode == 0, done.stdout
    assert re.search(r"seed \d+: wrong: worker\d/\d+ wrote 'step \d+' at .* after worker\d/\d+ had", done.stdout)
    assert f"{seeds + 1} passed" in done.stdout
    assert len((EXAMPLES / "test_my_app.py").read_text().splitlines()) <= TUTORIAL_LINES_MAX


def test_every_job_is_done_by_somebody(tmp_path: Path, soak: bool) -> None:
    """A queue and a machine that counts the first result only, under members and workers that die."""
    seeds = 100 if soak else 2
    done = simulate("test_workers.py", folder=tmp_path, seeds=seeds)
    assert done.returncode == 0, done.stdout
    assert f"{seeds} passed" in done.stdout


class TcpCluster:
    """The example cluster, running."""

    def __init__(self, process: subprocess.Popen[str], ports: list[int]) -> None:
        self.process = process
        self.endpoints = ",".join(f"127.0.0.1:{port}" for port in ports)
        self.pids: dict[str, int] = {}
        """The latest process of each member that was told of."""

    def read_until(self, words: str) -> None:
        """Read what it says up to a line with these words."""
        assert self.process.stdout is not None
        line = ""
        while words not in line:
            line = self.process.stdout.readline()
            assert line, f"the cluster ended before it said {words!r}"
            if found := re.match(r"(n\d) runs at \S+, process (\d+)", line):
                self.pids[found[1]] = int(found[2])

    def ask(self, *arguments: str) -> str:
        """Run the command line against it."""
        command = [sys.executable, "-m", "pyraftkv", "--endpoints", self.endpoints, "--timeout", "20", *arguments]
        return subprocess.run(
            command, env=environment(), capture_output=True, text=True, timeout=WAIT_SECONDS, check=True
        ).stdout


@contextlib.contextmanager
def tcp_cluster(folder: Path, ports: list[int]) -> Iterator[TcpCluster]:
    """Run the example as the head of a process group of its own, so that all of it can be killed at once."""
    command = [sys.executable, str(EXAMPLES / "tcp_cluster.py"), "--data-dir", str(folder)]
    command += ["--ports", ",".join(map(str, ports))]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield TcpCluster(process, ports)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="kills process groups")
def test_the_tcp_cluster_survives_whatever_is_killed(tmp_path: Path) -> None:
    """A member that dies comes back; all of it killed and started again has the data still; SIGTERM ends it all."""
    ports = free_ports(3)
    with tcp_cluster(tmp_path, ports) as cluster:
        cluster.read_until("Ctrl-C stops")
        assert cluster.ask("put", "greeting", "hello") == "OK\n"
        killed = cluster.pids["n1"]
        os.kill(killed, signal.SIGKILL)
        assert cluster.ask("get", "greeting") == "greeting\nhello\n"
        cluster.read_until("n1 runs at")
        assert cluster.pids["n1"] != killed
        os.killpg(cluster.process.pid, signal.SIGKILL)
    with tcp_cluster(tmp_path, ports) as cluster:
        cluster.read_until("Ctrl-C stops")
        assert cluster.ask("get", "greeting") == "greeting\nhello\n"
        assert cluster.ask("endpoint", "status").count("127.0.0.1:") == 3
        cluster.process.send_signal(signal.SIGTERM)  # which becomes a SIGINT
        assert cluster.process.wait(WAIT_SECONDS) == 0
        for pid in cluster.pids.values():
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
