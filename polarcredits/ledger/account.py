"""One account in memory: its balance row, grants, carries and open holds, and what is posted on it.

`keeping` reads and writes it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from polarcredits.credits import Book
from polarcredits.lots import Draw, EntryType, Lot
from polarcredits.periods import from_micros, to_micros


@dataclass(frozen=True, slots=True)
class Call:
    """When, by whom and why something is written."""

    now: datetime
    wall: datetime
    actor: str
    event: str | None = None
    explicit: bool = False
    """Whether `now` was asked for; then it may not lie before the account's last entry."""


@dataclass(slots=True, eq=False)
class OpenHold:
    """An open hold and the grants that it is on."""

    id: str
    amount: int
    expires_at: datetime
    parts: list[tuple[Lot, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What an entry says besides its amount."""

    operation: str | None = None
    reason: str | None = None
    meta: str | None = None
    key: str | None = None
    request: str | None = None
    reverses: tuple[int, int] | None = None


NO_DETAILS = Details()
_PROVISIONAL = itertools.count(-1, -1)


def micros(time: datetime | None) -> int | None:
    """Return *time* as it is stored."""
    return None if time is None else to_micros(time)


def moment(stored: int | None) -> datetime | None:
    """Return a stored time."""
    return None if stored is None else from_micros(stored)


@dataclass(slots=True, kw_only=True, eq=False)
class LoadedAccount:
    """An account in memory. Change it, then `keeping.save`; a read never saves."""

    id: int
    user: str
    created_at: datetime
    plan: str
    merged_into: int | None
    """The account that answers for this one, if it was linked to a user who had one."""
    balance: int
    held: int
    sequence: int
    settled_sequence: int
    next_due_at: int
    closed: bool
    last_occurred_at: int
    loaded_at: int
    """The last entry's time when the account was loaded."""
    book: Book
    holds: list[OpenHold]
    closed_holds: list[tuple[str, str, int]] = field(default_factory=list)
    unsaved_draws: list[tuple[int, int, Draw]] = field(default_factory=list)
    """What grants paid since the account was last settled: first and last sequence, draw."""
    unsaved_entries: list[tuple[dict[str, Any], Lot | None]] = field(default_factory=list)
    """Entries that are true but not written yet."""
    unsaved_lots: dict[int, str | None] = field(default_factory=dict)
    """New grants by their provisional id, with the event that caused them."""
    stored: dict[int, dict[str, Any]] = field(default_factory=dict)
    """The columns of each grant as they are in the database."""
    has_carries: bool = False
    """Whether the database holds carries of this account."""

    @property
    def available(self) -> int:
        """What can be spent: balance less holds."""
        return self.balance - self.held

    def post(
        self,
        call: Call,
        kind: EntryType,
        amount: int,
        *,
        lot: Lot | None = None,
        at: datetime | None = None,
        details: Details = NO_DETAILS,
    ) -> dict[str, Any]:
        """Append an entry; ledger time never runs back."""
        occurred = max(to_micros(at or call.now), self.last_occurred_at)
        self.sequence += 1
        self.balance += amount
        self.last_occurred_at = occurred
        row = {
            "account_id": self.id,
            "sequence": self.sequence,
            "type": kind,
            "amount": amount,
            "balance_after": self.balance,
            "grant_id": None,
            "operation": details.operation,
            "reason": details.reason,
            "meta": details.meta,
            "actor": call.actor,
            "idempotency_key": details.key,
            "request": details.request,
            "reverses_account": details.reverses[0] if details.reverses else None,
            "reverses_sequence": details.reverses[1] if details.reverses else None,
            "occurred_at": occurred,
            "recorded_at": to_micros(call.wall),
        }
        self.unsaved_entries.append((row, lot))
        return row

    def entry_of(self, lot: Lot, kind: EntryType) -> dict[str, Any]:
        """Return the unsaved entry of *kind* on *lot*."""
        return next(row for row, of in self.unsaved_entries if of is lot and row["type"] == kind)

    def settled_by(self, call: Call) -> None:
        """Leave the grants as a database would return them, new ones with a provisional id."""
        for lot in self.book.lots:
            lot.continues, lot.rollover = False, None
            if lot.id is None:
                lot.id = next(_PROVISIONAL)
                self.unsaved_lots[lot.id] = call.event
        self.book.postings.clear()

    def record_draws(self, draws: list[Draw], first: int, last: int) -> None:
        """Remember which grants paid the entries from *first* to *last*."""
        self.unsaved_draws += [(first, last, draw) for draw in draws]

    def close_hold(self, hold: OpenHold, status: str, captured: int = 0) -> None:
        """Free a hold's credits; the grants below it are settled by the next reconcile."""
        for lot, credits in hold.parts:
            lot.held -= credits
        self.held -= hold.amount
        self.holds.remove(hold)
        self.closed_holds.append((hold.id, status, captured))
