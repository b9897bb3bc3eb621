"""The engine and its transactions: the one place that begins, commits, retries and names failures.

SQLite: see `sqlite_file`; one thread of a process writes at a time.
PostgreSQL: see `postgres`; READ COMMITTED with row locks for writes, one snapshot for a read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet

from sqlalchemy import URL, Connection, Engine, Executable, QueuePool, Table, exc
from sqlalchemy.engine import make_url

from polarcredits.errors import DatabaseBusy, DatabaseError, InvalidInput
from polarcredits.ledger.sqlite_file import WRITES, patience_of, sqlite_engine

P = ParamSpec("P")
T = TypeVar("T")
BUSY_SECONDS = 10.0
_RETRIES = 8
_AGAIN = frozenset({"40001", "40P01", "23505"})


def sqlite_path(url: str) -> Path | None:
    """Return the file of a SQLite *url*, None for PostgreSQL."""
    parsed = _parsed(url)
    if parsed.get_backend_name() != "sqlite":
        return None
    return Path(parsed.database or "polarcredits.db")


def make_engine(url: str, *, busy_seconds: float | None = None) -> Engine:
    """Return an engine for `sqlite:///…` or `postgresql://…`, set up as this module promises.

    *busy_seconds* is how long a lock is waited for, by default BUSY_SECONDS on SQLite and for ever
    on PostgreSQL. What the URL itself says (`?timeout=2`, `?connect_timeout=3`) goes before.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() in ("postgresql", "postgres"):
        from polarcredits.ledger.postgres import postgres_engine

        return postgres_engine(parsed, busy_seconds)
    return sqlite_engine(parsed, patience_of(parsed, busy_seconds or BUSY_SECONDS))


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except (exc.ArgumentError, ValueError):
        raise DatabaseError("The database URL cannot be read; see POLARCREDITS_DATABASE_URL.") from None


class Turn:
    """A thread's turn to write to a SQLite database, within `failures`. Entering it raises DatabaseBusy.

    SQLite has one writer at a time, and who waits for it sleeps: threads of one process would starve
    each other. PostgreSQL locks rows, in its own queue.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._free = threading.Lock()

    def __enter__(self) -> None:
        """Wait for it."""
        if not self._free.acquire(timeout=self._database.patience):
            raise DatabaseBusy("The database is locked by another writer; try again.")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Let the next thread have it."""
        self._free.release()
        if error is not None:
            failures.__exit__(kind, error, trace)


class Database:
    """A database and the two ways to use it: `write` and `read`."""

    def __init__(self, url: str, *, busy_seconds: float | None = None) -> None:
        self.engine = make_engine(url, busy_seconds=busy_seconds)
        self.sqlite = self.engine.dialect.name == "sqlite"
        writing = {WRITES: True} if self.sqlite else {}
        reading = {} if self.sqlite else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self.writer = self.engine.execution_options(**writing)
        self._reader = self.engine.execution_options(**reading)
        self.driver_error: type[Exception] = self.engine.dialect.loaded_dbapi.Error
        self.patience = patience_of(self.engine.url, busy_seconds or BUSY_SECONDS) if self.sqlite else 0.0
        """How many seconds are waited for a turn to write to SQLite, and then for its write lock."""
        self.turn: AbstractContextManager[None] = Turn(self) if self.sqlite else failures
        """What every transaction that writes runs in: its turn, and its failures in our words."""
        _databases.add(self)

    def write(self, work: Callable[[Connection], T], *, dry_run: bool = False) -> T:
        """Run *work* in one transaction and commit it (a dry run is rolled back).

        What lost a race is run again, whole. Raises DatabaseBusy or DatabaseError.
        """

        def once() -> T:
            with self.turn, self.writer.connect() as connection:
                transaction = connection.begin()
                result = work(connection)
                transaction.rollback() if dry_run else transaction.commit()
                return result

        return again(once)

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run *work* on one snapshot of the database; nothing is written."""
        with failures, self._reader.connect() as connection:
            return work(connection)

    def raw_cursor(self, driver: Any) -> Any:
        """Return a cursor of a driver's own connection, for statements in the database's own words."""
        if self.sqlite:
            return driver.cursor()
        from polarcredits.ledger.postgres import raw_cursor

        return raw_cursor(driver)

    def connections(self) -> tuple[int, int]:
        """Return how many connections are idle, and how many in use."""
        pool = self.engine.pool
        return (pool.checkedin(), pool.checkedout()) if isinstance(pool, QueuePool) else (0, 0)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def forget_the_parent(self) -> None:
        """Leave the parent's connections alone, in a forked child."""
        self.engine.dispose(close=False)
        if isinstance(self.turn, Turn):
            self.turn = Turn(self)


