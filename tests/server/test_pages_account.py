"""A user's own page: what it shows, to whom, and what nobody else learns."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from polarcredits.server.links import Links
from polarcredits.webhooks.fixtures import Story
from tests.server.market import KEY, OLD_KEY, Market, market
from tests.server.serving import PRO
from tests.server.wire import Sending, post, told

STRANGE = "a/b?c#d é"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    with market(tmp_path_factory.mktemp("pages")) as running:
        yield running


def text_of(answer: httpx.Response) -> str:
    """Return what a page says, without its markup and style."""
    body = answer.text.partition("<main>")[2]
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def take(shop: Market, *payloads: object) -> None:
    for number, payload in enumerate(payloads):
        assert isinstance(payload, dict)
        sending: Sending = told(f"{payload['data']['id']}-{number}-{time.monotonic_ns()}", payload)
        assert post(shop.server.port, sending).status == 202


def test_the_account(shop: Market) -> None:
    """Plan, renewal, balance and grants, payments and transactions, as people write them."""
    story = Story(STRANGE, at=datetime.now(UTC) - timedelta(minutes=1))
    take(shop, *story.purchase(PRO))
    shop.ledger.deduct(STRANGE, 1234, operation="render", metadata={"secret": "job-77"})
    shop.ledger.grant(STRANGE, 50, reason="an angry letter")
    answer = shop.visitor.get(f"/billing/{shop.token(STRANGE)}")
    assert answer.status_code == 200
    page = text_of(answer)
    assert "Account a/b?c#d é" in page
    assert "Plan pro" in page
    assert "Credit balance 4,816" in page
    end = datetime.fromisoformat(str((story.subscription or {})["current_period_end"]))
    assert f"pro: renews {end.day} {end:%B %Y, %H:%M} UTC" in page
    assert "Plan allowance (pro) 3,766 5,000" in page
    assert "Included for good (free) 1,000 1,000 Never" in page
    assert "$20.00 Paid" in page
    assert "Used: render -1,234" in page
    assert "Added: Extra credits +50 4,816" in page
    assert "angry" not in answer.text
    assert "job-77" not in answer.text
    assert "@" not in page


def test_what_was_merged_and_what_was_closed(shop: Market) -> None:
    """A link to an account that became another's shows that one; a closed one says so, and sells nothing."""
    nameless = Story(None, at=datetime.now(UTC) - timedelta(minutes=2))
    name = f"polar:{nameless.customer['id']}"
    take(shop, *nameless.purchase(PRO))
    alias = shop.token(name)
    assert name in text_of(shop.visitor.get(f"/billing/{alias}"))
    shop.ledger.add_user("mia")
    shop.ledger.link(name, "mia")
    page = text_of(shop.visitor.get(f"/billing/{alias}"))
    assert "Account mia" in page
    assert "Plan pro" in page
    leaver = Story("leo", at=datetime.now(UTC) - timedelta(minutes=1))
    take(shop, *leaver.purchase(PRO), *leaver.customer_deleted())
    answer = shop.visitor.get(f"/billing/{shop.token('leo')}")
    assert answer.status_code == 200
    assert "This account is closed" in text_of(answer)
    assert "<form" not in answer.text
    assert "<form" not in shop.visitor.get("/pricing", params={"user": shop.token("leo")}).text


def test_what_becomes_of_a_subscription(shop: Market) -> None:
    """One that ends says when; one whose payment failed says what to do."""
    ending = Story("eva", at=datetime.now(UTC) - timedelta(minutes=1))
    take(shop, *ending.purchase(PRO), *ending.cancel_at_period_end())
    page = text_of(shop.visitor.get(f"/billing/{shop.token('eva')}"))
    assert re.search(r"pro: ends, and is not renewed \d+ \w+ \d{4}, \d\d:\d\d UTC", page)
    assert "Next credits" not in page


def test_the_portal(shop: Market) -> None:
    """The button leads to Polar's portal; without a customer there is no button, and nothing to open."""
    user = shop.user()
    token = shop.token(user)
    assert "/portal" not in shop.visitor.get(f"/billing/{token}").text
    before = shop.made()
    assert shop.visitor.post(f"/billing/{token}/portal").status_code == 404
    assert shop.made() == before
    story = Story(user, at=datetime.now(UTC) - timedelta(minutes=1))
    take(shop, *story.purchase(PRO))
    with shop.polar.lock:
        shop.polar.state.load_story(story)
    assert f'action="/billing/{token}/portal"' in shop.visitor.get(f"/billing/{token}").text
    answer = shop.visitor.post(f"/billing/{token}/portal")
    assert answer.status_code == 303
    assert answer.headers["location"].startswith(f"{shop.polar.url}/portal?customer_session_token=")
    assert token not in str(shop.polar.exchanges[-1].request_body)


