"""``pyraftkv demo``: three processes, a real directory tree, SIGKILL for the leader, then for everybody.

.. code-block:: text

    tree        a directory tree as things to put          processes   three members, started and killed
    load        puts them and remembers what was promised  verdict     reads them back and compares

The story, told as it happens:

1.  Three members start, each with a data directory and fsync on, and elect a leader.
2.  The tree is put file by file through a *follower*, so that every put is forwarded.
3.  The leader gets SIGKILL. The loaders wait, none of them is told an error; the two that are left elect a leader.
4.  The dead member starts again under load and catches up.
5.  All three get SIGKILL at the same moment, and start again.
6.  Every key is read back on every member, from its own memory, and compared with the bytes on the disk.

Whatever was acknowledged must be there, once, and the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sysconfig
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import TextIO, cast

import pyraftkv
from pyraftkv import errors
from pyraftkv.cli.terminal import Screen, human_bytes
from pyraftkv.demo.load import BYTES_PER_SECOND_MAX, Loader
from pyraftkv.demo.processes import MemberDied, Process, Processes
from pyraftkv.demo.tree import Piece, pieces_of
from pyraftkv.demo.verdict import Verdict, check

GOOD = 0
BAD = 1

PROGRESS_SECONDS = 0.1
OUTAGE_SECONDS_MAX = 30.0
"""A cluster that has not elected a leader by then never will."""


async def run(*, tree: str | None, seconds: float, data_dir: str | None, keep: bool, out: TextIO) -> int:
    """Tell the whole story; return 0 if nothing was lost, duplicated or different.

    Args:
        tree: The directory tree to load; None for Python's standard library.
        seconds: How long to load before the kill, and again after the recovery.
        data_dir: Where the members keep their data: a new or empty directory; None for a temporary one.
        keep: Whether the data directories stay when all went well (after a failure they always stay).
        out: Where to tell it.

    Raises:
        ConfigurationError: There is no such tree, or ``data_dir`` is in use.
    """
    root, pieces = _listed(tree)
    folder = _folder(data_dir)
    screen = Screen(out)
    status = BAD
    with contextlib.suppress(NotImplementedError):  # Windows; as Ctrl-C elsewhere
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, signal.raise_signal, signal.SIGINT)
    try:
        status = await Demo(screen, root, pieces, seconds=seconds, folder=folder).run()
    except (MemberDied, TimeoutError, errors.PyraftkvError, ExceptionGroup) as error:
        screen.fail(_story(error))
    except asyncio.CancelledError:
        screen.clear()
        keep = keep or data_dir is not None
        status = GOOD
        raise
    finally:
        if keep or status is not GOOD:
            screen.note(f"The data directories and logs of the members are in {folder}")
        else:
            shutil.rmtree(folder)
    return status


def _listed(tree: str | None) -> tuple[Path, list[Piece]]:
    root = Path(tree or sysconfig.get_path("stdlib")).resolve()
    try:
        pieces = pieces_of(root)
    except OSError as error:
        raise errors.ConfigurationError(f"{root} cannot be loaded: {error}") from None
    if not pieces:
        raise errors.ConfigurationError(f"there is no file to load below {root}")
    return root, pieces


def _folder(data_dir: str | None) -> Path:
    if data_dir is None:
        return Path(tempfile.mkdtemp(prefix="pyraftkv-demo-"))
    folder = Path(data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise errors.ConfigurationError(f"{folder} is not empty; the demo wants a directory of its own")
    return folder


def _story(error: BaseException) -> str:
    """Return what went wrong; of several things at once, the first."""
    if isinstance(error, BaseExceptionGroup):
        return _story(cast("BaseExceptionGroup[BaseException]", error).exceptions[0])
    return f"{type(error).__name__}: {error}"


class Demo:
    """One run of the story."""

    def __init__(self, screen: Screen, root: Path, pieces: Sequence[Piece], *, seconds: float, folder: Path) -> None:
        self._screen = screen
        self._root = root
        self._pieces = pieces
        self._seconds = seconds
        self._folder = folder
        self._loop = asyncio.get_running_loop()

    async def run(self) -> int:
        """Tell it; return the exit status. Raises `MemberDied`, `TimeoutError`, `PyraftkvError`."""
        files = len({piece.path for piece in self._pieces})
        size = sum(piece.size for piece in self._pieces)
        self._screen.title(f"pyraftkv demo: {files:,} files, {human_bytes(size)}, of {self._root}")
        begun = self._loop.time()
        async with Processes(self._folder) as nodes:
            leader = await nodes.leader()
            for node in nodes.nodes.values():
                role = "leader" if node is leader else "follower"
                self._screen.step(f"{node.name} runs at {node.address}, process {node.pid}: {role}")
            loader = await self._load(nodes, leader)
            await self._kill_everybody(nodes)
            verdicts = await self._check(nodes, loader)
        self._sum_up(loader, verdicts, seconds=self._loop.time() - begun)
        return GOOD if all(verdict.is_good for verdict in verdicts) else BAD

    # --- Load, and the death of the leader -------------------------------------------------------------------------

    async def _load(self, nodes: Processes, leader: Process) -> Loader:
        """Load through a follower while the leader is killed and started again."""
        followers = [node for node in nodes.nodes.values() if node is not leader]
        through = [*followers, leader]
        self._screen.step(f"loading through {followers[0].name}, a follower; every put is acknowledged by a quorum")
        async with pyraftkv.connect(",".join(node.address for node in through), name="demo-load") as kv:
            loader = Loader(kv, self._pieces, loop=self._loop)
            async with self._reported(self._progress_of(loader)), asyncio.TaskGroup() as group:
                group.create_task(loader.run())
                try:
                    await self._disturb(nodes, leader, loader)
                finally:
                    loader.stop()
        self._screen.step(f"{len(loader.acknowledged):,} puts acknowledged in {loader.seconds:.1f} s")
        return loader

    async def _disturb(self, nodes: Processes, leader: Process, loader: Loader) -> None:
        """Kill the leader under load, and start it again half way through the second half."""
        await asyncio.sleep(self._seconds)
        before = len(loader.acknowledged)
        loader.killed()
        await leader.kill()
        self._screen.blow(f"SIGKILL to {leader.name}, the leader, after {self._seconds:g} s and {before:,} puts")
        async with asyncio.timeout(OUTAGE_SECONDS_MAX):
            await loader.recovered.wait()
        again = asyncio.create_task(asyncio.sleep(self._seconds))
        new = await nodes.leader()
        self._screen.step(f"{new.name} leads now; {loader.outage_seconds:.2f} s without an acknowledgement")
        await asyncio.sleep(self._seconds / 2)
        await nodes.start(leader.name)
        await nodes.caught_up(leader.name)
        self._screen.step(f"{leader.name} runs again, process {leader.pid}, and has caught up under load")
        await again
        await loader.tree_loaded.wait()

    def _progress_of(self, loader: Loader) -> Callable[[], tuple[str, int, int]]:
        begun = self._loop.time()

        def tell() -> tuple[str, int, int]:
            done = len(loader.acknowledged)
            rate = done / max(self._loop.time() - begun, PROGRESS_SECONDS)
            again = f", round {loader.round}" if loader.round > 1 else ""
            return f"{done:,} puts{again}, {rate:,.0f}/s", loader.round_begun, loader.round_pieces

        return tell

    @contextlib.asynccontextmanager
    async def _reported(self, tell: Callable[[], tuple[str, int, int]]) -> AsyncGenerator[None]:
        """Keep the progress bar moving meanwhile."""

        async def report() -> None:
            while True:
                self._screen.progress(*tell())
                await asyncio.sleep(PROGRESS_SECONDS)

        task = asyncio.create_task(report(), name="pyraftkv-demo-progress")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            self._screen.clear()

    # --- The death of everybody ------------------------------------------------------------------------------------

    async def _kill_everybody(self, nodes: Processes) -> None:
        await nodes.kill_all()
        self._screen.blow("SIGKILL to all three at the same moment")
        begun = self._loop.time()
        await nodes.start(*nodes.nodes)
        leader = await nodes.leader()
        for name in nodes.nodes:
            await nodes.caught_up(name)
        self._screen.step(f"all three run again and have read their logs ({self._loop.time() - begun:.1f} s); "
                          f"{leader.name} leads")  # fmt: skip

    async def _check(self, nodes: Processes, loader: Loader) -> list[Verdict]:
        """Read every key back on every member and compare it with the disk."""
        verdicts: list[Verdict] = []
        total = (len(loader.acknowledged) + len(loader.unknown)) * len(nodes.nodes)
        for node in nodes.nodes.values():
            verdict = Verdict(node.name)

            def tell(verdict: Verdict = verdict) -> tuple[str, int, int]:
                done = verdict.keys + sum(each.keys for each in verdicts)
                return f"reading back on {verdict.node}", done, total

            async with self._reported(tell):
                await check(verdict, node.kv, acknowledged=loader.acknowledged, unknown=loader.unknown)
            verdicts.append(verdict)
            tell_ = self._screen.step if verdict.is_good else self._screen.fail
            tell_(
                f"{node.name}: {verdict.keys:,} keys read back from its own memory and compared with the disk: "
                f"{verdict.lost} lost, {verdict.duplicated} duplicated, {verdict.different} different"
            )
            for example in verdict.examples:
                self._screen.note(example)
        return verdicts

    def _sum_up(self, loader: Loader, verdicts: Sequence[Verdict], *, seconds: float) -> None:
        """Print the table."""
        changed = max(verdict.changed for verdict in verdicts)
        size = sum(written.size for written in loader.acknowledged.values())
        rows = [
            ("acknowledged", f"{len(loader.acknowledged):,}", f"puts, {human_bytes(size)}, each on a quorum's disks"),
            ("lost", f"{sum(v.lost for v in verdicts):,}", "acknowledged, and missing on a member"),
            ("duplicated", f"{sum(v.duplicated for v in verdicts):,}", "put once, and version above 1"),
            ("different", f"{sum(v.different for v in verdicts):,}", "not the bytes on the disk"),
            ("unknown", f"{len(loader.unknown):,}", "MaybeApplied: may be there, once at most"),
            ("failover", f"{loader.outage_seconds:.2f} s", "longest silence after SIGKILL"),
            (
                "puts per second",
                f"{len(loader.acknowledged) / loader.seconds:,.0f}",
                f"with the silence; paced to {human_bytes(BYTES_PER_SECOND_MAX)} a second",
            ),
            ("took", f"{seconds:.1f} s", ""),
        ]
        if changed:
            rows.append(("changed", f"{changed:,}", "on the disk meanwhile; compared with what was put"))
        if loader.unreadable:
            rows.append(("unreadable", f"{len(loader.unreadable):,}", "files, and so not put"))
        self._screen.table(("RESULT", "", "WHAT IT MEANS"), rows)
