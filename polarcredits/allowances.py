"""Allowances: one subscription's confirmed billing periods, cut, valued and dated (docs/rules.md §4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise

from polarcredits.billing import (
    BillingPeriod,
    Payment,
    Subscription,
    confirmed_periods,
    opened_period,
    paid,
)
from polarcredits.inferred import with_orders
from polarcredits.periods import Interval, cut, format_time
from polarcredits.terms import Desired, Rollover, Terms, TermsBook
from polarcredits.valuation import counted_versions, take_from_the_end, worth

_US = timedelta(microseconds=1)
INTERVALS: dict[str, Interval] = {
    "day": "day",
    "week": "week",
    "month": "month",
    "year": "year",
    "lifetime": "lifetime",
}


@dataclass(frozen=True, slots=True)
class _Cell:
    """An allowance period: its own bounds and terms, what it is worth, and what refunds take of that."""

    index: int
    start: datetime
    end: datetime
    terms: Terms
    credits: int
    clawed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refill:
    """An allowance that is expected to begin."""

    at: datetime
    plan: str
    credits: int


def subject_of(subscription: str, start: datetime) -> str:
    """Return what the terms of a subscription's billing period are written down for."""
    return f"period:{subscription}:{format_time(start)}"


class SubscriptionGrants:
    """The grants of one subscription at `now`; `changes` are the instants that alter them."""

    def __init__(
        self,
        heard: Subscription,
        payments: Sequence[Payment],
        *,
        orders_seen: bool,
        book: TermsBook,
        user: str,
        now: datetime,
    ) -> None:
        self.subscription = with_orders(heard, payments)
        self.periods = self.subscription.periods
        self.payments = [payment for payment in payments if paid(payment)]
        self.book = book
        self.user = user
        self.changes: list[datetime] = []
        self.confirmed: set[datetime] = set()
        if self.subscription.ends:
            self.changes.append(self.subscription.ends)
        confirmed = confirmed_periods(self.subscription, self.payments, orders_seen)
        for period in self.periods:
            if period.start not in confirmed:
                continue
            if confirmed[period.start] is not None:
                ready = period.start + self._grace(period)
                self.changes.append(ready)
                if ready > now:
                    continue
            self.confirmed.add(period.start)
            book.confirmed.add(self._subject(period))

    def grants(self) -> list[Desired]:
        """Return its trial, allowances, rollovers and lifetime grants, begun or yet to begin."""
        once: list[Desired] = []
        runs: list[list[Desired]] = [[]]
        for position, period in enumerate(self.periods):
            if period.start in self.confirmed:
                once += self._lifetimes(position, period)
                allowances = self._allowances(position, period)
                if allowances:
                    runs[-1] += allowances
                else:
                    runs.append([])  # nothing is carried over a period that has none
        rollovers = [grant for run in runs for grant in self._rollovers(run)]
        return [*self._trial(), *once, *(grant for run in runs for grant in run), *rollovers]

    def next_refill(self, now: datetime) -> Refill | None:
        """Return its next allowance that is expected to begin, or None."""
        if not self.subscription.live(now) or self.subscription.latest.status == "past_due":
            return None
        begun = [position for position, period in enumerate(self.periods) if period.start <= now]
        if not begun:
            return None
        position = begun[-1]
        period = self.periods[position]
        terms = self._terms(period)
        if terms is None or terms.interval == "lifetime":
            return None
        for cell in self._cells(period) if period.start in self.confirmed else ():
            if now < cell.start < self._end(position) and cell.credits > cell.clawed:
                return Refill(at=cell.start, plan=cell.terms.name, credits=cell.credits - cell.clawed)
        if self.subscription.goes_on and period.end > now:
            credits = terms.credits * (period.versions[-1].seats if terms.per_seat else 1)
            return Refill(at=period.end, plan=terms.name, credits=credits)
        return None

    def _terms(self, period: BillingPeriod, product_id: str | None = None) -> Terms | None:
        if product_id is None:
            if not period.versions:
                return None
            product_id = period.versions[-1].product_id
        return self.book.plan(self._subject(period), product_id)

    def _subject(self, period: BillingPeriod) -> str:
        return subject_of(self.subscription.latest.id, period.start)

    def _grace(self, period: BillingPeriod) -> timedelta:
        terms = self._terms(period)
        return terms.renewal_grace if terms else timedelta(0)

    def _key(self, period: BillingPeriod, index: int) -> str:
        return f"allowance:{self.subscription.latest.id}:{format_time(period.start)}:{index}"

    def _end(self, position: int) -> datetime:
        """Return where a billing period really ends (§4.4)."""
        period = self.periods[position]
        ends = [period.end]
        if position + 1 < len(self.periods):
            ends.append(self.periods[position + 1].start)
        if self.subscription.ends:
            ends.append(max(self.subscription.ends, period.start))
        return min(ends)

    def _cells(self, period: BillingPeriod) -> list[_Cell]:
        """Cut a billing period by its first plan's interval and value each cell (§§4.1, 4.5, 4.8)."""
        terms_of = partial(self._terms, period)
        heard = [terms for version in period.versions if (terms := terms_of(version.product_id))]
        first = next((terms for terms in heard if terms.interval != "lifetime"), None)
        if first is None:
            return []
        interval = first.interval
        counted = counted_versions(period, self.payments, interval, terms_of)
        cells = []
        for index, (start, end) in enumerate(cut(period.start, period.end, _interval(interval))):
            known = [v for v in counted if v.as_of < end]
            levels = [v for v in known if v.as_of <= start][-1:] + [v for v in known if v.as_of > start]
            levels = levels or counted[:1]
            last = [terms for version in levels if (terms := terms_of(version.product_id))][-1:]
            credits = worth(levels, start, end, interval, terms_of)
            cells.append(_Cell(index, start, end, last[0] if last else first, credits))
        taken = take_from_the_end([cell.credits for cell in cells], self._attached(period))
        return [replace(cell, clawed=clawed) for cell, clawed in zip(cells, taken, strict=True)]

    def _allowances(self, position: int, period: BillingPeriod) -> list[Desired]:
        end = self._end(position)
        grants = []
        for cell in self._cells(period):
            if cell.start >= end:
                continue
            last = cell.end >= end
            gross, rest = cell.credits, cell.credits - cell.clawed
            if last and end < cell.end and self._continued_by_next(position):
                passed, whole = (end - cell.start) // _US, (cell.end - cell.start) // _US
                gross, rest = gross * passed // whole, rest * passed // whole
            grants.append(
                Desired(
                    key=self._key(period, cell.index),
                    source="allowance",
                    plan=cell.terms.name,
                    gross=gross,
                    clawed=gross - rest,
                    effective_at=cell.start,
                    expires_at=self._expiry(position, end) if last else cell.end,
                    clawback=cell.terms.clawback,
                    rollover_cap=cell.terms.rollover,
                    continues=cell.index == 0 and self._continued_by_next(position - 1),
                    cause_kind="subscription",
                    cause_id=self.subscription.latest.id,
                    period_start=cell.start,
                    period_end=min(cell.end, end),
                )
            )
        return grants

    def _continued_by_next(self, position: int) -> bool:
        """Say whether the next period's opening order credits unused time of this one (§4.5)."""
        if not 0 <= position < len(self.periods) - 1:
            return False
        following = self.periods[position + 1]
        return following.start < self.periods[position].end and any(
            item.proration and item.amount_cents < 0
            for payment in self.payments
            if opened_period(payment, self.subscription) == following
            for item in payment.latest.items
        )

    def _expiry(self, position: int, end: datetime) -> datetime:
        """Return when the last allowance of a billing period expires (§4.4)."""
        period = self.periods[position]
        following = self.periods[position + 1] if position + 1 < len(self.periods) else None
        if period.status == "past_due":
            late = [
                p.paid_as_of
                for p in self.payments
                if p.paid_as_of and opened_period(p, self.subscription) == period
            ]
            if late and min(late) > end:
                lived = [i for i, p in enumerate(self.periods) if p.start <= min(late)][-1]
                return self._expiry(lived, self._end(lived)) if lived > position else end
        if self.subscription.goes_on and (following is None or following.start not in self.confirmed):
            return end + self._grace(period)
        return end

    def _rollovers(self, allowances: Sequence[Desired]) -> list[Desired]:
        """Return the grants that carry each period's rest into the next confirmed one (§4.4)."""
        carried: list[Desired] = []
        for source, target in pairwise(allowances):
            if source.rollover_cap == 0:
                continue
            key = target.key.replace("allowance:", "rollover:", 1)
            before = source.key.replace("allowance:", "rollover:", 1)
            rollover = Rollover(sources=(source.key, before), cap=source.rollover_cap)
            carried.append(
                replace(
                    target,
                    key=key,
                    source="rollover",
                    gross=0,
                    clawed=0,
                    continues=False,
                    rollover=rollover,
                )
            )
        return carried

    def _attached(self, period: BillingPeriod) -> list[Payment]:
        return [p for p in self.payments if opened_period(p, self.subscription) == period]

    def _lifetimes(self, position: int, period: BillingPeriod) -> list[Desired]:
        """Return what a period's products give once: the last one, and those that were paid for (§3.2)."""
        terms_of = partial(self._terms, period)
        counted = counted_versions(period, self.payments, None, terms_of)
        heard = [v for v in counted if v.as_of < self._end(position)] or counted[:1]
        attached = self._attached(period)
        bought = {payment.latest.product_id for payment in attached if payment.latest.net_cents > 0}
        grants = []
        for version in heard:
            terms = terms_of(version.product_id)
            if terms is None or terms.interval != "lifetime":
                continue
            if version is not heard[-1] and version.product_id not in bought:
                continue
            grants.append(
                Desired(
                    key=f"lifetime:{self.user}:{terms.name}",
                    source="lifetime",
                    plan=terms.name,
                    gross=terms.credits,
                    clawed=take_from_the_end([terms.credits], attached)[0],
                    effective_at=period.start,
                    expires_at=None,
                    clawback=terms.clawback,
                    cause_kind="subscription",
                    cause_id=self.subscription.latest.id,
                )
            )
        return grants

    def _trial(self) -> list[Desired]:
        latest = self.subscription.latest
        if latest.trial_start is None or latest.trial_end is None:
            return []
        trialing = [
            period
            for period in self.periods
            if latest.trial_start <= period.start < latest.trial_end
            and not period.status.startswith("incomplete")
        ]
        terms = self._terms(trialing[0]) if trialing else None
        if terms is None or not terms.trial_credits:
            return []
        self.book.confirmed.add(self._subject(trialing[0]))
        ends = [latest.trial_end, *sorted(self.confirmed)[:1]]
        if self.subscription.ends:
            ends.append(self.subscription.ends)
        return [
            Desired(
                key=f"trial:{self.user}:{terms.name}",
                source="trial",
                plan=terms.name,
                gross=terms.trial_credits,
                effective_at=latest.trial_start,
                expires_at=min(ends),
                cause_kind="subscription",
                cause_id=latest.id,
                period_start=latest.trial_start,
                period_end=latest.trial_end,
            )
        ]


def _interval(name: str | None) -> Interval:
    return INTERVALS.get(name or "", "month")
