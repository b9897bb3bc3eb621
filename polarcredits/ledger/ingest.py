"""Take facts in: record them, find whose they are, and reconcile exactly those accounts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection, select

from polarcredits.errors import ConfigError, UnknownUser
from polarcredits.facts import Fact
from polarcredits.ledger import tables as t
from polarcredits.ledger.account import Call
from polarcredits.ledger.database import insert_once
from polarcredits.ledger.facts import (
    assign_owners,
    customers_of,
    lock_customers,
    owner_of_customer,
    record,
)
from polarcredits.ledger.identity import account_of, adopt, create, settle_all
from polarcredits.periods import to_micros
from polarcredits.plans import Catalog
from polarcredits.userids import PLACEHOLDER


def apply_facts(
    connection: Connection, catalog: Catalog, facts: Sequence[Fact], call: Call, news: datetime
) -> list[str]:
    """Record *facts* and reconcile whom they touch; return those users, that of the first customer first."""
    customers = customers_of(connection, facts)
    lock_customers(connection, customers)
    _catch_up(connection, catalog, customers, call)
    record(connection, facts)
    touched: dict[str, None] = {}
    for customer in sorted(customers):
        user, users = assign_owners(connection, customer)
        adopt(connection, catalog, PLACEHOLDER + customer, user, call)
        touched |= dict.fromkeys((user, *sorted(users)))
    known_since = replace(call, now=min(call.now, news))
    accounts: set[int] = set()
    for user in sorted(touched):
        try:
            accounts.add(account_of(connection, user))
        except UnknownUser:
            create(connection, catalog, user, known_since)
            accounts.add(account_of(connection, user))
    settle_all(connection, catalog, list(accounts), call, news)
    return list(touched)


def _catch_up(connection: Connection, catalog: Catalog, customers: Iterable[str], call: Call) -> None:
    """Write down what fell due before the news, by the facts as they then stood."""
    users = {owner_of_customer(connection, customer) for customer in customers}
    b, a = t.balances.c, t.accounts.c
    due = connection.execute(
        select(b.account_id)
        .join_from(t.balances, t.accounts, a.id == b.account_id)
        .where(a.user_id.in_(users), a.alias_of.is_(None), b.next_due_at <= to_micros(call.now))
    )
    settle_all(connection, catalog, list(due.scalars()), call, None)


def stamp(connection: Connection, environment: str) -> None:
    """Mark the database with its Polar environment; raise ConfigError if it has another (§ Configuration)."""
    if not insert_once(connection, t.settings, name="polar_environment", value=environment):
        check_stamp(connection, environment)


def check_stamp(connection: Connection, environment: str) -> None:
    """Raise ConfigError if the database holds facts of another Polar environment."""
    s = t.settings.c
    known = connection.execute(select(s.value).where(s.name == "polar_environment")).scalar()
    if known not in (None, environment):
        raise ConfigError(
            f"POLAR_ENVIRONMENT is {environment}, but this database holds events of {known}. "
            "Use another database (POLARCREDITS_DATABASE_URL) or the right environment.",
            setting="POLAR_ENVIRONMENT",
        )
