"""Sync against a server that stands in for Polar: what webhooks lost comes back, and nothing twice."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from polarcredits.errors import PolarUnavailable
from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.polar_api import PolarApi
from polarcredits.polar_transport import Transport
from polarcredits.refill import refill
from polarcredits.sync import SyncReport, sync
from polarcredits.webhooks.fixtures import Story
from polarcredits.webhooks.inbox import Inbox
from polarcredits.webhooks.reading import Element, StoredDelivery
from tests.ledger.test_convergence import catalog, outcome, recorded, story
from tests.ledger.worlds import feed
from tests.stand_in.server import TOKEN, PolarStandIn
from tests.webhooks.recordings import SECRET

NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
SUBSETS = 12
STORIES = {
    "user_alice": ("alice-purchase", "alice-two-renewals"),
    "user_chloe": ("chloe-purchase-precreated-customer-vat",),
    "user_carol": ("carol-1-purchase", "carol-2-cancel-at-period-end", "carol-3-uncancel"),
    "user_eve": ("eve-1-purchase", "eve-2-renewal", "eve-3-past-due-then-recovered"),
    "user_gina": ("gina-1-pack", "gina-2-pack-again", "gina-3-pack-fully-refunded"),
}


@pytest.fixture
def polar() -> Iterator[PolarStandIn]:
    with PolarStandIn(now=NOW) as server:
        yield server


@pytest.fixture
def api(polar: PolarStandIn) -> Iterator[PolarApi]:
    with PolarApi(Transport(TOKEN, environment="sandbox", base_url=polar.url, sleep=lambda s: None)) as api:
        yield api


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    folder = tmp_path_factory.mktemp("sync")
    with Ledger(f"sqlite:///{folder / 'sync.db'}", catalog(), actor="test") as ledger:
        yield ledger


def ingest(ledger: Ledger, deliveries: list[Element]) -> None:
    inbox = Inbox(ledger, environment="sandbox", secrets=[SECRET])
    for delivery in deliveries:
        assert inbox.ingest(delivery, now=NOW).status in ("applied", "ignored")


def bodies(deliveries: list[Element]) -> list[dict[str, object]]:
    return [json.loads(each.raw) for each in deliveries if isinstance(each, StoredDelivery)]


def synced(ledger: Ledger, api: PolarApi, since: datetime | None = None) -> SyncReport:
    report = sync(ledger, api, environment="sandbox", at=NOW, since=since)
    assert report.failed == []
    assert verify(ledger).problems == []
    return report


@pytest.mark.parametrize("user", STORIES)
def test_whatever_was_missed_comes_back(
    user: str, opened: Ledger, polar: PolarStandIn, api: PolarApi
) -> None:
    """Any subset of the deliveries, then `sync`: the ledger of one who saw them all (§8.5)."""
    deliveries = recorded(*STORIES[user])
    polar.state.load_payloads(bodies(deliveries))
    with opened.rehearse() as ledger:
        ingest(ledger, deliveries)
        refill(ledger, at=NOW)
        whole = outcome(ledger, user, NOW)
    luck = random.Random(user)
    for trial in range(SUBSETS):
        seen = [each for each in deliveries if trial and luck.random() < luck.random()]
        with opened.rehearse() as ledger:
            ingest(ledger, seen)
            since = LONG_AGO if trial % 2 else None
            synced(ledger, api, since)
            assert outcome(ledger, user, NOW) == whole, (trial, len(seen))
            again = synced(ledger, api, since)
            assert again.changed == []


@pytest.mark.parametrize(
    "name",
    [
        "trial",
        "rollover",
        "refunds",
        "pause and resume",
        "recovered",
        "revoked",
        "deleted and back",
        "packs",
        "upgrade",
    ],
)
def test_stories_come_back(name: str, opened: Ledger, polar: PolarStandIn, api: PolarApi) -> None:
    """The same for lives that were not recorded."""
    _, events, now = story(name)
    polar.state.clock = now
    polar.state.load_payloads(events)
    with opened.rehearse() as ledger:
        feed(ledger, events, now)
        whole = outcome(ledger, "ida", now)
    luck = random.Random(name)
    for trial in range(SUBSETS // 2):
        seen = [each for each in events if trial and luck.random() < luck.random()]
        with opened.rehearse() as ledger:
            feed(ledger, seen, now)
            sync(ledger, api, environment="sandbox", at=now, since=LONG_AGO if trial % 2 else None)
            assert verify(ledger).problems == []
            assert outcome(ledger, "ida", now) == whole, (trial, [each["type"] for each in seen])


def _lives() -> dict[str, tuple[Story, list[dict[str, object]]]]:
    """Return lives in which more happened than one reading of the subscription can tell."""

    def day(month: int, day: int, hour: int = 0) -> datetime:
        return datetime(2027, month, day, hour, tzinfo=UTC)

    canceled = Story("ida", at=day(4, 1))
    told = {"upgraded, then canceled": canceled.purchase("pro")}
    told["upgraded, then canceled"] += canceled.plan_change("max", day(4, 10, 5), charge=3000)
    told["upgraded, then canceled"] += canceled.cancel_at_period_end(day(4, 20))
    renewed = Story("ida", at=day(4, 1))
    told["upgraded, then renewed"] = renewed.purchase("pro")
    told["upgraded, then renewed"] += renewed.plan_change("max", day(4, 10, 5), charge=3000)
    told["upgraded, then renewed"] += renewed.renewal(day(5, 1))
    paused = Story("ida", at=day(4, 1))
    told["paused, then resumed"] = paused.purchase("max") + paused.pause(day(5, 1))
    told["paused, then resumed"] += paused.resume(day(7, 20))
    rolled = Story("ida", at=day(4, 1))
    told["renewed twice"] = rolled.purchase("max") + rolled.renewal(day(5, 1)) + rolled.renewal(day(6, 1))
    lives = (canceled, renewed, paused, rolled)
    return {name: (life, told[name]) for name, life in zip(told, lives, strict=True)}


@pytest.mark.parametrize("dated", [True, False], ids=["dated items", "undated items"])
@pytest.mark.parametrize("name", list(_lives()))
def test_orders_tell_what_the_subscription_no_longer_does(
    name: str, dated: bool, opened: Ledger, polar: PolarStandIn, api: PolarApi
) -> None:
    """Past periods and paid changes of product are rebuilt from the orders alone (§§1.2, 4.5)."""
    life, events = _lives()[name]
    now = life.now + timedelta(hours=3)
    if not dated:
        _undate(events)
    polar.state.clock = now
    polar.state.load_payloads(events)
    if not dated:
        _undate([{"type": "order", "data": order} for order in polar.state.objects["order"].values()])
    with opened.rehearse() as ledger:
        feed(ledger, events, now)
        whole = outcome(ledger, "ida", now)
        keys = _keys(ledger)
    luck = random.Random(name)
    for trial in range(SUBSETS // 3):
        seen = [each for each in events if trial and luck.random() < luck.random()]
        for since in (None, now - timedelta(days=120)):
            with opened.rehearse() as ledger:
                feed(ledger, seen, now)
                sync(ledger, api, environment="sandbox", at=now, since=since)
                assert verify(ledger).problems == []
                assert outcome(ledger, "ida", now) == whole, (trial, since)
                assert len(_keys(ledger)) == len(keys)


def test_periods_that_were_billed_late_come_back(opened: Ledger, polar: PolarStandIn, api: PolarApi) -> None:
    """Three at once, when the first two were over: no order tells where its period began but by its line."""
    life = Story("ida", at=datetime(2027, 4, 1, tzinfo=UTC))
    bought = life.purchase("max")
    events = bought.copy()
    for minutes in (10, 20, 30):
        events += life.renewal(datetime(2027, 7, 1, 0, minutes, tzinfo=UTC))
    now = life.now + timedelta(hours=3)
    polar.state.clock = now
    polar.state.load_payloads(events)
    with opened.rehearse() as ledger:
        feed(ledger, events, now)
        whole, keys = outcome(ledger, "ida", now), _keys(ledger)
    for heard in ([], bought):
        with opened.rehearse() as ledger:
            feed(ledger, heard, now)
            sync(ledger, api, environment="sandbox", at=now)
            assert (outcome(ledger, "ida", now), _keys(ledger)) == (whole, keys)


def test_a_product_that_was_changed_away_and_back(opened: Ledger, polar: PolarStandIn, api: PolarApi) -> None:
    """Each change was charged for: the orders alone tell all three (§4.5)."""
    life = Story("ida", at=datetime(2027, 4, 1, tzinfo=UTC))
    bought = life.purchase("pro")
    changes = []
    for day, product, charge in ((10, "max", 700), (16, "pro", -900), (20, "max", 700)):
        changes += life.plan_change(product, datetime(2027, 4, day, 5, tzinfo=UTC), charge=charge)
    events = bought + changes
    now = datetime(2027, 4, 21, tzinfo=UTC)
    polar.state.clock = now
    polar.state.load_payloads(events)
    with opened.rehearse() as ledger:
        feed(ledger, events, now)
        whole = outcome(ledger, "ida", now)
    orders = [each for each in events if each["type"].startswith("order.")]
    for heard in ([], bought, orders, events):
        with opened.rehearse() as ledger:
            feed(ledger, heard, now)
            sync(ledger, api, environment="sandbox", at=now)
            assert outcome(ledger, "ida", now) == whole


def test_what_was_heard_later_goes_before_what_an_order_tells(opened: Ledger) -> None:
    """A paid upgrade of which only the order came is not believed once the lesser plan is heard again."""
    life = Story("ida", at=datetime(2027, 4, 1, tzinfo=UTC))
    bought = life.purchase("pro")
    raised = life.plan_change("max", datetime(2027, 4, 10, 5, tzinfo=UTC), charge=3000)
    orders = [event for event in raised if str(event["type"]).startswith("order")]
    lowered = life.plan_change("pro", datetime(2027, 4, 12, 5, tzinfo=UTC))
    now = life.now + timedelta(hours=3)
    with opened.rehearse() as ledger:
        feed(ledger, bought + raised + lowered, now)
        whole = outcome(ledger, "ida", now)
    assert whole[:3] == ("pro", "active", 6000)
    with opened.rehearse() as ledger:
        feed(ledger, bought + orders + lowered, now)
        assert outcome(ledger, "ida", now) == whole


def _undate(events: list[dict[str, object]]) -> None:
    for event in events:
        data = event["data"]
        if str(event["type"]).startswith("order") and isinstance(data, dict):
            for item in data["items"]:
                item |= {"start_timestamp": None, "end_timestamp": None}


def _keys(ledger: Ledger) -> list[str]:
    """Return the natural keys of all grants, past ones too."""
    query = text("SELECT key FROM grants ORDER BY key")
    return ledger.reading(lambda connection: list(connection.execute(query).scalars()))


def test_a_refund_is_not_taken_again_by_the_reading_that_shows_it(
    opened: Ledger, polar: PolarStandIn, api: PolarApi
) -> None:
    """An order read just after its refund includes it, though its as-of lies before (§§1.1, 4.8)."""
    now = NOW.replace(microsecond=0)
    life = Story("ida", at=now - timedelta(days=3))
    events = life.purchase("pro") + life.refund(500, now - timedelta(seconds=0.5))
    polar.state.clock = now
    polar.state.load_payloads(events)
    with opened.rehearse() as ledger:
        sync(ledger, api, environment="sandbox", at=now + timedelta(minutes=1))
        assert outcome(ledger, "ida", now + timedelta(minutes=4))[2] == 4750
    with opened.rehearse() as ledger:
        feed(ledger, life.refund(300, now + timedelta(minutes=1)), now + timedelta(minutes=2))
        sync(ledger, api, environment="sandbox", at=now + timedelta(minutes=3))
        assert outcome(ledger, "ida", now + timedelta(minutes=4))[2] == 4000


def test_an_old_order_embeds_the_subscription_of_today(
    opened: Ledger, polar: PolarStandIn, api: PolarApi
) -> None:
    """April's order, read in May, shows May's period: it opens April's all the same (§1.2).

    May's own charge failed, so that May is not granted; whoever took the embedded period for the
    order's own would grant it.
    """
    life = Story("ida", at=datetime(2027, 4, 1, tzinfo=UTC))
    events = life.purchase("pro") + life.past_due(datetime(2027, 5, 1, tzinfo=UTC))
    now = life.now + timedelta(hours=3)
    polar.state.clock = now
    polar.state.load_payloads(events)
    for order in polar.state.objects["order"].values():
        for item in order["items"]:
            item |= {"start_timestamp": None, "end_timestamp": None}
    with opened.rehearse() as ledger:
        sync(ledger, api, environment="sandbox", at=now)
        assert outcome(ledger, "ida", now)[:3] == ("pro", "past_due", 1000)
        feed(ledger, events, now)
        assert outcome(ledger, "ida", now)[:3] == ("pro", "past_due", 1000)


def test_the_local_clock_dates_nothing(opened: Ledger, polar: PolarStandIn, api: PolarApi) -> None:
    """With Polar's clock an hour behind ours, an event of half an hour ago is newer than a reading."""
    now = datetime.now(UTC)
    life = Story("ida", at=now - timedelta(days=2))
    bought = life.purchase("pro")
    polar.state.clock = now - timedelta(hours=1)
    polar.state.load_payloads(bought)
    revoked = life.revoke(now - timedelta(minutes=30))
    with opened.rehearse() as ledger:
        feed(ledger, bought + revoked, now)
        sync(ledger, api, environment="sandbox", at=now)
        assert outcome(ledger, "ida", now)[:3] == ("free", None, 1000)


