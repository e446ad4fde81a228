"""The verb ``sim``: what it prints, writes and answers with."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyraftkv.cli import main
from pyraftkv.cli.arguments import parser, seeds
from pyraftkv.cli.common import DONE, NOT_APPLIED, USAGE
from pyraftkv.cli.simulating import COLUMNS, replay_command, row_of, shrunk
from pyraftkv.sim import Fault, SimFailure, Trace
from pyraftkv.sim.kinds import KINDS, kinds_table
from pyraftkv.sim.script import parse_script

Cli = Callable[..., tuple[int, str, str]]

NOBODY_ASKS = """\
at 0s wipe c1 c2 c3
at 0s for 1500ms isolate_all
"""
"""Breaks a rule: clients that are gone for good ask too little."""


@pytest.fixture
def cli(capsysbinary: pytest.CaptureFixture[bytes]) -> Cli:
    """Run the verb in this process; return status, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsysbinary.readouterr()
        status = main(["sim", *arguments])
        out, err = capsysbinary.readouterr()
        return status, out.decode(), err.decode()

    return run


def test_a_seed_that_breaks_no_rule_is_a_line_and_a_picture(cli: Cli, tmp_path: Path) -> None:
    """Its report, and whichever files were asked for."""
    html, svg, trace = tmp_path / "x.html", tmp_path / "x.svg", tmp_path / "x.txt"
    status, out, err = cli(
        "--seed=9", "--seconds=1", "--members=1", f"--html={html}", f"--svg={svg}", f"--trace={trace}"
    )
    assert (status, err) == (DONE, "")
    assert out.startswith("seed 9: ok: 1 members, ")
    assert out.count("\n") == 1
    page = html.read_text(encoding="utf-8")
    assert "seed 9" in page
    assert "python -m pyraftkv sim --seed 9 --seconds 1 --members 1" in page
    assert svg.read_text(encoding="utf-8").startswith("<svg ")
    assert "  n1            start " in trace.read_text(encoding="utf-8")


def test_several_seeds_are_a_table(cli: Cli) -> None:
    """A row for each, and a line as each ends."""
    status, out, err = cli("--seeds=9..10", "--seconds=500ms", "--members=1")
    assert status == DONE
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    assert rows[0] == COLUMNS
    assert [row[0] for row in rows[1:]] == ["9", "10"]
    assert [line.partition(":")[0] for line in err.splitlines()] == ["seed 9", "seed 10"]


def test_a_failure_says_what_broke_and_how_to_see_it_again(cli: Cli, tmp_path: Path) -> None:
    """Status 1, the rule, the seed, the command with everything that was given, and the end of the trace."""
    script, html = tmp_path / "faults.txt", tmp_path / "x.html"
    script.write_text(NOBODY_ASKS, encoding="utf-8")
    status, out, _ = cli("--seed=10", "--seconds=2", f"--script={script}", f"--html={html}")
    assert status == NOT_APPLIED
    first, second, third, *_ = out.splitlines()
    assert first.startswith("seed 10: traffic: ")
    found = first.removeprefix("seed 10: ")
    assert second == f"replay: python -m pyraftkv sim --seed 10 --seconds 2 --script {script}"
    assert third == "2 faults"
    assert "at 0s wipe c1 c2 c3" in html.read_text(encoding="utf-8")
    status, out, err = cli("--seeds=10..10", "--seconds=2", f"--script={script}")
    assert status == NOT_APPLIED
    assert out.startswith("+-")
    assert out.endswith(f"+\nseed 10 fails: {found}\n{second}\n")
    assert err == "seed 10: traffic\n"


def test_a_failure_is_shrunk_to_a_script_that_fails_too(cli: Cli, tmp_path: Path) -> None:
    """What does not matter is gone, and what is printed can be given back."""
    script = tmp_path / "faults.txt"
    script.write_text(NOBODY_ASKS + "at 500ms wipe c1\n", encoding="utf-8")
    status, out, err = cli("--seed=10", "--seconds=2", f"--script={script}", "--shrink")
    assert status == NOT_APPLIED
    _, found, lines = out.partition("the faults that matter, for a file and --script:\n")
    assert found
    assert 1 <= len(parse_script(lines)) < 3
    assert err.splitlines()[-1].startswith("3 faults became ")
    script.write_text(lines, encoding="utf-8")
    again, out, _ = cli("--seed=10", "--seconds=2", f"--script={script}")
    assert (again, out.splitlines()[0].split(":")[1]) == (NOT_APPLIED, " traffic")


def failure(rule: str, faults: list[Fault]) -> SimFailure:
    """Return a failure of a rule."""
    return SimFailure(rule, "it was so", seed=4, faults=faults, trace=Trace())


