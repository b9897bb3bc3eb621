"""What the pages are made of: signed links, bounds, kept prices, money and words."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from polarcredits.errors import (
    ConfigError,
    DatabaseBusy,
    InvalidInput,
    PolarCreditsError,
    PolarRefused,
    PolarUnavailable,
    UnknownUser,
)
from polarcredits.plans import parse_catalog
from polarcredits.polar_values import Product
from polarcredits.server.limits import FEW, Gate, Throttle, TooMany, visitor
from polarcredits.server.links import (
    LinkExpired,
    LinkRefused,
    Links,
    Offered,
    links_of,
    personal_urls,
    what_is_off,
)
from polarcredits.server.presentation import cards, duration, money, number, signed, when
from polarcredits.server.prices import FRESH, KEPT, RETRY, Prices
from polarcredits.server.refusals import Foreign, PageOff, refusal_of
from polarcredits.settings import Settings, load_settings
from tests.server.market import KEY, OLD_KEY

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def settings(**environ: str) -> Settings:
    return load_settings(environ=environ | {"POLARCREDITS_DATABASE_URL": "sqlite:///unused.db"})


@pytest.mark.parametrize("user", ["alice", "a/b?c#d é", "polar:c1", "\N{PILE OF POO}" * 255, '"],["'])
def test_a_link_names_its_user_until_its_time(user: str) -> None:
    """Whatever the id; to the second."""
    links = Links([KEY])
    token = links.user(user, NOW + HOUR)
    assert links.read_user(token, NOW).user == user
    assert links.read_user(token, NOW + HOUR - timedelta(seconds=1)).expires_at == NOW + HOUR
    with pytest.raises(LinkExpired):
        links.read_user(token, NOW + HOUR)
    assert token.replace(".", "").replace("-", "").replace("_", "").isalnum()


def test_links_of_another_purpose() -> None:
    """A form's token opens no account, and a link buys nothing."""
    links = Links([KEY])
    offered = Offered(kind="plan", name="pro", user="alice", expires_at=NOW + HOUR)
    assert links.read_offer(links.offer(offered), NOW) == offered
    with pytest.raises(LinkRefused):
        links.read_user(links.offer(offered), NOW)
    with pytest.raises(LinkRefused):
        links.read_offer(links.user("alice", NOW + HOUR), NOW)
    with pytest.raises(LinkExpired):
        links.read_offer(links.offer(offered), NOW + HOUR)


def test_keys() -> None:
    """The first signs, all are accepted, and one that was dropped no longer is."""
    rotating = links_of(settings(POLARCREDITS_SECRET_KEY=f"{KEY} , {OLD_KEY}"))
    assert rotating is not None
    assert rotating.read_user(Links([OLD_KEY]).user("a", NOW + HOUR), NOW).user == "a"
    assert Links([KEY]).read_user(rotating.user("a", NOW + HOUR), NOW).user == "a"
    with pytest.raises(LinkRefused):
        Links([KEY]).read_user(Links([OLD_KEY]).user("a", NOW + HOUR), NOW)


@pytest.mark.parametrize("key", ["short", "x" * 64, f"{KEY},short", ",", "abc" * 20])
def test_a_weak_key_is_refused(key: str) -> None:
    """With how to make a better one, and without the key itself."""
    with pytest.raises(ConfigError) as failure:
        links_of(settings(POLARCREDITS_SECRET_KEY=key))
    assert failure.value.fields["setting"] == "POLARCREDITS_SECRET_KEY"
    assert "token_urlsafe" in failure.value.message
    assert key not in failure.value.message.split()


@pytest.mark.parametrize(
    "address", ["example.com", "ftp://example.com", "https://", "https://x/?a=b", "http://u@x"]
)
def test_a_public_address_is_checked(address: str) -> None:
    with pytest.raises(ConfigError) as failure:
        settings(POLARCREDITS_PUBLIC_URL=address)
    assert failure.value.fields["setting"] == "POLARCREDITS_PUBLIC_URL"


