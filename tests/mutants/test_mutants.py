"""The mutants themselves: every patch says what it is and still applies; the runner calls no survivor killed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.mutants.__main__ import main, table
from tests.mutants.mutant import PATCHES, PENDING, Hunk, Mutant, PatchError, load, node_id_of, parse, seed_of
from tests.mutants.refit import refit
from tests.mutants.runner import ROOT, Result, Verdict, run_all
from tests.mutants.sites import changed, sites

HANG_SECONDS = 6.0
"""Long enough to start pytest on a busy machine."""

_TEST = re.compile(r"^(?:async )?def (test_\w+)\(", re.MULTILINE)

# --- The patches -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mutants() -> list[Mutant]:
    """Every mutant there is. Loading them reads every header."""
    return load(PATCHES, PENDING)


def test_every_patch_applies(mutants: list[Mutant], tmp_path: Path) -> None:
    """To the source as it is now, each by itself, and what it leaves is Python."""
    complaints: list[str] = []
    for mutant in mutants:
        root = tmp_path / mutant.name
        for path in {hunk.path for hunk in mutant.hunks}:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text((ROOT / path).read_text(encoding="utf-8"), encoding="utf-8")
        try:
            mutant.apply(root)
        except PatchError as error:
            complaints.append(str(error))
    assert complaints == []
    assert len(mutants) >= 90


ON_WINDOWS = 'elif sys.platform == "win32":  # pragma: no cover\n            os.fsync(fd)'
"""The one sync that no test on this system can miss."""


def test_every_sync_and_every_checksum_has_a_mutant(mutants: list[Mutant]) -> None:
    """Whoever writes a new one writes the patch that deletes it, or is told here."""
    known = changed(mutants, ROOT)
    every = sites(ROOT)
    assert len(every) >= 30
    naked = [site for site in every if (site.path, site.line) not in known]
    windows = (ROOT / "pyraftkv/log/fs.py").read_text(encoding="utf-8")
    only_there = windows.count("\n", 0, windows.index(ON_WINDOWS)) + 2
    assert [site for site in naked if (site.path, site.line) != ("pyraftkv/log/fs.py", only_there)] == []


def test_a_new_sync_is_found(tmp_path: Path) -> None:
    """By whatever name it is called, and only where a mutant changes its own line."""
    room = tmp_path / "pyraftkv" / "log"
    room.mkdir(parents=True)
    (tmp_path / "pyraftkv" / "transport").mkdir()
    lines = ["def save(fs, fd):", "    fs.write(fd)", "    fs.fdatasync(fd)", "    return crc32(b'')", ""]
    (room / "new.py").write_text("\n".join(lines), encoding="utf-8")
    assert [(site.line, site.text) for site in sites(tmp_path)] == [(3, "fs.fdatasync(fd)"), (4, "return crc32(b'')")]
    hunk = Hunk("pyraftkv/log/new.py", "\n".join(lines[1:4]) + "\n", "\n".join([lines[1], lines[3]]) + "\n")
    mutant = Mutant("x", "A rule.", "A source", "sim 1", hangs=False, pending=False, hunks=(hunk,))
    assert changed([mutant], tmp_path) == {("pyraftkv/log/new.py", 3)}


BEFORE = "def vote(term):\n    term = int(term)\n    if term < 1:\n        return False\n    return True\n"
FAULT = """Rule: A term begins at 1.
Source: none
Killer: tests/test_x.py::test_x

--- a/pyraftkv/x.py
+++ b/pyraftkv/x.py
@@ -1,5 +1,3 @@
 def vote(term):
     term = int(term)
-    if term < 1:
-        return False
     return True
