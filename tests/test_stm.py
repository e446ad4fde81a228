"""Software transactional memory: whatever interleaves, transactions are done as if one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import pytest

from pyraftkv import PutKey, errors
from pyraftkv.engine import Engine
from pyraftkv.kv import Stm
from pyraftkv.sim.simulation import Simulation
from pyraftkv.stm import COMPARES_MAX, Attempt
from tests.node.support import asynchronous, cluster_of, refused
from tests.test_engine import faces, open_face


@faces
@asynchronous
async def test_reads_and_writes_are_one_transaction(face: str, tmp_path: Path) -> None:
    """What is written is seen by the function's own reads at once, and by others when it is done, at one revision."""
    async with open_face(face, tmp_path) as kv:
        await kv.put("k/a", "1")
        await kv.put("k/b", "2")
        attempts: list[Stm] = []

        async def work(tx: Stm) -> list[str]:
            attempts.append(tx)
            a = await tx.get("k/a")
            assert a is not None
            assert a.version == 1
            tx.put("k/a", a.value + b"!")
            tx.put("k/c", "3")
            tx.delete("k/b")
            own = await tx.get("k/a")
            assert own is not None
            assert (own.value, own.mod_revision) == (b"1!", 0)
            assert await tx.get("k/b") is None
            assert await kv.get("k/c") is None
            return [found.text for found in await tx.range(prefix="k/")]

        assert await kv.transact(work) == ["1!", "3"]
        found = await kv.range(prefix="k/")
        assert [(kv_.key, kv_.mod_revision) for kv_ in found.kvs] == [
            (b"k/a", attempts[0].revision),
            (b"k/c", attempts[0].revision),
        ]
        assert len(attempts) == 1


@faces
@asynchronous
async def test_a_counter_counts_everybody(face: str, tmp_path: Path) -> None:
    """Many who add to one counter at the same time lose nothing."""
    async with open_face(face, tmp_path) as kv:
        calls = 0

        async def add(tx: Stm) -> None:
            nonlocal calls
            calls += 1
            found = await tx.get("counter")
            tx.put("counter", str(int(found.text) + 1 if found is not None else 1))

        await asyncio.gather(*(kv.transact(add, timeout=20.0) for _ in range(10)))
        counter = await kv.get("counter")
        assert counter is not None
        assert counter.text == "10"
        assert calls > 10


async def interrupted(kv: Engine, reads: str, writes: list[str]) -> int:
    """Run a transaction that reads, while somebody else writes in its first attempt; return how many it took."""
    attempts = 0

    async def work(tx: Stm) -> None:
        nonlocal attempts
        attempts += 1
        if reads.endswith("*"):
            await tx.range(prefix=reads.removesuffix("*"))
        else:
            await tx.get(reads)
        if attempts == 1:
            for write in writes:
                verb, _, key = write.partition(" ")
                await (kv.put(key, "x") if verb == "put" else kv.delete(key))
        tx.put("done", str(attempts))

    await kv.transact(work)
    return attempts


@asynchronous
async def test_what_makes_a_transaction_begin_again() -> None:
    """A change of what was read does: of a key, of one that was not there, of a range by coming, going or changing."""
    async with cluster_of(1) as cluster:
        kv = cluster.leader
        for key in ("a", "r/1", "r/2", "z"):
            await kv.put(key, "1")
        assert await interrupted(kv, "a", ["put a"]) == 2
        assert await interrupted(kv, "a", ["del a"]) == 2
        assert await interrupted(kv, "a", ["put a"]) == 2
        assert await interrupted(kv, "a", ["put z", "put r/1"]) == 1
        assert await interrupted(kv, "r/*", ["put r/1"]) == 2
        assert await interrupted(kv, "r/*", ["put r/0"]) == 2
        assert await interrupted(kv, "r/*", ["del r/0"]) == 2
        assert await interrupted(kv, "r/*", ["del r/2", "put r/2"]) == 2
        assert await interrupted(kv, "r/*", ["put r", "put r0", "put s"]) == 1
        assert await interrupted(kv, "empty/*", ["put empty/1"]) == 2
        assert await interrupted(kv, "empty/*", ["put empty/2", "del empty/2"]) == 1  # nobody can tell


