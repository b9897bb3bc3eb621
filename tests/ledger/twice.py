"""A refill done twice: one by one by reconcile, which is undone, and then by what was foreseen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, select

from polarcredits.ledger import tables as t
from polarcredits.ledger.ledger import Ledger
from polarcredits.periods import to_micros
from polarcredits.refill import RefillReport, refill

TABLES = (t.accounts, t.balances, t.transactions, t.grants, t.draws, t.carries, t.holds, t.terms)


def both_ways(ledger: Ledger, now: datetime) -> RefillReport:
    """Refill at *now*; assert that rows and report are those of reconcile, and a dry run's too."""
    with ledger.database.writer.connect() as connection:
        undone = connection.begin()
        trial = ledger.using(connection)
        singly = [refill(trial, at=now, user=user) for user in due(connection, ledger, now)]
        expected = rows(connection)
        undone.rollback()
    tried = refill(ledger, at=now, dry_run=True)
    done = refill(ledger, at=now)
    assert told([tried]) == told([done])
    assert told([done])[1:] == told(singly)[1:]
    assert done.failed == []
    with ledger.database.engine.connect() as connection:
        assert rows(connection) == expected
    return done


def due(connection: Connection, ledger: Ledger, now: datetime) -> list[str]:
    """Return the users whom a refill must look at, in order."""
    u, b, a = t.unknown_products.c, t.balances.c, t.accounts.c
    named = select(u.account_id).where(u.product_id.in_(ledger.catalog.product_ids))
    query = select(a.user_id).join(t.balances, b.account_id == a.id).order_by(a.id)
    late = (b.next_due_at <= to_micros(now)) | a.id.in_(named)
    return list(connection.execute(query.where(late)).scalars())


def rows(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of the ledger but for when it was recorded; grants go by their keys."""
    g = t.grants.c
    keys = {row.id: row.key for row in connection.execute(select(g.id, g.key))}

    def plain(table: Table, row: dict[str, Any]) -> tuple[Any, ...]:
        row.pop("recorded_at", None)
        row.pop("closed_at", None)
        if table is t.grants:
            row.pop("id")
        for column in ("grant_id", "source_id", "target_id"):
            if row.get(column):
                row[column] = keys[row[column]]
        if table is t.holds:
            row["parts"] = [(keys[grant], credits) for grant, credits in json.loads(row["parts"])]
        return tuple(row.values())

    found = {}
    for table in TABLES:
        every = connection.execute(select(table)).mappings()
        found[table.name] = sorted((plain(table, dict(row)) for row in every), key=repr)
    return found


def told(reports: Sequence[RefillReport]) -> tuple[int, ...]:
    """Sum up reports."""
    names = ("considered", "granted", "expired", "downgraded", "credits_granted", "credits_expired")
    return tuple(sum(getattr(report, name) for report in reports) for name in names)
