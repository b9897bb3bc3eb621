"""`billing-link`, and where `checkout` sends buyers who have paid."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from polarcredits.periods import parse_time
from polarcredits.server.links import Links
from tests.cli.conftest import Run
from tests.server.market import KEY, OLD_KEY
from tests.stand_in.server import PolarStandIn

STRANGE = "a/b?c#d é"
HOME = "https://credits.example.com"


@pytest.fixture
def pages(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("POLARCREDITS_SECRET_KEY", f"{KEY},{OLD_KEY}")
    monkeypatch.setenv("POLARCREDITS_PUBLIC_URL", f"{HOME}/")
    return run


def test_a_link(pages: Run) -> None:
    """It names the user until a time, and is signed with the newest key."""
    pages("users", "add", STRANGE)
    code, told = pages("billing-link", STRANGE)
    assert code == 0
    assert {"url", "expires_at", "user"} <= told.keys()
    assert told["user"] == STRANGE
    assert told["url"].startswith(f"{HOME}/billing/")
    named = Links([KEY]).read_user(told["url"].rpartition("/")[2], datetime.now(UTC))
    assert named.user == STRANGE
    assert parse_time(told["expires_at"]) == named.expires_at
    assert timedelta(minutes=59) < named.expires_at - datetime.now(UTC) <= timedelta(hours=1)
    assert told["pricing_url"] == told["url"].replace("/billing/", "/pricing?user=")
    later = parse_time(pages("billing-link", STRANGE, "--expires-in", "7d")[1]["expires_at"])
    assert later - named.expires_at > timedelta(days=6)


@pytest.mark.parametrize(
    ("setting", "value", "code"),
    [
        ("POLARCREDITS_SECRET_KEY", None, 7),
        ("POLARCREDITS_SECRET_KEY", "short", 7),
        ("POLARCREDITS_PUBLIC_URL", None, 7),
        ("POLARCREDITS_PUBLIC_URL", "example.com", 7),
    ],
)
def test_a_setting_is_missing_or_wrong(
    setting: str, value: str | None, code: int, pages: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 7, naming it; the key itself is never shown."""
    pages("users", "add", "ann")
    monkeypatch.setenv(setting, value or "")
    got, told = pages("billing-link", "ann")
    assert (got, told["error"]["code"], told["error"]["setting"]) == (code, "config", setting)
    assert KEY not in told["error"]["message"]


def test_who_has_no_page(pages: Run) -> None:
    """An unknown user, and a link that would be dead at once."""
    code, told = pages("billing-link", "nobody")
    assert (code, told["error"]["code"]) == (3, "not_found")
    pages("users", "add", "ann")
    for life in ("0s", "soon", "-1h"):
        assert pages("billing-link", "ann", f"--expires-in={life}")[0] in (2, 5)


def test_where_buyers_land(polar: PolarStandIn, pages: Run) -> None:
    """On our success page, unless another address is given; on Polar's where ours are not reached."""
    buyer = ("checkout", "--plan", "pro", "--user", "ann", "--email", "ann@example.com")

    def landing(*more: str) -> str:
        code, told = pages(*buyer, *more)
        assert code == 0
        return str(polar.state.objects["checkout"][told["id"]]["success_url"])

    assert landing() == f"{HOME}/checkout/success?checkout_id={{CHECKOUT_ID}}"
    assert landing("--success-url", "https://example.com/ok") == "https://example.com/ok"


def test_without_pages(polar: PolarStandIn, run: Run) -> None:
    """Without a public URL nothing is said of a success page."""
    run("checkout", "--plan", "pro", "--user", "ann", "--email", "ann@example.com")
    sent = next(each for each in polar.exchanges if each.method == "POST" and "/checkouts" in each.target)
    assert b"success_url" not in sent.request_body


def test_without_a_key(polar: PolarStandIn, pages: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our success page is off without one, so that nobody is sent there."""
    monkeypatch.delenv("POLARCREDITS_SECRET_KEY")
    code, _ = pages("checkout", "--plan", "pro", "--user", "ann", "--email", "ann@example.com")
    assert code == 0
    sent = next(each for each in polar.exchanges if each.method == "POST" and "/checkouts" in each.target)
    assert b"success_url" not in sent.request_body
