"""Processes: what belongs to whom, pauses, kills, clocks."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from pyraftkv.sim.loop import SimLoop, SimUnsupported
from tests.sim.world import World


def test_a_task_runs_in_the_process_that_made_it() -> None:
    """Whoever completes the future it waits for."""

    async def main(world: World) -> None:
        loop = world.loop
        future = loop.create_future()
        seen: list[str] = []

        async def wait() -> None:
            await asyncio.create_task(wait_deeper())
            seen.append(loop.current.name)

        async def wait_deeper() -> None:
            future.add_done_callback(lambda _: seen.append(loop.current.name))
            await future
            seen.append(loop.current.name)

        async def complete() -> None:
            assert loop.current.name == "n2"
            future.set_result(None)

        waiting = world.process("n1").spawn(wait())
        await asyncio.sleep(1)
        await world.on("n2", complete())
        await waiting
        assert seen == ["n1", "n1", "n1"]
        assert loop.current is loop.harness

    World(seed=1).run(main)


def test_what_the_world_posts_runs_in_the_process() -> None:
    """Timers and tasks that grow from it belong there too."""

    async def main(world: World) -> None:
        loop, process = world.loop, world.process("n1")
        seen: list[str] = []

        def posted() -> None:
            loop.call_later(1, lambda: seen.append(loop.current.name))
            asyncio.ensure_future(grown())  # noqa: RUF006 - the process keeps it

        async def grown() -> None:
            seen.append(loop.current.name)

        loop.at(1.0, process.post, posted)
        await asyncio.sleep(3)
        assert seen == ["n1", "n1"]

    World(seed=1).run(main)


def test_processes_interleave_at_random() -> None:
    """Two busy ones take turns in an order that the seed decides."""

    def turns(seed: int) -> str:
        async def main(world: World) -> str:
            seen: list[str] = []

            async def work(name: str) -> None:
                for _ in range(30):
                    seen.append(name)
                    await asyncio.sleep(0)

            await asyncio.gather(*(world.process(name).spawn(work(name)) for name in "ab"))
            return "".join(seen)

        return World(seed=seed).run(main)

    assert "ab" * 30 not in {turns(1), turns(2)}
    assert "aab" in turns(1)
    assert turns(1) != turns(2)


def test_a_paused_process_does_nothing_and_then_everything() -> None:
    """What arrives piles up, and its clock goes on."""

    async def main(world: World) -> None:
        loop, process = world.loop, world.process("n1")
        seen: list[Any] = []

        async def work() -> None:
            await asyncio.sleep(1)
            seen.append(("slept", round(loop.time(), 2)))

        working = process.spawn(work())
        await asyncio.sleep(0.5)
        process.pause()
        process.pause()
        process.post(seen.append, "posted")
        await asyncio.sleep(10)
        assert seen == []
        process.resume()
        process.resume()
        await working
        assert seen == ["posted", ("slept", 10.5)]

    World(seed=1).run(main)


def test_a_process_that_pauses_itself_stops_in_mid_pass() -> None:
    """The rest of its queue waits."""

    async def main(world: World) -> None:
        process = world.process("n1")
        seen: list[int] = []
        for callback in (lambda: seen.append(1), process.pause, lambda: seen.append(2)):
            process.post(callback)
        await asyncio.sleep(1)
        assert seen == [1]
        process.resume()
        await asyncio.sleep(1)
        assert seen == [1, 2]

    World(seed=1).run(main)


def test_a_task_that_catches_its_own_end_for_ever_is_named() -> None:
    """The others end, and whoever closes the loop is told, once."""
    ended: list[str] = []

    async def retry() -> None:
        while True:
            try:
                await asyncio.sleep(1)
            except BaseException:  # noqa: BLE001 - as programs do, now and then
                continue

    async def stubborn() -> None:
        try:
            await asyncio.sleep(9)
        finally:
            await retry()

    async def patient() -> None:
        try:
            await asyncio.sleep(9)
        finally:
            with suppress(OSError):
                await asyncio.sleep(1)
            ended.append("never")

    async def careful() -> None:
        try:
            await asyncio.sleep(9)
        finally:
            ended.append("careful")

    async def main(world: World) -> None:
        process = world.process("n1")
        process.spawn(stubborn(), name="the stubborn one")
        process.spawn(patient())
        process.spawn(careful())
        await asyncio.sleep(1)

    world = World(seed=1)
    with pytest.raises(SimUnsupported, match=r"the stubborn one of n1[^,]* catches its own end"):
        world.run(main)
    world.loop.close()
    gc.collect()
    assert ended == ["careful"]


def test_nothing_of_a_killed_process_runs_again() -> None:
    """No callback, timer, posted work or `finally` block, collected or not, until the loop is closed."""
    seen: list[str] = []

    async def main(world: World) -> None:
        loop, process = world.loop, world.process("n1")
        future = loop.create_future()

        async def numbers() -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                seen.append("generator")

        async def work() -> None:
            loop.call_later(1, seen.append, "timer")
            async for _ in numbers():
                try:
                    await future
                finally:
                    seen.append("finally")
                    await asyncio.sleep(1)
                    seen.append("never")

        process.spawn(work())
        await asyncio.sleep(0.5)
        exits: list[bool] = []
        process.on_exit.append(lambda dead: exits.append(dead.silent))
        process.kill(silent=True)
        process.kill()
        process.post(seen.append, "posted")
        future.set_result(None)
        await asyncio.sleep(5)
        gc.collect()
        assert exits == [True]
        assert seen == []
        assert (process.alive, process.runs) == (False, False)
        late = asyncio.sleep(0)
        with pytest.raises(AssertionError, match="dead"):
            process.spawn(late)
        late.close()

    World(seed=1).run(main)
    gc.collect()
    assert seen == ["finally"]


def test_a_process_that_kills_itself_stops_in_mid_pass() -> None:
    """The callbacks behind the one that did it never run."""

    async def main(world: World) -> None:
        process = world.process("n1")
        seen: list[int] = []
        for callback in (lambda: seen.append(1), process.kill, lambda: seen.append(2)):
            process.post(callback)
        await asyncio.sleep(1)
        assert seen == [1]

    World(seed=1).run(main)


def test_who_waits_for_a_killed_process_simply_waits() -> None:
    """It has deadlines of its own."""

    async def main(world: World) -> None:
        process = world.process("n1")
        sleeping = process.spawn(asyncio.sleep(1))
        process.kill()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.shield(sleeping)
        assert not sleeping.done()

    World(seed=1).run(main)


def test_timers_follow_their_clock() -> None:
    """A fast clock, a slow one, one that jumps, one that stands still for a while."""

    async def main(world: World) -> None:
        loop = world.loop
        ends: dict[str, float] = {}

        async def sleep(name: str) -> None:
            begun = loop.time()
            await asyncio.sleep(10)
            assert loop.time() - begun >= 10 - 1e-9
            ends[name] = round(loop.now, 2)

        tasks = [world.process(name).spawn(sleep(name)) for name in ("fast", "slow", "jumps", "stands", "true")]
        await asyncio.sleep(1)
        world.process("fast").clock.set_rate(2.0)
        world.process("slow").clock.set_rate(0.5)
        world.process("jumps").clock.jump(8.0)
        world.process("stands").clock.freeze()
        await asyncio.sleep(30)
        world.process("stands").clock.thaw()
        await asyncio.wait(tasks)
        assert ends == {"jumps": 2.0, "fast": 5.5, "true": 10.0, "slow": 19.0, "stands": 40.0}

    World(seed=1).run(main)


def test_a_clock_outlives_its_processes() -> None:
    """The next life of a machine goes on with it."""
    loop = SimLoop(Random(1))

    async def main() -> None:
        clock = loop.clock()
        clock.jump(100.0)
        first = loop.process("n1", clock=clock)
        first.kill()
        second = loop.process("n1 again", host_name="n1", clock=clock)
        assert loop.machines["n1"] is second
        assert second.clock.time() == pytest.approx(100, abs=0.001)
        assert len(clock.changed) == 1

    loop.run(main())
    loop.close()


def test_invariants_are_looked_at_after_every_pass() -> None:
    """Of the process that ran, with nobody running."""

    async def main(world: World) -> None:
        process = world.process("n1")
        seen: list[Any] = []
        harness = world.loop.harness
        process.stepped = harness.stepped = lambda stepped: seen.append((stepped.name, world.loop.current.name))
        process.post(seen.append, "callback")
        await asyncio.sleep(1)
        assert seen[1:4] == ["callback", ("n1", "harness"), ("harness", "harness")]

    World(seed=1).run(main)


def test_finished_tasks_are_forgotten() -> None:
    """A process that makes tasks for ever keeps those that live."""

    async def main(world: World) -> None:
        for _ in range(1000):
            await asyncio.create_task(asyncio.sleep(0))
        assert len(world.loop.harness._tasks) < 100

    World(seed=1).run(main)
