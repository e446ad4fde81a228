from __future__ import annotations

import re
import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

BROKEN = """
import asyncio
import logging
import pytest


async def idle(host):
    await asyncio.sleep(1000)


@pytest.mark.raft(seeds=2, faults=["kill", "delay"], seconds=3.0, faults_per_second=2.0)
def test_lives_once(raft_sim):
    worker = raft_sim.host("worker", program=idle)

    async def main(sim):
        await asyncio.sleep(3)
        assert worker.boots == 1

    print("printed once")
    logging.warning("logged once")
    raft_sim.run(main)
"""


@pytest.fixture(autouse=True)
def _only_our_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pytest not look for what else is installed: that takes most of its start."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def run(pytester: pytest.Pytester, source: str, *options: str) -> pytest.RunResult:
    """Run a file of tests with the plugin, whether or not it is installed."""
    pytester.makepyfile(test_it=source)
    return pytester.runpytest_inprocess("-p", "pytest_pyraftkv", "-p", "no:cacheprovider", "--strict-markers", *options)


def names(result: pytest.RunResult) -> list[str]:
    """Return the tests that ran, in order."""
    return [line.split("::")[1].split()[0] for line in result.outlines if "::" in line and "%]" in line]


SEEDS = """
import asyncio
import pytest
from pyraftkv.replicated import ReplicatedCounter


async def main(sim):
    await asyncio.sleep(0)


async def count(sim):
    async with sim.client() as kv:
        assert await ReplicatedCounter(kv, "hits").add(2) == 2


def test_default(raft_sim):
    raft_sim.run(main)


@pytest.mark.raft(seeds=2)
@pytest.mark.parametrize("word", ["a", "b"])
def test_marked(raft_cluster, word, raft_seed):
    assert raft_cluster.seed == raft_seed
    raft_cluster.run(main)


@pytest.mark.raft(seeds=[7, 11], members=5, machines={"hits": ReplicatedCounter.machine})
def test_chosen(raft_sim):
    assert len(raft_sim.members) == 5
    raft_sim.run(count)


def test_plain():
    pass
"""


def test_a_test_runs_once_a_seed(pytester: pytest.Pytester) -> None:
    """Five by default, or those of the marker; tests without a simulation are left alone."""
    result = run(pytester, SEEDS, "-v")
    result.assert_outcomes(passed=5 + 2 * 2 + 2 + 1)
    assert names(result) == [
        *(f"test_default[seed{seed}]" for seed in range(5)),
        *(f"test_marked[{word}-seed{seed}]" for word in "ab" for seed in range(2)),
        "test_chosen[seed7]",
        "test_chosen[seed11]",
        "test_plain",
    ]


@pytest.mark.parametrize(
    ("option", "expected"),
    [("--raft-seeds=1", "test_default[seed0]"), ("--raft-seed=4711", "test_default[seed4711]")],
)
def test_the_command_line_chooses_the_seeds(pytester: pytest.Pytester, option: str, expected: str) -> None:
    """Over what markers say."""
    result = run(pytester, SEEDS, "-v", option)
    result.assert_outcomes(passed=1 + 2 + 1 + 1)
    assert names(result)[0] == expected


@pytest.mark.parametrize("seeds", ["0", "-1", "True", "[]", "'3'", "[1, -1]", "['a']", "[0.5]", "{1, 2}", "None"])
def test_no_seeds_are_an_error_and_no_skip(pytester: pytest.Pytester, seeds: str) -> None:
    """Nothing would have run, and everything would be fine; or a seed that the command line cannot name."""
    source = f"import pytest\n@pytest.mark.raft(seeds={seeds})\ndef test_it(raft_sim):\n    pass\n"
    result = run(pytester, source, "--collect-only")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["test_it.py::test_it: @pytest.mark.raft: seeds are how many, 1 or more, *"])


@pytest.mark.parametrize("option", ["--raft-seed=-1", "--raft-seed=x", "--raft-seeds=0", "--raft-seeds=-2"])
def test_options_that_name_no_seed_are_refused(pytester: pytest.Pytester, option: str) -> None:
    """They may come of a script's variable; `--raft-seeds=0` would have skipped every test."""
    result = run(pytester, SEEDS, option)
    assert result.ret is pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*error: argument --raft-seed*: '*' is no whole number from [01] on"])