def test_what_is_off_is_said() -> None:
    """Each setting that is not there, by name; nothing where all are."""
    assert [line.split()[0] for line in what_is_off(settings())] == [
        "POLARCREDITS_SECRET_KEY",
        "POLAR_ACCESS_TOKEN",
        "POLARCREDITS_PUBLIC_URL",
    ]
    whole = settings(
        POLARCREDITS_SECRET_KEY=KEY,
        POLAR_ACCESS_TOKEN="t",
        POLARCREDITS_PUBLIC_URL="https://example.com/shop/",
    )
    assert what_is_off(whole) == []
    billing, pricing = personal_urls(whole, "alice", NOW)
    assert billing.startswith("https://example.com/shop/billing/")
    assert pricing == f"https://example.com/shop/pricing?user={billing.rpartition('/')[2]}"


def test_a_throttle() -> None:
    """So many a minute for each, so many for all; a refusal counts for nothing; then a new minute."""
    clock = Clock()
    throttle = Throttle(each=2, together=3, clock=clock)
    throttle.take("a")
    throttle.take("a")
    with pytest.raises(TooMany):
        throttle.take("a")
    for each in range(7):
        throttle.take(f"b{each}")
    with pytest.raises(TooMany):
        throttle.take("c")
    clock.now += timedelta(seconds=60)
    throttle.take("c")
    clock.now -= timedelta(days=1)
    throttle.take("c")
    throttle.take("c")


def test_a_throttle_keeps_places_for_those_who_ask_little() -> None:
    """Whoever asks for much is refused once what is for all is used up; others still get their few."""
    throttle = Throttle(each=60, together=120, clock=Clock())
    for _ in range(60):
        throttle.take("greedy")
        throttle.take("greedier")
    for key in ("greedy", "greedier"):
        with pytest.raises(TooMany):
            throttle.take(key)
    for each in range(50):
        for _ in range(FEW):
            throttle.take(f"modest-{each}")
        with pytest.raises(TooMany):
            throttle.take(f"modest-{each}")


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("unix", "unix"),
        (None, "nobody"),
    ],
)
def test_whom_an_address_counts_for(host: str | None, counted: str) -> None:
    """A home with IPv6 has more addresses than anybody can count: all of them are one visitor."""
    assert visitor(host) == counted


def test_a_gate() -> None:
    """Two inside, one waits, a fourth is turned away; who leaves makes room, by an error too."""

    async def story() -> list[str]:
        gate, told, leave = Gate(inside=2, waiting=1), [], asyncio.Event()

        async def enter(name: str) -> None:
            async with gate.passing():
                told.append(name)
                await leave.wait()
                raise ValueError

        tasks = [asyncio.create_task(enter(name)) for name in "abc"]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert told == ["a", "b"]
        with pytest.raises(TooMany):
            await enter("d")
        leave.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with gate.passing():
            told.append("e")
        return told

    assert asyncio.run(story()) == ["a", "b", "c", "e"]


def product(**fields: Any) -> Product:
    """Return a monthly product of 20 dollars, but for some fields."""
    known: dict[str, Any] = {
        "id": "p", "name": "", "archived": False, "interval": "month", "interval_count": 1,
        "price_cents": 2000, "currency": "usd", "organization_id": None,
    }  # fmt: skip
    return Product(**(known | fields))


def test_prices_are_kept_and_asked_for_again() -> None:
    """Nobody waits for prices that are known; a failure is tried again later; very old ones are not shown."""
    clock = Clock()
    asked: list[datetime] = []
    away = False

    async def ask() -> Mapping[str, Product]:
        asked.append(clock.now)
        await asyncio.sleep(0)
        if away:
            raise PolarUnavailable("away")
        return {"p": product()}

    async def story() -> None:
        nonlocal away
        prices = Prices(ask, clock)
        assert await prices.known() == {"p": product()}
        clock.now += FRESH - timedelta(seconds=1)
        assert await prices.known()
        assert len(asked) == 1
        away = True
        clock.now += timedelta(seconds=1)
        assert await prices.known() == {"p": product()}
        await asyncio.sleep(0.01)
        assert len(asked) == 2
        await prices.known()
        assert len(asked) == 2
        clock.now += RETRY
        await prices.known()
        await asyncio.sleep(0.01)
        assert len(asked) == 3
        clock.now = NOW + KEPT
        assert await prices.known() is None
        away = False
        await asyncio.sleep(0.01)
        clock.now += RETRY
        await prices.known()
        await asyncio.sleep(0.01)
        assert await prices.known() == {"p": product()}

    asyncio.run(story())


