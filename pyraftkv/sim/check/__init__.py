"""Checkers: was what clients were told, and what watches showed, right?"""

from pyraftkv.sim.check.history import Delivery, History, Op, Outcome, WatchRecord
from pyraftkv.sim.check.recorded import RecordedKV, RecordedWatch
from pyraftkv.sim.check.revisions import Replay, check_revisions, replay
from pyraftkv.sim.check.verdict import Finding, Verdict
from pyraftkv.sim.check.watches import check_watches

__all__ = [
    "Delivery",
    "Finding",
    "History",
    "Op",
    "Outcome",
    "RecordedKV",
    "RecordedWatch",
    "Replay",
    "Verdict",
    "WatchRecord",
    "check_revisions",
    "check_watches",
    "replay",
]
