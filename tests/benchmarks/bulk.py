"""Big ledgers quickly: rows exactly as the program would have written them, by a few statements of SQL.

Each user has the lifetime grant and then deductions of one credit. The first half of every second user's
are settled, as after a refill; the rest are not, as the hot path leaves them. `ledger verify` is content.
"""

from __future__ import annotations

from functools import partial

from sqlalchemy import Connection, text

from polarcredits.ledger.database import Database

CREDITS = 1_000_000
START = 1_767_225_600_000_000
FOREVER = 2**62
USERS_A_STEP = 50_000

_NUMBERS = {
    "sqlite": "(WITH RECURSIVE n(i) AS (VALUES({0}) UNION ALL SELECT i + 1 FROM n WHERE i < {1})"
    " SELECT i FROM n)",
    "postgresql": "(SELECT i FROM generate_series({0}, {1}) AS n(i))",
}
_SETTLED = "CASE WHEN u.i % 2 = 0 THEN :half ELSE 0 END"
_STATEMENTS = (
    """INSERT INTO accounts (id, user_id, plan, created_at)
SELECT u.i, 'user-' || u.i, 'free', :start FROM {users} u ORDER BY u.i""",
    f"""INSERT INTO credit_balances (account_id, balance, held, sequence, unsettled, settled_sequence,
 next_due_at, closed, last_occurred_at)
SELECT u.i, :credits - :spent, 0, :spent + 1, :spent - {_SETTLED}, 1 + {_SETTLED}, :forever, 0,
 :start + :spent + 1 FROM {{users}} u ORDER BY u.i""",
    f"""INSERT INTO grants (id, account_id, key, source, plan, gross, clawed, used, carried_in,
 remaining, held, effective_at, expired, withdrawn, clawback, cause_kind, cause_id)
SELECT u.i, u.i, 'lifetime:user-' || u.i || '\\:free', 'lifetime', 'free', :credits, 0, {_SETTLED}, 0,
 :credits - {_SETTLED}, 0, :start, 0, 0, 'owed', 'account', 'user-' || u.i FROM {{users}} u ORDER BY u.i""",
    """INSERT INTO grant_draws (account_id, first_sequence, position, last_sequence, grant_id, credits,
 balance_from, balance_to)
SELECT u.i, 2, 0, 1 + :half, u.i, :half, :credits, :credits - :half FROM {users} u
WHERE u.i % 2 = 0 AND :half > 0 ORDER BY u.i""",
    """INSERT INTO credit_transactions (account_id, sequence, type, amount, balance_after, grant_id,
 operation, actor, occurred_at, recorded_at)
SELECT u.i, e.i, CASE WHEN e.i = 1 THEN 'grant' ELSE 'deduct' END,
 CASE WHEN e.i = 1 THEN :credits ELSE -1 END,
 :credits - e.i + 1, CASE WHEN e.i = 1 THEN u.i END, CASE WHEN e.i > 1 THEN 'api_call' END, 'api',
 :start + e.i, :start + e.i
FROM {users} u CROSS JOIN {entries} e ORDER BY u.i, e.i""",
)


def fill(database: Database, *, users: int, entries: int) -> None:
    """Write *users* users with *entries* entries each into an empty, migrated database."""
    numbers = _NUMBERS["sqlite" if database.sqlite else "postgresql"]
    spent = entries - 1
    values = {"start": START, "credits": CREDITS, "spent": spent, "half": spent // 2, "forever": FOREVER}

    for first in range(1, users + 1, USERS_A_STEP):
        last = min(users, first + USERS_A_STEP - 1)
        database.write(partial(_step, numbers, entries, values, first, last))
    database.write(_finish)


def _step(
    numbers: str, entries: int, values: dict[str, int], first: int, last: int, connection: Connection
) -> None:
    for statement in _STATEMENTS:
        sql = statement.format(users=numbers.format(first, last), entries=numbers.format(1, entries))
        used = {name: value for name, value in values.items() if f":{name}" in sql}
        connection.execute(text(sql), used)


def _finish(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        for table in ("accounts", "grants"):
            connection.execute(text(f"SELECT setval('{table}_id_seq', (SELECT max(id) FROM {table}))"))
        connection.execute(text("ANALYZE"))