def test_shrinking_keeps_to_the_rule_that_broke() -> None:
    """Fewer faults that break another rule explain nothing."""
    faults = [Fault(float(at), "kill_leader", ("leader",)) for at in range(4)]

    def again(tried: list[Fault]) -> None:
        if faults[2] in tried:
            raise failure("liveness", tried)
        raise failure("traffic", tried)

    best, runs = shrunk(failure("liveness", faults), again)
    assert best.rule == "liveness"
    assert best.faults == [faults[2]]
    assert runs > 0
    best, runs = shrunk(failure("linearizable", faults), again)
    assert best.faults == faults


def test_a_failed_seed_has_a_row_too() -> None:
    """With the rule, and no figures of a run that had no end."""
    row = row_of(failure("liveness", []))
    assert dict(zip(COLUMNS, row, strict=True)) == {
        **dict.fromkeys(COLUMNS, ""), "SEED": "4", "FAULTS": "0", "RESULT": "liveness",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds=1..2", "--html=x"], "--html is for one seed: give --seed"),
        (["--seeds=1..2", "--shrink"], "--shrink is for one seed: give --seed"),
        (["--seeds=1..200000"], "200000 seeds, over 100000"),
        (["--seed=1", "--script=/nowhere/x"], "cannot read /nowhere/x"),
        (["--seed=1", "--members=0"], "a cluster has 1 to 64 members, not 0"),
        (["--seeds=1..2", "--members=65"], "a cluster has 1 to 64 members, not 65"),
    ],
)
def test_what_cannot_be_done_is_said(cli: Cli, arguments: list[str], said: str) -> None:
    """As one line, with the status of wrong usage."""
    status, out, err = cli(*arguments)
    assert (status, out) == (USAGE, "")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("option", ["--svg", "--html", "--trace"])
@pytest.mark.parametrize("path", ["/nowhere/x", ""])
def test_a_file_that_cannot_be_written_costs_no_result(cli: Cli, option: str, path: str) -> None:
    """What came of the run is said before: it may have been a long one."""
    status, out, err = cli("--seed=9", "--seconds=10ms", "--members=1", f"{option}={path}")
    assert (status, out.count("\n"), err.count("\n")) == (USAGE, 1, 1)
    assert out.startswith("seed 9: ok: ")
    assert f"cannot write {path}" in err


def test_a_script_that_makes_no_sense_is_refused(cli: Cli, tmp_path: Path) -> None:
    """Before anything runs, with its line."""
    script = tmp_path / "faults.txt"
    script.write_text("at 1s explode n1\n", encoding="utf-8")
    status, _, err = cli("--seed=1", f"--script={script}")
    assert status == USAGE
    assert "line 1" in err


def test_the_kinds_of_faults_are_listed(cli: Cli) -> None:
    """Every one, with what it does, what its amount means, and what a target must be able to do."""
    status, out, _ = cli("--kinds")
    lines = out.splitlines()
    assert status == DONE
    assert [line.split()[1] for line in lines[3:-1]] == list(KINDS)
    assert "| 0.02 seconds " in next(line for line in lines if "| delay " in line)
    assert all(kind.does in line for kind, line in zip(KINDS.values(), lines[3:-1], strict=True))


def test_the_kinds_of_faults_are_documented() -> None:
    """The page on faults has the table that ``--kinds`` prints."""
    page = (Path(__file__).parents[2] / "docs" / "concepts" / "faults.md").read_text(encoding="utf-8")
    table = "".join(f"| `{kind}` | {does} | {amount} | {needs} |\n" for kind, does, amount, needs in kinds_table())
    assert table in page


@pytest.mark.parametrize("text", ["1", "1..", "..2", "2..1", "a..b", "-1..2", ""])
def test_no_range_of_seeds(text: str) -> None:
    """A range names its first and its last."""
    with pytest.raises(argparse.ArgumentTypeError, match=r"is no range A\.\.B"):
        seeds(text)


@pytest.mark.parametrize("arguments", [["sim"], ["sim", "--seed=1", "--seeds=1..2"], ["sim", "--seeds=2..1"]])
def test_one_way_to_name_seeds(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Either one or a range, and one of the two."""
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(arguments)
    assert ended.value.code == USAGE
    assert "seed" in capsys.readouterr().err


def test_a_range_of_seeds_has_both_ends() -> None:
    """As in a shell's braces."""
    assert list(seeds("3..5")) == [3, 4, 5]


def test_a_command_has_only_what_is_not_usual() -> None:
    """And quotes what a shell would tear apart."""
    assert replay_command(1, seconds=30.0) == "python -m pyraftkv sim --seed 1"
    assert (
        replay_command(1, seconds=0.5, script="a b") == "python -m pyraftkv sim --seed 1 --seconds 0.5 --script 'a b'"
    )


def test_other_verbs_do_not_know_the_simulator() -> None:
    """Nobody who serves or asks pays for what tests need."""
    source = (
        "import sys\n"
        "from pyraftkv.cli import main\n"
        "assert main(['version']) == 0\n"
        "print([name for name in sys.modules if name.startswith('pyraftkv.sim')])\n"
    )
    ran = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
