"""The public names: exactly those in `__all__`, each of them there and documented."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pyraftkv
import pyraftkv.errors

PROMISED = ["Cluster", "KeyValue", "MaybeApplied", "Node", "NotApplied", "PyraftkvError", "connect", "open"]
"""What the design promises to be importable from `pyraftkv` itself."""

ROOT = Path(pyraftkv.__file__).parent
MODULES = sorted(
    ".".join(["pyraftkv", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if path.name != "__main__.py"  # does something when imported
)


def public(module: ModuleType) -> list[str]:
    """Return the module's `__all__`, empty if it has none."""
    return list(getattr(module, "__all__", []))


def is_documented(thing: object) -> bool:
    """Whether a class or function has words of its own; a dataclass without a docstring is given its signature."""
    text = (inspect.getdoc(thing) or "") if not inspect.isclass(thing) else (thing.__dict__.get("__doc__") or "")
    generated = dataclasses.is_dataclass(thing) and text.startswith(f"{getattr(thing, '__name__', '')}(")
    return bool(text.strip()) and not generated


def undocumented_members(cls: type) -> list[str]:
    """Return the public methods that `cls` itself defines and that neither it nor a base documents."""
    methods = [name for name, value in vars(cls).items() if not name.startswith("_") and inspect.isfunction(value)]
    return [f"{cls.__name__}.{name}" for name in methods if not inspect.getdoc(getattr(cls, name))]


def test_the_package_says_what_is_public() -> None:
    """`__all__` is the public API, and what the design promises is in it."""
    assert [name for name in PROMISED if name not in public(pyraftkv)] == []


def test_nothing_else_lies_about() -> None:
    """The package's namespace holds its public names, its modules, and nothing that only looks public."""
    names = {
        name
        for name, value in vars(pyraftkv).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert sorted(names - set(public(pyraftkv))) == []


@pytest.mark.parametrize("name", MODULES)
def test_a_module_explains_itself(name: str) -> None:
    """Every module can be imported, opens with a docstring, and has what its `__all__` names, each once."""
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip() != ""
    assert [each for each in public(module) if not hasattr(module, each)] == []
    assert len(public(module)) == len(set(public(module)))


@pytest.mark.parametrize("name", public(pyraftkv))
def test_a_public_name_is_documented(name: str) -> None:
    """Every public class and function, and every public method of such a class, has a docstring."""
    thing: Any = getattr(pyraftkv, name)
    if inspect.isclass(thing):
        assert is_documented(thing)
        assert undocumented_members(thing) == []
    elif inspect.isroutine(thing):
        assert is_documented(thing)


def test_every_error_is_documented_and_drawn() -> None:
    """The tree in the docstring of `errors` shows every class, each once and under its base."""
    root = pyraftkv.errors.PyraftkvError
    classes = [each for each in vars(pyraftkv.errors).values() if inspect.isclass(each) and issubclass(each, root)]
    assert [cls.__name__ for cls in classes if not is_documented(cls)] == []
    expected = sorted((cls.__name__, cls.__base__.__name__) for cls in classes if cls is not root)
    assert expected == sorted(drawn(inspect.getdoc(pyraftkv.errors) or ""))


def drawn(tree: str) -> list[tuple[str, str]]:
    """Return each name of a drawn tree with the name it hangs below."""
    path, found = ["PyraftkvError"], []
    for line in tree.splitlines():
        stem, branch, rest = line.partition("── ")
        if branch:
            path = [*path[: stem.count("│") + stem.count("    ")], rest.split()[0]]
            found.append((path[-1], path[-2]))
    return found


# --- The checks themselves -----------------------------------------------------------------------------------------


def test_words_of_its_own() -> None:
    """A generated or inherited docstring is none."""

    @dataclasses.dataclass
    class Bare:
        x: int

        def method(self) -> None:
            pass

    class Child(pyraftkv.errors.NotApplied):
        pass

    class Said:
        """Words."""

        def method(self) -> None:
            """Words."""

    assert [is_documented(each) for each in (Bare, Child, Said)] == [False, False, True]
    assert undocumented_members(Bare) == ["Bare.method"]
    assert undocumented_members(Said) == []
