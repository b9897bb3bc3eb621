"""What the ledger gives back: plain values, the same for the library and the command line.

Entries are tuples: a history makes many of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from polarcredits.errors import NotFound
from polarcredits.periods import from_micros


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Credits of a user: `available` is `balance` less `held`; the next allowance starts with `owed` used."""

    balance: int
    held: int
    available: int
    owed: int = 0


class Transaction(NamedTuple):
    """An entry of the ledger."""

    id: str
    user: str
    type: str
    amount: int
    balance_after: int
    grant_id: str | None
    operation: str | None
    reason: str | None
    metadata: dict[str, str] | None
    actor: str
    idempotency_key: str | None
    occurred_at: datetime
    recorded_at: datetime


class Receipt:
    """The result of a grant, deduction, reversal or capture.

    Its transaction may be given as what makes it: who spends on a hot path seldom reads it.
    """

    __slots__ = ("_transaction", "available", "balance", "replayed")

    def __init__(
        self,
        transaction: Transaction | Callable[[], Transaction],
        balance: int,
        available: int,
        replayed: bool = False,
    ) -> None:
        self._transaction = transaction
        self.balance = balance
        self.available = available
        self.replayed = replayed

    @property
    def transaction(self) -> Transaction:
        """The entry that was written, or found."""
        if not isinstance(self._transaction, Transaction):
            self._transaction = self._transaction()
        return self._transaction

    def __repr__(self) -> str:
        values = (f"{name}={getattr(self, name)!r}" for name in _RECEIPT)
        return f"Receipt({', '.join(values)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Receipt) and all(getattr(self, n) == getattr(other, n) for n in _RECEIPT)

    def __hash__(self) -> int:
        return hash((self.transaction.id, self.balance))


_RECEIPT = ("transaction", "balance", "available", "replayed")


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldState:
    """A hold as it stands."""

    id: str
    user: str
    amount: int
    captured: int
    status: str
    expires_at: datetime
    available: int
    replayed: bool = False


def transaction_id(account: int, sequence: int) -> str:
    """Return the public id of an entry."""
    return f"txn_{account}_{sequence}"


def parse_transaction_id(id: str) -> tuple[int, int]:
    """Return the account and sequence of a public id, or raise NotFound."""
    parts = id.split("_") if isinstance(id, str) else []
    if (
        len(parts) == 3
        and parts[0] == "txn"
        and all(p.isascii() and p.isdecimal() and len(p) < 19 for p in parts[1:])
    ):
        return int(parts[1]), int(parts[2])
    raise no_transaction(id)


def no_transaction(id: str) -> NotFound:
    """Return the error for an id that names no entry."""
    return NotFound(f"No transaction {id!r}. See: polarcredits credits history USER", transaction=id)


def metadata_of(stored: str | None) -> dict[str, str] | None:
    """Return metadata as it was given."""
    return None if stored is None else json.loads(stored)


def transaction(row: Mapping[str, Any], user: str) -> Transaction:
    """Return the value of a stored entry."""
    return Transaction(
        id=transaction_id(row["account_id"], row["sequence"]),
        user=user,
        type=row["type"],
        amount=row["amount"],
        balance_after=row["balance_after"],
        grant_id=None if row.get("grant_id") is None else str(row["grant_id"]),
        operation=row["operation"],
        reason=row["reason"],
        metadata=metadata_of(row["meta"]),
        actor=row["actor"],
        idempotency_key=row["idempotency_key"],
        occurred_at=from_micros(row["occurred_at"]),
        recorded_at=from_micros(row["recorded_at"]),
    )
