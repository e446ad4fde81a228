"""What a person sees: tables, steps and progress; with `rich` on a terminal, as plain lines anywhere else.

A log file gets no control codes and no more than one line of progress every few seconds. `rich` is the extra
``[cli]``; everything here works without it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, TextIO

PLAIN_PROGRESS_SECONDS = 2.0
"""How often progress is said where it cannot be redrawn."""

REDRAW_SECONDS = 0.1


def human_bytes(count: int) -> str:
    """Return a size as etcdctl writes it: powers of 1000, two digits.

    >>> human_bytes(20480), human_bytes(999), human_bytes(1_250_000)
    ('20 kB', '999 B', '1.2 MB')
    """
    if count < 1000:
        return f"{count} B"
    size = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 999.5 or unit == "TB":
            break
    return f"{size:.1f} {unit}" if size < 9.95 else f"{size:.0f} {unit}"


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in etcdctl's frame.

    >>> print(plain_table(["A", "LONG"], [["1", "2"]]))
    +---+------+
    | A | LONG |
    +---+------+
    | 1 | 2    |
    +---+------+
    """
    widths = [max(len(line[at]) for line in [columns, *rows]) for at in range(len(columns))]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
             for line in [columns, *rows]]  # fmt: skip
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


def rich_console(out: TextIO) -> Any | None:
    """Return a `rich.console.Console` if ``out`` is a terminal and the extra is there, else None."""
    if not out.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=out, highlight=False)


TABLE_COLUMNS_MAX = 1000
"""No table is wider, whatever its cells hold."""


def print_table(out: TextIO, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to ``out``."""
    console = rich_console(out)
    if console is None:
        out.write(plain_table(columns, rows) + "\n")
        return
    from rich import box
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.ROUNDED, header_style="bold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # Wider than the terminal it wraps, as etcdctl's do: a cell that is cut short says nothing.
    needed = Measurement.get(console, console.options.update(width=TABLE_COLUMNS_MAX), table).maximum
    console.width = max(console.width, needed)
    console.print(table)


class Screen:
    """A program's progress, told step by step.

    Args:
        out: Where to write.
        clock: Seconds that only go forward.
    """

    def __init__(self, out: TextIO, *, clock: Any = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._console = rich_console(out)
        self._is_terminal = out.isatty()
        self._live: Any | None = None
        self._drawn = ""
        self._next_draw = 0.0

    def title(self, text: str) -> None:
        """Say what this is."""
        self._line(text, "bold")
        self._line("")

    def step(self, text: str) -> None:
        """Something was done, and went well."""
        self._line(f"  ok   {text}", "green", marked=4)

    def blow(self, text: str) -> None:
        """Something was broken on purpose."""
        self._line(f"  KILL {text}", "bold red", marked=6)

    def note(self, text: str) -> None:
        """Something worth knowing."""
        self._line(f"       {text}", "dim")

    def fail(self, text: str) -> None:
        """Something went wrong."""
        self._line(f"  FAIL {text}", "bold red", marked=6)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write a table."""
        self.clear()
        print_table(self._out, columns, rows)
        self._out.flush()

    def progress(self, text: str, done: int, total: int) -> None:
        """Redraw the bar of the present step, or say how far it is; cheap to call very often."""
        now = self._clock()
        if now < self._next_draw:
            return
        self._next_draw = now + (REDRAW_SECONDS if self._is_terminal else PLAIN_PROGRESS_SECONDS)
        if self._console is not None:
            self._draw_rich(text, done, total)
        elif self._is_terminal:
            self._draw(f"  {bar(done, total)} {text}")
        else:
            self._out.write(f"       {text}\n")
            self._out.flush()

    def clear(self) -> None:
        """Take the bar away. Idempotent."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._drawn:
            self._out.write("\r" + " " * len(self._drawn) + "\r")
            self._drawn = ""
        self._next_draw = 0.0

    def _draw(self, line: str) -> None:
        self._out.write("\r" + line.ljust(len(self._drawn)))
        self._out.flush()
        self._drawn = line

    def _draw_rich(self, text: str, done: int, total: int) -> None:
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        line = Table.grid(padding=(0, 1))
        line.add_row(" ", ProgressBar(total=max(total, 1), completed=min(done, total), width=24), text)
        if self._live is None:
            self._live = Live(line, console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(line, refresh=True)

    def _line(self, text: str, style: str = "", *, marked: int = 1000) -> None:
        """Write one line, its first ``marked`` characters in ``style``."""
        self.clear()
        if self._console is not None:
            from rich.text import Text

            line = Text(text)
            line.stylize(style, 0, marked)
            self._console.print(line, soft_wrap=True)
        else:
            self._out.write(text + "\n")
        self._out.flush()


BAR_CELLS = 24


def bar(done: int, total: int) -> str:
    """Return a bar of text.

    >>> bar(1, 2)
    '[############------------]'
    """
    cells = BAR_CELLS * min(done, total) // max(total, 1)
    return "[" + "#" * cells + "-" * (BAR_CELLS - cells) + "]"
