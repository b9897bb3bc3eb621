"""Facts read from Polar's API: taken in like news, with a report of what differed (docs/rules.md §1).

Reading says the same thing again and again. A row that tells nothing new leaves the accounts alone,
and of an unbroken run of equal readings only the first and the last are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, select

from polarcredits.billing import LIVE, rank
from polarcredits.errors import UnknownUser
from polarcredits.facts import CustomerFact, DisputeFact, Fact, OrderFact, RefundFact, SubscriptionFact
from polarcredits.ledger import tables as t
from polarcredits.ledger.account import Call, moment
from polarcredits.ledger.facts import KINDS, customers_of, observed, owner_of_customer
from polarcredits.ledger.identity import account_of
from polarcredits.ledger.ingest import apply_facts, stamp
from polarcredits.ledger.known import record
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.reconcile import settle
from polarcredits.periods import format_time, to_micros
from polarcredits.userids import PLACEHOLDER

State = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What the ledger did not know, or knew otherwise; of kind `credits`: what came of it."""

    user: str | None
    kind: str
    id: str
    before: State | None
    after: State | None


def take(
    ledger: Ledger, facts: Sequence[Fact], *, as_of: datetime, call: Call, environment: str
) -> list[Change]:
    """Take facts that were read at *as_of*, in one transaction; return what they changed.

    Raises ConfigError where the database belongs to another Polar environment.
    """

    def work(connection: Connection) -> list[Change]:
        stamp(connection, environment)
        news = _news(connection, facts)
        if not news:
            return []
        objects = list(dict.fromkeys((KINDS[type(fact)], fact.id) for fact in news))
        users = _known_users(connection, news)
        before = _states(connection, objects)
        credits = {user: _credits(ledger, connection, user, call) for user in users}
        touched = apply_facts(connection, ledger.catalog, news, call, as_of)
        after = _states(connection, objects)
        owners = _owners(connection, objects)
        changes = [
            Change(user=owners.get(key), kind=key[0], id=key[1], before=before.get(key), after=after.get(key))
            for key in objects
            if before.get(key) != after.get(key)
        ]
        for user in touched:
            now = _credits(ledger, connection, user, call)
            if now is not None and now != credits.get(user):
                changes.append(
                    Change(user=user, kind="credits", id=user, before=credits.get(user), after=now)
                )
        return changes

    return ledger.in_transaction(work)


def _news(connection: Connection, facts: Iterable[Fact]) -> list[Fact]:
    """Return the facts that say something new; of the others, keep when they were last read."""
    by_kind: dict[type[Any], list[Any]] = {}
    for fact in facts:
        by_kind.setdefault(type(fact), []).append(fact)
    news: list[Fact] = []
    for kind, read in by_kind.items():
        known = observed(connection, kind, {fact.id for fact in read})
        refunded = _refunded(connection, read) if kind is OrderFact else set()
        for fact in dict.fromkeys(read):
            history = [f for f in known.get(fact.id, ()) if _embedded(f) == _embedded(fact)]
            history.sort(key=rank)
            if fact.id in refunded or not history or not _same(history[-1], fact):
                news.append(fact)
            elif not _embedded(fact) and fact.snapshot.as_of > history[-1].snapshot.as_of:
                _read_again(connection, history, fact)
    return news


def _read_again(connection: Connection, history: Sequence[Any], fact: Fact) -> None:
    """Note that *fact* still holds; a reading between two equal ones tells nothing."""
    record(connection, [fact])
    last = history[-1]
    if len(history) > 1 and not last.snapshot.delivered and _same(history[-2], last):
        o = t.observations.c
        connection.execute(
            delete(t.observations).where(
                o.kind == KINDS[type(last)],
                o.object_id == last.id,
                o.as_of == to_micros(last.snapshot.as_of),
            )
        )


def _same(one: Any, other: Any) -> bool:
    return bool(replace(one, snapshot=other.snapshot) == other)


def _embedded(fact: Fact) -> bool:
    return isinstance(fact, (CustomerFact, SubscriptionFact)) and fact.embedded


def _refunded(connection: Connection, orders: Iterable[OrderFact]) -> set[str]:
    """Return the orders with refunds or disputes: these are counted by when the order was last seen."""
    r = t.refunds.c
    ids = {order.id for order in orders}
    return set(connection.execute(select(r.order_id).where(r.order_id.in_(ids))).scalars())


def _known_users(connection: Connection, facts: Sequence[Fact]) -> set[str]:
    users = {owner_of_customer(connection, customer) for customer in customers_of(connection, facts)}
    for fact in facts:
        if isinstance(fact, (SubscriptionFact, OrderFact)) and fact.user_id:
            users.add(fact.user_id)
    return users


def _credits(ledger: Ledger, connection: Connection, user: str, call: Call) -> State | None:
    try:
        account = account_of(connection, user)
    except UnknownUser:
        return None
    settled = settle(connection, ledger.catalog, account, call, lock=False)
    return {
        "plan": settled.entitled.plan,
        "status": "closed" if settled.account.closed else settled.entitled.status,
        "balance": settled.account.balance,
    }