def again(once: Callable[P, T], *given: P.args, **options: P.kwargs) -> T:
    """Run a transaction, and whole again if it lost a race. Raises DatabaseBusy."""
    for attempt in range(_RETRIES):
        try:
            return once(*given, **options)
        except exc.DBAPIError as error:
            if attempt + 1 == _RETRIES:
                raise DatabaseBusy("The database is too busy; try again.") from error
    raise DatabaseBusy("The database is too busy; try again.")


class _Failures:
    """Turns what a driver raises into our errors; what may succeed if run again passes through."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raise our error in place of the driver's."""
        if error is None:
            return
        if isinstance(error, exc.DBAPIError) and not may_succeed_again(error):
            raise named(error) from error
        if isinstance(error, UnicodeEncodeError):
            raise InvalidInput(f"{str(error.object)[:40]!r} cannot be kept: it is not UTF-8 text.") from error
        if isinstance(error, exc.TimeoutError):
            raise DatabaseBusy("No database connection became free in time; try again.") from error


failures = _Failures()


def may_succeed_again(error: Exception) -> bool:
    """Say whether what failed only lost a race, and is to be run again, whole."""
    return isinstance(error, exc.DBAPIError) and getattr(error.orig, "sqlstate", None) in _AGAIN


def named(error: exc.DBAPIError) -> DatabaseError:
    """Return our error for a driver's."""
    text = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else "unknown failure"
    if "database is locked" in text or "lock timeout" in text:
        return DatabaseBusy("The database is locked by another writer; try again.")
    if "no such table" in text or ("does not exist" in text and "relation" in text):
        return DatabaseError("The database is not migrated. Run: polarcredits db upgrade")
    if isinstance(error, exc.OperationalError) and getattr(error.orig, "sqlstate", "") is None:
        return DatabaseError(
            f"The database cannot be reached: {text}. Is it running, and is POLARCREDITS_DATABASE_URL right?"
        )
    return DatabaseError(f"The database refused: {text}")


def insert_once(connection: Connection, table: Table, **values: object) -> bool:
    """Insert a row unless its key is there; say whether it was new. Never aborts a transaction."""
    statement = _insert_once(connection.dialect.name, table)
    return connection.execute(statement, values).rowcount > 0


def insert_each_once(connection: Connection, table: Table, rows: Sequence[Mapping[str, object]]) -> None:
    """Insert rows but for those whose key is there."""
    if rows:
        connection.execute(_insert_once(connection.dialect.name, table), rows)


def upsert(connection: Connection, table: Table, key: dict[str, object], **values: object) -> None:
    """Insert or update the row of *key*; columns that are not given stay."""
    statement = _upsert(connection.dialect.name, table, tuple(key), tuple(values))
    connection.execute(statement, {**key, **values})


def insert_into(dialect: str, table: Table) -> Any:
    """Return the dialect's own INSERT; each is imported only where it is used."""
    if dialect == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)


def upsert_all(
    connection: Connection, table: Table, key: tuple[str, ...], rows: Sequence[Mapping[str, object]]
) -> None:
    """Insert or update rows by their *key*, all with the same columns; columns not given stay."""
    if rows:
        columns = tuple(sorted(rows[0].keys() - set(key)))
        connection.execute(_upsert(connection.dialect.name, table, key, columns), rows)


@cache
def _insert_once(dialect: str, table: Table) -> Executable:
    into = insert_into(dialect, table)
    statement: Executable = into.on_conflict_do_nothing().execution_options(preserve_rowcount=True)
    return statement


@cache
def _upsert(dialect: str, table: Table, key: tuple[str, ...], columns: tuple[str, ...]) -> Executable:
    into = insert_into(dialect, table)
    changes = {name: into.excluded[name] for name in columns}
    statement: Executable = into.on_conflict_do_update(index_elements=list(key), set_=changes)
    return statement


_databases: WeakSet[Database] = WeakSet()


def _forget_the_parent() -> None:
    for database in list(_databases):
        database.forget_the_parent()


os.register_at_fork(after_in_child=_forget_the_parent)
