"""The engine and its transactions: the one place that begins, commits, retries and names failures.

SQLite: see `sqlite_file`; one thread of a process writes at a time.
PostgreSQL: see `postgres`; READ COMMITTED with row locks for writes, one snapshot for a read.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar
from weakref import WeakSet

from sqlalchemy import URL, Connection, Engine, Executable, QueuePool, Table, exc
from sqlalchemy.engine import make_url

from polarcredits.errors import DatabaseBusy, DatabaseError
from polarcredits.ledger.failing import again, closed, failures
from polarcredits.ledger.handlers import Here
from polarcredits.ledger.sqlite_file import WRITES, give_up, patience_of, sqlite_engine
from polarcredits.ledger.turns import Turn

T = TypeVar("T")
BUSY_SECONDS = 10.0
_LOOK_SECONDS = 0.001


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


class Keeper(Protocol):
    """Who keeps a connection of its own beside the pool."""

    def close(self) -> None:
        """Close it."""

    def forget_the_parent(self) -> None:
        """Leave it alone, in a forked child."""


class Database:
    """A database and the ways to use it: `write`, `read`, and `begin` for a transaction to join."""

    def __init__(self, url: str, *, busy_seconds: float | None = None) -> None:
        self.engine = make_engine(url, busy_seconds=busy_seconds)
        self.sqlite = self.engine.dialect.name == "sqlite"
        writing: dict[str, Any] = {WRITES: True} if self.sqlite else {"isolation_level": "READ COMMITTED"}
        reading = {} if self.sqlite else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self.writer = self.engine.execution_options(**writing)
        self._reader = self.engine.execution_options(**reading)
        self.driver_error: type[Exception] = self.engine.dialect.loaded_dbapi.Error
        self.patience = patience_of(self.engine.url, busy_seconds or BUSY_SECONDS) if self.sqlite else 0.0
        """How many seconds are waited for a turn to write to SQLite, and then for its write lock."""
        self.here = Here()
        """Whether this thread is at work here, which its signal handlers must leave alone meanwhile."""
        self.keepers: WeakSet[Keeper] = WeakSet()
        self._closed = False
        self._start()
        _databases.add(self)

    def _start(self) -> None:
        self.turn: AbstractContextManager[None] = Turn(self) if self.sqlite else nullcontext()
        """What every transaction that writes runs in."""
        self._door: AbstractContextManager[object] = threading.Lock() if self.sqlite else nullcontext()
        self._forks: dict[int, Generator[None, None, None]] = {}

    def write(self, work: Callable[[Connection], T], *, dry_run: bool = False) -> T:
        """Run *work* in one transaction and commit it (a dry run is rolled back).

        What lost a race is run again, whole. Raises DatabaseBusy or DatabaseError.
        """

        def once() -> T:
            with self.turn, self._connect(self.writer) as connection:
                transaction = connection.begin()
                result = work(connection)
                transaction.rollback() if dry_run else transaction.commit()
                return result

        return again(self.here.alone, once)

    @contextmanager
    def begin(self, *, dry_run: bool = False) -> Iterator[Connection]:
        """Begin a transaction for others to join; the end of the block commits it, or undoes a dry run."""
        with self.turn, failures, self._connected(self.writer) as connection:
            transaction = connection.begin()
            yield connection
            self.here.alone(transaction.rollback if dry_run else transaction.commit)

    def refuse_unbegun(self, joined: Connection) -> None:
        """Raise DatabaseBusy where SQLite has begun no transaction: the end of a savepoint would commit."""
        if self.sqlite and not getattr(joined.connection.driver_connection, "in_transaction", False):
            raise DatabaseBusy(
                "The connection has begun no transaction: begin it IMMEDIATE, as ledger.begin() does."
            )

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run *work* on one snapshot of the database; nothing is written."""

        def once() -> T:
            with self._connected(self._reader) as connection:
                return work(connection)

        return again(once)

    @contextmanager
    def _connected(self, engine: Engine) -> Iterator[Connection]:
        connection = self.connect(engine)
        try:
            yield connection
        finally:
            self.here.alone(connection.close)

    def connect(self, engine: Engine) -> Connection:
        """Take a connection from the pool."""
        return self.here.alone(self._connect, engine)

    def _connect(self, engine: Engine) -> Connection:
        """Take one as a part of other work. The door is shut while the process forks."""
        with self._door:
            if self._closed:
                raise closed()
            return engine.connect()

    def raw_cursor(self, driver: Any) -> Any:
        """Return a cursor of a driver's own connection, for statements in the database's own words."""
        if self.sqlite:
            return driver.cursor()
        from polarcredits.ledger.postgres import raw_cursor

        return raw_cursor(driver)

    def raise_wrapped(self, error: Exception) -> NoReturn:
        """Raise a driver's own error as SQLAlchemy would."""
        dialect = self.engine.dialect
        raise exc.DBAPIError.instance(None, None, error, self.driver_error, dialect=dialect) from error

    def connections(self) -> tuple[int, int]:
        """Return how many connections are idle, and how many in use."""
        pool = self.engine.pool
        return (pool.checkedin(), pool.checkedout()) if isinstance(pool, QueuePool) else (0, 0)

    def close(self) -> None:
        """Close every connection, and open none from now on.

        In a signal handler that interrupted work here, only the latter: the pool may be half-way there.
        """
        self._closed = True
        if not self.here.at_work:
            self.here.alone(self.engine.dispose)

    def before_fork(self) -> None:
        """See to it that nobody has a connection to a SQLite file while this thread forks.

        In a signal handler that interrupted work here this thread has one itself, until after the fork.
        """
        if self.sqlite and not self.here.at_work:
            fork = self._at_rest()
            try:
                next(fork)
                self._forks[threading.get_ident()] = fork
            except (DatabaseBusy, StopIteration):
                return

    def _at_rest(self) -> Generator[None, None, None]:
        """Yield while no connection is open; not at all if somebody does not give one back in time."""
        try:
            self.here.at_work = True
            with self.turn, self._door:
                for keeper in self.keepers:
                    keeper.close()
                until = time.monotonic() + self.patience
                while self.connections()[1] and time.monotonic() < until:
                    time.sleep(_LOOK_SECONDS)
                if not self.connections()[1]:
                    self.engine.dispose()
                    yield
        finally:
            self.here.at_work = False

    def after_fork(self) -> None:
        """Go on in the parent."""
        fork = self._forks.pop(threading.get_ident(), None)
        if fork is not None:
            fork.close()

    def forget_the_parent(self) -> None:
        """Go on in the child, on connections of its own."""
        if self.sqlite and threading.get_ident() not in self._forks:
            give_up(self.engine.url)
        self.engine.dispose(close=False)
        for keeper in self.keepers:
            keeper.forget_the_parent()
        self._start()


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


def _each(method: Callable[[Database], None]) -> None:
    for database in list(_databases):
        method(database)


os.register_at_fork(
    before=partial(_each, Database.before_fork),
    after_in_parent=partial(_each, Database.after_fork),
    after_in_child=partial(_each, Database.forget_the_parent),
)
