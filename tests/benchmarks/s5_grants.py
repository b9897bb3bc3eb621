"""S5, its half about grants: a deduction costs the same with 1,000 grants as with one."""

from __future__ import annotations

import statistics
import time

from polarcredits.ledger.ledger import Ledger
from tests.benchmarks.baselines import RICH, disk_out_of_the_way, rich_ledger
from tests.benchmarks.harness import Measurement, at_most, folder, interleaved

NAME = "S5"
GOAL = "median deduct with 1,000 grants on the user ≤ 1.15 of that with 1"


def run(quick: bool) -> list[Measurement]:
    """Measure the median time of a deduction, on disk and with the disk out of the way."""
    return [_compare("on disk", quick), _compare("synchronous=OFF", quick)]


def _compare(disk: str, quick: bool) -> Measurement:
    count, rounds = (200, 5) if quick else (1000, 11)
    with folder() as place:
        ledger = rich_ledger(f"sqlite:///{place}/ours.db", 1)
        with ledger.begin() as connection:
            joined = ledger.using(connection)
            joined.grant("many", RICH, create=True)
            for _ in range(1000):
                joined.grant("many", 1)
        if disk != "on disk":
            disk_out_of_the_way(ledger.database.engine)
        figures = interleaved(
            {
                "1": lambda: _median(ledger, "user-0", count),
                "1000": lambda: _median(ledger, "many", count),
            },
            rounds,
        )
        ledger.close()
    return at_most(NAME, f"1,000 grants against 1, {disk}", figures["1000"], figures["1"], 1.15)


def _median(ledger: Ledger, user: str, count: int) -> float:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        ledger.deduct(user, 1)
        times.append(time.perf_counter() - began)
    return statistics.median(times)