@pytest.mark.parametrize(
    ("minor", "currency", "said"),
    [
        (2000, "usd", "$20.00"),
        (123456789, "eur", "€1,234,567.89"),
        (5, "gbp", "£0.05"),
        (2000, "jpy", "¥2,000"),
        (2000, "krw", "KRW 2,000"),
        (550, "chf", "CHF 5.50"),
        (-4000, "usd", "-$40.00"),
        (0, "usd", "$0.00"),
        (199, "isk", "ISK 1.99"),
    ],
)
def test_money(minor: int, currency: str, said: str) -> None:
    """As Polar counts it: hundredths, but for currencies that have none."""
    assert money(minor, currency) == said


def test_numbers_and_times() -> None:
    assert number(1234567) == "1,234,567"
    assert [signed(value) for value in (1000, -1000)] == ["+1,000", "-1,000"]
    assert when(datetime(2026, 12, 3, 5, 7, tzinfo=UTC)) == "3 December 2026, 05:07 UTC"
    spans = (timedelta(days=365), timedelta(hours=36), timedelta(minutes=1), timedelta(seconds=90))
    assert [duration(span) for span in spans] == ["365 days", "36 hours", "1 minute", "90 seconds"]


CATALOG = parse_catalog(
    """
[plans.team]
credits = 9000
interval = "month"
product_ids = ["p"]
rollover = "all"
per_seat = true
trial_credits = 100
[packs.big]
credits = 50000
product_ids = ["k"]
expires_after = "365d"
""",
    pro_product_id=None,
)


def test_cards() -> None:
    """What is sold, with its terms, and a price where one is known."""
    free, team, big = cards(CATALOG, {"p": product(currency="jpy", interval_count=3)}, "free")
    assert (free.price, free.current, free.buyable) == ("Free", True, False)
    assert (team.price, team.credits) == ("¥2,000 / 3 months", "9,000 credits every month")
    assert team.notes == (
        "For each seat",
        "100 credits while a trial lasts",
        "Unused credits are carried over",
    )
    assert (big.price, big.notes, big.buyable) == (None, ("Valid for 365 days",), False)


@pytest.mark.parametrize("changed", [{"archived": True}, {"interval": None}, {"id": "another"}])
def test_a_card_without_a_button(changed: dict[str, Any]) -> None:
    """What Polar would refuse to sell is not offered; while nothing is known, all is."""
    one = product(**changed)
    assert not cards(CATALOG, {one.id: one}, None)[1].buyable
    assert cards(CATALOG, None, None)[1].buyable


@pytest.mark.parametrize("fields", [{"price_cents": None}, {"currency": ""}])
def test_a_price_that_is_not_known(fields: dict[str, Any]) -> None:
    """Prices that the buyer chooses, or in no currency, are shown at the checkout."""
    card = cards(CATALOG, {"p": product(**fields)}, None)[1]
    assert card.price is None
    assert card.buyable


def every_error(kind: type[PolarCreditsError] = PolarCreditsError) -> set[type[PolarCreditsError]]:
    return {kind}.union(*(every_error(each) for each in kind.__subclasses__()))


def test_every_failure_has_a_page() -> None:
    """A status of its own kind, and words that are none of the error's."""
    statuses = {kind: refusal_of(kind.__new__(kind, "SECRET")).status for kind in every_error()}
    assert statuses[LinkExpired] == 410
    assert statuses[LinkRefused] == statuses[Foreign] == 403
    assert statuses[UnknownUser] == statuses[PageOff] == 404
    assert statuses[DatabaseBusy] == statuses[PolarUnavailable] == statuses[ConfigError] == 503
    assert statuses[PolarRefused] == 502
    assert statuses[TooMany] == 429
    assert statuses[InvalidInput] == 422
    assert statuses[PolarCreditsError] == 500
