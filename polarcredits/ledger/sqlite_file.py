"""A SQLite file: how it is opened, and how its write lock is waited for.

WAL and `synchronous=FULL` (acknowledged means on disk), BEGIN IMMEDIATE for every write. A file that is
not there is never made by opening it, and one that was replaced is opened anew: what is written to a
file that nobody will find again would be lost.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc

from polarcredits.errors import DatabaseError

WRITES = "sqlite_writes"
"""The execution option of connections whose transactions write."""
_LOOK_SECONDS = 0.001
_PRIMARY = 0xFF
"""The bits of an error code that say what it is; the others say why, as in SQLITE_BUSY_RECOVERY."""
OPENED = "polarcredits_opened"
"""Where the info of a connection's record says what file it was opened on."""


_given_up: set[str] = set()


class Opened(NamedTuple):
    """The file that a connection was opened on, by its device and number; None if it was gone at once."""

    path: str
    identity: tuple[int, int] | None

    def is_current(self) -> bool:
        """Say whether the file is still the one that is there."""
        return self.identity is not None and self.identity == _identity(self.path)


def patience_of(url: URL, seconds: float) -> float:
    """Return how many seconds the write lock is waited for: `?timeout=` of the URL, else *seconds*."""
    given = url.query.get("timeout")
    try:
        patience = seconds if given is None else float(str(given))
    except ValueError:
        patience = math.nan
    if not 0 <= patience <= 1_000_000:
        raise DatabaseError(f"timeout in the database URL must be seconds, not {given!r}.")
    return patience


def sqlite_engine(url: URL, patience: float) -> Engine:
    """Return the engine of a file that is there already. Raises DatabaseError for an unknown parameter."""
    others = ", ".join(sorted(url.query.keys() - {"timeout"}))
    if others:
        raise DatabaseError(f"{others} in the database URL is unknown; with SQLite there is timeout alone.")
    path = _path(url)
    address = f"file:{quote(path)}?mode=rw"

    def connect() -> sqlite3.Connection:
        if path in _given_up:
            raise DatabaseError(
                f"The process forked while it was at work on {path}, which its child cannot use any more. "
                "Fork between two operations, or let multiprocessing spawn."
            )
        return sqlite3.connect(address, uri=True, timeout=patience, check_same_thread=False)

    def configure(connection: sqlite3.Connection, record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=FULL")
        record.info[OPENED] = Opened(path, _identity(path))

    def check(_connection: sqlite3.Connection, record: Any, _proxy: object) -> None:
        opened: Opened = record.info[OPENED]
        if not opened.is_current():
            raise exc.DisconnectionError(f"{path} was replaced or removed")

    def begin(connection: Connection) -> None:
        run = connection.exec_driver_sql
        if not connection.get_execution_options().get(WRITES):
            run("BEGIN DEFERRED")
            return
        run("PRAGMA busy_timeout=0")
        try:
            begin_writing(lambda: run("BEGIN IMMEDIATE"), patience)
        finally:
            run(f"PRAGMA busy_timeout={round(patience * 1000)}")

    engine = create_engine(url, creator=connect)
    event.listen(engine, "connect", configure)
    event.listen(engine, "checkout", check)
    event.listen(engine, "begin", begin)
    return engine


def give_up(url: URL) -> None:
    """Never open a file again in this process: what it inherited of it cannot be put right."""
    _given_up.add(_path(url))


def _path(url: URL) -> str:
    return str(Path(url.database or "polarcredits.db").absolute())


def begin_writing(begin: Callable[[], object], patience: float) -> None:
    """Run BEGIN IMMEDIATE, on a connection without a busy timeout, until the write lock is free.

    SQLite's own wait looks ever more seldom, down to ten times a second: beside a process that writes
    without pause it finds the lock free only by luck, and starves.
    """
    until = None
    while True:
        try:
            begin()
            return
        except (sqlite3.OperationalError, exc.OperationalError) as error:
            until = until or time.monotonic() + patience
            code = getattr(getattr(error, "orig", error), "sqlite_errorcode", None)
            if (code or 0) & _PRIMARY != sqlite3.SQLITE_BUSY or time.monotonic() >= until:
                raise
        time.sleep(_LOOK_SECONDS)


def empty_database(path: Path, wanted: Path) -> None:
    """Make a database without tables that only its owner can read, in WAL mode for good."""
    private_file(path, wanted)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def private_file(path: Path, wanted: Path) -> None:
    """Make an empty file that only its owner can read; errors name the file that was *wanted*."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise DatabaseError(f"Cannot make the database {wanted}: {error.strerror}.") from error


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
