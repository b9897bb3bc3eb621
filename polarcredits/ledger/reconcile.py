"""Reconcile: bring one account's ledger to what its facts ask for, posting only the difference.

Webhooks, replays, refill, reads and the slow path of a deduction all come through here
(docs/rules.md §1.4); running it twice posts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType

from pydantic import TypeAdapter
from sqlalchemy import Connection, select, update

from polarcredits.credits import advance
from polarcredits.entitlements import AccountFacts, Entitlements, entitlements
from polarcredits.errors import InvalidInput
from polarcredits.ledger import tables as t
from polarcredits.ledger.account import (
    NO_DETAILS,
    Call,
    Details,
    LoadedAccount,
    load,
)
from polarcredits.ledger.database import insert_once
from polarcredits.ledger.facts import account_facts, is_closed
from polarcredits.ledger.outlooks import write_outlook
from polarcredits.lots import Lot
from polarcredits.outlook import foresee
from polarcredits.periods import FOREVER, format_time, from_micros, to_micros
from polarcredits.plans import Catalog
from polarcredits.terms import Terms

_TERMS = TypeAdapter(Terms)


@dataclass(slots=True, kw_only=True)
class Settled:
    """An account that is true at an instant, and what its facts say."""

    account: LoadedAccount
    facts: AccountFacts
    entitled: Entitlements
    now: datetime
    granted: int = 0
    expired: int = 0
    credits_granted: int = 0
    credits_expired: int = 0
    downgraded: bool = False
    past: bool = False
    """Whether this is how the account once stood."""


def settle(
    connection: Connection,
    catalog: Catalog,
    account: int,
    call: Call,
    *,
    lock: bool,
    news: datetime | None = None,
) -> Settled:
    """Load an account and make it true at `call.now`; `news` is the as-of of the fact behind it."""
    loaded = load(connection, account, lock=lock)
    return true_at(connection, catalog, loaded, call, news=news)


def true_at(
    connection: Connection,
    catalog: Catalog,
    loaded: LoadedAccount,
    call: Call,
    *,
    news: datetime | None = None,
    details: Mapping[Lot, Details] = MappingProxyType({}),
) -> Settled:
    """Make a loaded account true at `call.now`: lapse, expire, grant. Call it after every change."""
    call = replace(call, now=ledger_time(loaded, call.now))
    facts = account_facts(connection, loaded.user)
    entitled = entitlements(facts, known_terms(connection, facts), catalog, call.now)
    lapse(loaded, call.now)
    as_of = call.now if news is None else min(news, call.now)
    postings = advance(loaded.book, entitled.desired, call.now, as_of)
    result = Settled(account=loaded, facts=facts, entitled=entitled, now=call.now)
    for posting in postings:
        says = details.get(posting.lot, NO_DETAILS) if posting.type == "grant" else NO_DETAILS
        loaded.post(
            call,
            posting.type,
            posting.amount,
            lot=posting.lot,
            at=posting.occurred_at,
            details=says,
        )
        if posting.type == "grant":
            result.granted += 1
            result.credits_granted += posting.amount
        elif posting.type == "expire":
            result.expired += 1
            result.credits_expired -= posting.amount
    loaded.closed = is_closed(connection, loaded.user)
    loaded.next_due_at = _next_due(loaded, entitled, call.now)
    result.downgraded = loaded.plan != entitled.plan and entitled.plan == catalog.default_plan
    return result


def write(connection: Connection, settled: Settled, call: Call) -> None:
    """Save a settled account, its plan and the terms that were used for the first time."""
    account, entitled = settled.account, settled.entitled
    account.save(connection, call)
    for hold, status, captured in account.closed_holds:
        ended = update(t.holds).where(t.holds.c.id == hold)
        connection.execute(ended.values(status=status, captured=captured, closed_at=to_micros(call.now)))
    account.closed_holds.clear()
    for (subject, product), terms in entitled.new_terms.items():
        insert_once(
            connection,
            t.terms,
            subject=subject,
            product_id=product,
            terms=_TERMS.dump_json(terms).decode(),
        )
    for product in entitled.unknown_products:
        insert_once(connection, t.unknown_products, account_id=account.id, product_id=product)
    if account.plan != entitled.plan:
        a = t.accounts.c
        connection.execute(update(t.accounts).where(a.id == account.id).values(plan=entitled.plan))
        account.plan = entitled.plan
    if account.next_due_at < FOREVER:
        write_outlook(connection, account.id, foresee(account.book, settled.facts, entitled, settled.now))


def lapse(account: LoadedAccount, now: datetime) -> None:
    """Free the holds whose time is up (§5.7)."""
    for hold in [hold for hold in account.holds if hold.expires_at <= now]:
        account.close_hold(hold, "lapsed")


def _next_due(account: LoadedAccount, entitled: Entitlements, now: datetime) -> int:
    times = [entitled.next_change_at] if entitled.next_change_at else []
    times += [lot.expires_at for lot in account.book.lots if lot.expires_at and lot.expires_at > now]
    times += [hold.expires_at for hold in account.holds]
    return min((to_micros(time) for time in times), default=FOREVER)


def known_terms(connection: Connection, facts: AccountFacts) -> dict[tuple[str, str], Terms]:
    """Return the terms written down for an account's periods and orders (§1.3)."""
    products = {v.product_id for s in facts.subscriptions for p in s.periods for v in p.versions}
    products |= {p.latest.product_id for p in facts.payments if p.latest.product_id}
    if not products:
        return {}
    c = t.terms.c
    subjects = [f"period:{s.latest.id}:" for s in facts.subscriptions]
    found: dict[tuple[str, str], Terms] = {}
    for prefix in subjects:
        rows = connection.execute(select(t.terms).where(c.subject >= prefix, c.subject < prefix + "~"))
        found.update({(r.subject, r.product_id): _TERMS.validate_json(r.terms) for r in rows})
    orders = [f"order:{p.latest.id}" for p in facts.payments if not p.latest.subscription_id]
    for at in range(0, len(orders), 500):
        rows = connection.execute(select(t.terms).where(c.subject.in_(orders[at : at + 500])))
        found.update({(r.subject, r.product_id): _TERMS.validate_json(r.terms) for r in rows})
    return found


def refuse_earlier(account: LoadedAccount, call: Call) -> None:
    """Raise InvalidInput if a time that was asked for lies before the account's last entry."""
    if call.explicit and to_micros(call.now) < account.loaded_at:
        last = format_time(from_micros(account.loaded_at))
        raise InvalidInput(f"The time lies before the user's last ledger entry, at {last}.")


def ledger_time(account: LoadedAccount, wall: datetime) -> datetime:
    """Return *wall*, but never before the account's last entry: its time does not run back."""
    return max(wall, from_micros(account.last_occurred_at))
