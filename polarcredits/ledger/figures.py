"""What monitoring asks of the database, often: a few indexed look-ups, whatever its size."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, QueuePool, func, select

from polarcredits.ledger import tables as t
from polarcredits.ledger.account import moment
from polarcredits.ledger.database import upsert
from polarcredits.ledger.ledger import Ledger
from polarcredits.periods import from_micros, to_micros

_LAST_REFILL = "last_refill"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How the inbox and the ledger are."""

    failed: int
    """Events that could not be applied and will be tried again."""
    dead: int
    """Events that will not be tried again by themselves."""
    oldest_waiting: datetime | None
    """When the oldest of both was received."""
    oldest_due: datetime | None
    """When the most overdue account fell due, or the next will."""
    last_event: datetime | None
    last_refill: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFigures:
    """A process's own connections to the database."""

    idle: int
    in_use: int


def figures(ledger: Ledger) -> Figures:
    """Return the database's figures on one snapshot. Raises DatabaseError."""

    def work(connection: Connection) -> Figures:
        b, e, s = t.balances.c, t.events.c, t.settings.c
        waiting = {
            row.status: row
            for row in connection.execute(
                select(e.status, func.count().label("events"), func.min(e.received_at).label("oldest"))
                .where(e.status.in_(("failed", "dead")))
                .group_by(e.status)
            )
        }
        refilled = connection.execute(select(s.value).where(s.name == _LAST_REFILL)).scalar()
        return Figures(
            failed=waiting["failed"].events if "failed" in waiting else 0,
            dead=waiting["dead"].events if "dead" in waiting else 0,
            oldest_waiting=moment(min((row.oldest for row in waiting.values()), default=None)),
            oldest_due=moment(connection.execute(select(func.min(b.next_due_at))).scalar()),
            last_event=moment(connection.execute(select(func.max(e.received_at))).scalar()),
            last_refill=from_micros(int(refilled)) if refilled else None,
        )

    return ledger.reading(work)


def pool_figures(ledger: Ledger) -> PoolFigures:
    """Return how many connections this process has open."""
    pool = ledger.database.engine.pool
    if not isinstance(pool, QueuePool):
        return PoolFigures(idle=0, in_use=0)
    return PoolFigures(idle=pool.checkedin(), in_use=pool.checkedout())


def note_refill(ledger: Ledger, when: datetime) -> None:
    """Keep when a refill of everybody last ran to its end."""
    ledger.in_transaction(
        lambda connection: upsert(
            connection, t.settings, {"name": _LAST_REFILL}, value=str(to_micros(when))
        )
    )
