"""Outlooks in the database: what was foreseen for each account when it was written (docs/rules.md §4.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, bindparam, delete

from polarcredits.ledger import tables as t
from polarcredits.ledger.database import upsert_all
from polarcredits.outlook import Outlook

RULES = 2
"""Which rules outlooks are foreseen by; raise it with every change of what reconcile would do."""


def read_bounds(text: str) -> list[int]:
    """Return the bounds of a run as they were written."""
    return list(map(int, text.split(",")))


def write_outlooks(connection: Connection, outlooks: Mapping[int, Outlook | None]) -> None:
    """Replace what was foreseen for some accounts."""
    blind = [account for account, outlook in outlooks.items() if outlook is None]
    if blind:
        connection.execute(_FORGET, {"accounts": blind})
    upsert_all(
        connection,
        t.outlooks,
        ("account_id",),
        [_row(account, outlook) for account, outlook in outlooks.items() if outlook is not None],
    )


_FORGET = delete(t.outlooks).where(t.outlooks.c.account_id.in_(bindparam("accounts", expanding=True)))


def _row(account: int, outlook: Outlook) -> dict[str, Any]:
    run = outlook.run
    return {
        "account_id": account,
        "rules": RULES,
        "until": outlook.until,
        "product_id": outlook.product_id,
        "prefix": run and run.prefix,
        "first_index": run and run.first_index,
        "bounds": run and ",".join(map(str, run.bounds)),
        "expires_at": run and run.expires_at,
        "plan": run and run.plan,
        "credits": run and run.credits,
        "clawback": run and run.clawback,
        "subscription_id": run and run.subscription_id,
    }
