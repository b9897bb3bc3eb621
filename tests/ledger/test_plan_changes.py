"""Changes of plan, refunds and late payments beside each other, and what of it is told (docs/rules.md §4)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from polarcredits.ledger import schema
from polarcredits.ledger.explain import explain
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.readings import take
from polarcredits.ledger.views import history
from polarcredits.periods import Interval
from polarcredits.plans import Catalog, parse_catalog
from polarcredits.refill import refill
from polarcredits.webhooks.fixtures import Payload, Story
from polarcredits.webhooks.payloads import read_row
from tests.ledger.worlds import at, catalog, feed, item, lots, restart, told_by

SOLD_ONCE = """
    [plans.free]
    credits = 1000
    interval = "lifetime"
    product_ids = ["gratis"]
    [plans.pro]
    credits = 5000
    interval = "month"
    product_ids = ["pro"]
    [plans.deal]
    credits = 30000
    interval = "lifetime"
    product_ids = ["deal"]
    [plans.max]
    credits = 20000
    interval = "month"
    product_ids = ["max"]
    rollover = "all"
    """
ONCE = parse_catalog(SOLD_ONCE, pro_product_id=None)
"""The default plan is sold as a product too, and so is a plan that gives its credits once."""


def under(ledger: Ledger, terms: Catalog) -> Ledger:
    """Return the same ledger with another catalog."""
    ledger.catalog = terms
    return ledger


def read_all(ledger: Ledger, life: Story, when: datetime) -> None:
    """Take what a reading of Polar's API would show of a customer."""
    whole = {"customer": life.customer, "subscription": life.subscription}
    rows: Sequence[tuple[str, Payload]] = [
        ("customer", life.customer),
        *(("order", order | whole) for order in life.orders),
        ("subscription", (life.subscription or {}) | {"customer": life.customer}),
    ]
    facts = [fact for kind, row in rows for fact in read_row(kind, row, when)]
    take(ledger, facts, as_of=when, call=ledger.call(when), environment="sandbox")


def types(ledger: Ledger, user: str) -> list[tuple[str, int]]:
    """Return a user's entries, the first first, without deductions."""
    return [(e.type, e.amount) for e in reversed(history(ledger, user)) if e.type != "deduct"]


def test_an_order_that_is_read_long_after_it_was_paid(ledger: Ledger) -> None:
    """§4.4: April's was paid in time, as its row says: April expires with April, also by reading alone."""
    life = Story("ann", at=at("03-01"))
    feed(ledger, [*life.purchase("pro"), *life.past_due(at("04-01"))])
    life.recover(at("04-05"))
    life.renewal(at("05-01"))
    read_all(ledger, life, at("05-05"))
    assert lots(ledger, "ann", at("05-05 01:00")) == [
        ("allowance", 5000, 0, 5000),
        ("lifetime", 1000, 0, 1000),
    ]


