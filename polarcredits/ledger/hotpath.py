"""The hot path: one UPDATE and one INSERT, whatever the number of grants (docs/rules.md §5.5).

It takes a deduction only if nothing has fallen due and enough is available; anything else is a
miss, and the slow path decides. Which grants paid is settled later, from balances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

_UPDATE = """
UPDATE credit_balances SET balance = balance - :amount, sequence = sequence + 1,
 unsettled = unsettled + :amount,
 last_occurred_at = CASE WHEN last_occurred_at > :now THEN last_occurred_at ELSE :now END
WHERE account_id = (SELECT id FROM accounts WHERE user_id = :user AND alias_of IS NULL)
 AND closed = 0 AND next_due_at > :now AND balance - held >= :amount
RETURNING account_id, sequence, balance, held, last_occurred_at
"""
_COLUMNS = (
    "account_id, sequence, type, amount, balance_after, operation, meta, actor,"
    " idempotency_key, request, occurred_at, recorded_at"
)
_VALUES = (
    ":account, :sequence, 'deduct', :signed, :balance, :operation, :meta, :actor,"
    " :key, :request, :occurred, :recorded"
)
_INSERT = f"INSERT INTO credit_transactions ({_COLUMNS}) VALUES ({_VALUES})"
_INSERT_KEYED = f"""
INSERT INTO credit_transactions ({_COLUMNS}) SELECT {_VALUES}
WHERE NOT EXISTS (SELECT 1 FROM holds WHERE key_account = :account AND idempotency_key = :key)
ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """What is to be deducted; times in microseconds."""

    user: str
    amount: int
    operation: str | None
    meta: str | None
    actor: str
    key: str | None
    request: str | None
    now: int
    recorded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """The entry that was written."""

    account: int
    sequence: int
    balance: int
    held: int
    occurred: int

    def entry(self, wanted: Spend) -> dict[str, Any]:
        """Return the row of the ledger, as a query of it would."""
        return {
            "account_id": self.account,
            "sequence": self.sequence,
            "type": "deduct",
            "amount": -wanted.amount,
            "balance_after": self.balance,
            "operation": wanted.operation,
            "reason": None,
            "meta": wanted.meta,
            "actor": wanted.actor,
            "idempotency_key": wanted.key,
            "occurred_at": self.occurred,
            "recorded_at": wanted.recorded,
        }


class KeyTaken(Exception):
    """The idempotency key is in use: undo the UPDATE and look the key up."""


def _named(statement: str) -> str:
    """Return the statement with psycopg's named parameters."""
    words = "amount now user account sequence signed balance operation meta actor key request"
    for word in (*words.split(), "occurred", "recorded"):
        statement = statement.replace(f":{word}", f"%({word})s")
    return statement


_SQL = {
    "sqlite": (_UPDATE, _INSERT, _INSERT_KEYED),
    "postgresql": (_named(_UPDATE), _named(_INSERT), _named(_INSERT_KEYED)),
}


def spend(connection: Connection, wanted: Spend) -> Spent | None:
    """Deduct, or return None where the slow path must decide; KeyTaken wants a rollback."""
    update, plain, keyed = _SQL[connection.dialect.name]
    row = connection.exec_driver_sql(
        update, {"amount": wanted.amount, "now": wanted.now, "user": wanted.user}
    ).first()
    if row is None:
        return None
    spent = Spent(account=row[0], sequence=row[1], balance=row[2], held=row[3], occurred=row[4])
    inserted = connection.exec_driver_sql(
        plain if wanted.key is None else keyed,
        {
            "account": spent.account,
            "sequence": spent.sequence,
            "signed": -wanted.amount,
            "balance": spent.balance,
            "operation": wanted.operation,
            "meta": wanted.meta,
            "actor": wanted.actor,
            "key": wanted.key,
            "request": wanted.request,
            "occurred": spent.occurred,
            "recorded": wanted.recorded,
        },
    )
    if inserted.rowcount != 1:
        raise KeyTaken
    return spent
