"""Virtual time, asyncio's semantics in it, and the same run for the same seed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pyraftkv.sim.loop import PASSES_UNCOLLECTED_MAX, Deadlock, SimLoop, SimTimeout, SimUnsupported
from pyraftkv.sim.process import SimProcess

ROOT = Path(__file__).parents[2]
Script = Callable[[list[Any]], Coroutine[Any, Any, Any]]


def simulate(main: Coroutine[Any, Any, Any], *, seed: int = 1, until: float = 1e6) -> Any:
    """Run a coroutine in a loop of its own."""
    loop = SimLoop(Random(seed))
    try:
        return loop.run(main, until=until)
    finally:
        loop.close()


# --- Time ----------------------------------------------------------------------------------------------------------


def test_time_passes_only_while_nobody_runs() -> None:
    """A year of sleep takes no time, and is a year."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await asyncio.sleep(365 * 86_400)
        return loop.time() - begun

    assert simulate(main(), until=1e9) == pytest.approx(365 * 86_400, abs=0.001)


def test_a_busy_loop_does_not_stop_the_time() -> None:
    """Passes cost a little CPU time, so a poll ends."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        polls = 0
        while loop.time() < 0.01:
            polls += 1
            await asyncio.sleep(0)
        return polls

    assert 200 <= simulate(main()) <= 2000


def test_a_timer_that_is_always_due_does_not_stop_the_time() -> None:
    """Its passes cost CPU time, too."""
    fired: list[float] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def again() -> None:
            fired.append(loop.time())
            if fired[-1] < 0.01:
                loop.call_later(0, again)

        again()
        await asyncio.sleep(0.1)

    simulate(main())
    assert 200 <= len(fired) <= 2000


def test_timers_fire_in_order_and_not_early() -> None:
    """Equal ones in the order they were made; cancelled ones not at all."""
    loop = SimLoop(Random(1))
    fired: list[tuple[float, int]] = []

    async def main() -> None:
        random = Random(7)
        for number in range(500):
            when = random.randrange(100) / 10
            timer = loop.call_at(when, lambda when=when, number=number: fired.append((when, number)))
            for _ in range(4):
                unwanted = loop.call_at(when, fired.append, (when, -1))
                unwanted.cancel()
                unwanted.cancel()
                assert (unwanted.when(), unwanted.cancelled()) == (when, True)
            assert not timer.cancelled()
        assert len(loop.current.timers) < 1200
        while len(fired) < 500:
            await asyncio.sleep(0.01)
            assert all(when <= loop.time() for when, _ in fired)

    loop.run(main())
    loop.close()
    assert fired == sorted(fired)
    assert len(fired) == 500


def test_the_world_has_events() -> None:
    """At global times, in the order they were scheduled where those are equal, outside of every process."""
    loop = SimLoop(Random(1))
    seen: list[Any] = []

    async def main() -> None:
        for name in ("b", "a"):
            loop.at(2.0, lambda name=name: seen.append((name, loop.now, loop.current.name)))
        loop.at(1.0, seen.append, "never").cancel()
        loop.at(-5.0, seen.append, "at once")
        await asyncio.sleep(3)

    loop.run(main())
    loop.close()
    assert seen == ["at once", ("b", 2.0, "harness"), ("a", 2.0, "harness")]


def test_a_run_is_bounded() -> None:
    """`until` is a time of the world."""
    loop = SimLoop(Random(1))
    with pytest.raises(SimTimeout, match="100"):
        loop.run(asyncio.sleep(101), until=100)
    assert loop.now <= 100
    assert loop.run(asyncio.sleep(1, "and on"), until=102) == "and on"
    loop.close()


def test_a_deadlock_is_noticed() -> None:
    """When nothing can ever happen, there is no use in waiting."""

    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock, match="main waits"):
        simulate(main())


# --- As under the standard loop ------------------------------------------------------------------------------------


async def queues(seen: list[Any]) -> None:
    """A producer, two consumers, a bound."""
    queue: asyncio.Queue[int] = asyncio.Queue(2)

    async def consume(name: str) -> None:
        while True:
            seen.append((name, await queue.get()))
            queue.task_done()

    async with asyncio.TaskGroup() as group:
        consumers = [group.create_task(consume(name)) for name in "ab"]
        for number in range(10):
            await queue.put(number)
            seen.append(queue.qsize())
        await queue.join()
        for consumer in consumers:
            consumer.cancel()


async def groups(seen: list[Any]) -> None:
    """One task of a group fails; gather returns what was raised."""

    async def fail(after: int) -> None:
        for _ in range(after):
            await asyncio.sleep(0)
        seen.append(f"fail {after}")
        raise ValueError(after)

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cancelled")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(wait())
            group.create_task(fail(3))
            await wait()
    except* ValueError as errors:
        seen.append(repr(errors.exceptions))
    results = await asyncio.gather(fail(2), asyncio.sleep(0, "slept"), fail(1), return_exceptions=True)
    seen.append(repr(results))
    done, pending = await asyncio.wait(
        [asyncio.ensure_future(wait()), asyncio.ensure_future(asyncio.sleep(0))], return_when=asyncio.FIRST_COMPLETED
    )
    seen.append((len(done), len(pending)))
    for task in pending:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def timeouts(seen: list[Any]) -> None:
    """Deadlines cancel what they enclose, shields hold, `wait_for` cleans up."""

    async def slow() -> str:
        try:
            for _ in range(5):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            seen.append("slow was cancelled")
            raise
        return "slow"

    try:
        async with asyncio.timeout(-1):
            await slow()
    except TimeoutError:
        seen.append("timeout")
    inner = asyncio.ensure_future(slow())
    outer = asyncio.ensure_future(asyncio.shield(inner))
    await asyncio.sleep(0)
    outer.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await outer
    seen.append(await inner)
    try:
        await asyncio.wait_for(asyncio.Event().wait(), 0.001)
    except TimeoutError:
        seen.append("wait_for")
    async with asyncio.timeout(1000) as scope:
        seen.append(await slow())
    seen.append(scope.expired())


async def locks(seen: list[Any]) -> None:
    """Locks are fair, events wake everybody, conditions and semaphores count."""
    lock, event, condition, semaphore = asyncio.Lock(), asyncio.Event(), asyncio.Condition(), asyncio.Semaphore(2)

    async def work(name: str) -> None:
        await event.wait()
        async with lock:
            seen.append(f"{name} locks")
            await asyncio.sleep(0)
        async with semaphore:
            seen.append(f"{name} enters")
            await asyncio.sleep(0)
        async with condition:
            seen.append(f"{name} waits")
            await condition.wait()
            seen.append(f"{name} goes")

    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(work(name))
        await asyncio.sleep(0)
        event.set()
        for _ in range(20):
            await asyncio.sleep(0)
        async with condition:
            condition.notify_all()


async def generators(seen: list[Any]) -> None:
    """Exhausted, closed, and abandoned."""

    async def count(name: str) -> AsyncIterator[int]:
        try:
            for number in range(3):
                yield number
                await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)
            seen.append(f"{name} ends")

    seen.append([number async for number in count("whole")])
    async with contextlib.aclosing(count("closed")) as numbers:
        async for number in numbers:
            seen.append(number)
            break
    abandoned = count("abandoned")
    seen.append(await anext(abandoned))
    del abandoned
    for _ in range(3):
        await asyncio.sleep(0)


async def callbacks(seen: list[Any]) -> None:
    """Callbacks run in order, one pass later; cancelled ones do not."""
    loop = asyncio.get_running_loop()
    loop.call_soon(seen.append, "first")
    loop.call_soon(seen.append, "never").cancel()
    loop.call_later(0, seen.append, "timer")
    loop.call_soon_threadsafe(lambda: loop.call_soon(seen.append, "third"))
    future = loop.create_future()
    future.add_done_callback(lambda _: seen.append("done"))
    loop.call_soon(future.set_result, "result")
    seen.append(await future)
    task = loop.create_task(asyncio.sleep(0), name="named")
    seen.append(task.get_name())
    await task
    seen.append(asyncio.current_task() in asyncio.all_tasks())


@pytest.mark.parametrize("script", [queues, groups, timeouts, locks, generators, callbacks])
def test_asyncio_behaves_as_under_the_standard_loop(script: Script) -> None:
    """The same happens, in the same order."""
    simulated: list[Any] = []
    real: list[Any] = []
    simulate(script(simulated))
    asyncio.run(script(real))
    assert len(real) > 2
    assert simulated == real


def test_streams_of_asyncio_open_only_with_a_network() -> None:
    """Without one there is a clear refusal, as for threads, TLS and sockets of the system."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(SimUnsupported, match="network"):
            await asyncio.open_connection("n1", 1)
        with pytest.raises(SimUnsupported, match="TLS"):
            await loop.create_connection(asyncio.Protocol, "n1", 1, ssl=True)
        with pytest.raises(SimUnsupported, match="socket"):
            await loop.create_server(asyncio.Protocol, sock=object())  # type: ignore[call-overload]
        with pytest.raises(SimUnsupported, match="threads"):
            await asyncio.to_thread(len, "")
        with pytest.raises(NotImplementedError):
            await loop.subprocess_exec(asyncio.SubprocessProtocol, "true")

    simulate(main())


