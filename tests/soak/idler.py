"""What a nursery can run that takes no time to begin, and never ends: it writes its number, and waits."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.soak.nursery import serve


def main(arguments: Sequence[str]) -> int:
    """Write the number of this process to the file that is named, in one step."""
    path = Path(arguments[0])
    fresh = path.with_suffix(".new")
    fresh.write_text(str(os.getpid()), encoding="utf-8")
    fresh.replace(path)
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(serve(main))
