"""The one transaction that stores and applies events, however many (docs/rules.md §8.2).

An event that cannot be applied is kept as failed and undoes no other; a failure of the database is
raised for all of them, and then none is stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, bindparam, exc, insert, select, update

from polarcredits.errors import ConfigError, DatabaseError, PolarCreditsError
from polarcredits.ledger import tables as t
from polarcredits.ledger.account import Call, micros
from polarcredits.ledger.events import EventRow, due, next_attempt, values_of
from polarcredits.ledger.facts import Observation, Stored, lock_names, unknown
from polarcredits.ledger.failing import may_succeed_again, named
from polarcredits.ledger.ingest import News, apply_all, stamp
from polarcredits.ledger.ledger import Ledger

APPLY_FAILURES = (
    PolarCreditsError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    exc.IntegrityError,
    exc.DataError,
)
_STORED = select(t.events.c.id, t.events.c.type, t.events.c.status, t.events.c.user_id, t.events.c.error)
_KNOWN = _STORED.where(t.events.c.id.in_(bindparam("ids", expanding=True)))
_TOLD = (
    update(t.events)
    .where(t.events.c.id == bindparam("event"))
    .values(
        attempts=t.events.c.attempts + 1,
        status=bindparam("new_status"),
        error=bindparam("new_error"),
        user_id=bindparam("new_user"),
        next_attempt_at=bindparam("new_next"),
        told=bindparam("new_told"),
    )
)


READER = 2
"""Which edition of the reader of payloads wrote `told`; raise it when it comes to tell other facts."""


@dataclass(frozen=True, slots=True)
class Told:
    """An event and what it tells; its status says how it could be read, `before` what it was."""

    event: EventRow
    told: Sequence[Observation] = ()
    before: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of an event, or of something that was to be one."""

    id: str | None
    type: str | None
    status: str
    """`applied`, `ignored`, `failed` or `refused`."""
    duplicate: bool = False
    user: str | None = None
    error: str | None = None


Read = Callable[[EventRow], Told]
"""Reads a stored event once more."""


def memo(told: Sequence[Observation]) -> str:
    """Return what an event told, to be kept with it: then its replay need not read it again."""
    return json.dumps([READER, [one.stored for one in told]], separators=(",", ":"))


def _remembered(row: EventRow) -> list[Stored] | None:
    """Return what an applied event told; None where it has to be read again."""
    if row.told is None or row.status == "failed":
        return None
    edition, told = json.loads(row.told)
    return [tuple(one) for one in told] if edition == READER else None


def _telling(connection: Connection, rows: Sequence[EventRow], read: Read) -> list[Told]:
    """Return those of some events that tell anything unknown, or have to be read to know it."""
    remembered = {row.id: _remembered(row) for row in rows}
    missing = unknown(connection, [one for told in remembered.values() for one in told or ()])
    return [read(row) for row in rows if (told := remembered[row.id]) is None or not missing.isdisjoint(told)]


