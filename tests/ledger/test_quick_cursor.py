"""PostgreSQL: the statements of the hot path, how often they go to the server, and how they fail."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import generators
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult
from sqlalchemy import text

from polarcredits.errors import DatabaseBusy, DatabaseError
from polarcredits.ledger import setwise, teller
from polarcredits.ledger.hotpath import Spent
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.quick_cursor import QuickCursor
from polarcredits.ledger.verify import verify
from polarcredits.ledger.views import history
from tests.ledger.conftest import copy_of_template
from tests.ledger.fronts import Crowded
from tests.ledger.worlds import catalog, requested

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


@pytest.mark.parametrize("prepares", [True, False])
@pytest.mark.parametrize("fails", [0, 1, 2])
def test_what_fails_in_the_middle(fails: int, prepares: bool, driver: Counted) -> None:
    """The error is the first one's, nothing of it all is done, and the connection is still of use."""
    if not prepares:
        driver.prepare_threshold = None
    cursor = QuickCursor(driver)
    insert = "INSERT INTO numbers VALUES ($1)"
    cursor.execute(insert, (7,))
    for number in range(2):
        cursor.delay(insert, (7 if number == fails else number,))
    with pytest.raises(psycopg.errors.UniqueViolation):
        cursor.execute(insert, (7,))
    assert numbers(driver) == [7]
    with pytest.raises(psycopg.errors.UniqueViolation):
        cursor.execute(insert, (7,))
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


def test_a_statement_has_one_name_on_every_connection(driver: Counted, postgres: str) -> None:
    """Sessions behind one pooler mean the same by it."""
    with Counted.connect(postgres, autocommit=True) as other:
        for number, each in ((1, driver), (2, other)):
            cursor = QuickCursor(each)
            for statement in ("SELECT 1", "SELECT 2")[:: 3 - 2 * number]:
                cursor.execute(statement)
        names = [
            dict(each.execute("SELECT statement, name FROM pg_prepared_statements"))
            for each in (driver, other)
        ]
    assert names[0] == names[1]
    assert len(names[0]) == 2


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
            for let_go in (True, False):
                if let_go:
                    each._teller._driver.execute("DEALLOCATE ALL")
                else:
                    each._teller._cursor._names.clear()
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


def test_a_connection_on_which_a_batch_did_not_end(postgres: str) -> None:
    """A signal may keep it from being closed; it is not used again, whatever was about to be sent on it."""
    url = copy_of_template(postgres)
    with Ledger(url, catalog()) as ledger, psycopg.connect(url, autocommit=True) as admin:
        for user in ("ann", "bob"):
            ledger.add_user(user)
        assert ledger.deduct("ann", 1).balance == 999

        def interrupted() -> None:
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ledger._teller, "close", interrupted)
            admin.execute("ALTER TABLE credit_balances RENAME TO elsewhere")
            with pytest.raises(KeyboardInterrupt):
                ledger._teller.spend([requested(ledger, user) for user in ("ann", "bob")])
            admin.execute("ALTER TABLE elsewhere RENAME TO credit_balances")
        for balance in (998, 997):
            assert ledger.deduct("ann", 1).balance == balance
            assert admin.execute("SELECT min(balance) FROM credit_balances").fetchone() == (balance,)


