"""Explain: every credit of a user, grant by grant, with what caused and what moved it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from polarcredits.ledger import tables as t
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.past import Movement, movements
from polarcredits.ledger.reconcile import Settled
from polarcredits.lots import Lot


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A grant with its story; the movements add up to what it holds."""

    lot: Lot
    granted: int
    clawed_back: int
    expired: int
    event_id: str | None
    movements: list[Movement]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upcoming:
    """Something that will happen by the clock alone."""

    at: datetime
    what: str
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why the balance is what it is."""

    user: str
    as_of: datetime
    balance: int
    grants: list[Explained]
    upcoming: list[Upcoming]


def explain(ledger: Ledger, user: str, at: datetime | None = None) -> Explanation:
    """Return why a user's balance is what it is at *at* (default now). Raises UnknownUser."""

    def work(connection: Connection) -> Explanation:
        settled = ledger.view(connection, user, at)
        now = settled.now
        account = settled.account
        stories = movements(connection, account, now if settled.past else None)
        g = t.grants.c
        causes = connection.execute(select(g.id, g.cause_event).where(g.account_id == account.id)).all()
        events = {row.id: row.cause_event for row in causes}
        grants = []
        for number, lot in enumerate(account.book.lots):
            story = list(stories.get(number, ()))
            rest = sum(line.amount for line in story) - lot.remaining
            if rest and lot.expires_at is not None:
                line = Movement(type="expire", amount=-rest, occurred_at=lot.expires_at, cause="period end")
                story.append(line)
            grants.append(_explained(lot, story, events.get(lot.id)))
        grants.sort(key=lambda each: (each.lot.effective_at, each.lot.key))
        return Explanation(
            user=account.user,
            as_of=now,
            balance=account.balance,
            grants=grants,
            upcoming=_upcoming(settled, now),
        )

    return ledger.reading(work)


def _explained(lot: Lot, story: list[Movement], event: str | None) -> Explained:
    def total(*types: str) -> int:
        return sum(line.amount for line in story if line.type in types)

    return Explained(
        lot=lot,
        granted=total("grant"),
        clawed_back=-total("clawback"),
        expired=-total("expire"),
        event_id=event,
        movements=story,
    )


def _upcoming(settled: Settled, now: datetime) -> list[Upcoming]:
    coming = [
        Upcoming(at=lot.expires_at, what=f"{lot.source} expires", amount=-lot.remaining)
        for lot in settled.account.book.live(now)
        if lot.expires_at is not None
    ]
    coming += [
        Upcoming(at=hold.expires_at, what=f"hold {hold.id} lapses", amount=hold.amount)
        for hold in settled.account.holds
    ]
    coming += [
        Upcoming(at=refill.at, what=f"{refill.plan} allowance begins", amount=refill.credits)
        for refill in settled.entitled.refills
    ]
    return sorted(coming, key=lambda each: each.at)
