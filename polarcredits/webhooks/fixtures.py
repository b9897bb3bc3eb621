"""Stories told in Polar's events, for the demo, `webhooks trigger` and the tests.

A `Story` is one customer with at most one subscription. Its methods are what happens; each returns
the events that Polar sends for it, in Polar's order, and moves the story's clock.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from polarcredits.periods import format_time, parse_time
from polarcredits.webhooks.samples import (
    Payload,
    deliver,
    make_id,
    order,
    order_item,
    refund,
    refunded,
    subscription,
)
from polarcredits.webhooks.telling import Telling

__all__ = ["Payload", "Story", "deliver", "make_id"]


class Story(Telling):
    """One customer's life at Polar, told in events."""

    def purchase(
        self,
        product_id: str,
        at: datetime | None = None,
        *,
        amount: int = 2000,
        seats: int | None = None,
        trial: timedelta | None = None,
    ) -> list[Payload]:
        """Buy a subscription; with *trial* the first period is one, and its order is of 0."""
        self._go(at)
        start = self.now
        self._anchor = (start + trial if trial else start).day
        end = start + trial if trial else self._after(start)
        self.subscription = subscription(
            self._id("subscription"),
            customer_id=self.customer["id"],
            product_id=product_id,
            start=start,
            end=end,
            amount=amount,
            recurring_interval=self.interval,
            seats=seats,
            metadata=self.metadata,
        )
        if trial:
            bounds = {"trial_start": format_time(start), "trial_end": format_time(end)}
            self.subscription |= {"status": "trialing"} | bounds
        events = self._announce() + self._tell("created", "active", "updated")
        bought = self._order("subscription_create", 0 if trial else amount)
        return events + self._tell_order(bought, "created", "updated", "paid", "updated")

    def renewal(self, at: datetime | None = None, *, amount: int | None = None) -> list[Payload]:
        """Begin the next period, or the first after a trial, and pay for it."""
        events, due = self._cycle(at, amount)
        return events + self._pay(due)

    def past_due(self, at: datetime | None = None) -> list[Payload]:
        """Begin the next period with a charge that fails; the order stays pending."""
        events, _ = self._cycle(at, None)
        self._change(status="past_due", past_due_at=format_time(self.now))
        return events + self._tell("updated", "past_due")

    def recover(self, at: datetime | None = None) -> list[Payload]:
        """Pay the pending order after all."""
        self._go(at)
        self._change(status="active", past_due_at=None)
        return self._tell("updated", "active") + self._pay(self.orders[-1])

    def cancel_at_period_end(self, at: datetime | None = None) -> list[Payload]:
        """Cancel, keeping access until the period ends."""
        self._go(at)
        ends = self._subscribed()["current_period_end"]
        self._change(cancel_at_period_end=True, canceled_at=format_time(self.now), ends_at=ends)
        return self._tell("updated", "canceled")

    def uncancel(self, at: datetime | None = None) -> list[Payload]:
        """Withdraw the cancellation."""
        self._go(at)
        self._change(cancel_at_period_end=False, canceled_at=None, ends_at=None)
        return self._tell("updated", "uncanceled")

    def revoke(self, at: datetime | None = None) -> list[Payload]:
        """End access now; at the end of a canceled period Polar sends the same events."""
        self._go(at)
        now = format_time(self.now)
        held = self._subscribed()
        self._change(
            status="canceled",
            canceled_at=held["canceled_at"] or now,
            ends_at=held["ends_at"] if held["cancel_at_period_end"] else now,
            ended_at=now,
        )
        return self._tell("updated", "canceled", "revoked")

    def plan_change(
        self, product_id: str, at: datetime | None = None, *, charge: int | None = None
    ) -> list[Payload]:
        """Change the product inside the period; a *charge* is invoiced at once as a proration."""
        self._go(at)
        self._change(product_id=product_id)
        events = self._tell("updated")
        if charge is None:
            return events
        changed = self._order("subscription_update", charge, proration=True)
        return events + self._tell_order(changed, "created", "updated", "paid")

    def seats_change(self, seats: int, at: datetime | None = None) -> list[Payload]:
        """Change the number of seats inside the period."""
        self._go(at)
        self._change(seats=seats)
        return self._tell("updated")

    def pause_at_period_end(self, at: datetime | None = None) -> list[Payload]:
        """Ask for a pause when the period ends."""
        self._go(at)
        self._change(pause_at_period_end=True)
        return self._tell("updated")

    def pause(self, at: datetime | None = None) -> list[Payload]:
        """Pause now."""
        self._go(at)
        self._change(status="paused", pause_at_period_end=False, paused_at=format_time(self.now))
        return self._tell("updated", "paused")

    def resume(self, at: datetime | None = None) -> list[Payload]:
        """Resume with a new period from now on, and pay for it."""
        self._go(at)
        self._anchor = self.now.day
        self._change(status="active", paused_at=None, **self._period(self.now))
        events = self._tell("updated", "resumed")
        due = self._order("subscription_cycle", self._subscribed()["amount"], status="pending")
        return events + self._tell_order(due, "created") + self._pay(due)

    def pack(
        self,
        product_id: str,
        at: datetime | None = None,
        *,
        amount: int = 1000,
        units: int | None = None,
    ) -> list[Payload]:
        """Buy something once."""
        self._go(at)
        bought = self._order("purchase", amount, product_id=product_id, units=units)
        events = self._announce()
        return events + self._tell_order(bought, "created", "updated", "paid", "updated")

    def refund(
        self,
        amount: int | None = None,
        at: datetime | None = None,
        *,
        order_id: str | None = None,
        status: str = "succeeded",
    ) -> list[Payload]:
        """Refund *amount* (default: what is left) of an order (the last one)."""
        self._go(at)
        paid = self._find_order(order_id)
        left = paid["net_amount"] - paid["refunded_amount"]
        made = refund(
            self._id("refund"),
            order=paid,
            amount=left if amount is None else amount,
            status=status,
            at=self.now,
        )
        self.refunds.append(made)
        events = [self._event("refund.created", made)]
        return events + (self._book(made, made["amount"]) if status == "succeeded" else [])

    def refund_succeeded(self, at: datetime | None = None) -> list[Payload]:
        """Let the last refund, a pending one, succeed."""
        self._go(at)
        made = self.refunds[-1]
        made |= {"status": "succeeded", "modified_at": format_time(self.now)}
        return [self._event("refund.updated", made), *self._book(made, made["amount"])]

    def refund_failed(self, at: datetime | None = None) -> list[Payload]:
        """Let the last refund fail; what it took of its order is given back."""
        self._go(at)
        made = self.refunds[-1]
        was_booked = made["status"] == "succeeded"
        made |= {"status": "failed", "modified_at": format_time(self.now)}
        events = [self._event("refund.updated", made)]
        return events + (self._book(made, -made["amount"]) if was_booked else [])

    def customer_deleted(self, at: datetime | None = None) -> list[Payload]:
        """Delete the customer, which takes its external id away and ends its subscription."""
        self._go(at)
        now = format_time(self.now)
        self.customer |= {"external_id": None, "deleted_at": now, "modified_at": now}
        events = [self._event("customer.deleted", self.customer)]
        held = self.subscription
        return events + (self.revoke() if held and not held["ended_at"] else [])

    def _cycle(self, at: datetime | None, amount: int | None) -> tuple[list[Payload], Payload]:
        """Begin the period after the present one; Polar says so before any money has come."""
        held = self._subscribed()
        start = parse_time(held["current_period_end"])
        self._go(at or start)
        self._change(status="active", **self._period(start))
        events = self._tell("cycled", "updated")
        price = held["amount"] if amount is None else amount
        due = self._order("subscription_cycle", price, status="pending")
        return events + self._tell_order(due, "created"), due

    def _pay(self, due: Payload) -> list[Payload]:
        due |= {"status": "paid", "paid": True, "modified_at": format_time(self.now)}
        return self._tell_order(due, "updated", "paid", "updated")

    def _order(self, reason: str, amount: int, *, proration: bool = False, **fields: Any) -> Payload:
        held = self.subscription if reason != "purchase" else None
        product_id = fields.pop("product_id", held and held["product_id"])
        item = order_item(
            self._id("item"),
            product_id=product_id,
            at=self.now,
            amount=amount,
            proration=proration,
            held=held,
        )
        made = order(
            self._id("order"),
            customer_id=self.customer["id"],
            product_id=product_id,
            reason=reason,
            at=self.now,
            amount=amount,
            items=[item],
            metadata=self.metadata,
            subscription_id=held and held["id"],
            seats=held and held["seats"],
            **fields,
        )
        made["paid"] = made["status"] == "paid"
        self.orders.append(made)
        return made

    def _book(self, made: Payload, amount: int) -> list[Payload]:
        paid = self._find_order(made["order_id"])
        paid |= refunded(paid, amount, self.now)
        verbs = ("updated", "refunded") if amount > 0 else ("updated",)
        return self._tell_order(paid, *verbs)
