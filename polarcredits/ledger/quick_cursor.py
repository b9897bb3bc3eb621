"""The hot path's cursor on PostgreSQL: nothing but libpq and psycopg's own wait before the server.

psycopg's cursors take a tenth of the time of a deduction, and a round trip for each statement.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import psycopg
from psycopg import generators
from psycopg.abc import PQGen, Transformer
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult

Value = str | int | None
"""What a parameter may be."""

_GOOD = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)


class QuickCursor:
    """Runs statements with whole numbers and texts as PostgreSQL's own parameters, `$1`.

    Each is prepared once, unless the connection is to prepare nothing. A statement's name is made from its
    text, so that sessions which share a connection of a pooler mean the same by it.
    """

    _result: PGresult

    def __init__(self, driver: psycopg.Connection[Any]) -> None:
        self._driver = driver
        self._pgconn = driver.pgconn
        self._prepares = driver.prepare_threshold is not None
        self._names: dict[str, bytes] = {}
        self._delayed: list[tuple[str, Sequence[Value]]] = []
        self._rows: Transformer = psycopg.adapt.Transformer(driver)

    def delay(self, statement: str, values: Sequence[Value] = ()) -> None:
        """Keep a statement until the next is executed: both are sent at once, and fail together."""
        if self._prepares and statement not in self._names:
            self._prepare(statement)
        self._delayed.append((statement, values))

    def execute(self, statement: str, values: Sequence[Value] = ()) -> QuickCursor:
        """Run a statement, after those that were delayed, in one round trip. Its rows can then be fetched.

        Raises psycopg's errors: that of the first statement that failed, after which none is run.
        """
        if self._delayed:
            self.delay(statement, values)
            results = self._run_delayed()
        else:
            self._send(statement, values)
            results = self._driver.wait(generators.execute(self._pgconn))
        if len(results) != 1 or results[0].status not in _GOOD:
            _check(results)
        self._result = results[-1]
        return self

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the first row, None if there is none."""
        result = self._result
        if not result.ntuples:
            return None
        self._rows.set_pgresult(result)
        return self._rows.load_row(0, tuple)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return all rows."""
        self._rows.set_pgresult(self._result)
        return self._rows.load_rows(0, self._result.ntuples, tuple)

    def _run_delayed(self) -> list[PGresult]:
        statements, self._delayed = self._delayed, []
        self._pgconn.enter_pipeline_mode()
        for statement, values in statements:
            self._send(statement, values)
        self._pgconn.pipeline_sync()
        return self._driver.wait(_pipelined(self._pgconn))

    def _send(self, statement: str, values: Sequence[Value]) -> None:
        given = [
            None if value is None else value.encode() if isinstance(value, str) else b"%d" % value
            for value in values
        ]
        if self._prepares:
            self._pgconn.send_query_prepared(self._names.get(statement) or self._prepare(statement), given)
        else:
            self._pgconn.send_query_params(statement.encode(), given)

    def _prepare(self, statement: str) -> bytes:
        text = statement.encode()
        name = b"polarcredits_" + sha256(text).hexdigest()[:16].encode()
        self._pgconn.send_prepare(name, text)
        _check(self._driver.wait(generators.execute(self._pgconn)))
        self._names[statement] = name
        return name


def _check(results: Sequence[PGresult]) -> None:
    """Raise psycopg's error if not all succeeded; rows may be told before their commit fails."""
    for result in results:
        if result.status not in _GOOD:
            raise psycopg.errors.error_from_result(result)
    if not results:
        raise psycopg.OperationalError("the server gave no answer")


def _pipelined(pgconn: PGconn) -> PQGen[list[PGresult]]:
    """Send what was put into a pipeline, and return its results; the pipeline is over then.

    Of a server that goes away in between, what it said before counts: why it does.
    """
    yield from generators.send(pgconn)
    results: list[PGresult] = []
    while True:
        try:
            some = yield from generators.fetch_many(pgconn)
        except psycopg.OperationalError:
            if any(result.status == ExecStatus.FATAL_ERROR for result in results):
                return results
            raise
        if some and some[0].status == ExecStatus.PIPELINE_SYNC:
            pgconn.exit_pipeline_mode()
            return results
        results += some
