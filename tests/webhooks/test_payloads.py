"""What the readers make of real payloads, of odd ones, and of nonsense."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polarcredits.facts import (
    CustomerFact,
    DisputeFact,
    Fact,
    OrderFact,
    RefundFact,
    SubscriptionFact,
)
from polarcredits.periods import to_micros
from polarcredits.webhooks.canonical import DEEPEST, load_json
from polarcredits.webhooks.payloads import (
    KNOWN_TYPES,
    PayloadError,
    canonical_json,
    read_facts,
    read_row,
    usable_id,
    usable_time,
    usable_user_id,
)
from tests.webhooks.recordings import FILES, recorded

NOW = datetime(2026, 11, 23, 6, tzinfo=UTC)
START, END = "2026-11-23T05:00:00Z", "2026-12-23T05:00:00Z"
CUSTOMER = {"id": "c1", "external_id": "alice", "email": "a@example.com", "name": "A"}
SUBSCRIPTION = {"id": "s1", "customer_id": "c1", "status": "active", "product_id": "p1"}
ORDER = {"id": "o1", "customer_id": "c1", "status": "paid", "billing_reason": "purchase"}
REFUND = {"id": "r1", "order_id": "o1", "status": "succeeded", "amount": 5}


def facts_in(name: str, type: str) -> list[Fact]:
    """Return what the last recorded event of *type* in the file *name* says."""
    (path,) = [path for path in FILES if path.stem == name]
    payloads = [json.loads(delivery.raw) for delivery in recorded(path)]
    last = [payload for payload in payloads if payload["type"] == type][-1]
    return read_facts(type, last["data"], NOW)


def subscription(type: str = "subscription.updated", **fields: Any) -> SubscriptionFact:
    fact = read_facts(type, SUBSCRIPTION | fields, NOW)[0]
    assert isinstance(fact, SubscriptionFact)
    return fact


def order(**fields: Any) -> OrderFact:
    fact = read_facts("order.paid", ORDER | fields, NOW)[0]
    assert isinstance(fact, OrderFact)
    return fact


def customer(type: str = "customer.updated", **fields: Any) -> CustomerFact:
    fact = read_facts(type, CUSTOMER | fields, NOW)[0]
    assert isinstance(fact, CustomerFact)
    return fact


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_recorded_deliveries_are_read(path: Any) -> None:
    """Every recorded event of a known type says something about its own object first."""
    for delivery in recorded(path):
        payload = json.loads(delivery.raw)
        facts = read_facts(payload["type"], payload["data"], NOW)
        assert bool(facts) == (payload["type"] in KNOWN_TYPES)
        if facts:
            assert facts[0].id == payload["data"]["id"]
            assert facts[0].snapshot.body == canonical_json(payload["data"])


def test_a_recorded_purchase() -> None:
    """An order says what was paid; the subscription and the customer in it are facts too."""
    bought, held, owner = facts_in("alice-purchase", "order.paid")
    assert isinstance(bought, OrderFact)
    assert (bought.status, bought.billing_reason) == ("paid", "subscription_create")
    assert (bought.net_cents, bought.total_cents, bought.currency) == (2000, 2000, "usd")
    assert (bought.quantity, bought.discounted, bought.refunded_cents) == (1, False, 0)
    assert [(i.amount_cents, i.proration, i.metered) for i in bought.items] == [(2000, False, False)]
    assert isinstance(held, SubscriptionFact)
    assert held.embedded
    assert held.current_period_start == held.started_at == bought.embedded_period_start
    assert held.id == bought.subscription_id
    assert isinstance(owner, CustomerFact)
    assert owner.embedded
    assert (owner.external_id, owner.id) == ("user_alice", bought.customer_id)


def test_a_recorded_purchase_with_tax_in_its_price() -> None:
    """Net is before tax."""
    bought = facts_in("chloe-purchase-precreated-customer-vat", "order.paid")[0]
    assert isinstance(bought, OrderFact)
    assert (bought.net_cents, bought.total_cents) == (1667, 2000)


def test_recorded_subscriptions() -> None:
    """A cancellation at the period's end, and a charge that failed."""
    canceled, owner = facts_in("carol-2-cancel-at-period-end", "subscription.canceled")
    assert isinstance(canceled, SubscriptionFact)
    assert canceled.cancel_at_period_end
    assert (canceled.status, canceled.ended_at) == ("active", None)
    assert canceled.ends_at == canceled.current_period_end
    assert not canceled.embedded
    assert isinstance(owner, CustomerFact)
    assert owner.embedded
    late = facts_in("eve-3-past-due-then-recovered", "subscription.past_due")[0]
    assert isinstance(late, SubscriptionFact)
    assert late.status == "past_due"


