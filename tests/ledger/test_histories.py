"""What is kept of an object: one observation for each thing that was said of it (docs/rules.md §1)."""

from __future__ import annotations

import copy
import itertools
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select

from polarcredits.ledger import tables as t
from polarcredits.ledger.ledger import Ledger
from polarcredits.webhooks.fixtures import Story
from tests.ledger.test_batches import NOW, open_inbox, signed
from tests.ledger.worlds import at, catalog


def observations(ledger: Ledger) -> list[tuple[Any, ...]]:
    """Return everything that was observed."""

    def work(connection: Connection) -> list[tuple[Any, ...]]:
        return sorted(tuple(row) for row in connection.execute(select(t.observations)))

    return ledger.reading(work)


def told_of_subscription(described: str, **changes: Any) -> dict[str, Any]:
    """Return an event about ann's subscription, whose product has a description that nobody reads."""
    bought = Story("ann", at=at("04-01")).purchase("pro")
    event = copy.deepcopy(next(e for e in bought if e["type"] == "subscription.active"))
    event["data"]["product"] = {"description": described}
    event["data"] |= changes
    return event


def test_what_is_not_read_makes_a_history_no_longer(ledger: Ledger) -> None:
    """Events that differ only in what is not read are one observation, whichever came first."""
    inbox = open_inbox(ledger)
    events = signed(told_of_subscription(f"No. {number}") for number in range(10))
    inbox.take_many(events[3:5], now=NOW)
    once = observations(ledger)
    for event in (*events[5:], *events[:3]):
        inbox.take_many([event], now=NOW)
    inbox.take_many(events, now=NOW)
    assert [row[:-1] for row in observations(ledger)] == [row[:-1] for row in once]
    [kept] = [row for row in observations(ledger) if row[0] == "subscription"]
    assert "No. 9" in kept[-1]


def test_the_greatest_of_what_is_not_read_decides_a_tie(ledger: Ledger) -> None:
    """The greater JSON wins a tie, also where what it was kept with came in another order."""
    low, middle, high = (
        signed([told_of_subscription("a")])[0],
        signed([told_of_subscription("b", cancel_at_period_end=True)])[0],
        signed([told_of_subscription("c")])[0],
    )
    wanted = None
    for number, order in enumerate(itertools.permutations([low, middle, high])):
        for event in order if number % 2 else [*order, low]:
            open_inbox(ledger).take_many([event], now=NOW)
        found = observations(ledger)
        wanted = wanted or found
        assert found == wanted
        with ledger.begin() as connection:
            for table in (t.observations, t.subscriptions, t.customers, t.events):
                connection.execute(table.delete())


@contextmanager
def busy(path: Path) -> Iterator[threading.Event]:
    """Have the file written to nearly without pause; yields what is set while it is locked."""
    stop, locked = threading.Event(), threading.Event()

    def write() -> None:
        other = sqlite3.connect(path, isolation_level=None)
        while not stop.is_set():
            other.execute("BEGIN IMMEDIATE")
            locked.set()
            stop.wait(0.06)
            locked.clear()
            other.execute("COMMIT")
            time.sleep(0.0005)
        other.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield locked
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize("grouped", [True, False])
def test_a_busy_writer_starves_nobody(tmp_path: Path, grouped: bool) -> None:
    """Who waits for SQLite's lock gets it between the transactions of another, however short the gap."""
    with Ledger(f"sqlite:///{tmp_path}/credits.db?timeout=3", catalog()) as ledger:
        ledger.add_user("ann")
        with busy(tmp_path / "credits.db") as locked:
            for _ in range(5):
                locked.wait()
                if grouped:
                    ledger.deduct("ann", 1)
                else:
                    ledger.grant("ann", 1)
        assert ledger.balance("ann").balance == (995 if grouped else 1005)
