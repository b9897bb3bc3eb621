"""S6: a refill of everybody against set-based SQL that writes the same rows, and a refill of nobody.

Raw is what a person writes who knows that each user has one allowance and one lifetime grant: seven
statements in one transaction, on a copy of the same database, with the same durability. Both must
have written the same rows. Every run has a process of its own, whose peak memory is told too.
`python -m tests.benchmarks.s6_refill [--quick]` prints the rows.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from polarcredits.ledger import schema
from polarcredits.ledger.database import Database
from polarcredits.ledger.ledger import Ledger
from polarcredits.periods import to_micros
from polarcredits.refill import refill
from tests.benchmarks.due_users import build, build_postgresql, check
from tests.benchmarks.harness import Measurement, at_most, folder, table
from tests.ledger.worlds import catalog
from tests.postgres import running_postgres

NAME = "S6"
GOAL = "refill <= 2.5 x raw set-based SQL; idle refill <= 2 s; peak memory <= 300 MB"

RAW = (
    """
CREATE TEMP TABLE work AS
SELECT b.account_id AS account, b.balance, b.sequence, b.unsettled, b.settled_sequence AS settled,
 {greatest}(b.last_occurred_at, a.expires_at) AS at, a.id AS old, l.id AS life, a.remaining AS had,
 {least}(b.unsettled, a.remaining) AS first, b.unsettled - {least}(b.unsettled, a.remaining) AS second,
 a.remaining - {least}(b.unsettled, a.remaining) AS rest, o.first_index AS number, o.credits, o.prefix,
 o.plan, o.subscription_id, o.clawback, {start} AS start,
 {stop} AS stop,
 row_number() OVER (ORDER BY b.account_id) + (SELECT max(id) FROM grants) AS new
FROM credit_balances b
JOIN grants a ON a.account_id = b.account_id AND a.source = 'allowance' AND a.expired = 0
JOIN grants l ON l.account_id = b.account_id AND l.source = 'lifetime'
JOIN outlooks o ON o.account_id = b.account_id
WHERE b.next_due_at <= :now ORDER BY b.account_id
""",
    """
INSERT INTO grants (id, account_id, key, source, plan, gross, clawed, used, carried_in, remaining, held,
 effective_at, expires_at, expired, withdrawn, clawback, cause_kind, cause_id, period_start, period_end)
SELECT new, account, prefix || number, 'allowance', plan, credits, 0, 0, 0, credits, 0,
 start, stop, 0, 0, clawback, 'subscription', subscription_id, start, stop FROM work
""",
    """
INSERT INTO grant_draws (account_id, first_sequence, position, last_sequence, grant_id, credits,
 balance_from, balance_to)
SELECT account, settled + 1, 0, sequence, old, first, balance + unsettled, balance + unsettled - first
FROM work WHERE first > 0 UNION ALL
SELECT account, settled + 1, 1, sequence, life, second, balance + second, balance FROM work WHERE second > 0
ORDER BY 1, 3
""",
    """
INSERT INTO credit_transactions (account_id, sequence, type, amount, balance_after, grant_id, occurred_at,
 actor, recorded_at)
SELECT account, sequence + 1, 'grant', credits, balance + credits, new, at, 'refill', :wall FROM work
UNION ALL SELECT account, sequence + 2, 'expire', -rest, balance + credits - rest, old, at, 'refill', :wall
FROM work WHERE rest > 0 ORDER BY 1, 2
""",
    """
UPDATE grants SET used = used + w.first, remaining = 0, expired = 1 FROM work w WHERE grants.id = w.old
""",
    """
UPDATE grants SET used = used + w.second, remaining = remaining - w.second
FROM work w WHERE grants.id = w.life AND w.second > 0
""",
    """
UPDATE credit_balances SET balance = w.balance + w.credits - w.rest, unsettled = 0,
 sequence = w.sequence + 1 + {spare}, settled_sequence = w.sequence + 1 + {spare},
 next_due_at = w.stop, last_occurred_at = w.at
