"""The database is made once, whole, and never used out of date."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text

from polarcredits.errors import DatabaseError
from polarcredits.ledger import failing, schema
from polarcredits.ledger.database import Database
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.lots import EntryType
from polarcredits.refill import refill
from polarcredits.webhooks.fixtures import Story
from tests.ledger.conftest import copy_of_template
from tests.ledger.worlds import all_wait, at, catalog, dump, feed, move, told_by


def test_head_is_the_newest_migration() -> None:
    """The constant that start-up compares with."""
    config = Config()
    config.set_main_option("script_location", str(schema.migrations_directory()))
    assert ScriptDirectory.from_config(config).get_current_head() == schema.HEAD


def test_alembic_alone_makes_the_same_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own command, where no file is yet: one that the program then uses, of the owner alone."""
    file = tmp_path / "new.db"
    monkeypatch.setenv("POLARCREDITS_DATABASE_URL", f"sqlite:///{file}")
    config = Config()
    config.set_main_option("script_location", str(schema.migrations_directory()))
    command.upgrade(config, "head")
    assert file.stat().st_mode & 0o077 == 0
    with Ledger(f"sqlite:///{file}", catalog()) as ledger:
        ledger.add_user("mia")
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def _open(url: str, barrier: threading.Barrier, number: int) -> None:
    barrier.wait()
    with Ledger(url, catalog()) as ledger:
        ledger.add_user(f"user-{number}")


