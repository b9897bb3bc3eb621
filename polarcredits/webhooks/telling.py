"""One customer at Polar: what there is of it, and how events tell of that."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from polarcredits.periods import Interval, boundary, format_time, parse_time
from polarcredits.webhooks.samples import Payload, customer, event, make_id

_BETWEEN_EVENTS = timedelta(milliseconds=50)


class Telling:
    """A customer with at most one subscription, and a clock; each event that is told moves it on."""

    def __init__(
        self,
        user: str | None,
        *,
        at: datetime,
        email: str | None = None,
        name: str | None = None,
        interval: Interval = "month",
        metadata: Payload | None = None,
        seed: str = "story",
    ) -> None:
        self.now = at.astimezone(UTC)
        self.interval: Interval = interval
        self.metadata = dict(metadata or {})
        self._seed = (seed, user)
        self._made = 0
        self._anchor = self.now.day
        self._is_announced = False
        self.customer = customer(
            self._id("customer"),
            external_id=user,
            email=email or f"{user or 'somebody'}@example.com",
            name=name,
            at=self.now,
        )
        self.subscription: Payload | None = None
        self.orders: list[Payload] = []
        self.refunds: list[Payload] = []

    @classmethod
    def going_on(
        cls,
        customer: Payload,
        *,
        subscription: Payload | None,
        orders: Iterable[Payload],
        at: datetime,
        seed: str,
    ) -> Self:
        """Go on from a customer's newest objects, as events told them."""
        story = cls(customer.get("external_id"), at=at, seed=seed)
        story.customer = dict(customer)
        story.orders = [dict(each) for each in orders]
        story.subscription = dict(subscription) if subscription else None
        story._is_announced = True
        if subscription:
            story.interval = subscription["recurring_interval"]
            story._anchor = parse_time(subscription["current_period_start"]).day
        return story

    def _go(self, at: datetime | None) -> None:
        self.now = self.now if at is None else at.astimezone(UTC)

    def _id(self, kind: str) -> str:
        self._made += 1
        return make_id(*self._seed, kind, self._made)

    def _event(self, type: str, data: Payload) -> Payload:
        told = event(type, self.now, data)
        self.now += _BETWEEN_EVENTS
        return told

    def _announce(self) -> list[Payload]:
        if self._is_announced:
            return []
        self._is_announced = True
        state: Payload = {"active_subscriptions": [], "granted_benefits": [], "active_meters": []}
        return [
            self._event("customer.created", self.customer),
            self._event("customer.state_changed", self.customer | state),
        ]

    def _subscribed(self) -> Payload:
        if self.subscription is None:
            raise ValueError("this story has no subscription yet: call purchase first")
        return self.subscription

    def _change(self, **fields: Any) -> None:
        self._subscribed().update(fields, modified_at=format_time(self.now))

    def _tell(self, *verbs: str) -> list[Payload]:
        whole = self._subscribed() | {"customer": self.customer, "pending_update": None}
        return [self._event(f"subscription.{verb}", whole) for verb in verbs]

    def _tell_order(self, told: Payload, *verbs: str) -> list[Payload]:
        held = self.subscription if told["subscription_id"] else None
        whole = told | {"customer": self.customer, "subscription": held}
        return [self._event(f"order.{verb}", whole) for verb in verbs]

    def _after(self, start: datetime) -> datetime:
        return boundary(start, self.interval, 1, anchor=self._anchor)

    def _period(self, start: datetime) -> Payload:
        end = self._after(start)
        return {"current_period_start": format_time(start), "current_period_end": format_time(end)}

    def _find_order(self, order_id: str | None) -> Payload:
        for made in reversed(self.orders):
            if order_id in (None, made["id"]):
                return made
        raise ValueError(f"this story has no order {order_id}")