@asynchronous
async def test_an_attempt_sees_one_revision() -> None:
    """Keys read later are as old as the first one, also in an attempt that a failed commit has fetched keys for."""
    async with cluster_of(3) as cluster:
        kv = cluster.client()
        await kv.put("a", "0")
        await kv.put("b", "0")
        seen = []

        async def work(tx: Stm) -> None:
            first = await tx.get("a")
            if len(seen) < 3:
                value = str(len(seen) + 1).encode()
                await kv.txn().then(PutKey(b"a", value), PutKey(b"b", value))
            second = await tx.get("b")
            assert first is not None
            assert second is not None
            seen.append((first.text, second.text))
            tx.put("c", first.text)

        await kv.transact(work)
        assert seen == [("0", "0"), ("1", "1"), ("2", "2"), ("3", "3")]


@asynchronous
async def test_what_ends_a_transaction() -> None:
    """An exception writes nothing; a deadline ends contention; more than can be compared is refused when it is read."""
    async with cluster_of(1) as cluster:
        kv = cluster.leader

        async def fails(tx: Stm) -> None:
            tx.put("a", "1")
            raise KeyError("mine")

        await refused(kv.transact(fails), KeyError)
        assert await kv.get("a") is None

        async def loses(tx: Stm) -> None:
            await tx.get("a")
            await kv.put("a", "x")
            tx.put("b", "1")

        await refused(kv.transact(loses, timeout=0.3), errors.Contended)
        assert await kv.get("b") is None

        async def reads_much(tx: Stm) -> None:
            for number in range(COMPARES_MAX + 1):
                await tx.get(f"k{number}")

        await refused(kv.transact(reads_much), errors.RequestTooLarge)
        for number in range(COMPARES_MAX + 1):
            await kv.put(f"m/{number}", "x")

        async def reads_a_range(tx: Stm) -> None:
            await tx.range(prefix="m/")

        await refused(kv.transact(reads_a_range), errors.RequestTooLarge)

        async def compacts(tx: Stm) -> None:
            await tx.get("a")
            await kv.compact(1)
            await kv.compact(1)

        await refused(kv.transact(compacts), errors.Compacted)


@asynchronous
async def test_an_attempt_that_is_over_takes_no_part() -> None:
    """What a forgotten task would put is refused, for nobody would ever write it."""
    async with cluster_of(1) as cluster:
        kept: list[Stm] = []

        async def keeps(tx: Stm) -> None:
            kept.append(tx)
            tx.put("a", "1")

        await cluster.leader.transact(keeps)
        (tx,) = kept
        for late in (lambda: tx.put("a", "2"), lambda: tx.delete("a")):
            with pytest.raises(errors.InvalidRequest, match="over"):
                late()
        await refused(tx.get("a"), errors.InvalidRequest)
        await refused(tx.range(prefix="a"), errors.InvalidRequest)


@asynchronous
async def test_compaction_of_what_is_read_is_no_failure() -> None:
    """When the revision that an attempt reads at is compacted, another attempt reads at a later one."""
    async with cluster_of(1) as cluster:
        kv = cluster.leader
        await kv.put("a", "1")
        attempts = 0

        async def work(tx: Stm) -> None:
            nonlocal attempts
            attempts += 1
            await tx.get("a")
            if attempts == 1:
                revision = (await kv.put("z", "1")).revision
                await kv.compact(revision)
            await tx.get("b")
            tx.put("c", "1")

        await kv.transact(work)
        assert attempts == 2
        assert await kv.get("c") is not None


@asynchronous
async def test_values_too_large_to_fetch_beforehand() -> None:
    """When what others have put is too large for one result, the next attempt reads it key by key."""
    async with cluster_of(1) as cluster:
        kv = cluster.leader
        for key in "abcd":
            await kv.put(key, "small")
        attempts = 0

        async def work(tx: Stm) -> None:
            nonlocal attempts
            attempts += 1
            for key in "abcd":
                await tx.get(key)
            if attempts == 1:
                for key in "abcd":
                    await kv.put(key, bytes(1_400_000))
            tx.put("done", "1")

        await kv.transact(work, timeout=20.0)
        assert attempts == 2


