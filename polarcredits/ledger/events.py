"""The stored events, and the one transaction that stores and applies one (docs/rules.md §8.2)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar, get_args

from sqlalchemy import Connection, Row, func, select, text, update

from polarcredits.errors import InvalidInput
from polarcredits.facts import Fact
from polarcredits.ledger import tables as t
from polarcredits.ledger.account import Call, micros, moment
from polarcredits.ledger.database import insert_once
from polarcredits.ledger.ingest import apply_facts, stamp
from polarcredits.ledger.ledger import Ledger
from polarcredits.periods import from_micros, to_micros

T = TypeVar("T")
EventStatus = Literal["applied", "ignored", "failed"]
FAILED = text("status = 'failed'")
"""Literal, so that the index of failed events is used."""
_BATCHES = 712906
"""The advisory lock of batches; migrations have the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """A stored event."""

    id: str
    type: str | None
    status: str
    attempts: int
    error: str | None
    user: str | None
    occurred_at: datetime | None
    received_at: datetime
    raw: bytes
    next_attempt_at: datetime | None = None
    """When a failed event is applied again by itself."""

    @property
    def dead(self) -> bool:
        """Say whether it failed so often that only `webhooks retry` applies it."""
        return self.status == "failed" and self.next_attempt_at is None

    @property
    def payload(self) -> dict[str, Any]:
        """The event's body."""
        loaded = json.loads(self.raw)
        return loaded if isinstance(loaded, dict) else {}


class EventStore:
    """Reads and writes the inbox."""

    def __init__(self, ledger: Ledger, environment: str) -> None:
        self._ledger = ledger
        self._environment = environment

    def together(self, work: Callable[[Ledger], T]) -> T:
        """Run *work* with a ledger whose every operation is part of one transaction.

        On PostgreSQL one such batch at a time, on whatever host: two that touch the same events and
        customers in different orders would wait for each other (SQLite has one writer anyway).
        """

        def alone(connection: Connection) -> T:
            if connection.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(_BATCHES)))
            return work(self._ledger.using(connection))

        return self._ledger.in_transaction(alone)

    def find(self, id: str) -> EventRow | None:
        """Return a stored event."""

        def work(connection: Connection) -> EventRow | None:
            row = connection.execute(select(t.events).where(t.events.c.id == id)).first()
            return _event(row) if row else None

        return self._ledger.reading(work)

    def list(
        self,
        *,
        status: str | None = None,
        type: str | None = None,
        user: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = 50,
    ) -> list[EventRow]:
        """Return stored events, newest first. Raises InvalidInput where *status* is none of theirs.

        `failed` shows the dead ones too, `dead` only those.
        """
        known = (*get_args(EventStatus), "dead")
        if status is not None and status not in known:
            raise InvalidInput(f"No event is {status!r}; there are {', '.join(known)}.")
        e = t.events.c
        query = select(t.events).order_by(e.received_at.desc(), e.id)
        if status in ("failed", "dead"):
            query = query.where(FAILED)
        if status == "dead":
            query = query.where(e.next_attempt_at.is_(None))
        elif status is not None:
            query = query.where(e.status == status)
        for column, value in ((e.type, type), (e.user_id, user)):
            if value is not None:
                query = query.where(column == value)
        if since is not None:
            query = query.where(e.received_at >= to_micros(since))
        if until is not None:
            query = query.where(e.received_at < to_micros(until))
        query = query.limit(limit)
        return self._ledger.reading(lambda c: [_event(row) for row in c.execute(query)])

    def apply(self, row: EventRow, facts: Sequence[Fact], *, now: datetime, new: bool) -> str | None:
        """Store and apply in one transaction; None if another process had stored it, "" for no user."""
        call = Call(now=now, wall=datetime.now(UTC), actor=f"webhook:{row.id}", event=row.id)

        def work(connection: Connection) -> str | None:
            if new and not insert_once(connection, t.events, **_values(row)):
                return None
            stamp(connection, self._environment)
            user = None
            if facts and row.occurred_at is not None:
                users = apply_facts(connection, self._ledger.catalog, facts, call, row.occurred_at)
                user = next(iter(users), None)
            e = t.events.c
            values = {**_values(row), "user_id": user}
            connection.execute(update(t.events).where(e.id == row.id).values(values))
            return user or ""

        return self._ledger.in_transaction(work)

    def due(self, now: datetime, most: int) -> Sequence[EventRow]:
        """Lock and return failed events whose time has come, in the order they came.

        Those that another process is at are left to it.
        """

        def work(connection: Connection) -> list[EventRow]:
            due = t.events.c.next_attempt_at
            query = select(t.events).where(FAILED, due <= to_micros(now)).order_by(due).limit(most)
            return [_event(row) for row in connection.execute(query.with_for_update(skip_locked=True))]

        return sorted(self._ledger.in_transaction(work), key=lambda row: (row.received_at, row.id))

    def keep(self, row: EventRow, *, new: bool) -> None:
        """Keep an event that could not be applied, with its error."""

        def work(connection: Connection) -> None:
            if not (new and insert_once(connection, t.events, **_values(row))):
                e = t.events.c
                connection.execute(update(t.events).where(e.id == row.id).values(_values(row)))

        self._ledger.in_transaction(work)


def _values(row: EventRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "type": row.type,
        "status": row.status,
        "attempts": row.attempts,
        "error": row.error,
        "user_id": row.user,
        "occurred_at": micros(row.occurred_at),
        "received_at": to_micros(row.received_at),
        "raw": row.raw,
        "next_attempt_at": micros(row.next_attempt_at),
    }


def _event(row: Row[Any]) -> EventRow:
    return EventRow(
        id=row.id,
        type=row.type,
        status=row.status,
        attempts=row.attempts,
        error=row.error,
        user=row.user_id,
        occurred_at=moment(row.occurred_at),
        received_at=from_micros(row.received_at),
        raw=bytes(row.raw),
        next_attempt_at=moment(row.next_attempt_at),
    )
