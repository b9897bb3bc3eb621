"""The hot path of many deductions in one transaction: a few statements, however many there are.

Read the balances of all users of the batch, locked; read which of its keys are in use; decide in
order, as if one came after the other; write each changed balance and each entry. What the single
hot path would miss is a miss here too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from polarcredits.ledger.hotpath import COLUMNS, Cursor, Spend, Spent

_BALANCES = "a.user_id, b.account_id, b.balance, b.held, b.sequence, b.next_due_at, b.last_occurred_at"

# CROSS JOIN keeps SQLite to this order: the list first, then one look-up each.
_SQLITE_READ = f"""
SELECT {_BALANCES} FROM json_each(?) AS w CROSS JOIN accounts AS a ON a.user_id = w.value
CROSS JOIN credit_balances AS b ON b.account_id = a.id
WHERE a.alias_of IS NULL AND b.closed = 0
"""
_SQLITE_KEYS = """
SELECT t.account_id, t.idempotency_key FROM json_each(?1) AS w CROSS JOIN credit_transactions AS t
ON t.account_id = w.value ->> 0 AND t.idempotency_key = w.value ->> 1
UNION ALL SELECT h.key_account, h.idempotency_key FROM json_each(?1) AS w CROSS JOIN holds AS h
ON h.key_account = w.value ->> 0 AND h.idempotency_key = w.value ->> 1
"""
_SQLITE_UPDATE = """
UPDATE credit_balances SET balance = ?, sequence = ?, unsettled = unsettled + ?, last_occurred_at = ?
WHERE account_id = ?
"""
_SQLITE_INSERT = f"""
INSERT INTO credit_transactions ({COLUMNS}) VALUES (?, ?, 'deduct', ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

_READ = f"""
SELECT {_BALANCES} FROM accounts AS a JOIN credit_balances AS b ON b.account_id = a.id
WHERE a.user_id = ANY($1::text[]) AND a.alias_of IS NULL AND b.closed = 0
ORDER BY b.account_id FOR UPDATE OF b
"""
_READ_FREE = f"{_READ} SKIP LOCKED"
_KEYS = """
WITH w AS (SELECT * FROM unnest($1::bigint[], $2::text[]) AS w (account, key))
SELECT t.account_id, t.idempotency_key FROM w JOIN credit_transactions AS t
ON t.account_id = w.account AND t.idempotency_key = w.key
UNION ALL SELECT h.key_account, h.idempotency_key FROM w JOIN holds AS h
ON h.key_account = w.account AND h.idempotency_key = w.key
"""
_WRITE = f"""
WITH moved AS (
 UPDATE credit_balances AS b SET balance = u.balance, sequence = u.sequence,
  unsettled = b.unsettled + u.spent, last_occurred_at = u.occurred
 FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
  AS u (balance, sequence, spent, occurred, account)
 WHERE b.account_id = u.account
)
INSERT INTO credit_transactions ({COLUMNS})
SELECT account, sequence, 'deduct', amount, balance, operation, nullif(meta, ''), actor, nullif(key, ''),
 nullif(request, ''), occurred, recorded
FROM unnest($6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::text[], $11::text[],
 $12::text[], $13::text[], $14::text[], $15::bigint[], $16::bigint[])
 AS e (account, sequence, amount, balance, operation, meta, actor, key, request, occurred, recorded)
"""


@dataclass(slots=True)
class _Account:
    """A balance while the batch is decided."""

    id: int
    balance: int
    held: int
    sequence: int
    next_due_at: int
    last_occurred_at: int
    spent: int = 0


def spend_all(
    cursor: Cursor, batch: Sequence[Spend], *, sqlite: bool, skip_locked: bool = False
) -> list[Spent | None]:
    """Deduct within the cursor's transaction what can be; None in the place of each miss.

    With *skip_locked* every deduction of a balance that somebody else has locked is a miss.
    """
    users = list({wanted.user for wanted in batch})
    if sqlite:
        rows = cursor.execute(_SQLITE_READ, (json.dumps(users),)).fetchall()
    else:
        rows = cursor.execute(_READ_FREE if skip_locked else _READ, (_array(users),)).fetchall()
    accounts = {row[0]: _Account(*row[1:]) for row in rows}
    keyed = [
        (accounts[wanted.user].id, wanted.key)
        for wanted in batch
        if wanted.key is not None and wanted.user in accounts
    ]
    used = _used(cursor, keyed, sqlite=sqlite) if keyed else set()
    answers = _decide(batch, accounts, used)
    changes = [
        (account.balance, account.sequence, account.spent, account.last_occurred_at, account.id)
        for account in accounts.values()
        if account.spent
    ]
    if changes:
        entries = [
            _entry(wanted, spent) for wanted, spent in zip(batch, answers, strict=True) if spent is not None
        ]
        if sqlite:
            cursor.executemany(_SQLITE_UPDATE, changes)
            cursor.executemany(_SQLITE_INSERT, entries)
        else:
            columns = [*zip(*changes, strict=True), *zip(*entries, strict=True)]
            cursor.delay(_WRITE, [_array(column) for column in columns])
    return answers


def _array(values: Iterable[Any]) -> str:
    """Return an array as PostgreSQL reads it; psycopg takes several times as long to write one.

    None becomes an empty text, which no text of ours is: NULL is a text where `array_nulls` is off.
    """
    return "{" + ",".join([str(value) if type(value) is int else _quoted(value) for value in values]) + "}"


def _quoted(value: str | None) -> str:
    if value is None:
        return '""'
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _used(cursor: Cursor, keyed: list[tuple[int, str]], *, sqlite: bool) -> set[tuple[int, str]]:
    """Return which of the keys an entry or a hold has."""
    if sqlite:
        return set(cursor.execute(_SQLITE_KEYS, (json.dumps(keyed),)).fetchall())
    columns = [_array(column) for column in zip(*keyed, strict=True)]
    return set(cursor.execute(_KEYS, columns).fetchall())


def _decide(
    batch: Sequence[Spend], accounts: dict[str, _Account], used: set[tuple[int, str]]
) -> list[Spent | None]:
    """Take each request in order, or leave it as a miss."""
    answers: list[Spent | None] = []
    for wanted in batch:
        account = accounts.get(wanted.user)
        if (
            account is None
            or account.next_due_at <= wanted.now
            or account.balance - account.held < wanted.amount
            or account.last_occurred_at > wanted.latest
            or (wanted.key is not None and (account.id, wanted.key) in used)
        ):
            answers.append(None)
            continue
        if wanted.key is not None:
            used.add((account.id, wanted.key))
        account.balance -= wanted.amount
        account.spent += wanted.amount
        account.sequence += 1
        if wanted.now > account.last_occurred_at:
            account.last_occurred_at = wanted.now
        answers.append(
            Spent(account.id, account.sequence, account.balance, account.held, account.last_occurred_at)
        )
    return answers


def _entry(wanted: Spend, spent: Spent) -> tuple[Any, ...]:
    return (
        spent.account,
        spent.sequence,
        -wanted.amount,
        spent.balance,
        wanted.operation,
        wanted.meta,
        wanted.actor,
        wanted.key,
        wanted.request,
        spent.occurred,
        wanted.recorded,
    )
