from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from pyraftkv.errors import InvalidRequest, RevisionMismatch
from pyraftkv.replicated import ReplicatedCounter
from pyraftkv.sim.check import Finding, Verdict
from pyraftkv.sim.faults import Fault, FaultError
from pyraftkv.sim.host import Host
from pyraftkv.sim.kinds import KINDS
from pyraftkv.sim.loop import SimTimeout, SimUnsupported
from pyraftkv.sim.report import SimFailure
from pyraftkv.sim.script import parse_script
from pyraftkv.sim.trial import ALL_KINDS, STORY_LINES, Breakage, Plan, Trial, attempt, search, shrunk
from pyraftkv.transport import TcpTransport

KILLS = Plan(faults=["kill", "delay"], seconds=10.0)


async def idle(_: Host) -> None:
    """Do nothing, for long."""
    await asyncio.sleep(1_000)


def unkillable(sim: Trial) -> None:
    """A wrong scenario: the worker is expected to live once."""
    worker = sim.host("worker", program=idle)

    async def main(_: Trial) -> None:
        await asyncio.sleep(10)
        assert worker.boots == 1

    sim.run(main)


@pytest.fixture(scope="module")
def found() -> Breakage:
    """How the wrong scenario breaks first."""
    found = search(unkillable, range(10), KILLS)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def less(found: Breakage) -> Breakage:
    """The same, shrunk."""
    return shrunk(unkillable, found)


def test_faults_befall_the_machines_of_a_scenario() -> None:
    """The same for the same seed; members have their own, which do not depend on who else is there."""

    def listed(names: list[str], seed: int = 3) -> list[Fault]:
        with Trial(seed, Plan(faults=["kill", "kill_leader", "isolate"])) as sim:
            for name in names:
                sim.host(name)
            return sim.chosen_faults()

    alone, together = listed([]), listed(["w1", "w2"])
    assert together == listed(["w1", "w2"])
    assert together != listed(["w1", "w2"], seed=4)
    assert together == sorted(together, key=lambda fault: fault.at)
    own = [fault for fault in together if {"w1", "w2"} & {*fault.targets}]
    assert {fault.kind for fault in own} == {"kill", "isolate"}
    assert [fault for fault in together if fault not in own] == alone


def test_all_kinds_are_the_seeds_choice() -> None:
    """Every seed leaves some out, and chooses how the cluster is built."""
    swarms = []
    for seed in range(8):
        with Trial(seed, Plan(faults=ALL_KINDS)) as sim:
            swarms.append(sim.swarm)
    assert all({*swarm.kinds} <= KINDS.keys() for swarm in swarms)
    assert len({swarm.kinds for swarm in swarms}) > 4
    assert len({swarm.latency_seconds for swarm in swarms}) > 1
    assert {swarm.members for swarm in swarms} == {3}


def test_faults_to_the_letter_happen() -> None:
    """A plan may hold faults, beside kinds; an unknown kind is refused at once."""
    fault = Fault(1.0, "kill", ("worker",), 0.5)
    found = attempt(unkillable, 1, Plan(faults=[fault]))
    assert found is not None
    assert found.faults == [fault]
    with pytest.raises(FaultError, match="no fault 'earthquake'"):
        Trial(1, Plan(faults=["earthquake"]))


def test_a_trial_may_wait_for_a_leader() -> None:
    """Before its scenario and its faults begin."""

    async def main(sim: Trial) -> float:
        assert (sim.leader is not None) == sim.plan.is_ready
        return sim.now()

    for is_ready in (False, True):
        with Trial(1, Plan(is_ready=is_ready)) as sim:
            assert (sim.run(main) > 0) == is_ready


def test_members_have_machines_of_your_own() -> None:
    """Each life of a member makes them anew, of what stands in its log."""

    async def main(sim: Trial) -> int:
        async with sim.client() as kv:
            hits = ReplicatedCounter(kv, "hits", timeout=30)
            await hits.add(2)
            for host in sim.members:
                host.kill()
                host.start()
            return await hits.add(3)

    with Trial(4, Plan(machines={"hits": ReplicatedCounter.machine}, is_ready=True)) as sim:
        assert sim.run(main) == 5


