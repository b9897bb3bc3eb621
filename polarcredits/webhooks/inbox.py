"""The inbox: every verified event is stored once, raw, in the transaction that applies it (§8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

from polarcredits.errors import InvalidInput, NotFound
from polarcredits.ledger.applying import APPLY_FAILURES, Applier, Outcome, Told, memo, why
from polarcredits.ledger.events import EventRow, Wanted, count, find, in_order, newest
from polarcredits.ledger.facts import Observation, observe
from polarcredits.ledger.ledger import Ledger
from polarcredits.webhooks.payloads import read_facts, usable_time
from polarcredits.webhooks.reading import BarePayload, Broken, Element
from polarcredits.webhooks.signature import Delivery, SignatureRefused, verify

__all__ = ["BATCH", "Inbox", "Outcome", "batches"]

T = TypeVar("T")
BATCH = 500
"""How many events are taken in one transaction where there are many."""


def batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut *items* into what is taken in one transaction each."""
    for at in range(0, len(items), BATCH):
        yield items[at : at + BATCH]


class Inbox:
    """Takes deliveries into a ledger's database."""

    def __init__(self, ledger: Ledger, *, environment: str, secrets: Sequence[str]) -> None:
        self._ledger = ledger
        self._environment = environment
        self._secrets = secrets
        self._applier = Applier(ledger, environment)

    def ingest(
        self,
        element: Element,
        *,
        now: datetime,
        unsigned: bool = False,
        allow_triggered: bool = False,
    ) -> Outcome:
        """Take one element of a file; a refused one changes nothing."""
        return self.ingest_many([element], now=now, unsigned=unsigned, allow_triggered=allow_triggered)[0]

    def ingest_many(
        self,
        elements: Sequence[Element],
        *,
        now: datetime,
        unsigned: bool = False,
        allow_triggered: bool = False,
    ) -> Sequence[Outcome]:
        """Take elements of a file in one transaction; a refused one changes nothing."""
        read = [self._deliver(element, now, unsigned, allow_triggered) for element in elements]
        deliveries = [each for each in read if isinstance(each, Delivery)]
        taken = iter(self.take_many(deliveries, now=now))
        return [next(taken) if isinstance(each, Delivery) else each for each in read]

    def _deliver(
        self, element: Element, now: datetime, unsigned: bool, allow_triggered: bool
    ) -> Delivery | Outcome:
        """Return an element's delivery, or why it is refused."""
        if isinstance(element, Broken):
            return _refused(f"{element.where}: {element.error}")
        if isinstance(element, BarePayload):
            if not unsigned:
                return _refused(f"{element.where}: carries no signature; take it with --unsigned")
            kind = element.payload.get("type")
            return Delivery(
                id=element.id,
                type=kind if isinstance(kind, str) and kind.strip() else None,
                timestamp=usable_time(element.payload.get("timestamp")),
                raw=element.raw,
                payload=element.payload,
                sent_at=now,
                triggered=False,
            )
        try:
            return verify(
                element.raw,
                element.headers,
                self._secrets,
                now=None,
                allow_triggered=allow_triggered and self._environment == "sandbox",
            )
        except SignatureRefused as refusal:
            return _refused(f"{element.where}: {refusal.message}", element.headers)

    def take(self, delivery: Delivery, *, now: datetime) -> Outcome:
        """Store and apply a verified delivery, once whatever the number of times it comes."""
        return self.take_many([delivery], now=now)[0]

    def take_many(self, deliveries: Sequence[Delivery], *, now: datetime) -> list[Outcome]:
        """Store and apply verified deliveries in one transaction; each has its own outcome, in order.

        One that cannot be applied is kept as failed and undoes no other. Raises DatabaseError or
        ConfigError for all of them: then none was stored.
        """
        told = [_new(delivery, now) for delivery in deliveries]
        return self._applier.take(told, now=now)

    def known(self, id: str) -> Outcome | None:
        """Return what became of an event that is stored, as a duplicate."""
        row = find(self._ledger, id)
        return None if row is None else _duplicate(row)

    def again(self, row: EventRow, *, now: datetime) -> Outcome:
        """Apply a stored event once more (`retry`, `replay`): what it says is known changes nothing."""
        return self.again_many([row], now=now)[0]

    def again_many(self, rows: Sequence[EventRow], *, now: datetime) -> Sequence[Outcome]:
        """Apply stored events once more, in one transaction. Raises as `take_many` does."""
        return self._applier.again(rows, _stored, now=now)

    def retry_due(self, *, now: datetime, most: int = 100) -> Sequence[Outcome]:
        """Apply failed events whose time has come, in one transaction (docs/rules.md §8.4).

        Raises as `take_many` does; then all of them stay as they were.
        """
        return self._applier.due_again(_stored, now=now, most=most)

    def stored(self, id: str) -> EventRow:
        """Return a stored event, or raise NotFound."""
        row = find(self._ledger, id)
        if row is None:
            raise NotFound(f"No event {id!r}. See: polarcredits webhooks list", event=id)
        return row

    def list(self, *, limit: int | None = 50, **wanted: Any) -> list[EventRow]:
        """Return stored events, newest first; see `Wanted`."""
        return newest(self._ledger, Wanted(**wanted), limit)

    def count(self, **wanted: Any) -> int:
        """Return how many events are stored; see `Wanted`."""
        return count(self._ledger, Wanted(**wanted))

    def pages(self, **wanted: Any) -> Iterator[Sequence[EventRow]]:
        """Yield stored events a page at a time, in the order they came; see `Wanted`."""
        return in_order(self._ledger, Wanted(**wanted), BATCH)


def _new(delivery: Delivery, now: datetime) -> Told:
    told, status, error = _read(delivery.type, delivery.timestamp, delivery.payload)
    event = EventRow(
        id=delivery.id,
        type=delivery.type,
        status=status,
        attempts=1,
        error=error,
        user=None,
        occurred_at=delivery.timestamp,
        received_at=now,
        raw=delivery.raw,
        told=memo(told),
    )
    return Told(event, told)


def _stored(row: EventRow) -> Told:
    told, status, error = _read(row.type, row.occurred_at, row.payload)
    return Told(replace(row, status=status, error=error, told=memo(told)), told, row.status)


def _read(
    type: str | None, as_of: datetime | None, payload: dict[str, Any]
) -> tuple[Sequence[Observation], str, str | None]:
    """Read what an event tells, the status that it has then, and why it cannot be read."""
    try:
        if type is None or as_of is None:
            raise InvalidInput("the event has no usable type or timestamp")
        told = [observe(fact) for fact in read_facts(type, payload.get("data"), as_of)]
    except APPLY_FAILURES as error:
        return (), "failed", why(error)
    return told, "applied" if told else "ignored", None


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
