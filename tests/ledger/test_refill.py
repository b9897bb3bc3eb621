"""Refill for many: batches that are kept when it is interrupted (docs/rules.md §4.3)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.refill import RefillReport, refill
from tests.ledger.worlds import at, dump

BATCH = 200
USERS = 2 * BATCH + 50
BEGAN = at("04-01")
DUE = at("04-03")


@pytest.fixture
def crowd(ledger: Ledger) -> Ledger:
    """A ledger of users with 7 credits each that have expired by `DUE`."""
    for number in range(USERS):
        ledger.grant(
            f"user-{number:03}", 7, expires_at=BEGAN + timedelta(hours=number % 24 + 1), create=True, at=BEGAN
        )
    return ledger


def told(report: RefillReport) -> tuple[int, int, int]:
    """What a report says of expiries."""
    return report.considered, report.expired, report.credits_expired


def test_an_interrupted_refill_keeps_its_batches_and_goes_on(crowd: Ledger) -> None:
    """What was committed stays; the next run does the rest, and the one after it nothing."""

    def interrupt(done: int, total: int) -> None:
        assert (done, total) == (BATCH, USERS)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refill(crowd, at=DUE, batch=BATCH, progress=interrupt)
    rest = USERS - BATCH
    assert told(refill(crowd, at=DUE)) == (rest, rest, 7 * rest)
    assert told(refill(crowd, at=DUE)) == (0, 0, 0)
    assert verify(crowd).problems == []


def test_progress_counts_every_batch(crowd: Ledger) -> None:
    """A person sees how far it has come, and that it has come to the end."""
    seen: list[tuple[int, int]] = []
    refill(crowd, at=DUE, batch=BATCH, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(BATCH, USERS), (2 * BATCH, USERS), (USERS, USERS)]


def test_a_dry_run_tells_the_same_and_moves_nothing(crowd: Ledger) -> None:
    """The report is that of the real run; every row is as it was."""
    before = dump(crowd)
    tried = refill(crowd, at=DUE, dry_run=True)
    assert dump(crowd) == before
    assert told(tried) == told(refill(crowd, at=DUE)) == (USERS, USERS, 7 * USERS)