def test_a_scenario_ends_in_time() -> None:
    """One that waits forever is a failure, not a test that hangs; a member less needs no more."""

    async def main(_: Trial) -> None:
        await asyncio.Event().wait()

    with Trial(1, Plan(members=1)) as sim, pytest.raises(SimTimeout) as caught:
        sim.run(main, until=3.0)
    line = main.__code__.co_firstlineno + 1
    assert caught.value.__notes__ == [f"`main` waits at {__file__}:{line}, in main"]


def test_where_main_waits_is_a_line_of_the_application() -> None:
    """The innermost one; whatever waits in a library waits for the application."""

    async def waits() -> None:
        condition = asyncio.Condition()
        async with condition:
            await condition.wait()

    async def main(_: Trial) -> None:
        await waits()

    with Trial(1, Plan(members=1)) as sim, pytest.raises(SimTimeout) as caught:
        sim.run(main, until=3.0)
    line = waits.__code__.co_firstlineno + 3
    assert caught.value.__notes__ == [f"`main` waits at {__file__}:{line}, in waits"]


def test_members_do_not_warn_of_a_simulated_network(caplog: pytest.LogCaptureFixture) -> None:
    """A warning at every start of every member would bury what the application says. Afterwards they warn as ever."""

    async def main(sim: Trial) -> None:
        logging.getLogger("pyraftkv.transport").warning("something else")
        sim.members[0].kill()
        sim.members[0].start()
        await asyncio.sleep(1)

    with Trial(1) as sim:
        sim.run(main)
    assert [each.getMessage() for each in caplog.records] == ["something else"]
    TcpTransport(listen="192.0.2.1:2380", insecure=True)
    assert "without TLS" in caplog.records[-1].getMessage()


def test_a_run_takes_a_function() -> None:
    """Not what it returns, as `asyncio.run` does: whoever mixes them up is told."""

    async def main() -> None: ...

    with Trial(1) as sim, pytest.raises(TypeError, match=r"takes the function itself, run\(main\)"):
        sim.run(main())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert not sim.has_begun


def test_the_clocks_of_a_machine_are_what_its_program_reads() -> None:
    """`time.time` and the simulation's own word for it."""
    seen: list[float] = []

    async def program(_: Host) -> None:
        seen.append(time.time() - sim.wall_clock())
        sim.note("has looked")

    async def main(_: Trial) -> None:
        await asyncio.sleep(0.05)
        sim.note("looks on")

    with Trial(1) as sim:
        sim.host("w", program=program)
        sim.run(main)
        assert [(event.host, event.detail["text"]) for event in sim.trace.events(["note"])] == [
            ("w", "has looked"),
            ("", "looks on"),
        ]
    assert seen == [0.0]


def test_a_verdict_ends_the_run_where_it_is_given() -> None:
    """Even in a program that catches errors: the picture ends at what matters."""

    async def program(_: Host) -> None:
        await asyncio.sleep(1)
        sim.expect(Verdict(Finding.RIGHT))
        try:
            sim.expect(Verdict(Finding.WRONG, "two owners"))
        except SimFailure:
            await asyncio.sleep(100)

    async def main(_: Trial) -> None:
        await asyncio.sleep(50)

    with Trial(1) as sim:
        sim.host("w", program=program)
        with pytest.raises(SimFailure, match=r"^wrong: two owners$"):
            sim.run(main)
        assert 1 <= sim.now() < 2


def test_what_clients_were_told_is_in_the_picture() -> None:
    """The answers of recorded clients, and what failed."""

    async def main(sim: Trial) -> None:
        async with sim.client() as client:
            db = sim.recorded(client, "me")
            await db.put("k", "v", timeout=20)
            await db.get("k")
            with pytest.raises(RevisionMismatch):
                await db.put("k", "w", if_revision=77)

    with Trial(1) as sim:
        sim.run(main)
        told = [line.split(maxsplit=3)[3] for line in sim.trace.lines(["return"])]
    assert told[:2] == ["op=0 ok ok at revision 2", "op=1 ok 'k' = 'v' (mod 2, version 1) at revision 2"]
    assert len(told) == 3


