"""What `doctor` asks of the database: quick questions, none of which reads everybody's history."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, literal, select, text, union_all

from polarcredits.ledger import tables as t
from polarcredits.ledger.account import moment
from polarcredits.ledger.database import upsert
from polarcredits.ledger.events import FAILED
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import Problem, verify_some
from polarcredits.periods import FOREVER, to_micros


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """Something whose metadata names another user than its customer's external id does (§7.1)."""

    kind: str
    id: str
    metadata_user: str
    customer_user: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is waiting to be done."""

    failed_events: int
    """Events that could not be applied, dead ones too."""
    dead_events: int
    """Those of them that are no longer tried by themselves."""
    oldest_failed: datetime | None
    """When the oldest event arrived that waits to be tried again."""
    oldest_due: datetime | None
    """When the most overdue account fell due."""
    last_refill: datetime | None
    """When `refill` last went through everybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How the database is."""

    users: int
    work: Work
    unknown_products: tuple[str, ...]
    disagreements: tuple[Disagreement, ...]
    problems: tuple[Problem, ...]
    """What a check of the accounts last written found."""
    forgetful: tuple[str, ...]
    """PostgreSQL's settings by which a crash can lose what was committed (docs/rules.md §6.4)."""


def examine(ledger: Ledger, *, some: int = 200) -> Health:
    """Return the database's health; the laws are checked for *some* accounts."""

    def work(connection: Connection) -> Health:
        a, b = t.accounts.c, t.balances.c
        count = select(func.count())
        recent = select(b.account_id).order_by(b.last_occurred_at.desc()).limit(some)
        return Health(
            users=connection.execute(count.select_from(t.accounts).where(a.alias_of.is_(None))).scalar_one(),
            work=_waiting(connection),
            unknown_products=unknown(connection),
            disagreements=_disagreements(connection),
            problems=tuple(verify_some(connection, connection.execute(recent).scalars().all())),
            forgetful=_forgetful(connection),
        )

    return ledger.reading(work)


def _forgetful(connection: Connection) -> tuple[str, ...]:
    if connection.dialect.name == "sqlite":
        return ()
    return tuple(connection.execute(_OFF).scalars())


_OFF = text(
    "SELECT name FROM pg_settings WHERE setting = 'off'"
    " AND name IN ('fsync', 'full_page_writes', 'synchronous_commit') ORDER BY name"
)


def waiting(ledger: Ledger) -> Work:
    """Return what is waiting to be done; cheap enough to be asked every few seconds."""
    return ledger.reading(_waiting)


def _waiting(connection: Connection) -> Work:
    b, e, s = t.balances.c, t.events.c, t.settings.c
    failed = select(func.count(), func.count(e.next_attempt_at), func.min(e.received_at)).where(FAILED)
    total, alive, _ = connection.execute(failed).one()
    oldest = connection.execute(failed.where(e.next_attempt_at.is_not(None))).one()[2]
    due = connection.execute(select(func.min(b.next_due_at)).where(b.next_due_at < FOREVER)).scalar()
    ran = connection.execute(select(s.value).where(s.name == _LAST_REFILL)).scalar()
    return Work(
        failed_events=total,
        dead_events=total - alive,
        oldest_failed=moment(oldest),
        oldest_due=moment(due),
        last_refill=moment(None if ran is None else int(ran)),
    )


_LAST_REFILL = "last_refill_at"


def note_refill(ledger: Ledger, at: datetime) -> None:
    """Write down that a refill has gone through everybody."""
    ledger.in_transaction(
        lambda connection: upsert(connection, t.settings, {"name": _LAST_REFILL}, value=str(to_micros(at)))
    )


def unknown_products(ledger: Ledger) -> tuple[str, ...]:
    """Return the products that were bought while they were in no plan or pack."""
    return ledger.reading(unknown)


def unknown(connection: Connection) -> tuple[str, ...]:
    """Return the products of `unknown_products`, each once."""
    query = select(t.unknown_products.c.product_id).distinct()
    return tuple(sorted(connection.execute(query).scalars()))


def _disagreements(connection: Connection) -> tuple[Disagreement, ...]:
    c = t.customers.c
    queries = [
        select(literal(kind).label("kind"), table.c.id, table.c.user_id, c.external_id)
        .join_from(table, t.customers, table.c.customer_id == c.id)
        .where(table.c.user_id != c.external_id)
        for kind, table in (("subscription", t.subscriptions), ("order", t.payments))
    ]
    rows = connection.execute(union_all(*queries).limit(20))
    return tuple(
        Disagreement(kind=row[0], id=row[1], metadata_user=row[2], customer_user=row[3]) for row in rows
    )
