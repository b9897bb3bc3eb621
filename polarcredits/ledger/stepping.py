"""Many accounts at once, each taken to where its outlook says: how a refill keeps up with a million.

One statement reads or writes many rows. Whose outlook does not fit (news that it does not know, an
edited catalog, damage) is not touched and left to reconcile (docs/rules.md §4.3).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, exc

from polarcredits.ledger.account import Call
from polarcredits.ledger.database import named
from polarcredits.ledger.outlooks import RULES, read_bounds
from polarcredits.outlook import Begun, Outlook, Run, Stake, Standing, Steps, step
from polarcredits.periods import to_micros
from polarcredits.plans import Catalog

_LOCK = """
SELECT account_id, balance, sequence, unsettled, settled_sequence, next_due_at, last_occurred_at
FROM credit_balances WHERE account_id {among} ORDER BY account_id {lock}
"""
_OUTLOOKS = """
SELECT o.account_id, a.plan, b.closed,
 coalesce((SELECT min(c.deleted) FROM customers c WHERE c.external_id = a.user_id), 0),
 o.until, o.product_id, o.bounds, o.prefix, o.first_index, o.expires_at, o.plan, o.credits, o.clawback,
 o.subscription_id
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
    return list(map(Standing._make, _read(connection, _LOCK, accounts)))


def take_steps(
    connection: Connection, catalog: Catalog, standings: Sequence[Standing], call: Call
) -> tuple[Steps, list[int]]:
    """Make accounts (locked) true at `call.now` and write them; also return who was left alone.

    Raises DatabaseError where a row is in the way: then all of them are for reconcile.
    """
    accounts = [standing.account for standing in standings]
    outlooks = _outlooks(connection, catalog, accounts)
    stakes = {
        account: list(map(Stake._make, rows))
        for account, rows in groupby(_read(connection, _STAKES, list(outlooks)), itemgetter(7))
    }
    steps, left, now = Steps(), [], to_micros(call.now)
    for standing in standings:
        outlook = outlooks.get(standing.account)
        if outlook is None or not step(standing, outlook, stakes.get(standing.account, ()), now, steps):
            left.append(standing.account)
    try:
        _write(connection, steps, call)
    except exc.IntegrityError as error:
        raise named(error) from error
    return steps, left


def _outlooks(connection: Connection, catalog: Catalog, accounts: Sequence[int]) -> dict[int, Outlook]:
    """Return the outlooks that still hold: the plan that shows and the closure are what was written."""
    plans = {product: plan.name for plan in catalog.plans for product in plan.product_ids}
    rows, found = _read(connection, _OUTLOOKS, accounts), {}
    for account, shown, closed, deleted, until, product, bounds, *run in rows:
        if shown == plans.get(product, catalog.default_plan) and closed == deleted:
            described = Run(read_bounds(bounds), *run) if bounds else None
            found[account] = Outlook(until, product, described)
    return found


def _read(connection: Connection, statement: str, accounts: Sequence[int]) -> Sequence[Any]:
    dialect = connection.dialect.name
    listed = json.dumps(accounts) if dialect == "sqlite" else _array(accounts)
    return connection.exec_driver_sql(statement.format(**_WORDS[dialect]), (listed,)).all()