async def subprocess_of_asyncio(_: Trial) -> None:
    """Start a subprocess."""
    await asyncio.create_subprocess_exec("true")


async def thread_of_asyncio(_: Trial) -> None:
    """Start a thread."""
    await asyncio.to_thread(print)


@pytest.mark.parametrize("main", [subprocess_of_asyncio, thread_of_asyncio])
def test_what_asyncio_does_in_real_time_is_refused(main: Callable[[Trial], Coroutine[Any, Any, None]]) -> None:
    """Whoever asks for it."""
    with Trial(1) as sim, pytest.raises(SimUnsupported):
        sim.run(main)


def test_the_first_seed_that_breaks_is_found_again(found: Breakage) -> None:
    """With the same faults and the same trace."""
    again = search(unkillable, range(10), KILLS)
    assert again is not None
    assert (found.seed, found.faults, found.signature) == (again.seed, again.faults, again.signature)
    assert found.trace.digest() == again.trace.digest()
    assert search(unkillable, range(2), Plan()) is None


def test_faults_that_do_not_matter_are_left_out(found: Breakage, less: Breakage) -> None:
    """What is left is one kill of the worker, and the failure is the same."""
    assert len(found.faults) > 1
    assert [(fault.kind, fault.targets) for fault in less.faults] == [("kill", ("worker",))]
    assert less.signature == found.signature
    assert less.faults_before == len(found.faults)
    assert 0 < less.runs <= 100
    assert shrunk(unkillable, found, seconds_max=0.0).faults == found.faults


def test_faults_after_the_failure_have_no_part_in_it() -> None:
    """Nobody runs anything to leave them out. What a scenario injects by itself it will inject again."""

    def scenario(sim: Trial) -> None:
        async def main(_: Trial) -> None:
            sim.inject([Fault(0.0, "reset")])
            await asyncio.sleep(2)
            raise KeyError("x")

        sim.run(main)

    before, after = Fault(1.0, "kill", ("n1",), 5.0), Fault(3.0, "kill", ("n2",), 1.0)
    found = attempt(scenario, 1, Plan(faults=[before, after]))
    assert found is not None
    assert found.faults == [before]


def test_a_scenario_can_wait_until_everything_is_well() -> None:
    """The last fault is over then; without faults, that is at once."""

    async def main(sim: Trial) -> float:
        began = sim.now()
        await sim.healed()
        assert all(host.is_up for host in sim.members)
        return sim.now() - began

    for faults, seconds in (([], 0.0), ([Fault(1.0, "kill", ("n1",), 5.0), Fault(2.0, "kill", ("n2",), 1.0)], 6.0)):
        with Trial(1, Plan(faults=faults, is_ready=True)) as sim:
            assert sim.run(main) == pytest.approx(seconds, abs=0.001)


def test_another_failure_is_not_the_same() -> None:
    """Shrinking does not slip into a failure in another line."""

    def scenario(sim: Trial) -> None:
        worker = sim.host("worker", program=idle)

        async def main(_: Trial) -> None:
            await asyncio.sleep(10)
            assert worker.boots == 1
            assert sim.faults

        sim.run(main)

    found = search(scenario, range(10), KILLS)
    assert found is not None
    assert shrunk(scenario, found, runs_max=5).faults != []


def test_a_report_tells_how_to_see_it_again(less: Breakage) -> None:
    """The seed, the command, the faults that are left, and what happened without the chatter."""
    text = less.report(command="pytest x --raft-seed=0")
    assert f"seed: {less.seed}\nreplay: pytest x --raft-seed=0\nfaults: 1, shrunk from" in text
    assert "stopped early" not in text
    assert parse_script(text.partition(" runs\n")[2].partition("what happened")[0]) == less.faults
    assert "kill worker begins" in text
    assert "violation AssertionError: assert 2 == 1" in text
    assert "Heartbeat" not in text
    page = less.html(title="unkillable", command="pytest x --raft-seed=0")
    assert f"unkillable, seed {less.seed} failed at" in page
    assert "pytest x --raft-seed=0" in page


