"""Edges of the rules: time out of joint, raises nobody paid for, products named late, reads in the past."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from polarcredits.errors import AccountClosed, HoldClosed, InvalidInput
from polarcredits.ledger.explain import Upcoming, explain
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.ledger.views import history
from polarcredits.refill import refill
from polarcredits.webhooks.fixtures import Story
from tests.ledger.worlds import at, catalog, feed, told_by

LIFETIME = '[plans.ltd]\ncredits = 9000\ninterval = "lifetime"\nproduct_ids = ["ltd"]'


def test_a_hold_lives_in_the_users_ledger_time(ledger: Ledger) -> None:
    """§5.7: with the last entry ahead of the clock, a hold still lasts for its TTL."""
    ledger.add_user("ann")
    ahead = datetime.now(UTC) + timedelta(days=1)
    ledger.deduct("ann", 1, at=ahead)
    hold = ledger.hold("ann", 100, ttl=timedelta(minutes=15))
    assert hold.state.expires_at == ahead + timedelta(minutes=15)
    told = told_by(ledger, "ann", ahead)
    assert (told.balance.held, told.balance.available) == (100, 899)
    assert hold.capture(40).balance == 959
    assert verify(ledger).problems == []


def test_a_hold_asked_for_again_after_its_end_has_lapsed(ledger: Ledger) -> None:
    """§5.7: a lapse is true at its instant, whatever the stored row says."""
    ledger.add_user("ann")
    now = datetime.now(UTC)
    first = ledger.hold("ann", 100, ttl=timedelta(minutes=5), idempotency_key="k", at=now)
    again = ledger.hold(
        "ann", 100, ttl=timedelta(minutes=5), idempotency_key="k", at=now + timedelta(minutes=5)
    )
    assert (again.state.id, again.state.status, again.state.replayed) == (first.id, "lapsed", True)
    assert again.state.available == 1000
    with pytest.raises(HoldClosed):
        ledger.holds.capture(first.id, at=now + timedelta(minutes=5))


def test_a_closed_account_captures_nothing(ledger: Ledger) -> None:
    """§4.9: no deductions; the hold lapses."""
    life = Story("ann", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    hold = ledger.hold("ann", 100, at=at("04-02"))
    feed(ledger, life.customer_deleted(at("04-02 00:05")))
    with pytest.raises(AccountClosed):
        ledger.holds.capture(hold.id, at=at("04-02 00:06"))
    assert told_by(ledger, "ann", at("04-02 00:15")).balance.held == 0


def test_an_event_from_the_future_begins_no_period(ledger: Ledger) -> None:
    """Its entry counts from the moment it was taken; April's credits stay until May begins."""
    life = Story("ann", at=at("04-01"), interval="year")
    feed(ledger, life.purchase("pro-year", amount=12000))
    feed(ledger, life.refund(11500, at("05-10")), now=at("04-05"))
    refill(ledger, at=at("04-06"))
    told = told_by(ledger, "ann", at("04-06"))
    assert [(grant.source, grant.expires_at) for grant in told.grants] == [
        ("allowance", at("05-01")),
        ("lifetime", None),
    ]
    assert max(entry.occurred_at for entry in history(ledger, "ann")) == at("04-05")


def test_the_first_answer_again_after_its_terms_have_passed(ledger: Ledger) -> None:
    """§5.4: the key is looked up before the expiry or the cost is judged."""
    ledger.add_user("ann")
    now = datetime.now(UTC)
    until = now + timedelta(hours=1)
    given = ledger.grant("ann", 5, expires_at=until, idempotency_key="g", at=now)
    later = now + timedelta(hours=2)
    again = ledger.grant("ann", 5, expires_at=until, idempotency_key="g", at=later)
    assert (again.transaction, again.replayed) == (given.transaction, True)
    with pytest.raises(InvalidInput):
        ledger.grant("ann", 5, expires_at=until, at=later)
    spent = ledger.deduct("ann", operation="render", idempotency_key="d")
    ledger.catalog = catalog(rest="[operations]\nrender = 0")
    assert ledger.deduct("ann", operation="render", idempotency_key="d").transaction == spent.transaction
    with pytest.raises(InvalidInput):
        ledger.deduct("ann", operation="render", idempotency_key="e")


