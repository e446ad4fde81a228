"""Replicated puts per second: pyraftkv beside the stores it is measured against, one after the other.

make bench
python -m tests.bench --seconds 5 --in-flight 1 64 256 --json bench-results/puts.json
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from tests.bench.harness import Missing, Result, main

HERE = Path(__file__).parent


def stores() -> list[str]:
    """Return the modules that measure puts: pyraftkv's own first, as the base of the ratios, then its peers'."""
    return [path.stem for pattern in ("bench_puts.py", "peer_*.py") for path in sorted(HERE.glob(pattern))]


def run(in_flight: Sequence[int], seconds: float) -> list[Result]:
    """Measure every store that is installed here. Raises `Missing` if none is."""
    results: list[Result] = []
    for name in stores():
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            results += import_module(f"tests.bench.{name}").run(in_flight, seconds)
        except Missing as missing:
            print(f"{name} skipped: {missing}", file=sys.stderr)
    if not results:
        raise Missing("no store could be measured")
    return results


if __name__ == "__main__":
    sys.exit(main(run, "Replicated puts of 256 B: pyraftkv and its peers."))
