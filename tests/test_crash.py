"""Members are killed under load, again and again: nothing acknowledged is lost, nothing is applied twice.

Three processes on real disks, with syncs on. A member is killed in the middle of whatever it does (SIGKILL), chosen at
random, the leader included; it must come back without help while the others go on, and at the end all are killed at
once. SIGKILL keeps what the system has cached, so these tests prove recovery and exactly-once, and not that each sync
is there: that is shown on a simulated disk (tests/log).

The choice comes from a seed, which is printed; ``--soak`` takes a new one and 500 cycles. A failure leaves the data
directories and the members' logs in the folder that it names.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from pathlib import Path
from random import Random, SystemRandom
from time import perf_counter

import pytest

from pyraftkv import errors
from pyraftkv.cli.common import STORAGE
from pyraftkv.client import Client
from tests.load import IMPATIENT_SECONDS, LAST_KEY, PATIENT_SECONDS, Load, judge, judge_events, read_all
from tests.processes import READY_SECONDS_MAX, Process, Processes
from tests.wal_surgery import segments

CYCLES = 30
SOAK_CYCLES = 500
WRITES_PER_CYCLE = 250
"""What the writers may do in one cycle at most: the tests are about crashes, not about filling a disk."""

POLL_SECONDS = 0.002
TAIL_ENTRIES = 400
"""What an isolated leader takes on: more than the others write until it comes back, so that the two logs differ."""

SMALL_SNAPSHOTS = {
    "snapshot_log_bytes_min": 24 * 1024,
    "segment_bytes_max": 16 * 1024,
    "log_cache_bytes_max": 4 * 1024,
    "election_timeout_seconds": 0.5,
}
"""A snapshot every few hundred writes, a new segment more often still, and little of the log in memory."""

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills and stops processes by signal")


def seed_of(name: str, *, soak: bool) -> int:
    """Return the seed of a test, and say it."""
    seed = SystemRandom().getrandbits(32) if soak else 20_261_122
    print(f"{name}: seed {seed}")  # noqa: T201
    return seed


class Ordeal:
    """A cluster under load, and somebody who kills its members."""

    def __init__(self, cluster: Processes, load: Load, rng: Random) -> None:
        self.cluster = cluster
        self.load = load
        self.rng = rng
        self.members = list(cluster.members.values())
        self.isolations = 0

    async def kill_one(self) -> None:
        """Kill a member under load, see the others go on without it, and let it come back."""
        victim = self.rng.choice(self.members)
        await self._load_for_a_while()
        victim.kill()
        await self._load_for_a_while()
        victim.start()
        await victim.ready()

    async def kill_one_for_long(self) -> None:
        """Keep a member away until the others' logs no longer hold what it misses."""
        victim = self.rng.choice(self.members)
        await self._load_for_a_while()
        last_index = (await victim.status()).last_index
        victim.kill()
        others = [member for member in self.members if member is not victim]
        while any(first_index(member) <= last_index + 1 for member in others):
            await self.load.progress(200)
        victim.start()
        await victim.ready()

    async def pause_one(self) -> None:
        """Stop a member in its tracks while the others go on; it wakes up in a world that has moved on."""
        victim = self.rng.choice(self.members)
        await self._load_for_a_while()
        victim.pause()
        try:
            await self._load_for_a_while()
        finally:
            victim.resume()
        await victim.ready()

    async def isolate_leader(self) -> None:
        """Kill all others, let the leader take on what it cannot commit, kill it too, and start the others first.

        An acknowledgement without a majority would be lost here; and the leader comes back with a tail of its own.
        (Others that were only stopped would not do: what was sent waits for them in their sockets.)
        """
        await self._load_for_a_while()
        leader = await self.cluster.leader()
        others = [member for member in self.members if member is not leader]
        self.isolations += 1
        async with leader.connect() as kv:
            await self.load.put_once(kv, b"isolated/%d/before" % self.isolations, timeout=PATIENT_SECONDS)
            self.cluster.kill(others)
            alone = [b"isolated/%d/%d" % (self.isolations, number) for number in range(TAIL_ENTRIES)]
            await asyncio.gather(*(self.load.put_once(kv, key, timeout=IMPATIENT_SECONDS) for key in alone))
            leader.kill()
        for member in others:
            member.start()
        await self.load.progress(1)
        leader.start()
        await asyncio.gather(*(member.ready() for member in self.members))

    async def kill_several(self, count: int) -> None:
        """Kill a majority or everybody at the same moment; all come back, in any order."""
        victims = self.rng.sample(self.members, count)
        await self._load_for_a_while()
        self.cluster.kill(victims)
        for victim in victims:
            victim.start()
        await asyncio.gather(*(victim.ready() for victim in victims))

    async def _load_for_a_while(self) -> None:
        await self.load.progress(self.rng.randrange(1, 100))

    async def cycle(self, kind: str) -> None:
        """Do one thing to the cluster, and wait until it is whole again."""
        self.load.allow(WRITES_PER_CYCLE)
        if kind == "kill":
            await self.kill_one()
        elif kind == "absence":
            await self.kill_one_for_long()
        elif kind == "pause":
            await self.pause_one()
        elif kind == "isolation":
            await self.isolate_leader()
        else:
            await self.kill_several({"majority": 2, "all": 3}[kind])
        for member in self.members:
            member.check()

    async def verdict(self, client: Client, watching: asyncio.Task[None]) -> list[str]:
        """End the load, and judge what every member has, from its own state and by asking a quorum."""
        await self.load.progress(100)
        await self.load.stop()
        await client.put(LAST_KEY, "")
        wrong: list[str] = []
        states = []
        for member in self.members:
            async with member.connect() as kv:
                states += [await read_all(kv, local=False), await read_all(kv, local=True)]
        if any(state != states[0] for state in states):
            wrong.append("the members differ")
        wrong += judge(self.load.ledger, states[0])
        await watching
        return wrong + judge_events(self.load.ledger, self.load.events, states[0])


