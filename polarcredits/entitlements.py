"""Which grants an account should have, as a pure function of facts, terms and now (docs/rules.md §1.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from polarcredits.allowances import DAYS, SubscriptionGrants, take_from_the_end
from polarcredits.billing import Payment, Subscription, paid
from polarcredits.facts import SubscriptionFact
from polarcredits.plans import Catalog
from polarcredits.terms import Desired, Terms, TermsBook


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountFacts:
    """All that is known of one user's purchases."""

    user: str
    subscriptions: tuple[Subscription, ...] = ()
    payments: tuple[Payment, ...] = ()


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
    subscriptions: list[Shown] = field(default_factory=list)
    next_change_at: datetime | None = None
    next_refill_at: datetime | None = None
    next_refill_credits: int = 0
    new_terms: dict[tuple[str, str], Terms] = field(default_factory=dict)


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
    refills: list[datetime] = []
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
        refills += [refill] if refill else []
    everything += _packs(facts, book)
    once = _once(everything)
    for grant in once:
        changes.append(grant.effective_at)
        changes += [grant.expires_at] if grant.expires_at else []
    result.desired = [grant for grant in once if grant.effective_at <= now]
    result.next_change_at = min((time for time in changes if time > now), default=None)
    result.next_refill_at = min(refills, default=None)
    _show(result, facts, catalog, now)
    result.next_refill_credits = catalog.plan(result.plan).credits if refills else 0
    result.new_terms = book.new
    return result


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
        start = order.created_at or order.snapshot.as_of
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
    """Keep the earliest grant of each key, in order of start (a trial or lifetime is given once)."""
    kept: dict[str, Desired] = {}
    for grant in sorted(grants, key=lambda g: (g.effective_at, g.key, g.cause_id)):
        kept.setdefault(grant.key, grant)
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
            result.plan, result.status = plan.name, latest.status
    result.subscriptions.sort(
        key=lambda s: (s.fact.started_at.timestamp() if s.fact.started_at else 0.0, s.fact.id),
        reverse=True,
    )
