"""The page on which a buyer lands: it waits for the credits, and tells strangers nothing."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from polarcredits.ledger.views import history
from polarcredits.periods import format_time
from tests.server.market import Market, market
from tests.server.serving import PACK
from tests.server.test_pages_account import text_of

_seen: dict[str, float] = {}
"""When each purchase was last looked at."""


@pytest.fixture(scope="module")
def open_market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    with market(tmp_path_factory.mktemp("success")) as running:
        yield running


@pytest.fixture
def shop(open_market: Market) -> Market:
    """The market with nothing made yet, and a visitor from an address of their own."""
    open_market.clear()
    return open_market


def land(shop: Market, checkout: str, looks: int | None = None) -> httpx.Response:
    """Look at a purchase, once the answer before is no longer kept."""
    time.sleep(max(0.0, _seen.get(checkout, 0.0) + 1.05 - time.monotonic()))
    query: dict[str, Any] = {"checkout_id": checkout} | ({} if looks is None else {"looks": looks})
    answer = shop.visitor.get("/checkout/success", params=query)
    _seen[checkout] = time.monotonic()
    return answer


def refreshes(answer: httpx.Response) -> str | None:
    """Return what a page does next by itself."""
    found = re.search(r'<meta http-equiv="refresh" content="([^"]+)">', answer.text)
    return found[1] if found else None


def test_the_webhook_brings_the_credits(shop: Market) -> None:
    """Paid, being confirmed, and there once the webhook has come; Polar is not asked for what we have."""
    user = shop.user()
    checkout = shop.checkout(user)
    answer = land(shop, checkout)
    assert "waiting for your payment" in text_of(answer)
    assert refreshes(answer) == f"2;url=/checkout/success?checkout_id={checkout}&amp;looks=1"
    shop.pay(checkout)
    answer = land(shop, checkout, 1)
    assert answer.status_code == 200
    assert "Your purchase is being confirmed" in text_of(answer)
    assert shop.standing(user)[:2] == ("free", 1000)
    shop.deliver(checkout)
    before = len(shop.polar.exchanges)
    answer = land(shop, checkout, 1)
    page = text_of(answer)
    assert "Thank you: your credits are there Plan pro Credit balance 6,000" in page
    assert refreshes(answer) is None
    assert len(shop.polar.exchanges) == before
    email = shop.polar.state.all("customer")[0]["email"]
    assert not {user, email} & set(page.split())
    assert "/billing/" not in answer.text


def test_a_late_webhook_is_not_waited_for(shop: Market) -> None:
    """After two looks Polar itself is asked for the order; the ledger then has it, as sync would."""
    user = shop.user()
    checkout = shop.checkout(user, product=PACK)
    shop.pay(checkout)
    assert "being confirmed" in text_of(land(shop, checkout, 1))
    assert shop.sent("GET", "/v1/orders/") == 0
    page = text_of(land(shop, checkout, 2))
    assert "Plan free Credit balance 2,000" in page
    assert shop.standing(user) == ("free", 2000, 2)
    assert {entry.actor for entry in history(shop.ledger, user)} == {"test", "sync"}
    shop.deliver(checkout)
    assert shop.standing(user) == ("free", 2000, 2)


def test_only_this_purchase_counts(shop: Market) -> None:
    """Neither an earlier one of the same buyer, nor an order that is not paid yet."""
    user = shop.user()
    first = shop.checkout(user, product=PACK)
    shop.pay(first)
    shop.deliver(first)
    assert "Credit balance 2,000" in text_of(land(shop, first))
    buyer = shop.polar.state.objects["checkout"][first]["customer_id"]
    second = shop.checkout(None, product=PACK, customer_id=buyer, metadata={"user_id": user})
    shop.pay(second)
    assert "being confirmed" in text_of(land(shop, second))
    order = next(each for each in shop.polar.state.all("order") if each["checkout_id"] == second)
    order["status"] = "pending"
    shop.deliver(second)
    assert "being confirmed" in text_of(land(shop, second))
    order["status"] = "paid"
    shop.deliver(second)
    assert "Credit balance 3,000" in text_of(land(shop, second))


def test_a_nameless_buyer_has_credits_too(shop: Market) -> None:
    """They are on the account of the customer, until somebody says whose that is."""
    checkout = shop.checkout(None)
    shop.pay(checkout)
    shop.deliver(checkout)
    answer = land(shop, checkout)
    assert "Plan pro Credit balance 6,000" in text_of(answer)
    assert "polar:" not in answer.text


def test_a_typed_address_shows_nobody_s_balance(shop: Market) -> None:
    """Whoever types another's address into Polar's form learns neither the plan nor the balance behind it."""
    user = shop.user()
    first = shop.checkout(user)
    shop.pay(first)
    shop.deliver(first)
    assert "Plan pro Credit balance 6,000" in text_of(land(shop, first))
    known = shop.polar.state.objects["checkout"][first]["customer_id"]
    second = shop.checkout(None, product=PACK, customer_id=known)
    shop.pay(second)
    shop.deliver(second)
    assert shop.standing(user)[:2] == ("pro", 7000)
    page = text_of(land(shop, second))
    assert "your credits are there They were added to the account of the e-mail address" in page
    assert not {"pro", "7,000", "6,000", "balance", user} & set(page.split())


def test_an_order_that_is_not_there_yet(shop: Market) -> None:
    """Polar says paid, and shows no order: the page goes on waiting, and asks at most every five seconds."""
    user = shop.user()
    checkout = shop.checkout(user, status="succeeded")
    for looks in (2, 3):
        answer = land(shop, checkout, looks)
        assert "as soon as the payment is confirmed" in text_of(answer)
    assert shop.sent("GET", "/v1/orders/") == 1
    assert shop.standing(user)[:2] == ("free", 1000)


@pytest.mark.parametrize(
    ("status", "said", "waits"),
    [
        ("failed", "The payment did not succeed Nothing was charged", False),
        ("expired", "This checkout has expired Nothing was charged", False),
        ("confirmed", "Your purchase is being confirmed", True),
        ("open", "waiting for your payment", True),
    ],
)
def test_other_ends(status: str, said: str, waits: bool, shop: Market) -> None:
    """Each state is told as it is, and nobody has a credit more."""
    user = shop.user()
    answer = land(shop, shop.checkout(user, status=status))
    assert answer.status_code == 200
    assert said in text_of(answer)
    assert (refreshes(answer) is not None) == waits
    assert shop.standing(user)[:2] == ("free", 1000)


def test_it_stops(shop: Market) -> None:
    """The page asks ever more slowly, gives up after three minutes, and says what happens then."""
    waiting = [shop.checkout(None, status="confirmed") for _ in range(4)]
    pauses = [refreshes(land(shop, id, looks)) for id, looks in zip(waiting, (9, 10, 29), strict=False)]
    assert [each and each.split(";")[0] for each in pauses] == ["2", "5", "10"]
    checkout = waiting[3]
    answer = land(shop, checkout, 30)
    assert refreshes(answer) is None
    assert "This takes longer than usual" in text_of(answer)
    assert "added by themselves" in text_of(answer)
    assert f'href="/checkout/success?checkout_id={checkout}"' in answer.text
    for odd in ("-1", "1e3", "٣", "999", ""):
        answer = shop.visitor.get("/checkout/success", params={"checkout_id": checkout, "looks": odd})
        assert (refreshes(answer) or "").endswith("looks=1")


def test_ids_that_are_no_good(shop: Market) -> None:
    """What cannot be an id never reaches Polar; one that Polar does not know is asked for once."""
    before = len(shop.polar.exchanges)
    for id in ("", "x", "..", "%2e%2e/orders", "'; --", str(uuid.uuid4())[:-1], f"{uuid.uuid4()}a", "é" * 36):
        assert shop.visitor.get("/checkout/success", params={"checkout_id": id}).status_code == 404
    assert shop.visitor.get("/checkout/success").status_code == 404
    assert len(shop.polar.exchanges) == before
    unknown = str(uuid.uuid4())
    for _ in range(5):
        assert shop.visitor.get("/checkout/success", params={"checkout_id": unknown}).status_code == 404
    assert len(shop.polar.exchanges) == before + 1


def test_one_look_at_a_time(shop: Market) -> None:
    """Many tabs on one purchase cost one request a second."""
    checkout = shop.checkout(shop.user())
    for _ in range(20):
        answer = shop.visitor.get("/checkout/success", params={"checkout_id": checkout.upper()})
        assert answer.status_code == 200
    assert shop.sent("GET", "/v1/checkouts/") <= 2


def test_an_old_purchase_shows_no_balance(shop: Market) -> None:
    """A day later whoever finds the address learns nothing of the account."""
    user = shop.user()
    then = format_time(datetime.now(UTC) - timedelta(hours=2))
    checkout = shop.checkout(user, expires_at=then)
    shop.pay(checkout)
    shop.deliver(checkout)
    answer = land(shop, checkout)
    assert "This purchase is complete" in text_of(answer)
    assert "6,000" not in answer.text
    assert refreshes(answer) is None


def test_polar_is_away(shop: Market) -> None:
    """It is said, and asked again; what our own database knows is shown all the same."""
    user = shop.user()
    checkout, known = shop.checkout(user), shop.checkout(shop.user())
    unpaid = shop.checkout(None, status="confirmed")
    shop.pay(known)
    assert "being confirmed" in text_of(land(shop, unpaid))
    assert "being confirmed" in text_of(land(shop, known))
    shop.polar.misbehave("403", times=1)
    answer = land(shop, checkout)
    assert answer.status_code == 502
    assert "declined" not in text_of(answer)
    shop.polar.misbehave("500", times=999)
    answer = land(shop, checkout)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert "does not answer at the moment" in text_of(answer)
    assert refreshes(answer) is not None
    for each in (known, unpaid):
        answer = land(shop, each, 5)
        assert answer.status_code == 200
        assert "as soon as the payment is confirmed" in text_of(answer)
    shop.deliver(known)
    assert "Credit balance 6,000" in text_of(land(shop, known, 5))
    assert shop.standing(user)[:2] == ("free", 1000)


def test_guessing_is_bounded(open_market: Market) -> None:
    """Sixty strange ids a minute from one address; then Polar is left in peace."""
    open_market.clear()
    statuses = []
    for _ in range(125):  # a minute may end meanwhile
        guess = {"checkout_id": str(uuid.uuid4())}
        statuses.append(open_market.visitor.get("/checkout/success", params=guess).status_code)
    assert set(statuses) == {404, 429}
    assert 60 <= statuses.count(404) <= 120
    assert len(open_market.polar.exchanges) == statuses.count(404)


def test_a_crowd_is_not_blamed_on_polar(open_market: Market) -> None:
    """Who is turned away because too many ask reads that, and the page asks again by itself."""
    open_market.clear()
    for _ in range(125):
        answer = open_market.visitor.get("/checkout/success", params={"checkout_id": str(uuid.uuid4())})
        if answer.status_code == 429:
            break
    assert answer.headers["retry-after"]
    assert "Very many people are asking at the moment" in text_of(answer)
    assert "does not answer" not in text_of(answer)
    assert refreshes(answer) is not None
