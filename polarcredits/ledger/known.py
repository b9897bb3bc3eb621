"""What Polar said of some customers and users, in memory: read together, added to, saved at once.

The rows of `customers`, `subscriptions` and `payments` are what all observations of an object add up
to (docs/rules.md §1); the same functions fold them whether an object is new or years old.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import BindParameter, Column, Connection, Select, Table, bindparam, select

from polarcredits.billing import Payment, Subscription, fold_payment, fold_subscription, rank
from polarcredits.entitlements import AccountFacts
from polarcredits.facts import CustomerFact, Fact, OrderFact, SubscriptionFact
from polarcredits.ledger import tables as t
from polarcredits.ledger.database import upsert_all
from polarcredits.ledger.facts import (
    History,
    Observation,
    histories,
    named_user,
    observe,
    payment_columns,
    store,
    subscription_columns,
)
from polarcredits.userids import PLACEHOLDER

Key = tuple[str, str]
"""The kind and id of an object."""

_OBJECTS = {"subscription": t.subscriptions, "order": t.payments}
_VALUES: BindParameter[list[str]] = bindparam("values", expanding=True)


def _having(table: Table, column: Column[Any]) -> Select[Any]:
    return select(table).where(column.in_(_VALUES))


_BY = {
    (kind, name): _having(table, table.c[name])
    for kind, table in _OBJECTS.items()
    for name in ("id", "customer_id", "owner")
}
_CUSTOMERS = _having(t.customers, t.customers.c.id)
_BEARERS = _having(t.customers, t.customers.c.external_id)
_REFUNDS = _having(t.refunds, t.refunds.c.order_id)


class KnownFacts:
    """Facts in memory. `look_up` and `look_up_users` read, `learn` adds, `save` writes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._customers: dict[str, dict[str, Any]] = {}
        self._objects: dict[Key, dict[str, Any]] = {}
        self._histories: dict[Key, History] = {}
        self._folded: dict[Key, Subscription | Payment] = {}
        self._refunds: dict[str, set[Key]] = defaultdict(set)
        self._of_customer: dict[str, set[Key]] = defaultdict(set)
        self._owned: dict[str, set[Key]] = defaultdict(set)
        self._bearers: dict[str, set[str]] = defaultdict(set)
        self._seen_customers: set[str] = set()
        self._seen_users: set[str] = set()
        self._unsaved: dict[Key, History] = defaultdict(History)
        self._changed: set[Key] = set()

    # Reading

    def look_up(self, told: Iterable[Observation], customers: set[str]) -> set[str]:
        """Read the objects that are told of and all of these customers'; return whom they may concern."""
        told = list(told)
        for kind in _OBJECTS:
            self._read_objects(kind, "id", {each.object for each in told if each.kind == kind})
        orders = {each.fact.order_id for each in told if each.kind in ("refund", "dispute")}
        self._read_objects("order", "id", orders)
        self._read_customers(_CUSTOMERS, {each.object for each in told if each.kind == "customer"})
        self._see_customers(customers)
        users = {PLACEHOLDER + customer for customer in customers}
        for each in told:
            if isinstance(each.fact, (SubscriptionFact, OrderFact)):
                users.add(each.fact.user_id or "")
            elif isinstance(each.fact, CustomerFact):
                users.add(each.fact.external_id or "")
        for customer in customers & self._customers.keys():
            row = self._customers[customer]
            users |= {row["external_id"] or "", row["linked_user"] or ""}
        for row in self._objects.values():
            users |= {row["owner"] or "", row["user_id"] or ""}
        return users - {""}

    def look_up_users(self, told: Iterable[Observation], users: set[str]) -> None:
        """Read everything that *users* own, whose accounts are locked by now, and its history."""
        new = users - self._seen_users
        self._seen_users |= new
        for kind in _OBJECTS:
            self._read_objects(kind, "owner", new)
        self._read_customers(_BEARERS, new)
        wanted: dict[str, set[str]] = defaultdict(set)
        for each in told:
            if each.kind != "customer" or self._changes(each.fact):
                wanted[each.kind].add(each.object)
        for user in new:
            for kind, id in self._owned.get(user, ()):
                wanted[kind].add(id)
        for kind, ids in wanted.items():
            self._read_histories(kind, ids)

    def _see_customers(self, customers: set[str]) -> None:
        new = customers - self._seen_customers
        self._seen_customers |= new
        self._read_customers(_CUSTOMERS, new)
        for kind in _OBJECTS:
            self._read_objects(kind, "customer_id", new)

    def _read_customers(self, query: Select[Any], values: set[str]) -> None:
        for row in self._rows(query, values):
            if row["id"] not in self._customers:
                self._customers[row["id"]] = row
                self._bearers[row["external_id"] or ""].add(row["id"])

    def _read_objects(self, kind: str, column: str, values: set[str]) -> None:
        for row in self._rows(_BY[kind, column], values):
            key = (kind, row["id"])
            if key not in self._objects:
                self._objects[key] = row
                self._of_customer[row["customer_id"]].add(key)
                self._owned[row["owner"] or ""].add(key)

    def _rows(self, query: Select[Any], values: set[str]) -> Iterable[dict[str, Any]]:
        wanted = sorted(values)
        for at in range(0, len(wanted), 500):
            for row in self._connection.execute(query, {"values": wanted[at : at + 500]}):
                yield row._asdict()

    def _read_histories(self, kind: str, ids: set[str]) -> None:
        new = sorted(id for id in ids if (kind, id) not in self._histories)
        if not new:
            return
        for id in new:
            self._histories[kind, id] = History()
        for each in histories(self._connection, kind, [id for id in new if self._is_old(kind, id)]):
            self._histories[each.key].add(each)
        for id in new:
            for unsaved in self._unsaved.get((kind, id), ()):
                self._histories[kind, id].add(unsaved)
        if kind == "order":
            for row in self._rows(_REFUNDS, set(new)):
                self._refunds[row["order_id"]].add((row["kind"], row["id"]))
            told = {each for id in new for each in self._refunds.get(id, ())}
            for of in ("refund", "dispute"):
                self._read_histories(of, {id for which, id in told if which == of})

    def _is_old(self, kind: str, id: str) -> bool:
        """Say whether anything can have been heard of an object: then it has a row."""
        if kind == "customer":
            return id in self._customers
        return kind not in _OBJECTS or (kind, id) in self._objects

    # Adding

    def knows(self, each: Observation) -> bool:
        """Say whether an observation tells nothing new."""
        if each.kind == "customer" and not self._changes(each.fact):
            return True
        return self._history(each.key).has(each)

    def learn(self, each: Observation) -> None:
        """Add an observation; `give_owners` brings what it changes up to date."""
        if each.kind == "customer" and not self._changes(each.fact):
            self._unsaved[each.key].add(each)
            return
        history = self._history(each.key)
        if history.has(each):
            return
        self._unsaved[each.key].add(each)
        history.add(each)
        if each.kind == "customer":
            self._fold_customer(each.object)
        elif each.kind in _OBJECTS:
            self._fold(each.key)
        else:
            self._move_refund(each.key, each.fact.order_id)
            if self._facts(("order", each.fact.order_id)):
                self._fold(("order", each.fact.order_id))

    def _move_refund(self, key: Key, order: str) -> None:
        for other, refunds in self._refunds.items():
            if other != order and key in refunds:
                refunds.remove(key)
                self._folded.pop(("order", other), None)
        self._refunds[order].add(key)
        self._changed.add(key)

    def _history(self, key: Key) -> History:
        if key not in self._histories:
            self._read_histories(key[0], {key[1]})
        return self._histories[key]

    def _facts(self, key: Key) -> list[Any]:
        return self._history(key).facts()

    def _changes(self, fact: CustomerFact) -> bool:
        """Say whether a snapshot can change what a customer's snapshots add up to."""
        row = self._customers.get(fact.id)
        return (
            row is None
            or fact.external_id not in (None, row["external_id"])
            or (fact.deleted_at is not None and not row["deleted"])
            or (fact.email, fact.name) != (row["email"], row["name"])
        )

    def _fold_customer(self, id: str) -> None:
        history: list[CustomerFact] = sorted(self._facts(("customer", id)), key=rank)
        whole = [fact for fact in history if not fact.embedded] or history
        row = self._customers.setdefault(id, {"id": id, "linked_user": None})
        row["external_id"] = next((f.external_id for f in reversed(history) if f.external_id), None)
        row["deleted"] = int(any(fact.deleted_at for fact in history))
        row["email"], row["name"] = whole[-1].email, whole[-1].name
        self._bearers[row["external_id"] or ""].add(id)
        self._changed.add(("customer", id))

    def _fold(self, key: Key) -> None:
        kind, id = key
        history = self._facts(key)
        if kind == "subscription":
            columns = subscription_columns(self._subscription(id).latest)
        else:
            columns = payment_columns(self._payment(id))
        row = self._objects.setdefault(key, {"id": id, "owner": None})
        self._of_customer[row.get("customer_id", "")].discard(key)
        row |= columns | {"user_id": named_user(history)}
        self._of_customer[row["customer_id"]].add(key)
        self._changed.add(key)

    def _subscription(self, id: str) -> Subscription:
        folded = fold_subscription(self._facts(("subscription", id)))
        self._folded["subscription", id] = folded
        return folded

    def _payment(self, id: str) -> Payment:
        told: dict[str, list[Any]] = {"refund": [], "dispute": []}
        for kind, of in sorted(self._refunds.get(id, ())):
            told[kind] += self._facts((kind, of))
        folded = fold_payment(self._facts(("order", id)), told["refund"], told["dispute"])
        self._folded["order", id] = folded
        return folded

    # Asking

    def look_again(self, user: str) -> None:
        """Forget that everything of a user was read: another process has made the account since."""
        self._seen_users.discard(user)

    def customer_of(self, order: str) -> str | None:
        """Return the customer of an order, as far as it is known."""
        row = self._objects.get(("order", order))
        return row["customer_id"] if row else None

    def owner_of(self, customer: str) -> str:
        """Return the user whom a customer stands for (docs/rules.md §7.1)."""
        self._see_customers({customer})
        row: Mapping[str, Any] = self._customers.get(customer) or {}
        if row.get("linked_user") or row.get("external_id"):
            return str(row["linked_user"] or row["external_id"])
        objects = [self._objects[key] for key in self._of_customer.get(customer, ())]
        named = [(row["created_at"], row["id"], row["user_id"]) for row in objects if row["user_id"]]
        return str(min(named)[2]) if named else PLACEHOLDER + customer

    def give_owners(self, customer: str) -> tuple[str, set[str]]:
        """Give every object of a customer its owner; return the customer's user and all users touched."""
        user = self.owner_of(customer)
        touched = {user}
        for key in sorted(self._of_customer.get(customer, ())):
            row = self._objects[key]
            before, owner = row["owner"], row["user_id"] or user
            touched |= {owner} if before is None else {owner, before}
            if owner != before:
                self._owned[before or ""].discard(key)
                self._owned[owner].add(key)
                row["owner"] = owner
                self._changed.add(key)
        return user, touched

    def of(self, user: str) -> AccountFacts:
        """Return everything that *user* owns, folded; in one order whatever the order of arrival."""
        if user not in self._seen_users:
            self.look_up_users((), {user})
        subscriptions: list[Subscription] = []
        payments: list[Payment] = []
        for kind, id in sorted(self._owned.get(user, ())):
            folded = self._folded.get((kind, id))
            if folded is None:
                folded = self._subscription(id) if kind == "subscription" else self._payment(id)
            if isinstance(folded, Subscription):
                subscriptions.append(folded)
            else:
                payments.append(folded)
        return AccountFacts(user=user, subscriptions=tuple(subscriptions), payments=tuple(payments))

    def is_closed(self, user: str) -> bool:
        """Say whether every customer that bears the user's external id is deleted (§4.9)."""
        if user not in self._seen_users:
            self.look_up_users((), {user})
        rows = [self._customers[id] for id in self._bearers.get(user, ())]
        states = [row["deleted"] for row in rows if row["external_id"] == user]
        return bool(states) and all(states)

    # Writing

    def save(self) -> None:
        """Write what was learned and what became of the rows."""
        connection = self._connection
        customers = [self._customers[id] for kind, id in sorted(self._changed) if kind == "customer"]
        plain = [{name: row[name] for name in row if name != "linked_user"} for row in customers]
        upsert_all(connection, t.customers, ("id",), plain)
        for kind, table in _OBJECTS.items():
            rows = [self._objects[key] for key in sorted(self._changed) if key[0] == kind]
            upsert_all(connection, table, ("id",), rows)
        refunds = [
            {"kind": kind, "id": id, "order_id": order}
            for order, keys in sorted(self._refunds.items())
            for kind, id in sorted(keys & self._changed)
        ]
        upsert_all(connection, t.refunds, ("kind", "id"), refunds)
        store(connection, [each for history in self._unsaved.values() for each in history])
        self._changed.clear()
        self._unsaved.clear()


def account_facts(connection: Connection, user: str) -> AccountFacts:
    """Return everything that *user* owns."""
    return KnownFacts(connection).of(user)


def record(connection: Connection, facts: Iterable[Fact]) -> None:
    """Add facts that leave the accounts alone, and bring the rows of their objects up to date."""
    told = [observe(fact) for fact in facts]
    known = KnownFacts(connection)
    known.look_up_users(told, known.look_up(told, set()))
    for each in told:
        known.learn(each)
    known.save()
