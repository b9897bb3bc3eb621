"""The pages in a real Chromium: a purchase from the price list to the balance, and links that are no good."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from polarcredits.server.links import Links
from polarcredits.webhooks.fixtures import Story
from tests.browser.conftest import Visit
from tests.server.market import Market
from tests.server.serving import PRO

pytestmark = pytest.mark.browser

FAINT = """
() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = parse(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const node of document.querySelectorAll("main *")) {
    const own = [...node.childNodes].some((each) => each.nodeType === 3 && each.textContent.trim());
    if (!own) continue;
    const pair = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) faint.push(`${node.textContent.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return faint;
}
"""
"""Texts whose contrast with what is behind them is less than 4.5."""


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no-scripts"])
def test_a_purchase(scripts: bool, shop: Market, visit: Visit) -> None:
    """Prices, the button, Polar's checkout, being confirmed, the webhook, and there are plan and balance."""
    user = shop.user()
    page = visit(f"/pricing?user={shop.token(user)}", scripts=scripts)
    page.get_by_role("button", name="Buy pro").click()
    page.wait_for_url(f"{shop.polar.url}/checkout/*")
    page.get_by_role("button", name="Pay").click()
    page.wait_for_url(f"{shop.server.url}/checkout/success?*")
    assert page.get_by_role("heading", name="Your purchase is being confirmed").is_visible()
    assert shop.standing(user)[:2] == ("free", 1000)
    (checkout,) = shop.polar.state.all("checkout")
    shop.deliver(checkout["id"])
    page.get_by_role("heading", name="Thank you: your credits are there").wait_for(timeout=10_000)
    assert page.locator("dd").all_inner_texts() == ["pro", "6,000"]
    assert page.locator('meta[http-equiv="refresh"]').count() == 0
    assert shop.standing(user)[:2] == ("pro", 6000)


def test_a_purchase_without_a_webhook(shop: Market, visit: Visit) -> None:
    """The page finds out by itself what the webhook did not tell."""
    user = shop.user()
    page = visit(f"/pricing?user={shop.token(user)}")
    page.get_by_role("button", name="Buy small").click()
    page.get_by_role("button", name="Pay").click()
    page.get_by_role("heading", name="Thank you: your credits are there").wait_for(timeout=15_000)
    assert page.locator("dd").all_inner_texts() == ["free", "2,000"]


def test_a_buyer_without_an_address(shop: Market, visit: Visit) -> None:
    """The form asks for it, labelled, and goes on to the checkout."""
    user = shop.user(email=None)
    page = visit(f"/pricing?user={shop.token(user)}", may_answer=422)
    page.get_by_role("button", name="Buy pro").click()
    page.get_by_label("E-mail address").fill("new@example.com")
    page.get_by_role("button", name="Continue to the checkout").click()
    page.get_by_role("button", name="Pay").wait_for()
    assert shop.polar.state.all("customer")[0]["email"] == "new@example.com"


def test_the_portal_and_back(shop: Market, visit: Visit) -> None:
    """From the account to Polar's portal; from there to the prices, still by name."""
    user = shop.user()
    checkout = shop.checkout(user)
    shop.pay(checkout)
    shop.deliver(checkout)
    page = visit(f"/billing/{shop.token(user)}")
    page.get_by_role("button", name="Manage payments and subscription").click()
    page.get_by_role("heading", name="Customer portal").wait_for()
    assert page.url.startswith(f"{shop.polar.url}/portal?")
    page.go_back()
    page.get_by_role("link", name="Plans and packs").click()
    assert page.get_by_text("Your plan").is_visible()
    page.get_by_role("link", name="Your account").click()
    assert page.get_by_role("heading", name="Your account").is_visible()


def test_a_checkout_beyond_the_policy(shop: Market, visit: Visit) -> None:
    """Chromium would not follow a redirect there after a form; a link it does follow."""
    shop.polar.state.site = shop.polar.url.replace("127.0.0.1", "localhost")
    page = visit("/pricing")
    page.get_by_role("button", name="Buy pro").click()
    page.get_by_role("link", name="Continue").click()
    page.get_by_role("button", name="Pay").wait_for()
    assert page.url.startswith("http://localhost:")


@pytest.mark.parametrize(("kind", "status"), [("expired", 410), ("forged", 403)])
def test_links_that_are_no_good(kind: str, status: int, shop: Market, visit: Visit) -> None:
    """They say so, and nothing else."""
    user = shop.user()
    past = datetime.now(UTC) - timedelta(minutes=1)
    stranger = Links(["a-key-of-somebody-else-0123456789-abc"])
    token = (
        shop.links.user(user, past) if kind == "expired" else stranger.user(user, past + timedelta(hours=1))
    )
    for path in (f"/billing/{token}", f"/pricing?user={token}"):
        page = visit(path, status=status)
        said = page.locator("main").inner_text()
        assert "has expired" in said if kind == "expired" else "is not valid" in said
        assert user not in page.content()
        assert page.locator("form, dd, td").count() == 0


@pytest.mark.parametrize(
    ("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 390), ("dark", 390)]
)
def test_how_it_looks(scheme: str, width: int, shop: Market, visit: Visit, pictures: Path) -> None:
    """In light and dark, on a desk and on a phone: readable, nothing cut off, each page with its headings."""
    user = f"a/b?c#d é {scheme} {width}"
    story = Story(user, at=datetime.now(UTC) - timedelta(minutes=2))
    story.purchase(PRO)
    with shop.polar.lock:
        shop.polar.state.load_story(story)
    checkout = shop.checkout(user)
    shop.pay(checkout)
    shop.deliver(checkout)
    waiting = shop.checkout(user, status="confirmed")
    shop.ledger.deduct(user, 1234, operation="render_a_very_long_video")
    shop.ledger.hold(user, 20)
    token = shop.token(user)
    paths = {
        "pricing": "/pricing",
        "pricing-user": f"/pricing?user={token}",
        "billing": f"/billing/{token}",
        "confirming": f"/checkout/success?checkout_id={waiting}",
        "late": f"/checkout/success?checkout_id={waiting}&looks=40",
        "done": f"/checkout/success?checkout_id={checkout}",
        "forged": "/billing/forged",
    }
    page = visit("/pricing", scheme=scheme, width=width, may_answer=403)
    for name, path in paths.items():
        page.goto(path)
        page.screenshot(path=pictures / f"{name}-{scheme}-{width}.png", full_page=True)
        assert page.locator("h1").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert page.evaluate(FAINT) == [], name
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        dark = all(int(part) < 64 for part in re.findall(r"\d+", back)[:3])
        assert dark == (scheme == "dark"), name
