"""Accounts for which something has fallen due, settled in bounded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, Select, delete, exc, select, text

from polarcredits.errors import PolarCreditsError
from polarcredits.ledger import tables as t
from polarcredits.ledger.account import Call
from polarcredits.ledger.identity import account_of
from polarcredits.ledger.keeping import load
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.reconcile import true_at, write
from polarcredits.ledger.stepping import lock_standings, take_steps
from polarcredits.periods import to_micros
from polarcredits.plans import Catalog
from polarcredits.steps import Steps

UNSETTLED = (PolarCreditsError, ArithmeticError, AssertionError, LookupError, TypeError, ValueError)
"""What a damaged account raises; its own failure must not stop the others."""
LISTED = 500_000
"""Accounts that are listed at once: a bound for memory, whatever the number that is due."""
RECONCILED = 100
"""Accounts of a batch that are reconciled one by one, so that other writers need not wait long."""


@dataclass(slots=True, kw_only=True)
class Batch:
    """What one batch did, and the accounts that it had no room for."""

    left: Sequence[int] = ()
    considered: int = 0
    foreseen: int = 0
    granted: int = 0
    expired: int = 0
    downgraded: int = 0
    credits_granted: int = 0
    credits_expired: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)


def count_due(ledger: Ledger, now: datetime) -> int:
    """Return how many accounts a refill will look at."""

    def work(connection: Connection) -> int:
        due = connection.execute(text(_COUNT), {"now": to_micros(now)}).scalar_one()
        return int(due) + len(_only_named(connection, ledger.catalog, now))

    return ledger.reading(work)


def list_due(ledger: Ledger, now: datetime) -> Iterator[list[int]]:
    """Give the ids of due accounts in order, and then of those that are due by their products."""
    values = {"now": to_micros(now), "after": 0, "limit": LISTED}
    while listed := ledger.reading(lambda connection: _list(connection, values)):
        yield listed
        values["after"] = listed[-1]
    yield ledger.reading(lambda connection: _only_named(connection, ledger.catalog, now))


_COUNT = "SELECT count(*) FROM credit_balances WHERE next_due_at <= :now"
_LIST = """
SELECT account_id FROM credit_balances {hint}
WHERE next_due_at <= :now AND account_id > :after ORDER BY account_id LIMIT :limit
"""
_HINT = {"sqlite": "INDEXED BY ix_credit_balances_due", "postgresql": ""}
"""SQLite keeps no statistics of its own accord: it would read everybody to find the few who are due."""


def _list(connection: Connection, values: dict[str, int]) -> list[int]:
    statement = text(_LIST.format(hint=_HINT[connection.dialect.name]))
    return list(connection.execute(statement, values).scalars())


def _named(catalog: Catalog) -> Select[int]:
    """Who bought a product that the catalog has only since named (§1.3)."""
    u = t.unknown_products.c
    return select(u.account_id).where(u.product_id.in_(catalog.product_ids)).distinct()


def _only_named(connection: Connection, catalog: Catalog, now: datetime) -> list[int]:
    """Return those of them for whom nothing has fallen due otherwise."""
    b, u = t.balances.c, t.unknown_products.c
    named = _named(catalog).join(t.balances, b.account_id == u.account_id)
    later = named.where(b.next_due_at > to_micros(now)).order_by(u.account_id)
    return list(connection.execute(later).scalars())


def settle_batch(
    ledger: Ledger, call: Call, accounts: Sequence[int], *, dry_run: bool, apart: bool = False
) -> Batch:
    """Settle and write those of *accounts* that are due still, skipping those in use.

    *accounts* are in order and not empty. Whose outlook holds is settled set-based, the others one
    by one, as many as there is room for. With *apart*, all are settled one by one, and one that
    cannot be is reported and stops nobody else's.
    """

    def work(connection: Connection) -> Batch:
        standings = lock_standings(connection, accounts)
        u = t.unknown_products.c
        between = _named(ledger.catalog).where(u.account_id.between(accounts[0], accounts[-1]))
        named = set(connection.execute(between).scalars()).intersection(each[0] for each in standings)
        now, batch = to_micros(call.now), Batch()
        due = [each for each in standings if each[5] <= now and each[0] not in named]
        slow = [each[0] for each in due]
        if due and not apart:
            steps, slow = take_steps(connection, ledger.catalog, due, call)
            _count(batch, steps)
        slow = sorted((*slow, *named))
        for account in slow[:RECONCILED]:
            if apart:
                _settle_apart(connection, ledger.catalog, account, call, batch)
            else:
                _settle(connection, ledger.catalog, account, call, batch)
        batch.left = slow[RECONCILED:]
        return batch

    return ledger.in_transaction(work, dry_run=dry_run)


def _count(batch: Batch, steps: Steps) -> None:
    batch.considered += len(steps.standings)
    batch.foreseen += len(steps.standings)
    batch.granted += len(steps.begun)
    batch.expired += steps.expired
    batch.credits_granted += steps.credits_granted
    batch.credits_expired += steps.credits_expired


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


def _forget_named(connection: Connection, catalog: Catalog, account: int) -> None:
    """Forget which of the catalog's products the account had bought unknown: it is settled."""
    u = t.unknown_products.c
    named = delete(t.unknown_products).where(u.product_id.in_(catalog.product_ids))
    connection.execute(named.where(u.account_id == account))
