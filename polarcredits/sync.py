"""Sync: the facts that Polar's API tells, for everybody or one user (docs/rules.md §§1, 8.5).

Reading is done page by page and each page is taken in a transaction of its own, so that memory is
bounded and an interrupted run only has to be run again. Nothing is read inside a transaction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from polarcredits.errors import ConfigError, DatabaseError
from polarcredits.facts import Fact
from polarcredits.ledger.due import UNSETTLED
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.readings import Change, take
from polarcredits.periods import format_time, parse_time
from polarcredits.polar_api import Kind, PolarApi
from polarcredits.spool import spooled
from polarcredits.sync_reader import Batch, Progress, Reader
from polarcredits.webhooks.payloads import PayloadError, read_row

_PLURAL: Mapping[Kind, str] = {
    "customer": "customers",
    "subscription": "subscriptions",
    "order": "orders",
    "refund": "refunds",
    "dispute": "disputes",
}


@dataclass(slots=True, kw_only=True)
class SyncReport:
    """What was read, what it changed, and what could not be taken."""

    checked: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_PLURAL.values(), 0))
    changed: list[Change] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)


def sync(
    ledger: Ledger,
    polar: PolarApi,
    *,
    environment: str,
    user: str | None = None,
    since: datetime | None = None,
    dry_run: bool = False,
    at: datetime | None = None,
    progress: Progress | None = None,
) -> SyncReport:
    """Bring the ledger in step with Polar: everybody, what is newer than *since*, or one *user*.

    The ledger is true at *at* (default now) afterwards. `progress` is called with (done, total).
    Raises UnknownUser, PolarUnavailable, PolarRefused and ConfigError; what was taken stays.
    """
    report = SyncReport()
    reader = Reader(ledger, polar, report.failed, progress)
    if user is not None:
        batches = reader.of_user(user)
    else:
        batches = reader.everything() if since is None else reader.newer(since)
    if not dry_run:
        _take_all(ledger, batches, environment, report, at)
        return report
    with spooled(_written(batches)) as lines, ledger.rehearse() as stage:
        _take_all(stage, _read(lines), environment, report, at)
    return report


def sync_overdue(ledger: Ledger, polar: PolarApi, *, environment: str, at: datetime) -> SyncReport:
    """Ask Polar about live subscriptions whose period is over at *at* without news of the next."""
    report = SyncReport()
    _take_all(ledger, Reader(ledger, polar, report.failed).overdue(at), environment, report, at)
    return report


def sync_customer(ledger: Ledger, polar: PolarApi, customer: str, *, environment: str) -> SyncReport:
    """Take all that Polar tells of one customer."""
    report = SyncReport()
    batches = Reader(ledger, polar, report.failed).of_customers([customer], ())
    _take_all(ledger, batches, environment, report, None)
    return report


def _written(batches: Iterable[Batch]) -> Iterator[str]:
    for batch in batches:
        yield json.dumps([batch.kind, batch.rows, format_time(batch.as_of), batch.fresh])


def _read(lines: Iterable[str]) -> Iterator[Batch]:
    for line in lines:
        kind, rows, as_of, fresh = json.loads(line)
        yield Batch(kind, tuple(rows), parse_time(as_of), fresh)


def _take_all(
    ledger: Ledger, batches: Iterable[Batch], environment: str, report: SyncReport, at: datetime | None
) -> None:
    for batch in batches:
        report.checked[_PLURAL[batch.kind]] += batch.fresh
        groups: list[tuple[str, list[Fact]]] = []
        for row in batch.rows:
            try:
                groups.append((str(row.get("id")), read_row(batch.kind, row, batch.as_of)))
            except PayloadError as error:
                report.failed.append({"kind": batch.kind, "id": str(row.get("id")), "error": error.message})
        taker = partial(take, ledger, as_of=batch.as_of, call=ledger.call(at), environment=environment)
        try:
            report.changed += taker([fact for _, group in groups for fact in group])
        except (DatabaseError, ConfigError):
            raise
        except UNSETTLED:
            _take_apart(batch.kind, groups, taker, report)


def _take_apart(
    kind: str,
    groups: Iterable[tuple[str, list[Fact]]],
    taker: Callable[[list[Fact]], list[Change]],
    report: SyncReport,
) -> None:
    """Take row by row, so that a damaged account stops nobody else's."""
    for id, facts in groups:
        try:
            report.changed += taker(facts)
        except (DatabaseError, ConfigError):
            raise
        except UNSETTLED as error:
            report.failed.append({"kind": kind, "id": id, "error": f"{type(error).__name__}: {error}"})
