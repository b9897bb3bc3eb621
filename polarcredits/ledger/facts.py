"""Facts as the database keeps them: observations, only ever added (docs/rules.md §§1, 7).

The rows of `subscriptions`, `payments` and `customers` are what all observations of one object add
up to: see `known`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple, TypeVar

from pydantic import TypeAdapter
from sqlalchemy import Connection, Executable, bindparam, select, text

from polarcredits.billing import Payment, rank
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
from polarcredits.ledger.database import insert_into
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
_TYPES = {name: kind for kind, name in KINDS.items()}
_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in KINDS}


Stored = tuple[str, str, int, str]
"""Kind, object, as-of and digest: what the row of an observation is known by."""


class Mark(NamedTuple):
    """What tells the observations of one object apart: when it was so, and all that is read of it."""

    as_of: int
    digest: str


class Observation(NamedTuple):
    """A fact as it is stored.

    Of several with one mark, which differ only in what is not read of Polar's JSON, the greatest
    `fields` stays: so an object's history is as long as its story, and no longer.
    """

    kind: str
    object: str
    mark: Mark
    fields: str
    fact: Any

    @property
    def key(self) -> tuple[str, str]:
        """The object's kind and id."""
        return self.kind, self.object

    @property
    def stored(self) -> Stored:
        """What its row is known by."""
        return (self.kind, self.object, *self.mark)

    def row(self) -> dict[str, Any]:
        """Return the row of `observations`."""
        return {
            "kind": self.kind,
            "object_id": self.object,
            "as_of": self.mark.as_of,
            "digest": self.mark.digest,
            "fields": self.fields,
        }


class History:
    """Observations of one object, one a mark."""

    def __init__(self) -> None:
        self._kept: dict[Mark, Observation] = {}

    def __iter__(self) -> Iterator[Observation]:
        """Iterate over the observations."""
        return iter(self._kept.values())

    def facts(self) -> list[Any]:
        """Return what they say."""
        return [each.fact for each in self]

    def has(self, each: Observation) -> bool:
        """Say whether an observation tells nothing new."""
        there = self._kept.get(each.mark)
        return there is not None and there.fields >= each.fields

    def add(self, each: Observation) -> None:
        """Keep an observation, unless a greater one has its mark."""
        if not self.has(each):
            self._kept[each.mark] = each


def observe(fact: Fact) -> Observation:
    """Return a fact as it is stored."""
    kind = type(fact)
    adapter = _ADAPTERS[kind]
    digest = hashlib.sha256(adapter.dump_json(fact, exclude=_UNREAD)).hexdigest()
    mark = Mark(to_micros(fact.snapshot.as_of), digest)
    return Observation(KINDS[kind], fact.id, mark, adapter.dump_json(fact).decode(), fact)


_UNREAD = {"snapshot": {"body"}}


_OBSERVED = select(t.observations).where(
    t.observations.c.kind == bindparam("kind"),
    t.observations.c.object_id.in_(bindparam("ids", expanding=True)),
)


def observed(connection: Connection, kind: type[F], ids: Iterable[str]) -> dict[str, list[F]]:
    """Return all observations of some objects of one kind, by object."""
    found: dict[str, list[F]] = {}
    for each in histories(connection, KINDS[kind], ids):
        found.setdefault(each.object, []).append(each.fact)
    return found


def histories(connection: Connection, kind: str, ids: Iterable[str]) -> Iterator[Observation]:
    """Yield all observations of some objects of one kind."""
    wanted, read = list(ids), _ADAPTERS[_TYPES[kind]].validate_json
    for at in range(0, len(wanted), 500):
        few = {"kind": kind, "ids": wanted[at : at + 500]}
        for row in connection.execute(_OBSERVED, few):
            mark = Mark(row.as_of, row.digest)
            yield Observation(kind, row.object_id, mark, row.fields, read(row.fields))


def store(connection: Connection, told: Iterable[Observation]) -> None:
    """Write observations as `History.add` would."""
    rows = [each.row() for each in told]
    if rows:
        connection.execute(_store(connection.dialect.name), rows)


