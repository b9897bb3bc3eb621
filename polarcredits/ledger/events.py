"""The stored events: how they are found, read in order, and when a failed one is tried again (§8)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import Connection, Row, Select, func, select, text, tuple_

from polarcredits.errors import InvalidInput
from polarcredits.ledger import tables as t
from polarcredits.ledger.account import micros, moment
from polarcredits.ledger.ledger import Ledger
from polarcredits.periods import from_micros, to_micros

EventStatus = Literal["applied", "ignored", "failed"]
FAILED = text("status = 'failed'")
"""Literal, so that the index of failed events is used."""
ATTEMPTS = 10
"""After so many an event is dead: it stays among the failed ones, and is no longer tried by itself."""


def next_attempt(attempts: int, now: datetime) -> datetime | None:
    """Return when an event that failed for the n-th time is tried again: 1, 2, 4 … minutes, then never."""
    if attempts >= ATTEMPTS:
        return None
    return now + min(timedelta(minutes=2 ** (attempts - 1)), timedelta(hours=6))


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
    told: str | None = None
    """What it told when it was applied: see `applying.memo`."""

    @property
    def dead(self) -> bool:
        """Say whether it failed so often that only `webhooks retry` applies it."""
        return self.status == "failed" and self.next_attempt_at is None

    @property
    def payload(self) -> dict[str, Any]:
        """The event's body."""
        loaded = json.loads(self.raw)
        return loaded if isinstance(loaded, dict) else {}


def find(ledger: Ledger, id: str) -> EventRow | None:
    """Return a stored event."""

    def work(connection: Connection) -> EventRow | None:
        row = connection.execute(select(t.events).where(t.events.c.id == id)).first()
        return event_of(row) if row else None

    return ledger.reading(work)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which events: by what became of them, type, user and when they came.

    Raises InvalidInput where *status* is none of theirs. `failed` means the dead ones too, `dead`
    only those.
    """

    status: str | None = None
    type: str | None = None
    user: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        """Refuse a status that no event has."""
        known = (*get_args(EventStatus), "dead")
        if self.status is not None and self.status not in known:
            raise InvalidInput(f"No event is {self.status!r}; there are {', '.join(known)}.")

    def of(self, query: Select[Any]) -> Select[Any]:
        """Return *query* for these events only."""
        e = t.events.c
        if self.status in ("failed", "dead"):
            query = query.where(FAILED)
            query = query.where(e.next_attempt_at.is_(None)) if self.status == "dead" else query
        elif self.status is not None:
            query = query.where(e.status == self.status)
        for column, value in ((e.type, self.type), (e.user_id, self.user)):
            query = query if value is None else query.where(column == value)
        if self.since is not None:
            query = query.where(e.received_at >= to_micros(self.since))
        if self.until is not None:
            query = query.where(e.received_at < to_micros(self.until))
        return query


def newest(ledger: Ledger, wanted: Wanted, limit: int | None) -> list[EventRow]:
    """Return events, newest first."""
    e = t.events.c
    query = wanted.of(select(t.events)).order_by(e.received_at.desc(), e.id.desc()).limit(limit)
    return _read(ledger, query)


def count(ledger: Ledger, wanted: Wanted) -> int:
    """Return how many events there are."""
    query = wanted.of(select(func.count()).select_from(t.events))
    return ledger.reading(lambda connection: int(connection.execute(query).scalar_one()))


def in_order(ledger: Ledger, wanted: Wanted, size: int) -> Iterator[list[EventRow]]:
    """Yield events in the order they came, *size* at a time, each page read when it is asked for."""
    e = t.events.c
    place = tuple_(e.received_at, e.id)
    query = wanted.of(select(t.events)).order_by(e.received_at, e.id).limit(size)
    page = _read(ledger, query)
    while page:
        yield page
        last = page[-1]
        beyond = query.where(place > (to_micros(last.received_at), last.id))
        page = _read(ledger, beyond)


def _read(ledger: Ledger, query: Select[Any]) -> list[EventRow]:
    return ledger.reading(lambda connection: [event_of(row) for row in connection.execute(query).all()])


def due(connection: Connection, now: datetime, most: int) -> list[EventRow]:
    """Lock and return failed events whose time has come, in the order they came.

    Those that another process is at are left to it.
    """
    at = t.events.c.next_attempt_at
    query = select(t.events).where(FAILED, at <= to_micros(now)).order_by(at).limit(most)
    rows = connection.execute(query.with_for_update(skip_locked=True))
    return sorted(map(event_of, rows), key=lambda row: (row.received_at, row.id))


def values_of(row: EventRow) -> dict[str, Any]:
    """Return the columns of an event."""
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
        "told": row.told,
    }


def event_of(row: Row[Any]) -> EventRow:
    """Return the event of a row."""
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
        told=row.told,
    )