# --- Errors --------------------------------------------------------------------------------------------------------


def _raise(text: str) -> None:
    raise ValueError(text)


def test_a_failed_callback_fails_the_run_at_its_end() -> None:
    """Nothing is swallowed, and the rest of the run is not disturbed."""
    loop = SimLoop(Random(1))
    seen: list[str] = []

    async def main() -> None:
        loop.call_soon(_raise, "one")
        await asyncio.sleep(1)
        seen.append("went on")

    with pytest.raises(ExceptionGroup) as caught:
        loop.run(main())
    assert [str(error) for error in caught.value.exceptions] == ["one"]
    assert "in harness at 0.0" in caught.value.exceptions[0].__notes__[0]
    assert seen == ["went on"]
    loop.close()


def test_an_exception_that_nobody_asked_for_fails_the_run() -> None:
    """A task's that was dropped, and one's that still stands there in the end."""

    async def fail() -> None:
        raise ValueError("unasked")

    async def main() -> None:
        task = asyncio.create_task(fail(), name="the culprit")
        await asyncio.sleep(1)
        del task

    with pytest.raises(ExceptionGroup) as caught:
        simulate(main())
    assert [str(error) for error in caught.value.exceptions] == ["unasked"]
    assert "the culprit" in caught.value.exceptions[0].__notes__[0], "the time is only that of who found it"


