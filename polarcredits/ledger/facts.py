"""Facts in the database: record what Polar said, fold it, and find whose it is (docs/rules.md §§1, 7).

A fact is an observation that is only ever added; the rows of `subscriptions`, `payments` and
`customers` are what all observations of one object add up to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import TypeAdapter
from sqlalchemy import Connection, bindparam, func, select, text, update

from polarcredits.billing import Payment, Subscription, fold_payment, fold_subscription, rank
from polarcredits.entitlements import AccountFacts
from polarcredits.facts import (
    CustomerFact,
    DisputeFact,
    Fact,
    OrderFact,
    RefundFact,
    SubscriptionFact,
)
from polarcredits.ledger import tables as t
from polarcredits.ledger.account import micros
from polarcredits.ledger.database import insert_once, upsert
from polarcredits.periods import to_micros
from polarcredits.userids import PLACEHOLDER

F = TypeVar("F", CustomerFact, SubscriptionFact, OrderFact, RefundFact, DisputeFact)
KINDS: dict[type[Any], str] = {
    CustomerFact: "customer",
    SubscriptionFact: "subscription",
    OrderFact: "order",
    RefundFact: "refund",
    DisputeFact: "dispute",
}
_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in KINDS}


def record(connection: Connection, facts: Iterable[Fact]) -> None:
    """Add *facts* and bring the rows of their objects up to date."""
    for fact in facts:
        body = _ADAPTERS[type(fact)].dump_json(fact)
        new = insert_once(
            connection,
            t.observations,
            kind=KINDS[type(fact)],
            object_id=fact.id,
            as_of=to_micros(fact.snapshot.as_of),
            digest=hashlib.sha256(body).hexdigest(),
            fields=body.decode(),
        )
        if not new:
            continue
        if isinstance(fact, CustomerFact):
            _write_customer(connection, fact.id)
        elif isinstance(fact, SubscriptionFact):
            _write_subscription(connection, fact.id)
        elif isinstance(fact, OrderFact):
            _write_payment(connection, fact.id)
        else:
            kind = KINDS[type(fact)]
            upsert(connection, t.refunds, {"kind": kind, "id": fact.id}, order_id=fact.order_id)
            _write_payment(connection, fact.order_id)


_OBSERVED = select(t.observations.c.object_id, t.observations.c.fields).where(
    t.observations.c.kind == bindparam("kind"),
    t.observations.c.object_id.in_(bindparam("ids", expanding=True)),
)


def observed(connection: Connection, kind: type[F], ids: Iterable[str]) -> dict[str, list[F]]:
    """Return all observations of some objects of one kind, by object."""
    found: dict[str, list[F]] = {}
    wanted = list(ids)
    for at in range(0, len(wanted), 500):
        few = {"kind": KINDS[kind], "ids": wanted[at : at + 500]}
        for row in connection.execute(_OBSERVED, few):
            found.setdefault(row.object_id, []).append(_ADAPTERS[kind].validate_json(row.fields))
    return found


def _write_customer(connection: Connection, customer: str) -> None:
    history = sorted(observed(connection, CustomerFact, [customer])[customer], key=rank)
    whole = [fact for fact in history if not fact.embedded] or history
    upsert(
        connection,
        t.customers,
        {"id": customer},
        external_id=next((f.external_id for f in reversed(history) if f.external_id), None),
        deleted=int(any(fact.deleted_at for fact in history)),
        email=whole[-1].email,
        name=whole[-1].name,
    )


def _write_subscription(connection: Connection, subscription: str) -> None:
    history = observed(connection, SubscriptionFact, [subscription])[subscription]
    latest = fold_subscription(history).latest
    upsert(
        connection,
        t.subscriptions,
        {"id": subscription},
        customer_id=latest.customer_id,
        user_id=_named(history),
        product_id=latest.product_id,
        status=latest.status,
        created_at=to_micros(latest.created_at or latest.snapshot.as_of),
        current_period_start=micros(latest.current_period_start),
        current_period_end=micros(latest.current_period_end),
        cancel_at_period_end=int(latest.cancel_at_period_end),
        ends_at=micros(latest.ends_at),
        ended_at=micros(latest.ended_at),
    )


def _write_payment(connection: Connection, order: str) -> None:
    history = observed(connection, OrderFact, [order]).get(order)
    if not history:
        return
    payment = _payments(connection, {order: history})[0]
    latest = payment.latest
    upsert(
        connection,
        t.payments,
        {"id": order},
        customer_id=latest.customer_id,
        user_id=_named(history),
        subscription_id=latest.subscription_id,
        product_id=latest.product_id,
        status=latest.status,
        billing_reason=latest.billing_reason,
        net_cents=latest.net_cents,
        refunded_cents=payment.refunded_cents,
        currency=latest.currency,
        created_at=to_micros(latest.created_at or latest.snapshot.as_of),
    )


def _named(history: Iterable[SubscriptionFact | OrderFact]) -> str | None:
    """Return the user that an object's own metadata names, the newest snapshot that has one."""
    return next((f.user_id for f in sorted(history, key=rank, reverse=True) if f.user_id), None)


