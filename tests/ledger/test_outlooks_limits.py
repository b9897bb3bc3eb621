"""Where an outlook ends: each case refilled by reconcile too, row for row (docs/rules.md §4)."""

from __future__ import annotations

from datetime import timedelta

from polarcredits.ledger.ledger import Ledger
from polarcredits.plans import Catalog, parse_catalog
from polarcredits.webhooks.fixtures import Story
from tests.ledger.twice import both_ways
from tests.ledger.worlds import at, feed


def sold(pro: int = 500, other: int = 100, grace: str = "1h", clawback: str = "owed") -> Catalog:
    """Return a monthly plan, two others that differ in credits or interval, and one of nothing."""
    return parse_catalog(
        f"""
        [policy]
        clawback = "{clawback}"
        [packs.small]
        credits = 70
        product_ids = ["small"]
        [plans.pro]
        credits = {pro}
        interval = "month"
        renewal_grace = "{grace}"
        product_ids = ["pro"]
        [plans.other]
        credits = {other}
        interval = "month"
        product_ids = ["other"]
        [plans.weekly]
        credits = 50
        interval = "week"
        product_ids = ["weekly"]
        [plans.nothing]
        credits = 0
        interval = "month"
        product_ids = ["nothing"]
        """,
        pro_product_id=None,
    )


def test_what_expires_before_the_next_allowance_is_due_then(ledger: Ledger) -> None:
    """After a step the soonest of expiries and allowances is next, and no later one."""
    ledger.catalog = sold()
    feed(ledger, Story("ann", at=at("04-01"), interval="year").purchase("pro"))
    ledger.grant("ann", 40, expires_at=at("05-10"), at=at("04-02"))
    assert both_ways(ledger, at("05-02")).foreseen == 1
    report = both_ways(ledger, at("05-11"))
    assert (report.foreseen, report.credits_expired) == (1, 40)


def test_a_period_that_is_not_confirmed_waits_as_the_catalog_of_the_day_says(ledger: Ledger) -> None:
    """§4.2c: its terms are not written yet, so an edited delay counts."""
    ledger.catalog = sold()
    life = Story("ann", at=at("04-01"))
    feed(ledger, [e for e in life.purchase("pro") if e["type"].startswith("subscription")])
    told = [e for e in life.renewal(at("05-01")) if e["type"] == "subscription.cycled"]
    feed(ledger, told)
    ledger.grant("ann", 40, expires_at=at("05-01 00:20"), at=at("05-01 00:01"))
    ledger.catalog = sold(grace="0h")
    report = both_ways(ledger, at("05-01 00:30"))
    assert (report.granted, report.credits_granted) == (1, 500)


def test_of_two_subscriptions_the_catalog_of_the_day_says_which_shows(ledger: Ledger) -> None:
    """§3.3: whichever of them is the first, an edit can let the other's plan show."""
    for number in range(6):
        ledger.catalog = sold(pro=500, other=100)
        for product in ("pro", "other"):
            life = Story(f"u{number}", at=at("04-01"), interval="year", seed=f"{number}{product}")
            feed(ledger, life.purchase(product))
        ledger.grant(f"u{number}", 40, expires_at=at("04-10"), at=at("04-02"))
    ledger.catalog = sold(pro=500, other=900)
    report = both_ways(ledger, at("04-11"))
    assert (report.foreseen, report.considered) == (0, 6)


def test_a_refund_takes_allowances_that_have_not_begun(ledger: Ledger) -> None:
    """§4.8: from the end; those that it takes are granted and taken back, and none is foreseen whole."""
    ledger.catalog = sold()
    life = Story("ann", at=at("04-01"), interval="year")
    feed(ledger, life.purchase("pro", amount=1200))
    feed(ledger, life.refund(650, at("04-03")))
    assert both_ways(ledger, at("05-02")).foreseen == 1
    report = both_ways(ledger, at("10-15"))
    assert (report.foreseen, report.granted) == (0, 5)
    both_ways(ledger, at("12-15"))


def test_months_of_unequal_length_are_worth_as_much_of_a_weekly_plan(ledger: Ledger) -> None:
    """§4.5: a plan of another interval counts by the time, so that one month is not the next."""
    ledger.catalog = sold()
    life = Story("ann", at=at("04-01"), interval="year")
    feed(ledger, life.purchase("pro"))
    feed(ledger, life.plan_change("weekly", at("04-03")))
    for month in ("05", "06", "09", "12"):
        both_ways(ledger, at(f"{month}-02"))


def test_the_end_of_a_grant_of_nothing_is_still_looked_at(ledger: Ledger) -> None:
    """A plan of 0 credits holds no grant, yet its period ends."""
    ledger.catalog = sold()
    feed(ledger, Story("ann", at=at("04-01")).purchase("nothing"))
    ledger.grant("ann", 40, expires_at=at("04-10"), at=at("04-02"))
    both_ways(ledger, at("04-11"))
    both_ways(ledger, at("05-01") + timedelta(hours=2))


def test_a_rest_that_is_still_to_roll_over_is_not_foreseen(ledger: Ledger) -> None:
    """§4.4: what rolls is known when its source has run out, by what was left of it then."""
    ledger.catalog = parse_catalog(
        """
        [plans.pro]
        credits = 500
        interval = "month"
        rollover = 200
        product_ids = ["pro"]
        """,
        pro_product_id=None,
    )
    life = Story("ann", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    feed(ledger, life.past_due(at("05-01")))
    unpaid = life.orders[-1]
    feed(ledger, life.renewal(at("06-01")))
    life.orders.append(unpaid)
    feed(ledger, life.recover(at("06-05")))
    for when in ("06-20", "07-01 00:30", "07-02"):
        both_ways(ledger, at(when))


def test_an_allowance_that_was_posted_and_moved_is_left_to_reconcile(ledger: Ledger) -> None:
    """The opening product, heard late, moves the second allowance: it is brought back, not made anew."""
    ledger.catalog = sold()
    life = Story("ann", at=at("04-01"), interval="year")
    order = [e for e in life.purchase("pro") if e["type"] == "order.paid"]
    feed(ledger, life.plan_change("weekly", at("04-02")))
    both_ways(ledger, at("04-09"))
    feed(ledger, order, now=at("04-10"))
    feed(ledger, Story("ben", at=at("04-01"), interval="year").purchase("pro"))
    report = both_ways(ledger, at("05-02"))
    assert (report.foreseen, report.considered) == (1, 2)


def test_a_debt_is_paid_by_the_next_allowance(ledger: Ledger) -> None:
    """§4.8: so the next allowance is not foreseen whole."""
    ledger.catalog = sold(clawback="debt")
    life = Story("ann", at=at("04-01"), interval="year")
    feed(ledger, life.purchase("pro"))
    feed(ledger, life.pack("small", at("04-02")))
    ledger.deduct("ann", 1560, at=at("04-03"))
    feed(ledger, life.refund(at=at("04-04")))
    report = both_ways(ledger, at("05-02"))
    assert (report.foreseen, report.granted) == (0, 1)
    assert ledger.balance("ann", at=at("05-02")).balance == 440
