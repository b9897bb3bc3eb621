"""S10: all laws of the ledger, against one sum over the entries by account."""

from __future__ import annotations

import resource
from functools import partial

from sqlalchemy import Connection, text

from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from tests.benchmarks.harness import Measurement, at_most, folder, interleaved, seconds
from tests.benchmarks.s5_growth import built

NAME = "S10"
GOAL = "ledger verify of 10,000,000 entries ≤ 4 of SELECT account_id, sum(amount) … GROUP BY account_id"

SUM = text("SELECT account_id, sum(amount) FROM credit_transactions GROUP BY account_id")


def run(quick: bool) -> list[Measurement]:
    """Measure both on one database, in turn."""
    users = 20_000 if quick else 1_000_000
    with folder() as place, built(place / "big.db", users) as ledger:
        return compare(ledger, users, 3)


def compare(ledger: Ledger, users: int, rounds: int) -> list[Measurement]:
    """Measure both on *ledger*, and how much memory verifying took."""
    programs = {
        "sum": partial(seconds, partial(ledger.reading, _sum)),
        "verify": partial(seconds, partial(_verify, ledger, users)),
    }
    figures = interleaved(programs, rounds)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _verify(ledger, users)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    label = f"verify of {users * 10:,} entries against a sum by account"
    memory = Measurement(
        row=NAME,
        what="memory that one more verify added",
        unit="MiB",
        ours=grown,
        baseline=0,
        ratio=0,
        goal="",
        met=None,
    )
    return [at_most(NAME, label, figures["verify"], figures["sum"], 4), memory]


def _sum(connection: Connection) -> None:
    for _ in connection.execute(SUM):
        pass


def _verify(ledger: Ledger, users: int) -> None:
    found = verify(ledger)
    assert (found.users, found.problems) == (users, [])
