"""Archiving as docs/scaling.md says, and how two ledgers are compared that must answer alike."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import text
from sqlalchemy.engine import make_url

from polarcredits.ledger.archived import archived_until
from polarcredits.ledger.explain import explain
from polarcredits.ledger.identity import account_of
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.values import Transaction
from polarcredits.ledger.verify import verify
from polarcredits.ledger.views import history, list_users, statement

DOCUMENT = Path(__file__).parents[2] / "docs" / "scaling.md"
_CALL = "CALL pg_temp.archive('2026-01-01', 100);"
_NUMBERS = itertools.count()


@contextmanager
def archiver(url: str) -> Iterator[psycopg.Connection[Any]]:
    """Give a session in which the document's procedure is there to be called."""
    blocks = re.findall(r"```sql\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    [procedure] = [each for each in blocks if "PROCEDURE pg_temp.archive" in each]
    assert f"{_CALL}\n" in blocks
    with psycopg.connect(url, autocommit=True, options="-c lock_timeout=60s") as connection:
        for _ in range(2):  # nothing is in the way of who runs it again
            connection.execute(procedure)
        yield connection


def call(before: datetime, step: int = 100) -> str:
    """Return the document's call, with other arguments."""
    return _CALL.replace("2026-01-01", before.isoformat()).replace("100", str(step))


def archive(url: str, before: datetime, step: int = 100) -> None:
    """Archive what is older than *before*."""
    with archiver(url) as connection:
        connection.execute(call(before, step))


def copy_of(server: str, url: str) -> str:
    """Return the URL of a copy of a database that nobody uses at the moment."""
    name = f"copy_{next(_NUMBERS)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {make_url(url).database}".encode())
    return make_url(server).set(database=name).render_as_string(hide_password=False)


def count(ledger: Ledger, table: str) -> int:
    """Return how many rows a table has."""
    found: int = ledger.reading(lambda c: c.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())
    return found


def opened_at(ledger: Ledger, user: str) -> datetime | None:
    """Return the time of a user's last archived entry."""
    return ledger.reading(lambda c: archived_until(c, account_of(c, user)))


def told(entry: Transaction) -> Transaction:
    """Return an entry without the time at which it was written."""
    return entry._replace(recorded_at=entry.occurred_at)


def shown(ledger: Ledger, user: str, at: datetime) -> list[str]:
    """Return what `credits show` tells, but for the names that ledgers make up for manual grants."""
    told = statement(ledger, user, at)
    rest = (told.plan, told.status, told.balance, told.subscriptions, told.next_refill_at, told.as_of)
    return [re.sub("manual:[0-9a-f]+", "manual", repr(each)) for each in (*rest, *told.grants)]


def stories(ledger: Ledger, user: str, at: datetime | None = None) -> dict[int | None, Any]:
    """Return what each grant is, and what moved it in sum."""
    found = {}
    for each in explain(ledger, user, at).grants:
        moved: Counter[str] = Counter()
        for line in each.movements:
            moved[line.type] += line.amount
        lot = each.lot
        sums = (each.granted, each.clawed_back, each.expired, lot.amount, lot.spent, lot.remaining, lot.held)
        found[lot.id] = (sums, dict(moved))
    return found


def compare(archived: Ledger, whole: Ledger, now: datetime) -> None:
    """Check that an archived ledger answers as one in which everything stayed."""
    users = [user.id for user in list_users(whole, plan=None, limit=1000)]
    assert users == [user.id for user in list_users(archived, plan=None, limit=1000)]
    for user in users:
        entries = [told(entry) for entry in history(archived, user, limit=None)]
        before = [told(entry) for entry in history(whole, user, limit=None)]
        assert [entry for entry in before if entry in entries] == entries
        opened = opened_at(archived, user)
        assert len(entries) == len(before) or (opened is not None and entries)
        for moment in filter(None, (now, opened, entries[0].occurred_at if entries else None)):
            if opened is None or moment >= opened:
                assert shown(archived, user, moment) == shown(whole, user, moment)
                assert stories(archived, user, moment) == stories(whole, user, moment)
    assert verify(whole).problems == []
    found = verify(archived)
    assert (found.problems, found.transactions) == ([], count(archived, "credit_transactions"))
