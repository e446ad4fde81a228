"""The house rules that a machine can check: floors, purity, sizes and what is not imported at all.

Everything is read with `ast`, nothing is imported, so a module is judged by what stands in it. Each rule is a
function from a tree of files to complaints (``path:line: what is wrong and what to do``). The rules run on this
repository, and each of them also on made-up files that break it: a rule that cannot fail would be a decoration.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "pyraftkv"

# --- The rules, as tables ------------------------------------------------------------------------------------------

FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "_record", "_version", "given", "statemachine"}),
    frozenset({"core", "store"}),
    frozenset({"codec", "protocol", "settings"}),
    frozenset({"machines", "replica", "roster", "rules", "sessions", "witness", "futures", "log", "transport"}),
    frozenset(
        {
            "node",
            "backup",
            "kv",
            "members",
            "administration",
            "leases",
            "engine",
            "keys",
            "latest",
            "namespace",
            "reading",
            "stm",
            "typed",
            "views",
            "writes",
            "opening",
            "client",
            "client_answers",
            "client_asks",
            "client_watch",
            "operating",
            "replicated",
            "server",
            "server_turns",
            "server_watch",
            "watching",
            "cluster",
        }
    ),
    frozenset({"recipes", "sync", "sim", "cli", "demo", "etcd", "__main__", "__init__"}),
)
"""Who lives where. A room imports from its own floor and from those below it (docs/architecture.md)."""

APART: tuple[tuple[frozenset[str], frozenset[str]], ...] = (
    (frozenset({"core"}), frozenset({"store"})),
    (frozenset({"machines", "replica", "roster", "rules", "sessions", "witness"}), frozenset({"log", "transport"})),
    (frozenset({"log"}), frozenset({"transport"})),
)
"""Rooms on one floor that know nothing of each other, in both directions."""

SEES_ONLY: dict[str, frozenset[str]] = {
    "recipes": frozenset({"recipes", "kv", "errors", "given", "keys", "store", "typed", "_record"})
}
"""Rooms that could import more by their floor, and must not. Of the store recipes want the commands that `kv` takes,
of typed values what makes a dataclass of JSON, of keys what makes bytes of text."""

PURE: frozenset[str] = FLOORS[1] | FLOORS[2] | {"machines", "replica", "roster", "rules", "sessions", "witness"}
"""Rooms that take values and return values: no clock, no disk, no network, no thread, no log."""

# fmt: off
IMPURE: frozenset[str] = frozenset({
    "asyncio", "concurrent", "ctypes", "datetime", "fcntl", "logging", "mmap", "multiprocessing", "os",
    "pathlib", "queue", "secrets", "select", "selectors", "shutil", "signal", "socket", "socketserver", "ssl",
    "subprocess", "tempfile", "threading", "time", "uuid",
})
# fmt: on
"""What a pure room does not import."""

ONLY_IN: dict[str, str] = {"msgpack": "codec"}
"""Packages that one room alone may import."""

FILE_MODULES: frozenset[str] = frozenset({"fcntl", "io", "mmap", "msvcrt", "os", "pathlib", "shutil", "tempfile"})
FILE_ROOM, FILE_MODULE = "log", "log/fs.py"
"""In this room, files are touched in this module alone, so that a simulated disk can stand in."""

FILE_NAMES_ALLOWED: frozenset[str] = frozenset({"PathLike", "PurePath", "fspath"})
"""Names of those modules that touch no file."""

NEVER_IMPORTED: frozenset[str] = frozenset({"cloudpickle", "dill", "marshal", "pickle", "shelve", "yaml"})
"""What turns bytes of a stranger into running code."""

FUNCTION_LINES_MAX = 60
MODULE_LINES_MAX = 700
LONG_FUNCTIONS: dict[str, int] = {}
"""``"pyraftkv/x.py:Class.method": lines`` of functions over the limit. May only shrink: mend one, remove its row."""
LONG_MODULES: dict[str, int] = {}
"""``"pyraftkv/x.py": lines`` of modules over the limit. May only shrink."""

# --- Reading files -------------------------------------------------------------------------------------------------


class Imported(NamedTuple):
    """One imported name: ``from module import name``, or ``import module`` with an empty name."""

    module: str
    name: str
    line: int

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


@dataclass(frozen=True)
class Source:
    """One parsed file."""

    path: str
    """Relative to the repository, with forward slashes."""
    text: str

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def parts(self) -> list[str]:
        return self.path.removesuffix(".py").split("/")

    @property
    def room(self) -> str:
        """The module or package directly below the package that this file belongs to; empty outside of it."""
        return self.parts[1] if self.parts[0] == PACKAGE else ""

    @cached_property
    def imports(self) -> list[Imported]:
        found: list[Imported] = []
        for node in self.nodes:
            if isinstance(node, ast.Import):
                found += [Imported(alias.name, "", node.lineno) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = self.parts[: -node.level] if node.level else []
                module = ".".join([*above, *filter(None, [node.module])])
                found += [Imported(module, alias.name, node.lineno) for alias in node.names]
        return found

    @cached_property
    def rooms_imported(self) -> list[tuple[str, int]]:
        """The rooms of the package that this file imports, with their lines."""
        found: list[tuple[str, int]] = []
        for each in self.imports:
            if each.top == PACKAGE:
                below = each.module.split(".")[1:]
                room = below[0] if below else each.name
                found.append((room if room in ALL_ROOMS or below else "__init__", each.line))
        return found

    def names_used(self, module: str) -> Iterator[tuple[str, int]]:
        """Yield what this file uses of `module`: ``os.replace``, ``from os import replace``."""
        called = {
            alias.asname or alias.name
            for node in self.nodes
            if isinstance(node, ast.Import)
            for alias in node.names
            if alias.name == module
        }
        yield from ((each.name, each.line) for each in self.imports if each.module == module and each.name)
        for node in self.nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in called:
                yield node.attr, node.lineno

    def calls_of(self, *names: str) -> Iterator[tuple[str, int]]:
        """Yield the calls of these plain names."""
        for node in self.nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                yield node.func.id, node.lineno


ALL_ROOMS: frozenset[str] = frozenset().union(*FLOORS)


def sources(root: Path, *folders: str) -> list[Source]:
    """Read every Python file below the folders of `root`."""
    return [
        Source(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))
        for folder in folders
        for path in sorted((root / folder).rglob("*.py"))
    ]


def floor_of(room: str) -> int:
    """Return the floor of a known room."""
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


# --- The rules -----------------------------------------------------------------------------------------------------


def complaints_of_floors(files: list[Source]) -> Iterator[str]:
    """Imports go down, or to a room on the same floor that is not kept apart."""
    for file in files:
        if file.room not in ALL_ROOMS:
            yield f"{file.path}:1: {file.room!r} has no floor yet; give it one in FLOORS (tests/test_tidy.py)"
            continue
        for room, line in file.rooms_imported:
            where = f"{file.path}:{line}: {file.room}"
            if room not in ALL_ROOMS:
                yield f"{where} imports {room!r}, which has no floor"
            elif floor_of(room) > floor_of(file.room):
                yield f"{where} (floor {floor_of(file.room)}) imports {room} (floor {floor_of(room)}): imports go down"
            elif any({file.room, room} & one and {file.room, room} & other for one, other in APART):
                yield f"{where} imports {room}: they are blind to each other"
            elif room not in SEES_ONLY.get(file.room, ALL_ROOMS):
                yield f"{where} imports {room}: it sees only {', '.join(sorted(SEES_ONLY[file.room]))}"


def complaints_of_purity(files: list[Source]) -> Iterator[str]:
    """Pure rooms have no clock, disk, network, thread or log; nobody uses the global random."""
    for file in files:
        for each in file.imports:
            if file.room in PURE and each.top in IMPURE:
                yield f"{file.path}:{each.line}: {file.room} is pure and imports {each.top}"
            if each.top in ONLY_IN and file.room != ONLY_IN[each.top]:
                yield f"{file.path}:{each.line}: only {ONLY_IN[each.top]} imports {each.top}"
        for name, line in file.names_used("random"):
            if name not in {"Random", "SystemRandom"}:
                yield f"{file.path}:{line}: random.{name} is global; take a random.Random"
        if file.room in PURE:
            for name, line in file.calls_of("open", "print", "input"):
                yield f"{file.path}:{line}: {file.room} is pure and calls {name}()"


def complaints_of_files(files: list[Source]) -> Iterator[str]:
    """In the log, one module touches files."""
    for file in files:
        if file.room != FILE_ROOM or file.path == f"{PACKAGE}/{FILE_MODULE}":
            continue
        for module in FILE_MODULES:
            for name, line in file.names_used(module):
                if name not in FILE_NAMES_ALLOWED:
                    yield f"{file.path}:{line}: {module}.{name}: only {FILE_MODULE} touches files"
        for _, line in file.calls_of("open"):
            yield f"{file.path}:{line}: open(): only {FILE_MODULE} touches files"


def complaints_of_danger(files: list[Source]) -> Iterator[str]:
    """No pickle and its kin, no eval; in the package no exec either."""
    for file in files:
        for each in file.imports:
            if each.top in NEVER_IMPORTED:
                yield f"{file.path}:{each.line}: {each.top} is never imported: it runs what strangers send"
        for name, line in file.calls_of("eval", *(["exec"] if file.room else [])):
            yield f"{file.path}:{line}: {name}() runs what strangers send"


def complaints_of_shields(files: list[Source]) -> Iterator[str]:
    """Shared futures are waited for in one way; a shield tells the loop of failures that others have handled."""
    for file in files:
        for name, line in file.names_used("asyncio"):
            if name == "shield":
                yield f"{file.path}:{line}: asyncio.shield: wait by pyraftkv.futures.shared"


def complaints_of_sleep(files: list[Source]) -> Iterator[str]:
    """Tests wait for what they need, not for time to pass."""
    for file in files:
        for name, line in file.names_used("time"):
            if name == "sleep":
                yield f"{file.path}:{line}: time.sleep in a test; wait for the event, or use virtual time"


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield every function with its qualified name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from functions(node, f"{prefix}{node.name}." if named else prefix)


def complaints_of_size(
    files: list[Source], long_functions: dict[str, int], long_modules: dict[str, int]
) -> Iterator[str]:
    """Functions and modules keep their limits; known exceptions only shrink."""
    functions_found: dict[str, int] = {}
    modules_found: dict[str, int] = {}
    for file in files:
        modules_found[file.path] = len(file.text.splitlines())
        for name, node in functions(file.tree):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            key = f"{file.path}:{name}"
            functions_found[key] = max(size, functions_found.get(key, 0))  # overloads share a name
    yield from ratchet("function", functions_found, long_functions, FUNCTION_LINES_MAX)
    yield from ratchet("module", modules_found, long_modules, MODULE_LINES_MAX)


def ratchet(kind: str, found: dict[str, int], known: dict[str, int], limit: int) -> Iterator[str]:
    """Compare sizes with the limit, and the table of exceptions with what is there."""
    for key, size in found.items():
        if size > known.get(key, limit):
            yield f"{key}: a {kind} of {size} lines, over {known.get(key, limit)}: split it"
    for key, size in known.items():
        if found.get(key, 0) < size:
            yield f"{key}: is down to {found.get(key, 0)} lines; shrink its row (now {size}) or remove it"


# --- The repository ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package() -> list[Source]:
    """Every file of the package."""
    return sources(ROOT, PACKAGE)


@pytest.fixture(scope="module")
def tests() -> list[Source]:
    """Every file of the tests."""
    return sources(ROOT, "tests")


def test_imports_only_go_down(package: list[Source]) -> None:
    """No room knows of a floor above it, nor of a room that it is blind to."""
    assert list(complaints_of_floors(package)) == []


def test_the_lower_floors_are_pure(package: list[Source]) -> None:
    """The machines take time, randomness and bytes as arguments."""
    assert list(complaints_of_purity(package)) == []


def test_one_module_of_the_log_touches_files(package: list[Source]) -> None:
    """A simulated disk has one place to stand in."""
    assert list(complaints_of_files(package)) == []


def test_nothing_runs_what_strangers_send(package: list[Source], tests: list[Source]) -> None:
    """Bytes from outside never become code."""
    assert list(complaints_of_danger([*package, *tests, *sources(ROOT, "examples")])) == []


def test_nobody_leaves_a_shield_behind(package: list[Source]) -> None:
    """Python 3.14 reports what happens behind a shield whose owner is gone (pyraftkv/futures.py)."""
    assert list(complaints_of_shields(package)) == []


def test_functions_and_modules_keep_their_size(package: list[Source]) -> None:
    """What does not fit on a screen is split."""
    assert list(complaints_of_size(package, LONG_FUNCTIONS, LONG_MODULES)) == []


def test_no_test_sleeps(tests: list[Source]) -> None:
    """A test that sleeps is slow on a good day and wrong on a bad one."""
    assert list(complaints_of_sleep(tests)) == []


def test_there_is_a_package_to_check(package: list[Source], tests: list[Source]) -> None:
    """The rules look at this repository, not at an empty folder."""
    assert {"errors", "core", "store", "log", "transport"} <= {file.room for file in package}
    assert any(file.path == "tests/test_tidy.py" for file in tests)


# --- The rules themselves ------------------------------------------------------------------------------------------


def tree(root: Path, path: str, text: str) -> list[Source]:
    """Write one file into an empty repository and read it back."""
    file = root / path
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
    return sources(root, path.partition("/")[0])


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("pyraftkv/core/x.py", "from pyraftkv.node import Node", "core (floor 1) imports node (floor 4)"),
        ("pyraftkv/core/x.py", "import pyraftkv.codec", "core (floor 1) imports codec (floor 2)"),
        ("pyraftkv/core/x.py", "from pyraftkv import kv", "core (floor 1) imports kv (floor 4)"),
        ("pyraftkv/core/x.py", "from ..log import fs", "core (floor 1) imports log (floor 3)"),
        ("pyraftkv/core/x.py", "from .. import log", "core (floor 1) imports log (floor 3)"),
        ("pyraftkv/node.py", "from pyraftkv import open", "node (floor 4) imports __init__ (floor 5)"),
        ("pyraftkv/node.py", "def f():\n    import pyraftkv.cli", "node (floor 4) imports cli"),
        ("pyraftkv/errors.py", "if T:\n    from pyraftkv.core import Raft", "errors (floor 0) imports core"),
        ("pyraftkv/core/x.py", "import pyraftkv.store.mvcc", "they are blind to each other"),
        ("pyraftkv/store/x.py", "from pyraftkv.core.types import Entry", "they are blind to each other"),
        ("pyraftkv/log/x.py", "from pyraftkv.transport import tcp", "they are blind to each other"),
        ("pyraftkv/transport/x.py", "from pyraftkv.sessions import Sessions", "they are blind to each other"),
        ("pyraftkv/replica.py", "from pyraftkv.log.base import Storage", "they are blind to each other"),
        ("pyraftkv/recipes/lock.py", "from pyraftkv.node import Node", "it sees only _record, errors, given, keys, kv"),
        ("pyraftkv/attic.py", "", "'attic' has no floor yet"),
        ("pyraftkv/node.py", "from pyraftkv.attic import box", "imports 'attic', which has no floor"),
    ],
)
def test_a_way_up_is_found(tmp_path: Path, path: str, text: str, complaint: str) -> None:
    """An import that breaks the floors is named, with its line."""
    (found,) = complaints_of_floors(tree(tmp_path, path, text))
    assert complaint in found
    assert found.startswith(f"{path}:{text.count(chr(10)) + 1}: ")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("pyraftkv/core/x.py", "from pyraftkv.core.types import Entry\nfrom . import types\nfrom .types import Role"),
        ("pyraftkv/log/x.py", "from pyraftkv import codec, errors\nfrom pyraftkv.core import Entry"),
        ("pyraftkv/replica.py", "from pyraftkv.sessions import Sessions\nfrom pyraftkv.store import Store"),
        ("pyraftkv/recipes/lock.py", "from pyraftkv.kv import KV\nfrom pyraftkv.recipes import base"),
        ("pyraftkv/cli.py", "import pyraftkv\nfrom pyraftkv import open, errors\nimport asyncio, os"),
    ],
)
def test_a_way_down_is_free(tmp_path: Path, path: str, text: str) -> None:
    """Imports from below, from one's own room and from neighbours are nobody's business."""
    assert list(complaints_of_floors(tree(tmp_path, path, text))) == []


@pytest.mark.parametrize("module", sorted({"asyncio", "threading", "socket", "os", "time", "logging"}))
@pytest.mark.parametrize("path", ["pyraftkv/core/x.py", "pyraftkv/store/x.py", "pyraftkv/codec.py"])
def test_a_clock_in_a_pure_room_is_found(tmp_path: Path, path: str, module: str) -> None:
    """What makes a machine depend on more than its inputs is named."""
    (found,) = complaints_of_purity(tree(tmp_path, path, f"import {module}"))
    assert found.endswith(f"is pure and imports {module}")


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("pyraftkv/store/x.py", "from os.path import join", "store is pure and imports os"),
        ("pyraftkv/store/x.py", "open('x')", "store is pure and calls open()"),
        ("pyraftkv/core/x.py", "import msgpack", "only codec imports msgpack"),
        ("pyraftkv/log/x.py", "from msgpack import packb", "only codec imports msgpack"),
        ("pyraftkv/core/x.py", "import random\nrandom.random()", "x.py:2: random.random is global"),
        ("pyraftkv/node.py", "from random import choice", "random.choice is global"),
        ("pyraftkv/node.py", "import random as r\nr.seed(1)", "random.seed is global"),
    ],
)
def test_impurity_is_found(tmp_path: Path, path: str, text: str, complaint: str) -> None:
    """A pure room that opens a file is named, and so is anyone who draws from the global random."""
    (found,) = complaints_of_purity(tree(tmp_path, path, text))
    assert complaint in found


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("pyraftkv/core/x.py", "from random import Random\nimport struct"),
        ("pyraftkv/core/x.py", "import random\ndef f(r: random.Random): r.random()"),
        ("pyraftkv/codec/x.py", "import msgpack"),
        ("pyraftkv/log/x.py", "import os, threading, time"),
    ],
)
def test_pure_enough(tmp_path: Path, path: str, text: str) -> None:
    """A generator that is passed in, and the codec's msgpack, are fine."""
    assert list(complaints_of_purity(tree(tmp_path, path, text))) == []


