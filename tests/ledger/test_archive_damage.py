"""Every kind of damage is found and named after archiving too, and all that stands there is guarded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, exc, text

from polarcredits.ledger import schema
from polarcredits.ledger.laws import suspects
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.webhooks.fixtures import Story
from tests.ledger.archives import archive, count
from tests.ledger.conftest import copy_of_template
from tests.ledger.worlds import at, catalog, feed

GUARDED = ["credit_transactions", "openings", "grant_openings"]
FIRST = "(SELECT min(sequence) FROM openings WHERE account_id = 1)"
DAMAGE = [
    ("UPDATE openings SET balance = balance + 1", {"opening", "balance_after"}),
    (f"UPDATE openings SET balance = balance + 1 WHERE sequence = {FIRST}", {"opening"}),
    ("UPDATE openings SET occurred_at = occurred_at + 99999999999999", {"time"}),
    ("DELETE FROM grant_openings; DELETE FROM openings", {"gap", "balance_after", "grant"}),
    ("DELETE FROM grant_openings", {"opening", "grant"}),
    ("UPDATE grant_openings SET sequence = sequence + 1", {"opening"}),
    ("DELETE FROM openings", {"gap", "balance_after", "balance"}),
    (f"DELETE FROM openings WHERE sequence = {FIRST}", {"opening"}),
    ("DELETE FROM grant_openings WHERE type = 'reversal'", {"opening", "grant", "used"}),
    ("UPDATE grant_openings SET amount = amount + 1 WHERE type = 'grant'", {"opening", "grant"}),
    ("UPDATE grant_openings SET amount = amount - 1 WHERE type = 'deduct'", {"opening", "used"}),
    ("UPDATE grant_openings SET type = 'adjust' WHERE type = 'deduct'", {"used"}),
    ("INSERT INTO credit_transactions SELECT * FROM credit_transactions_archive", {"opening"}),
    ("INSERT INTO grant_draws SELECT * FROM grant_draws_archive", {"draws"}),
    (
        "DELETE FROM credit_transactions WHERE sequence = (SELECT min(sequence) FROM credit_transactions"
        " WHERE account_id = 1)",
        {"gap", "balance_after"},
    ),
    ("UPDATE credit_transactions SET balance_after = balance_after + 1", {"balance_after"}),
    ("DELETE FROM credit_transactions", {"balance", "sequence"}),
    ("UPDATE credit_balances SET balance = balance - 1", {"balance"}),
    ("UPDATE grants SET remaining = remaining + 1 WHERE source = 'lifetime'", {"grant"}),
]
"""Statements, which are confined to Ann's account, and laws that must be named."""

DAMAGE_ALONE = [
    ("UPDATE credit_transactions SET amount = amount - 1", {"balance_after"}),
    (
        "INSERT INTO credit_transactions SELECT * FROM credit_transactions_archive WHERE type = 'deduct'",
        {"opening"},
    ),
]
"""The same on Cid's: deductions that no grant and no predecessor, but the openings alone can speak of."""


@pytest.fixture(scope="module")
def opened(postgres: str) -> Iterator[Ledger]:
    """Ann and Ben, who were archived twice and have some entries left, and Cid, of whom one is."""
    url = copy_of_template(postgres)
    with Ledger(url, catalog()) as ledger:
        for name in ("ann", "ben"):
            life = Story(name, at=at("04-01"))
            feed(ledger, life.purchase("pro"))
            spent = [ledger.deduct(name, 7 + n, at=at("04-02")) for n in range(4)]
            ledger.reverse(spent[1].transaction.id, at=at("04-03"))
            feed(ledger, life.renewal(at("05-01")))
            ledger.deduct(name, 3, at=at("05-02"))
            ledger.deduct(name, 4, at=at("05-03"))
            ledger.grant(name, 4, at=at("05-04"))
            ledger.deduct(name, 5, at=at("05-05"))
        ledger.grant("cid", 50, create=True, at=at("04-01"))
        ledger.deduct("cid", 5, at=at("05-01"))
        ledger.grant("cid", 50, at=at("05-02"))
        ledger.deduct("cid", 6, at=at("05-05"))
        archive(url, at("04-30"))
        archive(url, at("05-04"))
        yield ledger


