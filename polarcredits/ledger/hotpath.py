"""The hot path of one deduction: what is written does not grow with the grants (docs/rules.md §5.5).

It takes a deduction only if nothing has fallen due, enough is available and its key is new; anything
else is a miss, and the slow path decides. Which grants paid is settled later, from balances.

On SQLite an UPDATE and an INSERT under the write lock; on PostgreSQL one statement, one round trip.
Both run on the driver's cursor of a connection that SQLAlchemy owns: the driver prepares them once.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from polarcredits.ledger.values import Receipt, Transaction, metadata_of, transaction_id
from polarcredits.periods import from_micros

Cursor = Any
"""A cursor of sqlite3, a RawCursor of psycopg, or a QuickCursor."""

COLUMNS = (
    "account_id, sequence, type, amount, balance_after, operation, meta, actor,"
    " idempotency_key, request, occurred_at, recorded_at"
)
_CHANGES = """
 balance = b.balance - :amount, sequence = b.sequence + 1, unsettled = b.unsettled + :amount,
 last_occurred_at = CASE WHEN b.last_occurred_at > :now THEN b.last_occurred_at ELSE :now END
"""
_OPEN = """
 b.closed = 0 AND b.next_due_at > :now AND b.balance - b.held >= :amount
 AND b.last_occurred_at <= :latest
"""
_NEW_KEY = """
 AND NOT EXISTS (SELECT 1 FROM credit_transactions t
  WHERE t.account_id = b.account_id AND t.idempotency_key = :key)
 AND NOT EXISTS (SELECT 1 FROM holds h
  WHERE h.key_account = b.account_id AND h.idempotency_key = :key)
"""
_MOVED = "account_id, sequence, balance, held, last_occurred_at"

_UPDATE = f"""
UPDATE credit_balances AS b SET {_CHANGES}
WHERE b.account_id = (SELECT id FROM accounts WHERE user_id = :user AND alias_of IS NULL) AND {_OPEN}
"""
_INSERT = f"""
INSERT INTO credit_transactions ({COLUMNS}) VALUES (?, ?, 'deduct', -?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


def _numbered(statement: str) -> str:
    """Return a statement with SQLite's numbered parameters: it binds those of a tuple the fastest."""
    for number, word in enumerate(("amount", "now", "user", "latest", "key"), 1):
        statement = statement.replace(f":{word}", f"?{number}")
    return f"{statement} RETURNING {_MOVED}"


_UPDATE_PLAIN, _UPDATE_KEYED = _numbered(_UPDATE), _numbered(_UPDATE + _NEW_KEY)

# The keys are read in the statement's snapshot, the row perhaps after it, when its lock is free: they
# agree only if the row is still the version of the snapshot. If not, it is a miss. (By xmin, since a
# comparison of ctid may be planned as a TID scan, which is not checked again after the wait.)
_SAME_VERSION = """
 AND b.xmin = (SELECT s.xmin FROM credit_balances s JOIN accounts o ON o.id = s.account_id
  WHERE o.user_id = :user AND o.alias_of IS NULL)
"""


def _one_statement(further: str) -> str:
    """Return update and insert as one statement with PostgreSQL's own parameters: the fields of a Spend."""
    moved = ", ".join(f"b.{column}" for column in _MOVED.split(", "))
    statement = f"""
WITH moved AS (
 UPDATE credit_balances AS b SET {_CHANGES} FROM accounts AS a
 WHERE a.user_id = :user AND a.alias_of IS NULL AND b.account_id = a.id AND {_OPEN} {further}
 RETURNING {moved}
), written AS (
 INSERT INTO credit_transactions ({COLUMNS})
 SELECT account_id, sequence, 'deduct', -:amount, balance, :operation, :meta, :actor, :key, :request,
  last_occurred_at, :recorded FROM moved
)
SELECT {_MOVED} FROM moved
"""
    for number, word in enumerate(Spend._fields, 1):
        kind = "bigint" if word in ("amount", "now", "latest", "recorded") else "text"
        statement = statement.replace(f":{word}", f"${number}::{kind}")
    return statement


class Spend(NamedTuple):
    """What is to be deducted; times in microseconds."""

    user: str
    amount: int
    operation: str
    meta: str | None
    actor: str
    key: str | None
    request: str | None
    now: int
    latest: int
    """The latest time that the account's last entry may have: `now` if it was asked for."""
    recorded: int


class Spent(NamedTuple):
    """The entry that was written, and what was held beside it."""

    account: int
    sequence: int
    balance: int
    held: int
    occurred: int

    def receipt(self, wanted: Spend) -> Receipt:
        """Return the caller's receipt."""
        return Receipt(partial(self._entry, wanted), self.balance, self.balance - self.held)

    def _entry(self, wanted: Spend) -> Transaction:
        return Transaction(
            id=transaction_id(self.account, self.sequence),
            user=wanted.user,
            type="deduct",
            amount=-wanted.amount,
            balance_after=self.balance,
            grant_id=None,
            operation=wanted.operation,
            reason=None,
            metadata=metadata_of(wanted.meta),
            actor=wanted.actor,
            idempotency_key=wanted.key,
            occurred_at=from_micros(self.occurred),
            recorded_at=from_micros(wanted.recorded),
        )


_PLAIN, _KEYED = _one_statement(""), _one_statement(_SAME_VERSION + _NEW_KEY)


def spend(cursor: Cursor, wanted: Spend, *, sqlite: bool) -> Spent | None:
    """Deduct within the cursor's transaction, or write nothing and return None: a miss."""
    if not sqlite:
        row = cursor.execute(_PLAIN if wanted.key is None else _KEYED, wanted).fetchone()
        return None if row is None else Spent(*row)
    user, amount, operation, meta, actor, key, request, now, latest, recorded = wanted
    if key is None:
        row = cursor.execute(_UPDATE_PLAIN, (amount, now, user, latest)).fetchone()
    else:
        row = cursor.execute(_UPDATE_KEYED, (amount, now, user, latest, key)).fetchone()
    if row is None:
        return None
    account, sequence, balance, _, occurred = row
    entry = (account, sequence, amount, balance, operation, meta, actor, key, request, occurred, recorded)
    cursor.execute(_INSERT, entry)
    return Spent(*row)
