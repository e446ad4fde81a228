"""What a mutant is: a small fault for our own code, as a patch, and the test that must notice it.

A test that passes proves little; one that fails when its rule is deleted proves that it guards it. So each rule worth
a test has a mutant here: a unified diff that breaks it, below a header that says which rule that is, where it comes
from and what kills it::

    Rule: A command that stands in the log twice is applied once.
    Source: thesis §6.3
    Killer: tests/test_replica.py::test_a_command_that_stands_in_the_log_twice_is_applied_once

    --- a/pyraftkv/replica.py
    +++ b/pyraftkv/replica.py
    @@ ...

The file's name is the mutant's. A killer is a pytest node id, or ``sim SEED [option=value ...]``: a seed of the
simulator. ``Hang: yes`` says that the fault is noticed by nothing but the time that the killer takes.

A hunk is found by its lines, wherever they stand by now, and they must stand in one place only: an edit elsewhere in
the file leaves the patch alone, an edit of the rule itself fails it, loudly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PATCHES = HERE / "patches"
PENDING = HERE / "pending"
"""Patches that nothing can kill yet; each says in its killer what is going to."""

HEADER_KEYS = ("Rule", "Source", "Killer")
_OPTIONAL_KEYS = ("Hang",)
_FIELD = re.compile(r"(?P<key>[A-Z][a-z]+): (?P<value>\S.*)")
_NODE_ID = re.compile(r"(?P<path>tests/[\w/]+\.py)::(?P<test>\w+)(\[.+\])?")


class PatchError(Exception):
    """A patch is not written as it must be, or no longer applies."""


@dataclass(frozen=True)
class Hunk:
    """Lines of one file, and what takes their place."""

    path: str
    """Relative to the root, with forward slashes."""
    before: str
    after: str


@dataclass(frozen=True)
class Seed:
    """A run of the simulator that kills."""

    seed: int
    options: dict[str, Any]


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    name: str
    rule: str
    source: str
    killer: str
    hangs: bool
    """Whether a killer that never ends has killed it."""
    pending: bool
    """Whether nothing can kill it yet."""
    hunks: tuple[Hunk, ...]

    def apply(self, root: Path) -> None:
        """Replace files below ``root``, which may be links. Raises `PatchError`, having changed nothing."""
        changed: dict[Path, str] = {}
        for hunk in self.hunks:
            path = root / hunk.path
            if not path.is_file():
                raise PatchError(f"{self.name} no longer applies: there is no {hunk.path}")
            text = changed.get(path) or path.read_text(encoding="utf-8")
            places = [found.start() for found in re.finditer("^" + re.escape(hunk.before), text, re.MULTILINE)]
            if len(places) != 1:
                where = "nowhere" if not places else f"in {len(places)} places"
                raise PatchError(f"{self.name} no longer applies: its lines stand {where} in {hunk.path}")
            changed[path] = text[: places[0]] + hunk.after + text[places[0] + len(hunk.before) :]
        for path, text in changed.items():
            try:
                compile(text, str(path), "exec", dont_inherit=True)
            except SyntaxError as error:
                raise PatchError(f"{self.name} leaves no Python: {error}") from error
        for path, text in changed.items():
            path.unlink()
            path.write_text(text, encoding="utf-8")


def load(*folders: Path) -> list[Mutant]:
    """Return the mutants of these folders, by name. Raises `PatchError`."""
    return [parse(path) for folder in folders for path in sorted(folder.glob("*.patch"))]


def parse(path: Path) -> Mutant:
    """Read one patch. Raises `PatchError`."""
    head, mark, body = path.read_text(encoding="utf-8").partition("\n--- ")
    fields: dict[str, str] = {}
    for line in head.splitlines():
        field = _FIELD.fullmatch(line)
        if field is None and line:
            raise PatchError(f"{path.name}: {line!r} is no line of a header")
        if field is not None:
            fields[field["key"]] = field["value"]
    missing = [key for key in HEADER_KEYS if key not in fields]
    unknown = fields.keys() - {*HEADER_KEYS, *_OPTIONAL_KEYS}
    if missing or unknown:
        raise PatchError(f"{path.name}: its header lacks {missing} and has {sorted(unknown)} too many")
    if fields.get("Hang", "yes") != "yes":
        raise PatchError(f"{path.name}: Hang is yes, or is left out")
    if node_id_of(fields["Killer"]) is None:
        seed_of(fields["Killer"])
    hunks = tuple(_hunks(path.name, (mark.lstrip() + body).splitlines()))
    if not hunks:
        raise PatchError(f"{path.name} changes nothing")
    return Mutant(
        path.stem,
        fields["Rule"],
        fields["Source"],
        fields["Killer"],
        hangs="Hang" in fields,
        pending=path.parent == PENDING,
        hunks=hunks,
    )


def node_id_of(killer: str) -> tuple[str, str] | None:
    """Return the file and the test that a killer names, or None if it is no pytest node id."""
    found = _NODE_ID.fullmatch(killer)
    return (found["path"], found["test"]) if found else None


def seed_of(killer: str) -> Seed:
    """Return the seed and the options of a killer of the simulator. Raises `PatchError`."""
    match killer.split():
        case ["sim", seed, *options] if seed.isdecimal() and all("=" in option for option in options):
            pairs = [option.split("=", 1) for option in options]
            try:
                return Seed(int(seed), {name: json.loads(value) for name, value in pairs})
            except ValueError:
                pass
        case _:
            pass
    raise PatchError(f"{killer!r} is neither a pytest node id nor 'sim SEED [option=value ...]'")


def _hunks(name: str, lines: list[str]) -> Iterator[Hunk]:
    """Yield the hunks of a unified diff. Raises `PatchError`."""
    path = ""
    before: list[str] = []
    after: list[str] = []
    for line in [*lines, "@@"]:
        if line.startswith(("--- ", "+++ ", "@@")):
            if before or after:
                if not path or before == after:
                    raise PatchError(f"{name}: a hunk of no file, or one that changes nothing")
                yield Hunk(path, "".join(before), "".join(after))
                before, after = [], []
            if line.startswith("+++ "):
                path = line.removeprefix("+++ ").removeprefix("b/")
        elif line[:1] in {"", " ", "-", "+"}:
            if not line.startswith("+"):
                before.append(line[1:] + "\n")
            if not line.startswith("-"):
                after.append(line[1:] + "\n")
        else:
            raise PatchError(f"{name}: {line!r} is no line of a diff")
