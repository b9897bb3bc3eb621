"""Facts as the database keeps them: observations, only ever added (docs/rules.md §§1, 7).

The rows of `subscriptions`, `payments` and `customers` are what all observations of one object add
up to: see `known`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from pydantic import TypeAdapter
from sqlalchemy import Connection, bindparam, select, text, tuple_

from polarcredits.billing import rank
from polarcredits.facts import (
    CustomerFact,
    DisputeFact,
    Fact,
    OrderFact,
    RefundFact,
    SubscriptionFact,
)
from polarcredits.ledger import tables as t
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


class Mark(NamedTuple):
    """What tells the observations of one object apart."""

    as_of: int
    digest: str


class Observation(NamedTuple):
    """A fact as it is stored."""

    kind: str
    object: str
    mark: Mark
    fields: bytes
    fact: Any

    @property
    def key(self) -> tuple[str, str]:
        """The object's kind and id."""
        return self.kind, self.object

    def row(self) -> dict[str, Any]:
        """Return the row of `observations`."""
        return {
            "kind": self.kind,
            "object_id": self.object,
            "as_of": self.mark.as_of,
            "digest": self.mark.digest,
            "fields": self.fields.decode(),
        }


def observe(fact: Fact) -> Observation:
    """Return a fact as it is stored."""
    kind = type(fact)
    body = _ADAPTERS[kind].dump_json(fact)
    mark = Mark(to_micros(fact.snapshot.as_of), hashlib.sha256(body).hexdigest())
    return Observation(KINDS[kind], fact.id, mark, body, fact)


_OBSERVED = select(t.observations).where(
    t.observations.c.kind == bindparam("kind"),
    t.observations.c.object_id.in_(bindparam("ids", expanding=True)),
)


def observed(connection: Connection, kind: type[F], ids: Iterable[str]) -> dict[str, list[F]]:
    """Return all observations of some objects of one kind, by object."""
    found: dict[str, list[F]] = {}
    for id, _, fact in histories(connection, KINDS[kind], ids):
        found.setdefault(id, []).append(fact)
    return found


def histories(connection: Connection, kind: str, ids: Iterable[str]) -> Iterator[tuple[str, Mark, Any]]:
    """Yield all observations of some objects of one kind: object, mark, fact."""
    wanted, read = list(ids), _ADAPTERS[_TYPES[kind]].validate_json
    for at in range(0, len(wanted), 500):
        few = {"kind": kind, "ids": wanted[at : at + 500]}
        for row in connection.execute(_OBSERVED, few):
            yield row.object_id, Mark(row.as_of, row.digest), read(row.fields)


def unknown(connection: Connection, told: Iterable[Observation]) -> set[tuple[str, str, int, str]]:
    """Return which of these observations are not stored: kind, object, as-of, digest."""
    missing = {(each.kind, each.object, *each.mark) for each in told}
    o = t.observations.c
    columns = (o.kind, o.object_id, o.as_of, o.digest)
    wanted = sorted(missing)
    for at in range(0, len(wanted), 500):
        there = tuple_(*columns).in_(wanted[at : at + 500])
        missing.difference_update(tuple(row) for row in connection.execute(select(*columns).where(there)))
    return missing


def named_user(history: Iterable[SubscriptionFact | OrderFact]) -> str | None:
    """Return the user that an object's own metadata names, the newest snapshot that has one."""
    return next((f.user_id for f in sorted(history, key=rank, reverse=True) if f.user_id), None)


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
