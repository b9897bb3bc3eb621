"""What an operator may have set for a PostgreSQL database, and what the ledger makes of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from polarcredits.doctor import check_database
from polarcredits.errors import DatabaseError
from polarcredits.ledger import failing, schema
from polarcredits.ledger.database import Database
from polarcredits.ledger.hotpath import Spent
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.values import Receipt
from polarcredits.ledger.verify import verify
from polarcredits.ledger.views import history
from tests.ledger.conftest import copy_of_template, named
from tests.ledger.fronts import Crowded
from tests.ledger.worlds import all_wait, at, catalog, dump, requested


def with_settings(postgres: str, *settings: str) -> str:
    """Return the URL of an empty database that has settings of its own."""
    url = copy_of_template(postgres)
    with psycopg.connect(url, autocommit=True) as connection:
        for each in settings:
            connection.execute(f"ALTER DATABASE {connection.info.dbname} SET {each}".encode())
    return url


@pytest.mark.parametrize("front", [Ledger, Crowded])
@pytest.mark.parametrize(
    "setting",
    [
        "default_transaction_isolation = serializable",
        "client_encoding = latin1",
        "standard_conforming_strings = off",
        "array_nulls = off",
        "bytea_output = escape",
        "datestyle = 'SQL, DMY'",
        "timezone = 'Asia/Tokyo'",
        "plan_cache_mode = force_generic_plan",
        "search_path = elsewhere, public",
    ],
)
def test_work_goes_on_as_ever(setting: str, front: type[Ledger], postgres: str) -> None:
    """Deductions alone and in company, names and texts of any alphabet, and none where there is none."""
    with front(with_settings(postgres, setting), catalog()) as ledger:
        ledger.add_user("安")
        told = {"note": "\\ ' é 安"}
        with ledger.begin() as connection:
            ledger.using(connection).deduct("安", 1, metadata=told)
        spent = ledger.deduct("安", 1, metadata=told, idempotency_key="é")
        assert spent.transaction.metadata == told
        ledger.reverse(spent.transaction.id)
        for _ in range(2):
            ledger.deduct("安", 1)
        bare = history(ledger, "安")[0]
        assert (bare.metadata, bare.idempotency_key) == (None, None)
        with ledger.begin() as connection:
            unkeyed = "SELECT count(request) FROM credit_transactions WHERE idempotency_key IS NULL"
            assert connection.exec_driver_sql(unkeyed).scalar_one() == 0
        with ledger.hold("安", 5) as hold:
            hold.capture(2)
        assert ledger.balance("安").balance == 995
        assert verify(ledger).problems == []


@pytest.mark.parametrize(
    "text", ["NULL", "{}", "{a,b}", "a,b", '"', "\\", '\\"', "\\\\x41", " a ", "a}", "'", "$1"]
)
def test_texts_that_mean_something_in_an_array(text: str, postgres: str) -> None:
    """A user, an operation, a key and metadata of a batch are kept as they were given."""
    user = text.strip()
    with Crowded(copy_of_template(postgres), catalog()) as ledger:
        ledger.add_user(user)
        given: dict[str, Any] = {"operation": text, "metadata": {text: text}, "idempotency_key": text}
        spent = ledger.deduct(user, 1, **given)
        again = ledger.deduct(user, 1, **given)
        assert again == Receipt(spent.transaction, 999, 999, replayed=True) != spent
        kept = history(ledger, user)[0]
        assert (kept.operation, kept.metadata, kept.idempotency_key) == tuple(given.values())
        assert ledger.balance(user).balance == 999


def test_a_server_that_ends_connections_in_the_middle(postgres: str) -> None:
    """Whatever is acknowledged is there, and who was not answered is told so in our words."""
    url = copy_of_template(postgres)
    spent, unknown = 0, 0
    with Ledger(url, catalog()) as ledger, ThreadPoolExecutor(1) as pool:
        ledger.grant("ann", 10**6, create=True)
        working = True

        def end_connections() -> None:
            with psycopg.connect(url, autocommit=True) as connection:
                while working:
                    connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND random() < 0.5"
                    )

        ending = pool.submit(end_connections)
        while unknown < 100:
            try:
                ledger.deduct("ann", 1)
                spent += 1
            except DatabaseError:
                unknown += 1
        working = False
        ending.result(30)
        assert spent <= len(history(ledger, "ann", type="deduct", limit=10**6)) <= spent + unknown
        assert verify(ledger).problems == []


def test_what_cannot_be_kept_fails_alone(postgres: str) -> None:
    """In a database of one alphabet, a name of another leaves those of the same batch alone."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    url = named(postgres, "latin")
    database = Database(url)
    schema.upgrade(database)
    database.close()
    with Ledger(url, catalog()) as ledger:
        for user in ("ann", "bob"):
            ledger.add_user(user)
        batch = [requested(ledger, user) for user in ("ann", "安", "bob")]
        first, refused, last = ledger._teller.spend(batch)
        assert isinstance(first, Spent)
        assert isinstance(refused, DatabaseError)
        assert isinstance(last, Spent)
        assert (first.balance, last.balance) == (999, 999)
        with pytest.raises(DatabaseError, match="LATIN1"):
            ledger.deduct("安", 1)
        assert [len(history(ledger, user)) for user in ("ann", "bob")] == [2, 2]


