"""Many accounts at once, each taken to where its outlook says: how a refill keeps up with a million.

One statement reads or writes many rows. Whose outlook does not fit (news that it does not know, an
edited catalog, damage) is not touched and left to reconcile (docs/rules.md §4.3).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count, groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, exc

from polarcredits.ledger.account import Call
from polarcredits.ledger.failing import named
from polarcredits.ledger.outlooks import RULES, read_bounds
from polarcredits.periods import to_micros
from polarcredits.plans import Catalog
from polarcredits.steps import Foreseen, Standing, Steps, step

_LOCK = """
SELECT account_id, balance, sequence, unsettled, settled_sequence, next_due_at, last_occurred_at
FROM credit_balances WHERE account_id {among} ORDER BY account_id {lock}
"""
_OUTLOOKS = """
SELECT o.account_id, a.plan, o.product_id, b.closed,
 coalesce((SELECT min(c.deleted) FROM customers c WHERE c.external_id = a.user_id), 0),
 o.until, o.bounds, o.first_index, o.expires_at, o.credits
FROM outlooks o JOIN accounts a ON a.id = o.account_id JOIN credit_balances b ON b.account_id = o.account_id
WHERE o.account_id {among} AND o.rules = {rules}
"""
_STAKES = """
SELECT id, source, key, used, remaining, effective_at, expires_at, account_id
FROM grants WHERE account_id {among} AND expired = 0 ORDER BY account_id, id
"""
_WORDS = {
    "sqlite": {"among": "IN (SELECT value FROM json_each(?))", "lock": "", "rules": RULES},
    "postgresql": {"among": "= ANY(%s::bigint[])", "lock": "FOR UPDATE SKIP LOCKED", "rules": RULES},
}


def lock_standings(connection: Connection, accounts: Sequence[int]) -> list[Standing]:
    """Lock and return the balance rows of some accounts, by id, leaving out those in use."""
    return _read(connection, _LOCK, accounts)


def take_steps(
    connection: Connection, catalog: Catalog, standings: Sequence[Standing], call: Call
) -> tuple[Steps, list[int]]:
    """Make accounts (locked) true at `call.now` and write them; also return who was left alone.

    Raises DatabaseError where a row is in the way: then all of them are for reconcile.
    """
    outlooks = _outlooks(connection, catalog, [standing[0] for standing in standings])
    found = groupby(_read(connection, _STAKES, list(outlooks)), itemgetter(7))
    stakes = {account: [row[:7] for row in rows] for account, rows in found}
    steps, left, now, ids = Steps(), [], to_micros(call.now), _new_ids(connection)
    for standing in standings:
        account = standing[0]
        foreseen = outlooks.get(account)
        if foreseen is None or not step(standing, foreseen, stakes.get(account, ()), now, ids, steps):
            left.append(account)
    try:
        _write(connection, steps, call)
    except exc.IntegrityError as error:
        raise named(error) from error
    return steps, left


def _outlooks(connection: Connection, catalog: Catalog, accounts: Sequence[int]) -> dict[int, Foreseen]:
    """Return the outlooks that still hold: the plan that shows and the closure are what was written."""
    plans = {product: plan.name for plan in catalog.plans for product in plan.product_ids}
    return {
        account: (until, read_bounds(bounds) if bounds else (), *run)
        for account, shown, product, closed, deleted, until, bounds, *run in _read(
            connection, _OUTLOOKS, accounts
        )
        if shown == plans.get(product, catalog.default_plan) and closed == deleted
    }


def _read(connection: Connection, statement: str, accounts: Sequence[int]) -> list[Any]:
    """Return the driver's own rows: SQLAlchemy's would cost as much as all that is done with them."""
    dialect = connection.dialect.name
    listed = json.dumps(accounts) if dialect == "sqlite" else _array(accounts)
    result = connection.exec_driver_sql(statement.format(**_WORDS[dialect]), (listed,))
    rows = list(result.cursor.fetchall())
    result.close()
    return rows


_GRANTS = """
INSERT INTO grants (id, account_id, key, source, plan, gross, clawed, used, carried_in, remaining, held,
 effective_at, expires_at, expired, withdrawn, clawback, cause_kind, cause_id, period_start, period_end)
SELECT {id}, o.account_id, o.prefix || {index}, 'allowance', o.plan, o.credits, 0, 0, 0, {remaining}, 0,
 {start}, {expires}, {expired}, 0, o.clawback, 'subscription', o.subscription_id, {start}, {end}
