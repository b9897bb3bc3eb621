"""S1: one caller, one deduction at a time, on SQLite; acknowledged means on disk."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.baselines import Naive, RawSqlite, disk_out_of_the_way, rich_ledger, users
from tests.benchmarks.harness import Measurement, at_least, folder, interleaved, rate

NAME = "S1"
GOAL = "≥ 0.85 of raw sqlite3; with the disk out of the way ≥ 0.35"
USERS = 100


def run(quick: bool) -> list[Measurement]:
    """Measure with durable commits, then without."""
    with folder() as place:
        return _compare(place, "FULL", 200 if quick else 1500, 5 if quick else 11) + _compare(
            place, "OFF", 1500 if quick else 8000, 5 if quick else 11
        )


def _compare(place: Path, synchronous: str, count: int, rounds: int) -> list[Measurement]:
    raw = RawSqlite(place / f"raw-{synchronous}.db", USERS, synchronous=synchronous)
    ledger = rich_ledger(f"sqlite:///{place}/ours-{synchronous}.db", USERS)
    naive = Naive(place / f"naive-{synchronous}.db", USERS)
    if synchronous == "OFF":
        disk_out_of_the_way(ledger.database.engine)
        disk_out_of_the_way(naive.engine)
    spenders = (users(USERS) * (count // USERS + 1))[:count]

    def by_raw() -> None:
        for user in spenders:
            raw.deduct(user)

    def by_ours() -> None:
        for user in spenders:
            ledger.deduct(user, 1)

    def by_naive() -> None:
        for user in spenders[: count // 4]:
            naive.deduct(user)

    figures = interleaved(
        {
            "raw": lambda: rate(count, by_raw),
            "ours": lambda: rate(count, by_ours),
            "naive": lambda: rate(count // 4, by_naive),
        },
        rounds,
    )
    ledger.close()
    goal, disk = (0.85, "on disk") if synchronous == "FULL" else (0.35, "synchronous=OFF")
    return [
        at_least(NAME, f"one caller, {disk}: of raw sqlite3", figures["ours"], figures["raw"], goal),
        at_least(NAME, f"one caller, {disk}: of the naive ORM", figures["ours"], figures["naive"], None),
    ]
