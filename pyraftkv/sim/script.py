"""Fault scripts: faults written by hand, a line for each, that strike simulated clusters and real ones alike.

.. code-block:: text

    # Two of three see each other, and the leader is not one of them.
    at 3s for 2s isolate leader
    at 4s for 500ms pause n2 n3
    at 6s for 2s partition n1 | n2 n3
    at 9s for 1s delay n1 | n2 by 0.2
    at 10s reset

A line is ``at TIME [for TIME] KIND [HOST ...] [by AMOUNT] [seed NUMBER]``. The kinds, and what an amount of each
means, stand in `pyraftkv.sim.kinds.KINDS`; ``|`` stands between groups of hosts, and ``leader`` is whoever leads at
that moment. Without any host, kinds that are named after the leader or a majority befall these, and others every
member. Times are in ``ms``, ``s`` or ``m``. ``#`` begins a comment.

`play` runs a script beside whatever else the event loop runs: virtual time if the loop is a simulation's, real time
with `pyraftkv.sim.processes.ProcessCluster`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import isfinite

from pyraftkv.sim.faults import FAULTS_MAX, Fault, FaultError, FaultTarget
from pyraftkv.sim.injector import Injector, Step
from pyraftkv.sim.kinds import kind_of

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0}
"""Of times, in seconds; a longer name goes before one that it ends with."""

_WORDS = ("at", "for", "by", "seed")
"""Mean something in a line, so no host of a script is called so."""


class ScriptError(FaultError):
    """A line that cannot be read; says which, and why."""


def parse_script(text: str) -> list[Fault]:
    """Read a script. Raises `ScriptError`.

    >>> parse_script("at 6s for 1500ms partition n1 | n2 n3")
    [Fault(at=6.0, kind='partition', targets=('n1', '|', 'n2', 'n3'), seconds=1.5, amount=0.0, seed=0)]
    """
    faults: list[Fault] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(faults) == FAULTS_MAX:
            raise ScriptError(f"line {number}: over {FAULTS_MAX} faults")
        try:
            faults.append(_parse_words(words))
        except FaultError as error:
            raise ScriptError(f"line {number}: {error}: {line.strip()!r}") from error
    return faults


def format_script(faults: Iterable[Fault]) -> str:
    r"""Write faults as a script that `parse_script` reads as the same faults.

    Raises:
        FaultError: A host has a name that cannot stand in a script.

    >>> format_script([Fault(6.0, "delay", ("leader",), 1.5, 0.2)])
    'at 6s for 1.5s delay leader by 0.2\n'
    """
    return "".join(f"{format_fault(fault)}\n" for fault in faults)


def format_fault(fault: Fault) -> str:
    """Write one fault as a line without its end. Raises `FaultError`."""
    for name in fault.targets:
        if name in _WORDS or name.split() != [name] or "#" in name:
            raise FaultError(f"{name!r} cannot stand in a script")
    words = [f"at {_number(fault.at)}s"]
    if fault.seconds:
        words.append(f"for {_number(fault.seconds)}s")
    words += [fault.kind, *fault.targets]
    if fault.amount:
        words.append(f"by {_number(fault.amount)}")
    if fault.seed:
        words.append(f"seed {fault.seed}")
    return " ".join(words)


def script_lines(faults: Iterable[Fault]) -> list[str]:
    """Return faults as the lines of a script, for people; one that cannot stand in a script is said in words."""
    lines: list[str] = []
    for fault in faults:
        try:
            lines.append(format_fault(fault))
        except FaultError:
            lines.append(fault.words)
    return lines


async def play(
    faults: Sequence[Fault], target: FaultTarget, *, tell: Callable[[Step], None] | None = None
) -> Counter[str]:
    """Make faults happen at their times, counted from now, and end them all; also when cancelled.

    Args:
        faults: What happens.
        target: Whom it befalls.
        tell: Called with each step before it is done.

    Returns:
        How many faults struck, by kind.

    Raises:
        UnsupportedFault: One of them is beyond the target's abilities; nothing has happened then.
        FaultError: One of them makes no sense; the same.
    """
    injector = Injector(target, faults, tell=tell)
    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
        for step in injector.steps:
            await asyncio.sleep(start + step.at - loop.time())
            injector.do(step)
    finally:
        injector.end_all()
    return injector.struck


def _parse_words(words: list[str]) -> Fault:
    """Raises `FaultError`."""
    options: dict[str, str] = {}
    hosts: list[str] = []
    rest = iter(words)
    for word in rest:
        if word not in _WORDS:
            hosts.append(word)
        elif word in options or (value := next(rest, None)) is None:
            raise FaultError(f"one value belongs to {word!r}")
        else:
            options[word] = value
    if words[0] != "at" or not hosts:
        raise FaultError("a line is 'at TIME [for TIME] KIND [HOST ...] [by AMOUNT] [seed NUMBER]'")
    fault = Fault(
        at=_seconds(options["at"]),
        kind=hosts[0],
        targets=tuple(hosts[1:]),
        seconds=_seconds(options.get("for", "0s")),
        amount=_float(options.get("by", "0")),
        seed=_seed(options.get("seed", "0")),
    )
    kind_of(fault)
    return fault


def _seconds(text: str) -> float:
    """Read a time. Raises `FaultError`."""
    for unit, factor in _UNITS.items():
        if text.endswith(unit):
            seconds = _float(text.removesuffix(unit)) * factor
            if seconds < 0:
                raise FaultError(f"{text!r} is before the start")
            return seconds
    raise FaultError(f"{text!r} is no time: a number with one of {', '.join(_UNITS)}")


def _float(text: str) -> float:
    """Raises `FaultError`."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise FaultError(f"{text!r} is no number")
    return value


def _seed(text: str) -> int:
    """Raises `FaultError`."""
    if not (text.isascii() and text.isdecimal()):
        raise FaultError(f"{text!r} is no seed")
    return int(text)


def _number(value: float) -> str:
    """Write a number so that it reads as the same one, and plainly."""
    return repr(float(value)).removesuffix(".0")
