"""Sync against a server that stands in for Polar: what webhooks lost comes back, and nothing twice."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.polar_api import PolarApi
from polarcredits.polar_transport import Transport
from polarcredits.refill import refill
from polarcredits.sync import SyncReport, sync
from polarcredits.webhooks.inbox import Inbox
from polarcredits.webhooks.reading import Element, StoredDelivery
from tests.ledger.test_convergence import catalog, outcome, recorded, story
from tests.ledger.worlds import feed
from tests.stand_in.server import TOKEN, PolarStandIn
from tests.webhooks.recordings import SECRET

NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)
SUBSETS = 25
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


def synced(ledger: Ledger, api: PolarApi, **options: object) -> SyncReport:
    report = sync(ledger, api, environment="sandbox", at=NOW, **options)  # type: ignore[arg-type]
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
            synced(ledger, api)
            assert outcome(ledger, user, NOW) == whole, (trial, len(seen))
            again = synced(ledger, api)
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
            sync(ledger, api, environment="sandbox", at=now)
            assert verify(ledger).problems == []
            assert outcome(ledger, "ida", now) == whole, (trial, [each["type"] for each in seen])
