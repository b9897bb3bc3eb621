"""The ledger laws, recomputed from the entries (docs/rules.md §6)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from polarcredits.errors import PolarCreditsError
from polarcredits.ledger import tables as t
from polarcredits.ledger.identity import account_of
from polarcredits.ledger.keeping import load
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.past import movements


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A law that does not hold."""

    code: str
    user: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What was looked at and what was found."""

    users: int
    transactions: int
    problems: list[Problem]


def verify(ledger: Ledger, *, user: str | None = None) -> Verified:
    """Recompute every balance, sequence and grant; name the user and the difference."""

    def work(connection: Connection) -> Verified:
        a = t.accounts.c
        query = select(a.id, a.user_id).order_by(a.id)
        if user is not None:
            query = query.where(a.id == account_of(connection, user))
        problems: list[Problem] = []
        users = entries = 0
        for row in connection.execute(query).all():
            users += 1
            counted, found = _account(connection, row.id, row.user_id)
            entries += counted
            problems += found
        return Verified(users=users, transactions=entries, problems=problems)

    return ledger.reading(work)


def verify_some(connection: Connection, accounts: Iterable[int]) -> list[Problem]:
    """Check only some accounts, by their ids."""
    a = t.accounts.c
    rows = connection.execute(select(a.id, a.user_id).where(a.id.in_(list(accounts))).order_by(a.id)).all()
    return [problem for row in rows for problem in _account(connection, row.id, row.user_id)[1]]


def _account(connection: Connection, account: int, user: str) -> tuple[int, list[Problem]]:
    b, tx = t.balances.c, t.transactions.c
    stored = connection.execute(select(t.balances).where(b.account_id == account)).first()
    if stored is None:
        return 0, [Problem(code="no_balance", user=user, detail="there is no balance row")]
    entries = connection.execute(
        select(tx.sequence, tx.amount, tx.balance_after, tx.occurred_at)
        .where(tx.account_id == account)
        .order_by(tx.sequence)
    )
    problems: list[Problem] = []
    balance = sequence = occurred = 0
    for entry in entries:
        balance += entry.amount
        sequence += 1
        if entry.sequence != sequence:
            problems.append(_problem("gap", user, f"entry {sequence} is missing"))
            sequence = entry.sequence
        if entry.balance_after != balance:
            detail = f"entry {sequence} says {entry.balance_after}, the sum is {balance}"
            problems.append(_problem("balance_after", user, detail))
        if entry.occurred_at < occurred:
            problems.append(_problem("time", user, f"entry {sequence} runs back in time"))
        occurred = entry.occurred_at
    if stored.balance != balance:
        off = stored.balance - balance
        detail = f"balance is {stored.balance}, entries add up to {balance} (off by {off:+})"
        problems.append(_problem("balance", user, detail))
    if stored.sequence != sequence:
        detail = f"sequence is {stored.sequence}, there are {sequence} entries"
        problems.append(_problem("sequence", user, detail))
    return sequence, [*problems, *_grants(connection, account, user, stored.balance)]


def _grants(connection: Connection, account: int, user: str, balance: int) -> Iterable[Problem]:
    """Check that grants hold what their movements say, and holds what they reserve."""
    h = t.holds.c
    reserved = connection.execute(
        select(func.coalesce(func.sum(h.amount), 0)).where(h.account_id == account, h.status == "open")
    ).scalar_one()
    try:
        loaded = load(connection, account, lock=False)
    except (AssertionError, PolarCreditsError) as error:
        return [_problem("settlement", user, f"spending exceeds the grants: {error}")]
    lines = movements(connection, loaded)
    found = []
    for number, lot in enumerate(loaded.book.lots):
        moved = sum(line.amount for line in lines.get(number, ()))
        if lot.remaining != moved:
            detail = f"grant {lot.key} holds {lot.remaining}, its movements say {moved}"
            found.append(_problem("grant", user, detail))
    if loaded.held != reserved:
        detail = f"held is {loaded.held}, open holds add up to {reserved}"
        found.append(_problem("held", user, detail))
    total = sum(lot.remaining for lot in loaded.book.lots)
    if total != balance:
        found.append(_problem("grants", user, f"grants hold {total}, the balance is {balance}"))
    return found


def _problem(code: str, user: str, detail: str) -> Problem:
    return Problem(code=code, user=user, detail=detail)
