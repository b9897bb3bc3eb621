"""What all snapshots of an object add up to: billing periods, payments, refunds (docs/rules.md §1).

Every function here folds a *set* of facts, so neither the order of arrival nor repeats matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from polarcredits.facts import DisputeFact, Fact, OrderFact, OrderItem, RefundFact, SubscriptionFact

LIVE = frozenset({"active", "trialing", "past_due"})
PAID = frozenset({"paid", "partially_refunded", "refunded"})
CHANGE_WINDOW = timedelta(minutes=1)
OPENING = ("subscription_create", "subscription_cycle")
"""Why an order opens a billing period."""
CHANGE = "subscription_update"
USAGE = "subscription_meter_cycle"
READING_WINDOW = timedelta(seconds=15)
"""How much later than its as-of a row may have been read: a request's duration, and Date's rounding."""


@dataclass(frozen=True, slots=True)
class Version:
    """The product and seats that a period was heard to have."""

    as_of: datetime
    product_id: str
    seats: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingPeriod:
    """One billing period of a subscription, as all its snapshots show it."""

    start: datetime
    end: datetime
    status: str
    first: bool
    ever_active: bool
    versions: tuple[Version, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """A subscription: its newest fact and every billing period ever heard of."""

    latest: SubscriptionFact
    periods: tuple[BillingPeriod, ...]

    @property
    def ends(self) -> datetime | None:
        """When access ends, as far as that is known."""
        return min(filter(None, (self.latest.ended_at, self.latest.ends_at)), default=None)

    def live(self, now: datetime) -> bool:
        """Say whether its plan shows at *now* (docs/rules.md §3.3)."""
        return self.latest.status in LIVE and not (self.ends and self.ends <= now)

    @property
    def goes_on(self) -> bool:
        """Say whether another billing period is expected after the present one."""
        return (
            self.latest.status in LIVE
            and self.ends is None
            and not self.latest.pause_at_period_end
            and not self.latest.cancel_at_period_end
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """An order: its newest fact, since when it is known to be paid, and what was refunded of it."""

    latest: OrderFact
    paid_as_of: datetime | None
    embedded_starts: tuple[datetime, ...]
    refunded_cents: int


def rank(fact: Fact) -> tuple[datetime, bool, float, bool, bool, str]:
    """Return the sort key by which the newest of several facts of one object wins (§1.1)."""
    snapshot = fact.snapshot
    return (
        snapshot.as_of,
        snapshot.modified_at is not None,
        snapshot.modified_at.timestamp() if snapshot.modified_at else 0.0,
        isinstance(fact, SubscriptionFact) and fact.ended_at is not None,
        snapshot.delivered,
        snapshot.body,
    )


def fold_subscription(facts: Iterable[SubscriptionFact]) -> Subscription:
    """Fold the snapshots of one subscription; embedded ones speak only where none of its own does."""
    ordered = sorted(facts, key=rank)
    own = [fact for fact in ordered if not fact.embedded]
    by_start: dict[datetime, list[SubscriptionFact]] = {}
    for fact in ordered:
        if fact.current_period_start is not None:
            by_start.setdefault(fact.current_period_start, []).append(fact)
    return Subscription(
        latest=(own or ordered)[-1],
        periods=tuple(_period(start, by_start[start]) for start in sorted(by_start)),
    )


def _period(start: datetime, facts: Sequence[SubscriptionFact]) -> BillingPeriod:
    heard = [fact for fact in facts if not fact.embedded] or list(facts)
    ends = [fact.current_period_end for fact in heard if fact.current_period_end]
    end = ends[-1] if ends else start
    versions: list[Version] = []
    for fact in heard:
        if fact.product_id is None:
            continue
        last = versions[-1] if versions else None
        if last is None or (last.product_id, last.seats) != (fact.product_id, fact.seats or 1):
            since = _true_since(fact)
            begun = max(since, last.as_of) if last else since
            versions.append(Version(begun, fact.product_id, fact.seats or 1))
    return BillingPeriod(
        start=start,
        end=max(end, start),
        status=heard[-1].status,
        first=any(fact.started_at == start for fact in heard),
        ever_active=any(fact.status == "active" for fact in heard),
        versions=tuple(versions),
    )


def _true_since(fact: SubscriptionFact | OrderFact | RefundFact) -> datetime:
    """Return when a snapshot's state is known to hold: one that was read held since its last change."""
    snapshot = fact.snapshot
    changed = snapshot.modified_at or fact.created_at
    if snapshot.delivered or changed is None:
        return snapshot.as_of
    return min(changed, snapshot.as_of)


def fold_payment(
    orders: Iterable[OrderFact], refunds: Iterable[RefundFact], disputes: Iterable[DisputeFact]
) -> Payment:
    """Fold the snapshots of one order with all that is known of its refunds and disputes."""
    ordered = sorted(orders, key=rank)
    latest = ordered[-1]
    starts = [fact.embedded_period_start for fact in ordered]
    return Payment(
        latest=latest,
        paid_as_of=min((_true_since(fact) for fact in ordered if fact.status in PAID), default=None),
        embedded_starts=tuple(start for start in starts if start is not None),
        refunded_cents=_refunded(latest, refunds, disputes),
    )