FROM work w WHERE credit_balances.account_id = w.account
""",
)
WORDS = {
    "sqlite": {
        "greatest": "max",
        "least": "min",
        "start": "json_extract('[' || o.bounds || ']', '$[0]')",
        "stop": "json_extract('[' || o.bounds || ']', '$[1]')",
        "spare": "(w.rest > 0)",
    },
    "postgresql": {
        "greatest": "greatest",
        "least": "least",
        "start": "split_part(o.bounds, ',', 1)::bigint",
        "stop": "split_part(o.bounds, ',', 2)::bigint",
        "spare": "(w.rest > 0)::int",
    },
}
SAME = (
    "SELECT * FROM grants ORDER BY account_id, key",
    "SELECT * FROM grant_draws ORDER BY account_id, first_sequence, position",
    "SELECT * FROM credit_balances ORDER BY account_id",
    "SELECT * FROM outlooks ORDER BY account_id",
    "SELECT account_id, sequence, type, amount, balance_after, grant_id, actor, occurred_at"
    " FROM credit_transactions ORDER BY account_id, sequence",
)


@dataclass(frozen=True, slots=True)
class Run:
    """What one process measured: seconds, seconds of a refill of nobody, peak memory in MB."""

    seconds: float
    idle: float
    megabytes: float


def raw(url: str, at: datetime) -> Run:
    """Refill by hand."""
    words = {"now": to_micros(at), "wall": to_micros(datetime.now(UTC))}
    dialect = "sqlite" if url.startswith("sqlite") else "postgresql"
    statements = [statement.format(**WORDS[dialect]) for statement in RAW]
    if dialect == "sqlite":
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=FULL")
        started = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        for statement in statements:
            connection.execute(statement, words)
        connection.execute("COMMIT")
        return _run(started, 0.0)
    with psycopg.connect(url) as served:
        started = time.perf_counter()
        for statement in statements:
            served.execute(statement.replace(":now", "%(now)s").replace(":wall", "%(wall)s"), words)
        served.commit()
        return _run(started, 0.0)


def ours(url: str, at: datetime) -> Run:
    """Refill with the program, and again when nobody is due."""
    with Ledger(url, catalog(), actor="refill") as ledger:
        started = time.perf_counter()
        report = refill(ledger, at=at)
        ended = time.perf_counter()
        assert report.considered == report.foreseen == report.granted, report
        assert refill(ledger, at=at).considered == 0
        return _run(started + time.perf_counter() - ended, time.perf_counter() - ended)


def _run(started: float, idle: float) -> Run:
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text()
    return Run(seconds, idle, int(status.split("VmHWM:")[1].split()[0]) / 1024)


def rows_of(url: str) -> str:
    """Return a digest of all that both must have written alike."""
    digest = hashlib.sha256()
    for row in _select(url):
        digest.update(repr(tuple(row)).encode())
    return digest.hexdigest()


def _select(url: str) -> Iterator[Any]:
    if url.startswith("sqlite"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        for statement in SAME:
            yield from connection.execute(statement)
        connection.close()
        return
    with psycopg.connect(url) as served:
        for statement in SAME:
            with served.cursor(name="rows") as cursor:
                yield from cursor.execute(statement)


def compare(copies: Callable[[str], str], rounds: int, at: datetime) -> tuple[list[Run], list[Run]]:
    """Run raw and ours in turn, each on a fresh copy; return their runs."""
    context = multiprocessing.get_context("spawn")
    runs: dict[str, list[Run]] = {"raw": [], "ours": []}
    works: list[tuple[str, Callable[[str, datetime], Run]]] = [("raw", raw), ("ours", ours)]
    with context.Pool(1, maxtasksperchild=1) as pool:
        for number in range(rounds):
            urls = {}
            for name, work in works if number % 2 == 0 else reversed(works):
                urls[name] = copies(name)
                runs[name].append(pool.apply(work, (urls[name], at)))
            assert rows_of(urls["raw"]) == rows_of(urls["ours"])
    return runs["raw"], runs["ours"]


@contextmanager
def on_sqlite(users: int, now: datetime) -> Iterator[Callable[[str], str]]:
    """Give a maker of copies of a file with *users*."""
    with folder() as place:
        base = place / "base.db"
        build(base, users, now)

        def copy(name: str) -> str:
            made = place / f"{name}.db"
            for old in (made, Path(f"{made}-wal"), Path(f"{made}-shm")):
                old.unlink(missing_ok=True)
            shutil.copy(base, made)
            return f"sqlite:///{made}"

        yield copy


@contextmanager
def on_postgresql(users: int, now: datetime) -> Iterator[Callable[[str], str]]:
    """Give a maker of copies of a PostgreSQL database with *users*."""
    with running_postgres() as server:

        def named(name: str) -> str:
            return server.replace("/postgres?", f"/{name}?")

        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute("CREATE DATABASE base")
            database = Database(named("base"))
            schema.upgrade(database)
            database.close()
            build_postgresql(named("base"), users, now)

            def copy(name: str) -> str:
                admin.execute(f"DROP DATABASE IF EXISTS {name}")
                admin.execute(f"CREATE DATABASE {name} TEMPLATE base")
                return named(name)

            yield copy


def run(quick: bool) -> list[Measurement]:
    """Measure on both databases, with a million users each but in the quick run."""
    now = datetime.now(UTC)
    with folder() as place:
        check(place, now)
    plan = [
        ("SQLite", on_sqlite, 20_000 if quick else 1_000_000, 3 if quick else 2),
        ("PostgreSQL", on_postgresql, 10_000 if quick else 1_000_000, 3 if quick else 2),
    ]
    found = []
    for database, made, users, rounds in plan:
        with made(users, now) as copies:
            by_hand, by_us = compare(copies, rounds, now + timedelta(days=31))
        of = f"of {users:,} users, {database}"
        mine, hand = [each.seconds for each in by_us], [each.seconds for each in by_hand]
        found.append(at_most(NAME, f"refill {of}", mine, hand, 2.5))
        found.append(_limit(f"refill of nobody {of}", "s", max(each.idle for each in by_us), 2))
        found.append(_limit(f"peak memory {of}", "MB", max(each.megabytes for each in by_us), 300))
    return found


def _limit(what: str, unit: str, value: float, limit: float) -> Measurement:
    """Compare with a limit: it stands where other rows have their baseline."""
    return Measurement(
        row=NAME,
        what=what,
        unit=unit,
        ours=value,
        baseline=limit,
        ratio=value / limit,
        goal=f"≤ {limit:g} {unit}",
        met=value <= limit,
    )


if __name__ == "__main__":
    print(table(run("--quick" in sys.argv)))