def test_a_change_to_a_plan_that_gives_once_is_a_cut(ledger: Ledger) -> None:
    """§4.5: what was used beyond it is owed; buying again yields nothing."""
    ledger = under(ledger, ONCE)
    life = Story("ann", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    ledger.deduct("ann", 5000, at=at("04-02"))
    feed(ledger, life.plan_change("gratis", at("04-03"), charge=-1870))
    told = told_by(ledger, "ann", at("04-04"))
    assert (told.plan, told.balance.owed, told.balance.balance) == ("free", 5000, 1000)
    feed(ledger, restart(life, "pro", at("04-05"), at("05-05"), item(2000, at("04-05"), at("05-05"))))
    assert lots(ledger, "ann", at("04-06")) == [("lifetime", 1000, 0, 1000)]


def test_a_cut_of_what_was_not_spent(ledger: Ledger) -> None:
    """§4.5: it lowers the amount at once; what a plan gives once comes beside it."""
    ledger = under(ledger, ONCE)
    life = Story("ann", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    ledger.deduct("ann", 100, at=at("04-02"))
    feed(ledger, life.plan_change("deal", at("04-03"), charge=9000))
    assert lots(ledger, "ann", at("04-04")) == [
        ("lifetime", 30000, 0, 30000),
        ("lifetime", 1000, 0, 1000),
    ]
    assert told_by(ledger, "ann", at("04-04")).balance.owed == 100
    feed(ledger, life.plan_change("pro", at("04-11"), charge=100))
    assert [lot[:2] for lot in lots(ledger, "ann", at("04-12"))] == [
        ("allowance", 3333),
        ("lifetime", 30000),
        ("lifetime", 1000),
    ]


@pytest.mark.parametrize(("upgrade", "left"), [("prorated", 4666), ("paid", 5000)])
def test_a_change_to_a_plan_that_gives_once_and_back(upgrade: str, left: int, ledger: Ledger) -> None:
    """§4.5: what nobody paid for is gone with it, and waits for its order where a raise does."""
    ledger = under(
        ledger, parse_catalog(f'[policy]\nupgrade = "{upgrade}"\n{SOLD_ONCE}', pro_product_id=None)
    )
    life = Story("ann", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    feed(ledger, life.plan_change("deal", at("04-03")))
    shown = [("allowance", 5000)] if upgrade == "paid" else [("lifetime", 30000)]
    assert [lot[:2] for lot in lots(ledger, "ann", at("04-03 00:01")) if lot[1] != 1000] == shown
    feed(ledger, life.plan_change("pro", at("04-03 00:05")))
    assert [lot[:2] for lot in lots(ledger, "ann", at("04-04"))] == [("allowance", left), ("lifetime", 1000)]


def test_a_free_product_cuts_where_raises_wait_for_their_orders(ledger: Ledger) -> None:
    """§4.5: it is no raise, though it gives something."""
    ledger = under(ledger, parse_catalog(f'[policy]\nupgrade = "paid"\n{SOLD_ONCE}', pro_product_id=None))
    life = Story("ann", at=at("04-01"))
    feed(ledger, [*life.purchase("pro"), *life.plan_change("gratis", at("04-03"))])
    assert lots(ledger, "ann", at("04-04")) == [("lifetime", 1000, 0, 1000)]


@pytest.mark.parametrize("ended", ["over", "revoked"])
def test_a_plan_that_gives_once_heard_of_too_late(ended: str, ledger: Ledger) -> None:
    """§§4.1, 4.2: a period has the product last heard before its end; the next is not paid."""
    ledger = under(ledger, ONCE)
    life = Story("ann", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    if ended == "over":
        feed(ledger, [*life.plan_change("deal", at("05-01 00:10")), *life.past_due(at("05-01 00:30"))])
    else:
        feed(ledger, [*life.revoke(at("04-03")), *life.plan_change("deal", at("04-04"))])
    assert [lot for lot in lots(ledger, "ann", at("05-01 00:40")) if lot[0] == "lifetime"] == [
        ("lifetime", 1000, 0, 1000)
    ]


def test_a_plan_that_gives_once_of_which_only_the_end_was_heard(ledger: Ledger) -> None:
    """§4.6: it was paid for, and stays."""
    ledger = under(ledger, ONCE)
    life = Story("ann", at=at("04-01"))
    paid = [event for event in life.purchase("deal", amount=9000) if event["type"] == "order.paid"]
    for event in paid:
        event["data"]["subscription"] = None
    feed(ledger, [*life.revoke(at("04-03")), *paid], at("04-04"))
    assert lots(ledger, "ann", at("04-05"))[0] == ("lifetime", 30000, 0, 30000)


def test_the_order_of_arrival_does_not_say_what_is_spent_first(ledger: Ledger, tmp_path: Path) -> None:
    """§1.4: also among grants that never expire."""
    life = Story("ann", at=at("04-01"))
    events = [*life.purchase("pro"), *life.plan_change("deal", at("04-03"), charge=9000)]
    seen = []
    other = f"sqlite:///{tmp_path / 'other.db'}"
    schema.make_if_absent(other)
    with Ledger(other, ONCE) as reverse:
        for each, told in ((under(ledger, ONCE), events), (reverse, events[::-1])):
            feed(each, told, at("04-20"))
            each.deduct("ann", 1000, at=at("04-20"))
            seen.append(lots(each, "ann", at("04-20")))
    assert seen[0] == seen[1] == [("lifetime", 30000, 1000, 29000), ("lifetime", 1000, 0, 1000)]


def test_nothing_is_carried_over_a_month_that_has_no_allowance(ledger: Ledger) -> None:
    """§4.4: what was left goes into the next confirmed period and ends with it."""
    ledger = under(ledger, ONCE)
    life = Story("ann", at=at("04-01"))
    feed(ledger, life.purchase("max"))
    assert life.subscription is not None
    for product, months in (("gratis", ("05", "06", "07")), ("max", ("08", "09"))):
        life.subscription["product_id"] = product
        for month in months:
            feed(ledger, life.renewal(at(f"{month}-01"), amount=0))
            carried = [lot[1] for lot in lots(ledger, "ann", at(f"{month}-02")) if lot[0] == "rollover"]
            assert carried == ([20000] if month == "09" else [])


@pytest.mark.parametrize("interval", ["month", "year"])
def test_a_change_from_a_plan_that_gives_once(interval: Interval, ledger: Ledger) -> None:
    """§§3.2, 4.1, 4.5: the paid plan counts for what is left of an allowance period, by the month."""
    ledger = under(ledger, ONCE)
    life = Story("ann", at=at("04-01"), interval=interval)
    feed(ledger, life.purchase("gratis", amount=0))
    feed(ledger, life.plan_change("pro", at("04-16"), charge=2000))
    assert lots(ledger, "ann", at("04-17")) == [
        ("allowance", 2500, 0, 2500),
        ("lifetime", 1000, 0, 1000),
    ]
    refill(ledger, at=at("05-02"))
    assert lots(ledger, "ann", at("05-02"))[0][1] == {"month": 1000, "year": 5000}[interval]


@pytest.mark.parametrize(("before", "after"), [("pro-year", "max"), ("max", "pro-year")])
def test_a_change_leaves_rollovers_of_earlier_months(before: str, after: str, ledger: Ledger) -> None:
    """§§1.3, 4.1: each allowance period has the terms of its own product."""
    ledger = under(ledger, catalog(pro="rollover = 2000"))
    life = Story("ann", at=at("04-01"), interval="year")
    feed(ledger, life.purchase(before, amount=20000))
    refill(ledger, at=at("05-02"))
    carried = [lot for lot in lots(ledger, "ann", at("05-03")) if lot[0] == "rollover"]
    assert carried == ([("rollover", 2000, 0, 2000)] if before == "pro-year" else [])
    feed(ledger, life.plan_change(after, at("05-10")))
    assert [lot for lot in lots(ledger, "ann", at("05-11")) if lot[0] == "rollover"] == carried
    refill(ledger, at=at("06-02"))
    later = [lot for lot in lots(ledger, "ann", at("06-03")) if lot[0] == "rollover"]
    assert later == ([("rollover", 2000, 0, 2000)] if after == "pro-year" else [])


@pytest.mark.parametrize("refunded_first", [True, False])
def test_a_refund_counts_once_where_a_period_is_continued(refunded_first: bool, ledger: Ledger) -> None:
    """§4.5: half of a month of 2,500 had passed, and 1,250 were used: nothing was used too much."""
    life = Story("ann", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    first = life.orders[-1]["id"]
    ends = at("04-16").replace(year=2028)
    lines = (
        item(20000, at("04-16"), ends),
        item(-500, at("04-16"), at("05-01"), proration=True),
    )
    if refunded_first:
        feed(ledger, life.refund(1000, at("04-02")))
    ledger.deduct("ann", 1250, at=at("04-10"))
    feed(ledger, restart(life, "pro-year", at("04-16"), ends, *lines))
    if not refunded_first:
        feed(ledger, life.refund(1000, at("04-17"), order_id=first))
    assert lots(ledger, "ann", at("04-18"))[0] == ("allowance", 5000, 0, 5000)


def test_a_cut_after_a_refund_is_no_clawback(ledger: Ledger) -> None:
    """§2: clawback is for the refund, adjust for the change of plan."""
    life = Story("ann", at=at("04-01"))
    feed(ledger, life.purchase("max", amount=10000))
    feed(ledger, life.refund(1000, at("04-02")))
    feed(ledger, life.plan_change("pro", at("04-10")))
    assert types(ledger, "ann") == [
        ("grant", 1000),
        ("grant", 20000),
        ("clawback", -2000),
        ("adjust", -13500),
    ]
    assert told_by(ledger, "ann", at("04-11")).grants[0].amount == 4500


def test_a_refund_that_shrinks_a_rollover_is_a_clawback(ledger: Ledger) -> None:
    """§§2, 4.4: also further on, in what was carried from what was carried."""
    ledger = under(ledger, catalog(pro='rollover = "all"'))
    life = Story("ann", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    first = life.orders[-1]["id"]
    feed(ledger, [*life.renewal(at("05-01")), *life.renewal(at("06-01"))])
    feed(ledger, life.refund(1000, at("06-03"), order_id=first))
    assert ("adjust", -2500) not in types(ledger, "ann")
    grants = {each.lot.key: each for each in explain(ledger, "ann", at("06-04")).grants}
    (rolled,) = [each for key, each in grants.items() if key.startswith("rollover:") and "2027-06" in key]
    assert (rolled.lot.amount, rolled.clawed_back) == (7500, 2500)


def test_what_a_hold_kept_from_a_refund_is_a_clawback_when_it_is_freed(ledger: Ledger) -> None:
    """§§2, 5.7: however late it is taken."""
    life = Story("ann", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    hold = ledger.hold("ann", 5000, ttl=timedelta(hours=24), at=at("04-02"))
    feed(ledger, life.refund(1000, at("04-02 01:00")))
    assert types(ledger, "ann") == [("grant", 1000), ("grant", 5000)]
    ledger.holds.release(hold.id, at=at("04-02 02:00"))
    assert types(ledger, "ann") == [("grant", 1000), ("grant", 5000), ("clawback", -2500)]


def test_what_a_refund_took_is_not_expected(ledger: Ledger) -> None:
    """§4.8: of a year that was given back no month is to come, of a half the months that were paid."""
    life = Story("ann", at=at("04-01"), interval="year")
    feed(ledger, life.purchase("pro-year", amount=12000))
    feed(ledger, life.refund(6500, at("04-10")))
    told = told_by(ledger, "ann", at("08-15"))
    (coming,) = [each for each in explain(ledger, "ann", at("08-15")).upcoming if "begins" in each.what]
    assert (coming.at, coming.amount, told.next_refill_at) == (at("09-01"), 2500, at("09-01"))
    (after,) = [each for each in explain(ledger, "ann", at("09-15")).upcoming if "begins" in each.what]
    assert (after.at, after.amount) == (at("04-01").replace(year=2028), 5000)


def test_a_customer_that_is_read_again_stays_whose_it_is(ledger: Ledger) -> None:
    """§§1.2, 4.9: a null never erases the external id, however often it is read."""
    life = Story("ann", at=at("04-01"))
    feed(ledger, [*life.purchase("pro"), *life.customer_deleted(at("04-10"))])
    for day in ("04-12", "04-13"):
        facts: Any = read_row("customer", life.customer, at(day))
        take(ledger, facts, as_of=at(day), call=ledger.call(at(day)), environment="sandbox")
        assert told_by(ledger, "ann", at("04-14")).status == "closed"
    feed(ledger, life.pack("pack", at("04-13")))
    assert told_by(ledger, "ann", at("04-14")).balance.balance == 2000