def test_a_recorded_refund() -> None:
    """The refund by itself, and the order's sum."""
    (made,) = facts_in("gina-3-pack-fully-refunded", "refund.updated")
    assert isinstance(made, RefundFact)
    assert (made.status, made.amount_cents) == ("succeeded", 1000)
    refunded = facts_in("gina-3-pack-fully-refunded", "order.refunded")[0]
    assert isinstance(refunded, OrderFact)
    assert (refunded.id, refunded.refunded_cents) == (made.order_id, 1000)
    assert refunded.subscription_id is None
    assert refunded.embedded_period_start is None


@pytest.mark.parametrize("type", ["checkout.updated", "member.created", "order.lost", "order", ""])
def test_other_types_are_ignored(type: str) -> None:
    """Whatever their data is."""
    assert read_facts(type, None, NOW) == read_facts(type, {}, NOW) == []


@pytest.mark.parametrize("type", sorted(KNOWN_TYPES))
@pytest.mark.parametrize("data", [None, [], "x", {}, {"id": 1}, {"id": " o1"}, {"id": "a\0"}])
def test_no_id(type: str, data: object) -> None:
    """An object that nothing could refer to is refused."""
    with pytest.raises(PayloadError, match=type):
        read_facts(type, data, NOW)


@pytest.mark.parametrize("noun", ["subscription", "order", "refund"])
def test_no_owner(noun: str) -> None:
    """So is one that belongs to nothing."""
    with pytest.raises(PayloadError, match=f"the {noun} names no"):
        read_facts(f"{noun}.updated", {"id": "x"}, NOW)


def test_owner_from_the_embedded_customer() -> None:
    """Without `customer_id` the embedded customer will do; an embedded subscription has its own."""
    data = {"id": "o1", "customer": CUSTOMER, "subscription": {"id": "s1"}}
    bought, held, _ = read_facts("order.created", data, NOW)
    assert isinstance(bought, OrderFact)
    assert isinstance(held, SubscriptionFact)
    assert (bought.customer_id, bought.subscription_id, held.customer_id) == ("c1", "s1", "c1")


@pytest.mark.parametrize("value", ["", " a", "a ", "a\nb", "a\0", "\ud800", "x" * 256, 7, None, []])
def test_unusable_ids(value: object) -> None:
    """Ids that could not be stored, shown or told apart count as absent."""
    assert usable_id(value) is None
    assert customer(external_id=value).external_id is None
    assert subscription(metadata={"user_id": value}).user_id is None


def test_user_ids() -> None:
    """An object's own metadata names its user, but never one of our own accounts."""
    assert subscription(metadata={"user_id": "ünï cödé"}).user_id == "ünï cödé"
    assert order(metadata={"user_id": "x" * 255}).user_id == "x" * 255
    assert order(customer=CUSTOMER | {"metadata": {"user_id": "bob"}}).user_id is None
    assert usable_user_id("polar:c1") is customer(external_id="polar:c1").external_id is None
    assert order(metadata=["user_id"]).user_id is None