"""


@pytest.fixture
def fault(tmp_path: Path) -> Path:
    """A repository with one commit, and a patch that applies to it."""
    (tmp_path / "pyraftkv").mkdir()
    (tmp_path / "pyraftkv/x.py").write_text(BEFORE, encoding="utf-8")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "Begin"]):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)
    patch = tmp_path / "fault.patch"
    patch.write_text(FAULT, encoding="utf-8")
    return patch


def test_a_patch_is_refitted_to_an_edit_beside_its_rule(fault: Path, tmp_path: Path) -> None:
    """And says the same of its file as before; one that applies is left alone."""
    assert refit(parse(fault), fault, tmp_path) is False
    (tmp_path / "pyraftkv/x.py").write_text(BEFORE.replace("vote(term)", "vote(term, leader)"), encoding="utf-8")
    assert refit(parse(fault), fault, tmp_path) is True
    parse(fault).apply(tmp_path)
    expected = "def vote(term, leader):\n    term = int(term)\n    return True\n"
    assert (tmp_path / "pyraftkv/x.py").read_text(encoding="utf-8") == expected


def test_a_patch_of_an_edited_rule_is_left_to_a_person(fault: Path, tmp_path: Path) -> None:
    """Nobody knows whether the rule is still the one that the patch breaks."""
    (tmp_path / "pyraftkv/x.py").write_text(BEFORE.replace("term < 1", "term < 2"), encoding="utf-8")
    with pytest.raises(PatchError, match="the rule itself was edited"):
        refit(parse(fault), fault, tmp_path)
    assert fault.read_text(encoding="utf-8") == FAULT


def test_every_killer_is_there(mutants: list[Mutant]) -> None:
    """A killer that was renamed is found here, and not by the next one who runs the mutants."""
    for mutant in mutants:
        found = node_id_of(mutant.killer)
        if found is not None:
            path, test = found
            text = (ROOT / path).read_text(encoding="utf-8")
            assert re.search(rf"^(async )?def {test}\(", text, re.MULTILINE), f"{mutant.name}: {mutant.killer}"


@pytest.mark.parametrize("page", ["raft-rules.md", "pitfalls.md"])
def test_the_tables_of_rules_name_what_is_there(page: str, mutants: list[Mutant]) -> None:
    """Each test stands in the file that its link leads to, or in any, and each mutant among the others."""
    rows = [line for line in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    tests = {path: set(_TEST.findall(path.read_text(encoding="utf-8"))) for path in (ROOT / "tests").rglob("test_*.py")}
    names = {mutant.name for mutant in mutants}
    for row in rows:
        linked = re.findall(r"\[`(test_\w+)`\]\(\.\./([^)]+)\)", row)
        assert [test for test, path in linked if test not in tests[ROOT / path]] == []
        assert set(re.findall(r"`(test_\w+)`", row)) <= set().union(*tests.values()), row
        assert set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", row.rpartition(" | ")[2])) <= names, row


def test_only_the_product_is_broken(mutants: list[Mutant]) -> None:
    """A mutant of a test would prove nothing; and no two mutants are the same."""
    assert {hunk.path.partition("/")[0] for mutant in mutants for hunk in mutant.hunks} == {"pyraftkv"}
    assert len({mutant.hunks for mutant in mutants}) == len(mutants)


def test_the_page_lists_every_mutant(mutants: list[Mutant]) -> None:
    """docs/mutants.md has the table that `python -m tests.mutants --list` prints."""
    page = (ROOT / "docs" / "mutants.md").read_text(encoding="utf-8")
    assert page.partition("## All of them\n\n")[2].splitlines() == table(mutants)


# --- Reading a patch -------------------------------------------------------------------------------------------------

HEADER = "Rule: Two is more than one.\nSource: Euclid\nKiller: tests/test_sum.py::test_two\n"
DIFF = (
    "\n--- a/pyraftkv/sum.py\n+++ b/pyraftkv/sum.py\n@@ -1,2 +1,2 @@\n def two():\n-    return 1 + 1\n+    return 1\n"
)


def written(folder: Path, text: str) -> Mutant:
    """Write a patch and read it back."""
    path = folder / "made-up.patch"
    path.write_text(text, encoding="utf-8")
    return parse(path)


def test_a_patch_is_read(tmp_path: Path) -> None:
    """Header, then hunks, each as the lines that go and those that come."""
    mutant = written(
        tmp_path, HEADER + "Hang: yes\n" + DIFF + "@@ -9 +9 @@\n\n-x = 1\n--- a/y.py\n+++ b/y.py\n@@\n+y = 1\n"
    )
    assert (mutant.name, mutant.rule, mutant.source) == ("made-up", "Two is more than one.", "Euclid")
    assert (mutant.killer, mutant.hangs, mutant.pending) == ("tests/test_sum.py::test_two", True, False)
    assert [(hunk.path, hunk.before, hunk.after) for hunk in mutant.hunks] == [
        ("pyraftkv/sum.py", "def two():\n    return 1 + 1\n", "def two():\n    return 1\n"),
        ("pyraftkv/sum.py", "\nx = 1\n", "\n"),
        ("y.py", "", "y = 1\n"),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (HEADER.replace("Source: Euclid\n", "") + DIFF, "its header lacks ['Source'] and has [] too many"),
        (HEADER + "Author: me\n" + DIFF, "its header lacks [] and has ['Author'] too many"),
        (HEADER + "Hang: no\n" + DIFF, "Hang is yes, or is left out"),
        (HEADER + "and so on\n" + DIFF, "'and so on' is no line of a header"),
        (HEADER.replace("::test_two", "") + DIFF, "is neither a pytest node id nor 'sim SEED"),
        (HEADER, "changes nothing"),
        (
            HEADER + DIFF.replace("-    return 1 + 1\n+    return 1\n", ""),
            "a hunk of no file, or one that changes nothing",
        ),
        (HEADER + DIFF + "return\n", "'return' is no line of a diff"),
    ],
)
def test_a_patch_that_is_not_written_right_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    """By name, and with what is wrong."""
    with pytest.raises(PatchError, match=re.escape(complaint)):
        written(tmp_path, text)


def test_a_killer_may_be_a_seed() -> None:
    """With options for the simulator, in JSON."""
    killer = seed_of("sim 17 seconds=30 members=5 pre_vote=false")
    assert (killer.seed, killer.options) == (17, {"seconds": 30, "members": 5, "pre_vote": False})
    for text in ("sim", "sim x", "sim 1 fast", "sim 1 speed=fast", "sin 1"):
        with pytest.raises(PatchError, match="neither a pytest node id nor"):
            seed_of(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("def two():\n    return 2\n", "its lines stand nowhere in pyraftkv/sum.py"),
        ("if 1:\n    def two():\n        return 1 + 1\n", "its lines stand nowhere in pyraftkv/sum.py"),
        ("def two():\n    return 1 + 1\n" * 2, "its lines stand in 2 places in pyraftkv/sum.py"),
        ("def two():\n    return 1 + 1\n    +", "leaves no Python"),
        (None, "there is no pyraftkv/sum.py"),
    ],
)
def test_a_patch_that_no_longer_applies_says_so(tmp_path: Path, text: str | None, complaint: str) -> None:
    """And changes nothing: its lines must be there, as whole lines, and in one place."""
    mutant = written(tmp_path, HEADER + DIFF)
    path = tmp_path / "pyraftkv" / "sum.py"
    if text is not None:
        path.parent.mkdir()
        path.write_text(text)
    with pytest.raises(PatchError, match=re.escape(complaint)):
        mutant.apply(tmp_path)
    assert text is None or path.read_text() == text


# --- Running one -----------------------------------------------------------------------------------------------------

SUM = "def two():\n    return 1 + 1\n"
TESTS = """
import threading

