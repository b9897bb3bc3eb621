"""The law of docs/rules.md §1.4: any order of the same deliveries, any repeats, one outcome."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection

from polarcredits.ledger.ledger import Ledger
from polarcredits.ledger.verify import verify
from polarcredits.plans import Catalog, parse_catalog
from polarcredits.refill import refill
from polarcredits.webhooks.fixtures import Story, deliver, make_id
from polarcredits.webhooks.inbox import Inbox
from polarcredits.webhooks.reading import Element, StoredDelivery, read_elements
from tests.webhooks.recordings import SECRET

ORDERS = 200  # of each recording; stories that were not recorded get a fifth
FOLDER = Path(__file__).parent.parent / "deliveries"
NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)
LIFETIME = ("lifetime", 1000, 1000, None)


def catalog() -> Catalog:
    """Plans for the products of the recordings and of the stories."""
    text = """
    [plans.free]
    credits = 1000
    interval = "lifetime"
    [plans.pro]
    credits = 5000
    interval = "month"
    trial_credits = 300
    product_ids = [
        "e5e52250-8ea2-4e30-b1ae-60bd1c83e7b6", "5120c1de-db05-43d2-82e8-f0362be0a1bb",
        "958a9d62-7a10-43c4-8cb4-ca70ac56e799", "pro",
    ]
    [plans.max]
    credits = 20000
    interval = "month"
    rollover = 2500
    product_ids = ["d97f19c7-3a87-4a69-921b-9541de82f2dd", "max"]
    [packs.small]
    credits = 1000
    product_ids = ["614510d7-64a2-4342-9d93-7fd38e9b2062", "pack"]
    """
    return parse_catalog(text, pro_product_id=None)


Outcome = tuple[str, str | None, int, list[tuple[str, int, int, datetime | None]]]


def outcome(ledger: Ledger, user: str, now: datetime) -> Outcome:
    """What the law speaks of: plan, status, balance and live grants."""

    def work(connection: Connection) -> Outcome:
        settled = ledger.view(connection, user, now)
        lots = [
            (lot.source, lot.amount, lot.remaining, lot.expires_at) for lot in settled.account.book.live(now)
        ]
        return settled.entitled.plan, settled.entitled.status, settled.account.balance, lots

    return ledger.reading(work)


def recorded(*names: str) -> list[Element]:
    """Return the deliveries of some recordings, in order."""
    files = [FOLDER / f"{name}.jsonl" for name in names]
    return [each for file in files for each in read_elements(file.read_bytes(), file.name)]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """A ledger that stays empty: every trial is rolled back."""
    folder = tmp_path_factory.mktemp("convergence")
    with Ledger(f"sqlite:///{folder / 'law.db'}", catalog(), actor="test") as ledger:
        yield ledger


def trial(
    opened: Ledger, deliveries: list[Element], user: str, now: datetime, luck: random.Random | None
) -> Outcome:
    """Ingest in one transaction that is rolled back; with *luck*, by random batches and refills between."""
    with opened.database.writer.connect() as connection:
        transaction = connection.begin()
        ledger = opened.using(connection)
        inbox = Inbox(ledger, environment="sandbox", secrets=[SECRET])
        left = deliveries
        while left:
            size = luck.choice((1, 3, 12)) if luck is not None else 1
            for done in inbox.ingest_many(left[:size], now=now):
                assert done.status in ("applied", "ignored"), done
            left = left[size:]
            if luck is not None and luck.random() < 0.05 * size:
                refill(ledger, at=now)
        assert refill(ledger, at=now).failed == []
        assert refill(ledger, at=now).considered == 0
        assert verify(ledger).problems == []
        found = outcome(ledger, user, now)
        transaction.rollback()
        return found


def shuffled(deliveries: list[Element], luck: random.Random) -> list[Element]:
    """Return the deliveries in a random order, some of them twice."""
    mixed = deliveries + luck.choices(deliveries, k=len(deliveries) // 4)
    luck.shuffle(mixed)
    return mixed


def converges(
    opened: Ledger, deliveries: list[Element], user: str, now: datetime, orders: int = ORDERS
) -> Outcome:
    """Assert one outcome for many orders; return it."""
    telling = [each for each in deliveries if _tells(each)]
    expected = trial(opened, deliveries, user, now, None)
    for seed in range(orders):
        luck = random.Random(seed)
        found = trial(opened, shuffled(telling, luck), user, now, luck)
        assert found == expected, f"order {seed}"
    return expected


def _tells(delivery: Element) -> bool:
    """Leave out what is ignored by its type: it cannot matter, and takes time."""
    assert isinstance(delivery, StoredDelivery)
    kinds = (b'"type":"customer.', b'"type":"subscription.', b'"type":"order.', b'"type":"refund.')
    return any(kind in delivery.raw[:80] for kind in kinds)


def day(text: str) -> datetime:
    """Return a time of the recordings."""
    return datetime.fromisoformat(text)


# Expected by hand: the newest period's end, read in the deliveries, plus `renewal_grace` (1 h)
# where the subscription goes on (docs/rules.md §4.4).
RECORDED: list[tuple[list[str], str, str, str | None, list[tuple[str, int, int, datetime | None]]]] = [
    (
        ["alice-purchase"],
        "user_alice",
        "pro",
        "active",
        [("allowance", 5000, 5000, day("2026-12-23T07:19:28.231358+00:00")), LIFETIME],
    ),
    (
        ["alice-purchase", "alice-two-renewals"],
        "user_alice",
        "pro",
        "active",
        [("allowance", 5000, 5000, day("2026-12-23T07:26:34.513484+00:00")), LIFETIME],
    ),
    (
        ["chloe-purchase-precreated-customer-vat"],
        "user_chloe",
        "pro",
        "active",
        [("allowance", 5000, 5000, day("2026-12-23T07:20:25.234062+00:00")), LIFETIME],
    ),
    (
        ["carol-1-purchase", "carol-2-cancel-at-period-end"],
        "user_carol",
        "pro",
        "active",
        [("allowance", 5000, 5000, day("2026-12-23T06:22:44.096116+00:00")), LIFETIME],
    ),
    (
        ["carol-1-purchase", "carol-2-cancel-at-period-end", "carol-3-uncancel"],
        "user_carol",
        "pro",
        "active",
        [("allowance", 5000, 5000, day("2026-12-23T07:22:44.096116+00:00")), LIFETIME],
    ),
    (
        ["eve-1-purchase", "eve-2-renewal"],
        "user_eve",
        "pro",
        "active",
        [("allowance", 5000, 5000, day("2026-12-23T07:27:46.872828+00:00")), LIFETIME],
    ),
    (
        ["eve-1-purchase", "eve-2-renewal", "eve-3-past-due-then-recovered"],
        "user_eve",
        "pro",
        "active",
        [("allowance", 5000, 5000, day("2026-12-23T07:34:14.294600+00:00")), LIFETIME],
    ),
    (
        ["gina-1-pack", "gina-2-pack-again"],
        "user_gina",
        "free",
        None,
        [LIFETIME, ("pack", 1000, 1000, None), ("pack", 1000, 1000, None)],
    ),
    (
        ["gina-1-pack", "gina-2-pack-again", "gina-3-pack-fully-refunded"],
        "user_gina",
        "free",
        None,
        [LIFETIME, ("pack", 1000, 1000, None)],
    ),
]


@pytest.mark.parametrize(("names", "user", "plan", "status", "grants"), RECORDED)
def test_real_deliveries_converge(
    opened: Ledger,
    names: list[str],
    user: str,
    plan: str,
    status: str | None,
    grants: list[tuple[str, int, int, datetime | None]],
) -> None:
    """Every recorded scenario ends where the rules say, in 200 random orders with repeats."""
    found = converges(opened, recorded(*names), user, NOW)
    balance = sum(remaining for _, _, remaining, _ in grants)
    assert found == (plan, status, balance, grants)


def story(name: str) -> tuple[Story, list[dict[str, object]], datetime]:
    """Return a life that was not recorded, as it is told from 1 April 2027."""
    start = datetime(2027, 4, 1, tzinfo=UTC)
    life = Story("ida", at=start)
    renewed = datetime(2027, 5, 1, tzinfo=UTC)
    events = life.purchase("pro", trial=timedelta(days=7) if name == "trial" else None)
    if name == "trial":
        events += life.renewal(datetime(2027, 4, 8, tzinfo=UTC))
    elif name == "upgrade and downgrade":
        events += life.plan_change("max", datetime(2027, 4, 16, tzinfo=UTC))
        events += life.plan_change("pro", datetime(2027, 4, 18, tzinfo=UTC))
        events += life.renewal(renewed)
    elif name == "upgrade":
        events += life.plan_change("max", datetime(2027, 4, 16, tzinfo=UTC))
    elif name == "rollover":
        life = Story("ida", at=start)
        events = life.purchase("max")
        events += life.renewal(renewed)
    elif name == "refunds":
        events += life.refund(500, datetime(2027, 4, 3, tzinfo=UTC))
        events += life.refund(300, datetime(2027, 4, 4, tzinfo=UTC), status="pending")
        events += life.refund_succeeded(datetime(2027, 4, 5, tzinfo=UTC))
        events += life.refund_failed(datetime(2027, 4, 9, tzinfo=UTC))
    elif name == "pause and resume":
        events += life.pause_at_period_end(datetime(2027, 4, 5, tzinfo=UTC))
        events += life.pause(renewed)
        events += life.resume(datetime(2027, 5, 20, tzinfo=UTC))
    elif name == "recovered":
        events += life.past_due(renewed)
        events += life.recover(datetime(2027, 5, 6, tzinfo=UTC))
    elif name == "revoked":
        events += life.revoke(datetime(2027, 4, 9, tzinfo=UTC))
    elif name == "deleted and back":
        events += life.customer_deleted(datetime(2027, 4, 9, tzinfo=UTC))
        life = Story("ida", at=datetime(2027, 4, 12, tzinfo=UTC), seed="again")
        events += life.purchase("pro")
    elif name == "packs":
        events += life.pack("pack", datetime(2027, 4, 3, tzinfo=UTC), units=3)
        events += life.refund(500, datetime(2027, 4, 4, tzinfo=UTC))
    return life, events, life.now + timedelta(hours=3)


@pytest.mark.parametrize(
    ("name", "plan", "balance"),
    [
        ("trial", "pro", 6000),
        # 5,000 + ⌊15,000 × 15/30⌋ = 12,500, cut to 5,000; nothing was spent, so May is whole.
        ("upgrade and downgrade", "pro", 6000),
        # 1,000 + 5,000 + ⌊15,000 × 15/30⌋
        ("upgrade", "max", 13500),
        # 20,000 and at most 2,500 of April's 20,000.
        ("rollover", "max", 23500),
        # 500 of 2,000 stay refunded: 5,000 - 1,250. The 300 failed later.
        ("refunds", "pro", 4750),
        ("pause and resume", "pro", 6000),
        ("recovered", "pro", 6000),
        ("revoked", "free", 1000),
        ("deleted and back", "pro", 6000),
        # 3 x 1,000 less half.
        ("packs", "pro", 6000 + 1500),
    ],
)
def test_stories_converge(opened: Ledger, name: str, plan: str, balance: int) -> None:
    """Lives that were not recorded converge too, to what the rules give."""
    _, events, now = story(name)
    deliveries: list[Element] = []
    for number, payload in enumerate(events):
        stored = deliver(payload, id=make_id("event", number), secret=SECRET, at=now)
        deliveries.append(
            StoredDelivery(where=str(number), headers=stored["headers"], raw=stored["body"].encode())
        )
    found = converges(opened, deliveries, "ida", now, ORDERS // 5)
    assert (found[0], found[2]) == (plan, balance)
