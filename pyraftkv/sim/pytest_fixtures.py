"""Fixtures that stand on a simulation, made again for another one.

A failed test runs again with fewer faults (`pyraftkv.sim.pytest_plugin`). What its other fixtures made of the first
simulation, an application with its machines for instance, is no part of the second: a test that got both would compare
the two worlds, and fail or pass for no reason of its own. So these fixtures are called again, with what they ask for;
all others are made once and shared, as pytest does with fixtures of a wider scope.

pytest has no public way to call a fixture again. What is done here is enough for functions and generators; what has
parameters, is a method, or replaces a fixture of its own name is refused, and the test is told without shrinking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from inspect import isasyncgenfunction, iscoroutinefunction, isfunction, isgeneratorfunction
from typing import Any

import pytest


class NotRepeatable(BaseException):
    """A test cannot run again with another simulation; says why.

    No `Exception`, so that it passes through everything that takes those for the failure of a run.
    """


class Fixtures:
    """The fixtures of one test that stand on its simulation.

    Args:
        item: The test.
        name: Its fixture that is the simulation.

    Raises:
        NotRepeatable: One of them cannot be made again.
    """

    def __init__(self, item: pytest.Function, name: str) -> None:
        self._item = item
        self._name = name
        self._defined: dict[str, Any] = item._fixtureinfo.name2fixturedefs  # pyright: ignore[reportPrivateUsage]
        self._asked: tuple[str, ...] = item._fixtureinfo.argnames  # pyright: ignore[reportPrivateUsage]
        """What pytest calls the test with. A signature would evaluate annotations, which may name what is not there."""
        self._shared = {each: item.funcargs[each] for each in item.funcargs if each in self._asked}
        self._made = [each for each in item.fixturenames if each != name and self._stands_on_it(each, ())]
        for each in self._made:
            self._check(each)

    def call(self, another: object) -> None:
        """Run the test with another simulation."""
        values: dict[str, Any] = {self._name: another}
        with ExitStack() as ends:
            for each in self._made:
                self._make(each, values, ends)
            fresh = {each: value for each, value in values.items() if each in self._asked}
            self._item.obj(**{**self._shared, **fresh})

    def _arguments(self, fixture: str) -> Iterable[str]:
        definitions = self._defined.get(fixture)
        return definitions[-1].argnames if definitions else ()

    def _stands_on_it(self, fixture: str, above: tuple[str, ...]) -> bool:
        """Tell whether a fixture is made from the simulation, by however many steps."""
        if fixture == self._name:
            return True
        below = (*above, fixture)
        return any(self._stands_on_it(each, below) for each in self._arguments(fixture) if each not in below)

    def _check(self, fixture: str) -> None:
        definition = self._defined[fixture][-1]
        function: Callable[..., Any] = definition.func
        if definition.params:
            raise NotRepeatable(f"the fixture `{fixture}` has parameters")
        if fixture in definition.argnames:
            raise NotRepeatable(f"the fixture `{fixture}` replaces another of its name")
        if not isfunction(function) or iscoroutinefunction(function) or isasyncgenfunction(function):
            raise NotRepeatable(f"the fixture `{fixture}` is no plain function")

    def _make(self, fixture: str, values: dict[str, Any], ends: ExitStack) -> Any:
        """Return the value of a fixture in this run, after those that it asks for."""
        if fixture in values:
            return values[fixture]
        if fixture not in self._made:
            return self._item.funcargs[fixture]
        definition = self._defined[fixture][-1]
        arguments = {each: self._make(each, values, ends) for each in definition.argnames}
        made = definition.func(**arguments)
        if isgeneratorfunction(definition.func):
            ends.callback(next, made, None)
            made = next(made)
        values[fixture] = made
        return made
