"""Nothing for free, nothing lost: lives with spending, each number worked out by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from polarcredits.ledger import views
from polarcredits.ledger.explain import explain
from polarcredits.ledger.ledger import Ledger
from polarcredits.refill import refill
from polarcredits.webhooks.fixtures import Story
from tests.ledger.worlds import at, catalog, feed, item, lots, restart, told_by


def test_subscription_created_alone_gives_the_allowance(ledger: Ledger) -> None:
    """§4.2 (b): and the rest of the purchase's events give no more."""
    events = Story("ida", at=at("04-01")).purchase("pro")
    created = [event for event in events if event["type"] == "subscription.created"]
    feed(ledger, created)
    assert told_by(ledger, "ida", at("04-01 01:00")).balance.balance == 6000
    feed(ledger, events)
    told = told_by(ledger, "ida", at("04-01 01:00"))
    assert (told.plan, told.status, told.balance.balance) == ("pro", "active", 6000)
    assert told.next_refill_at == at("05-01")


def test_upgrade_spend_downgrade_yields_nothing(ledger: Ledger) -> None:
    """§4.5: 5,000 + ⌊15,000 x 15/30⌋ = 12,500; 9,000 used, cut to 5,000: 4,000 are owed."""
    life = Story("ida", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    feed(ledger, life.plan_change("max", at("04-16")))
    assert told_by(ledger, "ida", at("04-16 01:00")).balance.balance == 13500
    ledger.deduct("ida", 9000, at=at("04-17"))
    feed(ledger, life.plan_change("pro", at("04-18")))
    told = told_by(ledger, "ida", at("04-18 01:00"))
    assert (told.balance.balance, told.balance.owed) == (1000, 4000)
    feed(ledger, life.renewal(at("05-01")))
    assert lots(ledger, "ida", at("05-01 01:00")) == [
        ("allowance", 5000, 4000, 1000),
        ("lifetime", 1000, 0, 1000),
    ]


def test_a_refund_after_spending_then_a_reversal(ledger: Ledger) -> None:
    """§§4.8, 5.6: half is taken back, 1,500 of it from what was used; the reversal pays that first."""
    life = Story("ida", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    spent = ledger.deduct("ida", 4000, at=at("04-02"))
    feed(ledger, life.refund(1000, at("04-03")))
    told = told_by(ledger, "ida", at("04-03 01:00"))
    assert (told.balance.balance, told.balance.owed) == (1000, 1500)
    ledger.reverse(spent.transaction.id, at=at("04-04"))
    assert lots(ledger, "ida", at("04-04 01:00"))[0] == ("allowance", 2500, 0, 2500)
    assert told_by(ledger, "ida", at("04-04 01:00")).balance.owed == 0


def test_a_refund_that_fails_later_gives_back(ledger: Ledger) -> None:
    """§4.8."""
    life = Story("ida", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    feed(ledger, life.refund(1000, at("04-03")))
    assert told_by(ledger, "ida", at("04-03 01:00")).balance.balance == 3500
    feed(ledger, life.refund_failed(at("04-05")))
    assert told_by(ledger, "ida", at("04-05 01:00")).balance.balance == 6000


@pytest.mark.parametrize(
    ("policy", "after_refund", "after_renewal"),
    [("owed", 0, 0), ("floor", 0, 5000), ("debt", -5000, 0)],
)
def test_what_becomes_of_a_refunded_but_used_allowance(
    ledger: Ledger, policy: str, after_refund: int, after_renewal: int
) -> None:
    """§4.8: owed by the next allowance, forgiven, or a negative balance."""
    ledger.catalog = catalog(rest=f'[policy]\nclawback = "{policy}"')
    life = Story("ida", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    ledger.deduct("ida", 6000, at=at("04-02"))
    feed(ledger, life.refund(None, at("04-03")))
    assert told_by(ledger, "ida", at("04-03 01:00")).balance.balance == after_refund
    feed(ledger, life.renewal(at("05-01")))
    assert told_by(ledger, "ida", at("05-01 01:00")).balance.balance == after_renewal


def test_past_due_gets_nothing_until_its_order_is_paid(ledger: Ledger) -> None:
    """§4.7: access to the old credits ends after the grace; the late payment grants its period."""
    life = Story("ida", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    feed(ledger, life.past_due(at("05-01")))
    told = told_by(ledger, "ida", at("05-01 00:59"))
    assert (told.plan, told.status, told.balance.balance) == ("pro", "past_due", 6000)
    assert told_by(ledger, "ida", at("05-01 01:00")).balance.balance == 1000
    assert told_by(ledger, "ida", at("05-02")).next_refill_at is None
    feed(ledger, life.recover(at("05-06")))
    assert lots(ledger, "ida", at("05-06 01:00"))[0] == ("allowance", 5000, 0, 5000)


def test_cancelling_keeps_the_plan_until_its_end(ledger: Ledger) -> None:
    """§4.6: the end downgrades without any further event; uncancelling restores."""
    life = Story("ida", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    feed(ledger, life.cancel_at_period_end(at("04-05")))
    told = told_by(ledger, "ida", at("04-30 23:59"))
    assert (told.plan, told.balance.balance, told.next_refill_at) == ("pro", 6000, None)
    told = told_by(ledger, "ida", at("05-01"))
    assert (told.plan, told.status, told.balance.balance) == ("free", None, 1000)
    feed(ledger, life.uncancel(at("04-20")))
    assert told_by(ledger, "ida", at("05-01")).plan == "pro"


def test_revoked_and_reinstated(ledger: Ledger) -> None:
    """§§1.1, 4.3: immediate revocation expires at once; a newer fact brings it back."""
    life = Story("ida", at=at("04-01"))
    bought = life.purchase("pro")
    feed(ledger, bought)
    ledger.deduct("ida", 100, at=at("04-02"))
    feed(ledger, life.revoke(at("04-09")))
    told = told_by(ledger, "ida", at("04-09 01:00"))
    assert (told.plan, told.balance.balance) == ("free", 1000)
    again = next(event for event in bought if event["type"] == "subscription.updated")
    feed(ledger, [{**again, "timestamp": "2027-04-10T00:00:00Z"}])
    assert lots(ledger, "ida", at("04-10 01:00"))[0] == ("allowance", 5000, 100, 4900)


def test_a_yearly_subscription_gets_twelve_allowances(ledger: Ledger) -> None:
    """§4.1: bought on 31 January of a leap year, refilled by cron alone, month ends right."""
    start = datetime(2028, 1, 31, 9, tzinfo=UTC)
    life = Story("ida", at=start, interval="year")
    feed(ledger, life.purchase("pro-year"))
    begins = []
    for day in range(370):
        report = refill(ledger, at=start + timedelta(days=day, hours=1))
        if report.granted:
            begins.append((start + timedelta(days=day)).strftime("%m-%d"))
    assert begins == [
        *("02-29", "03-31", "04-30", "05-31", "06-30", "07-31"),
        *("08-31", "09-30", "10-31", "11-30", "12-31"),
    ]


def test_three_missed_months_leave_one_spendable_allowance(ledger: Ledger) -> None:
    """§4.3: skipped ones are posted and expired, so the history is whole; once."""
    life = Story("ida", at=at("01-31 09:00"), interval="year")
    feed(ledger, life.purchase("pro-year"))
    shown = told_by(ledger, "ida", at("06-15")).balance.balance
    report = refill(ledger, at=at("06-15"))
    assert (report.granted, report.expired, report.credits_expired) == (4, 4, 20000)
    assert shown == told_by(ledger, "ida", at("06-15")).balance.balance == 6000
    again = refill(ledger, at=at("06-15"))
    assert (again.considered, again.granted, again.expired) == (0, 0, 0)


def test_without_cron_the_allowance_is_there_to_spend(ledger: Ledger) -> None:
    """§5.8: a deduction counts an allowance whose period has begun; refill finds nothing left."""
    life = Story("ida", at=at("01-31 09:00"), interval="year")
    feed(ledger, life.purchase("pro-year"))
    ledger.deduct("ida", 6000, at=at("02-01"))
    assert ledger.deduct("ida", 5000, at=at("03-01")).balance == 0
    assert refill(ledger, at=at("03-01")).granted == 0


def test_editing_the_catalog_changes_no_posted_grant(ledger: Ledger) -> None:
    """§1.3: terms are written beside the period; the next period has the new ones."""
    life = Story("ida", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    ledger.catalog = catalog(rest="").__class__(
        default_plan="free",
        plans=tuple(
            plan
            if plan.name != "pro"
            else type(plan)(name="pro", credits=7000, interval="month", product_ids=plan.product_ids)
            for plan in catalog().plans
        ),
    )
    refill(ledger, at=at("04-15"), user="ida")
    assert lots(ledger, "ida", at("04-15"))[0] == ("allowance", 5000, 0, 5000)
    feed(ledger, life.renewal(at("05-01")))
    assert lots(ledger, "ida", at("05-01 01:00"))[0] == ("allowance", 7000, 0, 7000)


def test_a_product_that_the_catalog_names_later(ledger: Ledger) -> None:
    """§1.3: it grants nothing and is no failure; once it is added, refill grants it."""
    life = Story("ida", at=at("04-01"))
    feed(ledger, life.purchase("gold"))
    assert told_by(ledger, "ida", at("04-01 01:00")).balance.balance == 1000
    assert refill(ledger, at=at("04-02")).granted == 0
    ledger.catalog = catalog(rest='[plans.gold]\ncredits = 70\ninterval = "week"\nproduct_ids = ["gold"]')
    assert refill(ledger, at=at("04-03")).granted == 1
    assert lots(ledger, "ida", at("04-03"))[0] == ("allowance", 70, 0, 70)


def test_trial_credits_once_per_user(ledger: Ledger) -> None:
    """§4.2: until the first paid allowance; a second trial gives none."""
    ledger.catalog = catalog(pro="trial_credits = 300")
    life = Story("ida", at=at("04-01"))
    feed(ledger, life.purchase("pro", trial=timedelta(days=7)))
    told = told_by(ledger, "ida", at("04-01 01:00"))
    assert (told.status, told.balance.balance) == ("trialing", 1300)
    feed(ledger, life.revoke(at("04-03")))
    assert told_by(ledger, "ida", at("04-03 01:00")).balance.balance == 1000
    second = Story("ida", at=at("04-10"), seed="second")
    feed(ledger, second.purchase("pro", trial=timedelta(days=7)))
    assert told_by(ledger, "ida", at("04-10 01:00")).balance.balance == 1000


def test_rollover_up_to_the_cap(ledger: Ledger) -> None:
    """§4.4: April's 4,000 carry 2,000; May's 5,000 + 1,500 carry 2,000 again."""
    ledger.catalog = catalog(pro="rollover = 2000")
    life = Story("ida", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    ledger.deduct("ida", 1000, at=at("04-02"))
    feed(ledger, life.renewal(at("05-01")))
    assert lots(ledger, "ida", at("05-01 01:00"))[0] == ("rollover", 2000, 0, 2000)
    ledger.deduct("ida", 500, at=at("05-02"))
    feed(ledger, life.renewal(at("06-01")))
    assert lots(ledger, "ida", at("06-01 01:00")) == [
        ("rollover", 2000, 0, 2000),
        ("allowance", 5000, 0, 5000),
        ("lifetime", 1000, 0, 1000),
    ]


def test_seats_multiply_and_change_within_a_period(ledger: Ledger) -> None:
    """§4.5: 2 seats are 200; a third at half time adds ⌊100 x 15/30⌋; one seat is 100 at once."""
    life = Story("ida", at=at("04-01"))
    feed(ledger, life.purchase("team", seats=2))
    feed(ledger, life.seats_change(3, at("04-16")))
    assert lots(ledger, "ida", at("04-16 01:00"))[0] == ("allowance", 250, 0, 250)
    feed(ledger, life.seats_change(1, at("04-20")))
    assert lots(ledger, "ida", at("04-20 01:00"))[0] == ("allowance", 100, 0, 100)


def test_a_customer_who_gets_an_id_last(ledger: Ledger) -> None:
    """§7.2: what was bought and spent without an id becomes the user's, by itself."""
    life = Story(None, at=at("04-01"))
    bought = life.purchase("pro")
    feed(ledger, bought)
    placeholder = f"polar:{life.customer['id']}"
    ledger.deduct(placeholder, 5400, idempotency_key="k", at=at("04-02"))
    ledger.grant("ida", 50, create=True, at=at("04-02"))
    ledger.hold(placeholder, 100, ttl=timedelta(hours=24), at=at("04-02 12:00"))
    data = {**life.customer, "external_id": "ida"}
    feed(ledger, [{"type": "customer.updated", "timestamp": "2027-04-03T00:00:00Z", "data": data}])
    told = told_by(ledger, "ida", at("04-03"))
    # 1,000 lifetime less 400 that the placeholder spent, and 50 given by hand; its hold of 100 goes along.
    assert (told.plan, told.balance.balance, told.balance.available) == ("pro", 650, 550)
    assert views.show_user(ledger, placeholder).id == "ida"
    assert ledger.deduct(placeholder, 5400, idempotency_key="k").replayed
    assert {entry.user for entry in views.history(ledger, "ida")} == {"ida", placeholder}


def test_a_deleted_customer_closes_the_account_until_it_is_back(ledger: Ledger) -> None:
    """§4.9: no deductions, history kept; the lifetime grant is not given twice."""
    life = Story("ida", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    ledger.deduct("ida", 5300, at=at("04-02"))
    feed(ledger, life.customer_deleted(at("04-05")))
    assert told_by(ledger, "ida", at("04-05 01:00")).status == "closed"
    with pytest.raises(Exception, match="closed"):
        ledger.deduct("ida", 1, at=at("04-06"))
    back = Story("ida", at=at("04-10"), seed="back")
    feed(ledger, back.purchase("pro"))
    assert lots(ledger, "ida", at("04-10 01:00")) == [
        ("allowance", 5000, 0, 5000),
        ("lifetime", 1000, 300, 700),
    ]


def test_explain_accounts_for_every_credit(ledger: Ledger) -> None:
    """Renewals, a plan change, a pack, a partial refund, a reversal: the lines add up."""
    life = Story("ida", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    feed(ledger, life.plan_change("max", at("04-16")))
    spent = ledger.deduct("ida", 700, at=at("04-17"))
    ledger.deduct("ida", 40, at=at("04-17"))
    feed(ledger, life.renewal(at("05-01")))
    feed(ledger, life.pack("pack", at("05-03")))
    feed(ledger, life.refund(500, at("05-04")))
    ledger.reverse(spent.transaction.id, at=at("05-05"))
    ledger.deduct("ida", 19000, at=at("05-06"))
    told = told_by(ledger, "ida", at("05-06 01:00"))
    why = explain(ledger, "ida", at("05-06 01:00"))
    lines = [line for each in why.grants for line in each.movements]
    assert sum(line.amount for line in lines) == why.balance == told.balance.balance == 2500
    assert all(line.cause for line in lines)
    assert all(each.event_id for each in why.grants)
    first = why.grants[0]
    assert (first.granted, first.expired, first.clawed_back) == (5000, 12460, 0)


def test_the_same_order_under_two_event_ids_grants_once(ledger: Ledger) -> None:
    """§1.4: Polar keeps one event for each endpoint."""
    events = Story("ida", at=at("04-01")).pack("pack")
    feed(ledger, events)
    before = told_by(ledger, "ida", at("04-02")).balance
    feed(ledger, [{**event, "api_version": "2026-10"} for event in events])
    assert told_by(ledger, "ida", at("04-02")).balance == before


def test_monthly_to_yearly_and_back_with_spending(ledger: Ledger) -> None:
    """§4.5: a new period goes on from the one that it cuts off.

    4,000 used by mid-April, of which ⌊5,000 x 15/30⌋ = 2,500 had passed: the yearly one starts with
    1,500 used. Two days later all 5,000 are used and ⌊5,000 x 2/30⌋ = 333 had passed: 4,667 used.
    """
    life = Story("ida", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    ledger.deduct("ida", 4000, at=at("04-02"))
    middle, later = at("04-16"), at("04-18")
    year, month = datetime(2028, 4, 16, tzinfo=UTC), at("05-18")
    credit = item(-1000, middle, at("05-01"), proration=True)
    feed(ledger, restart(life, "pro-year", middle, year, credit, item(20000, middle, year)))
    assert lots(ledger, "ida", at("04-16 01:00"))[0] == ("allowance", 5000, 1500, 3500)
    ledger.deduct("ida", 3500, at=at("04-17"))
    credit = item(-19000, later, year, proration=True)
    feed(ledger, restart(life, "pro", later, month, credit, item(2000, later, month)))
    assert lots(ledger, "ida", at("04-18 01:00"))[0] == ("allowance", 5000, 4667, 333)


def test_a_negative_change_of_an_unpaid_period_confirms_nothing(ledger: Ledger) -> None:
    """§4.2 (a): a `subscription_update` of 0 or less needs a confirmed period before it."""
    life = Story("ida", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    feed(ledger, life.past_due(at("05-01")))
    start, end = at("05-03"), at("06-03")
    credit = item(-5000, start, at("06-01"), proration=True)
    feed(ledger, restart(life, "max", start, end, credit, item(2000, start, end)))
    assert lots(ledger, "ida", at("05-03 01:00")) == [("lifetime", 1000, 0, 1000)]


def test_a_yearly_plan_changed_in_june(ledger: Ledger) -> None:
    """§§4.1, 4.5: June by the time left, July whole; the months before stay as they were."""
    life = Story("ida", at=at("01-01"), interval="year")
    feed(ledger, life.purchase("pro-year"))
    refill(ledger, at=at("06-02"))
    feed(ledger, life.plan_change("max", at("06-16")))
    assert lots(ledger, "ida", at("06-16 01:00"))[0] == ("allowance", 12500, 0, 12500)
    assert lots(ledger, "ida", at("07-02"))[0] == ("allowance", 20000, 0, 20000)
    amounts = [entry.amount for entry in views.history(ledger, "ida", type="grant")]
    assert amounts == [5000] * 6 + [1000]


def test_a_yearly_refund_takes_the_last_months_first(ledger: Ledger) -> None:
    """§4.8: three quarters of twelve months are nine; January to March stay, April is gone."""
    life = Story("ida", at=at("01-01"), interval="year")
    feed(ledger, life.purchase("pro-year", amount=20000))
    refill(ledger, at=at("03-02"))
    feed(ledger, life.refund(15000, at("03-03")))
    assert told_by(ledger, "ida", at("03-03 01:00")).balance.balance == 6000
    assert told_by(ledger, "ida", at("04-02")).balance.balance == 1000


def test_only_subscription_events_still_refill(ledger: Ledger) -> None:
    """§4.2 (c): an hour after its start, a later period last heard active is confirmed."""
    life = Story("ida", at=at("04-01"))
    events = life.purchase("pro") + life.renewal(at("05-01"))
    feed(ledger, [event for event in events if event["type"].startswith("subscription.")])
    assert lots(ledger, "ida", at("05-01 00:30"))[0][3] == 5000
    assert lots(ledger, "ida", at("05-01 01:00"))[0] == ("allowance", 5000, 0, 5000)
    assert refill(ledger, at=at("05-01 01:00")).granted == 1


def test_only_order_events_are_enough(ledger: Ledger) -> None:
    """§1.1: the subscription inside an order speaks where nothing of its own is known."""
    life = Story("ida", at=at("04-01"))
    events = life.purchase("pro") + life.renewal(at("05-01"))
    feed(ledger, [event for event in events if event["type"].startswith("order.")])
    assert lots(ledger, "ida", at("05-01 01:00"))[0] == ("allowance", 5000, 0, 5000)


def test_a_hold_across_refund_and_renewal(ledger: Ledger) -> None:
    """§5.7: held credits are not taken back; what is captured beyond the grant's worth is owed."""
    life = Story("ida", at=at("04-01"))
    feed(ledger, life.purchase("pro"))
    hold = ledger.hold("ida", 3000, ttl=timedelta(hours=24), at=at("04-30 12:00"))
    feed(ledger, life.refund(None, at("04-30 13:00")))
    told = told_by(ledger, "ida", at("04-30 14:00"))
    assert (told.balance.balance, told.balance.held, told.balance.available) == (4000, 3000, 1000)
    feed(ledger, life.renewal(at("05-01")))
    ledger.holds.capture(hold.id, 2000, at=at("05-01 02:00"))
    told = told_by(ledger, "ida", at("05-01 02:00"))
    assert (told.balance.balance, told.balance.held, told.balance.owed) == (6000, 0, 2000)
    feed(ledger, life.renewal(at("06-01")))
    assert lots(ledger, "ida", at("06-01 01:00"))[0] == ("allowance", 5000, 2000, 3000)