import pytest

from pyraftkv import sum


@pytest.fixture
def two():
    assert sum.two() == 2


def test_two():
    assert sum.two() == 2


def test_nothing():
    sum.two()


def test_after(two):
    pass


def test_wrong():
    assert sum.two() == 3


def test_forever():
    if sum.two() != 2:
        threading.Event().wait()
"""
SIMULATOR = """
from pyraftkv import sum


class SimFailure(Exception):
    pass


def simulate(seed, members=3):
    if sum.two() != 2 and seed == 17 and members == 5:
        raise SimFailure("not two")
"""


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """A tiny product with tests, in which faults can be seeded."""
    root = tmp_path / "root"
    for path, text in {
        "pyproject.toml": "",
        "pytest_pyraftkv.py": "",
        "pyraftkv/__init__.py": "",
        "pyraftkv/sum.py": SUM,
        "pyraftkv/sim.py": SIMULATOR,
        "tests/__init__.py": "",
        "tests/test_sum.py": TESTS,
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def made_up_mutant(folder: Path, killer: str, mutation: str, *, hang: bool = False) -> Mutant:
    """Return a fault of the tiny product."""
    header = HEADER.replace("tests/test_sum.py::test_two", killer) + ("Hang: yes\n" if hang else "")
    return written(folder, header + DIFF.replace("+    return 1\n", f"+    {mutation}\n"))


def result_of(root: Path, killer: str, mutation: str = "return 1") -> Result:
    """Seed one fault and run its killer."""
    (result,) = run_all([made_up_mutant(root.parent, killer, mutation)], root=root)
    assert (root / "pyraftkv" / "sum.py").read_text() == SUM, "only copies are changed"
    return result


def test_a_mutant_is_killed_by_a_test_that_fails(made_up: Path) -> None:
    """And passes without it."""
    result = result_of(made_up, "tests/test_sum.py::test_two")
    assert (result.verdict, result.reason) == (Verdict.KILLED, "assert 1 == 2")


def test_no_mutant_has_the_fault_of_another(made_up: Path) -> None:
    """Their copies share the files that they leave alone."""
    first = made_up_mutant(made_up.parent, "tests/test_sum.py::test_two", "return 1")
    results = run_all(
        [first, made_up_mutant(made_up.parent, "tests/test_sum.py::test_nothing", "return 3")], root=made_up
    )
    assert [result.verdict for result in results] == [Verdict.KILLED, Verdict.SURVIVED]


def test_a_mutant_that_nothing_notices_survives(made_up: Path) -> None:
    """Its test passes, whatever it is called."""
    assert result_of(made_up, "tests/test_sum.py::test_nothing").verdict is Verdict.SURVIVED


@pytest.mark.parametrize(
    ("killer", "mutation", "reason"),
    [
        ("test_two", "return one", "its killer broken: NameError: name 'one' is not defined"),
        ("test_two", "return 1 +", "leaves no Python"),
        ("test_two", "return 1\nimport two", "its killer broken: pytest ended with status 4"),
        ("test_after", "return 1", "its killer broken: no test failed, but something around it did"),
        ("test_wrong", "return 1", "without the mutant its killer failed: assert 2 == 3"),
        ("test_gone", "return 1", "without the mutant its killer broken: pytest ended with status 4"),
    ],
)
def test_what_proves_nothing_is_no_kill(made_up: Path, killer: str, mutation: str, reason: str) -> None:
    """A fault that cannot be imported, a fixture that fails, a test that fails anyway or is not there."""
    result = result_of(made_up, f"tests/test_sum.py::{killer}", mutation.replace("\n", "\n+"))
    assert result.verdict is Verdict.BROKEN
    assert reason in result.reason


def test_a_mutant_that_hangs_is_killed_only_if_it_is_to(made_up: Path) -> None:
    """The killer is stopped; whether that says anything, the patch says."""
    killer = "tests/test_sum.py::test_forever"
    mutants = [made_up_mutant(made_up.parent, killer, "return 1", hang=hang) for hang in (False, True)]
    unsure, sure = run_all(mutants, root=made_up, jobs=2, seconds_max=HANG_SECONDS)
    assert (unsure.verdict, sure.verdict) == (Verdict.BROKEN, Verdict.KILLED)
    assert (
        unsure.reason == f"its killer hung: {sure.reason}" == f"its killer hung: it took more than {HANG_SECONDS:g} s"
    )


@pytest.mark.parametrize(
    ("killer", "verdict"),
    [("sim 17 members=5", Verdict.KILLED), ("sim 18", Verdict.SURVIVED), ("sim 17 leaders=2", Verdict.BROKEN)],
)
def test_a_seed_kills_by_a_violation(made_up: Path, killer: str, verdict: Verdict) -> None:
    """Any other end of the simulator is no verdict."""
    assert result_of(made_up, killer).verdict is verdict


def test_what_is_pending_is_not_run(made_up: Path) -> None:
    """It is shown, so that it is not forgotten."""
    mutant = Mutant("later", "A rule.", "A source", "sim 1", hangs=False, pending=True, hunks=())
    (result,) = run_all([mutant], root=made_up)
    assert (result.verdict, result.seconds) == (Verdict.PENDING, 0.0)


def test_the_command_lists_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    """`--list` runs nothing; a name that nobody has is an error."""
    assert main(["--list", "write-applied-twice"]) == 0
    assert (
        capsys.readouterr().out.splitlines()[2].startswith("| write-applied-twice | A command that stands in the log")
    )
    with pytest.raises(SystemExit):
        main(["no-such-mutant"])
    assert "no-such-mutant" in capsys.readouterr().err
