"""Refill: write down what has fallen due, in batches, each its own transaction (docs/rules.md §4.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from polarcredits.errors import DatabaseBusy
from polarcredits.ledger.account import Call
from polarcredits.ledger.due import UNSETTLED, Batch, count_due, list_due, settle_batch, settle_one
from polarcredits.ledger.health import note_refill
from polarcredits.ledger.ledger import Ledger

BATCH = 1000
"""Accounts of one transaction; other writers of a SQLite file wait for it, some 50 ms."""


@dataclass(slots=True, kw_only=True)
class RefillReport:
    """What a refill did; credits as positive integers."""

    at: datetime
    considered: int = 0
    foreseen: int = 0
    """How many of them were settled set-based, from what had been foreseen for them."""
    granted: int = 0
    expired: int = 0
    downgraded: int = 0
    credits_granted: int = 0
    credits_expired: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)


def refill(
    ledger: Ledger,
    *,
    at: datetime | None = None,
    user: str | None = None,
    dry_run: bool = False,
    batch: int = BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> RefillReport:
    """Reconcile everybody for whom something is due at *at*; safe to interrupt and to run twice.

    `progress` is called with (done, total) after each transaction of at most *batch* users.
    Raises UnknownUser where *user* is none.
    """
    call = ledger.call(at)
    report = RefillReport(at=call.now)
    if user is not None:
        _add(report, settle_one(ledger, user, call, dry_run=dry_run))
        return report
    total = count_due(ledger, call.now)
    for listed in list_due(ledger, call.now) if total else ():
        for first in range(0, len(listed), batch):
            left: Sequence[int] = listed[first : first + batch]
            while left:
                settled = _settle(ledger, call, left, dry_run=dry_run)
                left = settled.left
                _add(report, settled)
                if progress:
                    progress(min(report.considered, total), total)
    if not dry_run:
        note_refill(ledger, call.wall)
    return report


def _settle(ledger: Ledger, call: Call, accounts: Sequence[int], *, dry_run: bool) -> Batch:
    try:
        return settle_batch(ledger, call, accounts, dry_run=dry_run)
    except DatabaseBusy:
        raise
    except UNSETTLED:
        return settle_batch(ledger, call, accounts, dry_run=dry_run, apart=True)


def _add(report: RefillReport, batch: Batch) -> None:
    report.considered += batch.considered
    report.foreseen += batch.foreseen
    report.granted += batch.granted
    report.expired += batch.expired
    report.downgraded += batch.downgraded
    report.credits_granted += batch.credits_granted
    report.credits_expired += batch.credits_expired
    report.failed += batch.failed