@asynchronous
async def test_concurrent_first_reads_are_of_one_revision() -> None:
    """Reads that a function begins at the same time are as of one revision."""
    async with cluster_of(3) as cluster:
        kv = cluster.followers[0]
        await kv.put("a", "1")

        async def work(tx: Stm) -> int:
            found = await asyncio.gather(tx.get("a"), tx.get("b"), tx.range(prefix="c"))
            assert found[0] is not None
            return tx.revision

        assert await kv.transact(work) == (await kv.status()).revision
        untouched = Attempt(kv, asyncio.get_running_loop().time() - 1.0)
        assert untouched.revision == 0
        await refused(untouched.get("a"), errors.Contended)


@pytest.mark.parametrize("seed", range(3))
def test_money_is_neither_made_nor_lost(seed: int) -> None:
    """Random transfers by many, while the leader is killed: the sum of all accounts stays, whoever adds it up."""

    @asynchronous
    async def main() -> None:
        rng = random.Random(seed)
        async with cluster_of(3, seed=seed) as cluster:
            clients = [cluster.client() for _ in range(4)]
            accounts = [f"account/{number}" for number in range(5)]
            for account in accounts:
                await clients[0].put(account, "100", timeout=20.0)

            async def transfer(tx: Stm, source: str, target: str, amount: int) -> None:
                all_ = {found.key.decode(): int(found.text) for found in await tx.range(prefix="account/")}
                assert sum(all_.values()) == 500, (seed, all_)
                tx.put(source, str(all_[source] - amount))
                tx.put(target, str(all_[target] + amount))

            async def work(kv: Engine) -> None:
                for _ in range(5):
                    source, target = rng.sample(accounts, 2)
                    amount = rng.randrange(50)
                    await kv.transact(lambda tx, s=source, t=target, a=amount: transfer(tx, s, t, a), timeout=25.0)

            async with asyncio.TaskGroup() as group:
                for client in clients:
                    group.create_task(work(client))
                await asyncio.sleep(0.05)
                killed = cluster.leader.name
                await cluster.kill(killed)
            found = await clients[0].range(prefix="account/", timeout=20.0)
            assert sum(int(kv.text) for kv in found.kvs) == 500, seed

    main()


@pytest.mark.parametrize("seed", range(3))
def test_transactions_under_faults(seed: int) -> None:
    """Members lose power and history is compacted meanwhile: a counter counts each success once."""

    async def main(sim: Simulation) -> None:
        rng = random.Random(seed)
        done = maybe = 0

        async def add(tx: Stm) -> None:
            found = await tx.get("counter")
            others = await tx.range(prefix="by/")
            assert sum(int(each.text) for each in others) == (int(found.text) if found is not None else 0), seed
            own = {each.key: int(each.text) for each in others}.get(b"by/%d" % (len(others) % 3), 0)
            tx.put("counter", str(int(found.text) + 1 if found is not None else 1))
            tx.put(b"by/%d" % (len(others) % 3), str(own + 1))

        async def work(kv: Engine) -> None:
            nonlocal done, maybe
            for _ in range(15):
                try:
                    await kv.transact(add, timeout=20)
                    done += 1
                except errors.MaybeApplied:
                    maybe += 1
                except errors.Unavailable:
                    pass
                if rng.random() < 0.2:
                    with contextlib.suppress(errors.NotApplied, errors.MaybeApplied):
                        await kv.compact((await kv.status()).revision, timeout=5)
                await asyncio.sleep(0.05)

        async with sim.client() as one, sim.client() as two:
            workers = [asyncio.create_task(work(kv.namespace("app/"))) for kv in (one, two)]
            while not all(worker.done() for worker in workers):
                await asyncio.sleep(rng.uniform(0.2, 1.0))
                host = rng.choice(sim.members)
                host.power_loss()
                host.start()
            await asyncio.gather(*workers)
            counter = await one.get("app/counter", timeout=20)
            assert counter is not None
            assert done <= int(counter.text) <= done + maybe, (seed, done, maybe)
            assert done > 10, seed

    with Simulation(seed=seed) as sim:
        sim.run(main, until=600)
