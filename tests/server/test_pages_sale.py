"""The pricing page and its buttons: what is sold, to whom, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from polarcredits.server.links import Offered
from tests.server.market import Market, market
from tests.server.serving import PACK, PRO
from tests.server.test_pages_account import text_of
from tests.stand_in.server import TOKEN


@pytest.fixture(scope="module")
def open_market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    with market(tmp_path_factory.mktemp("sale")) as running:
        yield running


@pytest.fixture
def shop(open_market: Market) -> Market:
    """The market with nothing made yet, and a visitor from an address of their own."""
    open_market.clear()
    return open_market


def test_what_is_sold(shop: Market) -> None:
    """Plans and packs with their prices; who is named sees their plan, and no button for it."""
    page = text_of(shop.visitor.get("/pricing"))
    assert "free Free 1,000 credits once" in page
    assert "pro $20.00 / month 5,000 credits every month Buy pro" in page
    assert "small $5.00 1,000 credits, paid once Never expires Buy small" in page
    assert "Your plan" not in page
    user = shop.user()
    checkout = shop.checkout(user)
    shop.pay(checkout)
    shop.deliver(checkout)
    answer = shop.visitor.get("/pricing", params={"user": shop.token(user)})
    page = text_of(answer)
    assert f"For the account {user}" in page
    assert "5,000 credits every month Your plan" in page
    assert "Buy pro" not in page
    assert "Buy small" in page


def test_buying(shop: Market) -> None:
    """The button opens the user's own checkout, once, and a page that is looked at opens none."""
    user = shop.user()
    token = shop.token(user)
    shop.visitor.get("/pricing", params={"user": token})
    assert shop.visitor.get("/checkout").status_code == 405
    assert shop.made() == (0, 0)
    answer = shop.press("pro", token=token)
    assert answer.status_code == 303
    (checkout,) = shop.polar.state.all("checkout")
    assert answer.headers["location"] == checkout["url"]
    assert answer.headers["cache-control"] == "no-store"
    assert checkout["external_customer_id"] == user
    assert checkout["metadata"]["user_id"] == user
    home = "https://credits.example.com"
    assert checkout["success_url"] == f"{home}/checkout/success?checkout_id={{CHECKOUT_ID}}"
    assert token not in str([each.request_body for each in shop.polar.exchanges])
    assert b"return_url" not in shop.polar.exchanges[-1].request_body
    assert shop.press("small").status_code == 303
    assert f'"return_url":"{home}/pricing"'.encode() in shop.polar.exchanges[-1].request_body
    nameless = next(each for each in shop.polar.state.all("checkout") if each["id"] != checkout["id"])
    assert nameless["product_id"] == PACK
    assert nameless["external_customer_id"] is None
    assert "user_id" not in nameless["metadata"]


def test_the_account_of_a_nameless_customer_buys_as_that_customer(shop: Market) -> None:
    """Its credits go to where the first ones are."""
    first = shop.checkout(None)
    shop.pay(first)
    shop.deliver(first)
    customer = next(iter(shop.polar.state.all("customer")))["id"]
    assert shop.press("small", token=shop.token(f"polar:{customer}")).status_code == 303
    second = next(each for each in shop.polar.state.all("checkout") if each["id"] != first)
    assert second["customer_id"] == customer
    assert "user_id" not in second["metadata"]
    assert shop.polar.count("customer") == 1


def test_an_address_is_asked_for(shop: Market) -> None:
    """Who has none tells it; what is no address, or belongs to somebody else, makes nothing."""
    user = shop.user(email=None)
    token = shop.token(user)
    answer = shop.press("pro", token=token)
    assert answer.status_code == 422
    assert 'type="email"' in answer.text
    offer = shop.visitor.get("/pricing", params={"user": token}).text
    offer = shop.offer("pro", offer)
    with shop.polar.lock:
        shop.polar.state.add_customer("taken@example.com", "somebody-else")
    before = shop.made()
    for address in (
        "nonsense",
        "a@b@c",
        "a@localhost",
        "a b@example.com",
        f"{'a' * 300}@example.com",
        "taken@example.com",
    ):
        answer = shop.visitor.post("/checkout", data={"offer": offer, "email": address})
        assert answer.status_code == 422, address
        assert "somebody-else" not in answer.text
        assert shop.made() == before
    answer = shop.visitor.post("/checkout", data={"offer": offer, "email": '"><script>'})
    assert 'value="&#34;&gt;&lt;script&gt;"' in answer.text
    answer = shop.visitor.post("/checkout", data={"offer": offer, "email": " me@example.com "})
    assert answer.status_code == 303
    made = next(each for each in shop.polar.state.all("customer") if each["external_id"] == user)
    assert made["email"] == "me@example.com"
    known = shop.user()
    assert shop.press("pro", token=shop.token(known), email="other@example.com").status_code == 303
    made = next(each for each in shop.polar.state.all("customer") if each["external_id"] == known)
    assert made["email"] != "other@example.com"


