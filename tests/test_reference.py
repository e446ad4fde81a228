"""docs/reference.md: every public name with its first sentence, as the docstrings have it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import pyraftkv

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"

OPENING = """\
# Reference

Every public name with its first sentence. `help(pyraftkv.KV.put)`, or your editor, tells the rest: arguments with their
units, what is returned, and which errors are raised. This page is printed from the docstrings, by a test that fails
when the two differ (`pytest tests/test_reference.py --rewrite`).

`pyraftkv.sync` has the same names for [threads](concepts/blocking.md).
"""

MEMBERS = {
    "KV": "What a node, a client, a namespace and a cluster's client have in common",
    "Node": "Besides, a node has",
    "Client": "Besides, a client has",
    "Cluster": "A cluster inside a test",
    "View": "A view, besides what every mapping has",
    "Typed": "A store of dataclasses",
    "Stm": "What the function given to `transact` has",
}
"""Classes of which every method is named, and what the section is called."""

LIFE = ["start", "close", "transfer_leadership", "snapshot", "hash_kv"]
OWN = {"Node": [*LIFE, "kill", "take_snapshot", "events", "address", "is_leader", "term"], "Client": LIFE}
"""Of these only what is meant for applications: the rest is what their own parts call."""

MODULES = {
    "pyraftkv.recipes": "[Recipes](concepts/recipes.md) has programs.",
    "pyraftkv.statemachine": "[State machines](concepts/state-machines.md) has programs.",
    "pyraftkv.machines": "What most of them are made of.",
    "pyraftkv.replicated": "[Replicated collections](concepts/state-machines.md#replicated-collections) has programs.",
    "pyraftkv.sim": "[The simulator](concepts/simulator.md) has programs.",
    "pyraftkv.sim.check": "[Checking a history](concepts/checking.md) has programs.",
    "pyraftkv.errors": "[Operations](operations.md#what-errors-mean-and-what-to-do) says what each asks of you.",
}
"""Further modules, and where their page is."""


def sentence(thing: object) -> str:
    """Return what stands first in a docstring, for a cell of a table."""
    line = " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())
    return line.replace("``", "`").replace("|", "\\|")


def call(name: str, thing: object) -> str:
    """Return how a function is called, by the names of its arguments; a property or a class by its name alone."""
    thing = getattr(thing, "__func__", thing)  # a class method's
    if not inspect.isfunction(thing):
        return f"`{name}`"
    shown: list[str] = []
    for each in inspect.signature(thing).parameters.values():
        if each.kind is each.KEYWORD_ONLY and "*" not in shown and not any(one.startswith("*") for one in shown):
            shown.append("*")
        stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        shown.append(f"{stars}{each.name}")
    return f"`{name}({', '.join(one for one in shown if one not in {'self', 'cls'})})`"


def table(rows: Iterator[tuple[str, object]]) -> Iterator[str]:
    """Yield the lines of a table of names and their sentences."""
    yield from ("", "| | |", "|---|---|")
    for name, thing in rows:
        yield f"| {call(name, thing)} | {sentence(thing)} |"


def members(name: str) -> list[str]:
    """Return the methods and properties of a class that are meant for applications."""
    cls: type[object] = getattr(pyraftkv, name)
    bases = [base for base in reversed(cls.__mro__) if base.__module__.startswith("pyraftkv")]
    names = dict.fromkeys(each for base in bases for each in vars(base) if not each.startswith("_"))
    return OWN.get(name, [each for each in names if sentence(inspect.getattr_static(cls, each))])


def public(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Yield the public names of a module that have a sentence: constants and aliases have none of their own."""
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            yield name, thing


def reference() -> str:
    """Return the page."""
    lines = [OPENING + "\n## `pyraftkv`"]
    lines += table((name, thing) for name, thing in public(pyraftkv) if inspect.isfunction(thing))
    for name, heading in MEMBERS.items():
        cls = getattr(pyraftkv, name)
        lines += ["", f"### {heading}", "", f"`pyraftkv.{name}`: {sentence(cls)}"]
        lines += table((each, inspect.getattr_static(cls, each)) for each in members(name))
    lines += ["", "### Records, and what else there is"]
    lines += table((name, thing) for name, thing in public(pyraftkv) if inspect.isclass(thing) and name not in MEMBERS)
    for path, heading in MODULES.items():
        module = import_module(path)
        lines += ["", f"## `{path}`", "", heading]
        lines += table(public(module))
    return "\n".join(lines) + "\n"


def test_the_reference_is_what_the_docstrings_say(rewrite: bool) -> None:
    """Whoever changes a name or its first sentence prints the page anew."""
    text = reference()
    if rewrite:
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text, "print it anew: pytest tests/test_reference.py --rewrite"


@pytest.mark.parametrize("name", ["pyraftkv", *MODULES])
def test_every_public_name_is_on_the_page(name: str) -> None:
    """None is left out but constants and aliases, which have no docstring."""
    page = PAGE.read_text(encoding="utf-8")
    module = import_module(name)
    missing = [each for each, _ in public(module) if not re.search(rf"`(\w+\.)*{each}[(`]", page)]
    assert missing == []
