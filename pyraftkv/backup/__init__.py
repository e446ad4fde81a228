"""Saved snapshots: a consistent state in a file, and a new cluster made of it."""

from pyraftkv.backup.files import SavedSnapshot, SnapshotStatus, save, snapshot_status
from pyraftkv.backup.restoring import BUMP_REVISION, Restored, restore
from pyraftkv.backup.source import SnapshotSource

__all__ = [
    "BUMP_REVISION",
    "Restored",
    "SavedSnapshot",
    "SnapshotSource",
    "SnapshotStatus",
    "restore",
    "save",
    "snapshot_status",
]
