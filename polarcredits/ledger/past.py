"""What moved each grant, and how an account stood in the past (docs/rules.md §5.8).

Entries name their grant, but deductions do not: their shares follow from their balances.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, or_, select

from polarcredits.billing import LIVE, Subscription
from polarcredits.entitlements import AccountFacts, entitlements, subjects
from polarcredits.ledger import tables as t
from polarcredits.ledger.account import LoadedAccount
from polarcredits.ledger.archived import grant_openings, refuse_archived
from polarcredits.ledger.known import account_facts
from polarcredits.ledger.reconcile import Settled, known_terms
from polarcredits.ledger.reversal import overlap
from polarcredits.lots import Lot
from polarcredits.periods import from_micros, to_micros
from polarcredits.plans import Catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """A line of a grant's story; a `deduct` may stand for several deductions in a row."""

    type: str
    amount: int
    occurred_at: datetime
    cause: str


def movements(
    connection: Connection, account: LoadedAccount, until: datetime | None = None
) -> dict[int, list[Movement]]:
    """Return what moved each grant (by its place in the book), up to a time, oldest first."""
    book = account.book
    place = {lot.id: number for number, lot in enumerate(book.lots) if lot.id is not None}
    found: dict[int, list[Movement]] = defaultdict(list)
    stop = None if until is None else to_micros(until)
    for row, lot in _entries(connection, account, set(place), stop):
        number = book.lots.index(lot) if lot is not None else place[row["grant_id"]]
        found[number].append(_line(row, row["amount"]))
    for number, line in [*_archived(connection, place), *_spent(connection, account, place, stop)]:
        found[number].append(line)
    for carry in book.carries:
        since = carry.target.effective_at
        if carry.debt and (until is None or since <= until):
            for lot, amount in ((carry.source, carry.amount), (carry.target, -carry.amount)):
                line = Movement(type="adjust", amount=amount, occurred_at=since, cause="debt")
                found[book.lots.index(lot)].append(line)
    for lines in found.values():
        lines.sort(key=lambda line: line.occurred_at)
    return found


def _entries(
    connection: Connection, account: LoadedAccount, grants: set[int], stop: int | None
) -> list[tuple[dict[str, Any], Lot | None]]:
    tx = t.transactions.c
    query = select(t.transactions).where(tx.grant_id.in_(grants)).order_by(tx.sequence)
    if stop is not None:
        query = query.where(tx.occurred_at <= stop)
    rows: list[tuple[dict[str, Any], Lot | None]] = [
        (row._asdict(), None) for row in connection.execute(query)
    ]
    rows += [
        (row, lot)
        for row, lot in account.unsaved_entries
        if lot is not None and (stop is None or row["occurred_at"] <= stop)
    ]
    return rows


def _archived(connection: Connection, place: dict[int, int]) -> Iterator[tuple[int, Movement]]:
    """Yield what archived entries moved in sum: all of them lie before any time that can be asked for."""
    query = select(grant_openings).where(grant_openings.c.grant_id.in_(place))
    for row in connection.execute(query.order_by(*grant_openings.primary_key)):
        when = from_micros(row.occurred_at)
        line = Movement(type=row.type, amount=row.amount, occurred_at=when, cause="archived")
        yield place[row.grant_id], line


def _line(row: dict[str, Any], amount: int) -> Movement:
    return Movement(
        type=row["type"],
        amount=amount,
        occurred_at=from_micros(row["occurred_at"]),
        cause=row["reason"] or row["actor"],
    )


@dataclass(frozen=True, slots=True)
class _Stretch:
    account_id: int
    first_sequence: int
    last_sequence: int
    grant_id: int
    balance_from: int
    balance_to: int


def _spent(
    connection: Connection, account: LoadedAccount, place: dict[int, int], stop: int | None
) -> list[tuple[int, Movement]]:
    """Return the shares of deductions and of reversals, by the place of the grant."""
    d, tx = t.draws.c, t.transactions.c
    stretches = [
        _Stretch(
            row.account_id,
            row.first_sequence,
            row.last_sequence,
            row.grant_id,
            row.balance_from,
            row.balance_to,
        )
        for row in connection.execute(select(t.draws).where(d.grant_id.in_(place)))
    ]
    stretches += [
        _Stretch(account.id, first, last, draw.lot.id or 0, draw.balance_from, draw.balance_to)
        for first, last, draw in account.unsaved_draws
        if draw.lot.id is not None
    ]
    lines: list[tuple[int, Movement]] = []
    for stretch in stretches:
        of = and_(
            tx.account_id == stretch.account_id,
            tx.sequence >= stretch.first_sequence,
            tx.sequence <= stretch.last_sequence,
        )
        query = select(t.transactions).where(of).order_by(tx.sequence.desc()).limit(1)
        if stop is not None:
            query = query.where(tx.occurred_at <= stop)
        last = connection.execute(query).first()
        if last is None:
            continue
        amount = stretch.balance_from - max(stretch.balance_to, last.balance_after)
        if amount > 0:
            many = last.sequence > stretch.first_sequence
            cause = "deductions" if many else last.operation or last.actor
            line = Movement(
                type="deduct",
                amount=-amount,
                occurred_at=from_micros(last.occurred_at),
                cause=cause,
            )
            lines.append((place[stretch.grant_id], line))
    return lines + _reversed(connection, place, stretches, stop)


