"""Reads stay flat as the ledger grows: each finds its rows by an index, on both databases."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from sqlalchemy import Connection, event, text

from polarcredits.ledger.events import Wanted, newest
from polarcredits.ledger.explain import explain
from polarcredits.ledger.health import waiting
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.ledger.views import (
    balances,
    history,
    list_payments,
    list_subscriptions,
    list_users,
    show_user,
    statement,
)
from polarcredits.refill import refill
from polarcredits.webhooks.fixtures import Story
from polarcredits.webhooks.inbox import Inbox
from tests.benchmarks.bulk import fill
from tests.ledger.test_batches import signed
from tests.ledger.worlds import at, feed
from tests.webhooks.recordings import SECRET

READS: dict[str, Callable[[Ledger], object]] = {
    "credits show": lambda ledger: statement(ledger, "user-7"),
    "credits show, a buyer": lambda ledger: statement(ledger, "ann"),
    "credits explain": lambda ledger: explain(ledger, "user-8"),
    "credits history": lambda ledger: history(ledger, "user-7"),
    "credits history of a type": lambda ledger: history(ledger, "user-7", type="grant"),
    "credits list": lambda ledger: balances(ledger, plan=None, below=None, limit=50),
    "credits list below": lambda ledger: balances(ledger, plan="free", below=10, limit=50),
    "users show": lambda ledger: show_user(ledger, "ann"),
    "users list": lambda ledger: list_users(ledger, plan=None, limit=50),
    "users list of a plan": lambda ledger: list_users(ledger, plan="pro", limit=50),
    "payments list": lambda ledger: list_payments(ledger),
    "payments list of a user": lambda ledger: list_payments(ledger, user="ann"),
    "subscriptions list": lambda ledger: list_subscriptions(ledger),
    "webhooks list": lambda ledger: newest(ledger, Wanted(), 50),
    "webhooks list of a user": lambda ledger: newest(ledger, Wanted(user="ann"), 50),
    "webhooks list of a type": lambda ledger: newest(ledger, Wanted(type="order.paid"), 50),
    "the server's metrics": waiting,
}


@contextmanager
def asked(ledger: Ledger) -> Iterator[list[tuple[str, Any]]]:
    """Give the statements that are run meanwhile."""
    found: list[tuple[str, Any]] = []

    def note(_c: object, _k: object, statement: str, parameters: Any, *_rest: object) -> None:
        if statement.lstrip().startswith(("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")):
            found.append((statement, parameters[0] if isinstance(parameters, list) else parameters))

    event.listen(ledger.database.engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(ledger.database.engine, "before_cursor_execute", note)


def plan(connection: Connection, statement: str, parameters: Any, *, indexes: bool = False) -> str:
    """Return the database's plan for a statement, in which a look at a whole table is `SCAN table`.

    With *indexes*, on SQLite, also one at a whole index.
    """
    if connection.dialect.name == "sqlite":
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
        lines = [row.detail for row in rows]
        return "\n".join(line for line in lines if indexes or not re.search(r"SCAN .* USING .*INDEX", line))
    connection.execute(text("SET LOCAL enable_seqscan = off"))
    rows = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).all()
    return "\n".join(row[0] for row in rows).replace("Seq Scan on", "SCAN")


def test_no_read_looks_at_a_whole_table(ledger: Ledger) -> None:
    """Every statement of every read; sorting is for what was found by an index alone."""
    fill(ledger.database, users=40, entries=12)
    life = Story("ann", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    for name, read in READS.items():
        with asked(ledger) as statements:
            read(ledger)
        assert statements, name
        for statement_, parameters in statements:
            told = ledger.reading(partial(plan, statement=statement_, parameters=parameters))
            assert "SCAN" not in told, f"{name}: {statement_}\n{told}"


def work(ledger: Ledger) -> None:
    """Take deliveries, replay them, refill, hold, spend, give back."""
    inbox = Inbox(ledger, environment="sandbox", secrets=[SECRET])
    month, year = Story("ann", at=at("04-01")), Story("ben", at=at("04-01"), interval="year")
    told = month.purchase("pro") + month.refund(500, at("04-03")) + month.plan_change("max", at("04-05"))
    inbox.take_many(signed(told + year.purchase("pro-year")), now=at("04-06"))
    for page in inbox.pages():
        inbox.again_many(page, now=at("04-06"))
    for now in (at("04-06"), at("06-06")):
        refill(ledger, at=now)
    ledger.hold("ann", 3, at=at("06-07")).capture(2)
    spent = ledger.deduct("ann", 2, at=at("06-07"), idempotency_key="spent")
    ledger.reverse(spent.transaction.id, at=at("06-07"))
    ledger.grant("ann", 5, at=at("06-07"), idempotency_key="given")


def test_no_work_looks_at_a_whole_table(ledger: Ledger) -> None:
    """Not even at a whole index, but for a page of the inbox in its order."""
    fill(ledger.database, users=40, entries=12)
    with asked(ledger) as statements:
        work(ledger)
    assert len({statement_ for statement_, _ in statements}) > 50
    for statement_, parameters in statements:
        told = ledger.reading(partial(plan, statement=statement_, parameters=parameters, indexes=True))
        scans = [line for line in told.splitlines() if "SCAN" in line and not _SMALL.search(line)]
        paged = "FROM webhook_events" in statement_ and "LIMIT" in statement_
        assert paged or not scans, f"{statement_}\n{told}"


_SMALL = re.compile(
    "SCAN (w$|[0-9]+ CONSTANT ROWS|json_each |[a-z]+ VIRTUAL TABLE|grant_carries USING COVERING)"
)
"""What is given with a statement; and what a foreign key of SQLite would look through on a deletion."""


def test_lists_go_on_beyond_a_page(ledger: Ledger) -> None:
    """Newest first, each once, whatever the size of a page; those that do not match are left out."""
    fill(ledger.database, users=450, entries=3)
    ledger.deduct("user-3", 999_990)
    assert [user.id for user in list_users(ledger, plan=None, limit=1000)] == [
        f"user-{number}" for number in range(450, 0, -1)
    ]
    assert [user for user, _, _ in balances(ledger, plan=None, below=100, limit=50)] == ["user-3"]
    assert len(balances(ledger, plan="free", below=None, limit=449)) == 449
    assert balances(ledger, plan="pro", below=None, limit=50) == []


def test_a_bulk_ledger_is_as_the_program_writes_it(ledger: Ledger) -> None:
    """The laws hold, and the program goes on from there."""
    fill(ledger.database, users=60, entries=9)
    assert (verify(ledger).users, verify(ledger).transactions, verify(ledger).problems) == (60, 540, [])
    spent = ledger.deduct("user-8", 5)
    ledger.reverse(spent.transaction.id)
    ledger.add_user("new")
    assert verify(ledger).problems == []
