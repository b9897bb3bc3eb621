"""The ledger laws, recomputed from the entries (docs/rules.md §6)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from polarcredits.errors import PolarCreditsError
from polarcredits.ledger import tables as t
from polarcredits.ledger.archived import grant_openings, openings
from polarcredits.ledger.identity import account_of
from polarcredits.ledger.keeping import load
from polarcredits.ledger.laws import suspects
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


def verify(
    ledger: Ledger,
    *,
    user: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verified:
    """Recompute every balance, sequence and grant; name the user and the difference.

    Everybody's are recomputed by set; only an account that breaks a law is then looked at by itself.
    `progress` is called with (done, total) accounts.
    """
    a, b, o = t.accounts.c, t.balances.c, openings.c
    archived = select(o.account_id, func.max(o.sequence).label("sequence")).group_by(o.account_id).subquery()
    there = b.sequence - func.coalesce(archived.c.sequence, 0)
    count = select(func.count(a.id), func.coalesce(func.sum(there), 0)).select_from(
        t.accounts.outerjoin(t.balances, b.account_id == a.id).outerjoin(
            archived, archived.c.account_id == a.id
        )
    )
    suspected = suspects(ledger, progress) if user is None else set()

    def work(connection: Connection) -> Verified:
        if user is None:
            users, entries = connection.execute(count).one()
            problems = verify_some(connection, suspected)
        else:
            account = account_of(connection, user)
            users, entries = connection.execute(count.where(a.id == account)).one()
            own = select(a.id).where((a.id == account) | (a.alias_of == account))
            problems = verify_some(connection, connection.execute(own).scalars().all())
        return Verified(users=users, transactions=int(entries), problems=problems)

    return ledger.reading(work)


def verify_some(connection: Connection, accounts: Iterable[int]) -> list[Problem]:
    """Check only some accounts, by their ids."""
    a = t.accounts.c
    problems: list[Problem] = []
    for account in sorted(accounts):
        user, merged = connection.execute(select(a.user_id, a.alias_of).where(a.id == account)).one()
        problems += _account(connection, account, user)
        if merged is not None:
            problems += _merged(connection, account, user)
    return problems


def _account(connection: Connection, account: int, user: str) -> list[Problem]:
    b, tx = t.balances.c, t.transactions.c
    stored = connection.execute(select(t.balances).where(b.account_id == account)).first()
    if stored is None:
        return [_problem("no_balance", user, "there is no balance row")]
    problems = list(_openings(connection, account, user))
    o = openings.c
    opened = connection.execute(
        select(o.balance, o.sequence, o.occurred_at)
        .where(o.account_id == account)
        .order_by(o.sequence.desc())
    ).first()
    balance, sequence, occurred = opened or (0, 0, 0)
    entries = connection.execute(
        select(tx.sequence, tx.amount, tx.balance_after, tx.occurred_at)
        .where(tx.account_id == account, tx.sequence > sequence)
        .order_by(tx.sequence)
    )
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
    return [
        *problems,
        *_draws(connection, account, user),
        *_grants(connection, account, user, stored.balance),
    ]


def _merged(connection: Connection, account: int, user: str) -> Iterable[Problem]:
    """Check that nothing is left on an account that was merged into another: nobody could spend it."""
    b = t.balances.c
    left = connection.execute(select(b.balance, b.held).where(b.account_id == account)).first()
    if left is not None and (left.balance or left.held):
        detail = f"it was merged into another account, yet has a balance of {left.balance}, {left.held} held"
        yield _problem("merged", user, detail)


def _openings(connection: Connection, account: int, user: str) -> Iterable[Problem]:
    """Check that what is archived adds up to its openings, and that nothing of it is among the entries."""
    o, g, tx = openings.c, grant_openings.c, t.transactions.c
    moved = select(func.coalesce(func.sum(g.amount), 0)).where(g.account_id == account)
    balance = sequence = 0
    for opening in connection.execute(select(openings).where(o.account_id == account).order_by(o.sequence)):
        sequence, change = opening.sequence, opening.balance - balance
        told = connection.execute(moved.where(g.sequence == sequence)).scalar_one()
        if told != change:
            detail = f"entries archived up to {sequence} add up to {change}, their grants moved by {told}"
            yield _problem("opening", user, detail)
        balance = opening.balance
    archived = select(tx.sequence).where(tx.account_id == account, tx.sequence <= sequence)
    for entry in connection.execute(archived.order_by(tx.sequence)).scalars():
        yield _problem("opening", user, f"entry {entry} is there, yet archived up to {sequence}")


def _draws(connection: Connection, account: int, user: str) -> Iterable[Problem]:
    """Check that what grants paid runs from the balance before the deductions to the one after them."""
    d, tx = t.draws.c, t.transactions.c
    entries = select(tx.sequence, tx.amount, tx.balance_after).where(tx.account_id == account)
    order = (d.first_sequence, d.position)
    drawn = connection.execute(select(t.draws).where(d.account_id == account).order_by(*order)).all()
    for draw, following in zip(drawn, [*drawn, None][1:], strict=True):
        first = connection.execute(entries.where(tx.sequence == draw.first_sequence)).first()
        last = connection.execute(entries.where(tx.sequence == draw.last_sequence)).first()
        begins = ends = None
        if first is not None:
            begins = first.balance_after - first.amount if draw.position == 0 else draw.balance_from
        if last is not None:
            shared = following is not None and following.first_sequence == draw.first_sequence
            ends = following.balance_from if following is not None and shared else last.balance_after
        paid = draw.balance_from - draw.balance_to
        if (begins, ends) != (draw.balance_from, draw.balance_to) or not 0 < draw.credits == paid:
            where = f"entries {draw.first_sequence} to {draw.last_sequence}"
            yield _problem("draws", user, f"what grant {draw.grant_id} paid of {where} does not fit them")


def _grants(connection: Connection, account: int, user: str, balance: int) -> Iterable[Problem]:
    """Check that grants hold what their movements say, and holds what they reserve."""
    h = t.holds.c
    reserved = connection.execute(
        select(func.coalesce(func.sum(h.amount), 0)).where(h.account_id == account, h.status == "open")
    ).scalar_one()
    try:
        loaded = load(connection, account, lock=False)
    except (AssertionError, LookupError, PolarCreditsError) as error:
        return [_problem("settlement", user, f"spending exceeds the grants: {error}")]
    lines = movements(connection, loaded)
    found = []
    for number, lot in enumerate(loaded.book.lots):
        moved = sum(line.amount for line in lines.get(number, ()))
        if lot.remaining != moved:
            detail = f"grant {lot.key} holds {lot.remaining}, its movements say {moved}"
            found.append(_problem("grant", user, detail))
        spent = -sum(line.amount for line in lines.get(number, ()) if line.type in ("deduct", "reversal"))
        if lot.used != spent:
            detail = f"grant {lot.key} says {lot.used} were used, its deductions say {spent}"
            found.append(_problem("used", user, detail))
        carried = sum(carry.amount for carry in loaded.book.carries if carry.target is lot)
        if lot.carried_in != carried:
            detail = f"grant {lot.key} began with {lot.carried_in} used, its carries say {carried}"
            found.append(_problem("carried", user, detail))
        on_hold = sum(credits for hold in loaded.holds for of, credits in hold.parts if of is lot)
        if lot.held != on_hold:
            found.append(
                _problem("held", user, f"grant {lot.key} holds back {lot.held}, holds say {on_hold}")
            )
    if loaded.held != reserved:
        detail = f"held is {loaded.held}, open holds add up to {reserved}"
        found.append(_problem("held", user, detail))
    total = sum(lot.remaining for lot in loaded.book.lots)
    if total != balance:
        found.append(_problem("grants", user, f"grants hold {total}, the balance is {balance}"))
    return found


def _problem(code: str, user: str, detail: str) -> Problem:
    return Problem(code=code, user=user, detail=detail)