def test_a_report_says_that_shrinking_was_cut_short(found: Breakage, less: Breakage) -> None:
    """Faults that are left then are not all needed; a list that was not shrunk says nothing of the kind."""
    assert less.is_minimal
    early = shrunk(unkillable, found, runs_max=1)
    assert not early.is_minimal
    assert ", stopped early: more time may leave fewer\n" in early.report()
    assert not shrunk(unkillable, found, runs_max=100_000, seconds_max=0.0).is_minimal
    assert "shrunk" not in found.report()


def test_a_report_tells_what_happened_around_the_faults() -> None:
    """The fault that matters may be long over when a test looks at what came of it."""

    def scenario(sim: Trial) -> None:
        worker = sim.host("a worker", program=idle)

        async def main(_: Trial) -> None:
            for number in range(60):
                sim.note(f"step {number}")
                await asyncio.sleep(1)
            assert worker.boots == 1, "more than one life\nand more words"

        sim.run(main)

    found = attempt(scenario, 1, Plan(faults=[Fault(3.0, "kill", ("a worker",), 0.5)]))
    assert found is not None
    report = found.report()
    assert "    at 3 s: kill a worker for 0.5 s\n" in report
    lines = found.story()
    assert STORY_LINES <= len(lines) <= STORY_LINES + 3
    text = "\n".join(lines)
    assert "kill a worker begins" in text
    assert "step 4\n" in text
    assert "step 30\n" not in text
    assert "step 59\n" in text
    assert lines[-1].endswith("violation AssertionError: more than one life")
    assert lines.count("        ...") == 2


@pytest.mark.parametrize(
    "plan",
    [
        Plan(members=0),
        Plan(members=65),
        Plan(seconds=float("nan")),
        Plan(seconds=float("inf")),
        Plan(faults_per_second=-1.0),
        Plan(faults_per_second=1e6),
        Plan(faults=["member_remove", "wipe"]),
        Plan(members=cast(int, 2.5)),
        Plan(faults=cast(list[str], {"kill"})),  # a set of one: the test's name, too, must be the same in every process
        Plan(faults=cast(list[str], [None])),
        Plan(faults=cast(str, None)),
    ],
    ids=repr,
)
def test_a_plan_that_cannot_be_is_refused(plan: Plan) -> None:
    """At once, and not by hanging or by doing something else."""
    with pytest.raises(InvalidRequest):
        Trial(1, plan)


@pytest.mark.parametrize("name", ["n1", "worker", "", "leader", "|"])
def test_a_host_has_a_name_of_its_own(name: str) -> None:
    """Faults would take it for somebody else."""
    with Trial(1) as sim:
        sim.host("worker")
        with pytest.raises(InvalidRequest, match=re.escape(repr(name))):
            sim.host(name)


def test_a_program_may_exit() -> None:
    """It ends the process of its machine, as it would on a real one: with a status, it has failed."""

    def exits(status: int) -> Callable[[Trial], object]:
        async def program(_: Host) -> None:
            await asyncio.sleep(1)
            sys.exit(status)

        async def main(_: Trial) -> None:
            await asyncio.sleep(5)

        def scenario(sim: Trial) -> None:
            host = sim.host("worker", program=program)
            sim.run(main)
            assert host.boots > 1

        return scenario

    assert attempt(exits(0), 1, Plan()) is None
    broken = attempt(exits(3), 1, Plan())
    assert broken is not None
    assert "SystemExit(3)" in str(broken.error)


def test_no_error_of_a_program_goes_unnoticed() -> None:
    """Whatever it is derived from."""

    class Odd(BaseException):
        pass

    async def program(_: Host) -> None:
        raise Odd

    async def main(_: Trial) -> None:
        await asyncio.sleep(1)

    def scenario(sim: Trial) -> None:
        sim.host("worker", program=program)
        sim.run(main)

    broken = attempt(scenario, 1, Plan())
    assert broken is not None
    assert "Odd()" in str(broken.error)
