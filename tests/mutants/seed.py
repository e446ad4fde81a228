"""Run one seed of the simulator: what a mutant's killer ``sim SEED [option=value ...]`` does, in a process of its own.

python seed.py SEED '{"option": value, ...}'
"""

from __future__ import annotations

import json
import sys
from importlib import import_module

STATUS_KILLED = 10
"""The exit status that says a violation was found: no crash of Python has it."""


def main(seed: str, options: str) -> int:
    """Return `STATUS_KILLED` if the run violates something, and 0 if it does not."""
    sim = import_module("pyraftkv.sim")
    try:
        sim.simulate(int(seed), **json.loads(options))
    except sim.SimFailure as failure:
        sys.stderr.write(f"{failure}\n")
        return STATUS_KILLED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