@pytest.mark.parametrize(
    "text", ["import os\nos.replace(a, b)", "from os import replace", "open('x')", "import io\nio.open(1)"]
)
def test_a_second_place_that_touches_files_is_found(tmp_path: Path, text: str) -> None:
    """The log's file calls all stand in one module."""
    (found,) = complaints_of_files(tree(tmp_path, "pyraftkv/log/wal.py", text))
    assert found.endswith("only log/fs.py touches files")


def test_the_place_that_touches_files_may(tmp_path: Path) -> None:
    """The one module does what it is for; others may still name a path."""
    assert (
        list(complaints_of_files(tree(tmp_path, "pyraftkv/log/fs.py", "import os\nos.replace(a, b)\nopen('x')"))) == []
    )
    assert list(complaints_of_files(tree(tmp_path / "2", "pyraftkv/log/x.py", "import os\nos.fspath(p)"))) == []
    assert list(complaints_of_files(tree(tmp_path / "3", "pyraftkv/cli.py", "open('x')"))) == []


@pytest.mark.parametrize(
    "text", ["import pickle", "from marshal import loads", "eval('1')", "exec('1')", "import yaml"]
)
def test_danger_is_found(tmp_path: Path, text: str) -> None:
    """Pickle and its kin are named wherever they stand."""
    (found,) = complaints_of_danger(tree(tmp_path, "pyraftkv/log/x.py", text))
    assert found.endswith("what strangers send")