def _refunded(latest: OrderFact, refunds: Iterable[RefundFact], disputes: Iterable[DisputeFact]) -> int:
    """The order's own sum, and what happened to its refunds after that snapshot (§1.1, §4.8)."""
    last_dispute: dict[str, DisputeFact] = {}
    for dispute in sorted(disputes, key=rank):
        last_dispute[dispute.id] = dispute
    if any(dispute.status in ("lost", "prevented") for dispute in last_dispute.values()):
        return max(0, latest.net_cents)
    histories: dict[str, list[RefundFact]] = {}
    for refund in sorted(refunds, key=rank):
        histories.setdefault(refund.id, []).append(refund)
    told = latest.snapshot.as_of
    surely = told if latest.snapshot.delivered else told + READING_WINDOW
    total, unexplained = latest.refunded_cents, latest.refunded_cents
    later: list[tuple[datetime, str, int, bool]] = []
    for id, history in histories.items():
        amount, last = history[-1].amount_cents, history[-1].status
        succeeded = next((_true_since(f) for f in history if f.status == "succeeded"), None)
        if succeeded is None:
            continue
        since = next(_true_since(f) for f in history if f.status == last)
        if last == "succeeded" and succeeded > told:
            known_before = succeeded <= surely or (history[0].created_at or succeeded) <= told
            later.append((succeeded, id, amount, known_before))
        elif succeeded <= told:
            unexplained -= amount
            if last != "succeeded" and since > told:
                total -= amount
    for _, _, amount, known_before in sorted(later):
        if known_before and unexplained >= amount:
            unexplained -= amount
        else:
            total += amount
    return min(max(0, total), max(0, latest.net_cents))


def created_at(payment: Payment) -> datetime:
    """Return when the order was made, as far as that is known."""
    return payment.latest.created_at or payment.latest.snapshot.as_of


def paid(payment: Payment) -> bool:
    """Say whether the order is or ever was paid."""
    return payment.paid_as_of is not None


def opened_period(payment: Payment, subscription: Subscription) -> BillingPeriod | None:
    """Return the billing period that an order opens or changes (§1.2), or None."""
    order = payment.latest
    plain = plain_items(payment, subscription)
    if not plain and order.billing_reason != CHANGE and (order.items or order.billing_reason == USAGE):
        return None
    starts = [item.starts_at for item in plain if item.starts_at is not None]
    if starts:
        return containing(subscription, max(starts))
    created = created_at(payment)
    for start in payment.embedded_starts:
        if start <= created:
            exact = [period for period in subscription.periods if period.start == start]
            return exact[0] if exact else containing(subscription, start)
    return containing(subscription, created)


def plain_items(payment: Payment, subscription: Subscription) -> list[OrderItem]:
    """Return the lines that sell a period: neither proration nor usage.

    An order does not say which of its prices are metered. But what bills usage is over when it is billed,
    and reaches from the first use to the last: no period begins with it, and none follows it at once.
    """
    made = payment.latest.created_at
    begins = {period.start for period in subscription.periods}

    def bills_usage(item: OrderItem) -> bool:
        over = made is not None and item.ends_at is not None and item.ends_at <= made
        return item.metered or (over and begins.isdisjoint((item.starts_at, item.ends_at)))

    if payment.latest.billing_reason == USAGE:
        return []
    return [item for item in payment.latest.items if not item.proration and not bills_usage(item)]


def containing(subscription: Subscription, moment: datetime) -> BillingPeriod | None:
    """Return the latest known billing period that starts by *moment*."""
    begun = [period for period in subscription.periods if period.start <= moment]
    return begun[-1] if begun else None


def confirmed_periods(
    subscription: Subscription, payments: Sequence[Payment], orders_seen: bool
) -> dict[datetime, datetime | None]:
    """Return the starts of confirmed periods, each with the delay's start for rule (c), else None.

    Rules (a) and (b) of §4.2 give None; a period that only rule (c) confirms maps to its own
    start, from which `renewal_grace` must have passed.
    """
    latest = subscription.latest
    opening: dict[datetime, list[Payment]] = {}
    for payment in payments:
        period = opened_period(payment, subscription)
        if paid(payment) and period is not None:
            opening.setdefault(period.start, []).append(payment)
    confirmed: dict[datetime, datetime | None] = {}
    before_confirmed = False
    for period in subscription.periods:
        by_order = any(
            _confirms(payment, period, latest, before_confirmed) for payment in opening.get(period.start, ())
        )
        if by_order or (period.first and period.ever_active):
            confirmed[period.start] = None
        elif not period.first and period.status == "active" and not orders_seen:
            confirmed[period.start] = period.start
        before_confirmed = period.start in confirmed
    return confirmed


def _confirms(
    payment: Payment, period: BillingPeriod, latest: SubscriptionFact, before_confirmed: bool
) -> bool:
    order = payment.latest
    created = created_at(payment)
    if latest.trial_start and latest.trial_end and latest.trial_start <= created < latest.trial_end:
        return False
    if order.billing_reason in OPENING:
        return True
    return (
        order.billing_reason == CHANGE
        and abs(created - period.start) <= CHANGE_WINDOW
        and (order.total_cents > 0 or before_confirmed)
    )
