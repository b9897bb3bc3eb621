"""A rehearsal is one transaction, and nothing is read from a network inside one: read it all first."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def spooled(lines: Iterable[str]) -> Iterator[Iterator[str]]:
    """Take all *lines* (without line ends) into a temporary file, and give them back from there."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.seek(0)
        yield (line.removesuffix("\n") for line in file)