def test_a_subscriber_is_sent_to_the_portal(shop: Market) -> None:
    """Polar allows one subscription: the page says so, and offers the portal."""
    user = shop.user()
    token = shop.token(user)
    offer = shop.offer("pro", shop.visitor.get("/pricing", params={"user": token}).text)
    checkout = shop.checkout(user)
    shop.pay(checkout)
    before = shop.made()
    answer = shop.visitor.post("/checkout", data={"offer": offer})
    assert answer.status_code == 409
    assert "You are subscribed already" in text_of(answer)
    assert f'action="/billing/{token}/portal"' in answer.text
    assert shop.made() == before
    assert shop.visitor.post(f"/billing/{token}/portal").status_code == 303


def test_forms_that_are_no_good(shop: Market) -> None:
    """Nothing is bought with a form that was changed, is old, comes from elsewhere or is no form."""
    user = shop.user()
    with shop.polar.lock:
        shop.polar.state.add_customer("form@example.com", user)
    offer = shop.offer("pro", shop.visitor.get("/pricing", params={"user": shop.token(user)}).text)
    now = datetime.now(UTC)
    old = shop.links.offer(Offered(kind="plan", name="pro", user=user, expires_at=now - timedelta(seconds=1)))
    soon = now + timedelta(hours=1)
    gone = shop.links.offer(Offered(kind="plan", name="gold", user=user, expires_at=soon))
    free = shop.links.offer(Offered(kind="plan", name="free", user=user, expires_at=soon))
    before, moved = shop.made(), shop.standing(user)
    post = shop.visitor.post
    body = {"offer": offer}
    answers = [
        (403, post("/checkout")),
        (403, post("/checkout", data={"offer": offer[:-1]})),
        (403, post("/checkout", data={"offer": shop.token(user)})),
        (410, post("/checkout", data={"offer": old})),
        (404, post("/checkout", data={"offer": gone})),
        (422, post("/checkout", data={"offer": free})),
        (403, post("/checkout", data=body, headers={"sec-fetch-site": "cross-site"})),
        (403, post("/checkout", data=body, headers={"sec-fetch-site": "same-site"})),
        (403, post("/checkout", data=body, headers={"origin": "https://elsewhere.example"})),
        (403, post("/checkout", data=body, headers={"origin": "http://[x"})),
        (403, post(f"/billing/{shop.token(user)}/portal", headers={"sec-fetch-site": "cross-site"})),
        (422, post("/checkout", content=b"offer=" + b"x" * 20_000)),
        (422, post("/checkout", content="offer=é".encode())),
        (422, post("/checkout", content=b"&".join(b"a=%d" % n for n in range(20)))),
        (405, shop.visitor.put("/checkout", data=body)),
    ]
    for number, (status, answer) in enumerate(answers):
        assert answer.status_code == status, number
    assert shop.made() == before
    assert shop.standing(user) == moved
    for headers in (
        {"sec-fetch-site": "same-origin", "origin": "null"},
        {"origin": "https://credits.example.com"},
    ):
        assert post("/checkout", data=body, headers=headers).status_code == 303


def test_buttons_are_bounded(shop: Market) -> None:
    """Ten presses a minute from one address; a forged form does not count."""
    offer = shop.offer("pro", shop.visitor.get("/pricing").text)
    assert {shop.visitor.post("/checkout", data={"offer": "forged"}).status_code for _ in range(12)} == {403}
    statuses = [shop.visitor.post("/checkout", data={"offer": offer}).status_code for _ in range(21)]
    assert set(statuses) == {303, 429}  # a minute may end meanwhile
    assert 10 <= statuses.count(303) <= 20
    assert shop.polar.count("checkout") == statuses.count(303)
    answer = shop.visitor.post("/checkout", data={"offer": offer}, headers={"x-forwarded-for": "203.0.113.9"})
    assert answer.status_code == 303