def harm(connection: Connection, damage: str, account: int) -> None:
    """Run the statements of *damage* on one account; each must hit something."""
    for table in GUARDED:
        connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
    for statement in damage.split(";"):
        joint = "AND" if "WHERE" in re.sub("[(].*[)]", "", statement) else "WHERE"
        sql = f"{statement} {joint} account_id = {account}"
        assert connection.execute(text(sql)).rowcount > 0


def test_nobody_is_suspected(opened: Ledger) -> None:
    """What is archived and undamaged is not looked at account by account."""
    assert count(opened, "openings") == 6
    assert suspects(opened, lambda done, total: None) == set()


@pytest.mark.parametrize(
    ("user", "damage", "laws"),
    [*(("ann", *each) for each in DAMAGE), *(("cid", *each) for each in DAMAGE_ALONE)],
)
def test_damage_is_named(user: str, damage: str, laws: set[str], opened: Ledger) -> None:
    """Both the look at everybody and the look at one user name it; nobody else is accused."""
    with opened.rehearse() as stage:
        stage.reading(lambda connection: harm(connection, damage, {"ann": 1, "cid": 3}[user]))
        found = verify(stage).problems
        assert laws <= {problem.code for problem in found}
        assert {problem.user for problem in found} == {user}
        assert verify(stage, user=user).problems == found
        assert verify(stage, user="ben").problems == []
    assert verify(opened).problems == []


@pytest.mark.parametrize("table", [*GUARDED, "credit_transactions_archive", "grant_draws_archive"])
@pytest.mark.parametrize("verb", ["UPDATE {} SET account_id = 2", "DELETE FROM {}", "TRUNCATE {} CASCADE"])
def test_all_is_guarded_afterwards(table: str, verb: str, opened: Ledger) -> None:
    """The entries as before, what was archived, and what stands for it."""
    before = count(opened, table)
    with pytest.raises(exc.DBAPIError, match="append-only"), opened.database.writer.begin() as connection:
        connection.execute(text(verb.format(table)))
    assert count(opened, table) == before > 0


@pytest.mark.parametrize("name", ["openings", "grant_openings"])
def test_openings_are_guarded_on_sqlite(name: str, tmp_path: Path) -> None:
    """The tables are the same there, and so is what may be done with them."""
    with Ledger(f"sqlite:///{tmp_path / 'credits.db'}", catalog()) as ledger:
        ledger.add_user("ann")
        rows = {"openings": "(1, 1, 1000, 1, 1)", "grant_openings": "(1, 1, 1, 'grant', 1000, 1)"}
        with ledger.begin() as connection:
            for table, row in rows.items():
                connection.execute(text(f"INSERT INTO {table} VALUES {row}"))
        for sql in ("UPDATE {} SET sequence = 2", "DELETE FROM {}", "INSERT OR REPLACE INTO {} VALUES {}"):
            with (
                pytest.raises(exc.IntegrityError, match="append-only"),
                ledger.database.writer.begin() as connection,
            ):
                connection.execute(text(sql.format(name, rows[name])))
        assert count(ledger, name) == 1
        assert {problem.code for problem in verify(ledger).problems} == {"opening", "grant"}


def test_openings_are_not_migrated_away(opened: Ledger, ledger: Ledger) -> None:
    """Where nothing is archived the tables go and come."""
    config = Config()
    config.set_main_option("script_location", str(schema.migrations_directory()))
    for each in (ledger, opened):
        with each.database.writer.connect() as connection, connection.begin() as transaction:
            config.attributes["connection"] = connection
            if each is opened:
                with pytest.raises(RuntimeError, match="archived"):
                    command.downgrade(config, "0005")
            else:
                command.downgrade(config, "0005")
                command.upgrade(config, "head")
            transaction.rollback()
    assert count(ledger, "openings") == 0
    assert verify(opened).problems == []
