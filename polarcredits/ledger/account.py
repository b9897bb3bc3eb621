"""One account, loaded: its balance row, grants, carries and open holds; and how it is saved again.

Opening settles what was spent since the last time (docs/rules.md §5): between two changes of the
grants the spending order is fixed, so it can be done late and comes out the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from polarcredits.credits import Book, Carry
from polarcredits.ledger import tables as t
from polarcredits.lots import Draw, EntryType, Lot, spread
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


def micros(time: datetime | None) -> int | None:
    """Return *time* as it is stored."""
    return None if time is None else to_micros(time)


def moment(stored: int | None) -> datetime | None:
    """Return a stored time."""
    return None if stored is None else from_micros(stored)


@dataclass(slots=True, kw_only=True, eq=False)
class LoadedAccount:
    """An account in memory. Change it, then `save`; a read never saves."""

    id: int
    user: str
    created_at: datetime
    plan: str
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
    _draws: list[tuple[int, int, Draw]] = field(default_factory=list)
    _entries: list[tuple[dict[str, Any], Lot | None]] = field(default_factory=list)
    _stored: dict[int, dict[str, Any]] = field(default_factory=dict)
    _known_carries: set[tuple[int, int, bool]] = field(default_factory=set)

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
        self._entries.append((row, lot))
        return row

    def entry_of(self, lot: Lot, kind: EntryType) -> dict[str, Any]:
        """Return the unsaved entry of *kind* on *lot*."""
        return next(row for row, of in self._entries if of is lot and row["type"] == kind)

    @property
    def unsaved_entries(self) -> list[tuple[dict[str, Any], Lot | None]]:
        """Entries that are true but not written yet."""
        return self._entries

    @property
    def unsaved_draws(self) -> list[tuple[int, int, Draw]]:
        """What grants paid since the account was last settled: first and last sequence, draw."""
        return self._draws

    def record_draws(self, draws: list[Draw], first: int, last: int) -> None:
        """Remember which grants paid the entries from *first* to *last*."""
        self._draws += [(first, last, draw) for draw in draws]

    def close_hold(self, hold: OpenHold, status: str, captured: int = 0) -> None:
        """Free a hold's credits; the grants below it are settled by the next reconcile."""
        for lot, credits in hold.parts:
            lot.held -= credits
        self.held -= hold.amount
        self.holds.remove(hold)
        self.closed_holds.append((hold.id, status, captured))

    def _save_draws(self, connection: Connection) -> None:
        drawn: dict[int, int] = {}
        rows = []
        for first, last, draw in self._draws:
            drawn[first] = drawn.get(first, -1) + 1
            rows.append(
                {
                    "account_id": self.id,
                    "first_sequence": first,
                    "last_sequence": last,
                    "position": drawn[first],
                    "grant_id": draw.lot.id,
                    "credits": draw.credits,
                    "balance_from": draw.balance_from,
                    "balance_to": draw.balance_to,
                }
            )
        if rows:
            connection.execute(insert(t.draws), rows)

    def save(self, connection: Connection, call: Call) -> None:
        """Write everything that changed."""
        for lot in self.book.lots:
            if lot.id is None:
                _insert_lot(connection, self.id, lot, call)
            elif (changing := _changing(lot)) != self._stored.get(lot.id):
                connection.execute(update(t.grants).where(t.grants.c.id == lot.id).values(changing))
                self._stored[lot.id] = changing
        self._save_draws(connection)
        for row, of in self._entries:
            row["grant_id"] = of.id if of else None
        rows = [row for row, _ in self._entries]
        if rows:
            connection.execute(insert(t.transactions), rows)
        if self.book.carries or self._known_carries:
            connection.execute(delete(t.carries).where(t.carries.c.account_id == self.id))
            for carry in self.book.carries:
                connection.execute(
                    insert(t.carries).values(
                        account_id=self.id,
                        source_id=carry.source.id,
                        target_id=carry.target.id,
                        debt=int(carry.debt),
                        amount=carry.amount,
                    )
                )
        connection.execute(
            update(t.balances)
            .where(t.balances.c.account_id == self.id)
            .values(
                balance=self.balance,
                held=self.held,
                sequence=self.sequence,
                unsettled=0,
                settled_sequence=self.sequence,
                next_due_at=self.next_due_at,
                closed=int(self.closed),
                last_occurred_at=self.last_occurred_at,
            )
        )
        self._draws.clear()
        self._entries.clear()