def test_polar_is_away(tmp_path: Path) -> None:
    """The pricing page is there without prices; a press says what happened and that nothing was charged."""
    with market(tmp_path, environ={"POLARCREDITS_PUBLIC_URL": "https://example.com/shop/"}) as shop:
        shop.polar.misbehave("500", times=999)
        answer = shop.visitor.get("/pricing")
        assert 'action="/shop/checkout"' in answer.text
        page = text_of(answer)
        assert "5,000 credits every month Buy pro The price is shown at the checkout." in page
        assert "$" not in page
        for kind, status in (("500", 503), ("html", 503), ("redirect", 502), ("403", 502)):
            shop.polar.behave()
            shop.polar.misbehave(kind, times=999)
            answer = shop.press("pro")
            assert answer.status_code == status
            assert "Please try again" in text_of(answer)
            assert TOKEN not in answer.text
        assert shop.made() == (0, 0)
        shop.polar.behave()
        assert shop.press("pro").status_code == 303


def test_a_polar_that_never_answers_holds_up_nobody_else(shop: Market) -> None:
    """A hanging Polar costs a buyer some seconds; deliveries and other pages go on meanwhile."""
    user = shop.user()
    offer = shop.offer("pro", shop.visitor.get("/pricing").text)
    checkout = shop.checkout(None)
    shop.pay(checkout)
    shop.polar.misbehave("timeout", times=999)
    with ThreadPoolExecutor() as buyers:
        began = time.monotonic()
        pressed = [buyers.submit(shop.visitor.post, "/checkout", data={"offer": offer}) for _ in range(3)]
        time.sleep(0.3)
        assert shop.visitor.get(f"/billing/{shop.token(user)}").status_code == 200
        assert shop.visitor.get("/pricing").status_code == 200
        shop.deliver(checkout)
        assert time.monotonic() - began < 3
        assert [each.result().status_code for each in pressed] == [503] * 3
    assert time.monotonic() - began < 10


def test_what_cannot_be_sold(shop: Market) -> None:
    """What went from sale meanwhile is refused, without a word of our settings."""
    offer = shop.offer("pro", shop.visitor.get("/pricing").text)
    product = shop.polar.state.objects["product"][PRO]
    product["is_archived"] = True
    answer = shop.visitor.post("/checkout", data={"offer": offer})
    product["is_archived"] = False
    assert answer.status_code == 503
    assert "not on sale" in text_of(answer)
    assert PRO not in answer.text
    assert shop.polar.count("checkout") == 0


def test_prices_are_kept(shop: Market) -> None:
    """Visitors cost Polar nothing while prices are fresh."""
    shop.visitor.get("/pricing")
    before = shop.sent("GET", "/v1/products/")
    for _ in range(50):
        assert "$20.00 / month" in shop.visitor.get("/pricing").text
    assert shop.sent("GET", "/v1/products/") == before


def test_an_address_beyond_the_policy_becomes_a_link(shop: Market) -> None:
    """A browser would block the redirect; the page that says where to go on works everywhere."""
    shop.polar.state.site = "https://elsewhere.example"
    answer = shop.press("pro")
    assert answer.status_code == 200
    assert 'href="https://elsewhere.example/checkout/' in answer.text
    shop.polar.state.site = "javascript:alert(1)//"
    answer = shop.press("pro")
    assert answer.status_code == 503
    assert "javascript" not in answer.text


@pytest.mark.parametrize("lacking", ["POLARCREDITS_SECRET_KEY", "POLAR_ACCESS_TOKEN"])
def test_without_a_setting(lacking: str, tmp_path: Path) -> None:
    """Without a key a user's pages are off; without a token nothing is sold. Both are said at the start."""
    with market(tmp_path, environ={lacking: ""}) as shop:
        assert f"{lacking} is not set" in shop.server.log.read_text()
        user = shop.user()
        answer = shop.visitor.get("/pricing")
        assert answer.status_code == 200
        assert "5,000 credits every month" in text_of(answer)
        assert "<form" not in answer.text
        token, checkout = shop.token(user), shop.checkout(user)
        keyless = lacking == "POLARCREDITS_SECRET_KEY"
        assert shop.visitor.get(f"/billing/{token}").status_code == (404 if keyless else 200)
        assert shop.visitor.get("/pricing", params={"user": token}).status_code == (404 if keyless else 200)
        success = shop.visitor.get("/checkout/success", params={"checkout_id": checkout})
        assert success.status_code == (404 if keyless else 503)
        assert "credits" in text_of(success) if keyless else "We keep asking" in text_of(success)
        offer = shop.links.offer(
            Offered(kind="plan", name="pro", user=None, expires_at=datetime.now(UTC) + timedelta(hours=1))
        )
        assert shop.visitor.post("/checkout", data={"offer": offer}).status_code == (404 if keyless else 503)
        assert shop.visitor.post(f"/billing/{token}/portal").status_code == (404 if keyless else 503)
        assert shop.polar.count("checkout") == 1
        assert shop.sent("POST", "/v1/") == 0