def test_the_main_coroutines_error_wins() -> None:
    """The others are noted on it."""

    async def main() -> None:
        asyncio.get_running_loop().call_soon(_raise, "beside")
        await asyncio.sleep(1)
        raise KeyError("main")

    with pytest.raises(KeyError, match="main") as caught:
        simulate(main())
    assert caught.value.__notes__ == ["and a callback failed: ValueError('beside')"]


def test_a_process_may_handle_errors_itself() -> None:
    """Its handler is its own."""
    loop = SimLoop(Random(1))
    handled: list[str] = []

    async def app() -> None:
        loop.set_exception_handler(lambda _, context: handled.append(str(context["exception"])))
        assert loop.get_exception_handler() is not None
        loop.call_soon(_raise, "mine")
        await asyncio.sleep(0.1)

    async def main() -> None:
        await loop.process("n1").spawn(app())
        assert loop.get_exception_handler() is None

    loop.run(main())
    loop.close()
    assert handled == ["mine"]


def test_an_interrupt_comes_through() -> None:
    """Nobody handles Ctrl-C."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        asyncio.get_running_loop().call_soon(interrupt)
        await asyncio.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        simulate(main())
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()
    assert gc.isenabled()


# --- Determinism ---------------------------------------------------------------------------------------------------


class Cycle:
    """What only the collector frees, and calls back then."""

    def __init__(self, callback: Callable[..., object], *args: Any) -> None:
        self.me = self
        self.callback = callback
        self.args = args

    def __del__(self) -> None:
        self.callback(*self.args)


def scramble(seed: int) -> list[tuple[float, str, int]]:
    """Many processes that run into each other, and leave cycles with finalizers behind; what happened when."""
    loop = SimLoop(Random(seed))
    seen: list[tuple[float, str, int]] = []
    Cycle(seen.append, (-1.0, "an old one", 0))  # garbage before the run, which must not end in it
    names = {f"n{number}" for number in range(5)}  # a set: its order must not matter

    async def work(process: SimProcess, event: asyncio.Event) -> None:
        for number in range(30):
            Cycle(lambda: seen.append((loop.now, "collected", 0)))
            await asyncio.sleep(0 if number % 3 else 0.4)
            seen.append((loop.now, process.name, number))
            event.set()
            await event.wait()
            event.clear()

    async def main() -> None:
        event = asyncio.Event()
        processes = [loop.process(name) for name in sorted(names)]
        tasks = {process.spawn(work(process, event)) for process in processes}
        processes[3].clock.set_rate(1.1)
        await asyncio.sleep(2)
        processes[1].pause()
        await asyncio.sleep(0.5)
        processes[1].resume()
        processes[2].kill()
        for process in processes:
            loop.at(loop.now + 1, process.post, event.set)
        await asyncio.wait(tasks, timeout=15)
        await asyncio.sleep(10)
        seen.append((loop.now, "end", 0))

    collecting = gc.isenabled()
    gc.disable()
    try:
        loop.run(main())
    finally:
        if collecting:
            gc.enable()
    loop.close()
    return list(seen)


def test_worlds_of_the_past_do_not_pile_up() -> None:
    """A long run that is over and forgotten is gone when the next one begins, though it was kept out of the way."""

    async def idle(passes: int) -> None:
        for _ in range(passes):
            await asyncio.sleep(0)

    gone: list[str] = []
    world = Cycle(gone.append, "an old world")
    loop = SimLoop(Random(1))
    loop.run(idle(PASSES_UNCOLLECTED_MAX + 1))
    loop.close()
    del world
    gc.collect(1)
    assert gone == []
    loop = SimLoop(Random(2))
    loop.run(idle(1))
    loop.close()
    assert gone == ["an old world"]


def test_a_seed_is_one_run() -> None:
    """The same seed: the same order, to the last bit of the time. Another seed: another."""
    first = scramble(1)
    end = next(at for at, name, _ in first if name == "end")
    assert "collected" in {name for at, name, _ in first if 10 <= at < end}
    assert "an old one" not in {name for _, name, _ in first}
    assert scramble(1) == first
    assert scramble(2) != first


def test_unnamed_tasks_are_numbered_per_loop() -> None:
    """Their names may stand in a log that two runs are compared by."""

    async def main() -> str:
        return asyncio.create_task(asyncio.sleep(0)).get_name()

    assert [simulate(main()), simulate(main())] == ["Task-2", "Task-2"]


def test_tasks_leave_a_set_in_the_order_in_which_they_were_made() -> None:
    """TaskGroup and others go through sets of tasks, and where they lie in memory must not matter."""

    async def main() -> tuple[list[int], list[int]]:
        ended: list[int] = []

        async def work(number: int) -> None:
            try:
                await asyncio.sleep(1)
            finally:
                ended.append(number)

        tasks = {asyncio.create_task(work(number)): number for number in range(50)}
        order = [tasks[task] for task in set(tasks)]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5), asyncio.TaskGroup() as group:
                for number in range(50, 100):
                    group.create_task(work(number))
        return order, list(ended)

    order, ended = simulate(main())
    assert sorted(order) == list(range(50))
    assert sorted(ended) == list(range(50, 100))
    assert simulate(main()) == (order, ended)


def test_a_seed_is_one_run_in_another_interpreter() -> None:
    """Hashes do not matter."""
    program = "from tests.sim.test_loop import scramble; print(scramble(1))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }
    assert outputs == {repr(scramble(1))}


@pytest.mark.parametrize("name", ["add_reader", "add_signal_handler", "create_unix_server", "set_debug", "stop"])
def test_what_a_loop_lacks_is_refused_by_its_name(name: str) -> None:
    """With the error that says so, and not with one without a word."""

    async def main() -> None:
        getattr(asyncio.get_running_loop(), name)(1, 2)

    with pytest.raises(SimUnsupported, match=name):
        simulate(main())


def test_a_time_that_is_no_number_is_refused() -> None:
    """And leaves other timers alone."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        with pytest.raises(ValueError, match="not a number"):
            loop.call_later(float("nan"), print)
        await asyncio.sleep(1)
        return loop.time()

    assert simulate(main(), until=2) == pytest.approx(1, abs=0.001)
