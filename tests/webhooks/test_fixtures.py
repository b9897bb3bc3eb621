"""Stories: signed as Polar signs, shaped as Polar's, and the same every time."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from polarcredits.facts import CustomerFact, OrderFact, RefundFact, SubscriptionFact
from polarcredits.webhooks.fixtures import Payload, Story, deliver
from polarcredits.webhooks.payloads import read_facts, usable_time
from polarcredits.webhooks.reading import StoredDelivery, read_elements
from polarcredits.webhooks.signature import verify
from tests.webhooks.recordings import FILES, SECRET, recorded

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def told(events: list[Payload]) -> list[str]:
    return [event["type"] for event in events]


def last(events: list[Payload], type: str) -> Any:
    event = [event for event in events if event["type"] == type][-1]
    as_of = usable_time(event["timestamp"])
    assert as_of is not None
    return read_facts(type, event["data"], as_of)[0]


def live(story: Story) -> list[Payload]:
    """Live through everything that can happen."""
    return [
        *story.purchase("pro", trial=7 * DAY, seats=2),
        *story.renewal(),
        *story.plan_change("max", story.now + DAY, charge=8000),
        *story.seats_change(3),
        *story.cancel_at_period_end(story.now + DAY),
        *story.uncancel(),
        *story.past_due(),
        *story.recover(story.now + DAY),
        *story.pause_at_period_end(),
        *story.pause(story.now + DAY),
        *story.resume(story.now + DAY),
        *story.pack("pack", units=2),
        *story.refund(400),
        *story.refund(status="pending"),
        *story.refund_succeeded(),
        *story.refund_failed(),
        *story.revoke(story.now + DAY),
        *story.customer_deleted(),
    ]


def test_a_whole_life() -> None:
    """Every event can be read, in time's order, and the same story is told again."""
    events = live(Story("alice", at=AT))
    assert events == live(Story("alice", at=AT))
    assert events != live(Story("alice", at=AT, seed="other"))
    assert all(read_facts(event["type"], event["data"], AT) for event in events)
    times = [usable_time(event["timestamp"]) for event in events]
    assert all(one < two for one, two in itertools.pairwise(times) if one and two)


@pytest.mark.parametrize("secret", [SECRET, "whsec_" + "A" * 43 + "="])
def test_delivered(secret: str) -> None:
    """A story's events arrive signed, and survive a file."""
    (event, *_) = Story("älice", at=AT).pack("pack")
    stored = deliver(event, id="e1", secret=secret, at=AT)
    (element,) = read_elements(json.dumps(stored).encode(), "f")
    assert isinstance(element, StoredDelivery)
    delivery = verify(element.raw, element.headers, [secret], now=AT)
    assert (delivery.id, delivery.payload) == ("e1", event)
    assert delivery.type == "customer.created"


def test_shaped_as_recorded() -> None:
    """A story's objects have no field that Polar's lack, but for what came after the recording."""
    real: dict[str, set[str]] = {}
    for delivery in (delivery for path in FILES for delivery in recorded(path)):
        payload = json.loads(delivery.raw)
        real.setdefault(payload["type"].split(".")[0], set()).update(payload["data"])
    for event in live(Story("alice", at=AT)):
        assert set(event) == {"type", "timestamp", "api_version", "data"}
        assert set(event["data"]) <= real[event["type"].split(".")[0]]


def test_purchase_and_renewal() -> None:
    """The periods keep their anchor day; the renewal's order opens the new period."""
    story = Story("alice", at=AT, metadata={"user_id": "a1"})
    bought = story.purchase("pro")
    assert told(bought)[:5] == [
        "customer.created",
        "customer.state_changed",
        "subscription.created",
        "subscription.active",
        "subscription.updated",
    ]
    first = last(bought, "order.paid")
    assert isinstance(first, OrderFact)
    assert (first.status, first.net_cents, first.user_id) == ("paid", 2000, "a1")
    renewed = story.renewal()
    held, paid = last(renewed, "subscription.cycled"), last(renewed, "order.paid")
    assert isinstance(held, SubscriptionFact)
    assert held.current_period_start == AT.replace(month=2, day=28)
    assert held.current_period_end == AT.replace(month=3, day=31)
    assert paid.items[0].starts_at == paid.embedded_period_start == held.current_period_start
    assert last(renewed, "order.created").status == "pending"
    assert told(renewed)[2:] == ["order.created", "order.updated", "order.paid", "order.updated"]


def test_trial() -> None:
    """A trial's order is paid, and of 0."""
    events = Story("alice", at=AT).purchase("pro", trial=7 * DAY)
    held = last(events, "subscription.active")
    assert (held.status, held.trial_end, held.current_period_end) == (
        "trialing",
        AT + 7 * DAY,
        AT + 7 * DAY,
    )
    assert last(events, "order.paid").total_cents == 0


def test_past_due_and_recovery() -> None:
    """Nothing is paid until the recovery."""
    story = Story("alice", at=AT)
    story.purchase("pro")
    late = story.past_due()
    assert last(late, "subscription.past_due").status == "past_due"
    assert "order.paid" not in told(late)
    recovered = story.recover(story.now + DAY)
    assert last(recovered, "subscription.active").status == "active"
    assert last(recovered, "order.paid").id == last(late, "order.created").id


def test_endings() -> None:
    """Canceled at the period's end, and revoked there; or at once."""
    story = Story("alice", at=AT)
    story.purchase("pro")
    canceled = last(story.cancel_at_period_end(AT + DAY), "subscription.canceled")
    assert canceled.cancel_at_period_end
    assert canceled.ends_at == canceled.current_period_end
    over = last(story.revoke(canceled.ends_at), "subscription.revoked")
    assert over.status == "canceled"
    assert over.ended_at == over.ends_at == canceled.ends_at
    other = Story("bob", at=AT)
    other.purchase("pro")
    deleted = other.customer_deleted(AT + DAY)
    gone = last(deleted, "customer.deleted")
    assert isinstance(gone, CustomerFact)
    assert (gone.external_id, gone.deleted_at) == (None, AT + DAY)
    assert last(deleted, "subscription.revoked").ended_at is not None


def test_refunds() -> None:
    """In parts, pending, and given back."""
    story = Story("alice", at=AT)
    story.pack("pack", units=2)
    part = story.refund(400, AT + DAY)
    assert last(part, "order.refunded").refunded_cents == 400
    assert last(part, "order.refunded").status == "partially_refunded"
    assert told(story.refund(status="pending")) == ["refund.created"]
    whole = last(story.refund_succeeded(), "order.refunded")
    assert (whole.refunded_cents, whole.status, whole.quantity) == (1000, "refunded", 2)
    back = story.refund_failed()
    made = last(back, "refund.updated")
    assert isinstance(made, RefundFact)
    assert (made.status, made.amount_cents) == ("failed", 600)
    assert last(back, "order.updated").refunded_cents == 400


def test_nothing_to_change() -> None:
    """A story without a subscription, or an order, says so."""
    story = Story(None, at=AT)
    with pytest.raises(ValueError, match="purchase first"):
        story.renewal()
    with pytest.raises(ValueError, match="no order"):
        story.refund()
    assert last(story.pack("pack"), "customer.created").external_id is None
