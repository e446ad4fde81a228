"""What a nursery can run that takes no time to begin, and never ends: it writes its number, and waits."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.soak.nursery import serve


def main(arguments: Sequence[str]) -> int:
    """Write the number of this process to what is named, and never return."""
    Path(arguments[0]).write_text(str(os.getpid()), encoding="utf-8")
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(serve(main))