def test_revoked_without_an_end() -> None:
    """A revocation has an end: `ends_at` if that is past, else the event's own time."""
    assert subscription("subscription.revoked").ended_at == NOW
    assert subscription("subscription.revoked", ends_at=END).ended_at == NOW
    assert subscription("subscription.revoked", ends_at=START).ended_at == NOW - timedelta(hours=1)
    assert subscription("subscription.revoked", ended_at=END).ended_at == usable_time(END)
    assert subscription("subscription.canceled", ends_at=START).ended_at is None


def test_customers() -> None:
    """A deletion has a time; a customer's state is the customer's own."""
    assert customer("customer.deleted").deleted_at == NOW
    assert customer("customer.deleted", deleted_at=START).deleted_at == usable_time(START)
    assert customer("customer.updated").deleted_at is None
    state = customer("customer.state_changed", active_subscriptions=[{"id": "s1"}])
    assert not state.embedded
    assert customer(name="A\n\x1b[31mB\ud800 ", email="").name == "A  [31mB"
    assert customer(name="A" * 1001, email=" ").email is None


def test_amounts() -> None:
    """Amounts of orders with fields missing, and of a wrong kind."""
    assert order(net_amount=-4000, total_amount=-4000).net_cents == -4000
    assert order(subtotal_amount=2000, discount_amount=500, tax_amount=30).net_cents == 1500
    assert order(subtotal_amount=2000, discount_amount=500, tax_amount=30).total_cents == 1530
    odds: tuple[object, ...] = ("5", 5.0, True, None, 2**53 + 1, 10**400, [], {})
    for odd in odds:
        read = order(net_amount=odd, total_amount=odd, refunded_amount=odd, units=odd, seats=odd)
        assert (read.net_cents, read.total_cents, read.refunded_cents) == (0, 0, 0)
        assert read.quantity == 1
        assert subscription(seats=odd).seats is None
    assert order(refunded_amount=-1).refunded_cents == 0


@pytest.mark.parametrize(
    ("units", "seats", "quantity"), [(3, 5, 3), (None, 5, 5), (0, 5, 5), (-1, 0, 1), (2.0, "4", 1)]
)
def test_quantity(units: object, seats: object, quantity: int) -> None:
    """Units, else seats, else one."""
    assert order(units=units, seats=seats).quantity == quantity


@pytest.mark.parametrize(
    ("fields", "discounted"),
    [
        ({}, False),
        ({"discount_amount": 1}, True),
        ({"discount_amount": 0, "discount": None, "discount_id": ""}, False),
        ({"discount_id": "d1"}, True),
        ({"discount": {"id": "d1"}}, True),
    ],
)
def test_discounted(fields: dict[str, Any], discounted: bool) -> None:
    """A discount, however it is told."""
    assert order(**fields).discounted is discounted


def test_items() -> None:
    """Lines with their periods; metered by their own price or by one known from the order."""
    metered = {"id": "m1", "amount_type": "metered_unit"}
    items = [
        {"amount": 5, "product_price_id": "m1"},
        {"amount": 6, "product_price": metered, "start_timestamp": START, "end_timestamp": END},
        {"amount": -7, "price": {"amount_type": "fixed"}, "proration": True},
        {"amount": "8", "proration": 1, "product_price_id": ["m1"], "start_timestamp": 9},
        "nonsense",
    ]
    read = order(items=items, product={"id": "p1", "prices": [metered, {"id": []}, None]}).items
    assert [i.amount_cents for i in read] == [5, 6, -7, 0]
    assert [i.metered for i in read] == [True, True, False, False]
    assert [i.proration for i in read] == [False, False, True, False]
    assert [i.starts_at for i in read] == [None, usable_time(START), None, None]
    assert order(items={"0": 1}).items == ()


def test_a_prevented_dispute() -> None:
    """A dispute inside a refund is a fact of its own, of the refund's order."""
    made, dispute = read_facts(
        "refund.created", REFUND | {"dispute": {"id": "d1", "status": "prevented"}}, NOW
    )
    assert isinstance(made, RefundFact)
    assert isinstance(dispute, DisputeFact)
    assert (dispute.order_id, dispute.status) == ("o1", "prevented")
    assert len(read_facts("refund.created", REFUND | {"dispute": {"id": "d1"}}, NOW)) == 1


