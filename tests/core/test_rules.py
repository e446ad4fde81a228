"""docs/raft-rules.md: every test, transcript and mutant that it names is there, and no rule stands without."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "raft-rules.md"
PATCHES = ROOT / "tests" / "mutants" / "patches"
TEST = re.compile(r"\[`(test_\w+)`\]\(\.\./([\w/]+\.py)\)")
TRANSCRIPT = re.compile(r"\[transcript (\d\d)\]\(\.\./(tests/core/transcripts/(\d\d)_\w+\.txt)\)")


def _rows() -> list[list[str]]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [re.split(r" +\| +", line.strip("| ")) for line in lines if re.match(r"\| \d", line)]


ROWS = _rows()


def test_the_rules_are_numbered() -> None:
    """From one on, without a gap."""
    assert [int(row[0]) for row in ROWS] == list(range(1, len(ROWS) + 1))
    assert len(ROWS) >= 70


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_what_guards_a_rule_is_there(row: list[str]) -> None:
    """A test by its file and name, or a transcript; mutants by the names of their patches."""
    _, _, source, guards, mutants = row
    assert source
    named = [*TEST.findall(guards), *TRANSCRIPT.findall(guards)]
    assert len(named) == len(guards.split("; ")), guards
    for test, path in TEST.findall(guards):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {test}\(", text, re.MULTILINE), f"{path}::{test}"
    for number, path, prefix in TRANSCRIPT.findall(guards):
        assert number == prefix
        assert (ROOT / path).exists(), path
    if mutants != "–":
        for name in mutants.split(", "):
            assert (PATCHES / f"{name.strip('`')}.patch").exists(), name


def test_every_test_of_the_paper_is_listed() -> None:
    """Whoever adds a test of a rule adds the rule."""
    text = (ROOT / "tests" / "core" / "test_paper.py").read_text(encoding="utf-8")
    listed = {test for row in ROWS for test, path in TEST.findall(row[3]) if path == "tests/core/test_paper.py"}
    assert set(re.findall(r"^def (test_\w+)\(", text, re.MULTILINE)) == listed
