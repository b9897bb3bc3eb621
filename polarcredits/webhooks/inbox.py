"""The inbox: every verified event is stored once, raw, in the transaction that applies it (§8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from polarcredits.errors import DatabaseError, InvalidInput, NotFound, PolarCreditsError
from polarcredits.ledger.events import EventRow, EventStore
from polarcredits.ledger.ledger import Ledger
from polarcredits.webhooks.payloads import read_facts, usable_time
from polarcredits.webhooks.reading import BarePayload, Broken, Element
from polarcredits.webhooks.signature import Delivery, SignatureRefused, verify


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one element."""

    id: str | None
    type: str | None
    status: str
    """`applied`, `ignored`, `failed` or `refused`."""
    duplicate: bool = False
    user: str | None = None
    error: str | None = None


ATTEMPTS = 10
"""After so many an event is dead: it stays among the failed ones, and is no longer tried by itself."""


def next_attempt(attempts: int, now: datetime) -> datetime | None:
    """Return when an event that failed for the n-th time is tried again: 1, 2, 4 … minutes, then never."""
    if attempts >= ATTEMPTS:
        return None
    return now + min(timedelta(minutes=2 ** (attempts - 1)), timedelta(hours=6))


class Inbox:
    """Takes deliveries into a ledger's database."""

    def __init__(self, ledger: Ledger, *, environment: str, secrets: Sequence[str]) -> None:
        self._ledger = ledger
        self._environment = environment
        self._secrets = secrets
        self._store = EventStore(ledger, environment)

    def ingest(
        self,
        element: Element,
        *,
        now: datetime,
        unsigned: bool = False,
        allow_triggered: bool = False,
    ) -> Outcome:
        """Take one element of a file; a refused one changes nothing."""
        if isinstance(element, Broken):
            return _refused(f"{element.where}: {element.error}")
        if isinstance(element, BarePayload):
            if not unsigned:
                return _refused(f"{element.where}: carries no signature; take it with --unsigned")
            kind = element.payload.get("type")
            return self.take(
                Delivery(
                    id=element.id,
                    type=kind if isinstance(kind, str) and kind.strip() else None,
                    timestamp=usable_time(element.payload.get("timestamp")),
                    raw=element.raw,
                    payload=element.payload,
                    sent_at=now,
                    triggered=False,
                ),
                now=now,
            )
        try:
            delivery = verify(
                element.raw,
                element.headers,
                self._secrets,
                now=None,
                allow_triggered=allow_triggered and self._environment == "sandbox",
            )
        except SignatureRefused as refusal:
            return _refused(f"{element.where}: {refusal.message}", element.headers)
        return self.take(delivery, now=now)

    def take(self, delivery: Delivery, *, now: datetime) -> Outcome:
        """Store and apply a verified delivery, once whatever the number of times it comes."""
        known = self.known(delivery.id)
        if known is not None:
            return known
        row = EventRow(
            id=delivery.id,
            type=delivery.type,
            status="applied",
            attempts=1,
            error=None,
            user=None,
            occurred_at=delivery.timestamp,
            received_at=now,
            raw=delivery.raw,
        )
        return self._apply(row, delivery.payload, now=now, new=True)

    def take_many(self, deliveries: Sequence[Delivery], *, now: datetime) -> list[Outcome]:
        """Store and apply verified deliveries in one transaction; each has its own outcome, in order.

        One that cannot be applied is kept as failed and undoes no other. Raises DatabaseError or
        ConfigError for all of them: then none was stored.
        """

        def work(ledger: Ledger) -> list[Outcome]:
            joined = Inbox(ledger, environment=self._environment, secrets=self._secrets)
            return [joined.take(delivery, now=now) for delivery in deliveries]

        return self._store.together(work)

    def known(self, id: str) -> Outcome | None:
        """Return what became of an event that is stored, as a duplicate."""
        row = self._store.find(id)
        return None if row is None else _duplicate(row)

    def again(self, row: EventRow, *, now: datetime) -> Outcome:
        """Apply a stored event once more (`retry`, `replay`): what it says is known changes nothing."""
        attempt = replace(row, attempts=row.attempts + 1)
        return self._apply(attempt, row.payload, now=now, new=False)

    def retry_due(self, *, now: datetime, most: int = 100) -> Sequence[Outcome]:
        """Apply failed events whose time has come, in one transaction (docs/rules.md §8.4).

        Raises DatabaseError; then all of them stay as they were.
        """

        def work(ledger: Ledger) -> Sequence[Outcome]:
            joined = Inbox(ledger, environment=self._environment, secrets=self._secrets)
            return [joined.again(row, now=now) for row in joined._store.due(now, most)]

        return self._store.together(work)

    def stored(self, id: str) -> EventRow:
        """Return a stored event, or raise NotFound."""
        row = self._store.find(id)
        if row is None:
            raise NotFound(f"No event {id!r}. See: polarcredits webhooks list", event=id)
        return row

    def list(self, **filters: Any) -> list[EventRow]:
        """Return stored events, newest first."""
        return self._store.list(**filters)

    def _apply(self, row: EventRow, payload: dict[str, Any], *, now: datetime, new: bool) -> Outcome:
        try:
            if row.type is None or row.occurred_at is None:
                raise InvalidInput("the event has no usable type or timestamp")
            facts = read_facts(row.type, payload.get("data"), row.occurred_at)
            status = "applied" if facts else "ignored"
            done = replace(row, status=status, error=None, next_attempt_at=None)
            user = self._store.apply(done, facts, now=now, new=new)
        except DatabaseError:
            raise
        except _APPLY_FAILURES as error:
            message = error.message if isinstance(error, PolarCreditsError) else _told(error)
            if isinstance(error, PolarCreditsError) and error.code == "config":
                raise
            again = next_attempt(row.attempts, now)
            failed = replace(row, status="failed", error=message, next_attempt_at=again)
            self._store.keep(failed, new=new)
            return Outcome(id=row.id, type=row.type, status="failed", error=message)
        if user is None:
            return _duplicate(self.stored(row.id))
        return Outcome(id=row.id, type=row.type, status=status, user=user or None)


_APPLY_FAILURES = (
    PolarCreditsError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _refused(message: str, headers: dict[str, str] | None = None) -> Outcome:
    id = next((v for k, v in (headers or {}).items() if k.lower() == "webhook-id"), None)
    return Outcome(id=id, type=None, status="refused", error=message)


def _duplicate(row: EventRow) -> Outcome:
    return Outcome(
        id=row.id,
        type=row.type,
        status=row.status,
        duplicate=True,
        user=row.user,
        error=row.error,
    )
