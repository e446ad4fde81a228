"""What comes of a simulated run: a `SimReport`, or a `SimFailure` that says how to see it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field

from pyraftkv._record import record
from pyraftkv.sim.check.history import Op
from pyraftkv.sim.faults import Fault
from pyraftkv.sim.trace import Trace

TAIL_LINES = 30
"""Lines of the trace in the words of a failure."""


@record
class SimReport:
    """A run that ended well."""

    seed: int
    members: int
    virtual_seconds: float
    real_seconds: float
    operations: int
    """What clients asked."""
    acknowledged: int
    """What of it was answered with a result."""
    watched: int
    """Events that watches delivered."""
    messages: int
    """Between members."""
    passes: int
    """Turns of the processes' loops."""
    leaders: int
    """Terms that had a leader."""
    faults: dict[str, int] = field(default_factory=dict)
    """How many faults of each kind struck."""
    liveness_seconds: float = 0.0
    """From the end of all faults until a core had elected, committed and converged."""
    trace: Trace = field(default_factory=Trace)
    """Everything that happened."""

    @property
    def digest(self) -> str:
        """The hash of the trace: equal for equal runs. O(events) when it is first asked for."""
        return self.trace.digest()

    @property
    def speed(self) -> float:
        """Virtual seconds per real second."""
        return self.virtual_seconds / self.real_seconds if self.real_seconds else 0.0

    def __str__(self) -> str:
        struck = sum(self.faults.values())
        return (
            f"seed {self.seed}: ok: {self.members} members, {self.virtual_seconds:.1f} virtual seconds in "
            f"{self.real_seconds:.2f} ({self.speed:.1f}x), {self.acknowledged} of {self.operations} operations "
            f"answered, {self.watched} events watched, {self.messages} messages, {self.leaders} leaders, {struck} "
            f"faults of {len(self.faults)} kinds, at work again {self.liveness_seconds:.2f} s after them, "
            f"trace {self.digest[:16]}"
        )


class SimFailure(AssertionError):
    """A run broke a rule. Deterministic: the same seed and faults fail in the same way.

    Args:
        rule: Which one, in a few words.
        text: What happened.
        seed: Of the run.
        faults: What befell the cluster.
        trace: Everything that happened, up to the failure.
        ops: The operations that the text speaks of.
    """

    def __init__(
        self, rule: str, text: str, *, seed: int, faults: Sequence[Fault], trace: Trace, ops: Sequence[Op] = ()
    ) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
        self.text = text
        self.seed = seed
        self.faults = list(faults)
        self.trace = trace
        self.ops = list(ops)
        self.command = f"python -m pyraftkv sim --seed {seed}"
        """What to type to see it again; whoever ran it otherwise sets it."""

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.rule}: {self.text}"]
        lines += [f"    {op}" for op in self.ops]
        lines += [
            f"replay: {self.command}",
            f"{len(self.faults)} faults",
            "the end of the trace:",
        ]
        lines += self.trace.tail(TAIL_LINES)
        return "\n".join(lines)