@pytest.mark.parametrize("text", ["import time\ntime.sleep(1)", "from time import sleep"])
def test_sleep_is_found(tmp_path: Path, text: str) -> None:
    """A sleeping test is named; a virtual clock's sleep is not its business."""
    (found,) = complaints_of_sleep(tree(tmp_path, "tests/test_x.py", text))
    assert "time.sleep in a test" in found
    assert list(complaints_of_sleep(tree(tmp_path / "2", "tests/test_x.py", "import asyncio\nasyncio.sleep(1)"))) == []


@pytest.mark.parametrize("text", ["import asyncio\nasyncio.shield(f)", "from asyncio import shield"])
def test_a_shield_is_found(tmp_path: Path, text: str) -> None:
    """A shield in the package is named, whatever it is called by."""
    (found,) = complaints_of_shields(tree(tmp_path, "pyraftkv/x.py", text))
    assert found.endswith("asyncio.shield: wait by pyraftkv.futures.shared")


def long_function(lines: int) -> str:
    """Return a method of so many lines."""
    return "class C:\n    async def f(self):\n" + "        pass\n" * (lines - 1)


def test_a_long_function_is_found(tmp_path: Path) -> None:
    """Sixty lines are fine, sixty-one are not."""
    assert list(complaints_of_size(tree(tmp_path / "1", "pyraftkv/x.py", long_function(60)), {}, {})) == []
    (found,) = complaints_of_size(tree(tmp_path / "2", "pyraftkv/x.py", long_function(61)), {}, {})
    assert found == "pyraftkv/x.py:C.f: a function of 61 lines, over 60: split it"


