"""Durability: the write-ahead log, snapshot files, and their memory twin."""

from pyraftkv.log.base import Identity, Recovered, SnapshotSink, Storage
from pyraftkv.log.files import FileStorage
from pyraftkv.log.fs import FileSystem, OsFileSystem
from pyraftkv.log.memory import MemoryStorage
from pyraftkv.log.worker import ThreadWorker, Worker, WorkerFactory

__all__ = [
    "FileStorage",
    "FileSystem",
    "Identity",
    "MemoryStorage",
    "OsFileSystem",
    "Recovered",
    "SnapshotSink",
    "Storage",
    "ThreadWorker",
    "Worker",
    "WorkerFactory",
]
