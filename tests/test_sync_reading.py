"""What sync must ask for, and in which order: each question left out would cost somebody credits."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.views import history
from polarcredits.periods import format_time
from polarcredits.polar_api import PolarApi
from polarcredits.polar_transport import Transport
from polarcredits.sync import sync
from polarcredits.webhooks.fixtures import Story
from tests.ledger.test_convergence import catalog, outcome
from tests.ledger.worlds import feed
from tests.stand_in.server import TOKEN, PolarStandIn

NOW = datetime(2027, 5, 20, tzinfo=UTC)


def days(number: float) -> timedelta:
    return timedelta(days=number)


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
    folder = tmp_path_factory.mktemp("sync-reading")
    with Ledger(f"sqlite:///{folder / 'sync.db'}", catalog(), actor="test") as ledger:
        yield ledger


@pytest.fixture
def ledger(opened: Ledger) -> Iterator[Ledger]:
    with opened.rehearse() as stage:
        yield stage


class Synced:
    """A ledger and a Polar, some days apart."""

    def __init__(self, ledger: Ledger, polar: PolarStandIn, api: PolarApi) -> None:
        self.ledger, self.polar, self.api = ledger, polar, api

    def __call__(
        self, life: Story | None, at: datetime, *, user: str | None = None, since: datetime | None = None
    ) -> tuple[str, str | None, int]:
        """Show Polar's state of a life at a time, read it, and return plan, status and balance."""
        if life is not None:
            self.polar.state.load_story(life)
        self.polar.state.clock = at
        report = sync(self.ledger, self.api, environment="sandbox", at=at, user=user, since=since)
        assert report.failed == []
        plan, status, balance, *_ = outcome(self.ledger, "ida", at)
        return plan, status, balance


@pytest.fixture
def synced(ledger: Ledger, polar: PolarStandIn, api: PolarApi) -> Synced:
    return Synced(ledger, polar, api)


def test_an_order_that_was_paid_late(synced: Synced) -> None:
    """It keeps its old date: --since reads orders back for as long as Polar tries to charge."""
    life = Story("ida", at=NOW - days(50))
    life.purchase("pro")
    life.past_due(NOW - days(20))
    assert synced(life, NOW - days(10)) == ("pro", "past_due", 1000)
    life.recover(NOW - days(1))
    assert life.subscription is not None
    life.subscription["status"] = "past_due"
    assert synced(life, NOW, since=NOW - days(2))[2] == 6000


def test_a_refund_of_an_old_order(synced: Synced) -> None:
    """The order is too old to be read; its refund is not."""
    life = Story("ida", at=NOW - days(90))
    life.pack("pack")
    whole = synced(life, NOW - days(10))[2]
    life.refund(at=NOW - days(1))
    assert synced(life, NOW, since=NOW - days(2))[2] == 1000 < whole


def test_a_subscription_that_ended_unseen(synced: Synced) -> None:
    """Neither live nor lately canceled: it is asked for because it is live here."""
    life = Story("ida", at=NOW - days(25))
    life.purchase("pro")
    assert synced(life, NOW - days(20))[0] == "pro"
    life.cancel_at_period_end(NOW - days(15))
    life.revoke(NOW - days(1))
    assert synced(life, NOW, since=NOW - days(2))[0] == "free"


def test_orders_come_before_subscriptions(synced: Synced) -> None:
    """A period whose order is pending is never granted for want of orders, not even for a moment (§4.2 c)."""
    life = Story("ida", at=NOW - days(40))
    life.purchase("pro")
    life.past_due(NOW - days(10))
    assert life.subscription is not None
    life.subscription["status"] = "active"
    assert synced(life, NOW)[2] == 1000
    kinds = [entry.type for entry in history(synced.ledger, "ida", limit=100)]
    assert "adjust" not in kinds


@pytest.mark.parametrize(
    ("status", "left"),
    [("lost", 1000), ("prevented", 1000), ("won", 6000), ("needs_response", 6000), ("early_warning", 6000)],
)
@pytest.mark.parametrize("user", [None, "ida"])
def test_disputes(status: str, left: int, user: str | None, synced: Synced) -> None:
    """Lost or prevented is a whole refund, heard of by everybody's sync and by one user's (§4.8)."""
    life = Story("ida", at=NOW - days(5))
    life.purchase("pro")
    assert synced(life, NOW - days(1))[2] == 6000
    synced.polar.state.put("dispute", {"order_id": life.orders[0]["id"], "status": status})
    assert synced(None, NOW, user=user)[2] == left


def test_what_bears_the_users_id_in_its_metadata(synced: Synced, ledger: Ledger) -> None:
    """Bought with another customer, unknown here: one user's sync finds it all the same (§7.1)."""
    feed(ledger, Story("ida", at=NOW - days(9)).pack("none"), NOW)
    other = Story("bob", at=NOW - days(5), metadata={"user_id": "ida"}, seed="bob")
    other.purchase("pro")
    synced.polar.state.add_customer("ida@example.com", "ida")
    assert synced(other, NOW, user="ida")[0] == "pro"


def test_a_customer_by_polars_id(synced: Synced, ledger: Ledger) -> None:
    """A nameless customer of whom nothing is known yet is read by the id of their account to be."""
    life = Story(None, at=NOW - days(5))
    life.purchase("pro")
    synced.polar.state.load_story(life)
    user = f"polar:{life.customer['id']}"
    sync(ledger, synced.api, environment="sandbox", at=NOW, user=user)
    assert outcome(ledger, user, NOW)[0] == "pro"


def test_an_old_order_read_today_opens_its_own_period(synced: Synced, ledger: Ledger) -> None:
    """Its row embeds the subscription as it is now, with no dates of its own on the line (§1.2)."""
    life = Story("ida", at=NOW - days(40))
    life.purchase("pro")
    life.past_due(NOW - days(9))
    for order in life.orders:
        for item in order["items"]:
            item |= {"start_timestamp": None, "end_timestamp": None}
    assert life.subscription is not None
    life.orders[0]["created_at"] = format_time(NOW - days(40) - timedelta(seconds=5))
    assert synced(life, NOW)[:3] == ("pro", "past_due", 1000)


def test_progress_counts_what_is_new(synced: Synced, ledger: Ledger) -> None:
    """It grows, never beyond its total, and ends where the report does."""
    for number in range(130):
        synced.polar.state.add_customer(f"{number}@example.com", f"user-{number}")
    shown: list[tuple[int, int]] = []
    report = sync(
        ledger,
        synced.api,
        environment="sandbox",
        at=NOW,
        progress=lambda done, total: shown.append((done, total)),
    )
    assert shown[0] == (100, 130)
    assert shown[-1][0] == sum(report.checked.values()) == 130
    assert shown == sorted(shown)
    assert all(done <= total for done, total in shown)
