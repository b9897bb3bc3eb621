"""S8: a replay of stored deliveries against a program that parses each and inserts one row for it.

The baseline reads the same stored bodies with the driver alone, calls `json.loads`, and inserts a
thousand rows a transaction, as durably. The second line replays what a former edition of the reader
took in: then every event is read again, and its facts are looked for.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from polarcredits.ledger.ledger import Ledger
from polarcredits.webhooks.inbox import Inbox
from tests.benchmarks.deliveries import NOW, SECRET, Signed, catalog, deliveries
from tests.benchmarks.harness import Measurement, at_least, folder, interleaved, rate

NAME = "S8"
GOAL = "replay of 100,000 stored deliveries ≥ 0.3 of json.loads and one insert each, batched"
BATCH = 1000


def run(quick: bool) -> list[Measurement]:
    """Store deliveries, then replay them all."""
    many, rounds = (4_000, 5) if quick else (100_000, 5)
    with folder() as place, Ledger(f"sqlite:///{place}/ours.db", catalog()) as ledger:
        inbox = Inbox(ledger, environment="sandbox", secrets=[SECRET])
        for some in _cut(deliveries(many)):
            inbox.take_many([each.verified() for each in some], now=NOW)
        numbers = itertools.count()
        figures = interleaved(
            {
                "baseline": lambda: rate(many, lambda: _parse_and_insert(place, next(numbers))),
                "replay": lambda: rate(many, lambda: _replay(inbox)),
                "reread": lambda: _after(ledger, lambda: rate(many, lambda: _replay(inbox))),
            },
            rounds,
        )
    what = f"replay of {many:,} deliveries, SQLite"
    return [
        at_least(NAME, what, figures["replay"], figures["baseline"], 0.3),
        at_least(NAME, f"{what}, each read again", figures["reread"], figures["baseline"], None),
    ]


def _after(ledger: Ledger, measured: Callable[[], float]) -> float:
    """Measure once it is forgotten what the events told."""
    with ledger.begin() as connection:
        connection.exec_driver_sql("UPDATE webhook_events SET told = NULL")
    return measured()


def _cut(items: Iterator[Signed]) -> Iterator[list[Signed]]:
    while some := list(itertools.islice(items, BATCH // 2)):
        yield some


def _replay(inbox: Inbox) -> None:
    for page in inbox.pages():
        inbox.again_many(page, now=NOW)


def _parse_and_insert(place: Path, number: int) -> None:
    stored = sqlite3.connect(place / "ours.db")
    target = sqlite3.connect(place / f"baseline-{number}.db", isolation_level=None)
    target.execute("PRAGMA journal_mode=WAL")
    target.execute("PRAGMA synchronous=FULL")
    target.execute("CREATE TABLE events (id TEXT PRIMARY KEY, type TEXT, raw BLOB) STRICT")
    cursor = stored.execute("SELECT id, raw FROM webhook_events ORDER BY received_at, id")
    while rows := cursor.fetchmany(BATCH):
        parsed = [(id, json.loads(raw)["type"], raw) for id, raw in rows]
        target.execute("BEGIN IMMEDIATE")
        target.executemany("INSERT INTO events VALUES (?, ?, ?)", parsed)
        target.execute("COMMIT")
    target.close()
    stored.close()
