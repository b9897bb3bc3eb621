"""Accounts for which something has fallen due, settled in bounded batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, delete, exc, func, or_, select

from polarcredits.errors import PolarCreditsError
from polarcredits.ledger import tables as t
from polarcredits.ledger.account import Call
from polarcredits.ledger.identity import account_of
from polarcredits.ledger.keeping import load
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.reconcile import true_at, write
from polarcredits.periods import to_micros
from polarcredits.plans import Catalog

UNSETTLED = (PolarCreditsError, ArithmeticError, AssertionError, LookupError, TypeError, ValueError)
"""What a damaged account raises; its own failure must not stop the others."""


@dataclass(slots=True, kw_only=True)
class Batch:
    """What one batch did; `last` is where the next begins, None when there was nobody."""

    last: int | None = None
    considered: int = 0
    granted: int = 0
    expired: int = 0
    downgraded: int = 0
    credits_granted: int = 0
    credits_expired: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)


def count_due(ledger: Ledger, now: datetime) -> int:
    """Return how many accounts a refill will look at."""
    b = t.balances.c

    def work(connection: Connection) -> int:
        due = _due(ledger.catalog, to_micros(now))
        query = select(func.count()).select_from(t.balances).where(due)
        return int(connection.execute(query.where(b.account_id > 0)).scalar_one())

    return ledger.reading(work)


def settle_batch(
    ledger: Ledger, call: Call, *, after: int, limit: int, dry_run: bool, apart: bool = False
) -> Batch:
    """Settle and write the next *limit* due accounts beyond *after*, skipping those in use.

    With *apart*, an account that cannot be settled is reported and stops nobody else's.
    """
    b = t.balances.c

    def work(connection: Connection) -> Batch:
        query = (
            select(b.account_id)
            .where(_due(ledger.catalog, to_micros(call.now)), b.account_id > after)
            .order_by(b.account_id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        batch = Batch()
        for account in connection.execute(query).scalars().all():
            batch.last = account
            if apart:
                _settle_apart(connection, ledger.catalog, account, call, batch)
            else:
                _settle(connection, ledger.catalog, account, call, batch)
        return batch

    return ledger.in_transaction(work, dry_run=dry_run)


def settle_one(ledger: Ledger, user: str, call: Call, *, dry_run: bool) -> Batch:
    """Settle and write one user's account. Raises UnknownUser."""

    def work(connection: Connection) -> Batch:
        batch = Batch()
        _settle(connection, ledger.catalog, account_of(connection, user), call, batch)
        batch.considered = 1
        return batch

    return ledger.in_transaction(work, dry_run=dry_run)


def _settle_apart(connection: Connection, catalog: Catalog, account: int, call: Call, batch: Batch) -> None:
    a = t.accounts.c
    try:
        with connection.begin_nested():
            _settle(connection, catalog, account, call, batch)
    except (*UNSETTLED, exc.IntegrityError) as error:
        user = connection.execute(select(a.user_id).where(a.id == account)).scalar_one()
        batch.failed.append({"user": user, "error": f"{type(error).__name__}: {error}"})


def _settle(connection: Connection, catalog: Catalog, account: int, call: Call, batch: Batch) -> None:
    loaded = load(connection, account, lock=True)
    was_due = loaded.next_due_at <= to_micros(call.now)
    settled = true_at(connection, catalog, loaded, call)
    write(connection, settled, call)
    _forget_named(connection, catalog, account)
    batch.considered += was_due or settled.granted > 0
    batch.granted += settled.granted
    batch.expired += settled.expired
    batch.downgraded += settled.downgraded
    batch.credits_granted += settled.credits_granted
    batch.credits_expired += settled.credits_expired


def _due(catalog: Catalog, now: int) -> ColumnElement[bool]:
    """What has fallen due, or was bought as a product that the catalog has only since named (§1.3)."""
    b, u = t.balances.c, t.unknown_products.c
    named = select(u.account_id).where(u.product_id.in_(catalog.product_ids))
    return or_(b.next_due_at <= now, b.account_id.in_(named))


def _forget_named(connection: Connection, catalog: Catalog, account: int) -> None:
    """Forget which of the catalog's products the account had bought unknown: it is settled."""
    u = t.unknown_products.c
    named = delete(t.unknown_products).where(u.product_id.in_(catalog.product_ids))
    connection.execute(named.where(u.account_id == account))