def load(connection: Connection, account: int, *, lock: bool) -> LoadedAccount:
    """Load and settle an account; with *lock*, nobody else changes it before the commit."""
    b, a = t.balances.c, t.accounts.c
    query = select(t.balances).where(b.account_id == account)
    row = connection.execute(query.with_for_update() if lock else query).one()
    owner = connection.execute(select(t.accounts).where(a.id == account)).one()
    stored = connection.execute(
        select(t.grants).where(t.grants.c.account_id == account).order_by(t.grants.c.id)
    )
    lots = {grant.id: _lot(grant) for grant in stored}
    carries = [
        Carry(lots[c.source_id], lots[c.target_id], c.amount, bool(c.debt))
        for c in connection.execute(select(t.carries).where(t.carries.c.account_id == account))
    ]
    h = t.holds.c
    open_holds = connection.execute(
        select(t.holds).where(h.account_id == account, h.status == "open").order_by(h.id)
    )
    holds = [
        OpenHold(
            hold.id,
            hold.amount,
            from_micros(hold.expires_at),
            [(lots[grant], credits) for grant, credits in json.loads(hold.parts)],
        )
        for hold in open_holds
    ]
    loaded = LoadedAccount(
        id=account,
        user=owner.user_id,
        created_at=from_micros(owner.created_at),
        plan=owner.plan,
        balance=row.balance,
        held=row.held,
        sequence=row.sequence,
        settled_sequence=row.settled_sequence,
        next_due_at=row.next_due_at,
        closed=bool(row.closed),
        last_occurred_at=row.last_occurred_at,
        loaded_at=row.last_occurred_at,
        book=Book(lots=list(lots.values()), carries=carries),
        holds=holds,
    )
    loaded._stored = {id: _changing(lot) for id, lot in lots.items()}
    loaded._known_carries = {(c.source.id or 0, c.target.id or 0, c.debt) for c in carries}
    if row.unsettled:
        live = [lot for lot in loaded.book.lots if not lot.expired]
        spent = spread(live, row.unsettled, row.balance + row.unsettled)
        loaded.record_draws(spent, row.settled_sequence + 1, row.sequence)
    return loaded


def _lot(row: Row[Any]) -> Lot:
    return Lot(
        id=row.id,
        key=row.key,
        source=row.source,
        plan=row.plan,
        gross=row.gross,
        clawed=row.clawed,
        used=row.used,
        carried_in=row.carried_in,
        remaining=row.remaining,
        held=row.held,
        effective_at=from_micros(row.effective_at),
        expires_at=moment(row.expires_at),
        expired=bool(row.expired),
        withdrawn=bool(row.withdrawn),
        clawback=row.clawback,
        cause_kind=row.cause_kind,
        cause_id=row.cause_id,
        period_start=moment(row.period_start),
        period_end=moment(row.period_end),
    )


def _changing(lot: Lot) -> dict[str, Any]:
    """Return the columns of a grant that can change."""
    return {
        "key": lot.key,
        "plan": lot.plan,
        "gross": lot.gross,
        "clawed": lot.clawed,
        "used": lot.used,
        "carried_in": lot.carried_in,
        "remaining": lot.remaining,
        "held": lot.held,
        "expires_at": micros(lot.expires_at),
        "expired": int(lot.expired),
        "withdrawn": int(lot.withdrawn),
        "period_end": micros(lot.period_end),
    }


def _insert_lot(connection: Connection, account: int, lot: Lot, call: Call) -> None:
    result = connection.execute(
        insert(t.grants)
        .values(
            account_id=account,
            source=lot.source,
            effective_at=to_micros(lot.effective_at),
            clawback=lot.clawback,
            cause_kind=lot.cause_kind,
            cause_id=lot.cause_id,
            cause_event=call.event,
            period_start=micros(lot.period_start),
            **_changing(lot),
        )
        .returning(t.grants.c.id)
    )
    lot.id = result.scalar_one()
