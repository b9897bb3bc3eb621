"""Reads: show, explain, history and lists. They settle in memory and write nothing (§5.8)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple, get_args

from sqlalchemy import ColumnElement, Connection, Row, select

from polarcredits.billing import PAID
from polarcredits.entitlements import Shown
from polarcredits.errors import InvalidInput, NotFound
from polarcredits.facts import OrderFact
from polarcredits.ledger import tables as t
from polarcredits.ledger.account import moment
from polarcredits.ledger.archived import archived_until
from polarcredits.ledger.facts import observed
from polarcredits.ledger.identity import account_of, find
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.reconcile import Settled
from polarcredits.ledger.values import Balance, Transaction, transaction
from polarcredits.lots import EntryType, Lot
from polarcredits.periods import from_micros, to_micros
from polarcredits.userids import PLACEHOLDER

_PAGE = 200
_RECENT = 20
"""A checkout that somebody asks about is among a customer's last orders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What `credits show` tells."""

    user: str
    plan: str
    status: str | None
    balance: Balance
    grants: list[Lot]
    subscriptions: list[Shown]
    next_refill_at: datetime | None
    as_of: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A user."""

    id: str
    email: str | None
    name: str | None
    plan: str
    status: str | None
    polar_customer_ids: list[str]
    created_at: datetime


def statement(ledger: Ledger, user: str, at: datetime | None = None) -> Statement:
    """Return a user's plan, balance and live grants at *at* (default now). Raises UnknownUser."""

    def work(connection: Connection) -> Statement:
        settled = ledger.view(connection, user, at)
        now = settled.now
        account, entitled = settled.account, settled.entitled
        return Statement(
            user=account.user,
            plan=entitled.plan,
            status="closed" if account.closed else entitled.status,
            balance=_balance(settled),
            grants=account.book.live(now),
            subscriptions=entitled.subscriptions,
            next_refill_at=entitled.next_refill_at,
            as_of=now,
        )

    return ledger.reading(work)


def show_user(ledger: Ledger, user: str) -> User:
    """Return a user. Raises UnknownUser."""

    def work(connection: Connection) -> User:
        settled = ledger.view(connection, user)
        a = t.accounts.c
        row = connection.execute(select(t.accounts).where(a.id == settled.account.id)).one()
        return _user(connection, row, settled)

    return ledger.reading(work)


def list_users(ledger: Ledger, *, plan: str | None, limit: int) -> list[User]:
    """Return users, newest first."""

    def work(connection: Connection) -> list[User]:
        found = _matching(ledger, connection, plan=plan, below=None)
        return [_user(connection, row, settled) for row, settled in islice(found, limit)]

    return ledger.reading(work)


def _matching(
    ledger: Ledger, connection: Connection, *, plan: str | None, below: int | None
) -> Iterator[tuple[Row[Any], Settled]]:
    """Yield accounts, newest first, read a page at a time and settled in memory.

    What nothing has fallen due for is as it is written: the database leaves out what does not match.
    """
    a, b = t.accounts.c, t.balances.c
    query = select(t.accounts).join_from(t.accounts, t.balances, b.account_id == a.id)
    query = query.where(a.alias_of.is_(None)).order_by(a.id.desc()).limit(_PAGE)
    due = b.next_due_at <= to_micros(ledger.call().now)
    if plan is not None:
        query = query.where(due | (a.plan == plan))
    if below is not None:
        query = query.where(due | (b.balance - b.held < below))
    beyond = 2**62
    while rows := connection.execute(query.where(a.id < beyond)).all():
        for row in rows:
            settled = ledger.view(connection, row.user_id)
            low = below is None or settled.account.available < below
            if low and (plan is None or settled.entitled.plan == plan):
                yield row, settled
        beyond = rows[-1].id


def _user(connection: Connection, row: Row[Any], settled: Settled) -> User:
    c = t.customers.c
    mine = (c.external_id == row.user_id) | (c.linked_user == row.user_id)
    if row.user_id.startswith(PLACEHOLDER):
        mine = mine | (c.id == row.user_id.removeprefix(PLACEHOLDER))
    customers = connection.execute(select(t.customers).where(mine).order_by(c.id)).all()
    return User(
        id=row.user_id,
        email=row.email or next((each.email for each in customers if each.email), None),
        name=row.name or next((each.name for each in customers if each.name), None),
        plan=settled.entitled.plan,
        status="closed" if settled.account.closed else settled.entitled.status,
        polar_customer_ids=[each.id for each in customers],
        created_at=from_micros(row.created_at),
    )


def history(
    ledger: Ledger,
    user: str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    type: str | None = None,
    limit: int | None = 50,
) -> list[Transaction]:
    """Return posted entries, newest first, those of merged accounts too.

    Raises UnknownUser; InvalidInput where *type* is none of the ledger's.
    """
    if type is not None and type not in get_args(EntryType):
        raise InvalidInput(f"No entry is a {type!r}; there are {', '.join(get_args(EntryType))}.")
    tx, a = t.transactions.c, t.accounts.c

    def work(connection: Connection) -> list[Transaction]:
        account = account_of(connection, user)
        whose = connection.execute(select(a.id, a.user_id).where((a.id == account) | (a.alias_of == account)))
        names = {row.id: row.user_id for row in whose}
        query = select(t.transactions).where(tx.account_id.in_(names))
        if since is not None:
            query = query.where(tx.occurred_at >= to_micros(since))
        if until is not None:
            query = query.where(tx.occurred_at < to_micros(until))
        if type is not None:
            query = query.where(tx.type == type)
        order: tuple[ColumnElement[int], ...] = (tx.sequence.desc(),)
        if len(names) > 1:
            order = (tx.occurred_at.desc(), tx.recorded_at.desc(), *order)
        rows = connection.execute(query.order_by(*order).limit(limit))
        return [transaction(row._asdict(), names[row.account_id]) for row in rows]

    return ledger.reading(work)


