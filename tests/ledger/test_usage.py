"""Orders that bill usage beside a plan: they open no period, confirm none and are no part of its price."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import permutations
from typing import Any

import pytest

from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.views import history
from polarcredits.periods import format_time
from polarcredits.webhooks.fixtures import Payload, Story, make_id
from tests.ledger.worlds import at, catalog, feed, item, lots, told_by


def usage(start: datetime, end: datetime, cents: int = 700) -> dict[str, Any]:
    """Return a line for usage, as Polar writes it: by the id of its price alone."""
    return item(cents, start, end) | {"label": "API calls", "product_price_id": make_id("metered")}


def with_usage(payloads: list[Payload], line: dict[str, Any]) -> list[Payload]:
    """Let the orders among some payloads bill usage too."""
    for payload in payloads:
        if payload["type"].startswith("order."):
            payload["data"]["items"] = [line, *payload["data"]["items"]]
    return payloads


def bill(life: Story, cents: int, start: datetime, end: datetime, reason: str) -> list[Payload]:
    """Return the events of an order that bills nothing but usage, made when it is over."""
    made = {
        **life.orders[0],
        "id": make_id("usage", cents, end),
        "billing_reason": reason,
        "created_at": format_time(end),
        "net_amount": cents,
        "total_amount": cents,
        "refunded_amount": 0,
        "status": "paid",
        "items": [usage(start, end, cents)],
    }
    life.orders.append(made)
    return [{"type": "order.paid", "timestamp": format_time(end), "data": made.copy()}]


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("trial", [None, timedelta(days=7)])
def test_a_renewal_that_bills_usage_too(trial: timedelta | None, ends: bool, ledger: Ledger) -> None:
    """§1.2: it opens the period of its plain line, whatever came before."""
    life = Story("ann", at=at("04-01"))
    bought = life.purchase("pro", trial=trial)
    begins = at("04-08") if trial else at("05-01")
    line = usage(at("04-03"), begins - timedelta(days=1))
    paid = with_usage(life.renewal(begins), line if ends else line | {"end_timestamp": None})
    feed(ledger, bought + paid, now=begins)
    later = begins + timedelta(days=1)
    assert [lot[:2] for lot in lots(ledger, "ann", later)] == [("allowance", 5000), ("lifetime", 1000)]


def test_usage_of_a_period_that_was_never_heard_of_makes_none(ledger: Ledger) -> None:
    """Its line is no evidence of a period's bounds."""
    life = Story("ann", at=at("04-01"))
    life.purchase("pro")
    renewal = life.renewal(at("05-01"))
    alone = [each for each in renewal if each["type"].startswith("order.")]
    feed(ledger, with_usage(alone, usage(at("04-03"), at("04-20"))), now=at("05-01"))
    assert [lot[:2] for lot in lots(ledger, "ann", at("05-02"))] == [("allowance", 5000), ("lifetime", 1000)]
    grants = told_by(ledger, "ann", at("05-02")).grants
    assert [lot.period_start for lot in grants if lot.source == "allowance"] == [at("05-01")]


def test_usage_billed_by_the_month_is_no_part_of_a_yearly_price(ledger: Ledger) -> None:
    """§4.8: the plan's own order, refunded in full, takes every month."""
    life = Story("ann", at=at("01-01"), interval="year")
    bought = life.purchase("pro-year", amount=20000)
    plan = life.orders[0]["id"]
    used: list[Payload] = []
    for month in ("02", "03", "04", "05"):
        end = at(f"{month}-01 00:01")
        used += bill(life, 5000, end - timedelta(days=20), end, "subscription_meter_cycle")
    feed(ledger, bought + used, now=at("05-01 00:01"))
    feed(ledger, life.refund(20000, at("05-10"), order_id=plan), now=at("05-10"))
    assert ledger.balance("ann", at=at("05-11")).balance == 1000
    assert ledger.balance("ann", at=at("06-11")).balance == 1000


@pytest.mark.parametrize("lines", ["over", "not over", "none"])
def test_usage_that_is_refunded_takes_nothing_of_the_plan(lines: str, ledger: Ledger) -> None:
    """§4.8: the order that gave the allowance is paid in full, whatever lines that of the meter has."""
    life = Story("ann", at=at("04-01"))
    bought = life.purchase("pro")
    used = bill(life, 6000, at("04-01 12:00"), at("04-10"), "subscription_meter_cycle")
    if lines != "over":
        life.orders[-1]["items"] = [usage(at("04-01"), at("04-20"))] if lines == "not over" else []
        used[0]["data"] = life.orders[-1].copy()
    feed(ledger, bought + used + life.refund(6000, at("04-12")), now=at("04-12"))
    assert [lot[:2] for lot in lots(ledger, "ann", at("04-13"))] == [("allowance", 5000), ("lifetime", 1000)]


def test_a_final_bill_for_usage_pays_for_no_period(ledger: Ledger) -> None:
    """A period past due stays so, in whatever order the news comes (§4.2)."""
    life = Story("ann", at=at("04-01"))
    bought = life.purchase("pro")
    unpaid = life.past_due(at("05-01")) + life.cancel_at_period_end(at("05-02"))
    final = bill(life, 300, at("05-01 05:00"), at("05-02"), "subscription_cycle")
    for parts in permutations((bought, unpaid, final)):
        with ledger.rehearse() as stage:
            feed(stage, [each for part in parts for each in part], now=at("05-03"))
            assert stage.balance("ann", at=at("05-04")).balance == 1000


@pytest.mark.parametrize("heard", ["subscription.", "order."])
def test_a_period_billed_when_it_was_over_is_no_usage(heard: str, ledger: Ledger) -> None:
    """Polar may be late: whoever paid was given it, by the subscription's news or the order's alone."""
    life = Story("ann", at=at("04-01"))
    bought = life.purchase("pro")
    renewal = life.renewal(at("05-01"))
    for each in renewal:
        each["timestamp"] = "2027-06-02T00:00:00Z"
        if each["type"].startswith("order."):
            each["data"] |= {"created_at": "2027-06-02T00:00:00Z"}
    paid = [each for each in renewal if each["type"] == "order.paid"]
    feed(ledger, bought + [each for each in renewal if each["type"].startswith(heard)] + paid)
    given = [entry for entry in history(ledger, "ann", type="grant") if entry.amount == 5000]
    assert len(given) == 2


def test_an_allowance_paid_late_lives_as_long_as_the_one_it_joins(ledger: Ledger) -> None:
    """§4.4: it expires with the period then live, so with that one's grace too."""
    weekly = catalog(rest='[plans.weekly]\ncredits = 700\ninterval = "week"\nproduct_ids = ["weekly"]')
    life = Story("ann", at=at("04-01"), interval="week")
    told = life.purchase("weekly") + life.past_due(at("04-08")) + life.past_due(at("04-15"))
    late = life.orders[-2:]
    life.now = at("04-16")
    paid = life.recover(at("04-16")) + life._pay(late[0])
    with Ledger(ledger._url, weekly, database=ledger.database) as opened:
        feed(opened, told + paid, now=at("04-16"))
        grants = [lot for lot in told_by(opened, "ann", at("04-17")).grants if lot.source == "allowance"]
        assert [lot.remaining for lot in grants] == [700, 700]
        assert len({lot.expires_at for lot in grants}) == 1
        assert grants[0].expires_at == at("04-22 01:00")