def test_a_long_module_is_found(tmp_path: Path) -> None:
    """Seven hundred lines are fine, one more is not."""
    assert list(complaints_of_size(tree(tmp_path / "1", "pyraftkv/x.py", "x = 1\n" * 700), {}, {})) == []
    (found,) = complaints_of_size(tree(tmp_path / "2", "pyraftkv/x.py", "x = 1\n" * 701), {}, {})
    assert found == "pyraftkv/x.py: a module of 701 lines, over 700: split it"


@pytest.mark.parametrize(("row", "complaint"), [(64, "over 64: split it"), (66, "is down to 65 lines"), (65, "")])
def test_the_ratchet_only_turns_one_way(tmp_path: Path, row: int, complaint: str) -> None:
    """A known long function may not grow, and a row that is too generous is taken back."""
    files = tree(tmp_path, "pyraftkv/x.py", long_function(65))
    found = "\n".join(complaints_of_size(files, {"pyraftkv/x.py:C.f": row}, {}))
    assert (complaint in found) if complaint else found == ""


def test_a_row_of_a_function_that_is_gone_is_found(tmp_path: Path) -> None:
    """Exceptions do not outlive what they excused."""
    (found,) = complaints_of_size(tree(tmp_path, "pyraftkv/x.py", ""), {"pyraftkv/x.py:gone": 70}, {})
    assert "is down to 0 lines" in found
