"""S8: a replay of stored deliveries against a program that parses each and inserts one row for it.

The baseline reads the same stored bodies with the driver alone, calls `json.loads`, and inserts a
thousand rows a transaction, as durably. The second line replays what a former edition of the reader
took in: then every event is read again, and its facts are looked for.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from polarcredits.ledger.ledger import Ledger
from polarcredits.webhooks.inbox import Inbox
from tests.benchmarks.deliveries import NOW, SECRET, Signed, catalog, deliveries
from tests.benchmarks.harness import Measurement, at_least, folder, interleaved, seconds

NAME = "S8"
GOAL = "replay of 100,000 stored deliveries ≥ 0.3 of json.loads and one insert each, batched"
BATCH = 1000


def run(quick: bool) -> list[Measurement]:
    """Store deliveries, then replay them all; fewer of them where each is read again."""
    few, many = 4_000, 4_000 if quick else 100_000
    return [
        _compare(f"replay of {many:,} deliveries, SQLite", many, 3, 0.3, _replay),
        _compare(f"replay of {few:,} deliveries, each read again", few, 3, None, _reread),
    ]


def _compare(
    what: str, many: int, rounds: int, goal: float | None, work: Callable[[Ledger], float]
) -> Measurement:
    with folder() as place, Ledger(f"sqlite:///{place}/ours.db", catalog()) as ledger:
        for some in _cut(deliveries(many)):
            _inbox(ledger).take_many([each.verified() for each in some], now=NOW)
        numbers = itertools.count()
        figures = interleaved(
            {
                "baseline": lambda: many / seconds(lambda: _parse_and_insert(place, next(numbers))),
                "ours": lambda: many / work(ledger),
            },
            rounds,
        )
    return at_least(NAME, what, figures["ours"], figures["baseline"], goal)


def _inbox(ledger: Ledger) -> Inbox:
    return Inbox(ledger, environment="sandbox", secrets=[SECRET])


def _reread(ledger: Ledger) -> float:
    """Replay once it is forgotten what the events told."""
    with ledger.begin() as connection:
        connection.exec_driver_sql("UPDATE webhook_events SET told = NULL")
    return _replay(ledger)


def _replay(ledger: Ledger) -> float:
    began = time.perf_counter()
    inbox = _inbox(ledger)
    for page in inbox.pages():
        inbox.again_many(page, now=NOW)
    return time.perf_counter() - began


def _cut(items: Iterator[Signed]) -> Iterator[list[Signed]]:
    while some := list(itertools.islice(items, BATCH // 2)):
        yield some


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