def first_index(member: Process) -> int:
    """Return the first index of a member's oldest log segment."""
    return min(int(path.stem.partition("-")[2], 16) for path in (member.data_dir / "wal").glob("*.wal"))


async def run(
    folder: Path, *, seed: int, cycles: int, kinds: list[str], settings: dict[str, float] | None = None
) -> Processes:
    """Do this to a cluster so many times, kill everybody at once at the end, and judge."""
    rng = Random(seed)
    began = perf_counter()
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(Processes(folder, settings=settings))
        clients = [await stack.enter_async_context(cluster.connect(first=at)) for at in range(3)]
        watcher = await stack.enter_async_context(cluster.connect(first=1))
        load = Load(clients, rng)
        ordeal = Ordeal(cluster, load, rng)
        load.start()
        watching = asyncio.create_task(load.watch(watcher), name="watch")
        try:
            for number in range(cycles):
                if number % len(kinds) == 0:
                    rng.shuffle(kinds)  # every kind has its turn
                await ordeal.cycle(kinds[number % len(kinds)])
                if settings is not None and rng.random() < 1 / 2:
                    await compact(watcher, load.watched_revision)
            await ordeal.kill_several(3)
            wrong = await ordeal.verdict(watcher, watching)
        finally:
            watching.cancel()
            await load.abandon()
        starts = {member.name: member.starts for member in ordeal.members}
    print(f"{cycles} cycles in {perf_counter() - began:.1f} s; starts: {starts}; {load.ledger}")  # noqa: T201
    assert wrong == [], f"seed {seed}, {folder}:\n" + "\n".join(wrong[:50])
    return cluster


async def compact(client: Client, revision: int) -> None:
    """Forget history that the watch has seen, if nobody stands in the way."""
    with contextlib.suppress(errors.MaybeApplied, errors.NotApplied):
        await client.compact(revision)


@pytest.mark.timeout(3_600)
def test_killed_members_lose_and_double_nothing(tmp_path: Path, soak: bool) -> None:
    """30 times a random member is killed under load and comes back, then all at once: every promise is kept."""
    seed = seed_of("kills", soak=soak)
    asyncio.run(run(tmp_path, seed=seed, cycles=SOAK_CYCLES if soak else CYCLES, kinds=["kill"]))


