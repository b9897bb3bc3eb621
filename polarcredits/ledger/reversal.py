"""Reversal: a deduction goes back to the very grants that it came from (docs/rules.md §5.6)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, select

from polarcredits.errors import InvalidInput, NotFound
from polarcredits.ledger import tables as t
from polarcredits.ledger.account import Call, Details
from polarcredits.ledger.archived import is_archived
from polarcredits.ledger.keeping import save
from polarcredits.ledger.reconcile import Settled, refuse_earlier, settle, true_at
from polarcredits.ledger.requests import refuse_if_reversed
from polarcredits.ledger.values import no_transaction, parse_transaction_id, transaction_id
from polarcredits.plans import Catalog


def give_back(
    connection: Connection, catalog: Catalog, id: str, details: Details, call: Call
) -> tuple[dict[str, Any], Settled]:
    """Reverse the deduction *id*; return its entry and the account, yet to be written.

    Raises NotFound, InvalidInput (no deduction) or AlreadyReversed.
    """
    own, sequence = parse_transaction_id(id)
    a = t.accounts.c
    owner = connection.execute(select(func.coalesce(a.alias_of, a.id)).where(a.id == own)).scalar()
    if owner is None:
        raise no_transaction(id)
    account = settle(connection, catalog, owner, call, lock=True).account
    entry = _deduction(connection, own, sequence)  # under the lock: what is archived waits for it
    refuse_if_reversed(connection, own, sequence)
    refuse_earlier(account, call)
    save(connection, account, call)
    row = account.post(
        call,
        "reversal",
        -entry.amount,
        details=Details(operation=entry.operation, reason=details.reason, reverses=(own, sequence)),
    )
    for grant, credits in shares(connection, entry).items():
        lot = next(lot for lot in account.book.lots if lot.id == grant)
        lot.used -= credits
        lot.remaining += credits
    return row, true_at(connection, catalog, account, call)


def _deduction(connection: Connection, account: int, sequence: int) -> Row[Any]:
    tx, id = t.transactions.c, transaction_id(account, sequence)
    wanted = select(t.transactions).where(tx.account_id == account, tx.sequence == sequence)
    entry = connection.execute(wanted).first()
    if entry is None and is_archived(connection, account, sequence):
        raise NotFound(f"Transaction {id!r} is archived and cannot be reversed any more.", transaction=id)
    if entry is None:
        raise no_transaction(id)
    if entry.type != "deduct":
        raise InvalidInput(f"{id} is a {entry.type}; only a deduct can be reversed.")
    return entry


def shares(connection: Connection, entry: Row[Any]) -> dict[int, int]:
    """Return what each grant paid of a settled deduction, by grant id."""
    d = t.draws.c
    rows = connection.execute(
        select(t.draws).where(
            d.account_id == entry.account_id,
            d.first_sequence <= entry.sequence,
            d.last_sequence >= entry.sequence,
        )
    ).all()
    return overlap(rows, entry.balance_after, entry.balance_after - entry.amount)


def overlap(draws: Sequence[Any], low: int, high: int) -> dict[int, int]:
    """Return the credits of each grant whose stretch of balances meets [low, high)."""
    found: dict[int, int] = defaultdict(int)
    for draw in draws:
        common = min(high, draw.balance_from) - max(low, draw.balance_to)
        if common > 0:
            found[draw.grant_id] += common
    return dict(found)
