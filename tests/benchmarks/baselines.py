"""What we are compared with: raw SQL by hand, and what a good developer writes first."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import Engine, event
from sqlmodel import Field, Session, SQLModel, create_engine, select

from polarcredits.ledger.ledger import Ledger
from polarcredits.plans import parse_catalog

COLUMNS = "account_id, sequence, type, amount, balance_after, operation, actor, occurred_at, recorded_at"
SCHEMA = """
CREATE TABLE balances (account_id BIGINT PRIMARY KEY, user_id TEXT NOT NULL UNIQUE,
 balance BIGINT NOT NULL, held BIGINT NOT NULL, sequence BIGINT NOT NULL);
CREATE TABLE entries (id {identity} PRIMARY KEY, account_id BIGINT NOT NULL,
 sequence BIGINT NOT NULL, type TEXT NOT NULL, amount BIGINT NOT NULL, balance_after BIGINT NOT NULL,
 operation TEXT, meta TEXT, actor TEXT NOT NULL, idempotency_key TEXT, request TEXT,
 occurred_at BIGINT NOT NULL, recorded_at BIGINT NOT NULL, UNIQUE (account_id, idempotency_key));
CREATE INDEX ix_entries_sequence ON entries (account_id, sequence);
"""
RICH = 10**12


def users(count: int) -> list[str]:
    """Return the user ids of a benchmark."""
    return [f"user-{number}" for number in range(count)]


def rich_ledger(url: str, count: int) -> Ledger:
    """Return an open ledger with users who can spend for ever."""
    ledger = Ledger(url, parse_catalog("", pro_product_id=None))
    with ledger.begin() as connection:
        for user in users(count):
            ledger.using(connection).grant(user, RICH, create=True)
    return ledger


def disk_out_of_the_way(engine: Engine) -> None:
    """Let SQLite connections opened from now on not wait for the disk."""
    engine.dispose()
    event.listen(engine, "connect", lambda driver, _record: driver.execute("PRAGMA synchronous=OFF"))


class RawSqlite:
    """The leanest hand-written program with the same rows on disk."""

    UPDATE = (
        "UPDATE balances SET balance = balance - ?, sequence = sequence + 1"
        " WHERE user_id = ? AND balance - held >= ? RETURNING account_id, sequence, balance"
    )
    INSERT = f"INSERT INTO entries ({COLUMNS}) VALUES (?, ?, 'deduct', ?, ?, 'api_call', 'api', ?, ?)"

    def __init__(self, path: Path, count: int, *, synchronous: str = "FULL") -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute(f"PRAGMA synchronous={synchronous}")
        self.connection.executescript(SCHEMA.format(identity="INTEGER"))
        rows = [(number, user, RICH) for number, user in enumerate(users(count))]
        self.connection.executemany("INSERT INTO balances VALUES (?, ?, ?, 0, 0)", rows)

    def deduct(self, user: str) -> None:
        """One deduction in one transaction."""
        self.connection.execute("BEGIN IMMEDIATE")
        self._statements(user)
        self.connection.execute("COMMIT")

    def deduct_batched(self, spenders: list[str]) -> None:
        """All of them in one transaction."""
        self.connection.execute("BEGIN IMMEDIATE")
        for user in spenders:
            self._statements(user)
        self.connection.execute("COMMIT")

    def _statements(self, user: str) -> None:
        execute = self.connection.execute
        account, sequence, balance = execute(self.UPDATE, (1, user, 1)).fetchone()
        now = time.time_ns() // 1000
        execute(self.INSERT, (account, sequence, -1, balance, now, now))


class RawPostgres:
    """One prepared statement in autocommit."""

    STATEMENT = f"""
    WITH moved AS (
     UPDATE balances SET balance = balance - %(amount)s, sequence = sequence + 1
     WHERE user_id = %(user)s AND balance - held >= %(amount)s RETURNING account_id, sequence, balance
    )
    INSERT INTO entries ({COLUMNS})
    SELECT account_id, sequence, 'deduct', -%(amount)s::bigint, balance, 'api_call', 'api',
     %(now)s::bigint, %(now)s::bigint FROM moved RETURNING account_id, sequence, balance_after
    """

    def __init__(self, url: str, count: int) -> None:
        self.connection: psycopg.Connection[Any] = psycopg.connect(url, autocommit=True)
        self.connection.execute(SCHEMA.format(identity="BIGINT GENERATED ALWAYS AS IDENTITY"))
        rows = [(number, user, RICH) for number, user in enumerate(users(count))]
        self.cursor = self.connection.cursor()
        self.cursor.executemany("INSERT INTO balances VALUES (%s, %s, %s, 0, 0)", rows)

    def deduct(self, user: str) -> None:
        """One deduction in one statement."""
        values = {"amount": 1, "user": user, "now": time.time_ns() // 1000}
        self.cursor.execute(self.STATEMENT, values, prepare=True).fetchone()


class NaiveUser(SQLModel, table=True):
    """A user with a balance."""

    __tablename__ = "naive_users"
    id: int | None = Field(default=None, primary_key=True)
    user_id: str = Field(unique=True)
    balance: int


class NaiveEntry(SQLModel, table=True):
    """A line of the naive ledger."""

    __tablename__ = "naive_entries"
    id: int | None = Field(default=None, primary_key=True)
    user_id: int = Field(index=True)
    amount: int
    balance_after: int
    operation: str
    idempotency_key: str | None = Field(default=None, unique=True)


class Naive:
    """What a good developer writes first: select, check, add, commit."""

    def __init__(self, path: Path, count: int) -> None:
        self.engine = create_engine(f"sqlite:///{path}")
        event.listen(self.engine, "connect", self._configure)
        tables = [SQLModel.metadata.tables[name] for name in ("naive_users", "naive_entries")]
        SQLModel.metadata.create_all(self.engine, tables=tables)
        with Session(self.engine) as session:
            session.add_all([NaiveUser(user_id=user, balance=RICH) for user in users(count)])
            session.commit()

    @staticmethod
    def _configure(driver: sqlite3.Connection, _record: object) -> None:
        driver.execute("PRAGMA journal_mode=WAL")
        driver.execute("PRAGMA synchronous=FULL")

    def deduct(self, user: str) -> None:
        """One deduction through the ORM."""
        with Session(self.engine) as session:
            owner = session.exec(select(NaiveUser).where(NaiveUser.user_id == user)).one()
            if owner.balance < 1 or owner.id is None:
                raise ValueError("insufficient")
            owner.balance -= 1
            session.add(owner)
            session.add(
                NaiveEntry(user_id=owner.id, amount=-1, balance_after=owner.balance, operation="api_call")
            )
            session.commit()


class PgLedger:
    """pgledger's transfers, from the file that PGLEDGER_SQL names; one connection a caller.

    Each user spends into an account of its own: into one for all, every transfer would wait for it.
    """

    def __init__(self, url: str, count: int) -> None:
        self.url = url
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(Path(os.environ["PGLEDGER_SQL"]).read_bytes())
            self.accounts = [self._account(connection, name) for name in users(count)]
            self.spent = [self._account(connection, f"spent by {name}") for name in users(count)]

    @staticmethod
    def _account(connection: psycopg.Connection[Any], name: str) -> str:
        query = "SELECT id FROM pgledger_create_account(%s, 'CREDITS')"
        row = connection.execute(query, (name,)).fetchone()
        if row is None:
            raise LookupError(name)
        return str(row[0])

    def caller(self) -> psycopg.Connection[Any]:
        """Return a connection of one caller."""
        return psycopg.connect(self.url, autocommit=True)

    def deduct(self, connection: psycopg.Connection[Any], number: int) -> None:
        """Transfer one credit away."""
        user = number % len(self.accounts)
        query = "SELECT id FROM pgledger_create_transfer(%s, %s, 1)"
        connection.execute(query, (self.accounts[user], self.spent[user]), prepare=True).fetchone()