@pytest.mark.timeout(3_600)
def test_snapshots_purges_and_pauses_lose_and_double_nothing(tmp_path: Path, soak: bool) -> None:
    """The same, while snapshots replace logs and travel to members that were away; others sleep, or fall together."""
    seed = seed_of("snapshots", soak=soak)
    kinds = ["kill", "absence", "pause", "isolation", "majority", "all"]
    cycles = SOAK_CYCLES if soak else 12
    cluster = asyncio.run(run(tmp_path, seed=seed, cycles=cycles, kinds=kinds, settings=SMALL_SNAPSHOTS))
    said = "".join(member.said for member in cluster.members.values())
    assert said.count("SnapshotWritten(") > cycles
    assert said.count("SnapshotInstalled(") > 0


@pytest.mark.parametrize("names", [("n1",), ("n1", "n2", "n3")])
def test_a_sync_that_fails_under_load_ends_the_member(tmp_path: Path, names: tuple[str, ...]) -> None:
    """1. The leader's process ends with the storage's exit status, and writes and syncs nothing after that.

    2. Its clients find the others, or wait until it is back; started again, it goes on.
    3. What was acknowledged is there, and nothing is there twice.
    """

    async def main() -> None:
        async with Processes(tmp_path, names=names, settings=SMALL_SNAPSHOTS) as cluster, cluster.connect() as kv:
            member = await cluster.leader()
            load = Load([kv], Random(seed_of("failing sync", soak=False)))
            load.start()
            try:
                await load.progress(100)
                load.allow(1_000)
                member.fail_disk()
                assert await member.exit() == STORAGE
                assert "Error: StorageFailed: " in member.last_words
                assert "the disk was told to fail" in member.said
                assert "is touched after" not in member.said
                member.start()
                await load.progress(100)
                await load.stop()
            finally:
                await load.abandon()
            assert judge(load.ledger, await read_all(kv, local=False)) == []

    asyncio.run(main())


def test_first_start_needs_no_help_however_often_it_is_interrupted(tmp_path: Path) -> None:
    """Members are killed at every step of making their directories, and all at once as soon as one has entry 1."""

    async def until(member: Process, pattern: str, *, size_min: int = 0) -> None:
        """Wait until the member has made a file of at least that size."""
        async with asyncio.timeout(READY_SECONDS_MAX):
            while not any(path.stat().st_size >= size_min for path in member.data_dir.glob(pattern)):
                member.check()
                await asyncio.sleep(POLL_SECONDS)

    async def main() -> None:
        cluster = Processes(tmp_path)
        first, *others = cluster.members.values()
        try:
            for pattern in ("LOCK", "identity.a", "identity.b", "wal/*", "wal/*.wal"):
                for member in (first, others[0]):
                    member.start()
                for member in (first, others[0]):
                    await until(member, pattern)
                    member.kill()
            async with cluster:
                pass  # all three run, agree and are killed at once
            begun = segments(first.data_dir)[0].batches[0].stop  # without any entry
            shutil.rmtree(tmp_path)
            cluster = Processes(tmp_path)
            for member in cluster.members.values():
                member.start()
            await until(cluster["n1"], "wal/*.wal", size_min=begun + 1)
            cluster.kill()
            async with cluster, cluster.connect() as kv:
                assert (await kv.put("it", "runs")).revision > 0
        finally:
            cluster.kill()

    asyncio.run(main())


def test_client_leaves_a_member_that_hangs(tmp_path: Path) -> None:
    """A stopped process keeps its connections; its client notices the silence, and goes on with another member."""

    async def main() -> None:
        async with Processes(tmp_path) as cluster, cluster.connect() as kv:
            await kv.put("before", "it hangs")
            hanging = cluster[(await kv.status()).name]
            hanging.pause()
            try:
                assert (await kv.put("while", "it hangs", timeout=20)).revision > 0
                assert (await kv.get("before", timeout=20)) is not None
                assert (await kv.status()).name != hanging.name
            finally:
                hanging.resume()
            await hanging.ready()

    asyncio.run(main())