def _payments(connection: Connection, orders: dict[str, list[OrderFact]]) -> list[Payment]:
    r = t.refunds.c
    belonging = connection.execute(select(t.refunds).where(r.order_id.in_(list(orders)))).all()
    refunds = observed(connection, RefundFact, [b.id for b in belonging if b.kind == "refund"])
    disputes = observed(connection, DisputeFact, [b.id for b in belonging if b.kind == "dispute"])
    return [
        fold_payment(
            history,
            [f for b in belonging if b.order_id == order for f in refunds.get(b.id, ())],
            [f for b in belonging if b.order_id == order for f in disputes.get(b.id, ())],
        )
        for order, history in orders.items()
    ]


def account_facts(connection: Connection, user: str) -> AccountFacts:
    """Return everything that *user* owns, folded; in one order whatever the order of arrival."""
    s, p = t.subscriptions.c, t.payments.c
    ids = connection.execute(select(s.id).where(s.owner == user).order_by(s.id)).scalars().all()
    orders = connection.execute(select(p.id).where(p.owner == user).order_by(p.id)).scalars().all()
    histories = observed(connection, SubscriptionFact, ids)
    folded: list[Subscription] = [fold_subscription(histories[id]) for id in ids]
    heard = observed(connection, OrderFact, orders)
    payments = _payments(connection, {id: heard[id] for id in orders}) if orders else []
    return AccountFacts(user=user, subscriptions=tuple(folded), payments=tuple(payments))


def lock_customers(connection: Connection, customer_ids: Iterable[str]) -> None:
    """Let one transaction at a time record facts of a customer (SQLite has one writer anyway)."""
    if connection.dialect.name == "sqlite":
        return
    for customer in sorted(customer_ids):
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:c))"), {"c": customer})


def customers_of(connection: Connection, facts: Iterable[Fact]) -> set[str]:
    """Return the customers that *facts* are about."""
    found: set[str] = set()
    p = t.payments.c
    for fact in facts:
        if isinstance(fact, CustomerFact):
            found.add(fact.id)
        elif isinstance(fact, (SubscriptionFact, OrderFact)):
            found.add(fact.customer_id)
        else:
            own = fact.customer_id if isinstance(fact, RefundFact) else None
            order = select(p.customer_id).where(p.id == fact.order_id)
            named = own or connection.execute(order).scalar()
            found |= {named} if named else set()
    return found


def owner_of_customer(connection: Connection, customer: str) -> str:
    """Return the user whom a customer stands for (docs/rules.md §7.1)."""
    c = t.customers.c
    row = connection.execute(select(t.customers).where(c.id == customer)).first()
    if row is not None and (row.linked_user or row.external_id):
        return str(row.linked_user or row.external_id)
    named: list[tuple[int, str, str]] = []
    for table in (t.subscriptions, t.payments):
        rows = connection.execute(
            select(table.c.created_at, table.c.id, table.c.user_id).where(
                table.c.customer_id == customer, table.c.user_id.is_not(None)
            )
        )
        named += [(r.created_at, r.id, r.user_id) for r in rows]
    return min(named)[2] if named else PLACEHOLDER + customer


def assign_owners(connection: Connection, customer: str) -> tuple[str, set[str]]:
    """Give every object of a customer its owner; return the customer's user and all users touched."""
    user = owner_of_customer(connection, customer)
    touched = {user}
    for table in (t.subscriptions, t.payments):
        objects = table.c.customer_id == customer
        before = select(table.c.owner).where(objects, table.c.owner.is_not(None)).distinct()
        touched |= set(connection.execute(before).scalars())
        connection.execute(update(table).where(objects).values(owner=func.coalesce(table.c.user_id, user)))
        touched |= set(connection.execute(before).scalars())
    return user, touched


def is_closed(connection: Connection, user: str) -> bool:
    """Say whether every customer that bears the user's external id is deleted (§4.9)."""
    c = t.customers.c
    states = connection.execute(select(c.deleted).where(c.external_id == user)).scalars().all()
    return bool(states) and all(states)
