"""S5, its half about size: a deduction and the reads of one user in a big ledger and in an empty one."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from polarcredits.ledger import schema
from polarcredits.ledger.database import Database
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.views import history, statement
from polarcredits.plans import parse_catalog
from tests.benchmarks.bulk import fill
from tests.benchmarks.harness import Measurement, at_most, folder, interleaved

NAME = "S5"
GOAL = "median deduct with 10,000,000 entries of 1,000,000 users ≤ 1.15 of that in an empty ledger"


def run(quick: bool) -> list[Measurement]:
    """Measure the median time of `deduct`, `history` and `show` of users drawn at random."""
    users = 10_000 if quick else 1_000_000
    with (
        folder() as place,
        built(place / "small.db", 100) as small,
        built(place / "big.db", users) as big,
    ):
        return compare(small, big, users, 100 if quick else 500, 5 if quick else 11)


def built(path: Path, users: int) -> Ledger:
    """Make a SQLite ledger of *users* users with ten entries each."""
    url = f"sqlite:///{path}"
    schema.make_if_absent(url)
    database = Database(url)
    fill(database, users=users, entries=10)
    database.close()
    return Ledger(url, parse_catalog(None, pro_product_id=None))


def compare(small: Ledger, big: Ledger, users: int, count: int, rounds: int) -> list[Measurement]:
    """Measure the same calls on both ledgers in turn."""
    found = []
    calls: list[tuple[str, Callable[[Ledger, str], object], float | None]] = [
        ("deduct", lambda ledger, user: ledger.deduct(user, 1), 1.15),
        ("credits history", lambda ledger, user: history(ledger, user), None),
        ("credits show", lambda ledger, user: statement(ledger, user), None),
    ]
    for what, call, goal in calls:
        figures = interleaved(
            {
                "small": partial(_median, small, 100, call, count),
                "big": partial(_median, big, users, call, count),
            },
            rounds,
        )
        label = f"{what}: {users * 10:,} entries against 1,000"
        found.append(at_most(NAME, label, figures["big"], figures["small"], goal))
    return found


def _median(ledger: Ledger, users: int, call: Callable[[Ledger, str], object], count: int) -> float:
    times = []
    for number in random.Random(5).sample(range(1, users + 1), min(count, users)):
        began = time.perf_counter()
        call(ledger, f"user-{number}")
        times.append(time.perf_counter() - began)
    return statistics.median(times)
