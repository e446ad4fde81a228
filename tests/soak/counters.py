"""`Counters`: what all long runs together have seen, as a file of the repository."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

FIRST_SEED = 1_000
"""Smaller ones are left to the tests."""

FAILED_MAX = 100
"""How many of the latest seeds that failed are named."""


@dataclass
class Saved:
    """Totals over all runs that stand in a file."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; nothing has run yet if there is no file."""
        if not path.exists():
            return cls()
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def save(self, path: Path) -> None:
        """Write everything, or nothing: whoever is killed here leaves the file that was there."""
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        fresh.replace(path)


@dataclass
class Counters(Saved):
    """What seeds of the simulator come to. Deterministic but for `real_seconds`: the same seeds add up to the same."""

    next_seed: int = FIRST_SEED
    """Where the next run begins; every seed before it, from the first one on, has run."""
    seeds: int = 0
    virtual_seconds: float = 0.0
    real_seconds: float = 0.0
    """As many processes as there are run beside each other, and each counts its own."""
    operations: int = 0
    """What clients asked and was answered."""
    messages: int = 0
    """Between members."""
    pairs: int = 0
    """Seeds that ran twice, in two processes with different hash seeds, and whose traces were compared."""
    failures: int = 0
    """Seeds that broke a rule, did not end, or did not repeat themselves."""
    failed_seeds: list[int] = field(default_factory=list)
    """The latest of them."""
    faults: dict[str, int] = field(default_factory=dict)
    """How many struck, by kind."""

    def add(self, seed: int, told: dict[str, Any], *, is_pair: bool, failed: bool) -> None:
        """Count one seed: the next one.

        Args:
            seed: Which.
            told: What its process told (`tests.soak.seed`); empty if it told nothing.
            is_pair: Whether two traces were compared.
            failed: Whether that must be looked at.
        """
        assert seed == self.next_seed, (seed, self.next_seed)
        self.next_seed += 1
        self.seeds += 1
        self.virtual_seconds = round(self.virtual_seconds + told.get("virtual_seconds", 0.0), 1)
        self.real_seconds = round(self.real_seconds + told.get("real_seconds", 0.0), 1)
        self.operations += told.get("operations", 0)
        self.messages += told.get("messages", 0)
        self.pairs += is_pair
        if failed:
            self.failures += 1
            self.failed_seeds = [*self.failed_seeds, seed][-FAILED_MAX:]
        faults = Counter(self.faults) + Counter(told.get("faults", {}))
        self.faults = dict(sorted(faults.items()))