def test_an_interrupted_run_goes_on(opened: Ledger, polar: PolarStandIn, api: PolarApi) -> None:
    """What was taken before Polar went away stays; the next run makes it whole."""
    start = datetime(2026, 11, 1, tzinfo=UTC)
    for number in range(150):
        life = Story(f"user-{number}", at=start, seed=str(number))
        life.purchase("pro")
        polar.state.load_story(life)
    with opened.rehearse() as ledger:
        polar.misbehave("500", times=4, path="orders/?sorting=created_at&page=2")
        with pytest.raises(PolarUnavailable):
            sync(ledger, api, environment="sandbox", at=NOW)
        report = synced(ledger, api)
        assert report.checked["orders"] == 150
        assert {outcome(ledger, f"user-{n}", NOW)[:3] for n in range(150)} == {("pro", "active", 6000)}
        assert synced(ledger, api).changed == []


def test_a_damaged_row_stops_nobody(opened: Ledger, polar: PolarStandIn, api: PolarApi) -> None:
    """A row that cannot be read is reported; the others are taken."""
    for number in range(3):
        life = Story(f"user-{number}", at=datetime(2026, 11, 1, tzinfo=UTC), seed=str(number))
        life.purchase("pro")
        polar.state.load_story(life)
    broken = next(iter(polar.state.objects["order"].values()))
    broken["id"] = ""
    with opened.rehearse() as ledger:
        report = sync(ledger, api, environment="sandbox", at=NOW)
        assert [each["kind"] for each in report.failed] == ["order"]
        assert {outcome(ledger, f"user-{n}", NOW)[2] for n in range(3)} == {6000}


def test_a_reading_between_two_equal_ones_is_not_kept(
    opened: Ledger, polar: PolarStandIn, api: PolarApi
) -> None:
    """Reading daily does not fill the database; the first and the last reading stay."""
    life = Story("ida", at=datetime(2026, 11, 1, tzinfo=UTC))
    life.purchase("pro")
    polar.state.load_story(life)
    with opened.rehearse() as ledger:
        counts = []
        for _ in range(6):
            synced(ledger, api)
            polar.state.clock = polar.state.now() + timedelta(days=1)
            counts.append(
                ledger.reading(lambda c: c.execute(text("SELECT count(*) FROM observations")).scalar())
            )
        assert counts[1] == counts[-1]
        assert outcome(ledger, "ida", NOW)[2] == 6000
