"""Which grants an account should have, as a pure function of facts, terms and now (docs/rules.md §1.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from polarcredits.allowances import Refill, SubscriptionGrants, subject_of
from polarcredits.billing import Payment, Subscription, created_at, paid
from polarcredits.facts import Snapshot, SubscriptionFact
from polarcredits.inferred import with_orders
from polarcredits.plans import Catalog
from polarcredits.terms import Desired, Terms, TermsBook
from polarcredits.valuation import DAYS, take_from_the_end


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountFacts:
    """All that is known of one user's purchases."""

    user: str
    subscriptions: tuple[Subscription, ...] = ()
    payments: tuple[Payment, ...] = ()


def undated(facts: AccountFacts) -> AccountFacts:
    """Return *facts* without what no entitlement depends on: when the newest snapshots were heard."""
    return replace(
        facts,
        subscriptions=tuple(
            replace(each, latest=replace(each.latest, snapshot=_UNDATED)) for each in facts.subscriptions
        ),
        payments=tuple(
            each
            if each.latest.created_at is None
            else replace(each, latest=replace(each.latest, snapshot=_UNDATED))
            for each in facts.payments
        ),
    )


_UNDATED = Snapshot(as_of=datetime.min.replace(tzinfo=UTC), modified_at=None, body="")


@dataclass(frozen=True, slots=True)
class Shown:
    """A live or paused subscription with the plan its product stands for."""

    fact: SubscriptionFact
    plan: str | None


@dataclass(slots=True, kw_only=True)
class Entitlements:
    """The outcome at one instant; `next_change_at` is when it will differ without any news."""

    plan: str
    status: str | None = None
    desired: list[Desired] = field(default_factory=list)
    upcoming: list[Desired] = field(default_factory=list)
    """Grants that will be desired once they have begun, in that order."""
    subscriptions: list[Shown] = field(default_factory=list)
    next_change_at: datetime | None = None
    turns_at: datetime | None = None
    """When something but the start or expiry of a grant changes: a plan ends, a delay is over."""
    frozen: bool = True
    """Whether the terms of all this are written down, so that no edit of the catalog changes it."""
    refills: list[Refill] = field(default_factory=list)
    """The next allowance of each subscription, the soonest first."""
    new_terms: dict[tuple[str, str], Terms] = field(default_factory=dict)
    unknown_products: set[str] = field(default_factory=set)
    """Products bought that are in no plan or pack."""

    @property
    def next_refill_at(self) -> datetime | None:
        """When the next allowance is expected to begin."""
        return self.refills[0].at if self.refills else None


def entitlements(
    facts: AccountFacts,
    written: Mapping[tuple[str, str], Terms],
    catalog: Catalog,
    now: datetime,
) -> Entitlements:
    """Return what the account should have at *now*; knows no ledger and posts nothing."""
    book = TermsBook(written, catalog)
    result = Entitlements(plan=catalog.default_plan)
    everything: list[Desired] = []
    changes: list[datetime] = []
    for subscription in facts.subscriptions:
        orders = [p for p in facts.payments if p.latest.subscription_id == subscription.latest.id]
        lives = SubscriptionGrants(
            subscription,
            orders,
            orders_seen=bool(orders),
            book=book,
            user=facts.user,
            now=now,
        )
        everything += lives.grants()
        changes += lives.changes
        refill = lives.next_refill(now)
        result.refills += [refill] if refill else []
    result.turns_at = min((time for time in changes if time > now), default=None)
    everything += _packs(facts, book)
    once = _once(everything)
    for grant in once:
        changes.append(grant.effective_at)
        changes += [grant.expires_at] if grant.expires_at else []
    result.desired = [grant for grant in once if grant.effective_at <= now]
    result.upcoming = [grant for grant in once if grant.effective_at > now]
    result.next_change_at = min((time for time in changes if time > now), default=None)
    result.refills.sort(key=lambda refill: (refill.at, refill.plan))
    _show(result, facts, catalog, now)
    result.new_terms, result.unknown_products, result.frozen = book.new, book.unknown, book.frozen
    return result


def subjects(facts: AccountFacts) -> set[str]:
    """Return everything that the account's terms can have been written down for."""
    found = {f"order:{p.latest.id}" for p in facts.payments if p.latest.subscription_id is None}
    for subscription in facts.subscriptions:
        orders = [p for p in facts.payments if p.latest.subscription_id == subscription.latest.id]
        periods = with_orders(subscription, orders).periods
        found |= {subject_of(subscription.latest.id, period.start) for period in periods}
    return found


def _packs(facts: AccountFacts, book: TermsBook) -> Iterable[Desired]:
    """Return the grants of one-time orders (§4.8)."""
    for payment in facts.payments:
        order = payment.latest
        if order.subscription_id is not None or order.product_id is None or not paid(payment):
            continue
        if order.total_cents == 0 and not order.discounted:
            continue
        subject = f"order:{order.id}"
        book.confirmed.add(subject)
        terms = book.pack(subject, order.product_id)
        if terms is None:
            continue
        gross = terms.credits * order.quantity
        start = created_at(payment)
        lifetime = terms.interval == "lifetime"
        yield Desired(
            key=f"lifetime:{facts.user}:{terms.name}" if lifetime else f"pack:{order.id}",
            source="lifetime" if lifetime else "pack",
            plan=terms.name,
            gross=gross,
            clawed=take_from_the_end([gross], [payment])[0],
            effective_at=start,
            expires_at=start + terms.expires_after if terms.expires_after else None,
            clawback=terms.clawback,
            cause_kind="order",
            cause_id=order.id,
        )


def _once(grants: Iterable[Desired]) -> list[Desired]:
    """Keep the earliest grant of each key, in order of start (a trial or lifetime is given once).

    It is worth what the best of them is: bought twice and refunded once, it is still paid for.
    """
    kept: dict[str, Desired] = {}
    for grant in sorted(grants, key=lambda g: (g.effective_at, g.key, g.cause_id)):
        first = kept.setdefault(grant.key, grant)
        if grant.gross - grant.clawed > first.gross - first.clawed:
            kept[grant.key] = replace(first, gross=grant.gross, clawed=grant.clawed)
    return list(kept.values())


def _show(result: Entitlements, facts: AccountFacts, catalog: Catalog, now: datetime) -> None:
    """Find the plan that shows: most credits a day, then the earliest start (§3.3)."""
    best: tuple[float, float, str] | None = None
    for subscription in facts.subscriptions:
        latest = subscription.latest
        live = subscription.live(now)
        if not live and latest.status != "paused":
            continue
        plan = catalog.plan_for_product(latest.product_id) if latest.product_id else None
        result.subscriptions.append(Shown(latest, plan.name if plan else None))
        if not live or plan is None:
            continue
        seats = (latest.seats or 1) if plan.per_seat else 1
        daily = plan.credits * seats / DAYS.get(plan.interval, 36_500)
        started = latest.started_at.timestamp() if latest.started_at else 0.0
        if best is None or (-daily, started, latest.id) < best:
            best = (-daily, started, latest.id)
            result.plan = plan.name
            result.status = None if plan.name == catalog.default_plan else latest.status
    result.subscriptions.sort(
        key=lambda s: (s.fact.started_at.timestamp() if s.fact.started_at else 0.0, s.fact.id),
        reverse=True,
    )