def bad_tokens(shop: Market, user: str) -> dict[str, tuple[str, int]]:
    good = shop.token(user)
    body, _, signature = good.rpartition(".")
    other, _, _ = shop.token(shop.user()).rpartition(".")
    now = datetime.now(UTC)
    stranger = Links(["a-key-of-somebody-else-0123456789-abc"])
    offer = shop.offer("pro", shop.visitor.get("/pricing", params={"user": good}).text)
    return {
        "expired": (shop.links.user(user, now - timedelta(seconds=1)), 410),
        "another key": (stranger.user(user, now + timedelta(hours=1)), 403),
        "expired, another key": (stranger.user(user, now - timedelta(hours=1)), 403),
        "another user": (f"{other}.{signature}", 403),
        "cut": (good[:-1], 403),
        "unsigned": (body, 403),
        "plain": (user, 403),
        "a form's": (offer, 403),
        "long": ("x" * 5000, 403),
        "odd": ("%F0%9F%92%A9.é", 403),
    }


def test_links_that_are_no_good(shop: Market) -> None:
    """Expired and forged links disclose nothing and do nothing, on every page that takes one."""
    user = shop.user()
    with shop.polar.lock:
        shop.polar.state.add_customer("forged@example.com", user)
    moved, made = shop.standing(user), shop.made()
    for name, (token, status) in bad_tokens(shop, user).items():
        for answer in (
            shop.visitor.get(f"/billing/{token}"),
            shop.visitor.post(f"/billing/{token}/portal"),
            shop.visitor.get("/pricing", params={"user": token}),
        ):
            assert answer.status_code == status, name
            assert user not in text_of(answer), name
            assert "1,000" not in answer.text, name
            assert "<form" not in answer.text, name
            assert "ask for a new" in text_of(answer), name
    assert shop.standing(user) == moved
    assert shop.made() == made
    assert shop.visitor.get("/billing/").status_code == 404
    assert shop.visitor.get(f"/billing/{shop.token('nobody-at-all')}").status_code == 404


def test_keys_that_rotate(shop: Market) -> None:
    """The first key signs; links that an older one signed still work."""
    user = shop.user()
    soon = datetime.now(UTC) + timedelta(hours=1)
    assert shop.visitor.get(f"/billing/{Links([OLD_KEY]).user(user, soon)}").status_code == 200
    token = shop.token(user)
    page = shop.visitor.get("/pricing", params={"user": token}).text
    with_first_only = Links([KEY])
    offered = with_first_only.read_offer(shop.offer("pro", page), datetime.now(UTC))
    assert (offered.kind, offered.name, offered.user) == ("plan", "pro", user)
    assert offered.expires_at <= soon


def test_every_page_is_guarded(shop: Market) -> None:
    """Each answer has the headers that keep a page private, and the policy that lets no script run."""
    user = shop.user()
    token = shop.token(user)
    checkout = shop.checkout(user)
    for path in (
        "/pricing", f"/pricing?user={token}", "/pricing?user=forged", f"/billing/{token}", "/billing/forged",
        f"/checkout/success?checkout_id={checkout}", "/checkout/success",
    ):  # fmt: skip
        answer = shop.visitor.get(path)
        headers = answer.headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'", path
        assert "script-src" not in policy
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["style-src"].startswith("'sha256-")
        assert policy["form-action"] == "'self' http://127.0.0.1:*"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"
        assert "strict-transport-security" not in headers
        assert "<script" not in answer.text
        assert '<html lang="en">' in answer.text
        assert answer.text.count("<h1>") == 1
        assert "http" not in re.sub(r"xmlns='[^']+'|http-equiv", "", answer.text), path
        anybody = path == "/pricing"
        assert headers["cache-control"] == ("public, max-age=60" if anybody else "no-store"), path
    secure = shop.visitor.get("/pricing", headers={"x-forwarded-proto": "https"})
    assert secure.headers["strict-transport-security"] == "max-age=31536000"


def test_the_log_has_no_tokens(shop: Market) -> None:
    """Neither a link nor a checkout's id reaches the log."""
    user = shop.user()
    token, checkout = shop.token(user), shop.checkout(user)
    shop.visitor.get(f"/billing/{token}")
    shop.visitor.post(f"/billing/{token}/portal")
    shop.visitor.get("/pricing", params={"user": token})
    shop.visitor.get("/checkout/success", params={"checkout_id": checkout})
    shop.visitor.get("/healthz")
    time.sleep(0.2)
    log = shop.server.log.read_text()
    assert "/checkout/success" in log
    assert token not in log
    assert checkout not in log
    assert KEY not in log
