"""A process that saves, and says what was acknowledged: for kernels that fail it, and tests that kill it.

python -m tests.log.writer PATH [--saves N] [--file-bytes-max N] [--files-max N] [--check N]

Lines: ``start INDEX``, ``saved INDEX``, ``failed ERROR`` when the storage has failed, ``waits`` when a save neither
completes nor fails, ``closed`` at the end. With ``--check N`` it only starts, and looks for everything up to N.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import resource
import sys
from collections.abc import Sequence

from pyraftkv.core.ready import Save
from pyraftkv.core.types import Entry, HardState
from pyraftkv.errors import StorageError
from pyraftkv.log import FileStorage

ENTRIES = 7
"""In one save."""
SEGMENT_BYTES_MAX = 16 << 10
WAIT_SECONDS = 3.0
"""After so long, a save waits for a disk that is full."""


def entry(index: int) -> Entry:
    """Return what stands at this index, always."""
    return Entry(index, 1, b"%d" % index * 50)


def say(*words: object) -> None:
    """Tell whoever started this process."""
    print(*words, flush=True)  # noqa: T201


def storage_at(path: str) -> FileStorage:
    """Return the storage that this process uses."""
    return FileStorage(path, segment_bytes_max=SEGMENT_BYTES_MAX)


async def check(path: str, acknowledged: int) -> int:
    """Start on what is there; return the last index. Raises `AssertionError` if something is missing or invented."""
    storage = storage_at(path)
    recovered = await storage.start(failed=lambda error: say("failed", error))
    last = recovered.entries[-1].index if recovered.entries else 0
    assert last >= acknowledged, f"{acknowledged} was acknowledged, {last} is there"
    assert recovered.entries == [entry(index) for index in range(1, last + 1)]
    await storage.close()
    return last


async def write(options: argparse.Namespace) -> None:
    """Save until the disk has enough of it."""
    loop = asyncio.get_running_loop()
    failed: asyncio.Future[BaseException] = loop.create_future()
    storage = storage_at(options.path)
    recovered = await storage.start(failed=failed.set_result)
    index = recovered.entries[-1].index if recovered.entries else 0
    say("start", index)
    if options.file_bytes_max:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.file_bytes_max, options.file_bytes_max))
    if options.files_max:
        resource.setrlimit(resource.RLIMIT_NOFILE, (options.files_max, options.files_max))
    for number in range(1, options.saves + 1):
        entries = [entry(index + 1 + i) for i in range(ENTRIES)]
        done = loop.create_future()
        storage.save(Save(number, HardState(1, 1, index), entries, None), done.set_result)
        await asyncio.wait([done, failed], timeout=WAIT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            cause = failed.result().__cause__
            say("failed", errno.errorcode[cause.errno or 0] if isinstance(cause, OSError) else repr(cause))
            break
        if not done.done():
            say("waits", index)
            storage.abandon()
            break
        index += ENTRIES
        say("saved", index)
    await storage.close()
    say("closed")


def main(arguments: Sequence[str]) -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.log.writer", description="Save, and say so.")
    parser.add_argument("path")
    parser.add_argument("--saves", type=int, default=200)
    parser.add_argument("--file-bytes-max", type=int, default=0, help="RLIMIT_FSIZE, once it has started")
    parser.add_argument("--files-max", type=int, default=0, help="RLIMIT_NOFILE, once it has started")
    parser.add_argument("--check", type=int, default=-1, help="start, and look for everything up to this index")
    options = parser.parse_args(arguments)
    if options.check >= 0:
        say("found", asyncio.run(check(options.path, options.check)))
        return 0
    try:
        asyncio.run(write(options))
    except StorageError as error:
        say("refused", type(error).__name__)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
