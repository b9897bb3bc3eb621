"""Periods and products of a subscription that only its orders tell of (docs/rules.md §§1.2, 4.1).

A subscription read from Polar shows its present period and product; what was before is known from
the orders that paid for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from polarcredits.billing import (
    CHANGE,
    CHANGE_WINDOW,
    OPENING,
    BillingPeriod,
    Payment,
    Subscription,
    Version,
    containing,
    created_at,
    opened_period,
    paid,
    plain_items,
)

_LATE = timedelta(hours=1)
"""How long after a period's start its order may be made."""


def with_orders(subscription: Subscription, payments: Sequence[Payment]) -> Subscription:
    """Add all that the orders of a subscription tell of its periods and products."""
    whole = _with_unheard_periods(_with_paid_periods(subscription, payments), payments)
    return _with_changed_products(_with_opening_products(whole, payments), payments)


def _with_paid_periods(subscription: Subscription, payments: Sequence[Payment]) -> Subscription:
    """Add the periods that only a line item tells of: its subscription's snapshot was stale.

    The last comes first: that another follows it tells a period that was billed late from usage.
    """
    for payment in sorted(payments, key=_last_start, reverse=True):
        order = payment.latest
        for item in plain_items(payment, subscription):
            if not item.starts_at or not item.ends_at:
                continue
            known = containing(subscription, item.starts_at)
            if known is not None and item.starts_at < known.end:
                continue
            version = Version(item.starts_at, order.product_id or "", order.quantity)
            paid_for = BillingPeriod(
                start=item.starts_at,
                end=item.ends_at,
                status="unknown",
                first=False,
                ever_active=False,
                versions=(version,) if order.product_id else (),
            )
            periods = sorted((*subscription.periods, paid_for), key=lambda period: period.start)
            subscription = replace(subscription, periods=tuple(periods))
    return subscription


def _last_start(payment: Payment) -> datetime:
    starts = [item.starts_at for item in payment.latest.items if item.starts_at and not item.proration]
    return max(starts, default=created_at(payment))


def _with_opening_products(subscription: Subscription, payments: Sequence[Payment]) -> Subscription:
    """Begin each period with the product of the order that opened it, where a later one was heard first."""
    bought: dict[datetime, tuple[datetime, str]] = {}
    for payment in sorted(payments, key=created_at, reverse=True):
        period = opened_period(payment, subscription)
        order = payment.latest
        if period and order.product_id and order.billing_reason in OPENING:
            bought[period.start] = (created_at(payment), order.product_id)
    periods = tuple(
        _begun_with(period, *bought[period.start]) if period.start in bought else period
        for period in subscription.periods
    )
    return replace(subscription, periods=periods)


def _begun_with(period: BillingPeriod, created: datetime, product_id: str) -> BillingPeriod:
    first = period.versions[0] if period.versions else None
    if first is None or first.product_id == product_id or first.as_of - created <= CHANGE_WINDOW:
        return period
    return replace(period, versions=(Version(created, product_id, first.seats), *period.versions))


def _with_unheard_periods(subscription: Subscription, payments: Sequence[Payment]) -> Subscription:
    """Add the past periods whose orders name no dates: each lasts until the next one, or as long as it."""
    for payment in sorted(payments, key=created_at, reverse=True):
        start = _unheard_start(payment, subscription)
        if start is None:
            continue
        following = next(period for period in subscription.periods if period.start > start)
        length = following.end - following.start
        gap = following.start - start
        product = payment.latest.product_id
        period = BillingPeriod(
            start=start,
            end=following.start if 2 * gap <= 3 * length else start + length,
            status="unknown",
            first=False,
            ever_active=False,
            versions=(Version(start, product, payment.latest.quantity),) if product else (),
        )
        periods = sorted((*subscription.periods, period), key=lambda each: each.start)
        subscription = replace(subscription, periods=tuple(periods))
    return subscription


def _unheard_start(payment: Payment, subscription: Subscription) -> datetime | None:
    """Return where the period began that an order opened, if none that is known can be it."""
    order, created = payment.latest, created_at(payment)
    if order.billing_reason not in OPENING or not paid(payment):
        return None
    if order.items and not plain_items(payment, subscription):
        return None
    if any(item.starts_at for item in order.items):
        return None
    if not any(period.start > created for period in subscription.periods):
        return None
    opened = opened_period(payment, subscription)
    if opened is None:
        started = subscription.latest.started_at
        first = order.billing_reason == "subscription_create" and started and started <= created
        return started if first else created
    if order.billing_reason == "subscription_create" or created < opened.end:
        return None
    return opened.end if created - opened.end <= _LATE else created


def _with_changed_products(subscription: Subscription, payments: Sequence[Payment]) -> Subscription:
    """Date the changes of product that were paid for and of which no snapshot tells in time (§4.5)."""
    for payment in sorted(payments, key=created_at):
        order, created = payment.latest, created_at(payment)
        period = opened_period(payment, subscription)
        if (
            order.billing_reason != CHANGE
            or not paid(payment)
            or order.product_id is None
            or period is None
            or created - period.start <= CHANGE_WINDOW
        ):
            continue
        changed = _changed(period, created, order.product_id)
        newest = period.start == subscription.latest.current_period_start
        if newest and changed.versions[-1].product_id != subscription.latest.product_id:
            continue
        periods = tuple(changed if each is period else each for each in subscription.periods)
        subscription = replace(subscription, periods=periods)
    return subscription


def _changed(period: BillingPeriod, created: datetime, product_id: str) -> BillingPeriod:
    """Return *period* with *product_id* from *created* on, until what was heard next."""
    before = [version for version in period.versions if version.as_of <= created]
    after = [version for version in period.versions if version.as_of > created]
    heard = before[-1:] + [version for version in after if version.as_of - created <= CHANGE_WINDOW]
    if not period.versions or any(version.product_id == product_id for version in heard):
        return period
    seats = (after or before)[0 if after else -1].seats
    return replace(period, versions=(*before, Version(created, product_id, seats), *after))
