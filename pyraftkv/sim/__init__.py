"""The simulator: an application and its store, under one seed, in virtual time, under every fault.

`Simulation` is a cluster of real members to which users add machines of their own; `simulate` runs one seed of ours to
its end, with random faults, and checks everything (`pyraftkv.sim.check` has the checkers, usable on any history).
`Trial` and `search` are for tests of an application.
"""

from pyraftkv.sim.diagram import to_html, to_svg
from pyraftkv.sim.faults import (
    DiskFault,
    Fault,
    FaultError,
    FaultTarget,
    LinkFault,
    UnsupportedFault,
    faults_from_json,
    faults_to_json,
)
from pyraftkv.sim.host import Host, HostDied
from pyraftkv.sim.loop import Deadlock, SimLoop, SimTimeout, SimUnsupported
from pyraftkv.sim.report import SimFailure, SimReport
from pyraftkv.sim.run import Run, liveness_bound, simulate
from pyraftkv.sim.schedule import random_faults
from pyraftkv.sim.script import ScriptError, format_script, parse_script, play
from pyraftkv.sim.shrink import Shrunk, shrink
from pyraftkv.sim.simulation import Simulation
from pyraftkv.sim.swarm import Swarm, Workload, random_swarm
from pyraftkv.sim.trace import Trace
from pyraftkv.sim.trial import Breakage, Plan, Trial, attempt, search, shrunk

__all__ = [
    "Breakage",
    "Deadlock",
    "DiskFault",
    "Fault",
    "FaultError",
    "FaultTarget",
    "Host",
    "HostDied",
    "LinkFault",
    "Plan",
    "Run",
    "ScriptError",
    "Shrunk",
    "SimFailure",
    "SimLoop",
    "SimReport",
    "SimTimeout",
    "SimUnsupported",
    "Simulation",
    "Swarm",
    "Trace",
    "Trial",
    "UnsupportedFault",
    "Workload",
    "attempt",
    "faults_from_json",
    "faults_to_json",
    "format_script",
    "liveness_bound",
    "parse_script",
    "play",
    "random_faults",
    "random_swarm",
    "search",
    "shrink",
    "shrunk",
    "simulate",
    "to_html",
    "to_svg",
]
