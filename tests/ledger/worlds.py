"""What the tests of the ledger share: a catalog, feeding events, and whole-database comparisons."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, select

from polarcredits.ledger import tables as t
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.ledger.views import Statement, statement
from polarcredits.plans import Catalog, parse_catalog
from polarcredits.webhooks.fixtures import make_id
from polarcredits.webhooks.inbox import Inbox
from polarcredits.webhooks.reading import BarePayload


def catalog(pro: str = "", rest: str = "") -> Catalog:
    """Return free, pro (monthly; also sold by the year), max, a seat plan and a pack."""
    text = f"""
    [plans.free]
    credits = 1000
    interval = "lifetime"
    [plans.pro]
    credits = 5000
    interval = "month"
    product_ids = ["pro", "pro-year"]
    {pro}
    [plans.max]
    credits = 20000
    interval = "month"
    product_ids = ["max"]
    [plans.team]
    credits = 100
    interval = "month"
    per_seat = true
    product_ids = ["team"]
    [packs.small]
    credits = 1000
    product_ids = ["pack"]
    {rest}
    """
    return parse_catalog(text, pro_product_id=None)


def at(text: str) -> datetime:
    """Return a time in 2027, such as "04-01" or "04-01 09:30"."""
    return datetime.fromisoformat(f"2027-{text}").replace(tzinfo=UTC)


def feed(ledger: Ledger, payloads: Iterable[dict[str, Any]], now: datetime | None = None) -> None:
    """Let the inbox take bare payloads, each at its own time unless *now* is given."""
    inbox = Inbox(ledger, environment="sandbox", secrets=[])
    for payload in payloads:
        raw = json.dumps(payload, sort_keys=True)
        element = BarePayload(where="test", id=make_id(raw), payload=payload, raw=raw.encode())
        time = now or datetime.fromisoformat(payload["timestamp"])
        outcome = inbox.ingest(element, now=time, unsigned=True)
        assert outcome.status in ("applied", "ignored"), outcome


def lots(ledger: Ledger, user: str, when: datetime) -> list[tuple[str, int, int, int]]:
    """Return live grants as (source, amount, used, remaining), in spending order."""
    told = told_by(ledger, user, when)
    return [(lot.source, lot.amount, lot.spent, lot.remaining) for lot in told.grants]


def told_by(ledger: Ledger, user: str, when: datetime) -> Statement:
    """Return a user's statement, after the laws were checked."""
    assert verify(ledger).problems == []
    return statement(ledger, user, when)


def dump(ledger: Ledger) -> dict[str, list[Any]]:
    """Return every row that a refusal must leave alone."""

    def work(connection: Connection) -> dict[str, list[Any]]:
        tables = (t.accounts, t.balances, t.transactions, t.grants, t.draws, t.holds, t.carries)
        return {
            table.name: sorted(map(tuple, connection.execute(select(table))), key=repr) for table in tables
        }

    return ledger.reading(work)