def test_a_failure_shows_how_to_see_it_again(pytester: pytest.Pytester) -> None:
    """The seed, the command, the fewest faults, what happened around them, and a picture that has them all."""
    result = run(pytester, BROKEN, "--raft-seed=0", "--raft-shrink-seconds=60")
    result.assert_outcomes(failed=1)
    picture = pytester.path / ".raft" / "test_it.py-test_lives_once-seed0.html"
    result.stdout.fnmatch_lines(
        [
            ">       raft_sim.run(main)",
            ">       assert worker.boots == 1",
            "E       assert 2 == 1",
            "*pyraftkv simulation*",
            "seed: 0",
            "replay: pytest test_it.py::test_lives_once --raft-seed=0",
            f"picture: {picture}",
            "faults: 1, shrunk from *",
            "    at *s for *s kill worker",
            "what happened:",
            "*  worker        crash     killed",
            "*violation AssertionError: assert 2 == 1*",
        ]
    )
    text = result.stdout.str()
    assert text.count("\nprinted once") == 1
    assert len(re.findall(r"WARNING .* logged once", text)) == 1
    assert "During handling" not in text
    assert "pyraftkv/sim" not in text
    assert (pytester.path / ".raft" / ".gitignore").read_text() == "*\n"
    page = picture.read_text(encoding="utf-8")
    assert "test_lives_once, seed 0 failed at 3.0" in page
    assert "pytest test_it.py::test_lives_once --raft-seed=0" in page


NOT_THERE = """
import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyraftkv.sim import Simulation


def test_fails(raft_sim: Simulation):
    async def main(sim: Simulation):
        assert sim.seed is None

    raft_sim.run(main)
"""


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are evaluated where they stand")
def test_annotations_of_a_test_are_not_evaluated(pytester: pytest.Pytester) -> None:
    """They may name what only a type checker has imported, and running the test again asks for no more than names."""
    result = run(pytester, NOT_THERE, "--raft-seed=0", "--raft-shrink-seconds=1")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E       assert 0 is None*", "replay: pytest test_it.py::test_fails --raft-seed=0"])
    assert "NameError" not in result.stdout.str()


def test_shrinking_and_the_folder_are_options(pytester: pytest.Pytester) -> None:
    """No time, no shrinking; two runs of a seed are equal to the letter of their picture."""
    pages = []
    for folder in ("one", "two"):
        result = run(pytester, BROKEN, "--raft-seed=0", "--raft-shrink-seconds=0", f"--raft-out={folder}")
        assert "shrunk" not in result.stdout.str()
        pages.append((pytester.path / folder / "test_it.py-test_lives_once-seed0.html").read_text(encoding="utf-8"))
    assert pages[0] == pages[1]
    assert not (pytester.path / ".raft").exists()


def test_a_picture_that_cannot_be_written_costs_no_report(pytester: pytest.Pytester) -> None:
    """The test's own failure is told, and why there is no picture."""
    (pytester.path / "file").touch()
    result = run(pytester, BROKEN, "--raft-seed=0", "--raft-shrink-seconds=0", "--raft-out=file")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E  *assert 2 == 1", "seed: 0", "what happened:", "no picture: *Not a directory: *"])
    assert "picture: /" not in result.stdout.str()


def test_the_clusters_own_rules_and_pytests_words_fail_a_test_too(pytester: pytest.Pytester) -> None:
    """A broken rule, `pytest.fail`, an error before the run. A skip is a skip, and what is expected is not drawn."""
    result = run(
        pytester,
        """
import pytest
from pyraftkv.core import HardState

pytestmark = pytest.mark.raft(seeds=1)


def test_rule(raft_cluster):
    async def main(sim):
        sim.leader.member.inbox.put(HardState())
        await sim.sleep(1)

    raft_cluster.run(main)


def test_word(raft_sim):
    async def main(sim):
        pytest.fail("not so")

    raft_sim.run(main)


def test_before(raft_sim):
    raise KeyError("x") from ValueError("the cause")


def test_skipped(raft_sim):
    pytest.skip("no")


@pytest.mark.xfail(strict=True)
def test_expected(raft_sim):
    assert False
""",
    )
    result.assert_outcomes(failed=3, skipped=1, xfailed=1)
    result.stdout.fnmatch_lines(
        ["E *no member stops by itself*", "E *not so", "ValueError: the cause", "E *KeyError: 'x'"]
    )
    assert len(list((pytester.path / ".raft").glob("*.html"))) == 3


def test_a_command_fits_a_test_that_is_parametrized_further(pytester: pytest.Pytester) -> None:
    """The other parameters stay in its name, quoted."""
    source = """
import pytest


@pytest.mark.parametrize("word", ["a b"])
def test_it(raft_sim, word):
    assert word != "a b"
"""
    result = run(pytester, source, "--raft-seed=3")
    result.stdout.fnmatch_lines(["replay: pytest 'test_it.py::test_it[[]a b-seed3[]]' --raft-seed=3"])


