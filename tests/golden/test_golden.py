"""Every version's directories are opened by this one, with everything in them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pyraftkv import __version__
from pyraftkv.log.inspect import OK, examine
from tests.golden.making import EXPECTED, HERE, contents, make
from tests.node.support import asynchronous

MADE = sorted(path.name.removesuffix(f".{EXPECTED}") for path in HERE.glob(f"{__version__}/*.{EXPECTED}"))


@pytest.mark.parametrize("expected", sorted(HERE.glob(f"*/*.{EXPECTED}")), ids=lambda path: f"{path.parent.name}")
@asynchronous
async def test_a_directory_of_that_version_has_everything(expected: Path, tmp_path: Path) -> None:
    """Nothing is wrong with it, and keys, revisions, history and identity are what they were."""
    directory = tmp_path / "data"
    shutil.copytree(expected.with_name(expected.name.removesuffix(f".{EXPECTED}")), directory)
    report = await examine(str(directory))
    assert (report.verdict, report.findings) == (OK, [])
    promised = json.loads(expected.read_text(encoding="utf-8"))  # noqa: ASYNC240  (nobody else runs on this loop)
    assert await contents(directory) == promised


@asynchronous
async def test_this_version_has_golden_directories_and_makes_such(tmp_path: Path) -> None:
    """`python -m tests.golden` would make the same kinds."""
    assert MADE == ["lived", "restored"]
    await make(tmp_path / "made")
    assert sorted(path.name for path in (tmp_path / "made").glob(f"*.{EXPECTED}")) == [
        f"{name}.{EXPECTED}" for name in MADE
    ]