_GRANTS = """
INSERT INTO grants (id, account_id, key, source, plan, gross, clawed, used, carried_in, remaining, held,
 effective_at, expires_at, expired, withdrawn, clawback, cause_kind, cause_id, period_start, period_end)
"""
_DRAWS = """
INSERT INTO grant_draws (account_id, first_sequence, position, last_sequence, grant_id, credits,
 balance_from, balance_to)
"""
_ENTRIES = """
INSERT INTO credit_transactions (account_id, sequence, type, amount, balance_after, grant_id, occurred_at,
 actor, recorded_at)
"""
_GRANTS_SQLITE = (
    _GRANTS + "VALUES (?, ?, ?, 'allowance', ?, ?, 0, 0, 0, ?, 0, ?, ?, ?, 0, ?, 'subscription', ?, ?, ?)"
)
_CHANGED_SQLITE = "UPDATE grants SET used = ?, remaining = ?, expired = ? WHERE id = ?"
_DRAWS_SQLITE = _DRAWS + "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_ENTRIES_SQLITE = (_ENTRIES + "VALUES ", "(?, ?, ?, ?, ?, ?, ?, ?, ?)")
_ROWS = 500
"""Entries of one INSERT on SQLite, whose triggers cost more for each statement than for each row."""
_STANDINGS_SQLITE = """
UPDATE credit_balances SET balance = ?, sequence = ?, unsettled = ?, settled_sequence = ?,
 next_due_at = ?, last_occurred_at = ? WHERE account_id = ?
"""
_GRANTS_POSTGRESQL = (
    _GRANTS
    + """
SELECT v.id, v.account_id, o.prefix || v.number, 'allowance', o.plan, o.credits, 0, 0, 0, v.remaining, 0,
 v.effective_at, v.expires_at, v.expired, 0, o.clawback, 'subscription', o.subscription_id,
 v.effective_at, v.period_end
FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[],
 %s::bigint[], %s::bigint[])
 AS v (id, account_id, number, remaining, effective_at, expires_at, expired, period_end)
JOIN outlooks o ON o.account_id = v.account_id
"""
)
_CHANGED_POSTGRESQL = """
UPDATE grants SET used = v.used, remaining = v.remaining, expired = v.expired
FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[]) AS v (id, used, remaining, expired)
WHERE grants.id = v.id
"""
_DRAWS_POSTGRESQL = (
    _DRAWS
    + """
SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[],
 %s::bigint[], %s::bigint[])
"""
)
_ENTRIES_POSTGRESQL = (
    _ENTRIES
    + """
SELECT v.*, %s::text, %s::bigint FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::bigint[],
 %s::bigint[], %s::bigint[], %s::bigint[]) AS v
"""
)
_STANDINGS_POSTGRESQL = """
UPDATE credit_balances SET balance = v.balance, sequence = v.sequence, unsettled = v.unsettled,
 settled_sequence = v.settled, next_due_at = v.due, last_occurred_at = v.occurred
FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[],
 %s::bigint[]) AS v (account_id, balance, sequence, unsettled, settled, due, occurred)
WHERE credit_balances.account_id = v.account_id
"""


def _write(connection: Connection, steps: Steps, call: Call) -> None:
    """Write all that was gathered, each table in one statement or one prepared for many rows."""
    if not steps.standings:
        return
    ids = _new_ids(connection, len(steps.begun))
    entries = [(*row[:5], row.grant if row.grant >= 0 else ids[~row.grant], row[6]) for row in steps.entries]
    said = (call.actor, to_micros(call.wall))
    if connection.dialect.name == "sqlite":
        grants = [_grant(id, begun) for id, begun in zip(ids, steps.begun, strict=True)]
        many: list[tuple[str, list[Any]]] = [
            (_GRANTS_SQLITE, grants),
            (_CHANGED_SQLITE, [(*row[1:], row.id) for row in steps.changed]),
            (_DRAWS_SQLITE, steps.draws),
            (_STANDINGS_SQLITE, [(*row[1:], row.account) for row in steps.standings]),
        ]
        for statement, rows in many:
            if rows:
                connection.exec_driver_sql(statement, rows)
        into, one = _ENTRIES_SQLITE
        for first in range(0, len(entries), _ROWS):
            few = [(*row, *said) for row in entries[first : first + _ROWS]]
            connection.exec_driver_sql(into + ",".join([one] * len(few)), tuple(chain.from_iterable(few)))
        return
    begun = [(id, row.account, row.number, *row[3:]) for id, row in zip(ids, steps.begun, strict=True)]
    for statement, before, rows in (
        (_GRANTS_POSTGRESQL, (), begun),
        (_CHANGED_POSTGRESQL, (), steps.changed),
        (_DRAWS_POSTGRESQL, (), steps.draws),
        (_ENTRIES_POSTGRESQL, said, entries),
        (_STANDINGS_POSTGRESQL, (), steps.standings),
    ):
        if rows:
            connection.exec_driver_sql(statement, (*before, *map(_array, zip(*rows, strict=True))))


def _grant(id: int, begun: Begun) -> tuple[int | str, ...]:
    run, start = begun.run, begun.effective_at
    return (
        id,
        begun.account,
        f"{run.prefix}{begun.number}",
        run.plan,
        run.credits,
        begun.remaining,
        start,
        begun.expires_at,
        begun.expired,
        run.clawback,
        run.subscription_id,
        start,
        begun.period_end,
    )


def _new_ids(connection: Connection, many: int) -> Sequence[int]:
    """Return ids for new grants, those that the database would give them itself."""
    if connection.dialect.name == "sqlite":
        last = connection.exec_driver_sql("SELECT coalesce(max(id), 0) FROM grants").scalar_one()
        return range(last + 1, last + 1 + many)
    following = "SELECT nextval(pg_get_serial_sequence('grants', 'id')) FROM generate_series(1, %s)"
    return connection.exec_driver_sql(following, (many,)).scalars().all()


def _array(values: Iterable[int | str]) -> str:
    """Return PostgreSQL's text of an array of numbers or plain words."""
    return "{" + ",".join(map(str, values)) + "}"
