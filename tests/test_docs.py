"""Every program in README.md and docs/ runs, and prints what the page says.

The info string of a fenced block says what becomes of it; only its first word shows on a rendered page:

=====================  ==================================================================================
``python``             runs, in order, with the names that earlier blocks of the page left behind
``python excerpt P``   does not run, but must stand verbatim in the file P (indented as it likes)
``sh run``             runs in bash, with this Python first in the PATH
``text output``        must equal what ran since the last such block printed; ``...`` stands for anything
anything else          is prose
=====================  ==================================================================================

A page runs in a directory of its own.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shutil
import subprocess
import sys
import textwrap
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SHELL_SECONDS_MAX = 60

FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=indent)(?P=ticks) *$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)(?P<target>[^)#\s]+)(?:#[^)]*)?\)")
NAMED_TEST = re.compile(r"\[`(test_\w+)`\]\(([^)#\s]+)\)")
ANCHOR = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)#([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


class Block(NamedTuple):
    """One fenced block."""

    info: list[str]
    body: str
    line: int
    """The line of the page that the body starts on, from 1."""


def blocks_of(text: str) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    return [
        Block(found["info"].split(), textwrap.dedent(found["body"]), text[: found.start("body")].count("\n") + 1)
        for found in FENCE.finditer(text)
    ]


class PageFailed(AssertionError):
    """A page does not hold; says where and why."""


def run_page(name: str, text: str) -> None:
    """Run a page in the current directory. Raises `PageFailed`, or what a program on it raises."""
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks_of(text):
        match block.info:
            case ["python"]:
                printed += run_python(name, block, names)
            case ["python", "excerpt", path]:
                check_excerpt(name, block, path)
            case ["sh", "run"]:
                printed += run_shell(name, block)
            case ["text", "output"]:
                check_output(name, block, printed)
                printed = ""
            case ["python" | "sh", *words] if words:
                raise PageFailed(f"{name}:{block.line}: nobody knows what {' '.join(block.info)!r} means")


def run_python(name: str, block: Block, names: dict[str, Any]) -> str:
    """Run a block where its page stands, so that a traceback names the page and the line; return what it prints."""
    code = compile("\n" * (block.line - 1) + block.body, name, "exec", dont_inherit=True)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, names)
    return printed.getvalue()


def run_shell(name: str, block: Block) -> str:
    """Run a block in bash; return what it prints."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip(f"{name}:{block.line} needs bash")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [bash, "-euo", "pipefail", "-c", block.body],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=SHELL_SECONDS_MAX,
        check=False,
    )
    if done.returncode:
        raise PageFailed(f"{name}:{block.line}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def check_excerpt(name: str, block: Block, path: str) -> None:
    """Compare a quotation with its source, whatever the indentation of both."""
    source = (ROOT / path).read_text(encoding="utf-8")
    depths = {" " * depth for depth in range(0, 24, 4)}
    if not any(textwrap.indent(block.body, depth) in source for depth in depths):
        raise PageFailed(f"{name}:{block.line}: is not what {path} says; quote it anew")


def check_output(name: str, block: Block, printed: str) -> None:
    """Compare what was printed with what the page says."""
    if not doctest.OutputChecker().check_output(block.body, printed, doctest.ELLIPSIS):
        raise PageFailed(f"{name}:{block.line}: the page says\n{block.body}\nand the program printed\n{printed}")


# --- The pages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_page_holds(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every program on the page runs and prints what the page says."""
    monkeypatch.chdir(tmp_path)
    run_page(page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """A link to another page or file of the repository finds it."""
    targets = LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_test_that_is_named_is_there(page: Path) -> None:
    """A row of a table that says what shows it is held to that: the test stands in the file that the link leads to."""
    for name, target in NAMED_TEST.findall(page.read_text(encoding="utf-8")):
        assert f"def {name}(" in (page.parent / target).read_text(encoding="utf-8"), f"{target} has no {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_anchors_lead_to_headings(page: Path) -> None:
    """Whoever asks where to read on is led to the section, and not to the top of a page that had it once."""
    for target, anchor in ANCHOR.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        at = page.parent / target if target else page
        headings = HEADING.findall(FENCE.sub("", at.read_text(encoding="utf-8"))) if at.suffix == ".md" else []
        assert anchor in {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}, (
            f"{target}#{anchor}"
        )


def test_the_index_has_every_page() -> None:
    """Who begins there finds all of them."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "concepts").glob("*.md")]
    names = [page.relative_to(ROOT / "docs").as_posix() for page in pages if page.name != "index.md"]
    assert [name for name in names if f"({name})" not in index] == []


def test_there_are_pages() -> None:
    """The pages that hold are not those of an empty folder."""
    assert {"README.md", "docs/index.md", "docs/architecture.md"} <= {
        page.relative_to(ROOT).as_posix() for page in PAGES
    }


# --- The convention itself -----------------------------------------------------------------------------------------


def test_blocks_share_names_and_output_is_compared() -> None:
    """A page reads like a session."""
    run_page(
        "p.md", "```python\nx = 1\n```\nThen:\n```python\nprint(x)\nprint('b')\n```\n\n```text output\n1\nb\n```\n"
    )


def test_output_may_leave_something_out() -> None:
    """Three dots stand for what differs from run to run."""
    run_page("p.md", "```python\nprint('took', object())\n```\n```text output\ntook <... at ...>\n```\n")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```python\nprint(1)\n```\n```text output\n2\n```\n", "p.md:5: the page says"),
        ("```text output\n2\n```\n", "p.md:2: the page says"),
        ("```python excerpt pyraftkv/errors.py\nclass Nobody:\n```\n", "quote it anew"),
        ("```python quietly\nprint(1)\n```\n", "nobody knows what 'python quietly' means"),
    ],
)
def test_a_page_that_does_not_hold_is_found(text: str, complaint: str) -> None:
    """A page that says what is not so fails, with its place."""
    with pytest.raises(PageFailed) as caught:
        run_page("p.md", text)
    assert complaint in str(caught.value)


def test_a_program_that_raises_fails_its_page() -> None:
    """The traceback names the page and its line."""
    with pytest.raises(ZeroDivisionError) as caught:
        run_page("p.md", "Words.\n\n```python\nx = 1\nx / 0\n```\n")
    frame = traceback.extract_tb(caught.tb)[-1]
    assert (frame.filename, frame.lineno) == ("p.md", 5)


def test_an_excerpt_is_compared_whatever_its_indentation() -> None:
    """A method may be quoted without the indentation of its class."""
    run_page("p.md", "```python excerpt tests/test_docs.py\ninfo: list[str]\nbody: str\n```\n")


def test_prose_blocks_are_left_alone() -> None:
    """Sessions at a prompt, other languages and plain text do not run."""
    run_page("p.md", "```console\n$ false\n```\n```sh\nfalse\n```\n```\nx / 0\n```\n```go\npanic()\n```\n")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_marked_shell_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python` in a shell block is the one that runs the tests."""
    monkeypatch.chdir(tmp_path)
    run_page("p.md", f"```sh run\npython -c 'import sys; print(sys.prefix)'\n```\n```text output\n{sys.prefix}\n```\n")
    with pytest.raises(PageFailed, match="exit status 3"):
        run_page("p.md", "```sh run\nexit 3\n```\n")
