"""S3: one caller and 64 callers on PostgreSQL."""

from __future__ import annotations

import os
import threading
from typing import Any

import psycopg
from sqlalchemy.engine import make_url

from polarcredits.ledger import schema
from polarcredits.ledger.async_ledger import AsyncLedger
from polarcredits.ledger.database import Database
from tests.benchmarks.baselines import PgLedger, RawPostgres, rich_ledger, users
from tests.benchmarks.callers import by_tasks, by_threads
from tests.benchmarks.harness import Measurement, at_least, interleaved, rate
from tests.postgres import running_postgres

NAME = "S3"
GOAL = "one caller ≥ 0.85 of raw one-statement psycopg; 64 callers ≥ 4 times that, ≥ 3 times pgledger"
USERS = 500


def database(server: str, name: str) -> str:
    """Make an empty database and return its URL."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return make_url(server).set(database=name).render_as_string(hide_password=False)


def migrated(server: str, name: str) -> str:
    """Make a database for a ledger and return its URL."""
    url = database(server, name)
    made = Database(url)
    schema.upgrade(made)
    made.close()
    return url


def run(quick: bool) -> list[Measurement]:
    """Measure one caller, then many, against one raw caller."""
    alone, each, rounds = (400, 40, 5) if quick else (2000, 200, 9)
    spenders = users(USERS)
    with running_postgres() as server:
        raw = RawPostgres(database(server, "raw"), USERS)
        ledger = rich_ledger(migrated(server, "ours"), USERS)
        tasks = AsyncLedger(ledger)
        keys = iter(range(10**9))

        def by_raw() -> None:
            for number in range(alone):
                raw.deduct(spenders[number % USERS])

        def by_ours() -> None:
            for number in range(alone):
                ledger.deduct(spenders[number % USERS], 1)

        def by_ours_keyed() -> None:
            for number in range(alone):
                ledger.deduct(spenders[number % USERS], 1, idempotency_key=f"k{next(keys)}")

        programs = {
            "raw": lambda: rate(alone, by_raw),
            "ours": lambda: rate(alone, by_ours),
            "keyed": lambda: rate(alone, by_ours_keyed),
            "64 threads": lambda: by_threads(
                64, each, lambda number: ledger.deduct(spenders[number % USERS], 1)
            ),
            "64 tasks": lambda: by_tasks(64, each, tasks, spenders),
        }
        if os.environ.get("PGLEDGER_SQL"):
            theirs = PgLedger(database(server, "pgledger"), USERS)
            own = threading.local()

            def transfer(number: int) -> None:
                if not hasattr(own, "connection"):
                    own.connection = theirs.caller()
                connection: psycopg.Connection[Any] = own.connection
                theirs.deduct(connection, number)

            programs["pgledger"] = lambda: by_threads(64, max(each // 4, 1), transfer)
        figures = interleaved(programs, rounds)
        ledger.close()
        raw.connection.close()
    lines = [
        at_least(NAME, "one caller: of raw one-statement psycopg", figures["ours"], figures["raw"], 0.85),
        at_least(NAME, "one caller with keys: of raw without", figures["keyed"], figures["raw"], None),
    ]
    for name in ("64 threads", "64 tasks"):
        lines.append(at_least(NAME, f"{name}: of one raw caller", figures[name], figures["raw"], 4))
        if "pgledger" in figures:
            what = f"{name}: of pgledger with 64 connections"
            lines.append(at_least(NAME, what, figures[name], figures["pgledger"], 3))
    return lines
