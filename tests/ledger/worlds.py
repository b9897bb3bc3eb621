"""What the tests of the ledger share: a catalog, feeding events, and whole-database comparisons."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from sqlalchemy import Connection, select

from polarcredits.ledger import schema, spending
from polarcredits.ledger import tables as t
from polarcredits.ledger.database import Database
from polarcredits.ledger.hotpath import Spend
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.ledger.views import Statement, statement
from polarcredits.periods import format_time
from polarcredits.plans import Catalog, parse_catalog
from polarcredits.webhooks.fixtures import Story, make_id
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


def move(url: str, revision: str) -> None:
    """Migrate up or down to a revision."""
    config = Config()
    config.set_main_option("script_location", str(schema.migrations_directory()))
    with closing(Database(url)) as database, database.writer.begin() as connection:
        config.attributes["connection"] = connection
        (command.downgrade if revision < schema.HEAD else command.upgrade)(config, revision)


def requested(ledger: Ledger, user: str) -> Spend:
    """Return the request of a deduction of one credit, as the teller takes it."""
    options: dict[str, Any] = dict.fromkeys(("metadata", "idempotency_key", "at"))
    return spending.request(ledger, user, 1, operation="api_call", quantity=1, **options)


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


def item(cents: int, start: datetime, end: datetime, *, proration: bool = False) -> dict[str, Any]:
    """Return a line of an order."""
    return {
        "id": make_id("item", cents, start),
        "label": "line",
        "amount": cents,
        "tax_amount": 0,
        "proration": proration,
        "product_price_id": make_id("price"),
        "start_timestamp": format_time(start),
        "end_timestamp": format_time(end),
    }


def restart(
    life: Story, product: str, start: datetime, end: datetime, *items: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return what Polar sends for a change of interval: a new period at once, and its order."""
    assert life.subscription is not None
    life.now = start
    bounds = {"current_period_start": format_time(start), "current_period_end": format_time(end)}
    life.subscription |= {"product_id": product, "modified_at": format_time(start), **bounds}
    total = sum(item["amount"] for item in items)
    order = {
        "id": make_id("order", product, start),
        "created_at": format_time(start),
        "status": "paid",
        "billing_reason": "subscription_update",
        "customer_id": life.customer["id"],
        "customer": life.customer,
        "product_id": product,
        "subscription_id": life.subscription["id"],
        "net_amount": total,
        "total_amount": total,
        "refunded_amount": 0,
        "currency": "usd",
        "items": list(items),
    }
    return [
        {"type": kind, "timestamp": format_time(start), "data": copy.deepcopy(data)}
        for kind, data in (("subscription.updated", life.subscription), ("order.paid", order))
    ]


def play(machine: type[RuleBasedStateMachine], url: str, examples: int) -> None:
    """Run a state machine on the database at *url*, each of its lives up to 25 steps long."""
    run_state_machine_as_test(
        type("Machine", (machine,), {"url": url}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def all_wait(watch: psycopg.Connection[Any], count: int) -> None:
    """Return when so many transactions wait for a lock."""
    until = time.monotonic() + 30
    while True:
        (waiting,) = watch.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() or (0,)
        if waiting >= count:
            return
        assert time.monotonic() < until
        time.sleep(0.01)
