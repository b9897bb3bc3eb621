"""The only printing: one JSON document, or tables and sentences for people."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from polarcredits.cli.context import options
from polarcredits.periods import format_time


def emit(document: Any, people: Callable[[], None]) -> None:
    """Print *document* under --json, else let *people* print."""
    if options.json:
        text = json.dumps(document, default=_plain, ensure_ascii=False)
        try:
            text.encode(sys.stdout.encoding or "utf-8")
        except UnicodeEncodeError:  # half a character that somebody sent, or a terminal of few
            text = json.dumps(document, default=_plain)
        print(text)
    else:
        people()


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return format_time(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


def say(text: str) -> None:
    """Print an answer."""
    print(text)


def hint(text: str) -> None:
    """Print talk: progress, hints, warnings; never part of the answer, and lost where nobody listens."""
    with suppress(OSError):
        print(text, file=sys.stderr)


def when(time: datetime | None) -> str:
    """Return a time for people, to the second."""
    return "-" if time is None else time.strftime("%Y-%m-%d %H:%M:%SZ")


def number(value: int) -> str:
    """Return a number for people."""
    return f"{value:,}"


def counted(value: int, one: str, many: str | None = None) -> str:
    """Return how many of something there are: 1 user, 2 users."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """Print rows in columns that line up; numbers to the right."""
    if not rows:
        say(empty)
        return
    right = [all(_is_number(row[n]) for row in rows) for n in range(len(headings))]
    if sys.stdout.isatty():
        _rich(headings, rows, right)
        return
    widths = [max(len(row[n]) for row in (headings, *rows)) for n in range(len(headings))]
    for row in (headings, *rows):
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        say("  ".join(cells).rstrip())


def _is_number(text: str) -> bool:
    return text.lstrip("+-").replace(",", "").isdecimal()


def _rich(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, to_right in zip(headings, right, strict=True):
        shown.add_column(heading, justify="right" if to_right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    Console(no_color="NO_COLOR" in os.environ).print(shown)


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far long work is, on a terminal only; yields what to call with (done, total)."""
    if not sys.stderr.isatty() or options.json:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
