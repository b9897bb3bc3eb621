"""PostgreSQL: the statements of the hot path, how often they go to the server, and how they fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from polarcredits.errors import DatabaseError
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.quick_cursor import QuickCursor
from polarcredits.ledger.verify import verify
from polarcredits.ledger.views import history
from tests.ledger.conftest import copy_of_template
from tests.ledger.fronts import Crowded
from tests.ledger.worlds import catalog

_PREPARED = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'polarcredits%'"


class Counted(psycopg.Connection[Any]):
    """Counts the round trips."""

    trips = 0

    def wait(self, *given: Any, **options: Any) -> Any:
        """Wait as ever, once more."""
        self.trips += 1
        return super().wait(*given, **options)


@pytest.fixture
def driver(postgres: str) -> Iterator[Counted]:
    """A connection with a table of numbers that is gone with it."""
    with Counted.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE TEMPORARY TABLE numbers (n bigint PRIMARY KEY)")
        yield connection


def numbers(driver: Counted) -> list[int]:
    """Return what the table has."""
    return [row[0] for row in driver.execute("SELECT n FROM numbers ORDER BY n")]


@pytest.mark.parametrize("prepares", [True, False])
def test_what_is_delayed_goes_with_the_next(prepares: bool, driver: Counted) -> None:
    """One round trip for all, and the rows are those of the last."""
    if not prepares:
        driver.prepare_threshold = None
    cursor = QuickCursor(driver)
    for number in (1, 2):
        cursor.delay("INSERT INTO numbers VALUES ($1)", (number,))
        assert numbers(driver) == list(range(1, number))
        driver.trips = 0
        rows = cursor.execute("SELECT $1::text || n, n, NULL FROM numbers ORDER BY n", ("n",)).fetchall()
        assert rows == [(f"n{n}", n, None) for n in range(1, number + 1)]
        assert driver.trips == (2 if prepares and number == 1 else 1)
        assert cursor.fetchone() == ("n1", 1, None)
    assert cursor.execute("SELECT n FROM numbers WHERE n = $1", (3,)).fetchone() is None
    assert cursor.fetchall() == []
    assert driver.execute(_PREPARED).fetchone() == ((3,) if prepares else (0,))


@pytest.mark.parametrize("fails", [0, 1, 2])
def test_what_fails_in_the_middle(fails: int, driver: Counted) -> None:
    """The error is the first one's, nothing of it all is done, and the connection is still of use."""
    cursor = QuickCursor(driver)
    insert = "INSERT INTO numbers VALUES ($1)"
    cursor.execute(insert, (7,))
    for number in range(2):
        cursor.delay(insert, (7 if number == fails else number,))
    with pytest.raises(psycopg.errors.UniqueViolation):
        cursor.execute(insert, (7,))
    assert numbers(driver) == [7]
    cursor.delay("BEGIN")
    cursor.delay(insert, (7,))
    with pytest.raises(psycopg.errors.UniqueViolation):
        cursor.execute("COMMIT")
    cursor.execute("ROLLBACK")
    assert cursor.execute("SELECT $1::bigint", (1,)).fetchone() == (1,)
    assert numbers(driver) == [7]


def test_a_commit_that_fails(driver: Counted) -> None:
    """By itself or at the end of a pipeline: what counts is the failure, also after rows were told."""
    driver.execute("CREATE TEMPORARY TABLE later (n bigint REFERENCES numbers DEFERRABLE INITIALLY DEFERRED)")
    cursor = QuickCursor(driver)
    insert = "INSERT INTO later VALUES ($1) RETURNING n"
    for statements in ([insert], [insert, insert], ["BEGIN", insert, "COMMIT"]):
        *before, last = [(each, (1,) if each is insert else ()) for each in statements]
        for statement, values in before:
            cursor.delay(statement, values)
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            cursor.execute(*last)
        assert driver.info.transaction_status == TransactionStatus.IDLE
        assert driver.execute("SELECT count(*) FROM later").fetchone() == (0,)


def test_a_server_that_goes_away(driver: Counted, postgres: str) -> None:
    """Between two statements, alone or many: an OperationalError, as psycopg's own cursors raise it."""
    for together in (False, True):
        with Counted.connect(postgres, autocommit=True) as other:
            cursor = QuickCursor(other)
            cursor.execute("SELECT 1")
            if together:
                cursor.delay("SELECT 1")
            driver.execute("SELECT pg_terminate_backend(%s, 5000)", (other.info.backend_pid,))
            with pytest.raises(psycopg.OperationalError):
                cursor.execute("SELECT 1")


def test_statements_that_somebody_lets_go_of(postgres: str) -> None:
    """psycopg does so after a rollback, a pooler between two sessions; or they are there already."""
    url = copy_of_template(postgres)
    with Ledger(url, catalog()) as ledger, Crowded(url, catalog()) as crowd:
        ledger.add_user("ann")
        balance = 1000
        for each in (ledger, crowd):
            for key in ("k", None):
                each.deduct("ann", 1, idempotency_key=key and f"{key} {each is crowd}")
            balance -= 2
            teller = each._teller
            for let_go in (True, False):
                if let_go:
                    teller._driver.execute("DEALLOCATE ALL")
                else:
                    teller._cursor._names.clear()
                for key in (None, "l"):
                    balance -= 1
                    key = key and f"{key} {each is crowd} {let_go}"
                    assert each.deduct("ann", 1, idempotency_key=key).balance == balance
        assert verify(ledger).problems == []


def test_a_pooler_that_keeps_no_statements(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who deducts is told what to set, and nothing was spent."""
    prepare = QuickCursor._prepare

    def forgotten(cursor: QuickCursor, statement: str) -> bytes:
        name = prepare(cursor, statement)
        cursor._driver.execute("DEALLOCATE ALL")
        return name

    with Ledger(copy_of_template(postgres), catalog()) as ledger:
        ledger.add_user("ann")
        monkeypatch.setattr(QuickCursor, "_prepare", forgotten)
        with pytest.raises(DatabaseError, match="prepare_threshold=none"):
            ledger.deduct("ann", 1)
        assert len(history(ledger, "ann")) == 1
        assert verify(ledger).problems == []
