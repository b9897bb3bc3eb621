"""S4: one hot user, 64 callers, against the same callers on many users."""

from __future__ import annotations

from polarcredits.ledger.async_ledger import AsyncLedger
from tests.benchmarks.baselines import rich_ledger, users
from tests.benchmarks.callers import by_tasks, by_threads
from tests.benchmarks.harness import Measurement, at_least, folder, interleaved
from tests.benchmarks.s3_postgresql import migrated
from tests.postgres import running_postgres

NAME = "S4"
GOAL = "one hot user ≥ 0.8 of the many-user figure, on both databases"
USERS = 500


def run(quick: bool) -> list[Measurement]:
    """Measure both databases."""
    with folder() as place:
        lines = _compare(f"sqlite:///{place}/ours.db", "SQLite", quick)
    with running_postgres() as server:
        return lines + _compare(migrated(server, "ours"), "PostgreSQL", quick)


def _compare(url: str, database: str, quick: bool) -> list[Measurement]:
    each, rounds = (64, 5) if quick else (400, 9)
    spenders = users(USERS)
    ledger = rich_ledger(url, USERS)
    tasks = AsyncLedger(ledger)
    figures = interleaved(
        {
            "threads, hot": lambda: by_threads(64, each, lambda _: ledger.deduct(spenders[0], 1)),
            "threads": lambda: by_threads(
                64, each, lambda number: ledger.deduct(spenders[number % USERS], 1)
            ),
            "tasks, hot": lambda: by_tasks(64, each, tasks, spenders[:1]),
            "tasks": lambda: by_tasks(64, each, tasks, spenders),
        },
        rounds,
    )
    ledger.close()
    return [
        at_least(NAME, f"{database}, 64 {kind}: one hot user", figures[f"{kind}, hot"], figures[kind], 0.8)
        for kind in ("threads", "tasks")
    ]