_COLUMNS: Mapping[str, tuple[Any, tuple[str, ...]]] = {
    "customer": (t.customers, ("external_id", "email", "deleted")),
    "subscription": (
        t.subscriptions,
        (
            "product_id",
            "status",
            "current_period_start",
            "current_period_end",
            "cancel_at_period_end",
            "ends_at",
            "ended_at",
        ),
    ),
    "order": (t.payments, ("status", "billing_reason", "net_cents", "refunded_cents")),
}
_TIMES = ("current_period_start", "current_period_end", "ends_at", "ended_at")
_FLAGS = ("deleted", "cancel_at_period_end")


def _states(connection: Connection, objects: Sequence[tuple[str, str]]) -> dict[tuple[str, str], State]:
    """Return what is known of some objects, for people to compare."""
    states: dict[tuple[str, str], State] = {}
    for kind, (table, columns) in _COLUMNS.items():
        ids = [id for each, id in objects if each == kind]
        if ids:
            for row in connection.execute(select(table).where(table.c.id.in_(ids))):
                states[kind, row.id] = {name: _plain(name, getattr(row, name)) for name in columns}
    refunds = observed(connection, RefundFact, [id for kind, id in objects if kind == "refund"])
    for id, told in refunds.items():
        refund = max(told, key=rank)
        states["refund", id] = {
            "order_id": refund.order_id,
            "status": refund.status,
            "amount_cents": refund.amount_cents,
        }
    disputes = observed(connection, DisputeFact, [id for kind, id in objects if kind == "dispute"])
    for id, heard in disputes.items():
        dispute = max(heard, key=rank)
        states["dispute", id] = {"order_id": dispute.order_id, "status": dispute.status}
    return states


def _plain(name: str, value: Any) -> Any:
    if name in _TIMES:
        time = moment(value)
        return None if time is None else format_time(time)
    return bool(value) if name in _FLAGS else value


def _owners(connection: Connection, objects: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    owners: dict[tuple[str, str], str] = {}
    for kind, id in objects:
        if kind == "customer":
            owners[kind, id] = owner_of_customer(connection, id)
            continue
        table, wanted = (t.subscriptions, id) if kind == "subscription" else (t.payments, id)
        if kind in ("refund", "dispute"):
            r = t.refunds.c
            wanted = connection.execute(select(r.order_id).where(r.kind == kind, r.id == id)).scalar() or ""
        owner = connection.execute(select(table.c.owner).where(table.c.id == wanted)).scalar()
        if owner:
            owners[kind, id] = owner
    return owners


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the ledger knows of one user at Polar."""

    customers: tuple[str, ...]
    orders: tuple[str, ...]


def known_of(ledger: Ledger, user: str) -> Known:
    """Return the customers that stand for *user*, and the user's orders; empty for a stranger."""

    def work(connection: Connection) -> Known:
        c, p, s = t.customers.c, t.payments.c, t.subscriptions.c
        mine = (c.external_id == user) | (c.linked_user == user)
        if user.startswith(PLACEHOLDER):
            mine = mine | (c.id == user.removeprefix(PLACEHOLDER))
        ids = set(connection.execute(select(c.id).where(mine)).scalars())
        for column, owner in ((p.customer_id, p.owner), (s.customer_id, s.owner)):
            ids |= set(connection.execute(select(column).where(owner == user)).scalars())
        orders = connection.execute(select(p.id).where(p.owner == user)).scalars()
        return Known(customers=tuple(sorted(ids)), orders=tuple(orders))

    return ledger.reading(work)


def linked_customers(ledger: Ledger, user: str) -> tuple[str, ...]:
    """Return the customers that `users link` gave to *user* and that are not deleted."""
    c = t.customers.c
    query = select(c.id).where(c.linked_user == user, c.deleted == 0).order_by(c.id)
    return ledger.reading(lambda connection: tuple(connection.execute(query).scalars()))


def owner_of(ledger: Ledger, customer: str) -> str:
    """Return whose account a customer's is."""
    return ledger.reading(lambda connection: owner_of_customer(connection, customer))


def customers_after(ledger: Ledger, after: str, limit: int, *, inclusive: bool = False) -> list[CustomerFact]:
    """Return the newest fact of the next undeleted customers, by id: to look for deleted ones."""
    c = t.customers.c
    begin = c.id >= after if inclusive else c.id > after
    query = select(c.id).where(begin, c.deleted == 0).order_by(c.id).limit(limit)

    def work(connection: Connection) -> list[CustomerFact]:
        ids = list(connection.execute(query).scalars())
        found = observed(connection, CustomerFact, ids)
        return [max(found[id], key=rank) for id in ids]

    return ledger.reading(work)


def live_subscriptions(
    ledger: Ledger, after: str, limit: int, *, over_by: datetime | None = None
) -> list[str]:
    """Return the ids of the next live subscriptions; with *over_by*, those whose period is over."""
    s = t.subscriptions.c
    query = select(s.id).where(s.id > after, s.status.in_(sorted(LIVE)), s.ended_at.is_(None))
    if over_by is not None:
        query = query.where(s.current_period_end <= to_micros(over_by))
    return ledger.reading(lambda c: list(c.execute(query.order_by(s.id).limit(limit)).scalars()))