def test_many_callers_where_transactions_are_repeatable_by_default(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours are READ COMMITTED, each of them: nobody who waited for a row has to try again."""
    monkeypatch.setattr(failing, "_TRIES", 1)
    url = with_settings(postgres, "default_transaction_isolation = 'repeatable read'")
    with Ledger(url, catalog()) as ledger, Ledger(url, catalog()) as other, ThreadPoolExecutor(8) as pool:
        ledger.grant("ann", 1, create=True)
        with other.begin() as connection, psycopg.connect(url, autocommit=True) as watch:
            other.using(connection).deduct("ann", 1)
            waits = pool.submit(ledger.deduct, "ann", 1)
            all_wait(watch, 1)
        assert waits.result(30).balance == 999
        ledger.grant("ann", 1)
        calls = [
            pool.submit(each.deduct, "ann", 1, idempotency_key=key)
            for number in range(100)
            for each in (ledger, other)
            for key in (None, f"{number} {each is other}")
        ]
        assert [call.exception() for call in calls] == [None] * 400
        assert ledger.balance("ann").balance == 600
        level = ledger.database.write(lambda c: c.exec_driver_sql("SHOW transaction_isolation").scalar())
        assert level == "read committed"


def test_a_database_that_is_read_only(postgres: str) -> None:
    """Refused in the database's own words, and nothing moves."""
    url = with_settings(postgres)
    with Ledger(url, catalog()) as ledger:
        ledger.add_user("ann")
        before = dump(ledger)
        with psycopg.connect(url, autocommit=True) as connection:
            name = connection.info.dbname
            connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
        with Ledger(url, catalog()) as later, pytest.raises(DatabaseError, match="read-only"):
            later.deduct("ann", 1)
        assert dump(ledger) == before


@pytest.mark.parametrize(("commit", "told"), [("on", "fsync off"), ("off", "fsync, synchronous_commit off")])
def test_doctor_warns_of_a_database_that_forgets(commit: str, told: str, postgres: str) -> None:
    """Where a commit is acknowledged before it is on disk; the server of these tests has no fsync."""
    url = with_settings(postgres, f"synchronous_commit = {commit}")
    [found] = [
        each
        for each in check_database(lambda: Ledger(url, catalog()), at("04-01"))
        if each.name == "durability"
    ]
    assert (found.status, found.detail) == ("warn", f"{told}: a crash can lose what was acknowledged")


def test_doctor_has_nothing_to_say_of_sqlite(tmp_path: Path) -> None:
    """The program itself has it write through."""
    url = f"sqlite:///{tmp_path / 'credits.db'}"
    found = {each.name for each in check_database(lambda: Ledger(url, catalog()), at("04-01"))}
    assert "ledger" in found
    assert "durability" not in found
