"""Checkers: was what clients were told, and what watches showed, right?

`RecordedKV` writes a `History` down. `check_revisions` judges the answers in it, in O(n log n), `check_watches` what
watches showed, and `check_linearizable` searches for an order without help, for short histories or single keys.
`check_fencing`, `check_locks` and `check_leases` judge what was done under locks. Each returns a `Verdict`.
"""

from pyraftkv.sim.check.fencing import (
    FencedResource,
    FencedWrite,
    Holding,
    LeaseLife,
    StaleToken,
    check_fencing,
    check_leases,
    check_locks,
)
from pyraftkv.sim.check.history import Delivery, History, Op, Outcome, WatchRecord
from pyraftkv.sim.check.linearizability import check_linearizable
from pyraftkv.sim.check.lines import from_lines, to_lines
from pyraftkv.sim.check.recorded import RecordedKV, RecordedWatch
from pyraftkv.sim.check.revisions import Replay, check_revisions, replay
from pyraftkv.sim.check.verdict import Finding, Verdict
from pyraftkv.sim.check.watches import check_watches

__all__ = [
    "Delivery",
    "FencedResource",
    "FencedWrite",
    "Finding",
    "History",
    "Holding",
    "LeaseLife",
    "Op",
    "Outcome",
    "RecordedKV",
    "RecordedWatch",
    "Replay",
    "StaleToken",
    "Verdict",
    "WatchRecord",
    "check_fencing",
    "check_leases",
    "check_linearizable",
    "check_locks",
    "check_revisions",
    "check_watches",
    "from_lines",
    "replay",
    "to_lines",
]