@pytest.mark.parametrize(
    "value",
    ["2026-11-23T05:00:00", "2026-11-23", "x", "", 1795413600, None, "9999-12-31T00:00:00Z",
     "0001-01-01T00:00:00+14:00", "2026-02-30T00:00:00Z", "\ud800", "2026-11-23T05:00:00+99:00"],
)  # fmt: skip
def test_times_that_are_none(value: object) -> None:
    """A time without a zone, or out of all reason, is absent."""
    assert usable_time(value) is None
    assert subscription(current_period_end=value).current_period_end is None


def test_unknown_values_are_kept() -> None:
    """A status that we have never heard of stays what it is."""
    assert subscription("subscription.paused", status="hibernating").status == "hibernating"
    assert order(billing_reason="whim").billing_reason == "whim"
    assert subscription(status=None).status == ""


def test_rows_of_the_api() -> None:
    """A row read from the API is marked, and what is embedded in it too."""
    facts = read_row("order", ORDER | {"customer": CUSTOMER}, NOW)
    assert [fact.snapshot.delivered for fact in facts] == [False, False]
    assert read_facts("order.updated", ORDER, NOW)[0].snapshot.delivered


def test_canonical_json() -> None:
    """Equal objects have equal text; what is no JSON has none."""
    assert canonical_json({"b": 1, "a": ["é", None]}) == '{"a":["\\u00e9",null],"b":1}'
    for odd in (float("nan"), float("inf"), {"a": object()}):
        with pytest.raises(ValueError, match="JSON"):
            canonical_json(odd)
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]
    with pytest.raises(PayloadError, match="too deeply"):
        read_facts("order.paid", ORDER | {"nested": nested}, NOW)


def test_nesting_has_one_bound_however_deep_the_stack_is() -> None:
    """What is taken once can be read again anywhere; brackets in a text are no nesting."""

    def nested(levels: int) -> bytes:
        return b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"

    assert load_json(nested(DEEPEST)) == load_json(nested(DEEPEST), finite=False)
    assert load_json(json.dumps({"a": "[" * 500}).encode()) == {"a": "[" * 500}
    assert load_json(b"[" + b",".join([b"[]"] * 500) + b"]") == [[]] * 500
    for levels in (DEEPEST + 1, 900, 100_000):
        with pytest.raises(ValueError, match="too deeply"):
            load_json(nested(levels))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([START, END, "a1", "metered_unit", "polar:x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted(
    {*SUBSCRIPTION, *ORDER, *REFUND, *CUSTOMER}
    | {"metadata", "items", "subscription", "customer", "product", "product_price", "prices"}
    | {"dispute", "discount", "discount_amount", "net_amount", "units", "seats", "ended_at"}
    | {"current_period_start", "modified_at", "deleted_at", "ends_at", "amount_type", "user_id"}
)
OBJECTS = st.recursive(JSON, lambda inner: st.dictionaries(st.sampled_from(FIELDS), inner) | st.lists(inner))


@given(st.sampled_from(sorted(KNOWN_TYPES)), OBJECTS, st.booleans())
def test_nonsense_is_refused_or_read(type: str, data: Any, named: bool) -> None:
    """Arbitrary JSON raises PayloadError or becomes facts that can be stored."""
    if named and isinstance(data, dict):
        data = data | {"id": "x", "customer_id": "c", "order_id": "o"}
    try:
        facts = read_facts(type, data, NOW)
    except PayloadError:
        return
    assert facts[0].id == data["id"]
    for fact in facts:
        values = [getattr(fact, name) for name in fact.__slots__]
        for value in values:
            if isinstance(value, str):
                value.encode()
            if isinstance(value, datetime):
                assert to_micros(value) > 0
            if isinstance(value, int):
                assert abs(value) <= 2**54