def _reversed(
    connection: Connection, place: dict[int, int], stretches: list[_Stretch], stop: int | None
) -> list[tuple[int, Movement]]:
    tx = t.transactions.c
    accounts = {stretch.account_id for stretch in stretches}
    back = select(t.transactions).where(tx.reverses_account.in_(accounts), tx.reverses_sequence.is_not(None))
    if stop is not None:
        back = back.where(tx.occurred_at <= stop)
    lines: list[tuple[int, Movement]] = []
    for reversal in connection.execute(back).all():
        deduction = connection.execute(
            select(t.transactions).where(
                tx.account_id == reversal.reverses_account,
                tx.sequence == reversal.reverses_sequence,
            )
        ).first()
        if deduction is None:
            continue
        mine = [
            stretch
            for stretch in stretches
            if stretch.account_id == deduction.account_id
            and stretch.first_sequence <= deduction.sequence <= stretch.last_sequence
        ]
        shares = overlap(mine, deduction.balance_after, deduction.balance_after - deduction.amount)
        for grant, credits in shares.items():
            lines.append((place[grant], _line(reversal._asdict(), credits)))
    return lines


def as_it_was(connection: Connection, catalog: Catalog, account: LoadedAccount, at: datetime) -> Settled:
    """Return an account as its entries up to *at* tell, with expiry and lapse applied at *at*.

    Raises InvalidInput where they are archived.
    """
    refuse_archived(connection, account.id, at)
    lines = movements(connection, account, at)
    facts = account_facts(connection, account.user)
    changed_since = account.loaded_at > to_micros(at) or _latest_news(facts) > at
    reserved = _reserved(connection, account.id, to_micros(at))
    kept: list[Lot] = []
    for number, lot in enumerate(account.book.lots):
        story = lines.get(number)
        if not story:
            continue
        lot.remaining = sum(line.amount for line in story)
        lot.used = -sum(line.amount for line in story if line.type in ("deduct", "reversal"))
        lot.held = reserved.get(lot.id or 0, 0)
        if changed_since:
            lot.clawed = 0
            lot.gross = max(0, lot.remaining) + lot.spent
        if lot.lapsed(at):
            lot.remaining = min(lot.remaining, lot.held)
        kept.append(lot)
    account.book.lots = kept
    if changed_since:
        account.book.carries = []
    account.balance = sum(lot.remaining for lot in kept)
    account.held = sum(reserved.values())
    then = replace(facts, subscriptions=tuple(_then(facts.subscriptions, at)))
    entitled = entitlements(then, known_terms(connection, subjects(then)), catalog, at)
    return Settled(account=account, facts=facts, entitled=entitled, now=at, past=True)


def _latest_news(facts: AccountFacts) -> datetime:
    """Return the as-of of the newest fact."""
    heard = [subscription.latest.snapshot.as_of for subscription in facts.subscriptions]
    heard += [payment.latest.snapshot.as_of for payment in facts.payments]
    return max(heard, default=from_micros(0))


def _then(subscriptions: Iterable[Subscription], at: datetime) -> Iterator[Subscription]:
    """Return the subscriptions that had begun by *at*, with the product and status of that time."""
    for subscription in subscriptions:
        latest = subscription.latest
        begun = [period for period in subscription.periods if period.start <= at]
        if not begun or (latest.started_at and latest.started_at > at):
            continue
        period, status, product = begun[-1], latest.status, latest.product_id
        if status not in LIVE and subscription.ends and subscription.ends > at:
            status = period.status if period.status in LIVE else "active"
        heard = [version for version in period.versions if version.as_of <= at] or period.versions[:1]
        product = heard[-1].product_id if heard else product
        yield replace(subscription, latest=replace(latest, status=status, product_id=product))


def _reserved(connection: Connection, account: int, at: int) -> dict[int, int]:
    """Return what open holds reserved on each grant at *at*."""
    h = t.holds.c
    query = select(h.parts).where(
        h.account_id == account,
        h.placed_at <= at,
        h.expires_at > at,
        or_(h.closed_at.is_(None), h.closed_at > at),
    )
    held: dict[int, int] = defaultdict(int)
    for parts in connection.execute(query).scalars():
        for grant, credits in json.loads(parts):
            held[grant] += credits
    return held
