"""A PostgreSQL server: its pool of connections, and how long it is waited for.

What the application's own process opens waits as long as psycopg does. Who answers others, such as the
server, gives a number of seconds: then no lock, no lost server and no server that hangs is waited for
without an end.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from sqlalchemy import URL, Engine, create_engine, event

from polarcredits.errors import DatabaseError

T = TypeVar("T")
_POOL = {"pool_size": 8, "max_overflow": 24, "pool_timeout": 10}
_PREPARE = "prepare_threshold"
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