def test_many_processes_that_start_at_once_make_one_database(tmp_path: Path) -> None:
    """Nobody's user is lost, and no draft is left behind."""
    url = f"sqlite:///{tmp_path / 'new.db'}"
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        barrier = manager.Barrier(4)
        workers = [context.Process(target=_open, args=(url, barrier, n)) for n in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    with Ledger(url, catalog()) as ledger:
        assert verify(ledger).users == 4
    assert not [file for file in tmp_path.iterdir() if not file.name.startswith("new.db")]


def _refill(url: str, barrier: threading.Barrier) -> None:
    with Ledger(url, catalog(), actor="refill") as ledger:
        barrier.wait()
        refill(ledger, at=at("03-15"))


def test_two_refills_at_once_grant_once(url: str) -> None:
    """§1.4: cron running twice at once ends in the same ledger."""
    with Ledger(url, catalog()) as ledger:
        for number in range(30):
            life = Story(f"u{number}", at=at("01-31"), interval="year")
            created = [e for e in life.purchase("pro-year") if e["type"] == "subscription.created"]
            feed(ledger, created)
        context = multiprocessing.get_context("spawn")
        with context.Manager() as manager:
            barrier = manager.Barrier(2)
            workers = [context.Process(target=_refill, args=(url, barrier)) for _ in range(2)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0]
        assert refill(ledger, at=at("03-15")).considered == 0
        for number in range(30):
            assert told_by(ledger, f"u{number}", at("03-15") + timedelta(hours=1)).balance.balance == 6000
        assert verify(ledger).transactions == 30 * 4


def test_a_damaged_account_stops_nobody_elses_refill(ledger: Ledger) -> None:
    """The report names it; everybody else is refilled."""
    for name in ("ann", "ben", "cid"):
        feed(ledger, Story(name, at=at("01-31"), interval="year").purchase("pro-year"))
    with ledger.begin() as connection:
        wrong = text("UPDATE credit_balances SET unsettled = 99999 WHERE account_id = 2")
        connection.execute(wrong)
    report = refill(ledger, at=at("03-15"))
    assert [failure["user"] for failure in report.failed] == ["ben"]
    assert report.granted == 2


def test_time_does_not_run_back(ledger: Ledger) -> None:
    """A clock that was set back withdraws nothing that a later one had granted."""
    life = Story("ann", at=at("01-31"), interval="year")
    feed(ledger, life.purchase("pro-year"))
    refill(ledger, at=at("03-15"))
    before = told_by(ledger, "ann", at("03-15")).grants
    refill(ledger, at=at("02-10"), user="ann")
    feed(ledger, life.cancel_at_period_end(at("02-11")), now=at("02-11"))
    after = told_by(ledger, "ann", at("03-15")).grants
    assert [(lot.key, lot.remaining) for lot in after] == [(lot.key, lot.remaining) for lot in before]


def test_entries_made_anew_are_the_same_entries_and_as_well_guarded(tmp_path: Path) -> None:
    """Back to 0006 and up again: rows, guards and somebody's own index stay."""
    file = tmp_path / "ledger.db"
    with Ledger(f"sqlite:///{file}", catalog()) as ledger:
        for name in ("ann", "ben"):
            ledger.add_user(name)
        for number, name in enumerate(("ann", "ben", "ann")):
            ledger.deduct(name, 2, idempotency_key=f"key-{number}")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE INDEX of_the_team ON credit_transactions (recorded_at)")
        connection.execute("CREATE VIEW for_the_team AS SELECT sum(amount) FROM credit_transactions")

    def state() -> tuple[list[Any], set[Any], str]:
        with closing(sqlite3.connect(file)) as connection:
            entries = connection.execute("SELECT * FROM credit_transactions ORDER BY 1, 2").fetchall()
            of_it = "SELECT type, name, sql FROM sqlite_master WHERE tbl_name = 'credit_transactions'"
            beside = {row for row in connection.execute(of_it) if row[0] != "table" and row[2]}
            (table,) = connection.execute(f"{of_it} AND type = 'table'").fetchone()[2:]
            return entries, beside, table

    now = entries, beside, table = state()
    assert len(entries) == 5
    assert {name for _, name, _ in beside} >= {"of_the_team", "credit_transactions_no_replace"}
    assert "type IN" not in table
    move(f"sqlite:///{file}", "0006")
    assert state()[:2] == (entries, beside)
    assert "type IN" in state()[2]
    move(f"sqlite:///{file}", "head")
    assert state() == now
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT * FROM for_the_team").fetchone() == (2000 - 6,)
    with Ledger(f"sqlite:///{file}", catalog()) as ledger:
        assert ledger.deduct("ann", 2, idempotency_key="key-0").replayed
        assert verify(ledger).transactions == 5


_ENTRY = """
INSERT INTO credit_transactions (account_id, sequence, type, amount, balance_after, actor, occurred_at,
 recorded_at) VALUES (1, :sequence, :type, 1, 1, 'api', 0, 0)
"""


def test_entries_have_the_types_that_there_are_and_no_other(ledger: Ledger) -> None:
    """The database itself refuses another (§6)."""
    ledger.add_user("ann")
    for sequence, kind in enumerate(get_args(EntryType), 100):
        with ledger.begin() as connection:
            connection.execute(text(_ENTRY), {"sequence": sequence, "type": kind})
    with pytest.raises(DatabaseError, match="type"), ledger.begin() as connection:
        connection.execute(text(_ENTRY), {"sequence": 200, "type": "gift"})
    with ledger.database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM credit_transactions")).scalar() == 8


UNSOUND = [
    "UPDATE credit_balances SET held = -1",
    "UPDATE credit_balances SET closed = 2",
    "INSERT INTO credit_transactions (account_id, sequence, type, amount, balance_after, actor, occurred_at,"
    " recorded_at) VALUES (1, 9, 'grant', 0, 0, 'api', 0, 0)",
]


def _refuses(ledger: Ledger, unsound: str) -> None:
    before = dump(ledger)
    with pytest.raises(DatabaseError, match=r"constraint.*ck_"), ledger.begin() as connection:
        connection.execute(text(unsound))
    assert dump(ledger) == before


@pytest.mark.parametrize("unsound", UNSOUND)
def test_rows_that_cannot_be_are_refused(unsound: str, ledger: Ledger) -> None:
    """By the database itself, and by the name of the rule (§6)."""
    ledger.add_user("ann")
    _refuses(ledger, unsound)


def test_the_rules_of_columns_move_into_domains_and_back(postgres: str) -> None:
    """With all that is there; not beside a view of such a column, which is named."""
    url = copy_of_template(postgres)
    with Ledger(url, catalog()) as ledger:
        ledger.add_user("ann")
        ledger.deduct("ann", 3)
        ledger.hold("ann", 5)
        before = dump(ledger)
    for revision in ("0007", "head"):
        _run(url, "CREATE VIEW spending AS SELECT -amount AS spent FROM credit_transactions")
        with pytest.raises(DatabaseError, match=r"views spending show"):
            move(url, revision)
        _run(url, "DROP VIEW spending", "CREATE OR REPLACE VIEW counted AS SELECT count(*) FROM holds")
        move(url, revision)
        with Ledger(url, catalog(), database=Database(url)) as ledger:
            assert dump(ledger) == before
            for unsound in UNSOUND:
                _refuses(ledger, unsound)
    with Ledger(url, catalog()) as ledger:
        assert ledger.deduct("ann", 3).balance == 994
        assert verify(ledger).problems == []


def test_the_rules_move_beside_whoever_spends(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The migration waits for a balance before it locks the entries, as they do."""
    monkeypatch.setattr(failing, "_TRIES", 1)
    url = copy_of_template(postgres)
    with Ledger(url, catalog()) as ledger:
        ledger.add_user("ann")
        ledger.deduct("ann", 1)
    move(url, "0007")
    with (
        closing(Database(url)) as database,
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(url) as spending,
        psycopg.connect(url, autocommit=True) as watch,
    ):
        spending.execute("UPDATE credit_balances SET balance = balance - 1, sequence = sequence + 1")
        upgrading = pool.submit(schema.upgrade, database)
        all_wait(watch, 1)
        spending.execute(
            "INSERT INTO credit_transactions SELECT account_id, 3, type, amount, balance_after - 1, grant_id,"
            " operation, reason, meta, actor, idempotency_key, request, reverses_account, reverses_sequence,"
            " occurred_at, recorded_at FROM credit_transactions WHERE sequence = 2"
        )
        spending.commit()
        upgrading.result(30)
        assert database.read(schema.current) == schema.HEAD


def test_what_runs_goes_on_after_a_migration(postgres: str) -> None:
    """Its statements were prepared for columns of other types, on every connection that it has."""
    url = copy_of_template(postgres)

    def work(ledger: Ledger) -> None:
        ledger.deduct("ann", 1)
        ledger.grant("ann", 2)
        with ledger.hold("ann", 1):
            assert ledger.balance("ann").held >= 1

    with Ledger(url, catalog()) as ledger, ThreadPoolExecutor(4) as pool:
        ledger.add_user("ann")
        for revision in ("0007", "head", None):
            for done in [pool.submit(work, ledger) for _ in range(40)]:
                done.result(30)
            if revision:
                move(url, revision)
        assert verify(ledger).problems == []


def _run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())