def archived(ledger: Ledger, user: str) -> datetime | None:
    """Return the time of a user's last archived entry: `history` goes no further back. Raises UnknownUser."""
    return ledger.reading(lambda connection: archived_until(connection, account_of(connection, user)))


def balances(
    ledger: Ledger, *, plan: str | None, below: int | None, limit: int
) -> list[tuple[str, str, Balance]]:
    """Return (user, plan, balance), newest first."""

    def work(connection: Connection) -> list[tuple[str, str, Balance]]:
        found = _matching(ledger, connection, plan=plan, below=below)
        return [
            (settled.account.user, settled.entitled.plan, _balance(settled))
            for _, settled in islice(found, limit)
        ]

    return ledger.reading(work)


def _balance(settled: Settled) -> Balance:
    account = settled.account
    return Balance(
        balance=account.balance,
        held=account.held,
        available=account.available,
        owed=account.book.owed,
    )


def list_subscriptions(
    ledger: Ledger,
    *,
    user: str | None = None,
    status: str | None = None,
    id: str | None = None,
    limit: int = 50,
) -> list[dict[str, Any]]:
    """Return subscriptions, newest first; NotFound where *id* is none."""
    s = t.subscriptions.c
    query = select(t.subscriptions).order_by(s.created_at.desc(), s.id.desc()).limit(limit)
    if status is not None:
        query = query.where(s.status == status)
    if id is not None:
        query = query.where(s.id == id)

    def work(connection: Connection) -> list[dict[str, Any]]:
        rows = connection.execute(_owned(connection, query, s.owner, user)).all()
        if id is not None and not rows:
            raise NotFound(f"No subscription {id!r}. See: polarcredits subscriptions list", subscription=id)
        return [_subscription(ledger, row) for row in rows]

    return ledger.reading(work)


def list_payments(ledger: Ledger, *, user: str | None = None, limit: int = 50) -> list[dict[str, Any]]:
    """Return orders, newest first; cents before tax."""
    p = t.payments.c
    query = select(t.payments).order_by(p.created_at.desc(), p.id.desc()).limit(limit)

    def work(connection: Connection) -> list[dict[str, Any]]:
        return [
            {
                "order_id": row.id,
                "user": row.owner,
                "product_id": row.product_id,
                "amount_cents": row.net_cents,
                "refunded_cents": row.refunded_cents,
                "currency": row.currency,
                "status": row.status,
                "billing_reason": row.billing_reason,
                "created_at": from_micros(row.created_at),
            }
            for row in connection.execute(_owned(connection, query, p.owner, user))
        ]

    return ledger.reading(work)


class Buyer(NamedTuple):
    """Whose the order of a checkout is."""

    user: str
    opened: bool
    """Whether the checkout was opened for the user, or the account began with it: not so where a visitor
    only typed the e-mail address of somebody whom Polar knew."""


def buyer_of(ledger: Ledger, customer: str, checkout: str) -> Buyer | None:
    """Return the owner of the order that a customer's checkout led to, once it is known to be paid."""
    p = t.payments.c
    query = select(p.id, p.owner, p.user_id).where(p.customer_id == customer, p.status.in_(sorted(PAID)))

    def work(connection: Connection) -> Buyer | None:
        recent = connection.execute(query.order_by(p.created_at.desc(), p.id).limit(_RECENT)).all()
        told = observed(connection, OrderFact, [row.id for row in recent])
        for row in recent:
            bodies = (json.loads(fact.snapshot.body) for fact in told[row.id])
            if row.owner is not None and any(body.get("checkout_id") == checkout for body in bodies):
                alone = row.owner.startswith(PLACEHOLDER) and len(recent) == 1
                return Buyer(row.owner, opened=row.user_id is not None or alone)
        return None

    return ledger.reading(work)


def _owned(connection: Connection, query: Any, owner: Any, user: str | None) -> Any:
    if user is None:
        return query
    a = t.accounts.c
    account = find(connection, user)[1]
    name = connection.execute(select(a.user_id).where(a.id == account)).scalar_one()
    return query.where(owner == name)


def _subscription(ledger: Ledger, row: Row[Any]) -> dict[str, Any]:
    plan = ledger.catalog.plan_for_product(row.product_id) if row.product_id else None
    return {
        "id": row.id,
        "user": row.owner,
        "plan": plan.name if plan else None,
        "product_id": row.product_id,
        "status": row.status,
        "current_period_start": moment(row.current_period_start),
        "current_period_end": moment(row.current_period_end),
        "cancel_at_period_end": bool(row.cancel_at_period_end),
        "ends_at": moment(row.ends_at),
        "ended_at": moment(row.ended_at),
    }