def test_a_wrong_marker_is_an_error_at_once(pytester: pytest.Pytester) -> None:
    """In one line, which names the test and what there is."""
    for options, words in (
        ("faults=['puase']", "there is no fault 'puase', but 'pause'; `pyraftkv sim --kinds` lists all"),
        ("secs=1", "there is no option 'secs'; there are seeds, members, *"),
        ("is_ready=True", "there is no option 'is_ready'; *"),
        ("'all'", "its options have names, such as faults='all'"),
        ("seeds=1.5", "seeds are how many, 1 or more, or a list of whole numbers from 0 on: not 1.5"),
        ("members=0", "a cluster has 1 to 64 members, not 0"),
    ):
        result = run(pytester, f"import pytest\n@pytest.mark.raft({options})\ndef test_it(raft_sim):\n    pass\n")
        result.stdout.fnmatch_lines([f"test_it.py::test_it: @pytest.mark.raft: {words}"])
        result.assert_outcomes(errors=1)
        assert "Traceback" not in result.stdout.str()
        assert "_pytest" not in result.stdout.str()


@pytest.mark.parametrize("name", ["raft_sim", "raft_cluster"])
def test_a_coroutine_is_told_how_to_be_a_test(pytester: pytest.Pytester, name: str) -> None:
    """No plugin for coroutines could help: none would run it in virtual time."""
    result = run(pytester, f"async def test_it({name}):\n    pass\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"test_it.py::test_it: *write `def test_it({name}):`*`{name}.run(main)`"])


def test_a_test_that_simulates_nothing_fails(pytester: pytest.Pytester) -> None:
    """It forgot to run what it describes, and would be right by chance."""
    source = "def test_it(raft_sim):\n    async def main(sim):\n        assert False\n"
    result = run(pytester, source, "--raft-seed=0")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *nothing was simulated: *`raft_sim.run(main)`"])


FIXTURES = """
import asyncio
import pytest

pytestmark = pytest.mark.raft(faults=["kill", "delay"], seconds=3.0, faults_per_second=2.0)
shared = []


async def idle(host):
    await asyncio.sleep(1000)


@pytest.fixture
def folder(tmp_path):
    shared.append(tmp_path)
    return tmp_path


@pytest.fixture
def worker(raft_sim, folder):
    return raft_sim.host("worker", program=idle)


@pytest.fixture
def app(raft_sim, worker, folder):
    assert folder is shared[-1]
    yield [worker, raft_sim]
    print("app ends")


@pytest.fixture(params=["a"])
def odd(worker):
    return worker


def lives_once(sim, worker):
    async def main(sim):
        await asyncio.sleep(3)
        assert worker.boots == 1

    sim.run(main)


def test_beside(raft_sim, app, folder):
    assert app[0] is raft_sim.hosts["worker"]
    lives_once(raft_sim, app[0])


def test_without(app):
    lives_once(app[1], app[0])


def test_past(app, request):
    lives_once(request.getfixturevalue("raft_sim"), app[0])


def test_odd(raft_sim, odd):
    lives_once(raft_sim, odd)
"""


@pytest.mark.parametrize("name", ["test_beside", "test_without"])
def test_what_fixtures_made_of_a_simulation_they_make_again(pytester: pytest.Pytester, name: str) -> None:
    """A worker of the first run, with all its lives, would fail every other run, and no fault would seem needed."""
    result = run(pytester, FIXTURES, "-k", name, "--raft-seed=0", "--raft-shrink-seconds=60")
    result.assert_outcomes(failed=1, deselected=3)
    result.stdout.fnmatch_lines(["E  *assert 2 == 1", "faults: 1, shrunk from *", "    at *s for *s kill worker"])
    assert result.stdout.str().count("app ends") == 1, "of the first run alone, and printed by it"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("test_odd", "the fixture `odd` has parameters"),
        ("test_past", "`raft_sim` came to the test past its parameters"),
    ],
)
def test_what_cannot_run_again_is_not_shrunk(pytester: pytest.Pytester, name: str, why: str) -> None:
    """Rather than wrongly; the report says why."""
    result = run(pytester, FIXTURES, "-k", name, "--raft-seed=0")
    result.assert_outcomes(failed=1, deselected=3)
    assert "shrunk from" not in result.stdout.str()
    result.stdout.fnmatch_lines([f"not shrunk: {why}, so the test cannot run again*"])


def test_a_run_without_simulations_imports_nothing(pytester: pytest.Pytester) -> None:
    """Whoever has the package installed does not pay for it, and coverage sees it imported from the beginning."""
    pytester.makepyfile(test_it="def test_it():\n    pass\n")
    program = (
        "import sys, pytest\n"
        "assert pytest.main(['-q', '-p', 'pytest_pyraftkv']) == 0\n"
        "assert 'pytest_pyraftkv' in sys.modules\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'pyraftkv'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
