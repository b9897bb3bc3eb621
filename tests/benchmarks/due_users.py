"""A database of many yearly subscribers with monthly allowances, half of whom have spent, made quickly.

A few users are made the ordinary way; all others are copies of their rows under other names. `check`
holds the copies to what the program itself writes for such users. The inbox's raw events are left out.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import select

from polarcredits.ledger import schema
from polarcredits.ledger import tables as t
from polarcredits.ledger.ledger import Ledger
from polarcredits.webhooks.fixtures import Story, make_id
from polarcredits.webhooks.inbox import Inbox
from polarcredits.webhooks.reading import BarePayload
from tests.ledger.worlds import catalog

KINDS = 8
"""Users differ in the day they began and in what they spent: every other one nothing, one too much."""
SPENT = (0, 137, 0, 4999, 0, 1, 0, 5400)
TABLES = (
    t.accounts,
    t.balances,
    t.grants,
    t.outlooks,
    t.transactions,
    t.observations,
    t.customers,
    t.subscriptions,
    t.terms,
)
CHUNK = 20_000
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Made:
    """A user that was made by a webhook; all its texts differ from another's by `words` alone."""

    user: str
    raw: str
    words: tuple[str, ...]

    @property
    def event(self) -> str:
        """The id under which the inbox takes the event."""
        return make_id(self.raw)


def user_name(number: int) -> str:
    """Return a name; all are as long."""
    return f"user-{number:08}"


def ordinary(number: int, now: datetime) -> Made:
    """Return user *number* and the one event that makes it."""
    user, kind = user_name(number), number % KINDS
    life = Story(user, at=now - timedelta(days=2 * kind + 2, seconds=kind), interval="year")
    payload = next(event for event in life.purchase("pro-year") if event["type"] == "subscription.created")
    return Made(user, json.dumps(payload, sort_keys=True), (user, life.customer["id"], payload["data"]["id"]))


def make(ledger: Ledger, numbers: range, now: datetime) -> None:
    """Make users the ordinary way: a webhook each, and a deduction now for those who spend."""
    inbox = Inbox(ledger, environment="sandbox", secrets=[])
    for number in numbers:
        made = ordinary(number, now)
        payload = json.loads(made.raw)
        element = BarePayload(where="made", id=made.event, payload=payload, raw=made.raw.encode())
        time = datetime.fromisoformat(payload["timestamp"])
        assert inbox.ingest(element, now=time, unsigned=True).status == "applied"
        if SPENT[number % KINDS]:
            ledger.deduct(made.user, SPENT[number % KINDS])


class Copies:
    """Rows of any user, copied from those of the first ones."""

    def __init__(self, ledger: Ledger, now: datetime) -> None:
        make(ledger, range(1, KINDS + 1), now)
        self._made = {number % KINDS: (number, ordinary(number, now)) for number in range(1, KINDS + 1)}
        self._rows: dict[int, list[tuple[str, Row]]] = {kind: [] for kind in range(KINDS)}
        self._shifted: dict[str, dict[int, int]] = {}
        with ledger.database.engine.connect() as connection:
            for table in TABLES:
                names = [column.name for column in table.columns]
                per_user = {"accounts": {"id": 1}, "grants": {"id": 2, "account_id": 1}}
                shifts = per_user.get(table.name, {"account_id": 1, "grant_id": 2})
                self._shifted[table.name] = {names.index(n): by for n, by in shifts.items() if n in names}
                for row in connection.execute(select(table).order_by(*table.primary_key)):
                    self._rows[self._whose(tuple(row))].append((table.name, tuple(row)))

    def _whose(self, row: Row) -> int:
        text = repr(row)
        own = [
            kind for kind, (_, made) in self._made.items() if any(word in text for word in self._words(made))
        ]
        return own[0] if own else row[0] % KINDS

    def _words(self, made: Made) -> tuple[str, ...]:
        return (*made.words, made.event)

    def of(self, number: int) -> Iterator[tuple[str, Row]]:
        """Give the rows of user *number*, each with its table."""
        first, made = self._made[number % KINDS]
        user = user_name(number)
        mine = (user, make_id("story", user, "customer", 1), make_id("story", user, "subscription", 2))
        words = list(zip(made.words, mine, strict=True))
        raw = made.raw
        for old, new in words:
            raw = raw.replace(old, new)
        words.append((made.event, make_id(raw)))
        for table, row in self._rows[number % KINDS]:
            copied = list(row)
            for place, value in enumerate(row):
                if isinstance(value, str) and len(value) > 11:
                    for old, new in words:
                        value = value.replace(old, new)
                    copied[place] = value
            for place, by in self._shifted[table].items():
                if copied[place] is not None:
                    copied[place] += by * (number - first)
            if table == "observations":
                copied[3] = hashlib.sha256(copied[4].encode()).hexdigest()
            yield table, tuple(copied)


def check(folder: Path, now: datetime) -> None:
    """Assert that copies are the rows that the program writes for such users, but for the clock's."""
    clock = {"recorded_at", "last_occurred_at"}
    with _opened(folder / "few.db") as ledger:
        copies = Copies(ledger, now)
        make(ledger, range(KINDS + 1, 3 * KINDS + 1), now)
        wanted = [pair for number in range(KINDS + 1, 3 * KINDS + 1) for pair in copies.of(number)]
        with ledger.database.engine.connect() as connection:
            for table in TABLES:
                names = [column.name for column in table.columns]

                def plain(row: Row, names: list[str] = names) -> Row:
                    spent = "deduct" in row
                    moving = clock | ({"occurred_at"} if spent else set())
                    return tuple(v for n, v in zip(names, row, strict=True) if n not in moving)

                found = {plain(tuple(row)) for row in connection.execute(select(table))}
                copied = {plain(row) for name, row in wanted if name == table.name}
                assert copied, table.name
                assert copied <= found, table.name
                assert len(found) == len(copied) * 3 // 2, table.name


def _opened(path: Path) -> Ledger:
    url = f"sqlite:///{path}"
    schema.make_if_absent(url)
    return Ledger(url, catalog())


def build(path: Path, users: int, now: datetime) -> None:
    """Make a SQLite file of *users* at *path*."""
    with _opened(path) as ledger:
        copies = Copies(ledger, now)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript("PRAGMA synchronous=OFF; PRAGMA journal_mode=MEMORY; PRAGMA cache_size=-400000")
    for start in range(KINDS + 1, users + 1, CHUNK):
        connection.execute("BEGIN")
        for table, rows in _by_table(copies, range(start, min(start + CHUNK, users + 1))).items():
            marks = ",".join("?" * len(rows[0]))
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        connection.execute("COMMIT")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def build_postgresql(url: str, users: int, now: datetime) -> None:
    """Make *users* in the empty, migrated database at *url*."""
    with Ledger(url, catalog()) as ledger:
        copies = Copies(ledger, now)
    with psycopg.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        for start in range(KINDS + 1, users + 1, CHUNK):
            for table, rows in _by_table(copies, range(start, min(start + CHUNK, users + 1))).items():
                with cursor.copy(f"COPY {table} FROM STDIN") as copy:
                    for row in rows:
                        copy.write_row(row)
        for table in ("accounts", "grants"):
            cursor.execute(
                f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))"
            )
        cursor.execute("VACUUM ANALYZE")


def _by_table(copies: Copies, numbers: range) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    for number in numbers:
        for table, row in copies.of(number):
            rows.setdefault(table, []).append(row)
    return rows
