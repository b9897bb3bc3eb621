"""What an allowance period is worth: levels heard, raises, cuts, and refunds (docs/rules.md §§4.5, 4.8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from polarcredits.billing import CHANGE, CHANGE_WINDOW, BillingPeriod, Payment, Version, created_at
from polarcredits.terms import Terms

DAYS = {"day": 1, "week": 7, "month": 30, "year": 365}
_US = timedelta(microseconds=1)
TermsOf = Callable[[str], Terms | None]
"""Gives the terms of a product in one billing period."""


def counted_versions(
    period: BillingPeriod, payments: Sequence[Payment], interval: str | None, terms_of: TermsOf
) -> list[Version]:
    """Return the versions that count: under `upgrade = "paid"`, a raise with an order of its own (§4.5).

    That order was made between the last thing heard before the raise and the raise itself.
    """
    orders = sorted(
        (created_at(payment), payment.latest.product_id)
        for payment in payments
        if payment.latest.billing_reason == CHANGE
        and payment.latest.net_cents > 0
        and payment.latest.product_id is not None
    )
    length = timedelta(days=DAYS.get(interval or "month", 30))
    counted: list[Version] = []
    level, since = 0, period.start
    for version in period.versions:
        terms = terms_of(version.product_id)
        wanted = level_of(terms, version.seats, interval, length) if terms else 0
        once = terms.credits if terms and terms.interval == "lifetime" else 0
        before, since = since, version.as_of
        if counted and terms and terms.upgrade == "paid" and max(wanted, once) > level:
            until = version.as_of + CHANGE_WINDOW
            paying = [o for o in orders if before <= o[0] <= until and o[1] == version.product_id]
            if not paying:
                continue
            orders.remove(paying[0])
        counted.append(version)
        level = wanted
    return counted


def worth(
    versions: Sequence[Version],
    start: datetime,
    end: datetime,
    interval: str | None,
    terms_of: TermsOf,
) -> int:
    """Value a cell by the levels heard: a raise counts for the time left, a cut at once (§4.5)."""
    pieces: list[tuple[int, int, timedelta]] = []
    level = 0
    for version in versions:
        terms = terms_of(version.product_id)
        level_now = level_of(terms, version.seats, interval, end - start) if terms else 0
        left = end - max(version.as_of, start) if pieces else end - start
        if level_now > level:
            if pieces and terms and terms.upgrade == "full":
                left = end - start
            pieces.append((level, level_now, left))
        else:
            pieces = [(low, min(high, level_now), part) for low, high, part in pieces]
            pieces = [piece for piece in pieces if piece[1] > piece[0]] or [(0, 0, end - start)]
        level = level_now
    whole = (end - start) // _US or 1
    return sum((high - low) * (part // _US) // whole for low, high, part in pieces)


def level_of(terms: Terms, seats: int, interval: str | None, length: timedelta) -> int:
    """Return the credits of one cell; a plan of another interval counts by the time (§4.5).

    A plan that gives its credits once, as a grant of their own, gives none to a cell (§3.2).
    """
    if terms.interval == "lifetime":
        return 0
    credits = terms.credits * (seats if terms.per_seat else 1)
    if terms.interval == interval:
        return credits
    return credits * (length // _US) // (DAYS[terms.interval or "month"] * 86_400_000_000)


def take_from_the_end(credits: Sequence[int], payments: Sequence[Payment]) -> list[int]:
    """Spread what refunds take over allowance periods, the last first (§4.8)."""
    positive = [payment for payment in payments if payment.latest.net_cents > 0]
    net = sum(payment.latest.net_cents for payment in positive)
    refunded = sum(payment.refunded_cents for payment in positive)
    left = sum(credits) * refunded // net if net else 0
    taken = []
    for worth in reversed(credits):
        taken.append(min(worth, left))
        left -= taken[-1]
    return taken[::-1]
