"""Reconcile: bring one account's ledger to what its facts ask for, posting only the difference.

Webhooks, replays, refill, reads and the slow path of a deduction all come through here
(docs/rules.md §1.4); running it twice posts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType

from pydantic import TypeAdapter
from sqlalchemy import Connection, bindparam, select, update

from polarcredits.credits import advance
from polarcredits.entitlements import AccountFacts, Entitlements, entitlements, subjects
from polarcredits.errors import InvalidInput
from polarcredits.ledger import tables as t
from polarcredits.ledger.account import (
    NO_DETAILS,
    Call,
    Details,
    LoadedAccount,
)
from polarcredits.ledger.database import insert_each_once
from polarcredits.ledger.keeping import load, save_all
from polarcredits.ledger.known import KnownFacts
from polarcredits.ledger.outlooks import write_outlooks
from polarcredits.lots import Lot
from polarcredits.outlook import foresee
from polarcredits.periods import FOREVER, format_time, from_micros, to_micros
from polarcredits.plans import Catalog
from polarcredits.terms import Terms

_TERMS = TypeAdapter(Terms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What is known of an account besides its ledger: facts, written terms, whether it is closed."""

    facts: AccountFacts
    terms: Mapping[tuple[str, str], Terms]
    closed: bool


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
    """Load an account and make it true at `call.now`; `news` is the as-of of the fact behind it.

    One that was merged into another while its lock was waited for is that other one (§7.2).
    """
    loaded = load(connection, account, lock=lock)
    while loaded.merged_into is not None:
        loaded = load(connection, loaded.merged_into, lock=lock)
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
    known = KnownFacts(connection)
    facts, closed = known.of(loaded.user), known.is_closed(loaded.user)
    heard = Heard(facts=facts, terms=known_terms(connection, subjects(facts)), closed=closed)
    return true_by(heard, catalog, loaded, call, news=news, details=details)


def true_by(
    heard: Heard,
    catalog: Catalog,
    loaded: LoadedAccount,
    call: Call,
    *,
    news: datetime | None = None,
    details: Mapping[Lot, Details] = MappingProxyType({}),
) -> Settled:
    """Make a loaded account true at `call.now` by what was heard of it."""
    call = replace(call, now=ledger_time(loaded, call.now))
    facts = heard.facts
    entitled = entitlements(facts, heard.terms, catalog, call.now)
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
    loaded.closed = heard.closed
    loaded.next_due_at = _next_due(loaded, entitled, call.now)
    result.downgraded = loaded.plan != entitled.plan and entitled.plan == catalog.default_plan
    return result


def write(connection: Connection, settled: Settled, call: Call) -> None:
    """Save a settled account, its plan and the terms that were used for the first time."""
    settled.account.settled_by(call)
    write_all(connection, [settled], call)


def write_all(connection: Connection, settled: Sequence[Settled], call: Call) -> None:
    """Save several settled accounts, whose new grants have their provisional ids."""
    save_all(connection, [each.account for each in settled])
    _write_closed_holds(connection, [each.account for each in settled], call)
    terms = [
        {"subject": subject, "product_id": product, "terms": _TERMS.dump_json(terms).decode()}
        for each in settled
        for (subject, product), terms in each.entitled.new_terms.items()
    ]
    insert_each_once(connection, t.terms, terms)
    unknown = [
        {"account_id": each.account.id, "product_id": product}
        for each in settled
        for product in each.entitled.unknown_products
    ]
    insert_each_once(connection, t.unknown_products, unknown)
    moved = [each for each in settled if each.account.plan != each.entitled.plan]
    for each in moved:
        each.account.plan = each.entitled.plan
    if moved:
        plans = [{"account": each.account.id, "plan": each.entitled.plan} for each in moved]
        connection.execute(_CHANGE_PLAN, plans)
    outlooks = {
        each.account.id: foresee(each.account.book, each.facts, each.entitled, each.now)
        for each in settled
        if each.account.next_due_at < FOREVER
    }
    write_outlooks(connection, outlooks)


_CHANGE_PLAN = update(t.accounts).where(t.accounts.c.id == bindparam("account"))
_CLOSE_HOLD = update(t.holds).where(t.holds.c.id == bindparam("hold"))


def _write_closed_holds(connection: Connection, accounts: Iterable[LoadedAccount], call: Call) -> None:
    closed_at = to_micros(call.now)
    rows = []
    for account in accounts:
        rows += [
            {"hold": hold, "status": status, "captured": captured, "closed_at": closed_at}
            for hold, status, captured in account.closed_holds
        ]
        account.closed_holds.clear()
    if rows:
        connection.execute(_CLOSE_HOLD, rows)


def lapse(account: LoadedAccount, now: datetime) -> None:
    """Free the holds whose time is up (§5.7)."""
    for hold in [hold for hold in account.holds if hold.expires_at <= now]:
        account.close_hold(hold, "lapsed")


def _next_due(account: LoadedAccount, entitled: Entitlements, now: datetime) -> int:
    times = [entitled.next_change_at] if entitled.next_change_at else []
    times += [lot.expires_at for lot in account.book.lots if lot.expires_at and lot.expires_at > now]
    times += [hold.expires_at for hold in account.holds]
    return min((to_micros(time) for time in times), default=FOREVER)


def known_terms(connection: Connection, subjects: Iterable[str]) -> dict[tuple[str, str], Terms]:
    """Return the terms written down for some periods and orders (§1.3)."""
    wanted = sorted(subjects)
    found: dict[tuple[str, str], Terms] = {}
    for at in range(0, len(wanted), 500):
        rows = connection.execute(_TERMS_OF, {"subjects": wanted[at : at + 500]})
        found.update({(r.subject, r.product_id): _TERMS.validate_json(r.terms) for r in rows})
    return found


_TERMS_OF = select(t.terms).where(t.terms.c.subject.in_(bindparam("subjects", expanding=True)))


def refuse_earlier(account: LoadedAccount, call: Call) -> None:
    """Raise InvalidInput if a time that was asked for lies before the account's last entry."""
    if call.explicit and to_micros(call.now) < account.loaded_at:
        last = format_time(from_micros(account.loaded_at))
        raise InvalidInput(f"The time lies before the user's last ledger entry, at {last}.")


def ledger_time(account: LoadedAccount, wall: datetime) -> datetime:
    """Return *wall*, but never before the account's last entry: its time does not run back."""
    return max(wall, from_micros(account.last_occurred_at))
