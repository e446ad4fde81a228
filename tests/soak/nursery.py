"""`Nursery`: an interpreter that has imported everything, and runs seed after seed, each in a child of its own.

A new interpreter needs a tenth of a seed's time to import the library, and some more to take itself apart. A child that
is forked has all of it, and whatever a seed does to its process still ends with that process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

ROOT = Path(__file__).parents[2]


class Stopped(Exception):
    """A child was ended because nobody wants to know any more what becomes of it."""


class Nursery:
    """A process that runs seeds: a context manager. For one thread at a time.

    Args:
        module: What is run: a module whose ``--serve`` is `serve`.
        environment: What is its environment, and that of its children.
    """

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        self._is_stopped = False
        self._server = subprocess.Popen(
            [sys.executable, "-m", module, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._server.communicate()  # the end of its input is its end

    def stop(self) -> None:
        """End the child that is running, if there is one, and run no other. From any thread, and from a signal."""
        self._is_stopped = True
        self._server.terminate()

    def run(self, arguments: Sequence[str], *, seconds_max: float) -> subprocess.CompletedProcess[str]:
        """Run `main` with these arguments in a child; return how it ended, and what it wrote.

        Raises:
            TimeoutExpired: It took longer than that, in real time, and was killed.
            Stopped: So was the nursery.
        """
        ask, answer = self._server.stdin, self._server.stdout
        assert ask is not None, "it has a pipe"
        assert answer is not None, "it has a pipe"
        with tempfile.TemporaryDirectory(prefix="pyraftkv-seed-") as folder:
            out, err = Path(folder) / "out", Path(folder) / "err"
            try:
                ask.write(json.dumps([seconds_max, str(out), str(err), *arguments]) + "\n")
                ask.flush()
                status = int(answer.readline())
            except (BrokenPipeError, ValueError):
                if self._is_stopped:  # before it had begun to listen
                    raise Stopped from None
                raise
            if status == -signal.SIGTERM:
                raise Stopped
            if status == -signal.SIGALRM:
                raise subprocess.TimeoutExpired(list(arguments), seconds_max)
            return subprocess.CompletedProcess(arguments, status, out.read_text("utf-8"), err.read_text("utf-8"))


def serve(main: Callable[[Sequence[str]], int]) -> int:
    """Run ``main`` in a child for every line of the input, and answer each with the status that it ended with.

    Signals are for whoever asks: it says what they mean, with a SIGTERM for this process alone. The child of that time
    is killed, and no other is run; the answer is then that it ended by SIGTERM, which no child does by itself.
    """
    child, is_over = 0, False

    def stop(*_: object) -> None:
        nonlocal is_over
        is_over = True
        if child:
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    for line in sys.stdin:
        seconds_max, out, err, *arguments = json.loads(line)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # a child that is not known cannot be killed
        if not is_over:
            child = os.fork()
            if child == 0:
                _run(main, arguments, seconds_max=seconds_max, out=out, err=err)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0
        child = 0
        sys.stdout.write(f"{-signal.SIGTERM if is_over else status}\n")
        sys.stdout.flush()
    return 0


def _run(
    main: Callable[[Sequence[str]], int], arguments: Sequence[str], *, seconds_max: float, out: str, err: str
) -> NoReturn:
    """Be the child: it writes to files, the system ends it when it takes too long, and it leaves without tidying up."""
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        for descriptor, path, flags in (
            (0, os.devnull, os.O_RDONLY),
            (1, out, os.O_WRONLY | os.O_CREAT),
            (2, err, os.O_WRONLY | os.O_CREAT),
        ):
            os.dup2(os.open(path, flags, 0o600), descriptor)
        signal.setitimer(signal.ITIMER_REAL, seconds_max)
        status = main(arguments)
    except BaseException:  # noqa: BLE001 - its parent tells it by the status and by what is written
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