def test_each_raise_waits_for_an_order_of_its_own(ledger: Ledger) -> None:
    """§4.5, `upgrade = "paid"`: April's order pays for April's raise and for no later one."""
    ledger.catalog = catalog(rest='[policy]\nupgrade = "paid"')
    life = Story("ann", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    feed(ledger, life.plan_change("max", at("04-16")))
    assert told_by(ledger, "ann", at("04-16 01:00")).balance.balance == 6000
    feed(ledger, life.plan_change("pro", at("04-17")))
    feed(ledger, life.plan_change("max", at("04-21"), charge=500))
    # 15,000 for the ten of thirty days that are left, from the second raise alone.
    assert told_by(ledger, "ann", at("04-21 01:00")).balance.balance == 11000
    feed(ledger, life.plan_change("pro", at("04-25")))
    feed(ledger, life.renewal(at("05-01")))
    feed(ledger, life.plan_change("max", at("05-02")))
    assert told_by(ledger, "ann", at("05-02 01:00")).balance.balance == 6000


def test_an_unpaid_raise_gives_nothing_in_later_months(ledger: Ledger) -> None:
    """§4.5: on a yearly subscription, too."""
    ledger.catalog = catalog(rest='[policy]\nupgrade = "paid"')
    life = Story("ann", at=at("04-01"), interval="year")
    feed(ledger, life.purchase("team", seats=2))
    feed(ledger, life.seats_change(1000, at("04-03")))
    assert told_by(ledger, "ann", at("05-02")).balance.balance == 1200


def test_an_order_pays_for_one_raise(ledger: Ledger) -> None:
    """§4.5: the third seat's order comes ten seconds after it, and pays for no thousandth."""
    ledger.catalog = catalog(rest='[policy]\nupgrade = "paid"')
    life = Story("ann", at=at("04-01"))
    feed(ledger, life.purchase("team", seats=2))
    feed(ledger, life.seats_change(3, at("04-16")))
    feed(ledger, life.plan_change("team", at("04-16") + timedelta(seconds=10), charge=100))
    assert told_by(ledger, "ann", at("04-16 01:00")).balance.balance == 1250
    feed(ledger, life.seats_change(1000, at("04-17")))
    assert told_by(ledger, "ann", at("04-17 01:00")).balance.balance == 1250


def test_a_full_raise(ledger: Ledger) -> None:
    """§4.5, `upgrade = "full"`: all of the difference, however late; cut again, what was used is owed."""
    ledger.catalog = catalog(rest='[policy]\nupgrade = "full"')
    life = Story("ann", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    feed(ledger, life.plan_change("max", at("04-29")))
    ledger.deduct("ann", 20000, at=at("04-29 02:00"))
    feed(ledger, life.plan_change("pro", at("04-29 03:00")))
    told = told_by(ledger, "ann", at("04-29 04:00"))
    assert (told.balance.balance, told.balance.owed) == (1000, 15000)


def test_credits_owed_stay_owed_when_their_grant_is_withdrawn(ledger: Ledger) -> None:
    """§2, owed: May was charged with them; when its order turns out unpaid, a pack is."""
    life = Story("ann", at=at("04-01"))
    bought = life.purchase("pro")
    feed(ledger, [event for event in bought if not event["type"].startswith("order")])
    ledger.deduct("ann", 5000, at=at("04-02"))
    feed(ledger, life.seats_change(1, at("04-03")))
    feed(ledger, life.plan_change("team", at("04-03 01:00")))
    owed = told_by(ledger, "ann", at("04-04")).balance.owed
    assert owed == 4900
    feed(ledger, life.plan_change("pro", at("04-30 23:00")))
    owed = told_by(ledger, "ann", at("04-30 23:30")).balance.owed
    renewed = life.renewal(at("05-01"))
    feed(ledger, [event for event in renewed if event["type"].startswith("subscription")])
    refill(ledger, at=at("05-01 02:00"))
    assert told_by(ledger, "ann", at("05-01 02:00")).balance.owed == 0
    pending = [event for event in renewed if event["type"] == "order.created"]
    feed(ledger, pending, now=at("05-01 03:00"))
    assert told_by(ledger, "ann", at("05-01 03:30")).balance.owed == owed
    feed(ledger, life.pack("pack", at("05-02")))
    assert told_by(ledger, "ann", at("05-02 01:00")).balance.owed == owed - 1000
    feed(ledger, [event for event in renewed if event["type"] == "order.paid"], now=at("05-03"))
    told = told_by(ledger, "ann", at("05-03 01:00"))
    assert (told.balance.owed, told.balance.balance) == (0, 7000 - owed)


def test_a_used_allowance_refunded_after_its_end_is_clawed_back(ledger: Ledger) -> None:
    """§§2, 4.8, `clawback = "debt"`: the entry is a claw-back, not an expiry."""
    ledger.catalog = catalog(rest='[policy]\nclawback = "debt"')
    life = Story("ann", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    first = life.orders[0]["id"]
    ledger.deduct("ann", 6000, at=at("04-02"))
    feed(ledger, life.renewal(at("05-01")))
    feed(ledger, life.refund(None, at("05-02"), order_id=first))
    kinds = [(entry.type, entry.amount) for entry in history(ledger, "ann", limit=1)]
    assert kinds == [("clawback", -5000)]
    assert told_by(ledger, "ann", at("05-02 01:00")).balance.balance == 0


def test_a_lifetime_plan_sold_as_a_subscription_is_taken_back_by_a_refund(ledger: Ledger) -> None:
    """§4.8."""
    ledger.catalog = catalog(rest=LIFETIME)
    life = Story("ann", at=at("04-01"))
    feed(ledger, life.purchase("ltd"))
    assert told_by(ledger, "ann", at("04-02")).balance.balance == 10000
    feed(ledger, life.refund(None, at("04-03")))
    feed(ledger, life.revoke(at("04-04")))
    assert told_by(ledger, "ann", at("04-05")).balance.balance == 1000


def test_a_lifetime_plan_bought_twice_stays_when_one_is_refunded(ledger: Ledger) -> None:
    """§4.3: it is given once, and paid for as long as one of its orders is."""
    ledger.catalog = catalog(rest=LIFETIME)
    life = Story("ann", at=at("04-01"))
    feed(ledger, life.pack("ltd"))
    feed(ledger, life.pack("ltd", at("04-02")))
    feed(ledger, life.refund(None, at("04-03"), order_id=life.orders[0]["id"]))
    assert told_by(ledger, "ann", at("04-04")).balance.balance == 10000
    feed(ledger, life.refund(None, at("04-05"), order_id=life.orders[1]["id"]))
    assert told_by(ledger, "ann", at("04-06")).balance.balance == 1000


@pytest.mark.parametrize("once", [True, False])
def test_a_product_named_late_is_granted_by_refill(ledger: Ledger, once: bool) -> None:
    """§1.3: `refill` writes exactly what reads already show, and then nothing more."""
    life = Story("ann", at=at("04-01"))
    feed(ledger, life.pack("ltd") if once else life.purchase("ltd"))
    assert told_by(ledger, "ann", at("04-02")).balance.balance == 1000
    ledger.catalog = catalog(rest=LIFETIME)
    assert told_by(ledger, "ann", at("04-02")).balance.balance == 10000
    report = refill(ledger, at=at("04-02"))
    assert (report.considered, report.granted, report.credits_granted) == (1, 1, 9000)
    looked_at: list[tuple[int, int]] = []
    again = refill(ledger, at=at("04-02"), progress=lambda *counts: looked_at.append(counts))
    assert (again.considered, again.granted, looked_at) == (0, 0, [])


def test_a_damaged_account_stays_due_and_stops_nobody(ledger: Ledger) -> None:
    """`refill` tells of it every time, until it is mended."""
    lives = [Story(user, at=at("04-01"), seed=user) for user in ("ann", "bob")]
    for life in lives:
        feed(ledger, life.purchase("ltd"))
    assert lives[0].subscription is not None
    with ledger.begin() as connection:
        connection.execute(
            text("UPDATE observations SET fields = '{}' WHERE object_id = :id"),
            {"id": lives[0].subscription["id"]},
        )
    ledger.catalog = catalog(rest=LIFETIME)
    report = refill(ledger, at=at("04-02"))
    assert ([each["user"] for each in report.failed], report.credits_granted) == (["ann"], 9000)
    report = refill(ledger, at=at("04-02"))
    assert ([each["user"] for each in report.failed], report.granted) == (["ann"], 0)


def test_a_product_that_left_the_catalog_and_came_back(ledger: Ledger) -> None:
    """§1.3: the period that began meanwhile is granted once it is explained again."""
    life = Story("ann", at=at("04-01"))
    feed(ledger, life.purchase("max"))
    ledger.catalog = catalog(rest="").__class__(default_plan="free", plans=ledger.catalog.plans[:2])
    feed(ledger, life.renewal(at("05-01")))
    assert told_by(ledger, "ann", at("05-02")).balance.balance == 1000
    ledger.catalog = catalog()
    assert refill(ledger, at=at("05-02")).credits_granted == 20000
    assert told_by(ledger, "ann", at("05-02")).balance.balance == 21000


def test_a_trial_that_never_began_gives_nothing(ledger: Ledger) -> None:
    """§4.2: an incomplete subscription has trial dates and no trial."""
    ledger.catalog = catalog(pro="trial_credits = 300")
    events = Story("ann", at=at("04-01")).purchase("pro", trial=timedelta(days=7))
    created = next(event for event in events if event["type"] == "subscription.created")
    created["data"] |= {"status": "incomplete", "started_at": None}
    feed(ledger, [created])
    assert told_by(ledger, "ann", at("04-02")).balance.balance == 1000


def test_the_past_has_its_own_plan(ledger: Ledger) -> None:
    """Reads in the past: the plan of that time, before the purchase and before the end."""
    ledger.add_user("ann")
    life = Story("ann", at=at("04-10"))
    feed(ledger, life.purchase("pro"))
    feed(ledger, life.revoke(at("04-20")))
    ledger.grant("ann", 5, at=at("04-21"))
    told = [told_by(ledger, "ann", at(day)) for day in ("04-05", "04-15", "04-20")]
    assert [(each.plan, each.status, each.balance.balance) for each in told] == [
        ("free", None, 1000),
        ("pro", "active", 6000),
        ("free", None, 1000),
    ]


def test_what_was_owed_is_told_of_the_past_while_nothing_newer_is_known(ledger: Ledger) -> None:
    """Reads in the past: 3,000 used and refunded are owed from the refund on."""
    start = datetime(2026, 9, 1, tzinfo=UTC)
    life = Story("ann", at=start)
    feed(ledger, life.purchase("pro"))
    ledger.deduct("ann", 3000, at=start + timedelta(days=1))
    feed(ledger, life.refund(2000, start + timedelta(days=2)))
    told = told_by(ledger, "ann", start + timedelta(days=3))
    assert (told.balance.balance, told.balance.owed) == (1000, 3000)


def test_several_subscriptions_each_give_their_own(ledger: Ledger) -> None:
    """§3.3: the plan with most credits a day shows; `explain` announces each allowance by itself."""
    one, two = Story("ann", at=at("04-01")), Story("ann", at=at("04-05"), seed="second")
    feed(ledger, one.purchase("team", seats=3))
    feed(ledger, two.purchase("max"))
    told = told_by(ledger, "ann", at("04-06"))
    assert (told.plan, told.balance.balance, told.next_refill_at) == ("max", 21300, at("05-01"))
    begins = [next_ for next_ in explain(ledger, "ann", at("04-06")).upcoming if "begins" in next_.what]
    assert begins == [
        Upcoming(at=at("05-01"), what="team allowance begins", amount=300),
        Upcoming(at=at("05-05"), what="max allowance begins", amount=20000),
    ]


def test_sqlite_refuses_to_replace_an_entry(ledger: Ledger) -> None:
    """§6.1: INSERT OR REPLACE deletes without firing DELETE triggers; another one refuses it."""
    if not ledger.database.sqlite:
        return
    ledger.grant("ann", 10, create=True, idempotency_key="k")
    before = history(ledger, "ann")
    path = ledger.database.engine.url.database
    assert path is not None
    connection = sqlite3.connect(path)
    columns = "account_id, sequence, type, amount, balance_after, actor, occurred_at, recorded_at"
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(
            f"INSERT OR REPLACE INTO credit_transactions ({columns}) VALUES (1, 2, 'grant', 1, 1, 'x', 1, 1)"
        )
    connection.execute(
        f"INSERT OR REPLACE INTO credit_transactions ({columns}, idempotency_key)"
        " VALUES (1, 3, 'grant', 1, 1, 'x', 1, 1, 'k')"
    )
    connection.commit()
    connection.close()
    assert history(ledger, "ann") == before