def test_why_the_server_ended_a_connection(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it said before it went away is told, also in the middle of a batch; nothing was spent."""
    url = copy_of_template(postgres)
    with psycopg.connect(url, autocommit=True) as admin:
        name = admin.info.dbname
        admin.execute(f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = 50".encode())
    decide = setwise._decide

    def slowly(*given: Any) -> Any:
        time.sleep(0.3)
        return decide(*given)

    with Crowded(url, catalog()) as crowd:
        crowd.add_user("ann")
        monkeypatch.setattr(setwise, "_decide", slowly)
        with pytest.raises(DatabaseError, match="idle-in-transaction"):
            crowd.deduct("ann", 1)
        monkeypatch.undo()
        assert crowd.deduct("ann", 1).balance == 999


@pytest.mark.parametrize("why", [True, False])
def test_a_server_that_says_why_and_goes_away(
    why: bool, driver: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its words may come before the end of the connection is seen, or with it."""
    left = [driver.pgconn.make_empty_result(ExecStatus.FATAL_ERROR)] if why else []

    def fetch(_: object) -> Generator[None, None, list[PGresult]]:
        yield from ()
        if not left:
            raise psycopg.OperationalError("gone")
        return [left.pop()]

    cursor = QuickCursor(driver)
    cursor.delay("SELECT 1")
    monkeypatch.setattr(generators, "fetch_many", fetch)
    with pytest.raises(psycopg.Error) as told:
        cursor.execute("SELECT 1")
    assert ("gone" in str(told.value)) is not why
    driver.close()


def test_a_driver_that_gives_no_answer(driver: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing counts as done then."""

    def execute(_: object) -> Generator[None, None, list[PGresult]]:
        yield from ()
        return []

    cursor = QuickCursor(driver)
    cursor.execute("SELECT 1")
    monkeypatch.setattr(generators, "execute", execute)
    with pytest.raises(psycopg.OperationalError, match="no answer"):
        cursor.execute("SELECT 1")
    driver.close()


def test_what_is_not_locked_by_others_stays_locked_until_it_is_written(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a batch goes on without those whose rows somebody has; then no lock waits shorter."""
    url = copy_of_template(postgres)
    decide = setwise._decide
    tried: list[int] = []

    def watched(*given: Any) -> Any:
        with psycopg.connect(url) as other:
            want = f"SELECT FROM credit_balances WHERE account_id = {bob} FOR UPDATE NOWAIT".encode()
            with pytest.raises(psycopg.errors.LockNotAvailable):
                other.execute(want)
        tried.append(bob)
        return decide(*given)

    with Ledger(url, catalog()) as ledger, psycopg.connect(url) as locked:
        for user in ("ann", "bob"):
            ledger.add_user(user)
        find = "SELECT account_id FROM credit_balances ORDER BY account_id"
        (ann,), (bob,) = locked.execute(find).fetchall()
        locked.execute(f"SELECT FROM credit_balances WHERE account_id = {ann} FOR UPDATE".encode())
        monkeypatch.setattr(setwise, "_decide", watched)
        missed, spent = ledger._teller.spend([requested(ledger, user) for user in ("ann", "bob")])
        assert (missed, isinstance(spent, Spent), len(tried)) == (None, True, 1)
        ledger._teller.spend([requested(ledger, "bob")] * 2)
        driver = ledger._teller._driver
        assert driver.execute("SHOW lock_timeout").fetchone() == ("0",)


def test_a_connection_that_was_long_idle_is_looked_at_first(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server may be another by now; whoever spends does not notice."""
    url = copy_of_template(postgres)
    with Ledger(url, catalog()) as ledger, psycopg.connect(url, autocommit=True) as admin:
        ledger.add_user("ann")
        ledger.deduct("ann", 1)
        for seconds, told in ((3600.0, DatabaseError), (0.0, None)):
            monkeypatch.setattr(teller, "_STALE_SECONDS", seconds)
            pid = ledger._teller._driver.info.backend_pid
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
            if told:
                with pytest.raises(told, match="terminating connection"):
                    ledger.deduct("ann", 1)
                ledger.deduct("ann", 1)
            else:
                assert ledger.deduct("ann", 1).balance == 997


def test_an_applications_own_transaction_fails_in_our_words(postgres: str) -> None:
    """Also with what we would run again ourselves."""
    with Ledger(copy_of_template(postgres), catalog()) as ledger:
        ledger.add_user("ann")

        def behind_a_pooler() -> None:
            with ledger.begin() as connection:
                joined = ledger.using(connection)
                for _ in range(8):
                    joined.balance("ann")
                driver = connection.connection.driver_connection
                assert isinstance(driver, psycopg.Connection)
                driver.pgconn.exec_(b"DEALLOCATE ALL")
                joined.balance("ann")

        with pytest.raises(DatabaseError, match="prepare_threshold=none"):
            behind_a_pooler()
        lost = text("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")
        with pytest.raises(DatabaseBusy), ledger.begin() as connection:
            connection.execute(lost)
        assert ledger.balance("ann").balance == 1000
