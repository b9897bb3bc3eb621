"""S2: many callers on SQLite, each acknowledged only after its own commit."""

from __future__ import annotations

from polarcredits.ledger.async_ledger import AsyncLedger
from tests.benchmarks.baselines import RawSqlite, rich_ledger, users
from tests.benchmarks.callers import by_tasks, by_threads
from tests.benchmarks.harness import Measurement, at_least, folder, interleaved, rate

NAME = "S2"
GOAL = "of raw batched by hand (1,000 a transaction): 64 threads ≥ 0.25, 64 tasks ≥ 0.45, 512 tasks ≥ 0.6"
USERS = 500


def run(quick: bool) -> list[Measurement]:
    """Measure threads and tasks against batches by hand, and against one at a time."""
    count, rounds = (8192, 5) if quick else (32768, 9)
    spenders = users(USERS)
    thousand = (spenders * 2)[:1000]
    with folder() as place:
        raw = RawSqlite(place / "raw.db", USERS)
        url = f"sqlite:///{place}/ours.db"
        ledger = rich_ledger(url, USERS)
        tasks = AsyncLedger(ledger)

        def batched() -> None:
            for _ in range(count // 1000):
                raw.deduct_batched(thousand)

        def one_by_one() -> None:
            for user in spenders[:200]:
                raw.deduct(user)

        figures = interleaved(
            {
                "batched": lambda: rate(count // 1000 * 1000, batched),
                "64 threads": lambda: by_threads(
                    64, count // 64, lambda number: ledger.deduct(spenders[number % USERS], 1)
                ),
                "64 tasks": lambda: by_tasks(64, count // 64, tasks, spenders),
                "512 tasks": lambda: by_tasks(512, count // 512, tasks, spenders),
                "one": lambda: rate(200, one_by_one),
            },
            rounds,
        )
        ledger.close()
    lines = []
    for name, goal in (("64 threads", 0.25), ("64 tasks", 0.45), ("512 tasks", 0.6)):
        lines += [
            at_least(NAME, f"{name}: of raw batched by hand", figures[name], figures["batched"], goal),
            at_least(NAME, f"{name}: of raw one at a time", figures[name], figures["one"], None),
        ]
    return lines