"""
_ENTRIES = """
INSERT INTO credit_transactions (actor, recorded_at, account_id, sequence, type, amount, balance_after,
 grant_id, occurred_at)
"""
_DRAWS = """
INSERT INTO grant_draws (account_id, first_sequence, position, last_sequence, grant_id, credits,
 balance_from, balance_to)
"""
_SQLITE = {
    "begun": _GRANTS.format(
        id="?1", index="?3", remaining="?4", start="?5", expires="?6", expired="?7", end="?8"
    )
    + "FROM outlooks o WHERE o.account_id = ?2",
    "changed": "UPDATE grants SET used = ?2, remaining = ?3, expired = ?4 WHERE id = ?1",
    "draws": _DRAWS + "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    "standings": """
UPDATE credit_balances SET balance = ?2, sequence = ?3, unsettled = 0, settled_sequence = ?3,
 next_due_at = ?4, last_occurred_at = ?5 WHERE account_id = ?1
""",
}
_ROWS = 500
"""Entries of one INSERT on SQLite, whose triggers cost more for each statement than for each row."""


def _arrays(*types: str) -> str:
    return "unnest(" + ", ".join(f"%s::{type}[]" for type in types) + ")"


_POSTGRESQL = {
    "begun": _GRANTS.format(
        id="v.id",
        index="v.number",
        remaining="v.remaining",
        start="v.start",
        expires="v.expires",
        expired="v.expired",
        end="v.ends",
    )
    + f"FROM {_arrays(*['bigint'] * 8)} AS v (id, account, number, remaining, start, expires, expired, ends)"
    " JOIN outlooks o ON o.account_id = v.account",
    "changed": f"""
UPDATE grants SET used = v.used, remaining = v.remaining, expired = v.expired
FROM {_arrays(*["bigint"] * 4)} AS v (id, used, remaining, expired) WHERE grants.id = v.id
""",
    "draws": _DRAWS + f"SELECT * FROM {_arrays(*['bigint'] * 8)}",
    "entries": _ENTRIES
    + "SELECT %s::text, %s::bigint, v.* FROM "
    + _arrays("bigint", "bigint", "text", "bigint", "bigint", "bigint", "bigint")
    + " AS v",
    "standings": f"""
UPDATE credit_balances SET balance = v.balance, sequence = v.sequence, unsettled = 0,
 settled_sequence = v.sequence, next_due_at = v.due, last_occurred_at = v.last
FROM {_arrays(*["bigint"] * 5)} AS v (account, balance, sequence, due, last)
WHERE credit_balances.account_id = v.account
""",
}


def _write(connection: Connection, steps: Steps, call: Call) -> None:
    """Write all that was gathered, each table in one statement or one prepared for many rows."""
    said = (call.actor, to_micros(call.wall))
    tables: dict[str, Sequence[tuple[Any, ...]]] = {
        "begun": steps.begun,
        "changed": steps.changed,
        "draws": steps.draws,
        "standings": steps.standings,
    }
    if connection.dialect.name == "sqlite":
        for table, rows in tables.items():
            if rows:
                connection.exec_driver_sql(_SQLITE[table], list(rows))
        for first in range(0, len(steps.entries), _ROWS):
            few = steps.entries[first : first + _ROWS]
            values = ",".join(["(?1, ?2, ?, ?, ?, ?, ?, ?, ?)"] * len(few))
            connection.exec_driver_sql(f"{_ENTRIES} VALUES {values}", (*said, *chain.from_iterable(few)))
        return
    for table, rows in (tables | {"entries": steps.entries}).items():
        if rows:
            columns = map(_array, zip(*rows, strict=True))
            before = said if table == "entries" else ()
            connection.exec_driver_sql(_POSTGRESQL[table], (*before, *columns))


def _new_ids(connection: Connection) -> Iterator[int]:
    """Give ids for new grants: on SQLite those that it would give itself, else some at a time."""
    if connection.dialect.name == "sqlite":
        last = connection.exec_driver_sql("SELECT coalesce(max(id), 0) FROM grants").scalar_one()
        yield from count(last + 1)
    some = "SELECT nextval(pg_get_serial_sequence('grants', 'id')) FROM generate_series(1, 500)"
    while True:
        yield from connection.exec_driver_sql(some).scalars().all()


def _array(values: Iterable[int | str]) -> str:
    """Return PostgreSQL's text of an array of numbers or plain words."""
    return "{" + ",".join(map(str, values)) + "}"
