"""A PostgreSQL server: its pool of connections, and how long it is waited for.

What the application's own process opens waits as long as psycopg does. Who answers others, such as the
server, gives a number of seconds: then no lock, no lost server and no server that hangs is waited for
without an end.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from hashlib import sha256
from typing import Any, TypeVar

import psycopg
from psycopg import generators
from psycopg.pq import DiagnosticField, ExecStatus
from sqlalchemy import URL, Engine, create_engine, event

from polarcredits.errors import DatabaseError

T = TypeVar("T")
_POOL = {"pool_size": 8, "max_overflow": 24, "pool_timeout": 10}
_PREPARE = "prepare_threshold"
_ROWS = ExecStatus.TUPLES_OK
_GOOD = (_ROWS, ExecStatus.COMMAND_OK)
_NOT_PREPARED = "26000"
_PREPARED_ALREADY = "42P05"
_HANGS_AFTER = 3
"""After how many times the patience for a lock a server that says nothing is given up."""


def postgres_engine(url: URL, busy_seconds: float | None) -> Engine:
    """Return the engine of a server; with *busy_seconds* every wait for it has an end.

    A lock is waited for that long, the answer to one statement three times as long. What the URL itself
    says (`?connect_timeout=3`) goes before.
    """
    url, options = _pool(url.set(drivername="postgresql+psycopg"))
    options["connect_args"] |= {"client_encoding": "utf8"}
    if busy_seconds is None:
        return create_engine(url, pool_pre_ping=True, **options)
    bounds = _bounds(busy_seconds)
    options["connect_args"] |= {name: value for name, value in bounds.items() if name not in url.query}
    engine = create_engine(url, pool_pre_ping=True, **options)

    def connect(_dialect: object, _record: object, where: Any, options: Any) -> psycopg.Connection[Any]:
        connection = BoundedConnection.connect(*where, **options)
        connection.answer_seconds = _HANGS_AFTER * busy_seconds
        return connection

    event.listen(engine, "do_connect", connect)
    return engine


def raw_cursor(driver: Any) -> psycopg.RawCursor[Any]:
    """Return a cursor for statements with PostgreSQL's own parameters, `$1`: there is nothing to convert."""
    return psycopg.RawCursor(driver)


class QuickCursor:
    """Runs statements of whole numbers and texts that answer with whole numbers, as often as one likes.

    Each is prepared once, and nothing but libpq and psycopg's own wait is between it and the server:
    psycopg's cursors take a tenth of the time of a deduction. A statement's name is made from its text, so
    that sessions which share a connection of a pooler mean the same by it.
    """

    def __init__(self, driver: psycopg.Connection[Any]) -> None:
        self._driver = driver
        self._pgconn = driver.pgconn
        self._names: dict[str, bytes] = {}
        self._result: Any = None

    def execute(self, statement: str, values: Sequence[str | int | None]) -> QuickCursor:
        """Run a statement with its values; raises psycopg's errors. Its first row can then be fetched."""
        name = self._names.get(statement) or self._prepare(statement)
        given = [
            None if value is None else value.encode() if isinstance(value, str) else b"%d" % value
            for value in values
        ]
        result = self._run(name, given)
        if result.status != _ROWS:
            if _state(result) != _NOT_PREPARED:
                raise psycopg.errors.error_from_result(result)
            result = self._run(self._prepare(statement), given)  # psycopg, or a pooler, let go of all
            if result.status != _ROWS:
                raise psycopg.errors.error_from_result(result)
        self._result = result
        return self

    def fetchone(self) -> tuple[int, ...] | None:
        """Return the first row, None if there is none."""
        result = self._result
        if result.ntuples == 0:
            return None
        return tuple([int(result.get_value(0, column)) for column in range(result.nfields)])

    def _run(self, name: bytes, given: list[bytes | None]) -> Any:
        self._pgconn.send_query_prepared(name, given)
        return _outcome(self._driver.wait(generators.execute(self._pgconn)))

    def _prepare(self, statement: str) -> bytes:
        text = statement.encode()
        name = b"polarcredits_" + sha256(text).hexdigest()[:16].encode()
        self._pgconn.send_prepare(name, text)
        result = _outcome(self._driver.wait(generators.execute(self._pgconn)))
        if result.status != ExecStatus.COMMAND_OK and _state(result) != _PREPARED_ALREADY:
            raise psycopg.errors.error_from_result(result)
        self._names[statement] = name
        return name


def _outcome(results: Sequence[Any]) -> Any:
    """Return what came of a statement: its failure, even if its rows were told before its commit failed."""
    if len(results) == 1:
        return results[0]
    return next((result for result in results if result.status not in _GOOD), results[0])


def _state(result: Any) -> str:
    return (result.error_field(DiagnosticField.SQLSTATE) or b"").decode()


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is given up when its server does not answer a statement in time.

    A process of the server that hangs still acknowledges packets: neither `tcp_user_timeout` nor
    `statement_timeout` ends such a wait.
    """

    answer_seconds: float

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
        """Wait as psycopg does; raises OperationalError, with the connection closed, after the time."""
        return super().wait(self._bounded(gen), *args, **options)

    def _bounded(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        until = time.monotonic() + self.answer_seconds
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > until:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"no answer within {self.answer_seconds:g} s")
                wanted = gen.send(ready)
        except StopIteration as ended:
            result: T = ended.value
            return result


def _pool(url: URL) -> tuple[URL, dict[str, Any]]:
    """Take `pool_size`, `max_overflow`, `pool_timeout` and `prepare_threshold` out of the URL's query.

    `prepare_threshold=none` prepares nothing, for a pooler that cannot pass prepared statements on.
    """
    given = {name: str(value) for name, value in url.query.items() if name in _POOL or name == _PREPARE}
    numbers = {name: int(value) for name, value in given.items() if value.isascii() and value.isdecimal()}
    prepare = {_PREPARE: numbers.pop(_PREPARE, None)} if _PREPARE in given else {}
    for name, value in given.items():
        if name not in numbers and (name, value.lower()) != (_PREPARE, "none") and name not in prepare:
            raise DatabaseError(f"{name} in the database URL must be a whole number, not {value!r}.")
    return url.difference_update_query(given), {**_POOL, **numbers, "connect_args": prepare}


def _bounds(seconds: float) -> dict[str, str | int]:
    """Return what bounds every wait for a server: to reach it, for its locks, and once it is gone."""
    return {
        "connect_timeout": max(2, round(seconds)),
        "options": f"-c lock_timeout={round(seconds * 1000)}",
        "tcp_user_timeout": round(2 * seconds * 1000),
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 2,
    }