class Applier:
    """Stores and applies events in a ledger's database."""

    def __init__(self, ledger: Ledger, environment: str) -> None:
        self._ledger = ledger
        self._environment = environment

    def take(self, events: Sequence[Told], *, now: datetime) -> list[Outcome]:
        """Store and apply new events, each once; return what became of each, in their order."""

        def work(connection: Connection) -> list[Outcome]:
            first: dict[str, Told] = {}
            for each in events:
                first.setdefault(each.event.id, each)
            lock_names(connection, first)
            results = {
                row.id: Outcome(
                    id=row.id,
                    type=row.type,
                    status=row.status,
                    user=row.user_id,
                    error=row.error,
                    duplicate=True,
                )
                for row in connection.execute(_KNOWN, {"ids": list(first)})
            }
            done = self._apply(connection, [each for id, each in first.items() if id not in results], now)
            if done:
                connection.execute(insert(t.events), [values_of(event) for event in done])
            return _in_order(events, results | {event.id: _outcome(event) for event in done})

        return self._ledger.in_transaction(work)

    def again(self, rows: Sequence[EventRow], read: Read, *, now: datetime) -> list[Outcome]:
        """Apply stored events once more: where none tells anything new, nothing is written."""
        news = self._ledger.reading(lambda connection: _telling(connection, rows, read))
        if not news:
            return [_outcome(row) for row in rows]
        return self._ledger.in_transaction(lambda connection: self._again(connection, rows, news, now))

    def due_again(self, read: Read, *, now: datetime, most: int) -> list[Outcome]:
        """Apply the failed events whose time has come."""

        def work(connection: Connection) -> list[Outcome]:
            rows = due(connection, now, most)
            return self._again(connection, rows, [read(row) for row in rows], now)

        return self._ledger.in_transaction(work)

    def _again(
        self, connection: Connection, rows: Sequence[EventRow], news: Sequence[Told], now: datetime
    ) -> list[Outcome]:
        done = {event.id: event for event in self._apply(connection, news, now)}
        if done:
            connection.execute(_TOLD, [_changes(event) for event in done.values()])
        return [_outcome(done.get(row.id, row)) for row in rows]

    def _apply(self, connection: Connection, events: Sequence[Told], now: datetime) -> list[EventRow]:
        """Apply events, in halves where one of them cannot be; return them as they then are."""
        if any(each.event.status != "failed" for each in events):
            stamp(connection, self._environment)
        telling = [each for each in events if each.told]
        applied = {event.id: event for event in self._apply_some(connection, telling, now)}
        return [applied.get(each.event.id) or _tried(each, each.event, now) for each in events]

    def _apply_some(self, connection: Connection, events: Sequence[Told], now: datetime) -> list[EventRow]:
        if not events:
            return []
        try:
            with connection.begin_nested():
                touched = apply_all(connection, self._ledger.catalog, _news(events, now))
        except (DatabaseError, ConfigError):
            raise
        except APPLY_FAILURES as error:
            if may_succeed_again(error):
                raise
            if len(events) == 1:
                failed = replace(events[0].event, status="failed", error=why(error))
                return [_tried(events[0], failed, now)]
            half = len(events) // 2
            some = self._apply_some(connection, events[:half], now)
            return some + self._apply_some(connection, events[half:], now)
        return [
            replace(each.event, user=next(iter(users), None), next_attempt_at=None)
            for each, users in zip(events, touched, strict=True)
        ]


def _news(events: Sequence[Told], now: datetime) -> list[News]:
    wall = datetime.now(UTC)
    return [
        News(
            told=each.told,
            call=Call(now=now, wall=wall, actor=f"webhook:{each.event.id}", event=each.event.id),
            as_of=each.event.occurred_at or now,
        )
        for each in events
    ]


def _tried(told: Told, event: EventRow, now: datetime) -> EventRow:
    """Return an event with the time of its next attempt, which only a failed one has."""
    attempts = event.attempts + (told.before is not None)
    again = next_attempt(attempts, now) if event.status == "failed" else None
    return replace(event, next_attempt_at=again)


def _changes(event: EventRow) -> dict[str, Any]:
    return {
        "event": event.id,
        "new_status": event.status,
        "new_error": event.error,
        "new_user": event.user,
        "new_next": micros(event.next_attempt_at),
        "new_told": event.told,
    }


def _outcome(event: EventRow) -> Outcome:
    return Outcome(id=event.id, type=event.type, status=event.status, user=event.user, error=event.error)


def _in_order(events: Sequence[Told], results: Mapping[str, Outcome]) -> list[Outcome]:
    """Return each event's result; one that comes twice is a duplicate of itself."""
    seen: set[str] = set()
    ordered = []
    for each in events:
        result = results[each.event.id]
        ordered.append(replace(result, duplicate=True) if each.event.id in seen else result)
        seen.add(each.event.id)
    return ordered


def why(error: Exception) -> str:
    """Return what is kept of the failure of an event."""
    if isinstance(error, exc.DBAPIError):
        return named(error).message
    return error.message if isinstance(error, PolarCreditsError) else f"{type(error).__name__}: {error}"[:500]
