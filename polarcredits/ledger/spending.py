"""Deductions: checked, taken on the hot path where it can decide, else on the slow one (§5)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from polarcredits.errors import AccountClosed, InsufficientCredits, InvalidInput
from polarcredits.ledger import requests
from polarcredits.ledger.account import Call, Details
from polarcredits.ledger.hotpath import Spend, spend
from polarcredits.ledger.reconcile import write
from polarcredits.ledger.values import Receipt
from polarcredits.lots import spread
from polarcredits.periods import FOREVER, from_micros, to_micros

if TYPE_CHECKING:
    from polarcredits.ledger.ledger import Ledger


def request(
    ledger: Ledger,
    user: str,
    amount: int | None,
    *,
    operation: str,
    quantity: int,
    metadata: Mapping[str, str] | None,
    idempotency_key: str | None,
    at: datetime | None,
) -> Spend:
    """Return the checked request of a deduction. Raises InvalidInput."""
    requests.check_amount(quantity, "The quantity")
    requests.check_text(operation, "The operation")
    cost = ledger.catalog.cost(operation) * quantity if amount is None else requests.check_amount(amount)
    meta = None if metadata is None else requests.check_metadata(metadata)
    key = digest = None
    if idempotency_key is not None:
        key = requests.check_key(idempotency_key)
        digest = requests.digest(
            kind="deduct", operation=operation, quantity=quantity, amount=amount, meta=meta
        )
    recorded = now = requests.wall_clock()
    latest = FOREVER
    if at is not None:
        now = latest = to_micros(requests.check_time(at, "The time"))
    return Spend(user, cost, operation, meta, ledger.actor, key, digest, now, latest, recorded)


def groupable(wanted: Spend) -> bool:
    """Say whether the hot path may see the request: what could fail a whole batch goes alone."""
    user = wanted.user
    return 0 < wanted.amount <= requests.MOST_CREDITS and isinstance(user, str) and user.isprintable()


def decide(ledger: Ledger, connection: Connection, wanted: Spend) -> Receipt:
    """Deduct within the connection's transaction."""
    if groupable(wanted):
        cursor = ledger.database.raw_cursor(connection.connection.driver_connection)
        try:
            spent = spend(cursor, wanted, sqlite=ledger.database.sqlite)
        except ledger.database.driver_error as error:
            ledger.database.raise_wrapped(error)
        finally:
            cursor.close()
        if spent is not None:
            return spent.receipt(wanted)
    return decide_slowly(ledger, connection, wanted)


def decide_slowly(ledger: Ledger, connection: Connection, wanted: Spend) -> Receipt:
    """Settle the account, post what is due, and then take the deduction or refuse it."""
    call = Call(
        now=from_micros(wanted.now),
        wall=from_micros(wanted.recorded),
        actor=wanted.actor,
        explicit=wanted.latest < FOREVER,
    )
    details = Details(operation=wanted.operation, meta=wanted.meta, key=wanted.key, request=wanted.request)
    settled, before = ledger.open_account(connection, wanted.user, details, call)
    if before is not None:
        return before
    account, cost = settled.account, wanted.amount
    if cost == 0:
        raise InvalidInput(f"Operation {wanted.operation!r} costs nothing; there is nothing to deduct.")
    requests.check_amount(cost, "The cost")
    if account.closed:
        raise AccountClosed(wanted.user)
    if account.available < cost:
        raise InsufficientCredits(wanted.user, required=cost, available=account.available)
    row = account.post(call, "deduct", -cost, details=details)
    draws = spread(account.book.lots, cost, account.balance + cost)
    account.record_draws(draws, account.sequence, account.sequence)
    write(connection, settled, call)
    return ledger.receipt(row, wanted.user, account)