@cache
def _store(dialect: str) -> Executable:
    into = insert_into(dialect, t.observations)
    there = t.observations.c.fields
    statement: Executable = into.on_conflict_do_update(
        index_elements=list(t.observations.primary_key),
        set_={"fields": into.excluded.fields},
        where=(there if dialect == "sqlite" else there.collate("C")) < into.excluded.fields,
    )
    return statement


def unknown(connection: Connection, told: Iterable[Stored]) -> set[Stored]:
    """Return which of these observations are not stored."""
    wanted = list(set(told))
    missing: set[Stored] = set()
    mark = "(?,?,?,?)" if connection.dialect.name == "sqlite" else "(%s,%s,%s,%s)"
    for at in range(0, len(wanted), 500):
        some = wanted[at : at + 500]
        given = f"WITH w (kind, object_id, as_of, digest) AS (VALUES {','.join([mark] * len(some))})"
        values = tuple(value for stored in some for value in stored)
        counted = connection.exec_driver_sql(f"{given} SELECT count(*) {_THERE}", values)
        if counted.scalar_one() < len(some):
            found = connection.exec_driver_sql(
                f"{given} SELECT w.kind, w.object_id, w.as_of, w.digest {_THERE}", values
            )
            missing |= set(some).difference(map(tuple, found))
    return missing


# CROSS JOIN keeps SQLite to this order: what is given first, then one look-up each.
_THERE = """
FROM w CROSS JOIN observations AS o
WHERE o.kind = w.kind AND o.object_id = w.object_id AND o.as_of = w.as_of AND o.digest = w.digest
"""


def named_user(history: Iterable[SubscriptionFact | OrderFact]) -> str | None:
    """Return the user that an object's own metadata names, the newest snapshot that has one."""
    return next((f.user_id for f in sorted(history, key=rank, reverse=True) if f.user_id), None)


def subscription_columns(latest: SubscriptionFact) -> dict[str, Any]:
    """Return what the row of a subscription says of its newest fact."""
    return {
        "customer_id": latest.customer_id,
        "product_id": latest.product_id,
        "status": latest.status,
        "created_at": to_micros(latest.created_at or latest.snapshot.as_of),
        "current_period_start": micros(latest.current_period_start),
        "current_period_end": micros(latest.current_period_end),
        "cancel_at_period_end": int(latest.cancel_at_period_end),
        "ends_at": micros(latest.ends_at),
        "ended_at": micros(latest.ended_at),
    }


def payment_columns(payment: Payment) -> dict[str, Any]:
    """Return what the row of an order says of it."""
    latest = payment.latest
    return {
        "customer_id": latest.customer_id,
        "subscription_id": latest.subscription_id,
        "product_id": latest.product_id,
        "status": latest.status,
        "billing_reason": latest.billing_reason,
        "net_cents": latest.net_cents,
        "refunded_cents": payment.refunded_cents,
        "currency": latest.currency,
        "created_at": to_micros(latest.created_at or latest.snapshot.as_of),
    }


def lock_names(connection: Connection, names: Iterable[str]) -> None:
    """Let one transaction at a time take what bears a name (SQLite has one writer anyway)."""
    if connection.dialect.name != "sqlite":
        connection.execute(_LOCK, {"names": sorted(names)})


_LOCK = text("SELECT pg_advisory_xact_lock(hashtext(name)) FROM unnest(CAST(:names AS text[])) AS name")


def customers_of(connection: Connection, facts: Iterable[Fact]) -> set[str]:
    """Return the customers that *facts* are about."""
    facts = list(facts)
    orders = {fact.order_id for fact in facts if isinstance(fact, (RefundFact, DisputeFact))}
    p = t.payments.c
    rows = connection.execute(select(p.id, p.customer_id).where(p.id.in_(orders))) if orders else ()
    return concerned(facts, {row.id: row.customer_id for row in rows}.get)


def concerned(facts: Iterable[Fact], customer_of: Callable[[str], str | None]) -> set[str]:
    """Return the customers that *facts* are about; *customer_of* names an order's."""
    found: set[str] = set()
    for fact in facts:
        if isinstance(fact, CustomerFact):
            found.add(fact.id)
        elif isinstance(fact, (SubscriptionFact, OrderFact)):
            found.add(fact.customer_id)
        else:
            own = fact.customer_id if isinstance(fact, RefundFact) else None
            named = own or customer_of(fact.order_id)
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
